"""Published numbers against predicted ones: a record of points, and its log-log figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from accel_models.registry import target
from accel_models.validation.errors import Assessment
from accel_models.validation.rows import TIME_UNITS, UNITS, Row
from reports.codec import Record
from reports.drawing import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, finish, new_figure, png, styled, svg_file
from reports.numbers import COUNT, ENERGY, SIZE, TIME, Scale, shorten, unit_of
from workloads.errors import ConfigError, DataError
from workloads.store import write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS: Mapping[str, str] = {  # quantity of a row: panel; ticks carry the unit where it varies
    "cycles": "time",
    "latency": "time",
    "throughput": "time",
    "energy": "energy",
    "power": "power",
    "traffic": "traffic",
    "fact": "counts",
    "share": "shares (%)",
}
LOOKS: Mapping[str, tuple[str, str]] = {  # kind of evidence: (colour, marker)
    "silicon": (BLUE, "o"),
    "fvp_model": (GREEN, "s"),
    "vendor_estimate": (ORANGE, "^"),
    "authors_simulator": (PURPLE, "D"),
    "post_layout_simulation": (RED, "v"),
}
POWER: Scale = ((1.0, "W"), (1e-3, "mW"), (1e-6, "µW"))
PARTS = "parts of the time"  # facts in cycles or units of time
SCALES_OF: Mapping[str, Scale] = {
    "time": TIME,
    PARTS: TIME,
    "energy": ENERGY,
    "power": POWER,
    "traffic": SIZE,
}
STEPS = (
    (10, 12, 15, 20, 25, 30, 40, 50, 60, 80),
    (10, 15, 20, 30, 50, 70),
    (10, 20, 50),
    (10, 30),
    (10,),
)  # of a decade
BAND = 0.2  # relative error that the dashed lines mark


@dataclass(frozen=True)
class Point:
    """One published number, in SI units, shares in percent; `fitted` if the model was calibrated with it.

    `error` is the row's own, as in the tables: of a throughput that of the throughput, where the panel shows times.
    """

    panel: str
    id: str
    target: str
    kind: str
    fitted: bool
    published: float
    predicted: float
    error: float


@dataclass(frozen=True)
class ValidationRecord(Record):
    """What the figure of one or several targets shows."""

    FORMAT: ClassVar[str] = "codesign.validation_figure"

    title: str
    points: tuple[Point, ...]

    @property
    def panels(self) -> tuple[str, ...]:
        """Those with points, in the order of PANELS."""
        order = dict.fromkeys((PANELS["latency"], PARTS, *PANELS.values()))
        return tuple(name for name in order if any(point.panel == name for point in self.points))


def validation_record(found: Sequence[Assessment]) -> ValidationRecord:
    """The points of some targets; all times in seconds, also where cycles or inputs a second were published."""
    names = [each.target.removesuffix(".yaml").rpartition("/")[2] for each in found]  # of a file of one's own: its stem
    points = tuple(point for each in found for point in _points(each))
    return ValidationRecord(names[0] if len(names) == 1 else f"{len(names)} machines", points)


def _points(found: Assessment) -> list[Point]:
    clock_hz = target(found.target).spec.clock_hz
    return [
        Point(
            _panel_of(item.row),
            item.row.id,
            found.target,
            item.row.kind,
            item.row.calibrated,
            _in_panel(item.row, item.row.value, clock_hz),
            _in_panel(item.row, item.predicted, clock_hz),
            item.error,
        )
        for item in found.comparisons
    ]


def _panel_of(row: Row) -> str:
    if row.in_points:
        return PANELS["share"]
    if row.quantity == "fact" and row.unit in ("cycle", *TIME_UNITS):
        return PARTS
    return PANELS["traffic" if row.unit in UNITS["traffic"] else row.quantity]


def _in_panel(row: Row, value: float, clock_hz: float) -> float:
    if row.in_points:
        return value
    value *= row.si
    if row.unit == "cycle":
        return value / row.changes.get("clock_hz", clock_hz)
    return 1 / value if row.quantity == "throughput" else value


def write_figures(folder: Path, found: Sequence[Assessment]) -> list[Path]:
    """`<target>.png` and `.svg` of every target with rows, and `all` of several together; returns what was written.

    Raises:
        ConfigError: the folder cannot be written.
    """
    known = [each for each in found if each.comparisons]
    records = {record.title: record for record in (validation_record([each]) for each in known)}
    if len(known) > 1:
        records["all"] = validation_record(known)
    written = []
    for name, record in records.items():
        figure = validation_figure(record, f"codesign validate; {len(record.points)} published numbers")
        for suffix, content in (("png", png(figure)), ("svg", svg_file(figure, f"Validation of {name}"))):
            written.append(folder / f"{name}.{suffix}")
            try:
                write_file(written[-1], content)
            except (DataError, OSError) as error:
                raise ConfigError(f"plot: {error}") from error
    return written


def validation_figure(record: ValidationRecord, note: str) -> Figure:
    """Predicted against published, a panel for each kind of quantity; hollow marks were used for calibration."""
    columns = min(len(record.panels), 3)
    lines = math.ceil(len(record.panels) / columns)
    with styled():
        figure, axes = new_figure(0.8 + 2.6 * lines if columns > 1 else 4.6, lines, columns)
        for panel, each in zip(record.panels, axes, strict=False):
            _panel(each, panel, [point for point in record.points if point.panel == panel])
        for each in axes[len(record.panels) :]:
            each.set_visible(False)
        _legend(figure, record)
        figure.suptitle(record.title, x=0.01, ha="left", fontsize=10)
        finish(figure, note)
    return figure


def _panel(axes: Axes, panel: str, points: Sequence[Point]) -> None:
    is_log = panel != PANELS["share"]
    for kind, fitted in dict.fromkeys((point.kind, point.fitted) for point in points):
        chosen = [point for point in points if (point.kind, point.fitted) == (kind, fitted)]
        colour, marker = LOOKS.get(kind, (GREY, "x"))
        face = "none" if fitted else colour
        places = [[getattr(point, side) for point in chosen] for side in ("published", "predicted")]
        axes.plot(*places, marker, markeredgecolor=colour, markerfacecolor=face, markersize=4.5, alpha=0.85)
    values = [v for point in points for v in (point.published, point.predicted) if v > 0 or not is_log]
    low, high = (min(values) / 1.6, max(values) * 1.6) if is_log else (0.0, max(values) * 1.1 or 1.0)
    _guides(axes, low, high, is_log)
    if is_log:
        _logarithmic(axes, low, high, SCALES_OF.get(panel, COUNT))
    axes.set(xlim=(low, high), ylim=(low, high), title=panel, xlabel="published", ylabel="predicted")
    axes.set_aspect("equal", adjustable="box")
    axes.tick_params(labelsize=7.5)
    _name_worst(axes, max(points, key=lambda point: abs(point.error)))


def _logarithmic(axes: Axes, low: float, high: float, scale: Scale) -> None:
    """Both axes logarithmic, with few labels that carry units."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis, most in ((axes.xaxis, 3), (axes.yaxis, 6)):  # labels of the lower axis stand side by side
        axis.set_major_locator(FixedLocator(ticks(low, high, most)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: _short(value, scale)))


