"""One number after another: sums, products, extremes and activations of tensors of one layout, and copies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from codesign.compiler.kernels import Kernel

if TYPE_CHECKING:
    from codesign.compiler.emitter import Emitter, Value


@dataclass(frozen=True)
class ElementwiseKernel(Kernel):
    """activation(a joined with b), so many vectors.

    Attributes:
        kind: "add", "mul", "maximum", "minimum"; or "copy", which has no b (give any address).
        factor: of b.
    """

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
        if self.kind == "copy":
            return x
        y = e.load(b) if self.factor == 1 else e.times(e.load(b), self.factor)
        joins = {"add": e.builder.fadd, "mul": e.builder.fmul, "maximum": e.maximum, "minimum": e.minimum}
        return joins[self.kind](x, y)
