"""Write docs/results.md from the committed results of `run.py`.

python benchmarks/methods/report.py [--check]      # --check: fail if the page is not what the results give
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from run import RESULTS, Run, experiments, runs

PAGE = Path(__file__).parents[2] / "docs" / "results.md"
HEAD = """# What the methods reach

Written by `python benchmarks/methods/report.py` from the files below `benchmarks/methods/results/`; each holds its
seed, time, command and code version. Versions differ between rows; one that ends in -dirty had changes that were not
committed. The runs of a table start from the same weights and train equally long at the same rate, in bf16, as
`--device auto` does where the processor multiplies it. Where they start from trained weights, that network teaches all
of them, the dense run too (`--no-distil` is not given): seven tenths of the loss are the distance to its answers. The
detector and networks from scratch have no teacher. Baselines have default options, but for what makes their budgets.

Ratios, thresholds and options were chosen on held-out training images, and so is the epoch that a run keeps, but where
a table says otherwise. The zoo's CIFAR-10 weights were trained on these images too, so from them the choice of the
epoch is close to chance. The test set is used once a run; runs that were made again are listed below their table.

"Aimed at" is a goal, met or not; losses in it are against the weights that runs start from, if nothing else is said.
"test" is of the float network, "in int8" after post-training quantisation. "to start" is points of test accuracy
against the network that the run started from, "to dense" against an equally long dense run of the same seeds. "weights"
counts convolutions and linear layers, the dense first layer and classifier included; "MACs" are those of the smaller
network, all and by weights that are not zero. Latency and energy are those of the pruned network over the dense one,
priced with the real masks; how far to trust each model is in [validation.md](validation.md) (`ideal` is a bound, and
of `snapdragon_855_cpu` with this runtime nothing was published: its family is held against others). On that CPU layers
as small as ResNet-20's mostly wait for threads to be woken, eight times for a dense 3x3 layer and three times for a
sparse one: fewer channels gain little there, and zeros more than their share. Minutes are wall time, beside other work
on the machine. ± is the standard deviation over seeds. Even without it CIFAR-10's {images:,}
test images leave a standard error of {error:.2f} points at 91 %, and of up to {both:.2f} on the difference of two
networks, the less the more of their errors they share.
"""
IMAGES = 10_000
LATER = {"attacked": 0, "unknown": "error"}
"""Fields that a configuration had not yet when some results were made, and what they stood for then."""


def page() -> str:
    """The whole page."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for run in runs():
        rows = found.setdefault(run.experiment, {}).setdefault(run.label, [])
        if run.result.exists():
            rows.append(current(run))
    error = 100 * math.sqrt(0.91 * 0.09 / IMAGES)
    parts = [HEAD.format(error=error, both=math.sqrt(2) * error, images=IMAGES)]
    for name, experiment in experiments().items():
        parts.append(f"## {experiment['title']}\n\nAimed at: {experiment['reach']}.\n")
        if note := experiment.get("note"):
            parts.append(f"{note}\n")
        parts.append(table(found[name]))
        if lines := list(superseded(name, found[name])):
            parts.append("\n".join(["Runs before, which were made again:\n", *lines]) + "\n")
    return "\n".join(parts)


def current(run: Run) -> dict[str, Any]:
    """The numbers of a run, which must be of the configuration that the file of experiments asks for."""
    numbers: dict[str, Any] = json.loads(run.result.read_text())
    asked, made = json.loads(json.dumps(asdict(run.config))), {**LATER, **numbers["config"]}
    if run.dense_training is not None:
        made["weights"] = asked["weights"]  # the path of the network that was trained first
    if other := sorted(key for key in asked.keys() | made.keys() if asked.get(key) != made.get(key)):
        sys.exit(f"{run.result}: was made with another {', '.join(other)}; delete it and run {run.name} again")
    return numbers


