"""Channel groups: indices worked by hand, laws on every topology, random networks, and what is refused and why."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.workloads.channel_graphs import GRAPHS, Net, attention, fire, option_a, plain, recurrent, resnet50
from workloads.channel_groups import ChannelGroup
from workloads.channel_rules import RULES
from workloads.channel_tables import components
from workloads.channels import ChannelAnalysis, analyze
from workloads.columns import ARRAY_FIELDS
from workloads.errors import PlanError
from workloads.graph import LayerGraph, Op
from workloads.lowering import lower, lower_with_weights
from workloads.models import build, example_input
from workloads.reference import run
from workloads.sparsity import WeightSparsity
from workloads.verify import array_shapes, verify_weights

Units = dict[str, np.ndarray]
every_graph = pytest.mark.parametrize("make", GRAPHS.values(), ids=GRAPHS)


def sizes(analysis: ChannelAnalysis) -> dict[str, int]:
    return {group.name: group.size for group in analysis.groups if group.prunable}


def random_units(analysis: ChannelAnalysis, rng: np.random.Generator) -> Units:
    """Units of each group, drawn again until no layer is left without channels."""
    while True:
        found = {name: rng.permutation(size)[: rng.integers(1, size + 1)] for name, size in sizes(analysis).items()}
        try:
            analysis.graph_units(found)
        except PlanError as error:
            assert "would keep no channel" in str(error)  # noqa: PT017
        else:
            return found


def random_counts(analysis: ChannelAnalysis, rng: np.random.Generator) -> dict[str, int]:
    return {name: int(rng.integers(analysis.group(name).minimum, size + 1)) for name, size in sizes(analysis).items()}


def random_weights(graph: LayerGraph, rng: np.random.Generator) -> dict[str, np.ndarray]:
    shapes = {key: shape[0] for layer in graph for key, shape in array_shapes(layer).items()}
    return {key: rng.normal(size=shape) for key, shape in shapes.items()}


def silenced(analysis: ChannelAnalysis, weights: dict[str, np.ndarray], units: Units) -> dict[str, np.ndarray]:
    """The weights of the whole network, with all that makes or shifts a removed channel set to zero."""
    found = {key: array.copy() for key, array in weights.items()}
    for name, kept in units.items():
        group = analysis.group(name)
        gone = np.setdiff1d(np.arange(group.size), kept)
        for member in group.members:
            if member.role != "input":
                positions = member.index[np.isin(member.unit, gone)]
                np.moveaxis(found[member.array], member.axis, 0)[positions] = 0
    return found


def assert_removal_is_silence(
    graph: LayerGraph, rng: np.random.Generator, weights: dict[str, np.ndarray] | None = None
) -> None:
    """Removing units gives what zeros in their place give; with random weights where none are given."""
    analysis, weights = analyze(graph), weights or random_weights(graph, rng)
    units = random_units(analysis, rng)
    small, cut = analysis.graph_units(units), analysis.weights(weights, units)
    verify_weights(small, cut)
    x = rng.normal(size=graph.inputs[0].shape)
    expected, found = run(graph, silenced(analysis, weights, units), x), run(small, cut, x)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


def assert_same_columns(analysis: ChannelAnalysis, rng: np.random.Generator, candidates: int = 8) -> None:
    """One row a layer and candidate, equal to the row that the candidate's own graph has."""
    drawn = [random_counts(analysis, rng) for _ in range(candidates)]
    counts = np.array([[counts[name] for name in analysis.names] for counts in drawn]).reshape(candidates, -1)
    columns = analysis.columns(counts)
    for i, counts_by_name in enumerate(drawn):
        graph = analysis.graph(counts_by_name)
        rows = columns.take(slice(i * len(graph), (i + 1) * len(graph)))
        for field in ARRAY_FIELDS:
            if field == "input_density_variance":  # kept too, but for densities that would leave 0..1
                continue
            np.testing.assert_allclose(getattr(rows, field), getattr(graph.columns, field), rtol=1e-12, err_msg=field)
            assert getattr(rows, field).dtype == getattr(graph.columns, field).dtype, field


# ---- worked by hand -------------------------------------------------------------------------------------------------


def test_a_flattened_channel_owns_all_its_pixels() -> None:
    """b has 5 channels of 4x4; channel 1 is columns 16..31 of the linear layer."""
    group = analyze(plain()).group("b")
    assert group.size == 5
    assert (group.producers, group.consumers) == (("b",), ("c",))
    assert group.indices("b", "output", [1]).tolist() == [1]
    assert group.indices("b", "bias", [1, 3]).tolist() == [1, 3]
    assert group.indices("c", "input", [1]).tolist() == list(range(16, 32))
    small = analyze(plain()).graph({"b": 3})
    assert (small["b"].k, small["flat"].shape, small["c"].c) == (3, (2, 48), 48)


def test_option_a_ties_the_narrow_stream_to_a_window_of_the_wide_one() -> None:
    """4 -> 8 -> 16 channels: channel u of the first stage is u + 2 in the second and u + 2 + 4 in the third."""
    analysis = analyze(option_a())
    group = analysis.group("conv1")
    assert group.size == 16
    for unit in range(4):
        assert group.indices("conv1", "output", [unit]).tolist() == [unit]
        assert group.indices("layer2.0.conv2", "output", [unit]).tolist() == [unit + 2]
        assert group.indices("layer3.0.conv2", "output", [unit]).tolist() == [unit + 6]
        assert group.indices("linear", "input", [unit]).tolist() == [unit + 6]
    later = [u for u in range(16) if not len(group.indices("layer2.0.conv2", "output", [u]))]
    assert len(later) == 8  # eight channels live in the third stage only, four in the last two
    gone = [2, later[0], *[u for u in range(4, 16) if u not in later][:1]]
    small = analysis.graph_units({"conv1": np.setdiff1d(np.arange(16), gone)})
    assert [small[name].k for name in ("conv1", "layer2.0.conv2", "layer3.0.conv2")] == [3, 6, 13]
    pads = [small[f"layer{stage}.0.pad"].attributes for stage in (2, 3)]
    assert [(pad["before"][1], pad["after"][1]) for pad in pads] == [(1, 2), (3, 4)]


