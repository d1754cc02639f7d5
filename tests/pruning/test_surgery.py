"""Surgery: the smaller module answers as the masked one does, for every way in which channels can be tied."""

import copy
import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning import masks
from pruning.plan import PruningPlan, magnitude_masks, make_plan
from pruning.surgery import check_equal, cut, random_inputs
from pruning.wiring import wire
from tests.pruning.cutting import as_plan, assert_answers_alike, compare, parameters, random_units
from tests.pruning.networks import NETWORKS, awake, example, network
from workloads.channels import analyze
from workloads.errors import CodesignError, PlanError
from workloads.graph import Op
from workloads.lowering import lower
from workloads.models import build, example_input
from workloads.sparsity import WeightSparsity

JOINED = "'mul' runs but its answer is not used, and joins channels that are free otherwise"
TORN = "it would cut 'middle.{}', which also serves a call that runs but whose answer is not used"
READ = "array 'linear.weight' of layer 'linear' is computed from 'middle.weight', so it cannot be cut"
NO_IMAGES = (Op.TRANSPOSE, Op.RESHAPE, Op.MATMUL, Op.SOFTMAX)  # the height and width of their input mean nothing


@pytest.mark.parametrize("name", NETWORKS)
class TestEveryKindOfTie:
    def test_pruned_equals_masked(self, name):
        model = network(name)
        wiring = wire(model, example())
        assert wiring.prunable == wiring.analysis.names, "every group that may lose units can be cut"
        for seed in range(4):
            kept = random_units(wiring, np.random.default_rng(seed), (0.2, 0.5, 0.8, 0.95)[seed])
            small = compare(model, wiring, kept, example(3, seed))
            assert parameters(small) < parameters(model)
            with torch.no_grad():
                assert not torch.allclose(small(*example()), model(*example()), atol=1e-3), "nothing happened"

    def test_each_group_alone(self, name):
        model = network(name)
        wiring = wire(model, example())
        for group, units in random_units(wiring, np.random.default_rng(0)).items():
            compare(model, wiring, {group: units}, example())

    def test_the_graph_of_the_smaller_module_is_the_predicted_one(self, name):
        """Shape arithmetic (which searches use) and surgery agree in every dim of every layer."""
        model = network(name)
        wiring = wire(model, example())
        kept = random_units(wiring, np.random.default_rng(1))
        found = lower(cut(model, wiring, kept), example())
        wanted = wiring.analysis.graph_units(kept)
        for a, b in zip(found.layers, wanted.layers, strict=True):
            same = {"in_h": 1, "in_w": 1} if a.op in NO_IMAGES else {}
            assert dataclasses.replace(a, **same) == dataclasses.replace(b, **same)

    def test_the_plan_applies_and_the_user_keeps_their_model(self, name):
        model = network(name).train()
        wiring = wire(model, example())
        kept = random_units(wiring, np.random.default_rng(2))
        before = copy.deepcopy(model.state_dict())
        small = as_plan(wiring, kept).apply(model, example())
        assert model.training
        assert small.training
        assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
        assert list(small.state_dict()) == list(before)
        assert not {id(tensor) for tensor in small.parameters()} & {id(tensor) for tensor in model.parameters()}

    def test_it_trains_and_pickles(self, name):
        model = network(name)
        wiring = wire(model, example())
        small = as_plan(wiring, random_units(wiring, np.random.default_rng(3))).apply(model, example()).train()
        small(example(4)[0]).square().sum().backward()
        assert all(parameter.grad.shape == parameter.shape for parameter in small.parameters())
        assert parameters(copy.deepcopy(small)) == parameters(small)

    def test_masks_train_and_then_cut_the_same(self, name):
        """Channel masks baked into the full model, then removed: the answer does not change."""
        model = network(name)
        wiring = wire(model, example())
        kept = random_units(wiring, np.random.default_rng(4))
        baked = masks.bake(model, wiring.masks(model, kept))
        small = as_plan(wiring, kept).apply(baked, example())
        with torch.no_grad():
            torch.testing.assert_close(small(*example()), baked(*example()), rtol=1e-4, atol=1e-5)
        for key, mask in masks.masks_of(small).items():
            assert mask.shape == small.get_parameter(key).shape
            assert mask.all(), "what was masked is gone"


