"""DS-CNN of MLPerf Tiny: keyword spotting on 49 frames of 10 cepstral coefficients.

A 10x4 convolution of stride 2, four pairs of depthwise 3x3 and pointwise convolutions, all with 64 channels, the mean
over what is left of the sound, and twelve classes: ten words, silence and unknown. Converted from Keras: every
convolution has a bias beside its batch norm, and the strided one pads 4 rows on top and 5 below.

Source: MLCommons, MLPerf Tiny v0.5 reference model `kws` (Apache 2.0), after Zhang et al., "Hello Edge", 2017;
24,908 numbers with the statistics of the batch norms.
"""

from __future__ import annotations

from torch import Tensor, nn

from workloads.models.blocks import he_init

ENTRIES: dict[str, dict[str, object]] = {
    "ds_cnn": {
        "summary": "DS-CNN of MLPerf Tiny, keyword spotting: 49 x 10 input, 12 classes",
        "input_shape": (1, 49, 10),
        "num_classes": 12,
        "data": "",
        "parameters": 23_756,
        "source": "MLCommons MLPerf Tiny v0.5, keyword spotting",
    },
}
CHANNELS = 64
PAIRS = 4


class DSCNN(nn.Module):
    """(n, 1, 49, 10) -> (n, num_classes)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.pad = nn.ZeroPad2d((1, 1, 4, 5))
        self.stem = _with_norm(nn.Conv2d(1, CHANNELS, (10, 4), stride=2))
        self.blocks = nn.Sequential(*(_pair() for _ in range(PAIRS)))
        self.classifier = nn.Linear(CHANNELS, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.blocks(self.stem(self.pad(x))).mean((2, 3)))


def _with_norm(conv: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(conv, nn.BatchNorm2d(CHANNELS), nn.ReLU())


def _pair() -> nn.Sequential:
    depthwise = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS)
    return nn.Sequential(_with_norm(depthwise), _with_norm(nn.Conv2d(CHANNELS, CHANNELS, 1)))


def create(num_classes: int) -> DSCNN:
    return he_init(DSCNN(num_classes))
