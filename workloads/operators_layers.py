"""Rows of the operator table for what multiplies, pools and normalises: layers with a loop nest or stored arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from workloads import operators_moves as moves
from workloads.constants import LARGE, Constant, Literal, Norm, computed, fill_value
from workloads.drafts import Draft, Handler, Site, UnsupportedError, Value
from workloads.graph import Op

Numbers = int | Sequence[int]

# ---- convolutions and pooling: a sequence (n, c, length) is an image of width 1 --------------------------------------


def _pair(value: Numbers, rank: int, second: int) -> tuple[int, int]:
    """(height, width) from one number or one an axis; sequences get `second` as width."""
    values = (value,) if isinstance(value, int) else tuple(value)
    if rank == 3:
        return values[0], second
    return (values[0], values[0]) if len(values) == 1 else (values[0], values[1])


def _image(x: Value, rank: int) -> Draft:
    if not isinstance(x, Draft):
        raise UnsupportedError("its input is no activation but a constant")
    if len(x.shape) != rank:
        raise UnsupportedError(
            f"its input has {len(x.shape)} axes, needs {rank}; give example inputs with a batch axis"
        )
    return x


def constant(value: Value, what: str) -> Constant:
    if not isinstance(value, Constant):
        raise UnsupportedError(f"its {what} depends on the input, needs parameters or buffers")
    return value


def _optional(value: Value, what: str) -> Constant | None:
    return None if value is None else constant(value, what)


def _window(x: Draft, kernel: tuple[int, int], stride: Numbers, padding: Numbers, dilation: Numbers) -> dict[str, Any]:
    """The fields of a layer that slides a window over an image."""
    rank = len(x.shape)
    top, left = _pair(padding, rank, 0)
    return {
        "r": kernel[0],
        "s": kernel[1],
        "in_h": x.shape[2],
        "in_w": x.shape[3] if rank == 4 else 1,
        "stride": _pair(stride, rank, 1),
        "dilation": _pair(dilation, rank, 1),
        "padding": (top, top, left, left),
    }


def conv(
    site: Site,
    x: Value,
    weight: Value,
    bias: Value,
    stride: Numbers,
    padding: Numbers | str,
    dilation: Numbers,
    groups: int,
) -> Draft:
    weight = constant(weight, "weight")
    rank = len(weight.shape)
    x = _image(x, rank)
    kernel = _pair(weight.shape[2:], rank, 1)
    dims = _window(x, kernel, stride, 0 if isinstance(padding, str) else padding, dilation)
    if padding == "same":
        dims["padding"] = _same_padding(kernel, _pair(dilation, rank, 1))
    dims |= {"c": x.shape[1], "groups": groups}
    return site.emit(Op.CONV, [x], weight=weight, bias=_optional(bias, "bias"), dims=dims)


def _same_padding(kernel: tuple[int, int], dilation: tuple[int, int]) -> tuple[int, int, int, int]:
    """What keeps the size at stride 1; the odd pixel goes to the bottom and right, as torch does."""
    height, width = (d * (size - 1) for d, size in zip(dilation, kernel, strict=True))
    return height // 2, height - height // 2, width // 2, width - width // 2


def conv_transpose(
    site: Site,
    x: Value,
    weight: Value,
    bias: Value,
    stride: Numbers,
    padding: Numbers,
    output_padding: Numbers,
    groups: int,
    dilation: Numbers,
) -> Draft:
    weight = constant(weight, "weight")
    rank = len(weight.shape)
    x = _image(x, rank)
    dims = _window(x, _pair(weight.shape[2:], rank, 1), stride, padding, dilation)
    dims |= {"c": x.shape[1], "groups": groups}
    extra = _pair(output_padding, rank, 0)
    return site.emit(
        Op.CONV_TRANSPOSE, [x], weight=weight, bias=_optional(bias, "bias"), dims=dims, output_padding=extra
    )


def convolution(
    site: Site,
    x: Value,
    weight: Value,
    bias: Value,
    stride: Numbers,
    padding: Numbers,
    dilation: Numbers,
    transposed: bool,
    output_padding: Numbers,
    groups: int,
) -> Draft:
    if transposed:
        return conv_transpose(site, x, weight, bias, stride, padding, output_padding, groups, dilation)
    return conv(site, x, weight, bias, stride, padding, dilation, groups)


def pool(op: Op, rank: int) -> Handler:
    def handler(site: Site, x: Value, kernel: Numbers, stride: Numbers, padding: Numbers, *rest: object) -> Value:
        """`rest`: dilation and ceil for maxima; ceil, include padding and divisor for means."""
        x = _image(x, rank)
        dilation = rest[0] if op is Op.MAX_POOL else 1
        size = _pair(kernel, rank, 1)
        dims = _window(x, size, stride or kernel, padding, dilation)  # type: ignore[arg-type]
        if op is Op.MAX_POOL:
            attributes: dict[str, Any] = {"ceil": bool(rest[1])}
        else:
            divisor = rest[2] if len(rest) > 2 else 0
            attributes = {"ceil": bool(rest[0]), "count_include_pad": bool(rest[1]), "divisor": divisor or 0}
        return moves.first_only(site, site.emit(op, [x], dims=dims, **attributes), "indices of a pooling")

    return handler


ADAPTIVE = "on all axes a divisor of the input's size, or on all axes a multiple"


def adaptive_pool(op: Op) -> Handler:
    def handler(site: Site, x: Value, output_size: object) -> Value:
        """Equal windows are a pooling, equal repetitions an upsampling."""
        x = _image(x, len(site.shape))
        before, after = x.shape[2:], site.shape[2:]
        if before == after:
            found = x
        elif all(size % count == 0 for size, count in zip(before, after, strict=True)):
            found = _equal_windows(site, op, x, after)
        elif all(count % size == 0 for size, count in zip(before, after, strict=True)):
            found = site.emit(Op.UPSAMPLE, [x], mode="nearest")
        else:
            raise UnsupportedError(f"pools {before} to {after} with windows of different sizes; allowed: {ADAPTIVE}")
        return moves.first_only(site, found, "indices of a pooling")

    return handler


def _equal_windows(site: Site, op: Op, x: Draft, after: tuple[int, ...]) -> Draft:
    kernel = tuple(size // count for size, count in zip(x.shape[2:], after, strict=True))
    dims = _window(x, _pair(kernel, len(x.shape), 1), kernel, 0, 1)
    if op is Op.MAX_POOL:
        return site.emit(op, [x], dims=dims, ceil=False)
    return site.emit(op, [x], dims=dims, ceil=False, count_include_pad=True, divisor=0)


def largest(site: Site, x: Draft, axes: int | Sequence[int] = (), keepdim: bool = False) -> Value:
    """The maximum over axes of space: a pooling whose window is the whole of them."""
    rank = len(x.shape)
    chosen = {axis % rank for axis in ((axes,) if isinstance(axes, int) else axes or range(rank))}
    if rank not in (3, 4) or not chosen.isdisjoint((0, x.channel_axis)):
        raise UnsupportedError(
            f"takes the maximum over axes {sorted(chosen)}, only height, width and length are modelled"
        )
    order = (0, x.channel_axis, *(axis for axis in range(1, rank) if axis != x.channel_axis))
    image = site.transpose(x, order)
    after = tuple(1 if axis in chosen else x.shape[axis] for axis in order)
    kernel = _pair([before // size for before, size in zip(image.shape, after, strict=True)][2:], rank, 1)
    found = site.emit(Op.MAX_POOL, [image], after, dims=_window(image, kernel, kernel, 0, 1), ceil=False)
    if math.prod(after[2:]) > 1 or keepdim:
        found = site.transpose(found, [order.index(axis) for axis in range(rank)])
    return moves.first_only(site, site.reshape(found, site.shape), "indices of a maximum")


# ---- products of matrices --------------------------------------------------------------------------------------------


def linear(site: Site, x: Value, weight: Value, bias: Value = None, label: str = "") -> Draft:
    """(..., C) x (K, C) transposed; a weight that depends on the input makes it a matmul."""
    if not (isinstance(weight, Constant) and isinstance(x, Draft)):
        w = site.draft(weight)
        found = matmul(site, x, site.transpose(w, (*range(len(w.shape) - 2), -1, -2)))
        return found if bias is None else site.emit(Op.ADD, [found, site.draft(bias)], found.shape, kind="add")
    if len(x.shape) < 2:
        raise UnsupportedError("its input has no batch axis; give example inputs with one")
    k, c = weight.shape
    n, positions = x.shape[0], math.prod(x.shape[1:-1])
    dims = {"n": n, "k": k, "c": c, "p": positions, "q": 1, "in_h": positions}
    shape = (*x.shape[:-1], k)
    return site.emit(Op.LINEAR, [x], shape, label=label, weight=weight, bias=_optional(bias, "bias"), dims=dims)


def matmul(site: Site, a: Value, b: Value, label: str = "", scale: float = 1.0) -> Draft:
    """(..., M, C) x (..., C, K), leading dims broadcast; by a constant matrix it is a linear layer."""
    if isinstance(a, Draft) and isinstance(b, Constant) and len(b.shape) <= 2 and scale == 1.0:
        return _matmul_by_constant(site, a, b, label)
    if min(len(a.shape), len(b.shape)) < 2:
        raise UnsupportedError("multiplies by a vector that depends on the input; give it a second axis")
    lead = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    first, second = (
        x if isinstance(x, Draft) and x.shape[:-2] == lead else site.expand(x, (*lead, *x.shape[-2:])) for x in (a, b)
    )
    m, c, k = first.shape[-2], first.shape[-1], second.shape[-1]
    dims = {"n": math.prod(lead), "k": k, "c": c, "p": m, "q": 1, "in_h": m}
    return site.emit(Op.MATMUL, [first, second], (*lead, m, k), label=label, dims=dims, scale=float(scale))


def _matmul_by_constant(site: Site, a: Draft, b: Constant, label: str) -> Draft:
    if len(b.shape) == 1:
        row = computed(torch.unsqueeze, (1, b.shape[0]), b, 0)
        return site.reshape(linear(site, a, row, label=label), a.shape[:-1])
    return linear(site, a, computed(torch.t, b.shape[::-1], b), label=label)


def addmm(site: Site, bias: Value, a: Value, b: Value, beta: float, alpha: float) -> Draft:
    """beta * bias + alpha * a @ b."""
    if alpha == 1 and beta == 1 and isinstance(b, Constant) and isinstance(bias, Constant) and len(bias.shape) == 1:
        return linear(site, a, computed(torch.t, b.shape[::-1], b), bias)
    found = matmul(site, a, b)
    if alpha != 1:
        found = site.emit(Op.MUL, [found], kind="mul", scalar=float(alpha))
    return site.emit(Op.ADD, [found, site.draft(bias)], kind="add", alpha=float(beta))


def attention(
    site: Site,
    query: Value,
    key: Value,
    value: Value,
    mask: Value,
    dropout: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Draft:
    """softmax(query @ key^T * scale + mask) @ value."""
    if dropout:
        raise UnsupportedError("drops out at random in eval mode too; write dropout_p=p if self.training else 0.0")
    if enable_gqa:
        raise UnsupportedError("shares heads (enable_gqa); repeat the keys and values instead")
    key, value = (x if isinstance(x, Draft) else site.expand(x, x.shape) for x in (key, value))
    length, source, width = query.shape[-2], key.shape[-2], query.shape[-1]
    turned = site.transpose(key, (*range(len(key.shape) - 2), -1, -2), label="transpose")
    scores = matmul(site, query, turned, "scores", 1 / math.sqrt(width) if scale is None else scale)
    if is_causal:
        mask = Literal(torch.ones(length, source, dtype=torch.bool).tril())
    if mask is not None:
        if isinstance(mask, Constant):
            mask = computed(_additive, mask.shape, mask)
        scores = site.emit(Op.ADD, [scores, site.draft(mask)], scores.shape, label="mask", kind="add")
    axis = len(scores.shape) - 1
    weights = site.emit(Op.SOFTMAX, [scores], scores.shape, label="softmax", axis=axis, log=False)
    return matmul(site, weights, value, "context")


def _additive(mask: torch.Tensor) -> torch.Tensor:
    """A boolean mask, True = look, as what is added to the scores."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape).masked_fill(~mask, -LARGE)


