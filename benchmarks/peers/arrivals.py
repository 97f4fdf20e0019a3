"""What a subscriber keeps of the events it gets, and what can be said of them afterwards."""

from __future__ import annotations

from array import array
from typing import Any

from benchmarks.subscriber import summary


class Arrivals:
    """Times of every event: when it was due, when it was emitted, when it was in the consumer's hands."""

    def __init__(self) -> None:
        self.scheduled, self.emitted, self.received = array("q"), array("q"), array("q")
        self.disorder = 0
        """Events that came after a later one of their session, or twice."""
        self.holes = 0
        """Events that were missing when their session's next one came."""
        self.lost = 0
        """Events that a gap declared missing."""
        self._next: dict[object, int] = {}

    def __len__(self) -> int:
        return len(self.received)

    def add(self, session: object, seq: int, scheduled_ns: int, emitted_ns: int, now_ns: int) -> None:
        """One event. A session's first one may have any number; each further one must have the next."""
        due = self._next.get(session, seq)
        if seq < due:
            self.disorder += 1
        elif seq > due:
            self.holes += seq - due
        self._next[session] = seq + 1
        self.scheduled.append(scheduled_ns)
        self.emitted.append(emitted_ns)
        self.received.append(now_ns)

    def report(self, windows: list[tuple[int, int]]) -> dict[str, Any]:
        """Totals, and for each window (of scheduled times) both latencies, in milliseconds."""
        span_s = (self.received[-1] - self.received[0]) / 1e9 if len(self) > 1 else 0.0
        return {
            "received": len(self),
            "sessions_seen": len(self._next),
            "lost_in_gaps": self.lost,
            "missing_in_order": self.holes,
            "out_of_order": self.disorder,
            "events_per_s": round(len(self) / span_s) if span_s else 0,
            "windows": [self._window(start_ns, end_ns) for start_ns, end_ns in windows],
        }

    def _window(self, start_ns: int, end_ns: int) -> dict[str, Any]:
        inside = [k for k, due_ns in enumerate(self.scheduled) if start_ns <= due_ns < end_ns]
        return {
            "measured": len(inside),
            "from_scheduled": summary([self.received[k] - self.scheduled[k] for k in inside]),
            "from_actual": summary([self.received[k] - self.emitted[k] for k in inside]),
        }
