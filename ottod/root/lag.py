"""Measures how late the loop is: a timer that looks at how late it fired."""

from __future__ import annotations

import asyncio
from collections import deque

PERIOD_S = 0.05
WINDOW = 1200
"""Samples kept: one minute."""


class LoopLag:
    """The last minute's lags. Times in milliseconds."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._samples_ms: deque[float] = deque(maxlen=WINDOW)
        self._due = loop.time() + PERIOD_S
        self._handle = loop.call_at(self._due, self._tick)
        self.max_ms = 0.0

    def _tick(self) -> None:
        now = self._loop.time()
        lag_ms = max(0.0, (now - self._due) * 1000)
        self._samples_ms.append(lag_ms)
        self.max_ms = max(self.max_ms, lag_ms)
        self._due = now + PERIOD_S
        self._handle = self._loop.call_at(self._due, self._tick)

    def percentile_ms(self, share: float) -> float:
        """The lag that `share` of the last minute's samples did not exceed; 0 before the first."""
        ordered = sorted(self._samples_ms)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0

    def close(self) -> None:
        self._handle.cancel()
