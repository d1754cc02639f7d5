"""What a pruning method is to its user: a prepared copy of the model and three calls in the user's own loop.

    pruner = GradualMagnitude(model, example_inputs, total_steps=len(loader) * epochs, density=0.3)
    net = pruner.model                                   # a prepared copy; the user trains this one
    for x, y in loader:
        optimizer.zero_grad()
        loss = criterion(net(x), y) + pruner.loss()
        loss.backward(); optimizer.step(); pruner.step()
    sparse_model = pruner.finalize()

Who calls what, when:

| call | by whom | when | may touch |
|---|---|---|---|
| `__init__` | the user | once, before training | makes `self.model`; the user's model stays as it is |
| `loss()` | the user | every step, between forward and `backward` | nothing; a scalar that gradients flow through |
| `step()` | the user | every step, after `optimizer.step()` | masks, gates, the method's own optimizer |
| `finalize()` | the user | once, after training | nothing; returns a baked copy |
| `state_dict()` | the user, `fit` | at any step boundary | nothing |
| `load_state_dict()` | the user, `fit` | after `self.model` got its own state back | all of the method's state |
"""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar, get_args, get_origin, get_type_hints

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor, nn

from pruning import masks
from workloads.errors import ConfigError, PlanError, first_line, unknown_name

P = TypeVar("P", bound="type[Pruner]")
Inputs = tuple[Tensor, ...]
REGISTRY: dict[str, type[Pruner]] = {}
LOOSE = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
"""How options are read: numbers may be text, none may be infinite."""
WORDS: Mapping[Any, str] = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path", type(None): "null"
}  # fmt: skip


def register(name: str) -> Callable[[P], P]:
    """Class decorator: make a method known under `name`."""

    def add(cls: P) -> P:
        cls.name = name
        REGISTRY[name] = cls
        return cls

    return add


