"""The verifier: a layer graph whose edges, shapes and attributes do not agree fails where it was made.

What every layer must obey is checked here: a unique name, inputs that come earlier, positive dims, a loop nest that
fills the output tensor, known activation and bits. What one op kind must obey is its row in `workloads.op_rules`.
A message is one line: the layer, what was found, what is needed. It costs about five microseconds a layer, so that
every pass can afford it.

`array_shapes` says which arrays belong beside a layer, and `verify_weights` compares a mapping of arrays with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from workloads.errors import DataError, ShapeError
from workloads.graph import PRECISIONS, Kind, Layer, Op
from workloads.op_rules import ATTRIBUTE_TYPES, MAX_DIM, RULES, Rule, check_activation, need, where

if TYPE_CHECKING:
    import numpy as np

    from workloads.graph import LayerGraph

MAX_ELEMENTS = 2**53  # counts stay exact in float64
BITS = tuple(sorted(PRECISIONS.values()))
DIMS = ("n", "k", "c", "p", "q", "r", "s", "groups", "in_h", "in_w")

_STORED = frozenset({Op.CONSTANT, Op.CONV, Op.CONV_TRANSPOSE, Op.LINEAR, Op.LSTM})  # must name a weight
_PLAIN = frozenset(set(Op) - _STORED - {Op.NORM, Op.ACTIVATION})  # must name none
_FREE_NEST = frozenset({Op.CONSTANT, Op.RESHAPE, Op.TRANSPOSE, Op.EXPAND, Op.VECTOR})  # K, P, Q are not their shape's


def verify(graph: LayerGraph) -> None:
    """Check a whole graph; `LayerGraph.verify` calls this.

    Raises:
        ShapeError: names the first layer that disagrees, what was found and what is needed.
    """
    seen: dict[str, Layer] = {}
    stored: dict[str, Layer] = {}
    for layer in graph.layers:
        _check_names(graph, layer, seen)
        sources = [seen[name] for name in layer.inputs]
        _check_dims(layer)
        rule = RULES[layer.op]
        _check_arity(layer, rule)
        _check_attributes(layer, rule)
        rule.check(layer, sources)
        _check_nest(layer)
        _check_knowledge(layer)
        _check_stored(layer, stored)
        seen[layer.name] = layer
    if not any(layer.op is Op.INPUT for layer in graph.layers):
        raise ShapeError(f"graph {graph.name!r}: has no input layer, needs at least one")
    if not graph.outputs:
        raise ShapeError(f"graph {graph.name!r}: names no output, needs at least one")
    for name in graph.outputs:
        if name not in seen:
            raise ShapeError(f"graph {graph.name!r}: output {name!r} is no layer; name one of its layers")


# ---- arrays beside the graph ----------------------------------------------------------------------------------------


def array_shapes(layer: Layer) -> dict[str, tuple[tuple[int, ...], ...]]:
    """The arrays that a layer names: key -> shapes that fit, in torch's layout."""
    found = {}
    if layer.weight:
        found[layer.weight] = _weight_shapes(layer)
    if layer.bias:
        found[layer.bias] = (_norm_shape(layer),) if layer.op is Op.NORM else ((layer.k,),)
    return found


def verify_weights(graph: LayerGraph, weights: Mapping[str, np.ndarray]) -> None:
    """Check that every array that a layer names is there and has the shape that the layer needs.

    Raises:
        DataError: an array is missing.
        ShapeError: an array has another shape.
    """
    for layer in graph.layers:
        for key, allowed in array_shapes(layer).items():
            if key not in weights:
                raise DataError(f"{where(layer)}: array {key!r} is missing; give the weights this graph was made with")
            if weights[key].shape not in allowed:
                needed = " or ".join(map(str, allowed))
                raise ShapeError(f"{where(layer)}: array {key!r} has shape {weights[key].shape}, must be {needed}")


