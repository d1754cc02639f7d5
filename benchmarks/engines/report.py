"""Write docs/engines.md from the committed results of `run.py`.

python benchmarks/engines/report.py [--check]      # --check: fail if the page is not what the results give
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cases import CASES, RESULTS, result_file
from runtimes import ENGINES, OURS

PAGE = Path(__file__).parents[2] / "docs" / "engines.md"
RATIOS = {"fastest": "the fastest dense engine", "onnxruntime": "ONNX Runtime", "litert": "LiteRT"}
BETTER = "openvino_bf16"
HEAD = """# Compiled networks beside inference engines

Written by `python benchmarks/engines/report.py` from the files below `benchmarks/engines/results/`; each holds its
machine, versions, time and command. A dense engine gets the same masked weights, zeros kept as numbers; batch norms
are folded for all. One thread, fp32. Times are milliseconds of CPU time of the engine's process, least and (median);
the engines of a row were called in turns, in one run, and only ratios within a row mean anything: two rows may have
met the machine in different moods. Not all rows were measured at one commit (they are named at the end): earlier runs
gave 3.81, 4.00, 4.08 and 4.24 times the fastest dense engine for VGG-16 at 8x, 4.45, 4.76 and 4.79 with filter pairs,
5.46 and 5.69 at 12x; with two threads 0.854 and 0.898 of two processes. VGG-16 is its 13 convolutions with ReLUs and
the five poolings, batch 1, the first layer dense, without the linear layers. "8x" is the rate of the pruned layers: 4
of 9 weights in every kernel, one of eight patterns, and 9 of 32 kernels (12x: 3 of 16). Weights are random except
where a pruned network is named; of such a network, channels that pruning left idle are gone for all engines, and
"fewer weights" counts zeros among the rest. ncnn, which has no strided slices, gets option-A shortcuts as poolings of
single pixels, and a batch sample by sample. TVM does not stand here: its tuner was not brought to run, and without it
TVM is scalar code that anything beats.
"""

Rows = dict[str, Mapping[str, Any]]


def read(results: Path, threads: int) -> Rows:
    """The finished cases, in the order of the table of cases."""
    files = {name: result_file(results, name, threads) for name in CASES}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}


def page(results: Path) -> str:
    """The whole page."""
    rows, threaded = read(results, 1), read(results, 2)
    parts = [HEAD]
    if rows:
        parts += ["## Times\n", times(rows), "## Ratios\n", ratios(rows), other_precision(rows)]
        if known := {name: row for name, row in rows.items() if "peak_macs_per_s" in row}:
            parts += ["## What the processor allows\n", peak(known)]
        parts += ["## Accuracy\n", accuracy(rows), "## Loading\n", loading(rows)]
    if threaded:
        parts += ["## Two threads\n", two_threads(threaded)]
    if missing := [CASES[name].title for name in CASES if name not in rows]:
        parts.append(f"Not run yet: {'; '.join(missing)}.\n")
    if failures := list(failed([*rows.values(), *threaded.values()])):
        parts += ["## Left out\n", "".join(f"* {each}\n" for each in failures)]
    if rows or threaded:
        parts += ["## Machine and versions\n", made([*rows.values(), *threaded.values()])]
    return "\n".join(parts)


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return (
        "\n".join([f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(each)} |" for each in lines)])
        + "\n"
    )


def by_engine(rows: Rows, cell: Callable[[Mapping[str, Any]], str]) -> str:
    """A table with a column an engine; of another precision in italics, empty where an engine was not asked."""
    names = [name for name in ENGINES if any(name in row["engines"] for row in rows.values())]

    def shown(name: str, text: str) -> str:
        return text if ENGINES[name].is_single or not text else f"*{text}*"

    def one(row: Mapping[str, Any], name: str) -> str:
        found = row["engines"].get(name)
        return "" if found is None else "left out" if "failed" in found else shown(name, cell(found))

    head = ["case", "fewer weights", *(shown(name, ENGINES[name].title) for name in names)]
    return table(
        head,
        ([CASES[case].title, f"{row['rate']:.2f}x", *(one(row, name) for name in names)] for case, row in rows.items()),
    )


def times(rows: Rows) -> str:
    return by_engine(rows, lambda found: f"{1e3 * found['min_s']:.3g} ({1e3 * found['median_s']:.3g})")


def accuracy(rows: Rows) -> str:
    note = "max |a - b| / max |b|, b what torch answers in float64 with the same masked weights.\n\n"
    return (
        note
        + by_engine(rows, lambda found: f"{found['error']:.0e}")
        + "".join(
            f"\n{CASES[case].title}: compiled, it answers {found['right']:,} of {found['images']:,} test images "
            f"rightly; {found['equal']:,} answers are those of the interpreter.\n"
            for case, row in rows.items()
            if (found := row.get("answers"))
        )
    )


def loading(rows: Rows) -> str:
    note = (
        "CPU seconds from a file in the engine's format to ready, imports of Python packages included, and (from "
        "torch.export to that file, if no other engine had it made). Ours: compilation of a tuned plan, and (lowering "
        "and tuning).\n\n"
    )
    return note + by_engine(rows, lambda found: f"{found['load_s']:.1f} ({found['convert_s']:.0f})")


def minima(row: Mapping[str, Any], is_single: bool = True) -> dict[str, float]:
    """Least seconds of the engines of a case, those left out not."""
    return {
        name: found["min_s"]
        for name, found in row["engines"].items()
        if "failed" not in found and (ENGINES[name].is_single or not is_single)
    }


def faster(row: Mapping[str, Any]) -> dict[str, float]:
    """How many times faster ours is than what `RATIOS` names, as far as it was measured."""
    seconds = minima(row)
    ours = seconds.pop(OURS, None)
    if ours is None or not seconds:
        return {}
    return {"fastest": min(seconds.values()) / ours} | {
        name: seconds[name] / ours for name in RATIOS if name in seconds
    }


def ratios(rows: Rows) -> str:
    note = "Of minima: times faster than an engine, and in brackets what was aimed at.\n\n"
    lines = []
    for case, row in rows.items():
        seconds = minima(row)
        seconds.pop(OURS, None)
        best = ENGINES[min(seconds, key=seconds.__getitem__)].title if seconds else ""
        found = faster(row)
        cells = [_ratio(found.get(name), CASES[case].reach.get(name)) for name in RATIOS]
        lines.append([CASES[case].title, best, *cells])
    return note + table(["case", "fastest dense engine", *(f"over {title}" for title in RATIOS.values())], lines)


def _ratio(found: float | None, reach: float | None) -> str:
    if found is None:
        return ""
    return f"{found:.2f}x" + (f" ({reach:.2g}x)" if reach else "")


def peak(rows: Rows) -> str:
    """How near ours is to the processor's peak, and what no code that multiplies by every kept weight can surpass."""
    note = (
        "Multiplications by weights that are not zero, and the time that they take where one thread multiplies and "
        "adds without a pause, measured in the same run (as `codesign calibrate` does). Code that does all of them, "
        "however good, is at most so many times faster than the fastest dense engine, which may do fewer "
        "(Winograd).\n\n"
    )
    lines = []
    for case, row in rows.items():
        seconds, least = minima(row), row["nonzero_macs"] / row["peak_macs_per_s"]
        ours = seconds.pop(OURS, None)
        most = min(seconds.values()) / least if seconds else None
        mine = ["", ""] if ours is None else [f"{1e3 * ours:.3g}", f"{least / ours:.0%}"]
        size = f"{row['nonzero_macs'] / 1e6:,.1f} M"
        lines.append([CASES[case].title, size, f"{1e3 * least:.3g}", *mine, _ratio(most, None)])
    head = ["case", "multiplications", "at the peak, ms", "ours, ms", "of the peak", "at most over the fastest dense"]
    return note + table(head, lines)


