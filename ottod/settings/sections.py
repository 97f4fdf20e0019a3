"""The sections of the daemon's file, as frozen structs with their defaults."""

from __future__ import annotations

from socket import AF_INET, AF_INET6, inet_pton
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ottod.protocol.requests import MAX_CREDIT_BYTES
from ottod.protocol.specs import Count, Layer, Name, PermissionRule, PositiveCount, PositiveSeconds, Preset, Seconds
from ottod.settings.hosts import parse_local, parse_pattern
from ottod.settings.rules import Contradiction, unbounded_restarts

Adapter = Literal["scripted", "anthropic", "openai"]
Price = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(gt=0, le=1)]

MIN_SEGMENTS = 8
"""Fewer segments than this would make the ring forget in large steps."""

DEFAULT_ENV = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LANGUAGE",
    "LC_*",
    "TERM",
    "COLORTERM",
    "NO_COLOR",
    "TZ",
    "TMPDIR",
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "PYTHONUTF8",
)
"""Environment variables that every session takes over from the dispatching client."""

PROJECT_ENV = ("CI", "EDITOR", "PAGER", "PYTHONPATH", "PYTHONWARNINGS", "NODE_ENV", "RUST_BACKTRACE", "DEBUG")
"""Further variables that a project's agent file may ask for by itself: none of them carries a secret."""


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The form that all sections share."""


class RingSettings(Section, frozen=True, kw_only=True):
    """The ring keeps the newest events of all sessions for replay."""

    size_bytes: Annotated[int, Meta(ge=1024 * 1024, le=64 * 1024**3)] = 64 * 1024 * 1024
    """The file's size; it never grows."""
    segment_bytes: Annotated[int, Meta(ge=128 * 1024, le=1024**3)] = 128 * 1024
    """Space is given to sessions and taken back by the segment; the ring has at least eight."""
    sync: Literal["always", "interval", "none"] = "interval"
    """When events are forced to disk. All survive a killed daemon; they differ in what a power failure can take."""
    sync_interval_s: PositiveSeconds = 0.2
    """How often, when `sync` is `interval`."""

    def __post_init__(self) -> None:
        if self.size_bytes < MIN_SEGMENTS * self.segment_bytes:
            raise Contradiction(
                f"ring.size_bytes must be at least {MIN_SEGMENTS} times segment_bytes",
                field="size_bytes",
                mend=f"write {MIN_SEGMENTS * self.segment_bytes} or more, or a smaller segment_bytes",
            )


class JournalSettings(Section, frozen=True, kw_only=True):
    """Each session's journal holds what it needs to resume."""

    sync: Literal["always", "none"] = "always"
    """`always` survives power loss, `none` a killed process only."""
    file_bytes: Annotated[int, Meta(ge=64 * 1024, le=1024**3)] = 16 * 1024 * 1024
    """When a file of a journal has this size, a snapshot begins the next one and it is compressed."""
    compress_ended: bool = True
    """Whether the journals of ended sessions are compressed."""


class SessionSettings(Section, frozen=True, kw_only=True):
    """How sessions are run, watched and remembered."""

    max_live: PositiveCount = 1000
    """Sessions that may run at once; a start beyond it is refused."""
    start_timeout_s: PositiveSeconds = 30.0
    """From the order to fork until the worker says hello; then the cause is `start_failed`."""
    orphan_grace_s: Seconds = 30.0
    """How long a worker that has lost its daemon may take to end its turn and its tools."""
    heartbeat_s: PositiveSeconds = 2.0
    """How often a worker says that it lives."""
    hung_after_s: PositiveSeconds = 20.0
    """A worker silent for this long is `hung` and killed; at least twice `heartbeat_s`."""
    stop_grace_s: Seconds = 10.0
    """How long a stopped session may take to end by itself, unless its agent says otherwise."""
    retain_ended: Count = 1000
    """Ended sessions kept with their files; older ones are removed."""
    worker_priority: Literal["idle", "low", "normal"] = "idle"
    """How workers stand behind root when all cores are busy: `idle` (SCHED_IDLE) keeps event latency lowest, `low` is
    nice 10. Tools inherit it."""

    def __post_init__(self) -> None:
        if self.hung_after_s < 2 * self.heartbeat_s:
            raise Contradiction(
                "sessions.hung_after_s must be at least twice heartbeat_s",
                field="hung_after_s",
                mend=f"write {2 * self.heartbeat_s:g} or more, or a smaller heartbeat_s",
            )


