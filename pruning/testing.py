"""The contract of a pruning method, as a test class that any package can run on its own methods.

    class TestMine(PrunerContract):
        @pytest.fixture
        def prune(self): return functools.partial(MyPruner, strength=0.1)

`prune(model, example_inputs, total_steps=...)` makes the pruner. The laws hold for every method: the user's model is
untouched, the added loss is one number, the prepared model can be copied and compiled, what comes out is plain, baked,
and sparse or smaller, and a training that was stopped and taken up again ends with the same bytes.
"""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning import masks
from pruning.methods.base import Pruner

Prune = Callable[..., Pruner]
STEPS = 8


class SmallNet(nn.Module):
    """(n, 3, 8, 8) -> (n, 4): a stem, a residual block with batch norms, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv1, self.norm1 = nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.norm2 = nn.Conv2d(12, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return self.head(F.relu(x + y).mean((2, 3)))


def small_net(seed: int = 0) -> SmallNet:
    """The network that the contract prunes."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return SmallNet()


def batches(count: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Random pictures with labels."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(16, 3, 8, 8, generator=generator), torch.randint(0, 4, (16,), generator=generator))
        for _ in range(count)
    ]


class Loop:
    """The user's own training loop, which can be stopped and taken up again."""

    def __init__(self, pruner: Pruner) -> None:
        self.pruner = pruner
        self.net: Callable[[Tensor], Tensor] = pruner.model  # what is called: also a compiled one
        self.optimizer = torch.optim.SGD(pruner.model.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)

    def run(self, data: list[tuple[Tensor, Tensor]]) -> list[float]:
        losses = []
        for x, y in data:
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.net(x), y) + self.pruner.loss()
            loss.backward()
            self.optimizer.step()
            self.pruner.step()
            losses.append(loss.item())
        return losses

    def state(self) -> dict[str, Any]:
        model, optimizer, pruner = self.pruner.model.state_dict(), self.optimizer.state_dict(), self.pruner.state_dict()
        return copy.deepcopy({"model": model, "optimizer": optimizer, "pruner": pruner})

    def restore(self, state: dict[str, Any]) -> None:
        self.pruner.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.pruner.load_state_dict(state["pruner"])


