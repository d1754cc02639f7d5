"""The zoo: published parameter counts and names, repeatable building, strict weights, and what bad files answer."""

import importlib
import importlib.metadata
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from accel_models import target
from workloads import data
from workloads.errors import ConfigError, DataError
from workloads.lowering import lower
from workloads.models import build, example_input, find, is_entry, models, pretrained_path, registry
from workloads.models.weights import load_weights, save_weights

PUBLISHED_PARAMETERS = {
    "alexnet": 61_100_840,  # torchvision's documentation, as all ImageNet rows but MobileNetV1
    "alexnet_2012": 60_965_224,  # Caffe's bvlc_alexnet
    "autoencoder": 269_992 - 2 * (8 * 128 + 8),  # Keras' total less the statistics of the norms, as the next but one
    "efficientnet_b0": 5_288_548,
    "mnasnet": 4_383_312,
    "mixnet_s": 4_134_606,  # imgclsmob's table; timm rounds it to 4.13 M
    "ds_cnn": 24_908 - 2 * 9 * 64,
    "mobilenet_v1_vww": 221_794 - 3 * 2_736,  # of its 2,736 norms the statistics, and the biases before them
    "lenet5": 431_080,
    "mobilenet_v1": 4_231_976,  # trainable parameters of Keras Applications
    "mobilenet_v2": 3_504_872,
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet8": 78_186,
    "squeezenet1_0": 1_248_424,
    "squeezenet1_1": 1_235_496,
    "vgg16": 138_357_544,
    "vgg16_cifar": 14_728_266,
}
DIGITS_CNN_BY_HAND = 9 * 32 + 64 + 2 * (9 * 32 * 32 + 64) + 9 * 32 * 64 + 9 * 64 * 64 + 32 * 64 + 3 * 128 + 650
TORCHVISION_KEYS = {
    "alexnet": {"features.10.weight": (256, 256, 3, 3), "classifier.6.bias": (1000,)},
    "efficientnet_b0": {
        "features.1.0.block.0.0.weight": (32, 1, 3, 3),
        "features.1.0.block.1.fc1.weight": (8, 32, 1, 1),
        "features.4.2.block.2.fc2.bias": (480,),
        "features.7.0.block.3.1.running_var": (320,),
        "classifier.1.weight": (1000, 1280),
    },
    "mnasnet": {
        "layers.3.weight": (32, 1, 3, 3),
        "layers.9.1.layers.3.weight": (120, 1, 5, 5),
        "layers.15.bias": (1280,),
    },
    "mobilenet_v2": {"features.1.conv.0.0.weight": (32, 1, 3, 3), "features.18.1.running_var": (1280,)},
    "resnet18": {"layer4.0.downsample.0.weight": (512, 256, 1, 1), "layer1.1.bn2.bias": (64,)},
    "resnet50": {"layer1.0.downsample.1.weight": (256,), "layer4.2.conv3.weight": (2048, 512, 1, 1)},
    "squeezenet1_0": {"features.12.expand3x3.weight": (256, 64, 3, 3), "classifier.1.bias": (1000,)},
    "squeezenet1_1": {"features.3.squeeze.weight": (16, 64, 1, 1), "features.12.expand1x1.bias": (256,)},
    "vgg16": {"features.28.weight": (512, 512, 3, 3), "classifier.3.weight": (4096, 4096)},
}
PRETRAINED = [name for name, entry in models().items() if entry.weights]


def on_meta(name: str, num_classes: int) -> nn.Module:
    """The model without memory: shapes and names, in milliseconds for VGG-16 too."""
    entry = find(name)
    with torch.device("meta"):
        return importlib.import_module(entry.module).create(num_classes, **entry.options).eval()


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


