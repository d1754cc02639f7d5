"""A convolution as a matrix product: the inputs under the kernel, one column an output pixel."""

from __future__ import annotations

import numpy as np


def windows(
    weight_shape: tuple[int, ...], inputs: np.ndarray, stride: int, padding: int
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Inputs under the kernel at every output pixel.

    Args:
        weight_shape: (K, C, R, S) with inputs (C, H, W), or (K, C) with inputs (C,).

    Returns:
        (C R S, P Q) in the order of a filter's weights, and the shape (P, Q); or (C, 1) and () of a linear layer.
    """
    if len(weight_shape) == 2:
        return inputs[:, None], ()
    padded = np.pad(inputs, ((0, 0), (padding, padding), (padding, padding)))
    view = np.lib.stride_tricks.sliding_window_view(padded, weight_shape[2:], axis=(1, 2))[:, ::stride, ::stride]
    p, q = view.shape[1:3]
    return view.transpose(0, 3, 4, 1, 2).reshape(-1, p * q), (p, q)
