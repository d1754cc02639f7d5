"""Environments for programs that are measured beside this toolkit, apart from its own."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path


def environment_python(place: Path, requirements: Sequence[str], without: str) -> Path:
    """The interpreter of an environment, made on first use (pip, minutes).

    Args:
        place: its folder. requirements: arguments of `pip install`, the same at every call.
        without: what to do to run without it, for the message of an installation that fails.
    """
    python = place / "bin" / "python"
    if not (place / ".ready").exists():
        print(f"installing {' '.join(requirements)} into {place}", file=sys.stderr)
        venv.create(place, with_pip=True, clear=True)
        clean = {key: value for key, value in os.environ.items() if key != "PIP_CONSTRAINT"}
        install = [python, "-m", "pip", "install", "-q", *requirements]
        done = subprocess.run(install, capture_output=True, text=True, check=False, env=clean)
        if done.returncode:
            raise SystemExit(f"{place}: could not be installed ({without})\n{done.stderr[-2000:]}")
        (place / ".ready").touch()
    return python
