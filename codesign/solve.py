"""The exact best combination of choices under budgets.

A **price table** says, for every variable (a channel group's count, a layer's density) and every one of its options,
what it costs and how much accuracy it is expected to lose. A layer whose cost depends on several variables (its own
output channels, its producer's, its density) contributes a *factor*: an array with one axis per variable. The cost of
a candidate is a gather and a sum,

    cost(x) = constant + sum over factors f of f[x[v1], x[v2], ...]

and the best candidate is the solution of a mixed-integer linear program: one binary y[v, i] per option with
sum_i y[v, i] = 1; per factor of several variables one z >= 0 per combination, tied by its marginals,

    sum of z over combinations with v = i  equals  y[v, i]

minimise the expected loss subject to cost <= budget. Solved by HiGHS (`scipy.optimize.milp`) to optimality; the gap
that it proves is reported. What the table leaves out (placement that changes with the candidate, masks that are only
expected) is not in the solution's cost: `search` prices the pick again and reports the difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from codesign.budgets import UNITS, show
from workloads.errors import PlanError

CHUNK = 4096  # candidates whose costs are summed at once: they stay in a core's level-2 cache


@dataclass(frozen=True)
class Factor:
    """A part of the cost: `values[metric]` has one axis per variable in `variables` (indices into the table)."""

    variables: tuple[int, ...]
    values: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class PriceTable:
    """What every combination of options costs.

    Attributes:
        names: of the variables. options: how many each has.
        loss: expected loss of every option, one float64 array a variable.
        constant: by metric, what does not depend on any variable.
        factors: the parts that do.
    """

    names: tuple[str, ...]
    options: tuple[int, ...]
    loss: tuple[np.ndarray, ...]
    constant: Mapping[str, float]
    factors: tuple[Factor, ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(self.constant)

    def cost(self, choices: np.ndarray) -> dict[str, np.ndarray]:
        """Cost of many candidates by gather and sum.

        Args:
            choices: int (candidates, variables), the option of each variable.

        >>> table = PriceTable(("a",), (2,), (np.array([0.0, 1.0]),), {"macs": 5.0},
        ...                    (Factor((0,), {"macs": np.array([10.0, 4.0])}),))
        >>> table.cost(np.array([[0], [1]]))["macs"].tolist()
        [15.0, 9.0]
        """
        total = np.tile([self.constant[metric] for metric in self.metrics], (len(choices), 1))
        for start in range(0, len(choices), CHUNK):
            chosen = np.ascontiguousarray(choices[start : start + CHUNK].T)
            for variables, values in self._flat:
                index = chosen[variables[0]]
                for v in variables[1:]:
                    index = index * self.options[v] + chosen[v]
                total[start : start + CHUNK] += values.take(index, axis=0)
        return {metric: total[:, i] for i, metric in enumerate(self.metrics)}

    @cached_property
    def _flat(self) -> tuple[tuple[tuple[int, ...], np.ndarray], ...]:
        """Each factor's variables and values, (combinations, metrics): one gather serves all metrics."""
        return tuple(
            (factor.variables, np.stack([factor.values[metric].ravel() for metric in self.metrics], axis=1))
            for factor in self.factors
        )

    def expected_loss(self, choices: np.ndarray) -> np.ndarray:
        """Sum of the options' losses, (candidates,)."""
        return np.asarray(sum(loss[choices[:, v]] for v, loss in enumerate(self.loss)) + np.zeros(len(choices)))


@dataclass(frozen=True)
class Solution:
    """The best candidate found.

    Attributes:
        choices: the option of each variable. loss: its expected loss. cost: by metric, from the table.
        gap: relative optimality gap that the solver proved; 0 means that nothing better exists.
        binding: metrics whose budget leaves less than 1 % unused.
    """

    choices: tuple[int, ...]
    loss: float
    cost: Mapping[str, float]
    gap: float
    binding: tuple[str, ...]


def solve(table: PriceTable, budgets: Mapping[str, float], time_limit_s: float = 60.0) -> Solution:
    """The candidate of least expected loss whose costs keep every budget.

    Args:
        budgets: the most that each cost may be, by metric.
        time_limit_s: of the solver; what it has found by then is returned with its gap.

    Raises:
        PlanError: no candidate keeps the budgets (says the least that each can reach), none was found in time, or a
            metric is unknown.
    """
    for metric in budgets:
        if metric not in table.metrics:
            raise PlanError(f"budget on {metric!r}, which is not priced; allowed: {', '.join(table.metrics)}")
    program = _Program(table)
    found = program.minimise(program.loss, budgets, time_limit_s)
    if found is None:
        raise PlanError(_impossible(program, table, budgets, time_limit_s))
    choices, gap = found
    cost = {metric: float(values[0]) for metric, values in table.cost(choices[None]).items()}
    return Solution(
        choices=tuple(int(i) for i in choices),
        loss=float(table.expected_loss(choices[None])[0]),
        cost=cost,
        gap=gap,
        binding=tuple(metric for metric, budget in budgets.items() if cost[metric] > 0.99 * budget),
    )


