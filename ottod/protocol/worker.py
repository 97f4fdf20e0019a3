"""Worker ↔ root, and root ↔ zygote.

On the worker socket each message is one frame: a byte of kind, `M` and a message behind it, or `B` and one unsealed
record (see `records`). The *birth* travels over the worker's private channel, a socket pair whose other end only
root holds: it carries the secret and the provider keys, and its closing tells the worker that root is gone.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from ottod.errors import Failure
from ottod.protocol.artifacts import ArtifactInfo
from ottod.protocol.cause import Cause, CauseKind
from ottod.protocol.codec import Codec
from ottod.protocol.decisions import (
    MAX_CHANGES,
    MAX_EDGES,
    MAX_NODES,
    DecisionFilter,
    FoundDecisions,
    NewEdge,
    NewNode,
    NodeChange,
)
from ottod.protocol.events import BreakerStateChanged, BudgetWarning, SessionState
from ottod.protocol.policy import Authority, StandingGrant
from ottod.protocol.specs import AgentSpec, Budgets, ModelTarget, ToolFile
from ottod.protocol.usage import Usage
from ottod.protocol.workflows import ResolvedWorkflow

KIND_MESSAGE = b"M"
KIND_BATCH = b"B"

MAX_BIRTH_BYTES = 4 * 1024 * 1024
MAX_MESSAGE_TEXT_BYTES = 16 * 1024
"""Of a message from one session to another."""
MAX_ANSWER_BYTES = 64 * 1024
"""Of an answer that is kept to stand in for another: it has to fit into a worker's message."""


