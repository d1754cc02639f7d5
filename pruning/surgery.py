"""The mechanics of a smaller module: cut parameters and buffers, correct attributes, compare with the masked module.

What is cut follows from `pruning.wiring`, which knows for every parameter which of its rows or columns belong to which
unit. Attributes that count channels are corrected by tables, module type -> rule. A module that is not in them but has
such a count in its own code is found out by the comparison: the smaller module must answer as the masked one does.

What this asks of a user's module is little: read sizes from tensors (`x.shape[1]`, `view(n, -1, ...)`) or from
attributes (`pruning.attributes`) instead of writing them as constants, and keep the numbers of padded channels in
attributes `channels_before`, `channels_after`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pruning import masks
from pruning.attributes import Attributes, failing
from pruning.evaluation import evaluating
from pruning.wiring import Wiring, wire
from workloads.errors import PlanError, first_line
from workloads.graph import Layer, LayerGraph, Op

if TYPE_CHECKING:
    from pruning.plan import PruningPlan

Kept = Mapping[str, np.ndarray]
TOLERANCE = 1e-5  # of how much answers to different inputs differ, in float32
TOLERANCE_FLOAT64 = 1e-7  # the same where they are computed in float64
ROUNDING_FLOAT64 = 1e-12  # of the largest answer
CONSTANT = 1e-9  # of the largest answer: where all inputs together make less of a difference, there is none in float32


def apply(plan: PruningPlan, model: nn.Module, example_inputs: tuple[Tensor, ...]) -> nn.Module:
    """What `PruningPlan.apply` does."""
    if plan.is_empty:
        raise PlanError("the plan removes nothing: every group keeps all units and no mask has a zero")
    wiring = wire(model, example_inputs)
    kept = kept_units(plan, wiring)
    found = parameter_masks(plan, wiring, model)
    sparse = masks.bake(model, found) if found else model
    if not kept:
        return sparse
    small = cut(sparse, wiring, kept)
    masked, what = wiring.masked(sparse, kept), f"groups {', '.join(kept)}"
    layers = wiring.analysis.graph_units(kept).layers
    Attributes(small, wiring.modules(small), wiring.graph.layers, layers, example_inputs).follow()
    check_equal(masked, small, example_inputs, what)
    return small


def kept_units(plan: PruningPlan, wiring: Wiring) -> dict[str, np.ndarray]:
    """Units that stay, of groups that lose any; the plan is checked against the network."""
    for group, units in plan.units.items():
        size = wiring.analysis.group(group).size
        if size != units:
            raise PlanError(f"plan for {plan.model!r}: group {group!r} had {units} units, this model's has {size}")
    return {group: np.array(plan.channels[group], np.int64) for group in plan.removed}


def parameter_masks(plan: PruningPlan, wiring: Wiring, model: nn.Module) -> dict[str, Tensor]:
    """The plan's masks by parameter, in torch's layout."""
    found: dict[str, Tensor] = {}
    for name, zeros in plan.masks.items():
        parameter, layer = wiring.weight_of(name), wiring.graph[name]
        if not zeros.is_exact:
            raise PlanError(f"plan: of layer {name!r} only the density {zeros.density:.3f} is known, not which weights")
        if zeros.shape != layer.weight_shape:
            raise PlanError(f"plan: mask of layer {name!r} is {zeros.shape}, the weight is {layer.weight_shape}")
        found[parameter] = in_torch_layout(zeros.mask(), layer, model.get_parameter(parameter).shape)
    return found


def in_torch_layout(mask: np.ndarray, layer: Layer, shape: Sequence[int]) -> Tensor:
    """A mask (K, C / groups, R, S) as the parameter of that layer is laid out."""
    if layer.op is Op.CONV_TRANSPOSE:
        k, c, r, s = mask.shape
        mask = mask.reshape(layer.groups, k // layer.groups, c, r, s).transpose(0, 2, 1, 3, 4)
    return torch.from_numpy(np.ascontiguousarray(mask)).reshape(tuple(shape))


def by_filter(weight: Tensor, layer: Layer) -> Tensor:
    """A parameter as (K, C / groups, R, S): the inverse of `in_torch_layout`."""
    k, c, r, s = layer.weight_shape
    if layer.op is Op.CONV_TRANSPOSE:
        return weight.reshape(layer.groups, c, k // layer.groups, r, s).transpose(1, 2).reshape(k, c, r, s)
    return weight.reshape(k, c, r, s)


# ---- cutting ---------------------------------------------------------------------------------------------------------


def cut(model: nn.Module, wiring: Wiring, kept: Kept) -> nn.Module:
    """A copy with smaller parameters, buffers and attributes.

    Args:
        kept: channel group -> units that stay.

    Raises:
        PlanError: units that are impossible, or a weight that is computed from others.
    """
    graph = wiring.analysis.graph_units(kept)
    small = copy.deepcopy(model)
    places = _places(small)
    changed: dict[int, nn.Module] = {}
    for name, axes in wiring.positions(kept).items():
        path, _, leaf = name.rpartition(".")
        old = getattr(small.get_submodule(path), leaf)
        new = _selected(old, axes)
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new, requires_grad=old.requires_grad)
        for module, attribute in places[id(old)]:
            setattr(module, attribute, new)
            mask = module._buffers.get(attribute + masks.SUFFIX)
            if mask is not None and mask.shape == old.shape:
                setattr(module, attribute + masks.SUFFIX, _selected(mask, axes))
            changed[id(module)] = module
    _correct(small, wiring, graph)
    for module in changed.values():
        _apply_rule(SIZES, module, module)
    return small


def _places(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Everywhere that each parameter or buffer is held; a tied one in several places."""
    found: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for leaf, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                found.setdefault(id(tensor), []).append((module, leaf))
    return found


