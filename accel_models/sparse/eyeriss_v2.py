"""Eyeriss v2: an array of small PEs that multiply compressed weights with compressed activations.

Letters: N K C P Q R S as in `workloads.graph`; d weight density, a input density. A **pass** fills every PE once: a PE
holds the weights of m output channels x c input channels x one kernel row of S, and slides over E output pixels. The
PEs share a layer three ways (`Split`): a `chain` of PEs adds its partial sums up (channel blocks and kernel rows), `k`
PEs hold other output channels or groups, `p` PEs take other pixels.

    pairs     = multiplications of a non-zero weight with a non-zero activation
    one PE    : pairs cycles, with one of its two lanes                              (`pe_cycles`, exact)
    words     = sum over the c S columns of a PE of ceil(non-zero weights of the column / 2)
    work      = E a words                                              cycles of a pass in the average PE
    slowest   = that of the busiest PE; a pass takes slowest + pipeline stages
    cycles    = passes (slowest + pipeline) + DRAM bytes / DRAM bandwidth, or the time of a busier on-chip port,
                whichever is longer; the smallest over all splits and two shapes of tiles

SIMD. A 24-bit word of the weight scratchpad holds two entries (weight, count of zeros), successive non-zeros of one CSC
column (assumed: each entry has its own count); an odd one is padded with a zero entry. j weights take ceil(j / 2)
cycles: of random ones, (m d + (1 - (1 - 2d)^m) / 2) / 2. One output channel (depthwise) uses one lane.
Imbalance. Of a density: work is a sum over n = c S columns of (binomial iacts) x (binomial weights), so

    slowest = work (1 + sqrt(M(chain k)^2 W + M(chain p)^2 A + M(chain k p)^2 n A W + M(chain)^2 V))
    W = (1 - d) / (d m n),   A = (a - a^2 - v) / (a^2 E n),   V = v / (a^2 c) (1 - (c - 1) / (C - 1))

with M(u) the expected largest of u standard normal numbers (`workloads.order_statistics`), since PEs of other pixels
hold the same weights and PEs of other filters see the same iacts, and v the variance of the measured iact densities
over channels, of which PEs of one chain hold others; never above that with every weight or every iact
there. Of an exact mask: the words really in each PE times the density of each input channel, largest in each pass, and
the chance of the activations as above. The two agree within 4 % on random masks (tests), except where a PE holds a
handful of weights.
Tiles. c S <= 16 iacts; weights of a PE <= 192, counted after compression with three deviations to spare; m <= 32 psums.
Psums that wait for more channels lie in the GLB, which bounds E. Weights have no GLB: they are read again for each
pixel tile, or iacts for each round over output channels unless they stay in the GLB, whichever is less.
DRAM holds weights and features in CSC, also when dense: 12 bits a non-zero and an address a column.

Assumptions. A multicast costs what one copy costs. Weights flow through the 24-bit weight routers while the PEs work,
DRAM transfers add to compute: hidden behind it, 25600 MB/s would cost 0.3 and 1 % where 24 and 16 % are published.
Every layer reads from and writes to DRAM. An unknown input density is 1; the output of a ReLU has
`relu_output_density`, other outputs 1. Depthwise layers skip no zero activation, but zero weights: all thirteen
published single-PE cycles of such layers are whole multiples of P Q. On the array that gains nothing at their densities
(0.84 to 1), because some PE has a full kernel row. Elementwise work and pooling have no described unit: one operation a
cycle and PE column, after the DRAM traffic; copies are traffic only. An LSTM runs its steps one after another and
reloads weights that the scratchpads cannot hold. A tile that does not fit its scratchpad after all is not split again.

Against published numbers (unlimited DRAM bandwidth; tests hold these figures). No parameter was fitted, but DRAM beside
compute or not, and CSC for dense data, were decided with the last two DRAM comparisons in sight: they prove little.
  four layers with published masks, one PE      exact; from two densities 6.7, 1.6, 3.9 and 5.4 % too few
  dense MobileNet over dense AlexNet            13.6 times the throughput, published 12.6
  sparse AlexNet (densities of Han et al.)      278 inferences/s; 277 follow from the published 1470.6 and 5.3
  sparse MobileNet (0.5, 128)                   2720 inferences/s, published 1470.6. Nine of its densities are unknown
      and set to the mean of the four known; were all nine layers dense, still 1681. Some cost of small layers is
      missing (set-up, waiting along a psum chain, depthwise), and nothing published tells which.
  25600 MB/s                                    -21 and -7 % (sparse MobileNet, AlexNet), published -24 and -16 %
  DRAM traffic of AlexNet's convolutions        6.8 and 3.3 MB at 25600 MB/s (dense, sparse), published 7.1 and 4.6
  energy of the chip                            1.7 pJ a pair; 8 to 19 follow from the published inf/J and GOPS/W. The
      access energies are an Accelergy model at 45 nm (the design is 65 nm) without clock tree, control and routers.
      Use energy for ratios only.
Known to be wrong too: real masks are less even than random ones (10 to 22 % slower; give the mask). Tile shapes are a
short list: a channel more, or a density 0.02 higher, may cost up to 3 % less; so may a smaller scratchpad, up to 6 %.

Sources: Chen, Yang, Emer, Sze, "Eyeriss v2", IEEE JETCAS 9(2) 2019, arXiv:1807.07928 (architecture, row-stationary
plus, CSC PE); Wu et al., "Sparseloop", MICRO 2022, artifact (single-PE cycles, masks, energy); Han et al., NIPS 2015.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike

from accel_models.family import Family
from accel_models.mapping import Steps, choose
from accel_models.placement import Placement
from accel_models.registry import family
from accel_models.spec import Count, Fraction, Frozen, HardwareSpec
from workloads.columns import Columns
from workloads.errors import ConfigError, ShapeError
from workloads.order_statistics import expected_maximum_binomial
from workloads.sparsity import WeightSparsity

PORTS = ("iact_glb", "psum_glb", "weight_noc", "dram")
TINY = 1e-9  # stands for a density of zero in a denominator
IACT_COLUMN = 16  # channels that share an address in the stored iacts
TIE = 1e-7  # of two splits that a port binds alike, the one that computes faster
BLOCK_ROWS = 512  # mapped at once: (splits, rows) arrays stay in a core's level-2 cache


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

    components = ("mac", "iact_spad", "weight_spad", "weight_address", "psum_spad", "glb", "dram")
    precisions = (8,)
    granularities = ("weight", "channel")

    def __init__(self, spec: HardwareSpec) -> None:
        if spec.ports != PORTS:
            raise ConfigError(f"memories: {', '.join(spec.ports)}; family 'eyeriss_v2' needs {', '.join(PORTS)}")
        if spec.parameters.simd_width not in (1, 2):
            raise ConfigError(f"parameters.simd_width: {spec.parameters.simd_width}, must be 1 or 2")
        super().__init__(spec)

    def map(self, rows: Columns, placement: Placement) -> Steps:
        numbers = self.spec.parameters
        splits = mappings(numbers.cluster_rows, numbers.pe_rows, numbers.cluster_columns * numbers.pe_columns)
        names = (*(str(split) for split in splits), "elementwise", "none")
        steps = Steps.empty(("pass",), names, len(rows), len(PORTS), len(self.components))
        steps["kernel"][:] = len(splits) + 1
        multiplies = np.flatnonzero(rows.is_mac)
        for start in range(0, len(multiplies), BLOCK_ROWS):
            at = multiplies[start : start + BLOCK_ROWS]
            self._multiply(steps, rows.take(at), at, splits)
        moves = np.flatnonzero(rows.is_vector | rows.is_move)
        if len(moves):
            steps["kernel"][moves] = len(splits)
            self._move(steps, rows.take(moves), moves)
        return Steps(**steps)

    def channel_multiple(self) -> int:
        """Columns of PEs times SIMD lanes (8 x 2 = 16, also the channels of an iact scratchpad).

        Dense layers of 1..256 channels cost 2 % above the best price per channel at multiples of 16, 7 % at any count.
        """
        numbers = self.spec.parameters
        return int(numbers.cluster_columns * numbers.pe_columns * numbers.simd_width)

    # ---- layers that multiply ---------------------------------------------------------------------------------------

    def _multiply(self, steps: dict[str, np.ndarray], rows: Columns, at: np.ndarray, splits: tuple[Split, ...]) -> None:
        """Fill `steps` at the rows `at` for layers that multiply."""
        nest = self._nest(rows)
        tiles = self._tiles(nest, splits)
        work, slowest = self._work(nest, tiles)
        totals = self._traffic(nest, tiles)
        best = choose(self._cost(tiles.passes, slowest, totals))
        chosen, (work, slowest, *totals) = tiles.pick(best), (_pick(x, best) for x in (work, slowest, *totals))
        pairs = nest.weights * nest.weight_density * nest.iact_density * nest.pixels * nest.repeats
        for i, sparsity in enumerate(rows.sparsity):
            if sparsity is not None and sparsity.is_exact:
                per_pixel, work[i], slowest[i] = self._exact_work(rows, i, nest, chosen)
                pairs[i] = per_pixel * nest.pixels[i] * nest.repeats[i]
        numbers, passes = self.spec.parameters, chosen.passes
        steps["kernel"][at] = best
        steps["tiles"][at, 0] = passes
        steps["floor_cycles"][at, 0] = pairs / (self._pes * numbers.simd_width * passes)
        steps["mean_cycles"][at, 0] = work + numbers.pipeline_stages
        steps["slowest_cycles"][at, 0] = slowest + numbers.pipeline_stages
        steps["port_bytes"][at, 0] = np.stack(totals, axis=1) / passes[:, None]
        steps["accesses"][at] = self._accesses(nest, chosen, pairs, totals)

    @property
    def _pes(self) -> int:
        numbers = self.spec.parameters
        return int(numbers.cluster_rows * numbers.cluster_columns * numbers.pe_rows * numbers.pe_columns)

    def _nest(self, rows: Columns) -> Nest:
        """Every multiplying op as groups x (K x C x R x S) over pixels, one after another `repeats` times."""
        is_matmul, is_lstm = rows.is_op("matmul"), rows.is_op("lstm")
        groups = np.where(is_matmul, rows.n, rows.groups).astype(float)
        each = np.where(is_matmul, 1.0, groups)  # the channels of a row are of all groups, of a matmul of one
        pixels = np.where(rows.is_op("conv_transpose"), rows.in_h * rows.in_w, rows.p * rows.q).astype(float)
        steps = np.where(is_lstm, pixels, 1.0)
        k, c, r, s = rows.k / each, np.floor(rows.c / each), rows.r.astype(float), rows.s.astype(float)
        taps = np.minimum(s, self.spec.parameters.iact_spad_words)
        is_relu = (rows.activation == 1) | (rows.activation == 2)
        return Nest(
            groups=groups,
            k=k,
            c=c,
            units=r * np.ceil(s / taps),
            taps=taps,
            columns=c * r * s,
            weights=groups * k * c * r * s,
            pixels=np.where(is_matmul, pixels, np.where(is_lstm, rows.n, rows.n * pixels)),
            repeats=steps,
            weight_density=rows.weight_density,
            iact_density=np.where(rows.is_depthwise, 1.0, rows.input_density),
            iact_variance=np.where(rows.is_depthwise, 0.0, rows.input_density_variance),
            halo=np.maximum(rows.r - rows.stride_h, 0) / rows.in_h,
            kernel_rows=r,
            iact_bytes=self._stored(rows.input_elements, rows.input_density),
            oact_bytes=self._stored(rows.output_elements, self._output_density(is_relu, 1.0)),
            psum_bytes=rows.output_elements * self.spec.parameters.psum_bits / 8,
            bias_bytes=rows.bias * rows.k * self.spec.parameters.psum_bits / 8,
        )

    def _output_density(self, is_relu: np.ndarray, otherwise: np.ndarray | float) -> np.ndarray:
        return np.where(is_relu, np.minimum(self.spec.parameters.relu_output_density, otherwise), otherwise)

    def _stored(self, elements: np.ndarray, density: np.ndarray) -> np.ndarray:
        """Bytes of a feature map in CSC: an entry a non-zero, an address a column of up to 16 channels."""
        numbers = self.spec.parameters
        entry = density * (numbers.data_bits + numbers.count_bits)
        return np.asarray(elements * (entry + numbers.iact_address_bits / IACT_COLUMN) / 8)

    def _tiles(self, nest: Nest, splits: tuple[Split, ...]) -> Tiles:
        """Every split with the largest even tiles that the scratchpads and the psum GLB allow, (splits, rows)."""
        numbers = self.spec.parameters
        table = np.array([[split.is_tall, split.chain, split.k, split.p] for split in splits], float)
        tall, chain, k, p = (table[:, i : i + 1] for i in range(4))
        d = np.maximum(nest.weight_density, TINY)
        words = numbers.weight_spad_words
        capacity = np.maximum(words, (words - 3 * np.sqrt(words * (1 - d))) / d)  # weights whose non-zeros fit
        deepest = np.minimum(np.floor(numbers.iact_spad_words / nest.taps), nest.c)
        most_k = np.clip(np.floor(capacity / (deepest * nest.taps)), 1, numbers.psum_spad_words)
        most_k = np.where(most_k > numbers.simd_width, most_k - most_k % numbers.simd_width, most_k)
        most_c = np.clip(np.floor(capacity / (numbers.psum_spad_words * nest.taps)), 1, deepest)
        most_k = np.where(tall, numbers.psum_spad_words, most_k)
        most_c = np.where(tall, most_c, deepest)
        slots = np.maximum(1, np.floor(k / nest.groups))  # PEs that share the output channels of one group
        group_rounds = np.ceil(nest.k / (most_k * slots))
        m = np.ceil(nest.k / (slots * group_rounds))
        blocks = nest.groups * np.ceil(nest.k / m)
        c_rounds = np.ceil(np.ceil(nest.c / most_c) * nest.units / chain)
        c = np.ceil(nest.c / np.floor(c_rounds * chain / nest.units))
        each = np.ceil(nest.pixels / p)
        psums = self.spec.memory("psum_glb").size_bytes or np.inf
        waiting = np.maximum(np.floor(psums * 8 / numbers.psum_bits / (p * k * m)), 1)
        pixel_tiles = np.where(c_rounds > 1, np.ceil(each / waiting), 1.0)
        return Tiles(
            chain=chain,
            k=k,
            p=p,
            m=m,
            c=c,
            pixels=np.ceil(each / pixel_tiles),
            blocks=blocks,
            k_rounds=np.ceil(blocks / k),
            group_rounds=group_rounds,
            c_rounds=c_rounds,
            pixel_tiles=pixel_tiles,
            passes=np.ceil(blocks / k) * c_rounds * pixel_tiles * nest.repeats,
            chains=np.minimum(chain, np.ceil(nest.c / c) * nest.units),
            filters=np.minimum(k, blocks),
            places=np.minimum(p, nest.pixels),
        )

    def _work(self, nest: Nest, tiles: Tiles) -> tuple[np.ndarray, np.ndarray]:
        """Cycles of one pass without its pipeline: of a PE with full tiles on average, and of the slowest."""
        d, a, lanes = nest.weight_density, nest.iact_density, self.spec.parameters.simd_width
        words = column_words(d, self.spec.parameters.psum_spad_words, lanes)[tiles.m.astype(np.intp), np.arange(len(d))]
        full = np.ceil(tiles.m / lanes)
        columns = tiles.c * nest.taps
        iacts = tiles.pixels * columns
        reach = normal_maxima(self._pes) ** 2
        by_iacts = np.maximum(a - a * a - nest.iact_variance, 0) / np.maximum(a, TINY) ** 2 / tiles.pixels / columns
        others = np.where(nest.c > 1, 1 - (tiles.c - 1) / np.maximum(nest.c - 1, 1), 0)  # c of C, drawn without return
        by_channels = nest.iact_variance / np.maximum(a, TINY) ** 2 / tiles.c * np.clip(others, 0, 1)
        by_channels = by_channels * reach[tiles.chains.astype(np.intp)]
        by_weights = (1 - d) / np.maximum(d, TINY) / tiles.m / columns
        both = by_iacts * by_weights * columns * reach[(tiles.chains * tiles.filters * tiles.places).astype(np.intp)]
        by_iacts = by_iacts * reach[(tiles.chains * tiles.places).astype(np.intp)]
        by_weights = by_weights * reach[(tiles.chains * tiles.filters).astype(np.intp)]
        work = iacts * a * words
        slowest = work * (1 + np.sqrt(by_iacts + by_weights + both + by_channels))
        slowest = np.minimum(slowest, iacts * words * (1 + np.sqrt(by_weights)))  # no more iacts than all
        iacts_at_most = np.minimum(a * (1 + np.sqrt(by_iacts + by_channels)), 1)
        slowest = np.minimum(slowest, iacts * full * iacts_at_most)  # nor weights
        return work, np.maximum(slowest, work)

    def _traffic(self, nest: Nest, tiles: Tiles) -> list[np.ndarray]:
        """Bytes of the whole layer through each port, with the cheaper of two loop orders for DRAM."""
        numbers, buffer = self.spec.parameters, self.spec.memory("iact_glb").size_bytes or np.inf
        entries = nest.weights * nest.weight_density * (numbers.data_bits + numbers.count_bits)
        weights = (entries + nest.columns * tiles.blocks * numbers.weight_address_bits) / 8
        halo = np.minimum(1 + (tiles.pixel_tiles - 1) * nest.halo, nest.kernel_rows)
        reloads = np.where(tiles.c_rounds * tiles.k_rounds > 1, tiles.pixel_tiles * nest.repeats, 1.0)
        stays = (tiles.c_rounds == 1) & (nest.repeats == 1)  # weights can wait for all pixels: output channels outside
        outside = weights + nest.iact_bytes * np.where(nest.iact_bytes <= buffer, 1, tiles.group_rounds)
        fits = nest.iact_bytes <= buffer * tiles.pixel_tiles
        inside = weights * reloads + nest.iact_bytes * halo * np.where(fits, 1, tiles.group_rounds)
        is_outside = stays & (outside <= inside)
        weight_traffic = np.where(is_outside, weights, weights * reloads)
        read = np.where(is_outside, outside, inside)
        iact_reads = nest.iact_bytes * halo * tiles.group_rounds * np.ceil(nest.units / tiles.chain)
        return [
            iact_reads + read - weight_traffic,
            nest.psum_bytes * (2 * tiles.c_rounds - 1),
            weight_traffic,
            read + nest.oact_bytes + nest.bias_bytes,
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
        compute = passes * (slowest + self.spec.parameters.pipeline_stages)
        return np.maximum(compute + serial, beside) + TIE * compute

    def _exact_work(self, rows: Columns, i: int, nest: Nest, tiles: Tiles) -> tuple[float, float, float]:
        """Pairs a pixel, mean and slowest work of a pass of row i, from its mask and the density of each channel."""
        sparsity = rows.sparsity[i]
        assert sparsity is not None
        groups, m, c, taps = (int(x[i]) for x in (nest.groups, tiles.m, tiles.c, nest.taps))
        shape = (int(tiles.k_rounds[i]), int(tiles.k[i]), int(tiles.c_rounds[i]), int(tiles.chain[i]))
        mask = sparsity.mask().reshape(groups, -1, sparsity.c, sparsity.r, sparsity.s)
        counts = np.add.reduceat(mask, np.arange(0, mask.shape[1], m), axis=1, dtype=np.int32)
        words = -(-counts // self.spec.parameters.simd_width)
        density = np.ones(groups * sparsity.c) if rows.is_depthwise[i] else _channel_density(rows, i)
        a = density.reshape(groups, 1, sparsity.c, 1, 1)
        shared = np.broadcast_to(words.mean(axis=1, keepdims=True) ** 2, words.shape)  # by PEs that see the same iacts
        work, most, alike, apart = (
            _by_pass(values, c, taps, shape)
            for values in (words * a, words, shared * (a - a * a), (words**2 - shared) * (a - a * a))
        )
        present = np.maximum(np.count_nonzero(_by_pass(np.ones_like(words), c, taps, shape), axis=1), 1)
        chains, filters, places = (int(x[i]) for x in (tiles.chains, tiles.filters, tiles.places))
        reach = normal_maxima(self._pes) ** 2
        noise = reach[chains * places] * alike + reach[chains * filters * places] * np.maximum(apart, 0)
        pixels, mean = float(tiles.pixels[i]), work.sum(axis=1) / present
        slowest = mean + np.sqrt((work.max(axis=1) - mean) ** 2 + noise.sum(axis=1) / present / pixels)
        slowest = np.minimum(slowest, np.maximum(most.max(axis=1), mean))
        return float((counts * a).sum()), float(mean.mean()) * pixels, float(slowest.mean()) * pixels

    def _accesses(self, nest: Nest, tiles: Tiles, pairs: np.ndarray, totals: list[np.ndarray]) -> np.ndarray:
        """Units of each energy component, (rows, components)."""
        iact_glb, psum_glb, weight_noc, dram = totals
        bits = self.spec.parameters.data_bits + self.spec.parameters.count_bits
        lookups = nest.pixels * nest.repeats * nest.iact_density * nest.columns * tiles.blocks
        filled = weight_noc * 8 / bits * np.minimum(tiles.p, nest.pixels)  # every PE that shares a weight stores it
        iacts = lookups * (1 + 1 / nest.taps)  # read by each column, written once for all taps
        return np.stack([pairs, iacts, pairs + filled, lookups, 2 * pairs, iact_glb + psum_glb, dram], axis=1)

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


@dataclass(frozen=True)
class Split:
    """How the PEs share a layer: `chain` along channels and kernel rows, `k` along output channels, `p` along pixels.

    `is_tall`: a PE holds as many output channels as it has psums; otherwise as many input channels as it has iacts.
    """

    is_tall: bool
    chain: int
    k: int
    p: int

    def __str__(self) -> str:
        return f"chain {self.chain} x k {self.k} x p {self.p}, {'tall' if self.is_tall else 'deep'} tiles"


@cache
def mappings(cluster_rows: int, pe_rows: int, columns: int) -> tuple[Split, ...]:
    """The splits that are tried: chains of 1, pe_rows, twice that ... and all rows; k a power of two or all the rest.

    >>> [str(split) for split in mappings(1, 1, 2)][:2]
    ['chain 1 x k 1 x p 2, deep tiles', 'chain 1 x k 1 x p 2, tall tiles']
    """
    rows = cluster_rows * pe_rows
    chains = {1, rows} | {n for i in range(rows.bit_length()) if rows % (n := pe_rows << i) == 0}
    found = []
    for chain in sorted(chains):
        rest = rows // chain * columns
        powers = {1 << i for i in range(rest.bit_length()) if rest % (1 << i) == 0}
        shapes = (False, True) if chain > 1 or rows == 1 else (False,)  # tall tiles without a chain never win
        found += [Split(tall, chain, k, rest // k) for k in sorted(powers | {rest}) for tall in shapes]
    return tuple(found)


@dataclass(frozen=True)
class Nest:
    """Rows that multiply, float64 (rows,).

    Attributes:
        groups, k, c: groups, and output and input channels of one. units: (kernel row, tap block) pairs of a channel.
        taps: of a kernel row that a PE holds. columns: c R S, CSC columns of a group. weights: of all groups.
        pixels: outputs that share the weights; repeats: time steps that wait for one another.
        weight_density, iact_density: that the PEs see (1 for activations that are not skipped). iact_variance: of the
        density over channels.
        halo: rows that two neighbouring pixel tiles both read, over input height. kernel_rows: R.
        iact_bytes, oact_bytes, psum_bytes, bias_bytes: stored sizes of the whole layer.
    """

    groups: np.ndarray
    k: np.ndarray
    c: np.ndarray
    units: np.ndarray
    taps: np.ndarray
    columns: np.ndarray
    weights: np.ndarray
    pixels: np.ndarray
    repeats: np.ndarray
    weight_density: np.ndarray
    iact_density: np.ndarray
    iact_variance: np.ndarray
    halo: np.ndarray
    kernel_rows: np.ndarray
    iact_bytes: np.ndarray
    oact_bytes: np.ndarray
    psum_bytes: np.ndarray
    bias_bytes: np.ndarray


@dataclass(frozen=True)
class Tiles:
    """What a PE holds in a pass and how many passes there are, float64 (splits, rows), or (rows,) once chosen.

    Attributes:
        chain, k, p: of the split. m, c: output and input channels of a PE. pixels: outputs it slides over in a pass.
        blocks: of m output channels in all groups. k_rounds, c_rounds, pixel_tiles: rounds along each dim;
        group_rounds: along the output channels of one group. passes: their product, times the repeats.
        chains, filters, places: of the chain, k and p PEs of the split, those that have work in a full pass.
    """

    chain: np.ndarray
    k: np.ndarray
    p: np.ndarray
    m: np.ndarray
    c: np.ndarray
    pixels: np.ndarray
    blocks: np.ndarray
    k_rounds: np.ndarray
    group_rounds: np.ndarray
    c_rounds: np.ndarray
    pixel_tiles: np.ndarray
    passes: np.ndarray
    chains: np.ndarray
    filters: np.ndarray
    places: np.ndarray

    def pick(self, best: np.ndarray) -> Tiles:
        """The chosen split of each row."""
        return Tiles(**{f.name: _pick(getattr(self, f.name), best) for f in dataclasses.fields(self)})


def _pick(values: np.ndarray, best: np.ndarray) -> np.ndarray:
    if values.shape[1] == 1:
        return np.asarray(values[best, 0])
    return np.asarray(values[best, np.arange(len(best))])


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


def _channel_density(rows: Columns, i: int) -> np.ndarray:
    """Fraction of non-zeros of each input channel, (C,); the mean where the channels are not known one by one."""
    known = rows.channel_density[i] if rows.channel_density else None
    return known if known is not None and len(known) == rows.c[i] else np.full(int(rows.c[i]), rows.input_density[i])


def column_words(density: np.ndarray, most: int, lanes: int) -> np.ndarray:
    """Expected words of a column of 0, 1 ... `most` random weights, (most + 1, rows); odd columns are padded.

    >>> column_words(np.array([0.5, 1.0]), 3, 2).tolist()  # three weights of density 1 take two words
    [[0.0, 0.0], [0.5, 1.0], [0.75, 1.0], [1.0, 2.0]]
    """
    m = np.arange(most + 1.0)[:, None]
    odd = np.cumprod(np.broadcast_to(1 - 2 * density, (most + 1, len(density))), axis=0)
    odd = (1 - np.concatenate([np.ones((1, len(density))), odd[:-1]])) / 2
    return np.asarray((m * density + odd) / 2 if lanes == 2 else m * density)


@cache
def normal_maxima(most: int) -> np.ndarray:
    """Expected largest of 0, 1 ... `most` standard normal numbers, (most + 1,), from those of very large binomials.

    >>> normal_maxima(2).round(4).tolist()  # of two: 1 / sqrt(pi)
    [0.0, 0.0, 0.5642]
    """
    trials = 4e6
    largest = expected_maximum_binomial(trials, 0.5, np.maximum(np.arange(most + 1), 1))
    return np.asarray(np.maximum(largest - trials / 2, 0) / np.sqrt(trials / 4))


# ---- one PE ---------------------------------------------------------------------------------------------------------


def pe_cycles(weight: WeightSparsity | ArrayLike, activation_counts: ArrayLike) -> int:
    """Cycles of a single PE that does a whole 1x1 or linear layer, one multiplication a cycle: its non-zero pairs.

        sum over input channels c of (non-zero weights that read c) * (non-zero activations of c)

    Exact from the counts alone, because every weight of a channel meets every activation of it.

    Args:
        weight: an exact mask, or its non-zeros per input channel, (C,).
        activation_counts: non-zero activations of each input channel over all pixels, (C,).

    Raises:
        ShapeError: not one count a channel, a kernel larger than 1x1, or a density in place of a mask.

    Source: Sparseloop artifact (Wu et al., MICRO 2022), cycles of the Eyeriss v2 authors' simulator, SIMD off.

    >>> pe_cycles([2, 1], [3, 0])  # two weights meet three activations
    6
    """
    if isinstance(weight, WeightSparsity):
        if not weight.is_exact or weight.r * weight.s > 1:
            raise ShapeError(f"{weight!r}: pairs are exact only of a 1x1 mask; see pe_cycles_estimate for densities")
        weight = weight.input_channel_counts
    weights, activations = np.asarray(weight), np.asarray(activation_counts)
    if weights.ndim != 1 or weights.shape != activations.shape:
        raise ShapeError(f"counts of shapes {weights.shape} and {activations.shape}, needs one a channel in both")
    return int(weights.astype(np.int64) @ activations.astype(np.int64))


def pe_cycles_estimate(macs: float, weight_density: float, activation_density: float) -> float:
    """The same from two densities, which is biased: zeros of weights and activations are correlated by channel.

    On the four published layers it is 6.7, 1.6, 3.9 and 5.4 % too low.
    """
    return macs * weight_density * activation_density
