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
        heldout: pictures taken out of the training part; 0 where there is no training part.
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
