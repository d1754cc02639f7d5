"""Which units of a channel group matter most.

| criterion | importance of a unit | source |
|---|---|---|
| l2 | norm of all that goes with it: filters that make it, weights that read it, batch norms folded in | ours |
| l1 | sum of magnitudes of the filters that make it | Li et al. 2017 |
| fpgm | sum of distances of these filters to all others of their layer | He et al. 2019 |
| bn_gamma | mean magnitude of its batch-norm scales | Liu et al. 2017 |
| taylor | squared first-order effect of scaling it to zero, summed over pictures | Molchanov et al. 2019 |

With a factor z = 1 on a channel, d loss / d z equals the sum of weight x gradient over all weights that read the
channel, whatever lies in between. Where channels are tied (a residual stream) a unit is made by filters of several
layers: their l1 and fpgm terms add up, scales are averaged.

Source: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017; He et al., "Filter Pruning via Geometric
Median", CVPR 2019; Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017;
Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, equation 8. Differs: groups of tied
channels, and for taylor the weights that read a channel instead of a gate layer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pruning.evaluation import Labelled, cross_entropy, labelled_batches
from pruning.wiring import PRODUCED, Wiring, wire
from workloads.channels import ChannelAnalysis, ChannelGroup
from workloads.constants import tensors_of
from workloads.errors import ConfigError, PlanError, unknown_name
from workloads.graph import KIND, Kind


@dataclass(frozen=True, eq=False)
class Gradients:
    """What one backward pass over some pictures tells.

    Attributes:
        units: channel group -> float64 (units,), 1/2 B mean over batches of (d loss / d z)^2, z a factor on the unit.
        weights: parameter -> the same for each single weight, on the CPU.
        loss, accuracy, images: of the pictures, as the network is.
    """

    units: Mapping[str, np.ndarray]
    weights: Mapping[str, Tensor]
    loss: float
    accuracy: float
    images: int


def rank_units(
    model: nn.Module,
    analysis: ChannelAnalysis,
    criterion: str = "l2",
    data: Labelled | None = None,
    *,
    images: int = 512,
    groups: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """The units of every prunable group, most important first; the first `count` are those to keep.

    Where units of a group differ (some run through more layers than others), the order keeps each kind at its
    share, as `ChannelGroup.order` does, so that a count means the same dims here and in a search.

    Args:
        analysis: of the model's graph.
        criterion: a name of the module's table; "taylor" needs pictures.
        data: held-out training pictures; the first `images` are used.
        groups: which ones; by default all that can be pruned.

    Returns:
        Channel group -> int64 (units,), a permutation.

    Raises:
        ConfigError: unknown criterion, or "taylor" without pictures or on test pictures.
        PlanError: an unknown group, or "bn_gamma" for one without batch norms.
    """
    wiring = wire(model, analysis)
    names = wiring.prunable if groups is None else tuple(analysis.group(name).name for name in groups)
    scores = unit_scores(model, wiring, names, criterion, data, images=images)
    return {name: order_by(analysis.group(name), scores[name]) for name in names}


def unit_scores(
    model: nn.Module,
    wiring: Wiring,
    groups: Sequence[str],
    criterion: str,
    data: Labelled | None = None,
    *,
    images: int = 512,
) -> dict[str, np.ndarray]:
    """Importance of every unit: float64 (units,) by group. Arguments and errors as for `rank_units`."""
    if criterion not in CRITERIA:
        raise unknown_name("criterion", criterion, CRITERIA)
    if criterion in BY_WEIGHTS:
        return BY_WEIGHTS[criterion](model, wiring, groups)
    if data is None:
        raise ConfigError(f"criterion {criterion!r} needs pictures of split 'heldout' or 'train'; give data=")
    return dict(gradients(model, wiring, data, groups=groups, images=images).units)


def order_by(group: ChannelGroup, scores: np.ndarray) -> np.ndarray:
    """Units by falling score, each kind of unit at its share; ties to the lower unit.

    Args:
        scores: float (units,).

    Returns:
        int64 (units,), a permutation in which the kinds follow each other as in `ChannelGroup.order`.

    Raises:
        PlanError: a score is not finite.
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


def filter_norms(model: nn.Module, wiring: Wiring, groups: Sequence[str]) -> dict[str, np.ndarray]:
    """Sum of magnitudes of the filters that make each unit: float64 (units,) by group."""
    return _summed(model, wiring, groups, lambda filters: filters.abs().sum(1))


