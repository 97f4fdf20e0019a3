"""Why a session ended. Causes are typed because they decide: restart or not, crash or not, exit status."""

from __future__ import annotations

from typing import Literal

import msgspec

CauseKind = Literal[
    "completed",
    "failed",
    "crashed",
    "memory",
    "hung",
    "start_failed",
    "cancelled",
    "budget",
    "auth",
    "bad_spec",
    "workdir_gone",
    "daemon_stop",
    "time_slice",
]

COUNTED_AS_CRASH: frozenset[CauseKind] = frozenset({"failed", "crashed", "memory", "hung", "start_failed"})
"""Causes that a restart policy may answer, and that use up a group's allowance (DESIGN §4)."""

BEYOND_RESTART: frozenset[str] = frozenset({"journal_lost", "journal_damaged"})
"""Codes of failures that every other incarnation would meet as well: nobody is started again for them."""


class Cause(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The typed end of a session.

    `signal` is a name such as `SIGKILL`, `status` an exit status, `message` one line for people,
    `code` the failure's stable code where there is one. For `memory`, `cap_bytes` is what the session was allowed,
    `peak_bytes` the most that it was seen to use, and `last_tool` the tool call that ran then or ran last.
    """

    kind: CauseKind
    message: str = ""
    signal: str = ""
    status: int | None = None
    code: str = ""
    cap_bytes: int = 0
    peak_bytes: int = 0
    last_tool: str = ""

    def __str__(self) -> str:
        if self.kind != "crashed":
            return self.kind
        # Whose parent root was not, ends in a way that nobody saw: an earlier root's worker, for one.
        how = self.signal or self.status
        return "crashed" if how is None else f"crashed({how})"
