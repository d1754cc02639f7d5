"""The rows of the operator table that only move data, and those that leave no layer at all.

Views are merged as they are written (`Site.reshape`, `transpose`, `slice`). Of an operator with several outputs a
handler returns `Piece`s, so that only the outputs that are used become layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch

from workloads.constants import Constant, computed, fill_value
from workloads.drafts import Draft, Handler, Piece, Site, UnsupportedError, Value, as_number
from workloads.graph import Op


def missing(what: str) -> Piece:
    """An output that no layer has."""

    def piece() -> Value:
        raise UnsupportedError(f"{what} cannot be expressed")

    return piece


def first_only(site: Site, found: Draft, what: str) -> Value:
    """`found`, or a pair of it and something that no layer has, as the operator answers it."""
    return found if len(site.shapes) == 1 else [lambda: found, missing(what)]


# ---- nothing to do ---------------------------------------------------------------------------------------------------


def same(site: Site, x: Value, *rest: object) -> Value:
    """Copies, casts between floats and markers: the same numbers."""
    return x


def dropout(site: Site, x: Value, p: float, train: bool) -> Value:
    if train and p:
        raise UnsupportedError("drops out at random in eval mode too; pass training=self.training")
    return x


def filled(value: float | None, is_like: bool = True) -> Handler:
    """zeros_like and its kin; None: the value is the next argument after the shape.

    Args:
        is_like: whether the shape is that of the argument by definition, so that it follows as channels go.
    """

    def handler(site: Site, x: Value, *rest: Value) -> Constant:
        number = value
        if number is None:
            number = as_number(next(item for item in rest if not isinstance(item, list | tuple)))
        if number is None:
            raise UnsupportedError("fills with a tensor, needs a number")
        found = computed(torch.full, site.shape, site.shape, float(number))
        if is_like and isinstance(x, Draft) and math.isfinite(number):
            site.sheet.likenesses[found] = x, float(number)
        return found

    return handler


def copied(site: Site, x: Value, y: Value, *rest: object) -> Value:
    """x.copy_(y): what x is from now on."""
    return y if y.shape == site.shape else site.expand(y, site.shape)


# ---- views -----------------------------------------------------------------------------------------------------------


def reshape(site: Site, x: Draft, *rest: object) -> Draft:
    return site.reshape(x, site.shape)


def transpose(site: Site, x: Draft, first: int, second: int) -> Draft:
    axes = list(range(len(x.shape)))
    axes[first], axes[second] = axes[second], axes[first]
    return site.transpose(x, axes)


def permute(site: Site, x: Draft, axes: Sequence[int]) -> Draft:
    return site.transpose(x, axes)


def transpose_matrix(site: Site, x: Draft) -> Draft:
    """`t`, `mT`, `adjoint`: the last two axes; `t` leaves a vector as it is."""
    return x if len(x.shape) < 2 else transpose(site, x, -2, -1)


def reverse_axes(site: Site, x: Draft) -> Draft:
    return site.transpose(x, range(len(x.shape))[::-1])


def move_axes(site: Site, x: Draft, source: int | Sequence[int], target: int | Sequence[int]) -> Draft:
    sources = [source] if isinstance(source, int) else source
    targets = [target] if isinstance(target, int) else target
    rank = len(x.shape)
    moved = {to % rank: axis % rank for axis, to in zip(sources, targets, strict=True)}
    rest = iter(axis for axis in range(rank) if axis not in moved.values())
    return site.transpose(x, [moved[i] if i in moved else next(rest) for i in range(rank)])


def expand(site: Site, x: Draft, *rest: object) -> Draft:
    return site.expand(x, site.shape)


def repeat(site: Site, x: Draft, repeats: Sequence[int]) -> Draft:
    """Axes of size 1 are broadcast, others concatenated with themselves."""
    x = site.reshape(x, (1,) * (len(repeats) - len(x.shape)) + x.shape)
    for axis, times in enumerate(repeats):
        if x.shape[axis] > 1 and times > 1:
            shape = (*x.shape[:axis], x.shape[axis] * times, *x.shape[axis + 1 :])
            x = site.emit(Op.CONCAT, [x] * times, shape, axis=axis)
    return site.expand(x, site.shape)


# ---- parts of a tensor -----------------------------------------------------------------------------------------------


def slice_axis(site: Site, x: Draft, axis: int, start: int | None, end: int | None, step: int) -> Draft:
    taken = range(*slice(start, end, step).indices(x.shape[axis]))
    return site.slice(x, axis, taken.start, len(taken), step)


def narrow(site: Site, x: Draft, axis: int, start: int, length: int) -> Draft:
    return site.slice(x, axis, start % x.shape[axis], length)


def select(site: Site, x: Draft, axis: int, index: int) -> Draft:
    axis %= len(x.shape)
    part = site.slice(x, axis, index % x.shape[axis], 1)
    return site.reshape(part, part.shape[:axis] + part.shape[axis + 1 :])


def split(site: Site, x: Draft, how: object, axis: int = 0) -> list[Piece]:
    """split, chunk and the like: parts next to each other, sized as the traced program says."""
    sizes = [shape[axis] for shape in site.shapes]
    starts = [0, *accumulate(sizes)]
    return [lambda at=at, size=size: site.slice(x, axis, at, size) for at, size in zip(starts, sizes, strict=False)]  # type: ignore[misc]


def unbind(site: Site, x: Draft, axis: int = 0) -> list[Piece]:
    return [lambda i=i: select(site, x, axis, i) for i in range(x.shape[axis])]  # type: ignore[misc]


# ---- joining and padding ---------------------------------------------------------------------------------------------


def concat(site: Site, parts: Sequence[Value], axis: int = 0) -> Draft:
    """Zeros made by the code at either end are a padding; other constants are broadcast to the batch."""
    kept = [part for part in parts if math.prod(part.shape)]
    axis %= len(site.shape)
    fills = [_fill(part) for part in kept]
    values = {fill for fill in fills if fill is not None}
    if sum(fill is None for fill in fills) == 1 and len(values) == 1:
        middle = fills.index(None)
        before = sum(part.shape[axis] for part in kept[:middle])
        after = sum(part.shape[axis] for part in kept[middle + 1 :])
        return _constant_pad(site, kept[middle], {axis: (before, after)}, values.pop())
    batch = next(part.shape[0] for part in kept if isinstance(part, Draft))
    layers = [_along(site, part, batch, axis) for part in kept]
    return layers[0] if len(layers) == 1 else site.emit(Op.CONCAT, layers, axis=axis)


def _fill(part: Value) -> float | None:
    return fill_value(part) if isinstance(part, Constant) else None


def _along(site: Site, part: Value, batch: int, axis: int) -> Draft:
    """A layer; a constant is given its batch by a broadcast, since constants have none of their own."""
    if isinstance(part, Draft) or axis == 0 or part.shape[0] not in (1, batch):
        return site.draft(part)
    return site.expand(part, part.shape)


def stack(site: Site, parts: Sequence[Value], axis: int = 0) -> Draft:
    axis %= len(site.shape)
    shape = (*site.shape[:axis], 1, *site.shape[axis + 1 :])
    layers = [site.reshape(site.draft(part), shape) for part in parts]
    return layers[0] if len(layers) == 1 else site.emit(Op.CONCAT, layers, axis=axis)


def pad(site: Site, x: Draft, widths: Sequence[int], mode: str = "constant", value: float | None = None) -> Draft:
    """Widths as torch counts them: from the last axis, before and after; a negative one crops."""
    rank = len(x.shape)
    pairs = {rank - 1 - i: (widths[2 * i], widths[2 * i + 1]) for i in range(len(widths) // 2)}
    for axis, (before, after) in pairs.items():
        low, high = min(before, 0), min(after, 0)
        x = site.slice(x, axis, -low, x.shape[axis] + low + high)
    grown = {axis: (max(before, 0), max(after, 0)) for axis, (before, after) in pairs.items()}
    if mode == "constant":
        return _constant_pad(site, x, grown, float(value or 0.0))
    return _pad(site, x, grown, mode=mode)


def _constant_pad(site: Site, x: Draft, widths: Mapping[int, tuple[int, int]], value: float) -> Draft:
    return _pad(site, x, widths, mode="constant", value=value)


def _pad(site: Site, x: Draft, widths: Mapping[int, tuple[int, int]], **attributes: Any) -> Draft:
    before, after = (tuple(widths.get(axis, (0, 0))[i] for axis in range(len(x.shape))) for i in (0, 1))
    if not any(before + after):
        return x
    return site.emit(Op.PAD, [x], before=before, after=after, **attributes)


def pad_constant(site: Site, x: Draft, widths: Sequence[int], value: float = 0.0) -> Draft:
    return pad(site, x, widths, "constant", value)


def _pad_mode(mode: str) -> Handler:
    def handler(site: Site, x: Draft, widths: Sequence[int]) -> Draft:
        return pad(site, x, widths, mode)

    return handler


# ---- pixels ----------------------------------------------------------------------------------------------------------


def _pixel_shuffle(inverse: bool) -> Handler:
    def handler(site: Site, x: Draft, factor: int) -> Draft:
        if len(x.shape) != 4:
            raise UnsupportedError(f"its input has {len(x.shape)} axes, needs 4: batch, channels, height and width")
        return site.emit(Op.PIXEL_SHUFFLE, [x], factor=factor, inverse=inverse)

    return handler


def channel_shuffle(site: Site, x: Draft, groups: int) -> Draft:
    n, c, *size = x.shape
    grouped = site.reshape(x, (n, groups, c // groups, *size))
    swapped = site.transpose(grouped, (0, 2, 1, *range(3, len(grouped.shape))))
    return site.reshape(swapped, x.shape)


def upsample_nearest(site: Site, x: Draft, size: object, *scales: Value) -> Draft:
    _check_scales(site, x, scales)
    return site.emit(Op.UPSAMPLE, [x], mode="nearest")


def upsample_bilinear(site: Site, x: Draft, size: object, align_corners: bool, *scales: Value) -> Draft:
    _check_scales(site, x, scales)
    return site.emit(Op.UPSAMPLE, [x], mode="bilinear", align_corners=align_corners)


def _check_scales(site: Site, x: Draft, scales: Sequence[Value]) -> None:
    """torch samples by the factor that it is given, a layer by the ratio of the sizes: they must agree."""
    factors = [f for item in scales for f in (item if isinstance(item, list | tuple) else [item]) if f is not None]
    for factor, before, after in zip(factors, x.shape[2:], site.shape[2:], strict=False):
        if before * factor != after:
            raise UnsupportedError(f"scales {before} by {factor}, which is no whole number; give the size instead")


OPERATORS: Mapping[str, Handler] = {
    **dict.fromkeys(
        (
            "aten.alias.default",
            "aten.clone.default",
            "aten.contiguous.default",
            "aten.detach.default",
            "aten.lift_fresh_copy.default",
            "aten.positive.default",
            "aten.to.device",
            "aten.to.dtype",
            "aten.to.dtype_layout",
            "aten.to.other",
            "aten.type_as.default",
            "aten._to_copy.default",
        ),
        same,
    ),
    **dict.fromkeys(
        (
            "aten.flatten.using_ints",
            "aten.ravel.default",
            "aten.reshape.default",
            "aten.reshape_as.default",
            "aten.squeeze.default",
            "aten.squeeze.dim",
            "aten.squeeze.dims",
            "aten.unflatten.int",
            "aten.unsqueeze.default",
            "aten.view.default",
            "aten.view_as.default",
            "aten._unsafe_view.default",
        ),
        reshape,
    ),
    "aten.dropout.default": dropout,
    "aten.feature_dropout.default": dropout,
    "aten.alpha_dropout.default": dropout,
    "aten.feature_alpha_dropout.default": dropout,
    "aten.copy.default": copied,
    "aten.fill.Scalar": filled(None),
    "aten.fill.Tensor": filled(None),
    "aten.zero.default": filled(0.0),
    "aten.zeros_like.default": filled(0.0),
    "aten.ones_like.default": filled(1.0),
    "aten.full_like.default": filled(None),
    "aten.new_zeros.default": filled(0.0, is_like=False),
    "aten.new_ones.default": filled(1.0, is_like=False),
    "aten.new_full.default": filled(None, is_like=False),
    "aten.transpose.int": transpose,
    "aten.swapaxes.default": transpose,
    "aten.swapdims.default": transpose,
    "aten.permute.default": permute,
    "aten.t.default": transpose_matrix,
    "aten.mT.default": transpose_matrix,
    "aten.matrix_H.default": transpose_matrix,
    "aten.adjoint.default": transpose_matrix,
    "aten.numpy_T.default": reverse_axes,
    "aten.movedim.int": move_axes,
    "aten.movedim.intlist": move_axes,
    "aten.moveaxis.int": move_axes,
    "aten.moveaxis.intlist": move_axes,
    "aten.expand.default": expand,
    "aten.expand_as.default": expand,
    "aten.broadcast_to.default": expand,
    "aten.repeat.default": repeat,
    "aten.slice.Tensor": slice_axis,
    "aten.narrow.default": narrow,
    "aten.select.int": select,
    "aten.split.Tensor": split,
    "aten.split.sizes": split,
    "aten.split_with_sizes.default": split,
    "aten.chunk.default": split,
    "aten.tensor_split.sections": split,
    "aten.tensor_split.indices": split,
    "aten.unbind.int": unbind,
    "aten.cat.default": concat,
    "aten.concat.default": concat,
    "aten.concatenate.default": concat,
    "aten.stack.default": stack,
    "aten.pad.default": pad,
    "aten.constant_pad_nd.default": pad_constant,
    "aten.reflection_pad1d.default": _pad_mode("reflect"),
    "aten.reflection_pad2d.default": _pad_mode("reflect"),
    "aten.replication_pad1d.default": _pad_mode("replicate"),
    "aten.replication_pad2d.default": _pad_mode("replicate"),
    "aten.pixel_shuffle.default": _pixel_shuffle(inverse=False),
    "aten.pixel_unshuffle.default": _pixel_shuffle(inverse=True),
    "aten.channel_shuffle.default": channel_shuffle,
    "aten.upsample_nearest1d.vec": upsample_nearest,
    "aten.upsample_nearest1d.default": upsample_nearest,
    "aten.upsample_nearest2d.vec": upsample_nearest,
    "aten.upsample_nearest2d.default": upsample_nearest,
    "aten.upsample_bilinear2d.vec": upsample_bilinear,
    "aten.upsample_bilinear2d.default": upsample_bilinear,
}
