"""What a published row was measured on, written as one line of text.

    table:NAME[@int8] [n=4] [density=0.5] [density.pointwise=0.1] [inputs=0.6] [#LAYER]
    layer:conv[@int8] c=64 k=64 h=56 r=3 stride=1 ...
    layers:FILE

A **table** is a network of `workloads.tables`; `n` is its batch, `density` the fraction of weights kept in every layer
with weights, or with a kind behind the dot only in layers of that kind (`pointwise`, `depthwise`, `conv` for wider
kernels, `linear`), `inputs` the fraction of non-zeros of every feature map, and `#LAYER` picks the price of one layer
where it stands in the network.

A **layer** stands alone: op `conv` or `linear` and its numbers, `c` (needed) `k h w r s stride groups density inputs n
pad activation` (of `linear` only `c k n density inputs activation`). Unless given k = c, h = 1, w = h, s = r, r =
stride = groups = n = 1, density = inputs = 1 (`inputs` is the density of its input), and pad = `same` (output = input /
stride, rounded up); `valid` is no padding, a number pads every side by that much. **Layers** are one such line each in
a text file beside the rows (of `codesign simulate`: in the current folder) or of the package (# starts a comment); they
do not feed each other.

`@int8`, `@fp16` or `@fp32` sets the precision; without it a network is fp32, which a machine converts to its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from accel_models.validation import FOLDER
from accel_models.validation.rows import read_text
from workloads.columns import Columns
from workloads.errors import CodesignError, ConfigError
from workloads.graph import PRECISIONS, Kind, Layer, LayerGraph, Op
from workloads.sparsity import WeightSparsity

WEIGHT_KINDS = ("pointwise", "depthwise", "conv", "linear")
TABLE_KEYS = ("n", "density", *(f"density.{kind}" for kind in WEIGHT_KINDS), "inputs")
INTEGER_KEYS = ("c", "k", "h", "w", "r", "s", "stride", "groups", "n")
LAYER_KEYS = {  # by op
    "conv": (*INTEGER_KEYS, "pad", "density", "inputs", "activation"),
    "linear": ("c", "k", "n", "density", "inputs", "activation"),
}


@dataclass(frozen=True)
class Workload:
    """Graphs that a row prices together, or one layer of one graph.

    Attributes:
        text: as written. graphs: independent of each other; their prices add up. layer: the one that counts, or "".
    """

    text: str
    graphs: tuple[LayerGraph, ...]
    layer: str = ""

    @property
    def batch(self) -> int:
        """Inputs that run at once."""
        return self.graphs[0].inputs[0].shape[0]

    @cached_property
    def rows(self) -> slice:
        """Which rows count, of all rows of its graphs one after another."""
        if self.layer:
            start = self.graphs[0].index[self.layer]
            return slice(start, start + 1)
        return slice(0, sum(len(graph) for graph in self.graphs))


@cache
def workload(text: str, folder: Path = FOLDER) -> Workload:
    """Read a workload (module docstring); the same object each time.

    Args:
        folder: where the rows lie, and the files of layers that they name.

    Raises:
        ConfigError: what is wrong in the text and what is allowed.

    >>> workload("layer:conv c=64 k=128 h=56 r=3 stride=2 n=4").graphs[0].macs == 4 * 64 * 128 * 28 * 28 * 9
    True
    >>> workload("table:resnet18@int8 n=2 density.conv=0.5 #conv1").batch
    2
    """
    kind, found, what = text.partition(":")
    if kind not in _READERS or not found or not what.strip():
        raise ConfigError(f"workload {text!r}: must start with {', '.join(f'{name}:' for name in _READERS)}")
    try:
        return _READERS[kind](text, what.strip(), folder)
    except ConfigError as error:
        raise ConfigError(f"workload {text!r}: {error}") from error


def _table(text: str, what: str, _: Path) -> Workload:
    from workloads.tables import table

    head, hash_sign, layer = what.partition("#")
    head, *pairs = head.split() or [""]
    name, precision = _precise(head)
    given = _pairs(pairs, TABLE_KEYS)
    graph = table(name)
    graph = graph.with_precision(precision) if precision else graph
    graph = graph.with_batch(_whole("n", given["n"])) if "n" in given else graph
    graph = graph.with_sparsity(dict(_densities(graph, given)))
    if "inputs" in given:
        density = _fraction("inputs", given["inputs"])
        known = {x.name: (density,) * x.shape[x.channel_axis] for x in graph if len(x.shape) > 1}
        graph = graph.with_activation_density(known)
    if hash_sign and layer.strip() not in graph.index:
        raise ConfigError(f"table {name!r} has no layer {layer.strip()!r}; its layers: {', '.join(graph.index)}")
    return Workload(text, (graph,), layer.strip())


def _densities(graph: LayerGraph, given: Mapping[str, str]) -> Iterator[tuple[str, WeightSparsity]]:
    """Layers with weights whose density was given, the one of their own kind before the one of all."""
    for layer in graph:
        chosen = given.get(f"density.{weight_kind(layer)}", given.get("density"))
        if layer.kind is Kind.MAC and layer.weight and chosen is not None:
            yield layer.name, WeightSparsity.from_density(layer.weight_shape, _fraction("density", chosen))


def weight_kind(layer: Layer) -> str:
    """One of WEIGHT_KINDS: what published pruning tables tell apart."""
    if layer.op is not Op.CONV:
        return "linear"
    return "depthwise" if layer.is_depthwise else "pointwise" if layer.r == layer.s == 1 else "conv"


def _layer(text: str, what: str, _: Path) -> Workload:
    return Workload(text, (layer_graph(what),))


def _layers(text: str, what: str, folder: Path) -> Workload:
    path = next((path for path in (folder / what, FOLDER / what) if path.is_file()), None)
    if path is None:
        raise ConfigError(f"no file {what!r} in {folder}")
    graphs, wrong = [], []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if written := line.partition("#")[0].strip():
            try:
                graphs.append(layer_graph(written))
            except ConfigError as error:
                wrong.append(f"{path}:{number}: {error}")
    if wrong or not graphs:
        raise ConfigError("; ".join(wrong) or f"{path}: holds no layer, must hold one a line")
    return Workload(text, tuple(graphs))


_READERS = {"table": _table, "layer": _layer, "layers": _layers}


def layer_graph(text: str) -> LayerGraph:
    """A graph of one layer from its written-out form (module docstring).

    >>> graph = layer_graph("conv c=3 k=8 h=8 r=3 stride=2")
    >>> graph["layer"].shape, graph.macs
    ((1, 8, 4, 4), 3456)
    >>> layer_graph("conv c=3 k=8 h=8 r=3 pad=valid n=2")["layer"].shape
    (2, 8, 6, 6)
    """
    head, *pairs = text.split() or [""]
    try:
        op, precision = _precise(head)
        if op not in LAYER_KEYS:
            raise ConfigError(f"op {op!r}, must be one of {', '.join(LAYER_KEYS)}")
        given = _pairs(pairs, LAYER_KEYS[op])
        if "c" not in given:
            raise ConfigError("field 'c' is missing")
        graph = LayerGraph(text, _source_and_layer(Op(op), given), ("layer",)).verify()
        return graph.with_precision(precision) if precision else graph
    except CodesignError as error:
        raise ConfigError(f"layer {text!r}: {error}") from error


def _source_and_layer(op: Op, given: Mapping[str, str]) -> tuple[Layer, Layer]:
    number = {key: _whole(key, given[key]) for key in INTEGER_KEYS if key in given}
    n, c, h, r, stride = (number.get(key, 1) for key in ("n", "c", "h", "r", "stride"))
    k, groups, w, s = number.get("k", c), number.get("groups", 1), number.get("w", h), number.get("s", r)
    pad = given.get("pad", "same")
    for key, size in (("c", c), ("k", k)):
        if size % groups:
            raise ConfigError(f"groups {groups}, must divide {key} = {size}")
    (p, top, bottom), (q, left, right) = _fit("h", h, r, stride, pad), _fit("w", w, s, stride, pad)
    density, inputs = (_fraction(key, given.get(key, "1")) for key in ("density", "inputs"))
    flat = op is Op.LINEAR
    known = (inputs,) * c if inputs < 1 else ()
    shape = (n, c) if flat else (n, c, h, w)
    source = Layer("input", Op.INPUT, shape, n=n, k=c, c=c, p=h, q=w, activation_density=known)
    layer = Layer(
        "layer",
        op,
        (n, k) if flat else (n, k, p, q),
        ("input",),
        n=n,
        k=k,
        c=c,
        p=p,
        q=q,
        r=r,
        s=s,
        groups=groups,
        in_h=h,
        in_w=w,
        stride=(stride, stride),
        padding=(top, bottom, left, right),
        weight="layer.weight",
        bias="layer.bias",
        activation=given.get("activation", ""),
        sparsity=WeightSparsity.from_density((k, c // groups, r, s), density) if density < 1 else None,
    )
    return source, layer


def _fit(axis: str, size: int, kernel: int, stride: int, pad: str) -> tuple[int, int, int]:
    """(output size, padding before, padding after) of one axis."""
    if pad == "same":
        output = -(-size // stride)
        total = max((output - 1) * stride + kernel - size, 0)
        return output, total // 2, total - total // 2
    if pad != "valid" and not pad.isdecimal():
        raise ConfigError(f"pad {pad!r}, must be same, valid or a whole number >= 0")
    each = 0 if pad == "valid" else int(pad)
    if size + 2 * each < kernel:
        raise ConfigError(f"pad {pad!r}: {axis} = {size} is smaller than the kernel of {kernel} even with its padding")
    return (size + 2 * each - kernel) // stride + 1, each, each


def layers_columns(texts: list[str]) -> Columns:
    """The multiplying rows of several written-out layers."""
    return Columns.concatenate([layer_graph(text).columns.take(slice(1, 2)) for text in texts])


def _pairs(pairs: list[str], allowed: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        if key not in allowed or not value:
            raise ConfigError(f"field {pair!r} is unknown or empty; allowed, as key=value: {', '.join(allowed)}")
        if key in found:
            raise ConfigError(f"field {key!r} is given twice, {found[key]!r} and {value!r}, must be given once")
        found[key] = value
    return found


def _precise(text: str) -> tuple[str, str]:
    """(name, precision or "") of `name@precision`."""
    name, at, precision = text.partition("@")
    if at and precision not in PRECISIONS:
        raise ConfigError(f"unknown precision {precision!r} behind @; allowed: {', '.join(PRECISIONS)}")
    return name, precision


def _whole(key: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text)):
        raise ConfigError(f"{key} {text!r}, must be a whole number >= 1, in digits")
    return int(text)


def _fraction(key: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise ConfigError(f"{key} {text!r}, must be a number in 0..1")
    return value
