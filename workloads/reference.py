"""The graph executed plainly: one PyTorch call a layer, no fusion, equal to the module that was lowered.

It keeps the graph honest (tests hold it within 1e-5 of every model of the zoo) and is what compiled code is compared
with. Everything that a layer needs to run is in its fields, its arrays and these attributes:

    input              dtype where it is no floating-point number: torch's name of it, such as int64
    constant           none; the weight key holds the array
    conv               none; 1-D: shape (n, k, p), in_w = q = s = 1; weight (K, C / groups, R, S) or (K, C / groups, R)
    conv_transpose     output_padding (h, w); weight (C, K / groups, R, S)
    linear             none; weight (K, C)
    matmul             scale, 1 by default; inputs (..., M, C) and (..., C, K)
    lstm               hidden, reverse, batch_first; weight (4 H, I + H) = [input | hidden], bias the sum of both,
                       gates in the order input, forget, cell, output; starts from zeros
    max_pool           ceil
    avg_pool           ceil, count_include_pad, divisor (0: the size of the window)
    mean               axes, keepdim
    add                kind "add", "sub", "maximum" or "minimum" (what joins two tensors and is priced as a sum); alpha,
                       the factor of the second operand; scalar, the second operand where there is one input; reverse:
                       the scalar is the first operand
    mul                kind "mul" or "div"; scalar, reverse as for add
    activation         kind: a text of `workloads.activations`, or "prelu" with its slopes as weight
    softmax            axis, log
    norm               kind "affine" (weight scales, bias shifts each channel), "layer" (axes), "group" (groups) or
                       "instance"; eps
    concat             axis
    slice              starts, steps, for every axis; the size is the shape
    pad                before, after, for every axis; mode "constant" (value), "reflect", "replicate" or "circular"
    transpose          permutation
    pixel_shuffle      factor, inverse
    upsample           mode "nearest" or "bilinear"; align_corners
    expand, reshape    none
    vector             target; stands for an operator that is priced but not modelled. With arguments, by name as torch
                       takes them and inputs as {"input": place}, torch runs it; without it cannot run

After its operation a layer applies its `activation`. Arithmetic is float32, or float64 when the first input is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from workloads.activations import parse_activation
from workloads.errors import LoweringError, ShapeError, first_line
from workloads.graph import Layer, LayerGraph, Op
from workloads.verify import verify_weights


def run(
    graph: LayerGraph, weights: Mapping[str, np.ndarray], *inputs: ArrayLike | Tensor
) -> np.ndarray | tuple[np.ndarray, ...]:
    """What the network answers.

    Args:
        graph: a verified graph.
        weights: array by key, in torch's layout.
        inputs: one array or tensor for each input layer, of exactly its shape (for another batch:
            `graph.with_batch(n)`).

    Returns:
        The output tensor; a tuple where the graph has several outputs.

    Raises:
        DataError: an array is missing from `weights`.
        ShapeError: an input or a weight has another shape than the graph says.
        LoweringError: the graph has an operator that was priced as vector work and cannot run.

    >>> x = Layer("x", Op.INPUT, (1, 2), k=2, c=2)
    >>> linear = Layer("y", Op.LINEAR, (1, 1), ("x",), c=2, weight="w", activation="relu")
    >>> run(LayerGraph("dot", (x, linear), ("y",)), {"w": np.array([[1.0, 2.0]])}, [[3.0, 4.0]])
    array([[11.]], dtype=float32)
    """
    found = _execute(graph, weights, inputs, frozenset(graph.outputs))
    outputs = tuple(found[name].numpy() for name in graph.outputs)
    return outputs[0] if len(outputs) == 1 else outputs


def run_all(graph: LayerGraph, weights: Mapping[str, np.ndarray], *inputs: ArrayLike | Tensor) -> dict[str, np.ndarray]:
    """The output of every layer by name, constants included; arguments and errors as for `run`."""
    found = _execute(graph, weights, inputs, frozenset(graph.index))
    return {name: tensor.numpy() for name, tensor in found.items()}


@torch.no_grad()
def _execute(
    graph: LayerGraph, weights: Mapping[str, np.ndarray], inputs: Sequence[ArrayLike | Tensor], kept: frozenset[str]
) -> dict[str, Tensor]:
    """Run all layers; a tensor that is not in `kept` is dropped after its last reader."""
    verify_weights(graph, weights)
    given = _inputs(graph, inputs)
    dtype = torch.float64 if next(iter(given.values())).dtype == torch.float64 else torch.float32
    last = {name: layer.name for layer in graph.layers for name in layer.inputs}
    tensors: dict[str, Tensor] = {}
    for layer in graph.layers:
        arrays = Arrays(*(_tensor(weights[key], dtype) if key else None for key in (layer.weight, layer.bias)))
        sources = [given[layer.name].to(dtype)] if layer.op is Op.INPUT else [tensors[name] for name in layer.inputs]
        tensors[layer.name] = apply(layer, sources, arrays)
        for name in {*layer.inputs} - kept:
            if last[name] == layer.name:
                del tensors[name]
    return {name: tensors[name] for name in graph.index if name in kept}


def _inputs(graph: LayerGraph, inputs: Sequence[ArrayLike | Tensor]) -> dict[str, Tensor]:
    if len(inputs) != len(graph.inputs):
        raise ShapeError(f"graph {graph.name!r}: {len(inputs)} inputs given, needs {len(graph.inputs)}")
    given = {layer.name: _input(x) for layer, x in zip(graph.inputs, inputs, strict=True)}
    for layer in graph.inputs:
        if (shape := tuple(given[layer.name].shape)) != layer.shape:
            hint = "; for another batch use graph.with_batch" if shape[1:] == layer.shape[1:] else ""
            raise ShapeError(f"input {layer.name!r} has shape {shape}, must be {layer.shape}{hint}")
    return given


def _input(x: ArrayLike | Tensor) -> Tensor:
    """float64 stays so, everything else becomes float32."""
    if isinstance(x, Tensor):
        return x.detach().cpu()
    is_double = isinstance(x, np.ndarray) and x.dtype == np.float64
    return _tensor(np.asarray(x), torch.float64 if is_double else torch.float32)


def _tensor(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    """Without a copy where type and layout allow it; nothing writes to it."""
    plain = np.ascontiguousarray(array, np.float64 if dtype == torch.float64 else np.float32)
    return torch.from_numpy(plain if plain.flags.writeable else plain.copy()).reshape(array.shape)


@dataclass(frozen=True)
class Arrays:
    """Weight and bias of a layer, None where it has none."""

    weight: Tensor | None
    bias: Tensor | None

    @property
    def w(self) -> Tensor:
        """The weight of an op that always has one."""
        assert self.weight is not None, "verified: the op has a weight"
        return self.weight


def apply(layer: Layer, sources: Sequence[Tensor], arrays: Arrays) -> Tensor:
    """The output of one layer, of the shape that the graph says.

    Raises:
        ShapeError: the layer cannot run with these inputs, or gives another shape.
        LoweringError: it was priced as vector work and cannot run.
    """
    try:
        found = OPERATIONS[layer.op](layer, sources, arrays)
        found = activate(found, layer.activation) if layer.activation else found
    except RuntimeError as error:
        raise ShapeError(f"layer {layer.name!r} ({layer.op}): {first_line(error)}") from error
    if tuple(found.shape) != layer.shape:
        raise ShapeError(f"layer {layer.name!r} ({layer.op}): gives {tuple(found.shape)}, the graph says {layer.shape}")
    return found


# ---- activations ----------------------------------------------------------------------------------------------------

ACTIVATE: Mapping[str, Callable[..., Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "gelu": lambda x, approximate: F.gelu(x, approximate=approximate),
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "hardtanh": torch.clamp,
    "mish": F.mish,
    "abs": torch.abs,
    "sqrt": torch.sqrt,
}


def activate(x: Tensor, text: str) -> Tensor:
    """Apply an activation given as text (`workloads.activations`)."""
    name, arguments = parse_activation(text)
    return ACTIVATE[name](x, *arguments)


# ---- operations: (layer, input tensors, arrays) -> output tensor ----------------------------------------------------


def _first(layer: Layer, sources: Sequence[Tensor], arrays: Arrays) -> Tensor:
    return sources[0]


def _constant(layer: Layer, sources: Sequence[Tensor], arrays: Arrays) -> Tensor:
    return arrays.w


def _image(x: Tensor) -> Tensor:
    """A sequence (n, c, length) as an image of width 1."""
    return x if x.dim() == 4 else x.unsqueeze(-1)


def _conv(layer: Layer, sources: Sequence[Tensor], arrays: Arrays) -> Tensor:
    x, weight, padding = _image(sources[0]), _image(arrays.w), (layer.padding[0], layer.padding[2])
    if layer.padding[1::2] != padding:
        x, padding = F.pad(x, (*layer.padding[2:], *layer.padding[:2])), (0, 0)
    return F.conv2d(x, weight, arrays.bias, layer.stride, padding, layer.dilation, layer.groups).reshape(layer.shape)


def _conv_transpose(layer: Layer, sources: Sequence[Tensor], arrays: Arrays) -> Tensor:
    """Every input pixel adds a kernel to the output; then the padding is cut off (output padding is cut less)."""
    x, weight = _image(sources[0]), _image(arrays.w)
    whole = F.conv_transpose2d(x, weight, None, layer.stride, 0, 0, layer.groups, layer.dilation)
    top, left = layer.padding[0], layer.padding[2]
    missing = max(0, top + layer.p - whole.shape[2]), max(0, left + layer.q - whole.shape[3])
    found = F.pad(whole, (0, missing[1], 0, missing[0]))[:, :, top : top + layer.p, left : left + layer.q]
    bias = 0 if arrays.bias is None else arrays.bias[:, None, None]
    return (found + bias).reshape(layer.shape)


def _linear(layer: Layer, sources: Sequence[Tensor], arrays: Arrays) -> Tensor:
    return F.linear(sources[0], arrays.w, arrays.bias)


def _matmul(layer: Layer, sources: Sequence[Tensor], arrays: Arrays) -> Tensor:
    return torch.matmul(sources[0], sources[1]) * layer.attributes.get("scale", 1.0)


def _lstm(layer: Layer, sources: Sequence[Tensor], arrays: Arrays) -> Tensor:
    x = sources[0].transpose(0, 1) if layer.attributes["batch_first"] else sources[0]
    steps = x.flip(0) if layer.attributes["reverse"] else x
    hidden = cell = x.new_zeros(x.shape[1], layer.attributes["hidden"])
    outputs = []
    for step in steps:
        gates = F.linear(torch.cat([step, hidden], dim=1), arrays.w, arrays.bias)
        enter, forget, content, leave = gates.chunk(4, dim=1)
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(content)
        hidden = torch.sigmoid(leave) * torch.tanh(cell)
        outputs.append(hidden)
    found = torch.stack(outputs[::-1] if layer.attributes["reverse"] else outputs)
    return found.transpose(0, 1) if layer.attributes["batch_first"] else found


def _max_pool(layer: Layer, sources: Sequence[Tensor], arrays: Arrays) -> Tensor:
    x, kernel, padding = _image(sources[0]), (layer.r, layer.s), (layer.padding[0], layer.padding[2])
    if 2 * padding[0] > layer.r or 2 * padding[1] > layer.s:  # a dilated window allows more than torch does in 2-D
        x, padding = F.pad(x, (*layer.padding[2:], *layer.padding[:2]), value=-torch.inf), (0, 0)
    found = F.max_pool2d(x, kernel, layer.stride, padding, layer.dilation, layer.attributes["ceil"])
    return found[:, :, : layer.p, : layer.q].reshape(layer.shape)


def _avg_pool(layer: Layer, sources: Sequence[Tensor], arrays: Arrays) -> Tensor:
    kernel, padding = (layer.r, layer.s), (layer.padding[0], layer.padding[2])
    ceil, inside = layer.attributes["ceil"], layer.attributes["count_include_pad"]
    divisor = layer.attributes["divisor"] or None
    found = F.avg_pool2d(_image(sources[0]), kernel, layer.stride, padding, ceil, inside, divisor)
    return found.reshape(layer.shape)


def _mean(layer: Layer, sources: Sequence[Tensor], arrays: Arrays) -> Tensor:
    return sources[0].mean(layer.attributes["axes"], keepdim=layer.attributes["keepdim"])


def _operands(layer: Layer, sources: Sequence[Tensor]) -> tuple[Tensor | float, Tensor | float]:
    """First and second operand; the scalar stands for a missing second input."""
    first: Tensor | float = sources[0]
    second: Tensor | float = sources[1] if len(sources) > 1 else float(layer.attributes["scalar"])
    return (second, first) if layer.attributes.get("reverse", False) else (first, second)


EXTREMES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"maximum": torch.maximum, "minimum": torch.minimum}


def _add(layer: Layer, sources: Sequence[Tensor], arrays: Arrays) -> Tensor:
    first, second = _operands(layer, sources)
    kind = layer.attributes["kind"]
    factor = layer.attributes.get("alpha", 1.0) * (-1.0 if kind == "sub" else 1.0)
    second = second if factor == 1.0 else factor * second
    if kind in EXTREMES:
        like = sources[0]
        return EXTREMES[kind](torch.as_tensor(first).to(like), torch.as_tensor(second).to(like))
    return torch.as_tensor(first + second)


def _mul(layer: Layer, sources: Sequence[Tensor], arrays: Arrays) -> Tensor:
    first, second = _operands(layer, sources)
    return torch.as_tensor(first * second if layer.attributes["kind"] == "mul" else first / second)


def _activation(layer: Layer, sources: Sequence[Tensor], arrays: Arrays) -> Tensor:
    kind = layer.attributes["kind"]
    return F.prelu(sources[0], arrays.w) if kind == "prelu" else activate(sources[0], kind)


def _softmax(layer: Layer, sources: Sequence[Tensor], arrays: Arrays) -> Tensor:
    function = torch.log_softmax if layer.attributes["log"] else torch.softmax
    return function(sources[0], layer.attributes["axis"])


def _affine(layer: Layer, x: Tensor, arrays: Arrays) -> Tensor:
    shape = [-1 if axis == layer.channel_axis else 1 for axis in range(x.dim())]
    assert arrays.bias is not None, "verified: an affine norm has a bias"
    return x * arrays.w.reshape(shape) + arrays.bias.reshape(shape)


def _layer_norm(layer: Layer, x: Tensor, arrays: Arrays) -> Tensor:
    shape = [x.shape[axis] for axis in layer.attributes["axes"]]
    return F.layer_norm(x, shape, arrays.weight, arrays.bias, layer.attributes["eps"])


def _group_norm(layer: Layer, x: Tensor, arrays: Arrays) -> Tensor:
    """An instance norm has a group for every channel."""
    groups: int = layer.attributes["groups"] if layer.attributes["kind"] == "group" else x.shape[1]
    return F.group_norm(x, groups, arrays.weight, arrays.bias, layer.attributes["eps"])


NORMS: Mapping[str, Callable[[Layer, Tensor, Arrays], Tensor]] = {
    "affine": _affine,
    "layer": _layer_norm,
    "group": _group_norm,
    "instance": _group_norm,
}


def _norm(layer: Layer, sources: Sequence[Tensor], arrays: Arrays) -> Tensor:
    return NORMS[layer.attributes["kind"]](layer, sources[0], arrays)


def _concat(layer: Layer, sources: Sequence[Tensor], arrays: Arrays) -> Tensor:
    return torch.cat(list(sources), layer.attributes["axis"])


def _slice(layer: Layer, sources: Sequence[Tensor], arrays: Arrays) -> Tensor:
    rows = zip(layer.attributes["starts"], layer.attributes["steps"], layer.shape, strict=True)
    return sources[0][tuple(slice(start, start + (size - 1) * step + 1, step) for start, step, size in rows)]


NUMPY_PAD_MODES: Mapping[str, str] = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def _pad(layer: Layer, sources: Sequence[Tensor], arrays: Arrays) -> Tensor:
    """NumPy's, because torch pads only some axes in the modes other than constant."""
    widths = list(zip(layer.attributes["before"], layer.attributes["after"], strict=True))
    mode, value = layer.attributes["mode"], layer.attributes.get("value", 0.0)
    array = sources[0].numpy()
    if mode == "constant":
        return torch.from_numpy(np.pad(array, widths, constant_values=value))
    return torch.from_numpy(np.pad(array, widths, mode=NUMPY_PAD_MODES[mode]))  # type: ignore[call-overload]


