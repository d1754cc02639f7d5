"""SqueezeNet 1.0 and 1.1: fire modules and no linear layer, with torchvision's names.

The known weights of 1.0 are those of Deep Compression: a pruned network, 33.4 % of its weights are non-zero. They
take RGB from 0 to 255 minus (123, 117, 104).

Source: Iandola et al., "SqueezeNet", 2016, table 1; names, counts and pooling of torchvision. Weights: Han, Mao,
Dally, "Deep Compression", ICLR 2016, published accuracy 57.5 % (BSD licence).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workloads.models.blocks import he_init

ENTRIES: dict[str, dict[str, object]] = {
    "squeezenet1_0": {
        "summary": "SqueezeNet 1.0, input 0 .. 255 minus a mean",
        "input_shape": (3, 224, 224),
        "num_classes": 1000,
        "data": "imagenet_samples",
        "parameters": 1_248_424,
        "source": "torchvision squeezenet1_0",
        "preprocessing": {
            "mean": (0.4823529411764706, 0.4588235294117647, 0.40784313725490196),
            "std": (0.00392156862745098, 0.00392156862745098, 0.00392156862745098),
        },
        "weights": "squeezenet1_0_pruned_imagenet.safetensors",
        "options": {"version": "1.0"},
    },
    "squeezenet1_1": {
        "summary": "SqueezeNet 1.1, 2.4 x fewer MACs than 1.0",
        "input_shape": (3, 224, 224),
        "num_classes": 1000,
        "data": "imagenet_samples",
        "parameters": 1_235_496,
        "source": "torchvision squeezenet1_1",
        "options": {"version": "1.1"},
    },
}


class Fire(nn.Module):
    """(n, c, h, w) -> (n, 2 expand, h, w): squeeze to few channels, expand by 1x1 and by 3x3, concatenate."""

    def __init__(self, c: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(c, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], 1)


def _pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(3, 2, ceil_mode=True)


def _features_1_0() -> nn.Sequential:
    stem = [nn.Conv2d(3, 96, 7, stride=2), nn.ReLU(), _pool()]
    early = [Fire(96, 16, 64), Fire(128, 16, 64), Fire(128, 32, 128), _pool()]
    middle = [Fire(256, 32, 128), Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), _pool()]
    return nn.Sequential(*stem, *early, *middle, Fire(512, 64, 256))


def _features_1_1() -> nn.Sequential:
    stem = [nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(), _pool()]
    early = [Fire(64, 16, 64), Fire(128, 16, 64), _pool(), Fire(128, 32, 128), Fire(256, 32, 128), _pool()]
    late = [Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256)]
    return nn.Sequential(*stem, *early, *late)


class SqueezeNet(nn.Module):
    """(n, 3, 224, 224) -> (n, num_classes)."""

    def __init__(self, num_classes: int, features: nn.Sequential) -> None:
        super().__init__()
        self.features = features
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Conv2d(512, num_classes, 1), nn.ReLU(), nn.AdaptiveAvgPool2d((1, 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x)).flatten(1)


def create(num_classes: int, version: str) -> SqueezeNet:
    """`version`: "1.0" or "1.1"."""
    features = _features_1_0() if version == "1.0" else _features_1_1()
    return he_init(SqueezeNet(num_classes, features))
