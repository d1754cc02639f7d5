"""Arrays on disk: a content-hashed store for the weights beside a graph, and a safe reader of weights files.

In a store every distinct array is one file `<sha256 of the file>.npy`, so equal arrays are kept once, a file is never
changed after it is written, and reading checks the content against the name. `save_graph("net.json", ...)` writes the
graph with an index, key -> hash, and its arrays into `net.weights/` beside it. The JSON comes last and whole: until it
is in place the old graph stays readable, and afterwards arrays that nothing names any more are removed.

Nothing here runs code from a file: no pickles, neither in .npy nor in weights files.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from workloads.errors import CodesignError, ConfigError, DataError
from workloads.graph import LayerGraph
from workloads.verify import verify_weights

PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")
ZIP_START = b"PK\x03\x04"  # torch.save writes a zip archive with a pickle in it
PICKLE_START = b"\x80"  # before version 1.6 a bare pickle, protocol 2 or later

# Types of safetensors that NumPy has; bfloat16 is the upper half of a float32.
DTYPES: Mapping[str, str] = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "<i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "<u1",
    "BOOL": "|b1",
}


# ---- a store of arrays ----------------------------------------------------------------------------------------------


def save_weights(folder: Path, weights: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Write each distinct array once.

    Args:
        folder: made if missing; arrays that are there already are not written again.
        weights: real numbers or booleans, all finite.

    Returns:
        The index: key -> SHA-256 of the file that holds the array.

    Raises:
        DataError: an array is not of numbers or not finite, or the folder cannot be written. All arrays are checked
            before the first one is written.
    """
    for key, array in weights.items():
        _check_numbers(f"array {key!r}", np.asarray(array))
    index = {}
    for key, array in weights.items():
        content = _encode(array)
        index[key] = hashlib.sha256(content).hexdigest()
        path = folder / f"{index[key]}.npy"
        if not _holds(path, content):
            write_file(path, content)
    return index


