"""An event loop whose clock stands still while it works, and jumps to the next timer when it would sleep.

What waits for nothing but the loop's own time takes none, and comes out the same however busy the machine is.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Selector(selectors.DefaultSelector):
    """Looks, and never waits: the time until the next timer passes at once."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "nothing will ever happen"
        found = super().select(0)
        if not found:
            self.now_s += max(0.0, timeout)
        return found


class IdleLoop(asyncio.SelectorEventLoop):
    """For what has neither threads nor peers."""

    def __init__(self) -> None:
        self._idle = _Selector()
        super().__init__(self._idle)

    def time(self) -> float:
        return self._idle.now_s


def run(main: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`, on such a loop."""
    with asyncio.Runner(loop_factory=IdleLoop) as runner:
        return runner.run(main)
