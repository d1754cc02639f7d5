"""The weight store, graphs with weights on disk, and the reader of weights files."""

import hashlib
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from safetensors.torch import save_file

from tests.workloads.builders import arrays_of, residual
from workloads.errors import CodesignError, ConfigError, DataError, ShapeError
from workloads.graph import LayerGraph
from workloads.store import (
    check_safetensors,
    is_leftover,
    load_graph,
    load_weights,
    read_safetensors,
    save_graph,
    save_weights,
    weights_folder,
    whole,
    write_file,
)


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    return arrays_of(residual(), seed)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def assert_one_line(error: BaseException, *parts: object) -> None:
    assert "\n" not in str(error)
    for part in parts:
        assert str(part) in str(error)


# ---- arrays ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "i1", "i8", "u2", "?", ">f4"])
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, 3, 4)])
def test_arrays_come_back_as_they_were(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    array = (np.random.default_rng(0).normal(size=shape) * 9).astype(dtype)
    again = load_weights(tmp_path, save_weights(tmp_path, {"a": array}))["a"]
    assert again.dtype == array.dtype
    assert again.shape == array.shape
    assert again.tobytes() == array.tobytes()


def test_the_name_of_a_file_is_the_hash_of_its_content(tmp_path: Path) -> None:
    index = save_weights(tmp_path, arrays())
    for digest in index.values():
        assert hashlib.sha256((tmp_path / f"{digest}.npy").read_bytes()).hexdigest() == digest


def test_equal_arrays_are_kept_once(tmp_path: Path) -> None:
    one = np.arange(12, dtype=np.float32).reshape(3, 4)
    index = save_weights(tmp_path, {"a": one, "b": one.copy(), "c": one.T.copy(), "d": np.asfortranarray(one)})
    assert index["a"] == index["b"] == index["d"] != index["c"]  # layout in memory is no content
    assert len(names(tmp_path)) == 2
    found = load_weights(tmp_path, index)
    assert found["a"] is found["b"]


def test_arrays_that_are_there_are_not_written_again(tmp_path: Path) -> None:
    index = save_weights(tmp_path, arrays())
    path = tmp_path / f"{index['a.weight']}.npy"
    os.utime(path, ns=(1, 1))
    assert save_weights(tmp_path, arrays()) == index
    assert path.stat().st_mtime_ns == 1
    path.write_bytes(path.read_bytes()[:-1])
    save_weights(tmp_path, arrays())  # a damaged one is
    assert load_weights(tmp_path, index)["a.weight"].tobytes() == arrays()["a.weight"].tobytes()


def test_non_contiguous_arrays_are_written_whole(tmp_path: Path) -> None:
    array = np.arange(24.0).reshape(4, 6)[::2, ::3]
    assert np.array_equal(load_weights(tmp_path, save_weights(tmp_path, {"a": array}))["a"], array)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_is_never_written(tmp_path: Path, value: float) -> None:
    with pytest.raises(DataError, match="array 'b' holds NaN or infinite numbers") as caught:
        save_weights(tmp_path / "new", {"a": np.ones(3), "b": np.array([1.0, value])})
    assert_one_line(caught.value)
    assert names(tmp_path) == set()


@pytest.mark.parametrize("array", [np.array([{}]), np.array(["a"]), np.array([1j])])
def test_only_numbers_are_written(tmp_path: Path, array: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"array 'a' has type .*, must be real numbers or booleans"):
        save_weights(tmp_path, {"a": array})


def saved(folder: Path) -> tuple[dict[str, str], Path]:
    index = save_weights(folder, {"a": np.arange(1000, dtype=np.float32)})
    return index, folder / f"{index['a']}.npy"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    index, path = saved(tmp_path)
    path.unlink()
    with pytest.raises(DataError) as caught:
        load_weights(tmp_path, index)
    assert_one_line(caught.value, path, "array 'a' cannot be read (No such file or directory)")


@pytest.mark.parametrize("size", [0, 5, 100, 4000])
def test_a_truncated_file_is_found(tmp_path: Path, size: int) -> None:
    index, path = saved(tmp_path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError) as caught:
        load_weights(tmp_path, index)
    assert_one_line(caught.value, path, "array 'a' is truncated or altered (wrong SHA-256)")


def test_one_changed_bit_is_found(tmp_path: Path) -> None:
    index, path = saved(tmp_path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="truncated or altered"):
        load_weights(tmp_path, index)


def planted(folder: Path, content: bytes) -> dict[str, str]:
    """A file whose name is true to its content."""
    digest = hashlib.sha256(content).hexdigest()
    (folder / f"{digest}.npy").write_bytes(content)
    return {"a": digest}


def npy(folder: Path, array: np.ndarray) -> bytes:
    np.save(folder / "x.npy", array, allow_pickle=True)
    content = (folder / "x.npy").read_bytes()
    (folder / "x.npy").unlink()
    return content


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def test_content_with_a_true_hash_is_still_not_trusted(tmp_path: Path) -> None:
    bomb = np.array([Bomb(tmp_path / "boom")], dtype=object)
    bad = {
        "no .npy file of numbers": [
            b"",
            b"hello",
            npy(tmp_path, bomb),
            pickle.dumps(bomb),
            npy(tmp_path, np.ones(9))[:-8],
        ],
        "holds NaN or infinite numbers": [npy(tmp_path, np.array([np.nan]))],
    }
    for message, contents in bad.items():
        for content in contents:
            with pytest.raises(DataError, match=message) as caught:
                load_weights(tmp_path, planted(tmp_path, content))
            assert_one_line(caught.value)
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("digest", ["../../etc/passwd", "", "A" * 64, "0" * 63, 7, None])
def test_an_index_cannot_name_other_files(tmp_path: Path, digest: object) -> None:
    with pytest.raises(DataError, match="must be a SHA-256 of 64 hexadecimal digits"):
        load_weights(tmp_path, {"a": digest})  # type: ignore[dict-item]


# ---- graphs ---------------------------------------------------------------------------------------------------------


def test_a_graph_and_its_weights_come_back(tmp_path: Path) -> None:
    path = tmp_path / "nets" / "tiny.json"
    save_graph(path, residual(), arrays())
    net, weights = load_graph(path)
    assert net == residual()
    assert list(weights) == list(arrays())
    assert all(np.array_equal(weights[key], array) for key, array in arrays().items())
    assert LayerGraph.load(path) == residual()  # without the arrays
    assert {entry.name for entry in path.parent.iterdir()} == {"tiny.json", "tiny.weights"}
    assert names(path.parent) - {"tiny.json"} == names(weights_folder(path))


def test_the_same_graph_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tests.workloads.builders import arrays_of, residual;"
        "from workloads.store import save_graph; save_graph(Path(sys.argv[1]), residual(), arrays_of(residual()))"
    )
    for seed in "01":
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.getcwd()}
        subprocess.run([sys.executable, "-c", script, str(tmp_path / f"{seed}.json")], env=environment, check=True)
    assert (tmp_path / "0.json").read_bytes() == (tmp_path / "1.json").read_bytes()
    assert names(tmp_path / "0.weights") == names(tmp_path / "1.weights")


