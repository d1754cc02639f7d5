"""From tied channels to numbers: which units there are, and every dim of every layer as a count of them.

A **unit** is what can be removed by itself: a set of tied atoms (`workloads.channel_rules`). Units whose channels are
made by the same layers form a **group**, which is what a search chooses a count for. Units of one group may differ:
in a ResNet with option-A shortcuts the first sixteen run through all stages and the others begin later. Units that
touch the same axes equally often are of one **type**, so a candidate is a number of units of each type, t, and

    channels of an axis = fixed + counters @ t          (one row of `counters` for each different axis of the graph)
    any dim of any layer = factor * channels of one axis

which is all the arithmetic that a graph with fewer channels needs. Axis 0 stands for the number 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from workloads.channel_rules import FIXED, Flow
from workloads.graph import Kind, Layer, LayerGraph, Op

FIELDS = ("n", "k", "c", "p", "q", "groups", "output_elements")  # the columns that depend on channels
ONE = 0  # the axis that always has one channel


@dataclass(frozen=True, eq=False)
class Partition:
    """Atoms joined into units, and units into groups.

    Attributes:
        names: of the groups, the prunable ones first.
        reasons: why a group cannot change; "" for the prunable ones.
        first: first unit of each group, and after the last; a group's units are numbered one after the other.
        unit: int64 (atoms,), the unit of each atom; -1 for one that belongs to no group and always stays.
        free: units below this number belong to prunable groups.
    """

    names: tuple[str, ...]
    reasons: tuple[str, ...]
    first: np.ndarray
    unit: np.ndarray
    free: int

    @property
    def prunable(self) -> int:
        """How many groups are prunable."""
        return sum(not reason for reason in self.reasons)


def components(count: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The smallest member of the connected component of each of `count` nodes, given edges a-b.

    >>> components(5, np.array([4, 1]), np.array([2, 4])).tolist()
    [0, 1, 1, 3, 1]
    """
    root = np.arange(count)
    while True:
        left, right = root[a], root[b]
        is_open = left != right
        if not is_open.any():
            return root
        a, b = a[is_open], b[is_open]
        left, right = left[is_open], right[is_open]
        np.minimum.at(root, np.maximum(left, right), np.minimum(left, right))
        while not np.array_equal(above := root[root], root):
            root = above


def partition(flow: Flow) -> Partition:
    """Join what is tied, fix what must stay, and number the rest."""
    root, fixes = join(flow)
    firsts = np.array([made.first for made in flow.made if made.last > made.first], np.int64)
    counts = np.array([made.last - made.first for made in flow.made if made.last > made.first], np.int64)
    owned = np.concatenate([np.arange(made.first, made.last) for made in flow.made]) if flow.made else firsts
    group = components(flow.atoms, root[owned], root[np.repeat(firsts, counts)])[root]
    names: dict[int, str] = {}
    for made in flow.made:
        if made.is_named:
            names.setdefault(int(group[made.first]), made.layer)
    reasons: dict[int, str] = {}
    for labels, reason in fixes:
        for code in _distinct(group[labels]):
            reasons.setdefault(code, reason)
    _fix_second_axes(flow, group, names, reasons)
    roots = np.flatnonzero(root == np.arange(flow.atoms))
    for code, size in zip(*np.unique(group[roots], return_counts=True), strict=True):
        if size == 1:
            reasons.setdefault(int(code), "all of them are one unit, which cannot go")
    return _number(root, group, names, reasons)


def join(flow: Flow) -> tuple[np.ndarray, list[tuple[np.ndarray, str]]]:
    """The root of every atom, and the fixes with those that follow from ties to positions that always stay."""
    none = np.zeros(0, np.int64)
    a = np.concatenate([none, *(tie[0].ravel() for tie in flow.ties)])
    b = np.concatenate([none, *(tie[1].ravel() for tie in flow.ties)])
    fixes = list(flow.fixes)
    if (touched := (a == FIXED) ^ (b == FIXED)).any():
        by = np.repeat(np.arange(len(flow.ties)), [tie[0].size for tie in flow.ties])
        for i in np.unique(by[touched]):
            labels = np.maximum(a, b)[touched & (by == i)]
            fixes.append((labels, f"{flow.ties[i][2]!r} joins them to channels that never change"))
    both = (a != FIXED) & (b != FIXED) & (a != b)
    return components(flow.atoms, a[both], b[both]), fixes


def _distinct(codes: np.ndarray) -> list[int]:
    """Different values; mostly there is one."""
    if not len(codes):
        return []
    return [int(codes[0])] if (codes == codes[0]).all() else [int(code) for code in np.unique(codes)]


def _fix_second_axes(flow: Flow, group: np.ndarray, names: dict[int, str], reasons: dict[int, str]) -> None:
    """A tensor shrinks along one axis at the most; the channels that were made first keep their freedom."""
    for name, axes in flow.axes.items():
        labelled = [labels for labels in axes if labels is not None]
        if len(labelled) < 2:
            continue
        free = [[code for code in _distinct(group[x]) if code in names and code not in reasons] for x in labelled]
        for codes in sorted(filter(None, free), key=min)[1:]:
            for code in codes:
                reasons.setdefault(code, f"{name!r} has two axes of channels")


