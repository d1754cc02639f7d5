"""Records to folders: a self-contained page, its record as JSON, its figures as PNG.

    report.html       everything inline: style, figures as SVG; nothing is fetched, no script runs
    report.json       the record that was drawn (`comparison.html` and `.json` for several machines)
    figures/*.png     the same figures for slides

Everything is computed before the first file is written, every file is written whole or not at all, the page last.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel_models.result import SimulationResult, describe_error
from accel_models.validation import LEVEL
from reports import figures, numbers
from reports.comparison import TargetTable, compare_targets
from reports.drawing import png, svg
from reports.records import ReportRecord, standard_error
from reports.spending import largest_loss
from workloads.errors import ConfigError, DataError
from workloads.store import write_file

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup
    from matplotlib.figure import Figure

REPORT_FIGURES = ("layers", "front", "roofline", "staircases")
LIMITS = (
    "Prices come from a model of the machine, not from a run on it. The line on its error says how far it was off on "
    "published rows.",
    "Layers run one after another. Overlap between layers, other work on the machine, and changes of its clock are not "
    "modelled.",
)


UNCOMPARED = "Energy has not been compared with published energies: read the ratio of after to before, not the joules."


def write_report(folder: Path, record: ReportRecord) -> Path:
    """Write `report.html`, `report.json` and `figures/` into a folder, which is made if it is not there.

    Returns:
        Path of the page.

    Raises:
        ConfigError: the folder cannot be written, or a number of the record is not finite.
    """
    record = dataclasses.replace(record, release=record.release or own_version())
    data, note = record.to_dict(), _note(record)
    drawn = {name: figure for name, figure in _report_figures(record, note).items() if figure is not None}
    page = _page("report.html.j2", drawn, record=record, comparison=record.comparison, limits=_limits(record))
    return _write(folder, "report", page, data, drawn, REPORT_FIGURES)


def write_comparison(
    folder: Path, results: Sequence[SimulationResult], *, command: str = "", seed: int | None = None
) -> Path:
    """Write `comparison.html`, its JSON and its figure: one network on several machines.

    One result alone becomes a report of that simulation.

    Returns:
        Path of the page.

    Raises:
        ConfigError: no result, results of different networks, or a folder that cannot be written.
    """
    table = compare_targets(results)
    if len(results) == 1:
        title = f"{table.graph} on {results[0].title}"
        record = ReportRecord(title, results[0], model=table.graph, command=command, seed=seed)
        return write_report(folder, record)
    data = {**table.to_dict(), "results": [result.to_dict() for result in results]}
    drawn = {
        "targets": figures.target_figure(
            table, _caption(f"{table.graph} on {len(results)} machines", seed, own_version())
        )
    }
    limits = LIMITS if all(result.energy_error for result in results) else (*LIMITS, UNCOMPARED)
    page = _page("comparison.html.j2", drawn, table=table, results=results, command=command, limits=limits, seed=seed)
    return _write(folder, "comparison", page, data, drawn, ("targets",))


def own_version() -> str:
    """The installed version of the toolkit; "" where it runs from a source tree that was not installed."""
    try:
        return version("codesign")
    except PackageNotFoundError:
        return ""


# ---- what is on a page ----------------------------------------------------------------------------------------------


def _report_figures(record: ReportRecord, note: str) -> dict[str, Figure | None]:
    roofs = [("before", record.roofline_before), ("after", record.roofline_after)]
    known = [(label if record.after else "", roof) for label, roof in roofs if roof is not None]
    stairs = record.most_important_staircases
    comparison = record.comparison
    return {
        "layers": figures.layer_bars(comparison, note) if comparison else figures.simulation_bars(record.before, note),
        "front": figures.front_figure(record.front, note) if record.front and record.front.points else None,
        "roofline": figures.roofline_figure(known, note) if known else None,
        "staircases": figures.staircase_figure(stairs, note) if stairs else None,
    }


def _note(record: ReportRecord) -> str:
    """A figure's caption: workload, accelerator, seed, version."""
    result = record.before
    data = f" on {record.data}" if record.data else ""
    return _caption(
        f"{record.model or result.graph}{data}; {result.title}, {result.precision}", record.seed, record.release
    )


def _caption(what: str, seed: int | None, release: str) -> str:
    seeded = f"seed {seed}" if seed is not None else ""
    return "; ".join(filter(None, (what, seeded, f"codesign {release}" if release else "")))


def _limits(record: ReportRecord) -> tuple[str, ...]:
    """What the numbers leave out: the same for every report, then the record's own."""
    measured, priced = record.accuracies, record.before.precision
    converted = ""
    if measured and measured.precision != priced:
        converted = f"Accuracy was measured in {measured.precision}, prices are for {priced}: "
        converted += "what the conversion costs in accuracy is not in these numbers."
    energies = "" if record.before.energy_error else UNCOMPARED
    return tuple(filter(None, (*LIMITS, energies, converted, *record.not_modelled)))


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    scales = {"time": numbers.TIME, "energy": numbers.ENERGY, "size": numbers.SIZE, "count": numbers.COUNT}
    for name, scale in scales.items():
        environment.filters[name] = lambda value, scale=scale: numbers.quantity(value, scale)
    environment.filters.update(percent=numbers.percent, digits=numbers.digits, times=numbers.times, path=_path)
    environment.filters["scaled"] = numbers.quantity
    environment.globals.update(
        describe_error=describe_error,
        LEVEL=LEVEL,
        standard_error=standard_error,
        unit_of=numbers.unit_of,
        largest_loss=largest_loss,
        TIME=numbers.TIME,
        ENERGY=numbers.ENERGY,
        SCALES=numbers.SCALES,
    )
    return environment


def _path(name: str) -> Markup:
    """A name, escaped, that may break after its dots and underscores."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([._/])(?=.)", r"\1<wbr>", str(escape(name))))


def _page(template: str, drawn: Mapping[str, Figure], **context: Any) -> str:
    from markupsafe import Markup

    images = {name: Markup(svg(figure, f"Figure: {name}")) for name, figure in drawn.items()}
    return _environment().get_template(template).render(figures=images, own_version=own_version(), **context)


# ---- files ----------------------------------------------------------------------------------------------------------


def _write(
    folder: Path, name: str, page: str, data: Mapping[str, Any], drawn: Mapping[str, Figure], known: Sequence[str]
) -> Path:
    """All files, the page last; of the `known` figures those of an earlier page that this one lacks are removed."""
    text = json.dumps(data, indent=1, allow_nan=False) + "\n"
    files = {f"figures/{key}.png": png(figure) for key, figure in drawn.items()}
    files |= {f"{name}.json": text.encode(), f"{name}.html": page.encode()}
    try:
        for path, content in files.items():
            write_file(folder / path, content)
        for stale in set(known) - set(drawn):
            (folder / "figures" / f"{stale}.png").unlink(missing_ok=True)
    except (DataError, OSError) as error:
        raise ConfigError(f"report: {error}") from error
    return folder / f"{name}.html"


__all__ = ["TargetTable", "own_version", "write_comparison", "write_report"]
