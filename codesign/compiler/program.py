"""Calls of kernels in an order: what a compiled network is once everything is decided.

A *stage* is a layer's work cut into pieces that may run side by side (each packs its own tile into its thread's
scratch memory); threads wait for one another between stages. Addresses stay symbolic until a network is loaded, so that
every context, a thread's or a caller's, binds the same program to memory of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np

from codesign.compiler.arena import ALIGNMENT
from codesign.compiler.kernels import Kernel
from codesign.compiler.kernels.control import BarrierKernel


class Space(IntEnum):
    """What an argument counts from: nothing (a number), or the start of a memory."""

    NUMBER = 0
    ARENA = 1
    DATA = 2
    SCRATCH = 3
    SHARED = 4


class At(NamedTuple):
    """An address: bytes from the start of a memory."""

    space: Space
    offset: int

    def __add__(self, offset: object) -> At:
        assert isinstance(offset, int)
        return At(self.space, self.offset + offset)


Argument = int | At


@dataclass(frozen=True)
class Call:
    kernel: Kernel
    arguments: tuple[Argument, ...]


@dataclass(frozen=True)
class Work:
    """Calls that one thread makes, and about how long they take, in any unit that the stage keeps to."""

    calls: tuple[Call, ...]
    cost: float = 1.0


@dataclass(frozen=True)
class Stage:
    """A layer's work; `record` says in words and numbers how it is done (`codesign.compiler.records`)."""

    name: str
    works: tuple[Work, ...]
    record: Mapping[str, Any] = field(default_factory=dict)

    def shares(self, threads: int) -> list[list[Call]]:
        """The calls of each thread: neighbours of about equal cost, so that it finds in its cache what it wrote."""
        found: list[list[Call]] = [[] for _ in range(threads)]
        total, begin = sum(work.cost for work in self.works), 0.0
        for work in self.works:
            found[min(int((begin + work.cost / 2) / total * threads), threads - 1)] += work.calls
            begin += work.cost
        return found


LEAST_PART = 0.1
"""Of a piece of work that is worth beginning: smaller ones are left to the neighbour."""


def divide(costs: Sequence[float], threads: int) -> list[list[tuple[float, float]]]:
    """Where pieces of work, done in this order, are cut so that every thread has a run of equal cost.

    Returns:
        For each piece its parts, (begin, end) as fractions of it.

    >>> divide([1, 1, 1], 2)
    [[(0.0, 1.0)], [(0.0, 0.5), (0.5, 1.0)], [(0.0, 1.0)]]
    """
    goals = sum(costs) * np.arange(1, threads) / threads
    found, begin = [], 0.0
    for cost in costs:
        inside = (goals - begin) / cost
        cuts = [float(at) for at in inside if LEAST_PART < at < 1 - LEAST_PART]
        found.append(list(itertools.pairwise([0.0, *cuts, 1.0])))
        begin += cost
    return found


class Data:
    """Constant memory of a network: weights, headers, tables."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []
        self._size = 0

    def add(self, array: np.ndarray) -> At:
        """Keep an array; where it lies."""
        place = At(Space.DATA, self._size)
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self._parts += [flat, np.zeros(-len(flat) % ALIGNMENT, np.uint8)]
        self._size += len(flat) + -len(flat) % ALIGNMENT
        return place

    def array(self) -> np.ndarray:
        return np.concatenate(self._parts) if self._parts else np.zeros(0, np.uint8)


@dataclass(frozen=True)
class Bound:
    """A thread's program in memory: keep it as long as it may run.

    Attributes:
        table: int64 (calls, 2): address of the function, of its arguments. arguments: int64.
        stages: for each stage the rows of `table`, first and behind the last.
    """

    table: np.ndarray
    arguments: np.ndarray
    stages: tuple[tuple[int, int], ...]

    def call(self, stage: int | None = None) -> np.ndarray:
        """Arguments of `ProgramKernel` for everything, or for one stage."""
        begin, end = (0, len(self.table)) if stage is None else self.stages[stage]
        return np.array([self.table.ctypes.data + begin * self.table.strides[0], end - begin], np.int64)


def bind(
    stages: Sequence[Stage],
    thread: int,
    threads: int,
    functions: Mapping[Kernel, int],
    bases: Mapping[Space, int],
) -> Bound:
    """The program of one thread with addresses filled in; stages end with a barrier where there are several threads."""
    calls: list[Call] = []
    bounds = []
    barrier = Call(BarrierKernel(), (At(Space.SHARED, 0), threads))
    for stage in stages:
        begin = len(calls)
        calls += stage.shares(threads)[thread]
        calls += [barrier] * (threads > 1)
        bounds.append((begin, len(calls)))
    base = {**bases, Space.NUMBER: 0}
    flat = [base[a.space] + a.offset if isinstance(a, At) else a for call in calls for a in call.arguments]
    arguments = np.array(flat, np.int64)
    starts = np.cumsum([0, *(len(call.arguments) for call in calls)])[:-1]
    table = np.array([[functions[call.kernel], 0] for call in calls], np.int64).reshape(-1, 2)
    table[:, 1] = arguments.ctypes.data + 8 * starts
    return Bound(table, arguments, tuple(bounds))


def kernels_of(stages: Iterable[Stage]) -> list[Kernel]:
    """Every kernel once, in order of first use."""
    found = dict.fromkeys(call.kernel for stage in stages for work in stage.works for call in work.calls)
    return list(found)
