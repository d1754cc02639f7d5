"""Runtimes as data: which kernel runs which layer, and how each kernel is built (`runtimes/*.yaml`).

A runtime is an ordered list of rules, `{kernel: winograd63, when: {op: [conv], kernel: [3], stride: [1]}}`: the first
one whose conditions all hold names the kernel. A kernel is one of the kinds below with its numbers: register tile,
what it packs, the order in which it walks over its operands. What a kind costs is in `kernels` and `sparse_kernels`.

A runtime that differs little from another one names it: `base: ncnn_2020`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, ValidationInfo

from accel_models.spec import Count, Counts, Fraction, Frozen, NotNegative, Positive, read_machine
from workloads.columns import Columns
from workloads.errors import ConfigError, unknown_name

FOLDER = Path(__file__).parent / "runtimes"
Flags = tuple[str, ...]


class Gemm(Frozen):
    """A matrix product in register tiles, of 1x1 convolutions and of what is lowered to them.

    Attributes:
        tile_pixels, tile_channels: sizes of a register tile, largest first; what is left over takes the next smaller
            one, and fills up the smallest.
        packs_input, packs_weights: whether an operand is copied into tile order at each inference.
        lowers: strided and spatial convolutions are copied to a matrix first (im2col); else read in place.
        walk: what is streamed again. channels: the whole input for each tile of channels. pixels: all weights for each
            tile of pixels. blocks: the input in blocks of `block_bytes` (not given: what the last cache holds), each
            for every tile of channels.
        block_depth: input channels after which the sums go to memory and come back (all of them if not given).
    """

    kind: Literal["gemm"]
    tile_pixels: Counts
    tile_channels: Counts
    packs_input: bool
    packs_weights: bool = False
    lowers: bool
    walk: Literal["channels", "pixels", "blocks"]
    block_bytes: Positive | None = None
    block_depth: Count | None = None


class Winograd(Frozen):
    """F(6x6, 3x3); its 64 products use the register tiles of a gemm."""

    kind: Literal["winograd63"]
    tile_pixels: Counts
    tile_channels: Counts


class Direct(Frozen):
    """Loops over taps with `tile_pixels` x `tile_channels` sums in registers; sums stay in memory between groups of 4
    input channels."""

    kind: Literal["direct"]
    tile_pixels: Count
    tile_channels: Count
    thin_channels: Count


class Depthwise(Frozen):
    """One kernel a channel. Loads and stores of vectors for each tap and vector of outputs; `border`: the input is
    first copied into a frame of zeros."""

    kind: Literal["depthwise"]
    loads_per_tap: NotNegative
    stores_per_tap: NotNegative
    border: bool


class Spmm(Frozen):
    """Non-zero weights times vectors of pixels. Every combination of the three lists is tried.

    Attributes:
        vectors: vectors of pixels held in registers. rows: output channels whose non-zeros share an index and the
            loaded pixels. filter_blocks: into how many blocks the filters are cut.
        registers: that sums may take. index_bytes: stored with each non-zero (block).
        loads, instructions: of one non-zero (block) beside its pixels and multiplications.
        efficiency: cycles by counting instructions over cycles that they take.
    """

    kind: Literal["spmm"]
    vectors: Counts
    rows: Counts
    filter_blocks: Counts
    registers: Count
    index_bytes: Count
    loads: NotNegative
    instructions: NotNegative
    efficiency: Fraction

    @property
    def tiles(self) -> list[tuple[int, int]]:
        """Register tiles that fit: (index into `rows`, vectors of pixels)."""
        return [(i, v) for i, r in enumerate(self.rows) for v in self.vectors if v * r <= self.registers]

    @property
    def blockings(self) -> int:
        """Register tiles times blocks of filters."""
        return len(self.tiles) * len(self.filter_blocks)


class Pattern(Frozen):
    """Kernels sorted by pattern, `sides`^2 vectors of pixels in registers; for at most `limit` distinct patterns."""

    kind: Literal["pattern"]
    sides: Counts
    filter_blocks: Counts
    limit: Count
    index_bytes: Count
    efficiency: Fraction

    @property
    def blockings(self) -> int:
        """Register tiles times blocks of filters."""
        return len(self.sides) * len(self.filter_blocks)


class Plain(Frozen):
    """A kernel without numbers of its own."""

    kind: Literal["naive", "gemv", "vector", "copy"]


Kernel = Annotated[Gemm | Winograd | Direct | Depthwise | Spmm | Pattern | Plain, Field(discriminator="kind")]


class When(Frozen):
    """Conditions on a row; those not given hold.

    Attributes:
        op: names of operations. kind: mac, vector or move.
        kernel: sizes of square kernels. stride: equal strides. dilated, depthwise, grouped: as said.
        min_c: input channels of a group, at least. max_positions: images times output pixels, at most.
        min_bits, max_bits: of the wider operand.
        max_weights_per_input: input times output channels over input pixels, at most.
    """

    op: Flags | None = None
    kind: Flags | None = None
    kernel: tuple[int, ...] | None = None
    stride: tuple[int, ...] | None = None
    dilated: bool | None = None
    depthwise: bool | None = None
    grouped: bool | None = None
    min_c: int | None = None
    max_positions: int | None = None
    min_bits: int | None = None
    max_bits: int | None = None
    max_weights_per_input: float | None = None


def _any_of(column: np.ndarray, values: tuple[int, ...]) -> np.ndarray:
    """Whether each entry is one of a few values (faster than `np.isin` for so few)."""
    return np.asarray(np.logical_or.reduce([column == value for value in values]))


def _is_kind(rows: Columns, kinds: Flags) -> np.ndarray:
    parts = {"mac": rows.is_mac, "vector": rows.is_vector, "move": rows.is_move}
    return np.asarray(np.any([parts[kind] for kind in kinds], axis=0))


def _bits(rows: Columns) -> np.ndarray:
    return np.maximum(rows.weight_bits, rows.input_bits)


CONDITIONS: dict[str, Callable[[Columns, Any], np.ndarray]] = {
    "op": lambda rows, names: rows.is_op(*names),
    "kind": _is_kind,
    "kernel": lambda rows, sizes: (rows.r == rows.s) & _any_of(rows.r, sizes),
    "stride": lambda rows, sizes: (rows.stride_h == rows.stride_w) & _any_of(rows.stride_h, sizes),
    "dilated": lambda rows, value: ((rows.dilation_h > 1) | (rows.dilation_w > 1)) == value,
    "depthwise": lambda rows, value: rows.is_depthwise == value,
    "grouped": lambda rows, value: (rows.groups > 1) == value,
    "min_c": lambda rows, least: rows.c_per_group >= least,
    "max_positions": lambda rows, most: rows.n * rows.p * rows.q <= most,
    "min_bits": lambda rows, least: _bits(rows) >= least,
    "max_bits": lambda rows, most: _bits(rows) <= most,
    "max_weights_per_input": lambda rows, most: rows.k * rows.c <= most * rows.in_h * rows.in_w,
}


class Rule(Frozen):
    """`kernel` runs the rows for which all conditions of `when` hold and no rule before it did."""

    kernel: str
    when: When = When()


class Runtime(Frozen):
    """One inference runtime at one date.

    Attributes:
        name, title, notes, sources: as of a machine.
        dot_product, fp16_arithmetic: instructions that its kernels use where the core has them.
        schedule: how a parallel loop is shared out: static, or idle threads take work from others.
        activation: applied in the kernel's own stores, or in one more pass over the output.
        requantizes: integer layers take and give floats: one more pass over input and output.
        kernels: by name. rules: dense weights. sparse: kernels tried on weights with zeros beside the dense one;
            the fastest runs.
    """

    name: str
    title: str
    notes: str = ""
    sources: Mapping[str, str]
    dot_product: bool
    fp16_arithmetic: bool
    schedule: Literal["static", "stealing"]
    activation: Literal["fused", "pass"]
    requantizes: bool
    kernels: Mapping[str, Kernel]
    rules: tuple[Rule, ...]
    sparse: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Kernel names as prices report them: none, then those of the file."""
        return ("none", *self.kernels)

    def dispatch(self, rows: Columns) -> np.ndarray:
        """Index into `names` of the kernel that runs each row with dense weights, int64 (rows,)."""
        known: dict[str, np.ndarray] = {}

        def holds(condition: str, value: Any) -> np.ndarray:
            key = f"{condition}={value}"
            if key not in known:
                known[key] = CONDITIONS[condition](rows, value)
            return known[key]

        found = np.zeros(len(rows), np.int64)
        for rule in reversed(self.rules):
            given = rule.when.model_fields_set
            where = [holds(name, getattr(rule.when, name)) for name in CONDITIONS if name in given]
            all_hold = np.logical_and.reduce(where) if where else np.ones(len(rows), bool)
            found[all_hold] = self.names.index(rule.kernel)
        return found


