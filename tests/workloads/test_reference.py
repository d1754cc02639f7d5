"""The interpreter: every op equal to torch on one-layer graphs built by hand, every model of the zoo to its module."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.workloads.builders import (
    arrays_of,
    constant,
    conv,
    conv_transpose,
    graph,
    linear,
    lstm,
    matmul,
    plain,
    residual,
    source,
    window,
)
from tests.workloads.lowered import arrays
from workloads.activations import ACTIVATIONS
from workloads.errors import CodesignError, DataError, LoweringError, ShapeError
from workloads.graph import Layer, Op
from workloads.lowering import lower_with_weights
from workloads.models import build, example_input, models
from workloads.reference import ACTIVATE, NORMS, OPERATIONS, activate, run, run_all
from workloads.store import load_graph, save_graph

Function = Callable[..., Tensor]
IMAGE = source((2, 4, 9, 7))
SIGNAL = source((2, 4, 9))
SEQUENCE = source((2, 5, 6), axis=2)
CEIL = {"attributes": {"ceil": True}}
FLOOR = {"attributes": {"ceil": False}}


def average(ceil: bool = False, inside: bool = True, divisor: int = 0) -> dict[str, Any]:
    return {"attributes": {"ceil": ceil, "count_include_pad": inside, "divisor": divisor}}


def pool(op: Op, shape: tuple[int, int], **fields: Any) -> Layer:
    """A 3x3 pool of IMAGE, stride 2, padding 1, of the given output size."""
    layer = window(op, IMAGE, 4, (3, 3), (2, 2), (1, 1, 1, 1), **fields)
    return dataclasses.replace(layer, p=shape[0], q=shape[1], shape=(2, 4, *shape))


def image(op: Op, **fields: Any) -> Layer:
    return plain(op, IMAGE.shape, IMAGE, **fields)


def sequence(op: Op, **fields: Any) -> Layer:
    return plain(op, SEQUENCE.shape, SEQUENCE, channel_axis=2, **fields)


# Name -> (input and constant layers, the layer, the same in torch: function of the inputs and then the arrays).
CASES: dict[str, tuple[tuple[Layer, ...], Layer, Function]] = {
    "input": ((), IMAGE, lambda x: x),
    "constant": ((IMAGE,), constant((3, 4)), lambda x, w: w),
    "conv": ((IMAGE,), conv(IMAGE, 8, bias="b"), F.conv2d),
    "conv strided": (
        (IMAGE,),
        conv(IMAGE, 8, (3, 2), stride=(2, 1), padding=(1, 1, 2, 2), dilation=(2, 3), groups=2),
        lambda x, w: F.conv2d(x, w, None, (2, 1), (1, 2), (2, 3), 2),
    ),
    "conv depthwise": ((IMAGE,), conv(IMAGE, 4, groups=4), lambda x, w: F.conv2d(x, w, groups=4)),
    "conv padded on one side": (
        (IMAGE,),
        conv(IMAGE, 3, (2, 2), padding=(0, 1, 2, 0), bias="b"),
        lambda x, w, b: F.conv2d(F.pad(x, (2, 0, 0, 1)), w, b),
    ),
    "conv1d": (
        (SIGNAL,),
        conv(SIGNAL, 6, (3, 1), stride=(2, 1), padding=(1, 1, 0, 0), groups=2, bias="b"),
        lambda x, w, b: F.conv1d(x, w, b, 2, 1, groups=2),
    ),
    "conv_transpose": (
        (IMAGE,),
        conv_transpose(IMAGE, 6, (3, 2), (2, 3), 1, (1, 2), groups=2, bias="b"),
        lambda x, w, b: F.conv_transpose2d(x, w, b, (2, 3), 1, (1, 2), 2),
    ),
    "conv_transpose dilated": (
        (IMAGE,),
        conv_transpose(IMAGE, 5, (2, 3), padding=2, dilation=(3, 2)),
        lambda x, w: F.conv_transpose2d(x, w, None, 1, 2, dilation=(3, 2)),
    ),
    "conv_transpose with more output padding than overlap": (
        (IMAGE,),
        conv_transpose(IMAGE, 5, (1, 1), (3, 3), 0, (2, 2)),
        lambda x, w: F.conv_transpose2d(x, w, None, 3, 0, 2),
    ),
    "linear": ((SEQUENCE,), linear(SEQUENCE, 7, bias="b"), F.linear),
    "linear without bias": ((SEQUENCE,), linear(SEQUENCE, 7, activation="relu"), lambda x, w: F.relu(F.linear(x, w))),
    "matmul": (
        (source((2, 3, 5, 6), "a"), source((2, 3, 6, 7), "b")),
        matmul(source((2, 3, 5, 6), "a"), source((2, 3, 6, 7), "b"), scale=0.3),
        lambda a, b: 0.3 * (a @ b),
    ),
    "max_pool": ((IMAGE,), pool(Op.MAX_POOL, (5, 4), **FLOOR), lambda x: F.max_pool2d(x, 3, 2, 1)),
    "max_pool ceil": (
        (IMAGE,),
        dataclasses.replace(window(Op.MAX_POOL, IMAGE, 4, (2, 2), (2, 2), **CEIL), p=5, q=4, shape=(2, 4, 5, 4)),
        lambda x: F.max_pool2d(x, 2, 2, ceil_mode=True),
    ),
    "max_pool dilated": (
        (IMAGE,),
        window(Op.MAX_POOL, IMAGE, 4, (3, 2), (1, 1), (2, 2, 1, 1), (2, 2), **FLOOR),
        lambda x: F.max_pool2d(F.pad(x, (1, 1, 2, 2), value=-9.0), (3, 2), 1, 0, 2),
    ),
    "max_pool1d": ((SIGNAL,), window(Op.MAX_POOL, SIGNAL, 4, (3, 1), (2, 1), **FLOOR), lambda x: F.max_pool1d(x, 3, 2)),
    "avg_pool": ((IMAGE,), pool(Op.AVG_POOL, (5, 4), **average()), lambda x: F.avg_pool2d(x, 3, 2, 1)),
    "avg_pool inside": (
        (IMAGE,),
        pool(Op.AVG_POOL, (5, 4), **average(inside=False)),
        lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    ),
    "avg_pool divisor": (
        (IMAGE,),
        pool(Op.AVG_POOL, (5, 4), **average(divisor=5)),
        lambda x: F.avg_pool2d(x, 3, 2, 1, divisor_override=5),
    ),
    "avg_pool ceil": (
        (IMAGE,),
        dataclasses.replace(
            window(Op.AVG_POOL, IMAGE, 4, (2, 2), (2, 2), **average(ceil=True)), p=5, q=4, shape=(2, 4, 5, 4)
        ),
        lambda x: F.avg_pool2d(x, 2, 2, ceil_mode=True),
    ),
    "avg_pool1d": (
        (SIGNAL,),
        window(Op.AVG_POOL, SIGNAL, 4, (3, 1), (3, 1), **average()),
        lambda x: F.avg_pool1d(x, 3, 3),
    ),
    "mean": ((IMAGE,), plain(Op.MEAN, (2, 4), IMAGE, axes=(2, 3), keepdim=False), lambda x: x.mean((2, 3))),
    "mean keepdim": (
        (IMAGE,),
        plain(Op.MEAN, (2, 1, 9, 7), IMAGE, axes=(1,), keepdim=True),
        lambda x: x.mean(1, keepdim=True),
    ),
    "add": ((IMAGE, source((2, 1, 9, 1), "z")), image(Op.ADD, kind="add"), lambda x, z: x + z),
    "add alpha": ((IMAGE, constant((4, 1, 1), "z")), image(Op.ADD, kind="add", alpha=0.5), lambda x, z: x + 0.5 * z),
    "add scalar": ((IMAGE,), image(Op.ADD, kind="add", scalar=3), lambda x: x + 3),
    "sub": ((IMAGE, source((2, 4, 1, 1), "z")), image(Op.ADD, kind="sub", alpha=2.0), lambda x, z: x - 2 * z),
    "sub scalar": ((IMAGE,), image(Op.ADD, kind="sub", scalar=2.0), lambda x: x - 2),
    "sub from scalar": ((IMAGE,), image(Op.ADD, kind="sub", scalar=1.0, reverse=True), lambda x: 1 - x),
    "rsub": (
        (IMAGE,),
        image(Op.ADD, kind="sub", scalar=1.0, alpha=3.0, reverse=True),
        lambda x: torch.rsub(x, 1, alpha=3),
    ),
    "mul": ((IMAGE, source((2, 4, 1, 1), "z")), image(Op.MUL, kind="mul"), lambda x, z: x * z),
    "mul scalar": ((IMAGE,), image(Op.MUL, kind="mul", scalar=2.0), lambda x: x * 2),
    "div": ((IMAGE, constant((9, 7), "z")), image(Op.MUL, kind="div"), lambda x, z: x / z),
    "div by scalar": ((IMAGE,), image(Op.MUL, kind="div", scalar=4.0), lambda x: x / 4),
    "div of scalar": ((IMAGE,), image(Op.MUL, kind="div", scalar=4.0, reverse=True), lambda x: 4 / x),
    "activation": ((IMAGE,), image(Op.ACTIVATION, kind="elu(0.5)"), lambda x: F.elu(x, 0.5)),
    "prelu": ((IMAGE,), image(Op.ACTIVATION, kind="prelu", weight="w"), F.prelu),
    "softmax": ((SEQUENCE,), sequence(Op.SOFTMAX, axis=2, log=False), lambda x: F.softmax(x, 2)),
    "log_softmax": ((IMAGE,), image(Op.SOFTMAX, axis=1, log=True), lambda x: F.log_softmax(x, 1)),
    "affine norm": (
        (IMAGE,),
        image(Op.NORM, kind="affine", weight="w", bias="b"),
        lambda x, w, b: F.batch_norm(x, torch.zeros(4), torch.ones(4), w, b, eps=0),
    ),
    "affine norm of a sequence": (
        (SEQUENCE,),
        sequence(Op.NORM, kind="affine", weight="w", bias="b"),
        lambda x, w, b: x * w + b,
    ),
    "layer norm": (
        (SEQUENCE,),
        sequence(Op.NORM, kind="layer", axes=(2,), eps=1e-3, weight="w", bias="b"),
        lambda x, w, b: F.layer_norm(x, (6,), w, b, 1e-3),
    ),
    "layer norm of two axes": (
        (SEQUENCE,),
        sequence(Op.NORM, kind="layer", axes=(1, 2), eps=1e-5),
        lambda x: F.layer_norm(x, (5, 6)),
    ),
    "group norm": (
        (IMAGE,),
        image(Op.NORM, kind="group", groups=2, eps=1e-5, weight="w", bias="b"),
        lambda x, w, b: F.group_norm(x, 2, w, b),
    ),
    "instance norm": (
        (IMAGE,),
        image(Op.NORM, kind="instance", eps=1e-5, weight="w", bias="b"),
        lambda x, w, b: F.instance_norm(x, weight=w, bias=b),
    ),
    "concat": (
        (IMAGE, source((2, 2, 9, 7), "z")),
        plain(Op.CONCAT, (2, 6, 9, 7), IMAGE, axis=1),
        lambda x, z: torch.cat([x, z], 1),
    ),
    "slice": (
        (IMAGE,),
        plain(Op.SLICE, (2, 2, 3, 5), IMAGE, starts=(0, 1, 2, 1), steps=(1, 2, 3, 1)),
        lambda x: x[:, 1::2, 2::3, 1:6],
    ),
    "pad": (
        (IMAGE,),
        plain(Op.PAD, (2, 7, 12, 7), IMAGE, before=(0, 1, 3, 0), after=(0, 2, 0, 0), mode="constant", value=-1.5),
        lambda x: F.pad(x, (0, 0, 3, 0, 1, 2), value=-1.5),
    ),
    **{
        f"pad {mode}": (
            (IMAGE,),
            plain(Op.PAD, (2, 4, 12, 10), IMAGE, before=(0, 0, 2, 1), after=(0, 0, 1, 2), mode=mode),
            lambda x, mode=mode: F.pad(x, (1, 2, 2, 1), mode=mode),
        )
        for mode in ("reflect", "replicate", "circular")
    },
    "expand": ((source((2, 1, 5)),), plain(Op.EXPAND, (2, 3, 5), SIGNAL), lambda x: x.expand(2, 3, 5)),
    "transpose": (
        (IMAGE,),
        plain(Op.TRANSPOSE, (2, 7, 4, 9), IMAGE, permutation=(0, 3, 1, 2)),
        lambda x: x.permute(0, 3, 1, 2),
    ),
    "pixel_shuffle": (
        (IMAGE,),
        plain(Op.PIXEL_SHUFFLE, (2, 1, 18, 14), IMAGE, factor=2, inverse=False),
        lambda x: F.pixel_shuffle(x, 2),
    ),
    "pixel_unshuffle": (
        (source((2, 4, 6, 9)),),
        plain(Op.PIXEL_SHUFFLE, (2, 36, 2, 3), IMAGE, factor=3, inverse=True),
        lambda x: F.pixel_unshuffle(x, 3),
    ),
    "upsample": (
        (IMAGE,),
        plain(Op.UPSAMPLE, (2, 4, 18, 21), IMAGE, mode="nearest"),
        lambda x: F.interpolate(x, scale_factor=(2, 3)),
    ),
    "upsample of a signal": (
        (SIGNAL,),
        plain(Op.UPSAMPLE, (2, 4, 18), SIGNAL, mode="nearest"),
        lambda x: F.interpolate(x, 18),
    ),
    **{
        f"upsample bilinear {corners}": (
            (IMAGE,),
            plain(Op.UPSAMPLE, (2, 4, 18, 14), IMAGE, mode="bilinear", align_corners=corners),
            lambda x, corners=corners: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=corners),
        )
        for corners in (True, False)
    },
    "reshape": ((IMAGE,), plain(Op.RESHAPE, (2, 252), IMAGE), lambda x: x.flatten(1)),
}  # fmt: skip


def inputs_of(layers: tuple[Layer, ...], dtype: type = np.float32) -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    return [rng.normal(size=layer.shape).astype(dtype) for layer in layers if layer.op is Op.INPUT]


@pytest.mark.parametrize("name", list(CASES))
def test_an_op_equals_torch(name: str) -> None:
    sources, layer, function = CASES[name]
    if sources and layer.op is not Op.CONSTANT:
        layer = dataclasses.replace(layer, inputs=tuple(other.name for other in sources))
    layers = (*sources, layer)
    net, weights, inputs = graph(*layers), arrays_of(layers), inputs_of(layers)
    tensors = [torch.from_numpy(x) for x in inputs] + [torch.from_numpy(w) for w in weights.values()]
    expected = function(*tensors)
    found = run(net, weights, *inputs)
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float32
    torch.testing.assert_close(torch.from_numpy(found.copy()), expected, rtol=1e-5, atol=1e-5)


def test_every_op_is_tried() -> None:
    assert set(OPERATIONS) == set(Op)
    assert {layer.op for _, layer, _ in CASES.values()} == set(Op) - {Op.LSTM, Op.VECTOR}  # these have their own tests
    assert set(NORMS) == {case.attributes["kind"] for _, case, _ in CASES.values() if case.op is Op.NORM}


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("reverse", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_lstm_equals_torch(batch_first: bool, reverse: bool, bias: bool) -> None:
    """torch has no module that only runs backwards: the second half of a bidirectional one is that."""
    module = nn.LSTM(6, 3, batch_first=batch_first, bidirectional=True, bias=bias)
    state = {
        key.removesuffix("_reverse"): value
        for key, value in module.state_dict().items()
        if ("reverse" in key) == reverse
    }
    weights = {"y.weight": torch.cat([state["weight_ih_l0"], state["weight_hh_l0"]], 1).numpy()}
    if bias:
        weights["b"] = (state["bias_ih_l0"] + state["bias_hh_l0"]).numpy()
    layer = lstm(SEQUENCE, 3, batch_first, reverse, bias="b" if bias else "")
    x = torch.randn(SEQUENCE.shape)
    with torch.no_grad():
        expected = module(x)[0][..., 3:] if reverse else module(x)[0][..., :3]
    found = run(graph(SEQUENCE, layer), weights, x)
    torch.testing.assert_close(torch.as_tensor(found), expected, rtol=1e-5, atol=1e-6)


# Text -> what it stands for.
ACTIVATION_MODULES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(),
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "silu": nn.SiLU(),
    "hardswish": nn.Hardswish(),
    "hardsigmoid": nn.Hardsigmoid(),
    "gelu(none)": nn.GELU(),
    "gelu(tanh)": nn.GELU("tanh"),
    "leaky_relu(0.01)": nn.LeakyReLU(),
    "elu(1.0)": nn.ELU(),
    "hardtanh(-2,2.5)": nn.Hardtanh(-2, 2.5),
    "hardtanh(0,inf)": nn.ReLU(),
    "mish": nn.Mish(),
    "abs": torch.abs,
    "sqrt": torch.sqrt,
}


@pytest.mark.parametrize("text", list(ACTIVATION_MODULES))
def test_an_activation_equals_torch(text: str) -> None:
    x = torch.linspace(-8, 8, 101)
    torch.testing.assert_close(activate(x, text), ACTIVATION_MODULES[text](x), equal_nan=True)


def test_every_activation_is_tried() -> None:
    assert {text.partition("(")[0] for text in ACTIVATION_MODULES} == set(ACTIVATIONS) == set(ACTIVATE)


# ---- whole graphs ---------------------------------------------------------------------------------------------------


def residual_in_torch(x: Tensor, w: dict[str, Tensor]) -> dict[str, Tensor]:
    a = F.relu(F.conv2d(x, w["a.weight"], w["a.bias"], padding=1))
    b = F.conv2d(a, w["b.weight"], padding=1)
    add = F.relu(a + b)
    pool = add.mean((2, 3), keepdim=True)
    fc = F.linear(pool.flatten(1), w["fc.weight"], w["fc.bias"])
    return {"x": x, "a": a, "b": b, "add": add, "pool": pool, "flat": pool.flatten(1), "fc": fc}


def test_a_graph_equals_torch_layer_by_layer() -> None:
    net = residual().with_batch(3)
    weights, (x,) = arrays_of(net.layers), inputs_of(net.layers)
    expected = residual_in_torch(torch.from_numpy(x), {key: torch.from_numpy(w) for key, w in weights.items()})
    found = run_all(net, weights, x)
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(torch.from_numpy(found[name]), tensor, rtol=1e-5, atol=1e-5)


def test_outputs_come_in_the_order_of_the_graph() -> None:
    net = dataclasses.replace(residual(), outputs=("fc", "a", "fc"))
    weights, inputs = arrays_of(net.layers), inputs_of(net.layers)
    found = run(net, weights, *inputs)
    assert isinstance(found, tuple)
    assert [x.shape for x in found] == [(1, 10), (1, 4, 8, 8), (1, 10)]
    assert np.array_equal(found[1], run_all(net, weights, *inputs)["a"])


def test_a_double_input_is_computed_in_double() -> None:
    net = residual()
    weights = arrays_of(net.layers)
    double = {key: array.astype(np.float64) for key, array in weights.items()}
    (x,) = inputs_of(net.layers, np.float64)
    found = run(net, double, x)
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float64
    expected = residual_in_torch(torch.from_numpy(x), {key: torch.from_numpy(w) for key, w in double.items()})["fc"]
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-12, atol=1e-12)


def test_inputs_and_weights_are_left_alone() -> None:
    net = residual()
    weights, (x,) = arrays_of(net.layers), inputs_of(net.layers)
    before = [array.copy() for array in (x, *weights.values())]
    for array in (x, *weights.values()):
        array.setflags(write=False)  # read-only arrays are as good as others
    run(net, weights, x)
    assert all(np.array_equal(a, b) for a, b in zip(before, (x, *weights.values()), strict=True))


def test_weights_of_any_layout_and_type() -> None:
    net = residual()
    weights, inputs = arrays_of(net.layers), inputs_of(net.layers)
    other = {key: np.asfortranarray(array.astype(np.float64)) for key, array in weights.items()}
    assert np.array_equal(run(net, weights, *inputs), run(net, other, *inputs))


# ---- errors ---------------------------------------------------------------------------------------------------------


def test_a_wrong_input_is_named() -> None:
    net = residual()
    weights = arrays_of(net.layers)
    with pytest.raises(
        ShapeError, match=r"input 'x' has shape \(4, 3, 8, 8\), must be \(1, 3, 8, 8\); for another batch"
    ):
        run(net, weights, np.zeros((4, 3, 8, 8)))
    with pytest.raises(ShapeError, match=r"input 'x' has shape \(1, 3, 8\), must be \(1, 3, 8, 8\)$"):
        run(net, weights, np.zeros((1, 3, 8)))
    with pytest.raises(ShapeError, match="graph 'test': 2 inputs given, needs 1"):
        run(net, weights, np.zeros((1, 3, 8, 8)), np.zeros(1))


def test_a_missing_or_wrong_array_is_named() -> None:
    net = residual()
    weights, inputs = arrays_of(net.layers), inputs_of(net.layers)
    with pytest.raises(DataError, match=r"layer 'a' \(conv\): array 'a.bias' is missing"):
        run(net, {key: array for key, array in weights.items() if key != "a.bias"}, *inputs)
    with pytest.raises(
        ShapeError, match=r"layer 'fc' \(linear\): array 'fc.weight' has shape \(4, 10\), must be \(10, 4\)"
    ):
        run(net, weights | {"fc.weight": weights["fc.weight"].T}, *inputs)


@pytest.mark.parametrize(
    ("target", "arguments", "message"),
    [
        ("aten.relu_.default", {"self": {"input": 0}}, "aten.relu_.default is no operator of this torch without side"),
        ("aten.no_such.default", {"self": {"input": 0}}, "aten.no_such.default is no operator of this torch"),
        ("prims.sin.default", {"self": {"input": 0}}, "prims.sin.default is no operator of this torch"),
        ("aten.from_file.default", {"filename": "/etc/passwd"}, "aten.from_file.default is no operator of this torch"),
        ("aten.save.default", {"item": {"input": 0}, "filename": "/no"}, "aten.save.default is no operator of this"),
        ("aten.sin.default", {"self": {"input": 0, "more": 1}}, "attribute 'arguments' is .* must be numbers"),
        ("aten.sin.default", {"self": {"input": 1}}, "aten.sin.default reads input 1 of 1"),
    ],
)
def test_only_values_and_operators_without_side_effects_are_taken(target, arguments, message) -> None:  # type: ignore[no-untyped-def]
    layers = (IMAGE, plain(Op.VECTOR, (2, 4), IMAGE, target=target, arguments=arguments))
    with pytest.raises(CodesignError, match=message):
        run(graph(*layers), {}, *inputs_of(layers))


def test_an_operator_that_is_only_priced_cannot_run() -> None:
    net = graph(IMAGE, plain(Op.VECTOR, (2, 4), IMAGE, target="aten.fft_fft.default"))
    with pytest.raises(LoweringError, match=r"layer 'y': aten\.fft_fft\.default is priced as vector work only"):
        run(net, {}, *inputs_of(net.layers))


def test_a_layer_that_gives_another_shape_is_named() -> None:
    """Only a graph that was never verified gets this far."""
    net = residual()
    broken = net.replace_layers({"pool": {"attributes": {"axes": (2,), "keepdim": True}}})
    with pytest.raises(ShapeError, match=r"layer 'pool' \(mean\): gives \(1, 4, 1, 8\), the graph says \(1, 4, 1, 1\)"):
        run(broken, arrays_of(net.layers), *inputs_of(net.layers))
    broken = net.replace_layers({"flat": {"shape": (1, 5)}})
    with pytest.raises(ShapeError, match=r"layer 'flat' \(reshape\): shape '\[1, 5\]' is invalid"):
        run(broken, arrays_of(net.layers), *inputs_of(net.layers))


# ---- the zoo --------------------------------------------------------------------------------------------------------

SLOW = ("vgg16",)  # more than five seconds, most of it for making and copying 138 M random weights


def zoo() -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in models()]


def with_lived_in_norms(model: nn.Module) -> nn.Module:
    """Statistics as after training: fresh ones, 0 and 1, would hide a wrong folding."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.1, generator=generator)
    return model


