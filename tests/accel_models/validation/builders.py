"""A machine whose prices can be worked by hand, with published rows beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

HEAD = "id,network,workload,overrides,metric,unit,value,kind,calibrated,source"

# 8 x 16 weights on 4 x 4 pixels: 2048 multiplications, 8 cycles at 256; 128 + 128 + 256 + 64 bytes (inputs, weights,
# outputs, biases), 72 cycles at 8 bytes.
LAYER = "layer:conv@int8 c=8 k=16 h=4"
BYTES = 576.0
CYCLES = 72.0


def line(
    name: str = "row", network: str = "net", workload: str = LAYER, overrides: str = "", metric: str = "cycles",
    unit: str = "cycle", value: object = 72, kind: str = "silicon", calibrated: str = "no", source: str = "a paper",
) -> str:  # fmt: skip
    return f"{name},{network},{workload},{overrides},{metric},{unit},{value},{kind},{calibrated},{source}"


def machine(folder: Path, lines: Sequence[str], extra: str = "", name: str = "mine") -> str:
    """A machine file based on `ideal`, and its rows; returns the name by which it is known."""
    (folder / f"{name}.yaml").write_text(f"base: ideal\nname: {name}\n{extra}\n")
    (folder / f"{name}.csv").write_text("\n".join([HEAD, *lines]) + "\n")
    return str(folder / f"{name}.yaml")


def fitted(rows: Sequence[str], bandwidth: float, bounds: tuple[float, float] = (1.0, 64.0)) -> str:
    """A machine whose bandwidth was fitted to rows, with the value that is stored."""
    return (
        f"sources: {{fit: fitted to the rows under fitted}}\n"
        f"memories:\n  - name: dram\n    bandwidth_bytes_per_cycle: {{value: {bandwidth}, source: fit}}\n"
        f"fitted:\n  - parameter: memories.0.bandwidth_bytes_per_cycle\n"
        f"    bounds: [{bounds[0]}, {bounds[1]}]\n    rows: [{', '.join(rows)}]\n"
    )
