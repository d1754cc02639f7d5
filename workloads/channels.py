"""Channels that must be removed together, found from the graph alone, and the graph with fewer of them.

`analyze(graph)` divides all channels into **units**, each of which can be removed by itself, and units into **groups**
(`ChannelGroup`), named after the first layer that makes them. A unit is one channel in the simplest case; a head with
all its channels in attention; the same channel of every group in a grouped convolution. What is removed with a unit is
the group's `members`: which positions of which axis of which array belong to which unit. How units are found is told in
`workloads.channel_rules`.

Two ways to say what stays:

* `ChannelAnalysis.graph_units({group: units})`, exact: masks and activation densities of what stays are selected;
* `ChannelAnalysis.graph({group: count})` and `.columns(counts)`, shape arithmetic for searches. Units of one group can
  differ (some channels of a residual stream run through two stages, others through three), so a count means the first
  `count` units in the group's `order`, in which each kind of unit keeps its share. Which weights those are is for a
  pruning method to say, so exact masks become their density here.

    analysis = analyze(graph)
    for group in analysis.groups:
        print(group)
    small = analysis.graph({"layer1.0.conv1": 8})

The network's inputs and outputs never change, and a tensor shrinks along one axis at the most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from workloads.channel_groups import ChannelGroup, Member, unknown
from workloads.channel_rules import Flow
from workloads.channel_tables import (
    Edit,
    Partition,
    Tables,
    partition,
    priority,
    producers_by_argument,
    smallest_count,
    tabulate,
)
from workloads.columns import ARRAY_FIELDS, Columns
from workloads.errors import PlanError
from workloads.graph import KIND, Kind, Layer, LayerGraph
from workloads.sparsity import WeightSparsity


def analyze(graph: LayerGraph, keep: Sequence[str] = ()) -> ChannelAnalysis:
    """Find the channel groups of a graph; kept with the graph, so that asking again costs nothing.

    Args:
        graph: a verified graph.
        keep: layers whose output channels must all stay, or modules: all that they make.

    Raises:
        PlanError: a layer to keep is not in the graph.

    >>> from workloads.graph import Op
    >>> x = Layer("x", Op.INPUT, (1, 3, 4, 4), k=3, c=3, p=4, q=4)
    >>> nest = {"p": 4, "q": 4, "in_h": 4, "in_w": 4}
    >>> a = Layer("a", Op.CONV, (1, 8, 4, 4), ("x",), k=8, c=3, weight="a.weight", **nest)
    >>> b = Layer("b", Op.CONV, (1, 5, 4, 4), ("a",), k=5, c=8, weight="b.weight", **nest)
    >>> analysis = analyze(LayerGraph("pair", (x, a, b), ("b",)).verify())
    >>> print(*analysis.groups, sep="\\n")
    a: 1..8 units from a to b
    b: 5 units, fixed: they leave the network (output 'b')
    >>> [(layer.name, layer.k, layer.c) for layer in analysis.graph({"a": 6})]
    [('x', 3, 3), ('a', 6, 3), ('b', 5, 6)]
    """
    found: dict[tuple[str, ...], ChannelAnalysis] = vars(graph).setdefault("_channel_analyses", {})
    key = tuple(sorted({layer for name in keep for layer in _layers_in(graph, name)}))
    if key not in found:
        flow = Flow(graph, key)
        parts = partition(flow)
        found[key] = ChannelAnalysis(graph, flow, parts, tabulate(flow, parts))
    return found[key]


def _layers_in(graph: LayerGraph, name: str) -> list[str]:
    """Every call of the layer of that name; else, of the module of that name, the layers that make channels."""
    calls = [layer for layer in graph.index if layer == name or layer.startswith(f"{name}#")]
    inside = [layer for layer in graph.layers if layer.name.startswith(f"{name}.")]
    makers = [layer.name for layer in inside if layer.weight and KIND[layer.op] is Kind.MAC]
    if not calls and not inside:
        raise PlanError(unknown("layer to keep", name, graph.index))
    return calls or makers or [layer.name for layer in inside]


@dataclass(frozen=True, eq=False)
class ChannelAnalysis:
    """The channel groups of a graph, and the graph with fewer channels; made by `analyze`.

    Attributes:
        source: the graph that was analysed.
        flow, parts, tables: what the groups were found from (`workloads.channel_rules`, `workloads.channel_tables`).
    """

    source: LayerGraph
    flow: Flow
    parts: Partition
    tables: Tables

    def __str__(self) -> str:
        count = f"{len(self.groups)} channel groups, {len(self.names)} of them prunable"
        return "\n".join([f"ChannelAnalysis of {self.source.name!r}: {count}", *(f"  {x}" for x in self.groups)])

    # ---- groups ---------------------------------------------------------------------------------------------------

    @cached_property
    def groups(self) -> tuple[ChannelGroup, ...]:
        """All groups in graph order, those that cannot change included."""
        members = self._members()
        found = []
        for number, name in enumerate(self.parts.names):
            size = int(self.parts.first[number + 1] - self.parts.first[number])
            reason = self.parts.reasons[number]
            kinds = np.zeros(size, np.int64) if reason else self._kinds(number)
            order, minimum = (np.arange(size), size) if reason else self._order(number, kinds)
            found.append(ChannelGroup(name, size, not reason, reason, minimum, kinds, order, tuple(members[number])))
        return tuple(sorted(found, key=lambda group: self.source.index[group.name]))

    @cached_property
    def by_name(self) -> Mapping[str, ChannelGroup]:
        return {group.name: group for group in self.groups}

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the prunable groups, in graph order: the columns of `columns`' counts."""
        return tuple(group.name for group in self.groups if group.prunable)

    def group(self, name: str) -> ChannelGroup:
        """The group of that name.

        Raises:
            PlanError: there is none; says the closest name, or the group that has a layer of that name.
        """
        if name in self.by_name:
            return self.by_name[name]
        for group in self.groups:
            if name in group.producers:
                raise PlanError(f"{name!r} is in channel group {group.name!r}; give that name")
        raise PlanError(unknown("channel group", name, self.by_name))

    def affected(self, name: str) -> tuple[str, ...]:
        """Names of the layers whose row in `columns` changes when the group changes, in graph order."""
        number = self._number(self.group(name))
        if number >= self.parts.prunable:
            return ()
        touched = np.asarray(self.tables.counters[:, self._types(number)].any(axis=1))
        own = np.zeros(len(self.source), bool)
        for index in self.tables.index.values():
            own |= touched[index]
        elements = touched[self.tables.index["output_elements"]]
        for producers in self._reads:
            own |= (producers >= 0) & elements[producers]
        return tuple(layer.name for layer, is_touched in zip(self.source.layers, own, strict=True) if is_touched)

    def units(self, layer: str, channels: Sequence[int]) -> dict[str, np.ndarray]:
        """The units that some output channels of a layer belong to: prunable group -> ascending int64.

        Raises:
            PlanError: no such layer, or it has no such channel.
        """
        if layer not in self.source.index:
            raise PlanError(unknown("layer", layer, self.source.index))
        item, chosen = self.source[layer], np.asarray(channels, np.int64)
        size = item.shape[item.channel_axis]
        if chosen.size and (chosen.min() < 0 or chosen.max() >= size):
            raise PlanError(f"layer {layer!r}: channels {[int(x) for x in chosen]}, must be in 0..{size - 1}")
        labels = self.flow.axes[layer][item.channel_axis]
        parts = [] if labels is None else self._split(labels[np.unique(chosen)])
        return {self.parts.names[n]: np.unique(unit) for n, _, unit in parts if n < self.parts.prunable}

    def _number(self, group: ChannelGroup) -> int:
        return self.parts.names.index(group.name)

    def _types(self, number: int) -> slice:
        return slice(int(self.tables.first_type[number]), int(self.tables.first_type[number + 1]))

    def _units(self, number: int) -> slice:
        return slice(int(self.parts.first[number]), int(self.parts.first[number + 1]))

    def _kinds(self, number: int) -> np.ndarray:
        """The type of each unit of a group, counted from 0."""
        return self.tables.type_of_unit[self._units(number)] - int(self.tables.first_type[number])

    def _order(self, number: int, kinds: np.ndarray) -> tuple[np.ndarray, int]:
        """Priority of a group's units, and its smallest count."""
        span = self._types(number)
        reach = np.count_nonzero(self.tables.counters[self.tables.required, span], axis=0)
        order = priority(kinds, reach)
        return order, smallest_count(self.tables, _prefix(kinds[order], span.stop - span.start), span)

    def _members(self) -> list[list[Member]]:
        """Members of each group, by number."""
        found: list[list[Member]] = [[] for _ in self.parts.names]
        split: dict[int, list[tuple[int, np.ndarray, np.ndarray]]] = {}
        for axis in self.flow.arrays:
            if id(axis.labels) not in split:
                split[id(axis.labels)] = self._split(axis.labels)
            for number, index, unit in split[id(axis.labels)]:
                found[number].append(Member(axis.layer, axis.array, axis.axis, axis.role, index, unit))
        return found

    def _split(self, labels: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """Positions and units of an axis by group."""
        unit, first = self.parts.unit[labels], self.parts.first
        owner = np.searchsorted(first, unit, side="right") - 1
        if owner.size and owner[0] >= 0 and (owner == owner[0]).all():
            return [(int(owner[0]), np.arange(len(unit)), unit - first[owner[0]])]
        found = []
        for number in np.unique(owner[owner >= 0]):
            index = np.flatnonzero(owner == number)
            found.append((int(number), index, unit[index] - first[number]))
        return found

    # ---- the graph with fewer channels ----------------------------------------------------------------------------

    def graph(self, channels: Mapping[str, int]) -> LayerGraph:
        """The graph when groups keep that many units; groups that are not named keep all.

        A layer that changes keeps of its masks the density and of its activation densities the mean and the variance,
        because a count does not say which channels stay. The result is not verified here (tests hold that it would
        pass), so that a search can afford it.

        Raises:
            PlanError: an unknown group, a count that is impossible, or a group that cannot change.
        """
        types = self._full.copy()
        for name, count in channels.items():
            group = self.group(name)
            number = self._number(group) if group.check(count) != group.size else -1
            if number >= 0:
                types[self._types(number)] = self._prefixes[number][count]
        return self._rebuild(self.tables.channels(types), None)

    def graph_units(self, units: Mapping[str, ArrayLike]) -> LayerGraph:
        """The verified graph when groups keep exactly these units, with the masks and densities of what stays.

        Raises:
            PlanError: an unknown group or unit, no unit, or a group that cannot change.
        """
        kept = self._kept(units)
        types = np.bincount(self.tables.type_of_unit[kept[: self.parts.free]], minlength=len(self._full))
        return self._rebuild(self.tables.channels(types), kept).verify()

    def weights(self, weights: Mapping[str, np.ndarray], units: Mapping[str, ArrayLike]) -> dict[str, np.ndarray]:
        """The arrays that belong beside `graph_units(units)`, cut from those beside the source; others as they are.

        Raises:
            PlanError: as for `graph_units`.
        """
        found = dict(weights)
        for (key, axis), positions in self.kept_positions(units).items():
            if positions[-1] < found[key].shape[axis]:  # a prelu may have one slope for all channels
                found[key] = np.take(found[key], positions, axis)
        return found

    def kept_positions(self, units: Mapping[str, ArrayLike]) -> dict[tuple[str, int], np.ndarray]:
        """What stays of each array that loses something: (its key, axis in torch's layout) -> ascending positions.

        Raises:
            PlanError: as for `graph_units`.
        """
        kept = self._kept(units)
        cut = {(axis.array, axis.axis): self._positions(axis.labels, kept) for axis in self.flow.arrays}
        return {key: positions for key, positions in cut.items() if positions is not None}

    def _kept(self, units: Mapping[str, ArrayLike]) -> np.ndarray:
        """Whether each unit of the graph stays; one more at the end, for positions that belong to no unit (-1)."""
        kept = np.ones(int(self.parts.first[-1]) + 1, bool)
        for name, chosen in units.items():
            group = self.group(name)
            found = group.selected(chosen)
            group.check(len(found), least=1)  # other selections than `order` may do with fewer
            span = self._units(self._number(group))
            kept[span] = False
            kept[span.start + found] = True
        return kept

    def _positions(self, labels: np.ndarray | None, kept: np.ndarray) -> np.ndarray | None:
        """Positions of an axis that stay; None where all do."""
        if labels is None:
            return None
        unit = self.parts.unit[labels]
        stays = kept[unit]
        return None if stays.all() else np.flatnonzero(stays)

    def _rebuild(self, channels: np.ndarray, kept: np.ndarray | None) -> LayerGraph:
        """The graph whose axes have that many channels; `kept` says which units stay where that is known."""
        self._check_filled(channels)
        changed = channels != self._channels
        layers = list(self.source.layers)
        for edit in self.tables.edits:
            if any(changed[axis] for *_, axis in (*edit.fields, *edit.attributes)):
                layers[edit.layer] = self._edited(layers[edit.layer], edit, channels, kept)
        return LayerGraph(self.source.name, tuple(layers), self.source.outputs)

    def _check_filled(self, channels: np.ndarray) -> None:
        """Raise unless every layer keeps a channel; `channels` is (..., axes)."""
        empty = channels[..., self.tables.required] < 1
        if empty.any():
            owner = self.tables.owners[np.flatnonzero(empty.reshape(-1, empty.shape[-1]).any(axis=0))[0]]
            raise PlanError(f"layer {self.source.layers[owner].name!r} would keep no channel; keep more units")

    def _edited(self, layer: Layer, edit: Edit, channels: np.ndarray, kept: np.ndarray | None) -> Layer:
        changes: dict[str, Any] = {}
        for name, position, factor, axis in edit.fields:
            value = factor * int(channels[axis])
            changes[name] = value if position < 0 else _with(layer.shape, position, value)
        if edit.attributes:
            changes["attributes"] = attributes = dict(layer.attributes)
            for name, position, factor, axis in edit.attributes:
                value = factor * int(channels[axis])
                attributes[name] = value if position < 0 else _with(attributes[name], position, value)
        # as dataclasses.replace, without running __init__ over 28 fields: this is the inner loop of searches
        found = object.__new__(Layer)
        vars(found).update(vars(layer) | changes)
        return self._with_knowledge(layer, found, kept)

    def _with_knowledge(self, layer: Layer, found: Layer, kept: np.ndarray | None) -> Layer:
        """What is known of the layer's zeros, for the channels that stay."""
        if layer.sparsity is not None:
            vars(found)["sparsity"] = self._sparsity(layer, layer.sparsity, found, kept)
        if layer.activation_density and layer.channel_axis < len(layer.shape):
            count, density = found.shape[layer.channel_axis], layer.activation_density
            positions = None if kept is None else self._positions(self._output_labels(layer), kept)
            if positions is not None:
                vars(found)["activation_density"] = tuple(density[i] for i in positions)
            elif count != len(density):
                vars(found)["activation_density"] = _thinned(density, count)
        return found

    def _sparsity(
        self, layer: Layer, sparsity: WeightSparsity, found: Layer, kept: np.ndarray | None
    ) -> WeightSparsity:
        if found.weight_shape == layer.weight_shape:
            return sparsity
        if kept is None:
            return WeightSparsity.from_density(found.weight_shape, sparsity.density)
        filters, read = self.flow.filters[layer.name]
        return sparsity.select(self._positions(filters, kept), self._positions(read, kept))

    def _output_labels(self, layer: Layer) -> np.ndarray | None:
        return self.flow.axes[layer.name][layer.channel_axis]

    # ---- candidates -----------------------------------------------------------------------------------------------

    def columns(
        self,
        counts: ArrayLike,
        names: Sequence[str] | None = None,
        weight_density: np.ndarray | None = None,
    ) -> Columns:
        """The rows of `graph(...).columns` for many candidates at once, candidate after candidate.

        Args:
            counts: integers (candidates, groups).
            names: of the groups, `self.names` if not given; groups that are not named keep all units.
            weight_density: float (candidates, layers); if not given, each layer's density stays as it is.

        Returns:
            candidates * layers rows. Masks and densities of single channels are not in it, only their means.

        Raises:
            PlanError: as for `graph`; or arrays of the wrong shape.
        """
        wanted = self.names if names is None else tuple(names)
        table = self._checked(counts, wanted)
        types = np.tile(self._full, (len(table), 1))
        for column, name in enumerate(wanted):
            number = self._number(self.group(name))
            if number < self.parts.prunable:
                types[:, self._types(number)] = self._prefixes[number][table[:, column]]
        channels = self.tables.channels(types)
        self._check_filled(channels)
        base, count = self.source.columns, len(table)
        values = {field: self.tables.column(field, channels) for field in self.tables.index}
        values |= self._elements(values["output_elements"])
        if weight_density is not None:
            values["weight_density"] = np.asarray(weight_density, float)
            if values["weight_density"].shape != (count, len(base)):
                shape = values["weight_density"].shape
                raise PlanError(f"weight_density has shape {shape}, must be (candidates, layers) {(count, len(base))}")
        arrays: dict[str, Any] = {
            field: values[field].reshape(-1) if field in values else np.tile(getattr(base, field), count)
            for field in ARRAY_FIELDS
        }
        return Columns(**arrays)

    def _checked(self, counts: ArrayLike, names: Sequence[str]) -> np.ndarray:
        """Counts as integers, each possible."""
        table = np.asarray(counts)
        if table.ndim != 2 or table.shape[1] != len(names):
            raise PlanError(f"counts have shape {table.shape}, must be (candidates, {len(names)} groups)")
        if table.size and table.dtype.kind not in "iu":
            raise PlanError(f"counts of type {table.dtype}, must be integers")
        if len(set(names)) != len(names):
            raise PlanError(f"channel groups {', '.join(names)}: one is named twice")
        for column, name in zip(table.T, names, strict=True):
            group = self.group(name)
            for count in (column.min(), column.max()) if len(column) else ():
                group.check(int(count))
        return table.astype(np.int64, copy=False)

    def _elements(self, output: np.ndarray) -> dict[str, np.ndarray]:
        """Elements of the first input, and of all others together, from those of all outputs (candidates, layers)."""
        first, *others = self._reads
        other = np.zeros_like(output)
        for producers in others:
            has = np.flatnonzero(producers >= 0)
            other[:, has] += output[:, producers[has]]
        return {"input_elements": np.where(first >= 0, output[:, first], 0), "other_elements": other}

    @cached_property
    def _reads(self) -> list[np.ndarray]:
        return producers_by_argument(self.source)

    @cached_property
    def _full(self) -> np.ndarray:
        """Units of each type in the source."""
        return np.bincount(self.tables.type_of_unit, minlength=self.tables.counters.shape[1])

    @cached_property
    def _channels(self) -> np.ndarray:
        return self.tables.channels(self._full)

    @cached_property
    def _prefixes(self) -> list[np.ndarray]:
        """For each prunable group, int64 (size + 1, types of the group): units of each type at each count."""
        found = []
        for number in range(self.parts.prunable):
            group, span = self.by_name[self.parts.names[number]], self._types(number)
            found.append(_prefix(group.kinds[group.order], span.stop - span.start))
        return found


def _thinned(density: tuple[float, ...], count: int) -> tuple[float, ...]:
    """`count` densities of the same mean and (if none leaves 0..1) variance: which channels stay is not known.

    >>> [round(density, 3) for density in _thinned((0.0, 0.5, 0.5, 1.0), 2)]
    [0.146, 0.854]
    """
    values = np.quantile(density, (np.arange(count) + 0.5) / count)
    spread = values.std()
    scale = np.std(density) / spread if spread > 0 else 0.0
    return tuple(float(x) for x in np.clip(np.mean(density) + (values - values.mean()) * scale, 0.0, 1.0))


def _prefix(types: np.ndarray, count: int) -> np.ndarray:
    """How many of the first n units have each type, int64 (units + 1, count)."""
    is_type = types[:, None] == np.arange(count)
    return np.concatenate([np.zeros((1, count), np.int64), np.cumsum(is_type, axis=0)])


def _with(values: tuple[int, ...], position: int, value: int) -> tuple[int, ...]:
    return (*values[:position], value, *values[position + 1 :])
