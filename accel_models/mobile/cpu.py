"""A mobile CPU cluster running a packed inference runtime, kernel by kernel.

A layer runs as one kernel of the runtime and a kernel is a few **passes** over memory. A pass is a parallel loop of I
independent iterations (8 output channels of a GEMM, 4 channels of a transform), dealt out statically to T threads:

    pass cycles = fork_join * loops + ceil(I / T) * max( core, l1, l2, l3, dram )                of one iteration each
    core        = max( FMAs / 2, loads / 2, instructions / 4, FMA chain ) * f_reference / f_slowest

The kernels (K C P Q R S as everywhere; n = ceil(P/6) * ceil(Q/6) Winograd tiles):

* gemm (1x1, matmul, transposed): interleave the input into panels of 12 pixels; then every 8 output channels stream
  *all* panels past 24 accumulators. Nothing is blocked for caches: the input is read K/8 times from whichever level
  holds it. Pixels left over run as tiles of 8, 4, 2, 1.
* winograd63 (3x3, stride 1, at least 4 input channels): F(6x6, 3x3). Border copy; input transform, which writes 64 n C
  numbers; interleave; 64 GEMMs of n pixels, with 64/9 times the weights; inverse transform. 64 n C K multiplications.
* direct (3x3 stride 2, 5x5, 7x7, first layer): 4 pixels x 4 channels in registers, partial sums kept in memory between
  groups of 4 input channels. naive (any other kernel): one pixel x 4 channels, bound by the chain of FMAs.
* depthwise: 4 channels at a time. gemv (linear, LSTM): a stream of weights.
* spmm (weights with zeros; 1x1, 3x3 through im2col, linear): each non-zero times up to 16 vectors of pixels, one load
  per FMA, and an index. pattern (only for an exact mask with few distinct kernel patterns): kernels sorted by pattern,
  a x a vectors in registers, (a+1)(a+2) loads for 4 a^2 FMAs; filters are dealt out to threads, so the busiest
  thread of the real mask counts. Both search 20 blockings (vectors in registers x blocks of filters).
* vector, copy: elementwise work, pooling, softmax; data movement. A fused activation is one more pass over the output.

Which one runs: for dense weights the runtime's published dispatch (ncnn, ARM, fp32, mid-2020: the list above); for
weights with zeros the cheapest of that kernel, spmm and pattern. Grouped, transposed and recurrent layers run dense.

Where bytes are found: a buffer of S bytes that is read again is found in a cache of size M if S <= M; beyond, the hit
rate falls linearly to zero at 2 M. A feature map between layers is in the L3 if placement puts it there; otherwise the
same rule holds for all that its layer touches. Weights come from DRAM. Each thread fetches by itself what it streams.

Ports l1, l2, l3 are those of one core, and so is their traffic; l3 is a core's path to all beyond its L2 and may bind
one core before dram does, which all cores share and which counts everything. The floor is the kernel's multiplications
(Winograd's without its tile padding, a sparse kernel's non-zeros) over the FMA peak of the cores in use; transforms,
copies and activations beside them count as padding. Layers that do not multiply have no peak: what they do is useful.

Known to be wrong: no frequency ramp, no throttling, no other process. One efficiency stands for all passes that a
compiler scheduled. Caches run at the reference clock on slower cores too. Groups run one after another, batches image
by image. Channels that do not fill the packed layout are priced as if padded to it; the runtime is slower. int8 is
what dot-product instructions allow; the 2020 runtime's int8 was slower than its fp32. Quantised on purpose: channels
to 4, pixels to tiles of 12/8/4/2/1, Winograd tiles to 6, output channels to waves of threads.

Sources: ncnn source, src/layer/arm, mid-2020 (dispatch, register tiles, loop order, passes); Arm Cortex-A76 Software
Optimization Guide (pipelines, accumulate forwarding); Lavin and Gray, CVPR 2016 (Winograd); Elsen et al., CVPR 2020
(spmm); Niu et al., ASPLOS 2020 (pattern kernels, FKW).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np

from accel_models.family import Family
from accel_models.mapping import ARRAY_FIELDS, Steps, ceil_div, choose, round_up
from accel_models.mobile.passes import (
    EXPONENTIAL_OPS,
    KERNELS,
    L1,
    L3,
    STEPS,
    WIDTHS,
    Passes,
    Stream,
    either,
    pixel_tiles,
    register_tile,
)
from accel_models.mobile.sparse_kernels import has_patterns, pattern, spmm
from accel_models.placement import Placement
from accel_models.registry import family
from accel_models.spec import Count, Fraction, Frozen, HardwareSpec, NotNegative, Numbers, Positive
from accel_models.timeline import closed_form
from workloads.columns import Columns
from workloads.errors import ConfigError
from workloads.graph import OP_CODES, Op

# Vector operations of one 8x8 -> 6x6 Winograd tile: 16 (14) one-dimensional transforms of 26 (24) operations each.
WINOGRAD_INPUT_OPS, WINOGRAD_INVERSE_OPS = 16 * 26, 14 * 24
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


@family("mobile_cpu")
class MobileCPU(Family):
    """Cores of one cluster of a phone, and the kernels of a packed runtime on them."""

    class Parameters(Frozen):
        """Threads, cores, and the runtime's fixed costs.

        Attributes:
            threads: how many run; thread i on core i.
            core_clock_hz, core_l2_bytes: of each core, in the order in which threads are bound to them. Work is dealt
                out statically: the slowest core in use sets the pace, the smallest L2 in use the capacity.
            vector_bits, vector_pipes: width of a vector register, FMAs a cycle.
            loads_per_cycle, instructions_per_cycle: vector loads and all instructions, of one core.
            chain_cycles: from an FMA to the next one into the same accumulator.
            vector_efficiency: of passes that a compiler scheduled (transforms, depthwise, pooling, elementwise,
                copies): cycles by counting their instructions, over cycles they take.
            sparse_efficiency: the same of the inner loops of sparse kernels.
            scatter_cycles: of one access to a transformed Winograd tile beside its arithmetic: the tile's 64 numbers
                lie in 64 planes, each in a cache line and a page of its own.
            pattern_limit: pattern kernels exist for masks with at most so many distinct kernel patterns.
            launch_s: per layer, dispatch and allocation. fork_join_s: per parallel loop, with several threads.
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
        scatter_cycles: NotNegative
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
        tiles = [[register_tile(p, bits, k) for k in (8, 4)] for bits in WIDTHS]
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
            patterned[sparse] = [has_patterns(rows, int(i), limit) for i in np.flatnonzero(sparse)]
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


