"""Single-shot detection: anchors, which digit each must find, the loss, boxes from answers, mean average precision.

A detector answers, for each of `a` anchor boxes, offsets (n, a, 4) and logits (n, a, 1 + classes), background first.
Boxes are corners x0, y0, x1, y1 as fractions of the picture; anchors are centres and sizes cx, cy, w, h. Targets are
(n, g, 5): a label and a box a row, label -1 where there is none (`workloads.data.detection`).

    places = anchors(GRIDS)
    loss = multibox_loss(model(x), targets, places)
    mean_average_precision(detect(model(x), places), targets)
    fit(model, train, epochs=10, lr=0.05, heldout=heldout, objective=Detection(places))

Source: Liu et al., "SSD: Single Shot MultiBox Detector", ECCV 2016, section 2.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning.devices import autocast, pick_device, pick_precision, placed
from pruning.evaluation import Score, finite, measuring
from workloads.data.detection import DetectionData
from workloads.errors import ConfigError

VARIANCES = (0.1, 0.1, 0.2, 0.2)  # units of offsets, as the authors' code has them
MATCH_IOU = 0.5
BATCH = 200  # pictures at once while a detector is measured
Answer = tuple[Tensor, Tensor]


def anchors(grids: Sequence[tuple[int, Sequence[tuple[float, float]]]]) -> Tensor:
    """All anchors, feature map by feature map, row by row, those of a cell together: float32, (a, 4) cx, cy, w, h.

    >>> anchors([(2, [(0.5, 1.0)])]).tolist()[1]
    [0.75, 0.25, 0.5, 1.0]
    """
    found = [
        ((x + 0.5) / side, (y + 0.5) / side, w, h)
        for side, sizes in grids
        for y in range(side)
        for x in range(side)
        for w, h in sizes
    ]
    return torch.tensor(found)


def corners(boxes: Tensor) -> Tensor:
    """Centres and sizes (..., 4) as corners."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def iou(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of corner boxes that broadcast, (..., 4) and (..., 4) -> (...)."""
    low, high = torch.maximum(one[..., :2], other[..., :2]), torch.minimum(one[..., 2:], other[..., 2:])
    common = (high - low).clamp(min=0).prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).clamp(min=0).prod(-1) for box in (one, other)]
    return common / (areas[0] + areas[1] - common).clamp(min=1e-12)


