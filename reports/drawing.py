"""How figures look and how they become bytes: one style, no pyplot, the same record gives the same bytes.

Colours are Okabe and Ito's, told apart by colour-blind readers; every one comes with a hatch or a marker of its own.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 7.4  # inches: a column of the page, a printed page between its margins
BLUE, ORANGE, GREEN, RED, SKY, PURPLE, GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#56B4E9",
    "#CC79A7",
    "#777777",
)
CAUSE_LOOKS: Mapping[str, tuple[str, str]] = {  # cause of `spending`: (colour, hatch)
    "useful": (BLUE, ""),
    "elementwise": (SKY, "--"),
    "overhead": (ORANGE, "////"),
    "imbalance": (PURPLE, "xxxx"),
    "memory": (GREEN, "|"),
    "launch": (RED, "\\\\\\\\"),
    "other": (GREY, ".."),
}
STYLE: Mapping[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.6,
    "legend.fontsize": 8.0,
    "legend.frameon": False,
    "text.parse_math": False,  # a layer may be called $x$
    "svg.fonttype": "none",
    "svg.hashsalt": "codesign",
    "savefig.dpi": 150,
    "figure.dpi": 100,
}


@contextmanager
def styled() -> Iterator[None]:
    """Matplotlib's own defaults and our style, whatever the user's matplotlibrc says; restored afterwards."""
    import matplotlib

    style: Any = {name: value for name, value in matplotlib.rcParamsDefault.items() if not name.startswith("backend")}
    style.update(STYLE)
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*missing from.*font")  # a name in a script that the font lacks
        matplotlib.rcParams.update(style)
        yield


def new_figure(height: float, rows: int = 1, columns: int = 1, **grid: Any) -> tuple[Figure, list[Axes]]:
    """A figure of the page's width with a grid of axes, row by row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **grid).ravel())


def finish(figure: Figure, caption: str) -> None:
    """Put small text below everything (workload, machine, seed, version), then lay the figure out, once for all."""
    figure.supxlabel(caption, fontsize=7, color="#555555", x=0.01, ha="left", wrap=True)
    if engine := figure.get_layout_engine():
        engine.execute(figure)
    figure.set_layout_engine("none")


def png(figure: Figure) -> bytes:
    """The figure as PNG, without a date or a version in it."""
    return _save(figure, "png", {"Software": None})


def svg_file(figure: Figure, title: str) -> bytes:
    """The figure as a whole SVG file, without a date in it."""
    return _save(figure, "svg", {**dict.fromkeys(("Date", "Creator", "Format", "Type")), "Title": title})


def svg(figure: Figure, title: str) -> str:
    """The figure as an <svg> element to put into a page: text stays text, nothing is fetched.

    Args:
        figure: to draw.
        title: what a screen reader says.
    """
    from markupsafe import escape

    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    text = _save(figure, "svg", nothing).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)  # known to an HTML parser
    referenced = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in referenced else "", text)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)  # would style the page
    look = "stroke-linejoin: round; stroke-linecap: butt"
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(title)}" style="{look}"', 1)


def _save(figure: Figure, kind: str, metadata: Mapping[str, Any]) -> bytes:
    stream = io.BytesIO()
    with styled():
        figure.savefig(stream, format=kind, metadata=dict(metadata))
    return stream.getvalue()
