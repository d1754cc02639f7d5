"""A finished network as a `torch.fx` graph whose layers are calls of functions, its batch norms folded.

Every convolution and linear layer, be it a module or a call on a raw parameter, is one call of `F.conv2d`, `F.linear`
and so on, whose weight and bias are read by name; all other modules stay calls of modules. Parameters keep their names.
Masks are multiplied with in the graph, since a graph module forgets buffers that no node reads when it is copied.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_weights

from pruning import masks
from pruning.layers import WEIGHTED
from workloads.errors import PlanError, first_line

TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
LAYERS = (F.linear, F.conv1d, F.conv2d, F.conv3d, *TRANSPOSED)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not isinstance(m, (*WEIGHTED, nn.Conv3d)) and super().is_leaf_module(m, module_qualified_name)


def trace_folded(model: nn.Module, example: Tensor) -> fx.GraphModule:
    """A copy in eval mode that answers the same, with every batch norm folded that one layer alone feeds.

    What a mask of a layer or of its norm holds at zero is masked afterwards too.

    Raises:
        PlanError: something is parametrized still, or the control flow depends on the values of a tensor.
    """
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            raise PlanError(f"{name!r} is parametrized; finish the pruning first (finalize, or masks.bake)")
    twin, baked = copy.deepcopy(model).eval(), masks.masks_of(model)
    try:
        net = fx.GraphModule(twin, _Tracer().trace(twin), type(model).__name__)
    except Exception as error:  # whatever the model's code makes of symbolic values
        reason = first_line(error)
        raise PlanError(f"{type(model).__name__} cannot be traced by torch.fx: {reason}") from error
    for node in net.graph.nodes:
        node.type = None  # annotations that are texts could not be pickled
    ShapeProp(net).propagate(example)
    for node in [node for node in net.graph.nodes if type(module_of(net, node)) in NORMS]:
        layer = node.all_input_nodes[0]
        if not _can_fold(net, layer, module_of(net, node)):
            continue
        names = _fold(net, layer, module_of(net, node))
        if baked.keys() & {*names, f"{node.target}.weight", f"{node.target}.bias"}:
            baked |= {name: net.get_parameter(name) != 0 for name in names}
        node.replace_all_uses_with(layer)
        net.graph.erase_node(node)
    for name, mask in baked.items():
        _multiply(net, name, mask)
    net.delete_all_unused_submodules()
    net.recompile()
    return net


def module_of(net: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that a node calls, if it calls one."""
    return net.get_submodule(str(node.target)) if node.op == "call_module" else None


def argument(node: fx.Node, position: int, name: str) -> Any:
    """What a call is given by position or by name; None where it is not given."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name)


def channel_axis(layer: fx.Node) -> int:
    """Of the output channels in a layer's weight."""
    return int(layer.target in TRANSPOSED)


def parameter_of(node: fx.Node | None) -> str | None:
    """The name of the parameter that a node reads, perhaps through its mask."""
    if node is not None and node.target is torch.mul and str(node.all_input_nodes[-1].target).endswith(masks.SUFFIX):
        node = node.all_input_nodes[0]
    return str(node.target) if node is not None and node.op == "get_attr" else None


def replace(node: fx.Node, by: fx.Node) -> None:
    """Let all who read the node read `by` instead, which goes on reading the node."""
    node.replace_all_uses_with(by, delete_user_cb=lambda user: user is not by)


def _can_fold(net: fx.GraphModule, layer: fx.Node, norm: nn.Module | None) -> bool:
    """Whether only the norm reads the layer, only the layer its parameters, and both have the same channels."""
    assert isinstance(norm, NORMS), "asked of batch norms only"
    if layer.target not in LAYERS or len(layer.users) > 1 or norm.running_mean is None:
        return False
    own = [node for node in (argument(layer, 1, "weight"), argument(layer, 2, "bias")) if node is not None]
    if any(node.op != "get_attr" or len(node.users) > 1 for node in own):
        return False
    channels = net.get_parameter(own[0].target).shape[channel_axis(layer)]  # of one group, if it is transposed
    is_per_channel = layer.target is not F.linear or len(layer.meta["tensor_meta"].shape) == 2
    return channels == norm.num_features and is_per_channel


def _fold(net: fx.GraphModule, layer: fx.Node, norm: nn.Module | None) -> tuple[str, str]:
    """Change the layer's parameters; the names of its weight and of its bias, which is made if there was none."""
    assert isinstance(norm, NORMS), "asked of batch norms only"
    assert norm.running_mean is not None, "checked before"
    assert norm.running_var is not None, "comes with the mean"
    weight, bias = str(argument(layer, 1, "weight").target), argument(layer, 2, "bias")
    shift = weight.removesuffix("weight") + "bias" if bias is None else str(bias.target)
    owner = net.get_submodule(weight.rpartition(".")[0])
    new = fuse_conv_bn_weights(
        net.get_parameter(weight), None if bias is None else net.get_parameter(shift), norm.running_mean,
        norm.running_var, norm.eps, norm.weight, norm.bias, transpose=layer.target in TRANSPOSED,
    )  # fmt: skip
    for name, tensor in zip((weight, shift), new, strict=True):
        setattr(owner, name.rpartition(".")[2], nn.Parameter(tensor.detach()))
    if bias is None:
        with net.graph.inserting_before(layer):
            bias = net.graph.get_attr(shift)
        rest = {name: value for name, value in layer.kwargs.items() if name != "bias"}
        layer.args, layer.kwargs = (*layer.args[:2], bias, *layer.args[3:]), rest
    return weight, shift


def _multiply(net: fx.GraphModule, name: str, mask: Tensor) -> None:
    """Put a mask beside its parameter, and let whoever reads the parameter read the product of both."""
    module, leaf = masks.owner(net, name)
    module.register_buffer(leaf + masks.SUFFIX, mask.clone())
    for node in [node for node in net.graph.nodes if node.op == "get_attr" and node.target == name]:
        with net.graph.inserting_after(node):
            kept = net.graph.get_attr(name + masks.SUFFIX)
        with net.graph.inserting_after(kept):
            replace(node, net.graph.call_function(torch.mul, (node, kept)))
