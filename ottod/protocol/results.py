"""What the daemon answers: one struct a kind of answer, one union of them all."""

from __future__ import annotations

from typing import Literal

from ottod.protocol.artifacts import ArtifactInfo
from ottod.protocol.cause import Cause
from ottod.protocol.decisions import DecisionEdge, DecisionNode
from ottod.protocol.definitions import KeptDefinition
from ottod.protocol.events import SessionState
from ottod.protocol.policy import StandingGrant
from ottod.protocol.requests import Wire
from ottod.protocol.specs import AgentSpec, Effect
from ottod.protocol.usage import Usage
from ottod.protocol.workflows import WorkflowSpec


class ApprovalAnswer(Wire, frozen=True, kw_only=True):
    """An answer that root keeps while the session has no process that could hear it."""

    decision: Literal["approved", "denied"]
    scope: Literal["once", "session", "agent"] = "once"
    by: str = ""
    reason: str = ""
    answered_at_ns: int = 0
    """When root took it, by the wall clock: whether that was in time is a matter of this moment. 0: in time."""


class PendingApproval(Wire, frozen=True, kw_only=True):
    """A tool call that waits for somebody's permission. `arguments` is JSON, perhaps cut; times are wall clock."""

    approval: str
    call: str
    tool: str
    arguments: str = "{}"
    reason: str = ""
    turn: int = 0
    step: int = 0
    asked_at_ns: int = 0
    expires_at_ns: int | None = None
    answer: ApprovalAnswer | None = None
    """It has been answered, and the session's process is to hear it, this one or its next."""
    claims: tuple[str, ...] = ()
    """What needs permission, one by one: `exec git push`, `write src/a.py`."""
    source: str = ""
    """Where the rule stands that asks."""
    is_grantable: bool = False
    diff: str = ""
    """What the call would change in files, as a unified diff, perhaps cut."""


class BudgetLine(Wire, frozen=True, kw_only=True):
    """One limit that a session is held to, in its own unit. `session` is whose it is, empty for the day's."""

    budget: Literal["seconds", "tokens", "usd_micros"]
    scope: Literal["session", "tree", "day"] = "session"
    session: str = ""
    spent: int = 0
    reserved: int = 0
    """For calls that are on their way."""
    limit: int = 0


class Backlog(Wire, frozen=True, kw_only=True):
    """What of a session's own work waits for room: `waiting` begin as `running` end, at most `limit` at once."""

    running: int = 0
    waiting: int = 0
    limit: int = 0


class Halt(Wire, frozen=True, kw_only=True):
    """Why the present worker is being stopped while its session is not: its group restarts, or it is condemned.

    `verdict`: the cause of its end, whatever it says itself: what supervises its children has given up.
    """

    verdict: Cause | None = None


class SessionInfo(Wire, frozen=True, kw_only=True, tag="session"):
    """A session as root knows it. Times are wall clock nanoseconds, 0 when it has not happened."""

    session: str
    agent: str
    model: str
    state: SessionState
    kind: str = "agent"
    title: str = ""
    task: str = ""
    cwd: str = ""
    parent: str = ""
    mode: str = "oneshot"
    run_mode: str = "interactive"
    pid: int = 0
    incarnation: int = 0
    created_at_ns: int = 0
    started_at_ns: int = 0
    ended_at_ns: int = 0
    turn: int = 0
    current_tool: str = ""
    last_tool: str = ""
    usage: Usage = Usage()
    cause: Cause | None = None
    result: str = ""
    restarts: int = 0
    last_seq: int = 0
    first_offset: int = 0
    last_offset: int = 0
    agent_source: str = ""
    agent_digest: str = ""
    journal: str = ""
    remaining_pids: tuple[int, ...] = ()
    restart: str = "temporary"
    """Its restart policy."""
    reason: str = ""
    """Why it is restarting or parked; of a running one, what its model call waits for."""
    restart_due_ns: int = 0
    """When its next incarnation is due, while it is restarting."""
    memory_bytes: int = 0
    """Of its processes together, at the last look; so are the next four."""
    memory_peak_bytes: int = 0
    memory_cap_bytes: int = 0
    processes: int = 0
    cpu_ms: int = 0
    approvals: tuple[PendingApproval, ...] = ()
    """That wait for an answer, in the order in which they were asked."""
    tree: str = ""
    """The topmost session above it; itself, if it has no parent."""
    budgets: tuple[BudgetLine, ...] = ()
    """What it is held to: its own limits, those of the sessions above it, and the day's."""
    is_json: bool = False
    """The result is JSON that satisfies the agent's `output_schema`."""
    resumed_from: str = ""
    """The session that it took the conversation over from, resumed or forked."""
    resumed_turn: int = 0
    """The newest turn of that conversation."""
    name: str = ""
    """What it is called in its tree."""
    handed_to: str = ""
    """The session below it that has taken its conversation over, in its newest turn."""
    backlog: Backlog | None = None
    """Steps of a workflow, or an agent's tool calls, that wait for room; None while none does."""
    step: str = ""
    """The path of the workflow's step that it is for."""
    whole: str = ""
    """The artifact that has the whole result, if that was too long."""
    routed: str = ""
    """Why its agent was chosen, if nobody named one."""
    halt: Halt | None = None
    """Its present worker is to make room for the next one, or for what follows from the verdict."""
    is_named: bool = False
    """A client gave it its name: no other living session has that, and it stands for the session's id."""


