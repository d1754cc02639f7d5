"""What each op kind must obey: one rule a kind, in the table `RULES`.

A rule says how many inputs a layer has and which attributes, and its function compares the layer with the layers that
feed it. `workloads.verify` checks before it calls a rule what all layers share: positive dims, inputs that exist, and
attributes of the right type. The attributes themselves are explained in `workloads.reference`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workloads.activations import parse_activation
from workloads.errors import ConfigError, ShapeError
from workloads.graph import Layer, Op

MAX_DIM = 2**31 - 1
PAD_MODES = ("constant", "reflect", "replicate", "circular")


@dataclass(frozen=True)
class Rule:
    """What an op kind must obey: its check, its number of inputs, the attributes that it needs and allows."""

    check: Callable[[Layer, Sequence[Layer]], None]
    least: int = 1
    most: int = 1
    needs: tuple[str, ...] = ()
    allows: tuple[str, ...] = ()


def where(layer: Layer) -> str:
    return f"layer {layer.name!r} ({layer.op})"


def need(layer: Layer, what: str, found: object, needed: object, why: str = "") -> None:
    """The one comparison: `found` must equal `needed`."""
    if found != needed:
        raise ShapeError(f"{where(layer)}: {what} is {found}, must be {needed}{', ' if why else ''}{why}")


# ---- inputs and attributes ------------------------------------------------------------------------------------------


def _is_integer(value: Any) -> bool:
    return type(value) is int and abs(value) <= MAX_DIM


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and not math.isnan(value)


def _is_flag(value: Any) -> bool:
    return type(value) is bool


def _is_text(value: Any) -> bool:
    return type(value) is str


def _are_integers(value: Any) -> bool:
    return type(value) is tuple and all(_is_integer(item) for item in value)


def _are_arguments(value: Any) -> bool:
    """Of a torch operator by name: numbers, flags, text, nothing, places of inputs, and lists of these."""

    def fits(item: Any) -> bool:
        if isinstance(item, Mapping):
            return list(item) == ["input"] and _is_integer(item["input"])
        if type(item) is tuple:
            return all(map(fits, item))
        return item is None or _is_flag(item) or _is_text(item) or _is_number(item)

    return isinstance(value, Mapping) and all(_is_text(name) and fits(item) for name, item in value.items())


_INTEGERS = ("a list of integers", _are_integers)
_INTEGER = ("an integer", _is_integer)
_NUMBER = ("a number", _is_number)
_FLAG = ("true or false", _is_flag)
_TEXT = ("text", _is_text)

DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "complex64", "complex128")
"""Torch's names for inputs that are no floating-point numbers."""

# An attribute means the same in every op that has it.
ATTRIBUTE_TYPES: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "after": _INTEGERS,
    "align_corners": _FLAG,
    "alpha": _NUMBER,
    "arguments": ("numbers, flags, text, nothing and {input: place} by name, or lists of these", _are_arguments),
    "axes": _INTEGERS,
    "axis": _INTEGER,
    "batch_first": _FLAG,
    "before": _INTEGERS,
    "ceil": _FLAG,
    "count_include_pad": _FLAG,
    "divisor": _INTEGER,
    "dtype": _TEXT,
    "eps": _NUMBER,
    "factor": _INTEGER,
    "groups": _INTEGER,
    "hidden": _INTEGER,
    "inverse": _FLAG,
    "keepdim": _FLAG,
    "kind": _TEXT,
    "log": _FLAG,
    "mode": _TEXT,
    "output_padding": _INTEGERS,
    "permutation": _INTEGERS,
    "reverse": _FLAG,
    "scalar": _NUMBER,
    "scale": _NUMBER,
    "starts": _INTEGERS,
    "steps": _INTEGERS,
    "target": _TEXT,
    "value": _NUMBER,
}


def _one_of(layer: Layer, key: str, allowed: Sequence[str]) -> None:
    if layer.attributes[key] not in allowed:
        need(layer, f"attribute {key!r}", repr(layer.attributes[key]), f"one of {', '.join(allowed)}")


def _check_axes(layer: Layer, source: Layer, key: str) -> tuple[int, ...]:
    """The axes that an attribute names: in range, none twice."""
    value = layer.attributes[key]
    axes: tuple[int, ...] = value if isinstance(value, tuple) else (value,)
    rank = len(source.shape)
    if len(set(axes)) != len(axes) or not all(0 <= axis < rank for axis in axes):
        need(layer, f"attribute {key!r}", value, f"different axes in 0..{rank - 1}")
    return axes


