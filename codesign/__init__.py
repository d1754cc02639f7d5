"""Prune a network for the hardware that runs it: evaluate, solve, search, prune, compile."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """`codesign.compile` is `codesign.compiler.compile_network`; torch is imported when it is asked for."""
    if name == "compile":
        from codesign.compiler import compile_network

        return compile_network
    raise AttributeError(f"module 'codesign' has no attribute {name!r}")