class Pruner(ABC):
    """One method at work on one model. The module docstring has the lifecycle.

    Attributes:
        name: of the method, set by `register`.
        EXAMPLES: keyword arguments, one set for each configuration that the contract tests run.
        NEEDS_DATA: whether the constructor takes `data=`: pictures with labels to measure on before training, an
            `ImageData` or a sequence of batches (x, y). Never test pictures.
        IS_LEARNED: whether gradients decide what goes, so that `step` without training removes nothing.
        STATED: options that need not be the same to go on from a state: what they decided is in it, or nowhere.
        model: the prepared copy that the user trains.
        total_steps: optimizer steps that training will have; schedules are measured against it.
        steps_done: how often `step` was called.
        notes: what the user should know beside the numbers, a line each: what is left alone, what a check found.
        settings: the options it was made with, defaults included: those that are numbers, text, or lists or
            mappings of these.
    """

    name: ClassVar[str] = ""
    EXAMPLES: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)
    NEEDS_DATA: ClassVar[bool] = False
    IS_LEARNED: ClassVar[bool] = False
    STATED: ClassVar[frozenset[str]] = frozenset()
    settings: dict[str, Any]

    def __new__(cls, *args: Any, **given: Any) -> Self:
        made = super().__new__(cls)
        defaults = {name: each.default for name, each in cls.options().items()}
        made.settings = {name: _plain(value) for name, value in (defaults | given).items() if _is_plain(value)}
        return made

    def __init__(self, model: nn.Module, total_steps: int) -> None:
        if total_steps < 1:
            raise PlanError(f"total_steps {total_steps}, must be at least 1: schedules are counted in optimizer steps")
        try:
            self.model = copy.deepcopy(model)
        except Exception as error:  # torch.nn.utils.weight_norm, for one
            reason = first_line(error)
            raise PlanError(
                f"{type(model).__name__} cannot be copied, and a copy is what is pruned: {reason}"
            ) from error
        self.total_steps = total_steps
        self.steps_done = 0
        self.notes: tuple[str, ...] = ()

    @classmethod
    def options(cls) -> dict[str, inspect.Parameter]:
        """The keyword arguments of the constructor by name, those of a parent that it hands on included; no `data`."""
        found: dict[str, inspect.Parameter] = {}
        for kind in cls.__mro__:
            if "__init__" not in vars(kind):
                continue
            parameters = inspect.signature(vars(kind)["__init__"]).parameters.values()
            mine = {each.name: each for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY}
            found = mine | found
            if not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters):
                break
        found.pop("data", None)
        return found

    @classmethod
    def checked(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Options as the constructor's annotations want them, for values that were typed or read from a file.

        Raises:
            ConfigError: an unknown name, a value of another type, or a number that is not finite; names the option.
        """
        allowed, found = cls.options(), {}
        for name, value in given.items():
            if name not in allowed:
                raise unknown_name(f"option of {cls.name}", name, allowed)
            kind = _type_of(cls, name)
            try:
                found[name] = TypeAdapter(kind, config=LOOSE).validate_python(value)
            except ValidationError as error:
                hint = f"; try [{value}]" if isinstance(value, str) and get_origin(kind) is Sequence else ""
                raise ConfigError(cls.refusal(f"must be {_in_words(kind)}{hint}", **{name: value})) from error
        return found

    @classmethod
    def refusal(cls, allowed: str, **given: Any) -> str:
        """What an error says of options that cannot be: "option end=2 of n_m: must be at most 1"."""
        said = ", ".join(f"{name}={value!r}" for name, value in given.items())
        return f"option{'s' * (len(given) > 1)} {said} of {cls.name}: {allowed}"

    def phase(self, begin: float, end: float, may_be_empty: bool = False) -> tuple[int, int]:
        """The optimizer steps of the phase that two fractions of `total_steps` bound.

        Raises:
            PlanError: fractions out of order or out of [0, 1], or a phase without a step.
        """
        given = {"begin": begin, "end": end}
        if not (0 <= begin <= end <= 1 if may_be_empty else 0 <= begin < end <= 1):
            order = "<=" if may_be_empty else "<"
            raise PlanError(self.refusal(f"must be 0 <= begin {order} end <= 1, fractions of the training", **given))
        first, last = round(begin * self.total_steps), round(end * self.total_steps)
        if first == last and not may_be_empty:
            raise PlanError(self.refusal(f"both are step {first} of {self.total_steps}; train longer", **given))
        return first, last

    def steps_between(self, frequency: int | None, default: int) -> int:
        """Optimizer steps between updates: what was asked for, or else the default, but at least one.

        Raises:
            PlanError: fewer than one.
        """
        if frequency is not None and frequency < 1:
            raise PlanError(self.refusal("must be at least 1: optimizer steps between updates", frequency=frequency))
        return frequency or max(1, default)

    def loss(self) -> Tensor:
        """What the method adds to the training loss: a scalar; zero unless a method says otherwise."""
        return torch.zeros((), device=next(self.model.parameters()).device)

    def step(self) -> None:
        """Count one optimizer step and do what the method does after it; zeros of an earlier pruning stay zeros."""
        self.steps_done += 1
        self.after_step()
        masks.apply_masks(self.model)

    @abstractmethod
    def after_step(self) -> None:
        """The method's own work after optimizer step number `steps_done` (the first is 1)."""

    @property
    def is_settled(self) -> bool:
        """Whether what is removed is final, so that the best epoch from now on may be kept instead of the last."""
        return False

    def finalize(self) -> nn.Module:
        """A baked copy of the model as it is now; `self.model` can be trained on."""
        return masks.bake(self.model)

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on later, beside `self.model.state_dict()`; tensors and plain values only."""
        return {
            "method": self.name,
            "total_steps": self.total_steps,
            "steps_done": self.steps_done,
            "options": copy.deepcopy(self.settings),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`.

        Raises:
            PlanError: the state is of another method, other options or another length of training.
        """
        mine = {"method": self.name, "total_steps": self.total_steps, **self.settings}
        other = {"method": state.get("method"), "total_steps": state.get("total_steps"), **state.get("options", {})}
        for key in mine:
            if key in other and key not in self.STATED and mine[key] != other[key]:
                raise PlanError(f"pruner state has {key} {other[key]!r}, this one is made for {mine[key]!r}")
        self.steps_done = int(state["steps_done"])


def _is_plain(value: Any) -> bool:
    """Whether it is a number, text, nothing, or a sequence or a mapping of these."""
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _type_of(cls: type[Pruner], name: str) -> Any:
    """The constructor's annotation of an option."""
    inits = [vars(kind)["__init__"] for kind in cls.__mro__ if "__init__" in vars(kind)]
    init = next(each for each in inits if name in inspect.signature(each).parameters)
    return get_type_hints(init)[name]


def _in_words(kind: Any) -> str:
    """What an annotation accepts, as one would type it.

    >>> _in_words(float | Mapping[str, float]), _in_words(Sequence[str] | None)
    ('a number or {name: a number, ...}', '[text, ...] or null')
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(map(repr, parts))
    words = [_in_words(part) for part in parts]
    if origin is Mapping:
        return f"{{name: {words[1]}, ...}}"
    if origin is Sequence:
        return f"[{words[0]}, ...]"
    if origin is tuple:
        return f"[{', '.join(words)}]"
    return " or ".join(words) or WORDS.get(kind, getattr(kind, "__name__", str(kind)))
