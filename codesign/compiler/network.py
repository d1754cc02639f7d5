"""A layer graph with its weights becomes stages of kernel calls: passes, layouts, memory, then every step's plan.

The order of decisions: what is fused (`steps`); which layout each tensor has (an operator's own rule, its input's where
lanes stay full; where a reader needs another one, a move is put in); where each tensor lies (`arena`; a residual's
memory is written over in place where nobody reads it later); and then, with all addresses known, each step is planned
by its operator (`ops`). A step that no operator does runs in torch, between the native parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from codesign.compiler.arena import Life, lives, offsets
from codesign.compiler.isa import Isa
from codesign.compiler.layout import FLOAT_BYTES, Layout, best_layout
from codesign.compiler.moves import plan_move
from codesign.compiler.ops import Operator, operators
from codesign.compiler.plan import Context, Place, Shape, Tuning, as_image, plain_layout
from codesign.compiler.program import At, Data, Space, Stage
from codesign.compiler.records import layout_text
from codesign.compiler.steps import Residual, Step, steps_of, without_pool
from workloads.errors import LoweringError, ShapeError
from workloads.graph import Layer, LayerGraph, Op
from workloads.reference import can_run
from workloads.verify import verify_weights

SLACK = 1024
"""Bytes behind a tensor that the last vector of a kernel may reach into."""


@dataclass(frozen=True)
class Move:
    """A tensor copied into another layout; of a residual its channels and pixels that are added alone."""

    source: str
    output: str
    stride: tuple[int, int] = (1, 1)
    start: int = 0


@dataclass(frozen=True)
class InTorch:
    """A layer that the interpreter runs."""

    layer: Layer


@dataclass(frozen=True)
class Network:
    """All that a compiled graph is, but for machine code and memory.

    Attributes:
        parts: stages in running order, and layers that run in torch.
        arena, scratch: bytes that a context needs, the second for each thread.
        data: uint8, constants.
        places: of all tensors.
        naive: bytes of all tensors beside one another, without reuse.
        weights: arrays of constants and of layers that run in torch.
    """

    graph: LayerGraph
    isa: Isa
    threads: int
    parts: tuple[Stage | InTorch, ...]
    arena: int
    scratch: int
    data: np.ndarray
    places: Mapping[str, Place]
    naive: int
    weights: Mapping[str, np.ndarray]


def build(
    graph: LayerGraph,
    weights: Mapping[str, np.ndarray],
    isa: Isa,
    threads: int = 1,
    tunings: Mapping[str, Tuning] | None = None,
) -> Network:
    """Decide everything about a graph.

    Args:
        tunings: of convolutions, by the name of what they write (`Stage.name`); estimated where there is none.

    Raises:
        DataError, ShapeError: the weights do not fit the graph.
        LoweringError: a layer can run neither natively nor in torch.
    """
    if lost := [layer for layer in graph.layers if not can_run(layer)]:
        target = lost[0].attributes["target"]
        raise LoweringError(
            f"layer {lost[0].name!r}: {target} is not compiled, and torch runs such operators only where they give one "
            "float32 tensor from float32 tensors, numbers and text; write it with others"
        )
    order, places, arena, naive = arrange(graph, weights, isa)
    read = channels_read(order, weights, graph.outputs)
    context = Context(isa, weights, places, Data(), threads, tunings or {}, read)
    parts = [_plan(item, context) for item in order]
    kept = tuple(part for part in parts if isinstance(part, InTorch) or part.works)
    outside = [part.layer for part in kept if isinstance(part, InTorch)]
    outside += [layer for layer in graph.layers if layer.op is Op.CONSTANT]
    needed = {key: weights[key] for layer in outside for key in (layer.weight, layer.bias) if key}
    return Network(graph, isa, threads, kept, arena, context.scratch, context.data.array(), places, naive, needed)


def arrange(
    graph: LayerGraph, weights: Mapping[str, np.ndarray], isa: Isa
) -> tuple[list[Step | Move | InTorch], dict[str, Place], int, int]:
    """Steps and moves in running order, places of tensors, bytes of the arena, bytes without reuse."""
    verify_weights(graph, weights)
    layouts = _Layouts(graph, isa.lanes)
    for step in steps_of(graph):
        layouts.add(step)
    for name in graph.outputs:
        layouts.plain(name)
    return (layouts.order, *_memory(graph, layouts))


def channels_read(
    order: Sequence[Step | Move | InTorch], weights: Mapping[str, np.ndarray], outputs: Sequence[str]
) -> dict[str, np.ndarray]:
    """Which channels of each tensor that only convolutions read have a weight somewhere, bool; others are absent."""
    found: dict[str, np.ndarray] = {}
    whole = set(outputs)
    for item in order:
        if not isinstance(item, Step) or item.layer.op is not Op.CONV:
            whole |= set(read_by(item))
            continue
        whole |= {item.residual.tensor} if item.residual is not None else set()
        layer = item.layer
        k, c, r, s = layer.weight_shape
        used = (weights[layer.weight].reshape(layer.groups, k // layer.groups, c, r * s) != 0).any(axis=(1, 3)).ravel()
        name = item.inputs[0]
        found[name] = found[name] | used if name in found else used
    return {name: used for name, used in found.items() if name not in whole}


class _Layouts:
    """The layout of every tensor, and steps and moves in running order."""

    def __init__(self, graph: LayerGraph, lanes: int) -> None:
        self.graph, self.lanes = graph, lanes
        self.shapes: dict[str, Shape] = {layer.name: as_image(layer.shape) for layer in graph.layers}
        self.layouts: dict[str, Layout] = {}
        self.order: list[Step | Move | InTorch] = []
        for layer in graph.layers:
            if layer.op in (Op.INPUT, Op.CONSTANT):
                self.layouts[layer.name] = plain_layout(self.shapes[layer.name])

    def add(self, step: Step) -> None:
        operator = operators().get(step.layer.op)
        if operator is None or not operator.can(step, [self.shapes[name] for name in step.inputs]):
            self._interpret(step)
            return
        sources = [self.layouts[name] for name in step.inputs]
        layout = operator.layout(step, sources, self.shapes[step.output], self.lanes)
        if step.pool is not None and not _keeps_lanes(step, sources[0], layout):
            for part in without_pool(step):  # or every tile of the convolution would gather its input
                self.add(part)
            return
        self.layouts[step.output] = layout
        inputs = tuple(self._readable(name, operator, layout) for name in step.inputs)
        if step.residual is not None:
            step = replace(step, residual=self._residual(step.residual, layout))
        self.order.append(replace(step, inputs=inputs))

    def plain(self, name: str) -> str:
        return self._moved(name, plain_layout(self.shapes[name]))

    def _readable(self, name: str, operator: Operator, layout: Layout) -> str:
        own, shape = self.layouts[name], self.shapes[name]
        if operator.reads == "plain":
            return self.plain(name)
        if operator.reads == "tiled":
            return self._moved(name, best_layout(self.lanes, shape[0], *shape[2:]) if own.is_plain else own)
        return self._moved(name, layout) if operator.reads == "equal" else name

    def _moved(self, name: str, layout: Layout) -> str:
        """The tensor in a layout: itself, or a copy that is made once."""
        if self.layouts[name] == layout:
            return name
        blocks = "x".join(map(str, (layout.samples, *layout.grid, *layout.block)))
        output = f"{name}@{'plain' if layout.is_plain else blocks}"
        if output not in self.layouts:
            self.order.append(Move(name, output))
            self.layouts[output], self.shapes[output] = layout, self.shapes[name]
        return output

    def _residual(self, residual: Residual, out: Layout) -> Residual:
        """Where blocks differ, what is added is copied into the output's first."""
        source = self.layouts[residual.tensor]
        block = out.block[0] * residual.stride[0], out.block[1] * residual.stride[1]
        if replace(out, block=block) == source:
            return residual
        output = f"{residual.tensor}@residual{len(self.order)}"
        self.order.append(Move(residual.tensor, output, residual.stride, residual.start))
        n, _, height, width = self.shapes[residual.tensor]
        sides = (-(-height // residual.stride[0]), -(-width // residual.stride[1]))
        self.layouts[output], self.shapes[output] = out, (n, residual.channels, *sides)
        return replace(residual, tensor=output, stride=(1, 1), start=0)

    def _interpret(self, step: Step) -> None:
        layer = step.layer
        self.layouts[layer.name] = plain_layout(self.shapes[layer.name])
        self.order.append(InTorch(replace(layer, inputs=tuple(self.plain(name) for name in layer.inputs))))


def _keeps_lanes(step: Step, source: Layout, out: Layout) -> bool:
    """Whether a convolution that pools reads and writes the same blocks of the map."""
    down, right = step.layer.stride
    block = (2 * down * out.block[0], 2 * right * out.block[1])
    return source.is_plain or source == replace(out, block=block)


# ---- memory ---------------------------------------------------------------------------------------------------------


def _memory(graph: LayerGraph, layouts: _Layouts) -> tuple[dict[str, Place], int, int]:
    """Places of all tensors, bytes of the arena, and bytes without any reuse."""
    root = {name: name for name in layouts.layouts}
    sizes = {name: layout.size(layouts.shapes[name]) * FLOAT_BYTES + SLACK for name, layout in layouts.layouts.items()}
    naive = sum(sizes.values())
    writes, reads = [], []
    for item in layouts.order:
        if isinstance(item, Step) and item.layer.op is Op.RESHAPE:
            root[item.output] = root[item.inputs[0]]
        writes.append(root[written_by(item)])
        reads.append([root[name] for name in read_by(item)])
    kept = [root[layouts.plain(name)] for name in graph.outputs]
    found = lives(writes, reads, sizes, [*kept, *(layer.name for layer in graph.layers if layer.op is Op.CONSTANT)])
    for item, output in zip(layouts.order, writes, strict=True):
        if isinstance(item, Step) and item.residual is not None:
            _write_over(item, item.residual, output, layouts, root, found)
    places_of, size = offsets(found)
    places = {
        name: Place(layouts.shapes[name], layout, At(Space.ARENA, places_of[_resolve(root, name)]))
        for name, layout in layouts.layouts.items()
        if _resolve(root, name) in places_of
    }
    return places, size, naive


def _resolve(root: Mapping[str, str], name: str) -> str:
    while root[name] != name:
        name = root[name]
    return name


def _write_over(
    step: Step, residual: Residual, output: str, layouts: _Layouts, root: dict[str, str], found: dict[str, Life]
) -> None:
    """Let a convolution write where its residual lay, if the two agree and nobody reads that later.

    Every output is written by the call that has just read the same place of the residual.
    """
    source = _resolve(root, residual.tensor)
    out = _resolve(root, output)
    mine, its = found[out], found[source]
    is_whole = residual.stride == (1, 1) and residual.start == residual.first == 0
    same = layouts.layouts[residual.tensor] == layouts.layouts[step.output]
    same = same and layouts.shapes[residual.tensor] == layouts.shapes[step.output]
    if is_whole and same and its.last == mine.first and source not in {_resolve(root, name) for name in step.inputs}:
        root[out] = source
        found[source] = Life(its.first, mine.last, max(its.size, mine.size))
        del found[out]


def written_by(item: Step | Move | InTorch) -> str:
    return item.layer.name if isinstance(item, InTorch) else item.output


def read_by(item: Step | Move | InTorch) -> Sequence[str]:
    if isinstance(item, Move):
        return [item.source]
    if isinstance(item, InTorch):
        return item.layer.inputs
    return [*item.inputs, *([item.residual.tensor] if item.residual else [])]


def _plan(item: Step | Move | InTorch, context: Context) -> Stage | InTorch:
    if isinstance(item, InTorch):
        return item
    try:
        return _plan_move(item, context) if isinstance(item, Move) else _plan_step(item, context)
    except ShapeError as error:
        raise ShapeError(f"{item.output!r}: {error}") from error


def _plan_move(item: Move, context: Context) -> Stage:
    source, out = context.places[item.source], context.places[item.output]
    stage = plan_move(item.output, context, source, out, item.stride, item.start)
    return replace(stage, record={"op": "move", "layout": {"output": layout_text(out.layout)}})


def _plan_step(item: Step, context: Context) -> Stage:
    stage = operators()[item.layer.op].plan(item, context)
    return replace(stage, record={**_record(item, context), **stage.record})


def _record(step: Step, context: Context) -> dict[str, Any]:
    layer = step.layer
    found: dict[str, Any] = {
        "op": str(layer.op),
        "info": {"input": list(context.places[step.inputs[0]].shape), "output": list(layer.shape)},
        "layout": {
            "input": layout_text(context.places[step.inputs[0]].layout),
            "output": layout_text(context.places[step.output].layout),
        },
    }
    if step.activation:
        found["info"]["activation"] = step.activation
    if step.absorbed:
        found["does"] = list(step.absorbed)
    return found
