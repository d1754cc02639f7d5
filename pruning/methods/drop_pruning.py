"""Drop Pruning: at every pruning step some unimportant weights go at random, and some removed ones come back.

N weights, n_k of them live at pruning step k, U_k the u_k unimportant live ones: the smallest fraction rho by
magnitude. One step removes each of U_k with probability p_out (drop-out) and returns each removed weight with
probability p_in (drop-in), both drawn on the mask before the step:

    E[n_{k+1}] = n_k - p_out u_k + p_in (N - n_k)

With u_k = rho n_k the density settles at d* = p_in / (p_in + rho p_out), so p_in = rho p_out d* / (1 - d*) leads to d*;
what is missing shrinks by 1 - rho p_out - p_in a step.

Source: Jia et al., "DropPruning for Model Compression", arXiv 1812.02035, 2018; version 2, 2020, "Stochastic Model
Pruning via Weight Dropping Away and Back". The two moves are published; the formulas are derived, not quoted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from pruning import masks
from pruning.granularity import check_scores, keep_best, kept_count
from pruning.methods.base import Inputs, register
from pruning.methods.masked import MaskPruner
from workloads.errors import PlanError, unknown_name

MOST_CUT = 0.1
"""What the final cut may take in expectation, as a share of the target."""


def drop_in_probability(density: float, rho: float = 0.5, p_out: float = 0.1) -> float:
    """The p_in at which a density stays as it is in expectation: the fixed point of the recurrence.

    >>> round(drop_in_probability(0.09), 5), round(drop_in_probability(0.07), 5)
    (0.00495, 0.00376)
    """
    return rho * p_out * density / (1 - density)


def expected_size(live: float, total: float, unimportant: float, p_out: float, p_in: float) -> float:
    """E[n_{k+1}] of the module docstring."""
    return live - p_out * unimportant + p_in * (total - live)


def settling_steps(density: float, rho: float = 0.5, p_out: float = 0.1, p_in: float | None = None) -> int:
    """Pruning steps from dense until the expected density is within 5 % of the wanted one.

    Raises:
        PlanError: p_in returns so much that it never is.

    >>> settling_steps(0.09), settling_steps(0.025)
    (94, 127)
    """
    p_in = drop_in_probability(density, rho, p_out) if p_in is None else p_in
    limit = p_in / (p_in + rho * p_out)
    if limit > 1.04 * density:
        raise PlanError(f"p_in {p_in:g} holds the density at {limit:.3g}, {density:.3g} is wanted; leave p_in out")
    now, steps = 1.0, 0
    while now > 1.05 * density:
        now, steps = expected_size(now, 1, rho * now, p_out, p_in), steps + 1
    return steps


def drop_step(
    live: Tensor, unimportant: Tensor, p_out: float, p_in: float, generator: torch.Generator | None = None
) -> Tensor:
    """The mask after one pruning step.

    Args:
        live, unimportant: bool, (n,). Not modified.
        generator: on the CPU.

    Returns:
        bool, (n,).
    """
    draw = torch.rand(live.shape, generator=generator).to(live.device)  # one number for both: no weight can do both
    return (live & ~(unimportant & (draw < p_out))) | (~live & (draw < p_in))


@dataclass(frozen=True)
class Pool:
    """Weights that are ranked together: those of a layer, or of all layers.

    Attributes:
        names: of the parameters. sizes: elements of each, without those that an earlier pruning removed. floors: how
            many each keeps at least.
        target: live weights at the end. p_in: before it decays. p_in_fixed: that of the fixed point.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    floors: tuple[int, ...]
    target: int
    p_in: float
    p_in_fixed: float

    @property
    def size(self) -> int:
        return sum(self.sizes)

    def unimportant(self, live: float, rho: float, p_out: float, p_in: float) -> float:
        """u_k: the fraction rho; while p_in is below the fixed point no more than what is above the target and what is
        expected to return, so that the size falls but chance never takes it below the target once p_in is 0."""
        if p_in >= self.p_in_fixed:
            return rho * live
        return max(0.0, min(rho * live, live - self.target + p_in * (self.size - live) / p_out))

    def best(self, scores: Tensor) -> Tensor:
        """The weights of every layer that its floor protects: bool, (size,)."""
        parts = zip(scores.split(self.sizes), self.floors, strict=True)
        return torch.cat([keep_best(part, floor) for part, floor in parts])


