"""MixNet-S: depthwise convolutions of several kernel sizes side by side, squeeze and excitation, with timm's names.

A `Mixed` convolution cuts the channels into as many equal parts as it has kernels, and convolves each part with its
own; where the kernels are all 1x1 it is a convolution of two groups. The batch norm after it follows a concatenation,
so that it folds into no layer: a graph has it as a layer of its own, as runtimes do that fold into single layers only.
For structure, MACs and parameters: no weights are known here. Padding is symmetric, as in timm's `mixnet_s`
(`tf_mixnet_s` pads as TensorFlow does).

Source: Tan and Le, "MixConv: Mixed Depthwise Convolutional Kernels", BMVC 2019, figure 5 (MixNet-S); kernels, splits
and names as in timm.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from workloads.models.blocks import he_init

ENTRIES: dict[str, dict[str, object]] = {
    "mixnet_s": {
        "summary": "MixNet-S, depthwise kernels of 3x3 to 11x11 side by side",
        "input_shape": (3, 224, 224),
        "num_classes": 1000,
        "data": "imagenet_samples",
        "parameters": 4_134_606,
        "source": "timm mixnet_s",
    },
}
ONE, TWO = (1,), (1, 1)
THREE, FIVE, SEVEN, NINE, ELEVEN = (tuple(range(3, largest + 1, 2)) for largest in (3, 5, 7, 9, 11))


class Row(NamedTuple):
    """One block: output channels, kernels of its three convolutions, channels of the squeeze over those of the input.

    A block without a squeeze has ReLU, one with it SiLU.
    """

    k: int
    stride: int
    expansion: int
    expand: tuple[int, ...]
    kernels: tuple[int, ...]
    project: tuple[int, ...]
    squeeze: float


STAGES = (
    (Row(24, 2, 6, TWO, THREE, TWO, 0.0), Row(24, 1, 3, TWO, THREE, TWO, 0.0)),
    (Row(40, 2, 6, ONE, SEVEN, ONE, 0.5), *[Row(40, 1, 6, TWO, FIVE, TWO, 0.5)] * 3),
    (Row(80, 2, 6, ONE, SEVEN, TWO, 0.25), *[Row(80, 1, 6, ONE, FIVE, TWO, 0.25)] * 2),
    (Row(120, 1, 6, TWO, SEVEN, TWO, 0.5), *[Row(120, 1, 3, TWO, NINE, TWO, 0.5)] * 2),
    (Row(200, 2, 6, ONE, ELEVEN, ONE, 0.5), *[Row(200, 1, 6, ONE, NINE, TWO, 0.5)] * 2),
)


class Mixed(nn.ModuleDict):
    """(n, c, h, w) -> (n, k, h / stride, w / stride): equal parts of the channels, a kernel size for each."""

    def __init__(self, c: int, k: int, kernels: tuple[int, ...], stride: int, is_depthwise: bool) -> None:
        parts = len(kernels)
        convs = (conv(c // parts, k // parts, (kernel,), stride, is_depthwise) for kernel in kernels)
        super().__init__({str(number): each for number, each in enumerate(convs)})
        self.width = c // parts

    def forward(self, x: Tensor) -> Tensor:
        parts = x.split(self.width, 1)
        return torch.cat([each(parts[number]) for number, each in enumerate(self.values())], 1)


def conv(c: int, k: int, kernels: tuple[int, ...], stride: int = 1, is_depthwise: bool = False) -> nn.Module:
    """One convolution without bias, or several side by side."""
    if len(kernels) > 1:
        return Mixed(c, k, kernels, stride, is_depthwise)
    (kernel,) = kernels
    return nn.Conv2d(c, k, kernel, stride, kernel // 2, groups=c if is_depthwise else 1, bias=False)


class SqueezeExcite(nn.Module):
    """(n, c, h, w) -> the same: each channel times a factor 0 .. 1 made from the means of all channels."""

    def __init__(self, c: int, squeezed: int) -> None:
        super().__init__()
        self.conv_reduce, self.act1 = nn.Conv2d(c, squeezed, 1), nn.SiLU()
        self.conv_expand = nn.Conv2d(squeezed, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.conv_expand(self.act1(self.conv_reduce(means))))


class DepthwiseSeparable(nn.Module):
    """(n, c, h, w) -> the same: depthwise and pointwise, added to x."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv_dw, self.bn1 = conv(c, c, (3,), is_depthwise=True), nn.BatchNorm2d(c)
        self.conv_pw, self.bn2 = conv(c, c, ONE), nn.BatchNorm2d(c)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bn2(self.conv_pw(torch.relu(self.bn1(self.conv_dw(x)))))


class InvertedResidual(nn.Module):
    """(n, c, h, w) -> (n, k, h / stride, w / stride): expand, mix, excite, project; added to x where it fits."""

    def __init__(self, c: int, row: Row) -> None:
        super().__init__()
        wide = c * row.expansion
        self.act = nn.SiLU() if row.squeeze else nn.ReLU()
        self.conv_pw, self.bn1 = conv(c, wide, row.expand), nn.BatchNorm2d(wide)
        self.conv_dw, self.bn2 = conv(wide, wide, row.kernels, row.stride, is_depthwise=True), nn.BatchNorm2d(wide)
        self.se = SqueezeExcite(wide, round(c * row.squeeze)) if row.squeeze else nn.Identity()
        self.conv_pwl, self.bn3 = conv(wide, row.k, row.project), nn.BatchNorm2d(row.k)
        self.has_shortcut = row.stride == 1 and c == row.k

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn1(self.conv_pw(x)))
        y = self.se(self.act(self.bn2(self.conv_dw(y))))
        y = self.bn3(self.conv_pwl(y))
        return x + y if self.has_shortcut else y


class MixNet(nn.Module):
    """(n, 3, h, w) -> (n, num_classes), h and w multiples of 32."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv_stem, self.bn1 = conv(3, 16, (3,), 2), nn.BatchNorm2d(16)
        stages, c = [nn.Sequential(DepthwiseSeparable(16))], 16
        for rows in STAGES:
            blocks = []
            for row in rows:
                blocks.append(InvertedResidual(c, row))
                c = row.k
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.conv_head, self.bn2 = conv(c, 1536, ONE), nn.BatchNorm2d(1536)
        self.classifier = nn.Linear(1536, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(torch.relu(self.bn1(self.conv_stem(x))))
        return self.classifier(torch.relu(self.bn2(self.conv_head(x))).mean((2, 3)))


def create(num_classes: int) -> MixNet:
    return he_init(MixNet(num_classes))
