"""Wiring: from arrays of the layer graph to a module's own parameters and buffers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruning.methods import method
from pruning.wiring import PRODUCED, READ, STATISTIC, wire
from tests.pruning.networks import NETWORKS, example, network
from workloads.channels import analyze
from workloads.errors import PlanError
from workloads.graph import LayerGraph
from workloads.lowering import lower


def test_a_folded_batch_norm_is_cut_with_its_convolution():
    wiring = wire(network("Chain"), example())
    found = {(cut.tensor, cut.axis): cut.role for cut in wiring.cuts("conv1")}
    assert found == {
        ("conv1.weight", 0): PRODUCED,
        ("bn1.weight", 0): PRODUCED,
        ("bn1.bias", 0): PRODUCED,
        ("bn1.running_mean", 0): PRODUCED,
        ("bn1.running_var", 0): STATISTIC,
        ("conv2.weight", 1): READ,
    }


def test_flattened_channels_are_read_by_blocks_of_columns():
    wiring = wire(network("Flattened"), example())
    (cut,) = (cut for cut in wiring.cuts("conv") if cut.tensor == "fc1.weight")
    assert (cut.axis, len(cut.index)) == (1, 54)
    assert np.array_equal(cut.unit, np.repeat(np.arange(6), 9))


def test_an_lstm_is_stored_in_four_tensors():
    wiring = wire(network("Recurrent"), example())
    cuts = {cut.tensor: (cut.axis, len(cut.index)) for cut in wiring.cuts(wiring.prunable[1]) if cut.role == PRODUCED}
    assert cuts == {f"lstm.{part}_l0": (0, 28) for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}


@pytest.mark.parametrize("name", NETWORKS)
def test_masks_zero_whole_units_and_nothing_else(name):
    model = network(name)
    wiring = wire(model, example())
    for group in wiring.prunable:
        size = wiring.analysis.group(group).size
        kept = {group: np.arange(1, size)}
        found = wiring.masks(model, kept)
        assert found
        for parameter, mask in found.items():
            cuts = [cut for cut in wiring.cuts(group) if cut.tensor == parameter]
            wanted = torch.ones_like(mask)
            for cut in cuts:
                wanted.transpose(0, cut.axis)[torch.from_numpy(cut.index[cut.unit == 0])] = False
            assert torch.equal(mask, wanted)


def test_layers_and_their_parameters():
    wiring = wire(network("Shared"), example())
    assert wiring.weight_of("twice") == wiring.weight_of("twice#2") == "twice.weight"
    assert [layer.name for layer in wiring.layers_of("twice.weight")] == ["twice", "twice#2"]
    assert wire(network("Chain"), example()).companions("conv1") == ("bn1.weight", "bn1.bias")
    assert wire(network("Chain"), example()).companions("conv3") == ("conv3.bias",)
    with pytest.raises(PlanError, match="unknown layer with weights 'stam'; did you mean 'stem'"):
        wiring.weight_of("stam")


def test_a_computed_weight_carries_no_mask():
    model = network("Chain")
    model.conv2 = nn.utils.parametrizations.weight_norm(model.conv2)
    wiring = wire(model, example())
    (name,) = (layer.name for layer in wiring.graph.layers if layer.name.startswith("conv2"))
    with pytest.raises(PlanError, match="is computed, not a parameter, so it cannot carry a mask"):
        wiring.weight_of(name)


class Rigid(nn.Module):
    """What torch's own modules cannot lose: heads and width of attention, hidden units of an LSTM with two layers."""

    def __init__(self):
        super().__init__()
        self.embed, self.attend = nn.Linear(3, 12), nn.MultiheadAttention(12, 3, batch_first=True)
        self.narrow, self.lstm = nn.Linear(12, 6), nn.LSTM(6, 4, num_layers=2, batch_first=True)
        self.wide, self.norm, self.head = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x):
        x = self.embed(x.flatten(2).transpose(1, 2))
        x = self.narrow(x + self.attend(x, x, x, need_weights=False)[0])
        return self.head(self.norm(self.wide(self.lstm(x)[0].mean(1))))


