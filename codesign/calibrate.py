"""What `codesign calibrate` does: this machine's numbers, measured in seconds, as a machine file.

The file is one of the family `mobile_cpu` (clusters, caches, a runtime) with the runtime `codesign_x86`, which says
what `codesign.compiler` does. Clock, multiplications a cycle, the wait between them and the bandwidth of every level
are measured; sizes of caches and the number of cores are what the system says; all else is assumed, each with its
reason.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from codesign.compiler.isa import find_isa
from codesign.compiler.probe import Core, Level, core_and_levels, processor
from codesign.show import console
from workloads.errors import ConfigError
from workloads.store import write_file

NOTES = (
    "One core of the machine that codesign calibrate ran on, with the kernels of this project's compiler. The family "
    "was made for Arm phones. Different here: an FMA may take an operand from memory (one instruction for two of the "
    "family's); weights of a network that runs again are still in the last cache, where the family fetches them from "
    "DRAM; DRAM and the last cache are one thread's, others of the machine share them; the clock falls when all cores "
    "multiply wide vectors. Energies are of the cited tables at an assumed node, without the core's own: they are a "
    "lower bound, good for nothing but ratios of multiplications and bytes."
)
NODE_NM = 7
WIDTHS = (8, 16, 32)


def calibrate(out: Path, overwrite: bool) -> None:
    """Measure, write the machine file, and print what was found.

    Raises:
        ConfigError: the file is there or is no .yaml, llvmlite is missing, or the machine does not say what it is.
    """
    if out.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--out {out}: must end in .yaml, as machine files do")
    if out.exists() and not overwrite:
        raise ConfigError(f"--out {out}: is there already; give --overwrite to replace it")
    core, levels = core_and_levels(find_isa())
    write_spec(out, core, levels)
    screen = console()
    screen.print(f"{processor()}, {core.isa}: {core.clock_hz / 1e9:.2f} GHz, {core.macs_per_cycle:.1f} fp32 "
                 f"multiplications a cycle, {core.macs_per_cycle * core.clock_hz * 2 / 1e9:.0f} GFLOP/s")  # fmt: skip
    for level in levels:
        screen.print(f"{level.name}: {level.bandwidth_bytes_per_s / 1e9:.1f} GB/s, "
                     f"{level.bandwidth_bytes_per_s / core.clock_hz:.1f} bytes a cycle")  # fmt: skip
    screen.print(f"written: {out}", soft_wrap=True)


def write_spec(out: Path, core: Core, levels: Sequence[Level]) -> None:
    """A machine file, named after the machine: its own name is the file's."""
    text = yaml.safe_dump(spec(out.stem, core, levels), sort_keys=False, width=120, default_flow_style=None)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out, text.encode())


def spec(name: str, core: Core, levels: Sequence[Level]) -> dict[str, Any]:
    """The machine file's content.

    Args:
        levels: caches, nearest first, then memory; a machine without a third cache gets the second one's numbers there,
            one with more than three is refused.
    """
    cores = len(os.sched_getaffinity(0))
    peak = core.macs_per_cycle
    caches = _three(levels)
    l2_bytes = caches[1][1]
    return {
        "name": name,
        "family": "mobile_cpu",
        "title": f"{processor()}, one core, {core.isa}",
        "notes": NOTES,
        "sources": {
            "measured": f"measured on this machine by codesign calibrate, {datetime.date.today().isoformat()}",
            "system": "/proc/cpuinfo, /sys/devices/system/cpu/cpu0/cache and the processors that this process may use",
        },
        "clock_hz": _measured(core.clock_hz, "a chain of integer operations, one a cycle"),
        "macs_per_cycle": {bits: _number(peak * cores, "measured", f"{peak:.4g} a core; {_width(bits)}")
                           for bits in WIDTHS},
        "memories": [
            *(_memory(*cache, core.clock_hz) for cache in caches),
            _dram(levels[-1], caches[-1][1], core.clock_hz),
        ],
        "feature_memories": ["l3", "dram"],
        "weight_memory": "dram",
        "energy_pj": _energies(caches),
        "fitted": [],
        "parameters": {
            "runtime": "codesign_x86",
            "threads": _assumed(1, "one, as every number of this file was measured"),
            "clusters": [{
                "core": _core(core, caches[0][2] / core.clock_hz),
                "count": _number(cores, "system"),
                "clock_hz": _measured(core.clock_hz),
                "l2_bytes": _number(l2_bytes, "system"),
            }],
            "product_efficiency": _measured(
                min(core.fed_fmas_per_cycle / core.fmas_per_cycle, 1.0),
                "FMAs whose one operand comes from the nearest cache, over those of registers alone",
            ),
            "vector_efficiency": _assumed(0.4, "as on the Snapdragon 855, of passes that a compiler scheduled"),
            "scatter_cycles": _assumed(0, "the compiler has no Winograd kernel"),
            "jump_cycles": _assumed(0, "inside the pattern kernels' efficiency"),
            "launch_s": _measured(core.call_s, "calling a kernel that does nothing, of many"),
            "fork_join_s": _assumed(0, "one thread forks nothing"),
        },
    }  # fmt: skip


