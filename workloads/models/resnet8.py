"""ResNet-8 of MLPerf Tiny: the image classification reference model, three residual blocks.

Converted from Keras, so batch norm has eps 1e-3, every convolution has a bias, a strided convolution pads at the
right and bottom only, and the input is RGB from 0 to 255 without normalisation.

Source: MLCommons, MLPerf Tiny v0.5 reference model `resnet_v1_eembc` (Apache 2.0); float accuracy about 87 %.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from workloads.models.blocks import he_init

ENTRIES: dict[str, dict[str, object]] = {
    "resnet8": {
        "summary": "ResNet-8 of MLPerf Tiny for CIFAR-10, input 0 .. 255",
        "input_shape": (3, 32, 32),
        "num_classes": 10,
        "data": "cifar10",
        "parameters": 78_186,
        "source": "MLCommons MLPerf Tiny v0.5, image classification",
        "preprocessing": {
            "mean": (0.0, 0.0, 0.0),
            "std": (0.00392156862745098, 0.00392156862745098, 0.00392156862745098),
        },
        "weights": "mlperf_tiny_resnet8_cifar10.safetensors",
    },
}
KERAS_EPS = 1e-3


def conv3x3(c: int, k: int, stride: int = 1) -> nn.Conv2d:
    """Size-keeping at stride 1; at stride 2 the caller pads at the right and bottom."""
    return nn.Conv2d(c, k, 3, stride, padding=1 if stride == 1 else 0)


class Stem(nn.Module):
    """(n, 3, h, w) -> (n, 16, h, w)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv3x3(3, 16)
        self.bn = nn.BatchNorm2d(16, eps=KERAS_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Block(nn.Module):
    """(n, c, h, w) -> (n, k, h / stride, w / stride); the shortcut is a 1x1 convolution where the shape changes."""

    def __init__(self, c: int, k: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = conv3x3(c, k, stride)
        self.bn1 = nn.BatchNorm2d(k, eps=KERAS_EPS)
        self.conv2 = conv3x3(k, k)
        self.bn2 = nn.BatchNorm2d(k, eps=KERAS_EPS)
        self.down = nn.Conv2d(c, k, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (0, 1, 0, 1)) if self.stride > 1 else x
        y = F.relu(self.bn1(self.conv1(padded)))
        return F.relu(self.bn2(self.conv2(y)) + self.down(x))


class ResNet8(nn.Module):
    """(n, 3, 32, 32) -> (n, num_classes)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = Stem()
        self.block1 = Block(16, 16, stride=1)
        self.block2 = Block(16, 32, stride=2)
        self.block3 = Block(32, 64, stride=2)
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.stem(x))))
        return self.fc(x.mean((2, 3)))


def create(num_classes: int) -> ResNet8:
    return he_init(ResNet8(num_classes))
