"""The space of choices: what is offered, and that the price table says what pricing the whole candidate says."""

from __future__ import annotations

import functools
import itertools
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel_models import Target, target, targets
from accel_models.placement import place
from codesign import space as spaces
from codesign.costs import METRICS, graph_costs, static_costs
from codesign.solve import PriceTable
from codesign.space import (
    Option,
    Space,
    Variable,
    channel_variables,
    offered_counts,
    price_table,
    weight_variables,
)
from tests.workloads import builders
from workloads.channels import ChannelGroup, analyze
from workloads.errors import ConfigError
from workloads.graph import LayerGraph
from workloads.lowering import lower
from workloads.models import build, example_input
from workloads.sparsity import WeightSparsity

NETWORKS = ("digits_cnn", "resnet20")
SPARSE = tuple(name for name in targets() if "weight" in target(name).family.granularities)  # gain from scattered zeros
ROUNDING = 1e-12  # relative, of sums in another order


@functools.cache
def network(name: str) -> LayerGraph:
    """A graph of the zoo with random weights, in float32, without activation zeros."""
    return lower(build(name), example_input(name), name=name)


@functools.cache
def calibrated() -> LayerGraph:
    """The digits network with the zeros of every channel of 16 random pictures."""
    import torch

    pictures = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    example = example_input("digits_cnn")
    return lower(build("digits_cnn"), example, calibration=(pictures,), name="digits_cnn")


def priced(machine: Target, graph: LayerGraph) -> dict[str, float]:
    """What a whole simulation says."""
    return graph_costs(machine.simulate(graph), graph)


def space_of(graph: LayerGraph, machine: Target) -> Space:
    """All channel groups of a graph, at the machine's own multiple."""
    ready = machine.native(graph)
    return Space(ready, analyze(ready), channel_variables(analyze(ready), machine.channel_multiple))


def masked_space(graph: LayerGraph, machine: Target, densities: tuple[float, ...], granularity: str) -> Space:
    """Channels and weights of a graph, with random masks of roughly the densities that are asked for."""
    channels = space_of(graph, machine)
    weights = weight_variables(channels.graph, densities, granularity)
    rng = np.random.default_rng(3)
    masks = {}
    for variable in weights:
        shape = channels.graph[variable.of].weight_shape
        for i, option in enumerate(variable.options[1:], start=1):
            # every input channel has a share of its own, as in a trained network
            share = np.clip(option.density * rng.uniform(0.5, 1.5, (1, shape[1], 1, 1)), 0.02, 1)
            masks[variable.of, i] = WeightSparsity.from_mask(rng.random(shape) < share)
    return Space(channels.graph, channels.analysis, (*channels.variables, *weights), masks)


def table_of(space: Space, machine: Target) -> PriceTable:
    return price_table(space, machine, {v.name: np.zeros(len(v.options)) for v in space.variables})


def candidates(space: Space, count: int, seed: int = 0) -> np.ndarray:
    """Random ones, the dense network first, the smallest last."""
    rng = np.random.default_rng(seed)
    chosen = np.stack([rng.integers(0, size, count) for size in space.sizes], axis=1)
    chosen[0], chosen[-1] = 0, np.array(space.sizes) - 1
    return chosen


def stays_in_place(space: Space, machine: Target, choices: np.ndarray) -> np.ndarray:
    """Boolean (candidates,): every tensor lives where the dense network's does."""
    homes = place(space.columns(choices), space.graph.topology, machine.spec)
    layers = len(space.graph)
    dense = place(space.graph.columns, space.graph.topology, machine.spec)
    pairs = [
        (part.reshape(-1, layers), row) for part, row in zip(vars(homes).values(), vars(dense).values(), strict=True)
    ]
    return np.all([(part == row).all(axis=1) for part, row in pairs], axis=0)


def counts_of(space: Space, choice: np.ndarray) -> dict[str, int]:
    pairs = zip(space.variables, choice, strict=True)
    return {v.of: v.options[int(i)].count for v, i in pairs if v.kind == "channels"}


