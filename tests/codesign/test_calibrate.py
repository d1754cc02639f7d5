"""This machine's numbers: probes compute what they say, the file they make is a machine, held against runs."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from accel_models import Target, load_target
from accel_models.spec import read_machine, sourced_numbers
from accel_models.testing import TargetContract
from accel_models.validation.workload import layer_graph
from codesign import calibrate as calibration
from codesign import held, validation
from codesign.compiler import probe
from codesign.compiler.isa import ISAS
from codesign.compiler.jit import code
from codesign.compiler.kernels import Kernel
from codesign.compiler.kernels.probe import CHAIN, FMA_STEPS, ChainKernel, FmaKernel, ReadKernel
from codesign.compiler.runtime import aligned
from codesign.subject import Subject
from tests.codesign.compiler.native import HERE
from tests.codesign.test_cli import run
from workloads.errors import ConfigError

CORE = probe.Core("avx512", 4e9, fmas_per_cycle=1.96, chain_cycles=4.03, fed_fmas_per_cycle=1.47, call_s=2e-9)
LEVELS = [
    probe.Level("l1", 49152, 24576, 4.48e11),
    probe.Level("l2", 2**21, 2**18, 2e11),
    probe.Level("l3", 2**25, 2**23, 4e10),
    probe.Level("dram", None, 2**26, 2e10),
]


# ---- loops ----------------------------------------------------------------------------------------------------------


def call(isa: str, kernel: Kernel, *arguments: int | np.ndarray) -> None:
    numbers = np.array([x.ctypes.data if isinstance(x, np.ndarray) else x for x in arguments], np.int64)
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(code(isa).addresses([kernel])[kernel])(numbers.ctypes.data)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("isa", HERE)
def test_no_loop_skips_its_work(isa: str) -> None:
    lanes, number = ISAS[isa].lanes, np.array([0.5], np.float32)
    out, x = aligned(64), aligned(4 * lanes * 3 * 2)
    x.view(np.float32)[:] = np.arange(6 * lanes)

    call(isa, FmaKernel(3), 5, x, number, out)
    assert np.array_equal(out.view(np.float32)[:lanes], 5 * FMA_STEPS * 3 * 0.5 * np.arange(lanes))

    of_each_lane = np.arange(6 * lanes, dtype=np.float32).reshape(6, lanes).sum(axis=0)
    for multiplies, factor in ((False, 1.0), (True, 0.5)):
        call(isa, ReadKernel(3, multiplies), 7, x, 2, number, out)
        assert np.array_equal(out.view(np.float32)[:lanes], 7 * factor * of_each_lane)

    call(isa, ChainKernel(), 2, 3, 5, out)
    expected = 3
    for _ in range(2 * CHAIN // 2):
        expected = (expected + 3) ^ 5
    assert out.view(np.int64)[0] == expected


@pytest.mark.usefixtures("native")
def test_what_is_measured_is_of_this_world() -> None:
    """No timing: bounds that any processor of the last decades keeps, even a busy one."""
    found = probe.core(HERE[0])
    assert found is probe.core(HERE[0])
    assert 1e8 < found.clock_hz < 1e11
    assert 0 < found.fmas_per_cycle < 100
    assert found.chain_cycles > 0
    assert found.macs_per_cycle == found.fmas_per_cycle * ISAS[found.isa].lanes


def test_caches_as_the_system_lists_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "CACHES", tmp_path)
    with pytest.raises(ConfigError, match="lists no caches of data"):
        probe.cache_sizes()
    listed = [("index0", "Data", 1, "48K"), ("index1", "Instruction", 1, "32K"), ("index2", "Unified", 2, "2M")]
    for folder, kind, level, size in listed:
        (tmp_path / folder).mkdir()
        for name, text in (("type", kind), ("level", level), ("size", size)):
            (tmp_path / folder / name).write_text(f"{text}\n")
    assert probe.cache_sizes() == [48 * 1024, 2 * 2**20]


# ---- the machine file -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def machine_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("machines") / "mine.yaml"
    calibration.write_spec(path, CORE, LEVELS)
    return path


@pytest.fixture(scope="module")
def machine(machine_file: Path) -> Target:
    return load_target(machine_file)


class TestCalibrated(TargetContract):
    """A calibrated machine keeps the contract of all simulated ones."""


def test_worked_by_hand(machine: Target) -> None:
    spec = machine.spec
    assert spec.name == "mine"
    l1, l2, l3, dram = (memory.bandwidth_bytes_per_cycle for memory in spec.memories)
    assert (l1, l2, l3, dram) == (112, 50, 10, 5)
    (cluster,) = spec.parameters.clusters
    assert (cluster.core.vector_bits, cluster.core.vector_pipes) == (512, 2)
    assert cluster.core.macs_per_cycle[32] == pytest.approx(31.36)
    assert cluster.core.loads_per_cycle == 1.75
    assert cluster.l2_bytes == 2**21
    assert spec.parameters.product_efficiency == 0.75
    assert machine.simulate(layer_graph("conv c=16 k=16 h=16 r=3")).latency_s > 0


def test_every_number_says_where_it_is_from(machine_file: Path) -> None:
    data = read_machine(machine_file)
    assert data["sources"]["measured"].startswith("measured on this machine by codesign calibrate, 20")
    found = {path: source for path, _, source in sourced_numbers(data)}
    of_bandwidths = {source for path, source in found.items() if path.endswith("bandwidth_bytes_per_cycle")}
    assert of_bandwidths == {"measured"}
    assert found["clock_hz"] == "measured"
    assert found["parameters.vector_efficiency"].startswith("assumed: ")


def test_a_machine_without_a_third_cache_reads_memory_there() -> None:
    made = calibration.spec("mine", CORE, [*LEVELS[:2], LEVELS[3]])
    l3 = made["memories"][2]
    assert (l3["name"], l3["size_bytes"]["value"], l3["bandwidth_bytes_per_cycle"]["value"]) == ("l3", 2**21, 5.0)
    with pytest.raises(ConfigError, match="lists 1 levels of caches, must be 2 or 3"):
        calibration.spec("mine", CORE, [LEVELS[0], LEVELS[3]])


def test_memory_that_the_last_cache_held_is_said() -> None:
    small = probe.Level("dram", None, 2**20, 2e10)
    made = calibration.spec("mine", CORE, [*LEVELS[:3], small])
    assert "which the last cache holds" in made["memories"][3]["bandwidth_bytes_per_cycle"]["note"]


# ---- commands -------------------------------------------------------------------------------------------------------


@pytest.fixture
def known_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if measured: the measurement itself is tested above, and takes seconds."""
    monkeypatch.setattr(calibration, "core_and_levels", lambda isa: (CORE, LEVELS))
    monkeypatch.setattr(probe, "core_and_levels", lambda isa: (CORE, LEVELS))


