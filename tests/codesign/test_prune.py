"""`codesign prune`: what it writes, that it goes on after a stop, and that its command line does the same again."""

import dataclasses
import json
import math
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from accel_models import target
from codesign import prune, prune_report
from codesign.cli import app
from codesign.prune import PruneConfig, PruneOutcome, load_pruned, parse_options
from codesign.prune_report import report
from codesign.subject import Subject, load_split, objective_of
from codesign.trail import TrailRun
from pruning import masks, shrink, training
from pruning.evaluation import Score, accuracy
from pruning.layers import WEIGHTED
from pruning.methods import Pruner, methods
from pruning.plan import PruningPlan
from pruning.quantization import quantize
from pruning.shrink import Shrunk
from pruning.training import Classification
from tests.pruning.cutting import parameters
from workloads.data import detection, digits, load
from workloads.data.sets import Arrays, Part
from workloads.errors import CodesignError, ConfigError, LoweringError, PlanError
from workloads.lowering import lower
from workloads.models import build, example_input
from workloads.models.weights import load_weights, save_weights

CONFIG = PruneConfig(
    "digits_cnn", "digits", "gradual_magnitude", {"density": 0.25, "prune_first": True, "prune_last": True},
    targets=("ideal", "eyeriss_v2"), weights="scratch", epochs=3, rate=0.1, batch_size=32,
)  # fmt: skip
FULL = "full.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's; beside it the finalized network before it was shrunk."""
    found, shrunk = tmp_path_factory.mktemp("prune") / "run", prune.without_dead_channels

    def keep(pruner: Pruner, dense: nn.Module, example: torch.Tensor) -> Shrunk:
        save_weights(pruner.finalize(), found.parent / FULL)
        return shrunk(pruner, dense, example)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prune, "without_dead_channels", keep)
        report(CONFIG, prune.run(CONFIG, found), found)
    return found


def outcome(folder: Path) -> PruneOutcome:
    return PruneOutcome.from_dict(json.loads((folder / "result.json").read_text())["result"])


def test_what_is_written_is_what_was_pruned(folder: Path) -> None:
    found, weights = outcome(folder), load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if name + "_mask" in weights}
    assert sum(int(tensor.count_nonzero()) for tensor in kept.values()) == found.nonzeros
    full = [int(load_file(folder.parent / FULL)[name].count_nonzero()) for name in kept]
    assert found.weights / sum(full) == pytest.approx(4, rel=0.01)
    assert found.nonzeros < sum(full), "a few of the kept weights read or made channels without effect"
    assert found.test > 0.5
    assert found.dense_test is None, "an untrained network has no accuracy worth a number"
    assert found.int8_test == pytest.approx(found.test, abs=0.02), "eyeriss_v2 computes in 8 bits"
    assert found.int8_test is not None
    dense, pruned = found.priced["eyeriss_v2"]
    assert pruned.latency_s < dense.latency_s
    assert {path.name for path in folder.glob("*/report.html")} == {"report.html"}
    note = f"test accuracy in int8: {found.int8_test:.2%}"
    noted = {path.parent.name: note in path.read_text() for path in folder.glob("*/report.html")}
    assert noted == {"eyeriss_v2": True, "ideal": False}


def test_the_device_that_was_asked_for_measures_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def watched(*_: object, device: str = "auto", **__: object) -> Score:
        seen.append(device)
        return Score(0.0, 0.5, 1, "test", "fp32")

    monkeypatch.setattr(Classification, "evaluate", watched)
    net, images = build("digits_cnn"), {split: load("digits", split) for split in ("heldout", "test")}
    found = prune.measured(CONFIG, net, net, images, 0.0, device="cpu")
    assert found.int8_test == 0.5
    assert seen == ["cpu", "cpu", "cpu"]


def test_an_unknown_device_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="device 'abacus' cannot be used"):
        prune.run(CONFIG, tmp_path / "run", device="abacus")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="device 'abacus' cannot be used"):
        TrailRun(tmp_path / "run", device="abacus")


