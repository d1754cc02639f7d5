"""Lowering: the zoo, folding, fusing, names, zeros, measured activations, errors, and the model left alone."""

import contextlib
import copy
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.flop_counter import FlopCounterMode

from tests.workloads.lowered import SEQUENCE, Call, Watched, X, arrays, check, ops, parameters, randomised
from workloads.errors import LoweringError, ShapeError
from workloads.graph import LayerGraph, Op
from workloads.lowering import lower, lower_with_weights, measure_activation_density
from workloads.models import build, example_input, models
from workloads.reference import can_run, run

# A norm after a concatenation follows no single layer. Of MixNet-S by its stages: convolutions of several kernels in
# the first block, and in the others.
UNFOLDED_NORMS = {"mixnet_s": (2 + 2) + (1 + 3 * 3) + (2 + 2 * 2) + (3 + 2 * 3) + (1 + 2 * 2)}


class TestZoo:
    @pytest.mark.parametrize("name", models())
    def test_macs_parameters_and_answers(self, name):
        model, x = build(name), example_input(name)
        graph, weights = lower_with_weights(model, x)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            wanted = arrays(model(x))
        assert 2 * graph.macs == counter.get_total_flops()
        assert graph.source_parameters == parameters(model)
        assert not any(layer.op is Op.VECTOR for layer in graph.layers)
        assert sum(layer.op is Op.NORM for layer in graph.layers) == UNFOLDED_NORMS.get(name, 0)
        for found, array in zip(arrays(run(graph, weights, x)), wanted, strict=True):
            assert np.abs(found - array).max() <= 1e-5 * np.abs(array).max()

    def test_a_residual_block(self):
        graph = lower(build("resnet20"), example_input("resnet20"))
        names = [layer.name for layer in graph.layers]
        assert names[:5] == ["x", "conv1", "layer1.0.conv1", "layer1.0.conv2", "layer1.0.add"]
        addition = graph["layer1.0.add"]
        assert addition.inputs == ("layer1.0.conv2", "conv1")
        assert (addition.fused_into, addition.activation) == ("layer1.0.conv2", "relu")
        assert (graph["layer1.0.conv1"].activation, graph["layer1.0.conv2"].activation) == ("relu", "")

    def test_an_option_a_shortcut(self):
        graph = lower(build("resnet20"), example_input("resnet20"))
        block = [layer for layer in graph.layers if layer.name.startswith("layer2.0")]
        assert [str(layer.op) for layer in block] == ["conv", "conv", "slice", "pad", "add"]
        assert block[2].attributes == {"starts": (0, 0, 0, 0), "steps": (1, 1, 2, 2)}  # two slices made one
        assert (block[3].attributes["before"], block[3].attributes["after"]) == ((0, 8, 0, 0), (0, 8, 0, 0))

    @pytest.mark.parametrize("name", ["lenet5", "resnet8"])
    def test_the_batch_follows_the_example(self, name):
        model = build(name)
        assert lower(model, example_input(name, 3)) == lower(model, example_input(name)).with_batch(3)


