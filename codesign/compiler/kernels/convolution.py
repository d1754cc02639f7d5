"""The convolution of one tile of the map: filters one after another (or a few together), each over its own kernels.

For a tile of outputs (i, j), a filter k and the kernels that it kept, each of a channel c and a shape b of taps:

    out[k][i, j] = activation( bias[k] + residual[k][i, j] + sum over kernels and taps (y, x) of b of
                               weight * packed[c][i * stride + y, j * stride + x] )

The outputs of a tile stay in registers while all kernels of a filter are added. Three ideas of PatDNN make the inner
loop straight-line code that data drive:

- *Filter kernel reorder*: the kernels of a filter are sorted by shape, so there is one counted loop a shape and nothing
  to decide inside. Patterns that are shifted copies of one another are one shape: the shift is in the kernel's offset.
- *Load redundancy elimination*: each input vector is loaded once and used by every tap and output that needs it
  (kernel level), and by all filters of a group that keep the same kernels (filter level).
- *Compact storage*: an offset and the weights a kernel, nothing else.

Memory, written by `codesign.compiler.storage`:

    headers, a group of filters (int32): start in the stream | kernels of each shape | offset of each filter's output |
        offset of its residual, -1 for none | its bias (float)
    stream, a kernel: offset in the packed tile (int32) | weights (float), tap by tap, in a tap filter by filter
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from codesign.compiler.kernels import Kernel

if TYPE_CHECKING:
    from codesign.compiler.emitter import Emitter, Value

Taps = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class ConvolutionKernel(Kernel):
    """One tile's code.

    Attributes:
        tile: outputs (rows, columns) in registers. stride: (rows, columns).
        shapes: of kernels, each its taps (row, column) in the packed tile. filters: so many share every kernel.
        row: vectors from one row of the packed tile to the next. out_row: of the output.
        residual: none, or the stride (rows, columns) at which it is read and its vectors a row.
        pool: side of the max pooling windows that are written instead of the outputs; 1 for none.
        ahead: so many kernels ahead the packed tile is prefetched; 0 for not.
    """

    tile: tuple[int, int]
    stride: tuple[int, int]
    shapes: tuple[Taps, ...]
    filters: int
    row: int
    out_row: int
    activation: str = ""
    residual: tuple[int, int, int] | None = None
    pool: int = 1
    ahead: int = 0
    ARGUMENTS = ("packed", "out", "residual", "headers", "groups", "stream")

    @property
    def header_bytes(self) -> int:
        return 4 * (1 + len(self.shapes) + 3 * self.filters)

    def emit(self, e: Emitter) -> None:
        packed, out, residual = e.pointer("packed"), e.pointer("out"), e.pointer("residual")
        stream = e.pointer("stream")

        def group(_: Value, carried: list[Value]) -> list[Value]:
            (header,) = carried
            sums = self._biases(e, header)
            kernels = e.advance(stream, e.integer(header))
            for i, taps in enumerate(self.shapes):
                kernels, *sums = self._kernels(e, packed, kernels, e.integer(header, 4 * (1 + i)), taps, sums)
            if self.residual is not None:
                sums = self._add_residual(e, residual, header, sums)
            self._write(e, out, header, [e.activate(total, self.activation) for total in sums])
            return [e.advance(header, self.header_bytes)]

        e.repeat(e.count("groups"), [e.pointer("headers")], group)

    # Sums are ordered by filter, then row, then column.

    def _place(self, which: int, i: int, j: int) -> int:
        return (which * self.tile[0] + i) * self.tile[1] + j

    def _field(self, which: int, part: int) -> int:
        """Bytes from a header's start to what a filter has there: output (0), residual (1), bias (2)."""
        return 4 * (1 + len(self.shapes) + part * self.filters + which)

    def _biases(self, e: Emitter, header: Value) -> list[Value]:
        outputs = self.tile[0] * self.tile[1]
        each = [e.splat(e.scalar(header, self._field(which, 2))) for which in range(self.filters)]
        return [bias for bias in each for _ in range(outputs)]

    def _kernels(
        self, e: Emitter, packed: Value, kernels: Value, count: Value, taps: Taps, sums: Sequence[Value]
    ) -> list[Value]:
        """All kernels of one shape: (where the next begin, sums)."""
        size = 4 + 4 * len(taps) * self.filters
        uses = self._uses(taps)

        def kernel(_: Value, carried: list[Value]) -> list[Value]:
            place, *sums = carried
            base = e.advance(packed, e.integer(place))
            if self.ahead:
                coming = e.advance(packed, e.integer(place, self.ahead * size))
                for row, column in uses:
                    e.prefetch(coming, row * self.row + column)
            weights = [e.splat(e.scalar(place, 4 + 4 * i)) for i in range(len(taps) * self.filters)]
            for (row, column), found in uses.items():
                x = e.load(base, row * self.row + column)
                for tap, i, j in found:
                    for which in range(self.filters):
                        at = self._place(which, i, j)
                        sums[at] = e.fma(x, weights[tap * self.filters + which], sums[at])
            return [e.advance(place, size), *sums]

        return e.repeat(count, [kernels, *sums], kernel)

    def _uses(self, taps: Taps) -> dict[tuple[int, int], list[tuple[int, int, int]]]:
        """Pixel of the packed tile -> the taps and outputs that it meets, pixels in order of rows."""
        found: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
        for i in range(self.tile[0]):
            for j in range(self.tile[1]):
                for tap, (y, x) in enumerate(taps):
                    found.setdefault((i * self.stride[0] + y, j * self.stride[1] + x), []).append((tap, i, j))
        return dict(sorted(found.items()))

    def _add_residual(self, e: Emitter, residual: Value, header: Value, sums: Sequence[Value]) -> list[Value]:
        assert self.residual is not None
        down, right, row = self.residual
        found = list(sums)
        outputs = self.tile[0] * self.tile[1]
        for which in range(self.filters):
            offset = e.integer(header, self._field(which, 1))
            place = e.advance(residual, offset)

            def add(mine: list[Value], place: Value = place) -> list[Value]:
                pixels = [(i, j) for i in range(self.tile[0]) for j in range(self.tile[1])]
                return [
                    e.builder.fadd(total, e.load(place, i * down * row + j * right))
                    for total, (i, j) in zip(mine, pixels, strict=True)
                ]

            span = slice(which * outputs, (which + 1) * outputs)
            found[span] = e.when(e.builder.icmp_signed(">=", offset, e.constant(0)), found[span], add)
        return found

    def _write(self, e: Emitter, out: Value, header: Value, sums: Sequence[Value]) -> None:
        rows, columns = self.tile
        for which in range(self.filters):
            place = e.advance(out, e.integer(header, self._field(which, 0)))
            for i in range(0, rows, self.pool):
                for j in range(0, columns, self.pool):
                    best = sums[self._place(which, i, j)]
                    for y in range(self.pool):
                        for x in range(self.pool):
                            if y or x:
                                best = e.maximum(best, sums[self._place(which, i + y, j + x)])
                    e.store(best, place, i // self.pool * self.out_row + j // self.pool)
