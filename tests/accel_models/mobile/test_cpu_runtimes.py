"""Runtimes and cores as data: rules, register tiles and walks worked by hand, devices written as one YAML."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_models import Target, target, targets
from accel_models.mapping import Steps
from accel_models.mobile.cores import Cluster, Team, known_cores
from accel_models.mobile.passes import STEPS, Passes
from accel_models.mobile.products import cover
from accel_models.mobile.runtime import FOLDER, Spmm, load_runtime, runtimes
from accel_models.placement import place
from accel_models.result import LayerPrice
from accel_models.spec import SPECS
from accel_models.testing import sample_rows
from accel_models.validation.compare import layer_graph, layers_columns
from workloads.columns import Columns
from workloads.errors import ConfigError
from workloads.graph import OP_CODES, Op
from workloads.sparsity import WeightSparsity

PHONE, BOARD = target("snapdragon_865_cpu"), target("raspberry_pi_4_cpu")
COMPUTE, PACK = STEPS.index("compute"), STEPS.index("pack")
GOLD = "snapdragon_835_cpu_xnnpack"


def steps_of(name: str, text: str, bits: int = 32, **parameters: float) -> Steps:
    on = target(name, {f"parameters.{key}": value for key, value in parameters.items()})
    rows = in_precision(layers_columns([text]), bits)
    return on.family.map(rows, place(rows, None, on.spec))


def in_precision(rows: Columns, bits: int) -> Columns:
    width = np.full(len(rows), bits)
    return rows.replace(weight_bits=width, input_bits=width, output_bits=width)


def price(on: Target, text: str, mask: np.ndarray | None = None) -> LayerPrice:
    graph = layer_graph(text)
    if mask is not None:
        graph = graph.with_sparsity({"layer": WeightSparsity.from_mask(mask)})
    return on.simulate(graph).layer("layer")


# ---- rules ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", runtimes())
def test_every_layer_that_works_has_a_kernel(name: str) -> None:
    runtime = load_runtime(name)
    rows = sample_rows(2000, np.random.default_rng(0), 32)
    assert (runtime.dispatch(rows) > 0).all()
    idle = rows.replace(op=np.full(len(rows), OP_CODES[Op.RESHAPE]))
    assert (runtime.dispatch(idle) == 0).all()


@pytest.mark.parametrize(
    ("name", "layer", "kernel"),
    [
        ("paddle_lite_2_6", "conv c=64 k=64 h=14 r=1", "gemm"),
        ("paddle_lite_2_6", "conv c=64 k=64 h=14 r=3", "winograd63"),
        ("paddle_lite_2_6", "conv c=3 k=32 h=224 r=3 stride=2", "direct"),
        ("paddle_lite_2_6", "conv c=512 k=512 h=14 r=3 stride=2", "gemm"),  # more weights than 4 an input pixel
        ("paddle_lite_2_6", "conv c=64 k=64 h=14 r=7 groups=64", "gemm"),  # no depthwise kernel of this size
        ("tflite_2018", "conv c=64 k=64 h=14 r=3", "gemm"),
        ("tflite_2018", "conv c=64 k=64 h=14 r=3 groups=64", "depthwise"),
        ("xnnpack_2020", "conv c=3 k=32 h=224 r=3 stride=2", "gemm"),
        ("xnnpack_2020", "linear c=1024 k=1000", "gemv"),
        ("ncnn_2021", "conv c=64 k=64 h=14 r=3", "winograd63"),
    ],
)
def test_first_rule_that_holds_names_the_kernel(name: str, layer: str, kernel: str) -> None:
    runtime = load_runtime(name)
    assert runtime.names[runtime.dispatch(layers_columns([layer]))[0]] == kernel


def changed_runtime(tmp_path: Path, **fields: object) -> str:
    path = tmp_path / "mine.yaml"
    data = {"base": "xnnpack_2020", "name": "mine", **fields}
    (tmp_path / "ncnn_2020.yaml").write_text((FOLDER / "ncnn_2020.yaml").read_text())
    (tmp_path / "xnnpack_2020.yaml").write_text((FOLDER / "xnnpack_2020.yaml").read_text())
    path.write_text(yaml.safe_dump(data))
    return str(path)


def number(value: object) -> dict[str, object]:
    return {"value": value, "source": "assumed: a test"}


def tile(pixels: list[object]) -> dict[str, object]:
    return {"tile_pixels": number(pixels)}


def rule(name: str, **when: object) -> dict[str, object]:
    return {"kernel": name, "when": when}


LAST = [rule("gemm", kind=["mac"]), rule("vector", kind=["vector"]), rule("copy", kind=["move"])]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sparse": ["spmv"]}, "sparse[0]: 'spmv', must be one of spmm"),
        ({"sparse": ["gemm"]}, "sparse[0]: 'gemm', must be one of spmm"),
        ({"rules": [rule("gem"), *LAST]}, "rules[0].kernel: 'gem', must be one of gemm, depthwise, gemv, vector, copy"),
        ({"rules": [rule("spmm"), *LAST]}, "rules[0].kernel: 'spmm', must be one of gemm,"),
        ({"rules": [rule("gemm", op=["cnv"]), *LAST]}, "rules[0].when.op: found 'cnv', must be one of conv, "),
        ({"rules": [rule("gemm", op=[]), *LAST]}, "rules[0].when.op: found [], must list at least one"),
        ({"rules": [rule("gemm", kernel=[0]), *LAST]}, "rules[0].when.kernel: found [0], must list one or more"),
        ({"rules": [rule("gemm", knd=["mac"]), *LAST]}, "rules[0].when.knd: "),
        ({"rules": [rule("gemm", kind=["max"]), *LAST]}, "rules[0].when.kind[0]: 'max', input should be 'mac', "),
        ({"rules": [rule("gemm", kind=["mac"])]}, "rules: no rule runs every move, vector layer"),
        ({"kernels": {"gemm": tile([])}}, "kernels.gemm.tile_pixels: found [], must list one or more numbers"),
        ({"kernels": {"gemm": tile([0])}}, "kernels.gemm.tile_pixels: found [0], must list one or more numbers"),
        ({"kernels": {"gemm": tile([4, 8])}}, "kernels.gemm.tile_pixels: found [4, 8], must be given largest first"),
        ({"kernels": {"gemm": tile(["a"])}}, "kernels.gemm.tile_pixels[0]: 'a', input should be a valid integer"),
        ({"kernels": {"gemm": {"kind": "gem"}}}, "kernels.gemm: input tag 'gem' found using 'kind' does not match"),
        ({"kernels": {"spmm": {"rows": number([2, 4])}}}, "kernels.spmm.rows: found [2, 4], must list 1, "),
        ({"kernels": {"spmm": {"registers": number(3)}}}, "kernels.spmm: registers: found 3, must hold a register"),
        ({"sources": 3}, "sources: 3, input should be"),
    ],
)
def test_a_runtime_that_is_wrong_says_what(tmp_path: Path, fields: dict[str, object], message: str) -> None:
    path = changed_runtime(tmp_path, **fields)
    machine = {"base": GOLD, "name": "mine", "parameters": {"runtime": "mine.yaml"}}
    (tmp_path / "machine.yaml").write_text(yaml.safe_dump(machine))
    with pytest.raises(ConfigError) as error:
        target(str(tmp_path / "machine.yaml"))
    assert str(error.value).startswith(f"mine: parameters.runtime: {path}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_mistakes_of_a_runtime_are_listed_together(tmp_path: Path) -> None:
    fields = {"kernels": {"gemm": tile([0])}, "rules": [rule("gemm", op=["cnv"]), *LAST]}
    with pytest.raises(ConfigError, match=r"kernels\.gemm\.tile_pixels: .*; rules\[0\]\.when\.op: "):
        load_runtime(changed_runtime(tmp_path, **fields))


def test_an_unknown_runtime_names_those_at_hand() -> None:
    with pytest.raises(ConfigError, match="ncnn_2020"):
        load_runtime("ncn_2020")


def test_a_runtime_beside_a_machine_belongs_to_it_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of one's own: found by its name, before one of the package, and no machine itself."""
    changed_runtime(tmp_path, requantizes=True)
    for name, runtime in (("by_name", "mine"), ("by_path", "mine.yaml"), ("copied", "ncnn_2020")):
        machine = {"base": GOLD, "name": name, "parameters": {"runtime": runtime}}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(machine))
    kernels = tmp_path / "ncnn_2020.yaml"
    kernels.write_text(kernels.read_text().replace("activation: pass", "activation: fused"))
    monkeypatch.setenv("CODESIGN_SPECS", str(tmp_path))
    assert set(targets()) - {path.stem for path in SPECS.glob("*.yaml")} == {"by_name", "by_path", "copied"}
    for name in ("by_name", "by_path"):
        runtime = target(name).family.runtime  # type: ignore[attr-defined]
        assert (runtime.name, runtime.requantizes) == ("mine", True)
    assert target("copied").family.runtime.activation == "fused"  # type: ignore[attr-defined]
    assert load_runtime("ncnn_2020").activation == "pass"


