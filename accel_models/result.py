"""What pricing gives: arrays for a search (`Prices`), a record a layer for people (`SimulationResult`)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from accel_models.quantities import COUNT, ENERGY, TIME, Scale, digits, unit_of
from accel_models.spec import HardwareSpec
from accel_models.validation import LEVEL, ErrorBar, ErrorBars, error_bars
from workloads.errors import ConfigError
from workloads.graph import Kind, LayerGraph

VERSION = 3  # of the JSON of a simulation result
BOUNDS = ("compute", "overhead", "imbalance", "launch", "none")  # ports of the spec follow


@dataclass(frozen=True)
class Prices:
    """Struct of arrays, float64 (rows,) where not said otherwise.

    Attributes:
        cycles, latency_s: of the row.
        energy_j: (rows, components); the last is static energy.
        traffic_bytes, port_cycles: (rows, ports), bytes through each memory's port and the cycles it is busy.
        useful_cycles, overhead_cycles, imbalance_cycles, memory_cycles, launch_cycles: parts that sum to `cycles`.
        bound: int64, index into BOUNDS, then into the spec's ports.
        kernel: int64, index into `kernels`.
    """

    cycles: np.ndarray
    latency_s: np.ndarray
    energy_j: np.ndarray
    traffic_bytes: np.ndarray
    port_cycles: np.ndarray
    useful_cycles: np.ndarray
    overhead_cycles: np.ndarray
    imbalance_cycles: np.ndarray
    memory_cycles: np.ndarray
    launch_cycles: np.ndarray
    bound: np.ndarray
    kernel: np.ndarray
    kernels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.cycles)

    def take(self, rows: np.ndarray | slice) -> Prices:
        return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in _PRICE_ARRAYS})

    @staticmethod
    def concatenate(parts: Sequence[Prices]) -> Prices:
        if len(parts) == 1:
            return parts[0]
        arrays: dict[str, Any] = {n: np.concatenate([getattr(part, n) for part in parts]) for n in _PRICE_ARRAYS}
        return dataclasses.replace(parts[0], **arrays)

    def totals(self, candidates: int) -> dict[str, np.ndarray]:
        """`latency_s`, `energy_j` and `cycles` of each candidate, (candidates,), rows being candidate-major."""
        return {
            "cycles": self.cycles.reshape(candidates, -1).sum(axis=1),
            "latency_s": self.latency_s.reshape(candidates, -1).sum(axis=1),
            "energy_j": self.energy_j.sum(axis=1).reshape(candidates, -1).sum(axis=1),
        }


_PRICE_ARRAYS = tuple(f.name for f in dataclasses.fields(Prices) if f.name != "kernels")


@dataclass(frozen=True)
class LayerPrice:
    """One layer on one machine.

    Attributes:
        name, op, shape: the layer. kernel: which kernel or mapping runs it.
        macs: nominal multiply-accumulates. density: of its weights.
        cycles, latency_s: total. `lost` splits cycles into useful (multiplications really performed, at peak), overhead
            (other computing: idle lanes, rounding up to whole tiles, ramp-up, instructions that do not multiply),
            imbalance, memory and launch. (On a measured machine all that is not useful is "other".)
        energy_j: by component. traffic_bytes: by memory level. Empty where they are not known.
        utilization: useful cycles over cycles.
        bound: compute, overhead, imbalance, launch, the name of a memory, none (no time), or unknown.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    kernel: str
    macs: int
    density: float
    cycles: float
    latency_s: float
    lost: Mapping[str, float]
    energy_j: Mapping[str, float]
    traffic_bytes: Mapping[str, float]
    utilization: float
    bound: str

    @property
    def bound_by(self) -> str:
        """What bounds the layer in words of reports: `bound`, but a layer without MACs computes elementwise."""
        return "elementwise" if not self.macs and self.bound in ("compute", "overhead") else self.bound


