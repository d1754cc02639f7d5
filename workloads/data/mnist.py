"""MNIST: 70,000 handwritten digits of 28 x 28, in the original idx files.

An idx file of pictures has a header of four big-endian integers (2051, n, 28, 28) and then n * 28 * 28 bytes, row by
row, 0 = background; one of labels (2049, n) and then n bytes.

Source: LeCun, Cortes, Burges, "The MNIST database of handwritten digits". Usual normalisation 0.1307, 0.3081.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from workloads.data.images import Augmentation, Preprocessing
from workloads.data.sets import Arrays, DataSet, Part
from workloads.data.store import DataFile
from workloads.errors import DataError

MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
FOLDER = "MNIST/raw/"
PREFIX: dict[Part, str] = {"train": "train", "test": "t10k"}


def read_idx(path: Path) -> np.ndarray:
    """A gzipped idx file of bytes as an array of the shape that its header states, uint8.

    Raises:
        DataError: not gzip, not idx of bytes, or fewer bytes than the header says.
    """
    try:
        raw = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a whole gzip file ({error})") from error
    if len(raw) < 4 or raw[:3] != b"\0\0\x08" or len(raw) < 4 + 4 * raw[3]:
        raise DataError(f"{path}: not an idx file of bytes (it begins with {raw[:4].hex() or 'nothing'})")
    shape = tuple(int(size) for size in np.frombuffer(raw, ">i4", count=raw[3], offset=4))
    pixels = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    if pixels.size != np.prod(shape):
        raise DataError(f"{path}: header says {shape}, which is not the {pixels.size:,} bytes that follow")
    return pixels.reshape(shape)


def read(root: Path, part: Part) -> Arrays:
    images = read_idx(root / f"{FOLDER}{PREFIX[part]}-images-idx3-ubyte.gz")
    labels = read_idx(root / f"{FOLDER}{PREFIX[part]}-labels-idx1-ubyte.gz")
    return images[:, None], labels.astype(np.int64)


SIZES_AND_SHA256 = {
    "train-images-idx3-ubyte.gz": (9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
    "train-labels-idx1-ubyte.gz": (28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
    "t10k-images-idx3-ubyte.gz": (1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
    "t10k-labels-idx1-ubyte.gz": (4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
}
FILES = tuple(
    DataFile(FOLDER + name, size_bytes, sha256, MIRROR + name)
    for name, (size_bytes, sha256) in SIZES_AND_SHA256.items()
)

DATA_SET = DataSet(
    name="mnist",
    summary="handwritten digits, 28 x 28, 60,000 + 10,000",
    image_shape=(1, 28, 28),
    num_classes=10,
    preprocessing=Preprocessing(mean=(0.1307,), std=(0.3081,)),
    augmentation=Augmentation(crop_padding=2),
    read=read,
    files={"train": FILES[:2], "test": FILES[2:]},
    heldout=5000,
    classes=tuple("0123456789"),
)
