"""Filter-kernel-weight (FKW) arrays of pattern-pruned kernels, and back.

Filters are reordered by how many kernels they keep and kernels inside a filter by pattern, so that neither a column
index a weight nor a pattern number a kernel is stored (Niu et al., "PatDNN", ASPLOS 2020, filter kernel reorder and
FKW). `workloads.encodings.fkw_bits` gives the size without building the arrays.

Letters: F filters, C input channels, P patterns of `entries` positions, Q kernels that are not all zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workloads.errors import ShapeError


@dataclass(frozen=True)
class FKWArrays:
    """One weight tensor in FKW storage.

    Attributes:
        offset: int64 (F + 1,), start of each reordered filter, counted in kernels.
        reorder: int64 (F,), original number of each reordered filter: its output channel.
        index: int64 (Q,), input channel of each kernel.
        stride: int64 (F, P + 1), per reordered filter the running count of kernels by pattern, beginning with 0.
        weight: (Q, entries), weights in row-major order of the pattern's positions.
        patterns: bool (P, R, S).
        channels: C, which the arrays do not tell.
    """

    offset: np.ndarray
    reorder: np.ndarray
    index: np.ndarray
    stride: np.ndarray
    weight: np.ndarray
    patterns: np.ndarray
    channels: int

    def size_bits(self, weight_bits: float, index_bits: float) -> float:
        """All five arrays; the patterns themselves are part of the code, not of the data."""
        indices = self.offset.size + self.reorder.size + self.index.size + self.stride.size
        return self.weight.size * weight_bits + indices * index_bits

    def decode(self) -> np.ndarray:
        """The dense weight, (F, C, R, S), of the type of `weight`."""
        filters, runs = self.stride.shape
        shape = (filters, self.channels, *self.patterns.shape[1:])
        positions = _positions(self.patterns)
        dense = np.zeros((filters, self.channels, self.patterns[0].size), self.weight.dtype)
        for place in range(filters):
            for t in range(runs - 1):
                kernels = np.arange(self.stride[place, t], self.stride[place, t + 1]) + self.offset[place]
                dense[self.reorder[place], self.index[kernels][:, None], positions[t]] = self.weight[kernels]
        return dense.reshape(shape)


def fkw_arrays(weights: np.ndarray, patterns: np.ndarray) -> FKWArrays:
    """Store a pattern-pruned weight (or its mask) in FKW form.

    A kernel takes the first pattern that holds all its non-zeros; a zero inside the pattern is stored. Filters are in
    ascending order of kept kernels, equal ones in their own order; kernels of one pattern in order of input channel.

    Args:
        weights: (F, C, R, S).
        patterns: bool, (P, R, S), the same number of ones in each.

    Raises:
        ShapeError: the shapes do not agree, unequal patterns, or a kernel that no pattern holds.
    """
    _check(weights, patterns)
    filters, channels = weights.shape[:2]
    kernels = weights.reshape(filters, channels, -1)
    kind = _pattern_of(kernels != 0, patterns)
    kept = kind >= 0
    lengths = kept.sum(axis=1)
    reorder = np.argsort(lengths, kind="stable")
    place, channel = np.nonzero(kept[reorder])  # sorted by filter, then channel
    types = kind[reorder][place, channel]
    order = np.lexsort((types, place))  # stable: channels stay in order
    place, channel, types = place[order], channel[order], types[order]
    counts = np.zeros((filters, len(patterns) + 1), np.int64)
    np.add.at(counts, (place, types + 1), 1)
    return FKWArrays(
        offset=np.concatenate([[0], np.cumsum(lengths[reorder])]),
        reorder=reorder,
        index=channel,
        stride=np.cumsum(counts, axis=1),
        weight=kernels[reorder[place][:, None], channel[:, None], _positions(patterns)[types]],
        patterns=patterns,
        channels=channels,
    )


def _check(weights: np.ndarray, patterns: np.ndarray) -> None:
    if weights.ndim != 4 or patterns.ndim != 3 or len(patterns) == 0 or weights.shape[2:] != patterns.shape[1:]:
        raise ShapeError(f"weights {weights.shape} and patterns {patterns.shape}, needs (F, C, R, S) and (P, R, S)")
    if patterns.dtype != np.bool_ or len(set(patterns.sum(axis=(1, 2)).tolist())) != 1 or not patterns[0].any():
        raise ShapeError("patterns: needs booleans with the same number of ones, at least one, in each")


def _pattern_of(mask: np.ndarray, patterns: np.ndarray) -> np.ndarray:
    """First pattern that holds each kernel's non-zeros, int64 (F, C); -1 for a kernel without any."""
    outside = mask.astype(np.float32) @ (~patterns.reshape(len(patterns), -1)).T.astype(np.float32)
    fits = outside == 0
    kept = mask.any(axis=2)
    if (lost := kept & ~fits.any(axis=2)).any():
        f, c = np.argwhere(lost)[0]
        raise ShapeError(f"kernel ({f}, {c}) lies in none of the {len(patterns)} patterns; project it to one first")
    return np.where(kept, fits.argmax(axis=2), -1)


def _positions(patterns: np.ndarray) -> np.ndarray:
    """Flat kernel positions of each pattern, (P, entries)."""
    return np.nonzero(patterns.reshape(len(patterns), -1))[1].reshape(len(patterns), -1)
