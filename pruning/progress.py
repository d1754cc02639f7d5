"""Progress bars on stderr, where somebody watches; silence in logs and pipes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def shown(items: Iterable[T], title: str, count: int, enabled: bool) -> Iterator[T]:
    """The same items, with a bar while they are used up, if asked for and stderr is a terminal or a notebook."""
    if not enabled:
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if console.is_terminal or console.is_jupyter:
        yield from track(items, title, count, console=console, transient=True)
    else:
        yield from items