class CapSettings(Section, frozen=True, kw_only=True):
    """What one session may use at most, all its processes together, unless its agent's limits say otherwise."""

    memory_bytes: Annotated[int, Meta(ge=32 * 1024 * 1024)] = 4 * 1024**3
    """Beyond it the session is killed, with cause `memory`."""
    pids: Annotated[int, Meta(ge=16)] = 1024
    """Processes and threads."""


class SupervisionSettings(Section, frozen=True, kw_only=True):
    """How often a top-level session may be restarted before it is parked. For children, the parent's group says."""

    max_restarts: Count = 5
    """Restarts within `period_s`; one more parks the session until `ottoctl session unpark`."""
    period_s: PositiveSeconds = 60.0
    """The window in which restarts are counted."""

    def __post_init__(self) -> None:
        wrong = unbounded_restarts(self.max_restarts, self.period_s)
        if wrong is not None:
            raise Contradiction(f"supervision: {wrong[0]}", field="max_restarts", mend=wrong[1])


class DayBudget(Section, frozen=True, kw_only=True):
    """What all sessions together may spend from midnight to midnight, by this machine's clock."""

    usd: Annotated[float, Meta(ge=0)] | None = None
    """US dollars. Absent means unlimited, 0 none at all. Models need a known price."""
    tokens: Count | None = None
    """All tokens, input and output."""


class BudgetSettings(Section, frozen=True, kw_only=True):
    """Limits above those of the agents."""

    day: DayBudget = DayBudget()
    """Of each day."""


class PoolSettings(Section, frozen=True, kw_only=True):
    """Workers forked in advance, so that a session starts at once."""

    warm: Annotated[int, Meta(ge=0, le=64)] = 2
    """How many; 0 for none."""
    preload: Literal["auto", "all", "none"] = "auto"
    """Which vendors' libraries they find loaded. `auto`: of providers that can be used when the daemon starts. A
    session that needs another loads it by itself, which takes a second and some 60 MiB."""


class Prices(Section, frozen=True, kw_only=True):
    """A model's prices in US dollars per million tokens."""

    input: Price
    """Uncached input."""
    output: Price
    """Output, reasoning included."""
    cache_read: Price | None = None
    """Input read from the provider's cache."""
    cache_write: Price | None = None
    """Input written to it."""


class BreakerSettings(Section, frozen=True, kw_only=True):
    """When calls of one model are not worth making for a while: each model of the provider has a breaker of its own.

    Open, it refuses them, and agents go on with their `fallback`. After a time it lets a few calls try.
    """

    enabled: bool = True
    """Off: every call is made."""
    window_s: PositiveSeconds = 60.0
    """Calls that ended within this time are counted."""
    min_calls: PositiveCount = 10
    """Fewer calls within the window open nothing."""
    error_rate: Share = 0.5
    """The share of failed calls that opens it: overloaded, timed out, cut, unreadable, or no connection."""
    slow_after_s: PositiveSeconds | None = None
    """A call whose answer takes longer to begin is slow; without it none is."""
    slow_rate: Share = 0.8
    """The share of slow calls that opens it."""
    quota_tokens: PositiveCount | None = None
    """What the account has for this model in `quota_period_s`; without it nothing is counted."""
    quota_period_s: PositiveSeconds = 3600.0
    """The time in which the quota is counted, always the last so many seconds."""
    quota_share: Share = 0.8
    """The share of the quota that opens it, until enough of what was used is older than the period."""
    open_s: PositiveSeconds = 10.0
    """How long it is open at first. Each opening that follows soon on another lasts twice as long."""
    max_open_s: PositiveSeconds = 300.0
    """The longest that it is open for failures or slow answers."""
    probes: Annotated[int, Meta(ge=1, le=100)] = 2
    """Calls that try at once after that, and how many must succeed to close it."""

    def __post_init__(self) -> None:
        if self.max_open_s < self.open_s:
            raise Contradiction(
                f"breaker.max_open_s is less than open_s ({self.open_s:g} s)",
                field="max_open_s",
                mend=f"write {self.open_s:g} or more, or a smaller open_s",
            )