@pytest.mark.parametrize("name", zoo())
def test_a_model_of_the_zoo_equals_its_module(name: str) -> None:
    """Within 1e-5 of the largest output, at the batch it was lowered for and at another."""
    model = with_lived_in_norms(build(name))
    net, weights = lower_with_weights(model, (example_input(name),))
    for batch in (1, 2):
        x = example_input(name, batch, seed=batch)
        with torch.no_grad():
            wanted = arrays(model(x))
        for found, expected in zip(arrays(run(net.with_batch(batch), weights, x)), wanted, strict=True):
            assert found.shape == expected.shape
            assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.data("weights/resnet20_cifar10.safetensors", "weights/mobilenet_v2_imagenet_fp16.safetensors")
@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2"])
def test_a_trained_model_equals_its_module(name: str) -> None:
    model = build(name, pretrained=True)
    net, weights = lower_with_weights(model, (example_input(name),))
    x = example_input(name)
    with torch.no_grad():
        expected = model(x).numpy()
    found = run(net, weights, x)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_lowered_graph_and_its_weights_run_from_disk(tmp_path: Path) -> None:
    net, weights = lower_with_weights(with_lived_in_norms(build("resnet20")), (example_input("resnet20"),))
    save_graph(tmp_path / "net.json", net, weights)
    again, loaded = load_graph(tmp_path / "net.json")
    x = example_input("resnet20")
    assert np.array_equal(run(again, loaded, x), run(net, weights, x))
