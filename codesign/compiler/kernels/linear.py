"""Fully connected layers: filters in lanes, one sample at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from codesign.compiler.kernels import Kernel
from codesign.compiler.layout import FLOAT_BYTES

if TYPE_CHECKING:
    from codesign.compiler.emitter import Emitter, Value


@dataclass(frozen=True)
class LinearKernel(Kernel):
    """So many blocks of `vectors` vectors of filters: out[k] = activation(bias[k] + sum over c of x[c] * w[c][k]).

    Weights lie as [block][c][vectors][lanes], biases as [block][vectors][lanes]; the last block's unused filters are
    written too: the output needs room for them.
    """

    vectors: int
    activation: str = ""
    ARGUMENTS = ("x", "out", "weights", "bias", "inputs", "blocks")

    def emit(self, e: Emitter) -> None:
        x, inputs = e.pointer("x"), e.count("inputs")
        size = self.vectors * e.vector_bytes

        def channel(_: Value, carried: list[Value]) -> list[Value]:
            place, weights, *sums = carried
            number = e.splat(e.scalar(place))
            found = [e.fma(number, e.load(weights, i), total) for i, total in enumerate(sums)]
            return [e.advance(place, FLOAT_BYTES), e.advance(weights, size), *found]

        def block(_: Value, carried: list[Value]) -> list[Value]:
            out, weights, bias = carried
            biases = [e.load(bias, i) for i in range(self.vectors)]
            _, weights, *sums = e.repeat(inputs, [x, weights, *biases], channel)
            for i, total in enumerate(sums):
                e.store(e.activate(total, self.activation), out, i, align=FLOAT_BYTES)
            return [e.advance(out, size), weights, e.advance(bias, size)]

        e.repeat(e.count("blocks"), [e.pointer("out"), e.pointer("weights"), e.pointer("bias")], block)
