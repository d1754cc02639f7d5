"""Random pruning: what is left of a network if nothing is known of its weights. The baseline below all others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pruning import masks
from pruning.methods.base import Inputs, register
from pruning.methods.masked import Gradual

LEAST = 2.0**-25
"""Score of a weight that an earlier pruning left; those that it removed have 0 and are the first to go."""


@register("random")
class Random(Gradual):
    """Remove weights, or whole groups of them, in a random order that is drawn once.

    Every weight has a score, uniform in 0 .. 1, which never changes: what is gone stays gone. Groups of equal size
    are equally likely to go; a smaller one at the edge of a layer goes earlier. Weights that an earlier pruning removed
    go first, and count as removed.

    Args:
        seed: of the order.
        at_once: remove everything before training; `begin`, `end` and `frequency` then mean nothing.
    """

    EXAMPLES: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"density": 0.3, "end": 1.0},
        {"density": 0.5, "at_once": True, "seed": 3},
        {"density": 0.25, "granularity": "filter", "end": 0.5},
        {"density": 0.5, "granularity": "2:4", "at_once": True},
    )

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Inputs,
        total_steps: int = 1,
        *,
        seed: int = 0,
        at_once: bool = False,
        **options: Any,
    ) -> None:
        self.seed, self.at_once = seed, at_once
        super().__init__(model, example_inputs, total_steps, **options)
        if at_once:
            masks.set_masks(self.model, self.masks_at(self.density))

    def scores(self) -> Mapping[str, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        weights = {name: masks.dense_weight(self.model, name) for name in self.names}
        drawn = {name: torch.rand(w.shape, generator=generator).to(w.device) for name, w in weights.items()}
        gone = {name: ~mask for name, mask in masks.baked_masks(self.model).items() if name in drawn}
        return drawn | {name: drawn[name].clamp(min=LEAST).masked_fill(zeros, 0) for name, zeros in gone.items()}

    @property
    def is_settled(self) -> bool:
        return self.at_once or super().is_settled

    def after_step(self) -> None:
        if not self.at_once:
            super().after_step()
