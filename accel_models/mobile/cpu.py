"""A mobile CPU running an inference runtime, kernel by kernel.

A layer runs as one kernel of the runtime and a kernel is a few **passes** over memory. A pass is a parallel loop of I
independent iterations (tiles of output channels of a GEMM, 4 channels of a transform), shared out to T threads:

    pass cycles = fork_join * loops + ceil(I / T) * max( core, caches, dram )                    of one iteration each
    core        = max( FMAs / m, loads / l, instructions / i, FMA chain ) * x                m, l, i a cycle of the core

x is the pace of the cores in use (`cores`). Kinds of kernels (K C P Q R S as everywhere; n = ceil(P/6) * ceil(Q/6)
Winograd tiles); their numbers and which layer takes which are data of the runtime (`runtime`, `runtimes/*.yaml`):

* gemm (`products`): 1x1, matmul, transposed, and what is lowered to a matrix. Register tiles of pixels x channels;
  panels packed or read in place; the walk says what is streamed again: the whole input for every tile of channels, all
  weights for every tile of pixels, or block by block.
* winograd63 (3x3, stride 1): F(6x6, 3x3). Border copy; input transform, which writes 64 n C numbers; interleave; 64
  GEMMs of n pixels, with 64/9 times the weights; inverse transform. 64 n C K multiplications.
* direct: pixels x channels in registers, partial sums kept in memory between groups of 4 input channels. naive: one
  pixel x 4 channels, bound by the chain of FMAs.
* depthwise: a vector of channels or pixels, so many loads and stores a tap. gemv (linear, LSTM): a stream of weights.
* spmm, pattern (`sparse_kernels`): weights with zeros. Non-zeros or k x 1 blocks times vectors of pixels; kernels
  sorted by pattern, filters reordered, input loaded once for all taps (FKR and LRE of PatDNN). Both search their
  register tiles and blocks of filters, 64 combinations and more; those that a bound excludes are not priced in full.
  The busiest thread of the real mask counts.
* vector, copy: elementwise work, pooling, softmax; data movement.

Which one runs: for dense weights the runtime's published rules; for weights with zeros the fastest of that kernel and
the runtime's sparse ones. Grouped, transposed and recurrent layers run dense.

Where bytes are found: a buffer of S bytes that is read again is found in a cache of size M if S <= M; beyond, the hit
rate falls linearly to zero at 2 M. A feature map between layers is in the last cache if placement puts it there;
otherwise the same rule holds for all that its layer touches. Weights come from DRAM. Each thread fetches by itself
what it streams.

The ports of the caches are those of one core, and so is their traffic; l3 is a core's path to all beyond its L2 and may
bind one core before DRAM does, which all cores share and which counts everything. (A machine without a third level has
an l3 of the L2's size: the path is there, the cache is not.) The floor is the kernel's
multiplications (Winograd's without its tile padding, a sparse kernel's non-zeros) over the FMA peak of the cores in
use; transforms, copies and activations beside them count as overhead. Layers that do not multiply have no peak: what
they do is useful.

Energy: multiplications, bytes at each level, and cycles of the cores. Every core in use is charged each of its own
clock's cycles from the first to the last of the layer, at full power (assumed), whether it computes, waits for memory
or waits for others at a barrier: an out-of-order core that stalls keeps its clock tree, its queues and their wake-up
running, and threads of a pool spin from one loop to the next. A core that sleeps in between takes less. Cores that no
thread uses cost nothing beside the static power.

Known to be wrong: no frequency ramp, no throttling, no other process. One efficiency stands for all passes that a
compiler scheduled. Caches run at the reference clock on slower cores too. Groups run one after another, batches image
by image. Channels that do not fill a packed layout are priced as if padded to it; the runtime is slower. Quantised on
purpose: channels and pixels to register tiles, Winograd tiles to 6, iterations to waves of threads. Energy is that of
the fastest kernel, which is not the one of least energy: a sparse kernel may hide the bytes that it moves again behind
computing, but pays for them, so energy may fall where a denser mask changes kernel or blocks. One energy a core cycle
stands for big and little cores together.

Sources: the runtimes' own (in their files); Arm's Software Optimization Guides (`cores.yaml`); Lavin and Gray, CVPR
2016 (Winograd); Elsen et al., CVPR 2020 (spmm); Niu et al., ASPLOS 2020 (pattern kernels, FKW).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import AfterValidator

from accel_models.family import Family
from accel_models.mapping import ARRAY_FIELDS, Steps
from accel_models.mobile.cores import WIDTHS, Cluster, Team
from accel_models.mobile.kernels import KINDS
from accel_models.mobile.passes import Passes, empty_steps
from accel_models.mobile.products import RegisterTiles
from accel_models.mobile.runtime import Gemm, Pattern, Runtime, Spmm, Winograd, at_least_one, load_runtime
from accel_models.mobile.sparse_kernels import has_patterns, pattern, spmm
from accel_models.placement import Placement
from accel_models.registry import family
from accel_models.spec import Count, Fraction, Frozen, HardwareSpec, NotNegative
from accel_models.timeline import closed_form
from workloads.columns import Columns
from workloads.errors import ConfigError

SEARCHED_ROWS = 2048  # rows of a sparse kernel priced at once: arrays of all its register tiles stay in a core's L2
Rows = np.ndarray | slice
EVERY = slice(None)
MEMORIES = ("l1", "l2", "l3", "dram")
SPARSE_KINDS: dict[str, Callable[[Passes, str, Any], None]] = {"spmm": spmm, "pattern": pattern}


@family("mobile_cpu")
class MobileCPU(Family):
    """Clusters of cores, and the kernels of a runtime on them.

    Two fields are called clock_hz. A cluster's says how fast its cores run. The machine's is the clock that cycles are
    counted in, and must be that of one of the clusters; bandwidths are bytes a cycle of it. A sweep of clocks sets both
    and, for memories with a clock of their own (DRAM, mostly the l3), the bandwidth, which changes by the inverse.

    Cliffs: what is left over of output channels runs in smaller tiles, in a parallel loop of its own (ncnn) or at a
    quarter of the rate (Eigen). Twice the channels may leave nothing over: of layers with channel counts at random up
    to 4.4 % then cost less, by up to 40 %; none where the counts are multiples of 8.
    """

    class Parameters(Frozen):
        """What runs, on which cores, and the costs that belong to this runtime on this device.

        Attributes:
            runtime: name of a file in `runtimes/` or beside the machine file, or the path of one's own (ends in
                .yaml), from the machine file's folder or the current one.
            threads: how many run; one a core, clusters in the order of the list.
            clusters: fastest first, each with its kind of core (a name in `cores.yaml`, or written out).
            product_efficiency: of the inner loops of dense products and direct convolutions: cycles by counting their
                instructions, over cycles they take.
            vector_efficiency: of passes that a compiler scheduled (transforms, depthwise, pooling, elementwise,
                copies): the same ratio.
            scatter_cycles: of one access to a transformed Winograd tile beside its arithmetic: the tile's 64 numbers
                lie in 64 planes, each in a cache line and a page of its own.
            jump_cycles: from one non-zero of a sparse kernel to the next beside its instructions: the plane of pixels
                that its index leads to lies in another page.
            launch_s: per layer, dispatch and allocation. fork_join_s: per parallel loop, with several threads.
        """

        runtime: str
        threads: Count
        clusters: Annotated[tuple[Cluster, ...], AfterValidator(at_least_one)]
        product_efficiency: Fraction
        vector_efficiency: Fraction
        scatter_cycles: NotNegative
        jump_cycles: NotNegative
        launch_s: NotNegative
        fork_join_s: NotNegative

    components: ClassVar[tuple[str, ...]] = ("mac8", "mac16", "mac32", "core_cycle", "l1", "l2", "l3", "dram")
    precisions = (32, 16, 8)
    cliffs = 0.05
    granularities = ("channel", "filter", "kernel", "pattern", "weight")

    def __init__(self, spec: HardwareSpec) -> None:
        super().__init__(spec)
        if mistakes := list(_mistakes(spec)):
            raise ConfigError(f"{spec.name}: {'; '.join(mistakes)}")
        p = spec.parameters
        self.runtime = _runtime(spec)
        self.threads: int = p.threads
        self.team = Team(p.clusters, p.threads, spec.clock_hz, self.runtime.schedule == "stealing")
        sizes = [memory.size_bytes for memory in spec.memories[:-1]]
        sizes[1] = self.team.l2_bytes
        self.capacities = tuple(float(size or np.inf) for size in sizes)
        extensions = (self.runtime.dot_product, self.runtime.fp16_arithmetic)
        self.lanes = np.array([self.team.core.lanes(bits, extensions[1]) for bits in WIDTHS])
        self.peak = np.array([self.team.core.rate(bits, *extensions) for bits in WIDTHS])
        self.moved = [self.components.index(port) for port in spec.ports]
        self.core_cycle = self.components.index("core_cycle")
        self.is_plain = all(not memory.bus and memory.overlap != "double_buffer" for memory in spec.memories)
        self.tiles = {
            name: RegisterTiles(self.team.core, self.runtime, kernel, p.product_efficiency)
            for name, kernel in self.runtime.kernels.items()
            if isinstance(kernel, Gemm | Winograd)
        }

    def derived_peak(self) -> Mapping[int, float]:
        """Of all cores, with every instruction they have: a runtime may not use them, or not all cores."""
        clusters, clock_hz = self.spec.parameters.clusters, self.spec.clock_hz
        return {
            bits: sum(each.count * each.clock_hz / clock_hz * each.core.rate(bits, True, True) for each in clusters)
            for bits in WIDTHS
        }

    def channel_multiple(self) -> int:
        """Lanes of an fp32 vector: a packed layout holds 4 channels; 8 fill a register tile, 4 take half of one."""
        return int(self.team.core.vector_bits) // 32

    def mappings_tried(self) -> int:
        """Blockings compared for every row whose weights have zeros: 72 with ncnn's lists, 3 with XNNPACK's.

        Those that a bound rules out (`sparse_kernels`) count, but are not priced in full. A row whose exact mask has
        few patterns compares the pattern kernel's 65 besides. Dense rows leave no choice: the runtime's rules name the
        kernel and its tiles.
        """
        kernels = [self.runtime.kernels[name] for name in self.runtime.sparse]
        return max((kernel.blockings for kernel in kernels if isinstance(kernel, Spmm)), default=1)

    def map(self, rows: Columns, placement: Placement) -> Steps:
        kernel, runtime = self.runtime.dispatch(rows), self.runtime
        steps = Steps(**empty_steps(self, len(rows)))
        for code, name in enumerate(runtime.names):
            at = np.flatnonzero(kernel == code)
            if code and len(at):
                function = KINDS[runtime.kernels[name].kind]
                _put(steps, at, self._price(function, name, rows.take(at), placement.take(at)))
        cycles = self._cycles(steps)
        sparse = rows.has_weights & (rows.weight_density < 1) & (rows.groups == 1) & rows.is_op("conv", "linear")
        if runtime.sparse and sparse.any():
            self._try_sparse(steps, cycles, np.flatnonzero(sparse), rows, placement)
        steps.accesses[:, self.core_cycle] = cycles * self.team.clocks
        return steps

    def _try_sparse(
        self, steps: Steps, cycles: np.ndarray, at: np.ndarray, rows: Columns, placement: Placement
    ) -> None:
        """Price the rows `at` with every sparse kernel too; write those that are faster over `steps` and `cycles`."""
        for name in self.runtime.sparse:
            runs = self._can_run(name, rows, at)
            for part in np.split(runs, range(SEARCHED_ROWS, len(runs), SEARCHED_ROWS)) if len(runs) else ():
                function = SPARSE_KINDS[self.runtime.kernels[name].kind]
                other = self._price(function, name, rows.take(part), placement.take(part))
                found = self._cycles(other)
                better = np.flatnonzero(found < cycles[part])
                _put(steps, part[better], other, better)
                cycles[part] = np.minimum(cycles[part], found)

    def _cycles(self, steps: Steps) -> np.ndarray:
        """Cycles of every row as `timeline` will price them, (rows,); faster where ports overlap or are serial."""
        if not self.is_plain:
            return closed_form(steps, self.spec).cycles
        tiles, parallel, waves = steps.tiles, steps.parallel, steps.waves

        def wave(together: np.ndarray) -> np.ndarray:
            busy, hidden = steps.slowest_cycles, np.zeros_like(tiles)
            for port, memory in enumerate(self.spec.memories):
                cycles = steps.port_bytes[..., port] / memory.bandwidth_bytes_per_cycle
                cycles = cycles * together if memory.shared else cycles
                if memory.overlap == "serial":
                    busy = busy + cycles
                else:
                    hidden = np.maximum(hidden, cycles)
            return np.maximum(busy, hidden)

        full, last = wave(np.minimum(tiles, parallel)), wave(tiles - (waves - 1) * parallel)
        cycles = (waves > 0) * (steps.prologue_cycles + np.maximum(waves - 1, 0) * full + last)
        return np.asarray(cycles.sum(axis=1))

    def _can_run(self, name: str, rows: Columns, at: np.ndarray) -> np.ndarray:
        """Those of the rows `at` that a sparse kernel takes."""
        kernel = self.runtime.kernels[name]
        if isinstance(kernel, Pattern):
            limit = kernel.limit
            return at[[has_patterns(rows, int(i), limit) for i in at]] if rows.sparsity else at[:0]
        return at

    def _price(self, function: Callable[[Passes, str, Any], None], name: str, rows: Columns, home: Placement) -> Steps:
        """All rows priced with one kernel."""
        passes = Passes(self, rows, home)
        function(passes, name, self.runtime.kernels[name])
        passes.arrays["kernel"][:] = self.runtime.names.index(name)
        return Steps(**passes.arrays)


def _mistakes(spec: HardwareSpec) -> Iterator[str]:
    """What fields of a machine say against one another."""
    clusters, threads = spec.parameters.clusters, spec.parameters.threads
    if threads > (cores := sum(cluster.count for cluster in clusters)):
        yield f"parameters.threads: {threads} threads on {cores} cores, must be at most one a core"
    if spec.ports != MEMORIES:
        yield f"memories: {', '.join(spec.ports)}, must be {', '.join(MEMORIES)}"
    if not any(math.isclose(cluster.clock_hz, spec.clock_hz) for cluster in clusters):
        clocks = ", ".join(f"parameters.clusters.{i}.clock_hz: {each.clock_hz:g}" for i, each in enumerate(clusters))
        yield (
            f"clock_hz: {spec.clock_hz:g}, must be the clock of one of the clusters ({clocks}): set both, and the "
            "bandwidths of memories that keep their own clock, which are bytes a cycle of clock_hz"
        )


def _runtime(spec: HardwareSpec) -> Runtime:
    """The runtime that a machine names."""
    try:
        return load_runtime(spec.parameters.runtime, Path(spec.file).parent if spec.file else None)
    except ConfigError as error:
        raise ConfigError(f"{spec.name}: parameters.runtime: {error}") from error


def _put(steps: Steps, at: np.ndarray, part: Steps, rows: Rows = EVERY) -> None:
    """Write `rows` of `part` over the rows `at`, in place: `steps` is still being built."""
    for name in ARRAY_FIELDS:
        getattr(steps, name).T[..., at] = getattr(part, name).T[..., rows]
