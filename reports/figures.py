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
from reports.comparison import Comparison, LayerChange, TargetTable
from reports.drawing import BLUE, CAUSES, GREEN, GREY, ORANGE, RED, SKY, caption, new_figure, styled
from reports.numbers import SCALES, TIME, digits, quantity, shorten, unit_of
from reports.records import FrontPoint, FrontRecord, RooflineRecord, StaircaseRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_BARS = 40  # layers in a bar chart; the least important of a longer network are drawn as one
AXIS_NAMES = {"latency": "latency", "energy": "energy", "macs": "multiply-accumulates", "size": "stored weights"}


# ---- layers ---------------------------------------------------------------------------------------------------------


def layer_bars(comparison: Comparison, note: str) -> Figure:
    """Time of every layer before (upper bar) and after (lower bar), split by what it was spent on."""
    changes = [change for change in comparison.layers if change.costs_time]
    rows = [(label, [_times(side) for side in sides]) for label, sides in _most_important(changes)]
    total = {cause: values for cause, values in comparison.lost.items()}
    whole = [{cause: values[i] / comparison.clock_hz for cause, values in total.items()} for i in (0, 1)]
    return _bars([("whole network", whole)], rows, note, ("upper bar: before", "lower bar: after"))


def simulation_bars(result: SimulationResult, note: str) -> Figure:
    """Time of every layer of one simulation, split by what it was spent on."""
    changes = [LayerChange(layer.name, layer, None) for layer in result.layers if layer.cycles > 0]
    rows = [(label, [_times(sides[0])]) for label, sides in _most_important(changes)]
    whole = {cause: cycles / result.clock_hz for cause, cycles in result.lost_by_cause().items()}
    return _bars([("whole network", [whole])], rows, note, ())


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
    found = dict.fromkeys(CAUSES, 0.0)
    for layer in layers:
        for cause, cycles in layer.lost.items():
            found[cause] += cycles * (layer.latency_s / layer.cycles if layer.cycles else 0.0)
    return found


def _bars(top: Rows, rows: Rows, note: str, legend: Sequence[str]) -> Figure:
    """Stacked horizontal bars: the whole network above, its layers below, each with its own scale."""
    bars = max(len(values) for _, values in rows)
    step = 0.15 * bars + 0.09
    heights = [step + 0.55, step * len(rows) + 0.35]
    with styled():
        figure, (upper, lower) = new_figure(sum(heights) + 0.75, rows=2, height_ratios=heights)
        _stack(upper, top)
        _stack(lower, rows)
        _cause_legend(figure, [values for _, sides in [*top, *rows] for values in sides], legend)
        caption(figure, note)
    return figure


