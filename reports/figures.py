"""Every record as a matplotlib figure: bars of layers, front, roofline, staircases, machines.

Functions return `Figure` objects; `drawing.png` and `drawing.svg` turn them into bytes. They compute nothing but
positions: what is drawn is in the record.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from accel_models.result import LayerPrice, SimulationResult
from accel_models.validation import LEVEL
from reports.comparison import Comparison, LayerChange, TargetTable
from reports.drawing import BLUE, CAUSE_LOOKS, GREEN, GREY, ORANGE, RED, finish, new_figure, styled
from reports.numbers import SCALES, TIME, digits, quantity, shorten, unit_of
from reports.records import FrontPoint, FrontRecord, RooflinePoint, RooflineRecord, StaircaseRecord
from reports.spending import CAUSES, spent_in_all

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_BARS = 32  # layers in a bar chart; the least important of a longer network are drawn as one
AXIS_NAMES = {"latency": "latency", "energy": "energy", "macs": "multiply-accumulates", "size": "stored weights"}


# ---- layers ---------------------------------------------------------------------------------------------------------


def layer_bars(comparison: Comparison, note: str) -> Figure:
    """Time of every layer before (upper bar) and after (lower bar), split by what it was spent on."""
    changes = [change for change in comparison.layers if change.costs_time]
    rows = [(label, [_times(side) for side in sides]) for label, sides in _most_important(changes)]
    whole = [{cause: values[i] / comparison.clock_hz for cause, values in comparison.spent.items()} for i in (0, 1)]
    return _bars([("whole network", whole)], rows, note, "upper bar: before, lower: after")


def simulation_bars(result: SimulationResult, note: str) -> Figure:
    """Time of every layer of one simulation, split by what it was spent on."""
    changes = [LayerChange(layer.name, layer, None) for layer in result.layers if layer.cycles > 0]
    rows = [(label, [_times(sides[0])]) for label, sides in _most_important(changes)]
    whole = {cause: cycles / result.clock_hz for cause, cycles in spent_in_all(result.layers).items()}
    return _bars([("whole network", [whole])], rows, note, "")


Sides = tuple[list[LayerPrice], list[LayerPrice]]
Rows = list[tuple[str, list[dict[str, float]]]]


def _most_important(changes: Sequence[LayerChange]) -> list[tuple[str, Sides]]:
    """The layers that take most time, in graph order, and the rest as one."""
    cost = [max(side.cycles for side in (change.before, change.after) if side) for change in changes]
    order = sorted(range(len(changes)), key=lambda i: (-cost[i], i))
    room = len(changes) if len(changes) <= MOST_BARS else MOST_BARS - 1
    shown, rest = sorted(order[:room]), sorted(order[room:])
    rows = [(shorten(changes[i].name), _sides([changes[i]])) for i in shown]
    return rows + ([(f"{len(rest)} smaller layers", _sides([changes[i] for i in rest]))] if rest else [])


def _sides(changes: Sequence[LayerChange]) -> Sides:
    return [c.before for c in changes if c.before], [c.after for c in changes if c.after]


def _times(layers: Sequence[LayerPrice]) -> dict[str, float]:
    """Seconds by cause, summed over layers."""
    cycles, latency_s = (sum(getattr(layer, name) for layer in layers) for name in ("cycles", "latency_s"))
    return {cause: part * latency_s / cycles if cycles else 0.0 for cause, part in spent_in_all(layers).items()}


def _bars(top: Rows, rows: Rows, note: str, legend: str) -> Figure:
    """Stacked horizontal bars: the whole network above, its layers below, each with its own scale."""
    bars = max(len(values) for _, values in top)
    step = 0.11 * bars + 0.07
    heights = [step + 0.55, step * len(rows) + 0.35]
    with styled():
        figure, (upper, lower) = new_figure(sum(heights) + 0.75, rows=2, height_ratios=heights)
        _stack(upper, top)
        _stack(lower, rows)
        _cause_legend(figure, [values for _, sides in [*top, *rows] for values in sides], legend)
        finish(figure, note)
    return figure


def _stack(axes: Axes, rows: Rows) -> None:
    size, unit = unit_of([sum(values.values()) for _, sides in rows for values in sides], TIME)
    bars = max((len(sides) for _, sides in rows), default=1)
    thick = 0.8 / bars
    for cause, (colour, hatch) in CAUSE_LOOKS.items():
        parts = [
            (i - 0.4 + thick * (side + 0.5), values[cause] / size, sum(_before(values, cause)) / size)
            for i, (_, sides) in enumerate(rows)
            for side, values in enumerate(sides)
            if values.get(cause, 0.0) > 0
        ]
        if parts:
            place, length, start = zip(*parts, strict=True)
            look: Any = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0.3}
            axes.barh(place, length, thick * 0.94, left=start, **look)
    axes.set_yticks(range(len(rows)), [label for label, _ in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"time ({unit})")
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def _before(values: Mapping[str, float], cause: str) -> list[float]:
    """What is stacked before a cause."""
    order = list(CAUSES)
    return [max(values.get(name, 0.0), 0.0) for name in order[: order.index(cause)]]


def _cause_legend(figure: Figure, drawn: Sequence[Mapping[str, float]], extra: str) -> None:
    """The causes that occur, and words on which bar is which."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    total = sum(sum(values.values()) for values in drawn)
    used = [cause for cause in CAUSES if sum(values.get(cause, 0.0) for values in drawn) > 1e-6 * total]
    handles: list[Any] = [
        Patch(facecolor=CAUSE_LOOKS[cause][0], hatch=CAUSE_LOOKS[cause][1], edgecolor="white", label=CAUSES[cause])
        for cause in used
    ]
    if extra:
        handles.append(Line2D([], [], linestyle="none", label=extra))
    figure.legend(handles=handles, loc="outside upper left", ncols=3, handlelength=1.6, columnspacing=1.4)


