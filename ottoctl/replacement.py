"""When an upgrade of the daemon is over: the same process answers, and is another instance than before."""

from __future__ import annotations

from ottod.errors import OttoError
from ottod.protocol.control import Welcome
from ottod.protocol.results import DaemonStatus

UPGRADE_S = 60.0
"""How long the new program may take to answer."""
UPGRADE_LOOK_S = 0.05


def upgraded(before: Welcome, now: DaemonStatus) -> DaemonStatus | None:
    """The status if the new program answers, None while the old one still does.

    Raises OttoError when another process took the daemon's place: the new program died, and somebody started one.
    """
    if now.instance == before.instance:
        return None
    if now.pid != before.pid:
        raise OttoError(
            f"the upgrade failed: ottod (pid {before.pid}) is gone, pid {now.pid} answers in its place",
            mend="see the daemon's log; its sessions were left to the daemon that answers: `ottoctl ps`",
            code="upgrade_failed",
        )
    return now


def not_upgraded(before: Welcome, timeout_s: float) -> OttoError:
    """Nobody new has answered in time."""
    return OttoError(
        f"the upgrade failed: no new daemon answers in process {before.pid} within {timeout_s:g} s",
        mend="see the daemon's log; `ottoctl daemon start` takes over the sessions that were left",
        code="upgrade_failed",
    )
