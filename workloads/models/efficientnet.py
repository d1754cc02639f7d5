"""EfficientNet-B0: inverted residuals with squeeze and excitation, with torchvision's names.

For structure, MACs and parameters: no weights are known here. torchvision's blocks drop out at random while training
(stochastic depth), which has no parameters and is left out.

Source: Tan and Le, "EfficientNet", ICML 2019, table 1; names and parameter count as in torchvision.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from workloads.models.blocks import conv_bn, he_init

ENTRIES: dict[str, dict[str, object]] = {
    "efficientnet_b0": {
        "summary": "EfficientNet-B0, squeeze and excitation, SiLU",
        "input_shape": (3, 224, 224),
        "num_classes": 1000,
        "data": "imagenet_samples",
        "parameters": 5_288_548,
        "source": "torchvision efficientnet_b0",
    },
}
STAGES = (
    (16, 3, 1, 1, 1), (24, 3, 2, 6, 2), (40, 5, 2, 6, 2), (80, 3, 2, 6, 3), (112, 5, 1, 6, 3), (192, 5, 2, 6, 4),
    (320, 3, 1, 6, 1),
)  # fmt: skip
"""Output channels, kernel, stride of the first block, expansion, blocks."""


def conv_bn_silu(c: int, k: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(*conv_bn(c, k, kernel, stride, groups), nn.SiLU())


class SqueezeExcitation(nn.Module):
    """(n, c, h, w) -> the same: each channel times a factor 0 .. 1 made from the means of all channels."""

    def __init__(self, c: int, squeezed: int) -> None:
        super().__init__()
        self.fc1, self.fc2, self.activation = nn.Conv2d(c, squeezed, 1), nn.Conv2d(squeezed, c, 1), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3), keepdim=True)
        return torch.sigmoid(self.fc2(self.activation(self.fc1(means)))) * x


class MBConv(nn.Module):
    """(n, c, h, w) -> (n, k, h / stride, w / stride): expand, depthwise, excite, project; added to x where it fits."""

    def __init__(self, c: int, k: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = c * expansion
        expand = [conv_bn_silu(c, wide, 1)] if expansion > 1 else []
        depthwise = conv_bn_silu(wide, wide, kernel, stride, groups=wide)
        project = nn.Sequential(*conv_bn(wide, k, 1))
        self.block = nn.Sequential(*expand, depthwise, SqueezeExcitation(wide, c // 4), project)
        self.has_shortcut = stride == 1 and c == k

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x) if self.has_shortcut else self.block(x)


class EfficientNet(nn.Module):
    """(n, 3, h, w) -> (n, num_classes), h and w multiples of 32."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        stages, c = [conv_bn_silu(3, 32, 3, 2)], 32
        for k, kernel, stride, expansion, blocks in STAGES:
            first = MBConv(c, k, kernel, stride, expansion)
            stages.append(nn.Sequential(first, *(MBConv(k, k, kernel, 1, expansion) for _ in range(blocks - 1))))
            c = k
        self.features = nn.Sequential(*stages, conv_bn_silu(c, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def create(num_classes: int) -> EfficientNet:
    return he_init(EfficientNet(num_classes))
