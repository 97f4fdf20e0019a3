"""What root counts as it goes: the part of the metrics that cannot be read off its state.

Plain integers and lists in one process; nothing here allocates per event, takes a lock or can fail for what a session
does. Each counter and histogram has one writer: root's loop, or, for `time_ring_sync`, the one thread that syncs.
What is read while a thread writes may lack its last value, and is consistent in itself.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable
from typing import Literal, TypeVar

from ottod.core.health import WARNING_CODE
from ottod.protocol.cause import CauseKind
from ottod.protocol.usage import Usage
from ottod.telemetry.catalogue import (
    BY_NAME,
    CAUSES,
    HEALTH_KINDS,
    MAX_MODELS,
    MESSAGE_OUTCOMES,
    OTHER,
    TOKEN_KINDS,
    Report,
)

T = TypeVar("T")
MessageOutcome = Literal["delivered", "inbox_full", "rate_limited", "failed"]


class Histogram:
    """How many values fell into each bucket. A value equal to a bound belongs below it, as in Prometheus."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.total += value
        self.counts[bisect_left(self.bounds, value)] += 1


class Instruments:
    """One set for each root. Times in seconds where not said otherwise."""

    def __init__(self) -> None:
        self._started = 0
        self._adopted = 0
        self._parked = 0
        self._memory_kills = 0
        self._ended = dict.fromkeys(CAUSES, 0)
        self._exited = dict.fromkeys(CAUSES, 0)
        self._restarts = dict.fromkeys(CAUSES, 0)
        self._permits = {"granted": 0, "refused": 0}
        self._messages = dict.fromkeys(MESSAGE_OUTCOMES, 0)
        self._model_calls: dict[str, int] = {}
        self._model_tokens: dict[str, dict[str, int]] = {}
        self._model_usd_micros: dict[str, int] = {}
        self._overshot_tokens = 0
        self._overshot_usd_micros = 0
        self._findings: dict[str, int] = dict.fromkeys(HEALTH_KINDS, 0)
        self._fsyncs = 0
        self._fsync_ns = 0
        self._spawn = Histogram(BY_NAME["otto_spawn_seconds"].buckets)
        self._ring_fsync = Histogram(BY_NAME["otto_ring_fsync_seconds"].buckets)

    # ------------------------------------------------------------ sessions

    def session_started(self) -> None:
        """A session was created."""
        self._started += 1

    def session_exited(self, cause: CauseKind) -> None:
        """A session has ended, once and for all."""
        self._ended[cause] += 1

    def incarnation_exited(self, cause: CauseKind) -> None:
        """A worker's process has ended, whether or not its session goes on."""
        self._exited[cause] += 1

    def restarted(self, cause: CauseKind) -> None:
        """A next incarnation was ordered after one that ended with `cause`."""
        self._restarts[cause] += 1

    def memory_killed(self) -> None:
        """A session was at its memory cap, and its processes were killed by the kernel or by root."""
        self._memory_kills += 1

    def parked(self) -> None:
        """A session used up its restarts."""
        self._parked += 1

    def warned(self, code: str) -> None:
        """A session gave a warning; those of agents that get nowhere are counted."""
        kind = code.removeprefix(WARNING_CODE)
        if kind != code and kind in self._findings:
            self._findings[kind] += 1

    def adopted(self, count: int) -> None:
        """That many running sessions were taken over from an earlier root."""
        self._adopted += count

    def spawn_seconds(self, seconds: float) -> None:
        """A worker was ready this long after it had been asked for."""
        self._spawn.observe(seconds)

    def message(self, outcome: MessageOutcome) -> None:
        """A message from one session to another has arrived, or will not."""
        self._messages[outcome] += 1

    # ------------------------------------------------------------ money

    def permit_granted(self) -> None:
        """An attempt of a model call may be made."""
        self._permits["granted"] += 1

    def permit_refused(self) -> None:
        """An attempt of a model call may not be made."""
        self._permits["refused"] += 1

    def model_called(self, model: str, usage: Usage) -> None:
        """An attempt is over and was paid for, in truth or as is presumed."""
        if model not in self._model_calls and len(self._model_calls) >= MAX_MODELS - 1:
            model = OTHER
        self._model_calls[model] = self._model_calls.get(model, 0) + 1
        self._model_usd_micros[model] = self._model_usd_micros.get(model, 0) + (usage.usd_micros or 0)
        tokens = self._model_tokens.setdefault(model, dict.fromkeys(TOKEN_KINDS, 0))
        tokens["input"] += usage.input_tokens
        tokens["output"] += usage.output_tokens
        tokens["cache_read"] += usage.cache_read_tokens
        tokens["cache_write"] += usage.cache_write_tokens

    def budget_overshot(self, tokens: int, usd_micros: int) -> None:
        """A call consumed that much more than was reserved for it."""
        self._overshot_tokens += tokens
        self._overshot_usd_micros += usd_micros

    # ------------------------------------------------------------ disks

    def journal_fsyncs(self, count: int, took_ns: int) -> None:
        """A worker has forced its journal to disk `count` more times, which took `took_ns` together.

        The numbers are the worker's own; what would make a counter go back is ignored.
        """
        if count > 0 and took_ns >= 0:
            self._fsyncs += count
            self._fsync_ns += took_ns

    def time_ring_sync(self, sync: Callable[[], T]) -> T:
        """Runs `sync`, which blocks, and notes how long it took. For one thread at a time; what it raises passes."""
        started_ns = time.perf_counter_ns()
        try:
            return sync()
        finally:
            self._ring_fsync.observe((time.perf_counter_ns() - started_ns) / 1e9)

    # ------------------------------------------------------------ reading

    def read(self, report: Report) -> None:
        """Puts everything into a report."""
        report.put("otto_sessions_started", self._started)
        report.put("otto_sessions_adopted", self._adopted)
        report.put("otto_sessions_parked", self._parked)
        report.put("otto_memory_kills", self._memory_kills)
        report.put_each("otto_unhealthy_findings", "kind", self._findings.items())
        report.put_each("otto_sessions_ended", "cause", self._ended.items())
        report.put_each("otto_incarnations_exited", "cause", self._exited.items())
        report.put_each("otto_restarts", "cause", self._restarts.items())
        report.put_each("otto_messages", "outcome", self._messages.items())
        report.put_each("otto_permits", "outcome", self._permits.items())
        report.put_each("otto_model_calls", "model", self._model_calls.items())
        for model, usd_micros in self._model_usd_micros.items():
            report.put("otto_model_usd", usd_micros / 1e6, model=model)
            for kind, tokens in self._model_tokens[model].items():
                report.put("otto_model_tokens", tokens, model=model, kind=kind)
        report.put("otto_budget_overshoot_tokens", self._overshot_tokens)
        report.put("otto_budget_overshoot_usd", self._overshot_usd_micros / 1e6)
        report.put("otto_journal_fsyncs", self._fsyncs)
        report.put("otto_journal_fsync_seconds", self._fsync_ns / 1e9)
        for name, histogram in (("otto_spawn_seconds", self._spawn), ("otto_ring_fsync_seconds", self._ring_fsync)):
            report.put_histogram(name, counts=tuple(histogram.counts), total=histogram.total)
