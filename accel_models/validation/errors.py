"""Errors of a target over its published rows, as fitted and with each network left out of the fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from accel_models.validation import CLASSES, FOLDER, SPECS, ErrorBar, ErrorBars, Interval, error_bars, errors_file
from accel_models.validation.calibrate import Calibration
from accel_models.validation.compare import Comparison, compare
from accel_models.validation.rows import Row, machine_file
from accel_models.validation.statistics import absolute_interval, log_errors, rank_correlation, ratio_interval
from workloads.store import write_json

SCOPES = ("network", "layer")


@dataclass(frozen=True)
class Assessment:
    """One target against its published rows.

    Attributes:
        target: its name. comparisons: every row as the machine file predicts it.
        left_out: the same rows, each predicted by parameters that were fitted without its network.
        refitted: networks that parameters were fitted to; only their rows differ between the two.
        fitted_rows: ids of the rows that parameters were fitted to, of this target or of another one.
    """

    target: str
    comparisons: tuple[Comparison, ...]
    left_out: tuple[Comparison, ...]
    refitted: frozenset[str]
    fitted_rows: tuple[str, ...]

    @cached_property
    def bars(self) -> ErrorBars | None:
        """None without rows."""
        return ErrorBars(tuple(_bars(self.comparisons, self.left_out, self.refitted))) if self.comparisons else None

    @property
    def calibrated_rows(self) -> tuple[str, ...]:
        """Rows of this target that parameters were fitted to, or whose source the model was built with."""
        return tuple(item.row.id for item in self.comparisons if item.row.calibrated)


def assess(name: str) -> Assessment:
    """Recompute everything that is known of a target's errors.

    Raises:
        ConfigError: a wrong row, or a fitted row that does not exist.
    """
    comparisons = compare(name)
    calibration = Calibration(name)
    left_out = calibration.left_out([item.row for item in comparisons], [item.predicted for item in comparisons])
    return Assessment(
        target=name,
        comparisons=tuple(comparisons),
        left_out=tuple(Comparison(item.row, value) for item, value in zip(comparisons, left_out, strict=True)),
        refitted=calibration.networks,
        fitted_rows=calibration.row_names,
    )


def _bars(
    comparisons: Sequence[Comparison], left_out: Sequence[Comparison], refitted: frozenset[str]
) -> Iterator[ErrorBar]:
    pairs = list(zip(comparisons, left_out, strict=True))
    for metric in CLASSES:
        for scope in SCOPES:
            chosen = [pair for pair in pairs if (pair[0].row.metric_class, pair[0].row.scope) == (metric, scope)]
            if chosen:
                yield _bar(metric, scope, [pair[0] for pair in chosen], [pair[1] for pair in chosen], refitted)


def _bar(
    metric: str, scope: str, found: Sequence[Comparison], left_out: Sequence[Comparison], refitted: frozenset[str]
) -> ErrorBar:
    rows = [item.row for item in found]
    size, left_out_size = (np.abs([item.error for item in items]) for items in (found, left_out))
    predicted, without, published = (
        np.array(values)
        for values in ([x.predicted for x in found], [x.predicted for x in left_out], [row.value for row in rows])
    )
    units = np.array([row.si for row in rows])
    fitted = np.array([row.calibrated for row in rows])
    absolute, ratio = (None, None) if metric == "shares" else _intervals(rows, log_errors(without, published))
    return ErrorBar(
        metric=metric,
        scope=scope,
        rows=len(rows),
        networks=len({row.network for row in rows}),
        kinds=tuple(sorted({row.kind for row in rows})),
        mean=_rounded(size.mean()),
        median=_rounded(np.median(size)),
        worst=_rounded(size.max()),
        worst_row=rows[int(size.argmax())].id,
        rank_correlation=rank_correlation(predicted * units, published * units, [row.metric for row in rows]),
        calibrated=int(fitted.sum()),
        fit_mean=_rounded(size[fitted].mean()) if fitted.any() else None,
        left_out_mean=_rounded(left_out_size.mean()) if any(row.network in refitted for row in rows) else None,
        absolute=absolute,
        ratio=ratio,
    )


def _intervals(rows: Sequence[Row], errors: np.ndarray) -> tuple[Interval | None, Interval | None]:
    """Absolute and of ratios; a throughput that is too high counts as a time that is too low."""
    errors = errors * [-1.0 if row.quantity == "throughput" else 1.0 for row in rows]
    networks = [row.network for row in rows]
    ratio = ratio_interval(errors, [x.variants for x in rows], [x.circumstances for x in rows], networks)
    return absolute_interval(errors, networks), ratio


def _rounded(value: float) -> float:
    return round(float(value), 4)


def store(results: Sequence[Assessment]) -> list[Path]:
    """Write the errors that results print beside predictions; those of the package's other machines stay.

    Returns:
        Files that were written: errors.json for machines of the package, `mine.errors.json` beside `mine.yaml`.
    """
    files = {found.target: errors_file(machine_file(found.target)) for found in results}
    ours = {machine_file(found.target).stem: found.bars for found in results if files[found.target].parent == FOLDER}
    written = []
    if ours:
        kept = {path.stem: error_bars(path.stem) for path in SPECS.glob("*.yaml")}
        known = {name: bars.to_dict() for name, bars in sorted({**kept, **ours}.items()) if bars}
        written.append(_write(FOLDER / "errors.json", known))
    for found in results:
        if files[found.target].parent != FOLDER and found.bars:
            written.append(_write(files[found.target], found.bars.to_dict()))
    return written


def _write(path: Path, data: Mapping[str, Any]) -> Path:
    write_json(path, data)
    return path
