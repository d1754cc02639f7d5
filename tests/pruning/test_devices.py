import ctypes
import sys

import pytest
import torch

from pruning.devices import kept_memory

resource = pytest.importorskip("resource")
needs_glibc = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc"
)


def faults_of_tensors() -> int:
    """Pages that are fetched while tensors of 8 MB come and go."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2 << 20).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@needs_glibc
def test_memory_of_a_step_serves_the_next_one():
    blocks = [torch.ones(2 << 20) for _ in range(12)]  # 96 MB: more than glibc keeps by itself
    with kept_memory():
        del blocks
        kept = [torch.ones(2 << 20) for _ in range(12)]
        del kept
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        again = [torch.ones(2 << 20) for _ in range(12)]
        assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 8192  # of 24,576 pages
        del again
    assert faults_of_tensors() < 20 * 2048 * 2  # and torch goes on


def test_a_failure_inside_is_not_hidden():
    with pytest.raises(ValueError, match="mine"), kept_memory():
        raise ValueError("mine")
