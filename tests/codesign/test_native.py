"""`codesign compile`, `run` and `bench`: what they write, print and refuse."""

from pathlib import Path

import numpy as np
import pytest
import torch

from codesign import native, prune
from codesign.compiler import load_compiled
from workloads.data import ImageData, Preprocessing
from workloads.errors import ConfigError, DataError
from workloads.models import build, example_input

pytestmark = pytest.mark.usefixtures("native")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("native") / "net"
    torch.manual_seed(0)
    native.compile_model("digits_cnn", found)
    return found


def pictures(count: int) -> ImageData:
    """Random ones, labelled as the network answers for the first three quarters, otherwise for the rest."""
    size = tuple(example_input("digits_cnn").shape[1:])
    images = np.random.default_rng(0).integers(0, 256, (count, *size), dtype=np.uint8)
    plain = Preprocessing((0.5,) * size[0], (0.5,) * size[0])
    data = ImageData("made up", "test", images, np.zeros(count, np.int64), np.arange(count), 10, plain)
    with torch.no_grad():
        labels = build("digits_cnn")(data.tensor()).argmax(1).numpy()
    labels[3 * count // 4 :] = (labels[3 * count // 4 :] + 1) % 10
    return ImageData("made up", "test", images, labels, np.arange(count), 10, plain)


def test_accuracy_counts_right_answers(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(native, "load_split", lambda model, data, split: pictures(120))  # a batch and a part of one
    native.run_model(folder, "made up", check=True)
    printed = capsys.readouterr().out
    assert "accuracy 75.00% on 120 test images" in printed
    assert "120 of 120 answers are the interpreter's" in printed


def test_an_array_becomes_an_array(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = example_input("digits_cnn", 3)
    np.save(tmp_path / "x.npy", x.numpy())
    native.run_model(folder, given=tmp_path / "x.npy")
    found = np.load(tmp_path / "x.out.npy")
    with torch.no_grad():
        expected = build("digits_cnn")(x).numpy()
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    assert capsys.readouterr().out == f"{tmp_path / 'x.out.npy'}: (3, 10)\n"


def test_records_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    native.compile_model("digits_cnn", None, explain=True)
    assert "convolution" in capsys.readouterr().out


def test_times_are_printed_with_layers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    native.bench(folder, repeats=3, threads=2, layers=True)
    printed = capsys.readouterr().out
    assert printed.startswith("digits_cnn, ")
    assert "2 threads" in printed
    assert "3 calls" in printed
    assert "100.0%" not in printed  # a layer's share: there are several


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `codesign prune` leaves behind."""
    found = tmp_path_factory.mktemp("pruned") / "study"
    options = {"density": 0.3, "granularity": "pattern"}
    prune.run(prune.PruneConfig("digits_cnn", "digits", "random", weights="scratch", options=options, epochs=1), found)
    return found


def test_what_was_pruned_is_compiled(pruned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    native.compile_model(str(pruned), tmp_path / "net")
    assert "digits_cnn for" in capsys.readouterr().out
    x = example_input("digits_cnn").numpy()
    with torch.no_grad():
        expected = prune.load_pruned(str(pruned))(torch.from_numpy(x)).numpy()
    assert np.abs(load_compiled(tmp_path / "net")(x) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_study_is_not_written_over(pruned: Path) -> None:
    before = {path.name: path.read_bytes() for path in pruned.iterdir() if path.is_file()}
    with pytest.raises(ConfigError, match="not empty and not a compiled network"):
        native.compile_model("digits_cnn", pruned)
    assert {path.name: path.read_bytes() for path in pruned.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda folder: native.compile_model("digits_cnn", None), ConfigError, "give --out FOLDER"),
        (lambda folder: native.compile_model(str(folder), None, explain=True), ConfigError, "compiled network already"),
        (lambda folder: native.run_model(folder), ConfigError, "give --data NAME"),
        (lambda folder: native.run_model(folder, given=folder / "x.npy", check=True), ConfigError, "go with --data"),
        (lambda folder: native.run_model(folder, "mnist", out=folder / "y"), ConfigError, "--out goes with --input"),
        (lambda folder: native.run_model(folder, given=folder / "none.npy"), DataError, "none.npy: cannot be read"),
        (
            lambda folder: native.run_model(folder, given=folder / "compiled.json"),
            DataError,
            "write it with numpy.save",
        ),
        (lambda folder: native.run_model(folder / "none", "mnist"), ConfigError, "holds no compiled network"),
    ],
)
def test_mistakes_are_one_line(folder: Path, call, error: type[Exception], message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message) as found:
        call(folder)
    assert "\n" not in str(found.value)


def test_answers_that_are_no_classes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native.compile_model("ssd_digits", tmp_path / "detector")
    size = tuple(example_input("ssd_digits").shape[1:])
    data = ImageData(
        "made up", "test", np.zeros((3, *size), np.uint8), np.zeros(3, np.int64), np.arange(3), 10,
        Preprocessing((0.5,) * size[0], (0.5,) * size[0]),
    )  # fmt: skip
    monkeypatch.setattr(native, "load_split", lambda *_: data)
    with pytest.raises(ConfigError, match=r"answers \(3, 640, 4\) and \(3, 640, 11\), accuracy needs one row"):
        native.run_model(tmp_path / "detector", "made up")
