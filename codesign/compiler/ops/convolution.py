"""Planning a convolution: the register tile, the storage of its weights, and the calls that compute it.

For each pass and tile: the footprint of all channels is packed to scratch memory, which settles padding, halo and
layout once, makes what follows contiguous, and keeps it in the nearest cache that holds it; then all filters run over
it, filter by filter where a filter's tile fills the registers, else channel by channel.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from codesign.compiler.isa import Isa
from codesign.compiler.kernels.convolution import ConvolutionKernel
from codesign.compiler.kernels.outputs import Output, Taps
from codesign.compiler.kernels.scatter import ScatterKernel
from codesign.compiler.lanes import lanes_tuning, plan_lanes
from codesign.compiler.layout import FLOAT_BYTES, Layout, best_layout
from codesign.compiler.ops import Operator
from codesign.compiler.packed import SCRATCH, Packed
from codesign.compiler.plan import Context, Shape, Tuning
from codesign.compiler.program import At, Call, Space, Stage, Work, divide
from codesign.compiler.steps import Step
from codesign.compiler.storage import FilterGroups, Kernels, Packing, encode, encode_runs, find_kernels
from codesign.compiler.tiles import Tile, Window, cut
from workloads.graph import Layer, Op

STORED = {"filter": "FKW", "channel": "runs of kernels by channel", "lanes": "FKW, groups of filters in lanes"}
FAR = 0.3
ROW = 20
"""Cycles, both; as the registers' price, read off measured layers of VGG-16 by the eye. Tuning measures instead."""
FEW_OUTPUTS = 8
"""Vectors of a filter's whole block up to which channels come first."""
SUMS_BYTES = 24 * 1024
"""Of the sums of all filters that a scattering kernel adds to: they stay in the nearest cache."""
WASTE = 1.25
"""Vectors of a layout over those of the best, up to which the input's blocks are kept."""


def window_of(layer: Layer) -> Window:
    return Window((layer.r, layer.s), layer.stride, layer.dilation, (layer.padding[0], layer.padding[2]))


# ---- choices --------------------------------------------------------------------------------------------------------