@register("drop_pruning")
class DropPruning(MaskPruner):
    """Remove and return weights at random, so that the size flows to the target; start from a trained network.

    A pruning step comes every `frequency` optimizer steps of the phase `begin` .. `end`; at the phase's end the mask
    is cut to the exact target and stays. Removed weights rest: whatever momentum or weight decay do to them is undone
    after every optimizer step. The optimizer keeps its state of them, however: of the momentum m that a weight had when
    it was removed m^s is left if it returns s optimizer steps later.

    Choices, where the papers are silent or not at hand: "unimportant" is the smallest fraction `rho` of the live
    weights. Only rho p_out counts for the size: 0.05 settles within about 95 steps. rho = 0.1 with p_out = 0.5 risks
    the smallest tenth, 0.5 with 0.1 all below the median, which cost short trainings of a ResNet-20 more accuracy.
    p_in is constant at the fixed point, then goes to 0 on a line over the first half of the last fraction `closing` of
    the pruning steps, and is 0 in the second half.
    While p_in is below the fixed point nothing is removed that would take the size below the target. What is then
    above the target (little) goes by magnitude; should chance have left too few, weights return at random. Ranked
    inside each layer; returned weights start at 0. Biases and batch norms are never pruned.

    Args:
        density, scope, keep, prune_first, prune_last: as of every method that ranks weights; single weights only.
        rho: fraction of the live weights that counts as unimportant.
        p_out, p_in: probabilities of a step; p_in by default that of the fixed point. p_out = 1, p_in = 0 is iterative
            magnitude pruning.
        begin, end: fractions of `total_steps` at which pruning starts and is complete.
        frequency: optimizer steps between pruning steps; by default the largest with which the size settles.
        closing: fraction of the pruning steps, at the end, over which p_in decays.
        recover: returned weights start at "zero" or at their "last" value.
        layer_floor: no layer falls below this share of its target density (and keeps at least one weight); with
            scope "global" of the target density of all.
        seed: of what goes and what returns.

    Raises:
        PlanError: an option out of range, or too few pruning steps for the size to come near the target.
        ConfigError: an unknown `recover`.
    """

    EXAMPLES: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"density": 0.4, "rho": 0.5, "end": 1.0},
        {"density": 0.3, "rho": 0.5, "p_out": 0.7, "scope": "global", "prune_first": True, "recover": "last"},
        {"density": {"conv1": 0.25, "head": 0.5}, "rho": 0.5, "p_out": 1.0, "p_in": 0.0, "frequency": 2, "end": 1.0},
    )

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Inputs,
        total_steps: int,
        *,
        rho: float = 0.1,
        p_out: float = 0.5,
        p_in: float | None = None,
        begin: float = 0.0,
        end: float = 0.75,
        frequency: int | None = None,
        closing: float = 0.2,
        recover: Literal["zero", "last"] = "zero",
        layer_floor: float = 0.1,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(model, example_inputs, total_steps, **options)
        self.first, self.last = self.phase(begin, end)
        if self.granularity != "weight":
            raise PlanError(f"granularity {self.granularity!r}: Drop Pruning removes single weights; use 'weight'")
        if not (0 < rho <= 1 and 0 < p_out <= 1 and 0 <= (p_in or 0) <= 1):
            raise PlanError(f"rho {rho}, p_out {p_out}, p_in {p_in}: each must lie in (0, 1], p_in may be 0")
        if not (0 <= closing < 1 and 0 <= layer_floor <= 1):
            raise PlanError(f"closing {closing}, layer_floor {layer_floor}: needs 0 <= closing < 1, 0 <= floor <= 1")
        if recover not in ("zero", "last"):
            raise unknown_name("recover", recover, ("zero", "last"))
        self.rho, self.p_out, self.closing, self.recover = rho, p_out, closing, recover
        self.generator = torch.Generator().manual_seed(seed)
        self.masks_at(self.density)  # what cannot be carried out is said now
        self.gone = {name: ~mask for name, mask in masks.baked_masks(self.model).items() if name in self.names}
        self.pools = self._pools(p_in, layer_floor)
        self.every = self.steps_between(frequency, self._slowest(p_in))
        self.count = (self.last - self.first) // self.every
        for pool in self.pools:
            self._check(pool)
        self.attach_dense()
        self.resting = {n: masks.dense_weight(self.model, n).clone() for n in self.names} if recover == "last" else {}

    @property
    def is_settled(self) -> bool:
        return self.steps_done >= self.last

    def p_in_at(self, pool: Pool, number: int) -> float:
        """p_in of pruning step `number`, 1 .. `count`."""
        if not self.closing:
            return pool.p_in
        remaining = (self.count - number) / self.count
        return pool.p_in * min(1.0, max(0.0, 2 * remaining / self.closing - 1))

    @torch.no_grad()
    def after_step(self) -> None:
        if self.steps_done > self.last:
            return
        self._rest()
        number, rest = divmod(self.steps_done - self.first, self.every)
        if number > 0 and rest == 0:
            for pool in self.pools:
                self._move(pool, self.p_in_at(pool, number))
        if self.steps_done == self.last:
            for pool in self.pools:
                self._cut(pool)

    def state_dict(self) -> dict[str, Any]:
        resting = {name: values.clone() for name, values in self.resting.items()}
        return super().state_dict() | {"generator": self.generator.get_state(), "resting": resting}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.generator.set_state(state["generator"])
        self.resting = {name: values.clone() for name, values in state["resting"].items()}

    # ---- one pruning step --------------------------------------------------------------------------------------------

    def _move(self, pool: Pool, p_in: float) -> None:
        """Drop out, drop in; what is removed rests at its start value from now on."""
        live, size = self._vectors(pool)
        candidates = live & ~pool.best(torch.where(live, size, -1.0))
        wanted = math.floor(pool.unimportant(int(live.sum()), self.rho, self.p_out, p_in) + 0.5)
        count = min(wanted, int(candidates.sum()))
        scores = torch.where(candidates, -size, -math.inf)
        unimportant = keep_best(scores, count) if count else torch.zeros_like(live)
        self._set(pool, drop_step(live, unimportant, self.p_out, p_in, self.generator))

    def _cut(self, pool: Pool) -> None:
        """Exactly the target: floors first, then live weights by magnitude, then removed ones by lot."""
        live, size = self._vectors(pool)
        lots = torch.rand(live.shape, generator=self.generator, dtype=torch.float64).to(live.device)
        scores = torch.where(live, 1 + size.double() / size.max().clamp(min=1e-30), lots)
        self._set(pool, keep_best(scores + 2 * pool.best(scores), pool.target))

    def _vectors(self, pool: Pool) -> tuple[Tensor, Tensor]:
        """Mask and magnitude of all weights of a pool: bool and float32, (size,)."""
        found, scores = masks.attached_masks(self.model), self.scores()
        live = torch.cat([self._of_pool(name, found[name]) for name in pool.names])
        sizes = torch.cat([self._of_pool(name, scores[name]) for name in pool.names]).float()
        check_scores(sizes)
        return live, sizes

    def _of_pool(self, name: str, values: Tensor) -> Tensor:
        """Of the weights that an earlier pruning left, in one dimension."""
        return values[~self.gone[name].to(values.device)] if name in self.gone else values.flatten()

    def _set(self, pool: Pool, kept: Tensor) -> None:
        old = masks.attached_masks(self.model)
        for name, part in zip(pool.names, kept.split(pool.sizes), strict=True):
            if name in self.gone:
                new = torch.zeros_like(old[name]).masked_scatter_(~self.gone[name].to(part.device), part)
            else:
                new = part.view(old[name].shape)
            if name in self.resting:
                gone, values = old[name] & ~new, masks.dense_weight(self.model, name)
                self.resting[name] = torch.where(gone, values, self.resting[name].to(values.device))
            masks.set_masks(self.model, {name: new})
        self._rest()

    def _rest(self) -> None:
        """Removed weights go back to where they start from when they return."""
        for name, mask in masks.attached_masks(self.model).items():
            values = masks.dense_weight(self.model, name)
            if name in self.resting:
                self.resting[name] = self.resting[name].to(values.device)
                values.copy_(torch.where(mask, values, self.resting[name]))
            else:
                values.masked_fill_(~mask, 0)

    # ---- before training ---------------------------------------------------------------------------------------------

    def _pools(self, p_in: float | None, layer_floor: float) -> list[Pool]:
        by_name = self.density if isinstance(self.density, Mapping) else dict.fromkeys(self.names, self.density)
        groups: list[Sequence[str]] = [list(by_name)] if self.scope == "global" else [[name] for name in by_name]
        pools = [self._pool(names, by_name[names[0]], p_in, layer_floor) for names in groups if by_name[names[0]] < 1]
        if not any(pool.target < pool.size for pool in pools):
            raise PlanError(f"density {self.density} removes nothing; choose one below 1")
        return [pool for pool in pools if pool.target < pool.size]

    def _pool(self, names: Sequence[str], density: float, p_in: float | None, layer_floor: float) -> Pool:
        whole = [masks.dense_weight(self.model, name).numel() for name in names]
        sizes = [self._of_pool(name, masks.dense_weight(self.model, name)).numel() for name in names]
        wanted = [max(1, math.floor(layer_floor * density * size)) for size in whole]
        floors = [min(size, floor) for size, floor in zip(sizes, wanted, strict=True)]
        target = min(max(kept_count(sum(whole), density), sum(floors)), sum(sizes))
        fixed = drop_in_probability(min(target / sum(sizes), 1 - 1e-9), self.rho, self.p_out)
        if p_in is None and fixed > 1 and target < sum(sizes):
            raise PlanError(f"density {density} needs p_in {fixed:.3g}, more than 1; lower p_out or rho")
        return Pool(tuple(names), tuple(sizes), tuple(floors), target, fixed if p_in is None else p_in, fixed)

    def _slowest(self, p_in: float | None) -> int:
        """The most optimizer steps between pruning steps with which every pool settles before p_in decays."""
        steps = max(settling_steps(pool.target / pool.size, self.rho, self.p_out, p_in) for pool in self.pools)
        return max(1, (self.last - self.first) // math.ceil(max(steps, 1) / (1 - self.closing)))

    def _check(self, pool: Pool) -> None:
        live = float(pool.size)
        for number in range(1, self.count + 1):
            p_in = self.p_in_at(pool, number)
            live = expected_size(live, pool.size, pool.unimportant(live, self.rho, self.p_out, p_in), self.p_out, p_in)
        if live > (1 + MOST_CUT) * pool.target:
            raise PlanError(
                f"{self.count} pruning steps of rho {self.rho:g}, p_out {self.p_out:g}, p_in {pool.p_in:.3g} leave "
                f"{live / pool.size:.3g} of the weights on average, {pool.target / pool.size:.3g} is wanted; raise "
                "p_out or rho, prune more often or train longer"
            )
