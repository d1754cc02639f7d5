"""Published rows beside predictions."""

from __future__ import annotations

from dataclasses import dataclass

from accel_models.validation.pricer import Pricer
from accel_models.validation.rows import Row, rows
from accel_models.validation.workload import layer_graph, layers_columns

__all__ = ["Comparison", "compare", "layer_graph", "layers_columns", "rows"]


@dataclass(frozen=True)
class Comparison:
    """A published number beside its prediction, both in the row's unit."""

    row: Row
    predicted: float

    @property
    def error(self) -> float:
        """Signed: relative, or of a percentage the difference in points over 100."""
        return (self.predicted - self.row.value) / (100 if self.row.in_points else self.row.value)


def compare(name: str) -> list[Comparison]:
    """Every published row of a target with its prediction, in the order of the file.

    Raises:
        ConfigError: a wrong row; names the file, the line and the field.
    """
    found = rows(name)
    return [Comparison(row, value) for row, value in zip(found, Pricer(name).predict(found), strict=True)]
