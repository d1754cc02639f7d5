"""The zoo: published networks in plain PyTorch, by name.

A family is one file with a literal table `ENTRIES` and a function `create` (see `registry.py`); adding it to this
folder is all it takes. `models()` and `find()` never import torch.

    model = build("resnet20", pretrained=True)
    data = workloads.data.load("cifar10", "test", preprocessing=find("resnet20").preprocessing)
    model(data.tensor(slice(0, 100)))
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workloads.data.store import VARIABLE, data_root
from workloads.errors import ConfigError, DataError
from workloads.models.registry import ModelEntry, check_form, find, is_entry, models

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["ModelEntry", "build", "check_form", "example_input", "find", "is_entry", "models", "pretrained_path"]


def build(
    name: str,
    num_classes: int | None = None,
    weights: Path | None = None,
    seed: int = 0,
    pretrained: bool = False,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A model of the zoo in eval mode, float32, on the CPU.

    Args:
        name: a registered name.
        num_classes: outputs; by default the entry's own.
        weights: a safetensors file that fits the model exactly.
        seed: of the random initialisation. The global random state is left as it was.
        pretrained: take the known weights from the data folder.
        options: of the family's `create`, over those of the entry: `build("mobilenet_v2", options={"width": 0.5})`.

    Raises:
        ConfigError: unknown name, num_classes < 1, or both weights and pretrained.
        DataError: the weights are missing, damaged, or another model's.
    """
    import torch

    entry = find(name)
    classes = entry.num_classes if num_classes is None else num_classes
    if classes < 1:
        raise ConfigError(f"num_classes {classes} given for {name!r}, needs at least 1")
    if weights is not None and pretrained:
        raise ConfigError(f"{name!r}: give a weights file or pretrained=True, not both")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = _created(entry, classes, {**entry.options, **(options or {})})
    file = pretrained_path(name) if pretrained else weights
    if file is not None:
        from workloads.models.weights import load_weights

        load_weights(model, Path(file))
    return model.eval()


def _created(entry: ModelEntry, classes: int, options: Mapping[str, Any]) -> nn.Module:
    """What the file of an entry makes; a file of one's own may do anything."""
    from torch import nn

    if ":" not in entry.name:
        made: nn.Module = importlib.import_module(entry.module).create(classes, **options)
        return made
    try:
        own = importlib.import_module(entry.module).create(classes, **options)
    except (Exception, SystemExit) as error:
        raised = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{entry.name}: create({classes}) raised {raised}; --debug shows where") from error
    if not isinstance(own, nn.Module):
        raise ConfigError(f"{entry.name}: create() returned {type(own).__name__}, must return a torch.nn.Module")
    return own


def pretrained_path(name: str) -> Path:
    """Where the known weights of a model lie: `weights/<file>` of the data folder.

    Raises:
        DataError: no weights are known for it, or the file is not there.
    """
    entry = find(name)
    if not entry.weights:
        known = ", ".join(other.name for other in models().values() if other.weights)
        raise DataError(f"no pretrained weights are known for {name!r}; give a file (--weights). Known for: {known}")
    path = data_root() / "weights" / entry.weights
    if not path.is_file():
        raise DataError(f"{path} does not exist; put the weights of {name!r} there, or set {VARIABLE} to their folder")
    return path


def example_input(name: str, batch: int = 1, seed: int = 0) -> Tensor:
    """Standard normal numbers of the shape that a model takes: float32, (batch, *input_shape).

    Raises:
        ConfigError: unknown name, or batch < 1.
    """
    import torch

    entry = find(name)
    if batch < 1:
        raise ConfigError(f"batch {batch} given for {name!r}, needs at least 1")
    return torch.randn(batch, *entry.input_shape, generator=torch.Generator().manual_seed(seed))
