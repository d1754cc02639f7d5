"""The cycle-exact EIE: cycles counted on paper, its encoding, and its outputs against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_models.references.eie import Compressed, layer, product
from workloads.sparsity import WeightSparsity


def run(matrix: list[list[float]], inputs: list[float], pes: int, depth: int = 8) -> tuple[list[float], int]:
    found = product(Compressed.of(np.array(matrix), pes, 4), np.array(inputs), depth, pipeline_stages=4)
    return found.output.tolist(), found.cycles


class TestCountedOnPaper:
    def test_one_multiplication(self) -> None:
        # cycle 0 broadcast, cycle 1 to 4 the stages of the multiplication
        assert run([[2.0]], [3.0], pes=1) == ([6.0], 5)

    def test_a_zero_input_is_not_broadcast(self) -> None:
        assert run([[2.0]], [0.0], pes=1) == ([0.0], 4)
        assert run([[2.0, 1.0]], [0.0, 5.0], pes=1) == ([5.0], 5)

    def test_an_empty_column_takes_a_cycle(self) -> None:
        # two broadcasts in cycles 0 and 1; the first finds no entry in cycle 1, the second is worked on in cycle 2
        assert run([[0.0, 2.0]], [3.0, 1.0], pes=1) == ([2.0], 6)

    def test_rows_are_dealt_out(self) -> None:
        # PE 0 owns rows 0 and 2, PE 1 owns row 1: two cycles for the first
        assert run([[1.0], [2.0], [3.0]], [1.0], pes=2) == ([1.0, 2.0, 3.0], 6)
        assert run([[1.0], [2.0], [3.0]], [1.0], pes=3) == ([1.0, 2.0, 3.0], 5)

    def test_sixteen_zeros_cost_a_stored_zero(self) -> None:
        fifteen, sixteen = [[0.0]] * 15 + [[1.0]], [[0.0]] * 16 + [[1.0]]
        assert run(fifteen, [1.0], pes=1)[1] == 5
        assert run(sixteen, [1.0], pes=1)[1] == 6
        compressed = Compressed.of(np.array(sixteen), 1, 4)
        assert compressed.values.tolist() == [0.0, 1.0]
        assert compressed.zeros.tolist() == [15, 0]

    @pytest.mark.parametrize(("depth", "cycles"), [(1, 11), (2, 10), (8, 10)])
    def test_a_full_queue_delays_the_broadcast(self, depth: int, cycles: int) -> None:
        # depth 1: broadcast in 0, entries in 1 2 3, room seen in 4, broadcast then, entries in 5 6 7, stages to 10
        assert run([[1.0, 1.0]] * 3, [1.0, 1.0], pes=1, depth=depth)[1] == cycles

    def test_the_slowest_pe_counts(self) -> None:
        # PE 0 has 2 + 1 entries, PE 1 has none and 1: broadcasts in 0 and 1, PE 0 works in cycles 1 to 3
        assert run([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0]], [1.0, 1.0], pes=2) == ([2.0, 1.0, 1.0], 7)


@given(
    st.integers(1, 12), st.integers(1, 5), st.sampled_from([1, 3]), st.integers(1, 2), st.integers(0, 1),
    st.sampled_from([1, 2, 4, 16]), st.floats(0, 1), st.integers(0, 2**32 - 1),
)  # fmt: skip
@settings(max_examples=30)
def test_computes_the_layer(
    k: int, c: int, r: int, stride: int, padding: int, pes: int, density: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.integers(-4, 5, (k, c, r, r)) * (rng.random((k, c, r, r)) < density)
    inputs = rng.integers(-4, 5, (c, 5, 4)) * (rng.random((c, 5, 4)) < 0.6)
    found = layer(weight.astype(float), inputs.astype(float), stride, padding, pes=pes, depth=4)
    wanted = torch.nn.functional.conv2d(
        torch.tensor(inputs)[None], torch.tensor(weight), stride=stride, padding=padding
    )
    np.testing.assert_array_equal(found.output, wanted[0].numpy())


def test_computes_a_linear_layer() -> None:
    rng = np.random.default_rng(0)
    weight, inputs = rng.normal(size=(37, 20)), rng.normal(size=20)
    found = layer(weight, inputs, pes=8)
    torch.testing.assert_close(torch.tensor(found.output), torch.tensor(weight) @ torch.tensor(inputs))
    assert found.cycles == 5 * 20 + 4  # dense: 5 rows in the busiest PE, and the pipeline


@given(st.integers(1, 150), st.integers(1, 8), st.sampled_from([1, 2, 8]), st.floats(0, 1), st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_stores_what_the_sparsity_counts(k: int, c: int, pes: int, density: float, seed: int) -> None:
    matrix = (np.random.default_rng(seed).random((k, c)) < density).astype(float)
    stored = np.diff(Compressed.of(matrix, pes, 4).start, axis=0)
    counted = WeightSparsity.from_weights(matrix).run_length_counts(4, "input_channel", pes)
    np.testing.assert_array_equal(stored, counted)
