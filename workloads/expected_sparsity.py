"""Expectations of a random mask: the other half of `workloads.sparsity`, which documents every method and the letters.

One row of `workloads.random_masks`, with plain numbers in place of arrays.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from workloads.errors import ConfigError
from workloads.random_masks import (
    Assignment,
    Axis,
    Balance,
    RandomMasks,
    Stream,
    check_run_length,
    check_tile,
    expected_run_padding,
)
from workloads.sparsity import Shape, WeightSparsity, channel_index, check_entries, check_nm

if TYPE_CHECKING:
    from workloads.exact_sparsity import ExactSparsity


@dataclass(frozen=True, eq=False, repr=False)
class ExpectedSparsity(WeightSparsity):
    """A random mask of a known density. Made by `WeightSparsity.from_density`; the methods are described there.

    Attributes:
        shape: (K, C, R, S).
        probability: that a weight is kept, 0..1; the same as `density`.
    """

    shape: Shape
    probability: float

    @property
    def is_exact(self) -> bool:
        return False

    @property
    def density(self) -> float:
        return self.probability

    @property
    def nonzeros(self) -> float:
        return self.elements * self.density

    @cached_property
    def content_hash(self) -> str:
        return hashlib.sha256(f"expected {self.shape} {self.density.hex()}".encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        return {"form": "expected", "shape": list(self.shape), "density": self.density}

    def mask(self) -> np.ndarray:
        raise ConfigError(f"{self!r} knows no mask; sample(rng).mask() draws one")

    def sample(self, rng: np.random.Generator) -> ExactSparsity:
        return WeightSparsity.from_mask(rng.random(self.shape) < self.density)

    @property
    def kernel_counts(self) -> np.ndarray:
        return np.full((self.k, self.c), self.density * self.r * self.s)

    @property
    def filter_counts(self) -> np.ndarray:
        return np.full(self.k, self.nonzeros / self.k)

    @property
    def input_channel_counts(self) -> np.ndarray:
        return np.full(self.c, self.nonzeros / self.c)

    def tile_counts(self, tile_k: int, tile_c: int) -> np.ndarray:
        return self.row_tile_counts(tile_k, tile_c).sum(axis=0)

    def row_tile_counts(self, tile_k: int, tile_c: int) -> np.ndarray:
        check_tile(tile_k, tile_c)
        rows, columns = _pieces(self.k, tile_k), _pieces(self.c, tile_c)
        return np.tile(np.outer(rows, columns) * (self.s * self.density), (self.r, 1, 1))

    def balance(self, units: int, axis: Axis = "filter", assignment: Assignment = "block") -> Balance[float]:
        found = self._rows.balance(units, axis, assignment)
        return Balance(float(found.mean), float(found.maximum))

    def tile_balance(self, tile_k: int, tile_c: int) -> Balance[float]:
        found = self._rows.tile_balance(tile_k, tile_c)
        return Balance(float(found.mean), float(found.maximum))

    @property
    def zero_filters(self) -> float:
        return float(self._rows.zero_filters)

    @property
    def zero_input_channels(self) -> float:
        return float(self._rows.zero_input_channels)

    @property
    def zero_kernels(self) -> float:
        return float(self._rows.zero_kernels)

    @property
    def distinct_patterns(self) -> float:
        return float(self._rows.distinct_patterns)

    def follows_patterns(self, entries: int = 4, limit: int | None = None) -> bool:
        check_entries(entries, self)
        return self.density == 0 or (self.density == 1 and entries == self.r * self.s and (limit is None or limit > 0))

    def satisfies_nm(self, n: int, m: int) -> bool:
        check_nm(n, m)
        return self.density == 0 or n >= min(m, self.c)

    def block_nonzeros(self, block_k: int, block_c: int) -> float:
        return float(self._rows.block_nonzeros(block_k, block_c))

    def run_length_counts(self, run_bits: int, stream: Stream = "layer", lanes: int = 1) -> np.ndarray:
        check_run_length(run_bits, stream, lanes)
        if stream == "input_channel":
            filters = (self.k + lanes - 1 - np.arange(lanes)) // lanes
            length = np.tile(filters * (self.r * self.s), (self.c, 1))
        else:
            number = 1 if stream == "layer" else self.k
            length = np.full(number, self.elements // number)
        return length * self.density + expected_run_padding(length, self.density, run_bits)

    def select(self, k_index: ArrayLike | None = None, c_index: ArrayLike | None = None) -> ExpectedSparsity:
        return self.resized(
            len(channel_index(k_index, self.k, "filter")), len(channel_index(c_index, self.c, "input channel"))
        )

    def resized(self, k: int, c: int) -> ExpectedSparsity:
        return WeightSparsity.from_density((k, c, self.r, self.s), self.density)

    @cached_property
    def _rows(self) -> RandomMasks:
        return RandomMasks.of(*self.shape, self.density)


def _pieces(items: int, size: int) -> np.ndarray:
    """Lengths of the pieces of `items` cut into runs of `size`."""
    return np.minimum(size, items - np.arange(0, items, size))
