"""Records that are computed: the roofline of a result, the staircase of a channel group, the table of a plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from accel_models.pricing import Target
from accel_models.result import SimulationResult
from accel_models.spec import HardwareSpec
from reports.records import PlanGroup, PlanMask, PlanRecord, RooflinePoint, RooflineRecord, StaircaseRecord
from workloads.errors import ConfigError
from workloads.graph import PRECISIONS

if TYPE_CHECKING:
    from pruning.plan import PruningPlan
    from workloads.channels import ChannelAnalysis


def roofline(result: SimulationResult, spec: HardwareSpec, memory: str = "") -> RooflineRecord:
    """Where a network's layers lie under a machine's roof.

    Counted are the multiplications really performed, min(nominal, useful cycles x peak): a layer whose zeros are
    skipped or that Winograd shortens would otherwise lie above the roof. So for every layer

        achieved <= min(peak, intensity x bandwidth)

    Args:
        memory: whose traffic counts; by default the one that the whole network keeps busy longest. One that all of
            the machine shares: of a core's own cache the traffic is that of all cores, the bandwidth of one.

    Raises:
        ConfigError: the result is of another machine, the memory does not exist or is not shared, or no layer
            multiplies.
    """
    if result.target != spec.name:
        raise ConfigError(f"the result was priced on {result.target!r}, the roof is of {spec.name!r}")
    bandwidths = {each.name: each.bandwidth_bytes_per_cycle * spec.clock_hz for each in spec.memories if each.shared}
    if memory and memory not in bandwidths:
        what = "each core's own, its bandwidth is no roof of all" if memory in spec.ports else "unknown"
        raise ConfigError(f"memory {memory!r} is {what}; allowed: {', '.join(bandwidths)}")
    moved = result.traffic_by_memory()
    memory = memory or max(bandwidths, key=lambda name: moved.get(name, 0.0) / bandwidths[name])
    widths = [PRECISIONS[name] for name in result.precision.split("/") if name in PRECISIONS]
    if not widths:
        raise ConfigError(f"{result.graph!r} has no layer that multiplies: there is no roofline to draw")
    peak = max(spec.peak_macs_per_cycle(bits) for bits in widths)
    multiplies = [layer for layer in result.layers if layer.macs and layer.cycles > 0]
    points = []
    for layer in multiplies:
        performed = min(float(layer.macs), layer.lost["useful"] * peak)
        if layer.traffic_bytes[memory] > 0 and performed > 0:
            points.append(
                RooflinePoint(
                    name=layer.name,
                    intensity=performed / layer.traffic_bytes[memory],
                    achieved=performed / layer.latency_s,
                    share=layer.cycles / result.cycles,
                    bound=layer.bound,
                )
            )
    return RooflineRecord(
        target=result.target,
        title=result.title,
        precision=result.precision,
        peak=peak * spec.clock_hz,
        memory=memory,
        bandwidth=bandwidths[memory],
        points=tuple(points),
        left_out=len(multiplies) - len(points),
        rest_share=max(1 - sum(point.share for point in points), 0.0),
    )


def rooflines(
    before: SimulationResult, after: SimulationResult, spec: HardwareSpec
) -> tuple[RooflineRecord, RooflineRecord]:
    """Two networks under one roof: that of the memory which the first keeps busy longest."""
    first = roofline(before, spec)
    return first, roofline(after, spec, first.memory)


def staircase(
    analysis: ChannelAnalysis,
    machine: Target,
    group: str,
    offered: Sequence[int] = (),
    *,
    chosen: int | None = None,
    most: int = 256,
) -> StaircaseRecord:
    """Latency of the whole network for every count of one channel group, all other groups kept whole.

    Args:
        analysis: of the graph in a precision that the machine has.
        offered: counts that a search may choose; they are priced whatever `most` says.
        most: counts to price; a wider group is priced at evenly spread counts.

    Raises:
        PlanError: no such group.
    """
    found = analysis.group(group)
    priced = min(found.size - found.minimum + 1, most)
    spread = np.unique(np.linspace(found.minimum, found.size, priced).round().astype(int))
    counts = np.union1d(spread, np.array([*offered, *([chosen] if chosen else [])], int))
    columns = analysis.columns(counts[:, None], (group,))
    latency_s = machine.price(columns, analysis.source.topology).totals(len(counts))["latency_s"]
    return StaircaseRecord(
        group=group,
        target=machine.name,
        counts=tuple(int(count) for count in counts),
        latency_s=tuple(float(value) for value in latency_s),
        offered=tuple(int(count) for count in sorted(offered)),
        chosen=chosen,
    )


def plan_record(plan: PruningPlan, analysis: ChannelAnalysis | None = None, granularity: str = "") -> PlanRecord:
    """A plan as the table of a report.

    Args:
        analysis: of the dense graph, to name the layers of each group.
        granularity: of the plan's masks, if it is one for all.
    """
    groups = tuple(
        PlanGroup(name, len(kept), plan.units[name], analysis.group(name).producers if analysis else ())
        for name, kept in plan.channels.items()
    )
    masks = tuple(
        PlanMask(layer, granularity, int(zeros.nonzeros), int(zeros.elements)) for layer, zeros in plan.masks.items()
    )
    return PlanRecord(groups, masks)
