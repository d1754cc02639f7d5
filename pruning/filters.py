"""Filter masks: what goes with a filter, and whether what reads it sees nothing.

A filter that is masked takes along its bias and the scale and shift of its batch norm, so that its output is exactly
zero. That makes it *removable* only if the zero arrives as zero: a sigmoid turns it into 0.5, a later batch norm into
its shift. Such layers are refused here; channel groups (`Wiring.masks`) handle them, since they also mask the weights
that read the channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from pruning.wiring import wire
from workloads.errors import PlanError
from workloads.graph import Layer, LayerGraph, Op
from workloads.reference import activate

PASSING = frozenset(
    {Op.RESHAPE, Op.TRANSPOSE, Op.SLICE, Op.PAD, Op.CONCAT, Op.EXPAND, Op.UPSAMPLE, Op.PIXEL_SHUFFLE}
    | {Op.MAX_POOL, Op.AVG_POOL, Op.MEAN, Op.ACTIVATION}
)
"""Ops that hand zeros on, if their activation does."""


def filter_companions(
    model: nn.Module, example_inputs: tuple[Tensor, ...], parameters: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """For each weight the parameters that are masked with its filters: bias, batch-norm scale and shift.

    Raises:
        PlanError: a layer's zeros would not arrive as zeros; names it and what follows it.
    """
    wiring = wire(model, example_inputs)
    found = {}
    for parameter in parameters:
        layers = wiring.layers_of(parameter)
        for layer in layers:
            check_zeros_arrive(wiring.graph, layer)
        found[parameter] = tuple(dict.fromkeys(name for layer in layers for name in wiring.companions(layer.name)))
    return found


def check_zeros_arrive(graph: LayerGraph, layer: Layer) -> None:
    """Raise a PlanError if a channel of zeros would be anything else where it is read."""
    for reader, reason in _disturbances(graph, layer, set()):
        raise PlanError(
            f"filters of {layer.name!r} cannot be masked alone: {reader!r} {reason}, so what reads them would still "
            "see them; prune the channel group instead, or keep the layer"
        )


def _disturbances(graph: LayerGraph, layer: Layer, seen: set[str]) -> Iterator[tuple[str, str]]:
    """Layers from here on that make something else of zero, and what they do."""
    if layer.name in seen:
        return
    seen.add(layer.name)
    if not maps_zero_to_zero(layer.activation):
        yield layer.name, f"applies {layer.activation}, which does not map zero to zero"
    for reader in (graph[name] for name in graph.consumers[layer.name]):
        if reader.op is Op.ACTIVATION and not maps_zero_to_zero(reader.attributes["kind"]):
            yield reader.name, f"applies {reader.attributes['kind']}, which does not map zero to zero"
        elif reader.op is Op.NORM:
            yield reader.name, "normalises and shifts them"
        elif reader.op is Op.ADD and len(reader.inputs) == 1 and reader.attributes.get("scalar", 0):
            yield reader.name, f"adds {reader.attributes['scalar']}"
        elif reader.op in PASSING:
            yield from _disturbances(graph, reader, seen)


def maps_zero_to_zero(activation: str) -> bool:
    """Whether an activation text means a function with f(0) = 0.

    >>> [maps_zero_to_zero(text) for text in ("", "relu", "sigmoid", "hardtanh(0,6)", "hardtanh(1,6)", "prelu")]
    [True, True, False, True, False, True]
    """
    return activation in ("", "prelu") or float(activate(torch.zeros(()), activation)) == 0


def kept_filters(mask: Tensor, is_transposed: bool) -> Tensor:
    """bool (k,): filters of which any weight is kept; of a transposed convolution they lie on the second axis."""
    return (mask.transpose(0, 1) if is_transposed else mask).flatten(1).any(1)


def is_transposed(model: nn.Module, parameter: str) -> bool:
    """Whether a weight is that of a transposed convolution."""
    module = model.get_submodule(parameter.rpartition(".")[0])
    return isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d)