@dataclass(frozen=True)
class SimulationResult:
    """A layer graph priced on a machine; prints as a table, survives JSON.

    Attributes:
        graph, target, title: names of the workload and of the machine.
        clock_hz: of the machine's cycles. precision: that it was priced in, e.g. "int8".
        layers: one entry a layer, in graph order. Totals are sums over them.
        error: errors of this machine's model against published measurements, of single layers where only one layer of
            the graph multiplies; None if there are none.
        notes: what a reader must know, e.g. a conversion of precision, or layers priced as vector work.
    """

    graph: str
    target: str
    title: str
    clock_hz: float
    precision: str
    layers: tuple[LayerPrice, ...]
    error: ErrorBars | None
    notes: tuple[str, ...] = ()

    @property
    def cycles(self) -> float:
        return sum(layer.cycles for layer in self.layers)

    @property
    def latency_s(self) -> float:
        return sum(layer.latency_s for layer in self.layers)

    @property
    def energy_j(self) -> float:
        """Not a number where no layer's energy is known."""
        if not any(layer.energy_j for layer in self.layers):
            return math.nan
        return sum(sum(layer.energy_j.values()) for layer in self.layers)

    @property
    def time_error(self) -> ErrorBar | None:
        """Error of this machine's times; None where no published ones are at hand."""
        return self.error.time if self.error else None

    @property
    def energy_error(self) -> ErrorBar | None:
        return self.error.energy if self.error else None

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    def energy_by_component(self) -> dict[str, float]:
        return _summed(layer.energy_j for layer in self.layers)

    def traffic_by_memory(self) -> dict[str, float]:
        return _summed(layer.traffic_bytes for layer in self.layers)

    def lost_by_cause(self) -> dict[str, float]:
        """Cycles by what they were spent on; sums to `cycles`."""
        return _summed(layer.lost for layer in self.layers)

    def layer(self, name: str) -> LayerPrice:
        return next(layer for layer in self.layers if layer.name == name)

    def to_dict(self) -> dict[str, Any]:
        return {"format": "codesign.simulation", "version": VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SimulationResult:
        """The inverse of `to_dict`.

        Raises:
            ConfigError: not a simulation result of this version.
        """
        if data.get("format") != "codesign.simulation" or data.get("version") != VERSION:
            raise ConfigError(f"not a simulation result of version {VERSION}: see fields 'format' and 'version'")
        values = {key: value for key, value in data.items() if key not in ("format", "version")}
        values["layers"] = tuple(LayerPrice(**{**row, "shape": tuple(row["shape"])}) for row in values["layers"])
        values["error"] = ErrorBars.from_dict(values["error"]) if values["error"] else None
        return cls(**{**values, "notes": tuple(values["notes"])})

    def __str__(self) -> str:
        wide = max([len(layer.name) for layer in self.layers] + [5])
        macs, macs_unit = unit_of([layer.macs for layer in self.layers], COUNT)
        time, time_unit = unit_of([layer.latency_s for layer in self.layers], TIME)
        heads = (f"MACs ({macs_unit})" if macs_unit else "MACs", f"time ({time_unit})")
        lines = [f"{'layer':{wide}} {'op':12} {heads[0]:>9} {'cycles':>12} {heads[1]:>10} {'used':>5}  bound by"]
        for layer in self.layers:
            if layer.cycles > 0:
                multiplied = digits(layer.macs / macs) if layer.macs else ""
                lines.append(
                    f"{layer.name:{wide}} {layer.op:12} {multiplied:>9} {layer.cycles:12,.0f} "
                    f"{digits(layer.latency_s / time):>10} {layer.utilization:5.0%}  {layer.bound_by}"
                )
        latency = with_interval(self.latency_s, self.time_error, TIME)
        energy = with_interval(self.energy_j, self.energy_error, ENERGY)
        lines.append(
            f"{self.graph} on {self.title} ({self.precision}): {latency}, "
            f"{'energy unknown' if math.isnan(self.energy_j) else energy}, {self.cycles:,.0f} cycles; "
            f"{describe_error(self.error)}"
        )
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def describe_error(error: ErrorBars | None) -> str:
    """What is known of the errors of the model's times and energies, in one phrase.

    Where no time was published, other quantities that were (facts of the mapping, shares) stand for it.
    """
    if error is None:
        return "error unknown: no published measurements of this machine are at hand"
    if error.time and error.time.is_measured:
        return str(error.time)
    time = error.time or error.of("facts") or error.of("shares") or error.of("traffic")
    known = (("time", time), ("energy", error.energy))
    return "; ".join(str(bar) if bar else f"no published {name} is at hand" for name, bar in known)


def with_interval(value: float, error: ErrorBar | None, scale: Scale) -> str:
    """A value in its unit and, in brackets, the interval in which a published value is expected.

    >>> with_interval(0.0125, None, TIME)
    '12.5 ms'
    """
    size, unit = unit_of([value], scale)
    shown = f"{digits(value / size)} {unit}"
    if error is None or error.absolute is None:
        return shown
    low, high = (digits(bound / size) for bound in error.absolute.around(value))
    return f"{shown} ({LEVEL:.0%} interval {low} to {high} {unit}{error.caveat})"


def summarize(
    graph: LayerGraph, prices: Prices, spec: HardwareSpec, components: tuple[str, ...], converted: bool = False
) -> SimulationResult:
    """Arrays to a record a layer."""
    bounds = (*BOUNDS, *spec.ports)
    parts = ("useful", "overhead", "imbalance", "memory", "launch")
    lost = np.stack([getattr(prices, f"{part}_cycles") for part in parts], axis=1).tolist()
    cycles, latency_s, kernel, bound = (
        values.tolist() for values in (prices.cycles, prices.latency_s, prices.kernel, prices.bound)
    )
    energy_j, traffic_bytes, ports = prices.energy_j.tolist(), prices.traffic_bytes.tolist(), spec.ports
    rows = [
        LayerPrice(
            name=layer.name,
            op=layer.op.value,
            shape=layer.shape,
            kernel=prices.kernels[kernel[i]],
            macs=layer.macs,
            density=float(layer.sparsity.density) if layer.sparsity else 1.0,
            cycles=cycles[i],
            latency_s=latency_s[i],
            lost=dict(zip(parts, lost[i], strict=True)),
            energy_j=dict(zip(components, energy_j[i], strict=True)),
            traffic_bytes=dict(zip(ports, traffic_bytes[i], strict=True)),
            utilization=lost[i][0] / cycles[i] if cycles[i] else 0.0,
            bound=bounds[bound[i]],
        )
        for i, layer in enumerate(graph.layers)
    ]
    return SimulationResult(
        graph=graph.name,
        target=spec.name,
        title=spec.title,
        clock_hz=float(spec.clock_hz),
        precision=_precision(graph),
        layers=tuple(rows),
        error=_error_of(graph, spec),
        notes=tuple(_notes(graph, converted, spec.changed)),
    )


def joined(name: str, results: Sequence[SimulationResult]) -> SimulationResult:
    """Graphs of one layer each, priced on one machine by themselves, as one result; layers are named as written.

    >>> from accel_models import target
    >>> from accel_models.validation.workload import workload
    >>> graphs = [workload(f"layer:conv c={c} h=8 r=3").graphs[0] for c in (4, 8)]
    >>> [layer.name for layer in joined("two", [target("ideal").simulate(graph) for graph in graphs]).layers]
    ['1: conv c=4 h=8 r=3', '2: conv c=8 h=8 r=3']
    """
    layers = [
        dataclasses.replace(layer, name=f"{i}: {result.graph}")
        for i, result in enumerate(results, 1)
        for layer in result.layers
        if layer.op != "input"
    ]
    precisions = sorted({result.precision for result in results})
    notes = tuple(dict.fromkeys(note for result in results for note in result.notes))
    return dataclasses.replace(
        results[0], graph=name, layers=tuple(layers), precision="/".join(precisions), notes=notes
    )


def _error_of(graph: LayerGraph, spec: HardwareSpec) -> ErrorBars | None:
    """What is known of the machine's errors; of a graph with a single multiplying layer, those of single layers."""
    error = error_bars(spec.name, spec.file)
    is_one_layer = sum(layer.macs > 0 for layer in graph.layers) == 1
    return error.of_one_layer() if error and is_one_layer else error


def _precision(graph: LayerGraph) -> str:
    from workloads.graph import PRECISIONS

    names = {bits: name for name, bits in PRECISIONS.items()}
    widths = sorted({layer.weight_bits for layer in graph.layers if layer.kind is Kind.MAC})
    return "/".join(names[bits] for bits in widths) or "none"


def _notes(graph: LayerGraph, converted: bool, changed: tuple[str, ...]) -> list[str]:
    from workloads.graph import Op

    notes = ["priced in the machine's own precision, not the model's"] if converted else []
    if changed:
        notes.append(f"{', '.join(changed)} changed by the caller: errors and intervals are of the unchanged machine")
    unknown = [layer for layer in graph.layers if layer.op is Op.VECTOR]
    if unknown:
        notes.append(f"{len(unknown)} layer(s) priced as elementwise work: {', '.join(x.name for x in unknown)}")
    return notes


def _summed(parts: Any) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total
