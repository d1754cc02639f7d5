"""Magnitude pruning: the smallest weights go. The baseline of the field and the smallest honest example of a method.

Source: Han et al., "Learning both Weights and Connections", NIPS 2015 (one shot); Zhu and Gupta, "To prune, or not to
prune", 2017 (gradual).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from pruning import masks
from pruning.filters import filter_companions, is_transposed, kept_filters
from pruning.granularity import GRANULARITIES, mask
from pruning.layers import prunable_weights
from pruning.methods.base import Inputs, Pruner, register
from pruning.patterns import four_entry_library
from pruning.schedule import CubicSchedule
from workloads.errors import PlanError, unknown_name

Densities = float | Mapping[str, float]
Scope = Literal["layer", "global"]


def magnitude_masks(
    model: nn.Module, names: Sequence[str], density: Densities, granularity: str = "weight", scope: Scope = "layer"
) -> dict[str, Tensor]:
    """Masks by parameter name that keep the largest weights.

    Args:
        names: the weights to prune.
        density: kept fraction of each weight, or by name; with scope "global" of all of them together.
        scope: "layer" ranks inside each weight, "global" ranks the single weights of all `names` against each other.

    Raises:
        PlanError: a density out of range, or what `check_scope` refuses.
    """
    check_scope(density, granularity, scope)
    weights = {name: masks.dense_weight(model, name) for name in names}
    if scope == "layer":
        shares = dict(density) if isinstance(density, Mapping) else dict.fromkeys(names, density)
        return {name: _mask(model, name, share, granularity) for name, share in shares.items() if name in weights}
    assert not isinstance(density, Mapping)
    ranked = torch.cat([weight.flatten() for weight in weights.values()])
    parts = mask(ranked[None], density, "weight")[0].split([weight.numel() for weight in weights.values()])
    return {name: part.view(weights[name].shape) for name, part in zip(weights, parts, strict=True)}


def _mask(model: nn.Module, name: str, density: float, granularity: str) -> Tensor:
    """Filters of a transposed convolution lie on the second axis of its weight."""
    weight = masks.dense_weight(model, name)
    if not is_transposed(model, name):
        return mask(weight, density, granularity)
    return mask(weight.transpose(0, 1), density, granularity).transpose(0, 1)


def check_scope(density: Densities, granularity: str, scope: str) -> None:
    """Raise a PlanError for scope "global" with other groups than single weights or with densities by name."""
    if scope not in ("layer", "global"):
        raise unknown_name("scope", scope, ("layer", "global"))
    if scope == "global" and (isinstance(density, Mapping) or granularity != "weight"):
        raise PlanError("scope 'global' ranks single weights by one density; use scope 'layer' for anything else")


class _Magnitude(Pruner):
    """What both methods share: which weights, how dense, and the rule that something must be removed.

    Args:
        model: not modified.
        example_inputs: one batch, run once to see which layer comes first and which last.
        total_steps: optimizer steps of the training to come.
        density: kept fraction, or by layer name ("layer1.0.conv1").
        granularity: a name of `pruning.granularity.GRANULARITIES`.
        scope: "layer" or "global", as `magnitude_masks`.
        keep: names of layers that stay dense.
        prune_first, prune_last: whether the first layer and the classifier are pruned; ignored for layers that
            `density` names.

    Raises:
        PlanError: nothing would be removed, or a name is no layer with weights.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Inputs,
        total_steps: int = 1,
        *,
        density: Densities = 0.5,
        granularity: str = "weight",
        scope: Scope = "layer",
        keep: Sequence[str] = (),
        prune_first: bool = False,
        prune_last: bool = False,
    ) -> None:
        super().__init__(model, total_steps)
        if granularity not in GRANULARITIES:
            raise unknown_name("granularity", granularity, GRANULARITIES)
        check_scope(density, granularity, scope)
        layers = prunable_weights(self.model, example_inputs)
        for name in (*keep, *(density if isinstance(density, Mapping) else ())):
            if name not in layers:
                raise PlanError(str(unknown_name("layer with weights", name, layers)))
        order = list(layers)
        spared = {*keep, *(() if prune_first else order[:1]), *(() if prune_last else order[-1:])}
        if isinstance(density, Mapping):
            self.density: Densities = {layers[name]: share for name, share in density.items() if name not in keep}
        else:
            self.density = density
        chosen = [name for name in order if (name in density if isinstance(density, Mapping) else name not in spared)]
        self.names = tuple(layers[name] for name in chosen if name not in keep)
        self.granularity, self.scope = granularity, scope
        if not self.names:
            raise PlanError(f"nothing to prune: all {len(order)} layers with weights are kept dense; prune_first=True?")
        is_filter = granularity == "filter"
        self.companions = filter_companions(self.model, example_inputs, self.names) if is_filter else {}

    def masks_at(self, density: Densities) -> dict[str, Tensor]:
        """The masks of a density, of biases and batch norms too where whole filters go."""
        found = magnitude_masks(self.model, self.names, density, self.granularity, self.scope)
        for name, others in self.companions.items():
            kept = kept_filters(found[name], is_transposed(self.model, name))
            found |= {other: kept for other in others}
        return found

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        masks.set_masks(self.model, state["masks"])

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"masks": {k: m.clone() for k, m in masks.masks_of(self.model).items()}}


