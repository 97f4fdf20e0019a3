"""What root's table makes of events that end a worker, or say that there is none."""

from __future__ import annotations

import pytest

from ottod.core.projection import fold
from ottod.protocol import events as ev
from ottod.protocol.cause import Cause
from ottod.protocol.results import Halt, SessionInfo

CONDEMNED = Halt(verdict=Cause(kind="failed", code="restart_intensity"))
INFO = SessionInfo(session="s-1", agent="a", model="m", state="running", pid=7, incarnation=1, halt=CONDEMNED)


@pytest.mark.parametrize(
    ("event", "is_over"),
    [
        (ev.SessionStateChanged(state="restarting", previous="running"), True),
        (ev.SessionStateChanged(state="starting", previous="restarting"), True),
        (ev.SessionStateChanged(state="parked", previous="running"), True),
        (ev.SessionExited(cause=Cause(kind="failed")), True),
        # Its worker says these, and what was meant by its stop is true all the same.
        (ev.SessionStateChanged(state="stopping", previous="running"), False),
        (ev.SessionStateChanged(state="idle", previous="running"), False),
        (ev.TurnCompleted(turn=1), False),
        # Folded in again, it is an earlier worker's.
        (ev.SessionStarted(pid=7, incarnation=1, generation=1), False),
    ],
)
def test_a_halt_holds_as_long_as_its_worker(event: ev.Event, is_over: bool) -> None:
    """It is over when root says that there is no worker any more, and not before."""
    assert fold(INFO, event, 1).halt == (None if is_over else CONDEMNED)


def test_a_loss_says_what_follows_in_the_same_breath() -> None:
    """Between the loss of a worker and the state that follows from it the table has no state of its own."""
    lost = ev.IncarnationExited(incarnation=1, cause=Cause(kind="crashed"), restart="parked", restarts=3)
    info = fold(INFO, lost, 1)
    assert (info.state, info.pid, info.restarts, info.halt) == ("running", 0, 3, CONDEMNED)
    info = fold(info, ev.SessionStateChanged(state="parked", previous="running", reason="too many"), 1)
    assert (info.state, info.reason, info.halt) == ("parked", "too many", None)
