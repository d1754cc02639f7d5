"""Why a layer did not get faster although something was removed from it.

Everything follows from two prices of one layer: what its cycles were spent on (useful, overhead, imbalance, memory,
launch), what bounds it, its traffic and its shape. The first rule that applies gives the sentence.

    useful     the multiplications really performed, over peak
    overhead   other computing: idle lanes, rounding up to whole tiles, ramp-up, instructions that do not multiply
    imbalance  units wait for the slowest one
    memory     units wait for data
    launch     launch and set-up before the layer's first tile
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from accel_models.result import LayerPrice
from reports.spending import spent
from workloads.graph import KIND, Kind, Op

SAME = 0.02  # relative: less than this is no change
PARTS = {
    "useful": "multiplications",
    "elementwise": "elementwise work",
    "overhead": "compute overhead (idle lanes, other instructions)",
    "imbalance": "waiting for the slowest unit",
    "memory": "waiting for memory",
    "launch": "launch and set-up",
    "other": "what a measurement does not tell apart",
}


@dataclass(frozen=True)
class Pair:
    """One layer before and after, on one machine that computes `multiple` channels together (1: not known)."""

    before: LayerPrice
    after: LayerPrice
    multiple: int = 1

    @property
    def time(self) -> float:
        """After over before."""
        return _ratio(self.after.cycles, self.before.cycles)

    @cached_property
    def work(self) -> float:
        """After over before: kept multiplications, or output elements where nothing is multiplied."""
        if self.before.macs:
            return _ratio(self.after.macs * self.after.density, self.before.macs * self.before.density)
        return _ratio(math.prod(self.after.shape), math.prod(self.before.shape))

    @property
    def has_shrunk(self) -> bool:
        """Channels or weights were removed from the layer."""
        return self.work < 1 - 1e-9

    @property
    def is_held_back(self) -> bool:
        """It got no faster, or by less than half of what its work fell by."""
        return self.time > 1 - SAME or self.time > 1 - (1 - self.work) / 2

    @cached_property
    def channels(self) -> tuple[int, int] | None:
        """Output channels before and after: the axis whose size changed; None if none did."""
        pairs = list(zip(self.before.shape, self.after.shape, strict=False))
        same_rank = len(self.before.shape) == len(self.after.shape)
        return next((pair for pair in pairs if pair[0] != pair[1]), None) if same_rank else None

    def rise(self, part: str) -> float:
        """Cycles that a part grew by."""
        return self.after.lost.get(part, 0.0) - self.before.lost.get(part, 0.0)

    def kept(self, part: str) -> float:
        """Cycles of a part beyond those that it would have if it had shrunk as the work did."""
        return self.after.lost.get(part, 0.0) - self.before.lost.get(part, 0.0) * min(self.work, 1.0)

    @property
    def removed(self) -> str:
        """What was removed, in words."""
        if self.channels:
            return "going from {} to {} channels".format(*self.channels)
        return "the zeros" if self.after.density < self.before.density else "the removed input channels"

    def traffic(self, memory: str) -> float:
        """Bytes through a memory's port, after over before."""
        return _ratio(self.after.traffic_bytes.get(memory, 0.0), self.before.traffic_bytes.get(memory, 0.0))

    @property
    def all_traffic(self) -> float:
        return _ratio(sum(self.after.traffic_bytes.values()), sum(self.before.traffic_bytes.values()))


def why_not_faster(before: LayerPrice, after: LayerPrice, multiple: int = 1) -> str:
    """One sentence if the layer got no faster, or gained less than half of the work removed; "" otherwise.

    Args:
        multiple: channels that the machine computes together; 1 if that is not known.
    """
    pair = Pair(before, after, multiple)
    if before.cycles <= 0 or not pair.is_held_back:
        return ""
    reason = next(filter(None, (rule(pair) for rule in RULES)))
    return f"slower: {reason}" if pair.time > 1 + SAME else reason


