"""What a network computes from its parameters and buffers alone, and the arrays and masks that come of it.

Lowering writes every such value down as a `Constant`: a stored tensor by name, a literal, or a function of other
constants (a weight norm, `w * mask`, a transposed matrix). A `Recipe` says how the array of one layer follows from a
constant and the batch norms folded into it. Neither holds a tensor of the model, so both can be cached; a `Reader`
evaluates them on the tensors that the model has now.

Folding is done in float64: W' = W * scale, b' = b * scale + shift with scale = gamma / sqrt(var + eps) and
shift = beta - mean * scale, then rounded to float32. The mask of a folded weight needs no folding: W' is zero exactly
where |W| * |scale| <= 2^-150, half the smallest float32 (a tie rounds to even, which is zero).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workloads.errors import LoweringError
from workloads.graph import Op
from workloads.sparsity import WeightSparsity

HALF_SMALLEST_FLOAT32 = 2.0**-150
LARGE = 1e30  # stands for infinity, which files cannot hold, in masks added before a softmax: exp(-1e30) is 0 as well

# ---- constants ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Stored:
    """A parameter or buffer of the model, by its name."""

    name: str
    shape: tuple[int, ...]
    is_parameter: bool


@dataclass(frozen=True, eq=False)
class Literal:
    """A tensor that the code of the model made from numbers in it."""

    value: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)


@dataclass(frozen=True, eq=False)
class Computed:
    """A function of other constants; `args` and `kwargs` hold constants and plain values, also in lists."""

    shape: tuple[int, ...]
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


Constant = Stored | Literal | Computed


def computed(function: Callable[..., Any], shape: Sequence[int], *args: Any, **kwargs: Any) -> Computed:
    return Computed(tuple(shape), function, args, kwargs)


def fill_value(constant: Constant) -> float | None:
    """The number that fills the whole tensor, where that follows from the code alone; else None."""
    if isinstance(constant, Literal):
        first = constant.value.flatten()[:1]
        return float(first) if first.numel() and bool((constant.value == first).all()) else None
    if isinstance(constant, Stored) or not _is_from_code(constant):
        return None
    value = Reader({}).value(constant)
    return fill_value(Literal(value)) if isinstance(value, Tensor) else None


def _is_from_code(constant: Constant) -> bool:
    """Whether no stored tensor is part of it."""
    return not stored_in([constant])


def stored_in(values: Any) -> dict[str, Stored]:
    """All stored tensors that a constant, or a nest of lists with constants, depends on, by name."""
    if isinstance(values, Stored):
        return {values.name: values}
    parts: Sequence[Any] = ()
    if isinstance(values, Computed):
        parts = (*values.args, *values.kwargs.values())
    elif isinstance(values, list | tuple):
        parts = values
    return {name: stored for part in parts for name, stored in stored_in(part).items()}


# ---- recipes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Norm:
    """A batch norm with fixed statistics: x * scale + shift on each channel. A missing weight is 1, a bias 0."""

    weight: Constant | None
    bias: Constant | None
    mean: Constant
    var: Constant
    eps: float

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for two calls of one module."""
        return (self.weight, self.bias, self.mean, self.var, self.eps)

    def scale_and_shift(self, reader: Reader) -> tuple[np.ndarray, np.ndarray]:
        """float64, (k,) each.

        Raises:
            LoweringError: its statistics are not finite, or negative.
        """
        mean, var = reader.float64(self.mean), reader.float64(self.var)
        if not (np.isfinite(mean).all() and np.isfinite(var).all() and (var + self.eps > 0).all()):
            names = " and ".join(stored_in([self.mean, self.var]))
            raise LoweringError(f"{names}: no statistics of a batch norm (infinite or negative); train again")
        scale = 1.0 / np.sqrt(var + self.eps)
        if self.weight is not None:
            scale = scale * reader.float64(self.weight)
        shift = -mean * scale
        return scale, shift if self.bias is None else shift + reader.float64(self.bias)


