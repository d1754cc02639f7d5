"""Gates answer as the smaller network does; gradients, costs, floors and phases of the pruner network by hand."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruning import masks
from pruning.gates import Cost, spread
from pruning.methods import method
from pruning.methods.network_pruning_network import NetworkPruningNetwork
from pruning.testing import Loop, batches, same, small_net
from pruning.training import fit
from pruning.wiring import wire
from tests.pruning.networks import NETWORKS, example, network
from workloads.data import ImageData, Preprocessing
from workloads.errors import CodesignError, PlanError
from workloads.lowering import lower
from workloads.models import build

EXAMPLE = (torch.zeros(2, 3, 8, 8),)


def pruner_of(model: nn.Module, steps: int = 8, inputs=EXAMPLE, **options) -> NetworkPruningNetwork:
    return NetworkPruningNetwork(model, inputs, steps, **options)


def closed(pruner: NetworkPruningNetwork, seed: int = 0) -> NetworkPruningNetwork:
    """With logits of random signs."""
    pruner.logits = torch.randn(len(pruner.logits), generator=torch.Generator().manual_seed(seed))
    return pruner


class TestGates:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_gated_baked_and_smaller_network_answer_alike(self, name):
        pruner = closed(pruner_of(network(name), inputs=example(), floor=0.2))
        x = example(4, seed=3)[0]
        small = pruner.plan().apply(pruner.finalize(), example())
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in NETWORKS[name]().parameters())
        gated = pruner.model.eval()(x)
        torch.testing.assert_close(pruner.finalize()(x), gated)
        torch.testing.assert_close(small(x), gated, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(gated, network(name)(x), atol=1e-3)

    def test_a_batch_opens_one_vector_for_all_its_samples(self):
        """The logits' mean decides, not the sample's own: here unit 0 is closed though one sample opens it."""
        pruner = pruner_of(small_net(), smoothing=0.0)
        logits = torch.full((2, len(pruner.logits)), 1.0)
        logits[:, 0] = torch.tensor([1.0, -3.0])
        pruner._open(pruner.learner, logits)
        assert pruner.gates.values.tolist() == [1.0, 0.0, *[1.0] * (len(pruner.logits) - 1)]

    def test_training_sees_what_would_be_fixed_after_the_batch(self):
        """Running average 0.75 x 2 + 0.25 z: z = -4 opens, z = -8 closes."""
        pruner = pruner_of(small_net(), smoothing=0.75, bias=2.0, floor=0.0)
        logits = torch.full((3, len(pruner.logits)), -4.0)
        logits[:, 5] = -8.0
        pruner._open(pruner.learner, logits)
        seen = pruner.gates.values[1:] > 0
        assert (~seen).nonzero().tolist() == [[5]]
        pruner.after_step()
        assert torch.equal(pruner.decision(), seen)

    def test_gates_start_open(self):
        model = small_net().train()
        pruner = pruner_of(model)
        x = batches(1)[0][0]
        torch.testing.assert_close(pruner.model(x), model(x))
        assert pruner.decision().all()

    def test_a_stage_shares_one_gate_and_option_a_streams_are_one(self):
        pruner = pruner_of(build("resnet20"), inputs=(torch.zeros(1, 3, 32, 32),))
        sizes = [size for _, size in pruner.groups.values()]
        assert sorted(sizes) == [16] * 3 + [32] * 3 + [64] * 4  # nine inner layers, one stream of 64

    def test_spread_by_hand(self):
        """2 x 3 positions; rows are units 1 and 2, of the columns only the last belongs to a unit."""
        axes = {0: torch.tensor([1, 2]), 1: torch.tensor([0, 0, 3])}
        assert spread(torch.tensor([1.0, 2.0, 3.0, 5.0]), axes, (2, 3)).tolist() == [[2, 2, 10], [3, 3, 15]]


class TestLearning:
    def test_gradient_of_a_gate_by_hand(self):
        """y = v . (b * relu(w x)), L = y: dL/db_u = v_u relu(w_u x), times the sigmoid's slope at the bias."""
        model = nn.Sequential(nn.Linear(1, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False))
        with torch.no_grad():
            model[0].weight.copy_(torch.tensor([[1.0], [2.0], [-1.0]]))
            model[2].weight.copy_(torch.tensor([[3.0, 5.0, 7.0]]))
        pruner = pruner_of(model, inputs=(torch.ones(1, 1),), bias=1.0)
        pruner.learner.network.heads.weight.data.zero_()
        pruner.model(torch.tensor([[2.0]])).sum().backward()
        slope = torch.tensor(1.0).sigmoid() * (1 - torch.tensor(1.0).sigmoid())
        wanted = slope * torch.tensor([3 * 2.0, 5 * 4.0, 0.0])
        torch.testing.assert_close(pruner.learner.network.heads.bias.grad, wanted)

    def test_closed_gates_still_learn(self):
        pruner = pruner_of(small_net(), smoothing=0.0)
        pruner.learner.network.heads.bias.data.fill_(-1.0)
        F.cross_entropy(pruner.model(batches(1)[0][0]), batches(1)[0][1]).backward()
        assert (pruner.learner.network.heads.bias.grad != 0).sum() > 15

    def test_a_useless_filter_goes_and_the_useful_ones_stay(self):
        """The label is the mean of channel 0; only the first four hidden filters pass it on."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 8, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 2))
        with torch.no_grad():
            model[0].weight.fill_(1.0)
            model[0].bias.zero_()
            columns = model[3].weight.view(2, 8, 4)
            columns.zero_()
            columns[1, :4] = 1.0
            model[3].bias.copy_(torch.tensor([8.0, 0.0]))
        pruner = pruner_of(model, 120, (torch.zeros(2, 1, 2, 2),), end=1.0, lr=0.05, strength=0.5, floor=0.0)
        for _ in range(120):
            x = torch.rand(32, 1, 2, 2) + torch.randint(0, 2, (32, 1, 1, 1)) * 0.5 - 0.25
            y = (4 * x.relu().sum((1, 2, 3)) > 8).long()
            (F.cross_entropy(pruner.model(x), y) + pruner.loss()).backward()
            pruner.step()
        kept = pruner.plan().channels["0"]
        assert set(kept) == {0, 1, 2, 3}

    def test_a_loss_before_the_forward_pass_is_refused(self):
        pruner, (x, y) = pruner_of(small_net().train()), batches(1)[0]
        assert pruner.loss() == 0, "for the record"
        loss = F.cross_entropy(pruner.model(x), y) + pruner.loss()
        loss.backward()
        pruner.step()
        loss = pruner.loss() + F.cross_entropy(pruner.model(x), y)
        loss.backward()
        with pytest.raises(PlanError, match=r"no gradient from pruner.loss\(\); call it after the step's forward pass"):
            pruner.step()

    def test_a_forward_pass_without_gradients_changes_nothing_of_the_step(self):
        pruner, (x, _) = pruner_of(small_net().train()), batches(1)[0]
        pruner.model(x)
        before = pruner.loss()
        with torch.no_grad():
            pruner.model(2 * x)
        assert pruner.loss() == before
        assert pruner.loss().requires_grad

    def test_logits_of_accumulated_batches_are_averaged(self):
        pruner, found = pruner_of(small_net().train(), smoothing=0.75), []
        for x, _ in batches(3):
            found.append(pruner.learner(x).detach())
            pruner.model(x)
        pruner.step()
        torch.testing.assert_close(pruner.logits, 0.75 * 1.0 + 0.25 * torch.cat(found).mean(0))

    def test_lambda_climbs_from_zero(self):
        pruner = pruner_of(small_net(), 100, end=0.5, warmup=0.2, strength=3.0)
        pruner.opened = torch.ones(1 + len(pruner.logits))
        found = []
        for pruner.steps_done in (0, 4, 9, 30):
            found.append(round(float(pruner.loss()), 4))
        assert found == [0.3, 1.5, 3.0, 3.0]

    def test_lambda_stops_pressing_at_the_budget(self):
        """Of 28 filters (stem 8, conv1 12, conv2 8) the stream's first unit takes two along."""
        pruner = pruner_of(small_net(), 100, end=0.5, warmup=0.0, strength=2.0, budget=26 / 28)
        gates = torch.ones(1 + len(pruner.logits))
        first, _ = pruner.groups["stem"]
        pruner.opened = gates
        assert float(pruner.loss()) == pytest.approx(2 * 2 / 28)
        gates[1 + first] = 0.0
        assert float(pruner.loss()) == pytest.approx(0, abs=1e-6)
        gates[2 + first] = 0.0
        pruner.opened = gates.requires_grad_()
        pruner.loss().backward()
        assert not gates.grad.any()

    def test_the_floor_keeps_the_largest_logits_of_every_kind_of_unit(self):
        pruner = pruner_of(build("resnet20"), inputs=(torch.zeros(1, 3, 32, 32),), floor=0.25)
        first, size = pruner.groups["conv1"]
        pruner.logits[:] = -1 - torch.arange(len(pruner.logits)) / 1000
        kept = np.flatnonzero(pruner.decision()[first : first + size].numpy())
        kinds = pruner.wiring.analysis.group("conv1").kinds
        for kind in np.unique(kinds):
            units = np.flatnonzero(kinds == kind)
            assert set(units) & set(kept) == set(units[: -(-len(units) // 4)])
        pruner.plan().apply(pruner.finalize(), (torch.zeros(1, 3, 32, 32),))


def settled(pruner: NetworkPruningNetwork, logits: torch.Tensor) -> torch.Tensor:
    """What stays when the gates are fixed at these logits."""
    pruner.logits, pruner.steps_done = logits, pruner.end - 1
    pruner.step()
    assert pruner.is_settled
    return pruner.decision()


def share(pruner: NetworkPruningNetwork, kept: torch.Tensor) -> float:
    return float(pruner.cost.share(torch.cat([torch.ones(1), kept.float()]), pruner.weighting))


class TestBudget:
    """Of the 28 filters of the small network a unit of the stream takes two along, one of conv1 one."""

    def test_one_cut_over_all_groups_by_hand(self):
        """25 of 28: 0.1 and 0.2 are one filter each, 0.3 two more, one of which would have done."""
        pruner = pruner_of(small_net(), budget=25 / 28)
        (stream, _), (conv1, _) = pruner.groups["stem"], pruner.groups["conv1"]
        logits = torch.linspace(1, 2, len(pruner.logits))
        logits[conv1 + 3], logits[conv1 + 7], logits[stream + 2], logits[stream + 5] = 0.1, 0.2, 0.3, 0.4
        kept = settled(pruner, logits)
        assert set((~kept).nonzero().flatten().tolist()) == {conv1 + 3, conv1 + 7, stream + 2}
        assert "3 gates follow the budget of 89.3% of the filters, not their sign" in str(pruner.plan())

    @pytest.mark.parametrize("weighting", ["filters", "macs"])
    @pytest.mark.parametrize(("seed", "shift"), [(0, 1.0), (1, 0.0), (2, 5.0), (3, -5.0)])
    def test_the_cut_is_the_lowest_that_the_budget_allows(self, weighting, seed, shift):
        options = {"budget": 0.4, "weighting": weighting, "floor": 0.3}
        pruner = pruner_of(build("resnet20"), inputs=(torch.zeros(1, 3, 32, 32),), **options)
        logits = torch.randn(len(pruner.logits), generator=torch.Generator().manual_seed(seed)) + shift
        kept = settled(pruner, logits)
        assert share(pruner, kept) <= 0.4
        for units, least in pruner.floors:
            assert int(kept[units].sum()) >= least
        bound = torch.zeros_like(kept)  # units that a floor may have kept
        for units, least in pruner.floors:
            bound[units[kept[units]]] = int(kept[units].sum()) == least
        cut = logits[~kept].max()
        assert (logits[kept & ~bound] > cut).all()
        assert share(pruner, kept | (logits == cut)) > 0.4

    def test_equal_logits_go_from_the_last(self):
        pruner = pruner_of(small_net(), budget=20 / 28, floor=0.5)
        kept = settled(pruner, torch.ones(20))
        gone = (~kept).nonzero().flatten()
        assert share(pruner, kept) == pytest.approx(20 / 28)
        assert all(torch.equal(mine, mine.sort(descending=True).values) for mine in (kept[:8].int(), kept[8:].int()))
        assert int(gone.max()) == 19

    def test_gates_that_fell_below_zero_together_stay_open_up_to_it(self):
        """14 of 28: five open gates are six filters, the eight of largest logit among the others are the rest."""
        pruner = pruner_of(small_net(), budget=0.5, floor=0.0)
        stream, conv1 = pruner.groups["stem"][0], pruner.groups["conv1"][0]
        logits = torch.full((20,), -1.0)
        logits[conv1 : conv1 + 12] = -torch.linspace(0.1, 0.9, 12)
        logits[[stream + 7, conv1, conv1 + 5, conv1 + 6, conv1 + 11]] = 1.0
        kept = settled(pruner, logits)
        assert set(kept.nonzero().flatten().tolist()) == {stream + 7, *range(conv1, conv1 + 12)}
        assert "8 gates follow the budget of 50.0% of the filters" in str(pruner.plan())

    def test_training_sees_no_fewer_than_it_allows(self):
        pruner = pruner_of(small_net(), smoothing=0.0, budget=0.5)
        logits = -torch.rand(4, 20, generator=torch.Generator().manual_seed(0))
        pruner._open(pruner.learner, logits)
        seen = pruner.gates.values[1:] > 0
        assert 0.5 - 2 / 28 < share(pruner, seen) <= 0.5
        assert torch.equal(seen, settled(pruner, logits.mean(0)))

    def test_without_one_nothing_is_cut(self):
        assert settled(pruner_of(small_net()), torch.ones(20)).all()

    def test_it_is_kept_where_lambda_is_too_weak(self):
        pruner = pruner_of(small_net(), 4, end=0.5, strength=1e-9, budget=0.5, weighting="macs")
        Loop(pruner).run(batches(4))
        small = pruner.plan().apply(pruner.finalize(), EXAMPLE)
        assert 0.4 < lower(small, EXAMPLE).macs / lower(small_net(), EXAMPLE).macs <= 0.5

    def test_floors_that_leave_more_are_refused_at_once(self):
        with pytest.raises(
            PlanError, match=r"budget 0\.2: the floor 0\.5 alone keeps 50\.0% of the filters; lower the"
        ):
            pruner_of(small_net(), budget=0.2, floor=0.5)


class TestCost:
    @pytest.mark.parametrize("name", [name for name in NETWORKS if name != "Attention"])
    def test_macs_are_those_of_the_smaller_graph(self, name):
        pruner = closed(pruner_of(network(name), inputs=example()))
        wanted = pruner.wiring.analysis.graph_units(pruner._units()).macs / pruner.wiring.graph.macs
        found = pruner.cost.share(torch.cat([torch.ones(1), pruner.decision().float()]), "macs")
        assert float(found) == pytest.approx(wanted, rel=1e-5)
        assert wanted < 1

    def test_filters_by_hand(self):
        """Groups: the stream of 8 (stem and two outer layers) and inner layers of 6 and 10; the classifier stays."""
        wiring = wire(network("Residual"), example())
        cost = Cost(wiring, {"stem": (0, 8), "inner.0": (8, 6), "inner.1": (14, 10)})
        gates = torch.ones(1 + 24)
        assert float(cost.share(gates, "filters")) == 1
        gates[1] = gates[9] = 0  # one unit of the stream is three filters, one of inner.0 is one
        assert float(cost.share(gates, "filters")) == pytest.approx(1 - 4 / (3 * 8 + 6 + 10))


class TestPhases:
    def test_the_target_is_frozen_until_the_gates_are_fixed(self):
        pruner = pruner_of(small_net().train(), 8, end=0.5, strength=20.0, lr=0.5)
        loop, data = Loop(pruner), batches(8)
        before = {name: p.clone() for name, p in pruner.model.named_parameters()}
        network = copy.deepcopy(pruner.learner.network.state_dict())
        loop.run(data[:3])
        assert not pruner.is_settled
        assert all(torch.equal(p, before[name]) for name, p in pruner.model.named_parameters())
        assert not same(pruner.learner.network.state_dict(), network)
        loop.run(data[3:4])
        assert pruner.is_settled
        found = {name: mask.clone() for name, mask in masks.masks_of(pruner.model).items()}
        loop.run(data[4:])
        assert same(masks.masks_of(pruner.model), found)
        assert not torch.equal(pruner.model.head.bias, before["head.bias"])

    def test_an_optimizer_made_at_the_start_trains_the_target_after_it(self):
        pruner, data = pruner_of(small_net().train(), 4, end=0.5), batches(4)
        loop = Loop(pruner)
        learning = [parameter for parameter in pruner.model.parameters() if parameter.requires_grad]
        loop.optimizer = torch.optim.SGD(learning, 0.05, momentum=0.9, weight_decay=0.1)
        before = [parameter.clone() for parameter in pruner.model.parameters()]
        loop.run(data[:2])
        assert all(map(torch.equal, before, pruner.model.parameters()))
        assert not loop.optimizer.state
        loop.run(data[2:])
        assert not any(map(torch.equal, before, pruner.model.parameters()))

    def test_the_pruner_network_learns_ever_less(self):
        """Half a cosine over the four steps of its phase: 1, 0.854, 0.5, 0.146 of both rates."""
        pruner = pruner_of(small_net().train(), 8, end=0.5, lr=0.2)
        loop, learner, rates = Loop(pruner), pruner.learner, []
        for batch in batches(4):
            loop.run([batch])
            rates.append([group["lr"] for group in learner.optimizer.param_groups])
        wanted = torch.tensor([1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5])
        torch.testing.assert_close(torch.tensor(rates), wanted[:, None] * torch.tensor([0.2, 0.02]))

    def test_what_was_frozen_by_the_user_stays_so(self):
        model = small_net()
        model.head.bias.requires_grad_(False)
        pruner = pruner_of(model, 4, end=0.5)
        Loop(pruner).run(batches(4))
        baked = pruner.finalize()
        assert [name for name, p in baked.named_parameters() if not p.requires_grad] == ["head.bias"]

    def test_unfinished_it_evaluates_and_finalizes_by_the_running_average(self):
        pruner = pruner_of(small_net().train(), 8, end=1.0, strength=20.0, lr=0.5)
        Loop(pruner).run(batches(4))
        closed(pruner)
        x = batches(1)[0][0]
        baked = pruner.finalize()
        torch.testing.assert_close(baked.eval()(x), pruner.model.eval()(x))
        assert all(p.requires_grad for p in baked.parameters())

    def test_a_trained_recurrent_network_finalizes_before_and_after_the_gates_are_fixed(self):
        pruner = pruner_of(network("Recurrent").train(), 2, example(), end=0.5)
        x = example(4)[0]
        for _ in range(2):
            pruner.model.train()(x).square().sum().backward()
            pruner.step()
            torch.testing.assert_close(pruner.finalize().eval()(x), pruner.model.eval()(x))

    def test_state_survives_weights_only_files(self, tmp_path):
        pruner = pruner_of(small_net().train(), 8, end=0.75)
        Loop(pruner).run(batches(3))
        torch.save(pruner.state_dict(), tmp_path / "state")
        other = pruner_of(small_net(1).train(), 8, end=0.75)
        other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
        assert torch.equal(other.logits, pruner.logits)
        assert same(other.learner.network.state_dict(), pruner.learner.network.state_dict())
        settled = pruner_of(small_net().train(), 8, end=0.75)
        Loop(settled).run(batches(7))
        with pytest.raises(PlanError, match="load it into a new pruner"):
            settled.load_state_dict(pruner.state_dict())


class TestPreparedModel:
    def test_a_copy_between_forward_and_step_keeps_its_gates(self):
        pruner = pruner_of(small_net().train())
        x = batches(1)[0][0]
        loss = pruner.model(x).sum()
        twin = copy.deepcopy(pruner.model).eval()
        loss.backward()
        plain = small_net()
        plain.load_state_dict(dict(pruner.model.named_buffers()), strict=False)  # the statistics of one batch
        torch.testing.assert_close(twin(x), plain.eval()(x))

    def test_compiled_training_is_the_same(self):
        runs = []
        for compiled in (False, True):
            torch._dynamo.reset()
            pruner = pruner_of(small_net().train(), 6, end=0.5, strength=20.0, lr=0.5)
            net = torch.compile(pruner.model, backend="aot_eager") if compiled else pruner.model
            optimizer = torch.optim.SGD(pruner.model.parameters(), 0.05)
            for x, y in batches(6):
                optimizer.zero_grad()
                (F.cross_entropy(net(x), y) + pruner.loss()).backward()
                optimizer.step()
                pruner.step()
            runs.append(pruner.finalize().state_dict())
        for name, tensor in runs[0].items():
            torch.testing.assert_close(runs[1][name], tensor, atol=1e-4, rtol=1e-4)

    def test_bf16_and_channels_last(self):
        pruner = pruner_of(small_net().train())
        pruner.model.to(memory_format=torch.channels_last)
        x = batches(1)[0][0].to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            answer = pruner.model(x)
        answer.float().sum().backward()
        assert answer.dtype == torch.bfloat16
        assert pruner.gates.values.dtype == torch.float32
        assert pruner.learner.network.heads.bias.grad.abs().sum() > 0


def pictures(count: int = 64) -> ImageData:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (count, 3, 8, 8), dtype=np.uint8)
    labels = rng.integers(0, 4, count)
    return ImageData("noise", "train", images, labels, np.arange(count), 4, Preprocessing((0.5,) * 3, (0.25,) * 3))


def test_other_methods_go_on_from_the_result_and_a_teacher_helps():
    """Gates, distillation in `fit`, the smaller network, then connection pruning inside what is left."""
    pruner = pruner_of(small_net(), 8, end=0.5, strength=20.0, lr=0.5, smoothing=0.5)
    fit(pruner.model, pictures(), 2, 0.01, pruner=pruner, teacher=small_net(), batch_size=16, progress=False)
    small = pruner.plan().apply(pruner.finalize(), EXAMPLE)
    assert small.conv1.out_channels < 12
    thin = method("one_shot_magnitude")(small, EXAMPLE, density=0.5).finalize()
    kept = masks.masks_of(thin)["conv1.weight"]
    assert kept.shape == small.conv1.weight.shape
    assert int(kept.sum()) == round(kept.numel() / 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 0.0}, "option strength=0.0 of network_pruning_network: must be a finite number above 0"),
        ({"strength": float("nan")}, "option strength=nan of network_pruning_network: must be"),
        ({"warmup": -0.1}, "option warmup=-0.1 of network_pruning_network: must be from 0 to 1"),
        ({"floor": 1.1}, "option floor=1.1 of network_pruning_network: must be from 0 to 1"),
        ({"budget": 1.0}, "option budget=1.0 of network_pruning_network: must be from 0 to below 1"),
        ({"smoothing": 1.0}, "option smoothing=1.0 of network_pruning_network: must be from 0 to below 1"),
        ({"bias": -1.0}, "option bias=-1.0 of network_pruning_network: must be a finite number above 0, so"),
        ({"lr": 0.0}, "option lr=0.0 of network_pruning_network: must be"),
        ({"weighting": "flops"}, "unknown weighting 'flops'"),
        ({"keep": ("conv3",)}, "unknown layer to keep 'conv3'"),
        ({"keep": ("stem", "conv1")}, "no channel group of 'SmallNet' can be gated"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(CodesignError, match=message):
        pruner_of(small_net(), **options)