def distances(model: nn.Module, wiring: Wiring, groups: Sequence[str]) -> dict[str, np.ndarray]:
    """Sum of Euclidean distances of the filters that make each unit to all of their layer: float64 (units,) by group.

    The geometric median of a layer's filters has the smallest such sum; what lies near it the others can replace.
    """
    return _summed(model, wiring, groups, lambda filters: torch.cdist(filters, filters).sum(1))


def _summed(
    model: nn.Module, wiring: Wiring, groups: Sequence[str], rate: Callable[[Tensor], Tensor]
) -> dict[str, np.ndarray]:
    """Rates of filters (m, weights) -> (m,), added up over the filters that make a unit."""
    tensors = tensors_of(model)
    found = {name: np.zeros(wiring.analysis.group(name).size) for name in groups}
    for name, total in found.items():
        for cut in wiring.cuts(name):
            tensor, is_filter = tensors[cut.tensor], bool(cut.layer) and cut.role == PRODUCED
            if is_filter and tensor.dim() > 1 and KIND[wiring.graph[cut.layer].op] is Kind.MAC:
                filters = tensor.movedim(cut.axis, 0)[torch.from_numpy(cut.index).to(tensor.device)]
                np.add.at(total, cut.unit, rate(filters.flatten(1).double()).cpu().numpy())
    return found


def batch_norm_scales(model: nn.Module, wiring: Wiring, groups: Sequence[str]) -> dict[str, np.ndarray]:
    """Mean magnitude of the batch-norm scales of each unit: float64 (units,) by group.

    Raises:
        PlanError: a group has units without batch norm.
    """
    tensors = tensors_of(model)
    found = {}
    for name in groups:
        total, count = np.zeros((2, wiring.analysis.group(name).size))
        for tensor, index, unit in batch_norms(model, wiring, name):
            np.add.at(total, unit, tensors[tensor].double().abs().cpu().numpy()[index])
            np.add.at(count, unit, 1)
        if not count.all():
            raise PlanError(f"channel group {name!r} has units without batch norm; rank it by another criterion")
        found[name] = total / count
    return found


def batch_norms(model: nn.Module, wiring: Wiring, group: str) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Names of the scales of all batch norms of a group, positions in them and the unit of each position."""
    for cut in filter(lambda cut: cut.layer, wiring.cuts(group)):
        path, _, leaf = cut.tensor.rpartition(".")
        if leaf == "weight" and isinstance(model.get_submodule(path), nn.modules.batchnorm._BatchNorm):
            yield cut.tensor, cut.index, cut.unit


BY_WEIGHTS: Mapping[str, Callable[[nn.Module, Wiring, Sequence[str]], dict[str, np.ndarray]]] = {
    "l2": norms,
    "l1": filter_norms,
    "fpgm": distances,
    "bn_gamma": batch_norm_scales,
}
CRITERIA = (*BY_WEIGHTS, "taylor")


def gradients(
    model: nn.Module,
    wiring: Wiring,
    data: Labelled,
    batch_size: int = 16,
    *,
    groups: Sequence[str] | None = None,
    weights: Sequence[str] = (),
    images: int | None = None,
) -> Gradients:
    """One backward pass over `data`, or its first `images`, in eval mode and float32; the model is not modified."""
    net = copy.deepcopy(model).eval()
    for parameter in net.parameters():
        parameter.requires_grad_(True)
    device = next(net.parameters()).device
    names = wiring.prunable if groups is None else tuple(groups)
    units = {name: np.zeros(wiring.analysis.group(name).size) for name in names}
    singles = {name: torch.zeros_like(net.get_parameter(name), device="cpu") for name in weights}
    loss = right = 0.0
    seen = 0
    for x, y in labelled_batches(data, batch_size, images):
        net.zero_grad(set_to_none=True)
        logits = net(x.to(device))
        batch_loss = cross_entropy(logits, y.to(device))
        batch_loss.backward()
        products = {name: (p.detach() * p.grad).cpu() for name, p in net.named_parameters() if p.grad is not None}
        for name, total in units.items():
            total += 0.5 * len(y) ** 2 * wiring.unit_sums(name, products) ** 2
        for name, sums in singles.items():
            sums += 0.5 * len(y) ** 2 * products[name] ** 2
        seen += len(y)
        loss += float(batch_loss.detach()) * len(y)
        right += float((logits.argmax(1).cpu() == y).sum())
    # one len(y) of each square is the batch's share of the mean, also where the last one is smaller
    units = {name: total / seen for name, total in units.items()}
    singles = {name: total / seen for name, total in singles.items()}
    return Gradients(units, singles, loss / seen, right / seen, seen)
