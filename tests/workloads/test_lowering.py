"""Lowering: every operator group by hand and against the module itself; folding, fusing, names, zeros, errors."""

import contextlib
import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.flop_counter import FlopCounterMode

from workloads.errors import LoweringError, ShapeError
from workloads.graph import LayerGraph, Op
from workloads.lowering import lower, lower_with_weights, measure_activation_density
from workloads.models import build, example_input, models
from workloads.reference import run


class Call(nn.Module):
    """A module from a function; submodules and tensors by keyword."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *inputs):
        return self.function(self, *inputs)


def randomised(model):
    """Norms with statistics, weights and shifts that are not the neutral ones."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_var is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
        for parameter in module.parameters(recurse=False):
            if parameter.dim() == 1:
                nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def check(model, *inputs) -> LayerGraph:
    """The graph of a model, after the interpreter has answered what the model answers."""
    model = randomised(model).eval()
    graph, weights = lower_with_weights(model, inputs)
    with torch.no_grad():
        wanted = model(*(x.clone() for x in inputs))
    found = run(graph, weights, *inputs)
    wanted = [wanted] if isinstance(wanted, torch.Tensor) else list(wanted)
    found = [found] if isinstance(found, np.ndarray) else list(found)
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(torch.from_numpy(np.array(a)), b.float(), rtol=1e-4, atol=1e-5)
    return graph


def flops(model, *inputs) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*inputs)
    return counter.get_total_flops()


def parameters(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def ops(graph) -> list[str]:
    return [str(layer.op) for layer in graph.layers if layer.op is not Op.INPUT]


X = torch.randn(2, 6, 8, 8, generator=torch.Generator().manual_seed(1))
SEQUENCE = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(2))


class TestZoo:
    @pytest.mark.parametrize("name", models())
    def test_macs_parameters_and_answers(self, name):
        model, x = build(name), example_input(name)
        graph, weights = lower_with_weights(model, x)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            wanted = model(x).numpy()
        assert 2 * graph.macs == counter.get_total_flops()
        assert graph.source_parameters == parameters(model)
        assert not any(layer.op in (Op.VECTOR, Op.NORM) for layer in graph.layers)
        assert np.abs(run(graph, weights, x) - wanted).max() <= 1e-5 * np.abs(wanted).max()

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


