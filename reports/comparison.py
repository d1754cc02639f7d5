"""Two questions, answered from `SimulationResult`s alone: what did pruning change, and which machine runs it best.

`compare` puts one network before and after pruning side by side on one machine, layer by layer, with the reason why a
layer did not get faster. `compare_targets` puts one network on several machines side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from accel_models.result import LayerPrice, SimulationResult, describe_error
from accel_models.validation import LEVEL, ErrorBar, ErrorBars
from reports.codec import Record
from reports.numbers import COUNT, quantity
from reports.reasons import SAME, Pair, why_not_faster
from reports.spending import spent_in_all
from workloads.errors import ConfigError


@dataclass(frozen=True)
class LayerChange:
    """One layer before and after; one side is None where the layer exists on the other only.

    Attributes:
        why: why it got no faster, or by less than half of what was removed; "" if it did.
    """

    name: str
    before: LayerPrice | None
    after: LayerPrice | None
    why: str = ""

    @property
    def any(self) -> LayerPrice:
        """The side that exists, for what both share."""
        side = self.before or self.after
        assert side is not None
        return side

    @property
    def speedup(self) -> float | None:
        """Before over after; None where one side takes no time or does not exist."""
        if self.before is None or self.after is None or not self.after.cycles or not self.before.cycles:
            return None
        return self.before.cycles / self.after.cycles

    @property
    def costs_time(self) -> bool:
        return any(side is not None and side.cycles > 0 for side in (self.before, self.after))

    @property
    def has_shrunk(self) -> bool:
        """Channels or weights were removed from it."""
        return self.before is not None and (self.after is None or Pair(self.before, self.after).has_shrunk)

    @property
    def is_faster(self) -> bool:
        """By more than what counts as no change; a layer that is gone is."""
        if self.before is None or self.after is None:
            return self.after is None
        return self.after.cycles < (1 - SAME) * self.before.cycles


@dataclass(frozen=True)
class Ratio:
    """A cost after over before; the error that both share cancels, so its interval is its own.

    Attributes:
        value: predicted. low, high: where a published ratio is expected; None where no pairs were published.
        caveat: what must be said beside the interval.
    """

    value: float
    low: float | None = None
    high: float | None = None
    caveat: str = ""

    @classmethod
    def of(cls, before: float, after: float, error: ErrorBar | None) -> Ratio | None:
        """Of two costs on one machine whose error in this metric is given; None if `before` is nothing."""
        if not before:
            return None
        value = after / before
        if error is None or error.ratio is None:
            return cls(value)
        return cls(value, *error.ratio.around(value), error.caveat_of("this ratio"))

    @property
    def spread(self) -> str:
        """The interval in brackets, "" where it is not known."""
        if self.low is None or self.high is None:
            return ""
        return f"({LEVEL:.0%} interval {self.low:.2f}x to {self.high:.2f}x{self.caveat})"

    def __str__(self) -> str:
        return f"{self.value:.2f}x {self.spread}".rstrip()


def describe_ratios(before: SimulationResult, after: SimulationResult) -> str:
    """Both ratios of two variants on one machine with their intervals, in one line."""
    latency = Ratio.of(before.latency_s, after.latency_s, before.time_error)
    energy = Ratio.of(before.energy_j, after.energy_j, before.energy_error)
    known = [
        f"{name} {ratio.spread[1:-1]}"
        for name, ratio in (("latency", latency), ("energy", energy))
        if ratio and ratio.spread
    ]
    return f"expected of these ratios: {'; '.join(known) or 'unknown, nothing was published to compare them with'}"


@dataclass(frozen=True)
class Comparison(Record):
    """A network before and after pruning on one machine.

    Attributes:
        graph, target, title, precision, clock_hz, error: as in `SimulationResult`.
        channel_multiple: channels that the machine computes together; 1 if not known.
        layers: in graph order, matched by name; layers that only the pruned network has come last.
    """

    FORMAT: ClassVar[str] = "codesign.comparison"
    VERSION: ClassVar[int] = 3

    graph: str
    target: str
    title: str
    precision: str
    clock_hz: float
    channel_multiple: int
    error: ErrorBars | None
    layers: tuple[LayerChange, ...]

    @property
    def cycles(self) -> tuple[float, float]:
        """Before, after; so are all totals."""
        return self._both(lambda layer: layer.cycles)

    @property
    def latency_s(self) -> tuple[float, float]:
        return self._both(lambda layer: layer.latency_s)

    @property
    def energy_j(self) -> tuple[float, float]:
        return self._both(lambda layer: sum(layer.energy_j.values()))

    @property
    def macs(self) -> tuple[float, float]:
        """Nominal multiply-accumulates."""
        return self._both(lambda layer: layer.macs)

    @property
    def kept_macs(self) -> tuple[float, float]:
        """Multiply-accumulates with weights that are not zero."""
        return self._both(lambda layer: layer.macs * layer.density)

    @cached_property
    def spent(self) -> dict[str, tuple[float, float]]:
        """Cycles by what they were spent on, before and after; sums to `cycles`."""
        before = spent_in_all(change.before for change in self.layers if change.before)
        after = spent_in_all(change.after for change in self.layers if change.after)
        return {cause: (before[cause], after[cause]) for cause in before}

    @property
    def speedup(self) -> float | None:
        before, after = self.latency_s
        return before / after if before and after else None

    @property
    def latency_ratio(self) -> Ratio | None:
        """After over before, with the interval that this machine's ratios have."""
        return Ratio.of(*self.latency_s, self.error.time if self.error else None)

    @property
    def energy_ratio(self) -> Ratio | None:
        return Ratio.of(*self.energy_j, self.error.energy if self.error else None)

    @property
    def untouched_share(self) -> float:
        """Share of the time before that lies in layers from which nothing was removed, so it did not shrink."""
        return self._share(lambda change: not change.has_shrunk)

    @property
    def stuck_share(self) -> float:
        """Share of the time before in layers that lost channels or weights and got no faster."""
        return self._share(lambda change: change.has_shrunk and not change.is_faster)

    def _both(self, what: Callable[[LayerPrice], float]) -> tuple[float, float]:
        before = sum(what(change.before) for change in self.layers if change.before)
        return before, sum(what(change.after) for change in self.layers if change.after)

    def _share(self, chosen: Callable[[LayerChange], bool]) -> float:
        total = self.cycles[0]
        picked = sum(change.before.cycles for change in self.layers if change.before and chosen(change))
        return picked / total if total else 0.0

    def __str__(self) -> str:
        wide = max([len(change.name) for change in self.layers] + [5])
        lines = [
            f"{'layer':{wide}} {'before (us)':>12} {'after (us)':>12} {'speedup':>8}  bound by, and why not faster"
        ]
        for change in filter(lambda change: change.costs_time, self.layers):
            before, after = (side.latency_s * 1e6 if side else 0.0 for side in (change.before, change.after))
            gain = f"{change.speedup:7.2f}x" if change.speedup else " " * 8
            bound = " -> ".join(dict.fromkeys(side.bound_by for side in (change.before, change.after) if side))
            reason = "; ".join(filter(None, (bound, change.why)))
            lines.append(f"{change.name:{wide}} {before:12.1f} {after:12.1f} {gain}  {reason}")
        before, after = self.latency_s
        lines.append(
            f"{self.graph} on {self.title} ({self.precision}): {before * 1e3:.3f} -> {after * 1e3:.3f} ms, "
            f"{self.latency_ratio or 'no time before'}, "
            f"{self.untouched_share:.0%} of the time before lies in layers from which nothing was removed; "
            f"{describe_error(self.error)}"
        )
        return "\n".join(lines)


