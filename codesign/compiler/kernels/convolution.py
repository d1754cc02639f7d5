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
from codesign.compiler.kernels.outputs import Output, Taps

if TYPE_CHECKING:
    from codesign.compiler.emitter import Emitter, Value


@dataclass(frozen=True)
class ConvolutionKernel(Kernel):
    """One tile's code.

    Attributes:
        output: of each filter; its tile stays in registers. stride: (rows, columns).
        shapes: of kernels, each its taps (row, column) in the packed tile. filters: so many share every kernel.
        row: vectors from one row of the packed tile to the next.
    """

    output: Output
    stride: tuple[int, int]
    shapes: tuple[Taps, ...]
    filters: int
    row: int
    ARGUMENTS = ("packed", "out", "residual", "headers", "groups", "stream")

    @property
    def header_bytes(self) -> int:
        return 4 * (1 + len(self.shapes) + 3 * self.filters)

    def emit(self, e: Emitter) -> None:
        packed, stream = e.pointer("packed"), e.pointer("stream")
        out, residual = e.pointer("out"), e.pointer("residual")
        outputs = len(self.output.pixels)

        def group(_: Value, carried: list[Value]) -> list[Value]:
            (header,) = carried
            biases = [e.splat(e.scalar(header, self._field(which, 2))) for which in range(self.filters)]
            sums = [bias for bias in biases for _ in range(outputs)]
            kernels = e.advance(stream, e.integer(header))
            for i, taps in enumerate(self.shapes):
                kernels, *sums = self._kernels(e, packed, kernels, e.integer(header, 4 * (1 + i)), taps, sums)
            for which in range(self.filters):
                mine = sums[which * outputs : (which + 1) * outputs]
                place = e.advance(out, e.integer(header, self._field(which, 0)))
                self.output.finish(e, mine, place, residual, e.integer(header, self._field(which, 1)))
            return [e.advance(header, self.header_bytes)]

        e.repeat(e.count("groups"), [e.pointer("headers")], group)

    def _field(self, which: int, part: int) -> int:
        """Bytes from a header's start to what a filter has there: output (0), residual (1), bias (2)."""
        return 4 * (1 + len(self.shapes) + part * self.filters + which)

    def _kernels(
        self, e: Emitter, packed: Value, kernels: Value, count: Value, taps: Taps, sums: Sequence[Value]
    ) -> list[Value]:
        """All kernels of one shape: (where the next begin, sums, filter by filter)."""
        size = 4 + 4 * len(taps) * self.filters
        uses = self.output.uses(taps, self.stride)
        outputs = len(self.output.pixels)

        def kernel(_: Value, carried: list[Value]) -> list[Value]:
            place, *sums = carried
            base = e.advance(packed, e.integer(place))
            weights = [e.splat(e.scalar(place, 4 + 4 * i)) for i in range(len(taps) * self.filters)]
            for (row, column), meets in uses.items():
                x = e.load(base, row * self.row + column)
                for tap, at in meets:
                    for which in range(self.filters):
                        mine = which * outputs + at
                        sums[mine] = e.fma(x, weights[tap * self.filters + which], sums[mine])
            return [e.advance(place, size), *sums]

        return e.repeat(count, [kernels, *sums], kernel)
