"""The record that a study's report shows, from the study's files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from accel_models import SimulationResult
from codesign.space import Space
from reports.curves import plan_record, rooflines, staircase
from reports.records import Accuracies, BudgetRecord, FrontPoint, FrontRecord, ReportRecord, StaircaseRecord

if TYPE_CHECKING:
    from codesign.job import Job, SearchConfig
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

    study, config = job.study, job.config
    stored, picked = study.read("result"), study.read("pick")["result"]
    before, after = (SimulationResult.from_dict(stored[name]) for name in ("dense", "pruned"))
    plan = PruningPlan.load(study.path("plan"))
    costs = {"dense": stored["dense_costs"], "pruned": stored["costs"]}
    roof_before, roof_after = rooflines(before, after, job.machine.spec)
    return ReportRecord(
        title=f"{config.model} pruned for {before.title}",
        before=before,
        after=after,
        model=config.model,
        data=config.data,
        command=config.command(study.folder),
        channel_multiple=job.machine.channel_multiple,
        parameters=(stored["parameters"][0], stored["parameters"][1]),
        size_bytes=(costs["dense"]["size"], costs["pruned"]["size"]),
        accuracies=_accuracies(stored),
        budgets=_budgets(config, stored, job.front),
        front=_front(job.space, job.front, picked),
        staircases=_staircases(job, plan),
        roofline_before=roof_before,
        roofline_after=roof_after,
        plan=plan_record(plan, job.space.analysis, config.granularity),
        seed=config.seed,
        phase_seconds=study.seconds(),
        notes=_notes(config, stored, job.front),
        not_modelled=NOT_MODELLED,
    )


def _accuracies(stored: Mapping[str, Any]) -> Accuracies:
    found = stored["accuracies"]
    return Accuracies(
        dense_heldout=found["dense_heldout"],
        pruned_heldout=found["pick_heldout"],
        tuned_heldout=found["tuned_heldout"],
        dense_test=found["dense_test"],
        tuned_test=found["test"],
        heldout_images=stored["heldout_images"],
        test_images=stored["test_images"],
    )


def _budgets(config: SearchConfig, stored: Mapping[str, Any], front: Front) -> tuple[BudgetRecord, ...]:
    limits, reached = stored["budgets"], stored["costs"]
    return tuple(
        BudgetRecord(text, metric, limits[metric], reached[metric], metric in front.exact.binding)
        for text in config.budgets
        for metric in (text.partition("=")[0],)
    )


def _front(space: Space, front: Front, picked: Mapping[str, Any]) -> FrontRecord:
    """All candidates, the measured ones with their accuracy and their price on the real pruned graph."""
    measured = {tuple(item["choice"]): item for item in picked["measured"]}
    points = []
    for i, choice in enumerate(front.choices):
        item = measured.get(key := tuple(int(option) for option in choice))
        costs = item["costs"] if item else {name: float(values[i]) for name, values in front.costs.items()}
        points.append(
            FrontPoint(
                predicted_loss=float(front.loss[i]),
                latency_s=costs["latency"],
                energy_j=costs["energy"],
                macs=costs["macs"],
                size_bytes=costs["size"],
                heldout_accuracy=item["heldout"] if item else None,
                feasible=item["feasible"] if item else bool(front.feasible[i]),
                chosen=list(key) == list(picked["choice"]),
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


def _notes(config: SearchConfig, stored: Mapping[str, Any], front: Front) -> tuple[str, ...]:
    """What a reader must know: table against final price, what binds, and what held-out means for known weights."""
    metric, dense = front.metric, stored["dense_costs"][front.metric]
    table, final = stored["table_cost"] / dense, stored["costs"][metric] / dense
    notes = [
        f"The search's price table said {table:.3f}x for the pick's {metric}; the real pruned graph has {final:.3f}x.",
        what_binds(SimulationResult.from_dict(stored["pruned"])),
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
