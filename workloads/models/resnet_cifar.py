"""ResNet-20/32/44/56 for CIFAR-10: three stages of 16, 32, 64 channels, n blocks each, depth 6 n + 2.

Where a stage changes the shape the shortcut has no parameters (option A): every second pixel, and zero channels
added, half in front and half behind. Names of the state dict are those of the published weights.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2; weights and names of
Idelbayev, "Proper ResNet Implementation for CIFAR10/CIFAR100 in PyTorch" (published errors 8.27, 7.37, 6.90, 6.61 %).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from workloads.models.blocks import conv_bn, he_init

ENTRIES: dict[str, dict[str, object]] = {
    "resnet20": {
        "summary": "ResNet-20 for CIFAR-10, option-A shortcuts",
        "input_shape": (3, 32, 32),
        "num_classes": 10,
        "data": "cifar10",
        "parameters": 269_722,
        "source": "He et al. 2016, table 6: 0.27M",
        "weights": "resnet20_cifar10.safetensors",
        "options": {"depth": 20},
    },
    "resnet32": {
        "summary": "ResNet-32 for CIFAR-10, option-A shortcuts",
        "input_shape": (3, 32, 32),
        "num_classes": 10,
        "data": "cifar10",
        "parameters": 464_154,
        "source": "He et al. 2016, table 6: 0.46M",
        "weights": "resnet32_cifar10.safetensors",
        "options": {"depth": 32},
    },
    "resnet44": {
        "summary": "ResNet-44 for CIFAR-10, option-A shortcuts",
        "input_shape": (3, 32, 32),
        "num_classes": 10,
        "data": "cifar10",
        "parameters": 658_586,
        "source": "He et al. 2016, table 6: 0.66M",
        "weights": "resnet44_cifar10.safetensors",
        "options": {"depth": 44},
    },
    "resnet56": {
        "summary": "ResNet-56 for CIFAR-10, option-A shortcuts",
        "input_shape": (3, 32, 32),
        "num_classes": 10,
        "data": "cifar10",
        "parameters": 853_018,
        "source": "He et al. 2016, table 6: 0.85M",
        "weights": "resnet56_cifar10.safetensors",
        "options": {"depth": 56},
    },
}


class PaddedShortcut(nn.Module):
    """(n, c, h, w) -> (n, k, h / stride, w / stride): every stride-th pixel, zero channels before and after.

    The counts are attributes, so that pruning can change them: `channels_before`, `channels_after`.
    """

    def __init__(self, c: int, k: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.channels_before = (k - c) // 2
        self.channels_after = k - c - self.channels_before

    def forward(self, x: Tensor) -> Tensor:
        picked = x[:, :, :: self.stride, :: self.stride]
        return F.pad(picked, (0, 0, 0, 0, self.channels_before, self.channels_after))


class BasicBlock(nn.Module):
    """(n, c, h, w) -> (n, k, h / stride, w / stride)."""

    def __init__(self, c: int, k: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(c, k, 3, stride)
        self.conv2, self.bn2 = conv_bn(k, k, 3)
        self.shortcut = nn.Identity() if stride == 1 and k == c else PaddedShortcut(c, k, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """(n, 3, 32, 32) -> (n, num_classes)."""

    def __init__(self, num_classes: int, blocks: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(3, 16, 3)
        self.layer1 = self._stage(16, 16, 1, blocks)
        self.layer2 = self._stage(16, 32, 2, blocks)
        self.layer3 = self._stage(32, 64, 2, blocks)
        self.linear = nn.Linear(64, num_classes)

    @staticmethod
    def _stage(c: int, k: int, stride: int, blocks: int) -> nn.Sequential:
        return nn.Sequential(BasicBlock(c, k, stride), *(BasicBlock(k, k, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def create(num_classes: int, depth: int) -> CifarResNet:
    """`depth` counts the layers with weights: 6 n + 2."""
    return he_init(CifarResNet(num_classes, blocks=(depth - 2) // 6))