def test_channels_without_effect_are_removed_from_what_is_stored_tested_and_priced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen, shrunk = [], prune.without_dead_channels

    def keep(pruner: Pruner, dense: nn.Module, example: torch.Tensor) -> Shrunk:
        seen.append(pruner.finalize())
        return shrunk(pruner, dense, example)

    monkeypatch.setattr(prune, "without_dead_channels", keep)
    folder = tmp_path / "run"
    config = dataclasses.replace(CONFIG, method="l1_filter", options={"density": 0.5}, targets=("ideal",), epochs=1)
    found = prune.run(config, folder)
    full, small = seen[0], load_pruned(folder)
    images = load("digits", "test")
    with torch.no_grad():
        torch.testing.assert_close(small(images.tensor()), full.eval()(images.tensor()), rtol=1e-4, atol=1e-5)
    assert found.test == accuracy(full, images)
    dense, pruned = found.priced["ideal"]
    assert pruned.macs == lower(small, example_input("digits_cnn")).macs < 0.4 * dense.macs
    assert parameters(small) < 0.4 * parameters(full)
    weights = [module.weight for module in small.modules() if isinstance(module, WEIGHTED)]
    assert found.nonzeros == sum(int(weight.count_nonzero()) for weight in weights)
    assert (found.removed_channels, found.channels) == (
        96,
        192,
    )  # half of 32 and 32 of the first block, 64 and 64 of the second
    report(config, found, folder)
    assert "96 of 192 channel units removed" in capsys.readouterr().out
    assert "96 of 192 channel units removed" in (folder / "report.html").read_text()


def test_a_network_that_cannot_lose_dead_channels_keeps_its_result(capsys, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    def fail(*_: object) -> None:
        raise PlanError("its code fixes 8 channels")

    monkeypatch.setattr(shrink, "shrink", fail)
    model, example = build("digits_cnn"), example_input("digits_cnn")
    pruner = methods()["random"](model, (example,), 10, density=0.5)
    found = prune.without_dead_channels(pruner, model, example)
    assert masks.masks_of(found.model).keys() == masks.masks_of(pruner.model).keys()
    assert found.plan.is_empty
    assert "not removed: its code fixes 8 channels" in " ".join(capsys.readouterr().out.split())


def test_int8_accuracy_is_of_the_quantised_network_and_survives_json(folder: Path) -> None:
    found = outcome(folder)
    assert found.int8_test == accuracy(quantize(load_pruned(folder), load("digits", "heldout")), load("digits", "test"))
    assert PruneOutcome.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    later = ("int8_test", "channels", "removed_channels")
    older = {name: value for name, value in found.to_dict().items() if name not in later}
    assert PruneOutcome.from_dict(older).int8_test is None


def test_a_network_that_cannot_be_quantised_keeps_its_result(capsys) -> None:  # type: ignore[no-untyped-def]
    images = {split: load("digits", split) for split in ("heldout", "test")}
    recurrent = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LSTM(64, 10))
    assert prune._int8_accuracy(recurrent, images, Classification()) is None
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


