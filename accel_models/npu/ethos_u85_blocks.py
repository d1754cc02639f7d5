"""Block search of the Ethos-U85: which micro-block its array takes, and how an output is cut to fit its two buffers.

The array can be arranged in several micro-blocks of the same number of MACs; the one that pads the output least is
taken. Inputs and 32-bit accumulators have a buffer each. Inputs are read in units of pixels that depend on how many
channels a block reads.

*Convolutions* read a fixed number of channels a block and keep two blocks in each buffer. Over depths and heights, the
widest block that fits is looked at, and of those the one is taken that fetches the fewest inputs and weights an output
element, halved if the whole input fits (as on the U55). Ties go to the first, small blocks to the last.

*Depthwise convolutions and pooling* read the channels that they write. For each depth the block takes the output's
aspect ratio and as many accumulators as there are, is evened out over the width, and shrinks until its inputs fit; the
depth is taken that covers most of the image and of the channels. Then rows are given back until there is room for the
next row of inputs.

*Vector products* take as many channels as accumulators allow.

Source: formulas of the estimator's block search (ethos-u-vela 5.2.0, Apache-2.0), written anew. Not every depth is
looked at, and shrinking stops after a few rounds, so that now and then another block is found.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from accel_models.npu.ethos_blocks import ENDLESS, EXACT_DEPTH, Blocks
from accel_models.npu.ethos_work import CONV, SEARCHED, SUBKERNEL, VECTOR, Work, distinct, up

BLOCK_LIMIT = (128, 128, 1024)  # largest block: height, width, depth
DEPTH_GRANULE = 16  # of accumulators
SERVES_MATRIX, SERVES_DEPTHWISE = 1, 2  # what a micro-block may run: dense layers; depthwise convolutions and pooling
SUB_ROWS = 256  # rows searched at once: (rows, candidates) stays in the cache
MULTIPLES = (*range(1, 9), 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64)  # of the depth step that are looked at
SHRINKING_ROUNDS = 8
DENSE_COLUMNS = (
    "stripe",
    "w",
    "d",
    "in_w",
    "in_d",
    "taps_h",
    "taps_w",
    "reach_h",
    "reach_w",
    "step_h",
    "step_w",
    "kind",
)


@dataclass(frozen=True)
class MicroBlock:
    """One arrangement of the array: pixels and channels of an output; `serves` what it may run (bits).

    `units`: (height, width) in which inputs are read of blocks of at most 16, at most 32 and more channels.
    """

    h: int
    w: int
    d: int
    serves: int
    units: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class Buffers:
    """Sizes of the array's two buffers."""

    input_bytes: int
    accumulators: int


@dataclass(frozen=True)
class Found:
    """The chosen blocks, and the micro-block that they are made of, float64 (rows,)."""

    block: Blocks
    u_h: np.ndarray
    u_w: np.ndarray
    u_d: np.ndarray


def find_blocks(work: Work, in_depth: np.ndarray, micros: tuple[MicroBlock, ...], buffers: Buffers) -> Found:
    """The block of every row; rows that cannot differ are searched once.

    Args:
        in_depth: channels that a block of a dense layer reads, float64 (rows,).
    """
    seen = _as_seen(work, in_depth, min(micro.d for micro in micros), buffers)
    first, inverse = distinct(*(getattr(seen, name) for name in SEARCHED), in_depth)
    shapes, depth = seen.take(first), in_depth[first]
    chosen, micro = np.ones((6, len(first))), np.ones((3, len(first)))
    arrangement = _arrangement(shapes, micros)
    for number, each in enumerate(micros):
        for search, of_kind in ((_dense, ~shapes.keeps_depth), (_depthwise, shapes.keeps_depth)):
            at = np.flatnonzero((arrangement == number) & of_kind)
            is_endless = shapes.in_h[at] == ENDLESS
            at = at[np.lexsort((shapes.d[at], shapes.stripe[at], is_endless, shapes.reach_w[at]))]  # similar together
            for start in range(0, len(at), SUB_ROWS):
                part = at[start : start + SUB_ROWS]
                chosen[:, part] = search(shapes.take(part), depth[part], each, buffers)
            micro[:, at] = np.array([[each.h], [each.w], [each.d]])
    return Found(Blocks(*chosen[:, inverse]), *micro[:, inverse])


