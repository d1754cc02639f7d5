"""FKW arrays: the published worked example, decoding, and the size formula."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workloads.encodings import fkw_bits
from workloads.errors import ShapeError
from workloads.fkw import fkw_arrays
from workloads.sparsity import WeightSparsity

PATTERNS = np.array(
    [
        [[0, 1, 0], [1, 1, 1], [0, 0, 0]],
        [[0, 1, 0], [1, 1, 0], [0, 1, 0]],
        [[0, 0, 0], [1, 1, 1], [0, 1, 0]],
        [[0, 1, 0], [0, 1, 1], [0, 1, 0]],
    ],
    bool,
)  # the four of Ma et al., "PCONV", AAAI 2020


def weights_of(layer: list[str], rng: np.random.Generator) -> np.ndarray:
    """One text a filter, one character an input channel: the pattern's number from 1, or '.' for a removed kernel."""
    weights = np.zeros((len(layer), len(layer[0]), 3, 3))
    for f, row in enumerate(layer):
        for c, kind in enumerate(row):
            if kind != ".":
                weights[f, c] = rng.uniform(1, 2, (3, 3)) * PATTERNS[int(kind) - 1]
    return weights


def test_published_example() -> None:
    """Niu et al., "PatDNN", ASPLOS 2020, figure of the FKW format."""
    weights = weights_of([".2.1", "2.1.", ".222", ".2.2"], np.random.default_rng(0))
    stored = fkw_arrays(weights, PATTERNS[:2])
    assert stored.offset.tolist() == [0, 2, 4, 6, 9]
    assert stored.reorder.tolist() == [0, 1, 3, 2]
    assert stored.index.tolist() == [3, 1, 2, 0, 1, 3, 1, 2, 3]
    assert stored.stride.tolist() == [[0, 1, 2], [0, 1, 2], [0, 0, 2], [0, 0, 3]]
    assert stored.weight.shape == (9, 4)
    assert stored.weight[0].tolist() == weights[0, 3].ravel()[[1, 3, 4, 5]].tolist()
    assert stored.weight[1].tolist() == weights[0, 1].ravel()[[1, 3, 4, 7]].tolist()
    assert (stored.decode() == weights).all()
    assert stored.size_bits(8, 16) == 36 * 8 + (5 + 4 + 9 + 12) * 16


def test_published_reorder() -> None:
    """The same paper's filter-kernel-reorder figure: groups (0, 3), (1, 4), (2, 5), patterns ascending in a filter."""
    layer = [".2.1..", "1.2.2.", ".222.1", ".2.1..", "1.2.1.", "121.2."]
    stored = fkw_arrays(weights_of(layer, np.random.default_rng(0)), PATTERNS[:2])
    assert stored.reorder.tolist() == [0, 3, 1, 4, 2, 5]
    assert np.diff(stored.offset).tolist() == [2, 2, 3, 3, 4, 4]
    assert np.diff(stored.stride).tolist() == [[1, 1], [1, 1], [1, 2], [2, 1], [1, 3], [2, 2]]


def test_equal_filters_keep_their_order() -> None:
    layer = [("1." if f % 3 else "12") for f in range(120)]
    short = [f for f in range(120) if f % 3]
    stored = fkw_arrays(weights_of(layer, np.random.default_rng(0)), PATTERNS)
    assert stored.reorder.tolist() == short + [f for f in range(120) if f % 3 == 0]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.sampled_from(".1234"), min_size=5, max_size=5), min_size=1, max_size=7))
def test_decode_and_size(layer: list[list[str]]) -> None:
    weights = weights_of(["".join(row) for row in layer], np.random.default_rng(0))
    stored = fkw_arrays(weights, PATTERNS)
    assert (stored.decode() == weights).all()
    assert stored.size_bits(8, 16) == fkw_bits(WeightSparsity.from_weights(weights), 8, patterns=4, index_bits=16)
    assert (fkw_arrays(weights != 0, PATTERNS).decode() == (weights != 0)).all()


def test_zero_inside_a_pattern_is_stored() -> None:
    weights = weights_of(["13", "2."], np.random.default_rng(0))
    weights[0, 0, 0, 1] = 0
    stored = fkw_arrays(weights, PATTERNS)
    assert stored.weight.shape == (3, 4)
    assert (stored.decode() == weights).all()


def test_single_weights_are_kernels_of_one() -> None:
    weights = np.array([[0.0, 2.0], [3.0, 4.0]]).reshape(2, 2, 1, 1)
    stored = fkw_arrays(weights, np.ones((1, 1, 1), bool))
    assert (stored.index.tolist(), stored.weight.ravel().tolist()) == ([1, 0, 1], [2.0, 3.0, 4.0])
    assert (stored.decode() == weights).all()


def test_bad_input() -> None:
    weights = weights_of(["1.", "23"], np.random.default_rng(0))
    with pytest.raises(ShapeError, match=r"kernel \(1, 1\) lies in none of the 2 patterns"):
        fkw_arrays(weights, PATTERNS[:2])
    with pytest.raises(ShapeError, match="needs"):
        fkw_arrays(weights, np.ones((1, 2, 2), bool))
    with pytest.raises(ShapeError, match="same number of ones"):
        fkw_arrays(weights, np.stack([PATTERNS[0], np.ones((3, 3), bool)]))
    with pytest.raises(ShapeError, match="booleans"):
        fkw_arrays(weights, PATTERNS.astype(int))
