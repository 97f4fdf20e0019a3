"""What sessions do per second, from figures that only grow: processor time and events.

The daemon looks at its sessions about once a second, so two readings that lie close together say little. A rate is
taken over a window of several looks: from the oldest reading within it to the newest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from ottod.protocol.results import SessionInfo

WINDOW_S = 5.0
MAX_READINGS = 64
"""Of one session: the window is shorter for whoever looks more often than that."""


class Rate(NamedTuple):
    """None while there is only one reading. `cpu_share` 1.0 is one processor."""

    cpu_share: float | None = None
    events_per_s: float | None = None


class _Reading(NamedTuple):
    at_s: float
    incarnation: int
    cpu_ms: int
    last_seq: int


class Rates:
    """Remembers the readings of the sessions that it last saw, and no others."""

    def __init__(self) -> None:
        self._readings: dict[str, deque[_Reading]] = {}

    def observe(self, infos: Iterable[SessionInfo], *, now_s: float) -> dict[str, Rate]:
        """The rates with this reading, by session. `now_s` is monotonic."""
        seen: dict[str, deque[_Reading]] = {}
        for info in infos:
            readings = self._readings.get(info.session) or deque(maxlen=MAX_READINGS)
            reading = _Reading(now_s, info.incarnation, info.cpu_ms, info.last_seq)
            if readings and (readings[-1].incarnation != info.incarnation or readings[-1].cpu_ms > info.cpu_ms):
                # Another process, whose time begins at nothing.
                readings.clear()
            readings.append(reading)
            while len(readings) > 2 and readings[1].at_s <= now_s - WINDOW_S:
                readings.popleft()
            seen[info.session] = readings
        self._readings = seen
        return {session: _rate(readings) for session, readings in seen.items()}


def _rate(readings: deque[_Reading]) -> Rate:
    first, last = readings[0], readings[-1]
    span_s = last.at_s - first.at_s
    if span_s <= 0:
        return Rate()
    return Rate((last.cpu_ms - first.cpu_ms) / 1000 / span_s, max(0, last.last_seq - first.last_seq) / span_s)
