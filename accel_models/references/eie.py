"""EIE cycle by cycle: run-length columns in the PEs' memories, one non-zero input broadcast a cycle, bounded queues.

A matrix-vector product y = W x of K x C. Row i belongs to PE i mod N, which numbers its rows 0, 1, .. and stores its
slice of every column as entries (value, zeros before it); a run of 2^b - 1 zeros that goes on is closed by a stored
zero. A pointer a column says where its entries start. In each cycle

    1. every PE with a value in its queue works on the oldest one: one entry is multiplied and added to its row; after
       the last entry, or at once if the column has none, the value leaves the queue;
    2. if every queue had room when the cycle began, the next non-zero input is broadcast to all queues.

A value can be worked on in the cycle after its broadcast. The product ends `pipeline_stages` - 1 cycles after the last
entry was issued. A layer is one product after another, one an output pixel; its result is exact, its cycles are what
`accel_models.sparse.eie` predicts. Source: Han et al., "EIE", ISCA 2016, arXiv:1602.01528.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from accel_models.references.lowering import windows


@dataclass(frozen=True)
class Run:
    """What a reference machine did: `output` of the layer and the `cycles` it took."""

    output: np.ndarray
    cycles: int


@dataclass(frozen=True)
class Compressed:
    """A matrix as N PEs store it.

    Attributes:
        values, zeros: float64 and int64 (entries,), all PEs one after another, columns in order: stored values (0 for
            padding) and the zeros before each.
        start: int64 (columns + 1, PEs), where each column of each PE begins; the next row of the table is its end.
        rows: of the matrix.
    """

    values: np.ndarray
    zeros: np.ndarray
    start: np.ndarray
    rows: int

    @classmethod
    def of(cls, matrix: np.ndarray, pes: int, run_bits: int) -> Compressed:
        """Encode a K x C matrix."""
        values: list[float] = []
        zeros: list[int] = []
        start = np.zeros((matrix.shape[1] + 1, pes), np.int64)
        for pe in range(pes):
            for c, column in enumerate(matrix[pe::pes].T):
                start[c, pe] = len(values)
                _encode(column, 2**run_bits - 1, values, zeros)
            start[-1, pe] = len(values)
        return cls(np.array(values), np.array(zeros, np.int64), start, len(matrix))


def _encode(column: np.ndarray, longest: int, values: list[float], zeros: list[int]) -> None:
    """Append the entries of one slice."""
    run = 0
    last = int(np.flatnonzero(column)[-1]) if column.any() else -1
    for value in column[: last + 1].tolist():
        if value == 0 and run < longest:
            run += 1
        else:  # a non-zero, or a zero after as many zeros as an entry can count
            values.append(value)
            zeros.append(run)
            run = 0


def product(matrix: Compressed, inputs: np.ndarray, depth: int, pipeline_stages: int) -> Run:
    """y = W x.

    Args:
        inputs: (C,). depth: values that a queue holds, the one in work included.
    """
    pes = matrix.start.shape[1]
    lane = np.arange(pes)
    queue = np.flatnonzero(inputs)  # columns in the order of their broadcast; every queue holds a stretch of it
    sent, done = 0, np.zeros(pes, np.int64)  # broadcast so far; taken off each queue so far
    at, row = np.zeros(pes, np.int64), np.full(pes, -1)  # next entry of the column in work, row of the last one
    sums = np.zeros((-(-matrix.rows // pes), pes))
    is_fresh = np.ones(pes, bool)  # the oldest value of the queue has not been looked up yet
    cycle = last = 0
    while sent < len(queue) or (done < sent).any():
        has_room = bool((sent - done < depth).all())
        works = lane[done < sent]
        column = queue[done[works]]
        begins = is_fresh[works]
        at[works] = np.where(begins, matrix.start[column, works], at[works])
        row[works] = np.where(begins, -1, row[works])
        end = matrix.start[column + 1, works]
        issues = at[works] < end
        entry = np.minimum(at[works], len(matrix.values) - 1)
        if issues.any():
            pe, entry = works[issues], entry[issues]
            row[pe] += matrix.zeros[entry] + 1
            sums[row[pe], pe] += matrix.values[entry] * inputs[column[issues]]
            at[pe] += 1
        finished = at[works] >= end
        is_fresh[works] = finished
        done[works] += finished
        if len(works):
            last = cycle
        if has_room and sent < len(queue):
            sent += 1
        cycle += 1
    return Run(sums.ravel()[: matrix.rows], last + pipeline_stages)


def layer(
    weight: np.ndarray, inputs: np.ndarray, stride: int = 1, padding: int = 0, *, pes: int = 64, depth: int = 8,
    run_bits: int = 4, pipeline_stages: int = 4,
) -> Run:  # fmt: skip
    """A convolution of one image, or a linear layer.

    Args:
        weight: (K, C, R, S) with inputs (C, H, W), or (K, C) with inputs (C,).

    Returns:
        Output (K, P, Q) or (K,), and the cycles of all products one after another.
    """
    columns, shape = windows(weight.shape, inputs, stride, padding)
    matrix = Compressed.of(weight.reshape(len(weight), -1), pes, run_bits)
    runs = [product(matrix, x, depth, pipeline_stages) for x in columns.T]
    output = np.stack([run.output for run in runs], axis=1).reshape(len(weight), *shape)
    return Run(output, sum(run.cycles for run in runs))
