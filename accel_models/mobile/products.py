"""Matrix products in register tiles (`accel_models.mobile.cpu` is the chapter).

A tile of p pixels x k channels holds p * ceil(k / L) accumulators, L numbers each. One input channel costs

    max( FMAs / m,  loads / l,  instructions / i,  chain ) + exposed loads          m, l, i: a cycle of the core

and each tile besides: clearing its accumulators, storing them, and draining the pipeline. Pixels and channels that are
left over take the next smaller size; what is left of the smallest is filled up.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from accel_models.mapping import ceil_div
from accel_models.mobile.cores import WIDTHS, Core
from accel_models.mobile.passes import Passes
from accel_models.mobile.runtime import Gemm, Runtime, Winograd

DRAIN_CYCLES = 12  # from a register tile's last FMA to the next one's first: results leave the pipeline, loop exit


class Product(NamedTuple):
    """A packed GEMM; float64 (rows,) each.

    Core cycles; tiles of pixels and of channels; how many sizes of the latter; longest tile of channels over the mean
    one; bytes that instructions load.
    """

    cycles: np.ndarray
    pixel_tiles: np.ndarray
    channel_tiles: np.ndarray
    channel_sizes: np.ndarray
    imbalance: np.ndarray
    loaded: np.ndarray


class RegisterTiles:
    """Cycles of a kernel's register tiles on a core, (channel sizes, pixel sizes, widths).

    Attributes:
        inner: per input channel. drain: per tile besides.
    """

    def __init__(self, core: Core, runtime: Runtime, kernel: Gemm | Winograd, efficiency: float) -> None:
        self.pixels, self.channels = kernel.tile_pixels, kernel.tile_channels
        found = [[[_tile(core, runtime, bits, p, k) for bits in WIDTHS] for p in self.pixels] for k in self.channels]
        inner, self.drain = np.moveaxis(np.array(found), 3, 0)
        self.inner = inner / efficiency

    def multiply(self, s: Passes, pixels: np.ndarray, k: np.ndarray, c: np.ndarray, block_depth: float) -> Product:
        """One product of (pixels x c) by (c x k); its sums go to memory once every `block_depth` input channels."""
        across, along = cover(pixels, self.pixels), cover(k, self.channels)  # (sizes, rows)
        inner, drain = self.inner[..., s.width], self.drain[..., s.width]  # (channel sizes, pixel sizes, rows)
        visits = np.maximum(np.ceil(c / block_depth), 1)
        each = ((inner * c + drain * visits) * across).sum(axis=1)
        cycles, tiles = (each * along).sum(axis=0), along.sum(axis=0)
        longest = (each * (along > 0)).max(axis=0)
        imbalance = longest * tiles / cycles if s.cpu.threads > 1 else np.ones(len(k))
        p, n = self.pixels[0], self.channels[0]
        loaded = pixels * k * c * (p + n) / (p * n) * s.in_bytes
        return Product(cycles, across.sum(axis=0), tiles, (along > 0).sum(axis=0), imbalance, loaded)


def _tile(core: Core, runtime: Runtime, bits: int, pixels: int, channels: int) -> tuple[float, float]:
    """(cycles per input channel, cycles besides) of one register tile."""
    rate = core.rate(bits, runtime.dot_product, runtime.fp16_arithmetic)
    halves = bits == 16 and rate > core.rate(32, False, False)
    lanes = core.vector_bits // (16 if halves else 32)  # sums of 8-bit products have 32 bits
    padded = -(-channels // lanes) * lanes
    fmas = pixels * padded * core.vector_pipes / rate  # instructions; a dot product is a fraction of one
    loads = (pixels + channels) * bits / core.vector_bits
    chain = core.chain_cycles * min(fmas / (pixels * padded / lanes), 1.0)
    bounds = (fmas / core.vector_pipes, loads / core.loads_per_cycle, (fmas + loads) / core.instructions_per_cycle)
    sums = pixels * padded / lanes
    return max(*bounds, chain) + loads * core.exposed_load_cycles, sums / core.vector_pipes + sums + DRAIN_CYCLES


def cover(count: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """How many tiles of each size cover `count`, (sizes, rows); the smallest one may be filled up.

    >>> cover(np.array([25.0, 7.0]), (12, 8, 4, 2, 1)).T.tolist()  # 12 + 12 + 1 and 4 + 2 + 1
    [[2.0, 0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0, 1.0]]
    >>> cover(np.array([9.0, 12.0]), (8, 4)).T.tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    """
    counts, rest = [], ceil_div(count, sizes[-1]) * sizes[-1]
    for size in sizes:
        counts.append(np.floor_divide(rest, size))
        rest = rest - counts[-1] * size
    return np.stack(counts)
