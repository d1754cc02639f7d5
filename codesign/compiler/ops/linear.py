"""Fully connected layers on features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from codesign.compiler.kernels.linear import LinearKernel
from codesign.compiler.layout import FLOAT_BYTES
from codesign.compiler.ops import Operator, plain_output
from codesign.compiler.plan import Context, Shape
from codesign.compiler.program import Call, Stage, Work
from codesign.compiler.steps import Step
from workloads.graph import Op

MOST_VECTORS = 8


def _can(step: Step, sources: Sequence[Shape]) -> bool:
    return len(step.layer.shape) == 2


def _plan(step: Step, context: Context) -> Stage:
    layer, lanes = step.layer, context.isa.lanes
    source, out = context.places[step.inputs[0]], context.places[step.output]
    vectors = min(MOST_VECTORS, -(-layer.k // lanes))
    blocks = -(-layer.k // (vectors * lanes))
    filters = blocks * vectors * lanes
    weight = np.zeros((filters, layer.c), np.float32)
    weight[: layer.k] = context.weights[layer.weight]
    bias = np.zeros(filters, np.float32)
    bias[: layer.k] = context.bias(layer)
    weights = context.data.add(weight.reshape(blocks, vectors * lanes, layer.c).transpose(0, 2, 1))
    biases = context.data.add(bias)
    size = vectors * lanes * FLOAT_BYTES
    kernel = LinearKernel(vectors, step.activation)
    works = []
    for sample in range(layer.n):
        x = source.start + sample * layer.c * FLOAT_BYTES
        place = out.start + sample * layer.k * FLOAT_BYTES
        # The last block may reach into the next sample's place, which is written later by the same thread.
        count = 1 if filters != layer.k else min(context.threads, blocks)
        for part in np.array_split(np.arange(blocks), count):
            begin, end = int(part[0]), int(part[-1]) + 1
            arguments = (
                x, place + begin * size, weights + begin * size * layer.c, biases + begin * size, layer.c, end - begin,
            )  # fmt: skip
            works.append(Work((Call(kernel, arguments),), end - begin))
    if filters != layer.k:
        works = [Work(tuple(call for work in works for call in work.calls))]
    return Stage(step.output, tuple(works))


OPERATORS = {Op.LINEAR: Operator(_can, plain_output, _plan, "plain")}
