"""Where the feature maps of an Ethos-U network live, and which layers run interleaved so that they need not be whole.

With a small SRAM beside a DRAM, the compiler *cascades*: layers that follow one another run a *stripe* of rows at a
time, so that only a rolling buffer of a few rows lives between them, in SRAM:

    chain           a layer, and those after it of which none fits by itself (input + output > SRAM), as long as each
                    has one reader, the next layer, and the buffers of single rows fit
    stripe          of the last layer: as many rows, up to half of them, as let buffers and weights fit;
                    of one before: the stripe of its reader times the reader's stride
    rolling buffer  rows = stripe + rows that the reader needs, in multiples of the latter; 16-channel bricks
    cascade         the chain; cut wherever the buffers of two rows overflow the SRAM, and not more often for more rows

Blocks are cut from stripes: a short stripe leaves flat blocks, which read halos, weights and scales more often. What a
cascade reads and leaves, and the network's interface, are in DRAM. Other feature maps stay in SRAM as long as
everything alive fits beside the cascades' buffers; the largest goes first.

Assumptions and where it is known to be wrong: weights count at 8 bits before coding; the compiler weighs which feature
maps to keep by their accesses, not by size alone; copies, means and matrix products are not cascaded.

Works on many candidates of one graph at once, layer after layer. Source: cascade builder and scheduler of the estimator
(ethos-u-vela 5.2.0, Apache-2.0), written anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from accel_models.npu.ethos_work import SPLIT_DEPTH, up
from accel_models.placement import Placement, homes, place_by_size, placement_rule
from accel_models.spec import HardwareSpec
from workloads.columns import Columns
from workloads.graph import Topology

CASCADED = ("conv", "max_pool", "avg_pool", "add", "mul", "activation")
SCALE_BYTES = 10  # of a channel


@dataclass(frozen=True)
class Heights:
    """What decides how high stripes may be, float64 (candidates or chains, layers).

    Attributes:
        p: output rows. step, reach: rows between windows, of one window. in_h: input rows.
        row_bytes: of one input row. weights: bytes.
    """

    p: np.ndarray
    step: np.ndarray
    reach: np.ndarray
    in_h: np.ndarray
    row_bytes: np.ndarray
    weights: np.ndarray

    def take(self, at: tuple[Any, ...]) -> Heights:
        """A part, by an index."""
        return Heights(self.p[at], self.step[at], self.reach[at], self.in_h[at], self.row_bytes[at], self.weights[at])

    def rolling(self, stripe: np.ndarray | float) -> np.ndarray:
        """Bytes of the buffer before each layer, which makes `stripe` rows and the one before `step` times as many."""
        needed = np.minimum((stripe - 1) * self.step + self.reach, self.in_h)
        return np.asarray(up(stripe * self.step + needed, needed) * self.row_bytes)


@dataclass(frozen=True)
class Chains:
    """Chains of as many layers, of any candidates.

    Attributes:
        candidates: of each chain, (chains,). layers: their positions, (chains, layers). heights: of these.
    """

    candidates: np.ndarray
    layers: np.ndarray
    heights: Heights


@dataclass(frozen=True)
class Cut:
    """How chains are cut into cascades, arrays of shape (chains, layers).

    Attributes:
        stripe: output rows at a time. cascade: number of the cascade that a layer is in. bytes: that it occupies.
    """

    stripe: np.ndarray
    cascade: np.ndarray
    bytes: np.ndarray

    @property
    def count(self) -> np.ndarray:
        return np.asarray(self.cascade[:, -1] + 1)

    @property
    def is_last(self) -> np.ndarray:
        """Boolean: the cascade's output leaves it here."""
        last = np.ones(self.cascade.shape, bool)
        last[:, :-1] = self.cascade[:, 1:] != self.cascade[:, :-1]
        return last

    @property
    def is_alone(self) -> np.ndarray:
        """Boolean: a cascade of one layer, which runs whole."""
        last = self.is_last
        alone = last.copy()
        alone[:, 1:] &= last[:, :-1]
        return alone