def _impossible(program: _Program, table: PriceTable, budgets: Mapping[str, float], time_limit_s: float) -> str:
    """Why no candidate keeps the budgets: the least of each metric alone."""
    parts = []
    for metric, budget in budgets.items():
        found = program.minimise(program.costs[metric], {}, time_limit_s)
        least = table.cost(found[0][None])[metric][0] if found else math.nan
        parts.append(f"{metric} can reach {_said(metric, least)} at the least, the budget is {_said(metric, budget)}")
    return f"no choice keeps the budget: {'; '.join(parts)}. Raise the budget or allow smaller counts"


def _said(metric: str, value: float) -> str:
    return show(metric, value) if metric in UNITS else f"{value:.4g}"


class _Program:
    """The mixed-integer program of a table: columns y (options of variables), then z (combinations of factors)."""

    def __init__(self, table: PriceTable) -> None:
        self.table = table
        self.first = np.concatenate([[0], np.cumsum(table.options)]).astype(int)
        joint = [factor for factor in table.factors if len(factor.variables) > 1]
        sizes = [math.prod(table.options[v] for v in factor.variables) for factor in joint]
        self.binaries = int(self.first[-1])
        self.size = self.binaries + sum(sizes)
        self.loss = np.zeros(self.size)
        self.loss[: self.binaries] = np.concatenate(table.loss) if table.loss else []
        self.costs = {metric: np.zeros(self.size) for metric in table.metrics}
        rows: list[int] = []
        columns: list[int] = []
        signs: list[float] = []
        count = 0
        for v, options in enumerate(table.options):
            rows += [count] * options
            columns += range(self.first[v], self.first[v] + options)
            signs += [1.0] * options
            count += 1
        choose_one = count
        start = self.binaries
        for factor, size in zip(joint, sizes, strict=True):
            for metric, values in factor.values.items():
                self.costs[metric][start : start + size] += values.ravel()
            option = np.unravel_index(np.arange(size), tuple(table.options[v] for v in factor.variables))
            for v, chosen in zip(factor.variables, option, strict=True):
                for i in range(table.options[v]):
                    combinations = start + np.flatnonzero(chosen == i)
                    rows += [count] * (len(combinations) + 1)
                    columns += [*combinations.tolist(), int(self.first[v]) + i]
                    signs += [1.0] * len(combinations) + [-1.0]
                    count += 1
            start += size
        for factor in table.factors:
            if len(factor.variables) == 1:
                v = factor.variables[0]
                for metric, values in factor.values.items():
                    self.costs[metric][self.first[v] : self.first[v + 1]] += values
        self.rows, self.columns, self.signs, self.count = rows, columns, signs, count
        self.right = np.array([1.0] * choose_one + [0.0] * (count - choose_one))

    def minimise(
        self, objective: np.ndarray, budgets: Mapping[str, float], time_limit_s: float
    ) -> tuple[np.ndarray, float] | None:
        """(choices, proven gap), or None if the budgets cannot be kept."""
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import coo_array

        matrix = coo_array((self.signs, (self.rows, self.columns)), shape=(self.count, self.size)).tocsr()
        constraints = [LinearConstraint(matrix, self.right, self.right)]
        for metric, budget in budgets.items():
            scale = max(abs(budget), 1e-300)  # HiGHS works in absolute tolerances: seconds and joules are tiny
            room = (budget - self.table.constant[metric]) / scale
            constraints.append(LinearConstraint(self.costs[metric][None] / scale, -np.inf, room))
        integral = np.zeros(self.size)
        integral[: self.binaries] = 1
        scale = float(np.abs(objective).max()) or 1.0
        answer = milp(
            objective / scale,
            integrality=integral,
            bounds=Bounds(0, 1),
            constraints=constraints,
            # presolve gains nothing here, and that of HiGHS in SciPy 1.17 cuts the optimum off some tables (tests)
            options={"time_limit": time_limit_s, "mip_rel_gap": 1e-6, "presolve": False},
        )
        if answer.status == 1 and answer.x is None:
            raise PlanError(
                f"the solver found nothing within {time_limit_s:g} s; raise the time limit or offer fewer options"
            )
        if answer.x is None:
            return None
        y = answer.x[: self.binaries]
        choices = np.array([int(np.argmax(y[a:b])) for a, b in zip(self.first[:-1], self.first[1:], strict=True)])
        return choices, float(answer.mip_gap or 0.0)
