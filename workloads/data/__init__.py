"""Real data sets by name: digits, MNIST, CIFAR-10, and a few ImageNet pictures.

A data set is one file of this package with a `DATA_SET`; a package elsewhere adds one through the entry point group
`codesign.data` (name = "its_package.its_module:DATA_SET"). Splits are fixed (see `sets.py`), files are checksummed
(see `store.py`), pictures stay bytes until they are fed (see `images.py`). Without a package, `my_file:MY_SET` names a
`DataSet` of any importable file.

    train, heldout = load("cifar10", "train"), load("cifar10", "heldout")
    for x, y in train.batches(128, generator=torch.Generator().manual_seed(0), augment=True):
        ...
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

from workloads.data.images import Augmentation, ImageData, Preprocessing
from workloads.data.sets import DataSet, Part, split_indices
from workloads.data.store import DataFile, data_root, locate
from workloads.errors import CodesignError, ConfigError, DataError, not_a_module, unknown_name

__all__ = ["Augmentation", "DataFile", "DataSet", "ImageData", "Preprocessing", "data_root", "data_sets", "load"]

ENTRY_POINTS = "codesign.data"


@functools.cache
def data_sets() -> Mapping[str, DataSet]:
    """Every registered data set by name, sorted, read-only. Reads no data.

    >>> list(data_sets())[:2]
    ['cifar10', 'digits']
    """
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    found = [module.DATA_SET for module in modules if hasattr(module, "DATA_SET")]
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        found.append(_imported(point, f"entry point {point.name!r} of {ENTRY_POINTS}: {point.value}"))
    names = [data_set.name for data_set in found]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"two data sets are registered as {doubled[0]!r}; rename one")
    return MappingProxyType(dict(sorted(zip(names, found, strict=True))))


def find(name: str) -> DataSet:
    """A data set by its name or as `module:ATTRIBUTE`. ConfigError, with the closest names, if there is none."""
    if ":" in name:
        if error := not_a_module(name):
            raise error
        return _imported(importlib.metadata.EntryPoint(name, name, ""), name)
    if (known := data_sets().get(name)) is None:
        raise unknown_name("data set", name, data_sets())
    return known


def load(
    name: str | DataSet,
    split: str,
    *,
    preprocessing: Preprocessing | None = None,
    limit: int | None = None,
    root: Path | None = None,
) -> ImageData:
    """One split of a data set, checked and in memory.

    Args:
        name: a registered name, or a data set of your own.
        split: "train", "heldout" (taken out of the training pictures) or "test".
        preprocessing: that of the model to be fed (`ModelEntry.preprocessing`); None for the data set's own.
        limit: keep the first pictures only.
        root: the data folder; by default CODESIGN_DATA, or the user's cache filled by a download.

    Raises:
        ConfigError: unknown name or split, or a limit out of range.
        DataError: files missing, truncated or altered, or an extra is not installed.
    """
    data_set = name if isinstance(name, DataSet) else find(name)
    if split not in data_set.splits:
        raise unknown_name(f"split of {data_set.name}", split, data_set.splits)
    data = _read(data_set, split, preprocessing or data_set.preprocessing, root)
    return data if limit is None else data.take(limit)


def _read(data_set: DataSet, split: str, preprocessing: Preprocessing, root: Path | None) -> ImageData:
    part: Part = "test" if split == "test" else "train"
    known = list(dict.fromkeys(file for files in data_set.files.values() for file in files))
    folder = locate(data_set.name, data_set.files[part], known, root) if known else Path()
    images, labels = _arrays(data_set, folder, part)
    _check_contract(data_set, images, labels, part)
    indices = split_indices(data_set, split, labels)
    whole = len(indices) == len(labels)
    return ImageData(
        name=data_set.name,
        split=split,
        images=images if whole else images[indices],
        labels=labels if whole else labels[indices],
        indices=indices,
        num_classes=data_set.num_classes,
        preprocessing=preprocessing,
        augmentation=data_set.augmentation,
        classes=data_set.classes,
    )


def _arrays(data_set: DataSet, folder: Path, part: Part) -> tuple[np.ndarray, np.ndarray]:
    """What the reader answers, if that is two arrays."""
    try:
        found = data_set.read(folder, part)
    except (CodesignError, OSError):
        raise
    except (Exception, SystemExit) as error:  # third parties write readers too
        raise DataError(f"{data_set.name}: reading {part} raised {type(error).__name__}: {error}") from error
    if not (isinstance(found, tuple) and len(found) == 2 and all(isinstance(each, np.ndarray) for each in found)):
        raise DataError(f"{data_set.name}: reading {part} must answer two NumPy arrays, pictures and labels")
    if not found[0].size:
        raise DataError(f"{data_set.name}: its {part} part has no picture")
    return found


def _check_contract(data_set: DataSet, images: np.ndarray, labels: np.ndarray, part: Part) -> None:
    """A reader's answer must be what `DataSet` promises; third parties write readers too."""
    if images.dtype != np.uint8 or images.shape[1:] != data_set.image_shape or labels.shape != images.shape[:1]:
        found = f"{images.dtype} {images.shape} and labels {labels.shape}"
        raise DataError(f"{data_set.name}: read {found}, needs uint8 pictures of {data_set.image_shape}, a label each")
    if labels.dtype != np.int64 or labels.min() < 0 or labels.max() >= data_set.num_classes:
        found = str(labels.dtype)
        if labels.dtype == np.int64:
            first = int(np.flatnonzero((labels < 0) | (labels >= data_set.num_classes))[0])
            found = f"{labels[first]} at {first}"
        must = f"labels must be int64 from 0 to {data_set.num_classes - 1}"
        raise DataError(f"{data_set.name}: {must}, its {part} part has {found}")
    if part == "train" and len(labels) <= data_set.heldout:
        raise DataError(f"{data_set.name}: {len(labels)} training pictures, but {data_set.heldout} are to be held out")


def _imported(point: importlib.metadata.EntryPoint, who: str) -> DataSet:
    try:
        data_set = point.load()
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{who} fails ({type(error).__name__}: {error})") from error
    if not isinstance(data_set, DataSet):
        raise ConfigError(f"{who} is not a DataSet")
    return data_set
