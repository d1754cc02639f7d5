"""Every registered method keeps the contract; magnitude pruning removes exactly what it should."""

import copy
import functools
import importlib.metadata
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pruning.methods as registry
from pruning import masks
from pruning.methods import Pruner, method, methods
from pruning.methods.magnitude import GradualMagnitude, OneShotMagnitude
from pruning.shrink import shrink
from pruning.testing import STEPS, Loop, PrunerContract, UnfinishedContract, batches, small_net
from tests.pruning.networks import example, network
from workloads.errors import CodesignError, ConfigError, PlanError

EXAMPLE = (torch.zeros(2, 3, 8, 8),)
CONFIGURATIONS = [(name, example) for name, found in methods().items() for example in found.EXAMPLES]


@pytest.mark.parametrize(("name", "options"), CONFIGURATIONS, ids=lambda value: str(value))
class TestContract(PrunerContract):
    @pytest.fixture
    def prune(self, name, options):
        data = {"data": batches(2, seed=1)} if method(name).NEEDS_DATA else {}
        return functools.partial(method(name), **options, **data)


USUAL = {"density": 0.5, "prune_first": True, "prune_last": True}
ON_RECURRENT = {  # what a method needs on a network of a convolution, an LSTM and a classifier; None: refuses it
    "drop_pruning": {**USUAL, "rho": 0.5, "end": 1.0},
    "hybrid_pruning": {"tolerance": 1.0, "prune_first": True},
    "n_m": {"prune_first": True},
    "network_pruning_network": {"strength": 20.0, "lr": 0.5, "end": 0.75},
    **{name: {"density": {"head": 0.3}} for name in ("campfire", "pconv")},
    **dict.fromkeys(("bn_gamma", "fpgm", "l1_filter", "taylor_filter"), None),
}


@pytest.mark.parametrize("name", [name for name in methods() if ON_RECURRENT.get(name, USUAL) is not None])
class TestRecurrent(UnfinishedContract):
    network = staticmethod(lambda seed: network("Recurrent", seed))

    @pytest.fixture
    def prune(self, name):
        data = {"data": batches(2, seed=1)} if method(name).NEEDS_DATA else {}
        return functools.partial(method(name), **ON_RECURRENT.get(name, USUAL), **data)


@pytest.mark.parametrize("name", [name for name, found in methods().items() if "frequency" in found.options()])
def test_updates_are_at_least_a_step_apart(name):
    data = {"data": batches(1)} if method(name).NEEDS_DATA else {}
    with pytest.raises(PlanError, match=f"option frequency=0 of {name}: must be at least 1: optimizer steps"):
        method(name)(small_net(), EXAMPLE, 8, frequency=0, **data)


@pytest.mark.parametrize(
    ("name", "options"),
    [each for each in CONFIGURATIONS if not method(each[0]).IS_LEARNED],
    ids=lambda value: str(value),
)
def test_a_schedule_can_be_carried_out_without_training(name, options):
    data = {"data": batches(2, seed=1)} if method(name).NEEDS_DATA else {}
    pruner = method(name)(small_net(), EXAMPLE, 64, **options, **data)
    for _ in range(64):
        pruner.step()
    assert pruner.is_settled
    left, before = (sum(int(p.count_nonzero()) for p in net.parameters()) for net in (pruner.finalize(), small_net()))
    assert left < before


