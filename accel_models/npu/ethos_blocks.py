"""Block search of the Ethos-U55 and U65: how the compiler cuts an output so that it fits the NPU's SHRAM.

Accumulators and inputs of a block share banks of 1 KiB, each twice (double buffering). Over all depths (steps of 16)
and heights, the widest block that fits is looked at, and of those the one is taken that fetches the fewest inputs and
weights an output element,

    cost = ( in_h in_w C passes ceil(K / d) P/h Q/w + R S C K ceil(P / h) ceil(Q / w) ) / (P Q K)

halved if the whole input fits into the two input buffers. Ties go to the smaller depth and height. Only the widest
block of a height need be looked at: a narrower one fetches more, except where strides leave the inputs an output
unchanged; there the width that evens the blocks out is taken.

The estimator chooses the blocks of a U65-512 as if it had one core.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from accel_models.npu.ethos_work import CONV, DEPTHWISE, SEARCHED, SPLIT_DEPTH, SUBKERNEL, Work, distinct, up

BLOCK_LIMIT = (32, 64, 128)  # largest block: height, width, depth
BANK_BYTES = 1024
SEEN_DEPTH = 32  # input channels of a block
EXACT_DEPTH = 128  # output channels up to which every one counts
ENDLESS = 1e6  # stands for the height and width of an input that cannot fit
HEIGHT_CLASSES = (4, 8, 16, np.inf)  # outputs of similar height are searched together
SUB_ROWS = 512  # rows searched at once: (rows, heights) stays in the cache


@dataclass(frozen=True)
class Blocks:
    """The chosen block, float64 (rows,): h, w, d of outputs, in_h, in_w, in_d of the inputs that it needs."""

    h: np.ndarray
    w: np.ndarray
    d: np.ndarray
    in_h: np.ndarray
    in_w: np.ndarray
    in_d: np.ndarray


@dataclass(frozen=True)
class Shram:
    """Banks of one core's buffer, granules of inputs and 32-bit accumulators, and the micro-block."""

    banks: int
    granules: tuple[int, int]
    micro: tuple[int, int, int]

    @property
    def free(self) -> int:
        """Banks for inputs and accumulators: two are kept for outputs, of the larger buffers two for a table."""
        return self.banks - 2 - (2 if self.banks > 16 else 0)

    def splits(self) -> list[tuple[float, float]]:
        """(accumulators, input bytes) of one of two buffers, for every way to share the banks out."""
        of_inputs, of_accumulators = self.granules
        found: list[tuple[float, float]] = []
        for accumulators in range(of_accumulators, self.free, of_accumulators):
            if inputs := (self.free - accumulators) // of_inputs * of_inputs:
                found.append((accumulators // 2 * BANK_BYTES / 4, inputs // 2 * BANK_BYTES))
        return found

    def heights_at(self, depth: int) -> int:
        """Heights of blocks of the given depth (a multiple of 16, or down to 15 less) that accumulators allow."""
        u_h, u_w, _ = self.micro
        most, shallowest = (
            max(accumulators for accumulators, _ in self.splits()),
            -(-(depth - SPLIT_DEPTH + 1) // 8) * 8,
        )
        return min(BLOCK_LIMIT[0] // u_h, max(1, int(most / (shallowest * u_w * u_h))))

    def blocks_tried(self) -> int:
        """Pairs of depth and height that the search compares for an output that is large enough."""
        return sum(self.heights_at(depth) for depth in range(SPLIT_DEPTH, BLOCK_LIMIT[2] + 1, SPLIT_DEPTH))

    def elementwise_block(self) -> float:
        """Elements of the largest block with two double-buffered inputs."""
        return float(self.free // 2 // self.granules[0] * self.granules[0] // 2 * BANK_BYTES)


def choose_block(work: Work, part_kernel: np.ndarray, shram: Shram) -> Blocks:
    """The block of every row that fetches least (module docstring); rows that cannot differ are searched once."""
    seen = _as_seen(work, shram)
    first, inverse = distinct(*(getattr(seen, name) for name in SEARCHED), part_kernel)
    shapes, part = seen.take(first), part_kernel[first]
    chosen = np.zeros((6, len(first)))
    low = 0.0
    for high in HEIGHT_CLASSES if len(first) > SUB_ROWS else HEIGHT_CLASSES[-1:]:  # few heights for low outputs
        at = np.flatnonzero((shapes.stripe > low) & (shapes.stripe <= high))
        at = at[np.lexsort((shapes.d[at], shapes.in_h[at] == ENDLESS, shapes.step_w[at], shapes.reach_w[at]))]
        for start in range(0, len(at), SUB_ROWS):
            rows = at[start : start + SUB_ROWS]
            chosen[:, rows] = _search(_Search(shapes.take(rows), part[rows], shram))
        low = high
    return Blocks(*chosen[:, inverse])


def _as_seen(work: Work, shram: Shram) -> Work:
    """The rows as the search sees them: the output's depth, if it is large, in eights; of the input what a stripe
    needs, its depth only as far as a block holds it, and its size only while the whole input may fit.
    """
    held = max(input_bytes for _, input_bytes in shram.splits())
    in_h = np.minimum(work.in_h, (work.stripe - 1) * work.step_h + work.reach_h)
    fits = (in_h * work.in_w * work.in_d < 2 * held) | work.keeps_depth
    return replace(
        work,
        d=np.where(work.d > EXACT_DEPTH, up(work.d, max(shram.micro[2], 8)), work.d),
        in_d=np.where(fits, work.in_d, np.minimum(work.in_d, SEEN_DEPTH)),
        in_h=np.where(fits, in_h, ENDLESS),
        in_w=np.where(fits, work.in_w, ENDLESS),
    )


def _search(search: _Search) -> np.ndarray:
    """(6, rows): h, w, d, in_h, in_w, in_d of the best block."""
    best = np.full(len(search.depth), np.inf, np.float32)
    chosen = np.zeros((3, len(best)), np.float32)
    for depth in range(SPLIT_DEPTH, BLOCK_LIMIT[2] + 1, SPLIT_DEPTH):
        if not (exists := search.depth > depth - SPLIT_DEPTH).any():
            break
        cost, width, d = search.widest(depth, exists)
        at = np.argmin(cost, axis=1)
        row = np.arange(len(at))
        lowest, h, w = cost[row, at], search.heights[0][at], width[row, at]
        tied = (h <= 4) & (w <= 4) & (lowest <= best * np.float32(1 + 1e-6)) & np.isfinite(lowest)
        better = (lowest < best * np.float32(1 - 1e-6)) | tied
        best = np.where(better, np.minimum(lowest, best), best)
        chosen = np.where(better, np.stack([h, w, d[:, 0]]), chosen)
    return search.with_inputs(chosen)


class _Search:
    """What does not depend on the block's depth, float32 (rows, 1) or (rows, heights)."""

    def __init__(self, work: Work, part_kernel: np.ndarray, shram: Shram) -> None:
        self.work, self.shram = work, shram
        u_h, u_w, _ = shram.micro
        column = {f.name: getattr(work, f.name).astype(np.float32)[:, None] for f in fields(Work)}
        self.width, self.depth, self.step_w = column["w"], column["d"], column["step_w"]
        in_d, height = column["in_d"], column["stripe"]
        self.span_w = np.minimum(column["reach_w"], SUBKERNEL)
        span_h = np.minimum(column["reach_h"], SUBKERNEL)
        tallest = float(up(np.minimum(work.stripe, BLOCK_LIMIT[0]), u_h).max(initial=u_h))
        self.heights = np.arange(u_h, min(tallest, BLOCK_LIMIT[0]) + 1, u_h, dtype=np.float32)[None, :]
        self.in_rows = up((self.heights - 1) * column["step_h"] + span_h, u_h)
        self.own_depth = work.keeps_depth[:, None]
        steps_of = np.where(part_kernel[:, None], 16, 32).astype(np.float32)
        self.in_block_d = np.where(self.own_depth, 1, up(np.minimum(in_d, steps_of), 8)).astype(np.float32)
        flat_row = (u_h == 2) & (height == 1) & (column["taps_h"] == 1)
        self.held_rows = np.where(flat_row, 1, self.heights).astype(np.float32)
        self.limit_w = up(np.minimum(self.width, BLOCK_LIMIT[1]), u_w)
        self.is_high = self.heights <= up(np.minimum(height, BLOCK_LIMIT[0]), u_h)
        weighs = (column["kind"] == CONV) | (column["kind"] == DEPTHWISE)
        taps = column["taps_h"] * column["taps_w"] * weighs
        row_blocks = height / self.held_rows
        elements = height * self.width * self.depth
        passes = work.passes.astype(np.float32)[:, None]
        depths = np.where(self.own_depth, 1, self.depth)
        self.weights = taps * in_d * np.ceil(row_blocks) * depths / elements  # of one column of blocks, an element
        self.fetch = self.in_rows * (in_d * passes) * row_blocks * (self.width / elements)
        self.input_size = column["in_h"] * column["in_w"] * in_d
        self.may_be_whole = bool((self.input_size < ENDLESS).any())
        self.unit_steps = bool((self.step_w == 1).all())
        self.free_width = self.span_w <= self.step_w  # the same input bytes an output, whatever the width
        self.any_free = bool(self.free_width.any())
        self.has_weights = taps > 0

    def widest(self, top: int, exists: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(cost, width) of the block of each height, (rows, heights), and the depth, (rows, 1).

        Of the heights only those of which accumulators for one micro-block's width fit at all.
        """
        _, u_w, u_d = self.shram.micro
        low = slice(0, self.shram.heights_at(top))
        d = np.minimum(np.float32(top), up(self.depth, u_d))
        read_d = np.where(self.own_depth, up(d, 8), self.in_block_d)
        in_rows = self.in_rows[:, low]
        widest = self._fitting(in_rows * (read_d * u_w), self.held_rows[:, low] * up(d, 8))
        valid = (widest >= u_w) & (self.is_high[:, low] & exists)
        w = np.maximum(widest, u_w)
        block_rows = in_rows * (read_d * 2)
        in_columns = self._in_columns(w)
        whole = self.input_size < block_rows * in_columns if self.may_be_whole else None
        if self.any_free:
            w = np.where(self.free_width, self._even(w, whole, block_rows), w)
            in_columns = self._in_columns(w)
        passes = np.where(self.own_depth, 1, np.ceil(self.depth / d))
        cost = self.fetch[:, low] * in_columns / w * passes + self.weights[:, low] * np.ceil(self.width / w)
        if whole is not None:
            cost = np.where(whole, cost * np.float32(0.5), cost)
        return np.where(valid, cost, np.float32(np.inf)), w, d

    def _fitting(self, in_row: np.ndarray, out_row: np.ndarray) -> np.ndarray:
        """The widest block of each height that some split of the banks holds, from the bytes of a micro-block's width
        of inputs and the accumulators of a column of outputs.
        """
        widest = np.zeros_like(in_row)
        for accumulators, input_bytes in self.shram.splits():
            columns = np.floor(input_bytes / in_row) * self.shram.micro[1] - self.span_w
            fits = columns + 1 if self.unit_steps else np.floor(columns / self.step_w) + 1
            widest = np.maximum(widest, np.minimum(fits, accumulators / out_row))
        return np.asarray(np.minimum(self._down(widest), self.limit_w))

    def _even(self, w: np.ndarray, whole: np.ndarray | None, block_rows: np.ndarray) -> np.ndarray:
        """The narrowest block of as many columns; where the whole input fits, wide enough that it still does."""
        even = np.where(self.has_weights, self.width / np.ceil(self.width / w), np.minimum(w, 4))
        if whole is not None:
            needed = self._down(self.input_size / block_rows)  # columns short of the whole
            enough = np.floor(np.maximum(needed - self.span_w, -1) / self.step_w) + 2
            even = np.where(whole, np.maximum(even, enough), even)
        return np.minimum(up(even, self.shram.micro[1]), w)

    def _in_columns(self, w: np.ndarray) -> np.ndarray:
        """Columns of the inputs of w columns."""
        return up((w - 1) * self.step_w + self.span_w, self.shram.micro[1])

    def _down(self, columns: np.ndarray) -> np.ndarray:
        """Whole micro-blocks."""
        u_w = self.shram.micro[1]
        return np.floor(columns) if u_w == 1 else np.asarray(np.floor(columns / u_w) * u_w)

    def with_inputs(self, chosen: np.ndarray) -> np.ndarray:
        """Blocks, (3, rows), with the inputs that they need, (6, rows)."""
        work, (u_h, u_w, _) = self.work, self.shram.micro
        h, w, d = chosen.astype(float)
        in_h = up((h - 1) * work.step_h + np.minimum(work.reach_h, SUBKERNEL), u_h)
        in_w = up((w - 1) * work.step_w + np.minimum(work.reach_w, SUBKERNEL), u_w)
        return np.stack([h, w, d, in_h, in_w, np.where(work.keeps_depth, d, self.in_block_d[:, 0])])
