"""PCONV: every 3x3 kernel takes one of a few patterns, and below that whole kernels are cut, by ADMM.

The weights are pulled towards two sets while they train: Z, kernels that follow patterns, and Y, layers with few
enough kernels. With scaled duals U, V and a weight rho:

    loss = f(W) + rho / 2 (||W - Z + U||^2 + ||W - Y + V||^2)      squared Frobenius norms
    Z <- patterns of W + U;   Y <- largest kernels of W + V        now and then
    U <- U + W - Z;           V <- V + W - Y

Then one hard step removes what little is left outside both sets, and training goes on with fixed masks.

Source: Ma et al., "PCONV", AAAI 2020 (patterns, connectivity); Niu et al., "PatDNN", ASPLOS 2020 (ADMM, natural
patterns). Boyd et al., "Distributed Optimization and Statistical Learning via ADMM", 2011, sections 3.1.1 and 3.4.1
(scaled duals, and what becomes of them when rho changes).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pruning import masks
from pruning.filters import is_transposed
from pruning.granularity import check_scores, keep_best, keep_kernels, kept_count
from pruning.methods.base import Inputs, register
from pruning.methods.masked import Densities, MaskPruner, Scope, check_scope
from pruning.patterns import PatternLibrary, best_patterns, four_entry_library, natural_library
from workloads.errors import ConfigError, PlanError, ShapeError


@dataclass
class Constraint:
    """One set that one weight is pulled towards.

    Attributes:
        mask: of values of the weight's shape, which of them the nearest member of the set keeps.
        nearest: Z, that member at the last update. dual: U.
    """

    mask: Callable[[Tensor], Tensor]
    nearest: Tensor
    dual: Tensor

    def follow(self, weight: Tensor) -> None:
        """Move to where the weight is."""
        self.nearest, self.dual = self.nearest.to(weight.device), self.dual.to(weight.device)

    def penalty(self, weight: Tensor, rho: float) -> Tensor:
        """rho / 2 ||W - Z + U||^2; its gradient is rho (W - Z + U)."""
        self.follow(weight)
        return rho / 2 * (weight - self.nearest + self.dual).square().sum()

    def update(self, weight: Tensor, step: float) -> None:
        """Project, then add the distance to the dual, `step` times."""
        self.follow(weight)
        lifted = weight + self.dual
        self.nearest = lifted * self.mask(lifted)
        self.dual = self.dual + step * (weight - self.nearest)


@register("pconv")
class PConv(MaskPruner):
    """Kernel patterns and connectivity by ADMM, one hard step, training on with fixed masks.

    Choices, where the papers' text was not at hand:

    - The ADMM phase is `begin` .. `end` of training, a half; Z, Y, U, V are updated every `frequency` steps, by default
      a thirtieth of the phase but at least 20, in a phase below 60 steps a third of it. W must have time to follow:
      with momentum 0.9, which remembers 10 steps, duals that are updated every 3 swing up instead of settling. They
      start as Z = Y = W, U = V = 0.
    - rho grows geometrically, one step an update, from `rho[0]` to `rho[1]`; scaled duals shrink as it grows. The
      defaults are for SGD with momentum 0.9, a peak learning rate near 0.02 and some 500 steps between updates: W moves
      towards Z by the fraction rho lr / (1 - 0.9) a step. With 20 steps between updates the same pull takes a rho 25
      times as large: on ResNet-20 (0.03, 1) came to residuals of 5 % in 160 steps, the default only to 52 % in 96.
      A longer training wants less: duals hold the distances of several intervals. On ResNet-20, 20 epochs at rate 0.05
      with 117 steps between updates, (0.01, 0.3) threw training accuracy from 98 to 77 % in an epoch and ended 1.0
      points below (0.0002, 0.02), which docs/results.md shows.
    - Between two updates W moves a small part of its way only, where the papers train for epochs. A dual that takes up
      the whole distance each time makes removed kernels outrank kept ones: were W to stand still, the next two updates
      would swap 57 and 72 % of ResNet-20's at 5x. With `dual_step` 0.1 training began with one in seven and ended
      with none, but held-out accuracy after 6 epochs was the same (91.4 %, 91.5 % without).
    - A layer at density d keeps the share d / (entries / 9) of its 3x3 kernels; at d = entries / 9 there is no Y.
    - 1x1 convolutions and linear layers have no pattern: only Y, single weights, to density d; or they are left alone
      with `prune_pointwise=False`. Other kernels are refused. The first layer and the classifier stay dense by default.
      A depthwise channel has a single kernel, which connectivity would remove whole: name such layers in `keep`, or
      give them entries / 9.
    - How many kernels each layer keeps is left open too: all layers the same share by default; with `scope` "global"
      all kernels, and single weights where there is no pattern, are ranked against each other before training, by
      energy per weight that their pattern keeps, and no layer falls below `layer_floor` times `density`.
    - The papers leave open whether every filter keeps equally many kernels: `balanced` does that, off by default.

    Args:
        density: kept fraction, at most entries / 9 where kernels are 3x3, or by layer name.
        granularity: "pattern", or "pattern/4" where four consecutive filters share patterns and connectivity.
        scope: "layer" or "global", above. layer_floor: of "global".
        library: the patterns; PCONV's four by default, a number for that many natural patterns of the model's own
            weights (1 .. 56).
        balanced: the same number of kernels in every filter of a layer.
        begin, end: fractions of `total_steps` between which ADMM runs; the hard step is at `end`.
        frequency: optimizer steps between updates.
        rho: of the first and of the last interval between updates.
        dual_step: the share of the distance to a set that its dual takes up at an update; 1 is ADMM's own.
        options: of `MaskPruner`: keep, prune_first, prune_last, prune_pointwise.

    Raises:
        ConfigError: another granularity, or a rho that is not positive.
        PlanError: a density that patterns cannot keep, or an empty ADMM phase.
        ShapeError: a layer with kernels of another size.
    """

    EXAMPLES: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"density": 4 / 9, "end": 0.5, "frequency": 1},
        {"density": 0.2, "granularity": "pattern/2", "library": 6, "prune_last": True, "begin": 0.25, "end": 0.75},
        {"density": {"conv1": 0.2, "head": 0.5}, "balanced": True, "end": 1.0, "frequency": 3},
        {"density": 0.25, "scope": "global", "end": 0.5, "frequency": 1},
    )

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Inputs,
        total_steps: int,
        *,
        density: Densities = 4 / 9,
        granularity: str = "pattern",
        scope: Scope = "layer",
        layer_floor: float = 0.25,
        library: PatternLibrary | int | None = None,
        balanced: bool = False,
        begin: float = 0.0,
        end: float = 0.5,
        frequency: int | None = None,
        rho: tuple[float, float] = (1e-3, 1e-1),
        dual_step: float = 1.0,
        **options: Any,
    ) -> None:
        if granularity.partition("/")[0] != "pattern":
            raise ConfigError(f"granularity {granularity!r}: pconv has pattern, and pattern/4 for filters that share")
        if not 0 < rho[0] <= rho[1] < math.inf:
            raise ConfigError(f"rho {rho}: needs 0 < first <= last")
        if not 0 < dual_step <= 1:
            raise PlanError(self.refusal("must be above 0 and at most 1", dual_step=dual_step))
        if not 0 <= layer_floor <= 1:
            raise ConfigError(f"layer_floor {layer_floor}, must lie in 0..1")
        super().__init__(model, example_inputs, total_steps, density=density, granularity=granularity, **options)
        self.filters = int(granularity.partition("/")[2] or 1)
        self.balanced, self.rho, self.dual_step = balanced, rho, dual_step
        self.begin, self.end = self.phase(begin, end)
        phase = self.end - self.begin
        self.frequency = self.steps_between(frequency, max(min(20, phase // 3), phase // 30))
        weights = {name: masks.dense_weight(self.model, name) for name in self.names}
        self.patterned = {name for name, weight in weights.items() if weight[0, 0].numel() > 1}
        if other := [name for name in self.patterned if weights[name].shape[2:] != (3, 3)]:
            shape = tuple(weights[other[0]].shape)
            raise ShapeError(f"patterns need kernels of 3x3, {other[0]!r} is {shape}; keep that layer dense")
        if isinstance(library, int):
            library = natural_library((weights[name] for name in self.names if name in self.patterned), library)
        self.library: PatternLibrary = library or four_entry_library()
        self.shares = self._kernel_shares()
        check_scope(density, "weight", scope)
        if scope == "global":
            self.shares = self._ranked_shares(layer_floor)
        self.attach_dense()
        self.constraints: dict[str, Constraint] = {}
        if self.begin == 0:
            self._begin()

    def _kernel_shares(self) -> dict[str, float]:
        """The share of its kernels that each layer keeps."""
        most = self.library.entries / 9
        wanted = self.density if isinstance(self.density, Mapping) else dict.fromkeys(self.names, self.density)
        for name, share in wanted.items():
            limit = most if name in self.patterned else 1.0
            if not 0 < share <= limit + 1e-9:
                raise PlanError(f"density {share:g} of {name!r}, must be above 0 and at most {limit:.4f}")
        found = {name: share / most if name in self.patterned else share for name, share in wanted.items()}
        if not self.patterned and all(share == 1 for share in found.values()):
            raise PlanError("density 1 removes nothing from layers without 3x3 kernels; choose one below 1")
        return {name: min(1.0, share) for name, share in found.items()}

    @torch.no_grad()
    def _ranked_shares(self, floor: float) -> dict[str, float]:
        """The shares of all layers together, the kernels of most energy per kept weight first."""
        value, cost, least, sizes = [], [], [], []
        for name in self.names:
            weight = masks.dense_weight(self.model, name)
            each = self.library.entries if name in self.patterned else 1
            kept = weight * self.pattern_mask(name, weight) if name in self.patterned else weight
            energy = kept.double().square().reshape(*weight.shape[:2], -1).sum(2).flatten() / each
            value.append(energy)
            cost.append(torch.full_like(energy, each))
            least.append(keep_best(energy, max(1, math.floor(floor * self.shares[name] * len(energy)))))
            sizes.append(len(energy))
        energies, costs, kept_first = torch.cat(value), torch.cat(cost), torch.cat(least)
        order = torch.argsort(torch.where(kept_first, math.inf, energies), descending=True, stable=True)
        wanted = sum(float(one.sum()) * self.shares[name] for name, one in zip(self.names, cost, strict=True))
        taken = torch.zeros_like(kept_first)
        taken[order[costs[order].cumsum(0) <= wanted + 0.5]] = True
        parts = (taken | kept_first).split(sizes)
        return {name: float(part.double().mean()) for name, part in zip(self.names, parts, strict=True)}

    # ---- the two sets ------------------------------------------------------------------------------------------------

    def pattern_mask(self, name: str, values: Tensor) -> Tensor:
        """Of every kernel the pattern of largest L2 norm; bool, the shape of `values`."""
        return self._by_filter(name, values, lambda rows: best_patterns(rows, self.library, self.filters))

    def kernel_mask(self, name: str, values: Tensor) -> Tensor:
        """The kernels of largest L2 norm; bool, the shape of `values`."""

        def kept(rows: Tensor) -> Tensor:
            energy = rows.double().square().reshape(*rows.shape[:2], -1).sum(2)
            plane = keep_kernels(energy, self.shares[name], self.filters, self.balanced)
            return plane.view(*plane.shape, *[1] * (rows.dim() - 2)).expand(rows.shape)

        return self._by_filter(name, values, kept)

    def _by_filter(self, name: str, values: Tensor, rule: Callable[[Tensor], Tensor]) -> Tensor:
        """Filters of a transposed convolution lie on the second axis."""
        return rule(values.transpose(0, 1)).transpose(0, 1) if is_transposed(self.model, name) else rule(values)

    def masks_at(self, density: Densities) -> dict[str, Tensor]:
        """The hard step: both sets at once, from the weights as they are."""
        found = {}
        for name in self.names:
            weight = masks.dense_weight(self.model, name)
            check_scores(weight)
            found[name] = self.kernel_mask(name, weight)
            if name in self.patterned:
                found[name] = found[name] & self.pattern_mask(name, weight)
        return found

    # ---- ADMM --------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self.constraints = self._constraints()

    def _constraints(self) -> dict[str, Constraint]:
        rules = {f"pattern/{name}": partial(self.pattern_mask, name) for name in self.names if name in self.patterned}
        rules |= {f"kernel/{name}": partial(self.kernel_mask, name) for name in self.names if self._loses_kernels(name)}
        found = {}
        for key, rule in rules.items():
            weight = masks.dense_weight(self.model, key.partition("/")[2])
            found[key] = Constraint(rule, weight.clone(), torch.zeros_like(weight))
        return found

    def _loses_kernels(self, name: str) -> bool:
        """Whether connectivity takes any: a share a hair below one, as 0.444 / (4 / 9), keeps all."""
        kernels = masks.dense_weight(self.model, name).shape[:2].numel()
        return kept_count(kernels, self.shares[name]) < kernels

    def _weight(self, key: str) -> nn.Parameter:
        return masks.trained_weight(self.model, key.partition("/")[2])

    def rho_at(self, step: int) -> float:
        """rho while `step` optimizer steps are done: constant between updates, one factor more after each."""
        last = (self.end - self.begin - 1) // self.frequency
        place = min(max(0, step - self.begin) // self.frequency, last)
        return self.rho[0] * (self.rho[1] / self.rho[0]) ** (place / max(1, last))

    def loss(self) -> Tensor:
        """The penalty of both sets while ADMM runs, else zero."""
        rho, start = self.rho_at(self.steps_done), super().loss()
        return sum((one.penalty(self._weight(key), rho) for key, one in self.constraints.items()), start=start)

    @torch.no_grad()
    def after_step(self) -> None:
        if self.steps_done == self.end:
            masks.set_masks(self.model, self.masks_at(self.density))
            self.constraints = {}
        elif self.steps_done == self.begin:
            self._begin()
        elif self.constraints and (self.steps_done - self.begin) % self.frequency == 0:
            shrink = self.rho_at(self.steps_done - 1) / self.rho_at(self.steps_done)
            for key, one in self.constraints.items():
                one.update(self._weight(key), self.dual_step)
                one.dual = one.dual * shrink

    @property
    def is_settled(self) -> bool:
        return self.steps_done >= self.end

    @torch.no_grad()
    def residuals(self) -> dict[str, float]:
        """While ADMM runs, how far the weights are from each kind of set: ||W - proj(W)|| / ||W|| over its layers."""
        kinds = sorted({key.partition("/")[0] for key in self.constraints})
        found = {}
        for kind in kinds:
            mine = {key: one for key, one in self.constraints.items() if key.startswith(kind)}
            lost = sum(
                float((w := self._weight(key)).masked_fill(one.mask(w), 0).square().sum()) for key, one in mine.items()
            )
            found[kind] = math.sqrt(lost / sum(float(self._weight(key).square().sum()) for key in mine))
        return found

    # ---- going on after a stop ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "library": [list(pattern) for pattern in self.library.patterns],
            "shares": dict(self.shares),
            "nearest": {key: one.nearest.clone() for key, one in self.constraints.items()},
            "duals": {key: one.dual.clone() for key, one in self.constraints.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.library = PatternLibrary(tuple(tuple(pattern) for pattern in state["library"]))
        self.shares = dict(state["shares"])
        self.constraints = self._constraints() if state["nearest"] else {}
        for key, one in self.constraints.items():
            one.nearest, one.dual = state["nearest"][key].clone(), state["duals"][key].clone()
