"""What decides a search: its configuration, checked before anything is computed or written."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accel_models import target
from codesign.budgets import parse_budgets
from codesign.costs import METRICS
from codesign.study import content_hash
from codesign.subject import checked_unknown, own_sources
from reports.codec import fields_from_plain
from workloads.errors import ConfigError

FLAGS = {"budgets": "--budget", "rate": "--lr", "densities": "--density"}
"""Of `codesign search`, where they are not a field's name."""


@dataclass(frozen=True)
class SearchConfig:
    """Everything that decides a search's result; two runs of equal configurations give equal results.

    Attributes:
        model, data, target: names. weights: a safetensors file; None takes the zoo's known weights.
        budgets: texts, `latency=0.7x`. The first one's metric is the front's cost axis.
        epochs, rate: of fine-tuning the pick.
        densities, granularity: weight densities to offer per layer; none by default.
        keep: channel groups to leave alone. multiple: offer multiples of this; None takes the target's.
        options: per channel group at the most.
        images: held-out training images for sensitivity and for the front's accuracy.
        measured: candidates of the front whose accuracy is measured. generations: of NSGA-II.
        unknown: "vector" prices operators that no table has as elementwise work; "error" refuses them.
    """

    model: str
    data: str
    target: str
    budgets: tuple[str, ...]
    weights: str | None = None
    epochs: int = 2
    rate: float = 0.02
    densities: tuple[float, ...] = ()
    granularity: str = "weight"
    keep: tuple[str, ...] = ()
    multiple: int | None = None
    options: int = 8
    images: int = 1000
    measured: int = 6
    generations: int = 60
    unknown: str = "error"
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def command(self, out: Path) -> str:
        """The command line that does the same, without what is as by default (but for length and seed)."""
        words = ["codesign", "search", self.model, "--data", self.data, "--target", self.target]
        for field in dataclasses.fields(self)[3:]:
            value = getattr(self, field.name)
            if value != field.default or field.name in ("epochs", "seed"):
                flag = FLAGS.get(field.name, f"--{field.name}")
                each = value if isinstance(value, tuple) else [value]
                words += [word for one in each for word in (flag, str(one))]
        return shlex.join([*words, "--out", str(out)])

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SearchConfig:
        """The inverse of `to_dict`, also beside hashes of what it names.

        Raises:
            ConfigError: the configuration of another command, or of another version.
        """
        own = {key: value for key, value in data.items() if not key.endswith("_sha256")}
        return fields_from_plain(cls, own, "a search")


def study_config(config: SearchConfig) -> dict[str, Any]:
    """What a study's folder stands for: the configuration, and the weights by content, not by path alone.

    Raises:
        DataError: the file cannot be read, or none is known for the model.
    """
    from workloads.models import pretrained_path

    path = Path(config.weights) if config.weights else pretrained_path(config.model)
    return {**config.to_dict(), "weights_sha256": content_hash(path), **own_sources(config.model, config.data)}


def check(config: SearchConfig, device: str = "auto") -> None:
    """Refuse what can be refused before anything is written or computed."""
    from pruning.devices import pick_device
    from pruning.granularity import check_granularity, largest_density, smallest_density
    from workloads.data import find as find_data
    from workloads.models import find

    find(config.model)
    target(config.target)
    pick_device(device)
    checked_unknown(config.unknown)
    if not 0 < config.rate < float("inf"):
        raise ConfigError(f"--lr {config.rate}: must be a finite number above 0")
    find_data(config.data)
    check_granularity(config.granularity)
    if config.granularity in ("filter", "channel"):
        raise ConfigError(
            f"--granularity {config.granularity}: whole channels are chosen anyway; try weight, 2:4, pattern or kernel"
        )
    if config.granularity != "weight" and not config.densities:
        raise ConfigError(f"--granularity {config.granularity} says how weights go, but none may: give --density too")
    if bad := [d for d in config.densities if not 0 < d <= 1]:
        raise ConfigError(f"--density {bad[0]}: must be above 0 and at most 1")
    least, most = smallest_density(config.granularity), largest_density(config.granularity)
    if bad := [d for d in config.densities if not least <= d <= most + 1e-9 and d != 1]:
        allowed = f"{least:g}..1" if least else f"at most {most:.4f}"
        raise ConfigError(f"--density {bad[0]}: granularity {config.granularity} keeps {allowed}")
    if config.multiple is not None and config.multiple < 1:
        raise ConfigError(f"--multiple {config.multiple}: must be at least 1")
    if not config.budgets:
        raise ConfigError("a search needs a budget, e.g. --budget latency=0.7x")
    parse_budgets(config.budgets, dict.fromkeys(METRICS, 1.0))
