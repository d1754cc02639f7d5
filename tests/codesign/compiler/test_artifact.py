"""Compiled networks in folders: the same answers again, and one line for whatever is wrong with a folder."""

import errno
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from typer.testing import CliRunner

from codesign.cli import app
from codesign.compiler import compile_network, load_compiled
from codesign.compiler.plan import Tuning
from codesign.compiler.records import records
from tests.codesign.compiler.native import HERE
from workloads.errors import CodesignError, ConfigError
from workloads.lowering import lower_with_weights
from workloads.models import build as zoo
from workloads.models import example_input


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("native") / "net"
    lowered = lower_with_weights(zoo("digits_cnn"), example_input("digits_cnn"), name="digits_cnn")
    compile_network(lowered, example_input("digits_cnn")).save(found)
    return found


def test_a_loaded_network_answers_the_same(folder: Path) -> None:
    x = example_input("digits_cnn")
    expected = compile_network(zoo("digits_cnn"))(x)
    assert torch.equal(load_compiled(folder)(x), expected)
    assert load_compiled(folder, threads=2).threads == 2
    assert torch.allclose(load_compiled(folder)(torch.cat([x, x])), torch.cat([expected, expected]), atol=1e-6)


def test_tunings_are_kept(tmp_path: Path) -> None:
    compiled = compile_network(zoo("digits_cnn"), example_input("digits_cnn"))
    shapes = tuple(layer.shape for layer in compiled.first.network.graph.inputs)
    names = [part.name for part in compiled.first.network.parts if "tuning" in part.record]
    compiled._tunings[shapes] = {name: Tuning((2, 1)) for name in names}
    compiled.save(tmp_path / "net")
    found = load_compiled(tmp_path / "net").first.network
    assert {tuple(part.record["tuning"]["tile"]) for part in found.parts if part.name in names} == {(2, 1)}


def test_records_can_be_read_and_add_up(folder: Path) -> None:
    found = yaml.safe_load((folder / "layers.yaml").read_text())
    network = load_compiled(folder).first.network
    assert [row["name"] for row in found["layers"]] == [part.name for part in network.parts]
    assert found["memory"]["arena_bytes"] == network.arena
    assert all(0 < row["code"]["text_bytes"] < 50_000 for row in records(network))
    for row in found["layers"]:
        if row["op"] == "conv":
            k, c, r, s = row["convolution"]["weights"]
            assert row["pattern"]["kernels"] == row["pattern"]["of"] == k * c
            assert row["pattern"]["multiplications_per_pixel"] == k * c * r * s


def change(key: str, value: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        plan = json.loads((folder / "compiled.json").read_text())
        (folder / "compiled.json").write_text(json.dumps({**plan, key: value}))

    return apply


def damage_graph(folder: Path) -> None:
    path = folder / "graph.json"
    path.write_text(path.read_text().replace("conv", "corv", 1))


def damage_weights(folder: Path) -> None:
    path = max((folder / "graph.weights").glob("*.npy"), key=lambda each: each.stat().st_size)
    content = bytearray(path.read_bytes())
    content[-5] ^= 255
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "compiled.json").unlink(), "holds no compiled network"),
        (lambda folder: (folder / "compiled.json").write_text("{"), "compiled.json: not JSON"),
        (change("format", "codesign.compiled/2"), "this version reads codesign.compiled/1"),
        (change("isa", "neon"), "instruction set is 'neon'"),
        (change("isa", ["avx2"]), r"instruction set is \['avx2'\], must be one of"),
        (change("threads", 0), "threads is 0, must be an integer >= 1"),
        (change("tunings", {"a": {"tile": [1]}}), "tunings cannot be read"),
        (change("tunings", 3), "tunings cannot be read"),
        (change("tunings", {"a": asdict(Tuning((1, 1)))}), "compiled.json: differs from what was saved"),
        (change("threads", 2), "compiled.json: differs from what was saved"),
        (damage_graph, "graph.json: differs from what was saved"),
        (lambda folder: (folder / "graph.json").unlink(), "graph.json: cannot be read"),
        (damage_weights, "graph.json: "),
    ],
)
def test_damage_ends_in_one_line(folder: Path, tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "net")
    damage(copy)
    with pytest.raises(CodesignError, match=message) as error:
        load_compiled(copy)
    assert "\n" not in str(error.value)


def test_a_foreign_processor_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codesign.compiler.artifact.host_isas", lambda: ("sse2",))
    if HERE[0] != "sse2":
        with pytest.raises(ConfigError, match=r"made for \w+, this machine has sse2; compile it again here"):
            load_compiled(folder)


