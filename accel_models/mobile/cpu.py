"""A mobile CPU cluster running a packed inference runtime, kernel by kernel.

A layer is one kernel of the runtime and a kernel is a few **passes** over memory, each a parallel loop of I independent
iterations (8 output channels of a GEMM, 4 channels of a transform) dealt out statically to T threads:

    pass cycles = fork_join * regions  +  ceil(I / T) * max( core, l1, l2, l3, dram )           of one iteration each
    core = max( FMAs / 2,  loads / 2,  instructions / 4,  FMA chain ) * f_reference / f_slowest    cycles of one core

What the kernels do (K C P Q R S as everywhere; n = ceil(P/6) ceil(Q/6) Winograd tiles; b bytes a number):

* gemm (1x1, matmul, transposed): interleave the input into panels of 12 pixels; then every 8 output channels stream *all*
  panels past 24 accumulators. Nothing is blocked for caches: C P Q b bytes are read K/8 times from whichever level holds
  them. Pixels left over run as tiles of 8, 4, 2, 1.
* winograd63 (3x3, stride 1, at least 4 input channels): F(6x6, 3x3). Border copy; input transform, which writes 64 n C numbers;
  interleave; 64 GEMMs of n pixels, whose weights are 64/9 times the kernels; inverse transform. 64 n C K multiplications.
* direct (3x3 stride 2, 5x5, 7x7, first layer): 4 pixels x 4 channels in registers, partial sums kept in memory between
  groups of 4 input channels. naive (any other kernel): one pixel x 4 channels, bound by the FMA chain.
* depthwise: 4 channels at a time. gemv (linear, LSTM): a stream of weights.
* spmm (weights with zeros; 1x1, 3x3 through im2col, linear): each non-zero times up to 16 vectors of pixels, one load per FMA
  and an index. pattern (only for an exact mask with few distinct kernel patterns): kernels sorted by pattern, a square of a x a
  vectors in registers, (a+1)(a+2) loads for 4 a^2 FMAs; filters are dealt out to threads, so the busiest thread of the real
  mask counts. Both search 20 blockings (vectors in registers x blocks of filters).
* vector, copy: elementwise work, pooling, softmax; data movement. A fused activation is one more pass over the output.

Which one runs: for dense weights the runtime's published dispatch (ncnn, ARM, fp32, mid-2020: the list above); for weights with
zeros the cheapest of that kernel, spmm and pattern.

Where bytes are found: a buffer of S bytes that is read again is found in a cache of size M if S <= M; beyond, the hit rate
falls linearly to zero at 2 M. Feature maps between layers are where placement puts them (L3 or DRAM), weights come from
DRAM. Threads that stream the same panels share what the first of them fetched from DRAM.

Ports l1, l2, l3 are those of one core, and so is their traffic; dram is shared and counts everything. The floor is the
kernel's multiplications (Winograd's without its tile padding; a sparse kernel's non-zeros) over the FMA peak of the cores in
use; transforms and elementwise arithmetic count as padding.

Known to be wrong: no frequency ramp, no throttling, no other process. One efficiency stands for all compiler-scheduled
passes; TLB and set conflicts are only in it. Caches run at the reference clock on slower cores too. Groups run one after
another, batches image by image. int8 is what the dot-product instructions allow; the 2020 runtime's int8 was slower than its
fp32. On purpose: channels round up to 4, pixels to tiles of 12/8/4/2/1, Winograd tiles to 6, filters to waves of threads.

Sources: ncnn source, src/layer/arm, mid-2020 (dispatch, register tiles, loop order, passes); Arm Cortex-A76 Software
Optimization Guide (pipelines, accumulate forwarding); Lavin and Gray, CVPR 2016 (Winograd); Elsen et al., CVPR 2020 (spmm);
Niu et al., ASPLOS 2020 (pattern kernels, FKW).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NamedTuple

import numpy as np

from accel_models.family import Family
from accel_models.mapping import Steps, ceil_div, choose, round_up
from accel_models.placement import Placement
from accel_models.registry import family
from accel_models.spec import Count, Fraction, Frozen, HardwareSpec, NotNegative, Numbers, Positive
from accel_models.timeline import closed_form
from workloads.columns import Columns
from workloads.errors import ConfigError
from workloads.graph import OP_CODES, Op
from workloads.random_masks import RandomMasks

STEPS = ("border", "transform", "pack", "compute", "inverse", "activation")
KERNELS = ("none", "gemm", "winograd63", "direct", "naive", "depthwise", "gemv", "vector", "copy", "spmm", "pattern")
WIDTHS = (8, 16, 32)  # bits that vector instructions multiply
L1, L2, L3, DRAM = range(4)  # the spec's memories, in this order

PIXEL_TILES = (12, 8, 4, 2, 1)  # pixels x 8 channels in registers; what is left over takes the next smaller one
DRAIN_CYCLES = 12  # from a register tile's last FMA to the next one's first: results leave the pipeline, loop exit
# Vector operations of one 8x8 -> 6x6 Winograd tile: 16 (14) one-dimensional transforms of 26 (24) operations each.
WINOGRAD_INPUT_OPS, WINOGRAD_INVERSE_OPS = 16 * 26, 14 * 24
EXPONENTIAL_OPS = 20  # polynomial and scaling of one exp on a vector
SPMM_VECTORS = (1, 2, 4, 8, 16)  # vectors of pixels that a non-zero is multiplied with
PATTERN_SIDES = (1, 2, 3, 4, 5)  # side of the square of vectors that a pattern kernel holds
FILTER_BLOCKS = (1, 4, 16, 64)  # into how many blocks a sparse kernel cuts its filters
INDEX_BYTES = 4

# Vector operations an output element, of layers that do not multiply (pooling: one for each input it looks at).
VECTOR_OPS = {
    Op.SOFTMAX: EXPONENTIAL_OPS + 10,
    Op.ACTIVATION: EXPONENTIAL_OPS,
    Op.NORM: 8,
    Op.VECTOR: 4,
    Op.UPSAMPLE: 4,
    Op.TRANSPOSE: 4,
    Op.PIXEL_SHUFFLE: 4,
}
OPS_BY_CODE = np.array([float(VECTOR_OPS.get(op, 1)) for op in OP_CODES])


class Levels(NamedTuple):
    """The fraction of a stream's bytes that is not found in L1, in L2, in L3; float64 (rows,)."""

    l1: Any
    l2: Any
    l3: Any


