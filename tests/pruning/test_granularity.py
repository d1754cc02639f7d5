"""Granularities: exact counts, ties to the lower index, and patterns worked by hand."""

import itertools
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruning.granularity import (
    GRANULARITIES,
    keep_best,
    keep_best_along,
    kept_count,
    largest_density,
    mask,
    smallest_density,
)
from pruning.patterns import PatternLibrary, best_patterns, four_entry_library, natural_library
from workloads.errors import ConfigError, PlanError, ShapeError
from workloads.sparsity import WeightSparsity

GENERATOR = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(6, 5, 3, 3, generator=GENERATOR)


def groups(found: torch.Tensor, granularity: str) -> torch.Tensor:
    """Kept weights of each item of a granularity."""
    dims = {"weight": (), "kernel": (2, 3), "pattern": (2, 3), "filter": (1, 2, 3), "channel": (0, 2, 3)}[granularity]
    return (found.sum(dims) if dims else found.int()).flatten()


@pytest.mark.parametrize(("granularity", "whole"), [("weight", 1), ("kernel", 9), ("filter", 45), ("channel", 54)])
@pytest.mark.parametrize("density", [0.1, 0.35, 0.5, 0.9])
def test_whole_items_are_kept_in_exact_number(granularity, whole, density):
    counts = groups(mask(WEIGHT, density, granularity), granularity)
    assert set(counts.tolist()) <= {0, whole}
    assert int((counts > 0).sum()) == kept_count(len(counts), density)


@pytest.mark.parametrize("granularity", ["weight", "kernel", "filter", "channel"])
def test_what_is_kept_outweighs_what_is_removed(granularity):
    counts = groups(mask(WEIGHT, 0.5, granularity), granularity) > 0
    energy = groups(WEIGHT.square(), granularity) if granularity != "weight" else WEIGHT.square().flatten()
    assert energy[counts].min() >= energy[~counts].max()


NAMES = ("weight", "2:4", "4x1", "1x4", "2x3", "window", "row", "pattern", "pattern/2", "kernel", "filter", "channel")


def test_every_form_is_tried_here():
    assert {re.sub(r"\d+", "#", name) for name in NAMES} == set(GRANULARITIES)


@pytest.mark.parametrize("granularity", NAMES)
def test_density_one_keeps_all_and_ties_go_to_the_lower_index(granularity):
    assert mask(WEIGHT, 1.0, granularity).all()
    if granularity in ("filter", "channel"):
        counts = groups(mask(torch.ones(4, 4, 3, 3), 0.5, granularity), granularity)
        assert (counts > 0).tolist() == [True, True, False, False]


def test_scores_take_the_place_of_magnitudes():
    weight, scores = torch.tensor([[1.0, 9.0]]), torch.tensor([[5.0, 1.0]])
    assert mask(weight, 0.5, "weight").tolist() == [[False, True]]
    assert mask(weight, 0.5, "weight", scores).tolist() == [[True, False]]


@pytest.mark.parametrize("granularity", NAMES)
@pytest.mark.parametrize("shape", [(5, 7), (6, 5, 3), (7, 6, 3, 3), (4, 3, 1, 1)])
def test_masks_nest_as_density_falls(granularity, shape):
    """The best of few are among the best of many, for groups of all sizes and edges that divide nothing."""
    if granularity.startswith("pattern") and shape[2:] == (3,):
        pytest.skip("patterns are for 3x3 and 1x1 kernels")
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    is_patterned = granularity.startswith("pattern") and shape[2:] == (3, 3)
    most = largest_density(granularity) if is_patterned else 0.9
    densities = [most * share for share in (1.0, 0.75) if most * share >= smallest_density(granularity)]
    found = [mask(weight, density, granularity) for density in densities]
    assert all(one.shape == weight.shape and one.any() for one in found)
    assert (found[-1] <= found[0]).all()


@pytest.mark.parametrize("granularity", NAMES)
@pytest.mark.parametrize("density", [2 / 9, 4 / 9])
def test_masks_keep_what_is_asked_for_where_groups_fit(granularity, density):
    weight = torch.randn((48, 48, 3, 3), generator=torch.Generator().manual_seed(3))
    asked = max(density, smallest_density(granularity))
    assert float(mask(weight, asked, granularity).float().mean()) == pytest.approx(asked, abs=0.01)


class TestNOfM:
    def test_worked_by_hand(self):
        weight = torch.tensor([[1.0, -5, 3, 2, 4, 0, 6]])  # 1 5 3 2 | 4 0 6 and one that is not there
        assert mask(weight, 0.5, "2:4").int().tolist() == [[0, 1, 1, 0, 1, 0, 1]]
        assert mask(weight, 0.25, "1:4").int().tolist() == [[0, 1, 0, 0, 0, 0, 1]]

    def test_runs_along_input_channels_at_each_kernel_position(self):
        weight = torch.zeros(1, 4, 1, 2)
        weight[0, 2, 0, 0] = weight[0, 1, 0, 1] = 1.0
        found = mask(weight, 0.25, "1:4")[0, :, 0]
        assert found.int().tolist() == [[0, 0], [0, 1], [1, 0], [0, 0]]

    @pytest.mark.parametrize(("density", "kept"), [(0.5, 2), (0.51, 3), (0.75, 3), (0.76, 4)])
    def test_a_density_in_between_keeps_one_more(self, density, kept):
        assert (mask(WEIGHT[:, :4], density, "2:4").sum(1) == kept).all()

    def test_the_layer_graph_knows_the_pattern(self):
        zeros = WeightSparsity.from_mask(mask(torch.randn(8, 16, 3, 3, generator=GENERATOR), 0.5, "2:4").numpy())
        assert zeros.satisfies_nm(2, 4)