@pytest.mark.data("MNIST")
def test_a_detector_is_pruned_tested_and_priced_like_any_network(monkeypatch, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(detection, "PICTURES", {"train": 240, "heldout": 16, "test": 48})
    config = PruneConfig(
        "ssd_digits", "digits_detection", "network_pruning_network", {"strength": 20, "lr": 0.1, "end": 0.3},
        ("ideal", "ethos_u55_256"), "scratch", epochs=5, rate=0.05, batch_size=8,
    )  # fmt: skip
    found = prune.run(config, tmp_path / "run")
    plan = PruningPlan.load(tmp_path / "run" / "plan.json")
    small = plan.apply(build("ssd_digits"), (example_input("ssd_digits"),))
    load_weights(small, tmp_path / "run" / "model.safetensors")
    goal, images = objective_of("ssd_digits"), load_split("ssd_digits", "digits_detection", "test")
    assert found.test == goal.evaluate(small.eval(), images).accuracy > 0.05
    assert found.int8_test == pytest.approx(found.test, abs=0.05)
    dense, pruned = found.priced["ideal"]
    assert pruned.macs == lower(small, example_input("ssd_digits")).macs < 0.9 * dense.macs


def test_a_detector_and_its_data_belong_together(tmp_path: Path) -> None:
    given = [("ssd_digits", "mnist"), ("lenet5", "digits_detection")]
    for model, data in given:
        with pytest.raises(ConfigError, match=f"--data {data}: {model} is made for .*, digits_detection is the one"):
            prune.run(dataclasses.replace(CONFIG, model=model, data=data), tmp_path / "run")


@pytest.mark.parametrize("model", ["digits_cnn", "ssd_digits"])
def test_an_unknown_data_set_is_answered_with_all_there_are(model: str) -> None:
    with pytest.raises(
        ConfigError, match=r"mean 'digits_detection'\? Known: cifar10, digits, digits_detection, imagenet"
    ):
        load_split(model, "digits_detections", "test")


@pytest.mark.data("MNIST")
def test_a_method_that_needs_labels_is_refused_for_a_detector(monkeypatch, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(detection, "PICTURES", {"train": 8, "heldout": 8, "test": 8})
    config = PruneConfig("ssd_digits", "digits_detection", "taylor_filter", {"macs": 0.5}, weights="scratch")
    with pytest.raises(ConfigError, match="taylor_filter: measures on pictures with one label each"):
        prune.run(config, tmp_path / "run")


def test_the_command_line_makes_the_same_configuration(monkeypatch, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    given = PruneConfig(
        "digits_cnn", "digits", "one_shot_magnitude", {"density": {"conv1": 0.5}}, ("ideal",), "scratch",
        epochs=3, rate=0.0123456789, batch_size=64, weight_decay=0.0, distil=False, seed=7,
    )  # fmt: skip
    seen = []
    monkeypatch.setattr(prune, "run", lambda config, *_, **__: seen.append(config))
    monkeypatch.setattr(prune_report, "report", lambda *_: [])
    words = shlex.split(given.command(tmp_path / "out"))
    app(words[1:], standalone_mode=False)
    assert seen == [given]


def test_needed_options_are_asked_for() -> None:
    assert parse_options("gradual_magnitude", ["density=0.3", "keep=[a]"]) == {"density": 0.3, "keep": ["a"]}
    assert parse_options("pconv", ["rho=[1e-3, 1e-1]"]) == {"rho": [1e-3, 1e-1]}
    assert parse_options("n_m", ["granularity=2:4"]) == {"granularity": "2:4"}
    with pytest.raises(ConfigError, match="unknown option of one_shot_magnitude 'begin'"):
        parse_options("one_shot_magnitude", ["begin=0.1"])


def test_attacks_on_both_networks_are_counted(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, epochs=1, attacked=50, method="dense", options={}, targets=("ideal",))
    found = prune.run(config, tmp_path / "run")
    assert list(found.robust) == ["pruned"]  # what was not trained has nothing to lose
    record = json.loads((report(config, found, tmp_path / "run")[0].parent / "report.json").read_text())
    assert record["accuracies"]["dense_test"] is None
    weights = str(tmp_path / "run" / "model.safetensors")
    found = prune.run(dataclasses.replace(config, weights=weights), tmp_path / "again")
    dense, pruned = found.robust["dense"], found.robust["pruned"]
    assert dense.images == pruned.images == 50
    assert max(dense.pgd, dense.fgsm) < dense.clean <= 1
    assert dense != pruned
    assert PruneOutcome.from_dict(found.to_dict()) == found
    page = report(config, found, tmp_path / "again")[0].read_text()
    assert f"dense under attack: clean {dense.clean:.2%}" in page
    with pytest.raises(ConfigError, match="--attacked -1: a number of images"):
        prune.run(dataclasses.replace(config, attacked=-1), tmp_path / "no")


def test_a_method_that_thins_by_itself_keeps_its_counts(tmp_path: Path) -> None:
    """Also where a filter that stays does nothing: every count is the multiple that was asked for."""
    save_weights(build("digits_cnn"), weights := tmp_path / "dense.safetensors")
    options = {"macs": 0.5, "multiple": 8, "density": 0.2}
    config = dataclasses.replace(
        CONFIG, method="hybrid_pruning", options=options, weights=str(weights), epochs=1, targets=("ideal",)
    )
    found = prune.run(config, tmp_path / "run")
    plan, net = PruningPlan.load(tmp_path / "run" / "plan.json"), load_pruned(tmp_path / "run")
    assert plan.removed
    assert found.removed_channels == sum(plan.removed.values()) < found.channels
    assert all(len(units) % 8 == 0 for units in plan.channels.values())
    assert all(m.out_channels % 8 == 0 for m in net.modules() if isinstance(m, nn.Conv2d))
    assert accuracy(net, load("digits", "test")) == found.test
    before, after = found.priced["ideal"]
    assert after.macs <= 0.5 * before.macs
    assert found.nonzero_macs < 0.5 * after.macs


def test_without_epochs_weights_stay_and_norms_are_measured_anew(tmp_path: Path) -> None:
    weights = tmp_path / "dense.safetensors"
    save_weights(build("digits_cnn"), weights)
    config = dataclasses.replace(CONFIG, options={"density": 0.5}, weights=str(weights), epochs=0)
    for name in ("one_shot_magnitude", "wanda"):
        outcome = prune.run(dataclasses.replace(config, method=name), tmp_path / name)
        assert outcome.seconds == 0
    dense, sparse = load_file(weights), load_file(tmp_path / "one_shot_magnitude" / "model.safetensors")
    for name, weight in dense.items():
        if name.endswith("weight"):
            kept = sparse[name] != 0
            assert kept.double().mean() <= (0.51 if weight.dim() == 4 and name != "conv.weight" else 1)
            assert torch.equal(sparse[name][kept], weight[kept])
    assert not torch.allclose(sparse["block2.bn1.running_var"], torch.ones(64), rtol=0.1)
    for name, line in REFUSED_WITHOUT_EPOCHS.items():
        with pytest.raises(CodesignError, match=line):
            prune.run(dataclasses.replace(config, method=name), tmp_path / "refused")
    with pytest.raises(ConfigError, match="--epochs 0: an untrained network cannot be judged, give at least one epoch"):
        prune.start(dataclasses.replace(config, method="wanda", weights="scratch"))


REFUSED_WITHOUT_EPOCHS = {
    "gradual_magnitude": "^--epochs 0: gradual_magnitude prunes while it trains, give at least one epoch$",
    "learned_threshold": "^--epochs 0: learned_threshold prunes while it trains, give at least one epoch$",
    "pconv": "^--epochs 0: options begin=0.0, end=0.5 of pconv: both are step 0 of 1; train longer$",
    "dense": "^--epochs 0: dense does nothing but train, give at least one epoch$",
}


def test_other_weights_in_the_same_file_are_another_run(tmp_path: Path) -> None:
    weights = tmp_path / "dense.safetensors"
    config = dataclasses.replace(CONFIG, method="dense", options={}, weights=str(weights), epochs=1, targets=("ideal",))
    save_weights(build("digits_cnn", seed=0), weights)
    first = prune.run(config, tmp_path / "run")
    assert prune.run(config, tmp_path / "run") == first
    save_weights(build("digits_cnn", seed=1), weights)
    with pytest.raises(ConfigError, match="weights_sha256"):
        prune.run(config, tmp_path / "run")


def test_a_method_that_removes_nothing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = dataclasses.replace(CONFIG, method="network_pruning_network", options={}, epochs=1, targets=("ideal",))
    report(config, prune.run(config, tmp_path / "run"), tmp_path / "run")
    assert "nothing was removed: network_pruning_network found nothing to remove" in capsys.readouterr().out


@pytest.mark.parametrize("other", [["--density", "0.5"], ["--option", "density=0.5"]])
def test_an_option_is_given_once(tmp_path: Path, other: list[str]) -> None:
    words = ["prune", "digits_cnn", "--data", "digits", "--scratch", *other, "--option", "density=0.3"]
    shown = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "run")])
    assert isinstance(shown.exception, ConfigError)
    assert "--option 'density=0.3': density is given twice" in str(shown.exception)


