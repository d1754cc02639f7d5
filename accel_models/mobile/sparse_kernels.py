"""Sparse kernels of a mobile CPU: unstructured non-zeros times vectors of pixels, and kernel patterns.

Both search how many vectors of pixels to hold in registers and into how many blocks to cut the filters: more pixels
reuse a weight more often but no longer find their inputs in L1; more blocks keep a block's weights in L1 but walk over
the input once each. `accel_models.mobile.cpu` is the chapter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from accel_models.mapping import choose
from accel_models.mobile.passes import (
    COLD,
    DRAIN_CYCLES,
    DRAM,
    L1,
    L2,
    L3,
    Levels,
    Passes,
    Stream,
    bytes_by_port,
    either,
)
from workloads.columns import Columns
from workloads.random_masks import RandomMasks

SPMM_VECTORS = (1, 2, 4, 8, 16)  # vectors of pixels that a non-zero is multiplied with
PATTERN_SIDES = (1, 2, 3, 4, 5)  # side of the square of vectors that a pattern kernel holds
FILTER_BLOCKS = (1, 4, 16, 64)  # into how many blocks the filters are cut
INDEX_BYTES = 4
HALO = 1.3  # a pattern kernel's packed input over the input: each block of pixels is stored with its border


def has_patterns(rows: Columns, row: int, limit: int) -> bool:
    """Whether a pattern kernel exists for a row: an exact mask of spatial kernels with few distinct patterns."""
    mask = rows.sparsity[row]
    return mask is not None and mask.is_exact and mask.r * mask.s > 1 and mask.distinct_patterns <= limit


def _imbalance(s: Passes) -> np.ndarray:
    """Non-zeros of the busiest thread over the mean, filters being dealt out in turn; 1 with one thread."""
    if s.cpu.threads == 1:
        return np.ones(len(s.rows))
    chance = RandomMasks(s.k, s.c, s.rows.r, s.rows.s, s.rows.weight_density)
    found = np.array(chance.balance(s.cpu.threads, "filter", "interleaved").imbalance)
    for i, mask in enumerate(s.rows.sparsity):
        if mask is not None and mask.is_exact:
            found[i] = mask.balance(s.cpu.threads, "filter", "interleaved").imbalance
    return np.maximum(found, 1.0)


class Blocking(NamedTuple):
    """One way to run a sparse kernel: parallel iterations, core cycles, streams, slowest thread over mean."""

    items: np.ndarray
    cycles: np.ndarray
    streams: tuple[Stream, ...]
    imbalance: np.ndarray


def _cheapest(s: Passes, sizes: tuple[int, ...], plan: Callable[[Any, Any], Blocking]) -> Blocking:
    """The blocking of least estimated time among sizes x FILTER_BLOCKS, for every row."""
    options = [(float(size), float(blocks)) for size in sizes for blocks in FILTER_BLOCKS]
    bandwidth = [memory.bandwidth_bytes_per_cycle for memory in s.cpu.spec.memories]
    costs = []
    for size, blocks in options:
        items, cycles, streams, imbalance = plan(size, np.minimum(blocks, s.k))
        share = np.ceil(items / s.cpu.threads) / items
        moved = bytes_by_port(streams, len(items))
        private = [moved[port] * share / bandwidth[port] for port in (L1, L2, L3)]
        shared = moved[DRAM] / bandwidth[DRAM]
        costs.append(np.maximum.reduce([cycles * s.cpu.slowest_cycle * imbalance * share, *private, shared]))
    best = np.array(options)[choose(np.stack(costs))]
    return plan(best[:, 0], np.minimum(best[:, 1], s.k))


def spmm(s: Passes) -> None:
    """Unstructured zeros: each non-zero weight times `size` vectors of pixels."""
    depth, nonzeros = s.c * s.taps, s.rows.weight_density * s.weights
    vectors = np.ceil(s.pixels / s.lanes)
    gathered = (s.taps > 1) | (s.rows.stride_h > 1) | (s.rows.stride_w > 1)
    panel, source = s.buffer(depth * s.pixels), s.read_input()
    s.charge("pack", np.ceil(depth / 4), s.vector_cycles(depth * s.pixels), (source, panel), when=gathered)
    levels = either(gathered, panel, source).levels
    stored = nonzeros * (s.weight_bytes + INDEX_BYTES)
    out = s.write_output()

    def loop(size: Any) -> Any:
        """Cycles of one non-zero: a load and an FMA a vector, beside them weight, index and pointer."""
        p = s.p
        bounds = (size / p.vector_pipes, (size + 2) / p.loads_per_cycle, (2 * size + 3) / p.instructions_per_cycle)
        return np.where(size > 0, np.maximum.reduce(np.broadcast_arrays(*bounds)), 0.0)

    busiest = _imbalance(s)

    def plan(size: Any, blocks: Any) -> Blocking:
        full, rest = np.divmod(vectors, size)
        tiles = np.ceil(vectors / size)
        inner = nonzeros * (full * loop(size) + loop(rest)) / s.p.sparse_efficiency
        cycles = inner + s.k * (1.5 * vectors + DRAIN_CYCLES * tiles)
        near = s.levels(depth * np.minimum(size * s.lanes, s.pixels) * s.in_bytes)
        again = Stream(nonzeros * vectors * s.lanes * s.in_bytes, Levels(near.l1, near.l2, 0.0))
        first = Stream(panel.size * blocks, levels)
        weights = Stream(stored * np.maximum(tiles - 1, 0), s.levels(stored / blocks))
        streams = (again, first, Stream(stored, COLD), weights, out)
        return Blocking(tiles * blocks, cycles, streams, np.where(blocks > 1, busiest, 1.0))

    items, cycles, streams, imbalance = _cheapest(s, SPMM_VECTORS, plan)
    s.charge("compute", items, cycles, streams, macs=nonzeros * s.pixels, imbalance=imbalance, launch=True)
    s.activate()


def pattern(s: Passes) -> None:
    """Few kernel patterns: size x size vectors of pixels in registers, input loaded once for all taps of a kernel."""
    masks = [mask for mask in s.rows.sparsity if mask is not None]
    kernels = np.array([mask.k * mask.c - mask.zero_kernels for mask in masks], float)
    nonzeros = np.array([mask.nonzeros for mask in masks], float)
    entries = nonzeros / np.maximum(kernels, 1)
    frame, source = s.buffer(HALO * s.padded), s.read_input()
    s.charge("pack", np.ceil(s.c / 4), s.vector_cycles(HALO * s.padded), (source, frame))
    stored = nonzeros * s.weight_bytes + kernels * INDEX_BYTES
    out = s.write_output()
    busiest = _imbalance(s)
    reach = np.where(entries > 6, 2, 1)  # four taps of a kernel span two rows or columns

    def plan(size: Any, blocks: Any) -> Blocking:
        tiles = np.ceil(s.pixels / (s.lanes * size**2))
        fmas, loads = entries * size**2, (size + 2) * (size + reach)
        bounds = (fmas / s.p.vector_pipes, loads / s.p.loads_per_cycle, (fmas + loads + 6) / s.p.instructions_per_cycle)
        inner = kernels * tiles * np.maximum.reduce(np.broadcast_arrays(*bounds)) / s.p.sparse_efficiency
        cycles = inner + s.k * tiles * (1.5 * size**2 + DRAIN_CYCLES)
        window = loads * s.lanes * s.in_bytes
        near = s.levels(s.c * window)
        again = Stream(kernels * tiles * window, Levels(near.l1, near.l2, 0.0))
        first = Stream(s.c * window * tiles * blocks, frame.levels)
        weights = Stream(stored * np.maximum(tiles - 1, 0), s.levels(stored / blocks))
        threads = np.minimum(float(s.cpu.threads), s.k)
        return Blocking(threads, cycles, (again, first, Stream(stored, COLD), weights, out), busiest)

    items, cycles, streams, imbalance = _cheapest(s, PATTERN_SIDES, plan)
    s.charge("compute", items, cycles, streams, macs=nonzeros * s.pixels, imbalance=imbalance, launch=True)
    s.activate()
