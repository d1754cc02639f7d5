"""Which channels of a finished model do nothing, as a plan that removes them.

Pruning that leaves a network at its full size (filter masks, gates, connectivity) leaves channels behind whose weights
are all zero, or which nothing reads any more. `dead_channels` finds them in the layer graph:

* *Values*. The graph runs once on inputs that are not known, with NaN for "not known". A number that comes out is the
  same for every input: zero times anything is zero, and a negative bias behind a relu is zero too.
* *Reads*. A unit is dead if each weight that reads it is zero or reads zeros only. The filters of a dead unit read
  nothing themselves, so looking goes on until no further unit dies.

The numbers in question are those of eval mode, batch norms folded in, and inputs are taken to be finite. What is a
constant but not zero stays: to remove it, what reads it would need another bias, and that would be wrong at every edge
where padding shows zeros instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pruning.plan import PruningPlan
from pruning.surgery import check_equal
from pruning.wiring import Wiring, wire
from workloads.channel_groups import ChannelGroup
from workloads.errors import PlanError
from workloads.graph import Layer, LayerGraph, Op
from workloads.reference import OPERATIONS, Arrays, activate

if TYPE_CHECKING:
    from torch import nn

SUMS = (Op.CONV, Op.CONV_TRANSPOSE, Op.LINEAR)


def dead_channels(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> PruningPlan:
    """The plan that removes every unit of a channel group that has no effect; applied, the model answers as before.

    Args:
        model: finished (plain or baked parameters). Not modified; in whatever mode, eval mode is what counts.
        example_inputs: a batch that the model takes; one picture is enough.

    Returns:
        A plan without masks, empty (`is_empty`) where nothing is dead. Its notes name groups of which one unit stays
        only because no layer can be without channels, and units that stay since they are constant but not zero.

    Raises:
        LoweringError: the model cannot be lowered.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 1))
    >>> model[0].weight.data[1:3] = 0
    >>> print(dead_channels(model, (torch.zeros(1, 3, 5, 5),)))
    plan for Sequential: 2 of 4 units removed in 1 group, no weights masked
      channels  0  2 of 4
    """
    wiring = wire(model, example_inputs)
    arrays = wiring.arrays(model)
    seen = _what_is_read(wiring.graph, arrays)
    groups = [wiring.analysis.group(name) for name in wiring.prunable]
    dead = _spread(groups, arrays, seen)
    notes: list[str] = []
    channels: dict[str, tuple[int, ...]] = {}
    for group in groups:
        gone = dead[group.name]
        kept = np.flatnonzero(~gone)
        if gone.any():
            kept, more = _at_least_one(wiring, group, gone)
            notes += more
        if len(kept) < group.size and not _is_without_effect(model, wiring, group.name, kept, example_inputs):
            notes.append(f"{group.name}: units that nothing reads are multiplied with others, so all stay")
            kept = np.arange(group.size)
        if len(kept) < group.size:
            channels[group.name] = tuple(int(unit) for unit in kept)
        notes += _constants(group, arrays, seen, gone)
    units = {name: wiring.analysis.group(name).size for name in channels}
    return PruningPlan(type(model).__name__, channels, units, notes=tuple(notes))


# ---- values ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Seen:
    """What a layer reads at each position of the axis of its weight that reads: bool (positions,)."""

    is_zero: np.ndarray
    is_known: np.ndarray


def _what_is_read(graph: LayerGraph, arrays: Mapping[str, np.ndarray]) -> dict[str, _Seen]:
    """By layer that sums over channels, from one run on unknown inputs."""
    found: dict[str, _Seen] = {}
    tensors: dict[str, Tensor] = {}
    last = {name: layer.name for layer in graph.layers for name in layer.inputs}
    for layer in graph.layers:
        sources = [tensors[name] for name in layer.inputs]
        if layer.op in SUMS:
            found[layer.name] = _Seen(_by_position(layer, sources[0] == 0), _by_position(layer, ~sources[0].isnan()))
        tensors[layer.name] = _value(layer, sources, arrays)
        for name in layer.inputs:
            if last[name] == layer.name:
                tensors.pop(name, None)
    return found


def _by_position(layer: Layer, flags: Tensor) -> np.ndarray:
    """Whether a flag holds everywhere, by position on the weight's reading axis.

    A position of a grouped convolution stands for the same channel of every group; of a transposed one for all.
    """
    by_channel = flags.movedim(-1 if layer.op is Op.LINEAR else 1, 0).flatten(1).all(1)
    if layer.op is Op.CONV:
        by_channel = by_channel.view(layer.groups, -1).all(0)
    return by_channel.numpy()


@torch.no_grad()
def _value(layer: Layer, sources: Sequence[Tensor], arrays: Mapping[str, np.ndarray]) -> Tensor:
    """The output of a layer, float64, NaN where it depends on the input."""
    if layer.op in (Op.INPUT, Op.VECTOR):
        return torch.full(layer.shape, torch.nan, dtype=torch.float64)
    weight, bias = (torch.from_numpy(arrays[key]).double() if key else None for key in (layer.weight, layer.bias))
    found = _operation(layer, sources, Arrays(weight, bias))
    return activate(found, layer.activation).where(~found.isnan(), torch.nan) if layer.activation else found


def _operation(layer: Layer, sources: Sequence[Tensor], arrays: Arrays) -> Tensor:
    """Before the fused activation. NaN passes through every operation; here zeros stop it."""
    run = OPERATIONS[layer.op]
    is_affine = layer.op is Op.NORM and layer.attributes["kind"] == "affine"
    if layer.op in SUMS or is_affine:
        used = Arrays(_flags(arrays.w != 0), torch.zeros_like(arrays.bias) if arrays.bias is not None else None)
        touched = run(layer, [_flags(sources[0].isnan())], used)
        return run(layer, [sources[0].nan_to_num()], arrays).where(touched == 0, torch.nan)
    if layer.op is Op.MATMUL:
        unknown, nonzero = [_flags(x.isnan()) for x in sources], [_flags(x != 0) for x in sources]  # NaN != 0 holds
        touched = unknown[0] @ nonzero[1] + nonzero[0] @ unknown[1]
        return run(layer, [x.nan_to_num() for x in sources], arrays).where(touched == 0, torch.nan)
    found = run(layer, sources, arrays)
    if layer.op is Op.MUL and layer.attributes["kind"] == "mul":
        for source in sources:
            found = found.where(source != 0, 0.0)
    if layer.op is Op.ACTIVATION:
        found = found.where(~sources[0].isnan(), torch.nan)
    return found


def _flags(condition: Tensor) -> Tensor:
    """As numbers: sums of zeros and ones in float64 are zero only where every term is."""
    return condition.double()


# ---- reads -----------------------------------------------------------------------------------------------------------


def _spread(
    groups: Sequence[ChannelGroup], arrays: Mapping[str, np.ndarray], seen: Mapping[str, _Seen]
) -> dict[str, np.ndarray]:
    """Dead units by group, bool (units,). Filters of dead units are set to zero in `arrays`."""
    dead = {group.name: np.zeros(group.size, bool) for group in groups}
    is_growing = True
    while is_growing:
        is_growing = False
        for group in groups:
            more = ~_units_read(group, arrays, {name: ~found.is_zero for name, found in seen.items()})
            if (more & ~dead[group.name]).any():
                dead[group.name] |= more
                is_growing = True
                for member in group.members:
                    if member.role == "output":
                        along = np.moveaxis(arrays[member.array], member.axis, 0)
                        along[member.index[dead[group.name][member.unit]]] = 0
    return dead


def _units_read(group: ChannelGroup, arrays: Mapping[str, np.ndarray], counts: Mapping[str, np.ndarray]) -> np.ndarray:
    """bool (units,): a weight that is not zero reads the unit at a position that counts; all where no weight does.

    Args:
        counts: layer -> bool (positions,); layers that are not in it count everywhere.
    """
    reads = [member for member in group.members if member.role == "input"]
    found = np.full(group.size, not reads)
    for member in reads:
        along = np.moveaxis(arrays[member.array], member.axis, 0)[member.index]
        is_read = (along != 0).reshape(len(along), -1).any(1)
        if member.layer in counts:
            is_read &= counts[member.layer][member.index]
        np.logical_or.at(found, member.unit, is_read)
    return found


def _at_least_one(wiring: Wiring, group: ChannelGroup, dead: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Units that stay so that no layer is empty, and a note if dead ones are among them."""
    kept = np.flatnonzero(~dead)
    spared: list[int] = []
    for unit in (unit for unit in group.order if dead[unit]):
        if _is_filled(wiring, group.name, kept, spared):
            break
        spared.append(int(unit))
    for unit in tuple(spared[:-1]):  # of other kinds than those that were missing
        rest = [other for other in spared if other != unit]
        if _is_filled(wiring, group.name, kept, rest):
            spared = rest
    if not spared:
        return kept, []
    plural = "s stay" if len(spared) > 1 else " stays"
    note = f"{group.name}: {len(spared)} dead unit{plural}, because a layer would have no channel left"
    return np.sort(np.append(kept, spared)), [note]


