"""Cited energies and areas, scaled to a machine's process node and to the size of its memories.

A machine file may give a component's energy or area as a reference instead of a number:

    energy_pj:
      mac:  {table: horowitz_45nm.mac8, node_nm: 28}
      sram: {table: sram_45nm.byte, size_bytes: 1048576, node_nm: 28, times: 1}
      dram: {table: dram.lpddr4_byte}

    energy = entry(size) * E(node) / E(table's node) * times          E(node) = a2 V^2 + a1 V + a0 at the nominal V
    area   = entry       * A(node) / A(table's node) * times

An entry that lists several sizes is read on a straight line of logarithms, through its two nearest points. Nodes that
are not listed lie on such a line too. Tables without a node (DRAM interfaces) are never scaled.

Known to be wrong: the scaling equations are of inverter chains; wires and SRAM cells shrink less, so memories of small
nodes are priced too low, and a chip run below its nominal voltage saves more. Published tables differ by 2x for the
same access. Ratios between two variants of a network on one machine are what the result is good for.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

FOLDER = Path(__file__).parent
FIELDS = ("table", "node_nm", "size_bytes", "times", "note")


@cache
def _file() -> dict[str, Any]:
    return dict(yaml.load((FOLDER / "energy_tables.yaml").read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def entries() -> tuple[str, ...]:
    """Every reference that a machine file may name, sorted."""
    return tuple(sorted(f"{name}.{entry}" for name, table in _file()["tables"].items() for entry in table["entries"]))


def node_factor(node_nm: float, base_nm: float, what: Literal["energy", "area"] = "energy") -> float:
    """Energy or area at a node over that at another one.

    >>> round(node_factor(45, 65), 2)  # a 65 nm circuit made again in 45 nm
    0.52
    """
    nodes = {float(key): value for key, value in _file()["nodes"].items() if key != "source"}
    sizes = np.array(sorted(nodes))

    def value(node: float) -> float:
        given = nodes[node]
        return float(np.polyval(given["energy"], given["vdd"])) if what == "energy" else float(given["area"])

    line = np.log([value(node) for node in sizes])
    ends = np.interp(np.log([node_nm, base_nm]), np.log(sizes), line)
    return float(np.exp(ends[0] - ends[1]))


def resolve(given: dict[str, Any], what: Literal["energy", "area"] = "energy") -> tuple[float, str]:
    """A reference as (picojoules or mm2, its source in words).

    Args:
        given: `table`, and where they apply `node_nm`, `size_bytes`, `times`, `note`.

    Raises:
        ValueError: unknown table or field, a node or size that is missing, or no area in that entry.
    """
    if extra := set(given) - set(FIELDS):
        raise ValueError(f"unknown {', '.join(sorted(extra))}, allowed: {', '.join(FIELDS)}")
    if given["table"] not in entries():
        raise ValueError(f"table {given['table']!r} is unknown, must be one of {', '.join(entries())}")
    name, _, key = str(given["table"]).partition(".")
    table = _file()["tables"][name]
    entry, base = table["entries"][key], table.get("node_nm")
    value, at = _at_size(entry, given, what)
    words = f"{table['source']}: {key}{at}"
    if base is not None and entry.get("is_scaled", True):
        if not _is_positive(given.get("node_nm")):
            raise ValueError(f"node_nm: {given.get('node_nm')!r}, must be > 0 ({name} is of {base} nm)")
        value *= node_factor(float(given["node_nm"]), float(base), what)
        words += f", from {base} to {given['node_nm']:g} nm (Stillmaker and Baas 2017)"
    times = given.get("times", 1)
    if not _is_positive(times):
        raise ValueError(f"times: {times!r}, must be > 0")
    words += f", times {times:g}" if times != 1 else ""
    return value * float(times), words + (f"; {given['note']}" if "note" in given else "")


def _at_size(entry: dict[str, Any], given: dict[str, Any], what: str) -> tuple[float, str]:
    """The entry's pJ at the given capacity, or its mm2 (of the whole capacity), and the size in words."""
    unit = "pj" if what == "energy" else "um2"
    if unit not in entry:
        raise ValueError(f"table {given['table']!r} has no area")
    if "sizes" not in entry:
        return (float(entry[unit]) if what == "energy" else float(entry[unit]) * 1e-6), ""
    size = given.get("size_bytes")
    if not _is_positive(size):
        raise ValueError(f"size_bytes: {size!r}, must be > 0 (the entry depends on capacity)")
    at = f" of {float(size):,.0f} bytes"  # type: ignore[arg-type]
    if what == "area":
        return float(entry["um2"]) * float(size) * 1e-6, at  # type: ignore[arg-type]
    return _log_line(float(size), entry["sizes"], entry["pj"]), at  # type: ignore[arg-type]


def _log_line(x: float, xs: list[float], ys: list[float]) -> float:
    """y at x on the straight line of logarithms through the two nearest points.

    >>> round(_log_line(4.0, [1.0, 16.0], [1.0, 4.0]), 6)
    2.0
    """
    right = int(np.clip(np.searchsorted(xs, x), 1, len(xs) - 1))
    (x0, x1), (y0, y1) = np.log(xs[right - 1 : right + 1]), np.log(ys[right - 1 : right + 1])
    return float(np.exp(y0 + (np.log(x) - x0) * (y1 - y0) / (x1 - x0)))


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
