"""A lowered network without its weights: finished layers, and recipes for the arrays that they name.

A `Structure` follows from the code and the shapes of a model alone, so it can be kept and used again; masks and
arrays are read afresh each time with `Structure.graph` and `Structure.arrays`.

Names: a layer is called like the module that makes it ("layer1.0.conv1"); several layers of one module, or of a module
that has others inside, are "<module>.<operator>" ("layer1.0.add"); a name that comes again gets "#2", "#3".
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from workloads.constants import Constant, Norm, Reader, Recipe, Stored
from workloads.drafts import Draft
from workloads.graph import KIND, Kind, Layer, LayerGraph, Op

_UNNAMED = frozenset({Op.INPUT, Op.CONSTANT})  # named after what they hold


@dataclass(frozen=True)
class Structure:
    """Layers that still know nothing of their zeros.

    Attributes:
        layers: in running order.
        outputs: names of the layers whose outputs leave the network.
        recipes: of every array, by key.
        whole: where calls with weights run although nothing reads their answer, these layers and, after them, those;
            names and keys may differ from those here.
    """

    layers: tuple[Layer, ...]
    outputs: tuple[str, ...]
    recipes: Mapping[str, Recipe]
    whole: Structure | None = None

    def graph(self, name: str, reader: Reader) -> LayerGraph:
        """The layer graph with the exact zeros of the weights that `reader` has now.

        Raises:
            LoweringError: a weight is not finite.
        """
        self._check_finite(reader)
        zeros = {key: recipe.sparsity(reader) for key, recipe in self.recipes.items() if _is_weight(recipe)}
        layers = tuple(
            layer if zeros.get(layer.weight) is None else dataclasses.replace(layer, sparsity=zeros[layer.weight])
            for layer in self.layers
        )
        return LayerGraph(name, layers, self.outputs)

    def arrays(self, reader: Reader) -> dict[str, np.ndarray]:
        """Every array by key, in the reader's type and torch's layout, batch norms folded in; shared with nobody."""
        return {key: recipe.array(reader) for key, recipe in self.recipes.items()}

    def _check_finite(self, reader: Reader) -> None:
        """Read what masks do not touch: biases and norms."""
        for recipe in self.recipes.values():
            if recipe.source is not None:
                reader.value(recipe.source)
            for norm in recipe.norms:
                norm.scale_and_shift(reader)


def _is_weight(recipe: Recipe) -> bool:
    return not recipe.is_bias and KIND[recipe.op] is Kind.MAC


def build_structure(drafts: list[Draft], outputs: list[Draft], unused: Sequence[Draft] = ()) -> Structure:
    """Names, keys of arrays and loop nests for drafts that are fused already.

    Args:
        unused: further drafts, whose answers nothing reads; some may be among the others.
    """
    own = set(drafts)
    if more := [draft for draft in unused if draft not in own]:
        return dataclasses.replace(build_structure(drafts, outputs), whole=build_structure([*drafts, *more], outputs))
    names = _names(drafts)
    keys = _Keys()
    layers = tuple(_layer(draft, names, keys) for draft in drafts)
    return Structure(layers, tuple(names[draft] for draft in outputs), keys.recipes)


# ---- names -----------------------------------------------------------------------------------------------------------


def _names(drafts: list[Draft]) -> dict[Draft, str]:
    made = [draft for draft in drafts if draft.op not in _UNNAMED]
    of_call = Counter(draft.scope.call for draft in made)
    inner = {draft.scope.path for draft in made}
    parents = {path[:i] for path in inner for i, letter in enumerate(path) if letter == "."}
    names: dict[Draft, str] = {}
    used: set[str] = set()
    for draft in drafts:
        alone = draft.op not in _UNNAMED and of_call[draft.scope.call] == 1 and draft.scope.path not in parents
        names[draft] = _unique(_base_name(draft, alone), used)
    return names


def _base_name(draft: Draft, alone: bool) -> str:
    """`alone`: the only layer of its module, which has none inside."""
    path = draft.scope.path
    if draft.name:
        return draft.name
    if alone and path:
        return path
    owner = _owner(draft)
    if owner and owner.startswith(f"{path}." if path else ""):
        return owner  # a functional call with the weight of a module inside, as in torch's attention
    return f"{path}.{draft.label}" if path else draft.label


def _owner(draft: Draft) -> str:
    """The module whose `weight` the layer has, "" where there is none."""
    if draft.op is Op.CONSTANT or not isinstance(draft.weight, Stored) or not draft.weight.name.endswith(".weight"):
        return ""
    return draft.weight.name.removesuffix(".weight")


def _unique(base: str, used: set[str]) -> str:
    name, count = base, 1
    while name in used:
        count += 1
        name = f"{base}#{count}"
    used.add(name)
    return name


# ---- keys of arrays --------------------------------------------------------------------------------------------------


class _Keys:
    """Gives equal arrays one key: the parameter's name where it is free, else one made from the layer's name."""

    def __init__(self) -> None:
        self.recipes: dict[str, Recipe] = {}
        self._keys: dict[object, str] = {}

    def key(self, identity: object, preferred: Constant | None, fallback: str, recipe: Recipe) -> str:
        if identity not in self._keys:
            key = preferred.name if isinstance(preferred, Stored) else fallback
            key = fallback if key in self.recipes else key
            assert key not in self.recipes, "layer names are unique"
            self._keys[identity] = key
            self.recipes[key] = dataclasses.replace(recipe, key=key)
        return self._keys[identity]


def _identity(norms: list[Norm]) -> tuple[object, ...]:
    return tuple(norm.identity for norm in norms)


def _weight_key(draft: Draft, layer: Layer, keys: _Keys) -> str:
    shape = layer.weight_shape
    recipe = Recipe("", draft.op, False, draft.weight, tuple(draft.norms), shape, layer.groups)
    if draft.op is Op.NORM and draft.norms:
        identity: tuple[object, ...] = ("scale", _identity(draft.norms))
        return keys.key(identity, draft.norms[0].weight, f"{layer.name}.weight", recipe)
    if draft.weight is None:
        return ""
    is_turned = draft.op is Op.CONV_TRANSPOSE
    return keys.key(
        (draft.weight, is_turned, shape, _identity(draft.norms)), draft.weight, f"{layer.name}.weight", recipe
    )


def _bias_key(draft: Draft, layer: Layer, keys: _Keys) -> str:
    recipe = Recipe("", draft.op, True, draft.bias, tuple(draft.norms), layer.weight_shape, layer.groups)
    if draft.op is Op.NORM and draft.norms:
        identity: tuple[object, ...] = ("shift", _identity(draft.norms))
        return keys.key(identity, draft.norms[0].bias, f"{layer.name}.bias", recipe)
    if draft.bias is None and not draft.norms:
        return ""
    return keys.key((draft.bias, "bias", _identity(draft.norms)), draft.bias, f"{layer.name}.bias", recipe)


# ---- layers ----------------------------------------------------------------------------------------------------------


def _layer(draft: Draft, names: Mapping[Draft, str], keys: _Keys) -> Layer:
    source = next((item for item in draft.inputs if item.op is not Op.CONSTANT), None)
    size = source.nest if source else {"p": 1, "q": 1}
    dims = draft.nest | {"in_h": size["p"], "in_w": size["q"]} | dict(draft.dims)
    layer = Layer(
        name=names[draft],
        op=draft.op,
        shape=draft.shape,
        inputs=tuple(names[item] for item in draft.inputs),
        **dims,
        channel_axis=draft.channel_axis,
        attributes=dict(draft.attributes),
        activation=draft.activation,
        fused_into=names[draft.fused_into] if draft.fused_into else "",
        source_bias=draft.bias is not None,
        folded_norms=sum(norm.weight is not None for norm in draft.norms) if draft.op is not Op.NORM else 0,
        activation_bits=draft.bits,
    )
    weight, bias = _weight_key(draft, layer, keys), _bias_key(draft, layer, keys)
    return dataclasses.replace(layer, weight=weight, bias=bias, weight_bits=draft.bits if weight else 32)
