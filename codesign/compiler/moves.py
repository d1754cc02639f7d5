"""Changing a tensor's layout: the one stage that only copies."""

from __future__ import annotations

import numpy as np

from codesign.compiler.kernels.pack import GatherKernel
from codesign.compiler.layout import FLOAT_BYTES, offsets32
from codesign.compiler.plan import Context, Place
from codesign.compiler.program import Call, Stage, Work
from codesign.compiler.tiles import Tile, Window, gather_table


def plan_move(
    name: str, context: Context, source: Place, out: Place, stride: tuple[int, int] = (1, 1), start: int = 0
) -> Stage:
    """Copy every `stride`-th pixel of a map, channel by channel, into another layout.

    Args:
        start: the first channel of the source; `out` says how many.
    """
    window = Window((1, 1), stride)
    layout, vector = out.layout, context.isa.lanes * FLOAT_BYTES
    planes = context.data.add(offsets32((start + np.arange(out.shape[1])) * source.plane))
    works = []
    for batch in range(out.passes):
        table = gather_table(source.layout, layout, source.shape, window, Tile(0, 0, layout.block), batch)
        lanes = np.full(-(-table.size // context.isa.lanes) * context.isa.lanes, -1, np.int32)
        lanes[: table.size] = table.ravel()
        place = context.data.add(lanes)
        arguments = (
            source.start, out.batch(batch), out.shape[1], planes, out.plane, place, lanes.size // context.isa.lanes,
        )  # fmt: skip
        works.append(Work((Call(GatherKernel(is_aligned=out.plane % vector == 0), arguments),)))
    return Stage(name, (Work(tuple(call for work in works for call in work.calls)),))
