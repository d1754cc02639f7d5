"""A study on disk: finished phases are never computed again, another study's are never mixed in, nobody's files go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from codesign import study as studies
from codesign.study import Study
from reports.html import REPORT_FIGURES
from workloads.errors import ConfigError, DataError
from workloads.store import read_json, write_json

CONFIG = {"model": "digits_cnn", "seed": 0, "budgets": ("latency=0.6x",), "weights": None}


def files(folder: Path) -> dict[str, bytes]:
    """Contents of every file, by path below the folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Counted:
    """A phase's work, counted."""

    def __init__(self, result: Any) -> None:
        self.result, self.calls = result, 0

    def __call__(self) -> Any:
        self.calls += 1
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


def run_phase(study: Study, name: str, work: Counted) -> Any:
    """A phase whose result is a tuple, kept as a list."""
    return study.phase(name, work, list, tuple)


class TestPhases:
    def test_a_finished_phase_is_not_computed_again(self, tmp_path: Path) -> None:
        work = Counted((1, 2))
        assert run_phase(Study.create(tmp_path, CONFIG), "front", work) == (1, 2)
        assert run_phase(Study.create(tmp_path, CONFIG), "front", work) == (1, 2)
        assert run_phase(Study.open(tmp_path), "front", Counted((7, 7))) == (1, 2)
        assert work.calls == 1

    def test_a_result_of_another_version_is_one_line(self, tmp_path: Path) -> None:
        study = Study.create(tmp_path, CONFIG)
        run_phase(study, "front", Counted((1, 2)))
        for load in (lambda result: result["choices"], lambda result: int(result), lambda result: result.choices):
            with pytest.raises(ConfigError, match=r"front\.json: not what this version writes \((Type|Attribute)Error"):
                study.phase("front", Counted(1), load=load)

    def test_phases_are_apart(self, tmp_path: Path) -> None:
        study, first, second = Study.create(tmp_path, CONFIG), Counted((1,)), Counted((2,))
        assert (run_phase(study, "front", first), run_phase(study, "test", second)) == ((1,), (2,))
        assert (first.calls, second.calls) == (1, 1)
        assert study.has("front")
        assert not study.has("pick")

    @pytest.mark.parametrize("error", [RuntimeError("crash"), KeyboardInterrupt()])
    def test_a_phase_that_fails_leaves_nothing_and_runs_again(self, tmp_path: Path, error: BaseException) -> None:
        study = Study.create(tmp_path, CONFIG)
        run_phase(study, "front", Counted((1,)))
        before = files(tmp_path)
        with pytest.raises(type(error)):
            run_phase(study, "pick", Counted(error))
        assert files(tmp_path) == before
        again = Counted((3,))
        assert run_phase(Study.create(tmp_path, CONFIG), "pick", again) == (3,)
        assert again.calls == 1

    def test_seconds_of_finished_phases(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        study, clock = Study.create(tmp_path, CONFIG), iter([10.0, 12.5, 100.0, 100.25])
        monkeypatch.setattr(studies.time, "perf_counter", lambda: next(clock))
        run_phase(study, "front", Counted((1,)))
        run_phase(study, "pick", Counted((2,)))
        write_json(study.path("result"), {"met": True})  # no phase
        assert study.seconds() == {"front": 2.5, "pick": 0.25}


class TestOneConfiguration:
    @pytest.mark.parametrize(
        ("changed", "said"),
        [
            ({"seed": 1}, "seed=0, asked for 1"),
            ({"budgets": ("latency=0.5x",)}, r"budgets=\['latency=0.6x'\], asked for \['latency=0.5x'\]"),
            ({"weights": "w.safetensors"}, "weights=None, asked for 'w.safetensors'"),
            ({"rate": 0.1}, "rate=None, asked for 0.1"),
        ],
    )
    def test_another_one_is_refused_by_key(self, tmp_path: Path, changed: dict[str, Any], said: str) -> None:
        run_phase(Study.create(tmp_path, CONFIG), "front", Counted((1,)))
        before = files(tmp_path)
        with pytest.raises(ConfigError, match=f"holds a study with {said}; choose another --out, or --overwrite"):
            Study.create(tmp_path, {**CONFIG, **changed})
        assert files(tmp_path) == before

    def test_a_key_that_is_gone(self, tmp_path: Path) -> None:
        Study.create(tmp_path, {**CONFIG, "rate": 0.1})
        write_json(tmp_path / "front.json", {})
        with pytest.raises(ConfigError, match=r"rate=0.1, asked for None"):
            Study.create(tmp_path, CONFIG)

    def test_what_matters_later_may_still_change(self, tmp_path: Path) -> None:
        later = {"front": ("budgets",), "finetune": ("epochs",)}
        first = {**CONFIG, "epochs": 1}
        run_phase(Study.create(tmp_path, first, later=later), "sensitivity", Counted((1,)))
        raised = {**first, "budgets": ["latency=0.9x"], "epochs": 2}
        study = Study.create(tmp_path, raised, later=later)
        assert Study.open(tmp_path).config == raised
        assert run_phase(study, "sensitivity", Counted((9,))) == (1,)
        run_phase(study, "front", Counted((2,)))
        with pytest.raises(ConfigError, match="holds a study with budgets"):
            Study.create(tmp_path, {**raised, "budgets": ["latency=0.5x"]}, later=later)
        with pytest.raises(ConfigError, match="holds a study with seed"):
            Study.create(tmp_path, {**raised, "seed": 7}, later=later)
        Study.create(tmp_path, {**raised, "epochs": 3}, later=later)
        assert Study.open(tmp_path).config["epochs"] == 3

    def test_order_and_tuples_do_not_matter(self, tmp_path: Path) -> None:
        Study.create(tmp_path, CONFIG)
        Study.create(tmp_path, dict(reversed(CONFIG.items())) | {"budgets": ["latency=0.6x"]})
        assert Study.open(tmp_path).config == {**CONFIG, "budgets": ["latency=0.6x"]}


class TestOverwrite:
    WRITTEN = ("plan.json", "result.json", "report.json", "report.html", "model.safetensors", "training.pt")
    MINE = ("notes.txt", ".film.part", "my.safetensors", "old.pt", "page.html", "figures/mine.png", "below/plan.json")

    def fill(self, folder: Path, names: tuple[str, ...]) -> None:
        for name in names:
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text('{"mine": 1}')

    def test_clears_what_a_study_wrote_and_nothing_else(self, tmp_path: Path) -> None:
        study = Study.create(tmp_path, CONFIG)
        for phase in ("sensitivity", "front", "pick", "finetune", "test"):
            run_phase(study, phase, Counted((1,)))
        self.fill(tmp_path, self.WRITTEN)
        self.fill(tmp_path, tuple(f"figures/{name}.png" for name in REPORT_FIGURES))
        self.fill(tmp_path, (".front.json.999999999-2.part",))
        self.fill(tmp_path, self.MINE)
        started = Study.create(tmp_path, {**CONFIG, "seed": 1}, overwrite=True)
        assert set(files(tmp_path)) == {"config.json", *self.MINE}
        assert Study.open(tmp_path).config["seed"] == started.config["seed"] == 1
        work = Counted((2,))
        assert run_phase(started, "front", work) == (2,)

    def test_of_a_finished_study_alone_leaves_only_its_configuration(self, tmp_path: Path) -> None:
        run_phase(Study.create(tmp_path, CONFIG), "front", Counted((1,)))
        self.fill(tmp_path, tuple(f"figures/{name}.png" for name in REPORT_FIGURES))
        Study.create(tmp_path, CONFIG, overwrite=True)
        assert [path.name for path in tmp_path.iterdir()] == ["config.json"]

    def test_reports_of_several_targets_go_too(self, tmp_path: Path) -> None:
        study = Study.create(tmp_path, {**CONFIG, "targets": ["a", "b"]})
        run_phase(study, "front", Counted((1,)))
        for place in ("a", "b/figures"):
            (tmp_path / place).mkdir(parents=True)
        self.fill(tmp_path, ("a/report.html", "a/report.json", f"b/figures/{REPORT_FIGURES[0]}.png", "b/mine.txt"))
        Study.create(tmp_path, CONFIG, overwrite=True)
        assert set(files(tmp_path)) == {"config.json", "b/mine.txt"}

    @pytest.mark.parametrize("name", ["notes.json", "my.safetensors", "config.json"])
    def test_a_folder_without_a_study_is_never_cleared(self, tmp_path: Path, name: str) -> None:
        self.fill(tmp_path, (name,))  # a config.json of another program
        before = files(tmp_path)
        with pytest.raises(ConfigError, match="not"):
            Study.create(tmp_path, CONFIG, overwrite=True)
        assert files(tmp_path) == before

    def test_of_an_empty_folder_starts_a_study(self, tmp_path: Path) -> None:
        assert Study.create(tmp_path / "new", CONFIG, overwrite=True).path("config").exists()


class TestFolders:
    def test_made_with_its_parents(self, tmp_path: Path) -> None:
        study = Study.create(tmp_path / "a" / "b", CONFIG)
        assert read_json(study.folder / "config.json") == {**CONFIG, "budgets": ["latency=0.6x"]}

    def test_not_empty_and_no_study(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("text")
        with pytest.raises(ConfigError, match="not empty and not a study; choose another --out"):
            Study.create(tmp_path, CONFIG)
        assert files(tmp_path) == {"thesis.tex": b"text"}

    def test_another_program_s_configuration(self, tmp_path: Path) -> None:
        for text in ('{"architectures": ["ResNet"]}', "[]", '"text"'):
            (tmp_path / "config.json").write_text(text)
            for attempt in (lambda: Study.create(tmp_path, CONFIG), lambda: Study.open(tmp_path)):
                with pytest.raises(ConfigError, match=r"config\.json: not the configuration of a study"):
                    attempt()

    def test_a_file_where_the_folder_should_be(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        for folder in (tmp_path / "file", tmp_path / "file" / "below"):
            with pytest.raises(ConfigError, match=r"cannot be written .*; choose another --out"):
                Study.create(folder, CONFIG)

    def test_a_folder_that_may_not_be_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object, **__: object) -> None:  # root may write anywhere, so permissions would not do
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "write_bytes", refuse)
        with pytest.raises(DataError, match=r"cannot be written \(Permission denied\)"):
            Study.create(tmp_path / "new", CONFIG)

    def test_opening_what_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"config\.json: cannot be read"):
            Study.open(tmp_path)


