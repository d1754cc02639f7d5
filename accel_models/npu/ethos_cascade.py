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

import numpy as np

from accel_models.npu.ethos_work import SPLIT_DEPTH, up
from accel_models.placement import Placement, homes, place_by_size, placement_rule
from accel_models.spec import HardwareSpec
from workloads.columns import Columns
from workloads.graph import Topology

CASCADED = ("conv", "max_pool", "avg_pool", "add", "mul", "activation")
SCALE_BYTES = 10  # of a channel


@dataclass(frozen=True)
class Chain:
    """Candidates whose chain runs over the same layers: rows of the candidates, positions of the layers."""

    candidates: np.ndarray
    layers: tuple[int, ...]


@dataclass(frozen=True)
class Cut:
    """How a chain is cut into cascades, arrays of shape (candidates, layers of the chain).

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
        return np.asarray(np.pad(self.cascade[:, 1:] != self.cascade[:, :-1], ((0, 0), (0, 1)), constant_values=True))

    @property
    def is_alone(self) -> np.ndarray:
        """Boolean: a cascade of one layer, which runs whole."""
        return np.asarray(self.is_last & np.pad(self.is_last[:, :-1], ((0, 0), (1, 0)), constant_values=True))


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
        self.weights = self._of(
            np.where(rows.has_weights, rows.weight_elements + SCALE_BYTES * rows.k, 0).astype(float)
        )
        self.p, self.in_h, self.step = (self._of(x.astype(float)) for x in (rows.p, rows.in_h, rows.stride_h))
        window = rows.is_op("conv", "max_pool", "avg_pool")
        self.reach = self._of(np.where(window, (rows.r - 1) * rows.dilation_h + 1, 1).astype(float))
        self.step = np.where(self._of(window), self.step, 1.0)
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
        for chain in self._chains():
            cut, at = self._cut_to_fit(chain), np.ix_(chain.candidates, np.array(chain.layers))
            runs_whole = cut.is_alone
            stripe[at] = np.where(runs_whole, 0, cut.stripe)
            taken[at] = np.where(runs_whole, 0.0, cut.bytes)
            sizes[at] = np.where(runs_whole, sizes[at], 0.0)
            fixed[at] = np.where(runs_whole, fixed[at], np.where(cut.is_last, last, 0))
        home = np.where(fixed >= 0, fixed, homes(sizes, topology.liveness, [self.capacity], taken))
        first = np.where(topology.first >= 0, home[:, topology.first], home)
        other = np.where(topology.other >= 0, home[:, topology.other], first)
        return Placement(first.ravel(), other.ravel(), home.ravel(), stripe.ravel())

    def _chains(self) -> list[Chain]:
        """Chains, candidates with the same one together."""
        reads = self._sizes_read()
        previous, start = -1, np.arange(len(self.runs)) * np.ones((len(self.stored), 1), int)
        held = self.weights.copy()
        for layer in np.flatnonzero(self.runs & ~self.absorbed).tolist():
            if previous >= 0 and self._follows(previous, layer):
                buffer = self._rolling(slice(None), layer, self.step[:, layer], np.ones(len(held)))
                buffer = buffer + self.weights[:, layer]
                goes_on = reads[:, layer] + self.stored[:, layer] >= self.capacity
                goes_on &= held[:, previous] + buffer <= self.capacity
                start[:, layer] = np.where(goes_on, start[:, previous], layer)
                held[:, layer] = np.where(goes_on, held[:, previous] + buffer, held[:, layer])
            previous = layer
        return self._grouped(start)

    def _grouped(self, start: np.ndarray) -> list[Chain]:
        """Chains of more than one layer from the layer that each layer's chain starts with."""
        order = np.flatnonzero(self.runs & ~self.absorbed)
        patterns, which = np.unique(start[:, order], axis=0, return_inverse=True)
        found: dict[tuple[int, ...], list[np.ndarray]] = {}
        for number, begins in enumerate(patterns):
            candidates = np.flatnonzero(which.ravel() == number)
            for begin in np.unique(begins[begins != order]):
                found.setdefault(tuple(order[begins == begin].tolist()), []).append(candidates)
        return [Chain(np.concatenate(parts), layers) for layers, parts in found.items()]

    def _sizes_read(self) -> np.ndarray:
        """Bytes of each layer's first input."""
        return np.where(self.topology.first >= 0, self.stored[:, self.topology.first], 0.0)

    def _follows(self, before: int, layer: int) -> bool:
        """Whether a layer may run interleaved with the one before it: it alone reads that one's output."""
        topology = self.topology
        readers = np.count_nonzero(topology.first == before) + np.count_nonzero(topology.other == before)
        is_first = topology.first[layer] == before
        return bool(self.can[before] and self.can[layer] and is_first and readers == 1 and not self.leaves[before])

    def _rolling(self, at: np.ndarray | slice, layer: int, made: np.ndarray, stripe: np.ndarray) -> np.ndarray:
        """Bytes of the buffer between a layer and the one before it, which makes `made` rows at a time."""
        in_h = self.in_h[at, layer]
        needed = np.minimum((stripe - 1) * self.step[at, layer] + self.reach[at, layer], in_h)
        row_bytes = self.stored[at, self.topology.first[layer]] / np.maximum(in_h, 1)
        return np.asarray(up(made + needed, needed) * row_bytes)

    def _cut_to_fit(self, chain: Chain) -> Cut:
        """The chain with the highest stripe that needs no more cuts than one of two rows."""
        rows = self.p[chain.candidates, chain.layers[-1]]
        low, high = np.minimum(2.0, rows), np.maximum(np.floor((rows + 1) / 2), np.minimum(2.0, rows))
        most = self._cut(chain, low).count
        while (low < high).any():
            middle = np.ceil((low + high) / 2)
            fits = self._cut(chain, middle).count <= most
            low, high = np.where(fits, middle, low), np.where(fits, high, middle - 1)
        return self._cut(chain, low)

    def _cut(self, chain: Chain, stripe: np.ndarray) -> Cut:
        """Cascades for a given stripe of the last layer: each goes on as long as its buffers fit."""
        at, layers = chain.candidates, chain.layers
        heights, between = np.empty((len(at), len(layers))), np.zeros((len(at), len(layers)))
        for i in range(len(layers) - 1, -1, -1):
            heights[:, i] = np.minimum(stripe, self.p[at, layers[i]])
            made = stripe * self.step[at, layers[i]]
            if i > 0:
                between[:, i] = self._rolling(at, layers[i], made, stripe)
            stripe = made
        weights = self.weights[at[:, None], list(layers)]
        cascade, held = np.zeros(heights.shape, int), weights.copy()
        for i in range(1, len(layers)):
            longer = held[:, i - 1] + between[:, i] + weights[:, i]
            fits = longer <= self.capacity
            held[:, i] = np.where(fits, longer, weights[:, i])
            cascade[:, i] = cascade[:, i - 1] + ~fits
        for i in range(len(layers) - 2, -1, -1):
            held[:, i] = np.where(cascade[:, i] == cascade[:, i + 1], held[:, i + 1], held[:, i])
        return Cut(heights, cascade, held)
