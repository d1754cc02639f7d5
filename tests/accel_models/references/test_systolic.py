"""The array that moves its values: results against NumPy and PyTorch, cycles of products small enough for paper."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_models.references.lowering import windows
from accel_models.references.systolic import Array, compress, multiply

ARRAYS = [
    Array(3, 2, "ws"),
    Array(2, 3, "is"),
    Array(3, 2, "os"),
    Array(2, 2, "os", waits_for_used=True),
    Array(2, 3, "ws", hidden_loads=True),
    Array(3, 2, "ws", hidden_loads=True, fetch_cycles=11),
    Array(1, 4, "is", hidden_loads=True),
]


def operands(pixels: int, depth: int, filters: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Small integers, so that every sum is exact."""
    rng = np.random.default_rng(seed)
    return rng.integers(-5, 6, (pixels, depth)).astype(float), rng.integers(-5, 6, (depth, filters)).astype(float)


@pytest.mark.parametrize("array", ARRAYS, ids=str)
def test_a_convolution_is_that_of_pytorch(array: Array) -> None:
    rng = np.random.default_rng(3)
    x, weight = rng.standard_normal((2, 5, 4)), rng.standard_normal((5, 2, 3, 2))
    columns, (p, q) = windows(weight.shape, x, 2, 1)
    run = multiply(array, columns.T, weight.reshape(5, -1).T)
    expected = torch.nn.functional.conv2d(torch.tensor(x)[None], torch.tensor(weight), stride=2, padding=1)[0]
    torch.testing.assert_close(torch.tensor(run.output.T.reshape(5, p, q)), expected)


@settings(max_examples=40, deadline=None)
@given(
    array=st.sampled_from(ARRAYS),
    pixels=st.integers(1, 7),
    depth=st.integers(1, 7),
    filters=st.integers(1, 7),
    seed=st.integers(0, 99),
)
def test_every_product_is_exact(array: Array, pixels: int, depth: int, filters: int, seed: int) -> None:
    inputs, weights = operands(pixels, depth, filters, seed)
    np.testing.assert_array_equal(multiply(array, inputs, weights).output, inputs @ weights)


def test_cycles_on_paper() -> None:
    # 1x1 array, 2 pixels, 1 weight: one cycle to load it, two to multiply.
    assert multiply(Array(1, 1), *operands(2, 1, 1)).cycles == 3
    # The same with sums held: two pixels are two folds, nothing to load.
    assert multiply(Array(1, 1, "os"), *operands(2, 1, 1)).cycles == 2
    # 2x2 array, 3 pixels, 2 deep, 2 filters, one fold: 2 to load; the last pixel enters row 0 in cycle 2 + 2, row 1 one
    # later, reaches column 1 one later, cycle 6: seven cycles.
    assert multiply(Array(2, 2), *operands(3, 2, 2)).cycles == 7
    # Sums held: the second of two pairs meets multiplier (1, 1) in cycle 1 + 1 + 1: four cycles for 2 of 2 x 2.
    assert multiply(Array(2, 2, "os"), *operands(2, 2, 2)).cycles == 4
    # One pixel uses row 0 only: one cycle less.
    assert multiply(Array(2, 2, "os", waits_for_used=True), *operands(1, 2, 2)).cycles == 3


def test_hidden_loads_on_paper() -> None:
    # Two folds of 2x2 with 5 pixels: operands enter for 10 cycles, the last one needs 2 more to the far corner.
    inputs, weights = operands(5, 4, 2)
    assert multiply(Array(2, 2, hidden_loads=True), inputs, weights).cycles == 12
    # A tile every 9 cycles: the third, of what follows, is fetched in cycle 18 and has shifted in two later; the first
    # operand entered in cycle 2. The results are out long before.
    assert multiply(Array(2, 2, hidden_loads=True, fetch_cycles=9), inputs, weights).cycles == 18
    # One pixel, no wait for memory: shifting 2 rows in is what takes the time.
    assert multiply(Array(2, 2, hidden_loads=True), *operands(1, 8, 2)).cycles == 4 * 2 + 1


def test_compression_keeps_the_product() -> None:
    weights = np.array([[1.0, 0], [0, 0], [0, 2], [3, 4], [5, 0], [0, 6]])
    values, places, blocks = compress(weights, 4)  # 2:4, and the short block has one value a column but two rows
    assert values.tolist() == [[1, 2], [3, 4], [5, 6], [0, 0]]
    assert places.tolist() == [[0, 2], [3, 3], [0, 1], [1, 0]]
    assert blocks.tolist() == [0, 0, 1, 1]
    inputs = operands(3, 6, 2)[0]
    run = multiply(Array(2, 2), inputs, weights, block=4)
    np.testing.assert_array_equal(run.output, inputs @ weights)
    assert run.cycles == 2 * (2 + 3 + 2)  # four rows in place of six: two folds in place of three
