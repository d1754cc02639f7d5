"""Masks: what parametrizations do while training, and that a baked model is an ordinary module in every respect."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from pruning import masks
from workloads.errors import PlanError, ShapeError


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def checkerboard(weight: torch.Tensor) -> torch.Tensor:
    return (torch.arange(weight.numel()) % 2 == 0).view(weight.shape)


@pytest.fixture
def dense() -> nn.Sequential:
    torch.manual_seed(0)
    return network().eval()


@pytest.fixture
def baked(dense):
    return masks.bake(dense, {name: checkerboard(dense.get_parameter(name)) for name in ("0.weight", "4.weight")})


X = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(1))


class TestAttached:
    def test_the_network_computes_with_the_masked_weight_and_keeps_the_dense_one(self, dense):
        before = dense[0].weight.detach().clone()
        masks.attach(dense, {"0.weight": checkerboard(before)})
        assert torch.equal(dense[0].weight, before * checkerboard(before))
        assert torch.equal(masks.dense_weight(dense, "0.weight"), before)

    def test_removed_weights_get_no_gradient(self, dense):
        mask = checkerboard(dense[4].weight)
        masks.attach(dense, {"4.weight": mask})
        dense(X).sum().backward()
        gradient = dense[4].parametrizations.weight.original.grad
        assert (gradient[~mask] == 0).all()
        assert (gradient[mask] != 0).any()

    def test_masks_can_change_their_mind(self, dense):
        before = dense[0].weight.detach().clone()
        masks.attach(dense, {"0.weight": torch.zeros_like(before, dtype=torch.bool)})
        assert dense[0].weight.count_nonzero() == 0
        masks.set_masks(dense, {"0.weight": torch.ones_like(before, dtype=torch.bool)})
        assert torch.equal(dense[0].weight, before)

    def test_a_recurrent_layer_is_copied_with_masks_of_its_own(self):
        """It keeps the weights it last computed, with their history; `.double()` too computes them."""
        lstm = nn.LSTM(2, 3, num_layers=2)
        masks.attach(lstm, {name: checkerboard(each) for name, each in lstm.named_parameters() if "weight" in name})
        x = torch.randn(4, 1, 2, dtype=torch.double)
        wanted = lstm.double()(x)[0]
        wanted.sum().backward()
        twin = copy.deepcopy(copy.deepcopy(lstm))
        masks.set_masks(lstm, {"weight_hh_l1": torch.zeros(12, 3, dtype=torch.bool)})
        torch.testing.assert_close(twin(x)[0], wanted)
        assert not torch.equal(lstm(x)[0], wanted)
        twin(x)[0].sum().backward()
        assert all(parameter.grad is not None for parameter in twin.parameters())

    def test_baking_ends_the_parametrization_in_a_copy(self, dense):
        mask = checkerboard(dense[0].weight)
        masks.attach(dense, {"0.weight": mask})
        baked = masks.bake(dense)
        assert torch.equal(baked(X), dense(X))
        assert [name for name, _ in baked.named_parameters()] == [name for name, _ in network().named_parameters()]
        assert "0.parametrizations.weight.original" in dict(dense.named_parameters())
        assert torch.equal(baked[0].weight_mask, mask)


class TestBaked:
    def test_zeros_are_plain_zeros(self, baked):
        for name, mask in masks.masks_of(baked).items():
            removed = baked.get_parameter(name)[~mask]
            assert torch.equal(torch.signbit(removed), torch.zeros_like(removed, dtype=torch.bool)), "no minus zero"
            assert removed.count_nonzero() == 0

    def test_the_users_model_is_untouched(self, dense):
        state = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
        masks.bake(dense, {"0.weight": checkerboard(dense[0].weight)})
        assert state.keys() == dense.state_dict().keys()
        assert all(torch.equal(tensor, state[name]) for name, tensor in dense.state_dict().items())

    def test_masks_meet(self, baked):
        both = masks.bake(baked, {"0.weight": ~checkerboard(baked[0].weight)})
        assert both[0].weight.count_nonzero() == 0
        assert not both[0].weight_mask.any()

    def survives(self, baked, other: nn.Module) -> None:
        assert torch.equal(other(X), baked(X))
        assert masks.masks_of(other).keys() == masks.masks_of(baked).keys()
        assert all(torch.equal(mask, masks.masks_of(baked)[name]) for name, mask in masks.masks_of(other).items())

    def test_deepcopy(self, baked):
        self.survives(baked, copy.deepcopy(baked))

    def test_pickle(self, baked):
        self.survives(baked, pickle.loads(pickle.dumps(baked)))

    def test_torch_save(self, baked):
        stream = io.BytesIO()
        torch.save(baked, stream)
        stream.seek(0)
        self.survives(baked, torch.load(stream, weights_only=False))

    def test_state_dict(self, baked, dense):
        other = masks.bake(dense, {name: torch.ones_like(mask) for name, mask in masks.masks_of(baked).items()})
        other.load_state_dict(baked.state_dict())
        self.survives(baked, other)

    def test_symbolic_trace(self, baked):
        self.survives(baked, torch.fx.symbolic_trace(baked))

    def test_export(self, baked):
        program = torch.export.export(baked, (X,))
        torch.testing.assert_close(program.module()(X), baked(X))
        assert program.state_dict["0.weight"].count_nonzero() == baked[0].weight_mask.sum()

    def test_compile(self, baked):
        compiled = torch.compile(baked, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(X), baked(X))


class TestTrainingOn:
    def train(self, model: nn.Module, steps: int = 5) -> None:
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
        masks.keep_masks(model, optimizer)
        for _ in range(steps):
            optimizer.zero_grad()
            model(X).square().sum().backward()
            optimizer.step()

    def test_zeros_stay_and_the_rest_moves(self, baked):
        before = copy.deepcopy(baked)
        self.train(baked)
        for name, mask in masks.masks_of(baked).items():
            assert baked.get_parameter(name)[~mask].count_nonzero() == 0
            assert not torch.equal(baked.get_parameter(name), before.get_parameter(name))

    def test_without_the_hook_they_do_not(self, baked):
        optimizer = torch.optim.SGD(baked.parameters(), 0.1)
        baked(X).square().sum().backward()
        optimizer.step()
        assert baked[4].weight[~baked[4].weight_mask].count_nonzero() > 0

    def test_the_handle_ends_it(self, baked):
        optimizer = torch.optim.SGD(baked.parameters(), 0.1)
        masks.keep_masks(baked, optimizer).remove()
        baked(X).square().sum().backward()
        optimizer.step()
        assert baked[4].weight[~baked[4].weight_mask].count_nonzero() > 0


def test_a_shared_module_is_masked_once():
    layer = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": layer, "b": layer})
    baked = masks.bake(model, {"a.weight": torch.eye(4, dtype=torch.bool)})
    assert baked["a"] is baked["b"]
    assert baked["b"].weight.count_nonzero() <= 4


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.b.weight = self.a.weight


def test_tied_parameters_are_baked_together_and_refused_while_training():
    mask = torch.eye(3, dtype=torch.bool)
    with pytest.raises(PlanError, match=r"'a.weight' is the same tensor as 'b.weight'"):
        masks.attach(Tied(), {"a.weight": mask})
    baked = masks.bake(Tied(), {"a.weight": mask})
    assert baked.b.weight.count_nonzero() == 3


def attach(model, wrong):
    masks.attach(model, wrong)


@pytest.mark.parametrize("door", [attach, masks.bake])
@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"0.weigth": torch.ones(1, dtype=torch.bool)}, PlanError, "unknown parameter '0.weigth'; did you mean '0.w"),
        ({"9.weight": torch.ones(1, dtype=torch.bool)}, PlanError, "unknown parameter '9.weight'"),
        ({"4.weight": torch.ones(3, 64)}, ShapeError, r"is float32 \(3, 64\), must be bool \(3, 64\)"),
        ({"4.weight": torch.ones(64, 3, dtype=torch.bool)}, ShapeError, r"is bool \(64, 3\), must be bool \(3, 64\)"),
        ({"1.running_mean": torch.ones(4, dtype=torch.bool)}, PlanError, "unknown parameter '1.running_mean'"),
    ],
)
def test_bad_masks(dense, door, wrong, error, message):
    with pytest.raises(error, match=message):
        door(dense, wrong)
    assert not masks.masks_of(dense)


def test_nothing_in_silence(dense):
    with pytest.raises(PlanError, match="nothing to bake"):
        masks.bake(dense)
    with pytest.raises(PlanError, match="no mask that training could keep"):
        masks.keep_masks(dense, torch.optim.SGD(dense.parameters(), 0.1))
    worn = nn.Sequential(nn.Linear(2, 2))
    masks.attach(worn, {"0.weight": torch.eye(2, dtype=torch.bool)})  # which training keeps by itself
    with pytest.raises(PlanError, match="no mask that training could keep"):
        masks.keep_masks(worn, torch.optim.SGD(worn.parameters(), 0.1))
    with pytest.raises(PlanError, match=r"'0\.weight' carries no mask"):
        masks.set_masks(dense, {"0.weight": checkerboard(dense[0].weight)})
    masks.attach(dense, {"0.weight": checkerboard(dense[0].weight)})
    with pytest.raises(PlanError, match=r"'0\.weight' carries a mask already"):
        masks.attach(dense, {"0.weight": checkerboard(dense[0].weight)})
