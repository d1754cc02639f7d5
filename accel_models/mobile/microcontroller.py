"""A microcontroller: one in-order Cortex-M core that runs int8 kernels out of flash and SRAM.

Such a core has no multiplier array to map a layer to; its time is the instructions of a kernel's loops, counted in the
source of a public kernel library, times what the core needs for one, plus the waits for weights that flash serves:

    cycles = launch + I * code * cycles_per_instruction + bytes from flash / flash bandwidth

**Instructions** I (K C P Q R S as everywhere; depth d = C/groups R S; SMLAD multiplies two pairs of 16 bits, so every
operand is widened from 8 bits first):

* convolution (and 1x1): im2col gathers two columns of d inputs as 16-bit numbers, 2.75 an element (1x1 of stride 1
  gathers nothing); then every two filters meet two columns, 4 steps of d at a time: 6 loads, 4 widenings, 8 SMLAD, 2
  for the loop = 20 for 16 MACs, 10 a step that is left over, 10 to set up. A column that is left alone runs as linear.
* linear, matmul, LSTM: two rows of weights meet one vector, 3 loads, 6 widenings, 4 SMLAD, 2 for the loop = 15 for 8
  MACs, 6 a step that is left over, 10 to set up.
* depthwise: im2col as above; then 4 channels, 2 taps at a time: 6 loads, 4 widenings, 8 packings, 4 SMLAD, 2 pointers,
  2 for the loop = 26 for 8 MACs, 16 for the odd tap, 10 to set up.
* every output is requantised: bias, multiplier and shift, a 64-bit product, two roundings, a clamp, a store = 26. ReLU
  is the clamp. An addition requantises three times: 52. Other elementwise work, pooling and copies: `PER_OUTPUT`,
  `PER_INPUT`.

**Code** is how many instructions a release of the vendor's runtime needs over these counts: `matrix_code` for
convolution and linear layers, `other_code` for the rest. `cycles_per_instruction` is the core's: about 1 where one
instruction issues at a time (loads and taken branches take more, folded IT blocks less), about 0.6 where two do.

**Flash** holds the weights and 12 bytes of constants a filter. Weights that fit the cache before it are read once;
otherwise they stream past every pair of columns again, since a cyclic stream leaves nothing behind in a cache that is
smaller. `bandwidth_bytes_per_cycle` of the flash port is that of its waits: bytes of one read over wait states. SRAM
has no waits; its loads are instructions.

**Energy** is a power that hardly depends on the network: `core_cycle` for everything that is clocked, and beside it the
multiplications, SRAM and flash of cited tables. What is measured is their sum.

Known to be wrong: the vendor's kernels are not public, and the counts are another library's. Code that does not fit an
instruction cache waits for flash too; a data cache also holds feature maps. The first layer's input and the answer are
not converted from and to floats. A last odd filter is priced as a pair. LSTM gates count as requantised outputs.
Quantised on purpose: d to 4 steps (three left over cost more than a whole turn, so a channel more may cost less),
filters and columns to pairs, depthwise channels to 4. Zeros save nothing: only fewer channels do. Feature maps beyond
the SRAM are priced as if there were more of it.

Sources: CMSIS-NN (Arm, Apache-2.0), arm_nn_mat_mult_kernel_s8_s16, arm_nn_vec_mat_mult_t_s8, arm_depthwise_conv_s8_opt,
arm_elementwise_add_s8, arm_q7_to_q15_with_offset, loops read and counted by hand; Lai, Suda and Chandra, "CMSIS-NN",
arXiv:1801.06601; Arm Cortex-M4 Technical Reference Manual, instruction timing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from accel_models.family import Family
from accel_models.mapping import Steps, ceil_div
from accel_models.placement import Placement
from accel_models.registry import family
from accel_models.spec import Count, Frozen, HardwareSpec, NotNegative, Positive
from accel_models.timeline import closed_form
from workloads.columns import ACTIVATION_CODES, Columns
from workloads.errors import ConfigError
from workloads.graph import OP_CODES, Op

PORTS = ("sram", "flash")
SRAM, FLASH = range(2)
KERNELS = ("none", "convolution", "linear", "depthwise", "vector", "copy")

STEPS_AT_ONCE = 4  # of a dot product
PAIR_LOOP, PAIR_LEFT = 20, 10  # two filters, two columns: 4 steps; a step that is left over
ROW_LOOP, ROW_LEFT = 15, 6  # two filters, one column
TAPS_LOOP, TAP_LEFT = 26, 16  # four channels: two taps; the odd one
SET_UP = 10
GATHER = 2.75  # im2col, an element
SCATTER = 4.0  # transposed convolution: add a product to its output
REQUANTISE = 26.0
TABLE_LOOKUP = 6.0  # a fused activation that is no clamp
CONSTANT_BYTES = 12  # bias, multiplier and shift of a filter

# Instructions an output element of layers that do not multiply; 1 for what is not listed (copies by words).
PER_OUTPUT = {
    Op.ADD: 52.0,
    Op.MUL: 30.0,
    Op.ACTIVATION: TABLE_LOOKUP,
    Op.SOFTMAX: 90.0,
    Op.NORM: 40.0,
    Op.VECTOR: REQUANTISE,
    Op.MAX_POOL: 4.0,
    Op.AVG_POOL: REQUANTISE,
    Op.MEAN: REQUANTISE,
    Op.TRANSPOSE: 6.0,
    Op.PIXEL_SHUFFLE: 6.0,
    Op.UPSAMPLE: 6.0,
}
# Instructions an element that a pooling layer looks at: load, add or compare, its share of the loop.
PER_INPUT = {Op.MAX_POOL: 4.0, Op.AVG_POOL: 4.0, Op.MEAN: 4.0}
OUTPUT_BY_CODE = np.array([PER_OUTPUT.get(op, 1.0) for op in OP_CODES])
INPUT_BY_CODE = np.array([PER_INPUT.get(op, 0.0) for op in OP_CODES])


@dataclass(frozen=True)
class Work:
    """What a kernel does for every row; float64 (rows,), 0 on rows of other kernels.

    Attributes:
        instructions: by the counts of the module docstring.
        sram_bytes: loads and stores of feature maps and columns.
        passes: how often all weights are read.
    """

    instructions: np.ndarray
    sram_bytes: np.ndarray
    passes: np.ndarray


@family("microcontroller")
class Microcontroller(Family):
    """A Cortex-M core with the DSP extension."""

    class Parameters(Frozen):
        """The core, the runtime's release, and the cache before flash.

        Attributes:
            cycles_per_instruction: of the counted instructions, flash waits apart.
            matrix_code, other_code: instructions of the runtime's kernels over the counted ones; convolution and
                linear layers, and all others.
            flash_cache_bytes: weights up to this size are read from flash once a layer.
            launch_cycles: of a layer: dispatch, arguments, first misses.
        """

        cycles_per_instruction: Positive
        matrix_code: Positive
        other_code: Positive
        flash_cache_bytes: Count
        launch_cycles: NotNegative

    components: ClassVar[tuple[str, ...]] = ("core_cycle", "mac", "sram", "flash")
    precisions = (8,)
    granularities = ("channel",)

    def __init__(self, spec: HardwareSpec) -> None:
        super().__init__(spec)
        if spec.ports != PORTS:
            raise ConfigError(f"{spec.name}: memories {', '.join(spec.ports)}; must be {', '.join(PORTS)}")

    def channel_multiple(self) -> int:
        """Steps of a dot product and channels of a depthwise layer that run together."""
        return STEPS_AT_ONCE

    def map(self, rows: Columns, placement: Placement) -> Steps:
        p = self.spec.parameters
        kernel = kernel_of(rows)
        steps = Steps.empty(("kernel",), KERNELS, len(rows), len(PORTS), len(self.components))
        cycles, sram = np.zeros(len(rows)), np.zeros(len(rows))
        flash = np.zeros(len(rows))
        for work, code in self._works(rows, kernel):
            cycles += work.instructions * code * p.cycles_per_instruction
            sram += work.sram_bytes
            flash += self._flash_bytes(rows, work.passes)
        floor = np.where(rows.is_mac, rows.macs / self.spec.peak_macs_per_cycle(8), cycles)
        runs = kernel > 0
        steps["tiles"][:, 0] = runs
        steps["prologue_cycles"][:, 0] = np.where(runs, p.launch_cycles, 0.0)
        steps["floor_cycles"][:, 0] = floor
        for name in ("mean_cycles", "slowest_cycles"):
            steps[name][:, 0] = np.maximum(cycles, floor)
        steps["port_bytes"][:, 0, SRAM], steps["port_bytes"][:, 0, FLASH] = sram, flash
        steps["kernel"][:] = kernel
        found = Steps(**steps)
        found.accesses[:] = np.stack([closed_form(found, self.spec).cycles, rows.macs, sram, flash], axis=1)
        return found

    def facts(self, rows: Columns, placement: Placement) -> Mapping[str, np.ndarray]:
        """`instructions` counted, before `code`; `flash_wait_cycles`; cycles of each kernel, `<kernel>_cycles`."""
        kernel, steps = kernel_of(rows), self.map(rows, placement)
        cycles = closed_form(steps, self.spec).cycles
        instructions = sum(work.instructions for work, _ in self._works(rows, kernel))
        waits = steps.port_bytes[:, 0, FLASH] / self.spec.memories[FLASH].bandwidth_bytes_per_cycle
        by_kernel = {
            f"{KERNELS[code]}_cycles": np.where(kernel == code, cycles, 0.0) for code in range(1, len(KERNELS))
        }
        return {"instructions": np.asarray(instructions), "flash_wait_cycles": waits, **by_kernel}

    def _works(self, rows: Columns, kernel: np.ndarray) -> list[tuple[Work, float]]:
        """Each kind of work with the code factor that applies to it."""
        p = self.spec.parameters
        is_matrix, is_depthwise = (kernel == 1) | (kernel == 2), kernel == 3
        return [
            (_only(is_matrix, matrix_work(rows)), p.matrix_code),
            (_only(is_depthwise, depthwise_work(rows)), p.other_code),
            (_only(kernel > 3, vector_work(rows)), p.other_code),
        ]

    def _flash_bytes(self, rows: Columns, passes: np.ndarray) -> np.ndarray:
        stored = rows.weight_elements + np.where(rows.has_weights, rows.k * CONSTANT_BYTES, 0)
        return stored * np.where(stored <= self.spec.parameters.flash_cache_bytes, np.minimum(passes, 1), passes)


def kernel_of(rows: Columns) -> np.ndarray:
    """Index into KERNELS, int64 (rows,)."""
    convolution = rows.is_op("conv", "conv_transpose")
    choices = (rows.is_depthwise, convolution, rows.is_mac, rows.is_vector, rows.is_move)
    return np.select(choices, [3, 1, 2, 4, 5], 0)


def matrix_work(rows: Columns) -> Work:
    """Convolution as im2col and products of pairs; linear layers, matmul and LSTM as products of single vectors."""
    taps, transposed = rows.r * rows.s, rows.is_op("conv_transpose")
    columns = np.where(transposed, rows.in_h * rows.in_w, rows.p * rows.q)
    pairs = np.where(rows.is_op("conv", "conv_transpose"), columns // 2, 0)
    single = columns - 2 * pairs
    filters = rows.k // rows.groups * np.where(transposed, taps, 1)
    depth = rows.c_per_group * np.where(transposed, 1, taps)
    whole, left = depth // STEPS_AT_ONCE, depth % STEPS_AT_ONCE
    of_pair = PAIR_LOOP * whole + PAIR_LEFT * left + SET_UP
    of_single = ROW_LOOP * whole + ROW_LEFT * left + SET_UP
    filter_pairs = (rows.n * rows.groups * ceil_div(filters, 2)).astype(float)
    gathers = rows.is_op("conv") & ((taps > 1) | (rows.stride_h > 1) | (rows.stride_w > 1))
    gathered = np.where(gathers, rows.n * rows.groups * columns * depth, 0)
    scattered = np.where(transposed, rows.n * rows.groups * columns * filters, 0)
    outputs = np.where(transposed, rows.output_elements, rows.n * rows.k * columns)
    instructions = filter_pairs * (pairs * of_pair + single * of_single)
    instructions += GATHER * gathered + SCATTER * scattered + _finish(rows, outputs)
    operand = np.where(rows.is_op("matmul"), rows.other_elements * rows.n * columns, 0)
    loaded = filter_pairs * depth * (4 * pairs + single)  # a column of a pair holds 16-bit numbers
    sram = loaded + 3.0 * gathered + 8.0 * scattered + operand + outputs
    return Work(instructions, sram, rows.n * (pairs + single).astype(float))


def depthwise_work(rows: Columns) -> Work:
    """Four channels at a time, two taps at a time, all channels of a pixel before the next pixel."""
    taps, pixels = rows.r * rows.s, (rows.n * rows.p * rows.q).astype(float)
    of_four = TAPS_LOOP * (taps // 2) + TAP_LEFT * (taps % 2) + SET_UP
    gathered, outputs = pixels * rows.c * taps, pixels * rows.k
    instructions = pixels * ceil_div(rows.k, 4) * of_four + GATHER * gathered + _finish(rows, outputs)
    return Work(instructions, 3.0 * gathered + 2.0 * outputs * taps + outputs, pixels)


def vector_work(rows: Columns) -> Work:
    """Elementwise work, pooling and copies."""
    outputs = rows.output_elements.astype(float)
    seen = np.where(rows.is_op("mean"), rows.input_elements, outputs * rows.r * rows.s)
    instructions = OUTPUT_BY_CODE[rows.op] * outputs + INPUT_BY_CODE[rows.op] * seen
    read = np.where(INPUT_BY_CODE[rows.op] > 0, seen, rows.input_elements + rows.other_elements)
    return Work(instructions, read + outputs, np.zeros(len(rows)))


def _finish(rows: Columns, outputs: np.ndarray) -> np.ndarray:
    """Instructions that turn sums into outputs."""
    other = rows.activation == ACTIVATION_CODES.index("other")
    return np.asarray(outputs * np.where(other, REQUANTISE + TABLE_LOOKUP, REQUANTISE))


def _only(where: np.ndarray, work: Work) -> Work:
    """The work on some rows, nothing on the others."""
    return Work(*(np.where(where, array, 0.0) for array in (work.instructions, work.sram_bytes, work.passes)))
