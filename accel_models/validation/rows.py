"""Published rows: one CSV a target beside this file, `<target>.csv`, one number a line. (Of a machine file of your own,
`mine.yaml`, it is `mine.csv` beside it.) UTF-8, with or without a byte order mark.

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
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from accel_models.registry import spec_files
from accel_models.validation import FOLDER, KINDS, beside
from workloads.errors import ConfigError, unknown_name

COLUMNS = ("id", "network", "workload", "overrides", "metric", "unit", "value", "kind", "calibrated", "source")
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
    def folder(self) -> Path:
        """Where its file lies, and the files of layers that it names."""
        return Path(self.where.rpartition(":")[0]).parent if self.where else FOLDER

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


def machine_file(name: str) -> Path:
    """The file of a machine, by its name or path.

    Raises:
        ConfigError: there is none of that name.
    """
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    files = spec_files()
    if name not in files:
        raise unknown_name("target", name, files)
    return files[name]


def rows(name: str) -> list[Row]:
    """Published rows of a target; [] if it has none.

    Raises:
        ConfigError: names the file, and line and field of everything that is wrong in it.
    """
    path = beside(machine_file(name), ".csv")
    return read_rows(path) if path.exists() else []


def read_text(path: Path) -> str:
    """A text file as Excel or an editor wrote it.

    Raises:
        ConfigError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + error.object[: error.start].count(b"\n")
        raise ConfigError(
            f"{path}:{line}: byte 0x{error.object[error.start]:02x} is not UTF-8; save as UTF-8"
        ) from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error


def read_rows(path: Path) -> list[Row]:
    """The rows of one file, checked; all that is wrong in it is reported together."""
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    found: dict[str, Row] = {}
    wrong: list[str] = []
    try:
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ConfigError(f"{path}:1: columns are {reader.fieldnames}, must be {', '.join(COLUMNS)}")
        for record in reader:
            where = f"{path}:{reader.line_num}"
            mistakes = list(_mistakes(record, found))
            wrong += [f"{where}: {mistake}" for mistake in mistakes]
            if not mistakes:
                row = _row(where, record)
                found[row.id] = row
    except csv.Error as error:
        wrong.append(f"{path}:{reader.line_num}: {error}")
    if wrong:
        raise ConfigError("; ".join(wrong))
    return list(found.values())


def _mistakes(record: Mapping[str, str | None], known: Mapping[str, Row]) -> Iterator[str]:
    """Everything that is wrong in one line: field, what was found, what is allowed."""
    if record.get(None):  # type: ignore[call-overload]
        yield "more fields than columns; put texts with commas in double quotes"
        return
    text = _texts(record)
    for field in ("id", "network", "workload", "source"):
        if not text[field]:
            yield f"{field}: '', must be a text"
    if text["id"] in known:
        yield f"id: {text['id']!r} is also the id of {known[text['id']].where}"
    quantity, _, name = text["metric"].partition(":")
    if quantity not in UNITS:
        yield f"metric: {text['metric']!r}, must be {', '.join(UNITS)}"
    elif (quantity in NAMED) != bool(name):
        yield f"metric: {text['metric']!r}, must be {quantity}{':NAME' if quantity in NAMED else ''}"
    elif text["unit"] not in UNITS[quantity]:
        yield f"unit: {text['unit']!r}, must be {', '.join(UNITS[quantity])}"
    for field, allowed in (("kind", KINDS), ("calibrated", ("yes", "no"))):
        if text[field] not in allowed:
            yield f"{field}: {text[field]!r}, must be one of {', '.join(allowed)}"
    if not _is_value(text["value"], text["unit"]):
        yield f"value: {text['value']!r}, must be a number > 0 (a percentage may be 0)"
    try:
        overrides_of(text["overrides"])
    except ValueError as error:
        yield f"overrides: {error}"


def _texts(record: Mapping[str, str | None]) -> dict[str, str]:
    return {key: (record.get(key) or "").strip() for key in COLUMNS}


def _is_value(text: str, unit: str) -> bool:
    try:
        value = float(text)
    except ValueError:
        return False
    return math.isfinite(value) and (value >= 0 if unit == "%" else value > 0)


def _row(where: str, record: Mapping[str, str | None]) -> Row:
    text = _texts(record)
    value, calibrated = float(text["value"]), text["calibrated"] == "yes"
    return Row(**{**text, "value": value, "calibrated": calibrated}, where=where)  # type: ignore[arg-type]


def overrides_of(text: str) -> dict[str, float]:
    """`path=number;path=number` as a mapping.

    Raises:
        ValueError: names the path whose number is missing or none, or which is given twice.

    >>> overrides_of("parameters.threads=1; clock_hz=1e9")
    {'parameters.threads': 1, 'clock_hz': 1000000000.0}
    """
    found: dict[str, float] = {}
    for item in filter(None, (part.strip() for part in text.split(";"))):
        path, _, value = (side.strip() for side in item.partition("="))
        if path in found:
            raise ValueError(f"{path!r} is given twice")
        try:
            found[path] = float(value) if "." in value or "e" in value.lower() else int(value)
        except ValueError:
            raise ValueError(f"{path!r}: {value!r}, must be path=number, several with ; between them") from None
    return found