def _number(root: np.ndarray, group: np.ndarray, names: dict[int, str], reasons: dict[int, str]) -> Partition:
    """Number the units group by group, prunable groups first."""
    codes = sorted(names, key=lambda code: code in reasons)  # sorted is stable: graph order inside each half
    rank = np.full(len(root), -1)
    rank[codes] = np.arange(len(codes))
    roots = np.flatnonzero(root == np.arange(len(root)))
    roots = roots[rank[group[roots]] >= 0]
    order = np.argsort(rank[group[roots]], kind="stable")
    unit = np.full(len(root), -1)
    unit[roots[order]] = np.arange(len(roots))
    sizes = np.bincount(rank[group[roots]], minlength=len(codes))
    first = np.concatenate([[0], np.cumsum(sizes)])
    prunable = sum(code not in reasons for code in codes)
    return Partition(
        names=tuple(names[code] for code in codes),
        reasons=tuple(reasons.get(code, "") for code in codes),
        first=first,
        unit=unit[root],
        free=int(first[prunable]),
    )


# ---- every dim as a count of units ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Edit:
    """What to rewrite in a layer when channels go: (name, position or -1, factor, axis), new value = factor * channels.

    `fields` are fields of the layer ("shape" with a position), `attributes` are attributes.
    """

    layer: int
    fields: tuple[tuple[str, int, int, int], ...]
    attributes: tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True, eq=False)
class Tables:
    """The arithmetic of the module docstring.

    Attributes:
        fixed: int64 (axes,), channels of each axis that always stay.
        counters: float64 (axes, types), channels of each axis that one unit of a type has.
        type_of_unit: int64 (free units,). first_type: first type of each prunable group, and after the last.
        index, factor: for each of FIELDS, int64 (layers,): column = factor * channels[index].
        edits: of the layers that depend on channels, in graph order.
        required: int64, axes that must keep a channel. owners: index of the first layer that has such an axis.
    """

    fixed: np.ndarray
    counters: np.ndarray
    type_of_unit: np.ndarray
    first_type: np.ndarray
    index: dict[str, np.ndarray]
    factor: dict[str, np.ndarray]
    edits: tuple[Edit, ...]
    required: np.ndarray
    owners: np.ndarray

    def channels(self, types: np.ndarray) -> np.ndarray:
        """Channels of each axis, int64 (..., axes), from units of each type (..., types)."""
        return self.fixed + np.rint(types @ self.counters.T).astype(np.int64)

    def column(self, field: str, channels: np.ndarray) -> np.ndarray:
        """A field of all layers, int64 (..., layers)."""
        return self.factor[field] * np.take(channels, self.index[field], axis=-1)


class _Axes:
    """The different axes of a graph, by which units they hold; equal ones are found once."""

    def __init__(self, parts: Partition) -> None:
        self.parts = parts
        self.units = [np.zeros(0, np.int64)]
        self.fixed = [1]
        self._seen: dict[bytes, int] = {}
        self._known: dict[int, int] = {}

    def find(self, labels: np.ndarray | None) -> int:
        """Number of the axis; ONE where nothing can go."""
        if labels is None:
            return ONE
        if id(labels) in self._known:
            return self._known[id(labels)]
        unit = self.parts.unit[labels]
        unit[unit >= self.parts.free] = -1
        found = self._seen.get(unit.tobytes(), -1)
        if found < 0:
            free = unit[unit >= 0]
            found = len(self.units) if len(free) else ONE
            if found:
                self.units.append(free)
                self.fixed.append(len(unit) - len(free))
            self._seen[unit.tobytes()] = found
        self._known[id(labels)] = found
        return found


def tabulate(flow: Flow, parts: Partition) -> Tables:
    """All dims of all layers as counts of units."""
    axes = _Axes(parts)
    layers = flow.graph.layers
    index = {field: np.full(len(layers), ONE) for field in FIELDS}
    factor = {field: np.array([getattr(layer, field) for layer in layers], np.int64) for field in FIELDS}
    edits: list[Edit] = []
    owners: dict[int, int] = {}
    for i, layer in enumerate(layers):
        fields, attributes = _edits(flow, layer, axes)
        for name, position, _, axis in fields:
            if name == "shape":
                index["output_elements"][i] = axis
                factor["output_elements"][i] = layer.output_elements // layer.shape[position]
                owners.setdefault(axis, i)
            else:
                index[name][i] = axis
        for name, _, scale, _ in fields:
            if name != "shape":
                factor[name][i] = scale
        if fields or attributes:
            edits.append(Edit(i, tuple(fields), tuple(attributes)))
    counters, types, first = _types(axes, parts)
    return Tables(
        fixed=np.array(axes.fixed, np.int64),
        counters=counters,
        type_of_unit=types,
        first_type=first,
        index=index,
        factor=factor,
        edits=tuple(edits),
        required=np.array(sorted(owners), np.int64),
        owners=np.array([owners[axis] for axis in sorted(owners)], np.int64),
    )


_Change = tuple[str, int, int, int]