def runtimes() -> tuple[str, ...]:
    """Names of the runtimes at hand, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def load_runtime(name: str) -> Runtime:
    """The runtime of that name, or of a YAML file if `name` ends in .yaml.

    Raises:
        ConfigError: unknown name; a rule or the list of sparse kernels names a kernel that the file does not have; some
            layers that work have no rule.
        ValidationError: a field is wrong.
    """
    if not name.endswith(".yaml") and name not in runtimes():
        raise unknown_name("runtime", name, runtimes())
    path = Path(name) if name.endswith(".yaml") else FOLDER / f"{name}.yaml"
    data = read_machine(path)
    runtime = Runtime.model_validate(data, context={"sources": data.get("sources") or {}})
    used = [*(rule.kernel for rule in runtime.rules), *runtime.sparse]
    if unknown := sorted(set(used) - set(runtime.kernels)):
        raise ConfigError(f"{path}: no kernel {', '.join(unknown)}; there are {', '.join(runtime.kernels)}")
    everything = {
        kind for rule in runtime.rules if rule.when.model_fields_set == {"kind"} for kind in rule.when.kind or ()
    }
    if missing := {"mac", "vector", "move"} - everything:
        raise ConfigError(
            f"{path}: no rule runs every {', '.join(sorted(missing))} layer: end with `when: {{kind: ...}}`"
        )
    return runtime


def _named_runtime(given: Any, info: ValidationInfo) -> Any:
    """A runtime by its name."""
    if not isinstance(given, str):
        return given
    try:
        return load_runtime(given)
    except ConfigError as error:
        raise ValueError(str(error)) from error


NamedRuntime = Annotated[Runtime, BeforeValidator(_named_runtime)]
