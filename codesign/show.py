"""What the quick commands print."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from workloads.errors import CodesignError, ConfigError, PlanError

if TYPE_CHECKING:
    from accel_models import SimulationResult, Target
    from accel_models.measured import Measured
    from codesign.subject import Subject
    from workloads.graph import LayerGraph


def console(width: int = 140) -> Console:
    """Wide enough for tables when the output is a file."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=width)


def targets(name: str | None) -> None:
    """All machines in a line each, or one with every number and its source."""
    from accel_models import target as find
    from accel_models import targets as names
    from accel_models.registry import measured_targets, spec_files
    from accel_models.result import describe_error
    from accel_models.spec import read_machine, sourced_numbers
    from accel_models.validation import error_bars

    if name is None:
        table = Table("target", "what it is", "error of the model", box=None)
        broken = []
        for each in names():
            try:
                spec = find(each).spec
                table.add_row(each, spec.title, describe_error(error_bars(each, spec.file)))
            except ConfigError as error:
                broken.append(str(error))
        for each in measured_targets():
            table.add_row(each, "this machine, measured", "none: its own runs again say how far a time varies")
        console().print(table)
        if broken:
            raise ConfigError("; ".join(broken))
        return
    machine = find(name)
    path = Path(name) if name.endswith((".yaml", ".yml")) else spec_files()[name]
    table = Table("number", "value", "source", box=None, title=machine.spec.title)
    data = read_machine(path)
    for where, value, source in sourced_numbers(data):
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        table.add_row(where, shown, data.get("sources", {}).get(source, source))
    out = console()
    out.print(table)
    if area := sum(machine.spec.area_mm2.values()):
        out.print(f"area: {area:,.3g} mm2")
    known = describe_error(error_bars(machine.name, machine.spec.file))
    out.print(f"channels are computed {machine.channel_multiple} together; {known}")


def methods(name: str | None) -> None:
    """All pruning methods in a line each, or one with its options."""
    from pruning.methods import method as find
    from pruning.methods import methods as registered

    out = console()
    if name is None:
        table = Table("method", "what it does", "needs pictures", box=None)
        for each, cls in registered().items():
            table.add_row(each, (inspect.getdoc(cls) or "").partition("\n\n")[0], "yes" if cls.NEEDS_DATA else "")
        out.print(table)
        return
    found = find(name)
    for text in (inspect.getmodule(found), *(cls for cls in found.__mro__ if cls is found or _hands_on(cls, found))):
        out.print(inspect.cleandoc(text.__doc__ or ""), markup=False)
        out.print()
    table = Table("option", "default", box=None)
    for option, parameter in found.options().items():
        is_needed = parameter.default is inspect.Parameter.empty
        table.add_row(option, "must be given" if is_needed else str(parameter.default))
    out.print()
    out.print(table)


def _hands_on(parent: type, cls: type) -> bool:
    """Whether a method takes options that this parent explains."""
    from pruning.methods import Pruner

    if not (issubclass(parent, Pruner) and parent is not Pruner and "__init__" in vars(parent)):
        return False
    own = inspect.signature(parent.__init__).parameters.values()
    mine = {each.name for each in own if each.kind is inspect.Parameter.KEYWORD_ONLY}
    return issubclass(cls, Pruner) and bool(mine & cls.options().keys())


def models() -> None:
    """The zoo, a line each."""
    from workloads.models import models as entries

    table = Table("model", "input", "parameters", "data", "known weights", "what it is", box=None)
    for entry in entries().values():
        size = "x".join(map(str, entry.input_shape))
        table.add_row(entry.name, size, f"{entry.parameters:,}", entry.data, entry.weights, entry.summary)
    console().print(table)


def graph(subject: Subject, out: Path | None) -> None:
    """A layer graph's layers and totals; written to `out` if given."""
    from workloads.graph import Kind

    table = Table("layer", "op", "output", "MACs (M)", "parameters", "density", "fused", box=None)
    for layer in subject.graph:
        table.add_row(
            layer.name,
            layer.op.value,
            "x".join(map(str, layer.shape)),
            f"{layer.macs / 1e6:.3f}" if layer.kind is Kind.MAC else "",
            f"{layer.parameters:,}" if layer.parameters else "",
            f"{layer.sparsity.density:.3f}" if layer.sparsity else "",
            layer.activation or layer.fused_into,
        )
    screen = console()
    screen.print(table)
    screen.print(str(subject.graph))
    if out:
        subject.graph.save(out)
        screen.print(f"written: {out}")


