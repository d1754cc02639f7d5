"""What a command works on: a model of the zoo, a user's own, a saved layer graph, or one written out in a line."""

from __future__ import annotations

import ast
import hashlib
import importlib
import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from workloads.errors import ConfigError, unknown_name
from workloads.graph import LayerGraph

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pruning.evaluation import Pictures
    from pruning.training import Objective

MOST_NUMBERS = 2**28
"""Of an example input: a gigabyte."""


@dataclass(frozen=True)
class Subject:
    """A model and its example input, or a graph alone.

    Attributes:
        name: what the user called it. module, example: None for a saved graph.
        saved: the graph, if it was read from a file; of a file of layers, one for each.
        on_unknown: passed to lowering.
    """

    name: str
    module: nn.Module | None = None
    example: Tensor | None = None
    saved: tuple[LayerGraph, ...] = ()
    on_unknown: Literal["error", "vector"] = "error"

    @classmethod
    def named(
        cls,
        name: str,
        weights: Path | None = None,
        pretrained: bool = False,
        shape: str | None = None,
        on_unknown: str = "error",
    ) -> Subject:
        """Find a subject by what was typed.

        Raises:
            ConfigError: unknown name, unreadable graph, folder without a finished run, module that cannot be imported
                or made, wrong --input.
        """
        from workloads.models import build, check_form, example_input, is_entry

        unknown = checked_unknown(on_unknown)
        is_written = name.startswith(("table:", "layer:", "layers:"))
        is_known = not name.endswith(".json") and not is_written and is_entry(name)
        if not is_known and not is_written and (Path(name) / "config.json").is_file():
            if weights or pretrained or shape:
                raise ConfigError(f"{name}: a finished run has its own weights and input; give the folder alone")
            return cls(*_finished(Path(name)), on_unknown=unknown)
        if not is_known and not is_written:
            check_form(name)
        if shape is not None and (is_written or is_known or ":" not in name):
            raise ConfigError(f"{name}: has an input shape of its own; --input goes with package.module:function")
        if (name.endswith(".json") or is_written) and (weights or pretrained):
            raise ConfigError(f"{name}: a layer graph takes no weights; lower the model with its weights instead")
        if pretrained and ":" in name and not is_known:
            raise ConfigError(f"{name}: no weights are known for it; give a file (--weights)")
        if name.endswith(".json"):
            return cls(name, saved=(LayerGraph.load(Path(name)),))
        if is_written:
            return cls(name, saved=_written_out(name))
        if ":" in name and not is_known:
            return _imported(name, weights, shape, unknown)
        module = build(name, weights=weights, pretrained=pretrained)
        return cls(name, module, example_input(name), on_unknown=unknown)

    @property
    def graph(self) -> LayerGraph:
        """The one graph.

        Raises:
            ConfigError: there are several.
        """
        if len(self.graphs) > 1:
            found = f"{self.name} holds {len(self.graphs)} layers that do not feed each other"
            raise ConfigError(f"{found}, must be one graph; `codesign simulate` prices them")
        return self.graphs[0]

    @cached_property
    def graphs(self) -> tuple[LayerGraph, ...]:
        """Independent of each other; a module is lowered once."""
        if self.saved:
            return self.saved
        from workloads.lowering import lower

        module, example = self.needs_module("lowering")
        return (lower(module, (example,), on_unknown=self.on_unknown, name=self.name),)

    def needs_module(self, command: str) -> tuple[nn.Module, Tensor]:
        """The module and example, for what a graph alone cannot do."""
        if self.module is None or self.example is None:
            raise ConfigError(f"{command} needs a PyTorch model, {self.name} is a layer graph")
        return self.module, self.example


def _written_out(text: str) -> tuple[LayerGraph, ...]:
    """The graph of `table:resnet50@int8 density=0.5` or `layer:conv c=64 k=64 h=56 r=3`; those of `layers:FILE`."""
    from accel_models.validation.workload import workload

    found = workload(text, Path.cwd())
    if found.layer:
        raise ConfigError(f"{text}: #{found.layer} picks one layer's price, a simulation shows them all; leave it away")
    return found.graphs


