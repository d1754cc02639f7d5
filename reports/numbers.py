"""Numbers as pages and figures show them: the units of `accel_models.quantities` with a µ, and some more."""

from __future__ import annotations

from accel_models.quantities import COUNT, MISSING, Scale, digits, quantity, unit_of

TIME: Scale = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
ENERGY: Scale = ((1.0, "J"), (1e-3, "mJ"), (1e-6, "µJ"), (1e-9, "nJ"), (1e-12, "pJ"))
SIZE: Scale = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
SCALES: dict[str, Scale] = {"latency": TIME, "energy": ENERGY, "size": SIZE, "macs": COUNT}


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


__all__ = [
    "COUNT", "ENERGY", "MISSING", "SCALES", "SIZE", "TIME", "Scale", "digits", "percent", "quantity", "shorten",
    "times", "unit_of",
]  # fmt: skip