def _check_per_axis(layer: Layer, source: Layer, *keys: str) -> None:
    """Attributes with one entry for each axis of the input."""
    for key in keys:
        need(layer, f"length of {key!r}", len(layer.attributes[key]), len(source.shape), "one for each axis")


def check_activation(layer: Layer, text: str) -> None:
    try:
        parse_activation(text)
    except ConfigError as error:
        raise ShapeError(f"{where(layer)}: {error}") from error


# ---- one rule an op -------------------------------------------------------------------------------------------------


def _input(layer: Layer, sources: Sequence[Layer]) -> None:
    if "dtype" in layer.attributes:
        _one_of(layer, "dtype", DTYPES)


def _nothing(layer: Layer, sources: Sequence[Layer]) -> None:
    """For ops whose shape is free: what is common to all layers is enough."""


def _same_shape(layer: Layer, sources: Sequence[Layer]) -> None:
    need(layer, "shape", layer.shape, sources[0].shape, f"the shape of {sources[0].name!r}")


def _height_width(shape: tuple[int, ...]) -> tuple[int, int]:
    """Of an image (n, c, h, w); a sequence (n, c, length) is an image of width 1."""
    return (shape[2], shape[3] if len(shape) == 4 else 1)


def _check_image(layer: Layer, source: Layer) -> None:
    """Batch, channels and size of a layer that slides a window over an image or a sequence."""
    if len(layer.shape) not in (3, 4) or len(source.shape) != len(layer.shape):
        needed = "3 or 4 axes, as many as its input"
        need(layer, "shape", layer.shape, needed, f"which has {source.shape}")
    need(layer, "n", layer.n, source.shape[0], "the batch of its input")
    need(layer, "c", layer.c, source.shape[1], f"the channels of {source.name!r}")
    size = _height_width(source.shape)
    need(layer, "in_h, in_w", (layer.in_h, layer.in_w), size, f"the size of {source.name!r}")
    need(layer, "channel_axis", layer.channel_axis, 1)
    need(layer, "shape", layer.shape, (layer.n, layer.k, layer.p, layer.q)[: len(layer.shape)], "n, k, p, q")
    if len(layer.shape) == 3:
        need(layer, "q", layer.q, 1, "a sequence has no width")


def _check_groups(layer: Layer) -> None:
    if layer.c % layer.groups or layer.k % layer.groups:
        need(layer, "groups", layer.groups, f"a divisor of c {layer.c} and k {layer.k}")


def _spans(layer: Layer) -> tuple[int, int]:
    """Height and width that one window covers: D * (R - 1) + 1."""
    return layer.dilation[0] * (layer.r - 1) + 1, layer.dilation[1] * (layer.s - 1) + 1


def _check_window(layer: Layer, ceil: bool = False) -> None:
    """P = floor((H + padding - span) / stride) + 1, Q alike; with `ceil` rounded up, but none starts in the padding."""
    top, bottom, left, right = layer.padding
    span_h, span_w = _spans(layer)
    needed = (
        _windows(layer.in_h, top, bottom, span_h, layer.stride[0], ceil),
        _windows(layer.in_w, left, right, span_w, layer.stride[1], ceil),
    )
    if (layer.p, layer.q) != needed:
        cause = f"from input {layer.in_h}x{layer.in_w}, kernel {layer.r}x{layer.s}, stride {layer.stride}"
        need(layer, "p, q", (layer.p, layer.q), needed, f"{cause}, padding {layer.padding}, dilation {layer.dilation}")