def _as_seen(work: Work, in_depth: np.ndarray, granule: int, buffers: Buffers) -> Work:
    """The rows as the search sees them: the output's depth, if it is large, in steps of the thinnest micro-block; of
    the input what a stripe needs, its depth only as far as a block holds it, its size only while all of it may fit.
    """
    held = up(np.minimum(work.in_d, in_depth), DEPTH_GRANULE)
    in_h = np.minimum(work.in_h, (work.stripe - 1) * work.step_h + work.reach_h)
    volume = in_h * work.in_w * work.in_d
    fits = (volume < buffers.input_bytes * np.maximum(in_depth / held, 1.0)) | work.keeps_depth
    return replace(
        work,
        d=np.where(work.d > EXACT_DEPTH, up(work.d, granule), work.d),
        in_d=np.where(fits, work.in_d, np.minimum(work.in_d, in_depth)),
        in_h=np.where(fits, in_h, ENDLESS),
        in_w=np.where(fits, work.in_w, ENDLESS),
    )


def _arrangement(work: Work, micros: tuple[MicroBlock, ...]) -> np.ndarray:
    """Index of the micro-block that pads least, of those that serve; ties go to the first."""
    serves = np.where(work.keeps_depth, SERVES_DEPTHWISE, SERVES_MATRIX)
    padded = [
        np.where(serves & each.serves > 0, up(work.stripe, each.h) * up(work.w, each.w) * up(work.d, each.d), np.inf)
        for each in micros
    ]
    return np.argmin(padded, axis=0)


