"""Int8: the numbers that an integer machine computes, zeros that stay, training through the rounding, one graph."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel_models import target
from pruning import masks
from pruning.evaluation import accuracy
from pruning.granularity import mask
from pruning.quantization import ActivationQuantizer, WeightQuantizer, finalize, prepare, quantize
from pruning.testing import small_net
from pruning.tracing import trace_folded
from pruning.training import fit
from tests.pruning.networks import NETWORKS, example, network
from workloads import data
from workloads.errors import ConfigError, PlanError
from workloads.lowering import lower
from workloads.models import build, find

PICTURES = [(example(16, seed)[0], torch.zeros(16, dtype=torch.int64)) for seed in (1, 2)]
COVERED = sorted(NETWORKS.keys() - {"Recurrent"})


def rounded_nodes(net: nn.Module) -> set[str]:
    return {name.split(".")[1] for name, module in net.named_modules() if isinstance(module, ActivationQuantizer)}


def halved(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    return {name: mask(model.get_parameter(name).detach(), 0.5, "weight") for name in names}


def pruned(seed: int = 0) -> nn.Module:
    """Baked: half of all weights, and one whole filter of conv1 with its batch norm."""
    net = small_net(seed).eval()
    with torch.no_grad():
        for norm in (net.norm, net.norm1, net.norm2):
            norm.running_mean.uniform_(-1, 1), norm.running_var.uniform_(0.5, 2), norm.weight.uniform_(0.5, 1.5)
    found = halved(net, ["stem.weight", "conv1.weight", "conv2.weight"])
    found["conv1.weight"][3] = False
    channel = torch.arange(12) != 3
    return masks.bake(net, found | {"norm1.weight": channel, "norm1.bias": channel})


class TestTracing:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_the_folded_copy_answers_the_same(self, name):
        model = network(name)
        folded = trace_folded(model, example()[0])
        torch.testing.assert_close(folded(*example(5)), model(*example(5)))

    @pytest.mark.parametrize(
        ("model", "shape", "is_folded"),
        [
            (nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.BatchNorm2d(4)), (2, 3, 5, 5), True),
            (nn.Sequential(nn.ConvTranspose2d(4, 4, 3, groups=2), nn.BatchNorm2d(4)), (2, 4, 5, 5), False),
            (nn.Sequential(nn.Linear(6, 4, bias=False), nn.BatchNorm1d(4)), (3, 6), True),
            (nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)), (2, 4, 6), False),  # over the other axis
            (nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)), (2, 3, 5, 5), False),
        ],
    )
    def test_a_norm_is_folded_where_it_sees_the_channels_of_one_layer(self, model, shape, is_folded):
        with torch.no_grad():
            for tensor in (*model[1].parameters(), *model[1].buffers()):
                if tensor.is_floating_point():
                    tensor.uniform_(0.5, 1.5)
        x = torch.randn(shape)
        folded = trace_folded(model, x)
        torch.testing.assert_close(folded(x), model.eval()(x))
        assert any("BatchNorm" in type(module).__name__ for module in folded.modules()) is not is_folded

    def test_two_norms_after_one_layer_fold_one_after_the_other(self):
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)).eval()
        model[1].running_var.fill_(3.0)
        model[2].running_mean.fill_(0.5)
        folded = trace_folded(model, example()[0])
        torch.testing.assert_close(folded(*example()), model(*example()))
        assert [name for name, _ in folded.named_parameters()] == ["0.weight", "0.bias"]


class TestNumbers:
    def test_an_integer_machine_gives_the_same_answer(self):
        """Convolution with ReLU, a sum, a linear layer: whole numbers, int32 sums, one float factor a rescaling."""

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 5)

            def forward(self, x: Tensor) -> Tensor:
                x = F.relu(self.norm(self.conv(x)))
                return self.head((x + x.flip(1)).mean((2, 3)))

        torch.manual_seed(0)
        net = quantize(Net().eval(), PICTURES)
        x = example(16, 3)[0]
        steps = {name: getattr(net.quantizers, name) for name in ("x", "relu", "add", "mean", "linear")}

        def codes(values: Tensor, name: str) -> Tensor:
            return (torch.round(values / steps[name].scale.double()) + steps[name].zero_point).clamp(-128, 127).long()

        def centred(whole: Tensor, name: str) -> Tensor:
            return whole - steps[name].zero_point

        def layer(function, source, name, weight, bias, **options):
            scale = getattr(net.quantizers, f"{name}_weight").scale.double()
            step = scale * steps[source].scale.double()
            whole, shift = torch.round(weight / scale.view(-1, *[1] * (weight.dim() - 1))), torch.round(bias / step)
            assert whole.abs().max() == 127
            sums = function(centred(now, source).double(), whole, shift, **options)
            return sums * step.view(-1, *[1] * (sums.dim() - 2))

        now = codes(x.double(), "x")
        now = codes(layer(F.conv2d, "x", "conv", net.conv.weight, net.conv.bias, padding=1).relu(), "relu")
        real = centred(now, "relu") * steps["relu"].scale.double()
        now = codes(real + real.flip(1), "add")  # to round what is flipped changes nothing: it has the same range
        now = codes((centred(now, "add") * steps["add"].scale.double()).mean((2, 3)), "mean")
        answer = codes(layer(F.linear, "mean", "head", net.head.weight, net.head.bias), "linear")
        ours = torch.round(net(x) / steps["linear"].scale) + steps["linear"].zero_point
        off = (ours - answer).abs()
        assert off.max() <= 1
        assert (off > 0).double().mean() <= 0.02, "a sum that lies between two steps may go either way in float32"

    @pytest.mark.parametrize("name", COVERED)
    def test_every_weight_and_activation_lies_on_its_steps(self, name):
        net = quantize(network(name), PICTURES)
        quantizers = [(key, module) for key, module in net.named_modules() if isinstance(module, WeightQuantizer)]
        for key, module in quantizers:
            weight = dict((n.replace(".", "_"), p) for n, p in net.named_parameters())[key.split(".")[1]]
            whole = weight.detach().transpose(0, module.axis).flatten(1) / module.scale[:, None]
            torch.testing.assert_close(whole, whole.round(), atol=1e-3, rtol=0)
            assert whole.abs().amax(1).round().eq(127).all()
        layers = {id(layer.weight) for layer in network(name).modules() if isinstance(layer, (nn.Conv2d, nn.Linear))}
        assert quantizers
        assert len(quantizers) >= len(layers)
        answers, last = net(*example(4)), net.get_submodule(str(list(net.graph.nodes)[-1].args[0].target))
        whole = answers / last.scale
        torch.testing.assert_close(whole, whole.round(), atol=1e-3, rtol=0)

    @pytest.mark.parametrize("name", COVERED)
    def test_the_answer_is_close_to_the_float_one(self, name):
        model = network(name)
        answer, int8 = model(PICTURES[0][0]), quantize(model, PICTURES)(PICTURES[0][0])
        assert 0 < (answer - int8).norm() / answer.norm() < 0.1

    def test_a_clamp_belongs_to_what_it_alone_reads_and_moves_keep_the_steps(self):
        assert rounded_nodes(prepare(network("Residual"), PICTURES)) == {
            *("x", "relu", "relu_1", "relu_2", "relu_3", "relu_4"),  # after stem, inner, add, inner, add
            *("conv2d_2", "conv2d_4", "mean", "linear"),  # outer convolutions feed the addition, not a ReLU
        }
        moving = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5))
        assert rounded_nodes(prepare(moving, PICTURES)) == {"input_1", "conv2d", "linear"}

    def test_a_tensor_without_negative_values_has_all_steps_and_zero_is_exact(self):
        one, both, none = ActivationQuantizer(0.5, 2.55), ActivationQuantizer(-1.0, 2.0), ActivationQuantizer(0.0, 0.0)
        assert (one.scale.item(), one.zero_point.item()) == (pytest.approx(0.01), -128)
        x = torch.tensor([0.0, 2.6, -1.0, 0.014])
        torch.testing.assert_close(one(x), torch.tensor([0.0, 2.55, 0.0, 0.01]))
        assert both.zero_point.item() == -43  # -128 + 1 / (3 / 255)
        assert both(torch.zeros(1)).item() == none(torch.zeros(1)).item() == 0.0

    def test_the_bias_of_an_empty_filter_is_as_fine_as_that_of_others(self):
        layer = nn.Conv2d(1, 3, 1)
        layer.weight.data = torch.tensor([0.0, 0.254, 2.54]).view(3, 1, 1, 1)
        layer.bias.data = torch.tensor([0.311, 0.311, 0.311])
        int8 = quantize(layer, [(torch.tensor([0.0, 25.5]).view(2, 1, 1, 1), torch.zeros(2))])  # steps of 0.1
        assert int8.bias.tolist() == pytest.approx([0.311, 0.311, 0.311], abs=1.1e-3)
        assert int8.bias[0] == int8.bias[1] != int8.bias[2]
        layer.weight.data.zero_()
        int8 = quantize(layer, [(torch.tensor([0.0, 25.5]).view(2, 1, 1, 1), torch.zeros(2))])
        assert int8.bias.tolist() == pytest.approx([0.311, 0.311, 0.311], abs=1.1e-3)

    def test_transposed_groups_share_their_scales(self):
        x = torch.rand(4, 8, 5, 5)
        layer = nn.Sequential(nn.ConvTranspose2d(8, 6, 3, groups=2))
        int8 = quantize(layer, [(x, torch.zeros(4))])
        with torch.no_grad():
            assert (int8(x) - layer(x)).abs().max() < 0.05 * layer(x).abs().max()

    def test_a_percentile_clamps_outliers(self):
        values = torch.arange(1.0, 1001.0).view(100, 10)
        layer = nn.Linear(10, 2)
        batches = [(values, torch.zeros(100)), (3 * values, torch.zeros(100))]
        whole, part = (prepare(layer, batches, percentile=p).quantizers.input_1.scale for p in (100, 99))
        assert whole.item() == pytest.approx(3000 / 255)
        assert part.item() == pytest.approx((990 + 3 * 990) / 2 / 255)


class TestZeros:
    def test_pruned_weights_stay_zero_through_training_and_rounding(self):
        model = pruned()
        tuned = prepare(model, PICTURES)
        optimizer = torch.optim.SGD(tuned.parameters(), 0.1, momentum=0.9, weight_decay=1e-3)
        masks.keep_masks(tuned, optimizer)
        before = tuned.conv1.weight.detach().clone()
        for x, y in PICTURES * 2:
            optimizer.zero_grad()
            F.cross_entropy(tuned(x), y).backward()
            optimizer.step()
        assert (tuned.conv1.weight != before).any()
        for net in (quantize(model, PICTURES), finalize(tuned), copy.deepcopy(finalize(tuned))):
            found = masks.masks_of(net)
            assert {"stem.weight", "conv1.weight", "conv2.weight"} <= found.keys()
            for name, kept in masks.masks_of(model).items():
                if name in dict(net.named_parameters()):
                    assert net.get_parameter(name)[~kept].count_nonzero() == 0
            assert net.conv1.weight[3].count_nonzero() == net.conv1.bias[3].count_nonzero() == 0

    def test_rounding_may_add_zeros_but_never_removes_one(self):
        model = pruned()
        graphs = lower(model, example(1)), lower(quantize(model, PICTURES), example(1))
        sparse = [pair for pair in zip(*graphs, strict=True) if pair[0].sparsity is not None]
        assert len(sparse) > 2
        for float_layer, int8_layer in sparse:
            was, now = float_layer.sparsity.mask(), int8_layer.sparsity.mask()
            assert not (now & ~was).any(), float_layer.name


class TestTraining:
    def test_gradients_pass_the_rounding_but_not_the_clamp(self):
        layer = nn.Linear(1, 1, bias=False)
        layer.weight.data.fill_(0.5)
        tuned = prepare(layer, [(torch.tensor([[0.0], [2.0]]), torch.zeros(2))])
        x = torch.tensor([[1.003], [5.0]], requires_grad=True)
        tuned(x)[:1].sum().backward()
        rounded = torch.round(torch.tensor(1.003) / (2 / 255)) * (2 / 255)
        assert tuned.weight.grad.item() == pytest.approx(
            rounded.item()
        )  # of the rounded input, as if w were not rounded
        assert x.grad[0].item() == pytest.approx(0.5)
        x.grad = None
        tuned.quantizers.linear = nn.Identity()
        tuned(x).sum().backward()
        assert x.grad[1].item() == 0  # beyond the range that was measured

    def test_fit_trains_a_pruned_network_in_int8(self):
        """At a rate that every seed bears: of 0.02, as for a network whose norms are its own, two of three are lost."""
        train, heldout = data.load("digits", "train"), data.load("digits", "heldout")
        model = build("digits_cnn")
        fit(model, train, 4, 0.1, batch_size=64, progress=False)
        sparse = masks.bake(model, halved(model, [f"block{b}.conv{c}.weight" for b in (1, 2) for c in (1, 2)]))
        plain = accuracy(sparse, heldout)
        assert accuracy(quantize(sparse, heldout), heldout) > plain - 0.02
        tuned = prepare(sparse, heldout)
        fit(tuned, train, 2, 0.005, heldout=heldout, batch_size=64, progress=False)
        int8 = finalize(tuned)
        assert accuracy(int8, heldout) > max(0.95, plain + 0.05)
        assert accuracy(int8, heldout) == pytest.approx(accuracy(tuned, heldout), abs=0.01)
        assert all(int8.get_parameter(name)[~mask].count_nonzero() == 0 for name, mask in masks.masks_of(int8).items())

    def test_the_users_model_is_untouched(self):
        model = pruned().train()
        before = copy.deepcopy(model.state_dict())
        quantize(model, PICTURES)
        assert model.training
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class TestFinished:
    def test_it_is_copied_saved_exported_and_compiled(self, tmp_path):
        net, (x,) = quantize(pruned(), PICTURES), example(3)
        answer = net(x)
        torch.save(net, tmp_path / "net.pt")
        twin = prepare(pruned(seed=1), PICTURES)
        saved = torch.load(tmp_path / "net.pt", weights_only=False)
        for copied in (copy.deepcopy(net), saved, torch.export.export(net, (x,)).module()):
            assert torch.equal(copied(x), answer)
        assert torch.equal(torch.compile(net, backend="eager")(x), answer)
        twin.load_state_dict(net.state_dict(), strict=True)
        torch.testing.assert_close(twin(x), answer)

    @pytest.mark.parametrize("name", ["digits_cnn", "resnet8"])
    def test_its_graph_is_that_of_the_model_in_int8(self, name):
        model = build(name)
        x = torch.randn(1, *find(name).input_shape)
        wanted, found = lower(model, x).with_precision("int8"), lower(quantize(model, [(x, None)]), x)
        assert all(layer.activation_bits == 8 for layer in found)
        assert all(layer.weight_bits == 8 for layer in found if layer.weight)
        fields = ("name", "op", "shape", "inputs", "activation", "fused_into", "macs", "weight", "padding", "stride")
        for one, other in zip(wanted, found, strict=True):
            assert [getattr(one, field) for field in fields] == [getattr(other, field) for field in fields]
        machine = target("ethos_u55_256")
        dense = found.with_sparsity({layer.name: None for layer in found})
        assert machine.simulate(dense).latency_s == machine.simulate(wanted).latency_s


class Weighed(nn.Module):
    """Multiplies by a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Scaled(Weighed):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * 2)


