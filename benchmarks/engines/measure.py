"""Engines timed against each other: workers that live through a case, called in turns.

In every round each engine makes one untimed call and then some timed ones, and another engine begins. So whatever else
the machine does falls on all of them, and the ratio of two minima of one case is worth more than the minima.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from runtimes import ENGINES

HERE = Path(__file__).parent
TURN_S = 0.05
"""An engine's timed calls of one round take about so long, and are one at least."""


class EngineError(Exception):
    """An engine that did not convert, load or answer."""


class Worker:
    """A process with an engine and a case (`worker.py`). `loaded` is its first answer."""

    loaded: dict[str, Any]

    def __init__(self, python: Path, name: str, folder: Path, threads: int = 1) -> None:
        self._log = folder / f"{name}.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [python, HERE / "worker.py", name, folder, str(threads)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment(threads),
            )  # fmt: skip

    def ask(self, times: int, save: Path | None = None) -> None:
        """Have it start so many calls; `answer` waits for them."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it died: `answer` says why
            self._process.stdin.write(json.dumps({"times": times, "save": str(save) if save else None}) + "\n")
            self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Its next answer.

        Raises:
            EngineError: it ended; the message is the last line of what it printed.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise EngineError(last_line(self._log) or f"ended with status {self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def run(self, times: int, save: Path | None = None) -> dict[str, Any]:
        self.ask(times, save)
        return self.answer()

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # it died with a question unread
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


@contextmanager
def worker(python: Path, name: str, folder: Path, threads: int = 1) -> Iterator[Worker]:
    """A worker that ends with the block."""
    found = Worker(python, name, folder, threads)
    try:
        found.loaded = found.answer()
        yield found
    finally:
        found.close()


def last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""


def convert(python: Path, name: str, folder: Path) -> float:
    """Make the file that an engine loads, if it is not there yet; returns CPU seconds.

    Raises:
        EngineError: the conversion failed.
    """
    file = folder / ENGINES[name].file
    if file.exists():
        return 0.0
    before = _children_s()
    log = folder / f"{name}.log"
    with log.open("w") as out:
        words = [python, HERE / "convert.py", folder.resolve(), file.name]
        done = subprocess.run(words, stdout=out, stderr=out, env=environment(1), check=False)
    if done.returncode or not file.exists():
        raise EngineError(f"conversion: {last_line(log) or f'ended with status {done.returncode}'}")
    return _children_s() - before


def _children_s() -> float:
    """CPU seconds of all processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def environment(threads: int) -> dict[str, str]:
    """For a process that finds this toolkit and starts no more threads than it may."""
    limits = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "OPENBLAS", "MKL")}
    return {**os.environ, **limits, "PYTHONPATH": str(HERE.parents[1])}


def alternate(
    pythons: Mapping[str, Path], folder: Path, expected: np.ndarray, rounds: int
) -> dict[str, dict[str, Any]]:
    """Engines in turns, one thread each, by CPU time of their processes.

    Args:
        pythons: engines and the interpreters that have them. folder: of the case, as `networks.Network.save` writes it.
        expected: what the network answers.

    Returns:
        By engine "min_s", "median_s", "calls", "error" (max |a - b| / max |b|), "version", "convert_s" and
        "load_s" (CPU seconds of the conversion to a file, unless another engine has it made, and of loading it), or
        "failed" and the reason.
    """
    results: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name, python in pythons.items():
            try:
                convert_s = convert(python, name, folder)
                one = workers[name] = stack.enter_context(worker(python, name, folder))
                results[name] = {"convert_s": convert_s, **one.loaded, **_first(one, folder / f"{name}.npy", expected)}
            except EngineError as error:
                workers.pop(name, None)
                results[name] = {"failed": str(error)}
        times = {name: _times(each) for name, each in workers.items()}
        seconds: dict[str, list[float]] = {name: [] for name in workers}
        for turn in range(rounds):
            for name in _rotated(list(workers), turn):
                try:
                    seconds[name] += workers[name].run(times[name] + 1)["cpu_s"][1:]
                except EngineError as error:
                    workers.pop(name)
                    results[name] = {"failed": f"in round {turn + 1}: {error}"}
        for name in workers:
            each = seconds[name]
            results[name] |= {"min_s": min(each), "median_s": statistics.median(each), "calls": len(each)}
    return results


def _first(one: Worker, file: Path, expected: np.ndarray) -> dict[str, float]:
    """An engine's first answer and how far it is off."""
    one.run(1, file)
    found = np.load(file)
    if found.shape != expected.shape:
        raise EngineError(f"answers with shape {found.shape}, must be {expected.shape}")
    return {"error": relative_error(found, expected)}


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """max |a - b| / max |b|."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def _times(one: Worker) -> int:
    """Calls that fill a turn."""
    return max(1, round(TURN_S / min(one.run(3)["cpu_s"])))


def _rotated(names: Sequence[str], turn: int) -> list[str]:
    start = turn % len(names) if names else 0
    return [*names[start:], *names[:start]]


def two_threads(python: Path, name: str, folder: Path, rounds: int) -> dict[str, float]:
    """What a second thread brings by wall time, beside what a second process brings.

    Returns:
        "one_s" and "two_s", a call with one and with two threads; "speedup", the first over the second; "ceiling", the
        calls a second of two processes of one thread at once over those of one alone. Of each the best round, of a
        round the median call.

    Raises:
        EngineError: the engine did not convert, load or answer.
    """
    convert(python, name, folder)
    one_s, two_s, beside_s = [], [], []
    with (
        worker(python, name, folder) as one,
        worker(python, name, folder) as other,
        worker(python, name, folder, threads=2) as two,
    ):
        times = _times(one)
        for each in (other, two):
            each.run(1)
        for _ in range(rounds):
            one_s.append(_wall(one.run(times + 1)))
            two_s.append(_wall(two.run(times + 1)))
            one.ask(times + 1)
            other.ask(times + 1)
            beside_s.append(statistics.fmean((_wall(one.answer()), _wall(other.answer()))))
    alone, both, beside = min(one_s), min(two_s), min(beside_s)
    return {"one_s": alone, "two_s": both, "speedup": alone / both, "ceiling": 2 * alone / beside}


def _wall(answer: Mapping[str, Any]) -> float:
    return statistics.median(answer["wall_s"][1:])