def gemm(s: Passes) -> None:
    """1x1 convolution, linear layer with several positions, matmul, transposed convolution."""
    rows = s.rows
    transposed, matmul = rows.is_op("conv_transpose"), rows.is_op("matmul")
    pixels = np.where(transposed, rows.in_h * rows.in_w, s.pixels).astype(float)
    k = np.where(transposed, s.k * s.taps, s.k)
    strided = rows.is_op("conv") & ((rows.stride_h > 1) | (rows.stride_w > 1))
    source, panel = s.read_input(), s.buffer(pixels * s.c)
    packing = s.vector_cycles(pixels * s.c)
    touched = source._replace(size=source.size / rows.stride_h)  # rows in between are skipped, lines are not
    s.charge("border", np.ceil(s.c / 4), packing, (touched, panel), when=strided)
    loops = (pixel_tiles(pixels) > 0).sum(axis=1)  # one for each size of tile
    s.charge("pack", np.ceil(pixels / 12), packing, (either(strided, panel, source), panel), loops=loops)
    product = s.multiply(pixels, k, s.c)
    weights = either(matmul, s.read_other(), s.read_weights())
    again = Stream(panel.size * product.items, s.levels(panel.size + 8 * s.c * s.weight_bytes))
    columns, out = s.buffer(pixels * k), s.write_output()
    streams = (again, weights, either(transposed, columns, out))
    s.charge_product(product, streams, macs=pixels * k * s.c)
    s.charge("inverse", s.groups_of(4), s.vector_cycles(pixels * k), (columns, out), when=transposed)
    s.activate()


