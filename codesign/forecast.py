"""`codesign prune --plan`: what a run would remove and what the machines would say of it, without any training.

A method is stepped through its schedule on the weights as they are. What it was asked for, such as the density of each
layer, is then as it will be after training; what the weights decide, such as the shares of layers that are ranked
together, or channels that lose all their weights, is decided anew as they are trained. Of a method that learns what
goes nothing can be said but what it leaves alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from accel_models import SimulationResult, target
from codesign.costs import nonzero_macs
from codesign.prune import PruneConfig, pruner_of, start, total_steps, without_dead_channels
from codesign.prune_report import price_in_words
from codesign.show import console
from codesign.subject import lowered
from pruning.masks import attached_masks, dense_weight
from pruning.progress import shown
from workloads.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from workloads.graph import LayerGraph


@dataclass(frozen=True)
class LayerForecast:
    """One layer with weights.

    Attributes:
        weights, kept: single weights before, and of these the ones that are not removed.
        filters, kept_filters: output channels before and after.
    """

    name: str
    weights: int
    kept: int
    filters: int
    kept_filters: int


@dataclass(frozen=True)
class Forecast:
    """What a run would come to.

    Attributes:
        layers: in the order of the dense graph. notes: of the method.
        priced: the dense and the pruned network on each target.
        nonzero_macs: multiplications of the pruned network by weights that are not zero.
        is_learned: the method learns what goes; the pruned network is the dense one.
    """

    layers: tuple[LayerForecast, ...]
    notes: tuple[str, ...]
    priced: list[tuple[SimulationResult, SimulationResult]]
    nonzero_macs: float
    is_learned: bool


def forecast(config: PruneConfig) -> Forecast:
    """Carry a method out on the weights as they are, and price what is left. Nothing is written.

    Raises:
        CodesignError: what `codesign.prune.run` would refuse before training.
    """
    from workloads.models import example_input

    cls, images, module = start(config)
    if cls is None:
        raise ConfigError(f"--plan: {config.method} trains without pruning")
    machines, example = [target(name) for name in config.targets], example_input(config.model)
    steps = total_steps(config, images)
    pruner = pruner_of(cls, config, module, example, images, None, steps)
    sparse = module
    if not cls.IS_LEARNED:
        for _ in shown(range(steps), "steps of the schedule", steps, enabled=True):
            pruner.step()
        _as_trained(pruner.model, module)
        sparse = without_dead_channels(pruner, module, example).model
    before, after = (lowered(config.model, each, images["heldout"], config.unknown) for each in (module, sparse))
    return Forecast(
        layers=_layers(before, after),
        notes=pruner.notes,
        priced=[(machine.simulate(before), machine.simulate(after)) for machine in machines],
        nonzero_macs=nonzero_macs(after),
        is_learned=cls.IS_LEARNED,
    )


def show(config: PruneConfig, out: Path) -> None:
    """Print a forecast, and the command that carries it out."""
    from rich.table import Table

    found, screen = forecast(config), console()
    if found.is_learned:
        screen.print(f"{config.method} learns what goes: nothing can be said of it before training")
    else:
        table = Table("layer", "weights", "kept", "share", "filters", "kept", box=None)
        for row in found.layers:
            counts = (f"{row.weights:,}", f"{row.kept:,}", f"{row.kept / row.weights:.1%}")
            table.add_row(row.name, *counts, str(row.filters), str(row.kept_filters))
        screen.print(table)
        weights, kept = sum(row.weights for row in found.layers), sum(row.kept for row in found.layers)
        screen.print(f"{kept:,} of {weights:,} weights would stay, {weights / max(kept, 1):.1f}x fewer")
        for before, after in found.priced:
            screen.print(*price_in_words(before, after, found.nonzero_macs), sep="\n")
    for note in found.notes:
        screen.print(note)
    screen.print("nothing was trained or written; accuracy is what training will say:")
    screen.print(config.command(out), soft_wrap=True)


def _as_trained(model: nn.Module, dense: nn.Module) -> None:
    """Give weights that a method returned at zero their values again: training would have moved them by then."""
    for name, mask in attached_masks(model).items():
        values, old = dense_weight(model, name), dense_weight(dense, name)
        if values.shape == old.shape:
            values.copy_(old.where(mask, values))


def _layers(before: LayerGraph, after: LayerGraph) -> tuple[LayerForecast, ...]:
    """What becomes of every layer with weights; one that is gone keeps nothing."""
    left = {layer.name: layer for layer in after.layers}
    found = []
    for layer in before.layers:
        if not math.prod(layer.weight_shape):
            continue
        kept = left.get(layer.name)
        nonzeros = 0 if kept is None else round(kept.weight_elements * (kept.sparsity.density if kept.sparsity else 1))
        filters = 0 if kept is None else kept.k
        found.append(LayerForecast(layer.name, layer.weight_elements, nonzeros, layer.k, filters))
    return tuple(found)
