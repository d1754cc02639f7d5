"""EIE: cases counted on paper, the formula against the cycle-exact reference, and the published layers.

Published: Han et al., ISCA 2016, Tables III to V. Real masks: a sparse MobileNet (Sparseloop artifact) and weights of a
ResNet-20 pruned by magnitude.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_models import Target, target
from accel_models.references.eie import Compressed, product
from accel_models.sparse.eie import inside_share
from accel_models.validation.compare import compare, layer_graph
from workloads.errors import ConfigError
from workloads.graph import LayerGraph
from workloads.sparsity import WeightSparsity

PIPELINE = 4


@pytest.fixture(scope="module")
def machine() -> Target:
    return target("eie")


def small(pes: int, **numbers: int) -> Target:
    return target("eie", {"parameters.pes": pes, **{f"parameters.{name}": value for name, value in numbers.items()}})


def with_mask(graph: LayerGraph, mask: np.ndarray, channels: np.ndarray) -> LayerGraph:
    changes = {"layer": {"sparsity": WeightSparsity.from_mask(mask)}, "input": {"activation_density": tuple(channels)}}
    return graph.replace_layers(changes)


def cycles(machine: Target, text: str) -> float:
    return machine.simulate(layer_graph(text)).layer("layer").cycles


class TestCountedOnPaper:
    def test_dense_linear_layer(self, machine: Target) -> None:
        assert cycles(machine, "linear c=10 k=64") == 10 + PIPELINE  # one row a PE
        assert cycles(machine, "linear c=10 k=65") == 20 + PIPELINE  # PE 0 has two
        assert cycles(machine, "linear c=10 k=128 inputs=0.5") == 10 + PIPELINE  # five broadcasts

    def test_more_rows_than_sums_take_two_parts(self, machine: Target) -> None:
        assert cycles(machine, "linear c=10 k=4096") == 640 + PIPELINE
        assert cycles(machine, "linear c=10 k=4224") == 2 * (330 + PIPELINE)  # parts of 2112 = 33 x 64 rows

    def test_pointwise_convolution_is_a_product_a_pixel(self, machine: Target) -> None:
        assert cycles(machine, "conv c=32 k=128 h=7") == 49 * (64 + PIPELINE)

    def test_halo_zeros_are_not_broadcast(self, machine: Target) -> None:
        # 3x3 on 4x4: 100 of the 144 inputs under the kernels are real
        assert cycles(machine, "conv c=8 k=64 h=4 r=3") == pytest.approx(8 * 100 + 16 * PIPELINE)
        assert cycles(machine, "conv c=8 k=64 h=4 r=3 pad=valid") == pytest.approx(8 * 36 + 4 * PIPELINE)

    def test_a_slice_of_one_weight_gains_nothing_from_zeros(self, machine: Target) -> None:
        assert cycles(machine, "linear c=100 k=64 density=0.1") == 100 + PIPELINE
        depthwise = "conv c=128 k=128 h=8 groups=128 r=3"
        assert cycles(machine, f"{depthwise} density=0.3") == cycles(machine, depthwise)

    def test_exact_masks_equal_densities_of_one_and_of_nothing_to_gain(self, machine: Target) -> None:
        graph = layer_graph("linear c=30 k=640")
        full = with_mask(graph, np.ones((640, 30, 1, 1), bool), np.ones(30))
        assert machine.simulate(full).cycles == machine.simulate(graph).cycles == 300 + PIPELINE

    def test_stored_entries_count_padding(self) -> None:
        mask = np.zeros((17, 1, 1, 1), bool)
        mask[16] = True
        graph = with_mask(layer_graph("linear c=1 k=17"), mask, np.ones(1))
        found = small(1).facts(graph)
        assert found["stored_entries"][1] == found["theoretical_cycles"][1] == 2
        assert small(1).simulate(graph).layer("layer").lost["useful"] == 1

    def test_groups_are_blocks(self) -> None:
        """Two groups of 20 rows in 10 PEs: each column has two weights a PE, whichever group it is of."""
        assert cycles(small(10), "conv c=6 k=40 h=1 groups=2") == 12 + PIPELINE
        mask = np.ones((40, 3, 1, 1), bool)
        mask[:20] = False  # the first group is empty
        graph = with_mask(layer_graph("conv c=6 k=40 h=1 groups=2"), mask, np.ones(6))
        assert small(10).simulate(graph).layer("layer").cycles == 3 * 1 + 3 * 2 + PIPELINE


class TestMemories:
    def test_a_layer_that_fits_needs_no_dram_for_weights(self, machine: Target) -> None:
        fits = machine.simulate(layer_graph("linear c=4096 k=2048")).layer("layer")  # 8 MB of entries
        assert fits.kernel == "resident"
        assert fits.traffic_bytes["dram"] == 0

    def test_a_larger_one_streams_all_entries(self, machine: Target) -> None:
        large = machine.simulate(layer_graph("linear c=4096 k=4096")).layer("layer")
        assert large.kernel == "streamed"
        assert large.traffic_bytes["dram"] == 4096 * 4096
        assert large.bound == "dram"
        assert large.cycles > 4096 * 4096 / 16

    def test_large_feature_maps_live_in_dram(self, machine: Target) -> None:
        found = machine.simulate(layer_graph("conv c=64 k=64 h=56")).layer("layer")
        assert found.traffic_bytes["dram"] == 2 * 2 * 64 * 56 * 56  # in and out, 16 bits each

    def test_words_of_eight_entries(self, machine: Target) -> None:
        """One full word a slice is read as 1 + 7/8 words on average, since slices begin anywhere."""
        found = machine.simulate(layer_graph("linear c=10 k=512")).layer("layer")
        assert found.traffic_bytes["weight_sram"] == pytest.approx(10 * 64 * 15 / 8 * 8)
        assert found.traffic_bytes["pointer_sram"] == 10 * 64 * 4


def test_halo_of_strides_and_dilation() -> None:
    for text, p, r, stride, halo, size in (
        ("conv c=1 k=1 h=7 r=3 stride=2", 4, 3, 2, 1, 7),
        ("conv c=1 k=1 h=14 r=5", 14, 5, 1, 2, 14),
        ("conv c=1 k=1 h=8 r=3 stride=2", 4, 3, 2, 0, 8),  # one row after the last: "same" padding of an even input
    ):
        at = np.arange(p)[:, None] * stride - halo + np.arange(r)
        inside = ((at >= 0) & (at < size)).mean()
        found = inside_share(layer_graph(text).columns)[1]
        assert found == pytest.approx(inside**2), text


# ---- against the reference ------------------------------------------------------------------------------------------


def played(machine: Target, weight: np.ndarray, inputs: np.ndarray) -> int:
    """Cycles of the reference for K x C weights and (P, C) inputs."""
    numbers = machine.spec.parameters
    matrix = Compressed.of(weight, numbers.pes, numbers.run_bits)
    return sum(product(matrix, x, numbers.fifo_depth, numbers.pipeline_stages).cycles for x in inputs)


def error(machine: Target, weight: np.ndarray, inputs: np.ndarray) -> float:
    """Of the formula that knows the mask and the density of each channel."""
    graph = layer_graph(f"conv c={weight.shape[1]} k={len(weight)} h={len(inputs)} w=1")
    graph = with_mask(graph, weight[:, :, None, None] != 0, (inputs != 0).mean(axis=0))
    return machine.simulate(graph).layer("layer").cycles / played(machine, weight, inputs) - 1


@given(
    st.sampled_from([4, 16, 64]), st.sampled_from([4, 8, 16]), st.floats(0.3, 20), st.integers(24, 120),
    st.floats(0.02, 1), st.floats(0.3, 1), st.integers(0, 2**32 - 1),
)  # fmt: skip
@settings(max_examples=30)
def test_random_masks_within_eight_percent(
    pes: int, depth: int, rows: float, columns: int, density: float, inputs: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.random((int(rows * pes) + 1, columns)) < density).astype(float)
    chosen = (rng.random((3, columns)) < inputs).astype(float)
    assert abs(error(small(pes, fifo_depth=depth), weight, chosen)) < 0.08


def test_random_masks_mean_three_percent() -> None:
    """And a density alone is enough where the mask is random: within 3 % on average, without a bias."""
    rng = np.random.default_rng(0)
    exact, expected = [], []
    for _ in range(25):
        pes, density, share = int(rng.choice([4, 16, 64])), rng.uniform(0.03, 0.9), rng.uniform(0.3, 1)
        k, c = int(rng.integers(pes, 15 * pes)), int(rng.integers(60, 160))
        weight = (rng.random((k, c)) < density).astype(float)
        inputs = (rng.random((3, c)) < share).astype(float)
        machine = small(pes)
        exact.append(error(machine, weight, inputs))
        text = f"conv c={c} k={k} h=3 w=1 density={weight.mean()} inputs={inputs.mean()}"
        expected.append(cycles(machine, text) / played(machine, weight, inputs) - 1)
    assert np.abs(exact).mean() < 0.015
    assert np.abs(expected).mean() < 0.03
    assert abs(np.mean(expected)) < 0.02


@pytest.mark.data("eyeriss_v2_pe_masks")
@pytest.mark.parametrize("name", ["L07", "L13", "L21", "L27"])
def test_masks_of_a_sparse_mobilenet(name: str, data_dir: Path) -> None:
    stored = np.load(data_dir / "eyeriss_v2_pe_masks" / f"{name}.npz")
    weight, inputs = (
        np.unpackbits(stored[key])[: np.prod(shape)].reshape(shape).astype(float)
        for key, shape in (("weight", stored["weight_shape"]), ("activation", stored["activation_shape"]))
    )
    chosen = inputs[np.random.default_rng(0).permutation(len(inputs))[:12]]
    errors = [error(small(pes), weight, chosen) for pes in (8, 16, 64)]
    assert np.abs(errors).max() < 0.02


@pytest.mark.data("weights/resnet20_cifar10.safetensors")
def test_masks_of_a_pruned_resnet(data_dir: Path) -> None:
    from safetensors.numpy import load_file

    rng, errors = np.random.default_rng(0), []
    for name, weight in load_file(data_dir / "weights" / "resnet20_cifar10.safetensors").items():
        if weight.ndim != 4 or weight.shape[2] != 3 or "layer" not in name:
            continue
        pruned = np.where(np.abs(weight) > np.quantile(np.abs(weight), 0.7), weight, 0.0).reshape(len(weight), -1)
        taps = rng.beta(2, 2, pruned.shape[1] // 9).repeat(9)  # channels of unequal densities
        inputs = (rng.random((2, len(taps))) < taps).astype(float)
        errors.append(error(small(8), pruned.astype(float), inputs))
    assert len(errors) >= 9
    assert np.abs(errors).mean() < 0.03
    assert np.abs(errors).max() < 0.08


# ---- against the paper ----------------------------------------------------------------------------------------------

THEORETICAL = {"alexnet-fc6": -0.011, "alexnet-fc7": 0.062, "vgg16-fc7": -0.029, "neuraltalk-lstm": -0.038}
ACTUAL = {"alexnet-fc6": -0.051, "alexnet-fc7": 0.056, "vgg16-fc7": -0.034, "neuraltalk-lstm": -0.101}


def test_published_layers() -> None:
    found = {item.row.id: item.error for item in compare("eie")}
    for kind, errors in (("theoretical", THEORETICAL), ("actual", ACTUAL)):
        for name, value in errors.items():
            assert found[f"eie-{name}-{kind}"] == pytest.approx(value, abs=2e-3)
    assert found["eie-alexnet-fc7-power"] == pytest.approx(0.044, abs=5e-3)


def test_density_of_two_digits_covers_the_largest_theoretical_error(machine: Target) -> None:
    """AlexNet fc7 prints 9 % of weights; anything from 8.5 % does."""
    found = machine.facts(layer_graph("linear c=4096 k=4096 density=0.085 inputs=0.353"))
    assert found["theoretical_cycles"][1] / 800 == pytest.approx(11.7, rel=0.025)


def test_projection_to_256_pes() -> None:
    assert abs(compare("eie_256pe_28nm")[0].error) < 0.02


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("fifo_depth", 2, "parameters.fifo_depth: 2, must be >= 4"), ("pes", 0, "parameters.pes: 0, input should be")],
)
def test_wrong_machines(name: str, value: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        target("eie", {f"parameters.{name}": value})