def _weight_shapes(layer: Layer) -> tuple[tuple[int, ...], ...]:
    k, c, r, s = layer.weight_shape
    if layer.op is Op.CONSTANT:
        return (layer.shape,)
    if layer.op in (Op.LINEAR, Op.LSTM):
        return ((k, c),)
    if layer.op in (Op.CONV, Op.CONV_TRANSPOSE):
        first = (k, c) if layer.op is Op.CONV else (layer.c, k // layer.groups)
        return ((*first, r, s)[: len(layer.shape)],)
    return (_norm_shape(layer),) if layer.op is Op.NORM else ((layer.k,), (1,))


def _norm_shape(layer: Layer) -> tuple[int, ...]:
    return tuple(layer.shape[axis] for axis in layer.attributes.get("axes", (layer.channel_axis,)))


# ---- what every layer must obey -------------------------------------------------------------------------------------


def _check_names(graph: LayerGraph, layer: Layer, seen: Mapping[str, Layer]) -> None:
    if not layer.name:
        raise ShapeError(f"{where(layer)}: has no name; every layer needs one")
    if layer.name in seen:
        raise ShapeError(f"{where(layer)}: the name is used twice; names must be unique")
    for name in layer.inputs:
        if name not in seen:
            later = any(other.name == name for other in graph.layers)
            found = "does not come before it; order the layers so that it does" if later else "is no layer"
            raise ShapeError(f"{where(layer)}: input {name!r} {found}")
    if layer.fused_into and layer.fused_into not in layer.inputs:
        need(layer, "fused_into", repr(layer.fused_into), " or ".join(map(repr, layer.inputs)), "a producer of it")


def _check_dims(layer: Layer) -> None:
    need(layer, "length of stride, dilation, padding", _lengths(layer), (2, 2, 4))
    dims = (layer.n, layer.k, layer.c, layer.p, layer.q, layer.r, layer.s, layer.groups, layer.in_h, layer.in_w)
    low = min(*dims, *layer.shape, *layer.stride, *layer.dilation)
    if low < 1 or max(*dims, *layer.shape, *layer.stride, *layer.dilation, *layer.padding) > MAX_DIM:
        _raise_dim(layer)
    if min(layer.padding) < 0:
        raise ShapeError(f"{where(layer)}: padding is {layer.padding}, must be >= 0; crop with a slice")
    if not layer.shape and layer.op is not Op.CONSTANT:
        raise ShapeError(f"{where(layer)}: shape is (), needs at least the batch")
    weights = layer.k * layer.c * layer.r * layer.s // layer.groups
    if layer.output_elements > MAX_ELEMENTS or weights > MAX_ELEMENTS:
        raise ShapeError(f"{where(layer)}: has more than 2**53 elements; make it smaller")
    if not 0 <= layer.channel_axis < max(len(layer.shape), 2):
        need(layer, "channel_axis", layer.channel_axis, f"0..{len(layer.shape) - 1}", "an axis of the shape")


def _lengths(layer: Layer) -> tuple[int, int, int]:
    return len(layer.stride), len(layer.dilation), len(layer.padding)


def _raise_dim(layer: Layer) -> None:
    """Name the dim that is out of range."""
    for name in (*DIMS, "shape", "stride", "dilation", "padding"):
        value = getattr(layer, name)
        sizes = value if isinstance(value, tuple) else (value,)
        if max(sizes, default=1) > MAX_DIM or (name != "padding" and min(sizes, default=1) < 1):
            need(layer, name, value, f"1..{MAX_DIM}")


def _check_nest(layer: Layer) -> None:
    """The loop nest fills the output tensor, and K is its channels."""
    if layer.op in _FREE_NEST or len(layer.shape) < 2:
        return
    gates = 4 if layer.op is Op.LSTM else 1
    if layer.n * layer.k * layer.p * layer.q != gates * layer.output_elements:
        nest = f"{layer.n} x {layer.k} x {layer.p} x {layer.q}"
        need(layer, "n x k x p x q", nest, gates * layer.output_elements, f"the elements of shape {layer.shape}")
    if layer.op is not Op.MATMUL:
        need(layer, "k", layer.k, gates * layer.shape[layer.channel_axis], "the channels of its shape")


def _check_knowledge(layer: Layer) -> None:
    """Activation, bits, weight zeros and activation density."""
    if layer.activation:
        check_activation(layer, layer.activation)
    if layer.weight_bits not in BITS or layer.activation_bits not in BITS:
        found = (layer.weight_bits, layer.activation_bits)
        raise ShapeError(f"{where(layer)}: bits of weights and activations are {found}, must be among {BITS}")
    if layer.sparsity is not None:
        need(layer, "shape of sparsity", layer.sparsity.shape, layer.weight_shape, "the shape of its weight")
    if density := layer.activation_density:
        channels = layer.shape[layer.channel_axis] if len(layer.shape) > 1 else layer.k
        need(layer, "length of activation_density", len(density), channels, "the channels of its output")
        if not all(0 <= value <= 1 for value in density):
            raise ShapeError(f"{where(layer)}: activation_density leaves 0..1; give fractions of non-zeros")


def _check_stored(layer: Layer, stored: dict[str, Layer]) -> None:
    """Layers with weights name their array; two layers may share one if they need the same shape."""
    if layer.op in _STORED and not layer.weight:
        raise ShapeError(f"{where(layer)}: names no weight, needs the key of its array")
    if layer.op in _PLAIN and (layer.weight or layer.bias):
        raise ShapeError(f"{where(layer)}: names array {layer.weight or layer.bias!r}, but this op has none")
    if layer.weight and layer.kind is Kind.MAC:
        other = stored.setdefault(layer.weight, layer)
        if other.weight_shape != layer.weight_shape:
            shared = f"it shares {layer.weight!r} with {other.name!r}"
            need(layer, "weight_shape", layer.weight_shape, other.weight_shape, shared)


# ---- inputs and attributes -------------------------------------------------------------------------------------------


def _check_arity(layer: Layer, rule: Rule) -> None:
    count = len(layer.inputs)
    if not rule.least <= count <= rule.most:
        several = f"{rule.least} to {rule.most}" if rule.most < MAX_DIM else f"at least {rule.least}"
        need(layer, "number of inputs", count, rule.least if rule.least == rule.most else several)


def _check_attributes(layer: Layer, rule: Rule) -> None:
    given = layer.attributes
    for key in rule.needs:
        if key not in given:
            raise ShapeError(f"{where(layer)}: attribute {key!r} is missing; needs {', '.join(rule.needs)}")
    for key, value in given.items():
        if key not in rule.needs and key not in rule.allows:
            allowed = ", ".join(rule.needs + rule.allows) or "none"
            raise ShapeError(f"{where(layer)}: attribute {key!r} is unknown; allowed: {allowed}")
        form, fits = ATTRIBUTE_TYPES[key]
        if not fits(value):
            raise ShapeError(f"{where(layer)}: attribute {key!r} is {value!r}, must be {form}")
