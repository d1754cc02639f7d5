"""The verifier: a table of broken graphs with the line that each one gets, and proof that whole ones pass."""

import copy
import dataclasses
import functools
import operator
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.workloads.builders import (
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
from workloads.activations import ACTIVATIONS, parse_activation
from workloads.errors import CodesignError, ConfigError, DataError, ShapeError
from workloads.graph import KIND, Kind, Layer, LayerGraph, Op
from workloads.op_rules import ATTRIBUTE_TYPES, RULES
from workloads.sparsity import WeightSparsity
from workloads.verify import array_shapes, verify_weights

IMAGE = source((2, 4, 8, 6))
SEQUENCE = source((2, 5, 6), axis=2)
SIGNAL = source((2, 4, 9))

# One whole layer of every op, with the layers that feed it.
WHOLE: dict[Op, tuple[Layer, ...]] = {
    Op.INPUT: (IMAGE,),
    Op.CONSTANT: (IMAGE, constant((3, 4))),
    Op.CONV: (IMAGE, conv(IMAGE, 8, (3, 2), stride=(2, 1), padding=(1, 0, 1, 1), dilation=(2, 1), groups=2)),
    Op.CONV_TRANSPOSE: (IMAGE, conv_transpose(IMAGE, 6, (3, 2), (2, 2), 1, (1, 0), groups=2)),
    Op.LINEAR: (SEQUENCE, linear(SEQUENCE, 7, bias="y.bias")),
    Op.MATMUL: (
        source((2, 3, 5, 6), "a"),
        source((2, 3, 6, 7), "b"),
        matmul(source((2, 3, 5, 6), "a"), source((2, 3, 6, 7), "b"), scale=0.5),
    ),
    Op.LSTM: (SEQUENCE, lstm(SEQUENCE, 3)),
    Op.MAX_POOL: (IMAGE, window(Op.MAX_POOL, IMAGE, 4, (3, 3), (2, 2), (1, 1, 1, 1), attributes={"ceil": False})),
    Op.AVG_POOL: (
        IMAGE,
        window(Op.AVG_POOL, IMAGE, 4, (2, 2), attributes={"ceil": False, "count_include_pad": True, "divisor": 0}),
    ),
    Op.MEAN: (IMAGE, plain(Op.MEAN, (2, 4), IMAGE, axes=(2, 3), keepdim=False)),
    Op.ADD: (IMAGE, constant((4, 1, 1)), plain(Op.ADD, IMAGE.shape, IMAGE, constant((4, 1, 1)), kind="sub", alpha=2.0)),
    Op.MUL: (IMAGE, plain(Op.MUL, IMAGE.shape, IMAGE, kind="div", scalar=2, reverse=True)),
    Op.ACTIVATION: (IMAGE, plain(Op.ACTIVATION, IMAGE.shape, IMAGE, kind="prelu", weight="slopes")),
    Op.SOFTMAX: (SEQUENCE, plain(Op.SOFTMAX, SEQUENCE.shape, SEQUENCE, channel_axis=2, axis=2, log=False)),
    Op.NORM: (IMAGE, plain(Op.NORM, IMAGE.shape, IMAGE, kind="group", groups=2, eps=1e-5)),
    Op.CONCAT: (IMAGE, plain(Op.CONCAT, (2, 8, 8, 6), IMAGE, IMAGE, axis=1)),
    Op.SLICE: (IMAGE, plain(Op.SLICE, (2, 2, 4, 6), IMAGE, starts=(0, 1, 1, 0), steps=(1, 2, 2, 1))),
    Op.PAD: (
        IMAGE,
        plain(Op.PAD, (2, 6, 8, 8), IMAGE, before=(0, 1, 0, 2), after=(0, 1, 0, 0), mode="constant", value=0.0),
    ),
    Op.EXPAND: (SEQUENCE, plain(Op.EXPAND, (3, 2, 5, 6), SEQUENCE)),
    Op.TRANSPOSE: (IMAGE, plain(Op.TRANSPOSE, (2, 8, 6, 4), IMAGE, permutation=(0, 2, 3, 1))),
    Op.PIXEL_SHUFFLE: (IMAGE, plain(Op.PIXEL_SHUFFLE, (2, 1, 16, 12), IMAGE, factor=2, inverse=False)),
    Op.UPSAMPLE: (IMAGE, plain(Op.UPSAMPLE, (2, 4, 16, 13), IMAGE, mode="bilinear", align_corners=True)),
    Op.RESHAPE: (IMAGE, plain(Op.RESHAPE, (2, 192), IMAGE)),
    Op.VECTOR: (IMAGE, plain(Op.VECTOR, (2, 7), IMAGE, target="aten.fft.default")),
}


def broken(op: Op, **fields: Any) -> tuple[Layer, ...]:
    """The whole example of an op with fields of its last layer changed; attributes are merged."""
    *rest, last = WHOLE[op]
    if "attributes" in fields:
        fields["attributes"] = {**last.attributes, **fields["attributes"]}
    return (*rest, dataclasses.replace(last, **fields))


def lacking(op: Op, attribute: str) -> tuple[Layer, ...]:
    *rest, last = WHOLE[op]
    kept = {key: value for key, value in last.attributes.items() if key != attribute}
    return (*rest, dataclasses.replace(last, attributes=kept))


# ---- whole graphs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", list(Op))
def test_every_op_has_a_rule_that_a_whole_layer_passes(op: Op) -> None:
    assert op in RULES
    assert WHOLE[op][-1].op is op
    graph(*WHOLE[op])


def test_every_attribute_of_a_rule_has_a_type() -> None:
    named = {key for rule in RULES.values() for key in rule.needs + rule.allows}
    assert named == set(ATTRIBUTE_TYPES)


@pytest.mark.parametrize("op", [op for op in Op if RULES[op].needs])
def test_a_missing_attribute_is_named(op: Op) -> None:
    for key in RULES[op].needs:
        with pytest.raises(ShapeError, match=f"layer 'y' .{op}.: attribute '{key}' is missing; needs "):
            graph(*lacking(op, key))


@pytest.mark.parametrize("op", [op for op in Op if RULES[op].needs])
@pytest.mark.parametrize("value", [None, "x", (1, "x"), True, 1.5, float("nan"), 10**12, {"a": 1}])
def test_an_attribute_of_a_wrong_type_never_escapes_as_another_error(op: Op, value: object) -> None:
    refused = 0
    for key in RULES[op].needs:
        form, fits = ATTRIBUTE_TYPES[key]
        if not fits(value):
            refused += 1
            with pytest.raises(ShapeError, match=f"attribute '{key}' is .*, must be {form}"):
                graph(*broken(op, attributes={key: value}))
    assert refused or value in ("x", True)


def test_images_may_be_sequences() -> None:
    graph(SIGNAL, conv(SIGNAL, 6, (3, 1), stride=(2, 1), padding=(1, 1, 0, 0)))
    graph(SIGNAL, window(Op.MAX_POOL, SIGNAL, 4, (2, 1), (2, 1), attributes={"ceil": False}))


def test_an_add_may_be_fused_into_its_producer() -> None:
    assert residual()["add"].fused_into == "b"


# ---- broken graphs --------------------------------------------------------------------------------------------------

x, y = IMAGE, conv(IMAGE, 8)
# Messages that start with neither "layer" nor "graph" are about the last layer, "y".
BROKEN: list[tuple[tuple[Layer, ...], str]] = [
    # names and edges
    ((x, dataclasses.replace(y, name="")), "layer '' (conv): has no name; every layer needs one"),
    ((x, y, y), "the name is used twice; names must be unique"),
    ((y, x), "layer 'y' (conv): input 'x' does not come before it; order the layers so that it does"),
    ((x, dataclasses.replace(y, inputs=("z",))), "input 'z' is no layer"),
    ((x, dataclasses.replace(y, inputs=("y",))), "input 'y' does not come before it"),
    ((x, dataclasses.replace(y, inputs=())), "number of inputs is 0, must be 1"),
    ((x, dataclasses.replace(y, inputs=("x", "x"))), "number of inputs is 2, must be 1"),
    ((x, plain(Op.ADD, x.shape, x, x, x, kind="add")), "number of inputs is 3, must be 1 to 2"),
    ((x, plain(Op.CONCAT, x.shape, x, axis=1, name="c"), dataclasses.replace(y, op=Op.CONCAT, inputs=())),
     "number of inputs is 0, must be at least 1"),
    ((x, dataclasses.replace(y, fused_into="z")), "fused_into is 'z', must be 'x', a producer of it"),
    ((constant((2, 2)),), "graph 'test': has no input layer, needs at least one"),
    # dims
    ((x, dataclasses.replace(y, n=0)), "n is 0, must be 1..2147483647"),
    ((x, dataclasses.replace(y, shape=(2, 8, 0, 4))), "shape is (2, 8, 0, 4), must be 1..2147483647"),
    ((x, dataclasses.replace(y, stride=(0, 1))), "stride is (0, 1), must be 1..2147483647"),
    ((x, dataclasses.replace(y, padding=(0, 0, 0, 2**31))), "padding is (0, 0, 0, 2147483648), must be"),
    ((x, dataclasses.replace(y, padding=(-1, 0, 0, 0))), "padding is (-1, 0, 0, 0), must be >= 0; crop"),
    ((x, dataclasses.replace(y, shape=())), "shape is (), needs at least the batch"),
    ((dataclasses.replace(x, shape=(2**31 - 1,) * 2, channel_axis=0),), "layer 'x' (input): has more than 2**53"),
    ((x, dataclasses.replace(y, channel_axis=4)), "channel_axis is 4, must be 0..3"),
    ((x, dataclasses.replace(y, channel_axis=-1)), "channel_axis is -1, must be 0..3"),
    ((dataclasses.replace(x, n=1),), "layer 'x' (input): n x k x p x q is 1 x 4 x 8 x 6, must be 384, the elements of"),
    ((dataclasses.replace(x, k=8, p=4),), "layer 'x' (input): k is 8, must be 4, the channels of its shape"),
    # what is known of a layer
    ((x, dataclasses.replace(y, activation="swish")), "activation is 'swish', must be one of relu, "),
    ((x, dataclasses.replace(y, weight_bits=4)), "bits of weights and activations are (4, 32), must be"),
    ((x, dataclasses.replace(y, activation_bits=0)), "bits of weights and activations are (32, 0)"),
    ((x, dataclasses.replace(y, sparsity=WeightSparsity.from_density((8, 4, 3, 1), 0.5))),
     "shape of sparsity is (8, 4, 3, 1), must be (8, 4, 3, 3), the shape of its weight"),
    ((x, dataclasses.replace(y, activation_density=(0.5,))),
     "length of activation_density is 1, must be 8, the channels of its output"),
    ((x, dataclasses.replace(y, activation_density=(0.5,) * 7 + (1.5,))), "activation_density leaves 0..1"),
    ((x, dataclasses.replace(y, activation_density=(float("nan"),) * 8)), "activation_density leaves 0..1"),
    ((x, dataclasses.replace(y, weight="")), "names no weight, needs the key of its array"),
    (broken(Op.MEAN, weight="w"), "names array 'w', but this op has none"),
    ((x, conv(x, 8, name="a", weight="w"), conv(x, 6, name="b", weight="w")),
     "layer 'b' (conv): weight_shape is (6, 4, 3, 3), must be (8, 4, 3, 3), it shares 'w' with 'a'"),
    ((x, dataclasses.replace(y, attributes={"bias": True})), "attribute 'bias' is unknown; allowed: none"),
    (broken(Op.MEAN, attributes={"dim": 1}), "attribute 'dim' is unknown; allowed: axes, keepdim"),
    # layers that multiply
    (broken(Op.CONV, c=3), "c is 3, must be 4, the channels of 'x'"),
    (broken(Op.CONV, n=1), "n is 1, must be 2, the batch of its input"),
    (broken(Op.CONV, groups=3), "groups is 3, must be a divisor of c 4 and k 8"),
    (broken(Op.CONV, in_w=8), "in_h, in_w is (8, 8), must be (8, 6), the size of 'x'"),
    (broken(Op.CONV, channel_axis=3), "channel_axis is 3, must be 1"),
    (broken(Op.CONV, k=4), "shape is (2, 8, 3, 7), must be (2, 4, 3, 7), n, k, p, q"),
    (broken(Op.CONV, stride=(1, 1)), "p, q is (3, 7), must be (5, 7), from input 8x6, kernel 3x2"),
    (broken(Op.CONV, padding=(1, 1, 1, 1), r=1), "p, q is (3, 7), must be (5, 7), from input 8x6"),
    (broken(Op.CONV, shape=(2, 8, 21)), "shape is (2, 8, 21), must be 3 or 4 axes, as many as its input"),
    ((SIGNAL, dataclasses.replace(conv(SIGNAL, 6, (3, 1)), q=2)),
     "q is 2, must be 1, a sequence has no width"),
    (broken(Op.CONV_TRANSPOSE, attributes={"output_padding": (1,)}),
     "length of 'output_padding' is 1, must be 2"),
    (broken(Op.CONV_TRANSPOSE, attributes={"output_padding": (0, 0)}),
     "p, q is (16, 10), must be (15, 10), from input size, kernel, stride"),
    (broken(Op.INPUT, attributes={"dtype": "nn"}), "layer 'x' (input): attribute 'dtype' is 'nn', must be one of bool"),
    (broken(Op.LINEAR, c=5), "c is 5, must be 6, the last dim of 'x'"),
    (broken(Op.LINEAR, shape=(2, 4, 7)), "shape is (2, 4, 7), must be (2, 5, 7), its input's with k"),
    (broken(Op.LINEAR, groups=2), "r, s, groups is (1, 1, 2), must be (1, 1, 1)"),
    (broken(Op.LINEAR, channel_axis=1), "channel_axis is 1, must be 2, the last"),
    (broken(Op.MATMUL, inputs=("b", "a")), "shapes of its inputs is ((2, 3, 6, 7), (2, 3, 5, 6)), must"),
    (broken(Op.MATMUL, k=5), "k is 5, must be 7, the last dim of 'b'"),
    (broken(Op.MATMUL, c=5), "c is 5, must be 6, the last dim of 'a'"),
    (broken(Op.MATMUL, shape=(2, 3, 7, 5)), "shape is (2, 3, 7, 5), must be (2, 3, 5, 7)"),
    (broken(Op.MATMUL, n=5), "n x p is 25, must be 30, all dims but the last two, times M"),
    (broken(Op.MATMUL, bias="b"), "names array 'b', but this op has none"),
    (broken(Op.LSTM, k=3), "k is 3, must be 12, four gates of hidden size"),
    (broken(Op.LSTM, c=6), "c is 6, must be 9, input features + hidden"),
    (broken(Op.LSTM, attributes={"batch_first": False}), "n, p is (2, 5), must be (5, 2), batch and time"),
    (broken(Op.LSTM, attributes={"hidden": 4}), "shape is (2, 5, 3), must be (2, 5, 4), its input's with"),
    # pools
    (broken(Op.MAX_POOL, k=8, shape=(2, 8, 4, 3)), "k is 8, must be 4, its input channels"),
    (broken(Op.MAX_POOL, padding=(0, 1, 1, 1)),
     "padding is (0, 1, 1, 1), must be (0, 0, 1, 1), the same on both sides; else add a pad layer"),
    (broken(Op.MAX_POOL, padding=(2, 2, 1, 1)), "padding is (2, 2, 1, 1), must be at most half"),
    (broken(Op.MAX_POOL, attributes={"ceil": True}), "p, q is (4, 3), must be (5, 4), from input 8x6"),
    # elementwise
    (broken(Op.ADD, attributes={"kind": "mul"}), "attribute 'kind' is 'mul', must be one of add, sub"),
    (broken(Op.ADD, attributes={"scalar": 1.0}), "has two inputs and a scalar, needs one of them"),
    (broken(Op.ADD, inputs=("x",)), "has one input and no scalar, needs a second of either kind"),
    ((x, constant((3, 1, 1)), WHOLE[Op.ADD][-1]),
     "shapes of its inputs is ((2, 4, 8, 6), (3, 1, 1)), must be equal or 1 in every dim"),
    (broken(Op.MUL, shape=(2, 4, 6, 8)), "shape is (2, 4, 6, 8), must be (2, 4, 8, 6), what its inputs"),
    (broken(Op.ACTIVATION, weight=""), "prelu names no weight, needs the key of its slopes"),
    (broken(Op.ACTIVATION, attributes={"kind": "elu"}), "activation is 'elu', must be one of "),
    (broken(Op.ACTIVATION, shape=(2, 4, 6, 8)), "shape is (2, 4, 6, 8), must be (2, 4, 8, 6), the"),
    (broken(Op.SOFTMAX, attributes={"axis": 3}), "attribute 'axis' is 3, must be different axes in 0..2"),
    (broken(Op.SOFTMAX, attributes={"axis": -1}), "attribute 'axis' is -1, must be different axes in 0.."),
    (broken(Op.NORM, attributes={"kind": "batch"}), "attribute 'kind' is 'batch', must be one of affine"),
    (broken(Op.NORM, attributes={"kind": "affine"}), "affine norm needs the keys of its scale (weight)"),
    (broken(Op.NORM, attributes={"groups": 3}), "attribute 'groups' is 3, must be a divisor of 4 channels"),
    (broken(Op.NORM, channel_axis=2, k=8, p=4), "channel_axis is 2, must be 1"),
    (broken(Op.NORM, attributes={"kind": "layer"}), "attribute 'axes' is (), must be the last axes"),
    (broken(Op.NORM, attributes={"kind": "layer", "axes": (1,)}), "attribute 'axes' is (1,), must be the"),
    (lacking(Op.NORM, "eps"), "attribute 'eps' is missing; a group norm needs it"),
    # shape changers
    (broken(Op.MEAN, attributes={"axes": ()}), "attribute 'axes' is (), must be at least one axis"),
    (broken(Op.MEAN, attributes={"axes": (2, 2)}), "attribute 'axes' is (2, 2), must be different axes"),
    (broken(Op.MEAN, attributes={"keepdim": True}), "shape is (2, 4), must be (2, 4, 1, 1), its input's"),
    (broken(Op.CONCAT, shape=(2, 4, 8, 6)), "shape is (2, 4, 8, 6), must be (2, 8, 8, 6), its inputs'"),
    (broken(Op.CONCAT, attributes={"axis": 4}), "attribute 'axis' is 4, must be different axes in 0..3"),
    ((x, source((2, 4, 8, 5), "z"), plain(Op.CONCAT, (2, 8, 8, 6), x, source((2, 4, 8, 5), "z"), axis=1)),
     "shape of 'z' is (2, 4, 8, 5), must be (2, 4, 8, 6) but for axis 1"),
    (broken(Op.SLICE, attributes={"starts": (0, 2, 1, 0)}),
     "slice of axis 1 is 2 from 2 in steps of 2, must be inside 0..3, with start >= 0 and step >= 1"),
    (broken(Op.SLICE, attributes={"starts": (0, -1, 1, 0)}), "slice of axis 1 is 2 from -1 in steps of 2"),
    (broken(Op.SLICE, attributes={"steps": (1, 0, 2, 1)}), "slice of axis 1 is 2 from 1 in steps of 0"),
    (broken(Op.SLICE, attributes={"steps": (1, 2)}), "length of 'steps' is 2, must be 4, one for each axis"),
    (broken(Op.SLICE, shape=(2, 2, 4)), "axes of shape is 3, must be 4"),
    (broken(Op.PAD, shape=(2, 4, 8, 8)), "shape is (2, 4, 8, 8), must be (2, 6, 8, 8), its input's plus"),
    (broken(Op.PAD, attributes={"before": (0, -1, 0, 2)}), "attributes 'before', 'after' is ((0, -1, 0, 2)"),
    (broken(Op.PAD, attributes={"mode": "mirror"}), "attribute 'mode' is 'mirror', must be one of constant"),
    (broken(Op.PAD, attributes={"mode": "reflect", "before": (0, 4, 0, 2)}),
     "attributes 'before', 'after' is ((0, 4, 0, 2), (0, 1, 0, 0)), must be at most [1, 3, 7, 5]"),
    (broken(Op.EXPAND, shape=(3, 2, 5, 12)), "shape"),
    (broken(Op.EXPAND, shape=(5, 6)), "shape is (5, 6), must be one that (2, 5, 6) of 'x' broadcasts to"),
    ((source((2, 5, 6), axis=2), plain(Op.EXPAND, (2, 5, 1), SEQUENCE)), "shape is (2, 5, 1), must be one"),
    (broken(Op.TRANSPOSE, attributes={"permutation": (0, 2, 3)}), "length of 'permutation' is 3, must"),
    (broken(Op.TRANSPOSE, attributes={"permutation": (0, 2, 3, 3)}), "attribute 'permutation' is (0, 2"),
    (broken(Op.TRANSPOSE, shape=(2, 4, 8, 6)), "shape is (2, 4, 8, 6), must be (2, 8, 6, 4), its"),
    (broken(Op.PIXEL_SHUFFLE, attributes={"factor": 0}), "attribute 'factor' is 0, must be >= 1"),
    (broken(Op.PIXEL_SHUFFLE, attributes={"factor": 3}), "shape with the smaller image is (2, 4, 8"),
    (broken(Op.UPSAMPLE, attributes={"mode": "bicubic"}), "attribute 'mode' is 'bicubic', must be one"),
    (broken(Op.UPSAMPLE, shape=(2, 2, 16, 26), k=2, q=26), "batch and channels is (2, 2), must be (2, 4)"),
    ((SIGNAL, plain(Op.UPSAMPLE, (2, 4, 18), SIGNAL, mode="bilinear")),
     "shape is (2, 4, 18), must be 4 axes, as many as its input"),
    (broken(Op.RESHAPE, shape=(2, 190)), "number of elements is 380, must be 384, as many as 'x' has"),
]  # fmt: skip


@pytest.mark.parametrize(("layers", "message"), BROKEN, ids=[line[:50] for _, line in BROKEN])
def test_a_broken_graph_gets_one_line(layers: tuple[Layer, ...], message: str) -> None:
    with pytest.raises(ShapeError) as caught:
        graph(*layers)
    whole = message if message.startswith(("layer ", "graph ")) else f"layer 'y' ({layers[-1].op}): {message}"
    assert str(caught.value).startswith(whole)
    assert "\n" not in str(caught.value)


def test_outputs_must_exist() -> None:
    with pytest.raises(ShapeError, match="graph 'test': output 'z' is no layer"):
        graph(*residual().layers, outputs=("z",))
    with pytest.raises(ShapeError, match="graph 'test': names no output"):
        LayerGraph("test", residual().layers, ()).verify()


def test_ceil_pools_round_up_but_start_no_window_in_the_padding() -> None:
    def pool(size: int, out: int, kernel: int, stride: int, padding: int) -> Layer:
        dims = {"n": 1, "k": 1, "c": 1, "p": out, "q": out, "r": kernel, "s": kernel, "in_h": size, "in_w": size}
        shape, attributes = (1, 1, out, out), {"ceil": True}
        steps = {"stride": (stride, stride), "padding": (padding,) * 4}
        return Layer("y", Op.MAX_POOL, shape, ("x",), **dims, **steps, attributes=attributes)

    graph(source((1, 1, 7, 7)), pool(7, 4, 2, 2, 0))  # 3.5 windows
    graph(source((1, 1, 5, 5)), pool(5, 3, 2, 2, 1))  # a fourth would start at 6, beyond 5 + 1
    with pytest.raises(ShapeError, match=r"p, q is \(4, 4\), must be \(3, 3\)"):
        graph(source((1, 1, 5, 5)), pool(5, 4, 2, 2, 1))


# ---- random damage --------------------------------------------------------------------------------------------------


def test_no_changed_dim_of_a_weight_layer_goes_unnoticed() -> None:
    net = residual()
    for layer in (layer for layer in net if layer.kind is Kind.MAC):
        for name in ("n", "k", "c", "p", "q"):
            with pytest.raises(ShapeError):
                net.replace_layers({layer.name: {name: getattr(layer, name) + 1}}).verify()


@pytest.mark.parametrize("op", [op for op in Op if op not in (Op.INPUT, Op.CONSTANT, Op.VECTOR)])
def test_no_changed_shape_goes_unnoticed(op: Op) -> None:
    """One more in any dim of the output is an error, whatever the op; a pad or crop of it is not this layer's."""
    *_, last = WHOLE[op]
    for axis in range(len(last.shape)):
        shape = tuple(size + (i == axis) for i, size in enumerate(last.shape))
        if op is Op.EXPAND and axis == 0:
            continue  # a new leading dim may have any size
        with pytest.raises(ShapeError):
            graph(*broken(op, shape=shape))


JUNK = [
    None,
    True,
    0,
    1,
    -1,
    3,
    10**12,
    10**30,
    1.5,
    float("nan"),
    "",
    "x",
    "relu",
    [],
    [1],
    [0, 1],
    [[1]],
    {},
    {"a": 1},
]


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Paths to everything inside a JSON value."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from places(child, (*path, key))


def test_damaged_json_is_whole_or_refused_in_one_line() -> None:
    rng = random.Random(0)
    nets = [graph(*layers) for layers in WHOLE.values()]
    nets.append(graph(IMAGE, dataclasses.replace(y, sparsity=WeightSparsity.from_density((8, 4, 3, 3), 0.5))))
    nets.append(graph(IMAGE, dataclasses.replace(y, sparsity=WeightSparsity.from_mask(np.ones((8, 4, 3, 3), bool)))))
    messages = []
    for _ in range(3000):
        data = rng.choice(nets).to_dict()
        *path, last = rng.choice(list(places(data)))
        functools.reduce(operator.getitem, path, data)[last] = copy.deepcopy(rng.choice(JUNK))
        try:
            net = LayerGraph.from_dict(data)
        except CodesignError as error:
            messages.append(str(error))
        else:  # whatever is let in can be priced and written
            assert len(net.columns) == len(net.liveness) == len(net.topology.first)
            assert LayerGraph.from_dict(net.to_dict()) == net
    assert 2000 < len(messages) < 3000
    assert "\n" not in "".join(messages)


# ---- activations ----------------------------------------------------------------------------------------------------


def test_activation_texts() -> None:
    assert parse_activation("relu") == ("relu", ())
    assert parse_activation("hardtanh(-inf, 6)") == ("hardtanh", (-float("inf"), 6.0))
    assert parse_activation("gelu(none)") == ("gelu", ("none",))
    bad = [
        "",
        "Relu",
        "relu()",
        "relu(1)",
        "gelu",
        "gelu(erf)",
        "elu(x)",
        "elu(nan)",
        "hardtanh(1)",
        "hardtanh(0,6",
        "a(b(c))",
    ]
    for text in bad:
        with pytest.raises(ConfigError, match="activation is "):
            parse_activation(text)


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_every_activation_parses(name: str) -> None:
    words = {"number": "0.5", "none|tanh": "tanh"}
    arguments = ",".join(words[form] for form in ACTIVATIONS[name])
    assert parse_activation(f"{name}({arguments})" if arguments else name)[0] == name


# ---- arrays ---------------------------------------------------------------------------------------------------------

ARRAYS: list[tuple[Callable[[], Layer], dict[str, tuple[int, ...]]]] = [
    (lambda: conv(IMAGE, 8, (3, 2), groups=2, bias="b"), {"y.weight": (8, 2, 3, 2), "b": (8,)}),
    (lambda: conv(SIGNAL, 6, (3, 1)), {"y.weight": (6, 4, 3)}),
    (lambda: conv_transpose(IMAGE, 6, (3, 2), groups=2), {"y.weight": (4, 3, 3, 2)}),
    (lambda: linear(SEQUENCE, 7, bias="b"), {"y.weight": (7, 6), "b": (7,)}),
    (lambda: lstm(SEQUENCE, 3, bias="b"), {"y.weight": (12, 9), "b": (12,)}),
    (lambda: constant((3, 4)), {"constant.weight": (3, 4)}),
    (lambda: plain(Op.NORM, IMAGE.shape, IMAGE, kind="affine", weight="w", bias="b"), {"w": (4,), "b": (4,)}),
    (lambda: plain(Op.NORM, SEQUENCE.shape, SEQUENCE, channel_axis=2, kind="layer", axes=(1, 2), eps=0.1, weight="w"),
     {"w": (5, 6)}),
    (lambda: plain(Op.ACTIVATION, IMAGE.shape, IMAGE, kind="relu"), {}),
]  # fmt: skip


@pytest.mark.parametrize(("make", "expected"), ARRAYS)
def test_array_shapes(make: Callable[[], Layer], expected: dict[str, tuple[int, ...]]) -> None:
    assert array_shapes(make()) == {key: (shape,) for key, shape in expected.items()}


def test_slopes_may_be_one_or_one_a_channel() -> None:
    assert array_shapes(WHOLE[Op.ACTIVATION][-1]) == {"slopes": ((4,), (1,))}


def test_arrays_are_checked() -> None:
    net = residual()
    weights = {key: np.zeros(shapes[0]) for layer in net for key, shapes in array_shapes(layer).items()}
    verify_weights(net, weights)
    with pytest.raises(DataError, match=r"layer 'fc' \(linear\): array 'fc.bias' is missing"):
        verify_weights(net, {key: array for key, array in weights.items() if key != "fc.bias"})
    with pytest.raises(
        ShapeError, match=r"layer 'a' \(conv\): array 'a.weight' has shape \(3, 4, 3, 3\), must be \(4, 3,"
    ):
        verify_weights(net, weights | {"a.weight": np.zeros((3, 4, 3, 3))})


# ---- speed ----------------------------------------------------------------------------------------------------------


def test_a_hundred_layers_take_milliseconds() -> None:
    layers = [source((1, 64, 28, 28))]
    for i in range(100):
        layers.append(conv(layers[-1], 64, padding=(1, 1, 1, 1), name=f"conv{i}"))
    net = graph(*layers)
    best = min(_seconds(net) for _ in range(5))
    assert best < 0.02  # about 2 ms on an idle machine; the margin is for a busy one


def _seconds(net: LayerGraph) -> float:
    start = time.perf_counter()
    net.verify()
    return time.perf_counter() - start


def test_kinds_and_rules_cover_the_same_ops() -> None:
    assert set(KIND) == set(RULES) == set(WHOLE) == set(Op)
