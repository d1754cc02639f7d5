"""What `codesign validate` does: assess targets, print, store, draw, and keep the docs in step."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from codesign.show import console
from workloads.errors import ConfigError

if TYPE_CHECKING:
    from accel_models.validation.errors import Assessment


def validate(
    names: Sequence[str],
    *,
    rows: bool = False,
    refit: bool = False,
    store: bool = False,
    out: Path | None = None,
    docs: Path | None = None,
    plot: Path | None = None,
) -> None:
    """Recompute the errors of targets (all by default), print them, and write what was asked for."""
    from accel_models import targets

    chosen = tuple(names) or targets()
    found = _assess(chosen)
    for each in found:
        _print(each, rows or bool(names))
    if not names:
        _print_summary(found)
    if refit:
        _print_refits(chosen)
    screen = console()
    if store:
        screen.print(f"written: {_store(found)}")
    if out:
        screen.print(f"written: {_write_json(out, found)}")
    for path in [*(_write_docs(docs, found) if docs else []), *(_draw(plot, found) if plot else [])]:
        screen.print(f"written: {path}")


def _assess(names: Sequence[str]) -> list[Assessment]:
    from rich.progress import track

    from accel_models.validation.errors import assess

    quiet = not sys.stderr.isatty() or len(names) == 1
    screen = Console(stderr=True)
    return [assess(name) for name in track(names, "validating", console=screen, transient=True, disable=quiet)]


def _print(found: Assessment, rows: bool) -> None:
    """One target: its rows if asked for, its errors, what calibrated it."""
    from accel_models.validation.tables import row_cells

    screen = console()
    if found.bars is None:
        screen.print(f"{found.target}: no published rows are at hand, its error is unknown")
        return
    if rows:
        heads = ("row", "published", "predicted", "unit", "error", "evidence", "")
        screen.print(_table(heads, [row_cells(item) for item in found.comparisons], found.target))
        if found.fitted_rows:
            screen.print(f"{found.target}: parameters were fitted to {', '.join(found.fitted_rows)}")
        _print_summary([found])


def _print_summary(found: Sequence[Assessment]) -> None:
    """The errors of targets, a line for each metric and scope."""
    from accel_models.validation.tables import HEADS, cells

    lines = [(each.target, *cells(bar)) for each in found for bar in (each.bars.bars if each.bars else ())]
    if lines:
        console(230).print(_table(("target", *HEADS), lines, ""))


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> Table:
    table = Table(box=None, title=title or None)
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _print_refits(names: Sequence[str]) -> None:
    """Fitted parameters, stored and fitted again."""
    from accel_models.validation.calibrate import Calibration
    from accel_models.validation.tables import refit_cells

    screen = console()
    for name in names:
        for refit in Calibration(name).refits():
            title = f"{name}: {len(refit.rows)} rows, root mean square of ln(predicted / published)"
            title += f" {refit.stored_rms:.4f} as stored, {refit.rms:.4f} fitted again"
            screen.print(_table(("parameter", "bounds", "stored", "fitted again"), list(refit_cells(refit)), title))


def _store(found: Sequence[Assessment]) -> Path:
    """Write the errors that results print; those of targets that were not assessed stay."""
    from accel_models import targets
    from accel_models.validation import FOLDER, error_bars
    from accel_models.validation.errors import store

    bars = {name: error_bars(name) for name in targets()} | {each.target: each.bars for each in found}
    if outside := bars.keys() - set(targets()):
        raise ConfigError(f"--store keeps errors of machines in specs/ only, {min(outside)!r} is a file of its own")
    store({name: known for name, known in bars.items() if known})
    return FOLDER / "errors.json"


def _write_json(path: Path, found: Sequence[Assessment]) -> Path:
    from accel_models.validation import LEVEL
    from accel_models.validation.tables import to_dict
    from codesign.study import write_json

    machines = {each.target: to_dict(each) for each in found}
    write_json(path, {"format": "codesign.validation", "version": 1, "interval_level": LEVEL, "targets": machines})
    return path


def _write_docs(folder: Path, found: Sequence[Assessment]) -> list[Path]:
    from accel_models.validation.tables import markdown, rewrite_docs

    if not folder.is_dir():
        raise ConfigError(f"--docs {folder}: no such folder; name the one that holds the Markdown pages")
    return rewrite_docs(folder, {each.target: markdown(each) for each in found})


def _draw(folder: Path, found: Sequence[Assessment]) -> list[Path]:
    """A figure for each target with rows, and one of all, as PNG and SVG."""
    from reports.validation import write_figures

    return write_figures(folder, [each for each in found if each.bars])
