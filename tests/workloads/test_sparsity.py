"""Weight zeros: two-by-two masks counted by hand, laws, slow references, and expectations against drawn masks."""

import base64
import json
import math
import os
import pickle
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from workloads.errors import CodesignError, ConfigError, ShapeError
from workloads.sparsity import WeightSparsity

quick = settings(max_examples=60, deadline=None, derandomize=True)
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.integers(1, 3))
MASKS = SHAPES.flatmap(lambda shape: hnp.arrays(np.bool_, shape))


def two_by_two() -> WeightSparsity:
    """Filter 0 reads channel 0 only, filter 1 reads both."""
    return WeightSparsity.from_mask(np.array([[1, 0], [1, 1]], bool).reshape(2, 2, 1, 1))


# Worked by hand ---------------------------------------------------------------------------------------------------


def test_two_by_two_counted_by_hand() -> None:
    zeros = two_by_two()
    assert (zeros.shape, zeros.elements, zeros.nonzeros, zeros.density) == ((2, 2, 1, 1), 4, 3, 0.75)
    assert (zeros.k, zeros.c, zeros.r, zeros.s, zeros.is_exact) == (2, 2, 1, 1, True)
    assert zeros.mask().tolist() == [[[[True]], [[False]]], [[[True]], [[True]]]]
    assert zeros.kernel_counts.tolist() == [[1, 0], [1, 1]]
    assert zeros.filter_counts.tolist() == [1, 2]
    assert zeros.input_channel_counts.tolist() == [2, 1]
    assert zeros.tile_counts(1, 1).tolist() == [[1, 0], [1, 1]]
    assert zeros.tile_counts(1, 2).tolist() == [[1], [2]]
    assert zeros.tile_counts(2, 1).tolist() == [[2, 1]]
    assert zeros.tile_counts(5, 5).tolist() == [[3]]
    assert zeros.row_tile_counts(2, 1).tolist() == [[[2, 1]]]
    assert (zeros.zero_filters, zeros.zero_input_channels, zeros.zero_kernels, zeros.distinct_patterns) == (0, 0, 1, 1)
    assert (zeros.block_nonzeros(1, 1), zeros.block_nonzeros(1, 2), zeros.block_nonzeros(2, 2)) == (3, 2, 1)
    assert (zeros.block_count(1, 1), zeros.block_count(1, 2), zeros.block_count(3, 3)) == (4, 2, 1)


def test_two_by_two_expected_by_hand() -> None:
    zeros = WeightSparsity.from_density((2, 2, 1, 1), 0.5)
    assert (zeros.elements, zeros.nonzeros, zeros.density, zeros.is_exact) == (4, 2.0, 0.5, False)
    assert zeros.kernel_counts.tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert zeros.filter_counts.tolist() == zeros.input_channel_counts.tolist() == [1.0, 1.0]
    assert zeros.tile_counts(2, 1).tolist() == [[1.0, 1.0]]
    assert (zeros.zero_filters, zeros.zero_input_channels, zeros.zero_kernels) == (0.5, 0.5, 2.0)
    assert zeros.block_nonzeros(2, 2) == 15 / 16
    assert zeros.distinct_patterns == pytest.approx(15 / 16)
    # Each of two filters has 0, 1, 2 weights with 1/4, 1/2, 1/4: P(max = 0, 1, 2) = 1/16, 8/16, 7/16.
    assert zeros.balance(2).maximum == pytest.approx(22 / 16)
    assert zeros.tile_balance(1, 2).maximum == pytest.approx(22 / 16)
    assert zeros.balance(1).maximum == zeros.balance(1).mean == 2.0


def test_balance_block_and_interleaved_by_hand() -> None:
    # Filters with 5 4 3 2 1 weights. Blocks of two: 9 5 1. Interleaved over three: 5+2, 4+1, 3.
    mask = np.arange(5)[None, :] < np.array([[5], [4], [3], [2], [1]])
    zeros = WeightSparsity.from_mask(mask)
    assert (zeros.balance(3).mean, zeros.balance(3).maximum) == (5, 9)
    assert zeros.balance(3, assignment="interleaved").maximum == 7
    assert zeros.balance(3, "input_channel", "block").maximum == 9  # the columns are 5 4 3 2 1, too
    assert zeros.balance(8).mean == 15 / 8  # idle units count
    assert zeros.balance(8).maximum == 5
    assert zeros.balance(3).imbalance == 1.8
    assert WeightSparsity.from_mask(np.zeros((2, 2), bool)).balance(2).imbalance == 1.0


