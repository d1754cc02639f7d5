"""`codesign demo`: the whole path in about a minute, on data that come with scikit-learn.

Trains the zoo's small digits network on real handwritten digits, then runs the main job on it: an Ethos-U55 with a
latency budget of 0.6x. A second run finds the trained weights and the finished phases and only writes the report.
The weights lie beside the study, in OUT-dense: a study starts in an empty folder, and belongs to its weights.
"""

from __future__ import annotations

from pathlib import Path

from codesign.job import Outcome, SearchConfig, run
from codesign.show import console
from codesign.train import train_model

MODEL, DATA, TARGET, BUDGET = "digits_cnn", "digits", "ethos_u55_256", "latency=0.6x"


def run_demo(out: Path, seed: int) -> Outcome:
    """Train (once), search, fine-tune, test, report.

    Raises:
        CodesignError: scikit-learn is not installed, or `out` cannot be written.
    """
    from workloads.data import load
    from workloads.errors import ConfigError

    load(DATA, "heldout")  # a missing extra is said before anything is written
    weights = out.parent / f"{out.name}-dense" / f"seed{seed}.safetensors"
    if out.is_file():
        raise ConfigError(f"{out}: is a file, must be a folder; choose another --out")
    try:
        weights.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{weights.parent}: cannot be written ({error.strerror}); choose another --out") from error
    if not weights.exists():
        console().print(f"training {MODEL} on {DATA}: real handwritten digits, 8 x 8 pixels")
        train_model(MODEL, DATA, weights, epochs=8, rate=0.1, weights=None, seed=seed, device="cpu")
    config = SearchConfig(
        model=MODEL, data=DATA, target=TARGET, budgets=(BUDGET,), weights=str(weights), epochs=10, images=200,
        generations=40, seed=seed,
    )  # fmt: skip
    return run(config, out, device="cpu")
