"""Machine files: bases, references to cited tables, and one line for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from accel_models import target, targets
from accel_models.spec import SPECS, load_spec, read_machine, sourced_numbers
from accel_models.testing import small_graph
from workloads.errors import ConfigError


def machine_file(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


def test_a_machine_based_on_another_changes_only_what_it_names(tmp_path: Path) -> None:
    path = machine_file(
        tmp_path, "fast", "base: ideal\nname: fast\nclock_hz: {value: 7.0, source: 'assumed: a test'}\n"
    )
    ours, theirs = load_spec(path), target("ideal").spec
    assert (ours.name, ours.clock_hz) == ("fast", 7.0)
    assert ours.file == str(path)
    same = {"name": theirs.name, "clock_hz": theirs.clock_hz, "file": theirs.file}
    assert ours.model_copy(update=same) == theirs


def test_a_base_beside_the_file_wins_and_lists_are_replaced(tmp_path: Path) -> None:
    whole = yaml.safe_load((SPECS / "ideal.yaml").read_text())
    machine_file(tmp_path, "ideal", yaml.safe_dump({**whole, "title": "mine"}))
    other = dict(whole["memories"][0], name="hbm")
    changes = {"base": "ideal", "memories": [other], "feature_memories": ["hbm"], "weight_memory": "hbm"}
    spec = load_spec(machine_file(tmp_path, "child", yaml.safe_dump(changes)))
    assert spec.title == "mine"
    assert spec.ports == ("hbm",)


def test_a_sourced_number_is_replaced_whole_and_null_removes(tmp_path: Path) -> None:
    text = "base: ideal\nnotes: null\nenergy_pj:\n  dram: {table: dram.lpddr4_byte}\n"
    path = machine_file(tmp_path, "child", text)
    assert read_machine(path)["energy_pj"]["dram"] == {"table": "dram.lpddr4_byte"}
    assert "notes" not in read_machine(path)
    assert load_spec(path).energy_pj["dram"] == 64.0
    assert load_spec(path).energy_pj["mac"] == target("ideal").spec.energy_pj["mac"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: ideal\nclock_hz: 1\nclock_hz: 2\n", "'clock_hz' is given twice"),
        ("base: nowhere\n", "base: 'nowhere', no such machine file beside it"),
        ("base: child\n", "base: 'child', is based on this file in turn"),
        ("base: ideal\nenergy_pj: {mac: {table: horowitz_45nm.mac8}}\n", "energy_pj.mac: node_nm: None, must be > 0"),
        ("base: ideal\nenergy_pj: {mac: {table: x.y}}\n", "energy_pj.mac: table 'x.y' is unknown"),
        ("base: ideal\nclock_hz: {table: dram.lpddr4_byte}\n", "clock_hz: found"),
        ("base: ideal\narea_mm2: {all: 3}\n", "area_mm2.all: found 3, must be {value"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_spec(machine_file(tmp_path, "child", text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_memories_of_one_bus_must_overlap_alike(tmp_path: Path) -> None:
    memory = yaml.safe_load((SPECS / "ideal.yaml").read_text())["memories"][0]
    pair = [{**memory, "bus": "axi"}, {**memory, "name": "flash", "bus": "axi", "overlap": "serial"}]
    path = machine_file(tmp_path, "child", yaml.safe_dump({"base": "ideal", "memories": pair}))
    with pytest.raises(ConfigError, match=r"memories.1.overlap: 'serial', must be 'overlap' as on the rest of bus"):
        load_spec(path)


def test_some_memory_must_be_shared(tmp_path: Path) -> None:
    memory = yaml.safe_load((SPECS / "ideal.yaml").read_text())["memories"][0]
    path = machine_file(tmp_path, "child", yaml.safe_dump({"base": "ideal", "memories": [{**memory, "shared": False}]}))
    with pytest.raises(ConfigError, match="memories: none is shared; the outermost must be"):
        load_spec(path)


def test_yaml_merge_keys_work(tmp_path: Path) -> None:
    text = "base: ideal\nx: &x {value: 5.0, source: 'assumed: a test'}\nclock_hz: {<<: *x, value: 6.0}\nx: null\n"
    path = machine_file(tmp_path, "child", text.replace("x: null\n", ""))
    assert read_machine(path)["clock_hz"] == {"value": 6.0, "source": "assumed: a test"}


def test_two_files_based_on_each_other_are_refused(tmp_path: Path) -> None:
    machine_file(tmp_path, "one", "base: two\n")
    path = machine_file(tmp_path, "two", "base: one\n")
    with pytest.raises(ConfigError, match="in turn"):
        load_spec(path)


def test_references_show_their_value_and_source(tmp_path: Path) -> None:
    path = machine_file(tmp_path, "child", "base: ideal\nenergy_pj:\n  mac: {table: horowitz_45nm.mac8, node_nm: 45}\n")
    found = {where: (value, source) for where, value, source in sourced_numbers(read_machine(path))}
    value, source = found["energy_pj.mac"]
    assert value == pytest.approx(0.23)
    assert "Horowitz" in source


def test_a_reference_can_be_overridden() -> None:
    spec = target("ideal", {"energy_pj.mac": 5.0}).spec
    assert spec.energy_pj["mac"] == 5.0


def test_area_is_summed_from_parts_with_their_tables(tmp_path: Path) -> None:
    text = """
base: ideal
area_mm2:
  macs: {table: horowitz_45nm.mac8, node_nm: 45, times: 1000}
  rest: {value: 2, source: 'assumed: a test'}
"""
    spec = load_spec(machine_file(tmp_path, "child", text))
    assert spec.area_mm2 == {"macs": pytest.approx(0.318), "rest": 2.0}


def test_a_folder_of_ones_own_machines_joins_the_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine_file(tmp_path, "mine", "base: ideal\nname: mine\n")
    monkeypatch.setenv("CODESIGN_SPECS", str(tmp_path))
    assert "mine" in targets()
    assert target("mine").spec.macs_per_cycle == target("ideal").spec.macs_per_cycle
    monkeypatch.setenv("CODESIGN_SPECS", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"CODESIGN_SPECS: .*nowhere is no folder"):
        targets()


def test_a_machine_is_named_as_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine_file(tmp_path, "other", "base: ideal\nname: mine\n")
    monkeypatch.setenv("CODESIGN_SPECS", str(tmp_path))
    with pytest.raises(ConfigError, match="name: 'mine', must be 'other' as the file's"):
        target("other")


def test_a_peak_that_the_parameters_do_not_make_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"macs_per_cycle\[16\]: 1, but the machine's parameters make 64; change those"
    ):
        target("eie", {"macs_per_cycle.16": 1})
    assert target("eie", {"parameters.pes": 32}).spec.macs_per_cycle[16] == 32, "the peak follows"


def test_a_changed_machine_says_that_its_errors_are_of_the_unchanged_one() -> None:
    changed = target("ethos_u55_256", {"memories.1.bandwidth_bytes_per_cycle": 64}).simulate(small_graph())
    assert any("memories.1.bandwidth_bytes_per_cycle changed by the caller" in note for note in changed.notes)
    assert not any("changed" in note for note in target("ethos_u55_256").simulate(small_graph()).notes)


def test_what_a_machine_cannot_compute_is_converted(tmp_path: Path) -> None:
    text = "base: ideal\nmacs_per_cycle: {8: {value: 256, source: 'assumed: a test'}, 16: null, 32: null}\n"
    machine = target(str(machine_file(tmp_path, "narrow", text)))
    assert machine.spec.macs_per_cycle == {8: 256}
    assert machine.simulate(small_graph()).precision == "int8"
