"""Learned Threshold: gates and gradients worked by hand and by autograd, thresholds, freezing, the trail it leaves."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from pruning import masks
from pruning.methods.learned_threshold import LearnedThreshold, SoftThreshold
from pruning.testing import STEPS, Loop, batches, same, small_net
from pruning.trail import Trail
from workloads.errors import CodesignError, PlanError

EXAMPLE = (torch.zeros(2, 3, 8, 8),)


def prepared(net: nn.Module | None = None, **options) -> LearnedThreshold:
    return LearnedThreshold(net or small_net().train(), EXAMPLE, **{"total_steps": STEPS, "density": 0.3, **options})


def at(pruner: LearnedThreshold, share: float) -> list[float]:
    """Put every threshold at a share of its layer's mean square; what they are then."""
    for number, (gate, weight) in enumerate(pruner._weights()):
        pruner.scaled[number] = share * float(weight.detach().square().mean()) / pruner.scale[number]
        gate.threshold.fill_(pruner.scaled[number] * pruner.scale[number])
    return [float(gate.threshold) for gate in pruner.gates()]


def one_weight(is_exact: bool) -> SoftThreshold:
    gate = SoftThreshold(torch.ones(1, dtype=torch.bool))
    gate.threshold.fill_(0.012)
    gate.temperature.fill_(0.002)
    gate.is_exact = is_exact
    return gate


class TestGate:
    @pytest.mark.parametrize(("is_exact", "slope"), [(False, 0.5125), (True, 3.53561)])
    def test_values_worked_by_hand(self, is_exact, slope):
        """w = 0.11, tau = 0.012, T = 0.002."""
        gate, weight = one_weight(is_exact), torch.tensor([0.11], requires_grad=True)
        gate.threshold.requires_grad_(True)
        value = gate(weight)
        assert gate.gate(weight).item() == pytest.approx(0.5125, abs=5e-5)
        assert value.item() == pytest.approx(0.11 * 0.5125, abs=1e-5)
        by_weight, by_tau = torch.autograd.grad(value.sum(), (weight, gate.threshold))
        assert float(by_weight) == pytest.approx(slope, rel=1e-5 if is_exact else 1e-4)
        assert float(by_tau) == pytest.approx(-13.7414, rel=1e-5)
        (norm_by_tau,) = torch.autograd.grad(gate.gate(weight).sum(), gate.threshold)
        assert float(norm_by_tau) == pytest.approx(-124.922, rel=1e-5)
        of_gradient, of_norm, norm_by_minus_tau = gate.slopes(weight, gate.gate(weight))
        assert norm_by_minus_tau.item() == pytest.approx(124.922, rel=1e-5)
        assert of_norm.item() == pytest.approx(2 * 0.11 * 124.922 if is_exact else 0, rel=1e-5)
        assert (-of_gradient * by_weight).item() == pytest.approx(-13.7414, rel=1e-5)

    @pytest.mark.parametrize("is_exact", [False, True])
    def test_a_gate_below_minus_40_is_closed_and_all_others_are_what_they_were(self, is_exact):
        """z from -100 to 100; without this, weights below z = -84 are denormal numbers."""
        gate, weight = one_weight(is_exact), torch.linspace(0, 0.5, 1001, requires_grad=True)
        gate.threshold.fill_(0.1)
        gate.temperature.fill_(1e-3)
        z = gate.distance(weight)
        plain = weight * torch.sigmoid(z if is_exact else z.detach())
        (wanted,) = torch.autograd.grad(plain.sum(), weight, retain_graph=True)
        value = gate(weight)
        (found,) = torch.autograd.grad(value.sum(), weight)
        is_open = z > -40
        assert ((plain > 0) & (plain < torch.finfo(torch.float32).tiny)).any()
        assert torch.equal(value[is_open], plain[is_open])
        assert torch.equal(found[is_open], wanted[is_open])
        assert not value[~is_open].any()
        assert not found[~is_open].any()
        assert all(torch.isfinite(each).all() for each in gate.slopes(weight, gate.gate(weight)))

    def test_gates_are_float32_under_autocast(self):
        pruner = prepared()
        seen = []
        pruner.model.conv1.register_forward_pre_hook(lambda conv, _: seen.append(conv.weight.dtype))
        with torch.autocast("cpu", torch.bfloat16):
            answer = pruner.model(batches(1)[0][0])
            (gate, weight) = pruner._weights()[0]
            assert gate.gate(weight).dtype == gate.threshold.dtype == torch.float32
        assert seen == [torch.float32]
        assert answer.dtype == torch.bfloat16

    def test_temperature_is_of_the_weights_at_the_start(self):
        pruner = prepared(temperature=2e-3)
        wanted = [2e-3 * getattr(small_net(), name).weight.abs().var().item() for name in ("conv1", "conv2")]
        Loop(pruner).run(batches(STEPS))
        assert [row.temperature for row in pruner.diagnostics()] == pytest.approx(wanted)