class TestEveryModel:
    """The contract of an entry, over the whole registry."""

    @pytest.mark.parametrize("name", models())
    def test_the_entry_is_true(self, name):
        entry = find(name)
        model = on_meta(name, entry.num_classes)
        assert count(model) == entry.parameters
        assert entry.name == name
        assert entry.summary
        if entry.data:
            assert entry.input_shape[0] == data.data_sets()[entry.data].image_shape[0]
            assert entry.num_classes == data.data_sets()[entry.data].num_classes
        if entry.preprocessing is not None:
            assert len(entry.preprocessing.mean) == entry.input_shape[0]

    @pytest.mark.parametrize("name", models())
    @pytest.mark.parametrize(("batch", "num_classes"), [(1, None), (3, 7)])
    def test_shapes_follow_batch_and_classes(self, name, batch, num_classes):
        classes = num_classes or find(name).num_classes
        answer = on_meta(name, classes)(example_input(name, batch).to("meta"))
        if find(name).task == "detection":
            boxes, answer = answer
            assert boxes.shape == (batch, answer.shape[1], 4)
            assert answer.shape[::2] == (batch, 1 + classes)
        else:
            assert answer.shape == (batch, classes)
        assert answer.dtype == torch.float32


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED_PARAMETERS.items())
def test_published_parameter_counts(name, parameters):
    assert count(on_meta(name, find(name).num_classes)) == parameters


def test_parameters_of_the_demo_network_by_hand():
    assert count(build("digits_cnn")) == DIGITS_CNN_BY_HAND == 77_290


@pytest.mark.parametrize(("name", "keys"), TORCHVISION_KEYS.items())
def test_state_dict_names_are_those_of_torchvision(name, keys):
    state = on_meta(name, 1000).state_dict()
    assert {key: tuple(state[key].shape) for key in keys} == keys


def test_state_dict_names_of_mixnet_are_those_of_timm():
    keys = {
        "conv_stem.weight": (16, 3, 3, 3),
        "blocks.0.0.conv_dw.weight": (16, 1, 3, 3),
        "blocks.1.0.conv_pw.1.weight": (48, 8, 1, 1),
        "blocks.2.0.conv_dw.2.weight": (48, 1, 7, 7),
        "blocks.2.1.se.conv_reduce.weight": (20, 240, 1, 1),
        "blocks.4.0.conv_pwl.0.weight": (60, 240, 1, 1),
        "blocks.5.0.conv_dw.4.weight": (144, 1, 11, 11),
        "blocks.5.2.bn3.weight": (200,),
        "conv_head.weight": (1536, 200, 1, 1),
    }
    state = on_meta("mixnet_s", 1000).state_dict()
    assert {key: tuple(state[key].shape) for key in keys} == keys


def test_mixed_kernels_split_the_channels():
    """The middle part is the 5x5 convolution of the middle third, padded so that the size stays."""
    mixed = build("mixnet_s").blocks[2][0].conv_dw
    x = torch.randn(1, 144, 8, 8)
    middle = nn.functional.conv2d(x[:, 48:96], mixed["1"].weight, stride=2, padding=2, groups=48)
    torch.testing.assert_close(mixed(x)[:, 48:96], middle)
    assert mixed(x).shape == (1, 144, 4, 4)


def test_work_of_the_searched_networks():
    efficient, mixed = (lower(build(name), example_input(name)) for name in ("efficientnet_b0", "mixnet_s"))
    assert round(efficient.macs / 1e9, 2) == 0.39  # torchvision's documentation
    by_hand = {
        "blocks.1.0.conv_pw.0": 8 * 48 * 112**2,
        "blocks.2.0.conv_dw.2": 48 * 49 * 28**2,
        "blocks.5.0.conv_dw.4": 144 * 121 * 7**2,
        "blocks.5.2.se.conv_expand": 100 * 1200,
        "blocks.5.2.conv_pwl.1": 600 * 100 * 7**2,
    }
    assert {name: mixed[name].macs for name in by_hand} == by_hand
    outputs = sum(layer.output_elements for layer in mixed if layer.macs)
    assert round(outputs / 1e6, 1) == 6.3  # timm's model card; it has no more digits
    # The paper says 256 M "FLOPS" and counts more than multiplications: a norm's two operations an element take us to
    # 252 M, timm's 0.25 G.
    assert round((mixed.macs + 2 * outputs) / 1e9, 2) == 0.25
    for graph in (efficient, mixed):
        assert all(target(name).simulate(graph).latency_s > 0 for name in ("ethos_u55_256", "snapdragon_855_cpu"))


