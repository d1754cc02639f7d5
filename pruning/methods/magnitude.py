"""Magnitude pruning: the smallest weights go. The baseline of the field and the smallest honest example of a method.

Source: Han et al., "Learning both Weights and Connections", NIPS 2015 (one shot); Zhu and Gupta, "To prune, or not to
prune", 2017 (gradual).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pruning.methods.base import register
from pruning.methods.masked import Gradual, OneShot


@register("one_shot_magnitude")
class OneShotMagnitude(OneShot):
    """Remove the smallest weights at once, before training; training then adjusts the rest."""

    EXAMPLES: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"density": 0.3},
        {"density": 0.5, "scope": "global", "prune_first": True, "prune_last": True},
        {"density": 0.5, "granularity": "kernel"},
        {"density": {"conv1": 0.25}, "granularity": "filter"},
        {"density": 0.5, "granularity": "4x1"},
    )


@register("gradual_magnitude")
class GradualMagnitude(Gradual):
    """Remove the smallest weights little by little along a cubic curve, while the network trains."""

    EXAMPLES: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"density": 0.3, "end": 1.0},
        {"density": 0.25, "granularity": "filter", "begin": 0.25, "frequency": 2},
        {"density": 0.25, "granularity": "pattern/2", "end": 1.0},
        {"density": 0.5, "granularity": "2:4", "end": 0.5},
    )
