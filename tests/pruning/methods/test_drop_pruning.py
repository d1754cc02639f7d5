"""Drop Pruning: the size recurrence, what may go and return, and the case that is iterative magnitude pruning."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from pruning import masks
from pruning.methods.drop_pruning import (
    DropPruning,
    Pool,
    drop_in_probability,
    drop_step,
    expected_size,
    settling_steps,
)
from pruning.testing import STEPS, Loop, batches, same, small_net
from workloads.errors import CodesignError

EXAMPLE = (torch.zeros(2, 3, 8, 8),)
FAST = {"rho": 0.5, "p_out": 0.5, "frequency": 1, "end": 1.0}


def live(pruner: DropPruning) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in masks.masks_of(pruner.model).items()}


def walk(pruner: DropPruning, steps: int):
    """The masks after each of `steps` steps of a user who trains nothing."""
    for _ in range(steps):
        pruner.step()
        yield {name: mask.clone() for name, mask in masks.masks_of(pruner.model).items()}


class TestRecurrence:
    @pytest.mark.parametrize(("density", "p_in"), [(0.09, 0.00495), (0.07, 0.00376)])
    def test_published_rates_lead_to_the_notes_values(self, density, p_in):
        assert drop_in_probability(density, 0.5, 0.1) == pytest.approx(p_in, abs=5e-6)

    @pytest.mark.parametrize("density", [0.025, 0.07, 0.5])
    def test_the_fixed_point_stays_and_the_rest_shrinks_geometrically(self, density):
        rho, p_out = 0.5, 0.1
        p_in = drop_in_probability(density, rho, p_out)
        assert expected_size(density, 1, rho * density, p_out, p_in) == pytest.approx(density, rel=1e-12)
        now = 1.0
        for step in range(1, 96):
            now = expected_size(now, 1, rho * now, p_out, p_in)
            assert now - density == pytest.approx((1 - density) * (1 - rho * p_out - p_in) ** step)

    def test_95_steps_settle(self):
        assert settling_steps(0.09, 0.5, 0.1) <= 95 <= settling_steps(0.07, 0.5, 0.1) <= 105

    def test_exact_where_nothing_is_left_to_chance(self):
        mask = torch.tensor([True, True, True, False, False])
        unimportant = torch.tensor([True, False, False, False, False])
        both = drop_step(mask, unimportant, 1.0, 1.0)
        assert both.tolist() == [False, True, True, True, True]
        assert int(both.sum()) == expected_size(3, 5, 1, 1.0, 1.0)
        assert torch.equal(drop_step(mask, unimportant, 0.0, 0.0), mask)

    @pytest.mark.parametrize(("density", "p_out", "p_in"), [(1.0, 0.1, 0.005), (0.3, 0.1, 0.02), (0.1, 0.9, 0.5)])
    def test_one_step_in_the_mean(self, density, p_out, p_in):
        total, generator = 200_000, torch.Generator().manual_seed(1)
        mask = torch.arange(total) < density * total
        unimportant = torch.arange(total) < density * total / 2
        n, u = int(mask.sum()), int(unimportant.sum())
        got = int(drop_step(mask, unimportant, p_out, p_in, generator).sum())
        deviation = math.sqrt(u * p_out * (1 - p_out) + (total - n) * p_in * (1 - p_in))
        assert abs(got - expected_size(n, total, u, p_out, p_in)) < 4 * deviation

    def test_the_pruner_follows_it_step_by_step(self):
        pruner = DropPruning(small_net(), EXAMPLE, 40, density={"conv1": 0.3}, seed=3, **FAST)
        (pool,) = pruner.pools
        before, error, variance = pool.size, 0.0, 0.0
        for number, found in enumerate(walk(pruner, 39), start=1):
            p_in, after = pruner.p_in_at(pool, number), int(found["conv1.weight"].sum())
            u = math.floor(pool.unimportant(before, 0.5, 0.5, p_in) + 0.5)
            error += after - expected_size(before, pool.size, u, 0.5, p_in)
            variance += u * 0.25 + (pool.size - before) * p_in * (1 - p_in)
            before = after
        assert abs(error) < 4 * math.sqrt(variance)
        assert variance > 100


class TestPhases:
    def test_drop_in_decays_to_zero_before_the_end(self):
        pruner = DropPruning(small_net(), EXAMPLE, 100, density=0.3, frequency=1, p_out=0.5, end=1.0, closing=0.2)
        (pool, _) = pruner.pools
        rates = [pruner.p_in_at(pool, number) / pool.p_in for number in (1, 80, 85, 90, 100)]
        assert rates == pytest.approx([1, 1, 0.5, 0, 0])

    @pytest.mark.parametrize("scope", ["layer", "global"])
    @pytest.mark.parametrize("density", [0.07, 0.3, 0.52])
    def test_the_exact_density_is_reached_and_stays(self, scope, density):
        options = {"prune_first": True, "prune_last": True, **FAST, "end": 0.75}
        pruner = DropPruning(small_net(), EXAMPLE, 40, density=density, scope=scope, **options)
        found = list(walk(pruner, 40))
        sizes = {name: mask.numel() for name, mask in found[0].items()}
        total = sum(sizes.values())
        wanted = [total * density] if scope == "global" else [size * density for size in sizes.values()]
        assert sum(live(pruner).values()) == sum(max(1, math.floor(one + 0.5)) for one in wanted)
        assert all(same(found[29], later) for later in found[30:])
        assert not same(found[28], found[0])

    def test_weights_that_diverged_are_an_error(self):
        pruner = DropPruning(small_net(), EXAMPLE, 20, density=0.3, **FAST)
        masks.dense_weight(pruner.model, "conv1.weight").data[0, 0, 0, 0] = math.nan
        with pytest.raises(CodesignError, match="scores hold NaN"):
            list(walk(pruner, 20))

    def test_what_chance_took_too_much_returns_for_the_exact_target(self):
        pruner = DropPruning(small_net(), EXAMPLE, 20, density={"conv1": 0.3}, **FAST)
        *_, last = walk(pruner, 19)
        masks.set_masks(pruner.model, {"conv1.weight": last["conv1.weight"] & (torch.rand(12, 8, 3, 3) < 0.5)})
        pruner.step()
        assert live(pruner) == {"conv1.weight": 259}

    def test_weights_go_and_return_in_between(self):
        pruner = DropPruning(small_net(), EXAMPLE, 40, density={"conv1": 0.3}, **FAST)
        found = [one["conv1.weight"] for one in walk(pruner, 40)]
        assert any(bool((now & ~before).any()) for before, now in itertools.pairwise(found))
        assert all(not bool((now & ~before).any()) for before, now in itertools.pairwise(found[36:]))

    def test_by_default_the_size_settles_within_the_phase(self):
        pruner = DropPruning(small_net(), EXAMPLE, 1000, density=0.1)
        assert pruner.count * (1 - pruner.closing) >= settling_steps(0.1)
        assert (pruner.last - pruner.first) // (pruner.every + 1) * (1 - pruner.closing) < settling_steps(0.1)

    def test_no_layer_falls_below_its_floor(self):
        model = small_net()
        with torch.no_grad():
            model.conv1.weight.mul_(1e-3)
        options = {"density": 0.2, "p_out": 1.0, "p_in": 0.0, "scope": "global", "layer_floor": 0.5, "frequency": 1}
        pruner = DropPruning(model, EXAMPLE, 30, **options)
        counts = [int(found["conv1.weight"].sum()) for found in walk(pruner, 30)]
        assert counts[-1] == min(counts) == 86  # 0.5 x 0.2 x 864, and 0 without a floor
        assert sum(live(pruner).values()) == 346
        kept = masks.masks_of(pruner.model)["conv1.weight"]
        assert model.conv1.weight.abs()[kept].min() >= model.conv1.weight.abs().flatten().kthvalue(864 - 85).values


class TestReturn:
    @pytest.mark.parametrize("recover", ["zero", "last"])
    @pytest.mark.parametrize("momentum", [0.0, 0.9])
    def test_removed_weights_rest_whatever_the_optimizer_does(self, recover, momentum):
        pruner = DropPruning(small_net(), EXAMPLE, 30, density={"conv1": 0.3}, recover=recover, **FAST)
        loop = Loop(pruner)
        loop.optimizer = torch.optim.SGD(pruner.model.parameters(), 0.05, momentum=momentum, weight_decay=0.1)
        weight = pruner.model.conv1.parametrizations.weight.original
        before = masks.masks_of(pruner.model)["conv1.weight"].clone()
        resting, returned = torch.zeros_like(weight), 0
        for x, y in batches(30):
            loop.optimizer.zero_grad()
            F.cross_entropy(pruner.model(x), y).backward()
            loop.optimizer.step()
            stepped = weight.detach().clone()
            pruner.step()
            after = masks.masks_of(pruner.model)["conv1.weight"].clone()
            if recover == "last":
                resting = torch.where(before & ~after, stepped, resting)
            assert torch.equal(weight[~(before & after)], resting[~(before & after)])
            returned += int((after & ~before).sum())
            before = after
        assert returned > 50

    def test_junk_in_the_momentum_of_removed_weights_changes_nothing_once_settled(self):
        results = []
        for junk in (0.0, 1e3):
            pruner = DropPruning(small_net(), EXAMPLE, 30, density={"conv1": 0.3}, **{**FAST, "end": 0.5})
            loop = Loop(pruner)
            data = batches(30)
            loop.run(data[:15])
            assert pruner.is_settled
            weight = pruner.model.conv1.parametrizations.weight.original
            loop.optimizer.state[weight]["momentum_buffer"][~masks.masks_of(pruner.model)["conv1.weight"]] = junk
            loop.run(data[15:])
            results.append(pruner.finalize().state_dict())
        assert same(*results)


def test_channels_last_changes_nothing():
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        pruner = DropPruning(small_net().train(), EXAMPLE, STEPS, density=0.4, scope="global", recover="last", **FAST)
        pruner.model.to(memory_format=layout)
        *_, last = walk(pruner, STEPS)
        found.append(last)
    assert same(*found)


def test_certain_removal_without_return_is_iterative_magnitude_pruning():
    """Bit for bit, beside a loop that prunes by sorting."""
    data = batches(12)
    pruner = DropPruning(
        small_net(), EXAMPLE, 12, density={"conv1": 0.1}, rho=0.5, p_out=1.0, p_in=0.0, frequency=2, end=1.0
    )
    Loop(pruner).run(data)

    net, target = small_net().train(), math.floor(864 * 0.1 + 0.5)
    mask = torch.ones(12, 8, 3, 3, dtype=torch.bool)
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)
    for step, (x, y) in enumerate(data, start=1):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        net.conv1.weight.grad[~mask] = 0
        optimizer.step()
        with torch.no_grad():
            net.conv1.weight[~mask] = 0
            if step % 2 == 0:
                alive = int(mask.sum())
                count = min(math.floor(alive / 2 + 0.5), alive - target)
                order = net.conv1.weight.abs().masked_fill(~mask, math.inf).flatten().argsort(stable=True)
                mask.view(-1)[order[:count]] = False
                net.conv1.weight[~mask] = 0
    assert int(mask.sum()) == target
    assert torch.equal(masks.masks_of(pruner.model)["conv1.weight"], mask)
    assert torch.equal(pruner.finalize().conv1.weight, net.conv1.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": 1.0}, "density 1.0 removes nothing"),
        ({"density": 0.0}, "density 0.0, must be above 0"),
        ({"density": 0.99, "p_out": 0.5}, "density 0.99 needs p_in .*, more than 1; lower p_out or rho"),
        ({"granularity": "filter"}, "granularity 'filter': Drop Pruning removes single weights; use 'weight'"),
        ({"rho": 0.0}, r"rho 0.0, p_out 0.5, p_in None: each must lie in \(0, 1\]"),
        ({"p_out": 1.5}, r"each must lie in \(0, 1\]"),
        ({"p_in": -0.1}, r"each must lie in \(0, 1\]"),
        ({"p_in": 0.5}, "p_in 0.5 holds the density at 0.909, 0.3 is wanted; leave p_in out"),
        ({"closing": 1.0}, "needs 0 <= closing < 1"),
        ({"recover": "mean"}, "unknown recover 'mean'"),
        ({"total_steps": 8}, "6 pruning steps of rho 0.1, p_out 0.5, p_in .* is wanted; raise p_out or rho, prune"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(CodesignError, match=message):
        DropPruning(small_net(), EXAMPLE, **{"total_steps": 200, "density": 0.3, **options})


def test_the_size_only_falls_towards_the_target_while_p_in_decays():
    """Worked with the recurrence alone: what a step removes makes up for what it returns."""
    pool = Pool(("w",), (10_000,), (1,), 2_000, drop_in_probability(0.2), drop_in_probability(0.2))
    live, sizes = 2_050.0, []
    for share in (0.8, 0.6, 0.4, 0.2, 0.0):
        p_in = share * pool.p_in_fixed
        live = expected_size(live, pool.size, pool.unimportant(live, 0.1, 0.5, p_in), 0.5, p_in)
        sizes.append(live)
    assert sizes == sorted(sizes, reverse=True)
    assert pool.target < sizes[-1] < 1.01 * pool.target


@pytest.mark.parametrize("options", [{"p_in": 0.0}, {"rho": 0.05}, {"p_in": 0.0, "frequency": 2}])
def test_a_density_that_is_reached_before_anything_drops_out_is_no_error(options):
    pruner = DropPruning(small_net(), EXAMPLE, 40, density=0.97, end=1.0, **options)
    for _ in range(40):
        pruner.step()
    shares = [mask.float().mean() for mask in masks.masks_of(pruner.finalize()).values()]
    assert max(shares) < 1
