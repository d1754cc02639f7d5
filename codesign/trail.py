"""`codesign trail`: the networks that a run left behind as it removed weights, measured; one picked and retrained.

codesign prune lenet5 --data mnist --scratch --method learned_threshold --option density=0.05 --out runs/lt
codesign trail runs/lt                                          # a table and a picture
codesign trail runs/lt --min-accuracy 0.98 --epochs 2           # the fastest that keeps so much, retrained
codesign trail runs/lt --max-latency 0.7 --target eyeriss_v2    # the most accurate that is so fast
"""

from __future__ import annotations

import copy
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from accel_models import target
from codesign import prune
from codesign.prune import PruneConfig, PruneOutcome, weights_hash
from codesign.prune_report import report
from codesign.show import console
from codesign.study import Study, content_hash
from codesign.subject import load_images, lowered, objective_of, own_sources
from workloads.errors import ConfigError, PlanError, unknown_name
from workloads.store import write_json

if TYPE_CHECKING:
    from torch import nn

    from pruning.evaluation import Pictures
    from pruning.trail import Trail, TrailPoint


@dataclass(frozen=True)
class TrailRow:
    """One network of a trail as it was left, only its batch norms measured anew.

    Attributes:
        step: optimizer steps done; 0 is the network before pruning.
        density: kept fraction of the weights that carry masks.
        heldout: accuracy on held-out training images, a fraction.
        latency_s, energy_j: by target.
    """

    step: int
    density: float
    heldout: float
    latency_s: Mapping[str, float]
    energy_j: Mapping[str, float]


@dataclass(frozen=True)
class Pick:
    """What is wanted of a network; of those that keep the limit the best by the other measure is taken.

    Attributes:
        min_accuracy: held-out accuracy, a fraction; the fastest is taken. Or
        max_latency: times that of the dense network; the most accurate is taken.
        target: whose latency counts; the first machine of the run by default.
    """

    min_accuracy: float | None = None
    max_latency: float | None = None
    target: str = ""

    def __post_init__(self) -> None:
        if (self.min_accuracy is None) == (self.max_latency is None):
            raise ConfigError("a network is picked by --min-accuracy or by --max-latency: give one of them")

    def of(self, rows: list[TrailRow]) -> TrailRow:
        """The row that is picked; the first is the dense network, which never is.

        Raises:
            PlanError: none keeps the limit; says what the nearest reaches.
        """
        dense, *rest = rows
        if self.min_accuracy is not None:
            able = [row for row in rest if row.heldout >= self.min_accuracy]
            if not able:
                best = max(row.heldout for row in rest)
                raise PlanError(f"--min-accuracy {self.min_accuracy}: the best of {len(rest)} networks has {best:.4f}")
            return min(able, key=lambda row: (row.latency_s[self.target], -row.heldout))
        assert self.max_latency is not None
        limit = self.max_latency * dense.latency_s[self.target]
        able = [row for row in rest if row.latency_s[self.target] <= limit]
        if not able:
            best = min(row.latency_s[self.target] for row in rest) / dense.latency_s[self.target]
            raise PlanError(
                f"--max-latency {self.max_latency}: the fastest of {len(rest)} networks takes {best:.3f} times as long "
                f"as the dense one on {self.target}"
            )
        return max(able, key=lambda row: (row.heldout, -row.latency_s[self.target]))


