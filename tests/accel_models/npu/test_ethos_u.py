"""Ethos-U55 and U65: cases worked by hand, laws of their own, and the vendor's estimates."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_models.npu.ethos_blocks import Shram, choose_block
from accel_models.npu.ethos_staging import Copy, cold_cycles
from accel_models.npu.ethos_work import distinct, work_of
from accel_models.placement import place
from accel_models.pricing import Target, replace_spec
from accel_models.registry import target
from accel_models.result import BOUNDS, Prices
from accel_models.validation.compare import compare, layer_graph, layers_columns
from workloads.columns import Columns
from workloads.graph import OP_CODES, Op
from workloads.sparsity import WeightSparsity


@pytest.fixture(scope="module")
def u55() -> Target:
    return target("ethos_u55_256")


def conv(text: str, activation: int = 1) -> Columns:
    """One convolution of `layers_columns`' form, in 8 bits, as if inside a network."""
    rows = layers_columns([f"conv {text}"])
    eight, inside = np.array([8]), np.array([0])
    rows = rows.replace(weight_bits=eight, input_bits=eight, output_bits=eight, activation=np.array([activation]))
    return rows.replace(from_input=inside, to_output=inside)


def elementwise(op: str, channels: int, side: int, **changes: int) -> Columns:
    """One row without weights."""
    rows = conv(f"c={channels} k={channels} h={side}", activation=0)
    elements = channels * side * side
    columns = {"bias": 0, "other_elements": elements if op in ("add", "mul") else 0, **changes}
    arrays = {name: np.array([value]) for name, value in columns.items()}
    return rows.replace(op=np.array([OP_CODES[Op(op)]]), **arrays)


def npu_cycles(prices: Prices) -> float:
    return float((prices.useful_cycles + prices.overhead_cycles)[0])


def test_a_layer_of_one_block_by_hand(u55: Target) -> None:
    # 64 -> 64, 3x3, 8x8 pixels: one block of 8x8x64; 16 micro-blocks of 2x2 pixels, 8 slices of 8 channels.
    # mac  = 9 taps * 2 groups of 32 inputs * 8 slices * 16 * 4 cycles       = 9216
    # out  = 4096 elements / 4 a cycle                                       = 1024; cmd = (9216 + 1024) / 4 = 2560
    # fill = 8*8*32 bytes / 8 = 256; drain = 8*8*64 / 8 = 512; latency 2 * 32 = 64
    prices = u55.price(conv("c=64 k=64 h=8 r=3"))
    assert npu_cycles(prices) == 9216 + 2560 + 256 + 512 + 64
    # SRAM: inputs 8*8*64 and outputs 8*8*64, each once. Flash: 36864 weights of 7.15 bits (a multiple of 16 bytes)
    # and 64 * 10 bytes of scales, one byte a cycle: that is what binds.
    assert prices.traffic_bytes[0].tolist() == [8192, 32960 + 640]
    assert prices.cycles[0] == 33600
    assert u55.price(conv("c=64 k=64 h=8 r=3")).bound[0] == 6  # flash


def test_one_multiplication_by_hand(u55: Target) -> None:
    # One micro-block, one part-kernel step of 32 cycles (the weights of 8 channels) and 2 of delay. The weights are
    # staged, so out = 10 bytes of scale at SRAM latency 32 / 256 = 1; cmd = 35 / 4 = 8. Fill and drain: 1 byte each, of
    # bricks of 16 bytes, two side by side in a burst of 32 = 1/8 cycle. Weights: 256 stored, nearly all zero, round to
    # 16 bytes; scales to 16.
    prices = u55.price(conv("c=1 k=1 h=1"))
    assert npu_cycles(prices) == 34 + 8 + 0.125 + 0.125 + 64
    assert prices.useful_cycles[0] == pytest.approx(1 / 256)
    assert prices.traffic_bytes[0, 1] == 32
    assert prices.cycles[0] == npu_cycles(prices)


