"""Filters whose weights are all zero, and what becomes of the constant that they still make.

A method that removes single weights may empty whole filters. Such a filter makes the same number everywhere: its bias,
through the shift of its batch norm and the activation. Who removes it must put that number where it is read: a layer
that reads c through weights w reads the constant c * sum(w), which is a part of its bias. That holds at every place
only if the layer sees c at every place, so not where it pads with zeros that are no c.

    model, plan = fold_dead(sparse, example_inputs)     # the same answers; print(plan) says what can go and what cannot
    small = plan.apply(model, example_inputs)
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn

from pruning.evaluation import evaluating
from pruning.plan import PruningPlan
from pruning.surgery import check_equal, random_inputs
from pruning.wiring import PRODUCED, READ, Cut, Wiring, wire
from workloads.errors import PlanError

Seen = dict[nn.Module, Tensor]
READERS = (nn.Conv1d, nn.Conv2d, nn.Linear)


def fold_dead(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> tuple[nn.Module, PruningPlan]:
    """A copy in which constants of dead filters are in the biases of their readers, and the plan that removes them.

    Whether a channel is constant where it is read is seen on random inputs, and the copy is held against the model, in
    float64. The new biases are rounded to the precision of the weights.

    Args:
        model: finished, so with zeros in plain parameters. Not modified.
        example_inputs: a batch that the model takes.

    Returns:
        The copy, of full size, and the plan; its notes say which dead filters cannot go, and why.

    Raises:
        PlanError: no filter is dead, or none can go.
    """
    wiring, exact = wire(model, example_inputs), copy.deepcopy(model).double()
    inputs = tuple(x.double() if x.is_floating_point() else x for x in example_inputs)
    seen, kept, notes = _inputs_of_readers(exact, inputs), {}, []
    dead = {name: units for name in wiring.prunable if len(units := dead_units(model, wiring, name))}
    if not dead:
        raise PlanError("no filter has only zero weights, so none can be removed; prune filters or channels instead")
    for name, units in dead.items():
        gone, group = [], wiring.analysis.group(name)
        for unit in units:
            readers = [(cut, cut.index[cut.unit == unit]) for cut in wiring.cuts(name) if cut.role == READ]
            if unit in group.order[: group.minimum] and (group.minimum > 1 or len(units) == group.size):
                notes.append(f"unit {unit} of {name} is dead but stays: a layer would keep no channel")
            elif problem := _problem(exact, readers, seen):
                notes.append(f"unit {unit} of {name} is dead but stays: {problem}")
            else:
                _fold(exact, readers, seen)
                gone.append(unit)
        if gone:
            kept[name] = np.setdiff1d(np.arange(group.size), gone)
    if not kept:
        raise PlanError(f"no dead filter can be removed: {'; '.join(notes)}")
    check_equal(copy.deepcopy(model).double(), wiring.masked(exact, kept), inputs, "dead filters")
    channels = {name: tuple(units.tolist()) for name, units in kept.items()}
    sizes = {name: wiring.analysis.group(name).size for name in kept}
    return _with_biases(model, exact), PruningPlan(type(model).__name__, channels, sizes, notes=tuple(notes))


def _with_biases(model: nn.Module, exact: nn.Module) -> nn.Module:
    """A copy of the model with the biases of `exact`, in the precision of its weights."""
    folded = copy.deepcopy(model)
    for module, twin in zip(folded.modules(), exact.modules(), strict=True):
        if isinstance(module, READERS) and isinstance(twin, READERS) and twin.bias is not None:
            found = twin.bias.detach().to(module.weight.dtype)
            if module.bias is None:
                module.bias = nn.Parameter(found)
            elif not torch.equal(module.bias, found):
                module.bias = nn.Parameter(found, requires_grad=module.bias.requires_grad)
    return folded


def dead_units(model: nn.Module, wiring: Wiring, group: str) -> np.ndarray:
    """Units of a group whose filters have only zero weights, in every layer that makes them: ascending int64.

    Filters of depthwise layers need not be zero, since they only pass on what they read.
    """
    alive = np.zeros(wiring.analysis.group(group).size, bool)
    is_made = np.zeros(len(alive), bool)
    for cut in wiring.cuts(group):
        weight = model.get_parameter(cut.tensor).detach() if cut.role == PRODUCED and _has(model, cut.tensor) else None
        if weight is None or weight.dim() < 2 or _is_depthwise(model, cut.tensor):
            continue
        rows = weight.movedim(cut.axis, 0).flatten(1).any(1).cpu().numpy()
        is_made[cut.unit] = True
        np.logical_or.at(alive, cut.unit, rows[cut.index])
    return np.flatnonzero(is_made & ~alive)


def _has(model: nn.Module, name: str) -> bool:
    return any(name == found for found, _ in model.named_parameters())


def _is_depthwise(model: nn.Module, parameter: str) -> bool:
    module = model.get_submodule(parameter.rpartition(".")[0])
    return getattr(module, "groups", 1) == getattr(module, "in_channels", 0) > 1


def _inputs_of_readers(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> Seen:
    """What each layer with weights reads: for each channel (axis 0) all numbers, side by side; of all its calls."""
    seen: dict[nn.Module, list[Tensor]] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        axis = -1 if isinstance(module, nn.Linear) else 1
        seen.setdefault(module, []).append(inputs[0].detach().movedim(axis, 0).flatten(1))

    hooks = [module.register_forward_pre_hook(note) for module in model.modules() if isinstance(module, READERS)]
    with torch.no_grad(), evaluating(model):
        model(*random_inputs(model, example_inputs))
    for hook in hooks:
        hook.remove()
    return {module: torch.cat(parts, 1) for module, parts in seen.items()}


def _problem(model: nn.Module, readers: list[tuple[Cut, np.ndarray]], seen: Seen) -> str:
    """Why a unit's constant cannot be folded into those that read it; "" if it can."""
    if not readers:
        return "no layer reads it by weights"
    for cut, channels in readers:
        module = model.get_submodule(cut.tensor.rpartition(".")[0])
        if module not in seen:
            return f"{cut.layer!r} is no linear layer or convolution that could take it into a bias"
        if getattr(module, "groups", 1) > 1:
            return f"{cut.layer!r} reads it in groups"
        values = seen[module][torch.from_numpy(channels)]
        if bool((values != values[:, :1]).any()):
            return f"it is not the same everywhere where {cut.layer!r} reads it"
        padding = getattr(module, "padding", 0)
        pads = padding == "same" or any(np.atleast_1d(0 if isinstance(padding, str) else padding))
        if pads and getattr(module, "padding_mode", "zeros") == "zeros" and bool(values.any()):
            return f"{cut.layer!r} pads with zeros, and it is {float(values.flatten()[0]):.3g}"
    return ""


@torch.no_grad()
def _fold(model: nn.Module, readers: list[tuple[Cut, np.ndarray]], seen: Seen) -> None:
    for cut, channels in readers:
        module = model.get_submodule(cut.tensor.rpartition(".")[0])
        assert isinstance(module, READERS)
        index = torch.from_numpy(channels)
        columns = module.weight.index_select(1, index.to(module.weight.device))
        read = columns.reshape(*columns.shape[:2], -1).sum(2) @ seen[module][index, 0]
        if read.any():
            module.bias = nn.Parameter(read if module.bias is None else module.bias + read)
