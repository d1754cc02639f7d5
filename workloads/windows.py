"""Arrays of kernels that keep equally many weights (Campfire's windows, kernels and both), and back.

A bit a kernel says whether it is there; each kernel that is takes the same room, its weights and where they lie, so no
lengths or pointers are stored and the n-th kernel is found by counting bits. `workloads.encodings.window_bits` gives
the size without building the arrays.

Letters: K filters, C input channels, Q kernels that are not all zero, q weights in each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from workloads.errors import ShapeError


@dataclass(frozen=True)
class WindowArrays:
    """One weight tensor.

    Attributes:
        kept: bool (K, C), kernels that are not all zero.
        position: int64 (Q, q), flat positions in the kernel, ascending; kernels in row-major order.
        weight: (Q, q).
        kernel: (R, S).
    """

    kept: np.ndarray
    position: np.ndarray
    weight: np.ndarray
    kernel: tuple[int, int]

    def size_bits(self, weight_bits: float) -> float:
        """A bit a kernel, the weights, and the shorter of two ways to say where they lie."""
        area, entries = math.prod(self.kernel), self.weight.shape[1]
        index = min(area, entries * (area - 1).bit_length()) if entries < area else 0
        return self.kept.size + len(self.weight) * (entries * weight_bits + index)

    def decode(self) -> np.ndarray:
        """The dense weight, (K, C, R, S), of the type of `weight`."""
        kernels = np.zeros((len(self.weight), math.prod(self.kernel)), self.weight.dtype)
        np.put_along_axis(kernels, self.position, self.weight, axis=1)
        dense = np.zeros((*self.kept.shape, *self.kernel), self.weight.dtype)
        dense[self.kept] = kernels.reshape(-1, *self.kernel)
        return dense


def window_arrays(weights: np.ndarray, entries: int) -> WindowArrays:
    """Store a weight (or its mask) whose kernels keep `entries` weights or none.

    A kernel with fewer non-zeros stores zeros as well, at its first free positions.

    Args:
        weights: (K, C, R, S).

    Raises:
        ShapeError: other dimensions, `entries` beyond the kernel, or a kernel with more non-zeros; names it.
    """
    if weights.ndim != 4 or not 1 <= entries <= weights[0, 0].size:
        raise ShapeError(f"weights {weights.shape} with {entries} entries, needs (K, C, R, S) and 1 .. R S entries")
    filled = weights.reshape(*weights.shape[:2], -1) != 0
    if len(full := np.argwhere(filled.sum(2) > entries)):
        k, c = full[0]
        raise ShapeError(f"kernel ({k}, {c}) has {filled[k, c].sum()} non-zeros, more than {entries}; prune to windows")
    kept = filled.any(2)
    position = np.sort(np.argsort(~filled[kept], axis=1, kind="stable")[:, :entries], axis=1)
    values = np.take_along_axis(weights.reshape(*weights.shape[:2], -1)[kept], position, axis=1)
    return WindowArrays(kept, position, values, (weights.shape[2], weights.shape[3]))
