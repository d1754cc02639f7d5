"""Anchors, matching, the multibox loss, suppression and mean average precision, worked by hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruning.detection import (
    Detection,
    Detections,
    anchors,
    corners,
    decode,
    detect,
    encode,
    iou,
    match,
    mean_average_precision,
    multibox_loss,
    suppress,
)
from pruning.methods.network_pruning_network import NetworkPruningNetwork
from pruning.training import fit
from workloads.data import ImageData, Preprocessing
from workloads.data.detection import MOST, SIDE, DetectionData, compose, cut_out, digits_detection
from workloads.errors import ConfigError
from workloads.lowering import lower
from workloads.models import build, example_input
from workloads.models.ssd_digits import GRIDS

QUARTERS = anchors([(2, [(0.5, 0.5)])])  # four boxes that tile the picture


def target(*rows: tuple[float, ...]) -> torch.Tensor:
    """(1, 3, 5), filled up with rows without a box."""
    return torch.tensor([[*rows, *[(-1.0, 0, 0, 0, 0)] * (3 - len(rows))]])


class TestBoxes:
    def test_anchors_lie_row_by_row(self):
        assert corners(QUARTERS).tolist() == [
            [0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1],
        ]  # fmt: skip

    def test_iou_by_hand(self):
        one = torch.tensor([0.0, 0.0, 2.0, 2.0])
        others = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0], [2.0, 2.0, 3.0, 3.0], [0.5, 0.5, 1.5, 1.5]])
        torch.testing.assert_close(iou(one, others), torch.tensor([1.0, 2 / 6, 0.0, 1 / 4]))

    def test_offsets_by_hand_and_back(self):
        """Moved by a tenth of the anchor's width, twice as high."""
        place, box = torch.tensor([[0.5, 0.5, 0.2, 0.2]]), torch.tensor([[0.42, 0.3, 0.62, 0.7]])
        torch.testing.assert_close(encode(box, place), torch.tensor([[1.0, 0.0, 0.0, math.log(2) / 0.2]]))
        torch.testing.assert_close(decode(encode(box, place), place), box)


class TestMatch:
    def test_an_anchor_answers_for_the_box_it_overlaps_by_half(self):
        labels, boxes = match(target((7, 0, 0, 0.5, 0.4)), QUARTERS)
        assert labels.tolist() == [[8, 0, 0, 0]]
        torch.testing.assert_close(boxes[0, 0], torch.tensor([0, 0, 0.5, 0.4]))

    def test_a_small_box_gets_the_anchor_that_overlaps_it_most(self):
        labels, _ = match(target((0, 0.6, 0.6, 0.7, 0.7)), QUARTERS)
        assert labels.tolist() == [[0, 0, 0, 1]]

    def test_the_nearest_anchor_goes_to_its_box_though_another_overlaps_it_more(self):
        """The first fills the anchor, the second lies in it alone."""
        labels, _ = match(target((3, 0, 0, 0.5, 0.5), (5, 0.1, 0.1, 0.2, 0.2)), QUARTERS)
        assert labels.tolist() == [[6, 0, 0, 0]]

    def test_a_picture_without_boxes_is_background(self):
        assert not match(target(), QUARTERS)[0].any()


def test_multibox_loss_by_hand():
    """One match and, with one negative each, the surest wrong background: anchor 2."""
    targets, offsets = target((0, 0, 0, 0.5, 0.5)), torch.zeros(1, 4, 4)
    offsets[0, 0, 0] = 3.0  # smooth L1: 2.5
    logits = torch.tensor([[[0.0, 1.0], [4.0, 0.0], [0.0, 2.0], [1.0, 0.0]]])
    wanted = 2.5 + F.cross_entropy(logits[0, [0, 2]], torch.tensor([1, 0]), reduction="sum")
    torch.testing.assert_close(multibox_loss((offsets, logits), targets, QUARTERS, negatives=1), wanted)
    more = wanted + F.cross_entropy(logits[0, [3]], torch.tensor([0]))
    torch.testing.assert_close(multibox_loss((offsets, logits), targets, QUARTERS, negatives=2), more)


