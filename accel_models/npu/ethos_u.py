"""Arm Ethos-U55 and U65: micro-NPUs with a small SRAM beside them and coded weights in flash or DRAM.

The output is cut into *blocks* of h x w x d elements (`ethos_blocks`). Inside a block the MAC array works on
*micro-blocks* of u_h x u_w pixels and u_d channels (2 x 2 x 8 for 256 MACs), one every four cycles for each step over
the kernel:

    micro-blocks  x = ceil(h / u_h) ceil(w / u_w),   z = ceil(d / u_d)
    depth first   mac = R S ceil(C / 32) z max(4 u_d, 4 x)             one step = 32 input channels of one tap
    part kernel   mac = ceil(R S / 4) ceil(C / 8) z max(4 u_d, 4 x)    one step = 4 taps of 8 input channels
    depthwise     mac = ceil(R S / 4) z max(4 u_d, 4 x)                pooling: mac = 4 max(4, R S) x z
    command       cmd = (mac + out + |fill - drain|) / 4               of one block
    NPU           fill + drain + max(sum mac + max(out, cmd), sum out + max(mac, cmd), blocks cmd)

where `out` is the output unit's time for a block (cycles an element, slower with activations), fill and drain move its
inputs and outputs (bytes over bandwidth, and the latency of their memory), and sums go over all blocks, those at the
edges being smaller. A block of a single micro-block adds two cycles a step. The two cores of a U65-512 halve mac.
Channels between two micro-blocks cost as much as the next one.

    feature bytes   inputs of each block (halos, and again for each pass over output depth) + outputs, in 16-channel
                    bricks, each through the port of the memory that holds the tensor (`ethos_cascade`)
    weight bytes    coded weights (`ethos_weights`), plus 10 bytes of scale and bias a channel for every block across

Weights that several blocks across read are staged in SRAM ahead of use, and so are others if fetching them and reading
them again takes no longer than what the layer waits for anyway:

    layer cycles = max(NPU, bytes / bandwidth of each port)      all run side by side

What the array, the output unit and the ports read and write in the NPU's own buffer costs energy only (`ethos_buffer`).

The formulas are those of Arm's own estimator, written anew (ethos-u-vela 5.2.0, Apache-2.0: performance model, block
search and scheduler; where its C++ core is not published in that version, they were worked out from the numbers that it
prints). Multiplications by zero are not skipped: pruned weights save weight and SRAM traffic only.

Assumptions and where it is known to be wrong:
- It follows an estimate of the vendor's, not silicon; pooling is charged four cycles a tap because the estimator does.
- How many weights arrive under the layer before depends on that layer. Here it is taken to last as long as this one;
  such bytes count for energy but not against this layer's port, which weights and scales always pass once. 3x3
  layers whose weights take about as long as their MACs are up to 13 % optimistic, short layers after a long one up to
  50 % pessimistic. A layer that reads the network's input has none before it: its weights arrive cold.
- The network's own inputs and outputs are linear and, where there is a DRAM, in it; unrelated rows are taken to stand
  inside a network.
- The compiler's block is not always the fastest: of random layers up to two in a hundred take less time with twice the
  channels.
- Weights and scales are streams of at least 16 bytes, with 10 bytes a channel: layers of a few weights move up to three
  times the bytes that their tensors hold.
- The compiler's freedom to write a concatenation in place (here it is copied) and to fuse a slice into the copy that
  follows is not modelled.
- A global mean is priced as the average pooling that quantised files contain; one that contains MEAN runs it as a
  depthwise convolution, twice as long.
- Softmax, LSTM gates and matmul are sums over the micro-operations that they are compiled to, not a schedule of them.

Letters: P, Q output height and width, K outputs, C inputs a group, R, S kernel; h, w, d a block of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from accel_models.family import Family
from accel_models.mapping import Steps
from accel_models.npu.ethos_blocks import SEEN_DEPTH, Blocks, Shram, choose_block
from accel_models.npu.ethos_buffer import buffer_bytes, kernel_steps
from accel_models.npu.ethos_staging import Copy, cold_cycles, early_bytes, is_staged
from accel_models.npu.ethos_weights import SCALE_BYTES, Coder, coded_bytes, scale_bytes
from accel_models.npu.ethos_work import (
    CONV,
    DEPTHWISE,
    ELEMENTWISE,
    KERNELS,
    NONE,
    POOL,
    SPLIT_DEPTH,
    TABLE,
    VECTOR,
    Work,
    kernel_pieces,
    up,
    work_of,
)
from accel_models.placement import Placement
from accel_models.registry import family
from accel_models.spec import Count, Counts, NotNegative, Numbers, Positive
from workloads.columns import Columns

OUTPUT_RATES = ("unary32", "binary32", "mul32", "mul", "add_simple", "add", "max_pool", "other")
SCALE_WINDOW = 256  # bytes of scales that one latency covers
# Counted in the estimator's lowering (ethos-u-vela 5.2.0, softmax.py and lstm.py).
SOFTMAX_SCALARS = 22  # 32-bit operations on one number a row: the reciprocal by Newton's method
LSTM_PASSES = 10  # elementwise passes over the hidden state a time step


@dataclass(frozen=True)
class Totals:
    """What rows cost, float64 (rows,) where not said otherwise.

    Attributes:
        tiles: blocks. cycles: of the NPU with its weights at hand.
        moved: (rows, ports), bytes through each memory's port.
        late: when the NPU ends where it has to wait for its first or its last weights; 0 elsewhere.
        ahead: weight bytes that came under the layer before, over what `moved` counts.
        inside: bytes read and written in the NPU's own buffer.
    """

    tiles: np.ndarray
    cycles: np.ndarray
    moved: np.ndarray
    late: np.ndarray
    ahead: np.ndarray
    inside: np.ndarray

    @classmethod
    def zeros(cls, rows: int, ports: int) -> Totals:
        return cls(np.ones(rows), np.zeros(rows), np.zeros((rows, ports)), *np.zeros((3, rows)))

    def put_into(self, whole: Totals, rows: np.ndarray) -> None:
        for f in fields(self):
            getattr(whole, f.name)[rows] = getattr(self, f.name)


@dataclass(frozen=True)
class Traffic:
    """Bytes of the tensors of one block, and what a byte of them costs, float64 (rows,).

    Attributes:
        fill, drain: cycles that a block's inputs and outputs take. read, written: bytes of the whole run.
        wanted: bytes read, without what short bursts waste.
    """

    fill: np.ndarray
    drain: np.ndarray
    read: np.ndarray
    written: np.ndarray
    wanted: np.ndarray


@dataclass(frozen=True)
class Array:
    """Cycles of one run on the array, float64 (rows,).

    Attributes:
        one, out: MAC and output cycles of a whole block. mac, all_out: of all blocks, those at the edges being smaller.
        blocks: how many. depths: the same with the last block in depth counted by its channels.
    """

    one: np.ndarray
    mac: np.ndarray
    out: np.ndarray
    all_out: np.ndarray
    blocks: np.ndarray
    depths: np.ndarray


@family("ethos_u")
class EthosU(Family):
    """One Ethos-U55 or U65: SRAM on one port, weights in the second memory."""

    class Parameters(Coder):
        """Sizes of the array and its SHRAM, and rates of its output unit.

        `micro_block` is (height, width, depth); `shram_banks` of each core, `bank_granules` for inputs and 32-bit
        accumulators; `output_cycles` by operation in the order of OUTPUT_RATES; `activation_cycles` for a table and for
        a ReLU. Latencies and bursts are listed in the order of `memories`. `fill_bytes`: weight-memory bytes read for
        every padded element: zeros come from a constant, block by block.
        """

        micro_block: Counts
        cores: Count
        shram_banks: Count
        bank_granules: Counts
        output_cycles: Numbers
        activation_cycles: Numbers
        read_latency_cycles: Counts
        write_latency_cycles: Counts
        burst_bytes: Counts
        fill_bytes: NotNegative
        pool_cycles_per_tap: Positive
        delay_cycles: NotNegative

    components = ("mac", "vector", "buffer", "sram", "external")
    precisions = (8,)
    cliffs = 0.03
    granularities = ("channel", "weight")

    def map(self, rows: Columns, placement: Placement) -> Steps:
        work = work_of(rows, placement)
        total = Totals.zeros(len(rows), len(self.spec.ports))
        rate = self._output_rate(rows)
        blocked = np.flatnonzero((work.kind != NONE) & (work.kind != ELEMENTWISE))
        self._blocked(rows.take(blocked), work.take(blocked), rate[blocked]).put_into(total, blocked)
        through = total.moved.sum(axis=1)
        self._elementwise(rows, work, rate, total)
        inside = total.inside + 2 * (total.moved.sum(axis=1) - through)
        floor = self._floor(rows, work, rate)
        mean = np.maximum(total.cycles, floor)
        ready = np.maximum(mean, (total.moved / self._bandwidths()).max(axis=1))
        steps = Steps.empty(("run",), KERNELS, len(rows), len(self.spec.ports), len(self.components))
        steps["tiles"][:, 0] = np.where(work.kind != NONE, total.tiles, 0.0)
        steps["prologue_cycles"][:, 0] = np.maximum(total.late - ready, 0.0)
        steps["floor_cycles"][:, 0] = floor / total.tiles
        steps["mean_cycles"][:, 0] = steps["slowest_cycles"][:, 0] = mean / total.tiles
        steps["port_bytes"][:, 0] = total.moved / total.tiles[:, None]
        elements = rows.output_elements * ((work.kind != NONE) & ~rows.is_mac)
        sram, outside = total.moved[:, 0], total.moved[:, 1:].sum(axis=1)
        steps["accesses"][:] = np.stack([rows.macs, elements, inside, sram, outside + total.ahead], axis=1)
        steps["kernel"][:] = work.kind
        return Steps(**steps)

    def facts(self, rows: Columns, placement: Placement) -> Mapping[str, np.ndarray]:
        """`npu_cycles`, as the estimator prints them: its memories' delays and waiting for cold weights included."""
        return {"npu_cycles": npu_cycles(self.map(rows, placement), self._bandwidths())}

    def channel_multiple(self) -> int:
        """Output channels of a micro-block: counts in between cost as much as the next multiple.

        Feature maps are stored in bricks of 16 channels and a 1x1 convolution steps over 32 inputs, so multiples of 16
        and 32 gain more; this is the finest count that ever pays.
        """
        return int(self.spec.parameters.micro_block[2] * self.spec.parameters.cores)

    def mappings_tried(self) -> int:
        """Depths and heights of a block; the best width of each is found directly."""
        return self._shram().blocks_tried()

    def _blocked(self, rows: Columns, work: Work, rate: np.ndarray) -> Totals:
        """What rows cost that are cut into blocks."""
        part_kernel = (work.kind == CONV) & _prefers_part_kernel(work.in_d, work.taps_h * work.taps_w)
        block = choose_block(work, part_kernel, self._shram())
        clipped = Blocks(
            np.minimum(work.h, block.h), np.minimum(work.w, block.w), np.minimum(work.d, block.d),
            np.minimum(work.in_h, block.in_h), np.minimum(work.in_w, block.in_w), np.minimum(work.in_d, block.in_d),
        )  # fmt: skip
        traffic = self._traffic(work, block, clipped)
        across = np.ceil(work.h / clipped.h) * np.ceil(work.w / clipped.w)
        array = self._array(work, clipped, part_kernel, rate)
        coded, scales, stored = self._weight_bytes(rows, work, part_kernel)
        moved = np.zeros((len(work.h), len(self.spec.ports)))
        _add_at(moved, work.home_in, traffic.read)
        _add_at(moved, work.home_out, traffic.written)
        source, latency = self._source(), self.spec.parameters.read_latency_cycles
        direct = self._cycles(array, traffic, clipped.d, latency[source] * (rows.bias > 0))
        copy = self._copy(coded, across, clipped.d)
        features = (moved / self._bandwidths()).max(axis=1)
        staged = is_staged(work, copy, direct, features, coded > 0)
        from_here = np.where(staged, latency[0], latency[source]) * (rows.bias > 0)
        once = self._cycles(array, traffic, clipped.d, from_here) if latency[source] > latency[0] else direct
        early = early_bytes(work, staged, coded, once, float(self._bandwidths()[source]), self._sram_bytes())
        fetched = np.where(staged, coded, coded * across) + scales * across
        through = np.maximum(fetched - early, coded + scales)  # never less than everything once
        moved[:, source] += through
        moved[:, 0] += np.where(staged, coded * (across + 1) - early, 0.0)
        late = np.where(staged & (work.cold > 0), cold_cycles(work, copy, once), 0.0)
        tiles = across * np.ceil(work.d / clipped.d)
        runs = work.repeats
        steps, slice_depth = kernel_steps(work, part_kernel, SEEN_DEPTH), self.spec.parameters.micro_block[2]
        inside = buffer_bytes(work, steps, slice_depth, traffic.wanted, stored * across)
        ahead = runs * (fetched - through)
        return Totals(runs * tiles, runs * once, runs[:, None] * moved, runs * late, ahead, runs * inside)

    def _copy(self, coded: np.ndarray, across: np.ndarray, depth: np.ndarray) -> Copy:
        """Cycles of the weights' ways into the array."""
        bandwidth, latency = self._bandwidths(), self.spec.parameters.read_latency_cycles
        fetch = coded / bandwidth[self._source()] + latency[self._source()]
        return Copy(fetch, (coded / bandwidth[0] + latency[0]) * across, fetch * across, across, depth)

    def _sram_bytes(self) -> float:
        return float(self.spec.memories[0].size_bytes or np.inf)

    def _source(self) -> int:
        """Index of the memory that holds the weights."""
        return self.spec.ports.index(self.spec.weight_memory)

    def _floor(self, rows: Columns, work: Work, rate: np.ndarray) -> np.ndarray:
        """Cycles without any overhead: MACs at the peak; of other work, its elements at the rate of their unit.

        Pooling (and a copy, which runs as one) has its own rate a tap and takes four taps at least, all else waits for
        the output unit.
        """
        peak, parameters = self.spec.peak_macs_per_cycle(8), self.spec.parameters
        output = rows.output_elements * np.where(rows.is_op("norm", "vector"), 2, 1) * rate
        taps = np.maximum(work.taps_h * work.taps_w, 4) * parameters.pool_cycles_per_tap
        pooled = np.maximum(output, rows.output_elements * taps / math.prod(parameters.micro_block) / parameters.cores)
        softmax = rows.output_elements * self._softmax_rate()
        kinds = [rows.is_mac, rows.is_op("softmax"), work.kind == POOL, work.kind == ELEMENTWISE]
        return np.select(kinds, [rows.macs / peak, softmax, pooled, output], 0.0)

    def _bandwidths(self) -> np.ndarray:
        return np.array([memory.bandwidth_bytes_per_cycle for memory in self.spec.memories])

    def _shram(self) -> Shram:
        parameters = self.spec.parameters
        (of_inputs, of_accumulators), (u_h, u_w, u_d) = parameters.bank_granules, parameters.micro_block
        return Shram(parameters.shram_banks, (of_inputs, of_accumulators), (u_h, u_w, u_d))

    def _output_rate(self, rows: Columns) -> np.ndarray:
        """Cycles that the output unit needs for one element, with the activation behind it."""
        table, relu = self.spec.parameters.activation_cycles
        rate = dict(zip(OUTPUT_RATES, self.spec.parameters.output_cycles, strict=True))
        own = np.full(len(rows), rate["other"])
        own[rows.is_op("max_pool")] = rate["max_pool"]
        own[rows.is_op("add")] = rate["add"]
        own[rows.is_op("mul", "norm", "vector")] = rate["mul"]
        own[rows.is_op("activation") & (rows.activation == 0)] = table
        return np.maximum(own, np.array([0.0, relu, relu, table])[np.minimum(rows.activation, TABLE)])

    # Cycles and bytes -------------------------------------------------------------------------------------------

    def _array(self, work: Work, block: Blocks, part: np.ndarray, rate: np.ndarray) -> Array:
        """What the MAC array and the output unit take; `block` is clipped to the tensor."""
        parameters = self.spec.parameters
        micro_h, micro_w, u_d = (float(size) for size in parameters.micro_block)
        h, w, d, cores = block.h, block.w, block.d, parameters.cores
        pool, deep = work.kind == POOL, (work.kind == CONV) | (work.kind == VECTOR)
        flat = (micro_h == 2) & deep & (work.h == 1) & (work.w % 2 == 0) & (work.taps_h == 1)
        u_h, u_w = np.where(flat, 1, micro_h), np.where(flat, 4, micro_w)  # the array is turned for single rows
        steps, stalls = self._kernel_steps(work, part)
        inputs = np.where(deep, np.ceil(work.in_d / block.in_d), 1) * np.where(part, np.ceil(block.in_d / 8), 1)
        micro_across = np.ceil(w / u_w)
        pixels, slices = np.ceil(h / u_h) * micro_across, np.ceil(d / u_d)
        step = np.where(pool, pixels, np.maximum(4 * u_d, 4 * pixels))  # weights take four cycles a channel
        delay = parameters.delay_cycles * np.where(slices == 1, steps, stalls * slices) * (pixels == 1)
        one = (step * steps * slices + delay) * inputs / cores
        rows, columns = np.floor(work.h / h), np.floor(work.w / w)  # whole blocks; those at the edges are smaller
        high, wide = np.ceil((work.h - rows * h) / u_h), np.ceil((work.w - columns * w) / u_w)
        edges = (columns * high * micro_across + rows * wide * np.ceil(h / u_h) + high * wide) * np.where(pool, 1, 4)
        all_slices = np.ceil(work.d / u_d)
        mac = rows * columns * all_slices / slices * one + edges * steps * inputs * all_slices / cores
        elements = (rows * h + high * u_h) * (columns * w + wide * u_w) * work.d
        across = np.ceil(work.h / h) * np.ceil(work.w / w)
        return Array(
            one, mac, np.floor(rate * h * w * d), rate * elements, across * np.ceil(work.d / d), across * work.d / d
        )

    def _cycles(self, array: Array, traffic: Traffic, depth: np.ndarray, latency: np.ndarray) -> np.ndarray:
        """NPU cycles of one run, its weights being at hand, its scales this many cycles away (0: it has none)."""
        scale = np.floor(SCALE_BYTES * depth * latency / SCALE_WINDOW)
        out = np.maximum(array.out, scale)
        moving = np.where(array.blocks > 1, np.abs(traffic.fill - traffic.drain), 0)
        command = np.floor((array.one + out + moving) / 4)
        all_out = np.maximum(array.all_out, scale * array.depths)
        steady = np.maximum(array.mac + np.maximum(out, command), all_out + np.maximum(array.one, command))
        return np.asarray(np.maximum(steady, command * array.blocks) + traffic.fill + traffic.drain)

    def _kernel_steps(self, work: Work, part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Steps over the kernel, cut into pieces of at most 8 x 8 taps, and how many of them follow another."""
        pool, by_four = work.kind == POOL, part | (work.kind == DEPTHWISE)
        total, stalls = np.zeros(len(work.h)), np.zeros(len(work.h))
        for count, taps in kernel_pieces(work):
            pooling = np.maximum(4, taps) * self.spec.parameters.pool_cycles_per_tap
            steps = np.where(pool, pooling, np.where(by_four, np.ceil(taps / 4), taps))
            total += np.where(taps > 0, count * steps, 0.0)
            stalls += np.where((taps > 0) & ~pool, count * (steps - 1), 0.0)
        return total, stalls

    def _traffic(self, work: Work, block: Blocks, clipped: Blocks) -> Traffic:
        """Bytes of inputs and outputs, with what short bursts waste; `clipped` is the block cut to the tensor."""
        parameters, cores = self.spec.parameters, self.spec.parameters.cores
        bursts = np.array(parameters.burst_bytes, float)
        bandwidth = self._bandwidths()
        home_in, home_out = work.home_in.astype(int), work.home_out.astype(int)
        linear_row = block.in_d * np.where(work.in_d == block.in_d, block.in_w, 1)
        waste_in = waste(bursts[home_in], np.where(work.linear_in > 0, linear_row, SPLIT_DEPTH * block.in_w))
        whole_row = (block.d <= SPLIT_DEPTH) & (work.d == block.d)
        linear_out = np.where(whole_row, block.d * block.w, np.minimum(np.minimum(SPLIT_DEPTH * cores, 64), block.d))
        waste_out = waste(bursts[home_out], np.where(work.linear_out > 0, linear_out, SPLIT_DEPTH * block.w * cores))
        area = clipped.in_h * clipped.in_w
        latency_in = np.array(parameters.read_latency_cycles, float)[home_in]
        latency_out = np.array(parameters.write_latency_cycles, float)[home_out]
        blocks = np.ceil(work.h / clipped.h) * np.ceil(work.w / clipped.w)
        blocks *= np.where(work.keeps_depth, 1, np.ceil(work.d / clipped.d))
        depth_in = np.where(work.linear_in > 0, work.in_d, up(work.in_d, SPLIT_DEPTH))
        depth_out = np.where(work.linear_out > 0, work.d, up(work.d, SPLIT_DEPTH))
        wanted = area * depth_in * work.passes * blocks
        return Traffic(
            fill=area * clipped.in_d * waste_in / bandwidth[home_in] + latency_in,
            drain=clipped.h * clipped.w * clipped.d * waste_out / bandwidth[home_out] + latency_out,
            read=wanted * waste_in,
            written=work.h * work.w * depth_out * waste_out,
            wanted=wanted,
        )

    def _weight_bytes(self, rows: Columns, work: Work, part: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Coded weights, scales with biases, and weights as decoded (padding included), of one run."""
        u_d = self.spec.parameters.micro_block[2] * self.spec.parameters.cores
        taps, depthwise = work.taps_h * work.taps_w, work.kind == DEPTHWISE
        stored_in = np.where(depthwise, 1, up(work.in_d, np.where(part, 8, 32)))
        stored = up(work.d, u_d) * stored_in * np.where(part | depthwise, up(taps, 4), taps)
        real = work.d * np.where(depthwise, 1, work.in_d) * taps
        density = np.where(rows.has_weights, rows.weight_density, 1.0)
        coded = np.where(rows.has_weights, coded_bytes(stored, real, density, self.spec.parameters), 0.0)
        return coded, np.where(rows.has_weights, scale_bytes(work.d), 0.0), np.where(rows.has_weights, stored, 0.0)

    # Elementwise ------------------------------------------------------------------------------------------------

    def _elementwise(self, rows: Columns, work: Work, rate: np.ndarray, total: Totals) -> None:
        """Fill in rows that have no blocks to choose, and what copies and recurrences add to theirs."""
        parameters, bandwidth = self.spec.parameters, self._bandwidths()
        rates = dict(zip(OUTPUT_RATES, parameters.output_cycles, strict=True))
        stored = rows.output_elements * _brick_padding(rows.k)
        passes = np.where(rows.is_op("norm", "vector"), 2, 1)
        home_in, home_out = work.home_in.astype(int), work.home_out.astype(int)
        latency = (
            np.array(parameters.read_latency_cycles)[home_in] + np.array(parameters.write_latency_cycles)[home_out]
        )
        block = np.clip(stored, 1, self._shram().elementwise_block())
        command = (latency / block + 1 / bandwidth[home_in] + 1 / bandwidth[home_out] + rate) / 4
        cycles = np.ceil(np.maximum(rate, command) * stored) * passes
        other = np.minimum(rows.other_elements, rows.output_elements) * passes
        read, written = stored * passes, stored * passes
        matmul, softmax = rows.is_op("matmul"), rows.is_op("softmax")
        # For every output column a 32-bit product with the whole input and a sum over its depth.
        terms = rows.macs * _brick_padding(rows.c)
        lines = rows.output_elements / np.maximum(rows.k, 1)
        reciprocal = SOFTMAX_SCALARS * rates["binary32"] * SPLIT_DEPTH * np.maximum(lines, 1)
        start = 8 * parameters.read_latency_cycles[0]
        cycles = np.select(
            [matmul, softmax],
            [terms * (rates["mul32"] + rates["other"]), stored * self._softmax_rate() + reciprocal + start],
            cycles,
        )
        read = np.select([matmul, softmax], [9 * terms, 29 * stored + reciprocal], read)
        written = np.select([matmul, softmax], [rows.output_elements, stored], written)
        at = work.kind == ELEMENTWISE
        total.cycles[at] = cycles[at]
        _add_at(total.moved, work.home_in, np.where(at, read, 0.0))
        _add_at(total.moved, work.home_other, np.where(at & ~matmul & ~softmax, other, 0.0))
        _add_at(total.moved, work.home_out, np.where(at, written, 0.0))
        self._recurrences_and_copies(rows, work, rates["add"], total)

    def _recurrences_and_copies(self, rows: Columns, work: Work, add: float, total: Totals) -> None:
        """Elementwise passes over an LSTM's hidden state, a second trip of transposed bytes, zeros of a pad."""
        hidden = np.where(rows.is_op("lstm"), LSTM_PASSES * rows.n * rows.k / 4 * work.repeats, 0.0)
        started = LSTM_PASSES * self.spec.parameters.read_latency_cycles[0] * work.repeats / 2
        total.cycles[:] += np.maximum(hidden * add, np.where(hidden > 0, started, 0))
        again = np.where(rows.is_op("transpose", "pixel_shuffle"), rows.output_elements, 0)
        total.moved[:, 0] += 3 * hidden + again
        fill = np.where(rows.is_op("pad"), np.maximum(rows.output_elements - rows.input_elements, 0), 0)
        total.moved[:, self._source()] += self.spec.parameters.fill_bytes * fill

    def _softmax_rate(self) -> float:
        """Cycles an element: maximum, difference, table, sum and scaling."""
        rate = dict(zip(OUTPUT_RATES, self.spec.parameters.output_cycles, strict=True))
        return float(2 + self.spec.parameters.activation_cycles[0] + 3 * rate["binary32"] + rate["other"])


def npu_cycles(steps: Steps, bandwidths: np.ndarray) -> np.ndarray:
    """Cycles of the NPU in the last step, (rows,): its own, or until late weights are worked off."""
    own = steps.tiles[:, -1] * steps.slowest_cycles[:, -1]
    ready = np.maximum(own, steps.tiles[:, -1] * (steps.port_bytes[:, -1] / bandwidths).max(axis=1))
    return np.where(steps.prologue_cycles[:, -1] > 0, ready + steps.prologue_cycles[:, -1], own)


def _prefers_part_kernel(in_d: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """Boolean: four taps of 8 channels use the dot products better than 32 channels of one tap."""
    depth = in_d / up(in_d, 32)
    part = in_d / up(in_d, 8) * taps / up(taps, 4)
    return np.asarray((in_d <= 8) | (part >= depth))


def _brick_padding(channels: np.ndarray) -> np.ndarray:
    """Stored channels over real ones, >= 1."""
    return np.asarray(up(channels.astype(float), SPLIT_DEPTH) / np.maximum(channels, 1))


def waste(burst: np.ndarray, run_bytes: np.ndarray) -> np.ndarray:
    """Bytes moved for each byte wanted: bursts shorter than the memory's."""
    return np.asarray(burst / np.minimum(burst, run_bytes))


def _add_at(moved: np.ndarray, home: np.ndarray, values: np.ndarray) -> None:
    """Add each row's bytes to the port of its memory."""
    for port in range(moved.shape[1]):
        moved[:, port] += np.where(home == port, values, 0.0)
