"""Errors of all targets: what is stored and what the docs show is what the rows give; intervals beside prices."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from accel_models import target, targets
from accel_models.quantities import TIME, digits, unit_of
from accel_models.result import describe_error, with_interval
from accel_models.testing import small_graph
from accel_models.validation import FOLDER, SPECS, ErrorBar, ErrorBars, Interval, error_bars
from accel_models.validation.compare import layer_graph
from accel_models.validation.errors import Assessment, assess, store
from accel_models.validation.tables import HEADS, MOST_ROWS, blocks, cells, markdown, rewrite_docs, to_dict
from tests.accel_models.validation.builders import BYTES, LAYER, line, machine
from workloads.errors import ConfigError

pytestmark = pytest.mark.xdist_group("errors")  # one process, which computes the errors of a target once
DOCS = Path(__file__).parents[3] / "docs"


@cache
def assessed(name: str) -> Assessment:
    return assess(name)


def same(found: Any, stored: Any) -> bool:
    """Equal, numbers within what another processor's rounding and a fit's last step may change."""
    if isinstance(found, dict):
        return found.keys() == stored.keys() and all(same(found[key], stored[key]) for key in found)
    if isinstance(found, list | tuple):
        return len(found) == len(stored) and all(map(same, found, stored))
    if isinstance(found, float) and isinstance(stored, float):
        return found == pytest.approx(stored, rel=0.01, abs=0.002)
    return bool(found == stored)


@pytest.mark.parametrize("name", targets())
def test_the_stored_errors_are_the_computed_ones(name: str) -> None:
    found, stored = assessed(name).bars, error_bars(name)
    assert (found is None) == (stored is None), "run `codesign validate --store`"
    if found and stored:
        assert same(found.to_dict(), stored.to_dict()), "run `codesign validate --store`"


@pytest.mark.parametrize("name", targets())
def test_rows_that_parameters_were_fitted_to_say_so(name: str) -> None:
    found = assessed(name)
    own = {item.row.id for item in found.comparisons}
    assert own & set(found.fitted_rows) <= set(found.calibrated_rows)


def test_errors_are_stored_for_known_targets_only() -> None:
    assert set(json.loads((FOLDER / "errors.json").read_text())) <= set(targets())


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.md")), ids=lambda path: path.stem)
def test_the_docs_show_the_computed_errors(path: Path) -> None:
    for name, block in blocks(path.read_text()).items():
        assert block == markdown(assessed(name)), f"{path}: {name}; run `codesign validate --docs docs`"


# ---- bars -----------------------------------------------------------------------------------------------------------


def bars_of(tmp_path: Path, lines: list[str]) -> tuple[ErrorBar, ...]:
    found = assess(machine(tmp_path, lines)).bars
    assert found is not None
    return found.bars


def test_classes_and_scopes_are_kept_apart(tmp_path: Path) -> None:
    """Worked: 72 cycles are predicted for the layer."""
    lines = [
        line("low", value=80, network="a"),
        line("high", value=60, network="b", kind="vendor_estimate", calibrated="yes"),
        line("joules", metric="energy", unit="J", value=1e-7),
        line("bytes", metric="traffic:dram", unit="B", value=BYTES),
        line("whole", workload="table:resnet8@int8", value=1e6),
    ]
    found = bars_of(tmp_path, lines)
    names = [(bar.metric, bar.scope, bar.rows) for bar in found]
    assert names == [("time", "network", 1), ("time", "layer", 2), ("energy", "layer", 1), ("traffic", "layer", 1)]
    time = found[1]
    assert time.mean == pytest.approx((0.1 + 0.2) / 2)
    assert time.median == pytest.approx(0.15)
    assert (time.worst, time.worst_row) == (pytest.approx(0.2), "high")
    assert (time.networks, time.kinds, time.calibrated) == (2, ("silicon", "vendor_estimate"), 1)
    assert time.fit_mean == pytest.approx(0.2)
    assert time.is_indicative
    assert (found[3].mean, found[3].absolute) == (0.0, None)
    assert ErrorBars.from_dict(json.loads(json.dumps(ErrorBars(found).to_dict()))) == ErrorBars(found)


def test_a_throughput_that_is_too_high_is_a_time_that_is_too_low(tmp_path: Path) -> None:
    """Both say that the machine is twice as fast as published: as errors of times they agree, and a ratio is exact."""
    lines = [line(f"t{i}", "ab"[i % 2], value=144) for i in range(5)]
    lines += [line(f"r{i}", "ab"[i % 2], metric="throughput", unit="1/s", value=500e6 / 144) for i in range(5)]
    (bar,) = bars_of(tmp_path, lines)
    assert bar.ratio == Interval(1.0, 1.0, "10 variants of 4 networks or layers")
    assert bar.absolute is not None
    assert bar.absolute.high == pytest.approx(2**1.8856, rel=1e-3)  # two networks: t = 1.886


def test_shares_have_no_interval(tmp_path: Path) -> None:
    bar = next(bar for bar in assessed_shares() if bar.metric == "shares")
    assert bar.absolute is bar.ratio is None
    assert "points" in str(bar)


def assessed_shares() -> tuple[ErrorBar, ...]:
    found = assessed("tpu_v1").bars
    return found.bars if found else ()


def bar(rows: int, scope: str = "network", **changes: Any) -> ErrorBar:
    fields: dict[str, Any] = {
        "metric": "time", "scope": scope, "rows": rows, "networks": rows, "kinds": ("silicon",), "mean": 0.1,
        "median": 0.1, "worst": 0.2, "worst_row": "worst", "rank_correlation": None, "calibrated": 0,
        "fit_mean": None, "left_out_mean": None, "absolute": Interval(0.8, 1.25, "networks"), "ratio": None,
    }  # fmt: skip
    return ErrorBar(**{**fields, **changes})


def test_rows_of_one_network_give_no_interval_and_say_why(tmp_path: Path) -> None:
    lines = [line(f"row{i}", workload=f"{LAYER} density=0.{9 - i}", value=80 + i) for i in range(6)]
    (found,) = bars_of(tmp_path, lines)
    assert found.absolute is None
    assert found.ratio is not None
    assert found.is_indicative
    assert str(found).endswith("one network only: no interval")
    assert "one network only" in cells(found)
    assert with_interval(0.010, found, TIME) == "10.0 ms"


def test_few_networks_are_indicative_whatever_the_rows() -> None:
    assert bar(9, networks=4).is_indicative
    assert with_interval(0.010, bar(9, networks=4), TIME) == "10.0 ms (80% interval 8.00 to 12.5 ms, indicative)"
    assert not bar(5, networks=5).is_indicative


def test_a_bar_without_interval_does_not_hide_one_with() -> None:
    pair = (bar(2), bar(50, "layer", networks=1, absolute=None))
    assert ErrorBars(pair).time == pair[0]
    pair = (bar(9, networks=1, absolute=None), bar(2, "layer"))
    assert ErrorBars(pair).time == pair[1]


def test_a_single_layer_has_the_error_of_layers_where_there_is_one() -> None:
    found = ErrorBars((bar(9), bar(6, "layer"), bar(9, metric="energy"))).of_one_layer()
    assert [(each.metric, each.scope) for each in found.bars] == [("time", "layer"), ("energy", "network")]
    target_ = target("ethos_u55_256")
    one, two = (layer_graph("conv@int8 c=8 k=16 h=4"), small_graph())
    assert (result := target_.simulate(one)).time_error is not None
    assert result.time_error.scope == "layer"
    both = target_.simulate(two).error
    assert both is not None
    assert {each.scope for each in both.bars} == {"network", "layer"}


@pytest.mark.parametrize(
    ("networks", "layers", "chosen"),
    [(5, 50, "network"), (2, 50, "layer"), (2, 2, "network"), (3, 0, "network"), (0, 9, "layer")],
)
def test_which_bar_stands_beside_a_network(networks: int, layers: int, chosen: str) -> None:
    pairs = ((networks, "network"), (layers, "layer"))
    found = ErrorBars(tuple(bar(rows, scope) for rows, scope in pairs if rows)).time
    assert found is not None
    assert found.scope == chosen


# ---- beside prices --------------------------------------------------------------------------------------------------


def test_a_price_carries_its_interval() -> None:
    assert with_interval(0.010, bar(9), TIME) == "10.0 ms (80% interval 8.00 to 12.5 ms)"
    assert with_interval(0.010, bar(4), TIME) == "10.0 ms (80% interval 8.00 to 12.5 ms, indicative)"
    estimates = bar(9, kinds=("fvp_model", "vendor_estimate"))
    assert with_interval(0.010, estimates, TIME) == (
        "10.0 ms (80% interval 8.00 to 12.5 ms, "
        "where the vendor's FVP model or the vendor's estimator (not silicon) would put it)"
    )
    assert with_interval(0.010, bar(1, absolute=None), TIME) == with_interval(0.010, None, TIME) == "10.0 ms"


def test_a_result_says_what_is_known_and_what_is_not() -> None:
    result = target("ideal").simulate(small_graph())
    assert "error unknown" in str(result)
    known = dataclasses.replace(result, error=ErrorBars((bar(9),)))
    text = str(known).splitlines()[-1]
    size, unit = unit_of([result.latency_s], TIME)
    low, high = (digits(factor * result.latency_s / size) for factor in (0.8, 1.25))
    assert f": {digits(result.latency_s / size)} {unit} (80% interval {low} to {high} {unit}), " in text
    assert "error of time against 9 published network rows (silicon): median 10.0%" in text
    assert "no published energy is at hand" in text
    assert type(result).from_dict(json.loads(json.dumps(known.to_dict()))) == known


def test_other_quantities_are_told_where_no_time_was_published() -> None:
    text = describe_error(ErrorBars((bar(9, "layer", metric="facts"),)))
    assert text.startswith("error of facts against 9 published layer rows")
    assert "no published energy is at hand" in text


# ---- tables ---------------------------------------------------------------------------------------------------------


def test_a_markdown_block(tmp_path: Path) -> None:
    found = assess(machine(tmp_path, [line(f"row{i}", value=72 + i) for i in range(3)]))
    text = markdown(found)
    assert text.count("\n| row") == 4  # a head and three rows
    assert "| row2 | 74 | 72 | cycle | -2.7% | silicon |  |" in text
    assert "Every row" in text
    for row in text.splitlines():
        if row.startswith("|") and "row" in row and "published" not in row:
            assert row.count("|") in (len(HEADS) + 1, 8)


def test_of_many_rows_the_largest_errors_are_shown_the_largest_first(tmp_path: Path) -> None:
    found = assess(machine(tmp_path, [line(f"row{i:02d}", value=132 + i) for i in range(40)]))
    text = markdown(found)
    names = [row.split()[1] for row in text.splitlines() if row.startswith("| row") and "published" not in row]
    assert names == [f"row{i:02d}" for i in range(39, 39 - MOST_ROWS, -1)]
    assert f"The {MOST_ROWS} rows of the largest errors, of 40" in text


@pytest.mark.parametrize(("value", "title"), [(72, "24 of 40 rows, all exact"), (72.01, "24 of 40 rows, all 0.0%")])
def test_of_many_rows_without_errors_none_is_called_the_largest(tmp_path: Path, value: float, title: str) -> None:
    found = assess(machine(tmp_path, [line(f"row{i:02d}", value=value) for i in range(40)]))
    assert f"<summary>{title}</summary>" in markdown(found)


def test_no_rows_is_said() -> None:
    assert "its error is unknown" in markdown(assessed("ideal"))


def test_blocks_are_rewritten_in_place(tmp_path: Path) -> None:
    """A filled block, a marker alone, and a block of a target that was not assessed."""
    page = tmp_path / "models" / "page.md"
    page.parent.mkdir()
    a, b, c = (f"<!-- validation: {name} -->" for name in "abc")
    end = "<!-- end -->"
    page.write_text(f"# Page\n{a}\nold\n{end}\nmore\n{b}\n{c}\n{end}\nlast\n")
    assert rewrite_docs(tmp_path, {"a": "new\n", "b": "B\n"}, known=["c"]) == [page]
    assert page.read_text() == f"# Page\n{a}\nnew\n{end}\nmore\n{b}\nB\n{end}\n{c}\n{end}\nlast\n"
    assert blocks(page.read_text()) == {"a": "new\n", "b": "B\n", "c": ""}
    assert rewrite_docs(tmp_path, {"a": "new\n"}, known=["b", "c"]) == []
    with pytest.raises(ConfigError, match=r"page.md: <!-- validation: c --> names no known machine"):
        rewrite_docs(tmp_path, {"a": "newer\n", "b": "B\n"})
    assert "newer" not in page.read_text()


# ---- machines of one's own ------------------------------------------------------------------------------------------


def test_errors_of_a_machine_of_ones_own_lie_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = machine(tmp_path, [line("a", "a", value=80), line("b", "b", value=60)])
    before = (FOLDER / "errors.json").read_bytes()
    assert target(name).simulate(small_graph()).error is None
    found = assess(name)
    assert store([found]) == [tmp_path / "mine.errors.json"]
    assert (FOLDER / "errors.json").read_bytes() == before
    assert error_bars("mine", name) == found.bars
    assert target(name).simulate(small_graph()).error == found.bars
    monkeypatch.setenv("CODESIGN_SPECS", str(tmp_path))
    assert target("mine").simulate(small_graph()).error == found.bars
    assert error_bars("eie", str(SPECS / "eie.yaml")) == error_bars("eie") is not None
    (tmp_path / "mine.errors.json").write_text('{"bars": [{}]}')
    with pytest.raises(ConfigError, match=r"mine.errors.json: no errors of a machine .*`codesign validate --store`"):
        error_bars("mine", name)


def test_a_machine_that_hides_one_of_the_package_has_its_own_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(tmp_path, [line("a", "a", value=80)], name="eie")
    monkeypatch.setenv("CODESIGN_SPECS", str(tmp_path))
    assert store([assess("eie")]) == [tmp_path / "eie.errors.json"]
    found = target("eie").simulate(small_graph()).error
    assert found is not None
    assert found.bars[0].worst_row == "a"


def test_json_holds_every_row(tmp_path: Path) -> None:
    found = to_dict(assess(machine(tmp_path, [line(value=80)])))
    assert found["rows"][0]["predicted"] == 72
    assert found["rows"][0]["error"] == pytest.approx(-0.1)
    assert found["errors"][0]["worst_row"] == "row"
    assert len(cells(bar(3))) == len(HEADS)
    json.dumps(found, allow_nan=False)
