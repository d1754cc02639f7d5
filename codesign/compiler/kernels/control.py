"""Running a program: one call of the outside for all of a network, and threads that wait for one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from codesign.compiler.kernels import Kernel

if TYPE_CHECKING:
    from codesign.compiler.emitter import Emitter, Value


@dataclass(frozen=True)
class ProgramKernel(Kernel):
    """Calls functions one after another. Table: address of a function, address of its arguments."""

    ARGUMENTS = ("table", "calls")

    def emit(self, e: Emitter) -> None:
        from llvmlite import ir

        from codesign.compiler.emitter import PTR

        function_type = ir.PointerType(ir.FunctionType(ir.VoidType(), [PTR]))

        def call(_: Value, carried: list[Value]) -> list[Value]:
            (row,) = carried
            function = e.builder.load(row, typ=function_type, align=8)
            e.builder.call(function, [e.builder.load(e.advance(row, 8), typ=PTR, align=8)])
            return [e.advance(row, 16)]

        e.repeat(e.count("calls"), [e.pointer("table")], call)


@dataclass(frozen=True)
class BarrierKernel(Kernel):
    """Returns when so many threads have called it: each adds one to a counter and waits for the next multiple.

    Where the number behind the counter is not zero, one of them will never come, and nobody waits.
    """

    ARGUMENTS = ("counter", "threads")

    def emit(self, e: Emitter) -> None:
        from llvmlite import ir

        from codesign.compiler.emitter import I32, I64

        builder, counter, threads = e.builder, e.pointer("counter"), e.count("threads")
        arrived = builder.atomic_rmw("add", counter, ir.Constant(I64, 1), "seq_cst")
        rounds = builder.udiv(arrived, threads)
        goal = builder.mul(builder.add(rounds, ir.Constant(I64, 1)), threads)
        waiting, spinning, yielding, done = (e.function.append_basic_block() for _ in range(4))
        begin = builder.block
        builder.branch(waiting)
        builder.position_at_end(waiting)
        rounds_waited = builder.phi(I32)
        found = builder.load_atomic(counter, "acquire", 8, typ=I64)
        missing = builder.load_atomic(e.advance(counter, 8), "acquire", 8, typ=I64)
        is_met = builder.icmp_signed(">=", found, goal)
        builder.cbranch(builder.or_(is_met, builder.icmp_signed("!=", missing, ir.Constant(I64, 0))), done, spinning)
        builder.position_at_end(spinning)
        e.call("llvm.x86.sse2.pause")
        more = builder.add(rounds_waited, ir.Constant(I32, 1))
        is_long = builder.icmp_unsigned(">", more, ir.Constant(I32, SPINS))
        builder.cbranch(is_long, yielding, waiting)
        builder.position_at_end(yielding)
        e.call("sched_yield")
        builder.branch(waiting)
        rounds_waited.add_incoming(ir.Constant(I32, 0), begin)
        rounds_waited.add_incoming(more, spinning)
        rounds_waited.add_incoming(ir.Constant(I32, 0), yielding)
        builder.position_at_end(done)


SPINS = 4096
"""Rounds of waiting before a thread lets others run."""