def _units(micro: MicroBlock, depth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(height, width, channels) of the units in which inputs are read of blocks of `depth` channels."""
    index = (depth > 16).astype(int) + (depth > 32)
    table = np.array(micro.units, np.float32)
    pixels = table[0].prod()
    return table[index, 0], table[index, 1], np.float32(16) * pixels / table[index].prod(axis=-1)


def _input_side(size: np.ndarray, step: np.ndarray, reach: np.ndarray, unit: np.ndarray) -> np.ndarray:
    return up((size - 1) * step + np.minimum(reach, SUBKERNEL), unit)


# Dense layers ---------------------------------------------------------------------------------------------------


def _dense(work: Work, in_depth: np.ndarray, micro: MicroBlock, buffers: Buffers) -> np.ndarray:
    """(6, rows): h, w, d, in_h, in_w, in_d; on (rows, candidates) of depth and height."""
    f, half = np.float32, buffers.accumulators // 2
    step = max(DEPTH_GRANULE, micro.d)
    tops, heights = candidates(micro, half)
    useful = (heights <= up(work.stripe, micro.h).max()) & (tops - step < up(work.d, micro.d).max())
    tops, heights = tops[useful][None, :], heights[useful][None, :]
    column = {name: getattr(work, name).astype(f)[:, None] for name in DENSE_COLUMNS}
    unit_h, unit_w, unit_d = (x[:, None] for x in _units(micro, in_depth))
    p, q, k, c = column["stripe"], column["w"], column["d"], column["in_d"]
    d = np.minimum(tops, up(k, micro.d))
    in_h = _input_side(heights, column["step_h"], column["reach_h"], unit_h)
    read_d = up(np.minimum(in_depth.astype(f)[:, None], c), unit_d)
    span, step_w = np.minimum(column["reach_w"], SUBKERNEL), column["step_w"]
    columns_in = np.floor(buffers.input_bytes // 2 / (in_h * read_d * unit_w)) * unit_w
    fits = np.minimum(np.floor((columns_in - span) / step_w) + 1, half / (heights * up(d, DEPTH_GRANULE)))
    widest = np.minimum(np.floor(fits / micro.w) * micro.w, up(np.minimum(q, BLOCK_LIMIT[1]), micro.w))
    valid = (widest >= micro.w) & (heights <= up(p, micro.h)) & (tops - step < up(k, micro.d))
    w = np.maximum(widest, micro.w)
    block_in = in_h * in_depth.astype(f)[:, None] * 2
    size = work.in_h.astype(f)[:, None] * column["in_w"] * c
    may_be_whole = bool((size < ENDLESS).any())
    whole = size < block_in * up((w - 1) * step_w + span, unit_w) if may_be_whole else np.zeros(1, bool)
    is_whole = bool(whole.any())
    free = span <= step_w  # the same inputs an output, whatever the width: the narrowest block of as many columns
    if free.any():
        even = q / np.ceil(q / w)
        if is_whole:
            needed = np.floor(size / block_in / unit_w) * unit_w  # columns short of the whole input
            even = np.where(whole, np.maximum(even, np.floor(np.maximum(needed - span, -1) / step_w) + 2), even)
        w = np.where(free, np.minimum(up(even, micro.w), w), w)
    in_w = up((w - 1) * step_w + span, unit_w)
    taps = column["taps_h"] * column["taps_w"] * (column["kind"] == CONV)
    fetch = in_h * in_w / (heights * w) * np.ceil(k / d) * (work.passes.astype(f)[:, None] / k)
    cost = fetch + (taps / (p * q)) * np.ceil(p / heights) * np.ceil(q / w)
    if (work.kind == VECTOR).any():
        cost = np.where(column["kind"] == VECTOR, 1 / (heights * w), cost)
    if is_whole:
        cost = np.where(whole, cost * f(0.5), cost)
    cost = np.where(valid, cost, f(np.inf))
    at = _first_or_last(cost, (heights <= 4) & (w <= 4))
    row = np.arange(len(at))
    return np.stack([heights[0, at], w[row, at], d[row, at], in_h[row, at], in_w[row, at], in_depth.astype(f)])


@cache
def candidates(micro: MicroBlock, accumulators: int) -> tuple[np.ndarray, np.ndarray]:
    """Depths and heights of blocks, float32 (candidates,), in the order in which the compiler looks at them."""
    step = max(DEPTH_GRANULE, micro.d)
    pairs = [
        (m * step, i * micro.h)
        for m in MULTIPLES
        for i in range(1, BLOCK_LIMIT[0] // micro.h + 1)
        if m * step <= BLOCK_LIMIT[2] and m * step * i * micro.h * micro.w <= accumulators
    ]
    found = np.array(pairs, np.float32)
    return found[:, 0], found[:, 1]


def _first_or_last(cost: np.ndarray, is_small: np.ndarray) -> np.ndarray:
    """Index of the cheapest candidate of every row: the first, but of small blocks the last."""
    first = np.argmin(cost, axis=1)
    row = np.arange(len(first))
    equal = (cost <= cost[row, first][:, None] * np.float32(1 + 1e-6)) & is_small
    last = cost.shape[1] - 1 - np.argmax(equal[:, ::-1], axis=1)
    return np.where(equal.any(axis=1), last, first)


# Depthwise and pooling ------------------------------------------------------------------------------------------


def _depthwise(work: Work, in_depth: np.ndarray, micro: MicroBlock, buffers: Buffers) -> np.ndarray:
    """(6, rows): h, w, d, in_h, in_w, in_d; on (rows, depths)."""
    h, w, d = _cover(work, micro, buffers)
    h, w, d = _leave_room(work, micro, buffers, h, w, d)
    unit_h, unit_w, unit_d = _units(micro, d)
    in_h = _input_side(h, work.step_h, work.reach_h, unit_h)
    return np.stack([h, w, d, in_h, _input_side(w, work.step_w, work.reach_w, unit_w), up(d, unit_d)])


def _cover(work: Work, micro: MicroBlock, buffers: Buffers) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The block that covers most of the image and of the channels."""
    p, q = up(work.stripe, micro.h)[:, None], up(work.w, micro.w)[:, None]
    k = up(work.d, DEPTH_GRANULE)[:, None]
    granule = micro.h * micro.w * DEPTH_GRANULE
    macs = 8 * micro.h * micro.w * micro.d
    deepest = min(max(macs, buffers.accumulators // granule), BLOCK_LIMIT[2])
    depths = np.array([m * DEPTH_GRANULE for m in MULTIPLES if m * DEPTH_GRANULE <= min(deepest, k.max())], float)[
        None, :
    ]
    limit_h, limit_w = np.minimum(p, BLOCK_LIMIT[0]), np.minimum(q, BLOCK_LIMIT[1])
    units = _units(micro, depths)
    volume = up(work.in_h[:, None], units[0]) * up(work.in_w[:, None], units[1]) * up(work.in_d[:, None], units[2])
    space = np.full(np.broadcast_shapes(p.shape, depths.shape), float(buffers.accumulators))
    is_point = ((work.reach_h == 1) & (work.reach_w == 1))[:, None]
    for _ in range(SHRINKING_ROUNDS):
        w, h = _by_aspect(p / q, np.floor(space / depths), micro)
        w, h = np.minimum(w, limit_w), np.minimum(h, limit_h)
        area = w * h
        w = _even_tile(q, micro.w, w)
        h = np.maximum(np.floor(area / w / micro.h) * micro.h, micro.h)
        needed = w * h * depths
        in_h = _input_side(h, work.step_h[:, None], work.reach_h[:, None], units[0])
        in_w = _input_side(w, work.step_w[:, None], work.reach_w[:, None], units[1])
        inputs = np.minimum(in_h * in_w * up(depths, units[2]), volume)
        by_inputs, by_outputs = buffers.input_bytes / inputs, buffers.accumulators / needed
        fits = (by_inputs >= 1) & (by_outputs >= 1)
        if (fits | (space <= granule)).all():
            break
        space = np.where((by_inputs < 1) & (by_outputs > 1), np.minimum(space, needed), space)
        smaller = np.floor(np.floor(space / granule) * np.minimum(by_inputs, by_outputs)) * granule
        smaller = np.where(smaller == space, space - granule, smaller)
        space = np.where(fits, space, np.maximum(smaller, granule))
    unused = (units[2] - np.where(depths % units[2] == 0, units[2], depths % units[2])) / units[2]
    covered = np.where(is_point, q * k / (w * depths), p * q / (w * h))
    metric = (1 + np.abs(1 - covered)) * (1 + np.abs(1 - k / depths) / 10) * (1 + unused / 10)
    covers = (w >= q) & (h >= p) & (depths >= k) & fits
    metric = np.where(covers, -1.0, np.where(fits & (depths <= k), metric, np.inf))
    at, row = np.argmin(metric, axis=1), np.arange(len(metric))
    whole = covers[row, at]
    return (
        np.where(whole, p[:, 0], h[row, at]), np.where(whole, q[:, 0], w[row, at]),
        np.where(whole, k[:, 0], depths[0, at]),
    )  # fmt: skip


def _by_aspect(aspect: np.ndarray, area: np.ndarray, micro: MicroBlock) -> tuple[np.ndarray, np.ndarray]:
    """(width, height) of an area with the given height over width, in whole micro-blocks."""
    w = np.sqrt(area / aspect)
    h = w * aspect
    flat, narrow = h < 1, (h >= 1) & (w < 1)
    w, h = np.where(flat, w * h, np.where(narrow, 1, w)), np.where(flat, 1, np.where(narrow, h * w, h))
    w = np.floor(np.maximum(np.floor(w), micro.w) / micro.w) * micro.w
    return w, np.floor(np.maximum(np.floor(h), micro.h) / micro.h) * micro.h


def _even_tile(whole: np.ndarray, granule: int, tile: np.ndarray) -> np.ndarray:
    """A tile of at most the given size that leaves the largest last piece."""
    parts = np.floor(whole / tile)
    even = np.maximum(up(np.floor(whole / (parts + 1)), granule), granule)
    lowest = np.maximum(np.maximum(even - 2 * granule, np.floor((even + 1) / 2)), granule)
    lowest = np.where(whole % tile == 0, tile, lowest)
    best, rest = tile, np.where(whole % tile == 0, np.inf, whole % tile)
    for back in range(1, 9):
        smaller = tile - back * granule
        if (smaller < lowest).all():
            break
        left = np.where(smaller >= lowest, whole % np.maximum(smaller, granule), -1.0)
        left = np.where(left == 0, smaller, left)
        best, rest = np.where(left > rest, smaller, best), np.maximum(left, rest)
    return np.asarray(best)


def _leave_room(
    work: Work, micro: MicroBlock, buffers: Buffers, h: np.ndarray, w: np.ndarray, d: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Smaller blocks until the input buffer has room for another row, where there is more than one block."""
    p, q, k = up(work.stripe, micro.h), up(work.w, micro.w), up(work.d, DEPTH_GRANULE)
    h, w, d = h.copy(), w.copy(), d.copy()
    forced = np.zeros(len(h), int)
    for _ in range(64):
        unit_h, unit_w, unit_d = _units(micro, d)
        in_w = _input_side(w, work.step_w, work.reach_w, unit_w)
        held = up(d, unit_d) * in_w
        both = _input_side(h, work.step_h, work.reach_h, unit_h) * held
        both += _input_side(np.full_like(h, micro.h), work.step_h, work.reach_h, unit_h) * held
        tight = ((w < q) | (h < p) | (d < k)) & (both > buffers.input_bytes)
        if not tight.any():
            break
        lower = tight & ((h != p) | (forced & 2 > 0)) & (h > micro.h)
        shallower = tight & ~lower & ((d > w) | (forced & 1 > 0)) & (d > unit_d)
        narrower = tight & ~lower & ~shallower & ((w != q) | (forced & 4 > 0)) & (w > micro.w)
        other = tight & ~lower & ~shallower & ~narrower
        last = other & (forced == 7)
        forced = np.where(other, np.minimum(forced * 2 + 1, 7), forced)
        h -= np.where(lower, micro.h, 0)
        d -= np.where(shallower, unit_d, 0)
        w -= np.where(narrower, micro.w, 0)
        if (last & (d <= DEPTH_GRANULE)).any() and not (tight & ~(last & (d <= DEPTH_GRANULE))).any():
            break
        d = np.where(last, np.maximum(np.floor(d / 2), DEPTH_GRANULE), d)
    return h, w, d
