"""Network Pruning Network: a second network of the same architecture decides which channels of the first can go.

A copy of the target, the *pruner network*, has its last layers replaced by heads with one output z_u for every unit u
of every channel group: a filter where channels are free, a channel of the whole stream where additions tie them, a
head of attention. Averaged over the batch and over batches, then cut at zero, they are gates on the target's maps:

    b_u = 1 if the average of z_u > 0 else 0
    loss = task(O(x; W, b), y) + lambda * max(0, kept share(b) - budget)

A gate belongs after batch norm and activation, where the channel is read; `pruning.gates` puts it there as a factor
on the weights that read the channel, which answers the same. Taking a closed channel away then changes no answer,
whatever lies between (residual additions, depthwise layers, sigmoids, later norms).

Source: Verma et al., "A 'Network Pruning Network' Approach to Deep Model Compression", WACV 2020: a pruner network of
the target's architecture with many binary outputs, one a filter, trained to switch off as many as it can, one shot.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pruning import masks
from pruning.gates import Cost, Gate, Gates, floors, gated_groups, spread, unit_axes, with_one
from pruning.methods.base import Inputs, Pruner, register
from pruning.plan import PruningPlan
from pruning.pruner_network import Learner
from pruning.schedule import CosineSchedule
from pruning.wiring import READ, wire
from workloads.channels import analyze
from workloads.errors import PlanError, unknown_name

WEIGHTINGS = ("filters", "macs")
ROUNDING = 1e-6  # of a share, which is summed in float32
LATE = 0.7  # fraction of the pruner's phase from which gates never keep more than the budget


@register("network_pruning_network")
class NetworkPruningNetwork(Pruner):
    """Learn with a pruner network which channels go, then fine-tune without them.

    Two phases: up to step `end` the target is frozen (its gradients are dropped as they come, so that any optimizer
    passes it over; batch norms still follow the gated network) and the pruner network learns, ever more slowly; at
    `end` one binary vector a group is fixed; from then on the target learns with it. Before `end` every batch sees the
    gates that would be fixed after it, with a budget at least late in the phase. `finalize` zeroes what goes; `plan`
    removes it.

    Args:
        model: a trained network; not modified.
        example_inputs: one batch, traced for the channel groups and run once for the widths of the heads.
        total_steps: optimizer steps of the training to come, both phases.
        strength: lambda, in units of the task's loss for the whole network: a filter of N stays open while it lowers
            the loss by more than about strength / N. Without a budget, more than the loss of guessing closes all.
        end: fraction of `total_steps` after which the gates are fixed.
        warmup: fraction of the pruner's phase in which lambda climbs linearly from zero.
        floor: fraction of a layer's units that always stay, those of largest logit; at least one does.
        budget: the share of filters (or MACs) that stays, to within a unit: lambda presses down to it, no fewer gates
            are open than fit in it, and in the last three tenths of the phase exactly those of largest logit that fit,
            so that what is fixed at `end` has been seen. 0 for none: lambda always presses, and signs alone decide.
        weighting: "filters" counts every filter alike (the paper's goal), "macs" the multiplications that are left.
        lr: of the heads at first, in the pruner's own Adam; it falls to zero at `end`, along half a cosine.
        bias: logit with which every gate starts.
        smoothing: share of the past in the running average of logits, per step; 0 for this batch alone.
        keep: layers whose output channels all stay, or modules.
        seed: of the heads' weights.

    Choices. The paper's full text was not available; its abstract fixes the architecture, binary outputs, the goal and
    one shot. Chosen here: initialisation from the target; logits (not decisions) averaged over the batch and,
    exponentially, over batches, since a pruned network has one vector only and training is to see the final one; the
    straight-through estimator with the slope of a sigmoid at the average z, s(z) (1 - s(z)), through this batch's mean
    alone, unscaled; a frozen target; Adam; heads that start open; the warm-up of lambda; the floor; a budget, off by
    default, with one threshold on all logits instead of zero, since logits fall together and may pass zero in a few
    batches, far below any budget; rates that fall to zero, so that gates come to rest; what the last layers read,
    averaged over positions and normalised over channels to norm one, as what the heads read; a backbone that learns at
    a tenth of the heads' rate; no dropout in the pruner network. Mixed precision in bf16: while the gates are learnt
    the target has no gradients, which `torch.amp.GradScaler` (fp16) refuses. Groups that nothing reads by weights of
    its own (lone queries and keys) are left alone.

    Raises:
        PlanError: no channel group can be gated, a last layer is no module, an option is out of range, or the floors
            alone keep more than the budget.
        ConfigError: an unknown `weighting`.
    """

    IS_LEARNED = True
    EXAMPLES: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"strength": 20.0, "lr": 0.5, "end": 0.75},
        {"strength": 20.0, "lr": 1.0, "smoothing": 0.5, "end": 0.5, "weighting": "macs", "keep": ("conv1",)},
        {"budget": 0.6, "weighting": "macs", "end": 0.5},
    )

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Inputs,
        total_steps: int,
        *,
        strength: float = 1.0,
        end: float = 0.3,
        warmup: float = 0.3,
        floor: float = 0.1,
        budget: float = 0.0,
        weighting: Literal["filters", "macs"] = "filters",
        lr: float = 3e-3,
        bias: float = 1.0,
        smoothing: float = 0.9,
        keep: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        super().__init__(model, total_steps)
        _check(strength=strength, end=end, warmup=warmup, floor=floor, budget=budget)
        _check(lr=lr, bias=bias, smoothing=smoothing)
        if weighting not in WEIGHTINGS:
            raise unknown_name("weighting", weighting, WEIGHTINGS)
        self.strength, self.budget, self.weighting, self.smoothing = strength, budget, weighting, smoothing
        self.end = max(1, round(end * total_steps))
        self.decay = CosineSchedule(1.0, self.end)
        self.warm_steps = max(1, round(warmup * self.end))
        graph = wire(self.model, example_inputs).graph
        self.wiring = wire(self.model, analyze(graph, keep))
        self.groups = gated_groups(self.wiring, self.model)
        ungated = [name for name in self.wiring.prunable if name not in self.groups]
        left = {**self.wiring.reasons, **dict.fromkeys(ungated, "nothing reads it by weights of its own")}
        self.notes = tuple(f"{group}: stays whole, {reason}" for group, reason in left.items())
        self.floors = floors(self.wiring, self.groups, floor)
        self.cost = Cost(self.wiring, self.groups)
        count = sum(size for _, size in self.groups.values())
        self.learner: Learner | None = Learner(self.model, example_inputs, self.wiring, count, bias, lr, seed)
        self.logits = torch.full((count,), bias)
        self.agreement = 1.0
        self.kept: Tensor | None = None
        self.gates = Gates()
        self._is_early = False  # loss() found no gates of this step
        self.opened: Tensor | None = None  # the gates of this step's last forward pass, with their slope
        if budget > 0 and (least := self._share(self._best(self.logits, 0))) > budget + ROUNDING:
            alone = f"the floor {floor:g} alone keeps {least:.1%} of the {weighting}"
            raise PlanError(f"budget {budget:g}: {alone}; lower the floor or raise the budget")
        self._attach()
        self._frozen = self._freeze()
        self._hook = self._watch()

    def _attach(self) -> None:
        """Masks on all that goes with a unit, which keep all for now, and gates on the weights that read units."""
        self._shapes = {name: parameter.shape for name, parameter in self.model.named_parameters()}
        self._axes = unit_axes(self.wiring, self.groups, self._shapes)
        reading = unit_axes(self.wiring, self.groups, self._shapes, role=READ)
        masks.attach(self.model, self._masks(torch.ones_like(self.logits, dtype=torch.bool)))
        for name, axes in reading.items():
            module, leaf = masks.owner(self.model, name)
            parametrize.register_parametrization(module, leaf, Gate(self.gates, axes))

    def _freeze(self) -> list[torch.utils.hooks.RemovableHandle]:
        """Drop the gradients of `self.model` as they come, until the handles are removed; copies of it learn."""

        def drop(parameter: Tensor) -> None:
            parameter.grad = None

        return [p.register_post_accumulate_grad_hook(drop) for p in self.model.parameters() if p.requires_grad]

    # ---- the forward pass --------------------------------------------------------------------------------------------

    def __deepcopy__(self, memo: object) -> Pruner:
        """Hooks of `self.model` are bound to this pruner: those of a copy would act on nothing.

        Raises:
            PlanError: always.
        """
        raise PlanError(f"a pruner of {self.name} cannot be copied; make another one and give it load_state_dict()")

    def _watch(self) -> torch.utils.hooks.RemovableHandle:
        """Set the gates before every forward pass of `self.model`; copies of it keep the gates that they have."""

        @torch.compiler.disable
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if module is self.model and self.learner is not None:
                if module.training and torch.is_grad_enabled():
                    self._open(self.learner, self.learner(*args, **kwargs))
                else:
                    self.gates.values = with_one(self.decision().float())

        return self.model.register_forward_pre_hook(before, with_kwargs=True)

    def _open(self, learner: Learner, logits: Tensor) -> None:
        """The gates that would be fixed after this batch, with the slope of the sigmoid.

        Args:
            logits: float32, (n, units).
        """
        mean = logits.mean(0)
        average = self._averaged(mean)
        soft = (average.to(mean.device) + (mean - mean.detach())).sigmoid()
        hard = self._decided(average).to(soft)
        learner.seen.append(logits.detach())
        self.gates.values = self.opened = with_one(hard + (soft - soft.detach()))

    def _averaged(self, mean: Tensor) -> Tensor:
        """The running average of the logits after a batch of this mean, on the CPU."""
        return self.smoothing * self.logits + (1 - self.smoothing) * mean.detach().cpu()

    def _decided(self, logits: Tensor) -> Tensor:
        """bool (units,) on the CPU: positive ones; with a budget no fewer than it has room for, and late no more."""
        count = int((logits > 0).sum())
        if self.budget:
            room = self._fitting(logits)
            count = room if self.steps_done >= LATE * self.end else max(count, room)
        return self._best(logits, count)

    def _fitting(self, logits: Tensor) -> int:
        """How many of the largest logits the budget has room for; one cut for all groups, so what stays is nested."""

        def share(count: int) -> float:
            return self._share(self._best(logits, count))

        return bisect_right(range(len(logits) + 1), self.budget + ROUNDING, key=share) - 1

    def _best(self, logits: Tensor, count: int) -> Tensor:
        """bool (units,) on the CPU: the `count` largest, the first of equals, and of every layer at least the floor."""
        kept = torch.zeros_like(logits, dtype=torch.bool)
        kept[logits.argsort(descending=True, stable=True)[:count]] = True
        for units, least in self.floors:
            if int(kept[units].sum()) < least:
                best = logits[units].argsort(descending=True, stable=True)[:least]
                kept[units[best]] = True
        return kept

    def _share(self, kept: Tensor) -> float:
        """What the budget limits."""
        return float(self.cost.share(with_one(kept.float()), self.weighting))

    def decision(self) -> Tensor:
        """bool (units,) on the CPU: what stays, by the running average of the logits, or what was fixed."""
        return self._decided(self.logits) if self.kept is None else self.kept

    # ---- training ----------------------------------------------------------------------------------------------------

    def loss(self) -> Tensor:
        """lambda times the share of filters or MACs that the gates keep beyond the budget.

        Zero once the gates are fixed, and before the first forward pass of a step.
        """
        self._is_early = self.learner is not None and self.opened is None
        if self.learner is None or self.opened is None:
            return super().loss()
        strength = self.strength * min(1.0, (self.steps_done + 1) / self.warm_steps)
        return strength * (self.cost.share(self.opened, self.weighting) - self.budget).relu()

    def after_step(self) -> None:
        """The pruner network's own step, and at `end` the decision.

        Raises:
            PlanError: `loss` came before the forward pass, so that lambda could not press.
        """
        if self.learner is None:
            return
        if self._is_early and self.learner.seen:
            raise PlanError("the gates got no gradient from pruner.loss(); call it after the step's forward pass")
        if (seen := self.learner.step(self.decay.rate(self.steps_done - 1))) is not None:
            self.logits = self._averaged(seen.mean(0))
            agree = float(((seen > 0).cpu() == (self.logits > 0)).float().mean())
            self.agreement = self.smoothing * self.agreement + (1 - self.smoothing) * agree
        self.opened = None
        if self.gates.values is not None:
            self.gates.values = self.gates.values.detach()
        if self.steps_done >= self.end:
            self._settle(self.decision())

    def _settle(self, kept: Tensor) -> None:
        """Fix the gates as masks and hand the target to the user's optimizer."""
        self.kept, self.learner, self.gates.values, self.opened = kept, None, None, None
        masks.set_masks(self.model, self._masks(kept))
        for handle in self._frozen:
            handle.remove()

    @property
    def is_settled(self) -> bool:
        return self.kept is not None

    # ---- what comes of it --------------------------------------------------------------------------------------------

    def _masks(self, kept: Tensor) -> dict[str, Tensor]:
        """Masks of every parameter that loses a row or column to a unit that is not kept."""
        values = with_one(kept.float())
        return {name: spread(values, axes, self._shapes[name]) > 0 for name, axes in self._axes.items()}

    def finalize(self) -> nn.Module:
        """A baked copy in which all that goes with a removed unit is zero; `plan().apply` makes it smaller."""
        gates, self.gates.values = self.gates.values, with_one(self.decision().float())
        self._hook.remove()
        try:
            return masks.bake(self.model, self._masks(self.decision()))
        finally:
            self.gates.values, self._hook = gates, self._watch()

    def plan(self) -> PruningPlan:
        """What stays of every gated group, to be applied to the finalised model (or to the user's own).

        Raises:
            PlanError: the gates leave a layer without channels.
        """
        kept = self._units()
        share = self.cost.share(with_one(self.decision().float()), "filters")
        macs = self.wiring.analysis.graph_units(kept).macs / self.wiring.graph.macs
        notes = [
            f"pruner network: {float(share):.1%} of the filters and {macs:.1%} of the MACs stay",
            f"decisions of single samples agree with the common one on {self.agreement:.1%} of the gates",
        ]
        signs = self._best(self.logits, int((self.logits > 0).sum()))
        if moved := int((signs != self.decision()).sum()):
            notes.append(
                f"{moved} gates follow the budget of {self.budget:.1%} of the {self.weighting}, not their sign"
            )
        channels = {group: tuple(int(unit) for unit in units) for group, units in kept.items()}
        sizes = {group: size for group, (_, size) in self.groups.items()}
        return PruningPlan(self.wiring.graph.name, channels, sizes, notes=tuple(notes))

    def _units(self) -> dict[str, np.ndarray]:
        kept = self.decision().numpy()
        return {group: np.flatnonzero(kept[first : first + size]) for group, (first, size) in self.groups.items()}

    # ---- going on after a stop ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        learner = {} if self.learner is None else self.learner.state()
        own = {"logits": self.logits.clone(), "agreement": self.agreement, "kept": self.kept, "learner": learner}
        return super().state_dict() | own

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.logits, self.agreement = state["logits"].clone(), float(state["agreement"])
        if state["kept"] is not None:
            self._settle(state["kept"].cpu())
        elif self.learner is None:
            raise PlanError("the gates are fixed already, the state is from before; load it into a new pruner")
        else:
            self.learner.load(state["learner"], next(self.model.parameters()).device)


# ---- options ---------------------------------------------------------------------------------------------------------


RANGES: Mapping[str, tuple[str, Callable[[float], bool]]] = {
    "strength": ("a finite number above 0", lambda v: 0 < v < math.inf),
    "end": ("above 0 and at most 1", lambda v: 0 < v <= 1),
    "warmup": ("from 0 to 1", lambda v: 0 <= v <= 1),
    "floor": ("from 0 to 1", lambda v: 0 <= v <= 1),
    "budget": ("from 0 to below 1", lambda v: 0 <= v < 1),
    "lr": ("a finite number above 0", lambda v: 0 < v < math.inf),
    "bias": ("a finite number above 0, so that gates start open", lambda v: 0 < v < math.inf),
    "smoothing": ("from 0 to below 1", lambda v: 0 <= v < 1),
}


def _check(**options: float) -> None:
    for name, value in options.items():
        allowed, is_right = RANGES[name]
        if not is_right(value):
            raise PlanError(NetworkPruningNetwork.refusal(f"must be {allowed}", **{name: value}))
