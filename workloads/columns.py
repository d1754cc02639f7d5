"""The columnar view: every dim of every layer as a NumPy array, one row a layer (or a layer of a candidate).

All pricing reads this and nothing else, so that thousands of layers and candidates are priced by the same few
vectorised calls. Candidates that differ in channel counts are made by `workloads.channels` as shape arithmetic on
these arrays, never by building graphs.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from workloads.graph import Layer, LayerGraph
    from workloads.sparsity import WeightSparsity

ACTIVATION_CODES = ("", "relu", "relu6", "other")  # the last stands for everything that needs a table or exp


@dataclass(frozen=True)
class Columns:
    """Struct of arrays, all of shape (rows,), int64 where not said otherwise.

    Attributes:
        op: code of the operation, `workloads.graph.OP_CODES`.
        n, k, c, p, q, r, s, groups, in_h, in_w, stride_h, stride_w, dilation_h, dilation_w: as in `Layer`.
        input_elements: of the first input; other_elements: of all further inputs together.
        output_elements: of the output tensor.
        weight_bits, input_bits, output_bits: widths; input_bits is the producer's activation width.
        bias: 1 where a bias is stored. activation: index into ACTIVATION_CODES of the fused activation.
        fused: 1 where an elementwise add may be absorbed by its producer.
        from_input, to_output: 1 where the first input is an input of the network, where the output leaves it; 0 for
            unrelated rows, which are taken to stand inside a network.
        weight_density: float64, fraction of non-zero weights (1 where dense or without weights).
        input_density: float64, mean fraction of non-zeros of the first input (1 where unknown).
        input_density_variance: float64, variance of that fraction over the input's channels (0 where unknown): PEs
            that hold other channels have other work.
        sparsity: one entry a row, None where dense; () when no row has any.
        channel_density: one float64 array (input channels,) a row, or None; () when no row has any.
    """

    op: np.ndarray
    n: np.ndarray
    k: np.ndarray
    c: np.ndarray
    p: np.ndarray
    q: np.ndarray
    r: np.ndarray
    s: np.ndarray
    groups: np.ndarray
    in_h: np.ndarray
    in_w: np.ndarray
    stride_h: np.ndarray
    stride_w: np.ndarray
    dilation_h: np.ndarray
    dilation_w: np.ndarray
    input_elements: np.ndarray
    other_elements: np.ndarray
    output_elements: np.ndarray
    weight_bits: np.ndarray
    input_bits: np.ndarray
    output_bits: np.ndarray
    bias: np.ndarray
    activation: np.ndarray
    fused: np.ndarray
    from_input: np.ndarray
    to_output: np.ndarray
    weight_density: np.ndarray
    input_density: np.ndarray
    input_density_variance: np.ndarray
    sparsity: tuple[WeightSparsity | None, ...] = ()
    channel_density: tuple[np.ndarray | None, ...] = ()

    def __len__(self) -> int:
        return len(self.op)

    @classmethod
    def from_graph(cls, graph: LayerGraph) -> Columns:
        """One row a layer, in graph order."""
        from workloads.graph import OP_CODES

        leaving = {_holder(graph, graph[name]).name for name in graph.outputs}
        rows = [_row(graph, layer, leaving) for layer in graph.layers]
        arrays = {name: np.array([row[name] for row in rows], np.int64) for name in rows[0]} if rows else {}
        arrays["op"] = np.array([OP_CODES[layer.op] for layer in graph.layers], np.int64)
        densities = [_input_channels(graph, layer) for layer in graph.layers]
        return cls(
            **arrays,
            weight_density=np.array([layer.sparsity.density if layer.sparsity else 1.0 for layer in graph.layers]),
            input_density=np.array([float(d.mean()) if d is not None else 1.0 for d in densities]),
            input_density_variance=np.array([float(d.var()) if d is not None else 0.0 for d in densities]),
            sparsity=tuple(layer.sparsity for layer in graph.layers) if any(x.sparsity for x in graph.layers) else (),
            channel_density=tuple(densities) if any(d is not None for d in densities) else (),
        )

    @property
    def c_per_group(self) -> np.ndarray:
        return self.c // self.groups

    @property
    def weight_elements(self) -> np.ndarray:
        """K * (C / groups) * R * S on rows that multiply with stored weights, 0 elsewhere."""
        return np.where(self.has_weights, self.k * self.c_per_group * self.r * self.s, 0)

    @property
    def has_weights(self) -> np.ndarray:
        return self.is_mac & ~self.is_op("matmul")

    @property
    def is_mac(self) -> np.ndarray:
        """Boolean: the row multiplies."""
        return self._is_kind("mac")

    @property
    def is_vector(self) -> np.ndarray:
        """Boolean: elementwise work, pooling and reductions."""
        return self._is_kind("vector")

    @property
    def is_move(self) -> np.ndarray:
        """Boolean: only moves data."""
        return self._is_kind("move")

    @property
    def is_depthwise(self) -> np.ndarray:
        return self.is_op("conv") & (self.groups > 1) & (self.groups == self.c)

    @property
    def macs(self) -> np.ndarray:
        """float64: multiply-accumulates (float so that wide batches cannot overflow)."""
        pixels = np.where(self.is_op("conv_transpose"), self.in_h * self.in_w, self.p * self.q)
        work = self.n.astype(float) * self.k * self.c_per_group * pixels * self.r * self.s
        return np.where(self.is_mac, work, 0.0)

    def is_op(self, *names: str) -> np.ndarray:
        """Boolean: the row's op is one of the named ones."""
        return np.asarray(_op_table(names)[self.op])

    def _is_kind(self, kind: str) -> np.ndarray:
        return np.asarray(_kind_table(kind)[self.op])

    def take(self, rows: np.ndarray | slice) -> Columns:
        """The chosen rows."""
        picked = np.arange(len(self))[rows]
        values: dict[str, Any] = {name: getattr(self, name)[rows] for name in ARRAY_FIELDS}
        for name in ("sparsity", "channel_density"):
            whole = getattr(self, name)
            values[name] = tuple(whole[i] for i in picked) if whole else ()
        return Columns(**values)

    def replace(self, **arrays: Any) -> Columns:
        """A copy with some columns changed."""
        return dataclasses.replace(self, **arrays)

    @staticmethod
    def concatenate(parts: Sequence[Columns]) -> Columns:
        """Rows of several views, in order."""
        values: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in parts]) for name in ARRAY_FIELDS
        }
        for name in ("sparsity", "channel_density"):
            if any(getattr(part, name) for part in parts):
                values[name] = tuple(x for part in parts for x in (getattr(part, name) or (None,) * len(part)))
        return Columns(**values)

    def distinct(self) -> tuple[np.ndarray, np.ndarray]:
        """(first, inverse): rows that are equal are priced once; `first[inverse]` restores the order.

        Exact masks and channel densities compare by content and by value. Rows are compared by a 64-bit hash first.
        """
        columns = [np.ascontiguousarray(getattr(self, name)).view(np.int64) for name in ARRAY_FIELDS]
        for name in ("sparsity", "channel_density"):
            if whole := getattr(self, name):
                codes: dict[Any, int] = {}
                keys = [x.tobytes() if isinstance(x, np.ndarray) else x for x in whole]
                columns.append(np.array([codes.setdefault(key, len(codes)) for key in keys], np.int64))
        mixed = np.zeros(len(self), np.uint64)
        for column in columns:
            mixed = (mixed ^ column.view(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
        _, first, inverse = np.unique(mixed, return_index=True, return_inverse=True)
        if any((column[first[inverse]] != column).any() for column in columns):  # two rows of one hash: once in 2^64
            table = np.ascontiguousarray(np.stack(columns, axis=1)).view([("", np.int64)] * len(columns)).ravel()
            _, first, inverse = np.unique(table, return_index=True, return_inverse=True)
        return first, inverse


ARRAY_FIELDS = tuple(f.name for f in dataclasses.fields(Columns) if f.name not in ("sparsity", "channel_density"))


@functools.cache
def _op_table(names: tuple[str, ...]) -> np.ndarray:
    """Boolean by op code: is it one of the named ones."""
    from workloads.graph import OP_CODES, Op

    table = np.zeros(len(OP_CODES), bool)
    table[[OP_CODES[Op(name)] for name in names]] = True
    return table


@functools.cache
def _kind_table(kind: str) -> np.ndarray:
    """Boolean by op code: is it of that kind."""
    from workloads.graph import KIND, OP_CODES

    return np.array([KIND[op] == kind for op in sorted(OP_CODES, key=OP_CODES.__getitem__)])


def _row(graph: LayerGraph, layer: Layer, leaving: set[str]) -> dict[str, int]:
    from workloads.graph import Op

    sources = [graph[name] for name in layer.inputs]
    names = ("n", "k", "c", "p", "q", "r", "s", "groups", "in_h", "in_w")
    return {name: getattr(layer, name) for name in names} | {
        "stride_h": layer.stride[0],
        "stride_w": layer.stride[1],
        "dilation_h": layer.dilation[0],
        "dilation_w": layer.dilation[1],
        "input_elements": sources[0].output_elements if sources else 0,
        "other_elements": sum(source.output_elements for source in sources[1:]),
        "output_elements": layer.output_elements,
        "weight_bits": layer.weight_bits,
        "input_bits": sources[0].activation_bits if sources else layer.activation_bits,
        "output_bits": layer.activation_bits,
        "bias": int(bool(layer.bias)),
        "activation": activation_code(layer.activation),
        "fused": int(bool(layer.fused_into)),
        "from_input": int(bool(sources) and _holder(graph, sources[0]).op is Op.INPUT),
        "to_output": int(layer.name in leaving),
    }


def _holder(graph: LayerGraph, layer: Layer) -> Layer:
    """The layer whose tensor this is: views resolved to what they look at."""
    while layer.inputs and layer.kind == "none":
        layer = graph[layer.inputs[0]]
    return layer


def activation_code(activation: str) -> int:
    """Index into ACTIVATION_CODES.

    >>> [activation_code(name) for name in ("", "relu", "hardtanh(0,6)", "silu")]
    [0, 1, 2, 3]
    """
    if activation in ACTIVATION_CODES:
        return ACTIVATION_CODES.index(activation)
    return 2 if activation.startswith(("hardtanh", "clamp")) else 3


def _input_channels(graph: LayerGraph, layer: Layer) -> np.ndarray | None:
    """Measured density of each channel of the first input; None where it is not known."""
    if not layer.inputs or not graph[layer.inputs[0]].activation_density:
        return None
    return np.array(graph[layer.inputs[0]].activation_density, float)
