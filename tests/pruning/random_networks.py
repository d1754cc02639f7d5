"""Random architectures for Hypothesis: a network is plain data, a sequence of blocks that may hold others.

Every block maps images (n, c, h, w) to images, has its width in `out`, and `VARIANTS` that `Spec.choice` tells apart
(modulo some number), so any sequence is a network; `Spec`s print as they are written, and
shrink towards fewer, narrower and simpler blocks. `build` makes the module, (n, 3, 4, 4) -> (n, 5).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.pruning.networks import PaddedShortcut, lively, shuffled

SIZE = 4  # height and width, everywhere
ACTIVATIONS = (F.relu, F.silu, torch.sigmoid, F.gelu, F.relu6, torch.tanh)
NORMS: tuple[Callable[[int], nn.Module], ...] = (
    lambda c: nn.Identity(),
    nn.BatchNorm2d,
    lambda c: nn.BatchNorm2d(c, affine=False),
    lambda c: nn.GroupNorm(2 if c % 2 == 0 else c, c),
    lambda c: nn.InstanceNorm2d(c, affine=True),
    nn.InstanceNorm2d,
    lambda c: nn.GroupNorm(1, c),
)


class Spec(NamedTuple):
    """One block.

    Attributes:
        kind: of BLOCKS. width: 1 is the narrowest; what it means is the block's own. choice: of a variant, any number.
        inner: blocks inside it.
    """

    kind: str
    width: int = 1
    choice: int = 0
    inner: tuple[Spec, ...] = ()


class Conv(nn.Module):
    """Convolution, norm and activation; with a bias or without."""

    VARIANTS = 14

    def __init__(self, c: int, spec: Spec):
        super().__init__()
        kernel = (1, 3)[spec.choice % 2]
        self.out = 2 * spec.width
        self.conv = nn.Conv2d(c, self.out, kernel, padding=kernel // 2, bias=spec.choice % 3 != 0)
        self.norm = NORMS[spec.choice % len(NORMS)](self.out)
        self.act = ACTIVATIONS[spec.choice % len(ACTIVATIONS)]

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


class PreActivated(nn.Module):
    """Norm and activation before the convolution."""

    VARIANTS = 7

    def __init__(self, c: int, spec: Spec):
        super().__init__()
        self.out, self.act = 2 * spec.width, ACTIVATIONS[spec.choice % len(ACTIVATIONS)]
        self.norm, self.conv = NORMS[spec.choice % len(NORMS)](c), nn.Conv2d(c, self.out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.act(self.norm(x)))


class Residual(nn.Module):
    """x + blocks(x), brought to its width by a 1x1 convolution; pads channels where the blocks make more (option A)."""

    VARIANTS = 2

    def __init__(self, c: int, spec: Spec):
        super().__init__()
        more = (0, 2)[spec.choice % 2] * spec.width
        self.body, inside = sequence(c, spec.inner)
        self.out = c + 2 * more
        self.last, self.norm = nn.Conv2d(inside, self.out, 1, bias=False), nn.BatchNorm2d(self.out)
        self.shortcut = PaddedShortcut(more, more)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.last(self.body(x))) + self.shortcut(x))


class Depthwise(nn.Module):
    """One or more filters a channel."""

    VARIANTS = 3

    def __init__(self, c: int, spec: Spec):
        super().__init__()
        self.out = c * (1 + spec.choice % 3)
        self.conv, self.norm = nn.Conv2d(c, self.out, 3, padding=1, groups=c), nn.BatchNorm2d(self.out)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(self.norm(self.conv(x)))


class Grouped(nn.Module):
    """Two groups or as many as there are pairs of channels; plain or transposed."""

    VARIANTS = 4

    def __init__(self, c: int, spec: Spec):
        super().__init__()
        groups = (2, max(c // 2, 1))[spec.choice % 2]
        groups = groups if c % groups == 0 else 1
        self.out = groups * 2 * spec.width
        kind = (nn.Conv2d, nn.ConvTranspose2d)[spec.choice // 2 % 2]
        self.conv, self.norm = kind(c, self.out, 3, padding=1, groups=groups), nn.BatchNorm2d(self.out)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class Dense(nn.Module):
    """DenseNet: each layer reads all before it and adds its own channels."""

    VARIANTS = 3

    def __init__(self, c: int, spec: Spec):
        super().__init__()
        widths = [c + i * spec.width for i in range(1 + spec.choice % 3)]
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.convs = nn.ModuleList(nn.Conv2d(width, spec.width, 3, padding=1, bias=False) for width in widths)
        self.out = widths[-1] + spec.width

    def forward(self, x: Tensor) -> Tensor:
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return x


class Branches(nn.Module):
    """What several blocks make of one input, side by side."""

    VARIANTS = 2

    def __init__(self, c: int, spec: Spec):
        super().__init__()
        found = [sequence(c, (inner,)) for inner in spec.inner]
        self.branches = nn.ModuleList([body for body, _ in found])
        self.has_input = not found or spec.choice % 2 == 1
        self.out = sum(width for _, width in found) + c * self.has_input

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches] + [x] * self.has_input, 1)


class Shuffle(nn.Module):
    """ShuffleNetV2: half of the channels go through blocks, then all are shuffled."""

    VARIANTS = 1

    def __init__(self, c: int, spec: Spec):
        super().__init__()
        self.even, half = nn.Conv2d(c, 4 * spec.width, 1), 2 * spec.width
        self.body, inside = sequence(half, spec.inner)
        self.last, self.out = nn.Conv2d(inside, half, 1), 4 * spec.width

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.even(x).chunk(2, 1)
        return shuffled(torch.cat([left, F.relu(self.last(self.body(right)))], 1), 2)


class SplitBySize(nn.Module):
    """Splits and shuffles by numbers that it keeps in attributes."""

    VARIANTS = 1

    def __init__(self, c: int, spec: Spec):
        super().__init__()
        self.half, self.out = 2 * spec.width, 4 * spec.width
        self.conv = nn.Conv2d(c, self.out, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        x = self.conv(x).view(n, 2, self.half, h, w).transpose(1, 2).reshape(n, self.out, h, w)
        left, right = x.split([self.half, self.half], 1)
        return torch.cat([F.relu(right), left], 1)


class SqueezeExcite(nn.Module):
    """Channels scaled by what their means say."""

    VARIANTS = 2

    def __init__(self, c: int, spec: Spec):
        super().__init__()
        self.down, self.up, self.out = nn.Conv2d(c, 2 * spec.width, 1), nn.Conv2d(2 * spec.width, c, 1), c
        self.gate = (torch.sigmoid, F.hardsigmoid)[spec.choice % 2]

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))


class Pixels(nn.Module):
    """Pixel shuffle and pooling, or the inverse and upsampling."""

    VARIANTS = 2

    def __init__(self, c: int, spec: Spec):
        super().__init__()
        self.is_inverse = spec.choice % 2 == 1
        self.conv = nn.Conv2d(c, spec.width * (1 if self.is_inverse else 8), 3, padding=1)
        self.out = spec.width * (4 if self.is_inverse else 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        if self.is_inverse:
            return F.interpolate(F.pixel_unshuffle(x, 2), scale_factor=2, mode="nearest")
        return F.avg_pool2d(F.pixel_shuffle(x, 2), 2)


class Transposed(nn.Module):
    """A transposed convolution that doubles the image, a PReLU and a pool."""

    VARIANTS = 2

    def __init__(self, c: int, spec: Spec):
        super().__init__()
        self.out = 2 * spec.width
        self.conv, self.act = nn.ConvTranspose2d(c, self.out, 2, stride=2), nn.PReLU((1, self.out)[spec.choice % 2])

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.act(self.conv(x)), 2)


class Signal(nn.Module):
    """One-dimensional convolutions over all pixels in a row."""

    VARIANTS = 1

    def __init__(self, c: int, spec: Spec):
        super().__init__()
        self.out = 2 * spec.width
        self.conv, self.norm = nn.Conv1d(c, self.out, 3, padding=1), nn.BatchNorm1d(self.out)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        return F.relu(self.norm(self.conv(x.flatten(2)))).view(n, -1, h, w)


class Attention(nn.Module):
    """Self-attention over pixels, queries, keys and values in one layer or in three; whole heads can go."""

    VARIANTS = 2

    def __init__(self, c: int, spec: Spec):
        super().__init__()
        self.out, self.head_width, inside = c, 2, 2 * (1 + spec.width)
        self.is_fused = spec.choice % 2 == 1
        self.qkv = nn.Linear(c, 3 * inside) if self.is_fused else nn.ModuleList(nn.Linear(c, inside) for _ in range(3))
        self.last = nn.Linear(inside, c)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        y = x.flatten(2).transpose(1, 2)
        if self.is_fused:
            q, k, v = self.qkv(y).view(n, h * w, 3, -1, self.head_width).permute(2, 0, 3, 1, 4)
        else:
            q, k, v = (f(y).view(n, h * w, -1, self.head_width).transpose(1, 2) for f in self.qkv)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, h * w, -1)
        return x + self.last(y).transpose(1, 2).reshape(n, -1, h, w)


class Recurrent(nn.Module):
    """An LSTM over all pixels."""

    VARIANTS = 1

    def __init__(self, c: int, spec: Spec):
        super().__init__()
        self.lstm, self.out = nn.LSTM(c, 2 * spec.width, batch_first=True), 2 * spec.width

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        return self.lstm(x.flatten(2).transpose(1, 2))[0].transpose(1, 2).reshape(n, -1, h, w)


class Twice(nn.Module):
    """One convolution that runs twice."""

    VARIANTS = 1

    def __init__(self, c: int, spec: Spec):
        super().__init__()
        self.conv, self.out = nn.Conv2d(c, c, 3, padding=1), c

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(F.relu(self.conv(x))))


class Raw(nn.Module):
    """A convolution and a scale whose arrays are bare parameters."""

    VARIANTS = 2

    def __init__(self, c: int, spec: Spec):
        super().__init__()
        self.out = 2 * spec.width
        self.kernel = nn.Parameter(torch.randn(self.out, c, 3, 3) / c**0.5)
        self.bias = nn.Parameter(torch.randn(self.out)) if spec.choice % 2 else None
        self.scale = nn.Parameter(torch.rand(self.out, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.conv2d(x, self.kernel, self.bias, padding=1)) * self.scale


class LayerNorm(nn.Module):
    """ConvNeXt's: over the channels of each pixel, which therefore all stay."""

    VARIANTS = 1

    def __init__(self, c: int, spec: Spec):
        super().__init__()
        self.norm, self.out = nn.LayerNorm(c), c

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Gated(nn.Module):
    """One half of the channels decides what of the other half passes."""

    VARIANTS = 3

    def __init__(self, c: int, spec: Spec):
        super().__init__()
        self.conv, self.out, self.choice = nn.Conv2d(c, 4 * spec.width, 1), 2 * spec.width, spec.choice % 3

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.choice == 0:
            return F.glu(x, 1)
        a, b = x.chunk(2, 1) if self.choice == 1 else (x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :])
        return a * torch.tanh(b) - b


