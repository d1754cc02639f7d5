"""MobileNetV2: inverted residuals, with torchvision's names.

The known weights come from Keras, which pads strided layers at the right and bottom only. Their kernels are stored
rotated by 180 degrees, so that this network with its symmetric padding computes exactly the original one on the
*rotated* picture: feed `(rgb / 127.5 - 1)` with a half turn, as the entry's `preprocessing` does. Upright pictures
lose about ten points. Batch norms are folded in these weights (weight 1, mean 0), so their gamma says nothing.

Other widths scale the channels between blocks to a multiple of 8 and leave the last convolution at 1280 channels
below width 1; another `expansion` changes the inner channels of every block but the first.

Source: Sandler et al., "MobileNetV2", CVPR 2018, table 2; names and parameter count as in torchvision.
"""

from __future__ import annotations

from torch import Tensor, nn

from workloads.models.blocks import conv_bn, he_init, scaled

ENTRIES: dict[str, dict[str, object]] = {
    "mobilenet_v2": {
        "summary": "MobileNetV2, width 1.0, input -1 .. 1 and turned by 180 degrees",
        "input_shape": (3, 224, 224),
        "num_classes": 1000,
        "data": "imagenet_samples",
        "parameters": 3_504_872,
        "source": "torchvision mobilenet_v2; weights of Keras Applications",
        "preprocessing": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "half_turn": True},
        "weights": "mobilenet_v2_imagenet_fp16.safetensors",
    },
}
STAGES = ((16, 1, 1), (24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
"""Output channels, blocks, stride of the first block."""


def conv_bn_relu6(c: int, k: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(*conv_bn(c, k, kernel, stride, groups), nn.ReLU6())


class InvertedResidual(nn.Module):
    """(n, c, h, w) -> (n, k, h / stride, w / stride): expand, depthwise 3x3, project; added to x where it fits."""

    def __init__(self, c: int, k: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = c * expansion
        expand = [conv_bn_relu6(c, wide, 1)] if expansion > 1 else []
        self.conv = nn.Sequential(*expand, conv_bn_relu6(wide, wide, 3, stride, groups=wide), *conv_bn(wide, k, 1))
        self.has_shortcut = stride == 1 and c == k

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.has_shortcut else self.conv(x)


class MobileNetV2(nn.Module):
    """(n, 3, h, w) -> (n, num_classes), h and w multiples of 32."""

    def __init__(self, num_classes: int, width: float, expansion: int) -> None:
        super().__init__()
        c, last = scaled(32, width), scaled(1280, max(1.0, width))
        layers: list[nn.Module] = [conv_bn_relu6(3, c, 3, 2)]
        for channels, count, stride in STAGES:
            k = scaled(channels, width)
            for number in range(count):
                # The very first block does not expand: it sees the stem's channels, which are many for a picture.
                inner = 1 if len(layers) == 1 else expansion
                layers.append(InvertedResidual(c, k, stride if number == 0 else 1, inner))
                c = k
        self.features = nn.Sequential(*layers, conv_bn_relu6(c, last, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def create(num_classes: int, width: float = 1.0, expansion: int = 6) -> MobileNetV2:
    """`width` scales the channels between blocks, `expansion` those inside."""
    return he_init(MobileNetV2(num_classes, width, expansion))
