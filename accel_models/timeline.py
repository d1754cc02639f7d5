"""Tiles to latency, closed form: one formula for every family, vectorised over rows and steps.

A step of T tiles runs in W = ceil(T / parallel) waves of m = parallel tiles side by side, the last one of the T -
(W - 1) parallel that are left. Of a wave

    busy  a(m) = max( slowest_cycles + sum over serial ports of bytes * m / bandwidth,
                      max over overlapping ports of bytes * m / bandwidth )
    fill  f(m) = max over double-buffered ports of bytes * m / bandwidth

with 1 in place of m for a port that each tile side by side has for itself; ports of one bus take turns, so their
cycles are summed before the maximum is taken. The next wave's data come while one runs:

    cycles = prologue + f(first) + (W - 2) * max(a, f) + max(a, f(last)) + a(last)          a, f of full waves
           = prologue + f(last) + a(last)                                                   of one wave

Steps of a row and rows of a graph follow one another. The cycles of a row are split into parts that sum to them
exactly: the useful floor, overhead, imbalance, waiting for memory, and launch (prologue).

Known to be wrong where two engines run at once, or where tiles of one step differ (the event-driven engine plays
those); tiles side by side are taken to share a shared port evenly.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from accel_models.mapping import Steps
from accel_models.spec import HardwareSpec


@dataclass(frozen=True)
class Timeline:
    """Cycles of every row and what they were spent on; float64 (rows,) where not said otherwise.

    Attributes:
        cycles: of the row, all steps; the sum of `useful`, `overhead`, `imbalance`, `memory` and `launch`.
        port_cycles: (rows, ports), cycles in which each port is busy.
        port_bytes: (rows, ports), bytes moved through each port.
    """

    cycles: np.ndarray
    useful: np.ndarray
    overhead: np.ndarray
    imbalance: np.ndarray
    memory: np.ndarray
    launch: np.ndarray
    port_cycles: np.ndarray
    port_bytes: np.ndarray


def closed_form(steps: Steps, spec: HardwareSpec) -> Timeline:
    """Latency of every row by the formula in the module docstring."""
    bandwidth = np.array([memory.bandwidth_bytes_per_cycle for memory in spec.memories])
    shared = np.array([memory.shared for memory in spec.memories])
    waves, port = steps.waves, steps.port_bytes / bandwidth
    runs = waves > 0
    full, fill = _wave(steps, spec, np.where(shared, np.minimum(steps.tiles, steps.parallel)[..., None], 1.0) * port)
    if (steps.parallel == 1).all():
        last, last_fill = full, fill
    else:
        left = steps.tiles - (waves - 1) * steps.parallel
        last, last_fill = _wave(steps, spec, np.where(shared, left[..., None], 1.0) * port)
    between = np.where(waves > 1, (waves - 2) * np.maximum(full, fill) + np.maximum(full, last_fill), 0.0)
    cycles = np.where(runs, steps.prologue_cycles + fill + between + last, 0.0).sum(axis=1)
    busy = (waves * steps.slowest_cycles).sum(axis=1)
    mean = (steps.tiles / steps.parallel * steps.mean_cycles).sum(axis=1)
    useful = (steps.tiles / steps.parallel * steps.floor_cycles).sum(axis=1)
    launch = np.where(runs, steps.prologue_cycles, 0.0).sum(axis=1)
    port_bytes = (steps.port_bytes * steps.tiles[..., None]).sum(axis=1)
    return Timeline(
        cycles=cycles,
        useful=useful,
        overhead=mean - useful,
        imbalance=busy - mean,
        memory=cycles - busy - launch,
        launch=launch,
        port_cycles=(np.where(shared, steps.tiles[..., None], waves[..., None]) * port).sum(axis=1),
        port_bytes=port_bytes,
    )


def _wave(steps: Steps, spec: HardwareSpec, port: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cycles that a wave runs, and those of its fill, (rows, steps), from each port's cycles, (rows, steps, ports)."""
    buses: dict[str, dict[str, np.ndarray]] = {"serial": {}, "overlap": {}, "double_buffer": {}}
    for index, memory in enumerate(spec.memories):
        waiting = buses[memory.overlap]
        bus = memory.bus or memory.name
        waiting[bus] = waiting[bus] + port[..., index] if bus in waiting else port[..., index]
    compute = sum(buses["serial"].values(), steps.slowest_cycles)
    hidden, fill = (_longest(buses[mode], steps) for mode in ("overlap", "double_buffer"))
    return np.maximum(compute, hidden), fill


def _longest(buses: Mapping[str, np.ndarray], steps: Steps) -> np.ndarray:
    """Cycles of the busiest bus, (rows, steps); zero if there is none."""
    return np.asarray(functools.reduce(np.maximum, buses.values(), np.zeros_like(steps.tiles)))