def winograd63(s: Passes) -> None:
    """3x3 stride 1 by F(6x6, 3x3)."""
    high, wide = ceil_div(s.rows.p, 6), ceil_div(s.rows.q, 6)
    tiles = (high * wide).astype(float)
    cut = (s.rows.p % 6 > 0) | (s.rows.q % 6 > 0)
    frame = s.c * (6 * high + 2) * (6 * wide + 2)
    times = np.where(cut, 3.0, 1.0)  # once for the convolution's own border, then once more to whole tiles
    border = s.vector_cycles(s.input) * np.where(cut, 2, 1)
    s.charge("border", np.ceil(s.c / 4), border, (s.read_input(), s.buffer(frame, times)), loops=np.where(cut, 2, 1))
    source, result = 64 * tiles * s.c, s.buffer(64 * tiles * s.k)
    spread = s.buffer(source)
    transform = s.transform_cycles(tiles, s.c, WINOGRAD_INPUT_OPS)
    s.charge("transform", np.ceil(s.c / 4), transform, (s.buffer(frame), spread))
    s.charge("pack", np.full(len(tiles), 64.0), s.vector_cycles(source), (spread, spread))
    product = s.multiply(tiles, s.k, s.c, times=64)
    weights = s.read_weights(64 / s.taps)
    again = Stream(spread.size * product.items, spread.levels)
    s.charge_product(product, (again, weights, result), macs=64 / 36 * s.pixels * s.c * s.k)
    out = s.write_output()
    inverse = s.transform_cycles(tiles, s.k, WINOGRAD_INVERSE_OPS) + np.where(cut, s.vector_cycles(s.output), 0.0)
    moved = out._replace(size=out.size * np.where(cut, 3, 1))
    s.charge("inverse", s.groups_of(4), inverse, (result, moved), loops=np.where(cut, 2, 1))
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
    again = Stream(source.size * items, source.levels)
    weights = s.read_weights()
    macs = s.k * s.pixels * s.c * s.taps
    s.charge("compute", items, cycles, (again, weights, sums, out), macs=macs, launch=True)
    s.activate()


def naive(s: Passes) -> None:
    """The runtime's fallback: every multiplication of an output waits for the one before. Activation is fused."""
    source = s.add_border()
    items = s.groups_of(4)
    step = np.maximum(s.p.chain_cycles, 4 / s.peak)
    cycles = items * s.pixels * s.c * s.taps * step
    again = Stream(source.size * items, source.levels)
    weights = s.read_weights()
    macs = s.k * s.pixels * s.c * s.taps
    s.charge("compute", items, cycles, (again, weights, s.write_output()), macs=macs, launch=True)


def depthwise(s: Passes) -> None:
    """One kernel a channel; four channels in a vector."""
    source = s.add_border()
    cycles = s.vector_cycles(round_up(s.k, 4) * s.pixels, s.taps)
    weights = s.read_weights()
    macs = s.k * s.pixels * s.taps
    s.charge("compute", s.groups_of(4), cycles, (source, weights, s.write_output()), macs=macs, launch=True)
    s.activate()


def gemv(s: Passes) -> None:
    """A vector times a matrix, once for each time step of an LSTM; an LSTM's gates follow each step."""
    steps, lstm = s.pixels, s.rows.is_op("lstm")
    macs = steps * s.k * s.c
    cycles = steps * round_up(s.k, 4) * s.c / s.peak
    cycles = cycles + np.where(lstm, s.vector_cycles(s.k * steps, EXPONENTIAL_OPS), 0.0)
    first = s.read_weights()
    again = Stream(first.size * (steps - 1), s.levels(first.size))
    streams = (first, again, s.read_input(), s.write_output())
    s.charge("compute", s.groups_of(4), cycles, streams, macs=macs, loops=steps, launch=True)
    s.activate()


def vector(s: Passes) -> None:
    """Elementwise work, pooling, reductions, softmax, normalisation."""
    pooled = s.output * s.taps
    elements = np.where(s.rows.is_op("max_pool", "avg_pool"), s.output, np.maximum(s.output, s.input))
    ops = np.where(s.rows.is_op("max_pool", "avg_pool"), pooled / s.output, OPS_BY_CODE[s.rows.op])
    streams = (s.read_input(), s.read_other(), s.write_output())
    cycles = s.vector_cycles(elements, ops)
    s.charge("compute", s.groups_of(4), cycles, streams, floor=cycles, launch=True)
    s.activate()


def copy(s: Passes) -> None:
    """Data movement: what is written is read once; a concat reads all its inputs."""
    out = s.write_output()
    near, far = s.read_input(), s.read_other()
    read = near._replace(size=np.minimum(near.size, out.size))
    cycles = s.vector_cycles(s.output, OPS_BY_CODE[s.rows.op])
    s.charge("compute", s.groups_of(4), cycles, (read, far, out), floor=cycles, launch=True)
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
