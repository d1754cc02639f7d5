"""The four costs that budgets speak of, of a graph as it is or of candidate rows."""

from __future__ import annotations

import numpy as np

from accel_models import SimulationResult
from workloads.columns import Columns
from workloads.graph import LayerGraph

METRICS = ("latency", "energy", "macs", "size")


def graph_costs(result: SimulationResult, graph: LayerGraph) -> dict[str, float]:
    """Latency (s), energy (J), multiplications with kept weights, and bytes of stored weights of a simulated graph."""
    static = {name: float(rows.sum()) for name, rows in static_costs(graph.columns).items()}
    return {"latency": result.latency_s, "energy": result.energy_j, **static}


def nonzero_macs(graph: LayerGraph) -> float:
    """Multiplications by weights that are not zero."""
    return float(static_costs(graph.columns)["macs"].sum())


def static_costs(rows: Columns) -> dict[str, np.ndarray]:
    """Costs that do not depend on the machine, float64 (rows,): multiplications with kept weights, stored bytes.

    A sparse tensor is stored as its kept values and one bit an element; biases are stored in 32 bits.
    """
    kept = rows.weight_elements * rows.weight_density
    marks = np.where(rows.weight_density < 1, rows.weight_elements, 0)
    return {
        "macs": rows.macs * rows.weight_density,
        "size": (kept * rows.weight_bits + marks + rows.bias * rows.k * 32) / 8,
    }
