"""What must follow a graph's channel groups in layers whose answers nothing uses: worked by hand."""

import numpy as np
import pytest

from tests.workloads.channel_graphs import Net
from workloads.channels import analyze
from workloads.graph import LayerGraph
from workloads.unread import Followers, followers


def followed(net: Net, output: str, count: int) -> Followers:
    """The last `count` layers of a net are unread."""
    layers = tuple(net.layers.values())
    graph = LayerGraph("net", layers[: len(layers) - count], (output,)).verify()
    return followers(analyze(graph), layers, (output,))


@pytest.fixture
def net() -> Net:
    """x - stem (8) - relu - last (5)."""
    found = Net(1, 3, 6, 6)
    found.conv("stem", "x", 8)
    found.relu("relu", "stem")
    found.conv("last", "relu", 5, r=1)
    return found


def places(found: Followers, group: str) -> dict[tuple[str, str, int], tuple[list[int], list[int]]]:
    """(layer, array, axis) -> positions and the units that they belong to."""
    members = found.members.get(group, ())
    return {(m.layer, m.array, m.axis): (m.index.tolist(), m.unit.tolist()) for m in members}


def test_a_network_without_such_layers_has_no_followers(net: Net) -> None:
    found = followed(net, "last", 0)
    assert (dict(found.members), dict(found.reasons)) == ({}, {})


def test_a_reader_is_cut_where_it_reads(net: Net) -> None:
    net.conv("extra", "relu", 7)
    found = followed(net, "last", 1)
    assert places(found, "stem") == {("extra", "extra.weight", 1): ([*range(8)], [*range(8)])}
    assert not found.reasons


def test_a_reader_of_a_concatenation_is_cut_at_its_offset(net: Net) -> None:
    net.conv("side", "x", 2)  # read by nothing but the concatenation: no group of the graph
    net.concat("both", "side", "relu")
    net.conv("extra", "both", 4, r=1)
    found = followed(net, "last", 3)
    assert places(found, "stem") == {("extra", "extra.weight", 1): ([*range(2, 10)], [*range(8)])}


def test_what_is_added_follows_whole(net: Net) -> None:
    net.conv("extra", "relu", 8)
    net.plus("sum", "relu", "extra")
    found = followed(net, "last", 2)
    everything = ([*range(8)], [*range(8)])
    assert not found.reasons
    assert places(found, "stem") == dict.fromkeys(
        [("extra", "extra.weight", 0), ("extra", "extra.bias", 0), ("extra", "extra.weight", 1)], everything
    )


def test_groups_that_only_such_a_layer_joins_are_left_alone(net: Net) -> None:
    net.layers.pop("last")
    net.conv("middle", "relu", 8)
    net.conv("last", "middle", 5, r=1)
    net.plus("sum", "relu", "middle")
    found = followed(net, "last", 1)
    why = "'sum' runs but its answer is not used, and joins channels that are free otherwise"
    assert dict(found.reasons) == {"stem": why, "middle": why}


def test_a_count_that_no_weight_gives_is_a_reason(net: Net) -> None:
    net.conv("depthwise", "relu", 8, groups=8)
    found = followed(net, "last", 1)
    assert dict(found.reasons) == {"stem": "'depthwise' runs but its answer is not used"}


def test_positions_are_in_units_of_their_own_group(net: Net) -> None:
    net.layers.pop("last")
    net.conv("middle", "relu", 6)
    net.conv("last", "middle", 5, r=1)
    net.conv("extra", "middle", 4)
    found = followed(net, "last", 1)
    assert places(found, "middle") == {("extra", "extra.weight", 1): ([*range(6)], [*range(6)])}
    assert not places(found, "stem")
    assert all(isinstance(m.index, np.ndarray) for group in found.members.values() for m in group)
