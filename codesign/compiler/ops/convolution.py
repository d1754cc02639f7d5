"""Planning a convolution: the register tile, the storage of its weights, and the calls that compute it.

For each pass and tile: the footprint of all channels is copied to scratch memory (`tiles`), which settles padding, halo
and layout once, makes what follows contiguous, and keeps it in the nearest cache that holds it; then all filters run
over it.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from codesign.compiler.isa import Isa
from codesign.compiler.kernels.convolution import ConvolutionKernel, Taps
from codesign.compiler.kernels.pack import GatherKernel, PackKernel
from codesign.compiler.layout import FLOAT_BYTES, Layout, best_layout
from codesign.compiler.ops import Operator
from codesign.compiler.plan import Context, Place, Shape
from codesign.compiler.program import Argument, At, Call, Space, Stage, Work
from codesign.compiler.steps import Step
from codesign.compiler.storage import FilterGroups, Kernels, Packing, encode, find_kernels
from codesign.compiler.tiles import Tile, Window, cut, gather_table, shift_moves
from workloads.graph import Layer, Op

SCRATCH = At(Space.SCRATCH, 0)
RESERVED = 7
"""Registers that are no sums: weights and inputs."""
WASTE = 1.25
"""Vectors of a layout over those of the best, up to which the input's blocks are kept."""


@dataclass(frozen=True)
class Tuning:
    """What may be chosen freely for a convolution.

    Attributes:
        tile: outputs (rows, columns) of a filter that stay in registers. filters: at most so many that share their
            kernels are computed together. ahead: kernels by which packed tiles are prefetched; 0 for not.
    """

    tile: tuple[int, int]
    filters: int = 1
    ahead: int = 0


def window_of(layer: Layer) -> Window:
    return Window((layer.r, layer.s), layer.stride, layer.dilation, (layer.padding[0], layer.padding[2]))


def kernels_of_layer(layer: Layer, weight: np.ndarray) -> Kernels:
    return find_kernels(weight.reshape(layer.weight_shape), layer.groups)


def default_tuning(isa: Isa, kernels: Kernels, window: Window, block: tuple[int, int], multiple: int) -> Tuning:
    """The tile and group of filters with the least estimated time (`_cost`)."""
    largest = max((len(part) for part in kernels.classes()), default=1)
    groups = [size for size in (1, 2, 4) if size <= largest]
    found = []
    for size, rows, columns in itertools.product(groups, range(1, block[0] + 1), range(1, block[1] + 1)):
        is_whole = rows % multiple == columns % multiple == 0
        if is_whole and rows * columns * size <= max(isa.registers - RESERVED, multiple**2):
            tuning = Tuning((rows, columns), size)
            found.append((_cost(isa, kernels, window, block, multiple, tuning), tuning.tile, tuning))
    return min(found, key=lambda item: item[:2])[2]


def _cost(isa: Isa, kernels: Kernels, window: Window, block: tuple[int, int], multiple: int, tuning: Tuning) -> float:
    """Cycles for all tiles of a block by all kernels: the larger of multiplications and loads, two each a cycle."""
    share = np.bincount(kernels.shape, minlength=len(kernels.shapes)) / max(len(kernels.shape), 1)
    total = 0.0
    for size, count in Counter(tile.size for tile in cut(block, tuning.tile, multiple)).items():
        cycles = 2 * math.prod(window.footprint(size)) / max(kernels.filters, 1)
        for taps, weight in zip(kernels.shapes, share, strict=True):
            loads = _loads(window, size, taps) + len(taps) * tuning.filters
            work = max(math.prod(size) * tuning.filters * len(taps) / 2, loads / 2, 4.0 * len(taps))
            cycles += weight * (work + 3) / tuning.filters
        total += count * cycles
    return total


@functools.lru_cache(maxsize=4096)
def _loads(window: Window, tile: tuple[int, int], taps: Taps) -> int:
    """Vectors that one kernel reads of a packed tile."""
    (sy, sx), (dy, dx) = window.stride, window.dilation
    outputs = itertools.product(range(tile[0]), range(tile[1]))
    return len({(i * sy + y * dy, j * sx + x * dx) for i, j in outputs for y, x in taps})