class TestNorms:
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("affine", [True, False])
    def test_folded_into_a_convolution(self, bias, affine):
        net = nn.Sequential(nn.Conv2d(6, 4, 3, groups=2, bias=bias), nn.BatchNorm2d(4, affine=affine), nn.ReLU())
        graph = check(net, X)
        (layer,) = graph.layers[1:]
        assert (layer.folded_norms, layer.source_bias, layer.activation) == (int(affine), bias, "relu")
        assert layer.bias == ("0.bias")
        assert graph.source_parameters == parameters(net)

    def test_folding_by_hand(self):
        conv, norm = nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2, eps=0.0)
        conv.weight.data = torch.tensor([2.0, 3.0]).reshape(2, 1, 1, 1)
        norm.weight.data, norm.bias.data = torch.tensor([1.0, -4.0]), torch.tensor([0.5, 0.0])
        norm.running_mean, norm.running_var = torch.tensor([1.0, 2.0]), torch.tensor([4.0, 16.0])
        _, weights = lower_with_weights(nn.Sequential(conv, norm), torch.ones(1, 1, 2, 2))
        assert weights["0.weight"].ravel().tolist() == [1.0, -3.0]  # 2 * 1 / 2, 3 * -4 / 4
        assert weights["0.bias"].tolist() == [0.0, 2.0]  # 0.5 - 1 / 2, 0 + 2

    def test_folded_into_a_linear_layer_and_twice(self):
        net = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4))
        graph = check(net, torch.randn(3, 6))
        assert (ops(graph), graph["0"].folded_norms) == (["linear"], 2)
        assert graph.source_parameters == parameters(net)

    def test_not_folded_across_other_axes(self):
        net = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(5))  # over positions, not features
        assert ops(check(net, SEQUENCE)) == ["linear", "norm"]

    def test_not_folded_where_something_else_reads_the_convolution(self):
        parts = {"conv": nn.Conv2d(6, 4, 1), "norm": nn.BatchNorm2d(4)}
        graph = check(Call(lambda m, x: (lambda y: m.norm(y) + y)(m.conv(x)), **parts), X)
        assert ops(graph) == ["conv", "norm", "add"]
        assert (graph["norm"].weight, graph["norm"].bias) == ("norm.weight", "norm.bias")
        assert graph["norm"].attributes["kind"] == "affine"

    def test_before_the_convolution_it_stays(self):
        net = nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1))
        graph = check(net, X)
        assert (ops(graph), graph["0"].activation) == (["norm", "conv"], "relu")
        assert graph.source_parameters == parameters(net)

    @pytest.mark.parametrize(
        ("module", "x"),
        [
            (nn.LayerNorm(6), SEQUENCE),
            (nn.LayerNorm([5, 6]), SEQUENCE),
            (nn.LayerNorm(6, elementwise_affine=False), SEQUENCE),
            (nn.GroupNorm(3, 6), X),
            (nn.InstanceNorm2d(6), X),
            (nn.InstanceNorm2d(6, affine=True, track_running_stats=True), X),
            (nn.BatchNorm1d(5), SEQUENCE),
        ],
    )
    def test_others(self, module, x):
        graph = check(module, x)
        assert ops(graph) == ["norm"]

    def test_statistics_of_the_batch_are_no_layer(self):
        with pytest.raises(LoweringError, match="statistics of its batch"):
            lower(nn.BatchNorm2d(6, track_running_stats=False), X)

    def test_a_shared_convolution_keeps_two_norms_apart(self):
        parts = {"conv": nn.Conv2d(6, 6, 3, padding=1), "a": nn.BatchNorm2d(6), "b": nn.BatchNorm2d(6)}
        net = Call(lambda m, x: m.b(m.conv(m.a(m.conv(x)))), **parts)
        graph = check(net, X)
        assert ops(graph) == ["conv", "norm", "conv", "norm"]
        assert [layer.name for layer in graph.layers[1:]] == ["conv", "a", "conv#2", "b"]
        assert graph.source_parameters == parameters(net)

    def test_a_shared_block_is_folded_once(self):
        net = Call(
            lambda m, x: m.block(m.block(x)), block=nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), nn.ReLU())
        )
        graph = check(net, X)
        assert [layer.name for layer in graph.layers[1:]] == ["block.0", "block.0#2"]
        assert graph["block.0"].weight == graph["block.0#2"].weight
        assert graph.source_parameters == parameters(net)


