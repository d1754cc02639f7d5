"""What a reshape does to channels: flatten, unflatten, split into heads, shuffle.

A reshape keeps the order of all elements, so it is understood once every element that goes before it is one that goes
after it. Axes are matched into the smallest blocks of equal product: (n, c, h, w) -> (n, c h w) has the blocks n | n
and c, h, w | c h w. Inside a block with one axis of channels:

* one axis after: it carries the channels, each repeated as often as the axes inside it say (flatten -> linear);
* several axes after: one of them must carry the channels alone, and what it does not tell apart is tied. If an axis
  carries them already (the inverse of a flatten), nothing is tied. Otherwise it is chosen by what follows:
  a swap of the two axes is a channel shuffle, and the inner one shrinks (groups stay); an axis over which a matmul is
  repeated is the heads, and shrinks (the size of a head stays); of an image that is convolved the channels shrink; an
  axis of which parts are taken, such as the 3 of packed queries, keys and values, does not. A vector that becomes an
  image, (n, c h w) -> (n, c, h, w), is one of c channels where nothing tells.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from workloads.graph import Layer, LayerGraph, Op

if TYPE_CHECKING:
    from workloads.channel_rules import Axes, Flow

CARRIED, UNKNOWN, MULTIPLIED, CUT = range(4)  # what becomes of an axis, best carrier of channels first
_ELEMENTWISE = frozenset({Op.ADD, Op.MUL, Op.ACTIVATION, Op.SOFTMAX, Op.NORM, Op.EXPAND})
_IMAGES = frozenset({Op.CONV, Op.CONV_TRANSPOSE, Op.MAX_POOL, Op.AVG_POOL, Op.UPSAMPLE, Op.PIXEL_SHUFFLE})
_FAR = 16  # layers to look ahead


def reshape(flow: Flow, layer: Layer) -> Axes:
    """Labels after a reshape; ties and fixes what it needs."""
    source, shape = flow.axes[layer.inputs[0]], flow.graph[layer.inputs[0]].shape
    axes: list[np.ndarray | None] = [None] * len(layer.shape)
    for labels, size in zip(source, shape, strict=True):
        flow.fix(labels if size == 1 else None, f"{layer.name!r} drops an axis of one channel")
    for before, after in blocks(shape, layer.shape):
        labelled = [axis for axis in before if source[axis] is not None]
        if len(labelled) > 1:
            flow.fix_all(tuple(source[axis] for axis in labelled), f"{layer.name!r} merges several axes of channels")
        elif labelled:
            flat = _flat(source, shape, before)
            if _is_one_channel(flow.graph, layer, before, after):
                flow.fix(flat, f"{layer.name!r} makes the rows and columns of one channel of them")
            else:
                axis, labels = _carrier(flow, layer, flat, after)
                axes[axis] = labels
    return tuple(axes)


def blocks(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """The smallest runs of axes of equal product; axes of size 1 belong to none.

    >>> list(blocks((2, 8, 3, 3), (2, 72)))
    [([0], [0]), ([1, 2, 3], [1])]
    >>> list(blocks((1, 8, 4), (2, 4, 1, 4)))
    [([1], [0, 1]), ([2], [3])]
    """
    left = [axis for axis, size in enumerate(before) if size > 1]
    right = [axis for axis, size in enumerate(after) if size > 1]
    while left:
        ins, outs = [left.pop(0)], [right.pop(0)]
        while (gap := math.prod(before[i] for i in ins) - math.prod(after[i] for i in outs)) != 0:
            if gap < 0:
                ins.append(left.pop(0))
            else:
                outs.append(right.pop(0))
        yield ins, outs


def _flat(source: Axes, shape: Sequence[int], before: Sequence[int]) -> np.ndarray:
    """Labels of all elements of a block that has one axis of channels."""
    (axis,) = (axis for axis in before if source[axis] is not None)
    labels = source[axis]
    assert labels is not None
    if len(before) == 1:
        return labels
    at = before.index(axis)
    inner = math.prod(shape[i] for i in before[at + 1 :])
    return np.tile(np.repeat(labels, inner), math.prod(shape[i] for i in before[:at]))


def _carrier(flow: Flow, layer: Layer, flat: np.ndarray, after: list[int]) -> tuple[int, np.ndarray]:
    """The axis that carries the channels of a block, and its labels."""
    if len(after) == 1:
        return after[0], flat
    grid = flat.reshape([layer.shape[axis] for axis in after])
    rows = [np.moveaxis(grid, i, 0).reshape(grid.shape[i], -1) for i in range(len(after))]
    alone = [i for i, row in enumerate(rows) if (row == row[:, :1]).all()]
    chosen = alone[0] if alone else _choose(flow.graph, layer, after)
    if not alone:
        flow.tie(rows[chosen][:, :1], rows[chosen][:, 1:], layer.name)
    return after[chosen], rows[chosen][:, 0]


def _is_one_channel(graph: LayerGraph, layer: Layer, before: list[int], after: list[int]) -> bool:
    """Whether a vector becomes an image of one channel, (n, h w) -> (n, 1, h, w): then no axis carries channels.

    Heads look the same where there is one token; a matmul that follows tells them.
    """
    if len(before) > 1 or len(after) == 1 or after[0] <= before[0] or layer.shape[after[0] - 1] > 1:
        return False
    return all(_fate(graph, layer.name, axis, _FAR) in (UNKNOWN, CUT) for axis in after)


def _choose(graph: LayerGraph, layer: Layer, after: list[int]) -> int:
    """Which of several axes shrinks (module docstring); else the last but one."""
    if len(after) == 2 and _is_swapped(graph, layer, after):
        return 1
    fates = [_fate(graph, layer.name, axis, _FAR) for axis in after]
    usual = 0 if after == [1, 2, 3] and len(layer.shape) == 4 else len(after) - 2
    return min(range(len(after)), key=lambda i: (fates[i], abs(usual - i)))


def _is_swapped(graph: LayerGraph, layer: Layer, after: list[int]) -> bool:
    """Whether all that happens next is that the two axes change places."""
    readers = [graph[name] for name in graph.consumers[layer.name]]
    swapped = list(range(len(layer.shape)))
    swapped[after[0]], swapped[after[1]] = after[1], after[0]
    return len(readers) == 1 and readers[0].attributes.get("permutation") == tuple(swapped)


def _fate(graph: LayerGraph, name: str, axis: int, far: int) -> int:
    """What becomes of an axis: the first thing that is known about it, following it through the graph."""
    rank = len(graph[name].shape)
    for reader in (graph[reader] for reader in graph.consumers[name] if far):
        found, follow = UNKNOWN, -1
        if reader.op is Op.MATMUL:
            found = CARRIED if axis < rank - 2 else MULTIPLIED
        elif reader.op in _IMAGES:
            found = CARRIED if axis == 1 else CUT
        elif reader.op is Op.SLICE:
            found, follow = (CUT, -1) if reader.shape[axis] < graph[name].shape[axis] else (UNKNOWN, axis)
        elif reader.op is Op.TRANSPOSE:
            follow = reader.attributes["permutation"].index(axis)
        elif reader.op in _ELEMENTWISE:
            follow = axis + len(reader.shape) - rank
        elif reader.op is Op.RESHAPE:
            follow = _moved(graph[name].shape, reader.shape, axis)
        found = _fate(graph, reader.name, follow, far - 1) if follow >= 0 else found
        if found != UNKNOWN:
            return found
    return UNKNOWN


def _moved(before: Sequence[int], after: Sequence[int], axis: int) -> int:
    """Where a reshape that only adds or drops axes of size 1 puts an axis; -1 if it does more."""
    if [size for size in before if size > 1] != [size for size in after if size > 1] or before[axis] == 1:
        return -1
    place = sum(size > 1 for size in before[:axis])
    return [i for i, size in enumerate(after) if size > 1][place]
