"""Before against after, and machine against machine, worked by hand."""

import dataclasses
import json

import pytest

import accel_models
from accel_models.result import describe_error
from accel_models.validation import ErrorBars
from reports.comparison import Comparison, TargetTable, bound_shares, compare, compare_targets
from reports.spending import largest_loss, spent
from tests.reports.builders import ERROR, TIME_ERROR, add, after, before, price, result
from tests.workloads.builders import residual
from workloads.errors import ConfigError


@pytest.fixture
def comparison() -> Comparison:
    return compare(before(), after(), channel_multiple=8)


def test_totals_by_hand(comparison: Comparison) -> None:
    assert comparison.cycles == (450.0, 400.0)
    assert comparison.latency_s == pytest.approx((450e-6, 400e-6))
    assert comparison.energy_j == pytest.approx((9e-6, 9e-6))
    assert comparison.macs == (3000, 2000)
    assert comparison.speedup == pytest.approx(450 / 400)


def test_layers_by_hand(comparison: Comparison) -> None:
    found = {change.name: (change.speedup, change.has_shrunk, change.is_faster) for change in comparison.layers}
    assert found == {
        "x": (None, False, False),
        "a": (1.0, True, False),
        "b": (2.0, True, True),
        "add": (1.0, False, False),
    }
    reasons = {change.name: change.why for change in comparison.layers}
    assert reasons["a"] == "13 of 16 channels are computed as 16: the machine works in multiples of 8"
    assert reasons["b"] == reasons["x"] == ""


def test_shares_of_time_that_could_not_or_did_not_shrink(comparison: Comparison) -> None:
    assert comparison.untouched_share == pytest.approx(50 / 450)  # the addition
    assert comparison.stuck_share == pytest.approx(300 / 450)  # a


def test_spending_sums_to_the_cycles(comparison: Comparison) -> None:
    assert comparison.spent["useful"] == (300.0, 200.0)
    assert comparison.spent["elementwise"] == (50.0, 50.0)  # not overhead: it is what an addition does
    assert comparison.spent["overhead"] == (100.0, 150.0)
    for side in (0, 1):
        assert sum(pair[side] for pair in comparison.spent.values()) == pytest.approx(comparison.cycles[side])


def test_multiplications_with_zeros_are_not_kept() -> None:
    pruned = result(price("a", density=0.25, useful=25), price("b"))
    found = compare(result(price("a"), price("b")), pruned)
    assert found.macs == (2000, 2000)
    assert found.kept_macs == (2000, 1250)


def test_layers_of_one_side_only_are_kept_and_have_no_speedup() -> None:
    found = compare(result(price("a"), price("gone")), result(price("a"), price("new")))
    assert [(change.name, change.before is None, change.after is None) for change in found.layers] == [
        ("a", False, False),
        ("gone", False, True),
        ("new", True, False),
    ]
    assert [change.speedup for change in found.layers] == [1.0, None, None]
    assert [change.is_faster for change in found.layers] == [False, True, False]
    assert found.cycles == (200.0, 200.0)
    assert found.untouched_share == pytest.approx(0.5)


def test_json_round_trip(comparison: Comparison) -> None:
    assert Comparison.from_dict(json.loads(json.dumps(comparison.to_dict()))) == comparison


def test_prints_totals_and_reasons(comparison: Comparison) -> None:
    text = str(comparison)
    assert "0.450 -> 0.400 ms" in text
    assert "compute -> overhead; 13 of 16 channels" in text
    assert describe_error(ERROR) in text
    assert "0.89x (80% interval 0.84x to 0.93x)" in text  # 0.4 / 0.45, less and plus 5 %
    assert [line.split()[0] for line in text.splitlines()[1:4]] == ["a", "b", "add"]  # the input costs nothing


def test_a_ratio_has_the_interval_of_ratios_and_says_what_it_is_of(comparison: Comparison) -> None:
    found = comparison.latency_ratio
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((400 / 450, 0.95 * 400 / 450, 1.05 * 400 / 450))
    estimated = dataclasses.replace(TIME_ERROR, kinds=("vendor_estimate",), rows=4)
    text = str(dataclasses.replace(comparison, error=ErrorBars((estimated,))).latency_ratio)
    said = "where the vendor's estimator (not silicon) would put this ratio, indicative"
    assert text == f"0.89x (80% interval 0.84x to 0.93x, {said})"
    assert str(comparison.energy_ratio) == "1.00x"  # no energy was published for this machine
    assert dataclasses.replace(comparison, error=None).latency_ratio is not None
    assert compare(result(price("a", useful=0)), result(price("a", useful=0))).latency_ratio is None


