"""Every metric that Otto exposes: name, kind, help, and what its labels may say.

Theory. A label's values are a closed set that stands here, or names from the code with a stated bound. What a user
can make more of (sessions, agents, pids, paths) is never a label; of models only so many are told apart. So the
number of series is known in advance: `MAX_SERIES`. A `Report` takes values for these metrics only, and refuses a
label that is not allowed; `docs/reference/metrics.md` is written from this table.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

import msgspec

from ottod.core.health import Kind as HealthKind
from ottod.protocol.cause import CauseKind
from ottod.protocol.events import SessionState
from ottod.protocol.results import MetricFamily, MetricsReport, Sample

Kind = Literal["counter", "gauge", "histogram", "info"]

CAUSES: tuple[CauseKind, ...] = get_args(CauseKind)
LIVE_STATES: tuple[SessionState, ...] = tuple(s for s in get_args(SessionState) if s != "ended")
HEALTH_KINDS: tuple[HealthKind, ...] = get_args(HealthKind)
PEERS = ("client", "worker")
MAX_LAYERS = 32
"""Isolation layers that are told apart; there are about a dozen."""

MAX_MODELS = 24
"""Models that are told apart; calls of all others count as `other`."""
OTHER = "other"
TOKEN_KINDS = ("input", "output", "cache_read", "cache_write")
PERMIT_OUTCOMES = ("granted", "refused")
BACKLOG_KINDS = ("steps", "calls")
MESSAGE_OUTCOMES = ("delivered", "inbox_full", "rate_limited", "failed")

MAX_TOOLS = 32
"""Built-in tools that are told apart, and `other`."""
TOOL_OUTCOMES = ("completed", "failed", "timeout", "cancelled", "denied", "crashed", "unknown")
TURN_OUTCOMES = ("completed", "failed", "cancelled")

CALL_BUCKETS_S = (0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0)
FIRST_TOKEN_BUCKETS_S = (0.25, 0.5, 1.0, 2.5, 5.0, 15.0)
TOOL_BUCKETS_S = (0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0)
TURN_BUCKETS_S = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)
WAIT_BUCKETS_S = (1.0, 10.0, 60.0, 300.0, 1800.0, 7200.0, 43200.0)
SPAWN_BUCKETS_S = (0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
FSYNC_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Label(msgspec.Struct, frozen=True):
    """A label. Without `values` its values are names from the code, at most `at_most` of them."""

    name: str
    values: tuple[str, ...] = ()
    at_most: int = 1

    @property
    def bound(self) -> int:
        """How many values it can have."""
        return len(self.values) or self.at_most


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table. `name` is as in Prometheus, without the ending that the kind adds."""

    name: str
    kind: Kind
    help: str
    labels: tuple[Label, ...] = ()
    buckets: tuple[float, ...] = ()
    """Upper bounds, for a histogram; the last bucket, +Inf, is understood."""

    @property
    def exposed_name(self) -> str:
        """The name as a query writes it: `_total` behind a counter, `_info` behind an info."""
        return self.name + {"counter": "_total", "info": "_info"}.get(self.kind, "")

    @property
    def max_series(self) -> int:
        """The most time series that it can make."""
        series = len(self.buckets) + 3 if self.kind == "histogram" else 1
        if self.kind != "info":
            for label in self.labels:
                series *= label.bound
        return series


_BY_CAUSE = (Label("cause", CAUSES),)
_BY_MODEL = Label("model", at_most=MAX_MODELS)


def _counter(name: str, help: str, *labels: Label) -> Metric:
    return Metric(name=name, kind="counter", help=help, labels=labels)


def _gauge(name: str, help: str, *labels: Label) -> Metric:
    return Metric(name=name, kind="gauge", help=help, labels=labels)


def _histogram(name: str, help: str, buckets: tuple[float, ...], *labels: Label) -> Metric:
    return Metric(name=name, kind="histogram", help=help, buckets=buckets, labels=labels)


