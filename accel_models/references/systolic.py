"""A systolic array that really moves its values: one hop a cycle, counted until the last result is out.

It computes the product that it is given (a convolution is one: `references.lowering`), so that a wrong schedule shows
as a wrong result. For small arrays: the closed form that it keeps honest is `accel_models.npu.systolic`, whose letters
it uses (X pixels, D depth, F filters; array of H rows x W columns).

Weights held (`ws`): weights shift in from the top, inputs move right, sums move down. Inputs held (`is`) is the same
with the operands exchanged. Sums held (`os`): inputs move right, weights move down; a fold's results are copied to
drain registers and leave under the next fold. No memory but the one behind the weight FIFO takes time.

Sources: Kung, "Why systolic architectures?", Computer 15(1) 1982; second set of weights and FIFO: Jouppi, ISCA 2017.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

FIFO_TILES = 4


@dataclass(frozen=True)
class Array:
    """The array; the last field is of held sums."""

    rows: int
    columns: int
    dataflow: Literal["ws", "is", "os"] = "ws"
    hidden_loads: bool = False  # a second set of weights shifts in while the first is used
    fetch_cycles: int = 0  # that a tile takes from the weight memory into the FIFO
    waits_for_used: bool = False  # a fold ends when the multipliers that it uses are done, not the whole array


@dataclass(frozen=True)
class Run:
    """What came out, and the cycles until the last result is out.

    With hidden loads, from the first operand's entry until the first tile of the work that follows is in, too.
    """

    output: np.ndarray
    cycles: int


def multiply(array: Array, inputs: np.ndarray, weights: np.ndarray, block: int = 1) -> Run:
    """inputs (X, D) times weights (D, F), fold after fold; weights held may be N:M-compressed in blocks of M.

    >>> multiply(Array(1, 1), np.array([[2.0]]), np.array([[3.0]]))  # one cycle to load, one to multiply
    Run(output=array([[6.]]), cycles=2)
    """
    if array.dataflow == "os":
        return _sums_held(array, inputs, weights)
    if array.dataflow == "ws":
        return _operand_held(array, inputs, weights, block)
    run = _operand_held(array, weights.T, inputs.T, 1)
    return Run(run.output.T, run.cycles)


def compress(weights: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """N:M form of (D, F): kept values (D', F), their places in the block (D', F), and the block of each row (D',)."""
    parts = [weights[i : i + block] for i in range(0, len(weights), block)]
    most = max(int(np.count_nonzero(part, axis=0).max()) for part in parts)
    places = [np.argsort(part == 0, axis=0, kind="stable")[: max(most, 1)] for part in parts]  # non-zeros first
    values = [np.take_along_axis(part, place, axis=0) for part, place in zip(parts, places, strict=True)]
    return np.concatenate(values), np.concatenate(places), np.repeat(np.arange(len(parts)), [len(x) for x in places])


def _sums_held(array: Array, inputs: np.ndarray, weights: np.ndarray) -> Run:
    output, cycles = np.zeros((len(inputs), weights.shape[1])), 0
    for i in range(0, len(inputs), array.rows):
        for j in range(0, weights.shape[1], array.columns):
            x, w = inputs[i : i + array.rows], weights[:, j : j + array.columns]
            height, width = (len(x), w.shape[1]) if array.waits_for_used else (array.rows, array.columns)
            sums, taken = _fold_of_sums(_padded(x, height, x.shape[1]), _padded(w, len(w), width))
            output[i : i + array.rows, j : j + array.columns] = sums[: len(x), : w.shape[1]]
            cycles += taken
    return Run(output, cycles)


def _fold_of_sums(x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, int]:
    """One fold of (H, D) times (D, W), until each multiplier has met all D pairs, and the cycles it took."""
    (height, depth), width = x.shape, w.shape[1]
    right, down, sums = (np.zeros((height, width)) for _ in range(3))
    is_valid, met, cycle = np.zeros((height, width), bool), np.zeros((height, width), int), 0
    while met.min() < depth:
        step = cycle - np.arange(max(height, width))  # row i and column i enter i cycles late
        enters, at = (step >= 0) & (step < depth), np.clip(step, 0, depth - 1)
        right[:, 1:], is_valid[:, 1:], down[1:] = right[:, :-1].copy(), is_valid[:, :-1].copy(), down[:-1].copy()
        right[:, 0], is_valid[:, 0] = x[np.arange(height), at[:height]], enters[:height]
        down[0] = w[at[:width], np.arange(width)]
        sums += np.where(is_valid, right * down, 0)
        met += is_valid
        cycle += 1
    return sums, cycle


def _operand_held(array: Array, streamed: np.ndarray, held: np.ndarray, block: int) -> Run:
    """streamed (T, D) times held (D, columns), folds along the held depth first."""
    values, places, blocks = compress(held, block)
    seen = np.pad(streamed, ((0, 0), (0, -len(held) % block))).reshape(len(streamed), -1, block)[:, blocks]
    corners = [(i, j) for j in range(0, held.shape[1], array.columns) for i in range(0, len(values), array.rows)]
    machine = _Held(array, block)
    for i, j in corners:
        rows, columns = slice(i, i + array.rows), slice(j, j + array.columns)
        stream = np.pad(seen[:, rows], ((0, 0), (0, array.rows - len(values[rows])), (0, 0)))
        machine.add(stream, *(_padded(part[rows, columns], array.rows, array.columns) for part in (values, places)))
    machine.add(stream[:0], *machine.tiles[0])
    cycles = machine.run()
    output = np.zeros((len(streamed), held.shape[1]))
    for (_, j), sums in zip(corners, machine.outputs, strict=False):
        output[:, j : j + array.columns] += sums[:, : held.shape[1] - j]
    return Run(output, cycles)


class _Held:
    """Registers of an array with a held operand, and what feeds it, fold by fold."""

    def __init__(self, array: Array, blocks: int) -> None:
        self.array, self.shape = array, (array.rows, array.columns)
        self.streams: list[np.ndarray] = []  # (T, H, blocks) of each fold, all values that a row sees at once
        self.tiles: list[tuple[np.ndarray, ...]] = []  # of each fold: held values, and which of the block they meet
        self.outputs: list[np.ndarray] = []
        self.missing: list[int] = []  # results of each fold that are not out yet
        self.shifts: list[int] = []  # cycle in which each tile begins to shift in
        self.starts: list[int] = []  # cycle in which each fold's first operand enters
        self.cycle, self.fetched, self.fetching, self.end = 0, 1, 0, 0
        self.held, self.place = np.zeros((2, *self.shape)), np.zeros((2, *self.shape), int)
        self.x, self.fold, self.sums = np.zeros((*self.shape, blocks)), np.full(self.shape, -1), np.zeros(self.shape)

    def add(self, stream: np.ndarray, *tile: np.ndarray) -> None:
        self.streams.append(stream)
        self.tiles.append(tile)
        self.outputs.append(np.zeros((len(stream), self.array.columns)))
        self.missing.append(len(stream) * self.array.columns)

    def run(self) -> int:
        """Play all folds, the last one standing for what follows; cycles as `Run` counts them."""
        while any(self.missing) or (self.array.hidden_loads and len(self.starts) < len(self.tiles)):
            self._fetch()
            self._schedule()
            self._shift()
            self._multiply()
            self.cycle += 1
        return max(self.end, self.starts[-1]) - self.starts[0] if self.array.hidden_loads else self.end

    def _fetch(self) -> None:
        """The first tile is there; then one every `fetch_cycles`, as long as the FIFO has room."""
        if self.array.fetch_cycles == 0:
            self.fetched = len(self.tiles)
        elif self.cycle and self.fetched - len(self.shifts) < FIFO_TILES:
            self.fetching += 1
            if self.fetching == self.array.fetch_cycles:
                self.fetched, self.fetching = self.fetched + 1, 0

    def _schedule(self) -> None:
        """Start the next fold, and the next tile's shift, in the first cycle in which nothing stands in the way."""
        fold, tile = len(self.starts), len(self.shifts)
        is_in = fold < tile and self.cycle >= self.shifts[fold] + self.array.rows
        if is_in and (fold == 0 or self.cycle >= self.starts[-1] + len(self.streams[fold - 1])):
            self.starts.append(self.cycle)
        before_is_over = len(self.starts) >= tile if self.array.hidden_loads else not any(self.missing[:tile])
        if tile < min(self.fetched, len(self.tiles)) and before_is_over:
            self.shifts.append(self.cycle)

    def _shift(self) -> None:
        """Move held values down; column c begins c cycles late, row r moves once the first value has reached it."""
        row, column = np.indices(self.shape)
        for tile in [i for i, start in enumerate(self.shifts) if self.cycle < start + sum(self.shape)]:
            step = self.cycle - self.shifts[tile] - column
            moves = (step >= row) & (step < self.array.rows)
            enters = np.clip(self.array.rows - 1 - step[0], 0, self.array.rows - 1), column[0]
            for register, new in zip((self.held[tile % 2], self.place[tile % 2]), self.tiles[tile], strict=True):
                register[:] = np.where(moves, np.concatenate([new[enters][None], register[:-1]]), register)

    def _multiply(self) -> None:
        """Move operands right and sums down, and multiply; row r's operands enter r cycles late."""
        rows, columns = (np.arange(size) for size in self.shape)
        self.x[:, 1:], self.fold[:, 1:] = self.x[:, :-1].copy(), self.fold[:, :-1].copy()
        self.fold[:, 0] = -1
        for fold in range(max(len(self.starts) - 2, 0), len(self.starts)):
            step = self.cycle - self.starts[fold] - rows
            enters = (step >= 0) & (step < len(self.streams[fold]))
            self.x[enters, 0], self.fold[enters, 0] = self.streams[fold][step[enters], rows[enters]], fold
        at = (self.fold % 2, rows[:, None], columns)
        met = np.take_along_axis(self.x, self.place[at][..., None], axis=2)[..., 0]
        above = np.concatenate([np.zeros((1, len(columns))), self.sums[:-1]])
        self.sums = above + np.where(self.fold >= 0, self.held[at] * met, 0)
        for column in np.flatnonzero(self.fold[-1] >= 0):
            fold = self.fold[-1, column]
            step = self.cycle - self.starts[fold] - (self.array.rows - 1) - column
            self.outputs[fold][step, column] = self.sums[-1, column]
            self.missing[fold] -= 1
            self.end = self.cycle + 1


def _padded(values: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.pad(values, ((0, height - values.shape[0]), (0, width - values.shape[1])))
