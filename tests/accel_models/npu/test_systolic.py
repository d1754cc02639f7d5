"""Systolic arrays: cases by hand, the machine that moves its values, other simulators, and the TPU's counters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_models.npu.systolic import most_in_a_block
from accel_models.placement import place
from accel_models.pricing import Target
from accel_models.references.systolic import Array, multiply
from accel_models.registry import family_class, target, targets
from accel_models.spec import SPECS, parse_spec, read_machine
from accel_models.testing import sample_rows
from accel_models.validation.compare import compare, layers_columns
from workloads.columns import Columns
from workloads.errors import ConfigError
from workloads.graph import OP_CODES, Op
from workloads.sparsity import WeightSparsity

MACHINES = [name for name in targets() if target(name).spec.family == "systolic"]


def number(value: float) -> dict[str, Any]:
    return {"value": value, "source": "assumed: a test"}


def machine(rows: int, columns: int, base: str = "systolic_ws_32x32", **changes: Any) -> Target:
    """A machine file with another array and memories that never bind; numbers in `changes` are parameters."""
    data = read_machine(SPECS / f"{base}.yaml")
    data["macs_per_cycle"] = {8: number(rows * columns / changes.pop("rate", 1))}
    for memory in data["memories"]:
        memory["bandwidth_bytes_per_cycle"] = number(1e9)
        memory["overlap"] = "overlap"
    if fetch := changes.pop("fetch_cycles", 0):
        data["memories"][3]["bandwidth_bytes_per_cycle"] = number(rows * columns / fetch)
    data["parameters"] |= {"rows": number(rows), "columns": number(columns), "accumulator_rows": None}
    for key, value in changes.items():
        is_plain = isinstance(value, str | bool) or value is None
        data["parameters"][key] = value if is_plain else number(value)
    spec = parse_spec(data, "test")
    return Target(spec, family_class("systolic")(spec))


def layer(text: str, **columns: int) -> Columns:
    """One written-out layer in 8 bits."""
    rows = layers_columns([text])
    eight = {name: 8 for name in ("weight_bits", "input_bits", "output_bits")}
    return rows.replace(**{name: np.array([value]) for name, value in (eight | columns).items()})


def facts(machine: Target, rows: Columns) -> dict[str, float]:
    found = machine.family.facts(rows, place(rows, None, machine.spec))
    return {name: float(values.sum()) for name, values in found.items()}


def cycles(machine: Target, rows: Columns) -> float:
    return float(machine.price(rows).cycles.sum())


# ---- worked by hand --------------------------------------------------------------------------------------------------


def test_one_multiplication() -> None:
    assert cycles(machine(1, 1), layer("linear c=1 k=1")) == 2  # load, multiply
    assert cycles(machine(1, 1, dataflow="is"), layer("linear c=1 k=1")) == 2
    assert cycles(machine(1, 1, dataflow="os"), layer("linear c=1 k=1")) == 1


def test_four_multiplications() -> None:
    # 2x2 array, 1 pixel, 2 channels, 2 filters: 2 to load, then the pixel meets (0,0), (1,0) and (0,1), (1,1): 3.
    assert cycles(machine(2, 2), layer("linear c=2 k=2")) == 5
    # As 16-bit operands at a quarter of the rate: each product takes 4 cycles.
    assert cycles(machine(2, 2, rate=4), layer("linear c=2 k=2")) == 5 + 3


def test_folds_by_hand() -> None:
    # 3x3x5 = 45 deep, 7 filters, 4 pixels. Weight stationary on 8x4: 6 x 2 folds of 8 + 4 + 8 + 4 - 2.
    rows = layer("conv c=5 k=7 h=4 r=3 pad=valid")
    assert cycles(machine(8, 4), rows) == 12 * 22
    # Input stationary: 6 x 1 folds in which 7 filters stream. Output stationary: 1 x 2 of 45.
    assert cycles(machine(8, 4, dataflow="is"), rows) == 6 * (8 + 7 + 10)
    assert cycles(machine(8, 4, dataflow="os"), rows) == 2 * (45 + 10)
    # One tap a fold: 9 x 1 x 2 folds.
    assert cycles(machine(8, 4, taps_in_rows=False), rows) == 18 * 22


def test_groups_share_a_fold() -> None:
    # Depthwise 3x3, 6 channels: 9 deep, 1 filter. A height of 20 holds 2 groups: 3 folds of 20 + 16 + 20 + 4 - 2.
    rows = layer("conv c=6 k=6 h=4 r=3 groups=6")
    assert cycles(machine(20, 4), rows) == 3 * 58
    assert cycles(machine(20, 4, packs_groups=False), rows) == 6 * 58
    # One tap a fold: the width of 4 holds 4 groups, 2 sets of 9 taps.
    assert cycles(machine(20, 4, taps_in_rows=False), rows) == 18 * 58


def test_other_products_by_hand() -> None:
    array = machine(4, 4)
    shape = {"p": 3, "q": 1, "in_h": 3, "in_w": 1}
    # A matmul of two heads, (3, 5) x (5, 6): 2 x 2 folds each, of 4 + 3 + 6.
    heads = layer("conv c=5 k=6 h=1", op=OP_CODES[Op.MATMUL], n=2, other_elements=60, **shape)
    assert cycles(array, heads) == 2 * 4 * 13
    # An LSTM of 3 time steps, batch 2, 5 inputs and hidden together, 4 gates: 3 x 2 folds of 4 + 2 + 6.
    lstm = layer("conv c=5 k=4 h=1", op=OP_CODES[Op.LSTM], n=2, **shape)
    assert cycles(array, lstm) == 3 * 2 * 12
    # A transposed 2x2 convolution of 3 pixels, 5 channels, 3 filters: 5 deep, 12 filters, 2 x 3 folds of 4 + 3 + 6.
    up = layer("conv c=5 k=3 h=3 w=1", op=OP_CODES[Op.CONV_TRANSPOSE], r=2, s=2, in_h=3, in_w=1, p=6, q=2)
    assert cycles(array, up) == 6 * 13


def test_row_blocks_by_hand() -> None:
    # 25 pixels, at most 10 at once: 3 blocks of 8 1/3. Each reads all weights again, 3 x 8 loads in place of 8.
    rows = layer("conv c=4 k=4 h=5")
    assert cycles(machine(8, 4), rows) == 8 + 25 + 10
    assert cycles(machine(8, 4, accumulator_rows=10), rows) == pytest.approx(3 * (8 + 10) + 25)


def test_what_is_used_again_and_does_not_fit_is_fetched_again() -> None:
    # 16 deep, 8 filters on 4x4: two column folds, 4 along the depth. 100 pixels: 1600 bytes of inputs.
    rows = layer("conv c=16 k=8 h=10", bias=0)
    small = read_machine(SPECS / "systolic_ws_32x32.yaml")
    small["macs_per_cycle"] = {8: number(16)}
    small["parameters"] |= {"rows": number(4), "columns": number(4), "accumulator_rows": None}
    sizes = {"ifmap_sram": 2000, "filter_sram": 64, "ofmap_sram": 2400}
    for memory in small["memories"][:3]:
        memory["size_bytes"] = number(sizes[memory["name"]])
    spec = parse_spec(small, "test")
    prices = Target(spec, family_class("systolic")(spec)).price(rows)
    # Inputs: all, and the second time the 600 bytes beyond half of the buffer. Weights: once. Outputs: 800.
    # Partial sums of a fold: 100 x 4 x 4, 400 more than half of the buffer, out and in 3 times in 2 column folds.
    assert prices.traffic_bytes[0, 3] == 1600 + 600 + 128 + 800 + 2 * 3 * 400 * 2
    # The array reads 4 inputs a row of each fold and writes a sum of 4 bytes, which 3 of 4 folds first read.
    assert prices.traffic_bytes[0, :3].tolist() == [1600 * 2, 128, 800 * 4 * 7]


# ---- the machine that moves its values -------------------------------------------------------------------------------

SIDES = {"rows": st.integers(1, 5), "columns": st.integers(1, 5)}
SHAPES = {"pixels": st.integers(1, 9), "depth": st.integers(1, 9), "filters": st.integers(1, 9)}


def product(pixels: int, depth: int, filters: int) -> Columns:
    return layer(f"linear c={depth} k={filters} n={pixels}", bias=0)


@settings(max_examples=150, deadline=None)
@given(dataflow=st.sampled_from(["ws", "is", "os"]), **SIDES, **SHAPES)
def test_cycles_are_those_of_the_reference(
    dataflow: Any, rows: int, columns: int, pixels: int, depth: int, filters: int
) -> None:
    run = multiply(Array(rows, columns, dataflow), np.ones((pixels, depth)), np.ones((depth, filters)))
    array = machine(rows, columns, dataflow=dataflow)
    assert cycles(array, product(pixels, depth, filters)) == pytest.approx(run.cycles, abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(fetch=st.integers(0, 20), **SIDES, **SHAPES)
def test_hidden_loads_are_those_of_the_reference(
    fetch: int, rows: int, columns: int, pixels: int, depth: int, filters: int
) -> None:
    reference = Array(rows, columns, hidden_loads=True, fetch_cycles=fetch)
    run = multiply(reference, np.ones((pixels, depth)), np.ones((depth, filters)))
    array = machine(rows, columns, "tpu_v1", fetch_cycles=fetch, non_matrix_share=0)
    assert cycles(array, product(pixels, depth, filters)) == pytest.approx(run.cycles, abs=1e-5)


@settings(max_examples=100, deadline=None)
@given(**SIDES, **SHAPES)
def test_used_parts_are_those_of_the_reference(rows: int, columns: int, pixels: int, depth: int, filters: int) -> None:
    reference = Array(rows, columns, "os", waits_for_used=True)
    run = multiply(reference, np.ones((pixels, depth)), np.ones((depth, filters)))
    folds = -(-pixels // rows) * -(-filters // columns)
    array = machine(rows, columns, "stonne_os_16x16")
    assert cycles(array, product(pixels, depth, filters)) == pytest.approx(run.cycles + 5 * folds, abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(block=st.sampled_from([2, 4]), density=st.floats(0.1, 1), seed=st.integers(0, 99), **SIDES, **SHAPES)
def test_compressed_cycles_are_those_of_the_reference(
    block: int, density: float, seed: int, rows: int, columns: int, pixels: int, depth: int, filters: int
) -> None:
    mask = np.random.default_rng(seed).random((depth, filters)) < density
    run = multiply(Array(rows, columns), np.ones((pixels, depth)), mask.astype(float), block)
    found = product(pixels, depth, filters)
    exact = found.replace(sparsity=(WeightSparsity.from_mask(mask.T),), weight_density=np.array([mask.mean()]))
    array = machine(rows, columns, sparse_block=block)
    assert cycles(array, exact) == pytest.approx(run.cycles, abs=1e-6)


# ---- N:M compression -------------------------------------------------------------------------------------------------


def test_a_mask_is_counted_and_a_density_is_read_as_n_of_m() -> None:
    array = machine(8, 8, sparse_block=4)
    rows = layer("conv c=8 k=8 h=4 r=3")
    dense, half, quarter = (
        cycles(array, rows.replace(weight_density=np.array([density]))) for density in (1.0, 0.5, 0.2)
    )
    assert (dense, half, quarter) == (9 * 38, 5 * 38, 3 * 38)  # 72, 36 and 18 deep
    mask = np.zeros((8, 8, 3, 3), bool)
    mask[:, ::2] = True  # 2:4
    mask[0, :4, 1, 1] = True  # but for one block of one filter
    exact = rows.replace(sparsity=(WeightSparsity.from_mask(mask),), weight_density=np.array([mask.mean()]))
    assert cycles(array, exact) == dense
    mask[0, 1, 1, 1] = mask[0, 3, 1, 1] = False
    exact = rows.replace(sparsity=(WeightSparsity.from_mask(mask),), weight_density=np.array([mask.mean()]))
    assert cycles(array, exact) == half
    assert cycles(machine(8, 8), exact) == dense  # without compression zeros are multiplied


def test_blocks_run_along_channels_first() -> None:
    mask = np.zeros((1, 2, 1, 2), bool)
    mask[0, 0] = True  # channel 0 at both taps: (R, S, C) order 1 0 1 0
    assert most_in_a_block(WeightSparsity.from_mask(mask), 2) == 1
    mask[0, 1, 0, 0] = True  # 1 1 1 0
    assert most_in_a_block(WeightSparsity.from_mask(mask), 2) == 2
    assert most_in_a_block(WeightSparsity.from_mask(mask), 4) == 3
    assert most_in_a_block(WeightSparsity.from_mask(mask), 4, by_tap=True) == 2


def test_compressed_weights_carry_their_places() -> None:
    rows = layer("linear c=64 k=64", bias=0)
    array = target("scalesim_ws_32x32_nm")
    dram = [array.price(rows.replace(weight_density=np.array([d]))).traffic_bytes[0, 3] - 128 for d in (1, 0.5)]
    assert dram == [64 * 64, 64 * 64 / 2 * (1 + 2 / 8)]  # two bits each


# ---- published numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ws_32x32", "os_32x32", "is_32x32", "ws_32x32_nm"])
def test_scalesim_is_met_exactly(name: str) -> None:
    found = compare(f"scalesim_{name}")
    assert len(found) > 20
    assert [item.row.id for item in found if item.predicted != item.row.value] == []


def test_cycles_without_stalls_are_the_same_number() -> None:
    rows = layer("conv c=96 k=256 h=27 r=5 pad=valid")
    assert cycles(target("scalesim_ws_32x32"), rows) == pytest.approx(373799, abs=1e-6)


def test_stonne_is_met_exactly() -> None:
    assert [item.predicted for item in compare("stonne_os_16x16")] == [74496]


def test_tpu_shares_are_within_three_points() -> None:
    found = compare("tpu_v1")
    assert len(found) == 12
    assert max(abs(item.error) for item in found) < 0.02
    for network in ("mlp0", "lstm0", "cnn0"):
        assert sum(item.predicted for item in found if item.row.network == network) == pytest.approx(100)


def test_a_tpu_fold_by_hand() -> None:
    tpu = machine(256, 256, "tpu_v1", fetch_cycles=1349, non_matrix_share=0.2, accumulator_rows=2048)
    # Batch 200: 200 cycles of work, 256 of shift and the rest of 1349 waiting, and a quarter of that for other work.
    found = facts(tpu, layer("linear c=2048 k=2048 n=200", bias=0))
    assert found["folds"] == 64
    assert found["array_active_cycles"] == 64 * 200
    assert found["weight_shift_cycles"] == pytest.approx(64 * 256)
    assert found["weight_stall_cycles"] == pytest.approx(64 * (1349 - 456))
    assert found["non_matrix_cycles"] == pytest.approx(64 * 1349 / 4)
    # Batch 1300: shifting in takes most of what is left; the results are out 510 - 49 cycles after the fold.
    found = facts(tpu, layer("linear c=256 k=256 n=1300", bias=0))
    assert found["weight_shift_cycles"] == pytest.approx(49)
    assert found["weight_stall_cycles"] == pytest.approx(0)
    assert found["non_matrix_cycles"] == pytest.approx(1349 / 4 + 461)
    # 2888 pixels: two blocks of 1444, each longer than a fetch.
    found = facts(tpu, layer("conv c=256 k=256 h=19 n=8", bias=0))
    assert (found["folds"], found["array_active_cycles"]) == (2, 2888)
    assert found["weight_shift_cycles"] == found["weight_stall_cycles"] == 0


def test_tpu_draws_its_published_idle_power_and_less_than_its_limit() -> None:
    tpu = target("tpu_v1")
    names = tpu.components
    prices = tpu.price(layer("conv c=256 k=256 h=19 r=3 n=8"))
    power = dict(zip(names, prices.energy_j[0] / prices.latency_s[0], strict=True))
    die = sum(power.values()) - power["weight_memory"] - power["feature_memory"]
    assert power["static"] == pytest.approx(28)
    assert 35 < die < 45  # 40 W busy


# ---- laws ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MACHINES)
def test_parts_of_the_cycles_sum_to_them(name: str) -> None:
    array = target(name)
    rows = sample_rows(300, np.random.default_rng(4), 8)
    placement = place(rows, None, array.spec)
    found = dict(array.family.facts(rows, placement))
    assert all((values >= -1e-6).all() for values in found.values())
    total = array.price(rows).cycles
    for extra in ("folds", "compute_cycles", "useful_cycles"):
        del found[extra]
    np.testing.assert_allclose(sum(found.values()), total, rtol=1e-9)


def test_features_live_on_chip_until_they_do_not_fit() -> None:
    tpu = target("tpu_v1")
    host, ddr = tpu.spec.ports.index("host"), tpu.spec.ports.index("weight_memory")
    small, large = layer("conv c=64 k=64 h=56"), layer("conv c=64 k=64 h=56 n=200")
    assert tpu.price(small).traffic_bytes[0, host] == 0
    assert tpu.price(small).traffic_bytes[0, ddr] == 65536 * 2 + 64 * 4  # 3136 rows: two blocks, a tile each
    assert tpu.price(large).traffic_bytes[0, host] == 2 * 200 * 64 * 56 * 56


def test_memory_bound_cycles_are_the_bytes() -> None:
    array = target("systolic_ws_32x32")
    rows = layer("linear c=1024 k=1024", bias=0)
    prices = array.price(rows)
    per_fold = prices.traffic_bytes[0, 3] / 1024 / 16  # fetched at 16 bytes a cycle while the last fold runs
    assert prices.cycles[0] == pytest.approx(1024 * max(per_fold, 95) + min(per_fold, 95))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"macs_per_cycle": {8: number(1000)}}, "macs_per_cycle.8: 1000, must be"),
        ({"parameters": {"dataflow": "os", "sparse_block": number(4)}}, "need held weights"),
        ({"parameters": {"dataflow": "os", "hidden_loads": True}}, "holds no operand"),
        ({"parameters": {"dataflow": "os", "accumulator_rows": number(8)}}, "sums in place"),
        ({"parameters": {"uncounted_cycles": number(99)}}, "parameters.uncounted_cycles: 99"),
        ({"parameters": {"non_matrix_share": number(0.1)}}, "parameters.non_matrix_share"),
        ({"parameters": {"dataflow": "rs"}}, "parameters.dataflow"),
        ({"feature_memories": ["dram"], "memories": 3}, "needs those of inputs"),
    ],
)
def test_wrong_machines_are_refused(changes: dict[str, Any], message: str) -> None:
    data = read_machine(SPECS / "scalesim_ws_32x32.yaml")
    for key, value in changes.items():
        if key == "memories":
            data[key] = data[key][1:]
        else:
            data[key] = {**data[key], **value} if isinstance(value, dict) else value
    with pytest.raises(ConfigError, match=message):
        family_class("systolic")(parse_spec(data, "test"))
