"""The memory of traced structures: what must be told apart, what must be found again, and what it must not keep."""

import copy
import dataclasses
import gc
import types
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

from workloads import lowering
from workloads.lowering import lower, lower_with_weights
from workloads.lowering_cache import STRUCTURES, StructureCache, structure_key
from workloads.models import build, example_input

X = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
SLOPE = 0.5  # read by a forward pass below
SETTINGS = types.ModuleType("settings")
SETTINGS.is_wide = False


@pytest.fixture(autouse=True)
def traced(monkeypatch):
    """Number of structures traced so far; starts with nothing remembered."""
    STRUCTURES.clear()
    count = []
    make = lowering._structure

    def counted(*arguments):
        count.append(1)
        return make(*arguments)

    monkeypatch.setattr(lowering, "_structure", counted)
    yield count
    STRUCTURES.clear()


class Flagged(nn.Module):
    def __init__(self, **attributes):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        flag = getattr(self, "flag", None)
        y = F.conv2d(x, self.conv.weight, self.conv.bias, stride=getattr(self, "stride", 1), padding=1)
        if callable(flag):
            return flag(y)
        if dataclasses.is_dataclass(flag):
            return y * flag.factor
        if isinstance(flag, dict):
            return y * flag["factor"]
        return F.relu(y) if flag else torch.sigmoid(y)


@dataclasses.dataclass
class Options:
    factor: float


def scaled(factor):
    return lambda x: x * factor


def with_default(factor):
    def function(x, by=factor):
        return x * by

    return function


class TestTellsApart:
    """Pairs that differ in nothing but what is said: each must be traced."""

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            ({"flag": True}, {"flag": False}),
            ({"flag": 2.0}, {"flag": 0}),
            ({"flag": True, "stride": (1, 1)}, {"flag": True, "stride": (1, 2)}),
            ({"flag": True, "stride": [1, 1]}, {"flag": True, "stride": [2, 2]}),
            ({"flag": torch.relu}, {"flag": torch.tanh}),
            ({"flag": F.relu}, {"flag": F.silu}),
            ({"flag": scaled(2)}, {"flag": scaled(3)}),
            ({"flag": with_default(2)}, {"flag": with_default(3)}),
            ({"flag": lambda x: x + 1}, {"flag": lambda x: x + 2}),
            ({"flag": Options(2.0)}, {"flag": Options(3.0)}),
            ({"flag": {"factor": 2}}, {"flag": {"factor": 3}}),
            ({"flag": nn.ReLU()}, {"flag": nn.Tanh()}),
            ({"flag": nn.ELU(1.0)}, {"flag": nn.ELU(0.5)}),
        ],
    )
    def test_attributes(self, traced, first, second):
        a, b = lower(Flagged(**first), X), lower(Flagged(**second), X)
        assert len(traced) == 2
        assert a != b
        STRUCTURES.clear()
        assert lower(Flagged(**second), X) == b

    def test_an_attribute_that_is_changed(self, traced):
        net = Flagged(flag=True)
        assert lower(net, X)["conv"].activation == "relu"
        net.flag = False
        assert lower(net, X)["conv"].activation == "sigmoid"
        net.flag = True
        assert lower(net, X)["conv"].activation == "relu"
        assert len(traced) == 2

    def test_shapes_types_and_the_treatment_of_unknown_operators(self):
        net = Flagged(flag=torch.exp)
        lower(net, X, on_unknown="vector")
        with pytest.raises(lowering.LoweringError, match="exp"):
            lower(net, X)
        net = Flagged(flag=True)
        assert lower(net, X[:, :, :4]).inputs[0].shape == (1, 4, 4, 8)
        assert lower(net, X).inputs[0].shape == (1, 4, 8, 8)
        assert lower(net.half(), X.half()).inputs[0].activation_bits == 16

    def test_a_global_number_and_a_setting_of_another_module(self, monkeypatch):
        class Global(nn.Module):
            def forward(self, x):
                return F.leaky_relu(x, SLOPE) if SETTINGS.is_wide else helped(x)

        assert lower(Global(), X).layers[1].attributes["kind"] == "leaky_relu(0.5)"
        monkeypatch.setitem(globals(), "SLOPE", 0.25)
        assert lower(Global(), X).layers[1].attributes["kind"] == "leaky_relu(0.25)"
        net = Global()
        lower(net, X)
        monkeypatch.setattr(SETTINGS, "is_wide", True)
        monkeypatch.setitem(globals(), "helped", None)
        assert lower(net, X).layers[1].attributes["kind"] == "leaky_relu(0.25)"

    def test_code_that_is_replaced(self, monkeypatch):
        net = Flagged(flag=True)
        assert lower(net, X)["conv"].activation == "relu"
        with monkeypatch.context() as patch:
            patch.setattr(Flagged, "forward", lambda self, x: torch.tanh(self.conv(x)))
            assert lower(net, X)["conv"].activation == "tanh"
        net.forward = types.MethodType(lambda self, x: F.silu(self.conv(x)), net)
        assert lower(net, X)["conv"].activation == "silu"
        del net.forward
        assert lower(net, X)["conv"].activation == "relu"

    def test_a_hook(self):
        net = Flagged(flag=True)
        lower(net, X)
        handle = net.register_forward_hook(lambda module, inputs, output: output * 2)
        assert len(lower(net, X).layers) == 3
        handle.remove()
        assert len(lower(net, X).layers) == 2

    def test_classes_of_one_name(self):
        def make(function):
            class Net(nn.Module):
                def forward(self, x):
                    return function(x)

            return Net()

        kinds = [lower(make(function), X).layers[1].attributes["kind"] for function in (torch.relu, torch.tanh)]
        assert kinds == ["relu", "tanh"]

    def test_shared_and_separate(self, traced):
        conv = nn.Conv2d(4, 4, 1)
        shared = lower(nn.Sequential(conv, conv), X)
        separate = lower(nn.Sequential(conv, copy.deepcopy(conv)), X)
        assert shared.source_parameters * 2 == separate.source_parameters
        tied = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
        tied[1].weight = tied[0].weight
        assert lower(tied, X)["1"].weight == "0.weight"
        assert len(traced) == 3

    def test_dims(self, traced):
        for model in (build("resnet20"), build("resnet20", num_classes=7), build("resnet32")):
            lower(model, example_input("resnet20"))
        assert len(traced) == 3


