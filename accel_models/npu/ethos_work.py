"""What the Ethos-U family runs for a layer: every row as a number of equal runs of one NPU operation.

A run makes an output of h x w x d elements from an input of in_h x in_w x in_d with a kernel of taps_h x taps_w. Linear
layers are vector products over one row of pixels; a global mean is pooling of the whole image, which is how quantised
files write it; copies and activations that stand alone are pooling of one tap; a transposed convolution is a plain one
over its upsampled input.
Kernels larger than 8 x 8 are cut into pieces of at most that size, which the array works through one after another.

Tensors of the network's interface are stored linear (NHWC), everything between in bricks of 16 channels.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from accel_models.placement import Placement
from workloads.columns import Columns

KERNELS = ("none", "convolution", "depthwise", "vector_product", "pooling", "elementwise")
NONE, CONV, DEPTHWISE, VECTOR, POOL, ELEMENTWISE = range(len(KERNELS))
SPLIT_DEPTH = 16  # channels of a brick, and the step of block depths
SUBKERNEL = 8  # taps in a row or column that one pass covers
# Columns of `Work` that a block search looks at.
SEARCHED = (
    *("kind", "stripe", "w", "d", "in_h", "in_w", "in_d"),
    *("taps_h", "taps_w", "reach_h", "reach_w", "step_h", "step_w"),
)
TABLE = 3  # `Columns.activation` from which an activation needs a table


@dataclass(frozen=True)
class Work:
    """What the NPU runs for every row, float64 (rows,).

    Attributes:
        kind: index into KERNELS.
        h, w, d: output of one run; in_h, in_w, in_d its input. repeats: runs (batch, groups, time steps).
        taps_h, taps_w: kernel; reach_h, reach_w: the same with dilation; step_h, step_w: stride.
        stripe: output rows that a cascade computes at a time; h where the layer runs whole.
        linear_in, linear_out: 1 where a tensor is stored linear, not in bricks.
        home_in, home_other, home_out: index of the memory that holds the tensor.
        cold: 1 where no layer runs before, under which weights could arrive.
    """

    kind: np.ndarray
    h: np.ndarray
    w: np.ndarray
    d: np.ndarray
    in_h: np.ndarray
    in_w: np.ndarray
    in_d: np.ndarray
    repeats: np.ndarray
    taps_h: np.ndarray
    taps_w: np.ndarray
    reach_h: np.ndarray
    reach_w: np.ndarray
    step_h: np.ndarray
    step_w: np.ndarray
    stripe: np.ndarray
    linear_in: np.ndarray
    linear_out: np.ndarray
    home_in: np.ndarray
    home_other: np.ndarray
    home_out: np.ndarray
    cold: np.ndarray

    def take(self, rows: np.ndarray) -> Work:
        return Work(**{f.name: getattr(self, f.name)[rows] for f in fields(Work)})

    @property
    def keeps_depth(self) -> np.ndarray:
        """Boolean: output channel i reads input channel i only."""
        return (self.kind == DEPTHWISE) | (self.kind == POOL)

    @property
    def passes(self) -> np.ndarray:
        """How often the inputs are read for one output: once for each piece of the kernel."""
        return np.asarray(np.ceil(self.taps_h / SUBKERNEL) * np.ceil(self.taps_w / SUBKERNEL))


def work_of(rows: Columns, placement: Placement) -> Work:
    """Rows as runs of NPU operations."""
    conv, linear, lstm = rows.is_op("conv", "conv_transpose"), rows.is_op("linear", "lstm"), rows.is_op("lstm")
    mean, window = rows.is_op("mean"), rows.is_op("max_pool", "avg_pool", "mean")
    copies = rows.is_move | rows.is_op("activation")
    kind = np.select(
        [rows.is_depthwise, conv, linear, window | copies, rows.is_mac | rows.is_vector],
        [DEPTHWISE, CONV, VECTOR, POOL, ELEMENTWISE],
        NONE,
    )
    groups = np.where(conv & (kind == CONV), rows.groups, 1)
    h = np.where(linear | mean, 1, rows.p)
    w = np.where(linear, np.where(lstm, rows.n, rows.n * rows.p * rows.q), np.where(mean, 1, rows.q))
    dense = conv | window
    taps_h = np.where(mean, rows.in_h, np.where(dense, rows.r, 1))
    taps_w = np.where(mean, rows.in_w, np.where(dense, rows.s, 1))
    plain = dense & ~rows.is_op("conv_transpose")  # others read their output's size: upsampled, or element by element
    values = {
        "kind": kind, "h": h, "w": w, "d": np.where(kind == CONV, rows.k // groups, rows.k),
        "in_h": np.where(plain, rows.in_h, h), "in_w": np.where(plain, rows.in_w, w),
        "in_d": np.where(conv & (kind == CONV) | linear, rows.c // groups, rows.k),
        "repeats": np.where(lstm, rows.p, np.where(linear, 1, rows.n)) * groups,
        "taps_h": taps_h, "taps_w": taps_w,
        "reach_h": (taps_h - 1) * np.where(dense, rows.dilation_h, 1) + 1,
        "reach_w": (taps_w - 1) * np.where(dense, rows.dilation_w, 1) + 1,
        "step_h": np.where(plain & ~mean & (rows.p > 1), rows.stride_h, 1),
        "step_w": np.where(plain & ~mean & (rows.q > 1), rows.stride_w, 1),
        "stripe": np.where((placement.stripe > 0) & (kind != VECTOR), np.minimum(placement.stripe, h), h),
    }  # fmt: skip
    positive = {name: np.maximum(value, 0 if name == "kind" else 1e-9) for name, value in values.items()}
    flags = {
        "linear_in": rows.from_input, "linear_out": rows.to_output, "cold": rows.from_input,
        "home_in": placement.first, "home_other": placement.other, "home_out": placement.output,
    }  # fmt: skip
    return Work(**{name: value.astype(float) for name, value in (positive | flags).items()})


def kernel_pieces(work: Work) -> list[tuple[np.ndarray, np.ndarray]]:
    """(how many, taps of each) of the pieces that a kernel is cut into, of at most 8 x 8 taps."""
    whole_h, rest_h = np.divmod(work.taps_h, SUBKERNEL)
    whole_w, rest_w = np.divmod(work.taps_w, SUBKERNEL)
    return [
        (whole_h * whole_w, np.full_like(rest_h, SUBKERNEL**2)),
        (whole_h, SUBKERNEL * rest_w),
        (whole_w, SUBKERNEL * rest_h),
        (np.ones_like(rest_h), rest_h * rest_w),
    ]


def up(a: np.ndarray, multiple: np.ndarray | float) -> np.ndarray:
    """The next multiple, in the type of `a`."""
    if isinstance(multiple, int) and multiple == 1:
        return np.asarray(np.ceil(a))
    return np.asarray(np.ceil(a / multiple) * multiple)


def distinct(*columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(first, inverse): rows that agree in all columns; `first[inverse]` restores the order.

    Rows are told apart by a 64-bit hash; if it ever fails (once in 2^64 pairs), by the columns themselves.
    """
    mixed = np.zeros(len(columns[0]), np.uint64)
    table = [np.ascontiguousarray(column, np.float64).view(np.uint64) for column in columns]
    for column in table:
        mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    _, first, inverse = np.unique(mixed, return_index=True, return_inverse=True)
    if any((column[first[inverse]] != column).any() for column in table):
        _, first, inverse = np.unique(np.stack(table, axis=1), axis=0, return_index=True, return_inverse=True)
    return first, inverse.ravel()