class TestDetect:
    def test_suppression_spares_other_classes_and_what_only_overlapped_a_removed_box(self):
        boxes = torch.tensor([[0.0, 0, 4, 1], [1.0, 0, 5, 1], [2.5, 0, 6.5, 1], [0.0, 0, 4, 1]])
        assert suppress(boxes, torch.tensor([0, 0, 0, 1]), 0.4).tolist() == [0, 2, 3]

    def test_surest_first_and_in_place(self):
        logits = torch.full((1, 4, 3), -10.0)
        logits[..., 0] = 0
        logits[0, 1, 2], logits[0, 3, 1] = 3.0, 2.0
        (found,) = detect((torch.zeros(1, 4, 4), logits), QUARTERS)
        assert found.labels.tolist() == [1, 0]
        assert found.boxes.tolist() == corners(QUARTERS)[[1, 3]].tolist()
        assert found.scores == pytest.approx([1 / (1 + math.exp(-3)), 1 / (1 + math.exp(-2))], rel=1e-3)


class TestAveragePrecision:
    BOX = np.array([0.0, 0, 0.5, 0.5], np.float32)
    OTHER = np.array([0.5, 0.5, 1, 1], np.float32)

    def found(self, *rows: tuple[np.ndarray, int, float]) -> Detections:
        boxes, labels, scores = zip(*rows, strict=True)
        return Detections(np.stack(boxes), np.array(labels), np.array(scores, np.float32))

    def test_by_hand(self):
        """Two boxes of class 0: right at .9, a double at .8, right at .7: 1/2 x 1 + 1/2 x 2/3."""
        targets = target((0, *self.BOX), (0, *self.OTHER))
        found = [self.found((self.BOX, 0, 0.9), (self.BOX, 0, 0.8), (self.OTHER, 0, 0.7))]
        assert mean_average_precision(found, targets) == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)

    def test_precision_is_the_best_at_that_recall_or_beyond(self):
        """Wrong at .9, right at .8 and .7: precisions 1/2 and 2/3, of which the second counts for both."""
        targets = target((0, *self.BOX), (0, *self.OTHER))
        wrong = np.array([0.5, 0, 1, 0.5], np.float32)
        found = [self.found((wrong, 0, 0.9), (self.BOX, 0, 0.8), (self.OTHER, 0, 0.7))]
        assert mean_average_precision(found, targets) == pytest.approx(2 / 3)

    def test_the_mean_is_over_classes_that_occur_and_pictures_are_ranked_together(self):
        targets = torch.cat([target((0, *self.BOX)), target((4, *self.BOX))])
        found = [self.found((self.BOX, 0, 0.6)), self.found((self.BOX, 0, 0.9), (self.BOX, 1, 0.9))]
        assert mean_average_precision(found, targets) == pytest.approx((1 / 2 + 0) / 2)

    def test_nothing_to_find_is_no_precision(self):
        with pytest.raises(ConfigError, match="the targets hold no box"):
            mean_average_precision([self.found((self.BOX, 0, 0.6))], torch.full((1, 2, 5), -1.0))


def digits() -> ImageData:
    """White rectangles as digits: 12 x 8 pixels, one of each class."""
    images = np.zeros((10, 1, 28, 28), np.uint8)
    images[:, :, 8:20, 10:18] = 255
    return ImageData("m", "train", images, np.arange(10), np.arange(10), 10, Preprocessing((0.1,), (0.3,)))


