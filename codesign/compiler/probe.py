"""What this machine can do: its clock, multiplications and loads a cycle, and bytes a second from each cache level.

Each number is the best of TURNS runs of a small loop (`kernels.probe`), in processor time of this thread. Runs are
short and many: other work on the machine only ever makes one slower, and a virtual machine counts the time that its
host takes away as its own. So what is found is what one thread gets while nothing else runs, or the least runs; loops
take turns, so that numbers a cycle are right in either case.
"""

from __future__ import annotations

import functools
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from codesign.compiler.isa import ISAS, Isa
from codesign.compiler.jit import code
from codesign.compiler.kernels import Kernel
from codesign.compiler.kernels.control import ProgramKernel
from codesign.compiler.kernels.probe import CHAIN, FMA_STEPS, ChainKernel, EmptyKernel, FmaKernel, ReadKernel
from codesign.compiler.layout import FLOAT_BYTES
from codesign.compiler.runtime import aligned
from workloads.errors import ConfigError

TURNS, LEAST_TURNS = 60, 3
LEAST_SECONDS = 0.0004
"""Of a run; shorter loops go round more often."""
MOST_SECONDS = 0.3
"""Of all runs of a loop that takes long."""
NEAR_BYTES = 16384
"""A buffer that the nearest cache of every machine holds."""
CALLS = 4096
"""Of a kernel that does nothing."""
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
BEHIND = 2.0
"""Times the last cache: a buffer that memory is read from."""
MOST_SHARE = 0.25
"""Of the free memory that such a buffer may take."""


@dataclass(frozen=True)
class Core:
    """One thread's arithmetic.

    Attributes:
        clock_hz: by a chain of integer operations of one cycle each.
        fmas_per_cycle: vectors multiplied and added. chain_cycles: from one to the next on the same sum.
        fed_fmas_per_cycle: of such whose one operand comes from the nearest cache.
        call_s: calling a kernel that does nothing from a program.
    """

    isa: str
    clock_hz: float
    fmas_per_cycle: float
    chain_cycles: float
    fed_fmas_per_cycle: float
    call_s: float

    @property
    def macs_per_cycle(self) -> float:
        """Of fp32 numbers."""
        return self.fmas_per_cycle * ISAS[self.isa].lanes


@dataclass(frozen=True)
class Level:
    """A cache, or memory (`size_bytes` None).

    Attributes:
        buffer_bytes: read again and again. bandwidth_bytes_per_s: at which.
    """

    name: str
    size_bytes: int | None
    buffer_bytes: int
    bandwidth_bytes_per_s: float


@functools.cache
def core(isa_name: str) -> Core:
    """Measured once a process, in a tenth of a second."""
    return _measured(ISAS[isa_name], [])[0]


