"""Wanda: a weight matters as much as what it multiplies.

Source: Sun, Liu, Bair, Kolter, "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024,
equation 1 and section 3: |W_ij| ||X_j||_2, compared among the weights of one output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pruning import masks
from pruning.calibration import features, from_rows, input_sums
from pruning.evaluation import Labelled, labelled_batches
from pruning.filters import is_transposed
from pruning.methods.base import Inputs, register
from pruning.methods.masked import OneShot


@register("wanda")
class Wanda(OneShot):
    """Remove, at once, the weights of smallest magnitude times the norm of their input.

    Args:
        data: what the norms are measured on, as the dense network sees it; labels are not used.
        images: at most so many pictures.
        granularity: "row" (equally many of every filter) as published; "2:4" and others work too.

    Choices: the paper has linear layers only. Of a convolution X_j is the input as a weight's kernel position reads
    it, over all output positions; of a transposed one the whole input channel.
    """

    EXAMPLES: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"density": 0.3},
        {"density": 0.5, "granularity": "2:4", "prune_first": True, "prune_last": True},
        {"density": {"conv1": 0.25}, "granularity": "filter"},
    )
    NEEDS_DATA: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Inputs,
        total_steps: int = 1,
        *,
        data: Labelled,
        images: int = 512,
        granularity: str = "row",
        **options: Any,
    ) -> None:
        self.data, self.images = data, images
        super().__init__(model, example_inputs, total_steps, granularity=granularity, **options)

    def prepare(self) -> None:
        layers = {name.rpartition(".")[0]: name for name in self.names}
        batches = labelled_batches(self.data, 32, self.images)
        energies = input_sums(self.model, tuple(layers), batches, _energies)
        self.norms = {name: energies[layer].sqrt().float() for layer, name in layers.items()}

    def scores(self) -> Mapping[str, Tensor]:
        return {name: self._scores(name, norms) for name, norms in self.norms.items()}

    def _scores(self, name: str, norms: Tensor) -> Tensor:
        weight = masks.dense_weight(self.model, name)
        if is_transposed(self.model, name):
            return weight.abs() * norms.view(-1, *[1] * (weight.dim() - 1))
        each = norms[:, None].expand(-1, len(weight) // len(norms), -1)
        return weight.abs() * from_rows(each, weight.shape)


def _energies(module: nn.Module, x: Tensor) -> Tensor:
    """Sum of squares of every feature, (g, f); of a transposed convolution of every input channel, (c,)."""
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d):
        return x.reshape(-1, *x.shape[1 - module.weight.dim() :]).square().transpose(0, 1).flatten(1).sum(1)
    return torch.sum(features(module, x).square(), 1)