def test_a_count_keeps_every_stage_s_share() -> None:
    analysis = analyze(option_a())
    half = analysis.graph({"conv1": 8})
    assert [half[name].k for name in ("conv1", "layer2.0.conv2", "layer3.0.conv2")] == [2, 4, 8]
    assert (half["layer3.0.pad"].attributes["before"][1], half["layer3.0.pad"].attributes["after"][1]) == (2, 2)
    assert [analysis.graph({"conv1": 1})[name].k for name in ("conv1", "layer3.0.conv2")] == [1, 1]


def test_heads_keep_their_size() -> None:
    """Three heads of four channels: a unit is a head in queries, keys, values and the projection's columns."""
    for graph, makers in ((attention(), ("q", "k", "v")), (attention(packed=True), ("qkv",))):
        group = analyze(graph).group(makers[0])
        assert (group.size, group.producers, group.consumers) == (3, makers, ("project",))
        assert group.indices("project", "input", [1]).tolist() == [4, 5, 6, 7]
        small = analyze(graph).graph({makers[0]: 2})
        scores, whole = small["scores"], graph["scores"]
        assert (scores.shape, scores.n, scores.p, scores.c, scores.k) == ((1, 2, 5, 5), 2, 5, 4, 5)
        assert (small["mixed"].macs * 3, small["merge"].shape) == (graph["mixed"].macs * 2, (1, 5, 8))
        assert whole.attributes == scores.attributes
    assert analyze(graph).group("qkv").indices("qkv", "output", [1]).tolist() == [
        *range(4, 8),
        *range(16, 20),
        *range(28, 32),
    ]


def test_attention_with_the_batch_merged_into_the_heads() -> None:
    """The layout of torch's MultiheadAttention: (tokens, batch, features) -> (batch heads, tokens, width)."""
    tokens, batch, heads, width = 5, 2, 3, 4
    net = Net(tokens, batch, 6, axis=2)
    packed = net.linear("qkv", "x", 3 * heads * width)
    split = net.reshape("split", packed, 1, tokens, batch, 3, heads * width, axis=4)
    turned = net.transpose("turn", split, 3, 1, 2, 0, 4, axis=4)
    parts = []
    for i, name in enumerate("qkv"):
        one = net.reshape(
            f"{name}_one", net.cut(f"{name}_cut", turned, i, 1, axis=0), tokens, batch * heads, width, axis=2
        )
        parts.append(net.transpose(f"{name}_heads", one, 1, 0, 2, axis=2))
    q, k, v = parts
    scores = net.matmul("scores", q, net.transpose("k_turn", k, 0, 2, 1, axis=2))
    mixed = net.transpose("back", net.matmul("mixed", scores, v), 1, 0, 2, axis=2)
    net.linear("project", net.reshape("merge", mixed, tokens * batch, heads * width), 7)
    graph = net.graph()
    group = analyze(graph).group("qkv")
    assert group.size == 3
    assert group.indices("qkv", "output", [2]).tolist() == [*range(8, 12), *range(20, 24), *range(32, 36)]
    assert analyze(graph).graph({"qkv": 2})["scores"].shape == (4, 5, 5)
    assert_removal_is_silence(graph, np.random.default_rng(0))


def test_grouped_convolutions_keep_their_groups_equal() -> None:
    """Two groups of eight: the same channel of both goes. Eight groups of two: whole groups go."""
    two, eight = analyze(GRAPHS["grouped_2"]()), analyze(GRAPHS["grouped_8"]())
    assert {name: group.size for name, group in two.by_name.items()} == {"before": 8, "middle": 16, "after": 5}
    assert two.group("before").indices("before", "output", [3]).tolist() == [3, 11]
    assert two.group("before").indices("middle", "input", [3]).tolist() == [3]
    assert two.group("middle").indices("middle", "output", [3]).tolist() == [3, 19]
    assert (two.graph({"before": 5})["middle"].c, two.graph({"before": 5})["middle"].groups) == (10, 2)
    assert sizes(eight) == {"before": 8}
    assert eight.group("before").indices("before", "output", [3]).tolist() == [6, 7]
    assert eight.group("before").indices("middle", "depthwise", [3]).tolist() == [12, 13, 14, 15]
    small = eight.graph({"before": 5})["middle"]
    assert (small.c, small.k, small.groups, small.weight_shape) == (10, 20, 5, (20, 2, 3, 3))


def test_depthwise_filters_go_with_their_input() -> None:
    analysis = analyze(GRAPHS["inverted_residual"]())
    assert sizes(analysis) == {"stem": 8, "expand": 12}
    assert analysis.group("expand").indices("depthwise", "depthwise", [4]).tolist() == [4]
    assert analysis.group("stem").indices("double", "depthwise", [4]).tolist() == [8, 9]
    small = analysis.graph({"stem": 5, "expand": 7})
    assert (small["depthwise"].groups, small["depthwise"].k, small["double"].k, small["last"].c) == (7, 7, 10, 10)
    assert small["depthwise"].is_depthwise


