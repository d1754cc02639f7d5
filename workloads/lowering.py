"""From a PyTorch module to a layer graph.

    graph = lower(model, torch.randn(1, 3, 224, 224))

The module is traced by `torch.export` in eval mode, without decompositions, so that the traced program still speaks of
convolutions, batch norms and LSTMs. Each operator becomes layers by the operator table (`workloads.operators`); batch
norms are folded, activations attached (`workloads.fusion`). Whatever is computed from parameters and buffers alone, be
it a weight norm, `torch.nn.utils.prune` or a mask that the model multiplies with, is evaluated, and the zeros of the
result are the graph's: exactly those that hardware would see.

Tracing is the slow part and depends on code and shapes only: it is done once and remembered
(`workloads.lowering_cache`); weights are read afresh each time. The model is never modified: a copy that shares its
tensors is traced.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal as OneOf

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from workloads.constants import Reader, tensors_of
from workloads.conversion import convert
from workloads.errors import LoweringError, ShapeError, first_line
from workloads.fusion import fuse, unread
from workloads.graph import LayerGraph, Op
from workloads.lowering_cache import STRUCTURES, structure_key
from workloads.structure import Structure, build_structure

Inputs = Tensor | Sequence[Tensor]
CHUNK_BYTES = 2**28  # of activations kept at once while densities are measured


def lower(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    on_unknown: OneOf["error", "vector"] = "error",
    calibration: Inputs | None = None,
    name: str | None = None,
) -> LayerGraph:
    """The layer graph of a module in eval mode, with the exact zeros of its weights.

    Args:
        model: any module; it is neither modified nor kept.
        example_inputs: tensors as `model(*example_inputs)` takes them, batch first. Only shapes and types matter.
        on_unknown: what to do with an operator that the table lacks: "error", or "vector" to price it as elementwise
            work, one `Op.VECTOR` layer each. The interpreter runs those whose one output and arguments are plain.
        calibration: inputs on which the zeros of activations are measured (`measure_activation_density`).
        name: of the graph; by default that of the class.

    Returns:
        A verified graph.

    Raises:
        LoweringError: the module cannot be traced with these inputs, has an unknown operator or a weight that is not
            finite.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    >>> graph = lower(model, torch.ones(1, 3, 6, 6))
    >>> print(graph["0"].op, graph["0"].activation, graph.macs, graph.source_parameters)
    conv relu 3456 232
    """
    structure, reader = prepare(model, example_inputs, on_unknown)
    graph = structure.graph(name or type(model).__name__, reader).verify()
    if calibration is None:
        return graph
    return measure_activation_density(graph, structure.arrays(reader), *_tuple(calibration))


def lower_with_weights(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    on_unknown: OneOf["error", "vector"] = "error",
    calibration: Inputs | None = None,
    name: str | None = None,
) -> tuple[LayerGraph, dict[str, np.ndarray]]:
    """As `lower`, and the arrays that the layers name.

    Returns:
        The graph, and array by key: float32, in torch's layout, batch norms folded in; a copy of the model's numbers.
    """
    structure, reader = prepare(model, example_inputs, on_unknown)
    graph = structure.graph(name or type(model).__name__, reader).verify()
    arrays = structure.arrays(reader)
    if calibration is not None:
        graph = measure_activation_density(graph, arrays, *_tuple(calibration))
    return graph, arrays


def measure_activation_density(
    graph: LayerGraph, weights: Mapping[str, np.ndarray], *inputs: np.ndarray | Tensor
) -> LayerGraph:
    """A copy whose layers know which fraction of each output channel is not zero, inputs included.

    Args:
        graph: of layers that can run.
        weights: array by key, as `lower_with_weights` gives them.
        inputs: one batch of real inputs for each input layer; any number of samples if the graph can change its batch
            (`LayerGraph.with_batch`), else a multiple of its own.

    Raises:
        LoweringError: the graph has a layer that cannot run. ShapeError: the inputs do not fit.
    """
    from workloads.reference import can_run, run_all

    if unknown := [layer.name for layer in graph.layers if not can_run(layer)]:
        raise LoweringError(
            f"activation zeros cannot be measured: layer {unknown[0]!r} is priced as vector work only and cannot run; "
            f"leave out calibration"
        )
    samples = {len(x) for x in inputs}
    if len(inputs) != len(graph.inputs) or len(samples) != 1 or 0 in samples:
        given = ", ".join(str(tuple(x.shape)) for x in inputs) or "none"
        raise ShapeError(f"calibration inputs are {given}, need {len(graph.inputs)} with the same number of samples")
    (total,) = samples
    measured = {layer.name: np.zeros(1) for layer in graph.layers if layer.op is not Op.CONSTANT}
    for part, piece in _chunks(graph, total):
        answers = run_all(part, weights, *(x[piece] for x in inputs))
        share = (piece.stop - piece.start) / total
        for name in measured:
            measured[name] = measured[name] + share * _nonzero_fractions(answers[name], graph[name].channel_axis)
    return graph.with_activation_density({name: np.minimum(found, 1).tolist() for name, found in measured.items()})


def _nonzero_fractions(array: np.ndarray, channel_axis: int) -> np.ndarray:
    """float64, (channels,); a tensor of one axis has no channels and counts as one."""
    channels = np.moveaxis(array, channel_axis, 0).reshape(array.shape[channel_axis], -1) if array.ndim > 1 else array
    return np.atleast_1d(np.count_nonzero(channels, axis=-1) / channels.shape[-1])


def _chunks(graph: LayerGraph, samples: int) -> Iterator[tuple[LayerGraph, slice]]:
    """The samples in parts whose activations fit into memory, each with a graph of its batch."""
    batch = graph.inputs[0].shape[0]
    bytes_per_sample = 4 * sum(layer.output_elements for layer in graph.layers) // batch
    size = max(1, min(samples, CHUNK_BYTES // max(bytes_per_sample, 1)))
    graphs = {batch: graph}
    try:
        for count in {size, samples % size} - {0, batch}:
            graphs[count] = graph.with_batch(count)
    except ShapeError as error:
        size = batch
        if samples % batch:
            found = f"calibration with {samples} samples; {error}"
            raise ShapeError(f"{found}; give a multiple of {batch} samples") from error
    for start in range(0, samples, size):
        piece = slice(start, min(start + size, samples))
        yield graphs[piece.stop - piece.start], piece


# ---- tracing ---------------------------------------------------------------------------------------------------------


def prepare(model: nn.Module, example_inputs: Inputs, on_unknown: str = "error") -> tuple[Structure, Reader]:
    """The first half of `lower`: the structure, from memory if it is known, and a reader of the weights of now."""
    if on_unknown not in ("error", "vector"):
        raise ValueError(f"on_unknown is {on_unknown!r}, must be 'error' or 'vector'")
    inputs = _tuple(example_inputs)
    key = structure_key(model, inputs, on_unknown)
    structure = STRUCTURES.get(key, lambda: _structure(model, inputs, on_unknown))
    return structure, Reader(tensors_of(model))


def _tuple(inputs: Inputs) -> tuple[Tensor, ...]:
    found = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    if wrong := [item for item in found if not isinstance(item, Tensor)] or not found:
        given = type(wrong[0]).__name__ if isinstance(wrong, list) else "nothing"
        raise LoweringError(f"example inputs hold {given}, need tensors; give a tensor or a tuple of tensors")
    return found


def _structure(model: nn.Module, inputs: tuple[Tensor, ...], on_unknown: str) -> Structure:
    program = _export(model, inputs)
    try:
        drafts, outputs, unused = convert(program, _first_names(model), on_unknown)
    except LoweringError as error:
        raise LoweringError(f"{type(model).__name__}: {error}") from error
    more = unread(drafts, outputs, unused)
    return build_structure(*fuse(drafts, outputs), more)


def _first_names(model: nn.Module) -> dict[str, str]:
    """Of every name of a parameter or buffer, the first name of the same tensor."""
    first: dict[int, str] = {}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(tensor), name) for name, tensor in named}


def _export(model: nn.Module, inputs: tuple[Tensor, ...]) -> ExportedProgram:
    """The traced program of a copy in eval mode.

    Raises:
        LoweringError: the module cannot be copied, or fails with these inputs; from the error that it raised.
    """
    twin = _twin(model)
    inputs = tuple(item.detach() for item in inputs)  # torch takes one tensor given twice for one input
    try:
        with TRACING, _quiet(), torch.no_grad():
            return torch.export.export(twin, inputs, strict=False)
    except Exception as error:
        shapes = ", ".join(str(tuple(item.shape)) for item in inputs)
        given = f"{type(model).__name__} cannot be traced with inputs of shape {shapes}"
        raise LoweringError(f"{given}: {_where(twin, error)}{_cause(error)}") from error


def _twin(model: nn.Module) -> nn.Module:
    """A copy in eval mode that shares every tensor: hooks and forward passes may change its attributes freely."""
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [item for module in model.modules() for item in vars(module).values() if isinstance(item, Tensor)]
    try:
        return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors}).eval()
    except Exception as error:
        found = f"{type(model).__name__} cannot be copied ({type(error).__name__}: {_first_line(error)})"
        raise LoweringError(f"{found}; a copy is traced, so keep locks, files and the like out of modules") from error


TRACING = threading.RLock()
"""One thread traces at a time, and no other calls a module meanwhile: torch changes them for the whole process."""
TALKERS = ("torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor")
"""Loggers of torch that print a traceback of an exception that they raise too."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch prints on the way to an exception: the exception says it."""
    loggers = {logging.getLogger(name): logging.getLogger(name).level for name in TALKERS}
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in loggers.items():
            logger.setLevel(level)


def _where(twin: nn.Module, error: BaseException) -> str:
    """The innermost module that was running, as "in 'layer1.conv' (Conv2d): "."""
    paths = {id(module): path for path, module in twin.named_modules()}
    found = ""
    trace = error.__traceback__
    while trace is not None:
        module = trace.tb_frame.f_locals.get("self")
        if path := paths.get(id(module), ""):
            found = f"in {path!r} ({type(module).__name__}): "
        trace = trace.tb_next
    return found


def _cause(error: Exception) -> str:
    if "data-dependent" in str(error):
        return "its control flow depends on the values of a tensor; decide by shapes or flags instead"
    return f"{_first_line(error)}; give example inputs that the model accepts"


def _first_line(error: Exception) -> str:
    return first_line(error).rstrip(".")
