"""How a quantity moves over training, counted in optimizer steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from workloads.errors import PlanError


@dataclass(frozen=True)
class CubicSchedule:
    """Sparsity that grows fast while much is redundant, and ever slower.

        s(t) = s_f + (s_i - s_f) (1 - (t - t0) / (t1 - t0))^3   for t0 <= t <= t1

    s_i before, s_f after. Between updates, every `frequency` steps and at the end, nothing changes.

    Attributes:
        final: s_f. initial: s_i.
        begin, end: t0 and t1, in optimizer steps.
        frequency: steps between updates.

    Source: Zhu and Gupta, "To prune, or not to prune", 2017, equation 1.

    >>> schedule = CubicSchedule(final=0.8, begin=0, end=4)
    >>> [round(schedule.sparsity(step), 4) for step in range(6)]
    [0.0, 0.4625, 0.7, 0.7875, 0.8, 0.8]
    """

    final: float
    begin: int
    end: int
    frequency: int = 1
    initial: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.initial <= self.final < 1 and self.final > 0):
            raise PlanError(f"sparsity from {self.initial} to {self.final}: needs 0 <= initial <= final < 1, final > 0")
        if not 0 <= self.begin < self.end or self.frequency < 1:
            given = f"steps {self.begin}..{self.end} every {self.frequency}"
            raise PlanError(f"schedule over {given}: needs 0 <= begin < end and frequency >= 1; train longer")

    def sparsity(self, step: int) -> float:
        """Removed fraction after `step` optimizer steps."""
        clamped = min(max(step, self.begin), self.end)
        remaining = 1 - (clamped - self.begin) / (self.end - self.begin)
        return self.final + (self.initial - self.final) * remaining**3

    def is_update(self, step: int) -> bool:
        """Whether the sparsity changes at this step."""
        inside = self.begin <= step <= self.end
        return inside and (step == self.end or (step - self.begin) % self.frequency == 0)


@dataclass(frozen=True)
class CosineSchedule:
    """A learning rate that climbs linearly to its peak and falls along half a cosine.

    Step t of `steps` uses peak (t + 1) / (warmup + 1) while t < warmup, then
    peak / 2 (1 + cos(pi (t - warmup) / (steps - warmup))), so that the last step's rate is small but not zero.

    Source: Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5, one period.

    >>> [round(CosineSchedule(peak=1.0, steps=5, warmup=1).rate(step), 4) for step in range(5)]
    [0.5, 1.0, 0.8536, 0.5, 0.1464]
    """

    peak: float
    steps: int
    warmup: int = 0

    def rate(self, step: int) -> float:
        """Learning rate of optimizer step `step`, 0 <= step < steps."""
        if step < self.warmup:
            return self.peak * (step + 1) / (self.warmup + 1)
        return self.peak / 2 * (1 + math.cos(math.pi * (step - self.warmup) / max(1, self.steps - self.warmup)))
