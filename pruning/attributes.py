"""Numbers of channels that a user's module keeps in its attributes: `self.num_heads`, `self.sizes = [16, 16]`.

torch's own modules are corrected by tables (`pruning.surgery`). Of other modules nobody knows which attribute counts
what, so values are tried: a whole number that was a size in the layers that run in the module itself may become what
that size is now. Only modules at which the smaller network goes wrong are touched, and a setting is right if the
network's layer graph is exactly the predicted one; of those that were changed for it, the ones that need not be are
put back, since they may count something else. Numbers that stand in the code itself cannot be changed; such a model is
refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pruning.evaluation import evaluating
from workloads.errors import LoweringError
from workloads.graph import Layer, Op
from workloads.lowering import lower

MOST = 256  # settings that are tried
BY_NUMBERS = frozenset({Op.RESHAPE, Op.SLICE, Op.EXPAND, Op.CONV, Op.CONV_TRANSPOSE, Op.NORM})
"""Ops that functions are told sizes or groups for; others follow their tensors."""


class Place(NamedTuple):
    """A whole number in an attribute, or one item of a list or tuple there; `values` to try, the likely ones first."""

    module: nn.Module
    name: str
    item: int | None
    values: tuple[int, ...]


class Wrong(NamedTuple):
    """Where a network goes wrong: the modules that may be the cause, the likely ones first, and what was seen."""

    modules: tuple[nn.Module, ...]
    seen: str


@dataclass
class Attributes:
    """The attributes of a module that was cut, which may still count the channels of the whole one.

    Attributes:
        model: changed in place.
        modules: layer -> the module of `model` that it runs in.
        before, after: the layers of the whole network, and of the smaller one as it should be.
        inputs: that the model takes.
    """

    model: nn.Module
    modules: Mapping[str, nn.Module]
    before: Sequence[Layer]
    after: Sequence[Layer]
    inputs: tuple[Tensor, ...]

    def follow(self) -> None:
        """Set them so that the network's layers are what they should be; leave all as it is where no setting does."""
        self.places: dict[nn.Module, list[Place]] = {}
        for place in _places(self.model, self.modules, self.before, self.after):
            self.places.setdefault(place.module, []).append(place)
        self.trials = 0
        if self.places and self._search(self._wrong(), frozenset()):
            self._put_back()

    def _search(self, wrong: Wrong | None, done: frozenset[nn.Module]) -> bool:
        """Try the settings of each suspect; go on from those that change what is wrong."""
        if wrong is None:
            return True
        likely = [module for module in wrong.modules if module in self.places]
        for module in dict.fromkeys([*likely, *self.places]):
            if module in done:
                continue
            for values in itertools.product(*(place.values for place in self.places[module])):
                self.trials += 1
                if self.trials > MOST:
                    break
                _set(self.places[module], values)
                found = self._wrong()
                if (found is None or found.seen != wrong.seen) and self._search(found, done | {module}):
                    return True
            _set(self.places[module], [place.values[-1] for place in self.places[module]])
        return False

    def _put_back(self) -> None:
        """Each number that is not needed as it is now becomes what it was."""
        for place in itertools.chain.from_iterable(self.places.values()):
            now, was = _get(place), place.values[-1]
            if now != was:
                _set([place], [was])
                if self._wrong() is not None:
                    _set([place], [now])

    def _wrong(self) -> Wrong | None:
        try:
            with torch.no_grad(), evaluating(self.model):
                self.model(*self.inputs)
            layers = lower(self.model, self.inputs).layers
        except LoweringError as error:
            return Wrong((), str(error))
        except Exception as error:
            running = tuple(failing(error))
            return Wrong(running, f"{[id(module) for module in running]} {error}")
        for found, wanted in itertools.zip_longest(layers, self.after):
            if found is None or wanted is None or _numbers_of(found) != _numbers_of(wanted):
                cause = self.modules.get(wanted.name) if wanted else None
                return Wrong((cause,) if cause else (), f"layer {wanted.name if wanted else 'missing'}")
        return None


def failing(error: BaseException) -> Iterator[nn.Module]:
    """The modules that were running when it failed, the innermost first."""
    frames, trace = [], error.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame.f_locals.get("self"))
        trace = trace.tb_next
    yield from dict.fromkeys(item for item in reversed(frames) if isinstance(item, nn.Module))


def _numbers_of(layer: Layer) -> tuple[Any, ...]:
    channels = (layer.k, layer.c, layer.groups) if layer.weight else ()  # else they follow from axis and shape
    return (layer.op, layer.shape, *channels, layer.attributes)


def _places(
    model: nn.Module, modules: Mapping[str, nn.Module], before: Sequence[Layer], after: Sequence[Layer]
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


def _get(place: Place) -> int:
    value = getattr(place.module, place.name)
    return int(value if place.item is None else value[place.item])


def _set(places: Sequence[Place], values: Sequence[int]) -> None:
    for place, value in zip(places, values, strict=True):
        if place.item is None:
            setattr(place.module, place.name, value)
            continue
        items: Any = getattr(place.module, place.name)
        changed = [*items[: place.item], value, *items[place.item + 1 :]]
        setattr(place.module, place.name, items._make(changed) if hasattr(items, "_make") else type(items)(changed))
