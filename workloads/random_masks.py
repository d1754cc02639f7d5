"""What hardware can expect of masks whose zeros fall at random: closed forms, one row a weight tensor.

Every weight is kept independently with probability `density` (so a tensor has *about* density * elements non-zeros, not
exactly). All counts are then binomial, and their expectations and order statistics follow from shape and density alone.
This is what a search uses for a candidate whose mask does not exist yet, and a published table that prints a density.

Letters: K output channels, C input channels of one group, R and S kernel height and width, d density.
`workloads.sparsity` offers the same names for one tensor, exact or expected; here everything is an array over rows, so
that thousands of candidates are priced in one call.

Known to be wrong where zeros are not random: training clusters them in filters and channels, so real maxima are larger
and real blocks emptier than these. Structured masks (N:M, patterns, blocks) are more regular.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import ArrayLike

from workloads.errors import ConfigError, ShapeError, unknown_name
from workloads.order_statistics import expected_maximum_of_groups

Axis = Literal["filter", "input_channel"]
Assignment = Literal["block", "interleaved"]
Stream = Literal["layer", "filter", "input_channel"]
T = TypeVar("T", float, np.ndarray)


@dataclass(frozen=True)
class Balance(Generic[T]):
    """Work of several units that run side by side, in non-zeros.

    Attributes:
        mean: over all units, idle ones included.
        maximum: of the busiest unit.
    """

    mean: T
    maximum: T

    @property
    def imbalance(self) -> T:
        """maximum / mean, 1 where there is no work."""
        idle = np.asarray(self.maximum) == 0
        ratio = np.where(idle, 1.0, self.maximum / np.where(idle, 1.0, self.mean))
        return float(ratio) if isinstance(self.mean, (int, float)) else ratio


@dataclass(frozen=True)
class RandomMasks:
    """Shapes and densities of weight tensors, one row each; all fields float64 of one shape. Built by `of`.

    Raises:
        ShapeError: a dim below 1.
        ConfigError: a density outside 0..1.

    >>> rows = RandomMasks.of(k=[64, 64], c=[64, 1], r=3, s=3, density=[0.5, 1.0])
    >>> rows.nonzeros
    array([18432.,   576.])
    >>> rows.balance(units=16).maximum.round()
    array([1194.,   36.])
    """

    k: np.ndarray
    c: np.ndarray
    r: np.ndarray
    s: np.ndarray
    density: np.ndarray

    @classmethod
    def of(cls, k: ArrayLike, c: ArrayLike, r: ArrayLike, s: ArrayLike, density: ArrayLike) -> RandomMasks:
        """From numbers or arrays that broadcast; `c` counts the input channels of one group."""
        return cls(*np.broadcast_arrays(*(np.asarray(x, float) for x in (k, c, r, s, density))))

    def __post_init__(self) -> None:
        for name in ("k", "c", "r", "s"):
            if not ((dim := getattr(self, name)) >= 1).all():
                raise ShapeError(f"dim {name} of {np.min(dim):g}, must be >= 1")
        if not ((self.density >= 0) & (self.density <= 1)).all():
            raise ConfigError(f"density {np.min(self.density):g}..{np.max(self.density):g}, must lie in 0..1")

    @property
    def is_exact(self) -> bool:
        """False: only a density is known."""
        return False

    @property
    def elements(self) -> np.ndarray:
        """K * C * R * S."""
        return np.asarray(self.k * self.c * self.r * self.s)

    @property
    def nonzeros(self) -> np.ndarray:
        return np.asarray(self.elements * self.density)

    @property
    def zero_filters(self) -> np.ndarray:
        """Expected number of filters without any weight."""
        return np.asarray(self.k * self._all_zero(self.c * self.r * self.s))

    @property
    def zero_input_channels(self) -> np.ndarray:
        return np.asarray(self.c * self._all_zero(self.k * self.r * self.s))

    @property
    def zero_kernels(self) -> np.ndarray:
        """Expected number of (k, c) pairs without any weight."""
        return np.asarray(self.k * self.c * self._all_zero(self.r * self.s))

    @property
    def distinct_patterns(self) -> np.ndarray:
        """Expected number of different non-zero kernel masks.

        Sum over j of C(RS, j) * (1 - (1 - d^j (1-d)^(RS-j))^(K C)): each mask with j ones is seen or not.
        """
        from scipy.special import comb

        positions = np.asarray(self.r * self.s)
        total = np.zeros(positions.shape)
        for j in range(1, int(positions.max(initial=0)) + 1):
            chance = self.density**j * (1 - self.density) ** np.maximum(positions - j, 0)
            with np.errstate(divide="ignore"):  # chance = 1: log1p gives -inf and expm1 the -1 that is meant
                seen = -np.expm1(self.k * self.c * np.log1p(-chance))
            total += comb(positions, j) * seen
        return total

    def balance(self, units: ArrayLike, axis: Axis = "filter", assignment: Assignment = "block") -> Balance[np.ndarray]:
        """Non-zeros of `units` processing elements that share out filters or input channels (see `WeightSparsity`)."""
        check_sharing(units, axis, assignment)
        items = np.asarray(self.k if axis == "filter" else self.c)
        sizes, counts = shares(items, units, assignment)
        maximum = expected_maximum_of_groups(sizes * (self.elements / items)[..., None], self.density, counts)
        return Balance(self.nonzeros / np.asarray(units, float), maximum)

    def tile_balance(self, tile_k: ArrayLike, tile_c: ArrayLike) -> Balance[np.ndarray]:
        """Mean and expected maximum of the non-zeros of a (tile_k x tile_c x R x S) tile, ragged tiles included."""
        sizes, counts = self._grid(tile_k, tile_c)
        positions = np.asarray(self.r * self.s)[..., None]
        maximum = expected_maximum_of_groups(sizes * positions, self.density, counts)
        return Balance(self.nonzeros / counts.sum(axis=-1), maximum)

    def block_count(self, block_k: ArrayLike, block_c: ArrayLike) -> np.ndarray:
        """ceil(K / block_k) * ceil(C / block_c) * R * S."""
        return np.asarray(self._grid(block_k, block_c)[1].sum(axis=-1) * self.r * self.s)

    def block_nonzeros(self, block_k: ArrayLike, block_c: ArrayLike) -> np.ndarray:
        """Expected number of blocks with any non-zero: each of n weights is non-zero with 1 - (1-d)^n."""
        sizes, counts = self._grid(block_k, block_c)
        hit = 1 - (1 - np.asarray(self.density)[..., None]) ** sizes
        return np.asarray((counts * hit).sum(axis=-1) * self.r * self.s)

    def satisfies_nm(self, n: int, m: int) -> bool:
        """Whether N:M is certain in every row: density 0 or n >= m."""
        return bool(np.all((self.density == 0) | (n >= np.minimum(m, self.c))))

    def follows_patterns(self, entries: int = 4, limit: int | None = None) -> bool:
        """Whether patterns are certain in every row: density 0, or 1 where entries = R * S."""
        full = (self.density == 1) & (self.r * self.s == entries) & (limit is None or limit > 0)
        return bool(np.all((self.density == 0) | full))

    def run_length_entries(self, run_bits: int, stream: Stream = "layer", lanes: int = 1) -> np.ndarray:
        """Expected entries of a run-length code, padding zeros included (see `WeightSparsity.run_length_counts`)."""
        check_run_length(run_bits, stream, lanes)
        if stream == "input_channel":
            sizes, counts = shares(np.asarray(self.k), lanes, "interleaved")
            sizes, counts = sizes * (self.r * self.s)[..., None], counts * np.asarray(self.c)[..., None]
        else:
            streams = np.asarray(self.k if stream == "filter" else np.ones_like(self.k))[..., None]
            sizes, counts = self.elements[..., None] / streams, streams
        padding = expected_run_padding(sizes, np.asarray(self.density)[..., None], run_bits)
        return np.asarray(self.nonzeros + (counts * padding).sum(axis=-1))

    def _all_zero(self, weights: np.ndarray) -> np.ndarray:
        return np.asarray((1 - self.density) ** weights)

    def _grid(self, tile_k: ArrayLike, tile_c: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Kernels in a tile and number of such tiles, both (..., 4): full, ragged in C, ragged in K, ragged in both."""
        check_tile(tile_k, tile_c)
        size_k, count_k = shares_of(np.asarray(self.k), tile_k)
        size_c, count_c = shares_of(np.asarray(self.c), tile_c)
        sizes = size_k[..., :, None] * size_c[..., None, :]
        counts = count_k[..., :, None] * count_c[..., None, :]
        return sizes.reshape(*sizes.shape[:-2], 4), counts.reshape(*counts.shape[:-2], 4)


