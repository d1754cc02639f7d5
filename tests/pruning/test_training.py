"""Training: it learns, it is repeatable, it can be stopped anywhere, and bad options are refused before it starts."""

import copy
import dataclasses
import warnings

import pytest
import torch
from torch import nn

from pruning import evaluation, masks, training
from pruning.devices import has_fast_bf16, pick_device, pick_precision
from pruning.evaluation import accuracy, evaluate, labelled_batches, recalibrate
from pruning.methods.magnitude import GradualMagnitude
from pruning.training import Classification, Distillation, fit
from workloads import data
from workloads.errors import CodesignError, ConfigError, DataError
from workloads.models import build, example_input, find


@pytest.fixture(scope="module")
def train() -> data.ImageData:
    return data.load("digits", "train")


@pytest.fixture(scope="module")
def heldout() -> data.ImageData:
    return data.load("digits", "heldout")


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(name == twin and torch.equal(tensor, copied) for (name, tensor), (twin, copied) in pairs)


def quick(model: nn.Module, train: data.ImageData, **options):
    return fit(model, train.take(256), **{"epochs": 2, "lr": 0.05, "batch_size": 64, "progress": False, **options})


class TestLearning:
    @pytest.mark.parametrize("precision", ["fp32", "auto"])
    def test_digits_in_seconds(self, train, heldout, precision):
        model = build("digits_cnn")
        result = fit(model, train, 5, 0.1, heldout=heldout, batch_size=64, precision=precision, progress=False)
        assert accuracy(model, data.load("digits", "test")) > 0.95
        assert result.heldout_accuracy == max(entry.heldout_accuracy for entry in result.history)
        assert result.history[-1].loss < result.history[0].loss / 4
        assert not model.training

    def test_the_best_epoch_is_kept(self, train, heldout, monkeypatch):
        scores = iter([0.3, 0.9, 0.9, 0.5])
        states = []

        def measured(model, *_, **__):
            states.append(copy.deepcopy(model.state_dict()))
            return evaluation.Score(1.0, next(scores), 200, "heldout", "fp32")

        monkeypatch.setattr(training, "evaluate", measured)
        model = build("digits_cnn")
        result = quick(model, train, epochs=4, heldout=heldout)
        assert result.chosen_epoch == 3
        assert all(torch.equal(tensor, states[2][name]) for name, tensor in model.state_dict().items())

    def test_zeros_of_a_baked_model_stay(self, train):
        dense = build("digits_cnn")
        mask = torch.rand(dense.block1.conv1.weight.shape) < 0.5
        model = masks.bake(dense, {"block1.conv1.weight": mask})
        quick(model, train)
        assert model.block1.conv1.weight[~mask].count_nonzero() == 0
        assert not torch.equal(model.block1.conv1.weight, masks.bake(dense, masks.masks_of(model)).block1.conv1.weight)

    def test_a_pruner_is_stepped_and_its_loss_is_added(self, train):
        class Shrinking(GradualMagnitude):
            def loss(self):
                return 100 * self.model.fc.weight.square().sum()

        pruner = Shrinking(build("digits_cnn"), (example_input("digits_cnn"),), 8, density=0.3)
        quick(pruner.model, train, pruner=pruner, momentum=0.0, lr=0.001)
        assert pruner.steps_done == 8
        assert masks.density(masks.masks_of(pruner.finalize()).values()) == pytest.approx(0.3, abs=1e-3)
        assert pruner.model.fc.weight.norm() < 0.6 * build("digits_cnn").fc.weight.norm()

    def test_distillation_by_hand(self):
        student, teacher = torch.tensor([[0.0, 2.0]]), torch.tensor([[2.0, 0.0]])
        # T = 2: softmax (1, 0) = 0.7311, 0.2689; KL = 0.7311 - 0.2689 = 0.4621; times 4
        assert Distillation(temperature=2.0).loss(student, teacher).item() == pytest.approx(4 * 0.46212, abs=1e-4)
        assert Distillation().loss(teacher, teacher).item() == pytest.approx(0, abs=1e-6)

    def test_a_teacher_teaches_what_labels_do_not(self, train):
        teacher = build("digits_cnn", seed=3)
        teacher.fc.weight.data.mul_(10)
        before = copy.deepcopy(teacher)
        student = build("digits_cnn")
        only = Distillation(weight=1.0)
        start = self.distance(student, teacher, train)
        quick(student, train, teacher=teacher, distillation=only, augment=False, epochs=12)
        assert self.distance(student, teacher, train) < start / 2
        assert same(teacher, before)

    @staticmethod
    def distance(student, teacher, images) -> float:
        x = images.tensor(slice(0, 100))
        with torch.no_grad():
            return float((student(x).log_softmax(1) - teacher(x).log_softmax(1)).abs().mean())

    def test_with_a_pruner_the_best_epoch_since_it_settled_is_kept(self, train, heldout, monkeypatch):
        scores = iter([0.9, 0.5, 0.7, 0.6])  # 256 / 64 = 4 steps an epoch; settled after step 8, the second epoch
        monkeypatch.setattr(
            training, "evaluate", lambda *_, **__: evaluation.Score(1.0, next(scores), 200, "heldout", "fp32")
        )
        pruner = GradualMagnitude(build("digits_cnn"), (example_input("digits_cnn"),), 16, density=0.5, end=0.5)
        assert quick(pruner.model, train, epochs=4, heldout=heldout, pruner=pruner).chosen_epoch == 3
        assert masks.density(masks.masks_of(pruner.finalize()).values()) == pytest.approx(0.5, abs=0.01)


