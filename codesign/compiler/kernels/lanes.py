"""The convolution of a small map with filters in lanes: a weight of many filters is a vector, a pixel is a number.

Where a map has too few pixels to fill lanes with blocks, and filters keep the same kernels (dense layers, or groups
that were pruned alike), neighbouring filters are the lanes. Per kernel and tap the weights of all filters are loaded
once for every output pixel of the tile, and each input pixel is multiplied from memory into all lanes:

    sums[i, j][k] += weight[tap][k] * packed[c][i * stride + y, j * stride + x]      for the taps (y, x) of the shape

Headers and stream are those of `kernels.convolution` for groups of `vectors` times so many filters as there are lanes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from codesign.compiler.kernels import Kernel
from codesign.compiler.kernels.outputs import Taps
from codesign.compiler.layout import FLOAT_BYTES

if TYPE_CHECKING:
    from codesign.compiler.emitter import Emitter, Value


@dataclass(frozen=True)
class LanesKernel(Kernel):
    """One group of filters over one tile.

    Attributes:
        tile: outputs (rows, columns). stride: (rows, columns). shapes: of kernels, each its taps (row, column).
        vectors: of filters in the group. row: numbers from one row of the packed map to the next.
        width: of the map: outputs are written pixel by pixel, each with all filters of the group.
    """

    tile: tuple[int, int]
    stride: tuple[int, int]
    shapes: tuple[Taps, ...]
    vectors: int
    row: int
    width: int
    activation: str = ""
    ARGUMENTS = ("packed", "sums", "header", "stream")

    def emit(self, e: Emitter) -> None:
        packed, out, header = e.pointer("packed"), e.pointer("sums"), e.pointer("header")
        pixels = list(itertools.product(range(self.tile[0]), range(self.tile[1])))
        filters = self.vectors * e.isa.lanes
        biases = e.advance(header, FLOAT_BYTES * (1 + len(self.shapes) + 2 * filters))
        sums = [e.load(biases, v, align=FLOAT_BYTES) for v in range(self.vectors)] * len(pixels)
        kernels = e.advance(e.pointer("stream"), e.integer(header))
        for i, taps in enumerate(self.shapes):
            kernels, *sums = self._kernels(e, packed, kernels, e.integer(header, 4 * (1 + i)), taps, sums)
        for n, (i, j) in enumerate(pixels):
            for v in range(self.vectors):
                place = (i * self.width + j) * self.vectors + v
                e.store(e.activate(sums[n * self.vectors + v], self.activation), out, place)

    def _kernels(
        self, e: Emitter, packed: Value, kernels: Value, count: Value, taps: Taps, sums: Sequence[Value]
    ) -> list[Value]:
        """All kernels of one shape: (where the next begin, sums, pixel by pixel)."""
        size = 4 + len(taps) * self.vectors * e.vector_bytes

        def kernel(_: Value, carried: list[Value]) -> list[Value]:
            place, *sums = carried
            base, weights = e.advance(packed, e.integer(place)), e.advance(place, 4)
            for tap, (y, x) in enumerate(taps):
                mine = [e.load(weights, tap * self.vectors + v, align=FLOAT_BYTES) for v in range(self.vectors)]
                for n, (i, j) in enumerate(itertools.product(range(self.tile[0]), range(self.tile[1]))):
                    pixel = (i * self.stride[0] + y) * self.row + j * self.stride[1] + x
                    number = e.splat(e.scalar(base, FLOAT_BYTES * pixel))
                    for v in range(self.vectors):
                        at = n * self.vectors + v
                        sums[at] = e.fma(number, mine[v], sums[at])
            return [e.advance(place, size), *sums]

        return e.repeat(count, [kernels, *sums], kernel)
