"""A compiled network in a folder: its graph, its weights and the tuned plan, but no machine code.

Code is made again when the folder is loaded (seconds for a large network: docs/engines.md): what is read from disk is
data alone, checked before it is used, and no folder holds code of an older generator.

    compiled.json   format, instruction set, threads, tunings by layer, checksums of graph.json and of itself
    graph.json      the layer graph, with the checksums of its arrays;  graph.weights/  the arrays
    layers.yaml     the layer-wise representation, to be read
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from codesign.compiler.isa import ISAS, host_isas
from codesign.compiler.network import Network
from codesign.compiler.plan import Tuning
from codesign.compiler.records import explain
from codesign.compiler.tune import tuning_of
from workloads.errors import ConfigError, DataError
from workloads.graph import LayerGraph
from workloads.store import load_graph, read_json, save_graph, weights_folder, write_file, write_json

FORMAT = "codesign.compiled/1"
PLAN, GRAPH, LAYERS = "compiled.json", "graph.json", "layers.yaml"


def save(folder: Path, network: Network, weights: Mapping[str, np.ndarray], tunings: Mapping[str, Tuning]) -> None:
    """Write a compiled network beside its place and move it there when it is whole; one that lay there goes.

    Raises:
        ConfigError: the folder holds other files, or is one.
        DataError: the place cannot be written.
    """
    folder = folder.resolve()
    check_place(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as beside:
            made = Path(beside, "new")
            save_graph(made / GRAPH, network.graph, weights)
            plan = {
                "format": FORMAT,
                "isa": network.isa.name,
                "threads": network.threads,
                "graph_sha256": _digest(made / GRAPH),
                "tunings": {name: asdict(tuning) for name, tuning in tunings.items()},
            }
            write_file(made / LAYERS, explain(network, with_code=False).encode())
            write_json(made / PLAN, {**plan, "sha256": _own_digest(plan)})
            _move(made, folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error}); choose another place") from error


def _move(made: Path, folder: Path) -> None:
    """In place of an older one, which others may be putting there at the same time."""
    for attempt in itertools.count():
        try:
            made.rename(folder)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        with contextlib.suppress(FileNotFoundError):
            folder.rename(made.with_name(f"old{attempt}"))


def check_place(folder: Path) -> None:
    """Refuse a folder that holds something else; errors as `save`."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file, must be a folder; choose another place")
    names: set[str] = set()
    with contextlib.suppress(FileNotFoundError):  # there is none, or another is just being moved there
        names = {path.name for path in folder.iterdir()}
    if names and PLAN not in names:
        raise ConfigError(f"{folder}: not empty and not a compiled network; choose another folder")
    if others := names - {PLAN, GRAPH, LAYERS, weights_folder(Path(GRAPH)).name}:
        raise ConfigError(f"{folder}: holds {min(others)!r} beside a compiled network, which would go; move it away")


def load(folder: Path) -> tuple[LayerGraph, dict[str, np.ndarray], str, int, dict[str, Tuning]]:
    """Graph, weights, instruction set, threads and tunings of a folder.

    Raises:
        ConfigError: it holds no compiled network, one of another format, or one for another processor.
        DataError: a file is damaged.
    """
    path = folder / PLAN
    if not path.is_file():
        raise ConfigError(f"{folder}: holds no compiled network (no {PLAN}); make one with codesign compile --out")
    plan = read_json(path)
    if not isinstance(plan, dict) or plan.get("format") != FORMAT:
        found = plan.get("format") if isinstance(plan, dict) else None
        raise ConfigError(f"{path}: format is {found!r}, this version reads {FORMAT}; compile the network again")
    isa, threads = plan.get("isa"), plan.get("threads")
    if not isinstance(isa, str) or isa not in ISAS:
        raise ConfigError(f"{path}: instruction set is {isa!r}, must be one of {', '.join(ISAS)}")
    if isa not in host_isas():
        raise ConfigError(f"{path}: made for {isa}, this machine has {', '.join(host_isas())}; compile it again here")
    if not isinstance(threads, int) or threads < 1:
        raise ConfigError(f"{path}: threads is {threads!r}, must be an integer >= 1")
    tunings = _tunings(path, plan.get("tunings"))
    if _own_digest(plan) != plan.get("sha256"):
        raise DataError(f"{path}: differs from what was saved; compile the network again")
    if _digest(folder / GRAPH) != plan.get("graph_sha256"):
        raise DataError(f"{folder / GRAPH}: differs from what was saved; compile the network again")
    graph, weights = load_graph(folder / GRAPH)
    return graph, weights, isa, threads, tunings


def _tunings(path: Path, rows: Any) -> dict[str, Tuning]:
    try:
        return {name: tuning_of(row) for name, row in rows.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: tunings cannot be read ({error}); compile the network again") from error


def _own_digest(plan: Mapping[str, Any]) -> str:
    """Of a plan's content without the digest that it holds."""
    content = {key: value for key, value in plan.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
