"""Hybrid pruning: first whole channels, then single weights of the channels that remain.

How many channels each group can lose is read off a fast sensitivity test: with C units, a(n) is the accuracy when
the group keeps its n best units and all others stay, without any training in between. The shape of one curve compares
choices within a layer, a common threshold on all curves compares layers:

    keep(t) = smallest tested n with a(n) >= t, for every group            (tested: multiples that suit the hardware)

For a MAC target, t is the highest threshold at which the network with keep(t) units has few enough MACs, found by
bisection over the accuracies that were seen; the MACs are shape arithmetic on the layer graph. The channels are cut
out of the module at once, the user trains the thinner network, and later its smallest weights go:

    |w| <= mean |w| + s std |w|                                            (per layer; s is `factor`)

Source: Xu, Park and Brick, "Hybrid Pruning: Thinner Sparse Networks for Fast Inference on Edge Devices", 2018, and the
abstract and first claim of US 12,248,877 B2. `HybridPruning` tells what is a choice of ours.
"""

from __future__ import annotations

import copy
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import nn

from pruning import masks
from pruning.evaluation import Labelled, evaluating, labelled_batches, score
from pruning.layers import WEIGHTED, chosen_weights, left_dense
from pruning.methods.base import Inputs, Pruner, register
from pruning.methods.masked import ranked_masks
from pruning.plan import PruningPlan, make_plan
from pruning.schedule import CubicSchedule
from pruning.sensitivity import CHANNELS, Sensitivity, measure
from pruning.wiring import Wiring, wire
from workloads.channels import ChannelAnalysis, ChannelGroup, analyze
from workloads.data import ImageData
from workloads.errors import PlanError
from workloads.graph import LayerGraph, Op
from workloads.lowering import lower

Multiple = int | Mapping[str, int]
Cost = tuple[float, float]  # accuracy lost (a fraction), loss gained (nats)
BATCH = 250
ROUNDING = 1e-9  # of a difference of accuracies


@dataclass(frozen=True)
class MacCount:
    """Multiplications of one sample: what each of the two stages saves.

    Attributes:
        dense: of the user's model. thin: without the removed channels. nonzero: of these, with a weight that is not
            zero; what a machine saves that skips zeros.
    """

    dense: float
    thin: float
    nonzero: float

    def __str__(self) -> str:
        thin, nonzero = self.thin / self.dense, self.nonzero / self.dense
        return (
            f"{self.dense / 1e6:,.2f} M MACs dense, {self.thin / 1e6:,.2f} M ({thin:.1%}) after thinning, "
            f"{self.nonzero / 1e6:,.2f} M ({nonzero:.1%}) with non-zero weights"
        )


