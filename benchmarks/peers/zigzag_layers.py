"""ZigZag on convolutions, in its own environment: `python zigzag_layers.py < layers.json`, one JSON line a layer.

A layer is {"name", "k", "c", "p", "q", "r", "s", "stride"}. Machine, mapping and search depth are ZigZag's own
TPU-like example and its default (`lpf_limit` 6). Time is process CPU time of the search, imports not counted.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
from pathlib import Path

import zigzag
from zigzag.api import get_hardware_performance_zigzag

INPUTS = Path(zigzag.__file__).parent / "inputs"


def workload(layer: dict[str, int | str]) -> list[dict[str, object]]:
    """The layer in ZigZag's words."""
    stride = layer["stride"]
    return [
        {
            "id": 0,
            "name": layer["name"],
            "operator_type": "Conv",
            "equation": "O[b][g][k][oy][ox]+=W[g][k][c][fy][fx]*I[b][g][c][iy][ix]",
            "dimension_relations": [f"ix={stride}*ox+1*fx", f"iy={stride}*oy+1*fy"],
            "loop_dims": ["B", "G", "K", "C", "OY", "OX", "FY", "FX"],
            "loop_sizes": [1, 1, *(layer[name] for name in ("k", "c", "p", "q", "r", "s"))],
            "operand_precision": {"W": 8, "I": 8, "O": 16, "O_final": 8},
            "operand_source": {"W": 0, "I": 0},
        }
    ]


def main() -> None:
    logging.disable(logging.WARNING)
    for layer in json.load(sys.stdin):
        with tempfile.TemporaryDirectory() as folder:
            started = time.process_time()
            energy_pj, cycles, _ = get_hardware_performance_zigzag(
                workload=workload(layer),
                accelerator=str(INPUTS / "hardware" / "tpu_like.yaml"),
                mapping=str(INPUTS / "mapping" / "tpu_like.yaml"),
                opt="latency",
                dump_folder=folder,
                loma_show_progress_bar=False,
            )
            seconds = time.process_time() - started
        print(json.dumps({"name": layer["name"], "cycles": cycles, "energy_pj": energy_pj, "cpu_s": seconds}))


if __name__ == "__main__":
    main()
