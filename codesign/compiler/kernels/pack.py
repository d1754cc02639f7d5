"""Copying what a convolution reads of the map into one place: halo, padding and changes of layout all happen here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from codesign.compiler.kernels import Kernel
from codesign.compiler.layout import FLOAT_BYTES

if TYPE_CHECKING:
    from codesign.compiler.emitter import Emitter, Value

INT_BYTES = 4


class Move(NamedTuple):
    """Vectors are counted from the start of a plane; `lanes` as for `Emitter.permute`, () for all lanes in order."""

    to: int
    source: int
    lanes: tuple[int, ...]


@dataclass(frozen=True)
class PackKernel(Kernel):
    """Vectors of each of so many channels, moved and permuted: where the layouts agree but for whole lanes.

    `planes` says how many bytes behind the source each channel lies (int32).
    """

    moves: tuple[Move, ...]
    fill: float = 0.0
    ARGUMENTS = ("source", "target", "channels", "planes", "target_plane")

    def emit(self, e: Emitter) -> None:
        start, target_plane = e.pointer("source"), e.count("target_plane")

        def channel(_: Value, carried: list[Value]) -> list[Value]:
            planes, target = carried
            source = e.advance(start, e.integer(planes))
            for move in self.moves:
                if move.lanes and set(move.lanes) == {-1}:
                    found = e.splat(self.fill)
                else:
                    found = e.permute(e.load(source, move.source), move.lanes or range(e.isa.lanes), self.fill)
                e.store(found, target, move.to)
            return [e.advance(planes, INT_BYTES), e.advance(target, target_plane)]

        e.repeat(e.count("channels"), [e.pointer("planes"), e.pointer("target")], channel)


@dataclass(frozen=True)
class GatherKernel(Kernel):
    """The same between any two layouts: a table says for each lane how many bytes behind the source it lies, or -1.

    Where planes of the target are no whole vectors, the last vector of each reaches into the next plane, which comes
    later: the target needs room for one vector behind its last plane.
    """

    fill: float = 0.0
    is_aligned: bool = True
    ARGUMENTS = ("source", "target", "channels", "planes", "target_plane", "table", "vectors")

    def emit(self, e: Emitter) -> None:
        start, target_plane = e.pointer("source"), e.count("target_plane")
        table, vectors = e.pointer("table"), e.count("vectors")

        def channel(_: Value, carried: list[Value]) -> list[Value]:
            planes, target = carried
            source = e.advance(start, e.integer(planes))

            def vector(_: Value, carried: list[Value]) -> list[Value]:
                entries, to = carried
                e.store(e.gather(source, entries, self.fill), to, align=0 if self.is_aligned else FLOAT_BYTES)
                return [e.advance(entries, INT_BYTES * e.isa.lanes), e.advance(to, e.vector_bytes)]

            e.repeat(vectors, [table, target], vector)
            return [e.advance(planes, INT_BYTES), e.advance(target, target_plane)]

        e.repeat(e.count("channels"), [e.pointer("planes"), e.pointer("target")], channel)
