"""What may be chosen: channel counts per group, and kept weights per layer; and what every choice costs on a target.

A **variable** is one channel group (its options are counts) or one layer's weights (its options are densities at a
granularity). Option 0 leaves the network as it is. A candidate is one option per variable, an integer vector.

Two ways to price candidates:

* `price_table`: every layer's cost over the variables that touch it, with the real mask of each option, priced once;
  a candidate is then a gather and a sum. Placement is the dense network's, which is exact as long as the candidate's
  feature maps stay where the dense ones were.
* `Space.exact`: shape arithmetic for whole candidates, placement decided for each; masks enter by density.

`search` uses the first and prices what it shows with `Target.simulate` on the real pruned graph; the difference is
reported.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from accel_models import Target
from accel_models.placement import place
from codesign.costs import METRICS, static_costs
from codesign.solve import Factor, PriceTable
from workloads.channels import ChannelAnalysis, ChannelGroup
from workloads.columns import Columns
from workloads.errors import ConfigError
from workloads.graph import Kind, LayerGraph
from workloads.sparsity import WeightSparsity

MAX_COMBINATIONS = 20_000  # of one factor; a layer that couples more is priced by `Space.exact` only


@dataclass(frozen=True)
class Option:
    """One choice: a count for a channel group, or a density and granularity for a layer's weights."""

    count: int = 0
    density: float = 1.0
    granularity: str = ""

    def __str__(self) -> str:
        return f"{self.count}" if self.count else f"{self.density:g} {self.granularity}".strip()


@dataclass(frozen=True)
class Variable:
    """Something to choose: `of` names the channel group or the layer."""

    kind: str  # "channels" or "weights"
    of: str
    options: tuple[Option, ...]

    @property
    def name(self) -> str:
        return f"{self.kind}:{self.of}"


