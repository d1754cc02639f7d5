"""The columnar view: what of a row depends on its place in the graph."""

from __future__ import annotations

import numpy as np

from workloads.channels import analyze
from workloads.columns import Columns
from workloads.graph import Layer, LayerGraph, Op


def graph() -> LayerGraph:
    """Input, view, two convolutions, a view and a linear layer, whose output is looked at through another view."""
    x = Layer("x", Op.INPUT, (1, 8, 4, 4), k=8, c=8, p=4, q=4)
    nest = {"k": 8, "c": 8, "p": 4, "q": 4, "in_h": 4, "in_w": 4}
    same = {"attributes": {"shape": (1, 8, 4, 4)}}
    return LayerGraph(
        "views",
        (
            x,
            Layer("view", Op.RESHAPE, (1, 8, 4, 4), ("x",), k=8, c=8, p=4, q=4, **same),  # type: ignore[arg-type]
            Layer("a", Op.CONV, (1, 8, 4, 4), ("view",), weight="a.weight", **nest),  # type: ignore[arg-type]
            Layer("b", Op.CONV, (1, 8, 4, 4), ("a",), weight="b.weight", **nest),  # type: ignore[arg-type]
            Layer("seen", Op.RESHAPE, (1, 8, 4, 4), ("b",), k=8, c=8, p=4, q=4, **same),  # type: ignore[arg-type]
        ),
        ("seen",),
    )


def test_rows_know_whether_they_touch_the_interface() -> None:
    columns = graph().columns
    assert columns.from_input.tolist() == [0, 1, 1, 0, 0]  # through a view too
    assert columns.to_output.tolist() == [0, 0, 0, 1, 0]  # the layer that holds the tensor


def test_candidates_keep_their_place_in_the_graph() -> None:
    from workloads.tables import table

    network = table("resnet8")
    analysis = analyze(network)
    counts = np.array([[max(1, group.size // 2) for group in analysis.groups if group.prunable]] * 2)
    names = tuple(group.name for group in analysis.groups if group.prunable)
    both = analysis.columns(counts, names)
    np.testing.assert_array_equal(both.from_input, np.tile(network.columns.from_input, 2))
    np.testing.assert_array_equal(both.to_output, np.tile(network.columns.to_output, 2))
    assert both.from_input.sum() == 2
    assert both.to_output.sum() == 2


def test_equal_layers_in_other_places_stay_distinct() -> None:
    row = graph().columns.take(slice(3, 4))
    rows = Columns.concatenate([row, row.replace(from_input=np.array([1])), row])
    first, inverse = rows.distinct()
    assert len(first) == 2
    assert inverse[0] == inverse[2] != inverse[1]
