"""Client ↔ root: the public control protocol.

Client → root: one frame, a `ClientMessage`. Root → client: two frames. The first is one byte of kind: `M` and a
`ServerMessage` follows, or `R`, then four bytes of subscription number (big-endian) in the same frame and runs of
records (see `records`) in the next. A connection starts with `Hello`; nothing else is answered before it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from ottod.errors import Failure
from ottod.protocol.cause import Cause
from ottod.protocol.codec import Codec
from ottod.protocol.events import Gap, SessionState
from ottod.protocol.specs import AgentSpec
from ottod.protocol.usage import Usage

KIND_MESSAGE = b"M"
KIND_RECORDS = b"R"

MAX_CREDIT_BYTES = 8 * 1024 * 1024
"""The most that may be on its way to one subscriber; larger grants are clamped."""
MAX_TASK_BYTES = 1024 * 1024
MAX_ENV_BYTES = 256 * 1024

Task = Annotated[str, Meta(max_length=MAX_TASK_BYTES)]


class Wire(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The form that all control messages share."""


# ---------------------------------------------------------------- requests


class StartSession(Wire, frozen=True, kw_only=True, tag="session.start"):
    """Start a session of a named agent, or of a spec given inline.

    `env` is the dispatching client's environment, already reduced to what it wants to share; the agent's own
    allowlist reduces it further. `key` makes the request idempotent: the same key gives the same session.
    `mode` oneshot ends after the task, conversation stays for more.
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


class ListSessions(Wire, frozen=True, kw_only=True, tag="session.list"):
    """Live sessions, and with `all` the ended ones too, newest first."""

    all: bool = False
    states: tuple[SessionState, ...] = ()
    tree: str = ""
    """Only this session (an id or unique prefix) and those below it."""
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 1000


class GetSession(Wire, frozen=True, kw_only=True, tag="session.get"):
    """One session by id or unique prefix."""

    session: str


class SendInput(Wire, frozen=True, kw_only=True, tag="session.send"):
    """Say something to a session; it is heard at the start of the next turn."""

    session: str
    text: Task


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
    lives; what it asks for already is answered with it.
    """

    session: str = ""
    approval: str
    decision: Literal["approved", "denied"]
    scope: Literal["once", "session"] = "once"
    reason: str = ""


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
    | WaitSession
    | StopSession
    | KillSession
    | UnparkSession
    | RemoveSession
    | ListApprovals
    | ResolveApproval
    | Subscribe
    | Unsubscribe
    | GetStatus
    | StopDaemon
    | UpgradeDaemon
    | ReloadDaemon
    | GetMetrics
    | Ping
)

# ---------------------------------------------------------------- client → root


class Hello(Wire, frozen=True, kw_only=True, tag="hello"):
    """The first message of every connection.

    `token` is what `control.token`, beside the socket, holds: proof that the client can read the runtime directory,
    which a confined tool cannot, although the kernel would let it connect.
    """

    protocol: int
    client: str = ""
    version: str = ""
    pid: int = 0
    token: str = ""


class Request(Wire, frozen=True, kw_only=True, tag="request"):
    """`id` is the client's; the reply carries it."""

    id: int
    body: RequestBody


class Grant(Wire, frozen=True, kw_only=True, tag="grant"):
    """Credit for a subscription: this many more bytes may be sent."""

    subscription: int
    bytes: Annotated[int, Meta(ge=1)]


ClientMessage = Hello | Request | Grant

# ---------------------------------------------------------------- results


class ApprovalAnswer(Wire, frozen=True, kw_only=True):
    """An answer that root keeps while the session has no process that could hear it."""

    decision: Literal["approved", "denied"]
    scope: Literal["once", "session"] = "once"
    by: str = ""
    reason: str = ""


class PendingApproval(Wire, frozen=True, kw_only=True):
    """A tool call that waits for somebody's leave. `arguments` is JSON text, perhaps cut; times are wall clock."""

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
    """It has been answered, and the session's next process is to hear it."""


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
    """Why it is restarting or parked."""
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
    """The answer was taken. `is_kept`: the session has no process now, and its next one will hear it."""

    session: str
    approval: str
    decision: Literal["approved", "denied"]
    is_kept: bool = False


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


Result = (
    SessionInfo
    | SessionStartedResult
    | SessionList
    | ApprovalList
    | ApprovalResult
    | StopResult
    | Subscribed
    | DaemonStatus
    | ReloadResult
    | MetricsReport
    | Done
)

# ---------------------------------------------------------------- root → client


class Welcome(Wire, frozen=True, kw_only=True, tag="welcome"):
    """The connection is accepted. `instance` changes with every start of root."""

    protocol: int
    version: str
    instance: str
    pid: int


class Rejected(Wire, frozen=True, kw_only=True, tag="rejected"):
    """A message that could not be answered by id: a bad hello, or bytes that are no message."""

    failure: Failure
    protocol: int = 0


class Reply(Wire, frozen=True, kw_only=True, tag="reply"):
    """Exactly one of `result` and `failure` is set."""

    id: int
    result: Result | None = None
    failure: Failure | None = None


class GapNotice(Wire, frozen=True, kw_only=True, tag="subscription.gap"):
    """A gap, in its place in the subscription's stream."""

    subscription: int
    gap: Gap


class SubscriptionEnded(Wire, frozen=True, kw_only=True, tag="subscription.ended"):
    """The subscription will carry nothing more: `caught_up`, `unsubscribed`, `expired` or `daemon_stop`."""

    subscription: int
    reason: str
    next_offset: int


ServerMessage = Welcome | Rejected | Reply | GapNotice | SubscriptionEnded

client_messages: Codec[ClientMessage] = Codec(ClientMessage, name="client message")
server_messages: Codec[ServerMessage] = Codec(ServerMessage, name="server message")


def to_builtins(value: Any) -> Any:
    """A wire struct as plain dicts and lists, for JSON output."""
    return msgspec.to_builtins(value)
