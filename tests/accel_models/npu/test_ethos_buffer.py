"""Bytes inside an Ethos-U: counted by hand, and laws of the count."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_models.pricing import Target
from accel_models.registry import target
from accel_models.validation.compare import layers_columns
from workloads.columns import Columns
from workloads.graph import OP_CODES, Op
from workloads.sparsity import WeightSparsity

MACHINES = ("ethos_u55_256", "ethos_u65_512", "ethos_u85_256")


def layer(text: str) -> Columns:
    """One layer of `layers_columns`' form, in 8 bits, as if inside a network."""
    eight, inside = np.array([8]), np.array([0])
    rows = layers_columns([text])
    return rows.replace(weight_bits=eight, input_bits=eight, output_bits=eight, from_input=inside, to_output=inside)


def inside(machine: Target, rows: Columns) -> float:
    """Bytes in the NPU's buffer, from their energy."""
    joules = machine.price(rows).energy_j[0, machine.components.index("buffer")]
    return float(joules / (machine.spec.energy_pj["buffer"] * 1e-12))


def test_a_convolution_by_hand() -> None:
    # 64 -> 64, 3x3, 8x8: one block. 4096 inputs come once; 64 pixels read 9 taps of 64 channels for 8 slices of 8
    # outputs; 9 taps of 2 groups of 32 channels are 18 steps, each reading and writing 4096 sums of 4 bytes; outputs
    # and 36864 weights are written and read.
    found = inside(target("ethos_u55_256"), layer("conv c=64 k=64 h=8 r=3"))
    assert found == pytest.approx(4096 + 64 * 9 * 64 * 8 + 18 * 8 * 4096 + 2 * 4096 + 2 * 36864)


def test_one_multiplication_by_hand() -> None:
    # A brick of 16 channels comes, 8 of them are read; one sum; weights are padded to 8 channels of 4 taps, 8 filters.
    found = inside(target("ethos_u55_256"), layer("conv c=1 k=1 h=1"))
    assert found == pytest.approx(16 + 8 + 8 + 2 + 2 * 256)


def test_a_depthwise_layer_by_hand() -> None:
    # 7 x 7 x 960 on a U85: one block of pixels, 9 taps in 3 steps; weights are padded to 12 taps.
    outputs = 7 * 7 * 960
    found = inside(target("ethos_u85_256"), layer("conv c=960 k=960 h=7 r=3 groups=960"))
    assert found == pytest.approx(outputs + 9 * outputs + 3 * 8 * outputs + 2 * outputs + 2 * 12 * 960)


@pytest.mark.parametrize("name", MACHINES)
def test_an_add_writes_and_reads_three_tensors(name: str) -> None:
    size = 28 * 28 * 64
    rows = layer("conv c=64 k=64 h=28").replace(bias=np.array([0]), other_elements=np.array([size]))
    assert inside(target(name), rows.replace(op=np.array([OP_CODES[Op.ADD]]))) == pytest.approx(2 * 3 * size)


def test_two_to_four_halves_the_steps_only() -> None:
    # 1x1, 256 -> 256, 16 x 16: 4 steps of 64 channels, or 2 of 128, which read the same inputs.
    u85, rows = target("ethos_u85_256"), layer("conv c=256 k=256 h=16")
    mask = np.zeros((256, 256, 1, 1), bool)
    mask[:, ::4] = mask[:, 1::4] = True
    sparsity = WeightSparsity.from_mask(mask)
    exact = rows.replace(sparsity=(sparsity,), weight_density=np.array([sparsity.density]))
    assert inside(u85, rows) - inside(u85, exact) == pytest.approx(2 * 8 * 16 * 16 * 256)


def test_a_copied_input_comes_and_goes_once_more() -> None:
    u85, rows = target("ethos_u85_256"), layer("conv c=64 k=256 h=28")
    start = rows.replace(from_input=np.array([1]))
    assert inside(u85, start) - inside(u85, rows) == pytest.approx(4 * 28 * 28 * 64)


@pytest.mark.parametrize("name", MACHINES)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 40), st.sampled_from([1, 3, 5]))
@settings(max_examples=25, deadline=None)
def test_what_is_moved_is_held_and_zeros_are_decoded(name: str, c: int, k: int, h: int, r: int) -> None:
    machine, text = target(name), f"conv c={c} k={k} h={h} r={r}"
    held = inside(machine, layer(text))
    assert held >= 2 * k * h * h + 2 * c * k * r * r  # outputs and weights
    assert held >= c * h * h * -(-k // 64)  # every input for every slice of outputs
    assert inside(machine, layer(f"{text} density=0.3")) == pytest.approx(held)
    assert inside(machine, layer(f"{text} n=2")) == pytest.approx(2 * held)
