"""Pruning methods by name; one file each.

A method is a class in a file of this folder that subclasses `Pruner` and carries `@register("name")`. A distribution
elsewhere adds its own through the entry point group `codesign.pruners`, whose value names a module that registers.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from pruning.methods.base import REGISTRY, Pruner
from workloads.errors import ConfigError, unknown_name

__all__ = ["Pruner", "method", "methods"]

ENTRY_POINTS = "codesign.pruners"


def methods() -> Mapping[str, type[Pruner]]:
    """Every registered method by name, sorted, read-only.

    >>> "gradual_magnitude" in methods()
    True
    """
    _discover()
    return MappingProxyType(dict(sorted(REGISTRY.items())))


def method(name: str) -> type[Pruner]:
    """The method of that name.

    Raises:
        ConfigError: there is none; says the closest names.
    """
    if name not in methods():
        raise unknown_name("pruning method", name, methods())
    return methods()[name]


@cache
def _discover() -> None:
    """Import every file of this folder and every entry point, once; each registers what it holds."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            point.load()
        except Exception as error:
            raise ConfigError(f"entry point {point.name!r} of {ENTRY_POINTS}: {point.value} fails ({error})") from error
