"""A machine's numbers, read from one YAML file, every one with its source.

A number is written `{value: 8, source: T}`, where `T` is a key of the file's `sources` or the text starts with
`assumed:` and gives the reason. All mistakes of a file are reported together, each with its path, what was found and
what is allowed. Unknown keys are errors. Inside the door there are only frozen objects.

Energies and areas may be given as references to cited tables, `{table: horowitz_45nm.mac8, node_nm: 28}`
(`accel_models.technology`), which scales them by process node and capacity.

A machine that differs little from another one names it, `base: ethos_u55_128` (a file beside it), and gives only what
differs: mappings merge key by key, everything else (lists, numbers) is replaced; `null` removes a key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo

from accel_models.technology import resolve
from workloads.errors import ConfigError


def _value_with_source(given: Any, info: ValidationInfo) -> Any:
    """Unwrap `{value, source}`; refuse bare numbers and sources that resolve to nothing."""
    if not isinstance(given, dict) or not {"value", "source"} <= set(given) <= {"value", "source", "note"}:
        raise ValueError(f"found {given!r}, must be {{value: ..., source: ...}} (note: optional)")
    source, known = str(given["source"]), (info.context or {}).get("sources", {})
    if source not in known and not source.startswith("assumed: "):
        raise ValueError(f"source {source!r} is neither a key of 'sources' nor 'assumed: <reason>'")
    return given["value"]


class UniqueKeys(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # in C where PyYAML was built so
    """YAML without code, in which a key that is given twice is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        plain = (key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge")
        keys = [self.construct_object(key, deep=True) for key in plain]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]!r} is given twice", node.start_mark)
        return dict(super().construct_mapping(node, deep))


Model = TypeVar("Model", bound=BaseModel)
SPECS = Path(__file__).parent / "specs"


def _value_or_reference(what: Literal["energy", "area"]) -> Any:
    """Validator of a number that may also be a reference to a cited table (`accel_models.technology`)."""

    def unwrap(given: Any, info: ValidationInfo) -> Any:
        is_reference = isinstance(given, dict) and "table" in given
        return resolve(given, what)[0] if is_reference else _value_with_source(given, info)

    return BeforeValidator(unwrap)


_SOURCED = BeforeValidator(_value_with_source)
Positive = Annotated[float, Field(gt=0), _SOURCED]
NotNegative = Annotated[float, Field(ge=0), _SOURCED]
Energy = Annotated[float, Field(ge=0), _value_or_reference("energy")]
Area = Annotated[float, Field(ge=0), _value_or_reference("area")]
Fraction = Annotated[float, Field(ge=0, le=1), _SOURCED]
Count = Annotated[int, Field(gt=0), _SOURCED]
Counts = Annotated[tuple[int, ...], _SOURCED]
Numbers = Annotated[tuple[float, ...], _SOURCED]