def ticks(low: float, high: float, most: int) -> list[float]:
    """At most so many round numbers between two, as evenly spread over the logarithmic axis as they can be.

    >>> ticks(0.09, 20, 6), ticks(0.09, 20, 3), ticks(220, 400, 3)
    ([0.1, 0.3, 1.0, 3.0, 10.0], [0.1, 1.0, 10.0], [250.0, 300.0, 400.0])
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in STEPS:
        found = [float(f"{step}e{decade - 1}") for decade in decades for step in steps]
        inside = [value for value in found if low <= value <= high]
        if len(inside) <= most:
            return inside
    every = -(-len(inside) // most)
    return inside[::every]


def _short(value: float, scale: Scale) -> str:
    """
    >>> _short(0.02, TIME), _short(1e6, COUNT)
    ('20 ms', '1 M')
    """
    size, unit = unit_of([value], scale)
    return f"{value / size:g} {unit}".rstrip()


def _guides(axes: Axes, low: float, high: float, is_log: bool) -> None:
    """The diagonal, and where predictions are off by BAND (by 3 points, of shares)."""
    ends = [low, high]
    axes.plot(ends, ends, color=GREY, linewidth=0.8)
    bands = (
        [[e * f for e in ends] for f in (1 - BAND, 1 + BAND)] if is_log else [[e + d for e in ends] for d in (-3, 3)]
    )
    for band in bands:
        axes.plot(ends, band, color=GREY, linewidth=0.6, linestyle="--")


def _name_worst(axes: Axes, worst: Point) -> None:
    """Ring the row of the largest error and name it in the corner that the diagonal leaves free."""
    if worst.error == 0:
        return
    axes.plot(worst.published, worst.predicted, "o", markersize=10, markerfacecolor="none", markeredgecolor="black")
    error = f"{100 * worst.error:+.1f}{' points' if worst.panel == PANELS['share'] else '%'}"
    if worst.error * (worst.predicted - worst.published) < 0:  # the panel shows its inverse
        error += " (rate)"
    text = f"worst, ringed: {error}\n{shorten(worst.id, 24)}"
    back = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
    axes.annotate(text, (0.03, 0.97), xycoords="axes fraction", fontsize=6.5, va="top", bbox=back, zorder=1)


def _legend(figure: Figure, record: ValidationRecord) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for kind in dict.fromkeys(point.kind for point in record.points):
        colour, marker = LOOKS.get(kind, (GREY, "x"))
        handles.append(Line2D([], [], marker=marker, color=colour, linestyle="", label=kind.replace("_", " ")))
    if any(point.fitted for point in record.points):
        look = {"marker": "o", "markerfacecolor": "none", "markeredgecolor": GREY, "linestyle": ""}
        handles.append(Line2D([], [], label="hollow: used for calibration", **look))  # type: ignore[arg-type]
    handles.append(Line2D([], [], color=GREY, linestyle="--", linewidth=0.8, label=f"off by {BAND:.0%} (3 points)"))
    figure.legend(handles=handles, loc="outside upper right", ncols=min(len(handles), 3))
