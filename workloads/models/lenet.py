"""LeNet-5 in Caffe's form: two convolutions and two linear layers, no activation between convolution and pooling.

Source: LeCun et al., "Gradient-based learning applied to document recognition", 1998, in the form of Caffe's
examples/mnist/lenet.prototxt (20-50-500-10), which the pruning literature means by "LeNet-5, 431k".
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

ENTRIES: dict[str, dict[str, object]] = {
    "lenet5": {
        "summary": "LeNet-5 of Caffe, 20-50-500-10",
        "input_shape": (1, 28, 28),
        "num_classes": 10,
        "data": "mnist",
        "parameters": 431_080,
        "source": "Caffe examples/mnist/lenet.prototxt; Han et al. 2015: 431K weights",
    },
}


class LeNet5(nn.Module):
    """(n, 1, 28, 28) -> (n, num_classes)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(50 * 4 * 4, 500)
        self.fc2 = nn.Linear(500, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv1(x), 2)
        x = F.max_pool2d(self.conv2(x), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def create(num_classes: int) -> LeNet5:
    return LeNet5(num_classes)
