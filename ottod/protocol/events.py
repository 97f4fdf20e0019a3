"""The canonical events: everything that a session says about itself, whatever provider or harness is underneath.

Each event belongs to one session and gets a `seq` there; in the ring it also gets a global `offset`. Past tense,
one tag per kind. A reader that meets an unknown tag gets an `Unknown` value (see `records`), not an error.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from ottod.errors import Failure
from ottod.protocol.cause import Cause
from ottod.protocol.usage import Usage

SessionState = Literal[
    "starting",
    "idle",
    "running",
    "waiting_approval",
    "waiting_input",
    "waiting_children",
    "paused",
    "stopping",
    "restarting",
    "parked",
    "ended",
]

ItemKind = Literal[
    "user_message",
    "assistant_message",
    "reasoning",
    "plan",
    "tool_call",
    "command",
    "file_change",
    "web_search",
    "image",
    "review",
    "compaction",
    "error",
]

Stream = Literal["text", "reasoning", "tool_output"]

MAX_EVENT_TEXT_BYTES = 24 * 1024
"""Longer texts in one event are cut there and marked `truncated`; the journal has the whole."""


class EventBase(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What all events share: nothing but their form."""


class SessionCreated(EventBase, frozen=True, kw_only=True, tag="session.created"):
    """The session exists and its id is taken; no process yet."""

    agent: str
    model: str
    kind: Literal["agent", "workflow", "harness"] = "agent"
    title: str = ""
    cwd: str = ""
    parent: str = ""
    run_mode: Literal["interactive", "headless"] = "interactive"
    agent_digest: str = ""
    resumed_from: str = ""
    """The session that it took the conversation over from."""
    name: str = ""
    """What it is called in its tree."""
    routed: str = ""
    """Why its agent was chosen, if nobody named one."""


class SessionStarted(EventBase, frozen=True, kw_only=True, tag="session.started"):
    """An incarnation's process is ready. `generation` is the zygote's."""

    pid: int
    incarnation: int
    generation: int = 0


class SessionStateChanged(EventBase, frozen=True, kw_only=True, tag="session.state_changed"):
    """The session moved from `previous` to `state`."""

    state: SessionState
    previous: SessionState
    reason: str = ""


class IncarnationExited(EventBase, frozen=True, kw_only=True, tag="incarnation.exited"):
    """A session lost its process and keeps its life: the next incarnation comes `delay_ms` later, or never.

    `restart`: `scheduled` after a crash of its own, `group` because its group restarts together, `parked` when its
    allowance of restarts is used up and it waits for somebody to unpark it. Cause `time_slice` does not count as one.
    """

    incarnation: int
    cause: Cause
    restart: Literal["scheduled", "group", "parked"] = "scheduled"
    delay_ms: int = 0
    restarts: int = 0
    remaining_pids: tuple[int, ...] = ()


class SessionExited(EventBase, frozen=True, kw_only=True, tag="session.exited"):
    """The session's one and last end. `remaining_pids` is empty when the end is proved.

    `is_json`: the result is the whole JSON text that satisfies the agent's `output_schema`.
    """

    cause: Cause
    result: str = ""
    usage: Usage = Usage()
    duration_ms: int = 0
    incarnations: int = 1
    remaining_pids: tuple[int, ...] = ()
    truncated: bool = False
    is_json: bool = False
    whole: str = ""
    """The artifact that has the whole result of a workflow's step, if that was too long."""


class TurnStarted(EventBase, frozen=True, kw_only=True, tag="turn.started"):
    """Turns count from 1. `input` is what the user or parent said, perhaps cut."""

    turn: int
    input: str = ""


class TurnCompleted(EventBase, frozen=True, kw_only=True, tag="turn.completed"):
    """The model ended its turn. `steps` counts model calls; `usage` is the session's up to here."""

    turn: int
    steps: int = 0
    usage: Usage = Usage()
    duration_ms: int = 0


class TurnFailed(EventBase, frozen=True, kw_only=True, tag="turn.failed"):
    """The turn could not be completed."""

    turn: int
    failure: Failure
    duration_ms: int = 0


class TurnCancelled(EventBase, frozen=True, kw_only=True, tag="turn.cancelled"):
    """Somebody stopped the turn; running tools were cancelled with it. `interrupted`: the session stays and waits."""

    turn: int
    reason: str = ""
    duration_ms: int = 0
    interrupted: bool = False


class ContentDelta(EventBase, frozen=True, kw_only=True, gc=False, tag="content.delta"):
    """A piece of a stream. `item` is the item's or the tool call's id; pieces of one item come in order."""

    stream: Stream
    text: str
    item: str = ""


class ItemStarted(EventBase, frozen=True, kw_only=True, tag="item.started"):
    """A piece of conversation or work has begun. The same id again voids what was streamed of it so far."""

    item: str
    kind: ItemKind
    title: str = ""


