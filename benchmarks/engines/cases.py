"""The cases that engines are compared on, by name, and where their results are kept.

A rate says how many times fewer weights the pruned layers have: 9/4 by patterns of four entries, times 32/9 or 16/3 by
connectivity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Case:
    """A network and its input; `networks` makes it.

    Attributes:
        title: what stands in tables.
        network: "vgg16", its convolutions with random weights; "pruned", the network of a folder of `codesign prune`;
            "random", the same (without a folder ResNet-56 at 8x) with random patterns in as many kernels.
        shape: of the input.
        kept: of vgg16, the fraction of kernels that stay; None for dense layers.
        share, share_small: filters that share channels and patterns, where maps are 8x8 or larger and where smaller.
        reach: times faster than "fastest" (dense engine, fp32) or a named one, as aimed at.
    """

    title: str
    network: str
    shape: tuple[int, int, int, int]
    kept: float | None = None
    share: int = 1
    share_small: int = 1
    reach: Mapping[str, float] = field(default_factory=dict)


BIG, SMALL, BATCH = (1, 3, 224, 224), (1, 3, 32, 32), (32, 3, 32, 32)
CASES: dict[str, Case] = {
    "vgg16_dense": Case("VGG-16 224, dense", "vgg16", BIG, reach={"onnxruntime": 1 / 1.3}),
    "vgg16_2.25x": Case("VGG-16 224, patterns alone, 2.25x", "vgg16", BIG, 1),
    "vgg16_8x": Case("VGG-16 224, 8x", "vgg16", BIG, 9 / 32, reach={"fastest": 4, "onnxruntime": 5, "litert": 8}),
    "vgg16_8x_pairs": Case(
        "VGG-16 224, 8x, filter pairs", "vgg16", BIG, 9 / 32, 2, 2, {"fastest": 5, "onnxruntime": 6}
    ),
    "vgg16_12x": Case("VGG-16 224, 12x", "vgg16", BIG, 3 / 16, reach={"fastest": 5.5, "onnxruntime": 6.8}),
    "vgg16_cifar_8x": Case("VGG-16 CIFAR, 8x", "vgg16", SMALL, 9 / 32),
    "vgg16_cifar_8x_groups4": Case(
        "VGG-16 CIFAR, 8x, 4 filters share below 8x8", "vgg16", SMALL, 9 / 32, 1, 4, {"fastest": 3}
    ),
    "vgg16_cifar_8x_groups16": Case(
        "VGG-16 CIFAR, 8x, 16 filters share below 8x8", "vgg16", SMALL, 9 / 32, 1, 16, {"fastest": 3}
    ),
    "resnet56_pruned_b1": Case("ResNet-56 CIFAR-10, PCONV, batch 1", "pruned", SMALL, reach={"fastest": 1.5}),
    "resnet56_pruned_b32": Case("ResNet-56 CIFAR-10, PCONV, batch 32", "pruned", BATCH, reach={"fastest": 1.5}),
    "resnet56_random_b1": Case("ResNet-56 CIFAR-10, random masks, batch 1", "random", SMALL),
    "resnet56_random_b32": Case("ResNet-56 CIFAR-10, random masks, batch 32", "random", BATCH),
}


def result_file(results: Path, case: str, threads: int) -> Path:
    return results / (f"{case}.json" if threads == 1 else f"{case}.{threads}threads.json")
