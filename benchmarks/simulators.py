"""How fast every simulated machine prices, beside the field's simulators, in one run.

All times are process CPU time of one core; tile search, traffic and energy are included.

    rows/s       distinct layers of 1,000 ResNet-50 candidates with random channel counts, in one call, memo off
    load, cold   a machine's file read and checked, then its first `simulate` of a lowered ResNet-50, a record a layer,
                 in a new process whose modules are imported
    candidate    whole candidates in one call, each with its own placement, memo on
    real masks   a ResNet-50 with 80 % of its weights zero, exact masks counted
    gather       candidates a second from a price table (57 factors, 4 metrics), by gather and sum
    curve        CPU time a row as layers x candidates grow: flat where time is linear

Peers run in environments of their own, made below --peers on first use (pip, minutes): ZigZag and SCALE-Sim on the
three smallest distinct layers of ResNet-50, Arm's Vela on the whole network as an int8 file.

    python benchmarks/simulators.py [--targets NAME ...] [--candidates 1000] [--peers FOLDER | --no-peers] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ[f"{library}_NUM_THREADS"] = "1"

import numpy as np
from engines.environment import environment_python

from accel_models import target, targets
from accel_models.validation.workload import workload
from codesign.space import Space, channel_variables, price_table
from workloads.channels import analyze
from workloads.columns import Columns
from workloads.graph import LayerGraph, Op
from workloads.sparsity import WeightSparsity
from workloads.tables import table

ROOT = Path(__file__).parents[1]
PEERS = {
    "zigzag": ("zigzag-dse==3.9.1", "six"),
    "scalesim": ("scalesim==3.0.0", "numpy<2.4"),
    "vela": ("ethos-u-vela==5.2.0", "numpy>=2"),
}
OURS = {"zigzag": "systolic_ws_32x32", "scalesim": "scalesim_ws_32x32"}  # both peers run a 32x32 array here
COLD = """
import time
import numpy.ma, scipy.special
from workloads.tables import table
from accel_models import target, targets
graph = table("resnet50")
graph.columns
target("ideal").simulate(table("squeezenet1_1"))
started = time.process_time()
machine = target({name!r})
loaded = time.process_time()
machine.simulate(graph)
print(loaded - started, time.process_time() - loaded)
"""


def candidates(graph: LayerGraph, count: int, seed: int = 0) -> Columns:
    """Rows of many random candidates, none of them equal to another."""
    rng = np.random.default_rng(seed)
    analysis = analyze(graph)
    groups = [group for group in analysis.groups if group.prunable]
    counts = np.stack([rng.integers(max(1, group.size // 4), group.size + 1, count) for group in groups], axis=1)
    return analysis.columns(counts, tuple(group.name for group in groups))


def with_masks(graph: LayerGraph, seed: int = 0, sparsity: float = 0.8) -> LayerGraph:
    """Exact masks as global magnitude pruning leaves them: filters of different scale lose different shares."""
    rng = np.random.default_rng(seed)
    masks: dict[str, WeightSparsity | None] = {}
    for layer in graph.layers:
        if layer.weight and layer.op in (Op.CONV, Op.LINEAR):
            shape = (layer.k, layer.c // layer.groups, layer.r, layer.s)
            size = np.abs(rng.standard_normal(shape)) * rng.lognormal(0, 0.3, (layer.k, 1, 1, 1))
            masks[layer.name] = WeightSparsity.from_mask(size > np.quantile(size, sparsity))
    return graph.with_sparsity(masks)


def best_seconds(call: Callable[[], object], repeats: int = 3) -> float:
    """Least CPU time of some calls."""
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        call()
        seconds.append(time.process_time() - started)
    return min(seconds)


def measure(name: str, graph: LayerGraph, count: int) -> dict[str, Any]:
    """Every speed of one machine."""
    machine = target(name)
    ready = machine.native(graph)
    whole = candidates(ready, count)
    rows = whole.take(whole.distinct()[0])
    cold = subprocess.run([sys.executable, "-c", COLD.format(name=name)], capture_output=True, text=True, check=True)
    load, first = map(float, cold.stdout.split())
    masked = with_masks(ready)
    return {
        "target": name,
        "mappings": machine.family.mappings_tried(),
        "distinct_rows": len(rows),
        "rows_per_s": round(len(rows) / best_seconds(lambda: machine.price(rows, memo=False))),
        "load_ms": 1e3 * load,
        "cold_ms": 1e3 * first,
        "candidate_ms": 1e3 * best_seconds(lambda: machine.price(whole, ready.topology)) / count,
        "masks_s": best_seconds(lambda: machine.simulate(masked), 1),
    }


def curve(name: str, graph: LayerGraph, counts: Sequence[int]) -> list[tuple[int, float]]:
    """(rows, microseconds a row) for growing numbers of candidates; memo off."""
    machine = target(name)
    ready = machine.native(graph)
    found = []
    for count in counts:
        rows = candidates(ready, count)
        found.append((len(rows), 1e6 * best_seconds(lambda rows=rows: machine.price(rows, memo=False)) / len(rows)))  # type: ignore[misc]
    return found


def gather_rate(name: str, graph: LayerGraph, count: int = 1_000_000) -> float:
    """Candidates a second from a price table."""
    machine = target(name)
    ready = machine.native(graph)
    analysis = analyze(ready)
    variables = channel_variables(analysis, machine.channel_multiple)
    loss = {variable.name: np.zeros(len(variable.options)) for variable in variables}
    prices = price_table(Space(ready, analysis, variables), machine, loss)
    rng = np.random.default_rng(0)
    choices = np.stack([rng.integers(0, options, count) for options in prices.options], axis=1)
    return count / best_seconds(lambda: prices.cost(choices))


# ---- peers ----------------------------------------------------------------------------------------------------------


def peer_layers(graph: LayerGraph) -> list[dict[str, Any]]:
    """The three convolutions of least work that differ in shape, as the peers' scripts read them."""
    found: dict[tuple[int, ...], dict[str, Any]] = {}
    for layer in sorted(graph.layers, key=lambda each: each.macs):
        key = (layer.k, layer.c, layer.p, layer.r, layer.stride[0])
        if layer.op is Op.CONV and key not in found:
            # SCALE-Sim knows no padding: it gets the padded input, from which P x Q outputs follow.
            h, w = (
                (n - 1) * step + side
                for n, step, side in zip((layer.p, layer.q), layer.stride, (layer.r, layer.s), strict=True)
            )
            dims = {"k": layer.k, "c": layer.c, "p": layer.p, "q": layer.q, "r": layer.r, "s": layer.s, "h": h, "w": w}
            found[key] = {"name": layer.name, **dims, "stride": layer.stride[0]}
    return list(found.values())[:3]