def _is_filled(wiring: Wiring, group: str, kept: np.ndarray, spared: Sequence[int]) -> bool:
    units = np.append(kept, np.array(spared, np.int64))
    if not len(units):
        return False
    try:
        wiring.analysis.graph_units({group: units})
    except PlanError:
        return False
    return True


def _is_without_effect(
    model: nn.Module, wiring: Wiring, group: str, kept: np.ndarray, example_inputs: tuple[Tensor, ...]
) -> bool:
    """Whether zeros in place of all other units change no answer.

    Follows from the reads, unless channels are multiplied with each other (attention); then it is tried.
    """
    if all(wiring.graph[name].op is not Op.MATMUL for name in wiring.analysis.affected(group)):
        return True
    try:
        check_equal(model, wiring.masked(model, {group: kept}), example_inputs)
    except PlanError:
        return False
    return True


def _constants(
    group: ChannelGroup, arrays: Mapping[str, np.ndarray], seen: Mapping[str, _Seen], dead: np.ndarray
) -> Iterator[str]:
    """A note on units of which nothing but constants is read."""
    count = int((~dead & ~_units_read(group, arrays, {name: ~found.is_known for name, found in seen.items()})).sum())
    if count:
        units, stay = ("1 unit is", "stays") if count == 1 else (f"{count} units are", "stay")
        edge = "a bias in what reads it would be wrong where padding shows zeros"
        yield f"{group.name}: {units} constant but not zero and {stay}; {edge}"
