"""A short way to write LLVM IR for the kernels: pointers in bytes, vectors of floats, loops that carry values.

Loops are functional: `repeat` takes what goes round and gives what comes out, so a kernel reads like its formula.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from codesign.compiler.isa import Isa
from codesign.compiler.layout import FLOAT_BYTES
from workloads.activations import parse_activation

I8, I32, I64, F32, PTR = (
    ir.IntType(8),
    ir.IntType(32),
    ir.IntType(64),
    ir.FloatType(),
    ir.PointerType(),
)
MAGIC = 1.5 * 2**23
EXPONENTIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
ERF = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
Value = Any
"""An `ir.Value`: llvmlite has no types."""


class Emitter:
    """Writes one function `void name(ptr arguments)`; arguments are 64-bit each, pointers or counts."""

    def __init__(self, module: Any, isa: Isa, name: str, arguments: Sequence[str]) -> None:
        self.isa = isa
        self.vector = ir.VectorType(F32, isa.lanes)
        self.vector_bytes = isa.lanes * FLOAT_BYTES
        self.function = ir.Function(module, ir.FunctionType(ir.VoidType(), [PTR]), name)
        self.builder = ir.IRBuilder(self.function.append_basic_block())
        self._module = module
        self._arguments = {argument: i for i, argument in enumerate(arguments)}

    def finish(self) -> None:
        self.builder.ret_void()

    # ---- arguments and addresses ------------------------------------------------------------------------------------

    def pointer(self, argument: str) -> Value:
        return self._argument(argument, PTR)

    def count(self, argument: str) -> Value:
        return self._argument(argument, I64)

    def _argument(self, argument: str, kind: Value) -> Value:
        place = self.advance(self.function.args[0], 8 * self._arguments[argument])
        return self.builder.load(place, typ=kind, align=8)

    def advance(self, pointer: Value, offset: Value | int) -> Value:
        """A pointer so many bytes on."""
        if isinstance(offset, int):
            offset = ir.Constant(I64, offset)
        return self.builder.gep(pointer, [offset], source_etype=I8)

    def constant(self, number: int) -> Value:
        return ir.Constant(I64, number)

    def integer(self, pointer: Value, offset: int = 0) -> Value:
        """A 32-bit integer from memory, as 64 bits."""
        found = self.builder.load(self.advance(pointer, offset), typ=I32, align=4)
        return self.builder.sext(found, I64)

    # ---- numbers ----------------------------------------------------------------------------------------------------

    def load(self, pointer: Value, vectors: int = 0, align: int = 0) -> Value:
        """A vector, so many vectors behind a pointer; `align` in bytes where the place is no multiple of vectors."""
        place = self.advance(pointer, vectors * self.vector_bytes)
        return self.builder.load(place, typ=self.vector, align=align or self.vector_bytes)

    def store(self, value: Value, pointer: Value, vectors: int = 0, align: int = 0) -> None:
        """To whole vectors; `align` in bytes where the place is less regular."""
        place = self.advance(pointer, vectors * self.vector_bytes)
        self.builder.store(value, place, align=align or self.vector_bytes)

    def scalar(self, pointer: Value, offset: int = 0) -> Value:
        return self.builder.load(self.advance(pointer, offset), typ=F32, align=4)

    def splat(self, number: Value | float) -> Value:
        """A float, from memory or a constant, in all lanes."""
        if isinstance(number, float):
            return ir.Constant(self.vector, [ir.Constant(F32, number)] * self.isa.lanes)
        undefined = ir.Constant(self.vector, ir.Undefined)
        alone = self.builder.insert_element(undefined, number, ir.Constant(I32, 0))
        return self.builder.shuffle_vector(alone, undefined, _mask([0] * self.isa.lanes))

    def gather(self, pointer: Value, offsets: Value, fill: float) -> Value:
        """Floats so many bytes behind a pointer, `fill` where the offset is negative.

        Args:
            offsets: pointer to as many 32-bit integers as there are lanes.
        """
        lanes, builder = self.isa.lanes, self.builder
        integers = ir.VectorType(I32, lanes)
        if self.isa.name == "sse2":  # has no such instruction
            return self._gather_singly(pointer, offsets, fill)
        places = builder.load(offsets, typ=integers, align=4)
        is_there = builder.icmp_signed(">=", places, ir.Constant(integers, [0] * lanes))
        if self.isa.name == "avx512":
            mask, name, scale = is_there, "llvm.x86.avx512.mask.gather.dps.512", I32
        else:
            mask = builder.bitcast(builder.sext(is_there, integers), self.vector)
            name, scale = "llvm.x86.avx2.gather.d.ps.256", I8
        kind = ir.FunctionType(self.vector, [self.vector, PTR, integers, mask.type, scale])
        arguments = [self.splat(fill), pointer, places, mask, ir.Constant(scale, 1)]
        return builder.call(self._function(name, kind), arguments)

    def _gather_singly(self, pointer: Value, offsets: Value, fill: float) -> Value:
        found = self.splat(fill)
        for lane in range(self.isa.lanes):
            offset, place = self.integer(offsets, 4 * lane), ir.Constant(I32, lane)

            def take(values: list[Value], offset: Value = offset, place: Value = place) -> list[Value]:
                number = self.scalar(self.advance(pointer, offset))
                return [self.builder.insert_element(values[0], number, place)]

            (found,) = self.when(self.builder.icmp_signed(">=", offset, self.constant(0)), [found], take)
        return found

    def fma(self, x: Value, y: Value, total: Value) -> Value:
        """x * y + total, rounded once where the machine can."""
        return self._call("llvm.fmuladd", x, y, total)

    def maximum(self, x: Value, y: Value) -> Value:
        """Not a number where either is not."""
        return self._call("llvm.maximum", x, y)

    def minimum(self, x: Value, y: Value) -> Value:
        """Not a number where either is not."""
        return self._call("llvm.minimum", x, y)

    def absolute(self, x: Value) -> Value:
        return self._call("llvm.fabs", x)

    def root(self, x: Value) -> Value:
        """Not a number below zero."""
        return self._call("llvm.sqrt", x)

    def _call(self, name: str, *values: Value) -> Value:
        """An intrinsic of floats or vectors of them."""
        kind = values[0].type
        suffix = "f32" if kind == F32 else f"v{self.isa.lanes}f32"
        function = self._function(f"{name}.{suffix}", ir.FunctionType(kind, [kind] * len(values)))
        return self.builder.call(function, values)

    def _function(self, name: str, kind: Any) -> Value:
        return self._module.globals.get(name) or ir.Function(self._module, kind, name)

    def permute(self, x: Value, lanes: Sequence[int], fill: float) -> Value:
        """Lane l of the result is lane lanes[l] of x, or `fill` where that is -1."""
        if tuple(lanes) == tuple(range(self.isa.lanes)):
            return x
        return self.builder.shuffle_vector(x, self.splat(fill), _mask([i if i >= 0 else self.isa.lanes for i in lanes]))

    def activate(self, x: Value, text: str) -> Value:
        """An activation as text (`workloads.activations`); "" for none. What is not a number stays so."""
        if not text:
            return x
        name, arguments = parse_activation(text)
        return ACTIVATIONS[name](self, x, *arguments)

    def clamp(self, x: Value, low: float | None, high: float | None) -> Value:
        for bound, relation in ((low, "<"), (high, ">")):
            if bound is not None:
                limit = self.same(x, bound)
                x = self.builder.select(self.builder.fcmp_ordered(relation, x, limit), limit, x)
        return x

    def times(self, x: Value, factor: float) -> Value:
        return self.builder.fmul(x, self.same(x, factor))

    def exp(self, x: Value) -> Value:
        """e to the x, within 2e-7 of itself; inputs beyond +-87 count as that."""
        scale, rest = self._power(x)
        return self.fma(scale, rest, scale)

    def expm1(self, x: Value) -> Value:
        """e to the x, less one: within 4e-7 of itself, however small; inputs beyond +-87 count as that."""
        scale, rest = self._power(x)
        return self.fma(scale, rest, self.builder.fsub(scale, self.same(x, 1.0)))

    def _power(self, x: Value) -> tuple[Value, Value]:
        """2**n and e**r - 1, whose n ln 2 + r are x. Cephes' expf.

        With n the nearest integer to x / ln 2: e**r - 1 = r + r**2 p(r). The nearest integer comes of adding
        1.5 * 2**23, whose lowest bits are then n's.
        """
        builder = self.builder
        x = self.clamp(x, -87.0, 87.0)
        shifted = self.fma(x, self.same(x, 1 / math.log(2)), self.same(x, MAGIC))
        n = builder.fsub(shifted, self.same(x, MAGIC))
        r = self.fma(n, self.same(x, -0.693359375), x)
        r = self.fma(n, self.same(x, 2.12194440e-4), r)
        p = self.same(x, EXPONENTIAL[0])
        for coefficient in EXPONENTIAL[1:]:
            p = self.fma(p, r, self.same(x, coefficient))
        whole = ir.VectorType(I32, self.isa.lanes) if x.type == self.vector else I32
        amount, one = ([number] * self.isa.lanes if x.type == self.vector else number for number in (23, 127 << 23))
        bits = builder.shl(builder.bitcast(shifted, whole), ir.Constant(whole, amount))
        scale = builder.bitcast(builder.add(bits, ir.Constant(whole, one)), x.type)
        return scale, self.fma(builder.fmul(r, r), p, r)

    def log(self, x: Value) -> Value:
        """Of a number, by the C library."""
        return self._call("llvm.log", x)

    def number(self, number: float) -> Value:
        return ir.Constant(F32, number)

    def same(self, x: Value, number: float) -> Value:
        return self.splat(float(number)) if x.type == self.vector else ir.Constant(F32, float(number))

    def call(self, name: str) -> None:
        """A function without arguments of the machine or the system, its answer ignored."""
        self.builder.call(self._function(name, ir.FunctionType(ir.VoidType(), [])), [])

    # ---- control ----------------------------------------------------------------------------------------------------

    def repeat(
        self, count: Value, carried: Sequence[Value], body: Callable[[Value, list[Value]], Sequence[Value]]
    ) -> list[Value]:
        """Run a body `count` times, perhaps never.

        Args:
            count: 64-bit.
            carried: values that go in the first time.
            body: (how often it ran before, carried values) -> carried values of the next time.

        Returns:
            What the last time gave; `carried` if there was none.
        """
        builder, before = self.builder, self.builder.block
        inside, after = self.function.append_basic_block(), self.function.append_basic_block()
        zero = ir.Constant(I64, 0)
        builder.cbranch(builder.icmp_signed(">", count, zero), inside, after)
        builder.position_at_end(inside)
        index = builder.phi(I64)
        phis = [builder.phi(value.type) for value in carried]
        results = list(body(index, phis))
        end = builder.block
        following = builder.add(index, ir.Constant(I64, 1))
        builder.cbranch(builder.icmp_signed("<", following, count), inside, after)
        for phi, first, again in zip([index, *phis], [zero, *carried], [following, *results], strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(again, end)
        builder.position_at_end(after)
        exits = [builder.phi(value.type) for value in carried]
        for phi, first, again in zip(exits, carried, results, strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(again, end)
        return exits

    def when(
        self, condition: Value, carried: Sequence[Value], body: Callable[[list[Value]], Sequence[Value]]
    ) -> list[Value]:
        """What a body makes of values if a condition holds, else the values."""
        once = self.builder.zext(condition, I64)
        return self.repeat(once, carried, lambda _, values: body(values))


def _mask(lanes: Sequence[int]) -> Value:
    return ir.Constant(ir.VectorType(I32, len(lanes)), [ir.Constant(I32, lane) for lane in lanes])


def _hard_sigmoid(e: Emitter, x: Value) -> Value:
    return e.clamp(e.builder.fadd(e.times(x, 1 / 6), e.same(x, 0.5)), 0.0, 1.0)


def _sigmoid(e: Emitter, x: Value) -> Value:
    one = e.same(x, 1.0)
    return e.builder.fdiv(one, e.builder.fadd(one, e.exp(e.times(x, -1.0))))


def _tanh(e: Emitter, x: Value) -> Value:
    """With y = exp(2 x) - 1: y / (y + 2)."""
    y = e.expm1(e.times(x, 2.0))
    return e.builder.fdiv(y, e.builder.fadd(y, e.same(x, 2.0)))


def _elu(e: Emitter, x: Value, alpha: float) -> Value:
    is_negative = e.builder.fcmp_ordered("<", x, e.same(x, 0.0))
    return e.builder.select(is_negative, e.times(e.expm1(x), alpha), x)


def _gelu(e: Emitter, x: Value, approximate: str) -> Value:
    """x times the normal distribution at x: by erf, or by tanh of a cubic."""
    if approximate == "tanh":
        cubic = e.builder.fmul(x, e.fma(e.builder.fmul(x, x), e.same(x, 0.044715), e.same(x, 1.0)))
        inner = _tanh(e, e.times(cubic, math.sqrt(2 / math.pi)))
    else:
        inner = _erf(e, e.times(x, math.sqrt(0.5)))
    return e.builder.fmul(e.times(x, 0.5), e.builder.fadd(inner, e.same(x, 1.0)))


def _erf(e: Emitter, x: Value) -> Value:
    """Within 2e-7. Abramowitz and Stegun, 7.1.26: 1 - t p(t) exp(-x**2) with t = 1 / (1 + 0.3275911 x), x >= 0."""
    builder, zero, one = e.builder, e.same(x, 0.0), e.same(x, 1.0)
    is_negative = builder.fcmp_ordered("<", x, zero)
    size = builder.select(is_negative, e.times(x, -1.0), x)
    t = builder.fdiv(one, e.fma(size, e.same(x, 0.3275911), one))
    p = e.same(x, ERF[0])
    for coefficient in ERF[1:]:
        p = e.fma(p, t, e.same(x, coefficient))
    found = builder.fsub(one, builder.fmul(builder.fmul(p, t), e.exp(e.times(builder.fmul(x, x), -1.0))))
    return builder.select(is_negative, e.times(found, -1.0), found)


def _leaky(e: Emitter, x: Value, slope: float) -> Value:
    is_negative = e.builder.fcmp_ordered("<", x, e.same(x, 0.0))
    return e.builder.select(is_negative, e.times(x, slope), x)


def _mish(e: Emitter, x: Value) -> Value:
    """x tanh(ln(1 + e^x)): with y = e^x (e^x + 2), x y / (y + 2), which is x itself from 20 on."""
    power = e.exp(e.clamp(x, None, 20.0))
    y = e.builder.fmul(power, e.builder.fadd(power, e.same(x, 2.0)))
    return e.builder.fmul(x, e.builder.fdiv(y, e.builder.fadd(y, e.same(x, 2.0))))


ACTIVATIONS: dict[str, Callable[..., Value]] = {
    "relu": lambda e, x: e.clamp(x, 0.0, None),
    "relu6": lambda e, x: e.clamp(x, 0.0, 6.0),
    "hardtanh": lambda e, x, low, high: e.clamp(x, low, high),
    "leaky_relu": _leaky,
    "hardsigmoid": _hard_sigmoid,
    "hardswish": lambda e, x: e.builder.fmul(x, _hard_sigmoid(e, x)),
    "sigmoid": _sigmoid,
    "silu": lambda e, x: e.builder.fmul(x, _sigmoid(e, x)),
    "tanh": _tanh,
    "elu": _elu,
    "gelu": _gelu,
    "mish": _mish,
    "abs": lambda e, x: e.absolute(x),
    "sqrt": lambda e, x: e.root(x),
}
