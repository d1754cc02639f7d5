"""Processing elements behind bounded queues: how much longer than on average the slowest of them takes.

A value is broadcast to N processing elements (PEs), each of which spends a service time s >= 1 on it. A PE queues up
to `depth` values, the one in work included; a value is broadcast one cycle before it can be worked on, and only if no
queue is full. Letters: n broadcasts; m, v, k mean, variance and third central moment of s over PEs.

    finish = n m + wait
    wait   = sqrt( M^2 v n + (v n (ln N + 0.8) / (2 g))^2 ) + k / v (M2 - 1) / 6,      g = (depth - 1) m - 1

M, M2: first two moments of the largest of N standard normal numbers. While queues never fill, the slowest PE is
sqrt(v n) M behind the mean; the last term corrects that for skewness (Cornish and Fisher). In a long product queues
do fill: no PE can be further ahead of the slowest one than g cycles. Seen from the slowest, the others diffuse with
variance v between two walls g apart and drift away from it at the rate e of the delay; in equilibrium their density
falls as exp(-2 e x / v) towards it, and one of N is there, so e = v ln N / (2 g) cycles a broadcast. 0.8 is what the
cycle-exact reference adds to ln N for 4 to 256 PEs and depths of 4 to 32: a property of the walk, from no
measurement.

A known matrix of services has PEs that differ for good. With D_i the surplus of PE i over the mean, a broadcast, and
T = v / (2 g), N exp(-2 e g / v) = 1 becomes sum_i exp((D_i - e) / T) = 1:

    wait = n sqrt( (T (ln sum_i exp(D_i / T) + 0.8))^2 + M(N')^2 w ),   N' = (sum e^(D/T))^2 / sum e^(2D/T)

For PEs that differ much, or few broadcasts, the sum tends to the largest D. w is the variance that a random choice of
the broadcast columns adds to D, N' how many PEs are level enough to be the slowest by that choice: for it T is at least
2 sqrt(w) / M. On 400 random machines and layers the reference differs by 0.8 % in the mean, 7.2 % at worst.

Known to be wrong: services of one PE are taken as independent from column to column. Queues of fewer than 4 values:
there the delay hangs on single columns, and the formula is off by tens of percent.

Sources: Cornish and Fisher 1938, for the tail; the equilibrium of diffusing leaders is the mean-field form of Brunet
and Derrida, "Shift in the velocity of a front due to a cutoff", Physical Review E 56, 1997.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from workloads.order_statistics import largest_normal

CROWDING = 0.8
GRID = 256  # slices are tabulated at densities (i / GRID)^2
TINY = 1e-12


@dataclass(frozen=True)
class Slice:
    """A PE's part of a column of random weights, as run-length entries; float64 (rows,).

    Attributes:
        entries: expected stored entries, padding zeros included. occupied: chance that there is any.
        mean, variance, third: of the service max(1, entries); the last is the third central moment.
    """

    entries: np.ndarray
    occupied: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    third: np.ndarray

    @classmethod
    def of(cls, length: np.ndarray, density: np.ndarray, run_bits: int, longest: int) -> Slice:
        """Of slices of `length` <= `longest` weights kept with probability `density` each, from a table.

        >>> Slice.of(np.array([2.0]), np.array([0.25]), 4, 2).mean.tolist()  # 1 entry unless both are kept (1/16)
        [1.0625]
        """
        table = slice_table(longest, run_bits)
        at = np.sqrt(density) * GRID
        low = np.minimum(at.astype(np.int64), GRID - 1)
        base, above = (low / GRID) ** 2, ((low + 1) / GRID) ** 2
        share = ((density - base) / (above - base))[:, None]
        row = length.astype(np.int64) * (GRID + 1) + low
        values = table[row] * (1 - share) + table[row + 1] * share
        return cls(*values.T)


@cache
def slice_table(longest: int, run_bits: int) -> np.ndarray:
    """Fields of `Slice` for lengths 0..longest and densities (i / GRID)^2, ((longest + 1) * (GRID + 1), 5).

    Exact, by recurrence over the weights of a slice. State: zeros since the last entry (0 .. 2^b - 1); of the number of
    entries, raw moments 0 to 3. A zero too many is an entry; so is a non-zero, which also fixes how many entries the
    slice has if nothing follows it.
    """
    d = (np.arange(GRID + 1) / GRID) ** 2
    dropped, runs = 1 - d, 2**run_bits
    store = np.zeros((runs + longest, 4, GRID + 1))  # the states are `runs` rows of it, a row earlier with each weight
    store[longest, 0] = 1.0  # moment 0: nothing seen yet, no entry
    ended = np.zeros((longest + 1, 4, GRID + 1))  # moments at the last non-zero
    ended[0, 0] = 1.0
    for weights, start in enumerate(range(longest, 0, -1)):
        states = store[start : start + runs]
        counted = _one_more(states.sum(axis=0) * d)
        ended[weights + 1] = ended[weights] * dropped + counted
        states *= dropped
        store[start - 1] = counted + _one_more(states[-1])
    empty = np.stack([dropped**weights for weights in range(longest + 1)])
    mean, service, squared, cubed = ended[:, 1], *(ended[:, moment] + empty for moment in (1, 2, 3))
    variance = np.maximum(squared - service**2, 0.0)
    third = cubed - 3 * service * variance - service**3
    return np.stack([mean, 1 - empty, service, variance, third], axis=-1).reshape(-1, 5)


def _one_more(moments: np.ndarray) -> np.ndarray:
    """Raw moments 0..3 of a count that has grown by one."""
    zero, one, two, three = moments
    return np.array([zero, one + zero, two + 2 * one + zero, three + 3 * two + 3 * one + zero])


def finish(
    broadcasts: np.ndarray, part: Slice, pes: np.ndarray, length: np.ndarray, depth: int, most: int
) -> np.ndarray:
    """Expected cycles until the last of `pes` (0 to `most`) PEs with such slices is done, (rows,); 0 without PEs."""
    first, second = largest_normal(most)
    units = pes.astype(np.int64)
    reach, n = first[units], broadcasts
    gap = np.maximum((depth - 1) * part.mean - 1, 0.5)
    crowd = np.where(units > 1, np.log(np.maximum(units, 1)) + CROWDING, 0.0)
    steady = part.variance * n * crowd / (2 * gap)
    skew = part.third / np.maximum(part.variance, TINY) * (second[units] - 1) / 6 * np.minimum(n, 1.0)
    wait = np.sqrt(reach**2 * part.variance * n + steady**2) + np.where(part.variance > TINY, skew, 0.0)
    done = np.clip(n * part.mean + wait, n * part.mean, n * np.maximum(length, 1.0))
    return np.where(units > 0, done, 0.0)


def finish_exact(service: np.ndarray, chance: np.ndarray, depth: int) -> tuple[float, float]:
    """(mean, expected slowest) cycles of known services of which each column is broadcast by chance.

    Args:
        service: (columns, PEs), >= 1. chance: (columns,), that the column's input is not zero.
    """
    n = float(chance.sum())
    if n < TINY:
        return 0.0, 0.0
    column = service.mean(axis=1)
    apart = service - column[:, None]
    surplus = chance @ apart / n
    spread = (apart**2).mean(axis=1)
    mean, variance = float(chance @ column) / n, float(chance @ spread) / n
    chosen = float((chance * (1 - chance)) @ spread) / n**2
    wandering = max(variance - float((surplus**2).mean()), 0.0)
    temperature = max(wandering / (2 * max((depth - 1) * mean - 1, 0.5)), TINY)
    leader = float(surplus.max())
    level = leader + temperature * (np.log(np.exp((surplus - leader) / temperature).sum()) + CROWDING)
    first, _ = largest_normal(len(surplus))
    near = np.exp((surplus - leader) / max(temperature, 2 * np.sqrt(chosen) / max(first[-1], 0.5)))
    alike = float(near.sum() ** 2 / (near**2).sum())
    noise = float(np.interp(alike, np.arange(len(first)), first)) ** 2 * chosen
    most = float(chance @ service.max(axis=1))
    return n * mean, min(n * (mean + float(np.hypot(level, np.sqrt(noise)))), most)
