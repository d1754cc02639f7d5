"""Machines that price a layer graph: cycles, seconds, joules and bytes. Nothing here imports torch.

>>> from accel_models import target, targets
>>> "ideal" in targets()
True
"""

from accel_models.pricing import Target
from accel_models.registry import load_target, target, targets
from accel_models.result import SimulationResult

__all__ = ["SimulationResult", "Target", "load_target", "target", "targets"]
