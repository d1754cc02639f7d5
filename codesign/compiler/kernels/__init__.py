"""What compiled code is made of: small functions that data drive.

A kernel's fields fix its instructions; sizes, addresses and weights come with its arguments. One file a kind.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from codesign.compiler.emitter import Emitter


class Kernel(ABC):
    """A frozen dataclass whose `repr` says everything about its code.

    Attributes:
        ARGUMENTS: names of its arguments in order, 64 bits each: addresses, or counts and distances in bytes.
    """

    ARGUMENTS: ClassVar[tuple[str, ...]]

    @abstractmethod
    def emit(self, e: Emitter) -> None:
        """Write the function; called once an instruction set."""