class TrailRun:
    """A finished or interrupted `codesign prune` with the trail it left.

    Args:
        folder: the run's. device: that accuracy is measured on.

    Raises:
        ConfigError: no such run, or its method leaves no trail.
    """

    def __init__(self, folder: Path, device: str = "auto") -> None:
        from pruning.devices import pick_device
        from pruning.trail import Trail

        pick_device(device)
        self.folder, self.device, self.study = folder, device, Study.open(folder)
        if self.study.config.get("command") != "prune":
            raise ConfigError(f"{folder}: holds no run of codesign prune")
        self.config = self.study.loaded("config", PruneConfig.from_dict)
        self.trail: Trail = Trail(Path(self.config.options.get("trail") or folder / prune.TRAIL))
        if not self.trail.points:
            raise ConfigError(f"{self.trail.folder}: no networks here; runs of learned_threshold leave a trail")
        now = {**own_sources(self.config.model, self.config.data), **weights_hash(self.config)}
        for name, digest in now.items():
            if self.study.config.get(name) != digest:
                raise ConfigError(f"{folder}: {name.removesuffix('_sha256')} changed since the run; run it again")
        self.images: dict[str, Pictures] = dict(load_images(self.config.model, self.config.data))
        self.dense = prune.dense_network(self.config, self.images)

    def rows(self) -> list[TrailRow]:
        """All networks measured, the dense one first; measured once and kept in trail.json of the run."""
        from pruning.progress import shown

        points = [*self.trail.points]

        def compute() -> list[TrailRow]:
            found = [self._row(0, 1.0, copy.deepcopy(self.dense))]
            for point in shown(points, "trail", len(points), True):
                found.append(self._row(point.step, point.density, self._network(point.step)))
            return found

        rows = self.study.phase(
            "trail", compute, lambda rows: [asdict(row) for row in rows], lambda data: [TrailRow(**row) for row in data]
        )
        if [(row.step, row.density) for row in rows[1:]] != [(point.step, point.density) for point in points]:
            self.study.path("trail").unlink()  # the run went on since
            return self.rows()
        return rows

    def choose(self, wanted: Pick) -> TrailRow:
        """The row that is wanted.

        Raises:
            ConfigError: a machine that the run does not price.
            PlanError: no network keeps the limit.
        """
        return replace(wanted, target=self.target_of(wanted)).of(self.rows())

    def target_of(self, wanted: Pick) -> str:
        """The machine whose latency counts.

        Raises:
            ConfigError: the run does not price it.
        """
        name = wanted.target or self.config.targets[0]
        if name not in self.config.targets:
            raise unknown_name("target of the run", name, self.config.targets)
        return name

    def pick(self, wanted: Pick, out: Path, epochs: int, rate: float, overwrite: bool = False) -> PruneOutcome:
        """Retrain the picked network, its zeros kept; test it once and price it. An interrupted retraining goes on.

        Args:
            epochs, rate: of `prune.retrain`.
        """
        from workloads.models.weights import save_weights

        row = self.choose(wanted)
        asked = {"command": "trail", **asdict(self.config), **asdict(wanted), "step": row.step}
        asked["network_sha256"] = content_hash(self.trail.folder / self._point(row.step).file)
        study = Study.create(out, {**asked, "retraining": [epochs, rate]}, overwrite)
        if study.has("result"):
            return study.stored("result", PruneOutcome.from_dict)
        net, config = self._network(row.step), replace(self.config, epochs=epochs, rate=rate)
        seconds = prune.retrain(net, config, self.dense, self.images, out, device=self.device)
        save_weights(net, out / "model.safetensors")
        outcome = prune.measured(self.config, self.dense, net, self.images, seconds, device=self.device)
        write_json(study.path("result"), {"seconds": outcome.seconds, "result": outcome.to_dict()})
        return outcome

    def _network(self, step: int) -> nn.Module:
        from pruning.evaluation import recalibrate

        net = self.trail.network(self._point(step), self.dense)
        recalibrate(net, self.images["train"])
        return net

    def _point(self, step: int) -> TrailPoint:
        return next(point for point in self.trail.points if point.step == step)

    def _row(self, step: int, density: float, net: nn.Module) -> TrailRow:
        graph = lowered(self.config.model, net, self.images["heldout"], self.config.unknown)
        found = {name: target(name).simulate(graph) for name in self.config.targets}
        latency = {name: price.latency_s for name, price in found.items()}
        energy = {name: price.energy_j for name, price in found.items()}
        score = objective_of(self.config.model).evaluate(net, self.images["heldout"], device=self.device)
        return TrailRow(step, density, score.accuracy, latency, energy)


def run(
    folder: Path,
    wanted: Pick | None,
    out: Path,
    *,
    epochs: int = 2,
    rate: float = 0.02,
    device: str = "auto",
    overwrite: bool = False,
) -> None:
    """Print the table, draw the picture, and retrain what is picked, if anything is wanted."""
    from reports.drawing import png
    from reports.trail import trail_figure

    found = TrailRun(folder, device)
    if wanted is not None:
        found.target_of(wanted)
    rows = found.rows()
    table = Table(
        "step",
        "density of pruned layers",
        "held out",
        *(f"{name}: latency, energy" for name in found.config.targets),
        box=None,
    )
    for row in rows:
        prices = [
            f"{row.latency_s[name] / rows[0].latency_s[name]:.3f}x, {row.energy_j[name] / rows[0].energy_j[name]:.3f}x"
            for name in found.config.targets
        ]
        table.add_row(f"{row.step:,}" if row.step else "dense", f"{row.density:.4f}", f"{row.heldout:.2%}", *prices)
    screen = console()
    screen.print(table)
    picked = None if wanted is None else found.choose(wanted)
    title = f"{found.config.model}, {found.config.method}, seed {found.config.seed}"
    points = {
        name: [(row.latency_s[name] / rows[0].latency_s[name], row.heldout) for row in rows]
        for name in found.config.targets
    }
    picture = folder / "trail.png"
    place = None if picked is None else rows.index(picked)
    picture.write_bytes(png(trail_figure(points, [row.step for row in rows], place, title)))
    screen.print(f"picture: {picture}")
    if wanted is None or picked is None:
        return
    screen.print(
        f"picked: step {picked.step:,}, density {picked.density:.4f} of pruned layers, held out {picked.heldout:.2%}"
    )
    outcome = found.pick(wanted, out, epochs, rate, overwrite)
    words = ["codesign", "trail", str(folder), "--epochs", str(epochs), "--lr", f"{rate:g}", "--out", str(out)]
    for name, value in asdict(wanted).items():
        words += [f"--{name.replace('_', '-')}", str(value)] if value not in (None, "") else []
    made = f"{found.config.method}: network of step {picked.step:,} of its trail, {epochs} epochs of retraining"
    report(found.config, outcome, out, f"{made}; {shlex.join(words)}")
