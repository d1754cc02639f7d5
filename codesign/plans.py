"""From a candidate's options to a pruning plan: the units that stay, and magnitude masks on the weights that stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from codesign.space import Space
from pruning.granularity import mask
from pruning.plan import PruningPlan
from workloads.sparsity import WeightSparsity

if TYPE_CHECKING:
    from torch import nn

    from pruning.wiring import Wiring


def option_masks(model: nn.Module, wiring: Wiring, space: Space) -> dict[tuple[str, int], WeightSparsity]:
    """The real mask of every weights option on the whole layer, by (layer, option index)."""
    found = {}
    for variable in space.variables:
        if variable.kind == "weights":
            weight = model.get_parameter(wiring.weight_of(variable.of)).detach()
            for i, option in enumerate(variable.options[1:], 1):
                found[variable.of, i] = _zeros(weight, option.density, option.granularity)
    return found


def make_plan(
    model: nn.Module,
    wiring: Wiring,
    space: Space,
    choice: Sequence[int],
    ranking: Mapping[str, np.ndarray],
    name: str,
) -> PruningPlan:
    """A candidate as a plan.

    Args:
        choice: the option of each variable.
        ranking: channel group -> units, most important first.

    Masks are computed on the weights that stay, so that each layer keeps exactly its option's density.
    """
    chosen = [(v, v.options[int(i)]) for v, i in zip(space.variables, choice, strict=True) if i]
    channels = {
        v.of: tuple(sorted(int(unit) for unit in ranking[v.of][: option.count]))
        for v, option in chosen
        if v.kind == "channels"
    }
    cuts = wiring.analysis.kept_positions(channels)
    masks = {}
    for variable, option in chosen:
        if variable.kind == "weights":
            parameter = wiring.weight_of(variable.of)
            weight = model.get_parameter(parameter).detach().numpy()
            for axis in range(weight.ndim):
                if (positions := cuts.get((parameter, axis))) is not None:
                    weight = np.take(weight, positions, axis)
            masks[variable.of] = _zeros(torch.from_numpy(weight), option.density, option.granularity)
    sizes = {group: wiring.analysis.group(group).size for group in channels}
    return PruningPlan(name, channels, sizes, masks)


def _zeros(weight: torch.Tensor, density: float, granularity: str) -> WeightSparsity:
    return WeightSparsity.from_mask(mask(weight, density, granularity).numpy())
