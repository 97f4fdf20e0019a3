"""What a session's journal holds: everything its worker needs to go on where another incarnation stopped.

One tagged union. Entries are facts, written before whatever follows from them: a model's response before it is acted
upon, a tool's intent before its effect, its result before the model hears of it. Kinds and fields are only ever
added. What an incarnation makes of them when it goes on is `ottod.core.resume`.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from ottod.errors import Failure
from ottod.protocol.cause import Cause
from ottod.protocol.model import Message, ModelResponse, ToolResult
from ottod.protocol.usage import Usage


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


class NotesRead(Entry, frozen=True, kw_only=True, tag="notes.read"):
    """The project's notes (OTTO.md) were read, before the first turn. `text` is what the agent is told, from now on.

    `digest` and `size_bytes` are the file's. Without a path: a turn began, and there were none.
    """

    path: str = ""
    digest: str = ""
    size_bytes: int = 0
    text: str = ""


class InputAccepted(Entry, frozen=True, kw_only=True, tag="input.accepted"):
    """A message waits for a turn. Numbers count from 1 in each session; `user.said` with the same takes it out.

    `steer`: it may join the turn that runs; then `user.steered` takes it out.
    """

    number: int
    text: str
    sender: str = "user"
    steer: bool = False
    key: str = ""
    """Of a message from another session: it is accepted once."""
    asks: bool = False
    """It is a question: the end of the turn that it begins is the answer."""


class InputWithdrawn(Entry, frozen=True, kw_only=True, tag="input.withdrawn"):
    """A message that waited will have no turn: who asked waits no more, or has been told already."""

    number: int


class UserSaid(Entry, frozen=True, kw_only=True, tag="user.said"):
    """An input that turn `turn` begins with. `number` is that of the waiting message; 0: the session's task."""

    text: str
    turn: int
    sender: str = "user"
    number: int = 0


class UserSteered(Entry, frozen=True, kw_only=True, tag="user.steered"):
    """A waiting message joined turn `turn`, behind the results so far and before model call `step`."""

    turn: int
    step: int
    number: int
    text: str
    sender: str = "user"


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


class SummaryCalled(Entry, frozen=True, kw_only=True, tag="summary.called"):
    """A call for a summary of the conversation is about to be made."""

    turn: int
    step: int
    model: str
    permit: str = ""
    target: int = 0


class ConversationShortened(Entry, frozen=True, kw_only=True, tag="conversation.shortened"):
    """From here on a summary stands for everything between the task and message `at` of the conversation, or, if
    `summary` is empty, the tool results before message `at` have lost their texts.

    `usage` is what the summary cost. The tokens are what the conversation weighs before and after, by estimate.
    """

    turn: int
    step: int
    at: int
    summary: str = ""
    model: str = ""
    permit: str = ""
    usage: Usage | None = None
    tokens_before: int = 0
    tokens_after: int = 0


class TurnBegunAnew(Entry, frozen=True, kw_only=True, tag="turn.begun_anew"):
    """The work of a turn was getting nowhere and begins anew behind its input, after model call `step`.

    `text` is what the model is told of it.
    """

    turn: int
    step: int
    text: str


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
    claims: tuple[str, ...] = ()
    source: str = ""
    is_grantable: bool = False
    shown: str = ""
    """The digest of the diff that was shown with it: the answer is about that."""


class ApprovalResolved(Entry, frozen=True, kw_only=True, tag="approval.resolved"):
    """What became of it, noted before anybody acts on it. Scope `session`: it holds for the tool from now on.

    Scope `agent`: root keeps it as a standing grant; here it is for the call alone.
    """

    approval: str
    tool: str
    decision: Literal["approved", "denied", "expired", "withdrawn"]
    scope: Literal["once", "session", "agent"] = "once"
    by: str = ""
    reason: str = ""
    shown: str = ""


