"""Accesses to joules.

    E = sum over components of accesses * pJ per access * 1e-12  +  static power * latency

A family counts accesses of its own components (multiplications, bytes at each memory level, idle unit-cycles); the
spec gives picojoules for each, every number with its source and, where it was taken from another process node, the
scaling that was applied. Known to be wrong in absolute terms: published tables differ by 2x for the same access;
ratios between two variants of a network on one machine are what they are good for.
"""

from __future__ import annotations

import numpy as np

from accel_models.spec import HardwareSpec


def component_names(components: tuple[str, ...]) -> tuple[str, ...]:
    """Columns of `joules`: the family's components, then "static"."""
    return (*components, "static")


def joules(accesses: np.ndarray, latency_s: np.ndarray, spec: HardwareSpec, components: tuple[str, ...]) -> np.ndarray:
    """Energy by component, (rows, components + 1); the last column is static energy.

    Args:
        accesses: float64 (rows, components).
        latency_s: float64 (rows,).
    """
    picojoules = np.array([spec.energy_pj[name] for name in components])
    static = (spec.static_power_w or 0.0) * latency_s
    return np.concatenate([accesses * picojoules * 1e-12, static[:, None]], axis=1)
