"""One target's predictions for published rows, fast enough to be repeated by a fit.

All that one machine with the same overrides ran is priced in one call, the columns of all workloads one after another.
Machine files, graphs and columns are read once; other numbers of a machine change its spec in memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import BaseModel

from accel_models.placement import Placement, place
from accel_models.pricing import Target, replace_spec
from accel_models.registry import target
from accel_models.result import Prices
from accel_models.spec import HardwareSpec
from accel_models.validation.rows import TIME_UNITS, Row, overrides_of
from accel_models.validation.workload import Workload, workload
from workloads.columns import Columns
from workloads.errors import CodesignError, ConfigError
from workloads.graph import LayerGraph


@dataclass
class Pricer:
    """Predicts rows of one target; keeps what it has read."""

    name: str
    _machines: dict[str, Target] = field(default_factory=dict)
    _batches: dict[tuple[str, ...], Batch] = field(default_factory=dict)

    def machine(self, overrides: str, where: str = "") -> Target:
        """The machine with a row's overrides, read and checked once."""
        if overrides not in self._machines:
            try:
                self._machines[overrides] = target(self.name, overrides_of(overrides))
            except ConfigError as error:
                raise ConfigError(f"{where}: overrides: {error}" if where else str(error)) from error
        return self._machines[overrides]

    def predict(self, found: Sequence[Row], values: Mapping[str, float] | None = None) -> list[float]:
        """What the target says to each row, in the row's unit.

        Args:
            values: numbers of the machine to change, by dotted path; a row's own overrides win.

        Raises:
            ConfigError: names the row's file, line and field.
        """
        groups: dict[str, list[Row]] = {}
        for row in found:
            groups.setdefault(row.overrides, []).append(row)
        priced = {overrides: self._price(group, values or {}) for overrides, group in groups.items()}
        return [priced[row.overrides].value(row) / row.si for row in found]

    def _price(self, group: Sequence[Row], values: Mapping[str, float]) -> Priced:
        machine = self.machine(group[0].overrides, group[0].where)
        changes = {path: value for path, value in values.items() if path not in group[0].changes}
        if changes:
            machine = with_numbers(machine, changes)
        texts = tuple(dict.fromkeys(row.workload for row in group))
        if texts not in self._batches:
            self._batches[texts] = Batch.of(machine, [_workload(row) for row in _first_of_each(group)])
        return self._batches[texts].price(machine, any(row.quantity in ("fact", "share") for row in group))


def _first_of_each(group: Sequence[Row]) -> list[Row]:
    """One row for every workload of a group."""
    return list({row.workload: row for row in reversed(group)}.values())[::-1]


def _workload(row: Row) -> Workload:
    try:
        return workload(row.workload, row.folder)
    except CodesignError as error:
        raise ConfigError(f"{row.where}: {error}") from error


@dataclass(frozen=True)
class Batch:
    """Several workloads, their columns one after another in a machine's own precision.

    Attributes:
        counted: which rows count for a workload, by its text. inputs: how many run at once, by text.
    """

    graphs: tuple[LayerGraph, ...]
    columns: Columns
    counted: Mapping[str, slice]
    inputs: Mapping[str, int]

    @classmethod
    def of(cls, machine: Target, works: Sequence[Workload]) -> Batch:
        graphs = tuple(machine.native(graph) for work in works for graph in work.graphs)
        counted, start = {}, 0
        for work in works:
            counted[work.text] = slice(start + work.rows.start, start + work.rows.stop)
            start += sum(len(graph) for graph in work.graphs)
        columns = Columns.concatenate([graph.columns for graph in graphs])
        return cls(graphs, columns, counted, {work.text: work.batch for work in works})

    def price(self, machine: Target, with_facts: bool = False) -> Priced:
        """Price all workloads in one call, each graph placed by itself."""
        placed = [place(graph.columns, graph.topology, machine.spec) for graph in self.graphs]
        names = [each.name for each in dataclasses.fields(Placement)]
        placement = Placement(**{name: np.concatenate([getattr(each, name) for each in placed]) for name in names})
        prices = machine.price(self.columns, placement=placement)
        facts = machine.family.facts(self.columns, placement) if with_facts else {}
        return Priced(machine, prices, facts, self)


