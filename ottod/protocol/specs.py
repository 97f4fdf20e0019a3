"""Specs: what a session is to be. Filled by `settings` from YAML, or by a client from Python.

Every field is parsed and validated from the start; a field's enforcement arrives with the layer that owns it.
As wire structs they ignore unknown fields; the YAML loader refuses them, with line and column.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Name = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_-]{0,62}$", description="lower-case letters, digits, - and _")]
Seconds = Annotated[float, Meta(ge=0, le=31_536_000)]
PositiveSeconds = Annotated[float, Meta(gt=0, le=31_536_000)]
Count = Annotated[int, Meta(ge=0)]
PositiveCount = Annotated[int, Meta(ge=1)]
Bytes = Annotated[int, Meta(ge=1)]


class Spec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The form that all specs share."""


class Budgets(Spec, frozen=True, kw_only=True):
    """Limits on consumption. Absent means unlimited; 0 means none at all. `usd` is in dollars."""

    seconds: Seconds | None = None
    tokens: Count | None = None
    usd: Annotated[float, Meta(ge=0)] | None = None


class Limits(Spec, frozen=True, kw_only=True):
    """Bounds on one session. Sizes are in bytes."""

    max_steps: PositiveCount = 100
    """Model calls in one turn."""
    max_parallel_tools: PositiveCount = 8
    max_concurrent: dict[str, PositiveCount] = {}
    """Calls of one tool at the same time, by its name."""
    max_tool_output_bytes: Bytes = 32 * 1024
    tool_timeout_s: PositiveSeconds = 120.0
    memory_bytes: Bytes | None = None
    pids: PositiveCount | None = None
    cpu_weight: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    file_bytes: Bytes | None = None
    max_depth: Count = 4
    max_children: Count = 16
    max_per_role: dict[str, PositiveCount] = {}
    """Live sessions below it, at any depth, that run the same agent, by its name."""


class Backoff(Spec, frozen=True, kw_only=True):
    """Delays before restarts: base_s · factorⁿ, at most max_s, ± jitter (a share of the delay)."""

    base_s: Seconds = 0.5
    factor: Annotated[float, Meta(ge=1)] = 2.0
    max_s: Seconds = 60.0
    jitter: Annotated[float, Meta(ge=0, le=1)] = 0.2


class Shutdown(Spec, frozen=True, kw_only=True):
    """How a session is stopped: `grace_s` to end by itself, then SIGTERM, then SIGKILL; `brutal` skips the grace.

    Without `grace_s` the daemon's `sessions.stop_grace_s` holds.
    """

    grace_s: Seconds | None = None
    brutal: bool = False


class Restart(Spec, frozen=True, kw_only=True):
    """The child's own half of supervision, in OTP's terms."""

    policy: Literal["permanent", "transient", "temporary"] = "temporary"
    significant: bool = False
    backoff: Backoff = Backoff()
    shutdown: Shutdown = Shutdown()
    on_parent_exit: Literal["stop", "keep"] = "stop"


class Group(Spec, frozen=True, kw_only=True):
    """The parent's half: what a child's crash means for its siblings."""

    strategy: Literal["one_for_one", "one_for_all", "rest_for_one"] = "one_for_one"
    max_restarts: Annotated[int, Meta(ge=0, le=10_000)] = 3
    period_s: PositiveSeconds = 60.0
    auto_shutdown: Literal["never", "any_significant", "all_significant"] = "never"
    """Whether the end of significant children ends the group and its parent."""


Layer = Literal["required", "preferred", "off"]


class Isolation(Spec, frozen=True, kw_only=True):
    """Which layers the session needs. A `required` layer that the host cannot give refuses the session."""

    memory: Layer = "preferred"
    files: Layer = "preferred"
    network: Layer = "preferred"
    syscalls: Layer = "preferred"
    read_paths: tuple[str, ...] = ()
    """Directories outside the working directory that tool processes may read."""
    write_paths: tuple[str, ...] = ()


Effect = Literal["allow", "ask", "deny"]
Preset = Literal["strict", "balanced", "autonomous"]


