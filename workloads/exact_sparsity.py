"""Counts of a known mask: the exact half of `workloads.sparsity`, which documents every method and the letters.

The mask is kept as one bit a weight; every count starts from the bits, most are made when first asked for.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from workloads.errors import ConfigError
from workloads.random_masks import Assignment, Axis, Balance, Stream, check_run_length, check_sharing, check_tile
from workloads.sparsity import Shape, WeightSparsity, channel_index, check_entries, check_nm, frozen

if TYPE_CHECKING:
    from workloads.expected_sparsity import ExpectedSparsity


@dataclass(frozen=True, eq=False, repr=False)
class ExactSparsity(WeightSparsity):
    """A known mask. Made by `WeightSparsity.from_mask`; the methods are described there.

    Attributes:
        shape: (K, C, R, S).
        packed: uint8, (K, ceil(C R S / 8)), read-only; a row is a filter, its bits in C, R, S order, the first weight
            in the highest bit, the spare bits of the last byte 0.
    """

    shape: Shape
    packed: np.ndarray

    @property
    def is_exact(self) -> bool:
        return True

    @property
    def density(self) -> float:
        return self.nonzeros / self.elements

    @cached_property
    def nonzeros(self) -> int:
        return int(self.filter_counts.sum())

    @cached_property
    def content_hash(self) -> str:
        digest = hashlib.sha256(f"exact {self.shape} ".encode())
        digest.update(np.ascontiguousarray(self.packed).data)
        return digest.hexdigest()

    def to_dict(self) -> dict[str, Any]:
        text = base64.b64encode(zlib.compress(self.packed.tobytes())).decode("ascii")
        return {"form": "exact", "shape": list(self.shape), "bits": text}

    def mask(self) -> np.ndarray:
        return self._ones.reshape(self.shape).view(np.bool_)

    def sample(self, rng: np.random.Generator) -> ExactSparsity:
        return self

    @property
    def kernel_counts(self) -> np.ndarray:
        """Non-zeros of each kernel, int32 (K, C)."""
        return self._kernel_counts.astype(np.int32)

    @cached_property
    def filter_counts(self) -> np.ndarray:
        """Non-zeros of each filter, int64 (K,), read-only."""
        return frozen(np.bitwise_count(self.packed).sum(axis=1, dtype=np.int64))

    @cached_property
    def input_channel_counts(self) -> np.ndarray:
        """Non-zeros that read each input channel, int64 (C,), read-only; with groups, of every group together."""
        return frozen(self._kernel_counts.sum(axis=0, dtype=np.int32).astype(np.int64))

    def tile_counts(self, tile_k: int, tile_c: int) -> np.ndarray:
        check_tile(tile_k, tile_c)
        return _tile_sums(self._kernel_counts, tile_k, tile_c)

    def row_tile_counts(self, tile_k: int, tile_c: int) -> np.ndarray:
        check_tile(tile_k, tile_c)
        rows = _sum_last(self._ones.reshape(-1, self.s)).reshape(self.k, self.c, self.r)
        return np.stack([_tile_sums(rows[:, :, i], tile_k, tile_c) for i in range(self.r)])

    def balance(self, units: int, axis: Axis = "filter", assignment: Assignment = "block") -> Balance[float]:
        check_sharing(units, axis, assignment)
        counts = self.filter_counts if axis == "filter" else self.input_channel_counts
        share = -(-len(counts) // units)
        padded = np.zeros(share * units, np.int64)
        padded[: len(counts)] = counts
        loads = (
            padded.reshape(units, share).sum(axis=1) if assignment == "block" else padded.reshape(share, units).sum(0)
        )
        return Balance(self.nonzeros / units, int(loads.max()))

    def tile_balance(self, tile_k: int, tile_c: int) -> Balance[float]:
        counts = self.tile_counts(tile_k, tile_c)
        return Balance(self.nonzeros / counts.size, int(counts.max()))

    @property
    def zero_filters(self) -> int:
        return int(np.count_nonzero(self.filter_counts == 0))

    @property
    def zero_input_channels(self) -> int:
        return int(np.count_nonzero(self.input_channel_counts == 0))

    @property
    def zero_kernels(self) -> int:
        return self.k * self.c - int(np.count_nonzero(self._kernel_counts))

    @property
    def distinct_patterns(self) -> int:
        return len(self.kernel_patterns)

    @cached_property
    def kernel_patterns(self) -> np.ndarray:
        """The different masks of the kernels that are not all zero, bool (m, R, S), read-only.

        The most frequent comes first; ties are in ascending order of the mask read as a binary number.
        """
        positions = self.r * self.s
        kernels = self._ones.reshape(-1, positions)[self._kernel_counts.ravel() > 0]
        codes = np.packbits(kernels, axis=1)
        if codes.shape[1] <= 8:  # one integer a kernel sorts faster than a row of bytes
            width = 2 if codes.shape[1] <= 2 else 8
            wide = np.zeros((len(codes), width), np.uint8)
            wide[:, : codes.shape[1]] = codes
            values, counts = np.unique(wide.view(f">u{width}").ravel().astype(f"u{width}"), return_counts=True)
            codes = values.astype(f">u{width}").view(np.uint8).reshape(-1, width)
        else:
            codes, counts = np.unique(codes, axis=0, return_counts=True)
        ordered = codes[np.argsort(-counts, kind="stable")]
        return frozen(np.unpackbits(ordered, axis=1, count=positions).view(np.bool_).reshape(-1, self.r, self.s))

    def follows_patterns(self, entries: int = 4, limit: int | None = None) -> bool:
        check_entries(entries, self)
        if self._kernel_counts.max() > entries:
            return False
        patterns = self.kernel_patterns.reshape(-1, self.r * self.s)
        is_full = patterns.sum(axis=1) == entries
        full, partial = patterns[is_full], patterns[~is_full]
        outside = partial.astype(np.int64) @ (~full).T.astype(np.int64)
        return (limit is None or len(full) <= limit) and bool((outside == 0).any(axis=1).all())

    def satisfies_nm(self, n: int, m: int) -> bool:
        check_nm(n, m)
        weights = self._ones.reshape(self.k, self.c, -1)
        kept = np.add.reduceat(weights, np.arange(0, self.c, m), axis=1, dtype=np.uint8 if m < 256 else np.int64)
        return bool(kept.max() <= n)

    def block_nonzeros(self, block_k: int, block_c: int) -> int:
        check_tile(block_k, block_c)
        across = np.bitwise_or.reduceat(self._ones.reshape(self.k, self.c, -1), np.arange(0, self.c, block_c), axis=1)
        return int(np.count_nonzero(np.bitwise_or.reduceat(across, np.arange(0, self.k, block_k), axis=0)))

    def run_length_counts(self, run_bits: int, stream: Stream = "layer", lanes: int = 1) -> np.ndarray:
        check_run_length(run_bits, stream, lanes)
        streams = self._streams(stream, lanes)
        number, length = streams.shape
        at = np.flatnonzero(streams.view(np.bool_))
        owner = at // length
        before = np.concatenate([[-1], at[:-1]])
        run = at - np.maximum(before, owner * length - 1) - 1
        counts = np.bincount(owner, weights=1 + (run >> run_bits), minlength=number).astype(np.int64)
        return counts.reshape(self.c, lanes) if stream == "input_channel" else counts

    def select(self, k_index: ArrayLike | None = None, c_index: ArrayLike | None = None) -> ExactSparsity:
        filters = channel_index(k_index, self.k, "filter")
        if c_index is None:
            return ExactSparsity((len(filters), *self.shape[1:]), frozen(self.packed[filters]))
        return WeightSparsity.from_mask(self.mask()[filters][:, channel_index(c_index, self.c, "input channel")])

    def resized(self, k: int, c: int) -> ExpectedSparsity:
        raise ConfigError("the mask is exact, so it matters which channels stay; use select(k_index, c_index)")

    @property
    def _ones(self) -> np.ndarray:
        """The mask as 0 and 1, uint8 (K, C R S), a fresh copy."""
        return np.unpackbits(self.packed, axis=1, count=self.elements // self.k)

    @property
    def _kernel_counts(self) -> np.ndarray:
        """Non-zeros of each kernel in a small type, (K, C); cached unless it is the mask itself."""
        return self._ones.reshape(self.k, self.c) if self.r * self.s == 1 else self._cached_kernel_counts

    @cached_property
    def _cached_kernel_counts(self) -> np.ndarray:
        return _sum_last(self._ones.reshape(-1, self.r * self.s)).reshape(self.k, self.c)

    def _streams(self, stream: Stream, lanes: int) -> np.ndarray:
        """The mask by run-length stream, uint8 (streams, length); short lanes end in zeros, which cost nothing."""
        if stream != "input_channel":
            return self._ones.reshape(1 if stream == "layer" else self.k, -1)
        rows = -(-self.k // lanes)
        padded = np.zeros((rows * lanes, self.c, self.r * self.s), np.uint8)
        padded[: self.k] = self._ones.reshape(self.k, self.c, -1)
        by_lane = padded.reshape(rows, lanes, self.c, -1).transpose(2, 1, 0, 3)
        return np.ascontiguousarray(by_lane).reshape(self.c * lanes, -1)


def _sum_last(ones: np.ndarray) -> np.ndarray:
    """Row sums of a 0/1 array, uint8 (n, m), as uint8 where they fit, else int32."""
    if ones.shape[1] < 256:
        return np.asarray(np.einsum("ij->i", ones))
    return np.asarray(ones.sum(axis=1, dtype=np.int32))


def _tile_sums(counts: np.ndarray, tile_k: int, tile_c: int) -> np.ndarray:
    k, c = counts.shape
    across = np.add.reduceat(counts, np.arange(0, c, tile_c), axis=1, dtype=np.int32)
    return np.add.reduceat(across, np.arange(0, k, tile_k), axis=0).astype(np.int64)


def unpack_text(text: object, shape: Shape) -> np.ndarray:
    """Packed bits from `to_dict`; never inflates more than the shape needs."""
    row = -(-math.prod(shape[1:]) // 8)
    size = shape[0] * row
    try:
        inflater = zlib.decompressobj()
        raw = inflater.decompress(base64.b64decode(text, validate=True), size + 1)  # type: ignore[arg-type]
    except (binascii.Error, zlib.error, TypeError, ValueError) as error:
        raise ConfigError(f"sparsity.bits: cannot be read ({error})") from error
    packed = np.frombuffer(raw, np.uint8)
    if len(raw) != size or not inflater.eof:
        raise ConfigError(f"sparsity.bits: not the {size} bytes that shape {shape} needs")
    packed = packed.reshape(shape[0], row)
    if (packed[:, -1] & ((1 << (row * 8 - math.prod(shape[1:]))) - 1)).any():
        raise ConfigError("sparsity.bits: spare bits at the end of a filter are not 0")
    return packed
