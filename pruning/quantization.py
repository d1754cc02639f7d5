"""Int8: what a finished network answers on a machine that computes in 8 bits.

A weight of a convolution or linear layer becomes a whole number q of -127 .. 127 times a scale, one scale for each
output channel k; an activation a whole number of -128 .. 127, with one scale s and zero point z for the whole tensor:

    s[k] = max |w[k]| / 127,  q = round(w[k] / s[k]);     s = (hi - lo) / 255,  q = clamp(round(x / s) + z, -128, 127)

with lo <= 0 <= hi, so that zero is always exact: what is pruned stays zero, and so does padding. A tensor without
negative values uses all 256 steps (z = -128). Every product is then s[k] s times a sum of whole numbers, which is what
the machine adds up; here the same numbers are computed in float32 (fake quantisation), equal up to float rounding.

`quantize` does it after training. `prepare` gives a copy to train on: it computes with rounded numbers; gradients pass
the rounding as if it were not there (straight through), but not where an activation is clamped. `finalize` ends it.

    tuned = prepare(sparse, heldout)                # sparse: finished, with baked masks or without
    fit(tuned, train, epochs=2, lr=0.001, heldout=heldout)
    int8 = finalize(tuned)

Its batch norms are folded, so that it bears smaller steps than the network before: a ResNet-20 learns with rates of
0.001 to 0.002 and is lost at 0.005 (whether float training with folded norms is too was not tried).

The copy is traced by `torch.fx`: control flow must follow from shapes and flags. Parameters keep their names, masks
stay beside them, scales are buffers. What is priced is `lower(sparse).with_precision("int8")`; the lowered copy is the
same layers in int8, with the zeros that rounding adds (and, run as a graph, without the rounding of activations).

Choices. Batch norms fold into the layer before them; one that cannot stays float, and its output is rounded. A clamp
(ReLU, ReLU6) belongs to what it alone reads, so that only its result is rounded; any other activation reads and writes
int8, as a table of 256 entries does. What only moves or selects values keeps their scale; whatever else computes rounds
its result. Biases become whole multiples of s[k] s, as in an int32 sum. Constants that a network adds or multiplies
with elementwise stay float. Ranges of activations are measured once, in `prepare`, those of weights follow the weights.

Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
CVPR 2018, sections 2 and 3. Differs: one scale for each output channel, as TensorFlow Lite's int8 specification has it;
fixed ranges, where the paper moves them while it trains; norms are folded once, with the statistics that they have.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from pruning import masks
from pruning.evaluation import Labelled, labelled_batches
from pruning.tracing import LAYERS, NORMS, argument, channel_axis, module_of, parameter_of, replace, trace_folded
from workloads.errors import ConfigError, PlanError

LOWEST, HIGHEST = -128, 127
FOLDER = "quantizers"  # where the scales are in the copy
BATCH = 128  # pictures at once while ranges are measured
PRODUCTS = (
    torch.matmul, operator.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, torch.einsum, "matmul", "mm", "bmm",
)  # fmt: skip
# Modules that stay float: of their parameters, none is multiplied by the machine's int8 units.
STAYS_FLOAT = (*NORMS, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.GroupNorm, nn.LayerNorm, nn.PReLU)
RELUS = (nn.ReLU, F.relu, torch.relu, torch.relu_, "relu", "relu_")
CLAMPS = (*RELUS, nn.ReLU6, nn.Hardtanh, F.relu6, F.hardtanh, torch.clamp, "clamp", "clamp_")
# What keeps the values that it reads, in other places; methods by name, modules by class.
MOVES = (
    *RELUS, operator.getitem, torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.squeeze,
    torch.unsqueeze, torch.chunk, torch.split, F.pixel_shuffle, F.channel_shuffle, F.dropout, F.max_pool1d,
    F.max_pool2d, F.adaptive_max_pool2d, F.pad, "flatten", "view", "reshape", "permute", "transpose", "squeeze",
    "unsqueeze", "chunk", "split", "expand", "contiguous", nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout,
    nn.Dropout2d, nn.MaxPool1d, nn.MaxPool2d, nn.AdaptiveMaxPool2d, nn.ZeroPad2d, nn.PixelShuffle, nn.ChannelShuffle,
)  # fmt: skip


def quantize(model: nn.Module, data: Labelled, *, percentile: float = 100.0, limit: int = 512) -> fx.GraphModule:
    """An int8 copy of a finished model, in eval mode: post-training quantisation.

    Args:
        model: finished, in any mode. Not modified.
        data: held-out or training pictures, or batches (x, y), on which the ranges of activations are measured.
        percentile: 100 takes the smallest and the largest of all values; less, e.g. 99.99, clamps outliers: in each
            batch the values that this percentage lies below, and above; averaged over the batches. Never of the
            answers, whose order clamping would destroy.
        limit: how many pictures to look at.

    Raises:
        ConfigError: test pictures, no batch, or an option out of range.
        PlanError: the model is not in float32, cannot be traced, is not finished or in int8 already, or multiplies by
            parameters that are neither of a convolution nor of a linear layer, or parameters by parameters.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[127.0, -3.2]]))
    >>> int8 = quantize(layer, [(torch.tensor([[0.0, 255.0], [10.0, 20.0]]), torch.zeros(2))])
    >>> int8.weight.tolist(), int8.quantizers.input_1.scale.item(), int8.quantizers.input_1.zero_point.item()
    ([[127.0, -3.0]], 1.0, -128)
    """
    return finalize(prepare(model, data, percentile=percentile, limit=limit))


def prepare(model: nn.Module, data: Labelled, *, percentile: float = 100.0, limit: int = 512) -> fx.GraphModule:
    """A copy that computes in int8 and can be trained on (quantisation-aware training), in eval mode at first.

    Arguments and errors as `quantize`. Train it by `fit`, or by a loop of your own with `masks.keep_masks`; then call
    `finalize`. Training in bf16 adds that format's rounding to the rounding to int8.
    """
    if not 50 < percentile <= 100:
        raise ConfigError(f"percentile {percentile}, must lie in (50, 100]")
    if any(isinstance(module, WeightQuantizer) for module in model.modules()):
        raise PlanError("the model is in int8 already; give the float one")
    for key, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise PlanError(f"{key!r} is {str(parameter.dtype).removeprefix('torch.')}, must be float32; call .float()")
    place = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    pictures = [x.to(place) for x, _ in labelled_batches(data, BATCH, limit)]
    net = trace_folded(model, pictures[0][:1])
    ranges = _Ranges(net, percentile)
    for x in pictures:
        ranges.run(x)
    _check(net, ranges)
    for node in list(_rounded(net, ranges)):
        _round(net, node, node.name, ActivationQuantizer(*ranges.of(node)))
    for node in [node for node in net.graph.nodes if node.target in LAYERS]:
        source = argument(node, 1, "weight")
        if (name := parameter_of(source)) is not None:  # else another call of the same layer came first
            axis = channel_axis(node)
            weight = net.get_parameter(name)
            _round(net, source, name.replace(".", "_"), WeightQuantizer(weight.shape[axis], axis))
    net.recompile()
    return net.to(place).eval()


@torch.no_grad()
def finalize(prepared: fx.GraphModule) -> fx.GraphModule:
    """A plain copy whose parameters are the rounded numbers, in eval mode; copy, save, compile, export or lower it.

    Raises:
        PlanError: the model does not come from `prepare`.
    """
    if not any(isinstance(module, WeightQuantizer) for module in prepared.modules()):
        raise PlanError("the model has no weight to round; give what quantization.prepare made")
    net = copy.deepcopy(prepared).eval()
    masks.apply_masks(net)
    for node in net.graph.nodes:
        if isinstance(quantizer := module_of(net, node), WeightQuantizer):
            weight = net.get_parameter(parameter_of(node.args[0]) or "")
            quantizer.fix(weight)
            weight.copy_(quantizer(weight))
    for node in net.graph.nodes:
        if node.target in LAYERS:
            _round_bias(net, node)
    return net


class ActivationQuantizer(nn.Module):
    """Rounds a tensor to steps of one scale. Buffers: scale float32, zero_point int32, both of shape ()."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        low, high = min(low, 0.0), max(high, 0.0)
        scale = (high - low) / (HIGHEST - LOWEST) or 1.0
        self.register_buffer("scale", torch.tensor(scale))
        self.register_buffer("zero_point", torch.tensor(round(LOWEST - low / scale), dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(x.float(), self.scale, self.zero_point, LOWEST, HIGHEST)


class WeightQuantizer(nn.Module):
    """Rounds a weight to steps of its channels' scales, which follow the weight until they are fixed.

    Buffers: scale float32, zero_point int32 (all zero), both (channels,).
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, channels: int, axis: int) -> None:
        super().__init__()
        self.axis, self.is_fixed = axis, False
        self.register_buffer("scale", torch.ones(channels))
        self.register_buffer("zero_point", torch.zeros(channels, dtype=torch.int32))

    def forward(self, weight: Tensor) -> Tensor:
        scale = self.scale if self.is_fixed else self._scale_of(weight)
        return torch.fake_quantize_per_channel_affine(weight, scale, self.zero_point, self.axis, -HIGHEST, HIGHEST)

    def fix(self, weight: Tensor) -> None:
        """Keep the scales that a weight has now; a second call changes nothing."""
        if not self.is_fixed:
            self.scale.copy_(self._scale_of(weight))
            self.is_fixed = True

    def _scale_of(self, weight: Tensor) -> Tensor:
        """Of an empty channel the finest of the others: its bias is still rounded to steps of it."""
        largest = weight.detach().transpose(0, self.axis).flatten(1).abs().amax(1)
        finest = torch.where(largest > 0, largest, torch.inf).amin()
        return torch.where(largest > 0, largest, torch.where(finest < torch.inf, finest, 1.0)) / HIGHEST


class _Ranges(fx.Interpreter):
    """Runs the float network and notes, of every node that computes from the input, the range of its values."""

    def __init__(self, net: fx.GraphModule, percentile: float) -> None:
        super().__init__(net)
        self.percentile = percentile
        self.varying: set[fx.Node] = set()  # tensors and tuples of them, not sizes
        self._seen: dict[fx.Node, list[tuple[float, float]]] = {}

    @torch.no_grad()
    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "output" or not isinstance(value, Tensor | tuple | list):
            return value
        if n.op == "placeholder" or any(source in self.varying for source in n.all_input_nodes):
            self.varying.add(n)
            if isinstance(value, Tensor) and value.is_floating_point():
                is_answer = any(user.op == "output" for user in n.users)
                self._seen.setdefault(n, []).append(_range(value.flatten(), 100 if is_answer else self.percentile))
        return value

    def has(self, node: fx.Node) -> bool:
        return node in self._seen

    def of(self, node: fx.Node) -> tuple[float, float]:
        lows, highs = zip(*self._seen[node], strict=True)
        if self.percentile == 100:
            return min(lows), max(highs)
        return sum(lows) / len(lows), sum(highs) / len(highs)


def _range(values: Tensor, percentile: float) -> tuple[float, float]:
    rank = max(1, round(percentile / 100 * values.numel()))
    if rank == values.numel():
        return float(values.min()), float(values.max())
    return float(values.kthvalue(values.numel() - rank + 1)[0]), float(values.kthvalue(rank)[0])


def _check(net: fx.GraphModule, ranges: _Ranges) -> None:
    """Raise a PlanError for what would be multiplied in float without a word."""
    for node in net.graph.nodes:
        module = module_of(net, node)
        if module is not None and not isinstance(module, STAYS_FLOAT) and any(True for _ in module.parameters()):
            raise PlanError(f"{node.target!r} ({type(module).__name__}) has parameters that int8 does not cover")
        if node.target in PRODUCTS and not ranges.varying.issuperset(node.all_input_nodes):
            raise PlanError(f"{node.name!r} multiplies by parameters, but is no convolution or linear layer")
        if node.target in LAYERS and argument(node, 0, "input") not in ranges.varying:
            raise PlanError(
                f"{node.name!r} reads a parameter and not what comes from the input; int8 does not cover it"
            )
        if node.target in LAYERS and parameter_of(argument(node, 1, "weight")) is None:
            raise PlanError(f"the weight of {node.name!r} is computed from others; make it a parameter first")


def _rounded(net: fx.GraphModule, ranges: _Ranges) -> Iterator[fx.Node]:
    """The nodes whose results are rounded."""
    in_steps: set[fx.Node] = set()
    for node in net.graph.nodes:
        sources = [source for source in node.all_input_nodes if source in ranges.varying]
        if sources and _is(net, node, MOVES) and in_steps.issuperset(sources):
            in_steps.add(node)
        elif ranges.has(node):
            only = next(iter(node.users)) if len(node.users) == 1 and node.op != "placeholder" else None
            if only is None or not _is(net, only, CLAMPS):
                in_steps.add(node)
                yield node


def _is(net: fx.GraphModule, node: fx.Node, kinds: tuple[object, ...]) -> bool:
    """Whether a node calls one of these functions, methods or modules. To pad with other numbers than 0 is no move."""
    if node.target is F.pad and argument(node, 3, "value"):
        return False
    return (node.target if (module := module_of(net, node)) is None else type(module)) in kinds


def _round(net: fx.GraphModule, node: fx.Node, name: str, quantizer: nn.Module) -> None:
    net.add_submodule(f"{FOLDER}.{name}", quantizer)
    with net.graph.inserting_after(node):
        replace(node, net.graph.call_module(f"{FOLDER}.{name}", (node,)))


def _round_bias(net: fx.GraphModule, layer: fx.Node) -> None:
    """A bias in whole steps of the int32 sum, if only one call of one layer reads it."""
    node = argument(layer, 2, "bias")
    name = parameter_of(node)
    if name is None or len(node.users) > 1:
        return
    source = argument(layer, 0, "input")
    while not isinstance(steps := module_of(net, source), ActivationQuantizer):
        source = source.all_input_nodes[0]
    weight = module_of(net, argument(layer, 1, "weight"))
    assert isinstance(weight, WeightQuantizer), "every weight has one"
    bias = net.get_parameter(name)
    step = (weight.scale * steps.scale).repeat(len(bias) // len(weight.scale))  # transposed: a scale for all groups
    bias.copy_(torch.round(bias / step) * step)
