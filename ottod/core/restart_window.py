"""The restarts of the last moments: how often a group may restart before its supervisor gives up.

Theory of operation. A restart is allowed while no more than `max_restarts` fall into the `period_s` that ends now,
the new one included; a restart that is exactly one period old still counts. So `max_restarts = 0` allows none. The
deque keeps the newest `max_restarts + 1` restarts: more can never be needed to say that there were too many.

OTP does the same arithmetic on a clock of whole seconds; this one is exact to the nanosecond, so the two may differ
for a restart between `period` and `period + 1` seconds old.

Source: `add_restart` in OTP's stdlib `supervisor`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

MAX_RESTARTS = 10_000
"""The most that a window allows in one period, whatever was asked for: it has to remember each of them."""


class RestartWindow:
    """The restarts within one period. Times are monotonic nanoseconds and never go back."""

    def __init__(self, *, max_restarts: int, period_ns: int) -> None:
        self.max_restarts = min(max_restarts, MAX_RESTARTS)
        self.period_ns = period_ns
        self._restarts_ns: deque[int] = deque(maxlen=self.max_restarts + 1)

    def __len__(self) -> int:
        return len(self._restarts_ns)

    def add(self, now_ns: int) -> bool:
        """Books a restart. False if it is one too many: then the supervisor gives up."""
        self._forget_before(now_ns - self.period_ns)
        self._restarts_ns.append(now_ns)
        return len(self._restarts_ns) <= self.max_restarts

    def clear(self) -> None:
        """Starts anew, as after somebody looked into the matter."""
        self._restarts_ns.clear()

    def ages_ns(self, now_ns: int) -> tuple[int, ...]:
        """How long ago each restart that still counts was, oldest first: what another clock can take over."""
        self._forget_before(now_ns - self.period_ns)
        return tuple(now_ns - at_ns for at_ns in self._restarts_ns)

    def take_over(self, ages_ns: Iterable[int], *, now_ns: int) -> None:
        """Replaces the content by restarts of these ages (oldest first), seen from `now_ns`."""
        self._restarts_ns.clear()
        self._restarts_ns.extend(now_ns - age_ns for age_ns in ages_ns)

    def _forget_before(self, threshold_ns: int) -> None:
        while self._restarts_ns and self._restarts_ns[0] < threshold_ns:
            self._restarts_ns.popleft()
