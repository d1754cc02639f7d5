"""Compiled convolutions against torch on the masked weights, over shapes and instruction sets."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from codesign.compiler import compile_network
from codesign.compiler.isa import find_isa
from codesign.compiler.kernels.convolution import ConvolutionKernel
from codesign.compiler.kernels.scatter import ScatterKernel
from codesign.compiler.network import Network, build
from codesign.compiler.plan import Tuning
from codesign.compiler.program import Call, Stage, kernels_of
from codesign.compiler.runtime import Executable
from tests.codesign.compiler.native import HERE
from workloads.errors import ShapeError
from workloads.graph import Layer, LayerGraph, Op
from workloads.reference import run

TOLERANCE = 1e-5
FOUR = [(0, 1, 3, 4), (1, 2, 4, 5), (3, 4, 6, 7), (4, 5, 7, 8), (1, 3, 4, 5), (1, 3, 4, 7), (3, 4, 5, 7), (1, 4, 5, 7)]


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(found - expected).max() <= TOLERANCE * max(np.abs(expected).max(), 1e-30))


def patterned(k: int, c: int, kept: float, share: int, rng: np.random.Generator) -> np.ndarray:
    """A 3x3 weight with one of eight patterns in each kept kernel, the same for `share` filters; (k, c, 3, 3)."""
    mask = np.zeros((-(-k // share), c, 9), bool)
    for f, channel in np.argwhere(rng.random(mask.shape[:2]) < kept):
        mask[f, channel, list(FOUR[rng.integers(8)])] = True
    mask = np.repeat(mask, share, axis=0)[:k]
    return (rng.standard_normal((k, c, 9)) * mask).reshape(k, c, 3, 3).astype(np.float32)


def graph_of(
    weight: np.ndarray, n: int, h: int, w: int, stride: int = 1, padding: int = 1, dilation: int = 1, groups: int = 1,
    activation: str = "",
) -> LayerGraph | None:  # fmt: skip
    """A convolution alone; None where the map is too small for its kernel."""
    k, c, r, s = weight.shape
    p, q = ((side + 2 * padding - (taps - 1) * dilation - 1) // stride + 1 for side, taps in ((h, r), (w, s)))
    if p < 1 or q < 1:
        return None
    x = Layer("x", Op.INPUT, (n, c * groups, h, w), n=n, k=c * groups, c=c * groups, p=h, q=w)
    conv = Layer(
        "conv", Op.CONV, (n, k, p, q), ("x",), n, k, c * groups, p, q, r, s, groups, h, w, (stride, stride),
        (dilation, dilation), (padding,) * 4, activation=activation, weight="w", bias="b",
    )  # fmt: skip
    return LayerGraph("conv", (x, conv), ("conv",)).verify()


def agrees(graph: LayerGraph | None, weight: np.ndarray, isa: str = "", threads: int = 1) -> bool:
    """Whether the compiled convolution answers as the interpreter does."""
    assert graph is not None, "the map is smaller than the kernel"
    rng = np.random.default_rng(1)
    weights = {"w": weight, "b": rng.standard_normal(len(weight)).astype(np.float32)}
    x = rng.standard_normal(graph.inputs[0].shape).astype(np.float32)
    compiled = compile_network((graph, weights), isa=isa, threads=threads)
    return close(compiled(x), run(graph, weights, x))


@settings(max_examples=60)
@given(
    k=st.integers(1, 9), c=st.integers(1, 6), h=st.integers(1, 19), w=st.integers(1, 19),
    n=st.sampled_from([1, 1, 2, 17]), stride=st.integers(1, 2), padding=st.integers(0, 2), kept=st.floats(0, 1),
    share=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 9), isa=st.sampled_from(HERE),
)  # fmt: skip
def test_patterns(
    k: int, c: int, h: int, w: int, n: int, stride: int, padding: int, kept: float, share: int, seed: int, isa: str
) -> None:
    weight = patterned(k, c, kept, share, np.random.default_rng(seed))
    graph = graph_of(weight, n, h, w, stride, padding)
    assume(graph is not None)
    assert agrees(graph, weight, isa)


@settings(max_examples=40)
@given(
    k=st.integers(1, 5), c=st.integers(1, 4), r=st.integers(1, 7), s=st.integers(1, 7), side=st.integers(1, 23),
    stride=st.integers(1, 3), padding=st.integers(0, 3), dilation=st.integers(1, 2), groups=st.sampled_from([1, 1, 3]),
    density=st.floats(0, 1), activation=st.sampled_from(["", "relu", "hardtanh(-0.5,0.5)", "hardswish"]),
    isa=st.sampled_from(HERE),
)  # fmt: skip
def test_any_window_and_any_zeros(
    k: int, c: int, r: int, s: int, side: int, stride: int, padding: int, dilation: int, groups: int, density: float,
    activation: str, isa: str,
) -> None:  # fmt: skip
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((k * groups, c, r, s)).astype(np.float32) * (
        rng.random((k * groups, c, r, s)) < density
    )
    graph = graph_of(weight, 1, side, side + 1, stride, padding, dilation, groups, activation)
    assume(graph is not None)
    assert agrees(graph, weight, isa)


@settings(max_examples=40)
@given(
    k=st.sampled_from([4, 8, 13, 16, 32, 40]), c=st.integers(1, 5), h=st.integers(1, 7), w=st.integers(1, 7),
    n=st.sampled_from([1, 1, 2]), stride=st.integers(1, 2), padding=st.integers(0, 2), kept=st.floats(0, 1),
    share=st.sampled_from([8, 16, 64]), threads=st.integers(1, 5), isa=st.sampled_from(HERE),
)  # fmt: skip
def test_small_maps_whose_filters_agree(
    k: int, c: int, h: int, w: int, n: int, stride: int, padding: int, kept: float, share: int, threads: int, isa: str
) -> None:
    weight = patterned(k, c, kept, share, np.random.default_rng(0))
    graph = graph_of(weight, n, h, w, stride, padding, activation="relu")
    assume(graph is not None)
    assert agrees(graph, weight, isa, threads)


@pytest.mark.parametrize(("share", "side", "order"), [(16, 4, "lanes"), (1, 4, "channel"), (1, 32, "filter")])
def test_orders_by_map_and_sharing(share: int, side: int, order: str) -> None:
    weight = patterned(32, 8, 0.9, share, np.random.default_rng(0))
    graph = graph_of(weight, 1, side, side)
    assert graph is not None
    network = build(graph, {"w": weight, "b": np.zeros(32, np.float32)}, find_isa(HERE[0]))
    assert network.parts[0].record["tuning"]["order"] == order  # type: ignore[union-attr]


@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize("side", [7, 14, 28, 32])
def test_maps_of_known_networks(isa: str, side: int) -> None:
    weight = patterned(16, 8, 0.3, 1, np.random.default_rng(0))
    assert agrees(graph_of(weight, 1, side, side, activation="relu"), weight, isa)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_share_tiles_or_filters(threads: int) -> None:
    rng = np.random.default_rng(0)
    for side in (4, 32):  # one tile, and several
        weight = patterned(9, 5, 0.5, 1, rng)
        assert agrees(graph_of(weight, 2, side, side), weight, threads=threads)


@pytest.mark.parametrize(
    "tuning",
    [Tuning((1, 1)), Tuning((3, 2), 2), Tuning((2, 4), 4), Tuning((4, 6)), Tuning((3, 2), order="channel"),
     Tuning((4, 4), order="channel"), Tuning((9, 5), order="channel")],
)  # fmt: skip
def test_no_tuning_changes_the_result(tuning: Tuning) -> None:
    rng = np.random.default_rng(0)
    weight = patterned(8, 6, 0.6, 4, rng)
    graph = graph_of(weight, 1, 24, 24)
    assert graph is not None
    weights, x = {"w": weight, "b": np.zeros(8, np.float32)}, rng.standard_normal((1, 6, 24, 24)).astype(np.float32)
    network = build(graph, weights, find_isa(), tunings={"conv": tuning})
    used = {
        call.kernel.output.tile for call in calls(network) if isinstance(call.kernel, ConvolutionKernel | ScatterKernel)
    }
    assert max(used) <= tuning.tile
    assert close(Executable(network)([x])[0], run(graph, weights, x))


def calls(network: Network) -> list[Call]:
    return [call for part in network.parts if isinstance(part, Stage) for work in part.works for call in work.calls]


def test_what_offsets_cannot_reach_is_refused() -> None:
    weight = np.ones((1, 200_000, 1, 1), np.float32)
    graph = graph_of(weight, 1, 64, 64, padding=0)
    assert graph is not None
    with pytest.raises(ShapeError, match=r"'conv': reads or writes 3276783616 bytes behind a start, .* reaches 2147"):
        build(graph, {"w": weight, "b": np.zeros(1, np.float32)}, find_isa())


def test_nan_and_infinity_pass_through_kept_weights_only() -> None:
    weight = np.zeros((2, 2, 3, 3), np.float32)
    weight[0, 0, 1, 1] = weight[1, 1, 1, 1] = 2
    graph = graph_of(weight, 1, 6, 6, activation="relu")
    assert graph is not None
    x = np.ones((1, 2, 6, 6), np.float32)
    x[0, 0, 3, 3], x[0, 0, 0, 0] = np.nan, np.inf
    found = compile_network((graph, {"w": weight, "b": np.zeros(2, np.float32)}))(x)
    assert np.isnan(found[0, 0, 3, 3])
    assert found[0, 0, 0, 0] == np.inf
    assert np.isfinite(found[0, 1]).all()
    assert np.isnan(found).sum() == 1


@settings(max_examples=40)
@given(
    k=st.integers(1, 5), c=st.integers(1, 4), side=st.integers(1, 19), n=st.sampled_from([1, 1, 17]),
    stride=st.integers(1, 2), padding=st.integers(0, 1), share=st.sampled_from([1, 4, 16]), kept=st.floats(0.1, 1),
    activation=st.sampled_from(["", "relu", "hardtanh(-0.5,0.5)"]), place=st.integers(0, 10**6),
    isa=st.sampled_from(HERE),
)  # fmt: skip
def test_a_nan_goes_where_weights_take_it_and_nowhere_else(
    k: int, c: int, side: int, n: int, stride: int, padding: int, share: int, kept: float, activation: str, place: int,
    isa: str,
) -> None:  # fmt: skip
    """Every output that a weight joins to it, and at most those that a kept kernel does."""
    weight = patterned(k * share, c, kept, share, np.random.default_rng(0))
    graph = graph_of(weight, n, side, side, stride, padding, activation=activation)
    assume(graph is not None)
    assert graph is not None
    clean = np.random.default_rng(1).standard_normal((n, c, side, side)).astype(np.float32)
    x, mark, bias = clean.copy(), np.zeros_like(clean), np.zeros(len(weight), np.float32)
    x.flat[place % x.size], mark.flat[place % x.size] = np.nan, 1
    plain = replace(graph, layers=(graph.layers[0], replace(graph.layers[1], activation="")))
    joined = weight != 0
    windows = np.broadcast_to(joined.any((2, 3), keepdims=True), weight.shape)
    must, may = (run(plain, {"w": kind.astype(np.float32), "b": bias}, mark) > 0 for kind in (joined, windows))
    compiled = compile_network((graph, {"w": weight, "b": bias}), isa=isa)
    found, expected = compiled(x), compiled(clean)
    assert np.isnan(found[must]).all()
    assert np.array_equal(found[~may], expected[~may])


def test_code_does_not_grow_with_the_weights() -> None:
    kernels = []
    for k in (8, 64):
        weight = patterned(k, 32, 0.5, 1, np.random.default_rng(0))
        graph = graph_of(weight, 1, 28, 28)
        assert graph is not None
        network = build(graph, {"w": weight, "b": np.zeros(k, np.float32)}, find_isa())
        kernels.append(set(kernels_of(part for part in network.parts if isinstance(part, Stage))))
    assert kernels[0] == kernels[1]
