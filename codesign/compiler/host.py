"""This machine as a target: a layer graph is compiled, run, and its times are the price.

A graph knows the zeros of its weights but not the weights: they are made up, normal numbers where the mask is one. Of
a layer of which only a density is known a random mask of that density runs, which is slower than a structured one.

The latency is the median of whole runs (of one thread in processor time, so that other work on the machine is left
out; of several threads, or where layers run in torch, by the clock on the wall). What each layer takes is its share:
parts of the network are also run one by one and timed from Python, which costs a microsecond each, and the whole is
divided as the medians of these times are. A part counts for the layer that multiplies in it; what it does for others
(an addition, a pooling) is free there and says who does it. A copy into another layout counts for the layer that reads
it first.

Cycles are of the clock that is measured beside. Useful ones are multiplications of kept weights at the measured peak.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from accel_models.measured import Measured, spread
from accel_models.result import LayerPrice, SimulationResult
from codesign.compiler import compile_network
from codesign.compiler.isa import Isa
from codesign.compiler.network import InTorch, Move, Network, arrange, read_by, written_by
from codesign.compiler.probe import Core, core, processor
from codesign.compiler.program import Stage, kernels_of
from codesign.compiler.runtime import Executable, part_name
from codesign.compiler.steps import Step
from workloads.errors import ConfigError
from workloads.graph import Kind, Layer, LayerGraph
from workloads.verify import array_shapes

PRECISION = "fp32"


@dataclass(frozen=True)
class HostTarget(Measured):
    """This machine, through `codesign.compiler`.

    Attributes:
        threads: that share each layer. repeats: runs that are timed. seed: of weights, random masks and inputs.
    """

    name: ClassVar[str] = "host"
    threads: int = 1
    repeats: int = 30
    seed: int = 0

    def __post_init__(self) -> None:
        for field, least in (("threads", 1), ("repeats", 2), ("seed", 0)):
            if (value := getattr(self, field)) < least:
                raise ConfigError(f"{self.name}: {field}: {value}, must be >= {least}")

    def simulate(self, graph: LayerGraph) -> SimulationResult:
        """Compile and run the graph, in fp32.

        Raises:
            ConfigError: llvmlite is not installed, or this machine is no x86-64.
        """
        rng = np.random.default_rng(self.seed)
        weights, unknown = made_up_weights(graph, rng)
        compiled = compile_network((graph, weights), threads=self.threads)
        inputs = [rng.standard_normal(layer.shape, np.float32) for layer in graph.inputs]
        executable = compiled.for_shapes(*(x.shape for x in inputs))
        in_torch = [part.layer.name for part in executable.network.parts if isinstance(part, InTorch)]
        by_wall = self.threads > 1 or bool(in_torch)
        whole, parts = _runs(executable, inputs, self.repeats, by_wall)
        owner, does = owners(graph, weights, compiled.isa)
        shares = {name: float(np.median(times)) for name, times in parts.items()}
        scale = float(np.median(whole)) / sum(shares.values())
        taken = dict.fromkeys((layer.name for layer in graph), 0.0)
        for name, share in shares.items():
            taken[owner[name]] += scale * share
        facts = core(compiled.isa.name)
        kernels = {**_kernels(executable.network, owner), **{name: f"in {by}" for name, by in does.items()}}
        rows = [_row(layer, taken[layer.name], kernels.get(layer.name, "none"), facts, self.threads) for layer in graph]
        return SimulationResult(
            graph=graph.name,
            target=self.name,
            title=f"this machine ({processor()}, {compiled.isa.name}, {self.threads} thread{'s' * (self.threads > 1)})",
            clock_hz=facts.clock_hz,
            precision=PRECISION,
            layers=tuple(rows),
            error=spread(whole, np.stack(list(parts.values()))),
            notes=tuple(self._notes(graph, unknown, in_torch, by_wall)),
        )

    def _notes(self, graph: LayerGraph, unknown: Sequence[str], in_torch: Sequence[str], by_wall: bool) -> list[str]:
        clock = "by the clock on the wall" if by_wall else "in processor time"
        notes = [
            f"measured: the median of {self.repeats} runs {clock}, divided among layers as the times of single parts",
            "energy and traffic are not measured; cycles that are not multiplications at peak are not told apart",
            f"weights and inputs are made up, normal numbers where the mask is one (seed {self.seed})",
        ]
        if unknown:
            notes.append(
                f"only a density is known of {len(unknown)} layer(s), which ran with random masks: {', '.join(unknown)}"
            )
        if in_torch:
            notes.append(f"{len(in_torch)} layer(s) ran in torch: {', '.join(in_torch)}")
        if any(layer.weight_bits != 32 for layer in graph.layers if layer.kind is Kind.MAC):
            notes.append("computed in fp32, not in the model's precision")
        return notes


def made_up_weights(graph: LayerGraph, rng: np.random.Generator) -> tuple[dict[str, np.ndarray], list[str]]:
    """Arrays for every layer, normal numbers that keep activations at about one, with the zeros that are known.

    Returns:
        Arrays by key, float32; names of layers whose mask was drawn at random, of a known density.
    """
    from pruning.surgery import in_torch_layout

    found: dict[str, np.ndarray] = {}
    drawn = []
    for layer in graph:
        for key, shapes in array_shapes(layer).items():
            if key in found:
                continue
            found[key] = rng.standard_normal(shapes[0], np.float32)
            if key == layer.weight and layer.kind is Kind.MAC:
                found[key] *= np.float32(np.sqrt(2 / max(layer.c // layer.groups * layer.r * layer.s, 1)))
                if layer.sparsity is not None:
                    mask = layer.sparsity.sample(rng).mask()
                    found[key] *= in_torch_layout(mask, layer, shapes[0]).numpy()
                    drawn += [layer.name] * (not layer.sparsity.is_exact)
    return found, drawn


def owners(graph: LayerGraph, weights: Mapping[str, np.ndarray], isa: Isa) -> tuple[dict[str, str], dict[str, str]]:
    """The layer that the time of each part counts for, by the part's name; who does each layer that others absorb."""
    order, *_ = arrange(graph, weights, isa)
    owner: dict[str, str] = {}
    reader: dict[str, str] = {}
    does: dict[str, str] = {}
    for item in reversed(order):  # so that the first reader of a tensor is the last one noted
        part, by = written_by(item), reader.get(written_by(item), "") if isinstance(item, Move) else item.layer.name
        owner[part] = by
        if by:
            reader |= dict.fromkeys(read_by(item), by)
        if isinstance(item, Step):
            does |= dict.fromkeys({item.output, *item.absorbed} - {by}, by)
    for item in order:  # what nobody reads leaves the network: it counts for whoever wrote it
        if isinstance(item, Move) and not owner[item.output]:
            owner[item.output] = owner.get(item.source, item.source)
    return owner, does


