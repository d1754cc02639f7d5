"""A forecast counts what a run will come to, and touches nothing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from codesign import prune
from codesign.cli import app
from codesign.forecast import forecast
from codesign.prune import PruneConfig
from workloads.errors import CodesignError

CONFIG = PruneConfig("digits_cnn", "digits", "gradual_magnitude", {"density": 0.5}, weights="scratch", epochs=1)


def test_counts_are_those_of_the_run(tmp_path: Path) -> None:
    found, ran = forecast(CONFIG), prune.run(CONFIG, tmp_path / "run")
    assert ran.removed_channels == 0
    assert sum(row.kept for row in found.layers) == ran.nonzeros
    assert sum(row.weights for row in found.layers) == ran.weights
    assert found.nonzero_macs == pytest.approx(ran.nonzero_macs)
    assert found.priced[0][0] == ran.priced["ethos_u55_256"][0]
    assert found.notes == ran.notes


def test_layers_that_stay_dense_are_seen() -> None:
    rows = {
        row.name: row for row in forecast(replace(CONFIG, options={"density": 0.5, "keep": ["block2.conv1"]})).layers
    }
    first, *_, last = rows.values()
    assert all(row.kept == row.weights for row in (first, last, rows["block2.conv1"]))
    assert any(row.kept == row.weights // 2 for row in rows.values())


def test_channels_are_counted() -> None:
    rows = {row.name: row for row in forecast(replace(CONFIG, method="l1_filter", options={"density": 0.5})).layers}
    first, *_, last = rows.values()
    assert first.kept_filters == first.filters // 2
    assert last.kept_filters == last.filters


def test_the_length_of_the_run_decides_what_can_be_carried_out() -> None:
    slow = replace(CONFIG, method="drop_pruning", options={"density": 0.1, "p_out": 0.1})
    with pytest.raises(CodesignError, match="pruning steps"):
        forecast(slow)
    rows = forecast(replace(slow, epochs=40)).layers
    assert any(0 < row.kept < 0.2 * row.weights for row in rows)


@pytest.mark.parametrize("method", ["drop_pruning", "random", "campfire"])
def test_weights_that_come_back_count_as_kept(method: str) -> None:
    rows = forecast(replace(CONFIG, method=method, options={"density": 0.3}, epochs=20)).layers
    first, *inner, last = rows
    assert all(row.kept == pytest.approx(0.3 * row.weights, abs=0.02 * row.weights) for row in inner)
    assert (first.kept, last.kept) == (first.weights, last.weights)


def test_what_is_learned_is_not_foretold(tmp_path: Path) -> None:
    config = replace(CONFIG, method="learned_threshold", options={"density": 0.2})
    found = forecast(config)
    assert found.is_learned
    assert all(row.kept == row.weights for row in found.layers)
    said = _said(config, tmp_path)
    assert "learned_threshold learns what goes: nothing can be said of it before training" in said
    assert "latency" not in said


def test_the_command_prints_it_and_writes_nothing(tmp_path: Path) -> None:
    said = _said(CONFIG, tmp_path)
    total, kept = (sum(getattr(row, key) for row in forecast(CONFIG).layers) for key in ("weights", "kept"))
    assert f"{kept:,} of {total:,} weights would stay" in said
    assert "Arm Ethos-U55-256: latency " in said
    assert "expected of these ratios: " in said
    assert CONFIG.command(tmp_path / "out") in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "dense", "options": {}}, "--plan: dense trains without pruning"),
        ({"method": "gradual_magnitud"}, "did you mean 'gradual_magnitude'"),
        ({"targets": ("ethos_u55_257",)}, "ethos_u55_257"),
        ({"targets": ("ideal", "ideal")}, "a machine is given twice"),
        ({"epochs": 0}, "give at least one"),
        ({"weights": "no_such_file"}, "no_such_file"),
    ],
)
def test_what_a_run_refuses(changes: dict[str, object], words: str) -> None:
    with pytest.raises(CodesignError, match=words):
        forecast(replace(CONFIG, **changes))  # type: ignore[arg-type]


def _said(config: PruneConfig, folder: Path) -> str:
    """What the command line prints for a forecast."""
    words = ["prune", config.model, "--data", config.data, "--method", config.method, "--scratch", "--epochs", "1"]
    for name, value in config.options.items():
        words += ["--option", f"{name}={json.dumps(value)}"]
    found = CliRunner().invoke(app, [*words, "--out", str(folder / "out"), "--plan"], catch_exceptions=False)
    assert found.exit_code == 0
    return found.output