def _edits(flow: Flow, layer: Layer, axes: _Axes) -> tuple[list[_Change], list[_Change]]:
    """Fields and attributes of a layer that change with its channels."""
    fields: list[_Change] = []
    attributes: list[_Change] = []
    for name, position, labels in flow.counted.get(layer.name, ()):
        if axis := axes.find(labels):
            (attributes if name in layer.attributes else fields).append((name, position, 1, axis))
    for position, of_axis in enumerate(flow.axes[layer.name]):
        if not (axis := axes.find(of_axis)):
            continue
        fields.append(("shape", position, 1, axis))
        for name in _nest(layer, position):
            if not any(name == change[0] for change in fields):
                fields.append((name, -1, getattr(layer, name) // layer.shape[position], axis))
    return fields, attributes


def _nest(layer: Layer, axis: int) -> tuple[str, ...]:
    """Which dims of the loop nest hold an axis of the output."""
    size, rank = layer.shape[axis], len(layer.shape)
    wanted: tuple[str, ...]
    if layer.op is Op.MATMUL:
        wanted = ("k",) if axis == rank - 1 else ("p",) if axis == rank - 2 else ("n", "p")
    elif axis == layer.channel_axis and layer.k % size == 0:
        return ("k",) if layer.kind is Kind.MAC or layer.c != layer.k else ("k", "c")
    else:
        wanted = ("n", "p", "q") if axis == 0 else ("p", "q", "n")
    fits = [name for name in wanted if getattr(layer, name) % size == 0]
    return tuple([name for name in fits if getattr(layer, name) == size][:1] or fits[:1])


def _types(axes: _Axes, parts: Partition) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(counters, type of each unit, first type of each group) from the units of each axis."""
    touching: list[list[tuple[int, np.ndarray]]] = [[] for _ in range(parts.prunable)]
    for axis, units in enumerate(axes.units[1:], start=1):
        for group, local in _by_group(units, parts):
            size = int(parts.first[group + 1] - parts.first[group])
            touching[group].append((axis, np.bincount(local, minlength=size)))
    columns, types, first = [], np.zeros(parts.free, np.int64), [0]
    for group, found in enumerate(touching):
        rows, of_unit = _distinct_columns([counts for _, counts in found])
        types[parts.first[group] : parts.first[group + 1]] = first[-1] + of_unit
        for row in rows:
            column = np.zeros(len(axes.units))
            column[[axis for axis, _ in found]] = row
            columns.append(column)
        first.append(first[-1] + len(rows))
    counters = np.stack(columns, axis=1) if columns else np.zeros((len(axes.units), 0))
    return counters, types, np.array(first)


def _by_group(units: np.ndarray, parts: Partition) -> list[tuple[int, np.ndarray]]:
    """The units of an axis by group: (group, place in the group of each)."""
    groups = np.searchsorted(parts.first, units, side="right") - 1
    return [(group, units[groups == group] - parts.first[group]) for group in _distinct(groups)]


def _distinct_columns(counts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(types, axes) different columns in order of their first unit, and the type of each unit."""
    if all((row == row[0]).all() for row in counts):
        return np.array([[row[0] for row in counts]]), np.zeros(len(counts[0]), np.int64)
    rows, first, of_unit = np.unique(np.stack(counts, axis=1), axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return rows[order], np.argsort(order)[of_unit.ravel()]


def priority(types: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """The order in which units are kept when only a count is given: int64 (units,), the first is kept longest.

    Every type keeps its share: unit j of a type of m units comes at j / m (Adams' method of apportionment, so that
    each type keeps one before any keeps two); of equals, the type that touches more axes (`reach`) comes first.

    >>> priority(np.array([0, 0, 1, 1, 1, 1]), np.array([5, 3])).tolist()
    [0, 2, 3, 1, 4, 5]
    """
    if len(reach) == 1:
        return np.arange(len(types))
    sizes = np.bincount(types)
    place = np.zeros(len(types))
    for number, size in enumerate(sizes):
        place[types == number] = np.arange(size) / size
    rank = np.argsort(np.argsort(-reach, kind="stable"))
    return np.lexsort((np.arange(len(types)), rank[types], place))


def smallest_count(tables: Tables, prefix: np.ndarray, span: slice) -> int:
    """The smallest count of a group that leaves no axis of the graph empty.

    Args:
        prefix: int64 (size + 1, types), units of each type at each count.
        span: the group's types.
    """
    counters = tables.counters[tables.required]
    alone = (tables.fixed[tables.required] == 0) & (np.delete(counters, np.r_[span], axis=1).sum(axis=1) == 0)
    left = prefix @ counters[alone, span].T
    return max(1, int(np.argmax((left >= 1).all(axis=1))))


def producers_by_argument(graph: LayerGraph) -> list[np.ndarray]:
    """For each argument position, the producer's index of every layer; -1 where it has no such input."""
    most = max((len(layer.inputs) for layer in graph.layers), default=0)
    found = np.full((max(most, 1), len(graph.layers)), -1)
    for i, layer in enumerate(graph.layers):
        for position, name in enumerate(layer.inputs):
            found[position, i] = graph.index[name]
    return list(found)
