"""One processing element of Eyeriss v2: what its compressed scratchpads make it do, exactly and expected.

Activations and weights lie in compressed sparse columns (CSC): a column is what one activation meets, the weights of m
output channels at one input channel and one kernel position. The PE takes non-zero activations one by one, finds the
column of each by its address, and multiplies it with the non-zero weights there, a word of `lanes` weights a cycle:

    pairs  = sum over input channels of (non-zero weights that read it) (non-zero activations of it)         `pe_cycles`
    words  = ceil(non-zero weights of a column / lanes)
    cycles = sum over non-zero activations of the words of their column

With one lane the cycles are the pairs: that is what is published for single PEs, and it is exact. With two lanes a word
holds two successive non-zeros of a column, and an odd one is padded with a zero. Of j weights kept with probability d
each the expectation is  (j d + (1 - (1 - 2d)^j) / 2) / 2,  since (1 - (1 - 2d)^j) / 2 is the chance of an odd count.

Known to be wrong: an activation that meets an empty column costs nothing here; the look-up of its address may take a
cycle that nothing hides.

Sources: Chen, Yang, Emer, Sze, "Eyeriss v2", IEEE JETCAS 9(2) 2019, arXiv:1807.07928; Wu et al., "Sparseloop", MICRO
2022, artifact (cycles of a single PE, masks of four layers).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from workloads.errors import ShapeError
from workloads.sparsity import WeightSparsity


def pe_cycles(weight: WeightSparsity | ArrayLike, activation_counts: ArrayLike) -> int:
    """Cycles of a single PE that does a whole 1x1 or linear layer, one multiplication a cycle: its non-zero pairs.

    Exact from the counts alone, because every weight of a channel meets every activation of it.

    Args:
        weight: an exact mask, or its non-zeros per input channel, (C,).
        activation_counts: non-zero activations of each input channel over all pixels, (C,).

    Raises:
        ShapeError: not one count a channel, a kernel larger than 1x1, or a density in place of a mask.

    Source: Sparseloop artifact (Wu et al., MICRO 2022), cycles of the Eyeriss v2 authors' simulator, SIMD off.

    >>> pe_cycles([2, 1], [3, 0])  # two weights meet three activations
    6
    """
    if isinstance(weight, WeightSparsity):
        if not weight.is_exact or weight.r * weight.s > 1:
            raise ShapeError(f"{weight!r}: pairs are exact only of a 1x1 mask; see pe_cycles_estimate for densities")
        weight = weight.input_channel_counts
    weights, activations = np.asarray(weight), np.asarray(activation_counts)
    if weights.ndim != 1 or weights.shape != activations.shape:
        raise ShapeError(f"counts of shapes {weights.shape} and {activations.shape}, needs one a channel in both")
    return int(weights.astype(np.int64) @ activations.astype(np.int64))


def pe_cycles_estimate(macs: float, weight_density: float, activation_density: float) -> float:
    """The same from two densities, which is biased: zeros of weights and activations are correlated by channel.

    On the four published layers it is 6.7, 1.6, 3.9 and 5.4 % too low.
    """
    return macs * weight_density * activation_density


def column_words(density: np.ndarray, most: int, lanes: int) -> np.ndarray:
    """Expected words of a column of 0, 1 ... `most` random weights, (most + 1, rows); odd columns are padded.

    >>> column_words(np.array([0.5, 1.0]), 3, 2).tolist()  # three weights of density 1 take two words
    [[0.0, 0.0], [0.5, 1.0], [0.75, 1.0], [1.0, 2.0]]
    """
    m = np.arange(most + 1.0)[:, None]
    odd = np.cumprod(np.broadcast_to(1 - 2 * density, (most + 1, len(density))), axis=0)
    odd = (1 - np.concatenate([np.ones((1, len(density))), odd[:-1]])) / 2
    return np.asarray((m * density + odd) / 2 if lanes == 2 else m * density)
