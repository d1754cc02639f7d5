"""Planning a convolution with filters in lanes (`kernels.lanes`): small maps, filters that keep the same kernels.

The map of one sample is packed as plain numbers with its padding; each group of filters runs over all tiles while its
weights are in the second cache; at the end one gather brings the outputs, which lie pixel by pixel, into their layout,
and what is added is added.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np

from codesign.compiler.kernels.elementwise import ElementwiseKernel
from codesign.compiler.kernels.lanes import LanesKernel
from codesign.compiler.kernels.pack import GatherKernel
from codesign.compiler.layout import FLOAT_BYTES, offsets32, plain
from codesign.compiler.packed import SCRATCH
from codesign.compiler.plan import Context, Tuning
from codesign.compiler.program import At, Call, Work
from codesign.compiler.steps import Residual, Step
from codesign.compiler.storage import Kernels, Packing, encode_group
from codesign.compiler.tiles import Tile, Window, cut, gather_table

MOST_PIXELS = 49
"""Of a map: larger ones fill lanes with their blocks."""
MOST_EMPTY = 0.25
"""Share of lanes that may be left without a filter."""


def lanes_tuning(step: Step, context: Context, kernels: Kernels) -> Tuning | None:
    """How a step is computed with filters in lanes; None where it cannot be, or lanes would stay empty."""
    layer, out = step.layer, context.places[step.output]
    if step.pool is not None or out.layout.samples > 1 or layer.p * layer.q > MOST_PIXELS:
        return None
    if max(map(len, kernels.shapes), default=1) == 1:  # too little work a kernel
        return None
    if step.residual is not None and not _is_whole(step, context):
        return None
    found = []
    for vectors, rows, columns in itertools.product((1, 2, 4), range(1, layer.p + 1), range(1, layer.q + 1)):
        size = vectors * context.isa.lanes
        filled = sum(-(-len(part) // size) for part in kernels.classes()) * size
        fits = vectors * (rows * columns + 1) < context.isa.registers
        if fits and filled * (1 - MOST_EMPTY) <= kernels.filters:
            found.append((_cost(vectors, rows * columns), -columns, Tuning((rows, columns), vectors, order="lanes")))
    return min(found, key=lambda item: item[:2])[2] if found else None


def _cost(vectors: int, pixels: int) -> float:
    """Cycles a multiplication: two of them or two loads at once, and weights that come from the second cache."""
    loads = (vectors + pixels) / (vectors * pixels)
    return max(0.5, loads / 2, 4 / (vectors * pixels)) + 0.5 / pixels


def _is_whole(step: Step, context: Context) -> bool:
    """Whether what is added is all of a tensor of the output's channels and layout."""
    assert step.residual is not None
    residual = step.residual
    its, out = context.places[residual.tensor], context.places[step.output]
    is_all = residual == Residual(residual.tensor, channels=out.shape[1])
    return is_all and (its.shape, its.layout) == (out.shape, out.layout)


