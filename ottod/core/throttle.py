"""How hard a model's provider may be pressed after it has said "too many requests".

Theory of operation. A refusal (429) closes the line to everyone for as long as the provider asks, or, if it does not
say, for a delay that doubles with each refusal in a row. It also halves how many calls may run at once. Each answer
after that raises the number by the share of one call that it is of a full round, so about by one a round, until the
provider's own cap is reached again: additive increase, multiplicative decrease, as TCP has it.

A burst of calls that ran together is refused together. Refusals of calls that had begun before the line was last
closed belong to the same burst: they lengthen the pause if the provider asks for more, and decrease nothing.
"""

from __future__ import annotations

import msgspec

from ottod.core.backoff import delay_s
from ottod.protocol.specs import Backoff

UNSAID = Backoff(base_s=1.0, factor=2.0, max_s=60.0, jitter=0.2)
"""How long the line is closed when the provider does not say for how long."""
MAX_PAUSE_S = 600.0
"""The longest that anybody is believed who asks for silence; then the next call finds out."""


class ThrottleSnapshot(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What another clock can take over."""

    pause_left_ns: int = 0
    window: float | None = None
    refusals: int = 0


class Throttle:
    """One model of one provider. Times are monotonic nanoseconds."""

    def __init__(self, *, max_concurrent: int) -> None:
        self.max_concurrent = max_concurrent
        self._window: float | None = None
        """How many calls may run at once; None as long as only the cap counts."""
        self._refusals = 0
        self._closed_at_ns = -1
        self.paused_until_ns = 0

    @property
    def allowance(self) -> int:
        """How many calls may run at once."""
        return self.max_concurrent if self._window is None else min(self.max_concurrent, int(self._window))

    @property
    def is_slowed(self) -> bool:
        """Whether refusals still have an effect on how many calls may run."""
        return self._window is not None

    def refused(
        self, *, began_ns: int, running: int, retry_after_s: float | None, now_ns: int, random: float
    ) -> None:
        """A call that began then was told that there are too many. `running` counts it; `random` is in [0, 1)."""
        is_news = began_ns > self._closed_at_ns
        if is_news:
            self._refusals += 1
            current = min(float(running), self.max_concurrent if self._window is None else self._window)
            self._window = max(1.0, current / 2)
            self._closed_at_ns = now_ns
        if retry_after_s is not None:
            self._pause(retry_after_s, now_ns)
        elif is_news:
            self._pause(delay_s(UNSAID, self._refusals, random=random), now_ns)

    def _pause(self, pause_s: float, now_ns: int) -> None:
        until_ns = now_ns + int(min(max(0.0, pause_s), MAX_PAUSE_S) * 1e9)
        self.paused_until_ns = max(self.paused_until_ns, until_ns)

    def answered(self, *, began_ns: int) -> None:
        """A call that began then got through."""
        if began_ns <= self._closed_at_ns:
            return
        self._refusals = 0
        if self._window is not None:
            self._window += 1 / self._window
            if self._window >= self.max_concurrent:
                self._window = None

    def snapshot(self, *, now_ns: int) -> ThrottleSnapshot:
        """What is to be remembered."""
        left_ns = max(0, self.paused_until_ns - now_ns)
        return ThrottleSnapshot(pause_left_ns=left_ns, window=self._window, refusals=self._refusals)

    def take_over(self, snapshot: ThrottleSnapshot, *, now_ns: int) -> None:
        """Goes on where another left off."""
        self.paused_until_ns = now_ns + min(max(0, snapshot.pause_left_ns), int(MAX_PAUSE_S * 1e9))
        self._closed_at_ns = now_ns if snapshot.pause_left_ns else -1
        window = None if snapshot.window is None else max(1.0, snapshot.window)
        self._window = window if window is not None and window < self.max_concurrent else None
        self._refusals = max(0, snapshot.refusals)
