"""A rate limit: so much a minute, whoever takes it.

Theory of operation. A token bucket holds at most `burst` and fills evenly. A call takes its cost out when it begins;
what it really cost is settled when that is known, which may leave the bucket in debt. The burst is part of the
minute's allowance and not on top of it: the bucket fills so slowly that a full one and a minute's filling together
hold what the limit allows. So no minute, wherever it starts, holds calls that were begun at a higher cost.

A cost above the burst waits for a full bucket and leaves a debt: it could never be made otherwise. A minute may then
hold more than the limit, by what that one call exceeds the burst.

The arithmetic is in whole numbers: the level counts in shares of a token that are as small as one nanosecond at a
rate of one token a minute. Nothing drifts, however long the daemon runs.
"""

from __future__ import annotations

MINUTE_NS = 60_000_000_000
TOKEN_BURST_SHARE = 6
"""Of a minute's tokens, one part in so many may be taken at once: calls come in lumps."""


class TokenBucket:
    """One limit. Times are monotonic nanoseconds; one that goes back counts as no time at all."""

    def __init__(self, *, per_minute: int, burst: int, now_ns: int) -> None:
        """Begins full. `burst` is what may be taken at one instant, from 1 to `per_minute`."""
        if not 1 <= burst <= per_minute:
            raise ValueError("a burst is at least 1 and at most what a minute allows")
        self.per_minute = per_minute
        self.burst = burst
        # What is due exactly a minute after the first taking falls into the next minute: hence one more.
        self._filling = per_minute - burst + 1
        self._level = burst * MINUTE_NS
        self._seen_ns = now_ns

    @classmethod
    def of_requests(cls, per_minute: int, *, now_ns: int) -> TokenBucket:
        """Counts calls: evenly spaced, but for about a second's worth that may come at once."""
        return cls(per_minute=per_minute, burst=min(per_minute, 1 + per_minute // 60), now_ns=now_ns)

    @classmethod
    def of_tokens(cls, per_minute: int, *, now_ns: int) -> TokenBucket:
        """Counts models' tokens."""
        return cls(per_minute=per_minute, burst=max(1, per_minute // TOKEN_BURST_SHARE), now_ns=now_ns)

    def due_ns(self, cost: int, *, now_ns: int) -> int:
        """When a call of this cost may begin: not after `now_ns` if it may begin at once."""
        self._fill(now_ns)
        lacking = min(cost, self.burst) * MINUTE_NS - self._level
        return self._seen_ns + max(0, -(-lacking // self._filling))

    def take(self, cost: int, *, now_ns: int) -> None:
        """A call begins; whoever takes has asked `due_ns`."""
        self._fill(now_ns)
        self._level -= cost * MINUTE_NS

    def settle(self, *, taken: int, cost: int, now_ns: int) -> None:
        """A call that took `taken` has cost `cost`."""
        self._fill(now_ns)
        self._level = min(self._level + (taken - cost) * MINUTE_NS, self.burst * MINUTE_NS)

    def _fill(self, now_ns: int) -> None:
        if now_ns > self._seen_ns:
            level = self._level + (now_ns - self._seen_ns) * self._filling
            self._level, self._seen_ns = min(level, self.burst * MINUTE_NS), now_ns
