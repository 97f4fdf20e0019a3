"""The wall clock time that a session may use.

Time counts while the session is at work or idle; it does not while somebody else is waited for: an answer to an
approval or a question, the end of a pause, a process. The clock is looked at from time to time; what has passed
since the last look counts by what the session did then.

Time cannot be reserved. Once only a tenth of the limit is left, at most a minute, no call begins but the last one;
when nothing is left, the session is stopped, whatever it does.
"""

from __future__ import annotations

NS = 1_000_000_000
HELD_BACK_PARTS = 10
MAX_HELD_BACK_NS = 60 * NS
WARN_PERCENT = 80
UNCOUNTED = frozenset({"starting", "waiting_approval", "waiting_input", "paused", "parked", "restarting"})
"""States in which a session's time does not count."""


class BudgetClock:
    """One session's. `used_ns` never goes back."""

    def __init__(self, *, limit_ns: int, now_ns: int, used_ns: int = 0) -> None:
        self.limit_ns = limit_ns
        self.used_ns = used_ns
        self.is_counting = False
        self.is_told = False
        """Whether a workflow whose clock this is has been told that nothing is left: what it does now is to end."""
        self.is_warned = self._is_nearly_used()
        self._looked_ns = now_ns

    def look(self, *, now_ns: int, is_counting: bool) -> None:
        """Time has passed. `is_counting`: from now on it counts, or does not."""
        if self.is_counting and not self.is_told:
            self.used_ns += max(0, now_ns - self._looked_ns)
        self._looked_ns = max(self._looked_ns, now_ns)
        self.is_counting = is_counting

    @property
    def is_used(self) -> bool:
        """Whether nothing is left."""
        return self.used_ns >= self.limit_ns

    @property
    def is_for_last(self) -> bool:
        """Whether what is left is only for the last call."""
        return self.used_ns >= self.limit_ns - min(self.limit_ns // HELD_BACK_PARTS, MAX_HELD_BACK_NS)

    def take_warning(self) -> bool:
        """Whether most of it is used, and nobody has been told."""
        is_due = not self.is_warned and self._is_nearly_used()
        self.is_warned = self.is_warned or is_due
        return is_due

    def _is_nearly_used(self) -> bool:
        return self.limit_ns > 0 and self.used_ns * 100 >= WARN_PERCENT * self.limit_ns

    def extend(self, more_ns: int) -> None:
        """There is more."""
        self.limit_ns += more_ns
        self.is_warned = self._is_nearly_used()
