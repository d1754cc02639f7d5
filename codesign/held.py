"""`codesign validate host`: the CPU model with this machine's measured numbers against networks compiled and run here.

Every network is priced twice from one graph: by the simulated machine of a file that `codesign calibrate` wrote, and by
the measured target `host`. The rows stand in for published ones, so the errors, the intervals and their rules are those
of every machine. Nothing is fitted to them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from accel_models import load_target
from accel_models.validation import LEVEL
from accel_models.validation.compare import Comparison
from accel_models.validation.errors import Assessment
from accel_models.validation.rows import Row
from codesign.calibrate import write_spec
from codesign.subject import Subject
from workloads.errors import ConfigError
from workloads.graph import Layer, LayerGraph, Op
from workloads.sparsity import WeightSparsity

DENSE = ("lenet5", "resnet8", "resnet20", "mobilenet_v1_0.25_128", "vgg16_cifar")
PRUNED = ("resnet8", "resnet20", "vgg16_cifar")
RATE = 8
"""Weights over kept ones, of layers that take patterns."""


def hold(spec: Path, repeats: int = 30) -> Assessment:
    """Every network, predicted and measured.

    Args:
        spec: a machine file of `codesign calibrate`; made if there is none.

    Raises:
        ConfigError: the file is wrong, or this machine runs no compiled networks.
    """
    from codesign.compiler.host import HostTarget
    from codesign.compiler.isa import find_isa
    from codesign.compiler.probe import core_and_levels

    if spec.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--spec {spec}: must end in .yaml, as machine files do")
    if not spec.exists():
        write_spec(spec, *core_and_levels(find_isa()))
    simulated, here = load_target(spec), HostTarget(repeats=repeats)
    comparisons = []
    for variant, graph in graphs():
        result = here.simulate(graph)
        assert result.time_error is not None
        assert result.time_error.absolute is not None
        low, high = (1e3 * bound for bound in result.time_error.absolute.around(result.latency_s))
        row = Row(
            id=f"{graph.name} {variant}",
            network=graph.name,
            workload=f"model:{graph.name} {variant}",
            overrides="",
            metric="latency",
            unit="ms",
            value=1e3 * result.latency_s,
            kind="silicon",
            calibrated=False,
            source=f"{result.title}; median of {repeats} runs, {LEVEL:.0%} of them {low:.4g} to {high:.4g} ms",
        )
        comparisons.append(Comparison(row, 1e3 * simulated.simulate(graph).latency_s))
    return Assessment(str(spec), tuple(comparisons), tuple(comparisons), frozenset(), ())


def graphs() -> Iterator[tuple[str, LayerGraph]]:
    """(variant, graph) of every network that is run."""
    for name in DENSE:
        graph = Subject.named(name).graph
        yield "dense", graph
        if name in PRUNED:
            yield f"patterns {RATE}x", with_patterns(graph, 1 / RATE)


def with_patterns(graph: LayerGraph, density: float, seed: int = 0) -> LayerGraph:
    """PCONV's zeros in all 3x3 convolutions but the first: the best patterns and kernels of normal numbers."""
    import torch

    from pruning.granularity import mask

    generator = torch.Generator().manual_seed(seed)
    chosen = [layer for layer in graph if takes_patterns(layer)][1:]
    masks = {x.name: mask(torch.randn(x.weight_shape, generator=generator), density, "pattern") for x in chosen}
    return graph.with_sparsity({name: WeightSparsity.from_mask(kept.numpy()) for name, kept in masks.items()})


def takes_patterns(layer: Layer) -> bool:
    return layer.op is Op.CONV and layer.groups == 1 and (layer.r, layer.s) == (3, 3)
