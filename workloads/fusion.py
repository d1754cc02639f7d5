"""What changes drafts after the walk: zeros that are padded before convolutions become their padding, as in every file
that a network is deployed from; batch norms fold into their producer, activations attach to it, additions are marked as
absorbable, and what nothing reads is dropped.

A layer counts as read by the outside where it is an output of the network: such a layer absorbs nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from workloads.constants import Norm
from workloads.drafts import Draft
from workloads.graph import Op

FOLDS = frozenset({Op.CONV, Op.CONV_TRANSPOSE, Op.LINEAR})
# Whatever computes can apply an activation as it writes its result; an LSTM has its own, moves do not compute.
ACTIVATES = FOLDS | {Op.MATMUL, Op.ADD, Op.MUL, Op.NORM, Op.MAX_POOL, Op.AVG_POOL, Op.MEAN}


def fuse(drafts: list[Draft], outputs: list[Draft]) -> tuple[list[Draft], list[Draft]]:
    """The drafts that remain, in running order, and the outputs; drafts are changed in place."""
    drafts = _without_pads(_reachable(drafts, outputs), outputs)
    drafts, outputs = _redirected(drafts, outputs, _fold_norms(drafts, outputs))
    drafts, outputs = _redirected(drafts, outputs, _attach_activations(drafts, outputs))
    _mark_additions(drafts, outputs)
    return drafts, outputs


def _reachable(drafts: list[Draft], outputs: list[Draft]) -> list[Draft]:
    """Inputs, and whatever an output depends on."""
    needed = set(outputs)
    for draft in reversed(drafts):
        if draft in needed:
            needed.update(draft.inputs)
    return [draft for draft in drafts if draft in needed or draft.op is Op.INPUT]


def unread(drafts: list[Draft], outputs: list[Draft], unused: list[Draft]) -> list[Draft]:
    """Drafts on which no output depends, but which fail on fewer channels unless they change too, before `fuse`.

    That is what has weights or joins tensors; and all that these read, in running order, which may include drafts that
    others will absorb.

    Args:
        unused: further drafts whose answers nothing reads; others are read in place only.
    """
    running, reached = [*drafts, *unused], set(_reachable(drafts, outputs))
    able = [draft for draft in running if draft not in reached and draft.op is not Op.CONSTANT]
    needed = {draft for draft in able if draft.weight is not None or draft.norms or len(draft.inputs) > 1}
    for draft in reversed(running):
        if draft in needed:
            needed.update(draft.inputs)
    return [draft for draft in running if draft in needed]


def _redirected(
    drafts: list[Draft], outputs: list[Draft], absorbed: Mapping[Draft, Draft]
) -> tuple[list[Draft], list[Draft]]:
    """Without the absorbed drafts; who read one now reads what absorbed it."""
    kept = [draft for draft in drafts if draft not in absorbed]
    for draft in kept:
        draft.inputs = [absorbed.get(item, item) for item in draft.inputs]
    return kept, [absorbed.get(draft, draft) for draft in outputs]


def _only_reader(drafts: list[Draft], outputs: list[Draft]) -> dict[Draft, Draft]:
    """Of each draft that exactly one other reads, and that is no output: the one."""
    readers: dict[Draft, list[Draft]] = defaultdict(list)
    for draft in drafts:
        for item in draft.inputs:
            readers[item].append(draft)
    return {item: found[0] for item, found in readers.items() if len(found) == 1 and item not in set(outputs)}


# ---- padding ---------------------------------------------------------------------------------------------------------


def _without_pads(drafts: list[Draft], outputs: list[Draft]) -> list[Draft]:
    """Without the pads of zeros in height and width that convolutions alone read: these pad by themselves."""
    readers: dict[Draft, list[Draft]] = defaultdict(list)
    for draft in drafts:
        for item in draft.inputs:
            readers[item].append(draft)
    kept = []
    for draft in reversed(drafts):  # of pads one after another the last goes first
        found = readers[draft]
        if draft not in outputs and _pads_image(draft) and found and all(reader.op is Op.CONV for reader in found):
            (source,) = draft.inputs
            for reader in found:
                _pad_more(reader, draft)
            readers[source] = [reader for reader in readers[source] if reader is not draft] + found
        else:
            kept.append(draft)
    return kept[::-1]


def _pads_image(draft: Draft) -> bool:
    """Whether it pads zeros, and neither samples nor channels."""
    if draft.op is not Op.PAD or draft.attributes["mode"] != "constant" or draft.attributes.get("value", 0.0) != 0:
        return False
    return not any((*draft.attributes["before"][:2], *draft.attributes["after"][:2]))


def _pad_more(conv: Draft, pad: Draft) -> None:
    """A convolution that reads what the pad reads, with the pad's widths added to its own."""
    (top, left), (bottom, right) = ((*pad.attributes[end][2:], 0)[:2] for end in ("before", "after"))
    padding = zip(conv.dims["padding"], (top, bottom, left, right), strict=True)
    size = {"in_h": conv.dims["in_h"] - top - bottom, "in_w": conv.dims["in_w"] - left - right}
    conv.dims = {**conv.dims, **size, "padding": tuple(own + more for own, more in padding)}
    conv.inputs = [pad.inputs[0]]