def test_folders_that_hold_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json: cannot be read"):
        load_pruned(tmp_path)
    prune.Study.create(tmp_path / "started", {"command": "prune", "model": "digits_cnn", "seed": 0})
    with pytest.raises(ConfigError, match="holds no finished run of codesign prune"):
        load_pruned(str(tmp_path / "started"))
    (tmp_path / "started" / "result.json").write_text("{}")
    wanted = r"started/config\.json: not what this version writes \(a run: field 'data' is missing\); run it again with"
    for read in (load_pruned, TrailRun):
        with pytest.raises(ConfigError, match=wanted):
            read(tmp_path / "started")


def test_a_bias_that_folding_made_is_loaded(tmp_path: Path) -> None:
    net, folder = build("digits_cnn"), tmp_path / "run"
    assert net.conv.bias is None
    net.conv.bias = nn.Parameter(torch.arange(32.0))
    study = prune.Study.create(folder, {"command": "prune", **dataclasses.asdict(CONFIG)})
    save_weights(net, folder / "model.safetensors")
    study.path("result").write_text("{}")
    assert torch.equal(load_pruned(folder).conv.bias, torch.arange(32.0))  # type: ignore[arg-type]


def test_random_methods_draw_by_the_seed_of_the_run(tmp_path: Path) -> None:
    """Also where the seed decides nothing else: both start from the same trained weights."""
    save_weights(build("digits_cnn"), weights := tmp_path / "dense.safetensors")
    found = []
    for seed, options in ((0, {}), (1, {}), (1, {"seed": 0})):
        config = dataclasses.replace(
            CONFIG, method="random", options={"density": 0.25, **options}, weights=str(weights), epochs=1, seed=seed
        )
        folder = tmp_path / f"{seed}{len(options)}"
        prune.run(config, folder)
        found.append(
            {k: v != 0 for k, v in load_file(folder / "model.safetensors").items() if k.endswith("conv1.weight")}
        )
    first, second, third = found
    assert any(not torch.equal(mask, second[name]) for name, mask in first.items())
    assert all(torch.equal(mask, third[name]) for name, mask in first.items())


