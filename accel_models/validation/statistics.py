"""From errors of rows to intervals of what was not measured yet.

Of row i of network g, with its network left out of every fit, the error is e_gi = ln(predicted / published).

**Absolute interval**, of a new row of a new network. Rows of one network share its error, so networks count, not rows:

    s^2 = mean over the G networks of the mean over their rows of e^2
    ln(published / predicted) in  +- t(G) * s

with t the quantile of Student's distribution at LEVEL: a prediction interval under a normal law around a model that is
right on average, and the small-sample rule (two networks: 1.9 s, three: 1.6 s, ten: 1.4 s, many: 1.3 s). A model that
errs one way has that in s and gets a wider interval, never one that leaves the prediction out. Rows of one network say
nothing of the next one: there is no absolute interval.

**Ratio interval**, of predicted(a) / predicted(b) for two variants on one machine: what both share cancels. Of rows
measured in the same circumstances (overrides, metric) in sets of variants (one network, and one layer of it or one
kind and map size of single layers) with n_v rows each,

    s^2 = sum over sets of sum (e - mean of the set)^2 / sum (n_v - 1)
    ln(published ratio / predicted ratio) in  +- t(sum (n_v - 1)) * sqrt(2) * s

which is what all pairs of a set give, each row's error counted once. With fewer than FEW - 1 such differences sets are
all rows of the same circumstances, other networks included: wider, and the basis says so. Two variants share a part of
their error and have no more of it than two unrelated rows, so the interval is never wider than two independent errors
of the absolute one give, +- sqrt(2) * t(G) * s, which is also what applies where nothing can be compared. If all rows
are of one network, each of them stands for itself in that bound (G rows in place of G networks).

Known to be wrong: rows of one network at several threads or batches count as independent inside a set; tails heavier
than normal; a mixture of evidence (silicon beside estimates) in one interval.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from scipy.special import stdtrit

from accel_models.validation import FEW, LEVEL, Interval

SMALLEST = 1e-6  # a prediction of nothing counts as this much of the published value


def log_errors(predicted: np.ndarray, published: np.ndarray) -> np.ndarray:
    """ln(predicted / published).

    >>> log_errors(np.array([2.0, 0.0]), np.array([1.0, 1.0])).round(3).tolist()
    [0.693, -13.816]
    """
    return np.asarray(np.log(np.maximum(predicted / published, SMALLEST)))


def absolute_interval(errors: np.ndarray, networks: Sequence[Hashable]) -> Interval | None:
    """The interval of a prediction; None with fewer than two networks.

    >>> absolute_interval(np.array([0.1, -0.1]), ["a", "b"])  # +- 1.886 * 0.1
    Interval(low=0.8281, high=1.208, basis='2 networks')
    """
    if len(set(networks)) < 2:
        return None
    return _interval(_half_width(errors, networks), f"{len(set(networks))} networks")


def _half_width(errors: np.ndarray, groups: Sequence[Hashable]) -> float:
    """t(G) * s of G groups."""
    code = _codes(groups)
    count = np.bincount(code)
    return _student(len(count)) * float(np.sqrt(np.mean(np.bincount(code, errors**2) / count)))


def ratio_interval(
    errors: np.ndarray, variants: Sequence[Hashable], circumstances: Sequence[Hashable], networks: Sequence[Hashable]
) -> Interval | None:
    """The interval of a ratio of two predictions; None with fewer than two rows.

    Args:
        errors: float64 (rows,), logarithmic.
        variants: equal for rows that are variants of each other in the same circumstances.
        circumstances: equal for rows of the same circumstances.
        networks: that each row is of.

    >>> ratio_interval(np.array([0.1, -0.1]), [0, 1], [0, 1], ["a", "a"])  # +- 1.886 * sqrt(2) * 0.1
    Interval(low=0.7659, high=1.306, basis='two errors of 2 rows of one network')
    """
    if len(errors) < 2:
        return None
    spread, freedom = _within(errors, variants)
    basis = f"{freedom + len(_several(variants))} variants of {len(_several(variants))} networks or layers"
    if freedom < FEW - 1:
        spread, freedom = _within(errors, circumstances)
        sets = _several(circumstances)
        basis = f"{sum(circumstances.count(label) for label in sets)} rows of the same circumstances"
    half = _student(freedom) * float(np.sqrt(2 * spread)) if freedom else np.inf
    total = len(set(networks))
    of = f"{total} networks" if total > 1 else f"{len(errors)} rows of one network"
    widest = float(np.sqrt(2)) * _half_width(errors, networks if total > 1 else range(len(errors)))
    return _interval(half, basis) if half <= widest else _interval(widest, f"two errors of {of}")


def _within(errors: np.ndarray, sets: Sequence[Hashable]) -> tuple[float, int]:
    """(variance inside the sets, differences that it rests on)."""
    code = _codes(sets)
    count = np.bincount(code)
    mean = np.bincount(code, errors) / count
    freedom = int((count - 1).sum())
    return float(((errors - mean[code]) ** 2).sum()) / max(freedom, 1), freedom


def _several(sets: Sequence[Hashable]) -> list[Hashable]:
    """Labels that more than one row has."""
    return [label for label in dict.fromkeys(sets) if list(sets).count(label) > 1]


def rank_correlation(predicted: np.ndarray, published: np.ndarray, metrics: Sequence[str]) -> float | None:
    """Spearman's, over rows of one metric and weighted by their number; None if no metric has three rows.

    >>> rank_correlation(np.array([1.0, 3.0, 2.0]), np.array([10.0, 20.0, 30.0]), ["cycles"] * 3)
    0.5
    """
    found, weights = [], []
    for metric in dict.fromkeys(metrics):
        rows = np.array([each == metric for each in metrics])
        ours, theirs = _ranks(predicted[rows]), _ranks(published[rows])
        if rows.sum() >= 3 and min(np.ptp(ours), np.ptp(theirs)) > 0:
            found.append(float(np.corrcoef(ours, theirs)[0, 1]))
            weights.append(int(rows.sum()))
    return round(float(np.average(found, weights=weights)), 4) if found else None


def _ranks(values: np.ndarray) -> np.ndarray:
    """Places in rising order; equal values share the mean of theirs."""
    _, inverse, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return np.asarray((last - (count - 1) / 2)[inverse])


def _codes(labels: Sequence[Hashable]) -> np.ndarray:
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(label, len(known)) for label in labels], np.int64)


def _student(freedom: int) -> float:
    """Half width of the central interval of Student's distribution, at LEVEL."""
    return float(stdtrit(freedom, (1 + LEVEL) / 2))


def _interval(half: float, basis: str) -> Interval:
    return Interval(float(f"{np.exp(-half):.4g}"), float(f"{np.exp(half):.4g}"), basis)
