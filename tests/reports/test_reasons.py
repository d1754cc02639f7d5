"""Why a layer did not get faster: every rule by a worked case, and laws over random pairs."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel_models.result import LayerPrice
from reports.reasons import Pair, why_not_faster
from tests.reports.builders import add, price

OVERHEAD = "compute overhead (idle lanes, other instructions)"
NARROW: dict[str, Any] = {"macs": 812, "shape": (1, 13, 4, 4)}

CASES = {
    "faster": (price(), price(useful=50, macs=500, shape=(1, 8, 4, 4)), ""),
    "untouched": (price(), price(), "nothing was removed here: same channels, same weights"),
    "addition": (add(), add(), "add work does not shrink with inner channels: its feature maps kept theirs"),
    "rounding": (
        price(),
        price(useful=81, overhead=19, **NARROW),
        "13 of 16 channels are computed as 16: the machine works in multiples of 8",
    ),
    "rounding of inputs": (
        price(),
        price(useful=81, overhead=19, macs=812),
        f"{OVERHEAD} took the time that the removed input channels saved",
    ),
    "zeros save no overhead": (
        price(),
        price(useful=50, overhead=50, density=0.5),
        f"{OVERHEAD} took the time that the zeros saved",
    ),
    "memory, no less to move": (
        price(memory=100, bound="sram"),
        price(useful=50, memory=150, density=0.5, bound="sram"),
        "bound by sram before and after: the zeros did not cut its traffic",
    ),
    "memory, little less to move": (
        price(memory=100, bound="sram"),
        price(useful=81, memory=105, bound="sram", traffic_bytes={"sram": 360.0, "dram": 100.0}, **NARROW),
        "bound by sram before and after: 90% of its traffic is left",
    ),
    "memory, now": (
        price(),
        price(useful=81, memory=18, bound="dram", **NARROW),
        "now bound by dram: going from 16 to 13 channels did not cut its traffic",
    ),
    "elementwise work in steps that the machine's multiple does not tell": (
        add(useful=40, overhead=10),
        add(useful=35, overhead=15, shape=(1, 8, 4, 4)),
        "100% of its time is elementwise work, which did not shrink",
    ),
    "memory, more to move": (
        add(),
        add(memory=50, bound="dram", traffic_bytes={"sram": 400.0, "dram": 200.0}),
        "slower: now bound by dram: its traffic is 200% of what it was",
    ),
    "memory, as much to move and nothing removed": (
        add(),
        add(memory=50, bound="dram"),
        "slower: now bound by dram: its traffic did not change",
    ),
    "imbalance": (
        price(),
        price(useful=50, imbalance=50, density=0.5, bound="imbalance"),
        "the slowest unit has nearly as much to do as before: imbalance took what useful work lost",
    ),
    "zeros that only stream": (
        price(),
        price(density=0.5, traffic_bytes={"sram": 400.0, "dram": 50.0}),
        "zeros save traffic but no cycles here: it is bound by compute",
    ),
    "zeros without effect": (
        price(),
        price(density=0.5),
        "zeros save neither cycles nor traffic here: the machine does not skip zeros of this kind",
    ),
    "launch": (
        price(launch=900),
        price(useful=81, launch=900, bound="launch", **NARROW),
        "92% of its time is launch and set-up, which did not shrink",
    ),
    "launch, though overhead took what useful work lost": (
        price(launch=900),
        price(useful=81, overhead=19, launch=900, bound="launch", **NARROW),
        "90% of its time is launch and set-up, which did not shrink",
    ),
    "launch, with zeros that only stream": (
        price(launch=900),
        price(launch=900, density=0.5, bound="launch", traffic_bytes={"sram": 400.0, "dram": 50.0}),
        "90% of its time is launch and set-up, which did not shrink",
    ),
    "launch that grew": (
        price(launch=100),
        price(useful=81, launch=300, bound="launch", **NARROW),
        "slower: 79% of its time is launch and set-up, which is 300% of what it was",
    ),
    "launch, but something else made it slower": (
        price(launch=900),
        price(useful=81, overhead=519, launch=900, bound="launch", **NARROW),
        "slower: 13 of 16 channels are computed as 16: the machine works in multiples of 8",
    ),
    "flash, weights of which zeros are stored too": (
        price(memory=100, bound="flash", traffic_bytes={"flash": 500.0}),
        price(useful=50, memory=150, density=0.5, bound="flash", traffic_bytes={"flash": 500.0}),
        "bound by flash before and after: the zeros did not cut its traffic",
    ),
    "zeros that only stream, of a layer bound by imbalance": (
        price(imbalance=200, bound="imbalance"),
        price(imbalance=200, density=0.5, bound="imbalance", traffic_bytes={"sram": 400.0, "dram": 50.0}),
        "zeros save traffic but no cycles here: it is bound by imbalance",
    ),
    "measured, nothing is known of its parts": (
        price(bound="unknown", lost={"useful": 50.0, "other": 50.0}, traffic_bytes={}),
        price(bound="unknown", lost={"useful": 25.0, "other": 75.0}, traffic_bytes={}, macs=500, shape=(1, 8, 4, 4)),
        "75% of its time is what a measurement does not tell apart, which is 150% of what it was",
    ),
    "another kernel": (
        price(kernel="winograd"),
        price(kernel="gemm", **NARROW),
        "another kernel runs it: winograd before, gemm after",
    ),
    "slower": (
        price(),
        price(useful=81, overhead=39, **NARROW),
        "slower: 13 of 16 channels are computed as 16: the machine works in multiples of 8",
    ),
    "otherwise": (
        price(useful=1000),
        price(useful=1000, **NARROW),
        "100% of its time is multiplications, which did not shrink",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_worked_cases(case: str) -> None:
    before, after, sentence = CASES[case]
    assert why_not_faster(before, after, 8) == sentence


def test_without_a_known_multiple_nothing_is_claimed_about_it() -> None:
    found = why_not_faster(price(), price(useful=81, overhead=19, **NARROW))
    assert found == f"{OVERHEAD} took the time that going from 16 to 13 channels saved"


def test_a_layer_that_gains_less_than_half_of_what_it_lost_is_explained() -> None:
    """Half of the work is gone: 0.76 of the time is too little gained, 0.74 is enough."""
    small = {"macs": 500, "shape": (1, 8, 4, 4)}
    assert why_not_faster(price(), price(useful=50, overhead=26, **small), 8)
    assert not why_not_faster(price(), price(useful=50, overhead=24, **small), 8)


def test_a_layer_without_time_needs_no_reason() -> None:
    nothing = price(useful=0)
    assert why_not_faster(nothing, nothing) == ""


def test_work_of_layers_that_do_not_multiply_is_their_output() -> None:
    assert Pair(add(), add(shape=(1, 8, 4, 4))).work == 0.5
    assert Pair(add(), add(shape=(1, 8, 4, 4))).has_shrunk
    assert not Pair(add(), add()).has_shrunk


parts = st.fixed_dictionaries(
    {name: st.integers(0, 200) for name in ("useful", "overhead", "imbalance", "memory", "launch")}
    | {
        "density": st.sampled_from([0.25, 1.0]),
        "bound": st.sampled_from(["compute", "overhead", "imbalance", "launch", "sram", "dram"]),
        "kernel": st.sampled_from(["dense", "sparse"]),
    }
)
layers = st.one_of(parts.map(lambda found: price(**found)), parts.map(lambda found: add(**found)))


@given(layers, layers, st.sampled_from([1, 8]), st.integers(1, 16))
def test_a_reason_is_given_exactly_where_time_was_not_gained(
    before: LayerPrice, after: LayerPrice, multiple: int, channels: int
) -> None:
    pair = Pair(before, after, multiple)
    sentence = why_not_faster(before, after, multiple)
    assert bool(sentence) == (before.cycles > 0 and pair.is_held_back)
    assert "\n" not in sentence
    assert sentence.startswith("slower: ") == (before.cycles > 0 and pair.time > 1.02)
