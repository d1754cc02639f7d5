"""Passes over memory: what the kernels of a mobile CPU are made of (`accel_models.mobile.cpu` is the chapter).

A kernel says for each pass how many independent iterations it has, how many core cycles they take together, and which
streams of bytes they move; here that becomes the tiles of a step. A stream knows its size and the fraction of it that
is found in none of the caches up to each level, from the size of the buffer it walks over.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from accel_models.mapping import ARRAY_FIELDS, Steps
from accel_models.mobile.cores import WIDTHS
from accel_models.placement import Placement
from workloads.columns import Columns

if TYPE_CHECKING:
    from accel_models.mobile.cpu import MobileCPU

STEPS = ("border", "transform", "pack", "compute", "inverse", "activation")
EXPONENTIAL_OPS = 20  # polynomial and scaling of one exp on a vector
QUANTIZE_OPS = 6  # scale, round, narrow with saturation

Levels = tuple[Any, ...]  # for each cache: the fraction of a stream that it and those before it do not hold


class Stream(NamedTuple):
    """Bytes that a pass moves, all threads together, and where they are found."""

    size: Any
    levels: Levels

    def by_port(self) -> tuple[Any, ...]:
        """Bytes through each port: all through the first one, through others what no cache before them holds."""
        return (self.size, *(self.size * level for level in self.levels))


def either(where: np.ndarray, one: Stream, other: Stream) -> Stream:
    """`one` in the rows `where`, `other` in the rest."""
    levels = tuple(np.where(where, *pair) for pair in zip(one.levels, other.levels, strict=True))
    return Stream(np.where(where, one.size, other.size), levels)


class Passes:
    """The steps of one kernel for some rows, filled pass by pass. All dims are float64 (rows,).

    Attributes:
        copies: images times groups, which run one after another; what follows is of one of them.
        k, c, taps, pixels: output channels, input channels, R * S, P * Q (of a linear layer, all positions).
        input, padded, other, output, weights: elements; `padded` is the input with its border.
        lanes, peak: numbers in a vector, and multiplications a cycle of one core.
        cold: levels of what was never seen before (weights).
    """

    def __init__(self, cpu: MobileCPU, rows: Columns, placement: Placement) -> None:
        self.cpu, self.rows, self.placement = cpu, rows, placement
        self.p, self.core = cpu.spec.parameters, cpu.team.core
        self.arrays = empty_steps(cpu, len(rows))
        flat = rows.is_op("linear")
        groups = np.where(rows.is_depthwise, 1, rows.groups)
        self.copies = np.where(flat, 1, rows.n * groups).astype(float)
        self.k, self.c = rows.k / groups, np.maximum(rows.c // groups, 1).astype(float)
        self.taps = (rows.r * rows.s).astype(float)
        self.pixels = np.where(flat, rows.n * rows.p * rows.q, rows.p * rows.q).astype(float)
        self.input, self.other = rows.input_elements / self.copies, rows.other_elements / self.copies
        self.output = rows.output_elements / self.copies
        self.weights = rows.weight_elements / groups
        height = np.maximum(rows.in_h, (rows.p - 1) * rows.stride_h + (rows.r - 1) * rows.dilation_h + 1)
        width = np.maximum(rows.in_w, (rows.q - 1) * rows.stride_w + (rows.s - 1) * rows.dilation_w + 1)
        self.padded = self.c * height * width
        self.in_bytes, self.out_bytes = rows.input_bits / 8, rows.output_bits / 8
        self.weight_bytes = rows.weight_bits / 8
        self.cold: Levels = (1.0,) * len(cpu.capacities)
        live = (self.input + self.other) * self.in_bytes + self.output * self.out_bytes
        self.overflow = _missed(live * self.copies, cpu.capacities[-1])
        bits = np.minimum(np.maximum(rows.weight_bits, rows.input_bits), WIDTHS[-1])
        self.width = np.searchsorted(WIDTHS, bits)
        self.lanes, self.peak = cpu.lanes[self.width], cpu.peak[self.width]

    def levels(self, size: Any) -> Levels:
        """Where a buffer of `size` bytes is found when it is read again."""
        return tuple(_missed(size, capacity) for capacity in self.cpu.capacities)

    def home(self, size: Any, memory: np.ndarray) -> Levels:
        """Where a feature map of `size` bytes is found that placement put into `memory` (0: last cache, 1: DRAM)."""
        far = memory * self.overflow
        return (*(np.maximum(_missed(size, capacity), far) for capacity in self.cpu.capacities[:-1]), far)

    def read_input(self) -> Stream:
        size = self.input * self.in_bytes
        return Stream(size, self.home(size, self.placement.first))

    def read_other(self) -> Stream:
        size = self.other * self.in_bytes
        return Stream(size, self.home(size, self.placement.other))

    def write_output(self) -> Stream:
        size = self.output * self.out_bytes
        return Stream(size, self.home(size, self.placement.output))

    def read_weights(self, times: Any = 1.0) -> Stream:
        return Stream(times * self.weights * self.weight_bytes, self.cold)

    def buffer(self, elements: Any, times: Any = 1.0) -> Stream:
        """A scratch buffer of input numbers, read or written `times` times."""
        size = elements * self.in_bytes
        return Stream(size * times, self.levels(size))

    def vector_cycles(self, elements: Any, ops: Any = 1.0) -> np.ndarray:
        """Core cycles of elementwise work: one load and store a vector, or its operations, at vector_efficiency."""
        busy = np.maximum(np.asarray(ops) / self.core.vector_pipes, 1 / min(self.core.loads_per_cycle, 1))
        return np.asarray(elements / self.lanes * busy / self.p.vector_efficiency)

    def groups_of(self, channels: int) -> np.ndarray:
        """Parallel iterations of loops over so many output channels."""
        return np.ceil(self.k / channels)

    def charge(
        self,
        step: str,
        items: np.ndarray,
        core_cycles: np.ndarray,
        streams: Iterable[Stream],
        *,
        macs: np.ndarray | float = 0.0,
        floor: np.ndarray | float | None = None,
        loaded: np.ndarray | float = 0.0,
        loops: np.ndarray | float = 1.0,
        imbalance: np.ndarray | float = 1.0,
        when: np.ndarray | bool = True,
        launch: bool = False,
    ) -> None:
        """Add one pass: `items` parallel iterations that take `core_cycles` of one core together, for one copy.

        Args:
            step: one of STEPS, not yet charged in these rows.
            streams: what moves, all iterations together.
            macs: multiplications performed. floor: core cycles that cannot be saved; if not given, the multiplications
                at their peak. loaded: bytes that instructions load, where more than the streams.
            loops: parallel loops, each forked and joined. imbalance: slowest iteration over the mean one, >= 1.
            when: rows that have this pass. launch: whether the layer's own overhead is booked here.
        """
        cpu, team, j, a = self.cpu, self.cpu.team, STEPS.index(step), self.arrays
        used = np.where(when, self.copies, 0.0)
        each = when / items
        overhead = (self.p.fork_join_s * loops if cpu.threads > 1 else 0.0) + (self.p.launch_s if launch else 0.0)
        a["prologue_cycles"][:, j] = overhead * self.copies * cpu.spec.clock_hz
        a["tiles"][:, j] = items * used
        a["floor_cycles"][:, j] = (macs / self.peak if floor is None else floor) * team.ideal * each
        a["mean_cycles"][:, j] = core_cycles * team.mean * each
        a["slowest_cycles"][:, j] = core_cycles * team.slowest * imbalance * each
        moved = bytes_by_port(streams, len(cpu.spec.ports))
        moved[0] = np.maximum(moved[0], loaded)
        for port, found in enumerate(moved):
            a["port_bytes"][:, j, port] = found * each
        if np.ndim(macs):
            a["accesses"][np.arange(len(used)), self.width] += macs * used
        for component, found in zip(cpu.moved, moved, strict=True):
            a["accesses"][:, component] += found * used

    def activate(self) -> None:
        """What runs over the finished output, in place: an activation that the kernel does not apply in its own
        stores, and the way back from integers to floats."""
        out, rows = self.write_output(), self.rows
        fused = self.cpu.runtime.activation == "fused"
        applied = rows.activation == 3 if fused else rows.activation > 0
        requantized = (self.width == 0) & rows.is_mac & self.cpu.runtime.requantizes
        ops = np.where(rows.activation == 3, EXPONENTIAL_OPS, 1.0) * applied + QUANTIZE_OPS * requantized
        cycles = self.vector_cycles(self.output, ops)
        self.charge("activation", self.groups_of(4), cycles, (out, out), when=applied | requantized)

    def add_border(self, when: bool = True) -> Stream:
        """Copy the input into a frame of zeros where the kernel reaches over its edge; gives what is read next."""
        has = (self.padded > self.input) & when
        frame, direct = self.buffer(self.padded), self.read_input()
        cycles = self.vector_cycles(self.input)
        self.charge("border", np.ceil(self.c / 4), cycles, (direct, frame), when=has)
        return either(has, frame, direct)


def _missed(size: Any, capacity: float) -> np.ndarray:
    """The fraction of a buffer of `size` bytes that a cache does not hold when it is read again."""
    return np.asarray(np.minimum(np.maximum(size / capacity - 1, 0), 1))


def bytes_by_port(streams: Iterable[Stream], ports: int) -> list[np.ndarray]:
    """Bytes that come through each port, caches first, each (rows,)."""
    through = [stream.by_port() for stream in streams]
    return [functools.reduce(np.add, [stream[port] for stream in through]) for port in range(ports)]


def empty_steps(cpu: MobileCPU, rows: int) -> dict[str, Any]:
    """Zeroed arrays of `Steps`, rows fastest in memory: passes write and the timeline reads columns of rows."""
    arrays = Steps.empty(STEPS, cpu.runtime.names, 0, len(cpu.spec.ports), len(cpu.components))
    for name in ARRAY_FIELDS:
        arrays[name] = np.zeros((rows, *arrays[name].shape[1:]), arrays[name].dtype, order="F")
    arrays["parallel"][:] = cpu.threads
    return arrays
