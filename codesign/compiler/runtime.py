"""A network in memory, ready to be called."""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from codesign.compiler.jit import code
from codesign.compiler.kernels.control import BarrierKernel, ProgramKernel
from codesign.compiler.network import InTorch, Network
from codesign.compiler.plan import Context
from codesign.compiler.program import ALIGNMENT, Bound, Space, Stage, bind, kernels_of
from workloads.errors import ShapeError
from workloads.graph import Layer, Op
from workloads.reference import Arrays, apply

HUGE_PAGE = 2**21
LARGE = 2**18
"""Bytes from which memory gets large pages."""


def aligned(size: int) -> np.ndarray:
    """Zeroed bytes that begin a page; many of them large pages where the system has some.

    Kernels step from channel to channel, a small page or more each time: large ones save misses of address translation.
    """
    is_large = size >= LARGE
    length = (-(-size // HUGE_PAGE) + 1) * HUGE_PAGE if is_large else max(size, 1)
    memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if is_large and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a system without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    found = np.frombuffer(memory, np.uint8)
    start = -found.ctypes.data % HUGE_PAGE if is_large else 0
    return found[start : start + size]


@dataclass(frozen=True)
class _Context:
    """Memory that one caller has for himself, and the programs bound to it.

    Attributes:
        shared: int64; how often threads came to a barrier, and whether one of them never will.
        programs: for each segment, one a thread. calls: the same, whole, as arguments of `ProgramKernel`.
        views: inputs and outputs in torch's order, by name.
    """

    arena: np.ndarray
    shared: np.ndarray
    scratch: list[np.ndarray]
    programs: list[list[Bound]]
    calls: list[list[np.ndarray]]
    views: dict[str, np.ndarray]


def part_name(part: Stage | InTorch) -> str:
    return part.name if isinstance(part, Stage) else part.layer.name


def alone(stage: Stage, context: Context, arena: np.ndarray) -> Callable[[], None]:
    """One stage, to be run by itself on one thread.

    Args:
        context: what the stage was planned with; its constants are copied. arena: uint8, kept.
    """
    functions = code(context.isa.name).addresses([*kernels_of([stage]), ProgramKernel()])
    constants = context.data.array()
    data, scratch = aligned(len(constants)), aligned(context.scratch)
    data[:] = constants
    memories = {Space.ARENA: arena, Space.DATA: data, Space.SCRATCH: scratch, Space.SHARED: scratch}
    bound = bind([stage], 0, 1, functions, {space: memory.ctypes.data for space, memory in memories.items()})
    program, call = code(context.isa.name).function(ProgramKernel()), bound.call()

    def run(kept: object = (bound, *memories.values())) -> None:
        program(call)

    return run


class Executable:
    """A network's machine code, constants and contexts. May be called from several threads at once."""

    def __init__(self, network: Network) -> None:
        self.network = network
        stages = [part for part in network.parts if isinstance(part, Stage)]
        self._functions = code(network.isa.name).addresses([*kernels_of(stages), ProgramKernel(), BarrierKernel()])
        self._program = code(network.isa.name).function(ProgramKernel())
        self._data = aligned(len(network.data))
        self._data[:] = network.data
        self.segments = [
            list(parts) for _, parts in itertools.groupby(network.parts, key=lambda part: isinstance(part, InTorch))
        ]
        self._free: list[_Context] = []
        self._left: list[_Context] = []  # of calls that were interrupted: a thread may still write there
        self._lock = threading.Lock()
        self._pools: dict[int, ThreadPoolExecutor] = {}

    def __call__(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Outputs for inputs of the graph's shapes, float32."""
        context = self._take()
        try:
            for layer, x in zip(self.network.graph.inputs, inputs, strict=True):
                if x.shape != layer.shape:
                    raise ShapeError(f"input {layer.name!r} has shape {x.shape}, must be {layer.shape}")
                if layer.name in context.views:  # else nobody reads it
                    np.copyto(context.views[layer.name], x)
            self.run(context)
            return [context.views[name].copy() for name in self.network.graph.outputs]
        finally:
            self._give(context)

    def run(self, context: _Context) -> None:
        """Everything between inputs and outputs, once."""
        for i, parts in enumerate(self.segments):
            for part in parts:
                if isinstance(part, InTorch):
                    self._interpret(context, part.layer)
            if isinstance(parts[0], Stage):
                self._native(context, context.calls[i])

    def profile(self, inputs: Sequence[np.ndarray], repeats: int) -> dict[str, np.ndarray]:
        """Wall time of every part, in running order: name -> seconds, float64 (repeats,).

        Parts run one after another, each started from Python, which costs one or two microseconds.
        """
        self(inputs)
        context = self._take()
        found: dict[str, list[float]] = {part_name(part): [] for part in self.network.parts}
        try:
            for _, (i, parts) in itertools.product(range(repeats), enumerate(self.segments)):
                for place, part in enumerate(parts):
                    begin = time.perf_counter()
                    if isinstance(part, InTorch):
                        self._interpret(context, part.layer)
                    else:
                        self._native(context, [program.call(place) for program in context.programs[i]])
                    found[part_name(part)].append(time.perf_counter() - begin)
        finally:
            self._give(context)
        return {name: np.array(times) for name, times in found.items()}

    def _take(self) -> _Context:
        with self._lock:
            if self._free:
                return self._free.pop()
        return self._context()

    def _give(self, context: _Context) -> None:
        with self._lock:
            (self._left if context.shared[1] else self._free).append(context)

    def _context(self) -> _Context:
        """Memory of its own with the constants in place, and the programs bound to it."""
        network = self.network
        arena, shared = aligned(network.arena), aligned(ALIGNMENT).view(np.int64)
        scratch = [aligned(network.scratch) for _ in range(network.threads)]
        programs: list[list[Bound]] = []
        for parts in self.segments:
            stages = [part for part in parts if isinstance(part, Stage)]
            programs.append([])
            for thread in range(network.threads if stages else 0):
                bases = {
                    Space.ARENA: arena.ctypes.data,
                    Space.DATA: self._data.ctypes.data,
                    Space.SCRATCH: scratch[thread].ctypes.data,
                    Space.SHARED: shared.ctypes.data,
                }
                programs[-1].append(bind(stages, thread, network.threads, self._functions, bases))
        calls = [[program.call() for program in bound] for bound in programs]
        context = _Context(arena, shared, scratch, programs, calls, {})
        for layer in network.graph.inputs:
            if layer.name in network.places:
                context.views[layer.name] = self._view(context, layer.name, layer.shape)
        for name in network.graph.outputs:
            context.views[name] = self._view(context, self._plain(name), network.graph[name].shape)
        for layer in network.graph.layers:
            if layer.op is Op.CONSTANT and layer.name in network.places:
                np.copyto(self._view(context, layer.name, layer.shape), network.weights[layer.weight])
        return context

    def _native(self, context: _Context, calls: Sequence[np.ndarray]) -> None:
        """Run each thread's calls."""
        if len(calls) == 1:
            self._program(calls[0])
            return
        try:
            with self._lock:  # all at once: of two callers with half their threads each, both would wait for ever
                waiting = [self._workers().submit(self._program, call) for call in calls[1:]]
            self._program(calls[0])
            for future in waiting:
                future.result()
        except BaseException:  # interrupted, or no more threads to be had: those that came must not wait for the rest
            context.shared[1] = 1
            raise

    def _workers(self) -> ThreadPoolExecutor:
        """Threads beside the caller's, of this process: a forked one inherits none that runs."""
        process = os.getpid()
        if process not in self._pools:
            self._pools = {process: ThreadPoolExecutor(self.network.threads - 1)}
        return self._pools[process]

    def _interpret(self, context: _Context, layer: Layer) -> None:
        graph = self.network.graph
        sources = [self._view(context, name, graph[name.removesuffix("@plain")].shape) for name in layer.inputs]
        weights = self.network.weights
        arrays = Arrays(*(torch.from_numpy(weights[key]) if key else None for key in (layer.weight, layer.bias)))
        with torch.no_grad():
            found = apply(layer, [torch.from_numpy(source) for source in sources], arrays)
        np.copyto(self._view(context, layer.name, layer.shape), found.numpy())

    def _plain(self, name: str) -> str:
        return name if self.network.places[name].layout.is_plain else f"{name}@plain"

    def _view(self, context: _Context, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A tensor in torch's order, as an array over the context's memory."""
        start = self.network.places[name].start.offset
        count = int(np.prod(shape))
        return context.arena[start : start + 4 * count].view(np.float32).reshape(shape)
