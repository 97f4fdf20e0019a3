"""The one-line notices: events that are worth a line of their own, and nothing more."""

from __future__ import annotations

from typing import NamedTuple

from ottoctl.rendering.amounts import duration, in_seconds, size, tokens, usd
from ottoctl.rendering.ansi import one_line
from ottoctl.rendering.steps import step_line
from ottoctl.rendering.tools import call_and_claims
from ottod.errors import Failure
from ottod.protocol.cause import COUNTED_AS_CRASH, Cause
from ottod.protocol.events import (
    ApprovalRequested,
    ApprovalResolved,
    ArtifactDelivered,
    ArtifactUndelivered,
    ArtifactWritten,
    BreakerStateChanged,
    BudgetWarning,
    ChildExited,
    ChildStarted,
    ConversationHandedOver,
    DecisionLogged,
    Event,
    Gap,
    IncarnationExited,
    InputRequested,
    ItemCompleted,
    LogError,
    LogWarning,
    MessageSent,
    ModelRerouted,
    ModelRetried,
    PolicyDecided,
    ProjectNotesRead,
    ProviderNotice,
    ResearchReused,
    SessionStarted,
    SessionStateChanged,
    TurnCancelled,
    TurnFailed,
    Unknown,
)
from ottod.settings.units import plural


class Notice(NamedTuple):
    """A line and its style."""

    text: str
    style: str


def notice_of(event: Event | Unknown, *, session: str = "") -> Notice | None:
    """The line for an event of a session, or None for events that show in another way or not at all."""
    match event:
        case Gap():
            count = event.last - event.first + 1
            whose = f" of {event.session}" if event.session else ""
            are = "is" if count == 1 else "are"
            return Notice(f"… up to {plural(count, 'event')}{whose} {are} missing ({event.reason})", "yellow")
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
            return Notice(f"✗ turn {event.turn} failed: {failure_words(event.failure)}", "red")
        case TurnCancelled():
            why = f": {one_line(event.reason)}" if event.reason else ""
            return Notice(f"■ turn {event.turn} cancelled{why}", "yellow")
        case _:
            return _about_others(event, session)


def _about_others(event: Event | Unknown, session: str) -> Notice | None:
    match event:
        case ApprovalRequested():
            return _about_question(event)
        case ApprovalResolved():
            by = f" by {one_line(event.by)}" if event.by else ""
            scope = {"session": ", for this session", "agent": ", for the agent"}.get(event.scope, "")
            why = f": {one_line(event.reason)}" if event.reason else ""
            return Notice(f"? {one_line(event.approval)} {event.decision}{by}{scope}{why}", "dim")
        case PolicyDecided() if event.outcome == "granted" and event.grant.startswith("g-"):
            return Notice(f"? {one_line(event.tool)} goes on: {one_line(event.grant)} covers it", "dim")
        case InputRequested():
            choices = f" [{' / '.join(map(one_line, event.choices))}]" if event.choices else ""
            return Notice(f"? {one_line(event.prompt)}{choices}", "yellow")
        case ItemCompleted(kind="compaction"):
            return _about_compaction(event)
        case ArtifactWritten():
            return Notice(f"+ {one_line(event.name)} {one_line(event.path)}".rstrip(), "dim")
        case ArtifactDelivered():
            place = f" at {one_line(event.place)}" if event.place else ""
            note = f": {one_line(event.note)}" if event.note else ""
            what = f"{one_line(event.name)}@{event.version}"
            return Notice(f"⇢ {what} delivered to {one_line(event.sink)}{place}{note}", "yellow" if note else "dim")
        case ArtifactUndelivered():
            again = f"; again in {in_seconds(event.retry_ms / 1000)}" if event.retry_ms else ""
            what = f"{one_line(event.name)}@{event.version}"
            why = one_line(event.failure.message)
            return Notice(f"✗ {what} not delivered to {one_line(event.sink)}: {why}{again}", "red")
        case DecisionLogged():
            return _about_decision(event)
        case ChildStarted():
            return Notice(f"↳ {one_line(event.agent)} started below it as {event.child}", "dim")
        case ChildExited():
            return _about_child(event)
        case ResearchReused():
            return Notice(f"= {one_line(event.agent)} was asked the same before ({event.child})", "dim")
        case ProjectNotesRead():
            part = "" if event.given_bytes >= event.size_bytes else f", the first {size(event.given_bytes)} given"
            return Notice(f"· {one_line(event.path)} read ({size(event.size_bytes)}{part})", "dim")
        case ConversationHandedOver():
            why = f": {one_line(event.reason)}" if event.reason else ""
            return Notice(f"⇢ handed over to {one_line(event.name or event.agent)} ({event.child}){why}", "cyan")
        case MessageSent():
            return Notice(f"→ {event.to}: {one_line(event.text)}", "dim")
        case ProviderNotice() if event.message:
            return Notice(f"· {event.provider}: {one_line(event.message)}", "dim")
        case SessionStarted() if event.incarnation > 1:
            return Notice(f"↻ restarted, incarnation {event.incarnation}", "yellow")
        case IncarnationExited():
            return _about_incarnation(event)
        case SessionStateChanged() if event.state in ("parked", "paused"):
            why = f": {one_line(event.reason)}" if event.reason else ""
            again = f"; `ottoctl session unpark {session}` gives it another try"
            mend = again if event.state == "parked" and session else ""
            return Notice(f"■ {event.state}{why}{mend}", "red" if event.state == "parked" else "yellow")
        case _:
            found = step_line(event)
            return Notice(*found) if found is not None else None
    return None


