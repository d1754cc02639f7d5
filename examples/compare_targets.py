"""Compare one network, dense and pruned to half its inner channels, on several machines.

    python examples/compare_targets.py [MODEL] [--out FOLDER]

Prints a line a machine and writes an HTML page with pictures. Copy it, change MODEL or the machines.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from accel_models import target, targets
from reports.html import write_comparison
from workloads.channels import analyze
from workloads.lowering import lower
from workloads.models import build, example_input


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="resnet20")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    options = parser.parse_args()

    # A PyTorch module becomes a layer graph once; every machine prices the same graph in its own precision.
    graph = lower(build(options.model), example_input(options.model), name=options.model)
    analysis = analyze(graph)
    halved = {group.name: max(group.size // 2, group.minimum) for group in analysis.groups if group.prunable}
    small = analysis.graph(halved)

    print(f"{graph}\n{'machine':31} {'dense us':>10} {'half us':>10} {'ratio':>6} {'half mJ':>9}")
    results = []
    for name in targets():
        machine = target(name)
        before, after = machine.simulate(graph), machine.simulate(small)
        results.append(after)
        print(
            f"{name:31} {before.latency_s * 1e6:10.2f} {after.latency_s * 1e6:10.2f} "
            f"{after.latency_s / before.latency_s:6.2f} {after.energy_j * 1e3:9.4f}"
        )
    print(f"page: {write_comparison(options.out, results)}")


if __name__ == "__main__":
    main()