class Frozen(BaseModel):
    """Base of everything read from a spec file: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Memory(Frozen):
    """One memory level with the port that compute reads it through.

    `overlap` says how its transfers run beside compute: `overlap` (hidden, the longer of the two counts), `serial`
    (added) or `double_buffer` (hidden but for the first tile's fill). Memories of one `bus` take turns (their transfers
    add up, so they must have the same `overlap`); others do not wait for each other. A memory that is not `shared` (a
    core's own cache) gives each of the tiles that run side by side a port of this bandwidth.
    """

    name: str
    size_bytes: Positive | None = None
    bandwidth_bytes_per_cycle: Positive
    overlap: Literal["overlap", "serial", "double_buffer"] = "overlap"
    bus: str = ""
    shared: bool = True


class Fit(Frozen):
    """A calibrated parameter: where it stands in the file, its bounds and the rows that it was fitted to."""

    parameter: str
    bounds: tuple[float, float]
    rows: tuple[str, ...]


class HardwareSpec(Frozen):
    """What every machine states; a family's own numbers are in `parameters`, checked by that family's model.

    Attributes:
        name, family, title: the target's name, the registered family that models it, and what people call it.
        sources: source key to citation.
        clock_hz: of the compute units; all cycles are of this clock.
        macs_per_cycle: peak multiply-accumulates a cycle by operand bits.
        memories: innermost first. Feature maps live in the first of `feature_memories` in which they fit.
        weight_memory: where weights are stored.
        energy_pj: picojoules per unit of each energy component of the family, given or from a cited table.
        static_power_w: drawn for the whole latency.
        area_mm2: of the silicon by part, published or from a cited table; empty where nothing is known.
        fitted: calibrated parameters (empty: nothing was fitted).
        file: the machine file that this was read from, "" if it was not read from one.
        changed: dotted paths of the numbers that the caller changed.
    """

    name: str
    family: str
    title: str
    notes: str = ""
    sources: Mapping[str, str] = Field(default_factory=dict)
    clock_hz: Positive
    macs_per_cycle: Mapping[int, Positive]
    memories: tuple[Memory, ...] = Field(min_length=1)
    feature_memories: tuple[str, ...] = Field(min_length=1)
    weight_memory: str
    energy_pj: Mapping[str, Energy]
    static_power_w: NotNegative | None = None
    area_mm2: Mapping[str, Area] = Field(default_factory=dict)
    fitted: tuple[Fit, ...] = ()
    file: str = ""
    changed: tuple[str, ...] = ()
    parameters: Any = None

    @property
    def ports(self) -> tuple[str, ...]:
        """Names of the memories, the order of every per-port array."""
        return tuple(memory.name for memory in self.memories)

    def memory(self, name: str) -> Memory:
        return self.memories[self.ports.index(name)]

    def peak_macs_per_cycle(self, bits: int) -> float:
        """Peak for operands of `bits`; a width that is not listed runs at the next wider one's rate."""
        wide_enough = [width for width in self.macs_per_cycle if width >= bits]
        return float(self.macs_per_cycle[min(wide_enough)] if wide_enough else min(self.macs_per_cycle.values()))


def load_spec(path: Path, overrides: Mapping[str, Any] | None = None) -> HardwareSpec:
    """Read and check a machine file, merged with the one that it is based on.

    Args:
        path: YAML.
        overrides: numbers to change before checking, by dotted path ("memories.0.bandwidth_bytes_per_cycle"); their
            source becomes "assumed: set by the caller".

    Raises:
        ConfigError: the file cannot be read or is wrong; lists every mistake with path, value and limit.
    """
    data = read_machine(path)
    for dotted, value in (overrides or {}).items():
        _override(data, dotted, value)
    spec = parse_spec(data, str(path))
    return spec.model_copy(update={"file": str(path), "changed": tuple(overrides or ())})


def read_machine(path: Path, followed: tuple[Path, ...] = (), library: Path = SPECS) -> dict[str, Any]:
    """A machine file as plain data, its bases merged in.

    Args:
        followed: files that led here, to refuse circles.
        library: folder of the bases that do not lie beside the file.

    Raises:
        ConfigError: a file cannot be read, is no mapping, or its base is missing or circular.
    """
    try:
        data = yaml.load(path.read_text(), UniqueKeys)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must be a mapping of fields, found {type(data).__name__}")
    if (base := data.pop("base", None)) is None:
        return data
    found = next((f for folder in (path.parent, library) if (f := folder / f"{base}.yaml").is_file()), None)
    if found is None or found in (path, *followed):
        problem = "no such machine file beside it" if found is None else "is based on this file in turn"
        raise ConfigError(f"{path}: base: {base!r}, {problem}")
    return _merge(read_machine(found, (*followed, path), library), data)


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `under`; a sourced number is replaced whole."""
    merged = dict(under)
    for key, value in over.items():
        below = under.get(key)
        nested = isinstance(value, dict) and isinstance(below, dict) and not {"source", "table"} & {*value, *below}
        merged[key] = _merge(below, value) if nested and isinstance(below, dict) else value
    return {key: value for key, value in merged.items() if value is not None}


def parse_spec(data: Mapping[str, Any], where: str) -> HardwareSpec:
    """Check a machine given as plain data; `where` names it in errors."""
    from accel_models.registry import family_class

    context = {"sources": data.get("sources") if isinstance(data.get("sources"), dict) else {}}
    spec, mistakes = _validated(HardwareSpec, data, context, "")
    try:
        cls = family_class(data["family"]) if isinstance(data.get("family"), str) else None
    except ConfigError as error:
        raise ConfigError("; ".join([f"{where}: {error}", *mistakes])) from error
    parameters, further = (
        _validated(cls.Parameters, data.get("parameters") or {}, context, "parameters.") if cls else (None, [])
    )
    if spec is None or cls is None or parameters is None:
        raise ConfigError(f"{where}: " + "; ".join([*mistakes, *further]))
    spec = spec.model_copy(update={"parameters": parameters})
    if mistakes := [*_dangling(spec), *_unshared(spec), *_mixed_buses(spec), *_energy_mistakes(spec, cls.components)]:
        raise ConfigError(f"{where}: " + "; ".join(mistakes))
    return spec


def _validated(
    model: type[Model], data: Any, context: Mapping[str, Any], prefix: str
) -> tuple[Model | None, list[str]]:
    """The data as a model, or None and what is wrong."""
    try:
        return model.model_validate(data, context=context), []
    except ValidationError as error:
        return None, _mistakes(error, prefix)


def sourced_numbers(data: Any, path: str = "") -> Iterator[tuple[str, Any, str]]:
    """(path, value, source) of every number in a machine file, for `codesign targets NAME`."""
    if isinstance(data, dict) and "table" in data:
        yield path, *resolve(data, "area" if path.startswith("area_mm2") else "energy")
    elif isinstance(data, dict) and {"value", "source"} <= set(data):
        yield path, data["value"], str(data["source"])
    elif isinstance(data, dict | list):
        items = data.items() if isinstance(data, dict) else enumerate(data)
        for key, item in items:
            yield from sourced_numbers(item, f"{path}.{key}" if path else str(key))


def _mistakes(error: ValidationError, prefix: str) -> list[str]:
    """One `path: found value, what is allowed` for every mistake."""
    found = []
    for mistake in error.errors():
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in mistake["loc"]).lstrip(".")
        given, message = mistake["input"], mistake["msg"].removeprefix("Value error, ")
        shown = "" if isinstance(given, dict) or mistake["type"] in ("missing", "value_error") else f"{given!r}, "
        found.append(f"{prefix}{path}: {shown}{message[0].lower()}{message[1:]}")
    return found


def _dangling(spec: HardwareSpec) -> list[str]:
    """Names of memories that do not exist."""
    named = [*(("feature_memories", name) for name in spec.feature_memories), ("weight_memory", spec.weight_memory)]
    allowed = ", ".join(spec.ports)
    return [f"{field}: {name!r}, must be one of {allowed}" for field, name in named if name not in spec.ports]


def _unshared(spec: HardwareSpec) -> list[str]:
    """Cores with caches of their own, and nothing that they all read from."""
    if any(memory.shared for memory in spec.memories):
        return []
    return ["memories: none is shared; the outermost must be (shared: true, as by default)"]


def _mixed_buses(spec: HardwareSpec) -> list[str]:
    """Memories of one bus that run beside compute in different ways."""
    first: dict[str, str] = {}
    return [
        f"memories.{i}.overlap: {memory.overlap!r}, must be {first[memory.bus]!r} as on the rest of bus {memory.bus!r}"
        for i, memory in enumerate(spec.memories)
        if memory.bus and first.setdefault(memory.bus, memory.overlap) != memory.overlap
    ]


def _energy_mistakes(spec: HardwareSpec, components: tuple[str, ...]) -> list[str]:
    missing = [f"energy_pj.{name}: missing" for name in components if name not in spec.energy_pj]
    extra = [f"energy_pj.{name}: unknown, allowed: {', '.join(components)}" for name in spec.energy_pj]
    return missing + [line for name, line in zip(spec.energy_pj, extra, strict=True) if name not in components]


def _override(data: Any, dotted: str, value: Any) -> None:
    """Set one number of a machine file in place."""
    *parents, last = dotted.split(".")
    node = data
    for part in [*parents, last]:
        key: Any = int(part) if isinstance(node, list) and part.isdigit() else part
        has_key = key in range(len(node)) if isinstance(node, list) else isinstance(node, dict) and key in node
        if not has_key and isinstance(node, dict) and part.isdigit() and int(part) in node:
            key, has_key = int(part), True
        if not has_key:
            raise ConfigError(f"no field {dotted!r} in the machine file: {part!r} is unknown there")
        parent, node = node, node[key]
    if not isinstance(node, dict) or not {"value", "table"} & set(node):
        raise ConfigError(f"field {dotted!r} is not a number with a source and cannot be changed")
    parent[key] = {"value": value, "source": "assumed: set by the caller"}
