"""Passes over memory: what the kernels of a mobile CPU are made of (`accel_models.mobile.cpu` is the chapter).

A kernel says for each pass how many independent iterations it has, how many core cycles they take together, and which
streams of bytes they move; here that becomes the tiles of a step. A stream knows its size and the fraction of it that
no longer is in L1, L2 and L3, from the size of the buffer it walks over.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from accel_models.mapping import Steps, ceil_div
from accel_models.placement import Placement
from workloads.columns import Columns

if TYPE_CHECKING:
    from accel_models.mobile.cpu import MobileCPU

STEPS = ("border", "transform", "pack", "compute", "inverse", "activation")
KERNELS = ("none", "gemm", "winograd63", "direct", "naive", "depthwise", "gemv", "vector", "copy", "spmm", "pattern")
WIDTHS = (8, 16, 32)  # bits that vector instructions multiply
L1, L2, L3, DRAM = range(4)  # the spec's memories, in this order

PIXEL_TILES = (12, 8, 4, 2, 1)  # pixels x 8 channels in registers; what is left over takes the next smaller one
DRAIN_CYCLES = 12  # from a register tile's last FMA to the next one's first: results leave the pipeline, loop exit
EXPONENTIAL_OPS = 20  # polynomial and scaling of one exp on a vector


class Levels(NamedTuple):
    """The fraction of a stream's bytes that is not found in L1, in L2, in L3; float64 (rows,)."""

    l1: Any
    l2: Any
    l3: Any


COLD = Levels(1.0, 1.0, 1.0)  # never seen before: weights


class Stream(NamedTuple):
    """Bytes that a pass moves, all threads together, and where they are found."""

    size: np.ndarray
    levels: Levels


def either(where: np.ndarray, one: Stream, other: Stream) -> Stream:
    """`one` in the rows `where`, `other` in the rest."""
    levels = Levels(*(np.where(where, *pair) for pair in zip(one.levels, other.levels, strict=True)))
    return Stream(np.where(where, one.size, other.size), levels)


class Product(NamedTuple):
    """A packed GEMM; float64 (rows,) each.

    Core cycles, parallel iterations, parallel loops, longest iteration over the mean one, bytes that instructions load.
    """

    cycles: np.ndarray
    items: np.ndarray
    loops: np.ndarray
    imbalance: np.ndarray
    loaded: np.ndarray


