"""Figures: what is drawn follows from the record; same record, same bytes; names are text, never formulas."""

import dataclasses
import itertools
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from reports import figures
from reports.comparison import compare, compare_targets
from reports.drawing import CAUSE_LOOKS, STYLE, png, styled, svg
from reports.records import FrontPoint, RooflinePoint, RooflineRecord
from reports.spending import CAUSES
from tests.reports.builders import after, before, front, price, result, roofline, staircase

NOTE = "net on A machine; seed 7; codesign 1.2.3"
DRAWN: dict[str, Callable[[], Any]] = {
    "layers": lambda: figures.layer_bars(compare(before(), after(), 8), NOTE),
    "simulation": lambda: figures.simulation_bars(before(), NOTE),
    "front": lambda: figures.front_figure(front(), NOTE),
    "roofline": lambda: figures.roofline_figure([("before", roofline()), ("after", roofline())], NOTE),
    "staircases": lambda: figures.staircase_figure([staircase("a"), staircase("b"), staircase("c")], NOTE),
    "targets": lambda: figures.target_figure(compare_targets([before(), before()]), NOTE),
}


@pytest.mark.parametrize("name", DRAWN)
def test_same_record_same_bytes(name: str) -> None:
    first, second = DRAWN[name](), DRAWN[name]()
    assert svg(first, name) == svg(second, name)
    assert png(first) == png(second)
    assert png(first).startswith(b"\x89PNG")


def test_a_roofline_over_a_decade_has_plain_labels() -> None:
    low = dataclasses.replace(roofline(), points=(RooflinePoint("a", 0.7, 2e5, 0.6, "dram"),), peak=6e5)
    figure = figures.roofline_figure([("before", low), ("after", low)], NOTE)
    figure.canvas.draw()
    axes = figure.axes[0]
    labels = [label.get_text() for axis in (axes.xaxis, axes.yaxis) for label in axis.get_ticklabels(which="both")]
    assert {"0.3", "0.6"} <= set(labels)
    assert all(label == "" or f"{float(label):g}" == label for label in labels)