def _imported(name: str, weights: Path | None, shape: str | None, on_unknown: Literal["error", "vector"]) -> Subject:
    """A user's own model, `package.module:function`; the function is called without arguments."""
    import torch

    module_name, _, function = name.partition(":")
    if shape is None:
        needed = "--input is needed for a model of your own, e.g. --input 1,3,224,224"
        raise ConfigError(f"{name}: {needed}{_no_entry(name)}")
    example = _random_input(shape)
    try:
        make = getattr(importlib.import_module(module_name), function)
    except (ImportError, AttributeError, SyntaxError, ValueError) as error:
        raise ConfigError(f"{name}: cannot be imported ({error}); is its folder on PYTHONPATH?") from error
    except Exception as error:  # whatever the file does as it is imported
        raised = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{name}: importing it raised {raised}; --debug shows where") from error
    try:
        model = make()
    except Exception as error:
        raised = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{name}: {function}() raised {raised}; --debug shows where") from error
    if not isinstance(model, torch.nn.Module):
        raise ConfigError(f"{name}: returned {type(model).__name__}, must return a torch.nn.Module")
    if weights:
        from workloads.models.weights import load_weights

        load_weights(model, weights)
    return Subject(name, model.eval(), example, on_unknown=on_unknown)


def _finished(folder: Path) -> tuple[str, nn.Module, Tensor]:
    """The network that a run left in its folder, with its name and an example input."""
    from codesign.job import load_outcome
    from codesign.prune import load_pruned
    from codesign.study import Study
    from workloads.models import example_input

    config = Study.open(folder).config
    is_search = config.get("command", "search") == "search"
    module = load_outcome(folder).model if is_search else load_pruned(folder)
    return str(config["model"]), module, example_input(config["model"])


def _no_entry(name: str) -> str:
    """Why a name is none of a file in the zoo's form, in brackets."""
    from workloads.models import find

    try:
        find(name)
    except ConfigError as error:
        return f" ({error})"
    return ""


def _random_input(text: str) -> Tensor:
    """Normal numbers of the shape that was typed."""
    import torch

    try:
        size = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--input {text!r}: must be integers with commas, e.g. 1,3,224,224") from error
    if min(size) < 1 or math.prod(size) > MOST_NUMBERS:
        raise ConfigError(f"--input {text!r}: sizes must be at least 1, and at most {MOST_NUMBERS:,} numbers together")
    return torch.randn(size, generator=torch.Generator().manual_seed(0))


def load_images(model: str, data: str) -> dict[str, Pictures]:
    """Train, held-out and test images of a data set for a zoo model; errors as `load_split`."""
    return {split: load_split(model, data, split) for split in ("train", "heldout", "test")}


def classes_of(data: str) -> int | None:
    """How many classes a data set has; None for one that is not known by name, such as that of detection."""
    from workloads.data import data_sets, find

    return find(data).num_classes if data in data_sets() or ":" in data else None


def load_split(model: str, data: str, split: str) -> Pictures:
    """Images of one split with the preprocessing of a zoo model, and what it must answer: labels, or boxes.

    Raises:
        CodesignError: unknown names, missing data, or images that are not what the model takes.
    """
    from workloads.data import data_sets, load
    from workloads.data.detection import NAME, digits_detection
    from workloads.models import find

    entry, known = find(model), (*data_sets(), NAME)
    if data not in known and ":" not in data:
        raise unknown_name("data set", data, known)
    if (entry.task == "detection") != (data == NAME):
        raise ConfigError(f"--data {data}: {model} is made for {entry.task}, {NAME} is the one data set of detection")
    is_plain = entry.task == "classification"
    images = load(data, split) if is_plain else digits_detection(split)
    given = images.images.shape[1:]
    if given != tuple(entry.input_shape):
        ours, needed = ("x".join(map(str, size)) for size in (given, entry.input_shape))
        raise ConfigError(f"data {data}: its images are {ours}, {model} takes {needed}; choose other data or model")
    return images if entry.preprocessing is None else replace(images, preprocessing=entry.preprocessing)