def match(targets: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Which class each anchor must answer, 0 for background, and the box that it must find.

    An anchor answers for the box that it overlaps most if their IoU reaches one half; the anchor that overlaps a box
    most answers for it in any case.

    Returns:
        int64 (n, a), and corners float32 (n, a, 4).
    """
    is_box = targets[..., 0] >= 0
    overlap = iou(targets[:, None, :, 1:], corners(places)[None, :, None])  # (n, a, g)
    overlap = overlap.masked_fill(~is_box[:, None], -1)
    best, which = overlap.max(2)
    for row in range(targets.shape[1]):
        here = is_box[:, row].nonzero()[:, 0]
        nearest = overlap[here, :, row].argmax(1)
        best[here, nearest], which[here, nearest] = 2.0, row
    labels = targets[..., 0].long().gather(1, which) + 1
    boxes = targets[..., 1:].gather(1, which[..., None].expand(-1, -1, 4))
    return labels * (best >= MATCH_IOU), boxes


def encode(boxes: Tensor, places: Tensor) -> Tensor:
    """Corners as offsets from their anchors, in units of VARIANCES: what the box heads answer."""
    size = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1e-6)
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    offsets = torch.cat([(centre - places[:, :2]) / places[:, 2:], (size / places[:, 2:]).log()], -1)
    return offsets / offsets.new_tensor(VARIANCES)


def decode(offsets: Tensor, places: Tensor) -> Tensor:
    """The inverse of `encode`."""
    scaled = offsets * offsets.new_tensor(VARIANCES)
    return corners(
        torch.cat([places[:, :2] + scaled[..., :2] * places[:, 2:], places[:, 2:] * scaled[..., 2:].exp()], -1)
    )


def multibox_loss(answer: Answer, targets: Tensor, places: Tensor, negatives: int = 3) -> Tensor:
    """Smooth L1 of matched boxes and cross entropy of matched anchors and the hardest others, over their number.

    Args:
        negatives: background anchors that count, those of largest loss, for every matched one of a picture.
    """
    offsets, logits = (part.float() for part in answer)
    labels, boxes = match(targets, places)
    is_found = labels > 0
    entropy = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
    hardness = entropy.detach().masked_fill(is_found, -1)
    rank = hardness.argsort(1, descending=True).argsort(1)
    counts = is_found | ((rank < negatives * is_found.sum(1, keepdim=True)) & ~is_found)
    distance = F.smooth_l1_loss(offsets[is_found], encode(boxes, places)[is_found], reduction="sum")
    return (distance + entropy[counts].sum()) / is_found.sum().clamp(min=1)


@dataclass(frozen=True, eq=False)
class Detections:
    """What was found in one picture, surest first.

    Attributes:
        boxes: float32 (m, 4), corners. labels: int64 (m,), 0 is the first class. scores: float32 (m,), 0 .. 1.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


@torch.no_grad()
def detect(
    answer: Answer, places: Tensor, least_score: float = 0.02, overlap: float = 0.45, most: int = 50
) -> list[Detections]:
    """Boxes of each picture: those of a score, without those that overlap a surer one of their class."""
    offsets, logits = (part.float() for part in answer)
    boxes, scores = decode(offsets, places).cpu(), logits.softmax(-1)[..., 1:].cpu()
    found = []
    for box, score in zip(boxes, scores, strict=True):
        anchor, label = (score > least_score).nonzero(as_tuple=True)
        order = score[anchor, label].argsort(descending=True, stable=True)[: 8 * most]
        anchor, label = anchor[order], label[order]
        kept = suppress(box[anchor], label, overlap)[:most]
        parts = (box[anchor][kept], label[kept], score[anchor, label][kept])
        found.append(Detections(*(part.numpy() for part in parts)))
    return found


def suppress(boxes: Tensor, labels: Tensor, overlap: float) -> Tensor:
    """Non-maximum suppression: positions that stay, int64, of boxes that come surest first."""
    clashes = (iou(boxes[:, None], boxes[None]) > overlap) & (labels[:, None] == labels[None])
    stays = torch.ones(len(boxes), dtype=torch.bool)
    for i in range(len(boxes)):
        if stays[i]:
            stays[i + 1 :] &= ~clashes[i, i + 1 :]
    return stays.nonzero()[:, 0]


def mean_average_precision(found: Sequence[Detections], targets: Tensor, least_iou: float = 0.5) -> float:
    """Mean over the classes that occur of the area under precision against recall, 0 .. 1.

    A detection is right if the box of its class that it overlaps most, by `least_iou` or more, was not found before
    by a surer one. Precision at a recall is the best at that recall or beyond (Pascal VOC since 2010).

    Raises:
        ConfigError: there is no box to find.
    """
    truth = targets.cpu().numpy()
    if not (truth[..., 0] >= 0).any():
        raise ConfigError("the targets hold no box: there is no precision to speak of")
    classes = np.unique(truth[..., 0][truth[..., 0] >= 0]).astype(int)
    return float(np.mean([_average_precision(found, truth, label, least_iou) for label in classes]))


def _average_precision(found: Sequence[Detections], truth: np.ndarray, label: int, least_iou: float) -> float:
    scores, right = [np.zeros(0, np.float32)], []
    for item, rows in zip(found, truth, strict=True):
        mine, boxes = item.labels == label, torch.from_numpy(rows[rows[:, 0] == label][:, 1:])
        overlaps = iou(torch.from_numpy(item.boxes[mine])[:, None], boxes[None]).numpy()
        taken = np.zeros(len(boxes), bool)
        for overlap in overlaps:
            best = int(overlap.argmax()) if len(boxes) else -1
            hit = best >= 0 and overlap[best] >= least_iou and not taken[best]
            if hit:
                taken[best] = True
            right.append(hit)
        scores.append(item.scores[mine])
    hits = np.array(right, float)[np.argsort(-np.concatenate(scores), kind="stable")]
    precision = hits.cumsum() / (1 + np.arange(len(hits)))
    beyond = np.maximum.accumulate(precision[::-1])[::-1]
    return float((beyond * hits).sum() / (truth[..., 0] == label).sum())


@dataclass(frozen=True, eq=False)
class Detection:
    """Detection as an objective of `pruning.training.fit`: the multibox loss, and mean average precision at IoU 0.5.

    Attributes:
        places: the anchors of the model that is trained, float32 (a, 4).
    """

    places: Tensor
    metric: ClassVar[str] = "mean average precision"

    def loss(self, outputs: Answer, targets: Tensor) -> Tensor:
        return multibox_loss(outputs, targets, self.places.to(targets.device))

    def right(self, outputs: Answer, targets: Tensor) -> None:
        """Not counted: a detection is right or wrong among all others of its class, not by itself."""

    def evaluate(
        self, model: nn.Module, data: DetectionData, *, device: str = "auto", precision: str = "fp32"
    ) -> Score:
        """Mean loss of the batches and mean average precision, in eval mode; the model comes back as it was."""
        where = pick_device(device)
        chosen = pick_precision(precision, where)
        found: list[Detections] = []
        loss = 0.0
        with measuring(model, where), torch.inference_mode():
            for x, y in data.batches(BATCH):
                with autocast(where, chosen):
                    answer = model(placed(x, where))
                loss += float(self.loss(answer, y.to(where))) * len(y)
                found += detect(answer, self.places.to(where))
        mean = finite(loss / len(data), f"{data.split} scenes")
        precision_at_half = mean_average_precision(found, torch.tensor(data.targets))
        return Score(mean, precision_at_half, len(data), data.split, chosen)
