"""The promise of the README on real data: a pruned ResNet-20 on CIFAR-10. Minutes; run by `make test-all`."""

from __future__ import annotations

from pathlib import Path

import pytest

from codesign.job import SearchConfig, load_outcome, run
from pruning.evaluation import accuracy
from workloads.data import load


@pytest.mark.slow
@pytest.mark.data("cifar-10-batches-bin", "weights/resnet20_cifar10.safetensors")
def test_resnet20_at_seven_tenths_of_the_latency(tmp_path: Path) -> None:
    """`codesign search resnet20 --data cifar10 --target ethos_u55_256 --budget latency=0.7x --epochs 2`."""
    config = SearchConfig("resnet20", "cifar10", "ethos_u55_256", ("latency=0.7x",), epochs=2)
    found = run(config, tmp_path / "r20", device="cpu")
    assert found.met
    assert found.pruned.latency_s <= 0.7 * found.dense.latency_s
    assert found.accuracies["dense_test"] == pytest.approx(0.9173, abs=0.0005)
    assert found.accuracies["test"] >= 0.885
    again = load_outcome(tmp_path / "r20")
    assert accuracy(again.model, load("cifar10", "test")) == pytest.approx(found.accuracies["test"], abs=1e-4)
