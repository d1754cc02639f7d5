"""A pruning plan: which channels stay and which weights of what stays are zero.

A plan is data. It names a model, the kept units of channel groups (`workloads.channels`) and masks of layers, prints
as a table and survives JSON exactly. `plan.apply(model, example_inputs)` is the only call of the toolkit that builds a
smaller module: a copy whose parameters, buffers and attributes are cut, then baked with the masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workloads.errors import CodesignError, ConfigError, PlanError, ShapeError
from workloads.sparsity import WeightSparsity
from workloads.store import read_json, write_json

if TYPE_CHECKING:
    from torch import Tensor, nn

    from workloads.channel_groups import ChannelGroup
    from workloads.channels import ChannelAnalysis
    from workloads.graph import LayerGraph

FORMAT = "codesign.pruning_plan"
VERSION = 1


@dataclass(frozen=True)
class PruningPlan:
    """What to remove from one model.

    Attributes:
        model: its name, for people; `apply` checks sizes, not names.
        channels: channel group -> units that stay, ascending, at least one.
        units: how many units each of these groups has in the dense model.
        masks: layer -> zeros of its weight (K, C / groups, R, S), in the shape of the dense model; where channels go
            too, what counts is the part that stays.
        notes: lines for people, such as how the plan came about.

    >>> plan = PruningPlan("tiny", {"conv1": (0, 2)}, {"conv1": 3})
    >>> print(plan)
    plan for tiny: 1 of 3 units removed in 1 group, no weights masked
      channels  conv1  2 of 3
    """

    model: str
    channels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    units: Mapping[str, int] = field(default_factory=dict)
    masks: Mapping[str, WeightSparsity] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if set(self.channels) != set(self.units):
            raise PlanError(f"plan: groups {sorted(self.channels)} and sizes of {sorted(self.units)} must be the same")
        for group, kept in self.channels.items():
            size = self.units[group]
            if not kept or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= size:
                raise PlanError(
                    f"plan: group {group!r} keeps {kept}, needs ascending units in 0..{size - 1}, one or more"
                )

    @property
    def removed(self) -> dict[str, int]:
        """Units that go, by group; groups that lose none are left out."""
        gone = {group: self.units[group] - len(kept) for group, kept in self.channels.items()}
        return {group: count for group, count in gone.items() if count}

    @property
    def is_empty(self) -> bool:
        """Whether it would change nothing."""
        return not self.removed and all(zeros.density == 1 for zeros in self.masks.values())

    def apply(self, model: nn.Module, example_inputs: tuple[Tensor, ...]) -> nn.Module:
        """A smaller, baked copy of the model that computes exactly what the masked model computes.

        Args:
            model: not modified.
            example_inputs: a batch that the model takes; traced once, and used to check the result.

        Raises:
            PlanError: the plan is empty, does not fit this model, or needs channels removed that the code of the
                model fixes as a constant; names the layer.
        """
        from pruning.surgery import apply

        return apply(self, model, example_inputs)

    def __str__(self) -> str:
        gone, groups = sum(self.removed.values()), len(self.removed)
        elements = sum(zeros.elements for zeros in self.masks.values())
        kept = sum(zeros.nonzeros for zeros in self.masks.values())
        weights = f"{1 - kept / elements:.1%} of {elements:,} weights masked" if elements else "no weights masked"
        total = sum(self.units[group] for group in self.removed)
        plural = "" if groups == 1 else "s"
        lines = [f"plan for {self.model}: {gone} of {total} units removed in {groups} group{plural}, {weights}"]
        rows = [("channels", group, f"{len(kept)} of {self.units[group]}") for group, kept in self.channels.items()]
        shown = {name: f"density {zeros.density:.3f} of {zeros.elements:,}" for name, zeros in self.masks.items()}
        rows += [("weights", name, text) for name, text in shown.items()]
        width = max((len(name) for _, name, _ in rows), default=0)
        lines += [f"  {kind:8}  {name:{width}}  {text}" for kind, name, text in rows]
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])

    # ---- JSON -------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """A JSON value, exact."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": self.model,
            "channels": {group: list(kept) for group, kept in self.channels.items()},
            "units": dict(self.units),
            "masks": {layer: zeros.to_dict() for layer, zeros in self.masks.items()},
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, data: Any) -> PruningPlan:
        """The inverse of `to_dict`.

        Raises:
            ConfigError: not a plan, another version, or a bad field.
            PlanError: units that do not fit their group.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ConfigError(f"not a pruning plan: field 'format' must be {FORMAT!r}")
        if data.get("version") != VERSION:
            raise ConfigError(f"pruning plan version {data.get('version')!r}; this release reads {VERSION}")
        fields = set(data) - {"format", "version"}
        wanted = {"model", "channels", "units", "masks", "notes"}
        if fields != wanted:
            raise ConfigError(f"pruning plan: fields {sorted(fields ^ wanted)} are unknown or missing")
        for name, is_right, form in _FORMS:
            if not is_right(data[name]):
                raise ConfigError(f"pruning plan: field {name!r} must be {form}")
        masks = {}
        for layer, zeros in data["masks"].items():
            try:
                masks[layer] = WeightSparsity.from_dict(zeros)
            except (CodesignError, AttributeError, TypeError, OverflowError) as error:
                raise ConfigError(f"pruning plan: mask of {layer!r}: {error}") from error
        channels = {group: tuple(kept) for group, kept in data["channels"].items()}
        return cls(data["model"], channels, dict(data["units"]), masks, tuple(data["notes"]))

    def save(self, path: Path) -> None:
        """Write the plan as JSON, whole or not at all."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: Path) -> PruningPlan:
        """Read what `save` wrote; errors name the file."""
        data = read_json(path)
        try:
            return cls.from_dict(data)
        except (ConfigError, PlanError) as error:
            raise type(error)(f"{path}: {error}") from error