def simulation(
    subject: Subject,
    target_names: Sequence[str],
    *,
    plan: Path | None,
    calibrate: str | None,
    changes: Sequence[str],
    out: Path | None,
    report: Path | None,
    trace: Path | None = None,
) -> None:
    """Price a subject on each target; print, store, report."""
    from accel_models import Target
    from accel_models.registry import machine
    from workloads.store import write_json

    ready = _prepared(subject, plan, calibrate)
    if trace and len(ready) > 1:
        raise ConfigError(f"--trace: plays one graph, {subject.name} holds {len(ready)} that do not feed each other")
    machines = [machine(name, parse_changes(changes)) for name in target_names]
    if trace and not isinstance(machines[0], Target):
        raise ConfigError(f"--trace: {machines[0].name} is measured; only simulated machines are played")
    results = [_priced(subject.name, ready, each) for each in machines]
    for result in results:
        if len(results) > 1:
            console().print(result.target, style="bold", markup=False, soft_wrap=True)
        print(result, end="\n\n" if len(results) > 1 else "\n")
    if len(results) > 1:
        console().print(_summary(results))
    if out:
        write_json(out, [result.to_dict() for result in results])
    if trace and isinstance(machines[0], Target):
        print(_trace(trace, ready[0], machines[0], results[0]))
    if report:
        from reports.html import write_comparison

        print(write_comparison(report, results))


def _summary(results: Sequence[SimulationResult]) -> Table:
    """A line a machine, the fastest first; the same numbers and words as on the page of `--report`."""
    from accel_models.quantities import ENERGY, TIME, quantity
    from reports.comparison import compare_targets

    heads = ("target", "precision", "latency", "energy", "cycles", "bound by (share of time)")
    table = Table(*heads, box=None, title=results[0].graph)
    for row in sorted(compare_targets(results).rows, key=lambda each: each.latency_s):
        energy = "unknown" if row.energy_j is None else quantity(row.energy_j, ENERGY)
        shown = (quantity(row.latency_s, TIME), energy, f"{row.cycles:,.0f}", row.bound_by)
        table.add_row(row.target, row.precision, *shown)
    return table


def _priced(name: str, graphs: Sequence[LayerGraph], machine: Target | Measured) -> SimulationResult:
    """One graph, or several that do not feed each other, on a machine."""
    from accel_models.result import joined

    results = [machine.simulate(graph) for graph in graphs]
    return results[0] if len(results) == 1 else joined(name, results)


def _prepared(subject: Subject, plan: Path | None, calibrate: str | None) -> tuple[LayerGraph, ...]:
    """The subject's graphs after a plan and with measured activation zeros."""
    if plan is None and calibrate is None:
        return subject.graphs
    from workloads.lowering import lower

    module, example = subject.needs_module("--plan" if plan else "--calibrate")
    if plan:
        from pruning.plan import PruningPlan

        stored = PruningPlan.load(plan)
        try:
            module = stored.apply(module, (example,))
        except CodesignError as error:
            raise PlanError(f"{plan}: not a plan for {subject.name}: {error}") from error
    batch = None
    if calibrate:
        from codesign.subject import load_split
        from workloads.data import load
        from workloads.models import is_entry

        is_known = is_entry(subject.name)
        images = load_split(subject.name, calibrate, "heldout") if is_known else load(calibrate, "heldout")
        batch = (next(iter(images.batches(32)))[0],)
    return (lower(module, (example,), on_unknown=subject.on_unknown, calibration=batch, name=subject.name),)


def _trace(path: Path, graph: LayerGraph, machine: Target, result: SimulationResult) -> str:
    """Play the graph on the first target, write the trace, say how both clocks agree."""
    from workloads.store import write_json

    played = machine.play(graph)
    write_json(path, played.to_perfetto([layer.name for layer in graph], machine.spec.clock_hz))
    total = float(played.cycles.sum())
    off = total / result.cycles - 1
    return f"{machine.name} played: {total:,.0f} cycles, {off:+.2%} from the closed form; trace: {path}"


def parse_changes(changes: Sequence[str]) -> dict[str, float]:
    """`path=number` texts.

    Raises:
        ConfigError: a text that is not of that form.

    >>> parse_changes(["clock_hz=1e9", "parameters.threads=2"])
    {'clock_hz': 1000000000.0, 'parameters.threads': 2}
    """
    found: dict[str, float] = {}
    for text in changes:
        path, _, value = text.partition("=")
        try:
            found[path] = json.loads(value)
        except json.JSONDecodeError as error:
            raise ConfigError(f"--set {text!r}: must be path=number, e.g. clock_hz=1e9") from error
    return found
