"""The one-line notices: events that are worth a line of their own, and nothing more."""

from __future__ import annotations

from typing import NamedTuple

from ottoctl.rendering.amounts import duration, tokens, usd
from ottoctl.rendering.ansi import one_line
from ottoctl.rendering.tools import argument_summary
from ottod.protocol.events import (
    ApprovalRequested,
    ApprovalResolved,
    ArtifactWritten,
    BreakerStateChanged,
    BudgetWarning,
    ChildExited,
    ChildStarted,
    Event,
    Gap,
    InputRequested,
    LogError,
    LogWarning,
    MessageSent,
    ModelRerouted,
    ModelRetried,
    ProviderNotice,
    SessionStarted,
    SessionStateChanged,
    TurnCancelled,
    TurnFailed,
    Unknown,
)


class Notice(NamedTuple):
    """A line and its style."""

    text: str
    style: str


def notice_of(event: Event | Unknown) -> Notice | None:
    """The line for an event, or None for events that show in another way or not at all."""
    match event:
        case Gap():
            count = event.last - event.first + 1
            whose = f" of {event.session}" if event.session else ""
            return Notice(f"… up to {count} events{whose} are missing ({event.reason})", "yellow")
        case ModelRetried():
            why = event.failure.code or one_line(event.failure.message)
            return Notice(
                f"↻ {event.model}: {why}; attempt {event.attempt + 1} in {duration(event.delay_ms / 1000)}", "yellow"
            )
        case ModelRerouted():
            why = f" ({one_line(event.reason)})" if event.reason else ""
            return Notice(f"↷ {event.to_model} answers for {event.from_model}{why}", "yellow")
        case BreakerStateChanged():
            return Notice(f"⚡ {event.provider} {event.model}: circuit {event.state}", "yellow")
        case BudgetWarning():
            return Notice(f"! budget: {_amount(event, event.spent)} of {_amount(event, event.limit)} used", "yellow")
        case LogWarning():
            return Notice(f"! {one_line(event.message)}", "yellow")
        case LogError():
            return Notice(f"✗ {one_line(event.message)}", "red")
        case TurnFailed():
            mend = f" ({one_line(event.failure.mend)})" if event.failure.mend else ""
            return Notice(f"✗ turn {event.turn} failed: {one_line(event.failure.message)}{mend}", "red")
        case TurnCancelled():
            why = f": {one_line(event.reason)}" if event.reason else ""
            return Notice(f"■ turn {event.turn} cancelled{why}", "yellow")
        case _:
            return _about_others(event)


def _about_others(event: Event | Unknown) -> Notice | None:
    match event:
        case ApprovalRequested():
            what = f"{event.tool} {argument_summary(event.arguments)}".strip()
            return Notice(f"? {what} needs approval {event.approval}", "yellow")
        case ApprovalResolved():
            return Notice(f"? {event.approval} {event.decision}{f' by {event.by}' if event.by else ''}", "dim")
        case InputRequested():
            choices = f" [{' / '.join(map(one_line, event.choices))}]" if event.choices else ""
            return Notice(f"? {one_line(event.prompt)}{choices}", "yellow")
        case ArtifactWritten():
            return Notice(f"+ {one_line(event.name)} {one_line(event.path)}".rstrip(), "dim")
        case ChildStarted():
            return Notice(f"↳ {event.agent} started as {event.child}", "dim")
        case ChildExited():
            return Notice(f"↳ {event.child} {event.cause}", "dim")
        case MessageSent():
            return Notice(f"→ {event.to}: {one_line(event.text)}", "dim")
        case ProviderNotice() if event.message:
            return Notice(f"· {event.provider}: {one_line(event.message)}", "dim")
        case SessionStarted() if event.incarnation > 1:
            return Notice(f"↻ restarted, incarnation {event.incarnation}", "yellow")
        case SessionStateChanged() if event.state in ("parked", "paused", "restarting"):
            why = f": {one_line(event.reason)}" if event.reason else ""
            return Notice(f"■ {event.state}{why}", "red" if event.state == "parked" else "yellow")
    return None


def _amount(event: BudgetWarning, value: int) -> str:
    if event.budget == "usd_micros":
        return usd(value)
    return duration(value) if event.budget == "seconds" else f"{tokens(value)} tokens"
