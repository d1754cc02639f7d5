"""Slices counted over all masks, and waiting times against the queues played column by column."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_models.sparse.queues import Slice, finish, finish_exact
from workloads.order_statistics import largest_normal
from workloads.sparsity import WeightSparsity


def played(service: np.ndarray, depth: int) -> float:
    """Cycle in which the slowest PE is done, by the recurrence of one column after another."""
    ends = np.zeros(len(service))
    done, broadcast = np.zeros(service.shape[1]), 0.0
    for j, each in enumerate(service):
        broadcast += j > 0
        if j >= depth:
            broadcast = max(broadcast, ends[j - depth] + 1)
        done = np.maximum(done, broadcast) + each
        ends[j] = done.max()
    return float(ends[-1])


@pytest.mark.parametrize(("length", "density", "run_bits"), [(1, 0.25, 4), (6, 0.25, 1), (9, 0.5625, 2), (5, 1.0, 1)])
def test_slices_over_all_masks(length: int, density: float, run_bits: int) -> None:
    masks = np.array(list(itertools.product([False, True], repeat=length)))
    chance = np.prod(np.where(masks, density, 1 - density), axis=1)
    entries = WeightSparsity.from_mask(masks.T).run_length_counts(run_bits, "input_channel", 1)[:, 0]
    service = np.maximum(entries, 1)
    mean = chance @ service
    found = Slice.of(np.array([float(length)]), np.array([density]), run_bits, 64)  # densities of the table itself
    assert found.entries[0] == pytest.approx(chance @ entries)
    assert found.occupied[0] == pytest.approx(chance @ (entries > 0))
    assert found.mean[0] == pytest.approx(mean)
    assert found.variance[0] == pytest.approx(chance @ (service - mean) ** 2)
    assert found.third[0] == pytest.approx(chance @ (service - mean) ** 3, abs=1e-12)


def test_between_the_densities_of_the_table() -> None:
    density, length = np.linspace(0.013, 0.987, 200), np.full(200, 12.0)
    found = Slice.of(length, density, 4, 64)
    np.testing.assert_allclose(found.entries, 12 * density, rtol=1e-3)  # no run of 16 zeros fits
    np.testing.assert_allclose(found.mean, 12 * density + (1 - density) ** 12, rtol=1e-3)


def test_largest_of_many_normal_numbers() -> None:
    rng = np.random.default_rng(0)
    first, second = largest_normal(64)
    drawn = rng.normal(size=(200_000, 16)).max(axis=1)
    assert first[16] == pytest.approx(drawn.mean(), abs=0.005)
    assert second[16] == pytest.approx((drawn**2).mean(), abs=0.02)
    assert (np.diff(first[1:]) > 0).all()


class TestFinish:
    def test_equal_services_never_wait(self) -> None:
        part = Slice.of(np.array([5.0]), np.array([1.0]), 4, 64)
        assert finish(np.array([10.0]), part, np.array([64.0]), np.array([5.0]), 8, 64).tolist() == [50.0]

    def test_one_pe_takes_its_own_work(self) -> None:
        part = Slice.of(np.array([9.0]), np.array([0.25]), 4, 64)
        found = finish(np.array([100.0]), part, np.array([1.0]), np.array([9.0]), 8, 64)
        assert found[0] == pytest.approx(100 * part.mean[0])

    def test_no_pe_no_time(self) -> None:
        part = Slice.of(np.array([9.0]), np.array([0.25]), 4, 64)
        assert finish(np.array([100.0]), part, np.array([0.0]), np.array([9.0]), 8, 64).tolist() == [0.0]

    @pytest.mark.parametrize("pes", [4, 16, 64])
    @pytest.mark.parametrize("depth", [4, 8, 32])
    @pytest.mark.parametrize(("length", "density"), [(64, 0.09), (38, 0.1), (10, 0.1), (16, 0.5)])
    def test_agrees_with_the_queues_played(self, pes: int, depth: int, length: int, density: float) -> None:
        rng = np.random.default_rng(0)
        part = Slice.of(np.array([float(length)]), np.array([density]), 4, 64)
        for columns, repeats in ((16, 30), (100, 10), (1000, 1)):
            total = 0.0
            for _ in range(repeats):
                mask = WeightSparsity.from_mask(rng.random((length * pes, columns)) < density)
                total += played(np.maximum(mask.run_length_counts(4, "input_channel", pes), 1), depth)
            found = finish(
                np.array([float(columns)]), part, np.array([float(pes)]), np.array([float(length)]), depth, 64
            )
            assert found[0] == pytest.approx(total / repeats, rel=0.05), columns

    def test_shorter_queues_wait_longer(self) -> None:
        part = Slice.of(np.array([38.0]), np.array([0.1]), 4, 64)
        n, pes, length = (np.array([x]) for x in (2000.0, 64.0, 38.0))
        times = [finish(n, part, pes, length, depth, 64)[0] for depth in (4, 8, 16, 64)]
        assert sorted(times, reverse=True) == times
        assert times[0] > 1.05 * times[-1]


class TestFinishExact:
    def test_nothing_to_broadcast(self) -> None:
        assert finish_exact(np.ones((3, 2)), np.zeros(3), 8) == (0.0, 0.0)

    def test_one_pe_has_all_the_work(self) -> None:
        service = np.ones((50, 8))
        service[:, 3] = 5
        mean, slowest = finish_exact(service, np.ones(50), 8)
        assert mean == 75
        assert slowest == 250

    @given(st.sampled_from([4, 16, 64]), st.integers(20, 200), st.floats(0.05, 0.95), st.integers(0, 2**32 - 1))
    @settings(max_examples=30)
    def test_agrees_with_the_queues_played(self, pes: int, columns: int, density: float, seed: int) -> None:
        rng = np.random.default_rng(seed)
        rows = rng.beta(2, 2 / density - 2, (6 * pes, 1))  # filters of unequal densities, as training leaves them
        mask = WeightSparsity.from_mask(rng.random((6 * pes, columns)) < rows)
        service = np.maximum(mask.run_length_counts(4, "input_channel", pes), 1).astype(float)
        mean, slowest = finish_exact(service, np.ones(columns), 8)
        assert mean == pytest.approx(service.mean(axis=1).sum())
        assert slowest == pytest.approx(played(service, 8), rel=0.05)