class Small:
    """Another objective: the square of the answers falls, and an epoch is better the smaller they are."""

    metric = "smallness"

    def loss(self, outputs, targets):
        return outputs.float().square().mean()

    def right(self, outputs, targets):
        return None

    def evaluate(self, model, data, *, device="auto", precision="fp32"):
        loss = self.loss(model(data.tensor(slice(0, 50))), None).item()
        return evaluation.Score(loss, 1 / (1 + loss), 50, data.split, precision)


class TestObjective:
    def test_another_objective_is_trained_and_chosen_by(self, train, heldout):
        model = build("digits_cnn")
        result = quick(model, train, heldout=heldout, objective=Small(), epochs=3, lr=0.01)
        first, *_, last = result.history
        assert last.loss < first.loss / 2
        assert last.accuracy is None
        chosen = result.history[result.chosen_epoch - 1]
        assert chosen.heldout_loss == min(entry.heldout_loss for entry in result.history)
        assert "train" not in str(result)

    def test_classification_is_the_default(self, train):
        models = [build("digits_cnn") for _ in range(3)]
        quick(models[0], train, label_smoothing=0.2)
        quick(models[1], train, objective=Classification(label_smoothing=0.2))
        quick(models[2], train, objective=Classification())
        assert same(models[0], models[1])
        assert not same(models[0], models[2])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"label_smoothing": 0.1}, r"give Classification\(label_smoothing=...\)"),
            ({"teacher": build("digits_cnn")}, "classification only; leave the teacher out"),
        ],
    )
    def test_what_belongs_to_another_objective_is_refused(self, train, options, message):
        with pytest.raises(ConfigError, match=message):
            quick(build("digits_cnn"), train, objective=Small(), **options)


class TestRepeatable:
    @pytest.mark.parametrize("precision", ["fp32", "auto"])
    def test_same_seed_same_bytes(self, train, precision):
        models = [build("digits_cnn") for _ in range(3)]
        for model, seed in zip(models, (1, 1, 2), strict=True):
            quick(model, train, seed=seed, precision=precision)
        assert same(models[0], models[1])
        assert not same(models[0], models[2])

    def test_the_global_random_state_is_left_alone(self, train):
        before = torch.get_rng_state()
        quick(build("digits_cnn"), train, epochs=1)
        assert torch.equal(before, torch.get_rng_state())


class StoppedError(Exception):
    pass


class WithDropout(nn.Module):
    """Needs the global random state while it trains."""

    def __init__(self):
        super().__init__()
        self.net = build("digits_cnn")
        self.drop = nn.Dropout2d(0.2)

    def forward(self, x):
        return self.net(self.drop(x))