class ToolResolved(Entry, frozen=True, kw_only=True, tag="tool.resolved"):
    """A tool call's result."""

    turn: int
    step: int
    call: str
    result: ToolResult


class TurnEnded(Entry, frozen=True, kw_only=True, tag="turn.ended"):
    """A turn is over. `interrupted`: it was cancelled, and the session waits for what it is told next."""

    turn: int
    outcome: Literal["completed", "failed", "cancelled"]
    failure: Failure | None = None
    interrupted: bool = False


class SessionPaused(Entry, frozen=True, kw_only=True, tag="session.paused"):
    """From here on no model call and no tool call begins."""

    reason: str = ""


class SessionUnpaused(Entry, frozen=True, kw_only=True, tag="session.unpaused"):
    """They may begin again."""


class TurnsRolledBack(Entry, frozen=True, kw_only=True, tag="turns.rolled_back"):
    """The newest `turns` turns are no part of the conversation any more; `turn` is the newest that is, or 0.

    What they did to files stays done. Turns keep their numbers: the next one counts on from the newest there was.
    """

    turns: int
    turn: int = 0


class SliceEnded(Entry, frozen=True, kw_only=True, tag="slice.ended"):
    """The incarnation's time slice is over: the next one goes on with this conversation instead of the one so far.

    An open turn stays open, behind its model call `step`.
    """

    turn: int
    step: int
    messages: tuple[Message, ...]


class ChildStarted(Entry, frozen=True, kw_only=True, tag="child.started"):
    """A tool call started a child session. `is_reported`: nobody waits for it, its end is told as a message."""

    child: str
    agent: str = ""
    task: str = ""
    key: str = ""
    is_reported: bool = False
    name: str = ""
    mode: Literal["oneshot", "conversation"] = "oneshot"


class ChildEnded(Entry, frozen=True, kw_only=True, tag="child.ended"):
    """A child session ended. With a `number` above 0 that is also a message from it, which waits for a turn."""

    child: str
    agent: str = ""
    cause: Cause
    result: str = ""
    number: int = 0
    name: str = ""
    whole: str = ""
    """The artifact that has the whole result, if that was too long."""


class ProcessStarted(Entry, frozen=True, kw_only=True, tag="process.started"):
    """A background process is about to start. It dies with the incarnation: without an end it is lost in the next."""

    process: str
    command: str
    cwd: str = "."


class ProcessEnded(Entry, frozen=True, kw_only=True, tag="process.ended"):
    """It has ended, or never came to be. `exit_status` is minus the signal number; None if nobody knows."""

    process: str
    exit_status: int | None = None


class Checkpoint(Entry, frozen=True, kw_only=True, tag="checkpoint"):
    """A named point to continue from, or to fork at. An open turn stays open.

    `last_seq` is the newest event's at that moment. An incarnation that ends before its session notes one, too.
    """

    name: str
    turn: int
    last_seq: int


class ArtifactFacts(Entry, frozen=True, kw_only=True):
    """What a workflow's conditions want to know of an artifact that is its input, or that it has collected.

    `fields` are dotted paths of its JSON, with plain values, or `{"size": N}` for a list or a mapping.
    """

    name: str
    version: int
    artifact: str = ""
    fields: dict[str, Any] = {}


class WorkflowBegun(Entry, frozen=True, kw_only=True, tag="workflow.begun"):
    """A workflow's own past begins; its inputs are there. All moments of a workflow are of the wall clock.

    `tree` is git's name for the working directory as it is before any step, if what they change is to be committed.
    `artifacts` are the inputs as `NAME@VERSION`; None in a journal of before they were noted.
    """

    at_ns: int
    facts: tuple[ArtifactFacts, ...] = ()
    tree: str = ""
    artifacts: tuple[str, ...] | None = None