def test_other_folders_are_left_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ConfigError, match="not empty and not a compiled network"):
        load_compiled(folder).save(tmp_path)
    with pytest.raises(ConfigError, match=r"mine.txt: is a file, must be a folder; choose another place"):
        load_compiled(folder).save(tmp_path / "mine.txt")
    load_compiled(folder).save(folder)  # over itself
    shutil.copytree(folder, tmp_path / "net")
    (tmp_path / "net" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds 'notes.txt' beside a compiled network, which would go"):
        load_compiled(folder).save(tmp_path / "net")
    assert (tmp_path / "net" / "notes.txt").read_text() == "mine"


def test_what_was_saved_lies_there_until_the_next_is_whole(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "net")
    kept = {path.name: path.read_bytes() for path in (tmp_path / "net").glob("*.*") if path.is_file()}
    other = compile_network(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("codesign.compiler.artifact.write_json", interrupted)
        for place in ("net", "new"):
            with pytest.raises(KeyboardInterrupt):
                other.save(tmp_path / place)
    assert {path.name: path.read_bytes() for path in (tmp_path / "net").glob("*.*") if path.is_file()} == kept
    assert [path.name for path in tmp_path.iterdir()] == ["net"]
    other.save(tmp_path / "net")
    assert load_compiled(tmp_path / "net")(torch.zeros(1, 3, 8, 8)).shape == (1, 4, 6, 6)
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_place_behind_a_link_stays_one(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    load_compiled(folder).save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "compiled.json").is_file()


def test_several_may_save_to_one_place(folder: Path, tmp_path: Path) -> None:
    networks = [load_compiled(folder) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda net: [net.save(tmp_path / "net") for _ in range(5)], networks))
    x = example_input("digits_cnn")
    assert torch.equal(load_compiled(tmp_path / "net")(x), networks[0](x))
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


@pytest.mark.parametrize("method", ["rename", "iterdir"])
def test_a_folder_may_go_meanwhile(folder: Path, tmp_path: Path, method: str) -> None:
    """As where another process is putting its own there."""
    place, whole = tmp_path / "net", getattr(Path, method)
    shutil.copytree(folder, place)

    def late(path: Path, *where: Path) -> object:
        if (*where, path)[0] == place and place.exists():
            shutil.rmtree(place)
            if method == "rename":
                raise OSError(errno.ENOTEMPTY, "Directory not empty")
        return whole(path, *where)

    network = load_compiled(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, method, late)
        network.save(place)
    assert load_compiled(place)(example_input("digits_cnn")).shape == (1, 10)


def test_the_commands(folder: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    out = tmp_path / "net"
    found = runner.invoke(app, ["compile", "digits_cnn", "--out", str(out), "--explain", "--batch", "2"])
    assert found.exit_code == 0, found.output
    assert "filters_that_agree" in found.output
    found = runner.invoke(app, ["run", str(out), "--data", "digits", "--images", "60", "--check"])
    assert found.exit_code == 0, found.output
    assert "60 of 60 answers are the interpreter's" in found.output
    x = example_input("digits_cnn", 2).numpy()
    np.save(tmp_path / "x.npy", x)
    found = runner.invoke(app, ["run", str(out), "--input", str(tmp_path / "x.npy")])
    assert np.array_equal(np.load(tmp_path / "x.out.npy"), load_compiled(out)(x))
    found = runner.invoke(app, ["run", str(out), "--input", str(tmp_path / "x.npy"), "--out", str(tmp_path / "y.txt")])
    assert np.array_equal(np.load(tmp_path / "y.txt"), load_compiled(out)(x))
    found = runner.invoke(app, ["bench", str(out), "--repeats", "3", "--layers"])
    assert found.exit_code == 0, found.output
    assert "3 calls" in found.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compile", "digits_cnn"], "give --out FOLDER"),
        (["compile", "digits_cnn", "--isa", "neon", "--explain"], "unknown instruction set 'neon'"),
        (["run", "FOLDER"], "give --data NAME to measure accuracy, or --input FILE.npy"),
        (["run", "FOLDER", "--data", "cifar10"], "digits_cnn takes"),
        (["run", "FOLDER", "--input", "missing.npy"], "missing.npy: cannot be read as an array"),
        (["bench", "nowhere"], "nowhere: holds no compiled network"),
        (["run", "FOLDER", "--input", "x.npy", "--check"], "--check and --images go with --data, not with --input"),
        (["run", "FOLDER", "--data", "digits", "--out", "y.npy"], "--out goes with --input, not with --data"),
        (["compile", "FOLDER", "--explain"], "is a compiled network already; give codesign run or codesign bench"),
    ],
)
def test_bad_words_end_in_one_line(folder: Path, words: list[str], message: str) -> None:
    found = CliRunner().invoke(app, [word.replace("FOLDER", str(folder)) for word in words])
    assert isinstance(found.exception, CodesignError)
    assert message in str(found.exception)
