"""`codesign trail`: rows are measured, a pick keeps its limit and its zeros, and bad words end in one line."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from codesign import prune, trail
from codesign.cli import app
from codesign.prune import PruneConfig, load_pruned
from codesign.trail import Pick, TrailRow, TrailRun
from pruning import masks
from pruning.evaluation import accuracy
from workloads.data import load
from workloads.errors import CodesignError, ConfigError, PlanError
from workloads.models import build
from workloads.models.weights import load_weights, read_weights, save_weights

CONFIG = PruneConfig(
    "digits_cnn", "digits", "learned_threshold", {"density": 0.1}, targets=("ideal", "eyeriss_v2"), weights="scratch",
    epochs=4, rate=0.1, batch_size=64,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("trail") / "run"
    prune.run(CONFIG, found)
    return found


def row(step: int, heldout: float, latency: float) -> TrailRow:
    return TrailRow(step, 1.0, heldout, {"ideal": latency}, {"ideal": 1.0})


ROWS = [row(0, 0.99, 10), row(1, 0.98, 9), row(2, 0.97, 7), row(3, 0.97, 6), row(4, 0.90, 5)]


@pytest.mark.parametrize(
    ("wanted", "step"),
    [
        (Pick(min_accuracy=0.97, target="ideal"), 3),
        (Pick(min_accuracy=0.975, target="ideal"), 1),
        (Pick(max_latency=0.7, target="ideal"), 3),  # of two as accurate the faster
        (Pick(max_latency=1.0, target="ideal"), 1),  # never the dense network
        (Pick(max_latency=0.5, target="ideal"), 4),
    ],
)
def test_the_best_that_keeps_the_limit(wanted: Pick, step: int) -> None:
    assert wanted.of(ROWS).step == step


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Pick(min_accuracy=0.985, target="ideal"), "the best of 4 networks has 0.9800"),
        (Pick(max_latency=0.4, target="ideal"), r"the fastest of 4 networks takes 0\.500 times as long"),
    ],
)
def test_no_network_keeps_the_limit(wanted: Pick, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        wanted.of(ROWS)


def test_one_limit_is_given() -> None:
    for both in ({}, {"min_accuracy": 0.9, "max_latency": 0.5}):
        with pytest.raises(ConfigError, match="give one of them"):
            Pick(**both)


def test_every_network_of_the_trail_is_a_row(folder: Path) -> None:
    run = TrailRun(folder)
    rows = run.rows()
    assert len(rows) == 1 + len(run.trail.points) >= 6
    assert [each.density for each in rows[1:]] == [point.density for point in run.trail.points]
    assert rows[-1].density == pytest.approx(0.1, abs=1e-3)
    assert rows[-1].latency_s["eyeriss_v2"] < rows[0].latency_s["eyeriss_v2"]
    stored = (folder / "trail.json").read_bytes()
    assert TrailRun(folder).rows() == rows
    assert (folder / "trail.json").read_bytes() == stored


def test_a_trail_that_grew_is_measured_anew(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "run")
    run = TrailRun(tmp_path / "run")
    rows = run.rows()
    run.trail.forget(run.trail.points[-1].step)
    assert TrailRun(tmp_path / "run").rows() == rows[:-1]


def test_the_pick_keeps_its_zeros_through_retraining(folder: Path, tmp_path: Path) -> None:
    run, wanted = TrailRun(folder), Pick(max_latency=1.0, target="eyeriss_v2")
    chosen = run.choose(wanted)
    result = run.pick(wanted, tmp_path / "pick", epochs=1, rate=0.01)
    net = build("digits_cnn")
    load_weights(net, tmp_path / "pick" / "model.safetensors")
    assert result.test == accuracy(net, load("digits", "test"))
    before = run.trail.network(next(p for p in run.trail.points if p.step == chosen.step), run.dense)
    stored = read_weights(tmp_path / "pick" / "model.safetensors")
    found = masks.masks_of(before)
    assert found
    for name, mask in found.items():
        assert not torch.equal(net.get_parameter(name), before.get_parameter(name))
        assert net.get_parameter(name)[~mask].count_nonzero() == 0
        assert torch.equal(stored[name + masks.SUFFIX], mask)
    assert run.pick(wanted, tmp_path / "pick", epochs=1, rate=0.01).to_dict() == result.to_dict()
    with pytest.raises(ConfigError, match="choose another --out"):
        run.pick(wanted, tmp_path / "pick", epochs=2, rate=0.01)
    run.pick(wanted, tmp_path / "pick", epochs=0, rate=0.01, overwrite=True)
    assert torch.equal(read_weights(tmp_path / "pick" / "model.safetensors")[name], before.get_parameter(name))


def test_the_command(folder: Path) -> None:
    shown = CliRunner().invoke(app, ["trail", str(folder), "--max-latency", "1", "--epochs", "0"])
    assert shown.exit_code == 0, shown.output
    kept = TrailRun(folder).choose(Pick(max_latency=1.0)).density
    said = " ".join(shown.output.split())
    assert f"density {kept:.4f} of pruned layers, held out" in said
    assert "weights are left" in said, "of all layers, the report's count"
    assert (folder / "trail.png").stat().st_size > 10_000
    assert json.loads((folder / "pick" / "result.json").read_text())["seconds"] == 0
    assert (folder / "pick" / "ideal" / "report.html").exists()


def test_folders_without_a_trail(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json: cannot be read"):
        TrailRun(tmp_path)
    dense = dataclasses.replace(CONFIG, method="dense", options={}, epochs=1)
    prune.run(dense, tmp_path / "dense")
    with pytest.raises(ConfigError, match="no networks here; runs of learned_threshold leave"):
        TrailRun(tmp_path / "dense")


def test_a_machine_of_another_run(folder: Path) -> None:
    with pytest.raises(CodesignError, match="unknown target of the run 'eie'"):
        trail.run(folder, Pick(max_latency=1.0, target="eie"), folder / "no")
    assert not (folder / "no").exists()


def test_a_run_that_replaces_another_leaves_none_of_its_networks(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "run")
    TrailRun(tmp_path / "run").rows()
    other = dataclasses.replace(CONFIG, method="random", options={"density": 0.5}, epochs=1)
    prune.run(other, tmp_path / "run", overwrite=True)
    assert not (tmp_path / "run" / "trail").exists()
    with pytest.raises(ConfigError, match="no networks here; runs of learned_threshold leave a trail"):
        TrailRun(tmp_path / "run")


def test_the_page_of_a_pick_names_the_command_that_made_it(folder: Path, tmp_path: Path) -> None:
    trail.run(folder, Pick(max_latency=1.0, target="eyeriss_v2"), tmp_path / "pick", epochs=0)
    page = (tmp_path / "pick" / "ideal" / "report.html").read_text()
    assert f"codesign trail {folder} --epochs 0" in page
    assert "--max-latency 1.0 --target eyeriss_v2" in page
    trail.run(folder, Pick(min_accuracy=0.0), tmp_path / "any", epochs=0)
    assert "--min-accuracy 0.0" in (tmp_path / "any" / "ideal" / "report.html").read_text()


def test_a_pick_is_loaded_with_its_zeros(folder: Path, tmp_path: Path) -> None:
    found = TrailRun(folder).pick(Pick(max_latency=1.0, target="eyeriss_v2"), tmp_path / "pick", epochs=0, rate=0.01)
    net = load_pruned(tmp_path / "pick")
    assert masks.masks_of(net)
    assert accuracy(net, load("digits", "test")) == found.test


def test_a_machine_picks_by_a_limit_only(folder: Path) -> None:
    shown = CliRunner().invoke(app, ["trail", str(folder), "--target", "eyeriss_v2"])
    assert isinstance(shown.exception, ConfigError)
    assert "--target eyeriss_v2: says whose latency picks" in str(shown.exception)


def test_weights_that_changed_since_the_run_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_weights(build("digits_cnn", seed=1), file)
    config = dataclasses.replace(CONFIG, weights=str(file), epochs=1, options={"density": 0.5})
    prune.run(config, tmp_path / "run")
    TrailRun(tmp_path / "run")
    save_weights(build("digits_cnn", seed=2), file)
    with pytest.raises(ConfigError, match="run: weights changed since the run; run it again"):
        TrailRun(tmp_path / "run")


def test_a_pick_of_another_trail_is_not_taken_for_this_one(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "run")
    wanted = Pick(max_latency=1.0, target="eyeriss_v2")
    run = TrailRun(tmp_path / "run")
    run.pick(wanted, tmp_path / "pick", epochs=0, rate=0.01)
    place = run.trail.folder / run._point(run.choose(wanted).step).file
    net = build("digits_cnn")
    load_weights(net, place)
    with torch.no_grad():
        net.fc.bias += 1
    save_weights(net, place)
    with pytest.raises(ConfigError, match="holds a study with network_sha256"):
        run.pick(wanted, tmp_path / "pick", epochs=0, rate=0.01)
