"""Ethos-U85: cases worked by hand, arrangements and blocks of the vendor's compiler, 2:4 sparsity, its estimates."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_models.npu.ethos_u85_blocks import find_blocks
from accel_models.npu.ethos_work import work_of
from accel_models.placement import place
from accel_models.pricing import Target
from accel_models.registry import target
from accel_models.result import Prices
from accel_models.validation.compare import compare, layer_graph, layers_columns
from workloads.columns import Columns
from workloads.graph import OP_CODES, Op
from workloads.sparsity import WeightSparsity


@pytest.fixture(scope="module")
def u85() -> Target:
    return target("ethos_u85_256")


def conv(text: str, kind: str = "conv") -> Columns:
    """One layer of `layers_columns`' form, in 8 bits, as if inside a network."""
    eight, inside = np.array([8]), np.array([0])
    rows = layers_columns([f"{kind} {text}"])
    return rows.replace(weight_bits=eight, input_bits=eight, output_bits=eight, from_input=inside, to_output=inside)


def at_the_start(text: str) -> Columns:
    """The same as a network of its own: input and output in DRAM."""
    return conv(text).replace(from_input=np.array([1]), to_output=np.array([1]))


def npu_cycles(prices: Prices) -> float:
    return float((prices.useful_cycles + prices.overhead_cycles)[0])


def port(machine: Target, prices: Prices, name: str) -> float:
    return float(prices.traffic_bytes[0, machine.spec.ports.index(name)])


def test_a_depthwise_layer_by_hand(u85: Target) -> None:
    # 7 x 7 x 960 in blocks of 7 x 8 x 64, micro-blocks of 1 x 2 x 16: 28 of pixels, 4 slices, 3 steps of 4 taps.
    # mac = 3 * 4 * max(64 / 1, 4 * 28) = 1344 a block, 15 blocks; out = 7 * 7 * 64 / 4 = 784.
    # fill = drain = 7 * 7 * 64 bytes / 32 + 32.
    prices = u85.price(conv("c=960 k=960 h=7 r=3 groups=960"))
    assert npu_cycles(prices) == 15 * 1344 + 784 + 2 * (98 + 32)
    # The estimator: 21204 NPU cycles, 23437 in all: scales, 9600 bytes through 0.4096 bytes a cycle.
    assert prices.cycles[0] == 9600 / 0.4096


def test_scales_read_again_for_every_block_bind_by_hand(u85: Target) -> None:
    # 32 -> 192, 1x1, 28 x 28: 21 blocks of 10 x 4 pixels, each reads 192 * 10 bytes.
    prices = u85.price(conv("c=32 k=192 h=28"))
    assert port(u85, prices, "dram_scales") == 21 * 1920
    assert prices.cycles[0] == 21 * 1920 / 0.4096
    assert u85.spec.ports[prices.bound[0] - 5] == "dram_scales"


def test_channel_bandwidths_follow_from_their_buffers() -> None:
    """burst * words / burst words / latency * 0.8, with 128-byte bursts of 8 words and 500 cycles."""
    words = {128: (64, 128, 104), 256: (104, 128, 128), 512: (128, 256, 128), 1024: (256, 416, 256)}
    for macs, (copies, weights, inputs) in words.items():
        spec = target(f"ethos_u85_{macs}").spec
        for name, count in (("copies", copies), ("weights", weights), ("inputs", inputs), ("scales", 16)):
            under_way = min(count / 8, 0.8 * 64)
            found = spec.memory(f"dram_{name}").bandwidth_bytes_per_cycle
            assert found == pytest.approx(128 * under_way / 500 * 0.8, rel=1e-4), (macs, name)