def test_concat_has_offsets_and_each_part_its_own_group() -> None:
    analysis = analyze(fire())
    assert sizes(analysis) == {"squeeze": 6, "left": 8, "right": 10, "new": 4}
    assert analysis.group("right").indices("new", "input", [0, 9]).tolist() == [8, 17]
    assert analysis.group("new").indices("last", "input", [1]).tolist() == [19]
    assert analysis.graph({"left": 3, "new": 1})["last"].c == 3 + 10 + 1 + 3  # the network input stays


def test_shuffle_and_equal_split_tie_both_halves() -> None:
    """Channel i of the left half, of the right half and of the branch that is shuffled with the left one."""
    analysis = analyze(GRAPHS["shuffle_unit"]())
    assert sizes(analysis) == {"stem": 8, "inner": 8}
    group = analysis.group("stem")
    assert group.indices("stem", "output", [3]).tolist() == [3, 11]
    assert group.indices("branch", "output", [3]).tolist() == [3]
    assert group.indices("last", "input", [3]).tolist() == [6, 7]
    small = analysis.graph({"stem": 5})
    assert (small["left"].shape[1], small["right"].attributes["starts"][1], small["shuffle"].shape[1]) == (5, 5, 10)


def test_parts_of_unequal_size_shrink_by_themselves() -> None:
    analysis = analyze(GRAPHS["uneven_split"]())
    assert analysis.group("stem").minimum == 2  # one channel for each part
    small = analysis.graph_units({"stem": [1, 5, 8, 9]})
    assert (small["low"].shape[1], small["high"].shape[1], small["high"].attributes["starts"][1]) == (1, 3, 1)


def test_a_hidden_unit_owns_four_gates_and_its_feedback() -> None:
    """Forward LSTM of 7 inputs and 4 hidden units: unit 2 is rows 2, 6, 10, 14 and column 7 + 2."""
    group = analyze(recurrent()).group("forward")
    assert group.indices("forward", "output", [2]).tolist() == [2, 6, 10, 14]
    assert group.indices("forward", "input", [2]).tolist() == [9]
    assert group.indices("forward", "bias", [2]).tolist() == [2, 6, 10, 14]
    small = analyze(recurrent()).graph({"forward": 3, "embed": 5})["forward"]
    assert (small.k, small.c, small.attributes["hidden"], small.shape) == (12, 8, 3, (2, 5, 3))


def test_pixel_shuffle_takes_and_gives_squares() -> None:
    analysis = analyze(GRAPHS["pixels"]())
    assert analysis.group("a").indices("a", "output", [1]).tolist() == [4, 5, 6, 7]
    assert analysis.group("a").indices("b", "input", [1]).tolist() == [1]
    assert analysis.group("b").indices("c", "input", [1]).tolist() == [4, 5, 6, 7]
    assert analysis.group("c").indices("up", "input", [1]).tolist() == [1]  # axis 0 of a transposed weight
    assert {member.axis for member in analysis.group("c").members if member.layer == "up"} == {0}


def test_a_group_norm_loses_whole_groups() -> None:
    analysis = analyze(GRAPHS["norms"]())
    assert sizes(analysis) == {"a": 8, "b": 4, "c": 6, "d": 6}
    assert analysis.group("b").indices("group", "norm", [1]).tolist() == [3, 4, 5]
    small = analysis.graph({"b": 3})["group"]
    assert (small.shape[1], small.attributes["groups"]) == (9, 3)


def test_layers_that_share_a_weight_are_tied() -> None:
    analysis = analyze(GRAPHS["shared"]())
    assert sizes(analysis) == {"stem": 8}  # the shared layer reads what it makes
    group = analysis.group("stem")
    assert set(group.producers) == {"stem", "once", "twice"}
    assert group.indices("offset", "constant", [5]).tolist() == [5]


def test_squeeze_excite_ties_the_gate_to_what_it_scales() -> None:
    analysis = analyze(GRAPHS["squeeze_excite"]())
    assert sizes(analysis) == {"stem": 8, "down": 4, "down2": 3}
    assert set(analysis.group("stem").producers) == {"stem", "up", "up2"}


def test_grouped_query_attention_ties_queries_to_their_key() -> None:
    """Four query heads of two channels, two key heads: a unit is a key head and the two queries that use it."""
    net = Net(1, 5, 6, axis=2)
    q = net.transpose("qh", net.reshape("qs", net.linear("q", "x", 8), 1, 5, 4, 2, axis=3), 0, 2, 1, 3, axis=3)
    k = net.transpose("kh", net.reshape("ks", net.linear("k", "x", 4), 1, 5, 2, 2, axis=3), 0, 2, 3, 1, axis=3)
    wide = net.add("wide", Op.EXPAND, (1, 2, 2, 2, 5), net.reshape("k5", k, 1, 2, 1, 2, 5))
    net.matmul("scores", q, net.reshape("k4", wide, 1, 4, 2, 5))
    net.conv("last", "scores", 3, r=1)
    group = analyze(net.graph()).group("q")
    assert group.size == 2
    assert group.indices("q", "output", [1]).tolist() == [4, 5, 6, 7]
    assert group.indices("k", "output", [1]).tolist() == [2, 3]
    assert_removal_is_silence(net.graph(), np.random.default_rng(0))