class ItemUpdated(EventBase, frozen=True, kw_only=True, tag="item.updated"):
    """News of an item that has no stream of its own (a plan's steps, a diff)."""

    item: str
    kind: ItemKind
    data: dict[str, Any] = {}


class ItemCompleted(EventBase, frozen=True, kw_only=True, tag="item.completed"):
    """An item is whole. `text` is complete unless `truncated`."""

    item: str
    kind: ItemKind
    text: str = ""
    truncated: bool = False
    data: dict[str, Any] = {}


class ToolStarted(EventBase, frozen=True, kw_only=True, tag="tool.started"):
    """A tool call begins; its intent is in the journal. `arguments` is JSON text, perhaps cut."""

    call: str
    tool: str
    arguments: str = "{}"
    turn: int = 0
    step: int = 0


class ToolProgress(EventBase, frozen=True, kw_only=True, tag="tool.progress"):
    """One line on what a running tool does."""

    call: str
    message: str
    percent: float | None = None


class ToolCompleted(EventBase, frozen=True, kw_only=True, tag="tool.completed"):
    """A tool call gave a result; its intent and result are in the journal."""

    call: str
    tool: str
    output: str = ""
    truncated: bool = False
    duration_ms: int = 0
    exit_status: int | None = None


class ToolFailed(EventBase, frozen=True, kw_only=True, tag="tool.failed"):
    """A tool call gave a failure as its result: refused, crashed, timed out, cancelled or unknown."""

    call: str
    tool: str
    failure: Failure
    output: str = ""
    duration_ms: int = 0


class ApprovalRequested(EventBase, frozen=True, kw_only=True, tag="approval.requested"):
    """A tool call waits for somebody's permission. The same id again is the same question, asked by a later
    incarnation.

    `reason` is the rule's and `source` where it stands, `expires_at_ns` the wall clock's when the question lapses.
    `claims` are what needs permission, one by one: `exec git push`, `write src/a.py`. `is_grantable`: permission
    for them can stand for the agent.
    """

    approval: str
    call: str
    tool: str
    arguments: str = "{}"
    reason: str = ""
    expires_at_ns: int | None = None
    turn: int = 0
    step: int = 0
    claims: tuple[str, ...] = ()
    source: str = ""
    is_grantable: bool = False
    diff: str = ""
    """What the call would change in files, as a unified diff, perhaps cut: permission is for that alone."""


class ApprovalResolved(EventBase, frozen=True, kw_only=True, tag="approval.resolved"):
    """The answer, and whose it was. A time-out is `expired`, never `denied`; a stop makes it `withdrawn`.

    With scope `session` it holds for the tool from now on, for as long as the session lives; with `agent` it stands,
    for what was claimed, until it is revoked.
    """

    approval: str
    decision: Literal["approved", "denied", "expired", "withdrawn"]
    by: str = ""
    scope: Literal["once", "session", "agent"] = "once"
    reason: str = ""


class PolicyDecided(EventBase, frozen=True, kw_only=True, tag="policy.decided"):
    """A tool call did not just begin, and nobody was asked: a rule forbids it (`denied`), there is nobody to ask
    (`unavailable`), or permission that was given before covers it (`granted`, with the id of what covers it).

    `rule` and `source` are the deciding rule and where it stands, `claims` what it is about.
    """

    call: str
    tool: str
    outcome: Literal["denied", "unavailable", "granted"]
    claims: tuple[str, ...] = ()
    rule: str = ""
    source: str = ""
    reason: str = ""
    grant: str = ""
    turn: int = 0
    step: int = 0


class InputRequested(EventBase, frozen=True, kw_only=True, tag="input.requested"):
    """The agent asks the user something."""

    request: str
    prompt: str
    choices: tuple[str, ...] = ()


class InputResolved(EventBase, frozen=True, kw_only=True, tag="input.resolved"):
    """The answer to an `input.requested`."""

    request: str
    text: str = ""
    by: str = ""


class UsageUpdated(EventBase, frozen=True, kw_only=True, tag="usage.updated"):
    """One model call's consumption, and the session's total after it."""

    model: str
    provider: str
    usage: Usage
    total: Usage
    duration_ms: int = 0
    """Of the call that answered; `first_token_ms` is how long the first piece of its answer took."""
    first_token_ms: int | None = None


class BudgetWarning(EventBase, frozen=True, kw_only=True, tag="budget.warning"):
    """A budget is nearly used. `spent` and `limit` are in the budget's own unit."""

    budget: Literal["seconds", "tokens", "usd_micros"]
    spent: int
    limit: int
    scope: Literal["session", "tree", "day"] = "session"