class TestBlocks:
    def test_worked_by_hand(self):
        weight = torch.tensor([[1.0, 9, 2, 0], [1, 0, 2, 0], [5, 1, 3, 0]])
        # 2x1 blocks, filters 0-1 and filter 2 alone, squared: 2 81 8 0 / 25 1 9 0
        assert mask(weight, 3 / 8, "2x1").int().tolist() == [[0, 1, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0]]
        # 1x3 blocks, channels 0-2 and channel 3 alone: 86 0 / 5 0 / 35 0
        assert mask(weight, 2 / 6, "1x3").int().tolist() == [[1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 0]]

    def test_blocks_are_whole_and_counted_exactly(self):
        found = mask(torch.randn(8, 6, 3, 3, generator=GENERATOR), 0.2, "4x1")
        blocks = found.view(2, 4, 6, 3, 3).sum(1)
        assert set(blocks.flatten().tolist()) == {0, 4}
        assert int((blocks > 0).sum()) == kept_count(108, 0.2)

    def test_one_by_one_is_weight_pruning(self):
        assert torch.equal(mask(WEIGHT, 0.3, "1x1"), mask(WEIGHT, 0.3, "weight"))


class TestWindow:
    @pytest.mark.parametrize(("density", "kept"), [(0.3, 3), (0.2, 2), (0.01, 1), (0.44, 4)])
    def test_every_kernel_keeps_the_same_number(self, density, kept):
        assert (mask(WEIGHT, density, "window").sum((2, 3)) == kept).all()

    def test_the_largest_of_each_kernel_stay(self):
        kernel = torch.tensor([[[[1.0, -4, 2], [0, 3, -5], [0, 0, 0]]]])
        assert mask(kernel, 3 / 9, "window").int()[0, 0].tolist() == [[0, 1, 0], [0, 1, 1], [0, 0, 0]]

    def test_kernels_of_one_weight_lose_none(self):
        assert mask(torch.ones(3, 4), 0.3, "window").all()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.data())
def test_keep_best_is_a_stable_sort(values, data):
    count = data.draw(st.integers(1, len(values)))
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]
    found = keep_best(torch.tensor(values, dtype=torch.float32), count)
    assert torch.nonzero(found).flatten().tolist() == sorted(order)


@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_keep_best_along_is_a_stable_sort_of_every_line(length, count, data):
    numbers = data.draw(st.lists(st.integers(0, 3), min_size=6 * length, max_size=6 * length))
    scores = torch.tensor(numbers, dtype=torch.float).view(2, length, 3)
    scores[0, 0, 0] = -torch.inf  # as padding has it
    kept = keep_best_along(scores, 1, min(count, length))
    for i, j in itertools.product(range(2), range(3)):
        best = sorted(range(length), key=lambda item: (-scores[i, item, j].item(), item))[:count]
        assert torch.nonzero(kept[i, :, j]).view(-1).tolist() == sorted(best)


def test_rows_keep_equally_many_weights_of_every_filter():
    assert (mask(WEIGHT, 0.4, "row").sum((1, 2, 3)) == kept_count(45, 0.4)).all()
    weight = torch.tensor([[1.0, -2.0, 3.0, 0.5], [30.0, 10.0, 20.0, 40.0]])
    assert mask(weight, 0.5, "row").int().tolist() == [[0, 1, 1, 0], [1, 0, 0, 1]]


