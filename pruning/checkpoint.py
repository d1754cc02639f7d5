"""Training states on disk: written whole or not at all, read without running code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from workloads.errors import DataError, first_line
from workloads.store import whole

FORMAT = "codesign.training/1"


def save(state: dict[str, Any], path: Path) -> None:
    """Write a state of tensors and plain values; a killed run leaves the old file or none.

    Raises:
        DataError: the folder cannot be written to.
    """
    with whole(path, RuntimeError) as part:
        torch.save({"format": FORMAT, **state}, part)


def load(path: Path) -> dict[str, Any]:
    """What `save` wrote.

    Raises:
        DataError: no such file, damaged, or holding more than tensors and plain values.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = first_line(error)
        raise DataError(f"{path}: not a training checkpoint ({reason}); delete it to start again") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise DataError(f"{path}: not a training checkpoint of this toolkit; delete it to start again")
    return state