class TestResume:
    def stop_after(self, monkeypatch, epochs: int) -> None:
        real = training._Run.epoch

        def epoch(run, *arguments):
            if len(run.history) == epochs:
                raise StoppedError
            real(run, *arguments)

        monkeypatch.setattr(training._Run, "epoch", epoch)

    def test_going_on_without_held_out_pictures_keeps_the_last_epoch(self, train, heldout, tmp_path, monkeypatch):
        file = tmp_path / "state.pt"
        with monkeypatch.context() as patch:
            self.stop_after(patch, 2)
            with pytest.raises(StoppedError):
                quick(build("digits_cnn"), train, epochs=3, heldout=heldout, checkpoint=file)
        model, whole = build("digits_cnn"), build("digits_cnn")
        assert quick(model, train, epochs=3, checkpoint=file).chosen_epoch == 3
        quick(whole, train, epochs=3)
        assert same(model, whole)

    @pytest.mark.parametrize("with_pruner", [False, True])
    def test_the_same_as_without_a_stop(self, train, heldout, tmp_path, monkeypatch, with_pruner):
        def start():
            torch.manual_seed(0)
            model = WithDropout()
            pruner = GradualMagnitude(model, (example_input("digits_cnn"),), 12, density=0.4) if with_pruner else None
            return (model if pruner is None else pruner.model), pruner

        whole, pruner = start()
        wanted = quick(whole, train, epochs=3, heldout=heldout, pruner=pruner)
        file = tmp_path / "run" / "state.pt"
        model, pruner = start()
        with monkeypatch.context() as patch:
            self.stop_after(patch, 2)
            with pytest.raises(StoppedError):
                quick(model, train, epochs=3, heldout=heldout, pruner=pruner, checkpoint=file)
        model, pruner = start()
        found = quick(model, train, epochs=3, heldout=heldout, pruner=pruner, checkpoint=file)
        assert same(model, whole)
        assert [dataclasses.replace(entry, seconds=0) for entry in found.history] == [
            dataclasses.replace(entry, seconds=0) for entry in wanted.history
        ]
        assert found.chosen_epoch == wanted.chosen_epoch

    def test_a_finished_run_comes_back_at_once(self, train, tmp_path):
        file = tmp_path / "state.pt"
        first, second = build("digits_cnn"), build("digits_cnn", seed=1)
        quick(first, train, checkpoint=file)
        quick(second, train, checkpoint=file)
        assert same(first, second)

    def test_a_killed_write_leaves_the_old_file(self, train, tmp_path, monkeypatch):
        file = tmp_path / "state.pt"
        quick(build("digits_cnn"), train, epochs=1, checkpoint=file)
        old = file.read_bytes()
        monkeypatch.setattr(torch, "save", lambda state, path: (_ for _ in ()).throw(KeyboardInterrupt))
        file2 = tmp_path / "other.pt"
        with pytest.raises(KeyboardInterrupt):
            quick(build("digits_cnn"), train, epochs=1, checkpoint=file2)
        assert file.read_bytes() == old
        assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"lr": 0.1}, "was made with lr = 0.05, now 0.1"),
            ({"epochs": 3}, "was made with epochs = 2, now 3"),
            ({"seed": 1}, "was made with seed = 0, now 1"),
            ({"teacher": nn.Flatten()}, "was made with distillation = None, now {'temperature': 4.0, 'weight': 0.7}"),
        ],
    )
    def test_other_options_are_refused(self, train, tmp_path, options, message):
        file = tmp_path / "state.pt"
        quick(build("digits_cnn"), train, checkpoint=file)
        with pytest.raises(ConfigError, match=message):
            quick(build("digits_cnn"), train, checkpoint=file, **options)
        with pytest.raises(ConfigError, match="holds another model"):
            quick(build("resnet8").apply(lambda _: None), train, checkpoint=file)

    @pytest.mark.parametrize("field", ["images", "labels"])
    def test_other_data_are_refused(self, train, tmp_path, field):
        file, other = tmp_path / "state.pt", getattr(train, field).copy()
        quick(build("digits_cnn"), train, epochs=1, checkpoint=file)
        other[0] = other[0] ^ 1
        with pytest.raises(ConfigError, match=r"was made with content = \d+, now \d+"):
            quick(build("digits_cnn"), dataclasses.replace(train, **{field: other}), epochs=1, checkpoint=file)

    def test_a_schedule_that_is_cut_short_is_said(self, train):
        pruner = GradualMagnitude(build("digits_cnn"), (example_input("digits_cnn"),), 1000, density=0.1)
        with pytest.warns(UserWarning, match=r"training ended after \d+ of the 1,000 steps that gradual_magnitude"):
            quick(pruner.model, train, epochs=1, pruner=pruner)
        whole = GradualMagnitude(build("digits_cnn"), (example_input("digits_cnn"),), pruner.steps_done, density=0.1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            quick(whole.model, train, epochs=1, pruner=whole)

    def test_other_options_of_the_method_are_refused(self, train, tmp_path):
        file, example = tmp_path / "state.pt", (example_input("digits_cnn"),)
        half = GradualMagnitude(build("digits_cnn"), example, 4, density=0.5)
        quick(half.model, train, epochs=1, pruner=half, checkpoint=file)
        third = GradualMagnitude(build("digits_cnn"), example, 4, density=0.3)
        with pytest.raises(ConfigError, match=r"state\.pt: pruner state has density 0\.5, this one is made for 0\.3"):
            quick(third.model, train, epochs=1, pruner=third, checkpoint=file)

    @pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04rest"])
    def test_damaged_files(self, train, tmp_path, content):
        file = tmp_path / "state.pt"
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"state\.pt: not a training checkpoint"):
            quick(build("digits_cnn"), train, checkpoint=file)

    def test_a_pickle_that_runs_code_is_not_run(self, train, tmp_path):
        class Bomb:
            def __reduce__(self):
                return (open, (str(tmp_path / "exploded"), "w"))

        torch.save({"format": "codesign.training/1", "bomb": Bomb()}, tmp_path / "state.pt")
        with pytest.raises(DataError, match="not a training checkpoint"):
            quick(build("digits_cnn"), train, checkpoint=tmp_path / "state.pt")
        assert not (tmp_path / "exploded").exists()

    def test_a_folder_that_cannot_be_written(self, train, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(DataError, match="cannot be written"):
            quick(build("digits_cnn"), train, epochs=1, checkpoint=tmp_path / "file" / "state.pt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs 0"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"lr": 0.0}, "lr 0.0, must be a finite number above 0"),
        ({"lr": float("nan")}, "lr nan"),
        ({"warmup": 1.0}, "warmup 1.0"),
        ({"weight_decay": -0.1}, "weight_decay -0.1"),
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
        ({"device": "gpu"}, "device 'gpu' cannot be used"),
        ({"lr": 1e30, "precision": "fp32"}, "training loss is .*; lower lr"),
    ],
)
def test_bad_options(train, options, message):
    with pytest.raises(CodesignError, match=message):
        quick(build("digits_cnn"), train, **options)


