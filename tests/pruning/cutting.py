"""Random choices of units, and the law of surgery: the smaller module answers as the masked one does."""

import copy

import numpy as np
import torch
from torch import Tensor, nn

from pruning.plan import PruningPlan
from pruning.surgery import cut
from pruning.wiring import Wiring


def random_units(wiring: Wiring, rng: np.random.Generator, share: float = 0.6) -> dict[str, np.ndarray]:
    """Of every group that can lose any, about this share of the units; at random, but for a group's minimum."""
    found = {}
    for group in map(wiring.analysis.group, wiring.prunable):
        count = min(group.size - 1, max(group.minimum, round(share * group.size)))
        units = rng.choice(group.size, count, replace=False)
        if group.minimum > 1:  # some choices would leave a layer without channels
            least = group.order[: group.minimum]
            units = np.concatenate([least, np.setdiff1d(units, least)])[: max(count, group.minimum)]
        found[group.name] = np.sort(units)
    return found


def as_plan(wiring: Wiring, kept: dict[str, np.ndarray], **fields) -> PruningPlan:
    sizes = {name: wiring.analysis.group(name).size for name in kept}
    return PruningPlan("test", {name: tuple(units.tolist()) for name, units in kept.items()}, sizes, **fields)


def compare(model: nn.Module, wiring: Wiring, kept: dict[str, np.ndarray], x: tuple[Tensor, ...]) -> nn.Module:
    """The cut model, after comparing it with the masked one."""
    small = cut(model, wiring, kept)
    assert_answers_alike(small, wiring.masked(model, kept), x)
    return small


def assert_answers_alike(small: nn.Module, masked: nn.Module, x: tuple[Tensor, ...]) -> None:
    """In float64, where nothing hides in rounding."""
    with torch.no_grad():
        found, wanted = (copy.deepcopy(model).double()(*(item.double() for item in x)) for model in (small, masked))
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