def test_a_table_of_machines_says_what_an_interval_rests_on() -> None:
    few = dataclasses.replace(TIME_ERROR, networks=2)
    row = compare_targets([dataclasses.replace(before(), error=ErrorBars((few,)))]).rows[0]
    assert row.expected_ms == "0.396 to 0.504, indicative"
    assert (row.caveat_s, row.caveat_j) == ("indicative", "")
    assert row.expected_ms in str(compare_targets([dataclasses.replace(before(), error=ErrorBars((few,)))]))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (dataclasses.replace(after(), target="elsewhere"), "simulate both on one machine"),
        (dataclasses.replace(after(), clock_hz=2e6), "machine at 1e+06 Hz and machine at 2e+06 Hz"),
        (result(price("c")), "no layer name in common"),
    ],
)
def test_what_cannot_be_compared_is_refused(other: accel_models.SimulationResult, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("+", r"\+")):
        compare(before(), other)


def test_a_real_graph_compares_to_the_totals_of_its_simulations() -> None:
    machine, graph = accel_models.target("ideal"), residual()
    dense, pruned = machine.simulate(graph), machine.simulate(graph.with_channels({"a": 2}))
    found = compare(dense, pruned, machine.channel_multiple)
    assert found.latency_s == pytest.approx((dense.latency_s, pruned.latency_s))
    assert found.energy_j == pytest.approx((dense.energy_j, pruned.energy_j))
    assert found.macs == (dense.macs, pruned.macs)
    assert sum(pair[1] for pair in found.spent.values()) == pytest.approx(pruned.cycles)
    assert pruned.macs < dense.macs


def test_nothing_removed_shares_everything() -> None:
    found = compare(before(), before())
    assert found.untouched_share == 1.0
    assert found.stuck_share == 0.0
    assert all(change.why for change in found.layers if change.costs_time)


# ---- spending -------------------------------------------------------------------------------------------------------


def test_an_addition_is_bound_by_itself_and_loses_nothing() -> None:
    assert add().bound_by == "elementwise"
    assert add(bound="sram").bound_by == "sram"
    assert price(bound="overhead").bound_by == "overhead"
    assert largest_loss(add()) is None
    assert largest_loss(add(memory=50)) == ("memory", 0.5)


def test_parts_of_a_layer_sum_to_its_cycles() -> None:
    for layer in (*before().layers, *after().layers):
        assert sum(spent(layer).values()) == layer.cycles


# ---- machines -------------------------------------------------------------------------------------------------------


def test_machines_by_hand() -> None:
    slow = dataclasses.replace(before(), target="slow", title="Slow", error=None)
    table = compare_targets([slow, after_with_same_macs()])
    first, second = table.rows
    assert (first.target, first.cycles, first.interval_s) == ("slow", 450.0, None)
    assert second.interval_s == pytest.approx((100e-6 * 0.88, 100e-6 * 1.12))
    assert first.utilization == pytest.approx(300 / 450)
    assert sum(first.spent.values()) == pytest.approx(450)
    assert first.bound == pytest.approx({"compute": 400 / 450, "elementwise": 50 / 450})
    assert list(first.bound) == ["compute", "elementwise"]  # largest first
    assert TargetTable.from_dict(json.loads(json.dumps(table.to_dict()))) == table
    assert "Slow" in str(table)
    assert "error unknown" in str(table)


def after_with_same_macs() -> accel_models.SimulationResult:
    return result(price("a", macs=3000), target="fast", title="Fast")


def test_bounds_share_out_the_time() -> None:
    assert sum(bound_shares(after()).values()) == pytest.approx(1)
    assert bound_shares(result()) == {}


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([], "no result to compare"),
        ([before(), after()], "needs one network, found net with 3,000 MACs, net with 2,000"),
    ],
)
def test_machines_need_one_network(results: list[accel_models.SimulationResult], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compare_targets(results)