@placement_rule("ethos_u", "ethos_u85")
def place_cascaded(rows: Columns, topology: Topology | None, spec: HardwareSpec) -> Placement:
    """Homes of all tensors, and stripes of the layers that run interleaved.

    Args:
        rows: whole graphs, candidate after candidate; or unrelated layers if `topology` is None: each is placed as if
            its own inputs and output were all that is alive, and runs whole.
        spec: of an Ethos-U. On a U85 an add that its producer can absorb runs with it, and both run whole.
    """
    last = len(spec.feature_memories) - 1
    if topology is None or last == 0:
        placed = place_by_size(rows, topology, spec)
        first, output = (
            np.where(rows.from_input > 0, last, placed.first),
            np.where(rows.to_output > 0, last, placed.output),
        )
        return Placement(first, placed.other, output, placed.stripe)
    capacity = float(spec.memory(spec.feature_memories[0]).size_bytes or np.inf)
    return _Graphs(rows, topology, capacity, absorbs_adds=spec.family == "ethos_u85").placement(last)


class _Graphs:
    """Candidates of one graph, arrays of shape (candidates, layers)."""

    def __init__(self, rows: Columns, topology: Topology, capacity: float, absorbs_adds: bool) -> None:
        self.topology, self.capacity = topology, capacity
        self.shape = (-1, len(topology.first))
        self.stored = self._of(rows.output_elements / np.maximum(rows.k, 1) * up(rows.k.astype(float), SPLIT_DEPTH))
        window = rows.is_op("conv", "max_pool", "avg_pool")
        step = np.where(window, rows.stride_h, 1)
        reach = np.where(window, (rows.r - 1) * rows.dilation_h + 1, 1)
        weights = np.where(rows.has_weights, rows.weight_elements + SCALE_BYTES * rows.k, 0)
        p, step, reach, in_h, weights = (self._of(x.astype(float)) for x in (rows.p, step, reach, rows.in_h, weights))
        row_bytes = self.stored[:, topology.first] / np.maximum(in_h, 1)
        self.heights = Heights(p, step, reach, in_h, row_bytes, weights)
        self.leaves = self._of(rows.to_output)[0] > 0
        self.runs = self._of(rows.is_mac | rows.is_vector | rows.is_move)[0]
        self.can = self._of(rows.is_op(*CASCADED))[0] & (self._of(rows.p)[0] > 1)
        self.absorbed = self._of((rows.fused > 0) & rows.is_op("add"))[0] & absorbs_adds
        self._absorb()

    def _of(self, column: np.ndarray) -> np.ndarray:
        return column.reshape(self.shape)

    def _absorb(self) -> None:
        """Layers that run with an absorbed add cannot be cascaded, nor can the add."""
        for add in np.flatnonzero(self.absorbed):
            self.can[[add, max(self.topology.first[add], self.topology.other[add])]] = False

    def placement(self, last: int) -> Placement:
        """Homes and stripes."""
        topology = self.topology
        stripe, taken = np.zeros(self.stored.shape, np.int64), np.zeros(self.stored.shape)
        sizes = np.where(self.runs & ~self.leaves, self.stored, 0.0)
        fixed = np.full(self.stored.shape, -1)
        fixed[:, ~self.runs | self.leaves] = last
        for chains in self._chains():
            cut, at = self._cut_to_fit(chains), (chains.candidates[:, None], chains.layers)
            runs_whole = cut.is_alone
            stripe[at] = np.where(runs_whole, 0, cut.stripe)
            taken[at] = np.where(runs_whole, 0.0, cut.bytes)
            sizes[at] = np.where(runs_whole, sizes[at], 0.0)
            fixed[at] = np.where(runs_whole, fixed[at], np.where(cut.is_last, last, 0))
        home = np.where(fixed >= 0, fixed, homes(sizes, topology.liveness, [self.capacity], taken))
        first = np.where(topology.first >= 0, home[:, topology.first], home)
        other = np.where(topology.other >= 0, home[:, topology.other], first)
        return Placement(first.ravel(), other.ravel(), home.ravel(), stripe.ravel())

    def _chains(self) -> list[Chains]:
        """Chains, those of as many layers together."""
        order = np.flatnonzero(self.runs & ~self.absorbed)
        before, after = order[:-1], order[1:]
        pairs = self._follows(before, after)
        before, after = before[pairs], after[pairs]
        one_row = self.heights.take((slice(None), after))
        buffers = one_row.rolling(1.0) + one_row.weights
        overflows = self.stored[:, self.topology.first[after]] + self.stored[:, after] >= self.capacity
        start = np.tile(np.arange(len(self.runs)), (len(self.stored), 1))
        held = self.heights.weights.copy()
        for i in np.flatnonzero(overflows.any(axis=0)):
            previous, layer = before[i], after[i]
            longer = held[:, previous] + buffers[:, i]
            goes_on = overflows[:, i] & (longer <= self.capacity)
            start[:, layer] = np.where(goes_on, start[:, previous], layer)
            held[:, layer] = np.where(goes_on, longer, held[:, layer])
        return self._grouped(start)

    def _grouped(self, start: np.ndarray) -> list[Chains]:
        """Chains of more than one layer from the layer that each layer's chain starts with."""
        order = np.flatnonzero(self.runs & ~self.absorbed)
        patterns, which = np.unique(start[:, order], axis=0, return_inverse=True)
        found: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
        for number, begins in enumerate(patterns):
            candidates = np.flatnonzero(which.ravel() == number)
            for begin in np.unique(begins[begins != order]):
                layers = order[begins == begin]
                found.setdefault(len(layers), []).append((candidates, np.tile(layers, (len(candidates), 1))))
        chains = (map(np.concatenate, zip(*parts, strict=True)) for parts in found.values())
        return [Chains(at, layers, self.heights.take((at[:, None], layers))) for at, layers in chains]

    def _follows(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Whether layers may run interleaved with the ones before them: they alone read those ones' outputs."""
        first, other = self.topology.first, self.topology.other
        read = np.concatenate([first[first >= 0], other[other >= 0]])
        readers = np.bincount(read, minlength=len(first))
        is_only = (first[after] == before) & (readers[before] == 1) & ~self.leaves[before]
        return np.asarray(self.can[before] & self.can[after] & is_only)

    def _cut_to_fit(self, chains: Chains) -> Cut:
        """Every chain with the highest stripe that needs no more cuts than one of two rows."""
        rows = chains.heights.p[:, -1]
        low, high = np.minimum(2.0, rows), np.maximum(np.floor((rows + 1) / 2), np.minimum(2.0, rows))
        most = self._cut(chains, low).count
        while (low < high).any():
            middle = np.ceil((low + high) / 2)
            fits = self._cut(chains, middle).count <= most
            low, high = np.where(fits, middle, low), np.where(fits, high, middle - 1)
        return self._cut(chains, low)

    def _cut(self, chains: Chains, stripe: np.ndarray) -> Cut:
        """Cascades for a given stripe of the last layer of each chain: one goes on as long as its buffers fit."""
        heights, length = chains.heights, chains.layers.shape[1]
        stripes = np.repeat(stripe[:, None], length, axis=1)
        stripes[:, :-1] *= np.cumprod(heights.step[:, :0:-1], axis=1)[:, ::-1]
        between, weights = heights.rolling(stripes), heights.weights
        cascade, held = np.zeros(stripes.shape, int), weights.copy()
        for i in range(1, length):
            longer = held[:, i - 1] + between[:, i] + weights[:, i]
            fits = longer <= self.capacity
            held[:, i] = np.where(fits, longer, weights[:, i])
            cascade[:, i] = cascade[:, i - 1] + ~fits
        for i in range(length - 2, -1, -1):
            held[:, i] = np.where(cascade[:, i] == cascade[:, i + 1], held[:, i + 1], held[:, i])
        return Cut(np.minimum(stripes, heights.p), cascade, held)
