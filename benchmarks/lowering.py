"""How long lowering ResNet-50 takes, beside what other tools need to look at the same network.

One thread, process CPU time, best of several (cold: the first). Half of the weights are zero, batch norms are as after
training.

    cold        trace the network and build the graph, masks included; nothing remembered
    structure   the same from memory, without weights: key, look-up, layers, verification
    masks       read 25 M weights: finite? where zero? (batch norms folded)
    arrays      the folded weights themselves, as a compiler or an interpreter needs them

The first trace in a process also loads torch's tracer, which is timed apart: it is paid once, by whatever traces first.
Peers trace only: `torch.export` as lowering uses it, `torch.fx.symbolic_trace` (module calls without shapes), and the
dependency graph of Torch-Pruning if it is installed.

    python benchmarks/lowering.py [--json FILE]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ[f"{library}_NUM_THREADS"] = "1"

import torch
from torch import Tensor, nn

from workloads.graph import LayerGraph
from workloads.lowering import lower, prepare
from workloads.lowering_cache import STRUCTURES
from workloads.models import build, example_input

LIMITS_S = {"cold": 1.5, "structure": 0.010, "masks": 0.150}


def pruned_resnet50() -> nn.Module:
    """Random weights, half of them zero; scales and variances of a trained network's size."""
    model = build("resnet50")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.05, 0.4, generator=generator)
                module.running_var.uniform_(0.01, 1.0, generator=generator)  # type: ignore[union-attr]
            elif isinstance(module, nn.Conv2d | nn.Linear):
                module.weight *= torch.rand(module.weight.shape, generator=generator) < 0.5
    return model


def best_seconds(work: Callable[[], object], repeats: int) -> float:
    """CPU time of the quickest of several calls."""
    times = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)


def measure(model: nn.Module, x: Tensor) -> dict[str, float]:
    """Seconds by what is done."""
    started = time.process_time()
    torch.export.export(nn.ReLU(), (x,), strict=False)
    found = {"loading torch's tracer, once": time.process_time() - started}

    def cold() -> LayerGraph:
        STRUCTURES.clear()
        return lower(model, x)

    def structure() -> LayerGraph:
        known, _ = prepare(model, x)
        return LayerGraph("resnet50", known.layers, known.outputs).verify()

    found["cold"] = best_seconds(cold, 1)
    found["structure"] = best_seconds(structure, 20)
    found["masks"] = best_seconds(lambda: masks(model, x), 10) - best_seconds(lambda: prepare(model, x), 20)
    found["arrays"] = best_seconds(lambda: arrays(model, x), 5)
    return found


def masks(model: nn.Module, x: Tensor) -> LayerGraph:
    structure, reader = prepare(model, x)
    return structure.graph("resnet50", reader)


def arrays(model: nn.Module, x: Tensor) -> object:
    structure, reader = prepare(model, x)
    return structure.arrays(reader)


def peers(model: nn.Module, x: Tensor) -> dict[str, float]:
    found = {
        "torch.export alone": best_seconds(lambda: torch.export.export(model, (x,), strict=False), 3),
        "torch.fx.symbolic_trace": best_seconds(lambda: torch.fx.symbolic_trace(model), 3),
    }
    if importlib.util.find_spec("torch_pruning"):
        import torch_pruning  # type: ignore[import-not-found]

        build_graph = torch_pruning.DependencyGraph().build_dependency
        found["Torch-Pruning DependencyGraph"] = best_seconds(lambda: build_graph(model, example_inputs=x), 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, x = pruned_resnet50(), example_input("resnet50")
    found = measure(model, x)
    others = peers(model, x)
    print(f"{lower(model, x)}\n")
    for what, seconds in found.items():
        limit = f"limit {1e3 * LIMITS_S[what]:.0f} ms" if what in LIMITS_S else ""
        print(f"{what:32}{1e3 * seconds:9.1f} ms   {limit}")
    for what, seconds in others.items():
        ratios = (
            f"{seconds / found['cold']:.2f} x cold, {seconds / (found['structure'] + found['masks']):.1f} x from memory"
        )
        print(f"{what:32}{1e3 * seconds:9.1f} ms   {ratios}")
    if options.json:
        options.json.write_text(json.dumps(found | others, indent=1) + "\n")


if __name__ == "__main__":
    main()