def test_dense_is_the_same_training_without_pruning(tmp_path: Path) -> None:
    found = prune.run(dataclasses.replace(CONFIG, method="dense", options={}, epochs=1), tmp_path / "run")
    assert found.nonzeros == found.weights
    assert not (tmp_path / "run" / "plan.json").exists()
    with pytest.raises(ConfigError, match=r"'density=0\.5': dense trains without pruning and takes no options"):
        parse_options("dense", ["density=0.5"])


def test_zeros_of_an_earlier_run_stay_zeros(tmp_path: Path) -> None:
    name, weights = "block2.conv2.weight", tmp_path / "first.safetensors"
    kept = torch.arange(64 * 64 * 9).view(64, 64, 3, 3) % 3 == 0
    save_weights(masks.bake(build("digits_cnn"), {name: kept}), weights)
    start = dataclasses.replace(CONFIG, weights=str(weights), epochs=1)
    prune.run(dataclasses.replace(start, method="dense", options={}), tmp_path / "dense")
    prune.run(dataclasses.replace(start, options={"density": 0.5}), tmp_path / "pruned")
    arguments = ["train", "digits_cnn", "--data", "digits", "--epochs", "1", "--weights", str(weights), "--out"]
    assert CliRunner().invoke(app, [*arguments, str(tmp_path / "more.safetensors")]).exit_code == 0
    for file in ("dense/model", "pruned/model", "more"):
        found = load_file(tmp_path / f"{file}.safetensors")
        assert found[name][kept].any()
        assert not found[name][~kept].any()
        assert not found[f"{name}_mask"][~kept].any()


