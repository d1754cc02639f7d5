"""How many non-zeros the busiest of several processing elements gets, when the zeros of a mask fall at random.

A unit that holds t weights, each kept with probability p, has Binomial(t, p) non-zeros. Units that wait for one another
take as long as the busiest, so pricing needs the expectation of the largest of u such numbers:

    E[max] = sum over x >= 0 of (1 - F(x)^u),    F = the binomial distribution function

The sum is exact and slow. `expected_maximum_binomial` prices many rows at once. Where the variance t*p*(1-p) is small
(below 4 + ln u) it forms the sum by the recurrence of the binomial probabilities, counting the rarer outcome. Elsewhere
it writes a count as a rising function of a standard normal Z (Cornish and Fisher, "Moments and cumulants in the
specification of distributions", 1938; three terms, with Sheppard's 1/12 for the lattice), so that the largest count is
the same function of the largest of u normals, whose moments are tabulated once. Against the exact sum the error stayed
below 0.2 % (0.3 % with groups) on thousands of random rows with up to 200,000 weights and a million units.

Unequal units (the last tile of a ragged split) come as groups, each with its own t and u. The maxima of two groups are
combined by Clark's formula ("The greatest of a finite set of random variables", Operations Research, 1961).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

ROWS_PER_CHUNK = 4096  # the working arrays of a chunk stay in the second-level cache
NEGLIGIBLE = 1e-9  # a term of the sum below which all later terms are dropped; the terms fall faster than geometrically
SMALLEST = 1e-300  # stands for a probability of zero inside a logarithm


def expected_maximum_binomial(trials: ArrayLike, p: ArrayLike, units: ArrayLike) -> np.ndarray:
    """Expectation of the largest of `units` independent Binomial(trials, p) numbers, within 0.2 %.

    Args:
        trials: weights a unit holds, >= 0.
        p: probability that a weight is kept, 0..1 (the density).
        units: how many units, >= 1. All three broadcast.

    Returns:
        float64, the broadcast shape; between trials * p and trials.

    Raises:
        ValueError: a value outside its range.

    >>> expected_maximum_binomial(1, 0.5, 2).item()  # of two coins the better shows heads in three cases of four
    0.75
    """
    t, density, u = np.broadcast_arrays(*(np.asarray(x, float) for x in (trials, p, units)))
    return expected_maximum_of_groups(t[..., None], density, u[..., None])


def expected_maximum_of_groups(trials: ArrayLike, p: ArrayLike, units: ArrayLike) -> np.ndarray:
    """The same for units of several sizes: group g has `units[..., g]` units of `trials[..., g]` weights each.

    Args:
        trials: (..., groups), >= 0.
        p: (...), 0..1, one density for all groups.
        units: (..., groups), >= 0; 0 leaves a group out, but one group must be present.

    Returns:
        float64, (...).

    Raises:
        ValueError: a value outside its range, or a row without a unit.
    """
    t, u = np.broadcast_arrays(np.asarray(trials, float), np.asarray(units, float))
    density = np.broadcast_to(np.asarray(p, float), t.shape[:-1])
    _check(t, density, u)
    shape, groups = density.shape, t.shape[-1]
    t, u = np.where(u > 0, t, 0.0).reshape(-1, groups), u.reshape(-1, groups)
    density = density.reshape(-1)
    result = np.empty(len(density))
    for start in range(0, len(density), ROWS_PER_CHUNK):
        part = slice(start, start + ROWS_PER_CHUNK)
        result[part] = _chunk(t[part], density[part], u[part])
    return result.reshape(shape)


def expected_maximum_binomial_exact(trials: int, p: float, units: int) -> float:
    """The defining sum for one row; the reference that the vectorised form is tested against.

    >>> expected_maximum_binomial_exact(1, 0.5, 2)
    0.75
    """
    from scipy.stats import binom

    return float(np.sum(-np.expm1(units * binom.logcdf(np.arange(trials), trials, p))))


@lru_cache
def largest_normal(most: int) -> tuple[np.ndarray, np.ndarray]:
    """First and second moments of the largest of 0, 1 .. `most` standard normal numbers, (most + 1,) each.

    The sum over a smooth bell converges faster than any power of its step: 0.05 differs from 0.01 by 4e-14.

    >>> first, second = largest_normal(2)
    >>> first.round(4).tolist(), second.round(4).tolist()  # of two: 1 / sqrt(pi) and 1
    ([0.0, 0.0, 0.5642], [1.0, 1.0, 1.0])
    """
    z = np.linspace(-9.0, 9.0, 361)
    log_cdf = np.array([_log_normal_cdf(x) for x in z])
    count = np.maximum(np.arange(most + 1.0), 1.0)[:, None]
    chance = count * np.exp(-(z**2) / 2 + (count - 1) * log_cdf) * ((z[1] - z[0]) / np.sqrt(2 * np.pi))
    return np.where(count[:, 0] > 1, chance @ z, 0.0), chance @ z**2


def _check(trials: np.ndarray, p: np.ndarray, units: np.ndarray) -> None:
    if not (trials >= 0).all():
        raise ValueError(f"trials: {np.min(trials)}, must be >= 0")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p: {np.min(p)}..{np.max(p)}, must lie in 0..1")
    if not ((units >= 0).all() and (units.sum(-1) > 0).all()):
        raise ValueError("units: must be >= 0, with at least one unit in every row")


def _chunk(trials: np.ndarray, p: np.ndarray, units: np.ndarray) -> np.ndarray:
    largest = trials.max(axis=1)
    result = largest * p  # what p = 0, p = 1 and a single unit keep
    open_rows = (p > 0) & (p < 1) & (largest > 0) & (units.sum(axis=1) > 1)
    small = open_rows & (largest * p * (1 - p) < 4 + np.log(np.maximum(units.sum(axis=1), 1)))
    for rows, method in ((small, _by_summation), (open_rows & ~small, _by_normal)):
        if rows.any():
            result[rows] = np.clip(method(trials[rows], p[rows], units[rows]), result[rows], largest[rows])
    return result


def _by_summation(trials: np.ndarray, p: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Sum of 1 - F^u upwards from 0; for p > 1/2 the dropped weights are counted, downwards from the largest unit.

    With Y = t - X dropped weights, E[max X] = t_max - sum over j of prod over groups of P(Y > j - lag)^u,
    where lag = t_max - t says by how much a smaller unit is behind before it has dropped anything.
    """
    reflected = (p > 0.5)[:, None]
    rarer = np.where(reflected, 1 - p[:, None], p[:, None])
    largest = trials.max(axis=1)
    lag = np.where(reflected, largest[:, None] - trials, 0.0)
    mass = np.exp(trials * np.log1p(-rarer))
    odds = rarer / (1 - rarer)
    below = np.zeros_like(trials)  # P(rarer outcomes <= j - lag)
    total = np.zeros_like(p)
    for j in range(int(largest.max()) + 1):
        step = j - lag
        active = step >= 0
        below = np.where(active, np.minimum(below + mass, 1.0), below)
        tail = np.where(reflected, 1 - below, below)
        product = np.exp((units * np.log(np.maximum(tail, SMALLEST))).sum(axis=1))
        term = np.where(reflected[:, 0], product, 1 - product)
        total += term
        if term.max() < NEGLIGIBLE:
            break
        mass = np.where(active, mass * np.maximum(trials - step, 0) / np.maximum(step + 1, 1) * odds, mass)
    return np.where(reflected[:, 0], largest - total, total)


