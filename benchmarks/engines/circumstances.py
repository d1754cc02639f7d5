"""Where, when and how a number was measured: kept with it."""

from __future__ import annotations

import itertools
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PLACES = ("--results", "--out", "--environment")
"""Options that only say where files lie: no part of a command that others repeat."""


def circumstances() -> dict[str, Any]:
    """Machine, versions, time and command."""
    return {
        "machine": {"cpu": cpu(), "cores": os.cpu_count(), "load": os.getloadavg()[0], "system": platform.system()},
        "versions": {"codesign": version(), "python": platform.python_version()},
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command(sys.argv),
    }


def command(words: Sequence[str]) -> str:
    """What others type to repeat a run."""
    pairs = itertools.pairwise(words)
    kept = [word for before, word in pairs if before not in PLACES and word.partition("=")[0] not in PLACES]
    return shlex.join(["python", f"benchmarks/engines/{Path(words[0]).name}", *kept])


def version() -> str:
    """The commit, marked where tracked files other than results differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True).stdout.strip()

    changed = git(
        "status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude)results", ":(exclude)ablation.json"
    )
    return (git("describe", "--always") or "unknown") + "-dirty" * bool(changed)


def cpu() -> str:
    """The processor's name, and of its vector and matrix units the ones that matter here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    units = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in facts.get("flags", "").split()]
    numbers = ", ".join(f"{key} {facts[key]}" for key in ("cpu family", "model") if key in facts)
    return f"{facts.get('model name', platform.processor())} ({numbers}; {', '.join(units)})"
