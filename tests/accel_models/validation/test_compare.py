"""Published rows against predictions: reading them, and errors with and without a row's circumstances."""

from __future__ import annotations

import dataclasses
import json

import pytest

from accel_models import targets
from accel_models.validation import FOLDER, error_bar
from accel_models.validation.compare import compare, compare_as_shipped, layer_graph, rows, summary


@pytest.mark.parametrize("name", targets())
def test_the_stored_error_is_the_computed_one(name: str) -> None:
    found = summary(compare(name))
    assert found == error_bar(name)
    assert (found is not None) == (name in json.loads((FOLDER / "errors.json").read_text()))


@pytest.mark.parametrize("name", targets())
def test_every_row_says_where_it_is_from(name: str) -> None:
    found = rows(name)
    assert len({row.id for row in found}) == len(found)
    assert all(row.source and row.kind and row.value > 0 for row in found)


def test_single_layers_are_also_priced_as_if_inside_a_network() -> None:
    shipped = compare_as_shipped("ethos_u55_256")
    assert {item.row.id for item in shipped} == {r.id for r in rows("ethos_u55_256") if r.id.startswith("sweep")}
    assert not any(item.row.overrides for item in shipped)
    with_own, without = summary(compare("ethos_u55_256")), summary(shipped)
    assert with_own is not None
    assert without is not None
    assert with_own.median < 0.01 < without.median < 0.05
    assert 0.2 < without.worst < 0.5  # a layer by itself is another case than one inside a network


def test_threads_belong_to_the_published_run() -> None:
    assert compare_as_shipped("snapdragon_855_cpu") == []


def test_an_error_has_a_sign() -> None:
    item = compare("snapdragon_855plus_cpu")[0]
    assert dataclasses.replace(item, predicted=1.25 * item.row.value).error == pytest.approx(0.25)
    assert dataclasses.replace(item, predicted=0.5 * item.row.value).error == pytest.approx(-0.5)


def test_a_written_layer() -> None:
    graph = layer_graph("conv c=8 k=16 h=9 r=3 stride=2 density=0.5 groups=2")
    layer = graph["layer"]
    assert layer.shape == (1, 16, 5, 5)
    assert layer.padding == (1, 1, 1, 1)
    assert graph.macs == 16 * 4 * 9 * 25
    assert layer.sparsity is not None
    assert layer.sparsity.density == 0.5
