"""The layer graph: nodes are layers, edges are activations.

Every layer that multiplies is a loop nest over seven dims, batch N, output channels K, input channels C, output height
and width P and Q, kernel height and width R and S (linear, matmul, depthwise and LSTM included), with groups, stride
and dilation beside it:

    MACs = N * K * (C / groups) * P * Q * R * S

A linear layer on (batch, positions, features) has N = batch, P = positions, Q = R = S = 1. A matmul
(batch, M, C) x (batch, C, K) has N = batch, P = M. An LSTM has K = 4 * hidden, C = inputs + hidden, P = time steps.
A transposed convolution multiplies once per *input* pixel, so its MACs use the input's height and width.
Layers that do not multiply keep K = C = channels and P, Q = output height and width.

A graph is immutable; every change makes a new one. Weights are never in it: a layer names its tensors, and the arrays
live in a mapping beside the graph (`workloads.store` keeps them on disk by content hash).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from workloads.columns import Columns
from workloads.errors import ConfigError, ShapeError
from workloads.sparsity import WeightSparsity

if TYPE_CHECKING:
    import networkx

FORMAT_VERSION = 1


class Op(StrEnum):
    """What a layer computes. `KIND` says how it is costed."""

    INPUT = "input"
    CONSTANT = "constant"
    CONV = "conv"
    CONV_TRANSPOSE = "conv_transpose"
    LINEAR = "linear"
    MATMUL = "matmul"
    LSTM = "lstm"
    MAX_POOL = "max_pool"
    AVG_POOL = "avg_pool"
    MEAN = "mean"
    ADD = "add"
    MUL = "mul"
    ACTIVATION = "activation"
    SOFTMAX = "softmax"
    NORM = "norm"
    CONCAT = "concat"
    SLICE = "slice"
    PAD = "pad"
    EXPAND = "expand"
    TRANSPOSE = "transpose"
    PIXEL_SHUFFLE = "pixel_shuffle"
    UPSAMPLE = "upsample"
    RESHAPE = "reshape"
    VECTOR = "vector"


class Kind(StrEnum):
    """How an op is costed: multiplications, elementwise work, data movement, or nothing at run time."""

    MAC = "mac"
    VECTOR = "vector"
    MOVE = "move"
    NONE = "none"


KIND: Mapping[Op, Kind] = {
    Op.INPUT: Kind.NONE,
    Op.CONSTANT: Kind.NONE,
    Op.CONV: Kind.MAC,
    Op.CONV_TRANSPOSE: Kind.MAC,
    Op.LINEAR: Kind.MAC,
    Op.MATMUL: Kind.MAC,
    Op.LSTM: Kind.MAC,
    Op.MAX_POOL: Kind.VECTOR,
    Op.AVG_POOL: Kind.VECTOR,
    Op.MEAN: Kind.VECTOR,
    Op.ADD: Kind.VECTOR,
    Op.MUL: Kind.VECTOR,
    Op.ACTIVATION: Kind.VECTOR,
    Op.SOFTMAX: Kind.VECTOR,
    Op.NORM: Kind.VECTOR,
    Op.CONCAT: Kind.MOVE,
    Op.SLICE: Kind.MOVE,
    Op.PAD: Kind.MOVE,
    Op.EXPAND: Kind.MOVE,
    Op.TRANSPOSE: Kind.MOVE,
    Op.PIXEL_SHUFFLE: Kind.MOVE,
    Op.UPSAMPLE: Kind.MOVE,
    Op.RESHAPE: Kind.NONE,
    Op.VECTOR: Kind.VECTOR,
}
OP_CODES: Mapping[Op, int] = {op: code for code, op in enumerate(Op)}
PRECISIONS: Mapping[str, int] = {"fp32": 32, "fp16": 16, "int8": 8}


@dataclass(frozen=True)
class Layer:
    """One node of the graph, with one output tensor.

    Attributes:
        name: unique in its graph; the module path where there is one.
        op: what it computes.
        shape: of the output tensor, batch first.
        inputs: names of the layers that feed it, in argument order.
        n, k, c, p, q, r, s, groups: the loop nest (module docstring). `c` counts all input channels.
        in_h, in_w: height and width of the first input (1 where it has none).
        stride, dilation: (height, width).
        padding: (top, bottom, left, right).
        channel_axis: which axis of `shape` holds the channels (1 for images, last for sequences).
        attributes: the rest of what the op needs to run, JSON values, documented with `reference.run`.
        activation: the activation applied to the output ("" for none), e.g. "relu", "hardtanh(0,6)".
        fused_into: for an elementwise add that its producer can absorb: the producer's name, else "".
        weight, bias: keys of its arrays in the weights beside the graph, "" for none.
        source_bias, folded_norms: whether the module had a bias, and how many batch norms were folded into it;
            `source_parameters` counts from them.
        weight_bits, activation_bits: of the weights and of the output tensor.
        sparsity: what is known of the weight's zeros; None means dense.
        activation_density: fraction of non-zeros of each output channel, measured on data; () means unknown.
    """

    name: str
    op: Op
    shape: tuple[int, ...]
    inputs: tuple[str, ...] = ()
    n: int = 1
    k: int = 1
    c: int = 1
    p: int = 1
    q: int = 1
    r: int = 1
    s: int = 1
    groups: int = 1
    in_h: int = 1
    in_w: int = 1
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    channel_axis: int = 1
    attributes: Mapping[str, Any] = field(default_factory=dict)
    activation: str = ""
    fused_into: str = ""
    weight: str = ""
    bias: str = ""
    source_bias: bool = False
    folded_norms: int = 0
    weight_bits: int = 32
    activation_bits: int = 32
    sparsity: WeightSparsity | None = None
    activation_density: tuple[float, ...] = ()

    @property
    def kind(self) -> Kind:
        return KIND[self.op]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one pass over the batch; 0 for layers that do not multiply."""
        if self.kind is not Kind.MAC:
            return 0
        pixels = self.in_h * self.in_w if self.op is Op.CONV_TRANSPOSE else self.p * self.q
        return self.n * self.k * (self.c // self.groups) * pixels * self.r * self.s

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """(K, C / groups, R, S) of a layer with weights; zeros for one without."""
        if self.kind is not Kind.MAC or self.op is Op.MATMUL:
            return (0, 0, 0, 0)
        return (self.k, self.c // self.groups, self.r, self.s)

    @property
    def weight_elements(self) -> int:
        """Elements of the weight tensor (of scale and shift for a norm that was not folded, of a constant)."""
        if self.op is Op.NORM:
            axes = self.attributes.get("axes", (self.channel_axis,))
            return math.prod(self.shape[axis] for axis in axes) * (bool(self.weight) + bool(self.bias))
        return math.prod(self.shape) if self.op is Op.CONSTANT else math.prod(self.weight_shape)

    @property
    def parameters(self) -> int:
        """Numbers stored for this layer after folding."""
        return self.weight_elements + self.bias_elements

    @property
    def bias_elements(self) -> int:
        """Of a layer that multiplies: one number an output channel, if it has a bias."""
        return self.k if self.bias and self.kind is Kind.MAC else 0

    @property
    def source_parameters(self) -> int:
        """Parameters of the module before batch norms were folded into it (an LSTM has two bias vectors)."""
        return self.weight_elements + self.source_bias_elements + self.norm_elements

    @property
    def source_bias_elements(self) -> int:
        """Bias numbers of the module (an LSTM has two vectors); 0 where the bias came of a folded norm."""
        return (2 if self.op is Op.LSTM else 1) * self.bias_elements if self.source_bias else 0

    @property
    def norm_elements(self) -> int:
        """Scales and shifts of the batch norms that were folded into it."""
        return 2 * self.k * self.folded_norms if self.kind is Kind.MAC else 0

    @property
    def output_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def is_depthwise(self) -> bool:
        return self.op is Op.CONV and self.groups > 1 and self.groups == self.c

    def to_dict(self) -> dict[str, Any]:
        """A JSON value: fields that differ from their default."""
        found: dict[str, Any] = {}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            default = f.default_factory() if callable(f.default_factory) else f.default
            if value != default:
                found[f.name] = value.to_dict() if isinstance(value, WeightSparsity) else _jsonable(value)
        return found

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Layer:
        """The inverse of `to_dict`.

        Raises:
            ConfigError: a field is unknown, missing or has a wrong type.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        where = f"layer {data.get('name', '?')!r}"
        if unknown := sorted(set(data) - known):
            raise ConfigError(f"{where}: unknown field {unknown[0]!r}; allowed: {', '.join(sorted(known))}")
        if missing := sorted({"name", "op", "shape"} - set(data)):
            raise ConfigError(f"{where}: field {missing[0]!r} is missing")
        values = {key: _frozen(value) if key != "sparsity" else value for key, value in data.items()}
        for key, value in values.items():
            _check_type(where, key, value)
        if data["op"] not in set(Op):
            raise ConfigError(f"{where}: op {data['op']!r} is unknown; allowed: {', '.join(Op)}")
        values["op"] = Op(data["op"])
        if values.get("sparsity") is not None:
            try:
                values["sparsity"] = WeightSparsity.from_dict(values["sparsity"])
            except (ConfigError, TypeError, OverflowError) as error:  # a list for a name, a dim beyond all memory
                raise ConfigError(f"{where}: {error}") from error
        return cls(**values)


@dataclass(frozen=True)
class Topology:
    """What placement must know of a graph, as arrays over layers (views are resolved to the layer that holds the data).

    Attributes:
        liveness: bool (layers, layers), `LayerGraph.liveness`.
        first, other: int64 (layers,), index of the layer that holds the first and the second input; -1 for none.
    """

    liveness: np.ndarray
    first: np.ndarray
    other: np.ndarray


@dataclass(frozen=True)
class LayerGraph:
    """Layers in an order in which they can run, and the names of the layers whose outputs leave the network.

    >>> x = Layer("x", Op.INPUT, (1, 3, 4, 4), k=3, c=3, p=4, q=4)
    >>> conv = Layer("conv", Op.CONV, (1, 8, 4, 4), ("x",), k=8, c=3, p=4, q=4, r=3, s=3, in_h=4, in_w=4,
    ...              padding=(1, 1, 1, 1), weight="conv.weight")
    >>> graph = LayerGraph("tiny", (x, conv), ("conv",)).verify()
    >>> graph.macs, graph.parameters
    (3456, 216)
    """

    name: str
    layers: tuple[Layer, ...]
    outputs: tuple[str, ...]

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, name: str) -> Layer:
        return self.layers[self.index[name]]

    @cached_property
    def index(self) -> Mapping[str, int]:
        """Position of each layer by name."""
        return {layer.name: i for i, layer in enumerate(self.layers)}

    @cached_property
    def consumers(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the layers that read each layer's output."""
        found: dict[str, list[str]] = {layer.name: [] for layer in self.layers}
        for layer in self.layers:
            for source in dict.fromkeys(layer.inputs):
                found[source].append(layer.name)
        return {name: tuple(readers) for name, readers in found.items()}

    @property
    def inputs(self) -> tuple[Layer, ...]:
        return tuple(layer for layer in self.layers if layer.op is Op.INPUT)

    @cached_property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    @property
    def parameters(self) -> int:
        """Stored numbers; a weight or a bias that two layers share counts once."""
        weights, biases = self._owners("weight"), self._owners("bias")
        return sum(layer.weight_elements for layer in weights) + sum(layer.bias_elements for layer in biases)

    @property
    def source_parameters(self) -> int:
        """Parameters of the module that was lowered, before batch-norm folding.

        Buffers that enter the computation (constants, scale and shift of a norm without parameters) count too: the
        graph does not tell them apart. The slopes of a PReLU do not.
        """
        weights, biases = self._owners("weight"), self._owners("bias")
        norms = sum(layer.weight_elements + layer.norm_elements for layer in weights)
        return norms + sum(layer.source_bias_elements for layer in biases)

    @property
    def activation_bytes(self) -> int:
        """Bytes of all output tensors together (views excluded)."""
        return sum(
            layer.output_elements * layer.activation_bits // 8
            for layer in self.layers
            if layer.op not in (Op.RESHAPE, Op.CONSTANT)
        )

    def _owners(self, array: Literal["weight", "bias"]) -> list[Layer]:
        """Layers with such an array, each shared one once."""
        seen: dict[str, Layer] = {}
        for layer in self.layers:
            if key := layer.weight if array == "weight" else layer.bias:
                seen.setdefault(key, layer)
        return list(seen.values())

    def verify(self) -> LayerGraph:
        """Itself, if every edge, shape and attribute agrees.

        Raises:
            ShapeError: names the layer and what disagrees.
        """
        from workloads.verify import verify

        verify(self)
        return self

    # ---- pricing and analysis views -------------------------------------------------------------------------------

    @cached_property
    def columns(self) -> Columns:
        """Every dim as a NumPy array over layers: what all pricing reads."""
        return Columns.from_graph(self)

    @cached_property
    def liveness(self) -> np.ndarray:
        """Boolean (layers, layers): [e, i] says that the output of layer e must be kept while layer i runs.

        A view (reshape) keeps its source alive and occupies nothing itself; constants live in weight memory.
        """
        count = len(self.layers)
        last = np.arange(count)
        for i in range(count - 1, -1, -1):
            layer = self.layers[i]
            end = count - 1 if layer.name in self.outputs else i
            for reader in self.consumers[layer.name]:
                j = self.index[reader]
                end = max(end, int(last[j]) if self.layers[j].op is Op.RESHAPE else j)
            last[i] = end
        steps = np.arange(count)
        alive = (steps[None, :] >= steps[:, None]) & (steps[None, :] <= last[:, None])
        held = np.array([layer.op not in (Op.RESHAPE, Op.CONSTANT) for layer in self.layers])
        return np.asarray(alive & held[:, None])

    @cached_property
    def topology(self) -> Topology:
        """Which tensors each layer reads and how long each is alive; the same for every candidate of this graph."""
        count = len(self.layers)
        first, other = np.full(count, -1), np.full(count, -1)
        for i, layer in enumerate(self.layers):
            sources = [self._holder(name) for name in layer.inputs]
            first[i] = sources[0] if sources else -1
            other[i] = sources[1] if len(sources) > 1 else -1
        return Topology(self.liveness, first, other)

    def _holder(self, name: str) -> int:
        """Index of the layer that really holds the tensor: a view's source."""
        layer = self[name]
        while layer.op is Op.RESHAPE:
            layer = self[layer.inputs[0]]
        return self.index[layer.name]

    def to_networkx(self) -> networkx.DiGraph:
        """A directed graph whose nodes carry their `Layer` under "layer" and edges the tensor "shape"."""
        import networkx

        view = networkx.DiGraph(name=self.name)
        for layer in self.layers:
            view.add_node(layer.name, layer=layer)
            view.add_edges_from((source, layer.name, {"shape": self[source].shape}) for source in layer.inputs)
        return view

    # ---- changed copies -------------------------------------------------------------------------------------------

    def replace_layers(self, changes: Mapping[str, Mapping[str, Any]]) -> LayerGraph:
        """A copy in which the named layers have the given fields changed."""
        for name in changes:
            if name not in self.index:
                raise ShapeError(f"graph {self.name!r} has no layer {name!r}")
        return dataclasses.replace(
            self,
            layers=tuple(
                dataclasses.replace(layer, **changes[layer.name]) if layer.name in changes else layer
                for layer in self.layers
            ),
        )

    def with_precision(self, weights: str, activations: str | None = None) -> LayerGraph:
        """A copy with weights and activations of the named precisions ("fp32", "fp16", "int8")."""
        for name in (weights, activations or weights):
            if name not in PRECISIONS:
                raise ConfigError(f"unknown precision {name!r}; allowed: {', '.join(PRECISIONS)}")
        bits = {"weight_bits": PRECISIONS[weights], "activation_bits": PRECISIONS[activations or weights]}
        return self.replace_layers({layer.name: bits for layer in self.layers})

    def with_batch(self, batch: int) -> LayerGraph:
        """A copy that runs `batch` inputs at once (the leading dim of every tensor but constants)."""
        if batch < 1:
            raise ConfigError(f"batch {batch}: must be >= 1")
        old = self.inputs[0].shape[0]
        changes: dict[str, dict[str, Any]] = {}
        for layer in self.layers:
            if layer.op is Op.CONSTANT:
                continue
            if layer.shape[0] % old or layer.n % old:
                found = f"leading dim {layer.shape[0]} and n {layer.n}"
                raise ShapeError(f"layer {layer.name!r} ({layer.op}): {found} must be multiples of the batch {old}")
            changes[layer.name] = {
                "shape": (layer.shape[0] // old * batch, *layer.shape[1:]),
                "n": layer.n // old * batch,
            }
        return self.replace_layers(changes).verify()

    def with_sparsity(self, sparsity: Mapping[str, WeightSparsity | None]) -> LayerGraph:
        """A copy with the given knowledge of weight zeros, by layer name."""
        return self.replace_layers({name: {"sparsity": value} for name, value in sparsity.items()})

    def with_activation_density(self, density: Mapping[str, Sequence[float]]) -> LayerGraph:
        """A copy with the given fraction of non-zeros per output channel, by layer name."""
        return self.replace_layers({name: {"activation_density": tuple(d)} for name, d in density.items()})

    def with_channels(self, channels: Mapping[str, int]) -> LayerGraph:
        """A copy in which channel groups (named as `workloads.channels.analyze` names them) keep that many channels."""
        from workloads.channels import analyze

        return analyze(self).graph(channels)

    # ---- JSON -----------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": "codesign.layer_graph",
            "version": FORMAT_VERSION,
            "name": self.name,
            "outputs": list(self.outputs),
            "layers": [layer.to_dict() for layer in self.layers],
        }

    @classmethod
    def from_dict(cls, data: Any) -> LayerGraph:
        """A verified graph from what `to_dict` gave.

        Raises:
            ConfigError: not a graph, another version, or a bad field.
            ShapeError: layers that do not agree.
        """
        if not isinstance(data, dict) or data.get("format") != "codesign.layer_graph":
            raise ConfigError("not a layer graph: field 'format' must be 'codesign.layer_graph'")
        if data.get("version") != FORMAT_VERSION:
            raise ConfigError(f"layer graph version {data.get('version')!r}; this release reads {FORMAT_VERSION}")
        layers, outputs = data.get("layers"), data.get("outputs")
        if not isinstance(layers, list) or not all(isinstance(item, dict) for item in layers):
            raise ConfigError("layer graph: field 'layers' must be a list of objects")
        if not isinstance(outputs, list) or not all(isinstance(item, str) for item in outputs):
            raise ConfigError("layer graph: field 'outputs' must be a list of layer names")
        name = str(data.get("name", ""))
        return cls(name, tuple(Layer.from_dict(item) for item in layers), tuple(outputs)).verify()

    def save(self, path: Path) -> None:
        """Write the graph as JSON, one layer a line, whole or not at all; DataError if the place cannot be written."""
        from workloads.store import graph_text, write_file

        write_file(path, graph_text(self).encode())

    @classmethod
    def load(cls, path: Path) -> LayerGraph:
        """Read what `save` wrote; errors name the file."""
        from workloads.store import read_json

        data = read_json(path)
        try:
            return cls.from_dict(data)
        except (ConfigError, ShapeError) as error:
            raise type(error)(f"{path}: {error}") from error

    def __str__(self) -> str:
        return (
            f"LayerGraph {self.name!r}: {len(self.layers)} layers, {self.macs / 1e6:,.2f} M MACs, "
            f"{self.parameters:,} parameters, {self.activation_bytes / 1024:,.0f} KiB of activations"
        )


_INTEGER_FIELDS = {"n", "k", "c", "p", "q", "r", "s", "groups", "in_h", "in_w", "channel_axis", "folded_norms"}
_INTEGER_FIELDS |= {"weight_bits", "activation_bits"}
_TUPLE_FIELDS = {"shape": int, "stride": int, "dilation": int, "padding": int, "inputs": str}
_TEXT_FIELDS = {"name", "op", "activation", "fused_into", "weight", "bias"}


def _check_type(where: str, key: str, value: Any) -> None:
    """Raise a ConfigError unless `value` has the type of field `key`."""
    wanted = ""
    if key in _INTEGER_FIELDS and (not isinstance(value, int) or isinstance(value, bool)):
        wanted = "an integer"
    elif key in _TEXT_FIELDS and not isinstance(value, str):
        wanted = "text"
    elif key in _TUPLE_FIELDS and not (
        isinstance(value, tuple) and all(type(item) is _TUPLE_FIELDS[key] for item in value)
    ):
        wanted = f"a list of {'text' if key == 'inputs' else 'integers'}"
    elif key == "activation_density" and not (
        isinstance(value, tuple) and all(isinstance(item, int | float) for item in value)
    ):
        wanted = "a list of numbers"
    elif key == "attributes" and not isinstance(value, dict):
        wanted = "an object"
    elif key == "source_bias" and not isinstance(value, bool):
        wanted = "true or false"
    elif key == "sparsity" and not (value is None or isinstance(value, dict)):
        wanted = "an object"
    if wanted:
        raise ConfigError(f"{where}: field {key!r} is {value!r}, must be {wanted}")


def _jsonable(value: Any) -> Any:
    """Tuples as lists, all the way down."""
    if isinstance(value, Mapping):
        return {key: _jsonable(item) for key, item in value.items()}
    return [_jsonable(item) for item in value] if isinstance(value, tuple | list) else value


def _frozen(value: Any) -> Any:
    """Lists as tuples, all the way down."""
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
