"""Published measurements and the error of every model against them.

`errors.json` holds, for each target, the error that `python -m accel_models.validation` last computed from the rows
beside it; a test recomputes it. Results print it beside every prediction.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class ErrorBar:
    """Relative error of predictions against published rows.

    Attributes:
        rows: how many rows were compared. against: what they are, with their kind (silicon, vendor estimate, ...).
        mean, median, worst: of |predicted / published - 1|. worst_row: where.
        calibrated: whether parameters of the model were fitted to (some of) these rows.
    """

    rows: int
    against: str
    mean: float
    median: float
    worst: float
    worst_row: str
    calibrated: bool

    def __str__(self) -> str:
        against = self.against.replace("rows", "row", 1) if self.rows == 1 else self.against
        few = ", indicative" if self.rows < 5 else ""
        fitted = ", some of them used for calibration" if self.calibrated else ""
        return (
            f"error against {self.rows} {against}: median {self.median:.1%}, mean {self.mean:.1%}, "
            f"worst {self.worst:.1%} ({self.worst_row}){few}{fitted}"
        )


@cache
def _stored() -> dict[str, dict[str, object]]:
    path = FOLDER / "errors.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def error_bar(target: str) -> ErrorBar | None:
    """The stored error of a target's model; None where no published rows exist."""
    record = _stored().get(target)
    return ErrorBar(**record) if record else None  # type: ignore[arg-type]