class TestTableEqualsPricingTheWhole:
    @pytest.mark.parametrize("name", NETWORKS)
    @pytest.mark.parametrize("machine_name", targets())
    def test_random_candidates_on_every_machine(self, machine_name: str, name: str) -> None:
        machine = target(machine_name)
        space = space_of(network(name), machine)
        choices = candidates(space, 100)
        assert stays_in_place(space, machine, choices).all()
        table, whole = table_of(space, machine).cost(choices), space.exact(machine, choices)
        assert set(table) == set(whole) == set(METRICS)
        for metric in METRICS:
            np.testing.assert_allclose(table[metric], whole[metric], rtol=ROUNDING, err_msg=metric)
            assert len(np.unique(whole[metric])) > min(20, math.prod(space.sizes) // 3), "the candidates hardly differ"

    @pytest.mark.parametrize("machine_name", targets())
    def test_rebuilt_graphs(self, machine_name: str) -> None:
        """The other way to the same price: build the smaller graph and simulate it, activation zeros included."""
        machine = target(machine_name)
        space = space_of(calibrated(), machine)
        choices = candidates(space, 6)
        table = table_of(space, machine).cost(choices)
        for i, choice in enumerate(choices):
            rebuilt = priced(machine, space.analysis.graph(counts_of(space, choice)))
            # thinned densities of channels are kept in 0..1, which moves their mean a little
            close = 1e-6 if machine.family.sees_input_zeros() else ROUNDING
            assert {metric: table[metric][i] for metric in METRICS} == pytest.approx(rebuilt, rel=close)

    def test_where_a_tensor_moves_the_table_stays_above_and_near(self) -> None:
        # An L3 of 100 kB is too small for the dense network's maps of 64 kB and large enough for those of many pruned
        # ones. The table prices the dense network's homes: too dear by little, where everything else is equal.
        machine = target("snapdragon_855_cpu", {"memories.2.size_bytes": 100e3})
        space = space_of(network("resnet20"), machine)
        choices = candidates(space, 200)
        same = stays_in_place(space, machine, choices)
        assert same.any()
        assert not same.all()
        table, whole = table_of(space, machine).cost(choices), space.exact(machine, choices)
        for metric in ("latency", "energy"):
            np.testing.assert_allclose(table[metric][same], whole[metric][same], rtol=ROUNDING)
            off = table[metric][~same] / whole[metric][~same] - 1
            assert off.min() >= -ROUNDING
            assert 1e-4 < off.max() < 0.01

    @pytest.mark.parametrize("machine_name", targets())
    def test_real_channels_differ_only_where_activation_zeros_count(self, machine_name: str) -> None:
        # A count does not say which channels stay, so the table takes the mean of a layer's activation densities;
        # real channels are denser or sparser than that.
        machine = target(machine_name)
        space = space_of(calibrated(), machine)
        choices = candidates(space, 12)
        table, rng = table_of(space, machine).cost(choices), np.random.default_rng(5)
        off = {metric: 0.0 for metric in METRICS}
        for i, choice in enumerate(choices):
            counts = counts_of(space, choice)
            units = {group: rng.permutation(space.analysis.group(group).size)[:n] for group, n in counts.items()}
            real = priced(machine, space.analysis.graph_units(units))
            off = {metric: max(worst, abs(table[metric][i] / real[metric] - 1)) for metric, worst in off.items()}
        assert max(off["macs"], off["size"]) < ROUNDING
        if machine.family.sees_input_zeros():
            assert max(off["latency"], off["energy"]) < 0.1
            assert machine_name != "eyeriss_v2" or max(off["latency"], off["energy"]) > 1e-4
        else:
            assert max(off.values()) < ROUNDING


class TestMasks:
    @pytest.mark.parametrize(
        ("machine_name", "granularity"), [*((name, "weight") for name in targets()), ("snapdragon_855_cpu", "pattern")]
    )
    def test_real_masks_are_priced_exactly_where_no_channel_is_cut(self, machine_name: str, granularity: str) -> None:
        machine = target(machine_name)
        space = masked_space(calibrated(), machine, (0.5, 0.2), granularity)
        choices = candidates(space, 6)
        choices[:, [v.kind == "channels" for v in space.variables]] = 0
        table = table_of(space, machine).cost(choices)
        for i, choice in enumerate(choices):
            pairs = zip(space.variables, choice, strict=True)
            chosen = {v.of: {"sparsity": space.masks[v.of, int(j)]} for v, j in pairs if j}
            real = priced(machine, space.graph.replace_layers(chosen) if chosen else space.graph)
            assert {metric: table[metric][i] for metric in METRICS} == pytest.approx(real, rel=ROUNDING)

    @pytest.mark.parametrize("machine_name", SPARSE)
    def test_with_channels_cut_masks_count_by_their_density(self, machine_name: str) -> None:
        # Each weight layer of this network reads or makes channels of some group. With all groups cut no mask fits
        # any more, and the table has nothing but densities, as `exact` has; with some cut they differ by what the
        # real masks hold beyond their density: imbalance, and zeros that meet sparse or dense activations.
        machine = target(machine_name)
        space = masked_space(calibrated(), machine, (0.5,), "weight")
        table, channels = table_of(space, machine), [v.kind == "channels" for v in space.variables]
        choices = candidates(space, 40)
        cut = choices.copy()
        cut[:, channels] = np.maximum(cut[:, channels], 1)
        for metric in METRICS:
            np.testing.assert_allclose(table.cost(cut)[metric], space.exact(machine, cut)[metric], rtol=ROUNDING)
            off = table.cost(choices)[metric] / space.exact(machine, choices)[metric] - 1
            assert np.abs(off).max() < (0.08 if machine.family.sees_input_zeros() else 0.02)

    def test_real_masks_differ_from_their_expectation(self) -> None:
        # otherwise the tests above could not tell a real mask from its density
        machine = target("eyeriss_v2")
        space = masked_space(calibrated(), machine, (0.5,), "weight")
        choices = np.array([[0 if v.kind == "channels" else 1 for v in space.variables]])
        table, expected = table_of(space, machine).cost(choices), space.exact(machine, choices)
        assert abs(table["latency"][0] / expected["latency"][0] - 1) > 1e-3

    def test_a_mask_counts_with_its_own_density(self) -> None:
        # 0.5 was asked for, the mask keeps 3 of 4 weights a kernel of two: 9 of 12
        x = builders.source((1, 3, 2, 2))
        a = builders.conv(x, 4, (1, 1), name="a")
        graph = builders.graph(x, a, builders.conv(a, 4, (1, 1), name="b")).with_precision("int8")
        mask = WeightSparsity.from_mask(np.arange(16).reshape(4, 4, 1, 1) % 4 > 0)
        variable = Variable("weights", "b", (Option(), Option(density=0.5, granularity="weight")))
        space = Space(graph, analyze(graph), (variable,), {("b", 1): mask})
        costs = table_of(space, target("ideal")).cost(np.array([[0], [1]]))
        assert costs["macs"].tolist() == [48 + 64, 48 + 48]  # 4 pixels times 12 + 16, and 12 + 12 kept weights
        assert costs["size"].tolist() == [12 + 16, 12 + 12 + 2]  # kept bytes, and 16 marks of a bit

    @pytest.mark.parametrize("machine_name", targets())
    def test_a_network_that_is_already_sparse_keeps_its_masks(self, machine_name: str) -> None:
        machine = target(machine_name)
        dense = masked_space(calibrated(), machine, (0.3,), "weight")
        zeros = {name: {"sparsity": mask} for (name, _), mask in dense.masks.items()}
        graph = dense.graph.replace_layers(zeros)
        space = Space(graph, analyze(graph), channel_variables(analyze(graph), machine.channel_multiple))
        found = table_of(space, machine).cost(candidates(space, 2)[:1])
        assert {m: found[m][0] for m in METRICS} == pytest.approx(priced(machine, graph), rel=ROUNDING)


@pytest.fixture(scope="module")
def table() -> PriceTable:
    """Of the network that `TestWorkedByHand` tells of."""
    machine = target("ideal", {"memories.0.bandwidth_bytes_per_cycle": 64})
    x = builders.source((1, 3, 4, 4))
    a = builders.conv(x, 16, (1, 1), name="a", activation="relu")
    b = builders.conv(a, 16, (1, 1), name="b")
    c = builders.conv(b, 4, (1, 1), name="c", bias="c.bias")
    space = space_of(builders.graph(x, a, b, c).with_precision("int8"), machine)
    assert [(v.name, [o.count for o in v.options]) for v in space.variables] == [
        ("channels:a", [16, 8]),
        ("channels:b", [16, 8]),
    ]
    return table_of(space, machine)


class TestWorkedByHand:
    """x (3 channels) -> a (16) -> b (16) -> c (4 with a bias), 1x1 convolutions on 4x4 pixels in int8 on `ideal`.

    The machine makes 256 MACs a cycle at 500 MHz and, here, moves 64 bytes a cycle. A layer takes the longer of the
    two; a MAC is 0.23 pJ, a byte 160 pJ. With A and B channels in a and b, each 16 or 8; inputs + outputs + weights:

        a(A)      48 A   MACs,  48 + 16 A + 3 A          bytes
        b(A, B)   16 A B MACs,  16 A + 16 B + A B        bytes
        c(B)      64 B   MACs,  16 B + 64 + 4 B + 4 x 4  bytes (four 32-bit biases)
    """

    def factor(self, table: PriceTable, variables: tuple[int, ...], metric: str) -> Any:
        return next(f for f in table.factors if f.variables == variables).values[metric].tolist()

    def test_cycles(self, table: PriceTable) -> None:
        hz = 500e6
        # a: 768 MACs = 3 cycles and 352 bytes = 5.5 cycles; with 8 channels 1.5 and 200 / 64 = 3.125
        assert self.factor(table, (0,), "latency") == pytest.approx([5.5 / hz, 3.125 / hz])
        # b: 4096 MACs = 16 and 768 bytes = 12; (16, 8) and (8, 16) 8 and 512 / 64 = 8; (8, 8) 4 and 320 / 64 = 5
        assert self.factor(table, (0, 1), "latency") == [
            pytest.approx([16 / hz, 8 / hz]),
            pytest.approx([8 / hz, 5 / hz]),
        ]
        # c: 1024 MACs = 4 and 400 bytes = 6.25; with 8 channels 2 and 240 / 64 = 3.75
        assert self.factor(table, (1,), "latency") == pytest.approx([6.25 / hz, 3.75 / hz])

    def test_energy(self, table: PriceTable) -> None:
        def joules(macs: int, moved: int) -> float:
            return (0.23 * macs + 160 * moved) * 1e-12

        assert self.factor(table, (0,), "energy") == pytest.approx([joules(768, 352), joules(384, 200)])
        assert self.factor(table, (0, 1), "energy") == [
            pytest.approx([joules(4096, 768), joules(2048, 512)]),
            pytest.approx([joules(2048, 512), joules(1024, 320)]),
        ]
        assert self.factor(table, (1,), "energy") == pytest.approx([joules(1024, 400), joules(512, 240)])

    def test_macs_and_size(self, table: PriceTable) -> None:
        assert self.factor(table, (0, 1), "macs") == [[4096, 2048], [2048, 1024]]
        assert self.factor(table, (0,), "size") == [48, 24]
        assert self.factor(table, (0, 1), "size") == [[256, 128], [128, 64]]
        assert self.factor(table, (1,), "size") == [64 + 16, 32 + 16]

    def test_totals(self, table: PriceTable) -> None:
        assert table.constant == dict.fromkeys(METRICS, 0.0)  # the input costs nothing, all else depends on a or b
        assert len(table.factors) == 3
        costs = table.cost(np.array([[0, 0], [1, 0], [1, 1]]))
        assert costs["latency"] == pytest.approx(np.array([27.75, 17.375, 11.875]) / 500e6)
        assert costs["macs"].tolist() == [5888, 3456, 1920]
        assert costs["size"].tolist() == [384, 232, 136]


def test_losses_are_passed_on() -> None:
    space, rng = space_of(network("digits_cnn"), target("ideal")), np.random.default_rng(0)
    loss = {v.name: rng.random(len(v.options)) for v in space.variables}
    found = price_table(space, target("ideal"), loss)
    assert found.names == tuple(v.name for v in space.variables)
    for i, name in enumerate(found.names):
        np.testing.assert_array_equal(found.loss[i], loss[name])


class TestStaticCosts:
    def test_size_of_a_sparse_layer(self) -> None:
        # K = 4, C = 2, 3x3: 72 weights of 8 bits and four biases of 32. Half kept: 36 bytes, 72 marks of a bit,
        # 16 bytes of biases.
        x = builders.source((1, 2, 4, 4))
        graph = builders.graph(x, builders.conv(x, 4, padding=(1, 1, 1, 1), bias="y.bias")).with_precision("int8")
        half = WeightSparsity.from_mask(np.arange(72).reshape(4, 2, 3, 3) % 2 > 0)
        sparse = graph.replace_layers({"y": {"sparsity": half}})
        assert static_costs(graph.columns)["size"].tolist() == [0, 72 + 16]
        assert static_costs(sparse.columns)["size"].tolist() == [0, 36 + 9 + 16]
        assert static_costs(graph.columns)["macs"].tolist() == [0, 72 * 16]
        assert static_costs(sparse.columns)["macs"].tolist() == [0, 36 * 16]

    def test_size_in_each_precision(self) -> None:
        x = builders.source((1, 2, 4, 4))
        graph = builders.graph(x, builders.conv(x, 4, padding=(1, 1, 1, 1)))
        sizes = [priced(target("ideal"), graph.with_precision(p))["size"] for p in ("int8", "fp16", "fp32")]
        assert sizes == [72, 144, 288]


class TestWhatIsOffered:
    @pytest.mark.parametrize(
        ("size", "minimum", "multiple", "most", "expected"),
        [
            (32, 1, 8, 8, (32, 24, 16, 8)),
            (20, 1, 8, 8, (20, 16, 8)),  # the full count need not be a multiple
            (32, 10, 8, 8, (32, 24, 16)),
            (16, 1, 16, 8, (16, 8)),  # a group of one multiple at the most: multiples of half of it
            (12, 1, 16, 8, (12, 8)),
            (24, 1, 256, 8, (24, 16)),  # far below the multiple: half of it again and again
            (64, 1, 8, 3, (64, 56, 8)),  # thinned: both ends stay
            (5, 1, 1, 8, (5, 4, 3, 2, 1)),
            (8, 8, 8, 8, (8,)),
        ],
    )
    def test_by_hand(self, size: int, minimum: int, multiple: int, most: int, expected: tuple[int, ...]) -> None:
        assert offered_counts(group_of(size, minimum), multiple, most) == expected

    @given(
        size=st.integers(1, 600),
        minimum=st.integers(1, 40),
        multiple=st.sampled_from([1, 2, 4, 8, 16, 32, 256]),
        most=st.integers(2, 12),
    )
    def test_laws(self, size: int, minimum: int, multiple: int, most: int) -> None:
        minimum = min(minimum, size)
        counts = offered_counts(group_of(size, minimum), multiple, most)
        step = max([multiple >> i for i in range(9) if 0 < multiple >> i < size], default=1)
        assert counts[0] == size
        assert len(counts) <= most
        assert all(a > b for a, b in itertools.pairwise(counts))
        assert all(count % step == 0 and count >= minimum for count in counts[1:])
        possible = [n for n in range(minimum, size) if n % step == 0]
        assert set(counts[1:]) <= set(possible)
        assert (len(counts) == 1) == (not possible)
        if possible and most > 2:
            assert {possible[0], possible[-1]} <= set(counts)

    @pytest.mark.parametrize("name", NETWORKS)
    @pytest.mark.parametrize("machine_name", targets())
    def test_of_real_networks(self, machine_name: str, name: str) -> None:
        machine = target(machine_name)
        space = space_of(network(name), machine)
        assert space.variables
        for variable in space.variables:
            group = space.analysis.group(variable.of)
            full, *below = (option.count for option in variable.options)
            assert (full, group.prunable) == (group.size, True)
            assert below
            assert all(group.minimum <= count < group.size for count in below)
            step = max(machine.channel_multiple >> i for i in range(9) if machine.channel_multiple >> i < group.size)
            assert all(count % step == 0 for count in below)

    def test_option_zero_is_the_network_as_it_is(self) -> None:
        machine = target("snapdragon_855_cpu")
        space = masked_space(calibrated(), machine, (0.5,), "weight")
        dense = np.zeros((1, len(space.variables)), int)
        columns = space.columns(dense)
        for name in ("k", "c", "input_elements", "output_elements", "weight_density"):
            np.testing.assert_array_equal(getattr(columns, name), getattr(space.graph.columns, name))
        found, whole = table_of(space, machine).cost(dense), space.exact(machine, dense)
        real = priced(machine, space.graph)
        for costs in (found, whole):
            assert {metric: costs[metric][0] for metric in METRICS} == pytest.approx(real, rel=ROUNDING)
        assert space.describe(dense[0].tolist()) == {}

    def test_describe_names_what_changes(self) -> None:
        space = masked_space(calibrated(), target("ideal"), (0.5,), "weight")
        choice = [1 if v.name in ("channels:block1.conv1", "weights:block2.conv2") else 0 for v in space.variables]
        assert space.describe(choice) == {"channels:block1.conv1": "24", "weights:block2.conv2": "0.5 weight"}

    def test_keep_leaves_groups_alone(self) -> None:
        analysis = analyze(network("digits_cnn"))
        every = [v.of for v in channel_variables(analysis, 8)]
        assert [v.of for v in channel_variables(analysis, 8, keep=every[:2])] == every[2:]

    def test_keep_of_an_unknown_group(self) -> None:
        with pytest.raises(ConfigError, match=r"keep 'nothing': no such channel group; known: .*block1\.conv1"):
            channel_variables(analyze(network("digits_cnn")), 8, keep=["nothing"])

    def test_most_options(self) -> None:
        analysis = analyze(network("resnet20"))
        assert max(len(v.options) for v in channel_variables(analysis, 4, most=3)) == 3

    def test_a_fixed_group_is_not_offered(self) -> None:
        x = builders.source((1, 3, 4, 4))
        graph = builders.graph(x, builders.conv(x, 16, (1, 1)))  # its channels leave the network
        assert channel_variables(analyze(graph), 8) == ()


class TestWeightVariables:
    def test_densest_first_after_the_dense_weight(self) -> None:
        variables = weight_variables(network("digits_cnn"), (0.25, 0.5, 1.0, 0.5), "weight")
        assert len(variables) > 2
        for variable in variables:
            assert variable.options == (
                Option(),
                Option(density=0.5, granularity="weight"),
                Option(density=0.25, granularity="weight"),
            )

    def test_the_first_layer_stays_dense(self) -> None:
        names = [v.of for v in weight_variables(network("digits_cnn"), (0.5,), "weight")]
        convs = ["block1.conv1", "block1.conv2", "block2.conv1", "block2.conv2", "block2.shortcut.0"]
        assert sorted(names) == [*convs, "fc"]

    def test_patterns_are_for_3x3_layers(self) -> None:
        names = [v.of for v in weight_variables(network("digits_cnn"), (0.4,), "pattern")]
        assert sorted(names) == ["block1.conv1", "block1.conv2", "block2.conv1", "block2.conv2"]

    def test_skip_and_depthwise(self) -> None:
        x = builders.source((1, 3, 8, 8))
        a = builders.conv(x, 8, (1, 1), name="a")
        deep = builders.conv(a, 8, name="deep", groups=8)
        b = builders.conv(deep, 8, (1, 1), name="b")
        graph = builders.graph(x, a, deep, b, builders.conv(b, 8, (1, 1), name="c"))
        assert [v.of for v in weight_variables(graph, (0.5,), "weight")] == ["b", "c"]
        assert [v.of for v in weight_variables(graph, (0.5,), "weight", skip=["b"])] == ["c"]


class TestTouched:
    def test_every_layer_that_changes_is_touched_and_no_other(self) -> None:
        space = masked_space(network("resnet20"), target("eyeriss_v2"), (0.5,), "weight")
        dense = space.columns(np.zeros((1, len(space.variables)), int))
        fields = ("k", "c", "groups", "input_elements", "other_elements", "output_elements", "weight_density")
        for v in range(len(space.variables)):
            choice = np.zeros((1, len(space.variables)), int)
            choice[0, v] = 1
            rows = space.columns(choice)
            changed = np.any([getattr(rows, name) != getattr(dense, name) for name in fields], axis=0)
            assert np.flatnonzero(changed).tolist() == [i for i, found in enumerate(space.touched) if v in found]


def test_a_layer_that_couples_too_much_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    space = space_of(network("digits_cnn"), target("ideal"))
    worst = max(np.prod([space.sizes[v] for v in found]) for found in space.touched if found)
    monkeypatch.setattr(spaces, "MAX_COMBINATIONS", int(worst))
    table_of(space, target("ideal"))
    monkeypatch.setattr(spaces, "MAX_COMBINATIONS", int(worst) - 1)
    message = rf"couples {worst} combinations of .*; at most {worst - 1} fit a table"
    with pytest.raises(ConfigError, match=message) as caught:
        table_of(space, target("ideal"))
    assert "--options" in str(caught.value)
    assert "--keep" in str(caught.value)


def group_of(size: int, minimum: int) -> ChannelGroup:
    return SimpleNamespace(size=size, minimum=minimum)  # type: ignore[return-value]