def test_saving_again_keeps_what_is_equal_and_removes_what_is_stale(tmp_path: Path) -> None:
    path = tmp_path / "net.json"
    save_graph(path, residual(), arrays())
    before = names(weights_folder(path))
    save_graph(path, residual(), arrays() | {"fc.bias": np.zeros(10, np.float32)})
    after = names(weights_folder(path))
    assert len(before) == len(after) == 5
    assert len(before & after) == 4
    assert load_graph(path)[1]["fc.bias"].tolist() == [0] * 10


def test_a_failed_save_leaves_the_old_graph(tmp_path: Path) -> None:
    path = tmp_path / "net.json"
    save_graph(path, residual(), arrays())
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    for bad in ({"fc.bias": np.full(10, np.nan)}, {"fc.bias": np.zeros(9)}):
        with pytest.raises(CodesignError):
            save_graph(path, residual(), arrays(1) | bad)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_a_graph_without_all_its_weights_is_not_saved(tmp_path: Path) -> None:
    some = {key: array for key, array in arrays().items() if key != "b.weight"}
    with pytest.raises(DataError, match=r"layer 'b' \(conv\): array 'b.weight' is missing"):
        save_graph(tmp_path / "net.json", residual(), some)
    assert names(tmp_path) == set()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(DataError, match="cannot be written"):
        save_graph(tmp_path / "net.json", residual(), arrays())


def test_a_place_that_is_no_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError) as caught:
        save_graph(tmp_path / "file" / "net.json", residual(), arrays())
    assert_one_line(caught.value, "cannot be written", "choose a place that you may write to")


