"""Random pruning: fair, seeded, nested, and independent of the weights."""

import pytest
import torch

from pruning import masks
from pruning.methods.random import Random
from pruning.testing import Loop, batches, small_net
from workloads.errors import PlanError

EXAMPLE = (torch.zeros(2, 3, 8, 8),)


def kept(pruner: Random) -> dict[str, torch.Tensor]:
    return {name: mask.clone() for name, mask in masks.masks_of(pruner.model).items()}


def test_the_seed_decides_and_the_weights_do_not():
    one, same, other = (
        kept(Random(small_net(net), EXAMPLE, density=0.3, at_once=True, seed=seed))
        for net, seed in ((0, 0), (1, 0), (0, 1))
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)


def test_every_weight_is_equally_likely():
    """600 draws of 3 in 10: a weight is kept 180 times, give or take 5 standard deviations of 11.2."""
    pruner = Random(small_net(), EXAMPLE, density={"head": 0.3})
    counts = torch.zeros(4, 8)
    for pruner.seed in range(600):
        counts += pruner.masks_at({"head.weight": 0.3})["head.weight"]
    assert counts.sum() == 600 * 10  # 32 weights, 9.6 rounded
    assert counts.min() > 600 * 10 / 32 - 57
    assert counts.max() < 600 * 10 / 32 + 57


def test_what_is_gone_stays_gone_down_to_the_density():
    pruner = Random(small_net(), EXAMPLE, 6, density=0.25, end=1.0, frequency=1)
    loop, before = Loop(pruner), kept(pruner)
    for batch in batches(6):
        loop.run([batch])
        now = kept(pruner)
        assert all((now[name] <= before[name]).all() for name in now)
        before = now
    assert {name: int(mask.sum()) for name, mask in before.items()} == {"conv1.weight": 216, "conv2.weight": 216}
    assert pruner.is_settled


def test_a_state_of_another_seed_is_refused():
    state = Random(small_net(), EXAMPLE, 4, seed=1).state_dict()
    with pytest.raises(PlanError, match="pruner state has seed 1, this one is made for 0"):
        Random(small_net(), EXAMPLE, 4).load_state_dict(state)
