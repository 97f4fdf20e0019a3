"""SIGTERM and SIGHUP as ends of a program that has something to put in order first."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from functools import partial
from types import FrameType, TracebackType
from typing import Any

ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class Endings:
    """While it is entered either of them leaves by way of every `finally`, and ends in SystemExit.

    What goes on in a loop is cancelled, as Ctrl-C does it: an exception out of nowhere would leave half-made sockets
    behind, and their context waits for them. A closed terminal may send several signals: the first one counts. One
    that whoever started the program lets it ignore (`nohup`) stays ignored. For the main thread.
    """

    def __init__(self) -> None:
        self._handlers: dict[signal.Signals, Any] = {}
        self._ended_by = 0
        self._cancel: Callable[[], object] | None = None

    def __enter__(self) -> Endings:
        for number in ENDING_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._handlers[number] = signal.signal(number, self._end)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._ended_by:
            # As a shell reports an end by a signal.
            raise SystemExit(128 + self._ended_by) from None

    def run(self, body: Coroutine[Any, Any, int]) -> int:
        """A loop of its own for this, the last thing that is done here. Raises CancelledError if it was ended."""

        async def whole() -> int:
            loop, task = asyncio.get_running_loop(), asyncio.current_task()
            assert task is not None
            self._cancel = partial(loop.call_soon_threadsafe, task.cancel)
            try:
                return await body
            finally:
                # From here on things are put in order already.
                self._cancel = lambda: None

        return asyncio.run(whole())

    def _end(self, number: int, frame: FrameType | None) -> None:
        if self._ended_by:
            return
        self._ended_by = number
        if self._cancel is None:
            raise SystemExit(128 + number)
        self._cancel()