def test_kernel_patterns_by_hand() -> None:
    cross = [[0, 1, 0], [1, 1, 0], [0, 1, 0]]
    other = [[0, 1, 0], [1, 1, 1], [0, 0, 0]]
    none = np.zeros((3, 3))
    zeros = WeightSparsity.from_mask(np.array([[cross, other], [cross, none]], bool))
    assert (zeros.distinct_patterns, zeros.zero_kernels, zeros.zero_filters) == (2, 1, 0)
    assert zeros.kernel_patterns.astype(int).tolist() == [cross, other]
    assert zeros.follows_patterns(4, 2)
    assert zeros.follows_patterns(4)
    assert not zeros.follows_patterns(4, 1)
    assert not zeros.follows_patterns(3)
    assert not zeros.follows_patterns(5)
    inside = WeightSparsity.from_mask(np.array([[cross, [[0, 1, 0], [0, 1, 0], [0, 0, 0]]]], bool))
    assert inside.follows_patterns(4, 1)
    outside = WeightSparsity.from_mask(np.array([[cross, [[1, 0, 0], [0, 1, 0], [0, 0, 0]]]], bool))
    assert not outside.follows_patterns(4)
    assert WeightSparsity.from_mask(np.zeros((2, 2, 3, 3), bool)).follows_patterns(4, 0)


def test_two_of_four_by_hand() -> None:
    row = np.array([1, 1, 0, 0, 0, 1, 0, 1, 1, 1], bool)  # the last group has two channels
    assert WeightSparsity.from_mask(row[None]).satisfies_nm(2, 4)
    assert not WeightSparsity.from_mask(row[None]).satisfies_nm(1, 4)
    assert not WeightSparsity.from_mask(np.roll(row, 1)[None]).satisfies_nm(2, 4)  # 1 1 1 0
    assert WeightSparsity.from_mask(np.ones((3, 2, 3, 3), bool)).satisfies_nm(2, 4)
    assert WeightSparsity.from_mask(np.ones((1, 300), bool)).satisfies_nm(300, 300)  # counts above 255
    assert not WeightSparsity.from_mask(np.ones((1, 300), bool)).satisfies_nm(44, 300)


def test_run_lengths_by_hand() -> None:
    # 2-bit runs hold up to 3 zeros: 0 0 0 [0] is stored, then (1, 1), (1, 1), (0, 1); the two last zeros are not.
    stream = np.array([0, 0, 0, 0, 0, 1, 0, 1, 1, 0, 0], bool)
    assert WeightSparsity.from_mask(stream[None]).run_length_counts(2).tolist() == [4]
    for zeros, entries in ((3, 1), (4, 2), (7, 2), (8, 3), (12, 4)):
        one = WeightSparsity.from_mask(np.arange(zeros + 1)[None] == zeros)
        assert one.run_length_entries(2) == entries
    assert WeightSparsity.from_mask(np.zeros((3, 40), bool)).run_length_entries(2) == 0


def test_run_length_of_the_eie_paper() -> None:
    """Han et al., "EIE", ISCA 2016, section III: the column 0 0 1 2 0(18 times) 3 is v = 1 2 0 3, z = 2 0 15 2."""
    column = np.zeros(23, bool)
    column[[2, 3, 22]] = True
    assert WeightSparsity.from_mask(column[:, None]).run_length_counts(4, "input_channel").tolist() == [[4]]


