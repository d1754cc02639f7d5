"""Window arrays: a case by hand, decoding, the size formula, and what Campfire leaves."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruning import masks
from pruning.methods.campfire import Campfire
from pruning.testing import Loop, batches, small_net
from workloads.encodings import window_bits
from workloads.errors import ShapeError
from workloads.sparsity import WeightSparsity
from workloads.windows import window_arrays


def test_by_hand() -> None:
    weights = np.zeros((1, 3, 2, 2))
    weights[0, 0] = [[0, 7], [8, 0]]
    weights[0, 2] = [[0, 0], [0, 9]]
    stored = window_arrays(weights, 2)
    assert stored.kept.tolist() == [[True, False, True]]
    assert stored.position.tolist() == [[1, 2], [0, 3]]
    assert stored.weight.tolist() == [[7, 8], [0, 9]]
    assert stored.size_bits(8) == 3 + 2 * (2 * 8 + 4)  # four bits of a map, or two positions of two bits
    assert (stored.decode() == weights).all()


@given(st.integers(0, 2**31), st.integers(1, 9), st.floats(0, 1))
def test_full_windows_decode_and_have_the_size_of_the_formula(seed: int, entries: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((4, 5, 9)).argsort(2) < entries
    mask &= (rng.random((4, 5)) < share)[..., None]
    weights = (rng.uniform(1, 2, mask.shape) * mask).astype(np.float32).reshape(4, 5, 3, 3)
    stored = window_arrays(weights, entries)
    assert stored.decode().dtype == np.float32
    assert (stored.decode() == weights).all()
    assert stored.size_bits(8) == window_bits(WeightSparsity.from_mask(weights != 0), 8, entries)


@pytest.mark.parametrize("granularity", ["window", "ck", "combined"])
def test_what_campfire_leaves_is_compressed_without_loss(granularity: str) -> None:
    pruner = Campfire(small_net(), (torch.zeros(2, 3, 8, 8),), 8, density=0.3, granularity=granularity, end=0.5)
    Loop(pruner).run(batches(8))
    net = pruner.finalize()
    for name, share in pruner.final_shares.items():
        weight = net.get_parameter(name).detach().numpy()
        if weight.ndim == 4 and weight[0, 0].size > 1:
            stored = window_arrays(weight, share.weights)
            assert (stored.decode() == weight).all()
            assert len(stored.weight) == share.kernels
            assert stored.size_bits(8) < 0.6 * 8 * math.prod(weight.shape)
    assert masks.masks_of(net)


def test_bad_input() -> None:
    with pytest.raises(ShapeError, match=r"kernel \(0, 1\) has 4 non-zeros, more than 3; prune to windows"):
        window_arrays(np.stack([np.zeros((2, 2)), np.ones((2, 2))])[None], 3)
    for weights, entries in ((np.ones((3, 3)), 1), (np.ones((1, 1, 2, 2)), 5), (np.ones((1, 1, 2, 2)), 0)):
        with pytest.raises(ShapeError, match=r"needs \(K, C, R, S\) and 1 \.\. R S entries"):
            window_arrays(weights, entries)
