"""How many bits a weight tensor takes in the usual encodings of zeros.

One function an encoding, all of the form f(zeros, weight_bits, options) -> bits. `zeros` is a `WeightSparsity` (one
number comes back: exact from a mask, the expectation from a density) or `RandomMasks` (an array over rows).
`ENCODINGS` maps names to the functions; every option has a default. What decoders need besides the stream (the shape,
the option values) is not counted.

Letters: K, C, R, S as in `workloads.sparsity`; b bits of a weight; nnz non-zeros.
Checked encodings (N:M, FKW, window) store a fixed number of weights a group. An exact mask that does not fit is an
error; of a density it is taken on trust that the mask will be made to fit, and only one that cannot fit is an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import numpy as np

from workloads.errors import ConfigError, unknown_name
from workloads.random_masks import Stream
from workloads.sparsity import check_nm

T = TypeVar("T", float, np.ndarray)
T_co = TypeVar("T_co", float, np.ndarray, covariant=True)


class Zeros(Protocol[T_co]):
    """What an encoding asks of `WeightSparsity` (numbers) and `RandomMasks` (arrays); they document the members."""

    @property
    def is_exact(self) -> bool: ...
    @property
    def k(self) -> T_co: ...
    @property
    def c(self) -> T_co: ...
    @property
    def r(self) -> T_co: ...
    @property
    def s(self) -> T_co: ...
    @property
    def elements(self) -> T_co: ...
    @property
    def nonzeros(self) -> T_co: ...
    @property
    def zero_kernels(self) -> T_co: ...
    def block_count(self, block_k: int, block_c: int) -> T_co: ...
    def block_nonzeros(self, block_k: int, block_c: int) -> T_co: ...
    def run_length_entries(self, run_bits: int, stream: Stream = ..., lanes: int = ...) -> T_co: ...
    def satisfies_nm(self, n: int, m: int) -> bool: ...
    def follows_patterns(self, entries: int = ..., limit: int | None = ...) -> bool: ...


def dense_bits(zeros: Zeros[T], weight_bits: float) -> T:
    """K C R S b."""
    return zeros.elements * weight_bits


def bitmask_bits(zeros: Zeros[T], weight_bits: float) -> T:
    """One bit a weight, then the non-zeros: K C R S + nnz b."""
    return zeros.elements + zeros.nonzeros * weight_bits


def run_length_bits(
    zeros: Zeros[T], weight_bits: float, run_bits: int = 4, stream: Stream = "layer", lanes: int = 1
) -> T:
    """Entries (run of zeros before it, value), padding entries included: entries * (b + run_bits).

    Orders and padding rule: `WeightSparsity.run_length_counts`. The start of each stream is not counted; EIE, for
    instance, adds one pointer a column and lane.
    """
    return zeros.run_length_entries(run_bits, stream, lanes) * (weight_bits + run_bits)


def csr_bits(zeros: Zeros[T], weight_bits: float, index_bits: int | None = None, pointer_bits: int | None = None) -> T:
    """The matrix K x (C R S) by rows: nnz (b + index_bits) + (K + 1) pointer_bits.

    Args:
        index_bits: of a column index; default ceil(log2(C R S)).
        pointer_bits: of a row start; default ceil(log2(K C R S + 1)), enough for any mask of the shape.
    """
    index: T | int = _address_bits(zeros.elements / zeros.k) if index_bits is None else index_bits
    pointer: T | int = _address_bits(zeros.elements + 1) if pointer_bits is None else pointer_bits
    return zeros.nonzeros * (weight_bits + index) + (zeros.k + 1) * pointer


def csc_bits(zeros: Zeros[T], weight_bits: float, index_bits: int | None = None, pointer_bits: int | None = None) -> T:
    """The matrix K x (C R S) by columns: nnz (b + index_bits) + (C R S + 1) pointer_bits.

    Args:
        index_bits: of a row index; default ceil(log2(K)).
        pointer_bits: of a column start; default ceil(log2(K C R S + 1)).
    """
    index: T | int = _address_bits(zeros.k) if index_bits is None else index_bits
    pointer: T | int = _address_bits(zeros.elements + 1) if pointer_bits is None else pointer_bits
    return zeros.nonzeros * (weight_bits + index) + (zeros.elements / zeros.k + 1) * pointer


def nm_bits(zeros: Zeros[T], weight_bits: float, n: int = 2, m: int = 4) -> T:
    """N:M along input channels: slots * (b + ceil(log2 m)), whether or not a slot's weight is zero.

    Slots: n in every group of m successive input channels at one (k, r, s), and min(n, rest) in a short last group.

    Raises:
        ConfigError: more than n non-zeros in a group; or more expected non-zeros than slots.
    """
    check_nm(n, m)
    groups, rest = zeros.c // m, zeros.c % m
    slots: T = zeros.k * zeros.r * zeros.s * (groups * n + np.minimum(n, rest))
    if not (zeros.satisfies_nm(n, m) if zeros.is_exact else np.all(zeros.nonzeros <= slots)):
        raise ConfigError(f"{zeros!r} does not keep to {n}:{m} along input channels; prune to {n}:{m} or use bitmask")
    return slots * (weight_bits + _address_bits(m))


def block_bits(zeros: Zeros[T], weight_bits: float, block_k: int = 4, block_c: int = 4) -> T:
    """One bit a block, then every weight of the blocks with any non-zero: blocks + hit * block_k block_c b.

    A block is block_k filters x block_c input channels at one kernel position; ragged blocks are stored padded to full.
    """
    stored = zeros.block_nonzeros(block_k, block_c) * (block_k * block_c)
    return zeros.block_count(block_k, block_c) + stored * weight_bits


def fkw_bits(zeros: Zeros[T], weight_bits: float, entries: int = 4, patterns: int = 8, index_bits: int = 16) -> T:
    """Filter-kernel-weight storage of pattern-pruned kernels (Niu et al., "PatDNN", ASPLOS 2020), `workloads.fkw`.

    With F = K filters, Q kernels that are not all zero and P patterns:

        entries Q b + Q index_bits + F (P + 1) index_bits + (2 F + 1) index_bits

    Args:
        entries: weights kept in a kernel; patterns: P; index_bits: width of every index, count and offset (16 is
            assumed, the paper's code keeps integers).

    Raises:
        ConfigError: the non-zeros do not lie inside `patterns` patterns of `entries` positions; or a density above
            entries / (R S). Of a density Q = nnz / entries: every kernel that is left is full.
    """
    if entries < 1:
        raise ConfigError(f"patterns of {entries} entries, needs at least 1")
    kernels, fits = _kept_kernels(zeros, entries, patterns)
    if not fits:
        raise ConfigError(f"{zeros!r} does not follow {patterns} patterns of {entries}; prune to patterns or use csr")
    indices = kernels + zeros.k * (patterns + 1) + 2 * zeros.k + 1
    return kernels * (entries * weight_bits) + indices * index_bits


def window_bits(zeros: Zeros[T], weight_bits: float, entries: int = 4) -> T:
    """One bit a kernel, then `entries` weights of every kernel that is not all zero: K C + Q (entries b + index).

    The storage of Campfire's windows and removed kernels: with the same number of weights in every kernel, each kernel
    takes the same number of bits, and no lengths or pointers are stored. A kernel's index is what is shorter of a bit a
    position and `entries` positions, min(R S, entries ceil(log2(R S))); whole kernels (entries = R S) need none.

    Raises:
        ConfigError: a kernel with more non-zeros, or with fewer that lie in none of the full ones; or a density above
            entries / (R S). Of a density Q = nnz / entries: every kernel that is left is full.
    """
    if entries < 1:
        raise ConfigError(f"windows of {entries} entries, needs at least 1")
    kernels, fits = _kept_kernels(zeros, entries)
    if not fits:
        raise ConfigError(f"{zeros!r} does not keep {entries} weights of every kernel; prune to windows or use bitmask")
    area = zeros.r * zeros.s
    index: T = np.minimum(area, entries * _address_bits(area)) * (area > entries)
    return zeros.k * zeros.c + kernels * (entries * weight_bits + index)


ENCODINGS: Mapping[str, Callable[..., Any]] = {
    "dense": dense_bits,
    "bitmask": bitmask_bits,
    "run_length": run_length_bits,
    "csr": csr_bits,
    "csc": csc_bits,
    "nm": nm_bits,
    "block": block_bits,
    "fkw": fkw_bits,
    "window": window_bits,
}


def encoding(name: str) -> Callable[..., Any]:
    """The size function of a name in `ENCODINGS`; a ConfigError names the known ones.

    >>> from workloads.sparsity import WeightSparsity
    >>> encoding("bitmask")(WeightSparsity.from_density((64, 64, 3, 3), 0.25), weight_bits=8)
    110592.0
    """
    if name not in ENCODINGS:
        raise unknown_name("encoding", name, ENCODINGS)
    return ENCODINGS[name]


def _kept_kernels(zeros: Zeros[T], entries: int, patterns: int | None = None) -> tuple[T, bool]:
    """Kernels that are not all zero, and whether they fit into so many patterns of `entries` weights."""
    if zeros.is_exact:
        return zeros.k * zeros.c - zeros.zero_kernels, zeros.follows_patterns(entries, patterns)
    kernels: T = zeros.nonzeros / entries
    return kernels, bool(np.all(kernels <= zeros.k * zeros.c) and np.all(zeros.r * zeros.s >= entries))


def _address_bits(places: T) -> T:
    """ceil(log2(places)): bits that tell `places` places apart."""
    if isinstance(places, np.ndarray):
        return np.ceil(np.log2(places))
    return math.ceil(math.log2(places))