# ---- batch norms -----------------------------------------------------------------------------------------------------


def _fold_norms(drafts: list[Draft], outputs: list[Draft]) -> dict[Draft, Draft]:
    """Norm -> the layer that it folds into. A chain of norms folds into one layer."""
    reader = _only_reader(drafts, outputs)
    chains = {draft: _chain(draft, reader) for draft in drafts if draft.op in FOLDS}
    users: dict[object, list[Draft]] = defaultdict(list)
    for draft in drafts:
        users[draft.weight].append(draft)
    absorbed = {}
    for draft, chain in chains.items():
        if chain and _agree([_identity(chains.get(user, [])) for user in users[draft.weight]]):
            draft.norms += [norm for item in chain for norm in item.norms]
            absorbed.update(dict.fromkeys(chain, draft))
    return absorbed


def _chain(draft: Draft, reader: Mapping[Draft, Draft]) -> list[Draft]:
    """The affine norms on the channels of a layer that follow it with nothing in between."""
    found: list[Draft] = []
    item = reader.get(draft)
    while item is not None and item.op is Op.NORM and item.norms and draft.channel_axis == 1:
        found.append(item)
        item = reader.get(item)
    return found


def _identity(chain: list[Draft]) -> tuple[object, ...]:
    norms: list[Norm] = [norm for draft in chain for norm in draft.norms]
    return tuple(norm.identity for norm in norms)


def _agree(found: list[tuple[object, ...]]) -> bool:
    """All users of a shared weight see the same norms: otherwise one array cannot serve them."""
    return all(item == found[0] for item in found)


# ---- activations and additions ---------------------------------------------------------------------------------------


def _attach_activations(drafts: list[Draft], outputs: list[Draft]) -> dict[Draft, Draft]:
    """Activation -> the layer that applies it."""
    reader = _only_reader(drafts, outputs)
    absorbed = {}
    for draft in drafts:
        item = reader.get(draft)
        if draft.op in ACTIVATES and item is not None and item.op is Op.ACTIVATION and item.weight is None:
            draft.activation = str(item.attributes["kind"])
            absorbed[item] = draft
    return absorbed


def _mark_additions(drafts: list[Draft], outputs: list[Draft]) -> None:
    """x + y, both of one shape: the last layer with weights that feeds nothing else can add as it writes.

    It must have no activation of its own: hardware that fuses adds before it activates.
    """
    reader = _only_reader(drafts, outputs)
    place = {draft: i for i, draft in enumerate(drafts)}
    for draft in drafts:
        if draft.op is not Op.ADD or draft.attributes["kind"] != "add" or "alpha" in draft.attributes:
            continue
        if len(draft.inputs) == 2 and draft.inputs[0].shape == draft.inputs[1].shape == draft.shape:
            able = [x for x in draft.inputs if x.op in FOLDS and reader.get(x) is draft and not x.activation]
            draft.fused_into = max(able, key=place.__getitem__, default=None)
