"""When the coded weights of a layer are copied to SRAM before use, and what the copy lets wait.

Weights are copied (staged) where several blocks across read them again. Of a layer that reads them once, they are if
they come hidden and fetching them plus reading them back takes no longer than what the layer waits for anyway, or is
short (1000 cycles).

Inside a network the copy runs under the layer before, as far as half of the SRAM holds it; the rest comes in slices
under the layer itself. A layer that reads the network's input has none before it: its weights arrive *cold*, in slices
of output channels, the first of 16, the others of b, whole blocks that take as long to fetch as the first one is worked
on. With T the cycles of the copy, N those of the NPU and l the last slice,

    max( N + 16/K T,  T + l/K N )            b = K (16/K N) / T, rounded up to whole blocks

Such a layer is staged unless it has one slice only, and waiting for it takes longer than reading block by block.

**Inputs** in DRAM are copied to SRAM, once and before the layer begins, if the layer reads them more than once and

    max( reading from DRAM, weights from where they are ) >= NPU      it waits for memory, and
    copying + reading from SRAM < reading from DRAM                   the copy gains, and
    weights from SRAM <= reading from DRAM + 16/K T           (T only if weights take longer to come than inputs)

Known to be wrong: how long the layer before lasts is not looked at (it is taken to last as long as this one).

Source: the weight buffering of the estimator's scheduler (ethos-u-vela 5.2.0), written anew and without its search.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from accel_models.npu.ethos_work import SPLIT_DEPTH, Work, up

STARTUP_CYCLES = 1000  # a wait that the scheduler accepts


@dataclass(frozen=True)
class Copy:
    """The copy of a layer's weights, float64 (rows,).

    Attributes:
        cycles: of fetching them all. again: of reading them back for every block across. unmoved: of reading them from
            where they are, block by block.
        across: blocks that read the same weights. depth: channels of a block.
    """

    cycles: np.ndarray
    again: np.ndarray
    unmoved: np.ndarray
    across: np.ndarray
    depth: np.ndarray


@dataclass(frozen=True)
class Input:
    """Cycles that a layer's input takes into the array, (rows,): `direct` from DRAM, `staged` by a copy in SRAM."""

    direct: np.ndarray
    staged: np.ndarray


def is_input_copied(found: Input, depth: np.ndarray, copy: Copy, npu: np.ndarray) -> np.ndarray:
    """Boolean (rows,): an input that is read more than once is copied first (module docstring).

    Args:
        depth: output channels. copy: of the weights. npu: cycles of the NPU with its weights in DRAM.
    """
    waits = np.maximum(found.direct, copy.unmoved) >= npu
    first = np.where(copy.unmoved > found.direct, copy.cycles / np.ceil(depth / SPLIT_DEPTH), 0.0)
    return np.asarray(waits & (found.staged < found.direct) & (copy.again <= found.direct + first))


def is_staged(work: Work, copy: Copy, npu: np.ndarray, features: np.ndarray, has_weights: np.ndarray) -> np.ndarray:
    """Boolean (rows,): weights are copied first (module docstring).

    Args:
        npu, features: cycles of the NPU with its weights at hand, and of the feature maps' traffic.
        has_weights: boolean.
    """
    waits = np.maximum(np.maximum(npu, copy.unmoved), features)
    is_hidden = (work.cold == 0) | (np.floor(work.d / copy.depth) > 2)
    once = is_hidden & (copy.cycles + copy.again <= np.maximum(waits, STARTUP_CYCLES))
    one_slice = (work.cold > 0) & (work.d <= SPLIT_DEPTH) & (npu + copy.cycles - STARTUP_CYCLES > waits)
    return np.asarray(has_weights & np.where(copy.across > 1, ~one_slice, once))


def early_bytes(
    work: Work, staged: np.ndarray, coded: np.ndarray, npu: np.ndarray, bandwidth: float, sram: float
) -> np.ndarray:
    """Bytes of staged weights that come under the layer before: what its time, taken as this one's, and half of the
    SRAM (`sram` bytes) allow.
    """
    return np.where(staged & (work.cold == 0), np.minimum(np.minimum(coded, npu * bandwidth), sram / 2), 0.0)


def cold_cycles(work: Work, copy: Copy, npu: np.ndarray) -> np.ndarray:
    """When a layer ends whose staged weights begin to arrive as it begins (module docstring)."""
    first = np.minimum(work.d, SPLIT_DEPTH)
    wanted = np.maximum(first * npu / np.maximum(copy.cycles, 1.0), SPLIT_DEPTH)
    slice_depth = np.clip(up(wanted, copy.depth), 1.0, work.d)
    rest = work.d - first
    last = np.where(rest > 0, rest - (np.ceil(rest / slice_depth) - 1) * slice_depth, work.d)
    return np.asarray(np.maximum(npu + first / work.d * copy.cycles, copy.cycles + last / work.d * npu))