class TestInPlace:
    def test_a_name_means_what_was_written_last(self):
        def forward(m, x):
            y = m.conv(x)
            y += x
            F.relu_(y)
            return y * 2

        graph = check(Call(forward, conv=nn.Conv2d(6, 6, 1)), X)
        assert ops(graph) == ["conv", "add", "mul"]
        assert (graph["add"].fused_into, graph["add"].activation) == ("conv", "relu")

    def test_a_copy_is_written_not_its_source(self):
        def forward(m, x):
            y = m.conv(x)
            return y.clone().relu_() + y

        check(Call(forward, conv=nn.Conv2d(6, 6, 1)), X)

    @pytest.mark.parametrize("how", ["add", "assign", "view"])
    def test_writing_into_a_part_that_is_read_is_an_error(self, how):
        def forward(m, x):
            y = x * 2
            if how == "add":
                y[:, 0] += 1
            elif how == "assign":
                y[:, 1:2] = x[:, :1]
            else:
                y.view(2, -1).relu_()
            return y

        with pytest.raises(LoweringError, match="writes into a view of 'mul', which is read afterwards"):
            lower(Call(forward), X)

    def test_buffers_of_the_model_are_left_alone(self):
        def forward(m, x):
            m.count += 1
            return x * m.count

        net = Call(forward, count=torch.zeros(6, 1, 1))
        _, weights = lower_with_weights(net, X)
        assert weights[next(iter(weights))].ravel().tolist() == [1.0] * 6
        assert net.count.sum() == 0


class TestNames:
    def test_modules_operators_and_repetitions(self):
        def forward(m, x):
            y = torch.cat([m.act(x), m.act(m.conv(x))], 1)
            return (y + 1) * (y + 2)

        graph = lower(Call(forward, act=nn.Sigmoid(), conv=nn.Conv2d(6, 4, 1)), X)
        assert [layer.name for layer in graph.layers[1:]] == ["act", "conv", "cat", "add", "add#2", "mul"]
        assert graph["conv"].activation == "sigmoid"

    def test_shared_modules(self):
        conv = nn.Conv2d(6, 6, 1)
        graph = check(nn.Sequential(conv, nn.ReLU(), conv), X)
        assert [layer.name for layer in graph.layers[1:]] == ["0", "2"]
        assert graph["0"].weight == graph["2"].weight == "0.weight"
        assert graph.source_parameters == parameters(conv)

    def test_tied_weights(self):
        net = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
        net[1].weight = net[0].weight
        graph = check(net, SEQUENCE)
        assert graph["1"].weight == "0.weight"
        assert graph.source_parameters == parameters(net) == 36

    def test_the_graph(self):
        assert lower(nn.Conv2d(6, 2, 1), X).name == "Conv2d"
        assert lower(nn.Conv2d(6, 2, 1), X, name="stem").name == "stem"

    def test_outputs_of_every_form(self):
        net = Call(lambda m, x: {"a": F.relu(x), "b": [x.sigmoid(), 3, None], "c": (m.table,)}, table=torch.ones(2, 3))
        graph = lower(net, X)
        assert [graph[name].op for name in graph.outputs] == [Op.ACTIVATION, Op.ACTIVATION, Op.CONSTANT]

    def test_inputs_keep_their_order_also_unused_ones(self):
        graph = lower(Call(lambda m, a, b: F.relu(b)), (X, SEQUENCE))
        assert [layer.shape for layer in graph.inputs] == [X.shape, SEQUENCE.shape]

    def test_code_under_another_gradient_or_autocast_mode(self):
        def forward(m, x):
            with torch.enable_grad():
                y = m.conv(x)
            with torch.autocast("cpu", enabled=False):
                return F.relu(y)

        graph = lower(Call(forward, conv=nn.Conv2d(6, 4, 1)), X)
        assert (ops(graph), graph["conv"].activation) == (["conv"], "relu")

    def test_half_precision(self):
        graph = lower(nn.Conv2d(6, 4, 1).half(), X.half())
        assert [(layer.weight_bits, layer.activation_bits) for layer in graph.layers] == [(32, 16), (16, 16)]


def zeros_of(graph, name) -> int:
    sparsity = graph[name].sparsity
    return 0 if sparsity is None else sparsity.elements - sparsity.nonzeros


