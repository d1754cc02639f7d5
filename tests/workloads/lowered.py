"""What the tests of lowering share: modules from functions, and the comparison of a graph with its module."""

import threading

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from workloads.graph import LayerGraph, Op
from workloads.lowering import TRACING, lower_with_weights
from workloads.reference import run

X = torch.randn(2, 6, 8, 8, generator=torch.Generator().manual_seed(1))
SEQUENCE = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(2))


class Call(nn.Module):
    """A module from a function; submodules and tensors by keyword."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *inputs):
        return self.function(self, *inputs)


class Watched(nn.Conv2d):
    """Notes at each call whether another thread could trace or call modules meanwhile."""

    open: list[bool]

    def forward(self, x):
        def is_open():
            if taken := TRACING.acquire(blocking=False):
                TRACING.release()
            Watched.open.append(taken)

        other = threading.Thread(target=is_open)
        other.start()
        other.join()
        return super().forward(x)


def randomised(model):
    """Norms with statistics, weights and shifts that are not the neutral ones."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_var is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
        for parameter in module.parameters(recurse=False):
            if parameter.dim() == 1:
                nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def check(model, *inputs) -> LayerGraph:
    """The graph of a model, after the interpreter has answered what the model answers."""
    model = randomised(model).eval()
    graph, weights = lower_with_weights(model, inputs)
    with torch.no_grad():
        wanted = model(*(x.clone() for x in inputs))
    found = run(graph, weights, *inputs)
    wanted = [wanted] if isinstance(wanted, torch.Tensor) else list(wanted)
    found = [found] if isinstance(found, np.ndarray) else list(found)
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(torch.from_numpy(np.array(a)), b.float(), rtol=1e-4, atol=1e-5)
    return graph


def arrays(answer) -> list[np.ndarray]:
    """The outputs of a network, one or several, of torch or of the interpreter."""
    return [np.asarray(part) for part in (answer if isinstance(answer, tuple) else (answer,))]


def flops(model, *inputs) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*inputs)
    return counter.get_total_flops()


def parameters(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def ops(graph) -> list[str]:
    return [str(layer.op) for layer in graph.layers if layer.op is not Op.INPUT]