class TestData:
    def test_boxes_are_the_ink_and_do_not_touch(self):
        data = compose(digits(), 50, seed=0)
        counts = (data.targets[..., 0] >= 0).sum(1)
        assert set(counts) == set(range(1, MOST + 1))
        for image, rows in zip(data.images[:, 0], data.targets, strict=True):
            left = image.copy()
            for _, *box in rows[rows[:, 0] >= 0]:
                x0, y0, x1, y1 = (round(edge * SIDE) for edge in box)
                assert (y1 - y0, x1 - x0) in {(12, 8), (6, 4)}
                assert left[y0:y1, x0:x1].all()
                left[y0:y1, x0:x1] = 0
            assert not left.any()

    def test_a_picture_depends_on_seed_and_number_alone(self):
        few, many, other = compose(digits(), 3, 0), compose(digits(), 9, 0), compose(digits(), 3, 1)
        assert np.array_equal(few.images, many.take(3).images)
        assert np.array_equal(few.targets, many.take(3).targets)
        assert not np.array_equal(few.images, other.images)

    def test_half_size_is_the_mean_of_four_pixels(self):
        image = np.zeros((4, 4), np.uint8)
        image[1:3, 1:3] = [[4, 8], [12, 16]]
        assert cut_out(image, half=False).tolist() == [[4, 8], [12, 16]]
        assert cut_out(image, half=True).tolist() == [[1, 2], [3, 4]]

    def test_batches_go_over_every_picture_once(self):
        data = compose(digits(), 10, 0)
        parts = list(data.batches(4, torch.Generator().manual_seed(0)))
        assert [tuple(x.shape) for x, _ in parts] == [(4, 1, 64, 64), (4, 1, 64, 64), (2, 1, 64, 64)]
        seen = torch.cat([y for _, y in parts])
        assert sorted(seen.flatten(1).tolist()) == sorted(torch.tensor(data.targets).flatten(1).tolist())
        with pytest.raises(ConfigError, match="batch_size 0 given"):
            list(data.batches(0))
        with pytest.raises(ConfigError, match="11 pictures asked of train"):
            data.take(11)

    def test_real_digits(self, data_dir):
        data = digits_detection("heldout", 20)
        assert data.split == "heldout"
        assert len(data) == 20
        with pytest.raises(ConfigError, match="must be 1 to 2000"):
            digits_detection("heldout", 2001)


class Prepared(nn.Module):
    """Answers of two pictures, whatever they show: the first is found exactly, the second not at all."""

    def __init__(self, targets: torch.Tensor):
        super().__init__()
        self.unused, self.moved = nn.Parameter(torch.zeros(1)), []
        labels, boxes = match(targets, QUARTERS)
        self.offsets = encode(boxes, QUARTERS)
        self.logits = 20.0 * F.one_hot(labels * torch.tensor([[1], [0]]), 3)

    def to(self, *args, **kwargs):
        self.moved.append(torch.is_inference_mode_enabled())
        return super().to(*args, **kwargs)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert not self.training
        assert torch.is_inference_mode_enabled()
        return self.offsets, self.logits


class TestObjective:
    def test_evaluation_by_hand(self):
        """Of two boxes of one class one is found; loss: its anchor that says background, and three sure of it."""
        targets = torch.cat([target((1, 0, 0, 0.5, 0.5)), target((1, 0.5, 0.5, 1, 1))])
        data = DetectionData(
            "test", np.zeros((2, 1, 8, 8), np.uint8), targets.numpy(), Preprocessing((0.0,), (1.0,)), 2
        )
        model = Prepared(targets)
        score = Detection(QUARTERS).evaluate(model, data, device="cpu")
        assert score.accuracy == pytest.approx(0.5)
        assert score.loss == pytest.approx((0 + 20) / 2, abs=1e-4)  # over the batch's two matched anchors
        assert (score.images, score.split) == (2, "test")
        assert model.training
        assert model.moved == [False, False], "parameters that move in inference mode can be trained no more"

    def test_fit_trains_it_and_keeps_the_epoch_of_best_precision(self):
        data, goal = compose(digits(), 96, 0), Detection(anchors(GRIDS))
        model = build("ssd_digits")
        found = fit(model, data, 3, 0.05, heldout=data.take(32), objective=goal, batch_size=16, progress=False)
        assert found.history[-1].loss < found.history[0].loss / 2
        assert found.history[-1].accuracy is None
        assert found.heldout_accuracy == max(entry.heldout_accuracy for entry in found.history)

    @pytest.mark.parametrize("last", [3, 6])
    def test_a_stopped_run_goes_on_to_the_same_network(self, last, tmp_path, monkeypatch):
        """Two steps an epoch, gates are fixed after the third: it goes on from before that, or from after."""
        data, goal = compose(digits(), 32, 0), Detection(anchors(GRIDS))

        def trained(file: str) -> nn.Module:
            pruner = NetworkPruningNetwork(
                build("ssd_digits"), (example_input("ssd_digits"),), 6, end=0.5, strength=50.0, lr=0.2, smoothing=0.0
            )
            fit(
                pruner.model, data, 3, 0.05, pruner=pruner, objective=goal, batch_size=16, progress=False,
                checkpoint=tmp_path / file,
            )  # fmt: skip
            return pruner.finalize()

        real = NetworkPruningNetwork.after_step

        def stop(pruner: NetworkPruningNetwork) -> None:
            real(pruner)
            if pruner.steps_done == last:
                raise KeyboardInterrupt

        whole = trained("whole")
        with monkeypatch.context() as patch:
            patch.setattr(NetworkPruningNetwork, "after_step", stop)
            with pytest.raises(KeyboardInterrupt):
                trained("stopped")
        again = trained("stopped")
        for name, tensor in whole.state_dict().items():
            assert torch.equal(again.state_dict()[name], tensor), name


