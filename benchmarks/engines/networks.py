"""The networks of the cases, and the files that workers and converters read.

Random pattern weights are drawn normal; every kernel keeps the best of eight patterns of four entries, then every
filter equally many kernels, those of largest energy (connectivity pruning). The first layer stays dense. What is kept
is scaled by He's rule, so that activations neither vanish nor grow.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from cases import Case
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from codesign.costs import nonzero_macs
from codesign.prune import load_pruned
from pruning.granularity import keep_kernels
from pruning.patterns import PatternLibrary, best_patterns
from workloads.lowering import lower
from workloads.models import build
from workloads.models.resnet_cifar import PaddedShortcut

EIGHT = PatternLibrary(
    ((0, 1, 3, 4), (1, 2, 4, 5), (3, 4, 6, 7), (4, 5, 7, 8), (1, 3, 4, 5), (1, 3, 4, 7), (3, 4, 5, 7), (1, 4, 5, 7))
)


def random_patterns(
    shape: tuple[int, ...], kept: float, filters: int, generator: torch.Generator, balanced: bool = True
) -> Tensor:
    """A weight with a pattern in every kernel that is kept.

    Args:
        shape: (k, c, 3, 3). kept: fraction of the kernels. filters: so many share channels and patterns.
        balanced: every filter keeps equally many kernels.
    """
    weight = torch.randn(shape, generator=generator)
    weight = weight * best_patterns(weight, EIGHT, filters)
    connected = keep_kernels(weight.square().sum((2, 3)), kept, filters, balanced)
    return _scaled(weight * connected[:, :, None, None])


def _scaled(weight: Tensor) -> Tensor:
    """The squares of a filter sum to two, on average over the filters (He et al., ICCV 2015)."""
    return weight * (2 * len(weight) / weight.square().sum()).sqrt()


def vgg(generator: torch.Generator, case: Case) -> nn.Module:
    """The convolutions of VGG-16 with their ReLUs and poolings, batch norms left out."""
    layers = [module for module in build("vgg16_cifar").features if not isinstance(module, nn.BatchNorm2d)]
    side = case.shape[2]
    for layer in layers:
        if isinstance(layer, nn.MaxPool2d):
            side //= 2
        elif isinstance(layer, nn.Conv2d):
            shape, share = tuple(layer.weight.shape), case.share_small if side < 8 else case.share
            if case.kept is None or layer.in_channels == 3:
                drawn = _scaled(torch.randn(shape, generator=generator))
            else:
                drawn = random_patterns(shape, case.kept, share, generator)
            layer.weight = nn.Parameter(drawn)
            layer.bias = nn.Parameter(torch.randn(layer.out_channels, generator=generator) / 10)
    return nn.Sequential(*layers).eval()


def as_random(net: nn.Module, generator: torch.Generator, kept: float | None) -> nn.Module:
    """A network like another, each layer with random patterns in a fraction of its kernels: by default in as many."""
    net = copy.deepcopy(net)
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and module.in_channels > 3:
            fraction = kept or module.weight.detach().flatten(2).any(2).float().mean().item()
            if fraction:
                drawn = random_patterns(tuple(module.weight.shape), fraction, 1, generator, balanced=False)
                module.weight = nn.Parameter(drawn * module.weight.detach().norm() / drawn.norm())
    return net.eval()


def make(case: Case, folder: Path | None, generator: torch.Generator) -> nn.Module:
    """The module of a case, in eval mode. folder: of a pruned network, for the cases that take one."""
    if case.network == "vgg16":
        return vgg(generator, case)
    if case.network == "pruned":
        assert folder is not None
        return load_pruned(folder)
    if folder is None:
        return as_random(build("resnet56"), generator, 9 / 32)
    return as_random(load_pruned(folder), generator, None)


class PooledShortcut(nn.Module):
    """A `PaddedShortcut` without strided slices, which ncnn's converter does not know; equal to it."""

    def __init__(self, shortcut: PaddedShortcut) -> None:
        super().__init__()
        self.stride = shortcut.stride
        self.pad = (0, 0, 0, 0, shortcut.channels_before, shortcut.channels_after)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(F.max_pool2d(x, 1, self.stride), self.pad)


def without_slices(net: nn.Module) -> nn.Module:
    found = copy.deepcopy(net)
    for path, module in net.named_modules():
        if isinstance(module, PaddedShortcut):
            found.set_submodule(path, PooledShortcut(module))
    return found


@dataclass(frozen=True)
class Network:
    """What every engine is given.

    Attributes:
        module: with masked weights, their zeros kept, and batch norms folded. unsliced: the same without slices.
        x, y: input, and what the module answers in float64; both float32.
        weights, nonzeros: of convolutions and linear layers. nonzero_macs: multiplications by the latter, padding too.
    """

    module: nn.Module
    unsliced: nn.Module
    x: Tensor
    y: Tensor
    weights: int
    nonzeros: int
    nonzero_macs: float

    @classmethod
    def of(cls, net: nn.Module, x: Tensor) -> Network:
        """From a module in eval mode."""
        module = _folded(net)
        with torch.no_grad():
            y = copy.deepcopy(module).double()(x.double()).float()
        kept = [m.weight.detach() for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        counts = sum(w.numel() for w in kept), sum(int(w.count_nonzero()) for w in kept)
        macs = nonzero_macs(lower(net, x))
        return cls(module, _folded(without_slices(net)), x, y, *counts, macs)

    def save(self, folder: Path) -> None:
        """Write what workers and converters read: programs of torch.export and arrays."""
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "input.npy", self.x.numpy())
        for name, module, x in (("network", self.module, self.x), ("sample", self.unsliced, self.x[:1])):
            torch.export.save(torch.export.export(module, (x,)), folder / f"{name}.pt2")


def network(case: Case, folder: Path | None = None, seed: int = 0) -> Network:
    """Make a case.

    Raises:
        ConfigError: the folder holds no pruned network.
    """
    generator = torch.Generator().manual_seed(seed)
    return Network.of(make(case, folder, generator), torch.randn(case.shape, generator=generator))


def _folded(net: nn.Module) -> nn.Module:
    return fuse(net) if any(isinstance(module, nn.BatchNorm2d) for module in net.modules()) else net