class UnfinishedContract:
    """Laws of every method for its prepared model, while it is trained; subclass it with a `prune` fixture.

    Attributes:
        network: makes what is pruned from a seed: (n, 3, 8, 8) -> (n, at least 4).
    """

    network: Callable[[int], nn.Module] = staticmethod(small_net)

    def make(self, prune: Prune, seed: int = 0) -> Pruner:
        return prune(self.network(seed).train(), (torch.zeros(2, 3, 8, 8),), total_steps=STEPS)

    def test_an_unfinished_model_can_be_copied(self, prune: Prune) -> None:
        pruner, data = self.make(prune), batches(STEPS)
        loop = Loop(pruner)
        loop.run(data[: STEPS // 2])
        twin, x = copy.deepcopy(pruner.model).eval(), data[0][0]
        wanted = pruner.model.eval()(x)
        torch.testing.assert_close(twin(x), wanted)
        pruner.model.train()
        loop.run(data[STEPS // 2 :])
        torch.testing.assert_close(twin(x), wanted)  # the copy has weights and masks of its own

    def test_an_unfinished_model_compiles_and_sees_its_masks_change(self, prune: Prune) -> None:
        pruner, data = self.make(prune), batches(STEPS)
        torch.compiler.reset()
        loop = Loop(pruner)
        loop.net = torch.compile(pruner.model, backend="aot_eager")
        for half in (data[: STEPS // 2], data[STEPS // 2 :]):
            loop.run(half)
            pruner.model.eval()
            with torch.no_grad():
                torch.testing.assert_close(loop.net(data[0][0]), pruner.model(data[0][0]))
            pruner.model.train()

    def test_stopped_and_taken_up_again_is_the_same(self, prune: Prune) -> None:
        data = batches(STEPS)
        whole = Loop(self.make(prune))
        losses = whole.run(data)
        first = Loop(self.make(prune))
        first.run(data[: STEPS // 2])
        state = first.state()
        second = Loop(self.make(prune, seed=1))
        second.restore(state)
        assert second.run(data[STEPS // 2 :]) == losses[STEPS // 2 :]
        assert same(second.pruner.finalize().state_dict(), whole.pruner.finalize().state_dict())


class PrunerContract(UnfinishedContract):
    """Laws of every method; subclass it with a `prune` fixture."""

    def test_zeros_of_an_earlier_pruning_stay(self, prune: Prune) -> None:
        model, generator = small_net().train(), torch.Generator().manual_seed(0)
        convs = {name: weight for name, weight in model.named_parameters() if name.startswith("conv")}
        chosen = {name: torch.rand(weight.shape, generator=generator) < 0.7 for name, weight in convs.items()}
        pruner = prune(masks.bake(model, chosen), (torch.zeros(2, 3, 8, 8),), total_steps=STEPS)
        loop, data = Loop(pruner), batches(STEPS)
        loop.run(data[: STEPS // 2])
        state = loop.state()
        loop.restore(state)
        loop.run(data[STEPS // 2 :])
        found = pruner.finalize()
        for name, mask in masks.masks_of(found).items():
            weight = found.get_parameter(name)
            assert not weight[~mask].any()
            if name in chosen and weight.shape == chosen[name].shape:  # or whole channels are gone
                assert not mask[~chosen[name]].any()

    def test_the_users_model_is_untouched(self, prune: Prune) -> None:
        model = small_net().train()
        before = copy.deepcopy(model.state_dict())
        pruner = prune(model, (torch.zeros(2, 3, 8, 8),), total_steps=STEPS)
        Loop(pruner).run(batches(2))
        assert pruner.model is not model
        assert same(model.state_dict(), before)
        assert model.training
        assert not masks.masks_of(model)

    def test_the_loss_is_a_finite_scalar(self, prune: Prune) -> None:
        loss = self.make(prune).loss()
        assert loss.shape == ()
        assert torch.isfinite(loss)

    def test_the_prepared_copy_keeps_the_mode_and_answers(self, prune: Prune) -> None:
        pruner = self.make(prune)
        assert pruner.model.training
        assert pruner.model(batches(1)[0][0]).shape == (16, 4)

    def test_steps_are_counted(self, prune: Prune) -> None:
        pruner = self.make(prune)
        Loop(pruner).run(batches(3))
        assert pruner.steps_done == 3

    def test_finalize_bakes(self, prune: Prune) -> None:
        pruner = self.make(prune)
        Loop(pruner).run(batches(STEPS))
        baked = pruner.finalize()
        found = masks.masks_of(baked)
        is_smaller = parameters(baked) < parameters(small_net())
        assert is_smaller or masks.density(found.values()) < 1, "nothing was removed, neither by masks nor by cutting"
        for name, mask in found.items():
            assert baked.get_parameter(name)[~mask].count_nonzero() == 0
        assert [name for name, _ in baked.named_parameters()] == [name for name, _ in small_net().named_parameters()]
        torch.export.export(baked.eval(), (batches(1)[0][0],))

    def test_finalize_answers_as_the_trained_copy_does(self, prune: Prune) -> None:
        pruner = self.make(prune)
        Loop(pruner).run(batches(STEPS))
        x = batches(1)[0][0]
        torch.testing.assert_close(pruner.finalize().eval()(x), pruner.model.eval()(x))

    def test_trains_with_channels_last_in_bf16(self, prune: Prune) -> None:
        pruner = self.make(prune)
        pruner.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        loop = Loop(pruner)

        def net(x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return pruner.model(x.contiguous(memory_format=torch.channels_last)).float()

        loop.net = net
        assert all(math.isfinite(loss) for loss in loop.run(batches(STEPS)))
        x = batches(1)[0][0]
        torch.testing.assert_close(pruner.finalize().eval()(x), pruner.model.eval()(x))

    def test_a_finished_model_can_be_copied_pickled_and_saved(self, prune: Prune) -> None:
        pruner, stored = self.make(prune), io.BytesIO()
        Loop(pruner).run(batches(2))
        baked = pruner.finalize().eval()
        torch.save(baked, stored)
        stored.seek(0)
        saved = torch.load(stored, weights_only=False)
        for twin in (copy.deepcopy(baked), pickle.loads(pickle.dumps(baked)), saved):
            assert same(twin.state_dict(), baked.state_dict())
            assert torch.equal(twin(batches(1)[0][0]), baked(batches(1)[0][0]))

    def test_a_state_does_not_change_when_training_goes_on(self, prune: Prune) -> None:
        """Neither where it was taken nor where it was loaded."""
        data, taken = batches(STEPS), []
        loop = Loop(self.make(prune))
        for batch in data:
            taken.append((loop.pruner.state_dict(), loop.state()))
            loop.run([batch])
        for state, whole in taken[:: STEPS // 2]:
            other = Loop(self.make(prune, seed=1))
            other.restore(whole | {"pruner": state})
            other.run(data[STEPS // 2 :])
        assert all(same(state, whole["pruner"]) for state, whole in taken)

    def test_the_same_seed_gives_the_same_bytes(self, prune: Prune) -> None:
        states = []
        for _ in range(2):
            loop = Loop(self.make(prune))
            loop.run(batches(STEPS))
            states.append(loop.pruner.finalize().state_dict())
        assert same(states[0], states[1])


def parameters(model: nn.Module) -> int:
    """How many numbers they hold."""
    return sum(parameter.numel() for parameter in model.parameters())


def same(one: Any, other: Any) -> bool:
    """Equal names in equal order, equal bytes, at any depth of a state."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, Mapping):
        return list(one) == list(other) and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
