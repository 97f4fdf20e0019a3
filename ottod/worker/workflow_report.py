"""A workflow's result: one line for each step, in the order of their ends, and what it has left."""

from __future__ import annotations

from collections.abc import Sequence

from ottod.core.workflow_orders import EndWorkflow
from ottod.protocol import journal as j
from ottod.protocol.workflows import WorkflowSpec

MAX_LINE_CHARS = 200
MAX_LINES = 100


def report(spec: WorkflowSpec, past: Sequence[j.WorkflowEntry], end: EndWorkflow | None = None) -> str:
    """The whole of it as text."""
    agents = {(e.path, e.attempt): e.agent for e in past if isinstance(e, j.StepBegun)}
    lines = [line for entry in past if (line := _line(entry, agents))]
    if len(lines) > MAX_LINES:
        lines = [f"… {len(lines) - MAX_LINES} more", *lines[-MAX_LINES:]]
    left = [source for e in past if isinstance(e, j.StepEnded) for source in e.artifacts]
    newest = dict(source.rpartition("@")[::2] for source in left)
    if newest:
        lines.append("artifacts: " + ", ".join(f"{name}@{version}" for name, version in newest.items()))
    if end is not None and end.undone:
        how = "not undone: " if end.outcome == "cancelled" else "could not be undone: "
        lines.append(how + ", ".join(end.undone))
    return "\n".join((spec.name, *lines))


def _line(entry: j.WorkflowEntry, agents: dict[tuple[str, int], str]) -> str:
    match entry:
        case j.StepEnded():
            what = [entry.outcome.ljust(9), entry.path, agents.get((entry.path, entry.attempt), ""), entry.session]
            what += [" ".join(entry.artifacts), entry.failure.message if entry.failure is not None else ""]
        case j.StepSkipped():
            what = ["skipped".ljust(9), entry.path, entry.reason]
        case j.CompensationEnded():
            what = ["undone".ljust(9) if entry.outcome == "completed" else "not undone", entry.path, entry.session]
        case _:
            return ""
    return "  ".join(part for part in what if part)[:MAX_LINE_CHARS]