def test_a_runtime_of_ones_own_runs(tmp_path: Path) -> None:
    path = changed_runtime(tmp_path, activation="pass")
    machine = {"base": GOLD, "name": "mine", "parameters": {"runtime": path}}
    (tmp_path / "machine.yaml").write_text(yaml.safe_dump(machine))
    text = "conv c=64 k=64 h=8 r=1 activation=relu"
    mine, theirs = price(target(str(tmp_path / "machine.yaml")), text), price(target(GOLD), text)
    # One more pass: 64 x 64 numbers read and written, 16 bytes a cycle.
    assert mine.cycles - theirs.cycles == pytest.approx(2 * 64 * 64 * 4 / 16)


def test_a_runtime_is_found_beside_the_machine_then_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, current = tmp_path / "beside", tmp_path / "current"
    for folder, title in ((beside, "from beside"), (current, "from here")):
        folder.mkdir()
        changed_runtime(folder, title=title)
    monkeypatch.chdir(current)
    machine = {"base": GOLD, "name": "machine", "parameters": {"runtime": "mine.yaml"}}
    (beside / "machine.yaml").write_text(yaml.safe_dump(machine))

    def title() -> str:
        return str(target(str(beside / "machine.yaml")).family.runtime.title)  # type: ignore[attr-defined]

    assert title() == "from beside"
    (beside / "mine.yaml").unlink()
    assert title() == "from here"
    (current / "mine.yaml").unlink()
    with pytest.raises(ConfigError, match=f"no file {beside / 'mine.yaml'} or {current / 'mine.yaml'}"):
        title()


