"""Sensitivity: measured against plans really applied, estimates against measurements, tables that survive JSON."""

import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pruning import evaluation
from pruning.plan import magnitude_masks, make_plan
from pruning.sensitivity import Sensitivity, first_order, measure
from pruning.training import fit
from workloads import data
from workloads.channels import ChannelAnalysis, analyze
from workloads.errors import CodesignError, ConfigError
from workloads.lowering import lower
from workloads.models import build, example_input
from workloads.sparsity import WeightSparsity

EXAMPLE = (example_input("digits_cnn"),)
COUNTS = {"block1.conv1": (32, 24, 8, 2), "block2.conv1": (64, 32, 1), "conv": (32, 16)}


@pytest.fixture(scope="module")
def heldout() -> data.ImageData:
    return data.load("digits", "heldout")


@pytest.fixture(scope="module")
def trained() -> torch.nn.Module:
    model = build("digits_cnn")
    fit(model, data.load("digits", "train"), 2, 0.1, batch_size=64, progress=False)
    return model


@pytest.fixture(scope="module")
def analysis(trained) -> ChannelAnalysis:
    return analyze(lower(trained, EXAMPLE))


@pytest.fixture(scope="module")
def masks(trained, analysis) -> dict[str, tuple[WeightSparsity, ...]]:
    wanted = {("block2.conv2", i): (density, "weight") for i, density in enumerate((0.5, 0.1, 0.02))}
    found = magnitude_masks(trained, analysis.source, wanted)
    return {"block2.conv2": tuple(found["block2.conv2", i] for i in range(3))}


@pytest.fixture(scope="module")
def measured(trained, analysis, heldout, masks) -> Sensitivity:
    return measure(trained, analysis, COUNTS, heldout, masks=masks, precision="fp32", progress=False)


