"""Instruction sets of x86-64 that code is made for, and which of them this machine has."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from workloads.errors import ConfigError, unknown_name


@dataclass(frozen=True)
class Isa:
    """What the code generator must know of an instruction set.

    Attributes:
        lanes: floats in a vector. registers: vectors that fit.
        sums: vectors of outputs at most that are worth keeping there beside weights and inputs; found by measuring.
        cpu, features: as LLVM calls them.
        needs: what the machine must report, by LLVM's names of features.
    """

    name: str
    lanes: int
    registers: int
    sums: int
    cpu: str
    features: str
    needs: tuple[str, ...]


ISAS = {
    isa.name: isa
    for isa in (
        Isa("avx512", 16, 32, 25, "x86-64-v4", "-prefer-256-bit", ("avx512f", "avx512vl", "avx512dq", "avx512bw")),
        Isa("avx2", 8, 16, 12, "x86-64-v3", "", ("avx2", "fma")),
        Isa("sse2", 4, 16, 12, "x86-64", "", ("sse2",)),
    )
}


def find_isa(name: str = "") -> Isa:
    """An instruction set by name; the widest that this machine has without one.

    Raises:
        ConfigError: unknown, or this machine lacks it.
    """
    if not name:
        return ISAS[host_isas()[0]]
    if name not in ISAS:
        raise unknown_name("instruction set", name, ISAS)
    if name not in host_isas():
        raise ConfigError(f"instruction set {name!r}: this machine has only {', '.join(host_isas())}")
    return ISAS[name]


@functools.cache
def host_isas() -> tuple[str, ...]:
    """Names of the instruction sets that this machine runs, widest first."""
    from codesign.compiler.jit import llvm

    has = llvm().get_host_cpu_features()
    found = tuple(isa.name for isa in ISAS.values() if all(has.get(need, False) for need in isa.needs))
    if not found:
        raise ConfigError("compiled networks need an x86-64 machine; run the model in torch instead")
    return found
