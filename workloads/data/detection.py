"""Digits to be found: one to four MNIST digits on a black 64 x 64 canvas, with their boxes.

`n` pictures, at most `MOST` digits in each. A digit is cut out at its ink and laid down at full or half size where it
touches no other; a box is the extent of its ink. Which digits, sizes and places follow from a fixed seed, the splits
from those of MNIST: a picture of "test" shows test digits only, one of "heldout" held-out training digits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from workloads.data import ImageData, Preprocessing, load
from workloads.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NAME = "digits_detection"
SIDE, MOST, TRIES = 64, 4, 20
PICTURES = {"train": 20_000, "heldout": 2_000, "test": 4_000}
SEEDS = {"train": 0, "heldout": 1, "test": 2}


@dataclass(frozen=True, eq=False)
class DetectionData:
    """Pictures with boxes, ready to be fed.

    Attributes:
        split: of MNIST that the digits come from. num_classes: of digits.
        images: uint8, (n, 1, 64, 64), read-only.
        targets: float32, (n, MOST, 5), read-only: label, then x0, y0, x1, y1 as fractions of the picture; rows
            without a digit have label -1.
        preprocessing: what `batches` applies.
    """

    split: str
    images: np.ndarray
    targets: np.ndarray
    preprocessing: Preprocessing
    num_classes: int

    def __len__(self) -> int:
        return len(self.images)

    def take(self, count: int) -> DetectionData:
        """The first `count` pictures."""
        if not 1 <= count <= len(self):
            raise ConfigError(f"{count} pictures asked of {self.split}, which has 1 to {len(self)}")
        return dataclasses.replace(self, images=self.images[:count], targets=self.targets[:count])

    def batches(
        self, batch_size: int, generator: torch.Generator | None = None, augment: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Every picture once: (float32 (b, 1, 64, 64), targets float32 (b, MOST, 5)); shuffled with a generator.

        Args:
            augment: as `ImageData.batches` has it; changes nothing, since scenes are random compositions already.
        """
        import torch

        if batch_size < 1:
            raise ConfigError(f"batch_size {batch_size} given, needs at least 1")
        order = np.arange(len(self)) if generator is None else torch.randperm(len(self), generator=generator).numpy()
        for start in range(0, len(self), batch_size):
            chosen = order[start : start + batch_size]
            yield self.preprocessing.apply(torch.tensor(self.images[chosen])), torch.tensor(self.targets[chosen])


def digits_detection(split: str, limit: int | None = None, root: Path | None = None) -> DetectionData:
    """A split of the data set: the same pictures every time, of which a limit takes the first.

    Raises:
        ConfigError: unknown split, or a limit out of range. DataError: MNIST is missing or altered.
    """
    digits = load("mnist", split, root=root)
    count = PICTURES[split] if limit is None else limit
    if not 1 <= count <= PICTURES[split]:
        raise ConfigError(f"limit {limit} of digits_detection {split}, must be 1 to {PICTURES[split]}")
    return compose(digits, count, SEEDS[split])


def compose(digits: ImageData, count: int, seed: int) -> DetectionData:
    """`count` canvases of random digits; a picture depends on the seed and its number alone."""
    images = np.zeros((count, 1, SIDE, SIDE), np.uint8)
    targets = np.zeros((count, MOST, 5), np.float32)
    targets[:, :, 0] = -1
    for number in range(count):
        rng = np.random.RandomState((seed, number))  # a frozen stream, as in `sets`
        _fill(images[number, 0], targets[number], digits, rng)
    for array in (images, targets):
        array.flags.writeable = False
    return DetectionData(digits.split, images, targets, digits.preprocessing, digits.num_classes)


def _fill(canvas: np.ndarray, rows: np.ndarray, digits: ImageData, rng: np.random.RandomState) -> None:
    """One to MOST digits; one that finds no free place in TRIES tries is left out, the first always finds one."""
    wanted, placed = rng.randint(1, MOST + 1), 0
    for chosen in rng.randint(0, len(digits), wanted):
        ink = cut_out(digits.images[chosen, 0], half=bool(rng.randint(2)))
        h, w = ink.shape
        for y, x in zip(rng.randint(0, SIDE - h + 1, TRIES), rng.randint(0, SIDE - w + 1, TRIES), strict=True):
            if not canvas[max(y - 1, 0) : y + h + 1, max(x - 1, 0) : x + w + 1].any():
                canvas[y : y + h, x : x + w] = ink
                rows[placed] = digits.labels[chosen], x / SIDE, y / SIDE, (x + w) / SIDE, (y + h) / SIDE
                placed += 1
                break


def cut_out(image: np.ndarray, half: bool) -> np.ndarray:
    """The rectangle of a picture's ink; at half size the mean of every 2 x 2 pixels first.

    Args:
        image: uint8, (h, w), both even, not black.
    """
    if half:
        h, w = image.shape
        image = image.reshape(h // 2, 2, w // 2, 2).mean((1, 3)).astype(np.uint8)
    rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