@pytest.mark.parametrize(("width", "size"), [("0.75", 224), ("0.5", 128), ("0.25", 128)])
def test_mobilenet_width_scales_every_layer(width, size):
    narrow, full = on_meta(f"mobilenet_v1_{width}_{size}", 1000), on_meta("mobilenet_v1", 1000)
    assert find(f"mobilenet_v1_{width}_{size}").input_shape == (3, size, size)
    for (key, thin), wide in zip(narrow.state_dict().items(), full.state_dict().values(), strict=True):
        if "conv" in key or thin.dim() == 4:
            assert thin.shape[0] == wide.shape[0] * float(width), key


def test_option_a_shortcut_takes_every_second_pixel_and_adds_zero_channels_on_both_sides():
    block = build("resnet20").layer2[0]
    for conv in (block.conv1, block.conv2):
        nn.init.zeros_(conv.weight)
    x = torch.rand(2, 16, 8, 8)
    y = block(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert y[:, :8].abs().sum() + y[:, 24:].abs().sum() == 0


def test_strided_convolutions_of_resnet8_pad_right_and_bottom_only():
    conv = build("resnet8").block2
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)
    nn.init.ones_(conv.conv1.weight)
    seen = []
    conv.conv1.register_forward_hook(lambda module, inputs, output: seen.append(output))
    conv(torch.ones(1, 16, 4, 4))
    assert seen[0][0, 0].tolist() == [[144, 96], [96, 64]]  # 16 channels x 9, 6 or 4 pixels inside


class TestBuild:
    def test_same_seed_same_bytes(self):
        first, again, other = (build("digits_cnn", seed=seed).state_dict() for seed in (3, 3, 4))
        assert all(torch.equal(first[key], again[key]) for key in first)
        assert not torch.equal(first["conv.weight"], other["conv.weight"])

    def test_options_go_over_those_of_the_entry(self):
        narrow = build("mobilenet_v1", options={"width": 0.25})
        assert count(narrow) == count(build("mobilenet_v1_0.25_128"))
        assert build("mobilenet_v2", options={"expansion": 3}).features[2].conv[0][0].out_channels == 48

    def test_global_random_state_is_left_alone(self):
        before = torch.get_rng_state()
        build("lenet5", seed=5)
        example_input("lenet5")
        assert torch.equal(before, torch.get_rng_state())

    def test_eval_mode_and_trainable(self):
        model = build("resnet8", num_classes=3)
        assert not any(module.training for module in model.modules())
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert model(example_input("resnet8")).shape == (1, 3)

    def test_initial_convolutions_have_he_variance(self):
        weight = build("vgg16_cifar").features[37].weight  # 512 -> 512, 3x3
        assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)

    def test_the_demo_network_learns_the_digits_in_seconds(self):
        pytest.importorskip("sklearn", reason="digits come with scikit-learn: pip install codesign[demo]")
        train, heldout = data.load("digits", "train"), data.load("digits", "heldout")
        model = build("digits_cnn").train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        generator = torch.Generator().manual_seed(0)
        for _ in range(6):
            for x, y in train.batches(64, generator, augment=True):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
        model.eval()
        assert (model(heldout.tensor()).argmax(1) == heldout.targets()).float().mean() > 0.9