def test_a_matmul_ties_what_it_sums_over() -> None:
    """Attention with one head and no reshape: channel i of the queries goes with channel i of the keys."""
    net = Net(1, 5, 6, axis=2)
    q, k, v = (net.linear(name, "x", 7) for name in "qkv")
    scores = net.matmul("scores", q, net.transpose("turn", k, 0, 2, 1))
    net.linear("last", net.matmul("mixed", scores, v), 3)
    analysis = analyze(net.graph())
    assert sizes(analysis) == {"q": 7, "v": 7}
    assert analysis.group("q").producers == ("q", "k")
    small = analysis.graph({"q": 4, "v": 6})
    assert (small["scores"].c, small["scores"].k, small["mixed"].c, small["mixed"].k) == (4, 5, 5, 6)
    assert_removal_is_silence(analysis.source, np.random.default_rng(0))


# ---- laws, on every topology ----------------------------------------------------------------------------------------


@every_graph
def test_removed_units_leave_what_zeros_in_their_place_leave(make: Callable[[], LayerGraph]) -> None:
    for seed in range(4):
        assert_removal_is_silence(make(), np.random.default_rng(seed))


@every_graph
def test_columns_are_those_of_the_graph(make: Callable[[], LayerGraph]) -> None:
    assert_same_columns(analyze(make()), np.random.default_rng(1))


@every_graph
def test_a_count_is_the_first_units_of_the_order(make: Callable[[], LayerGraph]) -> None:
    analysis, rng = analyze(make()), np.random.default_rng(2)
    for _ in range(4):
        counts = random_counts(analysis, rng)
        graph = analysis.graph(counts).verify()
        assert graph == analysis.graph_units({name: analysis.group(name).kept(n) for name, n in counts.items()})
        assert [graph[name].weight for name in graph.index] == [layer.weight for layer in analysis.source]


@every_graph
def test_all_units_are_the_same_graph(make: Callable[[], LayerGraph]) -> None:
    graph = make()
    analysis = analyze(graph)
    everything = {group.name: group.size for group in analysis.groups}  # those that cannot change included
    assert graph.with_channels(everything) == graph == analysis.graph({})
    assert analysis.graph_units({name: np.arange(size) for name, size in everything.items()}) == graph
    weights = random_weights(graph, np.random.default_rng(0))
    assert all(array is weights[key] for key, array in analysis.weights(weights, {}).items())


@every_graph
def test_members_cover_every_weight_axis_once(make: Callable[[], LayerGraph]) -> None:
    """Each filter, and each input channel that is not the network's, belongs to one unit."""
    graph = make()
    analysis = analyze(graph)
    owned: dict[tuple[str, str, str, int], list[int]] = {}
    for group in analysis.groups:
        assert np.array_equal(np.sort(group.order), np.arange(group.size))
        units = set()
        for member in group.members:
            units |= set(member.unit.tolist())
            owned.setdefault((member.layer, member.array, member.role, member.axis), []).extend(member.index.tolist())
        assert units == set(range(group.size))
    for key, positions in owned.items():
        assert len(set(positions)) == len(positions), key
    for layer in graph:
        if layer.op in (Op.CONV, Op.LINEAR):
            role = "output" if (layer.name, layer.weight, "output", 0) in owned else "depthwise"
            assert sorted(owned[layer.name, layer.weight, role, 0]) == list(range(layer.k))
            assert sorted(owned[layer.name, layer.bias, "bias", 0]) == list(range(layer.k))


@every_graph
def test_affected_layers_are_those_whose_row_changes(make: Callable[[], LayerGraph]) -> None:
    analysis = analyze(make())
    base = analysis.source.columns
    for name in analysis.names:
        group = analysis.group(name)
        if group.minimum == group.size:
            continue
        rows = analysis.columns([[group.minimum]], [name])
        changed = np.any([getattr(rows, field) != getattr(base, field) for field in ARRAY_FIELDS], axis=0)
        names = [layer.name for layer, is_changed in zip(analysis.source, changed, strict=True) if is_changed]
        assert list(analysis.affected(name)) == names
        assert set(group.producers) | set(group.consumers) <= set(names)
    for group in analysis.groups:
        assert group.prunable or analysis.affected(group.name) == ()


def test_a_layer_that_only_reads_more_is_affected() -> None:
    """A slice that takes the network's own input out of a concat reads a smaller tensor, and makes the same."""
    net = Net(1, 3, 6, 6)
    both = net.concat("cat", "x", net.conv("a", "x", 4))
    net.conv("last", net.plus("add", net.cut("front", both, 0, 3), net.conv("b", both, 3)), 2)
    analysis = analyze(net.graph())
    assert analysis.affected("a") == ("a", "cat", "front", "b")
    assert analysis.graph({"a": 2})["front"] == analysis.source["front"]


@every_graph
def test_more_units_never_make_a_smaller_layer(make: Callable[[], LayerGraph]) -> None:
    """Selections are nested, and every type of unit keeps its share within one unit of it."""
    analysis = analyze(make())
    for group in analysis.groups:
        if not group.prunable:
            continue
        number = analysis.parts.names.index(group.name)
        prefixes = analysis._prefixes[number]
        assert (np.diff(prefixes, axis=0) >= 0).all()
        assert (np.diff(prefixes.sum(axis=1)) == 1).all()
        share = np.arange(group.size + 1)[:, None] * prefixes[-1] / group.size
        assert (prefixes <= np.ceil(share) + 1).all()
        macs = [analysis.graph({group.name: n}).macs for n in range(group.minimum, group.size + 1)]
        assert macs == sorted(macs)


