"""Fitted parameters, fitted again: to all their rows, or to the rows of all networks but one.

A machine file lists its fitted parameters with bounds and rows (`spec.Fit`). Parameters with the same rows are fitted
together, by least squares on the logarithms of predicted over published (of percentages, on their differences):

    minimise  sum over rows of ln(predicted(v) / published)^2,   low <= v <= high

from the stored values, with finite differences wide enough to step over rounding to whole tiles. The stored value
stays where nothing better is found, so a second fit changes nothing.

Rows may belong to other machines that share the parameter (the same weight coder, the same cores at another clock):
there the machine's own stored value, times the factor by which the fit moved the one here, is what is priced. So a
bandwidth in bytes a cycle keeps the bytes a second it stands for.

Leaving a network out: all its rows, of every machine, leave the fit, and its rows are predicted with what the others
gave. If all rows are of one network, each is left out by itself. Where no row remains the data say nothing, and the
parameter takes the middle of its bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from accel_models.registry import target, targets
from accel_models.spec import Fit
from accel_models.validation import beside
from accel_models.validation.pricer import Pricer, number_at
from accel_models.validation.rows import Row, machine_file, rows
from workloads.errors import ConfigError

STEP = 5e-3  # of finite differences, in fractions of the bounds' width
BETTER = 1e-4  # relative decrease of the squares below which the stored values stay
Sources = Sequence[tuple[str, Row]]


@dataclass(frozen=True)
class Fitted:
    """One parameter, as stored and as the fit now says."""

    parameter: str
    bounds: tuple[float, float]
    stored: float
    value: float


@dataclass(frozen=True)
class Refit:
    """Parameters that were fitted together.

    Attributes:
        rows: (target, row id) of each row. stored_rms, rms: of the logarithmic errors over them, before and after.
    """

    parameters: tuple[Fitted, ...]
    rows: tuple[tuple[str, str], ...]
    stored_rms: float
    rms: float


class Calibration:
    """The fitted parameters of one target and everything needed to fit them again."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.spec = target(name).spec
        self.pricers: dict[str, Pricer] = {}
        self.published: dict[str, Mapping[str, Row]] = {}

    @cached_property
    def groups(self) -> list[tuple[list[Fit], Sources]]:
        """Parameters with the same rows, and these rows with the target that each belongs to."""
        found: dict[tuple[str, ...], list[Fit]] = {}
        for fit in self.spec.fitted:
            if not fit.rows:
                raise ConfigError(
                    f"{self.name}: fitted: {fit.parameter}: rows: [], must name the rows it was fitted to"
                )
            found.setdefault(fit.rows, []).append(fit)
        return [(fits, [self._row(row) for row in ids]) for ids, fits in found.items()]

    @property
    def networks(self) -> frozenset[str]:
        """Networks of the rows that parameters were fitted to."""
        return frozenset(row.network for _, found in self.groups for _, row in found)

    @property
    def row_names(self) -> tuple[str, ...]:
        """Ids of the rows that parameters were fitted to."""
        return tuple(dict.fromkeys(row for fit in self.spec.fitted for row in fit.rows))

    def left_out(self, found: Sequence[Row], as_stored: Sequence[float]) -> list[float]:
        """Every row of this target as predicted when its network is left out of the fit.

        Args:
            as_stored: predictions with the stored parameters, which stay for rows that nothing was fitted to.
        """
        predicted = list(as_stored)
        if len(self.networks) > 1:
            units, left = self.networks, [row.network for row in found]
        else:
            units, left = frozenset(row.id for _, rows in self.groups for _, row in rows), [row.id for row in found]
        for unit in sorted(units & set(left)):
            places = [i for i, each in enumerate(left) if each == unit]
            again = self.predict([found[i] for i in places], self.values(without=unit))
            for i, value in zip(places, again, strict=True):
                predicted[i] = value
        return predicted

    def refits(self, without: str = "") -> list[Refit]:
        """Fit every group of parameters, leaving out the rows of one network, or one row, if it is named."""
        return [
            self._refit(fits, [source for source in found if without not in (source[1].network, source[1].id)])
            for fits, found in self.groups
        ]

    def values(self, without: str = "") -> dict[str, float]:
        """Fitted values by dotted path."""
        return {fitted.parameter: fitted.value for refit in self.refits(without) for fitted in refit.parameters}

    def predict(self, found: Sequence[Row], values: Mapping[str, float]) -> list[float]:
        """Rows of this target with other values of its parameters."""
        return self._pricer(self.name).predict(found, values)

    def _refit(self, fits: Sequence[Fit], found: Sources) -> Refit:
        stored = np.array([self._stored(fit) for fit in fits])
        low, high = (np.array([fit.bounds[side] for fit in fits], float) for side in (0, 1))
        if not found:
            return Refit(_fitted(fits, stored, (low + high) / 2), (), 0.0, 0.0)
        start = (stored - low) / (high - low)

        def errors(place: np.ndarray) -> np.ndarray:
            return self._errors(found, dict(zip(fits, low + place * (high - low), strict=True)))

        before = errors(start)
        place = _least_squares(errors, start)
        after = errors(place)
        if float(after @ after) > (1 - BETTER) * float(before @ before):
            place, after = start, before
        names = tuple((owner, row.id) for owner, row in found)
        fitted = _fitted(fits, stored, low + place * (high - low))
        return Refit(fitted, names, _rms(before), _rms(after))

    def _stored(self, fit: Fit) -> float:
        value, (low, high) = number_at(self.spec, fit.parameter), fit.bounds
        if not low <= value <= high or low == high:
            raise ConfigError(
                f"{self.name}: fitted: {fit.parameter} is {value:g}, must lie in {low:g} to {high:g}, low < high"
            )
        return value

    def _errors(self, found: Sources, values: Mapping[Fit, float]) -> np.ndarray:
        """Logarithmic errors of rows, each on the target that it belongs to."""
        errors = np.empty(len(found))
        for owner in dict.fromkeys(owner for owner, _ in found):
            places = [i for i, (each, _) in enumerate(found) if each == owner]
            published = [found[i][1] for i in places]
            predicted = self._pricer(owner).predict(published, self._moved(owner, values))
            errors[places] = [_error(row, value) for row, value in zip(published, predicted, strict=True)]
        return errors

    def _moved(self, owner: str, values: Mapping[Fit, float]) -> dict[str, float]:
        """Values for another machine: its own, times the factor by which those here moved."""
        if owner == self.name:
            return {fit.parameter: value for fit, value in values.items()}
        spec = self._pricer(owner).machine("").spec
        stored = {fit: number_at(self.spec, fit.parameter) for fit in values}
        return {
            fit.parameter: number_at(spec, fit.parameter) * value / stored[fit] if stored[fit] else value
            for fit, value in values.items()
        }

    def _pricer(self, owner: str) -> Pricer:
        return self.pricers.setdefault(owner, Pricer(owner))

    def _row(self, wanted: str) -> tuple[str, Row]:
        """A row by its id, of this target or of another one; `target/id` names the target."""
        prefix, slash, identity = wanted.rpartition("/")
        for owner in (prefix,) if slash else (self.name, *targets()):
            if identity in (known := self._rows(owner, is_named=bool(slash) or owner == self.name)):
                return owner, known[identity]
        own = beside(machine_file(self.name), ".csv")
        raise ConfigError(
            f"{self.name}: fitted: no published row has the id {wanted!r}, neither in {own} nor elsewhere"
        )

    def _rows(self, owner: str, is_named: bool) -> Mapping[str, Row]:
        """The rows of a machine by id; those of one that is not named may be wrong, and are no concern of this one."""
        if owner not in self.published:
            try:
                self.published[owner] = {row.id: row for row in rows(owner)}
            except ConfigError:
                if is_named:
                    raise
                return {}
        return self.published[owner]