def other_precision(rows: Rows) -> str:
    """Where an engine that computes in bf16 is the faster one, and where not."""
    won, lost = [], []
    for case, row in rows.items():
        seconds = minima(row, is_single=False)
        if OURS in seconds and BETTER in seconds:
            ratio = seconds[OURS] / seconds[BETTER]
            (won if ratio > 1 else lost).append(f"{CASES[case].title} ({max(ratio, 1 / ratio):.1f}x)")
    said = []
    if won:
        said.append(f"OpenVINO in bf16, dense, is faster than compiled fp32 code in: {'; '.join(won)}.")
    if lost:
        said.append(f"Compiled fp32 code is faster than OpenVINO in bf16 in: {'; '.join(lost)}.")
    if not said:
        return ""
    why = "On a processor with matrix units (AMX) dense bf16 is another race: claims here are for fp32."
    return f"{' '.join(said)} {why}\n"


def two_threads(rows: Rows) -> str:
    note = (
        "By wall time: a call with one thread over one with two, and the calls a second of two processes with a thread "
        "each over those of one alone, which is what the machine can give; aimed at: 0.9 of it.\n\n"
    )
    lines = [
        [CASES[case].title, ENGINES[name].title, *(f"{1e3 * found[key]:.3g}" for key in ("one_s", "two_s")),
         f"{found['speedup']:.3f}x", f"{found['ceiling']:.3f}x", f"{found['speedup'] / found['ceiling']:.3f}"]
        for case, row in rows.items()
        for name, found in row["two_threads"].items()
        if "failed" not in found
    ]  # fmt: skip
    return note + table(
        ["case", "engine", "one thread, ms", "two, ms", "speed-up", "two processes", "speed-up / two processes"], lines
    )


def failed(records: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    """Engines that a case was run without, and why."""
    for record in records:
        for name, found in (record.get("engines") or record["two_threads"]).items():
            if "failed" in found:
                yield f"{ENGINES[name].title}, {CASES[record['case']].title}: {found['failed']}"


def made(records: Sequence[Mapping[str, Any]]) -> str:
    """Each command with its circumstances."""
    versions: dict[str, set[str]] = {}
    for record in records:
        for name, found in record.get("engines", {}).items():
            if found.get("version"):
                versions.setdefault(ENGINES[name].package, set()).add(found["version"])
    cpus = sorted({f"{record['machine']['cpu']}, {record['machine']['cores']} cores" for record in records})
    packages = ", ".join(f"{name} {' and '.join(sorted(found))}" for name, found in sorted(versions.items()))
    head = ["case", "load before", "code", "time", "rounds", "command"]
    rows = (
        [CASES[record["case"]].title, f"{record['machine']['load']:.1f}", record["versions"]["codesign"],
         record["time"], str(record["rounds"]), f"`{record['command']}`"]
        for record in records
    )  # fmt: skip
    return f"{'; '.join(cpus)}. {packages}.\n\n{table(head, rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page would change")
    parser.add_argument("--results", type=Path, default=RESULTS, help="finished cases")
    parser.add_argument("--page", type=Path, default=PAGE, help="what is written")
    given = parser.parse_args()
    if given.check:
        sys.exit(
            0
            if given.page.read_text() == page(given.results)
            else f"{given.page} is not what {given.results} gives: run report.py"
        )
    given.page.write_text(page(given.results))
    print(given.page)


if __name__ == "__main__":
    main()
