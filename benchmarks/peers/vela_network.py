"""Arm's Vela on a network, in its own environment: the layer graph as an int8 TFLite file, compiled and estimated.

    PYTHONPATH=. .venv-peers/vela/bin/python benchmarks/peers/vela_network.py [TABLE] [--accelerator ethos-u85-512]

Prints one JSON line. That environment holds Vela and NumPy; the graph is the toolkit's own, which needs no more.
Writes convolutions, pooling, adds, means and linear layers, "same" or no padding, random weights that are zero where
the layer's sparsity says so. Vela compiles the network and estimates its cycles, in the systems of `SYSTEMS`; the
seconds are CPU time of that process.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from workloads.graph import Layer, LayerGraph, Op
from workloads.tables import table

SYSTEMS = {  # system configuration and memory mode that the reference rows of each accelerator family use
    "u55": ("Ethos_U55_High_End_Embedded", "Shared_Sram"),
    "u65": ("Ethos_U65_Client_Server", "Dedicated_Sram_384KB"),
    "u85": ("Ethos_U85_SYS_DRAM_Mid", "Dedicated_Sram_384KB"),
}
ACTIVATIONS = {"": 0, "relu": 1, "hardtanh(0,6)": 3, "relu6": 3}


class _Writer:
    """A TFLite model under construction, through the flatbuffer classes that Vela brings."""

    def __init__(self) -> None:
        import flatbuffers

        self.b = flatbuffers.Builder(1 << 20)
        self.buffers: list[bytes] = [b""]
        self.tensors: list[tuple[str, tuple[int, ...], int, int, float]] = []
        self.ops: list[tuple[str, list[int], int, str, dict[str, Any]]] = []

    def part(self, name: str) -> Any:
        return import_module(f"ethosu.vela.tflite.{name}")

    def tensor(self, name: str, shape: tuple[int, ...], data: np.ndarray | None = None, scale: float = 0.05) -> int:
        """Index of a new tensor: int8 features and weights, int32 biases and axes (scale 0: not quantised)."""
        if data is not None:
            self.buffers.append(np.ascontiguousarray(data).tobytes())
        kind = "INT32" if data is not None and data.dtype == np.int32 else "INT8"
        buffer = len(self.buffers) - 1 if data is not None else 0
        self.tensors.append((name, shape, buffer, getattr(self.part("TensorType").TensorType, kind), scale))
        return len(self.tensors) - 1

    def vector(self, start: Any, items: list[Any], prepend: Any) -> Any:
        start(self.b, len(items))
        for item in reversed(items):
            prepend(item)
        return self.b.EndVector()

    def struct(self, name: str, **fields: Any) -> Any:
        module = self.part(name)
        getattr(module, f"{name}Start")(self.b)
        for field, value in fields.items():
            getattr(module, f"{name}Add{field}")(self.b, value)
        return getattr(module, f"{name}End")(self.b)

    def finish(self, source: int, output: int) -> bytes:
        b, codes = self.b, sorted({op[0] for op in self.ops})
        builtin, options = self.part("BuiltinOperator").BuiltinOperator, self.part("BuiltinOptions").BuiltinOptions
        data = [b.CreateByteVector(buffer) if buffer else None for buffer in self.buffers]
        buffers = [self.struct("Buffer", **({"Data": each} if each else {})) for each in data]
        tensors = [self._tensor(*each) for each in self.tensors]
        opcodes = [
            self.struct("OperatorCode", DeprecatedBuiltinCode=min(value, 127), BuiltinCode=value, Version=1)
            for value in (getattr(builtin, code) for code in codes)
        ]
        operators = []
        for code, inputs, result, kind, fields in self.ops:
            module = self.part("Operator")
            ins = self.vector(module.OperatorStartInputsVector, inputs, b.PrependInt32)
            outs = self.vector(module.OperatorStartOutputsVector, [result], b.PrependInt32)
            made = {"BuiltinOptionsType": getattr(options, kind), "BuiltinOptions": self.struct(kind, **fields)}
            operators.append(self.struct("Operator", OpcodeIndex=codes.index(code), Inputs=ins, Outputs=outs, **made))
        sub, model, offsets = self.part("SubGraph"), self.part("Model"), b.PrependUOffsetTRelative
        graph = self.struct(
            "SubGraph",
            Tensors=self.vector(sub.SubGraphStartTensorsVector, tensors, offsets),
            Inputs=self.vector(sub.SubGraphStartInputsVector, [source], b.PrependInt32),
            Outputs=self.vector(sub.SubGraphStartOutputsVector, [output], b.PrependInt32),
            Operators=self.vector(sub.SubGraphStartOperatorsVector, operators, offsets),
        )
        root = self.struct(
            "Model",
            Version=3,
            OperatorCodes=self.vector(model.ModelStartOperatorCodesVector, opcodes, offsets),
            Subgraphs=self.vector(model.ModelStartSubgraphsVector, [graph], offsets),
            Buffers=self.vector(model.ModelStartBuffersVector, buffers, offsets),
        )
        b.Finish(root, file_identifier=b"TFL3")
        return bytes(b.Output())

    def _tensor(self, name: str, shape: tuple[int, ...], buffer: int, kind: int, scale: float) -> Any:
        module, quant = self.part("Tensor"), self.part("QuantizationParameters")
        fields = {"Name": self.b.CreateString(name), "Type": kind, "Buffer": buffer}
        fields["Shape"] = self.vector(module.TensorStartShapeVector, list(shape), self.b.PrependInt32)
        if scale:
            scales = self.vector(quant.QuantizationParametersStartScaleVector, [scale], self.b.PrependFloat32)
            zeros = self.vector(quant.QuantizationParametersStartZeroPointVector, [0], self.b.PrependInt64)
            fields["Quantization"] = self.struct("QuantizationParameters", Scale=scales, ZeroPoint=zeros)
        return self.struct("Tensor", **fields)


def to_tflite(graph: LayerGraph, seed: int = 0) -> bytes:
    """An int8 TFLite model of the graph's layers, channels last, weights drawn from a normal distribution."""
    writer, rng = _Writer(), np.random.default_rng(seed)
    found: dict[str, int] = {}
    for layer in graph:
        inputs = [found[name] for name in layer.inputs]
        if layer.op is Op.RESHAPE:
            found[layer.name] = inputs[0]
            continue
        shape = (layer.shape[0], *layer.shape[2:], layer.shape[1]) if len(layer.shape) == 4 else layer.shape
        found[layer.name] = writer.tensor(layer.name, shape)
        if layer.op is not Op.INPUT:
            code, kind, constants, fields = _operator(layer, writer, rng)
            writer.ops.append((code, [*inputs, *constants], found[layer.name], kind, fields))
    return writer.finish(found[graph.inputs[0].name], found[graph.outputs[0]])


