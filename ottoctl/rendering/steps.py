"""The steps of workflows: a line for each of their events, and the table of where a workflow is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from ottoctl.rendering.amounts import duration, in_seconds, spent_micros, usd
from ottoctl.rendering.ansi import one_line
from ottoctl.rendering.table import Cell, render_table
from ottod.protocol import journal as j
from ottod.protocol.events import (
    BlockEnded,
    CompensationEnded,
    CompensationStarted,
    Event,
    IterationStarted,
    StepEnded,
    StepSkipped,
    StepStarted,
    Unknown,
)
from ottod.protocol.results import SessionInfo
from ottod.protocol.workflows import Step, WorkflowSpec
from ottod.settings.workflow_tree import is_block

STEP_TOOL = "step"
"""What is asked for when a step is, and not a tool."""
_ITERATION = re.compile(r"\[\d+\]")
STYLES = {
    "completed": "green",
    "undone": "yellow",
    "failed": "red",
    "refused": "red",
    "cancelled": "yellow",
    "asks": "yellow",
    "running": "cyan",
    "approved": "cyan",
}
NOT_BEGUN = ("skipped", "approved")
MARKS = {"completed": "✓", "failed": "✗", "cancelled": "■"}


def step_line(event: Event | Unknown) -> tuple[str, str] | None:
    """The line and the style of an event of a workflow; None for any other."""
    match event:
        case StepStarted():
            again = f", attempt {event.attempt}" if event.attempt > 1 else ""
            return f"▸ {one_line(event.path)} · {one_line(event.agent)}{again}", "dim"
        case StepEnded():
            return _ended(event)
        case StepSkipped():
            return f"- {one_line(event.path)} skipped: {one_line(event.reason)}", "dim"
        case IterationStarted():
            return f"↻ {one_line(event.path) or 'loop'}: iteration {event.iteration} of at most {event.of}", "dim"
        case BlockEnded() if event.outcome != "completed":
            why = f": {one_line(event.failure.message)}" if event.failure is not None else ""
            return f"{MARKS[event.outcome]} {one_line(event.path)} {event.outcome}{why}", "red"
        case CompensationStarted():
            return f"↶ undoing {one_line(event.path)} · {one_line(event.agent)}", "yellow"
        case CompensationEnded():
            how = "undone" if event.outcome == "completed" else "not undone"
            return f"↶ {one_line(event.path)} {how}", "yellow" if how == "undone" else "red"
        case _:
            return None


def _ended(event: StepEnded) -> tuple[str, str]:
    words = [f"{MARKS[event.outcome]} {one_line(event.path)}"]
    if event.artifacts:
        words.append(", ".join(map(one_line, event.artifacts)))
    if event.failure is not None and event.failure.message:
        words.append(one_line(event.failure.message))
    words.append(duration(event.duration_ms / 1000))
    if event.retry_ms:
        words.append(f"again in {in_seconds(event.retry_ms / 1000)}")
    return " · ".join(words), STYLES[event.outcome]


class StepRow(msgspec.Struct, frozen=True, kw_only=True):
    """Where one attempt of a step is. `usd_micros` is None where no price is known."""

    path: str
    attempt: int
    state: str
    agent: str = ""
    session: str = ""
    seconds: float = 0.0
    usd_micros: int | None = None
    tokens: int = 0
    artifacts: tuple[str, ...] = ()
    note: str = ""


def step_rows(
    entries: Iterable[j.JournalEntry], sessions: Mapping[str, SessionInfo], *, now_ns: int, paused: str = ""
) -> list[StepRow]:
    """The rows of a workflow, as its steps began: from its journal, and what is known of its sessions.

    `paused` is its id while it is: what was approved meanwhile says how it goes on.
    """
    going_on = f"goes on with: ottoctl unpause {paused}" if paused else ""
    entries = list(_with_inherited(entries))
    rows: dict[tuple[str, int, bool], StepRow] = {}
    begun_ns: dict[tuple[str, int, bool], int] = {}
    keys = {child.key: child.child for child in entries if isinstance(child, j.ChildStarted)}
    for entry in entries:
        match entry:
            case j.StepBegun() | j.CompensationBegun():
                is_undo = isinstance(entry, j.CompensationBegun)
                key = entry.path, entry.attempt, is_undo
                child = keys.get(f"{'undo:' if is_undo else ''}{entry.path}#{entry.attempt}", "")
                begun_ns[key] = entry.at_ns
                # What waited for its turn, or had none in a workflow that has ended, has it now: the step, or the
                # blocks around it.
                for over in [k for k, row in rows.items() if row.state in NOT_BEGUN and _is_at(k[0], entry.path)]:
                    del rows[over]
                rows[key] = StepRow(
                    path=entry.path,
                    attempt=entry.attempt,
                    state="undoing" if is_undo else "running",
                    agent=entry.agent,
                    session=child,
                    seconds=max(0, now_ns - entry.at_ns) / 1e9,
                )
            case j.StepEnded() | j.CompensationEnded():
                is_undo = isinstance(entry, j.CompensationEnded)
                key = entry.path, entry.attempt, is_undo
                known = rows.get(key) or StepRow(path=entry.path, attempt=entry.attempt, state="")
                done = "undone" if entry.outcome == "completed" else "not undone"
                rows[key] = msgspec.structs.replace(
                    known,
                    state=done if is_undo else entry.outcome,
                    session=entry.session or known.session,
                    seconds=max(0, entry.at_ns - begun_ns.get(key, entry.at_ns)) / 1e9,
                    artifacts=entry.artifacts if isinstance(entry, j.StepEnded) else (),
                    note=entry.failure.message if entry.failure is not None else "",
                )
            case j.StepAnswered():
                state, note = ("approved", going_on) if entry.failure is None else ("refused", entry.failure.message)
                rows[entry.path, 0, False] = StepRow(path=entry.path, attempt=0, state=state, note=note)
            case j.StepSkipped():
                row = StepRow(path=entry.path, attempt=0, state="skipped", note=entry.reason)
                rows[entry.path, 0, False] = row
            case _:
                pass
    return [_with_cost(row, sessions.get(row.session)) for row in rows.values()]


def waiting_rows(info: SessionInfo, spec: WorkflowSpec | None, begun: Iterable[StepRow]) -> list[StepRow]:
    """The rows of what has not begun: steps and blocks that wait for permission, then all other steps.

    Within a loop a step is there once, without an iteration. Without the `spec` only those that ask are known.
    """
    rows = [
        StepRow(
            path=asked.call,
            attempt=0,
            state="asks",
            note=f"ottoctl approve {asked.approval}" + (f" ({asked.reason})" if asked.reason else ""),
        )
        for asked in info.approvals
        if asked.tool == STEP_TOOL
    ]
    known = {_ITERATION.sub("", row.path) for row in (*begun, *rows)}
    state = "not begun" if info.cause is not None else "pending"
    for path, step in _written_steps(spec.steps if spec is not None else ()):
        parts = path.split("/")
        if not known & {"/".join(parts[:i]) for i in range(1, len(parts) + 1)}:
            rows.append(StepRow(path=path, attempt=0, state=state, agent=step.agent))
    return rows


def _written_steps(steps: Iterable[Step], above: str = "") -> Iterator[tuple[str, Step]]:
    """Every step that is no block, by its path as it is written."""
    for step in steps:
        path = f"{above}{step.id}"
        if is_block(step):
            yield from _written_steps(step.steps, f"{path}/")
        else:
            yield path, step


def _is_at(above: str, path: str) -> bool:
    """Whether a path is that of a node, or of what is within it."""
    return path == above or path.startswith((f"{above}/", f"{above}["))


def _with_inherited(entries: Iterable[j.JournalEntry]) -> Iterator[j.JournalEntry]:
    """With what a workflow that it goes on from had done, which stands in what the journal begins with."""
    for entry in entries:
        if isinstance(entry, j.Snapshot) and entry.origin:
            yield from entry.workflow
        yield entry


def _with_cost(row: StepRow, info: SessionInfo | None) -> StepRow:
    if info is None:
        return row
    return msgspec.structs.replace(row, usd_micros=spent_micros(info.usage), tokens=info.usage.total_tokens)


def steps_table(rows: Iterable[StepRow], *, width: int, color: bool) -> str:
    """The rows as a table."""
    shown = [
        (
            one_line(row.path) + (f" #{row.attempt}" if row.attempt > 1 else ""),
            Cell(row.state, STYLES.get(row.state, "")),
            one_line(row.agent),
            row.session,
            duration(row.seconds) if row.attempt else "",
            usd(row.usd_micros) if row.session else "",
            one_line(", ".join(row.artifacts) or row.note),
        )
        for row in rows
    ]
    header = ("STEP", "STATE", "AGENT", "SESSION", "TIME", "COST", "LEFT")
    return render_table(header, shown, width=width, color=color, right=frozenset({4, 5}))


def steps_record(info: SessionInfo, rows: Iterable[StepRow]) -> dict[str, Any]:
    """A workflow's status as JSON shows it."""
    return {
        "session": info.session,
        "workflow": info.agent,
        "state": info.state,
        "cause": msgspec.to_builtins(info.cause),
        "backlog": msgspec.to_builtins(info.backlog),
        "steps": [msgspec.to_builtins(row) for row in rows],
    }