def test_a_layer_bound_by_its_output_by_hand(u55: Target) -> None:
    # 32 -> 64, 1x1, 16x16: 4 blocks of 4x16x64, each mac = 16 * 4 * 8 = 512 and out = 4096 / 4 = 1024.
    # fill = 4*16*32 / 8 = 256, drain = 512: all out + one mac + fill + drain + 64.
    prices = u55.price(conv("c=32 k=64 h=16"))
    assert npu_cycles(prices) == 4 * 1024 + 512 + 256 + 512 + 64


def test_an_add_by_hand(u55: Target) -> None:
    # 28*28*64 elements at 0.75 cycles; two inputs and one output through the 8-byte port; 20 channels take two bricks.
    prices = u55.price(elementwise("add", 64, 28))
    assert prices.cycles[0] == 0.75 * 28 * 28 * 64
    assert prices.traffic_bytes[0, 0] == 3 * 28 * 28 * 64
    assert prices.useful_cycles[0] == prices.cycles[0]  # no overhead: work of the output unit
    assert BOUNDS[prices.bound[0]] == "compute"
    assert u55.price(elementwise("add", 20, 28)).useful_cycles[0] == 0.75 * 28 * 28 * 20
    assert u55.price(elementwise("add", 20, 28)).cycles[0] == u55.price(elementwise("add", 32, 28)).cycles[0]


@pytest.mark.parametrize(
    ("text", "block"),
    [
        ("c=128 k=128 h=28 r=3", (6, 14, 48)),
        ("c=32 k=32 h=16 r=3", (8, 16, 16)),
        ("c=16 k=16 h=32 r=3", (12, 16, 16)),
        ("c=1024 k=256 h=14", (4, 14, 64)),
        ("c=64 k=64 h=28 r=5", (4, 28, 16)),
        ("c=8 k=8 h=56 r=3", (14, 30, 8)),
        ("c=24 k=40 h=28", (10, 10, 40)),
        ("c=24 k=256 h=14 stride=2", (4, 8, 128)),
        ("c=32 k=64 h=10 r=3", (10, 10, 16)),
        ("c=120 k=120 h=28 r=5 groups=120", (10, 14, 16)),
    ],
)
def test_blocks_are_those_of_the_vendor_compiler(u55: Target, text: str, block: tuple[int, int, int]) -> None:
    rows = conv(text)
    work = work_of(rows, place(rows, None, u55.spec))
    part_kernel = np.array([int(rows.c[0]) <= 8 or (rows.c[0] % 32 > 0 and rows.r[0] > 1)])
    found = choose_block(work, part_kernel, u55.family._shram())  # type: ignore[attr-defined]
    assert (found.h[0], found.w[0], found.d[0]) == block


def test_channels_between_two_micro_blocks_are_overhead(u55: Target) -> None:
    family = u55.family

    def mac_bound(k: int) -> float:
        return npu_cycles(u55.price(conv(f"c=64 k={k} h=28 r=3")))

    assert family.channel_multiple() == 8
    assert mac_bound(57) > 0.97 * mac_bound(64) > mac_bound(56)
    assert mac_bound(65) > 1.05 * mac_bound(64)


def test_zero_weights_save_traffic_but_no_multiplications(u55: Target) -> None:
    streamed, computed = "c=512 k=512 h=7 r=3", "c=64 k=64 h=56 r=3"
    dense, sparse = u55.price(conv(streamed)), u55.price(conv(f"{streamed} density=0.5"))
    assert sparse.cycles[0] < 0.65 * dense.cycles[0]
    assert npu_cycles(sparse) == npu_cycles(dense)
    assert u55.price(conv(f"{computed} density=0.1")).cycles[0] == u55.price(conv(computed)).cycles[0]


