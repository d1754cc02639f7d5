"""The closed form against waves played one after another, and by hand."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import numpy as np
import pytest

from accel_models.mapping import Steps
from accel_models.spec import HardwareSpec, Memory
from accel_models.timeline import closed_form

Overlap = Literal["overlap", "serial", "double_buffer"]
MODES: tuple[Overlap, ...] = ("overlap", "serial", "double_buffer")


def machine(*ports: tuple[Overlap, bool, float]) -> HardwareSpec:
    """A spec whose memories have the given (overlap, shared, bytes a cycle); nothing else of it is read."""
    memories = tuple(
        Memory.model_construct(name=f"m{i}", overlap=mode, shared=shared, bandwidth_bytes_per_cycle=speed)
        for i, (mode, shared, speed) in enumerate(ports)
    )
    return HardwareSpec.model_construct(memories=memories)


def one_step(
    tiles: float, parallel: float, slowest: float, port_bytes: list[float], prologue: float = 0.0, floor: float = 0.0
) -> Steps:
    arrays = Steps.empty(("run",), ("only",), 1, len(port_bytes), 1)
    arrays["tiles"][:] = tiles
    arrays["parallel"][:] = parallel
    arrays["floor_cycles"][:] = floor
    arrays["mean_cycles"][:] = arrays["slowest_cycles"][:] = slowest
    arrays["prologue_cycles"][:] = prologue
    arrays["port_bytes"][0, 0] = port_bytes
    return Steps(**arrays)


def played(steps: Steps, spec: HardwareSpec) -> float:
    """Waves one after another: the next one's data stream into the other buffer while this one computes."""
    tiles, parallel = int(steps.tiles[0, 0]), int(steps.parallel[0, 0])
    waves = [min(parallel, tiles - start) for start in range(0, tiles, parallel)]

    def takes(wave: int, mode: Overlap) -> list[float]:
        moved = zip(spec.memories, steps.port_bytes[0, 0], strict=True)
        return [
            float(size) * (waves[wave] if memory.shared else 1) / memory.bandwidth_bytes_per_cycle
            for memory, size in moved
            if memory.overlap == mode
        ]

    def fill(wave: int) -> float:
        return max(takes(wave, "double_buffer"), default=0.0) if wave < len(waves) else 0.0

    clock = float(steps.prologue_cycles[0, 0]) + fill(0)
    for wave in range(len(waves)):
        compute = float(steps.slowest_cycles[0, 0]) + sum(takes(wave, "serial"))
        clock += max(compute, fill(wave + 1), *takes(wave, "overlap"))
    return clock


@pytest.mark.parametrize("seed", range(40))
def test_equals_waves_played_one_after_another(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ports = [(MODES[i], bool(rng.integers(2)), float(rng.uniform(0.5, 8))) for i in rng.integers(0, 3, 3)]
    spec = machine(*ports, ("overlap", True, 1e9))
    steps = one_step(
        float(rng.integers(1, 14)), float(rng.integers(1, 6)), rng.uniform(0, 50), [*rng.uniform(0, 99, 3), 0.0], 7.0
    )
    assert closed_form(steps, spec).cycles[0] == pytest.approx(played(steps, spec))


def test_the_last_wave_has_the_shared_port_for_itself() -> None:
    """Five tiles of 10 bytes on four cores: the memory moves 50 bytes, not the 80 of two full waves."""
    spec = machine(("overlap", True, 1.0))
    found = closed_form(one_step(5, 4, 2.0, [10.0]), spec)
    assert found.cycles[0] == 50
    assert found.port_cycles[0, 0] == found.port_bytes[0, 0] == 50


def test_a_private_port_serves_its_own_tile() -> None:
    found = closed_form(one_step(5, 4, 2.0, [10.0]), machine(("overlap", False, 1.0)))
    assert found.cycles[0] == 20
    assert found.port_cycles[0, 0] == 20
    assert found.port_bytes[0, 0] == 50


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_a_tile_more_never_costs_less(mode: Overlap, shared: bool) -> None:
    spec = machine((mode, shared, 3.0))
    cycles = [closed_form(one_step(tiles, 4, 5.0, [17.0]), spec).cycles[0] for tiles in range(30)]
    assert all(few <= more for few, more in pairwise(cycles))
    assert cycles[0] == 0


def test_parts_by_hand() -> None:
    """Six tiles on four cores: 6/4 waves of work in two, the rest of the second wave is imbalance."""
    found = closed_form(one_step(6, 4, 10.0, [0.0], prologue=3.0, floor=8.0), machine(("overlap", True, 1.0)))
    assert found.cycles[0] == 23
    assert (found.useful[0], found.overhead[0], found.imbalance[0]) == (12, 3, 5)
    assert (found.memory[0], found.launch[0]) == (0, 3)


def test_cycles_of_many_steps_add_up() -> None:
    spec = machine(("double_buffer", True, 2.0))
    parts = [one_step(tiles, 2, 4.0, [6.0]) for tiles in (1, 3, 5)]
    joined = Steps.empty(("a", "b", "c"), ("only",), 1, 1, 1)
    for name in ("tiles", "parallel", "slowest_cycles", "mean_cycles", "port_bytes"):
        joined[name] = np.concatenate([getattr(part, name) for part in parts], axis=1)
    whole = closed_form(Steps(**joined), spec).cycles[0]
    assert whole == pytest.approx(math.fsum(closed_form(part, spec).cycles[0] for part in parts))