class TestConvolutions:
    def test_dims(self):
        conv = nn.Conv2d(6, 8, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2)
        graph = check(conv, X)
        layer = graph.layers[1]
        dims = (layer.n, layer.k, layer.c, layer.p, layer.q, layer.r, layer.s, layer.groups, layer.in_h, layer.in_w)
        assert dims == (2, 8, 6, 4, 4, 3, 5, 2, 8, 8)
        assert (layer.stride, layer.dilation, layer.padding) == ((2, 1), (1, 2), (1, 1, 2, 2))
        assert 2 * layer.macs == flops(conv, X)
        assert (layer.weight, layer.bias, layer.source_bias) == ("weight", "bias", True)

    @pytest.mark.parametrize(("kernel", "dilation", "padding"), [(3, 1, (1, 1)), (4, 1, (1, 2)), (2, 3, (1, 2))])
    def test_same_padding_puts_the_odd_pixel_last(self, kernel, dilation, padding):
        graph = check(nn.Conv2d(6, 4, kernel, padding="same", dilation=dilation), X)
        assert graph.layers[1].padding == padding * 2

    @pytest.mark.parametrize("mode", ["reflect", "replicate", "circular", "zeros"])
    def test_padding_modes(self, mode):
        graph = check(nn.Conv2d(6, 4, 3, padding=1, padding_mode=mode), X)
        assert ops(graph) == (["conv"] if mode == "zeros" else ["pad", "conv"])

    def test_one_dimension(self):
        conv = nn.Conv1d(5, 8, 3, stride=2, padding=1, dilation=2)
        layer = check(conv, SEQUENCE).layers[1]
        dims = (layer.n, layer.k, layer.c, layer.p, layer.q, layer.r, layer.s, layer.in_h, layer.in_w)
        assert dims == (2, 8, 5, 2, 1, 3, 1, 6, 1)
        assert (layer.stride, layer.padding, layer.channel_axis) == ((2, 1), (1, 1, 0, 0), 1)
        assert 2 * layer.macs == flops(conv, SEQUENCE)

    @pytest.mark.parametrize("groups", [1, 2])
    def test_transposed(self, groups):
        conv = nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1, groups=groups)
        graph = check(nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU()), X)
        (layer,) = graph.layers[1:]
        assert (layer.shape, layer.attributes, layer.activation) == ((2, 4, 16, 16), {"output_padding": (1, 1)}, "relu")
        assert layer.macs == 2 * 4 * (6 // groups) * 8 * 8 * 9  # once per input pixel
        assert layer.weight_shape == (4, 6 // groups, 3, 3)

    def test_transposed_in_one_dimension(self):
        check(nn.ConvTranspose1d(5, 3, 4, stride=3, padding=1, output_padding=1), SEQUENCE)

    def test_functional_calls(self):
        net = Call(
            lambda m, x: F.relu_(F.conv2d(x, m.kernel, m.shift, padding=1)),
            kernel=nn.Parameter(torch.randn(4, 6, 3, 3)),
        )
        net.shift = nn.Parameter(torch.randn(4))
        (layer,) = check(net, X).layers[1:]
        assert (layer.name, layer.weight, layer.bias, layer.activation) == ("conv2d", "kernel", "shift", "relu")

    def test_depthwise(self):
        assert check(nn.Conv2d(6, 6, 3, groups=6), X).layers[1].is_depthwise


class TestProducts:
    @pytest.mark.parametrize(("shape", "n", "p"), [((3, 6), 3, 1), ((2, 5, 6), 2, 5), ((2, 3, 4, 6), 2, 12)])
    def test_linear(self, shape, n, p):
        linear, x = nn.Linear(6, 7), torch.randn(shape)
        layer = check(linear, x).layers[1]
        assert (layer.op, layer.n, layer.p, layer.q, layer.k, layer.c) == (Op.LINEAR, n, p, 1, 7, 6)
        assert layer.channel_axis == len(shape) - 1
        assert 2 * layer.macs == flops(linear, x)

    def test_a_matmul_with_a_parameter_is_a_linear_layer(self):
        net = Call(lambda m, x: x @ m.w + m.b, w=nn.Parameter(torch.randn(6, 4)), b=nn.Parameter(torch.randn(4)))
        graph = check(net, SEQUENCE)
        assert ops(graph) == ["linear", "constant", "add"]
        assert (graph["matmul"].weight, graph["b"].weight) == ("matmul.weight", "b")

    def test_addmm_with_parameters(self):
        net = Call(
            lambda m, x: torch.addmm(m.b, x, m.w), w=nn.Parameter(torch.randn(6, 4)), b=nn.Parameter(torch.randn(4))
        )
        assert ops(check(net, torch.randn(3, 6))) == ["linear"]

    def test_a_matmul_with_a_vector(self):
        net = Call(lambda m, x: x @ m.w, w=nn.Parameter(torch.randn(6)))
        assert check(net, SEQUENCE)["matmul"].k == 1

    def test_a_matmul_of_activations(self):
        net = Call(lambda m, x, y: torch.matmul(x, y))
        x, y = torch.randn(2, 3, 4, 5), torch.randn(3, 5, 6)  # the second broadcasts over the first batch dim
        graph = check(net, x, y)
        assert ops(graph) == ["expand", "matmul"]
        layer = graph["matmul"]
        assert (layer.n, layer.p, layer.c, layer.k) == (6, 4, 5, 6)
        assert 2 * layer.macs == flops(net, x, y)

    def test_a_constant_matrix_on_the_left(self):
        net = Call(lambda m, x: m.w @ x, w=nn.Parameter(torch.randn(4, 5)))
        graph = check(net, SEQUENCE)
        assert ops(graph) == ["constant", "expand", "matmul"]
        graph.with_batch(7).verify()

    def test_bmm_and_baddbmm(self):
        x, y = torch.randn(2, 3, 4), torch.randn(2, 4, 5)
        assert ops(check(Call(lambda m, x, y: torch.bmm(x, y)), x, y)) == ["matmul"]
        net = Call(lambda m, x, y: torch.baddbmm(x @ y, x, y, beta=0.5, alpha=2.0))
        assert ops(check(net, x, y)) == ["matmul", "matmul", "mul", "add"]

    def test_a_linear_layer_whose_weight_is_an_activation(self):
        net = Call(lambda m, x, w: F.linear(x, w))
        assert ops(check(net, torch.randn(2, 6), torch.randn(4, 6))) == ["transpose", "matmul"]


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=0.1 if self.training else 0.0)
        return self.out(y.transpose(1, 2).reshape(n, t, c))


class TestAttention:
    def test_by_hand(self):
        net, x = Attention(8, 2), torch.randn(3, 5, 8)
        graph = check(net, x)
        scores, context = (layer for layer in graph.layers if layer.op is Op.MATMUL)
        assert (scores.n, scores.p, scores.k, scores.c) == (6, 5, 5, 4)
        assert scores.attributes["scale"] == 0.5
        assert (context.n, context.p, context.k, context.c) == (6, 5, 4, 5)
        products = 3 * 5 * 8 * 24 + 2 * (6 * 5 * 5 * 4) + 3 * 5 * 8 * 8
        assert graph.macs == products
        assert graph.source_parameters == parameters(net)

    @pytest.mark.parametrize("batch_first", [True, False])
    @pytest.mark.parametrize("need_weights", [True, False])
    def test_multihead_attention_of_torch(self, batch_first, need_weights):
        attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        net, x = (
            Call(lambda m, x: m.attention(x, x, x, need_weights=need_weights)[0], attention=attention),
            torch.randn(2, 5, 8),
        )
        graph = check(net, x)
        assert graph.source_parameters == parameters(net)
        tokens, heads, width = 10, 2, 4
        pairs = 2 * 5 * 5 if batch_first else 5 * 2 * 2
        assert graph.macs == tokens * 8 * 24 + 2 * (heads * pairs * width) + tokens * 8 * 8
        assert graph["attention.out_proj"].weight == "attention.out_proj.weight"

    def test_an_encoder_layer_of_torch(self):
        net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
        graph = check(net, torch.randn(2, 5, 8))
        assert graph["linear1"].activation == "gelu(none)"
        assert graph.source_parameters == parameters(net)

    def test_causal(self):
        net = Call(lambda m, x: F.scaled_dot_product_attention(x, x, x, is_causal=True))
        graph = check(net, torch.randn(2, 3, 5, 4))
        assert ops(graph).count("softmax") == 1

    @pytest.mark.parametrize("mask", [torch.rand(5, 5) > 0.4, torch.full((5, 5), -math.inf).triu(1)])
    def test_masks(self, mask):
        if mask.dtype == torch.bool:
            mask = mask | torch.eye(5, dtype=torch.bool)
        net = Call(lambda m, x: F.scaled_dot_product_attention(x, x, x, attn_mask=m.mask), mask=mask)
        check(net, torch.randn(2, 3, 5, 4))

    def test_masked_fill(self):
        mask = torch.rand(5, 5) > 0.5
        mask.fill_diagonal_(False)
        net = Call(lambda m, x: (x @ x.mT).masked_fill(m.mask, float("-inf")).softmax(-1), mask=mask)
        assert ops(check(net, SEQUENCE)) == ["transpose", "matmul", "constant", "add", "softmax"]
        check(Call(lambda m, x: x.masked_fill(m.mask, 3.0), mask=torch.rand(5, 6) > 0.5), SEQUENCE)

    def test_a_class_token_keeps_the_batch_free(self):
        token, place = nn.Parameter(torch.randn(1, 1, 6)), nn.Parameter(torch.randn(1, 6, 6))
        net = Call(
            lambda m, x: torch.cat([m.token.expand(x.shape[0], -1, -1), x], 1) + m.place, token=token, place=place
        )
        graph = check(net, SEQUENCE)
        assert ops(graph) == ["constant", "expand", "concat", "constant", "add"]
        assert graph.with_batch(9)["cat"].shape == (9, 6, 6)
        assert graph.source_parameters == parameters(net)


class TestLstm:
    @pytest.mark.parametrize("batch_first", [True, False])
    @pytest.mark.parametrize(
        ("layers", "bidirectional", "bias"), [(1, False, True), (2, False, False), (2, True, True)]
    )
    def test_by_hand(self, layers, bidirectional, bias, batch_first):
        lstm = nn.LSTM(6, 4, layers, bias=bias, bidirectional=bidirectional, batch_first=batch_first)
        net = Call(lambda m, x: m.lstm(x)[0], lstm=lstm)
        graph = check(net, SEQUENCE)
        directions = 1 + bidirectional
        batch_and_time = 2 * 5
        widths = [6] + [4 * directions] * (layers - 1)
        assert graph.macs == sum(directions * batch_and_time * 16 * (width + 4) for width in widths)
        assert graph.source_parameters == parameters(lstm)
        names = [layer.name for layer in graph.layers if layer.op is Op.LSTM]
        wanted = [f"lstm.l{i}{way}" for i in range(layers) for way in ("", "_reverse")[:directions]]
        assert names == (["lstm"] if layers * directions == 1 else wanted)

    @pytest.mark.parametrize("batch_first", [True, False])
    def test_the_final_state(self, batch_first):
        lstm = nn.LSTM(6, 4, 2, bidirectional=True, batch_first=batch_first)
        check(Call(lambda m, x: m.lstm(x)[1][0], lstm=lstm), SEQUENCE)
        check(Call(lambda m, x: m.lstm(x)[1][0][-1], lstm=lstm), SEQUENCE)

    def test_what_cannot_be_expressed(self):
        lstm = nn.LSTM(6, 4, batch_first=True)
        with pytest.raises(LoweringError, match="cell state of an LSTM cannot be expressed"):
            lower(Call(lambda m, x: m.lstm(x)[1][1], lstm=lstm), SEQUENCE)
        with pytest.raises(LoweringError, match="proj_size"):
            lower(nn.LSTM(6, 4, proj_size=2), SEQUENCE)
        state = torch.ones(1, 2, 4)
        with pytest.raises(LoweringError, match="start from zeros"):
            lower(Call(lambda m, x: m.lstm(x, (m.state, m.state))[0], lstm=lstm, state=state), SEQUENCE)


class TestPooling:
    @pytest.mark.parametrize("ceil", [False, True])
    def test_maxima(self, ceil):
        layer = check(nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=ceil), X[:, :, :7]).layers[1]
        assert (layer.r, layer.s, layer.stride, layer.padding) == (3, 3, (2, 2), (1, 1, 1, 1))
        assert layer.attributes == {"ceil": ceil}

    def test_means(self):
        layer = check(nn.AvgPool2d((2, 3), stride=2, padding=(0, 1), count_include_pad=False), X).layers[1]
        assert layer.attributes == {"ceil": False, "count_include_pad": False, "divisor": 0}
        check(nn.AvgPool2d(2, divisor_override=3), X)
        check(nn.AvgPool2d(3, ceil_mode=True), X)

    @pytest.mark.parametrize("module", [nn.MaxPool1d(2), nn.AvgPool1d(3, 2, 1), nn.AdaptiveAvgPool1d(3)])
    def test_sequences(self, module):
        layer = check(module, SEQUENCE).layers[1]
        assert (layer.q, layer.s, layer.in_w) == (1, 1, 1)

    @pytest.mark.parametrize(("size", "op"), [(1, Op.AVG_POOL), ((4, 2), Op.AVG_POOL), (16, Op.UPSAMPLE)])
    def test_adaptive_means(self, size, op):
        assert check(nn.AdaptiveAvgPool2d(size), X).layers[1].op is op

    def test_adaptive_maxima(self):
        assert check(nn.AdaptiveMaxPool2d(2), X).layers[1].r == 4

    def test_adaptive_pooling_to_the_same_size_is_no_layer(self):
        assert ops(check(nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Conv2d(6, 1, 1)), X)) == ["conv"]

    def test_windows_of_different_sizes(self):
        with pytest.raises(LoweringError, match="windows of different sizes"):
            lower(nn.AdaptiveAvgPool2d(3), X)

    def test_indices(self):
        net = Call(lambda m, x: F.max_pool2d(x, 2, return_indices=True)[0])
        assert ops(check(net, X)) == ["max_pool"]
        with pytest.raises(LoweringError, match="indices of a pooling cannot be expressed"):
            lower(nn.MaxPool2d(2, return_indices=True), X)

    @pytest.mark.parametrize("keepdim", [True, False])
    def test_mean_and_sum(self, keepdim):
        graph = check(Call(lambda m, x: x.mean((-1, 2), keepdim=keepdim)), X)
        assert graph.layers[1].attributes == {"axes": (2, 3), "keepdim": keepdim}
        assert ops(check(Call(lambda m, x: x.sum((2, 3), keepdim=keepdim)), X)) == ["mean", "mul"]
        check(Call(lambda m, x: x.mean(1, keepdim=keepdim)), X)


