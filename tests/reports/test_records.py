"""Records: JSON round trips, refusal of what is wrong, and the front's maths."""

import copy
import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.codec import Record
from reports.records import BudgetRecord, FrontPoint, FrontRecord, PlanMask, ReportRecord
from tests.reports.builders import before, front, plan, report, roofline, staircase
from workloads.errors import ConfigError

RECORDS: dict[str, Record] = {
    "front": front(),
    "staircase": staircase(),
    "roofline": roofline(),
    "plan": plan(),
    "report": report(),
    "one simulation": ReportRecord("net", before()),
}


@pytest.mark.parametrize("name", RECORDS)
def test_json_round_trip(name: str) -> None:
    record = RECORDS[name]
    text = json.dumps(record.to_dict(), allow_nan=False)
    assert type(record).from_dict(json.loads(text)) == record


def test_formats_are_all_different() -> None:
    assert len({type(record).FORMAT for record in RECORDS.values()}) == len(RECORDS) - 1  # two are reports


def test_numpy_numbers_become_plain_ones() -> None:
    record = dataclasses.replace(staircase(), latency_s=tuple(np.float64(x) for x in (1, 2, 3, 4)))
    assert json.loads(json.dumps(record.to_dict()))["latency_s"] == [1.0, 2.0, 3.0, 4.0]


def changed(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(report().to_dict()), **changes}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "not a codesign.report of version 1"),
        (changed(format="codesign.front"), "not a codesign.report of version 1"),
        (changed(version=2), "not a codesign.report of version 1"),
        (changed(colour="red"), "codesign.report: unknown field 'colour'; allowed: title"),
        ({"format": "codesign.report", "version": 1, "title": "x"}, "codesign.report: field 'before' is missing"),
        (changed(title=3), "codesign.report.title: 3, must be text"),
        (changed(seed="seven"), "codesign.report.seed: 'seven', must be an integer"),
        (changed(seed=True), "codesign.report.seed: True, must be an integer"),
        (changed(notes="one"), "codesign.report.notes: 'one', must be a list"),
        (changed(parameters=[1]), r"codesign.report.parameters: \[1\], must be a list of 2"),
        (changed(phase_seconds=[]), r"codesign.report.phase_seconds: \[\], must be an object"),
        (changed(phase_seconds={"fit": "long"}), "codesign.report.phase_seconds.fit: 'long', must be a number"),
        (changed(front={"metric": "latency"}), "codesign.report.front: field 'budgets' is missing"),
        (changed(plan=3), "codesign.report.plan: 3, must be an object"),
        (changed(before={}), "codesign.report.before: not a simulation result of version 3"),
        (changed(before=3), "codesign.report.before: 3, must be an object"),
        (
            changed(before={"format": "codesign.simulation", "version": 3}),
            r"codesign.report.before: not a simulation result \(",
        ),
    ],
)
def test_wrong_data_is_one_line_that_names_the_field(data: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        ReportRecord.from_dict(data)
    assert "\n" not in str(caught.value)


def test_a_number_that_is_not_finite_is_refused_where_it_stands() -> None:
    points = (FrontPoint(float("nan"), 1.0, 1.0, 1.0),)
    record = report(front=FrontRecord("latency", {}, points))
    with pytest.raises(ConfigError, match=r"front.points\[0\].predicted_loss is nan, must be finite"):
        record.to_dict()


# ---- front ----------------------------------------------------------------------------------------------------------


def test_front_by_hand() -> None:
    assert front().frontier == (3, 1, 0)
    assert [point.kind for point in front().points] == ["dense", "chosen", "infeasible", "feasible"]
    assert [front().cost(point) for point in front().points] == [450e-6, 400e-6, 420e-6, 300e-6]
    by_size = dataclasses.replace(front(), metric="size")
    assert by_size.cost(front().points[0]) is None
    assert by_size.frontier == ()


grid = st.tuples(st.integers(0, 5), st.integers(0, 5))


@given(st.lists(grid, min_size=1, max_size=30))
def test_no_point_beats_the_frontier_and_every_other_one_is_beaten(places: list[tuple[int, int]]) -> None:
    points = tuple(FrontPoint(float(loss), float(cost), 1.0, 1.0) for cost, loss in places)
    found = FrontRecord("latency", {}, points).frontier

    def is_beaten(i: int) -> bool:
        cost, loss = places[i]
        return any((c, x) != (cost, loss) and c <= cost and x <= loss for c, x in places)

    assert not any(is_beaten(i) for i in found)
    assert {places[i] for i in found} == {places[i] for i in range(len(places)) if not is_beaten(i)}
    assert len({places[i] for i in found}) == len(found)  # of equal points one
    assert [places[i][0] for i in found] == sorted(places[i][0] for i in found)


def test_thinning_keeps_what_matters_and_says_how_many_there_were() -> None:
    rng = np.random.default_rng(0)
    cloud = tuple(FrontPoint(float(loss), float(cost), 1.0, 1.0) for cost, loss in rng.random((5000, 2)))
    special = tuple(dataclasses.replace(point, predicted_loss=9.0) for point in front().points[:2])
    whole = FrontRecord("latency", {}, cloud[:3000] + special + cloud[3000:])
    thin = whole.thinned(200)
    assert len(thin.points) <= 200
    assert thin.evaluated == len(whole.points)
    assert all(point in thin.points for point in special)
    assert [thin.points[i] for i in thin.frontier] == [whole.points[i] for i in whole.frontier]
    assert whole.thinned(200) == thin
    assert front().thinned() == front()


# ---- the small ones -------------------------------------------------------------------------------------------------


def test_a_budget_is_met_up_to_rounding() -> None:
    assert BudgetRecord("x", "latency", 1.0, 1.0).met
    assert BudgetRecord("x", "latency", 1.0, 1.0 + 1e-12).met
    assert not BudgetRecord("x", "latency", 1.0, 1.001).met


def test_plan_totals() -> None:
    assert plan().kept_channels == (21, 24)
    assert plan().kept_weights == (40, 90)
    assert PlanMask("b", "weight", 0, 0).density == 1.0


def test_staircases_that_decide_over_most_come_first_and_six_at_most() -> None:
    record = report(staircases=tuple(staircase(f"g{i}", span=i) for i in range(9)))
    assert [found.group for found in record.most_important_staircases] == ["g8", "g7", "g6", "g5", "g4", "g3"]
    assert staircase().latency_at(3) == pytest.approx(410e-6)
    assert staircase().latency_at(9) is None


def test_roof_bends_at_the_ridge() -> None:
    found = roofline()
    assert found.ridge == 10.0
    assert found.roof(5.0) == 5e6
    assert found.roof(20.0) == found.roof(10.0) == 1e7


def test_notes_are_said_once() -> None:
    noted = dataclasses.replace(before(), notes=("converted",))
    record = report(before=noted, after=noted, notes=("own", "converted"))
    assert record.all_notes == ("own", "converted")