def _by_normal(trials: np.ndarray, p: np.ndarray, units: np.ndarray) -> np.ndarray:
    mean, variance = _normal_maximum(trials[:, 0], p, units[:, 0])
    for g in range(1, trials.shape[1]):
        present = units[:, g] > 0
        if not present.any():
            continue
        other, spread = _normal_maximum(trials[:, g], p, units[:, g])
        both_mean, both_variance = _clark(mean, variance, other, spread)
        first = units[:, :g].sum(axis=1) > 0
        mean = np.where(present, np.where(first, both_mean, other), mean)
        variance = np.where(present, np.where(first, both_variance, spread), variance)
    return mean


def _normal_maximum(trials: np.ndarray, p: np.ndarray, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of the largest count of one group, by Cornish-Fisher; units = 0 reads as 1."""
    true_variance = trials * p * (1 - p)
    variance = np.maximum(true_variance - 1 / 12, 0.25)
    deviation = np.sqrt(variance)
    skewness = (1 - 2 * p) * true_variance / (variance * deviation)
    excess = (true_variance * (1 - 6 * p * (1 - p)) + 1 / 120) / variance**2
    m1, m2, m3 = _normal_moments(units)
    stretched = m1 + skewness * (m2 - 1) / 6 + excess * (m3 - 3 * m1) / 24 - skewness**2 * (2 * m3 - 5 * m1) / 36
    mean = np.clip(trials * p + deviation * stretched, trials * p, trials)
    return mean, variance * (m2 - m1**2) * (1 + skewness * m1 / 3) ** 2


def _normal_moments(units: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First three raw moments of the largest of `units` standard normals, by interpolation over ln(units)."""
    grid, moments = _moment_table()
    at = np.log(np.maximum(units, 1.0))
    m1, m2, m3 = (np.interp(at, grid, row) for row in moments)
    return m1, m2, m3


@lru_cache(maxsize=1)
def _moment_table() -> tuple[np.ndarray, np.ndarray]:
    """ln(u), (points,), exact for u <= 32 and then 24 points a decade up to 1e9, and the moments, (3, points)."""
    u = np.concatenate([np.arange(1.0, 32.0), np.geomspace(32, 1e9, 181)])
    z = np.linspace(-10.0, 12.0, 4401)
    log_cdf = np.array([_log_normal_cdf(x) for x in z])
    log_density = np.log(u)[:, None] - z**2 / 2 - math.log(2 * math.pi) / 2 + (u[:, None] - 1) * log_cdf
    weight = np.exp(log_density) * (z[1] - z[0])
    return np.log(u), np.stack([weight @ z**power for power in (1, 2, 3)])


def _log_normal_cdf(x: float) -> float:
    tail = 0.5 * math.erfc(abs(x) / math.sqrt(2))
    return math.log1p(-tail) if x > 0 else math.log(tail)


def _clark(
    mean_a: np.ndarray, variance_a: np.ndarray, mean_b: np.ndarray, variance_b: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of the larger of two independent, roughly normal numbers."""
    from scipy.special import ndtr

    theta = np.sqrt(variance_a + variance_b)
    alpha = (mean_a - mean_b) / theta
    bell = np.exp(-(alpha**2) / 2) / math.sqrt(2 * math.pi)
    share = ndtr(alpha)
    mean = mean_a * share + mean_b * (1 - share) + theta * bell
    square = (
        (mean_a**2 + variance_a) * share + (mean_b**2 + variance_b) * (1 - share) + (mean_a + mean_b) * theta * bell
    )
    return mean, np.maximum(square - mean**2, 0.0)