def test_same_bytes_in_another_process_with_another_hash_seed() -> None:
    code = (
        "from tests.reports.test_figures import DRAWN; from reports.drawing import svg; import hashlib;"
        "print(hashlib.sha256(svg(DRAWN['layers'](), 'x').encode()).hexdigest())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(found) == 1


@pytest.mark.parametrize("name", DRAWN)
def test_caption_and_units_are_in_every_figure(name: str) -> None:
    text = svg(DRAWN[name](), name)
    assert NOTE in text
    assert re.search(r"\((ms|µs|s|mJ|µJ|kMAC/s|MMAC/s|GMAC/s|%)\)", text)


@pytest.mark.parametrize("name", DRAWN)
def test_an_svg_fits_into_a_page(name: str) -> None:
    text = svg(DRAWN[name](), 'a "title" & <more>')
    assert text.startswith('<svg role="img" aria-label="a &#34;title&#34; &amp; &lt;more&gt;"')
    assert "http" not in text
    assert "<style" not in text  # would apply to the whole page
    assert "<?xml" not in text
    identities = re.findall(r' id="([^"]*)"', text)
    assert len(set(identities)) == len(identities)
    for used in re.findall(r'(?:url\(#|href="#)([^)"]+)', text):
        assert used in identities


@pytest.mark.parametrize("name", ["layers", "simulation", "targets"])
def test_bars_start_at_zero(name: str) -> None:
    for axes in DRAWN[name]().axes:
        assert axes.get_xlim()[0] == 0
        starts = [bar.get_x() for bar in axes.patches]
        assert min(starts) == 0


def bar_length(figure: Any, panel: int) -> dict[float, float]:
    """Height of the bar's middle on the axis to where its stack ends."""
    ends: dict[float, float] = {}
    for bar in figure.axes[panel].patches:
        middle = round(bar.get_y() + bar.get_height() / 2, 3)
        ends[middle] = max(ends.get(middle, 0.0), bar.get_x() + bar.get_width())
    return ends


def test_stacks_are_as_long_as_the_layers_take() -> None:
    """Layers a, b, add: 300, 100, 50 us before and 300, 50, 50 us after; before above after."""
    ends = bar_length(figures.layer_bars(compare(before(), after(), 8), NOTE), 1)
    lengths = [ends[middle] for middle in sorted(ends)]
    assert lengths == pytest.approx([300, 300, 100, 50, 50, 50])
    whole = bar_length(figures.layer_bars(compare(before(), after(), 8), NOTE), 0)
    assert sorted(whole.values()) == pytest.approx([400, 450])


def test_a_long_network_is_drawn_in_part_and_nothing_is_lost() -> None:
    layers = [price(f"features.block{i}.convolution_with_a_long_name", useful=i + 1) for i in range(120)]
    figure = figures.simulation_bars(result(*layers), NOTE)
    labels = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    assert len(labels) == figures.MOST_BARS
    assert labels[-1] == f"{121 - figures.MOST_BARS} smaller layers"
    assert max(map(len, labels)) <= 30
    assert sum(bar_length(figure, 1).values()) == pytest.approx(7.26)  # 1 + 2 + ... + 120 us, both axes in ms
    assert sum(bar_length(figure, 0).values()) == pytest.approx(7.26)


@pytest.mark.parametrize("name", ["$x^2$", "<script>alert(1)</script>", "a&b", "層", "", "a\nb", "_", "\\frac{1}{2}"])
def test_any_name_is_drawn_as_it_is(name: str) -> None:
    text = svg(figures.simulation_bars(result(price(name)), NOTE), "x")
    assert "<script" not in text
    shown = name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    if "\n" not in name and len(name) <= 30:
        assert shown in text


def test_kinds_of_candidates_are_told_apart_without_colour() -> None:
    legend = DRAWN["front"]().legends[0]
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["breaks a budget", "keeps the budget", "dense network", "the pick", "budget", "front"]
    markers = {look["marker"] for _, look in figures.POINT_LOOKS.values()}
    assert len(markers) == len(figures.POINT_LOOKS)
    assert len({hatch for _, hatch in CAUSE_LOOKS.values()}) == len(CAUSE_LOOKS)
    assert set(CAUSE_LOOKS) == set(CAUSES)


@pytest.mark.parametrize("name", ["layers", "simulation", "front", "targets"])
def test_a_legend_fits_onto_the_figure(name: str) -> None:
    figure = DRAWN[name]()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    box = figure.legends[0].get_window_extent(canvas.get_renderer())  # type: ignore[attr-defined]
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1


def test_a_front_without_measurements_is_one_panel() -> None:
    points = tuple(dataclasses.replace(point, heldout_accuracy=None) for point in front().points)
    assert len(figures.front_figure(dataclasses.replace(front(), points=points), NOTE).axes) == 1
    assert len(DRAWN["front"]().axes) == 2


def test_the_measured_candidates_fill_their_panel_beside_the_budget() -> None:
    """Six candidates within 3 % below the budget: what lies beyond it is a margin, not most of the panel."""
    near = [FrontPoint(0.1, (400 - 2 * i) * 1e-6, 8e-6, 2000, heldout_accuracy=0.9) for i in range(6)]
    points = (*front().points[2:], *near)
    axes = figures.front_figure(dataclasses.replace(front(), points=points, budgets={"latency": 402e-6}), NOTE).axes[1]
    left, right = axes.get_xlim()
    assert left < 390 < 402 < right
    assert right - 402 < 0.1 * (right - left)


def crowd(count: int) -> RooflineRecord:
    """Layers in a dense cluster, so that the place below a mark is often taken by another."""
    points = tuple(
        RooflinePoint(f"layer{i}", 20.0 * 1.06 ** (i % 7), 5e6 * 1.12 ** (i // 7 - i % 3), 1 / count, "compute")
        for i in range(count)
    )
    return dataclasses.replace(roofline(), points=points)


@pytest.mark.parametrize("count", [1, 7, 30])
def test_numbers_in_a_roofline_hide_no_mark_and_no_other_number(count: int) -> None:
    figure = figures.roofline_figure([("before", roofline()), ("after", crowd(count))], NOTE)
    axes = figure.axes[0]
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [Text.get_window_extent(text, canvas.get_renderer()) for text in axes.texts]  # type: ignore[attr-defined]
    assert len(boxes) == min(count, 8)
    for marks in axes.collections:
        centres = axes.transData.transform(marks.get_offsets())
        for (x, y), area in zip(centres, marks.get_sizes(), strict=True):
            radius = math.sqrt(area) / 2 * figure.dpi / 72
            for box in boxes:
                nearest = (min(max(x, box.x0), box.x1), min(max(y, box.y0), box.y1))
                assert math.dist((x, y), nearest) >= 0.9 * radius
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    assert all(axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 for box in boxes)


def test_nothing_global_is_left_behind() -> None:
    import matplotlib

    known = dict(matplotlib.rcParams)
    assert known["svg.hashsalt"] != STYLE["svg.hashsalt"]
    with styled():
        assert matplotlib.rcParams["svg.hashsalt"] == STYLE["svg.hashsalt"]
    png(DRAWN["front"]())
    assert dict(matplotlib.rcParams) == known
    code = (
        "import sys; import tests.reports.test_figures as t; t.png(t.DRAWN['layers']());"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
