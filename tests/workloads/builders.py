"""Small layers and graphs for tests, with dims that follow from shapes."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from workloads.graph import Layer, LayerGraph, Op
from workloads.verify import array_shapes

Pair = tuple[int, int]


def nest(shape: tuple[int, ...], axis: int = 1) -> dict[str, int]:
    """n, k, c, p, q of a tensor whose channels lie on `axis`."""
    rest = [size for i, size in enumerate(shape) if i not in (0, axis)]
    channels = shape[axis] if len(shape) > 1 else 1
    return {"n": shape[0], "k": channels, "c": channels, "p": (rest or [1])[0], "q": math.prod(rest[1:])}


def source(shape: tuple[int, ...], name: str = "x", axis: int = 1) -> Layer:
    return Layer(name, Op.INPUT, shape, **nest(shape, axis), channel_axis=axis)


def constant(shape: tuple[int, ...], name: str = "constant") -> Layer:
    return Layer(name, Op.CONSTANT, shape, weight=f"{name}.weight")


def plain(op: Op, shape: tuple[int, ...], x: Layer, *others: Layer, channel_axis: int = 1, **fields: Any) -> Layer:
    """A layer that does not multiply; attributes as `fields`, name "y"."""
    inputs = (x.name, *(other.name for other in others))
    known = {key: fields.pop(key) for key in ("activation", "weight", "bias", "fused_into", "name") if key in fields}
    arguments = {"name": "y", "op": op, "shape": shape, "inputs": inputs, "channel_axis": channel_axis}
    dims = nest(shape, channel_axis)
    return Layer(**{**arguments, **dims, "in_h": height(x), "in_w": width(x), "attributes": fields, **known})


def height(x: Layer) -> int:
    return x.shape[2] if len(x.shape) > 2 else 1


def width(x: Layer) -> int:
    return x.shape[3] if len(x.shape) > 3 else 1


def window(
    op: Op,
    x: Layer,
    k: int,
    kernel: Pair,
    stride: Pair = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: Pair = (1, 1),
    **fields: Any,
) -> Layer:
    """A convolution or pool with floor rounding, whose output size follows from its input; name "y"."""
    p = (height(x) + padding[0] + padding[1] - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
    q = (width(x) + padding[2] + padding[3] - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
    dims = {"n": x.shape[0], "k": k, "c": x.shape[1], "p": p, "q": q, "r": kernel[0], "s": kernel[1]}
    sizes = {"in_h": height(x), "in_w": width(x), "stride": stride, "padding": padding, "dilation": dilation}
    shape = (x.shape[0], k, p, q)[: len(x.shape)]
    return Layer(**{"name": "y", "op": op, "shape": shape, "inputs": (x.name,), **dims, **sizes, **fields})


def conv(x: Layer, k: int, kernel: Pair = (3, 3), name: str = "y", **fields: Any) -> Layer:
    return window(Op.CONV, x, k, kernel, **{"name": name, "weight": f"{name}.weight", **fields})


def linear(x: Layer, k: int, name: str = "y", **fields: Any) -> Layer:
    shape = (*x.shape[:-1], k)
    dims = {"n": x.shape[0], "k": k, "c": x.shape[-1], "p": math.prod(x.shape[1:-1])}
    axis = max(len(shape) - 1, 1)
    arguments = {"name": name, "op": Op.LINEAR, "shape": shape, "inputs": (x.name,), "channel_axis": axis, **dims}
    return Layer(**{**arguments, "weight": f"{name}.weight", **fields})


def matmul(a: Layer, b: Layer, **attributes: Any) -> Layer:
    shape = (*a.shape[:-1], b.shape[-1])
    dims = {"n": math.prod(shape[:-2]), "k": shape[-1], "c": a.shape[-1], "p": shape[-2]}
    return Layer("y", Op.MATMUL, shape, (a.name, b.name), channel_axis=len(shape) - 1, attributes=attributes, **dims)


def lstm(x: Layer, hidden: int, batch_first: bool = True, reverse: bool = False, **fields: Any) -> Layer:
    n, steps = x.shape[:2] if batch_first else (x.shape[1], x.shape[0])
    dims = {"n": n, "p": steps, "k": 4 * hidden, "c": x.shape[2] + hidden}
    attributes = {"hidden": hidden, "reverse": reverse, "batch_first": batch_first}
    shape = (*x.shape[:2], hidden)
    arguments = {"name": "y", "op": Op.LSTM, "shape": shape, "inputs": (x.name,), "weight": "y.weight", **dims}
    return Layer(**{**arguments, "channel_axis": 2, "attributes": attributes, **fields})


def conv_transpose(
    x: Layer, k: int, kernel: Pair, stride: Pair = (1, 1), padding: int = 0, extra: Pair = (0, 0), **fields: Any
) -> Layer:
    """Square padding; `extra` is torch's output_padding."""
    dilation = fields.get("dilation", (1, 1))
    p = (height(x) - 1) * stride[0] - 2 * padding + dilation[0] * (kernel[0] - 1) + 1 + extra[0]
    q = (width(x) - 1) * stride[1] - 2 * padding + dilation[1] * (kernel[1] - 1) + 1 + extra[1]
    dims = {"n": x.shape[0], "k": k, "c": x.shape[1], "p": p, "q": q, "r": kernel[0], "s": kernel[1]}
    sizes = {"in_h": height(x), "in_w": width(x), "stride": stride, "padding": (padding,) * 4}
    names = {"name": "y", "op": Op.CONV_TRANSPOSE, "inputs": (x.name,), "weight": "y.weight"}
    return Layer(
        **{**names, "shape": (x.shape[0], k, p, q), **dims, **sizes, "attributes": {"output_padding": extra}, **fields}
    )


def graph(*layers: Layer, outputs: tuple[str, ...] = ()) -> LayerGraph:
    """A verified graph; its output is the last layer unless named."""
    return LayerGraph("test", layers, outputs or (layers[-1].name,)).verify()


def residual() -> LayerGraph:
    """x -> a -> b, a + b -> pool -> flat -> linear: a branch, a fused add, a view."""
    x = source((1, 3, 8, 8))
    a = conv(x, 4, padding=(1, 1, 1, 1), name="a", bias="a.bias", activation="relu", source_bias=False, folded_norms=1)
    b = conv(a, 4, padding=(1, 1, 1, 1), name="b")
    add = plain(Op.ADD, a.shape, a, b, name="add", kind="add", fused_into="b", activation="relu")
    pool = plain(Op.MEAN, (1, 4, 1, 1), add, name="pool", axes=(2, 3), keepdim=True)
    flat = plain(Op.RESHAPE, (1, 4), pool, name="flat")
    fc = linear(flat, 10, name="fc", bias="fc.bias", source_bias=True)
    return graph(x, a, b, add, pool, flat, fc)


def arrays_of(layers: Iterable[Layer], seed: int = 1) -> dict[str, np.ndarray]:
    """Random float32 arrays for every key that the layers name."""
    rng = np.random.default_rng(seed)
    shapes = {key: allowed[0] for layer in layers for key, allowed in array_shapes(layer).items()}
    return {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
