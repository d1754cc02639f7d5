"""This machine as a target: times belong to layers, sum up and carry their spread; weights have the zeros asked for."""

from __future__ import annotations

import dataclasses
import math
from importlib.metadata import EntryPoint

import numpy as np
import pytest

from accel_models import registry
from accel_models.measured import spread
from accel_models.result import SimulationResult, describe_error
from accel_models.testing import small_graph
from accel_models.validation.workload import layer_graph
from codesign import show
from codesign.compiler import host
from codesign.compiler.host import HostTarget, made_up_weights, owners
from codesign.compiler.isa import find_isa
from codesign.compiler.network import build
from codesign.compiler.runtime import part_name
from codesign.subject import Subject
from workloads.errors import ConfigError
from workloads.graph import Layer, LayerGraph, Op
from workloads.sparsity import WeightSparsity
from workloads.verify import verify_weights

HOST = EntryPoint("host", "codesign.compiler.host:HostTarget", "codesign.targets")


@pytest.fixture(scope="module")
def result() -> SimulationResult:
    return HostTarget(repeats=5).simulate(small_graph().replace_layers({"add": {"fused_into": "b"}}))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "entry_points", lambda group: [HOST] * (group == HOST.group))


def test_rows_sum_to_the_total_and_survive_json(result: SimulationResult) -> None:
    """What of the contract of simulated machines (`accel_models.testing`) holds for a measured one."""
    assert SimulationResult.from_dict(result.to_dict()) == result
    assert result.latency_s > 0
    assert math.isclose(sum(result.lost_by_cause().values()), result.cycles, rel_tol=1e-9)
    assert math.isclose(result.cycles / result.clock_hz, result.latency_s, rel_tol=1e-9)
    for layer in result.layers:
        assert layer.cycles >= 0
        assert 0 <= layer.utilization <= 1


def test_what_does_not_run_is_free_and_what_is_absorbed_says_by_whom(result: SimulationResult) -> None:
    assert result.layer("x").cycles == 0
    for name in ("a", "b", "mean", "fc"):
        assert result.layer(name).latency_s > 0
    added = result.layer("add")  # the convolution before it writes the sum
    assert (added.cycles, added.kernel, added.bound) == (0, "in b", "none")
    assert {"convolution", "scatter", "lanes"} & set(result.layer("a").kernel.split(" + "))


def test_parts_share_the_time_of_whole_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts run one by one take longer than together: layers get their share of what the whole took."""

    def runs(executable, inputs, repeats, by_wall):  # type: ignore[no-untyped-def]
        names = [part_name(part) for part in executable.network.parts]
        return np.array([1.0, 2.0, 3.0]), {name: np.full(3, 7.0) for name in names}

    monkeypatch.setattr(host, "_runs", runs)
    found = HostTarget(repeats=3).simulate(small_graph())
    assert math.isclose(found.latency_s, 2.0)


def test_the_interval_holds_what_is_shown(result: SimulationResult) -> None:
    bar = result.time_error
    assert bar is not None
    assert bar.absolute is not None
    assert bar.absolute.low <= 1 <= bar.absolute.high
    assert bar.rows == 5
    assert not bar.is_indicative
    assert "5 repeats" in describe_error(result.error)
    assert "when run again" in str(result)


def test_energy_is_unknown_not_zero(result: SimulationResult) -> None:
    assert math.isnan(result.energy_j)
    assert "energy unknown" in str(result)
    assert any("energy and traffic are not measured" in note for note in result.notes)


def test_spread_worked_by_hand() -> None:
    times = np.array([0.8, 0.9, 1.0, 1.1, 1.4])  # over their median 1; 10 % and 90 % lie 0.4 places from the ends
    bar = spread(times, times[None]).get("time", "network")
    assert bar is not None
    assert bar.absolute is not None
    assert bar.ratio is not None
    assert (bar.absolute.low, bar.absolute.high) == pytest.approx((0.84, 1.28))
    assert (bar.median, bar.worst, bar.worst_row) == (0.1, 0.4, "repeat 5")
    assert bar.ratio.high == pytest.approx(1.28 ** math.sqrt(2))


@pytest.mark.parametrize("name", ["lenet5", "resnet20", "ds_cnn"])
def test_every_part_counts_for_a_layer_that_runs(name: str) -> None:
    graph = Subject.named(name).graph
    weights, _ = made_up_weights(graph, np.random.default_rng(0))
    owner, does = owners(graph, weights, find_isa())
    parts = build(graph, weights, find_isa()).parts
    idle = {layer.name for layer in graph if layer.op in (Op.INPUT, Op.CONSTANT)}
    assert {owner[part_name(part)] for part in parts} <= set(graph.index) - idle - set(does)
    assert set(does.values()) <= set(owner.values())
    working = {layer.name for layer in graph if layer.macs}
    assert working <= set(owner.values()) | set(does)


def test_copies_count_for_their_first_reader() -> None:
    """Input and output have torch's order; a map of 20 x 20 has another one inside, and is copied at both ends."""
    graph = layer_graph("conv c=4 k=4 h=20 r=3")
    owner, _ = owners(graph, made_up_weights(graph, np.random.default_rng(0))[0], find_isa())
    assert len(owner) > 1
    assert set(owner.values()) == {"layer"}


def test_weights_are_not_zero_where_the_mask_is_one() -> None:
    mask = np.random.default_rng(1).random((16, 16, 3, 3)) < 0.3
    graph = small_graph().with_sparsity({"a": WeightSparsity.from_mask(mask)})
    weights, drawn = made_up_weights(graph, np.random.default_rng(0))
    verify_weights(graph, weights)
    assert drawn == []
    assert np.array_equal(weights["a.weight"] != 0, mask)
    assert (weights["b.weight"] != 0).all()
    again, _ = made_up_weights(graph, np.random.default_rng(0))
    assert all(np.array_equal(weights[key], again[key]) for key in weights)


