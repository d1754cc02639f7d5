"""The expected maximum of binomial counts: coins by hand, laws, and the vectorised form against the exact sum."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from workloads.order_statistics import (
    expected_maximum_binomial,
    expected_maximum_binomial_exact,
    expected_maximum_of_groups,
)


def exact_of_groups(trials: list[int], p: float, units: list[int]) -> float:
    x = np.arange(max(trials))
    logs = sum(u * binom.logcdf(x, t, p) for t, u in zip(trials, units, strict=True))
    return float(np.sum(-np.expm1(logs)))


@pytest.mark.parametrize(
    ("trials", "p", "units", "expected"),
    [
        (1, 0.5, 1, 0.5),
        (1, 0.5, 2, 0.75),  # no heads in one case of four
        (1, 0.9, 3, 0.999),
        (2, 0.5, 2, 22 / 16),  # P(max = 0, 1, 2) = 1/16, 8/16, 7/16
        (7, 0.0, 5, 0.0),
        (7, 1.0, 5, 7.0),
        (0, 0.3, 5, 0.0),
        (10, 0.3, 1, 3.0),
    ],
)
def test_worked_by_hand(trials: int, p: float, units: int, expected: float) -> None:
    assert expected_maximum_binomial(trials, p, units).item() == pytest.approx(expected, abs=1e-8)
    assert expected_maximum_binomial_exact(trials, p, units) == pytest.approx(expected, abs=1e-12)


def test_unequal_units_by_hand() -> None:
    # One unit of two coins, one of one: P(max = 0) = 1/8, P(max = 2) = 1/4, so 5/8 + 2/4 = 9/8.
    assert expected_maximum_of_groups([2, 1], 0.5, [1, 1]).item() == pytest.approx(1.125, abs=1e-8)
    assert expected_maximum_of_groups([1, 2], 0.5, [1, 1]).item() == pytest.approx(1.125, abs=1e-8)
    # With p = 3/4 the dropped weights are counted: P(0) = 1/64, P(2) = 9/16, P(1) = 27/64.
    assert expected_maximum_of_groups([2, 1], 0.75, [1, 1]).item() == pytest.approx(99 / 64, abs=1e-8)


PROBABILITY = st.one_of(
    st.floats(0.0, 1.0), st.floats(-4, 0).map(lambda x: 10.0**x), st.floats(-4, 0).map(lambda x: 1 - 10.0**x)
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(1, 20_000), PROBABILITY, st.integers(1, 5_000))
def test_close_to_the_exact_sum(trials: int, p: float, units: int) -> None:
    found = expected_maximum_binomial(trials, p, units).item()
    assert found == pytest.approx(expected_maximum_binomial_exact(trials, p, units), rel=2e-3, abs=1e-7)
    assert trials * p - 1e-9 <= found <= trials


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(1, 3_000), st.integers(0, 300)), min_size=1, max_size=4), PROBABILITY)
def test_groups_close_to_the_exact_sum_in_any_order(groups: list[tuple[int, int]], p: float) -> None:
    trials, units = (list(part) for part in zip(*groups, strict=True))
    units[0] = max(units[0], 1)
    exact = exact_of_groups([t if u else 0 for t, u in zip(trials, units, strict=True)], p, units)
    assert expected_maximum_of_groups(trials, p, units).item() == pytest.approx(exact, rel=5e-3, abs=1e-7)
    assert expected_maximum_of_groups(trials[::-1], p, units[::-1]).item() == pytest.approx(exact, rel=5e-3, abs=1e-7)


def test_lattice_correction() -> None:
    """Just above the variance where the sum gives way to the normal form, its error is largest: still below 0.1 %."""
    for units in (2, 8, 64, 512):
        trials = int((4.1 + np.log(units)) * 4)
        exact = expected_maximum_binomial_exact(trials, 0.5, units)
        assert expected_maximum_binomial(trials, 0.5, units).item() == pytest.approx(exact, rel=1e-3)


def test_rows_do_not_influence_each_other() -> None:
    rng = np.random.default_rng(0)
    trials, p, units = rng.integers(0, 5_000, 9_000), rng.random(9_000), rng.integers(1, 500, 9_000)
    together = expected_maximum_binomial(trials, p, units)
    for i in (0, 1, 17, 4_095, 4_096, 8_999):
        alone = expected_maximum_binomial(trials[i], p[i], units[i]).item()
        assert together[i] == pytest.approx(alone, rel=1e-8)


def test_more_units_or_density_never_lower_the_maximum() -> None:
    units = np.unique(np.geomspace(1, 1e6, 300).astype(int))
    for trials, p in ((9, 0.3), (64, 0.1), (576, 0.5), (4608, 0.02), (10_000, 0.9)):
        found = expected_maximum_binomial(trials, p, units)
        assert (np.diff(found) > -2e-3 * found[:-1]).all()  # the two methods meet within 0.2 %
        assert found[-1] > found[0]
    densities = np.linspace(0, 1, 401)
    assert (np.diff(expected_maximum_binomial(576, densities, 64)) > 0).all()


def test_shapes_broadcast() -> None:
    assert expected_maximum_binomial(np.ones((3, 1)), 0.5, np.ones(4)).shape == (3, 4)
    assert expected_maximum_of_groups(np.ones((3, 2)), np.full(3, 0.5), 1).shape == (3,)
    assert expected_maximum_binomial(np.ones(0), 0.5, 2).shape == (0,)


@pytest.mark.parametrize(
    ("trials", "p", "units", "message"),
    [
        (-1, 0.5, 2, "trials"),
        (1, 1.5, 2, "p:"),
        (1, float("nan"), 2, "p:"),
        (1, 0.5, 0, "units"),
        (1, 0.5, -2, "units"),
    ],
)
def test_values_outside_their_range(trials: int, p: float, units: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expected_maximum_binomial(trials, p, units)