def _operator(layer: Layer, writer: _Writer, rng: np.random.Generator) -> tuple[str, str, list[int], dict[str, Any]]:
    act = {"FusedActivationFunction": ACTIVATIONS[layer.activation]}
    window = {"Padding": 0, "StrideW": layer.stride[1], "StrideH": layer.stride[0]}
    if layer.op is Op.ADD:
        return "ADD", "AddOptions", [], act
    if layer.op in (Op.MAX_POOL, Op.AVG_POOL):
        code = "MAX_POOL_2D" if layer.op is Op.MAX_POOL else "AVERAGE_POOL_2D"
        padding = int(not any(layer.padding))  # 0 is "same", 1 is "valid"
        size = {"FilterWidth": layer.s, "FilterHeight": layer.r, "Padding": padding}
        return code, "Pool2DOptions", [], {**window, **size, **act}
    if layer.op is Op.MEAN:
        return (
            "MEAN",
            "ReducerOptions",
            [writer.tensor("axes", (2,), np.array([1, 2], np.int32), 0)],
            {"KeepDims": False},
        )
    weights = _weights(layer, rng)
    made = [writer.tensor(f"{layer.name}.weight", weights.shape, weights, 0.01)]
    made.append(writer.tensor(f"{layer.name}.bias", (layer.k,), np.zeros(layer.k, np.int32), 0.0005))
    if layer.op is Op.LINEAR:
        return "FULLY_CONNECTED", "FullyConnectedOptions", made, act
    window |= {"Padding": int(not any(layer.padding) and layer.r * layer.s > 1)}
    dilation = {"DilationWFactor": layer.dilation[1], "DilationHFactor": layer.dilation[0]}
    if layer.is_depthwise:
        return "DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions", made, {**window, **act, **dilation, "DepthMultiplier": 1}
    return "CONV_2D", "Conv2DOptions", made, {**window, **act, **dilation}


def _weights(layer: Layer, rng: np.random.Generator) -> np.ndarray:
    """int8 weights in the order of the file, channels last: normal, zero where the layer's sparsity says so.

    An exact mask is kept to the element; of a density alone, each weight stays with that probability.
    """
    drawn = np.clip(np.rint(rng.normal(0, 32, layer.weight_shape)), -127, 127)
    if layer.sparsity is not None:
        kept = layer.sparsity.sample(rng).mask()
        drawn = np.where(kept, np.where(drawn == 0, 1, drawn), 0)
    weights = drawn.astype(np.int8)
    if layer.op is Op.LINEAR:
        return weights[:, :, 0, 0]
    return weights.transpose(1, 2, 3, 0) if layer.is_depthwise else weights.transpose(0, 2, 3, 1)


def operators(graph: LayerGraph, accelerator: str) -> tuple[float, list[dict[str, str]]]:
    """(CPU seconds of Vela, one record an operator: "Name", "Op Cycles", "NPU", "SRAM AC", "DRAM AC", ...)."""
    system, memory = SYSTEMS[accelerator.split("-")[1]]
    config = ["--accelerator-config", accelerator, "--system-config", system, "--memory-mode", memory]
    config += ["--config", "Arm/vela.ini", "--verbose-performance"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "net.tflite")
        path.write_bytes(to_tflite(graph))
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [str(Path(sys.executable).with_name("vela")), str(path), *config, "--output-dir", folder]
        subprocess.run(command, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        rows = list(csv.DictReader(next(Path(folder).glob("*per-layer.csv")).open()))
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, rows


def estimate(graph: LayerGraph, accelerator: str = "ethos-u55-256") -> tuple[float, float]:
    """(CPU seconds of Vela, its estimate in cycles: operators one after another)."""
    seconds, rows = operators(graph, accelerator)
    return seconds, sum(float(row["Op Cycles"]) for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="?", default="resnet50")
    parser.add_argument("--accelerator", default="ethos-u55-256", help="as Vela names it, e.g. ethos-u85-512")
    options = parser.parse_args()
    seconds, cycles = estimate(table(options.table), options.accelerator)
    print(json.dumps({"name": options.table, "cycles": cycles, "cpu_s": seconds}))


if __name__ == "__main__":
    main()
