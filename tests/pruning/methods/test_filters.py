"""Whole channels: counts and choices worked by hand, targets that are kept, and removal that changes no answer."""

import numpy as np
import pytest
import torch
from torch import nn

from pruning import masks
from pruning.importance import rank_units, unit_scores
from pruning.methods import method
from pruning.methods.filters import BatchNormScale, GeometricMedian, L1Filter, TaylorFilter
from pruning.testing import Loop, batches, small_net
from pruning.wiring import wire
from tests.pruning.networks import NETWORKS, awake, example, network
from workloads.errors import CodesignError, PlanError

EXAMPLE = (torch.zeros(2, 3, 8, 8),)


class Pair(nn.Module):
    """Four filters of one weight, batch norm, and what reads them."""

    def __init__(self, filters: list[float], scales: list[float]):
        super().__init__()
        self.a, self.bn, self.b = nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)
        with torch.no_grad():
            self.a.weight.copy_(torch.tensor(filters).view(4, 1, 1, 1))
            self.bn.weight.copy_(torch.tensor(scales))

    def forward(self, x):
        return self.b(torch.relu(self.bn(self.a(x)))).mean((2, 3))


X = (torch.ones(2, 1, 3, 3),)


class TestByHand:
    def scores(self, criterion: str) -> list[float]:
        model = Pair([0.0, 1.0, -5.0, 2.0], [0.5, -2.0, 1.0, 0.1])
        return unit_scores(model, wire(model, X), ["a"], criterion)["a"].tolist()

    def test_l1(self):
        assert self.scores("l1") == [0, 1, 5, 2]

    def test_fpgm_is_the_sum_of_distances(self):
        assert self.scores("fpgm") == [1 + 5 + 2, 1 + 6 + 1, 5 + 6 + 7, 2 + 1 + 7]

    def test_bn_gamma(self):
        assert self.scores("bn_gamma") == pytest.approx([0.5, 2.0, 1.0, 0.1])

    def test_the_largest_filter_may_be_the_one_to_replace(self):
        """Three large filters close together, one small and alone: l1 takes the small one, fpgm one of the three."""
        model = Pair([0.1, 7.0, 7.1, 7.2], [1.0] * 4)
        assert L1Filter(model, X, density=0.75).kept == {"a": (1, 2, 3)}
        assert GeometricMedian(model, X, density=0.75).kept == {"a": (0, 1, 3)}

    def test_tied_filters_add_up_and_scales_are_averaged(self):
        model = network("Residual")
        found = wire(model, example())
        made = [model.stem, *model.outer]
        wanted = sum(conv.weight.double().abs().sum((1, 2, 3)) for conv in made)
        group = found.analysis.names[0]
        np.testing.assert_allclose(unit_scores(model, found, [group], "l1")[group], wanted.detach())
        scales = torch.stack([norm.weight.double() for norm in (model.norm, *model.norms)]).mean(0)
        np.testing.assert_allclose(unit_scores(model, found, [group], "bn_gamma")[group], scales.detach())

    def test_a_search_may_rank_by_any(self):
        model = Pair([0.0, 1.0, -5.0, 2.0], [0.5, -2.0, 1.0, 0.1])
        analysis = wire(model, X).analysis
        orders = {name: rank_units(model, analysis, name)["a"].tolist() for name in ("l1", "fpgm", "bn_gamma")}
        assert orders == {"l1": [2, 3, 1, 0], "fpgm": [2, 3, 0, 1], "bn_gamma": [1, 2, 0, 3]}


