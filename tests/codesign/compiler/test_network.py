"""Whole networks: equal to the interpreter, fused where they can be, in as little memory as is alive at once."""

import copy
import os
import pickle
import signal
import threading
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import codesign
from codesign.compiler import compile_network, load_compiled
from codesign.compiler.arena import Life, lives, offsets
from codesign.compiler.isa import find_isa
from codesign.compiler.network import InTorch, Network, build
from codesign.compiler.program import Stage
from codesign.compiler.steps import steps_of
from tests.codesign.compiler.native import HERE
from tests.workloads.lowered import Watched
from workloads.errors import ConfigError, LoweringError, ShapeError
from workloads.lowering import lower_with_weights
from workloads.models import build as zoo
from workloads.models import example_input
from workloads.reference import run

TOLERANCE = 1e-5
SMALL = ["resnet20", "resnet8", "lenet5", "digits_cnn", "ds_cnn", "ssd_digits", "vgg16_cifar", "mobilenet_v1_0.25_128"]


def lively(name: str) -> nn.Module:
    """A zoo model whose batch norms do something."""
    model = zoo(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


def worst(model: nn.Module, x: Tensor, isa: str = "", threads: int = 1) -> float:
    """Of all outputs, how far the compiled network's lie from the interpreter's, over the largest number."""
    graph, weights = lower_with_weights(model, x)
    found, expected = compile_network((graph, weights), isa=isa, threads=threads)(x.numpy()), run(graph, weights, x)
    pairs = zip(found, expected, strict=True) if isinstance(expected, tuple) else [(found, expected)]
    return max(float(np.abs(mine - theirs).max() / np.abs(theirs).max()) for mine, theirs in pairs)


def network_of(model: nn.Module, x: Tensor, isa: str = "", threads: int = 1) -> Network:
    return build(*lower_with_weights(model, x), find_isa(isa), threads)


@pytest.mark.parametrize("name", SMALL)
def test_zoo_models_equal_the_interpreter(name: str) -> None:
    assert worst(lively(name), example_input(name, 2)) <= TOLERANCE


@pytest.mark.parametrize("isa", HERE)
def test_a_residual_network_on_every_instruction_set(isa: str) -> None:
    assert worst(lively("resnet20"), example_input("resnet20"), isa) <= TOLERANCE
    network = network_of(lively("resnet20"), example_input("resnet20"), isa)
    assert not any(isinstance(part, InTorch) for part in network.parts)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v2", "squeezenet1_1", "efficientnet_b0", "mixnet_s", "alexnet"]
)
def test_large_models_equal_the_interpreter(name: str) -> None:
    assert worst(lively(name), example_input(name)) <= TOLERANCE


def test_batches_ride_in_lanes() -> None:
    for batch in (3, 16, 33):
        assert worst(lively("resnet8"), example_input("resnet8", batch), threads=1 + (batch == 16)) <= TOLERANCE


def test_shortcuts_and_additions_cost_no_step() -> None:
    graph, weights = lower_with_weights(zoo("resnet20"), example_input("resnet20"))
    steps = steps_of(graph)
    assert len(steps) == 1 + 18 + 2  # convolutions, the mean, the classifier
    strided = [step.residual for step in steps if step.residual is not None and step.residual.stride == (2, 2)]
    assert [(found.first, found.channels) for found in strided] == [(8, 16), (16, 32)]
    network = build(graph, weights, find_isa())
    assert network.arena < network.naive / 4


def test_channels_that_nobody_reads_are_neither_computed_nor_packed() -> None:
    """Counts that no vector divides: filters in lanes, of which whole vectors are computed, stay out of it."""
    model = nn.Sequential(nn.Conv2d(2, 9, 3, padding=1), nn.ReLU(), nn.Conv2d(9, 5, 3, padding=1)).eval()
    first, second = model[0], model[2]
    assert isinstance(first, nn.Conv2d)
    assert isinstance(second, nn.Conv2d)
    with torch.no_grad():
        second.weight[:, [1, 5]] = 0
        first.weight[:, 1] = 0
    for side in (4, 30):  # channel by channel, and filter by filter
        assert worst(model, torch.randn(1, 2, side, side)) <= TOLERANCE
        network = network_of(model, torch.randn(1, 2, side, side))
        a, b = (
            part.record["pattern"] for part in network.parts if isinstance(part, Stage) and "pattern" in part.record
        )
        assert (a["input_channels_read"], a["filters_computed"]) == (1, 7)
        assert (b["input_channels_read"], b["filters_computed"]) == (7, 5)