class TestMeasured:
    def test_batches_count_as_the_pictures_that_they_hold(self, trained, analysis, heldout):
        options = {"conv": (32, 16)}
        whole = measure(trained, analysis, options, heldout, batch_size=100, precision="fp32", progress=False)
        given = measure(trained, analysis, options, list(heldout.batches(100)), precision="fp32", progress=False)
        assert (given.images, given.split) == (len(heldout), "given")
        assert (given.loss, given.accuracy) == (whole.loss, whole.accuracy)

    def test_it_says_what_the_smaller_module_does(self, trained, analysis, heldout, masks, measured):
        """Every option as a plan, applied and evaluated: the same loss and accuracy."""
        base = evaluation.evaluate(trained, heldout)
        assert (measured.base_loss, measured.base_accuracy) == pytest.approx((base.loss, base.accuracy), abs=1e-6)
        for group, counts in COUNTS.items():
            for i, count in enumerate(counts[1:], start=1):
                plan = make_plan("d", analysis, {group: count}, measured.ranking)
                score = evaluation.evaluate(plan.apply(trained, EXAMPLE), heldout)
                loss, accuracy = (table[f"channels:{group}"][i] for table in (measured.loss, measured.accuracy))
                assert loss == pytest.approx(score.loss - base.loss, abs=1e-4)
                assert accuracy == pytest.approx(score.accuracy - base.accuracy, abs=0.006)
        for i, zeros in enumerate(masks["block2.conv2"], start=1):
            plan = make_plan("d", analysis, {}, {}, {"block2.conv2": zeros})
            score = evaluation.evaluate(plan.apply(trained, EXAMPLE), heldout)
            assert measured.loss["weights:block2.conv2"][i] == pytest.approx(score.loss - base.loss, abs=1e-4)

    def test_keeping_all_costs_nothing(self, measured):
        assert all(losses[0] == 0 for losses in measured.loss.values())
        assert measured.options["weights:block2.conv2"] == pytest.approx((1.0, 0.5, 0.1, 0.02), abs=1e-4)
        assert measured.options["channels:conv"] == (32, 16)

    def test_removing_nearly_all_costs_much(self, measured):
        for group in ("block1.conv1", "block2.conv1"):
            losses = measured.loss[f"channels:{group}"]
            assert losses[-1] > max(0.1, losses[1])
            assert measured.accuracy[f"channels:{group}"][-1] < -0.05

    def test_the_model_is_left_alone(self, trained, analysis, heldout):
        before = copy.deepcopy(trained.state_dict())
        measure(trained, analysis, {"conv": (8,)}, heldout.take(20), adapt_norms=True, progress=False)
        assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())

    def test_the_order_of_options_does_not_matter(self, trained, analysis, heldout, measured):
        turned = {group: counts[::-1] for group, counts in reversed(COUNTS.items())}
        found = measure(trained, analysis, turned, heldout, precision="fp32", progress=False)
        for group in COUNTS:
            assert found.loss[f"channels:{group}"][::-1] == measured.loss[f"channels:{group}"]

    def test_the_ranking_decides_which_units_go(self, trained, analysis, heldout):
        half_dead = copy.deepcopy(trained)
        with torch.no_grad():
            for part in (half_dead.block2.bn1.weight, half_dead.block2.bn1.bias, half_dead.block2.conv1.weight):
                part[::2] = 0
        options = {"block2.conv1": (32,)}
        best = measure(half_dead, analysis, options, heldout, progress=False)
        assert best.ranking["block2.conv1"][:32] != tuple(range(32))
        assert best.loss["channels:block2.conv1"] == pytest.approx((0.0,), abs=1e-6)
        worst = {"block2.conv1": best.ranking["block2.conv1"][::-1]}
        found = measure(half_dead, analysis, options, heldout, ranking=worst, progress=False)
        assert found.ranking["block2.conv1"] == tuple(worst["block2.conv1"])
        assert found.loss["channels:block2.conv1"][0] > 0.1

    def test_adapted_norms_are_those_of_the_batch(self, trained, analysis, heldout):
        options = {"adapt_norms": True, "batch_size": 100, "precision": "fp32", "progress": False}
        found = measure(trained, analysis, {"conv": (16,)}, heldout, **options)
        twin = copy.deepcopy(trained).train()
        with torch.no_grad():
            losses = [float(F.cross_entropy(twin(x), y)) for x, y in heldout.batches(100)]
        assert found.base_loss == pytest.approx(np.mean(losses), abs=1e-5)
        assert found.adapted

    def test_a_network_that_has_diverged_is_refused(self, trained, analysis, heldout):
        model = copy.deepcopy(trained)
        torch.nn.init.constant_(model.fc.weight, 3e38)
        with pytest.raises(ConfigError, match="the loss on the given batches is not finite"):
            measure(model, analysis, {"conv": (16,)}, heldout, progress=False)

    def test_answers_that_are_no_logits_are_refused(self, trained, analysis, heldout):
        model = copy.deepcopy(trained)
        model.register_forward_hook(lambda module, inputs, logits: {"logits": logits})
        with pytest.raises(ConfigError, match="the network answers with dict, and a class is chosen by one tensor"):
            measure(model, analysis, {"conv": (16,)}, heldout, progress=False)


class TestFirstOrder:
    def test_it_orders_options_as_measurements_do(self, trained, analysis, heldout, masks, measured):
        found = first_order(trained, analysis, COUNTS, heldout, masks=masks)
        assert found.options == measured.options
        pairs = [(a, b) for v in measured.loss for a, b in zip(found.loss[v], measured.loss[v], strict=True)]
        ranks = [np.argsort(np.argsort(column)) for column in np.array(pairs).T]
        assert np.corrcoef(*ranks)[0, 1] > 0.8

    def test_it_grows_with_what_is_removed(self, trained, analysis, heldout, masks):
        found = first_order(trained, analysis, COUNTS, heldout.take(50), masks=masks)
        for losses in found.loss.values():
            assert list(losses) == sorted(losses)
            assert losses[0] == 0
        assert all(accuracy is None for accuracy in found.accuracy.values())

    def test_batches_are_the_pictures_that_they_hold(self, trained, analysis, heldout, masks):
        few = heldout.take(48)
        whole = first_order(trained, analysis, COUNTS, few, masks=masks)
        given = first_order(trained, analysis, COUNTS, list(few.batches(16)), masks=masks)
        assert given.loss == whole.loss
        assert (given.images, given.split) == (48, "given")

    def test_small_removals_are_estimated_in_size(self, heldout):
        """One dead filter revived a little: the estimate is within a factor of three of the measured loss."""
        model = build("digits_cnn")
        analysis = analyze(lower(model, EXAMPLE))
        options = {"block1.conv1": (31,)}
        truth = measure(model, analysis, options, heldout, precision="fp32", progress=False)
        guess = first_order(model, analysis, options, heldout, ranking=truth.ranking, batch_size=1)
        a, b = (abs(found.loss["channels:block1.conv1"][0]) for found in (truth, guess))
        assert b > 0
        assert a < 1e-2 and b < 1e-2  # noqa: PT018 - both are the loss of one weak channel