class TestZoo:
    @pytest.mark.parametrize("name", ["resnet20", "digits_cnn", "lenet5", "resnet8", "mobilenet_v1_0.25_128"])
    def test_networks_of_the_zoo(self, name):
        x = (example_input(name, 2),)
        model = awake(build(name), *x)
        wiring = wire(model, x)
        assert wiring.prunable == wiring.analysis.names
        compare(model, wiring, random_units(wiring, np.random.default_rng(0)), x)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["vgg16_cifar", "mobilenet_v2", "squeezenet1_1", "resnet18", "resnet50"])
    def test_large_networks_of_the_zoo(self, name):
        x = (example_input(name, 2),)
        model = awake(build(name), *x)
        wiring = wire(model, x)
        assert wiring.prunable == wiring.analysis.names
        compare(model, wiring, random_units(wiring, np.random.default_rng(0)), x)

    def test_inner_channels_of_resnet20(self):
        model, x = build("resnet20"), (example_input("resnet20"),)
        wiring = wire(model, x)
        inner = {name: np.arange(0, wiring.analysis.group(name).size, 2) for name in wiring.prunable if "." in name}
        assert len(inner) == 9
        small = compare(model, wiring, inner, (example_input("resnet20", 2),))
        widths = [small.get_submodule(name).out_channels for name in inner]
        assert widths == [8, 8, 8, 16, 16, 16, 32, 32, 32]
        assert small.layer2[0].bn1.num_features == 16
        assert small.layer2[0].conv2.in_channels == 16
        assert lower(small, x).macs == wiring.analysis.graph(dict.fromkeys(inner, 1) | {
            name: len(units) for name, units in inner.items()
        }).macs  # fmt: skip

    def test_option_a_padding_follows_exact_channels(self):
        """The stream of resnet20: 16 channels from the start, 16 more from stage 2, 32 more from stage 3."""
        x = (example_input("resnet20", 2),)
        model = awake(build("resnet20"), *x)
        wiring = wire(model, x)
        group = wiring.analysis.group("conv1")
        stages = [group.indices(layer, "output", np.arange(64)) for layer in ("conv1", "layer2.0.conv2")]
        assert [len(stage) for stage in stages] == [16, 32]
        rng = np.random.default_rng(0)
        for _ in range(3):
            kept = {"conv1": np.sort(rng.choice(64, 40, replace=False))}
            small = compare(model, wiring, kept, x)
            before, after = (getattr(small.layer2[0].shortcut, f"channels_{side}") for side in ("before", "after"))
            narrow, wide = (small.get_submodule(name).out_channels for name in ("conv1", "layer2.0.conv2"))
            assert narrow + before + after == wide < 32

    def test_unstructured_masks_and_channels_together(self):
        model, x = build("digits_cnn"), (example_input("digits_cnn", 2),)
        wiring = wire(model, x)
        graph = wiring.graph
        found = magnitude_masks(model, graph, {("block1.conv2", 0): (0.3, "weight"), ("fc", 7): (0.5, "weight")})
        zeros = {layer: mask for (layer, _), mask in found.items()}
        kept = {"block1.conv1": np.arange(3, 20), "block2.conv2": np.arange(0, 64, 3)}
        small = as_plan(wiring, kept, masks=zeros).apply(model, x)
        wanted = zeros["block1.conv2"].select(None, kept["block1.conv1"])
        assert np.array_equal(small.block1.conv2.weight_mask.numpy(), wanted.mask())
        lowered = lower(small, x)
        assert lowered["block1.conv2"].sparsity == wanted
        assert lowered["fc"].sparsity == zeros["fc"].select(None, kept["block2.conv2"])
        assert lowered["block2.conv1"].sparsity is None