@register("one_shot_magnitude")
class OneShotMagnitude(_Magnitude):
    """Remove the smallest weights at once, before training; training then adjusts the rest."""

    EXAMPLES: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"density": 0.3},
        {"density": 0.5, "scope": "global", "prune_first": True, "prune_last": True},
        {"density": 0.5, "granularity": "kernel"},
        {"density": {"conv1": 0.25}, "granularity": "filter"},
    )

    def __init__(self, model: nn.Module, example_inputs: Inputs, total_steps: int = 1, **options: Any) -> None:
        super().__init__(model, example_inputs, total_steps, **options)
        found = self.masks_at(self.density)
        if all(bool(one.all()) for one in found.values()):
            raise PlanError(f"density {self.density} removes none of the {len(found)} weights; choose a smaller one")
        masks.attach(self.model, found)

    def after_step(self) -> None:
        """Nothing: the masks are fixed."""


@register("gradual_magnitude")
class GradualMagnitude(_Magnitude):
    """Remove the smallest weights little by little along a cubic curve, while the network trains.

    Masks are made anew from the dense values behind them at every update, so a weight that was removed early can
    come back when others have shrunk below it. With patterns the first update takes every kernel to its pattern, and
    the curve goes on from there by removing kernels.

    Args:
        begin, end: fractions of `total_steps` at which pruning starts and is complete.
        frequency: optimizer steps between updates; by default a hundredth of the pruning phase.

    Source: Zhu and Gupta, "To prune, or not to prune", 2017, equation 1.
    """

    EXAMPLES: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"density": 0.3, "end": 1.0},
        {"density": 0.25, "granularity": "filter", "begin": 0.25, "frequency": 2},
        {"density": 0.25, "granularity": "pattern", "end": 1.0},
    )

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Inputs,
        total_steps: int,
        *,
        begin: float = 0.0,
        end: float = 0.75,
        frequency: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, example_inputs, total_steps, **options)
        first, last = round(begin * total_steps), round(end * total_steps)
        every = frequency or max(1, (last - first) // 100)
        by_name = self.density if isinstance(self.density, Mapping) else {"": self.density}
        if not any(share < 1 for share in by_name.values()):
            raise PlanError(f"density {self.density} removes nothing; choose one below 1")
        self.schedules = {
            name: CubicSchedule(1 - share, first, last, every) for name, share in by_name.items() if share < 1
        }
        names = (*self.names, *(other for others in self.companions.values() for other in others))
        start = {name: torch.ones_like(masks.dense_weight(self.model, name), dtype=torch.bool) for name in names}
        masks.attach(self.model, start)

    def after_step(self) -> None:
        schedule = next(iter(self.schedules.values()))
        if schedule.is_update(self.steps_done):
            masks.set_masks(self.model, self.masks_at(self._density_now()))

    def _density_now(self) -> Densities:
        now = {name: 1 - schedule.sparsity(self.steps_done) for name, schedule in self.schedules.items()}
        if self.granularity == "pattern":  # between dense and patterns there is nothing
            most = four_entry_library().entries / 9
            now = {name: min(share, most) if share < 1 else share for name, share in now.items()}
        return now if isinstance(self.density, Mapping) else now[""]