class TestWholeOrNotAtAll:
    def test_killed_before_the_rename(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        study = Study.create(tmp_path, CONFIG)
        run_phase(study, "front", Counted((1,)))

        def kill(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", kill)
            with pytest.raises(KeyboardInterrupt):
                run_phase(study, "pick", Counted((2,)))
            with pytest.raises(KeyboardInterrupt):
                write_json(study.path("front"), {"other": 1})
        resumed = Study.create(tmp_path, CONFIG)
        assert not resumed.has("pick")
        assert run_phase(resumed, "front", Counted((9,))) == (1,)
        work = Counted((2,))
        assert run_phase(resumed, "pick", work) == (2,)
        assert work.calls == 1

    def test_killed_at_the_very_first_write(self, tmp_path: Path) -> None:
        (tmp_path / ".config.json.999999999-2.part").write_text('{"mod')
        assert Study.create(tmp_path, CONFIG).config == CONFIG
        assert set(files(tmp_path)) == {"config.json"}

    def test_what_is_no_json_writes_nothing(self, tmp_path: Path) -> None:
        write_json(tmp_path / "a.json", {"kept": 1})
        with pytest.raises(TypeError):
            write_json(tmp_path / "a.json", {"bad": object()})
        assert files(tmp_path) == {"a.json": b'{\n "kept": 1\n}\n'}

    def test_no_temporary_file_stays(self, tmp_path: Path) -> None:
        write_json(tmp_path / "a.json", [1, 2])
        assert [path.name for path in tmp_path.iterdir()] == ["a.json"]

    @pytest.mark.parametrize("content", [b'{"a": ', b"\xff\xfe\x00", b""])
    def test_a_damaged_file_is_named(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(ConfigError, match=r"a\.json: not JSON"):
            read_json(tmp_path / "a.json")

    def test_floats_come_back_exactly(self, tmp_path: Path) -> None:
        values = [0.1 + 0.2, 1e-300, 5e-324, 123456789.123456789]
        write_json(tmp_path / "a.json", values)
        assert json.loads((tmp_path / "a.json").read_text()) == values
