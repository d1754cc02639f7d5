"""The network of the demo: small enough to train in seconds, with everything that pruning has to get right.

A stem, a residual block of 32 channels, a residual block of 64 channels whose shortcut is a strided 1x1 convolution,
a global mean and a linear layer; batch norm after every convolution. So there are free channels inside the blocks,
channels tied together by additions, and channels that reach the linear layer through the mean.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from workloads.models.blocks import conv_bn, he_init

ENTRIES: dict[str, dict[str, object]] = {
    "digits_cnn": {
        "summary": "small residual network for 8 x 8 digits, 32-64 channels (the demo)",
        "input_shape": (1, 8, 8),
        "num_classes": 10,
        "data": "digits",
        "parameters": 77_290,
        "source": "this project",
    },
}


class Block(nn.Module):
    """(n, c, h, w) -> (n, k, h / stride, w / stride): two 3x3 convolutions and a shortcut added to them."""

    def __init__(self, c: int, k: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(c, k, 3, stride)
        self.conv2, self.bn2 = conv_bn(k, k, 3)
        self.shortcut = nn.Identity() if c == k else nn.Sequential(*conv_bn(c, k, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class DigitsCNN(nn.Module):
    """(n, 1, 8, 8) -> (n, num_classes)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv, self.bn = conv_bn(1, 32, 3)
        self.block1 = Block(32, 32, stride=1)
        self.block2 = Block(32, 64, stride=2)
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x)))
        return self.fc(self.block2(self.block1(x)).mean((2, 3)))


def create(num_classes: int) -> DigitsCNN:
    return he_init(DigitsCNN(num_classes))