def helped(x):
    return F.leaky_relu(x, SLOPE)


class TestFindsAgain:
    @pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "squeezenet1_1", "digits_cnn", "vgg16_cifar"])
    def test_another_instance_of_a_model(self, traced, name):
        x = example_input(name)
        first, second = (lower(build(name, seed=seed).train(bool(seed)), x) for seed in (0, 1))
        assert len(traced) == 1
        without_zeros = ([dataclasses.replace(layer, sparsity=None) for layer in graph] for graph in (first, second))
        assert next(without_zeros) == next(without_zeros)
        assert hash(structure_key(build(name), (x,), "error")) == hash(structure_key(build(name), (x,), "error"))

    @pytest.mark.parametrize(
        "make",
        [
            lambda: nn.LSTM(8, 4, 2, bidirectional=True),
            lambda: nn.Sequential(nn.Flatten(2), nn.MultiheadAttention(64, 4))[0],
            lambda: nn.TransformerEncoderLayer(8, 2),
            lambda: Flagged(flag=scaled(2)),
            lambda: Flagged(flag=Options(3.0)),
        ],
    )
    def test_modules_of_torch_and_functions(self, traced, make):
        x = X if not isinstance(make(), nn.LSTM | nn.TransformerEncoderLayer) else X[0]
        lower(make(), x, on_unknown="vector")
        lower(make(), x, on_unknown="vector")
        assert len(traced) == 1

    def test_weights_are_read_afresh(self, traced):
        net = Flagged(flag=True)
        assert lower(net, X)["conv"].sparsity is None
        with torch.no_grad():
            net.conv.weight[1] = 0
            net.conv.bias[2] = 7
        graph, arrays = lower_with_weights(net, X)
        assert graph["conv"].sparsity.zero_filters == 1
        assert arrays["conv.bias"][2] == 7
        net.conv.weight = nn.Parameter(torch.ones(4, 4, 3, 3))
        assert lower(net, X)["conv"].sparsity is None
        assert len(traced) == 1
        net.conv.weight.data[0, 0, 0, 0] = torch.nan
        with pytest.raises(lowering.LoweringError, match=r"conv\.weight"):
            lower(net, X)

    def test_norms_are_read_afresh(self, traced):
        net = nn.Sequential(nn.Conv2d(4, 2, 1, bias=False), nn.BatchNorm2d(2))
        _, before = lower_with_weights(net, X)
        net[1].running_var.fill_(4.0 - net[1].eps)
        net[1].weight.data[1] = 0
        graph, after = lower_with_weights(net, X)
        assert len(traced) == 1
        torch.testing.assert_close(after["0.weight"][0] * 2, before["0.weight"][0])
        assert graph["0"].sparsity.zero_filters == 1


class TestKeepsNothing:
    @pytest.mark.parametrize("make", [lambda: Flagged(flag=True), lambda: build("digits_cnn")])
    def test_models_die(self, make):
        net = make()
        lower_with_weights(net, X if isinstance(net, Flagged) else example_input("digits_cnn"))
        dead = [weakref.ref(net), *(weakref.ref(parameter) for parameter in net.parameters())]
        del net
        gc.collect()
        assert len(STRUCTURES) == 1
        assert [ref() for ref in dead] == [None] * len(dead)

    @pytest.mark.parametrize("value", [torch.ones(1), iter([1]), object(), [torch.ones(2)]])
    def test_what_has_no_form_is_traced_each_time(self, traced, value):
        net = Flagged(flag=True, extra=value)
        lower(net, X)
        lower(net, X)
        assert (len(traced), len(STRUCTURES)) == (2, 0)

    def test_pruned_by_torch_is_traced_each_time_and_right(self, traced):
        net = Flagged(flag=True)
        prune.l1_unstructured(net.conv, "weight", amount=10)
        net(X)
        assert [lower(net, X)["conv2d"].sparsity.nonzeros for _ in range(2)] == [134, 134]
        assert len(traced) == 2

    def test_the_oldest_is_forgotten(self):
        cache = StructureCache(capacity=2)
        made = [cache.get(key, object) for key in "abab"]  # type: ignore[arg-type]
        assert made[:2] == made[2:]
        cache.get("c", object)  # type: ignore[arg-type]
        assert len(cache) == 2
        assert cache.get("a", object) is not made[0]  # type: ignore[arg-type]
