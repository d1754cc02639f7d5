"""EIE: a compressed matrix in on-chip memory times a sparse vector, its rows dealt out to processing elements.

Letters: K C R S as in `workloads.graph`; N processing elements (PEs); d weight density, a input density. A layer is a
matrix of K rows and C R S columns; row i lives in PE i mod N, so a PE owns a slice of L = K / N weights (rounded up or
down) of every column. A slice is stored as entries (value, zeros before it); a run of more than 2^b - 1 zeros is broken
by a stored zero (b = `run_bits`), zeros after the last non-zero are not stored.

    n           = broadcasts: non-zero inputs of one matrix-vector product
    service     = max(1, entries of the slice): cycles of a PE for one broadcast value, empty slices take one too
    theoretical = products * n * (entries of a column) / N            perfect balance, padding zeros included
    cycles      = products * parts * (n m + wait + pipeline stages)   m = mean service over PEs

`queues` has the formula of `wait`: how far bounded queues let the slowest PE fall behind, for random masks in closed
form and for real ones from the services of every column in every PE, weighted by the density of each input channel.
Where N does not divide K, PEs with one row more and one row less are two classes and the later class counts.

Convolutions. The paper names 1x1 and Winograd convolutions and prices none. Here every output pixel is one product with
the C R S inputs under the kernel; zeros of the halo are skipped. Any kernel size keeps its zeros so, which it would not
in the Winograd domain. Groups are blocks of one block-diagonal matrix; a column of at most N rows takes one cycle, so
depthwise layers, and all layers of up to N channels, gain nothing from pruned weights. Products wait for one another,
since source and destination registers swap roles. A transposed convolution is one product an input pixel with K R S
rows; a matmul stores its second operand as it is; an LSTM is one product a time step and sample.

Memories. A PE has `accumulators` sums; a layer of more rows is done in equal parts that broadcast the inputs again. A
layer whose entries fit the weight memory is taken to lie there, as in the paper. A larger one is done in parts of half
that memory, streamed from DRAM while the other half works. Pointers are not held against their memory: the published
VGG-16 fc6 has more columns than it holds. Feature maps stay in the activation memory where they fit, else DRAM.
Elementwise work and pooling have no described unit: one operation a cycle and PE (assumed). Words of 64 bits are read
for entries at any alignment: (entries + 7 per occupied slice) / 8.

Known to be wrong: trained masks are less even than random ones, 5 % slower and up to 30 % (give the mask). Gathering
the inputs of a window and the gates of an LSTM are free; DRAM is assumed, the paper has none. Against the paper's
layers, known by densities of one or two digits: theoretical within 6.2 %, actual within 10.1 % (docs/models/eie.md).
The 6.2 % is AlexNet fc7 with the printed 9 % of weights; with 8.5 %, which also prints as 9, it would be 2 %.

Source: Han et al., "EIE: Efficient Inference Engine on Compressed Deep Neural Network", ISCA 2016, arXiv:1602.01528.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from accel_models.family import Family
from accel_models.mapping import Steps
from accel_models.placement import Placement
from accel_models.registry import family
from accel_models.sparse.queues import Slice, finish, finish_exact
from accel_models.spec import Count, Frozen, HardwareSpec
from workloads.columns import Columns
from workloads.errors import ConfigError
from workloads.exact_sparsity import ExactSparsity

PORTS = ("weight_sram", "pointer_sram", "activation_sram", "dram")
KERNELS = ("resident", "streamed", "elementwise", "none")
SHORTEST_QUEUE = 4  # below, the delay hangs on single columns and `queues` does not hold
TABLED_TOGETHER = 8  # slice lengths by which tables grow: one of all lengths takes milliseconds


@family("eie")
class Eie(Family):
    """Compressed columns in PEs, non-zero inputs broadcast; the memories must be those of `PORTS`, in this order."""

    class Parameters(Frozen):
        """Of one PE where not said otherwise; widths in bits. `accumulators` in rows."""

        pes: Count
        fifo_depth: Count
        run_bits: Count
        entry_bits: Count
        weight_read_bits: Count
        pointer_bits: Count
        accumulators: Count
        pipeline_stages: Count

    components = ("mac", "weight_sram", "pointer_sram", "accumulator", "activation_sram", "dram")
    precisions = (16,)
    pe_counts = (("pes", 0.0),)
    granularities = ("weight", "channel")

    def __init__(self, spec: HardwareSpec) -> None:
        if spec.ports != PORTS:
            raise ConfigError(f"memories: {', '.join(spec.ports)}; family 'eie' needs {', '.join(PORTS)}")
        if (depth := spec.parameters.fifo_depth) < SHORTEST_QUEUE:
            raise ConfigError(f"parameters.fifo_depth: {depth}, must be >= {SHORTEST_QUEUE}")
        super().__init__(spec)

    def derived_peak(self) -> Mapping[int, float]:
        return {16: float(self.spec.parameters.pes)}

    def sees_input_zeros(self) -> bool:
        return True

    def map(self, rows: Columns, placement: Placement) -> Steps:
        steps = Steps.empty(("product",), KERNELS, len(rows), len(PORTS), len(self.components))
        steps["kernel"][:] = KERNELS.index("none")
        for chosen, fill in ((rows.is_mac, self._multiply), (rows.is_vector | rows.is_move, self._move)):
            at = np.flatnonzero(chosen)
            if len(at):
                fill(steps, rows.take(at), placement.take(at), at)
        return Steps(**steps)

    def facts(self, rows: Columns, placement: Placement) -> Mapping[str, np.ndarray]:
        """`theoretical_cycles` (perfect balance), `broadcasts` and `stored_entries` of every row."""
        found = {name: np.zeros(len(rows)) for name in ("theoretical_cycles", "broadcasts", "stored_entries")}
        at = np.flatnonzero(rows.is_mac)
        if len(at):
            matrix = self._matrix(rows.take(at))
            work = self._work(rows.take(at), matrix)
            found["theoretical_cycles"][at] = matrix.products * matrix.parts * work.entries / self.spec.parameters.pes
            found["broadcasts"][at] = matrix.products * matrix.parts * matrix.broadcasts
            found["stored_entries"][at] = work.stored
        return found

    def channel_multiple(self) -> int:
        """One row a PE."""
        return int(self.spec.parameters.pes)

    # ---- layers that multiply ---------------------------------------------------------------------------------------

    def _multiply(self, steps: dict[str, np.ndarray], rows: Columns, placement: Placement, at: np.ndarray) -> None:
        """Fill `steps` at the rows `at` for layers that multiply."""
        numbers, matrix = self.spec.parameters, self._matrix(rows)
        work = self._work(rows, matrix)
        tiles = np.where(matrix.is_streamed, matrix.parts, 1.0)
        each = matrix.products * matrix.parts / tiles
        steps["kernel"][at] = matrix.is_streamed  # the first two of KERNELS
        steps["tiles"][at, 0] = tiles
        steps["floor_cycles"][at, 0] = each * work.pairs / numbers.pes
        steps["mean_cycles"][at, 0] = each * (work.mean + numbers.pipeline_stages)
        steps["slowest_cycles"][at, 0] = each * (work.slowest + numbers.pipeline_stages)
        moved = self._moved(rows, placement, matrix, work)
        steps["port_bytes"][at, 0] = np.stack(moved, axis=1) / tiles[:, None]
        operations = matrix.products * matrix.parts * work.entries
        steps["accesses"][at] = np.stack([operations, *moved[:2], 2 * operations, *moved[2:]], axis=1)

    def _matrix(self, rows: Columns) -> Matrix:
        """Every multiplying op as matrix-vector products, cut into parts that the sums and the weight memory hold."""
        numbers = self.spec.parameters
        is_matmul, is_turned = rows.is_op("matmul"), rows.is_op("conv_transpose")
        taps = (rows.r * rows.s).astype(float)
        groups = np.where(is_matmul, 1, rows.groups)
        k = rows.k / groups * np.where(is_turned, taps, 1.0)
        columns = rows.c * np.where(is_turned, 1.0, taps)
        pixels = np.where(is_turned, rows.in_h * rows.in_w, rows.p * rows.q)
        inside = np.where(is_turned, 1.0, inside_share(rows))
        density = np.where(rows.has_weights, rows.weight_density, 1.0)
        parts = np.ceil(k / (numbers.pes * numbers.accumulators))
        stored = self._column_entries(np.ceil(k / parts), density).entries * parts * columns
        memory = self.spec.memory("weight_sram").size_bytes or np.inf
        size = stored * numbers.entry_bits / 8
        is_streamed = size > memory
        parts = np.where(is_streamed, np.clip(np.ceil(2 * size / memory), parts, np.maximum(k, parts)), parts)
        return Matrix(
            k=np.ceil(k / parts),
            columns=columns,
            products=(rows.n * pixels).astype(float),
            broadcasts=columns * rows.input_density * inside,
            inside=inside,
            density=density,
            parts=parts,
            is_streamed=is_streamed,
        )

    def _classes(self, k: np.ndarray, density: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, Slice]]:
        """(rows of a column in a PE, number of such PEs, what one holds), for PEs with a row less and a row more."""
        numbers = self.spec.parameters
        low = np.floor(k / numbers.pes)
        more = k - low * numbers.pes
        longest = int(low.max(initial=0)) // TABLED_TOGETHER * TABLED_TOGETHER + TABLED_TOGETHER
        return [
            (length, units, Slice.of(length, density, numbers.run_bits, min(longest, numbers.accumulators + 1)))
            for length, units in ((low, numbers.pes - more), (low + 1, more))
        ]

    def _column_entries(self, k: np.ndarray, density: np.ndarray) -> Work:
        """Of one column of k random weights in all PEs, as a `Work` of one broadcast."""
        numbers = self.spec.parameters
        parts = self._classes(k, density)
        entries, occupied, mean = (
            sum(units * getattr(part, name) for _, units, part in parts) for name in ("entries", "occupied", "mean")
        )
        per_word = numbers.weight_read_bits / numbers.entry_bits
        words = (entries + occupied * (per_word - 1)) / per_word
        return Work(k * density, entries, words, mean / numbers.pes, mean / numbers.pes, entries)

    def _work(self, rows: Columns, matrix: Matrix) -> Work:
        """One product (of one part) on average, from densities; rows with an exact mask are then counted."""
        numbers, n = self.spec.parameters, matrix.broadcasts
        one = self._column_entries(matrix.k, matrix.density)
        slowest = n * one.mean
        for length, units, part in self._classes(matrix.k, matrix.density):
            late = finish(n, part, units, length, numbers.fifo_depth, numbers.pes)
            slowest = np.maximum(slowest, late)
        stored = one.entries * matrix.columns * matrix.parts
        work = Work(n * one.pairs, n * one.entries, n * one.words, n * one.mean, slowest, stored)
        for i, sparsity in enumerate(rows.sparsity):
            if isinstance(sparsity, ExactSparsity) and rows.has_weights[i]:
                self._count(work, rows, i, sparsity, matrix)
        return work

    def _count(self, work: Work, rows: Columns, i: int, sparsity: ExactSparsity, matrix: Matrix) -> None:
        """Replace row i of `work` by what the mask and the density of each input channel give."""
        numbers, parts = self.spec.parameters, int(matrix.parts[i])
        is_turned = bool(rows.is_op("conv_transpose")[i])
        chance = channel_density(rows, i) * matrix.inside[i]
        chance = chance if is_turned else np.repeat(chance, sparsity.r * sparsity.s)
        blocks = group_blocks(sparsity, int(rows.groups[i]), is_turned)
        kept = np.concatenate([block.input_channel_counts for block in blocks])
        work.pairs[i] = float(chance @ kept) / parts
        if matrix.k[i] <= numbers.pes:  # a slice is one weight: every PE takes a cycle for every broadcast
            entries = occupied = work.pairs[i]
            work.mean[i] = work.slowest[i] = chance.sum()
            work.stored[i] = kept.sum()
        else:
            counts = slice_entries(blocks, numbers.pes, parts, numbers.run_bits)
            ends = [finish_exact(np.maximum(part, 1).astype(float), chance, numbers.fifo_depth) for part in counts]
            work.mean[i], work.slowest[i] = np.mean(ends, axis=0)
            work.stored[i] = counts.sum()
            entries, occupied = (float(chance @ x.sum(axis=(0, 2))) / parts for x in (counts, counts > 0))
        per_word = numbers.weight_read_bits / numbers.entry_bits
        work.entries[i], work.words[i] = entries, (entries + occupied * (per_word - 1)) / per_word

    def _moved(self, rows: Columns, placement: Placement, matrix: Matrix, work: Work) -> list[np.ndarray]:
        """Bytes of the whole layer through each port."""
        numbers, times = self.spec.parameters, matrix.products * matrix.parts
        inputs, outputs = rows.input_elements * rows.input_bits / 8, rows.output_elements * rows.output_bits / 8
        second = np.where(rows.is_op("matmul"), rows.other_elements, 0) * numbers.entry_bits / 8
        loaded = np.where(matrix.is_streamed, work.stored * numbers.entry_bits / 8, 0.0)
        gathered = times * matrix.columns * rows.input_bits / 8
        return [
            times * work.words * numbers.weight_read_bits / 8 + second,
            times * matrix.broadcasts * numbers.pes * 2 * numbers.pointer_bits / 8,
            gathered + outputs,
            loaded + second + inputs * (placement.first > 0) + outputs * (placement.output > 0),
        ]

    # ---- layers that do not -----------------------------------------------------------------------------------------

    def _move(self, steps: dict[str, np.ndarray], rows: Columns, placement: Placement, at: np.ndarray) -> None:
        """Fill `steps` at the rows `at` for elementwise work, pooling and copies."""
        inputs, other = (x * rows.input_bits / 8 for x in (rows.input_elements, rows.other_elements))
        outputs = rows.output_elements * rows.output_bits / 8
        window = np.where(rows.is_op("max_pool", "avg_pool"), rows.r * rows.s, 1)
        operations = np.where(rows.is_vector, np.maximum(rows.output_elements * window, rows.input_elements), 0)
        far = inputs * (placement.first > 0) + other * (placement.other > 0) + outputs * (placement.output > 0)
        steps["kernel"][at] = KERNELS.index("elementwise")
        steps["tiles"][at, 0] = 1
        for name in ("floor_cycles", "mean_cycles", "slowest_cycles"):
            steps[name][at, 0] = operations / self.spec.parameters.pes
        for port, moved in (("activation_sram", inputs + other + outputs), ("dram", far)):
            steps["port_bytes"][at, 0, PORTS.index(port)] = moved
            steps["accesses"][at, self.components.index(port)] = moved
        steps["accesses"][at, self.components.index("accumulator")] = 2.0 * operations


@dataclass(frozen=True)
class Matrix:
    """Rows that multiply, as matrix-vector products; float64 (rows,).

    Attributes:
        k: rows of a part that a column touches (those of one group). columns: of all groups.
        products: of the whole layer. broadcasts: expected non-zero inputs of one; inside: share that is not halo.
        density: of the weights. parts: equal parts of the rows, done one after another; is_streamed (bool): from DRAM.
    """

    k: np.ndarray
    columns: np.ndarray
    products: np.ndarray
    broadcasts: np.ndarray
    inside: np.ndarray
    density: np.ndarray
    parts: np.ndarray
    is_streamed: np.ndarray


@dataclass(frozen=True)
class Work:
    """One product of one part in all PEs together; float64 (rows,).

    Attributes:
        pairs: multiplications of two non-zeros. entries: multiplied, padding zeros included. words: read for them.
        mean, slowest: cycles of the average and of the slowest PE, without the pipeline. stored: entries of the layer.
    """

    pairs: np.ndarray
    entries: np.ndarray
    words: np.ndarray
    mean: np.ndarray
    slowest: np.ndarray
    stored: np.ndarray


def inside_share(rows: Columns) -> np.ndarray:
    """Fraction of the inputs under the kernel, over all output pixels, that are not in the halo; (rows,).

    A halo of t rows before the first one, as many as the shapes leave: row o s + i of the kernel's row i is in it for
    o < (t - i) / s. The halo after the last row is taken to be as large, up to one row.
    """
    return _inside(rows.in_h, rows.p, rows.r, rows.stride_h, rows.dilation_h) * _inside(
        rows.in_w, rows.q, rows.s, rows.stride_w, rows.dilation_w
    )


def _inside(
    size: np.ndarray, outputs: np.ndarray, taps: np.ndarray, stride: np.ndarray, dilation: np.ndarray
) -> np.ndarray:
    halo = np.maximum((outputs - 1) * stride + (taps - 1) * dilation + 1 - size, 0)
    outside = np.zeros(len(size))
    for tap in range(int(taps[halo > 0].max(initial=0))):
        for rim in (halo // 2, halo - halo // 2):
            depth = np.where(tap < taps, rim - tap * dilation, 0)
            outside += np.clip(-(-depth // stride), 0, outputs)
    return 1 - outside / (outputs * taps)


def group_blocks(sparsity: ExactSparsity, groups: int, is_turned: bool = False) -> list[ExactSparsity]:
    """The weight matrix of each group, K x (C R S); of a transposed convolution (K R S) x C."""
    k, c, r, s = sparsity.shape
    if groups == 1 and not is_turned:
        return [ExactSparsity((k, c * r * s, 1, 1), sparsity.packed)]
    mask = sparsity.mask().reshape(groups, k // groups, c, r * s)
    mask = mask.transpose(0, 1, 3, 2) if is_turned else mask
    columns = c if is_turned else c * r * s
    return [ExactSparsity.from_mask(block.reshape(-1, columns)) for block in mask]


def slice_entries(blocks: list[ExactSparsity], pes: int, parts: int, run_bits: int) -> np.ndarray:
    """Stored entries of every slice, (parts, columns of all groups, PEs)."""
    found = []
    for rows in np.array_split(np.arange(blocks[0].k), parts):
        chosen = blocks if parts == 1 else [block.select(rows) for block in blocks]
        found.append(np.concatenate([block.run_length_counts(run_bits, "input_channel", pes) for block in chosen]))
    return np.stack(found)


def channel_density(rows: Columns, i: int) -> np.ndarray:
    """Fraction of non-zeros of each input channel, (C,); the mean where the channels are not known one by one."""
    known = rows.channel_density[i] if rows.channel_density else None
    return known if known is not None and len(known) == rows.c[i] else np.full(int(rows.c[i]), rows.input_density[i])