def load_weights(folder: Path, index: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Read what `save_weights` wrote; keys with equal arrays share one array in memory.

    Raises:
        DataError: a file is missing, truncated, altered, or holds NaN or infinite numbers.
    """
    arrays: dict[str, np.ndarray] = {}
    for key, digest in index.items():
        if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise DataError(f"{folder}: index of {key!r} is {digest!r}, must be a SHA-256 of 64 hexadecimal digits")
        if digest not in arrays:
            arrays[digest] = _decode(folder / f"{digest}.npy", key, digest)
    return {key: arrays[digest] for key, digest in index.items()}


def _encode(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(array).reshape(np.shape(array)), allow_pickle=False)
    return stream.getvalue()


def _decode(path: Path, key: str, digest: str) -> np.ndarray:
    try:
        content = path.read_bytes()
    except OSError as error:
        hint = "keep the folder beside its graph, or save the graph again"
        raise DataError(f"{path}: array {key!r} cannot be read ({error.strerror or error}); {hint}") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise DataError(f"{path}: array {key!r} is truncated or altered (wrong SHA-256); save the graph again")
    try:
        array = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path}: array {key!r} is no .npy file of numbers; save the graph again") from error
    _check_numbers(f"{path}: array {key!r}", array)
    return array


def _check_numbers(where: str, array: np.ndarray) -> None:
    if array.dtype.kind not in "fiub":
        raise DataError(f"{where} has type {array.dtype}, must be real numbers or booleans")
    if array.dtype.kind == "f" and array.size and not (np.isfinite(array.min()) and np.isfinite(array.max())):
        raise DataError(f"{where} holds NaN or infinite numbers; train again or load another file")


def _holds(path: Path, content: bytes) -> bool:
    try:
        return path.stat().st_size == len(content) and path.read_bytes() == content
    except OSError:
        return False


# ---- a graph and its arrays -----------------------------------------------------------------------------------------


def save_graph(path: Path, graph: LayerGraph, weights: Mapping[str, np.ndarray]) -> None:
    """Write a graph as JSON and its arrays into the folder `<name>.weights` beside it.

    Args:
        path: of the JSON; `net.json` goes with `net.weights/`. `LayerGraph.load` reads it without the arrays.
        weights: every array that a layer names; others are kept too.

    Raises:
        DataError: an array is missing or not finite, or the place cannot be written.
        ShapeError: graph or arrays do not agree.
    """
    verify_weights(graph.verify(), weights)
    folder = weights_folder(path)
    index = save_weights(folder, weights)
    write_file(path, graph_text(graph, index).encode())
    for stale in folder.glob("*.npy"):
        if stale.stem not in set(index.values()):
            stale.unlink(missing_ok=True)


def load_graph(path: Path) -> tuple[LayerGraph, dict[str, np.ndarray]]:
    """Read what `save_graph` wrote.

    Raises:
        ConfigError: the JSON cannot be read, is not a graph, or was saved without arrays.
        DataError: an array is missing, truncated, altered or not finite.
        ShapeError: layers and arrays do not agree.
    """
    data = read_json(path)
    try:
        graph = LayerGraph.from_dict(data)
        index = data.get("weights")
        if not isinstance(index, dict):
            raise ConfigError("has no index of weights; it was saved without them, so read it with LayerGraph.load")
        weights = load_weights(weights_folder(path), index)
        verify_weights(graph, weights)
    except CodesignError as error:
        raise type(error)(f"{path}: {error}") from error
    return graph, weights


def weights_folder(path: Path) -> Path:
    """Where the arrays of the graph at `path` lie.

    >>> weights_folder(Path("nets/tiny.json")).as_posix()
    'nets/tiny.weights'
    """
    return path.with_suffix(".weights")


def graph_text(graph: LayerGraph, index: Mapping[str, str] | None = None) -> str:
    """The graph as JSON with one layer a line, small and readable; `index` goes in as field "weights"."""
    data = graph.to_dict()
    layers = ",\n".join(_compact(layer) for layer in data.pop("layers"))
    rest = data | ({} if index is None else {"weights": dict(index)})
    head = "".join(f'"{key}":{_compact(value)},\n' for key, value in rest.items())
    return f'{{{head}"layers":[\n{layers}\n]}}\n'


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ConfigError: it cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON ({error})") from error


@contextmanager
def whole(path: Path, *failures: type[Exception]) -> Iterator[Path]:
    """A file to write to that takes the name `path` when all is well: a killed run leaves the old file or none.

    Folders are made. What a killed run may leave beside it is named as `is_leftover` says. What is no plain file (a
    pipe, /dev/null) is written as it is; of a link, what it points to.

    Args:
        failures: what else than OSError means that the place cannot be written.

    Raises:
        DataError: the place cannot be written.
    """
    failed: tuple[type[Exception], ...] = (OSError, *failures)
    try:
        place = path.resolve()
        if place.exists() and not place.is_file():
            yield place
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_name(f".{place.name}.{os.getpid()}-{threading.get_ident()}.part")
        try:
            yield part
            part.replace(place)
        finally:
            part.unlink(missing_ok=True)
    except failed as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be written ({reason}); choose a place that you may write to") from error


def is_leftover(path: Path) -> bool:
    """Whether a process that lives no more began to write a file (`whole`)."""
    found = re.fullmatch(r"\..+\.(\d+)-\d+\.part", path.name)
    if not found:
        return False
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all (`whole`)."""
    with whole(path) as part:
        part.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON value whole or not at all (`whole`)."""
    write_file(path, (json.dumps(value, indent=1) + "\n").encode())


# ---- weights files --------------------------------------------------------------------------------------------------


def check_safetensors(path: Path) -> None:
    """Look at the first bytes of a weights file before anything parses it.

    Raises:
        DataError: it cannot be read, is a pickle by name or content, or cannot be safetensors.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(9)
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); give a .safetensors file") from error
    header = int.from_bytes(start[:8], "little")
    if len(start) == 9 and start[8:] == b"{" and header <= size - 8:
        return
    # The first bytes of a safetensors file, the low bytes of its header's length, may look like a pickle's too; but
    # its upper bytes are 0, and a pickle goes on with opcodes: protocol 4 and later with 0x95.
    is_pickle = start.startswith(ZIP_START)
    is_pickle |= start.startswith(PICKLE_START) and (start[2:3] == b"\x95" or any(start[4:8]))
    if is_pickle or path.suffix.lower() in PICKLE_SUFFIXES:
        hint = "store it with safetensors.torch.save_file"
        raise DataError(f"{path}: a pickle, which can run code when it is read; only safetensors are read: {hint}")
    raise DataError(f"{path}: not a whole safetensors file ({size:,} bytes); download or store it again")


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Every array of a safetensors file, in its own type (bfloat16 as float32), without torch.

    Raises:
        DataError: no such file, a pickle, a truncated file, a type that NumPy lacks, or a NaN or infinity in it.
    """
    from safetensors import SafetensorError, deserialize

    check_safetensors(path)
    try:
        entries = deserialize(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); give a .safetensors file") from error
    except SafetensorError as error:
        raise DataError(f"{path}: not a whole safetensors file ({error}); download or store it again") from error
    return {key: _array(path, key, entry) for key, entry in entries}


def _array(path: Path, key: str, entry: Mapping[str, Any]) -> np.ndarray:
    if entry["dtype"] not in DTYPES:
        raise DataError(f"{path}: {key!r} has type {entry['dtype']}, must be one of {', '.join(DTYPES)}")
    array: np.ndarray = np.frombuffer(entry["data"], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    if entry["dtype"] == "BF16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    _check_numbers(f"{path}: {key!r}", array)
    return array
