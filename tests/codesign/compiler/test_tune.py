"""Tuning: what is chosen was measured, nothing is measured twice, and a broken memory is an empty one."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codesign.compiler import tune as tune_module
from codesign.compiler.isa import find_isa
from codesign.compiler.network import build
from codesign.compiler.plan import Tuning
from codesign.compiler.runtime import Executable
from codesign.compiler.tune import Cache, tune, tuning_of
from workloads.lowering import lower_with_weights
from workloads.models import build as zoo
from workloads.models import example_input
from workloads.reference import run


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Tuning]]:
    """Instead of a clock: wider tiles are faster; what was measured, by step."""
    seen: dict[str, list[Tuning]] = {}

    def measured(self, step, context, kernels, tunings):  # type: ignore[no-untyped-def]
        seen.setdefault(step.output, []).extend(tunings)
        return {tuning: -tuning.tile[1] for tuning in tunings}

    monkeypatch.setattr(tune_module._Bench, "times", measured)
    return seen


def test_the_fastest_is_chosen_and_remembered(times: dict[str, list[Tuning]], tmp_path: Path) -> None:
    graph, weights = lower_with_weights(zoo("resnet8"), example_input("resnet8"))
    cache = Cache.load(tmp_path / "a" / "tunings.json")
    found = tune(graph, weights, find_isa(), cache)
    assert set(times) <= set(found)
    for name, tunings in times.items():
        assert found[name].tile[1] == max(tuning.tile[1] for tuning in tunings)
        assert len(tunings) > 2
    times.clear()
    assert tune(graph, weights, find_isa(), Cache.load(tmp_path / "a" / "tunings.json")) == found
    assert not times  # nothing is measured twice


def test_other_zeros_are_measured_anew(times: dict[str, list[Tuning]]) -> None:
    graph, weights = lower_with_weights(zoo("lenet5"), example_input("lenet5"))
    cache = Cache()
    tune(graph, weights, find_isa(), cache)
    before = len(cache.found)
    key = next(layer.weight for layer in graph.layers if layer.weight)
    halved = weights[key] * (np.arange(len(weights[key])) % 2)[:, None, None, None]
    tune(graph, {**weights, key: halved}, find_isa(), cache)
    assert len(cache.found) == before + 1


class Added(nn.Module):
    """Adds what a convolution made, or all but its last channels, to what the next one makes."""

    def __init__(self, left_out: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.left_out = left_out

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.a(x))
        return self.b(a) + F.pad(a[:, : 16 - self.left_out], (0, 0, 0, 0, 0, self.left_out))


def test_what_is_added_decides_what_is_chosen_from(times: dict[str, list[Tuning]]) -> None:
    """Filters in lanes add whole tensors only."""
    cache, chosen = Cache(), {}
    for left_out in (0, 4):
        found = tune(*lower_with_weights(Added(left_out).eval(), torch.zeros(1, 16, 4, 4)), find_isa(), cache)
        chosen[left_out] = list(found.values())
    assert len(cache.found) == 3
    assert chosen[0][0] == chosen[4][0]
    assert all("lanes" not in tuning.order for tuning in chosen[4][1:])


def test_what_is_no_choice_of_a_layer_is_measured_anew(times: dict[str, list[Tuning]]) -> None:
    graph, weights = lower_with_weights(zoo("lenet5"), example_input("lenet5"))
    cache = Cache()
    found = tune(graph, weights, find_isa(), cache)
    cache.found = dict.fromkeys(cache.found, Tuning((50, 50), 3))
    assert tune(graph, weights, find_isa(), cache) == found


def test_a_tuned_network_answers_the_same() -> None:
    graph, weights = lower_with_weights(zoo("lenet5"), example_input("lenet5"))
    x = example_input("lenet5").numpy()
    found = Executable(build(graph, weights, find_isa(), tunings=tune(graph, weights, find_isa())))([x])[0]
    expected = run(graph, weights, x)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("content", ["", "[]", '{"a": {"tile": 3}}', '{"a": {"tile": [0, 1], "filters": 1}}'])
def test_a_broken_memory_is_an_empty_one(tmp_path: Path, content: str) -> None:
    (tmp_path / "tunings.json").write_text(content)
    assert Cache.load(tmp_path / "tunings.json").found == {}


def test_tunings_survive_json(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "tunings.json")
    cache.keep("a", Tuning((2, 3), 4, "channel"))
    assert Cache.load(tmp_path / "tunings.json").found == {"a": Tuning((2, 3), 4, "channel")}
    with pytest.raises(ValueError, match="not a tuning"):
        tuning_of({"tile": [1, 1], "filters": 1, "order": "row"})


def test_two_processes_keep_what_each_other_measured(tmp_path: Path) -> None:
    path = tmp_path / "tunings.json"
    mine, other = Cache.load(path), Cache.load(path)
    mine.keep("a", Tuning((2, 3)))
    other.keep("b", Tuning((1, 1)))
    assert Cache.load(path).found == {"a": Tuning((2, 3)), "b": Tuning((1, 1))}
    mine.keep("b", Tuning((4, 4)))  # measured here too: the last to write is right
    assert Cache.load(path).found == {"a": Tuning((2, 3)), "b": Tuning((4, 4))}


def test_a_memory_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file" / "tunings.json")
    cache.keep("a", Tuning((1, 1)))
    assert cache.found == {"a": Tuning((1, 1))}
