"""Blocks cut into register tiles, and what of the input each tile reads.

Letters: a window of R x S taps, stride and dilation (rows, columns), padding (top, left).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from codesign.compiler.kernels.pack import Move
from codesign.compiler.layout import FLOAT_BYTES, Layout, offsets32


@dataclass(frozen=True)
class Window:
    """What an output pixel reads of the map."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)

    def footprint(self, tile: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns that a tile of outputs reads."""
        spans = zip(tile, self.kernel, self.stride, self.dilation, strict=True)
        rows, columns = ((outputs - 1) * s + (taps - 1) * d + 1 for outputs, taps, s, d in spans)
        return rows, columns

    def reads(self, tile: tuple[int, int]) -> list[tuple[int, int]]:
        """The pixels of the footprint that any output reads, in order of rows."""
        rows, columns = (
            sorted({i * s + t * d for i in range(outputs) for t in range(taps)})
            for outputs, taps, s, d in zip(tile, self.kernel, self.stride, self.dilation, strict=True)
        )
        return list(itertools.product(rows, columns))


@dataclass(frozen=True)
class Tile:
    """Outputs (row, column) to (row + height, column + width) of every block."""

    row: int
    column: int
    size: tuple[int, int]


def cut(block: tuple[int, int], tile: tuple[int, int], multiple: int = 1) -> Iterator[Tile]:
    """Tiles of nearly equal sides, none larger than `tile`; sides are multiples of a number that divides the block's.

    >>> [t.size for t in cut((7, 4), (5, 5))]
    [(4, 4), (3, 4)]
    """
    for row, height in _parts(block[0], tile[0], multiple):
        for column, width in _parts(block[1], tile[1], multiple):
            yield Tile(row, column, (height, width))


def _parts(length: int, most: int, multiple: int) -> Iterator[tuple[int, int]]:
    units, each = length // multiple, max(most // multiple, 1)
    count = -(-units // each)
    bounds = [-(-units * i // count) * multiple for i in range(count + 1)]
    return ((start, end - start) for start, end in itertools.pairwise(bounds))


@functools.lru_cache(maxsize=1024)  # the same for every pass over the batch
def shift_moves(
    source: Layout, out: Layout, size: tuple[int, int], window: Window, tile: Tile, row: int
) -> tuple[int, tuple[Move, ...]] | None:
    """How a tile's footprint is copied where lanes of source and output are the same blocks.

    Args:
        size: height and width of the source's map.
        row: vectors from one row of the packed tile to the next.

    Returns:
        The vector of the source's plane that moves count from, and the moves; None where blocks differ.
    """
    if (source.lanes, source.samples, source.grid) != (out.lanes, out.samples, out.grid):
        return None
    if any(mine != its * s for mine, its, s in zip(source.block, out.block, window.stride, strict=True)):
        return None
    top, left = _start(window, tile)
    base = top * source.block[1] + left
    moves = []
    for fy, fx in window.reads(tile.size):
        (down, y), (right, x) = divmod(top + fy, source.block[0]), divmod(left + fx, source.block[1])
        lanes = _neighbours(source, size, (top + fy, left + fx), (down, right))
        moves.append(Move(fy * row + fx, y * source.block[1] + x - base, lanes))
    return base, tuple(moves)


def _start(window: Window, tile: Tile) -> tuple[int, int]:
    """The pixel of the input's block 0 that the footprint begins with; negative in the padding or a neighbour."""
    return tile.row * window.stride[0] - window.padding[0], tile.column * window.stride[1] - window.padding[1]


def _neighbours(
    source: Layout, size: tuple[int, int], pixel: tuple[int, int], step: tuple[int, int]
) -> tuple[int, ...]:
    """For each lane the lane of the block so many steps on, -1 where the pixel lies outside the map; () for itself."""
    last = [(count - 1) * side for count, side in zip(source.grid, source.block, strict=True)]
    if step == (0, 0) and last[0] + pixel[0] < size[0] and last[1] + pixel[1] < size[1]:
        return ()
    found = []
    for lane in range(source.lanes):
        sample, block = divmod(lane, source.grid[0] * source.grid[1])
        place = divmod(block, source.grid[1])
        at = [place[axis] * source.block[axis] + pixel[axis] for axis in (0, 1)]
        is_inside = sample < source.samples and all(0 <= at[axis] < size[axis] for axis in (0, 1))
        found.append(lane + step[0] * source.grid[1] + step[1] if is_inside else -1)
    return tuple(found)


def gather_table(
    source: Layout, out: Layout, shape: tuple[int, int, int, int], window: Window, tile: Tile, batch: int
) -> np.ndarray:
    """Bytes from the source's start to each lane of a tile's footprint, int32 (pixels read, lanes); -1 outside.

    Args:
        shape: of the source tensor. batch: the pass of the output.
    """
    lane = np.arange(out.lanes)
    sample, block = np.divmod(lane, out.grid[0] * out.grid[1])
    reads = np.array(window.reads(tile.size))
    top, left = _start(window, tile)
    y = (block // out.grid[1] * out.block[0] * window.stride[0]) + top + reads[:, :1]
    x = (block % out.grid[1] * out.block[1] * window.stride[1]) + left + reads[:, 1:]
    n = np.broadcast_to(batch * out.samples + sample, y.shape)
    is_inside = (sample < out.samples) & (n < shape[0]) & (y >= 0) & (y < shape[2]) & (x >= 0) & (x < shape[3])
    inside = [np.where(is_inside, axis, 0) for axis in (n, y, x)]
    return offsets32(np.where(is_inside, source.offset(shape[1], *inside) * FLOAT_BYTES, -1))