class PermissionRule(Spec, frozen=True, kw_only=True):
    """One rule. Patterns are globs; an absent field matches everything. What matches is `ottod.core.permission`.

    `agent` is who acts, `target` another agent that is started or spoken to. `permission`: only what a call reads,
    writes, executes or sends; `none` for tools that do nothing of these.
    `expires_s`: how long an approval that it asks for waits for an answer; for ever, unless it is given. `source` is
    the loader's: the file and line where the rule stands.
    """

    effect: Effect
    tool: str = "*"
    path: str = ""
    command: str = ""
    host: str = ""
    target: str = ""
    agent: str = "*"
    run_mode: Literal["interactive", "headless", ""] = ""
    permission: Literal["read", "write", "exec", "net", "none", ""] = ""
    reason: str = ""
    expires_s: PositiveSeconds | None = None
    source: str = ""

    def __str__(self) -> str:
        """On one line, as it could be written: `ask tool: shell, command: git push*`."""
        conditions = [
            f"{name}: {value}"
            for name in ("tool", "permission", "path", "command", "host", "target", "agent", "run_mode")
            if (value := getattr(self, name)) and (value != "*" or name not in ("tool", "agent"))
        ]
        return f"{self.effect} {', '.join(conditions) or 'everything'}"


class Permissions(Spec, frozen=True, kw_only=True):
    """A preset and the rules laid over it."""

    preset: Preset = "balanced"
    rules: tuple[PermissionRule, ...] = ()


HealthAction = Literal["warn", "restart", "stop", "off"]


class LoopRule(Spec, frozen=True, kw_only=True):
    """The same call with the same arguments gave the same result `after` times, and not long ago."""

    after: Annotated[int, Meta(ge=2)] = 4
    do: HealthAction = "warn"


class ProgressRule(Spec, frozen=True, kw_only=True):
    """For `after` model calls in a row, no tool call succeeded with anything new."""

    after: PositiveCount = 12
    do: HealthAction = "warn"


class ToolErrorRule(Spec, frozen=True, kw_only=True):
    """The newest `after` tool calls all failed."""

    after: PositiveCount = 6
    do: HealthAction = "warn"


class ViolationRule(Spec, frozen=True, kw_only=True):
    """`after` times in a row, a tool did not take its arguments, or an answer was not what `output_schema` says."""

    after: PositiveCount = 4
    do: HealthAction = "warn"


class Health(Spec, frozen=True, kw_only=True):
    """What is done about an agent that gets nowhere.

    `warn` tells the model and the watchers; `restart` begins the turn's work anew, once, with fewer steps, one tool
    at a time, and told what went wrong; `stop` fails the turn with code `unhealthy`.
    """

    loop: LoopRule = LoopRule()
    no_progress: ProgressRule = ProgressRule()
    tool_errors: ToolErrorRule = ToolErrorRule()
    schema_violations: ViolationRule = ViolationRule()


class ContextRules(Spec, frozen=True, kw_only=True):
    """When a conversation is shortened, and to what. Shares are of what a model's context holds beside an answer."""

    compact_at: Annotated[float, Meta(gt=0, le=1)] = 0.7
    """From this share on, everything but the newest messages becomes a summary."""
    keep_recent: Annotated[float, Meta(ge=0, lt=1)] = 0.2
    """So much of the newest stays as it is; the newest exchange in any case."""
    summary_model: str = ""
    """Which of the agent's models writes the summary: its own unless given."""


class McpServer(Spec, frozen=True, kw_only=True):
    """An MCP tool source: a command (stdio) or a URL (streamable HTTP), not both.

    Without `include` all of its tools are offered but for `exclude`; both hold patterns of the server's own names. An
    empty `include` offers none.
    """

    name: Name
    command: tuple[str, ...] = ()
    url: str = ""
    env: tuple[str, ...] = ()
    """Names of variables that this server gets, and no other program of the session.

    They are the dispatching client's; what clients do not send, because it looks secret, is the daemon's own.
    """
    headers: dict[str, str] = {}
    """HTTP headers; `${NAME}` in a value stands for a variable or a systemd credential of the daemon."""
    network: bool = False
    """Whether a command has the host's network."""
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    start_timeout_s: PositiveSeconds = 30.0
    """For the server to start, to greet and to list its tools."""
    call_timeout_s: PositiveSeconds = 120.0


