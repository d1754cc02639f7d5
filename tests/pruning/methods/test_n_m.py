"""N:M trained straight through: gradients worked by hand, masks that follow the weights until they are fixed."""

import itertools

import pytest
import torch
from torch import nn

from pruning import masks
from pruning.methods.magnitude import GradualMagnitude, OneShotMagnitude
from pruning.methods.n_m import NOfM
from pruning.testing import Loop, batches, small_net
from workloads.errors import PlanError

EXAMPLE = (torch.zeros(2, 3, 8, 8),)


def linear(*rows: list[float]) -> nn.Module:
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(rows))
    return nn.Sequential(layer)


def dense(pruner: NOfM) -> torch.Tensor:
    return masks.dense_weight(pruner.model, "0.weight")


def test_layers_with_nothing_to_remove_are_named():
    """Two input channels: 2:4 keeps both."""
    net = nn.Sequential(nn.Linear(2, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    options = {"prune_first": True, "prune_last": True}
    for method in (NOfM, GradualMagnitude, OneShotMagnitude):
        pruner = method(net, (torch.zeros(1, 2),), 4, density=0.5, granularity="2:4", **options)
        assert pruner.notes == ("left dense at granularity 2:4: 0",)
    pruner = OneShotMagnitude(net, (torch.zeros(1, 2),), 1, density={"1": 0.5, "2": 1.0}, granularity="2:4")
    assert pruner.notes == ("left dense, as first layer, classifier or asked for: 0",), (
        "2 is whole as it was asked to be"
    )
    with pytest.raises(PlanError, match=r"density .* removes none of the weights of 1 layers; choose a smaller one"):
        NOfM(net, (torch.zeros(1, 2),), 4, density={"0": 0.5})


def test_a_layer_without_a_weight_is_named():
    net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Linear(8, 4, bias=False))
    nn.init.constant_(net[0].weight, 1e-3)
    nn.init.constant_(net[1].weight, 1.0)
    options = {"prune_first": True, "prune_last": True, "scope": "global"}
    pruner = OneShotMagnitude(net, (torch.zeros(1, 4),), 1, density=0.5, **options)
    assert pruner.notes == ("left dense at granularity weight: 1", "no weight is left: 0")


def test_gradient_and_masks_worked_by_hand():
    """loss = 5 (w~ x) with w~ = (0, 2, -3, 0): every weight, kept or not, gets 5 x; removed ones strength w on top."""
    pruner = NOfM(linear([1.0, 2.0, -3.0, -0.5]), (torch.zeros(1, 4),), 4, density={"0": 0.5}, strength=0.1, end=0.5)
    x = torch.tensor([[1.0, 10.0, 100.0, 1000.0]])
    optimizer = torch.optim.SGD(pruner.model.parameters(), lr=0.001)
    answer = pruner.model(x)
    assert answer.item() == 2 * 10 - 3 * 100
    assert pruner.loss().item() == pytest.approx(0.1 / 2 * (1 + 0.25))
    (5 * answer.sum() + pruner.loss()).backward()
    gradient = pruner.model[0].parametrizations.weight.original.grad
    torch.testing.assert_close(gradient, torch.tensor([[5.0 + 0.1, 50.0, 500.0, 5000.0 - 0.05]]))
    optimizer.step()
    pruner.step()
    # w = (0.9949, 1.95, -3.5, -5.49995): the last has overtaken the second
    assert masks.masks_of(pruner.model)["0.weight"].tolist() == [[False, False, True, True]]
    assert not pruner.is_settled
    pruner.step()
    assert pruner.is_settled
    assert pruner.loss() == 0
    optimizer.zero_grad()
    pruner.model(x).sum().backward()
    after = pruner.model[0].parametrizations.weight.original.grad
    assert after.tolist() == [[0.0, 0.0, 100.0, 1000.0]], "settled: only what is kept learns"


def test_strength_pulls_removed_weights_to_zero():
    ends = []
    for strength in (0.0, 0.5):
        pruner = NOfM(linear([1.0, 2.0, -3.0, -0.5]), (torch.zeros(1, 4),), 100, density={"0": 0.5}, strength=strength)
        optimizer = torch.optim.SGD(pruner.model.parameters(), lr=0.1)
        for _ in range(10):
            optimizer.zero_grad()
            (pruner.model(torch.zeros(1, 4)).sum() + pruner.loss()).backward()
            optimizer.step()
            pruner.step()
        ends.append(dense(pruner)[0].tolist())
    assert ends[0] == [1.0, 2.0, -3.0, -0.5]
    shrunk = (1 - 0.1 * 0.5) ** 10
    assert ends[1] == pytest.approx([shrunk, 2.0, -3.0, -0.5 * shrunk])


def test_masks_move_from_begin_to_end_and_not_after():
    pruner = NOfM(small_net(), EXAMPLE, 8, granularity="1:4", begin=0.25, end=0.75)
    loop, seen = Loop(pruner), []
    for batch in batches(8):
        loop.run([batch])
        seen.append({name: mask.clone() for name, mask in masks.masks_of(pruner.model).items()})
        with torch.no_grad():  # whatever the weights do
            masks.dense_weight(pruner.model, "conv1.weight").copy_(torch.randn(12, 8, 3, 3))
    counts = [int(found["conv1.weight"].sum()) for found in seen]
    assert counts == [864, *[216] * 7]
    moves = [not torch.equal(a["conv1.weight"], b["conv1.weight"]) for a, b in itertools.pairwise(seen)]
    assert moves == [True] * 5 + [False] * 2, "steps 2 to 6"
    assert (seen[-1]["conv1.weight"].unflatten(1, (2, 4)).sum(2) == 1).all()


def test_taken_up_after_the_end_stays_closed():
    first = NOfM(small_net(), EXAMPLE, 4, end=0.5)
    loop = Loop(first)
    loop.run(batches(3))
    second = Loop(NOfM(small_net(1), EXAMPLE, 4, end=0.5))
    second.restore(loop.state())
    second.run(batches(1))
    gradient = second.pruner.model.conv1.parametrizations.weight.original.grad
    assert not gradient[~masks.masks_of(second.pruner.model)["conv1.weight"]].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"granularity": "weight"}, "n_m trains N:M with N < M, such as 2:4"),
        ({"granularity": "4:4"}, "n_m trains N:M with N < M, such as 2:4"),
        ({"strength": -1.0}, "option strength=-1.0 of n_m: must be at least 0"),
        ({"density": 0.25}, "2:4 keeps 0.5"),
        ({"density": 0.9}, "removes none"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(PlanError, match=message):
        NOfM(small_net(), EXAMPLE, 8, **options)
