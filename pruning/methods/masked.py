"""What methods that rank weights have in common: which layers, how dense, at which granularity, ranked by which scores.

A method of this kind is small: it says how weights score (`scores`, by default their magnitude) and when masks
change. `OneShot` sets them once, before training; `Gradual` along a cubic curve.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from pruning import masks
from pruning.filters import filter_companions, is_transposed, kept_filters
from pruning.granularity import check_granularity, largest_density, mask
from pruning.layers import chosen_weights, left_dense
from pruning.masks import MaskedWeight
from pruning.methods.base import Inputs, Pruner
from pruning.patterns import PatternLibrary
from pruning.schedule import CubicSchedule
from workloads.errors import PlanError, unknown_name

Densities = float | Mapping[str, float]
Scope = Literal["layer", "global"]


class MaskPruner(Pruner):
    """A method that keeps the weights of highest score.

    Args:
        model: not modified.
        example_inputs: one batch, run once to see which layer comes first and which last.
        total_steps: optimizer steps of the training to come.
        density: kept fraction, or by layer name ("layer1.0.conv1").
        granularity: what is removed together, as in `pruning.granularity`.
        scope: "layer" ranks inside each layer, "global" ranks the single weights of all layers against each other.
        library: the patterns of granularity "pattern"; by default PCONV's four.
        keep: layers that stay dense, or modules with all their layers.
        prune_first, prune_last, prune_pointwise: whether the first layer, the classifier, and 1x1 convolutions and
            linear layers are pruned; ignored for layers that `density` names.

    Raises:
        PlanError: nothing would be removed, or a name is no layer with weights.
        ConfigError: an unknown scope or granularity.
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
        library: PatternLibrary | None = None,
        keep: Sequence[str] = (),
        prune_first: bool = False,
        prune_last: bool = False,
        prune_pointwise: bool = True,
    ) -> None:
        super().__init__(model, total_steps)
        check_granularity(granularity)
        check_scope(density, granularity, scope)
        named = tuple(density) if isinstance(density, Mapping) else None
        layers = chosen_weights(
            self.model, example_inputs, keep=keep, prune_first=prune_first, prune_last=prune_last,
            prune_pointwise=prune_pointwise, named=named,
        )  # fmt: skip
        if isinstance(density, Mapping):
            self.density: Densities = {layers[name]: density[name] for name in layers}
        else:
            self.density = density
        self.names = tuple(layers.values())
        self.notes = left_dense(self.model, layers, example_inputs)
        self.granularity, self.scope, self.library = granularity, scope, library
        is_filter = granularity == "filter"
        self.companions = filter_companions(self.model, example_inputs, self.names) if is_filter else {}

    def scores(self) -> Mapping[str, Tensor]:
        """Importance of every weight by parameter name, of its shape, at least zero; by default its magnitude."""
        return {name: masks.dense_weight(self.model, name).abs() for name in self.names}

    def masks_at(self, density: Densities) -> dict[str, Tensor]:
        """The masks of a density, of biases and batch norms too where whole filters go."""
        found = ranked_masks(self.model, self.scores(), density, self.granularity, self.scope, self.library)
        for name, others in self.companions.items():
            kept = kept_filters(found[name], is_transposed(self.model, name))
            found |= {other: kept for other in others}
        return found

    def note_extremes(self, found: Mapping[str, Tensor]) -> None:
        """Note layers that the masks of a density leave whole, or without a weight.

        Raises:
            PlanError: all are whole.
        """
        wanted = self.density if isinstance(self.density, Mapping) else dict.fromkeys(self.names, self.density)
        whole = [name for name in self.names if bool(found[name].all())]
        if len(whole) == len(self.names):
            nothing = f"removes none of the weights of {len(whole)} layers"
            raise PlanError(f"density {self.density} {nothing}; choose a smaller one")
        extremes = {
            f"left dense at granularity {self.granularity}": [n for n in whole if wanted[n] < 1],
            "no weight is left": [name for name in self.names if not bool(found[name].any())],
        }
        for what, names in extremes.items():
            if names:
                self.notes += (f"{what}: {', '.join(name.removesuffix('.weight') for name in names)}",)

    def attach_dense(self, kind: Callable[[Tensor, int], MaskedWeight] = MaskedWeight) -> None:
        """Masks on everything that may lose weights, which keep all for now."""
        names = (*self.names, *(other for others in self.companions.values() for other in others))
        ones = {name: torch.ones_like(masks.dense_weight(self.model, name), dtype=torch.bool) for name in names}
        masks.attach(self.model, ones, kind)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        masks.set_masks(self.model, state["masks"])

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"masks": {k: m.clone() for k, m in masks.attached_masks(self.model).items()}}