class TestTargets:
    @pytest.mark.parametrize("name", ["l1_filter", "fpgm", "taylor_filter", "bn_gamma"])
    @pytest.mark.parametrize("scope", ["group", "global"])
    @pytest.mark.parametrize("multiple", [1, 4])
    def test_macs_are_kept_and_no_more_is_removed_than_that_takes(self, name, scope, multiple):
        data = {"data": batches(1)} if method(name).NEEDS_DATA else {}
        options = {"macs": 0.55, "scope": scope, "multiple": multiple, "end": 0.0, **data}
        pruner = method(name)(small_net(), EXAMPLE, **options)
        analysis = pruner.wiring.analysis
        counts = {group: len(kept) for group, kept in pruner.kept.items()}
        assert all(count % multiple == 0 for count in counts.values())
        assert analysis.graph(counts).macs <= 0.55 * analysis.source.macs
        more = [counts | {group: counts[group] + multiple} for group in counts]
        assert any(analysis.graph(each).macs > 0.55 * analysis.source.macs for each in more)

    def test_equal_shares_of_every_group(self):
        pruner = L1Filter(small_net(), EXAMPLE, density=0.6)
        assert {name: len(kept) for name, kept in pruner.kept.items()} == {"stem": 5, "conv1": 7}  # 4.8, 7.2
        pruner = L1Filter(small_net(), EXAMPLE, density=0.6, multiple=4)
        assert {name: len(kept) for name, kept in pruner.kept.items()} == {"conv1": 8}

    def test_a_global_ranking_stops_at_the_floor(self):
        model = small_net()
        with torch.no_grad():
            model.norm1.weight.mul_(1e-3)
        pruner = BatchNormScale(model, EXAMPLE, density=0.5, end=0.0, floor=0.25)
        assert {name: len(kept) for name, kept in pruner.kept.items()} == {"conv1": 3, "stem": 7}

    def test_a_global_ranking_compares_filters_within_their_layers(self):
        """Scaling all filters of a layer says nothing of which to remove; for taylor and gamma it would."""
        model = small_net()
        kept = L1Filter(model, EXAMPLE, macs=0.5, scope="global").kept
        with torch.no_grad():
            model.conv1.weight.mul_(100.0)
        assert L1Filter(model, EXAMPLE, macs=0.5, scope="global").kept == kept

    def test_kept_layers_stay_and_say_why(self):
        pruner = L1Filter(small_net(), EXAMPLE, macs=0.8, keep=("conv2",))
        assert set(pruner.kept) == {"conv1"}
        assert any(note.startswith("stem: stays whole") for note in pruner.notes)

    def test_what_a_module_ties_is_said(self):
        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.embed, self.attend = nn.Linear(3, 12), nn.MultiheadAttention(12, 3, batch_first=True)
                self.wide, self.head = nn.Linear(12, 8), nn.Linear(8, 5)

            def forward(self, x):
                x = self.embed(x)
                return self.head(self.wide(self.attend(x, x, x, need_weights=False)[0].mean(1)))

        pruner = L1Filter(Tied(), (torch.zeros(2, 4, 3),), density=0.5)
        assert set(pruner.kept) == {"wide"}
        said = "embed: stays whole, 'attend' (MultiheadAttention) must have as many channels inside as outside"
        assert said in pruner.notes


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "Recurrent"])
def test_masked_baked_and_cut_answer_alike(name):
    """The network in training, what finalize makes of it, and the smaller network that the plan cuts out of that."""
    model = awake(network(name), example(16)[0])
    x = example(4, seed=1)
    pruner = L1Filter(model, x, 2, density=0.5)
    optimizer = torch.optim.SGD(pruner.model.parameters(), 0.01)
    for _ in range(2):
        optimizer.zero_grad()
        pruner.model.train()(*x).square().mean().backward()
        optimizer.step()
        pruner.step()
    baked = pruner.finalize().eval()
    small = pruner.plan().apply(baked, x)
    with torch.no_grad():
        answers = [net(*x) for net in (pruner.model.eval(), baked, small)]
    torch.testing.assert_close(answers[0], answers[1])
    torch.testing.assert_close(answers[2], answers[1], rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


def test_recurrent_layers_are_left_alone():
    with pytest.raises(PlanError, match="no channel group can lose units; conv: stays whole, a recurrent layer keeps"):
        L1Filter(network("Recurrent"), example(), density=0.5)


class TestNetworkSlimming:
    def test_the_penalty_is_the_sum_of_scales_until_channels_go(self):
        pruner = BatchNormScale(Pair([1.0, 2.0, 3.0, 4.0], [0.5, -2.0, 1.0, 0.1]), X, 2, density=0.5, strength=0.1)
        loss = pruner.loss()
        assert loss.item() == pytest.approx(0.36)
        loss.backward()
        gradient = pruner.model.bn.parametrizations.weight.original.grad
        torch.testing.assert_close(gradient, torch.tensor([0.1, -0.1, 0.1, 0.1]))
        with pytest.raises(PlanError, match="channels go after step 1, 0 are done; train on first"):
            pruner.plan()
        assert not pruner.is_settled
        pruner.step()
        assert pruner.kept == {"a": (1, 2)}
        assert pruner.is_settled
        assert pruner.loss() == 0

    def test_groups_without_batch_norm_are_left_alone(self):
        pruner = BatchNormScale(network("Chain"), example(), density=0.5, end=0.0)
        assert set(pruner.kept) == {"conv1"}, "of conv2 the batch norm has no scale, conv3 has none"
        assert [note for note in pruner.notes if "without batch norm" in note]
        model = network("Chain")
        with pytest.raises(PlanError, match=r"'conv\d' has units without batch norm; rank it by another criterion"):
            rank_units(model, wire(model, example()).analysis, "bn_gamma")


def test_what_is_chosen_stays_while_training_goes_on():
    pruner = TaylorFilter(small_net(), EXAMPLE, 4, macs=0.5, data=batches(2), end=0.5)
    loop = Loop(pruner)
    loop.run(batches(2))
    before = {name: mask.clone() for name, mask in masks.masks_of(pruner.model).items()}
    loop.run(batches(2, seed=1))
    assert all(torch.equal(mask, before[name]) for name, mask in masks.masks_of(pruner.model).items())
    assert not pruner.finalize().norm1.bias[~before["norm1.bias"]].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give density= .* or macs= .*, one of them"),
        ({"density": 0.5, "macs": 0.5}, "give density= .* or macs= .*, one of them"),
        ({"density": 1.0}, r"density 1.0, .*shares lie in \(0, 1\)"),
        ({"macs": 0.0}, r"macs 0.0, .*shares lie in \(0, 1\)"),
        ({"macs": 0.5, "multiple": 0}, "a multiple is at least 1"),
        ({"macs": 0.5, "scope": "layer"}, "unknown scope 'layer'"),
        ({"macs": 0.01}, "macs 0.01 cannot be reached: .* is the least"),
        ({"density": 0.9, "multiple": 8}, "remove no channel"),
        ({"density": 0.5, "keep": ("conv",)}, "unknown layer to keep 'conv'"),
        ({"density": 0.5, "keep": ("conv1", "conv2")}, "no channel group can lose units"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(CodesignError, match=message):
        L1Filter(small_net(), EXAMPLE, **options)


def test_a_method_that_needs_pictures_says_so():
    with pytest.raises(CodesignError, match="criterion 'taylor' needs pictures of split"):
        TaylorFilter(small_net(), EXAMPLE, density=0.5)
