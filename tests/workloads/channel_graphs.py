"""Small layer graphs written by hand, for tests: one method an op, shapes worked out from the inputs."""

import dataclasses
import math
from typing import Any

import numpy as np

from workloads.graph import Layer, LayerGraph, Op


class Net:
    """A layer graph under construction; every method adds a layer and returns its name."""

    def __init__(self, *shape: int, axis: int = 1) -> None:
        self.layers: dict[str, Layer] = {}
        self.add("x", Op.INPUT, shape, channel_axis=axis)

    def graph(self, *outputs: str) -> LayerGraph:
        return LayerGraph("net", tuple(self.layers.values()), outputs or (list(self.layers)[-1],)).verify()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.layers[name].shape

    def add(self, name: str, op: Op, shape: tuple[int, ...], *inputs: str, **fields: Any) -> str:
        """Any layer; dims that are not given follow from the shape."""
        axis = fields.setdefault("channel_axis", 1)
        channels = shape[axis] if axis < len(shape) else 1
        rest = [size for i, size in enumerate(shape[1:], 1) if i != axis]
        image = self.shape(inputs[0])[2:] if inputs and len(self.shape(inputs[0])) == 4 else (1, 1)
        found = {"n": shape[0] if shape else 1, "k": channels, "c": channels, "in_h": image[0], "in_w": image[1]}
        found |= {"p": rest[0] if rest else 1, "q": math.prod(rest[1:])}
        self.layers[name] = Layer(name, op, shape, inputs, **(found | fields))
        return name

    def conv(self, name: str, source: str, k: int, r: int = 3, stride: int = 1, groups: int = 1, **fields: Any) -> str:
        n, c, h, w = self.shape(source)
        pad = r // 2
        p, q = ((size + 2 * pad - r) // stride + 1 for size in (h, w))
        nest = {"c": c, "r": r, "s": r, "groups": groups, "stride": (stride, stride), "padding": (pad,) * 4}
        arrays = {"weight": f"{name}.weight", "bias": f"{name}.bias"}
        return self.add(name, Op.CONV, (n, k, p, q), source, **(nest | arrays | fields))

    def conv_transpose(self, name: str, source: str, k: int, groups: int = 1) -> str:
        """Kernel 2, stride 2: twice the size."""
        n, c, h, w = self.shape(source)
        nest = {"c": c, "r": 2, "s": 2, "groups": groups, "stride": (2, 2), "attributes": {"output_padding": (0, 0)}}
        arrays = {"weight": f"{name}.weight", "bias": f"{name}.bias"}
        return self.add(name, Op.CONV_TRANSPOSE, (n, k, 2 * h, 2 * w), source, **nest, **arrays)

    def linear(self, name: str, source: str, k: int, **fields: Any) -> str:
        *lead, c = self.shape(source)
        n, p = (lead[0], math.prod(lead[1:]))
        nest = {"n": n, "k": k, "c": c, "p": p, "q": 1, "channel_axis": len(lead)}
        arrays = {"weight": f"{name}.weight", "bias": f"{name}.bias"}
        return self.add(name, Op.LINEAR, (*lead, k), source, **(nest | arrays | fields))

    def lstm(self, name: str, source: str, hidden: int, reverse: bool = False) -> str:
        n, t, i = self.shape(source)
        nest = {"n": n, "k": 4 * hidden, "c": i + hidden, "p": t, "q": 1, "channel_axis": 2}
        attributes = {"hidden": hidden, "reverse": reverse, "batch_first": True}
        arrays = {"weight": f"{name}.weight", "bias": f"{name}.bias"}
        return self.add(name, Op.LSTM, (n, t, hidden), source, attributes=attributes, **nest, **arrays)

    def matmul(self, name: str, a: str, b: str, scale: float = 1.0) -> str:
        *lead, m, c = self.shape(a)
        k = self.shape(b)[-1]
        nest = {"n": math.prod(lead), "k": k, "c": c, "p": m, "q": 1, "channel_axis": len(lead) + 1}
        return self.add(name, Op.MATMUL, (*lead, m, k), a, b, attributes={"scale": scale}, **nest)

    def like(self, name: str, op: Op, *inputs: str, **attributes: Any) -> str:
        """A layer of the shape that its inputs broadcast to."""
        shape = np.broadcast_shapes(*(self.shape(source) for source in inputs))
        axis = max((self.layers[source].channel_axis for source in inputs), default=1)
        return self.add(name, op, tuple(shape), *inputs, attributes=attributes, channel_axis=axis)

    def plus(self, name: str, *inputs: str) -> str:
        return self.like(name, Op.ADD, *inputs, kind="add")

    def times(self, name: str, *inputs: str) -> str:
        return self.like(name, Op.MUL, *inputs, kind="mul")

    def relu(self, name: str, source: str) -> str:
        return self.like(name, Op.ACTIVATION, source, kind="relu")

    def constant(self, name: str, *shape: int) -> str:
        return self.add(name, Op.CONSTANT, shape, weight=name, channel_axis=0)

    def norm(self, name: str, source: str, kind: str, **attributes: Any) -> str:
        layer = self.layers[source]
        found = attributes | {"kind": kind} | ({} if kind == "affine" else {"eps": 1e-5})
        arrays = {"weight": f"{name}.weight", "bias": f"{name}.bias", "channel_axis": layer.channel_axis}
        return self.add(name, Op.NORM, layer.shape, source, attributes=found, **arrays)

    def pool(self, name: str, source: str) -> str:
        """Maximum of 2x2."""
        n, c, h, w = self.shape(source)
        nest = {"r": 2, "s": 2, "stride": (2, 2), "attributes": {"ceil": False}}
        return self.add(name, Op.MAX_POOL, (n, c, h // 2, w // 2), source, **nest)

    def mean(self, name: str, source: str, keepdim: bool = False) -> str:
        """Over height and width."""
        n, c, *_ = self.shape(source)
        attributes = {"axes": (2, 3), "keepdim": keepdim}
        return self.add(name, Op.MEAN, (n, c, 1, 1) if keepdim else (n, c), source, attributes=attributes)

    def concat(self, name: str, *inputs: str, axis: int = 1) -> str:
        shape = list(self.shape(inputs[0]))
        shape[axis] = sum(self.shape(source)[axis] for source in inputs)
        channel_axis = self.layers[inputs[0]].channel_axis
        return self.add(name, Op.CONCAT, tuple(shape), *inputs, attributes={"axis": axis}, channel_axis=channel_axis)

    def cut(self, name: str, source: str, start: int, size: int, axis: int = 1, step: int = 1) -> str:
        shape = list(self.shape(source))
        starts, steps = [0] * len(shape), [1] * len(shape)
        shape[axis], starts[axis], steps[axis] = size, start, step
        attributes = {"starts": tuple(starts), "steps": tuple(steps)}
        channel_axis = self.layers[source].channel_axis
        return self.add(name, Op.SLICE, tuple(shape), source, attributes=attributes, channel_axis=channel_axis)

    def shortcut(self, name: str, source: str, k: int) -> str:
        """Option A: every second pixel, zero channels in front and behind; adds `<name>.slice` and `<name>`."""
        n, c, h, w = self.shape(source)
        steps = {"starts": (0, 0, 0, 0), "steps": (1, 1, 2, 2)}
        taken = self.add(f"{name}.slice", Op.SLICE, (n, c, (h + 1) // 2, (w + 1) // 2), source, attributes=steps)
        half = (k - c) // 2
        pads = {"before": (0, half, 0, 0), "after": (0, k - c - half, 0, 0), "mode": "constant", "value": 0.0}
        return self.add(name, Op.PAD, (n, k, *self.shape(taken)[2:]), taken, attributes=pads)

    def transpose(self, name: str, source: str, *permutation: int, axis: int = 1) -> str:
        shape = tuple(self.shape(source)[i] for i in permutation)
        return self.add(name, Op.TRANSPOSE, shape, source, attributes={"permutation": permutation}, channel_axis=axis)

    def reshape(self, name: str, source: str, *shape: int, axis: int = 1) -> str:
        return self.add(name, Op.RESHAPE, shape, source, channel_axis=axis)

    def shuffle(self, name: str, source: str, groups: int) -> str:
        n, c, h, w = self.shape(source)
        split = self.reshape(f"{name}.split", source, n, groups, c // groups, h, w)
        turned = self.transpose(f"{name}.turn", split, 0, 2, 1, 3, 4)
        return self.reshape(name, turned, n, c, h, w)

    def pixel_shuffle(self, name: str, source: str, factor: int, inverse: bool = False) -> str:
        n, c, h, w = self.shape(source)
        shape = (n, c // factor**2, h * factor, w * factor)
        if inverse:
            shape = (n, c * factor**2, h // factor, w // factor)
        return self.add(name, Op.PIXEL_SHUFFLE, shape, source, attributes={"factor": factor, "inverse": inverse})


# ---- whole networks -------------------------------------------------------------------------------------------------


def plain() -> LayerGraph:
    """conv a -> pool -> conv b -> flatten -> linear c -> linear d."""
    net = Net(2, 3, 8, 8)
    b = net.conv("b", net.pool("pool", net.conv("a", "x", 6, activation="relu")), 5, activation="relu")
    c = net.linear("c", net.reshape("flat", b, 2, 80), 7, activation="relu")
    net.linear("d", c, 4)
    return net.graph()


def residual() -> LayerGraph:
    """A basic block with its residual stream, then the mean and a classifier."""
    net = Net(2, 3, 6, 6)
    stem = net.conv("stem", "x", 8, activation="relu")
    inner = net.conv("inner", stem, 6, activation="relu")
    total = net.plus("add", net.conv("outer", inner, 8), stem)
    net.linear("head", net.mean("mean", net.relu("relu", total)), 3)
    return net.graph()


def option_a(blocks: int = 1, widths: tuple[int, ...] = (4, 8, 16), size: int = 8) -> LayerGraph:
    """A CIFAR ResNet; option_a(3, (16, 32, 64), 32) is ResNet-20."""
    net = Net(1, 3, size, size)
    x = net.conv("conv1", "x", widths[0], activation="relu")
    for stage, width in enumerate(widths, 1):
        for block in range(blocks):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = net.conv(f"{name}.conv1", x, width, stride=stride, activation="relu")
            y = net.conv(f"{name}.conv2", y, width)
            x = net.plus(f"{name}.add", y, net.shortcut(f"{name}.pad", x, width) if stride == 2 else x)
            x = net.relu(f"{name}.relu", x)
    net.linear("linear", net.mean("mean", x), 10)
    return net.graph()


def resnet50(image: int = 224, base: int = 64) -> LayerGraph:
    net = Net(1, 3, image, image)
    x = net.pool("maxpool", net.conv("conv1", "x", base, r=7, stride=2, activation="relu"))
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = base << stage
        for block in range(blocks):
            name, stride = f"layer{stage + 1}.{block}", 2 if stage and block == 0 else 1
            y = net.conv(f"{name}.conv1", x, width, r=1, activation="relu")
            y = net.conv(f"{name}.conv2", y, width, stride=stride, activation="relu")
            y = net.conv(f"{name}.conv3", y, 4 * width, r=1)
            x = net.conv(f"{name}.down", x, 4 * width, r=1, stride=stride) if block == 0 else x
            x = net.relu(f"{name}.relu", net.plus(f"{name}.add", y, x))
    net.linear("fc", net.mean("mean", x), 1000)
    return net.graph()


def inverted_residual() -> LayerGraph:
    """MobileNetV2's block: expand, depthwise, project, add; and a depthwise layer with two filters a channel."""
    net = Net(1, 3, 6, 6)
    stem = net.conv("stem", "x", 8)
    wide = net.conv("expand", stem, 12, r=1, activation="relu6")
    deep = net.conv("depthwise", wide, 12, groups=12, activation="relu6")
    total = net.plus("add", net.conv("project", deep, 8, r=1), stem)
    double = net.conv("double", total, 16, groups=8)
    net.conv("last", double, 5, r=1)
    return net.graph()


def grouped(groups: int) -> LayerGraph:
    net = Net(1, 3, 6, 6)
    middle = net.conv("middle", net.conv("before", "x", 16, r=1), 32, groups=groups)
    net.conv("after", middle, 5, r=1)
    return net.graph()


def fire() -> LayerGraph:
    """SqueezeNet's module, then a DenseNet-like layer that reads a concat of a concat."""
    net = Net(1, 3, 6, 6)
    squeeze = net.conv("squeeze", "x", 6, r=1, activation="relu")
    both = net.concat("cat", net.conv("left", squeeze, 8, r=1), net.conv("right", squeeze, 10))
    grown = net.concat("grow", both, net.conv("new", both, 4), "x")
    net.conv("last", grown, 5)
    return net.graph()


def shuffle_unit() -> LayerGraph:
    """ShuffleNetV2: split, branch, concat, shuffle."""
    net = Net(1, 3, 6, 6)
    stem = net.conv("stem", "x", 16)
    left, right = net.cut("left", stem, 0, 8), net.cut("right", stem, 8, 8)
    inner = net.conv("inner", right, 8, r=1, activation="relu")
    branch = net.conv("branch", net.conv("deep", inner, 8, groups=8), 8, r=1)
    net.conv("last", net.shuffle("shuffle", net.concat("cat", left, branch), 2), 5)
    return net.graph()


def uneven_split() -> LayerGraph:
    net = Net(1, 3, 6, 6)
    stem = net.conv("stem", "x", 10)
    a = net.conv("a", net.cut("low", stem, 0, 4), 6, r=1)
    b = net.conv("b", net.cut("high", stem, 4, 6), 6, r=1)
    net.conv("last", net.plus("add", a, b), 5)
    return net.graph()


def squeeze_excite() -> LayerGraph:
    """Two of them: with convolutions, and with linear layers and a reshape."""
    net = Net(2, 3, 6, 6)
    stem = net.conv("stem", "x", 8)
    gate = net.conv("up", net.conv("down", net.mean("mean", stem, keepdim=True), 4, r=1), 8, r=1, activation="sigmoid")
    scaled = net.times("scale", stem, gate)
    second = net.linear("up2", net.linear("down2", net.mean("mean2", scaled), 3), 8, activation="sigmoid")
    net.conv("last", net.times("scale2", scaled, net.reshape("wide", second, 2, 8, 1, 1)), 5)
    return net.graph()


def attention(packed: bool = False, heads: int = 3, width: int = 4) -> LayerGraph:
    """(1, tokens, features): heads by reshape and transpose, softmax, projection; an MLP; no layer norm."""
    tokens, features = 5, heads * width
    net = Net(1, tokens, 8, axis=2)
    x = net.linear("embed", "x", features)
    parts = []
    if packed:
        split = net.reshape("split", net.linear("qkv", x, 3 * features), 1, tokens, 3, heads, width, axis=4)
        turned = net.transpose("turn", split, 2, 0, 3, 1, 4, axis=4)
        for i, name in enumerate("qkv"):
            one = net.cut(f"cut_{name}", turned, i, 1, axis=0)
            parts.append(net.reshape(f"{name}_heads", one, 1, heads, tokens, width, axis=3))
    else:
        for name in "qkv":
            split = net.reshape(f"{name}_split", net.linear(name, x, features), 1, tokens, heads, width, axis=3)
            parts.append(net.transpose(f"{name}_heads", split, 0, 2, 1, 3, axis=3))
    q, k, v = parts
    scores = net.matmul("scores", q, net.transpose("k_turn", k, 0, 1, 3, 2, axis=3), 0.5)
    mixed = net.matmul("mixed", net.like("softmax", Op.SOFTMAX, scores, axis=3, log=False), v)
    merged = net.reshape("merge", net.transpose("back", mixed, 0, 2, 1, 3, axis=3), 1, tokens, features, axis=2)
    x = net.plus("add", net.linear("project", merged, features), x)
    x = net.plus("add2", net.linear("mlp2", net.linear("mlp1", x, 10, activation="relu"), features), x)
    net.linear("head", x, 4)
    return net.graph()


def shared() -> LayerGraph:
    """One convolution used twice, and an array that is added in both places."""
    net = Net(1, 3, 6, 6)
    once = net.conv("once", net.conv("stem", "x", 8), 8, weight="shared.weight", bias="shared.bias")
    plus = net.plus("plus", once, net.constant("offset", 8, 1, 1))
    twice = net.conv("twice", plus, 8, weight="shared.weight", bias="shared.bias")
    net.conv("last", twice, 5)
    return net.graph()


def pixels() -> LayerGraph:
    """Pixel shuffle, its inverse, a transposed convolution."""
    net = Net(1, 3, 4, 4)
    large = net.pixel_shuffle("large", net.conv("a", "x", 16), 2)
    small = net.pixel_shuffle("small", net.conv("b", large, 6), 2, inverse=True)
    net.conv("last", net.conv_transpose("up", net.conv("c", small, 8), 6), 5)
    return net.graph()


def recurrent() -> LayerGraph:
    """A linear layer, a bidirectional LSTM, a classifier of each step."""
    net = Net(2, 5, 6, axis=2)
    x = net.linear("embed", "x", 7)
    both = net.concat("both", net.lstm("forward", x, 4), net.lstm("backward", x, 3, reverse=True), axis=2)
    net.linear("head", both, 5)
    return net.graph()


def norms() -> LayerGraph:
    """Affine, group and instance norms and a prelu."""
    net = Net(2, 3, 6, 6)
    x = net.norm("affine", net.conv("a", "x", 8), "affine")
    x = net.norm("group", net.conv("b", x, 12), "group", groups=4)
    x = net.norm("instance", net.conv("c", x, 6), "instance")
    x = net.like("slopes", Op.ACTIVATION, net.conv("d", x, 6), kind="prelu")
    net.layers["slopes"] = dataclasses.replace(net.layers["slopes"], weight="slopes.weight")
    net.conv("last", x, 5)
    return net.graph()


GRAPHS = {
    "plain": plain,
    "residual": residual,
    "option_a": lambda: option_a(2),
    "bottleneck": lambda: resnet50(32, 4),
    "inverted_residual": inverted_residual,
    "grouped_2": lambda: grouped(2),
    "grouped_8": lambda: grouped(8),
    "fire": fire,
    "shuffle_unit": shuffle_unit,
    "uneven_split": uneven_split,
    "squeeze_excite": squeeze_excite,
    "attention": attention,
    "packed_attention": lambda: attention(packed=True),
    "shared": shared,
    "pixels": pixels,
    "recurrent": recurrent,
    "norms": norms,
}
