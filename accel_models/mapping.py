"""What a mapping is: every row of the columnar view cut into a short sequence of steps of equal tiles.

A **step** is one kernel or phase of a layer (one on most accelerators; pack, transform, multiply, inverse on a CPU).
A **tile** is one fill of the outermost on-chip buffer: a fixed number of compute cycles and bytes per memory port.
A family's `map` fills the arrays below for all rows at once; both clocks (the closed form in `timeline` and the
event-driven engine in `events`) read them and nothing else.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Steps:
    """Tile classes of every row. Arrays are float64 of shape (rows, steps) where not said otherwise.

    Attributes:
        names: of the steps, e.g. ("pack", "transform", "multiply", "inverse").
        prologue_cycles: fixed cost once per step: launch, configuration, ramp-up.
        tiles: number of tiles; 0 where the row does not have this step.
        parallel: tiles that run side by side (cores); >= 1.
        floor_cycles: of one tile, the multiplications really performed over the peak of what runs the tile; of a layer
            that does not multiply, its elements at the rate of the unit that works on them. No tile takes less.
        mean_cycles: of one tile, compute cycles averaged over the units; >= floor_cycles, the rest is overhead: idle
            lanes, rounding up to whole tiles, ramp-up, instructions that do not multiply.
        slowest_cycles: of one tile, compute cycles of the slowest unit; >= mean_cycles, the rest is imbalance.
        port_bytes: (rows, steps, ports), bytes moved by one tile through each port of the spec.
        accesses: (rows, components), units of each energy component for the whole row.
        kernel: int64 (rows,), index into `kernels`: which kernel or mapping was chosen.
        kernels: names for reports.
    """

    names: tuple[str, ...]
    prologue_cycles: np.ndarray
    tiles: np.ndarray
    parallel: np.ndarray
    floor_cycles: np.ndarray
    mean_cycles: np.ndarray
    slowest_cycles: np.ndarray
    port_bytes: np.ndarray
    accesses: np.ndarray
    kernel: np.ndarray
    kernels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.tiles)

    @property
    def waves(self) -> np.ndarray:
        """Rounds of side-by-side tiles, (rows, steps)."""
        return np.ceil(self.tiles / self.parallel)

    def take(self, rows: np.ndarray | slice) -> Steps:
        """The chosen rows."""
        return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in ARRAY_FIELDS})

    @staticmethod
    def empty(
        names: tuple[str, ...], kernels: tuple[str, ...], rows: int, ports: int, components: int
    ) -> dict[str, Any]:
        """Zeroed arrays to fill, as keyword arguments of `Steps` (`parallel` is one)."""
        shape = (rows, len(names))
        arrays: dict[str, Any] = {name: np.zeros(shape) for name in ARRAY_FIELDS}
        arrays["parallel"] = np.ones(shape)
        arrays["port_bytes"] = np.zeros((*shape, ports))
        arrays["accesses"] = np.zeros((rows, components))
        arrays["kernel"] = np.zeros(rows, np.int64)
        return {"names": names, "kernels": kernels, **arrays}


ARRAY_FIELDS = tuple(f.name for f in dataclasses.fields(Steps) if f.name not in ("names", "kernels"))


def choose(cost: np.ndarray) -> np.ndarray:
    """Index of the cheapest mapping of every row; ties go to the lower index.

    Args:
        cost: float64 (mappings, rows), inf where a mapping does not fit.

    >>> choose(np.array([[3.0, 1.0], [2.0, 1.0]])).tolist()
    [1, 0]
    """
    return np.asarray(np.argmin(cost, axis=0))


def ceil_div(a: np.ndarray, b: np.ndarray | int) -> np.ndarray:
    """ceil(a / b) on integers, without a detour through floats."""
    return -(-a // b)


def round_up(a: np.ndarray, b: np.ndarray | int) -> np.ndarray:
    """The next multiple of b."""
    return ceil_div(a, b) * b
