"""AlexNet in its single-column form, with torchvision's names.

Source: Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014, as in torchvision. Differs
from the network of 2012: no groups, no local response normalisation, 64-192-384-256-256 channels.
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
}


class AlexNet(nn.Module):
    """(n, 3, 224, 224) -> (n, num_classes)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        self.classifier = nn.Sequential(
            nn.Dropout(),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Linear(4096, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def create(num_classes: int) -> AlexNet:
    return he_init(AlexNet(num_classes))
