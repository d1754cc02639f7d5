"""A pruner network: a copy of a model whose last layers gave way to heads, one logit for every unit that may go.

`Learner` is what trains it beside the model, for `pruning.methods.network_pruning_network`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning.evaluation import evaluating
from pruning.layers import WEIGHTED
from pruning.methods.base import Inputs
from pruning.wiring import Wiring
from workloads.errors import PlanError
from workloads.graph import KIND, Kind, LayerGraph

BACKBONE_RATE = 0.1  # of the heads' learning rate: a trained backbone that moves as fast moves all logits at once


class Learner:
    """The pruner network, its optimizer, and what it said of the batches of a step: several where gradients add up."""

    def __init__(
        self, model: nn.Module, inputs: Inputs, wiring: Wiring, units: int, bias: float, lr: float, seed: int
    ) -> None:
        self.network = PrunerNetwork(model, inputs, last_modules(model, wiring), units, bias, seed)
        heads, backbone = self.network.heads, self.network.backbone
        rest = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
        groups = [([*heads.parameters()], lr), (rest, lr * BACKBONE_RATE)]
        self.optimizer = torch.optim.Adam({"params": mine, "initial_lr": rate} for mine, rate in groups if mine)
        self.seen: list[Tensor] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Logits, float32 (n, units), where the inputs are."""
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        self._move(tensors[0].device)
        return self.network.train()(*args, **kwargs)

    def step(self, rate: float) -> Tensor | None:
        """One step of the optimizer, and the logits that it learnt from, (n, units); None if there was no batch.

        Args:
            rate: the share of the learning rates to take it at.
        """
        seen, self.seen = self.seen, []
        if not seen:
            return None
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["initial_lr"]
        self.optimizer.step()
        self.optimizer.zero_grad()
        return torch.cat(seen)

    def _move(self, device: torch.device) -> None:
        if next(self.network.parameters()).device != device:
            self.network.to(device)
            self.optimizer.load_state_dict(self.optimizer.state_dict())  # moves its moments along

    def state(self) -> dict[str, Any]:
        return copy.deepcopy({"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()})

    def load(self, state: Mapping[str, Any], device: torch.device) -> None:
        self.network.to(device).load_state_dict(state["network"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))  # torch keeps the tensors that it is given


class PrunerNetwork(nn.Module):
    """A copy of a model that answers with logits: float32, (n, units).

    Args:
        last: paths of its last layers, which taps replace; what they read, averaged over positions, feeds the heads.
        units: of all groups together, one output each.
    """

    def __init__(
        self, model: nn.Module, inputs: Inputs, last: Sequence[str], units: int, bias: float, seed: int
    ) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(model)
        for module in self.backbone.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = 0.0
        self.taps = []
        for path in last:
            tap = Tap(self.backbone.get_submodule(path))
            self.backbone.set_submodule(path, tap)
            self.taps.append(tap)
        with torch.no_grad(), evaluating(self.backbone):
            width = self.features(*inputs).shape[1]
        generator = torch.Generator().manual_seed(seed)
        self.heads = nn.utils.skip_init(nn.Linear, width, units)
        with torch.no_grad():
            self.heads.weight.normal_(std=0.01, generator=generator)
            self.heads.bias.fill_(bias)
        self.heads.to(next(model.parameters()).device)

    def features(self, *args: Any, **kwargs: Any) -> Tensor:
        """What the last layers would have read, averaged over positions: float32, (n, width)."""
        for tap in self.taps:
            tap.read = []
        self.backbone(*args, **kwargs)
        return torch.cat([torch.stack(tap.read).mean(0) for tap in self.taps], 1)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        features = self.features(*args, **kwargs)
        width = features.shape[1]
        for tap in self.taps:
            tap.read = []
        with torch.autocast(features.device.type, enabled=False):
            return self.heads(F.layer_norm(features, (width,)) / math.sqrt(width))


class Tap(nn.Module):
    """In place of a last layer: remembers what it reads, one float32 a channel, and answers for its shape only."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.is_channel_first = not isinstance(layer, nn.Linear | nn.LSTM)
        self.read: list[Tensor] = []

    def forward(self, x: Tensor) -> Any:
        first = x if self.is_channel_first else x.movedim(-1, 1)
        self.read.append(first.float().flatten(2).mean(2) if first.dim() > 2 else first.float())
        with torch.no_grad():
            return self.layer(x)


def last_modules(model: nn.Module, wiring: Wiring) -> list[str]:
    """Paths of the layers with weights from which the network's answers come without another one between.

    Raises:
        PlanError: there is none, or one is no module of its own.
    """
    graph, paths = wiring.graph, {id(module): path for path, module in model.named_modules()}
    modules = wiring.modules(model)
    found = []
    for name in _last_layers(graph):
        module = modules.get(name)
        if not isinstance(module, (*WEIGHTED, nn.LSTM)):
            raise PlanError(f"last layer {name!r} is no module with weights, so heads cannot take its place; wrap it")
        found.append(paths[id(module)])
    if not found:
        raise PlanError("the network's answers come from no layer with weights, so heads cannot take its place")
    return list(dict.fromkeys(found))


def _last_layers(graph: LayerGraph) -> list[str]:
    found, waiting, seen = [], list(graph.outputs), set(graph.outputs)
    while waiting:
        layer = graph[waiting.pop(0)]
        if layer.weight and KIND[layer.op] is Kind.MAC:
            found.append(layer.name)
            continue
        waiting += [name for name in layer.inputs if name not in seen]
        seen |= set(layer.inputs)
    return found
