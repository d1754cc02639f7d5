"""Laws of dealing a stage's work to threads."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from codesign.compiler.kernels.control import BarrierKernel
from codesign.compiler.program import LEAST_PART, Call, Stage, Work, divide

COSTS = st.lists(st.floats(1, 100), min_size=1, max_size=30)
THREADS = st.integers(1, 6)


def cut_stage(costs: list[float], threads: int) -> Stage:
    """Pieces of work, cut by `divide`; a call's arguments say of which piece it is, and where it begins in it."""
    works = [
        Work((Call(BarrierKernel(), (piece, int(1000 * begin))),), costs[piece] * (end - begin))
        for piece, parts in enumerate(divide(costs, threads))
        for begin, end in parts
    ]
    return Stage("stage", tuple(works))


@given(costs=COSTS, threads=THREADS)
def test_parts_make_a_whole(costs: list[float], threads: int) -> None:
    for parts in divide(costs, threads):
        assert (parts[0][0], parts[-1][1]) == (0, 1)
        assert all(end == begin for (_, end), (begin, _) in itertools.pairwise(parts))
        assert all(begin < end for begin, end in parts)


@given(costs=COSTS, threads=THREADS)
def test_threads_get_neighbours_and_each_piece_once(costs: list[float], threads: int) -> None:
    stage = cut_stage(costs, threads)
    dealt = [call for share in stage.shares(threads) for call in share]
    assert dealt == [call for work in stage.works for call in work.calls]


@given(costs=COSTS, threads=THREADS)
def test_no_thread_gets_more_than_its_share_and_a_scrap(costs: list[float], threads: int) -> None:
    stage = cut_stage(costs, threads)
    cost = {work.calls[0]: work.cost for work in stage.works}
    loads = [sum(cost[call] for call in share) for share in stage.shares(threads)]
    assert max(loads) <= sum(costs) / threads + 2 * LEAST_PART * max(costs) + 1e-6


def test_one_piece_is_cut_for_all_threads() -> None:
    assert divide([5.0], 4) == [[(0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0)]]


def test_scraps_are_not_cut_off() -> None:
    assert divide([1.0, 1.1], 2) == [[(0.0, 1.0)], [(0.0, 1.0)]]
