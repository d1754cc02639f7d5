"""A study on disk: one folder, one finished phase a file, resumed where it stopped.

Every phase's result is written whole or not at all (a temporary file, then a rename), so a run that was killed leaves
only finished phases behind. Opening the folder again with the same configuration skips them; with another one it is an
error, never a mixture.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from workloads.errors import ConfigError, DataError
from workloads.store import is_leftover, read_json, write_json

T = TypeVar("T")


@dataclass(frozen=True)
class Study:
    """A folder of results of one configuration."""

    folder: Path
    config: Mapping[str, Any]

    @classmethod
    def create(
        cls, folder: Path, config: Mapping[str, Any], overwrite: bool = False, later: Mapping[str, Collection[str]] = {}
    ) -> Study:
        """Start a study, or resume the one of the same configuration. One without any result is replaced.

        Args:
            overwrite: start anew in the folder of another study; a folder that holds none is never cleared.
            later: what matters from a phase on: until that phase is finished the study goes on with other values.

        Raises:
            ConfigError, DataError: the folder cannot be written, or holds another study or other files.
        """
        path = folder / "config.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                if _is_started(folder):
                    raise ConfigError(f"{folder}: not empty and not a study; choose another --out")
                write_json(path, dict(config))
            elif overwrite:
                _stored(path)
                _clear(folder)
                write_json(path, dict(config))
            elif _is_started(folder):
                ahead = [phase for phase in later if not (folder / f"{phase}.json").exists()]
                _check_same(path, config, {key for phase in ahead for key in later[phase]})
                if ahead:
                    write_json(path, dict(config))
            else:  # an earlier attempt failed before anything was computed
                _stored(path)
                write_json(path, dict(config))
        except OSError as error:
            raise ConfigError(f"{folder}: cannot be written ({error.strerror}); choose another --out") from error
        for leftover in (*_leftovers(folder), *_leftovers(folder / "trail")):
            leftover.unlink(missing_ok=True)
        return cls(folder, config)

    @classmethod
    def open(cls, folder: Path) -> Study:
        """An existing study.

        Raises:
            ConfigError: the folder holds none.
        """
        return cls(folder, _stored(folder / "config.json"))

    def has(self, name: str) -> bool:
        return self.path(name).exists()

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def loaded(self, name: str, load: Callable[[Any], T]) -> T:
        """What one of the study's files says.

        Raises:
            ConfigError: it is not what this version writes.
        """
        path = self.path(name)
        value = read_json(path)
        try:
            return load(value)
        except ConfigError as error:
            reason = str(error)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{path}: not what this version writes ({reason}); run it again with --overwrite")

    def stored(self, name: str, load: Callable[[Any], T]) -> T:
        """The result of a finished phase, or the same error."""
        return self.loaded(name, lambda record: load(record["result"]))

    def phase(
        self,
        name: str,
        compute: Callable[[], T],
        dump: Callable[[T], Any] = lambda result: result,
        load: Callable[[Any], T] = lambda result: result,
    ) -> T:
        """The phase's result: read if it is there, else computed, written with the seconds it took, and returned."""
        if self.has(name):
            return self.stored(name, load)
        started = time.perf_counter()
        result = compute()
        write_json(self.path(name), {"seconds": round(time.perf_counter() - started, 3), "result": dump(result)})
        return result

    def seconds(self) -> dict[str, float]:
        """Wall time of every finished phase."""
        found = {}
        for path in sorted(self.folder.glob("*.json"), key=lambda p: p.stat().st_mtime):
            record = read_json(path)
            if isinstance(record, dict) and isinstance(seconds := record.get("seconds"), int | float):
                found[path.stem] = float(seconds)
        return found


def numbers(*names: str) -> Callable[[Any], dict[str, float]]:
    """How a phase is read that found these numbers."""
    return lambda stored: {name: float(stored[name]) for name in names}


def content_hash(path: Path) -> str:
    """SHA-256 of a file: what a study stands for is the weights, not where they lay.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give a .safetensors file") from error


def _stored(path: Path) -> dict[str, Any]:
    """A study's configuration; other programs write files called config.json too, and theirs are refused."""
    stored = read_json(path)
    if not isinstance(stored, dict) or "seed" not in stored or not isinstance(stored.get("model"), str):
        raise ConfigError(f"{path}: not the configuration of a study; choose another folder")
    return stored


def _is_started(folder: Path) -> bool:
    """Whether anything but the configuration is there."""
    return any(item.name != "config.json" for item in set(folder.iterdir()) - _leftovers(folder))


def _leftovers(folder: Path) -> set[Path]:
    """Of runs that were killed as they wrote (`workloads.store.whole`)."""
    return {*filter(is_leftover, folder.glob(".*.part"))}


def _check_same(path: Path, config: Mapping[str, Any], but: Collection[str]) -> None:
    stored = _stored(path)
    given = json.loads(json.dumps(config))
    for key in sorted((set(stored) | set(given)) - set(but)):
        if stored.get(key) != given.get(key):
            raise ConfigError(
                f"{path}: holds a study with {key}={stored.get(key)!r}, asked for {given.get(key)!r}; "
                "choose another --out, or --overwrite"
            )


def _clear(folder: Path) -> None:
    """Remove what a study and its report wrote, nothing else; config.json stays, to be replaced in one step."""
    from reports.html import REPORT_FIGURES

    names = ("plan.json", "result.json", "report.json", "report.html", "model.safetensors", "training.pt")
    trail = folder / "trail"
    places = [folder, *(folder / name for name in _stored(folder / "config.json").get("targets", ()))]
    figures = [place / "figures" for place in places]
    known = [*(place / name for place in places for name in names)]
    known += [place / f"{name}.png" for place in figures for name in REPORT_FIGURES]
    known += [folder / "trail.png", trail / "trail.json", *trail.glob("step*.safetensors")]
    for path in [*known, *filter(_is_phase, folder.glob("*.json"))]:
        path.unlink(missing_ok=True)
    for place in (*figures, trail, *places[1:]):
        if place.is_dir() and not any(place.iterdir()):
            place.rmdir()


def _is_phase(path: Path) -> bool:
    """Whether `Study.phase` wrote the file."""
    try:
        record = read_json(path)
    except ConfigError:
        return False
    return isinstance(record, dict) and set(record) == {"seconds", "result"}
