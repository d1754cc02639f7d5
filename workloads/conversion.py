"""From an exported program to drafts: walks the traced operators in order and asks the operator table.

What depends on parameters, buffers and numbers alone is written down as a `Constant` without asking anything else.
An operator that the table lacks, or whose handler declines, is an error that names it, or a layer of vector work.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Graph, GraphModule, Node

from workloads.constants import Computed, Constant, Literal, Stored, computed
from workloads.drafts import Draft, Scope, Sheet, Site, UnsupportedError, Value
from workloads.errors import LoweringError
from workloads.graph import Op
from workloads.operators import OPERATORS

# Checks without a result; what they check held while the program was traced.
IGNORED = frozenset({"aten._assert_tensor_metadata.default", "aten._assert_async.msg"})
REGIONS = ("wrap_with_set_grad_enabled", "wrap_with_autocast")  # `with torch.no_grad():` and the like in the model
DATA_DEPENDENT = "its shape depends on the values of a tensor; make the size a constant"
_AXIS_SECOND = ("aten.conv", "aten.batch_norm", "aten.group_norm", "aten.instance_norm", "aten.prelu")
_AXIS_LAST = ("aten.linear", "aten.matmul", "aten.lstm", "aten.layer_norm", "aten.scaled_dot_product_attention")


def convert(
    program: ExportedProgram, names: Mapping[str, str], on_unknown: str
) -> tuple[list[Draft], list[Draft], list[Draft]]:
    """All drafts in running order; those whose outputs leave the network; those of calls whose answer nothing reads.

    Args:
        names: name of a parameter or buffer -> the first name of the same tensor.
        on_unknown: "error" or "vector".

    Raises:
        LoweringError: an operator that cannot be expressed, or an output that is no tensor of the network.
    """
    for node in program.graph.nodes:
        for value in _flat(node.meta.get("val")):
            if isinstance(value, Tensor) and not all(isinstance(size, int) for size in value.shape):
                raise LoweringError(f"{node.name!r} ({node.target}): {DATA_DEPENDENT}")
    conversion = _Conversion(on_unknown)
    given = _given(conversion, program, names)
    outputs = conversion.run(program.graph, given)
    kinds = [spec.kind for spec in program.graph_signature.output_specs]
    wanted = [value for value, kind in zip(outputs, kinds, strict=True) if kind is OutputKind.USER_OUTPUT]
    _check_numbers(program, outputs)
    scope = Scope("", "", "")
    site = Site(conversion.sheet, scope, "output", "output", (), 32)
    found = [site.draft(value) for value in wanted if isinstance(value, Draft | Constant)]
    if not found:
        raise LoweringError("the model returns no tensor; a layer graph needs at least one output")
    if conversion.sheet.is_int8:
        for draft in conversion.sheet.drafts:
            draft.bits = 8
    return conversion.sheet.drafts, found, conversion.unused.drafts


def _check_numbers(program: ExportedProgram, outputs: Sequence[Value]) -> None:
    """A number without axes may join other tensors, but not leave the network.

    Raises:
        LoweringError: it does.
    """
    for node, value in zip(program.graph.output_node().args[0], outputs, strict=True):
        if isinstance(value, Draft) and isinstance(node, Node) and not _shape(node.meta["val"]):
            raise LoweringError(f"{node.name!r} ({node.target}): its result is a single number without a batch axis")


def _given(conversion: _Conversion, program: ExportedProgram, names: Mapping[str, str]) -> list[Value]:
    """What the placeholders stand for: stored tensors, literals, inputs."""
    found: list[Value] = []
    stored: dict[str, Stored] = {}
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
        value = node.meta.get("val")
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            assert spec.target is not None, "stored tensors have names"
            name = names[spec.target]
            stored.setdefault(name, Stored(name, tuple(value.shape), spec.kind is InputKind.PARAMETER))
            found.append(stored[name])
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            constant = program.constants[spec.target]
            assert isinstance(constant, Tensor), "the kind says tensor"
            found.append(Literal(constant.detach().cpu()))
        elif isinstance(value, Tensor):
            found.append(conversion.add_input(node))
        else:
            found.append(value)
    return found


class _Conversion:
    """The state of one walk: the sheet, another for calls whose answer nothing reads, what each traced value became."""

    def __init__(self, on_unknown: str) -> None:
        self.sheet, self.unused = Sheet(), Sheet()
        self._on_unknown = on_unknown

    def add_input(self, node: Node) -> Draft:
        shape = _shape(node.meta["val"])
        if not shape:
            raise LoweringError(f"input {node.name!r} is a single number; inputs need a batch axis")
        axis = _revealed_axis(node, len(shape))
        draft = Draft(Op.INPUT, shape, [], Scope("", "", ""), node.name, 1 if axis is None else axis, name=node.name)
        draft.bits = _bits(node.meta["val"])
        if not (dtype := node.meta["val"].dtype).is_floating_point:
            draft.attributes = {"dtype": str(dtype).removeprefix("torch.")}
        self.sheet.drafts.append(draft)
        return draft

    def run(self, graph: Graph, given: Sequence[Value]) -> list[Value]:
        """The values that a (sub)graph returns for the values that are given to it."""
        known: dict[Node, Value] = {}
        supply = iter(given)
        live, memory = _live(graph), _Memory()
        for node in graph.nodes:
            memory.add(node)
            if node.op == "placeholder":
                known[node] = next(supply)
            elif node not in live:
                known[node] = self._unused(node, known)
            elif node.op == "get_attr":
                known[node] = _attribute(graph, str(node.target))
            elif node.op == "output":
                return [_replaced(item, known) for item in _flat(node.args[0])]
            else:
                known[node] = self._call(node, known)
                if _writes(node):
                    _rebind(node, known, memory, live)
        raise AssertionError("every traced graph ends with an output")

    def _unused(self, node: Node, known: Mapping[Node, Value]) -> Value:
        """What nothing reads runs all the same; None where it cannot be expressed, which is no error."""
        is_dropped = node.target is operator.getitem and not node.users  # a piece that was not even asked for
        if is_dropped or node.op == "get_attr" or any(known[item] is None for item in node.all_input_nodes):
            return None
        state = self.sheet, self._on_unknown
        self.sheet, self._on_unknown = self.unused, "vector"
        try:
            return self._call(node, known)
        except (LoweringError, UnsupportedError):
            return None
        finally:
            self.sheet, self._on_unknown = state

    def _call(self, node: Node, known: Mapping[Node, Value]) -> Value:
        target = str(node.target)
        if node.target is operator.getitem:
            return self._item(node, known)
        if target in REGIONS:
            return self._region(node, known)
        if target in IGNORED or target.startswith("aten._assert_scalar") or not _has_tensor(node):
            return None
        arguments = [_replaced(item, known) for item in _bound(node)]
        if not any(isinstance(item, Draft) for item in _flat(arguments)):
            if _is_random(node):
                raise self._error(node, _site(self.sheet, node), [], "it draws random numbers")
            return Computed(_shape_or_none(node), _callable(node), *_constant_arguments(node, known))
        return self._guarded(node, arguments)

    def _guarded(self, node: Node, arguments: list[Value]) -> Value:
        """The handler's answer; what it cannot express is an error or vector work."""
        site = _site(self.sheet, node)
        handler = OPERATORS.get(site.target)
        reason = "it is not in the operator table"
        if handler is not None and not _is_integer_cast(node):
            try:
                return handler(site, *arguments)
            except UnsupportedError as error:
                reason = str(error)
        elif handler is not None:
            reason = "it rounds to whole numbers"
        return self._vector(node, site, arguments, reason)

    def _vector(self, node: Node, site: Site, arguments: list[Value], reason: str) -> Value:
        tensors = [item for item in _flat(arguments) if isinstance(item, Draft | Constant)]
        if self._on_unknown != "vector" or not all(site.shapes):
            raise self._error(node, site, tensors, reason)
        if len(site.shapes) == 1:
            spelled = _spelled(node, arguments)
            return self._vector_layer(site, tensors, site.shape, {} if spelled is None else {"arguments": spelled})
        return [lambda shape=shape: self._vector_layer(site, tensors, shape, {}) for shape in site.shapes]

    def _vector_layer(
        self, site: Site, tensors: list[Value], shape: tuple[int, ...], attributes: Mapping[str, Any]
    ) -> Draft:
        return site.emit(Op.VECTOR, [site.draft(item) for item in tensors], shape, target=site.target, **attributes)

    def _item(self, node: Node, known: Mapping[Node, Value]) -> Value:
        """One output of an operator that has several."""
        source, index = node.args
        value = known[source]  # type: ignore[index]
        if isinstance(value, Constant):
            return computed(operator.getitem, _shape_or_none(node), value, index)
        piece = value[index]
        if not callable(piece):
            return piece
        assert isinstance(source, Node), "getitem reads a traced value"
        try:
            return piece()
        except UnsupportedError as error:
            arguments = [_replaced(item, known) for item in _bound(source)]
            return self._vector(node, _site(self.sheet, source, node), arguments, str(error))

    def _region(self, node: Node, known: Mapping[Node, Value]) -> Value:
        """A part of the model under another gradient or autocast mode: the same layers."""
        values = [_replaced(item, known) for item in node.args]
        place = next(i for i, item in enumerate(values) if isinstance(item, GraphModule))
        return self.run(values[place].graph, values[place + 1 :])

    def _error(self, node: Node, site: Site, tensors: Sequence[Value], reason: str) -> LoweringError:
        shapes = ", ".join(str(tuple(item.shape)) for item in tensors) or "none"
        where = (
            f"{site.scope.path!r} ({site.scope.kind})" if site.scope.path else f"the model itself ({site.scope.kind})"
        )
        hint = "write it with operators that the table has, or price it as vector work"
        return LoweringError(
            f"operator {node.target} (node {node.name!r}) in {where}, input shapes {shapes}: {reason}; {hint} "
            '(on_unknown="vector", --unknown vector)'
        )


