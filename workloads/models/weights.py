"""Weights from and to safetensors files: nothing else is read, since a pickle can run code.

A file must fit the model exactly: same names, same shapes, finite numbers. Three liberties, all harmless: floats of
another width are cast to the model's; `num_batches_tracked` of batch norms may be absent; and a bool mask
`<name>_mask` beside a pruned weight is checked against the zeros of that weight and then dropped, so that a pruned
network loads into the plain model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from workloads.errors import DataError
from workloads.store import check_safetensors, whole

COUNTER = "num_batches_tracked"
MASK = "_mask"


def read_weights(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, as stored.

    Raises:
        DataError: no such file, a pickle, a truncated file, or a NaN or infinity in it.
    """
    check_safetensors(path)
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise DataError(f"{path}: not a whole safetensors file ({error}); download or store it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); give a .safetensors file") from error
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
            raise DataError(f"{path}: {key!r} holds NaN or infinite numbers; give weights that were trained without")
    return tensors


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill a model in place from a file that fits it exactly.

    Raises:
        DataError: as `read_weights`, or a key is missing, unknown, of another shape or no float. The model is
            unchanged then.
    """
    state = model.state_dict()
    tensors = _without_masks(read_weights(path), state, path)
    missing = [key for key in state if key not in tensors and not key.endswith(COUNTER)]
    unknown = [key for key in tensors if key not in state]
    if missing or unknown:
        parts = [_listing(verb, keys) for verb, keys in (("has no", missing), ("has the unknown", unknown)) if keys]
        raise DataError(f"{path}: {' and '.join(parts)}; give the weights of this very model")
    for key, tensor in tensors.items():
        if tensor.shape != state[key].shape:
            shapes = f"{tuple(tensor.shape)}, the model needs {tuple(state[key].shape)}"
            raise DataError(f"{path}: {key!r} has shape {shapes}; check the model's name and its number of classes")
        if tensor.is_floating_point() != state[key].is_floating_point():
            raise DataError(f"{path}: {key!r} is stored as {tensor.dtype}, the model needs {state[key].dtype}")
    model.load_state_dict(tensors, strict=False)


def masks_in(path: Path) -> dict[str, Tensor]:
    """The bool masks of a file by the name of their parameter; none where the network was not pruned.

    Raises:
        DataError: as `read_weights`.
    """
    tensors = read_weights(path)
    masks = {key.removesuffix(MASK): mask for key, mask in tensors.items() if key.endswith(MASK)}
    return {name: mask for name, mask in masks.items() if name in tensors and mask.dtype == torch.bool}


def save_weights(model: nn.Module, path: Path) -> None:
    """Store parameters and buffers, all or nothing: a killed run leaves the old file or none.

    Raises:
        DataError: the folder cannot be written to.
    """
    tensors = {key: tensor.detach().cpu().clone().contiguous() for key, tensor in model.state_dict().items()}
    with whole(path, SafetensorError) as part:
        part.touch()
        mode = part.stat().st_mode  # what the umask allows; safetensors makes files for the owner alone
        save_file(tensors, part)
        part.chmod(mode)


def _without_masks(tensors: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Drop bool masks that the model has no buffer for, once they are seen to say what the zeros say."""
    kept = dict(tensors)
    for key, mask in tensors.items():
        weight = tensors.get(key.removesuffix(MASK))
        if not key.endswith(MASK) or key in state or mask.dtype != torch.bool or weight is None:
            continue
        if mask.shape != weight.shape or bool((weight[~mask] != 0).any()):
            raise DataError(f"{path}: {key!r} removes weights that are not zero in the file; finalize before storing")
        del kept[key]
    return kept


def _listing(verb: str, keys: Sequence[str]) -> str:
    return f"{verb} {keys[0]!r}" + (f" (and {len(keys) - 1} more)" if len(keys) > 1 else "")
