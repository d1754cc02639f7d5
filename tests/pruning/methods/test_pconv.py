"""PCONV: projections against brute force, the ADMM recurrence by hand, residuals that fall, masks that stay."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning import masks
from pruning.methods.pconv import PConv
from pruning.patterns import PatternLibrary, four_entry_library, natural_library
from pruning.testing import Loop, batches, small_net
from tests.pruning.networks import example, network
from workloads.errors import CodesignError

EXAMPLE = (torch.zeros(2, 3, 8, 8),)
TWO = PatternLibrary(((0, 4), (4, 8)))


class OneLayer(nn.Module):
    """(n, c, 3, 3) -> (n, k)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, bias=False)
        self.conv.weight.data = weight.clone()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).flatten(1)


def prepared(weight: Tensor, total_steps: int = 8, **options) -> PConv:
    options = {"prune_first": True, "prune_last": True, "end": 1.0, **options}
    return PConv(OneLayer(weight), (torch.zeros(1, *weight.shape[1:]),), total_steps, **options)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def energy(weight: Tensor, mask: Tensor) -> float:
    return float(weight.double().square()[mask].sum())


class TestProjections:
    """The nearest member of a set keeps most squared magnitude, so each is compared with all members there are."""

    @pytest.mark.parametrize("filters", [1, 2])
    def test_patterns_are_the_nearest_of_all(self, filters):
        weight = drawn(4, 1, 3, 3)
        pruner = prepared(weight, library=TWO, density=2 / 9, granularity=f"pattern/{filters}")
        found = pruner.pattern_mask("conv.weight", weight)
        choices = itertools.product(TWO.masks(), repeat=4 // filters)
        every = [torch.stack(one).repeat_interleave(filters, 0)[:, None] for one in choices]
        assert any(torch.equal(found, one) for one in every)
        assert energy(weight, found) == pytest.approx(max(energy(weight, one) for one in every))

    @pytest.mark.parametrize(("filters", "balanced"), [(1, False), (1, True), (2, False), (2, True)])
    def test_kernels_are_the_nearest_of_all(self, filters, balanced):
        weight = drawn(4, 3, 3, 3, seed=1) * torch.tensor([3.0, 1.0, 1.0, 1.0]).view(-1, 1, 1, 1)
        pruner = prepared(weight, density=4 / 9 / 3, granularity=f"pattern/{filters}", balanced=balanced)
        found = pruner.kernel_mask("conv.weight", weight)
        rows = 4 // filters
        every = []
        for cells in itertools.combinations(range(3 * rows), rows):  # a third of the kernels
            plane = torch.zeros(rows * 3, dtype=torch.bool).index_fill_(0, torch.tensor(cells), True).view(rows, 3)
            if not balanced or bool((plane.sum(1) == 1).all()):
                every.append(plane.repeat_interleave(filters, 0)[..., None, None].expand(weight.shape))
        assert any(torch.equal(found, one) for one in every)
        assert energy(weight, found) == pytest.approx(max(energy(weight, one) for one in every))

    def test_filters_of_a_transposed_convolution_share_on_their_own_axis(self):
        model = nn.Sequential(nn.ConvTranspose2d(3, 4, 3, bias=False), nn.Flatten())
        pruner = PConv(
            model, (torch.zeros(1, 3, 2, 2),), 4, density={"0": 4 / 27}, granularity="pattern/2", balanced=True, end=1.0
        )
        found = pruner.masks_at(0)["0.weight"].transpose(0, 1)  # (k, c, 3, 3)
        assert torch.equal(found[0::2], found[1::2])
        assert found.any(3).any(2).sum(1).tolist() == [1, 1, 1, 1]


class TestRecurrence:
    def test_the_gradient_of_the_penalty(self):
        pruner = prepared(drawn(3, 2, 3, 3), density=0.2, rho=(0.25, 0.25), frequency=1)
        generator = torch.Generator().manual_seed(5)
        for one in pruner.constraints.values():
            one.nearest.normal_(generator=generator)
            one.dual.normal_(generator=generator)
        pruner.loss().backward()
        weight = masks.trained_weight(pruner.model, "conv.weight")
        pattern, kernel = pruner.constraints.values()
        wanted = 0.25 * (weight - pattern.nearest + pattern.dual) + 0.25 * (weight - kernel.nearest + kernel.dual)
        torch.testing.assert_close(weight.grad, wanted.detach())

    def test_two_updates_by_hand(self):
        weight = torch.zeros(1, 1, 3, 3)
        weight[0, 0, 0, 0], weight[0, 0, 1, 1], weight[0, 0, 2, 2] = 3.0, 5.0, 2.0
        pruner = prepared(weight, 6, library=TWO, density=2 / 9, frequency=2, rho=(1.0, 4.0))
        assert list(pruner.constraints) == ["pattern/conv.weight"]  # no connectivity at 2/9
        one = pruner.constraints["pattern/conv.weight"]
        assert [pruner.rho_at(step) for step in range(6)] == [1, 1, 2, 2, 4, 4]
        assert pruner.loss() == 0  # Z = W, U = 0
        pruner.step()
        assert torch.equal(one.nearest, weight)
        pruner.step()  # keeps 3 and 5; U = 2 at the last place, halved as rho doubles
        assert one.nearest.diagonal(dim1=2, dim2=3).tolist() == [[[3, 5, 0]]]
        assert one.dual.diagonal(dim1=2, dim2=3).tolist() == [[[0, 0, 1]]]
        assert pruner.loss() == 2 / 2 * (2 - 0 + 1) ** 2
        pruner.step()
        pruner.step()  # W + U = (3, 5, 3): a tie, the lower pattern; U = 3, halved
        assert one.nearest.diagonal(dim1=2, dim2=3).tolist() == [[[3, 5, 0]]]
        assert one.dual.diagonal(dim1=2, dim2=3).tolist() == [[[0, 0, 1.5]]]
        assert pruner.loss() == 4 / 2 * (2 - 0 + 1.5) ** 2
        pruner.step()
        assert not pruner.is_settled
        pruner.step()
        assert pruner.is_settled
        assert pruner.loss() == 0
        assert masks.masks_of(pruner.model)["conv.weight"].flatten().nonzero().flatten().tolist() == [0, 4]

    def test_a_dual_takes_up_a_share_of_the_distance(self):
        weight = torch.zeros(1, 1, 3, 3)
        weight[0, 0, 0, 0], weight[0, 0, 1, 1], weight[0, 0, 2, 2] = 3.0, 5.0, 2.0
        pruner = prepared(weight, 6, library=TWO, density=2 / 9, frequency=2, rho=(1.0, 1.0), dual_step=0.25)
        one = pruner.constraints["pattern/conv.weight"]
        for expected in (0.5, 1.0):  # a quarter of the two that were left out; then 2.5 would be, of which W is 2
            pruner.step()
            pruner.step()
            assert one.nearest.diagonal(dim1=2, dim2=3).tolist() == [[[3, 5, 0]]]
            assert one.dual.diagonal(dim1=2, dim2=3).tolist() == [[[0, 0, expected]]]

    def test_nothing_pulls_before_the_beginning(self):
        pruner = PConv(small_net(), EXAMPLE, 8, density=0.2, begin=0.5, end=0.75, frequency=1, rho=(1.0, 1.0))
        loop, pulls = Loop(pruner), []
        for batch in batches(8):
            pulls.append(pruner.loss().item())
            loop.run([batch])
        assert [pull > 0 for pull in pulls] == [False] * 5 + [True] + [False] * 2  # Z = W at step 4, updated at 5

    def test_residuals_fall(self):
        pruner = prepared(drawn(8, 6, 3, 3), 100, density=0.2, frequency=5, rho=(1.0, 3.0))
        x = drawn(64, 6, 3, 3, seed=3)
        y = pruner.model(x).detach()
        optimizer = torch.optim.SGD(pruner.model.parameters(), 0.1)
        residuals = [pruner.residuals()]
        for _ in range(99):
            optimizer.zero_grad()
            (F.mse_loss(pruner.model(x), y) + pruner.loss()).backward()
            optimizer.step()
            pruner.step()
            residuals.append(pruner.residuals())
        for kind in ("kernel", "pattern"):
            assert residuals[0][kind] > 0.5
            assert residuals[40][kind] < residuals[0][kind] / 3
            assert residuals[99][kind] < residuals[0][kind] / 10
        pruner.step()
        assert pruner.residuals() == {}

    def test_a_state_holds_what_goes_on(self):
        pruner = PConv(small_net(), EXAMPLE, 8, density=0.2, library=6, end=1.0, frequency=1)
        Loop(pruner).run(batches(3))
        state = pruner.state_dict()
        other = PConv(small_net(1), EXAMPLE, 8, density=0.2, library=6, end=1.0, frequency=1)
        assert other.library != pruner.library
        other.load_state_dict(state)
        assert other.library == pruner.library
        for key, one in pruner.constraints.items():
            assert torch.equal(other.constraints[key].dual, one.dual)
            assert one.dual.any()


class TestResult:
    def test_patterns_alone(self):
        pruner = PConv(small_net(), EXAMPLE, 4, end=0.5, frequency=1)
        Loop(pruner).run(batches(4))
        allowed = [one.tolist() for one in four_entry_library().masks()]
        for name, mask in masks.masks_of(pruner.model).items():
            assert all(kernel.tolist() in allowed for kernel in mask.flatten(0, 1)), name

    @pytest.mark.parametrize("balanced", [True, False])
    def test_patterns_and_connectivity_by_layer(self, balanced):
        pruner = PConv(
            small_net(), EXAMPLE, 4, density={"conv1": 0.2, "head": 0.25}, balanced=balanced, end=0.5, frequency=1
        )
        Loop(pruner).run(batches(4))
        found = masks.masks_of(pruner.model)
        lengths = found["conv1.weight"].any(3).any(2).sum(1)
        # 0.45 of 12 x 8 kernels is 43.2; of 8 in a filter 3.6
        assert int(lengths.sum()) == (48 if balanced else 43)
        assert (set(lengths.tolist()) == {4}) is balanced
        assert int(found["conv1.weight"].sum()) == 4 * int(lengths.sum())
        assert (
            found["head.weight"].sum(1).tolist() == [2, 2, 2, 2] if balanced else int(found["head.weight"].sum()) == 8
        )

    def test_masks_stay_from_the_hard_step_on(self):
        pruner = PConv(small_net(), EXAMPLE, 8, density=0.2, end=0.5, frequency=1)
        loop = Loop(pruner)
        loop.run(batches(3))
        assert all(mask.all() for mask in masks.masks_of(pruner.model).values())
        loop.run(batches(1))
        before = {name: mask.clone() for name, mask in masks.masks_of(pruner.model).items()}
        loop.run(batches(4))
        assert all(torch.equal(mask, before[name]) for name, mask in masks.masks_of(pruner.model).items())

    def test_pointwise_layers_lose_weights_or_are_left(self):
        pruner = PConv(network("Fire"), example(), 2, density=0.2, end=0.5)
        pruner.step()
        found = masks.masks_of(pruner.model)
        assert int(found["left.weight"].sum()) == 10  # of 48
        assert int(found["right.weight"].any(3).any(2).sum()) == 27  # 0.45 of 10 x 6 kernels
        left = PConv(network("Fire"), example(), 2, density=0.3, end=0.5, prune_pointwise=False)
        assert left.names == ("right.weight", "grow.weight")

    def test_global_shares_follow_the_energy_of_kernels(self):
        """One layer of 100 times the others' weights takes all that the floors of the others leave."""
        model = small_net()
        for name, parameter in model.named_parameters():
            if name == "conv2.weight":
                parameter.data *= 100
        one = {"density": 2 / 9, "scope": "global", "prune_last": True, "library": four_entry_library()}
        pruner = PConv(model, EXAMPLE, 8, **one, layer_floor=0.1)
        uniform = PConv(model, EXAMPLE, 8, density=2 / 9, prune_last=True, library=four_entry_library())
        assert pruner.shares["conv2.weight"] > 0.9 > 0.6 > uniform.shares["conv2.weight"]
        for name in ("conv1.weight", "head.weight"):
            assert pruner.shares[name] == pytest.approx(0.1 * uniform.shares[name], abs=1 / 32)
        weights = {name: masks.dense_weight(model, name).numel() for name in pruner.names}
        most = {name: 4 / 9 if name in pruner.patterned else 1.0 for name in pruner.names}

        def kept(shares):
            return sum(share * most[name] * weights[name] for name, share in shares.items())

        assert kept(uniform.shares) - 4 < kept(pruner.shares) <= kept(uniform.shares) + 0.5
        whole = PConv(model, EXAMPLE, 8, **one, layer_floor=1.0)
        assert whole.shares == pytest.approx(uniform.shares, abs=0.05)

    def test_single_weights_and_kernels_compare_by_energy_a_weight(self):
        """A kernel of four ones has energy 4 but 1 a weight; a single weight of 1.5 has 2.25 and goes later."""
        model = small_net()
        for name, parameter in model.named_parameters():
            parameter.data.fill_(1.5 if name == "head.weight" else 1.0)
        pruner = PConv(model, EXAMPLE, 8, density=0.3, scope="global", layer_floor=0.1, prune_last=True)
        assert pruner.shares["head.weight"] == 1.0

    def test_a_density_a_hair_below_four_ninths_has_no_constraint_on_kernels(self):
        pruner = PConv(small_net(), EXAMPLE, 8, density=0.4444, prune_pointwise=False)
        assert {key.partition("/")[0] for key in pruner.constraints} == {"pattern"}

    @pytest.mark.parametrize(("steps", "every"), [(4, 1), (40, 6), (200, 20), (2000, 33)])
    def test_a_short_phase_is_updated_too(self, steps, every):
        """Half of the steps are the phase: a third of it, 20, or a thirtieth."""
        assert PConv(small_net(), EXAMPLE, steps).frequency == every

    def test_mined_patterns_are_the_models_own(self):
        model = small_net()
        pruner = PConv(model, EXAMPLE, 4, library=8)
        assert pruner.library == natural_library([model.conv1.weight, model.conv2.weight], 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"granularity": "window"}, "granularity 'window': pconv has pattern, and pattern/4"),
        ({"density": 0.5}, "density 0.5 of 'conv1.weight', must be above 0 and at most 0.4444"),
        ({"density": {"head": 1.5}}, "density 1.5 of 'head.weight', must be above 0 and at most 1"),
        ({"density": {"head": 1.0}}, "density 1 removes nothing"),
        ({"density": 0.0}, "density 0 of"),
        ({"rho": (0.0, 1.0)}, "rho .* needs 0 < first <= last"),
        ({"rho": (1.0, 0.1)}, "rho .* needs 0 < first <= last"),
        ({"dual_step": 0.0}, "option dual_step=0.0 of pconv: must be above 0 and at most 1"),
        ({"begin": 0.5, "end": 0.5}, "must be 0 <= begin < end <= 1"),
        ({"frequency": 0}, "frequency"),
        ({"library": 57}, r"57 patterns asked for, possible are 1\.\.56"),
        ({"library": 4, "density": {"head": 0.5}}, "natural patterns need 3x3 kernels"),
        ({"scope": "global", "density": {"head": 0.5}}, "scope 'global' ranks single weights by one density"),
        ({"scope": "global", "layer_floor": 2}, r"layer_floor 2, must lie in 0\.\.1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(CodesignError, match=message) as caught:
        PConv(small_net(), EXAMPLE, 8, **options)
    assert "\n" not in str(caught.value)


def test_other_kernels_are_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 5), nn.Flatten())
    with pytest.raises(CodesignError, match=r"patterns need kernels of 3x3, '0.weight' is \(4, 3, 5, 5\); keep that"):
        PConv(model, EXAMPLE, 4, density={"0": 0.3})
