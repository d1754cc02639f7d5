"""Importance of units: norms worked by hand, gates checked by finite differences, kinds of units kept apart."""

import numpy as np
import pytest
import torch
from torch import nn

from pruning.importance import gradients, norms, order_by, rank_units
from pruning.wiring import wire
from tests.pruning.networks import NETWORKS, example, network
from workloads import data
from workloads.channels import analyze
from workloads.errors import ConfigError, PlanError
from workloads.lowering import lower
from workloads.models import build, example_input


@pytest.fixture(scope="module")
def heldout() -> data.ImageData:
    return data.load("digits", "heldout")


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.bn, self.b = nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3, eps=0.0), nn.Conv2d(3, 2, 1)

    def forward(self, x):
        return self.b(torch.relu(self.bn(self.a(x)))).mean((2, 3))


def pair() -> nn.Module:
    """Filters 3, 1, 2 scaled by batch norm to 3, 4, 1; the readers' columns have norms 4, 3, 0."""
    model = Pair().eval()
    with torch.no_grad():
        model.a.weight.copy_(torch.tensor([3.0, 1.0, 2.0]).view(3, 1, 1, 1))
        model.bn.weight.copy_(torch.tensor([1.0, 4.0, 1.0]))
        model.bn.running_var.copy_(torch.tensor([1.0, 1.0, 4.0]))
        model.b.weight.copy_(torch.tensor([[4.0, 0.0, 0.0], [0.0, 3.0, 0.0]]).view(2, 3, 1, 1))
    return model


def test_norms_by_hand():
    model, x = pair(), (torch.ones(1, 1, 2, 2),)
    wiring = wire(model, x)
    assert norms(model, wiring, ["a"])["a"].tolist() == [5.0, 5.0, 1.0]  # 3-4, 4-3 and 1-0 triangles
    assert rank_units(model, wiring.analysis)["a"].tolist() == [0, 1, 2]  # ties to the lower unit
    with torch.no_grad():
        model.bn.weight[1] = 5.0
    assert rank_units(model, wiring.analysis)["a"].tolist() == [1, 0, 2]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_ranking_is_a_permutation_with_each_kind_at_its_share(name):
    model = network(name)
    analysis = analyze(lower(model, example()))
    for group, order in rank_units(model, analysis).items():
        found = analysis.group(group)
        assert sorted(order.tolist()) == list(range(found.size))
        assert np.array_equal(found.kinds[order], found.kinds[found.order])


def test_kinds_of_a_residual_stream_are_ranked_apart():
    model = build("resnet20")
    analysis = analyze(lower(model, (example_input("resnet20"),)))
    group = analysis.group("conv1")
    scores = np.random.default_rng(0).random(64)
    order = order_by(group, scores)
    assert len(set(group.kinds.tolist())) > 1
    assert np.array_equal(group.kinds[order], group.kinds[group.order])
    for kind in set(group.kinds.tolist()):
        of_kind = order[group.kinds[order] == kind]
        assert (np.diff(scores[of_kind]) <= 0).all(), "best first inside each kind"
    for count in range(group.minimum, 65):  # a count means the same dims here and in shape arithmetic
        kept = analysis.graph_units({"conv1": np.sort(order[:count])})
        assert kept.macs == analysis.graph({"conv1": count}).macs