class OneShot(MaskPruner):
    """Remove the weights of lowest score at once, before training; training then adjusts the rest."""

    EXAMPLES: ClassVar[tuple[Mapping[str, Any], ...]] = ({"density": 0.3}, {"density": 0.5, "granularity": "kernel"})

    def __init__(self, model: nn.Module, example_inputs: Inputs, total_steps: int = 1, **options: Any) -> None:
        super().__init__(model, example_inputs, total_steps, **options)
        self.prepare()
        found = self.masks_at(self.density)
        self.note_extremes(found)
        masks.attach(self.model, found)

    def prepare(self) -> None:
        """What a method measures on the dense copy before its weights are scored; nothing by default."""

    @property
    def is_settled(self) -> bool:
        return True

    def after_step(self) -> None:
        """Nothing: the masks are fixed."""


class Gradual(MaskPruner):
    """Remove the weights of lowest score little by little along a cubic curve, while the network trains.

    Masks are made anew from the dense values behind them at every update, so a weight that was removed early can
    come back when others have shrunk below it. With patterns the first update takes every kernel to its pattern, and
    the curve goes on from there by removing kernels; N:M goes from M:M down, one weight at a time.

    Args:
        begin, end: fractions of `total_steps` at which pruning starts and is complete.
        frequency: optimizer steps between updates; by default a hundredth of the pruning phase.

    Source: Zhu and Gupta, "To prune, or not to prune", 2017, equation 1.
    """

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
        found = self.masks_at(self.density)  # what cannot be carried out is said now
        first, last = self.phase(begin, end)
        every = self.steps_between(frequency, (last - first) // 100)
        by_name = self.density if isinstance(self.density, Mapping) else {"": self.density}
        if not any(share < 1 for share in by_name.values()):
            raise PlanError(f"density {self.density} removes nothing; choose one below 1")
        self.note_extremes(found)
        self.schedules = {
            name: CubicSchedule(1 - share, first, last, every) for name, share in by_name.items() if share < 1
        }
        self.attach_dense()

    @property
    def is_settled(self) -> bool:
        return self.steps_done >= next(iter(self.schedules.values())).end

    def after_step(self) -> None:
        schedule = next(iter(self.schedules.values()))
        if schedule.is_update(self.steps_done):
            masks.set_masks(self.model, self.masks_now())

    def masks_now(self) -> dict[str, Tensor]:
        """The masks of this point of the ramp."""
        return self.masks_at(self.density_now())

    def density_now(self) -> Densities:
        """The schedule's density, or the nearest below it that the granularity has."""
        most = largest_density(self.granularity, self.library)
        now = {name: 1 - schedule.sparsity(self.steps_done) for name, schedule in self.schedules.items()}
        now = {name: min(share, most) if share < 1 else share for name, share in now.items()}
        return now if isinstance(self.density, Mapping) else now[""]


def ranked_masks(
    model: nn.Module,
    scores: Mapping[str, Tensor],
    density: Densities,
    granularity: str = "weight",
    scope: Scope = "layer",
    library: PatternLibrary | None = None,
) -> dict[str, Tensor]:
    """Masks by parameter name that keep the weights of highest score.

    Args:
        scores: parameter name -> importance, of the weight's shape.
        density: kept fraction of each weight, or by parameter name; with scope "global" of all of them together.
        scope: "layer" ranks inside each weight, "global" ranks the single weights of all against each other.

    Raises:
        PlanError, ConfigError: a density out of range, or what `check_scope` refuses.
    """
    check_scope(density, granularity, scope)
    if scope == "layer":
        shares = dict(density) if isinstance(density, Mapping) else dict.fromkeys(scores, density)
        return {
            name: _mask(scores[name], share, granularity, library, is_transposed(model, name))
            for name, share in shares.items()
            if name in scores
        }
    assert not isinstance(density, Mapping)
    ranked = torch.cat([score.flatten() for score in scores.values()])
    parts = mask(ranked[None], density, "weight")[0].split([score.numel() for score in scores.values()])
    return {name: part.view(scores[name].shape) for name, part in zip(scores, parts, strict=True)}


def _mask(scores: Tensor, density: float, granularity: str, library: PatternLibrary | None, transposed: bool) -> Tensor:
    """Filters of a transposed convolution lie on the second axis of its weight."""
    if not transposed:
        return mask(scores, density, granularity, library=library)
    return mask(scores.transpose(0, 1), density, granularity, library=library).transpose(0, 1)


def check_scope(density: Densities, granularity: str, scope: str) -> None:
    """See that a ranking can be carried out.

    Raises:
        ConfigError: an unknown scope.
        PlanError: scope "global" with other groups than single weights, or with densities by name.
    """
    if scope not in ("layer", "global"):
        raise unknown_name("scope", scope, ("layer", "global"))
    if scope == "global" and (isinstance(density, Mapping) or granularity != "weight"):
        raise PlanError("scope 'global' ranks single weights by one density; use scope 'layer' for anything else")
