"""What becomes of a tile's sums: residual, activation, pooling, and where they are written."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from codesign.compiler.emitter import Emitter, Value

Taps = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Output:
    """A filter's tile of outputs.

    Attributes:
        tile: rows and columns. out_row: vectors from one row of the written tensor to the next.
        residual: none, or the stride (rows, columns) at which it is read and its vectors a row.
        pool: side of the max pooling windows that are written instead of the outputs; 1 for none.
    """

    tile: tuple[int, int]
    out_row: int
    activation: str = ""
    residual: tuple[int, int, int] | None = None
    pool: int = 1

    @property
    def pixels(self) -> list[tuple[int, int]]:
        return list(itertools.product(range(self.tile[0]), range(self.tile[1])))

    def uses(self, taps: Taps, stride: tuple[int, int]) -> dict[tuple[int, int], list[tuple[int, int]]]:
        """Pixel of the packed tile -> the taps and outputs, by number, that it meets; pixels in order of rows."""
        found: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for at, (i, j) in enumerate(self.pixels):
            for tap, (y, x) in enumerate(taps):
                found.setdefault((i * stride[0] + y, j * stride[1] + x), []).append((tap, at))
        return dict(sorted(found.items()))

    def finish(self, e: Emitter, sums: Sequence[Value], out: Value, residual: Value, offset: Value) -> None:
        """Write a filter's sums to `out`.

        Args:
            residual, offset: what is added lies so many bytes behind the pointer, or is nothing where that is negative.
        """
        found = list(sums)
        if self.residual is not None:
            down, right, row = self.residual
            place = e.advance(residual, offset)

            def add(mine: list[Value]) -> list[Value]:
                pairs = zip(mine, self.pixels, strict=True)
                return [e.builder.fadd(total, e.load(place, i * down * row + j * right)) for total, (i, j) in pairs]

            found = e.when(e.builder.icmp_signed(">=", offset, e.constant(0)), found, add)
        found = [e.activate(total, self.activation) for total in found]
        window = list(itertools.product(range(self.pool), repeat=2))
        for i, j in itertools.product(range(0, self.tile[0], self.pool), range(0, self.tile[1], self.pool)):
            best, *others = [found[(i + y) * self.tile[1] + j + x] for y, x in window]
            for value in others:
                best = e.maximum(best, value)
            e.store(best, out, i // self.pool * self.out_row + j // self.pool)
