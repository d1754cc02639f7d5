"""Kernels found in zeros: every weight is kept once, patterns are recognised, groups are filters that agree."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from codesign.compiler.storage import MAX_SHAPES, Kernels, Packing, decode, encode, encode_runs, find_kernels
from workloads.errors import ShapeError

SQUARES = np.array([[1, 1, 0, 1, 1, 0, 0, 0, 0], [0, 1, 1, 0, 1, 1, 0, 0, 0]], bool).reshape(2, 3, 3)
CROSS = np.array([0, 1, 0, 1, 1, 1, 0, 0, 0], bool).reshape(3, 3)


def dense(kernels: Kernels, shape: tuple[int, ...], groups: int = 1) -> np.ndarray:
    """The weight tensor that kernels stand for; weights of one place are added. No shape reaches beyond the kernel."""
    found = np.zeros(shape, np.float32)
    each = shape[0] // groups
    for i, k in enumerate(kernels.filter):
        for tap, (y, x) in enumerate(kernels.shapes[kernels.shape[i]]):
            value = kernels.weights[i, tap]
            place = (kernels.row[i] + y, kernels.column[i] + x)
            found[k, kernels.channel[i] - k // each * shape[1], place[0], place[1]] += value
    return found


@given(
    k=st.integers(1, 6), c=st.integers(1, 5), r=st.integers(1, 5), s=st.integers(1, 20), density=st.floats(0, 1),
    groups=st.sampled_from([1, 2]), seed=st.integers(0, 99),
)  # fmt: skip
def test_every_weight_is_kept_once(k: int, c: int, r: int, s: int, density: float, groups: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((k * groups, c, r, s)).astype(np.float32) * (
        rng.random((k * groups, c, r, s)) < density
    )
    kernels = find_kernels(weight, groups)
    assert np.array_equal(dense(kernels, weight.shape, groups), weight)
    assert kernels.taps >= np.count_nonzero(weight)
    assert len(kernels.shapes) <= MAX_SHAPES
    assert (np.diff(kernels.filter) >= 0).all()


@given(
    k=st.integers(1, 5), c=st.integers(1, 4), window=st.sampled_from([(1, 1), (3, 3), (5, 5), (2, 7)]),
    density=st.floats(0, 1), sharing=st.integers(1, 5), most=st.sampled_from([1, 2, 4]), seed=st.integers(0, 99),
)  # fmt: skip
def test_a_stream_is_decoded(
    k: int, c: int, window: tuple[int, int], density: float, sharing: int, most: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    mask = np.repeat(rng.random((k, c, *window)) < density, sharing, axis=0)
    weight = rng.standard_normal(mask.shape).astype(np.float32) * mask
    packing = Packing(plane=40_000, row=1600, pixel=64, out_plane=640)
    parts = encode(find_kernels(weight), np.zeros(len(weight), np.float32), packing, np.arange(len(weight)), most)
    assert np.array_equal(decode(parts, packing, weight.shape), weight)


@given(common=st.sets(st.integers(0, 8), min_size=1), rare=st.sets(st.integers(0, 8), min_size=1))
@example(common={0, 4}, rare={2})  # moved to its corner the rare one is held, where it is it is not
def test_a_rare_kernel_is_held_where_it_is(common: set[int], rare: set[int]) -> None:
    weight = np.zeros((1, 60, 9), np.float32)
    weight[:, 1:, list(common)] = 1
    weight[:, 0, list(rare)] = 2
    weight = weight.reshape(1, 60, 3, 3)
    assert np.array_equal(dense(find_kernels(weight), weight.shape, 1), weight)


def test_patterns_that_are_shifted_copies_are_one_shape() -> None:
    weight = np.ones((1, 3, 3, 3), np.float32) * np.stack([*SQUARES, CROSS])
    kernels = find_kernels(weight)
    assert set(kernels.shapes) == {((0, 0), (0, 1), (1, 0), (1, 1)), ((0, 1), (1, 0), (1, 1), (1, 2))}
    assert kernels.taps == 12
    squares = kernels.shape == kernels.shapes.index(((0, 0), (0, 1), (1, 0), (1, 1)))
    assert kernels.column[squares].tolist() == [0, 1]


def test_a_dense_layer_is_one_shape_and_one_class() -> None:
    kernels = find_kernels(np.ones((6, 4, 3, 3), np.float32))
    assert [len(shape) for shape in kernels.shapes] == [9]
    assert [len(part) for part in kernels.classes()] == [6]


def test_a_large_kernel_is_cut_into_rows_and_empty_rows_vanish() -> None:
    weight = np.ones((1, 1, 7, 7), np.float32)
    weight[0, 0, 2] = 0
    kernels = find_kernels(weight)
    assert [len(shape) for shape in kernels.shapes] == [7]
    assert kernels.row.tolist() == [0, 1, 3, 4, 5, 6]


def test_nothing_is_kept_of_an_empty_layer() -> None:
    kernels = find_kernels(np.zeros((2, 3, 3, 3), np.float32))
    assert kernels.taps == 0
    assert kernels.shapes == ()
    (groups,) = encode(kernels, np.zeros(2, np.float32), Packing(1, 1, 1, 1), np.arange(2), 2)
    assert groups.kernels.tolist() == [0]


def test_the_papers_example_keeps_its_order() -> None:
    """PatDNN's FKW figure: filters by length, kernels by pattern, then channel."""
    patterns = {1: SQUARES[0], 2: CROSS}
    layer = [[0, 2, 0, 1], [2, 0, 1, 0], [0, 2, 2, 2], [0, 2, 0, 2]]
    weight = np.zeros((4, 4, 3, 3), np.float32)
    for k, row in enumerate(layer):
        for c, pattern in enumerate(row):
            if pattern:
                weight[k, c] = patterns[pattern]
    kernels = find_kernels(weight)
    square = kernels.shape == kernels.shapes.index(((0, 0), (0, 1), (1, 0), (1, 1)))
    assert (kernels.filter[square].tolist(), kernels.channel[square].tolist()) == ([0, 1], [3, 2])
    assert kernels.filter[~square].tolist() == [0, 1, 2, 2, 2, 3, 3]
    assert kernels.channel[~square].tolist() == [1, 0, 1, 2, 3, 1, 3]
    starts = np.searchsorted(kernels.filter, range(5))
    assert np.diff(starts).tolist() == [2, 2, 3, 2]
    groups = list(encode(kernels, np.zeros(4, np.float32), Packing(100, 10, 1, 1000), np.arange(4), 1))
    assert len(groups) == 1
    assert groups[0].kernels.tolist() == [2, 2, 2, 3]  # ascending: filter 2 comes last
    assert groups[0].headers[:, 1 + len(kernels.shapes)].tolist() == [0, 1000, 3000, 2000]
    assert np.array_equal(decode(groups, Packing(100, 10, 1, 1000), weight.shape), weight)