def superseded(experiment: str, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    """What came of runs before those of a table, and in what their configurations differ."""
    for file in sorted((RESULTS / "superseded").glob(f"{experiment}.*.json")):
        before = json.loads(file.read_text())
        config, now = before["config"], next((row["config"] for row in rows.get(before["run"], ())), {})
        asked, known = config | config["options"], now | now.get("options", {})
        differs = {
            key: value
            for key, value in asked.items()
            if key not in ("options", "weights", "attacked", "seed") and value != known.get(key)
        }
        how = f"; with {', '.join(f'{key} {value}' for key, value in differs.items())}" if now and differs else ""
        yield (
            f"- {before['run']}, seed {config['seed']}: {before['test']:.2%}, "
            f"{before['weights'] / before['nonzeros']:.1f}x fewer weights{how}"
        )


def table(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """One experiment: a line a run, means over its seeds."""
    done = {label: results for label, results in rows.items() if results}
    if not done:
        return "Not run yet.\n"
    targets = list(next(iter(done.values()))[0]["targets"])
    dense = {result["config"]["seed"]: result["test"] for result in done.get("dense", ())}
    pruned = [result for label, results in done.items() if label != "dense" for result in results]
    attacks = ["FGSM, PGD-10"] if any(result.get("robust") for result in pruned) else []
    head = [
        "run",
        "seeds",
        "test",
        "in int8",
        "to start",
        "to dense",
        *attacks,
        "weights",
        "MACs, by non-zeros",
        *targets,
        "minutes",
    ]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for label, results in done.items():
        lines.append(f"| {' | '.join(line(label, results, targets, dense, bool(attacks)))} |")
    if attacks:
        rows_attacked = [row for result in pruned for row in result.get("robust", {}).values()]
        count, eps = rows_attacked[0]["images"], rows_attacked[0]["eps"]
        error = 100 * math.sqrt(0.25 / count)
        lines.append(
            f"\nUnder attack: the first {count:,} test images, changed by at most {255 * eps:.0f}/255 a pixel; a "
            f"standard error of up to {error:.1f} points."
        )
    for label, results in done.items():
        if trail := results[0].get("trail"):
            networks = ", ".join(f"{row['density']:.1%} ({row['heldout']:.1%})" for row in trail)
            seed = results[0]["config"]["seed"]
            lines.append(
                f"\nTrail of {label}, seed {seed}, weights kept (held-out accuracy before retraining): {networks}."
            )
    if missing := [label for label in rows if label not in done]:
        lines.append(f"\nNot run yet: {', '.join(missing)}.")
    return "\n".join(lines) + "\n"


def line(
    label: str,
    results: Sequence[Mapping[str, Any]],
    targets: Sequence[str],
    dense: Mapping[int, float],
    is_attacked: bool,
) -> list[str]:
    """Cells of one run.

    Args:
        dense: test accuracy of the equally long dense run, by seed.
    """

    def mean(value: Any) -> float:
        return statistics.fmean(value(result) for result in results)

    tests = [result["test"] for result in results]
    spread = f" ± {statistics.stdev(tests):.2%}" if len(tests) > 1 else ""
    rounded = [result["int8_test"] for result in results if result.get("int8_test") is not None]
    lost = [result["test"] - result["dense_test"] for result in results if result["dense_test"] is not None]
    seeds = [result["config"]["seed"] for result in results]
    below = [test - dense[seed] for test, seed in zip(tests, seeds, strict=True) if seed in dense]
    robust = [result["robust"]["pruned"] for result in results if result.get("robust")]
    attacked = ", ".join(f"{statistics.fmean(row[kind] for row in robust):.1%}" for kind in ("fgsm", "pgd") if robust)
    multiplied = [result["nonzero_macs"] / result["macs"][0] for result in results if "nonzero_macs" in result]
    prices = [
        f"{mean(lambda r, t=t: ratio(r, t, 'latency_s')):.2f}x, {mean(lambda r, t=t: ratio(r, t, 'energy_j')):.2f}x"
        for t in targets
    ]
    return [
        label,
        str(len(results)),
        f"{statistics.fmean(tests):.2%}{spread}",
        f"{statistics.fmean(rounded):.2%}" if rounded else "",
        f"{100 * statistics.fmean(lost):+.2f}" if lost else "",
        f"{100 * statistics.fmean(below):+.2f}" if len(below) == len(tests) and label != "dense" else "",
        *([attacked] if is_attacked else []),
        f"{mean(lambda r: r['weights'] / r['nonzeros']):.1f}x fewer",
        f"{mean(lambda r: r['macs'][1] / r['macs'][0]):.2f}x"
        + (f", {statistics.fmean(multiplied):.2f}x" if len(multiplied) == len(results) else ""),
        *prices,
        f"{mean(lambda r: r['seconds']) / 60:.0f}",
    ]


def ratio(result: Mapping[str, Any], target: str, what: str) -> float:
    """After over before."""
    before, after = result["targets"][target][what]
    return float(after / before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page would change")
    if parser.parse_args().check:
        sys.exit(0 if PAGE.read_text() == page() else f"{PAGE} is not what {RESULTS} gives: run report.py")
    PAGE.write_text(page())
    print(PAGE)


if __name__ == "__main__":
    main()
