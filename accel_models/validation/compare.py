"""Published rows against predictions.

Each target has one CSV beside this file, `<target>.csv`:

    id, workload, overrides, metric, unit, value, kind, calibrated, source

`workload` is `table:NAME` (a layer table of `workloads.tables`, optionally `@fp32`) or one layer written out,
`layer:conv c=64 k=64 h=56 r=3 stride=1 density=0.5` ("same" padding; w = h, s = r, groups = 1, density = 1 and
inputs = 1, the density of the input, unless given), or `layers:FILE`, one such layer a line in a text file beside it.
`overrides` changes numbers of the spec for this row, `parameters.threads=1;clock_hz=1e9`. `metric` is cycles or
latency. A new machine with published rows is one YAML and one CSV.
"""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from accel_models.registry import target
from accel_models.validation import FOLDER, ErrorBar
from workloads.columns import Columns
from workloads.errors import ConfigError
from workloads.graph import Layer, LayerGraph, Op
from workloads.sparsity import WeightSparsity

# Overrides that say how a layer was run rather than which machine ran it: the error without them is shown as well.
CIRCUMSTANCES = ("parameters.standalone",)
TO_SI = {"ms": 1e-3, "us": 1e-6, "s": 1.0, "cycle": 1.0}


@dataclass(frozen=True)
class Row:
    """One published number."""

    id: str
    workload: str
    overrides: str
    metric: str
    unit: str
    value: float
    kind: str
    calibrated: bool
    source: str


@dataclass(frozen=True)
class Comparison:
    """A published number beside its prediction, both in the row's unit."""

    row: Row
    predicted: float

    @property
    def error(self) -> float:
        """Signed relative error."""
        return self.predicted / self.row.value - 1


def rows(name: str) -> list[Row]:
    """Published rows of a target; [] if it has none.

    Raises:
        ConfigError: names the file, the row and the field.
    """
    path = FOLDER / f"{name}.csv"
    if not path.exists():
        return []
    found = []
    with path.open(newline="") as file:
        for line, record in enumerate(csv.DictReader(file), 2):
            if record["unit"] not in TO_SI or record["metric"] not in ("cycles", "latency"):
                raise ConfigError(f"{path}:{line}: metric or unit is unknown: {record['metric']} in {record['unit']}")
            values: dict[str, Any] = {**record, "value": float(record["value"])}
            found.append(Row(**{**values, "calibrated": record["calibrated"] == "yes"}))
    return found


def compare(name: str) -> list[Comparison]:
    """Every published row of a target with its prediction."""
    return [Comparison(row, _predict(name, row)) for row in rows(name)]


def compare_as_shipped(name: str) -> list[Comparison]:
    """The rows that were run in other circumstances than the machine file's, priced as the file has it.

    [] if there are none. For an Ethos-U: networks of one operator, priced as if they stood inside a network.
    """
    return [Comparison(row, _predict(name, row)) for row in map(_as_shipped, rows(name)) if row is not None]


def _as_shipped(row: Row) -> Row | None:
    """The row without overrides of CIRCUMSTANCES; None if it has none."""
    given = row.overrides.split(";")
    kept = [item for item in given if item.partition("=")[0].strip() not in CIRCUMSTANCES]
    return dataclasses.replace(row, overrides=";".join(kept)) if len(kept) < len(given) else None


def summary(comparisons: list[Comparison]) -> ErrorBar | None:
    """The error of a target over its rows."""
    if not comparisons:
        return None
    errors = np.array([abs(item.error) for item in comparisons])
    kinds = sorted({item.row.kind for item in comparisons})
    return ErrorBar(
        rows=len(errors),
        against=f"published rows ({', '.join(kinds)})",
        mean=round(float(errors.mean()), 4),
        median=round(float(np.median(errors)), 4),
        worst=round(float(errors.max()), 4),
        worst_row=comparisons[int(errors.argmax())].row.id,
        calibrated=any(item.row.calibrated for item in comparisons),
    )


def store(results: dict[str, ErrorBar]) -> None:
    """Write the errors that results print beside predictions."""
    text = json.dumps({name: asdict(results[name]) for name in sorted(results)}, indent=1)
    (FOLDER / "errors.json").write_text(text + "\n")


def _predict(name: str, row: Row) -> float:
    machine = target(name, dict(_overrides(row.overrides)))
    results = [machine.simulate(graph) for graph in _graphs(row.workload)]
    total = sum(result.cycles if row.metric == "cycles" else result.latency_s for result in results)
    return total / TO_SI[row.unit]


def _graphs(workload: str) -> list[LayerGraph]:
    """What a row prices; the layers of a list are independent of each other."""
    kind, _, what = workload.partition(":")
    if kind == "layers":
        lines = (FOLDER / what).read_text().splitlines()
        return [layer_graph(line) for line in lines if line and not line.startswith("#")]
    return [_table(what) if kind == "table" else layer_graph(what)]


def _overrides(text: str) -> Iterator[tuple[str, float]]:
    for item in filter(None, text.split(";")):
        path, _, value = item.partition("=")
        yield path.strip(), float(value) if "." in value or "e" in value else int(value)


def _table(what: str) -> LayerGraph:
    from workloads.tables import table

    name, _, precision = what.partition("@")
    graph = table(name)
    return graph.with_precision(precision) if precision else graph


def layer_graph(text: str) -> LayerGraph:
    """A graph of one layer from its written-out form (module docstring).

    >>> graph = layer_graph("conv c=3 k=8 h=8 r=3 stride=2")
    >>> graph["layer"].shape, graph.macs
    ((1, 8, 4, 4), 3456)
    """
    op, *pairs = text.split()
    given = dict(pair.split("=") for pair in pairs)
    number = {key: int(value) for key, value in given.items() if key not in ("density", "inputs", "activation")}
    c, h, r, stride = number["c"], number.get("h", 1), number.get("r", 1), number.get("stride", 1)
    k, groups, w, s = number.get("k", c), number.get("groups", 1), number.get("w", h), number.get("s", r)
    p, q = -(-h // stride), -(-w // stride)
    down, across = max((p - 1) * stride + r - h, 0), max((q - 1) * stride + s - w, 0)
    flat = op == "linear"
    density, inputs = float(given.get("density", 1.0)), float(given.get("inputs", 1.0))
    shape = (1, c) if flat else (1, c, h, w)
    known = (inputs,) * c if inputs < 1 else ()
    source = Layer("input", Op.INPUT, shape, k=c, c=c, p=h, q=w, activation_density=known)
    layer = Layer(
        "layer",
        Op(op),
        (1, k) if flat else (1, k, p, q),
        ("input",),
        k=k,
        c=c,
        p=p,
        q=q,
        r=r,
        s=s,
        groups=groups,
        in_h=h,
        in_w=w,
        stride=(stride, stride),
        padding=(down // 2, down - down // 2, across // 2, across - across // 2),
        weight="layer.weight",
        bias="layer.bias",
        activation=given.get("activation", ""),
        sparsity=WeightSparsity.from_density((k, c // groups, r, s), density) if density < 1 else None,
    )
    return LayerGraph(text, (source, layer), ("layer",)).verify()


def layers_columns(texts: list[str]) -> Columns:
    """The multiplying rows of several written-out layers."""
    return Columns.concatenate([layer_graph(text).columns.take(slice(1, 2)) for text in texts])
