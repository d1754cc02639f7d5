"""One number after another: sums, products and activations of tensors of one layout, and copies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from codesign.compiler.kernels import Kernel

if TYPE_CHECKING:
    from codesign.compiler.emitter import Emitter, Value


@dataclass(frozen=True)
class ElementwiseKernel(Kernel):
    """activation(a (+ or *) b), so many vectors; `kind` "copy" has no b (give any address)."""

    kind: str
    activation: str = ""
    factor: float = 1.0
    ARGUMENTS = ("a", "b", "out", "vectors")

    def emit(self, e: Emitter) -> None:
        def vector(_: Value, carried: list[Value]) -> list[Value]:
            a, b, out = carried
            e.store(e.activate(self._combine(e, e.load(a), b), self.activation), out)
            return [e.advance(place, e.vector_bytes) for place in (a, b, out)]

        e.repeat(e.count("vectors"), [e.pointer("a"), e.pointer("b"), e.pointer("out")], vector)

    def _combine(self, e: Emitter, x: Value, b: Value) -> Value:
        """`factor` is b's."""
        if self.kind == "copy":
            return x
        y = e.load(b) if self.factor == 1 else e.times(e.load(b), self.factor)
        return e.builder.fadd(x, y) if self.kind == "add" else e.builder.fmul(x, y)
