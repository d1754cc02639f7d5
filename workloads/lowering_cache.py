"""Remembers what tracing found, by everything that tracing depends on.

A traced program follows from the code of the modules, their attributes, the names and shapes of their tensors, and the
example inputs; never from the values of tensors. `structure_key` writes all of that down: the class tree, every plain
attribute (numbers, texts, tuples, functions by their code, ...), which names share one tensor, and for code outside
torch and the standard library also the functions and global values that it uses. Where something has no such form (an
open file, an unregistered tensor, any foreign object) there is no key, and the model is traced each time: a slow
answer rather than a wrong one. What a key cannot see is state inside torch and the standard library, such as an
environment variable that a forward pass reads.

Keys and values hold no tensor of a model and no module: a model dies when its owner drops it.
"""

from __future__ import annotations

import argparse
import dataclasses
import dis
import enum
import functools
import logging
import sys
import threading
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workloads.structure import Structure

CAPACITY = 32  # structures; that of ResNet-50 takes about 0.2 MB
TRUSTED = frozenset(sys.stdlib_module_names) | {"torch", "numpy"}  # code that no user changes between two calls
PLAIN = (
    *(int, float, bool, str, bytes, complex, type(None), type(...), range),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size, np.generic),
)
NO_ATTRIBUTES = frozenset({"_parameters", "_buffers", "_modules", "training", "_is_full_backward_hook", "__weakref__"})
NO_HOOKS = ("_backward", "_state_dict", "_load_state_dict", "_non_persistent")  # they play no part in a forward pass