METRICS: tuple[Metric, ...] = (
    Metric(
        name="otto_build",
        kind="info",
        help="What runs: the versions of Otto, Python and ZeroMQ.",
        labels=(Label("version"), Label("python"), Label("zmq")),
    ),
    _gauge("otto_start_time_seconds", "When root was started, in seconds since the epoch."),
    # Sessions
    _gauge("otto_sessions", "Live sessions by state.", Label("state", LIVE_STATES)),
    _counter("otto_sessions_started", "Sessions created."),
    _counter("otto_sessions_ended", "Sessions that ended, by cause.", *_BY_CAUSE),
    _counter("otto_incarnations_exited", "Worker processes that ended, by cause.", *_BY_CAUSE),
    _counter("otto_restarts", "Next incarnations ordered, by the cause that the one before ended with.", *_BY_CAUSE),
    _counter("otto_memory_kills", "Workers killed because their session reached its memory cap."),
    _counter("otto_sessions_parked", "Times that a session used up its restarts and was parked."),
    _counter(
        "otto_unhealthy_findings",
        "Times that an agent was found to get nowhere, by what was seen.",
        Label("kind", HEALTH_KINDS),
    ),
    _counter("otto_sessions_adopted", "Running sessions taken over from an earlier root."),
    _histogram("otto_spawn_seconds", "From the request for a worker to its being ready.", SPAWN_BUCKETS_S),
    _gauge("otto_sessions_memory_bytes", "Memory of all live sessions' processes together, at the last look."),
    _gauge("otto_session_memory_bytes_max", "Memory of the largest live session, at the last look."),
    _gauge("otto_sessions_processes", "Processes of all live sessions together, at the last look."),
    _gauge("otto_approvals_pending", "Tool calls that wait for somebody's permission."),
    _gauge("otto_approval_oldest_age_seconds", "How long the oldest of them has waited; 0 without any."),
    _counter(
        "otto_messages",
        "Messages between sessions, by what became of them.",
        Label("outcome", MESSAGE_OUTCOMES),
    ),
    _gauge(
        "otto_backlog",
        "What live sessions could begin if their own limits gave it room: steps of workflows, tool calls of agents.",
        Label("kind", BACKLOG_KINDS),
    ),
    _gauge("otto_messages_waiting", "Messages between sessions that are on their way, or wait for room."),
    # Model calls
    _counter(
        "otto_permits", "Attempts of model calls that might be made, or might not.", Label("outcome", PERMIT_OUTCOMES)
    ),
    _gauge("otto_permits_waiting", "Attempts that wait for their permit."),
    _gauge("otto_permits_open", "Attempts that may be on their way."),
    _counter("otto_model_calls", "Attempts that were paid for, by `provider:model`.", _BY_MODEL),
    _counter("otto_model_tokens", "Tokens of model calls.", _BY_MODEL, Label("kind", TOKEN_KINDS)),
    _histogram(
        "otto_model_call_seconds",
        "Attempts that gave a response, from the request to its end.",
        CALL_BUCKETS_S,
        _BY_MODEL,
    ),
    _histogram(
        "otto_model_first_token_seconds",
        "Of those, from the request to the first piece of the answer.",
        FIRST_TOKEN_BUCKETS_S,
        _BY_MODEL,
    ),
    _counter("otto_model_usd", "US dollars of model calls, where the price is known.", _BY_MODEL),
    _counter("otto_budget_overshoot_tokens", "Tokens beyond what was reserved for their calls."),
    _counter("otto_budget_overshoot_usd", "US dollars beyond what was reserved for their calls."),
    # Tools and turns
    _counter(
        "otto_tool_calls",
        "Tool calls by what became of them; tools that are not built in are `other`.",
        Label("tool", at_most=MAX_TOOLS),
        Label("outcome", TOOL_OUTCOMES),
    ),
    _histogram("otto_tool_call_seconds", "How long tool calls took.", TOOL_BUCKETS_S),
    _histogram("otto_turn_seconds", "Turns, by how they ended.", TURN_BUCKETS_S, Label("outcome", TURN_OUTCOMES)),
    _histogram("otto_approval_wait_seconds", "From a question to its answer, or to its end.", WAIT_BUCKETS_S),
    # Model providers
    _gauge("otto_breaker_state", "Whether calls of a model are refused: 0 no, 0.5 a few try, 1 yes.", _BY_MODEL),
    _counter("otto_breakers_opened", "Times that a breaker opened."),
    _gauge("otto_model_calls_running", "Model calls that are being made.", _BY_MODEL),
    _gauge("otto_model_calls_waiting", "Model calls that wait for their turn.", _BY_MODEL),
    _gauge(
        "otto_model_call_oldest_wait_seconds", "How long the oldest of them has waited; 0 without any.", _BY_MODEL
    ),
    # Workers
    _gauge("otto_zygote_up", "1 if a zygote runs, from which workers are forked."),
    _gauge("otto_zygote_generation", "The zygote's generation; it grows with each replacement."),
    _counter("otto_zygote_deaths", "Zygotes that ended without being told to."),
    _gauge("otto_warm_workers", "Forked workers that wait for a session."),
    _counter("otto_strangers_reaped", "Orphans of sessions that came to root and were reaped."),
    _counter("otto_journal_fsyncs", "Times that workers forced their journals to disk."),
    _counter("otto_journal_fsync_seconds", "Time that workers spent on forcing their journals to disk."),
    # Events
    _counter("otto_events_appended", "Events put into the ring."),
    _counter("otto_batches_received", "Batches of events from workers."),
    _gauge("otto_ring_size_bytes", "The ring's size; it never grows."),
    _gauge("otto_ring_used_bytes", "Bytes of records in the ring."),
    _gauge("otto_ring_head_offset", "The offset that the next event gets."),
    _gauge("otto_ring_tail_offset", "The oldest offset that can still be read."),
    _gauge("otto_ring_sessions", "Sessions that have events in the ring."),
    _gauge("otto_ring_unsynced_events", "Events that a power failure now would take from the ring."),
    _counter("otto_ring_evicted_segments", "Segments of the ring whose events made room for newer ones."),
    _histogram("otto_ring_fsync_seconds", "Forcing the ring to disk.", FSYNC_BUCKETS_S),
    _counter("otto_gaps_sent", "Gaps that subscribers were told of."),
    # Clients
    _gauge("otto_clients", "Connected clients."),
    _gauge("otto_subscriptions", "Open subscriptions to events."),
    _gauge("otto_subscriptions_starved", "Subscriptions that wait for credit from their clients."),
    _gauge("otto_subscriptions_blocked", "Subscriptions whose clients do not read: their queues are full."),
    _gauge(
        "otto_subscriber_lag_events_max",
        "Events, of all sessions, between the slowest subscription that is not live and the newest event.",
    ),
    _gauge(
        "otto_subscriber_lag_bytes_max", "The same in bytes of records, estimated from the mean size of an event."
    ),
    _counter("otto_bad_messages", "Messages that were none, or came from strangers.", Label("peer", PEERS)),
    # Root
    _gauge("otto_loop_lag_p50_seconds", "Median lateness of root's loop in the last minute."),
    _gauge("otto_loop_lag_p99_seconds", "99th percentile of the lateness of root's loop in the last minute."),
    _gauge("otto_loop_lag_max_seconds", "The most that root's loop was ever late."),
    _counter("otto_database_commits", "Transactions of the database."),
    _counter("otto_database_errors", "Errors of the database; its writes are tried again."),
    _gauge("otto_database_unwritten_rows", "Session rows that wait to be written."),
    _gauge("otto_database_pending_jobs", "Calls that wait for the database's thread."),
    _counter("otto_process_cpu_seconds", "Processor time of root."),
    _gauge("otto_process_resident_memory_bytes", "Memory of root."),
    _gauge("otto_process_open_fds", "Open files of root."),
    _gauge("otto_process_max_fds", "Files that root may open."),
    _gauge("otto_process_threads", "Threads of root."),
    _gauge(
        "otto_isolation_layer",
        "What trying an isolation layer on this machine gave: 1 works, 0.5 partly, 0 is missing.",
        Label("layer", at_most=MAX_LAYERS),
    ),
    _gauge("otto_gateway_up", "1 if the process that serves these metrics was started by root and runs."),
    _counter("otto_gateway_deaths", "Gateways that ended without being told to."),
)

