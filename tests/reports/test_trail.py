"""The picture of a trail: every network that has room has its step beside it, and no number lies on anything."""

from __future__ import annotations

import pytest
from matplotlib.axes import Axes

from reports.trail import trail_figure

APART = [(1.0, 0.9), (0.8, 0.2), (0.6, 0.4), (0.4, 0.6), (0.2, 0.8)]
CLOSE = [(1.0, 0.1), (0.8, 0.2), (0.41, 0.9), (0.405, 0.9), (0.4, 0.9), (0.395, 0.901)]


def axes_of(points: list[tuple[float, float]], picked: int | None) -> Axes:
    return trail_figure({"ideal": points}, [10_000 * i for i in range(len(points))], picked, "note").axes[0]


def numbers(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_networks_far_apart_have_their_steps() -> None:
    assert sorted(numbers(axes_of(APART, None))) == ["10,000", "20,000", "30,000", "40,000"]


@pytest.mark.parametrize("picked", [None, 2, 5])
def test_where_they_are_close_no_number_lies_on_another_or_on_a_point(picked: int | None) -> None:
    axes = axes_of(CLOSE, picked)
    assert "10,000" in numbers(axes)
    assert len(axes.texts) < len(CLOSE) - 1
    assert picked is None or f"{picked}0,000" in numbers(axes)
    boxes = [text.get_window_extent() for text in axes.texts]
    spots = axes.transData.transform([(x, y * 100) for x, y in CLOSE])
    for i, box in enumerate(boxes):
        assert not box.count_overlaps(boxes[:i])
        assert not any(box.contains(*spot) for spot in spots)
        assert axes.bbox.count_contains([box.min, box.max]) == 2