class Wire(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The form that all worker messages share."""


class Tracing(Wire, frozen=True, kw_only=True):
    """Where a session's spans go. `headers` hold secrets."""

    endpoint: str
    headers: dict[str, str] = {}
    sample_ratio: float = 1.0
    timeout_s: float = 3.0


class Birth(Wire, frozen=True, kw_only=True, tag="birth"):
    """Everything an incarnation needs to begin. Never logged, never stored: it holds the secret and the keys."""

    session: str
    incarnation: int
    secret: bytes
    next_seq: int
    endpoint: str
    spec: AgentSpec
    models: tuple[ModelTarget, ...]
    """The agent's model first, then its fallbacks."""
    api_keys: dict[str, str] = {}
    """Provider name → key."""
    secrets: dict[str, str] = {}
    """Name → value of everything that must not appear in what the worker says or writes; its own keys too."""
    redact_shapes: bool = True
    """Nor may what only looks like a secret."""
    tracing: Tracing | None = None
    traceparent: str = ""
    """The span that the session's turns are under; none for a topmost session."""
    task: str = ""
    mode: Literal["oneshot", "conversation"] = "oneshot"
    run_mode: Literal["interactive", "headless"] = "interactive"
    cwd: str
    env: dict[str, str] = {}
    session_dir: str
    private_dirs: tuple[str, ...] = ()
    """Otto's own directories, which no tool may see."""
    generation: int = 0
    priority: Literal["idle", "low", "normal"] = "idle"
    heartbeat_s: float = 2.0
    orphan_grace_s: float = 5.0
    journal_sync: Literal["always", "none"] = "always"
    journal_file_bytes: int = 16 * 1024 * 1024
    """When a file of the journal has this size the next one is begun."""
    max_unacked_bytes: int = 4 * 1024 * 1024
    rlimits: tuple[tuple[str, int], ...] = ()
    """Names as in `resource`, without `RLIMIT_`, and values."""
    resumes_after: CauseKind | None = None
    """Why the incarnation before this one ended; None for the first."""
    children: tuple[ChildNotice, ...] = ()
    """Child sessions that an earlier incarnation started and that have not ended."""
    open_permits: tuple[str, ...] = ()
    """Permits of earlier incarnations of which nobody has told what became of their calls."""
    authorities: tuple[Authority, ...] = ()
    """Who decides about tool calls; without any, the spec's own permissions."""
    grants: tuple[StandingGrant, ...] = ()
    """Leave that stands for this agent."""
    server_env: dict[str, str] = {}
    """Variables that MCP servers of the agent name for themselves; no other program gets them."""
    server_headers: dict[str, dict[str, str]] = {}
    """MCP server → HTTP headers, secrets included."""
    tool_files: tuple[ToolFile, ...] = ()
    """The Python files with tools that the agent chose."""
    workflow: ResolvedWorkflow | None = None
    """What a session of this kind is to carry out."""


class ChildNotice(Wire, frozen=True, kw_only=True, tag="child_notice"):
    """A child of this session has started; with a `cause` it has ended."""

    child: str
    agent: str = ""
    title: str = ""
    cause: Cause | None = None
    result: str = ""
    name: str = ""


# ---------------------------------------------------------------- worker → root


class WorkerHello(Wire, frozen=True, kw_only=True, tag="hello"):
    """The first message of an incarnation. `unacked_seq` is the first seq that it would replay."""

    protocol: int
    session: str
    incarnation: int
    secret: bytes
    pid: int
    unacked_seq: int = 0


class Heartbeat(Wire, frozen=True, kw_only=True, tag="heartbeat"):
    """Sent from the worker's real loop. Sizes in bytes."""

    lag_ms: float = 0.0
    unacked_bytes: int = 0
    fsync_count: int = 0
    """Times that the journal was forced to disk since the heartbeat before; `fsync_ns` is how long that took."""
    fsync_ns: int = 0


class CommandReply(Wire, frozen=True, kw_only=True, tag="reply"):
    """The answer to a command."""

    id: int
    failure: Failure | None = None


class Exiting(Wire, frozen=True, kw_only=True, tag="exiting"):
    """The incarnation's last word: why, with what result, and the last seq it used. It exits once acknowledged.

    `continues`: only its time slice is over; the next incarnation is to go on at once.
    `is_json`: the result is the JSON that the agent's `output_schema` asks for.
    """

    cause: Cause
    last_seq: int
    result: str = ""
    truncated: bool = False
    continues: bool = False
    is_json: bool = False


class SpawnChild(Wire, frozen=True, kw_only=True, tag="spawn_child"):
    """Start a child session. What is not said is as for the parent: directory, environment, run mode.

    `key` makes the request idempotent within the parent: after a resume it gives the same child.
    """

    agent: str
    task: str
    title: str = ""
    model: str = ""
    key: str = ""
    traceparent: str = ""
    """The span of the call that starts it."""
    name: str = ""
    """In its tree; its agent's, perhaps with a number, unless given."""
    mode: Literal["oneshot", "conversation"] = "oneshot"
    waits: bool = False
    """The call waits for the child's end."""
    step: str = ""
    """The path of the workflow's step that it is for. Only a workflow may say so, and only of its own agents."""
    budgets: Budgets = Budgets()
    """With `step`: narrower than the agent's own, where it is narrower."""
    output_schema: dict[str, Any] = {}
    """With `step`: what the final answer must be."""


class StopChild(Wire, frozen=True, kw_only=True, tag="stop_child"):
    """Stop a child and everything below it; with `when_idle` once it has nothing to do."""

    child: str
    reason: str = ""
    when_idle: bool = False


class SendMessage(Wire, frozen=True, kw_only=True, tag="message.send"):
    """A message to other sessions of the tree; done once it is in their journals.

    `to` is a name, an id or `parent`. With `role` it goes to all that run that agent, with `*` to all; never to the
    sender. `key` travels with the message: however often it is sent, it is heard once.
    """

    text: str
    key: str
    to: str = ""
    role: str = ""


class AskAgent(Wire, frozen=True, kw_only=True, tag="agent.ask"):
    """A question to another session of the tree; done with the end of the turn that it begins there.

    As with a message, `key` makes it one question however often it is asked.
    """

    to: str
    question: str
    key: str


class AnswerQuestion(Wire, frozen=True, kw_only=True, tag="question.answer"):
    """What became of the turn that a question began. `key` as the question came with it."""

    key: str
    outcome: Literal["completed", "failed", "cancelled"]
    text: str = ""
    failure: Failure | None = None


class AwaitAgents(Wire, frozen=True, kw_only=True, tag="agents.await"):
    """Done when all of these sessions have ended, or any of them. They are names, ids or `parent`."""

    names: tuple[str, ...]
    mode: Literal["all", "any"] = "all"
    key: str


class WithdrawCall(Wire, frozen=True, kw_only=True, tag="call.withdraw"):
    """Nobody waits for the answer to this question any more, or for these ends."""

    key: str


class ListAgents(Wire, frozen=True, kw_only=True, tag="agents.list"):
    """Who is there in the session's tree."""


class WriteArtifact(Wire, frozen=True, kw_only=True, tag="write_artifact"):
    """Keep a file as an artifact of the tree. Its content lies in the session's directory under the name `token`.

    `key` makes the request idempotent within the session. `sources` are ids, names, or `NAME@VERSION`.
    """

    token: str
    name: str
    kind: str = "file"
    digest: str
    size_bytes: int
    sources: tuple[str, ...] = ()
    key: str = ""


class FetchArtifact(Wire, frozen=True, kw_only=True, tag="fetch_artifact"):
    """Put a copy of an artifact's content into the session's directory, under the name `token`.

    `artifact` is an id, or a name in the session's tree; `version` 0 is the newest.
    """

    token: str
    artifact: str
    version: int = 0


class FindArtifacts(Wire, frozen=True, kw_only=True, tag="find_artifacts"):
    """Which artifacts the session's tree has, newest first: the newest version of each name, or all of one name."""

    name: str = ""
    kind: str = ""


class LogDecisions(Wire, frozen=True, kw_only=True, tag="decision.log"):
    """Add to the decision graph of the session's project, and change it: all of it or nothing.

    `key` makes the request idempotent within the session. The answer has the nodes that were named.
    """

    key: Annotated[str, Meta(max_length=1000)]
    nodes: Annotated[tuple[NewNode, ...], Meta(max_length=MAX_NODES)] = ()
    edges: Annotated[tuple[NewEdge, ...], Meta(max_length=MAX_EDGES)] = ()
    changes: Annotated[tuple[NodeChange, ...], Meta(max_length=MAX_CHANGES)] = ()


class FindDecisions(Wire, frozen=True, kw_only=True, tag="decision.find"):
    """Nodes of the decision graph of the session's project; the filter's own project counts for nothing.

    A `tree` or `session` in it means the asking session's.
    """

    filter: DecisionFilter = DecisionFilter()


class Quote(Wire, frozen=True, kw_only=True):
    """The most that a call can cost with one model. A dollar per million tokens is 1000 billionths per token."""

    input_usd_micros: int
    """Of all its input."""
    output_token_usd_nanos: int
    """Of each token of its output."""


class AskPermit(Wire, frozen=True, kw_only=True, tag="permit.ask"):
    """May one attempt of a model call be made? Retries ask anew.

    `permit` is the worker's name for the attempt, never used twice in a session; asking again with it gives the same
    answer. `target` is the index of the wanted model among the birth's. `input_tokens` is an estimate, nothing can
    be counted above `input_bound_tokens`. `is_last` is the call that hands back partial work when a budget is used.
    """

    permit: str
    turn: int
    step: int
    attempt: int = 1
    target: int = 0
    input_tokens: int = 0
    input_bound_tokens: int = 0
    max_output_tokens: int
    min_output_tokens: int = 1
    """With less the call is not worth making."""
    quotes: tuple[Quote | None, ...] = ()
    """For each of the birth's models; None where the price is not known."""
    is_last: bool = False


class SettlePermit(Wire, frozen=True, kw_only=True, tag="permit.settle"):
    """What became of a permitted attempt. Told again, it counts once.

    `completed` with its usage; `refused`: the provider said no before it did any work; `unknown`: it broke off, so
    that nobody knows what it cost; `unused`: it was never made. `code` and `retry_after_s` are the failure's.
    """

    permit: str
    outcome: Literal["completed", "refused", "unknown", "unused"]
    target: int = 0
    usage: Usage | None = None
    code: str = ""
    retry_after_s: float | None = None
    latency_ms: int = 0
    first_ms: int = 0
    """Until the answer began; 0 if it never did."""


class RecallAnswer(Wire, frozen=True, kw_only=True, tag="answer.recall"):
    """An earlier answer to an identical request, of any session of the same agent. `digest` is the request's."""

    digest: str


class KeepAnswer(Wire, frozen=True, kw_only=True, tag="answer.keep"):
    """Keep an answer of at most `MAX_ANSWER_BYTES`, so that it can be had again. Only workers know what is in it."""

    digest: str
    answer: bytes


WorkerRequestBody = (
    SpawnChild
    | StopChild
    | SendMessage
    | AskAgent
    | AnswerQuestion
    | AwaitAgents
    | WithdrawCall
    | ListAgents
    | WriteArtifact
    | FetchArtifact
    | FindArtifacts
    | LogDecisions
    | FindDecisions
    | AskPermit
    | SettlePermit
    | RecallAnswer
    | KeepAnswer
)


class WorkerRequest(Wire, frozen=True, kw_only=True, tag="request"):
    """Something that only root can do. The id is the worker's; the answer carries it."""

    id: int
    body: WorkerRequestBody


WorkerMessage = WorkerHello | Heartbeat | CommandReply | Exiting | WorkerRequest

# ---------------------------------------------------------------- root → worker


class WorkerWelcome(Wire, frozen=True, kw_only=True, tag="welcome"):
    """`acked_seq`: everything up to it is in the ring."""

    protocol: int
    acked_seq: int
    root_pid: int = 0
    root_start_ticks: int = 0
    """Who root is: its death is what the worker watches for."""


class WorkerRejected(Wire, frozen=True, kw_only=True, tag="rejected"):
    """The worker is not wanted; it must exit."""

    failure: Failure
    protocol: int = 0


class Ack(Wire, frozen=True, kw_only=True, tag="ack"):
    """Everything up to `seq` is in the ring. `window_us`: how long batches should grow before they leave."""

    seq: int
    window_us: int = 0


class DeliverInput(Wire, frozen=True, kw_only=True, tag="deliver_input"):
    """A user's or another session's message. `steer`: it may join the turn that runs."""

    text: str
    sender: str = "user"
    steer: bool = False
    name: str = ""
    """The sender's in their tree, if it is another session."""
    key: str = ""
    """Heard once, however often it is delivered."""
    asks: bool = False
    """It begins a turn of its own, whose end is told to root as the answer to `key`."""


class StopTurn(Wire, frozen=True, kw_only=True, tag="stop"):
    """End the session: cancel the turn, wait for the children, leave no process, say `exiting`.

    With `for_restart` only the incarnation ends: it checkpoints, waits for nobody, and the next one goes on.
    """

    reason: str = ""
    cause: Literal["cancelled", "daemon_stop", "budget"] = "cancelled"
    for_restart: bool = False


class ResolveApproval(Wire, frozen=True, kw_only=True, tag="resolve_approval"):
    """Somebody's answer to an approval that the session has asked for. Done means that it is in the journal."""

    approval: str
    decision: Literal["approved", "denied"]
    scope: Literal["once", "session", "agent"] = "once"
    by: str = ""
    reason: str = ""


class InterruptTurn(Wire, frozen=True, kw_only=True, tag="interrupt"):
    """Cancel the turn that runs, and stay. Done means that the turn is over."""

    reason: str = ""


class SetPause(Wire, frozen=True, kw_only=True, tag="set_pause"):
    """Begin no model call and no tool call from now on, or begin them again. Done means that it is in the journal."""

    paused: bool
    reason: str = ""


class NoteCheckpoint(Wire, frozen=True, kw_only=True, tag="note_checkpoint"):
    """Note a point to fork at. Without a name it is called after the turn."""

    name: str = ""


class ForgetTurns(Wire, frozen=True, kw_only=True, tag="forget_turns"):
    """The last turns are no part of the conversation any more. Refused while a turn is open."""

    turns: int


class WithdrawInput(Wire, frozen=True, kw_only=True, tag="withdraw_input"):
    """A message that waits for its turn is not to have one. One that has begun goes on."""

    key: str


class SetGrants(Wire, frozen=True, kw_only=True, tag="set_grants"):
    """All leave that stands for the session's agent now; what waits for it goes on."""

    grants: tuple[StandingGrant, ...] = ()


CommandBody = (
    DeliverInput
    | StopTurn
    | ChildNotice
    | ResolveApproval
    | SetGrants
    | InterruptTurn
    | SetPause
    | NoteCheckpoint
    | ForgetTurns
    | WithdrawInput
)


class Command(Wire, frozen=True, kw_only=True, tag="command"):
    """An order with an id; the worker answers with `CommandReply`."""

    id: int
    body: CommandBody


class ExitAck(Wire, frozen=True, kw_only=True, tag="exit_ack"):
    """`exiting` was heard and every event is in the ring: the worker may go."""


class Permit(Wire, frozen=True, kw_only=True):
    """Leave to make one attempt: with this model, and with no more output than this.

    `reason` says why it is another model than the one asked for.
    """

    permit: str
    target: int = 0
    max_output_tokens: int
    is_last: bool = False
    reason: str = ""


class BudgetRefusal(Wire, frozen=True, kw_only=True):
    """The budget that a call does not fit into. `session` is whose it is, empty for the day's; in its own unit."""

    budget: Literal["seconds", "tokens", "usd_micros"]
    scope: Literal["session", "tree", "day"]
    session: str = ""
    spent: int = 0
    reserved: int = 0
    limit: int = 0


class Delivery(Wire, frozen=True, kw_only=True):
    """What became of a message to one session. `waited_ms`: until there was room for it."""

    session: str
    name: str
    failure: Failure | None = None
    waited_ms: int = 0


class AgentCard(Wire, frozen=True, kw_only=True):
    """A session of the tree as the others see it. `above` is its parent's name."""

    session: str
    name: str
    role: str
    state: SessionState
    above: str = ""
    mode: str = "oneshot"
    title: str = ""
    cause: Cause | None = None


class AgentAnswer(Wire, frozen=True, kw_only=True):
    """Another session's answer to a question, or why it has none."""

    session: str
    name: str
    outcome: Literal["completed", "failed", "cancelled"]
    text: str = ""
    failure: Failure | None = None


class AgentEnd(Wire, frozen=True, kw_only=True):
    """How a session of the tree ended, and its last answer, perhaps cut."""

    session: str
    name: str
    role: str
    cause: Cause
    result: str = ""


class TeamReply(Wire, frozen=True, kw_only=True):
    """What is answered of other sessions of the tree."""

    deliveries: tuple[Delivery, ...] = ()
    """Of a message, one for each that it was meant for."""
    agents: tuple[AgentCard, ...] = ()
    said: AgentAnswer | None = None
    ends: tuple[AgentEnd, ...] = ()
    """In the order in which they were asked for, without those that live."""


class RequestReply(Wire, frozen=True, kw_only=True, tag="request_reply"):
    """The answer to a `WorkerRequest`: a child's id, artifacts, decisions, the permit, agents, or why not."""

    id: int
    child: str = ""
    failure: Failure | None = None
    artifacts: tuple[ArtifactInfo, ...] = ()
    truncated: bool = False
    """There are more artifacts than are named."""
    permit: Permit | None = None
    refusal: BudgetRefusal | None = None
    """Beside a failure with code `budget`."""
    warnings: tuple[BudgetWarning, ...] = ()
    """For the session to tell."""
    moves: tuple[BreakerStateChanged, ...] = ()
    """The same: of breakers that its calls have moved."""
    answer: bytes = b""
    """An earlier answer; empty if there is none."""
    team: TeamReply = TeamReply()
    name: str = ""
    """The child's, in its tree."""
    decisions: FoundDecisions | None = None


RootToWorker = WorkerWelcome | WorkerRejected | Ack | Command | ExitAck | RequestReply

worker_messages: Codec[WorkerMessage] = Codec(WorkerMessage, name="worker message")
root_to_worker: Codec[RootToWorker] = Codec(RootToWorker, name="root message")
births: Codec[Birth] = Codec(Birth, name="birth")

# ---------------------------------------------------------------- root ↔ zygote (SEQPACKET)


class Fork(Wire, frozen=True, kw_only=True, tag="fork"):
    """Fork one worker; its private channel comes along as a file descriptor."""

    ticket: int


class Forked(Wire, frozen=True, kw_only=True, tag="forked"):
    """The worker's pid; it is root's child by now."""

    ticket: int
    pid: int


class ForkFailed(Wire, frozen=True, kw_only=True, tag="fork_failed"):
    """The fork was refused by the system."""

    ticket: int
    message: str


class ZygoteReady(Wire, frozen=True, kw_only=True, tag="ready"):
    """Everything is imported. `import_ms` is how long it took."""

    pid: int
    generation: int
    import_ms: float


zygote_requests: Codec[Fork] = Codec(Fork, name="zygote request")
zygote_replies: Codec[Forked | ForkFailed | ZygoteReady] = Codec(
    Forked | ForkFailed | ZygoteReady, name="zygote reply"
)