def expected_run_padding(length: ArrayLike, density: ArrayLike, run_bits: int) -> np.ndarray:
    """Expected padding zeros of one run-length stream of random zeros, in closed form.

    A run of z zeros before a non-zero needs floor(z / B) padding entries, B = 2^run_bits, which is the sum over m >= 1
    of [z >= m B]. Position i >= m B is a non-zero after m B zeros with probability d (1-d)^(m B), so with x = (1-d)^B

        E = d * sum for m = 1..M of (length - m B) x^m,    M = floor((length - 1) / B)

    Args:
        length: weights in the stream; density: 0..1. Both broadcast.

    >>> expected_run_padding(3, 0.5, 1).item()  # only 0 0 1 needs one, one mask of eight
    0.125
    """
    total, d = np.broadcast_arrays(np.asarray(length, float), np.asarray(density, float))
    block = float(2**run_bits)
    terms = np.maximum(np.floor((total - 1) / block), 0.0)
    with np.errstate(divide="ignore"):
        rate = np.minimum(-block * np.log1p(-d), 700.0)  # x = exp(-rate), beyond 700 nothing is left
    is_flat = terms * rate < 1e-4  # x so close to 1 that the closed form cancels: x^m = 1 - m rate
    squares = terms * (terms + 1) * (2 * terms + 1) / 6
    flat = total * terms - block * terms * (terms + 1) / 2 - rate * (total * terms * (terms + 1) / 2 - block * squares)
    x, last = np.exp(-rate), np.exp(-terms * rate)
    gap = np.where(is_flat, 1.0, -np.expm1(-rate))
    closed = total * x * (1 - last) / gap - block * x * (1 - last - terms * last * gap) / gap**2
    return np.asarray(d * np.where(is_flat, flat, closed))