@pytest.mark.parametrize(
    ("method", "text", "message"),
    [
        ("wanda", "density=abc", "density='abc' of wanda: must be a number or {name: a number, ...}"),
        ("learned_threshold", "density=20%", "density='20%' of learned_threshold: must be a number or null"),
        ("gradual_magnitude", "keep=conv1", "keep='conv1' of gradual_magnitude: must be [text, ...]; try [conv1]"),
        ("gradual_magnitude", "frequency=1.5", "frequency=1.5 of gradual_magnitude: must be a whole number or null"),
        ("gradual_magnitude", "begin=.nan", "begin=nan of gradual_magnitude: must be a number"),
        ("gradual_magnitude", "prune_first=2", "prune_first=2 of gradual_magnitude: must be true or false"),
        ("drop_pruning", "recover=all", "recover='all' of drop_pruning: must be 'zero' or 'last'"),
        ("pconv", "rho=0.1", "rho=0.1 of pconv: must be [a number, a number]"),
        ("pconv", "library=abc", "library='abc' of pconv: must be PatternLibrary or a whole number or null"),
    ],
)
def test_an_option_of_another_type_is_one_line(method: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_options(method, [text])
    assert str(caught.value) == f"option {message}"


def test_types_come_from_the_constructors() -> None:
    for name, cls in methods().items():
        defaults = {key: each.default for key, each in cls.options().items() if each.default is not each.empty}
        assert cls.checked(defaults).keys() == defaults.keys(), name
    assert methods()["learned_threshold"].checked({"trail": "there"}) == {"trail": Path("there")}


def test_channel_multiples_come_from_the_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a method that rounds channels anyway, unless its own are given."""
    seen = []

    class Rounding(Pruner):
        name = "rounding"

        def __init__(self, model: nn.Module, example: object, steps: int, *, multiple: int = 8) -> None:
            seen.append(multiple)

        def after_step(self) -> None:
            """Nothing."""

    config = dataclasses.replace(CONFIG, targets=("ethos_u55_256", "snapdragon_855_cpu"), options={})
    wanted = math.lcm(*(target(name).channel_multiple for name in config.targets))
    images = {"train": range(100), "heldout": []}
    for options in ({}, {"multiple": 5}):
        prune.pruner_of(Rounding, dataclasses.replace(config, options=options), nn.Module(), None, images, None, 8)  # type: ignore[arg-type]
    assert seen == [wanted, 5]
    assert wanted > 1


def test_a_data_set_of_other_classes_gives_its_network_back(monkeypatch, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    def read(root: Path, part: Part) -> Arrays:
        images, labels = digits.read(root, part)
        return images, labels % 4

    few = dataclasses.replace(digits.DATA_SET, name="few", num_classes=4, read=read)
    monkeypatch.setattr("workloads.data.data_sets", lambda: {"few": few})
    config = dataclasses.replace(CONFIG, data="few", targets=("ideal",), epochs=1)
    prune.run(config, tmp_path / "run")
    assert load_pruned(tmp_path / "run").fc.out_features == 4


OWN = """from torch import nn
ENTRIES = {"net": {"input_shape": (1, 8, 8), "num_classes": 10}}
def create(num_classes):
    first = [nn.Conv2d(1, 8, 3, padding=1), nn.LocalResponseNorm(3), nn.ReLU(), nn.Conv2d(8, 8, 3)]
    return nn.Sequential(*first, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PruneConfig]:
    """A network of one's own with an operator that no table has."""
    (tmp_path / "tests_own_net.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield PruneConfig(
        "tests_own_net:net", "digits", "gradual_magnitude", {"density": 0.5}, ("ideal",), "scratch", epochs=1
    )
    sys.modules.pop("tests_own_net", None)


def test_what_cannot_be_priced_is_said_before_training(own: PruneConfig, tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match=r"avg_pool3d.*--unknown vector"):
        prune.run(own, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    found = prune.run(dataclasses.replace(own, unknown="vector"), tmp_path / "run")
    assert found.nonzeros < found.weights
    assert load_pruned(tmp_path / "run")(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_a_network_of_ones_own_that_changed_is_another_study(own: PruneConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(own, unknown="vector")
    found = prune.run(config, tmp_path / "run")
    assert prune.run(config, tmp_path / "run") == found
    (tmp_path / "tests_own_net.py").write_text(OWN.replace("nn.ReLU(), nn.Conv2d", "nn.Tanh(), nn.Conv2d"))
    with pytest.raises(ConfigError, match="holds a study with model_sha256"):
        prune.run(config, tmp_path / "run")


def test_data_of_ones_own_that_changed_are_another_study(monkeypatch, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    offset = 0

    def read(root: Path, part: Part) -> Arrays:
        images, labels = digits.read(root, part)
        return images + np.uint8(offset), labels

    module = ModuleType("tests_own_data")
    module.MINE = dataclasses.replace(digits.DATA_SET, name="mine", read=read)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tests_own_data", module)
    config = dataclasses.replace(CONFIG, data="tests_own_data:MINE", targets=("ideal",), epochs=1)
    found = prune.run(config, tmp_path / "run")
    assert prune.run(config, tmp_path / "run") == found
    offset = 1
    with pytest.raises(ConfigError, match="holds a study with data_sha256"):
        prune.run(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return x, x", r"must give one tensor of \(pictures, 10 classes\) for one of \(1, 1, 8, 8\), gave tuple"),
        ("return x.flatten(1)[:, :9]", r"gave \(1, 9\)"),
        ("return x + y", "but raised TypeError: .*'y'; --debug shows where"),
    ],
)
@pytest.mark.parametrize("command", ["train", "prune", "search"])
def test_networks_that_do_not_classify_are_refused_before_training(  # type: ignore[no-untyped-def]
    own: PruneConfig, tmp_path: Path, monkeypatch, command, body, message
) -> None:
    forward = f"class Net(nn.Module):\n    def forward(self, x{', y' * ('y' in body)}):\n        {body}\n"
    head = 'from torch import nn\nENTRIES = {"net": {"input_shape": (1, 8, 8), "num_classes": 10}}\n'
    (tmp_path / "tests_own_net.py").write_text(f"{head}{forward}def create(num_classes):\n    return Net()\n")
    words = {
        "train": ["--out", str(tmp_path / "w.safetensors")],
        "prune": ["--scratch", "--method", "random", "--out", str(tmp_path / "run")],
        "search": ["--target", "ideal", "--budget", "latency=0.7x", "--weights", str(tmp_path / "no.safetensors")],
    }[command]
    if command == "search":
        save_weights(nn.Module(), tmp_path / "no.safetensors")
        words += ["--out", str(tmp_path / "run")]
    shown = CliRunner().invoke(app, [command, own.model, "--data", "digits", *words])
    assert isinstance(shown.exception, ConfigError), shown.exception
    assert re.search(message, str(shown.exception))


def test_a_finished_run_is_priced_on_another_machine(folder: Path) -> None:
    shown = CliRunner().invoke(app, ["simulate", str(folder), "--target", "eyeriss_v2"])
    assert shown.exit_code == 0
    subject = Subject.named(str(folder))
    assert subject.name == "digits_cnn"
    small, dense = subject.graph, lower(build("digits_cnn"), example_input("digits_cnn"))
    assert target("eyeriss_v2").simulate(small).latency_s < target("eyeriss_v2").simulate(dense).latency_s
    shown = CliRunner().invoke(app, ["simulate", str(folder), "--target", "ideal", "--input", "1,1,8,8"])
    assert "a finished run has its own weights and input" in str(shown.exception)


def test_a_folder_is_not_taken_for_a_network_of_its_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path / "resnet8")
    monkeypatch.chdir(tmp_path)
    assert Subject.named("resnet8").graph.name == "resnet8"
    assert Subject.named("./resnet8").name == "digits_cnn"
