"""Learned Threshold Pruning: a threshold for every layer, learned by gradient descent together with the weights.

Letters: w a weight, tau and T its layer's threshold and temperature, g = dL/dv, sigm the logistic function. The
threshold acts on the square. While thresholds are learned the network computes with v, afterwards with hard masks:

    s = sigm((w^2 - tau) / T)    v = w s    L0 = sum of s    loss = task + lambda sum_layers L0    hard: w 1[w^2 > tau]

With sigma = s (1 - s) / T the gradient of a threshold is dL/dtau = - sum sigma (w g + lambda). For the weights the
gate counts as constant, dv/dw = s: with the exact s + 2 w^2 sigma they are pushed out of the transition band
|w^2 - tau| ~ T, no weight is left there, and thresholds stop. Backpropagation gives dL/dw = s g, hence
sigma w g = w (1 - s) / T dL/dw: a threshold's gradient is a product and a sum over gradients that are there anyway,
and under data-parallel training it is that of all processes.

Source: Azarian et al., "Learned Threshold Pruning", arXiv 2003.00075, 2021; equations 6, 14 and 15.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning import masks
from pruning.granularity import check_scores, keep_best, kept_count
from pruning.layers import chosen_weights, left_dense
from pruning.masks import MaskedWeight
from pruning.methods.base import Inputs, Pruner, register
from pruning.trail import Trail
from workloads.errors import PlanError, unknown_name

CLOSED = -40.0
"""Where gates count as closed, in units of z = (w^2 - tau) / T."""
BAND = 4.0
"""A weight is in the transition band while |w^2 - tau| < 4 T, where its gate is between 0.018 and 0.982."""
ARRIVAL = 0.8
"""Fraction of the steps until `end` at which the wanted density comes down to the final one."""
START, GAIN, STIFFNESS = 0.01, 100.0, 10.0
"""Of the controller: lambda times the number of weights at the start, integral and proportional gain."""


class SoftThreshold(MaskedWeight):
    """The parametrization w -> w sigm((w^2 - tau) / T), or w -> w mask once it is frozen.

    Differs from the paper: below (w^2 - tau) / T = -40 the gate is 0, and so is its gradient; sigm(-40) = 4e-18 is lost
    beside what is kept. Without it many weights are denormal numbers, with which a CPU multiplies slowly: 100 steps of
    LeNet-5 in float32 took up to three times as long.

    Attributes:
        threshold, temperature: tau and T, float32 scalars.
        is_exact: whether gradients of the weights flow through the gate.
        is_soft: until the thresholds are frozen.
    """

    threshold: Tensor
    temperature: Tensor

    def __init__(self, mask: Tensor, position: int = 0) -> None:
        super().__init__(mask, position)
        self.register_buffer("threshold", torch.zeros((), device=mask.device))
        self.register_buffer("temperature", torch.ones((), device=mask.device))
        self.is_exact, self.is_soft = False, True

    def forward(self, weight: Tensor) -> Tensor:
        if not self.is_soft:
            return super().forward(weight)
        gate = self.gate(weight if self.is_exact else weight.detach())
        return (weight.float() * gate).to(weight.dtype)

    def gate(self, weight: Tensor) -> Tensor:
        """s, float32."""
        return torch.sigmoid(F.threshold(self.distance(weight), CLOSED, -math.inf))

    def distance(self, weight: Tensor) -> Tensor:
        """z = (w^2 - tau) / T, float32."""
        return (weight.float().square() - self.threshold) / self.temperature

    @torch.no_grad()
    def slopes(self, weight: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What turns dL/dw into the gradient of the threshold; dL0/dw; - dL0/dtau. All float32.

        The first is dv/dtau over dv/dw with its sign turned, w (1 - s) / T, over 1 + 2 w^2 (1 - s) / T where the
        gradient is exact. The last is a sum over the layer, the others are of the weight's shape.

        Args:
            s: `gate(weight)`.
        """
        w = weight.float()
        slope, sigma = w * (1 - s) / self.temperature, (s * (1 - s)).sum() / self.temperature
        if not self.is_exact:
            return slope, torch.zeros_like(sigma), sigma
        return slope / (1 + 2 * w * slope), 2 * s * slope, sigma

    def freeze(self, mask: Tensor) -> None:
        """Compute with a hard mask from now on."""
        self.mask.copy_(mask)
        self.is_soft = False


@dataclass(frozen=True)
class LayerThreshold:
    """How one layer stands.

    Attributes:
        threshold, temperature: tau and T, in units of the weight's square.
        density: fraction of weights with w^2 > tau.
        band: fraction of weights in the transition band. Near 0 before the wanted density, thresholds are stuck.
    """

    name: str
    threshold: float
    temperature: float
    density: float
    band: float