class SessionStartedResult(Wire, frozen=True, kw_only=True, tag="started"):
    """The new session; `from_offset` is where its first event is."""

    session: str
    from_offset: int
    existing: bool = False


class SessionList(Wire, frozen=True, kw_only=True, tag="sessions"):
    """Sessions, newest first; `truncated` when the limit cut the list."""

    sessions: tuple[SessionInfo, ...]
    truncated: bool = False


class WaitingApproval(Wire, frozen=True, kw_only=True):
    """A pending approval, and the session that asks for it."""

    session: str
    agent: str
    title: str = ""
    approval: PendingApproval


class ApprovalList(Wire, frozen=True, kw_only=True, tag="approvals"):
    """Approvals that wait, oldest first."""

    approvals: tuple[WaitingApproval, ...]


class ApprovalResult(Wire, frozen=True, kw_only=True, tag="approval_resolved"):
    """The answer was taken. `is_kept`: the session's process is to hear it later, this one or its next."""

    session: str
    approval: str
    decision: Literal["approved", "denied"]
    is_kept: bool = False
    grant: str = ""
    """The permission that stands from now on."""


class GrantList(Wire, frozen=True, kw_only=True, tag="grants"):
    """Permission that stands, oldest first."""

    grants: tuple[StandingGrant, ...]


class AuditEntry(Wire, frozen=True, kw_only=True):
    """One decision that was more than plain permission, or one answer. Which fields are set depends on the kind.

    `asked` and `answered` are approvals; `denied`, `unavailable` and `granted` are decisions without one (see the
    event `policy.decided`); `standing` and `revoked` concern permission that stands; `lost` says that entries are
    missing.
    """

    kind: Literal["asked", "answered", "denied", "unavailable", "granted", "standing", "revoked", "lost"]
    at_ns: int = 0
    session: str = ""
    seq: int = 0
    agent: str = ""
    tool: str = ""
    call: str = ""
    claims: tuple[str, ...] = ()
    rule: str = ""
    source: str = ""
    reason: str = ""
    approval: str = ""
    decision: str = ""
    scope: str = ""
    by: str = ""
    grant: str = ""


class AuditList(Wire, frozen=True, kw_only=True, tag="audit"):
    """Entries of the audit trail, oldest first."""

    entries: tuple[AuditEntry, ...]


class RuleWord(Wire, frozen=True, kw_only=True):
    """A rule, where it stands, and what became of it."""

    rule: str
    source: str = ""
    reason: str = ""
    why: str = ""


class ClaimRuling(Wire, frozen=True, kw_only=True):
    """What one authority says of one claim of a call, and the rules that fit as well and did not decide."""

    claim: str
    effect: Effect
    authority: str
    rule: RuleWord
    others: tuple[RuleWord, ...] = ()


class LayerWord(Wire, frozen=True, kw_only=True):
    """A layer that would stop something of a call, whatever the rules say."""

    layer: str
    claim: str
    why: str
    is_bound: bool = False
    """What holds for every program, whether this one would try it or not."""


