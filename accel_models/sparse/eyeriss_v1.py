"""Eyeriss v1: an array of PEs that keeps a row of the filter in each PE and slides it along a row of the feature map.

Letters: N images, K filters and C channels of one group (G groups), R x S kernel, U x V stride, E x F outputs; a padded
row of the ifmap has W = (F - 1) V + S words of 16 bits. A **PE set** is R x e PEs that make e rows of outputs, psums
climbing through its R rows; e > 14 takes several bands of 14 columns. A **pass** fills the scratchpads with filters
once and runs n images through the array:

    p filters x q channels in a PE,  r sets of other channels (stacked: psums climb on),  t sets of other filters
    passes     = G ceil(N / n) ceil(E / e) ceil(K / m) ceil(m / (p t)) ceil(C / (q r))
    ramp-up    = p t q r R S / 4   filters, four words a cycle
               + q r h S           first window of the h = (e - 1) U + R ifmap rows, one word a cycle
    stream     = max( p q S F n,  p t e F n / 4,  q r h (W n - S) )       MACs; psums each way; the rest of the ifmaps
    processing = passes (ramp-up + stream)
    latency    = max( processing + (ifmaps + ofmaps) / link,  all DRAM bytes / link )

The global buffer (GLB) holds the psums of m filters and the ifmaps of one pass, in whole banks of 4 KB:

    ceil(2 m n e F / 4096) + ceil(2 n q r h W / 4096) <= 25 banks
    q S <= 12,  p q S <= 224,  p <= 24 words of scratchpad;  p t q r R S <= 4096 words of filter prefetch
    GLB bytes  = 2 (2 G K E F N ceil(C / (q r)) + G C rows W N ceil(K / m) ceil(m / (p t)))        rows = sum of h
    DRAM bytes = filters ceil(E / e) ceil(N / n) + ifmaps ceil(K / m) rows / H + ofmaps            H = (E - 1) U + R

Psums move and lie four filters to a 64-bit word: p and m count in fours there. Feature maps are run-length coded where
that is shorter, three pairs of a 5-bit run and a 16-bit value in 64 bits: 8/3 bytes for each of the expected
d / (1 - (1 - d)^32) pairs an element of density d (a run longer than 31 costs a pair).

Mapper. It knows shapes only: DRAM words are counted without coding. Fillings of the GLB (n, e, m) are 9 heights e by
parts of the batch that halve it, each with the most filters m that fit. The latency of each is that of the best of
three r. Of those at most a tenth slower than the fastest, the one of least DRAM words is taken; then p, q, r, t of the
shortest processing among 72. With the tenth all five published mappings of AlexNet are found, as with any share from 7
to 50 %; conv3's is what its published GLB traffic and PEs need, (q, r, t) = (3, 2, 2), not what is printed.

Other rules that were tried (over 32 heights e and 81 ways to fill the PEs), with how many of AlexNet's mappings they
find, and how many maps, of 8 to 112 rows and columns and 64, 128, 256 or 512 channels, take longer than a larger map
(few should: a map can be run as a larger one, with zeros around it):

    least DRAM words, then time            5 of 5    183 of 420 maps, by 213 % at worst
    least words within 5, 10, 20 %, time   5, 4, 4   164, 109, 62     115, 92, 88 %
    least energy of DRAM and GLB words     5         94               50 %
    DRAM words times latency               5         45               25 %
    least latency                          1         8                9 %
    within 5, 10, 25 %, least words        3, 5, 5   25, 47, 85       13, 13, 25 %
    this one, of fewer mappings            5         37               14 %

What is left comes of the tenth and of whole strips, banks and passes: of random layers and heights, one in 16 takes
longer than some larger map, by 31 % at worst of 600 layers; one in 2000 longer than with twice the channels, by 1 %; a
single channel more may save 19 % of the time.

Zeros gate the multiplier and the read of the filter: energy, never cycles. Zero weights gain nothing: filters lie
plain in DRAM. Of the cycles' parts, overhead is ramp-up and idle PEs, imbalance is waiting for the psum or ifmap bus,
memory is the link.

Assumptions. Filters of the next pass arrive while this one runs, feature maps do not: the array idles. The psums of a
pass drain while the next one loads filters. One group after another: sets share ifmaps or add up psums, and groups do
neither (a depthwise layer uses one set of the array). A kernel of more than 12 rows or columns is cut into several
that count as channels, maps too wide for the GLB into pieces that count as images. Positions of a linear layer or
matmul, and the steps of an LSTM in turn, count as images of one pixel. A ReLU's output is no denser than its input,
nor than `relu_output_density`; an unknown input density is 1. Pooling and elementwise work run in the PEs (as the
authors propose for pooling), bound by the ifmap bus, one word a cycle, with transfers before and after. Copies are
transfers only. The scan chain that sets a layer up (below 0.1 ms) is left out. A strip or a batch that is not full
takes as long as a full one. Everything is read from and written to DRAM.

Energy counts multiplications that are not gated; scratchpad words (ifmap read, psum read and written each MAC, filter
read where not gated, ifmaps and filters written); words over the array's networks (filled scratchpads, psums to the
PE above); GLB words, also those that only pass through to or from DRAM; DRAM words. No clock tree, no leakage.

Known to be wrong. VGG-16 was measured at twice the predicted latency. Its mappings are not published; on large maps the
psums of a strip fill the GLB, and unless q r is large the psum bus binds. Zeros of real maps come in longer runs than
at random. docs/models/eyeriss_v1.md has the errors.

Sources: Chen, Krishna, Emer, Sze, "Eyeriss", IEEE JSSC 52(1) 2017 (chip, mapping, measurements); Chen, Emer, Sze, ISCA
2016 (row stationary, energy ratios, pooling in the PEs).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np

from accel_models.family import Family
from accel_models.mapping import Steps, ceil_div, choose
from accel_models.placement import Placement
from accel_models.registry import family
from accel_models.spec import Count, Fraction, Frozen, HardwareSpec
from workloads.columns import Columns
from workloads.errors import ConfigError

PORTS = ("glb", "fmap_link", "dram")
WORD = 2  # bytes
TINY = 1e-9  # stands for a density of zero in a denominator
SLOWER = 0.1  # than the fastest filling of the GLB: so much latency may be given for less DRAM traffic
# Rows of outputs that a set makes, before they are evened out: what fills a band of 14 columns, and whole bands.
STRIPS = (1, 2, 3, 5, 7, 14, 28, 56, 168)
PARTS = (*(2**power for power in range(12)), np.inf)  # images of a batch
STACKS = (1, 2, 3, 4, 6, 12)  # r
SHARES = (1, 2, 6)  # by what the largest r is divided while fillings of the GLB are compared
# How m filters are cut into passes: by what the sets are divided (fewer, with more filters each, may fill the words of
# the psum bus better), and passes beyond the fewest (fewer filters each may waste less).
CUTS = tuple(product((1, 2, 3, 4), (0, 1, 2)))
BLOCK_ROWS = 256  # mapped at once: (mappings, rows) arrays stay in a core's level-2 cache


@family("row_stationary")
class RowStationary(Family):
    """Row-stationary PEs that gate zeros; the memories must be those of `PORTS`, in this order.

    `dram` is the link with all its traffic; `fmap_link` is the same link while it moves feature maps, when the array
    idles.
    """

    class Parameters(Frozen):
        """Words are of 16 bits; scratchpads are those of one PE; buses carry words a cycle."""

        pe_rows: Count
        pe_columns: Count
        ifmap_spad_words: Count
        filter_spad_words: Count
        psum_spad_words: Count
        bank_bytes: Count
        filter_prefetch_words: Count
        filter_bus_words: Count
        psum_bus_words: Count
        ifmap_bus_words: Count
        run_bits: Count
        pairs_per_word: Count
        coded_word_bytes: Count
        relu_output_density: Fraction

    components = ("mac", "ifmap_spad", "filter_spad", "psum_spad", "noc", "glb", "dram")
    precisions = (16,)
    cliffs = 0.005
    pe_counts = (("pe_rows", 0.01), ("pe_columns", 0.01))
    granularities = ("channel",)

    def __init__(self, spec: HardwareSpec) -> None:
        super().__init__(spec)
        if spec.ports != PORTS:
            raise ConfigError(f"memories: {', '.join(spec.ports)}; family 'row_stationary' needs {', '.join(PORTS)}")
        if len({spec.memory(name).bandwidth_bytes_per_cycle for name in PORTS[1:]}) > 1:
            raise ConfigError("memories: fmap_link and dram are one link, their bandwidths must be equal")
        self.banks = (spec.memory("glb").size_bytes or 0) // spec.parameters.bank_bytes
        if self.banks < 8:
            raise ConfigError(
                f"memories.0.size_bytes: must hold at least 8 banks of {spec.parameters.bank_bytes} bytes"
            )

    def sees_input_zeros(self) -> bool:
        return True

    def mappings_tried(self) -> int:
        """Of a linear layer of one image, the fewest; a convolution has `STRIPS` times as many in the first part."""
        return len(SHARES) + len(STACKS) * len(CUTS)

    def map(self, rows: Columns, placement: Placement) -> Steps:
        names = (*(f"row stationary, channels over {r} sets" for r in STACKS), "word by word", "none")
        steps = Steps.empty(("pass",), names, len(rows), len(PORTS), len(self.components))
        steps["kernel"][:] = len(names) - 1
        for at, nest, tiles in self._mapped(rows):
            self._multiply(steps, at, nest, tiles)
        moves = np.flatnonzero(rows.is_vector | rows.is_move)
        if len(moves):
            steps["kernel"][moves] = len(names) - 2
            self._move(steps, rows.take(moves), moves)
        return Steps(**steps)

    def facts(self, rows: Columns, placement: Placement) -> Mapping[str, np.ndarray]:
        """PEs that work in a full pass, cycles without transfers and those of all ramp-ups, passes, and the mapping."""
        facts = {name: np.zeros(len(rows)) for name in ("active_pes", "processing_cycles", "ramp_cycles", *MAPPING)}
        for at, nest, tiles in self._mapped(rows):
            facts["active_pes"][at] = nest.r * tiles.e * tiles.r * tiles.t
            facts["processing_cycles"][at] = tiles.passes * (tiles.ramp + tiles.stream)
            facts["ramp_cycles"][at] = tiles.passes * tiles.ramp
            for name in MAPPING:
                facts[name][at] = getattr(tiles, name)
        return facts

    # ---- layers that multiply ---------------------------------------------------------------------------------------

    def _mapped(self, rows: Columns) -> Iterator[tuple[np.ndarray, Nest, Tiles]]:
        """Blocks of rows that multiply, with their mappings; maps of one pixel by themselves, they have no strips."""
        is_flat = rows.is_op("linear", "matmul", "lstm")
        for flat in (False, True):
            chosen = np.flatnonzero(rows.is_mac & (is_flat == flat))
            for start in range(0, len(chosen), BLOCK_ROWS):
                at = chosen[start : start + BLOCK_ROWS]
                nest = self._flat_nest(rows.take(at)) if flat else self._map_nest(rows.take(at))
                yield at, nest, self._tiles(nest, self._buffered(nest))

    def _map_nest(self, rows: Columns) -> Nest:
        """Convolutions; kernels and maps too large for the array or the GLB are cut."""
        numbers = self.spec.parameters
        is_transposed = rows.is_op("conv_transpose")
        e, f = np.where(is_transposed, [rows.in_h, rows.in_w], [rows.p, rows.q]).astype(float)
        stride_h, stride_w = np.where(is_transposed, 1, [rows.stride_h, rows.stride_w])
        row_cuts, column_cuts = ceil_div(rows.r, numbers.pe_rows), ceil_div(rows.s, numbers.ifmap_spad_words)
        r, s = ceil_div(rows.r, row_cuts), ceil_div(rows.s, column_cuts)
        words = self.banks * numbers.bank_bytes / WORD
        pieces = np.ceil(np.maximum(4 * r * ((f - 1) * stride_w + s), 32 * f) / words)
        width = (np.ceil(f / pieces) - 1) * stride_w + s
        overlap = np.maximum(rows.r - stride_h, 0)
        height = e * np.minimum(stride_h, rows.r) + overlap
        groups = rows.groups.astype(float)
        return Nest(
            groups=groups,
            n=rows.n * pieces,
            k=rows.k / groups,
            c=np.floor(rows.c / groups) * row_cuts * column_cuts,
            r=r.astype(float),
            s=s.astype(float),
            e=e,
            f=np.ceil(f / pieces),
            step=np.minimum(stride_h, r),
            overlap=np.maximum(r - stride_h, 0),
            width=width,
            halo=overlap / height,
            repeats=np.ones(len(rows)),
            weights=rows.weight_elements.astype(float),
            fmaps=rows.n * rows.c * height * width * pieces,
            **self._common(rows),
        )

    def _flat_nest(self, rows: Columns) -> Nest:
        """Linear layers, matmuls (a group a batch) and LSTMs (steps in turn): as many images of one pixel."""
        is_matmul, is_lstm = rows.is_op("matmul"), rows.is_op("lstm")
        pixels, one = (rows.p * rows.q).astype(float), np.ones(len(rows))
        repeats = np.where(is_lstm, pixels, one)
        return Nest(
            groups=np.where(is_matmul, rows.n, one),
            n=np.where(is_matmul, pixels, rows.n * pixels / repeats),
            k=rows.k.astype(float),
            c=rows.c.astype(float),
            **dict.fromkeys(("r", "s", "e", "f", "step", "width"), one),
            **dict.fromkeys(("overlap", "halo"), 0 * one),
            repeats=repeats,
            weights=np.where(is_matmul, rows.other_elements, rows.weight_elements).astype(float),
            fmaps=rows.input_elements / repeats,
            **self._common(rows),
        )

    def _common(self, rows: Columns) -> dict[str, np.ndarray]:
        """Fields that follow from the row alone."""
        return {
            "macs": rows.macs,
            "density": rows.input_density,
            "ifmap_bytes": self._stored(rows.input_elements, rows.input_density),
            "ofmap_bytes": self._stored(rows.output_elements, self._output_density(rows, np.ones(len(rows)))),
            "bias_bytes": rows.bias * rows.k * float(WORD),
        }

    def _stored(self, elements: np.ndarray, density: np.ndarray) -> np.ndarray:
        """Bytes of a feature map in DRAM, run-length coded where that is shorter."""
        numbers = self.spec.parameters
        longest = 2.0**numbers.run_bits
        d = np.maximum(density, TINY)
        pairs = d / -np.expm1(longest * np.log1p(-np.minimum(d, 1 - TINY)))
        return np.asarray(elements * np.minimum(WORD, pairs * numbers.coded_word_bytes / numbers.pairs_per_word))

    def _output_density(self, rows: Columns, otherwise: np.ndarray) -> np.ndarray:
        is_relu = (rows.activation == 1) | (rows.activation == 2)
        known = np.minimum(self.spec.parameters.relu_output_density, rows.input_density)
        return np.where(is_relu, known, otherwise)

    def _buffered(self, nest: Nest) -> Buffered:
        """What the GLB holds: n, e and m of least DRAM words, of those nearly as fast as the fastest."""
        tried = self._fillings(nest)
        again = 1 + nest.halo * (tried.strips - 1)
        fmaps = nest.fmaps * again * tried.rounds + nest.groups * nest.k * nest.e * nest.f * nest.n
        words = fmaps + nest.weights * tried.strips * tried.batches
        link = self.spec.memory("dram").bandwidth_bytes_per_cycle / WORD
        latency = np.maximum(
            self._least_processing(nest, tried) + nest.repeats * fmaps / link, nest.repeats * words / link
        )
        best = choose(np.where(latency <= latency.min(axis=0) * (1 + SLOWER), words, np.inf))
        return Buffered(**{name: _pick(array, best) for name, array in vars(tried).items()})

    def _fillings(self, nest: Nest) -> Buffered:
        """Heights e by parts n of a batch, evened out, (fillings, rows); rounds without end where there is no room."""
        numbers = self.spec.parameters
        parts = PARTS[: int(np.searchsorted(PARTS, nest.n.max())) + 1]
        table = np.array(list(product(STRIPS if nest.e.max() > 1 else (1,), parts)), float)
        most_rows = np.minimum(numbers.pe_columns * np.floor(numbers.pe_rows / nest.r), nest.e)
        strips = np.ceil(nest.e / np.minimum(table[:, :1], most_rows))
        e = np.ceil(nest.e / strips)
        n = np.ceil(nest.n / np.minimum(table[:, 1:], nest.n))
        most = self._room(n * (e * nest.step + nest.overlap) * nest.width) / (n * e * nest.f)
        most = np.floor(most / numbers.psum_bus_words) * numbers.psum_bus_words
        rounds = np.where(most >= 1, np.ceil(nest.k / np.maximum(most, 1)), np.inf)
        return Buffered(n, e, np.maximum(np.ceil(nest.k / rounds), 1), np.ceil(nest.n / n), strips, rounds)

    def _least_processing(self, nest: Nest, held: Buffered) -> np.ndarray:
        """Cycles without transfers of every filling, (fillings, rows), by the best of a few r."""
        channels, high = self._limits(nest, held)
        most = np.minimum(np.minimum(channels, high), nest.c)
        r = np.maximum(np.floor(most / np.array(SHARES, float)[:, None, None]), 1)
        stacks = self._stacks(nest, held, channels, high, r)
        tiles = self._passes(nest, held, stacks, stacks.t, np.ceil(held.m / (stacks.p * stacks.t)))
        return np.asarray((tiles.passes * (tiles.ramp + tiles.stream)).min(axis=0))

    def _room(self, words: np.ndarray) -> np.ndarray:
        """Words of the GLB in the banks that so many words leave free."""
        bank_words = self.spec.parameters.bank_bytes / WORD
        return np.asarray((self.banks - np.ceil(words / bank_words)) * bank_words)

    def _lanes(self, filters: np.ndarray) -> np.ndarray:
        """Psums of so many filters in whole words of the psum bus."""
        lanes = self.spec.parameters.psum_bus_words
        return np.asarray(np.ceil(filters / lanes) * lanes)

    def _tiles(self, nest: Nest, held: Buffered) -> Tiles:
        """What the PEs hold: p, q, r and t of the shortest processing."""
        stacks = self._stacks(nest, held, *self._limits(nest, held), np.array(STACKS, float)[:, None])
        cuts = np.array(CUTS, float)[:, :, None, None]
        sets = np.maximum(np.floor(stacks.t / cuts[:, 0]), 1)
        k_rounds = np.ceil(held.m / (stacks.p * sets)) + cuts[:, 1]  # (cuts, stacks, rows)
        tried = self._passes(nest, held, stacks, sets, k_rounds)
        cycles = np.where(stacks.fits, tried.passes * (tried.ramp + tried.stream), np.inf)
        best = choose(cycles.reshape(-1, len(nest.k)))
        chosen = Stacks(**{name: _pick(array, best % len(STACKS)) for name, array in vars(stacks).items()})
        sets, k_rounds = (_pick(array.reshape(-1, len(nest.k)), best) for array in (sets, k_rounds))
        return self._passes(nest, held, chosen, sets, k_rounds)

    def _limits(self, nest: Nest, held: Buffered) -> tuple[np.ndarray, np.ndarray]:
        """Channels of ifmaps that fit beside the psums, and sets on top of one another."""
        numbers = self.spec.parameters
        ifmaps = held.n * (held.e * nest.step + nest.overlap) * nest.width  # words of a channel
        channels = np.floor(self._room(self._lanes(held.m) * held.n * held.e * nest.f) / ifmaps)
        bands = np.ceil(held.e / numbers.pe_columns)
        return channels, np.floor(np.floor(numbers.pe_rows / nest.r) / bands)

    def _stacks(self, nest: Nest, held: Buffered, channels: np.ndarray, high: np.ndarray, r: np.ndarray) -> Stacks:
        """For every r, the most channels, filters and sets that scratchpads, GLB and array allow."""
        numbers, lanes = self.spec.parameters, self.spec.parameters.psum_bus_words
        wide = np.maximum(np.floor(numbers.pe_columns / held.e), 1)  # sets beside one another
        q = np.floor(np.minimum(channels / r, numbers.ifmap_spad_words / nest.s))
        fits = (q >= 1) & (r <= np.minimum(high, nest.c))
        c_rounds = np.ceil(nest.c / (np.maximum(q, 1) * r))
        q = np.ceil(nest.c / (c_rounds * r))
        taps = q * r * nest.r * nest.s
        prefetched = numbers.filter_prefetch_words / taps  # filters
        t = np.minimum(np.minimum(np.floor(high / r) * wide, np.floor(prefetched / lanes)), held.m)
        t = np.maximum(t, 1)
        p = np.minimum(np.minimum(numbers.filter_spad_words / (q * nest.s), prefetched / t), numbers.psum_spad_words)
        p = np.maximum(np.floor(p / lanes), 1) * lanes
        return Stacks(np.broadcast_to(r, q.shape), q, p, t, c_rounds, taps, fits)

    def _passes(self, nest: Nest, held: Buffered, stacks: Stacks, sets: np.ndarray, k_rounds: np.ndarray) -> Tiles:
        """The mapping that cuts m filters into k_rounds passes of so many sets, with the cycles of a pass."""
        numbers, q, r = self.spec.parameters, stacks.q, stacks.r
        p = np.ceil(held.m / (k_rounds * sets))
        t = np.ceil(held.m / (k_rounds * p))
        outputs = held.n * nest.f  # that a PE makes, of each filter
        window = q * r * (held.e * nest.step + nest.overlap)  # words of a column of the ifmap rows
        macs = p * q * nest.s * outputs
        psums = self._lanes(p) * t * held.e * outputs / numbers.psum_bus_words
        ifmaps = window * (nest.width * held.n - nest.s) / numbers.ifmap_bus_words
        ramp = p * t * stacks.taps / numbers.filter_bus_words + window * nest.s / numbers.ifmap_bus_words
        fillings = nest.groups * nest.repeats * held.batches * held.strips * held.rounds
        return Tiles(
            **vars(held), p=p, q=q, r=r, t=t, k_rounds=k_rounds, c_rounds=stacks.c_rounds,
            passes=fillings * k_rounds * stacks.c_rounds, ramp=ramp, macs=macs,
            stream=np.maximum(np.maximum(macs, psums), ifmaps),
        )  # fmt: skip

    def _multiply(self, steps: dict[str, np.ndarray], at: np.ndarray, nest: Nest, tiles: Tiles) -> None:
        """Fill `steps` at the rows `at`."""
        numbers, total = self.spec.parameters, tiles.passes
        read = nest.c * (nest.e * nest.step + tiles.strips * nest.overlap) * nest.width * nest.n  # ifmap words, once
        psums = 2 * self._lanes(nest.k) * nest.e * nest.f * nest.n * tiles.c_rounds
        glb = WORD * nest.groups * nest.repeats * (psums + read * tiles.rounds * tiles.k_rounds)
        refetch = tiles.rounds * (1 + nest.halo * (tiles.strips - 1))
        fmaps = nest.ifmap_bytes * refetch + nest.ofmap_bytes
        filters = WORD * nest.weights * tiles.strips * tiles.batches * nest.repeats + nest.bias_bytes
        moved = np.stack([glb, fmaps, fmaps + filters], axis=1)
        steps["kernel"][at] = np.searchsorted(STACKS, tiles.r)
        steps["tiles"][at, 0] = total
        steps["floor_cycles"][at, 0] = nest.macs / (numbers.pe_rows * numbers.pe_columns * total)
        steps["mean_cycles"][at, 0] = tiles.ramp + tiles.macs
        steps["slowest_cycles"][at, 0] = tiles.ramp + tiles.stream
        steps["port_bytes"][at, 0] = moved / total[:, None]
        filled = nest.fmaps * nest.repeats * refetch  # ifmap words written into the GLB
        steps["accesses"][at] = self._accesses(nest, tiles, (glb + 2 * filters) / WORD + filled, moved[:, 2] / WORD)

    def _accesses(self, nest: Nest, tiles: Tiles, glb: np.ndarray, dram: np.ndarray) -> np.ndarray:
        """Units of each energy component, (rows, components): multiplications, then words."""
        multiplied = nest.macs * nest.density
        pe_passes = tiles.passes * nest.r * tiles.e * tiles.r * tiles.t
        ifmaps = pe_passes * tiles.q * nest.width * tiles.n  # words that enter a scratchpad
        filters = pe_passes * tiles.q * tiles.p * nest.s
        psums = pe_passes * tiles.p * nest.f * tiles.n  # words that climb to the PE above, or to the GLB
        spads = (nest.macs + ifmaps, multiplied + filters, 2 * nest.macs)
        return np.stack([multiplied, *spads, ifmaps + filters + psums, glb, dram], axis=1)

    # ---- layers that do not -----------------------------------------------------------------------------------------

    def _move(self, steps: dict[str, np.ndarray], rows: Columns, at: np.ndarray) -> None:
        """Fill `steps` at the rows `at` for pooling, elementwise work and copies."""
        numbers, plain = self.spec.parameters, np.ones(len(rows))
        inputs = (rows.input_elements + rows.other_elements).astype(float)
        window = np.where(rows.is_op("max_pool", "avg_pool"), rows.r * rows.s, 1)
        operations = np.where(rows.is_vector, np.maximum(rows.output_elements * window, rows.input_elements), 0.0)
        floor = operations / (numbers.pe_rows * numbers.pe_columns)
        buses = np.maximum(inputs / numbers.ifmap_bus_words, rows.output_elements / numbers.psum_bus_words)
        fmaps = (
            self._stored(rows.input_elements, rows.input_density)
            + self._stored(rows.other_elements, plain)
            + self._stored(
                rows.output_elements, self._output_density(rows, np.where(rows.is_move, rows.input_density, 1))
            )
        )
        words = inputs + rows.output_elements
        tiles = np.maximum(np.ceil(words * WORD / self.spec.memory("glb").size_bytes), 1)
        steps["tiles"][at, 0] = tiles
        steps["floor_cycles"][at, 0] = floor / tiles
        for name in ("mean_cycles", "slowest_cycles"):
            steps[name][at, 0] = np.where(rows.is_vector, np.maximum(floor, buses), 0) / tiles
        steps["port_bytes"][at, 0] = np.stack([words * WORD, fmaps, fmaps], axis=1) / tiles[:, None]
        accesses = dict.fromkeys(("mac", "ifmap_spad"), operations) | {
            "psum_spad": 2 * operations,
            "noc": words * rows.is_vector,
            "glb": 2 * words,
            "dram": fmaps / WORD,
        }
        for component, units in accesses.items():
            steps["accesses"][at, self.components.index(component)] = units


@dataclass(frozen=True)
class Nest:
    """Rows that multiply, float64 (rows,): groups of n images, k filters of c channels, after cuts.

    Attributes:
        groups, n, k, c, r, s, e, f: the loop nest; c counts the cuts of a kernel, n those of a map too wide.
        step, overlap: rows that an output row adds, and that two strips both read, in the (cut) kernel. width: W.
        halo: overlap of the whole kernel over the padded height. repeats: times that all of it is done in turn.
        weights: elements of the filters. fmaps: padded words of the ifmaps, of one repeat.
        macs: nominal multiplications. density: of the ifmaps. ifmap_bytes, ofmap_bytes, bias_bytes: stored in DRAM.
    """

    groups: np.ndarray
    n: np.ndarray
    k: np.ndarray
    c: np.ndarray
    r: np.ndarray
    s: np.ndarray
    e: np.ndarray
    f: np.ndarray
    step: np.ndarray
    overlap: np.ndarray
    width: np.ndarray
    halo: np.ndarray
    repeats: np.ndarray
    weights: np.ndarray
    fmaps: np.ndarray
    macs: np.ndarray
    density: np.ndarray
    ifmap_bytes: np.ndarray
    ofmap_bytes: np.ndarray
    bias_bytes: np.ndarray


@dataclass(frozen=True)
class Buffered:
    """What the GLB holds at once, n images, e rows of outputs and m filters, and how often it is filled along each."""

    n: np.ndarray
    e: np.ndarray
    m: np.ndarray
    batches: np.ndarray
    strips: np.ndarray
    rounds: np.ndarray


@dataclass(frozen=True)
class Stacks:
    """What the array allows for every r, float64 (stacks, rows).

    Attributes:
        r: sets of other channels. q: channels of a PE, evened out. p, t: the most filters of a PE, and sets of them.
        c_rounds: passes along the channels. taps: q r R S, words of a filter in a pass. fits: whether r is possible.
    """

    r: np.ndarray
    q: np.ndarray
    p: np.ndarray
    t: np.ndarray
    c_rounds: np.ndarray
    taps: np.ndarray
    fits: np.ndarray


@dataclass(frozen=True)
class Tiles(Buffered):
    """The mapping of every row, float64 (rows,), in the letters of the module docstring.

    Attributes:
        p, q, r, t: held in the array. k_rounds, c_rounds: passes along the filters and the channels of one filling.
        passes: of the layer. ramp, macs, stream: cycles of one.
    """

    p: np.ndarray
    q: np.ndarray
    r: np.ndarray
    t: np.ndarray
    k_rounds: np.ndarray
    c_rounds: np.ndarray
    passes: np.ndarray
    ramp: np.ndarray
    macs: np.ndarray
    stream: np.ndarray


MAPPING = ("n", "e", "m", "p", "q", "r", "t", "passes")


def _pick(values: np.ndarray, best: np.ndarray) -> np.ndarray:
    """The chosen mapping of each row; `values` is (mappings, rows)."""
    return np.asarray(values[best, np.arange(len(best))])