def window_layout(step: Step, sources: Sequence[Layout], shape: Shape, lanes: int) -> Layout:
    """The blocks of the input, smaller by the stride, so that lanes stay; others where that wastes too many lanes."""
    layer, source, best = step.layer, sources[0], best_layout(lanes, shape[0], *shape[2:])
    pool = 1 if step.pool is None else 2
    steps = [stride * pool for stride in layer.stride]
    block = tuple(-(-side // each) for side, each in zip(source.block, steps, strict=True))
    inherited = Layout(lanes, source.samples, source.grid, (block[0], block[1]))
    holds = all(
        blocks * side >= length and side * each == whole
        for blocks, side, length, each, whole in zip(
            source.grid, inherited.block, shape[2:], steps, source.block, strict=True
        )
    )
    is_dense = _vectors(inherited, shape) <= WASTE * _vectors(best, shape)
    return inherited if source.lanes == lanes and holds and is_dense else best


def _vectors(layout: Layout, shape: Shape) -> int:
    return layout.passes(shape[0]) * math.prod(layout.block)


def _can_convolve(step: Step, sources: Sequence[Shape]) -> bool:
    return len(step.layer.shape) in (3, 4)


def plan_convolution(step: Step, context: Context, tuning: Tuning | None = None) -> Stage:
    """The stage of a convolution with everything that it absorbed."""
    layer = step.layer
    source, out = context.places[step.inputs[0]], context.places[step.output]
    pool = 1 if step.pool is None else 2
    whole = replace(out.layout, block=(out.layout.block[0] * pool, out.layout.block[1] * pool))
    kernels = kernels_of_layer(layer, context.weights[layer.weight])
    window = window_of(layer)
    tuning = tuning or default_tuning(context.isa, kernels, window, whole.block, pool)
    tiles = list(cut(whole.block, tuning.tile, pool))
    row, plane = _pitch(window, tiles)
    packing = _packing(step, context, row, plane, window)
    bias = context.weights[layer.bias] if layer.bias else np.zeros(layer.k, np.float32)
    groups = list(encode(kernels, bias, packing, tuning.filters))
    context.need_scratch(plane * source.shape[1] * context.isa.lanes * FLOAT_BYTES)
    filters = [_Filters(part, context.data.add(part.headers), context.data.add(part.stream)) for part in groups]
    works = []
    for batch, tile in itertools.product(range(out.passes), tiles):
        pack = pack_call(context, source, whole, window, tile, batch, row, plane)
        for share in _shares(filters, 1 if len(tiles) * out.passes >= 2 * context.threads else context.threads):
            calls = [_call(step, context, tuning, tile, batch, part, span, row, pool) for part, span in share]
            work = sum(int(part.groups.kernels[slice(*span)].sum()) * part.groups.filters for part, span in share)
            works.append(Work((pack, *calls), (work + source.shape[1]) * math.prod(tile.size)))
    return Stage(step.output, tuple(works))


@dataclass(frozen=True)
class _Filters:
    groups: FilterGroups
    headers: At
    stream: At


def _pitch(window: Window, tiles: Sequence[Tile]) -> tuple[int, int]:
    """Vectors of a row and of a channel of packed tiles, the same for all tiles: kernels have one offset for all."""
    sizes = [window.footprint(tile.size) for tile in tiles]
    row = max(columns for _, columns in sizes)
    return row, row * max(rows for rows, _ in sizes)


def _packing(step: Step, context: Context, row: int, plane: int, window: Window) -> Packing:
    vector = context.isa.lanes * FLOAT_BYTES
    dy, dx = window.dilation
    out = context.places[step.output]
    if (residual := step.residual) is None:
        return Packing(plane * vector, dy * row * vector, dx * vector, out.plane)
    its = context.places[residual.tensor].plane
    return Packing(plane * vector, dy * row * vector, dx * vector, out.plane, its, residual.first, residual.channels)


def _shares(filters: Sequence[_Filters], count: int) -> Iterator[list[tuple[_Filters, tuple[int, int]]]]:
    """Filters cut into runs of about equally many kernels, so that several threads can share a tile."""
    for i in range(count):
        found = []
        for part in filters:
            sums = np.cumsum(part.groups.kernels + 1)
            bounds = np.searchsorted(sums, sums[-1] * np.arange(count + 1) / count)
            bounds[-1] = len(sums)
            if bounds[i] < bounds[i + 1]:
                found.append((part, (int(bounds[i]), int(bounds[i + 1]))))
        if found:
            yield found


def _call(
    step: Step,
    context: Context,
    tuning: Tuning,
    tile: Tile,
    batch: int,
    part: _Filters,
    span: tuple[int, int],
    row: int,
    pool: int,
) -> Call:
    """A run of filter groups over one packed tile."""
    out, vector = context.places[step.output], context.isa.lanes * FLOAT_BYTES
    (dy, dx), groups = step.layer.dilation, part.groups
    shapes = tuple(tuple((y * dy, x * dx) for y, x in taps) for taps in groups.shapes)
    residual, residual_at = None, At(Space.NUMBER, 0)
    if step.residual is not None:
        its = context.places[step.residual.tensor]
        down, right = step.residual.stride
        residual = (down, right, its.layout.block[1])
        skipped = (tile.row * down * its.layout.block[1] + tile.column * right) * vector
        residual_at = its.batch(batch) + step.residual.start * its.plane + skipped
    kernel = ConvolutionKernel(
        tile.size, step.layer.stride, shapes, groups.filters, row, out.layout.block[1], step.activation, residual, pool,
        tuning.ahead,
    )  # fmt: skip
    written = (tile.row // pool * out.layout.block[1] + tile.column // pool) * vector
    begin, end = span
    arguments: tuple[Argument, ...] = (
        SCRATCH, out.batch(batch) + written, residual_at, part.headers + begin * kernel.header_bytes, end - begin,
        part.stream,
    )  # fmt: skip
    return Call(kernel, arguments)


def pack_call(
    context: Context,
    source: Place,
    out: Layout,
    window: Window,
    tile: Tile,
    batch: int,
    row: int,
    plane: int,
    fill: float = 0.0,
) -> Call:
    """The copy of a tile's footprint of all channels to the start of scratch memory."""
    vector = context.isa.lanes * FLOAT_BYTES
    channels, size = source.shape[1], source.shape[2:]
    shifted = shift_moves(source.layout, out, size, window, tile, row)
    if shifted is not None:
        base, moves = shifted
        start = source.batch(batch) + base * vector
        return Call(PackKernel(moves, fill), (start, SCRATCH, channels, source.plane, plane * vector))
    table = np.full((window.footprint(tile.size)[0], row, context.isa.lanes), -1, np.int32)
    reads = np.array(window.reads(tile.size))
    table[reads[:, 0], reads[:, 1]] = gather_table(source.layout, out, source.shape, window, tile, batch)
    place = context.data.add(table)
    arguments = (source.start, SCRATCH, channels, source.plane, plane * vector, place, table.shape[0] * row)
    return Call(GatherKernel(fill), arguments)


OPERATORS = {Op.CONV: Operator(_can_convolve, window_layout, plan_convolution, "any")}
