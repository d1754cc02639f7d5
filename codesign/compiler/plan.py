"""What a step is planned with: tensors with their layouts and places, and the memory that planning fills."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from codesign.compiler.isa import Isa
from codesign.compiler.layout import FLOAT_BYTES, Layout, plain
from codesign.compiler.program import At, Data
from workloads.graph import Layer

Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Place:
    """A tensor in memory.

    Attributes:
        shape: (n, c, h, w); of a tensor of other axes the samples and features that it is read as.
        start: of channel 0 of pass 0.
    """

    shape: Shape
    layout: Layout
    start: At

    @property
    def plane(self) -> int:
        """Bytes of one channel of one pass."""
        return self.layout.plane * FLOAT_BYTES

    def batch(self, number: int) -> At:
        """Where a pass begins."""
        return self.start + number * self.shape[1] * self.plane

    @property
    def passes(self) -> int:
        return self.layout.passes(self.shape[0])


def as_image(shape: tuple[int, ...]) -> Shape:
    """A tensor's axes as samples, channels, height and width: a sequence is an image of width 1, features have none.

    >>> as_image((2, 8, 16)), as_image(())
    ((2, 8, 16, 1), (1, 1, 1, 1))
    """
    if len(shape) > 4:
        return (shape[0], math.prod(shape[1:]), 1, 1)
    padded = (*shape, 1, 1, 1, 1)[:4]
    return padded[0], padded[1], padded[2], padded[3]


def plain_layout(shape: Shape) -> Layout:
    return plain(shape[2], shape[3])


@dataclass(frozen=True)
class Tuning:
    """What may be chosen freely for a convolution.

    Attributes:
        tile: outputs (rows, columns) of a filter that stay in registers. filters: at most so many that share their
            kernels are computed together.
        order: whether filters are the outer loop, or channels, which has no groups; or whether
            filters are the lanes, and `filters` vectors of them are computed together.
    """

    tile: tuple[int, int]
    filters: int = 1
    order: Literal["filter", "channel", "lanes"] = "filter"


@dataclass
class Context:
    """What every planner may use and add to.

    Attributes:
        weights: array by key. places: of tensors, by name. data: constants, added to as steps are planned.
        read: which channels of a tensor somebody reads, bool; absent where all are.
        threads: so many will run a stage. tunings: of convolutions, by output.
        scratch: bytes that a thread needs, the most of any call.
    """

    isa: Isa
    weights: Mapping[str, np.ndarray]
    places: Mapping[str, Place]
    data: Data
    threads: int = 1
    tunings: Mapping[str, Tuning] = field(default_factory=dict)
    read: Mapping[str, np.ndarray] = field(default_factory=dict)
    scratch: int = field(default=0)

    def bias(self, layer: Layer) -> np.ndarray:
        """float32 (K,): a layer's, zeros where it has none."""
        return self.weights[layer.bias] if layer.bias else np.zeros(layer.k, np.float32)

    def need_scratch(self, size: int) -> None:
        self.scratch = max(self.scratch, size)