def lowered(model: str, net: nn.Module, heldout: Pictures, on_unknown: str = "error") -> LayerGraph:
    """The graph of a network that has a name, with the zeros that 32 held-out images leave in its activations.

    Args:
        on_unknown: as of `workloads.lowering.lower`.

    Raises:
        LoweringError: an operator that no table has, where those are errors.
    """
    from workloads.lowering import lower
    from workloads.models import example_input

    batch, _ = next(heldout.batches(32))
    unknown = checked_unknown(on_unknown)
    return lower(net, example_input(model), calibration=batch, name=model, on_unknown=unknown)


def checked_unknown(text: str) -> Literal["error", "vector"]:
    """What --unknown says. ConfigError for any other word."""
    if text not in ("error", "vector"):
        raise ConfigError(f"--unknown {text!r}: must be error or vector")
    return cast(Literal["error", "vector"], text)


def network(
    model: str, classes: int | None, weights: Path | None = None, *, seed: int = 0, pretrained: bool = False
) -> nn.Module:
    """A network of that name for so many classes; weights that an earlier run removed stay removed.

    Raises:
        CodesignError: an unknown name, weights that do not fit, or a network that does not answer as a classifier.
    """
    from pruning.masks import with_masks_in
    from workloads.models import build

    net = build(model, classes, weights, seed, pretrained=pretrained)
    if classes is not None:
        net = answering(model, net, classes)
    return net if weights is None else with_masks_in(net, weights)


def answering(model: str, net: nn.Module, classes: int) -> nn.Module:
    """A classifier, seen to give one logit a class.

    Raises:
        ConfigError: it takes or gives anything else.
    """
    import torch

    from workloads.models import example_input, find

    if find(model).task != "classification":
        return net
    wanted = f"must give one tensor of (pictures, {classes} classes) for one of {(1, *find(model).input_shape)}"
    was_training = net.training
    try:
        with torch.no_grad():
            found = net.eval()(example_input(model))
    except Exception as error:
        raised = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{model}: {wanted}, but raised {raised}; --debug shows where") from error
    finally:
        net.train(was_training)
    if not isinstance(found, torch.Tensor) or tuple(found.shape) != (1, classes):
        shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise ConfigError(f"{model}: {wanted}, gave {shape}")
    return net


def own_sources(model: str, data: str) -> dict[str, str]:
    """SHA-256 of the file of a model of one's own and of data of one's own, by what they are; {} for known names.

    A study is of what they hold, not of their names. Of a model it is the code of its own file, without comments; what
    that imports does not count.
    """
    found = {}
    if ":" in model:
        from workloads.models.registry import file_of

        if file := file_of(model.partition(":")[0]):
            code = ast.dump(ast.parse(file.read_text(encoding="utf-8")))
            found["model_sha256"] = hashlib.sha256(code.encode()).hexdigest()
    if ":" in data:
        from workloads.data import find, load

        digest = hashlib.sha256()
        for split in find(data).splits:
            pictures = load(data, split)
            for array in (pictures.images, pictures.labels):
                digest.update(np.ascontiguousarray(array).data)
        found["data_sha256"] = digest.hexdigest()
    return found


def objective_of(model: str) -> Objective:
    """What a network of the zoo is trained and tested for. The file of a detector names its anchors, `GRIDS`."""
    from pruning.detection import Detection, anchors
    from pruning.training import Classification
    from workloads.models import find

    entry = find(model)
    if entry.task == "classification":
        return Classification()
    return Detection(anchors(importlib.import_module(entry.module).GRIDS))
