"""`codesign prune`: one method on one network, fine-tuned, tested once, priced before and after."""

from __future__ import annotations

import copy
import inspect
import json
import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from accel_models import SimulationResult, Target, target
from codesign.costs import nonzero_macs
from codesign.show import console
from codesign.study import Study, content_hash
from codesign.subject import classes_of, load_images, lowered, network, objective_of, own_sources
from reports.codec import fields_from_plain
from workloads.errors import CodesignError, ConfigError, PlanError
from workloads.store import write_json

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pruning.adversarial import Robustness
    from pruning.evaluation import Pictures
    from pruning.methods import Pruner
    from pruning.shrink import Shrunk


DENSE = "dense"
TRAIL = "trail"
"""Folder of the networks that a method left on the way, below that of the run."""


@dataclass(frozen=True)
class PruneConfig:
    """Everything that decides a run's result.

    Attributes:
        model: zoo name. data: data set. method: of `pruning.methods`, or "dense": the same training without pruning.
        options: the method's own, by name.
        targets: machines that price the network before and after.
        weights: of the network that is pruned: "pretrained", a file, or "scratch" for an untrained one.
        epochs, rate, batch_size, weight_decay: of `pruning.training.fit`; without epochs, as `retrain`.
        distil: whether the dense network teaches; never if it is untrained or a detector.
        attacked: so many test images are attacked with FGSM and PGD-10 (`pruning.adversarial`); 0 for none.
        unknown: "vector" prices operators that no table has as elementwise work; "error" refuses them.
    """

    model: str
    data: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    targets: tuple[str, ...] = ("ethos_u55_256",)
    weights: str = "pretrained"
    epochs: int = 2
    rate: float = 0.02
    batch_size: int = 128
    weight_decay: float = 1e-4
    distil: bool = True
    seed: int = 0
    attacked: int = 0
    unknown: str = "error"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PruneConfig:
        """What a run's config.json says of it, among other things.

        Raises:
            ConfigError: it is of another version.
        """
        known = {each.name for each in fields(cls)}
        return fields_from_plain(cls, {key: value for key, value in data.items() if key in known}, "a run")

    @property
    def is_trained(self) -> bool:
        """Whether the network knows anything before it is pruned."""
        return self.weights != "scratch"

    def command(self, out: Path) -> str:
        """The command line that does the same."""
        start = {"pretrained": ["--pretrained"], "scratch": ["--scratch"]}.get(
            self.weights, ["--weights", self.weights]
        )
        words = ["codesign", "prune", self.model, "--data", self.data, "--method", self.method, *start]
        for name, value in self.options.items():
            words += ["--option", f"{name}={json.dumps(value)}"]
        for name in self.targets:
            words += ["--target", name]
        words += ["--epochs", str(self.epochs), "--lr", str(self.rate), "--batch", str(self.batch_size)]
        words += ["--weight-decay", str(self.weight_decay), *([] if self.distil else ["--no-distil"])]
        words += ["--attacked", str(self.attacked)] if self.attacked else []
        words += ["--unknown", self.unknown] if self.unknown != "error" else []
        return shlex.join([*words, "--seed", str(self.seed), "--out", str(out)])


