"""What becomes of code that runs although nothing reads its answer, when the channels that it reads go.

Such code (a head that is computed and dropped, the last residual convolution of a WaveNet) is no part of a layer graph:
it costs hardware nothing. In PyTorch it runs, so its weights must follow the groups of the graph. Its layers are put
behind those of the graph, and channels are tied once more (`workloads.channel_rules`): the atoms of the graph's own
layers keep their numbers, so that what the further layers tie to them shows which units they read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from workloads.channel_groups import Member
from workloads.channel_rules import Flow
from workloads.channel_tables import join
from workloads.channels import ChannelAnalysis
from workloads.graph import Layer, LayerGraph

FROM_WEIGHTS = ("c", "k", "hidden")  # counts that surgery corrects by the shapes of weights
UNREAD = "runs but its answer is not used"


@dataclass(frozen=True, eq=False)
class Followers:
    """What must be cut with each prunable group of a graph, beside its own members.

    Attributes:
        members: group -> members in layers that nothing reads; their arrays are those of the whole structure.
        reasons: group -> why such a layer cannot follow it.
    """

    members: Mapping[str, tuple[Member, ...]]
    reasons: Mapping[str, str]


def followers(analysis: ChannelAnalysis, layers: tuple[Layer, ...], outputs: tuple[str, ...]) -> Followers:
    """Members and reasons of groups that unread layers read.

    Args:
        analysis: of a graph.
        layers: those of the graph, under any names, and behind them the unread ones. outputs: names of the graph's.
    """
    flow = Flow(LayerGraph(analysis.source.name, layers, outputs))
    root, fixes = join(flow)
    parts, names = analysis.parts, {layer.name for layer in layers[len(analysis.source) :]}
    unit, is_mixed = _units(parts.unit, root)
    reasons: dict[str, str] = {}

    def refuse(units: np.ndarray, reason: str) -> None:
        for number in _groups(parts.first, units):
            if number < parts.prunable:
                reasons.setdefault(parts.names[number], reason)

    for name in sorted(names & set(flow.counted)):
        for field, _, labels in flow.counted[name]:
            if field not in FROM_WEIGHTS:
                refuse(unit[labels], f"{name!r} {UNREAD}")
    for labels, _, name in flow.ties:
        if name in names:
            mixed = np.isin(root[: len(parts.unit)], root[labels[is_mixed[labels]]])
            refuse(parts.unit[mixed], f"{name!r} {UNREAD}, and joins channels that are free otherwise")
    for labels, reason in fixes:
        refuse(unit[labels], f"{reason}, though the answer is not used")
    members: dict[str, list[Member]] = {}
    for axis in flow.arrays:
        if axis.layer in names:
            found = unit[axis.labels]
            for number in _groups(parts.first, found):
                index = np.flatnonzero((found >= parts.first[number]) & (found < parts.first[number + 1]))
                place = found[index] - parts.first[number]
                member = Member(axis.layer, axis.array, axis.axis, axis.role, index, place)
                members.setdefault(parts.names[number], []).append(member)
    return Followers({name: tuple(found) for name, found in members.items()}, reasons)


def _units(own: np.ndarray, root: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of every atom the unit of the graph that it goes with, -1 for none; and whether there are several.

    Args:
        own: int64, the unit of each atom of the graph. root: int64, of these and further atoms, what they are tied to.
    """
    lowest, highest = np.full(len(root), len(own)), np.full(len(root), -1)
    np.minimum.at(lowest, root[: len(own)], own)
    np.maximum.at(highest, root[: len(own)], own)
    return highest[root], (lowest < highest)[root]


def _groups(first: np.ndarray, unit: np.ndarray) -> list[int]:
    """The groups that some units belong to; -1 belongs to none."""
    return [int(number) for number in np.unique(np.searchsorted(first, unit[unit >= 0], side="right") - 1)]
