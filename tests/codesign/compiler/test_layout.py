"""Layouts: every pixel has a place of its own, packing is undone, and tiles read what a window reads."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codesign.compiler.layout import FLOAT_BYTES, Layout, best_layout, plain, tiled
from codesign.compiler.tiles import Tile, Window, cut, gather_table, shift_moves
from workloads.errors import ShapeError

HUGE = 40_000  # pixels a side of a map of 6 GB
SIDES = st.integers(1, 13)


@given(n=st.integers(1, 20), c=st.integers(1, 3), h=SIDES, w=SIDES, lanes=st.sampled_from([4, 8, 16]))
def test_packing_is_undone(n: int, c: int, h: int, w: int, lanes: int) -> None:
    x = np.arange(n * c * h * w, dtype=np.float32).reshape(n, c, h, w) + 1
    layout = best_layout(lanes, n, h, w)
    memory = layout.pack(x)
    assert np.count_nonzero(memory) == x.size  # no two pixels share a place
    assert np.array_equal(layout.unpack(memory, (n, c, h, w)), x)


def test_one_lane_is_torchs_order() -> None:
    x = np.random.default_rng(0).random((2, 3, 4, 5), np.float32)
    assert np.array_equal(plain(4, 5).pack(x), x.ravel())


def test_lanes_are_blocks() -> None:
    x = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    memory = tiled(4, 1, 4, 4, (2, 2)).pack(x).reshape(2, 2, 4)
    assert memory[0, 0].tolist() == [0, 2, 8, 10]  # the first pixel of each quarter
    assert memory[1, 1].tolist() == [5, 7, 13, 15]


@pytest.mark.parametrize(
    ("n", "size", "samples", "grid"),
    [(1, 224, 1, (4, 4)), (1, 14, 1, (2, 7)), (32, 14, 16, (1, 1)), (4, 8, 4, (2, 2)), (1, 1, 1, (1, 1))],
)
def test_best_layouts_of_known_maps(n: int, size: int, samples: int, grid: tuple[int, int]) -> None:
    found = best_layout(16, n, size, size)
    assert (found.samples, tuple(sorted(found.grid))) == (samples, grid)


@given(block=st.tuples(SIDES, SIDES), tile=st.tuples(SIDES, SIDES))
def test_tiles_cover_the_block_once(block: tuple[int, int], tile: tuple[int, int]) -> None:
    covered = np.zeros(block, int)
    for part in cut(block, tile):
        assert part.size[0] <= tile[0]
        assert part.size[1] <= tile[1]
        covered[part.row : part.row + part.size[0], part.column : part.column + part.size[1]] += 1
    assert (covered == 1).all()


def read_by_hand(x: np.ndarray, layout: Layout, window: Window, tile: Tile, lane: int) -> np.ndarray:
    """A tile's footprint in one lane, (rows, columns), of channel 0; nan where the lane is no block of the map."""
    sample, block = divmod(lane, layout.grid[0] * layout.grid[1])
    rows, columns = window.footprint(tile.size)
    found = np.zeros((rows, columns), np.float32)
    if sample >= layout.samples or sample >= len(x):
        return np.full_like(found, np.nan)
    top = (block // layout.grid[1] * layout.block[0] + tile.row) * window.stride[0] - window.padding[0]
    left = (block % layout.grid[1] * layout.block[1] + tile.column) * window.stride[1] - window.padding[1]
    for i, j in itertools.product(range(rows), range(columns)):
        y, z = top + i, left + j
        if 0 <= y < x.shape[2] and 0 <= z < x.shape[3]:
            found[i, j] = x[sample, 0, y, z]
    return found


@given(
    n=st.integers(1, 3), h=SIDES, w=SIDES, taps=st.integers(1, 3), stride=st.integers(1, 2), padding=st.integers(0, 2),
    lanes=st.sampled_from([4, 16]),
)  # fmt: skip
def test_footprints_by_moves_and_by_tables_are_what_the_window_reads(
    n: int, h: int, w: int, taps: int, stride: int, padding: int, lanes: int
) -> None:
    window = Window((taps, taps), (stride, stride), (1, 1), (padding, padding))
    p, q = ((side + 2 * padding - taps) // stride + 1 for side in (h, w))
    if p < 1 or q < 1:
        return
    out = best_layout(lanes, n, p, q)
    source = Layout(lanes, out.samples, out.grid, (out.block[0] * stride, out.block[1] * stride))
    if source.grid[0] * source.block[0] < h or source.grid[1] * source.block[1] < w:
        return
    x = np.random.default_rng(0).random((n, 1, h, w), np.float32) + 1
    memory = np.pad(source.pack(x), (source.plane, 0))  # the base may lie before the tensor
    for tile in cut(out.block, (2, 3)):
        rows, columns = window.footprint(tile.size)
        found = shift_moves(source, out, (h, w), window, tile, columns)
        assert found is not None
        base, moves = found
        table = gather_table(source, out, x.shape, window, tile, 0)
        assert len(moves) == len(table) == len(window.reads(tile.size))
        for lane in range(lanes):
            expected = read_by_hand(x, out, window, tile, lane)
            if np.isnan(expected).any():
                continue
            for move, row in zip(moves, table, strict=True):
                wanted = expected[divmod(move.to, columns)]
                frm = move.lanes[lane] if move.lanes else lane
                vector = memory[source.plane + (base + move.source) * lanes :][:lanes] if frm >= 0 else [0]
                assert vector[max(frm, 0)] == wanted
                assert (memory[source.plane + row[lane] // FLOAT_BYTES] if row[lane] >= 0 else 0) == wanted
        assert rows * columns >= len(moves)


def test_other_blocks_have_no_moves() -> None:
    window = Window((3, 3), padding=(1, 1))
    a, b = tiled(16, 1, 28, 28, (4, 4)), tiled(16, 1, 28, 28, (2, 7))
    assert shift_moves(a, b, (28, 28), window, Tile(0, 0, (2, 2)), 4) is None


@pytest.mark.parametrize(("row", "fits"), [(100, True), (HUGE - 1, False)])
def test_no_table_wraps_around(row: int, fits: bool) -> None:
    def table() -> np.ndarray:
        out = tiled(4, 1, HUGE, HUGE, (1, 1))
        return gather_table(plain(HUGE, HUGE), out, (1, 1, HUGE, HUGE), Window((1, 1)), Tile(row, 0, (1, 1)), 0)

    if fits:
        assert table()[0, 0] == row * HUGE * FLOAT_BYTES
    else:
        with pytest.raises(ShapeError, match="compiled code reaches 2147483647; give smaller maps or batches"):
            table()