def _selected(tensor: Tensor, axes: Mapping[int, np.ndarray]) -> Tensor:
    """The chosen positions of some axes, a copy."""
    found = tensor.detach()
    for axis, positions in axes.items():
        found = found.index_select(axis, torch.from_numpy(positions).to(found.device))
    return found


def _correct(small: nn.Module, wiring: Wiring, graph: LayerGraph) -> None:
    """Attributes that follow from the graph: groups of convolutions and norms, channels that are padded."""
    modules = wiring.modules(small)
    for old, new in zip(wiring.graph.layers, graph.layers, strict=True):
        module = modules.get(old.name)
        if module is None or old == new:
            continue
        if old.op is Op.PAD:
            _correct_padding(module, old, new)
        elif old.groups != new.groups or old.op is Op.NORM:
            _apply_rule(GROUPS, module, new)


def _correct_padding(module: nn.Module, old: Layer, new: Layer) -> None:
    before, after = (attribute[old.channel_axis] for attribute in (new.attributes["before"], new.attributes["after"]))
    if (old.attributes["before"], old.attributes["after"]) == (new.attributes["before"], new.attributes["after"]):
        return
    if not (hasattr(module, "channels_before") and hasattr(module, "channels_after")):
        raise PlanError(
            f"layer {old.name!r} pads channels with numbers that stand in the code of {type(module).__name__}; "
            "keep them in attributes channels_before and channels_after, or leave the group alone"
        )
    module.channels_before, module.channels_after = before, after


Rules = Mapping[tuple[type[nn.Module], ...], Callable[[Any, Any], None]]


def _apply_rule(rules: Rules, module: nn.Module, argument: object) -> None:
    for kinds, rule in rules.items():
        if isinstance(module, kinds):
            rule(module, argument)


def _set(module: nn.Module, **values: int) -> None:
    for name, value in values.items():
        setattr(module, name, value)


def _conv(m: nn.Conv2d, _: object) -> None:
    _set(m, out_channels=m.weight.shape[0], in_channels=m.weight.shape[1] * m.groups)