class Places(nn.Module):
    """A map over places of one channel, and a learned number for every place and channel."""

    VARIANTS = 1

    def __init__(self, c: int, spec: Spec):
        super().__init__()
        self.conv, self.out = nn.Conv2d(c, 1, 3, padding=1), c
        self.position = nn.Parameter(torch.randn(1, c, SIZE, SIZE))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.conv(x)) + self.position


class Mixer(nn.Module):
    """Linear layers over channels, channels last, and over places."""

    VARIANTS = 1

    def __init__(self, c: int, spec: Spec):
        super().__init__()
        self.up, self.down, self.out = nn.Linear(c, 3 * spec.width), nn.Linear(3 * spec.width, c), c
        self.places, self.scale = nn.Linear(SIZE**2, SIZE**2), nn.Parameter(torch.rand(c) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        y = x.permute(0, 2, 3, 1)
        y = y + self.scale * self.down(F.gelu(self.up(y)))
        y = y.reshape(n, h * w, -1).transpose(1, 2)
        return (y + self.places(y)).view(n, -1, h, w)


class Repeated(nn.Module):
    """The same channels several times: once more, one by one, or every second pixel as channels of their own."""

    VARIANTS = 3

    def __init__(self, c: int, spec: Spec):
        super().__init__()
        self.choice = spec.choice % 3
        self.out = c * (2, 2, 4)[self.choice]

    def forward(self, x: Tensor) -> Tensor:
        if self.choice == 0:
            return torch.cat([x, F.relu(x)], 1)
        if self.choice == 1:
            return x.repeat(1, 2, 1, 1)
        parts = [x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]
        return F.interpolate(torch.cat(parts, 1), scale_factor=2, mode="bilinear", align_corners=False)


class Flat(nn.Module):
    """Through a linear layer that sees all channels and places at once, and back to an image of one channel or more."""

    VARIANTS = 2

    def __init__(self, c: int, spec: Spec):
        super().__init__()
        self.out, self.is_last = spec.width, spec.choice % 2 == 1
        self.down, self.up = nn.Linear(c * SIZE**2, 4 * spec.width), nn.Linear(4 * spec.width, self.out * SIZE**2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1) if self.is_last else x
        return F.relu(self.up(F.relu(self.down(x.flatten(1)))).view(len(x), -1, SIZE, SIZE))


class Tied(nn.Module):
    """Two convolutions of one weight, of which the second has a bias and a norm of its own."""

    VARIANTS = 1

    def __init__(self, c: int, spec: Spec):
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(c, 2 * spec.width, 1), nn.Conv2d(c, 2 * spec.width, 1), 4 * spec.width
        self.b.weight, self.norm = self.a.weight, nn.BatchNorm2d(2 * spec.width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(torch.cat([self.a(x), self.norm(self.b(x))], 1))


class Normed(nn.Module):
    """A group norm called as a function, its numbers and arrays in attributes."""

    VARIANTS = 1

    def __init__(self, c: int, spec: Spec):
        super().__init__()
        self.groups, self.out = (c // 2 if c % 2 == 0 else c), c
        self.scale, self.shift = nn.Parameter(torch.rand(c) + 0.5), nn.Parameter(torch.randn(c))

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.groups, self.scale, self.shift)


BLOCKS: dict[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (
        Conv, PreActivated, Depthwise, Grouped, Dense, SplitBySize, SqueezeExcite, Pixels, Transposed, Signal,
        Attention, Recurrent, Twice, Raw, LayerNorm, Gated, Places, Mixer, Repeated, Flat, Tied, Normed, Residual,
        Branches, Shuffle,
    )
}  # fmt: skip
NESTED = ("Residual", "Branches", "Shuffle")


def sequence(c: int, specs: tuple[Spec, ...]) -> tuple[nn.Sequential, int]:
    """Blocks one after the other, and how many channels come out."""
    blocks = []
    for spec in specs:
        block = BLOCKS[spec.kind](c, spec)
        blocks.append(block)
        c = block.out
    return nn.Sequential(*blocks), c


class Network(nn.Module):
    """A stem, blocks and a classifier that averages or flattens."""

    def __init__(self, specs: tuple[Spec, ...], is_flat: bool):
        super().__init__()
        self.stem, self.is_flat = nn.Conv2d(3, 4, 3, padding=1), is_flat
        self.body, c = sequence(4, specs)
        self.head = nn.Linear(c * SIZE**2 if is_flat else c, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(F.relu(self.stem(x)))
        return self.head(x.flatten(1) if self.is_flat else x.mean((2, 3)))


def build(specs: tuple[Spec, ...], is_flat: bool = False) -> nn.Module:
    """The network of these blocks, in eval mode, always with the same weights."""
    torch.manual_seed(0)
    return lively(Network(specs, is_flat).eval())


def inputs(batch: int = 2) -> tuple[Tensor]:
    return (torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)),)


def _blocks(inner: st.SearchStrategy[tuple[Spec, ...]], kinds: tuple[str, ...]) -> st.SearchStrategy[Spec]:
    return st.builds(Spec, st.sampled_from(kinds), st.integers(1, 3), st.integers(0, 41), inner)


_LEAVES = _blocks(st.just(()), tuple(kind for kind in BLOCKS if kind not in NESTED))
_HOLDERS = _blocks(st.lists(_LEAVES, max_size=2).map(tuple), NESTED)
SEQUENCES = st.lists(_LEAVES | _HOLDERS, min_size=1, max_size=5).map(tuple)
