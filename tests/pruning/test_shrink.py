"""Dead channels: what may go, what must stay, and that the smaller module answers as before."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pruning import masks
from pruning.methods.magnitude import OneShotMagnitude
from pruning.shrink import dead_channels
from pruning.wiring import wire
from tests.pruning.networks import NETWORKS, example, network

ACTIVATIONS = (
    nn.ReLU(), nn.ReLU6(), nn.Sigmoid(), nn.Tanh(), nn.SiLU(), nn.Hardswish(), nn.Hardsigmoid(), nn.GELU(),
    nn.LeakyReLU(0.1), nn.ELU(), nn.Hardtanh(-2, 2), nn.PReLU(), nn.MaxPool2d(2), nn.AvgPool2d(2),
)  # fmt: skip


def zeroed(model: nn.Module, **places: object) -> nn.Module:
    """Parameters or buffers set to zero at an index; "." is written "__"."""
    with torch.no_grad():
        for name, index in places.items():
            path, _, leaf = name.replace("__", ".").rpartition(".")
            getattr(model.get_submodule(path), leaf)[index] = 0
    return model


def removed(model: nn.Module) -> dict[str, list[int]]:
    """Units that the plan removes; the smaller module must answer as the model does."""
    plan = dead_channels(model, example())
    if not plan.is_empty:
        x = example(4, seed=1)[0]
        torch.testing.assert_close(plan.apply(model, example()).eval()(x), model(x), rtol=1e-5, atol=1e-6)
    return {g: sorted(set(range(plan.units[g])) - set(kept)) for g, kept in plan.channels.items()}


@pytest.mark.parametrize("name", NETWORKS)
class TestEveryNetwork:
    def test_a_dense_one_has_no_dead_channel(self, name):
        plan = dead_channels(network(name), example())
        assert plan.is_empty
        assert plan.notes == ()

    def test_zeroed_units_are_found_exactly(self, name):
        model = network(name)
        wiring = wire(model, example())
        groups = [wiring.analysis.group(group) for group in wiring.prunable]
        kept = {group.name: group.kept(max(group.minimum, group.size // 2)) for group in groups if group.size > 1}
        plan = dead_channels(wiring.masked(model, kept), example())
        assert plan.channels == {group: tuple(units.tolist()) for group, units in kept.items()}
        assert removed(wiring.masked(model, kept)).keys() == kept.keys()


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
        plan = dead_channels(model, example())
        assert plan.is_empty
        assert plan.notes[0].startswith("expand: 1 unit is constant but not zero and stays;")
        model.bn2.bias.data[5] = -1.0  # behind it relu6 makes zero of that
        assert removed(model) == {"expand": [5]}

    def test_a_channel_of_a_concatenation_must_be_zero_for_all_that_read_it(self):
        model = zeroed(network("Fire"), left__weight=1, left__bias=1)
        assert removed(model) == {}  # the norm in front of `grow` shifts it
        assert "left: 1 unit is constant" in dead_channels(model, example()).notes[0]
        assert removed(zeroed(model, norm__bias=1, norm__running_mean=1)) == {"left": [1]}

    @pytest.mark.parametrize(("bias", "gone"), [(-0.5, {"conv3": [4]}), (0.0, {"conv3": [4]}), (0.5, {})])
    def test_a_bias_behind_a_relu(self, bias, gone):
        model = zeroed(network("Chain"), conv3__weight=4)
        model.conv3.bias.data[4] = bias
        assert removed(model) == gone

    def test_zero_weights_in_front_of_a_sigmoid_make_a_constant(self):
        model = zeroed(network("Gated"), conv1__weight=[0, 1], conv1__bias=[0, 1])
        plan = dead_channels(model, example())
        assert plan.is_empty
        assert plan.notes[0].startswith("conv1: 2 units are constant but not zero and stay;")

    def test_a_head_without_values(self):
        assert removed(zeroed(network("Attention"), value__weight=slice(4, 8), value__bias=slice(4, 8))) == {
            "query": [1]
        }

    @pytest.mark.parametrize("between", ACTIVATIONS, ids=lambda module: type(module).__name__)
    def test_what_is_not_known_stays_so(self, between):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), between, nn.Conv2d(4, 5, 3)).eval()
        plan = dead_channels(model, example())
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
        plan = dead_channels(model, example())
        assert plan.is_empty
        assert plan.notes == ("conv: units that nothing reads are multiplied with others, so all stay",)
        assert removed(zeroed(model, conv__weight=2, conv__bias=2)) == {"conv": [2]}


class TestWhatStays:
    def test_one_unit_of_a_layer_that_is_dead_as_a_whole(self):
        model = zeroed(network("Residual"), inner__0__weight=slice(None), inner__0__bias=slice(None))
        plan = dead_channels(model, example())
        assert [len(kept) for kept in plan.channels.values()] == [1]
        assert plan.notes == ("inner.0: 1 dead unit stays, because a layer would have no channel left",)
        assert len(removed(model)["inner.0"]) == 5

    def test_the_model(self):
        model = zeroed(network("Chain"), conv3__weight=(slice(None), 5)).train()
        before = copy.deepcopy(model.state_dict())
        dead_channels(model, example())
        assert model.training
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    def test_masks_of_what_is_left(self):
        """Whole filters pruned, then removed: a smaller module, whose masks are those of the filters that stay."""
        pruner = OneShotMagnitude(
            network("Chain"), example(), density={"conv1": 0.5, "conv3": 0.5}, granularity="filter"
        )
        baked = pruner.finalize()
        assert {group: len(units) for group, units in removed(baked).items()} == {"conv1": 4, "conv3": 3}
        small = dead_channels(baked, example()).apply(baked, example())
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
