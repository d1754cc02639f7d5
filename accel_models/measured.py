"""A machine that prices a layer graph by running it. What it gives prints and compares like any other result.

    class Mine(Measured):
        name = "mine"
        def simulate(self, graph): ...

Such a machine obeys fewer laws than a simulated one: a time varies from run to run, so twice the work may measure as
less, and a row depends on its neighbours (what they leave in the caches, what is fused). What holds: rows sum to the
total, what does not run is free, and the time shown lies inside its own interval.

Energy and traffic stay empty where nobody measures them; of its cycles only useful ones and "other" are told apart.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from accel_models.result import SimulationResult
from accel_models.validation import LEVEL, REPEATS, ErrorBar, ErrorBars, Interval
from workloads.errors import ConfigError
from workloads.graph import LayerGraph


@dataclass(frozen=True)
class Measured(ABC):
    """A machine that is there. Fields are whole numbers that a user may change, e.g. how often it runs."""

    name: ClassVar[str]

    @abstractmethod
    def simulate(self, graph: LayerGraph) -> SimulationResult:
        """Run a graph and say how long each of its layers took.

        Raises:
            CodesignError: this machine cannot run it.
        """

    @classmethod
    def changed(cls, changes: Mapping[str, Any]) -> Self:
        """The machine with other numbers.

        Raises:
            ConfigError: there is no such number, or it is not a whole one.
        """
        known = [each.name for each in dataclasses.fields(cls)]
        for field, value in changes.items():
            if field not in known:
                raise ConfigError(f"{cls.name}: no number {field!r} to change; there are {', '.join(known)}")
            if isinstance(value, bool) or not isinstance(value, int):
                raise ConfigError(f"{cls.name}: {field}: {value!r}, must be a whole number")
        return cls(**changes)


def spread(times: np.ndarray, layers: np.ndarray) -> ErrorBars:
    """How far repeats lie from the median that is shown, of the whole network and of its layers.

    Args:
        times: float64 (repeats,). layers: float64 (parts, repeats), each part's own.

    >>> bar = spread(np.array([1.0, 1.0, 1.1, 0.9, 1.0]), np.ones((1, 5))).get("time", "network")
    >>> bar.rows, bar.worst, bar.absolute.low < 1 < bar.absolute.high
    (5, 0.1, True)
    """
    network = _bar("network", times / np.median(times), len(times))
    factors = layers / np.maximum(np.median(layers, axis=1, keepdims=True), np.finfo(float).tiny)
    return ErrorBars((network, _bar("layer", factors.ravel(), len(times))))


def _bar(scope: str, factors: np.ndarray, repeats: int) -> ErrorBar:
    """Of repeats over their median."""
    errors = np.abs(factors - 1)
    low, high = np.quantile(factors, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    wider = np.sqrt(2) * max(-np.log(low), np.log(high))  # of two such times, independent of each other
    return ErrorBar(
        metric="time",
        scope=scope,
        rows=repeats,
        networks=1,
        kinds=(REPEATS,),
        mean=round(float(errors.mean()), 4),
        median=round(float(np.median(errors)), 4),
        worst=round(float(errors.max()), 4),
        worst_row=f"repeat {int(errors.argmax()) % repeats + 1}",
        rank_correlation=None,
        calibrated=0,
        fit_mean=None,
        left_out_mean=None,
        absolute=Interval(float(low), float(high), f"{repeats} repeats"),
        ratio=Interval(float(np.exp(-wider)), float(np.exp(wider)), f"{repeats} repeats of each"),
    )
