"""What a pruning method adds to a training step, and how long channels take to go, beside peers.

ResNet-20, batches of 128 random pictures, one thread, process CPU time, schedules of 20 epochs of CIFAR-10; options are
`OPTIONS` below.

    train   forward, loss, backward and optimizer step of the prepared copy at the start of its schedule, the method's
            loss included, over those of the plain network; networks take turns, and of each the least of several
            rounds counts
    step    milliseconds of `pruner.step()`, the mean over the whole schedule, without training in between; of methods
            that learn what goes, which need gradients, the mean over the rounds
    all     (train + step) over a plain step

The peer is `torch.nn.utils.prune`: L1 over all layers, masks multiplied in before every forward, made anew as often as
those of gradual magnitude. Channels: half of each group, by L1 norm, from the network to the smaller module, beside
`MagnitudePruner` of Torch-Pruning if it is installed (extra `bench`). Ours includes running the smaller module beside
the masked one, to see that they are equal, which is half of the time; tracing is remembered after the first try.

    python benchmarks/training_cost.py [METHOD ...] [--rounds N] [--json FILE]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ[f"{library}_NUM_THREADS"] = "1"

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from pruning.devices import autocast, pick_precision, place
from pruning.importance import rank_units
from pruning.methods import Pruner, method, methods
from pruning.plan import make_plan
from pruning.wiring import wire
from workloads.data import ImageData, Preprocessing
from workloads.models import build, example_input

BATCH, STEPS = 128, 20 * 391
UPDATES = 100  # of gradual magnitude, by default
DEVICE = torch.device("cpu")
OPTIONS: dict[str, dict[str, Any]] = {
    "drop_pruning": {"density": 0.1967, "scope": "global"},
    "campfire": {"density": 0.3, "granularity": "combined"},
    "pconv": {"density": 0.1967, "scope": "global", "library": 8},
    "hybrid_pruning": {"macs": 0.5, "multiple": 8, "density": 0.75},
    "network_pruning_network": {"weighting": "macs", "budget": 0.58},
    "learned_threshold": {"density": 0.1967},
    "gradual_magnitude": {"density": 0.1967, "scope": "global"},
    "one_shot_magnitude": {"density": 0.1967},
    "random": {"density": 0.1967},
    "n_m": {"granularity": "2:4"},
    "wanda": {"density": 0.5},
    "sparsegpt": {"density": 0.5},
}
BY_MACS = {"macs": 0.5}
"""Options of the methods that are not named above: filters by some measure."""


@dataclass(frozen=True)
class Row:
    """One method; ratios to a plain training step."""

    name: str
    train: float
    step_ms: float
    all: float

    def __str__(self) -> str:
        return f"{self.name:28}{self.train:8.2f}{self.step_ms:10.2f}{self.all:8.2f}"


class Training:
    """A network under training on one batch.

    Args:
        pruner: at work on the network; none for the plain one.
    """

    def __init__(self, net: nn.Module, pruner: Pruner | None = None) -> None:
        self.net, self.pruner = net.train(), pruner
        place(net, DEVICE)
        self.precision = pick_precision("auto", DEVICE)
        self.optimizer = torch.optim.SGD(net.parameters(), 0.01, 0.9, weight_decay=1e-4, nesterov=True)
        self.train_s, self.steps_s = float("inf"), 0.0

    def round(self, x: Tensor, y: Tensor, steps: int) -> None:
        """Train so many steps; the least time of a round is kept."""
        took = 0.0
        for _ in range(steps):
            started = time.process_time()
            self.optimizer.zero_grad()
            with autocast(DEVICE, self.precision):
                outputs = self.net(x)
            loss = F.cross_entropy(outputs.float(), y)
            (loss if self.pruner is None else loss + self.pruner.loss()).backward()
            self.optimizer.step()
            took += time.process_time() - started
            if self.pruner is not None:
                self.steps_s += _seconds(self.pruner.step) / steps
        self.train_s = min(self.train_s, took / steps)


def _seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def pictures() -> ImageData:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (512, 3, 32, 32), np.uint8)
    half = (0.5, 0.5, 0.5)
    return ImageData("noise", "train", images, rng.integers(0, 10, 512), np.arange(512), 10, Preprocessing(half, half))


def started(name: str, net: nn.Module, data: ImageData) -> tuple[Training, float | None]:
    """A method at the start, and the mean seconds of its steps; None where those need gradients."""
    cls = method(name)
    given = {**OPTIONS.get(name, BY_MACS if "macs" in cls.options() else {"density": 0.5})}
    given |= {"data": data} if cls.NEEDS_DATA else {}
    make: Any = cls
    fresh, stepped = (make(net, (example_input("resnet20"),), STEPS, **given) for _ in range(2))
    if cls.IS_LEARNED:
        return Training(fresh.model, fresh), None
    took = _seconds(lambda: [stepped.step() for _ in range(STEPS)])
    return Training(fresh.model, fresh), took / STEPS


def peer(net: nn.Module) -> tuple[Training, float]:
    """`torch.nn.utils.prune` at gradual magnitude's density, and the mean seconds of its updates a step."""
    model = build("resnet20")
    model.load_state_dict(net.state_dict())
    layers = [(module, "weight") for module in model.modules() if isinstance(module, nn.Conv2d)][1:]

    def update() -> None:
        torch_prune.global_unstructured(layers, torch_prune.L1Unstructured, amount=1 - 0.1967)

    took = _seconds(update)
    return Training(model), took * UPDATES / STEPS


