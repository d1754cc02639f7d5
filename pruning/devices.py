"""Where networks run and in which precision: "auto" decides by what the machine can do, never by its name."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import torch

from workloads.errors import ConfigError, first_line, unknown_name

if TYPE_CHECKING:
    from torch import Tensor, nn

PRECISIONS = ("auto", "fp32", "bf16")
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt`."""


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" takes a CUDA device if there is one, else the CPU.

    Raises:
        ConfigError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
        raise ConfigError(f"device {name!r} cannot be used ({reason}); try auto or cpu") from error
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """Either "fp32" or "bf16"; "auto" takes bf16 where the hardware multiplies it faster than fp32.

    On a CPU that means AMX tiles or AVX-512 BF16 instructions, on CUDA tensor cores with native bf16. Parameters,
    gradients and batch-norm statistics stay float32 either way (autocast).

    Raises:
        ConfigError: unknown name.
    """
    if name not in PRECISIONS:
        raise unknown_name("precision", name, PRECISIONS)
    if name != "auto":
        return name
    return "bf16" if has_fast_bf16(device) else "fp32"


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device has instructions that multiply bf16; False where this torch cannot tell."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(probe() for name in probes if (probe := getattr(torch.cpu, name, None)) is not None)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context in which a forward pass runs in that precision ("fp32" or "bf16")."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def place(model: nn.Module, device: torch.device) -> None:
    """Move a model in place, four-dim weights with channels last, which convolutions run faster on."""
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def placed(x: Tensor, device: torch.device) -> Tensor:
    """An input there; pictures with channels last, sequences and tables as they are."""
    return x.to(device, memory_format=torch.channels_last) if x.ndim == 4 else x.to(device)


@contextmanager
def kept_memory() -> Iterator[None]:
    """Inside, memory that is freed stays with the process: what one training step frees, the next one needs again.

    glibc gives large blocks back to the system at once, and every page of the next tensor is then fetched and cleared
    anew: 3 to 28 % of a training step of ResNet-20, by how the heap happens to lie. Afterwards the memory is
    given back. Elsewhere than on glibc nothing happens.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not (hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):  # musl has neither
        yield
        return
    libc.mallopt(MMAP_THRESHOLD, 1 << 30) or libc.mallopt(MMAP_THRESHOLD, 1 << 25)  # the most that older ones take
    libc.mallopt(TRIM_THRESHOLD, (1 << 31) - 1)
    try:
        yield
    finally:
        libc.mallopt(MMAP_THRESHOLD, 1 << 25)  # where glibc's own adaptive threshold ends, and its double
        libc.mallopt(TRIM_THRESHOLD, 1 << 26)
        libc.malloc_trim(0)