class TestGradients:
    @pytest.mark.parametrize("is_exact", [False, True])
    def test_thresholds_move_by_what_autograd_says(self, is_exact):
        """Against the same network computed from its plain weights and thresholds that require a gradient."""
        rate, strength = 1e-9, 0.01
        pruner = prepared(
            density=None, l0_weight=strength, update="sgd", rate=rate, temperature=0.5, exact_gradient=is_exact
        )
        start, (x, y) = at(pruner, 0.3), batches(1)[0]
        net = small_net().train()
        taus = [torch.tensor(tau, requires_grad=True) for tau in start]
        state, norm = dict(net.named_parameters()), torch.zeros(())
        for tau, gate, name in zip(taus, pruner.gates(), pruner.names, strict=True):
            s = torch.sigmoid((state[name].square() - tau) / gate.temperature)
            state[name], norm = state[name] * s, norm + s.sum()
        wanted = torch.autograd.grad(F.cross_entropy(functional_call(net, state, (x,)), y) + strength * norm, taus)
        before = pruner.scaled.double()
        Loop(pruner).run([(x, y)])
        moved = pruner.scaled.grad
        torch.testing.assert_close(moved, torch.stack(wanted), rtol=2e-4, atol=0)
        torch.testing.assert_close(pruner.scaled.double(), before - rate * moved.double(), rtol=1e-5, atol=0)

    def test_the_soft_norm_pulls_at_weights_only_where_its_gradient_is_exact(self):
        """Otherwise a layer before a batch norm could shrink or grow to please it without changing any answer."""
        plain, exact = prepared(), prepared(exact_gradient=True)
        assert not plain.loss().requires_grad
        at(exact, 0.3)
        exact.loss().backward()
        weight = exact.model.conv1.parametrizations.weight.original
        assert (weight.grad != 0).any()

    def test_the_loss_counts_what_is_left(self):
        pruner = prepared(density=None, l0_weight=0.01)
        at(pruner, 1.0)
        kept = sum(row.density * 864 for row in pruner.diagnostics())
        assert float(pruner.loss()) == pytest.approx(0.01 * kept, rel=0.02)

    @pytest.mark.parametrize("update", ["adam", "sgd"])
    def test_adam_moves_layers_of_every_scale_alike_and_the_plain_rule_does_not(self, update):
        """conv1 a hundred times larger before a batch norm is the same network, whose thresholds should move alike."""
        moves = []
        for factor in (1.0, 100.0):
            net = small_net().train()
            with torch.no_grad():
                net.conv1.weight.mul_(factor)
                net.norm1.eps *= factor**2
            pruner = prepared(net, density=None, l0_weight=1e-3, update=update, rate=1e-3 if update == "adam" else 1e-9)
            at(pruner, 0.3)
            before = [row.threshold for row in pruner.diagnostics()]
            Loop(pruner).run(batches(1))
            after = [gate.threshold for gate in pruner.gates()]
            moves.append((float(after[0]) - before[0]) / before[0])
        assert (moves[1] == pytest.approx(moves[0], rel=1e-2)) == (update == "adam")
        assert moves[0] != 0

    def test_forgotten_calls_are_told(self):
        pruner = prepared()
        pruner.model(batches(1)[0][0]).sum().backward()
        with pytest.raises(PlanError, match=r"add pruner.loss\(\) to the loss of every step"):
            pruner.step()
        pruner = prepared()
        (pruner.model(batches(1)[0][0]).sum() + pruner.loss()).backward()
        pruner.model.zero_grad()
        with pytest.raises(PlanError, match=r"call pruner.step\(\) before zero_grad"):
            pruner.step()


