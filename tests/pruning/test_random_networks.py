"""Surgery on models never seen before: sequences of blocks that Hypothesis draws, and every block by itself."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from pruning.wiring import wire
from tests.pruning.cutting import as_plan, assert_answers_alike, parameters, random_units
from tests.pruning.random_networks import BLOCKS, SEQUENCES, Spec, build, inputs
from workloads.errors import PlanError
from workloads.lowering import lower

AROUND = Spec("Conv", 2, 1)  # what makes the channels that a block reads, and reads those that it makes


def prove(specs: tuple[Spec, ...], is_flat: bool, seed: int, share: float) -> None:
    """For random cuts of every group that can be cut: equal answers, fewer parameters, the original as it was."""
    model = build(specs, is_flat)
    before = copy.deepcopy(model.state_dict())
    wiring = wire(model, inputs())
    kept = random_units(wiring, np.random.default_rng(seed), share)
    try:
        small = as_plan(wiring, kept).apply(model, inputs())
    except PlanError as error:
        if "the plan removes nothing" in str(error) or "would keep no channel" in str(error):
            reject()  # nothing can go, or all that a slice takes of two groups side by side would
        raise
    assert parameters(small) < parameters(model)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert_answers_alike(small, wiring.masked(model, kept), inputs(3))


CUTS = (SEQUENCES, st.booleans(), st.integers(0, 99), st.sampled_from([0.2, 0.5, 0.8]))


@settings(max_examples=25)
@given(*CUTS)
def test_random_networks(specs, is_flat, seed, share):
    prove(specs, is_flat, seed, share)


@pytest.mark.slow
@settings(max_examples=500)
@given(*CUTS)
def test_many_random_networks(specs, is_flat, seed, share):
    prove(specs, is_flat, seed, share)


@pytest.mark.parametrize("kind", BLOCKS)
def test_every_block_in_each_of_its_variants(kind):
    for choice in range(BLOCKS[kind].VARIANTS):
        specs = (AROUND, Spec(kind, 2, choice, (AROUND,)), AROUND)
        prove(specs, is_flat=False, seed=choice, share=0.5)


@pytest.mark.parametrize("kind", BLOCKS)
def test_the_graph_of_the_smaller_module_is_the_predicted_one(kind):
    model = build((AROUND, Spec(kind, 2, 1, (AROUND,)), AROUND))
    wiring = wire(model, inputs())
    kept = random_units(wiring, np.random.default_rng(0))
    found = lower(as_plan(wiring, kept).apply(model, inputs()), inputs())
    for a, b in zip(found.layers, wiring.analysis.graph_units(kept).layers, strict=True):
        assert (a.op, a.shape, a.groups, a.macs, a.attributes) == (b.op, b.shape, b.groups, b.macs, b.attributes)


def test_only_modules_that_go_wrong_get_other_numbers():
    """Found by the law: attention that hardly matters lost half a head, beside a split whose numbers must change."""
    model = build((Spec("SplitBySize", 2), Spec("Attention", 1)))
    with torch.no_grad():
        model.body[1].last.weight.mul_(1e-7)
    wiring = wire(model, inputs())
    kept = {name: np.arange(1, wiring.analysis.group(name).size) for name in wiring.prunable}
    small = as_plan(wiring, kept).apply(model, inputs())
    assert (small.body[0].half, small.body[0].out, small.body[1].head_width) == (2, 4, 2)


def test_many_modules_with_numbers():
    """Every block has `out`: ten of them have more settings than are tried."""
    prove(tuple(Spec("SplitBySize", 1 + i % 3) for i in range(6)) + (AROUND,) * 4, is_flat=False, seed=0, share=0.5)