def _core(core: Core, near_bytes_per_cycle: float) -> dict[str, Any]:
    """The pipeline, written out."""
    lane_bits = 32
    vector_bits = round(core.macs_per_cycle / core.fmas_per_cycle) * lane_bits
    return {
        "vector_bits": _number(vector_bits, "system", core.isa),
        "vector_pipes": _measured(max(round(core.fmas_per_cycle), 1), f"{core.fmas_per_cycle:.3g} FMAs a cycle"),
        "macs_per_cycle": {bits: _measured(core.macs_per_cycle, _width(bits)) for bits in WIDTHS},
        "loads_per_cycle": _measured(near_bytes_per_cycle * 8 / vector_bits, "vectors from the nearest cache"),
        "exposed_load_cycles": _assumed(0, "out of order: loads issue beside arithmetic"),
        "instructions_per_cycle": _assumed(4, "what every x86-64 core with AVX2 at least issues"),
        "chain_cycles": _measured(core.chain_cycles),
    }


def _three(levels: Sequence[Level]) -> list[tuple[str, int, float]]:
    """(name, size, bytes a second) of l1, l2, l3."""
    found = [(each.name, each.size_bytes, each.bandwidth_bytes_per_s) for each in levels if each.size_bytes is not None]
    if not 2 <= len(found) <= 3:
        raise ConfigError(f"this machine lists {len(found)} levels of caches, must be 2 or 3 to be a machine file")
    if len(found) == 2:  # as the family has it: the path beyond the second level is memory's
        found.append(("l3", found[1][1], levels[-1].bandwidth_bytes_per_s))
    return found


def _memory(name: str, size: int, bytes_per_s: float, clock_hz: float) -> dict[str, Any]:
    return {
        "name": name,
        "shared": False,
        "size_bytes": _number(size, "system"),
        "bandwidth_bytes_per_cycle": _measured(bytes_per_s / clock_hz, f"{bytes_per_s / 1e9:.4g} GB/s, one thread"),
    }


def _dram(level: Level, last_cache: int, clock_hz: float) -> dict[str, Any]:
    rate = level.bandwidth_bytes_per_s
    note = f"{rate / 1e9:.4g} GB/s, one thread that reads {level.buffer_bytes / 2**20:.0f} MiB again and again"
    if level.buffer_bytes < last_cache:
        note += ", which the last cache holds: more memory is not free"
    return {"name": level.name, "bandwidth_bytes_per_cycle": _measured(rate / clock_hz, note)}


def _energies(caches: Sequence[tuple[str, int, float]]) -> dict[str, Any]:
    node = {"node_nm": NODE_NM, "note": "node assumed, nothing measured"}
    sram = {name: {"table": "sram_45nm.byte", "size_bytes": size, **node} for name, size, _ in caches}
    return {
        "mac8": {"table": "horowitz_45nm.mac8", **node},
        "mac16": {"table": "horowitz_45nm.mac_fp16", **node},
        "mac32": {"table": "horowitz_45nm.mac_fp32", **node},
        "core_cycle": _assumed(0, "not known; energies of this file are a lower bound, without the core's own"),
        **sram,
        "dram": {"table": "dram.lpddr4_byte", "note": "nothing measured"},
    }


def _width(bits: int) -> str:
    return "fp32" if bits == 32 else "as fp32: the compiler computes in it whatever the model's precision"


def _number(value: float, source: str, note: str = "") -> dict[str, Any]:
    shown = value if isinstance(value, int) else float(f"{value:.4g}")
    return {"value": shown, "source": source, **({"note": note} if note else {})}


def _measured(value: float, note: str = "") -> dict[str, Any]:
    return _number(value, "measured", note)


def _assumed(value: float, reason: str) -> dict[str, Any]:
    return _number(value, f"assumed: {reason}")
