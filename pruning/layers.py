"""Which parameters of a module are weights that can be pruned, in the order in which they run."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pruning.evaluation import evaluating
from workloads.errors import PlanError

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
