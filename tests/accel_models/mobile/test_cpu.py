"""The mobile CPU: layers worked by hand, laws of its kernels, agreement with published rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from accel_models import Target, target, targets
from accel_models.mapping import Steps
from accel_models.mobile.cpu import MobileCPU
from accel_models.mobile.passes import STEPS, Passes
from accel_models.mobile.sparse_kernels import pattern
from accel_models.placement import place
from accel_models.pricing import replace_spec
from accel_models.result import LayerPrice
from accel_models.technology import node_factor
from accel_models.testing import sample_rows
from accel_models.validation.calibrate import Calibration
from accel_models.validation.compare import compare, layer_graph, layers_columns, rows
from accel_models.validation.pricer import number_at
from pruning import granularity as granularities
from workloads.columns import Columns
from workloads.errors import ConfigError
from workloads.graph import OP_CODES, Op
from workloads.sparsity import WeightSparsity
from workloads.tables import table

PLUS = "snapdragon_855plus_cpu"
LAUNCH = 5e-6 * 2.96e9  # cycles
COMPUTE = STEPS.index("compute")


def machine(threads: int = 1, **parameters: float) -> Target:
    return target(PLUS, {"parameters.threads": threads, **{f"parameters.{k}": v for k, v in parameters.items()}})


def steps_of(text: str, threads: int = 1) -> Steps:
    on = machine(threads)
    rows = layers_columns([text])
    return on.family.map(rows, place(rows, None, on.spec))


def kernel_of(rows: Columns, on: Target | None = None) -> str:
    runtime = (on or machine()).family.runtime  # type: ignore[attr-defined]
    return str(runtime.names[runtime.dispatch(rows)[0]])


def price(text: str, threads: int = 1, mask: np.ndarray | None = None, **parameters: float) -> LayerPrice:
    graph = layer_graph(text)
    if mask is not None:
        graph = graph.with_sparsity({"layer": WeightSparsity.from_mask(mask)})
    return machine(threads, **parameters).simulate(graph).layer("layer")


# ---- worked by hand ------------------------------------------------------------------------------------------------


def test_one_multiplication() -> None:
    # Pack one number: 1/4 vector at efficiency 0.4 = 0.625. Multiply: one pixel x 4 channels holds one accumulator,
    # whose chain of one FMA takes 2 cycles; clearing it 0.5, storing it 1, draining 12. The weight's 4 bytes hide.
    assert price("conv c=1 k=1 h=1 r=1").cycles == pytest.approx(LAUNCH + 0.625 + 2 + 13.5, abs=1e-6)


def test_one_full_register_tile() -> None:
    # 12 pixels x 8 channels x 4 input channels: 24 accumulators take 12 cycles an input channel on two pipes, 48 in
    # all, which is also the floor of 384 MACs at 8 a cycle; clearing 12, storing 24, draining 12. Packing 48 numbers:
    # 12 vectors at 0.4 = 30. The 128 bytes of weights take 20 cycles of DRAM and hide.
    layer = price("conv c=4 k=8 h=3 w=4 r=1")
    assert layer.kernel == "gemm"
    assert layer.cycles == pytest.approx(LAUNCH + 48 + 48 + 30)
    assert layer.lost["useful"] == pytest.approx(48)
    assert layer.lost["memory"] == pytest.approx(0, abs=1e-9)


def test_pixels_left_over_run_in_smaller_tiles() -> None:
    # 7 pixels = 4 + 2 + 1. Per input channel 4 + 2 + 2 cycles (one pixel: two accumulators, but a chain of 2 cycles);
    # besides 1.5 cycles for each of the 8 + 4 + 2 accumulators and 12 for each tile.
    steps = steps_of("conv c=16 k=8 h=1 w=7 r=1")
    assert steps.slowest_cycles[0, COMPUTE] == pytest.approx(16 * 8 + 1.5 * 14 + 3 * 12)


def test_winograd_counts_its_own_multiplications() -> None:
    # One 6x6 tile: 64 multiplications a pair of channels in place of 324; 32 pairs at 8 a cycle.
    layer = price("conv c=4 k=8 h=6 r=3")
    assert layer.kernel == "winograd63"
    assert layer.lost["useful"] == pytest.approx(64 * 32 / 8)
    # The padding of 7x7 to four tiles is no useful work.
    assert price("conv c=4 k=8 h=7 r=3").lost["useful"] == pytest.approx(64 / 36 * 49 * 32 / 8)


def test_winograd_transforms_by_hand() -> None:
    # Four channels of a tile fill a vector: 416 operations on two pipes at 0.4, and 64 scattered accesses of 19.4.
    steps = steps_of("conv c=4 k=8 h=6 r=3")
    assert steps.slowest_cycles[0, STEPS.index("transform")] == pytest.approx(416 / 2 / 0.4 + 64 * 19.4)
    assert steps.slowest_cycles[0, STEPS.index("inverse")] == pytest.approx(
        336 / 2 / 0.4 + 64 * 19.4
    )  # of 2 iterations


def test_weights_of_a_linear_layer_stream_from_dram() -> None:
    # 1024 x 1024 fp32 weights: one core takes 5.59 bytes a cycle from beyond its L2, four together 6.34 from DRAM. Both
    # are far above the FMAs' 131,072 cycles. Input and output are in L1.
    one, four = price("linear c=1024 k=1024"), price("linear c=1024 k=1024", threads=4)
    assert (one.bound, four.bound) == ("l3", "dram")
    assert one.cycles == pytest.approx(LAUNCH + 1024 * 1024 * 4 / 5.59)
    assert four.cycles == pytest.approx(four.lost["launch"] + 1024 * 1024 * 4 / 6.34)
    assert one.traffic_bytes["dram"] == four.traffic_bytes["dram"] == 1024 * 1024 * 4


def test_threads_wait_for_the_slowest_core() -> None:
    # 4 groups of 8 channels on 4 cores: one wave at the gold cores' 2.42 GHz, counted in cycles of 2.96 GHz.
    one, four = steps_of("conv c=4 k=32 h=3 w=4 r=1"), steps_of("conv c=4 k=32 h=3 w=4 r=1", threads=4)
    assert one.waves[0, COMPUTE] == 4
    assert four.waves[0, COMPUTE] == 1
    assert four.slowest_cycles[0, COMPUTE] == pytest.approx(one.slowest_cycles[0, COMPUTE] * 2.96 / 2.42)
    # Dealt out statically: a fifth group takes a second wave.
    assert steps_of("conv c=4 k=40 h=3 w=4 r=1", threads=4).waves[0, COMPUTE] == 2


def test_every_parallel_loop_is_forked_and_joined() -> None:
    # 12 pixels: one loop packs, one multiplies.
    text = "conv c=4 k=32 h=3 w=4 r=1"
    assert price(text, threads=4).lost["launch"] == pytest.approx(LAUNCH + 2 * 1.69e-5 * 2.96e9)
    assert price(text).lost["launch"] == pytest.approx(LAUNCH)


def test_a_pointwise_layer_is_read_again_for_every_8_channels() -> None:
    # 64 x 12,544 fp32 = 3.2 MB stream 1.53 times the L3, so 53 % of it comes from DRAM for each of the 16 groups;
    # the fraction for the group's panel counts the weights beside it.
    steps = steps_of("conv c=64 k=128 h=112 r=1")
    panel, weights, out = 64 * 112 * 112 * 4, 64 * 4, 128 * 112 * 112 * 4
    missed = (panel + 8 * weights) / 2**21 - 1
    moved = steps.tiles[0, COMPUTE] * steps.port_bytes[0, COMPUTE, 3]
    assert moved == pytest.approx(16 * panel * missed + 128 * weights + out)


def test_cache_levels_end_gradually() -> None:
    on = machine()
    rows = layers_columns(["conv c=4 k=4 h=4 r=1"])
    levels = Passes(on.family, rows, place(rows, None, on.spec)).levels  # type: ignore[arg-type]
    assert levels(65536)[0] == 0
    assert levels(98304)[0] == pytest.approx(0.5)
    assert levels(2**18)[0] == 1
    assert levels(2**19)[1] == 0  # the prime core's L2, which one thread has


# ---- dispatch ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "kernel"),
    [
        ("conv c=64 k=64 h=14 r=1", "gemm"),
        ("conv c=64 k=64 h=14 r=1 stride=2", "gemm"),
        ("conv c=64 k=64 h=14 r=3", "winograd63"),
        ("conv c=3 k=64 h=14 r=3", "direct"),
        ("conv c=3 k=64 h=224 r=7 stride=2", "direct"),
        ("conv c=64 k=64 h=14 r=3 stride=2", "direct"),
        ("conv c=64 k=64 h=14 r=5", "direct"),
        ("conv c=64 k=64 h=14 r=1 s=7", "naive"),
        ("conv c=3 k=64 h=44 r=11 stride=4", "naive"),
        ("conv c=64 k=64 h=14 r=3 groups=64", "depthwise"),
        ("conv c=64 k=64 h=14 r=3 groups=2", "winograd63"),
        ("linear c=64 k=10", "gemv"),
        ("add c=64 h=14", "vector"),
        ("max_pool c=64 h=14 r=3 stride=2", "vector"),
        ("slice c=64 h=14", "copy"),
    ],
)
def test_the_published_rule_picks_the_kernel(layer: str, kernel: str) -> None:
    op, *pairs = layer.split()
    if op in ("add", "max_pool", "slice"):
        rows = layers_columns([" ".join(["conv", *pairs])])
        rows = rows.replace(op=np.array([OP_CODES[Op(op)]]))
    else:
        rows = layers_columns([layer])
    assert kernel_of(rows) == kernel


def test_int8_takes_no_winograd() -> None:
    rows = layers_columns(["conv c=64 k=64 h=14 r=3"])
    eight = np.array([8])
    rows = rows.replace(weight_bits=eight, input_bits=eight, output_bits=eight)
    assert kernel_of(rows) == "direct"


# ---- laws ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [32, 16, 8])
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_laws_hold_in_every_precision_and_number_of_threads(bits: int, threads: int) -> None:
    on, rng = machine(threads), np.random.default_rng(bits + threads)
    rows = sample_rows(400, rng, bits).replace(weight_density=rng.choice([0.05, 0.3, 1.0], 400))
    steps = on.family.map(rows, place(rows, None, on.spec))
    assert (steps.floor_cycles <= steps.mean_cycles * (1 + 1e-9)).all()
    assert (steps.mean_cycles <= steps.slowest_cycles * (1 + 1e-9)).all()
    prices = on.price(rows)
    assert (prices.cycles > 0).all()
    assert (prices.cycles[:, None] >= prices.port_cycles * (1 - 1e-9)).all()
    # No kernel multiplies faster than all cores together.
    cores = np.array([2.96, 2.42, 2.42, 2.42])[:threads].sum() / 2.96
    multiplied = np.where(rows.is_mac, rows.macs * np.where(rows.has_weights, rows.weight_density, 1), 0.0)
    multiplied *= np.where(
        prices.kernel == on.family.runtime.names.index("winograd63"), 64 / 36 / 9 / rows.weight_density, 1
    )
    assert (prices.cycles >= multiplied / (256 / bits * cores) * (1 - 1e-9)).all()


def test_more_threads_are_never_slower_on_a_large_layer() -> None:
    for text in ("conv c=256 k=256 h=56 r=3", "conv c=256 k=256 h=56 r=1", "linear c=4096 k=4096"):
        latency = [price(text, threads).latency_s for threads in (1, 2, 4)]
        assert latency[0] >= latency[1] >= latency[2] * (1 - 1e-2)


def test_channels_count_in_fours() -> None:
    assert machine().channel_multiple == 4
    costs = {k: price(f"conv c=64 k={k} h=28 r=1", launch_s=0.0).cycles for k in (4, 5, 8, 9)}
    bias = 0.01  # output bytes still differ
    assert costs[5] == pytest.approx(costs[8], rel=bias)
    assert costs[4] < 0.7 * costs[8] < 0.7 * costs[9]


def test_large_networks_lie_below_the_naive_floor_and_above_the_real_one() -> None:
    vgg = table("vgg16")
    latency = machine().simulate(vgg).latency_s
    assert latency < vgg.macs / (8 * 2.96e9)
    assert latency > vgg.macs * 64 / 324 / (8 * 2.96e9)


@pytest.mark.parametrize("k", [1, 4, 5, 8, 12, 13, 26, 33])
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_threads_wait_for_a_full_group_of_channels(k: int, threads: int) -> None:
    # Thin input: groups of 8 channels, the last one smaller; one pixel of 4. A wave takes as long as its full group: 13
    # and 26 channels are 2 and 4 groups, one wave of 8 x 1 x 9 taps on four threads, whatever the last group holds.
    steps = steps_of(f"conv c=1 k={k} h=3 r=3 stride=2", threads)
    each = 4 * 9 / 8 * (2.96 / 2.42 if threads > 1 else 1.0)  # of one channel, 4 pixels, on the slowest core
    padded, groups = -(-k // 4) * 4, -(-k // 8)
    longest = min(8, padded) if threads > 1 else padded / groups
    assert steps.tiles[0, COMPUTE] == groups
    assert steps.slowest_cycles[0, COMPUTE] == pytest.approx(longest * each)
    assert steps.mean_cycles[0, COMPUTE] <= steps.slowest_cycles[0, COMPUTE] * (1 + 1e-12)


def test_energy_is_that_of_the_multiplications_at_least() -> None:
    layer = price("conv c=64 k=64 h=56 r=1")
    multiply_add = (3.7e-12 + 0.9e-12) * node_factor(7, 45)  # published of 45 nm, here in 7
    assert layer.energy_j["mac32"] == pytest.approx(64 * 64 * 56 * 56 * multiply_add)
    assert layer.energy_j["mac8"] == layer.energy_j["mac16"] == 0
    assert layer.energy_j["dram"] >= 64 * 64 * 4 * 64e-12


def test_cores_take_energy_from_the_first_cycle_to_the_last() -> None:
    # The register tile by hand above: launch and 126 cycles of one core of 350 pJ a cycle.
    assert price("conv c=4 k=8 h=3 w=4 r=1").energy_j["core_cycle"] == pytest.approx((LAUNCH + 126) * 350e-12)
    # Four cores that wait for 67 MB of weights: 2.96 + 3 x 2.42 cycles a nanosecond, 3.6 W.
    waiting = price("linear c=4096 k=4096", threads=4)
    assert waiting.bound == "dram"
    assert waiting.energy_j["core_cycle"] == pytest.approx(waiting.latency_s * (2.96 + 3 * 2.42) * 1e9 * 350e-12)


@pytest.mark.parametrize("name", [PLUS, "snapdragon_835_cpu", "pixel1_cpu_xnnpack"])
@pytest.mark.parametrize("overlap", ["overlap", "double_buffer"])
def test_cycles_of_cores_are_those_of_the_row(name: str, overlap: str) -> None:
    on = target(name)
    memories = tuple(memory.model_copy(update={"overlap": overlap}) for memory in on.spec.memories)
    on, rng = replace_spec(on, memories=memories), np.random.default_rng(1)
    rows = sample_rows(400, rng, 32).replace(weight_density=rng.choice([0.05, 0.3, 1.0], 400))
    prices, p = on.price(rows), on.spec.parameters
    clocks = [cluster.clock_hz for cluster in p.clusters for _ in range(cluster.count)][: p.threads]
    expected = prices.latency_s * sum(clocks) * on.spec.energy_pj["core_cycle"] * 1e-12
    np.testing.assert_allclose(prices.energy_j[:, on.components.index("core_cycle")], expected, rtol=1e-12)


def test_pruning_that_saves_time_saves_energy() -> None:
    on = target("kirin_970_cpu")
    dense, sparse = (
        on.simulate(layer_graph(f"linear c=1024 k=1000 density={density}")).layer("layer") for density in (1.0, 0.2)
    )
    assert sparse.kernel == "spmm"
    assert 0.8 < sparse.cycles / dense.cycles < 1
    assert 0.8 < sum(sparse.energy_j.values()) / sum(dense.energy_j.values()) < 1


# ---- sparse kernels ------------------------------------------------------------------------------------------------


def pattern_mask(k: int, c: int, rng: np.random.Generator, kernels: float = 1.0) -> np.ndarray:
    """Every kept kernel has one of four 2x2 squares."""
    squares = np.zeros((4, 3, 3), bool)
    for i, (y, x) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        squares[i, y : y + 2, x : x + 2] = True
    mask = squares[rng.integers(0, 4, (k, c))]
    mask[rng.random((k, c)) > kernels] = False
    return mask


def test_zeros_at_random_help_where_they_are_many() -> None:
    dense, half, few = (price(f"conv c=256 k=64 h=56 r=1 density={d}") for d in (1.0, 0.9, 0.1))
    assert half.kernel == "gemm"
    assert half.cycles == dense.cycles
    assert few.kernel == "spmm"
    assert dense.cycles / few.cycles == pytest.approx(5.7, abs=1.0)
    assert few.lost["useful"] == pytest.approx(dense.lost["useful"] / 10)


def test_spmm_by_hand() -> None:
    # One pixel, one filter, one of four weights: a chain of one vector: weight, index and input are 3 loads on 2 ports,
    # 1.5 cycles at 0.6 = 2.5; filter: 1.5 for its vector, 12 to drain. Inputs are read in place: no packing.
    mask = np.array([[True, False, False, False]])
    layer = price("conv c=4 k=1 h=1 r=1", mask=mask)
    assert layer.kernel == "spmm"
    assert layer.cycles == pytest.approx(LAUNCH + 2.5 + 13.5)
    assert layer.lost["useful"] == pytest.approx(1 / 8)


def test_pattern_kernels_need_patterns() -> None:
    rng = np.random.default_rng(0)
    mask = pattern_mask(128, 128, rng, kernels=0.3)
    patterned = price("conv c=128 k=128 h=28 r=3", mask=mask)
    assert patterned.kernel == "pattern"
    shuffled = rng.permutation(mask.ravel()).reshape(mask.shape)
    scattered = price("conv c=128 k=128 h=28 r=3", mask=shuffled)
    assert scattered.kernel != "pattern"
    assert patterned.cycles < scattered.cycles
    by_density = price(f"conv c=128 k=128 h=28 r=3 density={mask.mean()}")
    assert by_density.kernel != "pattern"


def test_whole_kernels_removed_count_as_one_pattern() -> None:
    rng = np.random.default_rng(1)
    mask = np.zeros((64, 64, 3, 3), bool)
    mask[rng.random((64, 64)) < 0.1] = True
    assert price("conv c=64 k=64 h=56 r=3", mask=mask).kernel == "pattern"


def test_pattern_kernel_uses_half_to_two_thirds_of_the_peak_on_large_maps() -> None:
    mask = pattern_mask(128, 128, np.random.default_rng(2), kernels=0.28)
    assert 0.5 < price("conv c=128 k=128 h=112 r=3", mask=mask).utilization < 0.65


def test_the_busiest_thread_of_the_real_mask_counts() -> None:
    # All kernels in filters 0, 4, 8, ... and none in the others: dealt out in turn, one thread of four does everything.
    rng = np.random.default_rng(3)
    even, uneven = pattern_mask(64, 64, rng, kernels=0.25), np.zeros((64, 64, 3, 3), bool)
    uneven[::4] = pattern_mask(16, 64, rng)
    on = machine(4)
    gold_over_mean = (1 / 2.42) / np.mean([1 / 2.96, *[1 / 2.42] * 3])
    for mask, expected in ((even, 1.0), (uneven, 4.0)):
        rows = layers_columns(["conv c=64 k=64 h=56 r=3"])
        rows = rows.replace(sparsity=(WeightSparsity.from_mask(mask),), weight_density=np.array([mask.mean()]))
        passes = Passes(on.family, rows, place(rows, None, on.spec))  # type: ignore[arg-type]
        pattern(passes, "pattern", on.family.runtime.kernels["pattern"])  # type: ignore[attr-defined]
        ratio = passes.arrays["slowest_cycles"][0, COMPUTE] / passes.arrays["mean_cycles"][0, COMPUTE]
        assert ratio == pytest.approx(expected * gold_over_mean, rel=0.1)
    assert price("conv c=64 k=64 h=56 r=3", 4, uneven).cycles > 1.5 * price("conv c=64 k=64 h=56 r=3", 4, even).cycles


def test_a_mask_and_its_density_agree_on_unstructured_zeros() -> None:
    rng = np.random.default_rng(4)
    mask = rng.random((128, 128, 1, 1)) < 0.2
    exact = price("conv c=128 k=128 h=28 r=1", 4, mask)
    expected = price("conv c=128 k=128 h=28 r=1 density=0.2", 4)
    assert exact.cycles == pytest.approx(expected.cycles, rel=0.05)


# ---- the machine's numbers -----------------------------------------------------------------------------------------


def test_threads_and_cores_must_agree() -> None:
    with pytest.raises(ConfigError, match="5 threads on 4 cores"):
        machine(5)


MACHINES = [name for name in targets() if target(name).spec.family == "mobile_cpu"]


@pytest.mark.parametrize("name", MACHINES)
def test_the_peak_is_that_of_all_cores(name: str) -> None:
    spec = target(name).spec
    for bits in (8, 16, 32):
        cores = sum(x.count * x.clock_hz * x.core.rate(bits, True, True) for x in spec.parameters.clusters)
        assert spec.peak_macs_per_cycle(bits) == pytest.approx(cores / spec.clock_hz, rel=5e-3)


@pytest.mark.parametrize("name", MACHINES)
def test_energy_is_nearly_monotone_in_density(name: str) -> None:
    on = target(name)
    rows = sample_rows(2000, np.random.default_rng(0), 32)
    rows = rows.take(rows.is_op("conv", "linear") & (rows.groups == 1))
    energy = np.array(
        [
            on.price(rows.replace(weight_density=np.full(len(rows), density)), memo=False).energy_j.sum(axis=1)
            for density in np.linspace(0.05, 1, 20)
        ]
    )
    fall = (1 - energy / np.maximum.accumulate(energy, axis=0)).max(axis=0)  # below a sparser layer's, at the worst
    assert (fall > 0.05).mean() < 0.05
    assert fall.max() < 0.4


@pytest.mark.parametrize("name", MACHINES)
def test_twice_the_channels_cost_less_only_where_tiles_are_left_over(name: str) -> None:
    on = target(name)
    for seed, step in ((0, 0), (1, 0), (0, 1), (0, 8)):
        rng = np.random.default_rng(seed)
        rows = sample_rows(3000, rng, 32)
        rows = rows.take(rows.is_op("conv", "linear") & (rows.groups == 1))
        if step:  # channel counts at random, in ones or in eights
            k = step * rng.integers(1, 1 + 512 // step, len(rows))
            rows = rows.replace(k=k, output_elements=k * rows.p * rows.q)
        wider = rows.replace(k=2 * rows.k, output_elements=2 * rows.output_elements)
        cheaper = on.price(wider).cycles < on.price(rows).cycles * (1 - 1e-6)
        assert cheaper.mean() <= (on.family.cliffs if step == 1 else 0)


def test_a_clock_that_no_cluster_has_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"^snapdragon_855plus_cpu: clock_hz: 1e\+09, .*clusters\.0\.clock_hz: 2\.96e\+09"
    ):
        target(PLUS, {"clock_hz": 1e9})
    with pytest.raises(ConfigError, match="set both"):
        target("raspberry_pi_4_cpu", {"parameters.clusters.0.clock_hz": 1e9})


def test_a_sweep_of_clocks_sets_both() -> None:
    name, graph = "raspberry_pi_4_cpu", layer_graph("conv c=64 k=64 h=14 r=3")
    half = {"clock_hz": 0.9e9, "parameters.clusters.0.clock_hz": 0.9e9, "parameters.launch_s": 0.0}
    half |= {"parameters.fork_join_s": 0.0}
    full = {path: value for path, value in half.items() if path.endswith("_s")}
    slow, fast = target(name, half).simulate(graph), target(name, full).simulate(graph)
    assert slow.latency_s == pytest.approx(2 * fast.latency_s)  # caches at the core's clock; DRAM does not bind
    assert slow.layer("layer").energy_j["core_cycle"] == pytest.approx(fast.layer("layer").energy_j["core_cycle"])


def test_a_peak_that_the_cores_do_not_make_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"macs_per_cycle\[32\]: 64, but the machine's parameters make 27\.6"):
        target(PLUS, {"macs_per_cycle.32": 64})
    two = target(PLUS, {"parameters.clusters.1.count": 1, "parameters.threads": 1}).spec.macs_per_cycle
    assert two == pytest.approx({bits: rate * (1 + 2.42 / 2.96) for bits, rate in ((8, 32), (16, 16), (32, 8))})


LAYERS = {"kernel": "conv c=128 k=128 h=28 r=3", "pattern": "conv c=128 k=128 h=28 r=3"}


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("granularity", MobileCPU.granularities)
def test_zeros_of_every_granularity_save_time(name: str, granularity: str) -> None:
    layer = LAYERS.get(granularity, "conv c=128 k=128 h=28 r=1")
    graph, size = layer_graph(layer), 3 if granularity in LAYERS else 1
    weight = torch.randn(128, 128, size, size, generator=torch.Generator().manual_seed(0))
    sparse = WeightSparsity.from_mask(granularities.mask(weight, 0.1, granularity).numpy())
    on = target(name)
    assert on.simulate(graph.with_sparsity({"layer": sparse})).cycles < 0.9 * on.simulate(graph).cycles


def test_granularities_are_those_of_pruning() -> None:
    for name in MobileCPU.granularities:
        granularities.check_granularity(name)


def test_both_machines_are_one_chip() -> None:
    plus, plain = target(PLUS).spec, target("snapdragon_855_cpu").spec
    for port in (2, 3):  # L3 and DRAM have clocks of their own
        bytes_per_s = [spec.memories[port].bandwidth_bytes_per_cycle * spec.clock_hz for spec in (plus, plain)]
        assert bytes_per_s[0] == pytest.approx(bytes_per_s[1], rel=0.005)
    for field in ("scatter_cycles", "fork_join_s", "vector_efficiency", "launch_s", "jump_cycles"):
        assert getattr(plus.parameters, field) == getattr(plain.parameters, field)
    assert len(plus.fitted) == 4


@pytest.mark.parametrize("name", MACHINES)
def test_fitted_numbers_lie_inside_their_bounds(name: str) -> None:
    spec = target(name).spec
    for fit in spec.fitted:
        assert fit.bounds[0] < number_at(spec, fit.parameter) < fit.bounds[1]


# ---- published rows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count", "mean", "worst"),
    [
        (PLUS, 8, 0.03, 0.06),
        ("snapdragon_855_cpu_paddle_lite", 12, 0.05, 0.15),
        ("snapdragon_835_cpu", 8, 0.06, 0.13),
        ("snapdragon_835_cpu_xnnpack", 3, 0.05, 0.08),
        ("pixel1_cpu", 10, 0.04, 0.08),
        ("pixel1_cpu_xnnpack", 2, 0.01, 0.01),
    ],
)
def test_agreement_with_published_rows(name: str, count: int, mean: float, worst: float) -> None:
    errors = np.array([abs(item.error) for item in compare(name)])
    assert len(errors) == count
    assert errors.mean() < mean
    assert errors.max() < worst


def test_dense_xnnpack_is_predicted_without_a_fit() -> None:
    # With products at their full count of instructions, the Pixel 1's two rows are met within 15 %.
    for row in rows("pixel1_cpu_xnnpack"):
        threads = int(row.overrides.rpartition("=")[2])
        on = target("pixel1_cpu_xnnpack", {"parameters.threads": threads, "parameters.product_efficiency": 1.0})
        graph = table("mobilenet_v2")
        milliseconds = float(on.price(graph.columns, graph.topology).latency_s.sum()) * 1e3
        assert milliseconds == pytest.approx(row.value, rel=0.15)


@pytest.mark.parametrize(("name", "mean", "worst"), [(PLUS, 0.06, 0.15), ("snapdragon_835_cpu_xnnpack", 0.07, 0.10)])
def test_networks_left_out_of_the_fit_are_predicted(name: str, mean: float, worst: float) -> None:
    found = rows(name)
    stored = [item.predicted for item in compare(name)]
    left_out = Calibration(name).left_out(found, stored)
    errors = np.abs([value / row.value - 1 for value, row in zip(left_out, found, strict=True)])
    assert errors.mean() < mean
    assert errors.max() < worst
