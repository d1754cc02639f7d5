"""Training in a few lines: SGD with momentum, a cosine, augmentation, and a teacher where there is one.

`fit` is a convenience on top of a pruner's three calls; nothing in the toolkit needs it. What it is tuned for is
fine-tuning a pruned network for a few epochs on a CPU: bf16 where the machine multiplies it faster, channels last,
pictures augmented as whole batches, and distillation from the dense network, whose forward pass costs a third of a
training step. It classifies unless it is given another objective, such as `pruning.detection.Detection`.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning import checkpoint as checkpoints
from pruning import masks
from pruning.devices import autocast, kept_memory, pick_device, pick_precision, place, placed
from pruning.evaluation import Pictures, Score, cross_entropy, evaluate
from pruning.progress import shown
from pruning.schedule import CosineSchedule
from workloads.data import ImageData
from workloads.errors import ConfigError, PlanError, first_line

if TYPE_CHECKING:
    from pruning.methods.base import Pruner


class Objective(Protocol):
    """What is learnt from outputs and targets, and by what an epoch is chosen.

    Attributes:
        metric: what `Score.accuracy` is, in words.
    """

    @property
    def metric(self) -> str: ...

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """A scalar, the mean over a batch, in float32."""

    def right(self, outputs: Any, targets: Tensor) -> Tensor | None:
        """How many answers of a batch are right; None where that is not counted."""

    def evaluate(self, model: nn.Module, data: Any, *, device: str = "auto", precision: str = "fp32") -> Score:
        """Loss and accuracy, or what stands for it, over a split; the model comes back as it was."""


@dataclass(frozen=True)
class Classification:
    """One label a picture: cross entropy, and the share of right answers."""

    label_smoothing: float = 0.0
    metric: ClassVar[str] = "accuracy"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(outputs, targets, self.label_smoothing)

    def right(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(1) == targets).sum()

    def evaluate(self, model: nn.Module, data: ImageData, *, device: str = "auto", precision: str = "fp32") -> Score:
        return evaluate(model, data, device=device, precision=precision)


@dataclass(frozen=True)
class Epoch:
    """What one epoch brought. Loss and accuracy are over the training batches as they came, augmented.

    Attributes:
        epoch: 1 for the first. learning_rate: of its last step. seconds: of training, evaluation excluded.
        accuracy: None where the objective does not count right answers.
        heldout_loss, heldout_accuracy: None where no held-out pictures were given.
    """

    epoch: int
    learning_rate: float
    loss: float
    accuracy: float | None
    heldout_loss: float | None
    heldout_accuracy: float | None
    seconds: float


@dataclass(frozen=True)
class FitResult:
    """How a training went.

    Attributes:
        history: one entry an epoch.
        chosen_epoch: whose weights the model has now.
        device, precision: where and in what it was trained.
    """

    history: tuple[Epoch, ...]
    chosen_epoch: int
    device: str
    precision: str

    @property
    def heldout_accuracy(self) -> float | None:
        """Of the chosen epoch."""
        return self.history[self.chosen_epoch - 1].heldout_accuracy

    def to_dict(self) -> dict[str, Any]:
        """A JSON value."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{len(self.history)} epochs on {self.device} in {self.precision}, epoch {self.chosen_epoch} chosen"]
        for entry in self.history:
            held = "" if entry.heldout_accuracy is None else f"  held out {entry.heldout_accuracy:.2%}"
            mark = "*" if entry.epoch == self.chosen_epoch else " "
            train = "" if entry.accuracy is None else f"  train {entry.accuracy:.2%}"
            lines.append(f"{mark}{entry.epoch:3d}  loss {entry.loss:.4f}{train}{held}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Distillation:
    """Learning from a teacher's answers beside the labels.

        loss = (1 - weight) CE(student, label) + weight T^2 KL(softmax(teacher / T) || softmax(student / T))

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.
    """

    temperature: float = 4.0
    weight: float = 0.7

    def __post_init__(self) -> None:
        if self.temperature <= 0 or not 0 <= self.weight <= 1:
            raise ConfigError(f"{self}: needs temperature > 0 and weight in 0..1")

    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """T^2 times the mean divergence of two batches of logits."""
        T = self.temperature
        answers, wanted = F.log_softmax(student.float() / T, 1), F.log_softmax(teacher.float() / T, 1)
        return F.kl_div(answers, wanted, reduction="batchmean", log_target=True) * T**2


@dataclass(frozen=True)
class _Settings:
    """What must be the same when a training goes on from a checkpoint."""

    epochs: int
    lr: float
    batch_size: int
    momentum: float
    weight_decay: float
    warmup: float
    label_smoothing: float
    augment: bool
    seed: int
    precision: str
    images: int
    content: int
    distillation: Mapping[str, float] | None

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ConfigError(f"epochs {self.epochs}, batch_size {self.batch_size}: both must be at least 1")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ConfigError(f"lr {self.lr}, must be a finite number above 0")
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            raise ConfigError(f"weight_decay {self.weight_decay}, must be a finite number of at least 0")
        if not (0 <= self.warmup < 1 and 0 <= self.label_smoothing < 1 and 0 <= self.momentum < 1):
            given = f"warmup {self.warmup}, label_smoothing {self.label_smoothing}, momentum {self.momentum}"
            raise ConfigError(f"{given}: each must lie in [0, 1)")

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.images // self.batch_size)


def fit(
    model: nn.Module,
    data: Pictures,
    epochs: int,
    lr: float = 0.02,
    *,
    heldout: Pictures | None = None,
    objective: Objective | None = None,
    pruner: Pruner | None = None,
    teacher: nn.Module | None = None,
    distillation: Distillation | None = None,
    batch_size: int = 128,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    warmup: float = 0.05,
    label_smoothing: float = 0.0,
    augment: bool = True,
    device: str = "auto",
    precision: str = "auto",
    seed: int = 0,
    progress: bool = True,
    checkpoint: Path | None = None,
) -> FitResult:
    """Train a model in place. Afterwards it is where it was, in eval mode, with the chosen epoch's weights.

    Where training ends with an error the weights are the last ones.

    Args:
        model: with baked masks, zeros stay zeros; with a pruner, `pruner.model`.
        data: training pictures, shuffled and (with `augment`) augmented.
        lr: peak learning rate; it climbs over `warmup` of all steps and falls along a cosine. For a few epochs of
            fine-tuning 0.01 to 0.02, for training from scratch 0.1.
        heldout: measured after every epoch; the epoch of best accuracy is kept (the later of equals), with a pruner
            the best of those at whose end it had settled what is removed. Without it, the last epoch is kept. For a
            network that was trained on these pictures before, as the zoo's for CIFAR-10 were, the accuracy says what
            it remembers, and the choice between epochs is close to chance.
        objective: classification by default, with `label_smoothing`. Only classification can have a teacher.
        pruner: its `loss` is added, its `step` is called after every optimizer step.
        teacher: usually the dense network; its answers are learnt too. Not modified.
        precision: "auto" is bf16 where the machine multiplies it faster; weights stay float32.
        seed: of order, augmentation and dropout; the same seed gives the same weights on the same machine.
        checkpoint: a file that holds the state after every epoch. If it is there, training goes on from it and
            ends as if it had not stopped. An interrupt loses the running epoch, never the file.

    Raises:
        ConfigError: an option out of range or without effect, a checkpoint of other options, or a loss that is not
            finite.
        DataError: the checkpoint is damaged or its folder cannot be written to.
    """
    where = pick_device(device)
    distillation = distillation or Distillation()
    settings = _Settings(
        epochs, lr, batch_size, momentum, weight_decay, warmup, label_smoothing, augment, seed,
        pick_precision(precision, where), len(data), _content(data), None if teacher is None else asdict(distillation),
    )  # fmt: skip
    if pruner is not None and pruner.model is not model:
        raise ConfigError("fit with a pruner trains the pruner's own copy; call fit(pruner.model, ..., pruner=pruner)")
    if objective is not None and label_smoothing:
        raise ConfigError("label_smoothing belongs to the default objective; give Classification(label_smoothing=...)")
    goal = objective or Classification(label_smoothing)
    if teacher is not None and not isinstance(goal, Classification):
        raise ConfigError("a teacher's answers are learnt in classification only; leave the teacher out")
    run = _Run(model, settings, where, goal, pruner, teacher, distillation)
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []), kept_memory():
        torch.manual_seed(seed)
        try:
            if checkpoint is not None and checkpoint.exists():
                run.restore(checkpoints.load(checkpoint), checkpoint)
            while len(run.history) < epochs:
                run.epoch(data, heldout, progress)
                if checkpoint is not None:
                    checkpoints.save(run.state(), checkpoint)
        finally:
            run.put_back()
    return run.finish()


