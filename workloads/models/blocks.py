"""What several model files share: a convolution with batch norm, and He's initialisation."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


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
