"""Plans as data: printing, exact JSON, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest

from pruning.plan import PruningPlan
from workloads.errors import CodesignError, ConfigError, PlanError
from workloads.sparsity import WeightSparsity

RNG = np.random.default_rng(0)
MASK = WeightSparsity.from_mask(RNG.random((4, 3, 3, 3)) < 0.5)
PLAN = PruningPlan(
    "tiny",
    channels={"conv1": (0, 2, 5), "conv2": (0, 1)},
    units={"conv1": 8, "conv2": 2},
    masks={"conv3": MASK, "head": WeightSparsity.from_density((5, 6), 0.25)},
    notes=("latency 0.7x", "seed 3"),
)


def test_json_is_exact(tmp_path):
    again = PruningPlan.from_dict(json.loads(json.dumps(PLAN.to_dict())))
    assert again == PLAN
    assert again.masks["conv3"].mask().tolist() == MASK.mask().tolist()
    PLAN.save(tmp_path / "plan.json")
    assert PruningPlan.load(tmp_path / "plan.json") == PLAN
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_it_prints_as_a_table():
    text = str(PLAN)
    assert text.splitlines()[0].startswith("plan for tiny: 5 of 8 units removed in 1 group, ")
    assert "channels  conv1  3 of 8" in text
    assert f"weights   conv3  density {MASK.density:.3f} of 108" in text
    assert "note: seed 3" in text


def test_emptiness():
    assert PruningPlan("x").is_empty
    assert PruningPlan("x", {"a": (0, 1)}, {"a": 2}).is_empty
    assert PruningPlan("x", masks={"a": WeightSparsity.from_mask(np.ones((2, 2), bool))}).is_empty
    assert not PruningPlan("x", {"a": (1,)}, {"a": 2}).is_empty
    assert not PruningPlan("x", masks={"a": MASK}).is_empty
    assert PLAN.removed == {"conv1": 5}


def test_it_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PLAN.model = "other"


@pytest.mark.parametrize(
    ("channels", "units"),
    [
        ({"a": ()}, {"a": 3}),
        ({"a": (0, 3)}, {"a": 3}),
        ({"a": (1, 0)}, {"a": 3}),
        ({"a": (1, 1)}, {"a": 3}),
        ({"a": (-1, 1)}, {"a": 3}),
        ({"a": (0,)}, {}),
        ({}, {"a": 3}),
    ],
)
def test_impossible_units(channels, units):
    with pytest.raises(PlanError, match="plan: group"):
        PruningPlan("x", channels, units)


def changed(**fields):
    return PLAN.to_dict() | fields


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "not a pruning plan"),
        ({}, "not a pruning plan"),
        (changed(format="other"), "not a pruning plan"),
        (changed(version=2), "version 2; this release reads 1"),
        (changed(extra=1), r"fields \['extra'\] are unknown or missing"),
        (
            {key: value for key, value in PLAN.to_dict().items() if key != "units"},
            r"\['units'\] are unknown or missing",
        ),
        (changed(model=3), "field 'model' must be text"),
        (changed(channels={"conv1": "0 2"}), "field 'channels' must be lists of integers by group"),
        (changed(channels={"conv1": [0, 1.5]}), "field 'channels' must be lists of integers"),
        (changed(units={"conv1": True}), "field 'units' must be integers by group"),
        (changed(masks={"conv3": {"form": "exact"}}), "mask of 'conv3'"),
        (changed(masks={"conv3": 3}), "mask of 'conv3'"),
        (changed(notes="text"), "field 'notes' must be a list of texts"),
        (changed(units={"conv1": 2, "conv2": 2}), "group 'conv1' keeps"),
    ],
)
def test_bad_json(data, message, tmp_path):
    with pytest.raises(CodesignError, match=message):
        PruningPlan.from_dict(data)
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with pytest.raises(CodesignError, match=r"plan\.json: .*" + message):
        PruningPlan.load(tmp_path / "plan.json")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_files_that_are_no_json(tmp_path, content):
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"plan\.json: not JSON"):
        PruningPlan.load(tmp_path / "plan.json")
    with pytest.raises(ConfigError, match=r"absent\.json: cannot be read"):
        PruningPlan.load(tmp_path / "absent.json")
