"""SparseGPT: remove weights one input feature after another, and let those to the right make up for each.

A row w of a layer's weight answers w X. With H = X X^T, removing weight j and changing all others in the best way costs
w_j^2 / [H^-1]_jj (optimal brain surgeon). Doing so for every row and every removed weight would need an inverse each;
going through features from left to right for all rows at once, with only features further right allowed to change,
needs one Cholesky factor H^-1 = U^T U, whose rows are the compensations.

Letters: k rows (filters), f features, as in `pruning.calibration`.

Source: Frantar and Alistarh, "SparseGPT", ICML 2023, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pruning import masks
from pruning.calibration import as_rows, features, from_rows, input_sums
from pruning.evaluation import Labelled, labelled_batches
from pruning.granularity import keep_best, kept_count, mask, smallest_density
from pruning.methods.base import Inputs, register
from pruning.methods.masked import Densities, OneShot
from workloads.errors import PlanError

Choose = Callable[[Tensor, int, int], Tensor]


def reconstruct(
    rows: Tensor, hessian: Tensor, windows: Iterable[tuple[int, int]], choose: Choose, dampening: float = 0.01
) -> tuple[Tensor, Tensor]:
    """Remove weights of a matrix and adjust the rest so that its products change little.

    Args:
        rows: (k, f). Not modified.
        hessian: X X^T, float64, (f, f). Not modified.
        windows: ranges of features, from left to right without gaps; what goes in a window is chosen when all
            windows to its left are done.
        choose: (costs of a window (k, width), its start, its stop) -> bool, what to keep.
        dampening: added to the diagonal, as a fraction of its mean.

    Returns:
        Rows in float64 with exact zeros, and what was kept: bool, (k, f).

    Raises:
        PlanError: the Hessian cannot be inverted.

    >>> first = lambda costs, start, stop: keep_best(costs, 1)
    >>> rows, kept = reconstruct(torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 1.0], [1.0, 2.0]]).double(),
    ...                          [(0, 2)], first, dampening=0.0)
    >>> [[round(value, 6) for value in row] for row in rows.tolist()], kept.tolist()
    ([[0.0, 3.5]], [[False, True]])
    """
    rows, kept = rows.double().clone(), torch.ones_like(rows, dtype=torch.bool)
    upper = _inverse_factor(hessian, dampening)
    rows[:, hessian.diagonal() == 0] = 0  # features that are never seen
    for start, stop in windows:
        block, window = upper[start:stop, start:stop], rows[:, start:stop]
        stays = kept[:, start:stop] = choose((window / block.diagonal()).square(), start, stop)
        errors = torch.zeros_like(window)
        for j in range(stop - start):
            errors[:, j] = (window[:, j] / block[j, j]).masked_fill(stays[:, j], 0)
            window[:, j + 1 :] -= errors[:, j, None] * block[j, j + 1 :]
        window.masked_fill_(~stays, 0)
        rows[:, stop:] -= errors @ upper[start:stop, stop:]
    return rows, kept


def _inverse_factor(hessian: Tensor, dampening: float) -> Tensor:
    """Upper triangular U with U^T U the inverse of the dampened Hessian."""
    diagonal = hessian.diagonal()
    added = dampening * diagonal.mean() + (diagonal == 0)
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian + torch.diag(added)))
        return torch.linalg.cholesky(inverse, upper=True)
    except torch.linalg.LinAlgError as error:
        raise PlanError(
            f"X X^T cannot be inverted with dampening {dampening}: too few pictures for {len(hessian)} features; "
            "give more data or a larger dampening"
        ) from error


@register("sparsegpt")
class SparseGPT(OneShot):
    """Remove weights at once and reconstruct each layer's answers from the weights that stay.

    Args:
        data: what the Hessians are measured on; labels are not used.
        images: at most so many pictures.
        granularity: "weight" or any N:M.
        dampening: added to the diagonal of each Hessian, as a fraction of its mean.
        block_size: how many features' weights are ranked together; by default an eighth of a layer's, at most 128.
            Of N:M it is always M.
        is_sequential: measure each layer behind the layers already pruned, a forward pass a layer; else all at
            once on the dense network.

    Attributes:
        notes: layers that were pruned by magnitude instead, and why.

    Choices: the paper has linear layers; a convolution is one over its unfolded inputs, features in the order kernel
    row, column, channel, so that N:M runs along channels. Ranking inside a block of features makes every block
    equally dense, as published, with 128 features a block of layers that have thousands. A block that is most of a
    small layer answers worse, often worse than magnitude: the last features have nothing left that could make up for
    them, so the first seem cheap. Differs: the Hessian is in float64, updates are applied window by window.
    """

    EXAMPLES: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"density": 0.3},
        {"density": 0.5, "granularity": "2:4", "prune_first": True, "prune_last": True, "is_sequential": False},
    )
    NEEDS_DATA: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Inputs,
        total_steps: int = 1,
        *,
        data: Labelled,
        images: int = 512,
        granularity: str = "weight",
        scope: str = "layer",
        dampening: float = 0.01,
        block_size: int | None = None,
        is_sequential: bool = True,
        **options: Any,
    ) -> None:
        if granularity != "weight" and not smallest_density(granularity):
            raise PlanError(f"granularity {granularity!r}: sparsegpt removes single weights; allowed: weight, N:M")
        if scope != "layer":
            raise PlanError(f"scope {scope!r}: sparsegpt reconstructs layer by layer; allowed: layer")
        if dampening < 0 or (block_size is not None and block_size < 1):
            raise PlanError(f"dampening {dampening}, block_size {block_size}: need at least 0 and at least 1")
        self.data, self.images, self.dampening, self.block_size = data, images, dampening, block_size
        self.is_sequential = is_sequential
        super().__init__(model, example_inputs, total_steps, granularity=granularity, **options)

    def prepare(self) -> None:
        """Reconstruct layer by layer, in the order in which they run."""
        self.found = super().masks_at(self.density)
        layers = {name.rpartition(".")[0]: name for name in self.names if not self.found[name].all()}
        plain = [layer for layer in layers if _is_plain(self.model.get_submodule(layer))]
        self.notes += tuple(f"{layer}: pruned by magnitude, {_OTHERS}" for layer in layers if layer not in plain)
        for together in [[layer] for layer in plain] if self.is_sequential else [plain]:
            batches = labelled_batches(self.data, 32, self.images)
            for layer, hessian in input_sums(self.model, together, batches, _gram).items():
                self._reconstruct(layers[layer], hessian)

    @torch.no_grad()
    def _reconstruct(self, name: str, hessian: Tensor) -> None:
        weight = masks.dense_weight(self.model, name)
        density = self.density[name] if isinstance(self.density, Mapping) else self.density
        windows = self._windows(weight.shape[1], hessian.shape[1])
        allowed = as_rows(masks.baked_masks(self.model).get(name, torch.ones_like(weight, dtype=torch.bool)))[0]

        def choose(costs: Tensor, start: int, stop: int) -> Tensor:
            costs = torch.where(allowed[:, start:stop], costs, 0)  # zeros of an earlier pruning stay zeros
            if self.granularity != "weight":
                return mask(costs, density, self.granularity) & allowed[:, start:stop]
            count = kept_count(len(weight) * stop, density) - (kept_count(len(weight) * start, density) if start else 0)
            best = keep_best(costs, count) if count else torch.zeros_like(costs, dtype=torch.bool)
            return best & allowed[:, start:stop]

        rows, kept = reconstruct(as_rows(weight)[0], hessian[0], windows, choose, self.dampening)
        weight.copy_(from_rows(rows, weight.shape))
        self.found[name] = from_rows(kept, weight.shape)

    def _windows(self, channels: int, features: int) -> Iterator[tuple[int, int]]:
        """Ranges of features that are ranked together: blocks, or M channels at one kernel position."""
        size, run = self.block_size or max(1, min(128, features // 8)), features
        if self.granularity != "weight":
            size, run = int(self.granularity.partition(":")[2]), channels
        for first in range(0, features, run):
            for start in range(first, first + run, size):
                yield start, min(start + size, first + run)

    def masks_at(self, density: Densities) -> dict[str, Tensor]:
        return self.found


_OTHERS = "since only linear layers and convolutions without groups are reconstructed"


def _is_plain(module: nn.Module) -> bool:
    is_convolution = isinstance(module, nn.Conv1d | nn.Conv2d)
    return isinstance(module, nn.Linear) or (is_convolution and getattr(module, "groups", 0) == 1)


def _gram(module: nn.Module, x: Tensor) -> Tensor:
    """X X^T, (1, f, f)."""
    found = features(module, x)
    return found.mT @ found
