"""One engine with one case loaded, as a process: `python worker.py ENGINE FOLDER THREADS`, a line of JSON an answer.

The first answer comes when the case is loaded: {"version", "load_s"}. Then each line of the standard input,
{"times": n, "save": path or null}, is n calls, of which nothing else of the process takes part in the time, and is
answered with {"cpu_s": [...], "wall_s": [...]}, CLOCK_PROCESS_CPUTIME_ID and a wall clock. "save" writes the output
of the last call. What the engine itself prints goes to the standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from runtimes import ENGINES, version


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    name, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    x = np.load(folder / "input.npy")
    started = time.process_time()
    call = ENGINES[name].load(folder, x, threads)
    print(json.dumps({"version": version(name), "load_s": time.process_time() - started}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        cpu_s, wall_s = [], []
        for _ in range(asked["times"]):
            wall, cpu = time.perf_counter(), time.process_time()
            y = call()
            cpu_s.append(time.process_time() - cpu)
            wall_s.append(time.perf_counter() - wall)
        if asked["save"]:
            np.save(asked["save"], y)
        print(json.dumps({"cpu_s": cpu_s, "wall_s": wall_s}), file=answers, flush=True)


if __name__ == "__main__":
    main()