def test_what_is_left_alone_has_a_reason():
    wiring = wire(Rigid(), example())
    attention = "'attend' (MultiheadAttention) must have as many channels inside as outside"
    lstm = "all layers and directions of 'lstm' (LSTM) must have equally many hidden units"
    assert wiring.reasons == {
        "embed": attention, "attend.linear": attention, "lstm.l0": lstm, "lstm.l1": lstm,
        "wide": "'norm' normalises over them", "head": "they leave the network (output 'head')",
    }  # fmt: skip
    assert wiring.prunable == ("narrow",)
    assert str(wiring).splitlines() == [
        "Wiring of 'Rigid': 7 channel groups, 1 can be cut",
        f"  embed: 12 units, left alone: {attention}",
        f"  attend.linear: 3 units, left alone: {attention}",
        "  narrow: 1..6 units from narrow to lstm.l0",
        f"  lstm.l0: 4 units, left alone: {lstm}",
        f"  lstm.l1: 4 units, left alone: {lstm}",
        "  wide: 8 units, fixed: 'norm' normalises over them",
        "  head: 5 units, fixed: they leave the network (output 'head')",
    ]
    with pytest.raises(PlanError, match=r"channel group 'lstm\.l0': all layers and directions"):
        wiring.cuts("lstm.l0")


class Tied(nn.Module):
    """An autoencoder whose decoder has the encoder's weights, turned."""

    def __init__(self):
        super().__init__()
        self.stem, self.first, self.second = nn.Linear(32, 12), nn.Linear(12, 16), nn.Linear(16, 8)
        self.shift = nn.Parameter(torch.zeros(16))

    def forward(self, x):
        inside = torch.relu(self.second(torch.relu(self.first(torch.relu(self.stem(x))))))
        turned = torch.relu(F.linear(inside, self.second.weight.t(), self.shift))
        return F.linear(turned, self.first.weight.t())


def test_a_weight_that_other_arrays_are_computed_from_stays():
    model, inputs = Tied(), (torch.randn(2, 32),)
    wiring = wire(model, inputs)
    assert wiring.prunable == ()
    assert wiring.reasons == {
        "stem": "it would cut 'first.weight', from which array 'linear#2.weight' is computed, which cannot be cut",
        "first": "it would cut 'first.weight', from which array 'linear#2.weight' is computed, which cannot be cut",
        "second": "array 'linear.weight' of layer 'linear' is computed from 'second.weight', so it cannot be cut",
        "linear": "array 'linear.weight' of layer 'linear' is computed from 'second.weight', so it cannot be cut",
        "linear#2": "they leave the network (output 'linear#2')",
    }
    with pytest.raises(PlanError, match=r"first: stays whole, it would cut 'first\.weight'"):
        method("l1_filter")(model, inputs, 1, density=0.5)


def test_graph_and_analysis_can_be_given():
    model = network("Residual")
    graph = lower(model, example())
    analysis = analyze(graph, keep=("stem",))
    assert wire(model, graph).graph is graph
    assert wire(model, analysis).analysis is analysis
    assert wire(model, analysis).prunable == ("inner.0", "inner.1")
    with pytest.raises(PlanError, match="was not made from this Chain"):
        wire(network("Chain"), graph)


def test_a_graph_remembers_that_its_inputs_are_whole_numbers():
    model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    tokens = torch.randint(0, 20, (2, 7))
    graph = LayerGraph.from_dict(wire(model, (tokens,)).graph.to_dict())
    assert wire(model, analyze(graph)).prunable == ("1",)
    pruner = method("l1_filter")(model, (tokens,), 2, density=0.5)
    assert pruner.plan().apply(pruner.finalize(), (tokens,))[1].out_features == 8


def test_arrays_are_those_of_now():
    model = network("Chain")
    wiring = wire(model, example())
    before = wiring.arrays(model)["conv1.weight"]
    with torch.no_grad():
        model.bn1.weight.mul_(2)
    np.testing.assert_allclose(wiring.arrays(model)["conv1.weight"], 2 * before, rtol=1e-6)