def peer_python(name: str, folder: Path) -> Path:
    """The interpreter of a peer's environment, made on first use."""
    return environment_python(folder / name, PEERS[name], "--no-peers runs without")


def run_peer(name: str, folder: Path, script: str, *arguments: str, given: object = None) -> list[dict[str, Any]]:
    """A peer's cycles and CPU seconds, one record a line of what its script prints; `given` goes in as JSON."""
    command = [peer_python(name, folder), ROOT / "benchmarks" / "peers" / script, *arguments]
    path = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, check=False, env=path)
    if done.returncode:
        raise SystemExit(f"{name}: failed\n{done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def beside_peers(graph: LayerGraph, folder: Path) -> list[dict[str, Any]]:
    """Each peer's cycles and CPU seconds for a layer, and ours: three layers in a call, and among many in one call.

    SCALE-Sim knows no padding, so its layers are priced here without it too; ZigZag's machine is another one than ours.
    """
    layers = peer_layers(graph)
    results = []
    for peer, name in OURS.items():
        machine = target(name)
        words = "layer:conv@int8 c={c} k={k} h={h} w={w} r={r} s={s} stride={stride} pad=valid"
        graphs = [workload(words.format(**layer)).graphs[0] for layer in layers]
        rows = Columns.concatenate([machine.native(each).columns.take(slice(1, 2)) for each in graphs])
        alone = best_seconds(lambda m=machine, r=rows: m.price(r, memo=False)) / len(rows)  # type: ignore[misc]
        many = Columns.concatenate([rows] * 1000)
        amortised = best_seconds(lambda m=machine, r=many: m.price(r, memo=False)) / len(many)  # type: ignore[misc]
        ours = [float(machine.facts(each).get("compute_cycles", np.zeros(1)).sum()) for each in graphs]
        for row, cycles in zip(run_peer(peer, folder, f"{peer}_layers.py", given=layers), ours, strict=True):
            ratios = {"ratio_alone": row["cpu_s"] / alone, "ratio_amortised": row["cpu_s"] / amortised}
            results.append({"peer": peer, "machine": name, **row, **ratios, "our_cycles": cycles})
    return results


def beside_vela(graph: LayerGraph, folder: Path) -> dict[str, float]:
    """Vela's CPU seconds and cycles for the network, and ours."""
    (row,) = run_peer("vela", folder, "vela_network.py", graph.name, "--accelerator", "ethos-u55-256")
    machine = target("ethos_u55_256")
    once = best_seconds(lambda: machine.simulate(graph))
    ours = {"ours_s": once, "ours_cycles": machine.simulate(graph).cycles}
    return {"vela_s": row["cpu_s"], "vela_cycles": row["cycles"], **ours}


# ---- the run --------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", default=targets(), metavar="NAME")
    parser.add_argument("--candidates", type=int, default=1000)
    parser.add_argument("--peers", type=Path, default=Path(".venv-peers"), help="where peers' environments are made")
    parser.add_argument("--no-peers", action="store_true", help="do not install or run other simulators")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    graph = table("resnet50")
    print(
        f"{'target':26} {'mappings':>8} {'rows/s':>10} {'load ms':>8} {'cold ms':>8} {'candidate ms':>12} "
        f"{'masks s':>8}"
    )
    results = []
    for name in options.targets:
        row = measure(name, graph, options.candidates)
        results.append(row)
        print(
            f"{name:26} {row['mappings']:8} {row['rows_per_s']:10,} {row['load_ms']:8.1f} {row['cold_ms']:8.1f} "
            f"{row['candidate_ms']:12.3f} {row['masks_s']:8.2f}",
            flush=True,
        )
    report: dict[str, Any] = {"targets": results}
    report["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of this process: {report['peak_mb']:.0f} MB")
    first = "ethos_u55_256" if "ethos_u55_256" in options.targets else options.targets[0]
    report["curve"] = curve(first, graph, (1, 10, 100, 1000))
    print(f"curve, {first}: " + ", ".join(f"{rows:,} rows {each:.1f} us a row" for rows, each in report["curve"]))
    report["gather_per_s"] = gather_rate(first, graph)
    print(f"price table: {report['gather_per_s']:,.0f} ResNet-50 candidates a second by gather and sum")
    if not options.no_peers:
        report["peers"] = beside_peers(graph, options.peers)
        for row in report["peers"]:
            print(
                f"peer {row['peer']:9} {row['name']:22} {row['cpu_s']:6.2f} CPU s, {row['cycles']:,.0f} cycles: "
                f"{row['machine']} {row['our_cycles']:,.0f} cycles, {row['ratio_alone']:,.0f}x faster for three layers "
                f"in a call, {row['ratio_amortised']:,.0f}x among many"
            )
        report["vela"] = vela = beside_vela(graph, options.peers)
        faster, off = vela["vela_s"] / vela["ours_s"], vela["ours_cycles"] / vela["vela_cycles"] - 1
        print(
            f"peer vela: ResNet-50 in {vela['vela_s']:.2f} CPU s, ours {vela['ours_s'] * 1e3:.1f} ms ({faster:,.0f}x); "
            f"cycles differ by {off:+.1%}"
        )
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
