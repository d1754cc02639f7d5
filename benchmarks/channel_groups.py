"""Which weights are tied together, asked of this toolkit and of Torch-Pruning, network by network of the zoo.

    python benchmarks/channel_groups.py [NETWORK ...] [--json FILE]        (extra `bench`: torch-pruning)

Of every channel group that can be cut, the first, the middle and the last unit are named to Torch-Pruning by the
channels that one layer makes of them. Both answer with a set of (weight, axis, positions) of convolutions, linear
layers and norms; the answers agree if the sets are equal. Seconds are CPU time of one thread, from nothing: tracing
included, torch's tracer loaded before.

Under the table stands the first difference of each network. With Torch-Pruning 1.6.1 there is one kind: where an
option-A shortcut pads channels on both sides (the CIFAR ResNets), it takes channel i of the narrow stream for channel i
of the wide one, in place of i + the padding. `tests/pruning/test_surgery.py` settles that by running the cut network.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ[f"{library}_NUM_THREADS"] = "1"

import numpy as np
import torch
from torch import Tensor, nn

from pruning.wiring import PRODUCED, Cut, Wiring, wire
from workloads.lowering_cache import STRUCTURES
from workloads.models import build, example_input, models

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d)
COMPARED = (nn.Conv1d, nn.Conv2d, *TRANSPOSED, nn.Linear, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)
Tied = dict[tuple[str, int], tuple[int, ...]]  # (weight, axis) -> positions


@dataclass(frozen=True)
class Row:
    """One network: units asked for, how many answers are equal, CPU seconds of both, and the first difference."""

    network: str
    groups: int
    units: int
    equal: int
    ours_s: float
    theirs_s: float
    difference: str

    def __str__(self) -> str:
        return f"{self.network:22}{self.groups:7}{self.units:7}{self.equal:7}{self.ours_s:9.2f}{self.theirs_s:9.2f}"


def ours(model: nn.Module, cuts: Sequence[Cut], unit: int) -> Tied:
    """What goes with a unit."""
    found: dict[tuple[str, int], set[int]] = {}
    for cut in cuts:
        path, _, leaf = cut.tensor.rpartition(".")
        positions = cut.index[cut.unit == unit]
        if leaf == "weight" and isinstance(model.get_submodule(path), COMPARED) and len(positions):
            found.setdefault((cut.tensor, cut.axis), set()).update(positions.tolist())
    return {place: tuple(sorted(positions)) for place, positions in found.items()}


class Theirs:
    """Torch-Pruning's dependency graph of one model."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        import torch_pruning

        self.paths = {module: path for path, module in model.named_modules()}
        self.graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=x)

    def tied(self, module: nn.Module, channels: Sequence[int]) -> Tied:
        """What goes with output channels of a module."""
        prune = self.graph.get_pruner_of_module(module).prune_out_channels
        found: dict[tuple[str, int], set[int]] = {}
        for dependency, positions in self.graph.get_pruning_group(module, prune, list(channels)):
            target = dependency.target.module
            if isinstance(target, COMPARED):
                axis = self._axis(target, self.graph.is_out_channel_pruning_fn(dependency.handler))
                size = target.weight.shape[axis]  # an input channel of a grouped layer has one place in every group
                found.setdefault((f"{self.paths[target]}.weight", axis), set()).update(int(i) % size for i in positions)
        return {place: tuple(sorted(positions)) for place, positions in found.items()}

    @staticmethod
    def _axis(module: nn.Module, is_output: bool) -> int:
        if _is_depthwise(module) or not isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            return 0
        return int(is_output == isinstance(module, TRANSPOSED))


def asked(model: nn.Module, cuts: Sequence[Cut], unit: int) -> tuple[nn.Module, list[int]]:
    """A layer that makes channels of this unit, and which."""
    for cut in cuts:
        path, _, leaf = cut.tensor.rpartition(".")
        module, channels = model.get_submodule(path), cut.index[cut.unit == unit]
        is_maker = isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)) and not _is_depthwise(module)
        is_output = cut.role == PRODUCED and leaf == "weight" and cut.axis == int(isinstance(module, TRANSPOSED))
        if is_maker and is_output and len(channels):
            return module, channels.tolist()
    raise ValueError(f"no layer makes channels of unit {unit}")


def _is_depthwise(module: nn.Module) -> bool:
    return getattr(module, "groups", 1) == getattr(module, "in_channels", 0) > 1


def compare(name: str) -> Row:
    model, x = build(name).eval(), example_input(name)
    STRUCTURES.clear()
    started = time.process_time()
    wiring: Wiring = wire(model, (x,))
    groups = {group: wiring.cuts(group) for group in wiring.prunable}
    ours_s = time.process_time() - started
    started = time.process_time()
    theirs = Theirs(model, x)
    theirs_s = time.process_time() - started
    units = equal = 0
    difference = ""
    for group, cuts in groups.items():
        size = wiring.analysis.group(group).size
        for unit in sorted({0, size // 2, size - 1}):
            a, b = ours(model, cuts, unit), theirs.tied(*asked(model, cuts, unit))
            units, equal = units + 1, equal + (a == b)
            difference = difference or _difference(group, unit, a, b)
    return Row(name, len(groups), units, equal, ours_s, theirs_s, difference)


def _difference(group: str, unit: int, a: Tied, b: Tied) -> str:
    if a == b:
        return ""
    places = sorted(place for place in a.keys() | b.keys() if a.get(place) != b.get(place))
    (tensor, axis), here, there = places[0], *(_few(found.get(places[0], ())) for found in (a, b))
    return f"{group}, unit {unit}: {len(places)} places, first {tensor} axis {axis}: {here} here, {there} there"


def _few(positions: tuple[int, ...]) -> str:
    return f"{len(positions)} from {positions[0]}" if len(positions) > 4 else str(list(positions))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("networks", nargs="*", default=list(models()), help="of the zoo; by default all")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.export.export(nn.ReLU(), (torch.ones(1),), strict=False)
    print(f"{'network':22}{'groups':>7}{'units':>7}{'equal':>7}{'ours s':>9}{'theirs s':>9}")
    rows = []
    for name in options.networks:
        rows.append(compare(name))
        print(rows[-1], flush=True)
    for row in rows:
        if row.difference:
            print(f"\n{row.network}: {row.difference}")
    ratio = np.exp(np.mean([np.log(row.theirs_s / row.ours_s) for row in rows]))
    equal, units = sum(row.equal for row in rows), sum(row.units for row in rows)
    print(f"\n{equal} of {units} units equal; seconds, theirs / ours: {ratio:.2f} (geometric mean)")
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