def _kernels(network: Network, owner: Mapping[str, str]) -> dict[str, str]:
    """What runs each layer: names of kernels, in order of use."""
    found: dict[str, dict[str, None]] = {}
    for part in network.parts:
        used = [type(kernel).__name__ for kernel in kernels_of([part])] if isinstance(part, Stage) else ["torch"]
        names = dict.fromkeys(name.removesuffix("Kernel").lower() for name in used)
        found.setdefault(owner[part_name(part)], {}).update(names)
    return {layer: " + ".join(names) for layer, names in found.items()}


def _runs(
    executable: Executable, inputs: Sequence[np.ndarray], repeats: int, by_wall: bool
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Seconds of whole runs and of each part, float64 (repeats,), in turn: both see the machine as it is then."""
    clock = time.perf_counter if by_wall else time.thread_time
    whole, parts = np.zeros(repeats), []
    executable(inputs)
    for repeat in range(repeats):
        begin = clock()
        executable(inputs)
        whole[repeat] = clock() - begin
        parts.append(executable.profile(inputs, 1))
    return whole, {name: np.concatenate([each[name] for each in parts]) for name in parts[0]}


def _row(layer: Layer, seconds: float, kernel: str, facts: Core, threads: int) -> LayerPrice:
    cycles = seconds * facts.clock_hz
    density = float(layer.sparsity.density) if layer.sparsity else 1.0
    useful = min(layer.macs * density / (facts.macs_per_cycle * threads), cycles)
    return LayerPrice(
        name=layer.name,
        op=layer.op.value,
        shape=layer.shape,
        kernel=kernel,
        macs=layer.macs,
        density=density,
        cycles=cycles,
        latency_s=seconds,
        lost={"useful": useful, "other": cycles - useful},
        energy_j={},
        traffic_bytes={},
        utilization=useful / cycles if cycles else 0.0,
        bound="unknown" if cycles else "none",
    )