class ArtifactWritten(EventBase, frozen=True, kw_only=True, tag="artifact.written"):
    """A file worth keeping was stored."""

    artifact: str
    name: str
    kind: str = "file"
    path: str = ""
    digest: str = ""
    size_bytes: int = 0
    version: int = 1


class ArtifactDelivered(EventBase, frozen=True, kw_only=True, tag="artifact.delivered"):
    """A sink of the workflow has the artifact, at `place`: a file, a commit, a URL. `note` says what else it did."""

    artifact: str
    name: str
    version: int
    sink: str
    place: str = ""
    note: str = ""


class ArtifactUndelivered(EventBase, frozen=True, kw_only=True, tag="artifact.undelivered"):
    """An attempt to deliver an artifact failed. Another one follows after `retry_ms`; 0: none does."""

    artifact: str
    name: str
    version: int
    sink: str
    attempt: int
    failure: Failure
    retry_ms: int = 0


class DecisionLogged(EventBase, frozen=True, kw_only=True, tag="decision.logged"):
    """The session added to the decision graph, or changed it. `kind` and `title` are those of its first node.

    `nodes` are the ids of all that the call named, new ones first; `edges` is how many it added.
    """

    nodes: tuple[str, ...]
    kind: str = ""
    title: str = ""
    edges: int = 0


class CheckpointWritten(EventBase, frozen=True, kw_only=True, tag="checkpoint.written"):
    """The session can be continued from here."""

    checkpoint: str
    turn: int
    path: str = ""


class ConversationRolledBack(EventBase, frozen=True, kw_only=True, tag="conversation.rolled_back"):
    """The newest `turns` turns are no part of the conversation any more; files are as they were left.

    `turn` is the newest turn that remains, or 0.
    """

    turns: int
    turn: int = 0


class ChildStarted(EventBase, frozen=True, kw_only=True, tag="child.started"):
    """This session started another."""

    child: str
    agent: str
    name: str = ""


class ChildExited(EventBase, frozen=True, kw_only=True, tag="child.exited"):
    """A child session ended."""

    child: str
    cause: Cause
    result: str = ""


class ConversationHandedOver(EventBase, frozen=True, kw_only=True, tag="conversation.handed_over"):
    """The child `child` has the conversation from here on; what it comes to is what this session's turn comes to."""

    child: str
    agent: str
    name: str = ""
    reason: str = ""


class ProjectNotesRead(EventBase, frozen=True, kw_only=True, tag="notes.read"):
    """The project's notes (OTTO.md) were read: the agent is told what they say, as long as the session goes on.

    `digest` (SHA-256) and `size_bytes` are the file's; of that `given_bytes` are given at most.
    """

    path: str
    digest: str = ""
    size_bytes: int = 0
    given_bytes: int = 0


class ResearchReused(EventBase, frozen=True, kw_only=True, tag="research.reused"):
    """An agent need not be asked: `child` has found out the same before, and nothing has changed since."""

    agent: str
    question: str
    child: str
    found_at_ns: int = 0


class MessageSent(EventBase, frozen=True, kw_only=True, tag="message.sent"):
    """A message left for another session."""

    message: str
    to: str
    text: str = ""
    name: str = ""
    """What the receiver is called; `waited_ms`: how long there was no room for it."""
    waited_ms: int = 0


class MessageReceived(EventBase, frozen=True, kw_only=True, tag="message.received"):
    """A message arrived, from a client or another session."""

    message: str
    sender: str
    text: str = ""
    name: str = ""
    """What the sender is called, if it is another session of the tree."""


class StepStarted(EventBase, frozen=True, kw_only=True, tag="workflow.step_started"):
    """An attempt of a workflow's step begins. `path` is where it is: `build[2]/review`."""

    path: str
    attempt: int
    agent: str
    title: str = ""


class StepEnded(EventBase, frozen=True, kw_only=True, tag="workflow.step_ended"):
    """An attempt is over. Unless it completed, another may follow after `retry_ms`; 0: none does.

    `artifacts` are `NAME@VERSION` of what it left, `child` the session that it was.
    """

    path: str
    attempt: int
    outcome: Literal["completed", "failed", "cancelled"]
    child: str = ""
    failure: Failure | None = None
    artifacts: tuple[str, ...] = ()
    duration_ms: int = 0
    retry_ms: int = 0


class StepSkipped(EventBase, frozen=True, kw_only=True, tag="workflow.step_skipped"):
    """A step or a block does not have its turn."""

    path: str
    reason: str = ""


class IterationStarted(EventBase, frozen=True, kw_only=True, tag="workflow.iteration"):
    """A loop begins an iteration; there are at most `of`."""

    path: str
    iteration: int
    of: int


class BlockStarted(EventBase, frozen=True, kw_only=True, tag="workflow.block_started"):
    """A block of a workflow begins."""

    path: str