class TestShapesOfModules:
    def test_attributes_follow_their_tensors(self):
        model = network("Depthwise")
        wiring = wire(model, example())
        small = cut(model, wiring, {"expand": np.arange(5), "stem": np.arange(1, 4)})
        assert (small.depth.groups, small.depth.in_channels, small.depth.out_channels) == (5, 5, 5)
        assert (small.bn2.num_features, small.project.in_channels, small.project.out_channels) == (5, 5, 3)
        assert (small.twice.groups, small.twice.in_channels, small.twice.out_channels) == (3, 3, 6)
        assert small.head.in_features == 6

    def test_groups_keep_their_number_or_their_width(self):
        model = network("Grouped")
        wiring = wire(model, example())
        small = cut(model, wiring, {"wide": np.array([0, 4, 5]), "stem": np.array([2])})
        assert (small.wide.groups, small.wide.in_channels, small.wide.out_channels) == (2, 2, 12)
        assert (small.narrow.groups, small.narrow.in_channels, small.narrow.out_channels) == (6, 12, 12)

    def test_group_norm_loses_whole_groups(self):
        model = network("Normalised")
        small = cut(model, wire(model, example()), {"conv": np.array([1, 3]), "up": np.arange(3)})
        assert (small.norm.num_groups, small.norm.num_channels, small.act.num_parameters) == (2, 6, 6)
        assert (small.up.in_channels, small.up.out_channels, small.scale.shape) == (6, 3, (3, 1, 1))

    def test_a_shared_module_is_cut_once(self):
        model = network("Shared")
        small = cut(model, wire(model, example()), {"stem": np.array([1, 2, 5])})
        assert small.twice.weight.shape == (3, 3, 3, 3)

    def test_tied_parameters_stay_tied(self):
        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem, self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1, bias=False)
                self.b.weight, self.head = self.a.weight, nn.Linear(8, 5)

            def forward(self, x):
                return self.head(F.relu(self.b(F.relu(self.a(F.relu(self.stem(x)))))).mean((2, 3)))

        model = Tied()
        wiring = wire(model, example())
        small = compare(model, wiring, {wiring.prunable[0]: np.array([0, 3, 4])}, example())
        assert small.a.weight is small.b.weight
        assert (small.a.out_channels, small.b.in_channels) == (3, 3)

    def test_heads_go_as_a_whole(self):
        model = network("Attention")
        wiring = wire(model, example())
        small = compare(model, wiring, {"query": np.array([0, 2])}, example())
        assert small.query.out_features == small.value.out_features == small.out.in_features == 8
        assert torch.equal(small.query.weight, model.query.weight[[0, 1, 2, 3, 8, 9, 10, 11]])


class ConstantView(nn.Module):
    """Writes 8 where it should read the number of channels."""

    def __init__(self):
        super().__init__()
        self.conv, self.tail = nn.Conv2d(3, 8, 1), nn.Sequential(nn.Flatten(), nn.Linear(8 * 64, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(F.relu(self.conv(x)).view(len(x), 8, 64))


class ConstantPadding(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.wide, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.wide(x) + F.pad(self.conv(x), (0, 0, 0, 0, 2, 2))).mean((2, 3)))


class Wrong(nn.Module):
    """Scales by the number of channels that its code was written with."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(x)).mean((2, 3)) * self.conv.out_channels)


class Numbers(nn.Module):
    """Attention of nanoGPT's kind, which keeps its width and its number of heads in attributes."""

    def __init__(self, width: int = 12, heads: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 4, stride=4)
        self.qkv, self.out, self.head = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.Linear(width, 5)
        self.width, self.shape = width, [heads, width // heads]

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).flatten(2).transpose(1, 2)
        n, t, _ = x.shape
        q, k, v = (y.view(n, t, *self.shape).transpose(1, 2) for y in self.qkv(x).split(self.width, 2))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, self.width)
        return self.head((x + self.out(y)).mean(1))


class Normed(nn.Module):
    """A group norm called as a function, of which only a trace arrives; with the old number of groups it runs, too."""

    def __init__(self):
        super().__init__()
        self.conv, self.groups, self.head = nn.Conv2d(3, 16, 3), 4, nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.head((x + 1e-7 * F.group_norm(x, self.groups)).mean((2, 3)))


class Longest(nn.Module):
    """Attention whose longest context, which no example reaches, is as long as its heads together are wide."""

    def __init__(self):
        super().__init__()
        self.inner, self.width, self.longest = 16, 4, 16
        self.qkv, self.out = nn.Linear(8, 48), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x[:, : self.longest].shape
        q, k, v = (y.view(n, t, -1, self.width).transpose(1, 2) for y in self.qkv(x).split(self.inner, 2))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, -1))