@register("hybrid_pruning")
class HybridPruning(Pruner):
    """Thin the network for a MAC target or an accuracy tolerance, then prune weights of what is left.

    `model` is the thinner network from the start, `plan` says how it came about. Masks follow from step `begin` on.

    Args:
        model: not modified.
        example_inputs: one batch; the network is traced with it.
        total_steps: optimizer steps of the training to come.
        data: held-out training pictures, or batches (x, y) of them; needed unless `plan` is given.
        macs: kept fraction of the MACs, at most; 0.5 if there is no `tolerance` either.
        tolerance: instead of `macs`: accuracy (a fraction) that each group alone may lose.
        multiple: kept channels are multiples of this in every layer that makes them; by channel group, or one for
            all. A layer of fewer channels keeps them all. `codesign` takes it from the target.
        levels: counts tried for each group, spread over its multiples.
        inner_only: leave channels that an addition joins, such as residual stages, as they are.
        keep: layers whose channels and weights all stay, or modules; naming one of a residual stream leaves the
            stream alone.
        images: of `data`, the first so many; batches are all used.
        adapt_norms: batch norms use the statistics of the tested pictures, in the sensitivity test only.
        plan: thin by this plan instead of a test; how a run is taken up where the test could come out otherwise.
        weights: whether weights are pruned after the channels.
        factor: s above. density: instead of it, the kept fraction of every layer's weights.
        begin, end: fractions of `total_steps` between which weights are removed along a cubic curve; where both are
            equal, at once.
        frequency: optimizer steps between updates; by default a hundredth of that phase.
        prune_first, prune_last: whether the first layer and the classifier lose weights too.
        check: accuracy that the thinner network may have lost against the dense one at step `begin`, on `data`, for
            weights to be pruned at all. None leaves the check to the user, who sees the held-out accuracy of `fit`.
        progress: show a bar during the sensitivity test.

    Attributes:
        plan: the channels that stay.
        sensitivity: the measured table, None where `plan` was given.
        thin_accuracy: what `check` measured, None before.

    Choices. Established are the two stages, the sensitivity test within and across layers for a MAC target or a
    tolerance, the multiple, the ranking by weights, zeroed channels as the test and a statistic of the weights as the
    threshold; the rest is not published and chosen here. Channels rank by the L2 norm of everything that goes with
    them (`pruning.importance`). Counts are rounded up: only multiples are tried, so the count that a curve asks for
    becomes the next one above, never below one multiple. A curve is taken as never rising again where more is
    removed. Equal accuracies are told apart by the loss. Groups are tested one at a time; together they lose more.
    Residual stages are one group and are cut as a whole. Statistic and factor of the weight threshold: mean and
    standard deviation of |w| with s = 0, about 58 % of normally distributed weights. The density that the threshold
    gives at step `begin` is kept until `end`, so that what is removed does not drift while the weights train.

    Raises:
        PlanError: no target can be met, nothing would be removed, no data, or an option out of range.
        ConfigError: test pictures.
    """

    NEEDS_DATA: ClassVar[bool] = True
    STATED = frozenset(
        {"macs", "tolerance", "multiple", "levels", "inner_only", "keep", "images", "adapt_norms", "progress"}
    )
    EXAMPLES: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"macs": 0.75},
        {"macs": 0.45, "multiple": 4, "inner_only": True, "density": 0.5, "end": 1.0, "frequency": 1},
        {"tolerance": 1.0, "multiple": {"stem": 4, "conv1": 8}, "factor": -0.5, "begin": 0.25, "end": 0.25},
        {"tolerance": 1.0, "multiple": 4, "weights": False},
    )

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Inputs,
        total_steps: int,
        *,
        data: Labelled | None = None,
        macs: float | None = None,
        tolerance: float | None = None,
        multiple: Multiple = 8,
        levels: int = 8,
        inner_only: bool = False,
        keep: Sequence[str] = (),
        images: int = 1000,
        adapt_norms: bool = False,
        plan: PruningPlan | None = None,
        weights: bool = True,
        factor: float = 0.0,
        density: float | None = None,
        begin: float = 0.5,
        end: float = 0.75,
        frequency: int | None = None,
        prune_first: bool = False,
        prune_last: bool = False,
        check: float | None = None,
        progress: bool = False,
    ) -> None:
        super().__init__(model, total_steps)
        if density is not None and not 0 < density < 1:
            raise PlanError(f"density {density}, must be above 0 and below 1; weights=False leaves weights alone")
        self.first, self.last = self.phase(begin, end, may_be_empty=True)
        self.frequency = self.steps_between(frequency, (self.last - self.first) // 100)
        if check is not None and not 0 <= check <= 1:
            raise PlanError(f"check {check}, must be in 0 .. 1: the accuracy that thinning may cost")
        if plan is not None and (macs is not None or tolerance is not None):
            raise PlanError("plan= says which channels stay; give no macs or tolerance beside it")
        if data is None and (plan is None or check is not None):
            raise PlanError("hybrid_pruning measures on pictures: give data= (split 'heldout'), or plan= without check")
        if isinstance(data, ImageData):
            data = data.take(min(images, len(data)))
        self._data, self._check, self._inputs = data, check, example_inputs
        self.factor, self.density, self.weights = factor, density, weights
        wiring = wire(self.model, analyze(wire(self.model, example_inputs).graph, keep))
        self._dense_macs = _macs(wiring.graph)
        self.sensitivity: Sensitivity | None = None
        if plan is None:
            assert data is not None
            target = ThinningTarget.checked(macs, tolerance)
            counts = counts_to_try(wiring, multiple, levels=levels, inner_only=inner_only)
            self.sensitivity = measure(
                self.model, wiring.analysis, counts, data, batch_size=BATCH, adapt_norms=adapt_norms, progress=progress
            )
            plan = target.plan(type(model).__name__, wiring.analysis, self.sensitivity)
        self.plan = plan
        self.model = plan.apply(self.model, example_inputs)
        self._guard = self.model.register_load_state_dict_pre_hook(_refuse_other_sizes)
        self.thin_accuracy: float | None = None
        self._dense_accuracy = self._accuracy(model) if check is not None else None
        self.densities: dict[str, float] | None = None
        self.names: tuple[str, ...] = ()
        if weights:
            self._attach(keep, prune_first, prune_last)
            self.after_step()

    # ---- weights ----------------------------------------------------------------------------------------------------

    def _attach(self, keep: Sequence[str], prune_first: bool, prune_last: bool) -> None:
        """Masks on the weights that may go, which keep all for now."""
        if self._check is None:
            self.notes = ("weights are pruned without a check of the thinner network's accuracy (check=)",)
        weighted = [name for name, module in self.model.named_modules() if isinstance(module, WEIGHTED)]
        dense_too = [name for name in keep if any(f"{layer}.".startswith(f"{name}.") for layer in weighted)]
        layers = chosen_weights(
            self.model, self._inputs, keep=dense_too, prune_first=prune_first, prune_last=prune_last
        )
        self.notes += left_dense(self.model, layers, self._inputs)
        self.names = tuple(layers.values())
        dense = {name: masks.dense_weight(self.model, name) for name in self.names}
        masks.attach(self.model, {name: weight.new_ones(weight.shape).bool() for name, weight in dense.items()})

    @property
    def is_settled(self) -> bool:
        return not self.weights or self.densities == {} or self.steps_done >= self.last

    def after_step(self) -> None:
        if not self.weights:
            return
        if self.steps_done == self.first:
            self.densities = self._final_densities()
        now: dict[str, float] = {}
        for name, density in (self.densities or {}).items():
            if self.first == self.last:
                now |= {name: density} if self.steps_done == self.first else {}
                continue
            schedule = CubicSchedule(1 - density, self.first, self.last, self.frequency)
            if schedule.is_update(self.steps_done):
                now[name] = 1 - schedule.sparsity(self.steps_done)
        if now:
            scores = {name: masks.dense_weight(self.model, name).abs() for name in now}
            masks.set_masks(self.model, ranked_masks(self.model, scores, now))

    def _final_densities(self) -> dict[str, float]:
        """By parameter, those that lose weights; none where the thinner network does not pass the check."""
        if self._dense_accuracy is not None:
            self.thin_accuracy = self._accuracy(self.model)
            is_passed = self.thin_accuracy >= self._dense_accuracy - (self._check or 0.0) - ROUNDING
            said = f"the thinner network had {self.thin_accuracy:.2%}, the dense one {self._dense_accuracy:.2%}"
            done = "passed, weights were pruned" if is_passed else "failed, weights were not pruned"
            self.notes += (f"accuracy check {done}: {said} ({self._check:.2%} may be lost)",)
            if not is_passed:
                return {}
        if self.density is not None:
            return dict.fromkeys(self.names, self.density)
        found = {}
        for name in self.names:
            sizes = masks.dense_weight(self.model, name).abs().double()
            limit = sizes.mean() + self.factor * sizes.std(correction=0)
            found[name] = max(1, int((sizes > limit).sum())) / sizes.numel()
        return {name: density for name, density in found.items() if density < 1}

    def _accuracy(self, model: nn.Module) -> float:
        """In float32 on `data`."""
        assert self._data is not None
        device = next(model.parameters()).device
        with evaluating(model):
            found = ((x.to(device), y.to(device)) for x, y in labelled_batches(self._data, BATCH))
            return score(model, found, "fp32")[1]

    # ---- what came of it --------------------------------------------------------------------------------------------

    def finalize(self) -> nn.Module:
        """A baked copy of the thinner network; without weight pruning it carries no mask."""
        found = super().finalize() if masks.masks_of(self.model) else copy.deepcopy(self.model)
        del found._load_state_dict_pre_hooks[self._guard.id]
        return found

    def mac_count(self) -> MacCount:
        """MACs after thinning and MACs with non-zero weights, as the network is now."""
        device = next(self.model.parameters()).device
        graph = lower(self.finalize(), tuple(x.to(device) for x in self._inputs))
        densities = [1.0 if layer.sparsity is None else layer.sparsity.density for layer in graph.layers]
        counts = [layer.macs * density for layer, density in zip(graph.layers, densities, strict=True)]
        return MacCount(self._dense_macs, _macs(graph), sum(counts) / _batch(graph))

    # ---- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "plan": self.plan.to_dict(),
            "densities": None if self.densities is None else dict(self.densities),
            "thin_accuracy": self.thin_accuracy,
            "notes": list(self.notes),
            "masks": {name: mask.clone() for name, mask in masks.attached_masks(self.model).items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`; which channels went is taken from it, how many must be the same here.

        Where the sensitivity test came out otherwise, neither this nor the model takes the state: make the pruner
        with `plan=PruningPlan.from_dict(state["plan"])`, which thins the user's dense model in the same way.
        """
        super().load_state_dict(state)
        plan = PruningPlan.from_dict(state["plan"])
        for group in sorted({*plan.units, *self.plan.units}):
            theirs, mine = (len(p.channels[group]) if group in p.channels else "all" for p in (plan, self.plan))
            if theirs != mine:
                raise PlanError(
                    f"pruner state is of a network that keeps {theirs} units of {group!r}, this one keeps {mine}; make "
                    'the pruner with plan=PruningPlan.from_dict(state["plan"])'
                )
        self.plan, self.densities = plan, state["densities"]
        self.thin_accuracy, self.notes = state["thin_accuracy"], tuple(state["notes"])
        masks.set_masks(self.model, state["masks"])


def _refuse_other_sizes(model: nn.Module, state: Mapping[str, Any], prefix: str, *_: object) -> None:
    """Called by torch before the thinner network takes a state; raises a PlanError where it is of another plan."""
    for name, tensor in model.state_dict().items():
        given = state.get(prefix + name, tensor)
        if given.shape != tensor.shape:
            raise PlanError(
                f"the state has {name!r} of shape {tuple(given.shape)}, this thinner network {tuple(tensor.shape)}: "
                "it was thinned by another plan; make the pruner with plan= from the plan in the pruner's state"
            )


def _batch(graph: LayerGraph) -> int:
    return graph.inputs[0].shape[0]


def _macs(graph: LayerGraph) -> float:
    """Of one sample."""
    return graph.macs / _batch(graph)


# ---- which counts are tried ------------------------------------------------------------------------------------------


def counts_to_try(
    wiring: Wiring, multiple: Multiple, *, levels: int = 8, inner_only: bool = False
) -> dict[str, tuple[int, ...]]:
    """Counts of units to try, falling, by channel group; groups that can lose none are left out.

    A count is tried if every layer that makes the channels then has a multiple of them, or all that it had.

    Raises:
        PlanError: an unknown group, a multiple or `levels` below 1, or no group is left.
    """
    analysis = wiring.analysis
    by_group = {analysis.group(name).name: value for name, value in multiple.items()} if isinstance(
        multiple, Mapping
    ) else dict.fromkeys(wiring.prunable, multiple)  # fmt: skip
    if levels < 1 or any(value < 1 for value in by_group.values()):
        raise PlanError(f"multiple {multiple!r} and levels {levels}, must be at least 1")
    found = {}
    for name in wiring.prunable:
        if inner_only and _is_joined(analysis, name):
            continue
        fitting = _fitting(analysis, analysis.group(name), by_group.get(name, 1))
        if fitting:
            picked = np.unique(np.linspace(0, len(fitting) - 1, min(levels, len(fitting))).round().astype(int))
            found[name] = tuple(fitting[i] for i in picked)
    if not found:
        raise PlanError(f"no channel group can lose units at multiple {multiple!r}; give a smaller one")
    return found


def _fitting(analysis: ChannelAnalysis, group: ChannelGroup, multiple: int) -> list[int]:
    sizes = np.arange(group.size - 1, group.minimum - 1, -1)
    graph = analysis.source
    rows = [graph.index[name] for name in group.producers]
    k = analysis.columns(sizes[:, None], [group.name]).k.reshape(len(sizes), len(graph))[:, rows]
    dense = np.array([graph.layers[row].k for row in rows])
    fits = ((k % multiple == 0) | (k == dense)).all(1)
    return [int(size) for size in sizes[fits]]


def _is_joined(analysis: ChannelAnalysis, group: str) -> bool:
    """Whether an addition of two tensors reads or makes the channels."""
    layers = (analysis.source[name] for name in analysis.affected(group))
    return any(layer.op is Op.ADD and len(layer.inputs) > 1 for layer in layers)


# ---- which are chosen ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ThinningTarget:
    """Kept fraction of the MACs, or accuracy that each group alone may lose; one of the two is None."""

    macs: float | None
    tolerance: float | None

    @classmethod
    def checked(cls, macs: float | None, tolerance: float | None) -> ThinningTarget:
        if macs is not None and tolerance is not None:
            raise PlanError(f"macs {macs} and tolerance {tolerance} given; a network is thinned for one of them")
        if macs is not None and not 0 < macs < 1:
            raise PlanError(f"macs {macs}, must be above 0 and below 1: the kept fraction")
        if tolerance is not None and not 0 <= tolerance <= 1:
            raise PlanError(f"tolerance {tolerance}, must be in 0 .. 1: the accuracy that may be lost")
        return cls(0.5 if macs is None and tolerance is None else macs, tolerance)

    def plan(self, model: str, analysis: ChannelAnalysis, found: Sensitivity) -> PruningPlan:
        """The plan at the common threshold."""
        limit = self.limit(analysis, found)
        counts = {name: count for name, count in counts_at(found, limit).items() if count < analysis.group(name).size}
        if not counts:
            raise PlanError(f"no group can lose channels within tolerance {self.tolerance:.2%}; give a larger one")
        share = analysis.graph(counts).macs / analysis.source.macs
        wanted = f"at most {self.macs:.1%} asked for" if self.macs is not None else f"tolerance {self.tolerance:.2%}"
        note = (
            f"hybrid: {share:.1%} of the MACs, {wanted}; no group alone lost more than {max(limit[0], 0):.2%} accuracy "
            f"on {found.images:,} {found.split} images"
        )
        return make_plan(model, analysis, counts, found.ranking, notes=(note,))

    def limit(self, analysis: ChannelAnalysis, found: Sensitivity) -> Cost:
        """The cost up to which every group is thinned."""
        if self.tolerance is not None:
            return self.tolerance + ROUNDING, math.inf
        assert self.macs is not None
        wanted = self.macs * analysis.source.macs
        costs = sorted({cost for curve in curves(found).values() for cost, _ in curve})
        at = bisect_left(costs, True, key=lambda cost: analysis.graph(counts_at(found, cost)).macs <= wanted)
        if at == len(costs):
            least = analysis.graph(counts_at(found, costs[-1])).macs / analysis.source.macs
            raise PlanError(
                f"macs {self.macs:g} cannot be reached: with the smallest counts {least:.1%} are left; "
                "give a smaller multiple, or let more groups lose channels"
            )
        return costs[at]


def curves(found: Sensitivity) -> dict[str, list[tuple[Cost, int]]]:
    """For each channel group what its counts cost, from many units to few: never less where more is removed."""
    curves: dict[str, list[tuple[Cost, int]]] = {}
    for variable, options in found.options.items():
        accuracy = found.accuracy[variable]
        assert accuracy is not None, "measured, not estimated"
        worst: Cost = (-math.inf, -math.inf)
        curve = curves.setdefault(variable.removeprefix(CHANNELS), [])
        for count, change, loss in sorted(zip(options, accuracy, found.loss[variable], strict=True), reverse=True):
            worst = max(worst, (-change, loss))
            curve.append((worst, int(count)))
    return curves


def counts_at(found: Sensitivity, limit: Cost) -> dict[str, int]:
    """The smallest acceptable count of every group that has one."""
    kept = {name: [count for cost, count in curve if cost <= limit] for name, curve in curves(found).items()}
    return {name: min(counts) for name, counts in kept.items() if counts}
