"""The picture of a trail: what networks keep of their accuracy as weights go, and how fast they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from reports.drawing import BLUE, ORANGE, finish, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIDES = ((0, 1), (0, -1), (1, 0), (-1, 0))
"""Directions from a point in which its number may stand, those of first choice first."""
ACROSS, ALONG = {-1: "right", 0: "center", 1: "left"}, {-1: "top", 0: "center", 1: "bottom"}


def trail_figure(
    points: Mapping[str, Sequence[tuple[float, float]]], steps: Sequence[int], picked: int | None, note: str
) -> Figure:
    """Held-out accuracy against latency, a panel a machine; the steps of networks stand beside them where they fit.

    Args:
        points: by target, (latency over that of the dense network, accuracy as a fraction), the dense network first.
        steps: optimizer steps done when each network was left, the dense network's first.
        picked: place of the network that was picked.
        note: small text below.
    """
    with styled():
        figure, panels = new_figure(3.0, columns=len(points), sharey=True)
        for axes, (name, rows) in zip(panels, points.items(), strict=True):
            x, y = [row[0] for row in rows], [row[1] * 100 for row in rows]
            axes.plot(x[1:], y[1:], color=BLUE, linewidth=0.8, zorder=2)
            axes.scatter(
                x[1:], y[1:], facecolors="none", edgecolors=BLUE, s=26, zorder=3, label="on the trail, at step"
            )
            axes.scatter(x[:1], y[:1], color="black", marker="s", s=36, zorder=3, label="dense network")
            if picked is not None:
                axes.scatter(
                    x[picked], y[picked], marker="*", s=150, facecolors=ORANGE, edgecolors="black", linewidths=0.8,
                    zorder=4, label="the pick",
                )  # fmt: skip
            axes.margins(0.1)
            axes.set_title(name)
            axes.set_xlabel("latency over dense")
        panels[0].set_ylabel("held-out accuracy (%)\nbefore retraining")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=3)
        finish(figure, note)
        for axes, rows in zip(panels, points.values(), strict=True):
            _number(axes, [(x, y * 100) for x, y in rows], steps, picked)
    return figure


def _number(axes: Axes, places: Sequence[tuple[float, float]], steps: Sequence[int], picked: int | None) -> None:
    """Write steps beside points, each on the first side with room for it: clear of markers, lines and other numbers.

    The pick has the first, then the ends of the trail, then the others from the last on; some have none.
    """
    from matplotlib.path import Path
    from matplotlib.transforms import Bbox

    pixels = axes.figure.dpi / 72  # a point
    gaps = [8 if i == picked else 4 for i in range(len(places))]  # points: half a marker
    spots = axes.transData.transform(places)
    line = Path(spots[1:])
    taken = [Bbox([spot - gap * pixels, spot + gap * pixels]) for spot, gap in zip(spots, gaps, strict=True)]
    last = len(places) - 1
    for i in dict.fromkeys([*([picked] if picked else []), last, 1, *range(last, 0, -1)]):
        for dx, dy in SIDES:
            shift = (dx * (gaps[i] + 1), dy * (gaps[i] + 1))
            look: Any = {"ha": ACROSS[dx], "va": ALONG[dy], "fontsize": 6.5, "zorder": 5}
            text = axes.annotate(f"{steps[i]:,}", places[i], xytext=shift, textcoords="offset points", **look)
            box = text.get_window_extent()
            is_inside = axes.bbox.count_contains([box.min, box.max]) == 2
            others = [*taken[:i], *taken[i + 1 :]]
            if is_inside and not box.padded(3).count_overlaps(others) and not line.intersects_bbox(box, filled=False):
                taken.append(box)
                break
            text.remove()
