"""Numbers as people read them: three significant digits and a unit."""

from __future__ import annotations

import math
from collections.abc import Sequence

TIME = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
ENERGY = ((1.0, "J"), (1e-3, "mJ"), (1e-6, "µJ"), (1e-9, "nJ"), (1e-12, "pJ"))
SIZE = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
COUNT = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
Scale = tuple[tuple[float, str], ...]
SCALES: dict[str, Scale] = {"latency": TIME, "energy": ENERGY, "size": SIZE, "macs": COUNT}
MISSING = "–"


def unit_of(values: Sequence[float], scale: Scale) -> tuple[float, str]:
    """The unit in which the largest value is at least 1: (its size in SI, its name).

    >>> unit_of([0.0004, 0.0000002], TIME)
    (1e-06, 'µs')
    """
    largest = max((abs(value) for value in values), default=0.0)
    return next((pair for pair in scale if largest >= pair[0]), scale[-1] if largest > 0 else scale[0])


def quantity(value: float | None, scale: Scale) -> str:
    """A value in the unit that fits it; one that is not a number is not known.

    >>> quantity(0.001234, TIME), quantity(41_300_000, COUNT), quantity(None, SIZE), quantity(0, ENERGY)
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


def percent(value: float | None) -> str:
    """
    >>> percent(0.9173), percent(None)
    ('91.73%', '–')
    """
    return MISSING if value is None else f"{value * 100:.2f}%"


def times(ratio: float | None) -> str:
    """A factor.

    >>> times(0.6641), times(None)
    ('0.66x', '–')
    """
    return MISSING if ratio is None else f"{ratio:.2f}x"


def shorten(text: str, length: int = 30) -> str:
    """The middle cut out where it is too long: both ends of a module path tell more than its middle.

    >>> shorten("features.denseblock4.denselayer16.conv2", 24)
    'features.den…yer16.conv2'
    """
    if len(text) <= length:
        return text
    half = (length - 1) // 2
    return f"{text[: length - 1 - half]}…{text[-half:]}"