class Block(nn.Module):
    """A residual block on a small map, whose sum is read again."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, channels, 3, 2, 1)
        self.b = nn.Conv2d(channels, channels, 3, padding=1)
        self.c = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.a(x))
        b = torch.relu(self.c(torch.relu(self.b(a))) + a)
        return torch.relu(self.c(b) + b)


@pytest.mark.parametrize("channels", [16, 20, 32])
@pytest.mark.parametrize("threads", [1, 2])
def test_residuals_of_small_maps(channels: int, threads: int) -> None:
    assert worst(Block(channels).eval(), torch.randn(1, 3, 13, 9), threads=threads) <= TOLERANCE
    network = network_of(Block(channels).eval(), torch.randn(1, 3, 13, 9), threads=threads)
    orders = {part.record["tuning"]["order"] for part in network.parts if "tuning" in getattr(part, "record", {})}
    assert channels % find_isa().lanes or orders == {"lanes"}


class PartAdded(nn.Module):
    """Adds some of the channels, from one on, and zeros for the rest."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(16, 16, 3, padding=1)
        self.b = nn.Conv2d(16, 16, 3, padding=1)
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.a(x))
        return torch.relu(self.b(a) + nn.functional.pad(a[:, self.first : self.first + 12], (0, 0, 0, 0, 0, 4)))


@pytest.mark.parametrize("first", [0, 4])
@pytest.mark.parametrize("isa", HERE)
def test_residuals_that_are_a_part_of_a_small_map(first: int, isa: str) -> None:
    assert worst(PartAdded(first).eval(), torch.randn(1, 16, 4, 4), isa=isa) <= TOLERANCE


class Oddities(nn.Module):
    """What the fusing must not get wrong: a tensor read twice, an addition of itself, scaled, a pool read by two."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.b = nn.Conv2d(6, 6, 3, padding=1)
        self.c = nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = torch.relu(self.a(x))
        b = self.b(a) + a  # the residual is the input of the convolution: not in place
        c = self.c(b) + b
        d = torch.nn.functional.max_pool2d(self.b(c), 2)
        e = torch.nn.functional.avg_pool2d(c, 3, 2, 1, count_include_pad=False)
        f = torch.cat([d, e[:, :, : d.shape[2], : d.shape[3]]], 1) * 0.5
        return (c - 2 * a).flatten(1), f.mean((2, 3))


class Sliced(nn.Module):
    """A shortcut that takes the last channels of a map, every second pixel of it."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 4, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        return self.b(a) + a[:, 4:, ::2, ::2]


