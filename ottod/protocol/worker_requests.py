"""What only root can do for a session, as its worker asks for it, and what root answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from ottod.errors import Failure
from ottod.protocol.artifacts import ArtifactInfo, SinkDelivery
from ottod.protocol.cause import Cause
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
from ottod.protocol.specs import Budgets
from ottod.protocol.usage import Usage
from ottod.protocol.wire import Wire

MAX_MESSAGE_TEXT_BYTES = 16 * 1024
"""Of a message from one session to another."""
MAX_ANSWER_BYTES = 64 * 1024
"""Of an answer that is kept to stand in for another: it has to fit into a worker's message."""


class SpawnChild(Wire, frozen=True, kw_only=True, tag="spawn_child"):
    """Start a child session. What is not said is as for the parent: directory, environment, run mode.

    `key` makes the request idempotent within the parent: after a resume it gives the same child.
    """

    agent: str
    """Empty: the one that fits the task best."""
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
    hint: str = ""
    """Without an agent: what it is found by, unless the task is."""
    handoff: str = ""
    """The call by which the conversation is handed over: the child has all of it that is before. With `step`: an
    ended session of the workflow's, whose conversation the child has."""


class FindChild(Wire, frozen=True, kw_only=True, tag="child.find"):
    """The child that was started for a key, as `SpawnChild` gives it; refused with `not_started` if there is none."""

    key: str


class RecallResearch(Wire, frozen=True, kw_only=True, tag="research.recall"):
    """What another session of this agent has found out, asked the same, if that still holds.

    `key` is that of the child that is started otherwise; its result is kept for those who ask the same.
    """

    agent: str
    task: str
    model: str = ""
    key: str


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
    turn: int = 0


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
    producer: str = ""
    """The session that made it: only a workflow may say so, and only of a session of its own steps."""
    step: str = ""
    """The path of the workflow's step that left it; as `producer`."""


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


class NoteDelivery(Wire, frozen=True, kw_only=True, tag="delivery.note"):
    """Keep what became of the delivery of these artifacts to a sink. Again, it takes the place of what was said."""

    artifacts: tuple[str, ...]
    delivery: SinkDelivery


class FindDelivered(Wire, frozen=True, kw_only=True, tag="delivery.find"):
    """The digests of what was delivered to a place, by whatever workflow, the newest first."""

    place: str


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
    | RecallResearch
    | StopChild
    | FindChild
    | SendMessage
    | AskAgent
    | AnswerQuestion
    | AwaitAgents
    | WithdrawCall
    | ListAgents
    | WriteArtifact
    | FetchArtifact
    | FindArtifacts
    | NoteDelivery
    | FindDelivered
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


# ---------------------------------------------------------------- answers


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
    reused_at_ns: int = 0
    """When it was given, by the wall clock, if it was given before, to the same question, and nothing has changed."""


class AgentEnd(Wire, frozen=True, kw_only=True):
    """How a session of the tree ended, and its last answer, perhaps cut."""

    session: str
    name: str
    role: str
    cause: Cause
    result: str = ""


class KnownResult(Wire, frozen=True, kw_only=True):
    """What a session has found out. `at_ns` is the wall clock's, when it had."""

    session: str
    text: str
    at_ns: int


class TeamReply(Wire, frozen=True, kw_only=True):
    """What is answered of other sessions of the tree."""

    deliveries: tuple[Delivery, ...] = ()
    """Of a message, one for each that it was meant for."""
    agents: tuple[AgentCard, ...] = ()
    said: AgentAnswer | None = None
    ends: tuple[AgentEnd, ...] = ()
    """In the order in which they were asked for, without those that live."""
    known: KnownResult | None = None
    chosen: str = ""
    """The agent of a child, for a parent that did not name one."""


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
    digests: tuple[str, ...] = ()
    """Of what was delivered to a place."""
