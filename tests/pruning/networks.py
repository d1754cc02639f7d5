"""Small networks, one for each way in which channels can be tied together. All take (n, 3, 8, 8) and answer (n, 5)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Chain(nn.Module):
    """Plain convolutions; the first two with batch norm, one of them not affine, the third with a bias of its own."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12, affine=False)
        self.conv3 = nn.Conv2d(12, 6, 1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return self.head(F.relu(self.conv3(x)).mean((2, 3)))


class Residual(nn.Module):
    """Two blocks on one stream; the stem and both second convolutions are tied."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.inner = nn.ModuleList(nn.Conv2d(8, width, 3, padding=1) for width in (6, 10))
        self.outer = nn.ModuleList(nn.Conv2d(width, 8, 3, padding=1, bias=False) for width in (6, 10))
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(2))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        for inner, outer, norm in zip(self.inner, self.outer, self.norms, strict=True):
            x = F.relu(x + norm(outer(F.relu(inner(x)))))
        return self.head(x.mean((2, 3)))


class PreActivation(nn.Module):
    """Batch norms that follow an addition, so that they cannot be folded."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm1, self.conv1 = nn.BatchNorm2d(8), nn.Conv2d(8, 10, 3, padding=1)
        self.norm2, self.conv2 = nn.BatchNorm2d(10), nn.Conv2d(10, 8, 3, padding=1)
        self.norm3, self.head = nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
        return self.head(F.relu(self.norm3(x)).mean((2, 3)))


class Depthwise(nn.Module):
    """An inverted residual, and a depthwise layer that makes two channels of each."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.expand, self.bn1 = nn.Conv2d(8, 24, 1, bias=False), nn.BatchNorm2d(24)
        self.depth, self.bn2 = nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False), nn.BatchNorm2d(24)
        self.project, self.bn3 = nn.Conv2d(24, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.twice = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.relu6(self.bn2(self.depth(F.relu6(self.bn1(self.expand(x))))))
        x = x + self.bn3(self.project(y))
        return self.head(F.relu(self.twice(x)).mean((2, 3)))


class Grouped(nn.Module):
    """Few wide groups, and many narrow ones."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.wide, self.bn = nn.Conv2d(16, 24, 3, padding=1, groups=2), nn.BatchNorm2d(24)
        self.narrow = nn.Conv2d(24, 24, 3, padding=1, groups=12)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.wide(F.relu(self.stem(x)))))
        return self.head(F.relu(self.narrow(x)).mean((2, 3)))


class PaddedShortcut(nn.Module):
    """ResNet's option A at one size: channels of zeros before and after."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.channels_before, self.channels_after = before, after

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, 0, self.channels_before, self.channels_after))


class Fire(nn.Module):
    """Squeeze, expand twice, concatenate; then a dense layer that concatenates its input."""

    def __init__(self):
        super().__init__()
        self.squeeze = nn.Conv2d(3, 6, 1)
        self.left, self.right = nn.Conv2d(6, 8, 1), nn.Conv2d(6, 10, 3, padding=1)
        self.norm, self.grow = nn.BatchNorm2d(18), nn.Conv2d(18, 4, 3, padding=1)
        self.head = nn.Conv2d(22, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        x = torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], 1)
        x = torch.cat([x, self.grow(F.relu(self.norm(x)))], 1)
        return F.relu(self.head(x)).mean((2, 3))


def shuffled(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class Shuffle(nn.Module):
    """ShuffleNetV2's unit: split in two, work on one half, concatenate, shuffle; twice."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.work = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
                nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8),
                nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            )
            for _ in range(2)
        )  # fmt: skip
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for work in self.work:
            left, right = x.chunk(2, 1)
            x = shuffled(torch.cat([left, work(right)], 1), 2)
        return self.head(x.mean((2, 3)))


class SqueezeExcite(nn.Module):
    """Channels scaled by what two small convolutions make of their means."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.down, self.up = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.bn(self.conv(x)))
        scale = torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return self.head((x * scale).mean((2, 3)))


class Flattened(nn.Module):
    """A convolution, pooled and flattened into linear layers."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc1, self.fc2 = nn.Conv2d(3, 6, 3), nn.Linear(6 * 9, 14), nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(F.max_pool2d(self.conv(x), 2).flatten(1))))