def _content(data: Pictures) -> int:
    """A checksum of pictures and what they are; 0 of data that are no arrays."""
    found = 0
    for name in ("images", "labels", "targets"):
        if isinstance(array := getattr(data, name, None), np.ndarray):
            found = zlib.crc32(np.ascontiguousarray(array).data, found)
    return found


class _Run:
    """One training under way: everything that a checkpoint holds, and one epoch at a time."""

    def __init__(
        self,
        model: nn.Module,
        settings: _Settings,
        device: torch.device,
        objective: Objective,
        pruner: Pruner | None,
        teacher: nn.Module | None,
        distillation: Distillation,
    ) -> None:
        self.model, self.settings, self.device, self.objective, self.pruner = model, settings, device, objective, pruner
        self.home = next(model.parameters()).device
        place(model, device)
        self.teacher = copy.deepcopy(teacher).eval() if teacher is not None else None
        if self.teacher is not None:
            place(self.teacher, device)
        self.distillation = distillation
        self.optimizer = torch.optim.SGD(
            model.parameters(), settings.lr, settings.momentum, weight_decay=settings.weight_decay,
            nesterov=settings.momentum > 0, foreach=None if pruner is None else False,
        )  # fmt: skip
        if pruner is None and masks.baked_masks(model):
            masks.keep_masks(model, self.optimizer)
        steps = settings.epochs * settings.steps_per_epoch
        self.schedule = CosineSchedule(settings.lr, steps, round(settings.warmup * steps))
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.history: list[Epoch] = []
        self.best: dict[str, Tensor] | None = None
        self.best_epoch = 0

    # ---- one epoch ---------------------------------------------------------------------------------------------------

    def epoch(self, data: Pictures, heldout: Pictures | None, progress: bool) -> None:
        """Train once over the data, measure, remember."""
        started = time.perf_counter()
        self.model.train()
        loss = torch.zeros((), device=self.device)
        right: Tensor | None = torch.zeros((), device=self.device)
        done = len(self.history)
        batches = data.batches(self.settings.batch_size, self.generator, self.settings.augment)
        title = f"epoch {done + 1}/{self.settings.epochs}{self._so_far()}"
        for number, (x, y) in enumerate(shown(batches, title, self.settings.steps_per_epoch, progress)):
            rate = self._set_rate(done * self.settings.steps_per_epoch + number)
            x, y = placed(x, self.device), y.to(self.device)
            batch_loss, hits = self._step(x, y)
            loss += batch_loss * len(y)
            right = None if right is None or hits is None else right + hits
        seconds = time.perf_counter() - started
        mean = float(loss) / len(data)
        if not math.isfinite(mean):
            raise ConfigError(f"the training loss is {mean} in epoch {done + 1}; lower lr (now {self.settings.lr})")
        score = None if heldout is None else self.objective.evaluate(
            self.model, heldout, device=str(self.device), precision=self.settings.precision
        )  # fmt: skip
        held_loss, held_accuracy = (None, None) if score is None else (score.loss, score.accuracy)
        share = None if right is None else float(right) / len(data)
        self.history.append(Epoch(done + 1, rate, mean, share, held_loss, held_accuracy, seconds))
        self._remember()

    def _step(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """One optimizer step; the loss without the pruner's part, detached, and how many answers were right."""
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.device, self.settings.precision):
            outputs = self.model(x)
        loss = self.objective.loss(outputs, y)
        if self.teacher is not None:
            with torch.no_grad(), autocast(self.device, self.settings.precision):
                answers = self.teacher(x)
            weight = self.distillation.weight
            loss = (1 - weight) * loss + weight * self.distillation.loss(outputs, answers)
        whole = loss if self.pruner is None else loss + self.pruner.loss()
        whole.backward()
        self.optimizer.step()
        if self.pruner is not None:
            self.pruner.step()
        with torch.no_grad():
            return loss.detach(), self.objective.right(outputs, y)

    def _so_far(self) -> str:
        """The last epoch in a few words, for the progress bar."""
        last = self.history[-1] if self.history else None
        if last is None or last.heldout_accuracy is None:
            return "" if last is None else f", loss {last.loss:.3f}"
        return f", loss {last.loss:.3f}, held out {last.heldout_accuracy:.2%}"

    def _set_rate(self, step: int) -> float:
        rate = self.schedule.rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _remember(self) -> None:
        """Keep the weights of the best epoch so far, where there is something to choose by."""
        last = self.history[-1]
        is_moving = self.pruner is not None and not self.pruner.is_settled
        if is_moving or last.heldout_accuracy is None:
            self.best_epoch, self.best = last.epoch, None
            return
        best = 0.0 if self.best is None else self.history[self.best_epoch - 1].heldout_accuracy or 0.0
        if last.heldout_accuracy >= best:
            self.best_epoch = last.epoch
            self.best = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def put_back(self) -> None:
        """The model where it was, in eval mode."""
        self.model.to(self.home, memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]

    def finish(self) -> FitResult:
        if self.best is not None:
            self.model.load_state_dict(self.best)
        if (pruner := self.pruner) is not None and not pruner.is_settled and pruner.steps_done < pruner.total_steps:
            made = f"{pruner.steps_done:,} of the {pruner.total_steps:,} steps that {pruner.name} was made for"
            warnings.warn(f"training ended after {made}: it has not removed all that it was asked to", stacklevel=3)
        return FitResult(tuple(self.history), self.best_epoch, str(self.device), self.settings.precision)

    # ---- going on after a stop ---------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        return {
            "settings": asdict(self.settings),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "pruner": None if self.pruner is None else self.pruner.state_dict(),
            "generator": self.generator.get_state(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "history": [asdict(entry) for entry in self.history],
            "best": self.best,
            "best_epoch": self.best_epoch,
        }

    def restore(self, state: Mapping[str, Any], path: Path) -> None:
        """Take up a saved state.

        Raises:
            ConfigError: it belongs to other options or another model.
        """
        for key, mine in asdict(self.settings).items():
            if state["settings"].get(key) != mine:
                raise ConfigError(
                    f"{path}: was made with {key} = {state['settings'].get(key)!r}, now {mine!r}; "
                    "give the same options, or another checkpoint file"
                )
        if (state["pruner"] is None) != (self.pruner is None):
            raise ConfigError(f"{path}: was made {'without' if self.pruner else 'with'} a pruner; give another file")
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise ConfigError(f"{path}: holds another model ({first_line(error)})") from error
        self.optimizer.load_state_dict(state["optimizer"])
        if self.pruner is not None:
            try:
                self.pruner.load_state_dict(state["pruner"])
            except PlanError as error:
                raise ConfigError(f"{path}: {error}; give the same options, or another checkpoint file") from error
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch"])
        if self.device.type == "cuda" and state.get("cuda") is not None:
            torch.cuda.set_rng_state(state["cuda"], self.device)
        self.history = [Epoch(**entry) for entry in state["history"]]
        self.best, self.best_epoch = state["best"], state["best_epoch"]