def test_run_lengths_of_streams_by_hand() -> None:
    mask = np.zeros((5, 2), bool)
    mask[4, 0] = mask[0, 1] = mask[3, 1] = True
    zeros = WeightSparsity.from_mask(mask)  # by rows: 01 00 00 01 10
    assert zeros.run_length_counts(1, "layer").tolist() == [5]  # runs 1, 5, 0 cost 0, 2, 0 entries more
    assert zeros.run_length_counts(1, "filter").tolist() == [1, 0, 0, 1, 1]
    assert zeros.run_length_counts(1, "input_channel").tolist() == [[3], [3]]  # runs 4; 0 and 2
    # Two lanes: filters 0 2 4 and 1 3. Channel 0: run 2, nothing. Channel 1: run 0, run 1.
    assert zeros.run_length_counts(1, "input_channel", lanes=2).tolist() == [[2, 0], [1, 1]]


# Laws -------------------------------------------------------------------------------------------------------------


@quick
@given(MASKS, st.integers(1, 10), st.integers(1, 10), st.integers(1, 12))
def test_parts_sum_to_the_non_zeros(mask: np.ndarray, tile_k: int, tile_c: int, units: int) -> None:
    zeros = WeightSparsity.from_mask(mask)
    total = int(mask.sum())
    assert zeros.nonzeros == total
    for part in (
        zeros.kernel_counts,
        zeros.filter_counts,
        zeros.input_channel_counts,
        zeros.tile_counts(tile_k, tile_c),
        zeros.row_tile_counts(tile_k, tile_c),
    ):
        assert part.sum() == total
    assert (zeros.row_tile_counts(tile_k, tile_c).sum(axis=0) == zeros.tile_counts(tile_k, tile_c)).all()
    assert zeros.tile_balance(tile_k, tile_c).maximum == zeros.tile_counts(tile_k, tile_c).max()
    assert (zeros.mask() == mask).all()
    balance = zeros.balance(units, "input_channel", "interleaved")
    assert balance.mean * units == pytest.approx(total)
    assert balance.mean - 1e-9 <= balance.maximum <= total