class BlockEnded(EventBase, frozen=True, kw_only=True, tag="workflow.block_ended"):
    """A block is over."""

    path: str
    outcome: Literal["completed", "failed", "cancelled"]
    failure: Failure | None = None


class CompensationStarted(EventBase, frozen=True, kw_only=True, tag="workflow.compensation_started"):
    """A completed step is being undone, because the workflow has failed."""

    path: str
    attempt: int
    agent: str


class CompensationEnded(EventBase, frozen=True, kw_only=True, tag="workflow.compensation_ended"):
    """An attempt to undo it is over."""

    path: str
    attempt: int
    outcome: Literal["completed", "failed", "cancelled"]
    child: str = ""
    failure: Failure | None = None


class BacklogChanged(EventBase, frozen=True, kw_only=True, tag="backlog.changed"):
    """Work of this session that could begin waits for room: steps of a workflow, or tool calls of one answer.

    `running` are under way, `waiting` begin as others end; there is room for `limit` at a time. Of a workflow whose
    blocks have limits of their own that is the outermost one. With none `waiting` it is over; so it is with its turn.
    """

    running: int
    waiting: int
    limit: int = 0


class ModelRerouted(EventBase, frozen=True, kw_only=True, tag="model.rerouted"):
    """Another model answers than the one asked for."""

    from_model: str
    to_model: str
    reason: str = ""


class ModelRetried(EventBase, frozen=True, kw_only=True, tag="model.retried"):
    """A model call failed and will be made again after `delay_ms`. Attempts count from 1."""

    model: str
    attempt: int
    delay_ms: int
    failure: Failure


class BreakerStateChanged(EventBase, frozen=True, kw_only=True, tag="breaker.state_changed"):
    """A circuit breaker moved."""

    provider: str
    model: str
    state: Literal["closed", "open", "half_open"]
    previous: Literal["closed", "open", "half_open"]
    reason: str = ""


class ProviderNotice(EventBase, frozen=True, kw_only=True, tag="provider.notice"):
    """Something a provider or harness says that has no event of its own (account, MCP status, deprecation)."""

    provider: str
    kind: str
    message: str = ""
    data: dict[str, Any] = {}


class LogWarning(EventBase, frozen=True, kw_only=True, tag="log.warning"):
    """Worth knowing; the session goes on."""

    message: str
    code: str = ""


class LogError(EventBase, frozen=True, kw_only=True, tag="log.error"):
    """Something is wrong with the session or its surroundings."""

    message: str
    code: str = ""


class Gap(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="gap"):
    """What a subscriber can no longer be given, exactly.

    Every event of `session` with an offset in [first, last] is missing, and no other event of it. Without a
    session: of sessions that have wholly left the ring (`evicted`), or of all (`lost`: a power failure took what
    was not yet synced). `next_seq` is the first seq of the session that can still be had. Made by the hub for one
    subscriber; it has no seq and no offset of its own.
    """

    first: int
    last: int
    reason: Literal["evicted", "lost"]
    session: str = ""
    next_seq: int = 0


class Unknown(msgspec.Struct, frozen=True, kw_only=True):
    """An event of a kind that this version does not know, kept as it came."""

    type: str
    fields: dict[str, Any] = {}


Event = (
    SessionCreated
    | SessionStarted
    | SessionStateChanged
    | IncarnationExited
    | SessionExited
    | TurnStarted
    | TurnCompleted
    | TurnFailed
    | TurnCancelled
    | ContentDelta
    | ItemStarted
    | ItemUpdated
    | ItemCompleted
    | ToolStarted
    | ToolProgress
    | ToolCompleted
    | ToolFailed
    | ApprovalRequested
    | ApprovalResolved
    | PolicyDecided
    | InputRequested
    | InputResolved
    | UsageUpdated
    | BudgetWarning
    | ArtifactWritten
    | ArtifactDelivered
    | ArtifactUndelivered
    | DecisionLogged
    | CheckpointWritten
    | ConversationRolledBack
    | ChildStarted
    | ChildExited
    | ConversationHandedOver
    | ResearchReused
    | ProjectNotesRead
    | MessageSent
    | MessageReceived
    | StepStarted
    | StepEnded
    | StepSkipped
    | IterationStarted
    | BlockStarted
    | BlockEnded
    | CompensationStarted
    | CompensationEnded
    | BacklogChanged
    | ModelRerouted
    | ModelRetried
    | BreakerStateChanged
    | ProviderNotice
    | LogWarning
    | LogError
    | Gap
)


def tag_of(event: Event | Unknown) -> str:
    """The event's wire tag, such as `turn.started`."""
    if isinstance(event, Unknown):
        return event.type
    tag = event.__struct_config__.tag
    assert isinstance(tag, str)
    return tag