class StructureCache:
    """The structures used last, by key; safe to use from several threads."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._found: OrderedDict[Hashable, Structure] = OrderedDict()
        self._lock = threading.Lock()
        self._capacity = capacity

    def get(self, key: Hashable | None, make: Callable[[], Structure]) -> Structure:
        """What is remembered under the key, else what `make` makes; a key of None is never remembered."""
        if key is None:
            return make()
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
                return self._found[key]
        structure = make()
        with self._lock:
            self._found[key] = structure
            while len(self._found) > self._capacity:
                self._found.popitem(last=False)
        return structure

    def clear(self) -> None:
        with self._lock:
            self._found.clear()

    def __len__(self) -> int:
        return len(self._found)


STRUCTURES = StructureCache()  # of this process


def structure_key(model: nn.Module, inputs: tuple[Tensor, ...], on_unknown: str) -> Hashable | None:
    """Equal for two models only if tracing them gives the same program; None where that cannot be told."""
    given = tuple((tuple(x.shape), x.dtype, x.device.type) for x in inputs)
    settings = (torch.get_default_dtype(), torch.is_autocast_enabled("cpu"), on_unknown)
    try:
        return (settings, given, _Keys(model).modules())
    except (_Unkeyable, RecursionError):
        return None


class _Unkeyable(Exception):  # noqa: N818 - never leaves this file
    """A value without a form that can be compared."""


class _Keys:
    """The key of one model, part by part; what comes again is keyed once."""

    def __init__(self, model: nn.Module) -> None:
        self._named = list(model.named_modules(remove_duplicate=False))
        self._paths: dict[int, str] = {}
        self._tensors: dict[int, int] = {}
        self._known: dict[Any, Hashable] = {}
        for path, module in self._named:
            self._paths.setdefault(id(module), path)
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None:
                    self._tensors.setdefault(id(tensor), len(self._tensors))

    def modules(self) -> Hashable:
        return tuple((path, self._module(path, module)) for path, module in self._named)

    def _module(self, path: str, module: nn.Module) -> Hashable:
        if self._paths[id(module)] != path:
            return self._paths[id(module)]  # shared: keyed where it came first
        attributes = tuple(
            (name, self._value(value))
            for name, value in vars(module).items()
            if name not in NO_ATTRIBUTES and not name.startswith(NO_HOOKS)
        )
        stored = tuple(
            (name, None if tensor is None else self._stored(tensor))
            for group in (module._parameters, module._buffers)
            for name, tensor in group.items()
        )
        return (self._class(type(module)), attributes, stored, len(module._parameters))

    def _stored(self, tensor: Tensor) -> Hashable:
        return (self._tensors[id(tensor)], tensor.shape, tensor.dtype, tensor.device.type)

    # ---- values ------------------------------------------------------------------------------------------------------

    def _value(self, value: Any) -> Hashable:
        """Type and content: 1, 1.0 and True are three values."""
        if type(value) in PLAIN_TYPES or isinstance(value, np.generic):
            return (type(value), value)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, type):
            return self._class(value)
        for kind, keyed in _FORMS:
            if isinstance(value, kind):
                return (kind.__name__, keyed(self, value))
        if dataclasses.is_dataclass(value) or type(value) in (types.SimpleNamespace, argparse.Namespace):
            return (self._class(type(value)), self._mapping(vars(value)))
        raise _Unkeyable

    def _sequence(self, values: Iterable[Any]) -> Hashable:
        return (type(values), tuple([self._value(item) for item in values]))

    def _set(self, values: Iterable[Any]) -> Hashable:
        return (type(values), frozenset(self._value(item) for item in values))

    def _mapping(self, values: dict[Any, Any]) -> Hashable:
        return (type(values), tuple([(self._value(key), self._value(item)) for key, item in values.items()]))

    def _submodule(self, module: nn.Module) -> Hashable:
        if id(module) not in self._paths:
            raise _Unkeyable
        return self._paths[id(module)]

    def _tensor(self, tensor: Tensor) -> Hashable:
        if id(tensor) not in self._tensors:
            raise _Unkeyable
        return self._tensors[id(tensor)]

    def _builtin(self, value: types.BuiltinFunctionType) -> Hashable:
        if not isinstance(value.__self__, types.ModuleType | type | type(None)):
            raise _Unkeyable  # a method that is bound to some object
        return value

    def _partial(self, value: functools.partial[Any]) -> Hashable:
        return (self._value(value.func), self._value(value.args), self._value(value.keywords))

    # ---- code --------------------------------------------------------------------------------------------------------

    def _class(self, kind: type) -> Hashable:
        """The class itself; outside trusted packages also what is in it now."""
        if kind not in self._known:
            self._known[kind] = weakref.ref(kind)  # in case its own functions mention it
            parts = [part for base in kind.__mro__ if not _is_trusted(base.__module__) for part in vars(base).items()]
            used = [(name, self._value(_unwrapped(part))) for name, part in parts if _is_content(name)]
            self._known[kind] = (weakref.ref(kind), tuple(used))
        return self._known[kind]

    def _function(self, function: types.FunctionType) -> Hashable:
        """Its code, defaults, closure, and the globals that it uses."""
        if function not in self._known:
            self._known[function] = function.__qualname__  # in case it calls itself
            cells = [cell.cell_contents for cell in function.__closure__ or () if _is_full(cell)]
            used = () if _is_trusted(function.__module__) else self._globals(function)
            defaults = (self._value(function.__defaults__), self._value(function.__kwdefaults__))
            self._known[function] = (function.__code__, defaults, self._value(cells), used)
        return self._known[function]

    def _globals(self, function: types.FunctionType) -> Hashable:
        found: list[Hashable] = []
        names, attributes = _names_used(function.__code__)
        for name in names:
            value = function.__globals__.get(name)
            if not isinstance(value, types.ModuleType):
                found.append((name, self._value(value)))
            elif not _is_trusted(value.__name__):
                inside = [item for item in attributes if item in vars(value)]
                found += [(name, item, self._value(vars(value)[item])) for item in inside]
        return tuple(found)


PLAIN_TYPES = frozenset(PLAIN)
_FORMS: tuple[tuple[Any, Callable[[_Keys, Any], Hashable]], ...] = (
    (tuple, _Keys._sequence),
    (list, _Keys._sequence),
    (dict, _Keys._mapping),
    (set, _Keys._set),
    (frozenset, _Keys._set),
    (deque, _Keys._sequence),
    (nn.Module, _Keys._submodule),
    (Tensor, _Keys._tensor),
    (enum.Enum, lambda keys, value: (keys._class(type(value)), value.name)),
    (types.BuiltinFunctionType, _Keys._builtin),
    (types.MethodType, lambda keys, value: (keys._value(value.__func__), keys._value(value.__self__))),
    (functools.partial, _Keys._partial),
    (property, lambda keys, value: tuple(keys._value(part) for part in (value.fget, value.fset))),
    (slice, lambda keys, value: repr(value)),
    (weakref.ref, lambda keys, value: keys._value(value())),
    (torch._ops.OpOverload, lambda keys, value: str(value)),
    (torch._ops.OpOverloadPacket, lambda keys, value: str(value)),
    (logging.Logger, lambda keys, value: value.name),
)


def _is_trusted(module: str | None) -> bool:
    return module is not None and module.split(".")[0] in TRUSTED


def _is_content(name: str) -> bool:
    """Of a class: what a forward pass can see; not its construction, documentation and bookkeeping."""
    is_special = (name.startswith("__") and name.endswith("__")) or name == "_abc_impl"
    return not is_special or name in ("__call__", "__getattr__", "__getitem__", "__iter__", "__len__")


def _unwrapped(part: Any) -> Any:
    return part.__func__ if isinstance(part, staticmethod | classmethod) else part


def _is_full(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # not assigned yet
        return False


@functools.lru_cache(maxsize=4096)
def _names_used(code: types.CodeType) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Global names that code loads, inner functions included, and all other names in it (attributes among them)."""
    loads = [item.argval for item in dis.get_instructions(code) if item.opname in ("LOAD_GLOBAL", "LOAD_NAME")]
    names, attributes = list(loads), list(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner_names, inner_attributes = _names_used(constant)
            names += inner_names
            attributes += inner_attributes
    return tuple(dict.fromkeys(names)), tuple(dict.fromkeys(attributes))
