"""The record that a study's report shows, from the study's files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from accel_models import SimulationResult
from codesign.space import Space
from reports.curves import plan_record, rooflines, staircase
from reports.records import Accuracies, BudgetRecord, FrontPoint, FrontRecord, ReportRecord, StaircaseRecord

if TYPE_CHECKING:
    from codesign.job import Job, SearchConfig
    from codesign.records import Pick, SearchResult
    from codesign.search import Front
    from pruning.plan import PruningPlan

NOT_MODELLED = (
    "Accuracy is measured on the float model; the target computes in its own precision, whose rounding is not applied.",
    "Zeros of activations come from 32 held-out images before fine-tuning of the candidates that a search compares.",
)


def study_record(job: Job) -> ReportRecord:
    """Everything that the report of a finished study shows.

    Raises:
        ConfigError: a phase's file is missing.
    """
    from pruning.plan import PruningPlan

    study, config, result = job.study, job.config, job.result
    before, after = result.dense, result.pruned
    plan = PruningPlan.load(study.path("plan"))
    roof_before, roof_after = rooflines(before, after, job.machine.spec)
    return ReportRecord(
        title=f"{config.model} pruned for {before.title}",
        before=before,
        after=after,
        model=config.model,
        data=config.data,
        command=config.command(study.folder),
        channel_multiple=job.machine.channel_multiple,
        parameters=result.parameters,
        size_bytes=(result.dense_costs["size"], result.costs["size"]),
        accuracies=_accuracies(result),
        budgets=_budgets(config, result, job.front),
        front=_front(job.space, job.front, job.picked),
        staircases=_staircases(job, plan),
        roofline_before=roof_before,
        roofline_after=roof_after,
        plan=plan_record(plan, job.space.analysis, config.granularity),
        seed=config.seed,
        phase_seconds=study.seconds(),
        notes=_notes(config, result, job.front),
        not_modelled=NOT_MODELLED,
    )


def _accuracies(result: SearchResult) -> Accuracies:
    return Accuracies(
        dense_heldout=result.dense_heldout,
        pruned_heldout=result.pick_heldout,
        tuned_heldout=result.tuned_heldout,
        dense_test=result.dense_test,
        tuned_test=result.test,
        heldout_images=result.heldout_images,
        test_images=result.test_images,
    )


def _budgets(config: SearchConfig, result: SearchResult, front: Front) -> tuple[BudgetRecord, ...]:
    limits, reached = result.budgets, result.costs
    return tuple(
        BudgetRecord(text, metric, limits[metric], reached[metric], metric in front.exact.binding)
        for text in config.budgets
        for metric in (text.partition("=")[0],)
    )


def _front(space: Space, front: Front, picked: Pick) -> FrontRecord:
    """All candidates, the measured ones with their accuracy and their price on the real pruned graph."""
    measured = {item.choice: item for item in picked.measured}
    points = []
    for i, choice in enumerate(front.choices):
        item = measured.get(key := tuple(int(option) for option in choice))
        costs = item.costs if item else {name: float(values[i]) for name, values in front.costs.items()}
        points.append(
            FrontPoint(
                predicted_loss=float(front.loss[i]),
                latency_s=costs["latency"],
                energy_j=costs["energy"],
                macs=costs["macs"],
                size_bytes=costs["size"],
                heldout_accuracy=item.heldout if item else None,
                feasible=item.feasible if item else bool(front.feasible[i]),
                chosen=key == picked.choice,
                is_dense=not np.any(choice),
                choices=space.describe(choice) if item else {},
            )
        )
    return FrontRecord(front.metric, dict(front.budgets), tuple(points), len(points), front.exact.gap).thinned()


def _staircases(job: Job, plan: PruningPlan) -> tuple[StaircaseRecord, ...]:
    return tuple(
        staircase(
            job.space.analysis,
            job.machine,
            variable.of,
            tuple(option.count for option in variable.options),
            chosen=len(plan.channels[variable.of]) if variable.of in plan.channels else None,
        )
        for variable in job.space.variables
        if variable.kind == "channels"
    )


def _notes(config: SearchConfig, result: SearchResult, front: Front) -> tuple[str, ...]:
    """What a reader must know: table against final price, what binds, and what held-out means for known weights."""
    metric, dense = front.metric, result.dense_costs[front.metric]
    table, final = result.table_cost / dense, result.costs[metric] / dense
    notes = [
        f"The search's price table said {table:.3f}x for the pick's {metric}; the real pruned graph has {final:.3f}x.",
        what_binds(result.pruned),
    ]
    if config.weights is None:
        notes.append(
            "The known weights of this model were trained on the whole training set, the held-out images included: "
            "held-out accuracies rank candidates, but lie above what unseen images would give."
        )
    return tuple(notes)


def what_binds(result: SimulationResult) -> str:
    """Shares of the time by what binds a layer, largest first, in one sentence.

    >>> from accel_models import target
    >>> from workloads.tables import table
    >>> what_binds(target("ideal").simulate(table("resnet18")))
    'What binds after pruning, by share of the time: compute 93%, add layers 4%, dram 2%, max_pool layers 2%.'
    """
    found: dict[str, float] = {}
    for layer in result.layers:
        name = layer.bound if layer.macs else f"{layer.op} layers"
        found[name] = found.get(name, 0.0) + layer.cycles / result.cycles
    shares = [
        f"{name} {share:.0%}" for name, share in sorted(found.items(), key=lambda item: -item[1]) if share >= 0.005
    ]
    return f"What binds after pruning, by share of the time: {', '.join(shares)}."