class TestZeros:
    def masked(self, *shape):
        return (torch.rand(*shape, generator=torch.Generator().manual_seed(3)) > 0.6).float()

    def test_dense_weights_have_none(self):
        assert all(layer.sparsity is None for layer in lower(build("lenet5"), example_input("lenet5")).layers)

    def test_zeros_in_the_weights_themselves(self):
        conv = nn.Conv2d(6, 4, 3)
        mask = self.masked(4, 6, 3, 3)
        conv.weight.data *= mask
        graph = lower(conv, X)
        np.testing.assert_array_equal(graph["conv2d"].sparsity.mask(), mask.numpy() != 0)

    def test_a_mask_in_the_forward_pass(self):
        mask, weight = self.masked(4, 6, 3, 3), nn.Parameter(torch.randn(4, 6, 3, 3))
        net = Call(lambda m, x: F.conv2d(x, m.weight * m.mask), weight=weight, mask=mask)
        graph = check(net, X)
        np.testing.assert_array_equal(graph["conv2d"].sparsity.mask(), mask.numpy() != 0)
        assert graph["conv2d"].weight == "conv2d.weight"

    def test_pruning_of_torch(self):
        conv = nn.Conv2d(6, 4, 3)
        prune.l1_unstructured(conv, "weight", amount=100)
        graph = check(nn.Sequential(conv, nn.ReLU()), X)
        assert zeros_of(graph, "0") == 100
        prune.remove(conv, "weight")
        assert zeros_of(lower(nn.Sequential(conv, nn.ReLU()), X), "0") == 100

    def test_parametrizations(self):
        class Masked(nn.Module):
            def __init__(self, mask):
                super().__init__()
                self.register_buffer("mask", mask)

            def forward(self, weight):
                return weight * self.mask

        conv, mask = nn.Conv2d(6, 4, 3), self.masked(4, 6, 3, 3)
        parametrize.register_parametrization(conv, "weight", Masked(mask))
        graph = check(nn.Sequential(conv, nn.BatchNorm2d(4)), X)
        np.testing.assert_array_equal(graph["0"].sparsity.mask(), mask.numpy() != 0)

    @pytest.mark.filterwarnings("ignore::FutureWarning")
    @pytest.mark.parametrize("norm", [parametrizations.weight_norm, nn.utils.weight_norm])
    def test_weight_norms(self, norm):
        conv = nn.Conv2d(6, 4, 3)
        conv.weight.data[1, 2] = 0
        assert zeros_of(check(nn.Sequential(norm(conv), nn.ReLU()), X), "0") == 9

    def test_spectral_norm(self):
        net = nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 4)))
        check(net, SEQUENCE)

    def test_the_order_of_transposed_convolutions(self):
        conv = nn.ConvTranspose2d(6, 4, 2, groups=2, bias=False)
        conv.weight.data[4, 1, 0, 1] = 0  # group 1: its input channel 1, its output channel 1 = filter 3
        mask = lower(nn.Sequential(conv, nn.BatchNorm2d(4)), X)["0"].sparsity.mask()
        assert np.argwhere(~mask).tolist() == [[3, 1, 0, 1]]

    def test_lstm(self):
        lstm = nn.LSTM(6, 4, batch_first=True)
        lstm.weight_ih_l0.data[0, 1] = lstm.weight_hh_l0.data[2, 3] = 0
        mask = lower(Call(lambda m, x: m.lstm(x)[0], lstm=lstm), SEQUENCE)["lstm"].sparsity.mask()
        assert np.argwhere(~mask)[:, :2].tolist() == [[0, 1], [2, 9]]

    def test_a_zero_in_the_scale_of_a_norm_is_a_zero_filter(self):
        net = nn.Sequential(nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4))
        net[1].weight.data[2] = 0
        graph = lower(net, X)
        assert graph["0"].sparsity.zero_filters == 1
        assert zeros_of(graph, "0") == 54

    def test_the_mask_is_that_of_the_folded_array_also_where_products_underflow(self):
        net = randomised(nn.Sequential(nn.Conv2d(6, 64, 3), nn.BatchNorm2d(64))).eval()
        generator = torch.Generator().manual_seed(0)
        exponents = torch.empty(64, 6, 3, 3).uniform_(-46, -40, generator=generator)
        net[0].weight.data = 10 ** exponents.double() * torch.sign(torch.randn(64, 6, 3, 3, generator=generator))
        net[0].weight.data = net[0].weight.data.float()
        net[1].weight.data = 10 ** torch.empty(64).uniform_(-4, 3, generator=generator)
        graph, weights = lower_with_weights(net, X)
        mask = graph["0"].sparsity.mask()
        assert 0.2 < mask.mean() < 0.9
        np.testing.assert_array_equal(mask, weights["0.weight"] != 0)

    def test_shared_weights_share_their_zeros(self):
        conv = nn.Conv2d(6, 6, 1)
        conv.weight.data[0, 0] = 0
        graph = lower(nn.Sequential(conv, conv), X)
        assert graph["0"].sparsity is graph["1"].sparsity


