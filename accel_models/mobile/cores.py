"""Cores: what one pipeline does in a cycle, as data (`cores.yaml`), and the cores that a machine's threads run on.

Threads are bound to the cores of the clusters in the order of the file, fastest cluster first. Work that is dealt out
statically goes at the pace of the slowest core in use; work that idle threads take from each other (stealing) at the
mean rate of all. A core's speed is its clock times its multiplications a cycle, f_i m_i; with the pacing core p,

    x_i = (f_p m_p) / (f_i m_i) * f / f_p          cycles of the reference clock f in one of core i, work for work

Known to be wrong: every kernel is priced by the pipeline of the pacing core and scaled by x, so a little core that
differs from it in more than its multiplications (loads, issue width) is priced as if alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from pydantic import AfterValidator, BeforeValidator, ValidationInfo

from accel_models.spec import Count, Frozen, NotNegative, Positive, UniqueKeys
from workloads.errors import unknown_name

FILE = Path(__file__).parent / "cores.yaml"
WIDTHS = (8, 16, 32)  # bits that vector instructions multiply


def _every_width(rates: Mapping[int, float]) -> Mapping[int, float]:
    """Multiplications a cycle, of every width that kernels may ask for."""
    if set(rates) != set(WIDTHS):
        raise ValueError(f"found rates of {sorted(rates)} bits, must be of {', '.join(map(str, WIDTHS))} bits")
    return rates


class Core(Frozen):
    """The pipeline of one kind of core.

    Attributes:
        vector_bits, vector_pipes: width of a vector register, operations on whole registers a cycle.
        macs_per_cycle: multiplications a cycle of 8, 16 and 32-bit numbers, without dot products.
        dot_macs_per_cycle: of 8-bit numbers with dot-product instructions; None where it has none.
        loads_per_cycle, instructions_per_cycle: vector loads, and all instructions.
        exposed_load_cycles: issue cycles that a vector load takes from arithmetic: in-order cores that cannot issue
            both at once. (That such a core also waits for its caches is said by `overlap: serial` of the memories.)
        chain_cycles: from an FMA to the next one into the same accumulator.
    """

    vector_bits: Count
    vector_pipes: Count
    macs_per_cycle: Annotated[Mapping[int, Positive], AfterValidator(_every_width)]
    dot_macs_per_cycle: Positive | None = None
    loads_per_cycle: Positive
    exposed_load_cycles: NotNegative
    instructions_per_cycle: Count
    chain_cycles: Positive

    def rate(self, bits: int, dot_product: bool, fp16_arithmetic: bool) -> float:
        """Multiplications a cycle that a runtime's instructions reach."""
        if bits == 8 and dot_product and self.dot_macs_per_cycle:
            return float(self.dot_macs_per_cycle)
        return float(self.macs_per_cycle[32 if bits == 16 and not fp16_arithmetic else bits])

    def lanes(self, bits: int, fp16_arithmetic: bool) -> float:
        """Numbers of a width that vector work handles at once: 8-bit work widens to 16, 16-bit work may to 32."""
        halves = self.macs_per_cycle[16] > self.macs_per_cycle[32] and (fp16_arithmetic or bits == 8)
        return self.vector_bits / (max(bits, 16) if halves or bits == 8 else 32)


@cache
def known_cores() -> dict[str, Core]:
    """The cores of `cores.yaml` by name."""
    data = yaml.load(FILE.read_text(), UniqueKeys)
    context = {"sources": data["sources"]}
    return {name: Core.model_validate(core, context=context) for name, core in data["cores"].items()}


def _named_core(given: Any, info: ValidationInfo) -> Any:
    """A core by its name; one that is written out passes."""
    if isinstance(given, str):
        if given not in known_cores():
            raise ValueError(str(unknown_name("core", given, known_cores())))
        return known_cores()[given]
    return given


class Cluster(Frozen):
    """Cores of one kind. `l2_bytes` is what one thread's L2 holds: its core's own, or the cluster's if shared."""

    core: Annotated[Core, BeforeValidator(_named_core)]
    count: Count
    clock_hz: Positive
    l2_bytes: Positive


class Team:
    """The cores in use, fastest cluster first, one a thread.

    Attributes:
        core: the pipeline of the pacing core. l2_bytes: of the smallest L2 in use.
        slowest, mean, ideal: cycles of the reference clock in one of the pacing core's clock (x of the module
            docstring): of the slowest core, on average, and if all cores shared the work by their speed.
        clocks: cycles of all these cores, each of its own clock, in one of the reference clock.
    """

    def __init__(self, clusters: tuple[Cluster, ...], threads: int, clock_hz: float, stealing: bool) -> None:
        cores = [cluster for cluster in clusters for _ in range(cluster.count)][:threads]
        speeds = np.array([cluster.clock_hz * cluster.core.macs_per_cycle[32] for cluster in cores])
        pacing = cores[int(speeds.argmin())]
        scale = speeds.min() / speeds * clock_hz / pacing.clock_hz
        self.core, self.l2_bytes = pacing.core, min(cluster.l2_bytes for cluster in cores)
        self.clocks = sum(cluster.clock_hz for cluster in cores) / clock_hz
        self.ideal = float(1 / (1 / scale).mean())
        self.mean = self.ideal if stealing else float(scale.mean())
        self.slowest = self.ideal if stealing else float(scale.max())
