"""Budgets as people write them: `latency=0.7x`, `latency=2ms`, `energy=2mJ`, `macs=0.4x`, `size=200KB`.

`x` means times the dense network on the same target. Metrics are latency (s), energy (J), macs and size (bytes of
stored weights).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from workloads.errors import ConfigError

UNITS: Mapping[str, Mapping[str, float]] = {
    "latency": {"s": 1.0, "ms": 1e-3, "us": 1e-6},
    "energy": {"J": 1.0, "mJ": 1e-3, "uJ": 1e-6},
    "macs": {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9},
    "size": {"B": 1.0, "KB": 1e3, "MB": 1e6, "KiB": 1024.0, "MiB": 1024.0**2},
}
ROUNDING = 1e-9  # of a budget, by which sums in another order may miss it


def parse_budgets(texts: Sequence[str], dense: Mapping[str, float]) -> dict[str, float]:
    """Budgets in SI units.

    Args:
        texts: one `metric=number unit` each.
        dense: what the dense network costs, by metric.

    Raises:
        ConfigError: names the text, the metric or the unit that is wrong, or the metric that has two budgets.

    >>> parse_budgets(["latency=0.5x", "energy=2mJ"], {"latency": 0.004, "energy": 0.005})
    {'latency': 0.002, 'energy': 0.002}
    """
    found: dict[str, float] = {}
    for metric, value in (_parse(text, dense) for text in texts):
        if metric in found:
            raise ConfigError(f"budgets {', '.join(texts)}: {metric} has two, give the lower one")
        found[metric] = value
    return found


def are_kept(budgets: Mapping[str, float], costs: Mapping[str, Any]) -> Any:
    """Whether costs keep every budget, up to rounding; of arrays of costs (candidates,) bool (candidates,)."""
    return np.all([costs[name] <= budget * (1 + ROUNDING) for name, budget in budgets.items()], axis=0)


def _parse(text: str, dense: Mapping[str, float]) -> tuple[str, float]:
    metric, _, amount = text.partition("=")
    if metric not in UNITS:
        raise ConfigError(f"budget {text!r}: metric {metric!r} is unknown; allowed: {', '.join(UNITS)}")
    found = re.fullmatch(r"(\d+\.?\d*(?:e-?\d+)?|\.\d+)\s*([A-Za-z]*)", amount.strip())
    if not found:
        raise ConfigError(f"budget {text!r}: {amount!r} is not a number with a unit, such as {metric}=0.7x")
    number, unit = float(found[1]), found[2]
    if number <= 0:
        raise ConfigError(f"budget {text!r}: must be greater than 0")
    if unit == "x":
        return metric, number * dense[metric]
    if unit not in UNITS[metric]:
        raise ConfigError(
            f"budget {text!r}: unit {unit!r} is unknown; allowed: x, {', '.join(filter(None, UNITS[metric]))}"
        )
    return metric, number * UNITS[metric][unit]


def show(metric: str, value: float) -> str:
    """A cost in the unit that people read.

    >>> show("latency", 0.00123), show("energy", 2e-6), show("macs", 41e6), show("size", 270e3)
    ('1.230 ms', '2.000 uJ', '41.000 M', '270.000 KB')
    """
    scales = sorted((scale, unit) for unit, scale in UNITS[metric].items() if not unit.endswith("iB"))
    scale, unit = next((pair for pair in reversed(scales) if value >= pair[0]), scales[0])
    return f"{value / scale:.3f} {unit}".rstrip()
