"""What a report shows, as frozen records that survive JSON; figures and pages draw them and compute nothing.

Latencies in s, energies in J, sizes in bytes, accuracies as fractions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np

from accel_models.result import SimulationResult
from reports.codec import Record
from reports.comparison import Comparison, compare

METRICS = {"latency": "latency_s", "energy": "energy_j", "macs": "macs", "size": "size_bytes"}


@dataclass(frozen=True)
class FrontPoint:
    """One candidate of a search.

    Attributes:
        predicted_loss: expected rise of the loss over the dense network.
        heldout_accuracy: measured on held-out training images before fine-tuning; None if it was not measured.
        feasible: keeps every budget. chosen: the search's pick. is_dense: the network as it came.
        choices: what it changes, variable name to chosen option.
    """

    predicted_loss: float
    latency_s: float
    energy_j: float
    macs: float
    heldout_accuracy: float | None = None
    parameters: int | None = None
    size_bytes: float | None = None
    feasible: bool = True
    chosen: bool = False
    is_dense: bool = False
    choices: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """How it is shown: dense, chosen, feasible or infeasible."""
        if self.is_dense or self.chosen:
            return "dense" if self.is_dense else "chosen"
        return "feasible" if self.feasible else "infeasible"


@dataclass(frozen=True)
class FrontRecord(Record):
    """Candidates of a search: the front, what was dominated, and what broke a budget.

    Attributes:
        metric: the cost axis: latency, energy, macs or size.
        budgets: limits in SI units, by metric.
        evaluated: how many candidates the search looked at, of which `points` may be a part.
        gap: proven relative optimality gap of the exact solver; None if it was not used.
    """

    FORMAT: ClassVar[str] = "codesign.front"

    metric: str
    budgets: Mapping[str, float]
    points: tuple[FrontPoint, ...]
    evaluated: int = 0
    gap: float | None = None

    def cost(self, point: FrontPoint) -> float | None:
        """A point on the cost axis."""
        return getattr(point, METRICS[self.metric])

    @cached_property
    def frontier(self) -> tuple[int, ...]:
        """Points that no other one beats in both cost and predicted loss, cheapest first; of equal ones the first."""
        costs = [self.cost(point) for point in self.points]
        known = [i for i, cost in enumerate(costs) if cost is not None]
        order = sorted(known, key=lambda i: (costs[i], self.points[i].predicted_loss, i))
        found: list[int] = []
        for i in order:
            if not found or self.points[i].predicted_loss < self.points[found[-1]].predicted_loss:
                found.append(i)
        return tuple(found)

    def thinned(self, most: int = 600) -> FrontRecord:
        """At most about `most` points: the frontier, the dense network, the pick and all measured ones stay.

        Of the rest every n-th is kept in order of cost, so that the cloud keeps its outline.
        """
        if len(self.points) <= most:
            return self
        keep = {i for i, p in enumerate(self.points) if p.chosen or p.is_dense or p.heldout_accuracy is not None}
        keep |= set(self.frontier)
        rest = sorted(set(range(len(self.points))) - keep, key=lambda i: (self.cost(self.points[i]) or 0.0, i))
        room = max(most - len(keep), 1)
        keep |= set(rest[:: -(-len(rest) // room)]) if rest else set()
        points = tuple(self.points[i] for i in sorted(keep))
        return FrontRecord(self.metric, self.budgets, points, self.evaluated or len(self.points), self.gap)


@dataclass(frozen=True)
class StaircaseRecord(Record):
    """What one channel group's count does to the latency of the whole network, everything else kept.

    Attributes:
        group: its name. target: the machine.
        counts: of channels, rising. latency_s: one a count.
        offered: counts that a search may choose. chosen: the one it chose.
    """

    FORMAT: ClassVar[str] = "codesign.staircase"

    group: str
    target: str
    counts: tuple[int, ...]
    latency_s: tuple[float, ...]
    offered: tuple[int, ...] = ()
    chosen: int | None = None

    @property
    def span_s(self) -> float:
        """How much time the group decides over."""
        return max(self.latency_s) - min(self.latency_s) if self.latency_s else 0.0

    def latency_at(self, count: int) -> float | None:
        return dict(zip(self.counts, self.latency_s, strict=True)).get(count)


@dataclass(frozen=True)
class RooflinePoint:
    """One layer under the roof.

    Attributes:
        intensity: multiplications really performed per byte moved through the memory.
        achieved: multiplications really performed per second.
        share: of the network's time.
    """

    name: str
    intensity: float
    achieved: float
    share: float
    bound: str


@dataclass(frozen=True)
class RooflineRecord(Record):
    """A machine's peak and one memory's bandwidth, and where the layers of a network lie under them.

    Attributes:
        peak: multiplications per second in the network's precision.
        memory, bandwidth: the memory whose traffic counts, and its bytes per second.
        points: layers that multiply and use the memory. left_out: how many multiply without using it.
        rest_share: share of the time in layers that do not multiply or do not use the memory.
    """

    FORMAT: ClassVar[str] = "codesign.roofline"

    target: str
    title: str
    precision: str
    peak: float
    memory: str
    bandwidth: float
    points: tuple[RooflinePoint, ...]
    left_out: int = 0
    rest_share: float = 0.0

    @property
    def ridge(self) -> float:
        """Multiplications per byte from which compute binds."""
        return self.peak / self.bandwidth

    def roof(self, intensity: float) -> float:
        return min(self.peak, intensity * self.bandwidth)


@dataclass(frozen=True)
class PlanGroup:
    """A channel group in a plan: `layers` names those whose channels it holds."""

    group: str
    kept: int
    total: int
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlanMask:
    """A layer's weight mask in a plan."""

    layer: str
    granularity: str
    kept: int
    total: int

    @property
    def density(self) -> float:
        return self.kept / self.total if self.total else 1.0