def _live(graph: Graph) -> set[Node]:
    """What the output depends on, and what writes into a tensor."""
    found: set[Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or node in found or _writes(node):
            found.update((node, *node.all_input_nodes))
    return found


# ---- reading traced nodes --------------------------------------------------------------------------------------------


def _site(sheet: Sheet, node: Node, piece: Node | None = None) -> Site:
    """Where a call stands; for one `piece` of its result, with the shape of that piece."""
    stack = node.meta.get("nn_module_stack") or {"": ("", "")}
    call, (path, kind) = list(stack.items())[-1]
    kind = kind if isinstance(kind, str) else kind.__name__
    scope = Scope(call, path.split("@")[0], kind.rsplit(".", 1)[-1])
    values = [item for item in _flat((piece or node).meta.get("val")) if isinstance(item, Tensor)]
    target = _plain_target(str(node.target))
    return Site(sheet, scope, target, node.name, tuple(_shape(item) for item in values), _bits(values[0]))


def _plain_target(target: str) -> str:
    """ "aten.relu_.default" -> "aten.relu.default": in-place forms share the row of the plain form."""
    namespace, _, rest = target.partition(".")
    name, _, overload = rest.partition(".")
    return f"{namespace}.{name.rstrip('_')}.{overload}" if overload else target


def _shape(value: Tensor) -> tuple[int, ...]:
    return tuple(value.shape)


def _shape_or_none(node: Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    return _shape(value) if isinstance(value, Tensor) else ()


def _bits(value: Tensor) -> int:
    return min(32, 8 * value.dtype.itemsize)


def _has_tensor(node: Node) -> bool:
    return any(isinstance(item, Tensor) for item in _flat(node.meta.get("val")))


def _is_random(node: Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _is_integer_cast(node: Node) -> bool:
    """A cast from floats to whole numbers loses what a layer keeps."""
    if str(node.target).split(".")[1] not in ("to", "_to_copy", "type_as"):
        return False
    source = node.args[0]
    assert isinstance(source, Node), "casts read a tensor"
    return bool(source.meta["val"].is_floating_point() and not node.meta["val"].is_floating_point())


def _bound(node: Node) -> list[Any]:
    """Arguments in the order of the schema, defaults filled in."""
    schema = getattr(node.target, "_schema", None)
    found = list(node.args)
    if schema is None:
        return [*found, *node.kwargs.values()]
    for argument in schema.arguments[len(found) :]:
        found.append(node.kwargs.get(argument.name, argument.default_value))
    return found


def _spelled(node: Node, arguments: Sequence[Value]) -> dict[str, Any] | None:
    """A call's arguments by name as JSON values, tensors as {"input": place}; None where that does not say it all.

    Only calls without side effects on float32 tensors, with finite numbers and text beside them, can be repeated so.
    """
    schema = getattr(node.target, "_schema", None)
    values = [item.meta.get("val") for item in (node, *node.all_input_nodes)]
    if schema is None or schema.is_mutable or not all(_is_float32(value) for value in values):
        return None
    places = itertools.count()

    def spelled(item: Value) -> Any:
        if isinstance(item, Draft | Constant):
            return {"input": next(places)}
        if isinstance(item, list | tuple):
            return tuple(spelled(part) for part in item)
        if item is None or isinstance(item, str) or (isinstance(item, bool | int | float) and math.isfinite(item)):
            return item
        raise UnsupportedError

    try:
        return {a.name: spelled(item) for a, item in zip(schema.arguments, arguments, strict=True)}
    except UnsupportedError:
        return None


def _is_float32(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float32


def _callable(node: Node) -> Any:
    assert callable(node.target), "a call has a function"
    return node.target


def _constant_arguments(node: Node, known: Mapping[Node, Value]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Exactly as traced, but on the CPU, where constants are computed."""
    kwargs = {key: _on_cpu(_replaced(item, known)) for key, item in node.kwargs.items()}
    return tuple(_on_cpu(_replaced(item, known)) for item in node.args), kwargs


def _on_cpu(item: Any) -> Any:
    return torch.device("cpu") if isinstance(item, torch.device) else item


def _replaced(item: Any, known: Mapping[Node, Value]) -> Any:
    """With traced values replaced by what they became."""
    if isinstance(item, Node):
        return known[item]
    return [_replaced(part, known) for part in item] if isinstance(item, list | tuple) else item


def _flat(item: Any) -> Iterator[Any]:
    if isinstance(item, list | tuple):
        for part in item:
            yield from _flat(part)
    else:
        yield item


def _attribute(graph: Graph, target: str) -> Any:
    found: Any = graph.owning_module
    for name in target.split("."):
        found = getattr(found, name)
    return found


# ---- writing in place ------------------------------------------------------------------------------------------------


def _writes(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable and _plain_target(str(node.target)) != "aten.detach.default"


class _Memory:
    """Which traced values share memory: views and in-place operators with what they started from."""

    def __init__(self) -> None:
        self._place: dict[Node, int] = {}
        self._root: dict[Node, Node] = {}
        self._members: dict[Node, list[Node]] = {}

    def add(self, node: Node) -> None:
        """Nodes come in running order."""
        source = node.args[0] if node.args else None
        is_shared = isinstance(source, Node) and _shares_memory(node, source, self._root[source])
        root = self._root[source] if is_shared else node  # type: ignore[index]
        self._place[node] = len(self._place)
        self._root[node] = root
        self._members.setdefault(root, []).append(node)

    def sharing(self, node: Node) -> tuple[Node, list[Node]]:
        """The value that the memory of this one belongs to, and all that share it so far."""
        return self._root[node], self._members[self._root[node]]

    def is_later(self, user: Node, node: Node) -> bool:
        """Whether a user, which may not be added yet, runs after a node."""
        return self._place.get(user, len(self._place)) > self._place[node]


def _shares_memory(node: Node, source: Node, root: Node) -> bool:
    if node.target is operator.getitem:
        return source is not root  # parts of a split, not the outputs of an LSTM
    value, original = node.meta.get("val"), source.meta.get("val")
    if isinstance(value, Tensor) and isinstance(original, Tensor) and value.dtype != original.dtype:
        return False
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.returns:
        return False
    return "dropout" in str(node.target) or schema.returns[0].alias_info is not None


def _rebind(node: Node, known: dict[Node, Value], memory: _Memory, live: set[Node]) -> None:
    """After x.relu_(), x means the result. A write into a part of x that is read again has no layer: an error."""
    written = node.args[0]
    assert isinstance(written, Node), "an in-place operator writes into its first argument"
    before = known[written]
    root, sharing = memory.sharing(written)
    for other in sharing:
        if other is node or not any(user in live and memory.is_later(user, node) for user in other.users):
            continue
        if known[other] is not before:
            raise LoweringError(
                f"{node.name!r} ({node.target}) writes into a view of {root.name!r}, which is read afterwards; "
                f"make a new tensor instead, for example with torch.cat"
            )
        known[other] = known[node]


# ---- inputs ----------------------------------------------------------------------------------------------------------


def _revealed_axis(node: Node, rank: int, seen: set[Node] | None = None) -> int | None:
    """Which axis of an input holds its channels, from the first operator that says so."""
    seen = set() if seen is None else seen
    for user in [item for item in node.users if item not in seen]:
        seen.add(user)
        target = str(user.target)
        if target.startswith(_AXIS_SECOND):
            return 1
        if target.startswith(_AXIS_LAST):
            return max(rank - 1, 1)
        value = user.meta.get("val")
        if not isinstance(value, Tensor) or value.dim() != rank:
            continue
        found = _revealed_axis(user, rank, seen)
        if found is not None:
            return _before_turning(user, found, rank)
    return None


def _before_turning(node: Node, axis: int, rank: int) -> int:
    """The axis of the input that a transposition puts at `axis`."""
    axes = list(range(rank))
    name = _plain_target(str(node.target))
    if name == "aten.transpose.int":
        first, second = (int(item) for item in node.args[1:3])  # type: ignore[arg-type]
        axes[first], axes[second] = axes[second], axes[first]
    elif name == "aten.permute.default":
        axes = [int(item) % rank for item in node.args[1]]  # type: ignore[union-attr, arg-type]
    return axes[axis]
