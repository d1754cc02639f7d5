"""CIFAR-10: 60,000 colour pictures of 32 x 32 in ten classes, the official binary version.

Five training files and one test file of 10,000 records; a record is one label byte and then 3 x 32 x 32 bytes, the
red, green and blue planes. The normalisation is the one that the published CIFAR ResNets were trained with
(ImageNet's mean and deviation), so that their weights can be used as they are.

Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; https://www.cs.toronto.edu/~kriz.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from workloads.data.images import Augmentation, Preprocessing
from workloads.data.sets import Arrays, DataSet, Part
from workloads.data.store import DataFile
from workloads.errors import DataError

FOLDER = "cifar-10-batches-bin/"
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
ARCHIVE_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
RECORD_BYTES = 1 + 3 * 32 * 32

SHA256 = {
    "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}


def read_records(path: Path) -> np.ndarray:
    """All records of a file: uint8, (n, 3073). DataError where it does not hold whole records."""
    raw = np.fromfile(path, np.uint8)
    if raw.size == 0 or raw.size % RECORD_BYTES:
        raise DataError(f"{path}: {raw.size:,} bytes, which is no whole number of records of {RECORD_BYTES:,}")
    return raw.reshape(-1, RECORD_BYTES)


def read(root: Path, part: Part) -> Arrays:
    names = [name for name in SHA256 if name.startswith("test") == (part == "test")]
    records = np.concatenate([read_records(root / FOLDER / name) for name in names])
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)


FILES = [DataFile(FOLDER + name, 10000 * RECORD_BYTES, sha256, URL, ARCHIVE_MD5) for name, sha256 in SHA256.items()]

DATA_SET = DataSet(
    name="cifar10",
    summary="colour pictures of ten classes, 32 x 32, 50,000 + 10,000",
    image_shape=(3, 32, 32),
    num_classes=10,
    preprocessing=Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    augmentation=Augmentation(crop_padding=4, flip=True),
    read=read,
    files={"train": tuple(FILES[:5]), "test": tuple(FILES[5:])},
    heldout=5000,
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
)
