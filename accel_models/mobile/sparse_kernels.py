"""Sparse kernels of a mobile CPU: unstructured non-zeros or k x 1 blocks times vectors of pixels, and kernel patterns.

What a kernel holds in registers and into how many blocks its filters are cut is searched: more pixels reuse a weight
more often but no longer find their inputs in L1; more blocks keep a block's weights in L1 but walk over the input once
each; rows that share indices share loads too, but multiply the zeros of blocks that are not full. The search is exact
and bounded (branch and bound): with any blocks a register tile takes at least its core cycles over the threads, so
tiles for which that exceeds what another tile takes are left out, and the others are priced with all blocks.

The input lies channel by channel: the next non-zero's pixels are a plane away, in another page, which costs
`jump_cycles` besides. `accel_models.mobile.cpu` is the chapter.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from accel_models.mobile.passes import Levels, Passes, Stream, bytes_by_port, either
from accel_models.mobile.products import DRAIN_CYCLES
from accel_models.mobile.runtime import Pattern, Spmm
from workloads.columns import Columns
from workloads.random_masks import RandomMasks

HALO = 1.3  # a pattern kernel's packed input over the input: each block of pixels is stored with its border
SEARCH_PAIRS = 2048  # tiles of rows searched at once: their working arrays stay in a core's caches
ROUNDING = 1e-9  # relative, of a bound and of what it bounds


def has_patterns(rows: Columns, row: int, limit: int) -> bool:
    """Whether a pattern kernel exists for a row: an exact mask of spatial kernels with few distinct patterns."""
    mask = rows.sparsity[row]
    return mask is not None and mask.is_exact and mask.r * mask.s > 1 and mask.distinct_patterns <= limit


def _imbalance(s: Passes, sizes: tuple[int, ...]) -> np.ndarray:
    """Non-zeros of the busiest thread over the mean, (sizes, rows): filters, or groups of filters that share indices,
    are dealt out in turn. 1 with one thread, or where idle threads take work from others.

    Random zeros even out in blocks, of which few are empty: there only groups that threads cannot share evenly count.
    """
    threads = s.cpu.threads
    found = np.ones((len(sizes), len(s.rows)))
    if threads == 1 or s.cpu.runtime.schedule == "stealing":
        return found
    for i, size in enumerate(sizes):
        groups = np.ceil(s.k / size)
        found[i] = np.ceil(groups / threads) * threads / groups
    chance = RandomMasks(s.k, s.c, s.rows.r, s.rows.s, s.rows.weight_density)
    found[sizes.index(1)] = np.maximum(chance.balance(threads, "filter", "interleaved").imbalance, 1.0)
    for j, mask in enumerate(s.rows.sparsity):
        if mask is not None and mask.is_exact:
            found[:, j] = max(mask.balance(threads, "filter", "interleaved").imbalance, 1.0)
    return found


def _stored_blocks(s: Passes, sizes: tuple[int, ...]) -> np.ndarray:
    """Blocks of each size x 1 output channels that hold a non-zero, (sizes, rows)."""
    chance = RandomMasks(s.k, s.c, s.rows.r, s.rows.s, s.rows.weight_density)
    nonzeros = s.rows.weight_density * s.weights
    found = np.stack([nonzeros if size == 1 else chance.block_nonzeros(size, 1) for size in sizes])
    for i, mask in enumerate(s.rows.sparsity):
        if mask is not None and mask.is_exact:
            found[:, i] = [mask.block_nonzeros(size, 1) for size in sizes]
    return found


class Tiles(NamedTuple):
    """What a sparse kernel costs with each of its register tiles, float64 (tiles, rows).

    Attributes:
        pieces: tiles that cover the pixels. cycles: of one core, all filters. imbalance: of the thread with most of
            them over the mean.
        stored: bytes of weights and indices. window: bytes that instructions load of the input.
        near: bytes that lie between two loads of the same pixels of a tile: it says where they are found again.
        first, levels: bytes that fetch the input once for a block of filters, and where they are found; (rows,) or
            (tiles, rows).
    """

    pieces: np.ndarray
    cycles: np.ndarray
    imbalance: np.ndarray
    stored: np.ndarray
    window: np.ndarray
    near: np.ndarray
    first: np.ndarray
    levels: Levels

    def take(self, tile: np.ndarray, row: np.ndarray) -> Tiles:
        """One tile of a row each: arrays (pairs,) of tiles and of rows to arrays (pairs,)."""
        plain = ("pieces", "cycles", "imbalance", "stored", "window", "near", "first")
        arrays = {name: getattr(self, name) for name in plain}
        picked = {name: x[tile, row] if x.ndim == 2 else x[row] for name, x in arrays.items()}
        return Tiles(**picked, levels=tuple(level[row] for level in self.levels))

    def streams(self, s: Passes, blocks: np.ndarray) -> tuple[Stream, ...]:
        """The bytes that it moves, all filters in so many blocks; weights come from DRAM, then from near."""
        again = Stream(self.stored * np.maximum(self.pieces - 1, 0), s.levels(self.stored / blocks))
        first = Stream(self.first * blocks, self.levels)
        near = (*s.levels(self.near)[:-1], 0.0)
        return Stream(self.window, near), Stream(self.stored, s.cold), first, again


class Choice(NamedTuple):
    """The cheapest combination for every row, (rows,): iterations, core cycles, streams, slowest thread over mean."""

    items: np.ndarray
    cycles: np.ndarray
    streams: tuple[Stream, ...]
    imbalance: np.ndarray


def _cheapest(s: Passes, tiles: Tiles, filter_blocks: tuple[int, ...], out: Stream, by_tile: bool) -> Choice:
    """The tile and the blocks of least time, of all combinations, for every row; ties go to the first of the lists.

    The tile of fewest core cycles is priced with all blocks. Then all others are, but those whose core cycles alone,
    perfectly shared out, already take longer: no blocks can help them.

    Args:
        out: what is written besides. by_tile: threads share out tiles of pixels and blocks of filters, else filters.
    """
    every = np.arange(len(s.k))
    written = np.stack(bytes_by_port([out], len(s.cpu.spec.ports)))
    cost, blocks = np.full(tiles.cycles.shape, np.inf), np.ones(tiles.cycles.shape)

    def price(tile: np.ndarray, row: np.ndarray) -> None:
        cut = np.minimum(np.array(filter_blocks, float)[:, None], s.k[row])
        costs = _costs(s, tiles.take(tile, row), cut, written[:, row], by_tile)
        best, pair = costs.argmin(axis=0), np.arange(len(row))
        cost[tile, row], blocks[tile, row] = costs[best, pair], cut[best, pair]

    least = tiles.cycles * (s.cpu.team.slowest / s.cpu.threads)
    first = least.argmin(axis=0)
    price(first, every)
    open_tiles = least <= cost[first, every] * (1 + ROUNDING)
    open_tiles[first, every] = False
    tile, row = np.nonzero(open_tiles)
    for start in range(0, len(row), SEARCH_PAIRS):
        pairs = slice(start, start + SEARCH_PAIRS)
        price(tile[pairs], row[pairs])
    chosen = cost.argmin(axis=0)
    best, cut = tiles.take(chosen, every), blocks[chosen, every]
    items, slowest = _shares(s, best, cut, by_tile)
    return Choice(items, best.cycles, best.streams(s, cut), slowest)


def _shares(s: Passes, tiles: Tiles, blocks: np.ndarray, by_tile: bool) -> tuple[np.ndarray, np.ndarray]:
    """Parallel iterations, and the slowest one over the mean: tiles of pixels are alike, blocks of filters are not."""
    if by_tile:
        return tiles.pieces * blocks, np.maximum(tiles.imbalance * (blocks > 1), 1.0)
    return np.full(blocks.shape, float(s.cpu.threads)), tiles.imbalance + 0 * blocks


def _costs(s: Passes, tiles: Tiles, blocks: np.ndarray, out: np.ndarray, by_tile: bool) -> np.ndarray:
    """Cycles of tiles with each number of blocks, (blocks, pairs), as `timeline` will price them.

    (Exactly where ports overlap or are a core's own; what else a machine file may say is approximated.)
    """
    threads = s.cpu.threads
    items, imbalance = _shares(s, tiles, blocks, by_tile)
    own, alone = tiles.cycles * s.cpu.team.slowest * imbalance, np.zeros(1)
    shared, streams = np.zeros(1), [stream.by_port() for stream in tiles.streams(s, blocks)]
    for port, memory in enumerate(s.cpu.spec.memories):
        moved = sum((stream[port] for stream in streams), start=out[port])
        cycles = moved / memory.bandwidth_bytes_per_cycle
        if memory.overlap == "serial":
            own = own + cycles
        elif memory.shared:
            shared = np.maximum(shared, cycles)
        else:
            alone = np.maximum(alone, cycles)
    own = np.maximum(own, alone)
    if threads == 1:
        return np.asarray(np.maximum(own, shared))
    before = np.ceil(items / threads) - 1  # full waves before the last
    own, shared = own / items, shared / items
    full = np.maximum(own, shared * np.minimum(items, threads))
    return np.asarray(before * full + np.maximum(own, shared * (items - before * threads)))


def spmm(s: Passes, name: str, kernel: Spmm) -> None:
    """Non-zeros (or blocks of rows x 1) times vectors of pixels; a spatial or strided layer is lowered first."""
    depth, nonzeros, out = s.c * s.taps, s.rows.weight_density * s.weights, s.write_output()
    gathered = (s.taps > 1) | (s.rows.stride_h > 1) | (s.rows.stride_w > 1)
    panel, source = s.buffer(depth * s.pixels), s.read_input()
    s.charge("pack", np.ceil(depth / 4), s.vector_cycles(depth * s.pixels), (source, panel), when=gathered)
    tiles = _spmm_tiles(s, kernel, depth, either(gathered, panel, source))
    choice = _cheapest(s, tiles, kernel.filter_blocks, out, by_tile=True)
    s.charge(
        "compute", choice.items, choice.cycles, (*choice.streams, out),
        macs=nonzeros * s.pixels, imbalance=choice.imbalance, launch=True,
    )  # fmt: skip
    s.activate()


def _spmm_tiles(s: Passes, kernel: Spmm, depth: np.ndarray, held: Stream) -> Tiles:
    """All register tiles that fit: `size` vectors of pixels x `rows` output channels, (tiles, rows of the chunk)."""
    which, vectors_held = np.array(kernel.tiles).T
    size = vectors_held.astype(float)[:, None]
    rows, core = np.array(kernel.rows, float)[which][:, None], s.core
    blocks, vectors = _stored_blocks(s, kernel.rows)[which], np.ceil(s.pixels / s.lanes)

    def step(vectors: np.ndarray) -> np.ndarray:
        """Cycles of one block: `rows` FMAs a vector, its load, and what a block needs besides."""
        fmas, loads = vectors * rows, vectors + kernel.loads
        instructions = (fmas + vectors + kernel.instructions) / core.instructions_per_cycle
        busy = np.maximum(np.maximum(fmas * (s.lanes / s.peak), loads / core.loads_per_cycle), instructions)
        return (
            np.maximum(busy / kernel.efficiency, core.chain_cycles) + loads * core.exposed_load_cycles + s.p.jump_cycles
        )

    full = np.floor(vectors / size)
    rest = vectors - full * size
    count = full + (rest > 0)
    inner = blocks * (full * step(size) + step(rest) * (rest > 0))
    cycles = inner + s.k * 1.5 * vectors + np.ceil(s.k / rows) * DRAIN_CYCLES * count
    imbalance = 1 + (_imbalance(s, kernel.rows)[which] - 1) * inner / cycles
    stored = blocks * (rows * s.weight_bytes + kernel.index_bytes)
    window = blocks * vectors * s.lanes * s.in_bytes
    near = depth * np.minimum(size * s.lanes, s.pixels) * s.in_bytes
    return Tiles(count, cycles, imbalance, stored, window, near, held.size, held.levels)


def pattern(s: Passes, name: str, kernel: Pattern) -> None:
    """Few kernel patterns: side x side vectors of pixels in registers, input loaded once for all taps of a kernel."""
    masks = [mask for mask in s.rows.sparsity if mask is not None]
    kernels = np.array([mask.k * mask.c - mask.zero_kernels for mask in masks], float)
    nonzeros = np.array([mask.nonzeros for mask in masks], float)
    frame, source = s.buffer(HALO * s.padded), s.read_input()
    s.charge("pack", np.ceil(s.c / 4), s.vector_cycles(HALO * s.padded), (source, frame))
    stored = nonzeros * s.weight_bytes + kernels * kernel.index_bytes
    entries = nonzeros / np.maximum(kernels, 1)
    side = np.array(kernel.sides, float)[:, None]
    count = np.ceil(s.pixels / (s.lanes * side**2))
    fmas = entries * side**2
    loads = (side + 2) * (side + np.where(entries > 6, 2, 1))  # four taps of a kernel span two rows or columns
    bounds = (
        fmas * s.lanes / s.peak,
        loads / s.core.loads_per_cycle,
        (fmas + loads + 6) / s.core.instructions_per_cycle,
    )
    each = np.maximum(np.maximum(*bounds[:2]), bounds[2]) + loads * s.core.exposed_load_cycles
    inner = kernels * count * each / kernel.efficiency
    cycles = inner + s.k * count * (1.5 * side**2 + DRAIN_CYCLES)
    window = loads * s.lanes * s.in_bytes
    first, near = s.c * window * count, s.c * window
    again = kernels * count * window
    imbalance = 1 + (_imbalance(s, (1,)) - 1) * inner / cycles
    tiles = Tiles(count, cycles, imbalance, stored + 0 * count, again, near, first, frame.levels)
    out = s.write_output()
    choice = _cheapest(s, tiles, kernel.filter_blocks, out, by_tile=False)
    s.charge(
        "compute", choice.items, choice.cycles, (*choice.streams, out),
        macs=nonzeros * s.pixels, imbalance=choice.imbalance, launch=True,
    )  # fmt: skip
    s.activate()
