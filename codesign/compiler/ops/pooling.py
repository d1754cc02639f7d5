"""Pooling over windows, and the mean of whole maps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from codesign.compiler.kernels.pooling import GlobalMeanKernel, PoolKernel
from codesign.compiler.layout import FLOAT_BYTES, Layout
from codesign.compiler.ops import Operator, plain_output
from codesign.compiler.ops.convolution import window_layout, window_of
from codesign.compiler.packed import SCRATCH, Packed
from codesign.compiler.plan import Context, Shape
from codesign.compiler.program import At, Call, Space, Stage, Work
from codesign.compiler.steps import Step
from workloads.graph import Op

MAX_READS = 1024
"""Loads of a tile in straight-line code."""


def _can_pool(step: Step, sources: Sequence[Shape]) -> bool:
    return len(step.layer.shape) in (3, 4) and step.layer.r * step.layer.s <= MAX_READS


def _plan_pool(step: Step, context: Context) -> Stage:
    layer = step.layer
    source, out = context.places[step.inputs[0]], context.places[step.output]
    window, is_mean = window_of(layer), layer.op is Op.AVG_POOL
    taps = tuple(itertools.product(range(0, layer.r * layer.dilation[0], layer.dilation[0]),
                                   range(0, layer.s * layer.dilation[1], layer.dilation[1])))  # fmt: skip
    side = max(1, math.isqrt(min(16, MAX_READS // len(taps))))
    packed = Packed.cut(context, source, out.layout, window, (side, side))
    vector = context.isa.lanes * FLOAT_BYTES
    context.need_scratch(packed.size)
    factors = _factors(step, source.shape, out.shape) if is_mean else None
    works = []
    for batch, tile in itertools.product(range(out.passes), packed.tiles):
        fill = 0.0 if is_mean else -math.inf
        pack = packed.call(context, tile, batch, fill)
        table = At(Space.NUMBER, 0)
        if factors is not None:
            rows = slice(tile.row, tile.row + tile.size[0]), slice(tile.column, tile.column + tile.size[1])
            table = context.data.add(_by_lane(out.layout, factors)[rows])
        kernel = PoolKernel(tile.size, taps, layer.stride, packed.row, out.layout.block[1], is_mean, step.activation)
        written = out.batch(batch) + (tile.row * out.layout.block[1] + tile.column) * vector
        arguments = (SCRATCH, written, out.shape[1], packed.plane_bytes, out.plane, table)
        works.append(Work((pack, Call(kernel, arguments)), math.prod(tile.size)))
    return Stage(step.output, tuple(works))


def _factors(step: Step, source: Shape, out: Shape) -> np.ndarray:
    """What each output's sum is multiplied with, (p, q): one over the divisor of torch's average pooling."""
    layer, counts = step.layer, []
    if divisor := layer.attributes["divisor"]:
        return np.full(out[2:], 1 / divisor, np.float32)
    is_padded = layer.attributes["count_include_pad"]
    sides = ((layer.r, layer.padding[:2]), (layer.s, layer.padding[2:]))
    for axis, (taps, (before, after)) in enumerate(sides):
        start = np.arange(out[2 + axis]) * layer.stride[axis] - before
        low, high = (-before, source[2 + axis] + after) if is_padded else (0, source[2 + axis])
        counts.append(np.minimum(start + taps, high) - np.maximum(start, low))
    return (1 / np.outer(*counts)).astype(np.float32)


def _by_lane(layout: Layout, values: np.ndarray) -> np.ndarray:
    """A map's values where its pixels lie: (rows, columns, lanes) of the block, the same for all samples."""
    image = np.broadcast_to(values, (layout.samples, 1, *values.shape))
    return layout.pack(image).reshape(*layout.block, layout.lanes)


def _can_average(step: Step, sources: Sequence[Shape]) -> bool:
    return len(step.layer.shape) in (2, 4) and tuple(step.layer.attributes["axes"]) in ((2, 3), (-2, -1))


def _plan_average(step: Step, context: Context) -> Stage:
    source, out = context.places[step.inputs[0]], context.places[step.output]
    layout, (n, channels, height, width) = source.layout, source.shape
    blocks = math.prod(layout.grid)
    masks = context.data.add(_by_lane(layout, np.ones((height, width), np.float32)))
    calls = []
    for batch in range(source.passes):
        kernel = GlobalMeanKernel(
            min(layout.samples, n - batch * layout.samples), blocks, height * width, step.activation
        )
        written = out.start + batch * layout.samples * channels * FLOAT_BYTES
        vectors, size = math.prod(layout.block), channels * FLOAT_BYTES
        arguments = (source.batch(batch), written, channels, source.plane, vectors, masks, size)
        calls.append(Call(kernel, arguments))
    return Stage(step.output, (Work(tuple(calls)),))


_POOL = Operator(_can_pool, window_layout, _plan_pool, "any")
OPERATORS = {
    Op.MAX_POOL: _POOL,
    Op.AVG_POOL: _POOL,
    Op.MEAN: Operator(_can_average, plain_output, _plan_average, "tiled"),
}