class TestPatterns:
    def test_the_largest_norm_wins(self):
        kernel = torch.tensor([[0.0, 3.0, 9.0], [1.0, 1.0, 2.0], [0.0, 2.5, 0.0]])
        # up + centre + right + down (1, 4, 5, 7): 9 + 1 + 4 + 6.25 beats the three others; the corner 9 is in none
        expected = [[0, 1, 0], [0, 1, 1], [0, 1, 0]]
        assert best_patterns(kernel.view(1, 1, 3, 3), four_entry_library()).int()[0, 0].tolist() == expected

    def test_ties_go_to_the_lower_index(self):
        found = best_patterns(torch.ones(1, 1, 3, 3), four_entry_library())[0, 0]
        assert torch.equal(found, four_entry_library().masks()[0])

    def test_below_four_ninths_whole_kernels_go(self):
        found = mask(WEIGHT, 2 / 9, "pattern")
        counts = groups(found, "pattern")
        assert sorted(counts.tolist()) == [0] * 15 + [4] * 15
        kept = (WEIGHT.square() * best_patterns(WEIGHT, four_entry_library())).sum((2, 3)).flatten()
        assert kept[counts > 0].min() >= kept[counts == 0].max()
        assert WeightSparsity.from_mask(found.numpy()).follows_patterns(entries=4, limit=4)

    def test_four_ninths_keeps_a_pattern_in_every_kernel(self):
        assert set(groups(mask(WEIGHT, 4 / 9, "pattern"), "pattern").tolist()) == {4}

    def test_one_by_one_kernels_are_pruned_weight_by_weight(self):
        weight = torch.randn(4, 8, 1, 1, generator=GENERATOR)
        assert torch.equal(mask(weight, 0.6, "pattern"), mask(weight, 0.6, "weight"))
        assert torch.equal(mask(weight[:, :, 0, 0], 0.6, "pattern"), mask(weight[:, :, 0, 0], 0.6, "weight"))

    def test_filters_that_share(self):
        found = mask(WEIGHT, 2 / 9, "pattern/4")  # filters 0-3 and 4-5 together
        for group in (found[:4], found[4:]):
            assert (group == group[:1]).all()
        assert sum(int(group[0].any((1, 2)).sum()) for group in (found[:4], found[4:])) == kept_count(2 * 5, 0.5)
        alone = (WEIGHT * mask(WEIGHT, 4 / 9, "pattern")).norm()
        assert (WEIGHT * mask(WEIGHT, 4 / 9, "pattern/4")).norm() < alone

    def test_natural_patterns_are_counted(self):
        left = torch.tensor([[4.0, 0, 0], [3.0, 1, 0], [2.0, 0, 0]])  # 0, 3, 6 and the centre
        top = torch.tensor([[4.0, 3, 2], [0, 1, 0], [0, 0, 0]])
        weights = torch.stack([left, top, left, left, top, left]).view(2, 3, 3, 3)
        assert natural_library([weights], 2).patterns == ((0, 3, 4, 6), (0, 1, 2, 4))
        assert natural_library([weights, torch.ones(9, 9)], 8).patterns == ((0, 3, 4, 6), (0, 1, 2, 4))

    def test_every_natural_pattern_keeps_the_centre(self):
        library = natural_library([WEIGHT], 56)
        assert library.entries == 4
        assert library.masks()[:, 1, 1].all()
        assert 8 < len(library.patterns) <= 56

    def test_a_natural_library_keeps_more_energy_than_the_designed_one(self):
        natural = (WEIGHT * best_patterns(WEIGHT, natural_library([WEIGHT], 8))).norm()
        assert natural > (WEIGHT * best_patterns(WEIGHT, four_entry_library())).norm()

    def test_a_library_can_be_given(self):
        centre = PatternLibrary(((4,),))
        assert torch.equal(mask(WEIGHT, 1 / 9, "pattern", library=centre), centre.masks()[0].expand(WEIGHT.shape))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: mask(WEIGHT, 0.5, "filtre"), ConfigError, "unknown granularity 'filtre'; did you mean 'filter'"),
        (lambda: mask(WEIGHT, 0.5, "0:4"), ConfigError, "unknown granularity '0:4'"),
        (lambda: mask(WEIGHT, 0.5, "5:4"), ConfigError, "cannot keep 5 of 4"),
        (lambda: mask(WEIGHT, 0.4, "2:4"), PlanError, "density 0.4: 2:4 keeps 0.5; give that density"),
        (lambda: mask(WEIGHT, 0.0, "weight"), PlanError, "density 0.0, must be above 0"),
        (lambda: mask(WEIGHT, 1.5, "weight"), PlanError, "density 1.5"),
        (lambda: mask(WEIGHT, float("nan"), "weight"), PlanError, "density nan"),
        (lambda: mask(WEIGHT[0, 0, 0], 0.5, "weight"), ShapeError, r"shape \(3,\), needs 2 to 4 dims"),
        (lambda: mask(WEIGHT * float("nan"), 0.5, "weight"), PlanError, "NaN or infinite"),
        (lambda: mask(WEIGHT, 0.5, "weight", WEIGHT[:1]), ShapeError, "scores of shape"),
        (lambda: mask(WEIGHT, 0.5, "pattern"), PlanError, "keep at most 0.4444"),
        (lambda: mask(torch.ones(2, 2, 5, 5), 0.3, "pattern"), ShapeError, "patterns need kernels of 3x3"),
        (lambda: natural_library([torch.ones(2, 2)]), PlanError, "no layer has any"),
        (lambda: natural_library([WEIGHT], 57), PlanError, "possible are 1..56"),
        (lambda: PatternLibrary(((1, 2), (1, 2, 3))), PlanError, "equally many in each"),
        (lambda: PatternLibrary(((2, 1),)), PlanError, "ascending"),
        (lambda: PatternLibrary(()), PlanError, "need different"),
    ],
)
def test_bad_inputs(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("name", ["#:#", "#x#", "pattern/#"])
def test_the_forms_of_names_are_no_names(name):
    with pytest.raises(ConfigError, match="unknown granularity"):
        mask(torch.ones(4, 4, 3, 3), 0.4, name)