def _conv_transpose(m: nn.ConvTranspose2d, _: object) -> None:
    _set(m, in_channels=m.weight.shape[0], out_channels=m.weight.shape[1] * m.groups)


def _linear(m: nn.Linear, _: object) -> None:
    _set(m, out_features=m.weight.shape[0], in_features=m.weight.shape[1])


def _batch_norm(m: nn.BatchNorm2d, _: object) -> None:
    sized = m.running_mean if m.running_mean is not None else m.weight
    _set(m, num_features=len(sized))


def _lstm(m: nn.LSTM, _: object) -> None:
    _set(m, hidden_size=m.get_parameter("weight_hh_l0").shape[1], input_size=m.get_parameter("weight_ih_l0").shape[1])


SIZES: Rules = {
    (nn.Conv1d, nn.Conv2d): _conv,
    (nn.ConvTranspose1d, nn.ConvTranspose2d): _conv_transpose,
    (nn.Linear,): _linear,
    (nn.modules.batchnorm._NormBase,): _batch_norm,
    (nn.GroupNorm,): lambda m, _: _set(m, num_channels=len(m.weight)),
    (nn.PReLU,): lambda m, _: _set(m, num_parameters=len(m.weight)),
    (nn.LSTM,): _lstm,
}
"""What follows from a module's own tensors, after they were cut."""

GROUPS: Rules = {
    (nn.modules.conv._ConvNd,): lambda m, layer: _set(m, groups=layer.groups),
    (nn.GroupNorm,): lambda m, layer: _set(m, num_groups=layer.attributes["groups"], num_channels=layer.k),
    (nn.modules.instancenorm._InstanceNorm,): lambda m, layer: _set(m, num_features=layer.k),
}
"""What follows from the graph: module, new layer -> None."""


# ---- comparing -------------------------------------------------------------------------------------------------------


def check_equal(masked: nn.Module, pruned: nn.Module, example_inputs: tuple[Tensor, ...], what: str = "") -> None:
    """Run both on random inputs and compare; in float64 where float32 leaves a doubt.

    Args:
        example_inputs: their shapes are used, with a batch of at least two where the model allows it.
        what: was removed, for the message.

    Raises:
        PlanError: the smaller module fails or answers differently; names the module where that starts.
    """
    inputs = random_inputs(masked, example_inputs)
    with torch.no_grad(), evaluating(masked), evaluating(pruned):
        with _running(masked) as running:
            wanted = masked(*inputs)
        if any(module._parameters and module not in running for module in masked.modules()):
            _check_training(masked, pruned, inputs, what)
        if not _tensors(wanted):
            raise PlanError(f"the model answers {type(wanted).__name__}, in which no tensor is found to compare")
        try:
            found = pruned(*inputs)
        except Exception as error:
            where = _innermost(pruned, error)
            raise PlanError(_constant_channels(where, what, first_line(error))) from error
        if _are_close(wanted, found):
            return
        exact = tuple(x.double() if x.is_floating_point() else x for x in inputs)
        twins = [copy.deepcopy(model).double() for model in (masked, pruned)]
        if not _are_close(twins[0](*exact), twins[1](*exact)):
            where = _first_difference(twins[0], twins[1], exact)
            raise PlanError(_constant_channels(where, what, "it answers otherwise than the masked model"))


