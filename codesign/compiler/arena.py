"""Which tensors share memory: each has a place from the step that writes it to the last that reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ALIGNMENT = 64


@dataclass(frozen=True)
class Life:
    """Steps (first, last) in which a buffer holds something, and its size in bytes."""

    first: int
    last: int
    size: int


def lives(
    writes: Sequence[str], reads: Sequence[Sequence[str]], sizes: Mapping[str, int], kept: Sequence[str]
) -> dict[str, Life]:
    """Lives of buffers, by name.

    Args:
        writes: the buffer that each step writes. reads: those it reads. kept: read by the outside at the end.
            A buffer that no step writes is there from the start, and so is one that its first writer reads.
    """
    found: dict[str, Life] = {}
    uses = [(i, name) for i, names in enumerate(reads) for name in (*names, writes[i])]
    uses += [(len(writes), name) for name in kept]
    first = {name: i for i, name in reversed(list(enumerate(writes))) if name not in reads[i]}
    for i, name in uses:
        begin = first.get(name, -1)
        found[name] = Life(begin, max(i, found[name].last if name in found else begin), sizes[name])
    return found


def offsets(found: Mapping[str, Life]) -> tuple[dict[str, int], int]:
    """Where each buffer begins and how much memory they need together: the largest first, each as low as it fits."""
    placed: dict[str, int] = {}
    for name, life in sorted(found.items(), key=lambda item: (-item[1].size, item[1].first, item[0])):
        rivals = [
            (placed[other], placed[other] + _round(found[other].size))
            for other in placed
            if found[other].first <= life.last and life.first <= found[other].last
        ]
        start = 0
        for begin, end in sorted(rivals):
            if start + life.size <= begin:
                break
            start = max(start, end)
        placed[name] = start
    return placed, max((start + _round(found[name].size) for name, start in placed.items()), default=0)


def _round(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
