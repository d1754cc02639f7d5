"""What the inputs of a layer look like, as the matrix that its weights multiply.

A convolution or linear layer is a product of matrices: each filter is a row over the *features* of its input, one for
every weight of a filter, and each output position reads one value of every feature. Methods that judge weights by
their inputs need sums over all positions of all pictures: squares (`pruning.methods.wanda`) or products of pairs
(`pruning.methods.sparsegpt`).

Letters: g groups, k filters, c input channels of a group, r x s kernels, f = r s c features in the order (r, s, c).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning.evaluation import Batch, evaluating


def features(module: nn.Module, x: Tensor) -> Tensor:
    """What the filters of a layer multiply.

    Args:
        module: Linear, Conv1d or Conv2d.
        x: its input, padding excluded.

    Returns:
        Of the dtype of x, (g, positions, f); positions are those of all outputs of all pictures.

    >>> conv = nn.Conv2d(1, 1, (1, 2), padding=(0, 1))
    >>> features(conv, torch.tensor([[[[3.0, 5.0]]]])).tolist()
    [[[0.0, 3.0], [3.0, 5.0], [5.0, 0.0]]]
    """
    if isinstance(module, nn.Linear):
        return x.reshape(1, -1, module.in_features)
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    x = x.reshape(-1, *x.shape[1 - module.weight.dim() :])
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = F.pad(x, module._reversed_padding_repeated_twice, mode)
    kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
    if isinstance(module, nn.Conv1d):
        x, kernel, stride, dilation = x.unsqueeze(2), (1, *kernel), (1, *stride), (1, *dilation)
    columns = F.unfold(x, kernel, dilation, 0, stride)
    columns = columns.unflatten(1, (module.groups, module.in_channels // module.groups, -1))  # n, g, c, r s, positions
    return columns.permute(1, 0, 4, 3, 2).flatten(3).flatten(1, 2)


def as_rows(weight: Tensor, groups: int = 1) -> Tensor:
    """A weight (k, c, ...) as the matrices that `features` go with, (g, k / g, f)."""
    return weight.movedim(1, -1).flatten(1).unflatten(0, (groups, -1))


def from_rows(rows: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `as_rows`, for a weight of that shape."""
    return rows.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1)


@torch.no_grad()
def input_sums(
    model: nn.Module,
    layers: Sequence[str],
    batches: Iterable[Batch],
    reduce: Callable[[nn.Module, Tensor], Tensor],
) -> dict[str, Tensor]:
    """For each layer the sum of `reduce(module, input)` over all batches, in eval mode.

    Args:
        model: run, not modified.
        layers: names of modules with one input; one that runs several times adds up all of its inputs.
        reduce: to a tensor whose shape does not depend on the batch.

    Returns:
        Layer -> float64.
    """
    sums: dict[str, Tensor] = {}

    def note(name: str, module: nn.Module, x: Tensor) -> None:
        found = reduce(module, x.float()).double()
        sums[name] = sums[name] + found if name in sums else found

    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda module, args, name=name: note(name, module, args[0]))
        for name in layers
    ]
    device = next(model.parameters()).device
    try:
        with evaluating(model):
            for x, _ in batches:
                model(x.to(device))
    finally:
        for hook in hooks:
            hook.remove()
    return sums