class Attention(nn.Module):
    """Self-attention over pixels; whole heads can go, since the code counts them from the layer's width."""

    def __init__(self, width: int = 12, heads: int = 3):
        super().__init__()
        self.embed, self.head_width = nn.Conv2d(3, width, 4, stride=4), width // heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out, self.head = nn.Linear(width, width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        n, t, _ = x.shape
        parts = (f(x).view(n, t, -1, self.head_width).transpose(1, 2) for f in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(*parts)
        return self.head((x + self.out(y.transpose(1, 2).reshape(n, t, -1))).mean(1))


class Shared(nn.Module):
    """One convolution that runs twice, so that what it reads and what it makes are tied."""

    def __init__(self):
        super().__init__()
        self.stem, self.twice, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.head(F.relu(self.twice(F.relu(self.twice(x)))).mean((2, 3)))


class PixelShuffle(nn.Module):
    """Four successive channels become the pixels of one."""

    def __init__(self):
        super().__init__()
        self.conv, self.shuffle, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(4, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.shuffle(self.conv(x)))).mean((2, 3))


class Normalised(nn.Module):
    """Group norm, PReLU with a slope a channel, a transposed convolution, a scale as a bare parameter."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 12, 3, padding=1), nn.GroupNorm(4, 12), nn.PReLU(12)
        self.up = nn.ConvTranspose2d(12, 8, 2, stride=2)
        self.scale = nn.Parameter(torch.rand(8, 1, 1))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.up(self.act(self.norm(self.conv(x))))) * self.scale
        return self.head(x.mean((2, 3)))


class Recurrent(nn.Module):
    """An LSTM over rows of pixels."""

    def __init__(self):
        super().__init__()
        self.conv, self.lstm, self.head = nn.Conv2d(3, 6, (3, 8)), nn.LSTM(6, 7, batch_first=True), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(F.relu(self.conv(x))[..., 0].transpose(1, 2))[0].mean(1))


class Sequence(nn.Module):
    """One-dimensional convolutions."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv1d(24, 8, 3, padding=1), nn.BatchNorm1d(8)
        self.conv2, self.head = nn.Conv1d(8, 6, 3), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv2(F.relu(self.bn1(self.conv1(x.flatten(1, 2)))))).mean(2))


class Gated(nn.Module):
    """An activation that does not map zero to zero between two convolutions: removed channels must be unread."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.sigmoid(self.conv2(torch.sigmoid(self.conv1(x)))).mean((2, 3)))


class Highest(nn.Module):
    """Maxima over height and width, over height alone, and over the length of a sequence of features."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Conv1d(8, 6, 3)
        self.fc, self.head = nn.Linear(6, 7), nn.Linear(13, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        rows = self.fc(self.conv3(x.max(2)[0]).transpose(1, 2)).amax(1)
        return self.head(torch.cat([self.conv2(x).amax((2, 3)), rows], 1))


class Contest(nn.Module):
    """The larger of two maps, and the smaller of what follows from it and a map of its means."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.maximum(self.conv1(x), self.conv2(x))
        return self.head(torch.min(self.conv3(x), x.mean((2, 3), keepdim=True)).mean((2, 3)))


class Bent(nn.Module):
    """Activations that are no clamps; a root of what is above zero, where it has a slope."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.conv2(F.mish(self.conv1(x))).abs() + 0.1).sqrt().mean((2, 3)))


NETWORKS = {
    kind.__name__: kind
    for kind in (
        Chain, Residual, PreActivation, Depthwise, Grouped, Fire, Shuffle, SqueezeExcite, Flattened, Attention, Shared,
        PixelShuffle, Normalised, Recurrent, Sequence, Gated, Bent, Highest,
        Contest,
    )
}  # fmt: skip


def network(name: str, seed: int = 0) -> nn.Module:
    """In eval mode, with batch-norm statistics and affine parameters that are not the trivial ones."""
    torch.manual_seed(seed)
    return lively(NETWORKS[name]().eval())


def lively(model: nn.Module) -> nn.Module:
    """The model with statistics, scales and shifts of norms that are not the trivial ones."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
        elif isinstance(module, nn.GroupNorm | nn.InstanceNorm2d | nn.LayerNorm) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return model


def awake(model: nn.Module, x: Tensor) -> nn.Module:
    """The model with batch-norm statistics of these inputs; deep untrained networks answer alike to all otherwise."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
    with torch.no_grad():
        model.train()(x)
    return model.eval()


def example(batch: int = 2, seed: int = 0) -> tuple[Tensor]:
    return (torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(seed)),)
