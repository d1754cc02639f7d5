"""Write the layer tables again, from the models of the zoo: `python -m workloads.tables.make [NAME ...]`.

A table may differ from the zoo's own form of a model by options (a width) and by the size of the picture.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workloads.errors import CodesignError, unknown_name
from workloads.graph import LayerGraph
from workloads.store import graph_text, write_file
from workloads.tables import FOLDER


@dataclass(frozen=True)
class Recipe:
    """Where a table comes from: a model of the zoo, options of its family, height and width of its input.

    Attributes:
        model: a registered name.
        options: over those of the entry.
        size: (h, w); None for the entry's own.
    """

    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    size: tuple[int, int] | None = None


def _mobilenet_v2(percent: int, resolution: int) -> Recipe:
    return Recipe("mobilenet_v2", {"width": percent / 100}, (resolution, resolution))


RESOLUTIONS = (224, 192, 160, 128, 96)
AS_IN_THE_ZOO = (
    *("autoencoder", "ds_cnn", "mnasnet", "mobilenet_v1", "mobilenet_v1_vww", "mobilenet_v2", "resnet18", "resnet50"),
    *("resnet8", "squeezenet1_0", "squeezenet1_1", "vgg16"),
)
MODELS: Mapping[str, Recipe] = {
    **{name: Recipe(name) for name in AS_IN_THE_ZOO},
    "alexnet": Recipe("alexnet_2012"),  # the AlexNet of the accelerator papers
    "mobilenet_v1_w075": Recipe("mobilenet_v1", {"width": 0.75}),
    "mobilenet_v1_w140": Recipe("mobilenet_v1", {"width": 1.4}),
    "mobilenet_v2_width50": Recipe("mobilenet_v2", {"expansion": 3}),  # inner channels halved, but in the first block
    **{f"mobilenet_v2_w050_r{size:03}": _mobilenet_v2(50, size) for size in RESOLUTIONS},
    **{f"mobilenet_v2_w100_r{size:03}": _mobilenet_v2(100, size) for size in RESOLUTIONS if size != 224},
    "squeezenet1_1_227": Recipe("squeezenet1_1", size=(227, 227)),
}


def make_table(name: str) -> LayerGraph:
    """A model of the zoo as a graph for one image, all weights dense whatever their random values.

    Raises:
        ConfigError: no such table is made.
    """
    import torch

    from workloads.lowering import lower
    from workloads.models import build, find

    if (recipe := MODELS.get(name)) is None:
        raise unknown_name("table", name, MODELS)
    shape = find(recipe.model).input_shape
    x = torch.zeros(1, *(shape if recipe.size is None else (shape[0], *recipe.size)))
    graph = lower(build(recipe.model, options=recipe.options), x, name=name)
    return graph.with_sparsity({layer.name: None for layer in graph}).verify()


def main(arguments: Sequence[str] | None = None, folder: Path = FOLDER) -> int:
    """Write tables as files; 2 if one cannot be made."""
    parser = argparse.ArgumentParser(prog="python -m workloads.tables.make", description=__doc__)
    parser.add_argument(
        "names", nargs="*", default=list(MODELS), metavar="NAME", help=f"all by default: {', '.join(MODELS)}"
    )
    for name in parser.parse_args(arguments).names:
        try:
            graph = make_table(name)
            write_file(folder / f"{name}.json", graph_text(graph).encode())
        except CodesignError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        print(graph)
    return 0


if __name__ == "__main__":
    sys.exit(main())