def window_layout(step: Step, sources: Sequence[Layout], shape: Shape, lanes: int) -> Layout:
    """The blocks of the input, smaller by the stride, so that lanes stay; others where that wastes too many lanes."""
    source, best = sources[0], best_layout(lanes, shape[0], shape[2], shape[3])
    pool = step.pool_side
    down, right = step.layer.stride[0] * pool, step.layer.stride[1] * pool
    inherited = replace(source, block=(source.block[0] // down, source.block[1] // right))
    is_even = source.block == (inherited.block[0] * down, inherited.block[1] * right)
    holds = all(n * side >= length for n, side, length in zip(source.grid, inherited.block, shape[2:], strict=True))
    is_dense = _vectors(inherited, shape) <= WASTE * _vectors(best, shape)
    return inherited if source.lanes == lanes and is_even and holds and is_dense else best


def _vectors(layout: Layout, shape: Shape) -> int:
    return layout.passes(shape[0]) * math.prod(layout.block)


def tunings(isa: Isa, kernels: Kernels, window: Window, block: tuple[int, int], multiple: int) -> list[Tuning]:
    """All choices, those with the least estimated time (`_cost`) first.

    Where a whole block is a few vectors, channels come first and filters after, unless four filters share kernels and
    so have sums enough to be computed together; single weights gain nothing from it.
    """
    largest = max((len(part) for part in kernels.classes()), default=1)
    groups = [size for size in (1, 2, 4) if size <= largest]
    found: dict[object, tuple[float, tuple[int, int], Tuning]] = {}
    for size, rows, columns in itertools.product(groups, range(1, block[0] + 1), range(1, block[1] + 1)):
        is_whole = rows % multiple == columns % multiple == 0
        if is_whole and rows * columns * size <= max(isa.sums, multiple**2):
            tuning = Tuning((rows, columns), size)
            tiles = Counter(tile.size for tile in cut(block, tuning.tile, multiple))
            key = (size, frozenset(tiles.items()))  # tiles of 19 and of 20 cut a side of 56 into the same three parts
            if key not in found:
                found[key] = (_cost(isa, kernels, window, tiles, size), tuning.tile, tuning)
    by_filter = [tuning for _, _, tuning in sorted(found.values(), key=lambda item: item[:2])]
    by_channel = [Tuning(block, order="channel")] * (math.prod(block) <= FEW_OUTPUTS)
    taps = max(map(len, kernels.shapes), default=1)
    is_shared = 4 in groups and math.prod(block) >= 4
    return by_filter + by_channel if taps == 1 or is_shared else by_channel + by_filter


def _cost(isa: Isa, kernels: Kernels, window: Window, tiles: Mapping[tuple[int, int], int], filters: int) -> float:
    """Cycles for tiles (size, how many) by all kernels: the larger of multiplications and loads, two each a cycle.

    A register too few costs about a cycle a kernel, an input that comes from the second cache `FAR` more, and a row of
    outputs `ROW`, since it lies apart from the others: that counts where a filter has few kernels.
    """
    share = np.bincount(kernels.shape, minlength=len(kernels.shapes)) / max(len(kernels.shape), 1)
    each = max(len(kernels.filter), 1) / max(kernels.filters, 1)  # kernels of a filter
    total = 0.0
    for size, count in tiles.items():
        cycles = 2 * math.prod(window.footprint(size)) / max(kernels.filters, 1) + ROW * size[0] / each
        for taps, weight in zip(kernels.shapes, share, strict=True):
            sums, weights = math.prod(size) * filters, len(taps) * filters
            inputs = _loads(window, size, taps)
            missing = max(0, sums + weights + 1 - isa.registers)
            work = max(sums * len(taps) / 2, (inputs + weights) / 2, 4.0 * len(taps)) + missing + FAR * inputs
            cycles += weight * (work + 3) / filters
        total += count * cycles
    return total


@functools.lru_cache(maxsize=4096)
def _loads(window: Window, tile: tuple[int, int], taps: Taps) -> int:
    """Vectors that one kernel reads of a packed tile."""
    (sy, sx), (dy, dx) = window.stride, window.dilation
    outputs = itertools.product(range(tile[0]), range(tile[1]))
    return len({(i * sy + y * dy, j * sx + x * dx) for i, j in outputs for y, x in taps})


# ---- calls ----------------------------------------------------------------------------------------------------------


def kernels_of_step(step: Step, context: Context) -> Kernels:
    layer = step.layer
    return find_kernels(context.weights[layer.weight].reshape(layer.weight_shape), layer.groups)


def choices(step: Step, context: Context, kernels: Kernels) -> list[Tuning]:
    """How a step may be computed, the most promising first."""
    pool = step.pool_side
    block = context.places[step.output].layout.block
    by_block = tunings(context.isa, kernels, window_of(step.layer), (block[0] * pool, block[1] * pool), pool)
    in_lanes = lanes_tuning(step, context, kernels)
    return by_block if in_lanes is None else [in_lanes, *by_block]


def plan_convolution(step: Step, context: Context) -> Stage:
    """The stage of a convolution with all that it absorbed, as `context.tunings` says or as is estimated best."""
    kernels = kernels_of_step(step, context)
    tuning = context.tunings.get(step.output) or choices(step, context, kernels)[0]
    return plan_tuned(step, context, kernels, tuning)


def plan_tuned(step: Step, context: Context, kernels: Kernels, tuning: Tuning) -> Stage:
    layer, out = step.layer, context.places[step.output]
    if tuning.order == "lanes":
        works = plan_lanes(step, context, kernels, window_of(layer), tuning)
        return Stage(step.output, tuple(works), _record(step, kernels, tuning, len(works)))
    pool = step.pool_side
    whole = replace(out.layout, block=(out.layout.block[0] * pool, out.layout.block[1] * pool))
    channels, ranks = np.unique(kernels.channel, return_inverse=True)
    source = context.places[step.inputs[0]]
    packed = Packed.cut(context, source, whole, window_of(layer), tuning.tile, pool, channels)
    plan = _Plan(step, context, tuning, packed, replace(kernels, channel=ranks))
    share = (_by_channel if tuning.order == "channel" else _by_filter)(plan)
    pieces = list(itertools.product(range(out.passes), packed.tiles))
    parts = divide([math.prod(tile.size) for _, tile in pieces], context.threads)
    works = []
    for (batch, tile), spans in zip(pieces, parts, strict=True):
        pack = packed.call(context, tile, batch)
        for count, calls in itertools.starmap(share, spans):
            cost = (count + len(channels) + 1) * math.prod(tile.size)
            works.append(Work((pack, *(make(tile, batch) for make in calls)), cost))
    return Stage(step.output, tuple(works), _record(step, kernels, tuning, len(packed.tiles), len(plan.read)))


def _record(step: Step, kernels: Kernels, tuning: Tuning, tiles: int, computed: int | None = None) -> dict[str, Any]:
    """What is known of a convolution's weights, and how they are computed."""
    layer = step.layer
    tensor = {"weights": list(layer.weight_shape), "strides": list(layer.stride), "dilations": list(layer.dilation)}
    sharing = max((len(part) for part in kernels.classes()), default=0)
    return {
        "convolution": {**tensor, "padding": list(layer.padding), "groups": layer.groups},
        "pattern": {
            "shapes": [" ".join(f"{y},{x}" for y, x in taps) for taps in kernels.shapes],
            "kernels": len(kernels.filter),
            "of": layer.k * layer.c // layer.groups,
            "multiplications_per_pixel": kernels.taps,
            "filters_that_agree": sharing,
            "input_channels_read": len(np.unique(kernels.channel)),
            "filters_computed": layer.k if computed is None else computed,
        },
        "storage": {"layout": STORED[tuning.order], "bytes": int(len(kernels.filter) + kernels.taps) * FLOAT_BYTES},
        "tuning": {
            "order": tuning.order,
            "tile": list(tuning.tile),
            "unroll_filters": tuning.filters,
            "tiles": tiles,
        },
    }


Share = tuple[int, Sequence[Callable[[Tile, int], Call]]]
"""A part of the filters: how many kernels they have, and the calls that compute them for a tile of a pass."""


@dataclass(frozen=True)
class _Plan:
    """What all calls of a convolution have in common."""

    step: Step
    context: Context
    tuning: Tuning
    packed: Packed
    kernels: Kernels

    @property
    def vector(self) -> int:
        return self.context.isa.lanes * FLOAT_BYTES

    @property
    def read(self) -> np.ndarray:
        """The filters whose outputs somebody reads."""
        read = self.context.read.get(self.step.output)
        return np.arange(self.kernels.filters) if read is None else np.flatnonzero(read)

    @property
    def packing(self) -> Packing:
        (dy, dx), out = self.step.layer.dilation, self.context.places[self.step.output]
        here = (self.packed.plane_bytes, dy * self.packed.row * self.vector, dx * self.vector, out.plane)
        if (residual := self.step.residual) is None:
            return Packing(*here)
        return Packing(*here, self.context.places[residual.tensor].plane, residual.first, residual.channels)

    def shapes(self, shapes: Sequence[Taps]) -> tuple[Taps, ...]:
        dy, dx = self.step.layer.dilation
        return tuple(tuple((y * dy, x * dx) for y, x in taps) for taps in shapes)

    def output(self, tile: Tile) -> Output:
        out, residual = self.context.places[self.step.output].layout, None
        if self.step.residual is not None:
            residual = (*self.step.residual.stride, self.context.places[self.step.residual.tensor].layout.block[1])
        return Output(tile.size, out.block[1], self.step.activation, residual, self.step.pool_side)

    def places(self, tile: Tile, batch: int) -> tuple[At, At]:
        """Where a tile of channel 0 is written, and where what is added to it lies."""
        out = self.context.places[self.step.output]
        pool = self.step.pool_side
        written = out.batch(batch) + (tile.row // pool * out.layout.block[1] + tile.column // pool) * self.vector
        if (residual := self.step.residual) is None:
            return written, At(Space.NUMBER, 0)
        its, (down, right) = self.context.places[residual.tensor], residual.stride
        skipped = tile.row * down * its.layout.block[1] + tile.column * right
        return written, its.batch(batch) + residual.start * its.plane + skipped * self.vector

    def filter_call(self, groups: FilterGroups, stored: tuple[At, At], span: slice, tile: Tile, batch: int) -> Call:
        """A run of filter groups, computed one after another."""
        headers, stream = stored
        stride, row = self.step.layer.stride, self.packed.row
        shapes = self.shapes(groups.shapes)
        kernel = ConvolutionKernel(self.output(tile), stride, shapes, groups.filters, row)
        first, count = headers + span.start * kernel.header_bytes, span.stop - span.start
        return Call(kernel, (SCRATCH, *self.places(tile, batch), first, count, stream))

    def channel_call(self, shapes: Sequence[Taps], stored: tuple[At, int, At, At], tile: Tile, batch: int) -> Call:
        """Filters computed together, channel after channel."""
        stride, row, vectors = self.step.layer.stride, self.packed.row, math.prod(self.tuning.tile)
        kernel = ScatterKernel(self.output(tile), stride, self.shapes(shapes), row, vectors)
        return Call(kernel, (SCRATCH, SCRATCH + self.packed.size, *self.places(tile, batch), *stored))


def _by_filter(plan: _Plan) -> Callable[[float, float], Share]:
    """Filters one after another; a share is a run of them, cut by the number of their kernels."""
    data = plan.context.data
    plan.context.need_scratch(plan.packed.size)
    groups = list(
        encode(plan.kernels, plan.context.bias(plan.step.layer), plan.packing, plan.read, plan.tuning.filters)
    )
    stored = [(data.add(part.headers), data.add(part.stream)) for part in groups]

    def share(begin: float, end: float) -> Share:
        count, calls = 0, []
        for part, places in zip(groups, stored, strict=True):
            done = np.cumsum(part.kernels + 1)
            first, behind = (int(np.searchsorted(done, done[-1] * at, "right")) for at in (begin, end))
            if first < behind:
                count += int(part.kernels[first:behind].sum()) * part.filters
                calls.append(functools.partial(plan.filter_call, part, places, slice(first, behind)))
        return count, calls

    return share


def _by_channel(plan: _Plan) -> Callable[[float, float], Share]:
    """Neighbouring filters in blocks whose sums stay in the nearest cache; a share is some blocks."""
    data, filters, threads = plan.context.data, len(plan.read), plan.context.threads
    size = math.prod(plan.tuning.tile) * plan.vector
    blocks = -(-filters // max(1, SUMS_BYTES // size))
    blocks = min(-(-blocks // threads) * threads, filters)
    plan.context.need_scratch(plan.packed.size + -(-filters // max(blocks, 1)) * size)
    made: list[tuple[int, Callable[[Tile, int], Call]]] = []
    for mine in np.array_split(plan.read, blocks) if blocks else []:
        runs = encode_runs(plan.kernels, plan.context.bias(plan.step.layer), plan.packing, mine, size)
        stored = (data.add(runs.headers), len(mine), data.add(runs.counts), data.add(runs.stream))
        made.append((runs.kernels, functools.partial(plan.channel_call, runs.shapes, stored)))

    def share(begin: float, end: float) -> Share:
        mine = made[round(begin * blocks) : round(end * blocks)]
        return sum(count for count, _ in mine), [make for _, make in mine]

    return share


def _can_convolve(step: Step, sources: Sequence[Shape]) -> bool:
    return len(step.layer.shape) in (3, 4)


OPERATORS = {Op.CONV: Operator(_can_convolve, window_layout, plan_convolution, "any")}
