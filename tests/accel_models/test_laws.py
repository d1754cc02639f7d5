"""The contract can fail: a machine that breaks one law is caught by it, and what the laws count is worked by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from accel_models import Target, target
from accel_models.ideal import Ideal
from accel_models.mapping import Steps
from accel_models.placement import Placement
from accel_models.testing import TargetContract, multiplications, needed_bytes
from accel_models.validation.compare import layers_columns
from workloads.columns import Columns

LAWS = TargetContract()


def cheating(change: Callable[[Mapping[str, Any], Columns], dict[str, Any]]) -> Target:
    """The ideal machine with some arrays of its steps changed."""

    class Cheat(Ideal):
        def map(self, rows: Columns, placement: Placement) -> Steps:
            steps = super().map(rows, placement)
            return dataclasses.replace(steps, **change(vars(steps), rows))

    machine = target("ideal")
    return dataclasses.replace(machine, family=Cheat(machine.spec))


def cycles(steps: Mapping[str, Any], factor: np.ndarray | float) -> dict[str, Any]:
    return {name: steps[name] * factor for name in ("floor_cycles", "mean_cycles", "slowest_cycles")}


def two_ports(machine: Target) -> Target:
    """A machine with a memory before the outermost one, which is asked for everything."""
    near = machine.spec.memories[0].model_copy(update={"name": "near"})
    spec = machine.spec.model_copy(update={"memories": (near, *machine.spec.memories)})

    class Twice(Ideal):
        def map(self, rows: Columns, placement: Placement) -> Steps:
            steps = super().map(rows, placement)
            steps.port_bytes[..., 1] = 2.5 * steps.port_bytes[..., 0]
            return steps

    return dataclasses.replace(machine, spec=spec, family=Twice(spec))


@pytest.mark.parametrize(
    ("law", "machine"),
    [
        (
            "test_never_below_the_multiplications_over_peak",
            cheating(lambda steps, rows: {**cycles(steps, 0.5), "port_bytes": 0 * steps["port_bytes"]}),
        ),
        (
            "test_every_byte_moves_at_least_once",
            cheating(lambda steps, rows: {"port_bytes": 0.8 * steps["port_bytes"]}),
        ),
        ("test_where_buffers_suffice_the_outermost_memory_is_asked_once", two_ports(target("ideal"))),
        (
            "test_denser_inputs_never_cost_less",
            cheating(lambda steps, rows: {"prologue_cycles": 1e9 * (1 - rows.input_density)[:, None]}),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_machine_that_cheats_is_caught(law: str, machine: Target) -> None:
    with pytest.raises(AssertionError):
        getattr(LAWS, law)(machine)


def test_taps_on_the_border_are_not_multiplied() -> None:
    """3 x 3 taps on 4 x 4 pixels: 3 x 4 - 2 taps of an axis hit the picture."""
    rows = layers_columns(
        ["conv c=2 k=5 h=4 r=3", "conv c=2 k=5 h=4 r=1", "conv c=3 k=3 h=5 r=3 stride=2 groups=3", "linear c=7 k=3"]
    )
    assert multiplications(rows).tolist() == pytest.approx([2 * 5 * 10 * 10, 2 * 5 * 16, 3 * 7 * 7, 21])


def test_pixels_between_strides_are_not_read() -> None:
    """1 x 1 kernels with stride 2 read 2 x 2 of 4 x 4 pixels; with 3 x 3 taps all."""
    rows = layers_columns(["conv c=2 k=5 h=4 stride=2", "conv c=2 k=5 h=4 r=3 stride=2"])
    rows = rows.replace(**{name: np.full(2, 8) for name in ("input_bits", "output_bits", "weight_bits")})
    assert needed_bytes(rows).tolist() == pytest.approx([2 * 4 + 5 * 4 + 0.85 * 10, 2 * 16 + 5 * 4 + 0.85 * 90])
