"""Compiled networks beside inference engines, a case at a time, on this machine.

    python benchmarks/engines/run.py --list                       # the cases, with those that are done
    python benchmarks/engines/run.py vgg16_8x                     # one case, every engine, 15 rounds
    python benchmarks/engines/run.py vgg16_8x --engines codesign onnxruntime ncnn --rounds 3 --results /tmp/trial
    python benchmarks/engines/run.py resnet56_pruned_b1 --weights runs/pconv   # a folder of `codesign prune`
    python benchmarks/engines/run.py vgg16_8x --threads 2         # two threads by wall time: wants an idle machine
    python benchmarks/engines/report.py                           # then: writes docs/engines.md

Every engine is a process of its own with one thread and gets the same masked weights in fp32 (OpenVINO a second time in
bf16, as another precision). They are called in turns; what counts is CPU time of the process, its minimum and median,
and ratios within one case. A second case's times are another table. Engines are installed below --environment on first
use (pip, minutes, 3 GB), as `requirements.txt` pins them. An engine that does not convert or load a case is left out of
it with its reason. A finished case is a small file below `results/` and is kept: --again measures it anew.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ[f"{library}_NUM_THREADS"] = "1"

from cases import CASES, RESULTS, result_file
from circumstances import circumstances
from environment import environment_python
from measure import EngineError, alternate, two_threads
from runtimes import ENGINES, OURS

from codesign.compiler.isa import find_isa
from codesign.compiler.probe import core
from codesign.native import Answers, measure_answers
from codesign.subject import load_split
from workloads.errors import CodesignError, ConfigError, unknown_name
from workloads.store import write_json

HERE = Path(__file__).parent


def measure(case: str, given: argparse.Namespace) -> dict[str, Any]:
    """One case's numbers."""
    import torch
    from networks import network

    torch.set_num_threads(1)
    folder = given.out / case
    made = network(CASES[case], given.weights, given.seed)
    for old in folder.glob("network.*"):
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    made.save(folder)
    engines = environment_python(given.environment, ["-r", str(HERE / "requirements.txt")], "--engines codesign")
    pythons = {name: Path(sys.executable) if name == OURS else engines for name in given.engines}
    peak = core(find_isa().name)
    record = {
        "case": case, "rate": made.weights / made.nonzeros, "nonzero_macs": made.nonzero_macs,
        "peak_macs_per_s": peak.clock_hz * peak.macs_per_cycle, "rounds": given.rounds, **circumstances(),
    }  # fmt: skip
    if CASES[case].network == "pruned":
        record["answers"] = asdict(answers(given.weights))
    if given.threads == 1:
        return {**record, "engines": alternate(pythons, folder, made.y.numpy(), given.rounds)}
    found: dict[str, dict[str, Any]] = {}
    for name, python in pythons.items():
        try:
            found[name] = dict(two_threads(python, name, folder, given.rounds))
        except EngineError as error:
            found[name] = {"failed": str(error)}
    return {**record, "two_threads": found}


def answers(folder: Path) -> Answers:
    """Of a pruned network on all test images of its data set, compiled, beside the interpreter's."""
    from codesign import compile as compiled
    from codesign.prune import load_pruned
    from codesign.study import Study
    from workloads.models import example_input

    config = Study.open(folder).config
    pictures = load_split(config["model"], config["data"], "test")
    return measure_answers(compiled(load_pruned(folder), example_input(config["model"])), pictures, check=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="names that --list shows")
    parser.add_argument("--list", action="store_true", help="print the cases and which are done")
    parser.add_argument("--rounds", type=int, default=15, help="turns of every engine (default 15)")
    parser.add_argument("--threads", type=int, choices=(1, 2), default=1, help="2: by wall time, beside two processes")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES), metavar="NAME")
    parser.add_argument("--weights", type=Path, metavar="FOLDER", help="a pruned network, for the cases that take one")
    parser.add_argument("--seed", type=int, default=0, help="of random weights and of the input")
    parser.add_argument("--again", action="store_true", help="measure finished cases too")
    parser.add_argument("--environment", type=Path, default=Path(".venv-engines"), help="where engines are installed")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where finished cases are kept")
    parser.add_argument("--out", type=Path, default=Path("runs/engines"), help="networks and engines' own files")
    given = parser.parse_args()
    for name in given.cases:
        if name not in CASES:
            raise unknown_name("case", name, CASES)
        if CASES[name].network == "pruned" and given.weights is None:
            raise ConfigError(f"{name} needs the folder of a pruned network: --weights FOLDER (see codesign prune)")
    if not given.cases and not given.list:
        raise ConfigError("name a case; --list shows them")
    if given.rounds < 1:
        raise ConfigError(f"--rounds {given.rounds}: must be at least 1")
    return given


def main() -> None:
    given = parse()
    if given.list:
        for name, case in CASES.items():
            is_done = result_file(given.results, name, given.threads).exists()
            print(f"{'done' if is_done else 'open'}  {name:26} {case.title}")
        return
    if given.threads == 2 and os.getloadavg()[0] > 0.5:
        print(
            f"warning: load is {os.getloadavg()[0]:.1f}; wall times of two threads want an idle machine",
            file=sys.stderr,
        )
    for case in given.cases:
        file = result_file(given.results, case, given.threads)
        if file.exists() and not given.again:
            print(f"{case}: done before ({file}); --again measures it anew")
            continue
        found = measure(case, given)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, found)
        print(f"== {case}, {found['rate']:.2f}x fewer weights")
        for name, row in (found.get("engines") or found["two_threads"]).items():
            print(f"   {ENGINES[name].title:14} {line(row)}", flush=True)


def line(row: dict[str, Any]) -> str:
    """An engine's numbers as text."""
    if "failed" in row:
        return f"left out: {row['failed']}"
    if "speedup" in row:
        return f"{1e3 * row['one_s']:9.3f} ms, two threads {row['speedup']:.2f}x, two processes {row['ceiling']:.2f}x"
    return f"{1e3 * row['min_s']:9.3f} ms ({1e3 * row['median_s']:.3f}), error {row['error']:.1e}"


if __name__ == "__main__":
    try:
        main()
    except CodesignError as error:
        sys.exit(f"error: {error}")