class Passes:
    """The steps of one kernel for some rows, filled pass by pass. All dims are float64 (rows,).

    Attributes:
        copies: images times groups, which run one after another; what follows is of one of them.
        k, c, taps, pixels: output channels, input channels, R * S, P * Q (of a linear layer, all positions).
        input, padded, other, output, weights: elements; `padded` is the input with its border.
        lanes, peak: numbers in a vector, and multiplications a cycle of one core.
    """

    def __init__(self, cpu: MobileCPU, rows: Columns, placement: Placement) -> None:
        self.cpu, self.rows, self.placement = cpu, rows, placement
        self.p = cpu.spec.parameters
        self.arrays = Steps.empty(STEPS, KERNELS, len(rows), len(cpu.spec.ports), len(cpu.components))
        self.arrays["parallel"][:] = cpu.threads
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
        live = (self.input + self.other) * self.in_bytes + self.output * self.out_bytes
        self.overflow = self.levels(live * self.copies).l3
        self.width = np.searchsorted(WIDTHS, np.minimum(np.maximum(rows.weight_bits, rows.input_bits), WIDTHS[-1]))
        self.lanes, self.peak = cpu.lanes[self.width], cpu.peak[self.width]

    def levels(self, size: Any) -> Levels:
        """Where a buffer of `size` bytes is found when it is read again."""
        return Levels(*(np.clip(size / capacity - 1, 0, 1) for capacity in self.cpu.capacities))

    def home(self, size: Any, memory: np.ndarray) -> Levels:
        """Where a feature map of `size` bytes is found that placement put into `memory` (0: L3, 1: DRAM)."""
        near, far = self.levels(size), memory * self.overflow
        return Levels(np.maximum(near.l1, far), np.maximum(near.l2, far), far)

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
        return Stream(times * self.weights * self.weight_bytes, COLD)

    def buffer(self, elements: Any, times: Any = 1.0) -> Stream:
        """A scratch buffer of input numbers, read or written `times` times."""
        size = elements * self.in_bytes
        return Stream(size * times, self.levels(size))

    def vector_cycles(self, elements: Any, ops: Any = 1.0) -> np.ndarray:
        """Core cycles of elementwise work: one load and store a vector, or its operations, at vector_efficiency."""
        return np.asarray(elements / self.lanes * np.maximum(ops / self.p.vector_pipes, 1) / self.p.vector_efficiency)

    def transform_cycles(self, tiles: np.ndarray, channels: np.ndarray, ops: float) -> np.ndarray:
        """Core cycles of a Winograd transform: its operations, and 64 accesses to planes far apart in memory."""
        scattered = 64 * tiles * channels / self.lanes * self.p.scatter_cycles
        return np.asarray(self.vector_cycles(tiles * channels, ops) + scattered)

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
        cpu, j, a = self.cpu, STEPS.index(step), self.arrays
        tiles = np.where(when, items, 0.0) * self.copies
        each = np.where(when, 1 / items, 0.0)
        overhead = (self.p.fork_join_s * loops if cpu.threads > 1 else 0.0) + (self.p.launch_s if launch else 0.0)
        a["prologue_cycles"][:, j] = overhead * self.copies * cpu.spec.clock_hz
        a["tiles"][:, j] = tiles
        a["floor_cycles"][:, j] = (macs / self.peak if floor is None else floor) * cpu.ideal_cycle * each
        a["mean_cycles"][:, j] = core_cycles * cpu.mean_cycle * each
        a["slowest_cycles"][:, j] = core_cycles * cpu.slowest_cycle * imbalance * each
        moved = bytes_by_port(streams, len(tiles))
        moved[L1] = np.maximum(moved[L1], loaded)
        for port in (L1, L2, L3):
            a["port_bytes"][:, j, port] = moved[port] * each
        a["port_bytes"][:, j, DRAM] = moved[DRAM] * each
        used = np.where(when, self.copies, 0.0)
        a["accesses"][np.arange(len(tiles)), self.width] += macs * used
        a["accesses"][:, 3:] += np.stack([core_cycles, *moved], axis=1) * used[:, None]

    def activate(self) -> None:
        """The fused activation, in place over the output."""
        out = self.write_output()
        ops = np.where(self.rows.activation == 3, EXPONENTIAL_OPS, 1.0)
        cycles = self.vector_cycles(self.output, ops)
        self.charge("activation", self.groups_of(4), cycles, (out, out), when=self.rows.activation > 0)

    def add_border(self) -> Stream:
        """Copy the input into a frame of zeros where the kernel reaches over its edge; gives what is read next."""
        has = self.padded > self.input
        frame, direct = self.buffer(self.padded), self.read_input()
        cycles = self.vector_cycles(self.input)
        self.charge("border", np.ceil(self.c / 4), cycles, (direct, frame), when=has)
        return either(has, frame, direct)

    def multiply(self, pixels: np.ndarray, k: np.ndarray, c: np.ndarray, times: float = 1.0) -> Product:
        """`times` packed GEMMs: 8 output channels at a time, then at most once 4, each over all pixels."""
        halves = ceil_div(k, 4)
        full, half = halves // 2, halves % 2
        inner, drain = self.cpu.tile_cycles[self.width], self.cpu.tile_drain[self.width]  # (rows, 2, tile sizes)
        each = ((inner * c[:, None, None] + drain) * pixel_tiles(pixels)[:, None, :]).sum(axis=2) * times
        cycles, items = full * each[:, 0] + half * each[:, 1], full + half
        longest = np.where(full > 0, each[:, 0], each[:, 1])
        imbalance = longest * items / cycles if self.cpu.threads > 1 else np.ones(len(k))
        # 20 numbers are loaded for the 96 multiplications of a 12 x 8 tile
        loaded = times * pixels * k * c * (PIXEL_TILES[0] + 8) / (PIXEL_TILES[0] * 8) * self.in_bytes
        return Product(cycles, items, np.minimum(full, 1) + half, imbalance, loaded)

    def charge_product(self, product: Product, streams: Iterable[Stream], macs: np.ndarray) -> None:
        cycles, items, loops, imbalance, loaded = product
        self.charge(
            "compute", items, cycles, streams,
            macs=macs, loaded=loaded, loops=loops, imbalance=imbalance, launch=True,
        )  # fmt: skip


def register_tile(p: Any, bits: int, channels: int) -> tuple[list[float], list[float]]:
    """Cycles per input channel, and per tile besides, of each of PIXEL_TILES x `channels` in registers.

    A dot product of 8-bit numbers takes four input channels at once. Starting clears the accumulators on the vector
    pipes, ending stores them one a cycle.
    """
    depth, sum_bits = (4, 32) if bits == 8 else (1, bits)
    cycles, drain = [], []
    for pixels in PIXEL_TILES:
        sums = pixels * -(-channels * sum_bits // p.vector_bits)
        loads = (pixels + channels) * depth * bits / p.vector_bits
        bounds = (sums / p.vector_pipes, loads / p.loads_per_cycle, (sums + loads) / p.instructions_per_cycle)
        cycles.append(max(*bounds, p.chain_cycles) / depth)
        drain.append(sums / p.vector_pipes + sums + DRAIN_CYCLES)
    return cycles, drain


def pixel_tiles(pixels: np.ndarray) -> np.ndarray:
    """How many register tiles of each size cover the pixels, (rows, len(PIXEL_TILES)).

    >>> pixel_tiles(np.array([25.0, 7.0])).tolist()  # 12 + 12 + 1 and 4 + 2 + 1
    [[2.0, 0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0, 1.0]]
    """
    counts, rest = [], pixels
    for size in PIXEL_TILES:
        count, rest = np.divmod(rest, size)
        counts.append(count)
    return np.stack(counts, axis=1)


def bytes_by_port(streams: Iterable[Stream], rows: int) -> list[np.ndarray]:
    """Bytes that come through L1, L2, L3 and DRAM, each (rows,)."""
    moved = [np.zeros(rows) for _ in range(4)]
    for stream in streams:
        for port, fraction in enumerate((1.0, *stream.levels)):
            moved[port] = moved[port] + stream.size * fraction
    return moved
