"""One call: a model, a choice and a machine in; accuracy and cost out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from accel_models import SimulationResult, Target
from accel_models.result import describe_error
from accel_models.validation import LEVEL
from codesign.budgets import show
from codesign.costs import graph_costs

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pruning.plan import PruningPlan
    from workloads.data import ImageData


@dataclass(frozen=True)
class Evaluation:
    """What a choice gives on a machine.

    Attributes:
        result: the simulation, layer by layer.
        costs: latency (s), energy (J), macs, size (bytes of stored weights).
        accuracy: fraction, None where no images were given. precision: in which it was measured; `result.precision`
            is the one that was priced.
        split: which images the accuracy is of.
    """

    result: SimulationResult
    costs: dict[str, float]
    accuracy: float | None
    split: str
    precision: str = "fp32"

    def __str__(self) -> str:
        costs = ", ".join(
            f"{metric} {show(metric, value)}{self._expected(metric)}" for metric, value in self.costs.items()
        )
        shown = "not measured" if self.accuracy is None else f"{self.accuracy:.2%} ({self.split}, {self.precision})"
        error = describe_error(self.result.error)
        return f"{self.result.graph} on {self.result.title}: {costs}; accuracy {shown}; {error}"

    def _expected(self, metric: str) -> str:
        """Where a published value is expected, in brackets; "" where that is not known."""
        error = {"latency": self.result.time_error, "energy": self.result.energy_error}.get(metric)
        if error is None or error.absolute is None:
            return ""
        low, high = (show(metric, value) for value in error.absolute.around(self.costs[metric]))
        return f" ({LEVEL:.0%} interval {low} to {high}{error.caveat})"

    def to_dict(self) -> dict[str, Any]:
        """A JSON value."""
        return {**asdict(self), "result": self.result.to_dict()}


def evaluate(
    model: nn.Module,
    target: Target,
    example_inputs: tuple[Tensor, ...],
    *,
    plan: PruningPlan | None = None,
    data: ImageData | None = None,
    calibration: tuple[Tensor, ...] | None = None,
    name: str | None = None,
) -> Evaluation:
    """Price a model, pruned by a plan if one is given, and measure its accuracy if images are given.

    Args:
        model: not modified.
        calibration: inputs on which activation zeros are measured; without it activations count as dense.
        data: pass held-out training images while choosing, test images once at the end.

    Raises:
        CodesignError: a plan that does not fit, an operator that cannot be lowered.
    """
    from pruning.evaluation import accuracy
    from workloads.lowering import lower

    ready = plan.apply(model, example_inputs) if plan else model
    graph = target.native(lower(ready, example_inputs, calibration=calibration, name=name))
    result = target.simulate(graph)
    return Evaluation(
        result=result,
        costs=graph_costs(result, graph),
        accuracy=accuracy(ready, data) if data is not None else None,
        split=data.split if data is not None else "",
    )
