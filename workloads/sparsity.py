"""What is known of the zeros of one weight tensor: the exact mask, or only a density.

A weight has the shape (K, C, R, S): K filters (output channels), C input channels *of one group*, kernel height R and
width S; a linear layer is (K, C, 1, 1). "Kernel" is one (R, S) slice, (k, c) its place.

`WeightSparsity` answers both. From a mask it keeps the packed bits (one bit a weight) and counts what hardware cares
about when asked: non-zeros of each kernel, filter, input channel and tile, the load of the busiest processing element,
runs and blocks. From a density it answers with expectations over a random mask in which every weight is kept
independently with that probability (`workloads.random_masks` has the formulas, for many rows at once).
Expectations are floats where exact counts are integers.
"""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from workloads.errors import ConfigError, ShapeError
from workloads.random_masks import Assignment, Axis, Balance, Stream, check_tile

if TYPE_CHECKING:
    from workloads.exact_sparsity import ExactSparsity
    from workloads.expected_sparsity import ExpectedSparsity

Shape = tuple[int, int, int, int]


class WeightSparsity(ABC):
    """The zeros of a weight of shape (K, C, R, S); immutable, equal when the content is equal, usable as a key.

    >>> zeros = WeightSparsity.from_mask(np.array([[1, 0], [1, 1]], bool))
    >>> zeros
    WeightSparsity(exact, 2x2x1x1, density 0.7500)
    >>> zeros.filter_counts.tolist(), zeros.balance(units=2)
    ([1, 2], Balance(mean=1.5, maximum=2))
    >>> WeightSparsity.from_density((2, 2, 1, 1), 0.75).balance(units=2)  # two pairs of coins
    Balance(mean=1.5, maximum=1.8046875)
    """

    shape: Shape

    @staticmethod
    def from_mask(mask: ArrayLike) -> ExactSparsity:
        """Exact, from a boolean mask, True = kept.

        Args:
            mask: bool, (K, C, R, S), or (K, C, S) of a 1-D convolution, or (K, C) of a linear layer. Not kept.

        Raises:
            ShapeError: not boolean, no dims or a dim of 0.
        """
        array = np.asarray(mask)
        if array.dtype != np.bool_:
            raise ShapeError(f"mask of type {array.dtype}, needs booleans; for numbers use WeightSparsity.from_weights")
        from workloads.exact_sparsity import ExactSparsity

        shape = shape4(array.shape)
        return ExactSparsity(shape, frozen(np.packbits(array.reshape(shape[0], -1), axis=1)))

    @staticmethod
    def from_weights(weights: ArrayLike) -> ExactSparsity:
        """Exact, from the weights themselves: whatever is not 0 counts as kept.

        Raises:
            ShapeError: not numbers, no dims or a dim of 0, NaN or infinite values.
        """
        array = np.asarray(weights)
        if array.dtype.kind not in "fiub":
            raise ShapeError(f"weights of type {array.dtype}, needs real numbers")
        shape4(array.shape)
        if array.dtype == np.float16:  # as integers without the sign: ten times faster, order and zero stay
            array = array.view(np.uint16) & 0x7FFF
            is_finite = array.max() < 0x7C00
        else:
            is_finite = array.dtype.kind != "f" or bool(np.isfinite(array.min()) and np.isfinite(array.max()))
        if not is_finite:
            raise ShapeError("weights hold NaN or infinite values; train again or load another file")
        return WeightSparsity.from_mask(array != 0)

    @staticmethod
    def from_density(shape: Sequence[int], density: float) -> ExpectedSparsity:
        """Expected, from a density: every weight is kept independently with probability `density`.

        Raises:
            ShapeError: not 2 to 4 dims >= 1. ConfigError: density outside 0..1.
        """
        from workloads.expected_sparsity import ExpectedSparsity

        if not 0 <= density <= 1:
            raise ConfigError(f"density {density}, must lie in 0..1")
        return ExpectedSparsity(shape4(shape), float(density))

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> WeightSparsity:
        """What `to_dict` wrote; an equal object.

        Raises:
            ConfigError: a field is missing, unknown or damaged.
        """
        from workloads.exact_sparsity import ExactSparsity, unpack_text

        form = data.get("form")
        fields = {"exact": "bits", "expected": "density"}
        if form not in fields:
            raise ConfigError(f"sparsity.form: {form!r}, must be 'exact' or 'expected'")
        if set(data) != (wanted := {"form", "shape", fields[form]}):
            raise ConfigError(f"sparsity: fields {sorted(data)}, must be {sorted(wanted)}")
        try:
            shape = shape4(data["shape"])
            if form == "exact":
                return ExactSparsity(shape, unpack_text(data["bits"], shape))
            return WeightSparsity.from_density(shape, data["density"])
        except (ShapeError, TypeError) as error:
            raise ConfigError(f"sparsity: {error}") from error

    # What it is -------------------------------------------------------------------------------------------------

    @property
    def k(self) -> int:
        """Filters."""
        return self.shape[0]

    @property
    def c(self) -> int:
        """Input channels of one group."""
        return self.shape[1]

    @property
    def r(self) -> int:
        """Kernel height."""
        return self.shape[2]

    @property
    def s(self) -> int:
        """Kernel width."""
        return self.shape[3]

    @property
    def elements(self) -> int:
        """K * C * R * S."""
        return math.prod(self.shape)

    @property
    @abstractmethod
    def is_exact(self) -> bool:
        """Whether the mask itself is known."""

    @property
    @abstractmethod
    def density(self) -> float:
        """Non-zeros / elements."""

    @property
    @abstractmethod
    def nonzeros(self) -> float:
        """Kept weights."""

    @property
    @abstractmethod
    def content_hash(self) -> str:
        """SHA-256 of form, shape and content, as hexadecimal digits; the same in every process."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """JSON values; exact (the bits are deflated and written in base64)."""

    @abstractmethod
    def mask(self) -> np.ndarray:
        """The mask, bool (K, C, R, S), a fresh copy.

        Raises:
            ConfigError: only a density is known; `sample(rng).mask()` draws one.
        """

    @abstractmethod
    def sample(self, rng: np.random.Generator) -> ExactSparsity:
        """An exact instance: itself, or one random mask of the density."""

    # Counts -----------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def kernel_counts(self) -> np.ndarray:
        """Non-zeros of each kernel, (K, C)."""

    @property
    @abstractmethod
    def filter_counts(self) -> np.ndarray:
        """Non-zeros of each filter, (K,)."""

    @property
    @abstractmethod
    def input_channel_counts(self) -> np.ndarray:
        """Non-zeros that read each input channel, (C,); with groups, position c of every group together."""

    @abstractmethod
    def tile_counts(self, tile_k: int, tile_c: int) -> np.ndarray:
        """Non-zeros of each tile of tile_k filters x tile_c input channels x R x S.

        Returns:
            (ceil(K / tile_k), ceil(C / tile_c)); the last row and column may be ragged. Of a density these are means,
            and their largest is not the mean of the largest: for that use `tile_balance`.
        """

    @abstractmethod
    def row_tile_counts(self, tile_k: int, tile_c: int) -> np.ndarray:
        """The same for each kernel row, as row-stationary arrays hold them: (R, ceil(K / tile_k), ceil(C / tile_c))."""

    @abstractmethod
    def balance(self, units: int, axis: Axis = "filter", assignment: Assignment = "block") -> Balance[float]:
        """Non-zeros of `units` processing elements that share out filters or input channels.

        Args:
            assignment: "block" gives each unit the next ceil(items / units) items, so that the last units may get
                fewer or none; "interleaved" gives item i to unit i mod units.

        Returns:
            Mean over all units, and the busiest one (its expectation where only a density is known).

        Raises:
            ConfigError: units < 1 or an unknown name.
        """

    @abstractmethod
    def tile_balance(self, tile_k: int, tile_c: int) -> Balance[float]:
        """Mean and maximum of the non-zeros of a tile, one tile a unit."""

    @property
    @abstractmethod
    def zero_filters(self) -> float:
        """Filters without any non-zero."""

    @property
    @abstractmethod
    def zero_input_channels(self) -> float:
        """Input channels (of a group) that no weight reads."""

    @property
    @abstractmethod
    def zero_kernels(self) -> float:
        """Kernels without any non-zero."""

    # Structure --------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def distinct_patterns(self) -> float:
        """Number of different masks among the kernels that are not all zero."""

    @abstractmethod
    def follows_patterns(self, entries: int = 4, limit: int | None = None) -> bool:
        """Whether the non-zeros of every kernel lie inside one of at most `limit` patterns of `entries` positions.

        The patterns are the kernel masks with exactly `entries` ones; a kernel with fewer must lie inside one of them.
        Of a density: whether that is certain, which it is only for density 0, or 1 where entries = R * S.
        """

    @abstractmethod
    def satisfies_nm(self, n: int, m: int) -> bool:
        """Whether at most n of every m successive input channels (at one k, r, s) are non-zero; the last may be short.

        Of a density: whether that is certain, which it is only for density 0 or n >= m.
        """

    def block_count(self, block_k: int, block_c: int) -> int:
        """Blocks of block_k filters x block_c input channels at one kernel position, ragged ones included."""
        check_tile(block_k, block_c)
        return -(-self.k // block_k) * -(-self.c // block_c) * self.r * self.s

    @abstractmethod
    def block_nonzeros(self, block_k: int, block_c: int) -> float:
        """How many of these blocks hold any non-zero."""

    @abstractmethod
    def run_length_counts(self, run_bits: int, stream: Stream = "layer", lanes: int = 1) -> np.ndarray:
        """Stored entries (run of zeros, value) of each run-length stream, padding zeros included.

        A run of up to 2^run_bits - 1 zeros precedes a value. A longer run is broken by padding entries, each of which
        stores 2^run_bits - 1 zeros and a zero value. Zeros after the last non-zero of a stream are not stored.

        Args:
            stream: "layer": one stream over K, C, R, S (S fastest). "filter": one a filter, over C, R, S.
                "input_channel": one for each input channel, over K, R, S, dealt out to `lanes` units that each own the
                filters k = lane mod lanes and count runs among their own (Han et al., "EIE", ISCA 2016).

        Returns:
            (1,), (K,), or (C, lanes).
        """

    def run_length_entries(self, run_bits: int, stream: Stream = "layer", lanes: int = 1) -> float:
        """Stored entries of all run-length streams together."""
        total: float = self.run_length_counts(run_bits, stream, lanes).sum().item()
        return total

    # Changes ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def select(self, k_index: ArrayLike | None = None, c_index: ArrayLike | None = None) -> WeightSparsity:
        """What is left when only these filters and input channels stay, in this order; None keeps all.

        Args:
            k_index, c_index: integers, or one boolean a channel.

        Raises:
            ShapeError: an index outside the tensor, or nothing left.
        """

    @abstractmethod
    def resized(self, k: int, c: int) -> ExpectedSparsity:
        """The same density on (k, c, R, S).

        Raises:
            ConfigError: the mask is exact, so it matters which channels stay; use `select`.
        """

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WeightSparsity) and self.content_hash == other.content_hash

    def __hash__(self) -> int:
        return int(self.content_hash[:15], 16)

    def __repr__(self) -> str:
        form = "exact" if self.is_exact else "expected"
        return f"WeightSparsity({form}, {'x'.join(map(str, self.shape))}, density {self.density:.4f})"


def shape4(dims: Sequence[int]) -> Shape:
    """(K, C, R, S) of a tensor of 2, 3 (K, C, S) or 4 dims."""
    sizes = [operator.index(dim) for dim in dims]
    if not 2 <= len(sizes) <= 4 or min(sizes) < 1:
        raise ShapeError(f"weight of shape {tuple(sizes)}, needs 2 to 4 dims (K, C, R, S), each >= 1")
    k, c, *kernel = sizes
    r, s = (1, 1, *kernel)[-2:]
    return k, c, r, s


def frozen(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


def channel_index(index: ArrayLike | None, size: int, what: str) -> np.ndarray:
    """Integers 0..size-1 from integers or booleans; None means all."""
    array = np.arange(size) if index is None else np.asarray(index)
    if array.dtype == np.bool_ and array.shape == (size,):
        array = np.flatnonzero(array)
    if array.size == 0:
        raise ShapeError(f"no {what} is left of {size}; keep at least one")
    if array.ndim != 1 or array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= size:
        raise ShapeError(f"{what} index {index!r}: needs integers in 0..{size - 1} or {size} booleans")
    return array


def check_entries(entries: int, sparsity: WeightSparsity) -> None:
    if not 1 <= entries <= sparsity.r * sparsity.s:
        raise ConfigError(f"patterns of {entries} entries in {sparsity.r}x{sparsity.s} kernels; allowed: 1..R*S")


def check_nm(n: int, m: int) -> None:
    if not 1 <= n <= m:
        raise ConfigError(f"{n}:{m} sparsity, needs 1 <= N <= M")