class TestWholeOrNotAtAll:
    def test_takes_its_name_at_the_end(self, tmp_path: Path) -> None:
        path = tmp_path / "below" / "net.bin"
        with whole(path) as part:
            part.write_bytes(b"half")
            assert names(tmp_path) == {part.name}
        assert path.read_bytes() == b"half"
        assert names(tmp_path) == {"net.bin"}

    @pytest.mark.parametrize(("raised", "seen"), [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (TypeError("no tensor"), TypeError),
        (OSError(28, "No space left on device"), DataError),
        (RuntimeError("stream is full"), DataError),
    ])  # fmt: skip
    def test_what_fails_leaves_the_old_file(
        self, tmp_path: Path, raised: BaseException, seen: type[BaseException]
    ) -> None:
        path = tmp_path / "net.bin"
        write_file(path, b"old")

        def fail() -> None:
            with whole(path, RuntimeError) as part:
                part.write_bytes(b"ne")
                raise raised

        with pytest.raises(seen):
            fail()
        assert names(tmp_path) == {"net.bin"}
        assert path.read_bytes() == b"old"

    def test_two_writers_do_not_share_a_part(self, tmp_path: Path) -> None:
        path, parts = tmp_path / "net.bin", []
        with whole(path) as mine:
            mine.write_bytes(b"mine")

            def write() -> None:
                with whole(path) as part:
                    part.write_bytes(b"yours")
                    parts.append(part)

            thread = threading.Thread(target=write)
            thread.start()
            thread.join()
            assert path.read_bytes() == b"yours"
        assert parts != [mine]
        assert path.read_bytes() == b"mine"

    def test_links_stay_links(self, tmp_path: Path) -> None:
        write_file(tmp_path / "net.bin", b"old")
        (tmp_path / "link").symlink_to(tmp_path / "net.bin")
        write_file(tmp_path / "link", b"new")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "net.bin").read_bytes() == b"new"

    def test_pipes_and_devices_stay_what_they_are(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
        write_file(tmp_path / "pipe", b"through")
        assert os.read(reader, 100) == b"through"
        os.close(reader)
        assert (tmp_path / "pipe").is_fifo()
        write_file(Path(os.devnull), b"gone")
        assert Path(os.devnull).is_char_device()

    @pytest.mark.parametrize("name", [".", "", "folder"])
    def test_folders_are_no_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "folder").mkdir()
        with pytest.raises(DataError, match="cannot be written"):
            write_file(Path(name), b"")
        assert names(tmp_path) == set()

    def test_leftovers_are_those_of_the_dead(self, tmp_path: Path) -> None:
        mine = tmp_path / f".net.bin.{os.getpid()}-1.part"
        assert is_leftover(tmp_path / ".net.bin.999999999-1.part")
        others = ("net.bin.999999999-1.part", ".net.bin.part", ".net.part", ".a.9-x.part", f".a.{10**30}-1.part")
        assert not any(is_leftover(path) for path in (mine, *(tmp_path / name for name in others)))

    def test_files_are_as_open_as_others(self, tmp_path: Path) -> None:
        (tmp_path / "plain").touch()
        write_file(tmp_path / "net.bin", b"")
        assert (tmp_path / "net.bin").stat().st_mode == (tmp_path / "plain").stat().st_mode


def edited(path: Path, **changes: object) -> Path:
    data = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in (data | changes).items() if value is not None}))
    return path