def compare(before: SimulationResult, after: SimulationResult, channel_multiple: int = 1) -> Comparison:
    """Match layers by name and explain what did not get faster.

    Args:
        channel_multiple: channels that the machine computes together (`Target.channel_multiple`).

    Raises:
        ConfigError: the two were priced on different machines, or have no layer in common.
    """
    if (before.target, before.clock_hz) != (after.target, after.clock_hz):
        found = f"{before.target} at {before.clock_hz:g} Hz and {after.target} at {after.clock_hz:g} Hz"
        raise ConfigError(f"before and after were priced on {found}; simulate both on one machine")
    old = {layer.name: layer for layer in before.layers}
    new = {layer.name: layer for layer in after.layers}
    if not old.keys() & new.keys():
        raise ConfigError(f"{before.graph!r} and {after.graph!r} have no layer name in common; compare one network")
    precisions = dict.fromkeys((before.precision, after.precision))
    return Comparison(
        graph=before.graph,
        target=before.target,
        title=before.title,
        precision=" -> ".join(precisions),
        clock_hz=before.clock_hz,
        channel_multiple=channel_multiple,
        error=before.error,
        layers=tuple(
            _change(name, old.get(name), new.get(name), channel_multiple) for name in dict.fromkeys((*old, *new))
        ),
    )


def _change(name: str, before: LayerPrice | None, after: LayerPrice | None, multiple: int) -> LayerChange:
    why = why_not_faster(before, after, multiple) if before and after else ""
    return LayerChange(name, before, after, why)