def _stack(axes: Axes, rows: Rows) -> None:
    size, unit = unit_of([sum(values.values()) for _, sides in rows for values in sides], TIME)
    bars = max(len(sides) for _, sides in rows)
    thick = 0.8 / bars
    for cause, (_, colour, hatch) in CAUSES.items():
        for side in range(bars):
            before = [sum(_upto(sides[side], cause)) / size for _, sides in rows]
            length = [max(sides[side].get(cause, 0.0), 0.0) / size for _, sides in rows]
            place = [i - 0.4 + thick * (side + 0.5) for i in range(len(rows))]
            axes.barh(
                place, length, thick * 0.94, left=before, color=colour, hatch=hatch, edgecolor="white", linewidth=0.3
            )
    axes.set_yticks(range(len(rows)), [label for label, _ in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"time ({unit})")
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def _upto(values: Mapping[str, float], cause: str) -> list[float]:
    """What is stacked before a cause."""
    order = list(CAUSES)
    return [max(values.get(name, 0.0), 0.0) for name in order[: order.index(cause)]]


def _cause_legend(figure: Figure, drawn: Sequence[Mapping[str, float]], extra: Sequence[str]) -> None:
    """The causes that occur, and words on which bar is which."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    total = sum(sum(values.values()) for values in drawn)
    used = [cause for cause in CAUSES if sum(values.get(cause, 0.0) for values in drawn) > 1e-6 * total]
    handles: list[Any] = [
        Patch(facecolor=CAUSES[cause][1], hatch=CAUSES[cause][2], edgecolor="white", label=CAUSES[cause][0])
        for cause in used
    ]
    handles += [Line2D([], [], linestyle="none", label=text) for text in extra]
    figure.legend(handles=handles, loc="outside upper left", ncols=4, handlelength=1.6, columnspacing=1.4)


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
            color=GREY, linewidth=0.9, zorder=2, label="front", drawstyle="steps-post",
        )  # fmt: skip
        panels[0].set_ylabel("expected rise of the loss")
        panels[0].set_title("predicted: all candidates")
        if measured:
            _scatter(panels[1], front, [(point, (point.heldout_accuracy or 0.0) * 100) for point in measured], size)
            panels[1].set_ylabel("held-out accuracy before fine-tuning (%)")
            panels[1].set_title("measured: some candidates")
        for axes in panels:
            axes.set_xlabel(" ".join(filter(None, (AXIS_NAMES[front.metric], f"({unit})" if unit else ""))))
        handles = {
            text: handle for axes in panels for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=4)
        caption(figure, note)
    return figure


def _scatter(axes: Axes, front: FrontRecord, points: Sequence[tuple[FrontPoint, float]], size: float) -> None:
    """Points by kind, the budget as a line with what lies beyond shaded."""
    many = len(points) > 100
    kinds: list[tuple[str, Any, dict[str, Any]]] = [
        ("breaks a budget", lambda p: not p.feasible and not p.is_dense and not p.chosen,
         {"marker": "x", "color": GREY, "s": 10 if many else 24, "linewidths": 0.7, "zorder": 2.1}),
        ("keeps the budget", lambda p: p.feasible and not p.is_dense and not p.chosen,
         {"marker": "o", "facecolors": "none", "edgecolors": BLUE, "s": 10 if many else 28, "linewidths": 0.8, "zorder": 2.2}),
        ("dense network", lambda p: p.is_dense, {"marker": "s", "color": "black", "s": 36, "zorder": 3}),
        ("the pick", lambda p: p.chosen,
         {"marker": "*", "facecolors": ORANGE, "edgecolors": "black", "s": 150, "linewidths": 0.8, "zorder": 4}),
    ]  # fmt: skip
    for label, belongs, look in kinds:
        chosen = [(front.cost(point), y) for point, y in points if belongs(point) and front.cost(point) is not None]
        if chosen:
            x, y = zip(*chosen, strict=True)
            axes.scatter(np.array(x, float) / size, y, label=label, **look)
    if front.metric in front.budgets:
        limit = front.budgets[front.metric] / size
        axes.axvline(limit, color=RED, linestyle="--", linewidth=1, label="budget", zorder=1.9)
        right = max(axes.get_xlim()[1], limit * 1.05)
        axes.axvspan(limit, right, facecolor=RED, alpha=0.06, linewidth=0)
        axes.set_xlim(right=right)


# ---- roofline -------------------------------------------------------------------------------------------------------


def roofline_figure(records: Sequence[tuple[str, RooflineRecord]], note: str) -> Figure:
    """Layers under the roof, up to two networks (before, after) on one machine; numbers name the costliest layers."""
    first = records[0][1]
    intensities = [point.intensity for _, record in records for point in record.points] or [first.ridge]
    left = min(*intensities, first.ridge) / 3
    right = max(*intensities, first.ridge) * 4
    x = np.geomspace(left, right, 200)
    size, unit = unit_of([first.peak], SCALES["macs"])
    with styled():
        figure, (axes,) = new_figure(4.2)
        axes.plot(x, [first.roof(v) / size for v in x], color="black", linewidth=1.4)
        looks = (
            {"marker": "o", "facecolors": "none", "edgecolors": BLUE},
            {"marker": "^", "facecolors": ORANGE, "edgecolors": "black"},
        )
        for (label, record), look in zip(records, looks, strict=False):
            axes.scatter(
                [point.intensity for point in record.points],
                [point.achieved / size for point in record.points],
                s=[14 + 500 * point.share for point in record.points],
                label=label, linewidths=0.9, zorder=3, alpha=0.85, **look,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(left, right)
        axes.set_ylim(top=first.peak / size * 2.2)
        axes.set_xlabel(f"multiplications performed per byte through {first.memory}")
        axes.set_ylabel(f"{unit}MAC/s achieved")
        axes.set_title(
            f"roof: {digits(first.peak / size)} {unit}MAC/s ({first.precision}), "
            f"{first.memory} {quantity(first.bandwidth, SCALES['size'])}/s"
        )
        _number_layers(figure, axes, records[-1][1], size)
        caption(figure, note)
    return figure


def _number_layers(figure: Figure, axes: Axes, record: RooflineRecord, size: float, most: int = 8) -> None:
    """Numbers beside the points with most time, their names in the legend; equal points share a number."""
    from matplotlib.lines import Line2D

    places: dict[tuple[str, str], list[int]] = {}
    for i, point in enumerate(record.points):
        places.setdefault((f"{point.intensity:.2g}", f"{point.achieved:.2g}"), []).append(i)
    share = {place: sum(record.points[i].share for i in members) for place, members in places.items()}
    handles, labels = axes.get_legend_handles_labels()
    for number, place in enumerate(sorted(places, key=lambda p: (-share[p], p))[:most], 1):
        members = places[place]
        point = record.points[members[0]]
        axes.annotate(
            str(number), (point.intensity, point.achieved / size), xytext=(0, -11 if number % 2 else 8),
            textcoords="offset points", fontsize=7.5, ha="center", zorder=5,
        )  # fmt: skip
        more = f" and {len(members) - 1} alike" if len(members) > 1 else ""
        handles.append(Line2D([], [], linestyle="none"))
        labels.append(f"{number}  {shorten(point.name, 22)}{more} ({share[place]:.0%})")
    for handle in handles[: len(handles) - min(len(places), most)]:
        handle.set_sizes([30])
    legend = figure.legend(handles, labels, loc="outside right upper", handlelength=1, title="share of the time")


# ---- staircases -----------------------------------------------------------------------------------------------------


def staircase_figure(records: Sequence[StaircaseRecord], note: str) -> Figure:
    """Small multiples: latency of the whole network against the count of one group."""
    columns = min(len(records), 2)
    rows = math.ceil(len(records) / columns)
    size, unit = unit_of([value for record in records for value in record.latency_s], TIME)
    with styled():
        figure, panels = new_figure(1.75 * rows + 0.8, rows=rows, columns=columns)
        for axes, record in zip(panels, records, strict=False):
            _stairs(axes, record, size)
            axes.set_title(shorten(record.group, 40), fontsize=8.5)
        for axes in panels[len(records) :]:
            axes.set_visible(False)
        figure.supylabel(f"latency of the network ({unit})", fontsize=9)
        handles = {
            text: h
            for axes in panels[: len(records)]
            for h, text in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=4)
        caption(figure, note)
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
    axes.set_ylim(0, float(latency.max()) * 1.12 or 1)
    axes.set_xlim(0, float(counts.max()) * 1.04)
    axes.set_xlabel("channels", fontsize=8)
    axes.tick_params(labelsize=8)


# ---- machines -------------------------------------------------------------------------------------------------------


def target_figure(table: TargetTable, note: str) -> Figure:
    """Latency with the model's mean error, energy, and what the time goes to, a bar a machine."""
    names = [shorten(row.target, 26) for row in table.rows]
    with styled():
        figure, panels = new_figure(0.42 * len(names) + 1.75, columns=3, sharey=True)
        _value_bars(panels[0], [row.latency_s for row in table.rows], "latency", SKY, "")
        size, _ = unit_of([row.latency_s for row in table.rows], TIME)
        for i, row in enumerate(table.rows):
            if row.interval_s:
                low, high = row.interval_s
                axes_x = row.latency_s / size
                panels[0].errorbar(
                    axes_x,
                    i,
                    xerr=[[axes_x - low / size], [high / size - axes_x]],
                    color="black",
                    capsize=3,
                    linewidth=1,
                )
        _value_bars(panels[1], [row.energy_j for row in table.rows], "energy", ORANGE, "////")
        _shares(panels[2], [row.lost for row in table.rows])
        panels[0].set_yticks(range(len(names)), names)
        panels[0].set_ylim(len(names) - 0.4, -0.6)
        _cause_legend(figure, [row.lost for row in table.rows], ("whiskers: mean error of the model",))
        caption(figure, note)
    return figure


def _value_bars(axes: Axes, values: Sequence[float], metric: str, colour: str, hatch: str) -> None:
    size, unit = unit_of(values, SCALES[metric])
    axes.barh(
        range(len(values)), [v / size for v in values], 0.6, color=colour, hatch=hatch, edgecolor="white", linewidth=0.3
    )
    for i, value in enumerate(values):
        axes.annotate(
            digits(value / size),
            (value / size, i),
            xytext=(3, 9),
            textcoords="offset points",
            fontsize=7.5,
            va="center",
        )
    axes.set_xlim(0, max(values) / size * 1.25 or 1)
    axes.set_xlabel(f"{metric} ({unit})")
    axes.grid(axis="y", visible=False)


def _shares(axes: Axes, lost: Sequence[Mapping[str, float]]) -> None:
    start = np.zeros(len(lost))
    for cause, (_, colour, hatch) in CAUSES.items():
        share = np.array([max(row.get(cause, 0.0), 0.0) / (sum(row.values()) or 1) * 100 for row in lost])
        axes.barh(range(len(lost)), share, 0.6, left=start, color=colour, hatch=hatch, edgecolor="white", linewidth=0.3)
        start += share
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the time (%)")
    axes.grid(axis="y", visible=False)
