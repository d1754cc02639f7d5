"""Sweep one number of a machine and see where a network stops gaining.

    python examples/sweep_hardware.py [MODEL] [--target NAME] [--field PATH] [--values V V ...]

The field is a dotted path in the machine's YAML (`codesign targets NAME` lists them).
"""

from __future__ import annotations

import argparse

from accel_models import target
from workloads.lowering import lower
from workloads.models import build, example_input


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="resnet20")
    parser.add_argument("--target", default="ideal")
    parser.add_argument("--field", default="memories.0.bandwidth_bytes_per_cycle")
    parser.add_argument("--values", type=float, nargs="+", default=[1, 2, 4, 8, 16, 32])
    options = parser.parse_args()

    graph = lower(build(options.model), example_input(options.model), name=options.model)
    print(f"{options.model} on {options.target}: {options.field}\n{'value':>10} {'ms':>9}  where the time goes")
    for value in options.values:
        # Overrides are checked like the file itself: a wrong path or an impossible value is an error.
        result = target(options.target, {options.field: value}).simulate(graph)
        lost = sorted(result.lost_by_cause().items(), key=lambda item: -item[1])
        shares = ", ".join(f"{cause} {cycles / result.cycles:.0%}" for cause, cycles in lost if cycles > 0)
        print(f"{value:10g} {result.latency_s * 1e3:9.3f}  {shares}")


if __name__ == "__main__":
    main()
