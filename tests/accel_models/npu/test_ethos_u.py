"""The Ethos-U55 family: cases worked by hand, laws of its own, and the vendor's estimates."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from accel_models.pricing import Target, replace_spec
from accel_models.registry import target
from accel_models.result import BOUNDS, Prices
from accel_models.validation.compare import compare, layers_columns
from workloads.columns import Columns
from workloads.graph import OP_CODES, Op
from workloads.sparsity import WeightSparsity


@pytest.fixture(scope="module")
def u55() -> Target:
    return target("ethos_u55_256")


def conv(text: str, activation: int = 1) -> Columns:
    """One convolution of `layers_columns`' form, in 8 bits."""
    rows = layers_columns([f"conv {text}"])
    eight = np.array([8])
    return rows.replace(weight_bits=eight, input_bits=eight, output_bits=eight, activation=np.array([activation]))


def elementwise(op: str, channels: int, side: int, **changes: int) -> Columns:
    """One row without weights."""
    rows = conv(f"c={channels} k={channels} h={side}", activation=0)
    elements = channels * side * side
    columns = {"bias": 0, "other_elements": elements if op in ("add", "mul") else 0, **changes}
    arrays = {name: np.array([value]) for name, value in columns.items()}
    return rows.replace(op=np.array([OP_CODES[Op(op)]]), **arrays)


def npu_cycles(prices: Prices) -> float:
    return float((prices.useful_cycles + prices.padding_cycles)[0])


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
    # One micro-block, one part-kernel step of 32 cycles (the weights of 8 channels) and 2 of delay; out = 10 bytes of
    # scale at latency 64 / 256 = 2; cmd = 36 / 4 = 9. Fill: 1 byte, a burst of 32 for 8 wanted = 4 bytes = 0.5 cycles;
    # drain 1/8. Weights: 256 stored, nearly all zero, round to 16 bytes; scales to 16.
    prices = u55.price(conv("c=1 k=1 h=1"))
    assert npu_cycles(prices) == 34 + 9 + 0.5 + 0.125 + 64
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
    assert prices.useful_cycles[0] == prices.cycles[0]  # no padding: work of the output unit
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
    family = u55.family
    found = family._choose_block(family._work(conv(text)))  # type: ignore[attr-defined]
    assert (found.h[0], found.w[0], found.d[0]) == block


def test_channels_between_two_micro_blocks_are_padding(u55: Target) -> None:
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


@pytest.mark.parametrize("name", ["ethos_u55_256", "ethos_u55_128"])
def test_the_published_estimates(name: str) -> None:
    found = compare(name)
    layers = np.array([abs(item.error) for item in found if item.row.id.startswith("sweep")])
    assert len(layers) == 50
    assert np.median(layers) < 0.01
    assert np.quantile(layers, 0.9) < 0.04
    for item in found:
        if item.row.id.startswith("network"):
            assert abs(item.error) < 0.02, item.row.id


def test_the_gain_of_halving_inner_channels() -> None:
    """A MobileNetV2 block, 64 -> 384 -> 64 at 14x14, dense and with 192 inner channels, against the estimator."""
    u55_128 = target("ethos_u55_128")

    def block(inner: int) -> float:
        texts = (f"c=64 k={inner} h=14", f"c={inner} k={inner} h=14 r=3 groups={inner}", f"c={inner} k=64 h=14")
        return float(sum(u55_128.price(conv(text)).cycles[0] for text in texts))

    published = {384: 39124 + 57576 + 39628, 192: 20308 + 29352 + 20140}
    assert block(384) == pytest.approx(published[384], rel=0.01)
    assert block(192) / block(384) == pytest.approx(published[192] / published[384], abs=0.01)