BY_NAME = {metric.name: metric for metric in METRICS}
MAX_SERIES = sum(metric.max_series for metric in METRICS)
"""The most time series that one daemon can make."""


class Report:
    """A reading of metrics under way."""

    def __init__(self) -> None:
        self._samples: dict[str, dict[tuple[str, ...], Sample]] = {metric.name: {} for metric in METRICS}

    def put(self, name: str, value: float, **labels: str) -> None:
        """One value of a metric. Raises ValueError for a metric or label that the table does not allow."""
        self._add(name, Sample(labels=labels, value=float(value)))

    def put_each(self, name: str, label: str, values: Iterable[tuple[str, float]]) -> None:
        """One value for each value of the label."""
        for key, value in values:
            self.put(name, value, **{label: key})

    def put_histogram(self, name: str, *, counts: Iterable[int], total: float, **labels: str) -> None:
        """A histogram: how many values fell into each bucket, the one beyond the last bound too, and their sum."""
        buckets: list[tuple[float, int]] = []
        running = 0
        for bound, count in zip((*BY_NAME[name].buckets, float("inf")), counts, strict=True):
            running += count
            buckets.append((bound, running))
        self._add(name, Sample(labels=labels, value=total, buckets=tuple(buckets), count=running))

    def _add(self, name: str, sample: Sample) -> None:
        metric, found = BY_NAME.get(name), self._samples.get(name, {})
        if metric is None or set(sample.labels) != {label.name for label in metric.labels}:
            raise ValueError(f"metric {name} with labels {sorted(sample.labels)} is not in the table")
        for label in metric.labels:
            if label.values and sample.labels[label.name] not in label.values:
                raise ValueError(f"metric {name}: label {label.name} may not be {sample.labels[label.name]!r}")
        found[tuple(sample.labels.values())] = sample
        if len(found) * (1 if not metric.buckets else len(metric.buckets) + 3) > metric.max_series:
            raise ValueError(f"metric {name} has more than {metric.max_series} series")

    def finish(self) -> MetricsReport:
        """All metrics, in the table's order. One that nobody put is left out."""
        return MetricsReport(
            families=tuple(
                MetricFamily(name=m.name, kind=m.kind, help=m.help, samples=tuple(self._samples[m.name].values()))
                for m in METRICS
                if self._samples[m.name]
            )
        )