def _untouched(pair: Pair) -> str:
    if pair.has_shrunk or pair.time > 1 + SAME:
        return ""
    if KIND[Op(pair.before.op)] is Kind.MAC:
        return "nothing was removed here: same channels, same weights"
    return f"{pair.before.op} work does not shrink with inner channels: its feature maps kept theirs"


def _other_kernel(pair: Pair) -> str:
    before, after = pair.before.kernel, pair.after.kernel
    return f"another kernel runs it: {before} before, {after} after" if before != after else ""


def _memory(pair: Pair) -> str:
    """The machine waits for one memory, whose traffic fell less than the work."""
    port = pair.after.bound
    if port not in pair.after.traffic_bytes:
        return ""
    left = pair.traffic(port)
    if left < 1 - SAME:
        change = f"{left:.0%} of its traffic is left"
    elif left > 1 + SAME:
        change = f"its traffic is {left:.0%} of what it was"
    else:
        change = f"{pair.removed} did not cut its traffic" if pair.has_shrunk else "its traffic did not change"
    return (
        f"bound by {port} before and after: {change}" if pair.before.bound == port else f"now bound by {port}: {change}"
    )


def _overhead(pair: Pair) -> str:
    """Other computing took what the useful work lost."""
    if not _took_over(pair, "overhead"):
        return ""
    if pair.channels and pair.multiple > 1:
        before, after = pair.channels
        computed = math.ceil(after / pair.multiple) * pair.multiple
        if computed > after:
            block = f"the machine works in multiples of {pair.multiple}"
            return f"{after} of {before} channels are computed as {computed}: {block}"
    if not pair.after.macs:
        return ""  # it is the layer's own work
    return f"{PARTS['overhead']} took the time that {pair.removed} saved"


def _imbalance(pair: Pair) -> str:
    if not _took_over(pair, "imbalance"):
        return ""
    return "the slowest unit has nearly as much to do as before: imbalance took what useful work lost"


def _zeros_without_effect(pair: Pair) -> str:
    """Weights became zero, and the machine multiplies by them all the same."""
    useful = _ratio(pair.after.lost.get("useful", 0.0), pair.before.lost.get("useful", 0.0))
    multiplications = _ratio(pair.after.macs, pair.before.macs)
    if pair.after.density >= pair.before.density or useful < multiplications * (1 - SAME):
        return ""
    if pair.all_traffic < multiplications * (1 - SAME):
        return f"zeros save traffic but no cycles here: it is bound by {pair.after.bound_by}"
    return "zeros save neither cycles nor traffic here: the machine does not skip zeros of this kind"


def _launch(pair: Pair) -> str:
    """Of the cycles that should have gone with the removed work, launch kept most."""
    return _part(pair, "launch") if max(pair.after.lost, key=pair.kept, default="") == "launch" else ""


def _largest_part(pair: Pair) -> str:
    """What is always true: the part that most of the time goes to, and how it changed."""
    after = spent(pair.after)
    return _part(pair, max(PARTS, key=lambda name: after[name]))


def _part(pair: Pair, part: str) -> str:
    """A part's share of the time, and how it changed."""
    before, after = spent(pair.before), spent(pair.after)
    share, left = _ratio(after[part], pair.after.cycles), _ratio(after[part], before[part])
    change = "did not shrink" if 1 - SAME <= left <= 1 + SAME else f"is {left:.0%} of what it was"
    return f"{share:.0%} of its time is {PARTS[part]}, which {change}"


RULES: tuple[Callable[[Pair], str], ...] = (
    _untouched, _memory, _launch, _overhead, _imbalance, _zeros_without_effect, _other_kernel, _largest_part,
)  # fmt: skip


def _took_over(pair: Pair, part: str) -> bool:
    """The part grew by more than half of what the useful work fell by."""
    fell = -pair.rise("useful")
    return fell > 0 and pair.rise(part) > fell / 2


def _ratio(after: float, before: float) -> float:
    return after / before if before else 1.0
