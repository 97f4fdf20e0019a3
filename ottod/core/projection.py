"""Folds a session's state events into what root knows of the session."""

from __future__ import annotations

from msgspec.structs import replace

from ottod.protocol import events as ev
from ottod.protocol.control import SessionInfo


def fold(info: SessionInfo, event: ev.Event | ev.Unknown, at_ns: int) -> SessionInfo:
    """The session after `event`. Events that change nothing in the table give the same struct."""
    match event:
        case ev.SessionStateChanged():
            reason = event.reason if event.state in ("restarting", "parked") else ""
            due_ns = info.restart_due_ns if event.state == "restarting" else 0
            return replace(info, state=event.state, reason=reason, restart_due_ns=due_ns)
        case ev.IncarnationExited():
            due_ns = at_ns + event.delay_ms * 1_000_000 if event.restart == "scheduled" else 0
            return replace(info, pid=0, current_tool="", restarts=event.restarts, restart_due_ns=due_ns)
        case ev.SessionStarted():
            started_at_ns = info.started_at_ns or at_ns
            return replace(info, pid=event.pid, incarnation=event.incarnation, started_at_ns=started_at_ns)
        case ev.TurnStarted():
            return replace(info, turn=event.turn)
        case ev.TurnCompleted() | ev.TurnFailed() | ev.TurnCancelled():
            return replace(info, current_tool="")
        case ev.ToolStarted():
            return replace(info, current_tool=event.tool, last_tool=event.tool)
        case ev.ToolCompleted() | ev.ToolFailed():
            return replace(info, current_tool="") if info.current_tool == event.tool else info
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
                cause=event.cause,
                result=event.result,
                ended_at_ns=at_ns,
                remaining_pids=event.remaining_pids,
            )
        case _:
            return info
