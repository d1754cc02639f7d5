"""Campfire: train a network that becomes sparse on the way, in a structure that is simple enough to compress.

Letters: a weight is (K, C, R, S), filters, input channels, kernels; q weights are kept of a kernel, d is the kept
fraction of a layer.

| granularity | what is removed | kept fraction |
|---|---|---|
| window | all but the q largest weights of every kernel, the same q in the whole layer | q / RS |
| ck | whole kernels, cells of the C x K plane, those of smallest L1 norm | kernels kept / CK |
| combined | both | the product |

Source: Gamboa et al., "Campfire: Compressible, Regularization-Free, Structured Sparse Training for Hardware
Accelerators", 2020, arXiv 2001.03253. Its abstract and introduction were at hand: gradual pruning inside one training,
masks fixed after a number of epochs, no regularisation, granularities within a kernel and a filter. The rest below is
inferred or chosen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from pruning import masks
from pruning.granularity import keep_best, kept_count, mask
from pruning.methods.base import Inputs, register
from pruning.methods.masked import Densities, Gradual
from workloads.errors import ConfigError, PlanError

FORMS = ("window", "ck", "combined")


@dataclass(frozen=True)
class KernelShare:
    """What a layer keeps.

    Attributes:
        weights: q, of every kernel that stays. kernels: how many stay.
    """

    weights: int
    kernels: int


@register("campfire")
class Campfire(Gradual):
    """Gradual pruning of windows, of kernels, or of both, frozen well before the end of training.

    The model may come untrained or trained. Pruned layers compute with the masked weight; the dense values stay behind
    the masks until `end`, so that a weight can come back while masks still change. Every kernel of a layer that stays
    keeps equally many weights: `workloads.windows` stores that without lengths or pointers.

    Choices, where the paper's text was not at hand:

    - Importance is magnitude, and a kernel's the L1 norm of all its weights; kernels are ranked inside their layer.
    - What a layer keeps in the end follows from its shape. On the way there the kernels removed and the weights
      removed of a kernel climb along one cubic curve, from none at `begin` to all at `end`, each rounded to the
      nearest count, so that neither ever falls. Between, "combined" is by up to a quarter of the product of its two
      sparsities sparser than the curve. `end` = 0.4 lets most of the training run with fixed masks.
    - Masks are recomputed `frequency` optimizer steps apart, by default a thirtieth of the ramp: about once an epoch
      where the ramp takes 30 epochs. Give the number of batches of an epoch for exactly that.
    - `density` is that of all pruned layers together, wherever their kernels allow. "ck" meets it to within a kernel a
      layer. "combined" keeps q = ceil(RS d^split) weights of a kernel and the share d RS / q of the kernels, so it
      meets any d too; `split` = 1 leaves as much to windows as ninths allow, 0 is "ck". "window" has only ninths: every
      layer keeps floor(RS d) or one more, and layers that keep one more are chosen so that the total comes closest to
      the target, early layers first among equally close choices.
    - Kernels of one weight (1x1, linear) have no window: there single weights are removed, at every granularity, or
      nothing with `prune_pointwise=False`; then they do not count in `density` either.
    - The first layer, the classifier, biases and batch norms stay dense; the first two can be asked for.

    Args:
        density: kept fraction, or by layer name; with "window" at least 1 / RS.
        granularity: "window", "ck" or "combined".
        split: of "combined", in 0..1, above.
        begin, end: fractions of `total_steps` at which pruning starts and is complete.
        frequency: optimizer steps between updates of the masks.
        options: of `MaskPruner`: keep, prune_first, prune_last, prune_pointwise.

    Raises:
        ConfigError: an unknown granularity, or a split out of range.
        PlanError: what `MaskPruner` refuses, or a density that windows cannot reach.
    """

    EXAMPLES: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"density": 0.3, "end": 0.5},
        {"density": 0.3, "granularity": "window", "prune_last": True},
        {"density": {"conv1": 0.3, "stem": 0.5}, "granularity": "ck", "begin": 0.25, "end": 1.0, "frequency": 2},
    )

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Inputs,
        total_steps: int,
        *,
        density: Densities = 0.3,
        granularity: str = "combined",
        split: float = 0.75,
        begin: float = 0.0,
        end: float = 0.4,
        frequency: int | None = None,
        **options: Any,
    ) -> None:
        if granularity not in FORMS:
            raise ConfigError(f"granularity {granularity!r}: campfire has {', '.join(FORMS)}")
        if not 0 <= split <= 1:
            raise ConfigError(f"split {split}, must lie in 0..1: 1 leaves most to windows, 0 all to kernels")
        self.form, self.split = granularity, split
        every = self.steps_between(frequency, round((end - begin) * total_steps) // 30)
        super().__init__(
            model, example_inputs, total_steps, density=density, granularity="window", begin=begin, end=end,
            frequency=every, **options,
        )  # fmt: skip

    @property
    def final_shares(self) -> dict[str, KernelShare]:
        """What every layer keeps from `end` on, by parameter name; it depends on shapes alone."""
        return self.shares(self.density)

    def shares(self, density: Densities) -> dict[str, KernelShare]:
        """What every layer keeps at a density, by parameter name."""
        named = density if isinstance(density, Mapping) else dict.fromkeys(self.names, density)
        wanted = dict.fromkeys(self.names, 1.0) | dict(named)
        if wrong := [share for share in wanted.values() if not 0 < share <= 1]:
            raise PlanError(f"density {wrong[0]:g}, must be above 0 and at most 1")
        planes, areas = self._sizes()
        if self.form == "window":
            counts = self._windows(wanted, planes, areas)
        else:
            split = self.split if self.form == "combined" else 0.0
            counts = {name: math.ceil(areas[name] * wanted[name] ** split - 1e-9) for name in self.names}
        found = {}
        for name, q in counts.items():
            rest = 1.0 if self.form == "window" and areas[name] > 1 else wanted[name] * areas[name] / q
            found[name] = KernelShare(q, kept_count(planes[name], rest))
        return found

    def shares_now(self) -> dict[str, KernelShare]:
        """What every layer keeps at this point of the ramp; neither count is ever larger than before."""
        schedule = next(iter(self.schedules.values()))
        done = schedule.sparsity(self.steps_done) / schedule.final
        planes, areas = self._sizes()
        return {
            name: KernelShare(_left(areas[name], last.weights, done), _left(planes[name], last.kernels, done))
            for name, last in self.final_shares.items()
        }

    @property
    def achieved_density(self) -> float:
        """Kept fraction of all pruned layers from `end` on; `density` may lie between what kernels allow."""
        planes, areas = self._sizes()
        kept = sum(share.weights * share.kernels for share in self.final_shares.values())
        return kept / sum(planes[name] * areas[name] for name in self.names)

    def _sizes(self) -> tuple[dict[str, int], dict[str, int]]:
        """CK and RS of every layer."""
        shapes = {name: masks.dense_weight(self.model, name).shape for name in self.names}
        planes = {name: shape[0] * shape[1] for name, shape in shapes.items()}
        return planes, {name: math.prod(shape[2:]) for name, shape in shapes.items()}

    def _windows(
        self, wanted: Mapping[str, float], planes: Mapping[str, int], areas: Mapping[str, int]
    ) -> dict[str, int]:
        """q of every layer, such that all layers with windows together come closest to what is wanted of them."""
        exact = {name: areas[name] * wanted[name] for name in self.names}
        if low := [name for name in self.names if areas[name] > 1 and exact[name] < 1 - 1e-9]:
            least = f"windows keep at least one weight of {areas[low[0]]}, {1 / areas[low[0]]:.4f}"
            raise PlanError(f"density {wanted[low[0]]:g} of {low[0]!r}: {least}; take combined or ck")
        counts = {name: max(1, math.floor(exact[name] + 1e-9)) for name in self.names}
        between = [name for name in self.names if areas[name] > 1 and exact[name] > counts[name] + 1e-9]
        missing = sum((exact[name] - counts[name]) * planes[name] for name in between)
        raised = closest_subset([planes[name] for name in between], missing)
        return counts | {name: counts[name] + 1 for name, up in zip(between, raised, strict=True) if up}

    def masks_at(self, density: Densities) -> dict[str, Tensor]:
        return self._masks(self.shares(density))

    def masks_now(self) -> dict[str, Tensor]:
        return self._masks(self.shares_now())

    def _masks(self, shares: Mapping[str, KernelShare]) -> dict[str, Tensor]:
        scores, found = self.scores(), {}
        for name, share in shares.items():
            kernels = scores[name].double().reshape(*scores[name].shape[:2], -1)
            window = mask(kernels, share.weights / kernels.shape[2], "window")
            plane = keep_best(kernels.sum(2), share.kernels)
            found[name] = (window & plane[..., None]).view(scores[name].shape)
        return found


def _left(whole: int, last: int, done: float) -> int:
    """How many are left of `whole` when a share `done` of all removals down to `last` is made, to the nearest."""
    return whole - math.floor(done * (whole - last) + 0.5)


def closest_subset(sizes: Sequence[int], target: float) -> list[bool]:
    """Which of some whole numbers sum closest to a target; the earlier ones where several choices do.

    Exact: the sums that the first i numbers can make are the bits of one integer. Of two sums equally far the smaller.

    >>> closest_subset([4, 2, 2, 8], 6.4)
    [True, True, False, False]
    """
    unit = math.gcd(*sizes) or 1
    units = [size // unit for size in sizes]
    reached = [1]
    for size in units:
        reached.append(reached[-1] | reached[-1] << size)
    totals = [total for total, bit in enumerate(reversed(f"{reached[-1]:b}")) if bit == "1"]
    left = min(totals, key=lambda total: abs(total - target / unit))
    chosen = [False] * len(sizes)
    for place in reversed(range(len(sizes))):
        if not reached[place] >> left & 1:
            chosen[place] = True
            left -= units[place]
    return chosen
