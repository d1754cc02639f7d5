"""Arm Ethos-U85: a larger array in several arrangements, residual adds fused, and memory channels that bind by latency.

Blocks of h x w x d outputs (`ethos_u85_blocks`) are worked on in micro-blocks of u_h x u_w pixels and u_d channels:

    micro-blocks  x = ceil(h / u_h) ceil(w / u_w),   z = ceil(d / u_d);    weights of a step: b = 4 u_d / decoders
    depth first   mac = R S ceil(C / i) z max(b, i/8 x)                 a block reads i = 64 input channels
    part kernel   mac = ceil(R S / 4) ceil(C / 16) z 2 max(b, 4 x)      a step = 4 taps of 8 channels
    depthwise     mac = ceil(R S / 4) z max(b, 4 x)                     pooling: mac = 4 max(4, R S) x z
    command       cmd = (mac + out + |fill - drain|) / 4                of one block
    NPU           fill + drain + max(n max(mac, cmd) + max(out, cmd),  n max(out, cmd) + max(mac, cmd))

n is the number of blocks in micro-blocks (the last ones count by what they hold); `out` is the output unit's time for a
block, or that of fetching its scales (10 bytes a channel, 256 bytes a latency of the memory that holds the weights).

**2:4 sparsity.** Where of every four consecutive input channels at most two weights are not zero, at every tap and
filter, the array skips half of the multiplications of a dense layer and reads twice the channels a block: mac halves.
That holds for an exact mask that has the pattern (1:4 has it too) and for layers of one or two input channels; a
density alone is taken as scattered, and gains nothing but traffic. The pattern is used if it makes the layer faster.

**Memory.** Each memory has a port of full bandwidth, and each kind of transfer a channel of its own with a read buffer
of so many 16-byte words: no more bytes can be under way than fit there, so a channel moves

    bytes a cycle = burst * min(words / burst words, 0.8 outstanding transfers) / latency * 0.8

Channels are further ports of the machine file (`dram_scales`, ...): their bytes are those of the memory's port, counted
again. Scales are read from DRAM again for every block across, through the narrowest channel: 0.41 bytes a cycle, which
is what most layers of an image network wait for.

An add that its producer absorbs costs energy, but no time of its own. Where features live and which layers run
interleaved is decided by `ethos_cascade`; weights are staged as on the U65 (`ethos_staging`).

**Inputs.** The network's input is in DRAM. A convolution that would wait for it is preceded by a *copy* of it to SRAM,
an operation of its own (pooling of one tap), under which the layer's weights begin to arrive (`is_input_copied`).

Assumptions and where it is known to be wrong:
- It follows the vendor's estimate (ethos-u-vela 5.2.0, Apache-2.0, formulas written anew), not silicon.
- The compiler decides on copying an input by the bytes wanted. Neither it nor this model then looks at what short
  bursts waste: layers that the array seems to keep waiting read DRAM up to eight times as long, and copies of narrow
  blocks can take longer than they save. Near the limit, where weights or input take as long as the array, the coded
  size of the weights decides, which is known to 2 %: such a layer may go the other way, and be a few times off.
- An input is taken to have one reader, and layers that run interleaved, several images and groups to read where it is.
- The compiler's block, which follows how often data are read, is not always the fastest one: a layer that is deepened
  from 8 to 16 channels can take half the time, here as in the estimator, since its blocks grow and its scales are read
  less often. More channels never cost less only as long as the block stays.
- An absorbed add takes the output unit twice; here the multiplications of its producer are taken to hide it. Its other
  input moves through the ports under the producer, where it is not counted.
- A global mean is priced as the average pooling that quantised files contain; one that contains MEAN runs it as a
  depthwise convolution, up to four times as long.
- Softmax, LSTM gates and matmul are sums over what they are compiled to.

Letters: P, Q output height and width, K outputs, C inputs a group, R, S kernel; h, w, d a block of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from accel_models.family import Family
from accel_models.mapping import Steps
from accel_models.npu.ethos_blocks import Blocks
from accel_models.npu.ethos_buffer import buffer_bytes, kernel_steps
from accel_models.npu.ethos_staging import Copy, Input, cold_cycles, early_bytes, is_input_copied, is_staged
from accel_models.npu.ethos_u import npu_cycles, waste
from accel_models.npu.ethos_u85_blocks import SERVES_MATRIX, Buffers, Found, MicroBlock, candidates, find_blocks
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
from accel_models.spec import Count, Counts, Numbers, Positive
from workloads.columns import Columns

MICRO_FIELDS = 10  # numbers of a micro-block in the machine file
SCALE_WINDOW = 256  # bytes of scales that one latency covers
SOFTMAX_PASSES = 12  # passes over each element (ethos-u-vela 5.2.0: maximum, difference, table, sums, scaling)


@dataclass(frozen=True)
class Run:
    """What one run of every row takes, float64 (rows,), blocks cut to the tensor.

    Attributes:
        found: blocks as searched, with their micro-block. block: cut to the tensor.
        mac: cycles of a whole block on the array. blocks: how many, in micro-blocks.
        fill, drain: cycles of a block's inputs and outputs. read, written: bytes of the run.
        wanted: bytes read, without what short bursts waste.
        across: blocks that read the same weights. steps: over the kernel (`ethos_buffer`).
    """

    found: Found
    block: Blocks
    mac: np.ndarray
    blocks: np.ndarray
    fill: np.ndarray
    drain: np.ndarray
    read: np.ndarray
    written: np.ndarray
    wanted: np.ndarray
    across: np.ndarray
    steps: np.ndarray


@dataclass(frozen=True)
class Done:
    """What rows that are cut into blocks take, float64 (rows,) or (rows, ports).

    Attributes:
        tiles: blocks. cycles: of the NPU. moved: bytes by port. late: cycles at which a layer with cold weights ends.
        sparse: boolean, whether it runs 2:4. copy_cycles, copy_moved: of copying the input first.
        inside: bytes read and written in the NPU's own buffers.
    """

    tiles: np.ndarray
    cycles: np.ndarray
    moved: np.ndarray
    late: np.ndarray
    sparse: np.ndarray
    copy_cycles: np.ndarray
    copy_moved: np.ndarray
    inside: np.ndarray


@family("ethos_u85")
class EthosU85(Family):
    """One Ethos-U85 with SRAM and DRAM (module docstring)."""

    class Parameters(Coder):
        """Arrangements of the array, its buffers and rates.

        `micro_blocks`: MICRO_FIELDS numbers for each: height, width, channels; 1 dense layers, 2 depthwise and pooling,
        3 both; height and width in which inputs are read of blocks of at most 16, at most 32 and more channels.
        `output_cycles`: of an element of 8 bits, of 32 bits; `table_cycles`: of an activation by table. Latencies and
        bursts: SRAM, DRAM.
        """

        micro_blocks: Counts
        decoders: Count
        input_buffer_bytes: Count
        accumulator_bytes: Count
        output_cycles: Numbers
        table_cycles: Positive
        read_latency_cycles: Counts
        write_latency_cycles: Counts
        burst_bytes: Counts
        delay_cycles: Positive

    components = ("mac", "vector", "buffer", "sram", "external")
    precisions = (8,)
    cliffs = 0.02
    granularities = ("channel", "weight", "nm")

    def facts(self, rows: Columns, placement: Placement) -> Mapping[str, np.ndarray]:
        """`npu_cycles`, as the estimator prints them: its memories' delays and waiting for cold weights included."""
        return {"npu_cycles": npu_cycles(self.map(rows, placement), self._bandwidths())}

    def channel_multiple(self) -> int:
        """Channels of a brick; micro-blocks of other shapes take over where a count fits one badly."""
        return SPLIT_DEPTH

    def mappings_tried(self) -> int:
        """Depths and heights of a block; the best width of each is found directly."""
        micro = next(each for each in self._micros() if each.serves & SERVES_MATRIX)
        return len(candidates(micro, self._buffers().accumulators // 2)[0])

    def map(self, rows: Columns, placement: Placement) -> Steps:
        work = work_of(rows, placement)
        ports = len(self.spec.ports)
        absorbed = (rows.fused > 0) & rows.is_op("add")
        kind = np.where(absorbed, NONE, work.kind)
        tiles, cycles, moved = np.ones(len(rows)), np.zeros(len(rows)), np.zeros((len(rows), ports))
        late, inside, copying = np.zeros((3, len(rows)))
        macs, copied, rate = rows.macs, np.zeros_like(moved), self._output_rate(rows)
        at = np.flatnonzero((kind != NONE) & (kind != ELEMENTWISE))
        done = self._blocked(rows.take(at), work.take(at), rate[at])
        tiles[at], cycles[at], moved[at], late[at] = done.tiles, done.cycles, done.moved, done.late
        copying[at], copied[at], inside[at] = done.copy_cycles, done.copy_moved, done.inside
        macs[at] *= np.where(done.sparse, 0.5, 1.0)
        through = moved[:, :2].sum(axis=1)
        self._elementwise(rows, work, rate, cycles, moved)
        inside += 2 * (moved[:, :2].sum(axis=1) - through)
        floor = self._floor(rows, work, rate, macs)
        mean = np.maximum(cycles, floor)
        ready = np.maximum(mean, (moved / self._bandwidths()).max(axis=1))
        steps = Steps.empty(("copy", "run"), KERNELS, len(rows), ports, len(self.components))
        steps["tiles"][:, 0] = copying > 0
        steps["mean_cycles"][:, 0] = steps["slowest_cycles"][:, 0] = copying
        steps["port_bytes"][:, 0] = copied
        steps["tiles"][:, 1] = np.where(kind != NONE, tiles, 0.0)
        steps["prologue_cycles"][:, 1] = np.maximum(late - ready, 0.0)
        steps["floor_cycles"][:, 1] = floor / tiles
        steps["mean_cycles"][:, 1] = steps["slowest_cycles"][:, 1] = mean / tiles
        steps["port_bytes"][:, 1] = moved / tiles[:, None]
        moved = moved + copied
        elements = rows.output_elements * ((work.kind != NONE) & ~rows.is_mac)
        steps["accesses"][:] = np.stack([macs, elements, inside, moved[:, 0], moved[:, 1]], axis=1)
        steps["kernel"][:] = kind
        return Steps(**steps)

    def _blocked(self, rows: Columns, work: Work, rate: np.ndarray) -> Done:
        """Rows that are cut into blocks, their inputs copied to SRAM where that is worth it."""
        run = self._run(work, rate, sparse=False)
        coded, scales, stored = self._weight_bytes(rows, work, run)
        copying, copied = self._input_copies(work, run, coded, rate)
        if copying.any():
            work = replace(work, home_in=np.where(copying > 0, 0.0, work.home_in))
            fill, _, read, _, _ = self._traffic(work, run.found.block, run.block, run.across)
            run = replace(run, fill=fill, read=read)
        npu, staged = self._timed(rows, work, run, rate, coded)
        sparse = np.zeros(len(rows), bool)
        pattern = np.flatnonzero(has_24(rows, work.in_d) & ((work.kind == CONV) | (work.kind == VECTOR)))
        moved = self._moved(work, run, coded, scales, staged, npu)
        inside = self._inside(work, run, stored)
        if len(pattern):
            part_rows, part = rows.take(pattern), work.take(pattern)
            other = self._run(part, rate[pattern], sparse=True)
            cycles, is_staged_too = self._timed(part_rows, part, other, rate[pattern], coded[pattern])
            faster = cycles < npu[pattern]
            took = self._moved(part, other, coded[pattern], scales[pattern], is_staged_too, cycles)
            moved[pattern] = np.where(faster[:, None], took, moved[pattern])
            npu[pattern] = np.where(faster, cycles, npu[pattern])
            sparse[pattern] = faster
            inside[pattern] = np.where(faster, self._inside(part, other, stored[pattern]), inside[pattern])
        copy = self._copy(run, coded)
        late = np.where(staged & (work.cold > 0) & ~sparse, cold_cycles(work, copy, npu), 0.0)
        tiles = run.across * np.ceil(work.d / run.block.d)
        runs = work.repeats
        moved, late = runs[:, None] * moved, runs * late
        inside = runs * inside + 4 * (copying > 0) * work.in_h * work.in_w * work.in_d  # a copy comes and goes
        return Done(runs * tiles, runs * npu, moved, late, sparse, copying, copied, inside)

    def _inside(self, work: Work, run: Run, stored: np.ndarray) -> np.ndarray:
        """Bytes of one run in the NPU's own buffers."""
        return buffer_bytes(work, run.steps, run.found.u_d, run.wanted, stored * run.across)

    def _may_copy(self, work: Work) -> np.ndarray:
        """Boolean (rows,): a convolution that reads the network's input, all of which fits in SRAM."""
        size = float(self.spec.memories[0].size_bytes or np.inf)
        first = (work.cold > 0) & (work.home_in > 0) & ((work.kind == CONV) | (work.kind == DEPTHWISE))
        return np.asarray(
            first & (work.repeats == 1) & (work.stripe >= work.h) & (work.in_h * work.in_w * work.in_d <= size)
        )

    # Cycles -----------------------------------------------------------------------------------------------------

    def _input_copies(self, work: Work, run: Run, coded: np.ndarray, rate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(NPU cycles, bytes by port) of copying inputs to SRAM; 0 where they stay in DRAM."""
        cycles, moved = np.zeros(len(rate)), np.zeros((len(rate), len(self.spec.ports)))
        may = self._may_copy(work) & (run.wanted > work.in_h * work.in_w * work.in_d)
        if not may.any():
            return cycles, moved
        latency, port = self.spec.parameters.read_latency_cycles, self._channel
        direct, again = run.wanted / port("dram_inputs") + latency[1], run.wanted / port("sram_inputs") + latency[0]
        waiting, weights = self._cycles(run, rate, np.full(len(rate), float(latency[1]))), self._copy(run, coded)
        at = np.flatnonzero(may & is_input_copied(Input(direct, again), work.d, weights, waiting))
        cycles[at], moved[at] = self._copy_of_input(work.take(at))
        copies = may & is_input_copied(Input(direct, again + cycles), work.d, weights, waiting)
        return np.where(copies, cycles, 0.0), np.where(copies[:, None], moved, 0.0)

    def _copy_of_input(self, work: Work) -> tuple[np.ndarray, np.ndarray]:
        """(NPU cycles, bytes by port) of copying every row's input to SRAM: pooling of one tap."""
        one, zero = np.ones(len(work.h)), np.zeros(len(work.h))
        copy = replace(
            work, kind=POOL * one, h=work.in_h, w=work.in_w, d=work.in_d, stripe=work.in_h,
            taps_h=one, taps_w=one, reach_h=one, reach_w=one, step_h=one, step_w=one, linear_out=one, home_out=zero,
        )  # fmt: skip
        run, moved = self._run(copy, zero, sparse=False), np.zeros((len(one), len(self.spec.ports)))
        self._add(moved, copy.home_in, "inputs", run.read)
        self._add(moved, copy.home_out, "outputs", run.written)
        return self._cycles(run, self.spec.parameters.output_cycles[0] * one, zero), moved

    def _run(self, work: Work, rate: np.ndarray, sparse: bool) -> Run:
        """Blocks of every row and what they take on the array and on the ports."""
        part = (work.kind == CONV) & _prefers_part_kernel(work.in_d, work.taps_h * work.taps_w, sparse)
        deep = 128.0 if sparse else 64.0
        found = find_blocks(work, np.where(part, 16.0, deep), self._micros(), self._buffers())
        block = Blocks(
            np.minimum(work.h, found.block.h), np.minimum(work.w, found.block.w), np.minimum(work.d, found.block.d),
            np.minimum(work.in_h, found.block.in_h), np.minimum(work.in_w, found.block.in_w),
            np.minimum(work.in_d, found.block.in_d),
        )  # fmt: skip
        slices = np.ceil(block.d / found.u_d)
        pixels = np.ceil(block.h / found.u_h) * np.ceil(block.w / found.u_w)
        mac = self._mac_cycles(work, block, found, part, pixels, sparse)
        whole = np.ceil(work.h / found.u_h) * np.ceil(work.w / found.u_w) * np.ceil(work.d / found.u_d)
        across = np.ceil(work.h / block.h) * np.ceil(work.w / block.w)
        traffic = self._traffic(work, found.block, block, across)
        steps = kernel_steps(work, part, deep, 8.0 if sparse else 4.0)
        return Run(found, block, mac, whole / (pixels * slices), *traffic, across, steps)

    def _mac_cycles(
        self, work: Work, block: Blocks, found: Found, part: np.ndarray, pixels: np.ndarray, sparse: bool
    ) -> np.ndarray:
        """Cycles of one whole block on the array."""
        parameters, slices = self.spec.parameters, np.ceil(block.d / found.u_d)
        weights = np.floor(4 * found.u_d / parameters.decoders)
        pool, own = work.kind == POOL, work.kind == DEPTHWISE
        deep = ~part & ~own & ~pool
        step = np.where(deep, np.floor(block.in_d / 8) * pixels, 4 * pixels)
        step = np.where(pool, 4 * pixels, np.maximum(weights, step)) * slices
        groups = np.where(part, np.ceil(block.in_d / 8), 1.0)
        total = np.zeros(len(work.h))
        for count, taps in kernel_pieces(work):
            steps = np.where(pool, np.maximum(4, taps), np.where(part | own, np.ceil(taps / 4), taps))
            cycles = step * steps * groups
            cycles = np.floor(cycles / 2) if sparse else cycles
            stalls = np.where(slices == 1, steps, (steps - 1) * slices) * np.where(pool, 0, groups)
            stalls = np.where(pool & (slices == 1), 1, stalls)
            total += np.where(taps > 0, count * (cycles + parameters.delay_cycles * stalls * (pixels == 1)), 0.0)
        return total * np.where(own | pool, 1.0, np.ceil(work.in_d / block.in_d))

    def _timed(
        self, rows: Columns, work: Work, run: Run, rate: np.ndarray, coded: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(NPU cycles, whether weights are staged)."""
        latency = self.spec.parameters.read_latency_cycles
        scaled = ((rows.bias > 0) | rows.has_weights) & (work.kind != POOL)
        direct = self._cycles(run, rate, latency[1] * scaled)
        features = np.maximum(run.read, run.written) / self._bandwidths()[0]
        staged = is_staged(work, self._copy(run, coded), direct, features, coded > 0)
        return self._cycles(run, rate, np.where(staged, latency[0], latency[1]) * scaled), staged

    def _cycles(self, run: Run, rate: np.ndarray, latency: np.ndarray) -> np.ndarray:
        """NPU cycles of one run, its scales this many cycles away (0: it has none)."""
        block = run.block
        out = np.maximum(np.ceil(rate * block.h * block.w * block.d), SCALE_BYTES * block.d * latency / SCALE_WINDOW)
        moving = np.where(run.blocks > 1, np.abs(run.drain - run.fill), 0)
        command = (moving + run.mac + out) / 4
        mac, out = np.maximum(run.mac, command), np.maximum(out, command)
        return np.asarray(np.maximum(mac * run.blocks + out, out * run.blocks + mac) + run.fill + run.drain)

    def _floor(self, rows: Columns, work: Work, rate: np.ndarray, macs: np.ndarray) -> np.ndarray:
        """Cycles without overhead: multiplications performed at the peak; of other work, its elements at its rate."""
        peak = self.spec.peak_macs_per_cycle(8)
        output = rows.output_elements * rate
        pooled = rows.output_elements * np.maximum(work.taps_h * work.taps_w, 4) * 4 * 8 / peak
        kinds = [rows.is_mac, work.kind == POOL, work.kind == ELEMENTWISE]
        return np.select(kinds, [macs / peak, np.maximum(output, pooled), output], 0.0)

    def _output_rate(self, rows: Columns) -> np.ndarray:
        """Cycles that the output unit needs for one element; an activation by table may take longer."""
        own = np.full(len(rows), self.spec.parameters.output_cycles[0])
        table = (rows.activation >= TABLE) | rows.is_op("activation")
        own = np.where(rows.is_op("norm", "vector"), 2 * own, own)
        return np.maximum(own, np.where(table, self.spec.parameters.table_cycles, 0.0))

    # Bytes ------------------------------------------------------------------------------------------------------

    def _traffic(
        self, work: Work, block: Blocks, clipped: Blocks, across: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(fill, drain, read, written, wanted) of `Run`; bytes with what short bursts waste, but for the last."""
        parameters, bandwidth = self.spec.parameters, self._bandwidths()
        bursts = np.array(parameters.burst_bytes, float)
        home_in, home_out = work.home_in.astype(int), work.home_out.astype(int)
        linear_row = block.in_d * np.where(work.in_d == block.in_d, block.in_w, 1)
        waste_in = waste(bursts[home_in], np.where(work.linear_in > 0, linear_row, SPLIT_DEPTH * block.in_w))
        whole_row = (block.d <= SPLIT_DEPTH) & (work.d == block.d)
        linear_out = np.where(whole_row, block.d * block.w, np.minimum(SPLIT_DEPTH, block.d))
        waste_out = waste(bursts[home_out], np.where(work.linear_out > 0, linear_out, SPLIT_DEPTH * block.w))
        blocks = across * np.where(work.keeps_depth, 1, np.ceil(work.d / clipped.d))
        area = clipped.in_h * clipped.in_w
        depth_in = np.where(work.linear_in > 0, work.in_d, up(work.in_d, SPLIT_DEPTH))
        depth_out = np.where(work.linear_out > 0, work.d, up(work.d, SPLIT_DEPTH))
        fill = area * clipped.in_d * waste_in / bandwidth[home_in] + np.array(parameters.read_latency_cycles)[home_in]
        out_bytes = clipped.h * clipped.w * clipped.d * waste_out
        drain = out_bytes / bandwidth[home_out] + np.array(parameters.write_latency_cycles)[home_out]
        wanted = area * depth_in * work.passes * blocks
        return fill, drain, wanted * waste_in, work.h * work.w * depth_out * waste_out, wanted

    def _weight_bytes(self, rows: Columns, work: Work, run: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Coded weights, scales with biases, and weights as decoded (padding included), of one run."""
        taps, depthwise = work.taps_h * work.taps_w, work.kind == DEPTHWISE
        part = run.found.block.in_d == 16
        stored_in = np.where(depthwise, 1, up(work.in_d, np.where(part, 16, 64)))
        stored = (
            up(work.d, run.found.u_d) * stored_in * np.where(depthwise, up(taps, 4), np.where(part, up(taps, 5), taps))
        )
        real = work.d * np.where(depthwise, 1, work.in_d) * taps
        density = np.where(rows.has_weights, rows.weight_density, 1.0)
        coded = np.where(rows.has_weights, coded_bytes(stored, real, density, self.spec.parameters), 0.0)
        scales = np.where(rows.has_weights, scale_bytes(up(work.d, SPLIT_DEPTH)), 0.0)
        return coded, scales, np.where(rows.has_weights, stored, 0.0)

    def _copy(self, run: Run, coded: np.ndarray) -> Copy:
        """Cycles of the weights' ways into the array, through their channels."""
        port, latency = self._channel, self.spec.parameters.read_latency_cycles
        unmoved = (coded / port("dram_weights") + latency[1]) * run.across
        again = (coded / port("sram_weights") + latency[0]) * run.across
        return Copy(coded / port("dram_copies") + latency[1], again, unmoved, run.across, run.block.d)

    def _moved(
        self, work: Work, run: Run, coded: np.ndarray, scales: np.ndarray, staged: np.ndarray, npu: np.ndarray
    ) -> np.ndarray:
        """(rows, ports): bytes of one run through memories and their channels."""
        moved = np.zeros((len(work.h), len(self.spec.ports)))
        self._add(moved, work.home_in, "inputs", run.read)
        self._add(moved, work.home_out, "outputs", run.written)
        index = self.spec.ports.index
        sram = float(self.spec.memories[0].size_bytes or np.inf)
        early = early_bytes(work, staged, coded, npu, self._channel("dram_copies"), sram)
        copied = np.where(staged, coded - early, 0.0)
        direct = np.where(staged, 0.0, coded * run.across)
        again = np.where(staged, coded * run.across, 0.0)
        moved[:, index("dram")] += np.maximum(copied + direct + scales * run.across, coded + scales)
        moved[:, index("dram_copies")] += copied
        moved[:, index("dram_weights")] += direct
        moved[:, index("dram_scales")] += scales * run.across
        moved[:, index("sram")] += copied + again
        moved[:, index("sram_weights")] += again
        return moved

    def _add(self, moved: np.ndarray, home: np.ndarray, channel: str, values: np.ndarray) -> None:
        """Add each row's bytes to its memory's port and to the channel that they go through."""
        for number, memory in enumerate(("sram", "dram")):
            here = np.where(home == number, values, 0.0)
            moved[:, number] += here
            moved[:, self.spec.ports.index(f"{memory}_{channel}")] += here

    # Other rows -------------------------------------------------------------------------------------------------

    def _elementwise(self, rows: Columns, work: Work, rate: np.ndarray, cycles: np.ndarray, moved: np.ndarray) -> None:
        """Fill in rows that have no blocks to choose, and the recurrence of an LSTM."""
        parameters = self.spec.parameters
        matmul, softmax, lstm = rows.is_op("matmul"), rows.is_op("softmax"), rows.is_op("lstm")
        stored = rows.output_elements * up(rows.k.astype(float), SPLIT_DEPTH) / np.maximum(rows.k, 1)
        passes = np.where(softmax, SOFTMAX_PASSES, 1)
        wide = np.where(softmax, parameters.output_cycles[1], rate)
        start = parameters.read_latency_cycles[0] + parameters.write_latency_cycles[0]
        own = np.ceil(stored * wide) * passes + np.where(softmax, passes * start, 0)
        own = np.where(matmul, rows.macs * _depth_padding(rows) / self.spec.peak_macs_per_cycle(8) + start, own)
        at = (work.kind == ELEMENTWISE) & ~((rows.fused > 0) & rows.is_op("add"))
        cycles[:] += np.where(at, own, 0.0)
        other = np.where(matmul, rows.other_elements, np.minimum(rows.other_elements, rows.output_elements))
        first = np.where(matmul, rows.input_elements, stored * passes)
        self._add(moved, work.home_in, "inputs", np.where(at, first, 0.0))
        self._add(moved, work.home_other, "inputs", np.where(at, other, 0.0))
        self._add(moved, work.home_out, "outputs", np.where(at, stored * passes, 0.0))
        hidden = np.where(lstm, rows.n * rows.k / 4 * rows.p, 0.0)
        cycles[:] += 10 * np.maximum(hidden * parameters.output_cycles[1], np.where(lstm, start * rows.p / 2, 0))
        moved[:, 0] += 3 * hidden

    # Numbers of the machine -------------------------------------------------------------------------------------

    def _bandwidths(self) -> np.ndarray:
        return np.array([memory.bandwidth_bytes_per_cycle for memory in self.spec.memories])

    def _channel(self, name: str) -> float:
        return float(self.spec.memory(name).bandwidth_bytes_per_cycle)

    def _buffers(self) -> Buffers:
        return Buffers(self.spec.parameters.input_buffer_bytes, self.spec.parameters.accumulator_bytes // 4)

    def _micros(self) -> tuple[MicroBlock, ...]:
        numbers = self.spec.parameters.micro_blocks
        table = [numbers[i : i + MICRO_FIELDS] for i in range(0, len(numbers), MICRO_FIELDS)]
        return tuple(
            MicroBlock(h, w, d, serves, ((h16, w16), (h32, w32), (h64, w64)))
            for h, w, d, serves, h16, w16, h32, w32, h64, w64 in table
        )


def has_24(rows: Columns, in_depth: np.ndarray) -> np.ndarray:
    """Boolean (rows,): of every four consecutive input channels at most two are kept, by an exact mask; or there are no
    more than two.
    """
    found = in_depth <= 2
    for i, sparsity in enumerate(rows.sparsity):
        found[i] |= sparsity is not None and sparsity.is_exact and sparsity.satisfies_nm(2, 4)
    return found


def _prefers_part_kernel(in_d: np.ndarray, taps: np.ndarray, sparse: bool) -> np.ndarray:
    """Boolean: steps over several taps fill the array better than steps over many channels of one tap."""
    depth, step, least = (128, 10, 4) if sparse else (64, 5, 2)
    filled = np.floor(taps / step) * step + np.maximum(taps % step, least)
    return np.asarray(in_d / up(in_d, 16) * taps / filled >= in_d / up(in_d, depth))


def _depth_padding(rows: Columns) -> np.ndarray:
    """Stored over real channels of a matmul's inner and outer dims."""
    inner, outer = np.maximum(rows.c, 1).astype(float), np.maximum(rows.k, 1).astype(float)
    return np.asarray(up(inner, 64) / inner * up(outer, 16) / outer)
