"""scikit-learn's bundled handwritten digits: 1,797 pictures of 8 x 8, real data without a download.

Pixels are the published integers 0 .. 16, not stretched to 0 .. 255. The package publishes one list; it is cut here
into 360 test and 1,437 training pictures, 200 of which are held out.

Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI repository, 1998 (the test part of it).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from workloads.data.images import Augmentation, Preprocessing
from workloads.data.sets import Arrays, DataSet, Part, stratified_order
from workloads.errors import DataError

TEST_PICTURES = 360
TEST_SEED = 0
SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"  # of pixels, then labels, one byte each


def read(root: Path, part: Part) -> Arrays:
    """The pictures come with scikit-learn, so `root` is not looked at."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("data set 'digits' comes with scikit-learn: pip install codesign[demo]") from error
    bundle = load_digits()
    images = bundle.images.astype(np.uint8)[:, None]
    labels = bundle.target.astype(np.int64)
    if hashlib.sha256(images.tobytes() + labels.astype(np.uint8).tobytes()).hexdigest() != SHA256:
        raise DataError("the digits of this scikit-learn are not the known ones, so results would not compare")
    order = stratified_order(labels, TEST_SEED)
    chosen = np.sort(order[:TEST_PICTURES] if part == "test" else order[TEST_PICTURES:])
    return images[chosen], labels[chosen]


DATA_SET = DataSet(
    name="digits",
    summary="handwritten digits of scikit-learn, 8 x 8, 1,437 + 360 (extra: demo)",
    image_shape=(1, 8, 8),
    num_classes=10,
    preprocessing=Preprocessing(mean=(4.884 / 255,), std=(6.017 / 255,)),
    augmentation=Augmentation(crop_padding=1),
    read=read,
    files={"train": (), "test": ()},
    heldout=200,
    classes=tuple("0123456789"),
    seed=1,
)