class TestRegistry:
    def test_listing_imports_neither_torch_nor_scipy(self):
        code = "import sys, workloads.models as m; print(len(m.models()), *{'torch', 'scipy'} & set(sys.modules))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.split() == [str(len(models()))]

    def test_listing_is_sorted_and_read_only(self):
        assert list(models()) == sorted(models())
        with pytest.raises(TypeError):
            models()["mine"] = find("lenet5")

    def test_a_package_elsewhere_adds_a_model_by_one_file(self, tmp_path, monkeypatch):
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "my_zoo_file.py").write_text(
            "from torch import nn\n"
            "ENTRIES = {'my_net': {'summary': 'mine', 'input_shape': (1, 2, 2), 'num_classes': 3, 'data': 'digits',\n"
            "                      'parameters': 15}}\n"
            "def create(num_classes):\n"
            "    return nn.Sequential(nn.Flatten(), nn.Linear(4, num_classes))\n"
        )
        point = importlib.metadata.EntryPoint("my_net", "my_zoo_file", registry.ENTRY_POINTS)
        self._install(monkeypatch, point)
        assert "my_net" in models()
        assert "my_zoo_file" not in sys.modules
        assert build("my_net")(example_input("my_net", 2)).shape == (2, 3)

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("ENTRIES = {'lenet5': {}}", "ENTRIES must be a literal table.*'lenet5' lacks the field 'data'"),
            ("ENTRIES = {'a': {'colour': 1}}", "ENTRIES must be a literal table.*'a' has the unknown field 'colour'"),
            ("ENTRIES = {'a': dict()}", "ENTRIES must be a literal table"),
            ("ENTRIES = [1, 2]", "ENTRIES must be a literal table"),
            ("def (", "ENTRIES must be a literal table"),
            (
                "ENTRIES = {'lenet5': {'summary': '', 'input_shape': (1, 2, 2), 'num_classes': 3, 'data': 'digits',"
                " 'parameters': 1}}",
                "'lenet5' is registered by workloads.models.lenet already",
            ),
        ],
    )
    def test_a_bad_file_is_named(self, tmp_path, monkeypatch, source, message):
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "bad_zoo_file.py").write_text(source)
        self._install(monkeypatch, importlib.metadata.EntryPoint("bad", "bad_zoo_file", registry.ENTRY_POINTS))
        with pytest.raises(ConfigError, match=f"bad_zoo_file.py: .*{message}"):
            models()

    @pytest.mark.parametrize("value", ["no_such_module_here", "no_such_package_here.module", "sys"])
    def test_an_entry_point_without_a_file_is_named(self, monkeypatch, value):
        self._install(monkeypatch, importlib.metadata.EntryPoint("bad", value, registry.ENTRY_POINTS))
        with pytest.raises(ConfigError, match=f"entry point 'bad' of codesign.models: {value}"):
            models()

    OWN = (
        "from torch import nn\n"
        "ENTRIES = {'net': {'input_shape': (1, 2, 2), 'num_classes': 3}, 'wide': {'input_shape': (1, 2, 2),\n"
        "           'num_classes': 3, 'options': {'width': 7}}}\n"
        "def create(num_classes, width=5):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(4, width), nn.Linear(width, num_classes))\n"
        "def plain():\n"
        "    return create(2)\n"
    )

    def test_a_file_of_ones_own_needs_no_package(self, tmp_path, monkeypatch):
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "my_own_file.py").write_text(self.OWN)
        assert find("my_own_file:wide").name == "my_own_file:wide"
        assert "my_own_file" not in sys.modules
        assert build("my_own_file:net", num_classes=4)(example_input("my_own_file:net", 2)).shape == (2, 4)
        assert build("my_own_file:wide")[1].out_features == 7
        assert [is_entry(f"my_own_file:{name}") for name in ("net", "plain")] == [True, False]
        assert is_entry("lenet5")
        assert not is_entry("no_such_module_here:net")
        assert "my_own_file:net" not in models()

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            ("def create(n): raise ValueError('no')", r"my_bad_file:net: create\(3\) raised ValueError: no; --debug"),
            ("def create(n): exit(0)", r"my_bad_file:net: create\(3\) raised SystemExit: 0"),
            ("def make(n): pass", r"create\(3\) raised AttributeError: .*no attribute 'create'"),
            ("def create(n): return None", r"create\(\) returned NoneType, must return a torch.nn.Module"),
            ("raise RuntimeError('boom')", r"create\(3\) raised RuntimeError: boom"),
        ],
    )
    def test_a_file_of_ones_own_that_fails(self, tmp_path, monkeypatch, body, message):
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "my_bad_file", raising=False)
        entries = "ENTRIES = {'net': {'input_shape': (1, 2, 2), 'num_classes': 3}}"
        (tmp_path / "my_bad_file.py").write_text(f"{entries}\n{body}\n")
        importlib.invalidate_caches()
        with pytest.raises(ConfigError, match=message):
            build("my_bad_file:net")
        sys.modules.pop("my_bad_file", None)

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("input_shape", 10, "input_shape 10, must be a tuple"),
            ("input_shape", (3, 16, -16), "must be a tuple"),
            ("input_shape", (10.0,), "must be a tuple"),
            ("num_classes", "3", "num_classes '3', must be a whole number"),
            (
                "preprocessing",
                {"mean": (0.5,) * 3, "std": (0.5,) * 3},
                r"'net' has preprocessing with mean and std of 3 channels, input_shape \(1, 2, 2\) has 1",
            ),
            (
                "preprocessing",
                {"mean": (0.5,), "std": (0.5, 0.5)},
                r"'net': preprocessing: mean .* need one number a ch",
            ),
        ],
    )
    def test_fields_of_an_entry_are_checked(self, tmp_path, monkeypatch, field, value, message):
        monkeypatch.syspath_prepend(tmp_path)
        fields = {"input_shape": (1, 2, 2), "num_classes": 3, field: value}
        (tmp_path / "my_bad_file.py").write_text(f"ENTRIES = {{'net': {fields!r}}}")
        with pytest.raises(ConfigError, match=message):
            find("my_bad_file:net")

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("my_own_file:nett", "unknown model of my_own_file 'nett'; did you mean 'net'"),
            ("my_own_file:plain", "unknown model of my_own_file 'plain'"),
            ("my_empty_file:net", "my_empty_file:net: .*my_empty_file.py has no table ENTRIES"),
            ("no_such_module_here:net", "no_such_module_here:net: there is no file"),
            ("no_such_package_here.module:net", "no_such_package_here.module:net: there is no file"),
            (":net", ":net: there is no file"),
            ("edge_net.py:net", "edge_net.py:net: name it as Python imports it, edge_net:net"),
            ("edge_net.py", "edge_net.py: name it as Python imports it, edge_net:my_net"),
            ("./nets/edge_net:net", "./nets/edge_net:net: name it as Python imports it, nets.edge_net:net"),
            (
                "../edge_net.py:net",
                "../edge_net.py:net: name it as Python imports it, edge_net:net, with its folder on",
            ),
            ("w.pt", "w.pt: is a file of weights; give the name of the network, --weights reads them as .safetensors"),
            ("nets/a.onnx", "nets/a.onnx: is an exported network; give the PyTorch code that it came from"),
            ("sys:net", "sys:net: there is no file"),
            ("my_bad_file:net", "my_bad_file.py: ENTRIES must be a literal table.*'net' lacks the field 'input_shape'"),
        ],
    )
    def test_a_file_of_ones_own_that_lacks_something(self, tmp_path, monkeypatch, name, message):
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "my_own_file.py").write_text(self.OWN)
        (tmp_path / "my_empty_file.py").write_text("")
        (tmp_path / "my_bad_file.py").write_text("ENTRIES = {'net': {'num_classes': 3}}")
        with pytest.raises(ConfigError, match=message):
            build(name)

    @pytest.fixture(autouse=True)
    def _fresh_registry(self):
        registry.models.cache_clear()
        yield
        registry.models.cache_clear()

    @staticmethod
    def _install(monkeypatch, point):
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point] * (group == point.group))


