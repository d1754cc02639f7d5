"""Choosing tiles by measuring: PatDNN's parameter tuning, for this machine and these weights.

For every convolution the estimate (`ops.convolution.tunings`) ranks all tiles and groups; the most promising are
compiled and run in turn, round after round, on memory laid out as in the network, and the one with the least time of
any run is kept. Time is the processor's, so that other work on the machine disturbs little. What was found is
remembered on disk by machine, instruction set and layer (shapes, layouts, which kernels are kept): the next network
with such a layer does not measure it again.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from codesign.compiler.isa import Isa
from codesign.compiler.network import arrange, channels_read
from codesign.compiler.ops.convolution import choices, kernels_of_step, plan_tuned
from codesign.compiler.plan import Context, Tuning
from codesign.compiler.probe import processor_key
from codesign.compiler.program import Data
from codesign.compiler.runtime import aligned, alone
from codesign.compiler.steps import Step
from codesign.compiler.storage import Kernels
from pruning.progress import shown
from workloads.data.store import cache_folder
from workloads.errors import ConfigError, DataError
from workloads.graph import LayerGraph, Op
from workloads.store import read_json, write_json

CANDIDATES = 12
"""Of the estimate's ranking that are measured."""
CHOICES = 2
"""Counts up when kernels or what is chosen from change: measurements of before do not hold then."""
ROUNDS = 7
LEAST_SECONDS = 0.002
"""Of a measurement: shorter stages are repeated."""


@dataclass
class Cache:
    """Tunings by key, kept in a file; `path` None keeps them in memory only."""

    path: Path | None = None
    found: dict[str, Tuning] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Cache:
        """An unreadable file counts as empty: it is only a memory of measurements."""
        try:
            rows = read_json(path) if path.is_file() else {}
            return cls(path, {key: tuning_of(row) for key, row in rows.items()})
        except (ConfigError, AttributeError, KeyError, TypeError, ValueError):
            return cls(path)

    def keep(self, key: str, tuning: Tuning) -> None:
        """Remember a tuning, beside what other processes have written meanwhile."""
        self.found[key] = tuning
        if self.path is not None:
            self.found = Cache.load(self.path).found | self.found
            rows = {name: asdict(each) for name, each in sorted(self.found.items())}
            with contextlib.suppress(DataError):  # a place that cannot be written: measured anew next time
                write_json(self.path, rows)


def default_cache() -> Path:
    """`tunings.json` of the user's cache folder."""
    return cache_folder() / "tunings.json"


def tuning_of(row: Mapping[str, object]) -> Tuning:
    """A tuning from JSON.

    Raises:
        TypeError, KeyError, ValueError: it is not one.
    """
    rows, columns = row["tile"]  # type: ignore[misc]
    found = Tuning((int(rows), int(columns)), int(row["filters"]), row["order"])  # type: ignore
    if min(*found.tile, found.filters) < 1 or found.order not in ("filter", "channel", "lanes"):
        raise ValueError(f"not a tuning: {row}")
    return found


def tune(
    graph: LayerGraph,
    weights: Mapping[str, np.ndarray],
    isa: Isa,
    cache: Cache | None = None,
    progress: bool = False,
) -> dict[str, Tuning]:
    """The fastest tuning of every convolution, by the name of what it writes, on one thread.

    Args:
        cache: measurements of before; new ones are added. What is no choice of a layer is measured anew.
        progress: show a bar.
    """
    cache = cache if cache is not None else Cache()
    order, places, arena, _ = arrange(graph, weights, isa)
    bench, read = _Bench(arena), channels_read(order, weights, graph.outputs)
    steps = [item for item in order if isinstance(item, Step) and item.layer.op is Op.CONV]
    found: dict[str, Tuning] = {}
    for step in shown(steps, "tuning", len(steps), progress):
        context = Context(isa, weights, places, Data(), read=read)
        kernels = kernels_of_step(step, context)
        name, tunings = _key(step, context, kernels), choices(step, context, kernels)
        if cache.found.get(name) not in tunings:
            cache.keep(name, _fastest(step, context, kernels, tunings[:CANDIDATES], bench))
        found[step.output] = cache.found[name]
    return found


def _key(step: Step, context: Context, kernels: Kernels) -> str:
    """All that decides which candidates a step has, and how long they take."""
    source, out = context.places[step.inputs[0]], context.places[step.output]
    digest = hashlib.sha256()
    for array in (kernels.filter, kernels.channel, kernels.shape, kernels.row, kernels.column):
        digest.update(np.ascontiguousarray(array, np.int32).tobytes())
    layer, added = step.layer, None
    if step.residual is not None:
        its = context.places[step.residual.tensor]
        added = (replace(step.residual, tensor=""), its.shape, its.layout)
    parts = (CHOICES, processor_key(), context.isa.name, source.shape, source.layout, out.shape, out.layout,
             layer.stride, layer.dilation, layer.padding, step.activation, added, step.pool is not None,
             kernels.shapes, digest.hexdigest())  # fmt: skip
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _fastest(step: Step, context: Context, kernels: Kernels, tunings: Sequence[Tuning], bench: _Bench) -> Tuning:
    times = bench.times(step, context, kernels, tunings)
    return min(times, key=times.__getitem__)


class _Bench:
    """Memory in which stages of one network are run alone."""

    def __init__(self, arena: int) -> None:
        self._arena = aligned(arena)
        self._arena.view(np.float32)[: arena // 4] = np.random.default_rng(0).random(arena // 4, np.float32)

    def times(self, step: Step, context: Context, kernels: Kernels, tunings: Sequence[Tuning]) -> dict[Tuning, float]:
        """Seconds of processor time of each choice: the least of some rounds, in each of which all have their turn."""
        runs = {}
        for tuning in tunings:
            own = replace(context, data=Data(), scratch=0)
            runs[tuning] = alone(plan_tuned(step, own, kernels, tuning), own, self._arena)
        best = {tuning: float("inf") for tuning in tunings}
        for _ in range(ROUNDS):
            for tuning, run in runs.items():
                best[tuning] = min(best[tuning], _seconds(run))
        return best


def _seconds(run: Callable[[], None]) -> float:
    """Of one run, from as many as a clock can tell."""
    begin = time.thread_time()
    run()
    once = time.thread_time() - begin
    count = int(LEAST_SECONDS / max(once, 1e-7))
    if count < 2:
        return once
    begin = time.thread_time()
    for _ in range(count):
        run()
    return min(once, (time.thread_time() - begin) / count)
