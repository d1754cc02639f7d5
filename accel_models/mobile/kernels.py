"""Dense kernels: what each kind of kernel of a runtime costs (`accel_models.mobile.cpu` is the chapter)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from accel_models.mapping import ceil_div, round_up
from accel_models.mobile.passes import EXPONENTIAL_OPS, QUANTIZE_OPS, Passes, Stream, either
from accel_models.mobile.products import Product, cover
from accel_models.mobile.runtime import Depthwise, Direct, Gemm, Plain, Winograd
from workloads.graph import OP_CODES, Op

# Vector operations of one 8x8 -> 6x6 Winograd tile: 16 (14) one-dimensional transforms of 26 (24) operations each.
WINOGRAD_INPUT_OPS, WINOGRAD_INVERSE_OPS = 16 * 26, 14 * 24
TILES_A_THREAD = 5  # a product that walks over pixels also splits its channels until each thread has so many pieces
# Vector operations an output element, of layers that do not multiply (pooling: one for each input it looks at).
VECTOR_OPS = {
    Op.SOFTMAX: EXPONENTIAL_OPS + 10,
    Op.ACTIVATION: EXPONENTIAL_OPS,
    Op.NORM: 8,
    Op.VECTOR: 4,
    Op.UPSAMPLE: 4,
    Op.TRANSPOSE: 4,
    Op.PIXEL_SHUFFLE: 4,
}
OPS_BY_CODE = np.array([float(VECTOR_OPS.get(op, 1)) for op in OP_CODES])


def gemm(s: Passes, name: str, kernel: Gemm) -> None:
    """1x1 convolution, linear layer with several positions, matmul, transposed and lowered convolution."""
    rows = s.rows
    transposed, matmul = rows.is_op("conv_transpose"), rows.is_op("matmul")
    pixels = np.where(transposed, rows.in_h * rows.in_w, s.pixels).astype(float)
    k, c = np.where(transposed, s.k * s.taps, s.k), np.where(rows.is_op("conv"), s.c * s.taps, s.c)
    moved = rows.is_op("conv") & ((s.taps > 1) | (rows.stride_h > 1) | (rows.stride_w > 1)) & kernel.lowers
    quantized = (s.width == 0) & rows.is_mac & s.cpu.runtime.requantizes
    source, panel = s.read_input(), s.buffer(pixels * c)
    packing = s.vector_cycles(pixels * c)
    # Rows in between are skipped, lines are not; a spatial kernel reads every input once for each tap that uses it.
    touched = source._replace(
        size=np.minimum(source.size / rows.stride_h * np.maximum(s.taps, 1), panel.size + source.size)
    )
    quantizing = s.vector_cycles(s.input, QUANTIZE_OPS) * quantized
    s.charge("border", np.ceil(s.c / 4), packing * moved + quantizing, (touched, panel), when=moved | quantized)
    product = s.cpu.tiles[name].multiply(s, pixels, k, c, kernel.block_depth or np.inf)
    weights = either(matmul, s.read_other(), s.read_weights())
    source = either(moved, panel, source)
    blocks = _blocks(s, kernel, pixels, c)
    if kernel.packs_input or kernel.packs_weights:
        _pack(s, kernel, pixels, c, source, weights, blocks)
    read = panel if kernel.packs_input else source
    columns, out = s.buffer(pixels * k), s.write_output()
    result = either(transposed, columns, out)
    visits = np.ceil(c / kernel.block_depth) if kernel.block_depth else np.ones(len(c))
    result = result._replace(size=result.size * (2 * visits - 1))
    weights = s.buffer(weights.size / s.in_bytes) if kernel.packs_weights else weights
    items, loops, imbalance, streams = WALKS[kernel.walk](s, kernel, product, read, weights, blocks)
    s.charge(
        "compute", items, product.cycles, (*streams, weights, result),
        macs=pixels * k * c, loaded=product.loaded, loops=loops, imbalance=imbalance, launch=True,
    )  # fmt: skip
    s.charge("inverse", s.groups_of(4), s.vector_cycles(pixels * k), (columns, out), when=transposed)
    s.activate()


def _blocks(s: Passes, kernel: Gemm, pixels: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Into how many blocks of pixels the input is cut, so that one and a tile's results fit the block."""
    if kernel.walk != "blocks":
        return np.ones(len(pixels))
    depth = np.minimum(c, kernel.block_depth or np.inf)
    size, width = kernel.tile_pixels[0], kernel.tile_channels[0]
    capacity = kernel.block_bytes or s.cpu.capacities[-1]
    fits = np.maximum(np.floor(capacity / s.in_bytes / (depth + width) / size), 1) * size
    return np.asarray(np.ceil(pixels / fits))


