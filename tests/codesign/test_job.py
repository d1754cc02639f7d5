"""The main job from end to end, on a network that is trained here: real digits, seconds a run."""

from __future__ import annotations

import dataclasses
import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import reports.html
import workloads.data
from accel_models import target, targets
from codesign.costs import graph_costs
from codesign.job import Job, Outcome, SearchConfig, check, load_outcome, run, study_config, write_study_report
from codesign.show import console
from codesign.solve import solve
from codesign.space import price_table
from codesign.study import Study
from pruning import checkpoint, training
from pruning.evaluation import accuracy, recalibrate
from pruning.masks import bake
from pruning.plan import PruningPlan
from pruning.sensitivity import Sensitivity
from workloads.data import load
from workloads.errors import CodesignError, ConfigError, PlanError
from workloads.lowering import lower
from workloads.models import build, example_input
from workloads.models.weights import load_weights, save_weights
from workloads.store import write_json

EXAMPLE = (example_input("digits_cnn"),)
PHASES = ("sensitivity", "front", "pick", "finetune", "test")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the digits network after four epochs."""
    model = build("digits_cnn")
    data = {split: load("digits", split) for split in ("train", "heldout")}
    training.fit(model, data["train"], epochs=4, lr=0.1, heldout=data["heldout"], device="cpu", progress=False)
    assert accuracy(model, data["heldout"]) > 0.7
    path = tmp_path_factory.mktemp("trained") / "digits_cnn.safetensors"
    save_weights(model, path)
    return path


def config_of(weights: Path, **changes: Any) -> SearchConfig:
    """A search of seconds."""
    plain = SearchConfig(
        model="digits_cnn", data="digits", target="ethos_u55_256", budgets=("latency=0.6x",), weights=str(weights),
        epochs=2, images=100, generations=5, measured=2,
    )  # fmt: skip
    return dataclasses.replace(plain, **changes)


@pytest.fixture(scope="session")
def finished(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A whole run, never touched afterwards: its report included."""
    return run(config_of(trained), tmp_path_factory.mktemp("runs") / "ethos", device="cpu")


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the pictures, which take longer than the rest of such a small search."""

    def write(folder: Path, record: object) -> Path:
        assert dataclasses.asdict(record)["title"]  # type: ignore[call-overload]
        (folder / "report.html").write_text("page")
        return folder / "report.html"

    monkeypatch.setattr(reports.html, "write_report", write)


def priced(outcome: Outcome, name: str) -> dict[str, float]:
    """Costs of the outcome's network, lowered and simulated anew."""
    batch = (load("digits", "heldout").tensor(slice(0, 32)),)
    machine = target(name)
    graph = machine.native(lower(outcome.model, EXAMPLE, calibration=batch))
    return graph_costs(machine.simulate(graph), graph)


def result_of(folder: Path, phase: str) -> Any:
    """What a phase found, without the seconds that it took."""
    return json.loads((folder / f"{phase}.json").read_text())["result"]


def stored(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "result.json").read_text()))


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