class TestElementwise:
    @pytest.mark.parametrize(
        ("function", "op", "attributes"),
        [
            (lambda m, x: x + 2, Op.ADD, {"kind": "add", "scalar": 2.0}),
            (lambda m, x: 2 - x, Op.ADD, {"kind": "sub", "scalar": 2.0, "reverse": True}),
            (lambda m, x: x - 3, Op.ADD, {"kind": "sub", "scalar": 3.0}),
            (lambda m, x: x / 2, Op.MUL, {"kind": "div", "scalar": 2.0}),
            (lambda m, x: -x, Op.MUL, {"kind": "mul", "scalar": -1.0}),
            (lambda m, x: x * torch.tensor(3.0), Op.MUL, {"kind": "mul", "scalar": 3.0}),
            (lambda m, x: torch.add(x, 3, alpha=2), Op.ADD, {"kind": "add", "scalar": 3.0, "alpha": 2.0}),
        ],
    )
    def test_numbers(self, function, op, attributes):
        layer = check(Call(function), X).layers[1]
        assert (layer.op, layer.attributes) == (op, attributes)

    def test_other_forms(self):
        for function in (
            lambda m, x: torch.sub(x, x.relu(), alpha=0.5),
            lambda m, x: torch.rsub(x, 4, alpha=3),
            lambda m, x: 1 / (x * x + 1),
            lambda m, x: x.square() + x**2,
            lambda m, x: x.clone().add_(x.relu()).mul_(2).sub_(1).div_(3),
        ):
            check(Call(function), X)

    def test_nothing_added_is_no_layer(self):
        assert ops(check(Call(lambda m, x: F.relu((x + 0) * 1.0 / 1)), X)) == ["activation"]

    def test_parameters_broadcast(self):
        net = Call(
            lambda m, x: m.scale * x + m.shift, scale=nn.Parameter(torch.randn(6, 1, 1)), shift=torch.randn(1, 6, 1, 1)
        )
        graph = check(net, X)
        assert graph["mul"].inputs == ("inputs_0", "scale")
        assert graph["scale"].shape == (6, 1, 1)

    def test_squeeze_and_excite(self):
        net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 2, 1), nn.ReLU(), nn.Conv2d(2, 6, 1), nn.Sigmoid())
        graph = check(Call(lambda m, x: x * m.gate(x), gate=net), X)
        assert (graph["mul"].shape, graph["gate.3"].activation) == (X.shape, "sigmoid")
        assert graph["mul"].inputs[1] == "gate.3"