def plan_lanes(step: Step, context: Context, kernels: Kernels, window: Window, tuning: Tuning) -> list[Work]:
    """The calls of every sample; a dense layer's filters are dealt to the threads."""
    layer, lanes = step.layer, context.isa.lanes
    size = tuning.filters * lanes
    members = np.concatenate([_padded(part, size) for part in kernels.classes()])
    is_one_class = len(kernels.classes()) == 1
    parts = min(context.threads, len(members)) if is_one_class else 1
    channels, ranks = np.unique(kernels.channel, return_inverse=True)
    rows, row = window.footprint((layer.p, layer.q))
    plane = -(-rows * row // lanes) * lanes * FLOAT_BYTES
    (dy, dx), (p, q) = layer.dilation, (layer.p, layer.q)
    packing = Packing(plane, dy * row * FLOAT_BYTES, dx * FLOAT_BYTES, 0)
    groups = encode_group(replace(kernels, channel=ranks), context.bias(layer), packing, members)
    headers, stream = context.data.add(groups.headers), context.data.add(groups.stream)
    shapes = tuple(tuple((y * dy, x * dx) for y, x in taps) for taps in groups.shapes)

    source, out = context.places[step.inputs[0]], context.places[step.output]
    planes = context.data.add(offsets32(channels * source.plane))
    each = p * q * size * FLOAT_BYTES  # of a group's sums
    sums = SCRATCH + plane * len(channels)
    staged = sums + each * len(members)
    context.need_scratch(staged.offset + out.plane * layer.k)
    works = []
    for n in range(layer.n):
        table = np.full(plane // FLOAT_BYTES, -1, np.int32)
        reads = np.array(window.reads((p, q)))
        whole = Tile(0, 0, (p, q))
        table[reads[:, 0] * row + reads[:, 1]] = gather_table(
            source.layout, plain(p, q), source.shape, window, whole, n
        )[:, 0]
        where = (len(channels), planes, plane, context.data.add(table), table.size // lanes)
        pack = Call(GatherKernel(), (source.start, SCRATCH, *where))
        for dealt in np.array_split(np.arange(len(members)), parts):
            calls = [pack]
            for g in dealt:
                for tile in cut((p, q), tuning.tile):
                    activation = step.activation if step.residual is None else ""
                    kernel = LanesKernel(tile.size, layer.stride, shapes, tuning.filters, row, q, activation)
                    place = sums + int(g) * each + (tile.row * q + tile.column) * size * FLOAT_BYTES
                    header = headers + int(g) * groups.headers.shape[1] * FLOAT_BYTES
                    down, right = layer.stride
                    read = SCRATCH + (tile.row * down * row + tile.column * right) * FLOAT_BYTES
                    calls.append(Call(kernel, (read, place, header, stream)))
            filters = np.unique(members[dealt])
            calls += _spread(step, context, members, filters, n, sums, staged, each)
            works.append(Work(tuple(calls), float(groups.kernels[dealt].sum() + 1)))
    return works


def _padded(part: np.ndarray, size: int) -> np.ndarray:
    """Filters in groups (n, size), the last one filled up with one of its own."""
    return np.append(part, np.repeat(part[-1:], -len(part) % size)).reshape(-1, size)


def _spread(
    step: Step, context: Context, members: np.ndarray, filters: np.ndarray, n: int, sums: At, staged: At, each: int
) -> list[Call]:
    """Sums, pixel by pixel with a group's filters side by side, into the output's layout; then the residual."""
    layer, out = step.layer, context.places[step.output]
    size, lanes = members.shape[1], context.isa.lanes
    first = np.full(layer.k, -1)
    order = np.arange(members.size)[::-1]
    first[members.ravel()[order]] = order  # a filter that fills up its group counts where it came first
    planes = first // size * each + first % size * FLOAT_BYTES
    pixels = gather_table(
        plain(layer.p, layer.q), out.layout, (1, 1, layer.p, layer.q), Window((1, 1)), Tile(0, 0, out.layout.block), 0
    )
    table = offsets32(np.where(pixels >= 0, pixels.astype(np.int64) * size, -1))
    begin = int(filters[0])
    assert len(filters) == int(filters[-1]) + 1 - begin, "filters of a thread are neighbours"
    target = out.batch(n) + begin * out.plane
    to = target if step.residual is None else staged
    constants = (
        context.data.add(offsets32(planes[filters])),
        out.plane,
        context.data.add(table),
        table.size // lanes,
    )
    calls = [Call(GatherKernel(), (sums, to, len(filters), *constants))]
    if step.residual is not None:
        its = context.places[step.residual.tensor]
        added = its.batch(n) + begin * its.plane
        vectors = len(filters) * out.plane // (lanes * FLOAT_BYTES)
        calls.append(Call(ElementwiseKernel("add", step.activation), (staged, added, target, vectors)))
    return calls