# ---- register tiles and walks --------------------------------------------------------------------------------------


@given(st.integers(1, 500), st.sampled_from([(12, 8, 4, 2, 1), (12,), (8, 4), (6,), (4, 1)]))
def test_tiles_cover_and_fill_up_the_smallest_only(count: int, sizes: tuple[int, ...]) -> None:
    covered = float((cover(np.array([float(count)]), sizes).T * sizes).sum())
    assert count <= covered < count + sizes[-1]


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 300), st.sampled_from([8, 16, 32]))
def test_no_product_beats_the_peak(pixels: int, k: int, c: int, bits: int) -> None:
    for family in (PHONE.family, BOARD.family):
        rows = in_precision(layers_columns([f"conv c={c} k={k} h=1 w={pixels} r=1"]), bits)
        passes = Passes(family, rows, place(rows, None, family.spec))  # type: ignore[arg-type]
        product = family.tiles["gemm"].multiply(passes, passes.pixels, passes.k, passes.c, np.inf)  # type: ignore[attr-defined]
        assert product.cycles[0] >= pixels * k * c / passes.peak[0] * (1 - 1e-12)


def test_products_read_in_place_by_hand() -> None:
    # XNNPACK on a Cortex-A73: 6 pixels x 8 channels are 12 accumulators; 12 FMAs an input channel on one pipe (3.5
    # loads and 15.5 instructions, two a cycle, hide) at 0.871, four times; clear 12, store 12, drain 12. No packing.
    steps = steps_of(GOLD, "conv c=4 k=8 h=2 w=3 r=1")
    assert steps.slowest_cycles[0, COMPUTE] == pytest.approx(4 * 12 / 0.871 + 36)
    assert steps.tiles[0, PACK] == 0
    # 7 pixels take two tiles, the second filled up.
    assert steps_of(GOLD, "conv c=4 k=8 h=1 w=7 r=1").tiles[0, COMPUTE] == 2