class TestActivationDensity:
    def test_by_hand(self):
        conv = nn.Conv2d(1, 2, 1, bias=False)
        conv.weight.data = torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1)
        x = torch.tensor([[[[1.0, 2.0], [3.0, 0.0]]], [[[1.0, -1.0], [0.0, 0.0]]]])
        graph = lower(nn.Sequential(conv, nn.ReLU()), x[:1], calibration=x)
        assert graph.layers[0].activation_density == (5 / 8,)
        assert graph["0"].activation_density == (4 / 8, 1 / 8)

    def test_the_size_of_the_batch_does_not_matter(self, monkeypatch):
        model, x = build("resnet8"), example_input("resnet8", 5)
        whole = lower(model, x, calibration=x)
        monkeypatch.setattr("workloads.lowering.CHUNK_BYTES", 2 * 4 * sum(y.output_elements for y in whole) // 5)
        parts = lower(model, x[:1], calibration=x)
        for a, b in zip(whole.layers, parts.layers, strict=True):
            assert len(a.activation_density) == a.shape[a.channel_axis]
            np.testing.assert_allclose(a.activation_density, b.activation_density, atol=1e-3)

    def test_sequences_count_features(self):
        graph, weights = lower_with_weights(nn.Sequential(nn.Linear(6, 4), nn.ReLU()), SEQUENCE, calibration=SEQUENCE)
        wanted = (run(graph, weights, SEQUENCE) != 0).mean((0, 1))
        np.testing.assert_allclose(graph["0"].activation_density, wanted)

    def test_a_graph_that_cannot_change_its_batch(self):
        net = Call(lambda m, x: m.lstm(x)[0], lstm=nn.LSTM(6, 4))  # time first: axis 0 is no batch
        x = torch.randn(3, 2, 6)
        assert lower(net, x, calibration=torch.cat([x, x])).layers[1].activation_density == (1.0,) * 4
        with pytest.raises(ShapeError, match="give a multiple of 3 samples"):
            lower(net, x, calibration=torch.randn(4, 2, 6))

    def test_wrong_shapes_and_vector_work(self):
        net = nn.Conv2d(6, 4, 1)
        with pytest.raises(ShapeError, match="must be"):
            lower(net, X, calibration=X[:, :3])
        graph = lower(Call(lambda m, x: torch.sort(x)[0]), X, on_unknown="vector")
        with pytest.raises(LoweringError, match="'sort' is priced as vector work only"):
            measure_activation_density(graph, {}, X)


class TestUnknownOperators:
    def net(self):
        inner = Call(lambda m, x: torch.cumsum(m.conv(x), 1), conv=nn.Conv2d(6, 4, 1))
        return nn.Sequential(nn.ReLU(), inner, nn.Conv2d(4, 2, 1))

    def test_named(self):
        with pytest.raises(LoweringError) as caught:
            lower(self.net(), X)
        text = str(caught.value)
        assert "\n" not in text
        for part in ("aten.cumsum.default", "'cumsum'", "'1' (Call)", "(2, 4, 8, 8)", 'on_unknown="vector"'):
            assert part in text

    def test_priced_as_vector_work(self):
        graph = lower(self.net(), X, on_unknown="vector")
        unknown = [layer for layer in graph.layers if layer.op is Op.VECTOR]
        assert [(layer.name, layer.shape, layer.attributes) for layer in unknown] == [
            (
                "1.cumsum",
                (2, 4, 8, 8),
                {"target": "aten.cumsum.default", "arguments": {"self": {"input": 0}, "dim": 1, "dtype": None}},
            )
        ]
        assert graph["2"].inputs == ("1.cumsum",)

    @pytest.mark.parametrize(
        ("function", "can"),
        [
            (lambda x: torch.sin(x), True),
            (lambda x: torch.roll(x, (1, 2), (2, 3)), True),
            (lambda x: torch.where(torch.ones(8) > 0, x, x + 1), False),  # a condition is no float
            (lambda x: torch.hypot(x, 2 * x), True),
            (lambda x: torch.sort(x, 1)[0], False),  # two outputs
            (lambda x: torch.nan_to_num(x, posinf=math.inf), False),  # no JSON number
        ],
    )
    def test_torch_runs_what_numbers_say(self, function, can, tmp_path):
        net = Call(lambda m, x: function(m.conv(x)), conv=nn.Conv2d(6, 4, 1))
        graph, weights = lower_with_weights(net, X, on_unknown="vector")
        assert all(can_run(layer) for layer in graph.layers) == can
        if can:
            graph.save(tmp_path / "graph.json")
            with torch.no_grad():
                np.testing.assert_allclose(run(LayerGraph.load(tmp_path / "graph.json"), weights, X), net(X), atol=1e-6)

    def test_several_outputs(self):
        graph = lower(Call(lambda m, x: sum(torch.sort(x, dim=1))), X, on_unknown="vector")
        assert ops(graph) == ["vector", "vector", "add"]

    def test_its_parameters_are_counted(self):
        net = nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 4))
        graph = lower(net, torch.zeros(2, 5, dtype=torch.int64), on_unknown="vector")
        assert graph.source_parameters == parameters(net)

    def test_declined_calls_are_vector_work_too(self):
        graph = lower(nn.AdaptiveAvgPool2d(3), X, on_unknown="vector")
        assert ops(graph) == ["vector"]

    def test_random_numbers_are_never_constants(self):
        with pytest.raises(LoweringError, match="draws random numbers"):
            lower(Call(lambda m, x: x + torch.randn(6, 1, 1)), X)