def _windows(size: int, before: int, after: int, span: int, stride: int, ceil: bool) -> int:
    room = size + before + after - span
    count = -(-room // stride) + 1 if ceil else room // stride + 1
    return count - 1 if ceil and (count - 1) * stride >= size + before else count


def _conv(layer: Layer, sources: Sequence[Layer]) -> None:
    _check_image(layer, sources[0])
    _check_groups(layer)
    _check_window(layer)


def _conv_transpose(layer: Layer, sources: Sequence[Layer]) -> None:
    """P = (H - 1) * stride - padding + span + output padding."""
    _check_image(layer, sources[0])
    _check_groups(layer)
    need(layer, "length of 'output_padding'", len(layer.attributes["output_padding"]), 2)
    extra_h, extra_w = layer.attributes["output_padding"]
    top, bottom, left, right = layer.padding
    span_h, span_w = _spans(layer)
    needed = (
        (layer.in_h - 1) * layer.stride[0] - top - bottom + span_h + extra_h,
        (layer.in_w - 1) * layer.stride[1] - left - right + span_w + extra_w,
    )
    need(layer, "p, q", (layer.p, layer.q), needed, "from input size, kernel, stride, padding, dilation")


def _pool(layer: Layer, sources: Sequence[Layer]) -> None:
    _check_image(layer, sources[0])
    need(layer, "k", layer.k, layer.c, "its input channels")
    top, left = layer.padding[0], layer.padding[2]
    need(layer, "padding", layer.padding, (top, top, left, left), "the same on both sides; else add a pad layer")
    span_h, span_w = _spans(layer)
    if 2 * top > span_h or 2 * left > span_w:
        need(layer, "padding", layer.padding, f"at most half of the window {span_h}x{span_w}")
    _check_window(layer, layer.attributes["ceil"])


def _no_kernel(layer: Layer) -> None:
    need(layer, "r, s, groups", (layer.r, layer.s, layer.groups), (1, 1, 1))


def _linear(layer: Layer, sources: Sequence[Layer]) -> None:
    _no_kernel(layer)
    need(layer, "c", layer.c, sources[0].shape[-1], f"the last dim of {sources[0].name!r}")
    need(layer, "shape", layer.shape, (*sources[0].shape[:-1], layer.k), "its input's with k as the last dim")
    need(layer, "channel_axis", layer.channel_axis, max(len(layer.shape) - 1, 1), "the last")


def _matmul(layer: Layer, sources: Sequence[Layer]) -> None:
    """(..., M, C) x (..., C, K)."""
    _no_kernel(layer)
    first, second = sources[0].shape, sources[1].shape
    if min(len(first), len(second)) < 2 or first[-1] != second[-2] or first[:-2] != second[:-2]:
        need(layer, "shapes of its inputs", (first, second), "(..., M, C) and (..., C, K) with equal leading dims")
    need(layer, "c", layer.c, first[-1], f"the last dim of {sources[0].name!r}")
    need(layer, "k", layer.k, second[-1], f"the last dim of {sources[1].name!r}")
    need(layer, "shape", layer.shape, (*first[:-1], second[-1]))
    need(layer, "n x p", layer.n * layer.p, math.prod(first[:-1]), "all dims but the last two, times M")


def _lstm(layer: Layer, sources: Sequence[Layer]) -> None:
    """Input (N, T, I) or (T, N, I), output (N, T, H) or (T, N, H); K = 4 H, C = I + H, P = T."""
    _no_kernel(layer)
    shape, hidden = sources[0].shape, layer.attributes["hidden"]
    need(layer, "axes of its input", len(shape), 3, "batch, time and features")
    need(layer, "shape", layer.shape, (*shape[:2], hidden), "its input's with hidden as the last dim")
    need(layer, "channel_axis", layer.channel_axis, 2, "the last")
    need(layer, "k", layer.k, 4 * hidden, "four gates of hidden size")
    need(layer, "c", layer.c, shape[2] + hidden, "input features + hidden")
    batch, time = shape[:2] if layer.attributes["batch_first"] else (shape[1], shape[0])
    need(layer, "n, p", (layer.n, layer.p), (batch, time), "batch and time steps")


def _mean(layer: Layer, sources: Sequence[Layer]) -> None:
    axes = set(_check_axes(layer, sources[0], "axes"))
    if not axes:
        need(layer, "attribute 'axes'", (), "at least one axis")
    kept = [1 if i in axes else size for i, size in enumerate(sources[0].shape)]
    if not layer.attributes["keepdim"]:
        kept = [size for i, size in enumerate(sources[0].shape) if i not in axes]
    need(layer, "shape", layer.shape, tuple(kept), "its input's without the averaged axes")


def _broadcast(layer: Layer, sources: Sequence[Layer]) -> None:
    """Two tensors that broadcast to the shape, or one and a scalar."""
    _one_of(layer, "kind", ("add", "sub", "maximum", "minimum") if layer.op is Op.ADD else ("mul", "div"))
    if len(sources) == 1 and "scalar" not in layer.attributes:
        raise ShapeError(f"{where(layer)}: has one input and no scalar, needs a second of either kind")
    if len(sources) == 2 and "scalar" in layer.attributes:
        raise ShapeError(f"{where(layer)}: has two inputs and a scalar, needs one of them")
    shape = sources[0].shape
    for source in sources[1:]:
        if source.shape != shape:
            shape = _broadcast_shape(layer, shape, source.shape)
    need(layer, "shape", layer.shape, shape, "what its inputs broadcast to")


def _broadcast_shape(layer: Layer, a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    rank = max(len(a), len(b))
    pairs = list(zip((1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b, strict=True))
    if any(x != y and 1 not in (x, y) for x, y in pairs):
        need(layer, "shapes of its inputs", (a, b), "equal or 1 in every dim")
    return tuple(max(pair) for pair in pairs)


def _activation(layer: Layer, sources: Sequence[Layer]) -> None:
    _same_shape(layer, sources)
    if layer.attributes["kind"] != "prelu":
        check_activation(layer, layer.attributes["kind"])
    elif not layer.weight:
        raise ShapeError(f"{where(layer)}: prelu names no weight, needs the key of its slopes")


def _softmax(layer: Layer, sources: Sequence[Layer]) -> None:
    _same_shape(layer, sources)
    _check_axes(layer, sources[0], "axis")


def _norm(layer: Layer, sources: Sequence[Layer]) -> None:
    _same_shape(layer, sources)
    _one_of(layer, "kind", ("affine", "layer", "group", "instance"))
    kind = layer.attributes["kind"]
    if kind == "affine":
        if not (layer.weight and layer.bias):
            raise ShapeError(f"{where(layer)}: affine norm needs the keys of its scale (weight) and shift (bias)")
    elif "eps" not in layer.attributes:
        raise ShapeError(f"{where(layer)}: attribute 'eps' is missing; a {kind} norm needs it")
    if kind == "layer":
        rank, axes = len(layer.shape), layer.attributes.get("axes", ())
        if not axes or axes != tuple(range(rank - len(axes), rank)):
            need(layer, "attribute 'axes'", axes, f"the last axes, up to {rank - 1}")
    if kind in ("group", "instance"):
        need(layer, "channel_axis", layer.channel_axis, 1)
    if kind == "group":
        groups = layer.attributes.get("groups", 0)
        if groups < 1 or layer.shape[layer.channel_axis] % groups:
            need(layer, "attribute 'groups'", groups, f"a divisor of {layer.shape[layer.channel_axis]} channels")


def _concat(layer: Layer, sources: Sequence[Layer]) -> None:
    (axis,) = _check_axes(layer, sources[0], "axis")
    first = sources[0].shape
    for source in sources[1:]:
        other = source.shape
        if len(other) != len(first) or other[:axis] != first[:axis] or other[axis + 1 :] != first[axis + 1 :]:
            need(layer, f"shape of {source.name!r}", other, f"{first} but for axis {axis}")
    total = sum(source.shape[axis] for source in sources)
    need(layer, "shape", layer.shape, (*first[:axis], total, *first[axis + 1 :]), "its inputs' one after the other")


def _slice(layer: Layer, sources: Sequence[Layer]) -> None:
    _check_per_axis(layer, sources[0], "starts", "steps")
    need(layer, "axes of shape", len(layer.shape), len(sources[0].shape))
    rows = zip(layer.shape, layer.attributes["starts"], layer.attributes["steps"], sources[0].shape, strict=True)
    for axis, (size, start, step, limit) in enumerate(rows):
        if start < 0 or step < 1 or start + (size - 1) * step >= limit:
            taken = f"{size} from {start} in steps of {step}"
            need(layer, f"slice of axis {axis}", taken, f"inside 0..{limit - 1}, with start >= 0 and step >= 1")


def _pad(layer: Layer, sources: Sequence[Layer]) -> None:
    _one_of(layer, "mode", PAD_MODES)
    _check_per_axis(layer, sources[0], "before", "after")
    before, after = layer.attributes["before"], layer.attributes["after"]
    if min(*before, *after) < 0:
        need(layer, "attributes 'before', 'after'", (before, after), ">= 0; crop with a slice")
    if layer.attributes["mode"] in ("reflect", "circular"):
        limit = [size - (layer.attributes["mode"] == "reflect") for size in sources[0].shape]
        if any(max(pair) > most for *pair, most in zip(before, after, limit, strict=True)):
            need(layer, "attributes 'before', 'after'", (before, after), f"at most {limit}")
    grown = tuple(sum(parts) for parts in zip(sources[0].shape, before, after, strict=True))
    need(layer, "shape", layer.shape, grown, "its input's plus before and after")


def _expand(layer: Layer, sources: Sequence[Layer]) -> None:
    small = sources[0].shape
    if len(small) > len(layer.shape) or _broadcast_shape(layer, small, layer.shape) != layer.shape:
        need(layer, "shape", layer.shape, f"one that {small} of {sources[0].name!r} broadcasts to")


def _transpose(layer: Layer, sources: Sequence[Layer]) -> None:
    axes = _check_axes(layer, sources[0], "permutation")
    _check_per_axis(layer, sources[0], "permutation")
    need(layer, "shape", layer.shape, tuple(sources[0].shape[axis] for axis in axes), "its input's, permuted")


def _pixel_shuffle(layer: Layer, sources: Sequence[Layer]) -> None:
    """(N, C f^2, H, W) -> (N, C, H f, W f), or the inverse."""
    factor = layer.attributes["factor"]
    if factor < 1:
        need(layer, "attribute 'factor'", factor, ">= 1")
    wide, tall = (layer, sources[0]) if layer.attributes["inverse"] else (sources[0], layer)
    need(layer, "axes of shape and of its input", (len(layer.shape), len(sources[0].shape)), (4, 4))
    n, c, h, w = tall.shape
    need(layer, "shape with the smaller image", wide.shape, (n, c * factor**2, h // factor, w // factor))
    need(layer, "larger image", (h % factor, w % factor), (0, 0), f"multiples of factor {factor}")


def _upsample(layer: Layer, sources: Sequence[Layer]) -> None:
    _one_of(layer, "mode", ("nearest", "bilinear"))
    ranks = (4,) if layer.attributes["mode"] == "bilinear" else (3, 4)
    if len(layer.shape) not in ranks or len(sources[0].shape) != len(layer.shape):
        need(layer, "shape", layer.shape, f"{' or '.join(map(str, ranks))} axes, as many as its input")
    need(layer, "batch and channels", layer.shape[:2], sources[0].shape[:2], "its input's")


def _reshape(layer: Layer, sources: Sequence[Layer]) -> None:
    found = math.prod(layer.shape)
    need(layer, "number of elements", found, math.prod(sources[0].shape), f"as many as {sources[0].name!r} has")


RULES: Mapping[Op, Rule] = {
    Op.INPUT: Rule(_input, 0, 0, allows=("dtype",)),
    Op.CONSTANT: Rule(_nothing, 0, 0),
    Op.CONV: Rule(_conv),
    Op.CONV_TRANSPOSE: Rule(_conv_transpose, needs=("output_padding",)),
    Op.LINEAR: Rule(_linear),
    Op.MATMUL: Rule(_matmul, 2, 2, allows=("scale",)),
    Op.LSTM: Rule(_lstm, needs=("hidden", "reverse", "batch_first")),
    Op.MAX_POOL: Rule(_pool, needs=("ceil",)),
    Op.AVG_POOL: Rule(_pool, needs=("ceil", "count_include_pad", "divisor")),
    Op.MEAN: Rule(_mean, needs=("axes", "keepdim")),
    Op.ADD: Rule(_broadcast, 1, 2, needs=("kind",), allows=("alpha", "scalar", "reverse")),
    Op.MUL: Rule(_broadcast, 1, 2, needs=("kind",), allows=("scalar", "reverse")),
    Op.ACTIVATION: Rule(_activation, needs=("kind",)),
    Op.SOFTMAX: Rule(_softmax, needs=("axis", "log")),
    Op.NORM: Rule(_norm, needs=("kind",), allows=("axes", "groups", "eps")),
    Op.CONCAT: Rule(_concat, 1, MAX_DIM, needs=("axis",)),
    Op.SLICE: Rule(_slice, needs=("starts", "steps")),
    Op.PAD: Rule(_pad, needs=("before", "after", "mode"), allows=("value",)),
    Op.EXPAND: Rule(_expand),
    Op.TRANSPOSE: Rule(_transpose, needs=("permutation",)),
    Op.PIXEL_SHUFFLE: Rule(_pixel_shuffle, needs=("factor", "inverse")),
    Op.UPSAMPLE: Rule(_upsample, needs=("mode",), allows=("align_corners",)),
    Op.RESHAPE: Rule(_reshape),
    Op.VECTOR: Rule(_nothing, 1, MAX_DIM, needs=("target",), allows=("arguments",)),
}