@dataclass(frozen=True)
class PruneOutcome:
    """What came of a run.

    Attributes:
        dense_test, test: accuracy on the test images before and after, fractions; dense None for one untrained. Of a
            detector all accuracies are mean average precisions.
        heldout: accuracy on held-out training images after, a fraction.
        weights, nonzeros: single weights of all convolutions and linear layers of the dense network, and of those
            what is kept after, dead channels removed.
        channels, removed_channels: units of all channel groups of the pruned network that may lose any, and how many
            of them did nothing, so that they were removed; 0 where no method pruned.
        seconds: of training, over all of its parts.
        priced: by target, the dense and the pruned network.
        int8_test: accuracy of the pruned network in int8 on the test images (post-training, ranges of activations from
            held-out training images), a fraction; None where no target computes in 8 bits only, or where the network
            cannot be quantised.
        nonzero_macs: multiplications of the pruned network by weights that are not zero.
        robust: under attack, by "dense" (a trained one) and "pruned", as `pruning.adversarial.Robustness`.
        notes: what the method says of its run: what it left alone, what a check found.
    """

    dense_test: float | None
    test: float
    heldout: float
    weights: int
    nonzeros: int
    seconds: float
    priced: Mapping[str, tuple[SimulationResult, SimulationResult]]
    int8_test: float | None = None
    channels: int = 0
    removed_channels: int = 0
    nonzero_macs: float = 0.0
    robust: Mapping[str, Robustness] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def compression(self) -> float:
        """Weights of the dense network to kept ones."""
        return self.weights / max(self.nonzeros, 1)

    def to_dict(self) -> dict[str, Any]:
        """A JSON value."""
        numbers = {key: value for key, value in asdict(self).items() if key != "priced"}
        return numbers | {"targets": {name: [a.to_dict(), b.to_dict()] for name, (a, b) in self.priced.items()}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PruneOutcome:
        """The inverse of `to_dict`."""
        from pruning.adversarial import Robustness

        numbers = {key: value for key, value in data.items() if key != "targets"}
        numbers["robust"] = {name: Robustness(**row) for name, row in numbers.get("robust", {}).items()}
        priced = {
            name: (SimulationResult.from_dict(a), SimulationResult.from_dict(b))
            for name, (a, b) in data["targets"].items()
        }
        return cls(**numbers | {"notes": tuple(numbers.get("notes", ()))}, priced=priced)


def parse_options(method: str, texts: Sequence[str]) -> dict[str, Any]:
    """Options of a method from "name=value", values read as YAML.

    >>> parse_options("gradual_magnitude", ["density=0.2", "keep=[conv1, linear]"])
    {'density': 0.2, 'keep': ['conv1', 'linear']}

    Raises:
        ConfigError: no such option, one that is given twice, a value that is no YAML, or one of another type.
    """
    from pruning.methods import method as find_method

    if method == DENSE and texts:
        raise ConfigError(f"--option {texts[0]!r}: {DENSE} trains without pruning and takes no options")
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--option {text!r}: must be name=value")
        if name in found:
            raise ConfigError(f"--option {text!r}: {name} is given twice; give it once")
        found[name] = _value(text, value)
        find_method(method).checked({name: found[name]})
    return found


def _value(text: str, value: str) -> Any:
    """JSON, whose numbers may be 1e-3, or YAML; "2:4" stays text, which YAML reads as 124 (2 times 60 and 4)."""
    if re.fullmatch(r"\d+:[\d:]*\d", value):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        pass
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--option {text!r}: the value cannot be read as YAML") from error


def run(config: PruneConfig, out: Path, *, device: str = "auto", overwrite: bool = False) -> PruneOutcome:
    """Prune, train, test, price; a finished run is read again, an interrupted one goes on.

    Channels that a method left without effect are removed (`pruning.shrink`). What is stored, tested and priced is the
    smaller network. The folder holds `model.safetensors` (masks included), `plan.json` (the channels that were removed,
    notes on what stays) and `result.json`.

    The best epoch by held-out accuracy is kept (`pruning.training.fit`). The zoo's weights for CIFAR-10 were trained on
    the held-out images too: from them that choice is close to chance.

    Raises:
        CodesignError: bad names or options, missing data, an output folder that cannot be used.
    """
    from pruning.devices import pick_device
    from workloads.models import example_input
    from workloads.models.weights import save_weights

    pick_device(device)
    cls, images, module = start(config)
    example = example_input(config.model)
    asked = {"command": "prune", **asdict(config), **own_sources(config.model, config.data)}
    asked |= weights_hash(config)
    if (out / "result.json").exists() and not overwrite:  # before a method measures anything
        return Study.create(out, asked).stored("result", PruneOutcome.from_dict)
    pruner = (
        None
        if cls is None
        else pruner_of(cls, config, module, example, images, out / TRAIL, total_steps(config, images))
    )
    net = copy.deepcopy(module) if pruner is None else pruner.model
    study = Study.create(out, asked, overwrite)
    seconds = retrain(net, config, module, images, out, pruner, device)
    shrunk = None if pruner is None else without_dead_channels(pruner, module, example)
    sparse = net if shrunk is None else shrunk.model
    if shrunk is not None:
        shrunk.plan.save(study.path("plan"))
    save_weights(sparse, out / "model.safetensors")
    notes = () if pruner is None else pruner.notes
    outcome = measured(config, module, sparse, images, seconds, shrunk, notes, device)
    write_json(study.path("result"), {"seconds": outcome.seconds, "result": outcome.to_dict()})
    return outcome


def weights_hash(config: PruneConfig) -> dict[str, str]:
    """What is in the file that a run starts from; {} where it starts from none."""
    file = Path(config.weights)
    return {"weights_sha256": content_hash(file)} if file.is_file() else {}


def start(config: PruneConfig) -> tuple[type[Pruner] | None, Mapping[str, Pictures], nn.Module]:
    """The method (None for `DENSE`), the pictures by split and the dense network of a run.

    Raises:
        CodesignError: bad names or numbers, missing data, or weights that do not fit.
    """
    from pruning.methods import method as find_method
    from workloads.data import ImageData

    cls = None if config.method == DENSE else find_method(config.method)
    for name in config.targets:
        target(name)
    if len(set(config.targets)) < len(config.targets):
        raise ConfigError(f"--target {' '.join(config.targets)}: a machine is given twice")
    if config.attacked < 0:
        raise ConfigError(f"--attacked {config.attacked}: a number of images, 0 for none")
    if not config.epochs and not (cls and config.is_trained):
        reason = "an untrained network cannot be judged" if cls else f"{DENSE} does nothing but train"
        raise ConfigError(f"--epochs 0: {reason}, give at least one epoch")
    images = load_images(config.model, config.data)
    if config.attacked and not isinstance(images["test"], ImageData):
        raise ConfigError(f"--attacked: attacks are on pictures with one label each, {config.data} has boxes")
    module = dense_network(config, images)
    lowered(config.model, module, images["heldout"], config.unknown)  # what cannot be priced is said before training
    return cls, images, module


def dense_network(config: PruneConfig, images: Mapping[str, Pictures]) -> nn.Module:
    """What a run starts from; weights that an earlier run removed stay removed."""
    file = Path(config.weights) if config.weights not in ("pretrained", "scratch") else None
    is_known = config.weights == "pretrained"
    return network(config.model, images["train"].num_classes, file, seed=config.seed, pretrained=is_known)


def teacher(config: PruneConfig, dense: nn.Module) -> nn.Module | None:
    """Who teaches: the dense network, where that is wanted and it has something to say."""
    from pruning.training import Classification

    is_possible = config.is_trained and isinstance(objective_of(config.model), Classification)
    return dense if config.distil and is_possible else None


def retrain(
    net: nn.Module,
    config: PruneConfig,
    dense: nn.Module,
    images: Mapping[str, Pictures],
    out: Path,
    pruner: Pruner | None = None,
    device: str = "auto",
) -> float:
    """Train a network in place as a run says, from where it was stopped in `out`; returns the seconds of its epochs.

    Without epochs all weights stay as they are, and the statistics of batch norms are measured anew on training images.
    """
    from pruning.evaluation import recalibrate
    from pruning.training import fit

    if not config.epochs:
        recalibrate(net, images["train"])
        return 0.0
    fitted = fit(
        net, images["train"], config.epochs, config.rate, heldout=images["heldout"],
        objective=objective_of(config.model), pruner=pruner, teacher=teacher(config, dense),
        batch_size=config.batch_size, weight_decay=config.weight_decay, device=device, seed=config.seed,
        checkpoint=out / "training.pt",
    )  # fmt: skip
    return sum(epoch.seconds for epoch in fitted.history)


def measured(
    config: PruneConfig,
    dense: nn.Module,
    sparse: nn.Module,
    images: Mapping[str, Pictures],
    seconds: float,
    shrunk: Shrunk | None = None,
    notes: tuple[str, ...] = (),
    device: str = "auto",
) -> PruneOutcome:
    """Test both networks once and price them.

    Args:
        shrunk: how `sparse` lost its dead channels, if it did. notes: of the method.
    """
    machines, objective = {name: target(name) for name in config.targets}, objective_of(config.model)

    def accuracy(net: nn.Module, split: str) -> float:
        return objective.evaluate(net, images[split], device=device).accuracy

    before, after = (lowered(config.model, each, images["heldout"], config.unknown) for each in (dense, sparse))
    return PruneOutcome(
        dense_test=accuracy(dense, "test") if config.is_trained else None,
        test=accuracy(sparse, "test"),
        heldout=accuracy(sparse, "heldout"),
        weights=count_weights(dense)[0],
        nonzeros=count_weights(sparse)[1],
        seconds=round(seconds, 1),
        priced={name: (machine.simulate(before), machine.simulate(after)) for name, machine in machines.items()},
        int8_test=_int8_accuracy(sparse, images, accuracy) if any(map(is_int8, machines.values())) else None,
        channels=0 if shrunk is None else shrunk.units,
        removed_channels=0 if shrunk is None else sum(shrunk.plan.removed.values()),
        nonzero_macs=nonzero_macs(after),
        robust=_robustness(config, dense, sparse, images["test"], device),
        notes=notes,
    )


def _robustness(
    config: PruneConfig, dense: nn.Module, sparse: nn.Module, test: Pictures, device: str
) -> Mapping[str, Robustness]:
    """Of the network that was trained and the pruned one, where it is asked for."""
    from pruning.adversarial import robustness
    from workloads.data import ImageData

    if not config.attacked:
        return {}
    assert isinstance(test, ImageData)  # `run` refuses others
    models = ({"dense": dense} if config.is_trained else {}) | {"pruned": sparse}
    return robustness(models, test.take(config.attacked), device=device)


def pruner_of(
    cls: type[Pruner],
    config: PruneConfig,
    module: nn.Module,
    example: Any,
    images: Mapping[str, Pictures],
    trail: Path | None,
    steps: int,
) -> Pruner:
    """The method at the start of a training of so many steps.

    One that draws at random draws by the run's seed; one that can leave a trail of networks leaves it in `trail`.

    Raises:
        ConfigError: an option that is needed, unknown or of another type, or pictures that cannot be measured on.
        PlanError: options that cannot be on this network.
    """
    from workloads.data import ImageData

    if cls.NEEDS_DATA and not isinstance(images["heldout"], ImageData):
        raise ConfigError(
            f"--method {config.method}: measures on pictures with one label each, {config.data} has boxes"
        )
    allowed = cls.options()
    options = cls.checked(config.options) | ({"data": images["heldout"]} if cls.NEEDS_DATA else {})
    if "multiple" in allowed and (allowed["multiple"].default or 1) != 1:  # of a method that rounds channels anyway
        options = {"multiple": math.lcm(*(target(name).channel_multiple for name in config.targets))} | options
    if "seed" in allowed:
        options = {"seed": config.seed} | options
    if "trail" in allowed:
        options = {"trail": trail} | options
    needed = [name for name, each in allowed.items() if each.default is inspect.Parameter.empty]
    if missing := [name for name in needed if name not in options]:
        raise ConfigError(f"{config.method} needs --option {missing[0]}=...")
    make: Any = cls
    try:
        made: Pruner = make(module, (example,), steps, **options)
    except PlanError as error:
        if config.epochs:
            raise
        raise PlanError(f"--epochs 0: {error}") from error
    if not config.epochs and not made.is_settled:
        raise ConfigError(f"--epochs 0: {config.method} prunes while it trains, give at least one epoch")
    return made


def total_steps(config: PruneConfig, images: Mapping[str, Pictures]) -> int:
    """Optimizer steps of a run; one where it has none, since methods count in steps."""
    return -(-len(images["train"]) // config.batch_size) * config.epochs or 1


def without_dead_channels(pruner: Pruner, dense: nn.Module, example: Tensor) -> Shrunk:
    """The finished network without dead channels, or as it is where the method itself chose how many of them stay.

    A network that cannot lose them is no reason to lose its training: that is printed.
    """
    from pruning.plan import PruningPlan
    from pruning.shrink import Shrunk, shrink
    from pruning.wiring import wire

    model = pruner.finalize()
    if isinstance(own := getattr(pruner, "plan", None), PruningPlan):
        wiring = wire(dense, (example,))
        return Shrunk(model, own, model, sum(wiring.analysis.group(name).size for name in wiring.prunable))
    try:
        return shrink(model, (example,))
    except CodesignError as error:
        console().print(f"dead channels are not removed: {error}")
        return Shrunk(model, PruningPlan(type(model).__name__, notes=(str(error),)), model, 0)


def is_int8(machine: Target) -> bool:
    """Whether a machine computes in 8 bits only."""
    return machine.family.precisions == (8,)


def _int8_accuracy(
    model: nn.Module, images: Mapping[str, Pictures], accuracy: Callable[[nn.Module, str], float]
) -> float | None:
    """On the test images; a network that cannot be quantised is no reason to lose its training: that is printed."""
    from pruning.quantization import quantize

    try:
        return accuracy(quantize(model, images["heldout"]), "test")
    except PlanError as error:
        console().print(f"accuracy in int8 is not measured: {error}")
        return None


def load_pruned(folder: Path | str) -> nn.Module:
    """The network of a finished run, in eval mode: smaller where channels went, its masks baked in.

    Raises:
        ConfigError: the folder holds no finished run of `codesign prune`.
        CodesignError: a file of it is damaged.
    """
    from torch import nn

    from pruning.masks import with_masks_in
    from pruning.plan import PruningPlan
    from workloads.models import build, example_input
    from workloads.models.weights import load_weights, read_weights

    study = Study.open(Path(folder))
    if study.config.get("command") not in ("prune", "trail") or not study.has("result"):
        raise ConfigError(f"{folder}: holds no finished run of codesign prune or codesign trail")
    config = study.loaded("config", PruneConfig.from_dict)
    file = Path(folder) / "model.safetensors"
    net: nn.Module = build(config.model, classes_of(config.data))
    if study.has("plan") and not (plan := PruningPlan.load(study.path("plan"))).is_empty:
        net = plan.apply(net, (example_input(config.model),))
    for key, tensor in read_weights(file).items():  # of constants that were folded where there was no bias
        module, _, leaf = key.rpartition(".")
        if leaf == "bias" and getattr(net.get_submodule(module), "bias", 0) is None:
            net.get_submodule(module).bias = nn.Parameter(tensor)
    load_weights(net, file)
    return with_masks_in(net, file).eval()


def count_weights(model: nn.Module) -> tuple[int, int]:
    """Single weights of convolutions and linear layers, and how many of them are not zero."""
    from pruning.layers import WEIGHTED

    found = {id(m.weight): m.weight.detach() for m in model.modules() if isinstance(m, WEIGHTED)}
    return sum(w.numel() for w in found.values()), sum(int(w.count_nonzero()) for w in found.values())