@contextlib.contextmanager
def one_line(capfd, *parts):
    """One line that has these parts; nothing printed beside it."""
    with pytest.raises(LoweringError) as caught:
        yield caught
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text, text
    printed = capfd.readouterr()
    assert printed.out == printed.err == ""


class TestBadInput:
    def test_wrong_shape(self, capfd):
        net = nn.Sequential(nn.Conv2d(6, 4, 1), nn.Sequential(nn.Conv2d(5, 4, 1)))
        with one_line(capfd, "Sequential cannot be traced", "(2, 6, 8, 8)", "'1.0' (Conv2d)", "5 channels") as caught:
            lower(net, X)
        assert caught.value.__cause__ is not None

    def test_wrong_size_of_a_linear_layer(self):
        """In a process of its own: under pytest torch's loggers print elsewhere."""
        code = (
            "import torch; from torch import nn; from workloads.lowering import lower\n"
            "try: lower(nn.Sequential(nn.Flatten(), nn.Linear(10, 4)), torch.zeros(1, 1, 16, 16))\n"
            "except Exception as error: print(error)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert "in '1' (Linear)" in done.stdout
        assert done.stderr == ""

    @pytest.mark.parametrize("given", [(), (3,), "x", [X, None]])
    def test_no_tensors(self, given):
        with pytest.raises(LoweringError, match="need tensors"):
            lower(nn.ReLU(), given)

    def test_no_batch(self, capfd):
        with one_line(capfd, "needs 4", "batch axis"):
            lower(nn.Conv2d(6, 4, 1), X[0])

    def test_control_flow_that_depends_on_values(self, capfd):
        net = Call(lambda m, x: x if x.sum() > 0 else -x)
        with one_line(capfd, "control flow depends on the values"):
            lower(net, X)

    def test_shapes_that_depend_on_values(self, capfd):
        with one_line(capfd, "its shape depends on the values"):
            lower(Call(lambda m, x: x[x > 0]), X)

    def test_an_error_of_the_model(self, capfd):
        def forward(m, x):
            raise RuntimeError("no such thing\nand more")

        with one_line(capfd, "no such thing"):
            lower(Call(forward), X)

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    @pytest.mark.parametrize("name", ["0.weight", "0.bias", "1.weight", "1.running_var"])
    def test_weights_that_are_not_finite(self, name, bad):
        net = nn.Sequential(nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4))
        net.state_dict()[name].view(-1)[1] = bad
        with pytest.raises(LoweringError, match=name.replace(".", r"\.")):
            lower(net, X)

    def test_computed_weights_that_are_not_finite(self):
        net = parametrizations.weight_norm(nn.Linear(6, 4))
        net.parametrizations.weight.original1.data[2] = 0  # a row of length 0 divides by 0
        with pytest.raises(LoweringError, match=r"parametrizations\.weight\.original"):
            lower(net, SEQUENCE)

    def test_inputs_that_are_one_tensor_are_two_inputs(self):
        class Difference(nn.Module):
            def forward(self, a, b):
                return a - b

        assert lower(Difference(), (X, X))["sub"].inputs == ("a", "b")

    def test_meta_parameters(self):
        with pytest.raises(LoweringError, match="'weight' is on the meta device"):
            lower(nn.Conv2d(6, 4, 1, device="meta"), X.to("meta"))

    def test_a_model_that_cannot_be_copied(self):
        net = nn.Conv2d(6, 4, 1)
        net.file = (i for i in range(3))
        with pytest.raises(LoweringError, match="cannot be copied"):
            lower(net, X)

    def test_no_output_and_no_option(self):
        with pytest.raises(LoweringError, match="returns no tensor"):
            lower(Call(lambda m, x: 3), X)
        with pytest.raises(LoweringError, match="single number"):
            lower(Call(lambda m, x: x.mean()), X)
        with pytest.raises(ValueError, match="on_unknown"):
            lower(nn.ReLU(), X, on_unknown="ignore")