@quick
@given(MASKS, st.integers(1, 10), st.integers(1, 10))
def test_counts_equal_plain_loops(mask: np.ndarray, tile_k: int, tile_c: int) -> None:
    zeros = WeightSparsity.from_mask(mask)
    k, c, r, s = mask.shape
    tiles = [
        [mask[i : i + tile_k, j : j + tile_c] for j in range(0, c, tile_c)]
        for i in range(0, k, tile_k)
    ]  # fmt: skip
    assert zeros.tile_counts(tile_k, tile_c).tolist() == [[int(tile.sum()) for tile in row] for row in tiles]
    assert zeros.block_nonzeros(tile_k, tile_c) == sum(
        int(tile.any(axis=(0, 1)).sum()) for row in tiles for tile in row
    )
    assert zeros.satisfies_nm(1, tile_c) == all((tile.sum(axis=1) <= 1).all() for row in tiles for tile in row)
    loads = [[mask[unit::tile_k].sum(), mask[unit * -(-k // tile_k) : (unit + 1) * -(-k // tile_k)].sum()]
             for unit in range(tile_k)]  # fmt: skip
    assert zeros.balance(tile_k, "filter", "interleaved").maximum == max(a for a, _ in loads)
    assert zeros.balance(tile_k, "filter", "block").maximum == max(b for _, b in loads)
    kernels = {kernel.tobytes() for kernel in mask.reshape(-1, r * s) if kernel.any()}
    assert zeros.distinct_patterns == len(kernels)
    assert zeros.zero_kernels == sum(not kernel.any() for kernel in mask.reshape(-1, r * s))
    assert zeros.zero_filters == sum(not one.any() for one in mask)
    assert zeros.zero_input_channels == sum(not mask[:, j].any() for j in range(c))


def entries_of(stream: np.ndarray, run_bits: int) -> int:
    """A run-length encoder as hardware does it: one weight after the other."""
    entries = pending = run = 0
    for weight in stream:
        if weight:
            entries, pending, run = entries + pending + 1, 0, 0
        elif run == 2**run_bits - 1:
            pending, run = pending + 1, 0
        else:
            run += 1
    return entries


@quick
@given(MASKS, st.integers(1, 3), st.integers(1, 4))
def test_run_lengths_equal_a_sequential_encoder(mask: np.ndarray, run_bits: int, lanes: int) -> None:
    zeros = WeightSparsity.from_mask(mask)
    assert zeros.run_length_counts(run_bits).tolist() == [entries_of(mask.ravel(), run_bits)]
    assert zeros.run_length_counts(run_bits, "filter").tolist() == [entries_of(one.ravel(), run_bits) for one in mask]
    assert zeros.run_length_counts(run_bits, "input_channel", lanes).tolist() == [
        [entries_of(mask[lane::lanes, j].ravel(), run_bits) for lane in range(lanes)] for j in range(mask.shape[1])
    ]


@quick
@given(MASKS)
def test_round_trips_are_exact(mask: np.ndarray) -> None:
    zeros = WeightSparsity.from_mask(mask)
    for copy in (WeightSparsity.from_dict(json.loads(json.dumps(zeros.to_dict()))), pickle.loads(pickle.dumps(zeros))):
        assert copy == zeros
        assert hash(copy) == hash(zeros)
        assert (copy.mask() == mask).all()
    assert WeightSparsity.from_weights(np.where(mask, -0.5, 0.0)) == zeros
    assert WeightSparsity.from_weights(np.where(mask, -6e-8, -0.0).astype(np.float16)) == zeros


def test_equality_is_by_content() -> None:
    ones = np.ones((2, 8), bool)
    exact = WeightSparsity.from_mask(ones)
    assert exact != WeightSparsity.from_density((2, 8), 1.0)  # the same zeros, but not the same knowledge
    assert exact != WeightSparsity.from_mask(ones.reshape(8, 2))
    assert exact != WeightSparsity.from_mask(ones & (np.arange(8) > 0))
    expected = WeightSparsity.from_density((2, 8), 0.1)
    assert WeightSparsity.from_dict(json.loads(json.dumps(expected.to_dict()))) == expected
    assert {exact: 1}[WeightSparsity.from_mask(ones)] == 1
    assert exact.content_hash == "632234b053ec636f6b801fa1d1d34b4c744542a093e6934cfee44c58b58abe60"


def test_views_and_later_changes_of_the_array_do_not_matter() -> None:
    mask = np.random.default_rng(0).random((4, 5, 3, 3)) < 0.5
    zeros = WeightSparsity.from_mask(mask.transpose(0, 1, 3, 2))
    before = mask.transpose(0, 1, 3, 2).copy()
    mask[:] = False
    zeros.mask()[:] = False
    assert (zeros.mask() == before).all()
    with pytest.raises(ValueError, match="read-only"):
        zeros.filter_counts[0] = 7


@pytest.mark.parametrize(("dims", "shape"), [((4, 6), (4, 6, 1, 1)), ((4, 6, 5), (4, 6, 1, 5)), ((4, 6, 2, 3),) * 2])
def test_short_shapes_get_kernels_of_one(dims: tuple[int, ...], shape: tuple[int, ...]) -> None:
    assert WeightSparsity.from_mask(np.ones(dims, bool)).shape == shape
    assert WeightSparsity.from_density(dims, 0.5).shape == shape


@quick
@given(MASKS, st.data())
def test_select_equals_indexing(mask: np.ndarray, data: st.DataObject) -> None:
    zeros = WeightSparsity.from_mask(mask)
    k, c = (data.draw(st.lists(st.integers(0, size - 1), min_size=1, unique=True)) for size in mask.shape[:2])
    assert (zeros.select(k, c).mask() == mask[k][:, c]).all()
    assert zeros.select(k) == WeightSparsity.from_mask(mask[k])
    assert zeros.select(None, np.isin(np.arange(mask.shape[1]), c)) == WeightSparsity.from_mask(mask[:, sorted(c)])
    assert zeros.select() == zeros
    expected = WeightSparsity.from_density(mask.shape, 0.3)
    assert expected.select(k, c) == expected.resized(len(k), len(c))
    assert expected.resized(len(k), len(c)).shape == (len(k), len(c), *mask.shape[2:])


NUMBERS: dict[str, Callable[[WeightSparsity], Any]] = {
    "nonzeros": lambda z: z.nonzeros,
    "density": lambda z: z.density,
    "kernel_counts": lambda z: z.kernel_counts,
    "filter_counts": lambda z: z.filter_counts,
    "input_channel_counts": lambda z: z.input_channel_counts,
    "tile_counts": lambda z: z.tile_counts(4, 5),
    "row_tile_counts": lambda z: z.row_tile_counts(4, 5),
    "filter_block": lambda z: z.balance(4).maximum,
    "filter_interleaved": lambda z: z.balance(4, "filter", "interleaved").maximum,
    "channel_block": lambda z: z.balance(5, "input_channel").maximum,
    "channel_interleaved": lambda z: z.balance(5, "input_channel", "interleaved").maximum,
    "idle_units": lambda z: z.balance(64).maximum,
    "balance_mean": lambda z: z.balance(4).mean,
    "tile_maximum": lambda z: z.tile_balance(4, 5).maximum,
    "tile_mean": lambda z: z.tile_balance(4, 5).mean,
    "kernel_maximum": lambda z: z.tile_balance(1, 1).maximum,
    "zero_filters": lambda z: z.zero_filters,
    "zero_input_channels": lambda z: z.zero_input_channels,
    "zero_kernels": lambda z: z.zero_kernels,
    "distinct_patterns": lambda z: z.distinct_patterns,
    "blocks": lambda z: z.block_nonzeros(4, 3),
    "run_length_layer": lambda z: z.run_length_counts(2),
    "run_length_filter": lambda z: z.run_length_counts(2, "filter"),
    "run_length_lanes": lambda z: z.run_length_counts(1, "input_channel", 4),
}


@pytest.mark.parametrize("density", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(6, 7, 3, 3), (10, 12, 1, 1), (3, 1, 2, 5)])
@pytest.mark.parametrize("name", NUMBERS)
def test_expected_equals_exact_where_nothing_is_random(name: str, shape: tuple[int, ...], density: float) -> None:
    exact = NUMBERS[name](WeightSparsity.from_mask(np.full(shape, bool(density))))
    expected = NUMBERS[name](WeightSparsity.from_density(shape, density))
    np.testing.assert_allclose(expected, exact, rtol=1e-12, atol=1e-12)
    assert np.shape(expected) == np.shape(exact)


@pytest.mark.parametrize(
    ("shape", "density", "draws"),
    [((18, 13, 3, 3), 0.3, 300), ((18, 13, 3, 3), 0.04, 300), ((22, 30, 1, 1), 0.9, 300), ((9, 40, 1, 1), 0.1, 300)],
)
def test_expectations_agree_with_drawn_masks(shape: tuple[int, ...], density: float, draws: int) -> None:
    """Every number within 4.5 standard errors of the mean over drawn masks, plus 0.5 % for the order statistics."""
    expected = WeightSparsity.from_density(shape, density)
    rng = np.random.default_rng(1)
    drawn = [expected.sample(rng) for _ in range(draws)]
    for name, number in NUMBERS.items():
        values = np.array([number(one) for one in drawn], float)
        error = 4.5 * values.std(axis=0, ddof=1) / math.sqrt(draws)
        difference = np.abs(values.mean(axis=0) - number(expected))
        assert (difference <= error + 0.005 * values.mean(axis=0) + 1e-3).all(), name


@quick
@given(SHAPES, st.floats(0, 1), st.integers(1, 12), st.integers(1, 9), st.integers(1, 9))
def test_expected_maximum_lies_between_mean_and_size(
    shape: tuple[int, ...], density: float, units: int, tile_k: int, tile_c: int
) -> None:
    zeros = WeightSparsity.from_density(shape, density)
    k, c, r, s = shape
    tile = zeros.tile_balance(tile_k, tile_c)
    assert tile.mean - 1e-9 <= tile.maximum <= min(tile_k, k) * min(tile_c, c) * r * s
    for assignment in ("block", "interleaved"):
        balance = zeros.balance(units, "filter", assignment)
        assert balance.mean - 1e-9 <= balance.maximum <= -(-k // units) * c * r * s
        assert balance.imbalance >= 1 - 1e-9


def test_density_one_counts_every_weight() -> None:
    zeros = WeightSparsity.from_mask(np.ones((5, 4, 3, 3), bool))
    assert zeros.nonzeros == zeros.elements == zeros.run_length_entries(4) == zeros.block_nonzeros(1, 1) == 180
    assert (zeros.kernel_counts == 9).all()
    assert zeros.distinct_patterns == 1


def test_wide_kernels_count_beyond_a_byte() -> None:
    mask = np.random.default_rng(0).random((3, 2, 20, 20)) < 0.9
    zeros = WeightSparsity.from_mask(mask)
    assert (zeros.kernel_counts == mask.sum(axis=(2, 3))).all()
    assert zeros.distinct_patterns == 6
    assert WeightSparsity.from_mask(np.ones((1, 1, 1, 300), bool)).row_tile_counts(1, 1).tolist() == [[[300]]]


def test_sample_is_exact_and_seeded() -> None:
    expected = WeightSparsity.from_density((64, 64, 3, 3), 0.25)
    drawn = expected.sample(np.random.default_rng(3))
    assert drawn == expected.sample(np.random.default_rng(3))
    assert drawn != expected.sample(np.random.default_rng(4))
    assert drawn.sample(np.random.default_rng(5)) is drawn
    assert drawn.density == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / drawn.elements))


def test_certain_structure_of_a_density() -> None:
    some, full, none = (WeightSparsity.from_density((8, 8, 3, 3), d) for d in (0.4, 1.0, 0.0))
    assert [z.satisfies_nm(2, 4) for z in (some, full, none)] == [False, False, True]
    assert [z.satisfies_nm(4, 4) for z in (some, full, none)] == [True, True, True]
    assert [z.follows_patterns(4) for z in (some, full, none)] == [False, False, True]
    assert [z.follows_patterns(9) for z in (some, full, none)] == [False, True, True]


@pytest.mark.data("eyeriss_v2_pe_masks")
@pytest.mark.parametrize("layer", ["L07", "L13", "L21", "L27"])
def test_pairs_of_non_zeros_equal_published_cycles(data_dir: Path, layer: str) -> None:
    """One Eyeriss v2 PE (SIMD off) takes one cycle a pair of non-zeros that meet in an input channel, exactly."""
    with np.load(data_dir / "eyeriss_v2_pe_masks" / f"{layer}.npz") as file:
        weight, activation = (
            np.unpackbits(file[name], count=math.prod(file[f"{name}_shape"])).reshape(file[f"{name}_shape"])
            for name in ("weight", "activation")
        )
        cycles = int(file["cycles"])
    zeros = WeightSparsity.from_mask(weight.astype(bool))
    assert activation.sum(axis=0, dtype=np.int64) @ zeros.input_channel_counts == cycles


# Bad input --------------------------------------------------------------------------------------------------------

ONES = WeightSparsity.from_mask(np.ones((4, 3), bool))
HALF = WeightSparsity.from_density((4, 3), 0.5)
GOOD = ONES.to_dict()


def text_of(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: WeightSparsity.from_mask(np.ones((2, 2))), ShapeError, "float64, needs booleans"),
        (lambda: WeightSparsity.from_mask(np.ones(3, bool)), ShapeError, "2 to 4 dims"),
        (lambda: WeightSparsity.from_mask(np.ones((0, 3), bool)), ShapeError, "each >= 1"),
        (lambda: WeightSparsity.from_weights(np.array([["a"]])), ShapeError, "real numbers"),
        (lambda: WeightSparsity.from_weights(np.array([[1.0, np.nan]])), ShapeError, "NaN"),
        (lambda: WeightSparsity.from_weights(np.array([[1.0, -np.inf]], np.float16)), ShapeError, "NaN or inf"),
        (lambda: WeightSparsity.from_weights(np.array([[1.0, np.nan]], np.float16)), ShapeError, "NaN or inf"),
        (lambda: WeightSparsity.from_weights(np.ones((0, 2))), ShapeError, "each >= 1"),
        (lambda: WeightSparsity.from_density((2, 2), 1.5), ConfigError, "density 1.5"),
        (lambda: WeightSparsity.from_density((2, 2), float("nan")), ConfigError, "density nan"),
        (lambda: WeightSparsity.from_density((2, -2), 0.5), ShapeError, "each >= 1"),
        (lambda: HALF.mask(), ConfigError, "sample"),
        (lambda: HALF.resized(0, 1), ShapeError, "each >= 1"),
        (lambda: ONES.resized(1, 1), ConfigError, "use select"),
        (lambda: ONES.select([]), ShapeError, "keep at least one"),
        (lambda: ONES.select([False] * 4), ShapeError, "keep at least one"),
        (lambda: ONES.select([4]), ShapeError, "0..3"),
        (lambda: ONES.select(None, [-1]), ShapeError, "0..2"),
        (lambda: HALF.select([0.5]), ShapeError, "needs integers"),
        (lambda: ONES.select([True, False]), ShapeError, "4 booleans"),
        (lambda: ONES.balance(0), ConfigError, "units: 0"),
        (lambda: HALF.balance(0), ConfigError, "units: 0"),
        (lambda: ONES.balance(2, "row"), ConfigError, "unknown axis 'row'"),
        (lambda: HALF.balance(2, "filter", "blocks"), ConfigError, "did you mean 'block'"),
        (lambda: ONES.tile_counts(0, 1), ConfigError, "tile 0 x 1"),
        (lambda: HALF.tile_balance(1, 0), ConfigError, "tile 1 x 0"),
        (lambda: ONES.block_count(1, 0), ConfigError, "tile 1 x 0"),
        (lambda: ONES.satisfies_nm(3, 2), ConfigError, "3:2"),
        (lambda: HALF.follows_patterns(4), ConfigError, "4 entries in 1x1"),
        (lambda: ONES.run_length_counts(0), ConfigError, "run_bits: 0"),
        (lambda: HALF.run_length_counts(4, "filter", 2), ConfigError, "lanes: 2"),
        (lambda: ONES.run_length_counts(4, "column"), ConfigError, "unknown stream"),
        (lambda: WeightSparsity.from_dict({}), ConfigError, "sparsity.form"),
        (lambda: WeightSparsity.from_dict({**GOOD, "more": 1}), ConfigError, "fields"),
        (lambda: WeightSparsity.from_dict({**GOOD, "shape": [4]}), ConfigError, "2 to 4 dims"),
        (lambda: WeightSparsity.from_dict({**GOOD, "shape": "4x3"}), ConfigError, "sparsity"),
        (lambda: WeightSparsity.from_dict({**GOOD, "shape": [8, 3, 1, 1]}), ConfigError, "not the 8 bytes"),
        (lambda: WeightSparsity.from_dict({**GOOD, "bits": 7}), ConfigError, "cannot be read"),
        (lambda: WeightSparsity.from_dict({**GOOD, "bits": "!!"}), ConfigError, "cannot be read"),
        (lambda: WeightSparsity.from_dict({**GOOD, "bits": "YWJj"}), ConfigError, "cannot be read"),
        (lambda: WeightSparsity.from_dict({**GOOD, "bits": text_of(bytes(10**6))}), ConfigError, "not the 4 bytes"),
        (lambda: WeightSparsity.from_dict({**GOOD, "bits": text_of(bytes([255] * 4))}), ConfigError, "spare bits"),
        (lambda: WeightSparsity.from_dict({**HALF.to_dict(), "density": 2}), ConfigError, "density 2"),
        (lambda: WeightSparsity.from_dict({**HALF.to_dict(), "density": "0.5"}), ConfigError, "sparsity"),
    ],
)
def test_bad_input_is_one_clear_line(call: Callable[[], Any], error: type[CodesignError], message: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_import_is_light() -> None:
    modules = "workloads.sparsity, workloads.exact_sparsity, workloads.expected_sparsity, workloads.encodings"
    code = f"import sys, {modules}, workloads.fkw; print({{'torch', 'scipy'}} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert done.stdout.strip() == "set()", done.stderr
