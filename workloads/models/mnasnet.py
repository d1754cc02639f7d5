"""MnasNet-B1, the form without squeeze and excitation, with torchvision's names.

It is very likely what runtimes call `mnasnet`: TensorFlow hosted this form (`mnasnet_1.0_224`, 4.4 M parameters), and
Paddle-Lite learnt the operators of a model named `tf_mnasnet` before its benchmark listed `mnasnet`. The benchmark
itself does not state the form.

Source: Tan et al., "MnasNet", CVPR 2019, and torchvision mnasnet1_0, whose layers and counts these are.
"""

from __future__ import annotations

from torch import Tensor, nn

from workloads.models.blocks import conv_bn, he_init

ENTRIES: dict[str, dict[str, object]] = {
    "mnasnet": {
        "summary": "MnasNet-B1, depth 1.0",
        "input_shape": (3, 224, 224),
        "num_classes": 1000,
        "data": "imagenet_samples",
        "parameters": 4_383_312,
        "source": "torchvision mnasnet1_0",
    },
}
STACKS = ((24, 3, 2, 3, 3), (40, 5, 2, 3, 3), (80, 5, 2, 6, 3), (96, 3, 1, 6, 2), (192, 5, 2, 6, 4), (320, 3, 1, 6, 1))
"""Output channels, kernel, stride of the first block, expansion, blocks."""


class InvertedResidual(nn.Module):
    """(n, c, h, w) -> (n, k, h / stride, w / stride): expand, depthwise, project; added to x where it fits."""

    def __init__(self, c: int, k: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = c * expansion
        expand = (*conv_bn(c, wide, 1), nn.ReLU())
        depthwise = (*conv_bn(wide, wide, kernel, stride, groups=wide), nn.ReLU())
        self.layers = nn.Sequential(*expand, *depthwise, *conv_bn(wide, k, 1))
        self.has_shortcut = stride == 1 and c == k

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.has_shortcut else self.layers(x)


def stack(c: int, k: int, kernel: int, stride: int, expansion: int, blocks: int) -> nn.Sequential:
    """Blocks of one resolution; the first one has the stride."""
    first = InvertedResidual(c, k, kernel, stride, expansion)
    return nn.Sequential(first, *(InvertedResidual(k, k, kernel, 1, expansion) for _ in range(blocks - 1)))


class MnasNet(nn.Module):
    """(n, 3, 224, 224) -> (n, num_classes)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        stem = (*conv_bn(3, 32, 3, 2), nn.ReLU())
        separable = (*conv_bn(32, 32, 3, groups=32), nn.ReLU(), *conv_bn(32, 16, 1))
        stacks, c = [], 16
        for k, *rest in STACKS:
            stacks.append(stack(c, k, *rest))
            c = k
        self.layers = nn.Sequential(*stem, *separable, *stacks, *conv_bn(c, 1280, 1), nn.ReLU())
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.layers(x).mean((2, 3)))


def create(num_classes: int) -> MnasNet:
    return he_init(MnasNet(num_classes))
