"""What a session's journal holds: everything its worker needs to go on where another incarnation stopped.

One tagged union. Entries are facts, written before whatever follows from them: a model's response before it is acted
upon, a tool's intent before its effect, its result before the model hears of it. Kinds and fields are only ever
added. What an incarnation makes of them when it goes on is `ottod.core.resume`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from ottod.errors import Failure
from ottod.protocol.cause import Cause
from ottod.protocol.model import ModelResponse, ToolResult


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The form that all entries share."""


class SessionOpened(Entry, frozen=True, kw_only=True, tag="session.opened"):
    """An incarnation began to write. `task` waits for a turn from now on. `at_ns` is the wall clock, for display."""

    session: str
    incarnation: int
    agent: str
    model: str
    cwd: str
    task: str = ""
    spec_digest: str = ""
    at_ns: int = 0


class InputAccepted(Entry, frozen=True, kw_only=True, tag="input.accepted"):
    """A message waits for a turn. Numbers count from 1 in each session; `user.said` with the same takes it out."""

    number: int
    text: str
    sender: str = "user"


class UserSaid(Entry, frozen=True, kw_only=True, tag="user.said"):
    """An input that turn `turn` begins with. `number` is that of the waiting message; 0: the session's task."""

    text: str
    turn: int
    sender: str = "user"
    number: int = 0


class ModelCalled(Entry, frozen=True, kw_only=True, tag="model.called"):
    """An attempt of a model call is about to be made, with root's `permit` for it."""

    turn: int
    step: int
    model: str
    request_digest: str = ""
    permit: str = ""
    target: int = 0
    attempt: int = 1


class ModelResponded(Entry, frozen=True, kw_only=True, tag="model.responded"):
    """Its whole response, paid for."""

    turn: int
    step: int
    response: ModelResponse
    permit: str = ""


class BudgetReached(Entry, frozen=True, kw_only=True, tag="budget.reached"):
    """No call of this turn fits into a budget any more: what follows is the last one, and the turn ends with it."""

    turn: int
    step: int
    failure: Failure


class ToolIntended(Entry, frozen=True, kw_only=True, tag="tool.intended"):
    """A tool call is about to have its effect. An intent without a result may or may not have had one."""

    turn: int
    step: int
    call: str
    tool: str
    arguments: str
    idempotent: bool
    idempotency_key: str


class ApprovalAsked(Entry, frozen=True, kw_only=True, tag="approval.asked"):
    """A tool call waits for somebody's leave; it has no intent before it has that. `expires_at_ns` is wall clock."""

    approval: str
    turn: int
    step: int
    call: str
    tool: str
    reason: str = ""
    expires_at_ns: int | None = None


class ApprovalResolved(Entry, frozen=True, kw_only=True, tag="approval.resolved"):
    """What became of it, noted before anybody acts on it. Scope `session`: it holds for the tool from now on."""

    approval: str
    tool: str
    decision: Literal["approved", "denied", "expired", "withdrawn"]
    scope: Literal["once", "session"] = "once"
    by: str = ""
    reason: str = ""


class ToolResolved(Entry, frozen=True, kw_only=True, tag="tool.resolved"):
    """A tool call's result."""

    turn: int
    step: int
    call: str
    result: ToolResult


class TurnEnded(Entry, frozen=True, kw_only=True, tag="turn.ended"):
    """A turn is over."""

    turn: int
    outcome: Literal["completed", "failed", "cancelled"]
    failure: Failure | None = None


class ChildStarted(Entry, frozen=True, kw_only=True, tag="child.started"):
    """A tool call started a child session. `is_reported`: nobody waits for it, its end is told as a message."""

    child: str
    agent: str = ""
    task: str = ""
    key: str = ""
    is_reported: bool = False


class ChildEnded(Entry, frozen=True, kw_only=True, tag="child.ended"):
    """A child session ended. With a `number` above 0 that is also a message from it, which waits for a turn."""

    child: str
    agent: str = ""
    cause: Cause
    result: str = ""
    number: int = 0


class Checkpoint(Entry, frozen=True, kw_only=True, tag="checkpoint"):
    """A point to continue from: the incarnation ends here, the session does not, and an open turn stays open.

    `last_seq` is the newest event's at that moment.
    """

    name: str
    turn: int
    last_seq: int


class SessionClosed(Entry, frozen=True, kw_only=True, tag="session.closed"):
    """The session ended and nothing follows."""

    cause: Cause


JournalEntry = (
    SessionOpened
    | InputAccepted
    | UserSaid
    | ModelCalled
    | ModelResponded
    | BudgetReached
    | ToolIntended
    | ApprovalAsked
    | ApprovalResolved
    | ToolResolved
    | TurnEnded
    | ChildStarted
    | ChildEnded
    | Checkpoint
    | SessionClosed
)
