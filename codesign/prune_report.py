"""What `codesign prune` says of a finished run: one report a target, and lines on the screen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from accel_models import SimulationResult, target
from codesign.prune import DENSE, PruneConfig, PruneOutcome, is_int8
from codesign.show import console
from codesign.subject import load_split, objective_of

if TYPE_CHECKING:
    from reports.records import ReportRecord


def report(config: PruneConfig, outcome: PruneOutcome, folder: Path, made: str = "") -> list[Path]:
    """Write one report a target and say what came of the run; returns the paths.

    Args:
        made: how, if not by the command of the configuration.
    """
    from reports.html import write_report

    say = console().print
    images = len(load_split(config.model, config.data, "test"))
    for line in _lines(config, outcome, images):
        say(line)
    made = made or f"{config.method} over {config.epochs} epochs; {config.command(folder)}"
    paths = []
    for name, (before, after) in outcome.priced.items():
        place = folder if len(outcome.priced) == 1 else folder / before.target
        place.mkdir(exist_ok=True)
        paths.append(write_report(place, _record(config, outcome, name, made, images)))
        price, expected = price_in_words(before, after, outcome.nonzero_macs)
        say(f"{price}; report: {paths[-1]}")
        say(expected)
    return paths


def _lines(config: PruneConfig, outcome: PruneOutcome, images: int) -> Iterator[str]:
    """What came of the run, without prices."""
    metric = objective_of(config.model).metric
    dense = "" if outcome.dense_test is None else f"dense {outcome.dense_test:.2%}, "
    yield (
        f"test {metric}: {dense}pruned {outcome.test:.2%} on {images:,} images; "
        f"{outcome.nonzeros:,} of {outcome.weights:,} weights are left, {outcome.compression:.1f}x fewer"
    )
    if config.method != DENSE and outcome.nonzeros == outcome.weights and not outcome.removed_channels:
        yield f"nothing was removed: {config.method} found nothing to remove with these options"
    if outcome.int8_test is not None:
        machines = ", ".join(name for name in outcome.priced if is_int8(target(name)))
        yield f"test {metric} in int8: {outcome.int8_test:.2%} (post-training), on {machines}"
    if outcome.channels:
        yield _removed(outcome)
    yield from _attacks(outcome)
    yield from outcome.notes


def _record(config: PruneConfig, outcome: PruneOutcome, name: str, made: str, images: int) -> ReportRecord:
    """What the report of one target shows."""
    from reports.curves import rooflines
    from reports.records import Accuracies, ReportRecord

    before, after = outcome.priced[name]
    machine, metric = target(name), objective_of(config.model).metric
    notes = [made]
    if metric != "accuracy":
        notes.append(f"accuracies are {metric}s, at an overlap of one half")
    if outcome.removed_channels:
        notes.append(f"{_removed(outcome)}, since nothing depended on them; plan.json names them")
    if outcome.int8_test is not None and is_int8(machine):
        notes.append(f"test {metric} in int8: {outcome.int8_test:.2%} of the pruned network, quantised after training")
    options = ", ".join(f"{key} {value}" for key, value in config.options.items())
    roof_before, roof_after = rooflines(before, after, machine.spec)
    return ReportRecord(
        title=f"{config.model} with {config.method} ({options or 'default options'}) on {before.title}",
        before=before,
        after=after,
        model=config.model,
        data=config.data,
        accuracies=Accuracies(dense_test=outcome.dense_test, tuned_test=outcome.test, test_images=images),
        roofline_before=roof_before,
        roofline_after=roof_after,
        seed=config.seed,
        notes=(*notes, *outcome.notes, *_attacks(outcome)),
    )


def _removed(outcome: PruneOutcome) -> str:
    return f"{outcome.removed_channels:,} of {outcome.channels:,} channel units removed"


def _attacks(outcome: PruneOutcome) -> list[str]:
    return [f"{name} under attack: {row}" for name, row in outcome.robust.items()]


def price_in_words(before: SimulationResult, after: SimulationResult, nonzero_macs: float) -> tuple[str, str]:
    """What pruning is worth on one machine, and how far that can be trusted.

    Args:
        nonzero_macs: of the pruned network.
    """
    from reports.comparison import describe_ratios

    latency, energy = after.latency_s / before.latency_s, after.energy_j / before.energy_j
    price = (
        f"{before.title}: latency {latency:.3f}x, energy {energy:.3f}x, MACs {after.macs / before.macs:.3f}x of "
        f"dense ({nonzero_macs / before.macs:.3f}x by weights that are not zero)"
    )
    return price, describe_ratios(before, after)
