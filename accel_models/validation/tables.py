"""Assessments as text that people read: table cells, a Markdown block for the docs, a JSON value.

A page of the docs holds a block for each target that it speaks of,

    <!-- validation: NAME -->
    ... written by `codesign validate --docs docs` ...
    <!-- end -->
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from accel_models.validation import LEVEL, ErrorBar, Interval
from accel_models.validation.calibrate import Refit
from accel_models.validation.compare import Comparison
from accel_models.validation.errors import Assessment
from accel_models.validation.rows import read_text
from workloads.errors import ConfigError

MOST_ROWS = 24  # of a table in the docs; of more rows those of the largest errors are shown
SHOWN_ERROR = 5e-4  # a relative error below it prints as 0.0 %
HEADS = (
    "error of", "rows", "evidence", "mean", "median", "worst", "rank", "calibration", "network left out",
    f"{LEVEL:.0%} interval", "of ratios", "worst row",
)  # fmt: skip
SHORT_HEADS = ("error of", "rows/nets", "mean", "median", "worst", f"{LEVEL:.0%} interval", "of ratios")
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
        _interval(bar.absolute) if bar.absolute or bar.metric == "shares" else "one network only",
        _interval(bar.ratio),
        bar.worst_row,
    )


def short_cells(bar: ErrorBar) -> tuple[str, ...]:
    """What fits in 80 columns of it, under SHORT_HEADS; `details` tells the rest."""
    what, _, _, mean, median, worst, _, _, _, absolute, ratio, _ = (
        cell.removeprefix("x ").replace(" points", " pt") for cell in cells(bar)
    )
    absolute = "none" if absolute == "one network only" else absolute
    return (what, f"{bar.rows}/{bar.networks}", mean, median, worst, absolute, ratio)


def details(bar: ErrorBar) -> str:
    """What `short_cells` leaves out, as a sentence."""
    what, _, kinds, *_, rank, calibration, left_out, _, _, worst_row = cells(bar)
    parts = (
        f"{what}: {kinds}",
        "indicative" * bar.is_indicative,
        bar.why_no_interval if bar.metric != "shares" else "",
        f"worst {worst_row}",
        f"rank {rank}" * (bar.rank_correlation is not None),
        "none used for calibration"
        if bar.fit_mean is None
        else f"{calibration.replace(',', ' used for calibration,')}",
        f"mean {left_out} with each network left out" * (bar.left_out_mean is not None),
    )
    return "; ".join(filter(None, parts))


ROW_HEADS = ("row", "published", "predicted", "unit", "error", "evidence", "")


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
    title, shown = _shown(found.comparisons)
    rows = _table(ROW_HEADS, [row_cells(item) for item in shown])
    return "\n".join([*lines, f"<details><summary>{title}</summary>", "", *rows, "", "</details>", ""])


def _shown(comparisons: Sequence[Comparison]) -> tuple[str, list[Comparison]]:
    """Which rows, and they: all in the order of the file, or of many those of the largest errors, largest first."""
    total = len(comparisons)
    if total <= MOST_ROWS:
        return "Every row", list(comparisons)
    found = sorted(comparisons, key=lambda item: -abs(item.error))
    largest, shown = abs(found[0].error), found[:MOST_ROWS]
    if largest < SHOWN_ERROR:
        return f"{MOST_ROWS} of {total} rows, all {'exact' if largest < 1e-9 else '0.0%'}", shown
    return f"The {MOST_ROWS} rows of the largest errors, of {total}", shown


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *rows)]


def rewrite_docs(folder: Path, texts: Mapping[str, str], known: Collection[str] = ()) -> list[Path]:
    """Put the blocks of the given targets into every Markdown file below a folder; blocks of others stay.

    Args:
        known: names of other machines that a block may be of.

    Returns:
        Files that changed.

    Raises:
        ConfigError: a block of an unknown machine, in which case no file changes, or a page that is not UTF-8.
    """
    pages = {path: read_text(path) for path in sorted(folder.rglob("*.md"))}
    for path, text in pages.items():
        if wrong := [name for name in blocks(text) if name not in {*texts, *known} and not Path(name).is_file()]:
            raise ConfigError(f"{path}: <!-- validation: {wrong[0]} --> names no known machine; see `codesign targets`")

    def filled(match: re.Match[str]) -> str:
        text = texts.get(match["name"])
        return match[0] if text is None else f"{match['start']}\n{text}<!-- end -->"

    changed = []
    for path, old in pages.items():
        new = _BLOCK.sub(filled, old)
        if new != old:
            path.write_text(new, encoding="utf-8")
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
