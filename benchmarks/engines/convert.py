"""A case's network in an engine's own format: `python convert.py FOLDER FILE`, in that engine's environment.

FOLDER holds `network.pt2`, a program of torch.export, and `sample.pt2`, the same for one sample and without strided
slices (for ncnn). Conversions are processes of their own, so that an engine that is timed shares its process with
nothing.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch


def to_compiled(folder: Path) -> None:
    """Ours, tuned on this machine: without what earlier runs remembered, so that each case is on its own."""
    from codesign.compiler import Compiled
    from codesign.compiler.tune import tune

    program = torch.export.load(folder / "network.pt2")
    compiled = Compiled(program.module(), tuner=tune)
    compiled.for_shapes(*(tuple(x.shape) for x in program.example_inputs[0]))
    compiled.save(folder / "network.compiled")


def to_onnx(folder: Path) -> None:
    program = torch.export.load(folder / "network.pt2")
    torch.onnx.export(program, (), folder / "network.onnx", dynamo=True, external_data=False)


def to_tflite(folder: Path) -> None:
    import litert_torch

    program = torch.export.load(folder / "network.pt2")
    litert_torch.convert(program.module(), program.example_inputs[0]).export(str(folder / "network.tflite"))


def to_ncnn(folder: Path) -> None:
    program = torch.export.load(folder / "sample.pt2")
    (x,) = program.example_inputs[0]
    torch.jit.trace(program.module(), x).save(folder / "network.pt")
    shape = ",".join(map(str, x.shape))
    tool = Path(sys.executable).with_name("pnnx")
    subprocess.run([tool, "network.pt", f"inputshape=[{shape}]", "fp16=0"], cwd=folder, check=True)


def to_mnn(folder: Path) -> None:
    """Straight to the converter: its program `mnnconvert` installs packages and sends reports of its use."""
    import MNN  # noqa: F401  _tools needs its libraries
    from _tools import mnnconvert

    if not (folder / "network.onnx").exists():
        to_onnx(folder)
    files = ["--modelFile", str(folder / "network.onnx"), "--MNNModel", str(folder / "network.mnn")]
    mnnconvert(["mnnconvert", "-f", "ONNX", *files, "--bizCode", "none"])


FORMATS = {
    "network.compiled": to_compiled,
    "network.onnx": to_onnx,
    "network.tflite": to_tflite,
    "network.ncnn.param": to_ncnn,
    "network.mnn": to_mnn,
}

if __name__ == "__main__":
    FORMATS[sys.argv[2]](Path(sys.argv[1]))
