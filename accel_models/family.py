"""What an architecture family is: one class that turns rows into steps.

    @family("my_accelerator")
    class MyAccelerator(Family):
        class Parameters(Frozen): ...          # its own numbers in the YAML's `parameters`
        components = ("mac", "sram", "dram")   # what costs energy
        def map(self, rows, placement): ...    # -> Steps, for all rows at once

Smallest honest example: `accel_models/ideal.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from accel_models.mapping import Steps
from accel_models.placement import Placement
from accel_models.spec import Frozen, HardwareSpec
from workloads.columns import Columns


class Family(ABC):
    """One architecture family, bound to one machine's spec. Holds no state besides.

    Attributes:
        Parameters: pydantic model of the spec's `parameters`.
        components: names of the energy components, the order of `Steps.accesses`.
        precisions: weight and activation bits that the machine computes in; a graph of another width is priced as
            if converted to the nearest (the result says so).
        cliffs: share of layers that may cost less with twice the channels, because counts are quantised or a mapping
            is not chosen for time; 0 unless the family's page says why.
        pe_counts: parameters that count PEs, each with the share of layers that may cost less with half of them (layers
            that do not fill the array still fill and drain it); the family's page says why. Empty where a machine has
            no such number, or where it is the user's choice (threads).
        granularities: kinds of weight zeros that save this machine cycles or traffic: a search offers these.
    """

    class Parameters(Frozen):
        """No numbers of its own."""

    components: ClassVar[tuple[str, ...]] = ()
    precisions: ClassVar[tuple[int, ...]] = (8, 16, 32)
    cliffs: ClassVar[float] = 0.0
    pe_counts: ClassVar[tuple[tuple[str, float], ...]] = ()
    granularities: ClassVar[tuple[str, ...]] = ()

    def __init__(self, spec: HardwareSpec) -> None:
        self.spec = spec

    @abstractmethod
    def map(self, rows: Columns, placement: Placement) -> Steps:
        """Cut every row into steps of tiles.

        Called with chunks of rows of any size, from searches thousands of times: vectorised NumPy only, no state kept.
        Rows that cost nothing (inputs, constants, views, what is fused) get zero tiles in every step.

        Args:
            rows: float and integer columns; exact masks in `rows.sparsity` where known.
            placement: where each row's tensors live.
        """

    def facts(self, rows: Columns, placement: Placement) -> Mapping[str, np.ndarray]:
        """What publications of such machines report beside cycles, by name; float64 (rows,). For validation only.

        E.g. `active_pes`, `processing_cycles`, `weight_stall_cycles`. Names with a unit of time end in `_cycles`.
        Never called while a search prices.
        """
        return {}

    def derived_peak(self) -> Mapping[int, float]:
        """Multiplications a cycle by operand bits that follow from the parameters; the spec must state the same.

        Empty where the family takes the peak from the spec.
        """
        return {}

    def sees_input_zeros(self) -> bool:
        """Whether zeros of feature maps change its prices: it skips, gates or codes them, or counts them as no use."""
        return False

    def mappings_tried(self) -> int:
        """Mappings that are compared for every row that multiplies; 1 where the machine leaves no choice."""
        return 1

    def channel_multiple(self) -> int:
        """The number of channels that the machine computes together: counts in between gain little or nothing."""
        return 1
