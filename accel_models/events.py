"""The second clock: the same tiles as `timeline`, played one by one with SimPy.

Every step of a row becomes a few processes that share what the machine has:

    loaders     one a double-buffered port: fetch the next wave while a buffer is free (two a port)
    compute     take a wave whose data have come, run for slowest_cycles, then for the serial ports
    streams     one a port that overlaps: move the wave's bytes beside its computation

Ports of one bus take turns, in the order in which they ask. A wave is the tiles that run side by side; a wave ends
when computation and streams are done, which frees its buffers. Steps and rows follow one another. The engine reads
`Steps` only, never the closed form's latency. Both agree to rounding, also where the last wave is not full. Order of
events is (time, priority, sequence number), SimPy's own, so ties are never accidental.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy

from accel_models.mapping import Steps
from accel_models.spec import HardwareSpec

BUFFERS = 2  # of each double-buffered port
MOST_WAVES = 200_000  # of one step; more would take minutes and say nothing new

Process = Generator[simpy.Event, Any, None]


@dataclass(frozen=True)
class Span:
    """Something that ran: `track` is compute, launch or a port; times in cycles."""

    track: str
    row: int
    name: str
    start: float
    cycles: float


@dataclass(frozen=True)
class Played:
    """Latency of every row as it was played, float64 (rows,), and what ran when."""

    cycles: np.ndarray
    spans: tuple[Span, ...]

    def to_perfetto(self, names: Sequence[str], clock_hz: float) -> dict[str, Any]:
        """The trace in the Chrome JSON format, which https://ui.perfetto.dev opens; microseconds."""
        tracks = {track: i for i, track in enumerate(dict.fromkeys(span.track for span in self.spans))}
        scale = 1e6 / clock_hz
        found: list[dict[str, Any]] = [
            {"ph": "M", "name": "thread_name", "pid": 0, "tid": i, "args": {"name": track}}
            for track, i in tracks.items()
        ]
        found += [
            {
                "ph": "X",
                "pid": 0,
                "tid": tracks[span.track],
                "name": f"{names[span.row]} {span.name}".strip(),
                "ts": span.start * scale,
                "dur": span.cycles * scale,
            }
            for span in self.spans
        ]
        return {"displayTimeUnit": "ns", "traceEvents": found}


def play(steps: Steps, spec: HardwareSpec, keep_spans: bool = True) -> Played:
    """Play every row after the other.

    Args:
        keep_spans: whether to remember what ran when (a trace of a large network has many spans).

    Raises:
        ValueError: a step of more than MOST_WAVES waves.
    """
    if steps.waves.max(initial=0) > MOST_WAVES:
        raise ValueError(f"a step has {steps.waves.max():,.0f} waves, more than {MOST_WAVES:,} are not played")
    environment = simpy.Environment()
    player = _Player(environment, spec, keep_spans)
    ends = np.zeros(len(steps))

    def run() -> Process:
        for row in range(len(steps)):
            for step in range(len(steps.names)):
                if steps.tiles[row, step] > 0:
                    yield environment.process(player.step(steps, row, step))
            ends[row] = environment.now

    environment.process(run())
    environment.run()
    return Played(np.diff(ends, prepend=0.0), tuple(player.spans))


class _Player:
    """One machine in one SimPy environment."""

    def __init__(self, environment: simpy.Environment, spec: HardwareSpec, keep_spans: bool) -> None:
        self.environment, self.spec, self.keep_spans = environment, spec, keep_spans
        self.spans: list[Span] = []
        self.buses = {memory.bus or memory.name: simpy.Resource(environment) for memory in spec.memories}

    def step(self, steps: Steps, row: int, step: int) -> Process:
        """A prologue, then loaders and computation side by side."""
        yield from self._busy("launch", row, steps.names[step], float(steps.prologue_cycles[row, step]))
        tiles, parallel = float(steps.tiles[row, step]), float(steps.parallel[row, step])
        waves = [min(parallel, tiles - done) for done in np.arange(0.0, tiles, parallel)]
        modes = [memory.overlap for memory in self.spec.memories]
        free = {
            p: simpy.Container(self.environment, BUFFERS, BUFFERS) for p, m in enumerate(modes) if m == "double_buffer"
        }
        ready = {p: simpy.Container(self.environment, BUFFERS + 1, 0) for p in free}
        for port in free:
            self.environment.process(self._load(steps, row, step, port, waves, free[port], ready[port]))
        for side_by_side in waves:
            for port in ready:
                yield ready[port].get(1)
            working = [self.environment.process(self._compute(steps, row, step, side_by_side))]
            working += [
                self.environment.process(self._transfer(steps, row, step, port, side_by_side))
                for port, mode in enumerate(modes)
                if mode == "overlap" and steps.port_bytes[row, step, port] > 0
            ]
            yield simpy.AllOf(self.environment, working)
            for port in free:
                yield free[port].put(1)

    def _load(
        self,
        steps: Steps,
        row: int,
        step: int,
        port: int,
        waves: Sequence[float],
        free: simpy.Container,
        ready: simpy.Container,
    ) -> Process:
        for side_by_side in waves:
            yield free.get(1)
            yield from self._transfer(steps, row, step, port, side_by_side)
            yield ready.put(1)

    def _compute(self, steps: Steps, row: int, step: int, side_by_side: float) -> Process:
        yield from self._busy("compute", row, steps.names[step], float(steps.slowest_cycles[row, step]))
        for port, memory in enumerate(self.spec.memories):
            if memory.overlap == "serial":
                yield from self._transfer(steps, row, step, port, side_by_side)

    def _transfer(self, steps: Steps, row: int, step: int, port: int, side_by_side: float) -> Process:
        memory = self.spec.memories[port]
        moved = float(steps.port_bytes[row, step, port]) * (side_by_side if memory.shared else 1.0)
        with self.buses[memory.bus or memory.name].request() as turn:
            yield turn
            yield from self._busy(memory.name, row, steps.names[step], moved / memory.bandwidth_bytes_per_cycle)

    def _busy(self, track: str, row: int, name: str, cycles: float) -> Process:
        if cycles > 0:
            if self.keep_spans:
                self.spans.append(Span(track, row, name, float(self.environment.now), cycles))
            yield self.environment.timeout(cycles)
