"""Softmax over the last axis."""

from __future__ import annotations

import math
from collections.abc import Sequence

from codesign.compiler.kernels.softmax import SoftmaxKernel
from codesign.compiler.ops import Operator, plain_output
from codesign.compiler.plan import Context, Shape
from codesign.compiler.program import Call, Stage, Work
from codesign.compiler.steps import Step
from workloads.graph import Op


def _can(step: Step, sources: Sequence[Shape]) -> bool:
    layer = step.layer
    return layer.attributes["axis"] in (-1, len(layer.shape) - 1)


def _plan(step: Step, context: Context) -> Stage:
    layer = step.layer
    source, out = context.places[step.inputs[0]].start, context.places[step.output].start
    kernel = SoftmaxKernel(layer.attributes["log"], step.activation)
    call = Call(kernel, (source, out, math.prod(layer.shape[:-1]), layer.shape[-1]))
    return Stage(step.output, (Work((call,)),))


OPERATORS = {Op.SOFTMAX: Operator(_can, plain_output, _plan, "plain")}
