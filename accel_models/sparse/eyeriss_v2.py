"""Eyeriss v2: an array of small PEs that multiply compressed weights with compressed activations.

Letters: N K C P Q R S as in `workloads.graph`; d weight density, a input density. A **pass** fills every PE once with
the weights of m output channels x n columns (input channels x positions of a kernel row, `csc_pe`) and slides over E
output pixels. The PEs share a layer along a chain, output channels (k) and pixels (p), see `row_stationary_plus`; every
split and tile shape is priced and the fastest one taken. A pass goes in **rounds** of B windows (outputs), as many as
have room for their partial sums and their activations in the scratchpads of a PE:

    round  = new iacts of B windows / 24 bits a cycle + pipeline stages + work + waiting + B m / lanes
    work   = B n a words,  words of an average column as in `csc_pe`
    pass   = load + first iacts + E / B rounds,  load = compressed weights of a PE / 24 bits a cycle
    cycles = passes x pass + DRAM bytes / DRAM bandwidth, or the time of a busier on-chip port, whichever is longer

Nothing in a round overlaps: a PE takes in data, then multiplies, then hands its psums on through the two read and two
write ports that its two lanes use while multiplying. Its neighbours work meanwhile, so the routers need not stand
still: the weight routers are busy for `apart` loads a pass (one for each PE of a row with weights of its own), the iact
routers for what each cluster gets.
Waiting. Psums pass along a chain and iacts are broadcast to PEs of other output channels, so those PEs end each round
together. Of densities, a PE's share of a round varies by

    A = (a - a^2 - v) / (a^2 n B) + V    iacts: alike in PEs that share them,  V = v / (a^2 c) (C - c) / (C - 1)
    W = (1 - d) / (d m n) (1 + (1 / a - 1) / B)    weights: in each PE by itself

    waiting = work (M(k) sqrt(W) + sqrt(M(chain)^2 A + (M(chain k) - M(k))^2 W) + M(p) sqrt(B A0 / E))

with M(u) the expected largest of u standard normal numbers (`workloads.order_statistics`), v the variance of the
measured iact densities over channels, and A0 = A without V: PEs of other pixels meet only at the end of a pass. Never
more than with every weight or every iact there. Of an exact mask: the words really in each PE times the density of each
input channel, the largest in each pass, and the chance of the activations as above. Against rounds counted from real
and random bits, PE by PE, both stay within 5 % (tests).
DRAM holds weights and features in CSC, also when dense: 12 bits a non-zero and an address a column. Weights have no
buffer on the chip and are read again for each pixel tile.

Assumptions. That a PE loads, multiplies and hands over by turns, one pass of weights at a time, is how a third-party
generator after the paper does it; what was read of the paper does not settle it. It was adopted, and chains confined to
whole clusters, with the latency of sparse MobileNet in sight, which is therefore no independent proof: with everything
overlapped and waiting only at the end of a pass it was 0.37 ms. A multicast costs each cluster what one copy costs.
DRAM transfers add to compute: hidden behind it, 25600 MB/s would cost next to nothing where 16 and 24 % are published.
Every layer reads from and writes to DRAM. An unknown input density is 1; the output of a ReLU has
`relu_output_density`, other outputs 1. Depthwise layers skip no zero activation, but zero weights: all thirteen
published single-PE cycles of such layers are whole multiples of P Q. Setting up a layer is free. Elementwise work and
pooling have no described unit: one operation a cycle and PE column, after the DRAM traffic; copies are traffic only. An
LSTM runs its steps one after another and reloads weights that the scratchpads cannot hold. A tile that does not fit its
scratchpad after all is not split again.
Energy. Accesses of the scratchpads (Accelergy, 45 nm taken to 65), multiplications, buffers and DRAM from tables; what
they leave out, registers and control of a working PE and the clock tree, are the two fitted numbers of the machine.

Against published numbers (`accel_models/validation/`; no parameter of time was fitted)
  one PE, four published layers   exact from the counts of each channel; from two densities 6.7, 1.6, 3.9, 5.4 % too few
  sparse MobileNet (0.5, 128)     0.586 ms, published 0.680. The densities of nine of its fourteen pointwise and linear
      layers are unknown; at the densest known ones (0.64, 0.83) it is 0.666 ms. The pairs are 45 % of the
      peak; 28 % of the time are iacts, pipeline and psums between windows, 14 % waiting, 3 % loading weights.
  sparse AlexNet                  4.32 ms, published 3.60, and 76 % too much energy: the paper's pruned network seems
      sparser than the one whose densities are at hand (its conv3 takes 3.6 times less energy than the dense one, more
      than a weight density of 0.35 can save). With 0.5 to 0.7 of them in the convolutions 2.9 to 3.4 ms.
  dense MobileNet over dense AlexNet    11.2 times the throughput, published 12.6
  25600 MB/s                      -15 and -9 % (sparse MobileNet, AlexNet), published -24 and -16 %: DRAM traffic is
      missing, or bandwidth that the paper's bus cannot use
  DRAM traffic of AlexNet's convolutions    6.8 MB, published 7.1; pruned 2.9, published 4.6
  energy, fitted to three dense layers    -2, -17, +15 %; left out: sparse MobileNet -7 %, a sparse convolution +30 %,
      a sparse linear layer -11 %
Known to be wrong too: the ways to share a layer are a list (powers of two), the paper's mapper is not published.

Sources: Chen, Yang, Emer, Sze, "Eyeriss v2", IEEE JETCAS 9(2) 2019, arXiv:1807.07928 (architecture, row-stationary
plus, CSC PE); github SingularityKChen/dl_accelerator, ProcessingElement.scala and PECluster.scala (third-party: states
of a PE, adder shared with the psum chain, weights broadcast along a row); Wu et al., "Sparseloop", MICRO 2022, artifact
(single-PE cycles, masks, energy).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from accel_models.family import Family
from accel_models.mapping import Steps, choose
from accel_models.placement import Placement
from accel_models.registry import family
from accel_models.sparse.csc_pe import column_words
from accel_models.sparse.eie import channel_density
from accel_models.sparse.row_stationary_plus import TINY, Nest, Room, Splits, Tiles, cut, mappings, pick
from accel_models.spec import Count, Fraction, Frozen, HardwareSpec
from workloads.columns import Columns
from workloads.errors import ConfigError
from workloads.graph import OP_CODES, Op
from workloads.order_statistics import largest_normal

PORTS = ("iact_glb", "psum_glb", "weight_noc", "dram")
IACT_COLUMN = 16  # channels that share an address in the stored iacts
TIE = 1e-7  # of two splits that a port binds alike, the one that computes faster
BLOCK_ROWS = 512  # mapped at once: (splits, rows) arrays stay in a core's level-2 cache


@dataclass(frozen=True)
class Pass:
    """Cycles of one pass, float64 (splits, rows), or (rows,) once chosen.

    Attributes:
        load: filling the weight scratchpad of a PE. start: that and the first window's iacts.
        work: multiplying, in the average PE. waiting: what PEs wait for one another. between: rounds' new iacts,
        pipeline and psums on their way out.
    """

    load: np.ndarray
    start: np.ndarray
    work: np.ndarray
    waiting: np.ndarray
    between: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        return self.start + self.work + self.between

    @property
    def slowest(self) -> np.ndarray:
        return self.mean + self.waiting

    def pick(self, best: np.ndarray) -> Pass:
        """The chosen split of each row."""
        return Pass(*(pick(x, best) for x in (self.load, self.start, self.work, self.waiting, self.between)))


@dataclass(frozen=True)
class Mapped:
    """Rows that multiply with the split chosen for each; arrays are (rows,).

    Attributes:
        best: index of the split. pairs: multiplications of non-zeros. totals: bytes of the layer through each port.
    """

    best: np.ndarray
    nest: Nest
    tiles: Tiles
    cycles: Pass
    pairs: np.ndarray
    totals: list[np.ndarray]

    @property
    def active_pes(self) -> np.ndarray:
        """PEs that have work in a full pass."""
        return self.tiles.chains * self.tiles.filters * self.tiles.places


@family("eyeriss_v2")
class EyerissV2(Family):
    """Compressed sparse PEs in clusters; the memories must be those of `PORTS`, in this order."""

    class Parameters(Frozen):
        """A grid of clusters, each a grid of PEs; widths in bits, scratchpads of one PE in words."""

        cluster_rows: Count
        cluster_columns: Count
        pe_rows: Count
        pe_columns: Count
        simd_width: Count
        pipeline_stages: Count
        data_bits: Count
        count_bits: Count
        iact_address_bits: Count
        weight_address_bits: Count
        psum_bits: Count
        iact_spad_words: Count
        weight_spad_words: Count
        psum_spad_words: Count
        relu_output_density: Fraction

    components = ("mac", "iact_spad", "weight_spad", "weight_address", "psum_spad", "pe_cycle", "glb", "dram")
    precisions = (8,)
    pe_counts = (("cluster_rows", 0.05), ("cluster_columns", 0.06), ("pe_rows", 0.05), ("pe_columns", 0.0))
    granularities = ("weight", "channel")

    def __init__(self, spec: HardwareSpec) -> None:
        if spec.ports != PORTS:
            raise ConfigError(f"memories: {', '.join(spec.ports)}; family 'eyeriss_v2' needs {', '.join(PORTS)}")
        if spec.parameters.simd_width not in (1, 2):
            raise ConfigError(f"parameters.simd_width: {spec.parameters.simd_width}, must be 1 or 2")
        super().__init__(spec)

    def derived_peak(self) -> Mapping[int, float]:
        return {8: float(self._pes * self.spec.parameters.simd_width)}

    def sees_input_zeros(self) -> bool:
        return True

    def map(self, rows: Columns, placement: Placement) -> Steps:
        names = self._splits.names
        steps = Steps.empty(("pass",), names, len(rows), len(PORTS), len(self.components))
        steps["kernel"][:] = len(names) - 1
        multiplies = np.flatnonzero(rows.is_mac)
        for start in range(0, len(multiplies), BLOCK_ROWS):
            at = multiplies[start : start + BLOCK_ROWS]
            self._multiply(steps, rows.take(at), at)
        moves = np.flatnonzero(rows.is_vector | rows.is_move)
        if len(moves):
            steps["kernel"][moves] = len(names) - 2
            self._move(steps, rows.take(moves), moves)
        return Steps(**steps)

    def facts(self, rows: Columns, placement: Placement) -> Mapping[str, np.ndarray]:
        """`pairs`: multiplications of non-zeros; the rest of layers that multiply, 0 elsewhere.

        `active_pes` in a full pass; cycles of all passes: `weight_load_cycles`, `processing_cycles` (multiplying, in
        the average PE), `waiting_cycles` (for the busiest PE), `handover_cycles` (iacts in, pipeline, psums out).
        """
        names = ("pairs", "active_pes", "weight_load", "processing", "waiting", "handover")
        facts = np.zeros((len(names), len(rows)))
        if len(at := np.flatnonzero(rows.is_mac)):
            found = self._mapped(rows.take(at))
            cycles, passes = found.cycles, found.tiles.passes
            each = (cycles.load, cycles.work, cycles.waiting, cycles.start - cycles.load + cycles.between)
            facts[:, at] = (found.pairs, found.active_pes, *(part * passes for part in each))
        return dict(zip((*names[:2], *(f"{name}_cycles" for name in names[2:])), facts, strict=True))

    def mappings_tried(self) -> int:
        return len(self._splits.all)

    def channel_multiple(self) -> int:
        """Columns of PEs times SIMD lanes (8 x 2 = 16, also the channels of an iact scratchpad).

        Dense layers of 1..256 channels cost 1 to 6 % above the best price per channel at multiples of 16, 7 to 17 % at
        any count.
        """
        numbers = self.spec.parameters
        return int(numbers.cluster_columns * numbers.pe_columns * numbers.simd_width)

    @property
    def _splits(self) -> Splits:
        numbers = self.spec.parameters
        return mappings(numbers.cluster_rows, numbers.cluster_columns, numbers.pe_rows, numbers.pe_columns)

    @property
    def _clusters(self) -> int:
        return int(self.spec.parameters.cluster_rows * self.spec.parameters.cluster_columns)

    @property
    def _pes(self) -> int:
        return int(self._clusters * self.spec.parameters.pe_rows * self.spec.parameters.pe_columns)

    def _port_bits(self, memory: str) -> float:
        """Bits a cycle through one router: into a PE, or the PEs of a row that share what they get."""
        bandwidth = self.spec.memory(memory).bandwidth_bytes_per_cycle
        return float(bandwidth * 8 / (self._clusters * self.spec.parameters.pe_rows))

    # ---- layers that multiply ---------------------------------------------------------------------------------------

    def _multiply(self, steps: dict[str, np.ndarray], rows: Columns, at: np.ndarray) -> None:
        """Fill `steps` at the rows `at` for layers that multiply."""
        found = self._mapped(rows)
        passes = found.tiles.passes
        steps["kernel"][at] = found.best
        steps["tiles"][at, 0] = passes
        steps["floor_cycles"][at, 0] = found.pairs / (self._pes * self.spec.parameters.simd_width * passes)
        steps["mean_cycles"][at, 0] = found.cycles.mean
        steps["slowest_cycles"][at, 0] = found.cycles.slowest
        steps["port_bytes"][at, 0] = np.stack(found.totals, axis=1) / passes[:, None]
        steps["accesses"][at] = self._accesses(found)

    def _mapped(self, rows: Columns) -> Mapped:
        """Try every split on rows that multiply, keep the fastest, and count exact masks on it."""
        nest, numbers = self._nest(rows), self.spec.parameters
        words = column_words(nest.weight_density, numbers.psum_spad_words, numbers.simd_width)
        tiles = cut(nest, self._splits, self._room, words)
        cycles = self._pass(nest, tiles)
        totals = self._traffic(nest, tiles, cycles)
        best = choose(self._cost(tiles.passes, cycles.slowest, totals))
        tiles, cycles, totals = tiles.pick(best), cycles.pick(best), [pick(x, best) for x in totals]
        pairs = nest.weights * nest.weight_density * nest.iact_density * nest.pixels * nest.repeats
        for i, sparsity in enumerate(rows.sparsity):
            if sparsity is not None and sparsity.is_exact:
                per_pixel, cycles.work[i], cycles.waiting[i] = self._exact_work(rows, i, nest, tiles)
                pairs[i] = per_pixel * nest.pixels[i] * nest.repeats[i]
        return Mapped(best, nest, tiles, cycles, pairs, totals)

    @property
    def _room(self) -> Room:
        numbers = self.spec.parameters
        buffered = (self.spec.memory("psum_glb").size_bytes or np.inf) * 8 / numbers.psum_bits
        return Room(
            numbers.iact_spad_words, numbers.weight_spad_words, numbers.psum_spad_words, numbers.simd_width, buffered
        )

    def _nest(self, rows: Columns) -> Nest:
        """Every multiplying op as groups x (K x C x R x S) over pixels, one after another `repeats` times."""
        is_conv, is_matmul, is_lstm = (rows.op == OP_CODES[op] for op in (Op.CONV, Op.MATMUL, Op.LSTM))
        is_depthwise = is_conv & (rows.groups > 1) & (rows.groups == rows.c)
        groups = np.where(is_matmul, rows.n, rows.groups).astype(float)
        each = np.where(is_matmul, 1.0, groups)  # the channels of a row are of all groups, of a matmul of one
        pixels = np.where(rows.op == OP_CODES[Op.CONV_TRANSPOSE], rows.in_h * rows.in_w, rows.p * rows.q).astype(float)
        k, c, r, s = rows.k / each, np.floor(rows.c / each), rows.r.astype(float), rows.s.astype(float)
        taps = np.minimum(s, self.spec.parameters.iact_spad_words)
        is_relu = (rows.activation == 1) | (rows.activation == 2)
        psum_bits = self.spec.parameters.psum_bits
        return Nest(
            groups=groups,
            k=k,
            c=c,
            units=r * np.ceil(s / taps),
            taps=taps,
            slide=np.minimum(np.where(is_conv, rows.stride_w, 1), taps),
            columns=c * r * s,
            weights=groups * k * c * r * s,
            pixels=np.where(is_matmul, pixels, np.where(is_lstm, rows.n, rows.n * pixels)),
            repeats=np.where(is_lstm, pixels, 1.0),
            weight_density=rows.weight_density,
            iact_density=np.where(is_depthwise, 1.0, rows.input_density),
            iact_variance=np.where(is_depthwise, 0.0, rows.input_density_variance),
            halo=np.maximum(rows.r - rows.stride_h, 0) / rows.in_h,
            kernel_rows=r,
            iact_bytes=self._stored(rows.input_elements, rows.input_density),
            oact_bytes=self._stored(rows.output_elements, self._output_density(is_relu, 1.0)),
            psum_bytes=rows.output_elements * psum_bits / 8,
            bias_bytes=rows.bias * rows.k * psum_bits / 8,
            iact_bits=8 * self._stored(np.ones(len(rows)), rows.input_density),
        )

    def _output_density(self, is_relu: np.ndarray, otherwise: np.ndarray | float) -> np.ndarray:
        return np.where(is_relu, np.minimum(self.spec.parameters.relu_output_density, otherwise), otherwise)

    def _stored(self, elements: np.ndarray, density: np.ndarray) -> np.ndarray:
        """Bytes of a feature map in CSC: an entry a non-zero, an address a column of up to 16 channels."""
        numbers = self.spec.parameters
        entry = density * (numbers.data_bits + numbers.count_bits)
        return np.asarray(elements * (entry + numbers.iact_address_bits / IACT_COLUMN) / 8)

    def _pass(self, nest: Nest, tiles: Tiles) -> Pass:
        """Cycles of one pass of every split, (splits, rows)."""
        numbers, port = self.spec.parameters, self._port_bits("weight_noc")
        entry = nest.weight_density * (numbers.data_bits + numbers.count_bits) / port
        load = tiles.n * (tiles.m * entry + numbers.weight_address_bits / port)
        slide = tiles.c * nest.slide
        iact = nest.iact_bits / self._port_bits("iact_glb")
        work = tiles.n * tiles.words * nest.iact_density  # of one window
        rounds = np.ceil(tiles.pixels / tiles.windows)
        return Pass(
            load=load,
            start=load + (tiles.n - slide) * iact,
            work=tiles.pixels * work,
            waiting=tiles.pixels * self._waiting(nest, tiles, work),
            between=tiles.pixels * (slide * iact + tiles.full) + rounds * numbers.pipeline_stages,
        )

    def _waiting(self, nest: Nest, tiles: Tiles, work: np.ndarray) -> np.ndarray:
        """Cycles a window by which the busiest PE is behind the average one, expected from densities."""
        d, a = np.maximum(nest.weight_density, TINY), np.maximum(nest.iact_density, TINY)
        reach = largest_normal(self._pes)[0]
        iacts = np.maximum(1 / a - 1 - nest.iact_variance / a**2, 0)
        uneven = iacts / tiles.windows
        weights = (1 / d - 1) / (tiles.m * tiles.n)
        apart = weights * (1 + uneven)
        uneven = uneven / tiles.n
        if nest.iact_variance.any():
            left = np.maximum(nest.c - tiles.c, 0) / np.maximum(nest.c - 1, 1)  # c of C channels, drawn without return
            uneven = uneven + nest.iact_variance / a**2 / tiles.c * left
        chains, across, both = reach[tiles.chains], reach[tiles.sharing], reach[tiles.chains * tiles.sharing]
        late = np.sqrt(chains**2 * uneven + (both - across) ** 2 * apart) + across * np.sqrt(apart)
        drift = reach[tiles.places] * np.sqrt(iacts / (tiles.n * tiles.pixels))
        slowest = work * (1 + late + drift)
        no_zero_iact = tiles.n * tiles.words * (1 + both * np.sqrt(weights))
        no_zero_weight = tiles.n * tiles.full * np.minimum(a * (1 + chains * np.sqrt(uneven) + drift), 1)
        return np.maximum(np.minimum(slowest, np.minimum(no_zero_iact, no_zero_weight)) - work, 0)

    def _traffic(self, nest: Nest, tiles: Tiles, cycles: Pass) -> list[np.ndarray]:
        """Bytes of the whole layer through each port, a copy for every cluster that gets one."""
        numbers, buffer = self.spec.parameters, self.spec.memory("iact_glb").size_bytes or np.inf
        entries = nest.weights * nest.weight_density * (numbers.data_bits + numbers.count_bits) / 8
        weights = entries + tiles.blocks * (nest.columns * numbers.weight_address_bits / 8)
        halo = np.minimum(1 + (tiles.pixel_tiles - 1) * nest.halo, nest.kernel_rows)
        fits = nest.iact_bytes <= buffer * tiles.pixel_tiles  # else read again for each round over output channels
        iacts = nest.iact_bytes * halo * np.where(fits, 1, tiles.group_rounds)
        streams = tiles.chains * tiles.places * (tiles.filters / np.minimum(tiles.apart, tiles.sharing))
        window = tiles.c * (nest.slide * nest.iact_bits / 8)
        into_rows = cycles.load * (tiles.apart * self.spec.memory("weight_noc").bandwidth_bytes_per_cycle)
        return [
            streams * window * tiles.pixels * tiles.passes + iacts,
            nest.psum_bytes * (2 * tiles.c_rounds - 1),
            into_rows * (tiles.k_rounds * tiles.c_rounds * tiles.reloads),
            weights * tiles.reloads + iacts + nest.oact_bytes + nest.bias_bytes,
        ]

    def _cost(self, passes: np.ndarray, slowest: np.ndarray, totals: list[np.ndarray]) -> np.ndarray:
        """Cycles of each split, what `timeline.closed_form` will make of the chosen one."""
        serial: np.ndarray | float = 0.0
        beside: np.ndarray | float = 0.0
        for memory, total in zip(self.spec.memories, totals, strict=True):
            if memory.overlap == "serial":
                serial = serial + total / memory.bandwidth_bytes_per_cycle
            else:
                beside = np.maximum(beside, total / memory.bandwidth_bytes_per_cycle)
        compute = passes * slowest
        return np.maximum(compute + serial, beside) + TIE * compute

    def _exact_work(self, rows: Columns, i: int, nest: Nest, tiles: Tiles) -> tuple[float, float, float]:
        """Pairs a pixel, mean work and waiting of a pass of row i, from its mask and the density of each channel."""
        sparsity = rows.sparsity[i]
        assert sparsity is not None
        groups, m, c, taps = (int(x[i]) for x in (nest.groups, tiles.m, tiles.c, nest.taps))
        shape = (int(tiles.k_rounds[i]), int(tiles.k[i]), int(tiles.c_rounds[i]), int(tiles.chain[i]))
        mask = sparsity.mask().reshape(groups, -1, sparsity.c, sparsity.r, sparsity.s)
        counts = np.add.reduceat(mask, np.arange(0, mask.shape[1], m), axis=1, dtype=np.int32)
        words = -(-counts // self.spec.parameters.simd_width)
        density = np.ones(groups * sparsity.c) if rows.is_depthwise[i] else channel_density(rows, i)
        a = density.reshape(groups, 1, sparsity.c, 1, 1)
        shared = np.broadcast_to(words.mean(axis=1, keepdims=True) ** 2, words.shape)  # by PEs that see the same iacts
        work, most, alike, apart = (
            _by_pass(values, c, taps, shape)
            for values in (words * a, words, shared * (a - a * a), (words**2 - shared) * (a - a * a))
        )
        present = np.maximum(np.count_nonzero(_by_pass(np.ones_like(words), c, taps, shape), axis=1), 1)
        chains, places = int(tiles.chains[i]), int(tiles.places[i])
        sharing = int(tiles.sharing[i])
        reach = largest_normal(self._pes)[0]
        row, single = (np.maximum(x.sum(axis=1), 0) / present / tiles.windows[i] for x in (alike, apart))
        late = np.sqrt(reach[chains] ** 2 * row + (reach[chains * sharing] - reach[sharing]) ** 2 * single)
        late += reach[sharing] * np.sqrt(single)
        pixels, mean = float(tiles.pixels[i]), work.sum(axis=1) / present
        drift = reach[places] * np.sqrt(row * tiles.windows[i] / pixels)
        slowest = mean + np.hypot(work.max(axis=1) - mean, late) + drift
        slowest = np.minimum(slowest, np.maximum(most.max(axis=1), mean))
        return float((counts * a).sum()), float(mean.mean()) * pixels, float((slowest - mean).mean()) * pixels

    def _accesses(self, found: Mapped) -> np.ndarray:
        """Units of each energy component, (rows, components)."""
        nest, tiles, pairs = found.nest, found.tiles, found.pairs
        iact_glb, psum_glb, weight_noc, dram = found.totals
        bits = self.spec.parameters.data_bits + self.spec.parameters.count_bits
        lookups = nest.pixels * nest.repeats * nest.iact_density * nest.columns * tiles.blocks
        filled = weight_noc * 8 / bits * self.spec.parameters.pe_columns / tiles.apart  # a port's word into each PE
        iacts = lookups * (1 + 1 / nest.taps)  # read by each column, written once for all taps
        busy = found.cycles.work * tiles.passes * found.active_pes
        return np.stack([pairs, iacts, pairs + filled, lookups, 2 * pairs, busy, iact_glb + psum_glb, dram], axis=1)

    # ---- layers that do not -----------------------------------------------------------------------------------------

    def _move(self, steps: dict[str, np.ndarray], rows: Columns, at: np.ndarray) -> None:
        """Fill `steps` at the rows `at` for elementwise work, pooling and copies: one pass through the GLB."""
        numbers = self.spec.parameters
        is_relu = (rows.activation == 1) | (rows.activation == 2)
        density = self._output_density(is_relu, np.where(rows.is_move, rows.input_density, 1.0))
        moved = (
            self._stored(rows.input_elements, rows.input_density)
            + self._stored(rows.other_elements, np.ones(len(rows)))
            + self._stored(rows.output_elements, density)
        )
        window = np.where(rows.is_op("max_pool", "avg_pool"), rows.r * rows.s, 1)
        operations = np.where(rows.is_vector, np.maximum(rows.output_elements * window, rows.input_elements), 0)
        tiles = np.maximum(np.ceil(moved / (self.spec.memory("iact_glb").size_bytes or np.inf)), 1)
        cycles = operations / (numbers.cluster_rows * numbers.cluster_columns * numbers.pe_columns) / tiles
        steps["tiles"][at, 0] = tiles
        for name in ("floor_cycles", "mean_cycles", "slowest_cycles"):
            steps[name][at, 0] = cycles
        for port in ("iact_glb", "dram"):
            steps["port_bytes"][at, 0, PORTS.index(port)] = moved / tiles
        for component, units in (("psum_spad", 2.0 * operations), ("glb", 2 * moved), ("dram", moved)):
            steps["accesses"][at, self.components.index(component)] = units


def _by_pass(values: np.ndarray, c: int, taps: int, shape: tuple[int, int, int, int]) -> np.ndarray:
    """Sums over each PE's columns, (passes, PEs of a pass), from values (groups, blocks, C, R, S); idle PEs get 0.

    Args:
        shape: (k rounds, k, c rounds, chain); kernel rows of a channel block come one after another in a chain.
    """
    sums = np.add.reduceat(values, np.arange(0, values.shape[4], taps), axis=4)
    sums = np.add.reduceat(sums, np.arange(0, values.shape[2], c), axis=2).transpose(0, 1, 2, 4, 3)
    k_rounds, k, c_rounds, chain = shape
    padded = np.zeros((k_rounds * k, c_rounds * chain))
    flat = sums.reshape(sums.shape[0] * sums.shape[1], -1)
    padded[: flat.shape[0], : flat.shape[1]] = flat
    return padded.reshape(shape).transpose(0, 2, 1, 3).reshape(k_rounds * c_rounds, k * chain)
