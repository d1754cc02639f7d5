"""Published rows and workloads: what the text means, and one line for everything that is wrong in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from accel_models import targets
from accel_models.validation.compare import compare
from accel_models.validation.pricer import Pricer
from accel_models.validation.rows import Row, read_rows, rows
from accel_models.validation.workload import layer_graph, weight_kind, workload
from tests.accel_models.validation.builders import BYTES, CYCLES, HEAD, line, machine
from workloads.errors import ConfigError


def only_row(tmp_path: Path, text: str) -> Row:
    path = tmp_path / "mine.csv"
    path.write_text(f"{HEAD}\n{text}\n")
    return read_rows(path)[0]


@pytest.mark.parametrize("name", targets())
def test_every_row_says_where_it_is_from(name: str) -> None:
    found = rows(name)
    assert all(row.source and row.network and row.where.startswith(str(row.where.split(".csv:")[0])) for row in found)
    assert len({row.id for row in found}) == len(found)


# ---- metrics --------------------------------------------------------------------------------------------------------

ENERGY_J = (2048 * 0.23 + BYTES * 160) * 1e-12
LATENCY_S = CYCLES / 500e6


@pytest.mark.parametrize(
    ("metric", "unit", "predicted"),
    [
        ("cycles", "cycle", CYCLES),
        ("latency", "us", LATENCY_S * 1e6),
        ("latency", "s", LATENCY_S),
        ("energy", "uJ", ENERGY_J * 1e6),
        ("power", "mW", ENERGY_J / LATENCY_S * 1e3),
        ("throughput", "1/s", 1 / LATENCY_S),
        ("traffic:dram", "B", BYTES),
        ("traffic:dram", "kB", BYTES / 1e3),
    ],
)
def test_a_metric_in_its_unit(tmp_path: Path, metric: str, unit: str, predicted: float) -> None:
    name = machine(tmp_path, [line(metric=metric, unit=unit, value=1)])
    assert compare(name)[0].predicted == pytest.approx(predicted)


def test_facts_and_shares(tmp_path: Path) -> None:
    """The fully connected layer of a systolic array: its own facts, in cycles, seconds and percent of all cycles."""
    lines = [
        line("cycles", metric="fact:compute_cycles", unit="cycle", value=100),
        line("time", metric="fact:compute_cycles", unit="us", value=1),
        line("share", metric="share:compute", unit="%", value=50),
        line("all", metric="cycles", unit="cycle", value=100),
    ]
    path = tmp_path / "mine.csv"
    path.write_text("\n".join([HEAD, *lines]) + "\n")
    pricer = Pricer("scalesim_ws_32x32")
    cycles, time, share, total = pricer.predict(read_rows(path))
    assert time == pytest.approx(cycles / pricer.machine("").spec.clock_hz * 1e6)
    assert share == pytest.approx(100 * cycles / total)
    assert cycles > 0


def test_errors_of_percentages_are_in_points(tmp_path: Path) -> None:
    row = only_row(tmp_path, line(metric="share:compute", unit="%", value=50))
    assert row.in_points
    assert row.metric_class == "shares"
    item = compare.__globals__["Comparison"](row, 53.0)
    assert item.error == pytest.approx(0.03)


def test_a_batch_counts_as_many_inputs(tmp_path: Path) -> None:
    texts = [line("one", metric="throughput", unit="1/s", value=1)]
    texts.append(line("four", workload="layer:conv@int8 c=8 k=16 h=4 n=4", metric="throughput", unit="1/s", value=1))
    one, four = (item.predicted for item in compare(machine(tmp_path, texts)))
    moved = 4 * (128 + 256) + 128 + 64  # weights and biases once
    assert one == pytest.approx(500e6 / CYCLES)
    assert four == pytest.approx(4 * 500e6 / (moved / 8))


def test_overrides_change_the_machine_of_that_row_only(tmp_path: Path) -> None:
    lines = [line("as it is"), line("halved", overrides="memories.0.bandwidth_bytes_per_cycle=4;clock_hz=1e9")]
    assert [item.predicted for item in compare(machine(tmp_path, lines))] == [CYCLES, 2 * CYCLES]


# ---- workloads ------------------------------------------------------------------------------------------------------


def test_one_layer_of_a_network_is_a_part_of_it() -> None:
    whole, part = workload("table:resnet18@int8"), workload("table:resnet18@int8 #layer1.0.conv1")
    assert part.layer == "layer1.0.conv1"
    assert part.rows.stop - part.rows.start == 1
    assert whole.rows == slice(0, len(whole.graphs[0]))
    assert workload("table:resnet18") is workload("table:resnet18")


def test_densities_by_kind_of_layer() -> None:
    graph = workload("table:mobilenet_v1 density=0.5 density.pointwise=0.1 inputs=0.7 n=2").graphs[0]
    found = {weight_kind(layer): layer.sparsity.density for layer in graph if layer.sparsity}
    assert found == {"conv": 0.5, "depthwise": 0.5, "pointwise": 0.1, "linear": 0.5}
    assert set(graph.columns.input_density[1:].round(9)) == {0.7}
    assert graph.inputs[0].shape[0] == 2


def test_a_written_layer() -> None:
    graph = layer_graph("conv c=8 k=16 h=9 r=3 stride=2 density=0.5 groups=2")
    layer = graph["layer"]
    assert layer.shape == (1, 16, 5, 5)
    assert layer.padding == (1, 1, 1, 1)
    assert graph.macs == 16 * 4 * 9 * 25
    assert layer.sparsity is not None
    assert layer.sparsity.density == 0.5


@pytest.mark.parametrize(
    ("text", "shape", "padding"),
    [
        ("conv c=3 k=96 h=227 r=11 stride=4 pad=valid", (1, 96, 55, 55), (0, 0, 0, 0)),
        ("conv c=3 k=64 h=224 r=7 stride=2 pad=3", (1, 64, 112, 112), (3, 3, 3, 3)),
        ("conv c=4 h=8 w=6 r=3 s=1 pad=1 n=5", (5, 4, 8, 8), (1, 1, 1, 1)),
        ("linear@fp16 c=10 k=20 n=7", (7, 20), (0, 0, 0, 0)),
    ],
)
def test_padding_and_batch(text: str, shape: tuple[int, ...], padding: tuple[int, ...]) -> None:
    layer = layer_graph(text)["layer"]
    assert layer.shape == shape
    assert layer.padding == padding
    assert layer.weight_bits == (16 if "fp16" in text else 32)


def test_layers_are_looked_up_beside_their_rows(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("# two layers\nconv@int8 c=8 k=16 h=4\n\nconv@int8 c=8 k=16 h=4  # again\n")
    lines = [line("own", workload="layers:own.txt"), line("package", workload="layers:eyeriss_v2_mobilenet.txt")]
    own, package = compare(machine(tmp_path, lines))
    assert own.predicted == 2 * CYCLES
    assert package.predicted > 1000 * CYCLES


def test_what_is_wrong_in_a_file_of_layers_is_named_with_its_line(tmp_path: Path) -> None:
    name = machine(tmp_path, [line(workload="layers:own.txt")])
    for text, message in (("conv k=3\nconv c=8\npool c=3\n", "own.txt:1: .*'c' is missing.*; .*own.txt:3: .*op 'pool'"),
                          ("# nothing\n", "own.txt: holds no layer, must hold one a line")):  # fmt: skip
        (tmp_path / "own.txt").write_text(text)
        workload.cache_clear()
        with pytest.raises(ConfigError, match=message):
            compare(name)


def test_layers_of_a_file_do_not_feed_each_other() -> None:
    found = workload("layers:eyeriss_v2_mobilenet.txt")
    assert len(found.graphs) == 28
    assert found.rows == slice(0, 2 * 28)
    assert {len(graph) for graph in found.graphs} == {2}


# ---- what belongs together ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "are_variants"),
    [
        ({}, {"workload": "layer:conv@int8 c=4 k=8 h=4 density=0.5"}, True),  # fewer channels and weights
        ({}, {"workload": "layer:conv@int8 c=8 k=16 h=8"}, False),  # another map
        ({}, {"overrides": "clock_hz=1e9"}, False),
        ({}, {"metric": "latency", "unit": "ms"}, False),
        ({"workload": "table:resnet18"}, {"workload": "table:resnet18 density=0.5"}, True),
        ({"workload": "table:resnet18 #conv1"}, {"workload": "table:resnet18 #fc"}, False),
        ({"workload": "table:resnet18"}, {"workload": "table:resnet50", "network": "other"}, False),
    ],
)
def test_variants(tmp_path: Path, one: dict[str, str], other: dict[str, str], are_variants: bool) -> None:
    a, b = (only_row(tmp_path, line(**each)) for each in (one, other))  # type: ignore[arg-type]
    assert (a.variants == b.variants) is are_variants


def test_a_layer_and_a_network_are_kept_apart(tmp_path: Path) -> None:
    texts = ("table:resnet18", "table:resnet18 #fc", "layer:linear c=4", "layers:eyeriss_v2_mobilenet.txt")
    scopes = [only_row(tmp_path, line(workload=text)).scope for text in texts]
    assert scopes == ["network", "layer", "layer", "network"]


# ---- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (line(metric="speed"), "mine.csv:2: metric: 'speed', must be cycles, latency"),
        (line(metric="traffic"), "mine.csv:2: metric: 'traffic', must be traffic:NAME"),
        (line(metric="cycles:x"), "mine.csv:2: metric: 'cycles:x', must be cycles$"),
        (line(unit="ms"), "mine.csv:2: unit: 'ms', must be cycle"),
        (line(kind="guess"), "mine.csv:2: kind: 'guess', must be one of silicon, fvp_model"),
        (line(calibrated="maybe"), "mine.csv:2: calibrated: 'maybe', must be one of yes, no"),
        (line(value="many"), "mine.csv:2: value: 'many', must be a number > 0"),
        (line(value="inf"), "mine.csv:2: value: 'inf', must be a number > 0"),
        (line(value=0), r"mine.csv:2: value: '0', must be a number > 0 \(a percentage may be 0\)"),
        (line(overrides="clock_hz=fast"), "mine.csv:2: overrides: 'clock_hz': 'fast', must be path=number"),
        (line(overrides="clock_hz"), "mine.csv:2: overrides: 'clock_hz': '', must be path=number"),
        (line(overrides="clock_hz=1;clock_hz=2"), "mine.csv:2: overrides: 'clock_hz' is given twice"),
        (line(network=""), "mine.csv:2: network: '', must be a text"),
        (line(source="a, b"), "mine.csv:2: more fields than columns; put texts with commas in double quotes"),
        (line() + "\n" + line(), "mine.csv:3: id: 'row' is also the id of .*mine.csv:2"),
    ],
)
def test_a_wrong_row_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        only_row(tmp_path, text)


def test_all_wrong_rows_are_reported_together(tmp_path: Path) -> None:
    lines = [line("a", value="x", kind="guess"), line("b"), line("c", unit="ms"), line("b")]
    with pytest.raises(ConfigError) as error:
        only_row(tmp_path, "\n".join(lines))
    found = str(error.value).split("; ")
    places = [each.rpartition("mine.csv:")[2].split(":")[:2] for each in found[:3]]
    assert places == [["2", " kind"], ["2", " value"], ["4", " unit"]]
    assert "'b' is also the id of" in found[3]


def test_a_byte_order_mark_of_a_spreadsheet_is_no_part_of_a_column(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_bytes(b"\xef\xbb\xbf" + f"{HEAD}\r\n{line(source='Müller')}\r\n".encode())
    (row,) = read_rows(path)
    assert (row.id, row.source) == ("row", "Müller")


def test_bytes_of_another_encoding_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_bytes(f"{HEAD}\n{line(source='Müller')}\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"mine.csv:2: byte 0xfc is not UTF-8; save as UTF-8"):
        read_rows(path)


def test_other_columns_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("id,workload\na,b\n")
    with pytest.raises(ConfigError, match=r"mine.csv:1: columns are \['id', 'workload'\], must be id, network"):
        read_rows(tmp_path / "mine.csv")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"workload": "net:resnet18"}, "must start with table:, layer:, layers:"),
        ({"workload": "table:resnet19"}, "did you mean 'resnet18'"),
        ({"workload": "table:resnet18 #conv9"}, "table 'resnet18' has no layer 'conv9'; its layers: "),
        (
            {"workload": "table:resnet18 width=2"},
            "field 'width=2' is unknown or empty; allowed, as key=value: n, density",
        ),
        ({"workload": "table:resnet18 density=2"}, "density '2', must be a number in 0..1"),
        ({"workload": "table:resnet18 density=half"}, "density 'half', must be a number in 0..1"),
        ({"workload": "table:resnet18 n=0"}, "n '0', must be a whole number >= 1"),
        ({"workload": "table:resnet18 #"}, "table 'resnet18' has no layer ''; its layers: "),
        ({"workload": "table:resnet18@int4"}, "unknown precision 'int4'"),
        ({"workload": "table:resnet18@"}, "unknown precision '' behind @; allowed: fp32"),
        ({"workload": "layer:pool c=3"}, "op 'pool', must be one of conv, linear"),
        ({"workload": "layer:conv k=3"}, "field 'c' is missing"),
        ({"workload": "layer:conv c=3.5"}, "c '3.5', must be a whole number >= 1, in digits"),
        ({"workload": "layer:conv c=1e3"}, "c '1e3', must be a whole number >= 1, in digits"),
        ({"workload": "layer:conv c=6 c=7"}, "field 'c' is given twice, '6' and '7', must be given once"),
        ({"workload": "layer:conv c=8 stride=0"}, "stride '0', must be a whole number >= 1"),
        ({"workload": "layer:conv c=8 pad=foo"}, "pad 'foo', must be same, valid or a whole number >= 0"),
        ({"workload": "layer:conv c=8 h=2 r=5 pad=1"}, "h = 2 is smaller than the kernel of 5 even with its padding"),
        ({"workload": "layer:conv c=8 groups=3"}, "groups 3, must divide c = 8"),
        ({"workload": "layer:conv@ c=8"}, "unknown precision '' behind @; allowed: fp32"),
        (
            {"workload": "layer:linear c=8 h=4"},
            "field 'h=4' is unknown or empty; allowed, as key=value: c, k, n, density",
        ),
        ({"workload": "layers:nothing.txt"}, "no file 'nothing.txt' in "),
        ({"overrides": "parameters.speed=2"}, "overrides: no field 'parameters.speed'"),
        ({"metric": "traffic:flash", "unit": "B"}, "metric: no memory 'flash'; the machine has dram"),
        ({"metric": "fact:stalls", "unit": "cycle"}, "metric: the family reports no fact 'stalls'; it reports none"),
    ],
)
def test_what_cannot_be_priced_names_the_row(tmp_path: Path, fields: dict[str, str], message: str) -> None:
    name = machine(tmp_path, [line(**fields)])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=rf"mine.csv:2.*{re.escape(message)}"):
        compare(name)
