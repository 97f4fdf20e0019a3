"""One reading of all metrics: what root counted, and what its parts look like now.

`collect` runs on root's loop and touches memory only. What needs the kernel, `read_process`, is read before it on a
thread. Its cost grows with the sessions that live and the subscriptions that are open, and with nothing else.
"""

from __future__ import annotations

import os
import platform
import resource
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import zmq

from ottod import __version__
from ottod.protocol.results import MetricsReport
from ottod.root.control_gate import ControlGate
from ottod.root.gateway_client import GatewayClient
from ottod.root.hub import RETRY_S, Hub, Subscription
from ottod.root.lag import LoopLag
from ottod.root.mail import Mail
from ottod.root.permits import Permits
from ottod.root.provider_gate import ProviderGate
from ottod.root.reaper import Reaper
from ottod.root.session_table import SessionTable
from ottod.root.worker_gate import WorkerGate
from ottod.root.zygote_client import ZygoteClient
from ottod.storage.database import DatabaseStats
from ottod.telemetry.catalogue import BACKLOG_KINDS, LIVE_STATES, MAX_LAYERS, MAX_MODELS, OTHER, Report
from ottod.telemetry.instruments import Instruments
from ottod.telemetry.model_instruments import ModelInstruments


class ProcessReading(NamedTuple):
    """Root's own use of the machine."""

    cpu_s: float
    resident_bytes: int
    open_fds: int
    max_fds: int
    threads: int


class SubscriberLag(NamedTuple):
    """How far the readers of the ring are behind."""

    starved: int
    blocked: int
    max_events: int


def collect(
    *,
    instruments: Instruments,
    models: ModelInstruments,
    process: ProcessReading,
    started_at_ns: int,
    table: SessionTable,
    hub: Hub,
    subscriptions: Iterable[Subscription],
    control: ControlGate,
    workers: WorkerGate,
    zygote: ZygoteClient,
    reaper: Reaper,
    lag: LoopLag,
    database: DatabaseStats,
    gateway: GatewayClient,
    permits: Permits,
    mail: Mail,
    providers: ProviderGate,
    isolation: Mapping[str, str],
) -> MetricsReport:
    """Reads everything. `isolation` is what the probe said, by layer: `yes…`, `partly…` or `no…`."""
    report = Report()
    report.put("otto_build", 1, version=__version__, python=platform.python_version(), zmq=zmq.zmq_version())
    report.put("otto_start_time_seconds", started_at_ns / 1e9)
    instruments.read(report)
    models.read(report)
    _read_sessions(report, table)
    report.put("otto_messages_waiting", mail.waiting)
    report.put("otto_permits_waiting", permits.waiting_count)
    report.put("otto_permits_open", permits.open_count)
    _read_workers(report, zygote, reaper, workers)
    _read_ring(report, hub)
    _read_clients(report, hub, control, workers, subscriptions)
    _read_root(report, lag, database, process)
    _read_providers(report, providers)
    report.put("otto_gateway_up", gateway.pid != 0)
    report.put("otto_gateway_deaths", gateway.deaths)
    for layer in sorted(isolation)[:MAX_LAYERS]:
        report.put("otto_isolation_layer", _given(isolation[layer]), layer=layer)
    return report.finish()


