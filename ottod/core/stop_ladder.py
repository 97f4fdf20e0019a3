"""The stop ladder: how one incarnation of a session is brought to its end, politely first.

Theory of operation. The rungs, each entered once and never left downwards:

    standing ── StopOrdered ──> cancelling ── grace over ──> terminating ── TERM_GRACE_S ──> killing
        └───── brutal ─────────────────────────────────────────────────────────────────────────^
    killing ── LAST_RESORT_S ──> stuck          any rung ── Exited ──> gone

On `killing` the kill is repeated, because a walk over descendants may miss one that is being forked. The grace is a
deadline, not a duration: all sessions of a subtree that is stopped share one, so the depth of a tree does not
multiply the time that its stop takes. A second order can only bring the deadline forward. Each later rung gets its
whole time from when it is reached, so a shell that wakes up late does not kill what it has only just asked to end.
"""

from __future__ import annotations

from typing import Literal, assert_never

import msgspec

TERM_GRACE_S = 2.0
"""Between SIGTERM and SIGKILL."""
KILL_INTERVAL_S = 1.0
"""Between two kills of the same session."""
LAST_RESORT_S = 15.0
"""From the first SIGKILL to the report of what survived it."""

NS_PER_S = 1_000_000_000
Rung = Literal["standing", "cancelling", "terminating", "killing", "stuck", "gone"]


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """The form that events and actions share."""


class StopOrdered(Value, frozen=True, kw_only=True, tag=True):
    """Somebody wants the session to end: within `grace_s`, not after `deadline_ns`, or at once if `brutal`."""

    grace_s: float = 0.0
    deadline_ns: int | None = None
    """Monotonic; the deadline of the subtree that this stop is part of."""
    brutal: bool = False


class Ticked(Value, frozen=True, kw_only=True, tag=True):
    """Time has passed: the answer to `WakeAt`. Harmless at any other moment."""


class Exited(Value, frozen=True, kw_only=True, tag=True):
    """No process of the session is left."""


LadderEvent = StopOrdered | Ticked | Exited


class OrderCancel(Value, frozen=True, kw_only=True, tag=True):
    """Ask the worker to end by itself, at the next boundary of a tool call, before `deadline_ns`."""

    deadline_ns: int


class SignalTerm(Value, frozen=True, kw_only=True, tag=True):
    """SIGTERM to the worker."""


class SignalKill(Value, frozen=True, kw_only=True, tag=True):
    """SIGKILL to every process of the session."""


class ReportRemaining(Value, frozen=True, kw_only=True, tag=True):
    """The session outlived SIGKILL: say which processes remain."""


class WakeAt(Value, frozen=True, kw_only=True, tag=True):
    """Send `Ticked` at `due_ns`. Replaces an earlier wish."""

    due_ns: int


LadderAction = OrderCancel | SignalTerm | SignalKill | ReportRemaining | WakeAt


class StopLadder:
    """The stop of one incarnation. `due_ns` is when the next rung begins, None if none is waited for."""

    def __init__(self) -> None:
        self.rung: Rung = "standing"
        self.due_ns: int | None = None
        self._last_resort_ns = 0

    @property
    def deadline_ns(self) -> int | None:
        """Until when the session may end by itself; what its own children's stops are to share."""
        return self.due_ns if self.rung == "cancelling" else None

    def step(self, event: LadderEvent, *, now_ns: int) -> list[LadderAction]:
        """Takes one event and gives the orders that follow. `now_ns` is monotonic."""
        match event:
            case StopOrdered():
                return self._ordered(event, now_ns)
            case Ticked():
                if self.due_ns is not None and now_ns < self.due_ns:
                    # Clocks round: a timer may come a moment too early, and would not come again by itself.
                    return [WakeAt(due_ns=self.due_ns)]
                return self._climb(now_ns) if self.due_ns is not None else []
            case Exited():
                self.rung, self.due_ns = "gone", None
                return []
            case _:
                assert_never(event)

    def _ordered(self, order: StopOrdered, now_ns: int) -> list[LadderAction]:
        if self.rung not in ("standing", "cancelling", "terminating"):
            return []
        if order.brutal:
            return self._kill(now_ns)
        if self.rung == "terminating":
            return []
        due_ns = now_ns + max(0, round(order.grace_s * NS_PER_S))
        if order.deadline_ns is not None:
            due_ns = min(due_ns, order.deadline_ns)
        if self.due_ns is not None and due_ns >= self.due_ns:
            return []
        if due_ns <= now_ns:
            return self._terminate(now_ns)
        self.rung, self.due_ns = "cancelling", due_ns
        return [OrderCancel(deadline_ns=due_ns), WakeAt(due_ns=due_ns)]

    def _climb(self, now_ns: int) -> list[LadderAction]:
        if self.rung == "cancelling":
            return self._terminate(now_ns)
        if self.rung == "terminating":
            return self._kill(now_ns)
        if now_ns >= self._last_resort_ns:
            self.rung, self.due_ns = "stuck", None
            return [ReportRemaining()]
        return [SignalKill(), self._wake(now_ns, KILL_INTERVAL_S)]

    def _terminate(self, now_ns: int) -> list[LadderAction]:
        self.rung = "terminating"
        return [SignalTerm(), self._wake(now_ns, TERM_GRACE_S)]

    def _kill(self, now_ns: int) -> list[LadderAction]:
        self.rung = "killing"
        self._last_resort_ns = now_ns + round(LAST_RESORT_S * NS_PER_S)
        return [SignalKill(), self._wake(now_ns, KILL_INTERVAL_S)]

    def _wake(self, now_ns: int, delay_s: float) -> WakeAt:
        self.due_ns = now_ns + round(delay_s * NS_PER_S)
        return WakeAt(due_ns=self.due_ns)
