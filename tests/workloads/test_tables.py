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

# Multiply-accumulates of one image in millions, as papers and model cards print them; some cut off what follows.
PUBLISHED_MACS = {
    "alexnet": 724,  # Chen et al. 2016 (Eyeriss): 666 M in convolutions, 58.6 M in linear layers
    "autoencoder": 0.264,  # MLPerf Tiny: the weights, each used once
    "ds_cnn": 2.66,  # vela's count of the int8 file of MLPerf Tiny, layer by layer below
    "mnasnet": 315,  # Tan et al. 2019, table 1: MnasNet-B1
    "mobilenet_v1": 569,  # Howard et al. 2017, table 4
    "mobilenet_v1_vww": 7.5,  # MLPerf Tiny
    "mobilenet_v1_w075": 325,  # Howard et al. 2017, table 6
    "mobilenet_v1_w140": 1_102,  # no source: 569 x 1.4 squared, less what does not grow with the square
    "mobilenet_v2": 300,  # Sandler et al. 2018, table 4
    "mobilenet_v2_w050_r096": 18,  # this row and the next eight: release notes of TensorFlow Slim's MobileNetV2
    "mobilenet_v2_w050_r128": 32,
    "mobilenet_v2_w050_r160": 50,
    "mobilenet_v2_w050_r192": 71,
    "mobilenet_v2_w050_r224": 97,
    "mobilenet_v2_w100_r096": 56,
    "mobilenet_v2_w100_r128": 99,
    "mobilenet_v2_w100_r160": 154,
    "mobilenet_v2_w100_r192": 221,
    "mobilenet_v2_width50": 171.5,  # vela's count of the file with halved inner channels
    "resnet18": 1_800,  # He et al. 2016, table 1
    "resnet50": 4_090,  # torchvision: 4.09 G
    "resnet8": 12.5,  # MLPerf Tiny
    "squeezenet1_0": 820,  # torchvision: 0.82 G
    "squeezenet1_1": 350,  # torchvision: 0.35 G
    "squeezenet1_1_227": 388,  # no source: 349 M at 224 x 224, maps of 113, 56, 28 and 14 for 111, 55, 27 and 13
    "vgg16": 15_470,  # torchvision: 15.47 G
}
# Of each layer of the int8 files of MLPerf Tiny, in order, as the vendor's compiler for Ethos-U counts them.
PUBLISHED_LAYER_MACS = {
    "ds_cnn": [320_000, *[72_000, 512_000] * 4, 768],
    "resnet8": [442_368, *[2_359_296] * 2, *[1_179_648, 2_359_296, 131_072] * 2, 640],
}


def test_the_tables_are_those_of_the_list() -> None:
    assert tables() == tuple(sorted(MODELS)) == tuple(sorted(PUBLISHED_MACS))


@pytest.mark.parametrize("name", MODELS)
def test_a_table_counts_as_published(name: str) -> None:
    net, recipe = table(name), MODELS[name]
    shape = find(recipe.model).input_shape
    assert net.name == name
    millions = net.macs / 1e6
    assert int(millions) == PUBLISHED_MACS[name] or millions == pytest.approx(PUBLISHED_MACS[name], rel=0.015)
    assert net.inputs[0].shape == (1, *(shape if recipe.size is None else (shape[0], *recipe.size)))
    assert {(layer.weight_bits, layer.sparsity) for layer in net} == {(32, None)}
    assert (FOLDER / f"{name}.json").stat().st_size < 20_000
    if not recipe.options:
        assert net.source_parameters == find(recipe.model).parameters


@pytest.mark.parametrize(("name", "macs"), PUBLISHED_LAYER_MACS.items())
def test_the_networks_of_mlperf_tiny_layer_by_layer(name: str, macs: list[int]) -> None:
    assert [layer.macs for layer in table(name) if layer.macs] == macs


def test_channels_of_other_widths_are_multiples_of_eight() -> None:
    wide = [layer.k for layer in table("mobilenet_v1_w140") if layer.macs and not layer.is_depthwise]
    assert wide[:4] == [48, 88, 176, 176]
    assert wide[-2:] == [1432, 1000]
    half = table("mobilenet_v2_w050_r096")
    assert [half[name].k for name in ("features.0.0", "features.1.conv.1", "features.18.0")] == [16, 8, 1280]


def test_halved_inner_channels_leave_the_first_block_and_the_outside_alone() -> None:
    for whole, half in zip(table("mobilenet_v2"), table("mobilenet_v2_width50"), strict=True):
        inner = whole.is_depthwise or whole.name.endswith("conv.0.0")
        assert half.k == (whole.k // 2 if inner and not whole.name.startswith("features.1.") else whole.k), whole.name


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v1", "resnet8", "mobilenet_v2_w050_r096"])
def test_a_table_equals_a_fresh_lowering(name: str) -> None:
    assert table(name) == make_table(name)


def test_make_writes_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["squeezenet1_1"], tmp_path) == 0
    assert (tmp_path / "squeezenet1_1.json").read_bytes() == (FOLDER / "squeezenet1_1.json").read_bytes()
    assert capsys.readouterr().out.startswith("LayerGraph 'squeezenet1_1': ")
    assert main(["squeezenet9"], tmp_path) == 2
    assert "unknown table 'squeezenet9'; did you mean 'squeezenet1_" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["resnet81", "", "../tables/resnet18", "resnet18.json"])
def test_an_unknown_table_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown table '{name}'; .*Known: alexnet, autoencoder, "):
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
