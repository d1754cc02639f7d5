"""Whole filters by what one number says of each: the baselines of structured pruning.

What goes is a unit of a channel group: the filters that make a channel, tied ones of a residual stream together, with
bias and batch norm, and the weights that read it. During training they are masked; `plan()` removes them physically,

    small = pruner.plan().apply(pruner.finalize(), example_inputs)

which answers as `finalize()` does.

Source: `pruning.importance` has each criterion's.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from pruning import masks
from pruning.evaluation import Labelled
from pruning.granularity import kept_count
from pruning.importance import batch_norms, order_by, unit_scores
from pruning.methods.base import Inputs, Pruner, register
from pruning.plan import PruningPlan
from pruning.wiring import wire
from workloads.channels import analyze
from workloads.errors import PlanError, unknown_name

SCOPES = ("group", "global")


class FilterPruner(Pruner):
    """Remove the channels of least importance at once, after `end` of the training.

    Args:
        model: not modified.
        example_inputs: one batch; the network is traced with it.
        total_steps: optimizer steps of the training to come.
        density: kept share of the units. Give this or `macs`.
        macs: kept share of the multiply-accumulates; the largest network below it is taken.
        multiple: kept counts are rounded up to multiples of it (or to the whole group).
        scope: "group" takes equal shares of all groups, "global" ranks the units of all against each other.
        floor: share of each group that a global ranking leaves in any case.
        keep: layers whose channels all stay; naming one of a residual stream leaves the stream alone.
        end: fraction of `total_steps` after which channels go; 0 is before training.

    Attributes:
        kept: by group the units that stay, of groups that lose any; empty until channels go.
        notes: groups that stay whole, and why.

    Raises:
        PlanError: neither or both of `density` and `macs`, a target that is out of range or of reach, nothing to prune.
        ConfigError: an unknown `scope`.

    Choices: all go in one step, as with Li et al.; He et al. and Molchanov et al. take some at a time while training,
    and He et al. let them grow back. A global ranking by `l1` or `fpgm` divides by each group's mean, since layers
    differ in scale.
    """

    criterion: ClassVar[str]
    usual_scope: ClassVar[str] = "group"
    is_comparable: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Inputs,
        total_steps: int = 1,
        *,
        density: float | None = None,
        macs: float | None = None,
        multiple: int = 1,
        scope: str | None = None,
        floor: float = 0.1,
        keep: Sequence[str] = (),
        end: float = 0.0,
        data: Labelled | None = None,
        images: int = 512,
    ) -> None:
        super().__init__(model, total_steps)
        self.density, self.macs, self.multiple, self.floor = density, macs, multiple, floor
        self.scope, self.data, self.images = scope or self.usual_scope, data, images
        self.last = round(end * total_steps)
        self._check(end)
        self.wiring = wire(self.model, analyze(wire(self.model, example_inputs).graph, keep))
        reasons = dict(self._reasons())
        self.notes = tuple(f"{group}: stays whole, {reason}" for group, reason in reasons.items())
        self.groups = tuple(name for name in self.wiring.prunable if name not in reasons)
        if not self.groups:
            raise PlanError(f"no channel group can lose units; {'; '.join(self.notes)}")
        nothing = self.wiring.masks(self.model, {name: np.zeros(0, np.int64) for name in self.groups})
        masks.attach(self.model, {name: torch.ones_like(mask) for name, mask in nothing.items()})
        self.kept: dict[str, tuple[int, ...]] = {}
        if self.last == 0:
            self._remove()

    def _check(self, end: float) -> None:
        shares = [share for share in (self.density, self.macs) if share is not None]
        if len(shares) != 1:
            raise PlanError("give density= (kept share of channels) or macs= (kept share of the MACs), one of them")
        if not 0 <= end <= 1:
            raise PlanError(self.refusal("must be from 0 to 1, a fraction of the training", end=end))
        if not 0 < shares[0] < 1 or not 0 <= self.floor <= 1 or self.multiple < 1:
            given = f"density {self.density}, macs {self.macs}, floor {self.floor}, multiple {self.multiple}"
            raise PlanError(f"{given}: shares lie in (0, 1), floor in [0, 1], a multiple is at least 1")
        if self.scope not in SCOPES:
            raise unknown_name("scope", self.scope, SCOPES)

    def _reasons(self) -> Iterator[tuple[str, str]]:
        """Groups that stay whole, and why."""
        for group in self.wiring.analysis.groups:
            if reason := self.wiring.reasons.get(group.name):
                yield group.name, reason
            elif any(isinstance(module, nn.RNNBase) for module in self._modules(group.name)):
                yield (
                    group.name,
                    "a recurrent layer keeps copies of its weights, which masks in training would not reach",
                )

    def _modules(self, group: str) -> Iterator[nn.Module]:
        """Where the tensors of a group are held."""
        for cut in self.wiring.cuts(group):
            yield self.model.get_submodule(cut.tensor.rpartition(".")[0])

    # ---- how many ----------------------------------------------------------------------------------------------------

    def _counts(self, scores: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Units that each group keeps."""
        sizes = {name: len(scores[name]) for name in self.groups}
        if self.density is not None and self.scope == "group":
            return {name: self._allowed(name, kept_count(size, self.density)) for name, size in sizes.items()}
        owners = self._removal_order(scores)

        def after(removals: int) -> dict[str, int]:
            gone = np.bincount(owners[:removals], minlength=len(sizes))
            left = zip(sizes.items(), gone, strict=True)
            return {name: self._allowed(name, size - int(lost)) for (name, size), lost in left}

        def share(removals: int) -> float:
            counts = after(removals)
            return sum(counts.values()) / sum(sizes.values()) if self.macs is None else self._macs_of(counts)

        wanted = self.macs or self.density or 0.0
        found = bisect_left(range(len(owners) + 1), True, key=lambda removals: share(removals) <= wanted + 1e-9)
        if found > len(owners):
            least = f"{share(len(owners)):.1%} is the least that floor {self.floor} and multiple {self.multiple} leave"
            raise PlanError(f"{'density' if self.macs is None else 'macs'} {wanted} cannot be reached: {least}")
        return after(found)

    def _removal_order(self, scores: Mapping[str, np.ndarray]) -> np.ndarray:
        """Which group loses a unit next, by its number: int64 (units,)."""
        when = []
        for name in self.groups:
            values = scores[name]
            if self.scope == "group":
                when.append((np.arange(len(values)) + 0.5) / len(values))
                continue
            scale = 1.0 if self.is_comparable else values.mean() or 1.0
            worst_first = values[order_by(self.wiring.analysis.group(name), values)][::-1] / scale
            when.append(np.maximum.accumulate(worst_first))  # kinds of units keep their share, so it may fall
        owners = np.repeat(np.arange(len(when)), [len(each) for each in when])
        return owners[np.argsort(np.concatenate(when), kind="stable")]

    def _allowed(self, name: str, count: int) -> int:
        """The nearest count from there up that the floor, the group and the multiple allow."""
        group = self.wiring.analysis.group(name)
        floor = math.ceil(self.floor * group.size - 1e-9) if self.scope == "global" else 1
        count = max(count, floor, group.minimum)
        return min(group.size, -(-count // self.multiple) * self.multiple)

    def _macs_of(self, counts: Mapping[str, int]) -> float:
        analysis = self.wiring.analysis
        return analysis.graph(counts).macs / analysis.source.macs

    # ---- which -------------------------------------------------------------------------------------------------------

    def _remove(self) -> None:
        """Choose and mask."""
        plain = masks.bake(self.model)
        scores = unit_scores(plain, self.wiring, self.groups, self.criterion, self.data, images=self.images)
        kept = {}
        for name, count in self._counts(scores).items():
            group = self.wiring.analysis.group(name)
            if count < group.size:
                kept[name] = np.sort(order_by(group, scores[name])[:count])
        if not kept:
            raise PlanError(f"density {self.density}, macs {self.macs}, multiple {self.multiple} remove no channel")
        masks.set_masks(self.model, self.wiring.masks(plain, kept))
        self.kept = {name: tuple(int(unit) for unit in units) for name, units in kept.items()}

    @property
    def is_settled(self) -> bool:
        return bool(self.kept)

    def after_step(self) -> None:
        if self.steps_done == self.last:
            self._remove()

    def plan(self) -> PruningPlan:
        """What cuts the removed channels out of the finalized model.

        Raises:
            PlanError: channels have not gone yet.
        """
        if not self.kept:
            raise PlanError(f"channels go after step {self.last}, {self.steps_done} are done; train on first")
        units = {name: self.wiring.analysis.group(name).size for name in self.kept}
        share = self._macs_of({name: len(kept) for name, kept in self.kept.items()})
        notes = (f"{self.name}, scope {self.scope}: {share:.1%} of the MACs stay", *self.notes)
        return PruningPlan(type(self.model).__name__, self.kept, units, notes=notes)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"kept": {name: list(units) for name, units in self.kept.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Masks come back with the model's own state."""
        super().load_state_dict(state)
        self.kept = {name: tuple(units) for name, units in state["kept"].items()}


@register("l1_filter")
class L1Filter(FilterPruner):
    """Channels whose filters have the smallest weights (Li et al. 2017)."""

    EXAMPLES: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"density": 0.5},
        {"macs": 0.5, "multiple": 2, "scope": "global"},
        {"macs": 0.6, "end": 0.5, "keep": ("stem",)},
    )
    criterion = "l1"
    is_comparable = False


@register("fpgm")
class GeometricMedian(FilterPruner):
    """Channels whose filters lie nearest to all others, so that these can replace them (He et al. 2019)."""

    EXAMPLES: ClassVar[tuple[Mapping[str, Any], ...]] = ({"density": 0.5}, {"macs": 0.5, "scope": "global"})
    criterion = "fpgm"
    is_comparable = False


@register("taylor_filter")
class TaylorFilter(FilterPruner):
    """Channels whose removal changes the loss least to first order, on `data` (Molchanov et al. 2019)."""

    EXAMPLES: ClassVar[tuple[Mapping[str, Any], ...]] = ({"macs": 0.5}, {"density": 0.5, "scope": "group"})
    NEEDS_DATA: ClassVar[bool] = True
    criterion = "taylor"
    usual_scope = "global"


@register("bn_gamma")
class BatchNormScale(FilterPruner):
    """Channels whose batch-norm scale training has made small (network slimming, Liu et al. 2017).

    Until channels go, `loss()` is strength times the sum of magnitudes of all scales that can lose channels.

    Args:
        strength: lambda; Liu et al. use 1e-4 for VGG, 1e-5 for ResNets and DenseNets, over 160 epochs.
        end: as above; half of the training unless given.
    """

    EXAMPLES: ClassVar[tuple[Mapping[str, Any], ...]] = ({"density": 0.5}, {"macs": 0.5, "end": 0.0, "multiple": 4})
    criterion = "bn_gamma"
    usual_scope = "global"

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Inputs,
        total_steps: int = 1,
        *,
        strength: float = 1e-4,
        end: float = 0.5,
        **options: Any,
    ) -> None:
        if strength < 0:
            raise PlanError(f"strength {strength}, must be at least 0")
        self.strength = strength
        super().__init__(model, example_inputs, total_steps, end=end, **options)
        scales = (name for group in self.groups for name, _, _ in batch_norms(self.model, self.wiring, group))
        self.scales = tuple(dict.fromkeys(scales))

    def _reasons(self) -> Iterator[tuple[str, str]]:
        yield from super()._reasons()
        for name in self.wiring.prunable:
            units = [unit for _, _, unit in batch_norms(self.model, self.wiring, name)]
            if len(np.unique(np.concatenate([np.zeros(0), *units]))) < self.wiring.analysis.group(name).size:
                yield name, "it has units without batch norm"

    def loss(self) -> Tensor:
        if self.is_settled:
            return super().loss()
        owners = [masks.owner(self.model, name) for name in self.scales]
        return self.strength * torch.stack([getattr(module, leaf).abs().sum() for module, leaf in owners]).sum()