class ProviderSettings(Section, frozen=True, kw_only=True):
    """A model provider. `scripted`, `anthropic` and `openai` exist already; an entry changes what it names."""

    adapter: Adapter | None = None
    """How to speak to it; needed for a provider of your own."""
    base_url: str = ""
    """Where it is, when not at the adapter's usual place."""
    api: Literal["responses", "chat"] = "responses"
    """Which of the two APIs an `openai` adapter uses; most compatible servers know only `chat`."""
    api_key_env: str = ""
    """The variable of the daemon's environment that holds the key; excludes `api_key_file`."""
    api_key_file: str = ""
    """A file with the key on one line, mode 0600; `~` is home."""
    needs_key: bool | None = None
    """Default: true, except for `scripted`; false for a local server."""
    models: tuple[str, ...] = ()
    """Model names that agents may write without the provider's name before them."""
    timeout_s: PositiveSeconds = 600.0
    """For one model call as a whole."""
    idle_timeout_s: PositiveSeconds = 90.0
    """The longest silence between two pieces of a stream."""
    max_retries: Count = 4
    """How often a call that failed in passing is made again."""
    max_concurrent: PositiveCount = 64
    """Calls of all sessions together that may run at once; others wait their turn."""
    requests_per_minute: PositiveCount | None = None
    """Calls of all sessions together that may begin in any minute; without it no limit."""
    tokens_per_minute: PositiveCount | None = None
    """The same in tokens, input and output: estimated when a call begins, settled when it ends."""
    breaker: BreakerSettings = BreakerSettings()
    """When calls are not worth making for a while; see below."""
    prices: dict[str, Prices] = {}
    """By model name; `*` for all others."""
    context_tokens: PositiveCount | None = None
    """How many tokens its models' context holds, question and answer together. Known for usual models of the two
    public APIs; a conversation with any other model is shortened only once the provider says that it is too long."""

    def __post_init__(self) -> None:
        if self.base_url and not self.base_url.startswith(("http://", "https://")):
            raise Contradiction(
                f"base_url must start with http:// or https://, got {self.base_url!r}",
                field="base_url",
                mend="write the URL up to and with the version, such as http://127.0.0.1:8080/v1",
            )
        if self.api_key_env and self.api_key_file:
            raise Contradiction(
                "api_key_env and api_key_file exclude each other", field="api_key_file", mend="keep one of them"
            )


class IsolationSettings(Section, frozen=True, kw_only=True):
    """What an agent gets that asks for nothing, and the least that a project's agent can have.

    A `required` layer that this machine cannot give refuses the session.
    """

    memory: Layer = "preferred"
    """A cap on memory and processes."""
    files: Layer = "preferred"
    """Only the working directory and what was granted can be reached."""
    network: Layer = "preferred"
    """Tool processes have no network."""
    syscalls: Layer = "preferred"
    """Tool processes are denied dangerous system calls."""


class PermissionSettings(Section, frozen=True, kw_only=True):
    """Rules about tool calls for all agents, weighed together with an agent's own; see `permissions.rules` below."""

    rules: tuple[PermissionRule, ...] = ()
    """A list; each rule has an `effect` and conditions, as in an agent's file."""
    audit_entries: Annotated[int, Meta(ge=100, le=10_000_000)] = 20_000
    """How many decisions and answers are kept on record for `ottoctl policy audit`; older ones go."""


