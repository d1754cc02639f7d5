"""The operator table: every group of operators by hand and against the module itself."""

import inspect
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.workloads.lowered import SEQUENCE, Call, X, check, flops, ops, parameters
from workloads.errors import LoweringError
from workloads.graph import Op
from workloads.lowering import lower
from workloads.operators import OPERATORS


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
        assert check(Call(lambda m, x: F.adaptive_max_pool2d(x, (None, 1))), X).layers[1].s == 8

    def test_adaptive_pooling_to_the_same_size_is_no_layer(self):
        assert ops(check(nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Conv2d(6, 1, 1)), X)) == ["conv"]

    def test_windows_of_different_sizes(self):
        allowed = (
            "windows of different sizes; allowed: on all axes a divisor of the input's size, or on all axes a multiple"
        )
        for module in (nn.AdaptiveAvgPool2d(3), Call(lambda m, x: F.adaptive_max_pool2d(x, (16, 4)))):
            with pytest.raises(LoweringError, match=allowed):
                lower(module, X)

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

    def test_a_gated_linear_unit_is_two_slices(self):
        assert ops(check(nn.GLU(1), X)) == ["slice", "slice", "activation", "mul"]

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


class TestExtremes:
    @pytest.mark.parametrize(
        ("function", "kind"),
        [
            (lambda m, x: torch.maximum(m.a(x), m.b(x)), "maximum"),
            (lambda m, x: torch.max(m.a(x), m.b(x)), "maximum"),
            (lambda m, x: torch.minimum(m.a(x), m.b(x).amax((2, 3), keepdim=True)), "minimum"),
            (lambda m, x: torch.min(m.a(x) + m.b(x), m.shift), "minimum"),
            (lambda m, x: torch.min(m.shift, m.a(x) + m.b(x)), "minimum"),
        ],
    )
    def test_of_two_tensors_they_join(self, function, kind):
        net = Call(function, a=nn.Conv2d(6, 4, 1), b=nn.Conv2d(6, 4, 1), shift=nn.Parameter(torch.randn(4, 1, 1)))
        graph = check(net, X)
        last = graph.layers[-1]
        assert (last.op, last.attributes["kind"], last.fused_into) == (Op.ADD, kind, "")
        graph.with_batch(3).verify()

    def test_of_a_number_they_are_a_clamp(self):
        graph = check(Call(lambda m, x: torch.minimum(torch.maximum(x, torch.tensor(-0.5)), torch.tensor(2.0))), X)
        assert [x.attributes["kind"] for x in graph.layers[1:]] == ["hardtanh(-0.5,inf)", "hardtanh(-inf,2)"]

    def test_of_a_number_of_more_axes_they_join(self):
        graph = check(
            Call(lambda m, x: torch.maximum(m.fc(x), torch.full((1, 1, 1), 0.1)), fc=nn.Linear(6, 4)), torch.randn(2, 6)
        )
        assert (ops(graph), graph.layers[-1].shape) == (["linear", "constant", "add"], (1, 2, 4))


class TestLargest:
    @pytest.mark.parametrize(
        ("function", "shape"),
        [
            (lambda m, x: m.conv(x).amax((2, 3)), (2, 4)),
            (lambda m, x: m.conv(x).amax((-1, -2), keepdim=True), (2, 4, 1, 1)),
            (lambda m, x: m.conv(x).amax(2), (2, 4, 8)),
            (lambda m, x: torch.max(m.conv(x), 3)[0], (2, 4, 8)),
            (lambda m, x: m.conv(x).max(2, keepdim=True).values, (2, 4, 1, 8)),
        ],
    )
    def test_over_height_and_width_it_is_a_pooling(self, function, shape):
        graph = check(Call(function, conv=nn.Conv2d(6, 4, 1)), torch.randn(2, 6, 8, 8))
        assert ops(graph) == ["conv", "max_pool"] + ["reshape"] * (len(shape) < 4)
        assert graph.layers[-1].shape == shape
        graph.with_batch(3).verify()

    @pytest.mark.parametrize("function", [lambda m, x: m.fc(x).max(1)[0], lambda m, x: m.fc(x).amax(1, keepdim=True)])
    def test_over_the_length_of_a_sequence(self, function):
        graph = check(Call(function, fc=nn.Linear(6, 4)), SEQUENCE)
        assert ops(graph)[:3] == ["linear", "transpose", "max_pool"]
        assert graph.layers[-1].channel_axis == len(graph.layers[-1].shape) - 1
        graph.with_batch(3).verify()

    def test_over_one_axis_of_an_image_whose_channels_come_last(self):
        graph = check(Call(lambda m, x: m.fc(x).amax(1), fc=nn.Linear(6, 4)), torch.randn(2, 5, 7, 6))
        assert (graph.layers[-1].shape, graph.layers[-1].channel_axis) == ((2, 7, 4), 2)

    @pytest.mark.parametrize("function", [lambda m, x: x.amax(1), lambda m, x: x.amax(), lambda m, x: x.max(2)[1]])
    def test_over_channels_and_samples_it_has_no_rule(self, function):
        with pytest.raises(LoweringError, match=r"takes the maximum over axes|single number|indices of a maximum"):
            lower(Call(function), X)


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
            (nn.Mish(), "mish"),
            (Call(lambda m, x: x.abs()), "abs"),
            (Call(lambda m, x: torch.absolute(x)), "abs"),
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

    def test_a_root(self):
        graph = check(Call(lambda m, x: m.conv(x).abs().sqrt(), conv=nn.Conv2d(6, 4, 1)), X)
        assert (graph["conv"].activation, graph["sqrt"].attributes["kind"]) == ("abs", "sqrt")

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
            (lambda m, x: F.pad(x, (-1, -1, -2, 0)), ["slice"]),
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

    def test_a_constant_in_the_shape_of_a_tensor_is_made_from_it(self):
        graph = check(Call(lambda m, x: torch.full_like(x, 2.0) + x.tanh()), X)
        assert sorted(ops(graph)) == ["activation", "activation", "add"]
        assert graph["fill"].inputs == (graph.inputs[0].name,)

    @pytest.mark.parametrize("name", ["new_zeros", "new_ones"])
    def test_a_constant_of_a_stated_shape_is_an_array(self, name):
        graph = check(Call(lambda m, x: getattr(x, name)(1, *X.shape[1:]) + x.tanh()), X)
        assert "constant" in ops(graph)

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


class TestTable:
    @pytest.mark.parametrize("target", OPERATORS)
    def test_every_row_names_an_operator_whose_arguments_its_handler_takes(self, target):
        namespace, name, overload = target.split(".")
        operator = getattr(getattr(getattr(torch.ops, namespace), name, None) or in_place(name), overload)
        arguments = [None] * len(operator._schema.arguments)
        inspect.signature(OPERATORS[target]).bind("site", *arguments)


def in_place(name):
    """For operators that have no other form: fill_, copy_, zero_."""
    return getattr(torch.ops.aten, f"{name}_")
