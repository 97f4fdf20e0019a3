"""What makes an unborn worker one particular session.

The *birth* travels over the worker's private channel, a socket pair whose other end only root holds: it carries the
secret and the provider keys, and its closing tells the worker that root is gone.
"""

from __future__ import annotations

from typing import Literal

from ottod.protocol.cause import Cause, CauseKind
from ottod.protocol.codec import Codec
from ottod.protocol.policy import Authority, StandingGrant
from ottod.protocol.results import ApprovalAnswer
from ottod.protocol.sinks import SinkGrants
from ottod.protocol.specs import AgentSpec, ModelTarget, ToolFile
from ottod.protocol.wire import Wire
from ottod.protocol.workflows import ResolvedWorkflow

MAX_BIRTH_BYTES = 4 * 1024 * 1024


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
    """Permission that stands for this agent."""
    answers: dict[str, ApprovalAnswer] = {}
    """Approval → what was said to it while there was no process. Whatever else is true of it, it was said by then."""
    server_env: dict[str, str] = {}
    """Variables that MCP servers of the agent name for themselves; no other program gets them."""
    server_headers: dict[str, dict[str, str]] = {}
    """MCP server → HTTP headers, secrets included."""
    tool_files: tuple[ToolFile, ...] = ()
    """The Python files with tools that the agent chose."""
    workflow: ResolvedWorkflow | None = None
    """What a session of this kind is to carry out."""
    sinks: SinkGrants = SinkGrants()
    """What its sinks may reach."""
    is_step: bool = False
    """A workflow started it, or whom it handed over to, and gets the whole of its answer."""
    cannot_learn: bool = False
    """Its run would be learned from, if anybody could agree to what follows."""
    has_begun: bool = False
    """Its journal holds something, as far as root has heard: a worker that finds nothing must not begin anew."""
    project_notes: bool = False
    """Whether its agent is told what OTTO.md of its project says."""


class ChildNotice(Wire, frozen=True, kw_only=True, tag="child_notice"):
    """A child of this session has started; with a `cause` it has ended."""

    child: str
    agent: str = ""
    title: str = ""
    cause: Cause | None = None
    result: str = ""
    name: str = ""
    whole: str = ""
    """The artifact that has the whole result, if that was too long."""


births: Codec[Birth] = Codec(Birth, name="birth")
