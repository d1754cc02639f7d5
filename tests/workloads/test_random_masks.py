"""Closed forms over rows: equal to the one-tensor form, and the run-length padding against its own sum."""

import numpy as np
import pytest

from workloads.errors import ConfigError, ShapeError
from workloads.random_masks import Balance, RandomMasks, expected_run_padding, shares, shares_of
from workloads.sparsity import WeightSparsity

RNG = np.random.default_rng(0)
SHAPES = np.stack([RNG.integers(1, 40, 50), RNG.integers(1, 40, 50), *RNG.integers(1, 4, (2, 50))])
DENSITY = RNG.random(50) ** 2
ROWS = RandomMasks.of(*SHAPES, DENSITY)
SINGLES = [WeightSparsity.from_density(tuple(map(int, shape)), d) for shape, d in zip(SHAPES.T, DENSITY, strict=True)]


@pytest.mark.parametrize(
    "name", ["elements", "nonzeros", "zero_filters", "zero_input_channels", "zero_kernels", "distinct_patterns"]
)
def test_rows_equal_single_tensors(name: str) -> None:
    np.testing.assert_allclose(getattr(ROWS, name), [getattr(one, name) for one in SINGLES], rtol=1e-12)


def test_rows_equal_single_tensors_with_options() -> None:
    for units, axis, assignment in ((7, "filter", "block"), (16, "input_channel", "interleaved")):
        found = ROWS.balance(units, axis, assignment)
        single = [one.balance(units, axis, assignment) for one in SINGLES]
        np.testing.assert_allclose(found.maximum, [one.maximum for one in single], rtol=1e-7)
        np.testing.assert_allclose(found.mean, [one.mean for one in single])
        np.testing.assert_allclose(found.imbalance, [one.imbalance for one in single], rtol=1e-7)
    tiles = ROWS.tile_balance(8, 3)
    np.testing.assert_allclose(tiles.maximum, [one.tile_balance(8, 3).maximum for one in SINGLES], rtol=1e-7)
    np.testing.assert_allclose(tiles.mean, [one.tile_balance(8, 3).mean for one in SINGLES])
    np.testing.assert_allclose(ROWS.block_nonzeros(4, 3), [one.block_nonzeros(4, 3) for one in SINGLES])
    np.testing.assert_allclose(ROWS.block_count(4, 3), [one.block_count(4, 3) for one in SINGLES])
    for stream, lanes in (("layer", 1), ("filter", 1), ("input_channel", 8)):
        single = [one.run_length_entries(2, stream, lanes) for one in SINGLES]
        np.testing.assert_allclose(ROWS.run_length_entries(2, stream, lanes), single, rtol=1e-10)


def test_units_and_tiles_may_differ_by_row() -> None:
    rows = RandomMasks.of(64, 64, 3, 3, [0.5, 0.5, 0.5])
    found = rows.balance(np.array([1, 2, 64])).maximum
    assert found[0] == rows.nonzeros[0]
    assert (np.diff(found) < 0).all()
    counts = rows.block_count(np.array([1, 8, 100]), np.array([1, 8, 100]))
    assert counts.tolist() == [64 * 64 * 9, 8 * 8 * 9, 9]


@pytest.mark.parametrize("run_bits", [1, 4, 8])
@pytest.mark.parametrize("length", [1, 2, 16, 17, 1000, 50_000])
def test_run_padding_equals_the_sum_it_closes(length: int, run_bits: int) -> None:
    block = 2**run_bits
    m = np.arange(1, (length - 1) // block + 1)
    for density in (0.0, 1e-300, 1e-12, 1e-8, 1e-6, 1e-4, 0.01, 0.3, 0.99, 1.0):
        chance = np.exp(m * block * np.log1p(-density)) if density < 1 else np.zeros(len(m))
        total = density * float(np.sum((length - m * block) * chance))
        assert expected_run_padding(length, density, run_bits).item() == pytest.approx(total, rel=1e-6, abs=1e-200)


def test_long_streams_pad_by_the_geometric_law() -> None:
    # In an endless stream a run of z zeros has probability d (1-d)^z, so paddings a non-zero are x / (1 - x).
    x = 0.91**16
    found = expected_run_padding(1e9, 0.09, 4).item()
    assert found / (1e9 * 0.09) == pytest.approx(x / (1 - x), rel=1e-6)


def test_stored_entries_of_the_deep_compression_release() -> None:
    """Random zeros explain the published padding of AlexNet's classifier, up to the rounding of its densities.

    Stored / dense entries of the Deep Compression AlexNet release (github songhan/Deep-Compression-AlexNet,
    4-bit runs): fc7 0.11679, fc8 0.25919, for the densities 0.09 and 0.25 of Han et al., NIPS 2015 (two digits).
    """
    rows = RandomMasks.of([4096, 1000], 4096, 1, 1, [0.09, 0.25])
    stored = rows.run_length_entries(4) / rows.elements
    np.testing.assert_allclose(stored, [0.11679, 0.25919], rtol=0.03)


def test_pieces_cover_everything() -> None:
    for items in range(1, 30):
        for units in range(1, 12):
            for assignment in ("block", "interleaved"):
                sizes, counts = shares(np.array(items), units, assignment)
                assert (sizes * counts).sum() == items
                assert counts.sum() <= units
                assert sizes[counts > 0].max() == -(-items // units)
            sizes, counts = shares_of(np.array(items), units)
            assert (sizes * counts).sum() == items
            assert counts.sum() == -(-items // units)


def test_imbalance_of_nothing_is_one() -> None:
    assert Balance(np.array([0.0, 2.0]), np.array([0.0, 3.0])).imbalance.tolist() == [1.0, 1.5]
    assert Balance(0, 0).imbalance == 1.0


def test_bad_rows() -> None:
    with pytest.raises(ShapeError, match="dim c of 0, must be >= 1"):
        RandomMasks.of(4, [1, 0], 3, 3, 0.5)
    with pytest.raises(ConfigError, match=r"density 0.5..1.5, must lie in 0..1"):
        RandomMasks.of(4, 4, 3, 3, [0.5, 1.5])
    with pytest.raises(ConfigError, match="units: 0"):
        ROWS.balance(np.array([0]))
    with pytest.raises(ConfigError, match="tile 0 x 1"):
        ROWS.tile_balance(0, 1)
