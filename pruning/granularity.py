"""What is removed together: single weights, N of M, blocks, windows, kernel patterns, whole kernels, filters, channels.

A weight is (k, c, r, s), k filters, c input channels of a group, kernels r x s; (k, c, s) of a 1-D convolution or
(k, c) of a linear layer count as kernels of one column or one weight. A granularity is a row of the table
`GRANULARITIES`: a name, or a form with numbers in it, and a function of scores and density that makes a mask.

| name | what is removed together | how much is kept |
|---|---|---|
| weight | one weight | the best of the layer |
| 2:4 (any N:M) | one weight | the best N of every M consecutive input channels |
| 4x1, 1x4 (any KxC) | K consecutive filters x C input channels at one kernel position | the best blocks of the layer |
| window | one weight | equally many of every kernel, to the nearest whole number |
| row | one weight | equally many of every filter, to the nearest whole number |
| pattern, pattern/4 | what a kernel's pattern leaves out, then whole kernels | see `_pattern`; 4 filters share both |
| kernel | one r x s kernel | the best of the layer |
| filter, channel | a filter; an input channel | the best of the layer |

Except for N:M, windows and rows a mask keeps exactly `kept_count(items, density)` of its items. Items of highest score
come first, ties go to the lower index; blocks and filter groups at the edge may be smaller.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from pruning.patterns import PatternLibrary, best_patterns, four_entry_library
from workloads.errors import ConfigError, PlanError, ShapeError, unknown_name

SHORT = 8
"""Items of a line up to which comparing all pairs is faster than sorting: five times for 2:4."""


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
        density: kept fraction, in (0, 1]. For patterns at most entries / 9, for N:M at least N / M, or 1 for all.
        granularity: "weight", "2:4", "4x1", "window", "pattern", ...; the table above.
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
    rule, numbers = _parse(granularity)
    if not 2 <= weight.dim() <= 4:
        raise ShapeError(f"weight of shape {tuple(weight.shape)}, needs 2 to 4 dims")
    scores = weight.detach().abs() if scores is None else scores.detach()
    if scores.shape != weight.shape:
        raise ShapeError(f"scores of shape {tuple(scores.shape)} for a weight of shape {tuple(weight.shape)}")
    check_scores(scores)
    if not 0 < density <= 1:
        raise PlanError(f"density {density}, must be above 0 and at most 1; to drop a layer remove its channels")
    if density == 1:
        return torch.ones_like(scores, dtype=torch.bool)
    if rule is _pattern:
        return _pattern(scores, density, numbers[0] if numbers else 1, library)
    return rule(scores, density, *numbers)


def check_scores(scores: Tensor) -> None:
    """Raise a PlanError for scores that are not finite."""
    if not torch.isfinite(scores).all():
        raise PlanError("scores hold NaN or infinite numbers, so nothing can be ranked; check the weights")


def check_granularity(name: str) -> None:
    """Raise a ConfigError for a name that is no granularity."""
    _parse(name)


def largest_density(granularity: str, library: PatternLibrary | None = None) -> float:
    """The most that a mask below density 1 can keep; between it and 1 there is nothing.

    >>> largest_density("weight"), round(largest_density("pattern/2"), 3)
    (1.0, 0.444)
    """
    is_pattern = _parse(granularity)[0] is _pattern
    return (library or four_entry_library()).entries / 9 if is_pattern else 1.0


def smallest_density(granularity: str) -> float:
    """The least that a mask can keep: N / M, else anything above 0.

    >>> smallest_density("2:4"), smallest_density("kernel")
    (0.5, 0.0)
    """
    rule, numbers = _parse(granularity)
    return numbers[0] / numbers[1] if rule is _n_of_m else 0.0


def _parse(name: str) -> tuple[Callable[..., Tensor], tuple[int, ...]]:
    """A granularity's rule and the numbers in its name.

    >>> _parse("2:4")[1], _parse("pattern")[1]
    ((2, 4), ())
    """
    form = re.sub(r"[1-9]\d*", "#", name)
    if "#" in name or form not in GRANULARITIES:
        shown = tuple(each.replace("#:#", "2:4").replace("#x#", "4x1").replace("#", "4") for each in GRANULARITIES)
        raise unknown_name("granularity", name, shown)
    numbers = tuple(int(number) for number in re.findall(r"\d+", name))
    if form == "#:#" and numbers[0] > numbers[1]:
        raise ConfigError(f"granularity {name!r}: cannot keep {numbers[0]} of {numbers[1]}")
    return GRANULARITIES[form], numbers


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


def keep_best_along(scores: Tensor, dim: int, count: int) -> Tensor:
    """bool of the shape of `scores`: the `count` largest of every line along a dim, ties to the lower index.

    >>> keep_best_along(torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 1.0]]), 1, 1).int().tolist()
    [[0, 1, 0], [1, 0, 0]]
    """
    if scores.shape[dim] > SHORT:
        best = torch.sort(scores, dim=dim, descending=True, stable=True).indices.narrow(dim, 0, count)
        return torch.zeros_like(scores, dtype=torch.bool).scatter_(dim, best, True)
    items, kept = scores.unbind(dim), []
    for i, mine in enumerate(items):
        ahead = torch.zeros_like(mine, dtype=torch.uint8)
        for j, other in enumerate(items):
            ahead += (other >= mine) if j < i else (other > mine)
        kept.append(ahead < count)
    return torch.stack(kept, dim)


def keep_kernels(energy: Tensor, density: float, filters: int = 1, balanced: bool = False) -> Tensor:
    """Which kernels of a layer stay connected.

    Args:
        energy: what each kernel is worth, at least zero, (k, c).
        density: kept fraction, in (0, 1].
        filters: so many consecutive filters keep the same kernels, those of largest sum.
        balanced: every filter keeps equally many kernels, to the nearest whole number.

    Returns:
        bool, (k, c).

    >>> keep_kernels(torch.tensor([[4.0, 3.0], [2.0, 1.0]]), 0.5).int().tolist()
    [[1, 1], [0, 0]]
    >>> keep_kernels(torch.tensor([[4.0, 3.0], [2.0, 1.0]]), 0.5, balanced=True).int().tolist()
    [[1, 0], [1, 0]]
    """
    if not balanced:
        return _keep_blocks(energy, density, filters, 1)
    sums = _padded(energy, 0, filters, 0.0).unflatten(0, (-1, filters)).sum(1)
    kept = keep_best_along(sums, 1, kept_count(sums.shape[1], density))
    return kept.repeat_interleave(filters, 0)[: len(energy)]


def _norm(scores: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Squared L2 norm over dims, which stay with size one; in float64, so that no tie depends on the order of a sum."""
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


