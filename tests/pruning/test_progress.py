"""Bars are drawn on terminals only, and items come through unchanged either way."""

import io
import sys

import pytest

from pruning.progress import shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "enabled", "draws"), [(Terminal, True, True), (Terminal, False, False), (io.StringIO, True, False)]
)
def test_only_who_watches_sees_a_bar(monkeypatch, stream, enabled, draws):
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "stderr", stream())
    assert list(shown(iter(range(5)), "counting", 5, enabled)) == [0, 1, 2, 3, 4]
    assert ("counting" in sys.stderr.getvalue()) is draws