def price(names: Sequence[str], rounds: int) -> list[Row]:
    """Every method beside the plain network and the peer."""
    net, data = build("resnet20"), pictures()
    x, y = next(data.batches(BATCH))
    x = x.to(memory_format=torch.channels_last)
    plain = Training(build("resnet20"))
    found: dict[str, tuple[Training, float | None]] = {"torch.nn.utils.prune": peer(net)}
    for name in names:
        found[name] = started(name, net, data)
    for _ in range(rounds):
        plain.round(x, y, 3)
        for each, _ in found.values():
            each.round(x, y, 3)
    rows = []
    for name, (each, mean) in found.items():
        step = each.steps_s / rounds if mean is None else mean
        rows.append(Row(name, each.train_s / plain.train_s, 1e3 * step, (each.train_s + step) / plain.train_s))
    return rows


def removal(name: str) -> dict[str, float]:
    """CPU seconds from a network to one with half of the channels of each group, by tool; the least of three."""
    net, x = build(name), example_input(name)

    def ours() -> nn.Module:
        wiring = wire(net, (x,))
        groups = [wiring.analysis.group(group) for group in wiring.prunable]
        ranking = {group: tuple(map(int, units)) for group, units in rank_units(net, wiring.analysis, "l1").items()}
        counts = {group.name: max(group.size // 2, 1) for group in groups if group.name in ranking}
        return make_plan(name, wiring.analysis, counts, ranking, {}).apply(net, (x,))

    found = {"codesign": min(_seconds(ours) for _ in range(3))}
    if importlib.util.find_spec("torch_pruning"):
        import torch_pruning  # type: ignore[import-not-found]

        def theirs() -> None:
            fresh = build(name)
            last = [module for module in fresh.modules() if isinstance(module, nn.Linear)]
            torch_pruning.pruner.MagnitudePruner(
                fresh, x, torch_pruning.importance.MagnitudeImportance(1), pruning_ratio=0.5, ignored_layers=last
            ).step()

        building = min(_seconds(lambda: build(name)) for _ in range(3))
        found["Torch-Pruning"] = min(_seconds(theirs) for _ in range(3)) - building
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("methods", nargs="*", default=list(methods()), help="by default all")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = price(options.methods, options.rounds)
    print(f"{'':28}{'train':>8}{'step ms':>10}{'all':>8}    over a plain step of ResNet-20")
    print(*rows, sep="\n")
    torch.export.export(nn.ReLU(), (torch.ones(1),), strict=False)  # the tracer is loaded once
    gone = {name: removal(name) for name in ("resnet20", "resnet50")}
    for name, tools in gone.items():
        said = ", ".join(f"{tool} {seconds:.2f} s" for tool, seconds in tools.items())
        print(f"half of the channels of {name}: {said}")
    if options.json:
        options.json.write_text(json.dumps({"rows": [asdict(row) for row in rows], "removal": gone}, indent=1) + "\n")


if __name__ == "__main__":
    main()
