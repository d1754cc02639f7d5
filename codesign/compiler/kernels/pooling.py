"""Windows of a packed tile reduced to their largest value or their mean."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from codesign.compiler.kernels import Kernel

if TYPE_CHECKING:
    from codesign.compiler.emitter import Emitter, Value


@dataclass(frozen=True)
class PoolKernel(Kernel):
    """One tile of so many channels.

    Attributes:
        tile: outputs (rows, columns). taps: (row, column) of the window in the packed tile. stride: (rows, columns).
        row, out_row: vectors from one row to the next, packed and written.
        is_mean: sums are multiplied by the table's vectors, one an output; else the largest value is taken.
    """

    tile: tuple[int, int]
    taps: tuple[tuple[int, int], ...]
    stride: tuple[int, int]
    row: int
    out_row: int
    is_mean: bool
    activation: str = ""
    ARGUMENTS = ("packed", "out", "channels", "packed_plane", "out_plane", "table")

    def emit(self, e: Emitter) -> None:
        packed_plane, out_plane, table = e.count("packed_plane"), e.count("out_plane"), e.pointer("table")

        def channel(_: Value, carried: list[Value]) -> list[Value]:
            packed, out = carried
            for n, (i, j) in enumerate(itertools.product(range(self.tile[0]), range(self.tile[1]))):
                places = [(i * self.stride[0] + y) * self.row + j * self.stride[1] + x for y, x in self.taps]
                found = e.load(packed, places[0])
                for place in places[1:]:
                    x = e.load(packed, place)
                    found = e.builder.fadd(found, x) if self.is_mean else e.maximum(found, x)
                if self.is_mean:
                    found = e.builder.fmul(found, e.load(table, n))
                e.store(e.activate(found, self.activation), out, i * self.out_row + j)
            return [e.advance(packed, packed_plane), e.advance(out, out_plane)]

        e.repeat(e.count("channels"), [e.pointer("packed"), e.pointer("out")], channel)


@dataclass(frozen=True)
class GlobalMeanKernel(Kernel):
    """The mean of every channel's map, for each of `samples` samples of `blocks` lanes: floats in torch's order.

    Attributes:
        pixels: of the map. The table has a vector for each of the block's: 1 in lanes that lie in the map, else 0.
    """

    samples: int
    blocks: int
    pixels: int
    activation: str = ""
    ARGUMENTS = ("source", "out", "channels", "source_plane", "vectors", "table", "out_sample")

    def emit(self, e: Emitter) -> None:
        from llvmlite import ir

        from codesign.compiler.emitter import I32

        builder, vectors, table = e.builder, e.count("vectors"), e.pointer("table")
        source_plane, out_sample = e.count("source_plane"), e.count("out_sample")
        zero = e.splat(0.0)

        def vector(_: Value, carried: list[Value]) -> list[Value]:
            place, mask, total = carried
            is_inside = builder.fcmp_ordered(">", e.load(mask), zero)
            x = builder.select(is_inside, e.load(place), zero)
            return [e.advance(place, e.vector_bytes), e.advance(mask, e.vector_bytes), builder.fadd(total, x)]

        def channel(_: Value, carried: list[Value]) -> list[Value]:
            source, out = carried
            total = e.repeat(vectors, [source, table, zero], vector)[2]
            place = out
            for sample in range(self.samples):
                lanes = range(sample * self.blocks, (sample + 1) * self.blocks)
                parts = [builder.extract_element(total, ir.Constant(I32, lane)) for lane in lanes]
                while len(parts) > 1:
                    odd = parts[-1:] if len(parts) % 2 else []
                    parts = [builder.fadd(x, y) for x, y in zip(parts[::2], parts[1::2], strict=False)] + odd
                mean = e.times(parts[0], 1 / self.pixels)
                builder.store(e.activate(mean, self.activation), place, align=4)
                place = e.advance(place, out_sample)
            return [e.advance(source, source_plane), e.advance(out, 4)]

        e.repeat(e.count("channels"), [e.pointer("source"), e.pointer("out")], channel)
