"""Write the layer tables again, from the models of the zoo: `python -m workloads.tables.make [NAME ...]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from workloads.errors import CodesignError
from workloads.graph import LayerGraph
from workloads.store import graph_text, write_file
from workloads.tables import FOLDER

MODELS = ("mobilenet_v1", "mobilenet_v2", "resnet18", "resnet50", "squeezenet1_0", "squeezenet1_1", "vgg16")


def make_table(name: str) -> LayerGraph:
    """A model of the zoo as a graph for one image, all weights dense whatever their random values."""
    from workloads.lowering import lower
    from workloads.models import build, example_input

    graph = lower(build(name), example_input(name), name=name)
    return graph.with_sparsity({layer.name: None for layer in graph}).verify()


def main(arguments: Sequence[str] | None = None, folder: Path = FOLDER) -> int:
    """Write tables as files; 2 if one cannot be made."""
    parser = argparse.ArgumentParser(prog="python -m workloads.tables.make", description=__doc__)
    parser.add_argument("names", nargs="*", default=MODELS, metavar="NAME", help=f"by default {', '.join(MODELS)}")
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