@pytest.mark.parametrize(
    ("machine", "text", "block", "micro"),
    [
        ("ethos_u85_256", "c=160 k=256 h=32 r=3", (8, 16, 16), (1, 4, 8)),
        ("ethos_u85_256", "c=24 k=256 h=16", (4, 16, 32), (1, 4, 8)),
        ("ethos_u85_256", "c=512 k=16 h=14", (8, 14, 16), (2, 2, 8)),
        ("ethos_u85_256", "c=40 k=40 h=14 r=3 stride=2 groups=40", (7, 8, 48), (1, 2, 16)),
        ("ethos_u85_128", "c=192 k=192 h=16 r=3 groups=192", (15, 8, 16), (1, 1, 16)),
        ("ethos_u85_512", "c=128 k=128 h=56", (8, 8, 64), (2, 2, 16)),
        ("ethos_u85_512", "c=64 k=64 h=14 r=7 stride=2 groups=64", (7, 8, 64), (1, 4, 16)),
        ("ethos_u85_1024", "c=40 k=96 h=40", (2, 40, 96), (2, 2, 32)),
        ("ethos_u85_1024", "c=64 k=40 h=28 stride=2", (2, 16, 48), (2, 4, 16)),
        ("ethos_u85_2048", "c=256 k=256 h=14 stride=2", (7, 8, 256), (1, 4, 64)),
        ("ethos_u85_2048", "c=192 k=640 h=8", (8, 8, 256), (2, 2, 64)),
    ],
)
def test_blocks_are_those_of_the_vendor_compiler(
    machine: str, text: str, block: tuple[int, int, int], micro: tuple[int, int, int]
) -> None:
    family = target(machine).family
    rows = conv(text)
    work = work_of(rows, place(rows, None, family.spec))
    c, taps = int(rows.c[0]), int(rows.r[0]) ** 2
    filled = taps // 5 * 5 + max(taps % 5, 2)
    part = c / (-(-c // 16) * 16) * taps / filled >= c / (-(-c // 64) * 64)
    found = find_blocks(work, np.array([16.0 if part else 64.0]), family._micros(), family._buffers())  # type: ignore[attr-defined]
    assert (found.u_h[0], found.u_w[0], found.u_d[0]) == micro
    assert (found.block.h[0], found.block.w[0], found.block.d[0]) == block


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 60), st.sampled_from([1, 3, 5]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_blocks_fit_their_buffers(c: int, k: int, h: int, r: int, depthwise: bool) -> None:
    family = target("ethos_u85_512").family
    rows = conv(f"c={k if depthwise else c} k={k} h={h} r={r}" + (f" groups={k}" if depthwise and k > 1 else ""))
    found = find_blocks(
        work_of(rows, place(rows, None, family.spec)), np.array([64.0]), family._micros(), family._buffers()  # type: ignore[attr-defined]
    ).block  # fmt: skip
    accumulators = family.spec.parameters.accumulator_bytes / 4
    assert found.h[0] * found.w[0] * found.d[0] <= accumulators
    assert min(found.h[0], found.w[0], found.d[0]) >= 1


# 2:4 -----------------------------------------------------------------------------------------------------------------


def masked(text: str, mask: np.ndarray, kind: str = "conv") -> Columns:
    sparsity = WeightSparsity.from_mask(mask)
    return conv(text, kind).replace(sparsity=(sparsity,), weight_density=np.array([sparsity.density]))


def pattern(n: int, shape: tuple[int, int, int, int]) -> np.ndarray:
    """n of every four consecutive input channels, at random."""
    k, c, r, s = shape
    order = np.random.default_rng(0).random((k, c // 4, 4, r, s)).argsort(axis=2).argsort(axis=2)
    return (order < n).reshape(shape)


def test_two_of_four_halve_the_multiplications(u85: Target) -> None:
    text, shape = "c=128 k=128 h=28 r=3", (128, 128, 3, 3)
    dense = npu_cycles(u85.price(conv(text)))
    for n in (1, 2):  # 1:4 has the pattern too
        assert npu_cycles(u85.price(masked(text, pattern(n, shape)))) == pytest.approx(dense / 2, rel=0.02)
    scattered = np.random.default_rng(0).random(shape) < 0.5
    assert npu_cycles(u85.price(masked(text, scattered))) == dense
    three = u85.price(masked(text, pattern(3, shape)))
    assert npu_cycles(three) == dense


def test_one_weight_too_many_breaks_the_pattern(u85: Target) -> None:
    text, shape = "c=256 k=64 h=14", (64, 256, 1, 1)
    mask = pattern(2, shape)
    with_pattern = npu_cycles(u85.price(masked(text, mask)))
    mask[5, 8:11] = True
    assert npu_cycles(u85.price(masked(text, mask))) > 1.5 * with_pattern


def test_a_density_alone_is_scattered(u85: Target) -> None:
    dense, half = u85.price(conv("c=128 k=128 h=28 r=3")), u85.price(conv("c=128 k=128 h=28 r=3 density=0.5"))
    assert npu_cycles(dense) == npu_cycles(half)
    assert port(u85, half, "sram_weights") < 0.7 * port(u85, dense, "sram_weights")


def test_a_single_input_channel_has_the_pattern(u85: Target) -> None:
    # Of the padded group of four at most one channel exists: the keyword network's first layer runs at double rate.
    one, three = (npu_cycles(u85.price(conv(f"c={c} k=64 h=24 r=3"))) for c in (1, 3))
    assert one < 0.75 * three


# NPU cycles that the vendor's estimator gives networks of one layer with 2:4, 1:4 and scattered weights.
PATTERNS = [
    ("conv c=128 k=128 h=28 r=3", (128, 128, 3, 3), 2, 304593),
    ("conv c=256 k=1024 h=14", (1024, 256, 1, 1), 2, 104098),
    ("conv c=256 k=1024 h=14", (1024, 256, 1, 1), 1, 103707),
    ("linear c=2048 k=1000", (1000, 2048, 1, 1), 2, 43101),
]


@pytest.mark.parametrize(("text", "shape", "n", "published"), PATTERNS)
def test_published_patterns(u85: Target, text: str, shape: tuple[int, int, int, int], n: int, published: float) -> None:
    graph = u85.native(layer_graph(text))
    graph = graph.replace_layers({"layer": {"sparsity": WeightSparsity.from_mask(pattern(n, shape))}})
    assert u85.facts(graph)["npu_cycles"][1] == pytest.approx(published, rel=0.015)


# Other rows and whole networks ---------------------------------------------------------------------------------------


def test_an_absorbed_add_costs_energy_but_no_time(u85: Target) -> None:
    rows = conv("c=64 k=64 h=28").replace(
        op=np.array([OP_CODES[Op.ADD]]), bias=np.array([0]), other_elements=np.array([64 * 28 * 28])
    )
    alone, absorbed = u85.price(rows), u85.price(rows.replace(fused=np.array([1])))
    assert alone.cycles[0] == 64 * 28 * 28 / 4
    assert absorbed.cycles[0] == 0
    assert absorbed.energy_j.sum() > 0


def test_the_published_estimates() -> None:
    found = compare("ethos_u85_256")
    npu = np.array([abs(item.error) for item in found if item.row.metric == "fact:npu_cycles"])
    assert len(npu) > 150
    assert np.median(npu) < 0.005
    assert np.quantile(npu, 0.9) < 0.05
    layers = np.array([abs(item.error) for item in found if item.row.metric == "cycles" and "#" in item.row.workload])
    assert np.median(layers) < 0.005
    assert np.quantile(layers, 0.9) < 0.1
    totals = [abs(item.error) for item in found if item.row.id.startswith("network")]
    assert max(totals) < 0.04


def test_larger_arrays_are_faster() -> None:
    rows = conv("c=128 k=256 h=28 r=3")
    cycles = [npu_cycles(target(f"ethos_u85_{macs}").price(rows)) for macs in (128, 256, 512, 1024, 2048)]
    assert all(1.8 * fast < slow < 2.2 * fast for slow, fast in pairwise(cycles))


@pytest.mark.parametrize(
    ("text", "copy", "layer"),
    [
        ("c=128 k=128 h=28 r=3 stride=2", 51417, 163865),
        ("c=1024 k=256 h=14 r=1", 101764, 210537),
        ("c=960 k=160 h=7 r=1", 28292, 41943),
        ("c=64 k=256 h=56 r=1", 101297, 612499),
    ],
)
def test_an_input_that_a_layer_waits_for_is_copied_first(u85: Target, text: str, copy: int, layer: int) -> None:
    """Both operations as the vendor's compiler (ethos-u-vela 5.2.0) estimates them."""
    prices = u85.price(at_the_start(text))
    assert prices.cycles[0] == pytest.approx(copy + layer, rel=0.02)
    assert port(u85, prices, "sram_inputs") > 0
    assert port(u85, u85.price(at_the_start(text + " n=2")), "sram_inputs") == 0  # several images are read in DRAM


@pytest.mark.parametrize("text", ["c=128 k=128 h=28 r=3", "c=512 k=128 h=28 r=1", "c=32 k=128 h=56 r=1"])
def test_an_input_stays_in_dram(u85: Target, text: str) -> None:
    """One that the array hides without bursts' waste, one larger than SRAM; as the vendor's compiler does."""
    assert port(u85, u85.price(at_the_start(text)), "sram_inputs") == 0


def test_a_copied_input_is_read_once_from_dram(u85: Target) -> None:
    """4 x 4 blocks of 8 x 8 pixels, 64 channels, cover 28 x 28; the layer then reads it for 8 slices of 32 outputs."""
    prices = u85.price(at_the_start("c=64 k=256 h=28 r=1"))
    assert port(u85, prices, "dram_inputs") == 4 * 4 * 8 * 8 * 64
    assert port(u85, prices, "sram_inputs") == 8 * 28 * 28 * 64