class ToolFile(Spec, frozen=True, kw_only=True):
    """A Python file with tools that the agent chose, as it was when the session was made. Never run by a worker."""

    origin: Literal["project", "user"]
    path: str
    source: str
    tools: tuple[str, ...]
    """The chosen functions' names."""


class HttpAccess(Spec, frozen=True, kw_only=True):
    """Where the http tool may go. Without hosts: nowhere."""

    hosts: tuple[str, ...] = ()
    """`example.org`, `*.example.org`, `example.org:8443`, or `*` for every public host."""
    local: tuple[str, ...] = ()
    """`HOST:PORT` of this machine or a private network."""
    max_bytes: Annotated[int, Meta(ge=1, le=64 * 1024 * 1024)] = 2 * 1024 * 1024
    """Of one answer."""
    timeout_s: PositiveSeconds = 30.0
    """For one call as a whole, redirects included."""
    requests_per_minute: PositiveCount = 60


class GitSettings(Spec, frozen=True, kw_only=True):
    """How the git tool commits."""

    author: str = ""
    """`Name <address>`; by default the agent's own name."""


Resort = Literal["model", "cache", "rule", "human"]
"""What may stand in for a model that does not answer."""


class AgentSpec(Spec, frozen=True, kw_only=True):
    """An agent definition. `digest` and `source` are the loader's: what exactly was read, and from where."""

    name: Name
    description: str = ""
    kind: Literal["agent", "workflow", "harness"] = "agent"
    model: str = "default"
    fallback_models: tuple[str, ...] = ()
    fallback: tuple[Resort, ...] = ("model",)
    fallback_answer: str = ""
    tools: tuple[str, ...] = ()
    system_prompt: str = ""
    project_notes: bool = True
    """Whether it is told what the project's OTTO.md says."""
    working_dir: str = ""
    tags: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    """What tasks for it sound like: words for whoever chooses an agent by its task."""
    cacheable: bool = False
    """Whether its result may stand for that of another session that is asked the same, while no file changes."""
    learn: bool = False
    """Whether OTTO.md is brought up to date, with somebody's permission, when a run that it began has ended well."""
    handoffs: tuple[str, ...] = ()
    """The agents that it may hand the conversation over to; none without being named."""
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    max_output_tokens: PositiveCount = 8192
    thinking_tokens: Count = 0
    permissions: Permissions = Permissions()
    budgets: Budgets = Budgets()
    on_budget: Literal["stop", "ask"] = "stop"
    limits: Limits = Limits()
    restart: Restart = Restart()
    group: Group = Group()
    isolation: Isolation = Isolation()
    env: tuple[str, ...] = ()
    """Names of environment variables that the session takes over from the dispatching client."""
    mcp_servers: tuple[McpServer, ...] = ()
    http: HttpAccess = HttpAccess()
    git: GitSettings = GitSettings()
    context: ContextRules = ContextRules()
    health: Health = Health()
    output_schema: dict[str, Any] = {}
    """What the final answer must be, in JSON Schema; empty: text."""
    output_retries: Annotated[int, Meta(ge=0, le=20)] = 2
    """How often an answer that is not as `output_schema` says may be given anew."""
    time_slice_s: PositiveSeconds | None = None
    digest: str = ""
    source: str = ""


class ModelTarget(Spec, frozen=True, kw_only=True):
    """A resolved model: which adapter, which model name, where. The API key travels apart.

    `adapter` is `scripted | anthropic | openai`; for openai, `api` picks Responses or Chat Completions.
    For `scripted`, `model` is the path of the script. Prices are in US dollars per million tokens.
    """

    provider: str
    adapter: Literal["scripted", "anthropic", "openai"]
    model: str
    api: Literal["responses", "chat"] = "responses"
    base_url: str = ""
    needs_key: bool = True
    timeout_s: PositiveSeconds = 600.0
    idle_timeout_s: PositiveSeconds = 90.0
    max_retries: Count = 4
    context_tokens: PositiveCount | None = None
    """How many tokens its context holds, question and answer together; None: not known."""
    price_input_usd: float | None = None
    price_output_usd: float | None = None
    price_cache_read_usd: float | None = None
    price_cache_write_usd: float | None = None
