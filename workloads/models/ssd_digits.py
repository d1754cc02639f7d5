"""A small single-shot detector for digits on a 64 x 64 canvas: two feature maps, each with a class and a box head.

Five convolutions with batch norm; the third ends at stride 4 and sees small digits, the fifth at stride 8 and sees
large ones. Every cell of a feature map has two anchor boxes, upright as digits are, one of them narrow as a 1 is.
`pruning.detection` makes anchors of `GRIDS`, losses, and boxes of answers.

Source: after Liu et al., "SSD: Single Shot MultiBox Detector", ECCV 2016, section 2.1. The widths are ours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from workloads.models.blocks import conv_bn, he_init

ENTRIES: dict[str, dict[str, object]] = {
    "ssd_digits": {
        "summary": "SSD-style detector of digits, 64 x 64; answers boxes and class logits of 640 anchors",
        "input_shape": (1, 64, 64),
        "num_classes": 10,
        "data": "",
        "parameters": 205_292,
        "source": "after Liu et al. 2016; data: workloads.data.detection",
        "task": "detection",
    },
}
GRIDS = (
    (16, ((0.12, 0.16), (0.05, 0.16))),
    (8, ((0.24, 0.32), (0.10, 0.32))),
)
"""Cells on a side, and width and height of each cell's anchors as fractions of the picture, by feature map."""


def stage(c: int, k: int, stride: int) -> nn.Sequential:
    """(n, c, h, w) -> (n, k, h / stride, w / stride)."""
    return nn.Sequential(*conv_bn(c, k, 3, stride), nn.ReLU())


class SSDDigits(nn.Module):
    """(n, 1, 64, 64) -> box offsets (n, anchors, 4) and logits (n, anchors, 1 + num_classes), background first."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.outputs = 1 + num_classes
        self.fine = nn.Sequential(stage(1, 16, 2), stage(16, 32, 2), stage(32, 64, 1))
        self.coarse = nn.Sequential(stage(64, 96, 2), stage(96, 96, 1))
        anchors = [len(sizes) for _, sizes in GRIDS]
        self.boxes = nn.ModuleList(nn.Conv2d(c, 4 * m, 3, padding=1) for c, m in zip((64, 96), anchors, strict=True))
        self.classes = nn.ModuleList(
            nn.Conv2d(c, self.outputs * m, 3, padding=1) for c, m in zip((64, 96), anchors, strict=True)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.fine(x)
        maps = (fine, self.coarse(fine))
        boxes = [_by_anchor(head(y), 4) for head, y in zip(self.boxes, maps, strict=True)]
        logits = [_by_anchor(head(y), self.outputs) for head, y in zip(self.classes, maps, strict=True)]
        return torch.cat(boxes, 1), torch.cat(logits, 1)


def _by_anchor(x: Tensor, numbers: int) -> Tensor:
    """(n, anchors a cell x numbers, h, w) -> (n, h x w x anchors a cell, numbers)."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, numbers)


def create(num_classes: int) -> SSDDigits:
    return he_init(SSDDigits(num_classes))
