"""The benchmark beside inference engines: its workers, its random networks and its page. No engine is installed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from workloads.models.resnet_cifar import PaddedShortcut

FOLDER = Path(__file__).parents[1] / "benchmarks" / "engines"
PYTHON = Path(sys.executable)

sys.path.insert(0, str(FOLDER))
try:
    import report  # type: ignore[import-not-found]
    from cases import CASES  # type: ignore[import-not-found]
    from circumstances import command  # type: ignore[import-not-found]
    from measure import EngineError, alternate, relative_error, two_threads, worker  # type: ignore[import-not-found]
    from networks import EIGHT, Network, PooledShortcut, random_patterns, vgg  # type: ignore[import-not-found]
finally:
    sys.path.remove(str(FOLDER))


def script(name: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PYTHON, FOLDER / name, *words], capture_output=True, text=True, cwd=FOLDER)


@pytest.fixture(scope="module")
def tiny_case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A folder as workers read it, and the answer."""
    folder = tmp_path_factory.mktemp("tiny")
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1))
    net[3].weight = nn.Parameter(random_patterns((6, 8, 3, 3), 0.5, 1, torch.Generator().manual_seed(0)))
    made = Network.of(net.eval(), torch.randn(2, 3, 16, 16))
    assert (made.weights, made.nonzeros) == (3 * 8 * 9 + 8 * 6 * 9, 3 * 8 * 9 + 8 * 6 * 4 // 2)
    assert made.nonzero_macs == 2 * 16 * 16 * made.nonzeros
    made.save(folder)
    return folder, made.y.numpy()


@pytest.mark.usefixtures("native")
def test_engines_in_turns(tiny_case: tuple[Path, np.ndarray]) -> None:
    folder, expected = tiny_case
    found = alternate({"codesign": PYTHON, "torch": PYTHON}, folder, expected, rounds=2)
    for name in ("codesign", "torch"):
        assert 0 < found[name]["min_s"] <= found[name]["median_s"]
        assert found[name]["calls"] >= 2
        assert found[name]["error"] < 1e-5
    assert found["torch"]["version"] == torch.__version__


def test_relative_error() -> None:
    assert relative_error(np.array([1.0, -2.0]), np.array([1.5, -4.0])) == 0.5


def test_an_engine_that_cannot_load_is_left_out_with_its_reason(tiny_case: tuple[Path, np.ndarray]) -> None:
    folder, expected = tiny_case
    (folder / "network.ncnn.param").write_text("not a network")
    (failed,) = alternate({"ncnn": PYTHON}, folder, expected, rounds=1).values()
    assert failed == {"failed": "ModuleNotFoundError: No module named 'ncnn'"}
    with pytest.raises(EngineError, match="No module named 'ncnn'"), worker(PYTHON, "ncnn", folder):
        pass


@pytest.mark.slow
def test_two_threads_beside_two_processes(tiny_case: tuple[Path, np.ndarray]) -> None:
    found = two_threads(PYTHON, "torch", tiny_case[0], rounds=1)
    assert found["speedup"] == found["one_s"] / found["two_s"]
    assert 0 < found["ceiling"] < 3  # two processes do at most twice the work, noise apart


@pytest.mark.parametrize("filters", [1, 2, 4])
def test_random_patterns(filters: int) -> None:
    weight = random_patterns((8, 32, 3, 3), 9 / 32, filters, torch.Generator().manual_seed(0))
    masks = {tuple(np.flatnonzero(kernel)) for kernel in weight.reshape(-1, 9).numpy()}
    assert masks <= {(), *EIGHT.patterns}
    assert (weight.flatten(2).any(2).sum(1) == 9).all()
    assert weight.square().sum().item() == pytest.approx(2 * 8)
    shared = (weight != 0).unflatten(0, (-1, filters))
    assert (shared == shared[:, :1]).all()


def test_small_maps_alone_share_patterns() -> None:
    net = vgg(torch.Generator().manual_seed(0), CASES["vgg16_cifar_8x_groups4"])
    alike = [
        bool(((m.weight != 0).unflatten(0, (-1, 4)) == (m.weight != 0).unflatten(0, (-1, 4))[:, :1]).all())
        for m in net
        if isinstance(m, nn.Conv2d) and m.in_channels > 3
    ]
    assert alike == [False] * 6 + [True] * 6  # 512 x 4 x 4 begins with the eighth convolution


def test_a_shortcut_without_slices_is_equal() -> None:
    shortcut, x = PaddedShortcut(3, 8, 2), torch.randn(2, 3, 6, 6)
    assert torch.equal(PooledShortcut(shortcut)(x), shortcut(x))


def result(case: str, **milliseconds: float | str) -> dict[str, Any]:
    """A record as `run.py` writes it; text is the reason of an engine that was left out."""
    engines: dict[str, Any] = {}
    for name, ms in milliseconds.items():
        numbers = {"version": "1", "convert_s": 9.0, "load_s": 2.0, "error": 3e-7, "calls": 5}
        engines[name] = {"failed": ms} if isinstance(ms, str) else {
            **numbers, "min_s": ms / 1e3, "median_s": 1.5 * ms / 1e3
        }  # fmt: skip
    return {
        "case": case, "rate": 7.5, "rounds": 3, "machine": {"cpu": "a processor", "cores": 2, "load": 0.25},
        "versions": {"codesign": "abc"}, "time": "then", "command": "how", "engines": engines,
    }  # fmt: skip


def test_the_page_of_a_result(tmp_path: Path) -> None:
    row = result("vgg16_8x", codesign=10, onnxruntime=45, ncnn=30, mnn="does not load", openvino_bf16=5)
    row["answers"] = {"right": 9066, "images": 10000, "equal": 9999}
    (tmp_path / "vgg16_8x.json").write_text(json.dumps(row))
    text = report.page(tmp_path)
    assert "| case | fewer weights | ours | ONNX Runtime | ncnn | MNN | *OpenVINO bf16* |" in text
    assert "| VGG-16 224, 8x | 7.50x | 10 (15) | 45 (67.5) | 30 (45) | left out | *5 (7.5)* |" in text
    assert "| VGG-16 224, 8x | ncnn | 3.00x (4x) | 4.50x (5x) |  |" in text  # LiteRT was not run
    assert "faster than compiled fp32 code in: VGG-16 224, 8x (2.0x)." in text
    assert "* MNN, VGG-16 224, 8x: does not load" in text
    assert "answers 9,066 of 10,000 test images rightly; 9,999 answers are those of the interpreter." in text
    assert "Not run yet: VGG-16 224, dense;" in text
    assert "## Two threads" not in text
    page = tmp_path / "page.md"
    page.write_text(text.replace("3.00x", "4.00x"))
    assert "run report.py" in script("report.py", "--check", "--results", tmp_path, "--page", page).stderr


def test_the_page_says_what_the_peak_allows(tmp_path: Path) -> None:
    row = result("vgg16_8x", codesign=10, onnxruntime=45, ncnn=30)
    (tmp_path / "vgg16_8x.json").write_text(json.dumps(row | {"nonzero_macs": 8e8, "peak_macs_per_s": 1e11}))
    assert "| VGG-16 224, 8x | 800.0 M | 8 | 10 | 80% | 3.75x |" in report.page(tmp_path)
    (tmp_path / "vgg16_8x.json").write_text(json.dumps(row))
    assert "What the processor allows" not in report.page(tmp_path)


def test_a_recorded_command_names_no_places() -> None:
    words = ["/somewhere/run.py", "vgg16_8x", "--results", "/tmp/trial", "--rounds", "3", "--out=x"]
    assert command(words) == "python benchmarks/engines/run.py vgg16_8x --rounds 3"


def test_the_page_of_two_threads(tmp_path: Path) -> None:
    row = result("vgg16_8x")
    del row["engines"]
    row["two_threads"] = {
        "codesign": {"one_s": 0.03, "two_s": 0.02, "speedup": 1.5, "ceiling": 1.6},
        "mnn": {"failed": "no"},
    }
    (tmp_path / "vgg16_8x.2threads.json").write_text(json.dumps(row))
    text = report.page(tmp_path)
    assert "| VGG-16 224, 8x | ours | 30 | 20 | 1.500x | 1.600x | 0.938 |" in text
    assert "* MNN, VGG-16 224, 8x: no" in text
    assert "## Times" not in text


def test_the_committed_page_is_current() -> None:
    found = script("report.py", "--check")
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["vgg16_8"], "unknown case 'vgg16_8'; did you mean 'vgg16_8x'?"),
        ([], "name a case; --list shows them"),
        (["vgg16_8x", "--rounds", "0"], "--rounds 0: must be at least 1"),
        (["resnet56_pruned_b1"], "resnet56_pruned_b1 needs the folder of a pruned network: --weights FOLDER"),
    ],
)
def test_bad_input_is_one_line(words: list[str], message: str, tmp_path: Path) -> None:
    found = script("run.py", *words, "--results", tmp_path, "--out", tmp_path)
    assert found.returncode == 1
    assert message in found.stderr
    assert found.stderr.count("\n") == 1


def test_the_list_names_every_case(tmp_path: Path) -> None:
    listed = script("run.py", "--list", "--results", tmp_path).stdout.splitlines()
    assert [line.split()[:2] for line in listed] == [["open", name] for name in CASES]