@dataclass(frozen=True, eq=False)
class Recipe:
    """How the array under one key follows from constants.

    Attributes:
        key: its name beside the graph.
        op: of the layer that owns it.
        is_bias: its bias (or the shift of a norm) rather than its weight.
        source: None stands for zeros (a bias made by folding).
        norms: batch norms folded into it, first to last; for an affine norm layer the norm itself.
        shape: of the weight as the graph counts it, (K, C / groups, R, S).
        groups: of the layer.
    """

    key: str
    op: Op
    is_bias: bool
    source: Constant | None
    norms: tuple[Norm, ...]
    shape: tuple[int, int, int, int]
    groups: int

    def array(self, reader: Reader) -> np.ndarray:
        """In the reader's type and torch's layout, a fresh copy."""
        if self.norms and (self.is_bias or self.op is Op.NORM):
            return self._channel_array(reader).astype(reader.dtype)
        array = self.values(reader)
        if not self.norms:
            return np.clip(array, -LARGE, LARGE) if self.op is Op.CONSTANT else array.copy()
        scale = math.prod(norm.scale_and_shift(reader)[0] for norm in self.norms)
        folded = self._by_filter(array) * scale[:, None, None]  # type: ignore[index]
        return self._check(self._in_torch_layout(folded, array))

    def values(self, reader: Reader) -> np.ndarray:
        """The source before folding, in the reader's type; it may share memory with the model.

        Raises:
            LoweringError: it is not finite. A constant may be infinite, as attention masks are.
        """
        assert self.source is not None, "only biases are made from nothing"
        array = reader.array(self.source)
        if isinstance(self.source, Stored):
            return array  # checked as it was read
        if np.isnan(array).any() or (self.op is not Op.CONSTANT and np.isinf(array).any()):
            names = ", ".join(sorted(stored_in(self.source))) or "numbers in its code"
            raise LoweringError(f"what the model computes from {names} is not finite; train again or load another file")
        return array

    def _channel_array(self, reader: Reader) -> np.ndarray:
        """Folded bias; scale or shift of a norm layer."""
        steps = [norm.scale_and_shift(reader) for norm in self.norms]
        if self.op is Op.NORM and not self.is_bias:
            return steps[0][0]
        bias = np.zeros(()) if self.source is None else reader.float64(self.source)
        for scale, shift in steps:
            bias = bias * scale + shift
        return np.asarray(bias)

    def _check(self, folded: np.ndarray) -> np.ndarray:
        if not np.isfinite(folded).all():
            names = ", ".join(sorted(stored_in([self.source])))
            raise LoweringError(
                f"{names}: folding its batch norm overflows {folded.dtype}; train again or load another file"
            )
        return folded

    def _by_filter(self, array: np.ndarray) -> np.ndarray:
        """(K, C / groups, R * S), a view where the layout allows it."""
        k, c, r, s = self.shape
        if self.op is not Op.CONV_TRANSPOSE:
            return array.reshape(k, c, r * s)
        grouped = array.reshape(self.groups, c, k // self.groups, r * s)
        return grouped.transpose(0, 2, 1, 3).reshape(k, c, r * s)

    def _in_torch_layout(self, folded: np.ndarray, array: np.ndarray) -> np.ndarray:
        """The inverse of `_by_filter`, in type and shape of the array."""
        with np.errstate(over="ignore"):
            folded = folded.astype(array.dtype)
        k, c, r, s = self.shape
        if self.op is Op.CONV_TRANSPOSE:
            folded = folded.reshape(self.groups, k // self.groups, c, r * s).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(folded.reshape(array.shape))

    def sparsity(self, reader: Reader) -> WeightSparsity | None:
        """The exact zeros of the array; None where it has none."""
        weight = self._by_filter(self.values(reader))
        scales = [norm.scale_and_shift(reader)[0] for norm in self.norms]
        mask = weight != 0 if not scales else _folded_mask(weight, math.prod(scales))  # type: ignore[arg-type]
        return None if mask.all() else WeightSparsity.from_mask(mask.reshape(self.shape))


def _folded_mask(weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Where weight * scale, (k, c, r s) times (k,), does not round to a float32 zero."""
    with np.errstate(divide="ignore", over="ignore"):
        limit = HALF_SMALLEST_FLOAT32 / np.abs(scale)
        bound = limit.astype(np.float32)
        bound = np.where(bound.astype(np.float64) > limit, np.nextafter(bound, np.float32(0)), bound)
    return np.abs(weight) > bound[:, None, None] if bound.any() else weight != 0


# ---- evaluation -----------------------------------------------------------------------------------------------------


class Reader:
    """The tensors of one model, and the constants computed from them, each once.

    Args:
        tensors: parameters and buffers by name, as `tensors_of` gives them. Never written to.
        dtype: of arrays, numpy.float32 or numpy.float64.

    Raises, when a value is asked for:
        LoweringError: a stored tensor holds NaN or infinite numbers or has no values, or a computed one is not finite.
    """

    def __init__(self, tensors: Mapping[str, Tensor], dtype: type[np.floating[Any]] = np.float32) -> None:
        self._tensors, self.dtype = tensors, dtype
        self._values: dict[Constant, Any] = {}
        self._arrays: dict[Constant, np.ndarray] = {}

    def value(self, constant: Constant) -> Any:
        """As torch computes it, in its own type, on the CPU."""
        if constant not in self._values:
            self._values[constant] = self._evaluate(constant)
        return self._values[constant]

    def array(self, constant: Constant) -> np.ndarray:
        """As an array, without a copy where type and place allow it: do not write to it."""
        if constant not in self._arrays:
            wanted = torch.float64 if self.dtype is np.float64 else torch.float32
            self._arrays[constant] = self.value(constant).to(wanted).numpy()
        return self._arrays[constant]

    def float64(self, constant: Constant) -> np.ndarray:
        return np.asarray(self.value(constant).to(torch.float64).numpy())

    def _evaluate(self, constant: Constant) -> Any:
        if isinstance(constant, Literal):
            return constant.value
        if isinstance(constant, Stored):
            return _checked(constant, self._tensors[constant.name]).cpu()
        args, kwargs = self._plain(list(constant.args)), self._plain(dict(constant.kwargs))
        schema = getattr(constant.function, "_schema", None)
        if schema is not None and schema.is_mutable:  # never write into the model
            args[0] = args[0].clone()
        return constant.function(*args, **kwargs)

    def _plain(self, value: Any) -> Any:
        """With every constant replaced by its tensor."""
        if isinstance(value, Constant):
            return self.value(value)
        if isinstance(value, dict):
            return {key: self._plain(item) for key, item in value.items()}
        return [self._plain(item) for item in value] if isinstance(value, list | tuple) else value


def _checked(stored: Stored, tensor: Tensor) -> Tensor:
    """The tensor, if all its numbers are finite; infinite ones pass in a buffer, where they may be a mask."""
    kind = "parameter" if stored.is_parameter else "buffer"
    if tensor.is_meta:
        raise LoweringError(f"{kind} {stored.name!r} is on the meta device, has no values; build the model on the CPU")
    # A sum is finite only if every term is, and several times faster to make than a flag for each.
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor.sum())):
        wrong = ~torch.isfinite(tensor) if stored.is_parameter else torch.isnan(tensor)
        if bool(wrong.any()):
            found = "NaN or infinite numbers" if stored.is_parameter else "NaN"
            raise LoweringError(f"{kind} {stored.name!r} holds {found}; train again or load another file")
    return tensor


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by every name that they have; detached, sharing memory with the model."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: tensor.detach() for name, tensor in named}
