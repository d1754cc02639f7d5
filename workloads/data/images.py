"""Labelled pictures in memory: bytes as they were published, floats only on demand.

`n, c, h, w` are pictures, channels, height and width. Pixels stay uint8 until a batch is asked for; a batch then
goes through an `Augmentation` (training only) and a `Preprocessing` (always), both vectorised over the batch.
NumPy holds the data, torch is imported when the first batch is made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from workloads.errors import ConfigError, ShapeError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Indices = slice | Sequence[int] | np.ndarray


@dataclass(frozen=True)
class Preprocessing:
    """What a network expects of a picture: `(pixel / 255 - mean) / std`, then a half turn where asked.

    Attributes:
        mean, std: one number a channel, in units of pixel / 255.
        half_turn: rotate by 180 degrees (for weights converted from a framework that pads right and bottom only).

    >>> Preprocessing(mean=(0.5,), std=(0.25,))
    Preprocessing(mean=(0.5,), std=(0.25,), half_turn=False)
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    half_turn: bool = False

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise ConfigError(f"preprocessing: mean {self.mean} and std {self.std} need one number a channel, std > 0")

    def apply(self, images: Tensor) -> Tensor:
        """Bytes to what the network is fed.

        Args:
            images: uint8, (n, c, h, w). Not modified.

        Returns:
            float32, (n, c, h, w).

        Raises:
            ShapeError: the pictures do not have as many channels as `mean`.
        """
        import torch

        if images.dim() != 4 or images.shape[1] != len(self.mean):
            wanted = f"(n, {len(self.mean)}, h, w)"
            raise ShapeError(f"pictures of shape {tuple(images.shape)} given, this preprocessing needs {wanted}")
        mean = torch.tensor(self.mean, device=images.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(1, -1, 1, 1)
        scaled = images.float().sub_(mean * 255).div_(std * 255)
        return scaled.flip(-1, -2) if self.half_turn else scaled


@dataclass(frozen=True)
class Augmentation:
    """Random shifts and mirror images: zeros (black) around the picture, a random crop of the old size, a fair flip.

    Attributes:
        crop_padding: pixels of black on every side before the crop; 0 leaves the position alone.
        flip: mirror left and right with probability one half.

    Source: He et al., "Deep Residual Learning", CVPR 2016, section 4.2 (4 pixels and flips on CIFAR-10). Differs:
    the black border is laid before the normalisation, as torchvision's `RandomCrop` does.
    """

    crop_padding: int = 0
    flip: bool = False

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augment every picture on its own, in one gather.

        Args:
            images: any dtype, (n, c, h, w). Not modified.
            generator: the source of randomness; the same state gives the same pictures.

        Returns:
            Same dtype and shape.
        """
        import torch
        from torch.nn import functional as F

        n, c, h, w = images.shape
        pad = self.crop_padding
        rows = torch.randint(0, 2 * pad + 1, (n, 1), generator=generator) + torch.arange(h)
        columns = torch.randint(0, 2 * pad + 1, (n, 1), generator=generator) + torch.arange(w)
        if self.flip:
            mirrored = torch.rand((n, 1), generator=generator) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        pixels = (rows[:, :, None] * (w + 2 * pad) + columns[:, None, :]).view(n, 1, h * w)
        padded = F.pad(images, (pad, pad, pad, pad)).flatten(2)
        return padded.gather(2, pixels.expand(-1, c, -1)).view(n, c, h, w)


@dataclass(frozen=True, eq=False)
class ImageData:
    """One split of a data set, ready to be fed.

    Attributes:
        name, split: which data set and which split of it.
        images: uint8, (n, c, h, w), read-only.
        labels: int64, (n,), read-only, 0 .. num_classes - 1.
        indices: int64, (n,): position of each picture in the published training or test file.
        num_classes: number of classes of the data set.
        classes: their names, or () where the data set has too many to list.
        preprocessing: what `tensor` and `batches` apply.
        augmentation: what `batches(..., augment=True)` applies first.

    `len(data)` and `data[i]` are there, so that `torch.utils.data.DataLoader(data)` works too.
    """

    name: str
    split: str
    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    num_classes: int
    preprocessing: Preprocessing
    augmentation: Augmentation = field(default_factory=Augmentation)
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or not len(self.images) == len(self.labels) == len(self.indices) > 0:
            shapes = f"{self.images.shape}, {self.labels.shape}, {self.indices.shape}"
            raise ShapeError(f"{self.name}: images, labels, indices of shapes {shapes}; need (n, c, h, w), (n,), (n,)")
        if self.images.shape[1] != len(self.preprocessing.mean):
            found, given = self.images.shape[1], len(self.preprocessing.mean)
            raise ShapeError(f"{self.name}: images have {found} channels, mean and std of preprocessing for {given}")
        for array in (self.images, self.labels, self.indices):
            array.flags.writeable = False

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean that is subtracted from pixel / 255, one number a channel."""
        return self.preprocessing.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation that pixel / 255 - mean is divided by, one number a channel."""
        return self.preprocessing.std

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        return self.tensor([index])[0], int(self.labels[index])

    def __repr__(self) -> str:
        return f"ImageData({self.name!r}, {self.split!r}, {len(self):,} pictures of {self.images.shape[1:]})"

    def take(self, count: int) -> ImageData:
        """The first `count` pictures. Those of the held-out split are balanced over the classes, whatever `count`."""
        if not 1 <= count <= len(self):
            raise ConfigError(f"{count} pictures asked of {self.name} {self.split}, which has 1 to {len(self)}")
        parts = {field: getattr(self, field)[:count].copy() for field in ("images", "labels", "indices")}
        return dataclasses.replace(self, **parts)

    def tensor(self, indices: Indices | None = None) -> Tensor:
        """The chosen pictures (all of them by default), preprocessed: float32, (n, c, h, w)."""
        return self.preprocessing.apply(self._pixels(indices))

    def targets(self, indices: Indices | None = None) -> Tensor:
        """The labels of the chosen pictures: int64, (n,)."""
        import torch

        return torch.tensor(self.labels if indices is None else self.labels[indices])

    def batches(
        self, batch_size: int, generator: torch.Generator | None = None, augment: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Every picture once, in batches; the last one may be smaller.

        Args:
            batch_size: pictures in a batch, >= 1.
            generator: shuffles and augments; None keeps the order.
            augment: apply `augmentation`; needs a generator.

        Yields:
            (pictures float32 (b, c, h, w), labels int64 (b,)).

        Raises:
            ConfigError: batch_size < 1, or augment without a generator.
        """
        import torch

        if batch_size < 1:
            raise ConfigError(f"batch_size {batch_size} given, needs at least 1")
        if augment and generator is None:
            raise ConfigError("augment=True needs a generator: torch.Generator().manual_seed(0)")
        order = np.arange(len(self)) if generator is None else torch.randperm(len(self), generator=generator).numpy()
        for start in range(0, len(self), batch_size):
            chosen = order[start : start + batch_size]
            pixels = self._pixels(chosen)
            if augment and generator is not None:
                pixels = self.augmentation.apply(pixels, generator)
            yield self.preprocessing.apply(pixels), self.targets(chosen)

    def _pixels(self, indices: Indices | None) -> Tensor:
        """uint8, a copy: torch has no read-only tensors."""
        import torch

        return torch.tensor(self.images if indices is None else self.images[indices])
