"""Masks of weights: parametrizations while a method trains, exact zeros and a bool buffer when it has finished.

A mask is a bool tensor of its parameter's shape, True = kept, and is named as `named_parameters` names the parameter.

While training, `attach` puts a `MaskedWeight` on the parameter: the network computes with `weight * mask`, removed
weights get no gradient, and the dense values stay behind the mask, so that a method may change its mind.
`bake` ends that: plain parameters with exact zeros, and beside each a bool buffer `<name>_mask`. A baked model is an
ordinary module: it can be copied, pickled, saved, compiled, exported and lowered, and its state dict holds the masks.
Who trains it on calls `keep_masks(model, optimizer)` once, and the zeros stay zeros.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from workloads.errors import PlanError, ShapeError, unknown_name
from workloads.models.weights import masks_in

SUFFIX = "_mask"
Masks = Mapping[str, Tensor]


class MaskedWeight(nn.Module):
    """The parametrization `weight -> weight * mask` of one parameter.

    Lifecycle: `attach` makes it, torch calls it whenever the weight is read, `set_masks` changes it, `bake` ends it.
    """

    mask: Tensor

    def __init__(self, mask: Tensor, position: int = 0) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.position = position  # among the module's parameters, whose order optimizers go by

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What an assignment stores: the dense values."""
        return weight


def attach(model: nn.Module, masks: Masks, kind: Callable[[Tensor, int], MaskedWeight] = MaskedWeight) -> None:
    """Let `model` train with masks: in place, since it is a method's prepared copy.

    Args:
        kind: makes the parametrization of one parameter from its mask and position; a subclass, or a function that
            gives it what else it needs.

    Raises:
        PlanError: a name is no parameter, has a mask already, or is tied to another name (torch would untie them).
        ShapeError: a mask is not boolean or not of the parameter's shape.
    """
    found = {name: _checked(model, name, mask) for name, mask in masks.items()}
    positions = {}
    for name in found:
        module, leaf = owner(model, name)
        positions[name] = list(module._parameters).index(leaf) if leaf in module._parameters else 0
        tied = [other for other, tensor in _all_parameters(model) if tensor is getattr(module, leaf) and other != name]
        if tied:
            raise PlanError(f"{name!r} is the same tensor as {tied[0]!r}; tied parameters can only be masked by bake")
    for name, mask in found.items():
        module, leaf = owner(model, name)
        parametrize.register_parametrization(module, leaf, kind(mask, positions[name]))
        if isinstance(module, nn.RNNBase):
            _copy_without_history(type(module))


def set_masks(model: nn.Module, masks: Masks) -> None:
    """Change masks that `attach` has put on.

    Raises:
        PlanError: a parameter carries none.
        ShapeError: a mask of another shape, or not of bool.
    """
    attached = _attached(model)
    for name, mask in masks.items():
        if name not in attached:
            raise PlanError(f"{name!r} carries no mask; attach one first")
        old = attached[name].mask
        if mask.shape != old.shape or mask.dtype != torch.bool:
            raise ShapeError(_wrong_mask(name, mask, old))
        old.copy_(mask)


def dense_weight(model: nn.Module, name: str) -> Tensor:
    """The values behind the mask of an attached parameter, or the plain parameter; without gradient."""
    return trained_weight(model, name).detach()


def trained_weight(model: nn.Module, name: str) -> nn.Parameter:
    """The parameter that an optimizer moves: the one behind the mask, or the plain one."""
    module, leaf = owner(model, name)
    if parametrize.is_parametrized(module, leaf):
        return getattr(module.parametrizations, leaf).original
    return module.get_parameter(leaf)


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    """Every mask of a model by parameter name, attached or baked; where there are both, what both keep."""
    found = attached_masks(model)
    for name, mask in baked_masks(model).items():
        found[name] = found[name] & mask if name in found else mask
    return found


def attached_masks(model: nn.Module) -> dict[str, Tensor]:
    """The masks that `attach` put on, which `set_masks` changes."""
    return {name: parametrization.mask for name, parametrization in _attached(model).items()}


def baked_masks(model: nn.Module) -> dict[str, Tensor]:
    """The masks of an earlier pruning, which `bake` left: a bound on those that are attached later."""
    return {
        name.removesuffix(SUFFIX): buffer
        for name, buffer in model.named_buffers()
        if name.endswith(SUFFIX) and buffer.dtype == torch.bool and _has_parameter(model, name.removesuffix(SUFFIX))
    }


def bake(model: nn.Module, masks: Masks | None = None) -> nn.Module:
    """A copy with exact zeros in plain parameters and a bool buffer `<name>_mask` beside each.

    Args:
        model: with or without attached or baked masks. Not modified.
        masks: further ones. Of several masks of one parameter a weight is kept if all keep it.

    Raises:
        PlanError: there is no mask at all, or a name is no parameter.
        ShapeError: a mask is not boolean or not of the parameter's shape.

    >>> sparse = bake(nn.Linear(2, 1), {"weight": torch.tensor([[True, False]])})
    >>> sparse.weight_mask.tolist(), sparse.weight[0, 1].item()
    ([[True, False]], 0.0)
    """
    baked = copy.deepcopy(model)
    for name, parametrization in _attached(baked).items():
        module, leaf = owner(baked, name)
        mask = parametrization.mask
        _own_class(module)
        parametrize.remove_parametrizations(module, leaf, leave_parametrized=True)
        _reorder(module, leaf, parametrization.position)
        _store(module, leaf, mask)
    for name, mask in (masks or {}).items():
        _store(*owner(baked, name), _checked(baked, name, mask))
    if not masks_of(baked):
        raise PlanError("nothing to bake: the model carries no mask and none is given")
    return baked


