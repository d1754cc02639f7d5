"""Networks never seen before, compiled: what Hypothesis makes of windows, pools, sums and joins, against torch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from codesign.compiler import compile_network
from tests.codesign.compiler.native import HERE
from tests.pruning.random_networks import SEQUENCES, Spec, build, inputs
from workloads.lowering import lower_with_weights

TOLERANCE = 1e-5
ACTIVATIONS = (F.relu, F.relu6, F.silu, torch.sigmoid, torch.tanh, F.hardswish, F.elu, F.gelu)
SIDES = st.integers(1, 17) | st.integers(7, 17)
ENDS = ("map", "mean", "flat", "classes")


class Block(NamedTuple):
    """One step of a chain of maps.

    Attributes:
        kind: convolution, depthwise, maximum, average, activation, sum or join (with an earlier map).
        width: of a convolution. kernel, stride, padding: of a window. choice: of an activation, a flag, an earlier map.
        kept: fraction of a convolution's weights.
    """

    kind: str
    width: int
    kernel: tuple[int, int]
    stride: int
    padding: int
    choice: int
    kept: float


BLOCKS = st.builds(
    Block,
    kind=st.sampled_from(["convolution", "depthwise", "maximum", "average", "activation", "sum", "join"]),
    width=st.integers(1, 9),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.sampled_from([1, 1, 2, 3]),
    padding=st.integers(0, 2),
    choice=st.integers(0, 15),
    kept=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)


class Chain(nn.Module):
    """Blocks one after another. Windows are no larger than their map; a sum or a join of unlike maps is left out."""

    def __init__(self, channels: int, size: tuple[int, int], blocks: list[Block], end: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks: list[Block] = []
        self.layers = nn.ModuleList()
        shapes = [(channels, *size)]
        for block in blocks:
            c, h, w = shapes[-1]
            kernel = min(block.kernel[0], h), min(block.kernel[1], w)
            pad = min(block.padding, *(side // 2 for side in kernel))
            block = block._replace(kernel=kernel, padding=pad)
            sides = [(side + 2 * pad - taps) // block.stride + 1 for side, taps in zip((h, w), kernel, strict=True)]
            earlier = shapes[block.choice % len(shapes)]
            if block.kind in ("convolution", "depthwise"):
                groups = c if block.kind == "depthwise" else 1
                out = c if groups > 1 else block.width
                layer = nn.Conv2d(c, out, kernel, block.stride, pad, groups=groups, bias=block.choice % 2 == 0)
                with torch.no_grad():
                    layer.weight.mul_(torch.rand_like(layer.weight) < block.kept)
                shapes.append((out, *sides))
            elif block.kind in ("maximum", "average"):
                layer = nn.Identity()
                shapes.append((c, *sides))
            elif block.kind == "activation" or (block.kind == "sum" and earlier == shapes[-1]):
                layer = nn.Identity()
                shapes.append(shapes[-1])
            elif block.kind == "join" and earlier[1:] == (h, w):
                layer = nn.Identity()
                shapes.append((c + earlier[0], h, w))
            else:
                continue
            self.blocks.append(block)
            self.layers.append(layer)
        c, h, w = shapes[-1]
        self.end, self.last = end, nn.Linear(c * h * w if end == "flat" else c, 7)

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for block, layer in zip(self.blocks, self.layers, strict=True):
            x, earlier = maps[-1], maps[block.choice % len(maps)]
            if block.kind == "maximum":
                x = F.max_pool2d(x, block.kernel, block.stride, block.padding)
            elif block.kind == "average":
                counts = block.choice % 2 == 0
                x = F.avg_pool2d(x, block.kernel, block.stride, block.padding, count_include_pad=counts)
            elif block.kind == "activation":
                x = ACTIVATIONS[block.choice % len(ACTIVATIONS)](x)
            elif block.kind == "sum":
                x = x + earlier if block.choice % 3 else F.relu(earlier - x)
            elif block.kind == "join":
                x = torch.cat([earlier, x], 1)
            else:
                x = layer(x)
            maps.append(x)
        x = maps[-1]
        if self.end == "map":
            return x
        x = x.flatten(1) if self.end == "flat" else x.mean((2, 3))
        return x if self.end == "mean" else F.softmax(self.last(x), 1)


def agrees(model: nn.Module, x: Tensor, isa: str, threads: int = 1) -> bool:
    """Whether the compiled network answers as torch does in float64, where torch in float32 does too.

    Norms of nearly constant maps blow up what is rounded; there, four times the error of torch in float32 may be.
    """
    graph, weights = lower_with_weights(model, x)
    found = compile_network((graph, weights), isa=isa, threads=threads)(x.numpy())
    with torch.no_grad():
        single = model(x).numpy()
        expected = model.double()(x.double()).numpy()
    allowed = max(TOLERANCE * np.abs(expected).max(), 4 * np.abs(single - expected).max(), 1e-35)
    return bool(np.abs(found - expected).max() <= allowed)


@settings(max_examples=100)
@given(
    n=st.sampled_from([1, 1, 2, 17]), channels=st.integers(1, 5),
    size=st.tuples(SIDES, SIDES),
    blocks=st.lists(BLOCKS, min_size=3, max_size=7), end=st.sampled_from(ENDS), threads=st.sampled_from([1, 1, 2, 3]),
    isa=st.sampled_from(HERE),
)  # fmt: skip
def test_chains_of_windows_sums_and_joins(
    n: int, channels: int, size: tuple[int, int], blocks: list[Block], end: str, threads: int, isa: str
) -> None:
    x = torch.randn(n, channels, *size, generator=torch.Generator().manual_seed(1))
    assert agrees(Chain(channels, size, blocks, end).eval(), x, isa, threads)


@settings(max_examples=25)
@given(specs=SEQUENCES, is_flat=st.booleans(), isa=st.sampled_from(HERE), threads=st.sampled_from([1, 2]))
def test_architectures_of_all_kinds(specs: tuple[Spec, ...], is_flat: bool, isa: str, threads: int) -> None:
    assert agrees(build(specs, is_flat), inputs()[0], isa, threads)
