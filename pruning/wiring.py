"""Which rows and columns of a module's own parameters belong to which channel unit.

The channel analysis speaks of the arrays beside a graph, in which batch norms are folded and weights may be computed.
Surgery, masks and gradients need the module's own tensors. A `Wiring` joins the two: lowering remembers of every array
which stored tensors it came from (`workloads.constants.Recipe`), so each member of a channel group becomes a few
`Cut`s, one for each axis of a parameter or buffer that shrinks with the group: the weight, its bias, and the scale,
shift, mean and variance of every batch norm folded into it.

Letters: K filters, C input channels of a group, as in `workloads.sparsity`.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from workloads.channels import ChannelAnalysis, Member, analyze
from workloads.constants import Computed, Constant, Norm, Reader, Recipe, Stored, stored_in, tensors_of
from workloads.errors import LoweringError, PlanError, unknown_name
from workloads.graph import KIND, Kind, Layer, LayerGraph, Op
from workloads.lowering import prepare
from workloads.unread import Followers, followers

if TYPE_CHECKING:
    from torch import Tensor

    from workloads.structure import Structure

PRODUCED, READ, STATISTIC = "produced", "read", "statistic"
ROLES = {"output": PRODUCED, "depthwise": PRODUCED, "bias": PRODUCED, "norm": PRODUCED, "slope": PRODUCED}
ROLES |= {"constant": PRODUCED, "input": READ}


@dataclass(frozen=True, eq=False)
class Cut:
    """What a channel group owns of one axis of one parameter or buffer.

    Attributes:
        layer: of the graph; "" for code that runs although its answer is not used.
        tensor: name in the model's state dict. axis: of the tensor.
        role: "produced" (makes or carries the channels), "read" (weights that read them), "statistic" (variance of a
            batch norm: it shrinks with the channels, but is not set to zero in a mask).
        index: int64 (m,), positions on the axis, ascending. unit: int64 (m,), the unit of the group each belongs to.
    """

    layer: str
    tensor: str
    axis: int
    role: str
    index: np.ndarray
    unit: np.ndarray


def wire(model: nn.Module, source: LayerGraph | ChannelAnalysis | tuple[Tensor, ...]) -> Wiring:
    """The wiring of a model.

    Args:
        model: read, not modified. Tracing is remembered by lowering, so asking again costs milliseconds.
        source: example inputs; or the model's graph or channel analysis, to get exactly those layers and groups.

    Raises:
        LoweringError: the model cannot be lowered. PlanError: graph or analysis are of another model.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1))
    >>> print(*(f"{cut.tensor} {cut.axis}" for cut in wire(model, (torch.ones(1, 3, 5, 5),)).cuts("0")), sep=", ")
    0.weight 0, 1.weight 0, 1.bias 0, 1.running_mean 0, 1.running_var 0, 2.weight 1
    """
    graph = source.source if isinstance(source, ChannelAnalysis) else source
    if isinstance(graph, LayerGraph):
        first = next(model.parameters(), torch.empty(0))
        kinds = [getattr(torch, layer.attributes.get("dtype", ""), first.dtype) for layer in graph.inputs]
        shapes = [layer.shape for layer in graph.inputs]
        inputs = tuple(torch.zeros(s, dtype=kind, device=first.device) for s, kind in zip(shapes, kinds, strict=True))
        on_unknown = "vector" if any(layer.op is Op.VECTOR for layer in graph.layers) else "error"
        structure, reader = prepare(model, inputs, on_unknown)
    else:
        try:
            structure, reader = prepare(model, graph, "error")
        except LoweringError:  # what channels do in an operator that no table has is not known: they all stay
            structure, reader = prepare(model, graph, "vector")
    if not isinstance(graph, LayerGraph):
        graph = structure.graph(type(model).__name__, reader).verify()
    elif [layer.name for layer in graph.layers] != [layer.name for layer in structure.layers]:
        raise PlanError(f"graph {graph.name!r} was not made from this {type(model).__name__}; lower the model again")
    analysis = source if isinstance(source, ChannelAnalysis) else analyze(graph)
    return Wiring(graph, analysis, structure, _rigid(model))


def _rigid(model: nn.Module) -> dict[tuple[str, int], str]:
    """(parameter, axis) that torch's own modules cannot shrink -> why."""
    found: dict[tuple[str, int], str] = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            reason = f"{path!r} (MultiheadAttention) must have as many channels inside as outside"
            found |= {(f"{path}.{leaf}", axis): reason for leaf, _ in module.named_parameters() for axis in (0, 1)}
        elif isinstance(module, nn.LSTM) and (module.num_layers > 1 or module.bidirectional):
            reason = f"all layers and directions of {path!r} (LSTM) must have equally many hidden units"
            found |= {(f"{path}.{leaf}", 0): reason for leaf, _ in module.named_parameters()}
    return {(name.lstrip("."), axis): reason for (name, axis), reason in found.items()}


