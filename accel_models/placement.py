"""Which memory holds each feature map: decided over the whole graph before any layer is priced.

An edge stays in the first feature memory if, at every step of its life, all live edges together fit there; edges
alive while that memory overflows go to the next one, largest first, until the rest fits. The last memory takes
whatever is left (its size is not checked: it is the machine's main memory). Pricing is conditional on the result.

Works on many candidates at once: sizes are (candidates, layers), the liveness of the graph is shared by all.

A family whose compiler places by rules of its own registers them with `@placement_rule("family")`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from accel_models.spec import HardwareSpec
from workloads.columns import Columns
from workloads.graph import Topology


@dataclass(frozen=True)
class Placement:
    """Index into `spec.feature_memories` of the tensors of every row, int64 (rows,).

    Attributes:
        first, other: where the first input and the further inputs are read from.
        output: where the output is written.
        stripe: output rows that are computed at a time where layers run interleaved so that only a few rows of what
            is between them are kept (a cascade); 0 where a layer runs whole.
    """

    first: np.ndarray
    other: np.ndarray
    output: np.ndarray
    stripe: np.ndarray

    def take(self, rows: np.ndarray | slice) -> Placement:
        return Placement(self.first[rows], self.other[rows], self.output[rows], self.stripe[rows])


Rule = Callable[[Columns, Topology | None, HardwareSpec], Placement]
_RULES: dict[str, Rule] = {}


def placement_rule(*families: str) -> Callable[[Rule], Rule]:
    """Decorator: `place` asks this function for machines of these families."""

    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(families, rule))
        return rule

    return register


def place(columns: Columns, topology: Topology | None, spec: HardwareSpec) -> Placement:
    """Decide the home of every edge, by the family's own rule if it has one; arguments as of `place_by_size`."""
    return _RULES.get(spec.family, place_by_size)(columns, topology, spec)


def place_by_size(columns: Columns, topology: Topology | None, spec: HardwareSpec) -> Placement:
    """Decide the home of every edge.

    Args:
        columns: rows of whole graphs, candidate after candidate; or unrelated layers if `topology` is None: each is
            then placed as if its own inputs and output were all that is alive.
        topology: of the graph that all candidates share.
        spec: its feature memories with their sizes, innermost first.
    """
    sizes = columns.output_elements * columns.output_bits / 8
    capacities = [spec.memory(name).size_bytes or np.inf for name in spec.feature_memories[:-1]]
    if topology is None:
        inputs = (columns.input_elements + columns.other_elements) * columns.input_bits / 8
        home = np.zeros(len(columns), np.int64)
        for level, capacity in enumerate(capacities):
            home = np.where((home == level) & (sizes + inputs > capacity), level + 1, home)
        return Placement(home, home, home, np.zeros_like(home))
    layers = len(topology.first)
    home = homes(sizes.reshape(-1, layers), topology.liveness, capacities)
    first = np.where(topology.first >= 0, home[:, topology.first], home)
    other = np.where(topology.other >= 0, home[:, topology.other], first)
    return Placement(first.ravel(), other.ravel(), home.ravel(), np.zeros(home.size, np.int64))


def homes(
    sizes: np.ndarray, liveness: np.ndarray, capacities: list[float], taken: np.ndarray | float = 0.0
) -> np.ndarray:
    """Memory index of each edge, (candidates, layers).

    Args:
        sizes: float64 (candidates, layers), 0 for an edge that is placed otherwise.
        liveness: bool (layers, layers), [edge, step].
        taken: float64 (candidates, steps), bytes of the first memory that other things occupy at each step.
    """
    home = np.zeros(sizes.shape, np.int64)
    alive, is_alive = liveness.astype(float), liveness.any(axis=1)
    for level, capacity in enumerate(capacities):
        here = np.where(home == level, sizes, 0.0)
        never_fits = (here > capacity) & is_alive  # the largest go first, so these go before all others
        home[never_fits], here[never_fits] = level + 1, 0.0
        while True:
            held = here @ alive  # (candidates, steps)
            over = (held > capacity - (taken if level == 0 else 0.0)) & (held > 0)
            if not over.any():
                break
            touched = (over.astype(float) @ alive.T > 0) & (here > 0)
            largest = np.argmax(np.where(touched, here, -1.0), axis=1)
            rows = np.flatnonzero(over.any(axis=1))
            home[rows, largest[rows]] = level + 1
            here[rows, largest[rows]] = 0.0
    return home