class TestWholeRun:
    def test_files(self, finished: Outcome) -> None:
        names = {path.name for path in finished.folder.iterdir()}
        wanted = {"config", "plan", "result", "report", *PHASES}
        assert {f"{name}.json" for name in wanted} | {"model.safetensors", "report.html"} <= names
        assert not [name for name in names if name.endswith(".part") or name.startswith(".")]
        assert finished.report == finished.folder / "report.html"

    def test_the_budget_is_kept_by_the_simulated_pruned_graph(self, finished: Outcome) -> None:
        costs = priced(finished, "ethos_u55_256")
        assert costs["latency"] <= 0.6 * finished.dense.latency_s == pytest.approx(finished.budgets["latency"])
        assert costs["latency"] == finished.pruned.latency_s
        assert finished.met
        assert stored(finished.folder)["costs"] == costs

    def test_the_model_is_the_plan_fine_tuned(self, finished: Outcome) -> None:
        removed = finished.plan.removed
        assert removed
        assert all(v % 8 == 0 for v in removed.values()), "counts that the target likes"
        dense = build("digits_cnn")
        load_weights(dense, Path(str(json.loads((finished.folder / "config.json").read_text())["weights"])))
        pruned = finished.plan.apply(dense, EXAMPLE)
        shapes = {key: tensor.shape for key, tensor in pruned.state_dict().items()}
        assert {key: tensor.shape for key, tensor in finished.model.state_dict().items()} == shapes
        assert not same_weights(pruned, finished.model), "fine-tuning changed nothing"

    def test_accuracies_are_those_of_the_networks(self, finished: Outcome, trained: Path) -> None:
        dense, test, heldout = build("digits_cnn", weights=trained), load("digits", "test"), load("digits", "heldout")
        heldout = heldout.take(100)
        pruned = finished.plan.apply(dense, EXAMPLE)
        recalibrate(pruned, load("digits", "train"))
        assert finished.accuracies == {
            "dense_heldout": accuracy(dense, heldout),
            "pick_heldout": accuracy(pruned, heldout),
            "tuned_heldout": accuracy(finished.model, heldout),
            "dense_test": accuracy(dense, test),
            "test": accuracy(finished.model, test),
        }
        assert finished.accuracies["test"] > 0.6
        assert (stored(finished.folder)["heldout_images"], stored(finished.folder)["test_images"]) == (100, 360)

    def test_the_pick_is_the_most_accurate_measured_candidate(self, finished: Outcome) -> None:
        pick = result_of(finished.folder, "pick")
        usable = [item for item in pick["measured"] if item["feasible"]]
        assert len(usable) == 2
        assert pick["pick_heldout"] == max(item["heldout"] for item in usable)
        assert pick["choice"] in [item["choice"] for item in usable]
        assert all(item["costs"]["latency"] <= finished.budgets["latency"] for item in usable)
        assert result_of(finished.folder, "front")["exact"]["choices"] == pick["measured"][0]["choice"]

    def test_the_table_and_the_simulation_agree(self, finished: Outcome) -> None:
        # channels only, on a machine that does not skip zeros: the table is exact
        front, pick = result_of(finished.folder, "front"), result_of(finished.folder, "pick")
        assert stored(finished.folder)["table_cost"] == pytest.approx(finished.pruned.latency_s, rel=1e-12)
        for item in pick["measured"]:
            row = front["choices"].index(item["choice"])
            for metric, values in front["costs"].items():
                assert values[row] == pytest.approx(item["costs"][metric], rel=1e-12)

    def test_reloads_with_equal_outputs_and_prices(self, finished: Outcome) -> None:
        again, images = load_outcome(finished.folder), load("digits", "heldout").tensor(slice(0, 50))
        with torch.no_grad():
            assert torch.equal(again.model.eval()(images), finished.model.eval()(images))
        fields = [f.name for f in dataclasses.fields(Outcome) if f.name != "model"]
        assert {name: getattr(again, name) for name in fields} == {name: getattr(finished, name) for name in fields}
        assert again.pruned.latency_s == stored(finished.folder)["costs"]["latency"]
        assert priced(again, "ethos_u55_256")["latency"] == again.pruned.latency_s

    def test_the_model_file_fits_the_plan_alone(self, finished: Outcome) -> None:
        """What a user does who takes the two files elsewhere."""
        small = PruningPlan.load(finished.folder / "plan.json").apply(build("digits_cnn"), EXAMPLE)
        load_weights(small, finished.folder / "model.safetensors")
        assert same_weights(small, finished.model)

    def test_the_report_is_written_again_from_the_files(self, finished: Outcome, tmp_path: Path) -> None:
        folder = copy_of(finished.folder, tmp_path)
        page = (folder / "report.html").read_text()
        (folder / "report.html").unlink()
        assert write_study_report(folder) == folder / "report.html"
        assert (folder / "report.html").read_text().replace(str(folder), str(finished.folder)) == page
        assert "digits_cnn pruned for Arm Ethos-U55-256" in page

    def test_running_it_again_computes_no_phase(
        self, finished: Outcome, trained: Path, monkeypatch: pytest.MonkeyPatch, no_report: None, tmp_path: Path
    ) -> None:
        folder = copy_of(finished.folder, tmp_path)
        forbid(monkeypatch, "pruning.sensitivity.measure", "codesign.job.search", "pruning.training.fit")
        forbid(monkeypatch, "pruning.evaluation.accuracy")
        again = run(config_of(trained), folder, device="cpu")
        assert (again.accuracies, again.plan) == (finished.accuracies, finished.plan)
        assert same_weights(again.model, finished.model)