class StepBegun(Entry, frozen=True, kw_only=True, tag="step.begun"):
    """A session for an attempt of a step is about to be asked for. `path` leads to the step: `build[2]/review`.

    `sources` are its inputs as `NAME@VERSION`, `tree` is git's name for the working directory as it was
    before the first attempt.
    """

    path: str
    attempt: int
    agent: str
    at_ns: int
    sources: tuple[str, ...] = ()
    tree: str = ""


class StepEnded(Entry, frozen=True, kw_only=True, tag="step.ended"):
    """An attempt of a step is over; its outputs have been looked at. Nothing of it is ever done again.

    `artifacts` are `NAME@VERSION` of what it left, `facts` what has become known with it. `is_final`: trying again
    with the same agent is of no use. `jitter`, in [0, 1), spreads the delay before the next attempt. `tree` is git's
    name for the working directory as it is now, if that is to be committed. `is_stopped`: somebody stopped its
    session, and wants nobody else to try.
    """

    path: str
    attempt: int
    outcome: Literal["completed", "failed", "cancelled"]
    at_ns: int
    session: str = ""
    failure: Failure | None = None
    is_final: bool = False
    summary: str = ""
    artifacts: tuple[str, ...] = ()
    facts: tuple[ArtifactFacts, ...] = ()
    jitter: float = 0.5
    tree: str = ""
    is_stopped: bool = False


class StepSkipped(Entry, frozen=True, kw_only=True, tag="step.skipped"):
    """A step or a block did not have its turn. It follows from what was noted before; it is here to be read."""

    path: str
    at_ns: int
    reason: str = ""


class StepAnswered(Entry, frozen=True, kw_only=True, tag="step.answered"):
    """Somebody's leave for a step or a block was given, or was not: then `failure` says why."""

    path: str
    at_ns: int
    failure: Failure | None = None


class CompensationBegun(Entry, frozen=True, kw_only=True, tag="compensation.begun"):
    """A session that undoes a step is about to be asked for."""

    path: str
    attempt: int
    agent: str
    at_ns: int


class CompensationEnded(Entry, frozen=True, kw_only=True, tag="compensation.ended"):
    """An attempt to undo a step is over."""

    path: str
    attempt: int
    outcome: Literal["completed", "failed", "cancelled"]
    at_ns: int
    session: str = ""
    failure: Failure | None = None
    jitter: float = 0.5


class WorkflowAwoke(Entry, frozen=True, kw_only=True, tag="workflow.awoke"):
    """A moment that the workflow waited for has come: a time-out, or the end of a delay."""

    at_ns: int


class WorkflowCancelled(Entry, frozen=True, kw_only=True, tag="workflow.cancelled"):
    """Somebody stopped the workflow: no step begins any more."""

    at_ns: int
    reason: str = ""


class WorkflowFailed(Entry, frozen=True, kw_only=True, tag="workflow.failed"):
    """Something beside its steps made the workflow fail: its time is used up, say. What had completed is undone."""

    at_ns: int
    failure: Failure


class WorkflowPaused(Entry, frozen=True, kw_only=True, tag="workflow.paused"):
    """From here on no step begins, or, with `paused` False, they begin again."""

    at_ns: int
    paused: bool
    reason: str = ""


class WorkflowResumed(Entry, frozen=True, kw_only=True, tag="workflow.resumed"):
    """Another session goes on with a workflow that had ended, `origin`: what had not completed begins anew."""

    at_ns: int
    origin: str


WorkflowEntry = (
    WorkflowBegun
    | StepBegun
    | StepEnded
    | StepSkipped
    | StepAnswered
    | CompensationBegun
    | CompensationEnded
    | WorkflowAwoke
    | WorkflowCancelled
    | WorkflowFailed
    | WorkflowPaused
    | WorkflowResumed
)


class Delivered(Entry, frozen=True, kw_only=True, tag="delivery.done"):
    """A sink has what is known by `parcel`, at `place`. It is never sent again.

    A parcel is `NAME@VERSION` of an artifact or, for a sink that takes whole steps, `PATH#ATTEMPT`.
    """

    sink: str
    parcel: str
    at_ns: int
    place: str = ""
    attempts: int = 1