class TestTheModelIsLeftAlone:
    def nets(self):
        conv = nn.Conv2d(6, 4, 3)
        prune.random_unstructured(conv, "weight", 0.5)
        yield nn.Sequential(conv, nn.BatchNorm2d(4), nn.Dropout(), nn.ReLU(inplace=True))
        yield nn.Sequential(nn.Flatten(2), nn.LSTM(64, 3))
        yield nn.Sequential(parametrizations.weight_norm(nn.Conv2d(6, 4, 3)))

    def test_state_modes_and_attributes(self):
        for net in self.nets():
            net.train()
            net[0].eval()
            state = copy.deepcopy(net.state_dict())
            before = [(type(module), module.training, dict(vars(module))) for module in net.modules()]
            hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in net.modules()]
            arrays = lower_with_weights(net, X, on_unknown="vector")[1]
            for array in arrays.values():
                array += 1  # what is returned is a copy
            for key, value in net.state_dict().items():
                torch.testing.assert_close(value, state[key], rtol=0, atol=0)
            after = [(type(module), module.training, dict(vars(module))) for module in net.modules()]
            assert [len(m[2]) for m in before] == [len(m[2]) for m in after]
            for old, new in zip(before, after, strict=True):
                assert old[:2] == new[:2]
                assert all(old[2][key] is new[2][key] for key in old[2])
            assert hooks == [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in net.modules()]

    def test_one_thread_at_a_time(self):
        Watched.open = []
        lower(Watched(6, 4, 1), X)
        assert Watched.open
        assert not any(Watched.open)

    def test_what_the_forward_pass_keeps(self):
        def forward(m, x):
            m.seen.append(x)
            m.calls += 1
            return m.conv(x)

        net = Call(forward, conv=nn.Conv2d(6, 4, 1), seen=[], calls=0)
        lower(net, X)
        assert (net.seen, net.calls) == ([], 0)
