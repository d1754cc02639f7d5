"""The event-driven engine: logs worked by hand, and agreement with the closed form."""

from __future__ import annotations

import numpy as np
import pytest

from accel_models import Target, target, targets
from accel_models.events import Span, play
from accel_models.mapping import Steps
from accel_models.pricing import replace_spec
from accel_models.spec import HardwareSpec
from accel_models.testing import small_graph
from accel_models.timeline import closed_form
from workloads.graph import LayerGraph
from workloads.tables import table


def machine_with(overlap: str, shared: bool = True) -> HardwareSpec:
    """One memory of 2 bytes a cycle."""
    base = target("ideal")
    memory = base.spec.memories[0].model_copy(
        update={"bandwidth_bytes_per_cycle": 2.0, "overlap": overlap, "shared": shared}
    )
    return replace_spec(base, memories=(memory,)).spec


def one_step(tiles: float, compute: float, moved: float, parallel: float = 1.0, prologue: float = 0.0) -> Steps:
    arrays = Steps.empty(("s",), ("k",), rows=1, ports=1, components=2)
    for name, value in (("tiles", tiles), ("parallel", parallel), ("prologue_cycles", prologue)):
        arrays[name][:] = value
    for name in ("floor_cycles", "mean_cycles", "slowest_cycles"):
        arrays[name][:] = compute
    arrays["port_bytes"][:] = moved
    return Steps(**arrays)


def test_double_buffering_by_hand() -> None:
    # loads of 3 cycles (6 bytes at 2 a cycle), computations of 5: 0-3 load 1, 3-8 compute 1 beside load 2 (3-6),
    # 8-13 compute 2 beside nothing: 13 cycles, after a prologue of 1
    played = play(one_step(2, 5, 6, prologue=1), machine_with("double_buffer"))
    assert played.cycles.tolist() == [14.0]
    assert sorted(played.spans, key=lambda span: (span.start, -span.cycles)) == [
        Span("launch", 0, "s", 0.0, 1.0),
        Span("dram", 0, "s", 1.0, 3.0),
        Span("compute", 0, "s", 4.0, 5.0),
        Span("dram", 0, "s", 4.0, 3.0),
        Span("compute", 0, "s", 9.0, 5.0),
    ]


@pytest.mark.parametrize(
    ("overlap", "cycles"), [("overlap", 3 * 5), ("serial", 3 * (5 + 3)), ("double_buffer", 3 + 5 + 5 + 5)]
)
def test_three_tiles_by_hand(overlap: str, cycles: float) -> None:
    assert play(one_step(3, 5, 6), machine_with(overlap)).cycles.tolist() == [cycles]


def test_the_port_binds_when_it_is_slower() -> None:
    # loads of 10, computations of 5, three tiles: 10 + 10 + 10 + 5
    assert play(one_step(3, 5, 20), machine_with("double_buffer")).cycles.tolist() == [35.0]


def test_tiles_side_by_side_share_a_shared_port_only() -> None:
    # four tiles on two units: two waves; 6 bytes a tile are 3 cycles, 6 for both if they share the port
    assert play(one_step(4, 5, 6, parallel=2), machine_with("overlap")).cycles.tolist() == [12.0]
    assert play(one_step(4, 5, 6, parallel=2), machine_with("overlap", shared=False)).cycles.tolist() == [10.0]


@pytest.mark.parametrize("overlap", ["overlap", "serial", "double_buffer"])
@pytest.mark.parametrize("shared", [True, False])
def test_equals_the_closed_form_where_waves_are_full(overlap: str, shared: bool) -> None:
    rng = np.random.default_rng(0)
    spec = machine_with(overlap, shared)
    for _ in range(50):
        parallel = int(rng.integers(1, 5))
        steps = one_step(
            parallel * int(rng.integers(1, 9)), rng.random() * 9, rng.random() * 30, parallel, rng.random()
        )
        assert play(steps, spec).cycles[0] == pytest.approx(closed_form(steps, spec).cycles[0])


def check_agreement(machine: Target, graph: LayerGraph) -> None:
    """Within 2 % in total, and no layer slower than its closed form."""
    played, priced = machine.play(graph, keep_spans=False), machine.simulate(graph)
    cycles = np.array([layer.cycles for layer in priced.layers])
    assert played.cycles.sum() == pytest.approx(cycles.sum(), rel=0.02)
    assert (played.cycles <= cycles * (1 + 1e-9) + 1e-6).all()


@pytest.mark.parametrize("name", targets())
def test_agrees_with_the_closed_form_on_a_block(name: str) -> None:
    check_agreement(target(name), small_graph())


@pytest.mark.slow
@pytest.mark.parametrize("name", targets())
@pytest.mark.parametrize("network", ["squeezenet1_1", "resnet18"])
def test_agrees_with_the_closed_form_on_networks(name: str, network: str) -> None:
    check_agreement(target(name), table(network))


def test_the_trace_opens_in_perfetto() -> None:
    machine = target("ideal")
    graph = table("squeezenet1_1")
    played = machine.play(graph)
    trace = played.to_perfetto([layer.name for layer in graph], machine.spec.clock_hz)
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert {"ts", "dur", "name", "pid", "tid"} <= set(events[0])
    end = max(event["ts"] + event["dur"] for event in events)
    assert end == pytest.approx(machine.simulate(graph).latency_s * 1e6, rel=0.02)


def test_too_many_waves_are_refused() -> None:
    with pytest.raises(ValueError, match="waves"):
        play(one_step(1e9, 1, 1), machine_with("overlap"))


def bus_machine(overlap: str, bus: str) -> HardwareSpec:
    """Two memories of 2 bytes a cycle, on one bus if it has a name."""
    spec = machine_with(overlap)
    first = spec.memories[0].model_copy(update={"bus": bus})
    return spec.model_copy(update={"memories": (first, first.model_copy(update={"name": "flash"}))})


def two_ports(tiles: float, compute: float, moved: tuple[float, float]) -> Steps:
    arrays = Steps.empty(("s",), ("k",), rows=1, ports=2, components=2)
    arrays["tiles"][:] = tiles
    arrays["slowest_cycles"][:] = compute
    arrays["port_bytes"][0, 0] = moved
    return Steps(**arrays)


@pytest.mark.parametrize(
    ("overlap", "bus", "cycles"),
    [
        ("overlap", "", 3 * 5),  # 3 and 4 cycles side by side, both below 5
        ("overlap", "axi", 3 * 7),  # one after the other: 7
        ("serial", "axi", 3 * (5 + 7)),
        ("double_buffer", "", 4 + 3 * 5),
        ("double_buffer", "axi", 7 + 7 + 7 + 5),
    ],
)
def test_memories_of_one_bus_take_turns(overlap: str, bus: str, cycles: float) -> None:
    steps, spec = two_ports(3, 5, (6, 8)), bus_machine(overlap, bus)
    assert closed_form(steps, spec).cycles.tolist() == [cycles]
    assert play(steps, spec).cycles.tolist() == [cycles]


@pytest.mark.parametrize("overlap", ["overlap", "serial", "double_buffer"])
def test_a_shared_bus_agrees_with_the_closed_form(overlap: str) -> None:
    rng, spec = np.random.default_rng(1), bus_machine(overlap, "axi")
    for _ in range(50):
        steps = two_ports(int(rng.integers(1, 9)), rng.random() * 9, (rng.random() * 20, rng.random() * 20))
        assert play(steps, spec).cycles[0] == pytest.approx(closed_form(steps, spec).cycles[0])
