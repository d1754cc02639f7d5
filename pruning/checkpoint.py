"""Training states on disk: written whole or not at all, read without running code."""

from __future__ import annotations

import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import torch

from workloads.errors import DataError


def save(state: dict[str, Any], path: Path) -> None:
    """Write a state of tensors and plain values; a killed run leaves the old file or none.

    Raises:
        DataError: the folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".checkpoint-", dir=path.parent) as folder:
            part = Path(folder) / path.name
            torch.save(state, part)
            os.replace(part, path)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{path}: cannot be written ({error}); choose a folder that you may write to") from error


def load(path: Path) -> dict[str, Any]:
    """What `save` wrote.

    Raises:
        DataError: no such file, damaged, or holding more than tensors and plain values.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: not a training checkpoint ({reason}); delete it to start again") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise DataError(f"{path}: not a training checkpoint of this toolkit; delete it to start again")
    return state


FORMAT = "codesign.training/1"
