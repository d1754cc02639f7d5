"""SCALE-Sim on convolutions, in its own environment: `python scalesim_layers.py < layers.json`, one JSON line a layer.

A layer is {"name", "k", "c", "h", "w", "r", "s", "stride"} without padding. A 32x32 weight-stationary array, memory
stalls not simulated (its CALC mode). Time is process CPU time of the run, imports not counted.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import sys
import tempfile
import time
from pathlib import Path

from scalesim.scale_sim import scalesim

CONFIG = """
[general]
run_name = run
[run_presets]
InterfaceBandwidth: CALC
UseRamulatorTrace: False
[architecture_presets]
ArrayHeight: 32
ArrayWidth: 32
IfmapSramSzkB: 512
FilterSramSzkB: 512
OfmapSramSzkB: 256
IfmapOffset: 0
FilterOffset: 10000000
OfmapOffset: 20000000
Bandwidth: 10
Dataflow: ws
ReadRequestBuffer: 512
WriteRequestBuffer: 512
[layout]
IfmapCustomLayout: False
IfmapSRAMBankBandwidth: 10
IfmapSRAMBankNum: 10
IfmapSRAMBankPort: 2
FilterCustomLayout: False
FilterSRAMBankBandwidth: 10
FilterSRAMBankNum: 10
FilterSRAMBankPort: 2
[sparsity]
SparsitySupport: false
"""
TOPOLOGY = (
    "Layer name, IFMAP Height, IFMAP Width, Filter Height, Filter Width, Channels, Num Filter, Strides, Sparsity,"
)
LAYOUT = "name" + ",factor" * 20 + ","


def simulate(layer: dict[str, int | str], folder: Path) -> tuple[float, float]:
    """(cycles without stalls, CPU seconds)."""
    dims = ",".join(str(layer[name]) for name in ("h", "w", "r", "s", "c", "k", "stride"))
    files = {
        "config": CONFIG,
        "topology": f"{TOPOLOGY}\n{layer['name']},{dims},1:1,\n",
        "layout": f"{LAYOUT}\n{layer['name']}" + ",1" * 20 + ",\n",
    }
    for name, text in files.items():
        (folder / f"{name}.csv").write_text(text)
    started = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        paths = {name: str(folder / f"{name}.csv") for name in files}
        scalesim(save_disk_space=True, verbose=False, **paths).run_scale(top_path=str(folder))
    seconds = time.process_time() - started
    report = next(folder.glob("**/COMPUTE_REPORT.csv"))
    row = {key.strip(): value for key, value in next(csv.DictReader(report.open())).items() if key}
    return float(row["Total Cycles"]) - float(row["Stall Cycles"]), seconds


def main() -> None:
    for layer in json.load(sys.stdin):
        with tempfile.TemporaryDirectory() as folder:
            cycles, seconds = simulate(layer, Path(folder))
        print(json.dumps({"name": layer["name"], "cycles": cycles, "cpu_s": seconds}))


if __name__ == "__main__":
    main()