class TestThresholds:
    def test_a_step_that_a_gradient_scaler_leaves_out_moves_no_threshold(self):
        pruner = LearnedThreshold(small_net(), EXAMPLE, 8, density=0.5)
        loop, data = Loop(pruner), batches(4)
        loop.run(data[:2])
        before = pruner.scaled.clone()
        loss = F.cross_entropy(pruner.model(data[2][0]), data[2][1]) + pruner.loss()
        (loss * math.inf).backward()
        pruner.step()
        assert torch.equal(pruner.scaled, before)
        loop.run(data[3:])
        assert pruner.scaled.isfinite().all()
        assert not torch.equal(pruner.scaled, before)

    def test_nothing_of_the_method_is_a_parameter(self):
        pruner = prepared()
        assert masks.parameter_names(pruner.model) != []
        assert sorted(masks.parameter_names(pruner.model)) == sorted(name for name, _ in small_net().named_parameters())

    def test_weight_decay_does_not_reach_them(self):
        taus = []
        for decay in (0.0, 100.0):
            pruner = prepared(l0_weight=1e-3, density=None, rate=1e-3)
            at(pruner, 0.3)
            loop = Loop(pruner)
            loop.optimizer = torch.optim.SGD(pruner.model.parameters(), 1e-9, weight_decay=decay)
            loop.run(batches(1))
            taus.append([float(gate.threshold) for gate in pruner.gates()])
        assert taus[0] == taus[1]

    def test_they_start_at_zero_and_never_take_a_whole_layer(self):
        pruner = prepared(density=None, l0_weight=100.0, rate=50.0, end=1.0)
        assert [row.threshold for row in pruner.diagnostics()] == [0, 0]
        Loop(pruner).run(batches(STEPS))
        assert all(mask.any() for mask in masks.masks_of(pruner.finalize()).values())
        assert masks.density(masks.masks_of(pruner.finalize()).values()) < 0.05

    def test_a_higher_price_leaves_fewer_weights(self):
        found = []
        for price in (1e-5, 1e-2):
            pruner = prepared(density=None, l0_weight=price, rate=0.05, total_steps=30)
            Loop(pruner).run(batches(30))
            found.append(masks.density(masks.masks_of(pruner.finalize()).values()))
        assert found[1] < 0.9 * found[0]


class TestFreezing:
    def test_exact_density_then_bit_identical_masks_and_weights_that_train_on(self):
        pruner = prepared(total_steps=50, end=0.8)
        loop, data = Loop(pruner), batches(50)
        loop.run(data[:40])
        first = pruner.finalize()
        assert pruner.is_settled
        assert sum(int(mask.sum()) for mask in masks.masks_of(first).values()) == round(0.3 * 1728)
        loop.run(data[40:])
        last = pruner.finalize()
        assert same(masks.masks_of(first), masks.masks_of(last))
        assert not torch.equal(first.conv1.weight, last.conv1.weight)
        assert pruner.loss() == 0

    @pytest.mark.parametrize("is_learning", [True, False])
    def test_weights_that_diverged_are_an_error(self, is_learning):
        pruner = prepared(total_steps=10, end=0.5)
        loop = Loop(pruner)
        loop.run(batches(4 if not is_learning else 1))
        with torch.no_grad():
            pruner._weights()[0][1].view(-1)[0] = math.nan
        with pytest.raises(PlanError, match="scores hold NaN"):
            loop.run(batches(1)) if is_learning else pruner._freeze()

    def test_no_layer_loses_all(self):
        pruner = prepared(total_steps=10, density=1e-4)
        Loop(pruner).run(batches(10))
        found = masks.masks_of(pruner.finalize())
        assert [int(mask.sum()) for mask in found.values()] == [1, 1]

    def test_finalize_prunes_hard_at_any_time(self):
        pruner = prepared(density=None, l0_weight=1e-3, total_steps=20, end=1.0)
        Loop(pruner).run(batches(5))
        at(pruner, 0.5)
        baked = pruner.finalize()
        gate, weight = pruner._weights()[0]
        hard = torch.where(weight.square() > gate.threshold, weight, 0.0)
        assert torch.equal(baked.conv1.weight, hard)
        assert gate.is_soft
        assert not torch.equal(pruner.model.conv1.weight, hard)

    def test_diagnostics_by_hand(self):
        pruner = prepared(density=None, l0_weight=1e-3)
        gate, weight = pruner._weights()[0]
        with torch.no_grad():
            weight.fill_(1.0)
            weight.view(-1)[:216] = 0.5
            weight.view(-1)[216:432] = 0.1
        gate.threshold.fill_(0.26)
        gate.temperature.fill_(0.01)  # z = -1 of 0.5, -25 of 0.1, 74 of 1
        row = pruner.diagnostics()[0]
        assert (row.name, row.density, row.band) == ("conv1.weight", 0.5, 0.25)
        assert (row.threshold, row.temperature) == pytest.approx((0.26, 0.01))

    @pytest.mark.parametrize("steps", [2, STEPS])
    def test_copies_and_compiled_copies_answer_alike(self, steps):
        pruner = prepared()
        Loop(pruner).run(batches(steps))
        net, x = pruner.model.eval(), batches(1)[0][0]
        answer = net(x)
        torch.testing.assert_close(copy.deepcopy(net)(x), answer, rtol=0, atol=0)
        torch.testing.assert_close(torch.compile(net, backend="aot_eager")(x), answer)