class PolicyExplanation(Wire, frozen=True, kw_only=True, tag="policy_explanation"):
    """What would become of a call. `outcome`: it `runs`, `waits` for permission, or `fails`, with `message`.

    It is the outcome of all together: of the rules (`effect`), the arguments, and the `layers` of isolation.
    """

    agent: str
    tool: str
    effect: Effect
    outcome: Literal["runs", "waits", "fails"]
    message: str = ""
    claim: str = ""
    authority: str = ""
    rule: RuleWord = RuleWord(rule="")
    others: tuple[RuleWord, ...] = ()
    rulings: tuple[ClaimRuling, ...] = ()
    layers: tuple[LayerWord, ...] = ()
    grant: str = ""
    """Permission that stands and covers it."""
    agent_source: str = ""
    cwd: str = ""
    run_mode: str = "interactive"
    is_confined: bool = True
    notes: tuple[str, ...] = ()


class ArtifactList(Wire, frozen=True, kw_only=True, tag="artifacts"):
    """Artifacts, newest first; `truncated` when the limit cut the list."""

    artifacts: tuple[ArtifactInfo, ...]
    truncated: bool = False


class ArtifactFound(Wire, frozen=True, kw_only=True, tag="artifact"):
    """The artifact that was meant."""

    artifact: ArtifactInfo


class ArtifactPart(Wire, frozen=True, kw_only=True, tag="artifact_part"):
    """A part of an artifact's content; shorter than asked for at its end."""

    artifact: str
    offset: int
    data: bytes


class DecisionsFound(Wire, frozen=True, kw_only=True, tag="decisions"):
    """Nodes of the decision graph and the edges between them; `truncated` when there are more nodes.

    `project` is the root of the one that was asked about, if one was.
    """

    nodes: tuple[DecisionNode, ...]
    edges: tuple[DecisionEdge, ...] = ()
    project: str = ""
    truncated: bool = False


class DefinitionList(Wire, frozen=True, kw_only=True, tag="definitions"):
    """Versions that sessions refer to, newest first."""

    definitions: tuple[KeptDefinition, ...]


class DefinitionFound(Wire, frozen=True, kw_only=True, tag="definition"):
    """One version, and what it says: an agent or a workflow."""

    definition: KeptDefinition
    agent: AgentSpec | None = None
    workflow: WorkflowSpec | None = None


class JournalPage(Wire, frozen=True, kw_only=True, tag="journal_page"):
    """Entries of a journal, each as msgpack (see `ottod.protocol.journal`), from byte `at` of entry `first` on.

    `next` and `next_at` say where to go on; `next` is None at the end. With a `next_at` above 0 the last entry here
    is not whole. `incomplete`: why the beginning of the history is missing, if it is.
    """

    session: str
    first: int
    entries: tuple[bytes, ...]
    at: int = 0
    next: int | None = None
    next_at: int = 0
    incomplete: str = ""


class CostRow(Wire, frozen=True, kw_only=True):
    """What calls with a key in common consumed. `presumed_…` is the part that nobody knows: the most it can be.

    The price in `usage` is that of the calls whose price is known.
    """

    key: str
    usage: Usage = Usage()
    presumed_tokens: int = 0
    presumed_usd_micros: int = 0
    unpriced_calls: int = 0
    """Calls whose price nobody knows."""


class CostReport(Wire, frozen=True, kw_only=True, tag="cost"):
    """Sums of the ledger, the dearest first; by day the newest first."""

    by: Literal["agent", "model", "session", "day"]
    rows: tuple[CostRow, ...] = ()


class ModelLine(Wire, frozen=True, kw_only=True):
    """One model of a provider. `open_until_ns` and `paused_until_ns` are wall clock, 0 when it is not.

    `failed_share` and `slow_share` are of the `calls` that the breaker looks at; `allowance` is how many may run at
    once. `longest_wait_ms` is the longest that any call has waited since the daemon began.
    """

    model: str
    breaker: Literal["closed", "open", "half_open"] = "closed"
    reason: str = ""
    """Why the breaker opened, while it is not closed."""
    open_until_ns: int = 0
    paused_until_ns: int = 0
    calls: int = 0
    failed_share: float = 0.0
    slow_share: float = 0.0
    running: int = 0
    allowance: int = 0
    waiting: int = 0
    oldest_wait_ms: int = 0
    longest_wait_ms: int = 0