class TestActivations:
    @pytest.mark.parametrize(
        ("module", "text"),
        [
            (nn.ReLU(), "relu"),
            (nn.ReLU6(), "relu6"),
            (nn.Hardtanh(0.0, 6.0), "relu6"),
            (nn.Hardtanh(-2.0, 1.5), "hardtanh(-2,1.5)"),
            (nn.Sigmoid(), "sigmoid"),
            (nn.Tanh(), "tanh"),
            (nn.SiLU(inplace=True), "silu"),
            (nn.Hardswish(), "hardswish"),
            (nn.Hardsigmoid(), "hardsigmoid"),
            (nn.GELU(), "gelu(none)"),
            (nn.GELU("tanh"), "gelu(tanh)"),
            (nn.LeakyReLU(0.125, inplace=True), "leaky_relu(0.125)"),
            (nn.ELU(0.5), "elu(0.5)"),
            (Call(lambda m, x: x.clamp(min=0)), "relu"),
            (Call(lambda m, x: x.clamp(max=1)), "hardtanh(-inf,1)"),
            (Call(lambda m, x: torch.clamp_min(x, -0.5)), "hardtanh(-0.5,inf)"),
        ],
    )
    def test_attached_or_alone(self, module, text):
        graph = check(nn.Sequential(nn.Conv2d(6, 4, 1), module), X)
        assert [layer.activation for layer in graph.layers] == ["", text]
        alone = check(module, X)
        assert (alone.layers[1].op, alone.layers[1].attributes["kind"]) == (Op.ACTIVATION, text)

    def test_prelu_and_softmax_stand_alone(self):
        graph = check(nn.Sequential(nn.Conv2d(6, 4, 1), nn.PReLU(4), nn.Softmax(1), nn.LogSoftmax(-1)), X)
        assert ops(graph) == ["conv", "activation", "softmax", "softmax"]
        assert graph["1"].weight == "1.weight"
        assert [layer.attributes for layer in graph.layers[3:]] == [{"axis": 1, "log": False}, {"axis": 3, "log": True}]

    def test_not_attached_where_something_else_reads_the_producer(self):
        net = Call(lambda m, x: (lambda y: torch.cat([F.relu(y), y], 1))(m.conv(x)), conv=nn.Conv2d(6, 4, 1))
        assert ops(check(net, X)) == ["conv", "activation", "concat"]

    def test_not_attached_where_the_producer_is_an_output(self):
        net = Call(lambda m, x: (lambda y: (y, F.relu(y)))(m.conv(x)), conv=nn.Conv2d(6, 4, 1))
        graph = check(net, X)
        assert (graph.outputs, graph["conv"].activation) == (("conv", "relu"), "")

    def test_dropout_is_no_layer_in_eval_mode(self):
        net = nn.Sequential(nn.Dropout(), nn.Conv2d(6, 4, 1), nn.Dropout2d(inplace=True), nn.ReLU())
        graph = lower(net.train(), X)
        assert ops(graph) == ["conv"]
        assert graph.layers[1].activation == "relu"
        with pytest.raises(LoweringError, match=r"training=self\.training"):
            lower(Call(lambda m, x: F.dropout(x)), X)


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


