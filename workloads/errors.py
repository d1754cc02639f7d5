"""The errors of the project: one root, few children.

A message has three parts: what was given, what is needed, what to try. The command line prints it as one line and
exits with 2; `--debug` shows the traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class CodesignError(Exception):
    """Root of every error that the toolkit raises for bad input."""


class LoweringError(CodesignError):
    """A model cannot be expressed as a layer graph."""


class ShapeError(CodesignError):
    """Tensors, masks or layers whose shapes do not agree."""


class ConfigError(CodesignError):
    """A hardware, workload or search file, a name or an option is wrong."""


class DataError(CodesignError):
    """A data set or a weights file is missing, damaged or not what it claims to be."""


class PlanError(CodesignError):
    """A pruning choice that is impossible, empty or without effect."""


class SimulationError(CodesignError):
    """A target cannot price what it was given."""


def unknown_name(kind: str, given: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that is not in a registry, with the closest known names.

    >>> str(unknown_name("target", "eyeris_v2", ["ideal", "eyeriss_v2"]))
    "unknown target 'eyeris_v2'; did you mean 'eyeriss_v2'? Known: eyeriss_v2, ideal"
    """
    names = sorted(known)
    close = difflib.get_close_matches(given, names, n=1)
    hint = f" did you mean {close[0]!r}?" if close else ""
    return ConfigError(f"unknown {kind} {given!r};{hint} Known: {', '.join(names)}")


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line; its kind where it says nothing.

    >>> first_line(KeyError()), first_line(RuntimeError("shapes differ\\nat ..."))
    ('KeyError', 'shapes differ')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def not_a_module(given: str) -> ConfigError | None:
    """The error for `folder/file.py:name` where `module:name` is needed; None for what names no file.

    >>> not_a_module("nets/edge_net.py:mini")
    ConfigError('nets/edge_net.py:mini: name it as Python imports it, nets.edge_net:mini')
    """
    file, _, name = given.partition(":")
    if not file.endswith(".py") and not (name and "/" in file):
        return None
    path = Path(file.removesuffix(".py"))
    is_below = not path.is_absolute() and ".." not in path.parts
    dotted = ".".join(path.parts) if is_below else path.name
    advice = "" if is_below else ", with its folder on PYTHONPATH"
    return ConfigError(f"{given}: name it as Python imports it, {dotted}:{name or 'my_net'}{advice}")
