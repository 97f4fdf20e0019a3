"""Approvals as text: the table of `approvals`, and below it what the calls would change."""

from __future__ import annotations

from collections.abc import Sequence

from ottoctl.rendering.amounts import age
from ottoctl.rendering.ansi import one_line, paint, printable
from ottoctl.rendering.diffs import diff_text
from ottoctl.rendering.sessions import short_ids
from ottoctl.rendering.table import Cell, render_table
from ottoctl.rendering.tools import call_and_claims
from ottod.protocol.results import WaitingApproval


def approvals_table(
    waiting: Sequence[WaitingApproval], *, now_ns: int, width: int, color: bool, full_ids: bool = False
) -> str:
    """Which call of which session waits, for how long, and why. `now_ns` is the wall clock."""
    approvals, sessions = [w.approval.approval for w in waiting], [w.session for w in waiting]
    shown = {i: i for i in (*approvals, *sessions)}
    if not full_ids:
        shown = {**short_ids(approvals), **short_ids(sessions)}
    rows = [
        [
            Cell(shown[w.approval.approval], "bold"),
            shown[w.session],
            printable(w.agent),
            age(max(0, now_ns - w.approval.asked_at_ns) / 1e9),
            _left(w.approval.expires_at_ns, now_ns),
            _what(w),
        ]
        for w in waiting
    ]
    table = render_table(("ID", "SESSION", "AGENT", "AGE", "EXPIRES", "CALL"), rows, width=width, color=color)
    return table + "".join(_change(w, shown[w.approval.approval], color=color) for w in waiting if w.approval.diff)


def _change(waiting: WaitingApproval, approval: str, *, color: bool) -> str:
    head = paint(f"{approval} would change", "bold", color=color)
    return f"\n{head}\n{diff_text(waiting.approval.diff, color=color)}"


def _left(expires_at_ns: int | None, now_ns: int) -> str:
    return "-" if expires_at_ns is None else f"in {age(max(0, expires_at_ns - now_ns) / 1e9)}"


def _what(waiting: WaitingApproval) -> str:
    pending = waiting.approval
    why = f" ({one_line(pending.reason)})" if pending.reason else ""
    return call_and_claims(pending.tool, pending.arguments, pending.claims) + why
