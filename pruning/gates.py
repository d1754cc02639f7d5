"""Gates on channels: which groups can have them, where they act, and what they leave of a network.

All gates of a network are one vector b, a number for each unit of each gated channel group; [1, b] has a one in front
for positions that belong to no unit. A gate acts on the weights that read its channel, which is the same as a factor on
the channel itself, after batch norm and activation: conv(b F; W) = conv(F; b W). A closed gate is a channel that
nothing reads, so that taking it away changes no answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pruning.wiring import READ, STATISTIC, Wiring
from workloads.errors import PlanError
from workloads.graph import KIND, Kind, Op

Groups = Mapping[str, tuple[int, int]]
"""Channel group -> (first unit, units) in the vector of all gates."""


class Gates:
    """The gates of the present forward pass, shared by all weights: [1, b] or None where they are fixed as masks.

    A copy has the values without their history, which torch cannot copy.
    """

    def __init__(self, values: Tensor | None = None) -> None:
        self.values = values

    def __deepcopy__(self, memo: dict[int, Any]) -> Gates:
        return Gates(None if self.values is None else self.values.detach().clone())


class Gate(nn.Module):
    """The parametrization that closes what a weight reads: weight x gate of the channel."""

    def __init__(self, gates: Gates, axes: Mapping[int, Tensor]) -> None:
        super().__init__()
        self.gates, self.names = gates, {axis: f"axis{axis}" for axis in axes}
        for axis, index in axes.items():
            self.register_buffer(self.names[axis], index, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        if self.gates.values is None:
            return weight
        axes = {axis: self.get_buffer(name) for axis, name in self.names.items()}
        return weight * spread(self.gates.values.to(weight), axes, weight.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


def spread(values: Tensor, axes: Mapping[int, Tensor], shape: Sequence[int]) -> Tensor:
    """Values of positions on some axes of a tensor, multiplied where axes meet: of `shape`.

    Args:
        values: (1 + units,), first the 1 of positions that belong to no unit.
        axes: axis -> int64 (size of the axis,), index into values.
    """
    whole = torch.ones((), device=values.device)
    for axis, index in axes.items():
        along = [size if i == axis else 1 for i, size in enumerate(shape)]
        whole = whole * values[index].view(along)
    return whole.expand(*shape)


def with_one(gates: Tensor) -> Tensor:
    """[1, b]: before the gates what positions without a unit are multiplied by."""
    return torch.cat([gates.new_ones(1), gates])


def gated_groups(wiring: Wiring, model: nn.Module) -> Groups:
    """Channel groups that can be gated: name -> (first unit, units) in the vector of all gates.

    Raises:
        PlanError: there is none.
    """
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    found: dict[str, tuple[int, int]] = {}
    first = 0
    for name in wiring.prunable:
        readers = [cut for cut in wiring.cuts(name) if cut.role == READ]
        size = wiring.analysis.group(name).size
        if readers and size > 1 and all(cut.tensor in parameters for cut in readers):
            found[name] = (first, size)
            first += size
    if not found:
        raise PlanError(f"no channel group of {wiring.graph.name!r} can be gated; see print(analyze(graph)) for why")
    return found


def unit_axes(
    wiring: Wiring, groups: Groups, shapes: Mapping[str, torch.Size], role: str = ""
) -> dict[str, dict[int, Tensor]]:
    """Where the units of all groups lie in parameters: name -> axis -> index into [1, gates]; of one role if given."""
    found: dict[str, dict[int, Tensor]] = {}
    for group, (first, _) in groups.items():
        for cut in wiring.cuts(group):
            if cut.tensor in shapes and cut.role != STATISTIC and role in ("", cut.role):
                length = shapes[cut.tensor][cut.axis]
                index = found.setdefault(cut.tensor, {}).setdefault(cut.axis, torch.zeros(length, dtype=torch.int64))
                index[torch.from_numpy(cut.index)] = torch.from_numpy(cut.unit) + first + 1
    return found


def floors(wiring: Wiring, groups: Groups, floor: float) -> list[tuple[Tensor, int]]:
    """For every kind of unit, which have equally many channels in every layer: positions, and how many stay."""
    found = []
    for name, (first, _) in groups.items():
        kinds = wiring.analysis.group(name).kinds
        for kind in np.unique(kinds):
            units = torch.from_numpy(np.flatnonzero(kinds == kind)) + first
            found.append((units, max(1, math.ceil(floor * len(units)))))
    return found


class Cost:
    """What share of filters or of MACs is left, as a function of gates.

    Of layer l the gates leave out_l of its filters and in_l of what each reads, both linear in b:
    filters = sum K_l out_l / sum K_l over layers that can lose filters, MACs = sum M_l out_l in_l / sum M_l over all.
    Products of two activations (attention scores) count as they were.
    """

    def __init__(self, wiring: Wiring, groups: Groups) -> None:
        layers = {layer.name: row for row, layer in enumerate(wiring.graph.layers)}
        units = 1 + sum(size for _, size in groups.values())
        shares = torch.zeros(2, len(layers), units, dtype=torch.float64)
        shares[:, :, 0] = 1
        for name, (first, _) in groups.items():
            for member in wiring.analysis.group(name).members:
                layer = wiring.graph[member.layer]
                if member.role in ("output", "depthwise", "input") and KIND[layer.op] is Kind.MAC:
                    is_swapped = layer.op is Op.CONV_TRANSPOSE
                    size = (layer.c, layer.k // layer.groups) if is_swapped else (layer.k, layer.c // layer.groups)
                    row = shares[int(member.role == "input"), layers[member.layer]]
                    part = torch.full((len(member.unit),), 1 / size[member.axis], dtype=torch.float64)
                    row.index_add_(0, torch.from_numpy(member.unit) + first + 1, part)
                    row[0] -= part.sum()
        self.shares = shares.float()
        gated = shares[0, :, 0] < 1
        self.filters = torch.tensor([float(layer.k) for layer in wiring.graph.layers]) * gated
        self.macs = torch.tensor([float(layer.macs) for layer in wiring.graph.layers])

    def share(self, gates: Tensor, weighting: str) -> Tensor:
        """A scalar in 0 .. 1 that gradients flow through.

        Args:
            gates: [1, b], (1 + units,).
        """
        if self.shares.device != gates.device:
            self.shares, self.filters, self.macs = (x.to(gates.device) for x in (self.shares, self.filters, self.macs))
        made, read = self.shares @ gates
        kept, whole = (made, self.filters) if weighting == "filters" else (made * read, self.macs)
        return (kept * whole).sum() / whole.sum()