class TestPick:
    """Of several candidates the most accurate of those that really keep the budget."""

    @pytest.fixture
    def job(self, finished: Outcome, trained: Path, tmp_path: Path) -> Job:
        """A search that is finished but for the pick."""
        folder = copy_of(finished.folder, tmp_path)
        forget(folder, "pick", "plan")
        return prepared(config_of(trained, measured=3), folder, resumes=config_of(trained))

    def pick(
        self, job: Job, monkeypatch: pytest.MonkeyPatch, accuracies: list[float], latencies: list[float]
    ) -> dict[str, Any]:
        """The pick where candidates have these accuracies and shares of the dense latency, in their order."""
        answers = iter([*accuracies, 0.5])  # the last is the dense network's
        costs = iter(latencies)

        def priced_as(*_: object) -> dict[str, float]:
            return {**job.dense_costs, "latency": next(costs) * job.dense_costs["latency"]}

        assert job.budgets["latency"] == 0.6 * job.dense_costs["latency"]  # before prices are replaced
        monkeypatch.setattr("pruning.evaluation.accuracy", lambda *_, **__: next(answers))
        monkeypatch.setattr("codesign.job.graph_costs", priced_as)
        _, plan = job._pick(job.front)
        found = dict(result_of(job.study.folder, "pick"))
        assert plan == PruningPlan.load(job.study.path("plan")) == job.plan(found["choice"])
        return found

    @pytest.mark.parametrize("best", [0, 1, 2])
    def test_the_most_accurate(self, job: Job, monkeypatch: pytest.MonkeyPatch, best: int) -> None:
        accuracies = [0.3, 0.3, 0.3]
        accuracies[best] = 0.7
        found = self.pick(job, monkeypatch, accuracies, [0.5, 0.5, 0.5])
        assert len(found["measured"]) == 3
        assert found["choice"] == found["measured"][best]["choice"]
        assert (found["pick_heldout"], found["dense_heldout"]) == (0.7, 0.5)

    def test_candidates_that_turn_out_too_dear_do_not_count(self, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
        found = self.pick(job, monkeypatch, [0.9, 0.3, 0.9, 0.4, 0.2], [0.7, 0.5, 0.61, 0.59, 0.6])
        assert [item["feasible"] for item in found["measured"]] == [False, True, False, True, True]
        assert found["choice"] == found["measured"][3]["choice"]

    def test_none_that_keeps_the_budget(self, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
        one = dataclasses.replace(job, config=dataclasses.replace(job.config, measured=1))
        with pytest.raises(PlanError, match=r"no candidate keeps the budget .* latency reaches .*; raise the budget"):
            self.pick(one, monkeypatch, [0.9] * 5, [0.61] * 5)
        assert not job.study.has("pick")
        assert not job.study.has("plan")

    def test_candidates_are_distinct_feasible_and_the_exact_one_first(self, job: Job) -> None:
        choices = [tuple(int(i) for i in choice) for choice in job._candidates(job.front)]
        assert choices[0] == job.front.exact.choices
        assert len(set(choices)) == len(choices) == 1 + 4 * 3
        rows = [job.front.choices.tolist().index(list(choice)) for choice in choices]
        assert job.front.feasible[rows].all()
        assert (np.diff(job.front.loss[rows[1:]]) >= 0).all()


def empty_sensitivity(ranking: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """A table that tells of nothing but the order of units."""
    return Sensitivity("measured", 1, "heldout", "fp32", False, 0.0, 1.0, {}, ranking, {}, {}).to_dict()


def forget(folder: Path, *names: str) -> None:
    """Take back finished phases."""
    for name in names:
        (folder / f"{name}.json").unlink()


def copy_of(folder: Path, into: Path) -> Path:
    """A finished study that a test may change."""
    return Path(shutil.copytree(folder, into / "copy"))


def forbid(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Make functions fail if they are called."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    for name in names:
        monkeypatch.setattr(name, fail)


@pytest.mark.usefixtures("no_report")
class TestSameSeed:
    def test_a_new_folder_gives_the_same_bytes(self, finished: Outcome, trained: Path, tmp_path: Path) -> None:
        again = run(config_of(trained), tmp_path / "again", device="cpu")
        self.check_same(again.folder, finished.folder)
        assert again.accuracies == finished.accuracies

    def test_another_seed_searches_otherwise(self, finished: Outcome, trained: Path, tmp_path: Path) -> None:
        job = prepared(config_of(trained, seed=1), tmp_path / "other")
        front = job._search(job._sensitivity())
        assert not np.array_equal(front.choices, result_of(finished.folder, "front")["choices"])

    def test_another_seed_tunes_otherwise(self, finished: Outcome, trained: Path, tmp_path: Path) -> None:
        folder = copy_of(finished.folder, tmp_path)
        forget(folder, "finetune", "test", "result")
        (folder / "training.pt").unlink()
        changed = config_of(trained, seed=1)
        write_json(folder / "config.json", study_config(changed))
        again = run(changed, folder, device="cpu")
        assert again.plan == finished.plan
        assert not same_weights(again.model, finished.model)

    @pytest.mark.slow
    def test_another_process_with_another_hash_seed(self, finished: Outcome, trained: Path, tmp_path: Path) -> None:
        code = (
            "import sys; from pathlib import Path\n"
            "import reports.html; reports.html.write_report = lambda folder, record: folder / 'report.html'\n"
            "from codesign.job import SearchConfig, run\n"
            f"run(SearchConfig(**{config_of(trained).to_dict()!r}), Path({str(tmp_path / 'there')!r}), device='cpu')"
        )
        environment = {**os.environ, "PYTHONHASHSEED": "4242", "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True, timeout=300)
        self.check_same(tmp_path / "there", finished.folder)

    def check_same(self, folder: Path, other: Path) -> None:
        for name in ("config.json", "plan.json", "result.json", "model.safetensors"):
            assert (folder / name).read_bytes() == (other / name).read_bytes(), name
        for phase in PHASES:
            assert result_of(folder, phase) == result_of(other, phase), phase


def prepared(config: SearchConfig, folder: Path, resumes: SearchConfig | None = None) -> Job:
    """A job before its first phase, or in the folder of another configuration."""
    return Job(config, Study.create(folder, study_config(resumes or config)), "cpu", console())


class CrashError(Exception):
    """Stands for a power cut."""


def after(function: Callable[..., Any], calls: int) -> Callable[..., Any]:
    """The function, which does its work and crashes at its n-th call."""
    done = []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        done.append(1)
        if len(done) == calls:
            raise CrashError
        return result

    return wrapped


@pytest.mark.usefixtures("no_report")
class TestResume:
    @pytest.mark.parametrize(
        "lost",
        [
            ["result"],
            ["result", "test"],
            ["result", "test", "finetune"],  # its checkpoint is complete
            ["result", "test", "finetune", "training.pt", "model.safetensors"],
        ],
    )
    def test_with_files_missing(
        self, finished: Outcome, trained: Path, tmp_path: Path, lost: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = copy_of(finished.folder, tmp_path)
        for name in lost:
            (folder / (name if "." in name else f"{name}.json")).unlink()
        forbid(monkeypatch, "pruning.sensitivity.measure", "codesign.job.search")
        again = run(config_of(trained), folder, device="cpu")
        assert again.accuracies == finished.accuracies
        assert again.pruned == finished.pruned
        assert same_weights(again.model, finished.model)
        assert (folder / "result.json").read_bytes() == (finished.folder / "result.json").read_bytes()

    @pytest.mark.parametrize(
        ("place", "calls", "left"),
        [
            ("pruning.sensitivity.measure", 1, []),
            ("codesign.job.search", 1, ["sensitivity"]),
            ("pruning.plan.PruningPlan.apply", 2, ["sensitivity", "front"]),  # between two candidates
            ("pruning.checkpoint.save", 1, ["sensitivity", "front", "pick"]),  # after the first epoch of two
            ("workloads.models.weights.save_weights", 1, ["sensitivity", "front", "pick"]),
        ],
    )
    def test_after_a_crash(
        self, finished: Outcome, trained: Path, tmp_path: Path, place: str, calls: int, left: list[str]
    ) -> None:
        folder = tmp_path / "crashed"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(place, after(pkgutil.resolve_name(place), calls))
            with pytest.raises(CrashError):
                run(config_of(trained), folder, device="cpu")
        assert [phase for phase in PHASES if (folder / f"{phase}.json").exists()] == left
        again = run(config_of(trained), folder, device="cpu")
        assert again.accuracies == finished.accuracies
        assert again.plan == finished.plan
        assert same_weights(again.model, finished.model)

    def test_fine_tuning_goes_on_after_its_last_epoch(
        self, finished: Outcome, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = copy_of(finished.folder, tmp_path)
        for name in ("result.json", "test.json", "finetune.json", "model.safetensors", "training.pt"):
            (folder / name).unlink()
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "save", after(checkpoint.save, 1))
            with pytest.raises(CrashError):
                run(config_of(trained), folder, device="cpu")
        epochs: list[int] = []
        whole = training._Run.epoch

        def epoch(*args: Any) -> None:
            epochs.append(1)
            whole(*args)

        monkeypatch.setattr(training._Run, "epoch", epoch)
        again = run(config_of(trained), folder, device="cpu")
        assert len(epochs) == 1
        assert again.accuracies == finished.accuracies

    def test_another_budget_before_the_front_measures_nothing_anew(
        self, finished: Outcome, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = copy_of(finished.folder, tmp_path)
        for path in folder.glob("*"):
            if path.is_file() and path.name not in ("config.json", "sensitivity.json"):
                path.unlink()
        forbid(monkeypatch, "pruning.sensitivity.measure")
        again = run(config_of(trained, budgets=("latency=0.8x",), epochs=0), folder, device="cpu")
        assert again.met
        assert again.pruned.latency_s > finished.pruned.latency_s

    def test_another_configuration_is_refused(self, finished: Outcome, trained: Path) -> None:
        before = {path: path.read_bytes() for path in finished.folder.glob("*.json")}
        with pytest.raises(ConfigError, match="holds a study with epochs=2, asked for 3; choose another --out"):
            run(config_of(trained, epochs=3), finished.folder, device="cpu")
        assert {path: path.read_bytes() for path in finished.folder.glob("*.json")} == before

    def test_overwriting_a_finished_study(self, finished: Outcome, trained: Path, tmp_path: Path) -> None:
        folder = copy_of(finished.folder, tmp_path)
        changed = config_of(trained, budgets=("latency=0.8x",), epochs=0)
        again = run(changed, folder, device="cpu", overwrite=True)
        assert again.met
        assert again.plan != finished.plan
        assert load_outcome(folder).accuracies == again.accuracies


@pytest.mark.usefixtures("no_report")
class TestTestSplit:
    def test_is_not_looked_at_before_the_test_phase(
        self, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loaded: dict[str, set[str]] = {name: set() for name in ("", *PHASES)}
        measured: dict[str, set[str]] = {name: set() for name in PHASES}
        phases = [""]

        def watched_load(name: str, split: str, **options: Any) -> Any:
            loaded[phases[-1]].add(split)
            return load(name, split, **options)

        def watched_accuracy(model: Any, data: Any, **options: Any) -> float:
            measured[phases[-1]].add(data.split)
            return accuracy(model, data, **options)

        def phase(study: Study, name: str, *rest: Any, **options: Any) -> Any:
            phases.append(name)
            return whole(study, name, *rest, **options)

        whole = Study.phase
        monkeypatch.setattr(workloads.data, "load", watched_load)
        monkeypatch.setattr("pruning.evaluation.accuracy", watched_accuracy)
        monkeypatch.setattr(Study, "phase", phase)
        run(config_of(trained, epochs=1, measured=1), tmp_path / "watched", device="cpu")
        assert tuple(phases[1:]) == PHASES
        assert [name for name, splits in loaded.items() if "test" in splits] == ["test"]
        assert measured == {
            "sensitivity": set(),
            "front": set(),
            "pick": {"heldout"},
            "finetune": {"heldout"},
            "test": {"test"},
        }
        found = result_of(tmp_path / "watched", "sensitivity")
        assert (found["split"], found["images"]) == ("heldout", 100)

    def test_accuracy_of_test_images_is_measured_once(
        self, trained: Path, finished: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = copy_of(finished.folder, tmp_path)
        for name in ("result", "test"):
            (folder / f"{name}.json").unlink()
        seen: list[str] = []

        def watched(model: Any, data: Any, *rest: Any, **options: Any) -> float:
            seen.append(data.split)
            return accuracy(model, data, *rest, **options)

        monkeypatch.setattr("pruning.evaluation.accuracy", watched)
        run(config_of(trained), folder, device="cpu")
        assert seen == ["test", "test"], "the dense network and the pruned one"


@pytest.mark.usefixtures("no_report")
class TestOtherSearches:
    def test_another_machine(self, trained: Path, tmp_path: Path) -> None:
        config = config_of(trained, target="ideal", budgets=("energy=0.7x",), epochs=0)
        found = run(config, tmp_path / "ideal", device="cpu")
        assert priced(found, "ideal")["energy"] == found.pruned.energy_j <= 0.7 * found.dense.energy_j
        assert found.met
        assert result_of(found.folder, "front")["metric"] == "energy"
        assert found.accuracies["tuned_heldout"] == found.accuracies["pick_heldout"], "nothing was tuned"

    @pytest.mark.parametrize(
        ("name", "densities", "granularity", "budgets"),
        [
            ("eyeriss_v2", (0.5,), "weight", ("latency=0.6x", "macs=0.7x")),
            ("snapdragon_855_cpu", (0.4,), "pattern", ("latency=0.7x",)),
        ],
    )
    def test_weights_too(
        self,
        trained: Path,
        tmp_path: Path,
        name: str,
        densities: tuple[float, ...],
        granularity: str,
        budgets: tuple[str, ...],
    ) -> None:
        weights = {"densities": densities, "granularity": granularity}
        found = run(
            config_of(trained, target=name, budgets=budgets, epochs=1, **weights), tmp_path / "sparse", device="cpu"
        )
        assert found.plan.masks
        graph = lower(found.model, EXAMPLE)
        for name_, zeros in found.plan.masks.items():
            assert zeros.is_exact
            assert zeros.density == pytest.approx(densities[0], abs=0.01)
            weight = found.model.get_parameter(f"{name_}.weight")
            kept = float((weight != 0).float().mean())
            assert kept == pytest.approx(densities[0], abs=0.1), "exact zeros that fine-tuning left alone"
            assert found.pruned.layer(name_).density == pytest.approx(kept, abs=1e-6)
        assert all(layer.sparsity is None for layer in graph if layer.name not in found.plan.masks)
        costs = priced(found, name)
        assert found.met
        assert all(costs[metric] <= budget for metric, budget in found.budgets.items())
        assert len(found.budgets) == len(budgets)
        again = load_outcome(found.folder)
        assert again.plan == found.plan
        assert same_weights(again.model, found.model)

    def test_a_choice_is_the_plan_with_its_own_mask(self, trained: Path, tmp_path: Path) -> None:
        config = config_of(trained, densities=(0.5, 0.2))
        job = prepared(config, tmp_path / "masks")
        order = {group.name: tuple(reversed(range(group.size))) for group in job.space.analysis.groups}
        write_json(job.study.path("sensitivity"), {"result": empty_sensitivity(order)})
        options = {"channels:block1.conv1": 2, "weights:block1.conv2": 1, "weights:block2.conv2": 2}
        plan = job.plan([options.get(variable.name, 0) for variable in job.space.variables])
        assert plan.channels == {"block1.conv1": tuple(range(16, 32))}, "the first 16 of the ranking"
        assert {name: zeros.density for name, zeros in plan.masks.items()} == {
            "block1.conv2": pytest.approx(0.5, abs=1e-3),
            "block2.conv2": pytest.approx(0.2, abs=1e-3),
        }
        weight = build("digits_cnn", weights=trained).get_parameter("block2.conv2.weight").detach().abs().numpy()
        kept = plan.masks["block2.conv2"].mask()
        assert weight[kept].min() >= weight[~kept].max(), "the largest weights stay"

    def test_both_of_two_budgets_count(self, trained: Path, tmp_path: Path) -> None:
        job = prepared(config_of(trained, budgets=("latency=0.9x", "size=0.4x")), tmp_path / "two")
        front = job._search(job._sensitivity())
        table = price_table(job.space, job.machine, job._sensitivity().monotone())
        alone = solve(table, {"latency": 0.9 * job.dense_costs["latency"]})
        assert front.metric == "latency"
        assert front.exact.cost["size"] <= 0.4 * job.dense_costs["size"] < alone.cost["size"]
        shares = {metric: front.costs[metric] / job.dense_costs[metric] for metric in ("latency", "size")}
        keeps = (shares["latency"] <= 0.9 + 1e-9) & (shares["size"] <= 0.4 + 1e-9)
        np.testing.assert_array_equal(front.feasible, keeps)
        assert not front.feasible.all()

    def test_groups_to_keep_and_multiple(self, trained: Path, tmp_path: Path) -> None:
        config = config_of(trained, keep=("block2.conv1",), multiple=16, budgets=("latency=0.8x",))
        space = prepared(config, tmp_path / "kept").space
        assert {v.of: [o.count for o in v.options] for v in space.variables} == {
            "conv": [32, 16],
            "block1.conv1": [32, 16],
            "block2.conv2": [64, 48, 32, 16],
        }


class TestRefused:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"model": "digits_cn"}, "did you mean 'digits_cnn'"),
            ({"target": "etos"}, "unknown target 'etos'"),
            ({"data": "digit"}, "unknown data set 'digit'"),
            ({"granularity": "weights"}, "unknown granularity 'weights'"),
            ({"densities": (0.5, 1.5)}, r"--density 1.5: must be above 0 and at most 1"),
            ({"densities": (0.0,)}, r"--density 0.0: must be above 0"),
            ({"budgets": ()}, "a search needs a budget"),
            ({"budgets": ("latency=0",)}, "must be greater than 0"),
            ({"budgets": ("latency=0.7x", "latency=0.5x")}, "latency has two"),
            ({"multiple": 0}, "--multiple 0: must be at least 1"),
            ({"multiple": -8}, "--multiple -8: must be at least 1"),
            ({"model": "lenet5"}, "data digits: its images are .*, lenet5 takes 1x28x28"),
        ],
    )
    def test_before_anything_is_written(self, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
        config = config_of(tmp_path / "w.safetensors", **changes)
        with pytest.raises(ConfigError, match=message) as caught:
            run(config, tmp_path / "out", device="cpu")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("budgets", [("latency=1x",), ("latency=1.5x", "size=2x")])
    def test_a_budget_that_the_dense_network_keeps(self, trained: Path, tmp_path: Path, budgets: tuple[str]) -> None:
        with pytest.raises(PlanError, match=r"the dense network keeps it .*nothing to prune; lower the budget"):
            run(config_of(trained, budgets=budgets), tmp_path / "out", device="cpu")

    def test_one_budget_of_two_may_be_kept_already(self, trained: Path, tmp_path: Path) -> None:
        prepared(config_of(trained, budgets=("latency=1.5x", "size=0.5x")), tmp_path / "out")._check_budgets()

    def test_an_impossible_budget_says_what_can_be_reached(
        self, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        forbid(monkeypatch, "pruning.sensitivity.measure")
        with pytest.raises(PlanError, match=r"latency can reach .* at the least"):
            run(config_of(trained, budgets=("latency=0.001x",)), tmp_path / "out", device="cpu")

    def test_everything_kept_leaves_nothing_to_choose(self, trained: Path, tmp_path: Path) -> None:
        keep = ("conv", "block1.conv1", "block2.conv1", "block2.conv2")
        with pytest.raises(PlanError, match="nothing can be chosen"):
            run(config_of(trained, keep=keep), tmp_path / "out", device="cpu")

    def test_every_registered_machine_is_allowed(self, tmp_path: Path) -> None:
        for name in targets():
            check(config_of(tmp_path, target=name))
        with pytest.raises(CodesignError, match="unknown target 'nowhere'"):
            check(config_of(tmp_path, target="nowhere"))

    def test_an_unfinished_study_is_not_loaded(self, finished: Outcome, tmp_path: Path) -> None:
        folder = copy_of(finished.folder, tmp_path)
        (folder / "result.json").unlink()
        for attempt in (load_outcome, write_study_report):
            with pytest.raises(ConfigError, match="not finished; run the same search again"):
                attempt(folder)

    def test_a_study_of_another_command(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"command": "prune", "model": "digits_cnn", "seed": 0}')
        (tmp_path / "result.json").write_text("{}")
        for attempt in (load_outcome, write_study_report):
            with pytest.raises(ConfigError, match="of codesign prune, not of a search") as caught:
                attempt(tmp_path)
            assert str(tmp_path / "config.json") in str(caught.value)

    @pytest.mark.parametrize(
        ("name", "keys", "said"),
        [
            ("result", ("budgets",), "result: field 'budgets' is missing"),
            ("result", ("test",), "result: field 'test' is missing"),
            ("result", ("costs", "energy"), "costs: energy is missing"),
            ("result", ("dense_costs", "size"), "dense_costs: size is missing"),
            ("result", ("dense", "layers"), "result.dense: .*layers"),
            ("pick", ("result",), "KeyError: 'result'"),
            ("pick", ("result", "choice"), "pick: field 'choice' is missing"),
            ("pick", ("result", "measured", 0, "costs", "size"), "costs: size is missing"),
            ("front", ("result", "exact"), "KeyError: 'exact'"),
            ("front", ("result", "costs", "size"), "KeyError: 'size'"),
            ("front", ("result", "loss", 0), "not of one length"),
        ],
    )
    def test_a_file_of_another_version(
        self, finished: Outcome, tmp_path: Path, name: str, keys: tuple[str | int, ...], said: str
    ) -> None:
        path = copy_of(finished.folder, tmp_path) / f"{name}.json"
        part = whole = json.loads(path.read_text())
        for key in keys[:-1]:
            part = part[key]
        del part[keys[-1]]
        for text in (json.dumps(whole), "[1]"):
            path.write_text(text)
            with pytest.raises(
                ConfigError, match=r"not what this version writes .*; run it again with --overwrite"
            ) as e:
                write_study_report(path.parent)
            assert str(path) in str(e.value)
            if text != "[1]":
                assert re.search(said, str(e.value))

    def test_a_configuration_of_another_version(self, finished: Outcome, tmp_path: Path) -> None:
        path = copy_of(finished.folder, tmp_path) / "config.json"
        config = json.loads(path.read_text())
        for changed, said in (
            ({"images": "many"}, "images: 'many', must be an integer"),
            ({"pace": 1}, "field 'pace'"),
        ):
            write_json(path, config | changed)
            with pytest.raises(ConfigError, match=rf"config\.json: not what this version writes \(.*{said}"):
                load_outcome(path.parent)

    @pytest.mark.parametrize(("phase", "number"), [("finetune", "tuned_heldout"), ("test", "dense_test")])
    def test_a_number_that_a_phase_lacks(
        self, finished: Outcome, trained: Path, tmp_path: Path, phase: str, number: str
    ) -> None:
        path = copy_of(finished.folder, tmp_path) / f"{phase}.json"
        whole = json.loads(path.read_text())
        del whole["result"][number]
        write_json(path, whole)
        with pytest.raises(ConfigError, match=rf"{phase}\.json: not what this version writes \(KeyError: '{number}'\)"):
            run(config_of(trained), path.parent, device="cpu")

    def test_a_model_file_of_another_study(self, finished: Outcome, trained: Path, tmp_path: Path) -> None:
        folder = copy_of(finished.folder, tmp_path)
        (folder / "model.safetensors").write_bytes(trained.read_bytes())
        with pytest.raises(CodesignError, match=r"model\.safetensors"):
            load_outcome(folder)


def test_configurations_survive_json(tmp_path: Path) -> None:
    config = config_of(tmp_path, densities=(0.5, 0.25), keep=("conv",), multiple=4)
    assert SearchConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_zeros_of_the_given_weights_stay_zeros(trained: Path, tmp_path: Path, no_report: None) -> None:
    model = build("digits_cnn", weights=trained)
    mask = torch.rand(model.block2.conv1.weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    save_weights(bake(model, {"block2.conv1.weight": mask}), tmp_path / "pruned.safetensors")
    config = config_of(tmp_path / "pruned.safetensors", keep=("block2.conv1", "conv"))
    run(config, tmp_path / "run", device="cpu")
    found = load_outcome(tmp_path / "run").model
    assert found.block2.conv1.weight.shape == mask.shape
    assert not found.block2.conv1.weight[~mask].any()
