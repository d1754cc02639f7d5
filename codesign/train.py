"""`codesign train`: a network of the zoo on a data set."""

from __future__ import annotations

from pathlib import Path

from codesign.show import console
from codesign.subject import load_images, network, objective_of
from workloads.errors import ConfigError


def train_model(
    name: str,
    data: str,
    out: Path,
    *,
    epochs: int,
    rate: float,
    weights: Path | None,
    seed: int,
    device: str,
    overwrite: bool = False,
) -> None:
    """Train, keep the epoch that is best on held-out images, write the weights, print what it reaches on test images.

    A checkpoint beside `out` lets an interrupted run resume.

    Args:
        overwrite: replace a file that is there, once training has ended.

    Raises:
        CodesignError: bad names or options, missing data, an output that is there already or cannot be written.
    """
    from pruning.devices import pick_device
    from pruning.training import fit
    from workloads.models.weights import save_weights

    if out.suffix != ".safetensors":
        raise ConfigError(f"--out {out}: must end in .safetensors")
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: the folder {out.parent} does not exist")
    if out.exists() and not overwrite:
        raise ConfigError(f"--out {out}: exists already; choose another --out, or --overwrite")
    if epochs < 1:
        raise ConfigError("--epochs 0: training needs at least one")
    pick_device(device)
    images, objective = load_images(name, data), objective_of(name)
    model = network(name, images["train"].num_classes, weights, seed=seed)
    checkpoint = out.with_suffix(".training.pt")
    result = fit(
        model, images["train"], epochs, rate, heldout=images["heldout"], objective=objective, device=device, seed=seed,
        checkpoint=checkpoint,
    )  # fmt: skip
    save_weights(model, out)
    checkpoint.unlink(missing_ok=True)
    screen = console()
    screen.print(str(result))
    reached = objective.evaluate(model, images["test"], device=device).accuracy
    screen.print(f"test {objective.metric} {reached:.2%} on {len(images['test']):,} images; weights: {out}")
