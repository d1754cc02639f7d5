"""Runtimes as data: which kernel runs which layer, and how each kernel is built (`runtimes/*.yaml`).

A runtime is an ordered list of rules, `{kernel: winograd63, when: {op: [conv], kernel: [3], stride: [1]}}`: the first
one whose conditions all hold names the kernel. A kernel is one of the kinds below with its numbers: register tile,
what it packs, the order in which it walks over its operands. What a kind costs is in `kernels` and `sparse_kernels`.

A runtime that differs little from another one beside it names it: `base: ncnn_2020`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, Field, ValidationError, model_validator

from accel_models.spec import Count, Counts, Fraction, Frozen, NotNegative, Positive, read_machine
from workloads.columns import Columns
from workloads.errors import ConfigError, unknown_name
from workloads.graph import KIND, Kind, Op

FOLDER = Path(__file__).parent / "runtimes"
OPS = tuple(op.value for op in Op if KIND[op] is not Kind.NONE)


def at_least_one(given: tuple[Any, ...]) -> tuple[Any, ...]:
    """A list that is not empty. (Checked after its items, so that a wrong item is not reported twice.)"""
    if not given:
        raise ValueError("found [], must list at least one")
    return given


def _positive(sizes: tuple[int, ...]) -> tuple[int, ...]:
    if not sizes or min(sizes) < 1:
        raise ValueError(f"found {list(sizes)}, must list one or more numbers, each at least 1")
    return sizes


def _falling(sizes: tuple[int, ...]) -> tuple[int, ...]:
    if any(small >= large for large, small in itertools.pairwise(sizes)):
        raise ValueError(f"found {list(sizes)}, must be given largest first, each once")
    return sizes


def _with_one(sizes: tuple[int, ...]) -> tuple[int, ...]:
    if 1 not in sizes:
        raise ValueError(f"found {list(sizes)}, must list 1, single non-zeros, too")
    return sizes


def _known_ops(names: tuple[str, ...]) -> tuple[str, ...]:
    if unknown := [name for name in names if name not in OPS]:
        raise ValueError(f"found {unknown[0]!r}, must be one of {', '.join(OPS)}")
    return names


Sizes = Annotated[Counts, AfterValidator(_positive)]
TileSizes = Annotated[Sizes, AfterValidator(_falling)]
Numbers = Annotated[tuple[int, ...], AfterValidator(_positive)]
OpNames = Annotated[tuple[str, ...], AfterValidator(at_least_one), AfterValidator(_known_ops)]
KindNames = Annotated[tuple[Literal["mac", "vector", "move"], ...], AfterValidator(at_least_one)]


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
    tile_pixels: TileSizes
    tile_channels: TileSizes
    packs_input: bool
    packs_weights: bool = False
    lowers: bool
    walk: Literal["channels", "pixels", "blocks"]
    block_bytes: Positive | None = None
    block_depth: Count | None = None


class Winograd(Frozen):
    """F(6x6, 3x3); its 64 products use the register tiles of a gemm."""

    kind: Literal["winograd63"]
    tile_pixels: TileSizes
    tile_channels: TileSizes


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
    vectors: Sizes
    rows: Annotated[Sizes, AfterValidator(_with_one)]
    filter_blocks: Sizes
    registers: Count
    index_bytes: Count
    loads: NotNegative
    instructions: NotNegative
    efficiency: Fraction

    @model_validator(mode="after")
    def _some_tile_fits(self) -> Spmm:
        if not self.tiles:
            raise ValueError(f"registers: found {self.registers}, must hold a register tile of the smallest vectors")
        return self

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
    sides: Sizes
    filter_blocks: Sizes
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

    op: OpNames | None = None
    kind: KindNames | None = None
    kernel: Numbers | None = None
    stride: Numbers | None = None
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


def _is_kind(rows: Columns, kinds: tuple[str, ...]) -> np.ndarray:
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


def is_runtime(path: Path) -> bool:
    """Whether a YAML file describes a runtime: it, or what it is based on, has kernels and is of no family of machines.

    A file that cannot be read is none.
    """
    try:
        data = read_machine(path, library=FOLDER)
    except ConfigError:
        return False
    return "kernels" in data and "family" not in data


def load_runtime(name: str, beside: Path | None = None) -> Runtime:
    """The runtime of that name, or of a YAML file if `name` ends in .yaml.

    Args:
        name: one of `runtimes()`, of a runtime file `NAME.yaml` in the folder `beside` (which comes first), or a path.
        beside: folder that a path starts from; where there is no such file, from the current folder.

    Raises:
        ConfigError: unknown name, or a file that cannot be read or is wrong; lists every mistake with its field.
    """
    if not name.endswith((".yaml", ".yml")):
        if beside and is_runtime(own := beside / f"{name}.yaml"):
            return _read(own)
        if name not in runtimes():
            raise unknown_name("runtime", name, runtimes())
        return _packaged(name)
    places = [folder / name for folder in (beside or Path(), Path())]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise ConfigError(f"no file {' or '.join(dict.fromkeys(str(place.absolute()) for place in places))}")
    return _read(path)


@cache
def _packaged(name: str) -> Runtime:
    return _read(FOLDER / f"{name}.yaml")


def _read(path: Path) -> Runtime:
    """A runtime file, checked."""
    data = read_machine(path, library=FOLDER)
    sources = data.get("sources")
    try:
        runtime = Runtime.model_validate(data, context={"sources": sources if isinstance(sources, dict) else {}})
    except ValidationError as error:
        raise ConfigError(f"{path}: {'; '.join(_mistakes(error))}") from error
    if mistakes := list(_dangling(runtime)):
        raise ConfigError(f"{path}: {'; '.join(mistakes)}")
    return runtime


def _mistakes(error: ValidationError) -> Iterator[str]:
    """One `path: found value, what is allowed` for every mistake; kernels by name alone."""
    for mistake in error.errors():
        where = mistake["loc"][:2] + mistake["loc"][3:] if mistake["loc"][:1] == ("kernels",) else mistake["loc"]
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).lstrip(".")
        given, message = mistake["input"], mistake["msg"].removeprefix("Value error, ")
        shown = "" if isinstance(given, dict) or mistake["type"] in ("missing", "value_error") else f"{given!r}, "
        yield f"{path}: {shown}{message[0].lower()}{message[1:]}"


def _dangling(runtime: Runtime) -> Iterator[str]:
    """Names of kernels that do not exist or are of the other sort, and layers that no rule runs."""
    sparse = [name for name, kernel in runtime.kernels.items() if isinstance(kernel, Spmm | Pattern)]
    dense = [name for name in runtime.kernels if name not in sparse]
    for i, rule in enumerate(runtime.rules):
        if rule.kernel not in dense:
            yield f"rules[{i}].kernel: {rule.kernel!r}, must be one of {', '.join(dense)}"
    for i, name in enumerate(runtime.sparse):
        if name not in sparse:
            yield f"sparse[{i}]: {name!r}, must be one of {', '.join(sparse) or 'none: no kernel is a sparse one'}"
    always = {kind for rule in runtime.rules if rule.when.model_fields_set == {"kind"} for kind in rule.when.kind or ()}
    if missing := {"mac", "vector", "move"} - always:
        yield f"rules: no rule runs every {', '.join(sorted(missing))} layer, must end with `when: {{kind: ...}}`"
