"""The pruner network: what takes the place of the last layers, what the heads read, and which layers are last."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruning.pruner_network import BACKBONE_RATE, Learner, PrunerNetwork, last_modules
from pruning.wiring import wire
from workloads.errors import PlanError

EXAMPLE = (torch.zeros(2, 3, 8, 8),)


class TwoHeads(nn.Module):
    """Maps for one answer, a vector for the other; the last layers are `maps` and `score`."""

    def __init__(self):
        super().__init__()
        self.stem, self.maps = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 2, 1)
        self.drop, self.score = nn.Dropout(0.5), nn.Linear(6, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        return torch.sigmoid(self.maps(x)), self.score(self.drop(x.mean((2, 3))))


def network(units=20, bias=2.0, seed=0):
    torch.manual_seed(0)
    model = TwoHeads()
    return model, PrunerNetwork(model, EXAMPLE, ["maps", "score"], units, bias, seed)


class TestNetwork:
    def test_all_but_the_last_layers_are_the_models_own(self):
        model, found = network()
        learnt = {name.removeprefix("backbone."): p for name, p in found.named_parameters() if p.requires_grad}
        assert learnt.keys() == {"stem.weight", "stem.bias", "heads.weight", "heads.bias"}
        assert torch.equal(learnt["stem.weight"], model.stem.weight)
        assert learnt["stem.weight"] is not model.stem.weight
        assert isinstance(model.maps, nn.Conv2d), "the model keeps its layers"
        assert (found.backbone.drop.p, model.drop.p) == (0.0, 0.5)

    def test_features_are_what_the_last_layers_would_read_averaged_over_positions(self):
        model, found = network()
        x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            read = F.relu(model.stem(x)).mean((2, 3))
            torch.testing.assert_close(found.features(x), torch.cat([read, read], 1))

    def test_logits_by_hand(self):
        _, found = network(units=5)
        x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            features = found.features(x).double()
            centred = features - features.mean(1, keepdim=True)
            normal = centred / (features.var(1, correction=0, keepdim=True) + 1e-5).sqrt() / features.shape[1] ** 0.5
            wanted = normal @ found.heads.weight.double().T + 2.0
            torch.testing.assert_close(found(x).double(), wanted, atol=1e-5, rtol=1e-5)

    def test_heads_start_open_and_follow_the_seed(self):
        first, same, other = (network(seed=seed)[1].heads for seed in (3, 3, 4))
        assert torch.equal(first.weight, same.weight)
        assert not torch.equal(first.weight, other.weight)
        assert (first.bias == 2.0).all()


class TestLearner:
    @pytest.fixture
    def learner(self):
        torch.manual_seed(0)
        model = TwoHeads()
        return Learner(model, EXAMPLE, wire(model, EXAMPLE), 4, 1.0, 0.01, 0)

    def test_without_a_batch_nothing_is_learnt(self, learner):
        before = [p.clone() for p in learner.network.parameters()]
        assert learner.step(1.0) is None
        assert all(torch.equal(a, b) for a, b in zip(before, learner.network.parameters(), strict=True))

    def test_batches_of_a_step_are_put_together(self, learner):
        for size in (2, 3):
            logits = learner(torch.randn(size, 3, 8, 8))
            logits.sum().backward()
            learner.seen.append(logits.detach())
        assert learner.step(0.5).shape == (5, 4)
        assert learner.step(0.5) is None
        assert all(p.grad is None for p in learner.network.parameters()), "the next step starts from nothing"

    def test_rates(self, learner):
        logits = learner(torch.randn(2, 3, 8, 8))
        logits.square().sum().backward()
        learner.seen.append(logits.detach())
        before = {name: p.detach().clone() for name, p in learner.network.named_parameters()}
        learner.step(0.5)
        moved = {name: float((p.detach() - before[name]).abs().max()) for name, p in learner.network.named_parameters()}
        assert moved["heads.weight"] == pytest.approx(0.5 * 0.01, rel=1e-3)  # Adam's first step is the rate itself
        assert moved["backbone.stem.weight"] == pytest.approx(0.5 * 0.01 * BACKBONE_RATE, rel=1e-2)
        assert moved["backbone.score.layer.weight"] == 0


class TestLastModules:
    def test_every_answers_own_layer(self):
        model = TwoHeads()
        assert sorted(last_modules(model, wire(model, EXAMPLE))) == ["maps", "score"]

    def test_a_layer_without_a_module(self):
        class Raw(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem, self.weight = nn.Conv2d(3, 6, 3), nn.Parameter(torch.randn(4, 6, 1, 1))

            def forward(self, x):
                return F.conv2d(F.relu(self.stem(x)), self.weight)

        with pytest.raises(PlanError, match="is no module with weights, so heads cannot take its place; wrap it"):
            last_modules(Raw(), wire(Raw(), EXAMPLE))
