"""Layer tables: equal to a fresh lowering, to the published counts, and read without torch."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from workloads import tables as package
from workloads.errors import ConfigError
from workloads.models import find
from workloads.tables import FOLDER, table, tables
from workloads.tables.make import MODELS, main, make_table

# Multiply-accumulates of one image in millions, as the papers and model cards print them.
PUBLISHED_MACS = {
    "mobilenet_v1": 569,  # Howard et al. 2017, table 4
    "mobilenet_v2": 300,  # Sandler et al. 2018, table 4
    "resnet18": 1_800,  # He et al. 2016, table 1
    "resnet50": 4_090,  # torchvision: 4.09 G
    "squeezenet1_0": 820,  # torchvision: 0.82 G
    "squeezenet1_1": 350,  # torchvision: 0.35 G
    "vgg16": 15_470,  # torchvision: 15.47 G
}


def test_the_tables_are_those_of_the_list() -> None:
    assert tables() == MODELS == tuple(sorted(PUBLISHED_MACS))


@pytest.mark.parametrize("name", MODELS)
def test_a_table_counts_as_published(name: str) -> None:
    net = table(name)
    assert net.name == name
    assert net.source_parameters == find(name).parameters
    assert net.macs / 1e6 == pytest.approx(PUBLISHED_MACS[name], rel=0.015)
    assert net.inputs[0].shape == (1, 3, 224, 224)
    assert {(layer.weight_bits, layer.sparsity) for layer in net} == {(32, None)}
    assert (FOLDER / f"{name}.json").stat().st_size < 60_000


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v1"])
def test_a_table_equals_a_fresh_lowering(name: str) -> None:
    assert table(name) == make_table(name)


def test_make_writes_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["squeezenet1_1"], tmp_path) == 0
    assert (tmp_path / "squeezenet1_1.json").read_bytes() == (FOLDER / "squeezenet1_1.json").read_bytes()
    assert capsys.readouterr().out.startswith("LayerGraph 'squeezenet1_1': ")
    assert main(["squeezenet9"], tmp_path) == 2
    assert "unknown model 'squeezenet9'; did you mean 'squeezenet1_" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["resnet81", "", "../tables/resnet18", "resnet18.json"])
def test_an_unknown_table_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown table '{name}'; .*Known: mobilenet_v1, "):
        table(name)


def test_tables_may_be_compressed_and_damage_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "FOLDER", tmp_path)
    content = gzip.compress((FOLDER / "squeezenet1_1.json").read_bytes())
    (tmp_path / "small_net.json.gz").write_bytes(content)
    assert tables() == ("small_net",)
    assert table("small_net") == table("squeezenet1_1")
    damaged = [content[:-20], b"", b"{}", content[:10] + b"\0" * 50, gzip.compress(json.dumps([1]).encode())]
    for i, bad in enumerate(damaged):
        (tmp_path / f"bad{i}.json.gz").write_bytes(bad)
        with pytest.raises(ConfigError, match=f"bad{i}.json.gz: not a whole layer table") as caught:
            table(f"bad{i}")
        assert "\n" not in str(caught.value)


def test_reading_a_table_needs_no_torch() -> None:
    script = "import sys; from workloads.tables import table; table('resnet18'); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": os.getcwd()}, check=True)
