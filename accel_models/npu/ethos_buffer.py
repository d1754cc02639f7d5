"""Bytes read and written inside an Ethos-U: in the SHRAM of the U55 and U65, in the two buffers of the U85.

    inputs        each fetched byte written once; read for every tap and every slice of u_d output channels:
                  P Q R S C ceil(K / u_d), C in granules of 8; depthwise and pooling P Q R S K
    accumulators  4 bytes an output, read and written in every step over the kernel (the families say what a step is):
                  the weights of a step stay while all pixels of a block pass, so sums leave the array between steps
    outputs       written by the output unit and read once on their way out, one byte each
    weights       each weight of the padded stream, zeros too, written by the decoder and read once by the array, for
                  every block across
    elementwise   every byte that comes or goes is written once and read once

Assumptions: lanes that pad a micro-block are gated and touch nothing, as in the count of multiplications; decoded
weights lie in memories like the SHRAM's banks; pooling has one tap a step. What a step is follows from the cycles that
the estimator charges, so that keeping sums or inputs in registers over several steps, which would save accesses, is not
known and not counted.

Letters as in `ethos_u`.
"""

from __future__ import annotations

import numpy as np

from accel_models.npu.ethos_work import POOL, Work, up

GRANULE = 8  # channels in which inputs are held
ACCUMULATOR_BYTES = 4


def buffer_bytes(
    work: Work, steps: np.ndarray, slice_depth: np.ndarray | float, fetched: np.ndarray, decoded: np.ndarray
) -> np.ndarray:
    """Bytes read and written inside the NPU by one run of rows that are cut into blocks, float64 (rows,).

    Args:
        steps: over the kernel (`kernel_steps`). slice_depth: output channels of a micro-block.
        fetched: bytes of inputs that enter. decoded: weights that the decoder writes, zeros and padding included.
    """
    pixels, taps = work.h * work.w, work.taps_h * work.taps_w
    own = pixels * work.d
    shared = pixels * up(work.in_d, GRANULE) * np.ceil(work.d / slice_depth)
    inputs = np.where(work.keeps_depth, own, shared) * taps
    return np.asarray(fetched + inputs + own * (2 * ACCUMULATOR_BYTES * steps + 2) + 2 * decoded)


def kernel_steps(work: Work, part: np.ndarray, channels: float, taps: float = 4.0) -> np.ndarray:
    """Steps over the kernel and the inputs in which an output's sum is read and written, float64 (rows,).

    Args:
        part: boolean, part kernel traversal: `taps` of 8 channels a step.
        channels: of one tap that a step of a depth-first traversal covers.
    """
    whole = work.taps_h * work.taps_w
    some = np.ceil(whole / taps)
    dense = np.where(part, some * np.ceil(work.in_d / GRANULE), whole * np.ceil(work.in_d / channels))
    return np.where(work.keeps_depth, np.where(work.kind == POOL, whole, some), dense)
