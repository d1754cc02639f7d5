"""`codesign prune`: one method at one density, fine-tuned, tested once, priced before and after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel_models import SimulationResult, target
from codesign.show import console
from codesign.study import Study, write_json
from codesign.subject import Subject, load_images
from workloads.errors import ConfigError

if TYPE_CHECKING:
    from pruning.methods import Pruner

BATCH_SIZE = 128


def prune_model(
    subject: Subject,
    data: str,
    out: Path,
    *,
    method: str,
    density: float,
    granularity: str,
    targets: Sequence[str],
    epochs: int,
    rate: float,
    seed: int,
    device: str,
    overwrite: bool,
) -> Path:
    """Prune, fine-tune, test, and report; returns the report's path.

    Raises:
        CodesignError: bad names or options, missing data, an output folder that cannot be used.
    """
    from pruning.evaluation import accuracy
    from pruning.methods import method as find_method
    from pruning.training import fit
    from workloads.lowering import lower
    from workloads.models.weights import save_weights

    if len(set(targets)) < len(targets):
        raise ConfigError(f"--target {' '.join(targets)}: a machine is given twice")
    machines = [target(name) for name in targets]
    cls = find_method(method)
    if epochs < 1:
        raise ConfigError("--epochs 0: a pruned network needs fine-tuning, give at least one")
    module, example = subject.needs_module("prune")
    if subject.weights == "random":
        raise ConfigError(f"{subject.name} is untrained; give --weights FILE (see codesign train) or --pretrained")
    images = load_images(subject.name, data)
    steps = -(-len(images["train"]) // BATCH_SIZE) * epochs
    config = {
        "command": "prune", "model": subject.name, "weights": subject.weights, "data": data, "method": method,
        "density": density, "granularity": granularity, "targets": list(targets), "epochs": epochs, "rate": rate,
        "seed": seed,
    }  # fmt: skip
    make: Callable[..., Pruner] = cls
    pruner = make(module, (example,), steps, density=density, granularity=granularity)
    study = Study.create(out, config, overwrite)
    fit(
        pruner.model, images["train"], epochs, rate, heldout=images["heldout"], pruner=pruner, teacher=module,
        batch_size=BATCH_SIZE, device=device, seed=seed, checkpoint=out / "training.pt",
    )  # fmt: skip
    sparse = pruner.finalize()
    save_weights(sparse, out / "model.safetensors")
    batch = images["heldout"].tensor(slice(0, 32))
    graphs = [lower(model, example, calibration=batch, name=subject.name) for model in (module, sparse)]
    tested = {"dense_test": accuracy(module, images["test"]), "test": accuracy(sparse, images["test"])}
    pairs = [tuple(machine.simulate(graph) for graph in graphs) for machine in machines]
    write_json(study.path("result"), {**tested, "targets": [[a.to_dict(), b.to_dict()] for a, b in pairs]})
    return _report(study, config, pairs, tested, len(images["test"]), steps)


def _report(
    study: Study,
    config: dict[str, Any],
    pairs: Sequence[tuple[SimulationResult, ...]],
    tested: dict[str, float],
    images: int,
    steps: int,
) -> Path:
    """Say and write what came of it; one report a target."""
    from reports.comparison import describe_ratios
    from reports.curves import roofline
    from reports.html import write_report
    from reports.records import Accuracies, ReportRecord

    screen = console()
    screen.print(f"test accuracy: dense {tested['dense_test']:.2%}, pruned {tested['test']:.2%} on {images:,} images")
    path = study.folder
    for before, after in pairs:
        folder = study.folder if len(pairs) == 1 else study.folder / before.target
        folder.mkdir(exist_ok=True)
        spec = target(config["targets"][pairs.index((before, after))]).spec
        record = ReportRecord(
            title=f"{config['model']} with {config['method']} at density {config['density']:g} on {before.title}",
            before=before,
            after=after,
            model=config["model"],
            data=config["data"],
            accuracies=Accuracies(dense_test=tested["dense_test"], tuned_test=tested["test"], test_images=images),
            roofline_before=roofline(before, spec),
            roofline_after=roofline(after, spec),
            seed=config["seed"],
            notes=(f"{config['method']} over {steps:,} optimizer steps, granularity {config['granularity']}.",),
        )
        path = write_report(folder, record)
        ratio = after.latency_s / before.latency_s
        screen.print(f"{before.title}: latency {ratio:.3f}x of dense; report: {path}")
        screen.print(describe_ratios(before, after))
    return path
