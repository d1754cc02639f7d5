"""AlexNet twice: in its single-column form with torchvision's names, and as published in 2012.

The accelerator papers mean the network of 2012: 227 x 227 pixels, 96-256-384-384-256 channels, and two groups in the
second, fourth and fifth convolution, since it was trained on two GPUs.

Sources: Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014, as in torchvision;
Krizhevsky, Sutskever and Hinton, "ImageNet Classification with Deep Convolutional Neural Networks", NIPS 2012. Differs
from 2012: no local response normalisation, which has no weights and which no accelerator's table prices.
"""

from __future__ import annotations

from torch import Tensor, nn

from workloads.models.blocks import he_init

ENTRIES: dict[str, dict[str, object]] = {
    "alexnet": {
        "summary": "AlexNet, single column",
        "input_shape": (3, 224, 224),
        "num_classes": 1000,
        "data": "imagenet_samples",
        "parameters": 61_100_840,
        "source": "torchvision alexnet",
    },
    "alexnet_2012": {
        "summary": "AlexNet of 2012 with two groups, 227 x 227, without local response normalisation",
        "input_shape": (3, 227, 227),
        "num_classes": 1000,
        "data": "imagenet_samples",
        "parameters": 60_965_224,
        "source": "Krizhevsky et al. 2012; the count is that of Caffe's bvlc_alexnet",
        "options": {"year": 2012},
    },
}


class AlexNet(nn.Module):
    """(n, 3, h, w) -> (n, num_classes)."""

    def __init__(self, num_classes: int, convolutions: list[nn.Conv2d]) -> None:
        super().__init__()
        first, second, third, fourth, fifth = convolutions
        self.features = nn.Sequential(
            *(first, nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(second, nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(third, nn.ReLU()),
            *(fourth, nn.ReLU()),
            *(fifth, nn.ReLU(), nn.MaxPool2d(3, 2)),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        self.classifier = nn.Sequential(
            *(nn.Dropout(), nn.Linear(256 * 6 * 6, 4096), nn.ReLU()),
            *(nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU()),
            nn.Linear(4096, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def _single_column() -> list[nn.Conv2d]:
    early = [nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.Conv2d(64, 192, 5, padding=2)]
    return early + [nn.Conv2d(c, k, 3, padding=1) for c, k in ((192, 384), (384, 256), (256, 256))]


def _two_columns() -> list[nn.Conv2d]:
    early = [nn.Conv2d(3, 96, 11, stride=4), nn.Conv2d(96, 256, 5, padding=2, groups=2)]
    late = ((256, 384, 1), (384, 384, 2), (384, 256, 2))
    return early + [nn.Conv2d(c, k, 3, padding=1, groups=groups) for c, k, groups in late]


def create(num_classes: int, year: int = 2014) -> AlexNet:
    """`year`: 2014 for the single column, 2012 for two."""
    return he_init(AlexNet(num_classes, _two_columns() if year == 2012 else _single_column()))
