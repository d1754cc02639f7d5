import os
from pathlib import Path

import pytest
import torch

from pruning.devices import kept_memory

resource = pytest.importorskip("resource")


def glibc() -> tuple[int, ...]:
    """Its version; (0,) for another C library."""
    try:
        name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
    except (AttributeError, ValueError):
        return (0,)
    return tuple(int(part) for part in version.split(".")) if name == "glibc" else (0,)


needs_glibc = pytest.mark.skipif(glibc() < (2, 35), reason="glibc before 2.35 lets nothing above 32 MB be kept")


def faults() -> int:
    """Pages that the process had to fetch so far."""
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)


def resident() -> int:
    """Pages that the process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1])


def use_memory(rounds: int) -> None:
    """A tensor of 48 MB, which glibc by itself never keeps: 12,288 pages a round, fetched and given back."""
    for _ in range(rounds):
        torch.ones(12 << 20)


@needs_glibc
def test_memory_of_a_step_serves_the_next_one_and_is_given_back():
    with kept_memory():
        use_memory(rounds=12)  # until the heap has taken its shape
        before = faults()
        use_memory(rounds=3)
        assert faults() - before < 4096
        held = resident()
    assert held - resident() > 8192


def test_a_failure_inside_is_not_hidden():
    with pytest.raises(ValueError, match="mine"), kept_memory():
        raise ValueError("mine")