def with_masks_in(model: nn.Module, weights: Path) -> nn.Module:
    """The model, which was filled from a weights file, with the masks that an earlier pruning left in it.

    Raises:
        DataError: the file cannot be read.
    """
    found = masks_in(weights)
    return bake(model, found) if found else model


def keep_masks(model: nn.Module, optimizer: torch.optim.Optimizer) -> RemovableHandle:
    """Re-apply the baked masks after every step of an optimizer, so that training on keeps the zeros.

    Called once by whoever trains a baked model; torch then calls the hook at the end of each `optimizer.step()`. It
    writes zeros where the masks say so and touches nothing else. `handle.remove()` ends it.

    Raises:
        PlanError: the model has no baked mask.
    """
    if not baked_masks(model):
        raise PlanError("the model carries no mask that training could keep; bake one first")

    def after_step(*_: object) -> None:
        apply_masks(model)

    return optimizer.register_step_post_hook(after_step)


@torch.no_grad()
def apply_masks(model: nn.Module) -> None:
    """Write zeros where the baked masks say so, in place; behind attached masks too."""
    for name, mask in baked_masks(model).items():
        trained_weight(model, name).masked_fill_(~mask, 0)


def density(masks: Iterable[Tensor]) -> float:
    """Kept fraction of all masks together."""
    kept, total = 0, 0
    for mask in masks:
        kept, total = kept + int(mask.sum()), total + mask.numel()
    return kept / total if total else 1.0


def owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds a parameter, and the parameter's name there.

    Raises:
        PlanError: there is no such parameter.
    """
    path, _, leaf = name.rpartition(".")
    try:
        module = model.get_submodule(path)
    except AttributeError:
        raise _no_parameter(model, name) from None
    if not _has_leaf(module, leaf):
        raise _no_parameter(model, name)
    return module, leaf


def parameter_names(model: nn.Module) -> list[str]:
    """Names as in a plain model: what a parametrization hides has its own name again."""
    return [name.replace("parametrizations.", "").removesuffix(".original") for name, _ in model.named_parameters()]


def _no_parameter(model: nn.Module, name: str) -> PlanError:
    return PlanError(str(unknown_name("parameter", name, parameter_names(model))))


def _has_leaf(module: nn.Module, leaf: str) -> bool:
    return module._parameters.get(leaf) is not None or parametrize.is_parametrized(module, leaf)


def _has_parameter(model: nn.Module, name: str) -> bool:
    path, _, leaf = name.rpartition(".")
    return _has_leaf(model.get_submodule(path), leaf)


def _all_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every name of every parameter of distinct modules; a tied one comes under each of its names."""
    for path, module in model.named_modules():
        for leaf, tensor in module.named_parameters(recurse=False):
            yield (f"{path}.{leaf}" if path else leaf), tensor


def _attached(model: nn.Module) -> dict[str, MaskedWeight]:
    found = {}
    for path, module in model.named_modules():
        if not parametrize.is_parametrized(module):
            continue
        for leaf, chain in module.parametrizations.items():
            for part in chain:
                if isinstance(part, MaskedWeight):
                    found[f"{path}.{leaf}" if path else leaf] = part
    return found


def _checked(model: nn.Module, name: str, mask: Tensor) -> Tensor:
    """The mask on the parameter's device, if it fits."""
    weight = dense_weight(model, name)
    if mask.dtype != torch.bool or mask.shape != weight.shape:
        raise ShapeError(_wrong_mask(name, mask, weight))
    if name in _attached(model):
        raise PlanError(f"{name!r} carries a mask already; change it with set_masks, or bake the model first")
    return mask.detach().to(weight.device).clone()


def _wrong_mask(name: str, mask: Tensor, wanted: Tensor) -> str:
    found = f"{mask.dtype} {tuple(mask.shape)}".removeprefix("torch.")
    return f"mask of {name!r} is {found}, must be bool {tuple(wanted.shape)}, True = kept"


def _copy_without_history(kind: Any) -> None:
    """Let a recurrent layer be copied, by the class that torch has made for it when it was parametrized.

    Such a layer keeps a list of the weights it last computed, whose history none can copy: they are computed anew.
    """
    whole = kind.__deepcopy__

    @torch.no_grad()
    def without_history(module: nn.RNNBase, memo: dict[int, Any]) -> nn.Module:
        module._update_flat_weights()
        return whole(module, memo)

    kind.__deepcopy__ = without_history


def _own_class(module: nn.Module) -> None:
    """Give a copied parametrized module a class of its own.

    torch keeps the property that computes the weight on a class made for the original; a deep copy shares that class,
    and removing the parametrization from the copy would take the weight away from the original too.
    """
    old = type(module)
    members = {key: value for key, value in vars(old).items() if key not in ("__dict__", "__weakref__")}
    module.__class__ = type(old.__name__, old.__bases__, members)


def _reorder(module: nn.Module, leaf: str, position: int) -> None:
    """Put a parameter where it was before it was parametrized."""
    names = [name for name in module._parameters if name != leaf]
    names.insert(position, leaf)
    for name in names:
        module._parameters[name] = module._parameters.pop(name)


@torch.no_grad()
def _store(module: nn.Module, leaf: str, mask: Tensor) -> None:
    """Zeros into the parameter (filled, since -1 * 0 is not a plain zero), the mask into the buffer.

    What an earlier mask there removes stays removed.
    """
    old = getattr(module, leaf + SUFFIX, None)
    mask = mask if old is None else mask & old
    module.get_parameter(leaf).masked_fill_(~mask, 0)
    module.register_buffer(leaf + SUFFIX, mask)