class TestMoves:
    @pytest.mark.parametrize(
        ("function", "wanted"),
        [
            (lambda m, x: torch.cat(x.split(2, 1)[::-1], 1), ["slice", "slice", "slice", "concat"]),
            (lambda m, x: torch.cat(torch.split(x, [1, 5], 1)[::-1], 1), ["slice", "slice", "concat"]),
            (lambda m, x: x.chunk(3, 1)[1], ["slice"]),
            (lambda m, x: x.tensor_split(4, 1)[3], ["slice"]),
            (lambda m, x: x.unbind(1)[-1], ["slice", "reshape"]),
            (lambda m, x: x[:, 1], ["slice", "reshape"]),
            (lambda m, x: x[:, -1:, ::2, 1::3][..., 1:], ["slice"]),
            (lambda m, x: x.narrow(2, 3, 4), ["slice"]),
            (lambda m, x: x[:, :, :], []),
            (lambda m, x: F.pad(x, (1, 2, 3, 4)), ["pad"]),
            (lambda m, x: F.pad(x, (0, 0, 0, 0, 2, 3), value=1.5), ["pad"]),
            (lambda m, x: F.pad(x, (-1, 2, 0, -3)), ["slice", "pad"]),
            (lambda m, x: F.pad(x, (1, 2, 3, 0), mode="reflect"), ["pad"]),
            (lambda m, x: F.pad(x, (0, 0)), []),
            (lambda m, x: torch.cat([torch.zeros(2, 1, 8, 8), x, torch.zeros_like(x)], 1), ["pad"]),
            (lambda m, x: torch.stack([x, x.relu()], 1), ["activation", "reshape", "reshape", "concat"]),
            (lambda m, x: x.flatten(1), ["reshape"]),
            (lambda m, x: x.view(2, -1, 4).reshape(2, 6, 8, 8), []),
            (lambda m, x: x.unsqueeze(1).squeeze(1), []),
            (lambda m, x: x.unflatten(1, (2, 3)), ["reshape"]),
            (lambda m, x: x.permute(0, 2, 3, 1).transpose(1, 3), ["transpose"]),
            (lambda m, x: x.transpose(1, 2).transpose(2, 1).contiguous(), []),
            (lambda m, x: x.movedim(1, -1), ["transpose"]),
            (lambda m, x: x.mT, ["transpose"]),
            (lambda m, x: x[:, :, :1].expand(-1, -1, 8, -1), ["slice", "expand"]),
            (lambda m, x: x.repeat(1, 2, 1, 1), ["concat"]),
            (lambda m, x: x.to(torch.float64).float().detach().clone(), []),
            (lambda m, x: F.channel_shuffle(x, 3), ["reshape", "transpose", "reshape"]),
        ],
    )
    def test_layers_and_answers(self, function, wanted):
        graph = check(Call(lambda m, x: F.relu(function(m, x))), X)
        assert ops(graph) == [*wanted, "activation"]

    def test_pixel_shuffle(self):
        x = torch.randn(2, 12, 4, 6)
        graph = check(nn.PixelShuffle(2), x)
        assert (graph.layers[1].shape, graph.layers[1].attributes) == ((2, 3, 8, 12), {"factor": 2, "inverse": False})
        assert check(nn.PixelUnshuffle(2), x).layers[1].shape == (2, 48, 2, 3)

    @pytest.mark.parametrize(
        "module",
        [
            nn.Upsample(scale_factor=2),
            nn.Upsample(size=(5, 13)),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.Upsample(size=(11, 5), mode="bilinear", align_corners=True),
        ],
    )
    def test_upsampling(self, module):
        assert ops(check(module, X)) == ["upsample"]

    def test_upsampling_by_a_factor_that_does_not_fit(self):
        with pytest.raises(LoweringError, match="no whole number"):
            lower(nn.Upsample(scale_factor=1.3, mode="bilinear"), X)

    def test_a_shuffle_keeps_track_of_the_channels(self):
        net = nn.Sequential(nn.Conv2d(6, 6, 1, groups=3), nn.ChannelShuffle(3), nn.Conv2d(6, 6, 1))
        assert [layer.channel_axis for layer in check(net, X).layers] == [1, 1, 1, 2, 1, 1]

    def test_channel_axis_of_sequences_and_turned_images(self):
        net = Call(lambda m, x: m.linear(x.permute(0, 2, 3, 1)).relu().permute(0, 3, 1, 2), linear=nn.Linear(6, 4))
        assert [layer.channel_axis for layer in check(net, X).layers] == [1, 3, 3, 1]
        assert lower(nn.Linear(6, 4), SEQUENCE).inputs[0].channel_axis == 2
        assert lower(nn.Conv1d(5, 4, 1), SEQUENCE).inputs[0].channel_axis == 1
        net = Call(lambda m, x: m.conv(x.transpose(1, 2)), conv=nn.Conv1d(6, 4, 1))
        assert lower(net, SEQUENCE).inputs[0].channel_axis == 2

    def test_split_shuffle_and_concatenation(self):
        """A unit of ShuffleNetV2."""
        branch = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3), nn.ReLU(inplace=True))

        def unit(m, x):
            a, b = x.chunk(2, dim=1)
            y = torch.cat((a, m.branch(b)), 1)
            n, c, h, w = y.shape
            return y.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)

        graph = check(Call(unit, branch=branch), X)
        assert ops(graph) == ["slice", "slice", "conv", "concat", "reshape", "transpose", "reshape"]
        assert graph.with_batch(5).outputs == graph.outputs


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
        graph = lower(Call(lambda m, x: torch.exp(x)), X, on_unknown="vector")
        with pytest.raises(LoweringError, match="'exp' is priced as vector work only"):
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
            ("1.cumsum", (2, 4, 8, 8), {"target": "aten.cumsum.default"})
        ]
        assert graph["2"].inputs == ("1.cumsum",)

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

    def test_what_the_forward_pass_keeps(self):
        def forward(m, x):
            m.seen.append(x)
            m.calls += 1
            return m.conv(x)

        net = Call(forward, conv=nn.Conv2d(6, 4, 1), seen=[], calls=0)
        lower(net, X)
        assert (net.seen, net.calls) == ([], 0)