def test_coded_sizes_follow_the_vendor_coder(u55: Target) -> None:
    # Coded bytes of 2048 x 1000 weights by the estimator's coder (random normal weights, random masks).
    published = {1.0: 1828496, 0.75: 1868832, 0.5: 1154368, 0.25: 658416, 0.1: 300368, 0.05: 165888}
    for density, size in published.items():
        rows = conv(f"c=2048 k=1000 h=1 density={density}")
        coded = u55.price(rows).traffic_bytes[0, 1] - 10000
        assert coded == pytest.approx(size, rel=0.025), density


def test_an_exact_mask_counts_by_its_zeros(u55: Target) -> None:
    rows = conv("c=64 k=64 h=8 r=3")
    mask = np.random.default_rng(0).random((64, 64, 3, 3)) < 0.5
    sparsity = WeightSparsity.from_mask(mask)
    exact = rows.replace(sparsity=(sparsity,), weight_density=np.array([sparsity.density]))
    assert u55.price(exact).cycles[0] == pytest.approx(
        u55.price(conv("c=64 k=64 h=8 r=3 density=0.5")).cycles[0], rel=0.01
    )


def test_a_grouped_convolution_runs_group_after_group(u55: Target) -> None:
    one, four = u55.price(conv("c=64 k=64 h=14 r=3")), u55.price(conv("c=256 k=256 h=14 r=3 groups=4"))
    assert npu_cycles(four) == 4 * npu_cycles(one)
    assert four.energy_j[0].sum() == pytest.approx(4 * one.energy_j[0].sum())


def test_a_batch_is_one_image_after_another(u55: Target) -> None:
    rows = conv("c=64 k=64 h=14 r=3")
    double = rows.replace(n=rows.n * 2, output_elements=rows.output_elements * 2)
    assert npu_cycles(u55.price(double)) == 2 * npu_cycles(u55.price(rows))


def test_copies_cost_their_bytes(u55: Target) -> None:
    sliced = u55.price(elementwise("slice", 16, 16))
    assert sliced.cycles[0] > 16 * 16 * 16 / 4
    padded = elementwise("pad", 32, 16, input_elements=16 * 16 * 16)
    # 16 * 16 * 16 zeros are read from flash, 2.5 bytes each.
    assert u55.price(padded).traffic_bytes[0, 1] == 2.5 * 16 * 16 * 16
    assert u55.price(elementwise("transpose", 64, 28)).cycles[0] >= 3 * 28 * 28 * 64 / 8


@pytest.mark.parametrize(("op", "cycles"), [("add", 0.75), ("max_pool", 0.5), ("concat", 0.5), ("mul", 0.375)])
def test_elementwise_work_is_useful_at_its_rate(u55: Target, op: str, cycles: float) -> None:
    """Cycles an element; full bricks leave little else than the start of a block."""
    prices = u55.price(elementwise(op, 64, 28))
    assert prices.useful_cycles[0] == cycles * 28 * 28 * 64
    assert prices.useful_cycles[0] > 0.95 * (prices.cycles[0] - prices.memory_cycles[0])


def test_a_slower_flash_binds_sooner(u55: Target) -> None:
    memories = tuple(
        m.model_copy(update={"bandwidth_bytes_per_cycle": 0.5}) if m.name == "flash" else m for m in u55.spec.memories
    )
    slow = replace_spec(u55, memories=memories)
    rows = conv("c=512 k=512 h=7 r=3")
    assert slow.price(rows).cycles[0] == pytest.approx(2 * u55.price(rows).cycles[0])


def test_smaller_arrays_are_slower() -> None:
    rows = conv("c=64 k=64 h=28 r=3")
    cycles = [target(f"ethos_u55_{macs}").price(rows).cycles[0] for macs in (256, 128, 64, 32)]
    assert all(1.8 * fast < slow < 2.2 * fast for fast, slow in pairwise(cycles))