def test_bad_graph_files_get_one_line(tmp_path: Path) -> None:
    path = tmp_path / "net.json"
    save_graph(path, residual(), arrays())
    good, index = path.read_text(), json.loads(path.read_text())["weights"]
    swapped = index | {"a.weight": index["b.weight"]}
    table: list[tuple[dict, type[Exception], str]] = [
        ({"weights": None}, ConfigError, "has no index of weights; it was saved without them"),
        ({"weights": [1]}, ConfigError, "has no index of weights"),
        ({"weights": {}}, DataError, "array 'a.weight' is missing"),
        ({"weights": {"a.weight": "x"}}, DataError, "must be a SHA-256"),
        ({"weights": swapped}, ShapeError, "array 'a.weight' has shape (4, 4, 3, 3), must be (4, 3, 3, 3)"),
        ({"version": 9}, ConfigError, "layer graph version 9"),
        ({"outputs": ["z"]}, ShapeError, "output 'z' is no layer"),
    ]
    for changes, kind, message in table:
        path.write_text(good)
        with pytest.raises(kind) as caught:
            load_graph(edited(path, **changes))
        assert_one_line(caught.value, message, tmp_path)
    for content in ("", "{", "[" * 100_000, '{"a": ' + "9" * 10_000):
        path.write_text(content)
        with pytest.raises(ConfigError, match="not JSON") as failed:
            load_graph(path)
        assert_one_line(failed.value, path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_graph(tmp_path / "none.json")


# ---- weights files --------------------------------------------------------------------------------------------------


def test_safetensors_come_back_in_their_type(tmp_path: Path) -> None:
    stored = {
        "f4": np.arange(6, dtype=np.float32).reshape(2, 3),
        "f8": np.array(2.5),
        "f2": np.ones((0, 4), np.float16),
        "i1": np.array([-128, 127], np.int8),
        "u8": np.array([2**64 - 1], np.uint64),
        "mask": np.array([True, False]),
    }
    safetensors.numpy.save_file(stored, tmp_path / "w.safetensors")
    found = read_safetensors(tmp_path / "w.safetensors")
    assert set(found) == set(stored)
    for key, array in stored.items():
        assert found[key].dtype == array.dtype
        assert found[key].shape == array.shape
        assert np.array_equal(found[key], array)


def test_bfloat16_becomes_float32(tmp_path: Path) -> None:
    tensor = torch.randn(3, 5).bfloat16()
    save_file({"a": tensor}, tmp_path / "w.safetensors")
    found = read_safetensors(tmp_path / "w.safetensors")["a"]
    assert found.dtype == np.float32
    assert torch.equal(torch.from_numpy(found), tensor.float())


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w.safetensors", "w"])
@pytest.mark.parametrize("protocol", [0, 2, 4, "zip"])
def test_a_pickle_is_refused_and_never_run(tmp_path: Path, name: str, protocol: int | str) -> None:
    path, bomb = tmp_path / name, Bomb(tmp_path / "boom")
    if protocol == "zip":
        torch.save({"a": bomb}, path)
    else:
        path.write_bytes(pickle.dumps({"a": bomb}, protocol))
    with pytest.raises(DataError) as caught:
        read_safetensors(path)
    assert_one_line(caught.value, path)
    told = "a pickle, which can run code when it is read; only safetensors are read"
    assert told in str(caught.value) or (protocol == 0 and path.suffix not in (".pt", ".pth", ".bin"))
    assert not (tmp_path / "boom").exists()


def test_a_header_that_starts_like_a_pickle_is_read(tmp_path: Path) -> None:
    """The first byte is the low byte of the header's length; a length of 640 also looks like pickle protocol 2."""
    path = tmp_path / "w.safetensors"
    starts = set()
    for size in range(600):
        safetensors.numpy.save_file({"a": np.ones(2)}, path, {"note": "x" * size})
        starts.add(path.read_bytes()[:2])
        assert read_safetensors(path)["a"].tolist() == [1, 1]
    assert {b"\x80\x00", b"\x80\x01", b"\x80\x02"} <= starts


@pytest.mark.parametrize("suffix", [".pt", ".bin"])
def test_safetensors_of_another_name_are_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    safetensors.numpy.save_file({"a": np.ones(2)}, path)
    assert read_safetensors(path)["a"].tolist() == [1, 1]


def test_every_truncation_is_found(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.numpy.save_file({"a": np.arange(8.0), "b": np.ones(3, np.int8)}, path)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match="not a whole safetensors file") as caught:
            read_safetensors(path)
        assert_one_line(caught.value, path)


def header(text: str, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text.encode() + data


BAD = [
    (b"", "not a whole safetensors file (0 bytes)"),
    (b"not safetensors at all", "not a whole safetensors file (22 bytes)"),
    (struct.pack("<Q", 2**63) + b"{}", "not a whole safetensors file"),
    (header("{}}"), "not a whole safetensors file"),
    (header('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', b"1234"), "not a whole safetensors file"),
    (
        header('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"\x00\x00\xc0\x7f"),
        "'a' holds NaN or infinite",
    ),
    (
        header('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"\x00\x00\x80\xff"),
        "'a' holds NaN or infinite",
    ),
    (header('{"a":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}', b"\xc0\x7f"), "'a' holds NaN or infinite"),
    (
        header('{"a":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}', b"12"),
        "'a' has type F8_E4M3, must be one of",
    ),
    (header('{"a":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}', b"12345678"), "'a' has type C64, must be one of"),
]


@pytest.mark.parametrize(("content", "message"), BAD)
def test_a_bad_weights_file_gets_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = write(tmp_path / "w.safetensors", content)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        read_safetensors(path)
    assert_one_line(caught.value, path)


def test_a_weights_file_that_is_not_there_gets_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(DataError, match="cannot be read") as caught:
            check_safetensors(path)
        assert_one_line(caught.value, path, "give a .safetensors file")


def test_reading_needs_no_torch(tmp_path: Path) -> None:
    save_graph(tmp_path / "net.json", residual(), arrays())
    safetensors.numpy.save_file(arrays(), tmp_path / "w.safetensors")
    script = (
        "import sys; from pathlib import Path; from workloads.store import load_graph, read_safetensors;"
        "load_graph(Path(sys.argv[1]) / 'net.json'); read_safetensors(Path(sys.argv[1]) / 'w.safetensors');"
        "sys.exit('torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=environment, check=True)
