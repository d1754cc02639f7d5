"""ResNet-18 and ResNet-50 for ImageNet, with torchvision's names; the stride of a bottleneck is in its 3x3 layer.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, table 1; names, parameter counts and
the place of the stride ("v1.5") as in torchvision.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from workloads.models.blocks import conv_bn, he_init

ENTRIES: dict[str, dict[str, object]] = {
    "resnet18": {
        "summary": "ResNet-18, basic blocks 2-2-2-2",
        "input_shape": (3, 224, 224),
        "num_classes": 1000,
        "data": "imagenet_samples",
        "parameters": 11_689_512,
        "source": "torchvision resnet18",
        "options": {"blocks": (2, 2, 2, 2), "bottleneck": False},
    },
    "resnet50": {
        "summary": "ResNet-50, bottlenecks 3-4-6-3",
        "input_shape": (3, 224, 224),
        "num_classes": 1000,
        "data": "imagenet_samples",
        "parameters": 25_557_032,
        "source": "torchvision resnet50",
        "options": {"blocks": (3, 4, 6, 3), "bottleneck": True},
    },
}


class BasicBlock(nn.Module):
    """(n, c, h, w) -> (n, width, h / stride, w / stride)."""

    expansion = 1

    def __init__(self, c: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(c, width, 3, stride)
        self.conv2, self.bn2 = conv_bn(width, width, 3)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """(n, c, h, w) -> (n, 4 width, h / stride, w / stride)."""

    expansion = 4

    def __init__(self, c: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(c, width, 1)
        self.conv2, self.bn2 = conv_bn(width, width, 3, stride)
        self.conv3, self.bn3 = conv_bn(width, width * self.expansion, 1)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """(n, 3, 224, 224) -> (n, num_classes)."""

    def __init__(self, num_classes: int, block: type[BasicBlock] | type[Bottleneck], blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(3, 64, 7, 2)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = self._stage(block, 64, 64, 1, blocks[0])
        self.layer2 = self._stage(block, 64 * block.expansion, 128, 2, blocks[1])
        self.layer3 = self._stage(block, 128 * block.expansion, 256, 2, blocks[2])
        self.layer4 = self._stage(block, 256 * block.expansion, 512, 2, blocks[3])
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(512 * block.expansion, num_classes)

    @staticmethod
    def _stage(
        block: type[BasicBlock] | type[Bottleneck], c: int, width: int, stride: int, count: int
    ) -> nn.Sequential:
        out = width * block.expansion
        downsample = None if c == out and stride == 1 else nn.Sequential(*conv_bn(c, out, 1, stride))
        return nn.Sequential(
            block(c, width, stride, downsample), *(block(out, width, 1, None) for _ in range(count - 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def create(num_classes: int, blocks: tuple[int, ...], bottleneck: bool) -> ResNet:
    """`blocks`: how many of them in each of the four stages."""
    return he_init(ResNet(num_classes, Bottleneck if bottleneck else BasicBlock, blocks))
