"""The cycle-exact inner-product array: cycles counted on paper, and its outputs against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_models.references.inner_product import layer, loads

FIXED = 1 + 4 + 2  # configure, pipeline, levels of an adder tree over four multipliers


def cycles(weight: list[list[float]], inputs: list[list[float]], ports: int, delivers_zeros: bool = True) -> int:
    found = layer(np.array(weight), np.array(inputs), multipliers=4, ports=ports, delivers_zeros=delivers_zeros)
    np.testing.assert_array_equal(found.output, np.array(weight) @ np.array(inputs))
    return found.cycles


class TestCountedOnPaper:
    def test_one_multiplication(self) -> None:
        assert cycles([[2.0]], [[3.0]], ports=4) == FIXED + 2  # the weight, then the input

    def test_two_multipliers_of_a_port_take_turns(self) -> None:
        assert cycles([[2.0, 3.0]], [[3.0, 1.0], [1.0, 1.0]], ports=4) == FIXED + 1 + 2
        assert cycles([[2.0, 3.0]], [[3.0, 1.0], [1.0, 1.0]], ports=2) == FIXED + 2 + 4

    def test_one_delivery_serves_both_multipliers_of_a_port(self) -> None:
        # two filters of one weight for the same input: two weights, then one value a pixel
        assert cycles([[2.0], [3.0]], [[3.0, 1.0, 1.0]], ports=2) == FIXED + 2 + 3

    def test_only_whole_filters_share_a_round(self) -> None:
        weight = [[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]]  # 3 + 2 do not fit 4
        assert cycles(weight, [[1.0]] * 4, ports=4) == 2 * (FIXED + 2)
        assert cycles([[1.0, 0.0], [1.0, 1.0]], [[1.0]] * 2, ports=4) == FIXED + 2

    def test_a_long_filter_is_folded(self) -> None:
        # 4 weights, then 2 more beside the sum so far
        assert [len(load.taps) for load in loads(np.ones((1, 6)), 4)] == [4, 3]
        assert cycles([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]], [[1.0]] * 6, ports=4) == 2 * (FIXED + 2)

    def test_zero_inputs_are_delivered_or_not(self) -> None:
        inputs = [[0.0, 0.0], [0.0, 2.0]]
        assert cycles([[1.0, 1.0]], inputs, ports=2) == FIXED + 2 + 4
        assert cycles([[1.0, 1.0]], inputs, ports=2, delivers_zeros=False) == FIXED + 3  # weights, and the second pixel

    def test_a_filter_without_weights_is_free(self) -> None:
        assert cycles([[0.0], [2.0]], [[3.0]], ports=4) == FIXED + 2
        assert cycles([[0.0], [0.0]], [[3.0]], ports=4) == 0


@pytest.mark.parametrize("delivers_zeros", [True, False])
@given(
    st.integers(1, 10), st.integers(1, 4), st.sampled_from([1, 3]), st.integers(1, 2), st.integers(0, 1),
    st.sampled_from([(4, 4), (8, 4), (16, 4)]), st.floats(0, 1), st.integers(0, 2**32 - 1),
)  # fmt: skip
@settings(max_examples=20)
def test_computes_the_layer(
    delivers_zeros: bool, k: int, c: int, r: int, stride: int, padding: int, shape: tuple[int, int], density: float,
    seed: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    weight = rng.integers(-4, 5, (k, c, r, r)) * (rng.random((k, c, r, r)) < density)
    inputs = rng.integers(-4, 5, (c, 5, 4)) * (rng.random((c, 5, 4)) < 0.6)
    found = layer(
        weight.astype(float), inputs.astype(float), stride, padding, multipliers=shape[0], ports=shape[1],
        delivers_zeros=delivers_zeros,
    )  # fmt: skip
    wanted = torch.nn.functional.conv2d(
        torch.tensor(inputs)[None], torch.tensor(weight), stride=stride, padding=padding
    )
    np.testing.assert_array_equal(found.output, wanted[0].numpy())
