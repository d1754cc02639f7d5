"""Layers while they are being made: what the operators of a traced program write, and lowering turns into `Layer`s.

A `Draft` is a layer that may still change: batch norms fold into it, an activation attaches to it, and only at the end
it gets a name and keys for its arrays. It refers to its inputs as objects. A `Site` is the place of one operator call
in the traced program; everything a handler emits goes through it, so that each draft knows the module it came from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workloads.constants import Computed, Constant, Literal, Norm, Stored, fill_value
from workloads.graph import Op

CHANNEL_LAST = frozenset({Op.LINEAR, Op.MATMUL, Op.LSTM})
CHANNEL_SECOND = frozenset({Op.CONV, Op.CONV_TRANSPOSE, Op.MAX_POOL, Op.AVG_POOL, Op.PIXEL_SHUFFLE, Op.UPSAMPLE})


class UnsupportedError(Exception):
    """A handler cannot express this call; the text says why."""


@dataclass(frozen=True)
class Scope:
    """The module call that an operator runs in.

    Attributes:
        call: differs between two calls of one module.
        path: of the module, "" for the model itself.
        kind: name of its class.
    """

    call: str
    path: str
    kind: str


@dataclass(eq=False)
class Draft:
    """One layer to be; fields as in `Layer`.

    Attributes:
        label: what to call it inside its module, e.g. "add".
        dims: fields of the loop nest that do not follow from the shape.
        weight, bias: what its arrays are computed from.
        norms: batch norms folded into it; of an affine norm layer, the norm itself.
        name: where it is known from the start, as for inputs.
    """

    op: Op
    shape: tuple[int, ...]
    inputs: list[Draft]
    scope: Scope
    label: str
    channel_axis: int
    bits: int = 32
    dims: Mapping[str, Any] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    weight: Constant | None = None
    bias: Constant | None = None
    norms: list[Norm] = field(default_factory=list)
    activation: str = ""
    fused_into: Draft | None = None
    name: str = ""

    @property
    def nest(self) -> dict[str, int]:
        """n, k, c, p, q of a layer that keeps its channels (K = C)."""
        if len(self.shape) < 2:
            return {"n": math.prod(self.shape), "k": 1, "c": 1, "p": 1, "q": 1}
        axes = [axis for axis in range(len(self.shape)) if axis not in (0, self.channel_axis)]
        sizes = [self.shape[axis] for axis in axes]
        k = self.shape[self.channel_axis]
        n = self.shape[0] if self.channel_axis else 1
        return {"n": n, "k": k, "c": k, "p": sizes[0] if sizes else 1, "q": math.prod(sizes[1:])}


Value = Any  # Draft, Constant, a list of values or of `Piece`s, a number, text, None
Piece = Callable[[], Value]  # one output of an operator that has several, made when it is asked for
Handler = Callable[..., Value]  # (site, *arguments of the operator) -> what it becomes


@dataclass
class Sheet:
    """All drafts of a network, in the order in which they run.

    Attributes:
        constants: the layer of each constant that has one.
        likenesses: of a constant whose shape is that of a layer by definition: the layer, and the number that fills it.
        is_int8: whether something is rounded to 8 bits: then everything is taken to be.
    """

    drafts: list[Draft] = field(default_factory=list)
    constants: dict[Constant, Draft] = field(default_factory=dict)
    likenesses: dict[Constant, tuple[Draft, float]] = field(default_factory=dict)
    is_int8: bool = False


@dataclass(frozen=True)
class Site:
    """Where one operator call stands.

    Attributes:
        sheet: what its drafts are added to.
        scope: module call.
        target: the operator, e.g. "aten.conv2d.default".
        node: its name in the traced program.
        shapes: of its outputs.
        bits: of the elements of its first output.
    """

    sheet: Sheet
    scope: Scope
    target: str
    node: str
    shapes: tuple[tuple[int, ...], ...]
    bits: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.shapes[0]

    @property
    def label(self) -> str:
        """ "aten.relu_.default" -> "relu"."""
        return self.target.split(".")[1].strip("_") if "." in self.target else self.target

    def emit(
        self,
        op: Op,
        inputs: Sequence[Draft],
        shape: Sequence[int] | None = None,
        *,
        channel_axis: int | None = None,
        label: str = "",
        weight: Constant | None = None,
        bias: Constant | None = None,
        dims: Mapping[str, Any] | None = None,
        **attributes: Any,
    ) -> Draft:
        """Add a layer; its shape is the operator's unless given, its channel axis follows from its first input."""
        shape = self.shape if shape is None else tuple(shape)
        if not shape:
            raise UnsupportedError("its result is a single number without a batch axis")
        draft = Draft(
            op,
            shape,
            list(inputs),
            self.scope,
            label or self.label,
            _channel_axis(op, inputs, shape) if channel_axis is None else channel_axis,
            bits=self.bits,
            dims=dict(dims or {}),
            attributes=attributes,
            weight=weight,
            bias=bias,
        )
        self.sheet.drafts.append(draft)
        return draft

    def draft(self, value: Value) -> Draft:
        """The value as a layer; a constant becomes one, once."""
        if isinstance(value, Draft):
            return value
        if not isinstance(value, Constant):
            raise UnsupportedError(f"needs a tensor where it has {value!r}")
        if value not in self.sheet.constants:
            is_like = value in self.sheet.likenesses
            self.sheet.constants[value] = self._likeness(value) if is_like else self._constant(value)
        return self.sheet.constants[value]

    def _constant(self, value: Constant) -> Draft:
        axis, name = _constant_axis(value.shape), value.name if isinstance(value, Stored) else ""
        draft = Draft(Op.CONSTANT, value.shape, [], self.scope, "constant", axis, weight=value, name=name)
        self.sheet.drafts.append(draft)
        return draft

    def _likeness(self, value: Constant) -> Draft:
        """x held between a number and itself, which has the channels of x, however many these are."""
        source, number = self.sheet.likenesses[value]
        return self.emit(Op.ACTIVATION, [source], value.shape, label="fill", kind=f"hardtanh({number!r},{number!r})")

    # ---- views: merged with what they look at, and left out where they change nothing -------------------------------

    def reshape(self, x: Value, shape: Sequence[int], label: str = "") -> Draft:
        x = self.draft(x)
        source = x.inputs[0] if x.op is Op.RESHAPE else x
        if source.shape == tuple(shape):
            return source
        return self.emit(Op.RESHAPE, [source], shape, label=label)

    def transpose(self, x: Draft, permutation: Sequence[int], label: str = "") -> Draft:
        axes = tuple(axis % len(x.shape) for axis in permutation)
        if x.op is Op.TRANSPOSE:
            axes = tuple(x.attributes["permutation"][axis] for axis in axes)
            x = x.inputs[0]
        if axes == tuple(range(len(axes))):
            return x
        shape, place = [x.shape[axis] for axis in axes], axes.index(x.channel_axis)
        return self.emit(Op.TRANSPOSE, [x], shape, channel_axis=place, label=label, permutation=axes)

    def slice(self, x: Draft, axis: int, start: int, size: int, step: int = 1) -> Draft:
        """`size` entries of one axis, from `start` in steps; slices of slices become one."""
        axis %= len(x.shape)
        if size < 1:
            raise UnsupportedError(f"takes {size} entries of axis {axis}, needs at least one")
        if size == x.shape[axis] and step == 1:
            return x
        starts, steps = [0] * len(x.shape), [1] * len(x.shape)
        starts[axis], steps[axis] = start, step if size > 1 else 1
        shape = (*x.shape[:axis], size, *x.shape[axis + 1 :])
        if x.op is Op.SLICE:
            outer = list(zip(x.attributes["starts"], x.attributes["steps"], strict=True))
            starts = [begin + stride * inner for (begin, stride), inner in zip(outer, starts, strict=True)]
            steps = [stride * inner for (_, stride), inner in zip(outer, steps, strict=True)]
            x = x.inputs[0]
        return self.emit(Op.SLICE, [x], shape, starts=tuple(starts), steps=tuple(steps))

    def expand(self, value: Value, shape: Sequence[int]) -> Draft:
        """Broadcast to a shape; a constant always, so that it follows when the batch of the graph changes."""
        if isinstance(value, Computed) and str(value.function).startswith("aten.expand."):
            value = value.args[0]
        x = self.draft(value)
        if x.shape == tuple(shape) and x.op is not Op.CONSTANT:
            return x
        return self.emit(Op.EXPAND, [x], shape, label="expand")


