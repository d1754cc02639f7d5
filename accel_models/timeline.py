"""Tiles to latency, closed form: one formula for every family, vectorised over rows and steps.

For a step of T tiles, W = ceil(T / parallel) waves, per wave

    compute  a = slowest_cycles + sum over serial ports of bytes * m / bandwidth
    stream   b = max over other ports of bytes * m / bandwidth
    fill     f = max over double-buffered ports of bytes * m / bandwidth

with m the tiles side by side for a shared port, 1 for a port that each of them has for itself,

    cycles = prologue + f + (W - 1) * max(a, b) + max(a, b_overlapped)

where b_overlapped leaves the double-buffered ports out: the last tile's data have already come. Steps of a row and
rows of a graph follow one another. The cycles of a row are split into parts that sum to them exactly: the useful
floor, padding, imbalance, waiting for memory, and launch (prologue).

Known to be wrong where two engines run at once, or where tiles of one step differ (the event-driven engine plays
those); tiles side by side are taken to share a shared port evenly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from accel_models.mapping import Steps
from accel_models.spec import HardwareSpec


@dataclass(frozen=True)
class Timeline:
    """Cycles of every row and what they were spent on; float64 (rows,) where not said otherwise.

    Attributes:
        cycles: of the row, all steps; the sum of `useful`, `padding`, `imbalance`, `memory` and `launch`.
        port_cycles: (rows, ports), cycles in which each port is busy.
        port_bytes: (rows, ports), bytes moved through each port.
    """

    cycles: np.ndarray
    useful: np.ndarray
    padding: np.ndarray
    imbalance: np.ndarray
    memory: np.ndarray
    launch: np.ndarray
    port_cycles: np.ndarray
    port_bytes: np.ndarray


def closed_form(steps: Steps, spec: HardwareSpec) -> Timeline:
    """Latency of every row by the formula in the module docstring."""
    bandwidth = np.array([memory.bandwidth_bytes_per_cycle for memory in spec.memories])
    overlap = [memory.overlap for memory in spec.memories]
    waves = steps.waves
    side_by_side = np.minimum(steps.tiles, steps.parallel)
    shared = np.array([memory.shared for memory in spec.memories])
    sharing = np.where(shared, side_by_side[..., None], 1.0)
    port = steps.port_bytes * sharing / bandwidth
    serial = _reduce(np.add, port, [mode == "serial" for mode in overlap])
    buffered = _reduce(np.maximum, port, [mode == "double_buffer" for mode in overlap])
    hidden = _reduce(np.maximum, port, [mode == "overlap" for mode in overlap])
    compute = steps.slowest_cycles + serial
    steady = np.maximum(compute, np.maximum(buffered, hidden))
    runs = waves > 0
    cycles = np.where(
        runs, steps.prologue_cycles + buffered + (waves - 1) * steady + np.maximum(compute, hidden), 0.0
    ).sum(axis=1)
    busy = (waves * steps.slowest_cycles).sum(axis=1)
    mean = (steps.tiles / steps.parallel * steps.mean_cycles).sum(axis=1)
    useful = (steps.tiles / steps.parallel * steps.floor_cycles).sum(axis=1)
    launch = np.where(runs, steps.prologue_cycles, 0.0).sum(axis=1)
    port_bytes = (steps.port_bytes * steps.tiles[..., None]).sum(axis=1)
    return Timeline(
        cycles=cycles,
        useful=useful,
        padding=mean - useful,
        imbalance=busy - mean,
        memory=cycles - busy - launch,
        launch=launch,
        port_cycles=(waves[..., None] * port).sum(axis=1),
        port_bytes=port_bytes,
    )


def _reduce(by: np.ufunc, port: np.ndarray, chosen: list[bool]) -> np.ndarray:
    """Combine the chosen ports' cycles, (rows, steps); zero if none is chosen."""
    if not any(chosen):
        return np.zeros(port.shape[:2])
    return np.asarray(by.reduce(port[..., np.array(chosen)], axis=2))
