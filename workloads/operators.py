"""The operator table: how each ATen operator of an exported program becomes layers.

`OPERATORS` maps the full name of an operator to a handler `(site, *arguments) -> value`. The arguments come in the
order of the operator's schema, defaults filled in; tensors are `Draft`s (layers) or `Constant`s (what follows from
parameters and buffers alone), never all constants. In-place forms (`relu_`) share the row of the plain form. A handler
that cannot express a call raises `UnsupportedError` with the reason. To add an operator, add a row (and, if no
handler fits, a function above it); the attributes that an op needs are listed in `workloads.reference`.

This file has elementwise work and activations; `workloads.operators_layers` what multiplies, pools and normalises,
`workloads.operators_moves` what only moves data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from workloads import operators_layers as layers
from workloads import operators_moves as moves
from workloads.constants import LARGE, Constant, computed
from workloads.drafts import Draft, Handler, Site, UnsupportedError, Value, as_number
from workloads.graph import Op

# ---- elementwise -----------------------------------------------------------------------------------------------------


def add(site: Site, x: Value, y: Value, alpha: float = 1) -> Value:
    return _elementwise(site, Op.ADD, "add", x, y, float(alpha))


def sub(site: Site, x: Value, y: Value, alpha: float = 1) -> Value:
    return _elementwise(site, Op.ADD, "sub", x, y, float(alpha))


def rsub(site: Site, x: Value, y: Value, alpha: float = 1) -> Value:
    """y - alpha * x."""
    return _elementwise(site, Op.ADD, "sub", y, x, float(alpha))


def mul(site: Site, x: Value, y: Value) -> Value:
    return _elementwise(site, Op.MUL, "mul", x, y)


def div(site: Site, x: Value, y: Value, rounding: str | None = None) -> Value:
    if rounding:
        raise UnsupportedError(f"rounds its quotients ({rounding})")
    return _elementwise(site, Op.MUL, "div", x, y)


def _elementwise(site: Site, op: Op, kind: str, x: Value, y: Value, alpha: float = 1.0) -> Value:
    """Two tensors, or one and a number; adding 0 and multiplying by 1 leave no layer."""
    factor: dict[str, Any] = {} if alpha == 1.0 else {"alpha": alpha}
    first, second = as_number(x), as_number(y)
    if first is not None:
        return site.emit(op, [site.draft(y)], kind=kind, scalar=float(first), reverse=True, **factor)
    if second is not None:
        x = site.draft(x)
        if second * alpha == (0 if op is Op.ADD else 1) and x.shape == site.shape:
            return x
        return site.emit(op, [x], kind=kind, scalar=float(second), **factor)
    if isinstance(x, Constant) and kind in ("add", "mul") and not factor:
        x, y = y, x
    return site.emit(op, [site.draft(x), site.draft(y)], kind=kind, **factor)


def extreme(kind: str) -> Handler:
    """The larger or smaller of two tensors; of a tensor and a number it is a clamp."""

    def handler(site: Site, x: Value, y: Value) -> Draft:
        if isinstance(x, Constant):
            x, y = y, x
        if as_number(y) is not None and x.shape == site.shape:
            return clamp(site, x, y) if kind == "maximum" else clamp_max(site, x, y)
        return site.emit(Op.ADD, [x, site.draft(y)], kind=kind)

    return handler


def negate(site: Site, x: Draft) -> Draft:
    return site.emit(Op.MUL, [x], kind="mul", scalar=-1.0)


def reciprocal(site: Site, x: Draft) -> Draft:
    return site.emit(Op.MUL, [x], kind="div", scalar=1.0, reverse=True)


def power(site: Site, x: Draft, exponent: float = 2) -> Draft:
    if exponent != 2:
        raise UnsupportedError(f"raises to the power {exponent}, only squares are modelled")
    return site.emit(Op.MUL, [x, x], kind="mul")


def masked_fill(site: Site, x: Value, mask: Value, value: Value) -> Draft:
    """x where the mask is False, a number where it is True; x * keep + fill in general."""
    number, mask = as_number(value), layers.constant(mask, "mask")
    if number is None or not isinstance(x, Draft):
        raise UnsupportedError("fills with a tensor, needs a number")
    fill = computed(_filled, mask.shape, mask, max(float(number), -LARGE))
    if number > -LARGE:
        keep = computed(torch.logical_not, mask.shape, mask)
        x = site.emit(Op.MUL, [x, site.draft(keep)], kind="mul")
    return site.emit(Op.ADD, [x, site.draft(fill)], kind="add")


def _filled(mask: torch.Tensor, value: float) -> torch.Tensor:
    return torch.zeros(mask.shape).masked_fill(mask, value)


def mean(site: Site, x: Draft, axes: Sequence[int] | None = None, keepdim: bool = False, dtype: object = None) -> Draft:
    rank = len(x.shape)
    chosen = tuple(sorted(axis % rank for axis in (axes or range(rank))))
    if not site.shape:  # a number, kept on one axis: it joins other tensors as it would without any
        one = site.emit(Op.MEAN, [x], (1,) * rank, channel_axis=x.channel_axis, axes=chosen, keepdim=True)
        return site.reshape(one, (1,))
    axis = x.channel_axis if keepdim else x.channel_axis - sum(a < x.channel_axis for a in chosen)
    axis = min(max(axis, 1), max(len(site.shape) - 1, 1))
    return site.emit(Op.MEAN, [x], channel_axis=axis, axes=chosen, keepdim=keepdim)


def total(
    site: Site, x: Draft, axes: Sequence[int] | None = None, keepdim: bool = False, dtype: object = None
) -> Draft:
    """A sum: the mean times the number of terms."""
    average = mean(site, x, axes, keepdim)
    terms = math.prod(x.shape[axis] for axis in average.attributes["axes"])
    return site.emit(Op.MUL, [average], kind="mul", scalar=float(terms))


def rounded(site: Site, x: Draft, scale: Value, zero_point: Value, lowest: int, highest: int) -> Draft:
    """Fake quantisation: no work of its own. It says that the network is in int8; the graph does not round."""
    if highest - lowest > 255:
        raise UnsupportedError(f"rounds to {lowest} .. {highest}, only 8 bits are modelled")
    site.sheet.is_int8 = True
    return x


# ---- activations ----------------------------------------------------------------------------------------------------


def _activation(kind: str) -> Handler:
    def handler(site: Site, x: Draft) -> Draft:
        return site.emit(Op.ACTIVATION, [x], kind=kind)

    return handler


def glu(site: Site, x: Draft, axis: int = -1) -> Draft:
    """The first half of an axis, scaled by the sigmoid of the second."""
    size = x.shape[axis] // 2
    value, gate = (site.slice(x, axis, start, size) for start in (0, size))
    return site.emit(Op.MUL, [value, site.emit(Op.ACTIVATION, [gate], kind="sigmoid")], kind="mul")


def _text(number: float) -> str:
    return str(int(number)) if float(number).is_integer() else repr(float(number))


def clamp(site: Site, x: Draft, low: Value = None, high: Value = None) -> Draft:
    bounds = tuple(
        default if value is None else as_number(value) for value, default in ((low, -math.inf), (high, math.inf))
    )
    if None in bounds:
        raise UnsupportedError("its bounds are tensors, needs numbers")
    texts = {(0, math.inf): "relu", (0, 6): "relu6"}
    kind = texts.get(bounds) or f"hardtanh({','.join(map(_text, bounds))})"  # type: ignore[arg-type]
    return site.emit(Op.ACTIVATION, [x], kind=kind)


def clamp_max(site: Site, x: Draft, high: Value) -> Draft:
    return clamp(site, x, None, high)


def gelu(site: Site, x: Draft, approximate: str) -> Draft:
    return site.emit(Op.ACTIVATION, [x], kind=f"gelu({approximate})")


def leaky_relu(site: Site, x: Draft, slope: float) -> Draft:
    return site.emit(Op.ACTIVATION, [x], kind=f"leaky_relu({_text(slope)})")


def elu(site: Site, x: Draft, alpha: float, scale: float, input_scale: float) -> Draft:
    if (scale, input_scale) != (1, 1):
        raise UnsupportedError("scales its input or output (selu, celu)")
    return site.emit(Op.ACTIVATION, [x], kind=f"elu({_text(alpha)})")


def prelu(site: Site, x: Draft, slopes: Value) -> Draft:
    return site.emit(Op.ACTIVATION, [x], weight=layers.constant(slopes, "slope"), kind="prelu")


def _softmax(log: bool) -> Handler:
    def handler(site: Site, x: Draft, axis: int, dtype: object = None) -> Draft:
        return site.emit(Op.SOFTMAX, [x], axis=axis % len(x.shape), log=log)

    return handler


# ---- the table -------------------------------------------------------------------------------------------------------

OPERATORS: Mapping[str, Handler] = {
    "aten.conv1d.default": layers.conv,
    "aten.conv1d.padding": layers.conv,
    "aten.conv2d.default": layers.conv,
    "aten.conv2d.padding": layers.conv,
    "aten.conv_transpose1d.default": layers.conv_transpose,
    "aten.conv_transpose2d.input": layers.conv_transpose,
    "aten.convolution.default": layers.convolution,
    "aten.linear.default": layers.linear,
    "aten.matmul.default": layers.matmul,
    "aten.mm.default": layers.matmul,
    "aten.bmm.default": layers.matmul,
    "aten.mv.default": layers.matmul,
    "aten.addmm.default": layers.addmm,
    "aten.baddbmm.default": layers.addmm,
    "aten.scaled_dot_product_attention.default": layers.attention,
    "aten.lstm.input": layers.lstm,
    "aten.max_pool1d.default": layers.pool(Op.MAX_POOL, 3),
    "aten.max_pool1d_with_indices.default": layers.pool(Op.MAX_POOL, 3),
    "aten.max_pool2d.default": layers.pool(Op.MAX_POOL, 4),
    "aten.max_pool2d_with_indices.default": layers.pool(Op.MAX_POOL, 4),
    "aten.amax.default": layers.largest,
    "aten.max.dim": layers.largest,
    "aten.avg_pool1d.default": layers.pool(Op.AVG_POOL, 3),
    "aten.avg_pool2d.default": layers.pool(Op.AVG_POOL, 4),
    "aten.adaptive_avg_pool1d.default": layers.adaptive_pool(Op.AVG_POOL),
    "aten.adaptive_avg_pool2d.default": layers.adaptive_pool(Op.AVG_POOL),
    "aten.adaptive_max_pool1d.default": layers.adaptive_pool(Op.MAX_POOL),
    "aten.adaptive_max_pool2d.default": layers.adaptive_pool(Op.MAX_POOL),
    "aten.add.Tensor": add,
    "aten.add.Scalar": add,
    "aten.sub.Tensor": sub,
    "aten.sub.Scalar": sub,
    "aten.rsub.Tensor": rsub,
    "aten.rsub.Scalar": rsub,
    "aten.mul.Tensor": mul,
    "aten.mul.Scalar": mul,
    "aten.div.Tensor": div,
    "aten.div.Scalar": div,
    "aten.div.Tensor_mode": div,
    "aten.maximum.default": extreme("maximum"),
    "aten.max.other": extreme("maximum"),
    "aten.minimum.default": extreme("minimum"),
    "aten.min.other": extreme("minimum"),
    "aten.neg.default": negate,
    "aten.reciprocal.default": reciprocal,
    "aten.square.default": power,
    "aten.pow.Tensor_Scalar": power,
    "aten.masked_fill.Scalar": masked_fill,
    "aten.masked_fill.Tensor": masked_fill,
    "aten.mean.default": mean,
    "aten.mean.dim": mean,
    "aten.sum.dim_IntList": total,
    "aten.relu.default": _activation("relu"),
    "aten.relu6.default": _activation("relu6"),
    "aten.sigmoid.default": _activation("sigmoid"),
    "aten.tanh.default": _activation("tanh"),
    "aten.silu.default": _activation("silu"),
    "aten.glu.default": glu,
    "aten.hardswish.default": _activation("hardswish"),
    "aten.hardsigmoid.default": _activation("hardsigmoid"),
    "aten.mish.default": _activation("mish"),
    "aten.abs.default": _activation("abs"),
    "aten.absolute.default": _activation("abs"),
    "aten.sqrt.default": _activation("sqrt"),
    "aten.gelu.default": gelu,
    "aten.leaky_relu.default": leaky_relu,
    "aten.elu.default": elu,
    "aten.prelu.default": prelu,
    "aten.hardtanh.default": clamp,
    "aten.clamp.default": clamp,
    "aten.clamp_min.default": clamp,
    "aten.clamp_max.default": clamp_max,
    "aten.softmax.int": _softmax(log=False),
    "aten.log_softmax.int": _softmax(log=True),
    "aten.batch_norm.default": layers.batch_norm,
    "aten.layer_norm.default": layers.layer_norm,
    "aten.group_norm.default": layers.group_norm,
    "aten.instance_norm.default": layers.instance_norm,
    "aten.fake_quantize_per_tensor_affine.default": rounded,
    "aten.fake_quantize_per_tensor_affine.tensor_qparams": rounded,
    **moves.OPERATORS,
}
