"""What `workloads.channels` finds: groups of units, and what of every array belongs to which unit."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from workloads.errors import PlanError


@dataclass(frozen=True, eq=False)
class Member:
    """What a group owns of one axis of one array.

    Attributes:
        layer: its name. array: the array's key in the weights beside the graph.
        axis: of the array, in torch's layout.
        role: "output" (filters that make the channels), "input" (weights that read them), "depthwise" (filters of a
            depthwise or grouped layer, which go with their input), "bias", "norm" (scales), "slope" (of a prelu with
            one a channel) or "constant".
        index: int64 (m,), positions on the axis, ascending. unit: int64 (m,), the unit of the group each belongs to.
    """

    layer: str
    array: str
    axis: int
    role: str
    index: np.ndarray
    unit: np.ndarray


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Units that are chosen together, as a count or one by one.

    Attributes:
        name: the first layer that makes them.
        size: number of units, 0..size-1.
        prunable: whether any may be removed; reason: why not, else "".
        minimum: the smallest count that leaves no layer without channels.
        kinds: int64 (size,), the kind of each unit; units of one kind have equally many channels in every layer.
        order: int64 (size,), the units from the one that is kept longest, where only a count is given; each kind
            keeps its share of any count.
        members: everything that goes when a unit goes.
    """

    name: str
    size: int
    prunable: bool
    reason: str
    minimum: int
    kinds: np.ndarray
    order: np.ndarray
    members: tuple[Member, ...]

    @property
    def producers(self) -> tuple[str, ...]:
        """Layers whose filters make the channels."""
        return self._layers("output")

    @property
    def consumers(self) -> tuple[str, ...]:
        """Layers whose weights read the channels."""
        return self._layers("input")

    def kept(self, count: int) -> np.ndarray:
        """The units that a count stands for, ascending int64 (count,)."""
        return np.sort(self.order[:count])

    def indices(self, layer: str, role: str, units: ArrayLike) -> np.ndarray:
        """Positions, on the axis of that role, that these units own: ascending int64.

        Raises:
            PlanError: the group has no such member, or no such unit.
        """
        found = [member for member in self.members if (member.layer, member.role) == (layer, role)]
        if not found:
            known = sorted({f"{member.role} of {member.layer!r}" for member in self.members})
            raise PlanError(f"channel group {self.name!r} has no {role} of layer {layer!r}; it has {', '.join(known)}")
        wanted = np.zeros(self.size, bool)
        wanted[self.selected(units)] = True
        return found[0].index[wanted[found[0].unit]]

    def selected(self, units: ArrayLike) -> np.ndarray:
        """The units as ascending int64.

        Raises:
            PlanError: not integers in 0..size-1, or one is named twice.
        """
        array = np.asarray(units)
        if array.size and (array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= self.size):
            raise PlanError(f"channel group {self.name!r}: units {units!r}, must be integers in 0..{self.size - 1}")
        found = np.unique(array.astype(np.int64))
        if len(found) != array.size:
            raise PlanError(f"channel group {self.name!r}: units {units!r} name one twice")
        return found

    def _layers(self, role: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(member.layer for member in self.members if member.role == role))

    def check(self, count: int, least: int | None = None) -> int:
        """The count, if it is possible: at least `minimum`, or `least`.

        Raises:
            PlanError: not an integer, out of range, or the group cannot change.
        """
        try:
            number = operator.index(count)
        except TypeError:
            number = -1
        if number != self.size and not self.prunable:
            raise PlanError(f"channel group {self.name!r} must keep all {self.size} units: {self.reason}")
        if not (least or self.minimum) <= number <= self.size:
            allowed = f"{least or self.minimum}..{self.size}"
            raise PlanError(f"channel group {self.name!r} cannot keep {count!r} units; allowed: {allowed}")
        return number

    def __str__(self) -> str:
        if not self.prunable:
            return f"{self.name}: {self.size} units, fixed: {self.reason}"
        return f"{self.name}: {self.minimum}..{self.size} units from {_few(self.producers)} to {_few(self.consumers)}"


def _few(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f"{', '.join(names[:2]) or 'none'}{more}"


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
    return f"unknown {what} {name!r}; {hint}"
