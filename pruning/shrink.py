"""A smaller network from a finished one: channels that do nothing go, and what constants they make goes into biases.

Pruning that leaves a network at its full size (single weights, filter masks, gates) leaves channels behind that make
the same number for every input, or which nothing reads any more.

* *Values*. The graph runs once on inputs that are not known, with NaN for "not known". A number that comes out is the
  same for every input: zero times anything is zero, and a negative bias behind a relu is zero too.
* *Constants*. A layer that reads the constant c through weights w reads c * sum(w) at every place, which is a part of
  its bias, or less in the running mean of the batch norm behind a layer without one. Not so where the layer pads with
  zeros that are no c: such a unit stays, and the plan's notes say so.
* *Reads*. A unit is dead if each weight that reads it is zero, reads zeros only, or reads a constant that can be
  folded. The filters of a dead unit read nothing themselves, so looking goes on until no further unit dies.

The numbers in question are those of eval mode, and inputs are taken to be finite.

    small = shrink(sparse, example_inputs)      # small.model answers as sparse does; print(small.plan) says what went
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pruning.plan import PruningPlan
from pruning.surgery import check_equal
from pruning.wiring import Wiring, wire
from workloads.channel_groups import ChannelGroup, Member
from workloads.constants import Stored
from workloads.errors import PlanError
from workloads.graph import Layer, LayerGraph, Op
from workloads.reference import OPERATIONS, Arrays, activate

SUMS = (Op.CONV, Op.CONV_TRANSPOSE, Op.LINEAR)
SINKS = (nn.Conv1d, nn.Conv2d, nn.Linear)
MULTIPLIED = "channels are multiplied with each other"


@dataclass(frozen=True)
class Shrunk:
    """A model without its dead channels.

    Attributes:
        model: the smaller network, `plan.apply(folded, example_inputs)`; a plain copy where nothing is dead.
        plan: the units that went; empty where none did. Its notes say which dead or constant ones stay, and why.
        folded: the model at its full size with zeros in all that belongs to dead units, and their constants in biases
            or running means. It answers as the model does.
        units: how many there were, in all groups that may lose any.
    """

    model: nn.Module
    plan: PruningPlan
    folded: nn.Module
    units: int


def shrink(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> Shrunk:
    """Remove every unit of a channel group that has no effect, or none but a constant that can be folded.

    New biases are computed in float64, where the result is held against the model, and rounded to its precision.

    Args:
        model: finished (plain or baked parameters). Not modified; in whatever mode, eval mode is what counts.
        example_inputs: a batch that the model takes; one picture is enough.

    Raises:
        LoweringError: the model cannot be lowered.
        PlanError: its code fixes the number of channels that are dead.

    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 1))
    >>> model[0].weight.data[1:3] = 0
    >>> print(shrink(model, (torch.zeros(1, 3, 5, 5),)).plan)
    plan for Sequential: 2 of 4 units removed in 1 group, no weights masked
      channels  0  2 of 4
    """
    wiring = wire(model, example_inputs)
    search = _Search(model, wiring, example_inputs)
    dead = search.spread()
    kept: dict[str, np.ndarray] = {}
    notes: list[str] = []
    for group in search.groups:
        units = np.flatnonzero(~dead[group.name])
        if len(units) < group.size:
            units, spared = _at_least_one(wiring, group, units)
            notes += _note(group, spared, "dead", "a layer would have no channel left")
        if len(units) < group.size:
            kept[group.name] = units
        notes += search.notes(group)
    channels = {name: tuple(units.tolist()) for name, units in kept.items()}
    sizes = {name: wiring.analysis.group(name).size for name in kept}
    plan = PruningPlan(type(model).__name__, channels, sizes, notes=tuple(notes))
    total = sum(group.size for group in search.groups)
    if plan.is_empty:
        return Shrunk(copy.deepcopy(model), plan, copy.deepcopy(model), total)
    alive, shifts = {name: np.flatnonzero(~gone) for name, gone in dead.items() if gone.any()}, search.shifts()
    exact = copy.deepcopy(model).double()
    inputs = tuple(x.double() if x.is_floating_point() else x for x in example_inputs)
    check_equal(exact, wiring.masked(_shifted(exact, shifts), alive), inputs, f"dead units of {', '.join(kept)}")
    folded = wiring.masked(_shifted(model, shifts), alive)
    return Shrunk(plan.apply(folded, example_inputs), plan, folded, total)


def _shifted(model: nn.Module, shifts: Mapping[str, Tensor]) -> nn.Module:
    """A copy with these float64 numbers added to its tensors, by name; a bias that is not there is made."""
    twin = copy.deepcopy(model)
    for name, shift in shifts.items():
        path, _, leaf = name.rpartition(".")
        module = twin.get_submodule(path)
        old = getattr(module, leaf)
        like = module.get_parameter("weight") if old is None else old
        new = shift.to(like) if old is None else (old.detach().double() + shift.to(old.device)).to(old.dtype)
        is_parameter = old is None or isinstance(old, nn.Parameter)
        setattr(module, leaf, nn.Parameter(new, requires_grad=like.requires_grad) if is_parameter else new)
    return twin


def _note(group: ChannelGroup, count: int, kind: str, reason: str) -> list[str]:
    units = f"{count} {kind} unit stays" if count == 1 else f"{count} {kind} units stay"
    return [f"{group.name}: {units}, because {reason}"] if count else []


# ---- values ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Seen:
    """What a layer reads at each position of the axis of its weight that reads.

    A position of a grouped convolution stands for the same channel of every group.

    Attributes:
        value: float64 (groups, positions); NaN where it is not the same everywhere, or not known.
        is_known: bool (positions,), the same for every input, though it may differ from place to place.
    """

    value: np.ndarray
    is_known: np.ndarray

    @property
    def is_zero(self) -> np.ndarray:
        return np.asarray((self.value == 0).all(0))

    @property
    def is_constant(self) -> np.ndarray:
        return ~np.isnan(self.value).any(0)


def _what_is_read(graph: LayerGraph, arrays: Mapping[str, np.ndarray]) -> dict[str, _Seen]:
    """By layer that sums over channels, from one run on unknown inputs."""
    found: dict[str, _Seen] = {}
    tensors: dict[str, Tensor] = {}
    last = {name: layer.name for layer in graph.layers for name in layer.inputs}
    for layer in graph.layers:
        sources = [tensors[name] for name in layer.inputs]
        if layer.op in SUMS:
            found[layer.name] = _seen(layer, sources[0])
        tensors[layer.name] = _value(layer, sources, arrays)
        for name in layer.inputs:
            if last[name] == layer.name:
                tensors.pop(name, None)
    return found


def _seen(layer: Layer, source: Tensor) -> _Seen:
    by_channel = source.movedim(-1 if layer.op is Op.LINEAR else 1, 0).flatten(1)
    first = by_channel[:, 0]
    value = first.where((by_channel == first[:, None]).all(1), torch.nan)
    groups = layer.groups if layer.op is Op.CONV else 1  # a transposed one has all channels on its axis
    is_known = ~by_channel.isnan().any(1)
    return _Seen(value.view(groups, -1).numpy(), is_known.view(groups, -1).all(0).numpy())


@torch.no_grad()
def _value(layer: Layer, sources: Sequence[Tensor], arrays: Mapping[str, np.ndarray]) -> Tensor:
    """The output of a layer, float64, NaN where it depends on the input."""
    if layer.op in (Op.INPUT, Op.VECTOR):
        return torch.full(layer.shape, torch.nan, dtype=torch.float64)
    weight, bias = (torch.as_tensor(arrays[key]) if key else None for key in (layer.weight, layer.bias))
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


# ---- constants -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Sink:
    """A module that can take constants that it reads.

    Attributes:
        layers: its calls. weight: its name. tensor: what takes them, its bias or a running mean behind it; sign: +1 or
            -1.
        value: float64 (groups, positions), what is read in every call; NaN where it cannot be folded.
    """

    layers: tuple[Layer, ...]
    weight: str
    tensor: str
    sign: int
    value: np.ndarray


def _sinks(model: nn.Module, wiring: Wiring, seen: Mapping[str, _Seen]) -> Iterator[_Sink]:
    """Plain modules only: another class might use its bias otherwise. A weight tied to other layers is left alone."""
    for path, module in model.named_modules():
        layers = wiring.layers_of(f"{path}.weight") if type(module) in SINKS else ()
        names = [f"{layer.name.split('#')[0]}." for layer in layers]
        if not layers or not all(name.startswith(f"{path}.") for name in names):
            continue
        values = np.stack([seen[layer.name].value for layer in layers])
        value = values[0].copy()
        is_padded = any(any(layer.padding) for layer in layers)
        value[:, ((values != value).any(0) | (is_padded & (value != 0))).any(0)] = np.nan
        mean = _mean_behind(wiring, layers) if module.bias is None else ""
        yield _Sink(layers, f"{path}.weight", mean or f"{path}.bias", -1 if mean else 1, value)


def _mean_behind(wiring: Wiring, layers: Sequence[Layer]) -> str:
    """The running mean of the batch norm that follows these layers and no other; "" if there is none."""
    norms = {layer.name: wiring.structure.recipes[layer.bias].norms for layer in wiring.graph.layers if layer.bias}
    first = [norms[layer.name][0].mean for layer in layers if norms.get(layer.name)]
    if len(first) < len(layers) or not isinstance(first[0], Stored):
        return ""
    name = first[0].name
    used = {layer for layer, found in norms.items() if name in [getattr(norm.mean, "name", "") for norm in found]}
    is_first = all(getattr(mean, "name", "") == name for mean in first)
    return name if is_first and used == {layer.name for layer in layers} else ""


# ---- reads -----------------------------------------------------------------------------------------------------------


class _Search:
    """Dead units of one model, and what becomes of their constants.

    Attributes:
        arrays: beside the graph, float64; filters of dead units are set to zero in them.
        multiplied: groups whose channels are multiplied with each other (attention).
        dead: by group, bool (units,). refused: by group, units that nothing reads, but without which answers change.
    """

    def __init__(self, model: nn.Module, wiring: Wiring, example_inputs: tuple[Tensor, ...]) -> None:
        self.model, self.wiring, self.example_inputs = model, wiring, example_inputs
        self.groups = [wiring.analysis.group(name) for name in wiring.prunable]
        self.arrays = wiring.arrays(model, np.float64)
        self.seen = _what_is_read(wiring.graph, self.arrays)
        self.sinks = {layer.name: sink for sink in _sinks(model, wiring, self.seen) for layer in sink.layers}
        self.dead = {group.name: np.zeros(group.size, bool) for group in self.groups}
        self.refused: dict[str, np.ndarray] = {}
        products = {layer.name for layer in wiring.graph.layers if layer.op is Op.MATMUL}
        self.multiplied = {g.name for g in self.groups if not products.isdisjoint(wiring.analysis.affected(g.name))}
        self._zeros = {name: found.is_zero for name, found in self.seen.items()}
        self._folds = {name: ~np.isnan(sink.value).any(0) for name, sink in self.sinks.items()}
        self._ignored = {name: zeros | self._folds.get(name, False) for name, zeros in self._zeros.items()}

    def spread(self) -> dict[str, np.ndarray]:
        """Dead units by group, after no more die."""
        is_growing = True
        while is_growing:
            is_growing = False
            for group in self.groups:
                dead = self.dead[group.name]
                more = ~self._reads(group, self._ignored_by(group)) & ~dead
                if group.name in self.refused or not more.any():
                    continue
                if group.name in self.multiplied and not self._is_without_effect(group, ~(dead | more)):
                    self.refused[group.name] = more
                    continue
                dead |= more
                is_growing = True
                for member in group.members:
                    if member.role == "output":
                        np.moveaxis(self.arrays[member.array], member.axis, 0)[member.index[dead[member.unit]]] = 0
        return self.dead

    def _ignored_by(self, group: ChannelGroup) -> Mapping[str, np.ndarray]:
        """Positions at which reading a unit of the group does not count: zeros and what can be folded, by layer."""
        return self._zeros if group.name in self.multiplied else self._ignored

    def _reads(self, group: ChannelGroup, ignored: Mapping[str, np.ndarray]) -> np.ndarray:
        """bool (units,): whether any weight reads the unit at a position that is not ignored; all if no weight does.

        Args:
            ignored: layer -> bool (positions,); none of a layer that is not in it.
        """
        found = np.full(group.size, not group.consumers)
        for member, is_read in self._readers(group):
            if member.layer in ignored:
                is_read &= ~ignored[member.layer][member.index]
            np.logical_or.at(found, member.unit, is_read)
        return found

    def _readers(self, group: ChannelGroup) -> Iterator[tuple[Member, np.ndarray]]:
        """Members that read, and whether they have a weight that is not zero: bool, as their index."""
        for member in group.members:
            if member.role == "input":
                along = np.moveaxis(self.arrays[member.array], member.axis, 0)[member.index]
                yield member, (along != 0).reshape(len(along), -1).any(1)

    def _is_without_effect(self, group: ChannelGroup, alive: np.ndarray) -> bool:
        """Whether zeros in place of all other units change no answer: tried, as it does not follow from the reads."""
        try:
            masked = self.wiring.masked(self.model, {group.name: np.flatnonzero(alive)})
            check_equal(self.model, masked, self.example_inputs)
        except PlanError:
            return False
        return True

    def shifts(self) -> dict[str, Tensor]:
        """What to add to which tensor for the constants of all dead units: float64 (filters,)."""
        gone = {name: np.zeros(sink.value.shape[1], bool) for name, sink in self.sinks.items()}
        for group in self.groups:
            for member in group.members:
                if member.role == "input" and member.layer in gone:
                    gone[member.layer][member.index[self.dead[group.name][member.unit]]] = True
        found = {}
        for sink in {sink.weight: sink for sink in self.sinks.values()}.values():
            positions = np.logical_or.reduce([gone[layer.name] for layer in sink.layers])
            read = torch.from_numpy(np.where(positions, np.nan_to_num(sink.value), 0.0))
            if read.any():
                weight = self.model.get_parameter(sink.weight).detach().cpu().double()
                columns = weight.flatten(2).sum(2) if weight.dim() > 2 else weight
                by_group = columns.reshape(len(read), -1, read.shape[1])
                found[sink.tensor] = sink.sign * (by_group @ read[:, :, None]).flatten()
        return found

    # ---- what stays ----

    def notes(self, group: ChannelGroup) -> list[str]:
        """On units that are unread or constant, but stay."""
        refused = self.refused.get(group.name, np.zeros(group.size, bool))
        found = _note(group, int(refused.sum()), "unread", MULTIPLIED)
        known = {name: seen.is_known for name, seen in self.seen.items()}
        stays = ~self.dead[group.name] & ~refused & ~self._reads(group, known)
        reasons: dict[int, str] = {}
        for member, is_read in self._readers(group):
            is_read &= stays[member.unit]
            for position, unit in zip(member.index[is_read], member.unit[is_read], strict=True):
                if not self._ignored_by(group)[member.layer][position]:
                    reasons.setdefault(int(unit), self._reason(group, member.layer, position))
        for reason, count in Counter(reasons.values()).items():
            found += _note(group, count, "constant", reason)
        return found

    def _reason(self, group: ChannelGroup, layer: str, position: int) -> str:
        """Why a constant that a layer reads there cannot be folded."""
        if group.name in self.multiplied:
            return MULTIPLIED
        if not self.seen[layer].is_constant[position]:
            return f"{layer!r} does not read the same number everywhere"
        if layer not in self.sinks:
            return f"{layer!r} has no bias that could take the number"
        if any(self.wiring.graph[layer].padding):
            return f"{layer!r} pads with zeros and would see another number there"
        return f"{layer!r} runs several times and reads different numbers"


def _at_least_one(wiring: Wiring, group: ChannelGroup, kept: np.ndarray) -> tuple[np.ndarray, int]:
    """Units that stay so that no layer is empty, ascending, and how many dead ones are among them."""
    spared: list[int] = []
    for unit in (unit for unit in group.order if unit not in kept):
        if _is_filled(wiring, group.name, kept, spared):
            break
        spared.append(int(unit))
    for unit in tuple(spared[:-1]):  # of other kinds than those that were missing
        rest = [other for other in spared if other != unit]
        if _is_filled(wiring, group.name, kept, rest):
            spared = rest
    return np.sort(np.append(kept, spared)).astype(np.int64), len(spared)


def _is_filled(wiring: Wiring, group: str, kept: np.ndarray, spared: Sequence[int]) -> bool:
    units = np.append(kept, np.array(spared, np.int64))
    if not len(units):
        return False
    try:
        wiring.analysis.graph_units({group: units})
    except PlanError:
        return False
    return True
