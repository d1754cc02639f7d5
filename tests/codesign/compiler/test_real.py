"""Real weights on real images: compiled networks answer as the interpreter does, image for image."""

import pytest
import torch

from codesign.compiler import compile_network
from pruning.methods import method
from workloads.data import load
from workloads.models import build, example_input, find

pytestmark = pytest.mark.data("weights", "cifar-10-batches-bin")


@pytest.mark.parametrize(
    ("name", "options"),
    [("one_shot_magnitude", {"density": 0.2}), ("gradual_magnitude", {"density": 0.4, "granularity": "pattern/2"})],
)
def test_a_pruned_network_keeps_its_answers(name: str, options: dict[str, object]) -> None:
    pruner = method(name)(build("resnet20", pretrained=True), (example_input("resnet20"),), 4, **options)
    for _ in range(4):
        pruner.step()
    network = pruner.finalize()
    images = load("cifar10", "test", preprocessing=find("resnet20").preprocessing).take(300).tensor()
    with torch.no_grad():
        expected = network(images)
    compiled = compile_network(network)
    found = torch.cat([torch.as_tensor(compiled(part)) for part in images.split(60)])
    assert torch.equal(found.argmax(1), expected.argmax(1))
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
