"""Stops in words: what was ended, and how it is known that nothing is left. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from ottoctl.rendering.ansi import one_line
from ottod.protocol.results import SessionInfo, StopResult

MAX_NAMED = 20
"""Sessions that are named one by one; of the others only the number is told."""


def stop_line(result: StopResult) -> str:
    """`stopped s-7f3k… and 19 below it; its cgroup is empty`, or what remains."""
    if result.remaining_pids:
        pids = ", ".join(map(str, result.remaining_pids))
        return f"{result.session} was stopped ({result.cause}), but these processes remain: {pids}"
    if result.already_ended:
        return f"{result.session} had ended already ({result.cause})"
    below = sum(session != result.session for session in result.stopped)
    proof = f"; {one_line(result.proof) or 'nothing of it is left'}"
    return f"stopped {result.session}" + (f" and {below} below it" if below else "") + proof


def named(sessions: Sequence[SessionInfo]) -> str:
    """`s-7f3k… (coder), s-9d2m… (reviewer) and 3 more`."""
    shown = ", ".join(f"{info.session} ({one_line(info.agent)})" for info in sessions[:MAX_NAMED])
    rest = len(sessions) - MAX_NAMED
    return f"{shown} and {rest} more" if rest > 0 else shown