class Queries(nn.Module):
    """Adds what a layer makes of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.query, self.key = nn.Parameter(torch.randn(5, 8)), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.query(self.queries) + self.key(x.mean((1, 2, 3)).view(-1, 1, 1).expand(-1, 5, 8))


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def attached() -> nn.Module:
    model = small_net()
    masks.attach(model, {"conv1.weight": model.conv1.weight > 0})
    return model


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (small_net, {"percentile": 50}, ConfigError, r"percentile 50, must lie in \(50, 100\]"),
        (small_net, {"limit": 0}, ConfigError, "0 images"),
        (Weighed, {}, PlanError, "'matmul' multiplies by parameters"),
        (Scaled, {}, PlanError, "the weight of 'linear' is computed from others"),
        (Queries, {}, PlanError, "'linear' reads a parameter and not what comes from the input"),
        (
            lambda: small_net().bfloat16(),
            {},
            PlanError,
            r"'stem.weight' is bfloat16, must be float32; call .float\(\)",
        ),
        (Branching, {}, PlanError, "Branching cannot be traced by torch.fx: .*control flow"),
        (attached, {}, PlanError, "'conv1' is parametrized; finish the pruning first"),
        (NETWORKS["Recurrent"], {}, PlanError, r"'lstm' \(LSTM\) has parameters that int8 does not cover"),
        (lambda: quantize(small_net(), PICTURES), {}, PlanError, "in int8 already"),
    ],
)
def test_bad_input(make, options, error, message):
    with pytest.raises(error, match=message) as caught:
        quantize(make(), PICTURES, **options)
    assert "\n" not in str(caught.value)


def test_test_pictures_and_unprepared_models_are_refused():
    with pytest.raises(ConfigError, match="split 'test'"):
        quantize(build("digits_cnn"), data.load("digits", "test"))
    with pytest.raises(PlanError, match=r"what quantization.prepare made"):
        finalize(small_net())


@pytest.mark.slow
@pytest.mark.data("weights", "cifar-10-batches-bin")
@pytest.mark.parametrize("name", ["resnet8", "resnet20"])
def test_published_networks_lose_less_than_half_a_point(name):
    heldout = data.load("cifar10", "heldout", preprocessing=find(name).preprocessing)
    model = build(name, pretrained=True)
    int8 = quantize(model, heldout.take(512))
    chosen = heldout.take(2512)
    seen = chosen.tensor(slice(512, 2512)), chosen.targets(slice(512, 2512))
    with torch.no_grad():
        right = [float((net(seen[0]).argmax(1) == seen[1]).float().mean()) for net in (model, int8)]
    assert abs(right[0] - right[1]) <= 0.005
