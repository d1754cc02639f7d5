"""Cascades: stripes of the vendor's compiler, buffers that fit, and where tensors live."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_models.npu.ethos_cascade import _Graphs
from accel_models.placement import Placement, place
from accel_models.registry import target
from workloads.columns import Columns
from workloads.graph import Layer, LayerGraph, Op
from workloads.tables import table


def placed(machine: str, name: str) -> dict[str, tuple[int, int, int]]:
    """(home of the first input, home of the output, stripe) of every layer."""
    graph = table(name).with_precision("int8")
    found = place(graph.columns, graph.topology, target(machine).spec)
    columns = zip(graph, found.first, found.output, found.stripe, strict=True)
    return {layer.name: (int(first), int(output), int(stripe)) for layer, first, output, stripe in columns}


def test_stripes_of_mobilenet_are_the_compilers() -> None:
    u85, u65 = placed("ethos_u85_256", "mobilenet_v2"), placed("ethos_u65_256", "mobilenet_v2")
    first = ("features.0.0", "features.1.conv.0.0", "features.1.conv.1", "features.2.conv.0.0")
    for found in (u85, u65):
        assert [found[name][2] for name in first] == [6, 6, 6, 6]
        assert [found[f"features.2.conv.{i}"][2] for i in ("1.0", "2")] == [3, 3]
    assert [u65[f"features.3.conv.{i}"][2] for i in ("0.0", "1.0", "2")] == [10, 10, 10]
    assert [u85[f"features.3.conv.{i}"][2] for i in ("0.0", "1.0", "2")] == [21, 21, 0]  # the add runs with the third
    assert u65["features.3.add"][2] == 18  # the next cascade begins with it
    assert u65["features.5.conv.0.0"][2] == 0  # fits by itself


def test_a_cascade_is_entered_and_left_through_dram() -> None:
    found = placed("ethos_u65_256", "mobilenet_v2")
    assert found["features.0.0"][:2] == (1, 0)  # reads the image, leaves a rolling buffer in SRAM
    assert found["features.1.conv.0.0"][:2] == (0, 0)
    assert found["features.2.conv.2"][:2] == (0, 1)
    assert found["features.8.conv.0.0"][:2] == (0, 0)  # later layers stay in SRAM
    assert found["classifier.1"][1] == 1  # what leaves the network


def test_a_machine_without_dram_for_features_runs_layers_whole() -> None:
    found = placed("ethos_u55_256", "mobilenet_v2")
    assert {stripe for *_, stripe in found.values()} == {0}
    assert {home for home, *_ in found.values()} == {0}


def chain(channels: int, side: int, layers: int = 3) -> LayerGraph:
    """3x3 convolutions one after another."""
    x = Layer("x", Op.INPUT, (1, channels, side, side), k=channels, c=channels, p=side, q=side)
    nest = {"k": channels, "c": channels, "p": side, "q": side, "in_h": side, "in_w": side, "r": 3, "s": 3}
    made = [x]
    for i in range(layers):
        shape, weight = (1, channels, side, side), f"{i}.weight"
        made.append(Layer(f"c{i}", Op.CONV, shape, (made[-1].name,), weight=weight, padding=(1, 1, 1, 1), **nest))  # type: ignore[arg-type]
    return LayerGraph("chain", tuple(made), (made[-1].name,)).with_precision("int8").verify()


def test_rolling_buffers_by_hand() -> None:
    # Two layers of 16 channels on 64 x 64: 65536 bytes each, so neither fits 100000 by itself. Between them, stripes of
    # h rows need up(h + h + 2, h + 2) rows of 64 * 16 bytes: 2 (h + 2). Weights: 2 * (2304 + 160) = 4928 bytes.
    # h = 32: 68 rows = 69632 fits, and half of the rows is the most.
    graph = chain(16, 64, layers=2)
    found = _Graphs(graph.columns, graph.topology, 100_000, absorbs_adds=False)
    (made,) = found._chains()
    assert made.layers.tolist() == [[1, 2]]
    cut = found._cut_to_fit(made)
    assert cut.stripe.tolist() == [[32, 32]]
    assert cut.bytes.tolist() == [[68 * 1024 + 4928] * 2]
    tight = _Graphs(graph.columns, graph.topology, 40_000, absorbs_adds=False)
    assert tight._cut_to_fit(tight._chains()[0]).stripe.tolist() == [[15, 15]]  # 2 * 17 rows + weights = 39744


def test_a_long_chain_is_cut() -> None:
    graph = chain(
        64, 64, layers=6
    )  # 36864 + 640 bytes of weights each: three of them overflow 128 KB with their buffers
    found = _Graphs(graph.columns, graph.topology, 131_072, absorbs_adds=False)
    cascades = [found._cut_to_fit(chains) for chains in found._chains()]
    assert all((cut.bytes <= 131_072).all() for cut in cascades)
    assert sum(chains.layers.size for chains in found._chains()) == 6
    assert sum(int(cut.count.sum()) for cut in cascades) >= 2


@given(st.integers(1, 12), st.integers(8, 100), st.integers(2, 6), st.integers(20_000, 400_000))
@settings(max_examples=40, deadline=None)
def test_cascades_fit(eights: int, side: int, layers: int, capacity: int) -> None:
    """Buffers of every cascade fit, stripes lie within their layers, and one more row would need more cuts."""
    graph = chain(8 * eights, side, layers)
    found = _Graphs(graph.columns, graph.topology, capacity, absorbs_adds=False)
    for made in found._chains():
        cut = found._cut_to_fit(made)
        assert ((cut.bytes <= capacity) | cut.is_alone).all()
        assert (cut.stripe >= 1).all()
        last = cut.stripe[:, -1]
        assert (last <= (side + 1) // 2).all()
        more = found._cut(made, last + 1)
        assert ((last == (side + 1) // 2) | (more.count > cut.count)).all()


def test_candidates_are_placed_as_each_by_itself() -> None:
    graphs = [chain(channels, 64) for channels in (16, 48, 96)]
    spec = target("ethos_u65_256").spec
    together = place(Columns.concatenate([g.columns for g in graphs]), graphs[0].topology, spec)
    for i, graph in enumerate(graphs):
        part = together.take(slice(4 * i, 4 * i + 4))
        alone = place(graph.columns, graph.topology, spec)
        for name in ("first", "other", "output", "stripe"):
            np.testing.assert_array_equal(getattr(part, name), getattr(alone, name))


def test_a_stripe_leaves_flatter_blocks_and_more_traffic() -> None:
    machine = target("ethos_u85_256")
    graph = table("mobilenet_v2").with_precision("int8")
    at = slice(graph.index["features.2.conv.0.0"], graph.index["features.2.conv.0.0"] + 1)
    rows = graph.columns.take(at)
    striped = place(graph.columns, graph.topology, machine.spec).take(at)
    whole = Placement(striped.first, striped.other, striped.output, np.zeros(1, np.int64))
    cycles = [float(machine.price(rows, placement=each).cycles[0]) for each in (striped, whole)]
    assert cycles[0] == pytest.approx(787499, rel=0.001)  # the estimator's
    assert cycles[1] < 0.97 * cycles[0]
