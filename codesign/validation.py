"""What `codesign validate` does: assess targets, print, store, draw, and keep the docs in step."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from codesign.show import console
from workloads.errors import CodesignError, ConfigError

if TYPE_CHECKING:
    from accel_models.validation.errors import Assessment

HOST = "host"
HOST_SPEC = Path("host_cpu.yaml")
"""Where `codesign calibrate` writes if it is not told."""


def validate(
    names: Sequence[str],
    *,
    rows: bool = False,
    refit: bool = False,
    store: bool = False,
    out: Path | None = None,
    docs: Path | None = None,
    plot: Path | None = None,
    spec: Path | None = None,
) -> None:
    """Recompute the errors of targets (all by default), print them, and write what was asked for.

    Args:
        names: of machines; HOST holds the machine file `spec` against this machine.
    """
    from accel_models import targets
    from accel_models.validation.errors import store as store_errors

    simulated = [name for name in names if name != HOST]
    found, wrong = _assess(tuple(simulated) or targets()) if simulated or not names else ([], {})
    for each in found:
        _print(each, rows or bool(names))
    if HOST in names:
        from codesign.held import hold

        machine_file = spec or HOST_SPEC
        is_new = not machine_file.exists()
        found.append(hold(machine_file))
        _print(found[-1], True, "measured")
    if refit:
        _print_refits([each.target for each in found])
    written = [machine_file] if HOST in names and is_new else []
    written += store_errors(found) if store else []
    written += [_write_json(out, found)] if out else []
    written += _write_docs(docs, found, wrong) if docs else []
    written += _draw(plot, found) if plot else []
    for path in written:
        console().print(f"written: {path}", soft_wrap=True)
    if wrong:
        raise ConfigError("; ".join(wrong.values()))


def _assess(names: Sequence[str]) -> tuple[list[Assessment], dict[str, str]]:
    """What is known of each machine, and what is wrong with those that cannot be assessed, by name."""
    from rich.progress import track

    from accel_models.validation.errors import assess

    quiet = not sys.stderr.isatty() or len(names) == 1
    found, wrong = [], {}
    for name in track(names, "validating", console=Console(stderr=True), transient=True, disable=quiet):
        try:
            found.append(assess(name))
        except CodesignError as error:
            wrong[name] = str(error)
    return found, wrong


def _print(found: Assessment, rows: bool, origin: str = "published") -> None:
    """One target: its rows if asked for, what calibrated it, its errors; `origin` of what it is compared with."""
    from accel_models.validation.tables import SHORT_HEADS, details, short_cells

    screen = console()
    if found.bars is None:
        screen.print(f"{found.target}: no published rows are at hand, its error is unknown\n", soft_wrap=True)
        return
    screen.print(found.target, style="bold", soft_wrap=True)
    if rows:
        _print_rows(found, origin)
        if found.fitted_rows:
            screen.print(_indented(f"parameters were fitted to {', '.join(found.fitted_rows)}"))
        screen.print()
    screen.print(_table(SHORT_HEADS, [short_cells(bar) for bar in found.bars.bars]))
    for bar in found.bars.bars:
        screen.print(_indented(details(bar)))
    screen.print()


def _print_rows(found: Assessment, origin: str) -> None:
    """A line a row; where the screen is too narrow for it, the numbers below the row's name."""
    from accel_models.validation.tables import ROW_HEADS, row_cells

    screen = console()
    lines = [row_cells(item) for item in found.comparisons]
    table = _table([origin if head == "published" else head for head in ROW_HEADS], lines)
    if screen.measure(table, options=screen.options.update(width=1000)).maximum <= screen.width:
        screen.print(table)
        return
    for name, published, predicted, unit, error, kind, fitted in lines:
        screen.print(f" {name}", soft_wrap=True)
        said = (f"{origin} {published} {unit}, predicted {predicted}, {error}", kind, fitted)
        screen.print(_indented("; ".join(filter(None, said))))


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _indented(text: str) -> Padding:
    return Padding(text, (0, 0, 0, 4), expand=False)


def _print_refits(names: Sequence[str]) -> None:
    """Fitted parameters, stored and fitted again."""
    from accel_models.validation.calibrate import Calibration
    from accel_models.validation.tables import refit_cells

    screen = console()
    for name in names:
        for refit in Calibration(name).refits():
            title = f"{name}: {len(refit.rows)} rows, root mean square of ln(predicted / published)"
            screen.print(f"{title} {refit.stored_rms:.4f} as stored, {refit.rms:.4f} fitted again")
            screen.print(_table(("parameter", "bounds", "stored", "fitted again"), list(refit_cells(refit))))


def _write_json(path: Path, found: Sequence[Assessment]) -> Path:
    from accel_models.validation import LEVEL
    from accel_models.validation.tables import to_dict
    from workloads.store import write_json

    machines = {each.target: to_dict(each) for each in found}
    write_json(path, {"format": "codesign.validation", "version": 1, "interval_level": LEVEL, "targets": machines})
    return path


def _write_docs(folder: Path, found: Sequence[Assessment], wrong: Collection[str]) -> list[Path]:
    from accel_models import targets
    from accel_models.validation.tables import markdown, rewrite_docs

    if not folder.is_dir():
        raise ConfigError(f"--docs {folder}: no such folder; name the one that holds the Markdown pages")
    return rewrite_docs(folder, {each.target: markdown(each) for each in found}, {*targets(), *wrong})


def _draw(folder: Path, found: Sequence[Assessment]) -> list[Path]:
    """A figure for each target with rows, and one of all, as PNG and SVG."""
    from reports.validation import write_figures

    return write_figures(folder, [each for each in found if each.bars])
