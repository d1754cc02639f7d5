"""The roofline of a spec: the smallest honest machine, and the bound that no other one may beat.

    cycles = max( MACs * d / peak,  bytes / bandwidth )          one tile a layer

d is the fraction of multiplications that the machine need not skip (1 unless `skips_zero_weights`). Bytes are what
must move if buffers are unlimited: every input, weight and output once, weights as plain arrays. Elementwise layers
cost their bytes only. Known to be wrong everywhere on purpose: no launch, no overhead, no imbalance, no refetch.
"""

from __future__ import annotations

import numpy as np

from accel_models.family import Family
from accel_models.mapping import Steps
from accel_models.placement import Placement
from accel_models.registry import family
from accel_models.spec import Count, Frozen
from workloads.columns import Columns


@family("ideal")
class Ideal(Family):
    """Roofline with one memory."""

    class Parameters(Frozen):
        """`channel_multiple` only tells a search which counts to offer; `skips_zero_weights` is 0 or 1."""

        channel_multiple: Count
        skips_zero_weights: bool = False

    components = ("mac", "dram")

    def map(self, rows: Columns, placement: Placement) -> Steps:
        density = rows.weight_density if self.spec.parameters.skips_zero_weights else 1.0
        macs = rows.macs * density
        peak = np.array([self.spec.peak_macs_per_cycle(int(bits)) for bits in (8, 16, 32)])
        per_cycle = peak[np.searchsorted([8, 16, 32], np.minimum(rows.weight_bits, 32))]
        moved = compulsory_bytes(rows)
        steps = Steps.empty(("all",), ("roofline",), len(rows), len(self.spec.ports), len(self.components))
        steps["tiles"][:, 0] = (macs > 0) | (moved > 0)
        for name in ("floor_cycles", "mean_cycles", "slowest_cycles"):
            steps[name][:, 0] = macs / per_cycle
        steps["port_bytes"][:, 0, 0] = moved
        steps["accesses"][:] = np.stack([macs, moved], axis=1)
        return Steps(**steps)

    def channel_multiple(self) -> int:
        return int(self.spec.parameters.channel_multiple)


def compulsory_bytes(rows: Columns) -> np.ndarray:
    """Bytes that any machine with unlimited buffers and no compression moves, float64 (rows,)."""
    works = rows.is_mac | rows.is_vector | rows.is_move
    features = (rows.input_elements + rows.other_elements) * rows.input_bits + rows.output_elements * rows.output_bits
    weights = rows.weight_elements * rows.weight_bits + rows.bias * rows.k * 32
    return np.where(works, (features + weights) / 8, 0.0)
