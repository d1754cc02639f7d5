"""The compiled network as its user sees it: called like the module, on NumPy arrays or torch tensors."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from codesign.compiler.artifact import load, save
from codesign.compiler.isa import Isa, find_isa
from codesign.compiler.network import build
from codesign.compiler.plan import Tuning
from codesign.compiler.runtime import Executable
from codesign.compiler.tune import Cache, default_cache
from codesign.compiler.tune import tune as measured
from workloads.errors import ConfigError, ShapeError, first_line
from workloads.graph import LayerGraph
from workloads.lowering import TRACING, lower_with_weights

Arrays = np.ndarray | Tensor
Network = nn.Module | tuple[LayerGraph, dict[str, np.ndarray]]
"""A module, or its graph with weights."""
Shapes = tuple[tuple[int, ...], ...]
Tuner = Callable[[LayerGraph, Mapping[str, np.ndarray], Isa], Mapping[str, Tuning]]
"""From a graph to tunings of its convolutions."""


MOST_THREADS = max(64, os.cpu_count() or 1)
"""They wait for one another without sleeping: more than there are cores only slow each other down."""


class Compiled:
    """A network as native code of this machine; several threads may call it at once.

    Code is made when inputs of a new shape come: `for_shapes` does so ahead of time.
    """

    def __init__(self, network: Network, threads: int = 1, isa: str = "", tuner: Tuner | None = None) -> None:
        if type(threads) is not int or not 1 <= threads <= MOST_THREADS:
            raise ConfigError(f"threads is {threads!r}, must be a whole number of 1..{MOST_THREADS}")
        self.isa, self.threads = find_isa(isa), threads
        self._network = network if isinstance(network, tuple) else copy.deepcopy(network)
        self._tuner = tuner
        self._made: dict[Shapes, Executable] = {}
        self._tunings: dict[Shapes, Mapping[str, Tuning]] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a compiled network is memory of this process and cannot be copied or pickled; save() keeps it")

    def __call__(self, *inputs: Arrays) -> Arrays | tuple[Arrays, ...]:
        """What the network answers, of the kind of the first input; a tuple where it has several outputs.

        Raises:
            ShapeError: inputs are not float32, or the network does not take their shapes.
        """
        arrays = [_array(i, x) for i, x in enumerate(inputs)]
        found = self.for_shapes(*(x.shape for x in arrays))(arrays)
        answers = [torch.from_numpy(y) for y in found] if inputs and isinstance(inputs[0], Tensor) else found
        return answers[0] if len(answers) == 1 else tuple(answers)

    def for_shapes(self, *shapes: tuple[int, ...]) -> Executable:
        """The code for inputs of these shapes, made if it was not yet."""
        key = tuple(tuple(shape) for shape in shapes)
        with self._lock:
            if key not in self._made:
                graph, weights = self._lower(key)
                if self._tuner and key not in self._tunings:
                    self._tunings[key] = self._tuner(graph, weights, self.isa)
                network = build(graph, weights, self.isa, self.threads, self._tunings.get(key))
                self._made[key] = Executable(network)
            return self._made[key]

    @property
    def first(self) -> Executable:
        """The code of the shapes that came first.

        Raises:
            ConfigError: none came yet.
        """
        if not self._made:
            raise ConfigError("nothing is compiled yet: call the network once, or give example_inputs")
        return next(iter(self._made.values()))

    @property
    def lowered(self) -> tuple[LayerGraph, dict[str, np.ndarray]]:
        """The graph of the shapes that came first, and its arrays."""
        return self._lower(tuple(layer.shape for layer in self.first.network.graph.inputs))

    def save(self, folder: Path | str) -> None:
        """Keep graph, weights and tuned plan of the shapes that came first; `load_compiled` reads them again.

        Raises:
            ConfigError: nothing is compiled yet, or the folder holds other files.
            DataError: the place cannot be written.
        """
        network = self.first.network
        shapes = tuple(layer.shape for layer in network.graph.inputs)
        save(Path(folder), network, self.lowered[1], self._tunings.get(shapes, {}))

    def _lower(self, shapes: Shapes) -> tuple[LayerGraph, dict[str, np.ndarray]]:
        if not isinstance(self._network, tuple):
            inputs = [torch.zeros(shape, dtype=torch.float32) for shape in shapes]
            with TRACING:
                try:
                    with torch.no_grad():
                        self._network(*inputs)
                except Exception as error:  # whatever the module's own code makes of such inputs
                    reason = first_line(error)
                    raise ShapeError(
                        f"inputs have shapes {_text(shapes)}, which the module does not take: {reason}"
                    ) from error
                return lower_with_weights(self._network, inputs, on_unknown="vector")
        graph, weights = self._network
        wanted = tuple(layer.shape for layer in graph.inputs)
        if shapes == wanted:
            return graph, weights
        if len(shapes) == len(wanted) and all(a[1:] == b[1:] for a, b in zip(shapes, wanted, strict=True)):
            return graph.with_batch(shapes[0][0]).verify(), weights
        raise ShapeError(f"inputs have shapes {_text(shapes)}, the network takes {_text(wanted)} of any batch")


def compile_network(
    network: Network,
    example_inputs: Arrays | Sequence[Arrays] | None = None,
    *,
    threads: int = 1,
    isa: str = "",
    tune: bool = False,
) -> Compiled:
    """Native code for a network, pruned or not: zeros of its weights are not computed.

    Args:
        network: a finished module, of which a copy is kept, or a graph with its weights as
            `workloads.lowering.lower_with_weights` gives them. It is compiled as it answers in eval mode, whatever mode
            it is in; several tensors in a tuple, list or dict come as a tuple.
        example_inputs: compile for their shapes now; else at the first call.
        threads: that share each layer. isa: "avx512", "avx2" or "sse2"; by default the best that this machine has.
        tune: measure tiles for every convolution instead of estimating them: seconds, once a layer and machine.

    Raises:
        ConfigError: llvmlite is not installed, or this machine lacks the instruction set.
        LoweringError: the module cannot be lowered.
        TypeError: it is none.

    A weight that is zero may hide infinities and not-a-numbers of its input, where torch's product of zero and
    infinity is not a number. docs/compiler.md says what else differs from torch.

    >>> import torch
    >>> from torch import nn
    >>> compiled = compile_network(nn.Conv2d(2, 3, 3, padding=1))
    >>> compiled(torch.ones(1, 2, 8, 8)).shape
    torch.Size([1, 3, 8, 8])
    """
    if not isinstance(network, nn.Module | tuple):
        raise TypeError(f"network is of type {type(network).__name__}, must be a module, or a graph with its weights")
    found = Compiled(network, threads, isa, _tune if tune else None)
    if example_inputs is not None:
        given = [example_inputs] if isinstance(example_inputs, Arrays) else example_inputs
        found.for_shapes(*(tuple(x.shape) for x in given))
    return found


def load_compiled(folder: Path | str, threads: int | None = None) -> Compiled:
    """A network that `Compiled.save` kept, with its tuned plan.

    Args:
        threads: instead of those it was saved with.

    Raises:
        ConfigError: the folder holds none, one of another format, or one for another processor.
        DataError: a file is damaged.
    """
    graph, weights, isa, saved, tunings = load(Path(folder))
    found = Compiled((graph, weights), saved if threads is None else threads, isa)
    shapes = tuple(layer.shape for layer in graph.inputs)
    found._tunings[shapes] = tunings
    found.for_shapes(*shapes)
    return found


def _tune(graph: LayerGraph, weights: Mapping[str, np.ndarray], isa: Isa) -> dict[str, Tuning]:
    """With a bar, and with what this machine's user has measured before."""
    return measured(graph, weights, isa, Cache.load(default_cache()), progress=True)


def _array(place: int, x: Arrays) -> np.ndarray:
    found = str(x.dtype).removeprefix("torch.") if isinstance(x, Tensor) else str(np.asarray(x).dtype)
    if found != "float32":
        raise ShapeError(f"input {place} is {found}, must be float32; convert it first")
    if isinstance(x, Tensor) and (x.layout is not torch.strided or x.is_meta):
        kind = "on the meta device" if x.is_meta else f"of layout {str(x.layout).removeprefix('torch.')}"
        raise ShapeError(f"input {place} is {kind}, must be a plain tensor; convert it first")
    return x.numpy(force=True) if isinstance(x, Tensor) else np.asarray(x)


def _text(shapes: Shapes) -> str:
    return ", ".join(map(str, shapes)) or "none"
