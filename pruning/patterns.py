"""Kernel patterns: the few shapes that a 3x3 kernel may keep.

Letters: k filters, c input channels, m patterns. A pattern is a 3x3 boolean with `entries` ones; every kernel takes
the pattern that keeps most of its energy.

Source: Ma et al., "PCONV", AAAI 2020 (four patterns by design), and Niu et al., "PatDNN", ASPLOS 2020 (patterns found
by counting).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from workloads.errors import PlanError, ShapeError

CENTRE = 4


@dataclass(frozen=True)
class PatternLibrary:
    """The patterns that kernels choose from.

    Attributes:
        patterns: positions 0 .. 8 (row by row) that each pattern keeps, ascending; the same number in each.
    """

    patterns: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        sizes = {len(pattern) for pattern in self.patterns}
        legal = all(list(p) == sorted(set(p)) and set(p) <= set(range(9)) for p in self.patterns)
        if len(sizes) != 1 or 0 in sizes or not legal or len(set(self.patterns)) != len(self.patterns):
            raise PlanError(f"patterns {self.patterns}: need different ascending positions 0..8, equally many in each")

    @property
    def entries(self) -> int:
        """Weights that each pattern keeps."""
        return len(self.patterns[0])

    def masks(self) -> Tensor:
        """bool, (m, 3, 3)."""
        found = torch.zeros(len(self.patterns), 9, dtype=torch.bool)
        for row, pattern in enumerate(self.patterns):
            found[row, list(pattern)] = True
        return found.view(-1, 3, 3)

    def __str__(self) -> str:
        rows = [" ".join("".join(".#"[bit] for bit in row) for row in block) for block in self.masks().int().tolist()]
        return "\n".join(rows)


def four_entry_library() -> PatternLibrary:
    """PCONV's four patterns: the centre and three of its four direct neighbours.

    Source: Ma et al., "PCONV", AAAI 2020, figure 2.

    >>> print(four_entry_library())
    .#. ### ...
    .#. ##. .#.
    ... ### .#.
    .#. .## .#.
    """
    return PatternLibrary(((1, 3, 4, 5), (1, 3, 4, 7), (3, 4, 5, 7), (1, 4, 5, 7)))


def natural_library(weights: Iterable[Tensor], count: int = 8) -> PatternLibrary:
    """The `count` most frequent natural patterns of trained kernels.

    The natural pattern of a kernel is its centre and the three other positions of largest magnitude (56 are possible).

    Args:
        weights: of trained layers; those whose kernels are not 3x3 are passed over.
        count: patterns to keep, 1 .. 56. Fewer come back where fewer occur.

    Raises:
        PlanError: no 3x3 kernel at all, or a count out of range.

    Source: Niu et al., "PatDNN", ASPLOS 2020, pattern set by counting. Differs: ties go to the lower positions.
    """
    library = PatternLibrary(tuple(tuple(sorted((CENTRE, *rest))) for rest in itertools.combinations(_OTHERS, 3)))
    if not 1 <= count <= len(library.patterns):
        raise PlanError(f"{count} patterns asked for, possible are 1..{len(library.patterns)}")
    kernels = [weight.detach().abs().reshape(-1, 9).cpu() for weight in weights if weight.shape[2:] == (3, 3)]
    if not kernels:
        raise PlanError("natural patterns need 3x3 kernels, and no layer has any; use granularity 'weight'")
    others = torch.cat(kernels)[:, list(_OTHERS)]
    largest = torch.sort(others, dim=1, descending=True, stable=True).indices[:, :3]
    occupied = torch.zeros(len(others), 9).scatter_(1, torch.tensor(_OTHERS)[largest], 1.0)
    occupied[:, CENTRE] = 1.0
    natural = (occupied @ library.masks().view(-1, 9).float().T).argmax(1)
    seen = torch.bincount(natural, minlength=len(library.patterns))
    frequent = torch.sort(seen, descending=True, stable=True).indices[:count].tolist()
    return PatternLibrary(tuple(library.patterns[i] for i in frequent if seen[i] > 0))


def best_patterns(scores: Tensor, library: PatternLibrary, filters: int = 1) -> Tensor:
    """For every kernel the pattern that keeps the largest L2 norm; ties go to the lower index.

    Args:
        scores: float, (k, c, 3, 3), usually the weights.
        filters: so many consecutive filters share the pattern that is best for all of them, channel by channel.

    Returns:
        bool, (k, c, 3, 3), `library.entries` ones in each kernel.

    Raises:
        ShapeError: kernels are not 3x3.

    >>> best_patterns(torch.ones(1, 1, 3, 3), four_entry_library()).sum().item()
    4
    """
    if scores.dim() != 4 or scores.shape[2:] != (3, 3):
        raise ShapeError(f"patterns need kernels of 3x3, these weights are {tuple(scores.shape)}; use 'weight'")
    masks = library.masks().to(scores.device)
    energy = scores.detach().double().square().reshape(*scores.shape[:2], 9) @ masks.view(-1, 9).double().T
    if filters > 1:
        owner = torch.arange(len(scores), device=scores.device) // filters
        energy = energy.new_zeros(int(owner[-1]) + 1, *energy.shape[1:]).index_add_(0, owner, energy)[owner]
    first_best = (energy == energy.amax(2, keepdim=True)).int().argmax(2)
    return masks[first_best]


_OTHERS = tuple(position for position in range(9) if position != CENTRE)