def test_a_density_becomes_a_random_mask_and_is_named() -> None:
    zeros = WeightSparsity.from_density((16, 16, 3, 3), 0.25)
    graph = small_graph().with_sparsity({"b": zeros})
    weights, drawn = made_up_weights(graph, np.random.default_rng(0))
    assert drawn == ["b"]
    assert (weights["b.weight"] != 0).mean() == pytest.approx(0.25, abs=0.03)  # three standard deviations
    notes = HostTarget(repeats=2).simulate(graph).notes
    assert any(note.startswith("only a density is known of 1 layer(s)") and note.endswith(": b") for note in notes)


def transposed() -> LayerGraph:
    """c = 4, k = 6 in two groups: torch keeps (c, k / groups) = (4, 3) kernels, the graph (k, c / groups) = (6, 2)."""
    x = Layer("x", Op.INPUT, (1, 4, 5, 5), k=4, c=4, p=5, q=5)
    mask = np.zeros((6, 2, 2, 2), bool)
    mask[4, 1] = True  # output 4 of group 1 is its second, input 1 of that group is channel 3
    y = Layer("y", Op.CONV_TRANSPOSE, (1, 6, 10, 10), ("x",), k=6, c=4, p=10, q=10, r=2, s=2, groups=2, in_h=5, in_w=5,
              stride=(2, 2), weight="w", attributes={"output_padding": (0, 0)},
              sparsity=WeightSparsity.from_mask(mask))  # fmt: skip
    return LayerGraph("transposed", (x, y), ("y",))


def test_masks_of_transposed_convolutions_lie_as_torch_keeps_them() -> None:
    weights, _ = made_up_weights(transposed(), np.random.default_rng(0))
    assert weights["w"].shape == (4, 3, 2, 2)
    assert np.argwhere((weights["w"] != 0).all(axis=(2, 3))).tolist() == [[3, 1]]


def test_layers_in_torch_and_conversions_are_said() -> None:
    graph = dataclasses.replace(transposed().with_precision("int8"))
    result = HostTarget(repeats=2).simulate(graph)
    assert result.layer("y").kernel == "torch"
    assert "1 layer(s) ran in torch: y" in result.notes
    assert any("on the wall" in note for note in result.notes)
    assert any("computed in fp32" in note for note in result.notes)
    assert result.precision == "fp32"


def test_kept_weights_alone_are_useful(result: SimulationResult) -> None:
    mask = np.zeros((16, 16, 3, 3), bool)
    mask[:, :, 0, :2] = True
    graph = small_graph().with_sparsity({"a": WeightSparsity.from_mask(mask)})
    pruned = HostTarget(repeats=3).simulate(graph)
    a = pruned.layer("a")
    if min(a.lost["other"], result.layer("a").lost["other"]) > 0:  # neither was cut at the whole time
        assert a.lost["useful"] == pytest.approx(result.layer("a").lost["useful"] * 2 / 9)
    assert a.density == pytest.approx(2 / 9)


# ---- by name --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("installed")
def test_found_by_name_through_the_entry_point() -> None:
    assert registry.measured_targets() == ("host",)
    assert registry.machine("host") == HostTarget()
    assert registry.machine("host", {"repeats": 3, "threads": 2}) == HostTarget(threads=2, repeats=3)
    assert "host" not in registry.targets()
    assert registry.machine("ideal").name == "ideal"


@pytest.mark.usefixtures("installed")
def test_simulated_beside_measured(capsys: pytest.CaptureFixture[str]) -> None:
    show.simulation(
        Subject("small", saved=(small_graph(),)), ["ideal", "host"],
        plan=None, calibrate=None, changes=[], out=None, report=None,
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert "small on this machine" in printed
    assert "unknown" in printed


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: registry.target("host"), "host is a measured machine: it prices whole graphs alone"),
        (lambda: registry.machine("hots"), "did you mean 'host'?"),
        (lambda: registry.machine("host", {"clock_hz": 1}), "host: no number 'clock_hz' to change; there are threads"),
        (lambda: registry.machine("host", {"repeats": 2.5}), "host: repeats: 2.5, must be a whole number"),
        (lambda: registry.machine("host", {"repeats": 1}), "host: repeats: 1, must be >= 2"),
        (lambda: HostTarget(threads=0), "host: threads: 0, must be >= 1"),
    ],
)
def test_mistakes_are_one_line(call, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        call()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("installed")
def test_a_measured_machine_is_not_played(tmp_path) -> None:
    with pytest.raises(ConfigError, match="--trace: host is measured"):
        show.simulation(
            Subject("small", saved=(small_graph(),)), ["host"],
            plan=None, calibrate=None, changes=[], out=None, report=None, trace=tmp_path / "t.json",
        )  # fmt: skip


@pytest.mark.usefixtures("installed")
def test_a_report_of_it_is_written(tmp_path) -> None:
    show.simulation(
        Subject("small", saved=(small_graph(),)), ["host", "ideal"],
        plan=None, calibrate=None, changes=[], out=tmp_path / "r.json", report=tmp_path / "report",
    )  # fmt: skip
    show.simulation(
        Subject("small", saved=(small_graph(),)), ["host"],
        plan=None, calibrate=None, changes=["repeats=3"], out=None, report=tmp_path / "alone",
    )  # fmt: skip
    assert "this machine" in next((tmp_path / "report").glob("*.html")).read_text()
    assert "when run again" in next((tmp_path / "alone").glob("*.html")).read_text()
