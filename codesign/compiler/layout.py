"""Where the numbers of a tensor lie in memory: vectors whose lanes are blocks of the map ("lane = spatial tile").

The map is cut into a grid of equal blocks and the block's number is the lane, so that a step to the next pixel, in
either direction, is a step to another *aligned* vector: a convolution needs no unaligned loads and no shuffles except
where it looks beyond a block's border, and there a permutation of lanes brings the neighbour's pixels. Samples of a
batch are lanes as well: with as many samples as lanes a block is the whole map and nothing is ever permuted.

Letters: n samples, c channels, h x w the map; L lanes; a grid of gy x gx blocks of bh x bw pixels. The pixel (y, x) of
sample i lies in pass i // samples, in vector (y % bh, x % bw), in lane

    (i % samples) * gy * gx + (y // bh) * gx + x // bw

Memory is [pass][c][bh][bw][L]. Blocks may reach beyond the map and lanes may be unused: what lies there is never read
as a number. One lane, one sample and one block make the plain layout of torch.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from workloads.errors import ShapeError

FLOAT_BYTES = 4
MAX_OFFSET = 2**31 - 1


@dataclass(frozen=True)
class Layout:
    """Lanes, samples side by side, grid (gy, gx) and block (bh, bw); see the module.

    >>> [int(part) for part in Layout(4, 1, (2, 2), (3, 3)).place(np.array(0), np.array(4), np.array(1))]
    [0, 4, 2]
    """

    lanes: int
    samples: int
    grid: tuple[int, int]
    block: tuple[int, int]

    @property
    def is_plain(self) -> bool:
        return self.lanes == 1

    @property
    def plane(self) -> int:
        """Floats of one channel of one pass."""
        return math.prod(self.block) * self.lanes

    def passes(self, n: int) -> int:
        return -(-n // self.samples)

    def size(self, shape: tuple[int, int, int, int]) -> int:
        """Floats of a tensor (n, c, h, w)."""
        return self.passes(shape[0]) * shape[1] * self.plane

    def place(self, n: np.ndarray, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pass, vector in the block and lane of pixels, integer arrays of one shape."""
        (gy, gx), (bh, bw) = self.grid, self.block
        lane = (n % self.samples) * gy * gx + (y // bh) * gx + x // bw
        return n // self.samples, (y % bh) * bw + x % bw, lane

    def offset(self, channels: int, n: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Position of pixels of channel 0, in floats from the start of the tensor."""
        batch, vector, lane = self.place(n, y, x)
        return batch * channels * self.plane + vector * self.lanes + lane

    def pack(self, x: np.ndarray) -> np.ndarray:
        """A tensor (n, c, h, w) as it lies in memory, float32 (size,); zero where no pixel lies."""
        found = np.zeros(self.size(_four(x.shape)), np.float32)
        found[self._indices(_four(x.shape))] = x
        return found

    def unpack(self, memory: np.ndarray, shape: tuple[int, int, int, int]) -> np.ndarray:
        """The inverse of `pack`."""
        return memory[self._indices(shape)]

    def _indices(self, shape: tuple[int, int, int, int]) -> np.ndarray:
        n, c, h, w = shape
        i, y, x = (axis[:, None] for axis in np.meshgrid(*map(np.arange, (n, h, w)), indexing="ij"))
        return self.offset(c, i, y, x) + (np.arange(c) * self.plane)[:, None, None]


def offsets32(values: np.ndarray) -> np.ndarray:
    """Distances in bytes as kernels read them: int32.

    Raises:
        ShapeError: one does not fit.
    """
    if values.size and (farthest := int(values.max())) > MAX_OFFSET:
        raise ShapeError(f"reads or writes {farthest} bytes behind a start, compiled code reaches {MAX_OFFSET}; "
                         f"give smaller maps or batches")  # fmt: skip
    return values.astype(np.int32)


def _four(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    n, c, h, w = shape
    return n, c, h, w


def plain(height: int = 1, width: int = 1) -> Layout:
    """Torch's layout of a map; of a vector of features with height = width = 1."""
    return Layout(1, 1, (1, 1), (height, width))


def tiled(lanes: int, samples: int, height: int, width: int, grid: tuple[int, int]) -> Layout:
    """The smallest blocks of a grid that hold a map."""
    return Layout(lanes, samples, grid, (-(-height // grid[0]), -(-width // grid[1])))


def best_layout(lanes: int, n: int, height: int, width: int) -> Layout:
    """The layout of fewest vectors for a map; of equal ones that with more samples side by side, then squarer blocks.

    >>> best_layout(16, 1, 14, 14).grid, best_layout(16, 32, 14, 14).samples
    ((7, 2), 16)
    """
    found = []
    for samples in sorted({min(n, 2**i) for i in range(lanes.bit_length()) if 2**i <= lanes}):
        blocks = lanes // samples
        for gy, gx in itertools.product(range(1, blocks + 1), repeat=2):
            if gy * gx <= blocks:
                layout = tiled(lanes, samples, height, width, (gy, gx))
                vectors = layout.passes(n) * math.prod(layout.block)
                found.append(((vectors, -samples, max(layout.block) - min(layout.block), gx), layout))
    return min(found, key=lambda item: item[0])[1]
