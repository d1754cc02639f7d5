"""What is removed together: single weights, kernel patterns, whole kernels, filters, input channels.

A weight is (k, c, r, s), k filters, c input channels of a group, kernels r x s; (k, c, s) of a 1-D convolution or
(k, c) of a linear layer count as kernels of one column or one weight. A granularity is one function in the table
`GRANULARITIES`: scores and a density to a mask that keeps exactly `kept_count(items, density)` of its items, the
highest scores first, ties to the lower index.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pruning.patterns import PatternLibrary, best_patterns, four_entry_library
from workloads.errors import PlanError, ShapeError, unknown_name


def mask(
    weight: Tensor,
    density: float,
    granularity: str,
    scores: Tensor | None = None,
    library: PatternLibrary | None = None,
) -> Tensor:
    """The mask that keeps the best `density` of a weight at a granularity.

    Args:
        weight: float, 2 to 4 dims. Not modified.
        density: kept fraction, in (0, 1]. For patterns at most entries / 9, or 1 for all.
        granularity: a name of `GRANULARITIES`.
        scores: importance of every weight, of its shape; by default its magnitude. A group's is their L2 norm.
        library: the patterns of granularity "pattern"; by default PCONV's four.

    Returns:
        bool, the weight's shape.

    Raises:
        ConfigError: unknown granularity.
        PlanError: a density out of range, or NaN in the scores.
        ShapeError: wrong dims, or patterns for kernels that are neither 3x3 nor 1x1.

    >>> mask(torch.tensor([[3.0, -1.0], [2.0, -4.0]]), 0.5, "weight").tolist()
    [[True, False], [False, True]]
    >>> mask(torch.tensor([[3.0, -1.0], [2.0, -4.0]]), 0.5, "filter").tolist()
    [[False, False], [True, True]]
    """
    if granularity not in GRANULARITIES:
        raise unknown_name("granularity", granularity, GRANULARITIES)
    if not 2 <= weight.dim() <= 4:
        raise ShapeError(f"weight of shape {tuple(weight.shape)}, needs 2 to 4 dims")
    scores = weight.detach().abs() if scores is None else scores.detach()
    if scores.shape != weight.shape:
        raise ShapeError(f"scores of shape {tuple(scores.shape)} for a weight of shape {tuple(weight.shape)}")
    if not torch.isfinite(scores).all():
        raise PlanError("scores hold NaN or infinite numbers, so nothing can be ranked; check the weights")
    if not 0 < density <= 1:
        raise PlanError(f"density {density}, must be above 0 and at most 1; to drop a layer remove its channels")
    if density == 1:
        return torch.ones_like(scores, dtype=torch.bool)
    if granularity == "pattern":
        return _pattern(scores, density, library or four_entry_library())
    return GRANULARITIES[granularity](scores, density)


def kept_count(items: int, density: float) -> int:
    """How many of `items` a density keeps: the nearest integer, halves up, at least one.

    >>> kept_count(9, 0.5), kept_count(10, 0.04)
    (5, 1)
    """
    return max(1, math.floor(items * density + 0.5))


def keep_best(scores: Tensor, count: int) -> Tensor:
    """bool of the shape of `scores`: its `count` largest, ties to the lower index. Linear time.

    >>> keep_best(torch.tensor([1.0, 2.0, 1.0, 1.0]), 2).tolist()
    [True, True, False, False]
    """
    flat = scores.reshape(-1)
    if count >= flat.numel():
        return torch.ones_like(scores, dtype=torch.bool)
    threshold = flat.kthvalue(flat.numel() - count + 1).values
    kept = flat > threshold
    ties = torch.nonzero(flat == threshold).view(-1)
    kept[ties[: count - int(kept.sum())]] = True
    return kept.view(scores.shape)


def _norm(scores: Tensor, dims: tuple[int, ...]) -> Tensor:
    """L2 norm over dims, which stay with size one; in float64, so that no tie depends on the order of a sum."""
    return scores.double().square().sum(dims, keepdim=True) if dims else scores.double().square()


def _keep_groups(scores: Tensor, dims: tuple[int, ...], density: float) -> Tensor:
    """Keep whole groups; `dims` are those that a group spans."""
    norms = _norm(scores, dims)
    return keep_best(norms, kept_count(norms.numel(), density)).expand(scores.shape).clone()


def _weight(scores: Tensor, density: float) -> Tensor:
    return keep_best(scores, kept_count(scores.numel(), density))


def _kernel(scores: Tensor, density: float) -> Tensor:
    """Whole r x s kernels ("connectivity pruning"); the same as "weight" where kernels have one weight."""
    return _keep_groups(scores, tuple(range(2, scores.dim())), density)


def _filter(scores: Tensor, density: float) -> Tensor:
    return _keep_groups(scores, tuple(range(1, scores.dim())), density)


def _channel(scores: Tensor, density: float) -> Tensor:
    """Whole input channels; with groups, the same position of every group."""
    return _keep_groups(scores, (0, *range(2, scores.dim())), density)


def _pattern(scores: Tensor, density: float, library: PatternLibrary | None = None) -> Tensor:
    """A pattern in every kernel, and below entries / 9 whole kernels removed, those of smallest kept norm first.

    1x1 kernels have no pattern: there only whole kernels are removed, which is ordinary weight pruning.

    Source: Ma et al., "PCONV", AAAI 2020; connectivity pruning by norm after Niu et al., "PatDNN", ASPLOS 2020.
    """
    library = library or four_entry_library()
    if scores[0, 0].numel() == 1:
        return _weight(scores, density)
    chosen = best_patterns(scores, library)
    most = library.entries / 9
    if density > most + 1e-9:
        raise PlanError(f"density {density}: patterns of {library.entries} of 9 weights keep at most {most:.4f}")
    kernels = scores.shape[0] * scores.shape[1]
    return chosen & keep_best(_norm(scores * chosen, (2, 3)), kept_count(kernels, min(1.0, density / most)))


GRANULARITIES: Mapping[str, Callable[[Tensor, float], Tensor]] = {
    "weight": _weight,
    "pattern": _pattern,
    "kernel": _kernel,
    "filter": _filter,
    "channel": _channel,
}
"""Name to (scores, density) -> mask."""
