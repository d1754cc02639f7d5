"""Fits and fits with a network left out, on machines whose bandwidth decides everything."""

from __future__ import annotations

from pathlib import Path

import pytest

from accel_models import target
from accel_models.validation.calibrate import Calibration
from accel_models.validation.errors import assess
from accel_models.validation.pricer import number_at, with_numbers
from tests.accel_models.validation.builders import BYTES, fitted, line, machine
from workloads.errors import ConfigError

PATH = "memories.0.bandwidth_bytes_per_cycle"
OTHER = "layer:conv@int8 c=16 k=16 h=4"  # 256 + 256 + 256 + 64 bytes
OTHER_BYTES = 832.0


def rows(bandwidth: dict[str, float]) -> list[str]:
    """A row of each network, published by a machine of that bandwidth; networks a and b run other layers."""
    works = {"a": ("layer:conv@int8 c=8 k=16 h=4", BYTES), "b": (OTHER, OTHER_BYTES)}
    return [
        line(name, name, works[name][0], value=works[name][1] / rate, calibrated="yes")
        for name, rate in bandwidth.items()
    ]


def test_a_fit_finds_the_value_that_made_the_rows(tmp_path: Path) -> None:
    found = Calibration(machine(tmp_path, rows({"a": 5.0, "b": 5.0}), fitted(["a", "b"], 8))).refits()
    assert len(found) == 1
    (parameter,) = found[0].parameters
    assert (parameter.parameter, parameter.stored, parameter.bounds) == (PATH, 8, (1.0, 64.0))
    assert parameter.value == pytest.approx(5.0, rel=1e-4)
    assert found[0].stored_rms == pytest.approx(0.47, abs=0.001)  # ln(8 / 5)
    assert found[0].rms < 1e-4


def test_least_squares_of_logarithms_is_the_geometric_mean(tmp_path: Path) -> None:
    name = machine(tmp_path, rows({"a": 4.0, "b": 9.0}), fitted(["a", "b"], 8))
    assert Calibration(name).values()[PATH] == pytest.approx(6.0, rel=1e-3)


def test_what_was_fitted_stays(tmp_path: Path) -> None:
    name = machine(tmp_path, rows({"a": 4.0, "b": 9.0}), fitted(["a", "b"], 6.0))
    assert Calibration(name).values()[PATH] == 6.0


def test_bounds_hold(tmp_path: Path) -> None:
    name = machine(tmp_path, rows({"a": 2.0, "b": 2.0}), fitted(["a", "b"], 8, (4.0, 16.0)))
    assert Calibration(name).values()[PATH] == pytest.approx(4.0, abs=0.1)


def test_a_network_left_out_is_predicted_by_the_others(tmp_path: Path) -> None:
    name = machine(tmp_path, rows({"a": 4.0, "b": 9.0}), fitted(["a", "b"], 6.0))
    found = assess(name)
    assert [item.predicted for item in found.comparisons] == pytest.approx([BYTES / 6, OTHER_BYTES / 6])
    assert [item.predicted for item in found.left_out] == pytest.approx([BYTES / 9, OTHER_BYTES / 4], rel=1e-3)
    assert found.bars is not None
    (bar,) = found.bars.bars
    assert bar.calibrated == bar.rows == 2
    assert bar.fit_mean == bar.mean == pytest.approx((1 - 4 / 6 + 9 / 6 - 1) / 2, abs=1e-4)
    assert bar.left_out_mean == pytest.approx((1 - 4 / 9 + 9 / 4 - 1) / 2, abs=2e-3)
    assert "with each network left out of it" in str(bar)


def test_rows_of_one_network_are_left_out_one_by_one(tmp_path: Path) -> None:
    lines = [
        line("first", value=BYTES / 4, calibrated="yes"),
        line("second", value=BYTES / 9, calibrated="yes"),
        line("never fitted", value=BYTES / 5),
    ]
    found = assess(machine(tmp_path, lines, fitted(["first", "second"], 6.0)))
    assert [item.predicted for item in found.left_out] == pytest.approx([BYTES / 9, BYTES / 4, BYTES / 6], rel=1e-3)


def test_with_every_row_left_out_a_parameter_takes_the_middle_of_its_bounds(tmp_path: Path) -> None:
    name = machine(tmp_path, rows({"a": 4.0}), fitted(["a"], 4.0, (2.0, 16.0)))
    (item,) = assess(name).left_out
    assert item.predicted == pytest.approx(BYTES / 9)


def test_rows_that_nothing_was_fitted_to_are_predicted_as_stored(tmp_path: Path) -> None:
    name = machine(tmp_path, rows({"a": 4.0, "b": 9.0}), fitted(["a"], 4.0))
    found = assess(name)
    assert found.left_out[1].predicted == found.comparisons[1].predicted == pytest.approx(OTHER_BYTES / 4)
    assert found.refitted == frozenset("a")


