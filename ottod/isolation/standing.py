"""Whether a tool call still stands, for those of its threads that nobody can stop.

A call that is timed out or cancelled is over, but a thread that works for it goes on. What changes a file is
therefore a deed: it begins only while the call stands, and whoever gives the call up learns whether there has been
one, will be none, or is one under way. The lock is held for the count alone and never across a deed, so that giving a
call up never waits for a file system.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Literal

from ottod.errors import ToolError

Account = Literal["nothing", "done", "unknown"]


class Standing:
    """Of one call. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_abandoned = False
        self._under_way = 0
        self._done = 0
        self._on_settled: Callable[[], None] | None = None

    @contextlib.contextmanager
    def deed(self) -> Iterator[None]:
        """What is done within counts if it does not raise. Raises ToolError, before it, once the call is given up."""
        with self._lock:
            self._refuse_abandoned()
            self._under_way += 1
        is_done = False
        try:
            yield
            is_done = True
        finally:
            with self._lock:
                self._under_way -= 1
                self._done += is_done
                settled = self._on_settled if not self._under_way else None
            if settled is not None:
                settled()

    def check(self) -> None:
        """Raises ToolError once the call is given up: what prepares a deed need not begin."""
        with self._lock:
            self._refuse_abandoned()

    def _refuse_abandoned(self) -> None:
        if self._is_abandoned:
            raise ToolError("the call was given up before this", code="abandoned")

    def abandon(self) -> None:
        """From here on no deed begins. One that is under way goes on. Never blocks."""
        with self._lock:
            self._is_abandoned = True

    def on_settled(self, tell: Callable[[], None]) -> None:
        """Calls `tell` once no deed is under way: now, or in the thread whose deed is the last."""
        with self._lock:
            self._on_settled = tell
            is_settled = not self._under_way
        if is_settled:
            tell()

    def account(self) -> Account:
        """What is known of the deeds of a call that is given up: `unknown` while one is under way."""
        with self._lock:
            if self._under_way:
                return "unknown"
            return "done" if self._done else "nothing"
