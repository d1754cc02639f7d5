"""Published rows: one CSV a target beside this file, `<target>.csv`, one number a line. (Beside a machine file of your
own, `mine.yaml`, it is `mine.csv`.)

    id, network, workload, overrides, metric, unit, value, kind, calibrated, source

`network` is the group that leave-one-network-out leaves out. `workload` is what ran (`workload`). `overrides` changes
numbers of the machine for this row, `parameters.threads=1;clock_hz=1e9`. `metric` and `unit` say what was published:

    cycles            cycle                       latency       ms us s
    energy            uJ mJ J                     power         mW W, energy over latency
    throughput        1/s, inputs a second        traffic:PORT  B kB MB (10^6 B), through the port of that name
    fact:NAME         a quantity of `Family.facts`, summed over layers: count, B kB MB, cycle, ms us s (cycles over
                      the clock), or % (of a fraction)
    share:NAME        %, fact NAME_cycles over the cycles of the whole workload

`kind` says what sort of evidence it is, and `calibrated` whether a parameter was fitted to it or the model was built
with its source as an oracle.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from accel_models.validation import FOLDER
from workloads.errors import ConfigError

COLUMNS = ("id", "network", "workload", "overrides", "metric", "unit", "value", "kind", "calibrated", "source")
KINDS = ("silicon", "fvp_model", "vendor_estimate", "authors_simulator", "post_layout_simulation")
TIME_UNITS = {"ms": 1e-3, "us": 1e-6, "s": 1.0}
_BYTES = {"B": 1.0, "kB": 1e3, "MB": 1e6}
UNITS: Mapping[str, Mapping[str, float]] = {
    "cycles": {"cycle": 1.0},
    "latency": TIME_UNITS,
    "energy": {"uJ": 1e-6, "mJ": 1e-3, "J": 1.0},
    "power": {"mW": 1e-3, "W": 1.0},
    "throughput": {"1/s": 1.0},
    "traffic": _BYTES,
    "fact": {"count": 1.0, "%": 0.01, "cycle": 1.0, **_BYTES, **TIME_UNITS},
    "share": {"%": 0.01},
}
NAMED = ("traffic", "fact", "share")  # metrics that take a name behind a colon
CLASSES = {
    "cycles": "time",
    "latency": "time",
    "throughput": "time",
    "energy": "energy",
    "power": "energy",
    "traffic": "traffic",
    "fact": "facts",
    "share": "shares",
}


@dataclass(frozen=True)
class Row:
    """One published number; fields as the columns of the file. `where` is the file and line, for errors."""

    id: str
    network: str
    workload: str
    overrides: str
    metric: str
    unit: str
    value: float
    kind: str
    calibrated: bool
    source: str
    where: str = ""

    @property
    def quantity(self) -> str:
        """The metric without its name: cycles, latency, ..."""
        return self.metric.partition(":")[0]

    @property
    def name(self) -> str:
        """Port or fact that the metric names, or ""."""
        return self.metric.partition(":")[2]

    @property
    def si(self) -> float:
        """What one of its unit is in SI units (bytes, cycles and counts as such)."""
        return UNITS[self.quantity][self.unit]

    @property
    def metric_class(self) -> str:
        """Rows whose errors are pooled: time, energy, traffic, facts, or shares (all that is in percent)."""
        return "shares" if self.in_points else CLASSES[self.quantity]

    @property
    def in_points(self) -> bool:
        """A percentage compares in points."""
        return self.unit == "%"

    @property
    def changes(self) -> dict[str, float]:
        """The overrides, by dotted path."""
        return overrides_of(self.overrides)

    @property
    def scope(self) -> str:
        """Whether it is of a whole network or of one layer: their errors are kept apart."""
        return "layer" if "#" in self.workload or self.workload.startswith("layer:") else "network"

    @property
    def circumstances(self) -> tuple[str, ...]:
        """Equal for rows that were measured in the same way."""
        return (self.scope, self.metric, self.unit, self.overrides)

    @property
    def variants(self) -> tuple[str, ...]:
        """Equal for rows that may be variants of each other, measured in the same way.

        Of a whole network: all of its name. Of a layer in a network: that layer. Of a layer written out: all that
        differ in channels and densities only.
        """
        kind, _, what = self.workload.partition(":")
        layer = what.partition("#")[2].strip()
        if kind == "layer":
            pruned = ("c=", "k=", "density=", "inputs=")
            words = (word for word in what.split() if not word.startswith(pruned))
            layer = " ".join("groups" if word.startswith("groups=") else word for word in words)
        return (*self.circumstances, self.network, layer)


def rows(name: str) -> list[Row]:
    """Published rows of a target; [] if it has none.

    Raises:
        ConfigError: names the file, the line and the field.
    """
    is_file = name.endswith((".yaml", ".yml"))
    path = Path(name).with_suffix(".csv") if is_file else FOLDER / f"{name}.csv"
    return read_rows(path) if path.exists() else []


def read_rows(path: Path) -> list[Row]:
    """The rows of one file, checked."""
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ConfigError(f"{path}:1: columns are {reader.fieldnames}, must be {', '.join(COLUMNS)}")
        found: dict[str, Row] = {}
        for record in reader:
            row = _row(f"{path}:{reader.line_num}", record)
            if row.id in found:
                raise ConfigError(f"{row.where}: id: {row.id!r} is also the id of {found[row.id].where}")
            found[row.id] = row
    return list(found.values())


def _row(where: str, record: Mapping[str, str | None]) -> Row:
    text = {key: (record.get(key) or "").strip() for key in COLUMNS}
    for field in ("id", "network", "workload", "source"):
        _need(where, field, text[field], "a text", bool(text[field]))
    if record.get(None):  # type: ignore[call-overload]
        raise ConfigError(f"{where}: more fields than columns; put texts with commas in double quotes")
    quantity, _, name = text["metric"].partition(":")
    _need(where, "metric", text["metric"], ", ".join(UNITS), quantity in UNITS)
    _need(where, "metric", text["metric"], f"{quantity}:NAME", (quantity in NAMED) == bool(name))
    _need(where, "unit", text["unit"], ", ".join(UNITS[quantity]), text["unit"] in UNITS[quantity])
    _need(where, "kind", text["kind"], ", ".join(KINDS), text["kind"] in KINDS)
    _need(where, "calibrated", text["calibrated"], "yes or no", text["calibrated"] in ("yes", "no"))
    try:
        value = float(text["value"])
        overrides_of(text["overrides"])
    except ValueError as error:
        raise ConfigError(f"{where}: value {text['value']!r} or overrides {text['overrides']!r}: {error}") from error
    lowest = value >= 0 if text["unit"] == "%" else value > 0
    _need(where, "value", text["value"], "> 0 (a percentage may be 0)", lowest)
    return Row(**{**text, "value": value, "calibrated": text["calibrated"] == "yes"}, where=where)  # type: ignore[arg-type]


def _need(where: str, field: str, found: str, allowed: str, is_right: bool) -> None:
    if not is_right:
        raise ConfigError(f"{where}: {field}: {found!r}, must be {allowed}")


def overrides_of(text: str) -> dict[str, float]:
    """`path=number;path=number` as a mapping.

    >>> overrides_of("parameters.threads=1; clock_hz=1e9")
    {'parameters.threads': 1, 'clock_hz': 1000000000.0}
    """
    found: dict[str, float] = {}
    for item in filter(None, text.split(";")):
        path, _, value = item.partition("=")
        found[path.strip()] = float(value) if "." in value or "e" in value else int(value)
    return found
