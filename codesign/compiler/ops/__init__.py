"""How each operator is planned: which layouts it reads and writes, and the stage that computes it.

One file a family of operators; a file's `OPERATORS` says which it plans. What none plans runs in torch.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from codesign.compiler.plan import plain_layout
from workloads.graph import Op

if TYPE_CHECKING:
    from codesign.compiler.layout import Layout
    from codesign.compiler.plan import Context, Shape
    from codesign.compiler.program import Stage
    from codesign.compiler.steps import Step


@dataclass(frozen=True)
class Operator:
    """How one operator is planned.

    Attributes:
        can: whether it does a step, whose inputs have these shapes (as images).
        layout: of the output: (step, layouts of the inputs, output's shape as an image, lanes) -> layout.
        plan: the stage of a step.
        reads: "any" layout; "plain" ones; "tiled": of whole vectors; "equal": that of the output. What differs is
            moved first.
    """

    can: Callable[[Step, Sequence[Shape]], bool]
    layout: Callable[[Step, Sequence[Layout], Shape, int], Layout]
    plan: Callable[[Step, Context], Stage]
    reads: Literal["any", "plain", "tiled", "equal"]


def plain_output(step: Step, sources: Sequence[Layout], shape: Shape, lanes: int) -> Layout:
    """A layout of outputs: torch's order."""
    return plain_layout(shape)


@functools.cache
def operators() -> Mapping[Op, Operator]:
    """Every operator that is compiled."""
    found: dict[Op, Operator] = {}
    for module in pkgutil.iter_modules(__path__):
        found |= importlib.import_module(f"{__name__}.{module.name}").OPERATORS
    return found
