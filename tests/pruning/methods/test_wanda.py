"""Wanda: a case worked by hand, input norms against unfolded inputs, and rows that lose equally many."""

import pytest
import torch
from torch import nn

from pruning import masks
from pruning.calibration import as_rows, features, from_rows
from pruning.methods.magnitude import OneShotMagnitude
from pruning.methods.wanda import Wanda
from workloads.errors import ConfigError

LAYERS = [
    (nn.Linear(6, 4), (2, 5, 6)),
    (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 7, 6)),
    (nn.Conv2d(4, 4, (3, 2), dilation=(1, 2), padding="same", padding_mode="circular", groups=4), (2, 4, 5, 6)),
    (nn.Conv1d(4, 6, 3, padding=2, groups=2), (2, 4, 9)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda value: type(value).__name__)
def test_features_times_rows_are_the_answers(layer, shape):
    x = torch.randn(shape)
    groups = getattr(layer, "groups", 1)
    answers = torch.einsum("gpf,gkf->pgk", features(layer, x), as_rows(layer.weight, groups)).flatten(1) + layer.bias
    wanted = layer(x)
    wanted = wanted.flatten(0, -2) if groups == 1 else wanted.movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(answers, wanted)
    assert torch.equal(from_rows(as_rows(layer.weight, groups), layer.weight.shape), layer.weight)


def test_worked_by_hand():
    """Inputs (3, 1), (4, 0): norms 5 and 1. Scores 5 x 1 > 1 x 4 in the first row, 5 x 1 < 1 x 6 in the second."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -4.0], [-1.0, 6.0]]))
    data = [(torch.tensor([[3.0, 1.0]]), torch.zeros(1)), (torch.tensor([[4.0, 0.0]]), torch.zeros(1))]
    options = {"density": {"0": 0.5}, "granularity": "row"}
    found = masks.masks_of(Wanda(model, (torch.zeros(1, 2),), data=data, **options).model)
    assert found["0.weight"].tolist() == [[True, False], [False, True]]
    plain = masks.masks_of(OneShotMagnitude(model, (torch.zeros(1, 2),), **options).model)
    assert plain["0.weight"].tolist() == [[False, True], [False, True]]


def test_scores_of_a_grouped_convolution_are_magnitudes_times_norms_of_what_each_weight_reads():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)).eval()
    x = torch.randn(3, 4, 7, 6)
    pruner = Wanda(model, (x,), density={"0": 0.5}, data=[(x[:2], torch.zeros(2)), (x[2:], torch.zeros(1))])
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    for k, c, r, s in ((0, 0, 0, 0), (2, 1, 2, 1), (3, 0, 1, 2), (5, 1, 0, 2)):
        read = padded[:, c + 2 * (k >= 3), r : r + 7 : 2, s : s + 6 : 2]
        wanted = model[0].weight[k, c, r, s].abs() * read.square().sum().sqrt()
        torch.testing.assert_close(pruner.scores()["0.weight"][k, c, r, s], wanted)
    assert (masks.masks_of(pruner.model)["0.weight"].sum((1, 2, 3)) == 9).all()


def test_a_transposed_convolution_goes_by_its_input_channels():
    model = nn.Sequential(nn.ConvTranspose2d(2, 3, 2, bias=False))
    nn.init.ones_(model[0].weight)
    x = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    pruner = Wanda(model, (x,), density={"0": 0.5}, data=[(x, torch.zeros(1))])
    assert pruner.scores()["0.weight"][:, 0, 0, 0].tolist() == [3.0, 4.0]
    found = masks.masks_of(pruner.model)["0.weight"]
    assert found[1].all(), "of each output the weights that read the louder channel"
    assert not found[0].any()


def test_without_pictures():
    with pytest.raises(ConfigError, match="data holds no batch"):
        Wanda(LAYERS[0][0], (torch.zeros(1, 6),), density={"": 0.5}, data=[])