@dataclass(frozen=True)
class TargetRow:
    """One network on one machine: totals.

    Attributes:
        spent: cycles by what they were spent on.
        bound: share of the time by what bounds the layers, largest first.
        energy_j: None where nobody measured it.
    """

    target: str
    title: str
    precision: str
    clock_hz: float
    cycles: float
    latency_s: float
    energy_j: float | None
    spent: Mapping[str, float]
    bound: Mapping[str, float]
    error: ErrorBars | None
    notes: tuple[str, ...] = ()

    @property
    def utilization(self) -> float:
        """Cycles spent on multiplications over all."""
        return self.spent.get("useful", 0.0) / self.cycles if self.cycles else 0.0

    @property
    def bound_by(self) -> str:
        """What bounds the layers as text, each with its share of the time; 1 % and less left out."""
        return ", ".join(f"{what} {share:.0%}" for what, share in self.bound.items() if share > 0.01)

    @property
    def interval_s(self) -> tuple[float, float] | None:
        """Where a published latency is expected; None where too little was published to say."""
        return _around(self.latency_s, self.error.time if self.error else None)

    @property
    def expected_ms(self) -> str:
        """The interval of the latency and what must be said beside it, as text."""
        if self.interval_s is None:
            return "unknown"
        low, high = self.interval_s
        return ", ".join(filter(None, (f"{low * 1e3:.3f} to {high * 1e3:.3f}", self.caveat_s)))

    @property
    def interval_j(self) -> tuple[float, float] | None:
        """Where a published energy is expected."""
        return None if self.energy_j is None else _around(self.energy_j, self.error.energy if self.error else None)

    @property
    def caveat_s(self) -> str:
        """What must be said beside the interval of the latency: few rows or networks, or what it is of."""
        return _caveat(self.error.time if self.error else None)

    @property
    def caveat_j(self) -> str:
        return _caveat(self.error.energy if self.error else None)


@dataclass(frozen=True)
class TargetTable(Record):
    """One network on several machines."""

    FORMAT: ClassVar[str] = "codesign.target_table"
    VERSION: ClassVar[int] = 3

    graph: str
    macs: int
    rows: tuple[TargetRow, ...]

    def __str__(self) -> str:
        wide = max(len(row.title) for row in self.rows)
        between = [row.expected_ms for row in self.rows]
        widest = max(22, *map(len, between))
        lines = [
            f"{self.graph}, {quantity(self.macs, COUNT)} MACs",
            f"{'machine':{wide}} {'time (ms)':>10} {f'{LEVEL:.0%} interval':>{widest}} {'energy (mJ)':>12}",
        ]
        for row, expected in zip(self.rows, between, strict=True):
            energy = "unknown" if row.energy_j is None else f"{row.energy_j * 1e3:.3f}"
            costs = f"{row.latency_s * 1e3:10.3f} {expected:>{widest}} {energy:>12}"
            lines.append(f"{row.title:{wide}} {costs}  {describe_error(row.error)}")
        return "\n".join(lines)


def _around(value: float, error: ErrorBar | None) -> tuple[float, float] | None:
    return error.absolute.around(value) if error and error.absolute else None


def _caveat(error: ErrorBar | None) -> str:
    return error.caveat.strip(", ") if error else ""


def compare_targets(results: Sequence[SimulationResult]) -> TargetTable:
    """One network on several machines, a row each in the given order.

    Raises:
        ConfigError: no result, or results of different networks.
    """
    if not results:
        raise ConfigError("no result to compare; simulate a network on at least one target")
    graphs = {(result.graph, result.macs): None for result in results}
    if len(graphs) > 1:
        found = ", ".join(f"{name} with {macs:,} MACs" for name, macs in graphs)
        raise ConfigError(f"a comparison of machines needs one network, found {found}; compare each by itself")
    return TargetTable(results[0].graph, results[0].macs, tuple(_target_row(result) for result in results))


def _target_row(result: SimulationResult) -> TargetRow:
    return TargetRow(
        target=result.target,
        title=result.title,
        precision=result.precision,
        clock_hz=result.clock_hz,
        cycles=result.cycles,
        latency_s=result.latency_s,
        energy_j=None if math.isnan(result.energy_j) else result.energy_j,
        spent=spent_in_all(result.layers),
        bound=bound_shares(result),
        error=result.error,
        notes=result.notes,
    )


def bound_shares(result: SimulationResult) -> dict[str, float]:
    """Share of the time by what bounds its layers, largest first; sums to 1 where there is any time."""
    found: dict[str, float] = {}
    for layer in result.layers:
        if layer.cycles > 0:
            found[layer.bound_by] = found.get(layer.bound_by, 0.0) + layer.cycles / result.cycles
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))