# ---- recurrent -------------------------------------------------------------------------------------------------------


def lstm(
    site: Site,
    x: Value,
    state: Sequence[Value],
    parameters: Sequence[Value],
    has_biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> list[moves.Piece]:
    """One layer for each depth and direction; directions are concatenated."""
    if not isinstance(x, Draft) or len(x.shape) != 3:
        raise UnsupportedError("its input needs 3 axes: batch, time and features")
    if not all(isinstance(item, Constant) and fill_value(item) == 0 for item in state):
        raise UnsupportedError("starts from a given state; only a start from zeros is modelled")
    directions, each = 1 + bidirectional, 4 if has_biases else 2
    if len(parameters) != layers * directions * each:
        raise UnsupportedError("projects its state (proj_size); only plain cells are modelled")
    finals = []
    for depth in range(layers):
        found = []
        for direction in range(directions):
            at = (depth * directions + direction) * each
            found.append(_lstm_layer(site, x, parameters[at : at + each], depth, bool(direction), batch_first))
            finals.append(found[-1])
        x = _join(site, found, 2, f"l{depth}_both")

    def state_pieces() -> Draft:
        return _join(site, [_final_state(site, draft) for draft in finals], 0, "state")

    return [lambda: x, state_pieces, moves.missing("the cell state of an LSTM")]


def _join(site: Site, parts: list[Draft], axis: int, label: str) -> Draft:
    if len(parts) == 1:
        return parts[0]
    shape = [*parts[0].shape]
    shape[axis] = sum(part.shape[axis] for part in parts)
    return site.emit(Op.CONCAT, parts, shape, label=label, axis=axis)


def _lstm_layer(
    site: Site, x: Draft, parameters: Sequence[Value], depth: int, reverse: bool, batch_first: bool
) -> Draft:
    inside, outside, *biases = (constant(value, "weight") for value in parameters)
    gates, hidden = outside.shape
    batch, time = x.shape[:2] if batch_first else x.shape[1::-1]
    width = x.shape[2] + hidden
    return site.emit(
        Op.LSTM,
        [x],
        (*x.shape[:2], hidden),
        label=f"l{depth}" + ("_reverse" if reverse else ""),
        weight=computed(_concatenated, (gates, width), inside, outside),
        bias=computed(torch.add, (gates,), *biases) if biases else None,
        dims={"n": batch, "k": gates, "c": width, "p": time, "q": 1, "in_h": time},
        hidden=hidden,
        reverse=reverse,
        batch_first=batch_first,
    )


def _concatenated(inside: torch.Tensor, outside: torch.Tensor) -> torch.Tensor:
    return torch.cat([inside, outside], dim=1)


def _final_state(site: Site, draft: Draft) -> Draft:
    """(1, N, H): what a layer of an LSTM answers at its last time step."""
    axis = 1 if draft.attributes["batch_first"] else 0
    last = 0 if draft.attributes["reverse"] else draft.shape[axis] - 1
    step = site.slice(draft, axis, last, 1)
    return site.transpose(step, (1, 0, 2)) if axis else step


# ---- normalisations --------------------------------------------------------------------------------------------------


def batch_norm(
    site: Site,
    x: Draft,
    weight: Value,
    bias: Value,
    average: Value,
    variance: Value,
    training: bool,
    momentum: float,
    eps: float,
    cudnn: bool = False,
) -> Draft:
    if training or average is None or variance is None:
        raise UnsupportedError("normalises with the statistics of its batch; keep running statistics")
    stored = (_optional(weight, "weight"), _optional(bias, "bias"))
    norm = Norm(*stored, constant(average, "mean"), constant(variance, "variance"), eps)
    draft = site.emit(Op.NORM, [x], channel_axis=1, kind="affine", eps=eps)
    draft.norms.append(norm)
    return draft


def layer_norm(
    site: Site, x: Draft, shape: Sequence[int], weight: Value, bias: Value, eps: float, cudnn: bool = False
) -> Draft:
    axes = tuple(range(len(x.shape) - len(shape), len(x.shape)))
    axis = axes[0] if len(axes) == 1 else x.channel_axis
    arrays = {"weight": _optional(weight, "weight"), "bias": _optional(bias, "bias")}
    return site.emit(Op.NORM, [x], channel_axis=axis, **arrays, kind="layer", axes=axes, eps=eps)  # type: ignore[arg-type]


def group_norm(site: Site, x: Draft, groups: int, weight: Value, bias: Value, eps: float, cudnn: bool = False) -> Draft:
    arrays = {"weight": _optional(weight, "weight"), "bias": _optional(bias, "bias")}
    return site.emit(Op.NORM, [x], channel_axis=1, **arrays, kind="group", groups=groups, eps=eps)  # type: ignore[arg-type]


def instance_norm(
    site: Site,
    x: Draft,
    weight: Value,
    bias: Value,
    average: Value,
    variance: Value,
    use_input: bool,
    momentum: float,
    eps: float,
    cudnn: bool,
) -> Draft:
    if not use_input:
        return batch_norm(site, x, weight, bias, average, variance, False, momentum, eps)
    arrays = {"weight": _optional(weight, "weight"), "bias": _optional(bias, "bias")}
    return site.emit(Op.NORM, [x], channel_axis=1, **arrays, kind="instance", eps=eps)  # type: ignore[arg-type]