class TestTable:
    def test_json_is_exact(self, measured, tmp_path):
        assert Sensitivity.from_dict(json.loads(json.dumps(measured.to_dict()))) == measured
        measured.save(tmp_path / "s.json")
        assert Sensitivity.load(tmp_path / "s.json") == measured

    def test_it_prints_every_variable(self, measured):
        text = str(measured)
        assert text.startswith("measured on 200 heldout images in fp32; loss")
        assert all(variable in text for variable in measured.options)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda d: d | {"format": "x"}, "not a sensitivity table"),
            (lambda d: d | {"version": 9}, "not a sensitivity table"),
            (lambda d: d | {"images": "many"}, "missing or malformed"),
            (lambda d: {k: v for k, v in d.items() if k != "ranking"}, "missing or malformed"),
            (lambda d: d | {"variables": {"channels:a": {"options": [1, 2], "loss": [0.1]}}}, "missing or malformed"),
            (
                lambda d: d | {"variables": {"channels:a": {"options": [1, 2], "loss": [0.1], "accuracy": None}}},
                "lists of different lengths",
            ),
        ],
    )
    def test_bad_json(self, measured, tmp_path, change, message):
        (tmp_path / "s.json").write_text(json.dumps(change(measured.to_dict())))
        with pytest.raises(ConfigError, match=r"s\.json: .*" + message):
            Sensitivity.load(tmp_path / "s.json")


@pytest.mark.parametrize("estimate", [measure, first_order])
@pytest.mark.parametrize(
    ("options", "extra", "message"),
    [
        ({}, {}, "no options to try"),
        ({"nothing": (3,)}, {}, "unknown channel group 'nothing'"),
        ({"conv": (0,)}, {}, "cannot keep 0 units"),
        ({"conv": (99,)}, {}, "cannot keep 99 units"),
        ({"fc": (5,)}, {}, "they leave the network"),
        ({"conv": (8,)}, {"ranking": {"conv": [0, 1, 2]}}, "is no permutation of its units"),
        ({}, {"masks": {"bn": ()}}, "unknown layer with weights 'bn'"),
        ({}, {"masks": {"fc": (WeightSparsity.from_density((10, 64, 1, 1), 0.5),)}}, "needs an exact one of shape"),
        ({}, {"masks": {"fc": (WeightSparsity.from_mask(np.ones((10, 3), bool)),)}}, "needs an exact one of shape"),
        ({"conv": (8,)}, {"split": "test"}, "split 'heldout' or 'train'"),
    ],
)
def test_bad_options(estimate, options, extra, message, trained, analysis):
    images = data.load("digits", extra.get("split", "heldout")).take(10)
    extra = {key: value for key, value in extra.items() if key != "split"}
    with pytest.raises(CodesignError, match=message):
        estimate(trained, analysis, options, images, **extra)


def test_an_analysis_of_another_model_is_refused(trained, heldout):
    other = analyze(lower(build("lenet5"), (example_input("lenet5"),)))
    with pytest.raises(CodesignError, match=r"was not made from this DigitsCNN|cannot be traced"):
        measure(trained, other, {"conv1": (8,)}, heldout)
