"""The audit trail as text."""

from __future__ import annotations

from ottoctl.rendering.policy import audit_table
from ottod.protocol.results import AuditEntry


def test_what_nobody_in_particular_decided() -> None:
    """Without a name the reason stands alone."""
    entry = AuditEntry(kind="asked", session="s-1", agent="a", tool="budget", reason="the session's budget")
    line = audit_table([entry], width=0, color=False).splitlines()[1]
    assert line.split("budget", 1)[1].strip() == "the session's budget"