def _expand(layer: Layer, sources: Sequence[Tensor], arrays: Arrays) -> Tensor:
    return sources[0].expand(layer.shape)


def _transpose(layer: Layer, sources: Sequence[Tensor], arrays: Arrays) -> Tensor:
    return sources[0].permute(layer.attributes["permutation"])


def _pixel_shuffle(layer: Layer, sources: Sequence[Tensor], arrays: Arrays) -> Tensor:
    function = F.pixel_unshuffle if layer.attributes["inverse"] else F.pixel_shuffle
    return function(sources[0], layer.attributes["factor"])


def _upsample(layer: Layer, sources: Sequence[Tensor], arrays: Arrays) -> Tensor:
    mode, size = layer.attributes["mode"], list(layer.shape[2:])
    align = layer.attributes.get("align_corners", False) if mode == "bilinear" else None
    return F.interpolate(sources[0], size, mode=mode, align_corners=align)


def _reshape(layer: Layer, sources: Sequence[Tensor], arrays: Arrays) -> Tensor:
    return sources[0].reshape(layer.shape)


def _vector(layer: Layer, sources: Sequence[Tensor], arrays: Arrays) -> Tensor:
    target = layer.attributes["target"]
    if not can_run(layer):
        raise LoweringError(
            f"layer {layer.name!r}: {target} is priced as vector work only, the interpreter cannot run it"
        )
    namespace, name, overload = target.split(".")
    function = getattr(getattr(torch.ops.aten, name, None), overload, None)
    if namespace != "aten" or function is None or not _only_computes(function._schema):
        raise LoweringError(f"layer {layer.name!r}: {target} is no operator of this torch without side effects")

    def given(item: Any) -> Any:
        if isinstance(item, Mapping):
            if not 0 <= (place := item["input"]) < len(sources):
                raise LoweringError(f"layer {layer.name!r}: {target} reads input {place} of {len(sources)}")
            return sources[place]
        return [given(part) for part in item] if isinstance(item, tuple) else item

    found: Tensor = function(**{key: given(item) for key, item in layer.attributes["arguments"].items()})
    return found