class ProjectSettings(Section, frozen=True, kw_only=True):
    """What agent files inside a project (`.otto/agents`) may ask for. They only narrow what stands here."""

    read_paths: tuple[str, ...] = ()
    """Directories outside the project, with everything below them; `~` is home."""
    write_paths: tuple[str, ...] = ()
    """The same, for writing."""
    env: tuple[str, ...] = PROJECT_ENV
    """Variables beyond the list `env`; names, or patterns such as `NPM_*`."""
    preset: Preset = "balanced"
    """The widest permission preset."""
    mcp_servers: bool = False
    """Whether they may start MCP servers, which are programs; never with the network."""
    tools: bool = False
    """Whether agents, also your own, may use the Python tools in a project's `.otto/tools`: a stranger's code."""
    notes: bool = True
    """Whether agents, also your own, are told what a project's `OTTO.md` says: a stranger's words."""
    http_hosts: tuple[str, ...] = ()
    """Hosts that their http tool may reach: `example.org`, `*.example.org`, or `*` for every public one."""

    def __post_init__(self) -> None:
        for field, paths in (("read_paths", self.read_paths), ("write_paths", self.write_paths)):
            if "" in paths:
                # Relative to home, where these begin, it would be all of it.
                raise Contradiction(
                    f"project_may.{field}: an empty path is no directory", field=field, mend="leave it out"
                )
        for text in self.http_hosts:
            try:
                parse_pattern(text)
            except ValueError as error:
                message, _, mend = str(error).partition(": ")
                raise Contradiction(f"project_may.http_hosts: {message}", field="http_hosts", mend=mend) from error


class SinkSettings(Section, frozen=True, kw_only=True):
    """What the sinks of workflows may reach, whoever wrote the workflow. Without a word here: nothing outside."""

    hosts: tuple[str, ...] = ()
    """Hosts that webhooks may go to: `example.org`, `*.example.org`, `example.org:8443`."""
    local: tuple[str, ...] = ()
    """`HOST:PORT` of this machine or a private network that they may go to."""
    secrets: tuple[Name, ...] = ()
    """Names of `secrets` that sinks may sign with, or that your own sinks may be given."""

    def __post_init__(self) -> None:
        for field, texts, read in (("hosts", self.hosts, parse_pattern), ("local", self.local, parse_local)):
            for text in texts:
                try:
                    read(text)
                except ValueError as error:
                    message, _, mend = str(error).partition(": ")
                    raise Contradiction(f"sinks.{field}: {message}", field=field, mend=mend) from error


class ClientSettings(Section, frozen=True, kw_only=True):
    """Bounds on what clients can ask of the daemon."""

    max_clients: PositiveCount = 256
    """Connected at once."""
    max_subscriptions: PositiveCount = 64
    """Of one client."""
    max_credit_bytes: Annotated[int, Meta(ge=64 * 1024, le=MAX_CREDIT_BYTES)] = MAX_CREDIT_BYTES
    """The most that may be on its way to one subscriber."""


class GatewaySettings(Section, frozen=True, kw_only=True):
    """The gateway serves `/metrics` for Prometheus, `/healthz` and `/readyz` over HTTP, in a process of its own.

    Whoever reaches its address can read the metrics: there is no login. They hold numbers only, nothing of what
    sessions say or do, and no request to the gateway changes anything. Requests that call this machine by a name
    which is not listed below are refused, so that no web page can make its own name mean this machine.
    """

    enabled: bool = False
    """Off: a daemon opens no port that nobody asked for."""
    host: str = "127.0.0.1"
    """The IP address to listen on; `0.0.0.0` or `::` for every one that this machine has."""
    port: Annotated[int, Meta(ge=0, le=65535)] = 9686
    """0 for no TCP port at all, when `socket` is on."""
    socket: bool = False
    """Also serve on the unix socket `gateway.sock` in the runtime directory, which only you can reach."""
    allowed_hosts: tuple[str, ...] = ()
    """Names that a scraper may call this machine by, beside `localhost` and IP addresses."""

    def __post_init__(self) -> None:
        if not _is_address(self.host):
            raise Contradiction(
                f"gateway.host must be an IP address, got {self.host!r}", field="host", mend="write 127.0.0.1, or ::1"
            )
        if self.enabled and not self.port and not self.socket:
            raise Contradiction(
                "gateway.port 0 leaves the gateway with nothing to listen on",
                field="port",
                mend="give it a port, or turn gateway.socket on",
            )
        for host in self.allowed_hosts:
            if not host or "*" in host or "/" in host or ":" in host:
                raise Contradiction(
                    f"gateway.allowed_hosts: {host!r} is no host name",
                    field="allowed_hosts",
                    mend="write names such as box.example, without port and without wildcard",
                )


