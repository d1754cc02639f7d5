"""The contract of a target, as test classes that any package can run on its own machines.

    class TestMine(TargetContract):
        @pytest.fixture
        def machine(self): return accel_models.target("mine.yaml")

The laws hold for every family: parts sum to totals, no result below the work really done over peak or the bytes
really moved over bandwidth, more work never costs less, rows do not depend on their neighbours.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from accel_models.mapping import Steps
from accel_models.placement import place
from accel_models.pricing import Target
from workloads.columns import Columns
from workloads.graph import KIND, OP_CODES, Kind, Layer, LayerGraph, Op

SLACK = 1e-9  # relative, for floating-point sums


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
            prices.useful_cycles + prices.padding_cycles + prices.imbalance_cycles
            + prices.memory_cycles + prices.launch_cycles
        )  # fmt: skip
        np.testing.assert_allclose(parts, prices.cycles, rtol=1e-9)
        for part in ("useful", "padding", "imbalance", "memory", "launch"):
            assert (getattr(prices, f"{part}_cycles") >= -1e-6 * prices.cycles - 1e-9).all(), part

    def test_never_below_compute_or_bandwidth(self, machine: Target) -> None:
        prices = machine.price(self.rows(machine))
        assert (prices.cycles >= prices.useful_cycles * (1 - SLACK)).all()
        assert (prices.cycles[:, None] >= prices.port_cycles * (1 - SLACK)).all()

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

    def test_denser_weights_never_cost_less(self, machine: Target) -> None:
        rows = self.rows(machine, 200)
        rows = rows.take(rows.has_weights)
        costs = [
            machine.price(rows.replace(weight_density=np.full(len(rows), density))).cycles
            for density in (0.1, 0.25, 0.5, 0.75, 1.0)
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
        rows = self.rows(machine, 300)
        rows = rows.take(rows.is_op("conv", "linear") & (rows.groups == 1))
        wider = rows.replace(k=2 * rows.k, output_elements=2 * rows.output_elements)
        deeper = rows.replace(c=2 * rows.c, input_elements=2 * rows.input_elements)
        base = machine.price(rows).cycles
        assert (machine.price(wider).cycles >= base * (1 - 1e-6)).all()
        assert (machine.price(deeper).cycles >= base * (1 - 1e-6)).all()

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
