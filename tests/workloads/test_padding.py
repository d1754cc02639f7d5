"""Zeros that are padded before convolutions become their padding; other pads stay, and so do all answers."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.workloads.lowered import Call, check, flops, ops
from workloads.graph import Op
from workloads.lowering import lower
from workloads.models import build, example_input

IMAGE = torch.zeros(1, 4, 8, 9)


@pytest.mark.parametrize(
    ("model", "x", "padding"),
    [
        (nn.Sequential(nn.ZeroPad2d((1, 2, 3, 4)), nn.Conv2d(4, 6, 3)), IMAGE, (3, 4, 1, 2)),
        (nn.Sequential(nn.ConstantPad2d(1, 0.0), nn.Conv2d(4, 6, 3, padding=(1, 2))), IMAGE, (2, 2, 3, 3)),
        (nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(4, 4, 3, 2, groups=4)), IMAGE, (0, 1, 0, 1)),
        (nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(4, 6, 1)), IMAGE, (1, 1, 1, 1)),
        (nn.Sequential(nn.ZeroPad2d(1), nn.ZeroPad2d((2, 0, 0, 0)), nn.Conv2d(4, 6, 3)), IMAGE, (1, 1, 3, 1)),
        (nn.Sequential(nn.ConstantPad1d((3, 1), 0.0), nn.Conv1d(4, 6, 5)), torch.zeros(1, 4, 12), (3, 1, 0, 0)),
    ],
)
def test_zeros_become_the_padding(model: nn.Module, x: torch.Tensor, padding: tuple[int, ...]) -> None:
    """By what the forward pass counts and answers."""
    x = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    graph = check(model, x)
    with torch.no_grad():
        shape = model(x).shape
    (conv,) = (layer for layer in graph if layer.op is Op.CONV)
    assert ops(graph) == ["conv"]
    assert conv.padding == padding
    assert (conv.in_h, conv.in_w) == (*x.shape[2:], 1)[:2]
    assert conv.shape == tuple(shape)
    assert 2 * graph.macs == flops(model, x)


def test_several_convolutions_share_a_pad() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 3, padding=1, stride=1, dilation=2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            padded = F.pad(x, (1, 1, 1, 1))
            return self.a(padded) + self.b(padded)

    graph = check(Two(), torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert ops(graph) == ["conv", "conv", "add"]
    assert (graph["a"].padding, graph["b"].padding) == ((1,) * 4, (2,) * 4)


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.conv(F.pad(x, (1, 1, 1, 1), value=2.0)),  # no zeros
        lambda m, x: m.conv(F.pad(x, (1, 1, 1, 1), mode="reflect")),
        lambda m, x: m.conv(F.pad(x[:, :3], (0, 0, 0, 0, 0, 1))),  # channels
        lambda m, x: F.max_pool2d(F.pad(m.conv(x), (1, 1, 1, 1)), 3),  # read by another op, which pads with -inf
        lambda m, x: m.conv(y := F.pad(x, (1, 1, 1, 1)))[..., :1] + y[..., :8, :1],  # read by more than convolutions
        lambda m, x: F.pad(m.conv(x), (1, 1, 1, 1)),  # the network's answer
    ],
)
def test_other_pads_stay(forward: Callable[..., torch.Tensor]) -> None:
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    graph = check(Call(forward, conv=nn.Conv2d(4, 4, 3)), x)
    (pad,) = (layer for layer in graph if layer.op is Op.PAD)
    assert any((*pad.attributes["before"], *pad.attributes["after"]))
    assert all(layer.padding == (0, 0, 0, 0) for layer in graph)


def test_resnet8_pads_right_and_bottom_in_the_convolution() -> None:
    net = lower(build("resnet8"), example_input("resnet8"))
    assert all(layer.op is not Op.PAD for layer in net)
    assert net["block2.conv1"].padding == (0, 1, 0, 1)
    assert (net["block2.conv1"].in_h, net["block2.conv1"].inputs) == (32, ("block1.add",))
