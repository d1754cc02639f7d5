"""Machine code that threads ask for at once."""

import functools
import sys
import threading

import pytest

from codesign.compiler import jit
from codesign.compiler.isa import find_isa
from codesign.compiler.kernels.control import ProgramKernel


def test_threads_share_one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that is made twice would be freed once, while its addresses are in use."""
    monkeypatch.setattr(jit, "_code", functools.cache(jit._code.__wrapped__))
    start, found = threading.Barrier(4), []

    def ask() -> None:
        start.wait()
        mine = jit.code(find_isa().name)
        found.append((mine, mine.addresses([ProgramKernel()])))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert len(found) == 4
    assert all(mine is found[0][0] and addresses == found[0][1] for mine, addresses in found)
