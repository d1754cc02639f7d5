"""Which units of a channel group matter most.

Two criteria. "l2" is the norm of everything that goes with a unit: the filters that make it and the weights that read
it, batch norms folded in, so that a channel that is scaled down counts for little. "taylor" is the squared first-order
effect of scaling the unit to zero, summed over pictures: with a factor z = 1 on the channel, d loss / d z equals the
sum of weight x gradient over all weights that read the channel, whatever lies in between.

Source: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017 (norms of filters); Molchanov et al.,
"Importance Estimation for Neural Network Pruning", CVPR 2019, equation 8 (squared first-order terms). Differs: groups
of tied channels, and the weights that read a channel instead of a gate layer.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from pruning.evaluation import cross_entropy
from pruning.wiring import Wiring, wire
from workloads.channels import ChannelAnalysis, ChannelGroup
from workloads.data import ImageData
from workloads.errors import ConfigError, PlanError, unknown_name

CRITERIA = ("l2", "taylor")


@dataclass(frozen=True, eq=False)
class Gradients:
    """What one backward pass over some pictures tells.

    Attributes:
        units: channel group -> float64 (units,), 1/2 B mean over batches of (d loss / d z)^2, z a factor on the unit.
        weights: parameter -> the same for each single weight, on the CPU.
        loss, accuracy, images: of the pictures, as the network is.
    """

    units: Mapping[str, np.ndarray]
    weights: Mapping[str, torch.Tensor]
    loss: float
    accuracy: float
    images: int


def rank_units(
    model: nn.Module,
    analysis: ChannelAnalysis,
    criterion: str = "l2",
    data: ImageData | None = None,
    *,
    images: int = 512,
    groups: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """The units of every prunable group, most important first; the first `count` are those to keep.

    Where units of a group differ (some run through more layers than others), the order keeps each kind at its
    share, as `ChannelGroup.order` does, so that a count means the same dims here and in a search.

    Args:
        analysis: of the model's graph.
        criterion: "l2", or "taylor", which needs pictures.
        data: held-out training pictures; the first `images` are used.
        groups: which ones; by default all that can be pruned.

    Returns:
        Channel group -> int64 (units,), a permutation.

    Raises:
        ConfigError: unknown criterion, or "taylor" without pictures or on test pictures.
        PlanError: an unknown group.
    """
    if criterion not in CRITERIA:
        raise unknown_name("criterion", criterion, CRITERIA)
    wiring = wire(model, analysis)
    names = wiring.prunable if groups is None else tuple(analysis.group(name).name for name in groups)
    if criterion == "l2":
        scores = norms(model, wiring, names)
    elif data is None or data.split == "test":
        raise ConfigError("criterion 'taylor' needs pictures of split 'heldout' or 'train'; give data=")
    else:
        scores = dict(gradients(model, wiring, data.take(min(images, len(data))), groups=names).units)
    return {name: order_by(analysis.group(name), scores[name]) for name in names}


def order_by(group: ChannelGroup, scores: np.ndarray) -> np.ndarray:
    """Units by falling score, each kind of unit at its share; ties to the lower unit.

    Args:
        scores: float (units,).

    Returns:
        int64 (units,), a permutation in which the kinds follow each other as in `ChannelGroup.order`.
    """
    if not np.isfinite(scores).all():
        raise PlanError(f"scores of channel group {group.name!r} hold NaN or infinite numbers; check the weights")
    best = np.argsort(-scores, kind="stable")
    order = np.empty(group.size, np.int64)
    for kind in np.unique(group.kinds):
        order[group.kinds[group.order] == kind] = best[group.kinds[best] == kind]
    return order


def norms(model: nn.Module, wiring: Wiring, groups: Sequence[str]) -> dict[str, np.ndarray]:
    """L2 norm of all weights of each unit, batch norms folded in, biases left out: float64 (units,) by group."""
    arrays = wiring.arrays(model)
    found = {}
    for name in groups:
        group = wiring.analysis.group(name)
        energy = np.zeros(group.size)
        for member in group.members:
            array = np.moveaxis(arrays[member.array], member.axis, 0)
            if member.role == "bias" or len(array) <= member.index[-1]:  # a prelu may have one slope for all
                continue
            rows = np.square(array[member.index], dtype=np.float64).reshape(len(member.index), -1).sum(1)
            np.add.at(energy, member.unit, rows)
        found[name] = np.sqrt(energy)
    return found


def gradients(
    model: nn.Module,
    wiring: Wiring,
    data: ImageData,
    batch_size: int = 16,
    *,
    groups: Sequence[str] | None = None,
    weights: Sequence[str] = (),
) -> Gradients:
    """One backward pass over all pictures of `data`, in eval mode and float32; the model is not modified."""
    net = copy.deepcopy(model).eval()
    for parameter in net.parameters():
        parameter.requires_grad_(True)
    device = next(net.parameters()).device
    names = wiring.prunable if groups is None else tuple(groups)
    units = {name: np.zeros(wiring.analysis.group(name).size) for name in names}
    singles = {name: torch.zeros_like(net.get_parameter(name), device="cpu") for name in weights}
    loss = right = 0.0
    for x, y in data.batches(batch_size):
        net.zero_grad(set_to_none=True)
        logits = net(x.to(device))
        batch_loss = cross_entropy(logits, y.to(device))
        batch_loss.backward()
        products = {name: (p.detach() * p.grad).cpu() for name, p in net.named_parameters() if p.grad is not None}
        share = len(y) / len(data)  # of a mean over batches, also where the last one is smaller
        for name, total in units.items():
            total += 0.5 * len(y) * share * wiring.unit_sums(name, products) ** 2
        for name, sums in singles.items():
            sums += 0.5 * len(y) * share * products[name] ** 2
        loss += float(batch_loss.detach()) * len(y)
        right += float((logits.argmax(1).cpu() == y).sum())
    return Gradients(units, singles, loss / len(data), right / len(data), len(data))
