"""A target: something that prices a layer graph. Here, a simulated machine."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from accel_models.energy import component_names, joules
from accel_models.family import Family
from accel_models.placement import Placement, place
from accel_models.result import BOUNDS, Prices, SimulationResult, summarize
from accel_models.spec import HardwareSpec
from accel_models.timeline import Timeline, closed_form
from workloads.columns import Columns
from workloads.graph import LayerGraph, Topology

if TYPE_CHECKING:
    from accel_models.events import Played

CHUNK_ROWS = 2048  # rows priced at once: their working arrays stay in a core's level-2 cache


@dataclass(frozen=True)
class Target:
    """A machine: its numbers and the family that models it.

    >>> from accel_models import target
    >>> target("ideal").name
    'ideal'
    """

    spec: HardwareSpec
    family: Family

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def components(self) -> tuple[str, ...]:
        """Energy components, the columns of `Prices.energy_j`."""
        return component_names(self.family.components)

    @property
    def channel_multiple(self) -> int:
        """Channels that the machine computes together."""
        return self.family.channel_multiple()

    def native(self, graph: LayerGraph) -> LayerGraph:
        """The graph in a precision that this machine computes in (its own where it can)."""
        widest = max(self.spec.macs_per_cycle)
        allowed = tuple(bits for bits in self.family.precisions if bits <= widest) or self.family.precisions
        changes = {}
        for layer in graph.layers:
            weight, activation = (_nearest(bits, allowed) for bits in (layer.weight_bits, layer.activation_bits))
            if (weight, activation) != (layer.weight_bits, layer.activation_bits):
                changes[layer.name] = {"weight_bits": weight, "activation_bits": activation}
        return graph.replace_layers(changes) if changes else graph

    def price(
        self,
        columns: Columns,
        topology: Topology | None = None,
        *,
        placement: Placement | None = None,
        memo: bool = True,
    ) -> Prices:
        """Price every row: one layer, or one layer of one candidate.

        Args:
            columns: rows, in a precision that the machine has; whole graphs one after another if `topology` is given.
            topology: of the graph whose candidates the rows are; None prices unrelated layers.
            placement: where each row's tensors live, if that is already decided.
            memo: price equal rows once.
        """
        placement = placement or place(columns, topology, self.spec)
        if memo and len(columns) > 1:
            tagged = columns.replace(**_tags(columns, placement))
            first, inverse = tagged.distinct()
            if len(first) < 0.9 * len(columns):
                return self._price(columns.take(first), placement.take(first)).take(inverse)
        return self._price(columns, placement)

    def _price(self, columns: Columns, placement: Placement) -> Prices:
        parts = []
        for start in range(0, len(columns), CHUNK_ROWS):
            chunk = slice(start, start + CHUNK_ROWS)
            rows = columns.take(chunk)
            steps = self.family.map(rows, placement.take(chunk))
            timeline = closed_form(steps, self.spec)
            latency_s = timeline.cycles / self.spec.clock_hz
            parts.append(
                Prices(
                    cycles=timeline.cycles,
                    latency_s=latency_s,
                    energy_j=joules(steps.accesses, latency_s, self.spec, self.family.components),
                    traffic_bytes=timeline.port_bytes,
                    port_cycles=timeline.port_cycles,
                    useful_cycles=timeline.useful,
                    overhead_cycles=timeline.overhead,
                    imbalance_cycles=timeline.imbalance,
                    memory_cycles=timeline.memory,
                    launch_cycles=timeline.launch,
                    bound=_bound(timeline),
                    kernel=steps.kernel,
                    kernels=steps.kernels,
                )
            )
        return Prices.concatenate(parts)

    def facts(self, graph: LayerGraph) -> dict[str, np.ndarray]:
        """The family's further quantities (`Family.facts`) of every layer of a graph, float64 (layers,) each."""
        ready = self.native(graph)
        return dict(self.family.facts(ready.columns, place(ready.columns, ready.topology, self.spec)))

    def play(self, graph: LayerGraph, keep_spans: bool = True) -> Played:
        """The event-driven engine on a whole graph: every tile played, rows in graph order (`accel_models.events`)."""
        from accel_models.events import play

        ready = self.native(graph)
        steps = self.family.map(ready.columns, place(ready.columns, ready.topology, self.spec))
        return play(steps, self.spec, keep_spans)

    def simulate(self, graph: LayerGraph) -> SimulationResult:
        """Price a whole graph, layer by layer, in the machine's own precision."""
        ready = self.native(graph)
        prices = self.price(ready.columns, ready.topology)
        return summarize(ready, prices, self.spec, self.components, converted=ready is not graph)


def _nearest(bits: int, allowed: tuple[int, ...]) -> int:
    """The width itself if allowed, else the next wider, else the widest."""
    return bits if bits in allowed else min((b for b in allowed if b > bits), default=max(allowed))


def _tags(columns: Columns, placement: Placement) -> dict[str, np.ndarray]:
    """Fold the placement into a column, so that equal rows in different memories stay distinct."""
    code = ((placement.stripe * 8 + placement.first) * 8 + placement.other) * 8 + placement.output
    return {"fused": columns.fused + 2 * code}


def _bound(timeline: Timeline) -> np.ndarray:
    """Index into `BOUNDS + ports` of what binds each row.

    A memory binds if its port is busy for at least as long as all computing takes and something waits for it, or if
    waiting is the largest part; it is then named after the busiest port. Otherwise the largest part names what binds:
    launch (which wins over a port too), imbalance, overhead, or useful work, called compute.
    """
    parts = np.stack([timeline.useful, timeline.overhead, timeline.imbalance, timeline.launch, timeline.memory], axis=1)
    largest = np.argmax(parts, axis=1)
    busiest = len(BOUNDS) + np.argmax(timeline.port_cycles, axis=1)
    compute = timeline.useful + timeline.overhead + timeline.imbalance
    on_memory = (timeline.port_cycles.max(axis=1) >= compute) & (timeline.memory > 0)
    bound = np.where(on_memory & (largest != 3), busiest, np.where(largest == 4, busiest, largest))
    return np.where(timeline.cycles > 0, bound, BOUNDS.index("none"))


def replace_spec(target: Target, **changes: object) -> Target:
    """The same machine with other numbers."""
    spec = target.spec.model_copy(update=changes)
    return dataclasses.replace(target, spec=spec, family=type(target.family)(spec))