class Pixels(nn.Module):
    """Attention over channels, from 1x1 convolutions, with its heads counted in an attribute."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Conv2d(3, 12, 1) for _ in range(3))
        self.head, self.heads = nn.Linear(12, 5), 3

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        q, k, v = (layer(x).view(n, self.heads, -1, h * w) for layer in (self.q, self.k, self.v))
        y = v @ (q.transpose(2, 3) @ k).softmax(-1).transpose(2, 3)
        return self.head(y.reshape(n, -1, h * w).mean(2))


@dataclass
class Record:
    logits: Tensor


torch.export.register_dataclass(Record)


class WrongRecord(Wrong):
    def forward(self, x: Tensor) -> Record:
        return Record(super().forward(x))


class Silent(nn.Module):
    def forward(self, x: Tensor) -> int:
        return 1


class Summed(nn.Module):
    """A sum that starts from zeros or ones in the shape of a tensor."""

    def __init__(self, start):
        super().__init__()
        self.start, self.stem, self.head = start, nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1)
        self.parts = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        out = self.start(x)
        for part in self.parts:
            out = out + part(x)
        return self.head(out)


@pytest.mark.parametrize("start", [torch.zeros_like, torch.ones_like, lambda x: torch.full_like(x, -2.5)])
def test_a_constant_in_the_shape_of_a_tensor_is_cut_with_it(start):
    model = Summed(start).eval()
    wiring = wire(model, example())
    assert wiring.prunable == ("stem",)
    small = compare(model, wiring, {"stem": np.array([0, 3, 5])}, example())
    assert [tuple(part.weight.shape[:2]) for part in small.parts] == [(3, 3), (3, 3)]


class Gated(nn.Module):
    """WaveNet, whose last residual convolution, and a head, run for nothing."""

    def __init__(self, is_in_place: bool):
        super().__init__()
        self.is_in_place, self.stem, self.head = is_in_place, nn.Conv1d(3, 8, 1), nn.Conv1d(10, 4, 1)
        self.filters, self.gates = (nn.ModuleList(nn.Conv1d(8, 6, 3, padding=1) for _ in range(2)) for _ in "ab")
        self.residual, self.skip = (nn.ModuleList(nn.Conv1d(6, width, 1) for _ in range(2)) for width in (8, 10))
        self.norm, self.extra = nn.BatchNorm1d(10), nn.Conv1d(10, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.stem(x), 0
        for filters, gates, residual, skip in zip(self.filters, self.gates, self.residual, self.skip, strict=True):
            inside = torch.tanh(filters(x)) * torch.sigmoid(gates(x))
            total = total + skip(inside)
            x = x.add_(residual(inside)) if self.is_in_place else x + residual(inside)
        self.extra(F.relu(self.norm(total)))
        return self.head(F.relu(total))


@pytest.mark.parametrize("is_in_place", [False, True])
def test_what_runs_for_nothing_is_cut_too(is_in_place):
    model, inputs = Gated(is_in_place).eval(), (torch.randn(2, 3, 16),)
    wiring = wire(model, inputs)
    assert "extra" not in wiring.graph.index
    assert wiring.prunable == ("stem", "filters.0", "skip.0", "filters.1")
    for name in wiring.prunable:
        kept = np.arange(1, wiring.analysis.group(name).size)
        compare(model, wiring, {name: kept}, inputs)
    small = as_plan(wiring, random_units(wiring, np.random.default_rng(0))).apply(model, inputs)
    assert list(small.state_dict()) == list(model.state_dict())
    assert small.residual[1].weight.shape[:2] == (small.stem.out_channels, small.gates[1].out_channels)
    assert small.norm.num_features == small.extra.in_channels == small.head.in_channels < 10
    if not is_in_place:  # torch refuses a gradient of what was overwritten
        small.train()(*inputs).sum().backward()


class Unread(nn.Module):
    """A call for nothing that cannot be cut: a depthwise one, or a module that serves the network elsewhere."""

    def __init__(self, call):
        super().__init__()
        self.call, self.stem, self.middle = call, nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.depthwise, self.head = nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 5, 1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.middle(F.relu(x)))
        self.call(self, x, y)
        return self.head(F.relu(y))


@pytest.mark.parametrize(
    ("call", "reasons"),
    [
        (lambda m, x, y: m.depthwise(y), {"middle": "'depthwise' runs but its answer is not used"}),
        (lambda m, x, y: m.middle(y), {"stem": TORN.format("weight"), "middle": TORN.format("bias")}),
        (
            lambda m, x, y: m.head(x),
            {"stem": JOINED.replace("mul", "head#2"), "middle": JOINED.replace("mul", "head#2")},
        ),
        (lambda m, x, y: (x * y).mean(1), {"stem": JOINED, "middle": JOINED}),
        (lambda m, x, y: x.mean(1), {}),
        (
            lambda m, x, y: F.linear(x.mean((2, 3)), m.middle.weight.flatten(1)),
            {"stem": READ, "middle": TORN.format("weight")},
        ),
    ],
)
def test_what_runs_for_nothing_and_cannot_be_cut_is_left_alone(call, reasons):
    found = dict(wire(Unread(call), example()).reasons)
    assert found.pop("head").startswith("they leave the network")
    assert found == reasons


class Slope(nn.Module):
    """slope * x + height, height a little off."""

    def __init__(self, slope: float, error: float):
        super().__init__()
        self.slope, self.height = slope, 0.05 + error

    def forward(self, x: Tensor) -> Tensor:
        return self.slope * x + self.height


class Helped(nn.Module):
    """A second head, of which inference knows nothing."""

    def __init__(self):
        super().__init__()
        self.conv, self.last, self.helper = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = F.relu(self.conv(x))
        answer = self.last(x).mean((2, 3))
        return (answer, self.helper(x).mean((2, 3))) if self.training else answer


class TestNumbersInAttributes:
    def test_they_follow(self):
        model = Numbers().eval()
        wiring = wire(model, example())
        kept = {"conv": np.arange(1, 10), "qkv": np.array([0, 2])}
        small = as_plan(wiring, kept).apply(model, example())
        assert (small.width, small.shape) == (8, [2, 4])
        assert (model.width, model.shape) == (12, [3, 4])
        assert_answers_alike(small, wiring.masked(model, kept), example())

    def test_they_follow_where_answers_would_hardly_tell(self):
        model = Normed().eval()
        small = as_plan(wire(model, example()), {"conv": np.array([0])}).apply(model, example())
        assert (model.groups, small.groups) == (4, 1)

    def test_those_that_need_not_change_do_not(self):
        model = Numbers().eval()
        small = as_plan(wire(model, example()), {"conv": np.arange(1, 10)}).apply(model, example())
        assert (small.width, small.shape) == (12, [3, 4])

    def test_another_that_is_as_large_stays(self):
        model = Longest().eval()
        small = as_plan(wire(model, (torch.randn(2, 6, 8),)), {"qkv": np.array([0, 2])}).apply(
            model, (torch.randn(2, 6, 8),)
        )
        assert (small.inner, small.longest) == (8, 16)

    @pytest.mark.parametrize("heads", [(0, 2), (1,)])  # an axis of one element is another channel axis for lowering
    def test_heads_of_pixels(self, heads):
        model = Pixels().eval()
        assert as_plan(wire(model, example()), {"q": np.array(heads)}).apply(model, example()).heads == len(heads)


class TestWhatCannotBeCut:
    def apply(self, model: nn.Module, group: str = "conv") -> None:
        wiring = wire(model, example())
        size = wiring.analysis.group(group).size
        PruningPlan("m", {group: tuple(range(1, size))}, {group: size}).apply(model, example())

    def test_constants_in_code_are_named(self):
        with pytest.raises(PlanError, match=r"the model \(ConstantView\): shape .* does its code fix a number"):
            self.apply(ConstantView())

    def test_padding_by_constants_is_named(self):
        model = ConstantPadding()
        group = wire(model, example()).prunable[0]
        with pytest.raises(PlanError, match="pads channels with numbers that stand in the code of ConstantPadding"):
            self.apply(model, group)

    def test_other_answers_are_found_out(self):
        with pytest.raises(PlanError, match="'head' \\(Linear\\): it answers otherwise than the masked model"):
            self.apply(Wrong())

    def test_other_answers_in_a_record_are_found_out(self):
        with pytest.raises(PlanError, match="it answers otherwise than the masked model"):
            self.apply(WrongRecord())

    def test_answers_that_cannot_be_compared_are_refused(self):
        with pytest.raises(PlanError, match="the model answers int, in which no tensor is found"):
            check_equal(Silent(), Silent(), example())

    def test_heads_that_only_help_to_train_are_named(self):
        with pytest.raises(PlanError, match=r"conv the smaller model fails in training, first in 'helper' \(Conv2d\)"):
            self.apply(Helped())

    def test_computed_weights_are_named(self):
        model = network("Chain")
        model.conv2 = nn.utils.parametrizations.weight_norm(model.conv2)
        assert wire(model, example()).prunable == ("conv3",)
        with pytest.raises(PlanError, match=r"'conv1': array .* is computed from .* finish parametr"):
            self.apply(model, "conv1")

    def test_a_model_in_training_under_masks_is_refused(self):
        model = network("Chain")
        masks.attach(model, {"conv1.weight": torch.ones(8, 3, 3, 3, dtype=torch.bool)})
        with pytest.raises(PlanError, match=r"is computed from 'conv1.*mask', .* so it cannot be cut; finish param"):
            self.apply(model, "conv1")

    def test_rounding_is_measured_by_what_inputs_change_and_else_by_the_answer(self):
        inputs = (torch.randn(2, 3, dtype=torch.float64),)
        check_equal(Slope(0.0, 0.0), Slope(0.0, 1e-11), inputs)
        with pytest.raises(PlanError, match="it answers otherwise than the masked model"):
            check_equal(Slope(0.0, 0.0), Slope(0.0, 1e-8), inputs)
        check_equal(Slope(1e-5, 0.0), Slope(1e-5, 1e-13), inputs)
        with pytest.raises(PlanError, match="it answers otherwise than the masked model"):
            check_equal(Slope(1e-5, 0.0), Slope(1e-5, 1e-11), inputs)

    def test_check_equal_sees_one_wrong_weight(self):
        model = network("Residual")
        twin = copy.deepcopy(model)
        with torch.no_grad():
            twin.outer[1].weight[0, :, 1, 1] += 0.001
        with pytest.raises(PlanError, match=r"first seen in 'outer\.1' \(Conv2d\)"):
            check_equal(model, twin, example(), "nothing")
        check_equal(model, copy.deepcopy(model), example(), "nothing")


def wrong_plan(**fields) -> PruningPlan:
    return PruningPlan(**{"model": "m", "channels": {"conv1": (0, 1)}, "units": {"conv1": 8}} | fields)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (PruningPlan("m"), "the plan removes nothing"),
        (wrong_plan(channels={"conv1": tuple(range(8))}), "the plan removes nothing"),
        (wrong_plan(units={"conv1": 9}), "group 'conv1' had 9 units, this model's has 8"),
        (wrong_plan(channels={"conv9": (0,)}, units={"conv9": 8}), "unknown channel group 'conv9'"),
        (wrong_plan(channels={"bn1": (0,)}, units={"bn1": 8}), "unknown channel group 'bn1'"),
        (
            wrong_plan(channels={"head": (0,)}, units={"head": 5}),
            "'head' must keep all 5 units: they leave the network",
        ),
        (wrong_plan(masks={"conv7": WeightSparsity.from_mask(np.zeros((2, 2), bool))}), "unknown layer with weights"),
        (
            wrong_plan(masks={"conv2": WeightSparsity.from_mask(np.zeros((2, 2), bool))}),
            r"the weight is \(12, 8, 3, 3\)",
        ),
        (
            wrong_plan(masks={"conv2": WeightSparsity.from_density((12, 8, 3, 3), 0.5)}),
            "only the density 0.500 is known",
        ),
    ],
)
def test_plans_that_do_not_fit(plan, message):
    with pytest.raises(PlanError, match=message):
        plan.apply(network("Chain"), example())


class TestMakingPlans:
    def test_channels_to_keep_stay_however_they_rank(self):
        analysis = analyze(lower(network("Residual"), example()))
        ranking = {"stem": list(range(8)), "inner.1": list(range(10))}
        counts, keep = {"stem": 3, "inner.1": 2}, {"outer.1": [6], "stem": [7, 6], "inner.1": [9], "head": [0]}
        plan = make_plan("residual", analysis, counts, ranking, keep=keep)
        assert plan.channels == {"stem": (0, 6, 7), "inner.1": (0, 9)}
        with pytest.raises(PlanError, match="channel group 'stem': 1 units do not hold all that are to be kept"):
            make_plan("residual", analysis, {"stem": 1}, ranking, keep=keep)
        with pytest.raises(PlanError, match=r"layer 'stem': channels \[8\], must be in 0\.\.7"):
            make_plan("residual", analysis, counts, ranking, keep={"stem": [8]})
        with pytest.raises(PlanError, match="unknown layer 'stam'; did you mean 'stem'"):
            make_plan("residual", analysis, counts, ranking, keep={"stam": [8]})

    def test_channels_to_keep_take_the_place_of_others_of_their_kind(self):
        """In resnet20 a channel of the third stage may not push out one that runs through all."""
        analysis = analyze(lower(build("resnet20"), example_input("resnet20")))
        group = analysis.group("conv1")
        last = group.indices("layer3.2.conv2", "output", group.order)[-3:]
        plan = make_plan("resnet20", analysis, {"conv1": 40}, {"conv1": group.order}, keep={"layer3.2.conv2": last})
        (units,) = analysis.units("layer3.2.conv2", last).values()
        assert set(units) <= set(plan.channels["conv1"])
        assert analysis.graph_units(plan.channels).macs == analysis.graph({"conv1": 40}).macs

    def test_counts_follow_the_ranking(self):
        analysis = analyze(lower(network("Chain"), example()))
        ranking = {"conv1": [7, 3, 5, 0, 1, 2, 4, 6], "conv3": np.array([5, 4, 3, 2, 1, 0])}
        plan = make_plan("chain", analysis, {"conv1": 3, "conv3": 6}, ranking, notes=["by hand"])
        assert plan.channels == {"conv1": (3, 5, 7), "conv3": (0, 1, 2, 3, 4, 5)}
        assert plan.units == {"conv1": 8, "conv3": 6}
        assert plan.removed == {"conv1": 5}
        assert plan.notes == ("by hand", "head keeps all 5 units: they leave the network (output 'head')")
        assert plan.apply(network("Chain"), example()).conv1.out_channels == 3

    @pytest.mark.parametrize(
        ("counts", "message"),
        [
            ({"conv1": 0}, "cannot keep 0 units"),
            ({"conv1": 9}, "cannot keep 9 units"),
            ({"conv2": 3}, "no ranking of channel group 'conv2'"),
            ({"other": 3}, "unknown channel group 'other'"),
            ({"conv1": 8}, "removes nothing"),
            ({}, "removes nothing"),
        ],
    )
    def test_bad_counts(self, counts, message):
        analysis = analyze(lower(network("Chain"), example()))
        with pytest.raises(PlanError, match=message):
            make_plan("chain", analysis, counts, {"conv1": list(range(8))})

    def test_magnitude_masks_keep_the_largest(self):
        model = network("Normalised")
        graph = lower(model, example())
        wanted = {("conv", 1): (0.25, "weight"), ("conv", 2): (2 / 9, "pattern"), ("up", 0): (0.5, "filter")}
        found = magnitude_masks(model, graph, wanted)
        assert found["conv", 1].nonzeros == round(12 * 27 * 0.25)
        assert found["conv", 2].follows_patterns(4, 4)
        kept = model.conv.weight[torch.from_numpy(found["conv", 1].mask())].abs()
        assert kept.min() >= model.conv.weight[torch.from_numpy(~found["conv", 1].mask())].abs().max()
        # a transposed convolution: filters are its output channels, the second axis of its weight
        norms = model.up.weight.square().sum((0, 2, 3))
        assert np.flatnonzero(found["up", 0].filter_counts).tolist() == sorted(norms.topk(4).indices.tolist())
        small = PruningPlan("m", masks={"up": found["up", 0]}).apply(model, example())
        assert lower(small, example())["up"].sparsity == found["up", 0]

    @pytest.mark.parametrize(
        ("wanted", "message"),
        [
            ({("conv9", 0): (0.5, "weight")}, "unknown layer with weights 'conv9'"),
            ({("conv1", 0): (0.0, "weight")}, "layer 'conv1': density 0.0"),
            ({("conv1", 0): (0.5, "pattern")}, "layer 'conv1': density 0.5: patterns"),
            ({("conv1", 0): (0.5, "wait")}, "unknown granularity 'wait'"),
        ],
    )
    def test_bad_masks(self, wanted, message):
        model = network("Chain")
        with pytest.raises(CodesignError, match=message):
            magnitude_masks(model, lower(model, example()), wanted)


def test_inputs_without_a_batch_keep_their_size():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x, scale):
            return self.outer(F.relu(self.inner(x * scale)))

    for batch in (1, 4):
        inputs = (torch.randn(batch, 3), torch.randn(3))
        found = random_inputs(Scaled(), inputs)
        assert [tuple(each.shape) for each in found] == [(batch, 3), (3,)]
    found = random_inputs(nn.Linear(3, 2), (torch.zeros(1, 3),))
    assert found[0].shape == (2, 3)
