"""What the pruning methods reach on real data: every run of `experiments.yaml`, one command each, resumable.

    python benchmarks/methods/run.py --list            # the runs, with those that are done
    python benchmarks/methods/run.py EXPERIMENT        # its method and the baselines at the same budget and length
    python benchmarks/methods/run.py EXPERIMENT/RUN    # one of them
    python benchmarks/methods/run.py --all --minutes 60   # what is open, in order, starting none after an hour

A killed run goes on from its last epoch with the same result. Each finished run is a small file below `results/`, from
which `report.py` writes docs/results.md; weights and checkpoints stay below runs/methods.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from codesign.compiler.probe import processor
from codesign.prune import TRAIL, PruneConfig, PruneOutcome
from codesign.prune import run as prune
from codesign.trail import TrailRun
from codesign.train import train_model
from pruning.devices import pick_device, pick_precision
from workloads.errors import CodesignError, ConfigError
from workloads.store import write_json

HERE = Path(__file__).parent
RESULTS = HERE / "results"


@dataclass(frozen=True)
class Run:
    """One training: a configuration, and how long its dense network is trained first where none is given."""

    experiment: str
    label: str
    config: PruneConfig
    dense_training: dict[str, Any] | None

    @property
    def name(self) -> str:
        return f"{self.experiment}/{self.label}/seed{self.config.seed}"

    @property
    def result(self) -> Path:
        return RESULTS / (self.name.replace("/", ".").replace(" ", "-") + ".json")


def runs() -> Iterator[Run]:
    """All runs in the order of the file."""
    for name, experiment in experiments().items():
        for label, own in experiment["runs"].items():
            own = dict(own)
            for seed in own.pop("seeds", experiment.get("seeds", [0])):
                given = {**experiment["config"], **own, "seed": seed}
                given["targets"] = tuple(given["targets"])
                yield Run(name, label, PruneConfig(**given), experiment.get("dense_training"))


def experiments() -> dict[str, Any]:
    """The file, checked as far as `PruneConfig` does not."""
    data = yaml.safe_load((HERE / "experiments.yaml").read_text())["experiments"]
    for name, experiment in data.items():
        if extra := set(experiment) - {"title", "reach", "seeds", "config", "runs", "dense_training", "note"}:
            raise ConfigError(f"experiments.yaml: {name}: unknown {', '.join(sorted(extra))}")
    return dict(data)


def done_before(run: Run, others: Iterable[Run]) -> dict[str, Any] | None:
    """The numbers of a finished run of the same configuration in another experiment, under this run's names."""
    for other in others:
        if (other.config, other.dense_training) == (run.config, run.dense_training) and other.result.exists():
            return {**json.loads(other.result.read_text()), "experiment": run.experiment, "run": run.label}
    return None


def execute(run: Run, out: Path, device: str) -> dict[str, Any]:
    """Train the dense network if it has to be, prune it, and keep the numbers."""
    folder = out / run.name
    folder.parent.mkdir(parents=True, exist_ok=True)
    config = run.config
    if run.dense_training is not None:
        weights = out / "dense" / f"{config.model}-seed{config.seed}.safetensors"
        weights.parent.mkdir(exist_ok=True)
        if not weights.exists():
            train_model(
                config.model, config.data, weights, **run.dense_training, weights=None, seed=config.seed, device=device
            )
        config = PruneConfig(**{**asdict(config), "weights": str(weights), "targets": config.targets})
    outcome = prune(config, folder, device=device)
    return {
        "experiment": run.experiment,
        "run": run.label,
        "config": asdict(config),
        "command": config.command(folder),
        "version": version(),
        "processor": processor(),
        "precision": pick_precision("auto", pick_device(device)),
        **summary(outcome),
        **trail_of(folder),
    }


def trail_of(folder: Path) -> dict[str, Any]:
    """The networks that the run left behind, sparser and sparser, if it did: `heldout` is a fraction."""
    if not (folder / TRAIL / "trail.json").exists():
        return {}
    rows = TrailRun(folder).rows()[1:]
    return {"trail": [{"step": row.step, "density": row.density, "heldout": row.heldout} for row in rows]}


def summary(outcome: PruneOutcome) -> dict[str, Any]:
    """The numbers that tables show: latency in s and energy in J, before and after."""
    before, after = next(iter(outcome.priced.values()))
    return {
        "seconds": outcome.seconds,
        "dense_test": outcome.dense_test,
        "test": outcome.test,
        "int8_test": outcome.int8_test,
        "heldout": outcome.heldout,
        "weights": outcome.weights,
        "nonzeros": outcome.nonzeros,
        "macs": [before.macs, after.macs],
        "nonzero_macs": outcome.nonzero_macs,
        "robust": {name: row.to_dict() for name, row in outcome.robust.items()},
        "targets": {
            name: {"latency_s": [a.latency_s, b.latency_s], "energy_j": [a.energy_j, b.energy_j]}
            for name, (a, b) in outcome.priced.items()
        },
    }


def version() -> str:
    """The commit, marked where files differ from it."""
    found = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="EXPERIMENT, EXPERIMENT/RUN or EXPERIMENT/RUN/seedN")
    parser.add_argument("--list", action="store_true", help="print the runs")
    parser.add_argument("--all", action="store_true", help="every run that has no result yet")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no run after so long")
    parser.add_argument("--out", type=Path, default=Path("runs/methods"), help="checkpoints and weights")
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    found = list(runs())
    if given.list:
        for run in found:
            print(f"{'done' if run.result.exists() else 'open'}  {run.name}")
        return
    chosen = [run for run in found if given.all or any(is_named(run, name) for name in given.names)]
    if unmatched := [name for name in given.names if not any(is_named(run, name) for run in found)]:
        raise ConfigError(f"no run {unmatched[0]!r}; --list shows them")
    if not chosen:
        raise ConfigError("name a run, or give --all; --list shows them")
    started = time.monotonic()
    for run in chosen:
        if run.result.exists() or time.monotonic() - started > given.minutes * 60:
            continue
        print(f"== {run.name}", flush=True)
        numbers = done_before(run, found) or execute(run, given.out, given.device)
        RESULTS.mkdir(exist_ok=True)
        write_json(run.result, numbers)
        kept = numbers["weights"] / numbers["nonzeros"]
        print(
            f"   test {numbers['test']:.2%}, {kept:.1f}x fewer weights, {numbers['seconds'] / 60:.1f} min", flush=True
        )


def is_named(run: Run, name: str) -> bool:
    """Whether a run is what a name on the command line stands for.

    >>> is_named(Run("a", "b", PruneConfig("m", "d", "x"), None), "a/b")
    True
    """
    return f"{run.name}/".startswith(f"{name}/")


if __name__ == "__main__":
    try:
        main()
    except CodesignError as error:
        sys.exit(f"error: {error}")
