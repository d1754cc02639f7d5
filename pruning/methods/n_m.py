"""N:M sparsity trained from the dense weights behind it, straight through the mask.

Plain straight-through training lets removed weights learn as if they were there, so masks keep changing and gradients
go ever more wrong. SR-STE pulls removed weights towards zero, which makes a mask that was found keep itself:

    W <- W - rate (g(W * mask) + strength (1 - mask) * W)

Source: Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch", ICLR 2021.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pruning import masks
from pruning.granularity import smallest_density
from pruning.masks import MaskedWeight
from pruning.methods.base import Inputs, register
from pruning.methods.masked import Densities, MaskPruner
from workloads.errors import PlanError


class StraightThrough(MaskedWeight):
    """weight * mask whose gradient also reaches the weights that are masked, until `is_open` ends."""

    is_open = True

    def forward(self, weight: Tensor) -> Tensor:
        masked = weight * self.mask
        return masked + (weight - weight.detach()) * ~self.mask if self.is_open else masked


@register("n_m")
class NOfM(MaskPruner):
    """Train with N of M weights from the first step, chosen anew after every step until `end`.

    Afterwards masks are fixed and the weights that stay are trained on alone.

    Args:
        density: of each layer or by name; by default N / M.
        granularity: any N:M.
        strength: lambda_W, by which removed weights decay.
        begin, end: fractions of `total_steps` between which masks move; before `begin` the network is dense.

    Choices: the decay is the gradient of `loss()`, strength / 2 * sum of squared removed weights; the paper adds it to
    the gradient itself. The paper moves masks to the very end: `end=1.0`.
    """

    EXAMPLES: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"granularity": "2:4"},
        {"granularity": "1:4", "begin": 0.25, "end": 1.0, "prune_last": True, "strength": 0.01},
    )

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Inputs,
        total_steps: int,
        *,
        density: Densities | None = None,
        granularity: str = "2:4",
        strength: float = 2e-4,
        begin: float = 0.0,
        end: float = 0.75,
        **options: Any,
    ) -> None:
        least = smallest_density(granularity)
        if not 0 < least < 1:
            raise PlanError(f"granularity {granularity!r}: n_m trains N:M with N < M, such as 2:4")
        if strength < 0:
            raise PlanError(self.refusal("must be at least 0", strength=strength))
        density = least if density is None else density
        super().__init__(model, example_inputs, total_steps, density=density, granularity=granularity, **options)
        self.first, self.last = self.phase(begin, end, may_be_empty=True)
        self.strength = strength
        self.note_extremes(self.masks_at(self.density))
        self.attach_dense(StraightThrough)
        self._follow()

    @property
    def is_settled(self) -> bool:
        return self.steps_done >= self.last

    def loss(self) -> Tensor:
        if self.is_settled:
            return super().loss()
        removed = [chain.original.masked_fill(chain[0].mask, 0) for chain in self._chains()]
        return self.strength / 2 * torch.stack([weight.square().sum() for weight in removed]).sum()

    def after_step(self) -> None:
        if self.steps_done <= self.last:
            self._follow()

    def _follow(self) -> None:
        """Masks of the weights as they are now, if it is time; at the end the way through closes."""
        if self.steps_done >= self.first:
            masks.set_masks(self.model, self.masks_at(self.density))
        self._set_open()

    def _set_open(self) -> None:
        for chain in self._chains():
            chain[0].is_open = not self.is_settled

    def _chains(self) -> Iterator[Any]:
        """Dense weight and parametrization of every layer."""
        for name in self.names:
            module, leaf = masks.owner(self.model, name)
            yield module.get_submodule(f"parametrizations.{leaf}")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._set_open()
