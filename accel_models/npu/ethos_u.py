"""Arm Ethos-U55: a micro-NPU whose feature maps live in SRAM and whose coded weights stream from flash.

The output is cut into *blocks* of h x w x d elements. A block's accumulators and the inputs that it needs share the
NPU's own SHRAM, both double-buffered in banks of 1 KiB. Inside a block the MAC array works on *micro-blocks* of
u_h x u_w pixels and u_d channels (2 x 2 x 8 for 256 MACs), one every four cycles for each step over the kernel:

    micro-blocks  x = ceil(h / u_h) ceil(w / u_w),   z = ceil(d / u_d)
    depth first   mac = R S ceil(C / 32) z max(4 u_d, 4 x)             one step = 32 input channels of one tap
    part kernel   mac = ceil(R S / 4) ceil(C / 8) z max(4 u_d, 4 x)    one step = 4 taps of 8 input channels
    depthwise     mac = ceil(R S / 4) z max(4 u_d, 4 x)                pooling: mac = 4 max(4, R S) x z
    command       cmd = (mac + out + |fill - drain|) / 4               of one block
    NPU           fill + drain + max(sum mac + max(out, cmd), sum out + max(mac, cmd), blocks cmd)

where `out` is the output unit's time for a block (cycles an element, slower with activations), fill and drain move its
inputs and outputs, and sums go over all blocks, those at the edges being smaller. Kernels are cut into 8 x 8 pieces.
A block of a single micro-block adds two cycles a step. Channels between two micro-blocks cost as much as the next one.

Block choice is the tile search: over all depths (steps of 16) and heights, the widest block that fits, and of those
the one that fetches the fewest inputs and weights an output element, halved if the whole input fits.

    SRAM bytes   inputs of each block (halos, and again for each pass over output depth) + outputs, in 16-channel bricks
    flash bytes  coded weights, plus 10 bytes of scale and bias a channel for every block across the image
    coded bits   H(f) + V f an element with zero runs, V_dense where most weights are non-zero

f is the non-zero fraction after zeros pad C to 8 (part kernel) or 32 (depth first) and K to u_d: a binary entropy for
where the non-zeros are, V for their values. Weights that several blocks across read are staged in SRAM ahead of use:

    layer cycles = max(NPU, SRAM bytes / 8, flash bytes / 1)      the three run side by side

The formulas are those of Arm's own estimator, written anew (ethos-u-vela 5.2.0, Apache-2.0: performance model, block
search and scheduler of the Ethos-U55; where its C++ core is not published in that version, they were worked out from
the numbers that it prints). Multiplications by zero are not skipped: pruned weights save flash and SRAM traffic only.

Assumptions and where it is known to be wrong:
- It follows an estimate of the vendor's, not silicon; pooling is charged four cycles a tap because the estimator does.
- How many weights arrive under the layer before depends on that layer. Here it is taken to last as long as this one;
  such bytes count for energy but not against this layer's flash time, of which weights and scales once always remain.
  3x3 layers whose weights take about as long as their MACs are up to 13 % optimistic, short layers after a long one up
  to 50 % pessimistic.
- Feature maps are in bricks except images of at most 4 channels, whose layer also has none before it to hide weights
  under. The estimator keeps a network's own inputs and outputs linear: `standalone: 1` prices every row so, with its
  weights fetched cold, as for networks of one operator.
- Feature maps of networks larger than the SRAM are cascaded by the compiler; that is not modelled, nor is its freedom
  to write a concatenation in place (here it is copied) and to fuse a slice into the copy that follows.
- Two weight distributions of equal density code differently: random normal ones with one scale a layer as in the
  calibration rows; trained ones with a scale a channel take 3 to 5 % more. Only the number of zeros counts, not where
  they are (2:4 patterns code 9 % larger than unstructured ones).
- At densities of 0.75 to 0.95 the coder's choice of mode makes sizes jump by up to 15 %, at times above dense; here
  they never exceed dense, so that fewer weights never cost more.
- Softmax, LSTM gates and matmul are sums over the micro-operations that they are compiled to, not a schedule of them.

Letters: P, Q output height and width, K outputs, C inputs a group, R, S kernel; h, w, d a block of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np

from accel_models.family import Family
from accel_models.mapping import Steps
from accel_models.placement import Placement
from accel_models.registry import family
from accel_models.spec import Count, Counts, Frozen, NotNegative, Numbers, Positive
from workloads.columns import Columns

KERNELS = ("none", "convolution", "depthwise", "vector_product", "pooling", "elementwise")
NONE, CONV, DEPTHWISE, VECTOR, POOL, ELEMENTWISE = range(len(KERNELS))
SPLIT_DEPTH = 16  # channels of a brick, and the step of block depths
BLOCK_LIMIT = (32, 64, 128)  # largest block: height, width, depth
SUBKERNEL = 8  # taps in a row or column that one pass covers
BANK_BYTES = 1024
OUTPUT_RATES = ("unary32", "binary32", "mul32", "mul", "add_simple", "add", "max_pool", "other")
# Counted in the estimator's lowering (ethos-u-vela 5.2.0, softmax.py and lstm.py).
SOFTMAX_SCALARS = 22  # 32-bit operations on one number a row: the reciprocal by Newton's method
LSTM_PASSES = 10  # elementwise passes over the hidden state a time step
# Fixed by the hardware (ethos-u-vela 5.2.0, weight_compressor.py).
SCALE_BYTES = 10  # scale, shift and bias of a channel
STREAM_BYTES = 16  # coded weights and scales are padded to multiples of this


@dataclass(frozen=True)
class Work:
    """What the NPU runs for every row, float64 (rows,).

    Attributes:
        kind: index into KERNELS.
        h, w, d: output of one run; in_h, in_w, in_d its input. repeats: runs (batch, groups, time steps).
        taps_h, taps_w: kernel; reach_h, reach_w: the same with dilation; step_h, step_w: stride.
        rate: cycles of the output unit an element, its activation included.
        part_kernel: 1 where four taps of 8 channels make a step instead of 32 channels of one.
    """

    kind: np.ndarray
    h: np.ndarray
    w: np.ndarray
    d: np.ndarray
    in_h: np.ndarray
    in_w: np.ndarray
    in_d: np.ndarray
    repeats: np.ndarray
    taps_h: np.ndarray
    taps_w: np.ndarray
    reach_h: np.ndarray
    reach_w: np.ndarray
    step_h: np.ndarray
    step_w: np.ndarray
    rate: np.ndarray
    part_kernel: np.ndarray

    def take(self, rows: np.ndarray) -> Work:
        return Work(**{f.name: getattr(self, f.name)[rows] for f in fields(Work)})

    @property
    def keeps_depth(self) -> np.ndarray:
        """Boolean: output channel i reads input channel i only."""
        return (self.kind == DEPTHWISE) | (self.kind == POOL)


@dataclass(frozen=True)
class Blocks:
    """The chosen block, float64 (rows,): h, w, d of outputs, in_h, in_w, in_d of the inputs that it needs."""

    h: np.ndarray
    w: np.ndarray
    d: np.ndarray
    in_h: np.ndarray
    in_w: np.ndarray
    in_d: np.ndarray


@dataclass(frozen=True)
class Totals:
    """What rows cost, float64 (rows,).

    Attributes:
        tiles: blocks. cycles: of the NPU with its weights at hand.
        sram, flash: bytes through the two ports. ahead: bytes that came through flash under the layer before.
        late: when the NPU ends where it has to wait for its first or its last weights; 0 elsewhere.
    """

    tiles: np.ndarray
    cycles: np.ndarray
    sram: np.ndarray
    flash: np.ndarray
    late: np.ndarray
    ahead: np.ndarray

    @classmethod
    def zeros(cls, rows: int) -> Totals:
        return cls(np.ones(rows), *np.zeros((5, rows)))

    def put_into(self, whole: Totals, rows: np.ndarray) -> None:
        for f in fields(self):
            getattr(whole, f.name)[rows] = getattr(self, f.name)


@family("ethos_u")
class EthosU(Family):
    """One Ethos-U55 with SRAM on one port and flash on the other."""

    class Parameters(Frozen):
        """Sizes of the array and its SHRAM, and rates of its output unit.

        `micro_block` is (height, width, depth); `bank_granules` are for inputs and 32-bit accumulators;
        `output_cycles` by operation in the order of OUTPUT_RATES; `activation_cycles` for a table and for a ReLU.
        `dense_value_bits`, `sparse_value_bits`: of one coded weight without and with zero runs; `empty_value_bits`: of
        one among zeros only. Zero runs are left out from `dense_mode_from` on: density, and fraction that is not
        padding. `fill_bytes`: flash bytes read for every padded element: zeros come from a constant, block by block.
        `standalone`: 1 for networks of one operator, whose tensors are linear and whose weights arrive cold (module
        docstring).
        """

        micro_block: Counts
        shram_banks: Count
        bank_granules: Counts
        output_cycles: Numbers
        activation_cycles: Numbers
        sram_latency_cycles: NotNegative
        flash_latency_cycles: NotNegative
        sram_burst_bytes: Count
        dense_value_bits: Positive
        sparse_value_bits: Positive
        empty_value_bits: Positive
        dense_mode_from: Numbers
        fill_bytes: NotNegative
        pool_cycles_per_tap: Positive
        delay_cycles: NotNegative
        standalone: NotNegative

    components = ("mac", "vector", "sram", "flash")
    precisions = (8,)
    granularities = ("channel", "weight")

    def map(self, rows: Columns, placement: Placement) -> Steps:
        work = self._work(rows)
        total = Totals.zeros(len(rows))
        blocked = np.flatnonzero((work.kind != NONE) & (work.kind != ELEMENTWISE))
        self._blocked(rows.take(blocked), work.take(blocked)).put_into(total, blocked)
        self._elementwise(rows, work, total)
        floor = self._floor(rows, work)
        mean = np.maximum(total.cycles, floor)
        ready = np.maximum(
            mean, np.maximum(total.sram / self._bandwidth("sram"), total.flash / self._bandwidth("flash"))
        )
        steps = Steps.empty(("run",), KERNELS, len(rows), len(self.spec.ports), len(self.components))
        steps["tiles"][:, 0] = np.where(work.kind != NONE, total.tiles, 0.0)
        steps["prologue_cycles"][:, 0] = np.maximum(total.late - ready, 0.0)
        steps["floor_cycles"][:, 0] = floor / total.tiles
        steps["mean_cycles"][:, 0] = steps["slowest_cycles"][:, 0] = mean / total.tiles
        for name in ("sram", "flash"):
            steps["port_bytes"][:, 0, self.spec.ports.index(name)] = getattr(total, name) / total.tiles
        elements = rows.output_elements * ((work.kind != NONE) & ~rows.is_mac)
        steps["accesses"][:] = np.stack([rows.macs, elements, total.sram, total.flash + total.ahead], axis=1)
        steps["kernel"][:] = work.kind
        return Steps(**steps)

    def channel_multiple(self) -> int:
        """Output channels of a micro-block: counts in between cost as much as the next multiple.

        Feature maps in SRAM are stored in bricks of 16 channels and a 1x1 convolution steps over 32 inputs, so
        multiples of 16 and 32 gain more; 8 is the finest count that ever pays.
        """
        return int(self.spec.parameters.micro_block[2])

    def _blocked(self, rows: Columns, work: Work) -> Totals:
        """What rows cost that are cut into blocks."""
        block = self._choose_block(work)
        across = _ceil(work.h / np.minimum(work.h, block.h)) * _ceil(work.w / np.minimum(work.w, block.w))
        once = self._block_cycles(work, block, rows.bias > 0)
        coded, scales = self._weight_bytes(rows, work)
        cold = self._linear_in(work)  # no layer before, under which weights could arrive
        staged = (across > 1) & (coded > 0)
        early = np.where(staged & ~cold, np.minimum(coded, once * self._bandwidth("flash")), 0.0)
        flash = np.maximum(coded + scales, coded + scales * across - early)
        sram = self._feature_bytes(work, block) + np.where(staged, coded * (across + 1) - early, 0.0)
        first = coded * np.minimum(1.0, SPLIT_DEPTH / work.d) / self._bandwidth("flash")
        last = once * np.minimum(1.0, block.d / work.d)
        late = np.where(staged & cold, np.maximum(coded / self._bandwidth("flash") + last, once + first), 0.0)
        tiles = across * _ceil(work.d / np.minimum(work.d, block.d))
        ahead = coded + scales * across - flash
        return Totals(*(work.repeats * value for value in (tiles, once, sram, flash, late, ahead)))

    def _floor(self, rows: Columns, work: Work) -> np.ndarray:
        """Cycles without any padding: MACs at the peak; of other work, its elements at the rate of their unit.

        A mean adds inputs up in the MAC array, pooling (and a copy, which runs as one) has its own rate a tap and takes
        four taps at least, all else waits for the output unit.
        """
        peak, parameters = self.spec.peak_macs_per_cycle(8), self.spec.parameters
        output = rows.output_elements * np.where(rows.is_op("norm", "vector"), 2, 1) * work.rate
        taps = np.maximum(work.taps_h * work.taps_w, 4) * parameters.pool_cycles_per_tap
        pooled = np.maximum(output, rows.output_elements * taps / math.prod(parameters.micro_block))
        softmax = rows.output_elements * self._softmax_rate()
        kinds = [rows.is_mac, rows.is_op("mean"), rows.is_op("softmax"), work.kind == POOL, work.kind == ELEMENTWISE]
        return np.select(kinds, [rows.macs / peak, rows.input_elements / peak, softmax, pooled, output], 0.0)

    def _bandwidth(self, port: str) -> float:
        return float(self.spec.memory(port).bandwidth_bytes_per_cycle)

    # What runs --------------------------------------------------------------------------------------------------

    def _work(self, rows: Columns) -> Work:
        """Rows as runs of NPU operations."""
        conv, linear = rows.is_op("conv", "conv_transpose"), rows.is_op("linear", "lstm")
        mean, window = rows.is_op("mean"), rows.is_op("max_pool", "avg_pool", "mean")
        copies = rows.is_move | rows.is_op("activation")
        kind = np.select(
            [rows.is_depthwise | mean, conv, linear, window | copies, rows.is_mac | rows.is_vector],
            [DEPTHWISE, CONV, VECTOR, POOL, ELEMENTWISE],
            NONE,
        )
        grouped = conv & ~rows.is_depthwise
        groups = np.where(grouped, rows.groups, 1)
        lstm = rows.is_op("lstm")
        h = np.where(linear | mean, 1, rows.p)
        w = np.where(linear, np.where(lstm, rows.n, rows.n * rows.p * rows.q), np.where(mean, 1, rows.q))
        dense = conv | window
        taps_h = np.where(mean, rows.in_h, np.where(dense, rows.r, 1))
        taps_w = np.where(mean, rows.in_w, np.where(dense, rows.s, 1))
        strided = dense & ~mean & ~rows.is_op("conv_transpose")
        step_h = np.where(strided & (rows.p > 1), rows.stride_h, 1)
        step_w = np.where(strided & (rows.q > 1), rows.stride_w, 1)
        in_d = np.where(conv | linear, rows.c // groups, rows.k)
        repeats = np.where(lstm, rows.p, np.where(linear, 1, rows.n)) * groups
        upsampled = rows.is_op("conv_transpose")  # zeros between the inputs, then a plain convolution
        own_h, own_w = np.where(upsampled | ~dense, h, rows.in_h), np.where(upsampled | ~dense, w, rows.in_w)
        values = {
            "kind": kind, "h": h, "w": w, "d": rows.k // groups,
            "in_h": own_h, "in_w": own_w, "in_d": in_d,
            "repeats": repeats, "taps_h": taps_h, "taps_w": taps_w,
            "reach_h": (taps_h - 1) * np.where(dense, rows.dilation_h, 1) + 1,
            "reach_w": (taps_w - 1) * np.where(dense, rows.dilation_w, 1) + 1,
            "step_h": step_h, "step_w": step_w,
            "rate": self._output_rate(rows),
            "part_kernel": (kind == CONV) & _prefers_part_kernel(in_d, taps_h * taps_w),
        }  # fmt: skip
        return Work(**{name: np.maximum(value, 0 if name in ("kind", "part_kernel") else 1e-9).astype(float)
                       for name, value in values.items()})  # fmt: skip

    def _output_rate(self, rows: Columns) -> np.ndarray:
        """Cycles that the output unit needs for one element, with the activation behind it."""
        table, relu = self.spec.parameters.activation_cycles
        rate = dict(zip(OUTPUT_RATES, self.spec.parameters.output_cycles, strict=True))
        own = np.full(len(rows), rate["other"])
        own[rows.is_op("max_pool")] = rate["max_pool"]
        own[rows.is_op("add")] = rate["add"]
        own[rows.is_op("mul", "norm", "vector")] = rate["mul"]
        own[rows.is_op("activation") & (rows.activation == 0)] = table
        return np.maximum(own, np.array([0.0, relu, relu, table])[rows.activation])

    # Block search -----------------------------------------------------------------------------------------------

    def _shram_splits(self) -> list[tuple[float, float]]:
        """(accumulators, input bytes) of one of two buffers, for every way to share the banks out."""
        parameters = self.spec.parameters
        banks, (of_inputs, of_accumulators) = parameters.shram_banks, parameters.bank_granules
        free = banks - 2 - (2 if banks > 16 else 0)
        splits = []
        for accumulators in range(of_accumulators, free, of_accumulators):
            inputs = (free - accumulators) // of_inputs * of_inputs
            if inputs:
                splits.append((accumulators // 2 * BANK_BYTES / 4, inputs // 2 * BANK_BYTES))
        return splits

    def _choose_block(self, work: Work) -> Blocks:
        """The block of every row that fetches least (module docstring); ties go to the smaller depth and height.

        Works on (rows, heights) for one depth after another: all that a width changes for the worse is the fit, so
        only the widest block that fits is looked at, cut to what evens the blocks out where width is free.
        """
        u_h, u_w, u_d = self.spec.parameters.micro_block
        single = np.float32
        column = {f.name: getattr(work, f.name).astype(single)[:, None] for f in fields(Work)}
        height, width, depth, in_d = (column[name] for name in ("h", "w", "d", "in_d"))
        heights = np.arange(u_h, BLOCK_LIMIT[0] + 1, u_h, dtype=single)
        tallest = float(_up(np.minimum(work.h, BLOCK_LIMIT[0]), u_h).max(initial=u_h))
        heights = heights[heights <= tallest][None, :]
        span_h, span_w = np.minimum(column["reach_h"], SUBKERNEL), np.minimum(column["reach_w"], SUBKERNEL)
        in_rows = _up((heights - 1) * column["step_h"] + span_h, u_h)
        own_depth = work.keeps_depth[:, None]
        in_block_d = np.where(
            own_depth, 1, _up(np.minimum(in_d, np.where(column["part_kernel"] > 0, 16, 32)), 8)
        ).astype(single)
        flat_row = (u_h == 2) & (height == 1) & (column["taps_h"] == 1)
        held_rows = np.where(flat_row, 1, heights)
        limit_w = _up(np.minimum(width, BLOCK_LIMIT[1]), u_w)
        is_high = heights <= _up(np.minimum(height, BLOCK_LIMIT[0]), u_h)
        passes = _ceil(column["reach_h"] / SUBKERNEL) * _ceil(column["reach_w"] / SUBKERNEL)
        taps = column["taps_h"] * column["taps_w"] * ((column["kind"] == CONV) | (column["kind"] == DEPTHWISE))
        weights = taps * in_d * _ceil(height / held_rows) * np.where(own_depth, 1, depth)
        fetch = in_rows * (in_d * passes) * (height / held_rows)
        input_size = column["in_h"] * column["in_w"] * in_d
        free_width = span_w <= column["step_w"]  # the same input bytes an output, whatever the width
        has_weights, elements = taps > 0, height * width * depth
        best = np.full(len(work.h), np.inf, single)
        chosen = np.zeros((3, len(work.h)), single)
        splits = self._shram_splits()
        for top in range(SPLIT_DEPTH, BLOCK_LIMIT[2] + 1, SPLIT_DEPTH):
            exists = depth > top - SPLIT_DEPTH
            if not exists.any():
                break
            d = np.minimum(top, _up(depth, u_d))
            block_in_d = np.where(own_depth, _up(d, 8), in_block_d)
            widest = np.zeros((len(work.h), heights.shape[1]), single)
            for accumulators, input_bytes in splits:
                columns_in = np.floor(input_bytes / (in_rows * block_in_d) / u_w) * u_w
                fits = np.floor((columns_in - span_w) / column["step_w"]) + 1
                widest = np.maximum(widest, np.minimum(fits, accumulators / (held_rows * _up(d, 8))))
            widest = np.minimum(np.floor(widest / u_w) * u_w, limit_w)
            valid = (widest >= u_w) & is_high & exists
            w = np.maximum(widest, u_w)
            in_columns = _up((w - 1) * column["step_w"] + span_w, u_w)
            whole = input_size < in_rows * in_columns * block_in_d * 2
            needed = np.floor(input_size / (in_rows * block_in_d * 2) / u_w) * u_w  # input columns short of `whole`
            enough = np.where(whole, np.floor(np.maximum(needed - span_w, -1) / column["step_w"]) + 2, 0)
            even = np.where(has_weights, width / _ceil(width / w), np.minimum(w, 4))
            even = np.minimum(_up(np.maximum(even, enough), u_w), w)
            w = np.where(free_width, even, w)
            in_columns = _up((w - 1) * column["step_w"] + span_w, u_w)
            inputs = fetch * in_columns * (width / w) * np.where(own_depth, 1, _ceil(depth / d))
            cost = (inputs + weights * _ceil(width / w)) / elements * np.where(whole, 0.5, 1.0).astype(single)
            cost = np.where(valid, cost, np.inf)
            at = np.argmin(cost, axis=1)
            row = np.arange(len(at))
            lowest = cost[row, at]
            small = (heights[0][at] <= 4) & (w[row, at] <= 4)
            better = (lowest < best * single(1 - 1e-6)) | (
                small & (lowest <= best * single(1 + 1e-6)) & np.isfinite(lowest)
            )
            best = np.where(better, np.minimum(lowest, best), best)
            choice = np.stack([heights[0][at], w[row, at], d[:, 0]])
            chosen = np.where(better, choice, chosen)
        return _with_inputs(work, chosen.astype(float), in_block_d[:, 0].astype(float), (u_h, u_w))

    # Cycles and bytes -------------------------------------------------------------------------------------------

    def _block_cycles(self, work: Work, block: Blocks, bias: np.ndarray) -> np.ndarray:
        """NPU cycles of one run, its weights being at hand."""
        parameters = self.spec.parameters
        block_h, block_w, u_d = (float(size) for size in parameters.micro_block)
        h, w, d = np.minimum(work.h, block.h), np.minimum(work.w, block.w), np.minimum(work.d, block.d)
        deep = (work.kind == CONV) | (work.kind == VECTOR)
        flat = (block_h == 2) & deep & (work.h == 1) & (work.w % 2 == 0) & (work.taps_h == 1)
        u_h, u_w = np.where(flat, 1, block_h), np.where(flat, 4, block_w)  # the array is turned for single rows
        in_d = np.minimum(work.in_d, block.in_d)
        steps, stalls = self._kernel_steps(work)
        inputs = np.where(deep, _ceil(work.in_d / in_d), 1) * np.where(work.part_kernel > 0, _ceil(in_d / 8), 1)
        pixels, slices = _ceil(h / u_h) * _ceil(w / u_w), _ceil(d / u_d)
        step = np.where(
            work.kind == POOL, pixels, np.maximum(4 * u_d, 4 * pixels)
        )  # weights take four cycles a channel
        delay = parameters.delay_cycles * np.where(slices == 1, steps, stalls * slices) * (pixels == 1)
        one = (step * steps * slices + delay) * inputs
        rows, columns = np.floor(work.h / h), np.floor(work.w / w)  # whole blocks; those at the edges are smaller
        high, wide = _ceil((work.h - rows * h) / u_h), _ceil((work.w - columns * w) / u_w)
        edges = columns * high * _ceil(w / u_w) + rows * wide * _ceil(h / u_h) + high * wide
        edges *= np.where(work.kind == POOL, 1, 4)
        deeper = _ceil(work.d / u_d) / slices
        mac = rows * columns * deeper * one + edges * steps * inputs * _ceil(work.d / u_d)
        elements = (rows * h + high * u_h) * (columns * w + wide * u_w) * work.d
        blocks = _ceil(work.h / h) * _ceil(work.w / w) * _ceil(work.d / d)
        scale = np.floor(SCALE_BYTES * d * parameters.flash_latency_cycles / 256) * bias
        out = np.maximum(np.floor(work.rate * h * w * d), scale)
        port = self._bandwidth("sram")
        read = np.minimum(work.in_h, block.in_h) * np.minimum(work.in_w, block.in_w) * in_d
        fill, drain = read * self._waste_in(work, block) / port, h * w * d * self._waste_out(work, block) / port
        command = np.floor((one + out + np.where(blocks > 1, np.abs(fill - drain), 0)) / 4)
        all_out = np.maximum(work.rate * elements, scale * blocks)
        steady = np.maximum(mac + np.maximum(out, command), all_out + np.maximum(one, command))
        return np.asarray(np.maximum(steady, command * blocks) + fill + drain + 2 * parameters.sram_latency_cycles)

    def _kernel_steps(self, work: Work) -> tuple[np.ndarray, np.ndarray]:
        """Steps over the kernel, cut into pieces of at most 8 x 8 taps, and how many of them follow another."""
        whole_h, rest_h = np.divmod(work.taps_h, SUBKERNEL)
        whole_w, rest_w = np.divmod(work.taps_w, SUBKERNEL)
        pieces = [(whole_h * whole_w, SUBKERNEL**2 + 0 * rest_h), (whole_h, SUBKERNEL * rest_w)]
        pieces += [(whole_w, SUBKERNEL * rest_h), (1 + 0 * rest_h, rest_h * rest_w)]
        pool, by_four = work.kind == POOL, (work.part_kernel > 0) | (work.kind == DEPTHWISE)
        total, stalls = np.zeros(len(work.h)), np.zeros(len(work.h))
        for count, taps in pieces:
            pooling = np.maximum(4, taps) * self.spec.parameters.pool_cycles_per_tap
            steps = np.where(pool, pooling, np.where(by_four, _ceil(taps / 4), taps))
            total += np.where(taps > 0, count * steps, 0.0)
            stalls += np.where((taps > 0) & ~pool, count * (steps - 1), 0.0)
        return total, stalls

    def _feature_bytes(self, work: Work, block: Blocks) -> np.ndarray:
        """Bytes through the SRAM port for inputs and outputs of one run."""
        h, w, d = np.minimum(work.h, block.h), np.minimum(work.w, block.w), np.minimum(work.d, block.d)
        blocks = _ceil(work.h / h) * _ceil(work.w / w) * np.where(work.keeps_depth, 1, _ceil(work.d / d))
        passes = _ceil(work.taps_h / SUBKERNEL) * _ceil(work.taps_w / SUBKERNEL)
        depth_in = np.where(self._linear_in(work), work.in_d, _up(work.in_d, SPLIT_DEPTH))
        depth_out = work.d if self.spec.parameters.standalone else _up(work.d, SPLIT_DEPTH)
        area = np.minimum(work.in_h, block.in_h) * np.minimum(work.in_w, block.in_w)
        read = area * depth_in * passes * blocks * self._waste_in(work, block)
        return np.asarray(read + work.h * work.w * depth_out * self._waste_out(work, block))

    def _linear_in(self, work: Work) -> np.ndarray:
        """Boolean: the input is linear (NHWC), as an image is, not in bricks of 16 channels."""
        return ((work.in_d <= 4) & (work.kind == CONV)) | bool(self.spec.parameters.standalone)

    def _waste_in(self, work: Work, block: Blocks) -> np.ndarray:
        """Bytes moved for each byte read: bursts shorter than the memory's."""
        row = block.in_d * np.where(work.in_d == block.in_d, block.in_w, 1)
        return np.where(self._linear_in(work), self._waste(row), self._waste(SPLIT_DEPTH * block.in_w))

    def _waste_out(self, work: Work, block: Blocks) -> np.ndarray:
        """Bytes moved for each byte written."""
        if not self.spec.parameters.standalone:
            return self._waste(SPLIT_DEPTH * block.w)
        row = np.where(
            (block.d <= SPLIT_DEPTH) & (work.d == block.d), block.d * block.w, np.minimum(SPLIT_DEPTH, block.d)
        )
        return self._waste(row)

    def _waste(self, run_bytes: np.ndarray) -> np.ndarray:
        burst = self.spec.parameters.sram_burst_bytes
        return np.asarray(burst / np.minimum(burst, run_bytes))

    def _weight_bytes(self, rows: Columns, work: Work) -> tuple[np.ndarray, np.ndarray]:
        """Coded weights, and scales with biases (10 bytes a channel), of one run."""
        u_d = self.spec.parameters.micro_block[2]
        taps = work.taps_h * work.taps_w
        depthwise, part = work.kind == DEPTHWISE, work.part_kernel > 0
        stored_in = np.where(depthwise, 1, _up(work.in_d, np.where(part, 8, 32)))
        stored = _up(work.d, u_d) * stored_in * np.where(part | depthwise, _up(taps, 4), taps)
        real = work.d * np.where(depthwise, 1, work.in_d) * taps
        density = np.where(rows.has_weights, rows.weight_density, 1.0)
        bits = self._bits_per_weight(real / stored, density)
        coded = np.where(rows.has_weights, _up(np.ceil(stored * bits / 8), STREAM_BYTES), 0.0)
        return coded, np.where(rows.has_weights | rows.is_op("mean"), _up(SCALE_BYTES * work.d, STREAM_BYTES), 0.0)

    def _bits_per_weight(self, real: np.ndarray, density: np.ndarray) -> np.ndarray:
        """Bits a stored weight; `real` is the fraction that is not padding, `density` of the real ones non-zero."""
        filled = np.clip(real * density, 0.0, 1.0)
        inside = np.clip(filled, 1e-12, 1 - 1e-12)
        entropy = -(inside * np.log2(inside) + (1 - inside) * np.log2(1 - inside))
        parameters = self.spec.parameters
        runs = np.maximum(parameters.empty_value_bits, entropy + parameters.sparse_value_bits * filled)
        dense = parameters.dense_value_bits
        without_runs = (density >= parameters.dense_mode_from[0]) & (real >= parameters.dense_mode_from[1])
        return np.asarray(np.where(without_runs, dense, np.minimum(runs, dense)))

    # Elementwise ------------------------------------------------------------------------------------------------

    def _elementwise(self, rows: Columns, work: Work, total: Totals) -> None:
        """Fill in rows that have no blocks to choose, and what copies and recurrences add to theirs."""
        latency = self.spec.parameters.sram_latency_cycles
        rate = dict(zip(OUTPUT_RATES, self.spec.parameters.output_cycles, strict=True))
        stored = rows.output_elements * self._brick_padding(rows.k)
        passes = np.where(rows.is_op("norm", "vector"), 2, 1)
        block = np.clip(stored, 1, self._elementwise_block())
        command = (2 * latency / block + 2 / self._bandwidth("sram") + work.rate) / 4
        other = np.minimum(rows.other_elements, rows.output_elements)
        costs = {
            "any": (np.ceil(np.maximum(work.rate, command) * stored) * passes, (2 * stored + other) * passes),
            "matmul": self._matmul(rows, rate["mul32"] + rate["other"]),
            "softmax": self._softmax(rows, stored),
        }
        for name, (cycles, sram) in costs.items():
            at = (work.kind == ELEMENTWISE) & (True if name == "any" else rows.is_op(name))
            total.cycles[at], total.sram[at] = cycles[at], sram[at]
        hidden = np.where(rows.is_op("lstm"), LSTM_PASSES * rows.n * rows.k / 4 * work.repeats, 0.0)
        total.cycles[:] += np.maximum(
            hidden * rate["add"], np.where(hidden > 0, LSTM_PASSES * latency * work.repeats / 2, 0)
        )
        total.sram[:] += 3 * hidden + np.where(rows.is_op("transpose", "pixel_shuffle"), rows.output_elements, 0)
        fill = np.where(rows.is_op("pad"), np.maximum(rows.output_elements - rows.input_elements, 0), 0)
        total.flash[:] += self.spec.parameters.fill_bytes * fill

    def _brick_padding(self, channels: np.ndarray) -> np.ndarray:
        """Stored channels over real ones, >= 1."""
        if self.spec.parameters.standalone:
            return np.ones(len(channels))
        return np.asarray(_up(channels.astype(float), SPLIT_DEPTH) / np.maximum(channels, 1))

    def _elementwise_block(self) -> float:
        """Elements of the largest block with two double-buffered inputs."""
        banks, granule = self.spec.parameters.shram_banks, self.spec.parameters.bank_granules[0]
        free = banks - 2 - (2 if banks > 16 else 0)
        return float(free // 2 // granule * granule // 2 * BANK_BYTES)

    def _matmul(self, rows: Columns, rate: float) -> tuple[np.ndarray, np.ndarray]:
        """Cycles and SRAM bytes: for every output column a 32-bit product with the whole input and a sum over depth."""
        terms = rows.macs * self._brick_padding(rows.c)
        return terms * rate, 9 * terms + rows.output_elements

    def _softmax_rate(self) -> float:
        """Cycles an element: maximum, difference, table, sum and scaling."""
        rate = dict(zip(OUTPUT_RATES, self.spec.parameters.output_cycles, strict=True))
        return float(2 + self.spec.parameters.activation_cycles[0] + 3 * rate["binary32"] + rate["other"])

    def _softmax(self, rows: Columns, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cycles and SRAM bytes: what every element takes, and the reciprocal of each line's sum."""
        rate = dict(zip(OUTPUT_RATES, self.spec.parameters.output_cycles, strict=True))
        lines = rows.output_elements / np.maximum(rows.k, 1)
        reciprocal = SOFTMAX_SCALARS * rate["binary32"] * SPLIT_DEPTH * np.maximum(lines, 1)
        cycles = stored * self._softmax_rate()
        start = 8 * self.spec.parameters.sram_latency_cycles
        return cycles + reciprocal + start, 30 * stored + reciprocal


def _ceil(a: np.ndarray) -> np.ndarray:
    return np.ceil(a)


def _up(a: np.ndarray, multiple: np.ndarray | float) -> np.ndarray:
    """The next multiple, in the type of `a`."""
    return np.asarray(np.ceil(a / multiple) * multiple)


def _prefers_part_kernel(in_d: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """Boolean: four taps of 8 channels use the dot products better than 32 channels of one tap."""
    depth = in_d / _up(in_d, 32)
    part = in_d / _up(in_d, 8) * taps / _up(taps, 4)
    return np.asarray((in_d <= 8) | (part >= depth))


def _with_inputs(work: Work, chosen: np.ndarray, in_d: np.ndarray, micro: tuple[int, int]) -> Blocks:
    """Blocks with the inputs that they need; chosen is (3, rows): h, w, d."""
    h, w, d = chosen
    in_h = _up((h - 1) * work.step_h + np.minimum(work.reach_h, SUBKERNEL), micro[0])
    in_w = _up((w - 1) * work.step_w + np.minimum(work.reach_w, SUBKERNEL), micro[1])
    return Blocks(h, w, d, in_h, in_w, np.where(work.keeps_depth, d, in_d))
