"""Numbers of channels that a user's module keeps in its attributes: `self.num_heads`, `self.sizes = [16, 16]`.

torch's own modules are corrected by tables (`pruning.surgery`). Of other modules nobody knows which attribute counts
what, so values are tried: a whole number that was a size in the layers that run in the module itself may become what
that size is now, and only a model that answers as the masked one is accepted. Numbers that stand in the code
itself cannot be changed; such a model is refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import nn

from workloads.graph import Layer, Op

MOST = 64  # ways to set the attributes that are tried
BY_NUMBERS = frozenset({Op.RESHAPE, Op.SLICE, Op.EXPAND, Op.CONV, Op.CONV_TRANSPOSE, Op.NORM})
"""Ops that functions are told sizes or groups for; others follow their tensors."""


class Place(NamedTuple):
    """A whole number in an attribute, or one item of a list or tuple there; `values` to try, the likely ones first."""

    module: nn.Module
    name: str
    item: int | None
    values: tuple[int, ...]


def settings(
    model: nn.Module, modules: dict[str, nn.Module], before: Sequence[Layer], after: Sequence[Layer]
) -> Iterator[None]:
    """Set the attributes of `model` in one way after the other, in place; nothing where none can be the cause.

    Args:
        model: a module that was cut.
        modules: layer -> the module of `model` that it runs in.
        before, after: the layers of the whole and of the smaller network.
    """
    found = list(_places(model, modules, before, after))
    if not found:
        return
    for values in itertools.islice(itertools.product(*(place.values for place in found)), MOST):
        for place, value in zip(found, values, strict=True):
            _set(place, value)
        yield


def _places(
    model: nn.Module, modules: dict[str, nn.Module], before: Sequence[Layer], after: Sequence[Layer]
) -> Iterator[Place]:
    for module in model.modules():
        if type(module).__module__.startswith("torch.nn."):
            continue
        sizes: dict[int, set[int]] = {}
        for old, new in zip(before, after, strict=True):
            if modules.get(old.name) is module and old.op in BY_NUMBERS:
                for a, b in zip(_sizes(old), _sizes(new), strict=True):
                    sizes.setdefault(a, set()).add(b)
        for name, item, value in _numbers(module):
            if options := sizes.get(value, set()) - {value}:
                yield Place(module, name, item, (*sorted(options), value))


def _sizes(layer: Layer) -> tuple[int, ...]:
    numbers = (layer.attributes.get("groups", 1), *layer.attributes.get("starts", ()))
    return (*layer.shape, layer.k, layer.c, layer.groups, *numbers)


def _numbers(module: nn.Module) -> Iterator[tuple[str, int | None, int]]:
    """Whole numbers above one in a module's own attributes."""
    for name, value in vars(module).items():
        if type(value) is int and value > 1:
            yield name, None, value
        elif isinstance(value, list | tuple):
            yield from ((name, i, item) for i, item in enumerate(value) if type(item) is int and item > 1)


def _set(place: Place, value: int) -> None:
    if place.item is None:
        setattr(place.module, place.name, value)
        return
    items: Any = getattr(place.module, place.name)
    changed = [*items[: place.item], value, *items[place.item + 1 :]]
    setattr(place.module, place.name, type(items)(changed) if type(items) in (list, tuple) else items._make(changed))
