"""A trail of networks on disk: what goes in comes out, and the pick is the user's own score's."""

import math

import pytest
import torch
from torch import nn

from pruning import masks
from pruning.trail import Trail
from workloads.errors import DataError, PlanError


def network(kept: int) -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.arange(1.0, 9.0).view(2, 4))
    return masks.bake(model, {"0.weight": (torch.arange(8) < kept).view(2, 4)})


def left(net: nn.Module) -> int:
    return int(net[0].weight.count_nonzero())


@pytest.fixture
def trail(tmp_path) -> Trail:
    made = Trail(tmp_path / "trail")
    for step, kept in ((10, 6), (20, 4), (30, 2)):
        made.add(step, network(kept))
    return made


@pytest.fixture
def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2))


def test_networks_come_back_with_their_masks(trail, dense):
    before = [parameter.clone() for parameter in dense.parameters()]
    assert [(point.step, point.density) for point in Trail(trail.folder).points] == [(10, 0.75), (20, 0.5), (30, 0.25)]
    net = trail.network(trail.points[1], dense)
    assert net[0].weight.flatten().tolist() == [1, 2, 3, 4, 0, 0, 0, 0]
    assert int(net[0].weight_mask.sum()) == 4
    assert "1.weight_mask" not in net.state_dict()
    assert all(torch.equal(*pair) for pair in zip(before, dense.parameters(), strict=True))


@pytest.mark.parametrize(
    ("score", "kept"),
    [
        (left, 6),
        (lambda net: -left(net), 2),
        (lambda net: 0.0, 2),  # of equals the sparser
        (lambda net: -left(net) if left(net) > 3 else -math.inf, 4),
    ],
)
def test_the_best_score_is_picked(trail, dense, score, kept):
    point, net = trail.pick(dense, score)
    assert left(net) == kept
    assert point.density == kept / 8


def test_nothing_eligible(trail, dense):
    with pytest.raises(PlanError, match="none of 3 networks is eligible"):
        trail.pick(dense, lambda net: -math.inf)
    with pytest.raises(PlanError, match="none of 0 networks is eligible"):
        Trail(trail.folder / "empty").pick(dense, left)


def test_forgotten_points_take_their_files_along(trail):
    trail.forget(20)
    assert [point.step for point in trail.points] == [10]
    assert [path.name for path in trail.folder.glob("*.safetensors")] == [trail.points[0].file]


def test_damage_and_other_models_are_told(trail, dense):
    with pytest.raises(DataError, match=r"step0000010\.safetensors: .*'0\.weight' has shape"):
        trail.network(trail.points[0], nn.Sequential(nn.Linear(5, 2), nn.Linear(2, 2)))
    (trail.folder / "trail.json").write_text("[{]")
    with pytest.raises(DataError, match="not the list of a trail"):
        _ = trail.points
