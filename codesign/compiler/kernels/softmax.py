"""Softmax over rows of features, one number at a time: it is the end of a network, never its work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from codesign.compiler.kernels import Kernel
from codesign.compiler.layout import FLOAT_BYTES

if TYPE_CHECKING:
    from codesign.compiler.emitter import Emitter, Value


@dataclass(frozen=True)
class SoftmaxKernel(Kernel):
    """exp(x - largest) over its sum, or the logarithm of that."""

    is_log: bool
    activation: str = ""
    ARGUMENTS = ("x", "out", "rows", "length")

    def emit(self, e: Emitter) -> None:
        builder, length = e.builder, e.count("length")
        size = builder.mul(length, e.constant(FLOAT_BYTES))

        def row(_: Value, carried: list[Value]) -> list[Value]:
            source, out = carried

            def larger(_: Value, carried: list[Value]) -> list[Value]:
                place, largest = carried
                return [e.advance(place, FLOAT_BYTES), e.maximum(largest, e.scalar(place))]

            largest = e.repeat(length, [source, e.scalar(source)], larger)[1]

            def add(_: Value, carried: list[Value]) -> list[Value]:
                place, total = carried
                return [
                    e.advance(place, FLOAT_BYTES),
                    builder.fadd(total, e.exp(builder.fsub(e.scalar(place), largest))),
                ]

            total = e.repeat(length, [source, e.number(0.0)], add)[1]

            def write(_: Value, carried: list[Value]) -> list[Value]:
                place, to = carried
                x = builder.fsub(e.scalar(place), largest)
                found = builder.fsub(x, e.log(total)) if self.is_log else builder.fdiv(e.exp(x), total)
                builder.store(e.activate(found, self.activation), to, align=FLOAT_BYTES)
                return [e.advance(place, FLOAT_BYTES), e.advance(to, FLOAT_BYTES)]

            e.repeat(length, [source, out], write)
            return [e.advance(source, size), e.advance(out, size)]

        e.repeat(e.count("rows"), [e.pointer("x"), e.pointer("out")], row)