def _error(row: Row, predicted: float) -> float:
    if row.in_points:
        return (predicted - row.value) / 100
    return float(np.log(max(predicted / row.value, 1e-6)))


def _fitted(fits: Sequence[Fit], stored: np.ndarray, values: np.ndarray) -> tuple[Fitted, ...]:
    return tuple(
        Fitted(fit.parameter, fit.bounds, float(old), float(new))
        for fit, old, new in zip(fits, stored, values, strict=True)
    )


def _rms(errors: np.ndarray) -> float:
    return float(np.sqrt(np.mean(errors**2)))


def _least_squares(errors: Callable[[np.ndarray], np.ndarray], start: np.ndarray) -> np.ndarray:
    """Where the sum of squares is least in the unit box, from `start`."""
    from scipy.optimize import least_squares

    def slopes(place: np.ndarray) -> np.ndarray:
        here, columns = errors(place), []
        for i, at in enumerate(place):
            step = STEP if at <= 0.5 else -STEP
            moved = place.copy()
            moved[i] += step
            columns.append((errors(moved) - here) / step)
        return np.stack(columns, axis=1)

    inside = np.clip(start, STEP, 1 - STEP)
    found = least_squares(errors, inside, slopes, (0.0, 1.0), "dogbox", ftol=1e-5, xtol=1e-4, gtol=None, max_nfev=40)
    return np.asarray(found.x)