@dataclass(frozen=True)
class Priced:
    """A batch priced on one machine; facts are float64 (rows,) by name, {} unless asked for."""

    machine: Target
    prices: Prices
    facts: Mapping[str, np.ndarray]
    batch: Batch

    def value(self, row: Row) -> float:
        """What a row says, predicted, in SI units."""
        latency_s, energy_j = self.prices.latency_s, self.prices.energy_j.sum(axis=1)
        match row.quantity:
            case "cycles":
                return self._sum(row, self.prices.cycles)
            case "latency":
                return self._sum(row, latency_s)
            case "energy":
                return self._sum(row, energy_j)
            case "power":
                return self._sum(row, energy_j) / self._sum(row, latency_s)
            case "throughput":
                return self.batch.inputs[row.workload] / self._sum(row, latency_s)
            case "traffic":
                return self._sum(row, self.prices.traffic_bytes[:, self._port(row)])
            case "share":
                return self._sum(row, self._fact(row, f"{row.name}_cycles")) / self._sum(row, self.prices.cycles)
        value = self._sum(row, self._fact(row, row.name))
        in_cycles = row.unit in TIME_UNITS and row.name.endswith("_cycles")
        return value / self.machine.spec.clock_hz if in_cycles else value

    def _sum(self, row: Row, values: np.ndarray) -> float:
        return float(values[self.batch.counted[row.workload]].sum())

    def _port(self, row: Row) -> int:
        ports = self.machine.spec.ports
        if row.name not in ports:
            raise ConfigError(f"{row.where}: metric: no memory {row.name!r}; the machine has {', '.join(ports)}")
        return ports.index(row.name)

    def _fact(self, row: Row, name: str) -> np.ndarray:
        if name not in self.facts:
            known = ", ".join(self.facts) or "none"
            raise ConfigError(f"{row.where}: metric: the family reports no fact {name!r}; it reports {known}")
        return self.facts[name]


# ---- numbers of a machine in memory ---------------------------------------------------------------------------------


def number_at(spec: HardwareSpec, dotted: str) -> float:
    """A number of a machine by its dotted path, as in overrides.

    Raises:
        ConfigError: no such number.
    """
    node: Any = spec
    for part in dotted.split("."):
        node = _child(node, part, dotted, spec.name)
    if isinstance(node, bool) or not isinstance(node, int | float):
        raise ConfigError(f"{spec.name}: {dotted!r} is {node!r}, must be a number")
    return float(node)


def with_numbers(machine: Target, changes: Mapping[str, float]) -> Target:
    """The same machine with other numbers, without reading or checking its file again."""
    spec = machine.spec
    for dotted, value in changes.items():
        spec = _changed(spec, dotted.split("."), value, dotted, spec.name)
    return replace_spec(machine, **{name: getattr(spec, name) for name in type(spec).model_fields})


def _changed(node: Any, parts: Sequence[str], value: float, dotted: str, owner: str) -> Any:
    """A copy with one number changed; models are built anew, so that nothing they have cached survives."""
    if not parts:
        return type(node)(value) if isinstance(node, int) else value
    child = _changed(_child(node, parts[0], dotted, owner), parts[1:], value, dotted, owner)
    if isinstance(node, BaseModel):
        fields = {name: getattr(node, name) for name in type(node).model_fields}
        return type(node).model_construct(**{**fields, parts[0]: child})
    if isinstance(node, Mapping):
        return {**node, _key(node, parts[0]): child}
    return tuple(child if i == int(parts[0]) else each for i, each in enumerate(node))


def _child(node: Any, part: str, dotted: str, owner: str) -> Any:
    found = None
    if isinstance(node, BaseModel):
        found = getattr(node, part, None) if part in type(node).model_fields else None
    elif isinstance(node, Mapping):
        found = node.get(_key(node, part))
    elif isinstance(node, Sequence) and part.isdigit() and int(part) < len(node):
        found = node[int(part)]
    if found is None:
        raise ConfigError(f"{owner}: no number {dotted!r} in the machine: {part!r} is unknown there")
    return found


def _key(node: Mapping[Any, Any], part: str) -> Any:
    return int(part) if part.isdigit() and int(part) in node else part
