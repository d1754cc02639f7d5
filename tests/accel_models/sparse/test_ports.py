"""Queues behind ports: cases on paper, and the closed form against queues played burst by burst."""

from __future__ import annotations

import numpy as np
import pytest

from accel_models.sparse.ports import Arrivals, worst_backlog


def expected(shares: list[list[float]], waiting: float, bursts: int, ports: float = 1.0) -> float:
    """Of ports that are sent inputs with these chances."""
    chance = [np.array(share) for share in shares]
    mean, variance = ([[f(share) for share in chance]] for f in (np.sum, lambda x: np.sum(x * (1 - x))))
    same = np.ones((1, len(shares)))
    arrivals = Arrivals(np.array(mean), np.array(variance), waiting * same, ports * same)
    return float(worst_backlog(arrivals, np.array([float(bursts)]))[0])


def played(shares: list[list[float]], waiting: int, bursts: int, ports: int, repeats: int = 400) -> float:
    rng = np.random.default_rng(0)
    most = np.zeros(repeats)
    for share in shares:
        backlog = np.full((repeats, ports), waiting)
        for _ in range(bursts):
            arrive = (rng.random((repeats, ports, len(share))) < share).sum(axis=2)
            backlog = np.maximum(backlog + arrive - 1, 0)
        most = np.maximum(most, backlog.max(axis=1))
    return float(most.mean())


class TestOnPaper:
    def test_one_value_a_burst_never_waits(self) -> None:
        assert expected([[0.9]], 0, 20, ports=64) == pytest.approx(0, abs=1e-6)

    def test_two_values_a_burst_leave_one_each_time(self) -> None:
        assert expected([[1.0, 1.0]], 1, 10) == pytest.approx(11)

    def test_nothing_comes_and_what_waits_is_handed_on(self) -> None:
        assert expected([[0.0, 0.0]], 5, 3) == pytest.approx(2)
        assert expected([[0.0, 0.0]], 5, 30) == pytest.approx(0, abs=1e-6)

    def test_one_burst_of_two_coins(self) -> None:
        # one value is left of two heads (1 in 4); of two ports at least one has them in 7 of 16 cases
        assert expected([[0.5, 0.5]], 0, 1) == pytest.approx(1 / 4, abs=0.03)
        assert expected([[0.5, 0.5]], 0, 1, ports=2) == pytest.approx(7 / 16, abs=0.04)

    def test_a_long_queue_has_the_mean_of_the_endless_one(self) -> None:
        # bursts of 4 x 0.2: (w - r (1 - r)) / (2 (1 - r)) = (0.64 - 0.16) / 0.4
        assert expected([[0.2] * 4], 0, 10_000) == pytest.approx(1.2, rel=0.02)


@pytest.mark.parametrize("ports", [1, 8, 64])
@pytest.mark.parametrize("bursts", [8, 40, 200])
@pytest.mark.parametrize(
    "share", [[0.3, 0.3], [0.5, 0.5], [0.7, 0.7], [0.1, 0.8, 0.2], [0.25] * 4, [0.6, 0.1, 0.9, 0.3]], ids=str
)
def test_cycles_agree_with_the_queues_played(share: list[float], bursts: int, ports: int) -> None:
    waiting = len(share) - 1
    cycles = bursts + 1 + played([share], waiting, bursts, ports)
    assert bursts + 1 + expected([share], waiting, bursts, ports) == pytest.approx(cycles, rel=0.03)


def test_unequal_ports() -> None:
    shares = [[0.3, 0.4], [0.5, 0.55], [0.1, 0.2, 0.3, 0.4]]
    assert expected(shares, 2, 60, ports=3) == pytest.approx(played(shares, 2, 60, 3), rel=0.08)


def test_more_of_anything_waits_no_less() -> None:
    base = expected([[0.4, 0.4]], 1, 50, ports=4)
    assert expected([[0.45, 0.4]], 1, 50, ports=4) > base
    assert expected([[0.4, 0.4]], 4, 50, ports=4) > base
    assert expected([[0.4, 0.4]], 1, 80, ports=4) > base
    assert expected([[0.4, 0.4]], 1, 50, ports=9) > base
