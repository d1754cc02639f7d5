"""Which models there are, without importing torch.

A model file starts with a literal table `ENTRIES` (name -> fields of `ModelEntry`) and has a function
`create(num_classes, **options) -> nn.Module`. The table is read from the source text, so that listing the zoo costs
milliseconds; the file itself is imported when one of its models is built. A package elsewhere adds models through
the entry point group `codesign.models`, whose value names a module of the same form (`my_net = "my_package.my_net"`).
Without a package, `my_file:my_net` names a model of any importable file of that form; it is found, but not listed.
"""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from workloads.data.images import Preprocessing
from workloads.errors import ConfigError, not_a_module, unknown_name

ENTRY_POINTS = "codesign.models"


@dataclass(frozen=True)
class ModelEntry:
    """What is known of a model before it is built.

    Attributes:
        name: what users type.
        module: dotted name of the file that builds it.
        summary: one line for listings.
        input_shape: of one input: (c, h, w) for pictures and sounds, (features,) for plain numbers.
        num_classes: outputs by default.
        data: name of the data set that it is made for; "" where none of ours is.
        parameters: their number with `num_classes` outputs, as published; buffers are not counted.
        source: where the form and the number come from.
        preprocessing: what its input needs; None where that is the data set's own normalisation.
        weights: file of pretrained weights below `weights/` of the data folder; "" where none are known.
        options: further arguments of the file's `create`.
        task: "classification", or "detection" for a model that answers boxes and logits (`pruning.detection`) and
            whose file names its anchors, `GRIDS`.
    """

    name: str
    module: str
    summary: str
    input_shape: tuple[int, ...]
    num_classes: int
    data: str
    parameters: int
    source: str = ""
    preprocessing: Preprocessing | None = None
    weights: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    task: str = "classification"


NEEDED_FIELDS = {"summary", "input_shape", "num_classes", "data", "parameters"}
OWN_DEFAULTS = {"summary": "", "data": "", "parameters": 0}
ALLOWED_FIELDS = NEEDED_FIELDS | {"source", "preprocessing", "weights", "options", "task"}


@functools.cache
def models() -> Mapping[str, ModelEntry]:
    """Every registered model by name, sorted, read-only. Imports neither torch nor any built-in model file.

    >>> models()["resnet20"].parameters
    269722
    """
    files = {f"{__package__}.{path.stem}": path for path in sorted(Path(__file__).parent.glob("*.py"))}
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        files[point.module] = _source_of(point)
    found: dict[str, ModelEntry] = {}
    for module, path in files.items():
        for name, entry in read_entries(module, path).items():
            if name in found:
                raise ConfigError(f"{path}: model {name!r} is registered by {found[name].module} already; rename it")
            found[name] = entry
    return MappingProxyType(dict(sorted(found.items())))


def find(name: str) -> ModelEntry:
    """The entry of a model, by its name or as `module:model`. ConfigError, with the closest names, if there is none."""
    check_form(name)
    module, is_own, model = name.partition(":")
    if is_own:
        if (file := file_of(module)) is None:
            raise ConfigError(f"{name}: there is no file {module.replace('.', '/')}.py, here or on PYTHONPATH")
        if not (entries := read_entries(module, file, OWN_DEFAULTS)):
            raise ConfigError(f"{name}: {file} has no table ENTRIES; docs/tutorial-own-network.md shows one")
        if model not in entries:
            raise unknown_name(f"model of {module}", model, entries)
        return replace(entries[model], name=name)
    if (entry := models().get(name)) is None:
        raise unknown_name("model", name, models())
    return entry


WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
EXPORTED_FILES = (".onnx", ".tflite", ".pt2")