def test_weights_are_streamed_again_for_every_tile_of_pixels() -> None:
    # 12 pixels, 512 x 512 weights of 1 MB, which the L2 holds: from L2 twice, from DRAM once.
    steps = steps_of(GOLD, "conv c=512 k=512 h=3 w=4 r=1")
    beyond_l1, beyond_l2 = (steps.tiles[0, COMPUTE] * steps.port_bytes[0, COMPUTE, port] for port in (1, 2))
    weights = 512 * 512 * 4
    assert beyond_l1 == pytest.approx(2 * weights)
    assert beyond_l2 == pytest.approx(weights)


def test_channels_are_split_where_tiles_of_pixels_are_few() -> None:
    # One tile of 6 pixels for 4 threads: 20 pieces are wanted, 16 tiles of 8 channels there are.
    assert steps_of(GOLD, "conv c=64 k=128 h=2 w=3 r=1", threads=4).tiles[0, COMPUTE] == 16
    assert steps_of(GOLD, "conv c=64 k=128 h=2 w=3 r=1").tiles[0, COMPUTE] == 1


def test_blocks_of_the_input_stay_near() -> None:
    # Paddle-Lite: 64 channels of 112 x 112 are 3.2 MB. A block that fits 2 MB beside 8 results has 2 MB / 4 / 72
    # pixels: two blocks. The weights come again for the second, and the blocks from the L3 for every tile of channels.
    steps = steps_of("snapdragon_855_cpu_paddle_lite", "conv c=64 k=128 h=112 r=1")
    moved = steps.tiles[0, COMPUTE] * steps.port_bytes[0, COMPUTE]
    whole = steps_of("snapdragon_855_cpu", "conv c=64 k=128 h=112 r=1")
    assert moved[3] < 0.4 * whole.tiles[0, COMPUTE] * whole.port_bytes[0, COMPUTE, 3]
    assert moved[2] > 15 * 64 * 112 * 112 * 4


def test_sums_go_to_memory_after_every_block_of_input_channels() -> None:
    # TensorFlow Lite's products: 12 pixels x 4 channels, 12 accumulators on one pipe, 58.4 % of the count; 12 + 12 + 12
    # cycles for each visit of the tile: one up to 248 input channels, two for 249.
    one, two = (steps_of("pixel1_cpu", f"conv c={c} k=4 h=3 w=4 r=1") for c in (248, 249))
    assert one.slowest_cycles[0, COMPUTE] == pytest.approx(248 * 12 / 0.584 + 36)
    assert two.slowest_cycles[0, COMPUTE] == pytest.approx(249 * 12 / 0.584 + 2 * 36)


def test_weights_packed_at_every_inference_take_a_pass() -> None:
    # 12 pixels x 4 inputs and 4 x 8 weights: 20 vectors at 0.639.
    steps = steps_of("pixel1_cpu", "conv c=4 k=8 h=3 w=4 r=1")
    assert steps.slowest_cycles[0, PACK] * steps.tiles[0, PACK] == pytest.approx(20 / 0.639)


