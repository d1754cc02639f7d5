"""Sums, products, extremes, activations and concatenation of tensors of one layout."""

from __future__ import annotations

from collections.abc import Sequence

from codesign.compiler.kernels.elementwise import ElementwiseKernel
from codesign.compiler.layout import FLOAT_BYTES, Layout, best_layout
from codesign.compiler.ops import Operator
from codesign.compiler.plan import Context, Shape, as_image
from codesign.compiler.program import At, Call, Stage, Work
from codesign.compiler.steps import Step
from workloads.graph import Op


def _same(step: Step, sources: Sequence[Layout], shape: Shape, lanes: int) -> Layout:
    return sources[0]


def _shared(context: Context, name: str, chain: Sequence[tuple[ElementwiseKernel, At, At, At]]) -> Stage:
    """Kernels (each with its inputs and its output) one after another, the vectors dealt to the threads."""
    place, vector = context.places[name], context.isa.lanes * FLOAT_BYTES
    count = -(-place.layout.size(place.shape) // context.isa.lanes)
    works = []
    for i in range(context.threads):
        begin, end = (count * part // context.threads for part in (i, i + 1))
        calls = (
            Call(kernel, (*(at + begin * vector for at in addresses), end - begin)) for kernel, *addresses in chain
        )
        works.append(Work(tuple(calls)))
    return Stage(name, tuple(works))


def _plan_unary(step: Step, context: Context) -> Stage:
    """`Op.ACTIVATION`: the kind, then what the layer applies after it."""
    kinds = [step.layer.attributes["kind"]] if step.layer.op is Op.ACTIVATION else []
    source, out = (context.places[name].start for name in (step.inputs[0], step.output))
    chain = []
    for kind in [kind for kind in (*kinds, step.activation) if kind]:
        chain.append((ElementwiseKernel("copy", kind), source, source, out))
        source = out
    return _shared(context, step.output, chain)


def _can_activate(step: Step, sources: Sequence[Shape]) -> bool:
    return step.layer.attributes["kind"] != "prelu"


def _is_pair(step: Step, sources: Sequence[Shape]) -> bool:
    """Whether two tensors of one shape, which is then the output's, are joined by anything but a division."""
    shapes = {*sources, as_image(step.layer.shape)}
    return len(sources) == 2 and len(shapes) == 1 and step.layer.attributes["kind"] != "div"


def _plan_pair(step: Step, context: Context) -> Stage:
    layer = step.layer
    kind = layer.attributes["kind"]
    factor = layer.attributes.get("alpha", 1.0) * (-1.0 if kind == "sub" else 1.0)
    kernel = ElementwiseKernel("add" if kind == "sub" else kind, step.activation, factor)
    a, b, out = (context.places[name].start for name in (*step.inputs, step.output))
    return _shared(context, step.output, [(kernel, a, b, out)])


def _can_concat(step: Step, sources: Sequence[Shape]) -> bool:
    return len(step.layer.shape) == 4 and step.layer.attributes["axis"] in (1, -3)


def _tiled(step: Step, sources: Sequence[Layout], shape: Shape, lanes: int) -> Layout:
    """That of the first input, unless its channels are no whole vectors."""
    return best_layout(lanes, shape[0], *shape[2:]) if sources[0].is_plain else sources[0]


def _plan_concat(step: Step, context: Context) -> Stage:
    out = context.places[step.output]
    vector, before, works = context.isa.lanes * FLOAT_BYTES, 0, []
    for name in step.inputs:
        place = context.places[name]
        for batch in range(out.passes):
            source, count = place.batch(batch), place.shape[1] * place.plane // vector
            kernel = ElementwiseKernel("copy", step.activation)
            call = Call(kernel, (source, source, out.batch(batch) + before * out.plane, count))
            works.append(Work((call,), count))
        before += place.shape[1]
    return Stage(step.output, tuple(works))


_PAIR = Operator(_is_pair, _same, _plan_pair, "equal")
OPERATORS = {
    Op.ADD: _PAIR,
    Op.MUL: _PAIR,
    Op.ACTIVATION: Operator(_can_activate, _same, _plan_unary, "equal"),
    Op.CONCAT: Operator(_can_concat, _tiled, _plan_concat, "equal"),
}
