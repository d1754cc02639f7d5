"""Which parameters of a module are weights that can be pruned, in the order in which they run."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from pruning.evaluation import evaluating
from pruning.masks import MaskedWeight
from workloads.errors import PlanError, unknown_name

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.Linear)


def prunable_weights(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> dict[str, str]:
    """Layer name to parameter name ("conv1" -> "conv1.weight"), in the order of a forward pass.

    A layer that runs several times counts where it first runs; one that does not run is left out.

    Raises:
        PlanError: no layer with weights runs.
    """
    order: list[str] = []

    def note(name: str) -> None:
        if name not in order:
            order.append(name)

    modules = [(name, module) for name, module in model.named_modules() if isinstance(module, WEIGHTED)]
    hooks = [module.register_forward_pre_hook(lambda *_, name=name: note(name)) for name, module in modules]
    try:
        with torch.no_grad(), evaluating(model):
            model(*example_inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if not order:
        kinds = ", ".join(kind.__name__ for kind in WEIGHTED)
        raise PlanError(f"the model has no layer with weights to prune; known are {kinds}")
    return {name: f"{name}.weight" if name else "weight" for name in order}


def chosen_weights(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...],
    *,
    keep: Sequence[str] = (),
    prune_first: bool = False,
    prune_last: bool = False,
    prune_pointwise: bool = True,
    named: Sequence[str] | None = None,
) -> dict[str, str]:
    """The layers that a method prunes, name to parameter name, in the order of a forward pass.

    Args:
        keep: layers that stay dense, or modules with all their layers.
        prune_first, prune_last: whether the first layer and the classifier are pruned.
        prune_pointwise: whether 1x1 convolutions and linear layers are.
        named: prune exactly these, but for `keep`, whatever the three say.

    Raises:
        PlanError: a name is no layer with weights, or no layer is left.
    """
    layers = prunable_weights(model, example_inputs)
    inside = {name: {layer for layer in layers if layer == name or layer.startswith(f"{name}.")} for name in keep}
    for name in (*(name for name, found in inside.items() if not found), *(named or ())):
        if name not in layers:
            raise PlanError(str(unknown_name("layer with weights", name, layers)))
    order = list(layers)
    spared = {name for found in inside.values() for name in found}
    if named is None:
        spared |= {*order[: not prune_first], *order[len(order) - (not prune_last) :]}
        spared |= set() if prune_pointwise else {name for name in order if _is_pointwise(model.get_submodule(name))}
    found = {name: layers[name] for name in order if name not in spared and (named is None or name in named)}
    for name in found:
        parts = getattr(getattr(model.get_submodule(name), "parametrizations", {}), "weight", ())
        if foreign := [type(part).__name__ for part in parts if not isinstance(part, MaskedWeight)]:
            raise PlanError(
                f"the weight of {name!r} is computed by {', '.join(foreign)}; end that first "
                "(torch.nn.utils.parametrize.remove_parametrizations), or give the layer in keep"
            )
    if not found:
        left = "; ".join(left_dense(model, (), example_inputs))
        raise PlanError(f"nothing to prune: {left}; try prune_first=True or prune_last=True")
    return found


def left_dense(model: nn.Module, chosen: Collection[str], example_inputs: tuple[Tensor, ...]) -> tuple[str, ...]:
    """What a method leaves as it is, a line each: layers that were not chosen, that never run by themselves, and
    weights of kinds it does not know.

    Args:
        model: without attached masks. chosen: names of layers, as `chosen_weights` gives them.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, WEIGHTED)}
    running = prunable_weights(model, example_inputs)
    spared = [name for name in layers if name not in chosen and name in running]
    idle = [name for name in layers if name not in running]
    others = [
        f"{name}.{leaf} ({type(module).__name__})" if name else f"{leaf} ({type(module).__name__})"
        for name, module in model.named_modules()
        for leaf, weight in module.named_parameters(recurse=False)
        if weight.dim() > 1 and name not in layers
    ]
    said = [f"left dense, as first layer, classifier or asked for: {', '.join(spared)}"] if spared else []
    said += [f"left dense, since no call of theirs was seen: {', '.join(idle)}"] if idle else []
    kinds = ", ".join(kind.__name__ for kind in WEIGHTED)
    return (*said, *([f"left dense, since only weights of {kinds} are pruned: {', '.join(others)}"] if others else []))


def _is_pointwise(layer: nn.Module) -> bool:
    """Whether a kernel is a single weight."""
    return layer.weight[0, 0].numel() == 1  # type: ignore[index]