def test_depthwise_loads_bind_by_hand() -> None:
    # 4 channels x 16 pixels: 16 vectors of outputs, 9 taps. XNNPACK on a Cortex-A73: two loads a tap on one port, 18
    # cycles, at 0.6. TensorFlow Lite on Kryo: three loads a tap, 27 cycles, at 0.639.
    text = "conv c=4 k=4 h=4 r=3 groups=4"
    assert steps_of(GOLD, text).slowest_cycles[0, COMPUTE] == pytest.approx(16 * 18 / 0.6)
    assert steps_of("pixel1_cpu", text).slowest_cycles[0, COMPUTE] == pytest.approx(16 * 27 / 0.639)


# ---- cores ---------------------------------------------------------------------------------------------------------


def test_a_load_that_cannot_issue_beside_arithmetic_takes_its_cycle() -> None:
    # Cortex-A53, 12 pixels x 8 channels: 24 FMAs and 5 loads an input channel, one after another.
    steps = steps_of("snapdragon_835_cpu", "conv c=10 k=8 h=3 w=4 r=1", threads=1)
    assert steps.slowest_cycles[0, COMPUTE] == pytest.approx(10 * 29 + 24 + 24 + 12)


def test_instructions_count_only_where_core_and_runtime_have_them() -> None:
    a76, a73 = known_cores()["cortex_a76"], known_cores()["cortex_a73"]
    assert a76.rate(8, True, True) == 32
    assert a76.rate(8, False, True) == 8
    assert (a76.rate(16, True, True), a76.rate(16, True, False)) == (16, 8)
    assert (a73.rate(8, True, True), a73.rate(16, True, True)) == (8, 4)


def cluster(core: str, count: int, clock_hz: float) -> Cluster:
    given = {"core": core, "count": number(count), "clock_hz": number(clock_hz), "l2_bytes": number(1e6)}
    return Cluster.model_validate(given)


def test_the_slowest_core_paces_what_is_dealt_out() -> None:
    both = (cluster("cortex_a76", 1, 2e9), cluster("cortex_a55", 1, 1e9))
    team = Team(both, 2, 2e9, stealing=False)
    # The little core does 4 a cycle of 1 GHz, the big one 8 of 2 GHz: x = 2 and 0.5 cycles of 2 GHz.
    assert (team.core, team.slowest, team.mean) == (known_cores()["cortex_a55"], 2.0, 1.25)
    assert team.ideal == pytest.approx(1 / ((1 / 2 + 1 / 0.5) / 2))
    assert Team(both, 1, 2e9, stealing=False).slowest == 1.0
    stealing = Team(both, 2, 2e9, stealing=True)
    assert stealing.slowest == stealing.mean == stealing.ideal == team.ideal


