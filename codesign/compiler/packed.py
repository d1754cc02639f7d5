"""Tiles of a step's input, packed into a thread's scratch memory one at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from codesign.compiler.kernels.pack import GatherKernel, PackKernel
from codesign.compiler.layout import FLOAT_BYTES, Layout, offsets32
from codesign.compiler.plan import Context, Place
from codesign.compiler.program import At, Call, Space
from codesign.compiler.tiles import Tile, Window, cut, gather_table, shift_moves

SCRATCH = At(Space.SCRATCH, 0)


@dataclass(frozen=True)
class Packed:
    """How the input of a step with a window is packed.

    Attributes:
        source: the input. out: the layout of what is computed from it. tiles: of out's blocks.
        row, plane: vectors of a row and of a channel of every packed tile: kernels have one offset for all tiles.
        channels: those of the source that are packed, one after another; integer.
        planes: where their offsets are kept.
    """

    source: Place
    out: Layout
    window: Window
    tiles: tuple[Tile, ...]
    row: int
    plane: int
    channels: np.ndarray
    planes: At

    @classmethod
    def cut(
        cls,
        context: Context,
        source: Place,
        out: Layout,
        window: Window,
        tile: tuple[int, int],
        multiple: int = 1,
        channels: np.ndarray | None = None,
    ) -> Packed:
        """Tiles of at most some size; `channels` by default all."""
        channels = np.arange(source.shape[1]) if channels is None else channels
        planes = context.data.add(offsets32(channels * source.plane))
        tiles = tuple(cut(out.block, tile, multiple))
        sizes = [window.footprint(part.size) for part in tiles]
        row = max(columns for _, columns in sizes)
        return cls(source, out, window, tiles, row, row * max(rows for rows, _ in sizes), channels, planes)

    @property
    def plane_bytes(self) -> int:
        return self.plane * self.out.lanes * FLOAT_BYTES

    @property
    def size(self) -> int:
        """Bytes of all packed channels."""
        return self.plane_bytes * len(self.channels)

    def call(self, context: Context, tile: Tile, batch: int, fill: float = 0.0) -> Call:
        """The copy of the channels' footprint of a tile to the start of scratch memory; `fill` outside the map."""
        source, vector = self.source, self.out.lanes * FLOAT_BYTES
        size, where = (source.shape[2], source.shape[3]), (len(self.channels), self.planes, self.plane_bytes)
        shifted = shift_moves(source.layout, self.out, size, self.window, tile, self.row)
        if shifted is not None:
            base, moves = shifted
            start = source.batch(batch) + base * vector
            return Call(PackKernel(moves, fill), (start, SCRATCH, *where))
        table = np.full((self.window.footprint(tile.size)[0], self.row, self.out.lanes), -1, np.int32)
        reads = np.array(self.window.reads(tile.size))
        table[reads[:, 0], reads[:, 1]] = gather_table(source.layout, self.out, source.shape, self.window, tile, batch)
        vectors = table.shape[0] * self.row
        return Call(GatherKernel(fill), (source.start, SCRATCH, *where, context.data.add(table), vectors))