@dataclass(frozen=True)
class Space:
    """A graph, its channel groups and what may be chosen.

    Attributes:
        graph: in the target's precision, dense or as given.
        analysis: of its channels.
        variables: what may be chosen.
        masks: real mask of every weights option but the first, by (layer, option index).
    """

    graph: LayerGraph
    analysis: ChannelAnalysis
    variables: tuple[Variable, ...]
    masks: Mapping[tuple[str, int], WeightSparsity] = dataclasses.field(default_factory=dict)

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(len(variable.options) for variable in self.variables)

    @cached_property
    def touched(self) -> tuple[tuple[int, ...], ...]:
        """For every layer of the graph, the variables that its cost depends on."""
        found: list[set[int]] = [set() for _ in self.graph.layers]
        for v, variable in enumerate(self.variables):
            names = self.analysis.affected(variable.of) if variable.kind == "channels" else (variable.of,)
            for name in names:
                found[self.graph.index[name]].add(v)
        return tuple(tuple(sorted(touching)) for touching in found)

    def counts(self, choices: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
        """Channel counts of candidates, (candidates, channel variables), and the groups' names."""
        chosen = [(v, variable) for v, variable in enumerate(self.variables) if variable.kind == "channels"]
        columns = [np.array([option.count for option in variable.options])[choices[:, v]] for v, variable in chosen]
        names = tuple(variable.of for _, variable in chosen)
        return (np.stack(columns, axis=1) if columns else np.zeros((len(choices), 0), int)), names

    def densities(self, choices: np.ndarray) -> np.ndarray:
        """Weight density of every layer of every candidate, (candidates, layers)."""
        base = np.array([layer.sparsity.density if layer.sparsity else 1.0 for layer in self.graph.layers])
        found = np.tile(base, (len(choices), 1))
        for v, variable in enumerate(self.variables):
            if variable.kind == "weights":
                layer = self.graph.index[variable.of]
                options = [base[layer], *(self._density(variable, i) for i in range(1, len(variable.options)))]
                found[:, layer] = np.array(options)[choices[:, v]]
        return found

    def _density(self, variable: Variable, option: int) -> float:
        """Of the option's real mask, which may keep a weight more or less than was asked for."""
        mask = self.masks.get((variable.of, option))
        return variable.options[option].density if mask is None else mask.density

    def columns(self, choices: np.ndarray) -> Columns:
        """Rows of all candidates, candidate after candidate; masks enter by density only."""
        counts, names = self.counts(choices)
        return self.analysis.columns(counts, names, weight_density=self.densities(choices))

    def exact(self, target: Target, choices: np.ndarray) -> dict[str, np.ndarray]:
        """Costs of whole candidates, each with its own placement; by metric, (candidates,)."""
        columns = self.columns(choices)
        totals = target.price(columns, self.graph.topology).totals(len(choices))
        costs = {"latency": totals["latency_s"], "energy": totals["energy_j"]}
        return costs | {
            name: rows.reshape(len(choices), -1).sum(axis=1) for name, rows in static_costs(columns).items()
        }

    def describe(self, choice: Sequence[int]) -> dict[str, str]:
        """What a candidate changes: variable name to chosen option."""
        return {
            variable.name: str(variable.options[i]) for variable, i in zip(self.variables, choice, strict=True) if i
        }


def channel_variables(
    analysis: ChannelAnalysis, multiple: int, keep: Sequence[str] = (), most: int = 8
) -> tuple[Variable, ...]:
    """One variable a prunable channel group, with the counts that the target likes.

    Args:
        multiple: channels that the target computes together.
        keep: group names to leave alone.
        most: options a group at the most, the full count included.

    Raises:
        ConfigError: `keep` names no channel group.
    """
    known = {group.name for group in analysis.groups}
    for name in keep:
        if name not in known:
            raise ConfigError(f"keep {name!r}: no such channel group; known: {', '.join(sorted(known))}")
    chosen = [group for group in analysis.groups if group.prunable and group.name not in keep]
    return tuple(
        Variable("channels", group.name, tuple(Option(count=n) for n in offered_counts(group, multiple, most)))
        for group in chosen
        if len(offered_counts(group, multiple, most)) > 1
    )


def offered_counts(group: ChannelGroup, multiple: int, most: int = 8) -> tuple[int, ...]:
    """Counts to offer for a group, from all of it downwards: multiples of `multiple`, thinned to `most` of them.

    A group that is no larger than the multiple is offered multiples of half of it, of a quarter ..., the first that
    is smaller than the group. Units that are several channels wide (heads, shuffled groups) are counted in units.
    """
    step = multiple
    while step > 1 and step >= group.size:
        step //= 2
    below = list(range((group.size - 1) // step * step, group.minimum - 1, -step))
    if len(below) > most - 1:
        picked = np.unique(np.linspace(0, len(below) - 1, most - 1).round().astype(int))
        below = [below[i] for i in picked]
    return (group.size, *below)


def weight_variables(
    graph: LayerGraph, densities: Sequence[float], granularity: str, skip: Sequence[str] = ()
) -> tuple[Variable, ...]:
    """One variable a layer with weights, offering the given densities at one granularity.

    The first layer is left dense: it has few weights and every later feature depends on it. The pattern
    granularity is offered to 3x3 layers only.
    """
    layers = [layer for layer in graph.layers if layer.weight_elements and layer.kind is Kind.MAC]
    eligible = [layer for layer in layers[1:] if layer.name not in skip and not layer.is_depthwise]
    if granularity.startswith("pattern"):
        eligible = [layer for layer in eligible if (layer.r, layer.s) == (3, 3)]
    options = tuple(Option(density=d, granularity=granularity) for d in sorted(set(densities) - {1.0}, reverse=True))
    return tuple(Variable("weights", layer.name, (Option(), *options)) for layer in eligible)


def price_table(space: Space, target: Target, loss: Mapping[str, np.ndarray]) -> PriceTable:
    """Price every layer over the variables that touch it.

    Args:
        loss: expected loss of every option, by variable name.

    Raises:
        ConfigError: a layer couples so many options that its table would not fit.
    """
    dense = np.zeros((1, len(space.variables)), int)
    placement = place(space.columns(dense), space.graph.topology, target.spec)
    constant: dict[str, float] = {}
    factors = []
    by_variables: dict[tuple[int, ...], list[int]] = {}
    for i, touching in enumerate(space.touched):
        by_variables.setdefault(touching, []).append(i)
    for touching, layers in by_variables.items():
        shape = tuple(space.sizes[v] for v in touching)
        if math.prod(shape) > MAX_COMBINATIONS:
            names = ", ".join(space.variables[v].of for v in touching)
            raise ConfigError(
                f"layer {space.graph.layers[layers[0]].name!r} couples {math.prod(shape):,} combinations of {names}; "
                f"at most {MAX_COMBINATIONS:,} fit a table. Offer fewer counts (--options) or keep some groups (--keep)"
            )
        choices = np.zeros((math.prod(shape), len(space.variables)), int)
        choices[:, list(touching)] = np.indices(shape).reshape(len(shape), len(choices)).T
        rows = _rows(space, choices, layers)
        prices = target.price(rows, placement=placement.take(np.tile(layers, len(choices))))
        values = {"latency": prices.latency_s, "energy": prices.energy_j.sum(axis=1), **static_costs(rows)}
        sums = {name: part.reshape(len(choices), -1).sum(axis=1) for name, part in values.items()}
        if touching:
            factors.append(Factor(touching, {name: part.reshape(shape) for name, part in sums.items()}))
        else:
            constant = {name: float(part[0]) for name, part in sums.items()}
    return PriceTable(
        names=tuple(variable.name for variable in space.variables),
        options=space.sizes,
        loss=tuple(np.asarray(loss[variable.name], float) for variable in space.variables),
        constant={name: constant.get(name, 0.0) for name in METRICS},
        factors=tuple(factors),
    )


def _rows(space: Space, choices: np.ndarray, layers: Sequence[int]) -> Columns:
    """The chosen layers of every candidate; where no channel is cut, with real masks and the zeros of each channel."""
    width = len(space.graph.layers)
    picked = (np.arange(len(choices))[:, None] * width + np.asarray(layers)).ravel()
    rows = space.columns(choices).take(picked)
    chosen = {variable.of for variable in space.variables if variable.kind == "weights"}
    if not any(space.graph.layers[i].sparsity or space.graph.layers[i].name in chosen for i in layers):
        return rows
    base = space.graph.columns.take(np.tile(layers, len(choices)))
    whole = (rows.k == base.k) & (rows.c == base.c)
    masks = [mask if fits else None for mask, fits in zip(_masks(space, choices, layers), whole, strict=True)]
    if not any(masks):
        return rows
    zeros = base.channel_density or (None,) * len(rows)
    known = tuple(each if mask is not None else None for each, mask in zip(zeros, masks, strict=True))
    return rows.replace(sparsity=tuple(masks), channel_density=known if any(each is not None for each in known) else ())


def _masks(space: Space, choices: np.ndarray, layers: Sequence[int]) -> Iterator[WeightSparsity | None]:
    """The chosen mask of every row, the layer's own where none is chosen; candidate after candidate."""
    weights = {variable.of: v for v, variable in enumerate(space.variables) if variable.kind == "weights"}
    for choice in choices:
        for layer in (space.graph.layers[i] for i in layers):
            option = int(choice[weights[layer.name]]) if layer.name in weights else 0
            yield space.masks.get((layer.name, option)) if option else layer.sparsity
