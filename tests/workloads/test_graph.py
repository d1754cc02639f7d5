"""Layers, graphs and their views: counts by hand, exact JSON, changed copies."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from tests.workloads.builders import (
    conv,
    conv_transpose,
    graph,
    linear,
    lstm,
    matmul,
    nest,
    plain,
    residual,
    source,
    window,
)
from workloads.columns import ARRAY_FIELDS, Columns
from workloads.errors import CodesignError, ConfigError, DataError, ShapeError
from workloads.graph import KIND, OP_CODES, Kind, Layer, LayerGraph, Op
from workloads.sparsity import WeightSparsity

# ---- counts ---------------------------------------------------------------------------------------------------------

MACS = {
    # 2 images, 8 filters, 3 channels, 5x5 output, 3x3 kernel
    Op.CONV: (conv(source((2, 3, 7, 7)), 8), 2 * 8 * 3 * 25 * 9),
    # each of 4x4 input pixels is multiplied with 3x8 kernels of 2x2
    Op.CONV_TRANSPOSE: (conv_transpose(source((1, 3, 4, 4)), 8, (2, 2), (2, 2)), 16 * 3 * 8 * 4),
    # 2 x 5 rows of 6 numbers, 7 outputs
    Op.LINEAR: (linear(source((2, 5, 6), axis=2), 7), 2 * 5 * 6 * 7),
    # 2 heads of (5 x 6) x (6 x 7)
    Op.MATMUL: (matmul(source((1, 2, 5, 6), "a"), source((1, 2, 6, 7), "b")), 2 * 5 * 6 * 7),
    # 9 steps of 2 sequences, 4 gates of 3 numbers, from 5 inputs and 3 hidden
    Op.LSTM: (lstm(source((2, 9, 5), axis=2), 3), 9 * 2 * 4 * 3 * (5 + 3)),
}


@pytest.mark.parametrize("op", [op for op in Op if KIND[op] is Kind.MAC])
def test_macs_by_hand(op: Op) -> None:
    layer, expected = MACS[op]
    assert layer.macs == expected


def test_layers_that_do_not_multiply_have_no_macs() -> None:
    layers = [Layer("y", op, (2, 3, 4, 4), **nest((2, 3, 4, 4)), r=3, s=3) for op in Op if KIND[op] is not Kind.MAC]
    assert [layer.macs for layer in layers] == [0] * len(layers)


def test_groups_divide_the_macs_and_the_weights() -> None:
    x = source((1, 8, 4, 4))
    whole, grouped, depthwise = (conv(x, 8, (1, 1), groups=groups) for groups in (1, 4, 8))
    assert (whole.macs, grouped.macs, depthwise.macs) == (1024, 256, 128)
    assert grouped.weight_shape == (8, 2, 1, 1)
    assert [layer.is_depthwise for layer in (whole, grouped, depthwise)] == [False, False, True]


def test_parameters_before_and_after_folding() -> None:
    net = residual()
    assert net["a"].parameters == 4 * 3 * 9 + 4  # folding a batch norm makes a bias
    assert net["a"].source_parameters == 4 * 3 * 9 + 2 * 4  # it was a scale and a shift
    assert net.parameters == 112 + 4 * 4 * 9 + 40 + 10
    assert net.source_parameters == 116 + 144 + 50
    recurrent = lstm(source((1, 2, 5), axis=2), 3, bias="y.bias", source_bias=True)
    assert recurrent.parameters == 12 * 8 + 12
    assert recurrent.source_parameters == 12 * 8 + 24  # torch keeps two biases


def test_a_weight_that_two_layers_share_counts_once() -> None:
    x = source((1, 4, 4, 4))
    a = conv(x, 4, (1, 1), name="a", weight="shared")
    b = conv(a, 4, (1, 1), name="b", weight="shared")
    assert graph(x, a, b).parameters == 16
    assert graph(x, a, b).macs == 2 * 256
    own = [conv(x, 4, (1, 1), name=n, weight="shared", bias=f"{n}.bias", source_bias=True) for n in ("c", "d")]
    assert graph(x, *own).parameters == graph(x, *own).source_parameters == 16 + 2 * 4  # each has its own bias
    bare = conv(x, 4, (1, 1), name="e", weight="shared")
    assert graph(x, bare, own[0]).parameters == graph(x, bare, own[0]).source_parameters == 16 + 4


def test_parameters_of_norms() -> None:
    x = source((2, 5, 6), axis=2)
    both = plain(Op.NORM, x.shape, x, channel_axis=2, kind="layer", axes=(1, 2), eps=1e-5, weight="w", bias="b")
    assert both.parameters == 60
    assert dataclasses.replace(both, bias="").parameters == 30
    assert dataclasses.replace(both, bias="", weight="").parameters == 0


def test_activation_bytes_leave_views_out() -> None:
    net = residual()
    elements = 3 * 64 + 3 * 4 * 64 + 4 + 10
    assert net.activation_bytes == 4 * elements
    assert net.with_precision("int8").activation_bytes == elements


def test_every_op_has_a_kind_and_a_code_of_its_own() -> None:
    assert set(KIND) == set(Op)
    assert sorted(OP_CODES.values()) == list(range(len(Op)))


# ---- access ---------------------------------------------------------------------------------------------------------


def test_a_graph_is_a_sequence_of_named_layers() -> None:
    net = residual()
    assert [layer.name for layer in net] == ["x", "a", "b", "add", "pool", "flat", "fc"]
    assert len(net) == 7
    assert net["add"].inputs == ("a", "b")
    assert net.consumers["a"] == ("b", "add")
    assert net.consumers["fc"] == ()
    assert [layer.name for layer in net.inputs] == ["x"]
    assert str(net) == "LayerGraph 'test': 7 layers, 0.02 M MACs, 306 parameters, 4 KiB of activations"


def test_networkx_view() -> None:
    view = residual().to_networkx()
    assert set(view.edges) == {
        ("x", "a"), ("a", "b"), ("a", "add"), ("b", "add"), ("add", "pool"), ("pool", "flat"), ("flat", "fc"),
    }  # fmt: skip
    assert view.edges["a", "b"]["shape"] == (1, 4, 8, 8)
    assert view.nodes["fc"]["layer"].k == 10
    assert view.name == "test"


def test_liveness_by_hand() -> None:
    net = residual()
    rows = {
        #       x  a  b add pool flat fc
        "x": "1  1  0  0   0    0   0",
        "a": "0  1  1  1   0    0   0",
        "b": "0  0  1  1   0    0   0",
        "add": "0  0  0  1   1    0   0",
        "pool": "0  0  0  0   1    1   1",  # the view of it is read by fc
        "flat": "0  0  0  0   0    0   0",  # a view holds nothing
        "fc": "0  0  0  0   0    0   1",
    }
    expected = np.array([[int(bit) for bit in row.split()] for row in rows.values()], bool)
    assert np.array_equal(net.liveness, expected)


def test_outputs_live_to_the_end() -> None:
    net = dataclasses.replace(residual(), outputs=("fc", "a"))
    assert net.liveness[net.index["a"]].tolist() == [False] + [True] * 6


def test_topology_looks_through_views() -> None:
    topology = residual().topology
    assert topology.first.tolist() == [-1, 0, 1, 1, 3, 4, 4]  # fc reads pool through flat
    assert topology.other.tolist() == [-1, -1, -1, 2, -1, -1, -1]


# ---- columns --------------------------------------------------------------------------------------------------------


def test_columns_by_hand() -> None:
    net = residual().with_precision("int8", "fp16").with_activation_density({"a": (0.25, 0.5, 0.75, 1.0)})
    net = net.with_sparsity({"b": WeightSparsity.from_density((4, 4, 3, 3), 0.5)})
    columns = net.columns
    assert len(columns) == 7
    assert columns.k.tolist() == [3, 4, 4, 4, 4, 4, 10]
    assert columns.c.tolist() == [3, 3, 4, 4, 4, 4, 4]
    assert columns.input_elements.tolist() == [0, 192, 256, 256, 256, 4, 4]
    assert columns.other_elements.tolist() == [0, 0, 0, 256, 0, 0, 0]
    assert columns.output_elements.tolist() == [192, 256, 256, 256, 4, 4, 10]
    assert columns.weight_elements.tolist() == [0, 108, 144, 0, 0, 0, 40]
    assert columns.bias.tolist() == [0, 1, 0, 0, 0, 0, 1]
    assert columns.activation.tolist() == [0, 1, 0, 1, 0, 0, 0]
    assert columns.fused.tolist() == [0, 0, 0, 1, 0, 0, 0]
    assert columns.weight_density.tolist() == [1, 1, 0.5, 1, 1, 1, 1]
    assert columns.input_density.tolist() == [1, 1, 0.625, 0.625, 1, 1, 1]
    assert set(columns.weight_bits.tolist()) == {8}
    assert set(columns.input_bits.tolist()) | set(columns.output_bits.tolist()) == {16}
    assert columns.is_mac.tolist() == [False, True, True, False, False, False, True]
    assert columns.is_vector.tolist() == [False, False, False, True, True, False, False]
    assert columns.sparsity[2] == net["b"].sparsity
    assert columns.channel_density[2].tolist() == [0.25, 0.5, 0.75, 1.0]
    assert columns.channel_density[4] is None


@pytest.mark.parametrize("op", list(MACS))
def test_columns_count_macs_as_layers_do(op: Op) -> None:
    layer = MACS[op][0]
    inputs = [source((1, 2, 5, 6), "a"), source((1, 2, 6, 7), "b")] if op is Op.MATMUL else [_input_of(layer)]
    columns = graph(*inputs, layer).columns
    assert columns.macs[-1] == layer.macs
    assert columns.weight_elements[-1] == layer.weight_elements


def _input_of(layer: Layer) -> Layer:
    shapes = {
        Op.CONV: (2, 3, 7, 7),
        Op.CONV_TRANSPOSE: (1, 3, 4, 4),
        Op.LINEAR: (2, 5, 6),
        Op.LSTM: (2, 9, 5),
    }
    shape = shapes[layer.op]
    return source(shape, axis=2 if len(shape) == 3 else 1)


def test_columns_keep_their_type_without_sparsity() -> None:
    columns = residual().columns
    assert columns.sparsity == columns.channel_density == ()
    integers = {name for name in ARRAY_FIELDS if getattr(columns, name).dtype == np.int64}
    assert set(ARRAY_FIELDS) - integers == {"weight_density", "input_density", "input_density_variance"}


def test_distinct_rows_are_found_and_restored() -> None:
    x = source((1, 4, 8, 8))
    same = {"kernel": (3, 3), "padding": (1, 1, 1, 1)}
    a = conv(x, 4, name="a", **same)
    b = conv(a, 4, name="b", **same)
    c = conv(b, 4, name="c", **same)
    d = conv(c, 5, name="d", **same)
    columns = graph(x, a, b, c, d).columns
    first, inverse = columns.distinct()
    assert len(first) == 4  # a reads the network's input: another row than b and c, which are equal
    assert inverse[2] == inverse[3]
    for name in ARRAY_FIELDS:
        assert np.array_equal(getattr(columns, name)[first][inverse], getattr(columns, name)), name


def test_distinct_rows_tell_masks_and_densities_apart() -> None:
    x = source((1, 2, 8, 8))
    a, b, c = (conv(x, 2, (1, 1), name=name) for name in "abc")
    masks = np.array([[[1, 0], [1, 1]], [[1, 1], [1, 0]]], bool)  # of one density, with other zeros
    one, other = (WeightSparsity.from_mask(mask[:, :, None, None]) for mask in masks)
    net = graph(x, a, b, c, outputs=("a", "b", "c"))
    _, inverse = net.with_sparsity({"a": one, "b": other, "c": one}).columns.distinct()
    assert inverse[1] == inverse[3] != inverse[2]

    y = plain(Op.ACTIVATION, x.shape, x, name="y", kind="relu")
    z = plain(Op.ACTIVATION, x.shape, x, name="z", kind="relu")
    d, e = conv(y, 2, (1, 1), name="d"), conv(z, 2, (1, 1), name="e")
    net = graph(x, y, z, d, e, outputs=("d", "e"))
    same_mean = net.with_activation_density({"y": (0.25, 0.75), "z": (0.75, 0.25)})
    assert len(net.columns.distinct()[0]) == 3
    assert len(same_mean.columns.distinct()[0]) == 4


def test_take_and_concatenate_are_inverse() -> None:
    columns = residual().with_sparsity({"b": WeightSparsity.from_density((4, 4, 3, 3), 0.5)}).columns
    parts = [columns.take(slice(0, 3)), columns.take(np.array([3, 4])), columns.take(np.arange(7) > 4)]
    assert [len(part) for part in parts] == [3, 2, 2]
    whole = Columns.concatenate(parts)
    for name in ARRAY_FIELDS:
        assert np.array_equal(getattr(whole, name), getattr(columns, name)), name
    assert whole.sparsity == columns.sparsity
    mixed = Columns.concatenate([residual().columns, columns])
    assert mixed.sparsity == (None,) * 7 + columns.sparsity


def test_taking_no_rows_gives_an_empty_view() -> None:
    empty = residual().columns.take(slice(0, 0))
    assert len(empty) == 0
    assert empty.macs.shape == (0,)


def test_replaced_columns_leave_the_old_ones() -> None:
    columns = residual().columns
    wider = columns.replace(k=columns.k * 2)
    assert wider.macs.sum() == 2 * columns.macs.sum()
    assert columns.k[1] == 4


# ---- changed copies -------------------------------------------------------------------------------------------------


def test_with_batch() -> None:
    net = residual()
    eight = net.with_batch(8)
    assert eight.macs == 8 * net.macs
    assert eight["fc"].shape == (8, 10)
    assert eight["flat"].shape == (8, 4)
    assert eight.with_batch(1) == net
    assert net["fc"].shape == (1, 10)


def test_with_batch_leaves_constants_alone() -> None:
    x = source((2, 4, 3, 3))
    shift = Layer("shift", Op.CONSTANT, (1, 4, 1, 1), weight="shift")
    net = graph(x, shift, plain(Op.ADD, x.shape, x, shift, kind="add"))
    assert net.with_batch(6)["shift"].shape == (1, 4, 1, 1)
    assert net.with_batch(6)["y"].shape == (6, 4, 3, 3)


def test_with_batch_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ConfigError, match="batch 0: must be >= 1"):
        residual().with_batch(0)
    for steps in (1, 5):  # time first: the leading dim is not the batch
        x = source((steps, 2, 3), axis=2)
        with pytest.raises(ShapeError, match=r"layer 'y' \(lstm\): .* must be"):
            graph(x, lstm(x, 4, batch_first=False)).with_batch(10)


def test_with_precision() -> None:
    net = residual().with_precision("int8", "fp16")
    assert {(layer.weight_bits, layer.activation_bits) for layer in net} == {(8, 16)}
    assert {layer.activation_bits for layer in net.with_precision("int8")} == {8}
    with pytest.raises(ConfigError, match="unknown precision 'int4'; allowed: fp32, fp16, int8"):
        net.with_precision("int4")


def test_replacing_an_unknown_layer_is_an_error() -> None:
    with pytest.raises(ShapeError, match="graph 'test' has no layer 'nope'"):
        residual().replace_layers({"nope": {"k": 3}})


# ---- JSON -----------------------------------------------------------------------------------------------------------


def everything() -> LayerGraph:
    """Every field away from its default somewhere."""
    net = residual().with_batch(2).with_precision("int8", "fp16").with_activation_density({"a": (1 / 3, 0.1, 0.0, 1.0)})
    mask = np.random.default_rng(0).random((4, 3, 3, 3)) < 0.3
    exact, expected = WeightSparsity.from_mask(mask), WeightSparsity.from_density((4, 4, 3, 3), 1 / 7)
    net = net.with_sparsity({"a": exact, "b": expected})
    x = net["x"]
    pool = window(Op.MAX_POOL, x, 3, (3, 3), (2, 2), (1, 1, 1, 1), attributes={"ceil": False})
    pool = dataclasses.replace(pool, name="max")
    grouped = conv(x, 6, groups=3, dilation=(2, 1), name="grouped", activation="hardtanh(-inf,6)")
    crop = plain(Op.SLICE, (2, 3, 4, 8), x, name="crop", starts=(0, 0, 1, 0), steps=(1, 1, 2, 1))
    wide = linear(x, 5, name="wide")
    return graph(*net.layers, pool, grouped, crop, wide, outputs=("fc", "max", "grouped", "crop", "wide"))


def test_json_round_trip_is_exact() -> None:
    net = everything()
    again = LayerGraph.from_dict(json.loads(json.dumps(net.to_dict())))
    assert again == net
    assert again["a"].sparsity is not None
    assert again["a"].sparsity.mask().tobytes() == net["a"].sparsity.mask().tobytes()
    assert again.to_dict() == net.to_dict()
    changed = {f.name for f in dataclasses.fields(Layer) for layer in net if getattr(layer, f.name) != _default(f)}
    assert changed == {f.name for f in dataclasses.fields(Layer)}


def _default(field: dataclasses.Field) -> object:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "new" / "net.json"
    everything().save(path)
    assert LayerGraph.load(path) == everything()
    assert [entry.name for entry in path.parent.iterdir()] == ["net.json"]
    first = path.read_bytes()
    everything().save(path)
    assert path.read_bytes() == first


def test_saving_to_an_impossible_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"net\.json: cannot be written") as caught:
        residual().save(tmp_path / "file" / "net.json")
    assert "\n" not in str(caught.value)


def changed(**fields: object) -> dict:
    """The JSON of a graph with some fields of its layer 'a' changed."""
    data = residual().to_dict()
    data["layers"][1] |= fields
    return data


def without(key: str) -> dict:
    data = residual().to_dict()
    del data["layers"][1][key]
    return data


def top(**fields: object) -> dict:
    return residual().to_dict() | fields


BAD = [
    ([], "not a layer graph: field 'format' must be 'codesign.layer_graph'"),
    (top(format="onnx"), "not a layer graph: field 'format' must be 'codesign.layer_graph'"),
    (top(version=2), "layer graph version 2; this release reads 1"),
    (top(layers={}), "layer graph: field 'layers' must be a list of objects"),
    (top(layers=[1]), "layer graph: field 'layers' must be a list of objects"),
    (top(outputs="fc"), "layer graph: field 'outputs' must be a list of layer names"),
    (top(outputs=["nope"]), "graph 'test': output 'nope' is no layer; name one of its layers"),
    (top(outputs=[]), "graph 'test': names no output, needs at least one"),
    (top(layers=[]), "graph 'test': has no input layer, needs at least one"),
    (without("op"), "layer 'a': field 'op' is missing"),
    (without("shape"), "layer 'a': field 'shape' is missing"),
    (changed(kernel=3), "layer 'a': unknown field 'kernel'; allowed: activation, "),
    (changed(op="conv9"), "layer 'a': op 'conv9' is unknown; allowed: input, constant, conv, "),
    (changed(op=["conv"]), "layer 'a': field 'op' is ('conv',), must be text"),
    (changed(k="4"), "layer 'a': field 'k' is '4', must be an integer"),
    (changed(k=True), "layer 'a': field 'k' is True, must be an integer"),
    (changed(k=4.0), "layer 'a': field 'k' is 4.0, must be an integer"),
    (changed(shape=[1, 4, 8, "8"]), "layer 'a': field 'shape' is (1, 4, 8, '8'), must be a list of integers"),
    (changed(shape=4), "layer 'a': field 'shape' is 4, must be a list of integers"),
    (changed(inputs=[1]), "layer 'a': field 'inputs' is (1,), must be a list of text"),
    (changed(stride=[1]), "layer 'a' (conv): length of stride, dilation, padding is (1, 2, 4), must be (2, 2, 4)"),
    (changed(attributes=[]), "layer 'a': field 'attributes' is (), must be an object"),
    (changed(source_bias=1), "layer 'a': field 'source_bias' is 1, must be true or false"),
    (changed(activation_density=["a"]), "layer 'a': field 'activation_density' is ('a',), must be a list of numbers"),
    (changed(sparsity=0.5), "layer 'a': field 'sparsity' is 0.5, must be an object"),
    (changed(sparsity={"form": "guess"}), "layer 'a': sparsity.form: 'guess', must be 'exact' or 'expected'"),
    (changed(k=10**30), f"layer 'a' (conv): k is {10**30}, must be 1..2147483647"),
    (changed(n=-1), "layer 'a' (conv): n is -1, must be 1..2147483647"),
]


@pytest.mark.parametrize(("data", "message"), BAD, ids=[message[:60] for _, message in BAD])
def test_bad_json_is_refused_in_one_line(data: object, message: str) -> None:
    with pytest.raises(CodesignError) as caught:
        LayerGraph.from_dict(json.loads(json.dumps(data)))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


FILES = [
    (None, "cannot be read (No such file or directory)"),
    (b"\xff\xfe", "not JSON ('utf-8'"),
    (b'{"format":', "not JSON (Expecting value"),
    (b"[" * 100_000, "not JSON (maximum recursion depth"),
    (b'{"k": ' + b"9" * 10_000 + b"}", "not JSON (Exceeds the limit"),
    (b"[]", "not a layer graph: field 'format' must be"),
    (json.dumps(changed(k=5)).encode(), "layer 'a' (conv): "),
]


@pytest.mark.parametrize(("content", "message"), FILES, ids=[message[:45] for _, message in FILES])
def test_a_bad_file_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "net.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CodesignError) as caught:
        LayerGraph.load(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_densities_round_trip_to_the_last_bit() -> None:
    density = tuple(np.random.default_rng(1).random(4).tolist())
    net = residual().with_activation_density({"a": density})
    again = LayerGraph.from_dict(json.loads(json.dumps(net.to_dict())))
    assert again["a"].activation_density == density
    assert math.isclose(again.columns.input_density[2], sum(density) / 4)