@dataclass(frozen=True)
class PlanRecord(Record):
    """What was pruned: channels by group, weights by layer."""

    FORMAT: ClassVar[str] = "codesign.plan_table"

    groups: tuple[PlanGroup, ...] = ()
    masks: tuple[PlanMask, ...] = ()

    @property
    def kept_channels(self) -> tuple[int, int]:
        """(kept, total) over all groups."""
        return sum(row.kept for row in self.groups), sum(row.total for row in self.groups)

    @property
    def kept_weights(self) -> tuple[int, int]:
        """(kept, total) over all masked layers."""
        return sum(row.kept for row in self.masks), sum(row.total for row in self.masks)


@dataclass(frozen=True)
class Accuracies:
    """Fractions of images classified right; None where it was not measured.

    Attributes:
        dense_heldout, pruned_heldout, tuned_heldout: on training images held out from training: the dense network, the
            pruned one before and after fine-tuning. Choices were made on these images.
        dense_test, tuned_test: on the test images, used for nothing else.
        heldout_images, test_images: how many; they give the standard error of an accuracy.
        precision: in which the accuracies were measured.
    """

    dense_heldout: float | None = None
    pruned_heldout: float | None = None
    tuned_heldout: float | None = None
    dense_test: float | None = None
    tuned_test: float | None = None
    heldout_images: int | None = None
    test_images: int | None = None
    precision: str = "fp32"


@dataclass(frozen=True)
class BudgetRecord:
    """One budget: its text as given, its limit and what was reached in SI units, and whether it binds."""

    text: str
    metric: str
    limit: float
    reached: float
    binding: bool = False

    @property
    def met(self) -> bool:
        return self.reached <= self.limit * (1 + 1e-9)


@dataclass(frozen=True)
class ReportRecord(Record):
    """Everything that a report shows. All but `title` and `before` may be left out: the page then has no such section.

    Attributes:
        title: of the page. model, data: names. command: that made it.
        before, after: the network on the target before and after pruning; `after` None reports one simulation.
        channel_multiple: channels that the target computes together; 1 if not known.
        parameters, size_bytes: stored numbers and their bytes, before and after.
        roofline_before, roofline_after: drawn in one figure.
        seed, release, created: how it was made. `release` is the toolkit's version, when empty the installed one;
            `created` is a text, left out where equal runs shall give equal files.
        phase_seconds: wall time by phase.
        notes: what a reader must know. not_modelled: what the prices leave out.
    """

    FORMAT: ClassVar[str] = "codesign.report"

    title: str
    before: SimulationResult
    after: SimulationResult | None = None
    model: str = ""
    data: str = ""
    command: str = ""
    channel_multiple: int = 1
    parameters: tuple[int, int] | None = None
    size_bytes: tuple[float, float] | None = None
    accuracies: Accuracies | None = None
    budgets: tuple[BudgetRecord, ...] = ()
    front: FrontRecord | None = None
    staircases: tuple[StaircaseRecord, ...] = ()
    roofline_before: RooflineRecord | None = None
    roofline_after: RooflineRecord | None = None
    plan: PlanRecord | None = None
    seed: int | None = None
    release: str = ""
    created: str = ""
    phase_seconds: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    not_modelled: tuple[str, ...] = ()

    @cached_property
    def comparison(self) -> Comparison | None:
        """Before against after, layer by layer."""
        return compare(self.before, self.after, self.channel_multiple) if self.after else None

    @cached_property
    def all_notes(self) -> tuple[str, ...]:
        """The record's notes and those of the simulations, none twice."""
        return tuple(dict.fromkeys((*self.notes, *self.before.notes, *(self.after.notes if self.after else ()))))

    @property
    def most_important_staircases(self) -> tuple[StaircaseRecord, ...]:
        """Those that decide over most time, at most six."""
        return tuple(sorted(self.staircases, key=lambda record: (-record.span_s, record.group))[:6])


def standard_error(accuracy: float, images: int) -> float:
    """Of an accuracy measured on so many images, sqrt(p (1 - p) / n).

    >>> round(standard_error(0.9, 900), 4)
    0.01
    """
    return float(np.sqrt(accuracy * (1 - accuracy) / images))
