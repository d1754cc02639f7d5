"""The engines: how each loads a case and answers, one row of `ENGINES` an engine.

A loader takes the case's folder, the input (float32) and a number of threads, and returns a function without arguments
that computes the output from that input, as a caller of the engine would: what copies the engine needs are part of it.
Heavy imports are inside, since the process that measures reads the table alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Call = Callable[[], np.ndarray]
Loader = Callable[[Path, np.ndarray, int], Call]


def _codesign(folder: Path, x: np.ndarray, threads: int) -> Call:
    from codesign.compiler import load_compiled

    compiled = load_compiled(folder / "network.compiled", threads)
    return lambda: compiled(x)


def _torch_eager(folder: Path, x: np.ndarray, threads: int) -> Call:
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    module = torch.export.load(folder / "network.pt2").module().to(memory_format=torch.channels_last)
    given = torch.from_numpy(x)
    return lambda: module(given.contiguous(memory_format=torch.channels_last)).numpy()


def _inductor(folder: Path, x: np.ndarray, threads: int) -> Call:
    import torch
    from torch._inductor import config

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    config.freezing = True
    module = torch.compile(torch.export.load(folder / "network.pt2").module())
    given = torch.from_numpy(x)
    return lambda: module(given).numpy()


def _onnxruntime(folder: Path, x: np.ndarray, threads: int) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(folder / "network.onnx", options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: x})[0]


def _openvino(precision: str) -> Loader:
    def load(folder: Path, x: np.ndarray, threads: int) -> Call:
        import openvino

        options = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": "1",
            "ENABLE_CPU_PINNING": False,
        }
        core = openvino.Core()
        request = core.compile_model(core.read_model(folder / "network.onnx"), "CPU", options).create_infer_request()
        return lambda: request.infer([x], share_inputs=True, share_outputs=False)[0]

    return load


def _ncnn(folder: Path, x: np.ndarray, threads: int) -> Call:
    """Its networks take one sample, so a batch is a loop."""
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads, net.opt.use_vulkan_compute = threads, False
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    net.load_param(str(folder / "network.ncnn.param"))
    net.load_model(str(folder / "network.ncnn.bin"))

    def sample(image: np.ndarray) -> np.ndarray:
        extractor = net.create_extractor()
        extractor.input("in0", ncnn.Mat(image))
        return np.array(extractor.extract("out0")[1])

    return lambda: np.stack([sample(image) for image in x])


def _mnn(folder: Path, x: np.ndarray, threads: int) -> Call:
    import MNN

    interpreter = MNN.Interpreter(str(folder / "network.mnn"))
    session = interpreter.createSession({"backend": "CPU", "numThread": threads, "precision": "high"})
    source, output = interpreter.getSessionInput(session), interpreter.getSessionOutput(session)
    given = MNN.Tensor(x.shape, MNN.Halide_Type_Float, x, MNN.Tensor_DimensionType_Caffe)
    shape = tuple(output.getShape())
    found = np.empty(shape, np.float32)
    answer = MNN.Tensor(shape, MNN.Halide_Type_Float, found, MNN.Tensor_DimensionType_Caffe)

    def call() -> np.ndarray:
        source.copyFrom(given)
        interpreter.runSession(session)
        output.copyToHostTensor(answer)
        return np.array(answer.getNumpyData())

    return call


def _litert(folder: Path, x: np.ndarray, threads: int) -> Call:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(folder / "network.tflite"), num_threads=threads)
    interpreter.allocate_tensors()
    source, output = (
        found[0]["index"] for found in (interpreter.get_input_details(), interpreter.get_output_details())
    )

    def call() -> np.ndarray:
        interpreter.set_tensor(source, x)
        interpreter.invoke()
        return interpreter.get_tensor(output)

    return call


@dataclass(frozen=True)
class Engine:
    """A row.

    Attributes:
        title: what stands in tables. package: of the version that is reported. load: see the module.
        file: what it loads, made by `convert.py` if torch.export does not write it.
        is_single: it computes in fp32.
    """

    title: str
    package: str
    load: Loader
    file: str = "network.pt2"
    is_single: bool = True


OURS = "codesign"
ENGINES: dict[str, Engine] = {
    OURS: Engine("ours", OURS, _codesign, "network.compiled"),
    "onnxruntime": Engine("ONNX Runtime", "onnxruntime", _onnxruntime, "network.onnx"),
    "openvino": Engine("OpenVINO", "openvino", _openvino("f32"), "network.onnx"),
    "ncnn": Engine("ncnn", "ncnn", _ncnn, "network.ncnn.param"),
    "mnn": Engine("MNN", "MNN", _mnn, "network.mnn"),
    "litert": Engine("LiteRT", "ai-edge-litert", _litert, "network.tflite"),
    "inductor": Engine("inductor", "torch", _inductor),
    "torch": Engine("torch eager", "torch", _torch_eager),
    "openvino_bf16": Engine("OpenVINO bf16", "openvino", _openvino("bf16"), "network.onnx", is_single=False),
}


def version(name: str) -> str:
    """Of an engine's package; of this toolkit, which may run from its sources, nothing is known here."""
    from importlib import metadata

    return "" if name == OURS else metadata.version(ENGINES[name].package)
