"""How Eyeriss v2 shares a layer among its PEs: the splits that a mapper tries and the tiles that each one gives.

Letters: N K C P Q R S as in `workloads.graph`; d weight density. A PE holds the weights of m output channels x c input
channels x `taps` positions of one kernel row, n = c taps columns in all, and slides over E output pixels. The PEs share
a layer three ways (`Split`):

    chain   PEs of a column add their partial sums up: channel blocks and kernel rows; whole clusters, since only
            the top PE of a cluster's column hands partial sums on
    k       PEs hold other output channels (or groups)
    p       PEs take other pixels

The three weight routers of a cluster feed one row of PEs each, so the PEs of a row that take other pixels get their
weights in one broadcast; those that hold other output channels (`apart` of them) are filled one after another.
What limits a tile: n <= words of the iact scratchpad; m <= those of the psum scratchpad; the weights of a PE, counted
after compression with three deviations to spare, <= those of the weight scratchpad. Three shapes use the room: `deep`
(as many input channels as fit), `tall` (as many output channels), `even` (half as many: the psum scratchpad then holds
two windows). Tiles are then made even, so that no round is nearly empty. Partial sums that wait for more input
channels lie in the psum buffer, which bounds E.

Source: Chen et al., IEEE JETCAS 9(2) 2019, arXiv:1807.07928 (row-stationary plus); the row broadcast of weights and the
column chain of psums also in the third-party generator github SingularityKChen/dl_accelerator, PECluster.scala.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

TINY = 1e-9  # stands for a density of zero in a denominator
SHAPES = ("deep", "even", "tall")
SPARE_DEVIATIONS = 3.0  # of the non-zeros of a tile, left free so that hardly any tile overflows its scratchpad


@dataclass(frozen=True)
class Split:
    """One way to share a layer, and the shape of its tiles (index into `SHAPES`)."""

    shape: int
    chain: int
    k: int
    p: int

    def __str__(self) -> str:
        return f"chain {self.chain} x k {self.k} x p {self.p}, {SHAPES[self.shape]} tiles"


@dataclass(frozen=True)
class Splits:
    """All splits that are tried, with their distinct factors, so that each factor's arithmetic is done once.

    Attributes:
        all: the splits. pe_columns: PEs of a cluster that share a weight router.
        chains, ks, ps: distinct factors, float64 (factors, 1).
        by_k, by_chain, by_p: for every split, where its (shape, k), (shape, chain) and p stand, int64 (splits,).
    """

    all: tuple[Split, ...]
    pe_columns: int

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of the splits, and of layers that do not multiply."""
        return (*map(str, self.all), "elementwise", "none")

    @cached_property
    def chains(self) -> np.ndarray:
        return _column(sorted({split.chain for split in self.all}))

    @cached_property
    def ks(self) -> np.ndarray:
        return _column(sorted({split.k for split in self.all}))

    @cached_property
    def ps(self) -> np.ndarray:
        return _column(sorted({split.p for split in self.all}))

    @cached_property
    def by_k(self) -> np.ndarray:
        return np.array([x.shape * len(self.ks) + np.searchsorted(self.ks[:, 0], x.k) for x in self.all])

    @cached_property
    def by_chain(self) -> np.ndarray:
        return np.array([x.shape * len(self.chains) + np.searchsorted(self.chains[:, 0], x.chain) for x in self.all])

    @cached_property
    def by_p(self) -> np.ndarray:
        return np.array([np.searchsorted(self.ps[:, 0], x.p) for x in self.all])

    @cached_property
    def chain(self) -> np.ndarray:
        """float64 (splits, 1)."""
        return _column([split.chain for split in self.all])

    @cached_property
    def k(self) -> np.ndarray:
        """float64 (splits, 1)."""
        return _column([split.k for split in self.all])

    @cached_property
    def p(self) -> np.ndarray:
        """float64 (splits, 1)."""
        return _column([split.p for split in self.all])

    @cached_property
    def apart(self) -> np.ndarray:
        """PEs of a row of a cluster that hold different weights, float64 (splits, 1): pixels go along rows first."""
        return _column([self.pe_columns // math.gcd(split.p, self.pe_columns) for split in self.all])


def _column(values: Sequence[float]) -> np.ndarray:
    return np.array(values, float)[:, None]


@cache
def mappings(cluster_rows: int, cluster_columns: int, pe_rows: int, pe_columns: int) -> Splits:
    """The splits that are tried: chains of one, two, four ... clusters or all; k a power of two or all the rest.

    >>> [str(split) for split in mappings(1, 1, 1, 2).all][:3]
    ['chain 1 x k 1 x p 2, deep tiles', 'chain 1 x k 1 x p 2, even tiles', 'chain 1 x k 1 x p 2, tall tiles']
    """
    rows, columns = cluster_rows * pe_rows, cluster_columns * pe_columns
    chains = {rows} | {n for i in range(rows.bit_length()) if rows % (n := pe_rows << i) == 0}
    found = []
    for chain in sorted(chains):
        rest = rows // chain * columns
        powers = {1 << i for i in range(rest.bit_length()) if rest % (1 << i) == 0}
        found += [Split(shape, chain, k, rest // k) for k in sorted(powers | {rest}) for shape in range(len(SHAPES))]
    return Splits(tuple(found), pe_columns)


@dataclass(frozen=True)
class Nest:
    """Rows that multiply, float64 (rows,).

    Attributes:
        groups, k, c: groups, and output and input channels of one. units: (kernel row, tap block) pairs of a channel.
        taps: of a kernel row that a PE holds. slide: of these, new ones with each output pixel.
        columns: c R S, CSC columns of a group. weights: of all groups.
        pixels: outputs that share the weights; repeats: time steps that wait for one another.
        weight_density, iact_density: that the PEs see (1 for activations that are not skipped). iact_variance: of the
        density over channels.
        halo: rows that two neighbouring pixel tiles both read, over input height. kernel_rows: R.
        iact_bytes, oact_bytes, psum_bytes, bias_bytes: stored sizes of the whole layer. iact_bits: of one stored iact.
    """

    groups: np.ndarray
    k: np.ndarray
    c: np.ndarray
    units: np.ndarray
    taps: np.ndarray
    slide: np.ndarray
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
    iact_bits: np.ndarray


@dataclass(frozen=True)
class Room:
    """What a PE and the psum buffer hold, in words; `lanes`: weights that a PE multiplies at once."""

    iacts: int
    weights: int
    psums: int
    lanes: int
    buffered_psums: float


@dataclass(frozen=True)
class Tiles:
    """What a PE holds in a pass and how many passes there are, float64 (splits, rows), or (rows,) once chosen.

    Attributes:
        chain, k, p: of the split. apart: PEs of a row with different weights.
        m, c: output and input channels of a PE. n: its columns. pixels: outputs it slides over in a pass.
        windows: outputs of a round, whose psums and iacts the scratchpads hold at once.
        words: of an average column. full: those of a column without zeros.
        blocks: of m output channels in all groups. k_rounds, c_rounds, pixel_tiles: rounds along each dim;
        group_rounds: along the output channels of one group. reloads: times that each weight is read.
        passes: product of the rounds and the repeats.
        chains, filters, places: of the chain, k and p PEs of the split, those that have work in a full pass; int64.
        sharing: of the filters, those of one group, whose PEs see the same iacts; int64.
    """

    chain: np.ndarray
    k: np.ndarray
    p: np.ndarray
    apart: np.ndarray
    m: np.ndarray
    c: np.ndarray
    n: np.ndarray
    pixels: np.ndarray
    windows: np.ndarray
    words: np.ndarray
    full: np.ndarray
    blocks: np.ndarray
    k_rounds: np.ndarray
    group_rounds: np.ndarray
    c_rounds: np.ndarray
    pixel_tiles: np.ndarray
    reloads: np.ndarray
    passes: np.ndarray
    chains: np.ndarray
    filters: np.ndarray
    places: np.ndarray
    sharing: np.ndarray

    def pick(self, best: np.ndarray) -> Tiles:
        """The chosen split of each row."""
        return Tiles(**{f.name: pick(getattr(self, f.name), best) for f in dataclasses.fields(self)})


def pick(values: np.ndarray, best: np.ndarray) -> np.ndarray:
    """The chosen mapping's value of each row, from (splits, rows) or, equal for all rows, (splits, 1)."""
    if values.shape[1] == 1:
        return np.asarray(values[best, 0])
    return np.asarray(values[best, np.arange(len(best))])


def cut(nest: Nest, splits: Splits, room: Room, words_of: np.ndarray) -> Tiles:
    """Every split with the largest even tiles that the scratchpads and the psum buffer allow.

    Args:
        words_of: of an average column of m weights, (room.psums + 1, rows).
    """
    most_k, most_c = _shapes(nest, room)
    by_k, by_chain, by_p = splits.by_k, splits.by_chain, splits.by_p
    # Along output channels, for every (shape, k).
    slots = np.maximum(1, np.floor(splits.ks / nest.groups))  # PEs that share the output channels of one group
    group_rounds = np.ceil(nest.k / (most_k[:, None] * slots))
    m = np.ceil(nest.k / (slots * group_rounds))
    blocks = nest.groups * np.ceil(nest.k / m)
    k_rounds, filters = _flat(np.ceil(blocks / splits.ks)), np.minimum(blocks, splits.ks)
    sharing, filters = (_flat(x).astype(np.intp) for x in (np.minimum(filters, slots), filters))
    m, blocks, group_rounds = (_flat(x) for x in (m, blocks, group_rounds))
    words = words_of[m.astype(np.intp), np.arange(len(nest.k))]
    # Along input channels and kernel rows, for every (shape, chain).
    c_rounds = np.ceil(np.ceil(nest.c / most_c)[:, None] * nest.units / splits.chains)
    c = np.ceil(nest.c / np.floor(c_rounds * splits.chains / nest.units))
    n = c * nest.taps
    rounds_of = 1 + np.floor((room.iacts - n) / (c * nest.slide))  # windows whose iacts have room at once
    chains = np.minimum(splits.chains, np.ceil(nest.c / c) * nest.units).astype(np.intp)
    c, n, c_rounds, rounds_of, chains = (_flat(x)[by_chain] for x in (c, n, c_rounds, rounds_of, chains))
    # Along pixels: as many as have room in the psum buffer while they wait for more input channels.
    each = np.ceil(nest.pixels / splits.ps)[by_p]
    windows = np.minimum(np.floor(room.psums / m)[by_k], rounds_of)
    full = np.ceil(m / room.lanes)[by_k]
    m, k_rounds = m[by_k], k_rounds[by_k]
    waiting = np.maximum(np.floor(room.buffered_psums / (splits.p * splits.k) / m), 1)
    pixel_tiles = np.where(c_rounds > 1, np.ceil(each / waiting), 1.0)
    pixels = np.ceil(each / pixel_tiles)
    # A recurrent layer whose weights all have room keeps them from step to step.
    again = np.where(k_rounds * c_rounds > 1, nest.repeats, 1.0) if (nest.repeats > 1).any() else 1.0
    return Tiles(
        chain=splits.chain, k=splits.k, p=splits.p, apart=splits.apart,
        m=m, c=c, n=n,
        pixels=pixels,
        windows=np.minimum(windows, pixels),
        words=words[by_k],
        full=full,
        blocks=blocks[by_k],
        k_rounds=k_rounds, group_rounds=group_rounds[by_k], c_rounds=c_rounds, pixel_tiles=pixel_tiles,
        reloads=pixel_tiles * again,
        passes=k_rounds * c_rounds * pixel_tiles * nest.repeats,
        chains=chains,
        filters=filters[by_k],
        places=np.minimum(splits.ps, nest.pixels).astype(np.intp)[by_p],
        sharing=sharing[by_k],
    )  # fmt: skip


def _shapes(nest: Nest, room: Room) -> tuple[np.ndarray, np.ndarray]:
    """Most output and input channels of a PE for each shape of tiles, (shapes, rows)."""
    d = np.maximum(nest.weight_density, TINY)
    spare = SPARE_DEVIATIONS * np.sqrt(room.weights * (1 - d))
    capacity = np.maximum(room.weights, (room.weights - spare) / d)  # weights whose non-zeros fit
    deepest = np.minimum(np.floor(room.iacts / nest.taps), nest.c)
    wanted = _column([1, max(room.psums // 2, 1), room.psums])
    most_c = np.clip(np.floor(capacity / (wanted * nest.taps)), 1, deepest)
    limit = _column([room.psums, max(room.psums // 2, 1), room.psums])
    most_k = np.clip(np.floor(capacity / (most_c * nest.taps)), 1, limit)
    return np.where(most_k > room.lanes, most_k - most_k % room.lanes, most_k), most_c


def _flat(values: np.ndarray) -> np.ndarray:
    """(shapes, factors, rows) to (shapes factors, rows)."""
    return values.reshape(-1, values.shape[2])