class TestGradients:
    def test_sums_over_readers_are_derivatives_of_a_gate(self, heldout):
        """d loss / d z of a factor z on each unit, by central differences in float64."""
        model = build("digits_cnn").double()
        batch = heldout.take(8)
        wiring = wire(build("digits_cnn"), (example_input("digits_cnn"),))
        x, y = batch.tensor().double(), batch.targets()
        model.eval()
        loss = nn.functional.cross_entropy(model(x), y)
        model.zero_grad()
        loss.backward()
        products = {name: p.detach() * p.grad for name, p in model.named_parameters()}
        for name, module in (("block1.conv1", "block1.bn1"), ("block2.conv2", None), ("conv", None)):
            sums = wiring.unit_sums(name, products)
            for unit in (0, 5, 17):
                assert sums[unit] == pytest.approx(self.difference(model, wiring, name, unit, x, y), abs=1e-8), module

    @staticmethod
    def difference(model, wiring, group, unit, x, y, step=1e-6) -> float:
        """The loss when all weights that read the unit are scaled by 1 + step and 1 - step."""
        losses = []
        for sign in (1, -1):
            for factor in (1 + sign * step, 1 / (1 + sign * step)):
                for cut in wiring.cuts(group):
                    if cut.role == "read":
                        weight = model.get_parameter(cut.tensor).data
                        weight.transpose(0, cut.axis)[cut.index[cut.unit == unit]] *= factor
                if factor == 1 + sign * step:
                    with torch.no_grad():
                        losses.append(float(nn.functional.cross_entropy(model(x), y)))
        return (losses[0] - losses[1]) / (2 * step)

    def test_a_dead_channel_has_no_importance(self, heldout):
        model = build("digits_cnn")
        with torch.no_grad():
            model.block1.bn1.weight[3] = 0
            model.block1.bn1.bias[3] = 0
        analysis = analyze(lower(model, (example_input("digits_cnn"),)))
        found = gradients(model, wire(model, analysis), heldout.take(40), groups=["block1.conv1"])
        assert found.units["block1.conv1"][3] == 0
        assert (found.units["block1.conv1"] >= 0).all()
        assert (found.units["block1.conv1"] > 0).sum() > 16
        assert rank_units(model, analysis, "taylor", heldout)["block1.conv1"][-1] == 3

    def test_biases_of_queries_and_keys_count_a_unit_each(self, heldout):
        class Attention(nn.Module):
            def __init__(self):
                super().__init__()
                self.q, self.k, self.v, self.o = (nn.Linear(8, width) for width in (8, 8, 8, 10))

            def forward(self, x):
                x = x.flatten(1, 2)
                return self.o(torch.softmax(self.q(x) @ self.k(x).transpose(1, 2), -1) @ self.v(x)).mean(1)

        model = Attention()
        with torch.no_grad():  # a key that nothing looks for
            model.q.weight[5] = model.q.bias[5] = model.k.weight[5] = model.k.bias[5] = 0
        analysis = analyze(lower(model, (example_input("digits_cnn"),)))
        found = rank_units(model, analysis, "taylor", heldout)
        name = next(name for name in found if name in ("q", "k"))
        assert found[name][-1] == 5

    def test_the_model_is_left_alone(self, heldout):
        model = build("digits_cnn").train()
        model.fc.weight.requires_grad_(False)
        gradients(model, wire(model, (example_input("digits_cnn"),)), heldout.take(20))
        assert model.training
        assert all(parameter.grad is None for parameter in model.parameters())
        assert not model.fc.weight.requires_grad

    def test_batch_size_hardly_matters_on_average(self, heldout):
        """B times squares of batch means estimates the mean square of single pictures."""
        model = build("digits_cnn")
        wiring = wire(model, (example_input("digits_cnn"),))
        totals = [gradients(model, wiring, heldout, size).units["block1.conv1"].sum() for size in (1, 2)]
        assert 0.5 < totals[1] / totals[0] < 2.0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"criterion": "l3"}, ConfigError, "unknown criterion 'l3'"),
        ({"criterion": "taylor"}, ConfigError, "needs pictures of split"),
        ({"criterion": "taylor", "data": "test"}, ConfigError, "needs pictures of split"),
        ({"groups": ["nothing"]}, PlanError, "unknown channel group 'nothing'"),
    ],
)
def test_bad_options(options, error, message):
    model = build("digits_cnn")
    analysis = analyze(lower(model, (example_input("digits_cnn"),)))
    if "data" in options:
        options = options | {"data": data.load("digits", options["data"])}
    with pytest.raises(error, match=message):
        rank_units(model, analysis, **options)


def test_nan_scores_are_refused():
    group = analyze(lower(build("digits_cnn"), (example_input("digits_cnn"),))).group("conv")
    with pytest.raises(PlanError, match="hold NaN"):
        order_by(group, np.full(group.size, np.nan))
