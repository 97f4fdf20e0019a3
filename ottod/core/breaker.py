"""A circuit breaker: whether calls of one model of one provider are worth making.

Theory of operation.

    closed ──too many failed, too slow, quota nearly used──> open ──its time is over, a call comes──> half-open
      ^                                                       ^                                          │ │
      │                                                       └──────────────a probe fails───────────────┘ │
      └──────────────────────────────as many probes as it allows at once succeed───────────────────────────┘

Closed, it looks at the calls that ended within `window_s`, the newest `MAX_CALLS` of them: once there are
`min_calls`, a share of failures of `error_rate`, or of slow answers of `slow_rate`, opens it. So does the consumption
of `quota_share` of `quota_tokens` within `quota_period_s`. Open, it refuses; each opening that follows on the one
before lasts twice as long, up to `max_open_s`. Half-open, it lets `probes` calls through at once.

What a call says of the provider is one of three things: it answered, it failed, or nothing (a wrong key, a wrong
request, too many requests, a call that was cancelled). What comes back from before the last move says nothing of the
present.

Source: Nygard, "Release It!", stability patterns; DESIGN §6.
"""

from __future__ import annotations

from collections import deque
from typing import Literal

import msgspec

from ottod.core.backoff import delay_s
from ottod.protocol.specs import Backoff
from ottod.settings.sections import BreakerSettings
from ottod.settings.units import plural

BreakerState = Literal["closed", "open", "half_open"]
Verdict = Literal["answered", "failed", "nothing"]

FAILURES = frozenset({"overloaded", "timeout", "connection", "cut", "malformed"})
"""Codes of failed calls that speak against the provider."""
MAX_CALLS = 1000
"""Calls that are remembered at most; a window with more is judged by the newest."""
QUOTA_SLICES = 60
"""The quota's period is counted in so many pieces; a piece is forgotten as a whole."""
JITTER = 0.1
"""Of the time that it is open, so that breakers which opened together do not try again together."""


def verdict(code: str) -> Verdict:
    """What a call's end says: `code` is empty for an answer, else the failure's."""
    return "answered" if not code else "failed" if code in FAILURES else "nothing"


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """The breaker is in another state than before."""

    state: BreakerState
    previous: BreakerState
    reason: str


class Leave(msgspec.Struct, frozen=True, kw_only=True):
    """A call may be made. `era` tells the breaker later since when."""

    era: int
    is_probe: bool = False
    move: Move | None = None