def _are_integers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


_FORMS = (
    ("model", lambda v: isinstance(v, str), "text"),
    ("channels", lambda v: isinstance(v, dict) and all(map(_are_integers, v.values())), "lists of integers by group"),
    ("units", lambda v: isinstance(v, dict) and _are_integers(list(v.values())), "integers by group"),
    ("masks", lambda v: isinstance(v, dict), "objects by layer"),
    ("notes", lambda v: isinstance(v, list) and all(isinstance(item, str) for item in v), "a list of texts"),
)


# ---- making plans ----------------------------------------------------------------------------------------------------


def make_plan(
    model: str,
    analysis: ChannelAnalysis,
    counts: Mapping[str, int],
    ranking: Mapping[str, Sequence[int]],
    masks: Mapping[str, WeightSparsity] | None = None,
    notes: Sequence[str] = (),
    keep: Mapping[str, Sequence[int]] | None = None,
) -> PruningPlan:
    """The plan that keeps, of each named group, the first `count` units of its ranking; nothing is removed yet.

    Printed, it shows what would go, and in its last notes which groups cannot lose anything, and why. Whole layers
    and modules are kept by `analyze(graph, keep=...)`.

    Args:
        model: its name.
        analysis: of its graph.
        counts: channel group -> how many units stay.
        ranking: channel group -> units, most important first.
        masks: layer -> zeros of its dense weight.
        keep: layer -> output channels that must stay, however they rank.

    Raises:
        PlanError: a count that is impossible, a group without ranking, or nothing to remove.
    """
    wanted = _kept_units(analysis, keep or {})
    channels = {}
    for name, count in counts.items():
        group = analysis.group(name)
        group.check(count)
        if name not in ranking:
            raise PlanError(f"no ranking of channel group {name!r}; make one with pruning.importance.rank_units")
        order = _kept_first(group, ranking[name], wanted.get(name, set()))
        channels[name] = tuple(sorted(order[:count]))
        if lost := wanted.get(name, set()) - set(channels[name]):
            raise PlanError(
                f"channel group {name!r}: {count} units do not hold all that are to be kept, {len(lost)} more"
            )
    units = {name: analysis.group(name).size for name in channels}
    plan = PruningPlan(model, channels, units, dict(masks or {}), (*notes, *_left_alone(analysis)))
    if plan.is_empty:
        raise PlanError(f"a plan for {model!r} that removes nothing: every count is that of the dense model")
    return plan


def _kept_units(analysis: ChannelAnalysis, keep: Mapping[str, Sequence[int]]) -> dict[str, set[int]]:
    """Group -> units that must stay."""
    found: dict[str, set[int]] = {}
    for layer, channels in keep.items():
        for name, units in analysis.units(layer, channels).items():
            found.setdefault(name, set()).update(units.tolist())
    return found


def _kept_first(group: ChannelGroup, ranking: Sequence[int], kept: set[int]) -> list[int]:
    """The ranking with those that must stay before others of their kind, so that a count means the same dims."""
    order = [int(unit) for unit in ranking]
    for kind in {int(group.kinds[unit]) for unit in kept}:
        places = [i for i, unit in enumerate(order) if group.kinds[unit] == kind]
        units = sorted((order[i] for i in places), key=lambda unit: unit not in kept)
        for i, unit in zip(places, units, strict=True):
            order[i] = unit
    return order


def _left_alone(analysis: ChannelAnalysis) -> list[str]:
    return [f"{x.name} keeps all {x.size} units: {x.reason}" for x in analysis.groups if not x.prunable]


def magnitude_masks(
    model: nn.Module, graph: LayerGraph, wanted: Mapping[tuple[str, int], tuple[float, str]]
) -> dict[tuple[str, int], WeightSparsity]:
    """Exact masks that keep the weights of largest magnitude.

    Args:
        model: the graph was made from it.
        wanted: (layer, any number) -> (density, granularity).

    Returns:
        For each key the zeros, (K, C / groups, R, S) of the dense weight.

    Raises:
        PlanError, ShapeError: a layer without weights, a density or granularity that does not fit.
    """
    from pruning.granularity import mask
    from pruning.surgery import by_filter
    from pruning.wiring import wire

    wiring = wire(model, graph)
    found: dict[tuple[str, int], WeightSparsity] = {}
    for (layer, number), (density, granularity) in wanted.items():
        weight = by_filter(model.get_parameter(wiring.weight_of(layer)).detach(), graph[layer])
        try:
            kept = mask(weight, density, granularity)
        except (PlanError, ShapeError) as error:
            raise type(error)(f"layer {layer!r}: {error}") from error
        found[layer, number] = WeightSparsity.from_mask(kept.cpu().numpy())
    return found