def _pack(
    s: Passes, kernel: Gemm, pixels: np.ndarray, c: np.ndarray, source: Stream, weights: Stream, blocks: np.ndarray
) -> None:
    """Copies into tile order: of the input, and of weights that are not kept so. One loop for each size of tile."""
    panel, packed = s.buffer(pixels * c), s.buffer(weights.size / s.in_bytes)
    elements, streams = np.zeros(len(pixels)), []
    if kernel.packs_input:
        elements, streams = elements + pixels * c, [source, panel]
    if kernel.packs_weights:
        elements, streams = elements + weights.size / s.weight_bytes, [*streams, weights, packed]
    sizes = (cover(pixels, kernel.tile_pixels) > 0).sum(axis=0)
    items = np.ceil(pixels / kernel.tile_pixels[0])
    s.charge("pack", items, s.vector_cycles(elements), streams, loops=np.maximum(sizes, blocks))


Walk = tuple[np.ndarray, np.ndarray, np.ndarray, tuple[Stream, ...]]


def _walk_channels(
    s: Passes, kernel: Gemm, product: Product, read: Stream, weights: Stream, blocks: np.ndarray
) -> Walk:
    """Every tile of channels streams the whole input past its sums, from wherever the input fits beside its weights."""
    items = product.channel_tiles
    tile = weights.size / np.maximum(s.k, 1) * kernel.tile_channels[0]
    again = Stream(read.size * items, s.levels(read.size + tile))
    return items, product.channel_sizes, product.imbalance, (again,)


def _walk_blocks(s: Passes, kernel: Gemm, product: Product, read: Stream, weights: Stream, blocks: np.ndarray) -> Walk:
    """The same for one block of pixels after another: the block stays near, the weights come once for each."""
    items = product.channel_tiles
    near = Stream(read.size * (items - 1), s.levels(read.size / blocks))
    again = Stream(weights.size * (blocks - 1), s.levels(weights.size))
    return items, product.channel_sizes * blocks, product.imbalance, (read, near, again)


def _walk_pixels(s: Passes, kernel: Gemm, product: Product, read: Stream, weights: Stream, blocks: np.ndarray) -> Walk:
    """Every tile of pixels streams all weights past its sums; where tiles are too few, channels are split."""
    pieces = np.minimum(TILES_A_THREAD * s.cpu.threads / product.pixel_tiles, product.channel_tiles)
    items = product.pixel_tiles * (np.maximum(np.floor(pieces), 1.0) if s.cpu.threads > 1 else 1.0)
    again = Stream(weights.size * (product.pixel_tiles - 1), s.levels(weights.size))
    return items, np.ones(len(items)), np.ones(len(items)), (read, again)


WALKS: dict[str, Callable[[Passes, Gemm, Product, Stream, Stream, np.ndarray], Walk]] = {
    "channels": _walk_channels,
    "blocks": _walk_blocks,
    "pixels": _walk_pixels,
}


def winograd63(s: Passes, name: str, kernel: Winograd) -> None:
    """3x3 stride 1 by F(6x6, 3x3)."""
    high, wide = ceil_div(s.rows.p, 6), ceil_div(s.rows.q, 6)
    tiles = (high * wide).astype(float)
    cut = (s.rows.p % 6 > 0) | (s.rows.q % 6 > 0)
    frame = s.c * (6 * high + 2) * (6 * wide + 2)
    times = np.where(cut, 3.0, 1.0)  # once for the convolution's own border, then once more to whole tiles
    border = s.vector_cycles(s.input) * np.where(cut, 2, 1)
    s.charge("border", np.ceil(s.c / 4), border, (s.read_input(), s.buffer(frame, times)), loops=np.where(cut, 2, 1))
    source, result = 64 * tiles * s.c, s.buffer(64 * tiles * s.k)
    spread = s.buffer(source)
    transform = transform_cycles(s, tiles, s.c, WINOGRAD_INPUT_OPS)
    s.charge("transform", np.ceil(s.c / 4), transform, (s.buffer(frame), spread))
    s.charge("pack", np.full(len(tiles), 64.0), s.vector_cycles(source), (spread, spread))
    product = s.cpu.tiles[name].multiply(s, tiles, s.k, s.c, np.inf)
    streams = (Stream(spread.size * product.channel_tiles, spread.levels), s.read_weights(64 / s.taps), result)
    s.charge(
        "compute", product.channel_tiles, 64 * product.cycles, streams,
        macs=64 / 36 * s.pixels * s.c * s.k, loaded=64 * product.loaded,
        loops=product.channel_sizes, imbalance=product.imbalance, launch=True,
    )  # fmt: skip
    out = s.write_output()
    inverse = transform_cycles(s, tiles, s.k, WINOGRAD_INVERSE_OPS) + np.where(cut, s.vector_cycles(s.output), 0.0)
    moved = out._replace(size=out.size * np.where(cut, 3, 1))
    s.charge("inverse", s.groups_of(4), inverse, (result, moved), loops=np.where(cut, 2, 1))
    s.activate()


def transform_cycles(s: Passes, tiles: np.ndarray, channels: np.ndarray, ops: float) -> np.ndarray:
    """Core cycles of a Winograd transform: its operations, and 64 accesses to planes far apart in memory."""
    scattered = 64 * tiles * channels / s.lanes * s.p.scatter_cycles
    return np.asarray(s.vector_cycles(tiles * channels, ops) + scattered)