class BreakerSnapshot(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What another clock can take over. Half-open counts as open with no time left."""

    is_open: bool = False
    left_ns: int = 0
    openings: int = 0
    reason: str = ""


class Breaker:
    """One breaker. Times are monotonic nanoseconds."""

    def __init__(self, settings: BreakerSettings) -> None:
        self._settings = settings
        self.state: BreakerState = "closed"
        self.reason = ""
        """Why it opened last."""
        self.open_until_ns = 0
        self._era = 0
        self._openings = 0
        """In a row: none of them followed on a long time of health."""
        self._closed_at_ns: int | None = None
        self._ended: deque[tuple[int, bool, bool]] = deque(maxlen=MAX_CALLS)
        """Calls of this era: when they ended, whether they failed, whether they were slow."""
        self._probing = 0
        self._proved = 0
        self._spent: deque[list[int]] = deque()
        """Tokens by slice of the quota's period: [slice, tokens]."""

    # ------------------------------------------------------------ asking

    def admits(self, *, now_ns: int) -> bool:
        """Whether a call may be made now."""
        match self.state:
            case "closed":
                return True
            case "open":
                return now_ns >= self.open_until_ns
            case "half_open":
                return self._probing < self._settings.probes

    def refuses(self, *, now_ns: int) -> bool:
        """Whether a call that waits would wait in vain: open, and its time is not over."""
        return self.state == "open" and now_ns < self.open_until_ns

    def rates(self, *, now_ns: int) -> tuple[int, float, float]:
        """Calls within the window, and which shares of them failed and were slow."""
        self._forget(now_ns)
        calls = len(self._ended)
        failed, slow = sum(f for _, f, _ in self._ended), sum(s for _, _, s in self._ended)
        return calls, failed / max(1, calls), slow / max(1, calls)

    # ------------------------------------------------------------ telling

    def begin(self, *, now_ns: int) -> Leave:
        """A call is made. Only while `admits`."""
        assert self.admits(now_ns=now_ns), "the breaker admits no call"
        move = None
        if self.state == "open":
            move = self._move("half_open", "its time is over")
        is_probe = self.state == "half_open"
        self._probing += is_probe
        return Leave(era=self._era, is_probe=is_probe, move=move)

    def end(
        self,
        leave: Leave,
        said: Verdict,
        *,
        first_s: float | None = None,
        tokens: int = 0,
        now_ns: int,
        random: float,
    ) -> Move | None:
        """A call has ended. `first_s`: how long it took until the answer began. `random` is in [0, 1)."""
        settings = self._settings
        if not settings.enabled:
            return None
        self._spend(tokens, now_ns)
        if leave.era != self._era:
            return self._check_quota(now_ns, random) if self.state == "closed" else None
        is_slow = said != "nothing" and _is_above(first_s, settings.slow_after_s)
        if self.state == "half_open":
            return self._probed(said, is_slow=is_slow, now_ns=now_ns, random=random)
        if said != "nothing":
            self._ended.append((now_ns, said == "failed", is_slow))
        return self._check_rates(now_ns, random) or self._check_quota(now_ns, random)

    def _probed(self, said: Verdict, *, is_slow: bool, now_ns: int, random: float) -> Move | None:
        self._probing -= 1
        if said == "failed" or is_slow:
            return self._open(f"a probe {'failed' if said == 'failed' else 'was slow'}", now_ns, random)
        self._proved += said == "answered"
        if self._proved < self._settings.probes:
            return None
        if self._spent_share(now_ns) >= self._settings.quota_share:
            return self._check_quota(now_ns, random)
        self._closed_at_ns = now_ns
        return self._move("closed", f"{self._proved} probes succeeded" if self._proved > 1 else "a probe succeeded")

    def configure(self, settings: BreakerSettings) -> Move | None:
        """Takes new settings; what has been counted stays."""
        if settings.quota_period_s != self._settings.quota_period_s:
            self._spent.clear()
        self._settings = settings
        if not settings.enabled and self.state != "closed":
            return self._move("closed", "turned off")
        return None

    # ------------------------------------------------------------ triggers

    def _check_rates(self, now_ns: int, random: float) -> Move | None:
        settings = self._settings
        calls, failed, slow = self.rates(now_ns=now_ns)
        if calls < settings.min_calls:
            return None
        if failed >= settings.error_rate:
            return self._open(f"{failed:.0%} of {plural(calls, 'call')} failed", now_ns, random)
        if settings.slow_after_s is not None and slow >= settings.slow_rate:
            return self._open(
                f"{slow:.0%} of {plural(calls, 'call')} took over {settings.slow_after_s:g} s", now_ns, random
            )
        return None

    def _check_quota(self, now_ns: int, random: float) -> Move | None:
        settings = self._settings
        share = self._spent_share(now_ns)
        if share < settings.quota_share or settings.quota_tokens is None:
            return None
        reason = f"{share:.0%} of {settings.quota_tokens} tokens used in {settings.quota_period_s:g} s"
        return self._open(reason, now_ns, random, at_least_until_ns=self._relieved_ns())

    def _open(self, reason: str, now_ns: int, random: float, *, at_least_until_ns: int = 0) -> Move:
        settings = self._settings
        since_ns = now_ns - self._closed_at_ns if self._closed_at_ns is not None else None
        was_healthy = self.state == "closed" and (since_ns is None or since_ns > int(settings.window_s * 1e9))
        self._openings = 1 if was_healthy else self._openings + 1
        backoff = Backoff(base_s=settings.open_s, factor=2.0, max_s=settings.max_open_s, jitter=JITTER)
        open_ns = int(delay_s(backoff, self._openings, random=random) * 1e9)
        self.open_until_ns = max(now_ns + open_ns, at_least_until_ns)
        return self._move("open", reason)

    def _move(self, state: BreakerState, reason: str) -> Move:
        previous, self.state = self.state, state
        if state == "open":
            self.reason = reason
        self._era += 1
        self._ended.clear()
        self._probing = self._proved = 0
        return Move(state=state, previous=previous, reason=reason)

    def _forget(self, now_ns: int) -> None:
        threshold_ns = now_ns - int(self._settings.window_s * 1e9)
        while self._ended and self._ended[0][0] <= threshold_ns:
            self._ended.popleft()

    # ------------------------------------------------------------ the quota

    @property
    def _slice_ns(self) -> int:
        return max(1, int(self._settings.quota_period_s * 1e9) // QUOTA_SLICES)

    def _spend(self, tokens: int, now_ns: int) -> None:
        if self._settings.quota_tokens is None or tokens <= 0:
            return
        piece = now_ns // self._slice_ns
        if self._spent and self._spent[-1][0] >= piece:
            self._spent[-1][1] += tokens
        else:
            self._spent.append([piece, tokens])
            if len(self._spent) > QUOTA_SLICES + 1:
                self._spent.popleft()

    def _spent_share(self, now_ns: int) -> float:
        """Of the quota. A slice counts until the whole of it is older than the period."""
        quota = self._settings.quota_tokens
        while self._spent and self._spent[0][0] < now_ns // self._slice_ns - QUOTA_SLICES:
            self._spent.popleft()
        return sum(tokens for _, tokens in self._spent) / quota if quota else 0.0

    def _relieved_ns(self) -> int:
        """When so much of what was spent is forgotten that the share is below the threshold, if nothing is added."""
        assert self._settings.quota_tokens is not None
        left = sum(tokens for _, tokens in self._spent)
        for piece, tokens in self._spent:
            left -= tokens
            if left < self._settings.quota_share * self._settings.quota_tokens:
                return (piece + QUOTA_SLICES + 1) * self._slice_ns
        return 0

    # ------------------------------------------------------------ across roots

    def snapshot(self, *, now_ns: int) -> BreakerSnapshot:
        """What is to be remembered."""
        if self.state == "closed":
            return BreakerSnapshot(openings=self._openings)
        left_ns = max(0, self.open_until_ns - now_ns) if self.state == "open" else 0
        return BreakerSnapshot(is_open=True, left_ns=left_ns, openings=self._openings, reason=self.reason)

    @property
    def _longest_ns(self) -> int:
        """The longest that it can be open, whatever is remembered of it."""
        settings = self._settings
        longest_s = settings.max_open_s * (1 + JITTER)
        if settings.quota_tokens is not None:
            longest_s = max(longest_s, settings.quota_period_s * (1 + 2 / QUOTA_SLICES))
        return int(longest_s * 1e9)

    def take_over(self, snapshot: BreakerSnapshot, *, now_ns: int) -> None:
        """Goes on where another left off; it was closed no longer ago than now."""
        if not self._settings.enabled:
            return
        self._openings = max(0, snapshot.openings)
        if snapshot.is_open:
            self.state, self.reason = "open", snapshot.reason
            self.open_until_ns = now_ns + min(max(0, snapshot.left_ns), self._longest_ns)
        elif snapshot.openings:
            self._closed_at_ns = now_ns


def _is_above(value: float | None, threshold: float | None) -> bool:
    return value is not None and threshold is not None and value > threshold
