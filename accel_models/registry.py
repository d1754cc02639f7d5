"""Names to families and targets.

A family registers itself with `@family("name")` in its own file under `sparse/`, `npu/`, `mobile/` (or `ideal.py`); a
machine is a YAML file in `specs/`, or in a folder that the environment variable `CODESIGN_SPECS` names (several, with
the path separator between them; runtimes may lie beside the machines that name them). Third parties add both through
entry points: group `codesign.families` names a module to import, group `codesign.specs` a package or folder of YAML
files, group `codesign.targets` a measured machine: a class of `accel_models.measured`. A measured machine prices whole
graphs only, so `target` does not give it; `machine` gives either.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel_models.spec import SPECS
from workloads.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from accel_models.family import Family
    from accel_models.measured import Measured
    from accel_models.pricing import Target

PEAK_TOLERANCE = 0.02  # of a stated peak against what the parameters make: published numbers are rounded
MEASURED = "codesign.targets"
_FAMILIES: dict[str, type[Family]] = {}


def family(name: str) -> Callable[[type[Family]], type[Family]]:
    """Class decorator: register an architecture family under `name`."""

    def register(cls: type[Family]) -> type[Family]:
        _FAMILIES[name] = cls
        return cls

    return register


@cache
def _discover() -> None:
    """Import every module of the family packages, once; each registers what it holds."""
    root = Path(__file__).parent
    for folder in ("sparse", "npu", "mobile"):
        for module in pkgutil.iter_modules([str(root / folder)]):
            importlib.import_module(f"accel_models.{folder}.{module.name}")
    importlib.import_module("accel_models.ideal")
    for entry in entry_points(group="codesign.families"):
        entry.load()


def family_class(name: str) -> type[Family]:
    """The registered family.

    Raises:
        ConfigError: there is none of that name.
    """
    _discover()
    if name not in _FAMILIES:
        raise unknown_name("family", name, _FAMILIES)
    return _FAMILIES[name]


def spec_files() -> dict[str, Path]:
    """Machine name to YAML file; a later folder's file hides an earlier one's.

    Of the package's own none is read; of other folders all are, since runtimes may lie there, which are left out.

    Raises:
        ConfigError: `CODESIGN_SPECS` names something that is no folder.
    """
    packaged = [Path(next(iter(entry.load().__path__))) for entry in entry_points(group="codesign.specs")]
    own = [Path(folder) for folder in os.environ.get("CODESIGN_SPECS", "").split(os.pathsep) if folder]
    if missing := [folder for folder in own if not folder.is_dir()]:
        raise ConfigError(f"CODESIGN_SPECS: {missing[0]} is no folder")
    files = [path for folder in (*packaged, *own) for path in sorted(folder.glob("*.yaml"))]
    if files:
        from accel_models.mobile.runtime import is_runtime

        files = [path for path in files if not is_runtime(path)]
    return {path.stem: path for path in (*sorted(SPECS.glob("*.yaml")), *files)}


def targets() -> tuple[str, ...]:
    """Names of all machines, sorted."""
    return tuple(sorted(spec_files()))


def target(name: str, overrides: Mapping[str, Any] | None = None) -> Target:
    """The machine of that name, or of a YAML file if `name` ends in .yaml.

    Args:
        name: one of `targets()`, or a path.
        overrides: numbers to change, by dotted path in the YAML, e.g. {"clock_hz": 1e9}.

    Raises:
        ConfigError: unknown name, unreadable or wrong file, unknown field in `overrides`.
    """
    if name.endswith((".yaml", ".yml")):
        return load_target(Path(name), overrides)
    files = spec_files()
    if name not in files:
        if name in measured_targets():
            raise ConfigError(
                f"{name} is a measured machine: it prices whole graphs alone, as `codesign simulate` does"
            )
        raise unknown_name("target", name, files)
    found = load_target(files[name], overrides)
    if found.name != name:
        raise ConfigError(f"{files[name]}: name: {found.name!r}, must be {name!r} as the file's")
    return found


def measured_targets() -> tuple[str, ...]:
    """Names of the measured machines that installed packages add, sorted; none is imported."""
    return tuple(sorted(entry.name for entry in entry_points(group=MEASURED)))


def machine(name: str, overrides: Mapping[str, Any] | None = None) -> Target | Measured:
    """The simulated machine of that name, or the measured one.

    Args:
        overrides: as for `target`; of a measured machine whole numbers by the name of a field.

    Raises:
        ConfigError: as for `target`.
    """
    files = spec_files()
    if name.endswith((".yaml", ".yml")) or name in files:
        return target(name, overrides)
    for entry in entry_points(group=MEASURED):
        if entry.name == name:
            found: Measured = entry.load().changed(overrides or {})
            return found
    raise unknown_name("target", name, (*files, *measured_targets()))


def load_target(path: Path, overrides: Mapping[str, Any] | None = None) -> Target:
    """The machine that a YAML file describes; its peak follows from parameters that the caller changed.

    Raises:
        ConfigError: the file is wrong, or states a peak that its parameters do not make.
    """
    from accel_models.pricing import Target
    from accel_models.spec import load_spec

    spec = load_spec(path, overrides)
    family = family_class(spec.family)(spec)
    derived = {bits: peak for bits, peak in family.derived_peak().items() if bits in spec.macs_per_cycle}
    if spec.changed and not any(path.startswith("macs_per_cycle") for path in spec.changed):
        spec = spec.model_copy(update={"macs_per_cycle": {**spec.macs_per_cycle, **derived}})
        family = family_class(spec.family)(spec)
    for bits, peak in derived.items():
        if abs(spec.macs_per_cycle[bits] / peak - 1) > PEAK_TOLERANCE:
            raise ConfigError(
                f"{path}: macs_per_cycle[{bits}]: {spec.macs_per_cycle[bits]:g}, but the machine's parameters make "
                f"{peak:g}; change those"
            )
    return Target(spec, family)
