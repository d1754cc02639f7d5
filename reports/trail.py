"""The picture of a trail: what ever sparser networks keep of their accuracy, and how fast they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from reports.drawing import BLUE, ORANGE, finish, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def trail_figure(points: Mapping[str, Sequence[tuple[float, float]]], picked: int | None, note: str) -> Figure:
    """Held-out accuracy against latency, a panel a machine.

    Args:
        points: by target, (latency over that of the dense network, accuracy as a fraction), the dense network first.
        picked: place of the network that was picked.
        note: small text below.
    """
    with styled():
        figure, panels = new_figure(3.0, columns=len(points), sharey=True)
        for axes, (name, rows) in zip(panels, points.items(), strict=True):
            x, y = [row[0] for row in rows], [row[1] * 100 for row in rows]
            axes.plot(x[1:], y[1:], color=BLUE, linewidth=0.8, zorder=2)
            axes.scatter(x[1:], y[1:], facecolors="none", edgecolors=BLUE, s=26, zorder=3, label="on the trail")
            axes.scatter(x[:1], y[:1], color="black", marker="s", s=36, zorder=3, label="dense network")
            if picked is not None:
                axes.scatter(
                    x[picked], y[picked], marker="*", s=150, facecolors=ORANGE, edgecolors="black", linewidths=0.8,
                    zorder=4, label="the pick",
                )  # fmt: skip
            axes.set_title(name)
            axes.set_xlabel("latency over dense")
        panels[0].set_ylabel("held-out accuracy (%)\nbefore retraining")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=3)
        finish(figure, note)
    return figure
