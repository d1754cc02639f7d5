"""Attacks on a linear model, where the worst picture is known, and what they must leave alone."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from pruning.adversarial import Attack, fgsm, pgd, robustness
from workloads.data import ImageData
from workloads.data.images import Preprocessing
from workloads.errors import ConfigError

EPS = 0.1
PLAIN = Preprocessing(mean=(0.0,), std=(1.0,))
SCALED = Preprocessing(mean=(0.5,), std=(0.25,))


def linear(rows: list[list[float]]) -> nn.Sequential:
    """(n, 1, 1, 3) -> (n, classes), without bias."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, len(rows), bias=False))
    model[1].weight.data = torch.tensor(rows)
    return model.eval()


MODEL = linear([[1.0, -2.0, 0.0], [0.0, 1.0, 0.0]])


def pictures(values: list[list[float]], preprocessing: Preprocessing) -> torch.Tensor:
    return ((torch.tensor(values) - preprocessing.mean[0]) / preprocessing.std[0]).view(-1, 1, 1, 3)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("preprocessing", [PLAIN, SCALED])
@pytest.mark.parametrize("attack", [fgsm(EPS), pgd(EPS), pgd(EPS, random_start=False)], ids=str)
def test_the_worst_picture_of_a_linear_model(preprocessing, attack):
    # Label 0: the loss grows along w1 - w0 = (-1, 3, 0). Each pixel moves by 0.1, and stops at black and white.
    x = pictures([[0.5, 0.5, 0.5], [0.04, 0.97, 0.5]], preprocessing)
    moved = attack.perturb(MODEL, x, torch.zeros(2, dtype=torch.long), preprocessing, generator())
    wanted = pictures([[0.4, 0.6, 0.5], [0.0, 1.0, 0.5]], preprocessing)
    torch.testing.assert_close(moved[..., :2], wanted[..., :2])
    if not attack.random_start:  # nothing moves a pixel that the model does not read
        torch.testing.assert_close(moved, wanted)


def test_steps_smaller_than_the_ball_stop_short_of_it():
    x = pictures([[0.5, 0.5, 0.5]], SCALED)
    moved = Attack(EPS, 3, 0.02, random_start=False).perturb(MODEL, x, torch.zeros(1).long(), SCALED, generator())
    torch.testing.assert_close(moved, pictures([[0.44, 0.56, 0.5]], SCALED))


def test_no_pixel_leaves_the_ball_or_the_legal_range():
    preprocessing = Preprocessing(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36 * 4, 5)).eval()
    pixels = torch.rand(6, 3, 8, 8, generator=generator())
    x = (pixels - torch.tensor(preprocessing.mean).view(-1, 1, 1)) / torch.tensor(preprocessing.std).view(-1, 1, 1)
    for attack in (fgsm(EPS), pgd(EPS)):
        moved = attack.perturb(model, x, torch.arange(6) % 5, preprocessing, generator())
        back = moved * torch.tensor(preprocessing.std).view(-1, 1, 1) + torch.tensor(preprocessing.mean).view(-1, 1, 1)
        assert (back - pixels).abs().max() <= EPS + 1e-6
        assert back.min() >= -1e-6
        assert back.max() <= 1 + 1e-6
        assert (back - pixels).abs().max() > EPS / 2


def picture_data(pixels: list[list[int]], labels: list[int]) -> ImageData:
    images = np.array(pixels, np.uint8).reshape(-1, 1, 1, 3)
    return ImageData("tiny", "heldout", images, np.array(labels), np.arange(len(labels)), 2, SCALED)


class TestRobustness:
    DATA = picture_data([[255, 0, 0], [255, 60, 0], [60, 0, 0], [0, 255, 0]], [0, 0, 0, 0])

    def test_accuracies_worked_by_hand(self):
        # x = (p - 0.5) / 0.25 gives logit x0 - 3 x1 - 4 = 4 (p0 - 3 p1): label 0 is right where p0 > 3 p1.
        model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2)).eval()
        model[1].weight.data = torch.tensor([[1.0, -3.0, 0.0], [0.0, 0.0, 0.0]])
        model[1].bias.data = torch.tensor([-4.0, 0.0])
        # p0 - 3 p1 is 1, 0.29, 0.24, -3, and an attack of 0.075 takes 0.3 from it
        found = robustness({"one": model}, self.DATA, eps=0.075, device="cpu")["one"]
        assert (found.clean, found.fgsm, found.pgd) == (0.75, 0.25, 0.25)
        assert "clean 75.00%, FGSM 25.00%, PGD-10 25.00% at eps 19.125/255, 4 heldout images" in str(found)
        assert found.to_dict()["steps"] == 10

    def test_each_network_is_attacked_on_its_own_and_comes_back_as_it_was(self):
        other = copy.deepcopy(MODEL).train()
        other[1].weight.grad = torch.ones(2, 3)
        before = copy.deepcopy(other.state_dict())
        found = robustness({"dense": MODEL, "pruned": other}, self.DATA, eps=EPS, device="cpu", batch_size=3)
        assert found["dense"] == found["pruned"]
        assert other.training
        assert torch.equal(other[1].weight.grad, torch.ones(2, 3))
        assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())

    def test_attacks_never_help(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).eval()
        rng = np.random.default_rng(0)
        data = picture_data(rng.integers(0, 256, (64, 3)).tolist(), rng.integers(0, 2, 64).tolist())
        found = robustness({"it": model}, data, eps=0.05, device="cpu")["it"]
        assert found.pgd <= found.fgsm <= found.clean
        assert found.pgd < found.clean


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fgsm(0.0), "needs 0 < eps <= 1"),
        (lambda: fgsm(8.0), "needs 0 < eps <= 1"),
        (lambda: pgd(0.1, steps=0), "steps >= 1"),
        (lambda: pgd(0.1, step_size=-1.0), "step_size > 0"),
        (lambda: robustness({}, TestRobustness.DATA), "no model to attack"),
    ],
)
def test_bad_options(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
