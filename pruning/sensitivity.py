"""How much worse a network gets for each choice: units of a channel group removed, weights of a layer zeroed.

A **variable** is a channel group ("channels:layer1.0.conv1") or a layer's weights ("weights:layer1.0.conv1"); its
**options** are counts of kept units, or masks, of which the first is always the dense weight. Two ways to fill the
same table:

* `measure`: set the option's weights to zero, run held-out training pictures, write the weights back. One pass an
  option; nothing is copied. Batch norms may use the statistics of the pictures at hand (`adapt_norms`), which is how
  the network would look after the cheapest repair; that predicts better what fine-tuning can mend.
* `first_order`: gradients of a few hundred pictures, one backward pass for all options,

      loss(S) - loss  ~  1/2 sum over items i in S of  B mean over batches b of (d loss_b / d z_i)^2

  where z_i is a factor on item i (a unit, or a single weight) that is 1 now and 0 when it is removed, and B the
  batch size. This is the diagonal of the empirical Fisher information in place of the Hessian.

Both look at one variable at a time; what several removals do together is for the search to check.

Source: Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", 2018, equation 7. Differs:
squares of batch means times B instead of squares of single pictures, which agree where pictures are independent. Li et
al., "EagleEye: Fast Sub-net Evaluation for Efficient Neural Network Pruning", ECCV 2020 (adaptive batch norm).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from pruning.devices import pick_device, pick_precision, place, placed
from pruning.evaluation import Labelled, labelled_batches, score
from pruning.importance import gradients, rank_units
from pruning.progress import shown
from pruning.surgery import in_torch_layout
from pruning.wiring import Wiring, wire
from workloads.channels import ChannelAnalysis
from workloads.constants import tensors_of
from workloads.errors import ConfigError, PlanError
from workloads.sparsity import WeightSparsity
from workloads.store import read_json, write_json

FORMAT = "codesign.sensitivity"
VERSION = 1
CHANNELS, WEIGHTS = "channels:", "weights:"


@dataclass(frozen=True)
class Sensitivity:
    """What each option is expected to cost in loss, and what it was seen to cost in accuracy.

    Attributes:
        method: "measured" or "first_order".
        images: how many were looked at, of which split. precision: "fp32" or "bf16".
        adapted: whether batch norms used the statistics of the pictures, also for the base.
        base_loss, base_accuracy: of the network as it is.
        options: variable -> counts, or densities of the masks (1 for the dense weight).
        ranking: channel group -> units, most important first; a count keeps the first of them.
        loss: variable -> increase of the mean cross entropy, one number an option. Measured ones may be negative.
        accuracy: variable -> change of the accuracy (usually below 0); None where it was not measured.
    """

    method: str
    images: int
    split: str
    precision: str
    adapted: bool
    base_loss: float
    base_accuracy: float
    options: Mapping[str, tuple[float, ...]]
    ranking: Mapping[str, tuple[int, ...]]
    loss: Mapping[str, tuple[float, ...]]
    accuracy: Mapping[str, tuple[float, ...] | None]

    def monotone(self) -> dict[str, np.ndarray]:
        """Losses fit for a search: at least 0, and never less where more is removed. float64, one an option.

        >>> found = Sensitivity("measured", 10, "heldout", "fp32", False, 0.1, 0.9, {"channels:a": (2, 4, 3)},
        ...                     {"a": (0, 1, 3, 2)}, {"channels:a": (0.2, -0.01, 0.25)}, {"channels:a": None})
        >>> found.monotone()["channels:a"].tolist()
        [0.25, 0.0, 0.25]
        """
        found = {}
        for variable, losses in self.loss.items():
            order = np.argsort(-np.asarray(self.options[variable], float), kind="stable")
            rising = np.empty(len(losses))
            rising[order] = np.maximum.accumulate(np.maximum(np.asarray(losses, float)[order], 0.0))
            found[variable] = rising
        return found

    def __str__(self) -> str:
        looked = f"{self.images:,} {self.split} images in {self.precision}"
        lines = [f"{self.method} on {looked}; loss {self.base_loss:.4f} as it is"]
        width = max((len(variable) for variable in self.options), default=0)
        for variable, options in self.options.items():
            pairs = zip(options, self.loss[variable], strict=True)
            lines.append(f"  {variable:{width}}  " + "  ".join(f"{option:g}: {loss:+.4f}" for option, loss in pairs))
        return "\n".join(lines)

    # ---- JSON -------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """A JSON value, exact."""
        rows = {
            variable: {
                "options": list(options),
                "loss": list(self.loss[variable]),
                "accuracy": None if (found := self.accuracy[variable]) is None else list(found),
            }
            for variable, options in self.options.items()
        }
        names = ("method", "images", "split", "precision", "adapted", "base_loss", "base_accuracy")
        return {"format": FORMAT, "version": VERSION, **{n: getattr(self, n) for n in names}} | {
            "ranking": {group: list(order) for group, order in self.ranking.items()},
            "variables": rows,
        }

    @classmethod
    def from_dict(cls, data: Any) -> Sensitivity:
        """The inverse of `to_dict`.

        Raises:
            ConfigError: not a sensitivity table, another version, or a bad field.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT or data.get("version") != VERSION:
            raise ConfigError(f"not a sensitivity table: needs format {FORMAT!r}, version {VERSION}")
        try:
            rows = data["variables"]
            for variable, row in rows.items():
                sizes = {len(row["options"]), len(row["loss"]), len(row["accuracy"] or row["loss"])}
                if len(sizes) != 1:
                    raise ConfigError(f"sensitivity table: {variable!r} has lists of different lengths")
            return cls(
                method=str(data["method"]),
                images=int(data["images"]),
                split=str(data["split"]),
                precision=str(data["precision"]),
                adapted=bool(data["adapted"]),
                base_loss=float(data["base_loss"]),
                base_accuracy=float(data["base_accuracy"]),
                ranking={group: tuple(map(int, order)) for group, order in data["ranking"].items()},
                options={variable: tuple(row["options"]) for variable, row in rows.items()},
                loss={variable: tuple(map(float, row["loss"])) for variable, row in rows.items()},
                accuracy={v: None if row["accuracy"] is None else tuple(row["accuracy"]) for v, row in rows.items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"sensitivity table: a field is missing or malformed ({error!r})") from error

    def save(self, path: Path) -> None:
        """Write the table as JSON, whole or not at all."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: Path) -> Sensitivity:
        """Read what `save` wrote; errors name the file."""
        data = read_json(path)
        try:
            return cls.from_dict(data)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error


# ---- what is tried ---------------------------------------------------------------------------------------------------

Counts = Mapping[str, Sequence[int]]  # channel group -> counts of kept units
ZerosOf = Mapping[str, Sequence[WeightSparsity]]  # layer -> masks of its weight


@dataclass(frozen=True, eq=False)
class _Task:
    """Checked options, and what each of them sets to zero."""

    wiring: Wiring
    counts: Counts
    masks: ZerosOf
    ranking: Mapping[str, np.ndarray]
    split: str

    @classmethod
    def checked(
        cls,
        model: nn.Module,
        analysis: ChannelAnalysis,
        options: Counts,
        split: str,
        masks: ZerosOf | None,
        ranking: Mapping[str, Sequence[int]] | None,
    ) -> _Task:
        """Raise unless every option can be carried out on this network."""
        if not options and not masks:
            raise PlanError("no options to try; name a channel group or a layer")
        wiring = wire(model, analysis)
        for group, counts in options.items():
            wiring.cuts(group)
            for count in counts:
                analysis.group(group).check(count)
        given = {group: np.asarray(order) for group, order in (ranking or {}).items()}
        missing = tuple(group for group in options if group not in given)
        order = given | (rank_units(model, analysis, groups=missing) if missing else {})
        task = cls(wiring, options, masks or {}, {group: order[group] for group in options}, split)
        for group, units in task.ranking.items():
            if not np.array_equal(np.sort(units), np.arange(analysis.group(group).size)):
                raise PlanError(f"ranking of channel group {group!r} is no permutation of its units")
        for layer, zeros in task.masks.items():
            task.check_masks(layer, zeros)
        return task

    def check_masks(self, layer: str, masks: Sequence[WeightSparsity]) -> None:
        self.wiring.weight_of(layer)
        for zeros in masks:
            if not zeros.is_exact or zeros.shape != self.wiring.graph[layer].weight_shape:
                wanted = self.wiring.graph[layer].weight_shape
                raise PlanError(f"mask of layer {layer!r} is {zeros!r}, needs an exact one of shape {wanted}")

    @property
    def options(self) -> dict[str, tuple[float, ...]]:
        """By variable; the dense weight comes first among masks."""
        found: dict[str, tuple[float, ...]] = {CHANNELS + group: tuple(c) for group, c in self.counts.items()}
        return found | {WEIGHTS + name: (1.0, *(z.density for z in zeros)) for name, zeros in self.masks.items()}

    def kept(self, group: str, count: int) -> dict[str, np.ndarray]:
        return {group: np.sort(self.ranking[group][:count])}

    def removed(self, layer: str, zeros: WeightSparsity, weight: Tensor) -> Tensor:
        """Where a mask removes weights, in the layout of the parameter."""
        return ~in_torch_layout(zeros.mask(), self.wiring.graph[layer], weight.shape)

    def changes(self, net: nn.Module) -> Iterator[tuple[str, Change]]:
        """What each option sets to zero, in the order of `options`; nothing where it keeps all."""
        tensors = tensors_of(net)
        for group, counts in self.counts.items():
            for count in counts:
                places = self.wiring.zeros(net, self.kept(group, count))
                yield CHANNELS + group, [(tensors[name], where) for name, found in places.items() for where in found]
        for layer, masks in self.masks.items():
            weight = tensors[self.wiring.weight_of(layer)]
            yield WEIGHTS + layer, []
            for zeros in masks:
                yield WEIGHTS + layer, [(weight, self.removed(layer, zeros, weight).to(weight.device))]

    def result(
        self,
        method: str,
        images: int,
        precision: str,
        adapted: bool,
        base: tuple[float, float],
        loss: Mapping[str, Sequence[float]],
        accuracy: Mapping[str, Sequence[float]] | None,
    ) -> Sensitivity:
        return Sensitivity(
            method=method,
            images=images,
            split=self.split,
            precision=precision,
            adapted=adapted,
            base_loss=base[0],
            base_accuracy=base[1],
            options=self.options,
            ranking={group: tuple(int(unit) for unit in order) for group, order in self.ranking.items()},
            loss={variable: tuple(values) for variable, values in loss.items()},
            accuracy={v: None if accuracy is None else tuple(accuracy[v]) for v in self.options},
        )


Change = list[tuple["Tensor", "Tensor"]]  # (parameter, where it becomes zero: bool that broadcasts to it)

# ---- measured --------------------------------------------------------------------------------------------------------


def measure(
    model: nn.Module,
    analysis: ChannelAnalysis,
    options: Counts,
    data: Labelled,
    *,
    masks: ZerosOf | None = None,
    ranking: Mapping[str, Sequence[int]] | None = None,
    batch_size: int = 250,
    device: str = "auto",
    precision: str = "auto",
    adapt_norms: bool = False,
    progress: bool = True,
) -> Sensitivity:
    """Try every option on all pictures of `data`.

    Args:
        model: not modified.
        analysis: of the model's graph.
        options: channel group -> counts of units to keep.
        data: held-out training pictures, never test pictures; a thousand are enough to rank options. Or batches
            (x, y) of them.
        masks: layer -> masks of its dense weight; the dense weight itself is added as the first option.
        ranking: channel group -> units, most important first; by default their L2 norms say (`rank_units`).
        batch_size: pictures at once; with `adapt_norms` the statistics are those of so many.
        precision: "auto" is bf16 where the machine multiplies it faster; differences hardly depend on it.

    Raises:
        PlanError: an option that is impossible, a mask that does not fit.
        ConfigError: device, precision, or test pictures.
    """
    found_batches = labelled_batches(data, batch_size)
    task = _Task.checked(model, analysis, options, getattr(data, "split", "given"), masks, ranking)
    where = pick_device(device)
    chosen = pick_precision(precision, where)
    net = copy.deepcopy(model).eval()
    place(net, where)
    if adapt_norms:
        _use_batch_statistics(net)
    batches = [(placed(x, where), y.to(where)) for x, y in found_batches]
    base = score(net, batches, chosen)
    found: dict[str, list[tuple[float, float]]] = {variable: [] for variable in task.options}
    total = sum(len(each) for each in task.options.values())
    for variable, change in shown(task.changes(net), "sensitivity", total, progress):
        with _zeroed(change):
            found[variable].append(score(net, batches, chosen) if change else base)
    loss = {variable: [one[0] - base[0] for one in scores] for variable, scores in found.items()}
    accuracy = {variable: [one[1] - base[1] for one in scores] for variable, scores in found.items()}
    images = sum(len(y) for _, y in batches)
    return task.result("measured", images, chosen, adapt_norms, base, loss, accuracy)


def _use_batch_statistics(net: nn.Module) -> None:
    """Batch norms normalise by the batch, and remember nothing of it."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.training, module.momentum = True, 0.0


@contextmanager
def _zeroed(change: Change) -> Iterator[None]:
    """Parameters with zeros where `change` says so; afterwards as they were."""
    before = [tensor.clone() for tensor, _ in change]
    try:
        for tensor, where in change:
            tensor.masked_fill_(where, 0)
        yield
    finally:
        for (tensor, _), old in reversed(list(zip(change, before, strict=True))):
            tensor.copy_(old)


# ---- from gradients --------------------------------------------------------------------------------------------------


def first_order(
    model: nn.Module,
    analysis: ChannelAnalysis,
    options: Counts,
    data: Labelled,
    *,
    masks: ZerosOf | None = None,
    ranking: Mapping[str, Sequence[int]] | None = None,
    batch_size: int = 16,
) -> Sensitivity:
    """Estimate all options from one backward pass over the pictures of `data`; arguments as for `measure`.

    Good for an order among options in seconds; where much is removed it says far too little, and on pictures that
    the network has learnt by heart gradients are tiny. Accuracy is not estimated.
    """
    labelled_batches(data, batch_size)  # refuses test pictures
    task = _Task.checked(model, analysis, options, getattr(data, "split", "given"), masks, ranking)
    names = {layer: task.wiring.weight_of(layer) for layer in task.masks}
    found = gradients(model, task.wiring, data, batch_size, groups=tuple(options), weights=tuple(names.values()))
    loss: dict[str, list[float]] = {}
    for group, counts in options.items():
        loss[CHANNELS + group] = [float(found.units[group][task.ranking[group][count:]].sum()) for count in counts]
    for layer, zeros in task.masks.items():
        singles = found.weights[names[layer]]
        loss[WEIGHTS + layer] = [0.0, *(float(singles[task.removed(layer, each, singles)].sum()) for each in zeros)]
    return task.result("first_order", found.images, "fp32", False, (found.loss, found.accuracy), loss, None)
