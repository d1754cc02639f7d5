"""The instruction sets of this machine, which tests of native code run with; on other processors they are skipped."""

from codesign.compiler.isa import ISAS, host_isas
from workloads.errors import ConfigError


def names() -> tuple[str, ...]:
    """Widest first; where none can be run, those of tests that are skipped."""
    try:
        return host_isas()
    except ConfigError:
        return tuple(ISAS)


HERE = names()
