"""Prune a network for a machine and a latency budget, in a script of your own.

    python examples/prune_for_budget.py [--out FOLDER]

Trains the small digits network first (seconds). Replace model, data and machine by yours; every part of what
`codesign search` does is a call here.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from accel_models import target
from codesign.evaluate import evaluate
from codesign.search import search
from codesign.space import Space, channel_variables, price_table
from pruning.evaluation import accuracy
from pruning.importance import rank_units
from pruning.plan import make_plan
from pruning.sensitivity import measure
from pruning.training import fit
from workloads.channels import analyze
from workloads.data import load
from workloads.lowering import lower
from workloads.models import build, example_input


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/budget"))
    options = parser.parse_args()
    train, heldout, test = (load("digits", split) for split in ("train", "heldout", "test"))
    model, example = build("digits_cnn"), (example_input("digits_cnn"),)
    fit(model, train, epochs=8, lr=0.1, heldout=heldout, device="cpu", progress=False)

    machine = target("ethos_u55_256")
    graph = machine.native(lower(model, example, name="digits_cnn"))
    space = Space(graph, analysis := analyze(graph), channel_variables(analysis, machine.channel_multiple))
    counts = {v.of: tuple(option.count for option in v.options) for v in space.variables}
    found = measure(model, analysis, counts, heldout, ranking=rank_units(model, analysis), progress=False)

    table = price_table(space, machine, found.monotone())
    front = search(table, {"latency": 0.6 * machine.simulate(graph).latency_s}, generations=20)
    chosen = {v.of: v.options[i].count for v, i in zip(space.variables, front.exact.choices, strict=True) if i}
    plan = make_plan("digits_cnn", analysis, chosen, found.ranking)
    small = plan.apply(model, example)
    fit(small, train, epochs=4, lr=0.05, heldout=heldout, teacher=model, device="cpu", progress=False)

    options.out.mkdir(parents=True, exist_ok=True)
    plan.save(options.out / "plan.json")
    print(plan)
    print(f"dense : {evaluate(model, machine, example, data=test)}")
    print(f"pruned: {evaluate(small, machine, example, data=test)}")
    assert accuracy(small, test) > 0.9


if __name__ == "__main__":
    main()
