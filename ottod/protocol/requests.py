"""What a client can ask of the daemon: one struct a request, one union of them all.

What each is answered with is in `results`; how both travel is in `control`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ottod.protocol.artifacts import MAX_PART_BYTES
from ottod.protocol.cause import CauseKind
from ottod.protocol.decisions import DecisionFilter
from ottod.protocol.definitions import DefinitionKind
from ottod.protocol.events import SessionState
from ottod.protocol.specs import AgentSpec, PositiveSeconds
from ottod.protocol.workflows import WorkflowSpec

MAX_CREDIT_BYTES = 8 * 1024 * 1024
"""The most that may be on its way to one subscriber; larger grants are clamped."""
MAX_TASK_BYTES = 1024 * 1024
MAX_ENV_BYTES = 256 * 1024
MAX_INPUTS_BYTES = 1024 * 1024
"""Of all that a workflow is given to begin with; what is longer it finds in a file of its directory."""
ENV_WANTED = "OTTO_ENV_WANTED"
"""A variable of Otto's own, which no session gets."""

Task = Annotated[str, Meta(max_length=MAX_TASK_BYTES)]


class Wire(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The form that all control messages share."""


class WorkflowStart(Wire, frozen=True, kw_only=True):
    """Which workflow: one with a name, or a spec; and the artifacts that it begins with, by its inputs' names."""

    name: str = ""
    spec: WorkflowSpec | None = None
    inputs: dict[str, bytes] = {}


class StartSession(Wire, frozen=True, kw_only=True, tag="session.start"):
    """Start a session of a named agent, or of a spec given inline; or a workflow, of a name or a spec.

    Without any of these the task goes to the agent that fits it best, of those that a session in `cwd` could have.

    A name can be `NAME@DIGEST`: as it was when a session that is still on record was started with it.

    `env` is the dispatching client's environment, already reduced to what it wants to share; the agent's own
    allowlist reduces it further. ENV_WANTED among it names, with blanks between them, variables that the session must
    get: if one of them may not pass, the start is refused. `key` makes the request idempotent: the same key gives the
    same session. `mode` oneshot ends after the task, conversation stays for more. `model` answers in place of the
    agent's own; of a workflow, in place of those of all its agents.
    """

    agent: str = ""
    spec: AgentSpec | None = None
    task: Task = ""
    cwd: str
    env: dict[str, str] = {}
    model: str = ""
    title: str = ""
    parent: str = ""
    mode: Literal["oneshot", "conversation"] = "oneshot"
    run_mode: Literal["interactive", "headless"] = "interactive"
    key: str = ""
    traceparent: str = ""
    """A span of a trace that the session is to be part of (W3C Trace Context)."""
    name: str = ""
    """What it is to be called: in its tree, and by clients in place of its id. No other living session may have it.

    Unless it is given, its agent's name, perhaps with a number, which is for its tree only.
    """
    workflow: WorkflowStart | None = None
    """Instead of an agent."""


class ListSessions(Wire, frozen=True, kw_only=True, tag="session.list"):
    """Live sessions, and with `all`, or where a state or cause asks for them, the ended ones too, newest first.

    Of several values of one field any fits; what two fields say must both hold. `agents` and `names` are patterns
    (`code-*`), `parents` are ids or unique prefixes: of each at most ten, of at most a hundred characters.
    """

    all: bool = False
    states: tuple[SessionState, ...] = ()
    tree: str = ""
    """Only this session (an id or unique prefix) and those below it."""
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 1000
    causes: tuple[CauseKind, ...] = ()
    """How they ended: beside `states`, either fits."""
    agents: Annotated[tuple[str, ...], Meta(max_length=100)] = ()
    parents: Annotated[tuple[str, ...], Meta(max_length=100)] = ()
    names: Annotated[tuple[str, ...], Meta(max_length=100)] = ()


class GetSession(Wire, frozen=True, kw_only=True, tag="session.get"):
    """One session by id or unique prefix."""

    session: str


class SendInput(Wire, frozen=True, kw_only=True, tag="session.send"):
    """Say something to a session; it is heard at the start of the next turn.

    With `steer` it joins the turn that runs, as soon as all tool calls of the model's newest answer have results.
    """

    session: str
    text: Task
    steer: bool = False


class InterruptSession(Wire, frozen=True, kw_only=True, tag="session.interrupt"):
    """Cancel the turn that runs; the session stays and waits for input. Answered when the turn is over."""

    session: str
    reason: str = ""


class PauseSession(Wire, frozen=True, kw_only=True, tag="session.pause"):
    """Let a session begin no model call and no tool call until it is unpaused; what runs goes on to its result.

    It stays paused when its process or the daemon is replaced. `below`: the sessions below it as well.
    """

    session: str
    reason: str = ""
    below: bool = False


class UnpauseSession(Wire, frozen=True, kw_only=True, tag="session.unpause"):
    """Let a paused session go on. Without effect on one that is not."""

    session: str
    below: bool = False


class CheckpointSession(Wire, frozen=True, kw_only=True, tag="session.checkpoint"):
    """Note a point to fork at. Without a name it is called after the turn."""

    session: str
    name: Annotated[str, Meta(max_length=200)] = ""


class RollBackSession(Wire, frozen=True, kw_only=True, tag="session.rollback"):
    """Let a session that waits for input, or is parked, forget its last turns. Files stay as they are."""

    session: str
    turns: Annotated[int, Meta(ge=1)]


class ResumeSession(Wire, frozen=True, kw_only=True, tag="session.resume"):
    """Go on with a session that has ended, as a new one with its conversation; with one that is parked, as itself.

    Without a `task` the turn that was open goes on. The answer names the session that goes on. What the ended one has
    spent of its budgets is spent, unless `fresh_budget` begins them anew.
    """

    session: str
    task: Task = ""
    mode: Literal["", "oneshot", "conversation"] = ""
    key: str = ""
    fresh_budget: bool = False


class ForkSession(Wire, frozen=True, kw_only=True, tag="session.fork"):
    """Start a session with the conversation of another one as it was at the end of turn `turn`, or at a checkpoint.

    Without either: at the end of its newest turn that is over. Without a task it waits for input.
    """

    session: str
    turn: Annotated[int, Meta(ge=0)] | None = None
    checkpoint: str = ""
    task: Task = ""
    mode: Literal["", "oneshot", "conversation"] = ""
    title: str = ""
    key: str = ""


class UpdateNotes(Wire, frozen=True, kw_only=True, tag="notes.update"):
    """Start a session that brings the project's OTTO.md up to date with what an ended session's run has taught.

    Its change is asked for as an approval. `model` answers in place of the agent's own. The answer names the session.
    """

    session: str
    model: str = ""
    key: str = ""


class ReadJournal(Wire, frozen=True, kw_only=True, tag="session.journal"):
    """A page of a session's journal: the whole history, whatever files it is kept in.

    It begins with byte `at` of entry `first`; an entry can be larger than an answer.
    """

    session: str
    first: Annotated[int, Meta(ge=0)] = 0
    at: Annotated[int, Meta(ge=0)] = 0
    max_bytes: Annotated[int, Meta(ge=1, le=8 * 1024 * 1024)] = 1024 * 1024


class WaitSession(Wire, frozen=True, kw_only=True, tag="session.wait"):
    """Answered when the session has ended or is parked (or, with `idle`, waits for input)."""

    session: str
    idle: bool = False


class StopSession(Wire, frozen=True, kw_only=True, tag="session.stop"):
    """Stop, with grace. Answered when nothing of the session is left, or with what remains."""

    session: str
    grace_s: Annotated[float, Meta(ge=0, le=3600)] | None = None
    reason: str = ""


class KillSession(Wire, frozen=True, kw_only=True, tag="session.kill"):
    """Stop without grace."""

    session: str
    reason: str = ""


class UnparkSession(Wire, frozen=True, kw_only=True, tag="session.unpark"):
    """Give a parked session a fresh allowance of restarts and its next incarnation."""

    session: str


class RemoveSession(Wire, frozen=True, kw_only=True, tag="session.remove"):
    """Forget an ended session and delete its files."""

    session: str


class ListApprovals(Wire, frozen=True, kw_only=True, tag="approval.list"):
    """Approvals that wait for an answer, oldest first; with `session` only those of it and of the sessions below."""

    session: str = ""


class ResolveApproval(Wire, frozen=True, kw_only=True, tag="approval.resolve"):
    """Answer an approval, by its id or a unique prefix; without `session` it is looked for in all of them.

    Answered once the answer cannot be lost any more. Scope `session` answers for the tool, for as long as the session
    lives; what it asks for already is answered with it. Scope `agent`, for permission only, stands for all sessions
    of the agent in that directory and for exactly what is asked, until it is revoked or `expires_s` have passed.
    """

    session: str = ""
    approval: str
    decision: Literal["approved", "denied"]
    scope: Literal["once", "session", "agent"] = "once"
    reason: str = ""
    expires_s: PositiveSeconds | None = None


class ListGrants(Wire, frozen=True, kw_only=True, tag="policy.grants"):
    """Permission that stands, of all agents or of one name."""

    agent: str = ""


class RevokeGrant(Wire, frozen=True, kw_only=True, tag="policy.revoke"):
    """End permission that stands, by its id or a unique prefix. What it has let begin goes on."""

    grant: str
    reason: str = ""


class ListAudit(Wire, frozen=True, kw_only=True, tag="policy.audit"):
    """The newest decisions and answers on record, oldest first; with `session` only those of it."""

    session: str = ""
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 200


class ExplainPolicy(Wire, frozen=True, kw_only=True, tag="policy.explain"):
    """What would become of a tool call, and why. Nothing is called.

    Of an agent as a session in `cwd` would get it, of a `spec`, or of a live `session` with all that binds it.
    `arguments` is JSON text.
    """

    agent: str = ""
    spec: AgentSpec | None = None
    session: str = ""
    tool: str
    arguments: Annotated[str, Meta(max_length=MAX_TASK_BYTES)] = "{}"
    cwd: str = ""
    run_mode: Literal["interactive", "headless"] = "interactive"


class ListArtifacts(Wire, frozen=True, kw_only=True, tag="artifact.list"):
    """Artifacts, newest first: of the whole tree that `session` belongs to, or of all.

    Only the newest version of each name, unless `all_versions`.
    """

    session: str = ""
    name: str = ""
    kind: str = ""
    all_versions: bool = False
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 1000


class GetArtifact(Wire, frozen=True, kw_only=True, tag="artifact.get"):
    """One artifact: by id or unique prefix of one, or by its name in the tree that `session` belongs to.

    `version` 0 is the newest of that name.
    """

    artifact: str
    session: str = ""
    version: Annotated[int, Meta(ge=0)] = 0


class ReadArtifact(Wire, frozen=True, kw_only=True, tag="artifact.read"):
    """A part of an artifact's content, by its whole id. Sizes in bytes."""

    artifact: str
    offset: Annotated[int, Meta(ge=0)] = 0
    length: Annotated[int, Meta(ge=1, le=MAX_PART_BYTES)] = MAX_PART_BYTES


class QueryDecisions(Wire, frozen=True, kw_only=True, tag="decision.query"):
    """Nodes of the decision graph, newest first, and the edges between them.

    The filter says of which project, tree or session; these may be beginnings of ids. Without any of them and without
    a node nothing is found.
    """

    filter: DecisionFilter = DecisionFilter()


class ForgetDecisions(Wire, frozen=True, kw_only=True, tag="decision.forget"):
    """Forget the decision graph of the project that this directory belongs to."""

    project: Annotated[str, Meta(min_length=1, max_length=4096)]


class ListResearch(Wire, frozen=True, kw_only=True, tag="research.list"):
    """Results that are kept for those who ask the same, newest first; of one agent, or of all."""

    agent: str = ""
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class ForgetResearch(Wire, frozen=True, kw_only=True, tag="research.forget"):
    """Forget them, of one agent or all."""

    agent: str = ""


class ListDefinitions(Wire, frozen=True, kw_only=True, tag="definition.list"):
    """The versions of agents or workflows that sessions refer to, newest first; of one name, or of all."""

    kind: DefinitionKind
    name: str = ""
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 1000


class GetDefinition(Wire, frozen=True, kw_only=True, tag="definition.get"):
    """One version, by its name and its digest, or the only one of that name whose digest begins so."""

    kind: DefinitionKind
    name: str
    digest: Annotated[str, Meta(min_length=1, max_length=64)]


class ListProviders(Wire, frozen=True, kw_only=True, tag="provider.list"):
    """How it stands with the model providers: breakers, limits, and who waits."""


class Subscribe(Wire, frozen=True, kw_only=True, tag="events.subscribe"):
    """Events from `from_offset` on (None: only new ones; 0: all there are), of one session or of all.

    `follow` False ends the subscription at the offset that was newest when it began.
    """

    from_offset: Annotated[int, Meta(ge=0)] | None = None
    session: str = ""
    follow: bool = True
    credit_bytes: Annotated[int, Meta(ge=1)] = 1024 * 1024


class Unsubscribe(Wire, frozen=True, kw_only=True, tag="events.unsubscribe"):
    """End a subscription."""

    subscription: int


class GetCost(Wire, frozen=True, kw_only=True, tag="cost.get"):
    """What model calls have cost since then, summed by agent, model, session or day; from the ledger."""

    by: Literal["agent", "model", "session", "day"] = "agent"
    since_ns: Annotated[int, Meta(ge=0)] = 0


class GetStatus(Wire, frozen=True, kw_only=True, tag="daemon.status"):
    """What the daemon is and how it fares."""


class StopDaemon(Wire, frozen=True, kw_only=True, tag="daemon.stop"):
    """Stop the daemon; sessions end with cause `daemon_stop`, or with `keep_sessions` wait for the next daemon."""

    grace_s: Annotated[float, Meta(ge=0, le=3600)] = 10.0
    keep_sessions: bool = False


class UpgradeDaemon(Wire, frozen=True, kw_only=True, tag="daemon.upgrade"):
    """Replace root's and the zygote's code with what is installed now; running sessions are adopted."""


class ReloadDaemon(Wire, frozen=True, kw_only=True, tag="daemon.reload"):
    """Read the configuration again. What cannot change under a running daemon is named in the answer."""


class GetMetrics(Wire, frozen=True, kw_only=True, tag="metrics"):
    """The daemon's metrics."""


class Ping(Wire, frozen=True, kw_only=True, tag="ping"):
    """Keeps a connection's subscriptions alive."""


RequestBody = (
    StartSession
    | ListSessions
    | GetSession
    | SendInput
    | InterruptSession
    | PauseSession
    | UnpauseSession
    | CheckpointSession
    | RollBackSession
    | ResumeSession
    | ForkSession
    | UpdateNotes
    | ReadJournal
    | WaitSession
    | StopSession
    | KillSession
    | UnparkSession
    | RemoveSession
    | ListApprovals
    | ResolveApproval
    | ListArtifacts
    | GetArtifact
    | ReadArtifact
    | QueryDecisions
    | ForgetDecisions
    | ListResearch
    | ForgetResearch
    | ListDefinitions
    | GetDefinition
    | ListGrants
    | RevokeGrant
    | ListAudit
    | ExplainPolicy
    | ListProviders
    | Subscribe
    | Unsubscribe
    | GetCost
    | GetStatus
    | StopDaemon
    | UpgradeDaemon
    | ReloadDaemon
    | GetMetrics
    | Ping
)
