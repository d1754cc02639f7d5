"""A trail: the networks of one training as it removes weights, kept as files, from which the user picks.

    trail = Trail(folder)                                     # written by a method that leaves one
    point, net = trail.pick(model, lambda net: -latency(net) if accuracy(net, heldout) > 0.99 else -math.inf)
    fit(net, data, epochs)                                    # its masks stay

`trail.json` lists the points, oldest first; every point is a safetensors file of a baked network, zeros and masks. A
score is any function of the network: held-out accuracy, the latency that a simulator says, or both.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import nn

from pruning import masks
from workloads.errors import DataError, PlanError
from workloads.models.weights import load_weights, save_weights
from workloads.store import write_json


@dataclass(frozen=True)
class TrailPoint:
    """One network of a trail.

    Attributes:
        step: optimizer steps done. density: kept fraction of the weights that carry masks. file: in the folder.
    """

    step: int
    density: float
    file: str


class Trail:
    """A folder of networks; made when the first one is added."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    @property
    def points(self) -> tuple[TrailPoint, ...]:
        """Oldest first.

        Raises:
            DataError: the list is damaged.
        """
        path = self.folder / "trail.json"
        if not path.exists():
            return ()
        try:
            return tuple(TrailPoint(**row) for row in json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{path}: not the list of a trail ({error}); delete the folder and train again") from error

    def add(self, step: int, net: nn.Module) -> TrailPoint:
        """Keep a baked network; one of the same step is replaced."""
        point = TrailPoint(step, masks.density(masks.masks_of(net).values()), f"step{step:07d}.safetensors")
        save_weights(net, self.folder / point.file)
        self._write((*(old for old in self.points if old.step != step), point))
        return point

    def forget(self, step: int) -> None:
        """Drop the points from that step on: a training that goes on from an earlier state makes them anew."""
        gone = [point for point in self.points if point.step >= step]
        if gone:
            self._write(tuple(point for point in self.points if point.step < step))
        for point in gone:
            (self.folder / point.file).unlink(missing_ok=True)

    def network(self, point: TrailPoint, model: nn.Module) -> nn.Module:
        """A baked copy of `model` with the weights and masks of a point.

        Raises:
            DataError: the file is missing or damaged, or of another model.
        """
        path, net = self.folder / point.file, copy.deepcopy(model)
        load_weights(net, path)
        return masks.with_masks_in(net, path)

    def pick(self, model: nn.Module, score: Callable[[nn.Module], float]) -> tuple[TrailPoint, nn.Module]:
        """The point of highest score with its network; of equals the sparser. Minus infinity rules a network out.

        Args:
            model: the dense network that the trail was made from, for its structure. Not modified.

        Raises:
            PlanError: the trail is empty, or no network is eligible.
        """
        best: tuple[float, float] | None = None
        chosen: TrailPoint | None = None
        for point in self.points:
            key = (score(self.network(point, model)), -point.density)
            if key[0] > float("-inf") and (best is None or key > best):
                best, chosen = key, point
        if chosen is None:
            raise PlanError(
                f"{self.folder}: none of {len(self.points)} networks is eligible; allow more, or train again"
            )
        return chosen, self.network(chosen, model)

    def _write(self, points: tuple[TrailPoint, ...]) -> None:
        write_json(self.folder / "trail.json", [asdict(point) for point in points])