class Pooled(nn.Module):
    """Negative numbers pooled, with padding and without; what one pooling reads is an answer too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a = self.conv(x)
        return a, F.max_pool2d(a, 2), F.max_pool2d(F.hardtanh(a, -2.0, -1.0), 3, 2, 1)


@pytest.mark.parametrize("model", [Oddities, Sliced, Pooled])
@pytest.mark.parametrize("side", [3, 9, 12, 13, 40])
def test_odd_networks(model: type[nn.Module], side: int) -> None:
    assert worst(model().eval(), torch.randn(2, 3, side, side)) <= TOLERANCE


class Elementwise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.sigmoid(x) * x, F.elu(x) - torch.tanh(x)], 1)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_share_vectors(threads: int) -> None:
    for side in (1, 9, 40):
        assert worst(Elementwise().eval(), torch.randn(2, 3, side, side), threads=threads) <= TOLERANCE


class Renamed(nn.Module):
    """An input that is read as features long after a convolution has read it as a map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.linear = nn.Linear(144, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(self.conv(self.conv(self.conv(x))).flatten(1)), torch.relu(x.flatten(1))


@pytest.mark.parametrize("isa", HERE)
def test_an_input_that_is_renamed_later_keeps_its_memory(isa: str) -> None:
    assert worst(Renamed().eval(), torch.randn(1, 4, 6, 6), isa) <= TOLERANCE


def test_a_buffer_that_is_only_renamed_is_there_from_the_start() -> None:
    found = lives(["a", "x"], [["x"], ["x"]], dict.fromkeys("xa", 1), ["a"])
    assert (found["x"].first, found["x"].last) == (-1, 1)


class TwoLayouts(nn.Module):
    """`z` is wanted in two layouts that have one grid and other blocks: 17 pixels and 15 in four lanes."""

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Conv1d(4, 4, 3, padding=1)
        self.smaller = nn.Conv1d(4, 4, 3)

    def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.smaller(self.same(x)) * z, self.same(z) * z


def test_a_tensor_can_be_moved_to_two_layouts_of_one_grid() -> None:
    x, z = torch.randn(1, 4, 17), torch.randn(1, 4, 15)
    graph, weights = lower_with_weights(TwoLayouts().eval(), [x, z])
    for isa in HERE:
        found = compile_network((graph, weights), isa=isa)(x.numpy(), z.numpy())
        for mine, theirs in zip(found, run(graph, weights, x, z), strict=True):
            assert np.abs(mine - theirs).max() <= 1e-5 * np.abs(theirs).max()


class Sum(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


@pytest.mark.parametrize("shapes", [((2, 3), (2, 3, 1, 1)), ((3, 1), (3,)), ((2, 2, 2), (2, 2, 2, 1))])
def test_sums_that_broadcast_are_those_of_torch(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    x, y = (torch.randn(shape) for shape in shapes)
    assert torch.equal(compile_network(Sum())(x, y), x + y)


@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_larger_and_smaller_ones(isa: str, batch: int) -> None:
    class Between(nn.Module):
        def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
            return torch.minimum(torch.maximum(x, y).relu(), z)

    inputs = [torch.randn(batch, 3, 5, 7) for _ in range(3)]
    inputs[1][0, 0, 0] = torch.nan
    compiled = compile_network(Between(), isa=isa)
    assert torch.equal(compiled(*inputs).nan_to_num(9.0), Between()(*inputs).nan_to_num(9.0))
    assert all(isinstance(part, Stage) for part in compiled.first.network.parts)


class Placed(nn.Module):
    """Adds a parameter, one for all samples, to what a convolution makes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.place = nn.Conv2d(3, 8, 3, padding=1), nn.Parameter(torch.randn(1, 8, 12, 12))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) + self.place)


class Joined(Placed):
    """Joins it to the channels instead."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(x), self.place.expand(len(x), -1, -1, -1)], 1)


@pytest.mark.parametrize("kind", [Placed, Joined])
@pytest.mark.parametrize("batch", [1, 4, 512])
def test_a_parameter_is_there_for_every_sample(kind: type[nn.Module], batch: int) -> None:
    model, x = kind().eval(), torch.randn(batch, 3, 12, 12)
    compiled = compile_network(lower_with_weights(model, x[:1]))
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(compiled(x.numpy())), model(x), atol=1e-5)


class Scaled(nn.Module):
    """What a layer makes, with a parameter and a buffer that are a single number each."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.gain = layer, nn.Parameter(torch.tensor(0.7))
        self.register_buffer("heat", torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1, keepdim=True) + self.gain.exp() * self.layer(x) / self.heat


@pytest.mark.parametrize(("layer", "shape"), [(nn.Linear(8, 4), (8,)), (nn.Conv2d(3, 5, 3, padding=1), (3, 7, 7))])
@pytest.mark.parametrize("batch", [1, 3])
def test_stored_numbers_without_axes(layer: nn.Module, shape: tuple[int, ...], batch: int) -> None:
    model, x = Scaled(layer).eval(), torch.randn(batch, *shape)
    saved = compile_network(lower_with_weights(model, x[:1]))
    with torch.no_grad():
        assert torch.allclose(compile_network(model)(x), model(x), atol=1e-6)
        assert torch.allclose(saved(x), model(x), atol=1e-6)


class Centred(nn.Module):
    """Over its mean, and less that of its means: numbers without axes, made of what the layer answers."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return y * y.mean() - y.mean(-1).mean()


@pytest.mark.parametrize(("layer", "shape"), [(nn.Linear(8, 4), (8,)), (nn.Conv2d(3, 5, 3, padding=1), (3, 7, 7))])
@pytest.mark.parametrize("batch", [1, 3])
def test_numbers_without_axes_in_between(layer: nn.Module, shape: tuple[int, ...], batch: int) -> None:
    model, x = Centred(layer).eval(), torch.randn(batch, *shape)
    with torch.no_grad():
        assert torch.allclose(compile_network(model)(x), model(x), atol=1e-6)
    with pytest.raises(ShapeError):  # the mean of all samples is another one for more of them
        compile_network(lower_with_weights(model, x))(torch.randn(2, *shape).numpy())


@pytest.mark.parametrize("isa", HERE)
def test_nothing_of_a_call_is_left_for_the_next(isa: str) -> None:
    """Kernels read no memory that was not written in their own call, not even to multiply it by zero."""
    wide = nn.Conv2d(4, 24, (1, 13), padding=(0, 12), dilation=(1, 2))
    wide.weight.data *= torch.rand_like(wide.weight) < 0.3
    model, x = nn.Sequential(wide, nn.Conv2d(24, 4, 3, padding=1)).eval(), torch.randn(1, 4, 47, 47)
    compiled = compile_network(model, x, isa=isa)
    expected = compiled(x)
    compiled(torch.full_like(x, torch.nan))
    assert torch.equal(compiled(x), expected)


class Deaf(nn.Module):
    """The second input is not read, nor is what `a` makes: the weights of `b` are zero."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 3, 3, padding=1)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor, unused: Tensor) -> Tensor:
        return self.b(self.a(x))


@pytest.mark.parametrize("side", [3, 30])  # channel by channel, and filter by filter
def test_what_nobody_reads_need_not_be_there(side: int) -> None:
    model = Deaf().eval()
    x = torch.randn(2, 2, side, side)
    with torch.no_grad():
        assert torch.equal(compile_network(model)(x, torch.randn(2, 1)), model(x, x))


class WithUnknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.norm = nn.GroupNorm(2, 4)
        self.after = nn.Conv2d(4, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(torch.softmax(self.norm(self.conv(x)), 1))


class Ends(nn.Module):
    """Softmax and its logarithm over the last axis, of features and of maps."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.softmax(x.flatten(1), 1), torch.log_softmax(3 * x, -1)


@pytest.mark.parametrize("isa", HERE)
def test_softmax(isa: str) -> None:
    assert worst(Ends(), 30 * torch.randn(3, 2, 5, 7), isa) <= TOLERANCE
    network = network_of(Ends(), 30 * torch.randn(3, 2, 5, 7), isa)
    assert "softmax" not in {part.layer.op.value for part in network.parts if isinstance(part, InTorch)}


def test_what_is_not_compiled_runs_in_torch() -> None:
    assert worst(WithUnknown().eval(), torch.randn(1, 2, 9, 9), threads=2) <= TOLERANCE
    network = network_of(WithUnknown().eval(), torch.randn(1, 2, 9, 9), threads=2)
    assert [part.layer.name for part in network.parts if isinstance(part, InTorch)] == ["norm", "softmax"]
    assert any(isinstance(part, Stage) for part in network.parts)


class Strange(nn.Module):
    """A convolution between an operator that no table has and another of several outputs."""

    def __init__(self, is_sorted: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.is_sorted = is_sorted

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(torch.cumsum(x, 2))
        return torch.sort(x, 1)[0] if self.is_sorted else torch.sin(x)


def test_operators_that_no_table_has_run_in_torch() -> None:
    model, x = Strange(is_sorted=False).eval(), torch.randn(2, 2, 7, 7)
    compiled = compile_network(model, x)
    with torch.no_grad():
        assert torch.allclose(compiled(x), model(x), atol=1e-6)
    outside = [part.layer.name for part in compiled.first.network.parts if isinstance(part, InTorch)]
    assert outside == ["cumsum", "sin"]
    with pytest.raises(LoweringError, match=r"layer 'sort': aten\.sort\.default is not compiled, and torch runs such"):
        compile_network(Strange(is_sorted=True).eval(), x)


class Products(nn.Module):
    """What its two convolutions have in common, by an operator of text and a list of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 3, 3), nn.Conv2d(2, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,nkhw->nck", self.a(x), self.b(x))


@pytest.mark.parametrize("batch", [1, 3])
def test_operators_of_text_and_lists_run_in_torch(batch: int, tmp_path: Path) -> None:
    model, x = Products().eval(), torch.randn(batch, 2, 7, 7)
    compiled = compile_network(model, x)
    compiled.save(tmp_path / "saved")
    with torch.no_grad():
        assert torch.allclose(compiled(x), model(x), atol=1e-5)
        assert torch.equal(load_compiled(tmp_path / "saved")(x), compiled(x))
    outside = [part.layer.name for part in compiled.first.network.parts if isinstance(part, InTorch)]
    assert outside == ["einsum"]


def test_calls_take_arrays_and_tensors_and_any_batch() -> None:
    model = lively("digits_cnn")
    compiled = codesign.compile(model)
    x = example_input("digits_cnn", 3)
    with torch.no_grad():
        expected = model(x)
    assert torch.allclose(compiled(x), expected, atol=1e-5)
    assert isinstance(compiled(x.numpy()), np.ndarray)
    assert torch.allclose(compiled(x[:1]), expected[:1], atol=1e-5)


def test_a_module_that_changes_later_is_not_followed(tmp_path: Path) -> None:
    model, x = lively("digits_cnn"), example_input("digits_cnn", 2)
    compiled = compile_network(model, x)
    expected = compiled(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.allclose(compiled(x[:1]), expected[:1], atol=1e-5)  # code that is made now
    compiled.save(tmp_path / "net")
    assert torch.equal(load_compiled(tmp_path / "net")(x), expected)


@pytest.mark.parametrize("threads", [1, 3])
def test_several_threads_may_call_at_once(threads: int) -> None:
    model = lively("resnet8")
    compiled = compile_network(model, threads=threads)
    inputs = [torch.randn(1, *example_input("resnet8").shape[1:]) for _ in range(8)]
    expected = [compiled(x) for x in inputs]
    wrong: list[int] = []

    def call(i: int) -> None:
        for _ in range(20):
            if not torch.equal(compiled(inputs[i]), expected[i]):
                wrong.append(i)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(len(inputs))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_networks_are_compiled_in_several_threads() -> None:
    models = [nn.Sequential(nn.Conv2d(3, k, 3), nn.SiLU(), nn.Conv2d(k, k, 3)).eval() for k in (4, 8)]
    compiled = [codesign.compile(model) for model in models]

    def call(i: int) -> list[Tensor]:
        return [compiled[i](torch.ones(1, 3, side, side)) for side in range(5, 9)]

    with ThreadPoolExecutor(2) as threads, torch.no_grad():
        for i, found in enumerate(threads.map(call, range(2))):
            for side, y in zip(range(5, 9), found, strict=True):
                assert torch.allclose(y, models[i](torch.ones(1, 3, side, side)), atol=1e-5)


class Recorder(Executor):
    """Starts a thread for whatever it is given, slowly, and remembers who gave it."""

    def __init__(self) -> None:
        self.callers: list[int] = []

    def submit(self, fn, /, *args, **kwargs):  # type: ignore[no-untyped-def]
        self.callers.append(threading.get_ident())
        time.sleep(0.002)
        found: Future[object] = Future()
        threading.Thread(target=lambda: found.set_result(fn(*args, **kwargs))).start()
        return found


def test_callers_never_share_the_workers_so_that_all_wait() -> None:
    compiled, x = compile_network(lively("digits_cnn"), threads=3), example_input("digits_cnn")
    executable = compiled.for_shapes(tuple(x.shape))
    recorder = Recorder()
    executable._pools = {os.getpid(): recorder}  # type: ignore[dict-item]
    callers = [threading.Thread(target=lambda: [compiled(x) for _ in range(5)]) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    pairs = zip(recorder.callers[::2], recorder.callers[1::2], strict=True)
    assert len(recorder.callers) == 30
    assert all(first == second for first, second in pairs)


def test_no_module_is_called_while_another_thread_traces() -> None:
    Watched.open = []
    compile_network(Watched(6, 4, 1), torch.zeros(1, 6, 4, 4))
    assert len(Watched.open) > 1
    assert not any(Watched.open)


class Stingy(ThreadPoolExecutor):
    """Has one worker to give, then, once, an end of all; then as many as are wanted."""

    def __init__(self, end: BaseException) -> None:
        super().__init__(2)
        self.ends: list[BaseException | None] = [None, end]
        self.futures: list[Future[object]] = []

    def submit(self, fn, /, *args, **kwargs):  # type: ignore[no-untyped-def]
        if self.ends and (end := self.ends.pop(0)):
            raise end
        self.futures.append(super().submit(fn, *args, **kwargs))
        return self.futures[-1]


@pytest.mark.parametrize("end", [KeyboardInterrupt(), RuntimeError("can't start new thread")])
def test_an_interrupted_call_leaves_no_thread_waiting(end: BaseException) -> None:
    compiled, x = compile_network(lively("digits_cnn"), threads=3), example_input("digits_cnn")
    executable = compiled.for_shapes(tuple(x.shape))
    executable._pools = {os.getpid(): (pool := Stingy(end))}
    with pytest.raises(type(end)):
        compiled(x)
    assert len(pool.futures) == 1
    pool.futures[0].result(timeout=20)  # waits no longer
    assert torch.equal(compiled(x), compile_network(compiled.lowered, threads=3)(x))


def test_a_forked_process_has_threads_of_its_own() -> None:
    compiled, x = compile_network(lively("digits_cnn"), threads=2), example_input("digits_cnn")
    expected = compiled(x)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(0 if torch.equal(compiled(x), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_profiles_name_every_part() -> None:
    model, x = WithUnknown().eval(), torch.randn(1, 2, 9, 9)
    for threads in (1, 2):
        executable = compile_network(model, threads=threads).for_shapes(tuple(x.shape))
        found = executable.profile([x.numpy()], repeats=3)
        assert {"conv", "norm", "softmax", "after"} <= set(found)
        assert all(len(times) == 3 and (times > 0).all() for times in found.values())


def test_buffers_that_live_together_lie_apart() -> None:
    rng = np.random.default_rng(0)
    found = {}
    for i in range(40):
        first = int(rng.integers(30))
        found[str(i)] = Life(first, first + int(rng.integers(8)), int(rng.integers(1, 1000)))
    placed, size = offsets(found)
    for a, life in found.items():
        assert placed[a] + life.size <= size
        for b, other in found.items():
            if a < b and life.first <= other.last and other.first <= life.last:
                assert placed[a] + life.size <= placed[b] or placed[b] + other.size <= placed[a]
    assert size < sum(life.size for life in found.values())


def test_lives_by_hand() -> None:
    found = lives(["a", "b", "c"], [["x"], ["a"], ["a", "b"]], dict.fromkeys("xabc", 1), ["c"])
    assert {name: (life.first, life.last) for name, life in found.items()} == {
        "x": (-1, 0), "a": (0, 2), "b": (1, 2), "c": (2, 3),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda c: c(torch.zeros(1, 3, 32, 32, dtype=torch.float64)),
            ShapeError,
            "input 0 is float64, must be float32",
        ),
        (
            lambda c: c(torch.zeros(1, 3, 32, 32, dtype=torch.bfloat16)),
            ShapeError,
            "input 0 is bfloat16, must be float32",
        ),
        (pickle.dumps, TypeError, r"cannot be copied or pickled; save\(\) keeps it"),
        (copy.deepcopy, TypeError, r"cannot be copied or pickled; save\(\) keeps it"),
        (lambda c: c(torch.zeros(1, 3, 32, 32).to_sparse()), ShapeError, "input 0 is of layout sparse_coo, must be a"),
        (lambda c: c(torch.zeros(1, 3, 32, 32, device="meta")), ShapeError, "input 0 is on the meta device, must be a"),
        (lambda c: c.__class__(c._network, threads=2.5), ConfigError, r"threads is 2.5, must be a whole number"),
        (lambda c: c(torch.zeros(1, 3, 31, 32)), ShapeError, r"shapes \(1, 3, 31, 32\), the network takes \(1, 3, 32"),
        (lambda c: c(), ShapeError, "inputs have shapes none"),
        (
            lambda c: c.__class__(c._network, threads=2000),
            ConfigError,
            r"threads is 2000, must be a whole number of 1\.\.\d+",
        ),
    ],
)
def test_bad_inputs_end_in_one_line(call, error, message) -> None:  # type: ignore[no-untyped-def]
    compiled = compile_network(lower_with_weights(zoo("resnet8"), example_input("resnet8")))
    with pytest.raises(error, match=message):
        call(compiled)


@pytest.mark.parametrize("inputs", [(torch.zeros(1, 5, 8, 8),), (torch.zeros(8),), ()])
def test_a_module_that_does_not_take_the_inputs_says_so(inputs: tuple[Tensor, ...], capfd) -> None:  # type: ignore[no-untyped-def]
    compiled = compile_network(zoo("digits_cnn"), example_input("digits_cnn"))
    with pytest.raises(ShapeError, match=r"inputs have shapes .*, which the module does not take: \S"):
        compiled(*inputs)
    assert capfd.readouterr() == ("", "")


def test_another_default_type_changes_nothing() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert compile_network(zoo("digits_cnn").float())(torch.zeros(1, 1, 8, 8, dtype=torch.float32)).shape == (1, 10)
    finally:
        torch.set_default_dtype(torch.float32)


def test_bad_choices_end_in_one_line() -> None:
    model = zoo("digits_cnn")
    with pytest.raises(ConfigError, match=r"threads is 0, must be a whole number of 1\.\.\d+"):
        compile_network(model, threads=0)
    with pytest.raises(ConfigError, match="unknown instruction set 'neon'"):
        compile_network(model, isa="neon")
    with pytest.raises(TypeError, match="network is of type int, must be a module, or a graph with its weights"):
        compile_network(3)  # type: ignore[arg-type]
