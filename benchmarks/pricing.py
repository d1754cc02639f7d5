"""Layer pricings a second on every target.

ResNet-50, 1,000 candidates with random channel counts in one call, one core, process CPU time; tile search, traffic
and energy included. `rows/s`: all distinct layers among them, memo off. `candidates/s`: whole graphs with a placement
each, memo on. Peak memory is that of the whole process. Peer: Arm's Vela (extra `bench`) on the same network.

    python benchmarks/pricing.py [--candidates 1000] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ[f"{library}_NUM_THREADS"] = "1"

import numpy as np

from accel_models import target, targets
from workloads.channels import analyze
from workloads.columns import Columns
from workloads.graph import LayerGraph
from workloads.tables import table


def candidates(graph: LayerGraph, count: int, seed: int = 0) -> Columns:
    """Rows of many random candidates, none of them equal to another."""
    rng = np.random.default_rng(seed)
    analysis = analyze(graph)
    groups = [group for group in analysis.groups if group.prunable]
    counts = np.stack([rng.integers(max(1, group.size // 4), group.size + 1, count) for group in groups], axis=1)
    return analysis.columns(counts, tuple(group.name for group in groups))


def measure(name: str, graph: LayerGraph, count: int) -> dict[str, float | str]:
    """Rows a second of CPU time; the best of three calls."""
    machine = target(name)
    ready = machine.native(graph)
    started = time.process_time()
    whole = candidates(ready, count)
    shaping = time.process_time() - started
    rows = whole.take(whole.distinct()[0])
    distinct = _best_seconds(lambda: machine.price(rows, memo=False))
    graphs = _best_seconds(lambda: machine.price(whole, ready.topology))
    return {
        "target": name,
        "distinct_rows": len(rows),
        "shape_arithmetic_s": round(shaping, 3),
        "pricing_s": round(distinct, 3),
        "rows_per_s": round(len(rows) / distinct),
        "candidates_per_s": round(count / graphs),
    }


def beside_vela(graph: LayerGraph, results: list[dict[str, float | str]]) -> str:
    """The vendor's estimator on the dense network, in the same run; it compiles too, as for every candidate it must."""
    from vela_peer import estimate

    seconds, cycles = estimate(graph)
    ours = next(float(row["candidates_per_s"]) for row in results if row["target"] == "ethos_u55_256")
    machine = target("ethos_u55_256")
    once = _best_seconds(lambda: machine.simulate(graph))
    priced = machine.simulate(graph).cycles
    return (
        f"peer: ethos-u-vela, one ResNet-50 on the U55-256: {seconds:.2f} CPU s, {cycles:,.0f} cycles; here "
        f"{once * 1e3:.1f} ms with a record a layer ({seconds / once:,.0f}x), {1e3 / ours:.2f} ms a candidate "
        f"({seconds * ours:,.0f}x), {priced:,.0f} cycles ({priced / cycles - 1:+.1%})"
    )


def _best_seconds(call: Callable[[], object]) -> float:
    """Least CPU time of three calls."""
    seconds = []
    for _ in range(3):
        started = time.process_time()
        call()
        seconds.append(time.process_time() - started)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    graph = table("resnet50")
    results = [measure(name, graph, options.candidates) for name in targets()]
    print(f"{'target':24} {'distinct rows':>13} {'CPU s':>7} {'rows/s':>10} {'candidates/s':>12}")
    for row in results:
        print(
            f"{row['target']:24} {row['distinct_rows']:13,} {row['pricing_s']:7} "
            f"{row['rows_per_s']:10,} {row['candidates_per_s']:12,}"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of the process: {peak:.0f} MB")
    peer = beside_vela(graph, results) if find_spec("ethosu") else "peer: not installed (extra bench: ethos-u-vela)"
    print(peer)
    if options.json:
        options.json.write_text(json.dumps({"results": results, "peak_mb": peak}, indent=1) + "\n")


if __name__ == "__main__":
    main()