@dataclass(frozen=True, eq=False)
class Wiring:
    """The graph of a model, its channel groups, and what both mean for the model's own tensors; made by `wire`.

    Printed, it lists every channel group: what it may lose, or why it must be left alone.
    """

    graph: LayerGraph
    analysis: ChannelAnalysis
    structure: Structure
    rigid: Mapping[tuple[str, int], str]

    def __str__(self) -> str:
        count = f"{len(self.analysis.groups)} channel groups, {len(self.prunable)} can be cut"
        lines = [f"  {group}" for group in self.analysis.groups]
        for i, group in enumerate(self.analysis.groups):
            if group.prunable and group.name in self.reasons:
                lines[i] = f"  {group.name}: {group.size} units, left alone: {self.reasons[group.name]}"
        return "\n".join([f"Wiring of {self.graph.name!r}: {count}", *lines])

    # ---- channel groups ---------------------------------------------------------------------------------------------

    @cached_property
    def prunable(self) -> tuple[str, ...]:
        """Groups that may lose units and whose tensors can be cut."""
        return tuple(name for name in self.analysis.names if name not in self.reasons)

    @cached_property
    def reasons(self) -> dict[str, str]:
        """Why a group must be left alone, for each that must."""
        found = {group.name: group.reason or self._problems(group.name) for group in self.analysis.groups}
        return {name: reason for name, reason in found.items() if reason}

    def cuts(self, group: str) -> tuple[Cut, ...]:
        """All axes of tensors that shrink with a group.

        Raises:
            PlanError: no such group, or one of its weights is computed in a way that cannot be cut.
        """
        name = self.analysis.group(group).name
        if problem := self._problems(name):
            raise PlanError(f"channel group {name!r}: {problem}")
        return self._cuts[name]

    def _problems(self, group: str) -> str:
        members = [(member, self.structure.recipes[member.array]) for member in self.analysis.group(group).members]
        members += [(member, self._recipes[member.array]) for member in self._unread.members.get(group, ())]
        for member, recipe in members:
            if _traced(recipe, member) is None:
                return f"array {member.array!r} of layer {member.layer!r} {_origin(recipe)}"
        if reason := self._unread.reasons.get(group):
            return reason
        if tensor := self._torn.get(group):
            return f"it would cut {tensor!r}, which also serves a call that runs but whose answer is not used"
        for cut in self._cuts[group]:
            if array := self._read_by_code.get(cut.tensor):
                return f"it would cut {cut.tensor!r}, from which array {array!r} is computed, which cannot be cut"
            if cut.role != STATISTIC and (reason := self.rigid.get((cut.tensor, cut.axis))):
                return reason
        return ""

    @cached_property
    def _read_by_code(self) -> dict[str, str]:
        """Stored tensor -> the first array that is computed from it and cannot be cut."""
        found: dict[str, str] = {}
        for key, recipe in (*self.structure.recipes.items(), *self._recipes.items()):
            for name in stored_in(_computed(recipe)):
                found.setdefault(name, key)
        return found

    @cached_property
    def _cuts(self) -> dict[str, tuple[Cut, ...]]:
        found = {}
        for group in self.analysis.groups:
            cuts: dict[tuple[str, int, bytes], Cut] = {}
            for member in group.members:
                for cut in _traced(self.structure.recipes[member.array], member) or ():
                    cuts.setdefault((cut.tensor, cut.axis, cut.index.tobytes()), cut)
            for cut in self._unread_cuts.get(group.name, ()):
                cuts.setdefault((cut.tensor, cut.axis, cut.index.tobytes()), cut)
            found[group.name] = tuple(cuts.values())
        return found

    @cached_property
    def _unread(self) -> Followers:
        """What code whose answer is not used makes of the groups."""
        whole = self.structure.whole
        return Followers({}, {}) if whole is None else followers(self.analysis, whole.layers, whole.outputs)

    @cached_property
    def _unread_cuts(self) -> dict[str, list[Cut]]:
        return {
            group: [
                dataclasses.replace(cut, layer="")
                for member in members
                for cut in _traced(self._recipes[member.array], member) or ()
            ]
            for group, members in self._unread.members.items()
        }

    @cached_property
    def _recipes(self) -> Mapping[str, Recipe]:
        """Of every array, also of code whose answer is not used."""
        return (self.structure.whole or self.structure).recipes

    @cached_property
    def _torn(self) -> dict[str, str]:
        """Group -> a tensor that it cuts for the network, and otherwise or not for code whose answer is not used."""
        if self.structure.whole is None:
            return {}
        layers = self.structure.whole.layers[len(self.graph) :]
        unread = {
            item.name for x in layers for key in (x.weight, x.bias) if key for item in _stored(self._recipes[key])
        }
        shared = unread & {item.name for recipe in self.structure.recipes.values() for item in _stored(recipe)}
        found: dict[str, str] = {}
        for group in self.analysis.groups:
            members = [(member, self.structure.recipes[member.array]) for member in group.members]
            own = {_key(cut) for member, recipe in members for cut in _traced(recipe, member) or ()}
            other = {_key(cut) for cut in self._unread_cuts.get(group.name, ())}
            for tensor in sorted({key[0] for key in own ^ other} & shared):
                found.setdefault(group.name, tensor)
        return found

    def positions(self, kept: Mapping[str, np.ndarray]) -> dict[str, dict[int, np.ndarray]]:
        """What stays of every tensor that shrinks: tensor -> axis -> ascending positions.

        Args:
            kept: group -> units that stay.
        """
        gone: dict[str, dict[int, list[np.ndarray]]] = {}
        for cut, removed in self._removed(kept):
            gone.setdefault(cut.tensor, {}).setdefault(cut.axis, []).append(removed)
        return {
            tensor: {
                axis: np.setdiff1d(np.arange(self._shapes[tensor][axis]), np.concatenate(parts))
                for axis, parts in axes.items()
            }
            for tensor, axes in gone.items()
        }

    def _removed(self, kept: Mapping[str, np.ndarray]) -> Iterator[tuple[Cut, np.ndarray]]:
        """Every cut that loses positions, and which."""
        for group, units in kept.items():
            stays = np.zeros(self.analysis.group(group).size, bool)
            stays[units] = True
            for cut in self.cuts(group):
                removed = cut.index[~stays[cut.unit]]
                if len(removed):
                    yield cut, removed

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        recipes = (*self.structure.recipes.values(), *self._recipes.values())
        stored = [item for recipe in recipes for item in _stored(recipe)]
        return {item.name: item.shape for item in stored}

    # ---- zeros in place of cuts -------------------------------------------------------------------------------------

    def zeros(self, model: nn.Module, kept: Mapping[str, np.ndarray]) -> dict[str, list[Tensor]]:
        """What must be zero for all other units to be gone: tensor -> bools that broadcast to it.

        The filters that make the channels, their biases, batch-norm scales, shifts and means, and the weights that
        read them, so that the next layer sees nothing whatever an activation makes of zero.

        Args:
            kept: group -> units that stay.
        """
        tensors = tensors_of(model)
        found: dict[str, list[Tensor]] = {}
        for cut, positions in self._removed(kept):
            if cut.role != STATISTIC:
                tensor = tensors[cut.tensor]
                where = torch.zeros(tensor.shape[cut.axis], dtype=torch.bool)
                where[torch.from_numpy(positions)] = True
                spread = where.view([-1 if axis == cut.axis else 1 for axis in range(tensor.dim())])
                found.setdefault(cut.tensor, []).append(spread.to(tensor.device))
        return found

    def masked(self, model: nn.Module, kept: Mapping[str, np.ndarray]) -> nn.Module:
        """A copy of full size in which all other units of these groups are zero."""
        twin = copy.deepcopy(model)
        tensors = tensors_of(twin)
        for name, places in self.zeros(twin, kept).items():
            for where in places:
                tensors[name].masked_fill_(where, 0)
        return twin

    def masks(self, model: nn.Module, kept: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """The same as masks of parameters, True = kept, to train or bake with (`pruning.masks`)."""
        found = {}
        parameters = dict(model.named_parameters())
        for name, places in self.zeros(model, kept).items():
            if name in parameters:
                found[name] = torch.ones_like(parameters[name], dtype=torch.bool)
                for where in places:
                    found[name] &= ~where
        return found

    def unit_sums(self, group: str, products: Mapping[str, Tensor]) -> np.ndarray:
        """Sum of products over the weights that read each unit: float64 (units,).

        With products = weight x gradient that is d loss / d z of a factor z on the unit. Where nothing reads a unit
        by weights (queries and keys), what makes it is summed instead.
        """
        cuts = self.cuts(group)
        chosen = [cut for cut in cuts if cut.role == READ] or [cut for cut in cuts if cut.role == PRODUCED]
        total = np.zeros(self.analysis.group(group).size)
        for cut in chosen:
            if cut.tensor in products:
                product = products[cut.tensor].double()
                others = [axis for axis in range(product.dim()) if axis != cut.axis]
                sums = product.sum(others) if others else product  # over no axes torch sums over all
                np.add.at(total, cut.unit, sums.numpy()[cut.index])
        return total

    # ---- layers -----------------------------------------------------------------------------------------------------

    def weight_of(self, layer: str) -> str:
        """The parameter that is a layer's weight.

        Raises:
            PlanError: no such layer, no weight, or one that is computed from parameters.
        """
        known = [item.name for item in self.graph.layers if item.weight and KIND[item.op] is Kind.MAC]
        if layer not in known:
            raise PlanError(str(unknown_name("layer with weights", layer, known)))
        source = self.structure.recipes[self.graph[layer].weight].source
        if not isinstance(source, Stored) or not source.is_parameter:
            raise PlanError(f"the weight of layer {layer!r} is computed, not a parameter, so it cannot carry a mask")
        return source.name

    def companions(self, layer: str) -> tuple[str, ...]:
        """Parameters with one number a filter that go with a filter: its bias, scale and shift of its batch norms."""
        found = self.graph[layer]
        recipes = [self.structure.recipes[key] for key in (found.weight, found.bias) if key]
        stored = [part for recipe in recipes for norm in recipe.norms for part in (norm.weight, norm.bias)]
        stored += [recipe.source for recipe in recipes if recipe.is_bias]
        return tuple(dict.fromkeys(part.name for part in stored if isinstance(part, Stored) and part.is_parameter))

    def layers_of(self, parameter: str) -> tuple[Layer, ...]:
        """The layers whose weight is this parameter; several where a module runs several times."""
        recipes = self.structure.recipes
        owned = [key for key, recipe in recipes.items() if getattr(recipe.source, "name", "") == parameter]
        return tuple(layer for layer in self.graph.layers if layer.weight in owned)

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        """The module of `model` that each layer runs in, by layer; layers of plain functions have their caller's."""
        found = {}
        for layer in self.graph.layers:
            recipe = self.structure.recipes.get(layer.weight)
            stored = [item for item in _stored(recipe)] if recipe is not None else []
            path = stored[0].name.rpartition(".")[0] if stored else layer.name.split("#")[0]
            module = _submodule(model, path)
            if module is None:
                module = _submodule(model, path.rpartition(".")[0])
            if module is not None:
                found[layer.name] = module
        return found

    def arrays(self, model: nn.Module, dtype: type[np.floating[Any]] = np.float32) -> dict[str, np.ndarray]:
        """The arrays beside the graph, batch norms folded in, from the weights that the model has now."""
        return self.structure.arrays(Reader(tensors_of(model), dtype))


# ---- from arrays to stored tensors -----------------------------------------------------------------------------------


def _traced(recipe: Recipe, member: Member) -> list[Cut] | None:
    """The cuts of one member of a group; None where its array cannot be cut."""
    role = ROLES[member.role]
    sources = _sources(recipe, member) if recipe.source is not None else []
    if sources is None:
        return None
    found = [Cut(member.layer, tensor, axis, role, index, unit) for tensor, axis, index, unit in sources]
    if role == PRODUCED:
        index, unit = _filters(recipe, member)
        for part, part_role in (pair for norm in recipe.norms for pair in _parts(norm)):
            if isinstance(part, Stored):
                found.append(Cut(member.layer, part.name, 0, part_role, index, unit))
            elif part is not None:
                return None
    return found


def _parts(norm: Norm) -> tuple[tuple[Constant | None, str], ...]:
    return ((norm.weight, PRODUCED), (norm.bias, PRODUCED), (norm.mean, PRODUCED), (norm.var, STATISTIC))


def _computed(recipe: Recipe) -> list[Computed]:
    """The parts of an array that code makes, and which therefore cannot be cut."""
    source = recipe.source
    parts = [part for norm in recipe.norms for part, _ in _parts(norm)]
    if not (recipe.op is Op.LSTM and isinstance(source, Computed) and _only_stored(source)):
        parts.append(source)
    return [part for part in parts if isinstance(part, Computed)]


def _origin(recipe: Recipe) -> str:
    """What an array that cannot be cut is made from, and what to do about it."""
    names = sorted(stored_in(_computed(recipe)))
    if not names:
        return "is made of numbers in the code of the model, so it cannot be cut"
    hint = "; finish parametrizations first" if any(".parametrizations." in f".{name}" for name in names) else ""
    return f"is computed from {', '.join(map(repr, names))}, so it cannot be cut{hint}"


def _only_stored(source: Computed) -> bool:
    return all(isinstance(part, Stored) for part in source.args)


def _key(cut: Cut) -> tuple[str, int, bytes, bytes]:
    return cut.tensor, cut.axis, cut.index.tobytes(), cut.unit.tobytes()


_Source = tuple[str, int, np.ndarray, np.ndarray]  # tensor, axis, index, unit


def _sources(recipe: Recipe, member: Member) -> list[_Source] | None:
    """What the array itself is stored in."""
    source = recipe.source
    if isinstance(source, Stored):
        is_single = member.role == "slope" and source.shape[0] == 1  # one slope for all channels
        return [] if is_single else [(source.name, member.axis, member.index, member.unit)]
    if recipe.op is Op.LSTM and isinstance(source, Computed):
        return _lstm_sources(recipe, member, source)
    return None


def _lstm_sources(recipe: Recipe, member: Member, source: Computed) -> list[_Source] | None:
    """An LSTM's weight is [W_ih | W_hh], its bias b_ih + b_hh."""
    if not _only_stored(source):
        return None
    parts: tuple[Stored, ...] = source.args
    if recipe.is_bias or member.axis == 0:
        return [(part.name, member.axis, member.index, member.unit) for part in parts]
    found, start = [], 0
    for part in parts:
        inside = (member.index >= start) & (member.index < start + part.shape[1])
        if inside.any():
            found.append((part.name, 1, member.index[inside] - start, member.unit[inside]))
        start += part.shape[1]
    return found


def _filters(recipe: Recipe, member: Member) -> tuple[np.ndarray, np.ndarray]:
    """Positions among all K filters; the second axis of a grouped transposed convolution has those of one group."""
    if recipe.op is not Op.CONV_TRANSPOSE or recipe.is_bias or recipe.groups == 1:
        return member.index, member.unit
    k, c = recipe.shape[0], recipe.shape[1] * recipe.groups
    if member.axis == 1:
        width = k // recipe.groups
        index = (np.arange(recipe.groups)[:, None] * width + member.index).ravel()
        return index, np.tile(member.unit, recipe.groups)
    each = k // c  # axis 0 holds the input channels; each makes its own filters
    return (member.index[:, None] * each + np.arange(each)).ravel(), np.repeat(member.unit, each)


def _stored(recipe: Recipe) -> list[Stored]:
    """Every stored tensor that an array came from."""
    parts: Iterable[Constant | None] = (
        recipe.source,
        *(part for norm in recipe.norms for part in (norm.weight, norm.bias, norm.mean, norm.var)),
    )
    return [item for part in parts if part is not None for item in stored_in(part).values()]


def _submodule(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None