# Layers inside a network by the vendor's estimator (NPU cycles of resnet18, mobilenetv2 and resnet8 tables).
INSIDE = {
    "c=64 k=64 h=56 r=3": 454220,
    "c=128 k=128 h=28 r=3": 457454,
    "c=256 k=512 h=14 r=3 stride=2": 300809,
    "c=512 k=512 h=7 r=3": 609153,
    "c=16 k=96 h=112": 302296,
    "c=96 k=96 h=112 r=3 stride=2 groups=96": 114870,
    "c=32 k=192 h=28": 38816,
    "c=384 k=384 h=14 r=3 groups=384": 29856,
    "c=320 k=1280 h=7": 104577,
    "c=16 k=16 h=32 r=3": 14038,
    "c=64 k=64 h=8 r=3": 12608,
}


@pytest.mark.parametrize("text", INSIDE)
def test_npu_cycles_inside_a_network(u55: Target, text: str) -> None:
    assert npu_cycles(u55.price(conv(text))) == pytest.approx(INSIDE[text], rel=0.002)


@pytest.mark.parametrize("name", ["ethos_u55_256", "ethos_u55_128", "ethos_u65_256"])
def test_the_published_estimates(name: str) -> None:
    found = [item for item in compare(name) if item.row.kind == "vendor_estimate"]
    sweep = np.array([abs(item.error) for item in found if item.row.id.startswith("sweep")])
    assert len(sweep) == 50
    assert np.median(sweep) < 0.005
    assert np.quantile(sweep, 0.9) < 0.02
    layers = np.array([abs(item.error) for item in found if "#" in item.row.workload])
    assert np.median(layers) < 0.005
    assert np.quantile(layers, 0.9) < 0.1
    totals = [abs(item.error) for item in found if item.row.id.startswith("network")]
    assert len(totals) >= 4
    assert max(totals) < 0.03


def test_the_fixed_virtual_platform_on_a_whole_network() -> None:
    found = {item.row.id: item for item in compare("ethos_u55_128")}
    assert abs(found["fvp_mobilenet_v2"].error) < 0.05


@pytest.mark.parametrize("name", ["ethos_u55_128", "ethos_u65_256", "ethos_u85_256"])
@pytest.mark.parametrize("variant", ["unstr50", "width50"])
def test_what_pruning_gains(name: str, variant: str) -> None:
    """MobileNetV2 with half of its weights, or half of its inner channels, over the dense one: within half a point."""
    found = {item.row.id: item for item in compare(name)}
    pruned, dense = found[f"network_mobilenet_v2_{variant}"], found["network_mobilenet_v2"]
    assert pruned.predicted / dense.predicted == pytest.approx(pruned.row.value / dense.row.value, abs=0.005)


# Ethos-U65 -----------------------------------------------------------------------------------------------------------


def test_two_cores_halve_the_multiplications() -> None:
    rows = conv("c=64 k=64 h=28 r=3")
    one, two = (target(f"ethos_u65_{macs}").price(rows) for macs in (256, 512))
    assert 1.9 < npu_cycles(one) / npu_cycles(two) < 2.0
    assert one.energy_j[0].sum() == pytest.approx(two.energy_j[0].sum(), rel=0.01)


def test_a_network_of_one_layer_lives_in_dram() -> None:
    # 56*56*64 linear inputs and outputs; blocks of 6 x 14 x 32 read 8 x 16 inputs, 32 channels at a time: a quarter of
    # a burst of 128. 40 blocks across, twice for the output's depth; outputs in runs of 16: an eighth.
    u65 = target("ethos_u65_256")
    rows = conv("c=64 k=64 h=56 r=3").replace(from_input=np.array([1]), to_output=np.array([1]))
    prices = u65.price(rows)
    read, written = 40 * 2 * 8 * 16 * 64 * 4, 56 * 56 * 64 * 8
    scales = 640 * 40
    coded = prices.traffic_bytes[0, 1] - read - written - scales
    assert 0.85 * 36864 < coded < 36864
    assert prices.port_cycles[0, 1] == pytest.approx(prices.traffic_bytes[0, 1] / 12)


