"""What a search writes beside its front: the pick, and the result. Files are checked field by field when they are read.

Costs are by metric in SI units, accuracies are fractions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from accel_models import SimulationResult
from codesign.costs import METRICS
from workloads.errors import ConfigError


@dataclass(frozen=True)
class Measured:
    """A candidate as it really is.

    Attributes:
        choice: an option by variable of the space.
        costs: of the real pruned graph. feasible: they keep every budget.
        heldout: accuracy before fine-tuning.
    """

    choice: tuple[int, ...]
    costs: Mapping[str, float]
    feasible: bool
    heldout: float

    def __post_init__(self) -> None:
        _check_whole("costs", self.costs)


@dataclass(frozen=True)
class Pick:
    """The candidate that was taken, and those it was taken from.

    Attributes:
        table_cost: what the search's price table said of it, in the front's metric.
    """

    dense_heldout: float
    pick_heldout: float
    choice: tuple[int, ...]
    table_cost: float
    measured: tuple[Measured, ...]


@dataclass(frozen=True)
class SearchResult:
    """All numbers of a finished search.

    Attributes:
        dense, pruned: prices on the target. met: the pruned graph keeps every budget.
        dense_costs, costs: by metric, before and after.
        dense_heldout, pick_heldout, tuned_heldout: on held-out images; the pick before fine-tuning and after it.
        dense_test, test: on the test images, at the end.
        parameters: before and after.
    """

    dense: SimulationResult
    pruned: SimulationResult
    dense_costs: Mapping[str, float]
    costs: Mapping[str, float]
    table_cost: float
    budgets: Mapping[str, float]
    met: bool
    dense_heldout: float
    pick_heldout: float
    tuned_heldout: float
    dense_test: float
    test: float
    parameters: tuple[int, int]
    heldout_images: int
    test_images: int

    def __post_init__(self) -> None:
        _check_whole("dense_costs", self.dense_costs)
        _check_whole("costs", self.costs)

    @property
    def accuracies(self) -> dict[str, float]:
        names = ("dense_heldout", "pick_heldout", "tuned_heldout", "dense_test", "test")
        return {name: getattr(self, name) for name in names}


def _check_whole(where: str, costs: Mapping[str, float]) -> None:
    if missing := sorted(set(METRICS) - set(costs)):
        raise ConfigError(f"{where}: {missing[0]} is missing")
