"""How a network stands up to pictures that were changed to mislead it, dense against pruned.

eps is the most that a pixel may change, in units of pixel / 255 and so before normalisation; attacks work on what the
network is fed, where that is eps / std a channel and legal pixels lie in (0 - mean) / std .. (1 - mean) / std.

Source: Goodfellow et al., "Explaining and Harnessing Adversarial Examples", ICLR 2015 (FGSM); Madry et al., "Towards
Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018 (PGD).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning.devices import pick_device, placed
from pruning.evaluation import measuring
from workloads.data import ImageData
from workloads.data.images import Preprocessing
from workloads.errors import ConfigError


@dataclass(frozen=True)
class Attack:
    """Steps along the sign of the loss's gradient, each followed by a projection to the ball and to legal pixels.

        x <- clip(x + step sign(grad_x CE(model(x), y)))

    Attributes:
        eps: radius in the maximum norm, in units of pixel / 255.
        steps: how many. step_size: of each, in the same units as eps.
        random_start: begin at a uniformly random point of the ball instead of its centre.
    """

    eps: float
    steps: int
    step_size: float
    random_start: bool

    def __post_init__(self) -> None:
        if not (0 < self.eps <= 1 and self.steps >= 1 and self.step_size > 0):
            raise ConfigError(f"{self}: needs 0 < eps <= 1 (of pixel / 255), steps >= 1, step_size > 0")

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, preprocessing: Preprocessing, generator: torch.Generator
    ) -> Tensor:
        """The pictures after the attack.

        Args:
            model: in eval mode; gradients are taken of the inputs alone, its parameters' `grad` stays as it is.
            x: float32, as `preprocessing` makes them, (n, c, h, w). Not modified.
            y: their labels.
            generator: of the random start, on the CPU.

        Returns:
            float32, (n, c, h, w).
        """
        mean, std = (x.new_tensor(values).view(1, -1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
        low = torch.maximum(x - self.eps / std, -mean / std)
        high = torch.minimum(x + self.eps / std, (1 - mean) / std)
        moved = x
        if self.random_start:
            start = torch.rand(x.shape, generator=generator).to(x.device) * 2 - 1
            moved = torch.clamp(x + start * self.eps / std, low, high)
        for _ in range(self.steps):
            moved = moved.detach().requires_grad_()
            loss = F.cross_entropy(model(moved).float(), y, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, moved)
            moved = torch.clamp(moved + self.step_size / std * gradient.sign(), low, high)
        return moved.detach()


def fgsm(eps: float) -> Attack:
    """One step of the whole radius."""
    return Attack(eps, 1, eps, random_start=False)


def pgd(eps: float, steps: int = 10, step_size: float | None = None, random_start: bool = True) -> Attack:
    """Many small steps; by default 2.5 eps / steps each, so that any point of the ball can be reached."""
    return Attack(eps, steps, 2.5 * eps / max(1, steps) if step_size is None else step_size, random_start)


@dataclass(frozen=True)
class Robustness:
    """What a network reaches under attack.

    Attributes:
        clean, fgsm, pgd: fractions of right answers, 0 .. 1: without attack, under FGSM, under PGD.
        eps: in units of pixel / 255. steps: of PGD. images: how many were looked at. split: of which split.
    """

    clean: float
    fgsm: float
    pgd: float
    eps: float
    steps: int
    images: int
    split: str

    def to_dict(self) -> dict[str, float | int | str]:
        """A JSON value."""
        return asdict(self)

    def __str__(self) -> str:
        attacks = f"FGSM {self.fgsm:.2%}, PGD-{self.steps} {self.pgd:.2%} at eps {self.eps * 255:g}/255"
        return f"clean {self.clean:.2%}, {attacks}, {self.images:,} {self.split} images"


def robustness(
    models: Mapping[str, nn.Module],
    data: ImageData,
    *,
    eps: float = 1 / 255,
    steps: int = 10,
    random_start: bool = True,
    batch_size: int = 250,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Robustness]:
    """Accuracy of each network, clean and under FGSM and PGD made against that network itself, in float32.

    Networks are measured in eval mode; their mode, place and gradients come back as they were. All get the same
    random starts.

    Args:
        models: by name, say {"dense": ..., "pruned": ...}.
        eps: Campfire's strengths are not established; the default is small because networks that were not trained
            against attacks leave nothing to compare at the usual 8/255 (ResNet-20 on CIFAR-10: 0 % under PGD-10).
        steps, random_start: of PGD.

    Raises:
        ConfigError: no model, an unknown device, or an option out of range.
    """
    if not models or not isinstance(models, Mapping):
        raise ConfigError("no model to attack; give {'dense': model, ...}")
    attacks = {"fgsm": fgsm(eps), "pgd": pgd(eps, steps, random_start=random_start)}
    where = pick_device(device)
    found = {}
    for name, model in models.items():
        with measuring(model, where):
            right = _right_answers(model, data, attacks, batch_size, seed, where)
        shares = {kind: count / len(data) for kind, count in right.items()}
        found[name] = Robustness(**shares, eps=eps, steps=steps, images=len(data), split=data.split)
    return found


def _right_answers(
    model: nn.Module,
    data: ImageData,
    attacks: Mapping[str, Attack],
    batch_size: int,
    seed: int,
    device: torch.device,
) -> dict[str, int]:
    generator = torch.Generator().manual_seed(seed)
    right = dict.fromkeys(("clean", *attacks), 0)
    for x, y in data.batches(batch_size):
        x, y = placed(x, device), y.to(device)
        pictures = {"clean": x}
        pictures |= {kind: one.perturb(model, x, y, data.preprocessing, generator) for kind, one in attacks.items()}
        with torch.no_grad():
            for kind, picture in pictures.items():
                right[kind] += int((model(picture).argmax(1) == y).sum())
    return right
