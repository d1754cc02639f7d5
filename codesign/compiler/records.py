"""The layer-wise representation: what was decided for every layer, between graph and code, to be read and kept.

After PatDNN's, a record a layer: what it computes, how sparse it is, how its weights are stored, where tensors lie, and
the tuning. With the graph and its weights the tunings determine all code: they are what a tuned plan keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from codesign.compiler.layout import Layout

if TYPE_CHECKING:
    from codesign.compiler.network import Network

VERSION = 1


def layout_text(layout: Layout) -> str:
    """A layout in a few words.

    >>> layout_text(Layout(16, 1, (4, 4), (8, 8))), layout_text(Layout(1, 1, (1, 1), (8, 8)))
    ('4x4 blocks of 8x8 pixels in 16 lanes', 'plain')
    """
    if layout.is_plain:
        return "plain"
    blocks = "x".join(map(str, layout.grid))
    samples = f"{layout.samples} samples of " if layout.samples > 1 else ""
    return f"{samples}{blocks} blocks of {'x'.join(map(str, layout.block))} pixels in {layout.lanes} lanes"


def records(network: Network, with_code: bool = True) -> list[dict[str, Any]]:
    """One for each part of a network in running order; all values are JSON's. `with_code`: how large it is, too."""
    from codesign.compiler.jit import text_bytes
    from codesign.compiler.program import Stage, kernels_of

    found = []
    for part in network.parts:
        if isinstance(part, Stage):
            kernels = kernels_of([part])
            size = {"text_bytes": text_bytes(kernels, network.isa)} if with_code else {}
            found.append({"name": part.name, **part.record, "code": {"kernels": len(kernels), **size}})
        else:
            found.append({"name": part.layer.name, "op": str(part.layer.op), "runs in": "torch"})
    return found


def explain(network: Network, with_code: bool = True) -> str:
    """All records as YAML, with what the network needs in memory; `with_code` makes the code again to measure it."""
    head: Mapping[str, Any] = {
        "version": VERSION,
        "name": network.graph.name,
        "device": network.isa.name,
        "threads": network.threads,
        "memory": {
            "arena_bytes": network.arena,
            "arena_without_reuse_bytes": network.naive,
            "scratch_bytes": network.scratch,
            "constant_bytes": len(network.data),
        },
    }
    body = {**head, "layers": records(network, with_code)}
    return str(yaml.dump(body, sort_keys=False, default_flow_style=None, width=140))
