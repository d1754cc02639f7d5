"""What a published row was measured on, written as one line of text.

    table:NAME[@int8] [n=4] [density=0.5] [density.pointwise=0.1] [inputs=0.6] [#LAYER]
    layer:conv[@int8] c=64 k=64 h=56 r=3 stride=1 ...
    layers:FILE

A **table** is a network of `workloads.tables`; `n` is its batch, `density` the fraction of weights kept in every layer
with weights, or with a kind behind the dot only in layers of that kind (`pointwise`, `depthwise`, `conv` for wider
kernels, `linear`), `inputs` the fraction of non-zeros of every feature map, and `#LAYER` picks the price of one layer
where it stands in the network.

A **layer** stands alone: op `conv` or `linear` and its numbers, `c` (needed) `k h w r s stride groups density inputs n
pad activation`. Unless given k = c, h = 1, w = h, s = r, r = stride = groups = n = 1, density = inputs = 1 (`inputs`
is the density of its input), and pad = `same` (output = input / stride, rounded up); `valid` is no padding, a number
pads every side by that much. **Layers** are one such line each in a text file beside the rows (# starts a comment);
they do not feed each other.

`@int8`, `@fp16` or `@fp32` sets the precision; without it a network is fp32, which a machine converts to its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property

from accel_models.validation import FOLDER
from workloads.columns import Columns
from workloads.errors import ConfigError
from workloads.graph import Kind, Layer, LayerGraph, Op
from workloads.sparsity import WeightSparsity

WEIGHT_KINDS = ("pointwise", "depthwise", "conv", "linear")
TABLE_KEYS = ("n", "density", *(f"density.{kind}" for kind in WEIGHT_KINDS), "inputs")
INTEGER_KEYS = ("c", "k", "h", "w", "r", "s", "stride", "groups", "n")
LAYER_KEYS = (*INTEGER_KEYS, "pad", "density", "inputs", "activation")
LAYER_OPS = ("conv", "linear")


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
def workload(text: str) -> Workload:
    """Read a workload (module docstring); the same object each time.

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
        return _READERS[kind](text, what.strip())
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"workload {text!r}: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"workload {text!r}: {error}") from error


def _table(text: str, what: str) -> Workload:
    from workloads.tables import table

    head, _, layer = what.partition("#")
    name, *pairs = head.split()
    name, _, precision = name.partition("@")
    given = _pairs(pairs, TABLE_KEYS)
    graph = table(name)
    graph = graph.with_precision(precision) if precision else graph
    graph = graph.with_batch(int(given["n"])) if "n" in given else graph
    graph = graph.with_sparsity(dict(_densities(graph, given)))
    if "inputs" in given:
        density = _fraction("inputs", given["inputs"])
        known = {x.name: (density,) * x.shape[x.channel_axis] for x in graph if len(x.shape) > 1}
        graph = graph.with_activation_density(known)
    if layer and layer.strip() not in graph.index:
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


def _layer(text: str, what: str) -> Workload:
    return Workload(text, (layer_graph(what),))


def _layers(text: str, what: str) -> Workload:
    path = FOLDER / what
    if not path.is_file():
        raise ConfigError(f"no file {what!r} beside the rows")
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return Workload(text, tuple(layer_graph(line) for line in lines if line))


_READERS = {"table": _table, "layer": _layer, "layers": _layers}


def layer_graph(text: str) -> LayerGraph:
    """A graph of one layer from its written-out form (module docstring).

    >>> graph = layer_graph("conv c=3 k=8 h=8 r=3 stride=2")
    >>> graph["layer"].shape, graph.macs
    ((1, 8, 4, 4), 3456)
    >>> layer_graph("conv c=3 k=8 h=8 r=3 pad=valid n=2")["layer"].shape
    (2, 8, 6, 6)
    """
    head, *pairs = text.split()
    op, _, precision = head.partition("@")
    if op not in LAYER_OPS:
        raise ConfigError(f"layer {text!r}: op {op!r}, must be one of {', '.join(LAYER_OPS)}")
    given = _pairs(pairs, LAYER_KEYS)
    if "c" not in given:
        raise ConfigError(f"layer {text!r}: field 'c' is missing")
    graph = LayerGraph(text, _source_and_layer(Op(op), given), ("layer",)).verify()
    return graph.with_precision(precision) if precision else graph


def _source_and_layer(op: Op, given: Mapping[str, str]) -> tuple[Layer, Layer]:
    number = {key: int(given[key]) for key in INTEGER_KEYS if key in given}
    n, c, h, r, stride = (number.get(key, 1) for key in ("n", "c", "h", "r", "stride"))
    k, groups, w, s = number.get("k", c), number.get("groups", 1), number.get("w", h), number.get("s", r)
    pad = given.get("pad", "same")
    (p, top, bottom), (q, left, right) = _fit(h, r, stride, pad), _fit(w, s, stride, pad)
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


def _fit(size: int, kernel: int, stride: int, pad: str) -> tuple[int, int, int]:
    """(output size, padding before, padding after) of one axis."""
    if pad == "same":
        output = -(-size // stride)
        total = max((output - 1) * stride + kernel - size, 0)
        return output, total // 2, total - total // 2
    each = 0 if pad == "valid" else int(pad)
    return (size + 2 * each - kernel) // stride + 1, each, each


def layers_columns(texts: list[str]) -> Columns:
    """The multiplying rows of several written-out layers."""
    return Columns.concatenate([layer_graph(text).columns.take(slice(1, 2)) for text in texts])


def _pairs(pairs: list[str], allowed: tuple[str, ...]) -> dict[str, str]:
    found = dict(pair.partition("=")[::2] for pair in pairs)
    if wrong := [key for key, value in found.items() if key not in allowed or not value]:
        raise ConfigError(f"field {wrong[0]!r} is unknown or empty; allowed, as key=value: {', '.join(allowed)}")
    return found


def _fraction(key: str, text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise ConfigError(f"{key} {value}, must lie in 0..1")
    return value
