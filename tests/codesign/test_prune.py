"""`codesign prune`: what it writes, that it goes on after a stop, and that its command line does the same again."""

import dataclasses
import json
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from codesign import prune
from codesign.cli import app
from codesign.prune import PruneConfig, PruneOutcome, parse_options
from pruning import training
from pruning.evaluation import accuracy
from pruning.quantization import quantize
from workloads.data import load
from workloads.errors import ConfigError
from workloads.models import build

CONFIG = PruneConfig(
    "digits_cnn", "digits", "gradual_magnitude", {"density": 0.25, "prune_first": True, "prune_last": True},
    targets=("ideal", "eyeriss_v2"), weights="scratch", epochs=3, rate=0.1, batch_size=32,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("prune") / "run"
    prune.report(CONFIG, prune.run(CONFIG, found), found)
    return found


def outcome(folder: Path) -> PruneOutcome:
    return PruneOutcome.from_dict(json.loads((folder / "result.json").read_text())["result"])


def test_what_is_written_is_what_was_pruned(folder: Path) -> None:
    found, weights = outcome(folder), load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if name + "_mask" in weights}
    assert sum(int(tensor.count_nonzero()) for tensor in kept.values()) == found.nonzeros
    assert found.compression == pytest.approx(4, rel=0.01)
    assert found.test > 0.5
    assert found.dense_test is None, "an untrained network has no accuracy worth a number"
    assert found.int8_test == pytest.approx(found.test, abs=0.02), "eyeriss_v2 computes in 8 bits"
    assert found.int8_test is not None
    dense, pruned = found.priced["eyeriss_v2"]
    assert pruned.latency_s < dense.latency_s
    assert {path.name for path in folder.glob("*/report.html")} == {"report.html"}
    noted = {path.parent.name: f"{found.int8_test:.2%}" in path.read_text() for path in folder.glob("*/report.html")}
    assert noted == {"eyeriss_v2": True, "ideal": False}


def test_int8_accuracy_is_of_the_quantised_network_and_survives_json(folder: Path) -> None:
    found = outcome(folder)
    model = build("digits_cnn")
    stored = load_file(folder / "model.safetensors")
    model.load_state_dict({name: tensor for name, tensor in stored.items() if not name.endswith("_mask")}, strict=False)
    assert found.int8_test == accuracy(quantize(model, load("digits", "heldout")), load("digits", "test"))
    assert PruneOutcome.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    older = {name: value for name, value in found.to_dict().items() if name != "int8_test"}
    assert PruneOutcome.from_dict(older).int8_test is None


def test_a_network_that_cannot_be_quantised_keeps_its_result(capsys) -> None:  # type: ignore[no-untyped-def]
    images = {split: load("digits", split) for split in ("heldout", "test")}
    recurrent = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LSTM(64, 10))
    assert prune._int8_accuracy(recurrent, images) is None
    assert "not measured" in capsys.readouterr().out


def test_a_finished_run_is_read_again_and_an_interrupted_one_ends_the_same(folder, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    remember = training._Run._remember

    def stop(run: training._Run) -> None:
        remember(run)
        if len(run.history) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(training._Run, "_remember", stop)
    with pytest.raises(KeyboardInterrupt):
        prune.run(CONFIG, tmp_path / "run")
    monkeypatch.undo()
    found = prune.run(CONFIG, tmp_path / "run")
    whole = outcome(folder)
    assert (found.test, found.heldout, found.nonzeros) == (whole.test, whole.heldout, whole.nonzeros)
    ours, theirs = (load_file(place / "model.safetensors") for place in (tmp_path / "run", folder))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    monkeypatch.setattr(training, "fit", None)  # nothing is trained again
    assert prune.run(CONFIG, tmp_path / "run").test == found.test


def test_the_command_line_makes_the_same_configuration(monkeypatch, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    given = PruneConfig(
        "digits_cnn", "digits", "one_shot_magnitude", {"density": {"conv1": 0.5}}, ("ideal",), "scratch",
        epochs=3, rate=0.05, batch_size=64, weight_decay=0.0, distil=False, seed=7,
    )  # fmt: skip
    seen = []
    monkeypatch.setattr(prune, "run", lambda config, *_, **__: seen.append(config))
    monkeypatch.setattr(prune, "report", lambda *_: [])
    words = shlex.split(given.command(tmp_path / "out"))
    app(words[1:], standalone_mode=False)
    assert seen == [given]


def test_needed_options_are_asked_for() -> None:
    assert parse_options("gradual_magnitude", ["density=0.3", "keep=[a]"]) == {"density": 0.3, "keep": ["a"]}
    with pytest.raises(ConfigError, match="unknown option of one_shot_magnitude 'begin'"):
        parse_options("one_shot_magnitude", ["begin=0.1"])


def test_dense_is_the_same_training_without_pruning(tmp_path: Path) -> None:
    found = prune.run(dataclasses.replace(CONFIG, method="dense", options={}, epochs=1), tmp_path / "run")
    assert found.nonzeros == found.weights
    with pytest.raises(ConfigError, match="unknown option of dense 'density'"):
        parse_options("dense", ["density=0.5"])
