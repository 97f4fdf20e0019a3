"""The session's states and what may follow what.

Theory of operation: the table is keyed by state and by what happened. A pair that is not in it is a defect of the
caller: `next_state` raises `IllegalTransition` and nothing changes. Two pairs are special by design: whatever
happens after `ended` is illegal (a session ends once), and `stop_requested` is legal in every live state (a stop
wins). `stopping` answers only to the end. The diagram in the reference is generated from this table.
"""

from __future__ import annotations

from typing import Literal, get_args

from ottod.protocol.events import SessionState

Happening = Literal[
    "worker_ready",
    "turn_started",
    "turn_ended",
    "approval_asked",
    "approval_resolved",
    "input_asked",
    "input_given",
    "children_awaited",
    "children_done",
    "pause_requested",
    "unpause_requested",
    "stop_requested",
    "worker_lost",
    "restart_due",
    "restarts_exhausted",
    "unpark_requested",
    "ended",
]

STATES: tuple[SessionState, ...] = get_args(SessionState)
HAPPENINGS: tuple[Happening, ...] = get_args(Happening)
LIVE: frozenset[SessionState] = frozenset(STATES) - {"ended"}

_SPECIFIC: dict[tuple[SessionState, Happening], SessionState] = {
    ("starting", "worker_ready"): "idle",
    ("idle", "turn_started"): "running",
    ("running", "turn_ended"): "idle",
    ("running", "approval_asked"): "waiting_approval",
    ("waiting_approval", "approval_asked"): "waiting_approval",
    ("waiting_approval", "approval_resolved"): "running",
    ("waiting_approval", "turn_ended"): "idle",
    ("running", "input_asked"): "waiting_input",
    ("waiting_input", "input_given"): "running",
    ("waiting_input", "turn_ended"): "idle",
    ("running", "children_awaited"): "waiting_children",
    ("waiting_children", "children_done"): "running",
    ("waiting_children", "turn_ended"): "idle",
    ("idle", "children_awaited"): "waiting_children",
    ("waiting_children", "turn_started"): "running",
    ("running", "pause_requested"): "paused",
    ("idle", "pause_requested"): "paused",
    ("waiting_approval", "pause_requested"): "paused",
    ("waiting_input", "pause_requested"): "paused",
    ("waiting_children", "pause_requested"): "paused",
    ("paused", "turn_started"): "paused",
    ("paused", "unpause_requested"): "running",
    ("paused", "turn_ended"): "paused",
    ("restarting", "restart_due"): "starting",
    ("restarting", "restarts_exhausted"): "parked",
    ("parked", "unpark_requested"): "starting",
    ("stopping", "turn_ended"): "stopping",
    ("stopping", "stop_requested"): "stopping",
}

_LOSABLE: frozenset[SessionState] = LIVE - {"restarting", "parked", "stopping"}

TRANSITIONS: dict[tuple[SessionState, Happening], SessionState] = {
    **{(state, "stop_requested"): "stopping" for state in LIVE},
    **{(state, "ended"): "ended" for state in LIVE},
    **{(state, "worker_lost"): "restarting" for state in _LOSABLE},
    **_SPECIFIC,
}


class IllegalTransition(AssertionError):
    """A happening that cannot follow the state: a defect."""


def next_state(state: SessionState, happening: Happening) -> SessionState:
    """The state after `happening`. Raises IllegalTransition."""
    try:
        return TRANSITIONS[state, happening]
    except KeyError:
        raise IllegalTransition(f"{happening} cannot happen in state {state}") from None
