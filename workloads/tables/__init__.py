"""Published networks as layer graphs in data files: priced without torch, weights or a model.

A table is `<name>.json` in this folder (or `.json.gz` where it is large): the zoo's model, lowered for one image, all
weights dense, fp32. `python -m workloads.tables.make` writes them again; a test compares them with a fresh lowering.
"""

from __future__ import annotations

import functools
import gzip
import json
import zlib
from pathlib import Path

from workloads.errors import CodesignError, ConfigError, unknown_name
from workloads.graph import LayerGraph

FOLDER = Path(__file__).parent
SUFFIXES = (".json", ".json.gz")


def tables() -> tuple[str, ...]:
    """Names of all tables, sorted."""
    files = (path.name for path in FOLDER.iterdir() if path.name.endswith(SUFFIXES))
    return tuple(sorted({name.partition(".json")[0] for name in files}))


@functools.cache
def table(name: str) -> LayerGraph:
    """A network by name, verified; the same object each time (graphs never change).

    Raises:
        ConfigError: unknown name, or a damaged file.

    >>> print(table("resnet18"))
    LayerGraph 'resnet18': 33 layers, 1,814.07 M MACs, 11,684,712 parameters, 14,020 KiB of activations
    """
    for path in (FOLDER / f"{name}{suffix}" for suffix in SUFFIXES):
        if name in tables() and path.is_file():
            return _read(path)
    raise unknown_name("table", name, tables())


def _read(path: Path) -> LayerGraph:
    try:
        content = path.read_bytes()
        text = gzip.decompress(content) if path.suffix == ".gz" else content
        return LayerGraph.from_dict(json.loads(text))
    except (OSError, EOFError, zlib.error, ValueError, RecursionError, CodesignError) as error:
        raise ConfigError(f"{path}: not a whole layer table ({error}); write it again") from error