@pytest.mark.usefixtures("native", "known_core")
def test_calibrate_then_simulate(tmp_path, monkeypatch, capsys) -> None:
    out = tmp_path / "mine.yaml"
    code_, printed, _ = run(monkeypatch, capsys, "calibrate", "--out", out)
    assert code_ == 0
    assert "4.00 GHz, 31.4 fp32 multiplications a cycle, 251 GFLOP/s" in printed
    assert "l2: 200.0 GB/s, 50.0 bytes a cycle" in printed
    code_, printed, _ = run(monkeypatch, capsys, "simulate", "resnet8", "--target", out)
    assert code_ == 0
    assert "resnet8 on" in printed
    code_, _, error = run(monkeypatch, capsys, "calibrate", "--out", out)
    assert (code_, error) == (2, f"error: --out {out}: is there already; give --overwrite to replace it\n")
    assert run(monkeypatch, capsys, "calibrate", "--out", out, "--overwrite")[0] == 0
    code_, _, error = run(monkeypatch, capsys, "calibrate", "--out", tmp_path / "mine.txt")
    assert (code_, error) == (2, f"error: --out {tmp_path / 'mine.txt'}: must end in .yaml, as machine files do\n")


@pytest.mark.usefixtures("native")
def test_this_machine_is_measured(tmp_path: Path) -> None:
    core, levels = probe.core_and_levels(ISAS[HERE[0]])
    assert [level.name for level in levels] == [*(f"l{n}" for n in range(1, len(levels))), "dram"]
    assert all(level.bandwidth_bytes_per_s > 0 for level in levels)
    calibration.write_spec(tmp_path / "here.yaml", core, levels)
    assert load_target(tmp_path / "here.yaml").spec.clock_hz == pytest.approx(core.clock_hz, rel=1e-3)


@pytest.mark.usefixtures("native", "known_core")
def test_validate_host_compares_prediction_and_run(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(held, "DENSE", ("lenet5", "resnet8"))
    monkeypatch.setattr(held, "PRUNED", ("resnet8",))
    spec = tmp_path / "mine.yaml"
    code_, printed, _ = run(
        monkeypatch, capsys, "validate", "host", "--spec", spec, "--store", "--json", tmp_path / "j"
    )
    assert code_ == 0
    assert "measured" in printed
    assert f"written: {spec}" in printed
    assert "published" not in printed.partition("time, network")[0]
    rows = yaml.safe_load((tmp_path / "j").read_text())["targets"][str(spec)]["rows"]
    assert [row["id"] for row in rows] == ["lenet5 dense", "resnet8 dense", "resnet8 patterns 8x"]
    for row in rows:
        assert min(row["published"], row["predicted"]) > 0
        assert row["error"] == pytest.approx(row["predicted"] / row["published"] - 1)
        low, high = re.search(r"median of 30 runs, 80% of them (\S+) to (\S+) ms", row["source"]).groups()
        assert float(low) <= row["published"] * 1.001
        assert float(high) >= row["published"] * 0.999
    graph = Subject.named("lenet5").graph
    assert rows[0]["predicted"] == pytest.approx(1e3 * load_target(spec).simulate(graph).latency_s)
    printed = run(monkeypatch, capsys, "simulate", "resnet8", "--target", spec)[1]
    assert "80% interval" in printed


def test_validate_host_needs_a_machine_file(tmp_path, monkeypatch, capsys) -> None:
    code_, _, error = run(monkeypatch, capsys, "validate", "host", "--spec", tmp_path / "mine.csv")
    assert (code_, error) == (2, f"error: --spec {tmp_path / 'mine.csv'}: must end in .yaml, as machine files do\n")


def test_other_machines_are_validated_beside(monkeypatch, capsys) -> None:
    monkeypatch.setattr(held, "hold", lambda spec: pytest.fail("not asked for"))
    assert run(monkeypatch, capsys, "validate", "eie")[0] == 0
    assert validation.HOST_SPEC.suffix == ".yaml"


def test_pruned_variants_have_patterns() -> None:
    graph = held.with_patterns(Subject.named("resnet8").graph, 1 / 8)
    spatial = [layer for layer in graph if held.takes_patterns(layer)]
    assert spatial[0].sparsity is None
    for layer in spatial[1:]:
        assert layer.sparsity is not None
        kept = layer.sparsity.mask().reshape(-1, 9).sum(axis=1)
        assert set(kept.tolist()) == {0, 4}
        assert layer.sparsity.density == pytest.approx(1 / 8, rel=0.01)
    assert graph["block2.down"].sparsity is None
