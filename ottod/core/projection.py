"""Folds a session's state events into what root knows of the session."""

from __future__ import annotations

from msgspec.structs import replace

from ottod.protocol import events as ev
from ottod.protocol.results import Backlog, PendingApproval, SessionInfo

MAX_PENDING = 128
"""Approvals of one session that root remembers; no answer of a model makes more calls."""
MAX_NAME_CHARS = 256
"""Of an approval's id, and of what it names."""
SHOWN_ARGUMENTS_CHARS = 2000
"""Of a pending call's arguments; the event has more, the journal has all."""
SHOWN_REASON_CHARS = 500
SHOWN_DIFF_CHARS = 13_000
"""Of a diff, which comes cut from who asks."""
MAX_CLAIMS = 20
"""Of one approval, in the table."""
MAX_CLAIM_CHARS = 2000
WITHOUT_WORKER: frozenset[ev.SessionState] = frozenset({"starting", "restarting", "parked"})
"""States that only root says, of a session whose last worker is gone."""


def fold(info: SessionInfo, event: ev.Event | ev.Unknown, at_ns: int) -> SessionInfo:
    """The session after `event`. Events that change nothing in the table give the same struct."""
    match event:
        case ev.SessionStateChanged():
            reason = event.reason if event.state in ("restarting", "parked") else ""
            due_ns = info.restart_due_ns if event.state == "restarting" else 0
            halt = None if event.state in WITHOUT_WORKER else info.halt
            return replace(info, state=event.state, reason=reason, restart_due_ns=due_ns, halt=halt)
        case ev.IncarnationExited():
            due_ns = at_ns + event.delay_ms * 1_000_000 if event.restart == "scheduled" else 0
            return replace(info, pid=0, current_tool="", restarts=event.restarts, restart_due_ns=due_ns, backlog=None)
        case ev.SessionStarted():
            started_at_ns = info.started_at_ns or at_ns
            return replace(info, pid=event.pid, incarnation=event.incarnation, started_at_ns=started_at_ns)
        case ev.TurnStarted():
            # Events may be folded in again, from the ring: only what an earlier turn asked for is over.
            handed_to = info.handed_to if info.turn == event.turn else ""
            return replace(info, turn=event.turn, approvals=_asked_since(info, event.turn), handed_to=handed_to)
        case ev.TurnCompleted() | ev.TurnFailed() | ev.TurnCancelled():
            return replace(info, current_tool="", approvals=_asked_since(info, event.turn + 1), backlog=None)
        case ev.ApprovalRequested():
            return replace(info, approvals=_with(info.approvals, event, at_ns))
        case ev.ApprovalResolved():
            return replace(info, approvals=tuple(a for a in info.approvals if a.approval != event.approval))
        case ev.ToolStarted():
            approvals = _without_call(info, event.call, at_ns)
            return replace(info, current_tool=event.tool, last_tool=event.tool, approvals=approvals)
        case ev.ToolCompleted() | ev.ToolFailed():
            current_tool = "" if info.current_tool == event.tool else info.current_tool
            approvals = _without_call(info, event.call, at_ns)
            if current_tool == info.current_tool and approvals is info.approvals:
                return info
            return replace(info, current_tool=current_tool, approvals=approvals)
        case ev.ConversationHandedOver():
            return replace(info, handed_to=event.child[:MAX_NAME_CHARS])
        case ev.BacklogChanged():
            waits = Backlog(running=event.running, waiting=event.waiting, limit=event.limit)
            return replace(info, backlog=waits if event.waiting > 0 else None)
        case ev.UsageUpdated():
            return replace(info, usage=event.total)
        case ev.ModelRerouted():
            return replace(info, model=event.to_model)
        case ev.SessionExited():
            return replace(
                info,
                state="ended",
                pid=0,
                current_tool="",
                approvals=(),
                backlog=None,
                halt=None,
                cause=event.cause,
                result=event.result,
                is_json=event.is_json,
                whole=event.whole,
                ended_at_ns=at_ns,
                remaining_pids=event.remaining_pids,
            )
        case _:
            return info


def _asked_since(info: SessionInfo, turn: int) -> tuple[PendingApproval, ...]:
    return tuple(a for a in info.approvals if a.turn >= turn) if info.approvals else ()


def _without_call(info: SessionInfo, call: str, at_ns: int) -> tuple[PendingApproval, ...]:
    """A call that has begun or ended waits no more, also if the process that knew why died before it could tell."""
    if not any(a.call == call and a.asked_at_ns <= at_ns for a in info.approvals):
        return info.approvals
    return tuple(a for a in info.approvals if a.call != call or a.asked_at_ns > at_ns)


def _are_whole(claims: tuple[str, ...]) -> bool:
    return len(claims) <= MAX_CLAIMS and all(len(claim) <= MAX_CLAIM_CHARS for claim in claims)


def _with(
    pending: tuple[PendingApproval, ...], asked: ev.ApprovalRequested, at_ns: int
) -> tuple[PendingApproval, ...]:
    """The same question, asked again by a later incarnation, keeps its place, its age and its answer."""
    is_known = any(a.approval == asked.approval for a in pending)
    if is_known or len(pending) >= MAX_PENDING or len(asked.approval) > MAX_NAME_CHARS:
        return pending
    new = PendingApproval(
        approval=asked.approval,
        call=asked.call[:MAX_NAME_CHARS],
        tool=asked.tool[:MAX_NAME_CHARS],
        arguments=asked.arguments[:SHOWN_ARGUMENTS_CHARS],
        reason=asked.reason[:SHOWN_REASON_CHARS],
        turn=asked.turn,
        step=asked.step,
        asked_at_ns=at_ns,
        expires_at_ns=asked.expires_at_ns,
        claims=tuple(claim[:MAX_CLAIM_CHARS] for claim in asked.claims[:MAX_CLAIMS]),
        source=asked.source[:SHOWN_REASON_CHARS],
        is_grantable=asked.is_grantable and _are_whole(asked.claims),
        diff=asked.diff[:SHOWN_DIFF_CHARS],
    )
    return (*pending, new)
