"""One call: what it prices is the graph of the model after the plan, what it measures is that model."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from accel_models import SimulationResult, target, targets
from codesign.budgets import show
from codesign.costs import METRICS, graph_costs
from codesign.evaluate import evaluate
from pruning.evaluation import accuracy
from pruning.plan import PruningPlan
from pruning.training import fit
from workloads.data import ImageData, load
from workloads.errors import CodesignError, PlanError
from workloads.lowering import lower
from workloads.models import build, example_input
from workloads.sparsity import WeightSparsity

EXAMPLE = (example_input("digits_cnn"),)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    """After one epoch: no longer constant."""
    found = build("digits_cnn")
    fit(found, load("digits", "train"), epochs=1, lr=0.1, device="cpu", progress=False)
    return found


@pytest.fixture(scope="module")
def images() -> ImageData:
    return load("digits", "heldout")


def half() -> PruningPlan:
    """Half the channels inside the first block, and half the weights of a layer of the second."""
    zeros = torch.arange(64 * 64 * 9).reshape(64, 64, 3, 3) % 2 > 0
    return PruningPlan(
        "digits_cnn",
        {"block1.conv1": tuple(range(16))},
        {"block1.conv1": 32},
        {"block2.conv2": WeightSparsity.from_mask(zeros.numpy())},
    )


@pytest.mark.parametrize("name", targets())
def test_dense(model: torch.nn.Module, name: str) -> None:
    machine = target(name)
    found = evaluate(model, machine, EXAMPLE, name="mine")
    graph = machine.native(lower(model, EXAMPLE, name="mine"))
    assert found.result == machine.simulate(graph)
    assert found.costs == graph_costs(found.result, graph)
    assert found.result.graph == "mine"
    assert tuple(found.costs) == METRICS
    assert min(found.costs.values()) > 0
    assert found.costs["latency"] == found.result.latency_s
    assert found.costs["macs"] == found.result.macs == graph.macs
    assert (found.accuracy, found.split) == (None, "")


@pytest.mark.parametrize("name", ["ideal", "ethos_u55_256", "eyeriss_v2", "snapdragon_855_cpu"])
def test_with_a_plan(model: torch.nn.Module, images: ImageData, name: str) -> None:
    machine, before = target(name), copy.deepcopy(model.state_dict())
    plan = half()
    small = plan.apply(model, EXAMPLE)
    dense, found = (evaluate(model, machine, EXAMPLE, plan=each, data=images) for each in (None, plan))
    assert found.result == machine.simulate(machine.native(lower(small, EXAMPLE)))
    assert all(found.costs[metric] < dense.costs[metric] for metric in METRICS)
    # 16 of 32 channels between two 3x3 layers on 8x8 pixels, and 18,432 of 36,864 weights of a layer on 4x4 pixels
    saved = 2 * 16 * 32 * 9 * 64 + 18_432 * 16
    assert dense.costs["macs"] - found.costs["macs"] == saved
    assert (dense.accuracy, found.accuracy) == (accuracy(model, images), accuracy(small, images))
    assert dense.accuracy != found.accuracy
    assert found.split == dense.split == "heldout"
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in before.items())


@pytest.mark.parametrize("name", targets())
def test_calibration_changes_what_skips_zero_activations_and_nothing_else(
    model: torch.nn.Module, images: ImageData, name: str
) -> None:
    calibration = (images.tensor(slice(0, 16)),)
    plain = evaluate(model, target(name), EXAMPLE, data=images)
    found = evaluate(model, target(name), EXAMPLE, data=images, calibration=calibration)
    assert (found.accuracy, found.costs["macs"], found.costs["size"]) == (
        plain.accuracy,
        plain.costs["macs"],
        plain.costs["size"],
    )
    if not target(name).family.sees_input_zeros():
        assert found.result == plain.result
        return
    assert found.result != plain.result
    assert found.costs["latency"] <= plain.costs["latency"]
    assert found.costs["energy"] <= plain.costs["energy"]
    assert name != "eyeriss_v2" or found.costs["latency"] < plain.costs["latency"]
    for before, after in zip(plain.result.layers, found.result.layers, strict=True):
        assert (before.name, before.macs, before.density) == (after.name, after.macs, after.density)
        assert after.cycles <= before.cycles
    assert found.result.layer("conv") == plain.result.layer("conv"), "the pictures themselves count as dense"


def test_prints_and_survives_json(model: torch.nn.Module, images: ImageData) -> None:
    machine = target("ethos_u55_256")
    found = evaluate(model, machine, EXAMPLE, data=images, name="mine")
    latency = show("latency", found.costs["latency"])
    assert str(found).startswith(f"mine on Arm Ethos-U55-256: latency {latency} (80% interval ")
    assert ", where the vendor's estimator (not silicon) would put it), energy " in str(found)
    assert f"accuracy {found.accuracy:.2%} (heldout, fp32); " in str(found)
    assert "accuracy not measured; " in str(evaluate(model, machine, EXAMPLE))
    data = json.loads(json.dumps(found.to_dict()))
    assert SimulationResult.from_dict(data["result"]) == found.result
    assert (data["costs"], data["accuracy"], data["split"]) == (found.costs, found.accuracy, "heldout")


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (PruningPlan("digits_cnn"), "nothing"),
        (PruningPlan("other", {"nowhere": (0,)}, {"nowhere": 2}), "nowhere"),
        (PruningPlan("other", {"block1.conv1": (0,)}, {"block1.conv1": 33}), "33"),
    ],
)
def test_a_plan_that_does_not_fit(model: torch.nn.Module, plan: PruningPlan, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        evaluate(model, target("ideal"), EXAMPLE, plan=plan)


def test_an_operator_that_cannot_be_lowered() -> None:
    class Sorted(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sort(dim=1).values

    with pytest.raises(CodesignError, match="sort"):
        evaluate(Sorted(), target("ideal"), (torch.zeros(1, 4),))