# ---- random networks ------------------------------------------------------------------------------------------------


def random_network(rng: np.random.Generator) -> LayerGraph:
    """Twelve layers that are drawn one by one; tensors of equal shape are added, others concatenated."""
    net = Net(2, 3, 4, 4)
    tensors = [net.conv("stem", "x", int(rng.choice([4, 6, 8])))]
    for i in range(12):
        source = tensors[rng.integers(len(tensors))]
        channels = net.shape(source)[1]
        like = [name for name in tensors if net.shape(name) == net.shape(source) and name != source]
        name, width = f"l{i}", int(rng.choice([4, 6, 8, 12]))
        choice = rng.integers(11)
        if choice <= 2:
            net.conv(name, source, width, r=int(rng.choice([1, 3])), activation=str(rng.choice(["", "relu", "relu6"])))
        elif choice == 3:
            net.conv(name, source, channels * int(rng.integers(1, 3)), groups=channels)
        elif choice == 4 and channels % 2 == 0:
            net.conv(name, source, width, groups=2)
        elif choice == 5 and like:
            net.plus(name, source, str(rng.choice(like)))
        elif choice == 6 and channels < 16:
            net.concat(name, source, tensors[rng.integers(len(tensors))])
        elif choice == 7 and channels % 2 == 0:
            tensors.append(net.cut(f"{name}.low", source, 0, channels // 2))
            net.cut(name, source, channels // 2, channels // 2)
        elif choice == 8 and channels % 2 == 0:
            net.shuffle(name, source, 2)
        elif choice == 9:
            gate = net.conv(f"{name}.gate", net.mean(f"{name}.mean", source, keepdim=True), channels, r=1)
            net.times(name, source, gate)
        elif choice == 10 and channels > 2:
            net.cut(name, source, 1, channels - 2)
        else:
            net.relu(name, source)
        tensors.append(name)
    merged = net.concat("merged", *tensors[-3:])
    net.linear("head", net.reshape("flat", merged, 2, 16 * net.shape(merged)[1]), 3)
    return net.graph()


@pytest.mark.parametrize("seed", range(40))
def test_random_networks(seed: int) -> None:
    """Removal is silence, columns are the graph's: for residuals of concats of shuffled halves, whatever is drawn."""
    rng = np.random.default_rng(seed)
    graph = random_network(rng)
    assert_removal_is_silence(graph, rng)
    assert_same_columns(analyze(graph), rng, candidates=3)


# ---- real networks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "groups", "example", "size"),
    [
        ("resnet20", 11, "conv1", 64),
        ("resnet56", 29, "layer3.8.conv1", 64),
        ("resnet50", 38, "layer4.0.conv3", 2048),
        ("mobilenet_v2", 26, "features.0.0", 32),
        ("squeezenet1_1", 26, "features.3.expand3x3", 64),
        ("vgg16_cifar", 14, "features.40", 512),
    ],
)
def test_networks_of_the_zoo(name: str, groups: int, example: str, size: int) -> None:
    """All that is made inside the network can go, the classes cannot."""
    graph = lower(build(name), example_input(name))
    analysis, rng = analyze(graph), np.random.default_rng(0)
    assert len(analysis.groups) == len(analysis.names) + 1 == groups
    assert analysis.group(example).size == size
    assert_same_columns(analysis, rng, candidates=2)
    analysis.graph_units(random_units(analysis, rng))


def test_resnet20_with_real_shortcuts() -> None:
    model, x = build("resnet20"), example_input("resnet20")
    graph, weights = lower_with_weights(model, x)
    rng = np.random.default_rng(0)
    assert_removal_is_silence(graph, rng, {key: array.astype(float) for key, array in weights.items()})
    half = analyze(graph).graph({name: size // 2 for name, size in sizes(analyze(graph)).items()})
    assert [half[f"layer{stage}.2.conv2"].weight_shape for stage in (1, 2, 3)] == [
        (8, 8, 3, 3),
        (16, 16, 3, 3),
        (32, 32, 3, 3),
    ]


class Attends(nn.Module):
    """torch's own attention, whose python packs, unflattens and merges the heads with the batch."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 12), nn.Linear(12, 4)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=batch_first)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        return self.head(self.attention(x, x, x)[0])


@pytest.mark.parametrize("batch_first", [True, False])
def test_torch_s_attention_has_heads(batch_first: bool) -> None:
    graph, weights = lower_with_weights(Attends(batch_first), torch.zeros(2, 5, 6))
    found = sizes(analyze(graph))
    assert sorted(found.values()) == [3, 12, 12]
    assert_removal_is_silence(graph, np.random.default_rng(0), weights)


# ---- zeros and densities --------------------------------------------------------------------------------------------


def sparse_pair() -> tuple[LayerGraph, dict[str, np.ndarray]]:
    """The fire module and a grouped one with exact masks and densities of every channel, and their weights."""
    graph, rng = fire(), np.random.default_rng(3)
    weights = random_weights(graph, rng)
    weights = {key: array * (rng.random(array.shape) < 0.5) for key, array in weights.items()}
    masks = {layer.name: WeightSparsity.from_weights(weights[layer.weight]) for layer in graph if layer.weight}
    density = {layer.name: rng.random(layer.k).tolist() for layer in graph}
    return graph.with_sparsity(masks).with_activation_density(density), weights


def test_exact_units_select_masks_and_densities() -> None:
    graph, weights = sparse_pair()
    analysis = analyze(graph)
    units = {"left": [0, 2, 7], "right": [1, 8], "squeeze": [0, 1, 5]}
    small, cut = analysis.graph_units(units), analysis.weights(weights, units)
    for layer in small:
        if layer.weight:
            assert layer.sparsity == WeightSparsity.from_weights(cut[layer.weight])
    assert small["left"].activation_density == tuple(graph["left"].activation_density[i] for i in (0, 2, 7))
    joined = [*small["left"].activation_density, *small["right"].activation_density]
    assert len(small["cat"].activation_density) == len(joined) == 5
    assert small["last"].activation_density == graph["last"].activation_density


def test_grouped_masks_are_selected_by_group() -> None:
    for name, units in (("grouped_2", {"before": [1, 4], "middle": [0, 3, 9]}), ("grouped_8", {"before": [0, 6]})):
        graph, rng = GRAPHS[name](), np.random.default_rng(4)
        weights = {k: w * (rng.random(w.shape) < 0.5) for k, w in random_weights(graph, rng).items()}
        masks = {layer.name: WeightSparsity.from_weights(weights[layer.weight]) for layer in graph if layer.weight}
        analysis = analyze(graph.with_sparsity(masks))
        cut = analysis.weights(weights, units)
        for layer in analysis.graph_units(units):
            assert not layer.weight or layer.sparsity == WeightSparsity.from_weights(cut[layer.weight])


def test_a_count_keeps_the_density_of_a_mask() -> None:
    graph, _ = sparse_pair()
    analysis = analyze(graph)
    small = analysis.graph({"left": 3}).verify()
    found, whole = small["left"].sparsity, graph["left"].sparsity
    assert found is not None
    assert whole is not None
    assert (found.is_exact, found.density, found.shape) == (False, whole.density, (3, 6, 1, 1))
    assert small["squeeze"].sparsity is graph["squeeze"].sparsity  # untouched layers keep their mask
    kept, all_of = np.array(small["left"].activation_density), np.array(graph["left"].activation_density)
    assert (len(kept), kept.mean(), kept.std()) == (3, pytest.approx(all_of.mean()), pytest.approx(all_of.std()))
    assert_same_columns(analysis, np.random.default_rng(5))


def test_columns_take_other_densities() -> None:
    analysis = analyze(fire())
    density = np.random.default_rng(0).random((2, len(analysis.source)))
    rows = analysis.columns([[3], [4]], ["left"], weight_density=density)
    assert rows.weight_density.tolist() == density.ravel().tolist()
    assert rows.k[analysis.source.index["left"]] == 3
    with pytest.raises(PlanError, match=r"weight_density has shape \(1, 8\), must be \(candidates, layers\) \(2, 8\)"):
        analysis.columns([[3], [4]], ["left"], weight_density=density[:1])


def test_columns_without_groups_are_the_graph_s() -> None:
    analysis = analyze(fire())
    rows = analysis.columns(np.zeros((2, 0), int), ())
    assert rows.k.tolist() == 2 * analysis.source.columns.k.tolist()
    assert len(analysis.columns(np.zeros((0, 4), int))) == 0


# ---- what cannot change, and why ------------------------------------------------------------------------------------


def after(add: Callable[[Net, str], Any], channels: int = 8) -> ChannelGroup:
    """The group of a convolution whose output `add` uses; then one more convolution."""
    net = Net(2, 3, 6, 6)
    last = add(net, net.conv("a", "x", channels)) or list(net.layers)[-1]
    if len(net.shape(last)) == 4:
        net.conv("end", last, 2, r=1)
    return analyze(net.graph()).group("a")


REASONS: dict[str, tuple[Callable[[Net, str], Any], str]] = {
    "output": (lambda net, a: net.mean("m", a), "they leave the network (output 'm')"),
    "softmax": (lambda net, a: net.like("s", Op.SOFTMAX, a, axis=1, log=False), "'s' is a softmax over them"),
    "layer norm": (
        lambda net, a: net.transpose(
            "back", net.norm("ln", net.transpose("t", a, 0, 2, 3, 1, axis=3), "layer", axes=(3,)), 0, 3, 1, 2
        ),
        "'ln' normalises over them",
    ),
    "one group": (lambda net, a: net.norm("gn", a, "group", groups=1), "'gn' normalises over them"),
    "channel mean": (
        lambda net, a: net.add("m", Op.MEAN, (2, 1, 6, 6), a, attributes={"axes": (1,), "keepdim": True}),
        "'m' averages over them",
    ),
    "every second": (lambda net, a: net.cut("odd", a, 1, 4, step=2), "'odd' takes one in 2 of them"),
    "unknown": (
        lambda net, a: net.add("v", Op.VECTOR, (2, 8, 6, 6), a, attributes={"target": "aten.roll"}),
        "'v' (aten.roll) has no channel rule",
    ),
    "copies": (
        lambda net, a: net.add(
            "p", Op.PAD, (2, 10, 6, 6), a, attributes={"before": (0, 1, 0, 0), "after": (0, 1, 0, 0), "mode": "reflect"}
        ),
        "'p' pads them with copies",
    ),
    "as pixels": (
        lambda net, a: net.conv("c", net.transpose("t", a, 0, 2, 1, 3), 4),
        "'c' slides over them",
    ),
}


@pytest.mark.parametrize(("add", "reason"), REASONS.values(), ids=REASONS)
def test_reasons(add: Callable[[Net, str], Any], reason: str) -> None:
    group = after(add)
    assert not group.prunable
    assert group.reason == reason


def test_channels_joined_to_the_network_input_stay() -> None:
    net = Net(1, 3, 4, 4)
    net.conv("last", net.plus("add", net.conv("a", "x", 3), "x"), 2)
    assert analyze(net.graph()).group("a").reason == "they enter the network (input 'x')"


def test_one_channel_that_is_stretched_stays() -> None:
    """A spatial attention map has one channel, which scales all others."""
    net = Net(1, 3, 4, 4)
    a = net.conv("a", "x", 8)
    net.conv("last", net.times("scale", a, net.conv("map", a, 1)), 2)
    analysis = analyze(net.graph())
    assert analysis.group("map").reason == "'scale' stretches them"
    assert analysis.group("a").prunable


def test_channels_joined_to_rows_stay() -> None:
    """Six channels turned into rows and added to an image of six rows."""
    net = Net(1, 3, 6, 6)
    a, b = net.conv("a", "x", 6), net.conv("b", "x", 6)
    net.conv("last", net.plus("add", net.transpose("turn", a, 0, 2, 1, 3), b), 2)
    analysis = analyze(net.graph())
    assert analysis.group("a").reason == "'add' joins them to an axis that never changes"
    assert analysis.group("b").reason == "'add' joins them to an axis that never changes"


def test_only_one_axis_of_a_tensor_shrinks() -> None:
    """Channel attention without heads: scores are (channels of q, channels of k); q was made first, so k stays."""
    net = Net(1, 3, 4, 4)
    q = net.reshape("q_flat", net.conv("q", "x", 6), 1, 6, 16)
    k = net.reshape("k_flat", net.conv("k", "x", 5), 1, 5, 16)
    scores = net.matmul("scores", q, net.transpose("k_turn", k, 0, 2, 1))
    net.conv("last", net.reshape("image", net.matmul("mixed", scores, k), 1, 6, 4, 4), 2)
    analysis = analyze(net.graph())
    assert analysis.group("k").reason == "'scores' has two axes of channels"
    assert analysis.group("q").prunable
    assert_removal_is_silence(analysis.source, np.random.default_rng(0))


def test_rows_of_an_image_of_one_channel_stay() -> None:
    """A vector that becomes an image: with two channels they can go, with one there is nothing to carry them."""
    for channels, reason in ((1, "'image' makes the rows and columns of one channel of them"), (2, "")):
        net = Net(2, 3)
        image = net.reshape("image", net.linear("a", "x", 16 * channels), 2, channels, 4, 4)
        net.linear("last", net.reshape("flat", net.relu("relu", image), 2, 16 * channels), 4)
        assert analyze(net.graph()).group("a").reason == reason


def test_an_image_made_of_a_vector_loses_channels() -> None:
    """A decoder: the linear layer's outputs go by channels, 16 together, since a convolution slides over the rest."""
    net = Net(2, 3)
    net.conv("c", net.reshape("image", net.linear("a", "x", 80), 2, 5, 4, 4), 2)
    analysis = analyze(net.graph())
    assert analysis.group("a").size == 5
    assert analysis.group("a").indices("a", "output", [1]).tolist() == list(range(16, 32))
    assert_removal_is_silence(analysis.source, np.random.default_rng(0))


def test_a_tensor_times_itself_stays() -> None:
    net = Net(1, 3, 4, 4)
    flat = net.reshape("flat", net.conv("a", "x", 6), 1, 6, 16)
    gram = net.matmul("gram", flat, net.transpose("turn", flat, 0, 2, 1))
    net.linear("last", net.reshape("r", gram, 1, 36), 4)
    assert analyze(net.graph()).group("a").reason == "'r' merges several axes of channels"


def test_everything_tied_together_is_one_unit() -> None:
    group = after(lambda net, a: net.pixel_shuffle("big", a, 2), channels=4)
    assert (group.size, group.reason) == (1, "all of them are one unit, which cannot go")


def test_kept_layers_stay() -> None:
    graph = plain()
    analysis = analyze(graph, keep=["b"])
    assert analysis.group("b").reason == "layer 'b' is to be kept"
    assert analysis.names == ("a", "c")
    assert analyze(graph, keep=["b"]) is analysis
    assert analyze(graph) is not analysis
    assert analyze(lower(build("resnet8"), example_input("resnet8")), keep=["block2", "fc"]).names == (
        "stem.conv", "block1.conv1", "block3.conv1", "block3.conv2",
    )  # fmt: skip
    with pytest.raises(PlanError, match="unknown layer to keep 'bb'; did you mean 'b'"):
        analyze(graph, keep=["bb"])


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"layer1.0.conv": 2}, "unknown channel group 'layer1.0.conv'; did you mean 'layer1.0.conv1'?"),
    "not its name": ({"layer2.0.conv2": 2}, "'layer2.0.conv2' is in channel group 'conv1'; give that name"),
    "zero": ({"layer1.0.conv1": 0}, "channel group 'layer1.0.conv1' cannot keep 0 units; allowed: 1..4"),
    "too many": ({"layer1.0.conv1": 5}, "channel group 'layer1.0.conv1' cannot keep 5 units; allowed: 1..4"),
    "not a count": ({"conv1": 2.5}, "channel group 'conv1' cannot keep 2.5 units; allowed: 1..16"),
    "fixed": ({"linear": 3}, "channel group 'linear' must keep all 10 units: they leave the network (output 'linear')"),
}


@pytest.mark.parametrize(("channels", "message"), BAD.values(), ids=BAD)
def test_impossible_requests(channels: dict[str, Any], message: str) -> None:
    analysis = analyze(option_a())
    for request in (analysis.graph, analysis.source.with_channels):
        with pytest.raises(PlanError) as caught:
            request(channels)
        assert str(caught.value) == message
    if all(isinstance(count, int) for count in channels.values()):
        with pytest.raises(PlanError) as caught:
            analysis.columns([list(channels.values())], list(channels))
        assert str(caught.value) == message


BAD_UNITS: dict[str, tuple[Any, str]] = {
    "none": ([], "cannot keep 0 units; allowed: 1..4"),
    "twice": ([1, 1], r"name one twice"),
    "outside": ([4], r"must be integers in 0..3"),
    "negative": ([-1], r"must be integers in 0..3"),
    "fractions": ([0.5], r"must be integers in 0..3"),
}


@pytest.mark.parametrize(("units", "message"), BAD_UNITS.values(), ids=BAD_UNITS)
def test_impossible_units(units: Any, message: str) -> None:
    analysis = analyze(option_a())
    with pytest.raises(PlanError, match=message):
        analysis.graph_units({"layer1.0.conv1": units})
    with pytest.raises(PlanError, match="must keep all 10 units"):
        analysis.graph_units({"linear": [0, 1]})


def test_a_selection_that_empties_a_layer_is_refused() -> None:
    """Units that begin in the third stage would leave the first two without a channel."""
    analysis = analyze(option_a())
    group = analysis.group("conv1")
    later = [u for u in range(16) if not len(group.indices("layer2.0.conv2", "output", [u]))]
    with pytest.raises(PlanError, match="layer 'conv1' would keep no channel; keep more units"):
        analysis.graph_units({"conv1": later})


def test_counts_that_empty_a_layer_between_two_groups_are_refused() -> None:
    """The slice reads the last channel of a and the first of b, which others outlive; either is enough."""
    net = Net(1, 3, 6, 6)
    a, b = net.conv("a", "x", 5), net.conv("b", "x", 5)
    parts = [net.cut(f"a{size}", a, 0, size) for size in (2, 3)]
    parts += [net.cut(f"b{size}", b, 5 - size, size) for size in (2, 3)]
    middle = net.cut("middle", net.concat("cat", a, b), 4, 2)
    net.conv("last", net.concat("all", middle, *parts), 2)
    analysis = analyze(net.graph())
    assert [analysis.group(name).minimum for name in "ab"] == [1, 1]
    assert analysis.columns([[1, 5], [5, 1]]).k.min() == 1
    for request in (lambda: analysis.columns([[5, 5], [1, 1]]), lambda: analysis.graph({"a": 1, "b": 1})):
        with pytest.raises(PlanError, match="layer 'middle' would keep no channel; keep more units"):
            request()


def test_indices_of_what_is_not_there() -> None:
    with pytest.raises(
        PlanError, match=r"channel group 'a' has no norm of layer 'b'; it has bias of 'a', input of 'b', output of 'a'"
    ):
        analyze(plain()).group("a").indices("b", "norm", [0])


def test_counts_of_the_wrong_form() -> None:
    analysis = analyze(plain())
    with pytest.raises(PlanError, match=r"counts have shape \(2,\), must be \(candidates, 3 groups\)"):
        analysis.columns([1, 2])
    with pytest.raises(PlanError, match="counts of type float64, must be integers"):
        analysis.columns([[1.0]], ["a"])
    with pytest.raises(PlanError, match="one is named twice"):
        analysis.columns([[1, 1]], ["a", "a"])


# ---- the rest -------------------------------------------------------------------------------------------------------


def test_every_op_has_a_rule() -> None:
    assert set(RULES) == set(Op)


def test_components_are_those_of_a_slow_search() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 5, 40):
        a, b = rng.integers(count, size=(2, count * 2 // 3))
        slow = np.arange(count)
        for _ in range(count):
            for x, y in zip(a, b, strict=True):
                slow[[x, y]] = min(slow[x], slow[y])
        assert components(count, a, b).tolist() == slow.tolist()


def test_groups_print_well() -> None:
    lines = str(analyze(option_a())).splitlines()
    assert lines[0] == "ChannelAnalysis of 'net': 5 channel groups, 4 of them prunable"
    assert lines[1].startswith("  conv1: 1..16 units from conv1, layer1.0.conv2 and 2 more to layer1.0.conv1, layer2.0")
    assert lines[-1] == "  linear: 10 units, fixed: they leave the network (output 'linear')"


def test_resnet50_in_numbers_and_time() -> None:
    """25.5 M weights and 4.09 G MACs; speed with room for a busy machine (a tenth of it is usual)."""
    graph = resnet50()
    assert (graph.macs, graph.parameters) == (4_089_184_256, 25_530_472)
    begin = time.perf_counter()
    analysis = analyze(graph)
    assert len(analysis.groups) == 38
    assert time.perf_counter() - begin < 0.2
    assert sizes(analysis)["layer4.0.conv3"] == 2048
    rng = np.random.default_rng(0)
    counts = {name: size // 2 for name, size in sizes(analysis).items()}
    table = np.stack([rng.integers(1, size + 1, 1000) for size in sizes(analysis).values()], axis=1)
    half = analysis.graph(counts).verify()
    assert half["layer4.2.conv3"].weight_shape == (1024, 256, 1, 1)
    assert fastest(lambda: analysis.graph(counts)) < 0.005
    assert fastest(lambda: analysis.columns(table)) < 0.25


def fastest(call: Callable[[], Any], times: int = 5) -> float:
    found = []
    for _ in range(times):
        begin = time.perf_counter()
        call()
        found.append(time.perf_counter() - begin)
    return min(found)