class Bomb:
    """A pickle that writes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def lenet_tensors() -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in build("lenet5", seed=9).state_dict().items()}


class TestWeights:
    def test_round_trip(self, tmp_path):
        model = build("digits_cnn", seed=2)
        save_weights(model, tmp_path / "new" / "w.safetensors")
        loaded = build("digits_cnn", weights=tmp_path / "new" / "w.safetensors")
        assert all(
            torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
        )
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["w.safetensors"]

    def test_others_may_read_the_file_as_any_other_file(self, tmp_path):
        (tmp_path / "plain").touch()
        save_weights(build("lenet5"), tmp_path / "w.safetensors")
        assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode

    def test_half_floats_are_cast_and_counters_may_be_absent(self, tmp_path):
        model = build("digits_cnn", seed=2)
        stored = {key: t.half() for key, t in model.state_dict().items() if "num_batches" not in key}
        save_file(stored, tmp_path / "w.safetensors")
        loaded = build("digits_cnn", weights=tmp_path / "w.safetensors").state_dict()
        assert all(
            loaded[key].dtype == torch.float32 and torch.equal(loaded[key], stored[key].float()) for key in stored
        )

    def test_masks_that_agree_with_the_zeros_are_dropped(self, tmp_path):
        tensors = lenet_tensors()
        mask = torch.rand(tensors["fc1.weight"].shape) < 0.1
        tensors["fc1.weight"] *= mask
        save_file({**tensors, "fc1.weight_mask": mask}, tmp_path / "w.safetensors")
        assert (build("lenet5", weights=tmp_path / "w.safetensors").fc1.weight != 0).sum() == mask.sum()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"conv1.weight": None}, "has no 'conv1.weight'; give the weights"),
            ({"conv1.weight": None, "fc1.bias": None}, r"has no 'conv1.weight' \(and 1 more\)"),
            ({"conv9.weight": torch.ones(1)}, "has the unknown 'conv9.weight'"),
            ({"fc2.weight": torch.ones(7, 500)}, r"'fc2.weight' has shape \(7, 500\), the model needs \(10, 500\)"),
            ({"fc2.bias": torch.ones(10, dtype=torch.int8)}, "'fc2.bias' is stored as torch.int8"),
            ({"fc2.bias": torch.full((10,), torch.nan)}, "'fc2.bias' holds NaN"),
            ({"fc2.bias": torch.full((10,), torch.inf).half()}, "'fc2.bias' holds NaN or infinite"),
            ({"fc2.bias": torch.full((10,), 1e300, dtype=torch.float64)}, "'fc2.bias' holds NaN or infinite"),
            ({"fc2.bias_mask": torch.zeros(10, dtype=torch.bool)}, "'fc2.bias_mask' removes weights that are not zero"),
        ],
    )
    def test_a_file_that_does_not_fit_is_named_and_changes_nothing(self, tmp_path, change, message):
        tensors = {key: t for key, t in {**lenet_tensors(), **change}.items() if t is not None}
        save_file(tensors, tmp_path / "w.safetensors")
        model = build("lenet5")
        before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        with pytest.raises(DataError, match=f"w.safetensors: .*{message}") as caught:
            load_weights(model, tmp_path / "w.safetensors")
        assert "\n" not in str(caught.value)
        assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())

    @pytest.mark.parametrize("kind", ["pickle", "torch", "zip"])
    def test_a_pickle_is_refused_and_never_run(self, tmp_path, kind):
        path, trace = tmp_path / "w.safetensors", tmp_path / "ran"
        if kind == "pickle":
            path.write_bytes(pickle.dumps(Bomb(trace)))
        elif kind == "torch":
            torch.save({"conv1.weight": Bomb(trace)}, path)
        else:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("data.pkl", pickle.dumps(Bomb(trace)))
        with pytest.raises(DataError, match=r"w.safetensors: a pickle, .* only safetensors are read"):
            build("lenet5", weights=path)
        assert not trace.exists()

    @pytest.mark.parametrize("kept", [0, 5, 100, -4])
    def test_a_truncated_file_is_named(self, tmp_path, kept):
        path = tmp_path / "w.safetensors"
        save_weights(build("lenet5"), path)
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(DataError, match=r"w.safetensors: not a whole safetensors file") as caught:
            build("lenet5", weights=path)
        assert "\n" not in str(caught.value)

    def test_missing_file_and_folder(self, tmp_path):
        with pytest.raises(DataError, match=r"none.safetensors: cannot be read .No such file"):
            build("lenet5", weights=tmp_path / "none.safetensors")
        with pytest.raises(DataError, match=r"cannot be read .Is a directory"):
            build("lenet5", weights=tmp_path)

    def test_an_unwritable_folder_is_named(self, tmp_path):
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(DataError, match=r"w.safetensors: cannot be written"):
            save_weights(build("lenet5"), tmp_path / "file" / "w.safetensors")


class TestBadArguments:
    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            (lambda: build("resnet2"), ConfigError, "unknown model 'resnet2'; did you mean 'resnet"),
            (lambda: example_input("vgg"), ConfigError, "unknown model 'vgg'.*Known: alexnet, "),
            (lambda: build("lenet5", num_classes=0), ConfigError, "num_classes 0 given for 'lenet5', needs at least 1"),
            (lambda: example_input("lenet5", batch=0), ConfigError, "batch 0 given for 'lenet5', needs at least 1"),
            (
                lambda: build("resnet20", weights=Path("x"), pretrained=True),
                ConfigError,
                "or pretrained=True, not both",
            ),
            (lambda: pretrained_path("vgg16"), DataError, "no pretrained weights are known for 'vgg16'.*resnet20"),
        ],
    )
    def test_message(self, call, error, message):
        with pytest.raises(error, match=message):
            call()

    def test_pretrained_weights_that_are_not_there(self, tmp_path, monkeypatch):
        monkeypatch.setenv("CODESIGN_DATA", str(tmp_path))
        with pytest.raises(DataError, match=r"resnet20_cifar10.safetensors does not exist; put the weights"):
            build("resnet20", pretrained=True)
        monkeypatch.setenv("CODESIGN_DATA", str(tmp_path / "absent"))
        with pytest.raises(DataError, match=r"CODESIGN_DATA=.*absent is not a folder"):
            pretrained_path("resnet20")


class TestRealWeights:
    @pytest.mark.data("weights")
    @pytest.mark.parametrize("name", PRETRAINED)
    def test_every_known_file_loads_strictly(self, name):
        loaded, stored = build(name, pretrained=True).state_dict(), load_file(pretrained_path(name))
        assert all(torch.equal(loaded[key], stored[key].to(loaded[key].dtype)) for key in stored)
        assert {key for key in loaded if key not in stored} <= {key for key in loaded if "num_batches" in key}

    @pytest.mark.data("weights", "cifar-10-batches-bin")
    @pytest.mark.parametrize(("name", "correct"), [("resnet20", 455), ("resnet8", 445)])
    def test_correct_answers_on_the_first_500_test_pictures(self, name, correct):
        assert abs(self._correct(name, limit=500) - correct) <= 1  # one picture may tip on another processor

    @pytest.mark.data("weights", "cifar-10-batches-bin")
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "published_percent"), [("resnet20", 91.73), ("resnet56", 93.39), ("resnet8", 87.19)]
    )
    def test_published_accuracy_on_all_test_pictures(self, name, published_percent):
        assert self._correct(name, limit=None) / 100 == pytest.approx(published_percent, abs=0.02)

    @pytest.mark.data("weights", "imagenet_samples")
    @pytest.mark.slow
    @pytest.mark.parametrize(("name", "correct"), [("mobilenet_v2", 168), ("squeezenet1_0", 132)])
    def test_correct_answers_on_200_sample_pictures(self, name, correct):
        assert abs(self._correct(name, limit=200) - correct) <= 2  # on all 1,000: 863 and 599

    @pytest.mark.data("weights", "imagenet_samples")
    def test_the_half_turn_is_what_mobilenet_wants(self):
        entry, model = find("mobilenet_v2"), build("mobilenet_v2", pretrained=True)
        pictures = data.load("imagenet_samples", "test", preprocessing=entry.preprocessing, limit=24)
        turned = pictures.tensor()
        with torch.no_grad():
            right, wrong = ((model(x).argmax(1) == pictures.targets()).sum() for x in (turned, turned.flip(-1, -2)))
        assert right >= wrong + 2

    @staticmethod
    def _correct(name: str, limit: int | None) -> int:
        entry, model = find(name), build(name, pretrained=True)
        pictures = data.load(entry.data, "test", preprocessing=entry.preprocessing, limit=limit)
        with torch.no_grad():
            return sum(int((model(x).argmax(1) == y).sum()) for x, y in pictures.batches(50))