def _only_computes(schema: torch.FunctionSchema) -> bool:
    """Whether it makes one tensor from others and changes nothing: `save` makes none, `from_file` takes none."""
    returned = [str(item.type) for item in schema.returns]
    takes = any(str(item.type) in ("Tensor", "List[Tensor]") for item in schema.arguments)
    return not schema.is_mutable and returned == ["Tensor"] and takes


def can_run(layer: Layer) -> bool:
    """Whether a layer can be executed: all but those that are only known to be vector work."""
    return layer.op is not Op.VECTOR or "arguments" in layer.attributes


OPERATIONS: Mapping[Op, Callable[[Layer, Sequence[Tensor], Arrays], Tensor]] = {
    Op.INPUT: _first,
    Op.CONSTANT: _constant,
    Op.CONV: _conv,
    Op.CONV_TRANSPOSE: _conv_transpose,
    Op.LINEAR: _linear,
    Op.MATMUL: _matmul,
    Op.LSTM: _lstm,
    Op.MAX_POOL: _max_pool,
    Op.AVG_POOL: _avg_pool,
    Op.MEAN: _mean,
    Op.ADD: _add,
    Op.MUL: _mul,
    Op.ACTIVATION: _activation,
    Op.SOFTMAX: _softmax,
    Op.NORM: _norm,
    Op.CONCAT: _concat,
    Op.SLICE: _slice,
    Op.PAD: _pad,
    Op.EXPAND: _expand,
    Op.TRANSPOSE: _transpose,
    Op.PIXEL_SHUFFLE: _pixel_shuffle,
    Op.UPSAMPLE: _upsample,
    Op.RESHAPE: _reshape,
    Op.VECTOR: _vector,
}
