"""What happens to the turn machine, and what it orders."""

from __future__ import annotations

from typing import Literal

import msgspec

from ottod.core.health import Finding
from ottod.errors import Failure
from ottod.protocol.model import Message, ModelResponse, ToolCall, ToolResult


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """The form that events and actions share."""


class Steer(Value, frozen=True, kw_only=True):
    """A message that is to join the running turn. `number` is that of the waiting message in the journal."""

    number: int
    text: str
    sender: str = "user"


class TurnMark(Value, frozen=True, kw_only=True):
    """Where a turn begins: at message `at` of the conversation."""

    turn: int
    at: int


# ------------------------------------------------------------------ events


class InputReceived(Value, frozen=True, kw_only=True, tag=True):
    """A new turn's input. Illegal during a turn."""

    text: str


class TurnResumed(Value, frozen=True, kw_only=True, tag=True):
    """A turn that another incarnation began goes on. Illegal during a turn.

    `step` counts the responses so far. `response` is the newest, unless its consequences are in the conversation
    already; `results` are those of its calls that have theirs, `begun` names those without that may begin again.
    `text` is what the model said last in this turn; `steers` waited to join it. With `budget` it had come to its last
    call. `anew_at` is the step at which its work was begun anew, if it was.
    """

    turn: int
    step: int = 0
    budget: Failure | None = None
    response: ModelResponse | None = None
    results: tuple[ToolResult, ...] = ()
    begun: frozenset[str] = frozenset()
    text: str = ""
    steers: tuple[Steer, ...] = ()
    anew_at: int = 0


class ModelResponded(Value, frozen=True, kw_only=True, tag=True):
    """The model call came back whole. `shortened`: a budget had no room for as long an answer as it wanted."""

    response: ModelResponse
    shortened: Failure | None = None


class ModelFailed(Value, frozen=True, kw_only=True, tag=True):
    """The model call failed for good: retries are the caller's and are over."""

    failure: Failure


class BudgetReached(Value, frozen=True, kw_only=True, tag=True):
    """The model call that was ordered fits into no budget, and was not made."""

    failure: Failure


class ToolResolved(Value, frozen=True, kw_only=True, tag=True):
    """A running tool call has its result, whatever became of it."""

    result: ToolResult


class SteerReceived(Value, frozen=True, kw_only=True, tag=True):
    """Somebody has something to say to the running turn. Without one the message waits where it is kept."""

    steer: Steer


class CancelRequested(Value, frozen=True, kw_only=True, tag=True):
    """Somebody wants the turn to end now. Idempotent. `is_interrupt`: the session is to stay, and wait.

    `response` is what the model call that is out has given, if it is in the journal and not heard of yet.
    """

    reason: str = ""
    is_interrupt: bool = False
    response: ModelResponse | None = None


class PauseRequested(Value, frozen=True, kw_only=True, tag=True):
    """No model call and no tool call is to begin from now on. Idempotent."""


class UnpauseRequested(Value, frozen=True, kw_only=True, tag=True):
    """They may begin again. Idempotent."""


class TurnsForgotten(Value, frozen=True, kw_only=True, tag=True):
    """The last `turns` turns are to be forgotten. Illegal during a turn, and beyond the turns there are."""

    turns: int


class Shortened(Value, frozen=True, kw_only=True, tag=True):
    """The conversation has been made smaller: what lies between the task and message `at` has become `summary`, or,
    without one, has lost the text of its tool results. Legal between two turns and while a model call is out."""

    at: int
    summary: str = ""


TurnEvent = (
    InputReceived
    | TurnResumed
    | ModelResponded
    | ModelFailed
    | BudgetReached
    | ToolResolved
    | SteerReceived
    | CancelRequested
    | PauseRequested
    | UnpauseRequested
    | TurnsForgotten
    | Shortened
)

# ------------------------------------------------------------------ actions


class CallModel(Value, frozen=True, kw_only=True, tag=True):
    """Make a model call with this conversation. Steps count from 1 in each turn.

    `is_last`: have the model hand back what it has, without tools, because a budget is used up.
    """

    turn: int
    step: int
    messages: tuple[Message, ...]
    is_last: bool = False


class NoteSteers(Value, frozen=True, kw_only=True, tag=True):
    """These messages have joined the conversation, before the model call `step` that follows: note it first."""

    turn: int
    step: int
    steers: tuple[Steer, ...]


class BeginAnew(Value, frozen=True, kw_only=True, tag=True):
    """The turn's work has begun anew behind its input, with this message to the model: note it first."""

    turn: int
    step: int
    text: str


class TellFindings(Value, frozen=True, kw_only=True, tag=True):
    """Ways of getting nowhere that were seen in the turn; what follows from them follows."""

    findings: tuple[Finding, ...]


class RunTool(Value, frozen=True, kw_only=True, tag=True):
    """Start a tool call. `is_repeat`: it had begun before, and its intent is in the journal.

    With a `failure` it is not to begin: that is its result.
    """

    turn: int
    step: int
    call: ToolCall
    is_repeat: bool = False
    failure: Failure | None = None


class CancelModel(Value, frozen=True, kw_only=True, tag=True):
    """Abandon the model call that is out."""


class CancelTool(Value, frozen=True, kw_only=True, tag=True):
    """Cancel a running tool call; its `ToolResolved` must still come."""

    call: str


class EndTurn(Value, frozen=True, kw_only=True, tag=True):
    """The turn is over. `text` is the model's last word. `is_interrupt`: the session is to wait for what follows."""

    turn: int
    steps: int
    outcome: Literal["completed", "failed", "cancelled"]
    text: str = ""
    failure: Failure | None = None
    reason: str = ""
    is_interrupt: bool = False


TurnAction = CallModel | NoteSteers | BeginAnew | TellFindings | RunTool | CancelModel | CancelTool | EndTurn
Phase = Literal["idle", "model", "tools", "held"]
"""`held`: between two model calls, paused."""
