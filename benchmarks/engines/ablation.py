"""What each idea of PatDNN's compiler is worth here, layer by layer: `python benchmarks/engines/ablation.py`.

Layers of VGG-16 with eight free patterns and connectivity pruning, 8x fewer weights, are computed four ways, alternated
round by round, one thread, processor time, the least of all rounds:

    none      kernels in order of channels, a branch on the pattern at each; every use of an input vector loads it
    + FKR     filter kernel reorder: kernels of a filter sorted by pattern, one counted loop a pattern
    + LRE     load redundancy elimination: each input vector is loaded once for all taps and outputs
    + tuning  the tile that measuring prefers, instead of 4x4

Layout, packing and storage are the same in all four; answers are compared with torch. Writes ablation.json beside this
file and docs/pictures/compiler_ablation.png. Needs AVX-512 (separate loads are written as instructions of it).
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from circumstances import circumstances
from llvmlite import ir
from networks import random_patterns

from codesign.compiler.emitter import I32, Emitter
from codesign.compiler.isa import find_isa
from codesign.compiler.jit import llvm
from codesign.compiler.kernels.convolution import ConvolutionKernel
from codesign.compiler.layout import FLOAT_BYTES, best_layout
from codesign.compiler.ops.convolution import choices, kernels_of_step, plan_tuned
from codesign.compiler.plan import Context, Place, Tuning
from codesign.compiler.program import Argument, At, Call, Data, Space, Stage
from codesign.compiler.runtime import aligned, alone
from codesign.compiler.steps import Step
from workloads.graph import Layer, Op
from workloads.store import write_json

HERE = Path(__file__).parent
LAYERS = {
    "64 x 224": (64, 224),
    "128 x 112": (128, 112),
    "256 x 56": (256, 56),
    "512 x 28": (512, 28),
    "512 x 14": (512, 14),
}
KEPT = 9 / 32  # of the kernels: with 4 of 9 weights, 8x fewer
TILE = (4, 4)


@dataclass(frozen=True)
class WithoutReuse(ConvolutionKernel):
    """Every multiplication loads its input by an instruction of its own, which the compiler may not merge."""

    def _kernels(self, e: Emitter, packed: Any, kernels: Any, count: Any, taps: Any, sums: Sequence[Any]) -> list[Any]:
        size = 4 + 4 * len(taps)

        def kernel(_: Any, carried: list[Any]) -> list[Any]:
            place, *sums = carried
            return [e.advance(place, size), *self.add(e, packed, place, 4, taps, sums)]

        return e.repeat(count, [kernels, *sums], kernel)

    def add(self, e: Emitter, packed: Any, place: Any, first: int, taps: Any, sums: Sequence[Any]) -> list[Any]:
        """One kernel, whose weights begin `first` bytes behind its place."""
        base, found = e.advance(packed, e.integer(place)), list(sums)
        weights = [e.splat(e.scalar(place, first + 4 * i)) for i in range(len(taps))]
        for (row, column), meets in self.output.uses(taps, self.stride).items():
            for tap, at in meets:
                x = load(e, base, (row * self.row + column) * e.vector_bytes)
                found[at] = e.fma(x, weights[tap], found[at])
        return found


@dataclass(frozen=True)
class WithoutReorder(WithoutReuse):
    """Kernels as they come: a shape's number with each, and a branch on it.

    Headers are those of the sorted stream, whose kernels of four taps take 20 bytes; here they take 24.
    """

    def emit(self, e: Emitter) -> None:
        packed, stream = e.pointer("packed"), e.pointer("stream")
        out, residual = e.pointer("out"), e.pointer("residual")

        def group(_: Any, carried: list[Any]) -> list[Any]:
            (header,) = carried
            sums = [e.splat(e.scalar(header, self._field(0, 2)))] * len(self.output.pixels)
            count = e.constant(0)
            for i in range(len(self.shapes)):
                count = e.builder.add(count, e.integer(header, 4 * (1 + i)))

            def kernel(_: Any, carried: list[Any]) -> list[Any]:
                place, *sums = carried
                return [e.advance(place, 8 + 16), *self.branch(e, packed, place, sums)]

            begin = e.builder.mul(e.builder.udiv(e.integer(header), e.constant(20)), e.constant(24))
            _, *sums = e.repeat(count, [e.advance(stream, begin), *sums], kernel)
            place = e.advance(out, e.integer(header, self._field(0, 0)))
            self.output.finish(e, sums, place, residual, e.integer(header, self._field(0, 1)))
            return [e.advance(header, self.header_bytes)]

        e.repeat(e.count("groups"), [e.pointer("headers")], group)

    def branch(self, e: Emitter, packed: Any, place: Any, sums: Sequence[Any]) -> list[Any]:
        builder = e.builder
        shape = builder.load(e.advance(place, 4), typ=I32, align=4)
        after = e.function.append_basic_block()
        cases = [e.function.append_basic_block() for _ in self.shapes]
        switch = builder.switch(shape, cases[0])
        results = []
        for i, (taps, block) in enumerate(zip(self.shapes, cases, strict=True)):
            if i:
                switch.add_case(ir.Constant(I32, i), block)
            builder.position_at_end(block)
            results.append((self.add(e, packed, place, 8, taps, sums), block))
            builder.branch(after)
        builder.position_at_end(after)
        merged = [builder.phi(e.vector) for _ in sums]
        for at, phi in enumerate(merged):
            for values, block in results:
                phi.add_incoming(values[at], block)
        return merged


def load(e: Emitter, base: Any, offset: int) -> Any:
    """A vector by an instruction that stays where it is written."""
    kind = ir.FunctionType(e.vector, [base.type])
    return e.builder.asm(kind, f"vmovaps {offset}($1), $0", "=v,r", [base], side_effect=True)


class Bench:
    """One layer in memory."""

    def __init__(self, channels: int, side: int) -> None:
        self.isa = find_isa("avx512")
        shape = (1, channels, side, side)
        self.layer = Layer(
            "conv", Op.CONV, shape, ("x",), 1, channels, channels, side, side, 3, 3, in_h=side, in_w=side,
            padding=(1, 1, 1, 1), weight="w", bias="b",
        )  # fmt: skip
        rng = np.random.default_rng(1)
        weight = random_patterns((channels, channels, 3, 3), KEPT, 1, torch.Generator().manual_seed(0))
        self.weights = {"w": weight.numpy(), "b": rng.standard_normal(channels).astype(np.float32)}
        layout = best_layout(self.isa.lanes, 1, side, side)
        size = layout.size(shape) * FLOAT_BYTES
        self.places = {name: Place(shape, layout, At(Space.ARENA, i * size)) for i, name in enumerate(("x", "y"))}
        self.x = rng.standard_normal(shape).astype(np.float32)
        self.arena = aligned(2 * size)
        self.arena[:size] = layout.pack(self.x).view(np.uint8)
        self.step = Step(self.layer, "y", ("x",), "relu")
        self.kernels = kernels_of_step(self.step, self.context())

    def context(self) -> Context:
        return Context(self.isa, self.weights, self.places, Data())

    def runner(self, tuning: Tuning, kind: type[ConvolutionKernel]) -> Callable[[], None]:
        """A way to compute the layer; answers are held against torch first."""
        context = self.context()
        stage = plan_tuned(self.step, context, self.kernels, tuning)
        stream = self.unsorted(context, stage) if kind is WithoutReorder else None
        works = tuple(
            replace(work, calls=tuple(other(call, kind, stream) for call in work.calls)) for work in stage.works
        )
        run = alone(Stage("y", works), context, self.arena)
        run()
        self.check()
        return run

    def unsorted(self, context: Context, stage: Stage) -> At:
        """The stream in order of channels: offset, shape, four weights a kernel."""
        pack, convolution = stage.works[0].calls
        plane, kernels = pack.arguments[4], self.kernels
        assert isinstance(plane, int)
        assert isinstance(convolution.kernel, ConvolutionKernel)
        vector = self.isa.lanes * FLOAT_BYTES
        offset = kernels.channel * plane + (kernels.row * convolution.kernel.row + kernels.column) * vector
        order = np.lexsort((kernels.channel, kernels.filter))
        found = np.zeros((len(order), 6), np.int32)
        found[:, 0], found[:, 1] = offset[order], kernels.shape[order]
        found[:, 2:] = kernels.weights[order].view(np.int32)
        return context.data.add(found)

    def check(self) -> None:
        place = self.places["y"]
        start = place.start.offset
        memory = self.arena[start : start + place.layout.size(place.shape) * FLOAT_BYTES].view(np.float32)
        found = place.layout.unpack(memory, place.shape)
        weight, bias = (torch.from_numpy(self.weights[key]) for key in ("w", "b"))
        expected = torch.relu(torch.nn.functional.conv2d(torch.from_numpy(self.x), weight, bias, padding=1)).numpy()
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max(), "differs from torch"


def other(call: Call, kind: type[ConvolutionKernel], stream: At | None) -> Call:
    """A call computed another way."""
    kernel = call.kernel
    if not isinstance(kernel, ConvolutionKernel) or kind is ConvolutionKernel:
        return call
    changed = kind(kernel.output, kernel.stride, kernel.shapes, kernel.filters, kernel.row)
    arguments: list[Argument] = list(call.arguments)
    if stream is not None:
        arguments[-1] = stream
    return Call(changed, tuple(arguments))


WAYS = ("none", "+ FKR", "+ LRE", "+ tuning")


def measure(channels: int, side: int, rounds: int) -> dict[str, float]:
    """Milliseconds of each way."""
    bench = Bench(channels, side)
    tilings = choices(bench.step, bench.context(), bench.kernels)
    tiled = [tuning for tuning in tilings if tuning.order == "filter"][:8]
    kinds = {"none": WithoutReorder, "+ FKR": WithoutReuse, "+ LRE": ConvolutionKernel}
    runs = [(way, bench.runner(Tuning(TILE), kind)) for way, kind in kinds.items()]
    runs += [("+ tuning", bench.runner(tuning, ConvolutionKernel)) for tuning in [*tiled, Tuning(TILE)]]
    best = dict.fromkeys(WAYS, float("inf"))
    for _ in range(rounds):
        for way, run in runs:
            begin = time.thread_time()
            run()
            best[way] = min(best[way], (time.thread_time() - begin) * 1e3)
    return best


def draw(times: dict[str, dict[str, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    width = 0.2
    for i, (way, hatch) in enumerate(zip(WAYS, ("", "//", "..", "xx"), strict=True)):
        found = [row["none"] / row[way] for row in times.values()]
        bars = axes.bar(
            np.arange(len(times)) + (i - 1.5) * width, found, width, label=way, hatch=hatch, edgecolor="white"
        )
        axes.bar_label(bars, fmt="%.1f", fontsize=7)
    axes.set_xticks(range(len(times)), [f"{name} x {name.split()[-1]}" for name in times])
    axes.set_ylabel("times faster than none")
    axes.set_xlabel("layer of VGG-16: channels x height x width; 8 free patterns, 8x fewer weights; 1 thread, AVX-512")
    axes.legend(ncols=4, fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="of all ways, one after another")
    rounds = parser.parse_args().rounds
    llvm().initialize_native_asmparser()
    times = {}
    print("layer          " + "".join(f"{way:>16}" for way in WAYS) + "   (ms, times faster than none)")
    for name, (channels, side) in LAYERS.items():
        times[name] = measure(channels, side, rounds)
        row = (f"{times[name][way]:9.3f} {times[name]['none'] / times[name][way]:5.1f}x" for way in WAYS)
        print(f"{name:<15}" + "".join(row), flush=True)
    record = {"rounds": rounds, **circumstances(), "least_ms": times}
    write_json(HERE / "ablation.json", record)
    draw(times, HERE.parent.parent / "docs" / "pictures" / "compiler_ablation.png")


if __name__ == "__main__":
    main()