def test_weights_inside_a_network_pass_their_port_at_least_once() -> None:
    u65 = target("ethos_u65_256")
    prices = u65.price(conv("c=256 k=256 h=14 r=3"))
    assert prices.traffic_bytes[0, 1] >= 256 * 256 * 9 * 0.85


def test_npu_cycles_are_reported_as_the_vendor_counts_them(u55: Target) -> None:
    # A network of one layer waits for its first weights: 16 of 64 channels, about 8400 of 33600 cycles.
    graph = layer_graph("conv c=64 k=64 h=28 r=3")
    result = u55.simulate(graph)
    alone = u55.facts(u55.native(graph))["npu_cycles"][1]
    lost = result.layers[1].lost
    assert alone == pytest.approx(lost["useful"] + lost["overhead"] + lost["memory"] + lost["launch"])
    assert alone > lost["useful"] + lost["overhead"] + 8000


def test_cold_weights_by_hand() -> None:
    # 112 channels, T = 116560, N = 401632, blocks of 48. The first slice of 16 is worked on for 57376 cycles, in which
    # 55 channels come: rounded up to 96, all that is left. So the last slice is 96 of 112 channels.
    work = work_of(
        conv("c=112 k=112 h=28 r=3"), place(conv("c=112 k=112 h=28 r=3"), None, target("ethos_u55_256").spec)
    )
    one = np.ones(1)
    copy = Copy(116560 * one, 0 * one, 0 * one, 10 * one, 48 * one)
    assert cold_cycles(work, copy, 401632 * one)[0] == pytest.approx(116560 + 96 / 112 * 401632)


@given(
    st.integers(1, 200), st.integers(1, 300), st.integers(1, 40), st.sampled_from([1, 3, 5, 7]), st.sampled_from([1, 2])
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_blocks_fit_and_cover(c: int, k: int, h: int, r: int, stride: int) -> None:
    """The chosen block and its inputs fit into the banks, twice; equal shapes are searched once."""
    spec = target("ethos_u55_128").spec
    rows = conv(f"c={c} k={k} h={h} r={r} stride={stride}")
    rows = Columns.concatenate([rows, rows])
    shram = Shram(24, (4, 8), (1, 2, 8))
    found = choose_block(work_of(rows, place(rows, None, spec)), np.array([c <= 8] * 2), shram)
    accumulators = found.h * found.w * (-(-found.d // 8) * 8)
    inputs = found.in_h * found.in_w * found.in_d
    assert any((accumulators[0] <= a) and (inputs[0] <= b) for a, b in shram.splits())
    assert (found.h[0], found.w[0], found.d[0]) == (found.h[1], found.w[1], found.d[1])
    assert min(found.h[0], found.w[0], found.d[0]) >= 1


def test_rows_are_told_apart_by_every_column() -> None:
    a, b = np.array([1.0, 1.0, 2.0, 1.0]), np.array([3.0, 4.0, 3.0, 3.0])
    first, inverse = distinct(a, b)
    assert len(first) == 3
    np.testing.assert_array_equal(a[first][inverse], a)
    np.testing.assert_array_equal(b[first][inverse], b)


def test_the_gain_of_halving_inner_channels() -> None:
    """A MobileNetV2 block, 64 -> 384 -> 64 at 14x14, dense and with 192 inner channels, against the estimator."""
    u55_128 = target("ethos_u55_128")

    def block(inner: int) -> float:
        texts = (f"c=64 k={inner} h=14", f"c={inner} k={inner} h=14 r=3 groups={inner}", f"c={inner} k=64 h=14")
        return float(sum(u55_128.price(conv(text)).cycles[0] for text in texts))

    published = {384: 39124 + 57576 + 39628, 192: 20308 + 29352 + 20140}
    assert block(384) == pytest.approx(published[384], rel=0.01)
    assert block(192) / block(384) == pytest.approx(published[192] / published[384], abs=0.01)