def direct(s: Passes, name: str, kernel: Direct) -> None:
    """Kernels with loops of their own: a tile of pixels x channels; twice the channels where the input is thin."""
    source = s.add_border()
    size = kernel.tile_channels
    thin = s.c < size
    group = np.where(thin, kernel.thin_channels, size)
    items, c, k = np.ceil(s.k / group), np.where(thin, s.c, round_up(s.c, size)), round_up(s.k, size)
    cycles = k * round_up(s.pixels, kernel.tile_pixels) * c * s.taps / s.peak / s.p.product_efficiency
    full = np.maximum(np.minimum(group, k) * items / k, 1.0)  # channels of a full group over the mean one's
    imbalance = full if s.cpu.threads > 1 else np.ones(len(k))
    out = s.write_output()
    sums = Stream(2 * out.size * np.maximum(np.ceil(s.c / size), 1), s.levels(out.size / items))
    again = Stream(source.size * items, source.levels)
    macs = s.k * s.pixels * s.c * s.taps
    streams = (again, s.read_weights(), sums, out)
    s.charge("compute", items, cycles, streams, macs=macs, imbalance=imbalance, launch=True)
    s.activate()


def naive(s: Passes, name: str, kernel: Plain) -> None:
    """The fallback: every multiplication of an output waits for the one before. Activation is fused."""
    source = s.add_border()
    items = s.groups_of(4)
    step = np.maximum(s.core.chain_cycles, 4 / s.peak)
    cycles = items * s.pixels * s.c * s.taps * step
    again = Stream(source.size * items, source.levels)
    macs = s.k * s.pixels * s.c * s.taps
    s.charge("compute", items, cycles, (again, s.read_weights(), s.write_output()), macs=macs, launch=True)


def depthwise(s: Passes, name: str, kernel: Depthwise) -> None:
    """One kernel a channel; a vector of channels (or of pixels) at once."""
    source = s.add_border(kernel.border)
    loads, stores, core = kernel.loads_per_tap, kernel.stores_per_tap, s.core
    each = max(
        1 / core.vector_pipes, loads / core.loads_per_cycle, stores, (1 + loads + stores) / core.instructions_per_cycle
    )
    vectors = round_up(s.k, 4) * s.pixels / s.lanes
    cycles = vectors * np.maximum(s.taps * each, 1.0) / s.p.vector_efficiency
    again = s.taps * vectors * s.lanes * (loads + stores) * s.in_bytes
    macs = s.k * s.pixels * s.taps
    streams = (source, s.read_weights(), s.write_output())
    s.charge("compute", s.groups_of(4), cycles, streams, macs=macs, loaded=again, launch=True)
    s.activate()


def gemv(s: Passes, name: str, kernel: Plain) -> None:
    """A vector times a matrix, once for each time step of an LSTM; an LSTM's gates follow each step."""
    steps, lstm = s.pixels, s.rows.is_op("lstm")
    macs = steps * s.k * s.c
    cycles = steps * round_up(s.k, 4) * s.c / s.peak
    cycles = cycles + np.where(lstm, s.vector_cycles(s.k * steps, EXPONENTIAL_OPS), 0.0)
    first = s.read_weights()
    again = Stream(first.size * (steps - 1), s.levels(first.size))
    streams = (first, again, s.read_input(), s.write_output())
    s.charge("compute", s.groups_of(4), cycles, streams, macs=macs, loops=steps, launch=True)
    s.activate()


def vector(s: Passes, name: str, kernel: Plain) -> None:
    """Elementwise work, pooling, reductions, softmax, normalisation."""
    pooled = s.output * s.taps
    elements = np.where(s.rows.is_op("max_pool", "avg_pool"), s.output, np.maximum(s.output, s.input))
    ops = np.where(s.rows.is_op("max_pool", "avg_pool"), pooled / s.output, OPS_BY_CODE[s.rows.op])
    streams = (s.read_input(), s.read_other(), s.write_output())
    cycles = s.vector_cycles(elements, ops)
    s.charge("compute", s.groups_of(4), cycles, streams, floor=cycles, launch=True)
    s.activate()


def copy(s: Passes, name: str, kernel: Plain) -> None:
    """Data movement: what is written is read once; a concat reads all its inputs."""
    out = s.write_output()
    near, far = s.read_input(), s.read_other()
    read = near._replace(size=np.minimum(near.size, out.size))
    cycles = s.vector_cycles(s.output, OPS_BY_CODE[s.rows.op])
    s.charge("compute", s.groups_of(4), cycles, (read, far, out), floor=cycles, launch=True)
    s.activate()


KINDS: dict[str, Callable[[Passes, str, Any], None]] = {
    "gemm": gemm,
    "winograd63": winograd63,
    "direct": direct,
    "naive": naive,
    "depthwise": depthwise,
    "gemv": gemv,
    "vector": vector,
    "copy": copy,
}
