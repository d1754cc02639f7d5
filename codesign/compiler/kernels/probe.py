"""Loops whose speed is one number of the machine: its clock, its multiplications a cycle, the bytes it can read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from codesign.compiler.kernels import Kernel

if TYPE_CHECKING:
    from codesign.compiler.emitter import Emitter, Value

CHAIN = 64
"""Additions and exclusive ors in a round of `ChainKernel`."""
FMA_STEPS = 8
"""Times that a round of `FmaKernel` uses every sum."""


@dataclass(frozen=True)
class EmptyKernel(Kernel):
    """Returns."""

    ARGUMENTS = ()

    def emit(self, e: Emitter) -> None:
        """Nothing to write."""


@dataclass(frozen=True)
class ChainKernel(Kernel):
    """x = (x + a) ^ b, each waiting for the one before: CHAIN operations a round, one cycle each on every x86-64 core.

    The result goes to `out` (int64).
    """

    ARGUMENTS = ("rounds", "a", "b", "out")

    def emit(self, e: Emitter) -> None:
        a, b = e.count("a"), e.count("b")

        def step(_: Value, carried: list[Value]) -> list[Value]:
            (x,) = carried
            for _step in range(CHAIN // 2):
                x = e.builder.xor(e.builder.add(x, a), b)
            return [x]

        (x,) = e.repeat(e.count("rounds"), [a], step)
        e.builder.store(x, e.pointer("out"), align=8)


@dataclass(frozen=True)
class FmaKernel(Kernel):
    """sum_i = x * y + sum_i on vectors, so many `sums` in turn; FMA_STEPS times all of them a round.

    `x` points to a vector, `y` to a float, `out` to room for a vector. One sum makes a chain.
    """

    sums: int
    ARGUMENTS = ("rounds", "x", "y", "out")

    def emit(self, e: Emitter) -> None:
        x, y = e.load(e.pointer("x")), e.splat(e.scalar(e.pointer("y")))

        def step(_: Value, carried: list[Value]) -> list[Value]:
            for _step in range(FMA_STEPS):
                carried = [e.fma(x, y, total) for total in carried]
            return carried

        e.store(_sum(e, e.repeat(e.count("rounds"), [e.splat(0.0)] * self.sums, step)), e.pointer("out"))


@dataclass(frozen=True)
class ReadKernel(Kernel):
    """Reads a buffer of `chunks` times `vectors` vectors from front to back, `rounds` times.

    What is read is added up or, if it `multiplies`, times the float at `y` first, in one FMA: then every FMA waits for
    a vector from memory, as those of a convolution do.
    """

    vectors: int
    multiplies: bool = False
    ARGUMENTS = ("rounds", "buffer", "chunks", "y", "out")

    def emit(self, e: Emitter) -> None:
        buffer, chunks, y = e.pointer("buffer"), e.count("chunks"), e.splat(e.scalar(e.pointer("y")))

        def add(total: Value, x: Value) -> Value:
            return e.fma(x, y, total) if self.multiplies else e.builder.fadd(total, x)

        def chunk(_: Value, carried: list[Value]) -> list[Value]:
            place, *totals = carried
            totals = [add(total, e.load(place, i)) for i, total in enumerate(totals)]
            return [e.advance(place, self.vectors * e.vector_bytes), *totals]

        def once(_: Value, totals: list[Value]) -> list[Value]:
            return e.repeat(chunks, [buffer, *totals], chunk)[1:]

        e.store(_sum(e, e.repeat(e.count("rounds"), [e.splat(0.0)] * self.vectors, once)), e.pointer("out"))


def _sum(e: Emitter, vectors: list[Value]) -> Value:
    total = vectors[0]
    for vector in vectors[1:]:
        total = e.builder.fadd(total, vector)
    return total
