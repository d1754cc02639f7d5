"""Graph passes: a layer graph becomes the steps that are really done.

Batch norms, biases and activations are folded by lowering already. Here an addition is done by the convolution that
feeds it as it writes (its other operand is read where it lies, through a strided slice and zero channels too: the
option-A shortcut of CIFAR's ResNets costs nothing), and a max pooling by the convolution that alone feeds it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from workloads.graph import Layer, LayerGraph, Op


@dataclass(frozen=True)
class Residual:
    """What is added to a convolution's outputs.

    Attributes:
        tensor: whose. stride: (rows, columns) at which it is read.
        start: the first of its channels that is read. first: the output channel that this is added to.
        channels: so many from there.
    """

    tensor: str
    stride: tuple[int, int] = (1, 1)
    start: int = 0
    first: int = 0
    channels: int = 0


def without_pool(step: Step) -> tuple[Step, Step]:
    """The convolution and the pooling that it would have done, as two steps."""
    assert step.pool is not None
    conv, pool = step.layer, step.pool
    return replace(step, output=conv.name, pool=None, absorbed=()), Step(pool, pool.name, (conv.name,))


@dataclass(frozen=True)
class Step:
    """One layer with what it does for its neighbours.

    Attributes:
        layer: whose weights and window. output: the name of the tensor that it writes: of the last layer it does.
        activation: after residual and bias. pool: the layer of a max pooling that it does last.
        absorbed: names of the other layers that it does.
    """

    layer: Layer
    output: str
    inputs: tuple[str, ...]
    activation: str = ""
    residual: Residual | None = None
    pool: Layer | None = None
    absorbed: tuple[str, ...] = ()

    @property
    def pool_side(self) -> int:
        """Of the square window of its pooling, in outputs of the convolution; 1 where it does none."""
        return 1 if self.pool is None else 2


def steps_of(graph: LayerGraph) -> list[Step]:
    """The steps of a graph in running order; inputs and constants are none."""
    additions = _additions(graph)
    pools = _pools(graph)
    hidden = {name for step in additions.values() for name in step.absorbed} | {pool.name for pool in pools.values()}
    found = []
    for layer in graph.layers:
        if layer.name in hidden or layer.op in (Op.INPUT, Op.CONSTANT):
            continue
        step = additions.get(layer.name) or Step(layer, layer.name, layer.inputs, layer.activation)
        if pool := pools.get(step.output):
            step = Step(layer, pool.name, layer.inputs, layer.activation, None, pool, (pool.name,))
        found.append(step)
    return found


def _additions(graph: LayerGraph) -> dict[str, Step]:
    """Additions that a convolution does, by name. They run where the addition stood: all operands are there by then."""
    found = {}
    for layer in graph.layers:
        if not layer.fused_into or graph[layer.fused_into].op is not Op.CONV:
            continue
        conv = graph[layer.fused_into]
        other = layer.inputs[0] if layer.inputs[1] == conv.name else layer.inputs[1]
        if graph[other].shape != layer.shape:  # one for all samples
            continue
        residual, moves = _residual(graph, other)
        absorbed = (conv.name, *moves)
        found[layer.name] = Step(conv, layer.name, conv.inputs, layer.activation, residual, None, absorbed)
    return found


def _residual(graph: LayerGraph, name: str) -> tuple[Residual, tuple[str, ...]]:
    """Where an operand really lies, and the layers that moved it there and that nobody else reads."""
    moves: list[str] = []
    layer = graph[name]
    before = 0
    if _pads_channels(layer) and _is_private(graph, layer):
        before = layer.attributes["before"][1]
        moves.append(layer.name)
        layer = graph[layer.inputs[0]]
    channels = layer.shape[1]
    if not (_samples_map(layer) and _is_private(graph, layer)):
        return Residual(layer.name, (1, 1), 0, before, channels), tuple(moves)
    _, start, *_ = layer.attributes["starts"]
    _, _, *stride = layer.attributes["steps"]
    moves.append(layer.name)
    return Residual(layer.inputs[0], (stride[0], stride[1]), start, before, channels), tuple(moves)


def _is_private(graph: LayerGraph, layer: Layer) -> bool:
    return len(graph.consumers[layer.name]) == 1 and layer.name not in graph.outputs


def _pads_channels(layer: Layer) -> bool:
    """Whether it adds channels of zeros and nothing else."""
    if layer.op is not Op.PAD or len(layer.shape) != 4 or layer.attributes["mode"] != "constant":
        return False
    widths = [*layer.attributes["before"], *layer.attributes["after"]]
    return layer.attributes.get("value", 0.0) == 0 and not any(w for axis, w in enumerate(widths) if axis % 4 != 1)


def _samples_map(layer: Layer) -> bool:
    """Whether it takes whole channels one after another, and of a map every n-th pixel from the first on."""
    if layer.op is not Op.SLICE or len(layer.shape) != 4:
        return False
    starts, steps = layer.attributes["starts"], layer.attributes["steps"]
    return starts[0] == starts[2] == starts[3] == 0 and steps[0] == steps[1] == 1


def _pools(graph: LayerGraph) -> dict[str, Layer]:
    """Max poolings of 2x2 windows without overlap that the one convolution before them could do, by its name."""
    found = {}
    for layer in graph.layers:
        if layer.op is not Op.MAX_POOL or len(layer.shape) != 4 or layer.activation:
            continue
        source = graph[layer.inputs[0]]
        window = (layer.r, layer.s, *layer.stride, *layer.dilation, *layer.padding)
        is_even = (source.p, source.q) == (2 * layer.p, 2 * layer.q)
        is_plain = window == (2, 2, 2, 2, 1, 1, 0, 0, 0, 0)
        if source.op is Op.CONV and is_plain and is_even and _is_private(graph, source):
            found[source.name] = layer
    return found