def test_nothing_fitted_nothing_left_out(tmp_path: Path) -> None:
    found = assess(machine(tmp_path, rows({"a": 8.0, "b": 8.0})))
    assert found.bars is not None
    assert found.bars.bars[0].left_out_mean is None
    assert "left out" not in str(found.bars.bars[0])
    assert [x.predicted for x in found.left_out] == [x.predicted for x in found.comparisons]


def test_parameters_of_another_machine_move_by_the_same_factor(tmp_path: Path) -> None:
    """Twice the clock, so half the bytes a cycle: the same bytes a second are fitted."""
    first = machine(tmp_path, rows({"a": 4.0, "b": 9.0}), fitted(["a", "b"], 6.0), "first")
    shared = fitted([f"{first}/a", f"{first}/b"], 3.0)
    second = machine(tmp_path, [line("own", "b", OTHER, value=OTHER_BYTES / 3)], shared, "second")
    calibration = Calibration(second)
    assert calibration.values()[PATH] == 3.0
    assert calibration.values(without="a")[PATH] == pytest.approx(4.5, rel=1e-3)  # 9 / 6 of its own
    (item,) = assess(second).left_out
    assert item.predicted == pytest.approx(OTHER_BYTES / 2, rel=1e-3)  # 4 / 6 of its own: network b left out there too


def test_a_rows_override_wins_over_a_fitted_value(tmp_path: Path) -> None:
    lines = [*rows({"a": 4.0}), line("fast", "b", overrides=f"{PATH}=576", value=8, calibrated="yes")]
    name = machine(tmp_path, lines, fitted(["a", "fast"], 8))
    assert Calibration(name).values()[PATH] == pytest.approx(4.0, rel=1e-3)
    assert assess(name).comparisons[1].predicted == 8  # 8 cycles of multiplying, 1 of the port


def test_a_fitted_row_that_does_not_exist_is_named(tmp_path: Path) -> None:
    name = machine(tmp_path, rows({"a": 4.0}), fitted(["a", "gone"], 8))
    with pytest.raises(ConfigError, match="fitted: no published row has the id 'gone'"):
        assess(name)


def test_a_parameter_fitted_to_no_rows_is_named(tmp_path: Path) -> None:
    name = machine(tmp_path, rows({"a": 4.0}), fitted([], 8))
    with pytest.raises(
        ConfigError, match=r"mine.yaml: fitted: memories.0.bandwidth_bytes_per_cycle: rows: \[\], must name"
    ):
        assess(name)


def test_rows_are_found_beside_a_machine_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its name in a folder of CODESIGN_SPECS, whatever is wrong with the rows of the machines beside it."""
    machine(tmp_path, rows({"a": 4.0, "b": 9.0}), fitted(["a", "b"], 6.0))
    (tmp_path / "broken.yaml").write_text("base: ideal\nname: broken\n")
    (tmp_path / "broken.csv").write_text("no,columns\n")
    monkeypatch.setenv("CODESIGN_SPECS", str(tmp_path))
    assert [item.row.id for item in assess("mine").comparisons] == ["a", "b"]
    assert Calibration("mine").values()[PATH] == 6.0
    (tmp_path / "mine.yaml").write_text((tmp_path / "mine.yaml").read_text().replace("[a, b]", "[a, gone]"))
    with pytest.raises(ConfigError, match=r"no published row has the id 'gone', neither in .*mine.csv nor elsewhere"):
        assess("mine")


@pytest.mark.parametrize("bounds", [(9.0, 16.0), (8.0, 8.0)])
def test_a_stored_value_lies_in_its_bounds(tmp_path: Path, bounds: tuple[float, float]) -> None:
    name = machine(tmp_path, rows({"a": 4.0, "b": 4.0}), fitted(["a", "b"], 8.0, bounds))
    with pytest.raises(ConfigError, match="bandwidth_bytes_per_cycle is 8, must lie in"):
        assess(name)


def test_numbers_of_a_machine_in_memory() -> None:
    machine = target("ideal")
    changed = with_numbers(machine, {PATH: 4.0, "clock_hz": 1e9, "macs_per_cycle.8": 512.0})
    again = target("ideal", {PATH: 4.0, "clock_hz": 1e9, "macs_per_cycle.8": 512.0})
    assert changed.spec == again.spec.model_copy(update={"changed": ()})
    assert machine.spec == target("ideal").spec
    assert number_at(changed.spec, PATH) == 4.0
    for path, message in (("memories.3.size_bytes", "'3' is unknown"), ("title", "must be a number")):
        with pytest.raises(ConfigError, match=message):
            number_at(machine.spec, path)