@pytest.mark.parametrize(("most", "sizes"), [(1, [1]), (2, [2, 1]), (4, [4, 2, 1])])
def test_groups_are_filters_that_agree(most: int, sizes: list[int]) -> None:
    rng = np.random.default_rng(0)
    mask = np.repeat(rng.random((2, 4, 1, 1)) < 0.5, [7, 1], axis=0)
    mask[7] = ~mask[0]
    groups = list(
        encode(
            find_kernels(rng.random((8, 4, 3, 3)) * mask),
            np.zeros(8, np.float32),
            Packing(1, 1, 1, 1),
            np.arange(8),
            most,
        )
    )
    assert [part.filters for part in groups] == sizes
    assert sum(part.filters * len(part.headers) for part in groups) == 8


def test_words_of_a_group_by_hand() -> None:
    """Two filters with one 1x2 kernel on channel 3: offset, then tap by tap, filter by filter."""
    weight = np.zeros((2, 4, 1, 2), np.float32)
    weight[:, 3] = [[[1, 2]], [[3, 4]]]
    (group,) = encode(
        find_kernels(weight), np.array([5, 6], np.float32), Packing(64, 16, 4, 100, 10, 1, 1), np.arange(2), 2
    )
    assert group.stream[0] == 3 * 64
    assert group.stream[1:].view(np.float32).tolist() == [1, 3, 2, 4]
    start, count, *rest = group.headers[0].tolist()
    assert (start, count, rest[:2], rest[2:4]) == (0, 1, [0, 100], [-1, 0])  # filter 1 reads residual channel 0
    assert group.headers[0, 6:].view(np.float32).tolist() == [5, 6]


@pytest.mark.parametrize(
    "packing", [Packing(2**30, 64, 4, 4), Packing(64, 16, 4, 2**30), Packing(1, 1, 1, 1, 2**30, 0, 4)]
)
def test_no_offset_wraps_around(packing: Packing) -> None:
    """Channel 3 of the input, filter 3 of the output, channel 3 of the residual: each 3 GiB behind its start."""
    kernels, bias, filters = find_kernels(np.ones((4, 4, 1, 1))), np.zeros(4, np.float32), np.arange(4)
    with pytest.raises(ShapeError, match="3221225472 bytes behind a start, compiled code reaches 2147483647"):
        list(encode(kernels, bias, packing, filters, 1))
    with pytest.raises(ShapeError, match="3221225472 bytes behind a start, compiled code reaches 2147483647"):
        encode_runs(kernels, bias, packing, filters, 64)