class TestDetector:
    def test_anchors_fit_its_answers_and_it_is_priced(self):
        model = build("ssd_digits")
        offsets, logits = model(example_input("ssd_digits"))
        assert offsets.shape[1] == logits.shape[1] == len(anchors(GRIDS)) == 16 * 16 * 2 + 8 * 8 * 2
        graph = lower(model, example_input("ssd_digits"))
        backbone = [(32, 1, 16), (16, 16, 32), (16, 32, 64), (8, 64, 96), (8, 96, 96)]
        heads = [(16, 64, 30), (8, 96, 30)]  # 2 anchors x (4 + 11)
        assert graph.macs == sum(9 * side**2 * c * k for side, c, k in backbone + heads)

    def test_a_head_moves_its_own_anchors(self):
        """The box head of the coarse map is last in the answer, a cell's two anchors next to each other."""
        model, x = build("ssd_digits"), example_input("ssd_digits")
        before = model(x)[0]
        with torch.no_grad():
            model.boxes[1].bias[4] += 1  # second anchor, cx
        moved = (model(x)[0] - before)[0].detach()
        assert (moved[:512] == 0).all()
        torch.testing.assert_close(moved[512:].reshape(64, 2, 4)[:, 1, 0], torch.ones(64))
        assert moved[512:].sum() == pytest.approx(64, rel=1e-4)

    def test_the_pruner_network_prunes_it_by_its_own_loss(self):
        """The method never sees a label: the loss comes from this loop; heads keep their outputs."""
        data, places = compose(digits(), 32, 0), anchors(GRIDS)
        inputs = (example_input("ssd_digits"),)
        pruner = NetworkPruningNetwork(
            build("ssd_digits").train(), inputs, 6, end=0.5, strength=50.0, lr=0.2, smoothing=0.0
        )
        assert list(pruner.groups) == ["fine.0.0", "fine.1.0", "fine.2.0", "coarse.0.0", "coarse.1.0"]
        assert len(pruner.learner.network.taps) == 4
        optimizer = torch.optim.SGD(pruner.model.parameters(), 0.01)
        for x, y in [*data.batches(16)] * 3:
            optimizer.zero_grad()
            (multibox_loss(pruner.model(x), y, places) + pruner.loss()).backward()
            optimizer.step()
            pruner.step()
        baked = pruner.finalize().eval()
        small = pruner.plan().apply(baked, inputs)
        assert lower(small, inputs).macs < 0.9 * lower(baked, inputs).macs
        torch.testing.assert_close(small(inputs[0]), baked(inputs[0]), atol=1e-4, rtol=1e-4)
        scores = [Detection(places).evaluate(each, data, device="cpu").accuracy for each in (small, baked)]
        assert scores[0] == pytest.approx(scores[1], abs=0.01)
