"""MobileNetV1 at several widths and resolutions: a stem and thirteen pairs of depthwise and pointwise convolutions.

Names are `mobilenet_v1` for width 1.0 at 224 x 224, and `mobilenet_v1_<width>_<size>` for the others; channels of
other widths go to the nearest multiple of 8. `mobilenet_v1_vww` is the visual wake words network of MLPerf Tiny.

Source: Howard et al., "MobileNets", 2017, table 1; parameter counts are the trainable ones of Keras Applications
(the paper's table 6 rounds them to 4.2, 2.6, 1.3 and 0.5 M). Differs: ReLU6 for ReLU, as in both TensorFlow releases,
padding is symmetric, where TensorFlow pads strided layers at the right and bottom (the same shapes and MACs), and the
convolutions of MLPerf Tiny have a bias of their own beside the batch norm (221,794 numbers with its statistics).
"""

from __future__ import annotations

from torch import Tensor, nn

from workloads.models.blocks import conv_bn, he_init, scaled

ENTRIES: dict[str, dict[str, object]] = {
    "mobilenet_v1": {
        "summary": "MobileNetV1, width 1.0, 224 x 224",
        "input_shape": (3, 224, 224),
        "num_classes": 1000,
        "data": "imagenet_samples",
        "parameters": 4_231_976,
        "source": "Howard et al. 2017, table 6: 4.2M",
        "options": {"width": 1.0},
    },
    "mobilenet_v1_0.75_224": {
        "summary": "MobileNetV1, width 0.75, 224 x 224",
        "input_shape": (3, 224, 224),
        "num_classes": 1000,
        "data": "imagenet_samples",
        "parameters": 2_585_560,
        "source": "Howard et al. 2017, table 6: 2.6M",
        "options": {"width": 0.75},
    },
    "mobilenet_v1_0.5_128": {
        "summary": "MobileNetV1, width 0.5, 128 x 128",
        "input_shape": (3, 128, 128),
        "num_classes": 1000,
        "data": "imagenet_samples",
        "parameters": 1_331_592,
        "source": "Howard et al. 2017, table 6: 1.3M; the network that Eyeriss v2 is measured on",
        "options": {"width": 0.5},
    },
    "mobilenet_v1_0.25_128": {
        "summary": "MobileNetV1, width 0.25, 128 x 128",
        "input_shape": (3, 128, 128),
        "num_classes": 1000,
        "data": "imagenet_samples",
        "parameters": 470_072,
        "source": "Howard et al. 2017, table 6: 0.5M",
        "options": {"width": 0.25},
    },
    "mobilenet_v1_vww": {
        "summary": "MobileNetV1 of MLPerf Tiny, visual wake words: width 0.25, 96 x 96, 2 classes",
        "input_shape": (3, 96, 96),
        "num_classes": 2,
        "data": "",
        "parameters": 213_586,
        "source": "MLCommons MLPerf Tiny v0.5, visual wake words",
        "options": {"width": 0.25},
    },
}
BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))


class MobileNetV1(nn.Module):
    """(n, 3, h, w) -> (n, num_classes), h and w multiples of 32."""

    def __init__(self, num_classes: int, width: float) -> None:
        super().__init__()
        c = scaled(32, width)
        self.stem = nn.Sequential(*conv_bn(3, c, 3, 2), nn.ReLU6())
        blocks: list[nn.Module] = []
        for channels, stride in BLOCKS:
            k = scaled(channels, width)
            blocks.append(separable(c, k, stride))
            c = k
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(c, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.blocks(self.stem(x)).mean((2, 3)))


def separable(c: int, k: int, stride: int) -> nn.Sequential:
    """A depthwise 3x3 and a pointwise convolution, each with batch norm and ReLU6."""
    depthwise, pointwise = conv_bn(c, c, 3, stride, groups=c), conv_bn(c, k, 1)
    return nn.Sequential(*depthwise, nn.ReLU6(), *pointwise, nn.ReLU6())


def create(num_classes: int, width: float) -> MobileNetV1:
    """`width` scales the channels of every layer."""
    return he_init(MobileNetV1(num_classes, width))
