"""Dead channels and constants: what may go, what must stay, and that the smaller module answers as before."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning import masks
from pruning.methods.magnitude import OneShotMagnitude
from pruning.shrink import Shrunk, shrink
from pruning.wiring import wire
from tests.pruning.cutting import assert_answers_alike
from tests.pruning.networks import NETWORKS, example, lively, network

ACTIVATIONS = (
    nn.ReLU(), nn.ReLU6(), nn.Sigmoid(), nn.Tanh(), nn.SiLU(), nn.Hardswish(), nn.Hardsigmoid(), nn.GELU(),
    nn.LeakyReLU(0.1), nn.ELU(), nn.Mish(), nn.Hardtanh(-2, 2), nn.PReLU(), nn.MaxPool2d(2), nn.AvgPool2d(2),
)  # fmt: skip


def zeroed(model: nn.Module, **places: object) -> nn.Module:
    """Parameters or buffers set to zero at an index; "." is written "__"."""
    with torch.no_grad():
        for name, index in places.items():
            path, _, leaf = name.replace("__", ".").rpartition(".")
            getattr(model.get_submodule(path), leaf)[index] = 0
    return model


def shrunk(model: nn.Module) -> Shrunk:
    """In float64 the smaller and the folded network answer as the model, which is not touched itself."""
    model = copy.deepcopy(model).double()
    before = copy.deepcopy(model.state_dict())
    found = shrink(model, (example()[0].double(),))
    assert_answers_alike(found.model.eval(), model.eval(), example(3, seed=1))
    assert_answers_alike(found.folded.eval(), model, example(3, seed=1))
    assert all(torch.equal(x, before[key]) for key, x in model.state_dict().items())
    return found


def removed(model: nn.Module) -> dict[str, list[int]]:
    """Units that go, by group."""
    plan = shrunk(model).plan
    return {g: sorted(set(range(plan.units[g])) - set(kept)) for g, kept in plan.channels.items()}


@pytest.mark.parametrize("name", NETWORKS)
class TestEveryNetwork:
    def test_a_dense_one_has_no_dead_channel(self, name):
        model = network(name)
        found = shrink(model, example())
        assert found.plan.is_empty
        assert found.plan.notes == ()
        for twin in (found.model, found.folded):
            assert twin is not model
            assert all(torch.equal(x, model.state_dict()[key]) for key, x in twin.state_dict().items())

    def test_zeroed_units_are_found_exactly(self, name):
        model = network(name)
        wiring = wire(model, example())
        groups = [wiring.analysis.group(group) for group in wiring.prunable]
        kept = {group.name: group.kept(max(group.minimum, group.size // 2)) for group in groups if group.size > 1}
        plan = shrunk(wiring.masked(model, kept)).plan
        assert plan.channels == {group: tuple(units.tolist()) for group, units in kept.items()}


class TestValues:
    """Units that are zero for every input."""

    def test_a_residual_stage_is_dead_where_all_that_make_it_are(self):
        model = zeroed(network("Residual"), stem__weight=3, norm__weight=3, norm__bias=3)
        assert removed(model) == {}
        model = zeroed(model, outer__0__weight=3, norms__0__weight=3, norms__0__bias=3)
        assert removed(model) == {}
        assert removed(zeroed(model, norms__1__weight=3, norms__1__bias=3)) == {"stem": [3]}

    def test_a_grouped_convolution_loses_the_same_channel_of_both_groups(self):
        model = zeroed(network("Grouped"), stem__weight=2, stem__bias=2)
        assert removed(model) == {}
        assert removed(zeroed(model, stem__weight=[2, 10], stem__bias=[2, 10])) == {"stem": [2]}

    def test_a_depthwise_convolution_hands_a_zero_on_unless_its_norm_shifts_it(self):
        model = zeroed(network("Depthwise"), expand__weight=5, bn1__weight=5, bn1__bias=5)
        model.bn2.bias.data[5], model.bn2.running_mean[5] = 1.0, 0.0
        found = shrunk(model)
        assert found.plan.removed == {"expand": 1}
        assert not torch.equal(found.model.bn3.running_mean, model.bn3.running_mean.double())  # there the 1 went
        model.bn2.bias.data[5] = -1.0  # behind it relu6 makes zero of that
        found = shrunk(model)
        assert found.plan.removed == {"expand": 1}
        assert torch.equal(found.model.bn3.running_mean, model.bn3.running_mean.double())

    def test_a_channel_of_a_concatenation_must_be_zero_for_all_that_read_it(self):
        model = zeroed(network("Fire"), left__weight=1, left__bias=1)
        assert removed(model) == {}  # the norm in front of `grow` shifts it
        assert shrunk(model).plan.notes == (
            "left: 1 constant unit stays, because 'grow' pads with zeros and would see another number there",
        )
        assert removed(zeroed(model, norm__bias=1, norm__running_mean=1)) == {"left": [1]}

    @pytest.mark.parametrize("bias", [-0.5, 0.0, 0.5])
    def test_a_bias_behind_a_relu(self, bias):
        model = zeroed(network("Chain"), conv3__weight=4)
        model.conv3.bias.data[4] = bias
        found = shrunk(model)
        assert found.plan.channels == {"conv3": (0, 1, 2, 3, 5)}
        wanted = model.head.bias + max(bias, 0) * model.head.weight[:, 4]
        torch.testing.assert_close(found.model.head.bias, wanted.double())

    def test_zero_weights_in_front_of_a_sigmoid_make_a_constant(self):
        model = zeroed(network("Gated"), conv1__weight=[0, 1], conv1__bias=[0, 1])
        assert removed(model) == {"conv1": [0, 1]}

    def test_a_parameter_that_is_a_single_number(self):
        class Scaled(nn.Sequential):
            def __init__(self) -> None:
                super().__init__(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
                self.scale = nn.Parameter(torch.tensor(1.5))

            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x) * self.scale

        assert removed(zeroed(Scaled(), **{"0__weight": 3, "0__bias": 3})) == {"0": [3]}

    def test_a_head_without_values(self):
        assert removed(zeroed(network("Attention"), value__weight=slice(4, 8), value__bias=slice(4, 8))) == {
            "query": [1]
        }

    @pytest.mark.parametrize("between", ACTIVATIONS, ids=lambda module: type(module).__name__)
    def test_what_is_not_known_stays_so(self, between):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), between, nn.Conv2d(4, 5, 3)).eval()
        plan = shrink(model, example()).plan
        assert plan.is_empty
        assert plan.notes == ()


class TestReads:
    """Units that no weight reads."""

    def test_all_that_read_a_residual_stage(self):
        model = zeroed(network("Residual"), inner__0__weight=(slice(None), 2), inner__1__weight=(slice(None), 2))
        assert removed(model) == {}
        assert removed(zeroed(model, head__weight=(slice(None), 2))) == {"stem": [2]}

    def test_what_only_dead_filters_read_is_dead(self):
        model = zeroed(network("Chain"), conv3__weight=(slice(None), 5))
        assert removed(model) == {"conv2": [5]}
        others = [filter for filter in range(12) if filter != 5]
        model.conv2.weight.data[others, 2] = 0
        assert removed(model) == {"conv1": [2], "conv2": [5]}

    def test_an_activation_that_shifts_does_not_matter(self):
        assert removed(zeroed(network("Gated"), conv2__weight=(slice(None), 3))) == {"conv1": [3]}

    def test_channels_multiplied_with_each_other_are_tried(self):
        class Gram(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.read, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 4), nn.Linear(36, 5)

            def forward(self, x: Tensor) -> Tensor:
                y = self.conv(x).flatten(2).transpose(1, 2)
                return self.head((y @ y.transpose(1, 2)).flatten(1)[:, :36]) + self.read(y).mean((1, 2))[:, None]

        torch.manual_seed(0)
        model = zeroed(Gram().eval(), read__weight=(slice(None), 2))
        plan = shrunk(model).plan
        assert plan.is_empty
        assert plan.notes == ("conv: 1 unread unit stays, because channels are multiplied with each other",)
        assert removed(zeroed(model, conv__weight=2, conv__bias=2)) == {"conv": [2]}


class Read(nn.Module):
    """conv, batch norm, activation, and a second convolution that reads it with this padding."""

    def __init__(self, padding: int | str = 0, activation=torch.sigmoid, mode: str = "zeros"):
        super().__init__()
        self.conv, self.norm, self.activation = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), activation
        self.read = nn.Conv2d(6, 4, 3, padding=padding, bias=False, padding_mode=mode)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.read(self.activation(self.norm(self.conv(x))))).mean((2, 3)))


def dead(model: nn.Module, **filters: list[int]) -> nn.Module:
    """In eval mode, with zero weights in these filters; their biases and batch norms are as they were."""
    return zeroed(lively(model.eval()), **filters)


class TestConstants:
    """Units of one value, not zero, that goes into the biases of what reads them."""

    @pytest.mark.parametrize("bias", [False, True])
    def test_worked_by_hand(self, bias):
        """conv makes 0 * x + 2, ReLU passes it, a 1x1 kernel of 3 reads it: 6 goes into the bias."""
        model = nn.Sequential(
            nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 1, 1, bias=bias), nn.Flatten(), nn.Linear(64, 5)
        )
        with torch.no_grad():
            model[0].weight[0], model[0].bias[0], model[2].weight[0, 0] = 0, 2.0, 3.0
            if bias:
                model[2].bias[0] = -1.0
        small = shrunk(model.eval()).model
        assert (small[0].out_channels, small[2].in_channels) == (1, 1)
        assert small[2].bias.tolist() == [5.0 if bias else 6.0]

    def test_each_group_of_a_convolution_reads_its_own(self):
        """0.5 and 2 are read by kernels of 3 and 5: 1.5 goes into both biases of the first group, 10 into others."""
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, groups=2), nn.Flatten(), nn.Linear(256, 5))
        with torch.no_grad():
            model[0].weight[[0, 2]], model[0].bias[0], model[0].bias[2] = 0, 0.5, 2.0
            model[1].weight[:2, 0], model[1].weight[2:, 0], model[1].bias[:] = 3.0, 5.0, 0.0
        small = shrunk(model.eval()).model
        assert small[1].in_channels == 2
        assert small[1].bias.tolist() == [1.5, 1.5, 10.0, 10.0]

    def test_without_a_bias_it_goes_into_the_running_mean(self):
        """conv makes 2, a kernel of 3 reads it, the batch norm subtracts 6 less: no tensor that was not there."""
        model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Conv2d(2, 1, 1, bias=False), nn.BatchNorm2d(1), nn.Flatten())
        model.append(nn.Linear(64, 5))
        with torch.no_grad():
            model[0].weight[0], model[0].bias[0], model[1].weight[0, 0] = 0, 2.0, 3.0
        small = shrunk(model.eval()).model
        assert small[2].running_mean.tolist() == [-6.0]
        assert small.state_dict().keys() == model.state_dict().keys()

    def test_a_batch_norm_of_two_convolutions_is_left_alone(self):
        class Two(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.norm, self.head = nn.Conv2d(3, 2, 1), nn.BatchNorm2d(4), nn.Linear(4, 5)
                self.one, self.two = nn.Conv2d(2, 4, 1, bias=False), nn.Conv2d(3, 4, 1, bias=False)

            def forward(self, x: Tensor) -> Tensor:
                return self.head((self.norm(self.one(self.conv(x))).relu() + self.norm(self.two(x))).mean((2, 3)))

        torch.manual_seed(0)
        found = shrunk(dead(Two(), conv__weight=[0]))
        assert found.plan.removed == {"conv": 1}
        assert found.model.one.bias is not None

    @pytest.mark.parametrize(("padding", "mode"), [(0, "zeros"), ("valid", "zeros"), (1, "replicate")])
    def test_a_constant_is_folded_where_no_zeros_are_padded(self, padding, mode):
        assert removed(dead(Read(padding, mode=mode), conv__weight=[1, 4])) == {"conv": [1, 4]}

    @pytest.mark.parametrize("padding", [1, (0, 1), "same"])
    def test_it_stays_where_padding_would_see_it(self, padding):
        plan = shrunk(dead(Read(padding), conv__weight=[1, 4])).plan
        assert plan.is_empty
        assert plan.notes == (
            "conv: 2 constant units stay, because 'read' pads with zeros and would see another number there",
        )

    def test_zero_is_no_constant_that_padding_could_see(self):
        """ReLU after a negative shift: the channel is zero, also at the border; the other is not, and stays."""
        model = dead(Read(1, F.relu), conv__weight=[1, 4], conv__bias=[1, 4], norm__weight=[1, 4])
        zeroed(model, norm__running_mean=[1, 4])
        model.norm.bias.data[1], model.norm.bias.data[4] = -1.0, 0.5
        found = shrunk(model)
        assert removed(model) == {"conv": [1]}
        assert [note.split(",")[0] for note in found.plan.notes] == ["conv: 1 constant unit stays"]

    def test_what_a_dead_filter_reads_need_not_be_folded(self):
        """`read` pads, but its filters that read the constant are dead themselves."""
        model = dead(Read(1), conv__weight=[1, 4], read__weight=(slice(0, 3), [1, 4]), head__weight=(slice(None), 3))
        assert removed(model) == {"conv": [1, 4], "read": [3]}

    def test_looking_goes_on_behind_what_was_folded(self):
        """conv3 makes a constant of unit 4, so it reads nothing of conv2, of which it alone read unit 5."""
        model = dead(network("Chain"), conv3__weight=[4])
        others = [filter for filter in range(6) if filter != 4]
        model.conv3.weight.data[4, 5], model.conv3.weight.data[others, 5] = 0.1, 0.0
        assert removed(model) == {}
        assert removed(zeroed(model, head__weight=(slice(None), 4))) == {"conv2": [5], "conv3": [4]}

    def test_all_layers_that_make_a_channel_must_be_dead(self):
        """In a residual stream the stem and both blocks make it; then the head, which pads nothing, reads it too."""
        assert removed(dead(network("Residual"), stem__weight=[2])) == {}
        model = dead(network("Residual"), stem__weight=[2], outer__0__weight=[2], outer__1__weight=[2])
        for norm in (model.norm, *model.norms):
            norm.bias.data[2], norm.running_mean[2] = -1.0, 0.0
        assert shrunk(model).model.head.in_features == 7

    def test_a_depthwise_layer_passes_a_zero_on_but_bends_a_constant_at_the_border(self):
        model = dead(network("Depthwise"), expand__weight=[3, 7])
        model.bn1.running_mean[:], model.bn1.bias.data[3], model.bn1.bias.data[7] = 0.0, -1.0, 1.0
        found = shrunk(model)
        assert removed(model) == {"expand": [3]}
        assert found.plan.notes == (
            "expand: 1 constant unit stays, because 'project' does not read the same number everywhere",
        )
        assert found.model.depth.groups == 23

    def test_flattened_and_last_of_a_layer(self):
        model = dead(network("Flattened"), conv__weight=list(range(5)), fc1__weight=[0, 5])
        small = shrunk(model).model
        assert (small.conv.out_channels, small.fc1.in_features, small.fc1.out_features) == (1, 9, 12)
        found = shrunk(zeroed(model, conv__weight=5))  # then nothing depends on the input
        assert found.plan.notes == tuple(
            f"{name}: 1 dead unit stays, because a layer would have no channel left" for name in ("conv", "fc1")
        )
        assert (found.model.conv.out_channels, found.model.fc1.out_features) == (1, 1)

    def test_a_layer_that_runs_twice_and_reads_different_numbers(self):
        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.read, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1), nn.Linear(6, 5)

            def forward(self, x: Tensor) -> Tensor:
                x = self.conv(x)
                return self.head((self.read(x) * self.read(2 * x)).mean((2, 3)))

        torch.manual_seed(0)
        plan = shrunk(dead(Twice(), conv__weight=[1])).plan
        assert plan.is_empty
        assert plan.notes == (
            "conv: 1 constant unit stays, because 'read' runs several times and reads different numbers",
        )

    def test_a_weight_tied_to_another_layer_is_left_alone(self):
        class Tied(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Linear(6, 5)
                self.one, self.two = nn.Conv2d(4, 6, 1, bias=False), nn.Conv2d(4, 6, 1, bias=False)
                self.two.weight = self.one.weight

            def forward(self, x: Tensor) -> Tensor:
                y = self.conv(x)
                return self.head((self.one(y) * self.two(torch.sigmoid(y))).mean((2, 3)))

        torch.manual_seed(0)
        plan = shrunk(dead(Tied(), conv__weight=[1])).plan
        assert plan.is_empty
        assert "has no bias that could take the number" in plan.notes[0]

    def test_in_single_precision_the_bias_is_rounded(self):
        model = dead(Read(), conv__weight=[1, 4])
        small = shrink(model, example()).model
        assert {parameter.dtype for parameter in small.parameters()} == {torch.float32}
        with torch.no_grad():
            torch.testing.assert_close(small(*example()), model(*example()))


class TestWhatStays:
    def test_one_unit_of_a_layer_that_is_dead_as_a_whole(self):
        model = zeroed(network("Residual"), inner__0__weight=slice(None), inner__0__bias=slice(None))
        plan = shrunk(model).plan
        assert [len(kept) for kept in plan.channels.values()] == [1]
        assert plan.notes == ("inner.0: 1 dead unit stays, because a layer would have no channel left",)
        assert len(removed(model)["inner.0"]) == 5

    def test_a_unit_that_stays_only_to_fill_a_layer_is_silent(self):
        """relu(1 - 6 * 2) is zero; without the constant 2, which only it reads, relu(1) would not be."""

        class Two(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.idle, self.other = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 3, 1), nn.Conv2d(2, 4, 1)
                self.head, self.more = nn.Linear(3, 5), nn.Linear(4, 5)

            def forward(self, x: Tensor) -> Tensor:
                y = self.conv(x)
                return self.head(self.idle(y).relu().mean((2, 3))) + self.more(self.other(y).relu().mean((2, 3)))

        torch.manual_seed(0)
        model = zeroed(Two().eval(), conv__weight=0, idle__weight=slice(None), other__weight=(slice(None), 0))
        model.conv.bias.data[0], model.idle.bias.data[:], model.idle.weight.data[:, 0] = 2.0, 1.0, -6.0
        found = shrunk(model)
        assert found.plan.removed == {"conv": 1, "idle": 2}
        assert found.plan.notes == ("idle: 1 dead unit stays, because a layer would have no channel left",)

    def test_the_mode(self):
        model = zeroed(network("Chain"), conv3__weight=(slice(None), 5)).train()
        found = shrink(model, example())
        assert model.training
        assert found.model.training
        assert found.plan.removed == {"conv2": 1}

    def test_masks_of_what_is_left(self):
        """Whole filters pruned, then removed: a smaller module, whose masks are those of the filters that stay."""
        pruner = OneShotMagnitude(
            network("Chain"), example(), density={"conv1": 0.5, "conv3": 0.5}, granularity="filter"
        )
        baked = pruner.finalize()
        assert shrunk(baked).plan.removed == {"conv1": 4, "conv3": 3}
        small = shrink(baked, example()).model
        assert small.conv1.out_channels == small.conv2.in_channels == 4
        found = masks.masks_of(small)
        assert found["conv1.weight"].shape == small.conv1.weight.shape
        assert all(mask.all() for mask in found.values())


def test_random_zeros_never_change_an_answer():
    """Filters, columns and shifts set to zero at random: whatever is found can go."""
    rng, found = np.random.default_rng(0), 0
    for name in ("Residual", "Grouped", "Depthwise", "Fire", "PreActivation", "SqueezeExcite"):
        model = network(name)
        with torch.no_grad():
            for parameter in model.parameters():
                for axis in range(min(2, parameter.dim())):
                    gone = torch.from_numpy(rng.random(parameter.shape[axis]) < 0.5)
                    parameter.index_fill_(axis, gone.nonzero()[:, 0], 0)
        found += sum(map(len, removed(model).values()))
    assert found > 20
