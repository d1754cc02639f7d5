"""Coded weights of the Ethos-U family: how many bits the NPU's weight decoder reads for one layer.

Weights are stored in the order in which the array consumes them, padded with zeros: K to the micro-block's channels, C
to 8 (part kernel) or 32 (depth first), the taps of a piece to 4 where a step takes 4 of them. They are entropy coded:

    coded bits   min( H(f) + V_sparse f, V_dense ) an element,      V_dense where most weights are not zero

f is the non-zero fraction of the padded stream: a binary entropy for where the non-zeros are, V_sparse for the value of
each, V_dense for a value coded without runs of zeros. Each layer has 10 bytes of scale and bias a channel beside it.

Assumptions and where it is known to be wrong:
- Two weight distributions of equal density code differently: normal ones with one scale a layer as in the calibration
  rows; trained ones with a scale a channel take 3 to 5 % more. Only the number of zeros counts, not where they are: 2:4
  patterns in plain coding are 9 % larger than unstructured ones.
- At densities of 0.75 to 0.95 the coder's choice of mode makes sizes jump by up to 15 %, at times above dense; here
  they never exceed dense, so that fewer weights never cost more.

Source: sizes that the weight coder of ethos-u-vela 5.2.0 (Apache-2.0) gives; the value bits are fitted to the rows that
the machine file names.
"""

from __future__ import annotations

import numpy as np

from accel_models.npu.ethos_work import up
from accel_models.spec import Frozen, Numbers, Positive

# Fixed by the hardware (ethos-u-vela 5.2.0, weight_compressor.py).
SCALE_BYTES = 10  # scale, shift and bias of a channel
STREAM_BYTES = 16  # coded weights and scales are padded to multiples of this


class Coder(Frozen):
    """The coder's numbers: bits of one weight's value without and with zero runs, and of one among zeros only.

    Zero runs are left out from `dense_mode_from` on: density, and fraction that is not padding.
    """

    dense_value_bits: Positive
    sparse_value_bits: Positive
    empty_value_bits: Positive
    dense_mode_from: Numbers


def coded_bytes(stored: np.ndarray, real: np.ndarray, density: np.ndarray, coder: Coder) -> np.ndarray:
    """Bytes of a coded stream.

    Args:
        stored: elements with padding. real: those that are not padding. density: fraction of the real ones not zero.
    """
    return up(np.ceil(stored * bits_per_weight(real / stored, density, coder) / 8), STREAM_BYTES)


def bits_per_weight(real: np.ndarray, density: np.ndarray, coder: Coder) -> np.ndarray:
    """Bits a stored weight; `real` is the fraction that is not padding, `density` of the real ones non-zero."""
    filled = np.clip(real * density, 0.0, 1.0)
    inside = np.clip(filled, 1e-12, 1 - 1e-12)
    entropy = -(inside * np.log2(inside) + (1 - inside) * np.log2(1 - inside))
    runs = np.maximum(coder.empty_value_bits, entropy + coder.sparse_value_bits * filled)
    without_runs = (density >= coder.dense_mode_from[0]) & (real >= coder.dense_mode_from[1])
    return np.asarray(np.where(without_runs, coder.dense_value_bits, np.minimum(runs, coder.dense_value_bits)))


def scale_bytes(depth: np.ndarray) -> np.ndarray:
    """Bytes of scales and biases of `depth` channels."""
    return up(SCALE_BYTES * depth, STREAM_BYTES)