def _shared_legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend above all panels, every label once."""
    known: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            known.setdefault(label, handle)
    figure.legend(known.values(), known.keys(), loc="outside upper left", ncols=6, columnspacing=1.0, handletextpad=0.4)


# ---- front ----------------------------------------------------------------------------------------------------------


def front_figure(front: FrontRecord, note: str) -> Figure:
    """Expected loss against cost, and measured accuracy against cost where some was measured."""
    size, unit = unit_of([front.cost(point) or 0.0 for point in front.points], SCALES[front.metric])
    measured = [point for point in front.points if point.heldout_accuracy is not None]
    with styled():
        figure, panels = new_figure(3.6, columns=2 if measured else 1)
        losses = [(point, point.predicted_loss) for point in front.points]
        _scatter(panels[0], front, losses, size)
        line = [front.points[i] for i in front.frontier]
        panels[0].plot(
            [(front.cost(point) or 0) / size for point in line], [point.predicted_loss for point in line],
            color="black", linewidth=0.9, zorder=2.5, label="front", drawstyle="steps-post",
        )  # fmt: skip
        panels[0].set_ylabel("expected rise of the loss")
        panels[0].set_title("predicted: all candidates")
        if measured:
            _scatter(panels[1], front, [(point, (point.heldout_accuracy or 0.0) * 100) for point in measured], size)
            panels[1].set_ylabel("held-out accuracy (%)")
            panels[1].set_title("measured before fine-tuning: some candidates")
        for axes in panels:
            axes.set_xlabel(" ".join(filter(None, (AXIS_NAMES[front.metric], f"({unit})" if unit else ""))))
        _shared_legend(figure, panels)
        finish(figure, note)
    return figure


POINT_LOOKS: Mapping[str, tuple[str, Any]] = {  # kind of a point: (legend, how it is drawn)
    "infeasible": ("breaks a budget", {"marker": "x", "color": GREY, "linewidths": 0.7, "zorder": 2.1}),
    "feasible": (
        "keeps the budget",
        {"marker": "o", "facecolors": "none", "edgecolors": BLUE, "linewidths": 0.8, "zorder": 2.2},
    ),
    "dense": ("dense network", {"marker": "s", "color": "black", "s": 36, "zorder": 3}),
    "chosen": (
        "the pick",
        {"marker": "*", "facecolors": ORANGE, "edgecolors": "black", "s": 150, "linewidths": 0.8, "zorder": 4},
    ),
}


def _scatter(axes: Axes, front: FrontRecord, points: Sequence[tuple[FrontPoint, float]], size: float) -> None:
    """Points by kind, the budget as a line with what lies beyond shaded."""
    for kind, (label, look) in POINT_LOOKS.items():
        chosen = [(cost / size, y) for p, y in points if p.kind == kind and (cost := front.cost(p)) is not None]
        if chosen:
            axes.scatter(*zip(*chosen, strict=True), label=label, **{"s": 10 if len(points) > 100 else 26, **look})
    if front.metric in front.budgets:
        limit = front.budgets[front.metric] / size
        axes.axvline(limit, color=RED, linestyle="--", linewidth=1, label="budget", zorder=1.9)
        left, right = axes.get_xlim()  # holds points and line, with the margin of its own span
        axes.axvspan(limit, right, facecolor=RED, alpha=0.06, linewidth=0)
        axes.set_xlim(left, right)


# ---- roofline -------------------------------------------------------------------------------------------------------


Mark = tuple[float, float, float]  # where it lies, in data units, and its area in square points
LABEL = 4.5  # points from the middle of a number to its edge
NETWORK_LOOKS: Sequence[Any] = (
    {"marker": "o", "facecolors": "none", "edgecolors": BLUE},
    {"marker": "^", "facecolors": ORANGE, "edgecolors": "black"},
)


def roofline_figure(records: Sequence[tuple[str, RooflineRecord]], note: str) -> Figure:
    """Layers under the roof, one or two networks (before, after) on one machine; numbers name the costliest layers."""
    from matplotlib.ticker import LogFormatter

    class PlainNumbers(LogFormatter):
        """Labels the ticks that there is room for, as 0.3 and neither 3e-01 nor TeX."""

        def __call__(self, value: float, position: int | None = None) -> str:
            return f"{value:g}" if super().__call__(value, position) else ""

    first = records[0][1]
    intensities = [first.ridge, *(point.intensity for _, record in records for point in record.points)]
    left, right = min(intensities) / 3, max(intensities) * 4
    x = np.geomspace(left, right, 200)
    size, unit = unit_of([first.peak], SCALES["macs"])
    with styled():
        figure, (axes,) = new_figure(4.2)
        axes.plot(x, [first.roof(v) / size for v in x], color="black", linewidth=1.4)
        marks: list[Mark] = []
        for (label, record), look in zip(records, NETWORK_LOOKS, strict=False):
            own = [(point.intensity, point.achieved / size, 14 + 500 * point.share) for point in record.points]
            across, up, area = zip(*own, strict=True) if own else ((), (), ())
            axes.scatter(across, up, s=area, label=label, linewidths=0.9, zorder=3, alpha=0.85, **look)
            marks += own
        for axis, scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
            scale("log")
            axis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.set_minor_formatter(PlainNumbers())
        axes.set_xlim(left, right)
        axes.set_ylim(top=first.peak / size * 2.2)
        axes.set_xlabel(f"multiplications performed per byte through {first.memory}")
        axes.set_ylabel(f"achieved ({unit}MAC/s)")
        axes.set_title(
            f"roof: {digits(first.peak / size)} {unit}MAC/s ({first.precision}), "
            f"{first.memory} {quantity(first.bandwidth, SCALES['size'])}/s"
        )
        named = _name_layers(figure, axes, *records[-1])
        finish(figure, note)
        _number(axes, [(point.intensity, point.achieved / size) for point in named], marks)
    return figure


def _name_layers(figure: Figure, axes: Axes, label: str, record: RooflineRecord, most: int = 8) -> list[RooflinePoint]:
    """The layers with most time, numbered and named in the legend; points in one place share a number."""
    from matplotlib.lines import Line2D

    places: dict[tuple[str, str], list[RooflinePoint]] = {}
    for point in record.points:
        places.setdefault((f"{point.intensity:.2g}", f"{point.achieved:.2g}"), []).append(point)
    share = {place: sum(point.share for point in members) for place, members in places.items()}
    handles, labels = axes.get_legend_handles_labels()
    markers = len(handles)
    chosen = sorted(places, key=lambda p: (-share[p], p))[:most]
    for number, place in enumerate(chosen, 1):
        more = f" + {len(places[place]) - 1} alike" if len(places[place]) > 1 else ""
        handles.append(Line2D([], [], linestyle="none"))
        labels.append(f"{number}  {shorten(places[place][0].name, 22)}{more}, {share[place]:.0%}")
    title = f"share of the time\n({label})" if label else "share of the time"
    legend = figure.legend(handles, labels, loc="outside right upper", handlelength=1, title=title)
    for handle in legend.legend_handles[:markers]:
        handle.set_sizes([30])  # type: ignore[union-attr]
    return [places[place][0] for place in chosen]


def _number(axes: Axes, places: Sequence[tuple[float, float]], marks: Sequence[Mark]) -> None:
    """Write 1, 2, ... at these marks where nothing is hidden; a line leads from a number that stands farther off.

    The axes must have their final size.
    """
    to_points = 72 / axes.figure.dpi

    def at(x: float, y: float) -> tuple[float, float]:
        return tuple(axes.transData.transform((x, y)) * to_points)

    taken = [(*at(x, y), math.sqrt(area) / 2) for x, y, area in marks]
    taken += [(*at(x, y), 0.0) for x, y in np.asarray(axes.lines[0].get_xydata(), float)]  # the roof
    frame = axes.bbox.padded(-LABEL / to_points)
    for number, place in enumerate(places, 1):
        x, y = at(*place)
        own = max(radius for *centre, radius in taken if math.dist(centre, (x, y)) < 1e-6)
        rings = [(own + LABEL + gap, turn * math.tau / 16) for gap in (1.5, 7, 14, 22, 32) for turn in range(16)]
        spots = [(far * math.sin(angle), -far * math.cos(angle)) for far, angle in rings]  # below the mark first
        inside = [spot for spot in spots if frame.contains((x + spot[0]) / to_points, (y + spot[1]) / to_points)]
        room = [min(math.dist((x + dx, y + dy), each[:2]) - each[2] for each in taken) for dx, dy in inside]
        dx, dy = inside[next((i for i, free in enumerate(room) if free > LABEL), int(np.argmax(room)))]
        taken.append((x + dx, y + dy, LABEL))
        look: Any = {"textcoords": "offset points", "fontsize": 7.5, "ha": "center", "va": "center", "zorder": 2.9}
        if math.hypot(dx, dy) > own + LABEL + 2:
            look["arrowprops"] = {"arrowstyle": "-", "linewidth": 0.5, "color": GREY, "shrinkA": 0, "shrinkB": 0}
        axes.annotate(str(number), place, xytext=(dx, dy), **look)


# ---- staircases -----------------------------------------------------------------------------------------------------


def staircase_figure(records: Sequence[StaircaseRecord], note: str) -> Figure:
    """Small multiples: latency of the whole network against the count of one group."""
    columns = min(len(records), 2)
    rows = math.ceil(len(records) / columns)
    size, unit = unit_of([value for record in records for value in record.latency_s], TIME)
    with styled():
        figure, panels = new_figure(1.75 * rows + 0.8, rows=rows, columns=columns, sharey=True)
        for axes, record in zip(panels, records, strict=False):
            _stairs(axes, record, size)
            axes.set_title(shorten(record.group, 40), fontsize=8.5)
        for axes in panels[len(records) :]:
            axes.set_visible(False)
        figure.supylabel(f"latency of the network ({unit})", fontsize=9)
        _shared_legend(figure, panels)
        finish(figure, note)
    return figure


def _stairs(axes: Axes, record: StaircaseRecord, size: float) -> None:
    counts, latency = np.array(record.counts), np.array(record.latency_s) / size
    axes.plot(
        counts, latency, color=BLUE, linewidth=1, marker="." if len(counts) <= 64 else "", markersize=3, label="priced"
    )
    known = dict(zip(record.counts, latency, strict=True))
    offered = [count for count in record.offered if count in known]
    axes.scatter(
        offered, [known[c] for c in offered], s=30, facecolors="none", edgecolors=GREEN, linewidths=1.3, zorder=3,
        label="offered to the search",
    )  # fmt: skip
    if record.chosen in known:
        axes.scatter(
            [record.chosen], [known[record.chosen]], marker="*", s=110, facecolors=ORANGE, edgecolors="black",
            linewidths=0.7, zorder=4, label="chosen",
        )  # fmt: skip
    axes.set_xlim(0, float(counts.max()) * 1.04)
    axes.set_xlabel("channels", fontsize=8)
    axes.tick_params(labelsize=8)


# ---- machines -------------------------------------------------------------------------------------------------------


def target_figure(table: TargetTable, note: str) -> Figure:
    """Latency with the model's mean error, energy, and what the time goes to, a bar a machine."""
    names = [shorten(row.target, 26) for row in table.rows]
    with styled():
        figure, panels = new_figure(0.42 * len(names) + 1.75, columns=3, sharey=True)
        tops = [row.interval_s[1] for row in table.rows if row.interval_s]
        _value_bars(panels[0], [row.latency_s for row in table.rows], "latency", max(tops, default=0.0))
        size, _ = unit_of([row.latency_s for row in table.rows], TIME)
        for i, row in enumerate(table.rows):
            if row.interval_s:
                low, high = (bound / size for bound in row.interval_s)  # need not hold the bar's own end
                half = (high - low) / 2
                panels[0].errorbar(low + half, i, xerr=half, color="black", capsize=3, linewidth=1, fmt="none")
        _value_bars(panels[1], [row.energy_j for row in table.rows], "energy")
        _shares(panels[2], [row.spent for row in table.rows])
        panels[0].set_yticks(range(len(names)), names)
        panels[0].set_ylim(len(names) - 0.4, -0.6)
        _cause_legend(figure, [row.spent for row in table.rows], f"whiskers: {LEVEL:.0%} interval of a published time")
        finish(figure, note)
    return figure