def check_form(name: str) -> None:
    """Refuse a file where a network is to be named.

    >>> check_form("nets/edge_net.py:mini")
    Traceback (most recent call last):
    workloads.errors.ConfigError: nets/edge_net.py:mini: name it as Python imports it, nets.edge_net:mini
    """
    file = name.partition(":")[0]
    if file.endswith(WEIGHT_FILES):
        advice = "--weights reads them" if file.endswith(".safetensors") else "--weights reads them as .safetensors"
        raise ConfigError(f"{name}: is a file of weights; give the name of the network, {advice}")
    if file.endswith(EXPORTED_FILES):
        raise ConfigError(f"{name}: is an exported network; give the PyTorch code that it came from, as module:model")
    if error := not_a_module(name):
        raise error


def is_entry(name: str) -> bool:
    """Whether `find` knows a name; one of a file whose table is wrong is not known."""
    try:
        find(name)
    except ConfigError:
        return False
    return True


def file_of(module: str) -> Path | None:
    """Source of an importable module; it is not imported, but its parent packages are."""
    try:
        spec = importlib.util.find_spec(module) if module else None
    except Exception:  # whatever the parent package does on import; who imports the module will see it
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def read_entries(module: str, path: Path, defaults: Mapping[str, Any] | None = None) -> dict[str, ModelEntry]:
    """The models of one file, from its source text alone; {} where it has no `ENTRIES`.

    Args:
        defaults: of fields that a model needs.

    Raises:
        ConfigError: the table is not a literal, or has a field that is unknown, missing or malformed.
    """
    try:
        table = _table(ast.parse(path.read_text(encoding="utf-8")))
        rows = {} if table is None else ast.literal_eval(table)
        return {name: _entry(name, module, {**(defaults or {}), **fields}) for name, fields in rows.items()}
    except (OSError, SyntaxError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: ENTRIES must be a literal table, name -> fields of ModelEntry ({error})") from error


def _table(tree: ast.Module) -> ast.expr | None:
    """The right-hand side of `ENTRIES = ...` or `ENTRIES: ... = ...`."""
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == "ENTRIES" for target in targets):
                return node.value
    return None


def _entry(name: str, module: str, fields: dict[str, Any]) -> ModelEntry:
    if unknown := fields.keys() - ALLOWED_FIELDS:
        raise ValueError(f"{name!r} has the unknown field {min(unknown)!r}")
    if missing := NEEDED_FIELDS - fields.keys():
        raise ValueError(f"{name!r} lacks the field {min(missing)!r}")
    shape, classes = fields["input_shape"], fields["num_classes"]
    if not (isinstance(shape, tuple) and shape and all(type(size) is int and size > 0 for size in shape)):
        raise ValueError(f"{name!r} has input_shape {shape!r}, must be a tuple of whole numbers above 0")
    if type(classes) is not int or classes < 1:
        raise ValueError(f"{name!r} has num_classes {classes!r}, must be a whole number of at least 1")
    if (preprocessing := fields.pop("preprocessing", None)) is not None:
        fields["preprocessing"] = _preprocessing(name, preprocessing, shape)
    return ModelEntry(name=name, module=module, **fields)


def _preprocessing(name: str, given: Mapping[str, Any], shape: tuple[int, ...]) -> Preprocessing:
    try:
        found = Preprocessing(**given)
    except ConfigError as error:
        raise ValueError(f"{name!r}: {error}") from error
    if len(found.mean) != shape[0]:
        numbers = f"mean and std of {len(found.mean)} channels"
        raise ValueError(f"{name!r} has preprocessing with {numbers}, input_shape {shape} has {shape[0]}")
    return found


def _source_of(point: importlib.metadata.EntryPoint) -> Path:
    """Source file behind an entry point; its parent packages are imported, the module is not."""
    try:
        spec = importlib.util.find_spec(point.module)
    except Exception as error:  # whatever the parent package does on import
        raise ConfigError(f"entry point {point.name!r} of {ENTRY_POINTS}: {point.value} fails ({error})") from error
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise ConfigError(f"entry point {point.name!r} of {ENTRY_POINTS}: {point.value} is no Python module")
    return Path(spec.origin)
