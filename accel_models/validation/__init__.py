"""Published measurements and the error of every model against them.

`errors.json` holds, for each machine of the package, the errors that `codesign validate --store` last computed from the
rows beside it; a test recomputes them. A machine file elsewhere, `mine.yaml`, has its rows in `mine.csv` and its errors
in `mine.errors.json` beside it. Results print them beside every prediction. This module only reads: it needs no rows
and no models, so that pricing stays light.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from workloads.errors import ConfigError

FOLDER = Path(__file__).parent
SPECS = FOLDER.parent / "specs"
FEW = 5  # fewer rows, or rows of fewer networks, are called indicative
LEVEL = 0.8  # of all intervals: so much of what is measured next is expected inside
KINDS: Mapping[str, str] = {  # of evidence, and whose word it is
    "silicon": "silicon",
    "fvp_model": "the vendor's FVP model",
    "vendor_estimate": "the vendor's estimator",
    "authors_simulator": "the authors' simulator",
    "post_layout_simulation": "a post-layout simulation",
}
REPEATS = "repeats"  # the evidence of a measured machine: its own runs again
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
        absolute: of a prediction, from the errors with the network left out; None with rows of one network only.
        ratio: of a predicted ratio of two variants on this machine; None with one row only. None both for shares.

    Of a measured machine (kinds are REPEATS alone) rows are repeats of one run, errors their distances from the time
    that is shown, and intervals hold LEVEL of further repeats.
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
    def is_measured(self) -> bool:
        return self.kinds == (REPEATS,)

    @property
    def is_indicative(self) -> bool:
        return min(self.rows, self.rows if self.is_measured else self.networks) < FEW

    @property
    def why_no_interval(self) -> str:
        """Why a prediction has no absolute interval; "" if it has one."""
        if self.absolute:
            return ""
        return "shares have no interval" if self.metric == "shares" else "one network only: no interval"

    @property
    def caveat(self) -> str:
        """What must be said beside the interval of a price."""
        return self.caveat_of("it")

    def caveat_of(self, what: str) -> str:
        """What must be said beside an interval: whose word it foretells where that is not silicon's, and few rows.

        Args:
            what: the interval is of, "it" or "this ratio".
        """
        if self.is_measured:
            return f", where {what} falls when run again" + ", indicative" * self.is_indicative
        others = " or ".join(KINDS[kind] for kind in self.kinds)
        foretold = f", where {others} (not silicon) would put {what}" * ("silicon" not in self.kinds)
        return foretold + ", indicative" * self.is_indicative

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ErrorBar:
        intervals = {key: Interval(**data[key]) if data[key] else None for key in ("absolute", "ratio")}
        return cls(**{**data, **intervals, "kinds": tuple(data["kinds"])})

    def size(self, error: float) -> str:
        """An error in percent, or of shares in points."""
        return f"{100 * error:.1f} points" if self.metric == "shares" else f"{error:.1%}"

    def __str__(self) -> str:
        if self.is_measured:
            return f"{self.rows} repeats: median {self.size(self.median)} away, worst {self.size(self.worst)}"
        rows = f"{self.rows} published {self.scope} row{'s' * (self.rows != 1)} ({', '.join(self.kinds)})"
        parts = [f"error of {self.metric} against {rows}: median {self.size(self.median)}, mean {self.size(self.mean)}"]
        parts.append(f"worst {self.size(self.worst)} ({self.worst_row}){', indicative' * self.is_indicative}")
        used = "all" if self.calibrated == self.rows else str(self.calibrated or "none")
        parts.append(f"{used} used for calibration")
        if self.left_out_mean is not None:
            parts.append(f"mean {self.size(self.left_out_mean)} with each network left out of it")
        return ", ".join(filter(None, (*parts, self.why_no_interval)))


@dataclass(frozen=True)
class ErrorBars:
    """What is known of one target's errors: one bar a metric class and scope that has rows."""

    bars: tuple[ErrorBar, ...]

    def get(self, metric: str, scope: str) -> ErrorBar | None:
        return next((bar for bar in self.bars if (bar.metric, bar.scope) == (metric, scope)), None)

    def of(self, metric: str) -> ErrorBar | None:
        """The bar that applies to a whole network.

        One with an interval goes before one without; else that of networks, unless it has fewer than FEW rows and that
        of layers has more.
        """
        network, layer = self.get(metric, "network"), self.get(metric, "layer")
        if network is None or layer is None:
            return network or layer
        if (network.absolute is None) != (layer.absolute is None):
            return network if network.absolute else layer
        return network if network.rows >= min(FEW, layer.rows) else layer

    def of_one_layer(self) -> ErrorBars:
        """What applies to a single layer: the bars of layers, and those of networks where layers have none."""
        layers = {bar.metric for bar in self.bars if bar.scope == "layer"}
        return ErrorBars(tuple(bar for bar in self.bars if bar.scope == "layer" or bar.metric not in layers))

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


def beside(machine: Path, suffix: str) -> Path:
    """Where something of a machine is kept: of the package's own machines in this folder, else beside the machine file.

    >>> beside(Path("machines/mine.yaml"), ".csv").as_posix()
    'machines/mine.csv'
    """
    is_ours = machine.resolve().parent == SPECS.resolve()
    return FOLDER / f"{machine.stem}{suffix}" if is_ours else machine.with_suffix(suffix)


def errors_file(machine: Path) -> Path:
    """The file that holds the errors of a machine: one for all of the package, else one for each."""
    own = beside(machine, ".errors.json")
    return FOLDER / "errors.json" if own.parent == FOLDER else own


@cache
def _stored() -> Mapping[str, Any]:
    path = FOLDER / "errors.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def error_bars(target: str, file: str = "") -> ErrorBars | None:
    """The stored errors of a target's model; None where no published rows exist.

    Args:
        file: the machine file it was read from; without it a machine of the package.

    Raises:
        ConfigError: the errors beside a machine file cannot be read.
    """
    path = errors_file(Path(file)) if file else FOLDER / "errors.json"
    if path.parent != FOLDER:
        return _read_errors(path)
    record = _stored().get(target)
    return ErrorBars.from_dict(record) if record else None


def _read_errors(path: Path) -> ErrorBars | None:
    """The errors of one machine."""
    if not path.exists():
        return None
    try:
        return ErrorBars.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{path}: no errors of a machine ({error}); `codesign validate --store` writes them"
        ) from error
