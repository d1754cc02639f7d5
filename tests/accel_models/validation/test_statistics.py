"""Intervals and rank correlations: worked by hand, and the share of new values that they hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from accel_models.validation import LEVEL, Interval
from accel_models.validation.statistics import absolute_interval, log_errors, rank_correlation, ratio_interval

STUDENT = {1: 3.0777, 2: 1.8856, 3: 1.6377}  # quantile 0.9, from a table
errors_of = st.lists(st.floats(-1, 1), min_size=2, max_size=12).map(np.array)


def half(interval: Interval | None) -> float:
    assert interval is not None
    assert interval.low * interval.high == pytest.approx(1, abs=1e-3)  # four digits are kept
    return float(np.log(interval.high))


def test_one_row_has_no_interval() -> None:
    assert absolute_interval(np.array([0.3]), ["a"]) is None


def test_networks_count_and_not_their_rows() -> None:
    few = absolute_interval(np.array([0.1, -0.2, 0.3]), ["a", "b", "c"])
    assert half(few) == pytest.approx(STUDENT[3] * np.sqrt((0.01 + 0.04 + 0.09) / 3), abs=1e-3)
    many = absolute_interval(np.array([0.1] * 9 + [-0.2, 0.3]), ["a"] * 9 + ["b", "c"])
    assert many == few
    assert few is not None
    assert few.basis == "3 networks"


def test_rows_of_one_network_say_nothing_of_the_next_one() -> None:
    assert absolute_interval(np.array([0.1, -0.1, 0.1, 0.2, 0.1]), ["a"] * 5) is None


def test_in_a_ratio_of_one_network_each_row_stands_for_itself() -> None:
    found = ratio_interval(np.array([0.1, -0.1]), ["x", "y"], ["t1", "t4"], ["a", "a"])
    assert half(found) == pytest.approx(np.sqrt(2) * STUDENT[2] * 0.1, abs=1e-3)
    assert found is not None
    assert found.basis == "two errors of 2 rows of one network"
    assert ratio_interval(np.array([0.1]), ["x"], ["t"], ["a"]) is None


def test_what_two_variants_share_cancels_in_their_ratio() -> None:
    errors = np.array([0.50, 0.52, 0.50, 0.30, 0.32, 0.30])
    sets = ["a"] * 3 + ["b"] * 3
    absolute = absolute_interval(errors, sets)
    assert absolute is not None
    found = ratio_interval(errors, sets, ["all"] * 6, sets)
    assert found is not None
    spread = 2 * 2 * 3 * (0.02**2 / 3 - (0.02 / 3) ** 2) / 4  # twice the variance inside the sets, four differences
    assert half(found) == pytest.approx(1.5332 * np.sqrt(spread), abs=1e-3)
    assert half(found) < half(absolute) / 10
    assert found.basis == "6 variants of 2 networks or layers"


def test_with_few_variants_all_rows_of_the_circumstances_are_compared() -> None:
    errors = np.array([0.1, 0.12, 0.2, 0.22, 0.15])
    errors += 5  # what all share widens the absolute interval only
    found = ratio_interval(errors, ["a", "a", "b", "c", "d"], ["t1"] * 5, ["a", "a", "b", "c", "d"])
    assert found is not None
    assert found.basis == "5 rows of the same circumstances"
    assert half(found) == pytest.approx(1.5332 * np.sqrt(2) * np.std(errors, ddof=1), abs=1e-3)


def test_a_ratio_is_never_less_certain_than_two_independent_errors() -> None:
    errors = np.array([0.1, -0.1])
    absolute = absolute_interval(errors, ["a", "b"])
    found = ratio_interval(errors, ["a", "b"], ["t", "t"], ["a", "b"])
    assert found is not None
    assert half(found) == pytest.approx(np.sqrt(2) * half(absolute), abs=1e-3)
    assert found.basis == "two errors of 2 networks"
    assert half(ratio_interval(errors, ["a", "b"], ["t1", "t4"], ["a", "b"])) == pytest.approx(half(found))


@given(errors_of)
def test_a_model_without_error_has_no_interval_and_a_worse_one_a_wider(errors: np.ndarray) -> None:
    networks = range(len(errors))
    assert half(absolute_interval(0 * errors, networks)) == 0
    assert half(absolute_interval(2 * errors, networks)) >= half(absolute_interval(errors, networks))


@pytest.mark.parametrize("networks", [2, 4, 10])
@pytest.mark.parametrize("bias", [0.0, 0.3])
def test_it_holds_as_many_new_values_as_it_says(networks: int, bias: float) -> None:
    """Errors of networks around a bias, rows around their network's: a new network lies inside at least as often."""
    rng = np.random.default_rng(networks)
    inside = []
    for _ in range(1500):
        own = rng.normal(bias, 0.1, networks + 1)
        rows = np.repeat(np.arange(networks), 3)
        errors = own[rows] + rng.normal(0, 0.03, len(rows))
        new = own[-1] + rng.normal(0, 0.03)
        inside.append(abs(new) <= half(absolute_interval(errors, rows.tolist())))
    assert np.mean(inside) > LEVEL - 0.03
    if bias == 0:
        assert np.mean(inside) < LEVEL + 0.05


def test_a_new_ratio_lies_inside_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(1500):
        rows = np.repeat(np.arange(3), 3)
        errors = rng.normal(0, 0.3, 3)[rows] + rng.normal(0, 0.05, len(rows))
        new = rng.normal(0, 0.05) - rng.normal(0, 0.05)
        inside.append(abs(new) <= half(ratio_interval(errors, rows.tolist(), ["all"] * 9, rows.tolist())))
    assert LEVEL - 0.03 < np.mean(inside) < LEVEL + 0.05


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=20))
def test_rank_correlation_is_spearmans(pairs: list[tuple[int, int]]) -> None:
    predicted, published = (np.array(side, float) for side in zip(*pairs, strict=True))
    found = rank_correlation(predicted, published, ["cycles"] * len(pairs))
    if np.ptp(predicted) == 0 or np.ptp(published) == 0:
        assert found is None
    else:
        assert found == pytest.approx(spearmanr(predicted, published).statistic, abs=1e-4)


def test_ranks_are_taken_within_one_metric() -> None:
    """Cycles are larger than seconds: ranks over both would agree whatever was predicted."""
    predicted = np.array([3.0, 2.0, 1.0, 300.0, 200.0, 100.0])
    published = np.array([1.0, 2.0, 3.0, 100.0, 200.0, 300.0])
    assert rank_correlation(predicted, published, ["latency"] * 3 + ["cycles"] * 3) == -1.0
    assert rank_correlation(predicted[:2], published[:2], ["latency"] * 2) is None


def test_a_prediction_of_nothing_is_a_large_error_and_not_infinite() -> None:
    assert log_errors(np.array([0.0]), np.array([5.0]))[0] == pytest.approx(np.log(1e-6))
