"""Numbers as people read them: three significant digits and a unit that fits."""

from __future__ import annotations

import math
from collections.abc import Sequence

Scale = tuple[tuple[float, str], ...]
TIME: Scale = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))
ENERGY: Scale = ((1.0, "J"), (1e-3, "mJ"), (1e-6, "uJ"), (1e-9, "nJ"), (1e-12, "pJ"))
COUNT: Scale = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
MISSING = "–"


def unit_of(values: Sequence[float], scale: Scale) -> tuple[float, str]:
    """The unit in which the largest value is at least 1: (its size in SI, its name).

    >>> unit_of([0.0004, 0.0000002], TIME)
    (1e-06, 'us')
    """
    largest = max((abs(value) for value in values), default=0.0)
    return next((pair for pair in scale if largest >= pair[0]), scale[-1] if largest > 0 else scale[0])


def quantity(value: float | None, scale: Scale) -> str:
    """A value in the unit that fits it; one that is not a number is not known.

    >>> quantity(0.001234, TIME), quantity(41_300_000, COUNT), quantity(None, TIME), quantity(0, ENERGY)
    ('1.23 ms', '41.3 M', '–', '0 J')
    """
    if value is None or math.isnan(value):
        return MISSING
    size, unit = unit_of([value], scale)
    return f"{digits(value / size)} {unit}".rstrip()


def digits(value: float) -> str:
    """Three significant digits without an exponent, thousands with commas.

    >>> [digits(x) for x in (0, 0.01234, 1.0, 9.999, 123.4, 12345.6)]
    ['0', '0.0123', '1.00', '10.0', '123', '12,346']
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    rounded = float(f"{value:.3g}")  # 9.999 becomes 10.0 before its digits are counted
    places = max(2 - math.floor(math.log10(abs(rounded))), 0)
    return f"{value:,.{places}f}"
