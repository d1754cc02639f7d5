"""The deep autoencoder of MLPerf Tiny: anomalies in the sound of a machine.

Five frames of 128 mel bins go through 128-128-128-128-8-128-128-128-128 to as many numbers; a sound that comes out
unlike it went in is an anomaly. Nothing but linear layers, each but the last with a batch norm and a ReLU. One input is
one window of a clip; the benchmark's accuracy takes the mean over 196 windows, its latency is that of one.

Source: MLCommons, MLPerf Tiny v0.5 reference model `ad01` (Apache 2.0), after the baseline of DCASE 2020 task 2;
269,992 numbers with the statistics of the batch norms.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

ENTRIES: dict[str, dict[str, object]] = {
    "autoencoder": {
        "summary": "deep autoencoder of MLPerf Tiny, anomaly detection: 640 numbers in and out",
        "input_shape": (640,),
        "num_classes": 640,
        "data": "",
        "parameters": 267_928,
        "source": "MLCommons MLPerf Tiny v0.5, anomaly detection",
    },
}
SIZES = (640, 128, 128, 128, 128, 8, 128, 128, 128, 128)


class Autoencoder(nn.Module):
    """(n, 640) -> (n, outputs)."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        hidden = (nn.Sequential(nn.Linear(c, k), nn.BatchNorm1d(k), nn.ReLU()) for c, k in pairwise(SIZES))
        self.layers = nn.Sequential(*hidden, nn.Linear(SIZES[-1], outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def create(num_classes: int) -> Autoencoder:
    return Autoencoder(num_classes)
