"""Systolic arrays: a grid of multipliers through which operands move in step, one hop a cycle.

Every layer is a matrix product, for each of its groups: X pixels x D depth (C R S of one group) times D x F filters.
Letters besides: array of H rows x W columns; rate, cycles that a multiplier takes for one product. The dataflow says
which two dims lie on the array and which one streams through it:

    dataflow             rows a   columns b   stream t   load
    weight stationary      D         F           X         H      cycles to shift the held operand in
    input stationary       D         X           F         H
    output stationary      X         F           D         0      sums stay; results leave under the next fold

    folds  = ceil(a / H) ceil(b / W)            as many as it takes to cover the product
    fold   = load + t rate + (H + W - 2) + o    H + W - 2 is the skew of filling and draining, o a fixed overhead
    cycles = folds x fold - u                   u = 1 for a simulator that prints the index of its last cycle

An array with a second set of weight registers (`hidden_loads`: TPU v1) shifts the next weights in while it works, and
the wavefront of one fold follows that of the last one:

    fold   = max(t rate, load, bytes of a tile / bandwidth of the weight memory)
    layer  = folds x fold + max(0, H + W - 2 - (fold - t rate))

so that weights are the limit when few rows stream, and the last results leave while the next layer's weights arrive.
Its idle cycles are told apart as its counters do: up to `load` cycles of a fold are weight shift, the rest is weight
stall. A share of all cycles passes without the matrix unit (`non_matrix_share`: host transfers, activation,
synchronisation), taken as one number for all work.

Rules. More than `accumulator_rows` rows stream in equal blocks, each with all its weights again; without that limit
partial sums that do not fit the output buffer go to memory and back. `taps_in_rows`: the array's rows are filled with
channels and kernel taps alike (im2col); otherwise one tap a fold, as a buffer that delivers the channels of one pixel
demands. `packs_groups`: min(H // a, W // b) groups share a fold, block-diagonally, with zeros between them.
`ramps_over_used`: a ragged fold fills and drains only its part. A transposed convolution multiplies each input pixel
by the R S taps of every filter and adds the overlaps on the way out. An LSTM runs its time steps one after another,
with all weights each time.

N:M compression (`sparse_block` = M > 1, weight stationary): rows hold only N of every M successive weights
along (R, S, C), channels fastest, and see the inputs of the whole block:

    D' = floor(D / M) N + min(N, D mod M)

N is counted in an exact mask: the most non-zeros of any block of any filter. A density alone is read as pruned to N:M
with the smallest N that holds it, N = ceil(density M). Without compression zero weights save nothing.

Buffers. Inputs, weights and outputs have a buffer each, half of it filled while the other half is used. What is used
again (inputs for each b-fold of weight and output stationary, weights for each b-fold of input stationary and each
a-fold of output stationary) and does not fit is fetched again: bytes = once + (uses - 1) x (what is beyond the half).
A weight FIFO holds nothing back, and takes whole tiles of H x W.

Assumptions. One group of folds follows the other without a gap. Elementwise work and pooling run on `vector_lanes`
lanes, not beside the array; a fused activation is free. Known to be wrong: the halo of row blocks and spills at tile
borders are not counted; zero operands take full energy; one non-matrix share stands for causes that differ between
applications, and elementwise layers of a graph come on top of it. An LSTM's hidden state stays on chip.

Sources: Samajdar et al., "SCALE-Sim", arXiv:1811.02883, and version 3, arXiv:2504.15377 (folds, N:M); Munoz-Martinez
et al., "STONNE", IISWC 2021 (output-stationary mesh); Jouppi et al., "In-Datacenter Performance Analysis of a Tensor
Processing Unit", ISCA 2017, arXiv:1704.04760. `accel_models.references.systolic` moves the values that these formulas
count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from accel_models.family import Family
from accel_models.mapping import Steps
from accel_models.placement import Placement
from accel_models.registry import family
from accel_models.spec import Count, Fraction, Frozen, HardwareSpec, NotNegative
from accel_models.timeline import closed_form
from workloads.columns import Columns
from workloads.errors import ConfigError
from workloads.graph import OP_CODES, Op
from workloads.sparsity import WeightSparsity

INPUTS, WEIGHTS, OUTPUTS = range(3)  # the first three memories; those behind them hold what does not fit
KERNELS = ("array", "vector unit", "none")
BITS = 8  # operand width that the rate is for
MATMUL, LSTM, TRANSPOSED = (OP_CODES[op] for op in (Op.MATMUL, Op.LSTM, Op.CONV_TRANSPOSE))


@family("systolic")
class Systolic(Family):
    """One array; its first three memories, in this order, hold inputs, weights and outputs beside it."""

    class Parameters(Frozen):
        """The array and the rules of the module docstring; `accumulator_rows` counts rows of a fold's outputs."""

        rows: Count
        columns: Count
        dataflow: Literal["ws", "is", "os"]
        hidden_loads: bool = False
        taps_in_rows: bool = True
        packs_groups: bool = True
        ramps_over_used: bool = False
        weight_fifo: bool = False
        fold_overhead_cycles: NotNegative
        uncounted_cycles: NotNegative
        accumulator_rows: Count | None = None
        sparse_block: Count
        psum_bits: Count
        vector_lanes: Count
        non_matrix_share: Fraction

    components = (
        "mac", "pe_register", "input_buffer", "weight_buffer", "output_buffer", "feature_memory", "weight_memory",
        "vector",
    )  # fmt: skip
    precisions = (BITS,)
    pe_counts = (("rows", 0.25), ("columns", 0.25))
    granularities = ("channel",)

    def __init__(self, spec: HardwareSpec) -> None:
        super().__init__(spec)
        if mistakes := list(_mistakes(spec)):
            raise ConfigError("; ".join(mistakes))

    def map(self, rows: Columns, placement: Placement) -> Steps:
        steps = Steps.empty(("fold",), KERNELS, len(rows), len(self.spec.ports), len(self.components))
        steps["kernel"][:] = KERNELS.index("none")
        if len(at := np.flatnonzero(rows.is_mac)):
            self._multiply(steps, rows.take(at), placement.take(at), at)
        if len(at := np.flatnonzero(rows.is_vector | rows.is_move)):
            self._elementwise(steps, rows.take(at), placement.take(at), at)
        return Steps(**steps)

    def facts(self, rows: Columns, placement: Placement) -> Mapping[str, np.ndarray]:
        """Where the cycles go; all but `folds`, `compute_cycles` and `useful_cycles` sum to the cycles.

        folds, and compute_cycles, those of all folds without waiting for memory; useful_cycles, the multiplications
        over the peak; array_active_cycles, in which operands stream; weight_shift_cycles and fill_drain_cycles of the
        folds as far as not hidden; weight_stall_cycles, waiting; non_matrix_cycles, the rest.
        """
        steps = self.map(rows, placement)
        timeline = closed_form(steps, self.spec)
        on_array = steps.kernel == KERNELS.index("array")
        compute = np.where(on_array, np.round(steps.tiles[:, 0] * steps.slowest_cycles[:, 0], 6), 0.0)
        active, load = np.zeros(len(rows)), np.zeros(len(rows))
        if len(at := np.flatnonzero(on_array)):
            folds = self._folds(self._product(rows.take(at)))
            active[at], load[at] = folds.count * folds.stream, folds.count * self._load
        launch = np.where(on_array, timeline.launch, timeline.cycles)
        idle = timeline.cycles - launch - active
        is_hidden = self.spec.parameters.hidden_loads
        shift = np.minimum(idle, load)
        drain = np.zeros(len(rows)) if is_hidden else np.where(on_array, compute - active - load, 0.0)
        return {
            "folds": np.where(on_array, steps.tiles[:, 0], 0.0),
            "compute_cycles": compute,
            "useful_cycles": np.where(on_array, timeline.useful, 0.0),
            "array_active_cycles": active,
            "weight_shift_cycles": shift,
            "fill_drain_cycles": drain,
            "weight_stall_cycles": idle - shift - drain,
            "non_matrix_cycles": launch,
        }

    def channel_multiple(self) -> int:
        """Columns of the array: filters (pixels for input stationary, then rows) are computed together."""
        numbers = self.spec.parameters
        return int(numbers.rows if numbers.dataflow == "is" else numbers.columns)

    # ---- layers that multiply ---------------------------------------------------------------------------------------

    @property
    def _load(self) -> int:
        """Cycles that the held operand takes to shift in."""
        return 0 if self.spec.parameters.dataflow == "os" else int(self.spec.parameters.rows)

    def _product(self, rows: Columns) -> Product:
        """Every multiplying op as a matrix product of each group, step after step."""
        numbers = self.spec.parameters
        is_matmul, is_lstm, is_transposed = rows.op == MATMUL, rows.op == LSTM, rows.op == TRANSPOSED
        each = np.where(is_matmul, 1, rows.groups).astype(float)  # the channels of a row are of all groups
        pixels = np.where(is_transposed, rows.in_h * rows.in_w, rows.p * rows.q).astype(float)
        taps = (rows.r * rows.s).astype(float)
        summed = np.where(is_transposed, 1.0, taps)
        passes = np.ones(len(rows)) if numbers.taps_in_rows else summed
        depth = np.floor(rows.c / each) * summed
        return Product(
            groups=np.where(is_matmul, rows.n, rows.groups).astype(float),
            pixels=np.where(is_matmul, pixels, np.where(is_lstm, rows.n, rows.n * pixels)),
            depth=depth,
            kept=self._kept(rows, depth / passes, is_matmul | is_transposed),
            passes=passes,
            filters=rows.k / each * np.where(is_transposed, taps, 1.0),
            steps=np.where(is_lstm, pixels, 1.0),
        )

    def _kept(self, rows: Columns, length: np.ndarray, is_by_channel: np.ndarray) -> np.ndarray:
        """Weights of a filter that stay after N:M compression, of `length` in one pass."""
        block = self.spec.parameters.sparse_block
        if block == 1:
            return length
        n = np.clip(np.ceil(rows.weight_density * block - 1e-9), 1, block)
        for i, sparsity in enumerate(rows.sparsity):
            if sparsity is not None and sparsity.is_exact:
                by_tap = bool(is_by_channel[i]) or not self.spec.parameters.taps_in_rows
                n[i] = max(most_in_a_block(sparsity, block, by_tap), 1)
        n = np.where(rows.op == MATMUL, block, n)
        full = np.floor(length / block)
        return np.asarray(full * n + np.minimum(n, length - full * block))

    def _folds(self, product: Product) -> Folds:
        """How the product covers the array."""
        numbers = self.spec.parameters
        a, b, t = product.kept, product.filters, product.pixels
        passes = product.passes
        if numbers.dataflow == "is":
            b, t = t, b
        elif numbers.dataflow == "os":
            a, t, passes = t, a * passes, np.ones_like(a)
        room = np.minimum(numbers.rows // a, numbers.columns // b) if numbers.packs_groups else np.ones_like(a)
        pieces = np.ceil(product.groups / np.clip(room, 1, product.groups))
        along_rows, along_columns = np.ceil(a / numbers.rows), np.ceil(b / numbers.columns)
        blocks = np.ones_like(a) if numbers.accumulator_rows is None else np.ceil(t / numbers.accumulator_rows)
        packed = product.groups / pieces
        return Folds(
            along_rows=along_rows * passes,
            along_columns=along_columns,
            blocks=blocks,
            pieces=pieces,
            count=along_rows * passes * along_columns * blocks * pieces * product.steps,
            stream=t / blocks * (numbers.rows * numbers.columns / self.spec.peak_macs_per_cycle(BITS)),
            used_rows=a * packed / along_rows,
            used_columns=b * packed / along_columns,
            outputs=t / blocks * np.minimum(b * packed, numbers.columns),
        )

    def _multiply(self, steps: dict[str, np.ndarray], rows: Columns, placement: Placement, at: np.ndarray) -> None:
        """Fill `steps` at the rows `at` for layers that multiply."""
        numbers = self.spec.parameters
        product = self._product(rows)
        folds = self._folds(product)
        macs = rows.macs * (rows.weight_density if numbers.sparse_block > 1 else 1.0)
        moved = self._moved(rows, product, folds)
        port_bytes = self._ports(moved, placement) / folds.count[:, None]
        compute = self._fold_cycles(folds)
        prologue = np.zeros(len(at))
        if numbers.hidden_loads:
            fold = np.maximum(compute, (port_bytes / self._bandwidth).max(axis=1))
            prologue = self._outside(product, folds, fold)
        steps["kernel"][at] = KERNELS.index("array")
        steps["tiles"][at, 0] = folds.count
        steps["prologue_cycles"][at, 0] = prologue
        steps["floor_cycles"][at, 0] = macs / (self.spec.peak_macs_per_cycle(BITS) * folds.count)
        steps["mean_cycles"][at, 0] = compute
        steps["slowest_cycles"][at, 0] = compute
        steps["port_bytes"][at, 0] = port_bytes
        steps["accesses"][at] = self._accesses(rows, macs, folds, moved, placement)

    def _fold_cycles(self, folds: Folds) -> np.ndarray:
        """Cycles of one fold without waiting for memory."""
        numbers = self.spec.parameters
        if numbers.hidden_loads:
            return np.maximum(folds.stream, self._load)
        ramp: np.ndarray | float = numbers.rows + numbers.columns - 2
        if numbers.ramps_over_used:
            ramp = folds.used_rows + folds.used_columns - 2
        uncounted = numbers.uncounted_cycles / (folds.along_rows * folds.along_columns * folds.blocks)
        return np.asarray(self._load + folds.stream + ramp + numbers.fold_overhead_cycles - uncounted)

    def _outside(self, product: Product, folds: Folds, fold: np.ndarray) -> np.ndarray:
        """Cycles of an array with hidden loads that belong to no fold: the last results' way out, and other work."""
        numbers = self.spec.parameters
        drain = np.maximum(numbers.rows + numbers.columns - 2 - (fold - folds.stream), 0) * product.steps
        return np.asarray(drain + numbers.non_matrix_share / (1 - numbers.non_matrix_share) * folds.count * fold)

    @property
    def _bandwidth(self) -> np.ndarray:
        return np.array([memory.bandwidth_bytes_per_cycle for memory in self.spec.memories])

    def _half(self, memory: int) -> float:
        """Bytes of a buffer that hold what is being used; the other half is being filled."""
        return (self.spec.memories[memory].size_bytes or np.inf) / 2

    def _moved(self, rows: Columns, product: Product, folds: Folds) -> Moved:
        """Bytes of the whole layer, by where they pass."""
        numbers = self.spec.parameters
        is_matmul, is_os = rows.op == MATMUL, numbers.dataflow == "os"
        layer = product.groups * product.steps
        input_uses, input_pieces, weight_uses, weight_pieces = self._uses(product, folds)
        each = np.where(is_matmul, rows.input_bits, rows.weight_bits) / 8
        weights = self._weight_bytes(product, each)
        room = 0.0 if numbers.weight_fifo else self._half(WEIGHTS)
        again = _again(weights, weight_uses, weight_pieces, room)
        tiles = folds.count * numbers.rows * numbers.columns * each if numbers.weight_fifo else again
        sums = product.pixels * product.filters * layer * numbers.psum_bits / 8
        return Moved(
            input_reads=product.pixels * product.depth * layer * rows.input_bits / 8 * input_uses,
            weight_reads=weights * weight_uses,
            psums=sums * (1 if is_os else 2 * folds.along_rows - 1),
            fetched=_again(rows.input_elements * rows.input_bits / 8, input_uses, input_pieces, self._half(INPUTS)),
            weights=np.where(is_matmul, 0.0, tiles + rows.bias * rows.k * 4),
            other=np.where(is_matmul, again, 0.0),
            stored=rows.output_elements * rows.output_bits / 8,
            spills=self._spills(product, folds),
        )

    def _uses(self, product: Product, folds: Folds) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """How often inputs are used, and of how many pieces one after another; the same of weights."""
        pieces = folds.pieces * folds.blocks * product.steps
        if self.spec.parameters.dataflow == "ws":
            return folds.along_columns, pieces, folds.blocks * product.steps, folds.pieces
        if self.spec.parameters.dataflow == "is":
            return folds.blocks, folds.pieces, folds.along_columns * product.steps, folds.pieces
        weight_pieces = np.where(product.steps > 1, 1.0, folds.pieces * folds.along_columns)
        return folds.along_columns, pieces, folds.along_rows * product.steps, weight_pieces

    def _weight_bytes(self, product: Product, each: np.ndarray) -> np.ndarray:
        """Stored weights of the whole layer; compressed ones with their place in the block."""
        block, kept = self.spec.parameters.sparse_block, product.kept * product.passes
        place = np.where(kept < product.depth, np.log2(block) / 8, 0.0)
        return np.asarray(kept * product.filters * product.groups * (each + place))

    def _spills(self, product: Product, folds: Folds) -> np.ndarray:
        """Bytes of partial sums that leave for memory and come back, once for each further fold along the depth."""
        numbers = self.spec.parameters
        if numbers.dataflow == "os" or numbers.accumulator_rows is not None:
            return np.zeros_like(folds.count)
        beyond = np.maximum(folds.outputs * numbers.psum_bits / 8 - self._half(OUTPUTS), 0)
        return np.asarray(2 * (folds.along_rows - 1) * beyond * folds.along_columns * folds.pieces * product.steps)

    def _ports(self, moved: Moved, placement: Placement) -> np.ndarray:
        """Bytes of the whole layer through each port, (rows, ports)."""
        ports = np.zeros((len(moved.stored), len(self.spec.ports)))
        ports[:, INPUTS], ports[:, WEIGHTS], ports[:, OUTPUTS] = moved.input_reads, moved.weight_reads, moved.psums
        ports[:, self.spec.ports.index(self.spec.weight_memory)] += moved.weights
        for home, name in enumerate(self.spec.feature_memories):
            port = self.spec.ports.index(name)
            here = np.where(placement.output == home, moved.stored, 0.0)
            here = here + np.where(placement.other == home, moved.other, 0.0)
            if port != INPUTS:  # operands that live beside the array are counted as they enter it
                here = here + np.where(placement.first == home, moved.fetched, 0.0)
            ports[:, port] += here
        ports[:, self.spec.ports.index(self.spec.feature_memories[-1])] += moved.spills
        return ports

    def _accesses(
        self, rows: Columns, macs: np.ndarray, folds: Folds, moved: Moved, placement: Placement
    ) -> np.ndarray:
        """Units of each energy component, (rows, components)."""
        numbers = self.spec.parameters
        is_os = numbers.dataflow == "os"
        hops = rows.input_bits / 8 + numbers.psum_bits / 8 + (rows.weight_bits / 8 if is_os else 0)
        loads = folds.count * self._load * numbers.rows * numbers.columns / 2 * rows.weight_bits / 8
        is_beside = np.array([name == self.spec.ports[INPUTS] for name in self.spec.feature_memories])
        first, other, output = (is_beside[home] for home in (placement.first, placement.other, placement.output))
        inside = moved.other * other + moved.stored * output
        outside = moved.fetched * ~first + moved.other * ~other + moved.stored * ~output + moved.spills
        activated = np.where(rows.activation > 0, rows.output_elements, 0)
        return np.stack(
            [
                macs,
                macs * hops + loads,
                moved.input_reads + moved.fetched * ~first + inside,
                moved.weight_reads + moved.weights + moved.other,
                moved.psums,
                outside,
                moved.weights,
                activated,
            ],
            axis=1,
        )

    # ---- layers that do not -----------------------------------------------------------------------------------------

    def _elementwise(self, steps: dict[str, np.ndarray], rows: Columns, placement: Placement, at: np.ndarray) -> None:
        """Fill `steps` at the rows `at` for elementwise work, pooling and copies, in pieces of half the buffer."""
        each = rows.input_bits / 8
        zeros = np.zeros(len(at))
        moved = Moved(
            input_reads=rows.input_elements * each,
            weight_reads=zeros,
            psums=zeros,
            fetched=rows.input_elements * each,
            weights=zeros,
            other=rows.other_elements * each,
            stored=rows.output_elements * rows.output_bits / 8,
            spills=zeros,
        )
        window = np.where(rows.is_op("max_pool", "avg_pool"), rows.r * rows.s, 1)
        operations = np.where(rows.is_vector, np.maximum(rows.output_elements * window, rows.input_elements), 0)
        tiles = np.maximum(np.ceil((moved.input_reads + moved.other + moved.stored) / self._half(INPUTS)), 1)
        cycles = operations / self.spec.parameters.vector_lanes / tiles
        steps["kernel"][at] = KERNELS.index("vector unit")
        steps["tiles"][at, 0] = tiles
        for name in ("floor_cycles", "mean_cycles", "slowest_cycles"):
            steps[name][at, 0] = cycles
        ports = self._ports(moved, placement)
        steps["port_bytes"][at, 0] = ports / tiles[:, None]
        behind = [self.spec.ports.index(name) for name in self.spec.feature_memories]
        outside = ports[:, [port for port in behind if port != INPUTS]].sum(axis=1)
        for component, units in (
            ("vector", operations),
            ("input_buffer", ports[:, INPUTS]),
            ("feature_memory", outside),
        ):
            steps["accesses"][at, self.components.index(component)] = units


@dataclass(frozen=True)
class Product:
    """Matrix products of rows that multiply, float64 (rows,).

    Attributes:
        groups: products side by side; steps: that wait for one another. pixels, depth, filters: X, D, F of one.
        passes: folds that the depth is cut into whatever the array's height (one a kernel tap, or 1).
        kept: depth of one pass after compression.
    """

    groups: np.ndarray
    pixels: np.ndarray
    depth: np.ndarray
    kept: np.ndarray
    passes: np.ndarray
    filters: np.ndarray
    steps: np.ndarray


@dataclass(frozen=True)
class Folds:
    """How products lie on the array, float64 (rows,).

    Attributes:
        along_rows, along_columns: folds of one product. blocks: of streamed rows. pieces: sets of groups that share
            folds. count: of all.
        stream: cycles in which operands stream through one fold. used_rows, used_columns: of the array, on average.
        outputs: sums that one fold produces.
    """

    along_rows: np.ndarray
    along_columns: np.ndarray
    blocks: np.ndarray
    pieces: np.ndarray
    count: np.ndarray
    stream: np.ndarray
    used_rows: np.ndarray
    used_columns: np.ndarray
    outputs: np.ndarray


@dataclass(frozen=True)
class Moved:
    """Bytes of a whole layer, float64 (rows,).

    Attributes:
        input_reads, weight_reads: from the buffers into the array. psums: between it and the output buffer.
        fetched: inputs from where they live. weights: from the weight memory. other: a second operand, not weights.
        stored: outputs to where they live. spills: partial sums to memory and back.
    """

    input_reads: np.ndarray
    weight_reads: np.ndarray
    psums: np.ndarray
    fetched: np.ndarray
    weights: np.ndarray
    other: np.ndarray
    stored: np.ndarray
    spills: np.ndarray


def _again(total: np.ndarray, uses: np.ndarray, pieces: np.ndarray, room: float) -> np.ndarray:
    """Bytes fetched of what is used `uses` times, piece after piece: once, and each time what finds no room.

    >>> _again(np.array([100.0]), np.array([3.0]), np.array([2.0]), 40.0).tolist()  # twice 10 too many, two more times
    [140.0]
    """
    return np.asarray(total + (uses - 1) * pieces * np.maximum(total / pieces - room, 0))


def most_in_a_block(sparsity: WeightSparsity, block: int, by_tap: bool = False) -> int:
    """The most non-zeros among `block` successive weights of a filter, along (R, S, C), or along C of each tap.

    >>> most_in_a_block(WeightSparsity.from_mask(np.array([[True, False, True, True, False]])), 4)
    3
    """
    mask = sparsity.mask().transpose(0, 2, 3, 1).reshape(-1, sparsity.c if by_tap else sparsity.elements // sparsity.k)
    return int(np.add.reduceat(mask, np.arange(0, mask.shape[1], block), axis=1, dtype=np.int64).max())


def _mistakes(spec: HardwareSpec) -> list[str]:
    """What is wrong with a machine of this family."""
    numbers, found = spec.parameters, []
    peak, places = spec.peak_macs_per_cycle(BITS), numbers.rows * numbers.columns
    if len(spec.memories) < 4:
        found.append(f"memories: {', '.join(spec.ports)}; needs those of inputs, weights and outputs, and one behind")
    if places / peak not in (1, 2, 4):
        allowed = f"parameters.rows x columns = {places}, or half or a quarter of it for wider operands"
        found.append(f"macs_per_cycle.{BITS}: {peak:g}, must be {allowed}")
    if numbers.dataflow != "ws" and (numbers.weight_fifo or numbers.sparse_block > 1):
        found.append(f"parameters.dataflow: {numbers.dataflow}; weight_fifo and sparse_block need held weights, ws")
    if numbers.dataflow == "os" and numbers.hidden_loads:
        found.append("parameters.dataflow: os holds no operand: hidden_loads does not go with it")
    if numbers.dataflow == "os" and (numbers.accumulator_rows or not numbers.taps_in_rows):
        found.append("parameters.dataflow: os sums in place: accumulator_rows and taps_in_rows do not go with it")
    if numbers.uncounted_cycles > numbers.rows + numbers.columns - 2 + numbers.fold_overhead_cycles:
        found.append(f"parameters.uncounted_cycles: {numbers.uncounted_cycles:g}, must be <= those of one ramp")
    if numbers.non_matrix_share == 1 or (numbers.non_matrix_share and not numbers.hidden_loads):
        found.append("parameters.non_matrix_share: must be < 1, and 0 without hidden_loads")
    return found
