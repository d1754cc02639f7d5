"""Sizes of encodings: a four-weight matrix by hand, formulas against slow encoders, expectations against draws."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from workloads.encodings import (
    ENCODINGS,
    bitmask_bits,
    block_bits,
    csc_bits,
    csr_bits,
    dense_bits,
    encoding,
    fkw_bits,
    nm_bits,
    run_length_bits,
    window_bits,
)
from workloads.errors import CodesignError, ConfigError
from workloads.random_masks import RandomMasks
from workloads.sparsity import WeightSparsity

TWO_BY_TWO = WeightSparsity.from_mask(np.array([[1, 0], [1, 1]], bool))
FULL = WeightSparsity.from_mask(np.ones((8, 8, 3, 3), bool))
CROSSES = [list(itertools.chain((4,), three)) for three in itertools.combinations((1, 3, 5, 7), 3)]  # PCONV's four

FIXED = {"nm", "fkw", "window"}  # these hold a fixed number of weights a group and refuse others


def pattern_mask(rng: np.random.Generator, filters: int, channels: int, kept: float) -> np.ndarray:
    """Kernels with one of four patterns, each there with probability `kept`."""
    mask = np.zeros((filters, channels, 9), bool)
    for f, c in zip(*np.nonzero(rng.random((filters, channels)) < kept), strict=True):
        mask[f, c, CROSSES[rng.integers(4)]] = True
    return mask.reshape(filters, channels, 3, 3)


def nm_mask(rng: np.random.Generator, shape: tuple[int, ...], n: int, m: int) -> np.ndarray:
    """Exactly n of every m input channels."""
    scores = rng.random((shape[0], shape[1] // m, m, *shape[2:]))
    return (scores.argsort(axis=2).argsort(axis=2) < n).reshape(shape)


def test_two_by_two_by_hand() -> None:
    assert dense_bits(TWO_BY_TWO, 8) == 32
    assert bitmask_bits(TWO_BY_TWO, 8) == 4 + 24
    assert run_length_bits(TWO_BY_TWO, 8, run_bits=2) == 3 * 10
    assert csr_bits(TWO_BY_TWO, 8) == 3 * (8 + 1) + 3 * 3  # 1-bit index; three row starts of 0..4, three bits each
    assert csc_bits(TWO_BY_TWO, 8) == 3 * (8 + 1) + 3 * 3
    assert csr_bits(TWO_BY_TWO, 8, index_bits=16, pointer_bits=32) == 3 * 24 + 3 * 32
    assert block_bits(TWO_BY_TWO, 8, 1, 2) == 2 + 4 * 8
    assert block_bits(TWO_BY_TWO, 8) == 1 + 16 * 8  # one block of 4 x 4, padded
    assert nm_bits(TWO_BY_TWO, 8) == 4 * (8 + 2)  # a short group of two keeps two
    assert nm_bits(TWO_BY_TWO, 8, 2, 2) == 4 * (8 + 1)


def test_row_and_column_views_by_hand() -> None:
    mask = np.zeros((5, 2, 3, 3), bool)
    mask[0, 0, 0, 0] = mask[4, 1, 2, 2] = True
    zeros = WeightSparsity.from_mask(mask)  # 5 x 18: five index bits in a row, three in a column, seven for 0..90
    assert csr_bits(zeros, 8) == 2 * (8 + 5) + 6 * 7
    assert csc_bits(zeros, 8) == 2 * (8 + 3) + 19 * 7


def test_fkw_of_the_published_example() -> None:
    """Niu et al., "PatDNN", ASPLOS 2020, FKW figure: four filters, four channels, two patterns, nine kernels."""
    layer = [".2.1", "2.1.", ".222", ".2.2"]
    mask = np.zeros((4, 4, 9), bool)
    for f, c in itertools.product(range(4), repeat=2):
        if layer[f][c] != ".":
            mask[f, c, CROSSES[int(layer[f][c]) - 1]] = True
    zeros = WeightSparsity.from_mask(mask.reshape(4, 4, 3, 3))
    weights, indices = 9 * 4, 5 + 4 + 9 + 4 * 3
    assert fkw_bits(zeros, 8, patterns=2, index_bits=16) == weights * 8 + indices * 16
    with pytest.raises(ConfigError, match="does not follow 1 patterns of 4"):
        fkw_bits(zeros, 8, patterns=1)


def test_windows_by_hand() -> None:
    mask = np.zeros((2, 2, 3, 3), bool)
    mask[0, 0, 0, :2] = mask[1, 1, 1:, 2] = mask[1, 0, 0, 1:] = True
    zeros = WeightSparsity.from_mask(mask)  # three kernels of two weights, each with four bits of nine places
    assert window_bits(zeros, 8, 2) == 4 + 3 * 2 * (8 + 4)
    three = WeightSparsity.from_mask(np.tile(np.eye(3, dtype=bool), (2, 2, 1, 1)))  # nine bits are less than 3 x 4
    assert window_bits(three, 8, 3) == 4 + 4 * (3 * 8 + 9)
    whole = WeightSparsity.from_mask(np.broadcast_to(mask.any((2, 3), keepdims=True), (2, 2, 3, 3)))
    assert window_bits(whole, 8, 9) == 4 + 3 * 9 * 8
    assert window_bits(TWO_BY_TWO, 8, 1) == bitmask_bits(TWO_BY_TWO, 8)
    assert window_bits(WeightSparsity.from_density((2, 2, 3, 3), 1 / 6), 8, 2) == 4 + 3 * 2 * (8 + 4)


def test_full_density_never_saves() -> None:
    dense = dense_bits(FULL, 8)
    for name, size in ENCODINGS.items():
        if name not in FIXED:
            assert size(FULL, 8) >= dense, name
    assert nm_bits(FULL, 8, 4, 4) == dense + 2 * FULL.elements
    assert window_bits(FULL, 8, entries=9) == dense + 64
    assert fkw_bits(FULL, 8, entries=9, patterns=1, index_bits=8) == dense + 8 * (64 + 8 * 2 + 17)


OPTIONS: dict[str, dict[str, object]] = {
    "run_length": {"run_bits": 2, "stream": "input_channel", "lanes": 3},
    "block": {"block_k": 3, "block_c": 2},
}


@pytest.mark.parametrize("name", sorted(set(ENCODINGS) - FIXED))
@pytest.mark.parametrize("shape", [(17, 13, 3, 3), (30, 41, 1, 1)])
@pytest.mark.parametrize("density", [0.0, 0.05, 0.4, 1.0])
def test_expected_size_agrees_with_drawn_masks(name: str, shape: tuple[int, ...], density: float) -> None:
    expected = WeightSparsity.from_density(shape, density)
    rng = np.random.default_rng(2)
    options = OPTIONS.get(name, {})
    sizes = np.array([ENCODINGS[name](expected.sample(rng), 8, **options) for _ in range(200)], float)
    error = 4.5 * sizes.std(ddof=1) / math.sqrt(200)
    assert ENCODINGS[name](expected, 8, **options) == pytest.approx(sizes.mean(), abs=error + 1e-9)


def test_fixed_group_encodings_agree_with_drawn_masks() -> None:
    rng = np.random.default_rng(3)
    exact = WeightSparsity.from_mask(nm_mask(rng, (6, 8, 3, 3), 2, 4))
    assert exact.density == 0.5
    assert nm_bits(exact, 8) == nm_bits(WeightSparsity.from_density((6, 8, 3, 3), 0.5), 8) == 6 * 4 * 9 * 10
    drawn = [WeightSparsity.from_mask(pattern_mask(rng, 12, 10, 0.3)) for _ in range(200)]
    sizes = np.array([fkw_bits(one, 8, patterns=4) for one in drawn])
    expected = fkw_bits(WeightSparsity.from_density((12, 10, 3, 3), 0.3 * 4 / 9), 8, patterns=4)
    assert expected == pytest.approx(sizes.mean(), abs=4.5 * sizes.std() / math.sqrt(200))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(hnp.arrays(np.bool_, st.tuples(*[st.integers(1, 6)] * 2, *[st.integers(1, 3)] * 2)), st.integers(1, 16))
def test_exact_sizes_equal_slow_encoders(mask: np.ndarray, weight_bits: int) -> None:
    zeros = WeightSparsity.from_mask(mask)
    matrix = mask.reshape(len(mask), -1)
    stored = int(mask.sum())
    columns = max(matrix.shape[1] - 1, 0).bit_length()
    pointers = (len(mask) + 1) * mask.size.bit_length()
    assert csr_bits(zeros, weight_bits) == stored * (weight_bits + columns) + pointers
    assert csc_bits(zeros, weight_bits) == csr_bits(WeightSparsity.from_mask(matrix.T), weight_bits)
    assert bitmask_bits(zeros, weight_bits) == sum(1 + weight_bits * int(kept) for kept in mask.ravel())
    assert block_bits(zeros, weight_bits, 1, 1) == bitmask_bits(zeros, weight_bits)
    assert run_length_bits(zeros, weight_bits, run_bits=20) == stored * (weight_bits + 20)


@pytest.mark.parametrize("name", ENCODINGS)
def test_rows_equal_single_tensors(name: str) -> None:
    shapes = np.array([(16, 8, 3, 3), (5, 9, 3, 3), (64, 64, 3, 3)])
    densities = np.array([0.1, 0.2, 0.44])
    rows = RandomMasks.of(*shapes.T, densities)
    singles = [WeightSparsity.from_density(tuple(map(int, s)), d) for s, d in zip(shapes, densities, strict=True)]
    np.testing.assert_allclose(ENCODINGS[name](rows, 8), [ENCODINGS[name](one, 8) for one in singles], rtol=1e-10)


def test_density_that_cannot_fit() -> None:
    rng = np.random.default_rng(0)
    half = WeightSparsity.from_density((8, 8, 3, 3), 0.5)
    cases: list[tuple[Callable[[], float], str]] = [
        (lambda: nm_bits(half.sample(rng), 8), "2:4 along input channels"),
        (lambda: nm_bits(half, 8, 1, 4), "1:4 along input channels"),
        (lambda: nm_bits(half, 8, 5, 4), "5:4"),
        (lambda: fkw_bits(half, 8), "8 patterns of 4"),
        (lambda: fkw_bits(half, 8, 0), "patterns of 0 entries"),
        (lambda: fkw_bits(half.sample(rng), 8), "8 patterns of 4"),
        (lambda: fkw_bits(WeightSparsity.from_density((8, 8, 1, 1), 0.1), 8), "8 patterns of 4"),
        (lambda: window_bits(half, 8), "4 weights of every kernel"),
        (lambda: window_bits(half, 8, 0), "windows of 0 entries"),
        (lambda: window_bits(half.sample(rng), 8), "4 weights of every kernel"),
        (lambda: block_bits(half, 8, 0, 4), "tile 0 x 4"),
        (lambda: run_length_bits(half, 8, 0), "run_bits: 0"),
        (lambda: encoding("bitmap")(half, 8), "did you mean 'bitmask'"),
    ]
    for call, message in cases:
        with pytest.raises(CodesignError) as caught:
            call()
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