def test_a_device_is_one_file(tmp_path: Path) -> None:
    data = yaml.safe_load((SPECS / "snapdragon_855_cpu.yaml").read_text())
    data["name"], data["fitted"] = "mine", []

    core = {
        "vector_bits": number(128), "vector_pipes": number(4), "loads_per_cycle": number(3),
        "macs_per_cycle": {8: number(32), 16: number(32), 32: number(16)}, "exposed_load_cycles": number(0),
        "instructions_per_cycle": number(10), "chain_cycles": number(2),
    }  # fmt: skip
    big = {"core": core, "count": number(1), "clock_hz": number(2.84e9), "l2_bytes": number(2**20)}
    data["parameters"] |= {"clusters": [big], "threads": number(1)}
    data["macs_per_cycle"] = core["macs_per_cycle"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(data))
    mine = target(str(tmp_path / "mine.yaml"))
    text = "conv c=256 k=256 h=14 r=1"
    assert price(mine, text).cycles < 0.7 * price(target("snapdragon_855_cpu", {"parameters.threads": 1}), text).cycles
    data["parameters"]["clusters"] = [big | {"core": "cortex_a99"}]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(ConfigError, match="cortex_a99"):
        target(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(
    ("clusters", "message"),
    [
        (
            [{"core": "cortex_a76", "count": number(0)}],
            "parameters.clusters[0].count: 0, input should be greater than 0",
        ),
        (
            [{"core": "cortex_a76", "count": 4}],
            "parameters.clusters[0].count: found 4, must be {value: ..., source: ...}",
        ),
        ([{"core": {"macs_per_cycle": {32: number(8)}}}], "found rates of [32] bits, must be of 8, 16, 32 bits"),
        ([], "parameters.clusters: found [], must list at least one"),
    ],
)
def test_one_mistake_of_a_cluster_is_one_line(tmp_path: Path, clusters: list[Any], message: str) -> None:
    filled = {"count": number(4), "clock_hz": number(2.84e9), "l2_bytes": number(2**18)}
    data = yaml.safe_load((SPECS / "snapdragon_855_cpu.yaml").read_text())
    data["name"], data["parameters"]["clusters"] = "mine", [filled | cluster for cluster in clusters]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(ConfigError) as error:
        target(str(tmp_path / "mine.yaml"))
    assert message in str(error.value)
    assert "tuple should have" not in str(error.value)


# ---- precisions ----------------------------------------------------------------------------------------------------


def latency(name: str, precision: str, text: str = "conv c=256 k=256 h=28 r=1") -> float:
    return target(name).simulate(layer_graph(text).with_precision(precision)).latency_s


def test_the_2020_runtime_gains_nothing_from_integers() -> None:
    assert latency("snapdragon_855_cpu", "int8") > 0.9 * latency("snapdragon_855_cpu", "fp32")
    assert latency("snapdragon_855_cpu", "int8", "conv c=64 k=64 h=56 r=3") > latency(
        "snapdragon_855_cpu", "fp32", "conv c=64 k=64 h=56 r=3"
    )


def test_fp16_arithmetic_needs_core_and_runtime() -> None:
    assert latency("snapdragon_865_cpu", "fp16") < 0.65 * latency("snapdragon_865_cpu", "fp32")
    # Without it only bytes are saved.
    assert latency("snapdragon_835_cpu", "fp16") > 0.7 * latency("snapdragon_835_cpu", "fp32")


def test_dot_products_are_worth_several_times() -> None:
    assert latency("snapdragon_865_cpu", "int8") < 0.5 * latency("snapdragon_865_cpu", "fp32")


# ---- sparse kernels ------------------------------------------------------------------------------------------------


def test_at_least_64_blockings_are_searched() -> None:
    kernels = load_runtime("ncnn_2020").kernels
    spmm, pattern = kernels["spmm"], kernels["pattern"]
    assert isinstance(spmm, Spmm)
    tiles = sum(v * r <= spmm.registers for r in spmm.rows for v in spmm.vectors)
    assert spmm.blockings == tiles * len(spmm.filter_blocks) == 12 * 6
    assert pattern.blockings == len(pattern.sides) * len(pattern.filter_blocks) == 5 * 13  # type: ignore[union-attr]
    assert target("snapdragon_855_cpu").family.mappings_tried() == 72
    assert target("pixel1_cpu_xnnpack").family.mappings_tried() == 3  # one size of tile there, in three kinds


@pytest.mark.parametrize("name", ["snapdragon_855_cpu", GOLD, "pixel1_cpu", "pixel1_cpu_xnnpack"])
@pytest.mark.parametrize("density", [0.02, 0.3, 0.9])
def test_what_the_bound_leaves_out_could_not_have_won(
    name: str, density: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without the bound every combination is priced: the same choice, to the last bit, ties included.
    on = target(name)
    rows = sample_rows(2000, np.random.default_rng(3), 32)
    rows = rows.take(rows.is_op("conv", "linear") & (rows.groups == 1))
    rows = rows.replace(weight_density=np.full(len(rows), density))
    bounded = on.price(rows)
    monkeypatch.setattr("accel_models.mobile.sparse_kernels.ROUNDING", np.inf)
    for one, other in zip(dataclasses.astuple(bounded), dataclasses.astuple(on.price(rows)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["snapdragon_855_cpu", GOLD, "pixel1_cpu"])
def test_kernels_are_compared_by_what_the_timeline_says(name: str) -> None:
    from accel_models.timeline import closed_form

    on = target(name)
    rows = sample_rows(400, np.random.default_rng(5), 32)
    steps = on.family.map(rows, place(rows, None, on.spec))
    found = on.family._cycles(steps)  # type: ignore[attr-defined]
    np.testing.assert_allclose(found, closed_form(steps, on.spec).cycles, rtol=1e-12)


def test_xnnpack_spmm_by_hand() -> None:
    # One of 64 weights, 16 pixels: 4 FMAs, 4 + 3 loads on one port, 4 + 4 + 6 instructions two a cycle: 7 cycles, and
    # 8.91 of the jump. The filter: 1.5 for each of 4 vectors, 12 to drain.
    mask = np.zeros((1, 64), bool)
    mask[0, 5] = True
    layer = price(target(GOLD), "conv c=64 k=1 h=4 r=1", mask)
    assert layer.kernel == "spmm"
    assert layer.lost["useful"] + layer.lost["overhead"] == pytest.approx(7 + 8.91 + 6 + 12)
    assert layer.lost["useful"] == pytest.approx(16 / 4)


def test_blocks_of_output_channels_share_what_they_load() -> None:
    rng = np.random.default_rng(0)
    blocks = np.repeat(rng.random((64, 256)) < 0.1, 4, axis=0)
    scattered = rng.permutation(blocks.ravel()).reshape(blocks.shape)
    on = target(GOLD)
    together, apart = (price(on, "conv c=256 k=256 h=14 r=1", mask) for mask in (blocks, scattered))
    assert together.kernel == apart.kernel == "spmm"
    assert together.lost["useful"] == apart.lost["useful"]
    assert together.cycles < 0.65 * apart.cycles


@pytest.mark.parametrize("name", ["snapdragon_855_cpu", GOLD, "pixel1_cpu_xnnpack"])
def test_the_search_finds_what_trying_each_finds(name: str) -> None:
    # The chosen combination is priced no higher than any single one.
    on = target(name)
    rows = layers_columns(
        [f"conv c={c} k={k} h={h} r=1 density=0.1" for c in (32, 512) for k in (32, 512) for h in (7, 56)]
    )
    kernel = on.family.runtime.kernels["spmm"]  # type: ignore[attr-defined]
    best = cycles_of(on, rows, kernel)
    for vectors in kernel.vectors:
        for blocks in kernel.filter_blocks:
            one = kernel.model_copy(update={"vectors": (vectors,), "filter_blocks": (blocks,)})
            assert (best <= cycles_of(on, rows, one) * (1 + 1e-9)).all()


def cycles_of(on: Target, rows: Columns, kernel: Spmm) -> np.ndarray:
    from accel_models.mobile.sparse_kernels import spmm
    from accel_models.timeline import closed_form

    passes = Passes(on.family, rows, place(rows, None, on.spec))  # type: ignore[arg-type]
    spmm(passes, "spmm", kernel)
    return np.asarray(closed_form(Steps(**passes.arrays), on.spec).cycles)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.02, 0.9), st.integers(0, 3))
def test_sparser_weights_never_cost_more(density: float, seed: int) -> None:
    rows = sample_rows(40, np.random.default_rng(seed), 32)
    rows = rows.take(rows.has_weights)
    for on in (PHONE, BOARD):
        sparse, dense = (
            on.price(rows.replace(weight_density=np.full(len(rows), d))).cycles
            for d in (density, min(1.1 * density, 1))
        )
        assert (sparse <= dense * (1 + 1e-6)).all()