def core_and_levels(isa: Isa) -> tuple[Core, list[Level]]:
    """This machine's core, and its caches, nearest first, and memory, each with the bandwidth at which a thread reads.

    Buffers lie, on a logarithmic scale, in the middle between the cache before and the one that is meant: half of the
    nearest one; of memory BEHIND times the last cache, where so much is free.

    Raises:
        ConfigError: the machine does not say what caches it has.
    """
    sizes = cache_sizes()
    before = (sizes[0] // 4, *sizes)
    buffers: list[tuple[str, int | None, int]] = [
        (f"l{n}", size, math.isqrt(before[n - 1] * size)) for n, size in enumerate(sizes, 1)
    ]
    return _measured(isa, [*buffers, ("dram", None, int(min(BEHIND * sizes[-1], MOST_SHARE * _free_bytes())))])


def _measured(isa: Isa, buffers: Sequence[tuple[str, int | None, int]]) -> tuple[Core, list[Level]]:
    """All loops in turn, so that numbers a cycle are of one clock."""
    vectors, sums = isa.registers // 2, isa.registers - 4
    near = _filled(NEAR_BYTES)
    number, out = np.zeros(1, np.float32), aligned(64)
    chunk = vectors * isa.lanes * FLOAT_BYTES
    table = np.array([[code(isa.name).addresses([EmptyKernel()])[EmptyKernel()], 0]] * CALLS, np.int64)
    reads = [_filled(max(size // chunk, 1) * chunk) for *_, size in buffers]
    loops = [
        _looped(isa, ChainKernel(), 3, 5, out),
        _looped(isa, FmaKernel(sums), near, number, out),
        _looped(isa, FmaKernel(1), near, number, out),
        _looped(isa, ReadKernel(vectors, multiplies=True), near, NEAR_BYTES // chunk, number, out),
        _Loop(_function(isa, ProgramKernel(), table, CALLS), 1),
        *(_looped(isa, ReadKernel(vectors), read, len(read) // chunk, number, out) for read in reads),
    ]
    chain, full, one, fed, calls, *times = _best(loops)
    clock = CHAIN / chain
    found = Core(
        isa=isa.name,
        clock_hz=clock,
        fmas_per_cycle=FMA_STEPS * sums / full / clock,
        chain_cycles=one * clock / FMA_STEPS,
        fed_fmas_per_cycle=NEAR_BYTES // chunk * vectors / fed / clock,
        call_s=calls / CALLS,
    )
    levels = [
        Level(name, size, len(read), len(read) / seconds)
        for (name, size, _), read, seconds in zip(buffers, reads, times, strict=True)
    ]
    return found, levels


def processor() -> str:
    """What the machine calls its processor."""
    return _cpu_fields().get("model name") or platform.processor() or platform.machine()


def processor_key() -> str:
    """The processor's name with what tells it from others of that name."""
    return " ".join([processor(), *(_cpu_fields().get(field, "") for field in ("cpu family", "model", "stepping"))])


@functools.cache
def _cpu_fields() -> dict[str, str]:
    """What the system says of the first core."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    rows = (line.split(":", 1) for line in text.partition("\n\n")[0].splitlines() if ":" in line)
    return {field.strip(): value.strip() for field, value in rows}


def cache_sizes() -> list[int]:
    """Bytes of each level's cache of data.

    Raises:
        ConfigError: none is listed.
    """
    found = {}
    for folder in sorted(CACHES.glob("index*")):
        kind, level, size = ((folder / name).read_text().strip() for name in ("type", "level", "size"))
        if kind in ("Data", "Unified"):
            found[int(level)] = int(size[:-1]) * {"K": 2**10, "M": 2**20}[size[-1]]
    if not found:
        raise ConfigError(f"{CACHES}: lists no caches of data; calibrating needs a Linux that does")
    return [found[level] for level in sorted(found)]


def _free_bytes() -> float:
    return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def _filled(size: int) -> np.ndarray:
    """Memory that was written to: pages that never were are all one."""
    memory = aligned(size)
    memory.view(np.float32)[:] = 1.0
    return memory


# ---- loops ----------------------------------------------------------------------------------------------------------


class _Loop(NamedTuple):
    """A call that goes round a loop so often."""

    call: Callable[[], None]
    rounds: int


def _looped(isa: Isa, kernel: Kernel, *arguments: int | np.ndarray) -> _Loop:
    """A kernel whose first argument is how many rounds it makes: enough to take LEAST_SECONDS."""
    rounds = 1
    while (once := _seconds(call := _function(isa, kernel, rounds, *arguments))) < LEAST_SECONDS:
        rounds *= max(2, min(16, int(1.2 * LEAST_SECONDS / max(once, 1e-7))))
    return _Loop(call, rounds)


def _function(isa: Isa, kernel: Kernel, *arguments: int | np.ndarray) -> Callable[[], None]:
    numbers = np.array([x.ctypes.data if isinstance(x, np.ndarray) else x for x in arguments], np.int64)
    native = code(isa.name).function(kernel)

    def call(kept: object = arguments) -> None:
        native(numbers)

    return call


def _best(loops: Sequence[_Loop]) -> list[float]:
    """Seconds a round of each loop."""
    best, spent = [math.inf] * len(loops), [0.0] * len(loops)
    for turn in range(TURNS):
        for i, loop in enumerate(loops):
            if turn < LEAST_TURNS or spent[i] < MOST_SECONDS:
                seconds = _seconds(loop.call)
                best[i], spent[i] = min(best[i], seconds / loop.rounds), spent[i] + seconds
    return best


def _seconds(call: Callable[[], None]) -> float:
    begin = time.thread_time()
    call()
    return time.thread_time() - begin
