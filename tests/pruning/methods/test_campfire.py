"""Campfire: windows and kernels worked by hand, densities that ninths cannot give, masks that freeze, the size."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pruning import masks
from pruning.methods.campfire import Campfire, closest_subset
from pruning.testing import Loop, batches, small_net
from tests.pruning.networks import example, network
from workloads.encodings import bitmask_bits, window_bits
from workloads.errors import CodesignError
from workloads.sparsity import WeightSparsity

EXAMPLE = (torch.zeros(2, 3, 8, 8),)
ONE_STEP = {"total_steps": 1, "end": 1.0}


def finished(**options):
    """The masks of a pruner whose ramp is one step."""
    pruner = Campfire(small_net(), EXAMPLE, **ONE_STEP, **options)
    Loop(pruner).run(batches(1))
    return pruner, masks.masks_of(pruner.model)


def kernels_and_weights(pruner):
    """How many kernels every layer has now, and how many weights each of them, by parameter name."""
    found = {}
    for name, mask in masks.masks_of(pruner.model).items():
        counts = mask.flatten(2).sum(2) if mask.dim() > 2 else mask.int()
        kernels = counts[counts > 0]
        assert len(kernels.unique()) == 1
        found[name] = (len(kernels), int(kernels[0]))
    return found


class TestGranularities:
    @pytest.mark.parametrize(("ninths", "density"), [(3, 3 / 9), (1, 1 / 9), (8, 8 / 9)])
    def test_a_window_keeps_the_largest_of_every_kernel(self, ninths, density):
        pruner, found = finished(density=density, granularity="window")
        for name, mask in found.items():
            kernels = masks.dense_weight(pruner.model, name).abs().flatten(2)
            cut = kernels.sort(2, descending=True).values[:, :, ninths - 1 : ninths]
            assert torch.equal(mask.flatten(2), kernels >= cut)
        assert pruner.achieved_density == pytest.approx(density)

    def test_ck_keeps_the_kernels_of_largest_l1_norm(self):
        pruner, found = finished(density=0.3, granularity="ck")
        mask = found["conv1.weight"].flatten(2)
        assert torch.equal(mask.any(2), mask.all(2))
        norms = masks.dense_weight(pruner.model, "conv1.weight").abs().flatten(2).sum(2)
        kept = mask.any(2)
        assert int(kept.sum()) == round(96 * 0.3)
        assert norms[kept].min() >= norms[~kept].max()

    @pytest.mark.parametrize(("split", "q", "kernels"), [(0.5, 5, 52), (1.0, 3, 86), (0.0, 9, 29)])
    def test_combined_takes_windows_inside_the_kernels_that_stay(self, split, q, kernels):
        # 9 sqrt(0.3) = 4.93, so q = 5 and 0.3 x 9/5 x 96 = 51.84 kernels; 2.7, so q = 3 and 86.4; 28.8
        pruner, found = finished(density=0.3, split=split)
        counts = found["conv1.weight"].sum((2, 3)).flatten()
        assert set(counts.tolist()) == {0, q}
        assert int((counts > 0).sum()) == kernels
        assert pruner.achieved_density == pytest.approx(masks.density(found.values()))

    def test_kernels_rank_by_all_their_weights_not_by_what_the_window_keeps(self):
        layer = nn.Conv2d(2, 1, (1, 3), bias=False)
        layer.weight.data = torch.tensor([[[[5.0, 0, 0]], [[3, 3, 3]]]])
        model = nn.Sequential(layer, nn.Flatten(), nn.Linear(6, 1))
        pruner = Campfire(model, (torch.zeros(1, 2, 1, 8),), 1, density={"0": 1 / 6}, split=1.0, end=1.0)
        pruner.step()
        # d = 1/6 of six weights: q = ceil(0.5) = 1, and half of two kernels
        assert masks.masks_of(pruner.model)["0.weight"].flatten().tolist() == [False] * 3 + [True, False, False]


class TestDensity:
    def test_windows_come_as_close_as_whole_layers_allow(self):
        pruner, found = finished(density=0.3, granularity="window", prune_first=True)
        # stem 24, conv1 96, conv2 96 kernels: floor(2.7) = 2 each, 0.7 x 216 = 151.2 more wanted
        # sums of {24, 96, 96}: 0, 24, 96, 120, 192, 216; the closest is 120: the stem and the first of the two
        assert {name: share.weights for name, share in pruner.final_shares.items()} == {
            "stem.weight": 3, "conv1.weight": 3, "conv2.weight": 2,
        }  # fmt: skip
        assert pruner.achieved_density == (216 * 2 + 120) / (216 * 9) == masks.density(found.values())

    @given(st.lists(st.integers(1, 12), min_size=1, max_size=7), st.floats(0, 1))
    def test_closest_subset_is_the_best_of_all(self, sizes, share):
        target = share * sum(sizes)
        chosen = closest_subset(sizes, target)
        reached = sum(itertools.compress(sizes, chosen))
        subsets = itertools.product([False, True], repeat=len(sizes))
        assert abs(reached - target) == min(abs(sum(itertools.compress(sizes, one)) - target) for one in subsets)

    def test_millions_of_kernels_are_quick(self):
        assert closest_subset([262144] * 5 + [99991, 65536, 1], 427672.4) == [True] + [False] * 4 + [True] * 3

    @pytest.mark.parametrize("granularity", ["window", "ck", "combined"])
    def test_kernels_of_one_weight_lose_single_weights(self, granularity):
        model = network("Fire")  # 1x1 and 3x3 layers
        pruner = Campfire(model, example(), 1, density=0.4, granularity=granularity, end=1.0)
        pruner.step()
        left = masks.masks_of(pruner.model)["left.weight"]
        assert int(left.sum()) == round(48 * 0.4)
        assert masks.density(masks.masks_of(pruner.model).values()) == pytest.approx(pruner.achieved_density)
        assert pruner.achieved_density == pytest.approx(0.4, abs=0.011 if granularity != "window" else 0.03)

    def test_pointwise_layers_can_stay_out(self):
        pruner = Campfire(network("Fire"), example(), 4, density=1 / 3, granularity="window", prune_pointwise=False)
        assert pruner.names == ("right.weight", "grow.weight")
        assert pruner.achieved_density == pytest.approx(1 / 3)

    def test_layers_have_their_own(self):
        _, found = finished(density={"conv1": 2 / 9, "stem": 1.0, "head": 0.25}, granularity="window")
        counts = {name: int(mask.sum()) for name, mask in found.items()}
        assert counts == {"conv1.weight": 192, "stem.weight": 216, "head.weight": 8}


class TestSchedule:
    def test_follows_the_cubic_ramp(self):
        pruner = Campfire(small_net(), EXAMPLE, 10, density=0.2, granularity="ck", begin=0.2, end=0.6, frequency=2)
        loop, counts = Loop(pruner), []
        for batch in batches(10):
            loop.run([batch])
            counts.append(int(masks.masks_of(pruner.model)["conv1.weight"].sum()) // 9)
        # kept 1 - 0.8 (1 - (1 - (t - 2) / 4)^3) of 96 kernels at t = 4, 6: 0.3 and 0.2
        assert counts == [96, 96, 96, 29, 29, 19, 19, 19, 19, 19]

    def test_a_removed_kernel_comes_back_before_the_end_and_not_after(self):
        pruner = Campfire(small_net(), EXAMPLE, 10, density=0.5, granularity="ck", end=0.4, frequency=1)
        loop = Loop(pruner)
        for steps, returns in ((2, True), (4, False)):
            loop.run(batches(steps))
            removed = torch.nonzero(~masks.masks_of(pruner.model)["conv1.weight"])[0]
            with torch.no_grad():
                masks.trained_weight(pruner.model, "conv1.weight")[tuple(removed[:2])] = 9.0
            loop.run(batches(1))
            assert bool(masks.masks_of(pruner.model)["conv1.weight"][tuple(removed)]) is returns

    @pytest.mark.parametrize(("granularity", "stem"), [("ck", 1.0), ("window", 1 / 9), ("combined", 0.03)])
    def test_what_is_removed_never_falls_and_ends_where_asked(self, granularity, stem):
        density = {"conv1": 0.3, "conv2": 0.45, "stem": stem, "head": 0.5}
        pruner = Campfire(small_net(), EXAMPLE, 16, density=density, granularity=granularity, end=0.75, frequency=1)
        loop, seen = Loop(pruner), []
        for batch in batches(16):
            loop.run([batch])
            seen.append(kernels_and_weights(pruner))
        for earlier, later in itertools.pairwise(seen):
            for name, (kernels, weights) in later.items():
                assert kernels <= earlier[name][0], name
                assert weights <= earlier[name][1], name
        final = {name: (share.kernels, share.weights) for name, share in pruner.final_shares.items()}
        assert seen[11] == seen[15] == final
        assert len({step["conv1.weight"] for step in seen}) >= 5
        for name, (kernels, weights) in final.items():
            size = masks.dense_weight(pruner.model, name).numel()
            unit = size // 9 if granularity == "window" and name != "head.weight" else weights
            assert abs(kernels * weights - density[name.removesuffix(".weight")] * size) <= unit

    def test_both_counts_climb_along_one_curve(self):
        """d = 0.3, split 1: in the end 3 of 9 weights and 86 of 96 kernels, so 6 and 10 are to be removed."""
        pruner = Campfire(small_net(), EXAMPLE, 4, density={"conv1": 0.3}, split=1.0, end=1.0, frequency=1)
        loop, seen = Loop(pruner), []
        for batch in batches(4):
            loop.run([batch])
            seen.append(kernels_and_weights(pruner)["conv1.weight"])
        # 1 - (1 - t/4)^3 = 37/64, 56/64, 63/64, 1 of them: 5.78, 8.75, 9.84, 10 kernels; 3.47, 5.25, 5.91, 6 weights
        assert seen == [(90, 6), (87, 4), (86, 3), (86, 3)]

    @pytest.mark.parametrize("granularity", ["ck", "window", "combined"])
    def test_masks_are_frozen_from_the_end_on(self, granularity):
        pruner = Campfire(small_net(), EXAMPLE, 10, density=0.3, granularity=granularity, end=0.4)
        loop, seen = Loop(pruner), []
        for batch in batches(10):
            loop.run([batch])
            seen.append((pruner.is_settled, {k: m.clone() for k, m in masks.masks_of(pruner.model).items()}))
        assert [settled for settled, _ in seen] == [False] * 3 + [True] * 7
        for _, later in seen[4:]:
            assert all(torch.equal(later[name], mask) for name, mask in seen[3][1].items())
        assert any(not torch.equal(seen[3][1][name], mask) for name, mask in seen[0][1].items())


class TestSize:
    """With the same number of weights in every kernel, every kernel takes the same number of bits."""

    @pytest.mark.parametrize("granularity", ["window", "combined", "ck"])
    def test_pruned_layers_fit_the_fixed_length_format(self, granularity):
        pruner, _ = finished(density=0.3, granularity=granularity)
        baked = pruner.finalize()
        for name, share in pruner.final_shares.items():
            zeros = WeightSparsity.from_mask(baked.get_parameter(name).detach().numpy() != 0)
            index = {9: 0, 5: 9, 4: 9, 3: 9, 2: 8}[share.weights]
            assert window_bits(zeros, 8, share.weights) == 96 + share.kernels * (share.weights * 8 + index)
            with pytest.raises(CodesignError, match="does not keep 1 weights of every kernel"):
                window_bits(zeros, 8, 1)

    def test_kernels_removed_whole_need_a_ninth_of_a_bit_a_weight(self):
        pruner, found = finished(density=0.3, granularity="ck")
        zeros = WeightSparsity.from_mask(found["conv1.weight"].numpy())
        assert bitmask_bits(zeros, 8) - window_bits(zeros, 8, 9) == 96 * 9 - 96
        assert pruner.final_shares["conv1.weight"].kernels == 29


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"granularity": "kernel"}, "granularity 'kernel': campfire has window, ck, combined"),
        ({"split": 1.5}, r"split 1.5, must lie in 0\.\.1"),
        ({"granularity": "window", "density": 0.1}, r"density 0.1 of 'conv1.weight': .* one weight of 9, 0.1111; take"),
        ({"density": 1.0}, "removes nothing"),
        ({"scope": "global"}, "scope 'global' ranks single weights"),
        ({"density": {"conv1": 2.0, "conv2": 0.5}}, "density 2"),
        ({"density": 0.0}, "density 0, must be above 0"),
        ({"density": {"conv9": 0.5}}, "unknown layer with weights 'conv9'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(CodesignError, match=message) as caught:
        Campfire(small_net(), EXAMPLE, 8, **options)
    assert "\n" not in str(caught.value)