@contextmanager
def _running(model: nn.Module) -> Iterator[set[nn.Module]]:
    """The modules that are called meanwhile."""
    found: set[nn.Module] = set()
    hooks = [module.register_forward_pre_hook(lambda own, _: found.add(own)) for module in model.modules()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _check_training(masked: nn.Module, pruned: nn.Module, inputs: tuple[Tensor, ...], what: str) -> None:
    """Run both in training mode: modules that rest otherwise may be heads that only help to train.

    Raises:
        PlanError: only the smaller one fails.
    """
    twins = [copy.deepcopy(model).train() for model in (masked, pruned)]
    with torch.no_grad(), torch.random.fork_rng():
        try:
            twins[0](*inputs)
        except Exception:  # it does not train on such inputs
            return
        try:
            twins[1](*inputs)
        except Exception as error:
            where = _innermost(twins[1], error)
            raise PlanError(
                f"without {what} the smaller model fails in training, first in {where}: {first_line(error)}; take out "
                "what runs in training only, or keep the group"
            ) from error


def _constant_channels(where: str, what: str, reason: str) -> str:
    hint = "does its code fix a number of channels? Read sizes from tensors (x.shape[1], view(n, -1, ...))"
    return f"without {what} the smaller model does not work, first seen in {where}: {reason}; {hint}, or keep the group"


def random_inputs(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Standard normal numbers in place of floats; twice the batch where it is one and the model takes two."""
    generator = torch.Generator().manual_seed(0)

    def drawn(example: Tensor, times: int) -> Tensor:
        if not example.is_floating_point():
            return example.repeat(times, *[1] * (example.dim() - 1))
        return torch.randn((times * len(example), *example.shape[1:]), generator=generator).to(example)

    doubled = tuple(drawn(example, 2 if len(example_inputs[0]) == 1 else 1) for example in example_inputs)
    try:
        with torch.no_grad(), evaluating(model):
            model(*doubled)
        return doubled
    except Exception:  # a model that only takes its own batch
        return tuple(drawn(example, 1) for example in example_inputs)


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _are_close(wanted: Any, found: Any) -> bool:
    return all(_is_close(a, b) for a, b in zip(_tensors(wanted), _tensors(found), strict=True))


def _is_close(a: Tensor, b: Tensor) -> bool:
    """Equal within a small part of what the inputs make of a difference.

    An untrained deep network answers nearly the same to everything, so the answers' size would say nothing. It is the
    measure only where all answers are the same: norms of a constant divide by almost nothing and enlarge rounding.
    """
    if a.shape != b.shape or not a.is_floating_point():
        return torch.equal(a, b)
    if not a.numel():
        return True
    spread = float((a - a[:1]).abs().max()) if len(a) > 1 else float(a.abs().max())
    if a.dtype == torch.float64:
        largest = float(a.abs().max())
        measure = spread if spread > CONSTANT * largest else largest
        return float((a - b).abs().max()) <= TOLERANCE_FLOAT64 * measure + ROUNDING_FLOAT64 * largest
    return float((a - b).abs().max()) <= TOLERANCE * spread


def _innermost(model: nn.Module, error: BaseException) -> str:
    """The innermost module that was running when it failed, as "'fc' (Linear)"."""
    paths = {module: path for path, module in model.named_modules() if path}
    inside = (f"{paths[module]!r} ({type(module).__name__})" for module in failing(error) if module in paths)
    return next(inside, f"the model ({type(model).__name__})")


def _first_difference(masked: nn.Module, pruned: nn.Module, inputs: tuple[Tensor, ...]) -> str:
    """The first module, in running order, whose answer has the old shape but other values."""
    answers: list[list[tuple[str, Any]]] = []
    for model in (masked, pruned):
        seen: list[tuple[str, Any]] = []
        hooks = [
            module.register_forward_hook(lambda _m, _x, y, path=path, seen=seen: seen.append((path, copy.deepcopy(y))))
            for path, module in model.named_modules()
        ]
        model(*inputs)
        for hook in hooks:
            hook.remove()
        answers.append(seen)
    for (path, wanted), (_, found) in zip(*answers, strict=True):
        same = [(a, b) for a, b in zip(_tensors(wanted), _tensors(found), strict=True) if a.shape == b.shape]
        if not all(_is_close(a, b) for a, b in same):
            return f"{path!r} ({type(masked.get_submodule(path)).__name__})" if path else "the model's own code"
    return "the model's own code"
