"""What a layer's cycles were spent on, in the words of reports.

A price splits cycles into multiplications really performed (useful), overhead, imbalance, memory and launch. Overhead
is all other computing: lanes that idle, rounding up to whole tiles, ramp-up, instructions that do not multiply. A layer
without MACs does nothing else, so here its computing is called elementwise: an addition does not look like waste.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from accel_models.result import LayerPrice

CAUSES: Mapping[str, str] = {
    "useful": "multiplications",
    "elementwise": "elementwise work and copies",
    "overhead": "compute overhead",
    "imbalance": "load imbalance",
    "memory": "waiting for memory",
    "launch": "launch and set-up",
    "other": "all that a measurement does not tell apart",
}
WORK = ("useful", "elementwise")  # the rest is lost


def spent(layer: LayerPrice) -> dict[str, float]:
    """Cycles by cause; they sum to the layer's."""
    found = dict.fromkeys(CAUSES, 0.0)
    for part, cycles in layer.lost.items():
        is_work = not layer.macs and part in ("useful", "overhead")
        found["elementwise" if is_work else part] += cycles
    return found


def spent_in_all(layers: Iterable[LayerPrice]) -> dict[str, float]:
    """Cycles by cause, summed over layers."""
    found = dict.fromkeys(CAUSES, 0.0)
    for layer in layers:
        for cause, cycles in spent(layer).items():
            found[cause] += cycles
    return found


def largest_loss(layer: LayerPrice) -> tuple[str, float] | None:
    """The cause that costs most beside the work itself, and its share of the time; None below half a percent."""
    lost = {cause: cycles for cause, cycles in spent(layer).items() if cause not in WORK}
    cause = max(lost, key=lambda name: lost[name])
    return (cause, lost[cause] / layer.cycles) if lost[cause] > 0.005 * layer.cycles else None
