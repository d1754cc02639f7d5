"""The command line: quick starts, true listings, and one clear line with exit code 2 for whatever is wrong."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from accel_models import target
from accel_models.validation.workload import layer_graph
from codesign import cli
from codesign.config import SearchConfig
from tests.accel_models.validation import builders
from workloads.models import build

BUDGET = ["--target", "ethos_u55_256", "--budget", "latency=0.6x"]


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command line."""
    monkeypatch.setattr(sys, "argv", ["codesign", *map(str, words)])
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


class TestQuickCommands:
    def test_it_runs_as_a_module(self) -> None:
        done = subprocess.run([sys.executable, "-m", "codesign", "models"], capture_output=True, text=True, check=True)
        assert "resnet20" in done.stdout

    @pytest.mark.parametrize("words", [["--help"], ["targets"], ["models"], ["search", "--help"]])
    def test_they_never_import_the_heavy_libraries(self, words: list[str]) -> None:
        code = (
            "import sys; from codesign import cli\n"
            f"sys.argv = ['codesign', *{words!r}]\n"
            "try: cli.main()\nexcept SystemExit: pass\n"
            "print([name for name in ('torch', 'matplotlib', 'scipy') if name in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]"

    def test_an_interrupt_says_how_to_go_on(self) -> None:
        code = (
            "import signal, sys; from codesign import cli\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background ignores it
            "cli.app.command('wait')(lambda: signal.raise_signal(signal.SIGINT))\n"
            "sys.argv = ['codesign', 'wait']; cli.main()"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (130, "")
        assert done.stderr == "interrupted; run the same command again to resume\n"

    def test_pricing_a_saved_graph_never_imports_torch(self, tmp_path: Path) -> None:
        code = (
            "import sys, accel_models, workloads.tables\n"
            "graph = workloads.tables.table('squeezenet1_1')\n"
            "for name in accel_models.targets(): accel_models.target(name).simulate(graph)\n"
            "print('torch' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "False"

    def test_targets_says_the_error_of_each_model(self, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
        code, out, _ = run(monkeypatch, capsys, "targets")
        assert code == 0
        assert "ethos_u55_256" in out
        assert "error" in out

    def test_one_target_lists_numbers_with_sources(self, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
        code, out, _ = run(monkeypatch, capsys, "targets", "ethos_u55_256")
        assert code == 0
        assert "clock_hz" in out
        assert "computed 8 together" in out

    def test_lower_then_simulate_the_file(self, monkeypatch, capsys, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
        graph, result = tmp_path / "g.json", tmp_path / "r.json"
        assert run(monkeypatch, capsys, "lower", "digits_cnn", "--out", graph)[0] == 0
        code, out, _ = run(monkeypatch, capsys, "simulate", graph, "--target", "ideal", "--json", result)
        assert code == 0
        assert "digits_cnn on Ideal" in out
        assert json.loads(result.read_text())[0]["target"] == "ideal"

    def test_a_table_or_a_layer_in_words_is_priced(self, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
        code, out, _ = run(monkeypatch, capsys, "simulate", "table:resnet18@int8 n=2", "--target", "ideal")
        assert code == 0
        assert "layer4.1.conv2" in out
        words = "layer:conv c=64 k=32 h=8 r=3"
        code, out, _ = run(monkeypatch, capsys, "simulate", words, "--target", "ideal")
        assert code == 0
        assert f"{64 * 32 * 64 * 9 / 1e6:.2f}" in out
        assert run(monkeypatch, capsys, "simulate", f"{words} x=3", "--target", "ideal")[0] == 2
        code, _, error = run(monkeypatch, capsys, "simulate", "table:resnet18#conv1", "--target", "ideal")
        assert code == 2
        assert "leave it away" in error

    def test_a_file_of_layers_is_priced_a_layer_by_itself(self, monkeypatch, capsys, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
        monkeypatch.chdir(tmp_path)
        words = ("conv c=64 k=32 h=8 r=3", "linear@int8 c=512 k=10")
        Path("mine.txt").write_text(f"# of my board\n{words[0]}\n\n{words[1]}  # the last\n")
        names = ("--target", "ethos_u65_256", "--target", "eie")
        code, out, _ = run(monkeypatch, capsys, "simulate", "layers:mine.txt", *names, "--json", "r.json")
        assert code == 0
        assert "layers:mine.txt on Arm Ethos-U65-256" in out
        for result in json.loads(Path("r.json").read_text()):
            machine = target(result["target"])
            alone = [machine.simulate(layer_graph(text)) for text in words]
            assert [layer["name"] for layer in result["layers"]] == [f"1: {words[0]}", f"2: {words[1]}"]
            assert [layer["cycles"] for layer in result["layers"]] == [each.cycles for each in alone]
        assert run(monkeypatch, capsys, "simulate", "layers:none.txt", "--target", "eie")[0] == 2
        code, _, error = run(monkeypatch, capsys, "lower", "layers:mine.txt")
        assert code == 2
        assert "holds 2 layers that do not feed each other" in error

    def test_several_targets_end_in_a_summary(self, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
        names = ("--target", "ideal", "--target", "tpu_v1", "--target", "eyeriss_v1")
        code, out, _ = run(monkeypatch, capsys, "simulate", "table:resnet8", *names)
        assert code == 0
        lines = out.splitlines()
        last = [line.split()[0] for line in lines[-3:]]
        assert sorted(last) == ["eyeriss_v1", "ideal", "tpu_v1"]
        assert last[-1] == "eyeriss_v1", "the slowest comes last"
        heads = [above for above, line in itertools.pairwise(lines) if line.startswith("layer ")]
        assert heads == ["ideal", "tpu_v1", "eyeriss_v1"], "each table says whose it is"
        alone = run(monkeypatch, capsys, "simulate", "table:resnet8", "--target", "ideal")[1]
        assert alone.startswith("layer ")

    def test_the_terminal_names_what_binds_as_the_page_does(self, monkeypatch, capsys, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
        names = ("--target", "ethos_u55_256", "--target", "stm32l4r5_m4_v1_0")
        code, out, _ = run(monkeypatch, capsys, "simulate", "table:resnet8", *names, "--report", tmp_path)
        assert code == 0
        page = (tmp_path / "comparison.html").read_text()
        rows = json.loads((tmp_path / "comparison.json").read_text())["rows"]
        for row in rows:
            said = ", ".join(f"{what} {share:.0%}" for what, share in row["bound"].items() if share > 0.01)
            assert said in page
            assert any(
                line.split()[:1] == [row["target"]] and line.rstrip().endswith(said) for line in out.splitlines()
            )
        assert {line.split()[-1] for line in out.splitlines() if " add " in line} == {"elementwise"}

    def test_a_tiny_network_has_multiplications_in_a_unit_that_fits(self, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
        out = run(monkeypatch, capsys, "simulate", "layer:linear c=64 k=10", "--target", "ideal")[1]
        head, row = out.splitlines()[:2]
        assert (head.split()[2], row.split()[2]) == ("MACs", "640")
        out = run(monkeypatch, capsys, "simulate", "layer:linear c=64 k=100", "--target", "ideal")[1]
        assert "MACs (k)" in out
        assert " 6.40 " in out

    def test_set_changes_the_machine(self, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
        plain = run(monkeypatch, capsys, "simulate", "lenet5", "--target", "ideal")[1]
        fast = run(monkeypatch, capsys, "simulate", "lenet5", "--target", "ideal", "--set", "clock_hz=5e9")[1]
        assert plain != fast


class TestValidate:
    """On a machine file of one's own with rows beside it: eight published times, all of one layer."""

    @pytest.fixture
    def mine(self, tmp_path: Path) -> Path:
        lines = [builders.line(f"row{i}", value=70 + i, calibrated="yes") for i in range(8)]
        extra = builders.fitted([f"row{i}" for i in range(8)], 8.0)
        return Path(builders.machine(tmp_path, lines, extra))

    def test_rows_errors_and_what_was_fitted(self, monkeypatch, capsys, mine: Path) -> None:  # type: ignore[no-untyped-def]
        code, out, _ = run(monkeypatch, capsys, "validate", mine, "--refit")
        assert code == 0
        rows = [line.split() for line in out.splitlines() if line.startswith("row7 ")]
        assert rows == [["row7", "77", "72", "cycle", "-6.5%", "silicon", "calibration"]]
        bar = next(line.split() for line in out.splitlines() if "time, one layer" in line)
        assert bar[3:8] == ["8/1", "3.0%", "2.8%", "6.5%", "none"]
        text = " ".join(out.split())
        assert "silicon; indicative; one network only: no interval; worst row7" in text
        assert "8 used for calibration, mean 3.0%" in text
        assert "fitted to row0, row1" in text
        (fit,) = [line.split() for line in out.splitlines() if "bandwidth_bytes_per_cycle" in line]
        assert fit[1:5] == ["1", "to", "64", "8"]
        assert float(fit[5]) == pytest.approx(576 / 73.46, rel=1e-3)  # the geometric mean of 70 to 77

    def test_it_writes_what_is_asked_for(self, monkeypatch, capsys, mine: Path) -> None:  # type: ignore[no-untyped-def]
        page = mine.parent / "docs" / "page.md"
        page.parent.mkdir()
        page.write_text(f"before\n<!-- validation: {mine} -->\nafter\n")
        plots, out = mine.parent / "plots", mine.parent / "errors.json"
        code, _, _ = run(monkeypatch, capsys, "validate", mine, "--json", out, "--docs", page.parent, "--plot", plots)
        assert code == 0
        stored = json.loads(out.read_text())
        assert stored["format"] == "codesign.validation"
        assert [row["predicted"] for row in stored["targets"][str(mine)]["rows"]] == [72.0] * 8
        assert "| time, one layer | 8 of 1 network, indicative |" in page.read_text()
        assert sorted(path.name for path in plots.iterdir()) == ["mine.png", "mine.svg"]

    def test_a_target_without_rows_says_so(self, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
        assert "no published rows are at hand" in run(monkeypatch, capsys, "validate", "ideal")[1]

    def test_errors_of_a_file_of_ones_own_are_stored_beside_it(self, monkeypatch, capsys, mine: Path) -> None:  # type: ignore[no-untyped-def]
        code, out, _ = run(monkeypatch, capsys, "validate", mine, "--store")
        assert code == 0
        assert f"written: {mine.parent / 'mine.errors.json'}" in out
        (bar,) = json.loads((mine.parent / "mine.errors.json").read_text())["bars"]
        assert (bar["rows"], bar["worst_row"]) == (8, "row7")

    def test_a_broken_machine_does_not_hide_the_others(self, monkeypatch, capsys, mine: Path) -> None:  # type: ignore[no-untyped-def]
        broken = mine.with_name("broken.yaml")
        broken.write_text("base: ideal\nname: broken\n")
        broken.with_suffix(".csv").write_bytes(b"id,\xff\n")
        code, out, err = run(monkeypatch, capsys, "validate", broken, mine, "--refit")
        assert code == 2
        assert "time, one layer" in out
        assert "fitted again" in out
        assert err.count("\n") == 1
        assert f"{broken.with_suffix('.csv')}:1: byte 0xff is not UTF-8" in err

    @pytest.mark.parametrize("width", [80, 120])
    def test_it_fits_the_screen(self, monkeypatch, capsys, mine: Path, width: int) -> None:  # type: ignore[no-untyped-def]
        """No head of a table is cut, and the table is as narrow as the screen."""
        monkeypatch.setattr("codesign.validation.console", lambda: Console(highlight=False, width=width))
        names = (mine, "eyeriss_v1", "ethos_u55_128", "tpu_v1")
        _, out, _ = run(monkeypatch, capsys, "validate", *names)
        heads = [line.split() for line in out.splitlines() if line.startswith("error of")]
        assert heads == [["error", "of", "rows/nets", "mean", "median", "worst", "80%", "interval", "of", "ratios"]] * 4
        assert max(len(line.rstrip()) for line in out.splitlines() if line != str(mine)) <= width

    def test_help_teaches(self, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
        out = run(monkeypatch, capsys, "validate", "--help")[1]
        for word in ("--refit", "--store", "--docs", "--plot", "--json", "Example"):
            assert word in out


def pickle_bomb(folder: Path) -> Path:
    """A weights file that runs code when it is unpickled."""

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {folder}/exploded",)

    path = folder / "bomb.safetensors"
    path.write_bytes(pickle.dumps(Bomb()))
    return path


def broken(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def nan_weights(folder: Path) -> Path:
    state = build("digits_cnn").state_dict()
    name = next(iter(state))
    state[name] = torch.full_like(state[name], float("nan"))
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "nan.safetensors")
    return folder / "nan.safetensors"


def truncated(folder: Path) -> Path:
    state = {key: value.contiguous() for key, value in build("digits_cnn").state_dict().items()}
    save_file(state, whole := folder / "whole.safetensors")
    path = folder / "short.safetensors"
    path.write_bytes(whole.read_bytes()[:-1000])
    return path


def machine_file(folder: Path, old: str, new: str) -> Path:
    from accel_models.registry import spec_files

    text = spec_files()["ideal"].read_text()
    assert old in text
    return broken(folder, "mine.yaml", text.replace(old, new))


def graph_file(folder: Path, old: str, new: str) -> Path:
    from workloads.lowering import lower
    from workloads.models import example_input

    lower(build("lenet5"), example_input("lenet5")).save(folder / "whole.json")
    text = (folder / "whole.json").read_text()
    assert old in text
    return broken(folder, "mine.json", text.replace(old, new, 1))


OWN_MODEL = """import torch
ENTRIES = {"entry": {"input_shape": (3, 9, 9), "num_classes": 2}}
def net(): return torch.nn.Conv2d(3, 8, 3)
def broken(): raise ValueError("my own mistake")
"""


def other(folder: Path) -> Path:
    save_file(
        {key: value.contiguous() for key, value in build("lenet5").state_dict().items()}, folder / "o.safetensors"
    )
    return folder / "o.safetensors"


def plan_file(folder: Path) -> Path:
    """A plan for digits_cnn."""
    from pruning.plan import make_plan
    from workloads.channels import analyze
    from workloads.lowering import lower
    from workloads.models import example_input

    analysis = analyze(lower(build("digits_cnn"), example_input("digits_cnn")))
    sizes = {group.name: group.size for group in analysis.groups if group.prunable}
    name = next(iter(sizes))
    plan = make_plan("digits_cnn", analysis, {name: sizes[name] // 2}, {name: tuple(range(sizes[name]))})
    plan.save(folder / "plan.json")
    return folder / "plan.json"


def own_model(folder: Path) -> str:
    """A user's module with a function that makes a convolution of three channels; its folder is on the path."""
    return broken(folder, "my_own_net.py", OWN_MODEL).stem


BAD = {
    "unknown target": (lambda f: ["simulate", "lenet5", "--target", "etos_u55_256"], "did you mean 'ethos_u55_256'?"),
    "unknown model": (lambda f: ["lower", "resnet21"], "unknown model 'resnet21'"),
    "a file for a model": (lambda f: ["lower", "net.py:net", "--input", "1,3,8,8"], "as Python imports it, net:net"),
    "a path for a module": (lambda f: ["lower", "./net:net", "--input", "1,3,8,8"], "as Python imports it, net:net"),
    "a file for data": (
        lambda f: ["train", "lenet5", "--data", "my_data.py:BARS", "--out", f / "w.safetensors"],
        "my_data.py:BARS: name it as Python imports it, my_data:BARS",
    ),
    "weights for a model": (
        lambda f: ["simulate", good(f), "--target", "ideal"],
        "is a file of weights; give the name of the network, --weights reads them",
    ),
    "unknown data": (
        lambda f: ["search", "lenet5", "--data", "minst", *BUDGET, "--out", f / "o"],
        "unknown data set 'minst'",
    ),
    "weights of a layer": (
        lambda f: ["lower", "layer:conv c=8 k=8 h=4 r=3", "--weights", f / "w.safetensors", "--out", f / "g.json"],
        "a layer graph takes no weights",
    ),
    "known weights of a module of one's own": (
        lambda f: ["lower", f"{own_model(f)}:net", "--input", "1,3,8,8", "--pretrained"],
        "no weights are known for it; give a file (--weights)",
    ),
    "missing file": (lambda f: ["simulate", f / "no.json", "--target", "ideal"], "no.json"),
    "yaml syntax": (
        lambda f: ["simulate", "lenet5", "--target", broken(f, "m.yaml", "a: [1")],
        "m.yaml: cannot be read",
    ),
    "yaml not a mapping": (
        lambda f: ["simulate", "lenet5", "--target", broken(f, "m.yaml", "- 1")],
        "must be a mapping",
    ),
    "yaml value": (
        lambda f: ["simulate", "lenet5", "--target", machine_file(f, "value: 500.0e6", "value: 0")],
        "clock_hz: 0, input should be greater than 0",
    ),
    "yaml source": (
        lambda f: [
            "simulate",
            "lenet5",
            "--target",
            machine_file(f, "500.0e6, source: ethos_u55_256", "5e8, source: me"),
        ],
        "clock_hz: source 'me' is neither a key of 'sources'",
    ),
    "yaml unknown key": (
        lambda f: ["simulate", "lenet5", "--target", machine_file(f, "weight_memory:", "colour: red\nweight_memory:")],
        "colour: 'red', extra inputs are not permitted",
    ),
    "json syntax": (
        lambda f: ["simulate", broken(f, "g.json", "{"), "--target", "ideal"],
        "g.json: not JSON",
    ),
    "json of something else": (
        lambda f: ["simulate", broken(f, "g.json", "[]"), "--target", "ideal"],
        "not a layer graph",
    ),
    "json unknown op": (
        lambda f: ["simulate", graph_file(f, '"max_pool"', '"min_pool"'), "--target", "ideal"],
        "op 'min_pool' is unknown",
    ),
    "json wrong shape": (lambda f: ["simulate", graph_file(f, '"k":20', '"k":21'), "--target", "ideal"], "mine.json"),
    "pickle": (lambda f: ["lower", "digits_cnn", "--weights", pickle_bomb(f)], "a pickle, which can run code"),
    "truncated": (lambda f: ["lower", "digits_cnn", "--weights", truncated(f)], "not a whole safetensors file"),
    "NaN weights": (lambda f: ["lower", "digits_cnn", "--weights", nan_weights(f)], "NaN or infinite"),
    "other model's weights": (
        lambda f: ["lower", "lenet5", "--weights", truncated(f).with_name("whole.safetensors")],
        "whole.safetensors",
    ),
    "no weights file": (lambda f: ["lower", "lenet5", "--weights", f / "none.safetensors"], "cannot be read"),
    "wrong input shape": (
        lambda f: ["lower", f"{own_model(f)}:net", "--input", "1,5,9,9"],
        "1, 5, 9, 9",
    ),
    "input of a zoo model": (
        lambda f: ["lower", "digits_cnn", "--input", "1,1,8,8"],
        "digits_cnn: has an input shape of its own; --input goes with package.module:function",
    ),
    "input of a model of one's own that has an entry": (
        lambda f: ["lower", own_model(f) + ":entry", "--input", "1,3,9,9"],
        "my_own_net:entry: has an input shape of its own",
    ),
    "own model that has no entry": (
        lambda f: ["prune", own_model(f) + ":net", "--data", "digits", "--scratch", "--out", f / "o"],
        "unknown model of my_own_net 'net'",
    ),
    "own data that is none": (
        lambda f: ["train", "lenet5", "--data", own_model(f) + ":net", "--out", f / "w.safetensors"],
        "my_own_net:net is not a DataSet",
    ),
    "input not numbers": (lambda f: ["lower", "os:getcwd", "--input", "a,b"], "must be integers with commas"),
    "input below 1": (lambda f: ["lower", f"{own_model(f)}:net", "--input", "1,3,-9,9"], "sizes must be at least 1"),
    "input without a sample": (
        lambda f: ["lower", f"{own_model(f)}:net", "--input", "0,3,9,9"],
        "sizes must be at least 1",
    ),
    "input beyond memory": (
        lambda f: ["lower", f"{own_model(f)}:net", "--input", f"{10**18},3,9,9"],
        "numbers together",
    ),
    "own function raises": (
        lambda f: ["lower", f"{own_model(f)}:broken", "--input", "1,3,9,9"],
        "broken() raised ValueError: my own mistake",
    ),
    "other pictures": (
        lambda f: ["simulate", "lenet5", "--calibrate", "digits", "--target", "ideal"],
        "data digits: its images are 1x8x8, lenet5 takes 1x28x28",
    ),
    "own file raises": (
        lambda f: ["lower", f"{broken(f, 'my_raising_net.py', '1 / 0').stem}:net", "--input", "1,3,9,9"],
        "importing it raised ZeroDivisionError: division by zero; --debug",
    ),
    "no module name": (lambda f: ["lower", ":net", "--input", "1,3,9,9"], ":net: cannot be imported"),
    "images of another shape": (
        lambda f: ["train", "lenet5", "--data", "digits", "--out", f / "w.safetensors"],
        "its images are 1x8x8, lenet5 takes 1x28x28",
    ),
    "images of other channels than the model's preprocessing": (
        lambda f: ["train", "resnet20", "--data", "digits", "--out", f / "w.safetensors"],
        "its images are 1x8x8, resnet20 takes 3x32x32",
    ),
    "prune images of another shape": (
        lambda f: ["prune", "lenet5", "--weights", other(f), "--data", "digits", "--out", f / "o"],
        "lenet5 takes 1x28x28",
    ),
    "prune untrained": (
        lambda f: ["prune", "digits_cnn", "--data", "digits", "--out", f / "o"],
        "start from --weights FILE, --pretrained or --scratch: give exactly one of them",
    ),
    "target twice": (
        lambda f: [
            "prune",
            "digits_cnn",
            "--data",
            "digits",
            "--target",
            "ideal",
            "--target",
            "ideal",
            "--scratch",
            "--out",
            f / "o",
        ],
        "a machine is given twice",
    ),
    "no such option": (
        lambda f: ["prune", "digits_cnn", "--data", "digits", "--scratch", "--option", "densty=1", "--out", f / "o"],
        "unknown option of gradual_magnitude 'densty'; did you mean 'density'",
    ),
    "option without a value": (
        lambda f: ["prune", "digits_cnn", "--data", "digits", "--scratch", "--option", "density", "--out", f / "o"],
        "--option 'density': must be name=value",
    ),
    "option that is no YAML": (
        lambda f: ["prune", "digits_cnn", "--data", "digits", "--scratch", "--option", "keep=[a", "--out", f / "o"],
        "cannot be read as YAML",
    ),
    "unknown method to show": (lambda f: ["methods", "magic"], "unknown pruning method 'magic'"),
    "validate unknown": (lambda f: ["validate", "idael"], "did you mean 'ideal'?"),
    "docs nowhere": (lambda f: ["validate", "ideal", "--docs", f / "no"], "no such folder"),
    "plots into a file": (
        lambda f: ["validate", "eyeriss_v2", "--plot", broken(f, "file", "x")],
        "plot: ",
    ),
    "another model's plan": (
        lambda f: ["simulate", "lenet5", "--plan", plan_file(f), "--target", "ideal"],
        "plan.json: not a plan for lenet5",
    ),
    "not a module": (lambda f: ["lower", "os:getcwd", "--input", "1,2"], "must return a torch.nn.Module"),
    "no such function": (lambda f: ["lower", "os:nothing", "--input", "1,2"], "cannot be imported"),
    "set without number": (
        lambda f: ["simulate", "lenet5", "--target", "ideal", "--set", "clock_hz"],
        "must be path=number",
    ),
    "set unknown path": (lambda f: ["simulate", "lenet5", "--target", "ideal", "--set", "clock=1"], "no field 'clock'"),
    "set impossible": (lambda f: ["simulate", "lenet5", "--target", "ideal", "--set", "clock_hz=-1"], "clock_hz"),
    "budget text": (
        lambda f: [
            "search",
            "digits_cnn",
            "--data",
            "digits",
            "--target",
            "ideal",
            "--budget",
            "speed=2",
            "--out",
            f / "o",
        ],
        "metric 'speed' is unknown",
    ),
    "density": (
        lambda f: ["search", "digits_cnn", "--data", "digits", *BUDGET, "--density", "1.5", "--out", f / "o"],
        "must be above 0 and at most 1",
    ),
    "keep": (
        lambda f: [
            "search",
            "digits_cnn",
            "--data",
            "digits",
            *BUDGET,
            "--weights",
            good(f),
            "--keep",
            "x",
            "--out",
            f / "o",
        ],
        "no such channel group",
    ),
    "granularity without densities": (
        lambda f: ["search", "digits_cnn", "--data", "digits", *BUDGET, "--granularity", "pattern", "--out", f / "o"],
        "give --density too",
    ),
    "granularity of channels": (
        lambda f: ["search", "digits_cnn", "--data", "digits", *BUDGET, "--granularity", "filter", "--out", f / "o"],
        "channels are chosen anyway",
    ),
    "rate": (
        lambda f: ["search", "digits_cnn", "--data", "digits", *BUDGET, "--lr", "nan", "--out", f / "o"],
        "--lr nan: must be a finite number above 0",
    ),
    "device": (
        lambda f: ["search", "digits_cnn", "--data", "digits", *BUDGET, "--device", "tpu", "--out", f / "o"],
        "device 'tpu'",
    ),
    "not a study": (lambda f: ["report", f], "config.json"),
    "train output": (
        lambda f: ["train", "digits_cnn", "--data", "digits", "--out", f / "x.pt"],
        "must end in .safetensors",
    ),
    "train into a file that is there": (
        lambda f: ["train", "digits_cnn", "--data", "digits", "--epochs", "1", "--out", good(f)],
        "good.safetensors: exists already; choose another --out, or --overwrite",
    ),
    "method": (
        lambda f: [
            "prune",
            "digits_cnn",
            "--data",
            "digits",
            "--method",
            "magic",
            "--scratch",
            "--target",
            "ideal",
            "--out",
            f / "o",
        ],
        "unknown pruning method 'magic'",
    ),
}


def good(folder: Path) -> Path:
    state = {key: value.contiguous() for key, value in build("digits_cnn").state_dict().items()}
    save_file(state, folder / "good.safetensors")
    return folder / "good.safetensors"


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(case, monkeypatch, capsys, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    make, message = BAD[case]
    words = make(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(tmp_path.rglob("*"))
    code, _, err = run(monkeypatch, capsys, *words)
    assert code == 2, err
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    written = {
        path
        for path in set(tmp_path.rglob("*")) - before
        if path.is_file() and path.name != "config.json" and path.suffix != ".pyc"
    }
    assert not written, "something was left half-written"


def test_training_replaces_a_file_when_told_to(monkeypatch, capsys, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    before = (file := good(tmp_path)).read_bytes()
    words = ["train", "digits_cnn", "--data", "digits", "--epochs", "1", "--out", file, "--overwrite"]
    assert run(monkeypatch, capsys, *words)[0] == 0
    assert file.read_bytes() != before


def test_impossible_budget_says_what_can_be_reached(monkeypatch, capsys, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, _, err = run(
        monkeypatch, capsys, "search", "digits_cnn", "--data", "digits", "--target", "ideal", "--budget",
        "latency=0.001x", "--weights", good(tmp_path), "--images", 20, "--out", tmp_path / "o",
    )  # fmt: skip
    assert code == 2
    assert re.search(r"latency can reach [\d.]+ [mun]?s at the least, the budget is [\d.]+ [mun]?s", err), err


@pytest.mark.parametrize("seed", ["-1", str(2**32), "99999999999999999999999"])
def test_seeds_that_no_generator_takes(seed, monkeypatch, capsys, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, _, err = run(
        monkeypatch,
        capsys,
        "train",
        "digits_cnn",
        "--data",
        "digits",
        "--seed",
        seed,
        "--out",
        tmp_path / "w.safetensors",
    )
    assert code == 2
    assert "--seed" in err
    assert not list(tmp_path.iterdir())


def test_a_first_mistake_does_not_block_the_folder(monkeypatch, capsys, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    words = ["search", "digits_cnn", "--data", "digits", *BUDGET, "--weights", good(tmp_path), "--out", tmp_path / "o"]
    assert "no such channel group" in run(monkeypatch, capsys, *words, "--keep", "x")[2]
    assert "holds a study" not in run(monkeypatch, capsys, *words, "--keep", "z")[2]


def test_a_study_belongs_to_the_content_of_its_weights(tmp_path: Path) -> None:
    from codesign.config import study_config

    path = good(tmp_path)
    config = SearchConfig("digits_cnn", "digits", "ideal", ("latency=0.5x",), weights=str(path))
    before = study_config(config)
    assert study_config(config) == before
    path.write_bytes(path.read_bytes() + b" ")
    assert study_config(config) != before


def test_unwritable_folder(monkeypatch, capsys, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    broken(tmp_path, "file", "")
    code, _, err = run(
        monkeypatch, capsys, "search", "digits_cnn", "--data", "digits", *BUDGET, "--weights", good(tmp_path), "--out",
        tmp_path / "file" / "below",
    )  # fmt: skip
    assert code == 2
    assert "cannot be written" in err


def test_a_demo_into_a_file_is_refused_before_training(monkeypatch, capsys, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    place = broken(tmp_path, "file", "mine")
    code, _, err = run(monkeypatch, capsys, "demo", "--out", place)
    assert code == 2
    assert err.strip() == f"error: {place}: is a file, must be a folder; choose another --out"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_demo_keeps_its_weights_where_its_help_says(monkeypatch, capsys, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    seen: list[Path] = []
    monkeypatch.setattr("codesign.demo.train_model", lambda model, data, out, **_: seen.append(out))
    monkeypatch.setattr("codesign.demo.run", lambda config, out, **_: seen.extend((Path(config.weights), out)))
    assert run(monkeypatch, capsys, "demo", "--out", tmp_path / "try", "--seed", "3")[0] == 0
    assert seen == [*[tmp_path / "try-dense" / "seed3.safetensors"] * 2, tmp_path / "try"]
    assert "OUT-dense" in run(monkeypatch, capsys, "demo", "--help")[1]


def test_empty_data_folder(monkeypatch, capsys, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("CODESIGN_DATA", str(tmp_path))
    code, _, err = run(monkeypatch, capsys, "train", "lenet5", "--data", "mnist", "--out", tmp_path / "w.safetensors")
    assert code == 2
    assert str(tmp_path) in err


def test_debug_shows_the_traceback(monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    from workloads.errors import ConfigError

    monkeypatch.setattr(sys, "argv", ["codesign", "--debug", "lower", "resnet21"])
    with pytest.raises(ConfigError):
        cli.main()


def test_bomb_never_explodes(monkeypatch, capsys, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run(monkeypatch, capsys, "lower", "digits_cnn", "--weights", pickle_bomb(tmp_path))
    assert not (tmp_path / "exploded").exists()


def test_numbers_of_a_comparison_page(monkeypatch, capsys, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = run(
        monkeypatch,
        capsys,
        "simulate",
        "lenet5",
        "--target",
        "ideal",
        "--target",
        "ethos_u55_256",
        "--report",
        tmp_path,
    )
    assert code == 0
    page = Path(out.strip().splitlines()[-1])
    assert page.exists()
    assert np.char.count(page.read_text(), "http://").sum() == 0


@pytest.mark.parametrize(
    "given",
    [
        SearchConfig("digits_cnn", "digits", "ideal", ("latency=0.5x",)),
        SearchConfig(
            "digits_cnn", "digits", "eyeriss_v2", ("latency=0.7x", "size=20KB"), weights="a b.safetensors", epochs=5,
            rate=0.0123456789, densities=(0.5, 0.25), granularity="2:4", keep=("conv", "block1.conv1"), multiple=4,
            options=5, images=200, measured=3, generations=7, seed=3,
        ),
    ],
)  # fmt: skip
def test_the_command_of_a_search_makes_the_same_configuration(given, monkeypatch, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    made: list[tuple[SearchConfig, Path]] = []
    monkeypatch.setattr("codesign.job.run", lambda config, out, **_: made.append((config, out)))
    words = shlex.split(given.command(tmp_path / "out"))
    cli.app(words[1:], standalone_mode=False)
    assert made == [(given, tmp_path / "out")]
