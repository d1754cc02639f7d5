"""Dead filters go, and their constants go into biases, but only where padding cannot see them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning.dead import fold_dead
from tests.pruning.cutting import assert_answers_alike
from tests.pruning.networks import example as single
from tests.pruning.networks import lively, network
from workloads.errors import PlanError


def example(*args: int, **options: int) -> tuple[Tensor]:
    return (single(*args, **options)[0].double(),)


class Chain(nn.Module):
    """conv, batch norm, activation, and a second convolution that reads it with this padding."""

    def __init__(self, padding: int | str = 0, activation=torch.sigmoid, bias: bool = False, mode: str = "zeros"):
        super().__init__()
        self.conv, self.norm, self.activation = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), activation
        self.read = nn.Conv2d(6, 4, 3, padding=padding, bias=bias, padding_mode=mode)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.read(self.activation(self.norm(self.conv(x))))).mean((2, 3)))


def dead(model: nn.Module, *filters: tuple[str, list[int]]) -> nn.Module:
    """In eval mode and float64, with zero weights in these filters; their biases and batch norms are as they were."""
    lively(model.eval()).double()
    with torch.no_grad():
        for name, channels in filters:
            model.get_parameter(name)[channels] = 0
    return model


def shown(model: nn.Module) -> nn.Module:
    """The model without its dead filters, which answers as it did; it is not touched itself."""
    before = copy.deepcopy(model.state_dict())
    folded, plan = fold_dead(model, example())
    assert_answers_alike(plan.apply(folded, example()), model, example(3, seed=1))
    assert all(torch.equal(x, before[key]) for key, x in model.state_dict().items())
    return plan.apply(folded, example())


@pytest.mark.parametrize("bias", [False, True])
def test_worked_by_hand(bias):
    """conv makes 0 * x + 2, ReLU passes it, a 1x1 kernel of 3 reads it: 6 goes into the bias."""
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 1, 1, bias=bias), nn.Flatten(), nn.Linear(64, 5))
    with torch.no_grad():
        model[0].weight[0], model[0].bias[0], model[2].weight[0, 0] = 0, 2.0, 3.0
        if bias:
            model[2].bias[0] = -1.0
    small = shown(model.eval().double())
    assert (small[0].out_channels, small[2].in_channels) == (1, 1)
    assert small[2].bias.tolist() == [5.0 if bias else 6.0]


@pytest.mark.parametrize("padding", [0, "valid"])
def test_a_constant_is_folded_where_nothing_is_padded(padding):
    assert shown(dead(Chain(padding), ("conv.weight", [1, 4]))).conv.out_channels == 4


def test_copies_of_the_border_are_the_constant_too():
    model = dead(Chain(1, mode="replicate"), ("conv.weight", [1, 4]))
    assert shown(model).conv.out_channels == 4


@pytest.mark.parametrize("padding", [1, (0, 1), "same"])
def test_it_stays_where_padding_would_see_it(padding):
    model = dead(Chain(padding), ("conv.weight", [1, 4]))
    with pytest.raises(PlanError, match="unit 1 of conv is dead but stays: 'read' pads with zeros, and it is 0"):
        fold_dead(model, example())


def test_zero_is_no_constant_that_padding_could_see():
    """ReLU after a negative shift: the channel is zero, also at the border; the other is not, and stays."""
    model = dead(Chain(1, F.relu), ("conv.weight", [1, 4]))
    with torch.no_grad():
        for parameter in (model.norm.weight, model.norm.bias, model.norm.running_mean, model.conv.bias):
            parameter[[1, 4]] = 0.0
        model.norm.bias[1], model.norm.bias[4] = -1.0, 0.5
    folded, plan = fold_dead(model, example())
    assert plan.removed == {"conv": 1}
    assert plan.notes == ("unit 4 of conv is dead but stays: 'read' pads with zeros, and it is 0.5",)
    assert_answers_alike(plan.apply(folded, example()), model, example(3, seed=1))


def test_all_layers_that_make_a_channel_must_be_dead():
    """In a residual stream the stem and both blocks make it; then the head, which pads nothing, reads it too."""
    one = dead(network("Residual"), ("stem.weight", [2]))
    with pytest.raises(PlanError, match="no filter has only zero weights"):
        fold_dead(one, example())
    model = dead(network("Residual"), *((name, [2]) for name in ("stem.weight", "outer.0.weight", "outer.1.weight")))
    with torch.no_grad():
        for norm in (model.norm, *model.norms):
            norm.bias[2], norm.running_mean[2] = -1.0, 0.0
    assert shown(model).head.in_features == 7


def test_a_depthwise_layer_passes_a_zero_on_but_bends_a_constant_at_the_border():
    model = dead(network("Depthwise"), ("expand.weight", [3, 7]))
    with torch.no_grad():
        model.bn1.running_mean[:], model.bn1.bias[3], model.bn1.bias[7] = 0.0, -1.0, 1.0
    _, plan = fold_dead(model, example())
    assert plan.removed == {"expand": 1}
    assert plan.notes == ("unit 7 of expand is dead but stays: it is not the same everywhere where 'project' reads it",)
    assert shown(model).depth.groups == 23


def test_flattened_and_last_of_a_layer():
    model = dead(network("Flattened"), ("conv.weight", list(range(6))), ("fc1.weight", [0, 5]))
    _, plan = fold_dead(model, example())
    assert plan.notes == ("unit 0 of conv is dead but stays: a layer would keep no channel",)
    small = shown(model)
    assert (small.conv.out_channels, small.fc1.out_features) == (1, 12)


def test_in_single_precision_the_bias_is_rounded():
    model = dead(Chain(), ("conv.weight", [1, 4])).float()
    folded, plan = fold_dead(model, single())
    small = plan.apply(folded, single())
    assert {parameter.dtype for parameter in small.parameters()} == {torch.float32}
    with torch.no_grad():
        torch.testing.assert_close(small(*single()), model(*single()))
