"""The exact solver against brute force, the search against the solver, budgets as text."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from codesign.budgets import parse_budgets
from codesign.search import pareto, search
from codesign.solve import Factor, PriceTable, solve
from workloads.errors import ConfigError, PlanError


def chain(variables: int, seed: int) -> PriceTable:
    """A table like a chain of layers: each layer's latency depends on its own and its producer's count."""
    rng = np.random.default_rng(seed)
    options = tuple(int(n) for n in rng.integers(2, 5, variables))
    loss = tuple(np.concatenate([[0.0], np.sort(rng.random(n - 1))]) for n in options)
    factors = []
    for v in range(variables):
        touching = (v,) if v == 0 else (v - 1, v)
        shape = tuple(options[i] for i in touching)
        falling = [np.linspace(1.0, 0.3, n) for n in shape]
        work = falling[0] if len(shape) == 1 else np.multiply.outer(*falling)
        factors.append(Factor(touching, {"latency": rng.random() * work, "macs": work}))
    return PriceTable(
        tuple(f"v{i}" for i in range(variables)), options, loss, {"latency": 0.1, "macs": 0.0}, tuple(factors)
    )


def dense_cost(table: PriceTable, metric: str) -> float:
    return float(table.cost(np.zeros((1, len(table.names)), int))[metric][0])


def brute_force(table: PriceTable, budgets: Mapping[str, float]) -> list[int] | None:
    """The best choice by trying everything; None where nothing keeps the budgets."""
    grid = np.indices(table.options).reshape(len(table.options), -1).T
    cost = table.cost(grid)
    keeps = np.all([cost[metric] <= budget for metric, budget in budgets.items()], axis=0)
    loss = np.where(keeps, table.expected_loss(grid), np.inf)
    return None if not np.any(keeps) else [int(i) for i in grid[int(np.argmin(loss))]]


def test_worked_by_hand() -> None:
    # two variables: pruning a saves 6 at loss 1, pruning b saves 4 at loss 0.5; the budget 7 needs at least 3 saved
    table = PriceTable(
        ("a", "b"),
        (2, 2),
        (np.array([0.0, 1.0]), np.array([0.0, 0.5])),
        {"latency": 0.0},
        (Factor((0,), {"latency": np.array([6.0, 0.0])}), Factor((1,), {"latency": np.array([4.0, 0.0])})),
    )
    found = solve(table, {"latency": 7.0})
    assert (found.choices, found.loss, found.cost, found.gap) == ((0, 1), 0.5, {"latency": 6.0}, 0.0)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
def test_equals_brute_force_under_two_budgets(seed: int, share: float) -> None:
    table = chain(5, seed)
    budgets = {"latency": share * dense_cost(table, "latency"), "macs": 0.8 * dense_cost(table, "macs")}
    best = brute_force(table, budgets)
    if best is None:
        with pytest.raises(PlanError):
            solve(table, budgets)
        return
    found = solve(table, budgets)
    assert found.loss == pytest.approx(float(table.expected_loss(np.array([best]))[0]))
    assert all(found.cost[name] <= budget * (1 + 1e-9) for name, budget in budgets.items())


def test_factors_of_three_variables_equal_brute_force() -> None:
    """Table 41 is one on which HiGHS's presolve loses the optimum and still proves a gap of 0."""
    rng = np.random.default_rng(0)
    for _ in range(42):
        options = tuple(int(n) for n in rng.integers(2, 5, 5))
        factors = []
        for _ in range(6):
            touching = tuple(sorted(rng.choice(5, rng.integers(1, 4), replace=False).tolist()))
            shape = [options[v] for v in touching]
            factors.append(Factor(touching, {"latency": rng.random(shape) * 1e-3, "energy": rng.random(shape) * 1e-6}))
        loss = tuple(np.sort(rng.random(n)) for n in options)
        table = PriceTable(tuple("abcde"), options, loss, {"latency": 1e-4, "energy": 0.0}, tuple(factors))
        costs = table.cost(np.indices(options).reshape(5, -1).T)
        share = rng.uniform(0.02, 0.6)
        budgets = {
            "latency": 1.0005 * np.quantile(costs["latency"], share),
            "energy": np.quantile(costs["energy"], 0.5),
        }
        best = brute_force(table, budgets)
        if best is not None:
            wanted = float(table.expected_loss(np.array([best]))[0])
            assert solve(table, budgets).loss == pytest.approx(wanted, rel=1e-5)


def test_tiny_units_do_not_confuse_the_solver() -> None:
    table = chain(5, 1)
    tiny = PriceTable(
        table.names,
        table.options,
        table.loss,
        {name: value * 1e-9 for name, value in table.constant.items()},
        tuple(Factor(f.variables, {n: v * 1e-9 for n, v in f.values.items()}) for f in table.factors),
    )
    budget = 0.7 * dense_cost(table, "latency")
    assert solve(tiny, {"latency": budget * 1e-9}).choices == solve(table, {"latency": budget}).choices


def test_impossible_budget_says_what_can_be_reached() -> None:
    table = chain(4, 0)
    with pytest.raises(PlanError, match=r"latency can reach [\d.]+ ms at the least, the budget is 1.000 ms"):
        solve(table, {"latency": 0.001})


def test_unknown_metric() -> None:
    with pytest.raises(PlanError, match="'watts', which is not priced; allowed: latency, macs"):
        solve(chain(3, 0), {"watts": 1.0})


def test_search_finds_the_exact_optimum_and_no_better() -> None:
    table = chain(8, 3)
    budgets = {"latency": 0.6 * dense_cost(table, "latency")}
    front = search(table, budgets, generations=20)
    assert front.loss[front.feasible].min() == pytest.approx(front.exact.loss)
    assert len({tuple(choice) for choice in front.choices.tolist()}) == len(front.choices)
    costs = table.cost(front.choices)["latency"]
    for i in np.flatnonzero(front.optimal):
        assert not ((front.loss <= front.loss[i]) & (costs < costs[i])).any()


def test_same_seed_same_front() -> None:
    table = chain(6, 4)
    budgets = {"latency": 0.7 * dense_cost(table, "latency")}
    first, second = (search(table, budgets, generations=5, seed=7) for _ in range(2))
    np.testing.assert_array_equal(first.choices, second.choices)


def test_nothing_to_choose_is_an_error() -> None:
    with pytest.raises(PlanError, match="nothing can be chosen"):
        search(PriceTable((), (), (), {"latency": 1.0}, ()), {"latency": 0.5})


def test_pareto_of_ties() -> None:
    assert pareto(np.array([1.0, 1.0]), np.array([1.0, 1.0])).tolist() == [True, False]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speed=0.5x", "metric 'speed' is unknown; allowed: latency, energy, macs, size"),
        ("latency", "'' is not a number with a unit"),
        ("latency=fast", "'fast' is not a number with a unit"),
        ("latency=0x", "must be greater than 0"),
        ("latency=-1ms", "'-1ms' is not a number"),
        ("energy=3kg", "unit 'kg' is unknown; allowed: x, J, mJ, uJ"),
    ],
)
def test_bad_budgets(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match="budget") as caught:
        parse_budgets([text], {"latency": 1.0, "energy": 1.0, "macs": 1.0, "size": 1.0})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
