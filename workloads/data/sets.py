"""What a data set is, and the fixed splits that are made of it.

The test split is the published test file. The held-out split is taken out of the published *training* file by a
fixed, class-balanced permutation: sensitivity, fronts, thresholds and checkpoints are chosen on it, so that the test
split is used once, for the number that is reported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from workloads.data.images import Augmentation, Preprocessing
from workloads.data.store import DataFile
from workloads.errors import ConfigError

Part = Literal["train", "test"]
Arrays = tuple[np.ndarray, np.ndarray]  # images uint8 (n, c, h, w), labels int64 (n,)


@dataclass(frozen=True)
class DataSet:
    """A data set by its files and how to read them.

    Attributes:
        name: what users type.
        summary: one line for listings.
        image_shape: (c, h, w).
        num_classes: labels are 0 .. num_classes - 1.
        preprocessing: the usual normalisation; a model may bring its own.
        read: (root, part) -> (images, labels) of a published part, in published order.
        files: the files of each published part; () where the data come with a package.
        heldout: pictures taken out of the training part, at least one; 0 where there is no training part.
        augmentation: what training may do to a picture without changing its label.
        classes: names of the classes; () where they are too many to list.
        seed: of the permutation that chooses the held-out pictures. Part of the data set: never change it.
    """

    name: str
    summary: str
    image_shape: tuple[int, int, int]
    num_classes: int
    preprocessing: Preprocessing
    read: Callable[[Path, Part], Arrays] = field(repr=False)
    files: dict[Part, tuple[DataFile, ...]] = field(repr=False)
    heldout: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)
    classes: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        shape, files = self.image_shape, self.files
        if not (isinstance(shape, tuple) and len(shape) == 3 and all(type(size) is int and size > 0 for size in shape)):
            raise self._wrong("image_shape", "must be (channels, height, width)")
        if type(self.num_classes) is not int or self.num_classes < 1:
            raise self._wrong("num_classes", "must be a whole number of at least 1")
        if not isinstance(self.preprocessing, Preprocessing):
            raise self._wrong("preprocessing", "must be a Preprocessing")
        if len(self.preprocessing.mean) != shape[0]:
            raise self._wrong("preprocessing", f"mean and std must have {shape[0]} numbers, one a channel of {shape}")
        if not callable(self.read):
            raise self._wrong("read", "must be a function (folder, part) -> (images, labels)")
        if not isinstance(files, dict) or not {"test"} <= set(files) <= {"train", "test"}:
            raise self._wrong("files", "must have a key 'test', and 'train' if there is a training part")
        if "train" in files and (type(self.heldout) is not int or self.heldout < 1):
            reason = "choices are made on pictures held out of the training part"
            raise self._wrong("heldout", f"must be a whole number of at least 1: {reason}")

    def _wrong(self, field: str, allowed: str) -> ConfigError:
        return ConfigError(f"data set {self.name!r}: {field} {getattr(self, field)!r}, {allowed}")

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that `load` knows: all three, or the test split alone."""
        return ("train", "heldout", "test") if "train" in self.files else ("test",)


def stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """A permutation of which every prefix holds the classes in proportion: equally frequent ones within one picture.

    With m classes, a class of share f is never further from its due number than 1/2 + f m / 2.

    Args:
        labels: int, (n,).
        seed: of the permutation. NumPy's legacy RandomState is used on purpose: its stream is frozen for good,
            while that of `numpy.random.Generator` may change between versions, and splits must not.

    Returns:
        int64, (n,): positions in `labels`.

    >>> labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    >>> int(labels[stratified_order(labels, seed=0)[:4]].sum())
    2
    """
    order = np.random.RandomState(seed).permutation(len(labels)).astype(np.int64)
    share = np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        share[members] = (np.arange(len(members)) + 0.5) / len(members)
    return order[np.argsort(share[order], kind="stable")]


def split_indices(data_set: DataSet, split: str, labels: np.ndarray) -> np.ndarray:
    """Positions, in the published part, of the pictures of a split: int64.

    Training and test pictures keep their published order; held-out ones are in the class-balanced order, so that
    the first few of them are balanced too.
    """
    if split == "test" or not data_set.heldout:
        return np.arange(len(labels))
    order = stratified_order(labels, data_set.seed)
    return order[: data_set.heldout] if split == "heldout" else np.sort(order[data_set.heldout :])
