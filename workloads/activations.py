"""Activations as short texts: "relu", "hardtanh(0,6)", "gelu(tanh)".

A layer keeps the activation that is applied to its output in this form; it survives JSON and is its own name in
reports. Lowering writes the texts, the verifier and the interpreter read them.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping

from workloads.errors import ConfigError

# Name -> what stands in the brackets.
ACTIVATIONS: Mapping[str, tuple[str, ...]] = {
    "relu": (),
    "relu6": (),
    "sigmoid": (),
    "tanh": (),
    "silu": (),
    "hardswish": (),
    "hardsigmoid": (),
    "gelu": ("none|tanh",),
    "leaky_relu": ("number",),
    "elu": ("number",),
    "hardtanh": ("number", "number"),
    "mish": (),
    "abs": (),
    "sqrt": (),
}


@functools.lru_cache(maxsize=256)
def parse_activation(text: str) -> tuple[str, tuple[float | str, ...]]:
    """Name and arguments of an activation text.

    Raises:
        ConfigError: unknown, or with wrong arguments.

    >>> parse_activation("hardtanh(0,6)"), parse_activation("gelu(tanh)")
    (('hardtanh', (0.0, 6.0)), ('gelu', ('tanh',)))
    """
    match = re.fullmatch(r"(\w+)(?:\(([^()]+)\))?", text)
    name, inside = match.groups() if match else (text, None)
    given = inside.split(",") if inside else []
    if name not in ACTIVATIONS or len(given) != len(ACTIVATIONS[name]):
        forms = (f"{known}({','.join(form)})" if form else known for known, form in ACTIVATIONS.items())
        raise ConfigError(f"activation is {text!r}, must be one of {', '.join(forms)}")
    pairs = zip(ACTIVATIONS[name], (word.strip() for word in given), strict=True)
    return name, tuple(_argument(text, form, word) for form, word in pairs)


def _argument(text: str, form: str, word: str) -> float | str:
    if form == "number":
        try:
            number = float(word)
        except ValueError:
            number = math.nan
        if not math.isnan(number):
            return number
    elif word in form.split("|"):
        return word
    raise ConfigError(f"activation is {text!r}: {word!r} must be {'a number' if form == 'number' else form}")