def _n_of_m(scores: Tensor, density: float, n: int, m: int) -> Tensor:
    """The best of every m consecutive input channels at the same filter and kernel position: n, or more while a
    density above n / m asks for them. Missing channels of the last group count as zeros that were removed."""
    if density < n / m - 1e-9:
        raise PlanError(f"density {density}: {n}:{m} keeps {n / m:g}; give that density")
    kept = math.ceil(density * m - 1e-9)
    groups = _padded(scores, 1, m, -math.inf).unflatten(1, (-1, m))
    return keep_best_along(groups, 2, kept).flatten(1, 2)[:, : scores.shape[1]]


def _block(scores: Tensor, density: float, filters: int, channels: int) -> Tensor:
    """Blocks of consecutive filters x channels at one kernel position, after block-sparse kernels of XNNPACK."""
    return _keep_blocks(scores.double().square(), density, filters, channels)


def _keep_blocks(energy: Tensor, density: float, filters: int, channels: int) -> Tensor:
    blocks = _padded(_padded(energy, 0, filters, 0.0), 1, channels, 0.0)
    blocks = blocks.unflatten(0, (-1, filters)).unflatten(2, (-1, channels))
    sums = blocks.sum((1, 3), keepdim=True)
    kept = keep_best(sums, kept_count(sums.numel(), density)).expand(blocks.shape)
    return kept.flatten(2, 3).flatten(0, 1)[: energy.shape[0], : energy.shape[1]].clone()


def _window(scores: Tensor, density: float) -> Tensor:
    """Equally many weights of every kernel; a kernel of one weight loses none.

    Source: Gamboa et al., "Campfire", 2020 (the rule is inferred: the paper's text was not at hand).
    """
    return _equally_many(scores, 2, density)


def _row(scores: Tensor, density: float) -> Tensor:
    """Equally many weights of every filter, as methods that compare weights of one output with each other keep."""
    return _equally_many(scores, 1, density)


def _equally_many(scores: Tensor, first: int, density: float) -> Tensor:
    """The best of what the axes from `first` on hold, for each position on the axes before."""
    items = scores.reshape(*scores.shape[:first], -1)
    return keep_best_along(items, first, kept_count(items.shape[first], density)).view(scores.shape)


def _padded(scores: Tensor, axis: int, multiple: int, value: float) -> Tensor:
    """Further items on an axis, up to a multiple."""
    missing = -scores.shape[axis] % multiple
    return F.pad(scores, (0, 0) * (scores.dim() - axis - 1) + (0, missing), value=value) if missing else scores


def _pattern(scores: Tensor, density: float, filters: int = 1, library: PatternLibrary | None = None) -> Tensor:
    """A pattern in every kernel, and below entries / 9 whole kernels removed, those of smallest kept norm first.

    With `filters` above one, so many consecutive filters have the same pattern, or none, at each input channel, which
    lets a compiler load inputs once for all of them. 1x1 kernels have no pattern: there only whole kernels are
    removed, which is ordinary weight pruning (in blocks of `filters`).

    Source: Ma et al., "PCONV", AAAI 2020; connectivity pruning by norm after Niu et al., "PatDNN", ASPLOS 2020.
    """
    library = library or four_entry_library()
    if scores[0, 0].numel() == 1:
        return _block(scores, density, filters, 1)
    chosen = best_patterns(scores, library, filters)
    most = library.entries / 9
    if density > most + 1e-9:
        raise PlanError(f"density {density}: patterns of {library.entries} of 9 weights keep at most {most:.4f}")
    return chosen & _keep_blocks(_norm(scores * chosen, (2, 3)), min(1.0, density / most), filters, 1)


GRANULARITIES: Mapping[str, Callable[..., Tensor]] = {
    "weight": _weight,
    "#:#": _n_of_m,
    "#x#": _block,
    "window": _window,
    "row": _row,
    "pattern": _pattern,
    "pattern/#": _pattern,
    "kernel": _kernel,
    "filter": _filter,
    "channel": _channel,
}
"""Form of a name, # for a number, to (scores, density, numbers) -> mask."""
