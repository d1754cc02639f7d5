"""Assessments as text that people read: table cells, a Markdown block for the docs, a JSON value.

A page of the docs holds a block for each target that it speaks of,

    <!-- validation: NAME -->
    ... written by `codesign validate --docs docs` ...
    <!-- end -->
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from accel_models.validation import LEVEL, ErrorBar, Interval
from accel_models.validation.calibrate import Refit
from accel_models.validation.compare import Comparison
from accel_models.validation.errors import Assessment

MOST_ROWS = 24  # of a table in the docs; of more rows those of the largest errors are shown
HEADS = (
    "error of", "rows", "evidence", "mean", "median", "worst", "rank", "calibration", "network left out",
    f"{LEVEL:.0%} interval", "of ratios", "worst row",
)  # fmt: skip
_BLOCK = re.compile(  # a marker alone becomes a block when it is first filled
    r"(?P<start><!-- validation: *(?P<name>\S+) *-->)(?:(?P<body>(?:(?!<!-- validation:).)*?)<!-- end -->)?", re.DOTALL
)


def cells(bar: ErrorBar) -> tuple[str, ...]:
    """One row of the table of errors, under HEADS."""
    networks = f"{bar.networks} network{'s' * (bar.networks != 1)}"
    return (
        f"{bar.metric}, {'one layer' if bar.scope == 'layer' else 'network'}",
        f"{bar.rows} of {networks}{', indicative' * bar.is_indicative}",
        ", ".join(bar.kinds).replace("_", " "),
        bar.size(bar.mean),
        bar.size(bar.median),
        bar.size(bar.worst),
        "–" if bar.rank_correlation is None else f"{bar.rank_correlation:.3f}",
        "none" if bar.fit_mean is None else f"{bar.calibrated}, mean {bar.size(bar.fit_mean)}",
        "–" if bar.left_out_mean is None else bar.size(bar.left_out_mean),
        _interval(bar.absolute),
        _interval(bar.ratio),
        bar.worst_row,
    )


def row_cells(item: Comparison) -> tuple[str, ...]:
    """id, published, predicted, unit, error, kind, whether it was used for calibration."""
    row = item.row
    error = f"{100 * item.error:+.1f} points" if row.in_points else f"{item.error:+.1%}"
    kind, fitted = row.kind.replace("_", " "), "calibration" if row.calibrated else ""
    return (row.id, _number(row.value), _number(item.predicted), row.unit, error, kind, fitted)


def refit_cells(refit: Refit) -> Iterator[tuple[str, ...]]:
    """parameter, bounds, stored, fitted again, of every parameter."""
    for each in refit.parameters:
        low, high = each.bounds
        yield (each.parameter, f"{low:g} to {high:g}", f"{each.stored:.6g}", f"{each.value:.6g}")


def markdown(found: Assessment) -> str:
    """The block of a target: its errors, then its rows."""
    if found.bars is None:
        return "No published rows of this machine are at hand: its error is unknown.\n"
    lines = [*_table(HEADS, [cells(bar) for bar in found.bars.bars]), ""]
    if found.fitted_rows:
        lines += [
            f"Parameters were fitted to {len(found.fitted_rows)} rows; `codesign validate {found.target}` names them.",
            "",
        ]
    worst = sorted(found.comparisons, key=lambda item: -abs(item.error))[:MOST_ROWS]
    shown = [item for item in found.comparisons if item in worst]
    every = len(shown) == len(found.comparisons)
    title = "Every row" if every else f"The {MOST_ROWS} rows of the largest errors, of {len(found.comparisons)}"
    heads = ("row", "published", "predicted", "unit", "error", "evidence", "")
    rows = _table(heads, [row_cells(item) for item in shown])
    return "\n".join([*lines, f"<details><summary>{title}</summary>", "", *rows, "", "</details>", ""])


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *rows)]


def rewrite_docs(folder: Path, texts: Mapping[str, str]) -> list[Path]:
    """Put the blocks of the given targets into every Markdown file below a folder; blocks of others stay.

    Returns:
        Files that changed.
    """

    def filled(match: re.Match[str]) -> str:
        text = texts.get(match["name"])
        return match[0] if text is None else f"{match['start']}\n{text}<!-- end -->"

    changed = []
    for path in sorted(folder.rglob("*.md")):
        old = path.read_text()
        new = _BLOCK.sub(filled, old)
        if new != old:
            path.write_text(new)
            changed.append(path)
    return changed


def blocks(text: str) -> dict[str, str]:
    """The blocks of a page, by target; of a marker that was never filled ""."""
    return {match["name"]: (match["body"] or "").removeprefix("\n") for match in _BLOCK.finditer(text)}


def to_dict(found: Assessment) -> dict[str, Any]:
    """Everything that was compared, as a JSON value."""
    rows = [
        {
            "id": item.row.id,
            "network": item.row.network,
            "workload": item.row.workload,
            "overrides": item.row.overrides,
            "metric": item.row.metric,
            "unit": item.row.unit,
            "published": item.row.value,
            "predicted": item.predicted,
            "predicted_network_left_out": left_out.predicted,
            "error": item.error,
            "kind": item.row.kind,
            "calibrated": item.row.calibrated,
            "source": item.row.source,
        }
        for item, left_out in zip(found.comparisons, found.left_out, strict=True)
    ]
    return {
        "errors": found.bars.to_dict()["bars"] if found.bars else [],
        "fitted_rows": list(found.fitted_rows),
        "rows": rows,
    }


def _interval(interval: Interval | None) -> str:
    return "–" if interval is None else f"x {interval.low:.2f} to {interval.high:.2f}"


def _number(value: float) -> str:
    """Four significant digits, thousands with commas; whole numbers below a million whole."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"
