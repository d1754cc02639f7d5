"""Published measurements and the error of every model against them.

`errors.json` holds, for each target, the errors that `codesign validate --store` last computed from the rows beside
it; a test recomputes them. Results print them beside every prediction. This module only reads: it needs no rows and
no models, so that pricing stays light.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
FEW = 5  # fewer rows than this are called indicative
LEVEL = 0.8  # of all intervals: so much of what is measured next is expected inside
CLASSES = ("time", "energy", "traffic", "facts", "shares")  # errors of shares are in points, all others relative


@dataclass(frozen=True)
class Interval:
    """Where a published value is expected, as factors of the predicted one (`validation.statistics` says how).

    Attributes:
        low, high: factors. basis: what it was estimated from, in words.
    """

    low: float
    high: float
    basis: str

    def around(self, predicted: float) -> tuple[float, float]:
        return predicted * self.low, predicted * self.high


@dataclass(frozen=True)
class ErrorBar:
    """Error of one target in one class of metrics, over whole networks or over single layers.

    Attributes:
        metric: one of CLASSES. scope: network or layer.
        rows, networks: how many rows, of how many networks. kinds: of evidence (silicon, vendor_estimate, ...).
        mean, median, worst: of |predicted / published - 1| (of shares: of the difference). worst_row: where.
        rank_correlation: Spearman's, over rows of one metric, weighted by rows; None with fewer than three of any.
        calibrated: rows that a parameter was fitted to, or whose source the model was built with.
        fit_mean: mean over those; None without any.
        left_out_mean: mean over all rows, each predicted without its network in the fit; None if nothing was fitted.
        absolute: of a prediction, from the errors with the network left out. ratio: of a predicted ratio of two
            variants on this machine. None where there are too few rows, and for shares.
    """

    metric: str
    scope: str
    rows: int
    networks: int
    kinds: tuple[str, ...]
    mean: float
    median: float
    worst: float
    worst_row: str
    rank_correlation: float | None
    calibrated: int
    fit_mean: float | None
    left_out_mean: float | None
    absolute: Interval | None
    ratio: Interval | None

    @property
    def is_indicative(self) -> bool:
        return self.rows < FEW

    @property
    def caveat(self) -> str:
        """What must be said beside an interval: what it is of where nothing was measured on silicon, and few rows."""
        estimates = " and ".join(f"{kind.replace('_', ' ')}s" for kind in self.kinds)
        return f" of {estimates}" * ("silicon" not in self.kinds) + ", indicative" * self.is_indicative

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ErrorBar:
        intervals = {key: Interval(**data[key]) if data[key] else None for key in ("absolute", "ratio")}
        return cls(**{**data, **intervals, "kinds": tuple(data["kinds"])})

    def size(self, error: float) -> str:
        """An error in percent, or of shares in points."""
        return f"{100 * error:.1f} points" if self.metric == "shares" else f"{error:.1%}"

    def __str__(self) -> str:
        rows = f"{self.rows} published {self.scope} row{'s' * (self.rows != 1)} ({', '.join(self.kinds)})"
        parts = [f"error of {self.metric} against {rows}: median {self.size(self.median)}, mean {self.size(self.mean)}"]
        parts.append(f"worst {self.size(self.worst)} ({self.worst_row}){', indicative' * self.is_indicative}")
        used = "all" if self.calibrated == self.rows else str(self.calibrated or "none")
        parts.append(f"{used} used for calibration")
        if self.left_out_mean is not None:
            parts.append(f"mean {self.size(self.left_out_mean)} with each network left out of it")
        return ", ".join(parts)


@dataclass(frozen=True)
class ErrorBars:
    """What is known of one target's errors: one bar a metric class and scope that has rows."""

    bars: tuple[ErrorBar, ...]

    def get(self, metric: str, scope: str) -> ErrorBar | None:
        return next((bar for bar in self.bars if (bar.metric, bar.scope) == (metric, scope)), None)

    def of(self, metric: str) -> ErrorBar | None:
        """The bar that applies to a whole network: of networks if there are FEW of them, else the one of more rows."""
        network, layer = self.get(metric, "network"), self.get(metric, "layer")
        if network is None or layer is None:
            return network or layer
        return network if network.rows >= min(FEW, layer.rows) else layer

    @property
    def time(self) -> ErrorBar | None:
        return self.of("time")

    @property
    def energy(self) -> ErrorBar | None:
        return self.of("energy")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ErrorBars:
        return cls(tuple(ErrorBar.from_dict(bar) for bar in data["bars"]))


@cache
def _stored() -> Mapping[str, Any]:
    path = FOLDER / "errors.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def error_bars(target: str) -> ErrorBars | None:
    """The stored errors of a target's model; None where no published rows exist."""
    record = _stored().get(target)
    return ErrorBars.from_dict(record) if record else None