def read_process() -> ProcessReading:
    """Reads this process's figures from the kernel. Blocks for as long as /proc takes; for a thread."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    with open("/proc/self/statm", encoding="ascii") as statm:
        resident_pages = int(statm.read().split()[1])
    return ProcessReading(
        cpu_s=usage.ru_utime + usage.ru_stime,
        resident_bytes=resident_pages * os.sysconf("SC_PAGE_SIZE"),
        # One of them is the directory that is being listed.
        open_fds=len(os.listdir("/proc/self/fd")) - 1,
        max_fds=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        threads=len(os.listdir("/proc/self/task")),
    )


def measure_lag(subscriptions: Iterable[Subscription], *, head: int) -> SubscriberLag:
    """The lag of all subscriptions, where `head` is the offset behind the newest event that may be delivered.

    A subscription that is live has been handed everything; one that is not has its cursor. For a subscription to one
    session the distance counts other sessions' events too, so it is an upper bound.
    """
    starved = blocked = max_events = 0
    for sub in subscriptions:
        starved += sub.credit <= 0
        blocked += sub.retry_s > RETRY_S
        if not sub.is_live:
            max_events = max(max_events, head - sub.cursor)
    return SubscriberLag(starved, blocked, max_events)


def _read_sessions(report: Report, table: SessionTable) -> None:
    states: Counter[str] = Counter()
    waiting: Counter[str] = Counter()
    total_bytes = largest_bytes = processes = 0
    asked_at_ns: list[int] = []
    for session in table.live:
        states[session.info.state] += 1
        asked_at_ns += [pending.asked_at_ns for pending in session.info.approvals if pending.answer is None]
        if session.info.backlog is not None:
            waiting["steps" if session.info.kind == "workflow" else "calls"] += session.info.backlog.waiting
        if (reading := session.reading) is not None:
            total_bytes += reading.memory_bytes
            largest_bytes = max(largest_bytes, reading.memory_bytes)
            processes += reading.processes
    report.put_each("otto_sessions", "state", ((state, states[state]) for state in LIVE_STATES))
    report.put_each("otto_backlog", "kind", ((kind, waiting[kind]) for kind in BACKLOG_KINDS))
    report.put("otto_sessions_memory_bytes", total_bytes)
    report.put("otto_session_memory_bytes_max", largest_bytes)
    report.put("otto_sessions_processes", processes)
    report.put("otto_approvals_pending", len(asked_at_ns))
    report.put("otto_approval_oldest_age_seconds", _age_s(asked_at_ns))


def _read_providers(report: Report, gate: ProviderGate) -> None:
    """By the names that the configuration has, as many as the table has room for; all others together."""
    states = {"closed": 0.0, "half_open": 0.5, "open": 1.0}
    named = {f"{provider}:{model}" for provider, model in gate.named_models}
    kept = set(sorted(named)[: MAX_MODELS - 1])
    found: dict[str, list[float]] = {}
    for provider in gate.read().providers:
        for line in provider.models:
            name = f"{provider.provider}:{line.model}"
            sums = found.setdefault(name if name in kept else OTHER, [0.0, 0.0, 0.0, 0.0])
            sums[0] = max(sums[0], states[line.breaker])
            sums[1] += line.running
            sums[2] += line.waiting
            sums[3] = max(sums[3], line.oldest_wait_ms / 1e3)
    for model, (state, running, waiting, oldest_s) in sorted(found.items()):
        report.put("otto_breaker_state", state, model=model)
        report.put("otto_model_calls_running", running, model=model)
        report.put("otto_model_calls_waiting", waiting, model=model)
        report.put("otto_model_call_oldest_wait_seconds", oldest_s, model=model)
    report.put("otto_breakers_opened", gate.opened)


def _read_workers(report: Report, zygote: ZygoteClient, reaper: Reaper, workers: WorkerGate) -> None:
    report.put("otto_zygote_up", zygote.pid != 0)
    report.put("otto_zygote_generation", zygote.generation)
    report.put("otto_zygote_deaths", zygote.deaths)
    report.put("otto_warm_workers", zygote.warm_count)
    report.put("otto_strangers_reaped", reaper.strangers_reaped)
    report.put("otto_batches_received", workers.batches)


def _read_ring(report: Report, hub: Hub) -> None:
    stats = hub.ring.stats()
    report.put("otto_events_appended", hub.events_appended)
    report.put("otto_ring_size_bytes", stats.size_bytes)
    report.put("otto_ring_used_bytes", stats.used_bytes)
    report.put("otto_ring_head_offset", stats.head_offset)
    report.put("otto_ring_tail_offset", stats.tail_offset)
    report.put("otto_ring_sessions", stats.sessions)
    report.put("otto_ring_unsynced_events", max(0, stats.head_offset - 1 - stats.synced_offset))
    report.put("otto_ring_evicted_segments", stats.evicted_segments)
    report.put("otto_gaps_sent", hub.gaps_sent)


def _read_clients(
    report: Report, hub: Hub, control: ControlGate, workers: WorkerGate, subscriptions: Iterable[Subscription]
) -> None:
    lag = measure_lag(subscriptions, head=hub.head)
    report.put("otto_clients", control.client_count)
    report.put("otto_subscriptions", hub.subscription_count)
    report.put("otto_subscriptions_starved", lag.starved)
    report.put("otto_subscriptions_blocked", lag.blocked)
    report.put("otto_subscriber_lag_events_max", lag.max_events)
    report.put("otto_subscriber_lag_bytes_max", _bytes_of(lag.max_events, hub))
    report.put("otto_bad_messages", control.bad_messages, peer="client")
    report.put("otto_bad_messages", workers.rejected_messages, peer="worker")


def _read_root(report: Report, lag: LoopLag, database: DatabaseStats, process: ProcessReading) -> None:
    report.put("otto_loop_lag_p50_seconds", lag.percentile_ms(0.50) / 1e3)
    report.put("otto_loop_lag_p99_seconds", lag.percentile_ms(0.99) / 1e3)
    report.put("otto_loop_lag_max_seconds", lag.max_ms / 1e3)
    report.put("otto_database_commits", database.commits)
    report.put("otto_database_errors", database.errors)
    report.put("otto_database_unwritten_rows", database.dirty_rows)
    report.put("otto_database_pending_jobs", database.pending_jobs)
    report.put("otto_process_cpu_seconds", process.cpu_s)
    report.put("otto_process_resident_memory_bytes", process.resident_bytes)
    report.put("otto_process_open_fds", process.open_fds)
    report.put("otto_process_max_fds", process.max_fds)
    report.put("otto_process_threads", process.threads)


def _age_s(asked_at_ns: list[int]) -> float:
    """Of the oldest, by the wall clock: an approval may be older than root. 0 without any."""
    return max(0.0, (time.time_ns() - min(asked_at_ns)) / 1e9) if asked_at_ns else 0.0


def _bytes_of(events: int, hub: Hub) -> float:
    """About how many bytes of records that many events are; never more than the ring holds."""
    stats = hub.ring.stats()
    if hub.events_appended:
        mean_bytes = stats.appended_bytes / hub.events_appended
    else:
        mean_bytes = stats.used_bytes / max(1, stats.head_offset - stats.tail_offset)
    return float(min(stats.used_bytes, events * mean_bytes))


def _given(answer: str) -> float:
    return 1.0 if answer.startswith("yes") else 0.5 if answer.startswith("partly") else 0.0
