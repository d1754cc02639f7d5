"""SIGMA-like array: cases counted on paper, rounds and cycles against the cycle-exact reference, STONNE runs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_models import Target, target
from accel_models.pricing import replace_spec
from accel_models.references.inner_product import layer as reference
from accel_models.references.inner_product import loads
from accel_models.sparse.sigma import count_rounds, expected_rounds
from accel_models.validation.compare import compare, layer_graph
from workloads.errors import ConfigError
from workloads.graph import LayerGraph
from workloads.sparsity import WeightSparsity

FIXED = 1 + 4 + 8  # configure, pipeline, levels of the adder tree


@pytest.fixture(scope="module")
def machine() -> Target:
    return target("sigma_like_256")


def small(multipliers: int, ports: int, delivers_zeros: bool = True) -> Target:
    found = target("sigma_like_256", {"parameters.multipliers": multipliers, "parameters.ports": ports})
    changes = {"delivers_zeros": delivers_zeros}
    return replace_spec(found, parameters=found.spec.parameters.model_copy(update=changes))


def with_mask(graph: LayerGraph, mask: np.ndarray) -> LayerGraph:
    return graph.replace_layers({"layer": {"sparsity": WeightSparsity.from_mask(mask)}})


def cycles(machine: Target, text: str) -> float:
    return machine.simulate(layer_graph(text)).layer("layer").cycles


class TestCountedOnPaper:
    def test_a_dense_filter_fills_the_array(self, machine: Target) -> None:
        assert cycles(machine, "conv c=256 k=8 h=4") == 8 * (FIXED + 2 * 17)

    def test_two_filters_share_it(self, machine: Target) -> None:
        assert cycles(machine, "conv c=128 k=8 h=4") == 4 * (FIXED + 2 * 17)
        assert cycles(machine, "conv c=128 k=7 h=4") == 4 * (FIXED + 2 * 17)
        assert cycles(machine, "conv c=129 k=7 h=4") == 7 * (FIXED + 2 * 17)

    def test_a_longer_filter_is_folded(self, machine: Target) -> None:
        found = machine.facts(layer_graph("conv c=512 k=4 h=4"))
        assert found["rounds"][1] == 4 * 3  # 256, 255 and 1 weights
        assert machine.facts(layer_graph("conv c=511 k=4 h=4"))["rounds"][1] == 4 * 2

    def test_one_weight_needs_one_delivery_a_pixel(self, machine: Target) -> None:
        assert cycles(machine, "conv c=1 k=1 h=4") == FIXED + 17

    def test_groups_are_rounds_of_their_own(self, machine: Target) -> None:
        assert cycles(machine, "conv c=16 k=16 h=4 r=3 groups=16") == 16 * (FIXED + 2 * 17)

    def test_exact_masks_are_filled_filter_by_filter(self, machine: Target) -> None:
        mask = np.zeros((3, 256, 1, 1), bool)
        mask[0, :200] = mask[1, :100] = mask[2, :150] = True  # 200, then 100 + 150
        graph = with_mask(layer_graph("conv c=256 k=3 h=4"), mask)
        assert machine.facts(graph)["rounds"][1] == 2
        assert machine.simulate(graph).layer("layer").lost["useful"] == 450 * 16 / 256

    def test_traffic_and_energy_count_what_is_delivered(self, machine: Target) -> None:
        found = machine.simulate(layer_graph("conv c=256 k=8 h=4 inputs=0.5")).layer("layer")
        values = 256 * 8 * (1 + 16)  # zero inputs are delivered too
        assert found.traffic_bytes["sram"] == 2 * (values + 8 * 16)
        assert found.energy_j["mac"] == pytest.approx(machine.spec.energy_pj["mac"] * 1e-12 * 256 * 8 * 16)

    def test_skipping_zero_inputs_pays(self) -> None:
        delivers, skips = small(256, 128), small(256, 128, delivers_zeros=False)
        text = "conv c=256 k=8 h=16 inputs={}"
        assert cycles(skips, text.format(0.999999)) == pytest.approx(cycles(delivers, text.format(1)), rel=1e-2)
        assert cycles(skips, text.format(0.7)) < 0.9 * cycles(delivers, text.format(0.7))
        assert cycles(skips, text.format(0.1)) >= 8 * (FIXED + 257)  # a pixel a cycle


@given(st.lists(st.integers(0, 40), min_size=1, max_size=30), st.integers(2, 20), st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_counted_rounds_equal_the_reference(counts: list[int], multipliers: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = np.zeros((len(counts), 40))
    for row, count in zip(weight, counts, strict=True):
        row[rng.permutation(40)[:count]] = 1
    used, folds = count_rounds(np.array(counts), multipliers)
    found = loads(weight, multipliers)
    assert used.tolist() == [len(load.taps) for load in found]
    assert folds.tolist() == [load.taps[0] < 0 for load in found]


@pytest.mark.parametrize(
    ("filters", "length", "density"),
    [
        (64, 256, 0.2),
        (64, 256, 0.05),
        (64, 256, 0.99),
        (64, 576, 0.19),
        (128, 1152, 0.5),
        (200, 9, 0.5),
        (40, 300, 0.83),
    ],
)
def test_expected_rounds_over_masks(filters: int, length: int, density: float) -> None:
    rng = np.random.default_rng(0)
    drawn = [len(count_rounds(rng.binomial(length, density, filters), 256)[0]) for _ in range(300)]
    found, _ = expected_rounds(*(np.array([float(x)]) for x in (filters, length, density)), 256)
    assert found[0] == pytest.approx(np.mean(drawn), rel=0.02)


# ---- against the reference ------------------------------------------------------------------------------------------


def error(machine: Target, weight: np.ndarray, inputs: np.ndarray, channels: np.ndarray | None = None) -> float:
    """Of the formula with the mask (and the density of each channel), for K x L weights and (L, N) inputs."""
    numbers = machine.spec.parameters
    played = reference(
        weight, inputs, multipliers=numbers.multipliers, ports=numbers.ports, delivers_zeros=numbers.delivers_zeros
    )
    text = f"conv c={weight.shape[1]} k={len(weight)} h={inputs.shape[1]} w=1 inputs={(inputs != 0).mean()}"
    graph = with_mask(layer_graph(text), weight[:, :, None, None] != 0)
    if channels is not None:
        graph = graph.with_activation_density({"input": channels.tolist()})
    return machine.simulate(graph).layer("layer").cycles / played.cycles - 1


@given(
    st.sampled_from([(8, 4), (16, 16), (32, 16), (32, 8)]), st.integers(1, 30), st.integers(1, 80), st.integers(1, 20),
    st.floats(0.05, 1), st.integers(0, 2**32 - 1),
)  # fmt: skip
@settings(max_examples=30)
def test_real_deliveries_within_eight_percent(
    shape: tuple[int, int], k: int, length: int, pixels: int, density: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.random((k, length)) < density).astype(float)
    weight[0, 0] = 1.0  # at least one round
    assert abs(error(small(*shape), weight, np.ones((length, pixels)))) < 0.08


def drawn(rng: np.random.Generator, spread: bool) -> tuple[Target, np.ndarray, np.ndarray, np.ndarray]:
    """A machine, weights, inputs and the densities that the inputs were drawn with; filters and channels may differ."""
    multipliers = int(rng.choice([16, 32]))
    machine = small(multipliers, multipliers // int(rng.choice([1, 2, 4])), delivers_zeros=False)
    k, length, pixels = int(rng.integers(3, 25)), int(rng.integers(32, 80)), int(rng.integers(8, 30))
    density, share = rng.uniform(0.1, 1), rng.uniform(0.2, 1)
    rows = rng.beta(2, 2 / density - 2, (k, 1)) if spread else np.full((k, 1), density)
    taps = rng.beta(2, 2 / share - 2, (length, 1)) if spread else np.full((length, 1), share)
    weight = (rng.random((k, length)) < rows).astype(float)
    return machine, weight, (rng.random((length, pixels)) < taps).astype(float), taps[:, 0]


@pytest.mark.parametrize("spread", [False, True], ids=["even", "uneven"])
def test_two_sided_skipping_mean_three_percent_worst_eight(spread: bool) -> None:
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(30):
        machine, weight, inputs, taps = drawn(rng, spread)
        errors.append(error(machine, weight, inputs, taps))
    assert np.abs(errors).mean() < 0.03
    assert np.abs(errors).max() < 0.08
    assert abs(np.mean(errors)) < 0.02


def test_stonne_runs() -> None:
    errors = {item.row.id.removeprefix("stonne-sigma-"): item.error for item in compare("sigma_like_256")}
    wanted = {"64x64x256-0": -0.017, "64x64x256-80": -0.024, "64x64x256-95": 0.005, "64x784x576-80": 0.002}
    assert errors == pytest.approx(wanted, abs=2e-3)


@pytest.mark.parametrize(("name", "value"), [("ports", 100), ("multipliers", 300)])
def test_wrong_machines(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match="must be >= 2 and a multiple of ports"):
        target("sigma_like_256", {f"parameters.{name}": value})
