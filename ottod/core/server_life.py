"""How often a tool server that ends is started again: with growing pauses, and not for ever.

An end counts as a failure in a row unless the server had served for a while before. After MAX_FAILURES of them nobody
tries again: the session goes on without the server's tools, which say so.
"""

from __future__ import annotations

from ottod.core.backoff import delay_s
from ottod.protocol.specs import Backoff

MAX_FAILURES = 5
HEALTHY_NS = 60 * 1_000_000_000
"""Served for this long, a server has earned a fresh start."""
PAUSES = Backoff(base_s=0.25, factor=3.0, max_s=30.0, jitter=0.2)


class ServerLife:
    """One server's. Times are monotonic nanoseconds."""

    def __init__(self, *, max_failures: int = MAX_FAILURES, backoff: Backoff = PAUSES) -> None:
        self.max_failures = max_failures
        self.backoff = backoff
        self.failures = 0
        """Ends in a row that came too early."""

    def ended(self, *, served_ns: int, random: float) -> float | None:
        """It has ended, after it served for `served_ns` (0: it never did). Seconds until the next try, or None."""
        self.failures = 1 if served_ns >= HEALTHY_NS else self.failures + 1
        if self.failures > self.max_failures:
            return None
        return delay_s(self.backoff, self.failures, random=random)