class Mixed(nn.Module):
    """Weights of kinds that methods prune, and of kinds that they do not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.matrix = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.first(x)) @ self.matrix
        return self.last(self.attention(x, x, x)[0])


@pytest.mark.parametrize("name", ["gradual_magnitude", "learned_threshold"])
def test_what_stays_dense_is_said(name):
    pruner = method(name)(Mixed(), (torch.zeros(2, 5, 8),), total_steps=8, density=0.5)
    chosen, idle, others = pruner.notes
    assert chosen == "left dense, as first layer, classifier or asked for: first, last"
    assert idle == "left dense, since no call of theirs was seen: attention.out_proj"
    assert others.endswith("are pruned: matrix (Mixed), attention.in_proj_weight (MultiheadAttention)")
    with pytest.raises(PlanError, match=r"nothing to prune: left dense.* matrix \(Mixed\).*; try prune_first=True"):
        method(name)(Mixed(), (torch.zeros(2, 5, 8),), total_steps=8, density=0.5, keep=["second"])


class TestRegistry:
    def test_every_method_has_its_own_name(self):
        assert {"one_shot_magnitude", "gradual_magnitude"} <= set(methods())
        assert all(found.name == name and issubclass(found, Pruner) for name, found in methods().items())

    def test_unknown_name(self):
        with pytest.raises(ConfigError, match="unknown pruning method 'gradual_magnitud'; did you mean 'gradual_m"):
            method("gradual_magnitud")

    def test_a_broken_entry_point_says_so(self, monkeypatch):
        point = importlib.metadata.EntryPoint("mine", "no_such_module", registry.ENTRY_POINTS)
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point])
        registry._discover.cache_clear()
        with pytest.raises(ConfigError, match=r"entry point 'mine' of codesign\.pruners: no_such_module fails"):
            methods()
        monkeypatch.undo()
        registry._discover.cache_clear()
        assert "gradual_magnitude" in methods()


def kept(model: nn.Module) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in masks.masks_of(model).items()}


class TestOneShot:
    def test_exact_counts_layer_by_layer(self):
        pruner = OneShotMagnitude(small_net(), EXAMPLE, density=0.3)
        assert kept(pruner.model) == {"conv1.weight": round(864 * 0.3), "conv2.weight": round(864 * 0.3)}

    def test_first_layer_and_classifier_only_when_asked(self):
        pruner = OneShotMagnitude(small_net(), EXAMPLE, density=0.5, prune_first=True, prune_last=True)
        assert kept(pruner.model) == {"stem.weight": 108, "conv1.weight": 432, "conv2.weight": 432, "head.weight": 16}

    def test_densities_by_name(self):
        pruner = OneShotMagnitude(small_net(), EXAMPLE, density={"conv1": 0.25, "head": 0.5})
        assert kept(pruner.model) == {"conv1.weight": 216, "head.weight": 16}

    def test_global_scope_ranks_all_weights_together(self):
        model = small_net()
        with torch.no_grad():
            model.conv1.weight.mul_(10)
        pruner = OneShotMagnitude(model, EXAMPLE, density=0.5, scope="global")
        counts = kept(pruner.model)
        assert sum(counts.values()) == 864
        assert counts["conv1.weight"] > 6 * counts["conv2.weight"]
        sizes = [model.get_parameter(name).abs() for name in counts]
        found = [masks.masks_of(pruner.model)[name] for name in counts]
        threshold = min(size[mask].min() for size, mask in zip(sizes, found, strict=True))
        assert all((size[~mask] <= threshold).all() for size, mask in zip(sizes, found, strict=True))

    def test_zeros_survive_training(self):
        pruner = OneShotMagnitude(small_net(), EXAMPLE, total_steps=5, density=0.3)
        before = masks.masks_of(pruner.finalize())
        Loop(pruner).run(batches(5))
        after = pruner.finalize()
        assert all(torch.equal(mask, before[name]) for name, mask in masks.masks_of(after).items())
        assert after.conv1.weight.count_nonzero() == 259


class TestGradual:
    def test_follows_the_curve_worked_by_hand(self):
        pruner = GradualMagnitude(small_net(), EXAMPLE, 8, density={"conv1": 0.2}, begin=0.25, end=0.75, frequency=1)
        counts = []
        loop = Loop(pruner)
        for batch in batches(8):
            loop.run([batch])
            counts.append(kept(pruner.model)["conv1.weight"])
        # sparsity 0.8 (1 - (1 - (t - 2) / 4)^3) at steps 2 .. 6: 0, 0.4625, 0.7, 0.7875, 0.8
        wanted = [1, 1, 1 - 0.4625, 0.3, 1 - 0.7875, 0.2, 0.2, 0.2]
        assert counts == [int(864 * share + 0.5) for share in wanted]

    def test_each_layer_has_its_own_final_density(self):
        pruner = GradualMagnitude(small_net(), EXAMPLE, 4, density={"conv1": 0.5, "conv2": 0.25}, end=1.0)
        Loop(pruner).run(batches(4))
        assert kept(pruner.model) == {"conv1.weight": 432, "conv2.weight": 216}

    def test_a_removed_weight_can_come_back(self):
        pruner = GradualMagnitude(small_net(), EXAMPLE, 4, density=0.5, frequency=1, end=1.0)
        loop = Loop(pruner)
        loop.run(batches(2))
        removed = ~masks.masks_of(pruner.model)["conv1.weight"]
        place = tuple(torch.nonzero(removed)[0])
        with torch.no_grad():
            pruner.model.conv1.parametrizations.weight.original[place] = 100.0
        loop.run(batches(1))
        assert masks.masks_of(pruner.model)["conv1.weight"][place]


@pytest.mark.parametrize("build", [OneShotMagnitude, GradualMagnitude])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": 1.0}, "removes (none|nothing)"),
        ({"density": 0.0}, "density|sparsity"),
        ({"density": 1.5}, "density|sparsity"),
        ({"density": {"conv3": 0.5}}, "unknown layer with weights 'conv3'; did you mean 'conv"),
        ({"density": {"conv1": 2.0}}, "density|sparsity"),
        ({"density": {}}, "nothing to prune"),
        ({"keep": ("norm",)}, "unknown layer with weights 'norm'"),
        ({"keep": ("conv1", "conv2")}, "nothing to prune: left dense.*: stem, conv1, conv2, head; try prune_first"),
        ({"granularity": "filtre"}, "unknown granularity"),
        ({"scope": "both"}, "unknown scope"),
        ({"scope": "global", "density": {"conv1": 0.5}}, "scope 'global' ranks single weights"),
        ({"scope": "global", "granularity": "kernel"}, "scope 'global' ranks single weights"),
        ({"total_steps": 0}, "total_steps 0, must be at least 1"),
    ],
)
def test_bad_options(build, options, message):
    with pytest.raises(CodesignError, match=message):
        build(small_net(), EXAMPLE, **{"total_steps": 8, **options})


def phases():
    """Fractions that bound no phase, for every method that has one."""
    for name, found in methods().items():
        wrong = {"begin": [-0.25, 0.9], "end": [-0.25, 1.5]}
        yield from ((name, option, value) for option in wrong.keys() & found.options() for value in wrong[option])


@pytest.mark.parametrize(("name", "option", "value"), sorted(phases(), key=str))
def test_a_phase_out_of_order_or_out_of_the_training(name, option, value):
    found = method(name)
    data = {"data": batches(2, seed=1)} if found.NEEDS_DATA else {}
    with pytest.raises(PlanError, match=rf"options? .*{option}={value}.* of {name}: must be .* 1") as caught:
        found(small_net(), EXAMPLE, 8, **{**found.EXAMPLES[0], "end": 0.8, **data, option: value})
    assert "\n" not in str(caught.value)


def test_a_phase_without_a_step():
    with pytest.raises(PlanError, match=r"options begin=0\.5, end=0\.51 of gradual_magnitude: both are step 4 of 8"):
        GradualMagnitude(small_net(), EXAMPLE, 8, begin=0.5, end=0.51)


def test_a_model_without_weights():
    with pytest.raises(PlanError, match="no layer with weights to prune"):
        OneShotMagnitude(nn.Sequential(nn.BatchNorm2d(3)), EXAMPLE)


def test_state_of_another_method_is_refused():
    one = OneShotMagnitude(small_net(), EXAMPLE, 8)
    with pytest.raises(PlanError, match="pruner state has method 'one_shot_magnitude'"):
        GradualMagnitude(small_net(), EXAMPLE, 8).load_state_dict(one.state_dict())
    with pytest.raises(PlanError, match="pruner state has total_steps 8, this one is made for 9"):
        OneShotMagnitude(small_net(), EXAMPLE, 9).load_state_dict(one.state_dict())


@pytest.mark.parametrize(
    ("mine", "message"),
    [
        ({"density": 0.4}, "has density 0.3, this one is made for 0.4"),
        ({"density": 0.3, "granularity": "filter"}, "has granularity 'weight', this one is made for 'filter'"),
        ({"density": 0.3, "keep": ["conv1"]}, r"has keep \[\], this one is made for \['conv1'\]"),
        ({"density": {"conv1": 0.3}}, r"has density 0.3, this one is made for \{'conv1': 0.3\}"),
    ],
)
def test_state_of_other_options_is_refused(mine, message):
    state = GradualMagnitude(small_net(), EXAMPLE, 8, density=0.3).state_dict()
    GradualMagnitude(small_net(), EXAMPLE, 8, density=0.3, keep=(), end=0.75).load_state_dict(state)
    with pytest.raises(PlanError, match=message):
        GradualMagnitude(small_net(), EXAMPLE, 8, **mine).load_state_dict(state)


class TestFilters:
    """A filter goes with its bias and its batch norm, so that its output is exactly zero."""

    @pytest.mark.parametrize("method", [OneShotMagnitude, GradualMagnitude])
    def test_outputs_of_removed_filters_are_zero(self, method):
        pruner = method(small_net(), EXAMPLE, 4, density={"conv1": 0.5, "stem": 0.25}, granularity="filter")
        Loop(pruner).run(batches(4))
        baked = pruner.finalize().eval()
        assert {name for name, mask in masks.masks_of(baked).items() if not mask.all()} == {
            "stem.weight", "stem.bias", "norm.weight", "norm.bias", "conv1.weight", "norm1.weight", "norm1.bias",
        }  # fmt: skip
        outputs = {}
        for name in ("norm", "norm1"):
            baked.get_submodule(name).register_forward_hook(lambda _m, _x, y, name=name: outputs.update({name: y}))
        baked(batches(1)[0][0])
        for name, kept in (("norm", 2), ("norm1", 6)):
            is_zero = (outputs[name] == 0).all((0, 2, 3))
            assert int((~is_zero).sum()) == kept
            assert torch.equal(~is_zero, masks.masks_of(baked)[f"{name}.weight"])

    def test_filters_of_a_transposed_convolution_are_its_outputs(self):
        model = network("Normalised")
        pruner = OneShotMagnitude(model, example(), density={"up": 0.25}, granularity="filter")
        found = masks.masks_of(pruner.model)
        assert (found["up.weight"].sum((0, 2, 3)) > 0).tolist() == found["up.bias"].tolist()
        assert int(found["up.bias"].sum()) == 2

    @pytest.mark.parametrize(
        ("name", "layer", "message"),
        [
            ("Gated", "conv1", "filters of 'conv1' cannot be masked alone: 'conv1' applies sigmoid"),
            ("SqueezeExcite", "up", "applies sigmoid, which does not map zero to zero"),
            ("Fire", "left", "'norm' normalises and shifts them"),
            ("PreActivation", "conv1", "prune the channel group instead, or keep the layer"),
        ],
    )
    def test_what_would_still_be_seen_is_refused(self, name, layer, message):
        if (name, layer) == ("PreActivation", "conv1"):  # its norm follows at once and is folded: nothing to refuse
            OneShotMagnitude(network(name), example(), density={layer: 0.5}, granularity="filter")
            layer = "stem"
        with pytest.raises(PlanError, match=message):
            OneShotMagnitude(network(name), example(), density={layer: 0.5}, granularity="filter")

    def test_readers_that_add_or_multiply_are_fine(self):
        for name, layer in (("Residual", "outer.0"), ("SqueezeExcite", "conv"), ("Chain", "conv1")):
            pruner = OneShotMagnitude(network(name), example(), density={layer: 0.5}, granularity="filter")
            assert masks.masks_of(pruner.model)[f"{layer}.weight"].flatten(1).any(1).float().mean() == 0.5


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gradual_magnitude", {}),
        ("gradual_magnitude", {"scope": "global"}),
        ("one_shot_magnitude", {}),
        ("random", {}),
        ("random", {"at_once": True}),
        ("drop_pruning", {"rho": 0.5, "frequency": 1, "end": 0.75}),
        ("drop_pruning", {"rho": 0.5, "frequency": 1, "end": 0.75, "scope": "global"}),
        ("drop_pruning", {"rho": 0.5, "frequency": 1, "end": 0.75, "recover": "last"}),
    ],
)
def test_what_an_earlier_pruning_removed_counts_as_removed(name, options):
    """Training in between gives returned weights values again: masks say what stays, and no zero comes back."""
    first = OneShotMagnitude(small_net(), EXAMPLE, density=0.5, granularity="weight").finalize()
    pruner = method(name)(first, EXAMPLE, 40, density=0.3, **options)
    loop = Loop(pruner)
    for _ in range(5):
        loop.run(batches(STEPS))
    done = pruner.finalize()
    kept = {key: (weight != 0) for key, weight in done.named_parameters() if key in pruner.names}
    sizes = sum(mask.numel() for mask in kept.values())
    assert sum(int(mask.sum()) for mask in kept.values()) == pytest.approx(0.3 * sizes, abs=10)
    before = dict(first.named_parameters())
    assert all(not (mask & (before[key] == 0)).any() for key, mask in kept.items())


def test_drop_pruning_refuses_a_density_that_an_earlier_pruning_reached():
    first = OneShotMagnitude(small_net(), EXAMPLE, density=0.2).finalize()
    with pytest.raises(PlanError, match=r"density 0\.3 removes nothing"):
        method("drop_pruning")(first, EXAMPLE, 40, density=0.3)


def test_modules_are_kept_with_all_their_layers():
    block = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1))
    parts = {"first": nn.Conv2d(3, 8, 1), "block": block, "block2": nn.Conv2d(8, 8, 1), "last": nn.Conv2d(8, 2, 1)}
    net = nn.Sequential(OrderedDict(parts))
    for name in ("gradual_magnitude", "learned_threshold"):
        assert method(name)(net, EXAMPLE, 8, density=0.5, keep=["block"]).names == ("block2.weight",)
    with pytest.raises(PlanError, match="unknown layer with weights 'bloc'"):
        method("gradual_magnitude")(net, EXAMPLE, 8, density=0.5, keep=["bloc"])


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
@pytest.mark.parametrize("name", ["gradual_magnitude", "learned_threshold", "n_m", "pconv"])
def test_weights_that_are_computed_are_named(name, norm):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), norm(nn.Conv2d(8, 8, 3)), nn.Conv2d(8, 2, 1))
    density = {} if name == "n_m" else {"density": 0.5}
    with pytest.raises(
        PlanError, match=r"the weight of '1' is computed by _(Weight|Spectral)Norm; .*, or give .* keep"
    ):
        method(name)(net, EXAMPLE, 8, **density)


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
def test_a_network_that_cannot_be_copied_is_refused():
    with pytest.raises(PlanError, match="Sequential cannot be copied, and a copy is what is pruned"):
        method("gradual_magnitude")(nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 8, 3))), EXAMPLE, 8, density=0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_gates_are_of_the_type_of_their_weights(dtype):
    pruner = method("network_pruning_network")(small_net().to(dtype), (EXAMPLE[0].to(dtype),), 8, budget=0.6)
    assert pruner.model.train()(EXAMPLE[0].to(dtype)).dtype == dtype


def test_answers_that_are_no_tensor_are_refused():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small_net()

        def forward(self, x):
            return {"logits": self.net(x)}

    with pytest.raises(ConfigError, match="the network answers with dict, and a class is chosen by one tensor"):
        method("taylor_filter")(Named(), EXAMPLE, 8, density=0.5, data=batches(2))


def test_operators_without_a_table_keep_their_channels():
    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            return self.c(self.b(F.relu(self.a(x))).flip(1))

    pruner = method("l1_filter")(Normalised(), EXAMPLE, 8, density=0.5, end=0.5)
    for _ in range(8):
        pruner.step()
    small = shrink(pruner.finalize(), EXAMPLE).model
    assert (small.a.out_channels, small.b.out_channels) == (4, 8)


def test_a_pruner_network_at_work_is_not_copied():
    pruner = method("network_pruning_network")(small_net(), EXAMPLE, 8)
    with pytest.raises(PlanError, match="a pruner of network_pruning_network cannot be copied"):
        copy.deepcopy(pruner)
    assert copy.deepcopy(pruner.model) is not pruner.model
