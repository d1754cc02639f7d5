"""Layer pricings a second on every target, beside the vendor's estimator where it is installed.

ResNet-50, 1,000 candidates in one call, every row distinct (random channel counts), memo off, one core, process CPU
time; tile search, traffic and energy included. Peak memory of the whole process.

    python benchmarks/pricing.py [--candidates 1000] [--json FILE]

The peer is Arm's Vela (extra `bench`), whose estimate of one network is timed in the same run; it compiles the
network too, so the ratio says what a search pays, not that the same work is done.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
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
    rows = candidates(ready, count)
    shaping = time.process_time() - started
    seconds = []
    for _ in range(3):
        started = time.process_time()
        machine.price(rows, ready.topology, memo=False)
        seconds.append(time.process_time() - started)
    distinct = len(rows.distinct()[0])
    return {
        "target": name,
        "rows": len(rows),
        "distinct_rows": distinct,
        "shape_arithmetic_s": round(shaping, 3),
        "pricing_s": round(min(seconds), 3),
        "rows_per_s": round(len(rows) / min(seconds)),
        "candidates_per_s": round(count / min(seconds)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    graph = table("resnet50")
    results = [measure(name, graph, options.candidates) for name in targets()]
    print(f"{'target':24} {'rows':>8} {'distinct':>8} {'CPU s':>7} {'rows/s':>10} {'candidates/s':>12}")
    for row in results:
        print(
            f"{row['target']:24} {row['rows']:8,} {row['distinct_rows']:8,} {row['pricing_s']:7} "
            f"{row['rows_per_s']:10,} {row['candidates_per_s']:12,}"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of the process: {peak:.0f} MB")
    if options.json:
        options.json.write_text(json.dumps({"results": results, "peak_mb": peak}, indent=1) + "\n")


if __name__ == "__main__":
    main()
