"""How good a network is: loss and accuracy on labelled pictures."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning.devices import autocast, pick_device, pick_precision, placed
from workloads.data import ImageData
from workloads.data.detection import DetectionData
from workloads.errors import ConfigError

Batch = tuple[Tensor, Tensor]
Pictures = ImageData | DetectionData
Labelled = Pictures | Sequence[Batch]


@dataclass(frozen=True)
class Score:
    """What a network reaches.

    Attributes:
        loss: mean cross entropy, in nats; of a detector its own loss. accuracy: fraction of right answers, 0 .. 1; of
            a detector mean average precision.
        images: how many were looked at. split: of which split. precision: in which it was measured.
    """

    loss: float
    accuracy: float
    images: int
    split: str
    precision: str

    def __str__(self) -> str:
        return f"{self.accuracy:.2%} of {self.images:,} {self.split} images, loss {self.loss:.4f}, {self.precision}"


def evaluate(
    model: nn.Module,
    data: ImageData,
    *,
    batch_size: int = 500,
    limit: int | None = None,
    device: str = "auto",
    precision: str = "fp32",
) -> Score:
    """Loss and accuracy in eval mode; the model's mode and place come back as they were.

    Args:
        limit: look at the first pictures only.
        precision: "fp32", "bf16" or "auto"; fp32 is what reports state.

    Raises:
        ConfigError: unknown device or precision, batch_size < 1, a limit out of range, or a loss that is not finite.
    """
    where = pick_device(device)
    chosen = pick_precision(precision, where)
    data = data if limit is None else data.take(limit)
    batches = ((placed(x, where), y.to(where)) for x, y in data.batches(batch_size))
    with measuring(model, where):
        loss, right = score(model, batches, chosen, f"{data.name} {data.split}")
    return Score(loss, right, len(data), data.split, chosen)


def accuracy(
    model: nn.Module, data: ImageData, batch_size: int = 500, limit: int | None = None, device: str = "auto"
) -> float:
    """Fraction of right answers in float32, 0 .. 1; `evaluate` says more."""
    return evaluate(model, data, batch_size=batch_size, limit=limit, device=device).accuracy


@torch.inference_mode()
def score(
    model: nn.Module, batches: Iterable[Batch], precision: str, name: str = "the given batches"
) -> tuple[float, float]:
    """Mean loss and accuracy on batches that are where the model is; its mode is for the caller to choose.

    Raises:
        ConfigError: the answers are no logits, or the loss is not finite; `name` says on what.
    """
    loss = right = 0.0
    count = 0
    for x, y in batches:
        with autocast(x.device, precision):
            logits = logits_of(model(x))
        loss += float(F.cross_entropy(logits, y, reduction="sum"))
        right += float((logits.argmax(1) == y).sum())
        count += len(y)
    return finite(loss / count, name), right / count


def finite(loss: float, name: str) -> float:
    """The loss, refused where it is not finite."""
    if not math.isfinite(loss):
        raise ConfigError(f"the loss on {name} is not finite; the weights hold NaN or have diverged")
    return loss


def labelled_batches(data: Labelled, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
    """Batches (x, y) of what a method is given to measure on; ready-made batches keep their size.

    Args:
        data: training or held-out pictures, or a sequence of batches.
        limit: stop after so many pictures, or at the end of the ready-made batch that reaches them.

    Raises:
        ConfigError: test pictures, no batch, or a limit below 1.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"{limit} images to measure on, must be at least 1")
    if isinstance(data, Pictures):
        if data.split == "test":
            raise ConfigError(
                "data of split 'test' would choose by it; a method needs pictures of split 'heldout' or 'train'"
            )
        return (data if limit is None else data.take(min(limit, len(data)))).batches(batch_size)
    if not len(data):
        raise ConfigError("data holds no batch (x, y); give at least one")
    seen = list(accumulate(len(x) for x, _ in data))
    return iter(data if limit is None else data[: bisect_left(seen, limit) + 1])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode; afterwards every module is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def measuring(model: nn.Module, where: torch.device) -> Iterator[nn.Module]:
    """The model there, in eval mode; afterwards where and in the modes that it was.

    Never enter it in `torch.inference_mode`: what is moved there can be trained no more, and no error says so.
    """
    home = next(model.parameters(), torch.empty(0)).device
    with evaluating(model):
        try:
            yield model.to(where)
        finally:
            model.to(home)


@torch.no_grad()
def recalibrate(
    model: nn.Module,
    data: Pictures,
    limit: int = 2000,
    batch_size: int = 250,
    precision: str = "auto",
    augment: bool = True,
) -> None:
    """Measure the statistics of every batch norm anew, in place: the mean over batches of training pictures.

    Removing channels shifts what the remaining layers see; this is the cheapest repair, a forward pass without
    gradients. A model without batch norms stays as it is.

    Args:
        limit: the first so many pictures are used.
        augment: change them as training does. Statistics are those of augmented pictures in a trained network; taken
            from plain ones they cost the dense ResNet-20 of the zoo 4 points.

    Source: Wu and Johnson, "Rethinking Batch in BatchNorm", 2021, precise batch norm (means of batch variances).
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.track_running_stats]
    if not norms:
        return
    device = next(model.parameters()).device
    chosen = pick_precision(precision, device)
    momenta = [norm.momentum for norm in norms]
    generator = torch.Generator().manual_seed(0)
    with evaluating(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum, norm.training = None, True  # no momentum: a plain average over the batches
        try:
            for x, _ in data.take(min(limit, len(data))).batches(batch_size, generator, augment):
                with autocast(device, chosen):
                    model(placed(x, device))
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


def cross_entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean cross entropy of logits in float32, whatever autocast made of them."""
    return F.cross_entropy(logits_of(logits), targets, label_smoothing=smoothing)


def logits_of(answer: Any) -> Tensor:
    """What a classifier answers, in float32.

    Raises:
        ConfigError: it is no tensor.
    """
    if not isinstance(answer, Tensor):
        found = type(answer).__name__
        raise ConfigError(f"the network answers with {found}, and a class is chosen by one tensor; give it such a head")
    return answer.float()
