"""Cited energies and areas: worked points, scaling laws, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel_models.technology import entries, node_factor, resolve

SIZED = {"size_bytes": 65536}


def test_an_entry_in_its_own_node_is_the_published_number() -> None:
    assert resolve({"table": "horowitz_45nm.mac8", "node_nm": 45})[0] == pytest.approx(0.23)
    assert resolve({"table": "sram_45nm.byte", "node_nm": 45, "size_bytes": 8192})[0] == pytest.approx(10 / 8)
    assert resolve({"table": "sram_45nm.byte", "node_nm": 45, "size_bytes": 1 << 20})[0] == pytest.approx(100 / 8)
    assert resolve({"table": "dram.lpddr2_byte"})[0] == 640 / 4


def test_a_node_factor_by_hand() -> None:
    at_65 = 3.755 * 1.0 - 4.398 * 1.0 + 1.975
    at_45 = 1.018 * 0.81 - 0.3107 * 0.9 + 0.1539
    assert node_factor(65, 45) == pytest.approx(at_65 / at_45)
    assert resolve({"table": "horowitz_45nm.mac8", "node_nm": 65})[0] == pytest.approx(0.23 * at_65 / at_45)


def test_eyeriss_ratios_hang_on_the_estimated_mac() -> None:
    mac = resolve({"table": "eyeriss_65nm.mac16", "node_nm": 65})[0]
    assert mac == pytest.approx(2.20035 * node_factor(65, 45), rel=2e-3)
    for entry, ratio in (("register_word", 1), ("neighbour_word", 2), ("buffer_word", 6), ("dram_word", 200)):
        assert resolve({"table": f"eyeriss_65nm.{entry}", "node_nm": 65})[0] == pytest.approx(ratio * mac, rel=2e-3)


@given(st.floats(7, 180), st.floats(7, 180))
def test_a_larger_node_never_takes_less(one: float, other: float) -> None:
    small, large = sorted((one, other))
    assert node_factor(small, 45) <= node_factor(large, 45) * (1 + 1e-9)
    assert node_factor(small, 45, "area") <= node_factor(large, 45, "area") * (1 + 1e-9)
    assert node_factor(one, other) * node_factor(other, one) == pytest.approx(1)


@given(st.integers(64, 1 << 26), st.integers(64, 1 << 26))
def test_a_larger_memory_never_takes_less(one: int, other: int) -> None:
    small, large = sorted((one, other))
    energy = [resolve({"table": "sram_45nm.byte", "node_nm": 45, "size_bytes": size})[0] for size in (small, large)]
    area = [
        resolve({"table": "sram_45nm.byte", "node_nm": 45, "size_bytes": size}, "area")[0] for size in (small, large)
    ]
    assert energy[0] <= energy[1] * (1 + 1e-12)
    assert area[0] <= area[1]


def test_dram_is_not_scaled_and_times_multiplies() -> None:
    assert resolve({"table": "dram.lpddr4_byte", "node_nm": 7})[0] == 64.0
    assert resolve({"table": "eyeriss_65nm.dram_word", "node_nm": 7})[0] == 838.0
    assert resolve({"table": "dram.lpddr4_byte", "times": 2})[0] == 128.0


@pytest.mark.parametrize("name", entries())
def test_every_entry_resolves_and_names_its_source(name: str) -> None:
    value, source = resolve({"table": name, "node_nm": 28, **SIZED})
    assert value > 0
    assert len(source) > 20


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"table": "horowitz_45nm.mac9", "node_nm": 45}, "'horowitz_45nm.mac9' is unknown, must be one of"),
        ({"table": "horowitz_45nm.mac8"}, "node_nm: None, must be > 0"),
        ({"table": "horowitz_45nm.mac8", "node_nm": -3}, "node_nm: -3, must be > 0"),
        ({"table": "sram_45nm.byte", "node_nm": 45}, "size_bytes: None, must be > 0"),
        ({"table": "horowitz_45nm.mac8", "node_nm": 45, "size": 3}, "unknown size, allowed: table, node_nm"),
        ({"table": "horowitz_45nm.mac8", "node_nm": 45, "times": 0}, "times: 0, must be > 0"),
    ],
)
def test_bad_references_say_what_is_allowed(given_: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(given_)


def test_an_entry_without_an_area_says_so() -> None:
    with pytest.raises(ValueError, match="has no area"):
        resolve({"table": "dram.lpddr4_byte"}, "area")
