"""How long agents take: model calls, tool calls, turns, waits for permission.

Fed with the events that root folds into its session table, each once. What stands in them is a worker's word, so the
names that become labels are bounded here: the first models have series of their own, later ones share one; tools that
are not built in share one as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ottod.protocol import events as ev
from ottod.protocol.results import SessionInfo
from ottod.settings.names import BUILTIN_TOOL_NAMES
from ottod.telemetry.catalogue import (
    BY_NAME,
    MAX_MODELS,
    MAX_TOOLS,
    OTHER,
    TOOL_OUTCOMES,
    TURN_OUTCOMES,
    Report,
)
from ottod.telemetry.instruments import Histogram

MAX_LABEL_CHARS = 80
MAX_COUNT = 2**53
"""Of anything that a worker claims in one event."""
OUTCOME_OF_CODE = {
    "timeout": "timeout",
    "cancelled": "cancelled",
    "denied": "denied",
    "expired": "denied",
    "approval_unavailable": "denied",
    "tool_crashed": "crashed",
    "unknown": "unknown",
}
"""Failures of a tool call that are told apart; all others are `failed`."""


class ModelInstruments:
    """One set for each root."""

    def __init__(self) -> None:
        self._calls: dict[str, Histogram] = {}
        self._first_tokens: dict[str, Histogram] = {}
        self._tools: dict[tuple[str, str], int] = {}
        self._tool_seconds = Histogram(BY_NAME["otto_tool_call_seconds"].buckets)
        self._turns = {outcome: Histogram(BY_NAME["otto_turn_seconds"].buckets) for outcome in TURN_OUTCOMES}
        self._waits = Histogram(BY_NAME["otto_approval_wait_seconds"].buckets)
        self._observers: dict[type, Callable[[SessionInfo, Any, int], None]] = {
            ev.UsageUpdated: self._used,
            ev.ToolCompleted: self._tool_completed,
            ev.ToolFailed: self._tool_failed,
            ev.TurnCompleted: lambda info, event, at_ns: self._turn("completed", event.duration_ms),
            ev.TurnFailed: lambda info, event, at_ns: self._turn("failed", event.duration_ms),
            ev.TurnCancelled: lambda info, event, at_ns: self._turn("cancelled", event.duration_ms),
            ev.ApprovalResolved: self._resolved,
        }

    def observe(self, info: SessionInfo, event: ev.Event | ev.Unknown, at_ns: int) -> None:
        """Counts one event. `info` is the session before it."""
        observer = self._observers.get(type(event))
        if observer is not None:
            observer(info, event, at_ns)

    def _used(self, info: SessionInfo, event: ev.UsageUpdated, at_ns: int) -> None:
        if not event.usage.calls:
            return  # A resumed session says what it had consumed before.
        model = self._model(event.provider, event.model)
        self._calls[model].observe(_bounded(event.duration_ms) / 1e3)
        if event.first_token_ms is not None:
            self._first_tokens[model].observe(_bounded(event.first_token_ms) / 1e3)

    def _model(self, provider: str, model: str) -> str:
        # A scripted model is named by its file, and paths are no labels.
        name = f"{provider}:{'script' if model.startswith('/') else model}"[:MAX_LABEL_CHARS]
        if name not in self._calls and len(self._calls) >= MAX_MODELS - 1:
            name = OTHER
        if name not in self._calls:
            self._calls[name] = Histogram(BY_NAME["otto_model_call_seconds"].buckets)
            self._first_tokens[name] = Histogram(BY_NAME["otto_model_first_token_seconds"].buckets)
        return name

    def _tool_completed(self, info: SessionInfo, event: ev.ToolCompleted, at_ns: int) -> None:
        self._tool(event.tool, "completed", event.duration_ms)

    def _tool_failed(self, info: SessionInfo, event: ev.ToolFailed, at_ns: int) -> None:
        self._tool(event.tool, OUTCOME_OF_CODE.get(event.failure.code, "failed"), event.duration_ms)

    def _tool(self, tool: str, outcome: str, duration_ms: int) -> None:
        key = (tool if tool in BUILTIN_TOOL_NAMES[: MAX_TOOLS - 1] else OTHER, outcome)
        self._tools[key] = self._tools.get(key, 0) + 1
        self._tool_seconds.observe(_bounded(duration_ms) / 1e3)

    def _turn(self, outcome: str, duration_ms: int) -> None:
        self._turns[outcome].observe(_bounded(duration_ms) / 1e3)

    def _resolved(self, info: SessionInfo, event: ev.ApprovalResolved, at_ns: int) -> None:
        for pending in info.approvals:
            if pending.approval == event.approval:
                self._waits.observe(max(0.0, (at_ns - pending.asked_at_ns) / 1e9))

    def read(self, report: Report) -> None:
        """Puts everything into a report."""
        for model, histogram in self._calls.items():
            _put(report, "otto_model_call_seconds", histogram, model=model)
        for model, histogram in self._first_tokens.items():
            _put(report, "otto_model_first_token_seconds", histogram, model=model)
        for tool in (*BUILTIN_TOOL_NAMES[: MAX_TOOLS - 1], OTHER):
            for outcome in TOOL_OUTCOMES:
                if (tool, outcome) in self._tools or outcome == "completed":
                    report.put("otto_tool_calls", self._tools.get((tool, outcome), 0), tool=tool, outcome=outcome)
        _put(report, "otto_tool_call_seconds", self._tool_seconds)
        for outcome, histogram in self._turns.items():
            _put(report, "otto_turn_seconds", histogram, outcome=outcome)
        _put(report, "otto_approval_wait_seconds", self._waits)


def _put(report: Report, name: str, histogram: Histogram, **labels: str) -> None:
    report.put_histogram(name, counts=tuple(histogram.counts), total=histogram.total, **labels)


def _bounded(count: int) -> int:
    """A worker's number, such that no counter goes back and none becomes infinite."""
    return min(max(0, count), MAX_COUNT)