def _value_bars(axes: Axes, values: Sequence[float | None], metric: str, top: float = 0.0) -> None:
    known = [value or 0.0 for value in values]
    size, unit = unit_of(known, SCALES[metric])
    axes.barh(range(len(known)), [value / size for value in known], 0.6, color="#9a9a9a", linewidth=0)
    for i, (value, length) in enumerate(zip(values, known, strict=True)):
        look: Any = {"textcoords": "offset points", "xytext": (3, 9), "fontsize": 7.5, "va": "center"}
        axes.annotate("unknown" if value is None else digits(length / size), (length / size, i), **look)
    axes.set_xlim(0, max(max(known) * 1.25, top * 1.05) / size or 1)
    axes.set_xlabel(f"{metric} ({unit})")
    axes.grid(axis="y", visible=False)


def _shares(axes: Axes, lost: Sequence[Mapping[str, float]]) -> None:
    start = np.zeros(len(lost))
    for cause, (colour, hatch) in CAUSE_LOOKS.items():
        share = np.array([max(row.get(cause, 0.0), 0.0) / (sum(row.values()) or 1) * 100 for row in lost])
        axes.barh(range(len(lost)), share, 0.6, left=start, color=colour, hatch=hatch, edgecolor="white", linewidth=0.3)
        start += share
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the time (%)")
    axes.grid(axis="y", visible=False)
