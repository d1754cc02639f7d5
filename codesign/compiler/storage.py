"""Weights as the convolution kernels read them: which taps every kernel has, which filters agree, and the stream.

PatDNN's FKW storage with two changes: a kernel's offset and weights lie side by side, since they are read together, and
patterns are not given but found in the zeros. Kernels larger than 3x3 are cut into rows, each a kernel of its own, so
that the weights of one fit the registers; rows without weights vanish.

Letters: K filters, C input channels of a group, R x S taps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from codesign.compiler.kernels.outputs import Taps
from codesign.compiler.layout import FLOAT_BYTES, offsets32

MAX_TAPS = 9
"""Of one kernel in the stream: more weights do not fit the registers beside a tile."""
MAX_SHAPES = 12
"""Bodies of code a layer: beyond, a rare shape is computed as a larger one."""
RARE = 0.02
"""Share of the multiplications below which a shape is not worth its code."""


@dataclass(frozen=True)
class Kernels:
    """All kept kernels of a layer, sorted by filter, then shape, then channel.

    Attributes:
        shapes: taps (row, column) without dilation, the first ones at row 0 and column 0 of their bounding box.
        filter, channel, shape, row, column: integer (Q,): whose it is, what it reads, its shape and where that starts.
        weights: float32 (Q, most taps): in the order of the shape's taps, then zeros.
        filters: K.
    """

    shapes: tuple[Taps, ...]
    filter: np.ndarray
    channel: np.ndarray
    shape: np.ndarray
    row: np.ndarray
    column: np.ndarray
    weights: np.ndarray
    filters: int

    @property
    def taps(self) -> int:
        """Multiplications an output pixel, zeros inside of shapes included."""
        return int(np.array([len(shape) for shape in self.shapes] or [0])[self.shape].sum())

    def classes(self) -> list[np.ndarray]:
        """Filters that keep the same kernels, in ascending order of how many; each ascending."""
        starts = np.searchsorted(self.filter, np.arange(self.filters + 1))
        places = np.stack([self.channel, self.shape, self.row, self.column], axis=1).astype(np.int32)
        found: dict[bytes, list[int]] = {}
        for k in range(self.filters):
            found.setdefault(places[starts[k] : starts[k + 1]].tobytes(), []).append(k)
        return [np.array(members) for _, members in sorted(found.items(), key=lambda item: (len(item[0]), item[1]))]


def find_kernels(weight: np.ndarray, groups: int = 1) -> Kernels:
    """The kernels of a weight tensor that are not zero, and their shapes.

    Args:
        weight: (K, C, R, S).
        groups: of channels; filter k reads channels from (k // (K / groups)) * C on.
    """
    filters, _, height, width = weight.shape
    found = list(_windows(weight))
    filter_, channel, row, column, weights = (np.concatenate(parts) for parts in zip(*found, strict=True))
    channel = channel + filter_ // (filters // groups) * weight.shape[1]
    window = (height, width) if height * width <= MAX_TAPS else (1, weights.shape[1])
    shapes, shape, dy, dx = _shapes(weights != 0, window)
    order = np.lexsort((column + dx, row + dy, channel, shape, filter_))
    taps = np.full((max(len(shapes), 1), max(map(len, shapes), default=1)), -1)
    for i, found_taps in enumerate(shapes):
        taps[i, : len(found_taps)] = [y * window[1] + x for y, x in found_taps]
    at = taps[shape] + (dy * window[1] + dx)[:, None]
    values = np.where(taps[shape] >= 0, np.take_along_axis(weights, np.maximum(at, 0), axis=1), 0)
    values = values[order].astype(np.float32)
    filter_, channel, shape, row, column = (a[order] for a in (filter_, channel, shape, row + dy, column + dx))
    return Kernels(shapes, filter_, channel, shape, row, column, values, filters)


def _cuts(height: int, width: int) -> list[tuple[int, int, int, int]]:
    """Windows (row, column, height, width) that cover a kernel, none larger than `MAX_TAPS`, all of one size.

    >>> _cuts(1, 11)
    [(0, 0, 1, 6), (0, 5, 1, 6)]
    """
    if height * width <= MAX_TAPS:
        return [(0, 0, height, width)]
    parts = -(-width // MAX_TAPS)
    step = -(-width // parts)
    return [(y, min(x, width - step), 1, step) for y in range(height) for x in range(0, width, step)]


def _windows(weight: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Of each window the kernels that it does not leave empty: filter, channel, row, column, weights (Q, taps).

    A weight in two windows belongs to the first.
    """
    rest = weight.copy()
    for row, column, height, width in _cuts(*weight.shape[2:]):
        part = rest[:, :, row : row + height, column : column + width]
        filter_, channel = np.nonzero((part != 0).any(axis=(2, 3)))
        values = part[filter_, channel].reshape(len(filter_), height * width)
        yield filter_, channel, np.full(len(filter_), row), np.full(len(filter_), column), values
        part[:] = 0


def _shapes(mask: np.ndarray, window: tuple[int, int]) -> tuple[tuple[Taps, ...], np.ndarray, np.ndarray, np.ndarray]:
    """Shapes that hold every mask (Q, taps of the window), the shape of each, and its shift (rows, columns)."""
    codes = mask @ (1 << np.arange(mask.shape[1]))
    kinds, which, counts = np.unique(codes, return_inverse=True, return_counts=True)
    taps = {int(kind): _taps(int(kind), window) for kind in kinds}
    work: dict[Taps, int] = {}
    for kind, count in zip(kinds, counts, strict=True):
        normal, _ = _normal(taps[int(kind)])
        work[normal] = work.get(normal, 0) + int(count) * len(normal)
    shapes = _kept(work, list(taps.values()), window)
    chosen = [_cover(taps[int(kind)], shapes, window) for kind in kinds]
    table = np.array(chosen, dtype=np.int64).reshape(-1, 3)[which]
    return shapes, table[:, 0], table[:, 1], table[:, 2]


def _taps(code: int, window: tuple[int, int]) -> Taps:
    return tuple(divmod(bit, window[1]) for bit in range(math.prod(window)) if code >> bit & 1)


def _normal(taps: Taps) -> tuple[Taps, tuple[int, int]]:
    """Taps moved to row 0 and column 0, and by how much they were."""
    dy, dx = min(y for y, _ in taps), min(x for _, x in taps)
    return tuple((y - dy, x - dx) for y, x in taps), (dy, dx)


def _kept(work: dict[Taps, int], kinds: list[Taps], window: tuple[int, int]) -> tuple[Taps, ...]:
    """The shapes with most work, and the whole window if it has to stand in for kernels that none of them holds.

    Args:
        work: multiplications of each normal shape. kinds: the taps that occur, where they are: a shape that holds
            them elsewhere may not fit into the window there.
    """
    limit = RARE * sum(work.values())
    ranked = sorted(work, key=lambda shape: (-work[shape], shape))
    kept = [shape for i, shape in enumerate(ranked) if i < MAX_SHAPES - 1 and work[shape] >= limit]
    whole = tuple((y, x) for y in range(window[0]) for x in range(window[1]))
    if whole not in kept and any(_fits(taps, kept, window) is None for taps in kinds):
        kept.append(whole)
    return tuple(sorted(kept))


def _fits(taps: Taps, shapes: list[Taps], window: tuple[int, int]) -> tuple[int, int, int] | None:
    """The smallest shape that holds taps, and its shift: no tap of it may leave the window."""
    best = None
    for i, shape in enumerate(shapes):
        height, width = (1 + max(tap[axis] for tap in shape) for axis in (0, 1))
        for dy in range(window[0] - height + 1):
            for dx in range(window[1] - width + 1):
                held = {(y + dy, x + dx) for y, x in shape}
                if held.issuperset(taps) and (best is None or len(shape) < len(shapes[best[0]])):
                    best = (i, dy, dx)
    return best


def _cover(taps: Taps, shapes: tuple[Taps, ...], window: tuple[int, int]) -> tuple[int, int, int]:
    found = _fits(taps, list(shapes), window)
    assert found is not None, "the whole window is a shape where no other fits"
    return found


# ---- the stream -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Packing:
    """Where things lie, in bytes: a channel, a row and a pixel of the packed tile; a channel of output and residual.

    Attributes:
        residual_first: the filter that reads channel 0 of the residual. residual_channels: how many it has.
    """

    plane: int
    row: int
    pixel: int
    out_plane: int
    residual_plane: int = 0
    residual_first: int = 0
    residual_channels: int = 0

    def inputs(self, kernels: Kernels, rows: np.ndarray) -> np.ndarray:
        """Where kernels begin in the packed tile."""
        return kernels.channel[rows] * self.plane + kernels.row[rows] * self.row + kernels.column[rows] * self.pixel

    def residuals(self, filters: np.ndarray) -> np.ndarray:
        """What is added to filters, from the residual's start; -1 for nothing."""
        source = filters - self.residual_first
        has_one = (source >= 0) & (source < self.residual_channels)
        return np.where(has_one, source * self.residual_plane, -1)


@dataclass(frozen=True)
class FilterGroups:
    """Groups of `filters` that share their kernels, encoded for `ConvolutionKernel`.

    Attributes:
        shapes: those that occur. headers: int32 (groups, fields). stream: int32 words. kernels: (groups,) of each.
    """

    filters: int
    shapes: tuple[Taps, ...]
    headers: np.ndarray
    stream: np.ndarray
    kernels: np.ndarray


def encode(
    kernels: Kernels, bias: np.ndarray, packing: Packing, filters: np.ndarray, most: int
) -> Iterator[FilterGroups]:
    """Headers and stream of some filters, a part for each size of group; sizes are `most` and its halves down to 1."""
    rest = [part[np.isin(part, filters)] for part in kernels.classes()]
    size = most
    while size:
        members = [part[i : i + size] for part in rest for i in range(0, len(part) - size + 1, size)]
        rest = [part[len(part) // size * size :] for part in rest]
        if members:
            yield encode_group(kernels, bias, packing, np.array(members))
        size //= 2


def encode_group(kernels: Kernels, bias: np.ndarray, packing: Packing, members: np.ndarray) -> FilterGroups:
    """Headers and stream of groups; `members`: the filters of each, (groups, size), which keep the same kernels."""
    count, size = members.shape
    starts = np.searchsorted(kernels.filter, np.arange(kernels.filters + 1))
    spans = [np.arange(starts[k], starts[k + 1]) for k in members[:, 0]]
    rows = np.concatenate(spans) if spans else np.zeros(0, np.int64)
    group = np.repeat(np.arange(count), [len(span) for span in spans])
    within = np.arange(len(rows)) - np.repeat(np.cumsum([0, *map(len, spans)])[:-1], [len(span) for span in spans])
    used = np.unique(kernels.shape[rows])
    shapes = tuple(kernels.shapes[i] for i in used)
    shape = np.searchsorted(used, kernels.shape[rows])

    taps = np.array([len(taps) for taps in shapes] or [0])
    words = 1 + taps[shape] * size
    ends = np.cumsum(words)
    stream = np.zeros(int(ends[-1]) if len(ends) else 0, np.int32)
    begin = ends - words
    stream[begin] = offsets32(packing.inputs(kernels, rows))
    values = stream.view(np.float32)
    for i, length in enumerate(taps):
        here = np.flatnonzero(shape == i)
        for which in range(size):
            own = starts[members[group[here], which]] + within[here]
            at = begin[here, None] + 1 + np.arange(length) * size + which
            values[at] = kernels.weights[own, :length]

    first = np.searchsorted(group, np.arange(count))
    start = np.append(begin, len(stream))[first] * FLOAT_BYTES
    counts = np.zeros((count, len(shapes)), np.int64)
    np.add.at(counts, (group, shape), 1)
    integers = [start[:, None], counts, members * packing.out_plane, packing.residuals(members)]
    biases = bias[members].astype(np.float32).view(np.int32)
    headers = np.concatenate([offsets32(np.concatenate(integers, axis=1)), biases], axis=1)
    return FilterGroups(size, shapes, np.ascontiguousarray(headers), stream, counts.sum(axis=1))


def decode(parts: Iterable[FilterGroups], packing: Packing, shape: tuple[int, int, int, int]) -> np.ndarray:
    """The weights that headers and streams stand for: (K, channels that are read, R, S), as `shape` says."""
    found = np.zeros(shape, np.float32)
    for part in parts:
        for header in part.headers:
            word = int(header[0]) // FLOAT_BYTES
            filters = header[1 + len(part.shapes) :][: part.filters] // packing.out_plane
            for taps, count in zip(part.shapes, header[1:], strict=False):
                for _ in range(count):
                    channel, place = divmod(int(part.stream[word]), packing.plane)
                    row, column = place // packing.row, place % packing.row // packing.pixel
                    end = word + 1 + len(taps) * part.filters
                    values = part.stream[word + 1 : end].view(np.float32).reshape(len(taps), part.filters)
                    for (y, x), value in zip(taps, values, strict=True):
                        found[filters, channel, row + y, column + x] += value
                    word = end
    return found


@dataclass(frozen=True)
class FilterRuns:
    """Some filters, encoded for `ScatterKernel`.

    Attributes:
        shapes: of the layer. headers: int32 (filters, 3). counts: int32, runs of each shape. stream: int32 words.
        kernels: of all of them.
    """

    shapes: tuple[Taps, ...]
    headers: np.ndarray
    counts: np.ndarray
    stream: np.ndarray
    kernels: int


def encode_runs(kernels: Kernels, bias: np.ndarray, packing: Packing, filters: np.ndarray, size: int) -> FilterRuns:
    """Headers and stream of some filters, ascending, whose sums take `size` bytes each."""
    rows = np.flatnonzero(np.isin(kernels.filter, filters))
    keys = np.stack([kernels.shape[rows], kernels.channel[rows], kernels.row[rows], kernels.column[rows]])
    order = np.lexsort((kernels.filter[rows], *keys[::-1]))
    rows, keys = rows[order], keys[:, order]
    is_first = np.ones(len(rows), bool)
    is_first[1:] = (keys[:, 1:] != keys[:, :-1]).any(axis=0)
    taps = np.array([len(taps) for taps in kernels.shapes] or [0])[keys[0]]
    words = 1 + taps + 2 * is_first
    ends = np.cumsum(words)
    stream = np.zeros(int(ends[-1]) if len(ends) else 0, np.int32)
    runs = (ends - words)[is_first]
    stream[runs] = offsets32(packing.inputs(kernels, rows[is_first]))
    stream[runs + 1] = np.diff([*np.flatnonzero(is_first), len(rows)])
    own = ends - taps - 1
    stream[own] = np.searchsorted(filters, kernels.filter[rows]) * size
    for length in np.unique(taps):
        here = taps == length
        stream.view(np.float32)[own[here, None] + 1 + np.arange(length)] = kernels.weights[rows[here], :length]
    integers = [filters * packing.out_plane, packing.residuals(filters)]
    headers = np.stack([*(offsets32(part) for part in integers), bias[filters].astype(np.float32).view(np.int32)], 1)
    counts = np.bincount(keys[0, is_first], minlength=len(kernels.shapes)).astype(np.int32)
    return FilterRuns(kernels.shapes, np.ascontiguousarray(headers), counts, stream, len(rows))
