"""One picture for each of the 1,000 ImageNet classes, 224 x 224: to check a model, never to state its accuracy.

`imagenet_sample_1000_224.zip` holds JPEG files `IIII_nXXXXXXXX.jpg`, IIII = class index in the usual order (0 =
tench, 999 = toilet tissue), made from the public collection "imagenet-sample-images": shorter side 256, centre crop.
The pictures come mostly from ImageNet's training part, so accuracy on them is above the published one; one picture
is 0.1 points. There is no public download of this file, and none is attempted.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np

from workloads.data.images import Preprocessing
from workloads.data.sets import Arrays, DataSet, Part
from workloads.data.store import DataFile
from workloads.errors import DataError

ARCHIVE = "imagenet_samples/imagenet_sample_1000_224.zip"


def read(root: Path, part: Part) -> Arrays:
    """All pictures in the order of their class index; about three seconds of JPEG decoding."""
    from PIL import Image, UnidentifiedImageError

    pictures, labels = [], []
    try:
        with zipfile.ZipFile(root / ARCHIVE) as archive:
            for name in sorted(archive.namelist()):
                with Image.open(io.BytesIO(archive.read(name))) as picture:
                    pictures.append(np.asarray(picture.convert("RGB")))
                labels.append(int(name.split("_")[0]))
        images = np.stack(pictures).transpose(0, 3, 1, 2)
    except (zipfile.BadZipFile, UnidentifiedImageError, ValueError, OSError) as error:
        raise DataError(f"{root / ARCHIVE}: not the archive of sample pictures ({error})") from error
    return np.ascontiguousarray(images), np.array(labels, np.int64)


DATA_SET = DataSet(
    name="imagenet_samples",
    summary="one picture for each of the 1,000 ImageNet classes, 224 x 224 (test only)",
    image_shape=(3, 224, 224),
    num_classes=1000,
    preprocessing=Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    read=read,
    files={"test": (DataFile(ARCHIVE, 15998051, "5966385242abcbc383084294eb7eca42eed2efe7825b4258d7c608c72a0fc1e1"),)},
)