COLD = Levels(1.0, 1.0, 1.0)  # never seen before: weights


class Stream(NamedTuple):
    """Bytes that a pass moves, all threads together, and where they are found.

    `shared`: all threads read the same bytes at about the same time, so that DRAM delivers them once.
    """

    size: np.ndarray
    levels: Levels
    shared: bool = False


@family("mobile_cpu")
class MobileCPU(Family):
    """Cores of one cluster of a phone, and the kernels of a packed runtime on them."""

    class Parameters(Frozen):
        """Threads, cores, and the runtime's fixed costs.

        Attributes:
            threads: how many run; thread i on core i.
            core_clock_hz, core_l2_bytes: of each core, in the order in which threads are bound to them. Work is dealt out
                statically: the slowest core in use sets the pace, the smallest L2 in use the capacity.
            vector_bits, vector_pipes: width of a vector register, FMAs a cycle.
            loads_per_cycle, instructions_per_cycle: vector loads and all instructions, of one core.
            chain_cycles: from an FMA to the next one into the same accumulator.
            vector_efficiency: of passes that a compiler scheduled (transforms, depthwise, pooling, elementwise, copies):
                cycles by counting their instructions, over cycles they take.
            sparse_efficiency: the same for the inner loops of sparse kernels.
            pattern_limit: pattern kernels exist for masks with at most so many distinct kernel patterns.
            launch_s: per layer, dispatch and allocation. fork_join_s: per parallel region, with several threads.
        """

        threads: Count
        core_clock_hz: Numbers
        core_l2_bytes: Numbers
        vector_bits: Count
        vector_pipes: Count
        loads_per_cycle: Count
        instructions_per_cycle: Count
        chain_cycles: Positive
        vector_efficiency: Fraction
        sparse_efficiency: Fraction
        pattern_limit: Count
        launch_s: NotNegative
        fork_join_s: NotNegative

    components: ClassVar[tuple[str, ...]] = ("mac8", "mac16", "mac32", "core_cycle", "l1", "l2", "l3", "dram")
    precisions = (32, 16, 8)

    def __init__(self, spec: HardwareSpec) -> None:
        super().__init__(spec)
        p = spec.parameters
        if not p.threads <= len(p.core_clock_hz) == len(p.core_l2_bytes) or spec.ports != ("l1", "l2", "l3", "dram"):
            raise ConfigError(
                f"{spec.name}: {p.threads} threads on {len(p.core_clock_hz)} core_clock_hz and {len(p.core_l2_bytes)} "
                f"core_l2_bytes with memories {', '.join(spec.ports)}; needs at most one thread a core, an L2 for each "
                "core, and memories l1, l2, l3, dram"
            )
        cycles = spec.clock_hz / np.array(p.core_clock_hz[: p.threads])  # of the reference clock, in one of each core
        self.threads = p.threads
        self.slowest_cycle, self.mean_cycle, self.ideal_cycle = cycles.max(), cycles.mean(), 1 / (1 / cycles).mean()
        sizes = (spec.memories[L1].size_bytes, min(p.core_l2_bytes[: p.threads]), spec.memories[L3].size_bytes)
        self.capacities = tuple(float(size or np.inf) for size in sizes)
        self.lanes = np.array([p.vector_bits / max(bits, 16) for bits in WIDTHS])  # int8 vector work widens to 16 bits
        self.peak = np.array([p.vector_pipes * p.vector_bits / bits for bits in WIDTHS])
        tiles = [[_register_tile(p, bits, k) for k in (8, 4)] for bits in WIDTHS]
        self.tile_cycles, self.tile_drain = np.moveaxis(np.array(tiles), 2, 0)  # each (widths, 8 or 4 channels, tiles)

    def channel_multiple(self) -> int:
        """Lanes of an fp32 vector: the packed layout holds 4 channels; 8 fill a register tile, 4 take half of one."""
        return int(self.spec.parameters.vector_bits) // 32

    def map(self, rows: Columns, placement: Placement) -> Steps:
        kernel = dense_kernel(rows)
        steps = Steps(**Steps.empty(STEPS, KERNELS, len(rows), len(self.spec.ports), len(self.components)))
        for code, name in enumerate(KERNELS):
            at = np.flatnonzero(kernel == code)
            if name in DENSE and len(at):
                _put(steps, at, self._price(DENSE[name], code, rows.take(at), placement.take(at)))
        sparse = rows.has_weights & (rows.weight_density < 1) & (rows.groups == 1) & rows.is_op("conv", "linear")
        patterned = np.zeros(len(rows), bool)
        if rows.sparsity:
            limit = self.spec.parameters.pattern_limit
            patterned[sparse] = [_has_patterns(rows, int(i), limit) for i in np.flatnonzero(sparse)]
        for name, function, where in (("spmm", spmm, sparse), ("pattern", pattern, patterned)):
            at = np.flatnonzero(where)
            if len(at):
                other = self._price(function, KERNELS.index(name), rows.take(at), placement.take(at))
                costs = np.stack([closed_form(choice, self.spec).cycles for choice in (steps.take(at), other)])
                better = choose(costs) == 1
                _put(steps, at[better], other.take(better))
        return steps

    def _price(self, function: Callable[[Passes], None], code: int, rows: Columns, placement: Placement) -> Steps:
        """All rows priced with one kernel."""
        passes = Passes(self, rows, placement)
        function(passes)
        passes.arrays["kernel"][:] = code
        return Steps(**passes.arrays)


