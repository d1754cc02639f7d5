"""Which memory holds which tensor: by hand on small graphs, and against a plain loop on random ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from accel_models.placement import place
from accel_models.registry import target
from accel_models.spec import HardwareSpec
from workloads.graph import Layer, LayerGraph, Op, Topology


def with_memory(size_bytes: float) -> HardwareSpec:
    """A machine whose first feature memory has that many bytes."""
    spec = target("snapdragon_855_cpu").spec
    assert spec.feature_memories == ("l3", "dram")
    memories = tuple(m.model_copy(update={"size_bytes": size_bytes}) if m.name == "l3" else m for m in spec.memories)
    return spec.model_copy(update={"memories": memories})


def layer(name: str, op: Op, elements: int, *inputs: str) -> Layer:
    """A tensor of one byte an element."""
    known: dict[Op, dict[str, Any]] = {Op.ADD: {"kind": "add"}, Op.CONCAT: {"axis": 1}, Op.ACTIVATION: {"kind": "relu"}}
    attributes = known.get(op, {})
    return Layer(name, op, (1, elements), inputs, k=elements, c=elements, activation_bits=8, attributes=attributes)


def chain(*outputs: str) -> LayerGraph:
    """x (10) -> a (10) -> view (10) -> b (10) -> sum (10) with x; the view holds nothing itself."""
    layers = (
        layer("x", Op.INPUT, 10),
        layer("a", Op.ACTIVATION, 10, "x"),
        layer("view", Op.RESHAPE, 10, "a"),
        layer("b", Op.ACTIVATION, 10, "view"),
        layer("sum", Op.ADD, 10, "b", "x"),
    )
    return LayerGraph("chain", layers, outputs or ("sum",)).verify()


def test_what_fits_stays() -> None:
    """At most x, a and b, or x, b and sum are alive together: 30 bytes."""
    graph = chain()
    found = place(graph.columns, graph.topology, with_memory(30))
    assert (found.output[[0, 1, 3, 4]] == 0).all()


def test_the_tensor_that_lives_longest_leaves_first_of_equal_ones() -> None:
    graph = chain()
    found = place(graph.columns, graph.topology, with_memory(29))
    assert found.output.tolist() == [1, 0, 0, 0, 0]
    assert (found.first[1], found.other[4]) == (1, 1)  # who reads x reads it from there
    assert found.first[4] == 0


def test_a_view_is_read_where_its_source_lies() -> None:
    graph = chain()
    wide = graph.columns.replace(output_elements=np.array([10, 40, 40, 10, 10]))
    found = place(wide, graph.topology, with_memory(30))
    assert found.output[1] == 1
    assert found.first[3] == 1


def test_an_output_of_the_network_is_kept_to_the_end() -> None:
    """With a as an output too, x, a, b and sum are alive together."""
    assert chain("sum").liveness[:, 4].tolist() == [True, False, False, True, True]
    assert chain("view", "sum").liveness[:, 4].tolist() == [True, True, False, True, True]
    graph = chain("view", "sum")
    assert place(graph.columns, graph.topology, with_memory(30)).output.sum() == 1


def test_three_readers_of_a_concat() -> None:
    parts = [layer(name, Op.ACTIVATION, 8, "x") for name in ("a", "b", "c")]
    whole = LayerGraph("cat", (layer("x", Op.INPUT, 8), *parts, layer("y", Op.CONCAT, 24, "a", "b", "c")), ("y",))
    assert whole.verify().liveness[:, 4].tolist() == [False, True, True, True, True]
    found = place(whole.columns, whole.topology, with_memory(47))
    assert found.output.tolist() == [0, 0, 0, 0, 1]  # 24 + 24 bytes do not fit; the largest goes


@pytest.mark.parametrize("seed", range(12))
def test_against_a_plain_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers, candidates = 9, 5
    ends = np.minimum(np.arange(layers) + rng.integers(0, 5, layers), layers - 1)
    steps = np.arange(layers)
    liveness = (steps >= steps[:, None]) & (steps <= ends[:, None])
    previous = np.arange(layers) - 1
    topology = Topology(liveness, previous, np.full(layers, -1))
    base = chain().columns.take(np.zeros(layers * candidates, int))
    sizes = rng.integers(1, 50, (candidates, layers))
    capacity = int(rng.integers(20, 120))
    found = place(base.replace(output_elements=sizes.ravel()), topology, with_memory(capacity))
    for row, home in zip(sizes, found.output.reshape(candidates, layers), strict=True):
        kept = np.ones(layers, bool)
        while (over := row * kept @ liveness > capacity).any():
            kept[np.argmax(np.where(kept & liveness[:, over].any(axis=1), row, -1))] = False
        assert home.tolist() == (~kept).astype(int).tolist()
        assert (row * kept @ liveness <= capacity).all()
    np.testing.assert_array_equal(
        found.first.reshape(candidates, layers)[:, 1:], found.output.reshape(candidates, layers)[:, :-1]
    )
