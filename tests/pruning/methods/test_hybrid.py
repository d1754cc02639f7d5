"""Hybrid pruning: counts chosen by hand-worked curves, the thinner network, and weights after channels."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch

from pruning import masks
from pruning.methods.hybrid import HybridPruning, MacCount, ThinningTarget, counts_at, counts_to_try, curves
from pruning.plan import PruningPlan
from pruning.sensitivity import Sensitivity
from pruning.testing import Loop, SmallNet, batches, small_net
from pruning.wiring import Wiring, wire
from tests.pruning.networks import example, network
from workloads import data
from workloads.errors import CodesignError, ConfigError, PlanError
from workloads.models import build, example_input

EXAMPLE = (torch.zeros(2, 3, 8, 8),)
DATA = batches(2, seed=1)
PLAN = PruningPlan("SmallNet", {"conv1": tuple(range(8))}, {"conv1": 12})
DENSE = 27 * 8 * 64 + 2 * 9 * 8 * 12 * 64 + 4 * 8  # MACs of SmallNet: stem, both convolutions, classifier


def hybrid(model: torch.nn.Module | None = None, total_steps: int = 8, **options: Any) -> HybridPruning:
    given = options if "plan" in options else {"data": DATA} | options
    return HybridPruning(model or small_net(), EXAMPLE, total_steps, **given)


def table(**rows: tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...]]) -> Sensitivity:
    """A measured table: group -> counts, changes of accuracy, increases of the loss."""
    found = {f"channels:{group}": row for group, row in rows.items()}
    options, accuracy, loss = ({name: row[i] for name, row in found.items()} for i in range(3))
    ranking = {"stem": tuple(range(8)), "conv1": tuple(range(11, -1, -1))}
    return Sensitivity("measured", 100, "heldout", "fp32", False, 0.1, 0.9, options, ranking, loss, accuracy)


@pytest.fixture(scope="module")
def wiring() -> Wiring:
    return wire(small_net(), EXAMPLE)


class TestCountsToTry:
    def test_multiples_below_the_dense_count(self, wiring):
        assert counts_to_try(wiring, 8) == {"conv1": (8,)}  # the stem has 8: not fewer than one multiple
        assert counts_to_try(wiring, 4) == {"stem": (4,), "conv1": (8, 4)}
        assert counts_to_try(wiring, {"conv1": 5}) == {"stem": (7, 6, 5, 4, 3, 2, 1), "conv1": (10, 5)}

    def test_levels_spread_over_the_multiples(self, wiring):
        assert counts_to_try(wiring, 1, levels=3)["conv1"] == (11, 6, 1)

    def test_an_addition_joins_the_stem_and_what_is_added(self, wiring):
        assert counts_to_try(wiring, 4, inner_only=True) == {"conv1": (8, 4)}

    @pytest.mark.parametrize(
        ("name", "group", "channels", "counts"),
        [
            ("Grouped", "wide", "wide", (4, 2)),  # a unit is two filters of both groups: 16 and 8 filters
            ("PixelShuffle", "conv", "conv", (2,)),  # a unit is four filters
            ("SqueezeExcite", "conv", "up", (8,)),
        ],
    )
    def test_layers_have_multiples_whatever_a_unit_is(self, name, group, channels, counts):
        found = wire(network(name), example())
        assert counts_to_try(found, 8)[group] == counts
        for count in counts:
            assert found.analysis.graph({group: count})[channels].k % 8 == 0

    def test_every_stage_of_a_padded_residual_stream(self):
        """16, 32 and 64 channels are one group of 64 units; half of each stage is the only share that fits."""
        found = wire(build("resnet20"), (example_input("resnet20"),))
        assert counts_to_try(found, 8)["conv1"] == (32,)


class TestChoice:
    FOUND = table(conv1=((8, 4), (-0.01, -0.05), (0.1, 0.4)), stem=((4,), (-0.02,), (0.2,)))

    @pytest.mark.parametrize(
        ("macs", "counts", "left"),
        [
            (0.75, {"conv1": 8}, 27 * 8 * 64 + 2 * 9 * 8 * 8 * 64 + 32),
            (0.5, {"conv1": 8, "stem": 4}, 27 * 4 * 64 + 2 * 9 * 4 * 8 * 64 + 16),
            (0.25, {"conv1": 4, "stem": 4}, 27 * 4 * 64 + 2 * 9 * 4 * 4 * 64 + 16),
        ],
    )
    def test_the_highest_threshold_that_meets_the_macs(self, wiring, macs, counts, left):
        target = ThinningTarget.checked(macs, None)
        assert counts_at(self.FOUND, target.limit(wiring.analysis, self.FOUND)) == counts
        plan = target.plan("tiny", wiring.analysis, self.FOUND)
        assert {group: len(units) for group, units in plan.channels.items()} == counts
        assert plan.channels["conv1"][-1] == 11  # the ranking's first, here the last unit
        assert f"{left / DENSE:.1%} of the MACs" in plan.notes[0]

    def test_a_tolerance_is_for_each_group_alone(self, wiring):
        counts = {
            tolerance: counts_at(self.FOUND, ThinningTarget.checked(None, tolerance).limit(wiring.analysis, self.FOUND))
            for tolerance in (0.015, 0.02, 0.05)
        }
        assert counts == {0.015: {"conv1": 8}, 0.02: {"conv1": 8, "stem": 4}, 0.05: {"conv1": 4, "stem": 4}}

    def test_a_tolerance_that_is_just_reached_is_kept(self, wiring):
        """0.93 - 0.92 is a little more than 0.01 in floating point."""
        found = table(conv1=((8, 4), (0.92 - 0.93, -0.5), (0.1, 0.5)))
        assert counts_at(found, ThinningTarget.checked(None, 0.01).limit(wiring.analysis, found)) == {"conv1": 8}

    def test_a_curve_that_rises_again_is_no_excuse(self):
        assert curves(table(conv1=((8, 4), (-0.05, -0.01), (0.3, 0.5)))) == {
            "conv1": [((0.05, 0.3), 8), ((0.05, 0.3), 4)]
        }

    def test_equal_accuracies_are_told_apart_by_the_loss(self, wiring):
        found = table(conv1=((8, 4), (0.0, 0.0), (0.01, 0.03)), stem=((4,), (0.0,), (0.02,)))
        assert counts_at(found, ThinningTarget.checked(0.5, None).limit(wiring.analysis, found)) == {
            "conv1": 8,
            "stem": 4,
        }

    def test_what_cannot_be_reached(self, wiring):
        with pytest.raises(PlanError, match=r"macs 0.2 cannot be reached: with the smallest counts 20.4% are left"):
            ThinningTarget.checked(0.2, None).limit(wiring.analysis, self.FOUND)
        with pytest.raises(PlanError, match=r"no group can lose channels within tolerance 0.50%"):
            ThinningTarget.checked(None, 0.005).plan("tiny", wiring.analysis, self.FOUND)


class TestThinning:
    def test_the_model_is_the_smaller_network_from_the_start(self):
        model = small_net().eval()
        pruner = hybrid(model, macs=0.45, multiple=4, inner_only=True)
        assert (pruner.model.conv1.out_channels, pruner.model.conv2.in_channels, model.conv1.out_channels) == (4, 4, 12)
        wanted = wire(model, EXAMPLE).masked(model, {"conv1": list(pruner.plan.channels["conv1"])})
        x = batches(1)[0][0]
        torch.testing.assert_close(pruner.model(x), wanted(x))
        assert pruner.sensitivity is not None
        assert pruner.sensitivity.images == 32

    @pytest.mark.parametrize("shape", [(5, 16), (16, 7)])
    def test_inputs_that_are_no_pictures(self, shape):
        """Sequences through linear layers, and through convolutions of one dimension."""
        first = torch.nn.Linear(16, 12) if shape[-1] == 16 else torch.nn.Conv1d(16, 12, 3)
        last = [torch.nn.Flatten(), torch.nn.LazyLinear(4)]
        model = torch.nn.Sequential(first, torch.nn.ReLU(), *last)
        data = [(torch.randn(8, *shape), torch.arange(8) % 4) for _ in range(2)]
        model(data[0][0])  # which settles the lazy layer
        pruner = HybridPruning(model, (torch.zeros(2, *shape),), 8, data=data, macs=0.75, multiple=4, weights=False)
        assert pruner.model[0].weight.shape[0] == 8
        assert pruner.model(data[0][0]).shape == (8, 4)

    def test_macs_of_both_stages(self):
        pruner = hybrid(plan=PLAN, density=0.25, begin=0.125, end=0.125)
        thin = 27 * 8 * 64 + 2 * 9 * 8 * 8 * 64 + 32
        assert pruner.mac_count() == MacCount(DENSE, thin, thin)
        Loop(pruner).run(batches(1))
        assert pruner.mac_count() == MacCount(DENSE, thin, thin - 0.75 * 2 * 9 * 8 * 8 * 64)
        assert str(pruner.mac_count()) == (
            "0.12 M MACs dense, 0.09 M (70.4%) after thinning, 0.03 M (25.9%) with non-zero weights"
        )

    def test_channels_alone_leave_no_mask(self):
        pruner = hybrid(plan=PLAN, weights=False)
        Loop(pruner).run(batches(1))
        assert pruner.is_settled
        finished = pickle.loads(pickle.dumps(copy.deepcopy(pruner.finalize())))
        assert not finished._load_state_dict_pre_hooks
        assert not masks.masks_of(pruner.finalize())
        assert pruner.finalize() is not pruner.model


def kept(pruner: HybridPruning) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in masks.masks_of(pruner.model).items()}


class TestWeights:
    def test_the_threshold_is_mean_plus_factor_times_deviation(self):
        model = small_net()
        with torch.no_grad():  # mean |w| = 2, deviation 1.5: threshold 2.75 with factor 0.5
            model.conv1.weight[:8] = torch.tensor([-0.5, 0.5, 3.5, -3.5]).repeat(144).view(8, 8, 3, 3)
            model.conv2.weight[:, :8] = torch.tensor([1.0, 1.0, 1.0, -5.0]).repeat(144).view(8, 8, 3, 3)  # 2 + 0.87
        pruner = hybrid(model, plan=PLAN, factor=0.5, begin=0.0, end=0.5)
        assert pruner.densities == {"conv1.weight": 0.5, "conv2.weight": 0.25}

    def test_removed_along_the_curve_worked_by_hand(self):
        pruner = hybrid(plan=PLAN, density=0.2, begin=0.25, end=0.75, frequency=1)
        counts, settled, loop = [], [], Loop(pruner)
        for batch in batches(8):
            loop.run([batch])
            counts.append(kept(pruner)["conv1.weight"])
            settled.append(pruner.is_settled)
        # sparsity 0.8 (1 - (1 - (t - 2) / 4)^3) at steps 2 .. 6: 0, 0.4625, 0.7, 0.7875, 0.8
        assert counts == [int(576 * share + 0.5) for share in (1, 1, 0.5375, 0.3, 0.2125, 0.2, 0.2, 0.2)]
        assert settled == [False] * 5 + [True] * 3

    def test_at_once(self):
        pruner = hybrid(plan=PLAN, density=0.5, begin=0.5, end=0.5)
        counts, loop = [], Loop(pruner)
        for batch in batches(6):
            loop.run([batch])
            counts.append(kept(pruner)["conv2.weight"])
        assert counts == [576, 576, 576, 288, 288, 288]

    @pytest.mark.parametrize(("when", "steps"), [(0.0, 0), (0.125, 1), (1.0, 8)])
    def test_at_the_very_beginning_or_end(self, when, steps):
        pruner = hybrid(plan=PLAN, density=0.5, begin=when, end=when)
        counts, loop = [kept(pruner)["conv2.weight"]], Loop(pruner)
        for batch in batches(8):
            loop.run([batch])
            counts.append(kept(pruner)["conv2.weight"])
        assert counts == [576] * steps + [288] * (9 - steps)
        assert pruner.is_settled

    def test_what_goes_is_what_is_smallest_then(self):
        pruner = hybrid(plan=PLAN, density=0.5, begin=0.125, end=0.125)
        Loop(pruner).run(batches(1))
        for name, mask in masks.masks_of(pruner.model).items():
            sizes = masks.dense_weight(pruner.model, name).abs()
            assert sizes[mask].min() >= sizes[~mask].max()

    def test_what_is_kept_keeps_its_weights(self):
        pruner = hybrid(data=DATA, macs=0.9, multiple=4, keep=("conv1",), density=0.5, begin=0.0, end=0.0)
        assert kept(pruner).keys() == {"conv2.weight"}
        assert any(note.startswith("left dense, ") and "conv1" in note for note in pruner.notes)

    @pytest.mark.parametrize(("is_broken", "count"), [(False, 288), (True, 576)])
    def test_only_after_the_thinner_network_passed_the_check(self, is_broken, count):
        """The dense network answers its own labels; its thinner copy must too, or keeps its weights."""
        model = small_net().eval()
        with torch.no_grad():
            model.conv2.weight[:, 8:] = 0  # channels that nothing reads: the thinner network answers the same
        own = [(x, model(x).argmax(1)) for x, _ in DATA]
        pruner = hybrid(model, plan=PLAN, data=own, check=0.0, density=0.5, begin=0.25, end=0.25)
        unchecked = "weights are pruned without a check of the thinner network's accuracy (check=)"
        assert unchecked not in pruner.notes
        assert unchecked in hybrid(model, plan=PLAN).notes
        if is_broken:
            with torch.no_grad():
                pruner.model.head.weight.neg_()
        for _ in range(4):
            pruner.step()
        assert kept(pruner)["conv1.weight"] == count
        assert (pruner.thin_accuracy == 1) == (not is_broken)
        done = "failed, weights were not pruned" if is_broken else "passed, weights were pruned"
        assert pruner.notes[-1].startswith(f"accuracy check {done}: the thinner network had ")
        other = hybrid(model, plan=PLAN, data=own, check=0.0, density=0.5, begin=0.25, end=0.25)
        other.load_state_dict(pruner.state_dict())
        assert other.notes == pruner.notes
        assert pruner.is_settled


class TestState:
    def test_it_is_plain_and_holds_the_plan(self):
        pruner = hybrid(plan=PLAN, begin=0.25)
        Loop(pruner).run(batches(4))
        file = io.BytesIO()
        torch.save(pruner.state_dict(), file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
        assert PruningPlan.from_dict(state["plan"]) == PLAN
        other = hybrid(plan=PLAN, begin=0.25)
        other.load_state_dict(state)
        assert (other.densities, kept(other), other.steps_done) == (pruner.densities, kept(pruner), 4)

    def test_the_plan_rebuilds_the_same_thin_network_from_the_dense_model(self):
        first = Loop(hybrid(tolerance=1.0, multiple=4))
        losses = first.run(batches(8))[4:]
        stopped = Loop(hybrid(tolerance=1.0, multiple=4))
        stopped.run(batches(8)[:4])
        state = stopped.state()
        second = Loop(hybrid(small_net(), plan=PruningPlan.from_dict(state["pruner"]["plan"])))
        second.restore(state)
        assert second.run(batches(8)[4:]) == losses

    def test_a_network_of_other_sizes_says_how_to_go_on(self):
        state = hybrid(plan=PLAN, weights=False).state_dict()
        plan = PruningPlan("SmallNet", {"conv1": (0, 1, 2, 3), "stem": (0,)}, {"conv1": 12, "stem": 8})
        other = hybrid(plan=plan, weights=False)
        with pytest.raises(PlanError, match=r"keeps 8 units of 'conv1', this one keeps 4; make the pruner with plan="):
            other.load_state_dict(state)
        with pytest.raises(
            PlanError, match=r"'stem.weight' of shape \(8, 3, 3, 3\), this thinner network \(1, 3, 3, 3\)"
        ):
            other.model.load_state_dict(hybrid(plan=PLAN, weights=False).model.state_dict())
        with pytest.raises(PlanError, match="keeps 1 units of 'stem', this one keeps all"):
            hybrid(plan=PruningPlan("SmallNet", {"conv1": (0, 1, 2, 3)}, {"conv1": 12}), weights=False).load_state_dict(
                other.state_dict()
            )


def test_bf16_channels_last_copied_and_compiled():
    pruner = hybrid(plan=PLAN, density=0.5, begin=0.0, end=0.0)
    Loop(pruner).run(batches(1))
    model = copy.deepcopy(pruner.model).eval().to(memory_format=torch.channels_last)
    x = batches(1)[0][0].to(memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(torch.compile(model, backend="eager")(x), model(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"macs": 1.0}, r"macs 1.0, must be above 0 and below 1"),
        ({"tolerance": -0.1}, r"tolerance -0.1, must be in 0 .. 1"),
        ({"macs": 0.5, "tolerance": 0.1}, "macs 0.5 and tolerance 0.1 given"),
        ({"multiple": 0}, "multiple 0 and levels 8, must be at least 1"),
        ({"multiple": {"conv9": 4}}, "unknown channel group 'conv9'"),
        ({"multiple": 16}, "no channel group can lose units at multiple 16"),
        ({"keep": ("conv9",)}, "unknown layer to keep 'conv9'"),
        ({"density": 1.0}, "density 1.0, must be above 0 and below 1"),
        ({"check": 2.0}, "check 2.0, must be in 0 .. 1"),
        ({"data": None}, "hybrid_pruning measures on pictures"),
        ({"data": []}, "data holds no batch"),
        ({"plan": PLAN, "check": 0.1}, "hybrid_pruning measures on pictures"),
        ({"plan": PLAN, "macs": 0.5}, "plan= says which channels stay"),
        ({"plan": PruningPlan("x", {"conv1": (0,)}, {"conv1": 16})}, "'conv1' had 16 units, this model's has 12"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(CodesignError, match=message):
        hybrid(**options)


def test_test_pictures_are_refused():
    with pytest.raises(ConfigError, match="split 'heldout' or 'train'"):
        HybridPruning(build("digits_cnn"), (example_input("digits_cnn"),), 8, data=data.load("digits", "test"))


def test_small_net_is_what_the_numbers_above_are_of():
    assert wire(SmallNet(), (torch.zeros(1, 3, 8, 8),)).graph.macs == DENSE
