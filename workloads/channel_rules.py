"""Which channels each op ties together: one rule an op, in the table `RULES`.

Every position of an axis that could shrink carries an **atom**, a number. A layer that makes new channels (convolution,
linear, LSTM) makes fresh atoms; a layer that only passes channels on hands the same atoms to its output, shifted,
repeated or permuted as it does with the channels. So a tensor is described by one array of atoms an axis, its
**labels**, or None for an axis that never changes (batch, height, width).

Where two tensors must agree on an axis (an addition, a shared weight, groups of equal size) their atoms are **tied**:
both channels stay or both go. Where channels must stay whatever happens (network inputs and outputs, a softmax over
them) their atoms are **fixed**, with the reason. `workloads.channel_tables` then joins tied atoms into units.

    residual add          ties position by position
    shortcut, option A    the pad makes atoms of its own, so the narrow tensor is tied to a window of the wide one
    depthwise             the output carries the input's atoms, each k / c times
    grouped               either whole groups go (few channels in a group) or the same channels of every group
    concat, slice         labels one after the other, or a part of them; equal parts (chunk) stay equal
    reshape               `workloads.channel_reshape`: flatten, heads, shuffle
    matmul                leading axes are tied, and the axis that is summed over
    LSTM                  hidden unit h owns row h of every gate and column h of the recurrent weights
    group norm            the channels of one group go together; over all channels (layer norm, softmax, mean): fixed
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from workloads.channel_reshape import reshape
from workloads.graph import Layer, LayerGraph, Op

FIXED = 0  # the atom of positions that always stay
Axes = tuple[np.ndarray | None, ...]


@dataclass(frozen=True, eq=False)
class ArrayAxis:
    """One axis of an array beside the graph, and the atom of each of its positions: int64 (size,)."""

    layer: str
    array: str
    axis: int
    role: str
    labels: np.ndarray


@dataclass(frozen=True, eq=False)
class Made:
    """The atoms first..last-1 that a layer made; `is_named` where they may give a group its name."""

    layer: str
    first: int
    last: int
    is_named: bool


class Flow:
    """The labels of all tensors and arrays of a graph, and what is tied and fixed; filled once, by the rules.

    Attributes:
        axes: labels of the output of each layer, by name.
        atoms: how many there are, FIXED included.
        made: who made which atoms, in graph order.
        ties: (labels, labels, layer that ties them), of equal shape.
        fixes: (labels, reason); the first reason counts.
        arrays: labels of the axes of weights, biases, scales and constants.
        filters: for a layer with weights, labels of axes K and C / groups, as `WeightSparsity` has them.
        counted: for fields and attributes that are a number of channels: layer -> (name, position, labels), where
            position is the place in a tuple, or -1 for a plain number.
    """

    def __init__(self, graph: LayerGraph, keep: Sequence[str] = ()) -> None:
        self.graph = graph
        self.axes: dict[str, Axes] = {}
        self.atoms = FIXED + 1
        self.made: list[Made] = []
        self.ties: list[tuple[np.ndarray, np.ndarray, str]] = []
        self.fixes: list[tuple[np.ndarray, str]] = []
        self.arrays: list[ArrayAxis] = []
        self.filters: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
        self.counted: dict[str, list[tuple[str, int, np.ndarray]]] = {}
        self._shared: dict[tuple[str, int], np.ndarray] = {}
        for layer in graph.layers:
            self.axes[layer.name] = RULES[layer.op](self, layer)
        for name in graph.outputs:
            self.fix_all(self.axes[name], f"they leave the network (output {name!r})")
        found, self.fixes = self.fixes, []
        for name in keep:
            self.fix_all(self.axes[name], f"layer {name!r} is to be kept")
        self.fixes += found

    def sources(self, layer: Layer) -> list[Axes]:
        return [self.axes[name] for name in layer.inputs]

    def fresh(self, count: int, layer: str = "", is_named: bool = False) -> np.ndarray:
        """New atoms; of a layer, if given, whose channels then belong to one group."""
        first, self.atoms = self.atoms, self.atoms + count
        if layer:
            self.made.append(Made(layer, first, self.atoms, is_named))
        return np.arange(first, self.atoms)

    def tie(self, a: np.ndarray | None, b: np.ndarray | None, layer: str) -> None:
        """Positions of `a` and `b` (equal sizes, or broadcast) stay or go together."""
        if a is None or b is None:
            self.fix(b if a is None else a, f"{layer!r} joins them to an axis that never changes")
        elif a is not b and a.size and b.size:
            left, right = np.broadcast_arrays(a, b)
            self.ties.append((left, right, layer))

    def fix(self, labels: np.ndarray | None, reason: str) -> None:
        if labels is not None:
            self.fixes.append((labels, reason))

    def fix_all(self, axes: Axes, reason: str) -> None:
        for labels in axes:
            self.fix(labels, reason)

    def array(self, layer: Layer, key: str, axis: int, role: str, labels: np.ndarray) -> None:
        """Say what an axis of an array of the layer holds; layers that share the array are tied."""
        if not key:
            return
        shared = self._shared.setdefault((key, axis), labels)
        if shared is not labels and len(shared) == len(labels):
            self.tie(shared, labels, layer.name)
        self.arrays.append(ArrayAxis(layer.name, key, axis, role, labels))

    def count(self, layer: Layer, name: str, labels: np.ndarray | None, position: int = -1) -> None:
        """Say that a field or attribute of the layer is the number of these positions that stay."""
        if labels is not None and len(labels):
            self.counted.setdefault(layer.name, []).append((name, position, labels))


def _known(labels: np.ndarray | None, size: int) -> np.ndarray:
    """Labels also where the axis never changes."""
    return np.full(size, FIXED) if labels is None else labels


# ---- where channels are made ----------------------------------------------------------------------------------------


def _input(flow: Flow, layer: Layer) -> Axes:
    axes: list[np.ndarray | None] = [None] * len(layer.shape)
    if layer.channel_axis < len(layer.shape):
        labels = axes[layer.channel_axis] = flow.fresh(layer.shape[layer.channel_axis], layer.name)
        flow.fix(labels, f"they enter the network (input {layer.name!r})")
    return tuple(axes)


def _constant(flow: Flow, layer: Layer) -> Axes:
    """Any axis of a stored array can shrink with what it is joined to."""
    axes = tuple(flow.fresh(size, layer.name) if size > 1 else None for size in layer.shape)
    for axis, labels in enumerate(axes):
        flow.array(layer, layer.weight, axis, "constant", _known(labels, layer.shape[axis]))
    return axes


def _conv(flow: Flow, layer: Layer) -> Axes:
    """Weight (K, C / groups, ...), or (C, K / groups, ...) of a transposed one."""
    source = flow.sources(layer)[0]
    flow.fix_all((source[0], *source[2:]), f"{layer.name!r} slides over them")
    inside = _known(source[1], layer.c)
    by_group = inside.reshape(layer.groups, -1)
    is_transposed = layer.op is Op.CONV_TRANSPOSE
    width = layer.k // layer.groups
    if min(by_group.shape[1], width) < layer.groups:  # whole groups go: more units than the other way
        flow.tie(by_group[:, :1], by_group[:, 1:], layer.name)
        outside = np.repeat(by_group[:, 0], width)
        flow.array(layer, layer.weight, 0, "depthwise", inside if is_transposed else outside)
        flow.array(layer, layer.weight, 1, "depthwise", _known(None, width if is_transposed else by_group.shape[1]))
        flow.count(layer, "groups", by_group[:, 0])
        flow.filters[layer.name] = (outside, None)
    else:  # the same channels of every group go
        flow.tie(by_group[:1], by_group[1:], layer.name)
        new, read = flow.fresh(width, layer.name, is_named=True), by_group[0]
        outside = np.tile(new, layer.groups)
        flow.array(layer, layer.weight, 0, *(("input", inside) if is_transposed else ("output", outside)))
        flow.array(layer, layer.weight, 1, *(("output", new) if is_transposed else ("input", read)))
        flow.filters[layer.name] = (outside, read)
    flow.array(layer, layer.bias, 0, "bias", outside)
    flow.count(layer, "c", inside)
    return (None, outside, *[None] * (len(layer.shape) - 2))


def _linear(flow: Flow, layer: Layer) -> Axes:
    *leading, last = flow.sources(layer)[0]
    inside = _known(last, layer.c)
    outside = flow.fresh(layer.k, layer.name, is_named=True)
    flow.array(layer, layer.weight, 0, "output", outside)
    flow.array(layer, layer.weight, 1, "input", inside)
    flow.array(layer, layer.bias, 0, "bias", outside)
    flow.filters[layer.name] = (outside, inside)
    flow.count(layer, "c", inside)
    return (*leading, outside)


def _lstm(flow: Flow, layer: Layer) -> Axes:
    """Weight (4 H, I + H): the four gates of a hidden unit, and the column by which it feeds back, go with it."""
    *leading, inside = flow.sources(layer)[0]
    flow.fix_all(tuple(leading), f"{layer.name!r} runs over them")
    hidden = flow.fresh(layer.attributes["hidden"], layer.name, is_named=True)
    gates = np.tile(hidden, 4)
    columns = np.concatenate([_known(inside, layer.c - len(hidden)), hidden])
    flow.array(layer, layer.weight, 0, "output", gates)
    flow.array(layer, layer.weight, 1, "input", columns)
    flow.array(layer, layer.bias, 0, "bias", gates)
    flow.filters[layer.name] = (gates, columns)
    flow.count(layer, "k", gates)
    flow.count(layer, "c", columns)
    flow.count(layer, "hidden", hidden)
    return (None, None, hidden)


# ---- where they meet ------------------------------------------------------------------------------------------------


def _matmul(flow: Flow, layer: Layer) -> Axes:
    """(..., M, C) x (..., C, K)."""
    (*leading, rows, summed), (*other, summed_too, columns) = flow.sources(layer)
    for a, b in zip(leading, other, strict=True):
        flow.tie(a, b, layer.name)
    flow.tie(summed, summed_too, layer.name)
    flow.count(layer, "c", summed)
    return (*(b if a is None else a for a, b in zip(leading, other, strict=True)), rows, columns)


def _broadcast(flow: Flow, layer: Layer) -> Axes:
    """Axes of equal size are tied; one of size 1 that is stretched is not, and cannot go itself."""
    axes: list[np.ndarray | None] = [None] * len(layer.shape)
    is_first = [True] * len(axes)
    for name, source in zip(layer.inputs, flow.sources(layer), strict=True):
        shape = flow.graph[name].shape
        for i, labels in enumerate(source, start=len(axes) - len(shape)):
            if shape[i - len(axes)] != layer.shape[i]:
                flow.fix(labels, f"{layer.name!r} stretches them")
                continue
            if not is_first[i]:
                flow.tie(axes[i], labels, layer.name)
            axes[i], is_first[i] = labels if axes[i] is None else axes[i], False
    return tuple(axes)


def _concat(flow: Flow, layer: Layer) -> Axes:
    axis, sources = layer.attributes["axis"], flow.sources(layer)
    axes = list(sources[0])
    for source in sources[1:]:
        for i, labels in enumerate(source):
            if i != axis:
                flow.tie(axes[i], labels, layer.name)
    if any(source[axis] is not None for source in sources):
        sizes = [flow.graph[name].shape[axis] for name in layer.inputs]
        axes[axis] = np.concatenate([_known(s[axis], size) for s, size in zip(sources, sizes, strict=True)])
    return tuple(axes)


# ---- where they pass ------------------------------------------------------------------------------------------------


def _slide(flow: Flow, layer: Layer) -> Axes:
    """Pooling and resizing: over height and width only."""
    source = flow.sources(layer)[0]
    flow.fix_all(source[2:], f"{layer.name!r} slides over them")
    return (*source[:2], *[None] * (len(source) - 2))


def _mean(flow: Flow, layer: Layer) -> Axes:
    source, averaged = flow.sources(layer)[0], layer.attributes["axes"]
    flow.fix_all(tuple(source[axis] for axis in averaged), f"{layer.name!r} averages over them")
    kept = [None if axis in averaged else labels for axis, labels in enumerate(source)]
    if not layer.attributes["keepdim"]:
        kept = [labels for axis, labels in enumerate(source) if axis not in averaged]
    return tuple(kept)


def _activation(flow: Flow, layer: Layer) -> Axes:
    source = flow.sources(layer)[0]
    if layer.attributes["kind"] == "prelu" and len(layer.shape) > layer.channel_axis:
        flow.array(layer, layer.weight, 0, "slope", _known(source[layer.channel_axis], layer.k))
    return source


def _softmax(flow: Flow, layer: Layer) -> Axes:
    source = flow.sources(layer)[0]
    flow.fix(source[layer.attributes["axis"]], f"{layer.name!r} is a softmax over them")
    return source


def _norm(flow: Flow, layer: Layer) -> Axes:
    source, kind = flow.sources(layer)[0], layer.attributes["kind"]
    groups = layer.attributes.get("groups", 0)
    if kind == "layer" or groups == 1:
        over = layer.attributes["axes"] if kind == "layer" else (layer.channel_axis,)
        flow.fix_all(tuple(source[axis] for axis in over), f"{layer.name!r} normalises over them")
        return source
    labels = source[layer.channel_axis]
    if kind == "group" and labels is not None:
        by_group = labels.reshape(groups, -1)
        flow.tie(by_group[:, :1], by_group[:, 1:], layer.name)
        flow.count(layer, "groups", by_group[:, 0])
    flow.array(layer, layer.weight, 0, "norm", _known(labels, layer.k))
    flow.array(layer, layer.bias, 0, "bias", _known(labels, layer.k))
    return source


def _slice(flow: Flow, layer: Layer) -> Axes:
    source, shape = flow.sources(layer)[0], flow.graph[layer.inputs[0]].shape
    axes = list(source)
    rows = zip(source, layer.shape, shape, layer.attributes["starts"], layer.attributes["steps"], strict=True)
    for axis, (labels, size, whole, start, step) in enumerate(rows):
        if labels is None or size == whole:
            continue
        axes[axis] = labels[start : start + (size - 1) * step + 1 : step]
        flow.count(layer, "starts", labels[:start], axis)
        if step == 1:
            _tie_equal_parts(flow, layer, axis, labels)
        else:
            flow.fix(labels, f"{layer.name!r} takes one in {step} of them")
    return tuple(axes)


def _tie_equal_parts(flow: Flow, layer: Layer, axis: int, labels: np.ndarray) -> None:
    """Slices that cut an axis into equal parts are one `chunk`, which can only make equal parts again."""
    source = layer.inputs[0]
    siblings = [flow.graph[name] for name in flow.graph.consumers[source]]
    parts = [x for x in siblings if x.op is Op.SLICE and x.attributes["steps"][axis] == 1]
    size = layer.shape[axis]
    starts = sorted({x.attributes["starts"][axis] for x in parts if x.shape[axis] == size})
    if layer is parts[0] and size * len(starts) == len(labels) and starts == list(range(0, len(labels), size)):
        by_part = labels.reshape(len(starts), size)
        flow.tie(by_part[:1], by_part[1:], layer.name)


def _pad(flow: Flow, layer: Layer) -> Axes:
    """Channels that are added hold nothing, so they go as soon as the channel that they are joined to goes."""
    axes = list(flow.sources(layer)[0])
    rows = zip(layer.attributes["before"], layer.attributes["after"], strict=True)
    for axis, (before, after) in enumerate(rows):
        labels = axes[axis]
        if labels is None or before + after == 0:
            continue
        if layer.attributes["mode"] != "constant":
            flow.fix(labels, f"{layer.name!r} pads them with copies")
        front, back = flow.fresh(before), flow.fresh(after)
        flow.count(layer, "before", front, axis)
        flow.count(layer, "after", back, axis)
        axes[axis] = np.concatenate([front, labels, back])
    return tuple(axes)


def _expand(flow: Flow, layer: Layer) -> Axes:
    source, shape = flow.sources(layer)[0], flow.graph[layer.inputs[0]].shape
    axes: list[np.ndarray | None] = [None] * len(layer.shape)
    for i, labels in enumerate(source, start=len(axes) - len(shape)):
        if shape[i - len(axes)] == layer.shape[i]:
            axes[i] = labels
        else:
            flow.fix(labels, f"{layer.name!r} stretches them")
    return tuple(axes)


def _transpose(flow: Flow, layer: Layer) -> Axes:
    source = flow.sources(layer)[0]
    return tuple(source[axis] for axis in layer.attributes["permutation"])


def _pixel_shuffle(flow: Flow, layer: Layer) -> Axes:
    """Every f^2 successive channels become the pixels of one, or the inverse."""
    source, pixels = flow.sources(layer)[0], layer.attributes["factor"] ** 2
    flow.fix_all(source[2:], f"{layer.name!r} rearranges them")
    labels = source[1]
    if labels is not None and layer.attributes["inverse"]:
        labels = np.repeat(labels, pixels)
    elif labels is not None:
        together = labels.reshape(-1, pixels)
        flow.tie(together[:, :1], together[:, 1:], layer.name)
        labels = together[:, 0]
    return (source[0], labels, None, None)


def _vector(flow: Flow, layer: Layer) -> Axes:
    for source in flow.sources(layer):
        flow.fix_all(source, f"{layer.name!r} ({layer.attributes['target']}) has no channel rule")
    return (None,) * len(layer.shape)


RULES: Mapping[Op, Callable[[Flow, Layer], Axes]] = {
    Op.INPUT: _input,
    Op.CONSTANT: _constant,
    Op.CONV: _conv,
    Op.CONV_TRANSPOSE: _conv,
    Op.LINEAR: _linear,
    Op.MATMUL: _matmul,
    Op.LSTM: _lstm,
    Op.MAX_POOL: _slide,
    Op.AVG_POOL: _slide,
    Op.MEAN: _mean,
    Op.ADD: _broadcast,
    Op.MUL: _broadcast,
    Op.ACTIVATION: _activation,
    Op.SOFTMAX: _softmax,
    Op.NORM: _norm,
    Op.CONCAT: _concat,
    Op.SLICE: _slice,
    Op.PAD: _pad,
    Op.EXPAND: _expand,
    Op.TRANSPOSE: _transpose,
    Op.PIXEL_SHUFFLE: _pixel_shuffle,
    Op.UPSAMPLE: _slide,
    Op.RESHAPE: reshape,
    Op.VECTOR: _vector,
}
