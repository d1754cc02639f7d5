"""The contract of a target, as test classes that any package can run on its own machines.

    class TestMine(TargetContract):
        @pytest.fixture
        def machine(self): return accel_models.target("mine.yaml")

The laws hold for every family: parts sum to totals, no result below the work really done over peak or the bytes
really moved over bandwidth, multiplications counted here from the layer alone, every byte moved at least once and on
small layers about once, more work never costs less, rows do not depend on their neighbours.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np

from accel_models.ideal import compulsory_bytes
from accel_models.mapping import Steps
from accel_models.placement import place
from accel_models.pricing import Target
from workloads.columns import Columns
from workloads.graph import KIND, OP_CODES, Kind, Layer, LayerGraph, Op

SLACK = 1e-9  # relative, for floating-point sums
WINOGRAD_SAVES = 324 / 64  # the largest tile in use, F(6 x 6, 3 x 3): 64 multiplications for 36 outputs of 9 taps
CODER_SAVES = 0.85  # of the bytes of dense weights that an entropy coder leaves
SMALL_BYTES = 2000  # a layer of fewer fits everywhere
SMALL_FACTOR, GRANULE_BYTES = 2.0, 64  # run lengths, padding and metadata stay below the factor, alignment below these


def sample_rows(rows: int, rng: np.random.Generator, bits: int) -> Columns:
    """Random layers of every op that can be priced, from 1x1x1 to large, in one precision.

    Shapes need not fit together as a graph; each row is a possible layer by itself.
    """
    ops = [op for op in Op if KIND[op] is not Kind.NONE]
    op = rng.choice(len(ops), rows)
    name = np.array([ops[i].value for i in op])
    spatial = np.isin(name, ["conv", "conv_transpose", "max_pool", "avg_pool"])
    strided = np.isin(name, ["conv", "max_pool", "avg_pool"])
    pixels = ~np.isin(name, ["linear", "lstm"])
    mixes = np.isin(name, ["conv", "conv_transpose", "linear", "matmul", "lstm"])
    k = rng.choice([1, 3, 8, 13, 16, 33, 64, 96, 128, 250, 512], rows)
    c = np.where(mixes, rng.choice([1, 3, 8, 13, 16, 33, 64, 96, 128, 250, 512], rows), k)
    depthwise = (name == "conv") & (rng.random(rows) < 0.3)
    c = np.where(depthwise, k, c)
    h = np.where(pixels, rng.choice([1, 4, 7, 8, 14, 28, 56], rows), 1)
    r = np.where(spatial & (h >= 4), rng.choice([1, 3], rows), 1)
    stride = np.where(strided & (h >= 4), rng.choice([1, 2], rows), 1)
    p = -(-h // stride)
    one = np.ones(rows, np.int64)
    binary = np.isin(name, ["add", "mul", "concat", "matmul"])
    inputs, outputs = c * h * h, k * p * p
    return Columns(
        op=np.array([OP_CODES[ops[i]] for i in op], np.int64),
        n=one, k=k, c=c, p=p, q=p, r=r, s=r,
        groups=np.where(depthwise, k, 1),
        in_h=h, in_w=h, stride_h=stride, stride_w=stride, dilation_h=one, dilation_w=one,
        input_elements=inputs,
        other_elements=np.where(name == "matmul", c * k, np.where(binary, outputs, 0)),
        output_elements=outputs,
        weight_bits=one * bits, input_bits=one * bits, output_bits=one * bits,
        bias=np.where(np.isin(name, ["conv", "linear"]), 1, 0),
        activation=rng.choice([0, 1], rows),
        fused=one * 0,
        from_input=one * 0,
        to_output=one * 0,
        weight_density=np.ones(rows),
        input_density=np.ones(rows),
        input_density_variance=np.zeros(rows),
    )  # fmt: skip


def small_graph() -> LayerGraph:
    """A residual block with a copy: input, two convolutions, add, slice, pad, pool, linear."""
    x = Layer("x", Op.INPUT, (1, 16, 8, 8), k=16, c=16, p=8, q=8)
    common = {"k": 16, "c": 16, "p": 8, "q": 8, "in_h": 8, "in_w": 8}
    conv = {**common, "r": 3, "s": 3, "padding": (1, 1, 1, 1)}
    return LayerGraph(
        "small",
        (
            x,
            Layer("a", Op.CONV, (1, 16, 8, 8), ("x",), activation="relu", weight="a.weight", **conv),  # type: ignore[arg-type]
            Layer("b", Op.CONV, (1, 16, 8, 8), ("a",), weight="b.weight", bias="b.bias", **conv),  # type: ignore[arg-type]
            Layer("add", Op.ADD, (1, 16, 8, 8), ("b", "x"), attributes={"kind": "add"}, **common),  # type: ignore[arg-type]
            Layer("mean", Op.MEAN, (1, 16), ("add",), k=16, c=16, in_h=8, in_w=8,
                  attributes={"axes": (2, 3), "keepdim": False}),
            Layer("fc", Op.LINEAR, (1, 10), ("mean",), k=10, c=16, weight="fc.weight", bias="fc.bias"),
        ),
        ("fc",),
    ).verify()  # fmt: skip


def multiplications(rows: Columns) -> np.ndarray:
    """What a dense layer must multiply, taps on the zeros around the picture left out, float64 (rows,)."""
    across = _taps(rows.in_h, rows.p, rows.r, rows.stride_h) * _taps(rows.in_w, rows.q, rows.s, rows.stride_w)
    inside = across / (rows.p * rows.q * rows.r * rows.s)
    return np.asarray(rows.macs * np.where(rows.is_op("conv"), inside, 1.0))


def _taps(size: np.ndarray, outputs: np.ndarray, kernel: np.ndarray, stride: np.ndarray) -> np.ndarray:
    """Taps of all outputs of one axis that fall onto the input, "same" padding."""
    before = np.maximum((outputs - 1) * stride + kernel - size, 0) // 2
    total = np.zeros(len(size))
    for tap in range(int(kernel.max(initial=0))):
        first = np.maximum(-(-(before - tap) // stride), 0)
        last = np.minimum((size - 1 + before - tap) // stride, outputs - 1)
        total += np.where(tap < kernel, np.maximum(last - first + 1, 0), 0)
    return total


def needed_bytes(rows: Columns) -> np.ndarray:
    """Inputs that a kernel really reads, dense weights, and outputs that no ReLU thins, each once; float64 (rows,)."""
    high = np.minimum(rows.in_h, rows.p * np.minimum(rows.r, rows.stride_h) + np.maximum(rows.r - rows.stride_h, 0))
    wide = np.minimum(rows.in_w, rows.q * np.minimum(rows.s, rows.stride_w) + np.maximum(rows.s - rows.stride_w, 0))
    read = np.where(rows.is_op("conv"), rows.n * rows.c * high * wide, rows.input_elements)
    written = rows.output_elements * rows.output_bits * (rows.activation == 0)
    weights = CODER_SAVES * rows.weight_elements * rows.weight_bits
    return np.asarray(((read + rows.other_elements) * rows.input_bits + written + weights) / 8)


class TargetContract:
    """Laws of every machine; subclass it with a `machine` fixture."""

    def rows(self, machine: Target, count: int = 400, seed: int = 0) -> Columns:
        """Random rows in the machine's own precision."""
        return sample_rows(count, np.random.default_rng(seed), machine.family.precisions[0])

    def steps(self, machine: Target, rows: Columns) -> Steps:
        return machine.family.map(rows, place(rows, None, machine.spec))

    def test_shapes_and_finiteness(self, machine: Target) -> None:
        rows = self.rows(machine)
        steps = self.steps(machine, rows)
        shape = (len(rows), len(steps.names))
        for name in ("prologue_cycles", "tiles", "parallel", "floor_cycles", "mean_cycles", "slowest_cycles"):
            array = getattr(steps, name)
            assert array.shape == shape, name
            assert np.isfinite(array).all(), name
            assert (array >= 0).all(), name
        assert steps.port_bytes.shape == (*shape, len(machine.spec.ports))
        assert steps.accesses.shape == (len(rows), len(machine.family.components))
        assert (steps.parallel >= 1).all()
        assert (steps.kernel < len(steps.kernels)).all()

    def test_floor_mean_and_slowest_are_ordered(self, machine: Target) -> None:
        steps = self.steps(machine, self.rows(machine))
        assert (steps.floor_cycles <= steps.mean_cycles * (1 + SLACK)).all()
        assert (steps.mean_cycles <= steps.slowest_cycles * (1 + SLACK)).all()

    def test_parts_sum_to_totals(self, machine: Target) -> None:
        prices = machine.price(self.rows(machine))
        parts = (
            prices.useful_cycles + prices.overhead_cycles + prices.imbalance_cycles
            + prices.memory_cycles + prices.launch_cycles
        )  # fmt: skip
        np.testing.assert_allclose(parts, prices.cycles, rtol=1e-9)
        for part in ("useful", "overhead", "imbalance", "memory", "launch"):
            assert (getattr(prices, f"{part}_cycles") >= -1e-6 * prices.cycles - 1e-9).all(), part

    def test_never_below_compute_or_bandwidth(self, machine: Target) -> None:
        prices = machine.price(self.rows(machine))
        assert (prices.cycles >= prices.useful_cycles * (1 - SLACK)).all()
        assert (prices.cycles[:, None] >= prices.port_cycles * (1 - SLACK)).all()

    def test_never_below_the_multiplications_over_peak(self, machine: Target) -> None:
        """Counted from the layer, not by the family; a kernel that is called Winograd's may save what it saves."""
        rows = self.rows(machine)
        rows = rows.take(rows.is_mac)
        prices = machine.price(rows)
        peak = np.array([machine.spec.peak_macs_per_cycle(int(bits)) for bits in rows.weight_bits])
        saves = np.array([WINOGRAD_SAVES if "winograd" in name else 1.0 for name in prices.kernels])[prices.kernel]
        assert (prices.cycles * peak * saves >= multiplications(rows) * (1 - SLACK)).all()

    def test_every_byte_moves_at_least_once(self, machine: Target) -> None:
        rows = self.rows(machine)
        rows = rows.take(rows.is_mac)
        assert (machine.price(rows).traffic_bytes.sum(axis=1) >= needed_bytes(rows) * (1 - SLACK)).all()

    def test_where_buffers_suffice_the_outermost_memory_is_asked_once(self, machine: Target) -> None:
        """Of machines that have a buffer: feature maps may come from the outermost of several memories."""
        import pytest

        if len(machine.spec.ports) == 1 or machine.spec.ports[-1] not in machine.spec.feature_memories:
            pytest.skip("no buffer between the outermost memory and what computes, or none that the spec lists")
        rows = self.rows(machine, 1000)
        rows = rows.take(rows.is_op("conv", "linear", "matmul") & (compulsory_bytes(rows) < SMALL_BYTES))
        outermost = machine.price(rows).traffic_bytes[:, -1]
        assert len(rows) > 20
        assert (outermost <= SMALL_FACTOR * compulsory_bytes(rows) + GRANULE_BYTES).all()

    def test_every_op_that_works_costs_time_energy_and_traffic(self, machine: Target) -> None:
        rows = self.rows(machine)
        prices = machine.price(rows)
        assert (prices.cycles > 0).all(), "an op is priced at zero"
        assert (prices.energy_j.sum(axis=1) > 0).all()
        assert (prices.traffic_bytes.sum(axis=1) > 0).all()

    def test_multiplications_take_energy(self, machine: Target) -> None:
        rows = self.rows(machine)
        prices = machine.price(rows)
        assert (prices.energy_j.sum(axis=1)[rows.is_mac] > 0).all()

    def test_more_bandwidth_never_costs_more(self, machine: Target) -> None:
        from accel_models.pricing import replace_spec

        rows = self.rows(machine)
        base = machine.price(rows).cycles
        memories = tuple(
            memory.model_copy(update={"bandwidth_bytes_per_cycle": 2 * memory.bandwidth_bytes_per_cycle})
            for memory in machine.spec.memories
        )
        faster = replace_spec(machine, memories=memories).price(rows).cycles
        assert (faster <= base * (1 + 1e-6)).all()

    def test_fewer_pes_never_cost_less(self, machine: Target) -> None:
        from accel_models.pricing import replace_spec

        rows = self.rows(machine, 2000)
        base = machine.price(rows).cycles
        for name, share in machine.family.pe_counts:
            if (count := getattr(machine.spec.parameters, name)) % 2:
                continue
            parameters = machine.spec.parameters.model_copy(update={name: count // 2})
            peak = {bits: rate / 2 for bits, rate in machine.spec.macs_per_cycle.items()}
            half = replace_spec(machine, parameters=parameters, macs_per_cycle=peak).price(rows).cycles
            assert (half < base * (1 - 1e-6)).mean() <= share, name
            assert (half > base * (1 + 1e-6)).any(), f"{name} does not count PEs: half of them cost nothing"

    def test_denser_weights_never_cost_less(self, machine: Target) -> None:
        rows = self.rows(machine, 200)
        rows = rows.take(rows.has_weights)
        costs = [
            machine.price(rows.replace(weight_density=np.full(len(rows), density))).cycles
            for density in (0.1, 0.25, 0.5, 0.75, 1.0)
        ]
        for sparser, denser in itertools.pairwise(costs):
            assert (sparser <= denser * (1 + 1e-6)).all()

    def test_denser_inputs_never_cost_less(self, machine: Target) -> None:
        rows = self.rows(machine, 200)
        rows = rows.take(rows.has_weights)
        costs = [
            machine.price(rows.replace(input_density=np.full(len(rows), density))).cycles
            for density in (0.1, 0.3, 0.6, 1.0)
        ]
        for sparser, denser in itertools.pairwise(costs):
            assert (sparser <= denser * (1 + 1e-6)).all()

    def test_more_pixels_never_cost_less(self, machine: Target) -> None:
        rows = self.rows(machine, 200)
        rows = rows.take(rows.is_op("conv") & (rows.stride_h == 1))
        taller = rows.replace(
            p=2 * rows.p, in_h=2 * rows.in_h, input_elements=2 * rows.input_elements,
            output_elements=2 * rows.output_elements,
        )  # fmt: skip
        assert (machine.price(taller).cycles >= machine.price(rows).cycles * (1 - 1e-6)).all()

    def test_twice_the_channels_never_cost_less(self, machine: Target) -> None:
        rows = self.rows(machine, 8000)
        rows = rows.take(rows.is_op("conv", "linear") & (rows.groups == 1))
        wider = rows.replace(k=2 * rows.k, output_elements=2 * rows.output_elements)
        deeper = rows.replace(c=2 * rows.c, input_elements=2 * rows.input_elements)
        base = machine.price(rows).cycles
        for larger in (wider, deeper):
            cheaper = machine.price(larger).cycles < base * (1 - 1e-6)
            assert cheaper.mean() <= machine.family.cliffs

    def test_rows_do_not_depend_on_their_neighbours(self, machine: Target) -> None:
        rows = self.rows(machine)
        order = np.random.default_rng(1).permutation(len(rows))
        whole = machine.price(rows, memo=False)
        shuffled = machine.price(rows.take(order), memo=False)
        np.testing.assert_array_equal(whole.cycles[order], shuffled.cycles)
        np.testing.assert_array_equal(whole.energy_j[order], shuffled.energy_j)

    def test_memo_changes_nothing(self, machine: Target) -> None:
        rows = self.rows(machine, 50)
        twice = Columns.concatenate([rows, rows, rows])
        np.testing.assert_array_equal(machine.price(twice).cycles, machine.price(twice, memo=False).cycles)

    def test_extremes(self, machine: Target) -> None:
        rows = self.rows(machine, 60)
        large = rows.replace(**{name: getattr(rows, name) * 64 for name in ("p", "q", "in_h", "in_w")})
        large = large.replace(input_elements=rows.input_elements * 4096, output_elements=rows.output_elements * 4096)
        assert np.isfinite(machine.price(large).cycles).all()

    def test_a_graph_prints_and_survives_json(self, machine: Target) -> None:
        from accel_models.result import SimulationResult

        result = machine.simulate(small_graph())
        assert SimulationResult.from_dict(result.to_dict()) == result
        assert machine.name in result.target
        assert "cycles" in str(result)
        total = sum(layer.cycles for layer in result.layers)
        assert result.cycles == total > 0
        assert math.isclose(sum(result.lost_by_cause().values()), result.cycles, rel_tol=SLACK)
        assert math.isclose(sum(result.energy_by_component().values()), result.energy_j, rel_tol=SLACK)
        assert math.isclose(result.cycles / result.clock_hz, result.latency_s, rel_tol=SLACK)

    def test_what_does_not_run_is_free(self, machine: Target) -> None:
        result = machine.simulate(small_graph())
        assert result.layer("x").cycles == 0
        assert result.layer("fc").cycles > 0

    def test_numbers_carry_sources(self, machine: Target) -> None:
        for fit in machine.spec.fitted:
            assert fit.rows
            assert fit.bounds[0] <= fit.bounds[1]
        assert len(machine.spec.fitted) <= 4
        assert dataclasses.is_dataclass(machine)