def shares(items: np.ndarray, units: ArrayLike, assignment: Assignment) -> tuple[np.ndarray, np.ndarray]:
    """Items of a unit and number of such units, both (..., 2), when `units` units share out `items` items.

    >>> shares(np.array(10), 4, "block")  # 3 3 3 1
    (array([3., 1.]), array([3., 1.]))
    >>> shares(np.array(10), 4, "interleaved")  # 3 3 2 2
    (array([3., 2.]), array([2., 2.]))
    """
    n, u = np.broadcast_arrays(np.asarray(items, float), np.asarray(units, float))
    if assignment == "block":
        sizes, counts = shares_of(n, np.ceil(n / u))
        return sizes, counts
    low = np.floor(n / u)
    more = n - low * u
    return np.stack([low + 1, low], axis=-1), np.stack([more, u - more], axis=-1)


def shares_of(items: np.ndarray, size: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Cut `items` into pieces of `size` and a ragged rest: sizes and how many, both (..., 2)."""
    n, piece = np.broadcast_arrays(np.asarray(items, float), np.asarray(size, float))
    full = np.floor(n / piece)
    rest = n - full * piece
    return np.stack([np.minimum(piece, n), rest], axis=-1), np.stack([full, (rest > 0).astype(float)], axis=-1)


def check_sharing(units: ArrayLike, axis: str, assignment: str) -> None:
    """Raise a ConfigError unless the arguments of `balance` make sense."""
    if not (np.asarray(units) >= 1).all():
        raise ConfigError(f"units: {np.min(units)}, must be >= 1")
    if axis not in get_args(Axis):
        raise unknown_name("axis", axis, get_args(Axis))
    if assignment not in get_args(Assignment):
        raise unknown_name("assignment", assignment, get_args(Assignment))


def check_tile(tile_k: ArrayLike, tile_c: ArrayLike) -> None:
    """Raise a ConfigError unless both sides of a tile or block are at least 1."""
    if not ((np.asarray(tile_k) >= 1).all() and (np.asarray(tile_c) >= 1).all()):
        raise ConfigError(f"tile {np.min(tile_k)} x {np.min(tile_c)}: both sides must be >= 1")


def check_run_length(run_bits: int, stream: str, lanes: int) -> None:
    """Raise a ConfigError unless the arguments of a run-length code make sense."""
    if not 1 <= run_bits <= 32:
        raise ConfigError(f"run_bits: {run_bits}, must lie in 1..32")
    if stream not in get_args(Stream):
        raise unknown_name("stream", stream, get_args(Stream))
    if lanes < 1 or (lanes > 1 and stream != "input_channel"):
        raise ConfigError(f"lanes: {lanes} with stream {stream!r}; lanes > 1 need stream 'input_channel'")