class TestTrail:
    def test_the_controller_leaves_sparser_and_sparser_networks(self, tmp_path):
        teacher = small_net(7).eval()
        with torch.no_grad():
            data = [(x, (teacher(x) - teacher(x).mean(0)).argmax(1)) for x, _ in batches(200)]
        net = small_net().train()
        optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
        for x, y in data:
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
        pruner = prepared(net, density=0.2, total_steps=200, end=1.0, trail=tmp_path, interval=40)
        least = pruner.l0_weight
        loop = Loop(pruner)
        for batch in data[:-1]:
            loop.run([batch])
            assert pruner.l0_weight >= least
        assert pruner.soft.item() / pruner.size == pytest.approx(0.2, rel=0.25)
        loop.run(data[-1:])
        points = Trail(tmp_path).points
        assert [point.step for point in points] == [40, 80, 120, 160, 200]
        assert all(later.density < point.density for point, later in itertools.pairwise(points))
        assert points[-1].density == pytest.approx(0.2, abs=1e-3)
        last = Trail(tmp_path).network(points[-1], small_net())
        assert same(last.state_dict(), pruner.finalize().state_dict())

    def test_going_on_or_starting_anew_makes_the_later_points_anew(self, tmp_path):
        data = batches(24)
        whole, cut = Trail(tmp_path / "whole"), Trail(tmp_path / "cut")
        options = {"density": 0.1, "total_steps": 24, "end": 1.0, "interval": 4}
        Loop(prepared(trail=whole.folder, **options)).run(data)
        first = Loop(prepared(trail=cut.folder, **options))
        first.run(data[:10])
        state = first.state()
        first.run(list(reversed(data[:10])))  # what a killed training did after its last checkpoint
        second = Loop(prepared(trail=cut.folder, **options))
        second.restore(state)
        second.run(data[10:])
        assert [point.step for point in whole.points] == [4, 8, 12, 16, 20, 24]
        assert whole.points == cut.points
        nets = [[trail.network(point, small_net()).state_dict() for point in trail.points] for trail in (whole, cut)]
        assert all(same(one, other) for one, other in zip(*nets, strict=True))
        Loop(prepared(total_steps=24, trail=cut.folder, interval=5)).run(data[:5])
        assert [point.step for point in cut.points] == [5]
        assert [path.name for path in cut.folder.glob("*.safetensors")] == [cut.points[0].file]


def test_channels_last_changes_nothing():
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        pruner = prepared(prune_first=True, prune_last=True)
        pruner.model.to(memory_format=layout)
        for _ in range(STEPS):
            (sum(weight.square().sum() for weight in pruner.model.parameters()) + pruner.loss()).backward()
            pruner.step()
        found.append(masks.masks_of(pruner.finalize()))
    assert same(*found)
    assert masks.density(found[0].values()) < 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": None}, "give density=, the kept fraction that is wanted, or l0_weight="),
        ({"density": 1.0}, "density 1.0, must lie between 0 and 1"),
        ({"density": 0.0}, "density 0.0, must lie between 0 and 1"),
        ({"l0_weight": -1.0}, "l0_weight -1.0, temperature .* must be finite and above 0"),
        ({"temperature": 0.0}, "temperature 0.0.* must be finite and above 0"),
        ({"rate": math.nan}, "rate nan: must be finite and above 0"),
        ({"update": "lion"}, "unknown update 'lion'"),
        ({"update": "sgd"}, "update 'sgd' needs rate="),
        ({"granularity": "filter"}, "granularity 'filter': thresholds remove single weights; use 'weight'"),
        ({"interval": 0}, "option interval=0 of learned_threshold: must be at least 1"),
        ({"keep": ("conv3",)}, "unknown layer with weights 'conv3'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(CodesignError, match=message):
        prepared(**options)


def test_weights_of_one_magnitude_have_no_temperature():
    net = small_net()
    nn.init.ones_(net.conv2.weight)
    with pytest.raises(PlanError, match=r"weights of 'conv2.weight' do not differ in magnitude"):
        prepared(net)


def test_the_rate_follows_from_the_way_to_go():
    """Of weights 1 .. 4 (mean square 7.5) half are kept above 2^2: 4 / 7.5 mean squares to go, times 2.5."""
    model = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(3)))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, -2.0], [3.0, -4.0]]))
    pruner = LearnedThreshold(model, (torch.zeros(1, 2),), 100, density=0.5, end=0.5)
    assert pruner.optimizer.param_groups[0]["lr"] == pytest.approx(2.5 * 4 / 7.5 / 50)
    free = LearnedThreshold(model, (torch.zeros(1, 2),), 100, l0_weight=1e-3, end=0.5)
    assert free.optimizer.param_groups[0]["lr"] == pytest.approx(20 / 50)


def test_a_trail_may_be_named_by_text(tmp_path):
    pruner = LearnedThreshold(small_net(), EXAMPLE, STEPS, density=0.5, trail=str(tmp_path / "trail"), interval=2)
    Loop(pruner).run(batches(STEPS))
    assert len(pruner.trail.points) > 1
