"""Schedules, worked by hand."""

import math

import pytest

from pruning.schedule import CosineSchedule, CubicSchedule
from workloads.errors import PlanError


def test_cubic_by_hand():
    schedule = CubicSchedule(final=0.8, begin=10, end=14)
    # 0.8 (1 - (3/4)^3) = 0.8 * 37/64, 0.8 (1 - 1/8), 0.8 (1 - 1/64)
    wanted = {0: 0.0, 10: 0.0, 11: 0.8 * 37 / 64, 12: 0.7, 13: 0.7875, 14: 0.8, 99: 0.8}
    assert {step: schedule.sparsity(step) for step in wanted} == pytest.approx(wanted, abs=1e-12)


def test_cubic_starts_where_it_is_told():
    schedule = CubicSchedule(final=0.9, begin=0, end=10, initial=0.5)
    assert schedule.sparsity(0) == pytest.approx(0.5)
    assert schedule.sparsity(5) == pytest.approx(0.9 - 0.4 / 8)


def test_updates_come_every_few_steps_and_at_the_end():
    schedule = CubicSchedule(final=0.5, begin=3, end=12, frequency=4)
    assert [step for step in range(20) if schedule.is_update(step)] == [3, 7, 11, 12]


def test_sparsity_never_falls():
    schedule = CubicSchedule(final=0.7, begin=5, end=50, initial=0.1)
    values = [schedule.sparsity(step) for step in range(60)]
    assert values == sorted(values)


@pytest.mark.parametrize(
    "fields",
    [
        {"final": 1.0, "begin": 0, "end": 1},
        {"final": 0.0, "begin": 0, "end": 1},
        {"final": 0.3, "begin": 0, "end": 1, "initial": 0.5},
        {"final": 0.3, "begin": 5, "end": 5},
        {"final": 0.3, "begin": -1, "end": 5},
        {"final": 0.3, "begin": 0, "end": 5, "frequency": 0},
    ],
)
def test_impossible_schedules(fields):
    with pytest.raises(PlanError, match="needs"):
        CubicSchedule(**fields)


def test_cosine_by_hand():
    schedule = CosineSchedule(peak=0.2, steps=10, warmup=2)
    assert [schedule.rate(0), schedule.rate(1), schedule.rate(2)] == pytest.approx([0.2 / 3, 0.4 / 3, 0.2])
    assert schedule.rate(6) == pytest.approx(0.1)
    assert schedule.rate(9) == pytest.approx(0.1 * (1 + math.cos(math.pi * 7 / 8)))
    assert schedule.rate(9) > 0