def _is_address(host: str) -> bool:
    for family in (AF_INET, AF_INET6):
        try:
            inet_pton(family, host)
        except (OSError, ValueError):
            continue
        return True
    return False


class LoggingSettings(Section, frozen=True, kw_only=True):
    """The daemon's own log, on stderr or in `<state>/ottod.log` when it runs in the background."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least that is worth a line."""
    format: Literal["text", "json"] = "text"
    """`json` for machines: one object a line."""


class SecretSettings(Section, frozen=True, kw_only=True):
    """A secret that is no provider's key, by a name of your own. Exactly one of the three says where it is.

    It is known by its name wherever one is asked for, and is taken out of everything that Otto keeps or shows.
    """

    env: str = ""
    """A variable of the daemon's environment; the daemon takes it out of there."""
    file: str = ""
    """A file of mode 0600 that holds it; `~` is home."""
    credential: str = ""
    """A credential of the daemon's unit (systemd's LoadCredential)."""

    def __post_init__(self) -> None:
        given = [name for name in ("env", "file", "credential") if getattr(self, name)]
        if len(given) != 1:
            raise Contradiction(
                f"a secret needs exactly one of env, file and credential, got {' and '.join(given) or 'none'}",
                field=given[-1] if given else "env",
                mend="write one of them",
            )


class RedactionSettings(Section, frozen=True, kw_only=True):
    """Keys that the daemon knows are taken out of events, journals, logs, traces and exports, always."""

    shapes: bool = True
    """Also whatever looks like a key, a token or a password."""


class TraceSettings(Section, frozen=True, kw_only=True):
    """Traces for OpenTelemetry, sent over OTLP/HTTP by each session's own process. They need the extra `otel`."""

    enabled: bool = False
    """Off: nothing is imported, nothing leaves this machine."""
    endpoint: str = "http://127.0.0.1:4318/v1/traces"
    """Where a collector listens, with the path."""
    headers: dict[str, Name] = {}
    """Headers of each request: their names, and the names of `secrets` that are their values."""
    sample_ratio: Annotated[float, Meta(ge=0, le=1)] = 1.0
    """The share of traces that is recorded; a session and all below it are one trace."""
    timeout_s: Annotated[float, Meta(gt=0, le=30)] = 3.0
    """How long a request may take, and a session's end may wait for the last one."""

    def __post_init__(self) -> None:
        if not self.endpoint.startswith(("http://", "https://")):
            raise Contradiction(
                f"telemetry.traces.endpoint must start with http:// or https://, got {self.endpoint!r}",
                field="endpoint",
                mend="write the whole URL, such as http://127.0.0.1:4318/v1/traces",
            )


class TelemetrySettings(Section, frozen=True, kw_only=True):
    """What the daemon tells about its sessions besides events, logs and metrics."""

    traces: TraceSettings = TraceSettings()


class DaemonSettings(Section, frozen=True, kw_only=True):
    """All settings."""

    ring: RingSettings = RingSettings()
    journal: JournalSettings = JournalSettings()
    sessions: SessionSettings = SessionSettings()
    caps: CapSettings = CapSettings()
    supervision: SupervisionSettings = SupervisionSettings()
    budgets: BudgetSettings = BudgetSettings()
    pool: PoolSettings = PoolSettings()
    models: dict[Name, str] = {}
    """Aliases: a name → another alias, `provider:model`, or a model's name."""
    providers: dict[Name, ProviderSettings] = {}
    """Model providers by name."""
    env: tuple[str, ...] = DEFAULT_ENV
    """Environment variables that every session takes over from its client. A list replaces the default.

    Variables that hold a provider's key never pass.
    """
    isolation: IsolationSettings = IsolationSettings()
    permissions: PermissionSettings = PermissionSettings()
    project_may: ProjectSettings = ProjectSettings()
    sinks: SinkSettings = SinkSettings()
    clients: ClientSettings = ClientSettings()
    gateway: GatewaySettings = GatewaySettings()
    logging: LoggingSettings = LoggingSettings()
    secrets: dict[Name, SecretSettings] = {}
    """Secrets by name."""
    redaction: RedactionSettings = RedactionSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