class ProviderLineInfo(Wire, frozen=True, kw_only=True):
    """One provider, with those of its models that were asked for. Limits are of all models together."""

    provider: str
    running: int = 0
    waiting: int = 0
    max_concurrent: int = 0
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    models: tuple[ModelLine, ...] = ()


class ProviderList(Wire, frozen=True, kw_only=True, tag="providers"):
    """The providers that were asked for anything since the daemon began, or that it remembers something of."""

    providers: tuple[ProviderLineInfo, ...]


class StopResult(Wire, frozen=True, kw_only=True, tag="stopped"):
    """The proof: the session has ended and these processes of it remain (none, when the stop succeeded).

    `proof` says how that is known. `stopped` are the sessions that this stop ended, in the order of their ends: those
    below the session first.
    """

    session: str
    cause: Cause
    remaining_pids: tuple[int, ...] = ()
    already_ended: bool = False
    proof: str = ""
    stopped: tuple[str, ...] = ()


class ReloadResult(Wire, frozen=True, kw_only=True, tag="reloaded"):
    """Settings by their dotted names: those that hold from now on, and those that wait for a restart."""

    changed: tuple[str, ...] = ()
    needs_restart: tuple[str, ...] = ()


class Sample(Wire, frozen=True, kw_only=True):
    """One value of a metric. For a histogram: `buckets` are (upper bound, cumulative count), `value` the sum."""

    labels: dict[str, str] = {}
    value: float = 0.0
    buckets: tuple[tuple[float, int], ...] = ()
    count: int = 0


class MetricFamily(Wire, frozen=True, kw_only=True):
    """One metric with all its samples. Names as Prometheus exposes them, without `_total`."""

    name: str
    kind: Literal["counter", "gauge", "histogram", "info"]
    help: str
    samples: tuple[Sample, ...] = ()


class MetricsReport(Wire, frozen=True, kw_only=True, tag="metrics_report"):
    """All metrics of the daemon."""

    families: tuple[MetricFamily, ...]


class Subscribed(Wire, frozen=True, kw_only=True, tag="subscribed"):
    """Events follow as record frames. `tail` is the oldest offset in the ring, `head` the next to be given."""

    subscription: int
    tail: int
    head: int


class DaemonStatus(Wire, frozen=True, kw_only=True, tag="status"):
    """A reading of the daemon's instruments."""

    version: str
    protocol: int
    pid: int
    instance: str
    started_at_ns: int
    uptime_s: float
    sessions: dict[str, int]
    zygote_pid: int = 0
    zygote_generation: int = 0
    warm_workers: int = 0
    ring_bytes: int = 0
    ring_used_bytes: int = 0
    ring_head: int = 0
    ring_tail: int = 0
    ring_recovery: str = ""
    subscriptions: int = 0
    clients: int = 0
    loop_lag_p99_ms: float = 0.0
    rss_bytes: int = 0
    runtime_dir: str = ""
    state_dir: str = ""
    config_file: str = ""
    isolation: dict[str, str] = {}
    counters: dict[str, int] = {}


class Done(Wire, frozen=True, kw_only=True, tag="done"):
    """The request was carried out and there is nothing more to say."""

    detail: str = ""


class ResearchEntry(Wire, frozen=True, kw_only=True):
    """A result that is kept: whose, to which question, where. `hits` counts those who were given it."""

    key: str
    agent: str
    cwd: str
    question: str
    session: str
    at_ns: int
    used_ns: int = 0
    hits: int = 0
    result_chars: int = 0


class ResearchList(Wire, frozen=True, kw_only=True, tag="research"):
    """Kept results, newest first."""

    entries: tuple[ResearchEntry, ...] = ()


Result = (
    SessionInfo
    | SessionStartedResult
    | SessionList
    | ApprovalList
    | ApprovalResult
    | ArtifactList
    | ArtifactFound
    | ArtifactPart
    | DecisionsFound
    | ResearchList
    | DefinitionList
    | DefinitionFound
    | JournalPage
    | GrantList
    | AuditList
    | PolicyExplanation
    | CostReport
    | ProviderList
    | StopResult
    | Subscribed
    | DaemonStatus
    | ReloadResult
    | MetricsReport
    | Done
)
