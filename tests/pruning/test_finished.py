"""Finished models, cut or baked or both, are ordinary modules: whatever torch does with modules works on them."""

import copy
import io
import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruning import masks
from pruning.plan import magnitude_masks
from pruning.wiring import wire
from tests.pruning.cutting import as_plan, random_units
from tests.pruning.networks import example, network
from workloads.lowering import lower

WAYS = ("cut", "baked", "cut and baked")
KINDS = [(name, way) for name in ("Residual", "Depthwise", "Attention") for way in WAYS]


def finished(name: str, way: str) -> nn.Module:
    """In eval mode; half of the weights of the second layer are zero, or six of ten channels stay, or both."""
    model = network(name)
    wiring = wire(model, example())
    layer = [layer.name for layer in wiring.graph.layers if layer.weight][1]
    found = magnitude_masks(model, wiring.graph, {(layer, 0): (0.5, "weight")})
    zeros = {layer: found[layer, 0]} if "baked" in way else {}
    kept = random_units(wiring, np.random.default_rng(0)) if "cut" in way else {}
    return as_plan(wiring, kept, masks=zeros).apply(model, example())


@pytest.fixture(params=KINDS, ids=" ".join)
def model(request):
    return finished(*request.param)


def assert_same(twin: nn.Module, model: nn.Module) -> None:
    """Another module with the same numbers, which answers the same."""
    assert twin is not model
    assert {name: tuple(x.shape) for name, x in twin.state_dict().items()} == {
        name: tuple(x.shape) for name, x in model.state_dict().items()
    }
    assert masks.masks_of(twin).keys() == masks.masks_of(model).keys()
    with torch.no_grad():
        assert torch.equal(twin(*example()), model(*example()))


def test_copied_pickled_and_saved(model):
    stored = io.BytesIO()
    torch.save(model, stored)
    stored.seek(0)
    assert_same(copy.deepcopy(model), model)
    assert_same(pickle.loads(pickle.dumps(model)), model)
    assert_same(torch.load(stored, weights_only=False), model)


def test_a_state_dict_is_loaded_without_running_code(model):
    stored, twin = io.BytesIO(), copy.deepcopy(model)
    torch.save(model.state_dict(), stored)
    stored.seek(0)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    twin.load_state_dict(torch.load(stored, weights_only=True))
    assert_same(twin, model)


def test_compiled_it_answers_and_trains_the_same(model):
    torch.compiler.reset()
    twin, compiled = copy.deepcopy(model), torch.compile(model, backend="aot_eager", fullgraph=True)
    for net in (compiled, twin):
        net(*example()).square().sum().backward()
    for (name, a), (_, b) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's own compiler needs a C++ compiler")
def test_compiled_to_machine_code_it_answers_the_same():
    torch.compiler.reset()
    model = finished("Residual", "cut and baked")
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model)(*example()), model(*example()))


def test_exported_it_answers_the_same(model):
    program = torch.export.export(model, example())
    with torch.no_grad():
        torch.testing.assert_close(program.module()(*example()), model(*example()))


def test_it_can_be_lowered_and_cut_again(model):
    """Pruning goes on from what it left: one more unit of the first group, zeros as they were."""
    wiring = wire(model, example())
    name = next(name for name in wiring.prunable if wiring.analysis.group(name).size > 2)
    smaller = as_plan(wiring, {name: np.arange(1, wiring.analysis.group(name).size)}).apply(model, example())
    assert lower(smaller, example()).macs < wiring.graph.macs
    assert masks.masks_of(smaller).keys() == masks.masks_of(model).keys()


def train_in_one_of_two_processes(rank: int, folder: str) -> None:
    """Three steps on pictures of its own; the weights go to a file."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = finished("Residual", "cut and baked").train()
    net = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=1e-3)
    masks.keep_masks(net, optimizer)
    for step in range(3):
        (x,) = example(8, seed=2 * step + rank)
        optimizer.zero_grad()
        F.cross_entropy(net(x), torch.arange(8) % 5).backward()
        optimizer.step()
    torch.save(model.state_dict(), Path(folder, f"{rank}.pt"))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_it_together(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.multiprocessing.spawn(train_in_one_of_two_processes, (str(tmp_path),), nprocs=2)
    before = finished("Residual", "cut and baked")
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    (name,) = masks.masks_of(before)
    trained = [key for key, _ in before.named_parameters()]
    assert all(torch.equal(first[key], second[key]) for key in trained), "both ranks end with the same weights"
    assert not any(torch.equal(first[key], before.state_dict()[key]) for key in trained), "all of them were trained"
    mask = masks.masks_of(before)[name]
    assert torch.equal(first[name + masks.SUFFIX], mask)
    assert torch.equal(first[name] != 0, mask), "the zeros stay, and no others come"