class DeliveryFailed(Entry, frozen=True, kw_only=True, tag="delivery.failed"):
    """An attempt to deliver failed. `is_final`: none follows, in no incarnation."""

    sink: str
    parcel: str
    attempt: int
    at_ns: int
    failure: Failure
    is_final: bool = False


DeliveryEntry = Delivered | DeliveryFailed


class Asked(Entry, frozen=True, kw_only=True):
    """A question of another session: which message it is, the turn that it began, and, with an outcome, its answer.

    No entry of its own: what the entries amount to.
    """

    key: str
    number: int
    turn: int = 0
    outcome: Literal["completed", "failed", "cancelled", ""] = ""
    text: str = ""
    failure: Failure | None = None


class Snapshot(Entry, frozen=True, kw_only=True, tag="snapshot"):
    """Everything that the entries before this one amount to: a file that begins with it needs none of them.

    The fields are those of `ottod.core.past`, which makes it and takes it. `marks` are (turn, index of its first
    message). `origin` is the session that it was taken from, if it is not the file's own.
    """

    origin: str = ""
    has_begun: bool = True
    messages: tuple[Message, ...] = ()
    marks: tuple[tuple[int, int], ...] = ()
    inbox: tuple[InputAccepted, ...] = ()
    newest_number: int = 0
    usages: tuple[Usage, ...] = ()
    children: tuple[ChildStarted, ...] = ()
    ended_children: tuple[ChildEnded, ...] = ()
    closed: Cause | None = None
    text: str = ""
    turn: int = 0
    is_open: bool = False
    ended: TurnEnded | None = None
    ended_steps: int = 0
    ended_text: str = ""
    said: str = ""
    called_step: int = 0
    responded_step: int = 0
    turn_text: str = ""
    response: ModelResponse | None = None
    intents: dict[str, bool] = {}
    results: tuple[ToolResult, ...] = ()
    questions: tuple[ApprovalAsked, ...] = ()
    resolutions: tuple[ApprovalResolved, ...] = ()
    is_paused: bool = False
    pause_reason: str = ""
    budget: Failure | None = None
    attempts: tuple[tuple[str, int, Usage | None], ...] = ()
    measures: tuple[tuple[int, int], ...] = ()
    anew_at: int = 0
    processes: tuple[ProcessStarted, ...] = ()
    workflow: tuple[WorkflowEntry, ...] = ()
    """A workflow's past, whole: it is what its next incarnation begins from."""
    heard: tuple[str, ...] = ()
    asked: tuple[Asked, ...] = ()
    text_answers: bool = False
    deliveries: tuple[DeliveryEntry, ...] = ()
    notes: NotesRead | None = None


class SessionClosed(Entry, frozen=True, kw_only=True, tag="session.closed"):
    """The session ended and nothing follows."""

    cause: Cause


JournalEntry = (
    SessionOpened
    | NotesRead
    | InputAccepted
    | InputWithdrawn
    | UserSaid
    | UserSteered
    | ModelCalled
    | ModelResponded
    | BudgetReached
    | SummaryCalled
    | ConversationShortened
    | TurnBegunAnew
    | ToolIntended
    | ApprovalAsked
    | ApprovalResolved
    | ToolResolved
    | TurnEnded
    | SessionPaused
    | SessionUnpaused
    | TurnsRolledBack
    | SliceEnded
    | ChildStarted
    | ChildEnded
    | ProcessStarted
    | ProcessEnded
    | WorkflowBegun
    | StepBegun
    | StepEnded
    | StepSkipped
    | StepAnswered
    | CompensationBegun
    | CompensationEnded
    | WorkflowAwoke
    | WorkflowCancelled
    | WorkflowFailed
    | WorkflowPaused
    | WorkflowResumed
    | Delivered
    | DeliveryFailed
    | Checkpoint
    | Snapshot
    | SessionClosed
)