def failure_words(failure: Failure) -> str:
    """`no room for another call (raise budgets.tokens)`: what is wrong, and what would mend it."""
    mend = f" ({one_line(failure.mend)})" if failure.mend else ""
    return f"{one_line(failure.message)}{mend}"


def cause_words(cause: Cause) -> str:
    """`crashed (SIGKILL)`, `memory (peak 1.2 GiB, cap 1.0 GiB)`, `failed`: the kind, and the fact that counts."""
    if cause.kind == "crashed":
        fact = cause.signal or (f"status {cause.status}" if cause.status is not None else "")
    elif cause.kind == "memory" and cause.cap_bytes:
        peak = f"peak {size(cause.peak_bytes)}, " if cause.peak_bytes else ""
        fact = f"{peak}cap {size(cause.cap_bytes)}" + (f", {one_line(cause.last_tool)}" if cause.last_tool else "")
    else:
        fact = ""
    return f"{cause.kind} ({fact})" if fact else cause.kind


def _about_incarnation(event: IncarnationExited) -> Notice:
    """A process was lost and the session lives: what comes next, and when."""
    following = f"incarnation {event.incarnation + 1}"
    if event.restart == "parked":
        then = "no further try"
    elif event.restart == "group":
        then = f"{following} with its group"
    else:
        then = f"{following} in {in_seconds(event.delay_ms / 1000)}" if event.delay_ms else f"{following} at once"
    left = ""
    if event.remaining_pids:
        left = f"; these processes remain: {', '.join(map(str, event.remaining_pids))}"
    style = "red" if event.restart == "parked" or left else "yellow"
    return Notice(f"✗ {cause_words(event.cause)}: {then}{left}", style)


def _about_question(event: ApprovalRequested) -> Notice:
    """What waits, why somebody is asked, and how to answer."""
    what = call_and_claims(event.tool, event.arguments, event.claims)
    why = f" ({one_line(event.reason)})" if event.reason else ""
    approval = one_line(event.approval)
    return Notice(
        f"? {what} needs approval {approval}{why}: `ottoctl approve {approval}` or `ottoctl deny {approval}`",
        "yellow",
    )


def _about_compaction(event: ItemCompleted) -> Notice:
    before, after = event.data.get("tokens_before"), event.data.get("tokens_after")
    sizes = ""
    if isinstance(before, int) and isinstance(after, int):
        sizes = f" from {tokens(before)} to {tokens(after)} tokens"
    how = "what was said became a summary" if event.data.get("is_summary") else "old tool output was left out"
    return Notice(f"≈ conversation shortened{sizes}: {how}", "dim")


def _about_decision(event: DecisionLogged) -> Notice:
    more = len(event.nodes) - 1
    others = f" and {more} more" if more > 0 else ""
    return Notice(f"+ {one_line(event.kind)} {one_line(event.title)}{others}", "dim")


def _about_child(event: ChildExited) -> Notice:
    why = f": {one_line(event.cause.message)}" if event.cause.message and event.cause.kind != "completed" else ""
    text = f"↳ {event.child} has ended: {cause_words(event.cause)}{why}"
    return Notice(text, "red" if event.cause.kind in COUNTED_AS_CRASH else "dim")


def _amount(event: BudgetWarning, value: int) -> str:
    if event.budget == "usd_micros":
        return usd(value)
    return duration(value) if event.budget == "seconds" else f"{tokens(value)} tokens"
