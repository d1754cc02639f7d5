"""The record and the figure of published against predicted numbers."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel_models.validation.errors import assess
from reports.validation import ValidationRecord, ticks, validation_figure, validation_record, write_figures
from tests.accel_models.validation.builders import BYTES, line, machine


@pytest.fixture
def record(tmp_path: Path) -> ValidationRecord:
    """72 cycles at 500 MHz in three units, an energy, bytes, and a row used for calibration."""
    lines = [
        line("cycles", value=144),
        line("time", metric="latency", unit="us", value=0.288),
        line("rate", metric="throughput", unit="1/s", value=500e6 / 144),
        line("slow clock", value=144, overrides="clock_hz=250e6"),
        line("joules", metric="energy", unit="uJ", value=0.1, kind="vendor_estimate", calibrated="yes"),
        line("bytes", metric="traffic:dram", unit="B", value=BYTES),
    ]
    return validation_record([assess(machine(tmp_path, lines))])


def test_times_are_in_seconds_whatever_was_published(record: ValidationRecord) -> None:
    times = {point.id: (point.published, point.predicted) for point in record.points if point.panel == "time"}
    for name in ("cycles", "time", "rate"):
        assert times[name] == pytest.approx((288e-9, 144e-9)), name
    assert times["slow clock"] == pytest.approx((576e-9, 288e-9))  # 72 cycles of twice the time
    assert record.panels == ("time", "energy", "traffic")
    errors = {point.id: point.error for point in record.points}
    assert errors["rate"] == pytest.approx(1.0)  # of the throughput, as in the tables
    assert errors["cycles"] == pytest.approx(-0.5)
    assert errors["bytes"] == 0
    assert {point.id for point in record.points if point.fitted} == {"joules"}


def test_the_record_survives_json(record: ValidationRecord) -> None:
    assert ValidationRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record


def test_a_panel_shows_every_point_between_the_same_limits_on_both_axes(record: ValidationRecord) -> None:
    figure = validation_figure(record, "note")
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in shown] == list(record.panels)
    for axes in shown:
        assert axes.get_xlim() == axes.get_ylim()
        assert axes.get_xscale() == axes.get_yscale() == "log"
        points = [point for point in record.points if point.panel == axes.get_title(loc="left")]
        low, high = axes.get_xlim()
        assert all(low < value < high for point in points for value in (point.published, point.predicted))
        labels = [label.get_text() for label in axes.get_xticklabels()]
        assert not any("$" in label for label in labels)  # no markup of matplotlib's own
        assert all(re.fullmatch(r"[\d.]+ [mµn]?[sJ]|[\d.]+ k?B", label) for label in labels)
        assert "(" not in axes.get_title(loc="left")  # a unit there would contradict the labels


@pytest.mark.parametrize(
    ("low", "high", "most", "found"),
    [
        (0.09, 20, 6, [0.1, 0.3, 1, 3, 10]),
        (0.09, 20, 3, [0.1, 1, 10]),
        (0.17, 0.45, 3, [0.2, 0.3]),  # within one decade
        (1e-9, 1e3, 3, [1e-9, 1e-4, 10]),
    ],
)
def test_a_logarithmic_axis_has_few_round_ticks(low: float, high: float, most: int, found: list[float]) -> None:
    assert ticks(low, high, most) == pytest.approx(found)


@given(st.floats(-12, 12), st.floats(math.log10(1.6**2), 12), st.integers(3, 6))
def test_a_logarithmic_axis_has_two_ticks_at_least(start: float, decades: float, most: int) -> None:
    assert 2 <= len(ticks(10**start, 10 ** (start + decades), most)) <= most


def test_the_worst_row_of_the_table_is_ringed(tmp_path: Path) -> None:
    """Twice the throughput is +100 % there, twice the speed of another row -50 %."""
    lines = [line("time", value=160), line("rate", metric="throughput", unit="1/s", value=500e6 / 150)]
    found = assess(machine(tmp_path, lines))
    assert found.bars is not None
    figure = validation_figure(validation_record([found]), "")
    (text,) = [note.get_text() for axes in figure.axes for note in axes.texts]
    assert found.bars.bars[0].worst_row == "rate"
    assert text == "worst, ringed: +108.3% (rate)\nrate"


def test_shares_are_linear_and_may_be_zero() -> None:
    record = validation_record([assess("tpu_v1")])
    (axes,) = [axes for axes in validation_figure(record, "").axes if axes.get_visible()]
    assert axes.get_xscale() == "linear"
    assert axes.get_xlim()[0] == 0
    assert all(math.isfinite(point.error) for point in record.points)


def test_figures_are_written_for_each_target_and_for_all(tmp_path: Path) -> None:
    names = [machine(tmp_path, [line(value=80)], name=name) for name in ("one", "two", "none")]
    (tmp_path / "none.csv").unlink()
    found = [assess(name) for name in names]
    written = write_figures(tmp_path / "plots", found)
    assert [path.name for path in written] == ["one.png", "one.svg", "two.png", "two.svg", "all.png", "all.svg"]
    assert written[0].read_bytes().startswith(b"\x89PNG")
    assert b"worst, ringed: -10.0%" in written[1].read_bytes()
    again = write_figures(tmp_path / "again", found)
    assert [path.read_bytes() for path in written] == [path.read_bytes() for path in again]