def _put(steps: Steps, at: np.ndarray, part: Steps) -> None:
    """Write the rows of `part` over the rows `at`, in place: `steps` is still being built."""
    from accel_models.mapping import ARRAY_FIELDS

    for name in ARRAY_FIELDS:
        getattr(steps, name)[at] = getattr(part, name)


def dense_kernel(rows: Columns) -> np.ndarray:
    """Index into KERNELS by the runtime's published rule, int64 (rows,).

    One difference: where channels do not fill the packed layout, the runtime asks for 16 of them before it takes
    Winograd; here it does so from 4 on, with packed layout or not, so that a channel more never changes the kernel.
    """
    plain = (rows.dilation_h == 1) & (rows.dilation_w == 1)
    square, same = plain & (rows.r == rows.s), rows.stride_h == rows.stride_w
    three = square & same & (rows.r == 3)
    conv, wide = rows.is_op("conv"), rows.c_per_group >= 4
    width = np.maximum(rows.weight_bits, rows.input_bits)
    large = square & same & (((rows.r == 5) & (rows.stride_h <= 2)) | ((rows.r == 7) & (rows.stride_h == 2)))
    gemv_rows = rows.is_op("lstm") | (rows.is_op("linear") & (rows.n * rows.p * rows.q == 1))
    choices = (
        ("depthwise", rows.is_depthwise),
        ("gemm", conv & (rows.r * rows.s == 1)),
        ("winograd63", conv & three & (rows.stride_h == 1) & wide & (width > 8)),
        ("direct", conv & ((three & (rows.stride_h <= 2)) | large)),
        ("naive", conv),
        ("gemv", gemv_rows),
        ("gemm", rows.is_mac),
        ("vector", rows.is_vector),
        ("copy", rows.is_move),
    )
    return np.select([where for _, where in choices], [KERNELS.index(name) for name, _ in choices], 0)


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
        self.in_bytes, self.out_bytes, self.weight_bytes = rows.input_bits / 8, rows.output_bits / 8, rows.weight_bits / 8
        self.width = np.searchsorted(WIDTHS, np.minimum(np.maximum(rows.weight_bits, rows.input_bits), WIDTHS[-1]))
        self.lanes, self.peak = cpu.lanes[self.width], cpu.peak[self.width]

    def levels(self, size: Any) -> Levels:
        """Where a buffer of `size` bytes is found when it is read again."""
        return Levels(*(np.clip(size / capacity - 1, 0, 1) for capacity in self.cpu.capacities))

    def home(self, size: Any, memory: np.ndarray) -> Levels:
        """Where a feature map of `size` bytes is found that placement put into `memory` (0: L3, 1: DRAM)."""
        near, far = self.levels(size), memory.astype(float)
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

    def buffer(self, elements: Any, times: Any = 1.0) -> Stream:
        """A scratch buffer of input numbers, read or written `times` times."""
        size = elements * self.in_bytes
        return Stream(size * times, self.levels(size))

    def vector_cycles(self, elements: Any, ops: Any = 1.0) -> np.ndarray:
        """Core cycles of elementwise work: one load and store a vector, or its operations, at vector_efficiency."""
        return np.asarray(elements / self.lanes * np.maximum(ops / self.p.vector_pipes, 1) / self.p.vector_efficiency)

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
        register_bytes: np.ndarray | float = 0.0,
        regions: np.ndarray | float = 1.0,
        imbalance: np.ndarray | float = 1.0,
        when: np.ndarray | bool = True,
        launch: bool = False,
    ) -> None:
        """Add one pass: `items` parallel iterations that take `core_cycles` of one core together, for one copy.

        Args:
            step: one of STEPS, not yet charged in these rows.
            streams: what moves, all iterations together.
            macs: multiplications performed. register_bytes: loaded and stored by instructions (at least the streams).
            regions: parallel loops, each forked and joined. imbalance: slowest thread over the mean one, >= 1.
            when: rows that have this pass. launch: whether the layer's own overhead is booked here.
        """
        cpu, j, a = self.cpu, STEPS.index(step), self.arrays
        tiles = np.where(when, items, 0.0) * self.copies
        side = np.maximum(np.minimum(tiles, cpu.threads), 1)
        each = np.where(when, 1 / items, 0.0)
        overhead = (self.p.fork_join_s * regions if cpu.threads > 1 else 0.0) + (self.p.launch_s if launch else 0.0)
        a["prologue_cycles"][:, j] = overhead * self.copies * cpu.spec.clock_hz
        a["tiles"][:, j] = tiles
        a["floor_cycles"][:, j] = macs / self.peak * cpu.ideal_cycle * each
        a["mean_cycles"][:, j] = core_cycles * cpu.mean_cycle * each
        a["slowest_cycles"][:, j] = core_cycles * cpu.slowest_cycle * imbalance * each
        moved = _bytes_by_port(streams, side, len(tiles))
        moved[L1] = np.maximum(moved[L1], register_bytes)
        for port in (L1, L2, L3):  # ports of a core: the bytes of one of the cores that run side by side
            a["port_bytes"][:, j, port] = moved[port] * each / side
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
        levels = Levels(*(np.where(has, *pair) for pair in zip(frame.levels, direct.levels, strict=True)))
        return Stream(np.where(has, frame.size, direct.size), levels)

    def gemm_cycles(self, pixels: np.ndarray, k: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(core cycles, parallel iterations) of a packed GEMM: 8 channels at a time, then 4, each over all pixels."""
        full, half = np.divmod(round_up(k, 4), 8)
        half = half / 4
        tiles = _pixel_tiles(pixels)
        inner, drain = self.cpu.tile_cycles[self.width], self.cpu.tile_drain[self.width]  # (rows, 2, tiles)
        each = ((inner * c[:, None, None] + drain) * tiles[:, None, :]).sum(axis=2)
        return full * each[:, 0] + half * each[:, 1], full + half


def _register_tile(p: Any, bits: int, channels: int) -> tuple[list[float], list[float]]:
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


def _pixel_tiles(pixels: np.ndarray) -> np.ndarray:
    """How many register tiles of each size cover the pixels, (rows, len(PIXEL_TILES)).

    >>> _pixel_tiles(np.array([25.0, 7.0])).tolist()  # 12 + 12 + 1 and 4 + 2 + 1
    [[2.0, 0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0, 1.0]]
    """
    counts, rest = [], pixels
    for size in PIXEL_TILES:
        count, rest = np.divmod(rest, size)
        counts.append(count)
    return np.stack(counts, axis=1)


def _bytes_by_port(streams: Iterable[Stream], side: np.ndarray, rows: int) -> list[np.ndarray]:
    """Bytes through L1, L2, L3 and DRAM, each (rows,); what DRAM delivers to several threads at once counts once."""
    moved = [np.zeros(rows) for _ in range(4)]
    for stream in streams:
        for port, fraction in enumerate((1.0, *stream.levels)):
            share = 1 / side if port == DRAM and stream.shared else 1.0
            moved[port] = moved[port] + stream.size * fraction * share
    return moved


# ---- dense kernels -------------------------------------------------------------------------------------------------


def gemm(s: Passes) -> None:
    """1x1 convolution, linear layer with several positions, matmul, transposed convolution."""
    rows = s.rows
    transposed, product = rows.is_op("conv_transpose"), rows.is_op("matmul")
    pixels = np.where(transposed, rows.in_h * rows.in_w, s.pixels).astype(float)
    k = np.where(transposed, s.k * s.taps, s.k)
    strided = rows.is_op("conv") & ((rows.stride_h > 1) | (rows.stride_w > 1))
    panel = pixels * s.c
    source = s.read_input()
    shrunk = s.buffer(panel)
    touched = source._replace(size=source.size / rows.stride_h)  # rows in between are skipped, lines are not
    s.charge("border", np.ceil(s.c / 4), s.vector_cycles(panel), (touched, shrunk), when=strided)
    levels = Levels(*(np.where(strided, *pair) for pair in zip(shrunk.levels, source.levels, strict=True)))
    taken = Stream(np.where(strided, shrunk.size, source.size), levels)
    packing = len(PIXEL_TILES)  # a parallel loop for each size of tile
    s.charge("pack", np.ceil(pixels / 12), s.vector_cycles(panel), (taken, shrunk), regions=packing)
    cycles, items = s.gemm_cycles(pixels, k, s.c)
    stored = s.read_other()
    factor = Levels(*(np.where(product, part, 1.0) for part in stored.levels))
    weights = Stream(np.where(product, stored.size, s.weights * s.weight_bytes), factor)
    again = Stream(shrunk.size * items, s.levels(shrunk.size + 8 * s.c * s.weight_bytes), shared=True)
    columns = Stream(pixels * k * s.out_bytes, s.levels(pixels * k * s.out_bytes))
    out = s.write_output()
    kept = Levels(*(np.where(transposed, *pair) for pair in zip(columns.levels, out.levels, strict=True)))
    result = Stream(np.where(transposed, columns.size, out.size), kept)
    macs = pixels * k * s.c
    s.charge(
        "compute", items, cycles, (again, weights, result),
        macs=macs, register_bytes=_gemm_register_bytes(s, macs), regions=2, launch=True,
    )  # fmt: skip
    s.charge("inverse", s.groups_of(4), s.vector_cycles(pixels * k), (columns, out), when=transposed)
    s.activate()


def _gemm_register_bytes(s: Passes, macs: np.ndarray) -> np.ndarray:
    """Loads of the 12 x 8 tile: 20 numbers for 96 multiplications."""
    return np.asarray(macs * (PIXEL_TILES[0] + 8) / (PIXEL_TILES[0] * 8) * s.in_bytes)


def winograd63(s: Passes) -> None:
    """3x3 stride 1 by F(6x6, 3x3)."""
    high, wide = ceil_div(s.rows.p, 6), ceil_div(s.rows.q, 6)
    tiles = (high * wide).astype(float)
    cut = (s.rows.p % 6 > 0) | (s.rows.q % 6 > 0)
    frame = s.c * (6 * high + 2) * (6 * wide + 2)
    times = np.where(cut, 3.0, 1.0)  # once for the convolution's own border, then once more to whole tiles
    border = s.vector_cycles(s.input) * np.where(cut, 2, 1)
    s.charge("border", np.ceil(s.c / 4), border, (s.read_input(), s.buffer(frame, times)), regions=np.where(cut, 2, 1))
    source, product = 64 * tiles * s.c, 64 * tiles * s.k
    spread = s.buffer(source)
    transform = s.vector_cycles(tiles * s.c, WINOGRAD_INPUT_OPS)
    s.charge("transform", np.ceil(s.c / 4), transform, (s.buffer(frame), spread))
    s.charge("pack", np.full(len(tiles), 64.0), s.vector_cycles(source), (spread, spread))
    cycles, items = s.gemm_cycles(tiles, s.k, s.c)
    weights = Stream(64 / s.taps * s.weights * s.weight_bytes, COLD)
    again = Stream(spread.size * items, spread.levels, shared=True)
    macs = 64 / 36 * s.pixels * s.c * s.k
    s.charge(
        "compute", items, 64 * cycles, (again, weights, s.buffer(product)),
        macs=macs, register_bytes=_gemm_register_bytes(s, macs), regions=2, launch=True,
    )  # fmt: skip
    out = s.write_output()
    inverse = s.vector_cycles(tiles * s.k, WINOGRAD_INVERSE_OPS) + np.where(cut, s.vector_cycles(s.output), 0.0)
    moved = out._replace(size=out.size * np.where(cut, 3, 1))
    s.charge("inverse", s.groups_of(4), inverse, (s.buffer(product), moved), regions=np.where(cut, 2, 1))
    s.activate()


def direct(s: Passes) -> None:
    """Kernels with loops of their own: 4 pixels x 4 channels (8 channels where the input has fewer than 4)."""
    source = s.add_border()
    thin = s.c < 4
    items = np.where(thin, s.groups_of(8), s.groups_of(4))
    c = np.where(thin, s.c, round_up(s.c, 4))
    cycles = round_up(s.k, 4) * round_up(s.pixels, 4) * c * s.taps / s.peak
    out = s.write_output()
    sums = Stream(2 * out.size * np.maximum(np.ceil(s.c / 4), 1), s.levels(out.size / items))
    again = Stream(source.size * items, source.levels, shared=True)
    weights = Stream(s.weights * s.weight_bytes, COLD)
    macs = s.k * s.pixels * s.c * s.taps
    s.charge("compute", items, cycles, (again, weights, sums, out), macs=macs, launch=True)
    s.activate()


def naive(s: Passes) -> None:
    """The runtime's fallback: every multiplication of an output waits for the one before. Activation is fused."""
    source = s.add_border()
    items = s.groups_of(4)
    step = np.maximum(s.p.chain_cycles, 4 / s.peak)
    cycles = items * s.pixels * s.c * s.taps * step
    again = Stream(source.size * items, source.levels, shared=True)
    weights = Stream(s.weights * s.weight_bytes, COLD)
    macs = s.k * s.pixels * s.c * s.taps
    s.charge("compute", items, cycles, (again, weights, s.write_output()), macs=macs, launch=True)


def depthwise(s: Passes) -> None:
    """One kernel a channel; four channels in a vector."""
    source = s.add_border()
    cycles = s.vector_cycles(round_up(s.k, 4) * s.pixels, s.taps)
    weights = Stream(s.weights * s.weight_bytes, COLD)
    macs = s.k * s.pixels * s.taps
    s.charge("compute", s.groups_of(4), cycles, (source, weights, s.write_output()), macs=macs, launch=True)
    s.activate()


def gemv(s: Passes) -> None:
    """A vector times a matrix, once for each time step of an LSTM; an LSTM's gates follow each step."""
    steps, lstm = s.pixels, s.rows.is_op("lstm")
    macs = steps * s.k * s.c
    cycles = steps * round_up(s.k, 4) * s.c / s.peak
    cycles = cycles + np.where(lstm, s.vector_cycles(s.k * steps, EXPONENTIAL_OPS), 0.0)
    size = s.weights * s.weight_bytes
    streams = (Stream(size, COLD), Stream(size * (steps - 1), s.levels(size)), s.read_input(), s.write_output())
    register_bytes = macs * s.weight_bytes
    s.charge(
        "compute", s.groups_of(4), cycles, streams,
        macs=macs, register_bytes=register_bytes, regions=steps, launch=True,
    )  # fmt: skip
    s.activate()


def vector(s: Passes) -> None:
    """Elementwise work, pooling, reductions, softmax, normalisation."""
    pooled = s.output * s.taps
    elements = np.where(s.rows.is_op("max_pool", "avg_pool"), s.output, np.maximum(s.output, s.input))
    ops = np.where(s.rows.is_op("max_pool", "avg_pool"), pooled / s.output, OPS_BY_CODE[s.rows.op])
    streams = (s.read_input(), s.read_other(), s.write_output())
    s.charge("compute", s.groups_of(4), s.vector_cycles(elements, ops), streams, launch=True)
    s.activate()


def copy(s: Passes) -> None:
    """Data movement: what is written is read once; a concat reads all its inputs."""
    out = s.write_output()
    near, far = s.read_input(), s.read_other()
    read = near._replace(size=np.minimum(near.size, out.size))
    cycles = s.vector_cycles(s.output, OPS_BY_CODE[s.rows.op])
    s.charge("compute", s.groups_of(4), cycles, (read, far, out), launch=True)
    s.activate()


DENSE: dict[str, Callable[[Passes], None]] = {
    "gemm": gemm,
    "winograd63": winograd63,
    "direct": direct,
    "naive": naive,
    "depthwise": depthwise,
    "gemv": gemv,
    "vector": vector,
    "copy": copy,
}


# ---- sparse kernels ------------------------------------------------------------------------------------------------


def _has_patterns(rows: Columns, row: int, limit: int) -> bool:
    """Whether a pattern kernel exists for a row: an exact mask of spatial kernels with few distinct patterns."""
    mask = rows.sparsity[row]
    return mask is not None and mask.is_exact and mask.r * mask.s > 1 and mask.distinct_patterns <= limit


def _imbalance(s: Passes) -> np.ndarray:
    """Non-zeros of the busiest thread over the mean, filters being dealt out in turn; 1 with one thread."""
    if s.cpu.threads == 1:
        return np.ones(len(s.rows))
    kernel = (np.where(s.rows.is_op("linear"), 1, x) for x in (s.rows.r, s.rows.s))
    chance = RandomMasks(s.k, s.c, *kernel, s.rows.weight_density)
    found = np.array(chance.balance(s.cpu.threads, "filter", "interleaved").imbalance)
    for i, mask in enumerate(s.rows.sparsity):
        if mask is not None and mask.is_exact:
            found[i] = mask.balance(s.cpu.threads, "filter", "interleaved").imbalance
    return np.maximum(found, 1.0)


class Blocking(NamedTuple):
    """One way to run a sparse kernel: parallel iterations, core cycles, streams, slowest thread over mean."""

    items: np.ndarray
    cycles: np.ndarray
    streams: tuple[Stream, ...]
    imbalance: np.ndarray


def _cheapest(s: Passes, sizes: tuple[int, ...], plan: Callable[[Any, Any], Blocking]) -> Blocking:
    """The blocking of least estimated time among sizes x FILTER_BLOCKS, for every row."""
    options = [(float(size), float(blocks)) for size in sizes for blocks in FILTER_BLOCKS]
    bandwidth = [memory.bandwidth_bytes_per_cycle for memory in s.cpu.spec.memories]
    costs = []
    for size, blocks in options:
        items, cycles, streams, imbalance = plan(size, np.minimum(blocks, s.k))
        side = np.minimum(items, s.cpu.threads)
        share = np.ceil(items / s.cpu.threads) / items
        moved = _bytes_by_port(streams, side, len(items))
        private = [moved[port] * share / bandwidth[port] for port in (L1, L2, L3)]
        shared = moved[DRAM] * share * side / bandwidth[DRAM]
        costs.append(np.maximum.reduce([cycles * s.cpu.slowest_cycle * imbalance * share, *private, shared]))
    best = np.array(options)[choose(np.stack(costs))]
    return plan(best[:, 0], np.minimum(best[:, 1], s.k))


def spmm(s: Passes) -> None:
    """Unstructured zeros: each non-zero weight times `size` vectors of pixels."""
    depth, nonzeros = s.c * s.taps, s.rows.weight_density * s.weights
    vectors = np.ceil(s.pixels / s.lanes)
    gathered = (s.taps > 1) | (s.rows.stride_h > 1) | (s.rows.stride_w > 1)
    panel, source = s.buffer(depth * s.pixels), s.read_input()
    s.charge("pack", np.ceil(depth / 4), s.vector_cycles(depth * s.pixels), (source, panel), when=gathered)
    levels = Levels(*(np.where(gathered, *pair) for pair in zip(panel.levels, source.levels, strict=True)))
    stored = nonzeros * (s.weight_bytes + INDEX_BYTES)
    out = s.write_output()

    def loop(size: Any) -> Any:
        """Cycles of one non-zero: a load and an FMA a vector, beside them weight, index and pointer."""
        p = s.p
        bounds = (size / p.vector_pipes, (size + 2) / p.loads_per_cycle, (2 * size + 3) / p.instructions_per_cycle)
        return np.where(size > 0, np.maximum.reduce(np.broadcast_arrays(*bounds)), 0.0)

    imbalance = _imbalance(s)

    def plan(size: Any, blocks: Any) -> Blocking:
        full, rest = np.divmod(vectors, size)
        tiles = np.ceil(vectors / size)
        inner = nonzeros * (full * loop(size) + loop(rest)) / s.p.sparse_efficiency
        cycles = inner + s.k * (1.5 * vectors + DRAIN_CYCLES * tiles)
        near = s.levels(depth * size * s.lanes * s.in_bytes)
        again = Stream(nonzeros * vectors * s.lanes * s.in_bytes, Levels(near.l1, near.l2, 0.0))
        first = Stream(panel.size * blocks, levels)
        weights = Stream(stored * np.maximum(tiles - 1, 0), s.levels(stored / blocks), shared=True)
        streams = (again, first, Stream(stored, COLD), weights, out)
        return Blocking(tiles * blocks, cycles, streams, np.where(blocks > 1, imbalance, 1.0))

    best = _cheapest(s, SPMM_VECTORS, plan)
    s.charge(
        "compute", best.items, best.cycles, best.streams,
        macs=nonzeros * s.pixels, imbalance=best.imbalance, launch=True,
    )  # fmt: skip
    s.activate()


def pattern(s: Passes) -> None:
    """Few kernel patterns: size x size vectors of pixels in registers, input loaded once for all taps of a kernel."""
    masks = [mask for mask in s.rows.sparsity if mask is not None]
    kernels = np.array([mask.k * mask.c - mask.zero_kernels for mask in masks], float)
    nonzeros = np.array([mask.nonzeros for mask in masks], float)
    entries = nonzeros / np.maximum(kernels, 1)
    frame, source = s.buffer(1.3 * s.padded), s.read_input()  # the halo of each block is stored with it
    s.charge("pack", np.ceil(s.c / 4), s.vector_cycles(1.3 * s.padded), (source, frame))
    stored = nonzeros * s.weight_bytes + kernels * INDEX_BYTES
    out = s.write_output()
    imbalance = _imbalance(s)
    reach = np.where(entries > 6, 2, 1)  # four taps of a kernel span two rows or columns

    def plan(size: Any, blocks: Any) -> Blocking:
        tiles = np.ceil(s.pixels / (s.lanes * size**2))
        fmas, loads = entries * size**2, (size + 2) * (size + reach)
        bounds = (fmas / s.p.vector_pipes, loads / s.p.loads_per_cycle, (fmas + loads + 6) / s.p.instructions_per_cycle)
        inner = kernels * tiles * np.maximum.reduce(np.broadcast_arrays(*bounds)) / s.p.sparse_efficiency
        cycles = inner + s.k * tiles * (1.5 * size**2 + DRAIN_CYCLES)
        window = loads * s.lanes * s.in_bytes
        near = s.levels(s.c * window)
        again = Stream(kernels * tiles * window, Levels(near.l1, near.l2, 0.0))
        first = Stream(s.c * window * tiles * blocks, frame.levels, shared=True)
        weights = Stream(stored * np.maximum(tiles - 1, 0), s.levels(stored / blocks))
        threads = np.minimum(float(s.cpu.threads), s.k)
        return Blocking(threads, cycles, (again, first, Stream(stored, COLD), weights, out), imbalance)

    best = _cheapest(s, PATTERN_SIDES, plan)
    s.charge(
        "compute", best.items, best.cycles, best.streams,
        macs=nonzeros * s.pixels, imbalance=imbalance, launch=True,
    )  # fmt: skip
    s.activate()