def test_a_pruner_of_another_model_is_refused(train):
    model = build("digits_cnn")
    pruner = GradualMagnitude(model, (example_input("digits_cnn"),), 8, density=0.3)
    with pytest.raises(ConfigError, match=r"call fit\(pruner.model"):
        quick(model, train, pruner=pruner)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"lr": 1e30}, "the training loss is nan in epoch 1; lower lr"), ({"seed": 1}, "was made with seed = 0, now 1")],
)
def test_a_training_that_fails_leaves_the_model_in_order(train, tmp_path, change, message):
    model, file = build("digits_cnn"), tmp_path / "state.pt"
    strides = [tensor.stride() for tensor in model.parameters()]
    if "seed" in change:
        quick(build("digits_cnn"), train, epochs=1, checkpoint=file)
    with pytest.raises(ConfigError, match=message):
        quick(model.train(), train, epochs=1, checkpoint=file, **change)
    assert not any(module.training for module in model.modules())
    assert [tensor.stride() for tensor in model.parameters()] == strides


def test_distillation_options():
    with pytest.raises(ConfigError, match="temperature > 0"):
        Distillation(temperature=0)


class TestEvaluation:
    def test_accuracy_counts_right_answers(self, heldout):
        class Constant(nn.Module):
            def forward(self, x):
                return torch.eye(10)[3].expand(len(x), 10)

        score = evaluate(Constant(), heldout, batch_size=33)
        assert score.accuracy == pytest.approx((heldout.labels == 3).mean())
        assert score.images == len(heldout)
        # log(e + 9) - 1 where the label is 3, log(e + 9) elsewhere
        assert score.loss == pytest.approx(2.46115 - score.accuracy, abs=1e-4)

    def test_modes_come_back(self, heldout):
        model = build("digits_cnn").train()
        model.bn.eval()
        evaluate(model, heldout, limit=50)
        assert model.training
        assert not model.bn.training
        assert all(not tensor.is_inference() for tensor in model.parameters())

    def test_a_model_never_moves_where_its_parameters_become_inference_tensors(self, heldout):
        class Watched(type(build("digits_cnn"))):
            def to(self, *args, **kwargs):
                moved.append(torch.is_inference_mode_enabled())
                return super().to(*args, **kwargs)

        moved = []
        model = build("digits_cnn")
        model.__class__ = Watched
        evaluate(model, heldout, limit=50)
        assert moved == [False, False]

    def test_nan_weights_are_an_error(self, heldout):
        model = build("digits_cnn")
        with torch.no_grad():
            model.fc.weight.fill_(float("nan"))
        with pytest.raises(ConfigError, match="not finite"):
            evaluate(model, heldout)

    def test_recalibration_gives_the_statistics_of_the_data(self, train):
        model = build("digits_cnn").eval()
        recalibrate(model, train, limit=500, batch_size=250, precision="fp32", augment=False)
        with torch.no_grad():
            before_norm = torch.cat([model.conv(x) for x, _ in train.take(500).batches(250)])
        torch.testing.assert_close(model.bn.running_mean, before_norm.mean((0, 2, 3)), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(model.bn.running_var, before_norm.var((0, 2, 3)), atol=1e-3, rtol=1e-2)
        assert not model.bn.training
        assert model.bn.momentum == 0.1

    def test_a_failed_recalibration_leaves_norms_their_momentum(self, train):
        model = build("digits_cnn")
        model.fc.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            recalibrate(model, train, limit=50)
        assert model.bn.momentum == 0.1

    @pytest.mark.data
    def test_recalibration_on_augmented_pictures_keeps_a_trained_network_as_good(self):
        preprocessing = find("resnet20").preprocessing
        heldout = data.load("cifar10", "heldout", preprocessing=preprocessing, limit=500)
        model = build("resnet20", pretrained=True)
        before = accuracy(model, heldout)
        recalibrate(model, data.load("cifar10", "train", preprocessing=preprocessing), limit=1000)
        assert accuracy(model, heldout) > before - 0.01


class TestLabelledBatches:
    def test_pictures_come_in_order_up_to_the_limit(self, train):
        found = list(labelled_batches(train, 8, limit=20))
        assert [len(y) for _, y in found] == [8, 8, 4]
        assert torch.equal(torch.cat([x for x, _ in found]), train.tensor(slice(20)))
        assert sum(len(y) for _, y in labelled_batches(train.take(9), 4)) == 9

    def test_ready_made_batches_stay_whole(self):
        ready = [(torch.full((4, 1), float(i)), torch.zeros(4)) for i in range(3)]
        for limit, count in ((None, 3), (4, 1), (5, 2), (99, 3)):
            found = list(labelled_batches(ready, 2, limit))
            assert [id(x) for x, _ in found] == [id(x) for x, _ in ready[:count]]

    def test_what_is_refused(self, train):
        for given, limit, message in (
            (dataclasses.replace(train, split="test"), None, "needs pictures of split 'heldout' or 'train'"),
            ([], None, "data holds no batch"),
            (train, 0, "0 images to measure on, must be at least 1"),
        ):
            with pytest.raises(ConfigError, match=message):
                labelled_batches(given, 8, limit)


class TestDevices:
    def test_auto_is_decided_by_capability(self, monkeypatch):
        cpu = torch.device("cpu")
        for answer, precision in ((True, "bf16"), (False, "fp32")):
            for probe in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
                monkeypatch.setattr(torch.cpu, probe, lambda answer=answer: answer, raising=False)
            assert has_fast_bf16(cpu) is answer
            assert pick_precision("auto", cpu) == precision
        assert pick_precision("bf16", cpu) == "bf16"

    def test_unknown_capability_means_fp32(self, monkeypatch):
        for probe in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
            monkeypatch.delattr(torch.cpu, probe, raising=False)
        assert pick_precision("auto", torch.device("cpu")) == "fp32"

    def test_auto_device(self):
        assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