@register("learned_threshold")
class LearnedThreshold(Pruner):
    """Learn how much every layer can lose, then retrain what is left; start from a trained network.

    Until `end` gates are soft and thresholds move; then masks are hard and stay. `finalize` answers with hard masks at
    any time; a copy that was made before `end`, such as an average of weights, stays soft. Thresholds follow the
    gradients of the weights as they are when `step` is called, so clipping reaches both; a term of the user's own on
    the dense values behind the gates would disturb them. So would `SGD(nesterov=True)` without weight decay in its
    foreach form, torch's default on CUDA, which changes gradients in place: give it `foreach=False`.

    Choices, where the paper is silent or not at hand: tau starts at 0; T is T0 Var(|w|) of the weights at the start;
    the soft L0 norm sends no gradient to the weights unless `exact_gradient` asks for it, so that neither its size nor
    that of the weights in front of a batch norm can be traded for it; thresholds stay at or above 0 and below the
    largest square of their layer, so that no layer loses all; biases and batch norms are not pruned. Gradients of
    thresholds differ by orders of magnitude between layers, as do squares of weights: "adam" learns
    tau / mean(w^2 at the start) with Adam; "sgd" is the plain rule, tau -= rate dL/dtau.

    Ours, not the paper's: `density`. lambda then follows a controller that keeps the soft density, as long as the
    thresholds are learned, on density^(t / end), and at `density` over the last fifth of the steps until `end`, so that
    what is frozen has been trained: with the logarithm of density over wanted density as error, each of the n steps
    until `end` multiplies lambda by exp(100 error / n), never below its first value, and exp(10 error) lambda is used.
    At the end all thresholds are multiplied by one number so that exactly `density` of the weights is kept.

    Args:
        model: not modified.
        example_inputs: one batch, run once to see which layer comes first and which last.
        total_steps: optimizer steps of the training to come.
        density: kept fraction of all weights of the chosen layers together; or
        l0_weight: lambda, per weight, and whatever density it leads to. With both, where the controller starts.
        temperature: T0.
        exact_gradient: differentiate the gate for the weights, too.
        update: how thresholds are learned, "adam" or "sgd".
        rate: learning rate; for "adam" by default such that the steps reach 2.5 times as far as a threshold for
            `density` lies in mean squares, or 20 where no density is given.
        end: fraction of `total_steps` after which thresholds are frozen.
        granularity: single weights only; taken for the sake of callers that name one.
        keep: layers that stay dense, or modules with all their layers.
        prune_first, prune_last: whether the first layer and the classifier are pruned.
        trail: a folder to which the hard-pruned network is written every `interval` optimizer steps until `end`; see
            `pruning.trail`. By default 12 times.

    Raises:
        PlanError: an option out of range, neither `density` nor `l0_weight`, or a name that is no layer.
        ConfigError: an unknown `update`.
    """

    STATED = frozenset({"trail"})
    IS_LEARNED = True
    EXAMPLES: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"density": 0.3},
        {"density": 0.5, "exact_gradient": True, "prune_first": True, "prune_last": True},
        {"l0_weight": 1e-2},
        {"l0_weight": 1e-2, "update": "sgd", "rate": 1e-6, "end": 1.0},
    )

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Inputs,
        total_steps: int,
        *,
        density: float | None = None,
        l0_weight: float | None = None,
        temperature: float = 1e-3,
        exact_gradient: bool = False,
        update: Literal["adam", "sgd"] = "adam",
        rate: float | None = None,
        end: float = 0.6,
        granularity: str = "weight",
        keep: Sequence[str] = (),
        prune_first: bool = False,
        prune_last: bool = False,
        trail: Path | None = None,
        interval: int | None = None,
    ) -> None:
        super().__init__(model, total_steps)
        self.last = round(end * total_steps)
        if self.last < 1 or not end <= 1:
            raise PlanError(self.refusal(f"must be at most 1 and at least one of the {total_steps} steps", end=end))
        if interval is not None and interval < 1:
            raise PlanError(self.refusal("must be at least 1", interval=interval))
        _check(density, l0_weight, temperature, update, rate, granularity)
        layers = chosen_weights(self.model, example_inputs, keep=keep, prune_first=prune_first, prune_last=prune_last)
        self.names = tuple(layers.values())
        self.notes = left_dense(self.model, layers, example_inputs)
        weights = [masks.dense_weight(self.model, name).float() for name in self.names]
        flat = [name for name, w in zip(self.names, weights, strict=True) if not w.abs().flatten().var() > 0]
        if flat:
            raise PlanError(f"weights of {flat[0]!r} do not differ in magnitude, so they have no temperature; keep it")
        ones = {n: torch.ones_like(w, dtype=torch.bool) for n, w in zip(self.names, weights, strict=True)}
        masks.attach(self.model, ones, SoftThreshold)
        for gate, weight in zip(self.gates(), weights, strict=True):
            gate.temperature.fill_(temperature * weight.abs().var())
            gate.is_exact = exact_gradient
        self.size = sum(weight.numel() for weight in weights)
        self.density, self.interval = density, interval or -(-self.last // 12)
        self.trail = None if trail is None else Trail(Path(trail))
        self.l0_weight = START / self.size if l0_weight is None else l0_weight
        self.least, self.pressure = self.l0_weight, 1.0
        self.scale = torch.tensor([1.0 if update == "sgd" else float(w.square().mean()) for w in weights])
        self.scaled = torch.zeros(len(weights))  # tau / scale, on the CPU
        if update == "sgd":
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD([self.scaled], rate or math.nan)
        else:
            rate = rate or self._distance(weights) / self.last
            self.optimizer = torch.optim.Adam([self.scaled], rate, betas=(0.9, 0.99), eps=1e-15)
        self.kept: tuple[tuple[Tensor, Tensor, Tensor], ...] = ()
        self.soft = torch.tensor(float(self.size))

    def _distance(self, weights: Sequence[Tensor]) -> float:
        """How many mean squares Adam may move a threshold in all: 2.5 times what the density takes, or 20.

        Adam makes steps of full size of a gradient that is mostly noise, so a rate for far more than the way to go
        lets thresholds wander: from 20 mean squares the densities of layers were unrelated from seed to seed.
        """
        if self.density is None:
            return 20.0
        squares = torch.cat([w.square().flatten() / w.square().mean() for w in weights])
        place = max(1, min(len(squares), round((1 - self.density) * len(squares))))
        return 2.5 * float(squares.kthvalue(place).values)

    # ---- the three calls ---------------------------------------------------------------------------------------------

    def loss(self) -> Tensor:
        """lambda times the soft L0 norm; its gradient reaches the weights only where it is exact."""
        if self.is_settled:
            return super().loss()
        rows, norms = [], []
        for gate, weight in self._weights():
            s = gate.gate(weight if gate.is_exact else weight.detach())
            norms.append(s.sum())
            rows.append(gate.slopes(weight, s.detach()))
        self.kept = tuple(rows)
        total = torch.stack(norms).sum()
        self.soft = total.detach()
        return self.strength * total

    @property
    def strength(self) -> float:
        """lambda as it is in force."""
        return self.l0_weight * self.pressure

    @torch.no_grad()
    def after_step(self) -> None:
        if self.steps_done > self.last:
            return
        self._learn()
        if self.density is not None:
            self._control(self.density)
        is_end = self.steps_done == self.last
        if is_end:
            self._freeze()
        if self.trail is not None and (is_end or self.steps_done % self.interval == 0):
            self.trail.forget(self.steps_done if self.steps_done > self.interval else 0)
            self.trail.add(self.steps_done, self.finalize())

    def finalize(self) -> nn.Module:
        net = copy.deepcopy(self.model)
        for name, mask in zip(self.names, self._hard(), strict=True):
            _attached(net, name)[0].freeze(mask)
        return masks.bake(net)

    @property
    def is_settled(self) -> bool:
        return self.steps_done >= self.last

    # ---- how it stands -----------------------------------------------------------------------------------------------

    def gates(self) -> tuple[SoftThreshold, ...]:
        """Of the pruned layers, in the order of `names`."""
        return tuple(gate for gate, _ in self._weights())

    @torch.no_grad()
    def diagnostics(self) -> tuple[LayerThreshold, ...]:
        """One row a layer."""
        rows = []
        for name, mask, (gate, weight) in zip(self.names, self._hard(), self._weights(), strict=True):
            band = float((gate.distance(weight).abs() < BAND).float().mean())
            tau, temperature = float(gate.threshold), float(gate.temperature)
            rows.append(LayerThreshold(name, tau, temperature, masks.density([mask]), band))
        return tuple(rows)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "scaled": self.scaled.clone(),
            "scale": self.scale.clone(),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "l0_weight": self.l0_weight,
            "pressure": self.pressure,
            "masks": {name: mask.clone() for name, mask in masks.attached_masks(self.model).items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.scaled.copy_(state["scaled"])
        self.scale.copy_(state["scale"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.l0_weight, self.pressure = float(state["l0_weight"]), float(state["pressure"])
        masks.set_masks(self.model, state["masks"])
        for gate in self.gates():
            gate.is_soft = not self.is_settled
        self._write()

    # ---- one step ----------------------------------------------------------------------------------------------------

    def _learn(self) -> None:
        """One optimizer step of the thresholds, by the gradients that the weights have just been moved by."""
        if not self.kept:
            raise PlanError("the thresholds have no gradient; add pruner.loss() to the loss of every step")
        gradients = [weight.grad for _, weight in self._weights()]
        if all(gradient is None for gradient in gradients):
            raise PlanError("the weights have no gradients; call pruner.step() before zero_grad()")
        found = []
        for (slope, of_norm, sigma), gradient in zip(self.kept, gradients, strict=True):
            own = self.strength * of_norm
            task = torch.zeros_like(sigma) if gradient is None else (slope * (gradient.float() - own)).sum()
            found.append(-task - self.strength * sigma)
        self.kept = ()
        slopes = torch.stack(found).cpu().float() * self.scale
        if not slopes.isfinite().all():
            for _, weight in self._weights():
                check_scores(weight)
            return  # a step that a gradient scaler left out
        self.scaled.grad = slopes
        self.optimizer.step()
        most = torch.stack([weight.detach().float().square().max() for _, weight in self._weights()]).cpu()
        self.scaled.copy_(self.scaled.clamp(min=0).minimum(most * (1 - 1e-3) / self.scale))
        self._write()

    def _control(self, density: float) -> None:
        """lambda up where the density is above its curve, down where it is below."""
        place = min(1.0, self.steps_done / (ARRIVAL * self.last))
        error = math.log(float(self.soft) / self.size) - math.log(density) * place
        error = min(0.5, max(-0.5, error))
        self.l0_weight = max(self.least, self.l0_weight * math.exp(GAIN * error / self.last))
        self.pressure = math.exp(STIFFNESS * error)

    def _weights(self) -> list[tuple[SoftThreshold, nn.Parameter]]:
        """Every gate with the parameter behind it."""
        return [_attached(self.model, name) for name in self.names]

    @torch.no_grad()
    def _hard(self) -> list[Tensor]:
        """The hard masks as they would be now, or as they are."""
        return [gate.distance(weight) > 0 if gate.is_soft else gate.mask for gate, weight in self._weights()]

    def _write(self) -> None:
        for gate, tau in zip(self.gates(), (self.scaled * self.scale).tolist(), strict=True):
            gate.threshold.fill_(tau)

    def _freeze(self) -> None:
        """Hard masks from now on; where a density is wanted, by thresholds times one number."""
        if self.density is not None:
            squares = [w.float().square() / torch.maximum(g.threshold, g.temperature) for g, w in self._weights()]
            rows = [one.flatten() for one in squares]
            check_scores(torch.cat(rows))
            for row in rows:
                row[row.argmax()] = math.inf
            kept = keep_best(torch.cat(rows), max(len(rows), kept_count(self.size, self.density)))
            parts = kept.split([row.numel() for row in rows])
            found = [part.view(one.shape) for part, one in zip(parts, squares, strict=True)]
        else:
            found = self._hard()
        for gate, mask in zip(self.gates(), found, strict=True):
            gate.freeze(mask)


def _attached(model: nn.Module, name: str) -> tuple[SoftThreshold, nn.Parameter]:
    """The gate of a parameter, and the parameter behind it."""
    module, leaf = masks.owner(model, name)
    chain = getattr(module.parametrizations, leaf)
    return chain[0], chain.original


def _check(
    density: float | None,
    l0_weight: float | None,
    temperature: float,
    update: str,
    rate: float | None,
    granularity: str,
) -> None:
    """Raise a PlanError for options out of range."""
    if granularity != "weight":
        raise PlanError(f"granularity {granularity!r}: thresholds remove single weights; use 'weight'")
    if density is None and l0_weight is None:
        raise PlanError("give density=, the kept fraction that is wanted, or l0_weight=, the price of a weight")
    if density is not None and not 0 < density < 1:
        raise PlanError(f"density {density}, must lie between 0 and 1")
    if not all(0 < number < math.inf for number in (l0_weight, temperature, rate) if number is not None):
        raise PlanError(f"l0_weight {l0_weight}, temperature {temperature}, rate {rate}: must be finite and above 0")
    if update not in ("adam", "sgd"):
        raise unknown_name("update", update, ("adam", "sgd"))
    if update == "sgd" and rate is None:
        raise PlanError("update 'sgd' needs rate=, in units of squared weights per gradient; 'adam' finds its own")
