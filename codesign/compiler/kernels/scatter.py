"""The convolution of a small map, channel by channel: what is loaded of the input serves every filter that wants it.

Where a filter's outputs are few vectors, computing filter by filter (`kernels.convolution`) loads a whole footprint
for few multiplications and waits for sums that depend on one another. Here the sums of all filters lie in the nearest
cache instead, and kernels come in *runs* of one channel, shape and shift: the run's inputs are loaded once, then
each of its kernels adds to its filter's sums:

    sums[k][i, j] += weight[tap] * packed[c][i * stride + y, j * stride + x]      for the taps (y, x) of the shape

Memory, written by `codesign.compiler.storage`:

    headers, a filter (int32): offset of its output | of its residual, -1 for none | its bias (float)
    counts (int32): runs of each shape
    stream, a run: offset in the packed tile (int32) | kernels (int32) | of each kernel: offset of its filter's sums
        (int32), weights (float)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from codesign.compiler.kernels import Kernel
from codesign.compiler.kernels.outputs import Output, Taps

if TYPE_CHECKING:
    from codesign.compiler.emitter import Emitter, Value


@dataclass(frozen=True)
class ScatterKernel(Kernel):
    """One tile's code, for so many filters; fields as those of `ConvolutionKernel`.

    Attributes:
        vectors: from one filter's sums to the next: the stream counts them so for all tiles, small ones too.
    """

    output: Output
    stride: tuple[int, int]
    shapes: tuple[Taps, ...]
    row: int
    vectors: int
    ARGUMENTS = ("packed", "sums", "out", "residual", "headers", "filters", "counts", "stream")
    header_bytes = 12

    def emit(self, e: Emitter) -> None:
        headers, filters, sums = e.pointer("headers"), e.count("filters"), e.pointer("sums")
        outputs = range(len(self.output.pixels))
        size = self.vectors * e.vector_bytes

        def begin(_: Value, carried: list[Value]) -> list[Value]:
            header, place = carried
            bias = e.splat(e.scalar(header, 8))
            for i in outputs:
                e.store(bias, place, i)
            return [e.advance(header, self.header_bytes), e.advance(place, size)]

        e.repeat(filters, [headers, sums], begin)
        packed, counts, stream = e.pointer("packed"), e.pointer("counts"), e.pointer("stream")
        for i, taps in enumerate(self.shapes):
            stream = self._runs(e, taps, packed, sums, e.integer(counts, 4 * i), stream)
        out, residual = e.pointer("out"), e.pointer("residual")

        def end(_: Value, carried: list[Value]) -> list[Value]:
            header, place = carried
            found = [e.load(place, i) for i in outputs]
            self.output.finish(e, found, e.advance(out, e.integer(header)), residual, e.integer(header, 4))
            return [e.advance(header, self.header_bytes), e.advance(place, size)]

        e.repeat(filters, [headers, sums], end)

    def _runs(self, e: Emitter, taps: Taps, packed: Value, sums: Value, count: Value, stream: Value) -> Value:
        """All runs of one shape: where the next begin."""
        uses = self.output.uses(taps, self.stride)
        outputs = range(len(self.output.pixels))

        def run(_: Value, carried: list[Value]) -> list[Value]:
            (start,) = carried
            base = e.advance(packed, e.integer(start))
            inputs = {(row, column): e.load(base, row * self.row + column) for row, column in uses}

            def kernel(_: Value, carried: list[Value]) -> list[Value]:
                (place,) = carried
                mine = e.advance(sums, e.integer(place))
                found = [e.load(mine, i) for i in outputs]
                weights = [e.splat(e.scalar(place, 4 + 4 * tap)) for tap in range(len(taps))]
                for pixel, meets in uses.items():
                    for tap, at in meets:
                        found[at] = e.fma(inputs[pixel], weights[tap], found[at])
                for i in outputs:
                    e.store(found[i], mine, i)
                return [e.advance(place, 4 + 4 * len(taps))]

            return e.repeat(e.integer(start, 4), [e.advance(start, 8)], kernel)

        return e.repeat(count, [stream], run)[0]
