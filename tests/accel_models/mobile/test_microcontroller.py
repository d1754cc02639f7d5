"""Microcontrollers: instructions counted by hand and by walking the loops, flash waits, and the published boards."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_models import Target, target
from accel_models.mobile.microcontroller import KERNELS, kernel_of, matrix_work
from accel_models.placement import place
from accel_models.testing import sample_rows
from accel_models.validation.calibrate import Calibration
from accel_models.validation.compare import compare
from accel_models.validation.workload import workload
from workloads.columns import Columns
from workloads.errors import ConfigError
from workloads.graph import Layer, LayerGraph, Op
from workloads.tables import table

BOARDS = ("stm32l4r5_m4", "stm32u575_m33", "stm32h7a3_m7")
RELEASES = ("", "_v1_0", "_v0_7")
# One cycle an instruction, no launch: cycles are counted instructions and flash waits.
PLAIN = {"parameters.cycles_per_instruction": 1.0, "parameters.launch_cycles": 0}


@pytest.fixture(scope="module")
def machine() -> Target:
    return target("stm32l4r5_m4", PLAIN)


def priced(machine: Target, text: str) -> tuple[float, float]:
    """(instructions, bytes from flash) of a layer written out."""
    layer = machine.simulate(workload(f"layer:{text}").graphs[0]).layer("layer")
    flash = layer.traffic_bytes["flash"]
    return layer.cycles - flash / 1.6, flash


def rows_of(text: str) -> Columns:
    return workload(f"layer:{text}").graphs[0].columns.take(slice(1, 2))


class TestByHand:
    @pytest.mark.parametrize(
        ("text", "instructions", "flash_bytes"),
        [
            # One MAC: 6 for a step that is left over, 10 to set up, 26 to requantise; a weight and 12 bytes beside it.
            ("conv@int8 c=1 k=1 h=1", 6 + 10 + 26, 1 + 12),
            # 16 MACs, one turn of the loop: 2 filters, 2 columns, 4 steps; 4 outputs.
            ("conv@int8 c=4 k=2 h=1 w=2", 20 + 10 + 4 * 26, 8 + 24),
            # A fifth step is left over.
            ("conv@int8 c=5 k=2 h=1 w=2", 20 + 10 + 10 + 4 * 26, 10 + 24),
            # Three columns: a pair and a single one; weights pass twice, but fit the cache.
            ("conv@int8 c=4 k=2 h=1 w=3", 20 + 10 + 15 + 10 + 6 * 26, 8 + 24),
            # A third filter is priced as a pair.
            ("conv@int8 c=4 k=3 h=1 w=2", 2 * (20 + 10) + 6 * 26, 12 + 36),
            # 3x3 on one pixel: im2col of 9 elements; 9 steps are two turns and one left over.
            ("conv@int8 c=1 k=2 h=1 r=3", 9 * 2.75 + 2 * 15 + 6 + 10 + 2 * 26, 18 + 24),
            # Two groups of 4 channels and 2 filters each.
            ("conv@int8 c=8 k=4 h=1 w=2 groups=2", 2 * (20 + 10) + 8 * 26, 16 + 48),
            # A 1x1 convolution with a stride gathers its columns too.
            ("conv@int8 c=4 k=2 h=1 w=4 stride=2", 8 * 2.75 + 20 + 10 + 4 * 26, 8 + 24),
            ("linear@int8 c=4 k=2", 15 + 10 + 2 * 26, 8 + 24),
            # Four channels, nine taps: four pairs and the odd one.
            ("conv@int8 c=4 k=4 h=1 r=3 groups=4", 36 * 2.75 + 4 * 26 + 16 + 10 + 4 * 26, 36 + 48),
        ],
    )
    def test_layers_that_multiply(self, machine: Target, text: str, instructions: float, flash_bytes: float) -> None:
        assert priced(machine, text) == pytest.approx((instructions, flash_bytes))

    @pytest.mark.parametrize(("op", "each"), [(Op.ADD, 52), (Op.MUL, 30)])
    def test_elementwise_work(self, machine: Target, op: Op, each: int) -> None:
        size = {"k": 4, "c": 4, "p": 2, "q": 2}
        inputs = [Layer(name, Op.INPUT, (1, 4, 2, 2), **size) for name in ("x", "y")]
        dims = {**size, "in_h": 2, "in_w": 2}
        layer = Layer("out", op, (1, 4, 2, 2), ("x", "y"), attributes={"kind": op.value}, **dims)
        result = machine.simulate(LayerGraph("two", (*inputs, layer), ("out",)).verify()).layer("out")
        assert result.cycles == 16 * each
        assert dict(result.traffic_bytes) == {"sram": 48, "flash": 0}

    def test_the_mean_before_a_classifier(self, machine: Target) -> None:
        result = machine.simulate(table("resnet8")).layer("mean")
        assert result.cycles == 8 * 8 * 64 * 4 + 64 * 26

    def test_launch_core_and_code_scale_what_they_stand_for(self) -> None:
        changes = {**PLAIN, "parameters.matrix_code": 3.0, "parameters.other_code": 5.0}
        slow = target("stm32l4r5_m4", changes)
        assert priced(slow, "conv@int8 c=4 k=2 h=1 w=2")[0] == pytest.approx(3 * 134)
        assert priced(slow, "conv@int8 c=4 k=4 h=1 r=3 groups=4")[0] == pytest.approx(5 * 333)
        half = target("stm32l4r5_m4", {"parameters.cycles_per_instruction": 0.5, "parameters.launch_cycles": 70})
        assert priced(half, "conv@int8 c=4 k=2 h=1 w=2")[0] == pytest.approx(70 + 134 / 2)

    def test_no_core_beats_its_multiplier(self) -> None:
        machine = target("stm32l4r5_m4", {**PLAIN, "parameters.cycles_per_instruction": 0.01})
        assert priced(machine, "conv@int8 c=4 k=2 h=1 w=2")[0] == pytest.approx(16 / 2)


class TestLoops:
    """The formulas against the kernels' loops, walked one turn after another."""

    @settings(deadline=None, max_examples=60)
    @given(st.integers(1, 19), st.integers(1, 9), st.integers(1, 5), st.integers(1, 4), st.sampled_from([1, 3]))
    def test_convolution(self, c: int, k: int, h: int, w: int, r: int) -> None:
        work = matrix_work(rows_of(f"conv@int8 c={c} k={k} h={h} w={w} r={r}"))
        depth, columns = c * r * r, h * w
        wanted = 2.75 * columns * depth * (r > 1) + 26 * columns * k
        for first in range(0, columns, 2):
            is_pair = first + 1 < columns
            for _ in range(0, k, 2):
                wanted += 10
                for step in range(0, depth, 4):
                    left = min(4, depth - step)
                    turn, single = (20, 10) if is_pair else (15, 6)
                    wanted += turn if left == 4 else left * single
        assert work.instructions[0] == pytest.approx(wanted)
        assert work.passes[0] == -(-columns // 2)

    def test_every_kernel_counts_at_least_half_an_instruction_a_mac(self) -> None:
        rows = sample_rows(500, np.random.default_rng(3), 8)
        machine = target("stm32l4r5_m4", PLAIN)
        counted = machine.family.facts(rows, place(rows, None, machine.spec))["instructions"]
        assert (counted[rows.is_mac] >= rows.macs[rows.is_mac] / 2).all()


class TestFlash:
    def test_weights_beyond_the_cache_stream_past_every_pair_of_columns(self, machine: Target) -> None:
        small, large = (priced(machine, f"conv@int8 c={c} k=8 h=4")[1] for c in (20, 21))
        assert small == 20 * 8 + 8 * 12 == 256  # just fits: once
        assert large == (21 * 8 + 8 * 12) * 8

    def test_a_linear_layer_reads_each_weight_once(self, machine: Target) -> None:
        assert priced(machine, "linear@int8 c=640 k=128")[1] == 640 * 128 + 128 * 12

    def test_a_product_of_two_feature_maps_reads_no_flash(self, machine: Target) -> None:
        rows = sample_rows(300, np.random.default_rng(0), 8)
        prices = machine.price(rows.take(rows.is_op("matmul")))
        assert len(prices) > 3
        assert prices.traffic_bytes[:, 1].sum() == 0

    def test_waits_are_added_to_the_instructions(self, machine: Target) -> None:
        result = machine.simulate(workload("layer:linear@int8 c=640 k=128").graphs[0]).layer("layer")
        assert result.lost["memory"] == pytest.approx((640 * 128 + 128 * 12) * 5 / 8)


class TestFacts:
    def test_kernels_share_the_cycles(self) -> None:
        machine = target("stm32h7a3_m7")
        graph = table("mobilenet_v1_vww")
        facts, result = machine.facts(graph), machine.simulate(graph)
        assert sum(facts[f"{name}_cycles"].sum() for name in KERNELS[1:]) == pytest.approx(result.cycles)
        assert 0 < facts["flash_wait_cycles"].sum() < 0.1 * result.cycles
        assert facts["depthwise_cycles"].sum() > 0.2 * result.cycles > 0  # of 9 % of the multiplications

    def test_kernels_by_op(self) -> None:
        texts = ("conv@int8 c=4 h=4 r=3", "conv@int8 c=4 h=4 r=3 groups=4", "linear@int8 c=4")
        assert [KERNELS[kernel_of(rows_of(text))[0]] for text in texts] == ["convolution", "depthwise", "linear"]


class TestBoards:
    """Against the chip vendor's own submissions, image classification and keyword spotting."""

    @pytest.mark.parametrize("board", BOARDS)
    @pytest.mark.parametrize("release", RELEASES)
    def test_published_latency_and_energy(self, board: str, release: str) -> None:
        comparisons = compare(board + release)
        assert len(comparisons) == 4
        for item in comparisons:
            limit = 0.075 if item.row.metric == "throughput" else 0.14
            assert abs(item.predicted / item.row.value - 1) < limit, item.row.id

    @pytest.mark.parametrize("board", BOARDS)
    def test_either_network_predicts_the_other(self, board: str) -> None:
        comparisons = compare(board)
        rows, stored = [item.row for item in comparisons], [item.predicted for item in comparisons]
        for row, predicted in zip(rows, Calibration(board).left_out(rows, stored), strict=True):
            limit = 0.1 if row.metric == "throughput" else 0.22  # the M4 drew 33 mW in one network, 45 in the other
            assert abs(predicted / row.value - 1) < limit, row.id

    @pytest.mark.parametrize("board", BOARDS)
    @pytest.mark.parametrize("release", RELEASES)
    def test_stored_numbers_are_those_of_the_fit(self, board: str, release: str) -> None:
        for refit in Calibration(board + release).refits():
            for fitted in refit.parameters:
                assert fitted.value == pytest.approx(fitted.stored, rel=0.01), fitted.parameter
                assert fitted.bounds[0] < fitted.value < fitted.bounds[1]

    @pytest.mark.parametrize("release", RELEASES)
    def test_a_release_is_one_code_on_three_boards(self, release: str) -> None:
        found = [target(board + release).spec.parameters for board in BOARDS]
        assert len({(p.matrix_code, p.other_code) for p in found}) == 1

    def test_releases_get_faster_and_cores_wider(self) -> None:
        graph = table("ds_cnn")
        cycles = {name: target(name).simulate(graph).cycles for board in BOARDS for name in _releases(board)}
        for board in BOARDS:
            new, middle, old = (cycles[name] for name in _releases(board))
            assert new < middle < old
        assert cycles[BOARDS[2]] < cycles[BOARDS[1]] < cycles[BOARDS[0]]

    def test_fewer_channels_save_time_and_zeros_save_none(self) -> None:
        machine = target(BOARDS[0])
        full, thin = (machine.simulate(table(name)) for name in ("mobilenet_v2_w100_r096", "mobilenet_v2_w050_r096"))
        assert thin.latency_s < 0.5 * full.latency_s
        assert thin.energy_j < 0.5 * full.energy_j
        sparse, dense = (
            machine.simulate(workload(f"table:ds_cnn@int8{density}").graphs[0]) for density in (" density=0.2", "")
        )
        assert sparse.cycles == dense.cycles


def _releases(board: str) -> list[str]:
    return [board + release for release in RELEASES]


def test_another_set_of_memories_is_refused() -> None:
    from accel_models.mobile.microcontroller import Microcontroller

    spec = target(BOARDS[0]).spec
    wrong = spec.model_copy(update={"memories": spec.memories[:1]})
    with pytest.raises(ConfigError, match="stm32l4r5_m4: memories sram; must be sram, flash"):
        Microcontroller(wrong)
