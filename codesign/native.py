"""`codesign compile`, `run` and `bench`: networks as native code of this machine, from the command line."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from codesign.compiler.artifact import PLAN
from codesign.compiler.network import InTorch
from codesign.show import console
from codesign.subject import Subject, load_split
from pruning.progress import shown
from workloads.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from codesign.compiler import Compiled
    from pruning.evaluation import Pictures

BATCH = 100
"""Test images a call."""


def compile_model(
    model: str,
    out: Path | None,
    weights: Path | None = None,
    pretrained: bool = False,
    shape: str | None = None,
    batch: int = 1,
    threads: int = 1,
    isa: str = "",
    tune: bool = False,
    explain: bool = False,
) -> None:
    """Compile a model, or the network of a `codesign prune`; keep it in a folder, print its records.

    Raises:
        ConfigError: wrong words, or nothing is asked for.
    """
    from codesign.compiler import compile_network
    from codesign.compiler.artifact import check_place
    from codesign.compiler.records import explain as explained
    from workloads.lowering import lower_with_weights

    if out is None and not explain:
        raise ConfigError("give --out FOLDER to keep the network, --explain to read what is made of it, or both")
    if out is not None:
        check_place(out)
    name, module, example = _module(model, weights, pretrained, shape)
    example = example[:1].repeat(batch, *[1] * (example.dim() - 1))
    begin = time.perf_counter()
    lowered = lower_with_weights(module, example, name=name, on_unknown="vector")
    compiled = compile_network(lowered, example, threads=threads, isa=isa, tune=tune)
    seconds = time.perf_counter() - begin
    network = compiled.first.network
    if explain:
        print(explained(network), end="")
    if out is not None:
        compiled.save(out)
        outside = [part.layer.name for part in network.parts if isinstance(part, InTorch)]
        rest = f", {len(outside)} layers of them in torch: {', '.join(outside)}" if outside else ""
        print(f"{out}: {name} for {network.isa.name}, {len(network.parts)} parts{rest}, {seconds:.1f} s")


def _module(model: str, weights: Path | None, pretrained: bool, shape: str | None) -> tuple[str, nn.Module, Tensor]:
    """A finished module with its name and an example input, by what was typed."""
    if (Path(model) / PLAN).is_file():
        raise ConfigError(f"{model}: is a compiled network already; give codesign run or codesign bench the folder")
    subject = Subject.named(model, weights, pretrained, shape)
    return (subject.name, *subject.needs_module("compiling"))


def run_model(
    folder: Path,
    data: str | None = None,
    images: int | None = None,
    check: bool = False,
    given: Path | None = None,
    out: Path | None = None,
    threads: int | None = None,
) -> None:
    """Answer for an array in a file, or measure accuracy on a data set's test images.

    Raises:
        ConfigError: wrong words. DataError: a file cannot be read.
    """
    from codesign.compiler import load_compiled

    if (data is None) == (given is None):
        raise ConfigError("give --data NAME to measure accuracy, or --input FILE.npy to get answers: one of them")
    if given is not None and (check or images):
        raise ConfigError("--check and --images go with --data, not with --input")
    if data is not None and out is not None:
        raise ConfigError("--out goes with --input, not with --data")
    compiled = load_compiled(folder, threads)
    if data is not None:
        pictures = load_split(compiled.first.network.graph.name, data, "test")
        print(measure_answers(compiled, pictures.take(images) if images else pictures, check))
    elif given is not None:
        found = compiled(_read(given))
        answers, *others = found if isinstance(found, tuple) else (found,)
        target = out or given.with_suffix(".out.npy")
        with target.open("wb") as file:  # NumPy would add .npy to a name
            np.save(file, answers)
        print(f"{target}: {tuple(answers.shape)}" + f", the first of {1 + len(others)} outputs" * bool(others))


@dataclass(frozen=True)
class Answers:
    """What a compiled network says of pictures.

    Attributes:
        images: so many. right: of these, answered rightly. seconds: of all calls.
        equal: answers that are the interpreter's; worst: largest difference over a batch's largest logit. None where
            it was not asked.
    """

    images: int
    right: int
    seconds: float
    equal: int | None = None
    worst: float | None = None

    def __str__(self) -> str:
        said = f"accuracy {self.right / self.images:.2%} on {self.images} test images, {self.seconds:.2f} s"
        said += f" in batches of {BATCH}"
        if self.equal is None:
            return said
        beside = f"{self.equal} of {self.images} answers are the interpreter's"
        return f"{said}\n{beside}, largest difference {self.worst:.1e} of the largest logit"


def measure_answers(compiled: Compiled, pictures: Pictures, check: bool) -> Answers:
    """Right answers among test images; `check` holds every answer against the interpreter's.

    Raises:
        ConfigError: the network does not answer with a row of classes a picture.
    """
    from workloads.reference import run

    graph, weights = compiled.lowered
    right = equal = 0
    seconds = worst = 0.0
    batches = pictures.batches(BATCH)
    for x, y in shown(batches, "images", -(-len(pictures) // BATCH), enabled=True):
        compiled.for_shapes(tuple(x.shape))  # code for a new batch is not part of its time
        begin = time.perf_counter()
        found = compiled(x.numpy())
        seconds += time.perf_counter() - begin
        shapes = [np.shape(each) for each in (found if isinstance(found, tuple) else (found,))]
        if [len(shape) for shape in shapes] != [2]:
            said = " and ".join(map(str, shapes))
            raise ConfigError(f"{graph.name}: answers {said}, accuracy needs one row of classes a picture")
        answers = np.asarray(found)
        right += int((answers.argmax(1) == y.numpy()).sum())
        if check:
            expected = np.asarray(run(graph.with_batch(len(x)), weights, x))
            equal += int((answers.argmax(1) == expected.argmax(1)).sum())
            worst = max(worst, float(np.abs(answers - expected).max() / np.abs(expected).max()))
    return Answers(len(pictures), right, seconds, *((equal, worst) if check else (None, None)))


def _read(path: Path) -> np.ndarray:
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as an array ({error}); write it with numpy.save") from error
    if not isinstance(found, np.ndarray):
        raise DataError(f"{path}: holds several arrays, must be one .npy")
    return found


def bench(folder: Path, repeats: int = 30, threads: int | None = None, layers: bool = False) -> None:
    """Time a compiled network on random inputs: whole, and by layer."""
    from codesign.compiler import load_compiled

    compiled = load_compiled(folder, threads)
    executable = compiled.first
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(layer.shape).astype(np.float32) for layer in executable.network.graph.inputs]
    executable(inputs)
    wall, cpu = [], []
    for _ in range(repeats):
        begin, used = time.perf_counter(), time.process_time()
        executable(inputs)
        wall.append(time.perf_counter() - begin)
        cpu.append(time.process_time() - used)
    network = executable.network
    print(
        f"{network.graph.name}, {network.isa.name}, {network.threads} threads: {min(wall) * 1e3:.3f} ms "
        f"(median {np.median(wall) * 1e3:.3f}) a call, processor time {min(cpu) * 1e3:.3f} ms, {repeats} calls"
    )
    if layers:
        console().print(_by_layer(executable.profile(inputs, repeats), executable.network.graph.macs))


def _by_layer(times: dict[str, np.ndarray], macs: int) -> Table:
    table = Table("part", "least ms", "median ms", "share")
    total = sum(float(found.min()) for found in times.values())
    for name, found in times.items():
        least = float(found.min())
        table.add_row(name, f"{least * 1e3:.4f}", f"{np.median(found) * 1e3:.4f}", f"{least / total:.1%}")
    table.add_row("all", f"{total * 1e3:.4f}", "", f"{2 * macs / total / 1e9:.0f} dense GFLOP/s")
    return table
