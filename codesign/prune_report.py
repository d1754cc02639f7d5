"""What `codesign prune` says of a finished run: one report a target, and lines on the screen."""

from __future__ import annotations

from pathlib import Path

from accel_models import SimulationResult, target
from codesign.prune import DENSE, PruneConfig, PruneOutcome, is_int8
from codesign.show import console
from codesign.subject import load_split, objective_of


def report(config: PruneConfig, outcome: PruneOutcome, folder: Path, made: str = "") -> list[Path]:
    """Write one report a target and say what came of the run; returns the paths.

    Args:
        made: how, if not by the command of the configuration.
    """
    from reports.curves import rooflines
    from reports.html import write_report
    from reports.records import Accuracies, ReportRecord

    screen = console()
    images = len(load_split(config.model, config.data, "test"))
    metric = objective_of(config.model).metric
    dense = "" if outcome.dense_test is None else f"dense {outcome.dense_test:.2%}, "
    screen.print(
        f"test {metric}: {dense}pruned {outcome.test:.2%} on {images:,} images; "
        f"{outcome.nonzeros:,} of {outcome.weights:,} weights are left, {outcome.compression:.1f}x fewer"
    )
    if config.method != DENSE and outcome.nonzeros == outcome.weights and not outcome.removed_channels:
        screen.print(f"nothing was removed: {config.method} found nothing to remove with these options")
    int8 = "" if outcome.int8_test is None else f"test {metric} in int8: {outcome.int8_test:.2%}"
    if int8:
        screen.print(f"{int8} (post-training), on {', '.join(n for n in outcome.priced if is_int8(target(n)))}")
    removed = f"{outcome.removed_channels:,} of {outcome.channels:,} channel units removed" if outcome.channels else ""
    if removed:
        screen.print(removed)
    for name, row in outcome.robust.items():
        screen.print(f"{name} under attack: {row}")
    for note in outcome.notes:
        screen.print(note)
    options = ", ".join(f"{name} {value}" for name, value in config.options.items())
    paths = []
    for name, (before, after) in outcome.priced.items():
        place = folder if len(outcome.priced) == 1 else folder / before.target
        place.mkdir(exist_ok=True)
        machine = target(name)
        said = [made or f"{config.method} over {config.epochs} epochs; {config.command(folder)}"]
        if metric != "accuracy":
            said.append(f"accuracies are {metric}s, at an overlap of one half")
        if outcome.removed_channels:
            said.append(f"{removed}, since nothing depended on them; plan.json names them")
        if int8 and is_int8(machine):
            said.append(f"{int8} of the pruned network, quantised after training")
        said += [*outcome.notes, *(f"{each} under attack: {row}" for each, row in outcome.robust.items())]
        roof_before, roof_after = rooflines(before, after, machine.spec)
        record = ReportRecord(
            title=f"{config.model} with {config.method} ({options or 'default options'}) on {before.title}",
            before=before,
            after=after,
            model=config.model,
            data=config.data,
            accuracies=Accuracies(dense_test=outcome.dense_test, tuned_test=outcome.test, test_images=images),
            roofline_before=roof_before,
            roofline_after=roof_after,
            seed=config.seed,
            notes=tuple(said),
        )
        paths.append(write_report(place, record))
        price, expected = price_in_words(before, after, outcome.nonzero_macs)
        screen.print(f"{price}; report: {paths[-1]}")
        screen.print(expected)
    return paths


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
