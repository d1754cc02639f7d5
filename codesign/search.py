"""The Pareto front of expected loss against cost, by NSGA-II over options (pymoo; Deb et al., 2002).

A generation is evaluated in one gather and sum over the price table, so that thousands of candidates a second are
possible. The population starts from the dense network, from the exact solutions (`solve`) at budgets spread over the
range, and from random candidates; every candidate ever evaluated is kept, feasible or not, none twice.

The front is over (expected loss, the first budget's metric); the other budgets are constraints.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from codesign.budgets import are_kept
from codesign.costs import METRICS
from codesign.solve import PriceTable, Solution, solve
from workloads.errors import ConfigError, PlanError


@dataclass(frozen=True)
class Front:
    """What a search found.

    Attributes:
        metric: the cost on the second axis. budgets: by metric.
        choices: int (candidates, variables), every distinct candidate, in the order of evaluation.
        loss: expected loss, (candidates,). costs: by metric, (candidates,).
        feasible: bool, keeps every budget. optimal: bool, no candidate is better in both loss and `metric`.
        exact: the solver's candidate at the budget, with its proven gap.
    """

    metric: str
    budgets: Mapping[str, float]
    choices: np.ndarray
    loss: np.ndarray
    costs: Mapping[str, np.ndarray]
    feasible: np.ndarray
    optimal: np.ndarray
    exact: Solution

    def __str__(self) -> str:
        return (
            f"{len(self.loss):,} candidates, {int(self.feasible.sum()):,} within the budget, "
            f"{int(self.optimal.sum())} on the front; exact solver's gap {self.exact.gap:.2%}"
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON value."""
        return {
            "metric": self.metric,
            "budgets": dict(self.budgets),
            "choices": self.choices.tolist(),
            "loss": self.loss.tolist(),
            "costs": {name: values.tolist() for name, values in self.costs.items()},
            "feasible": self.feasible.tolist(),
            "optimal": self.optimal.tolist(),
            "exact": dataclasses.asdict(self.exact),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Front:
        """The inverse of `to_dict`.

        Raises:
            ConfigError: its lists are of different lengths.
        """
        exact, costs = data["exact"], {name: np.array(data["costs"][name], float) for name in METRICS}
        choices, loss = np.array(data["choices"], int), np.array(data["loss"], float)
        feasible, optimal = np.array(data["feasible"], bool), np.array(data["optimal"], bool)
        if len({len(each) for each in (choices, loss, feasible, optimal, *costs.values())}) > 1:
            raise ConfigError("choices, loss, feasible, optimal and costs are not of one length")
        return cls(
            data["metric"],
            data["budgets"],
            choices,
            loss,
            costs,
            feasible,
            optimal,
            Solution(**exact | {name: tuple(exact[name]) for name in ("choices", "binding")}),
        )


def search(
    table: PriceTable,
    budgets: Mapping[str, float],
    *,
    population: int = 100,
    generations: int = 60,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Front:
    """Explore the table.

    Args:
        budgets: at least one; its first metric is the front's cost axis.
        progress: called with (generation, generations).

    Raises:
        PlanError: no variables, or budgets that no candidate keeps.
    """
    if not table.names:
        raise PlanError("nothing can be chosen: no channel group is prunable at this target's multiple; see --keep")
    metric = next(iter(budgets))
    best = solve(table, budgets)
    seeds = _seeds(table, metric, budgets[metric], best)
    archive = _Archive()
    archive.add(seeds)
    _evolve(table, budgets, metric, seeds, archive, population, generations, seed, progress)
    choices = archive.candidates()
    costs, loss = table.cost(choices), table.expected_loss(choices)
    feasible = are_kept(budgets, costs)
    return Front(metric, dict(budgets), choices, loss, costs, feasible, pareto(loss, costs[metric]), best)


def pareto(loss: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Boolean: no other point is at most as bad in both and better in one; of equal points the first counts.

    >>> pareto(np.array([0.0, 1.0, 1.0, 2.0]), np.array([3.0, 2.0, 2.5, 2.0])).tolist()
    [True, True, False, False]
    """
    order = np.lexsort((np.arange(len(loss)), loss, cost))
    least = np.minimum.accumulate(loss[order])
    optimal = np.zeros(len(loss), bool)
    optimal[order] = loss[order] < np.concatenate(([np.inf], least[:-1]))
    return optimal


class _Archive:
    """Distinct candidates in the order in which they came."""

    def __init__(self) -> None:
        self._seen: dict[bytes, np.ndarray] = {}

    def add(self, choices: np.ndarray) -> None:
        for choice in np.ascontiguousarray(choices, np.int64):
            self._seen.setdefault(choice.tobytes(), choice)

    def candidates(self) -> np.ndarray:
        return np.stack(list(self._seen.values()))


def _seeds(table: PriceTable, metric: str, budget: float, best: Solution) -> np.ndarray:
    """The dense network and exact solutions from the budget to the dense cost."""
    dense = np.zeros((1, len(table.names)), int)
    full = float(table.cost(dense)[metric][0])
    found = [dense[0], np.array(best.choices)]
    for share in (0.75, 0.9, 1.1, 1.25, 1.5):
        if budget * share < full:
            try:
                found.append(np.array(solve(table, {metric: budget * share}, time_limit_s=5).choices))
            except PlanError:  # below what can be reached: the front ends there
                continue
    return np.stack(found)


def _evolve(
    table: PriceTable,
    budgets: Mapping[str, float],
    metric: str,
    seeds: np.ndarray,
    archive: _Archive,
    population: int,
    generations: int,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Run NSGA-II; every evaluated candidate goes into the archive."""
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.callback import Callback
    from pymoo.core.problem import Problem
    from pymoo.operators.crossover.pntx import TwoPointCrossover
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.repair.rounding import RoundingRepair
    from pymoo.optimize import minimize

    others = [name for name in budgets if name != metric]
    scale = float(table.cost(np.zeros((1, len(table.names)), int))[metric][0]) or 1.0

    class Choosing(Problem):
        def __init__(self) -> None:
            upper = np.array(table.options) - 1
            super().__init__(n_var=len(upper), n_obj=2, n_ieq_constr=len(others), xl=0, xu=upper, vtype=int)

        def _evaluate(self, x: np.ndarray, out: dict[str, np.ndarray], *args: object, **kwargs: object) -> None:
            choices = np.round(x).astype(int)
            archive.add(choices)
            costs = table.cost(choices)
            out["F"] = np.stack([table.expected_loss(choices), costs[metric] / scale], axis=1)
            if others:
                out["G"] = np.stack([costs[name] / budgets[name] - 1 for name in others], axis=1)

    class Report(Callback):
        def notify(self, algorithm: NSGA2) -> None:
            if progress:
                progress(int(algorithm.n_gen), generations)

    rng = np.random.default_rng(seed)
    rest = np.stack([rng.integers(0, options, max(population - len(seeds), 1)) for options in table.options], axis=1)
    algorithm = NSGA2(
        pop_size=population,
        sampling=np.concatenate([seeds, rest])[:population],
        crossover=TwoPointCrossover(repair=RoundingRepair()),
        mutation=PM(prob=1.0, eta=3, repair=RoundingRepair()),
        eliminate_duplicates=True,
    )
    minimize(Choosing(), algorithm, ("n_gen", generations), seed=seed, callback=Report(), verbose=False)
