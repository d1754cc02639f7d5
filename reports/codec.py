"""Frozen dataclasses to JSON values and back, checked field by field against their annotations.

Allowed in a record: other records, `SimulationResult`, str, int, float, bool, None, tuples and mappings of these; under
`Any` whatever JSON has.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, ClassVar, Self, TypeVar

import numpy as np

from accel_models.result import SimulationResult
from workloads.errors import ConfigError

T = TypeVar("T")


class Record:
    """Base of the records that are files of their own: `to_dict` and `from_dict` with a format and a version."""

    FORMAT: ClassVar[str]
    VERSION: ClassVar[int] = 1

    def to_dict(self) -> dict[str, Any]:
        return {"format": self.FORMAT, "version": self.VERSION, **fields_to_plain(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            ConfigError: another format or version, or a field that is unknown, missing or of a wrong type.
        """
        if not isinstance(data, Mapping) or data.get("format") != cls.FORMAT or data.get("version") != cls.VERSION:
            raise ConfigError(f"not a {cls.FORMAT} of version {cls.VERSION}: see fields 'format' and 'version'")
        return fields_from_plain(cls, {key: data[key] for key in data if key not in ("format", "version")}, cls.FORMAT)


def fields_to_plain(record: Any) -> dict[str, Any]:
    """Every field of a dataclass as JSON values."""
    return {f.name: to_plain(getattr(record, f.name), f.name) for f in dataclasses.fields(record)}


def to_plain(value: Any, where: str) -> Any:
    """A value as JSON.

    Raises:
        ConfigError: a number is not finite: JSON has no such number, and it is a mistake wherever it came from.
    """
    if isinstance(value, SimulationResult):
        return to_plain(value.to_dict(), where)
    if dataclasses.is_dataclass(value):
        return {f.name: to_plain(getattr(value, f.name), f"{where}.{f.name}") for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"report record: {where} is {value}, must be finite; look at where it was computed")
    return value


def fields_from_plain(cls: type[T], data: Any, where: str) -> T:
    """A dataclass from what `fields_to_plain` gave."""
    if not isinstance(data, Mapping):
        raise _wrong(where, data, "an object")
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(data) - set(known)):
        raise ConfigError(f"{where}: unknown field {unknown[0]!r}; allowed: {', '.join(known)}")
    required = {name for name, f in known.items() if f.default is f.default_factory is dataclasses.MISSING}
    if missing := sorted(required - set(data)):
        raise ConfigError(f"{where}: field {missing[0]!r} is missing")
    return cls(**{key: from_plain(hints[key], value, f"{where}.{key}") for key, value in data.items()})


def from_plain(hint: Any, value: Any, where: str) -> Any:
    """A value of the annotated type from JSON."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        return None if value is None else from_plain(next(a for a in arguments if a is not type(None)), value, where)
    if origin is tuple:
        return _tuple_from_plain(arguments, value, where)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise _wrong(where, value, "an object")
        return {key: from_plain(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if hint is SimulationResult:
        return _simulation(value, where)
    if dataclasses.is_dataclass(hint):
        return fields_from_plain(typing.cast(type, hint), value, where)
    allowed = (int, float) if hint is float else (hint,)
    if not isinstance(value, allowed) or (isinstance(value, bool) and hint is not bool):
        raise _wrong(where, value, {str: "text", bool: "true or false", int: "an integer"}.get(hint, "a number"))
    return value


def _tuple_from_plain(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise _wrong(where, value, "a list")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(from_plain(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if len(value) != len(arguments):
        raise _wrong(where, value, f"a list of {len(arguments)}")
    return tuple(from_plain(a, item, f"{where}[{i}]") for i, (a, item) in enumerate(zip(arguments, value, strict=True)))


def _simulation(value: Any, where: str) -> SimulationResult:
    if not isinstance(value, Mapping):
        raise _wrong(where, value, "an object")
    try:
        return SimulationResult.from_dict(value)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{where}: not a simulation result ({error})") from error


def _wrong(where: str, value: Any, wanted: str) -> ConfigError:
    return ConfigError(f"{where}: {repr(value)[:60]}, must be {wanted}")
