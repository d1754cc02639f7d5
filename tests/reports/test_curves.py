"""Rooflines, staircases and plan tables computed from real graphs and machines."""

import numpy as np
import pytest

import accel_models
from accel_models import SimulationResult, Target
from pruning.plan import PruningPlan
from reports.curves import plan_record, roofline, rooflines, staircase
from reports.records import PlanGroup, PlanMask
from tests.reports.builders import add, price, result
from tests.workloads.builders import conv, graph, linear, residual, source
from workloads.channels import analyze
from workloads.errors import ConfigError, PlanError
from workloads.sparsity import WeightSparsity


@pytest.fixture
def machine() -> Target:
    return accel_models.target("ideal")


@pytest.mark.parametrize("name", accel_models.targets())
def test_no_layer_lies_above_the_roof(name: str) -> None:
    target = accel_models.target(name)
    x = source((1, 24, 56, 56))
    for network in (residual(), graph(x, y := conv(x, 144, kernel=(1, 1)), linear(y, 64, name="z"))):
        simulated = target.simulate(network)
        for memory in ("", *(each.name for each in target.spec.memories if each.shared)):
            found = roofline(simulated, target.spec, memory)
            for point in found.points:
                assert point.achieved <= found.roof(point.intensity) * (1 + 1e-9), (memory, point)
            assert sum(point.share for point in found.points) + found.rest_share == pytest.approx(1)
            multiplying = sum(1 for layer in network if layer.macs)
            assert len(found.points) + found.left_out == multiplying


def test_roofline_by_hand(machine: Target) -> None:
    """1000 MACs in 100 useful of 200 cycles: 10 a cycle performed at most by a peak of 256; 100 bytes of dram."""
    layer = price(useful=4, memory=196, traffic_bytes={"dram": 100.0})  # 4 cycles x 64 MACs of 32 bits = 256 < 1000
    found = roofline(result(layer, add(), target="ideal", precision="fp32"), machine.spec)
    assert found.peak == 64 * 500e6
    assert found.bandwidth == 8 * 500e6
    assert found.memory == "dram"
    (point,) = found.points
    assert point.intensity == pytest.approx(256 / 100)
    assert point.achieved == pytest.approx(256 / 200e-6)
    assert point.share == pytest.approx(200 / 250)
    assert found.rest_share == pytest.approx(50 / 250)


def test_two_networks_lie_under_one_roof() -> None:
    spec = accel_models.target("ethos_u55_256").spec
    one, other = spec.ports[:2]
    sides = [{one: 1e6, other: 1.0}, {one: 1.0, other: 1e6}]
    before, after = (result(price(traffic_bytes=side), target=spec.name, precision="int8") for side in sides)
    assert roofline(before, spec).memory != roofline(after, spec).memory
    assert [found.memory for found in rooflines(before, after, spec)] == [roofline(before, spec).memory] * 2


def test_nominal_multiplications_are_the_most_that_is_counted(machine: Target) -> None:
    layer = price(useful=100, macs=1000, traffic_bytes={"dram": 100.0})  # 100 x 64 = 6400 > 1000
    (point,) = roofline(result(layer, target="ideal", precision="fp32"), machine.spec).points
    assert point.intensity == 10.0


def test_layers_that_do_not_use_the_memory_are_counted(machine: Target) -> None:
    found = roofline(result(price(traffic_bytes={"dram": 0.0}), target="ideal"), machine.spec)
    assert (found.points, found.left_out) == ((), 1)


@pytest.mark.parametrize(
    ("simulated", "memory", "message"),
    [
        (result(price()), "", "priced on 'machine', the roof is of 'ideal'"),
        (result(price(), target="ideal"), "disk", "memory 'disk' is unknown; allowed: dram"),
        (result(add(), target="ideal", precision="none"), "", "has no layer that multiplies"),
    ],
)
def test_rooflines_that_cannot_be(simulated: SimulationResult, memory: str, message: str, machine: Target) -> None:
    with pytest.raises(ConfigError, match=message):
        roofline(simulated, machine.spec, memory)


def test_a_cache_of_each_core_has_no_roof_for_the_machine() -> None:
    phone = accel_models.target("snapdragon_855_cpu")
    with pytest.raises(ConfigError, match=r"memory 'l3' is each core's own, .*; allowed: dram"):
        roofline(phone.simulate(residual()), phone.spec, "l3")


# ---- staircases -----------------------------------------------------------------------------------------------------


def test_every_step_is_the_price_of_the_graph_with_so_many_channels(machine: Target) -> None:
    graph = machine.native(residual())
    found = staircase(analyze(graph), machine, "a", offered=(2, 4), chosen=2)
    size = analyze(graph).group("a").size
    assert found.counts == tuple(range(1, size + 1))
    for count, latency in zip(found.counts, found.latency_s, strict=True):
        assert latency == pytest.approx(machine.simulate(graph.with_channels({"a": count})).latency_s)
    assert (np.diff(found.latency_s) >= 0).all()
    assert found.span_s > 0
    assert (found.offered, found.chosen) == ((2, 4), 2)


def test_a_wide_group_is_thinned_but_offered_counts_stay(machine: Target) -> None:
    graph = machine.native(residual())
    found = staircase(analyze(graph), machine, "a", offered=(3,), most=2)
    assert found.counts == (1, 3, 4)


def test_an_unknown_group_is_named(machine: Target) -> None:
    with pytest.raises(PlanError, match="nobody"):
        staircase(analyze(machine.native(residual())), machine, "nobody")


# ---- plans ----------------------------------------------------------------------------------------------------------


def test_plan_table() -> None:
    zeros = WeightSparsity.from_mask(np.array([[1, 0], [1, 1]], bool).reshape(2, 2, 1, 1))
    plan = PruningPlan("net", {"a": (0, 2)}, {"a": 4}, {"b": zeros})
    found = plan_record(plan, analyze(residual()), "weight")
    assert found.groups[0].kept == 2
    assert found.groups[0].total == 4
    assert "a" in found.groups[0].layers
    assert found.masks == (PlanMask("b", "weight", 3, 4),)
    assert plan_record(plan).groups == (PlanGroup("a", 2, 4),)