# ---- which axis holds the channels ----------------------------------------------------------------------------------


def _channel_axis(op: Op, inputs: Sequence[Draft], shape: tuple[int, ...]) -> int:
    """From the op where it says so, else from the first input that is no constant."""
    last = max(len(shape) - 1, 1)
    if op in CHANNEL_LAST:
        return last
    if op in CHANNEL_SECOND or not inputs:
        return 1
    x = next((draft for draft in inputs if draft.op is not Op.CONSTANT), inputs[0])
    if op is Op.RESHAPE:
        return reshaped_axis(x.shape, x.channel_axis, shape)
    if len(shape) < 2:
        return 1
    return min(max(x.channel_axis + len(shape) - len(x.shape), 0), last)


def reshaped_axis(before: tuple[int, ...], axis: int, after: tuple[int, ...]) -> int:
    """Where the channels are after a reshape: the same axis if it survives, else the one that they merge or split into.

    >>> reshaped_axis((2, 6, 4, 4), 1, (2, 96)), reshaped_axis((2, 5, 8), 2, (2, 5, 2, 4))
    (1, 3)
    >>> reshaped_axis((2, 3, 2, 4, 4), 2, (2, 6, 4, 4))  # a channel shuffle: groups and channels swapped
    1
    """
    if len(after) < 2 or len(before) < 2:
        return 1
    position = math.prod(before[:axis])
    places = [math.prod(after[:i]) for i in range(len(after) + 1)]
    for i in range(1, len(after)):
        if places[i] == position and after[i] == before[axis]:
            return i
    if axis == len(before) - 1 > 1:
        return len(after) - 1
    inside = [i for i in range(1, len(after)) if places[i] <= position < places[i + 1]]
    return inside[0] if inside else min(axis, len(after) - 1)


def _constant_axis(shape: tuple[int, ...]) -> int:
    """The only axis that is longer than 1; else the usual one of that rank."""
    long = [axis for axis, size in enumerate(shape) if size > 1]
    if len(long) == 1:
        return long[0]
    return 1 if len(shape) in (0, 1, 2, 4) else len(shape) - 1


def as_number(value: Value) -> float | int | None:
    """A Python number, also out of a tensor that the code made from one number; else None."""
    if isinstance(value, Literal | Computed) and not value.shape:
        return fill_value(value)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
