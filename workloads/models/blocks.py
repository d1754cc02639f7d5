"""What several model files share: a convolution with batch norm, scaled channels, and He's initialisation."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def scaled(channels: int, width: float, multiple: int = 8) -> int:
    """Channels times width, to the nearest multiple of 8, and never below nine tenths of it.

    Source: the MobileNet releases of TensorFlow (`make_divisible`), torchvision alike.

    >>> scaled(32, 1.4), scaled(96, 0.5)
    (48, 48)
    """
    wanted = channels * width
    rounded = max(multiple, int(wanted + multiple / 2) // multiple * multiple)
    return rounded if rounded >= 0.9 * wanted else rounded + multiple


def conv_bn(c: int, k: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution without bias that keeps the size at stride 1, and the batch norm after it."""
    conv = nn.Conv2d(c, k, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(k)]


def he_init(model: M) -> M:
    """Convolutions from a normal distribution of variance 2 / fan-out, biases zero; all else as torch makes it.

    Source: He et al., "Delving Deep into Rectifiers", ICCV 2015, section 2.2, equation 14.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model
