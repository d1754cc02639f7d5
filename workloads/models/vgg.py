"""VGG-16: thirteen 3x3 convolutions in five stages, for ImageNet and in the form that is usual on CIFAR-10.

`vgg16` has torchvision's names and three linear layers. `vgg16_cifar` has batch norm after every convolution (which
keeps its bias), five poolings that leave one pixel, and a single linear layer 512 -> 10: the form of most filter
pruning papers, 14.7 M parameters.

Source: Simonyan and Zisserman, "Very Deep Convolutional Networks", ICLR 2015, configuration D; the CIFAR form as in
Liu, "Train CIFAR10 with PyTorch" (github.com/kuangliu/pytorch-cifar), after Zagoruyko, "92.45% on CIFAR-10 in Torch".
"""

from __future__ import annotations

from torch import Tensor, nn

from workloads.models.blocks import he_init

ENTRIES: dict[str, dict[str, object]] = {
    "vgg16": {
        "summary": "VGG-16, configuration D",
        "input_shape": (3, 224, 224),
        "num_classes": 1000,
        "data": "imagenet_samples",
        "parameters": 138_357_544,
        "source": "torchvision vgg16",
        "options": {"cifar": False},
    },
    "vgg16_cifar": {
        "summary": "VGG-16 for CIFAR-10: batch norm, one linear layer 512 -> 10",
        "input_shape": (3, 32, 32),
        "num_classes": 10,
        "data": "cifar10",
        "parameters": 14_728_266,
        "source": "kuangliu/pytorch-cifar VGG16",
        "options": {"cifar": True},
    },
}
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16(nn.Module):
    """(n, 3, 224, 224) -> (n, num_classes), or (n, 3, 32, 32) for the CIFAR form."""

    def __init__(self, num_classes: int, cifar: bool) -> None:
        super().__init__()
        self.features = _features(batch_norm=cifar)
        self.avgpool = nn.Identity() if cifar else nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Linear(512, num_classes) if cifar else _classifier(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def _features(batch_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    c = 3
    for stage in STAGES:
        for k in stage:
            norm = [nn.BatchNorm2d(k)] if batch_norm else []
            layers += [nn.Conv2d(c, k, 3, padding=1), *norm, nn.ReLU()]
            c = k
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers)


def _classifier(num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(512 * 7 * 7, 4096),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(4096, 4096),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(4096, num_classes),
    )


def create(num_classes: int, cifar: bool) -> VGG16:
    return he_init(VGG16(num_classes, cifar))
