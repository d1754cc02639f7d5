"""Small prices, results and records for tests of reports."""

from typing import Any

from accel_models import SimulationResult
from accel_models.result import LayerPrice
from accel_models.validation import ErrorBar, ErrorBars, Interval
from reports.records import (
    Accuracies,
    BudgetRecord,
    FrontPoint,
    FrontRecord,
    PlanGroup,
    PlanMask,
    PlanRecord,
    ReportRecord,
    RooflinePoint,
    RooflineRecord,
    StaircaseRecord,
)

CLOCK_HZ = 1e6
TIME_ERROR = ErrorBar(
    "time", "network", rows=36, networks=6, kinds=("silicon",), mean=0.12, median=0.09, worst=0.31,
    worst_row="resnet18", rank_correlation=0.98, calibrated=0, fit_mean=None, left_out_mean=0.12,
    absolute=Interval(0.88, 1.12, "6 networks"), ratio=Interval(0.95, 1.05, "12 variants of 6 networks or layers"),
)  # fmt: skip
ERROR = ErrorBars((TIME_ERROR,))


def price(name: str = "conv", **changes: Any) -> LayerPrice:
    """A layer of 1000 MACs and 100 useful cycles on a 1 MHz machine; other parts of its time as keywords.

    >>> price(overhead=20, memory=30).cycles
    150.0
    """
    parts = {part: float(changes.pop(part, 0.0)) for part in ("overhead", "imbalance", "memory", "launch")}
    lost = {"useful": float(changes.pop("useful", 100.0)), **parts}
    cycles = sum(lost.values())
    fields: dict[str, Any] = {
        "name": name,
        "op": "conv",
        "shape": (1, 16, 4, 4),
        "kernel": "dense",
        "macs": 1000,
        "density": 1.0,
        "cycles": cycles,
        "latency_s": cycles / CLOCK_HZ,
        "lost": lost,
        "energy_j": {"mac": 2e-6, "static": 1e-6},
        "traffic_bytes": {"sram": 400.0, "dram": 100.0},
        "utilization": lost["useful"] / cycles if cycles else 0.0,
        "bound": "compute",
    }
    return LayerPrice(**{**fields, **changes})


def add(name: str = "add", **changes: Any) -> LayerPrice:
    """An addition: its family calls its work overhead."""
    return price(name, **{"op": "add", "macs": 0, "useful": 0, "overhead": 50, "bound": "overhead", **changes})


def result(*layers: LayerPrice, **changes: Any) -> SimulationResult:
    fields = {"graph": "net", "target": "machine", "title": "A machine", "clock_hz": CLOCK_HZ, "precision": "int8"}
    return SimulationResult(**{**fields, "layers": layers, "error": ERROR, **changes})


def before() -> SimulationResult:
    """Two convolutions and an addition, 300 + 100 + 50 cycles, and an input that costs nothing."""
    nothing = price("x", op="input", macs=0, useful=0, bound="none", energy_j={}, traffic_bytes={})
    return result(nothing, price("a", useful=200, overhead=100, macs=2000), price("b"), add())


def after() -> SimulationResult:
    """Before with 13 of 16 channels of `a`: a and the addition take as long as before, b is twice as fast."""
    nothing = price("x", op="input", macs=0, useful=0, bound="none", energy_j={}, traffic_bytes={})
    a = price("a", useful=150, overhead=150, macs=1500, shape=(1, 13, 4, 4), bound="overhead")
    return result(nothing, a, price("b", useful=50, macs=500), add())


def front() -> FrontRecord:
    points = (
        FrontPoint(0.0, 450e-6, 9e-6, 3000, is_dense=True, feasible=False, heldout_accuracy=0.92),
        FrontPoint(0.1, 400e-6, 8e-6, 2000, chosen=True, heldout_accuracy=0.9, choices={"channels:a": "13"}),
        FrontPoint(0.3, 420e-6, 8.5e-6, 2100, feasible=False),
        FrontPoint(0.5, 300e-6, 6e-6, 1000),
    )
    return FrontRecord("latency", {"latency": 410e-6}, points, 4, 0.0)


def staircase(group: str = "a", span: float = 1.0) -> StaircaseRecord:
    latencies = tuple(400e-6 + span * step * 10e-6 for step in (0, 0, 1, 1))
    return StaircaseRecord(group, "machine", (1, 2, 3, 4), latencies, offered=(2, 4), chosen=2)


def roofline() -> RooflineRecord:
    point = RooflinePoint("a", 20.0, 5e6, 0.6, "overhead")
    return RooflineRecord("machine", "A machine", "int8", 1e7, "dram", 1e6, (point,), 1, 0.1)


def plan() -> PlanRecord:
    groups = (PlanGroup("a", 13, 16, ("a",)), PlanGroup("stream", 8, 8, ("stream", "b")))
    return PlanRecord(groups, (PlanMask("b", "pattern", 40, 90),))


def report(**changes: Any) -> ReportRecord:
    """A report with every section."""
    fields: dict[str, Any] = {
        "title": "net pruned for A machine",
        "before": before(),
        "after": after(),
        "model": "net",
        "data": "digits",
        "command": "codesign search net --budget latency=0.9x",
        "channel_multiple": 8,
        "parameters": (1000, 900),
        "size_bytes": (1000.0, 900.0),
        "accuracies": Accuracies(0.92, 0.9, 0.91, 0.9173, 0.9012, 1000, 10_000),
        "budgets": (BudgetRecord("latency=0.9x", "latency", 405e-6, 400e-6, True),),
        "front": front(),
        "staircases": (staircase("a", 1.0), staircase("stream", 2.0)),
        "roofline_before": roofline(),
        "roofline_after": roofline(),
        "plan": plan(),
        "seed": 7,
        "release": "1.2.3",
        "phase_seconds": {"search": 2.5, "finetune": 40.0},
        "notes": ("a note",),
        "not_modelled": ("something else",),
    }
    return ReportRecord(**{**fields, **changes})
