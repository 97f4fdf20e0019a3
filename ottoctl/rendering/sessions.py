"""Sessions as text: the table of `ps` and the page of `inspect`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from ottoctl.rendering.amounts import age, cost, duration, in_seconds, size, tokens, usage_line, usd
from ottoctl.rendering.ansi import one_line, paint, printable
from ottoctl.rendering.table import Cell, render_table
from ottod.protocol.cause import Cause
from ottod.protocol.results import Backlog, BudgetLine, SessionInfo

STATE_STYLES = {
    "starting": "cyan",
    "idle": "cyan",
    "running": "green",
    "waiting_approval": "yellow",
    "waiting_input": "yellow",
    "waiting_children": "cyan",
    "paused": "yellow",
    "stopping": "yellow",
    "restarting": "yellow",
    "parked": "red",
    "ended": "grey",
}
GOOD_CAUSES = frozenset({"completed"})
MILD_CAUSES = frozenset({"cancelled", "daemon_stop", "budget"})
SHORT_DIGITS = 5
"""Digits of an id in a table, when that many tell the sessions of the table apart."""
PREFIX_CHARS = 2


def short_ids(ids: Sequence[str]) -> dict[str, str]:
    """Each id cut to the shortest common length, at least SHORT_DIGITS, at which all of them differ."""
    longest = max((len(i) for i in ids), default=0)
    for length in range(PREFIX_CHARS + SHORT_DIGITS, longest):
        if len({i[:length] for i in ids}) == len(set(ids)):
            return {i: i[:length] for i in ids}
    return {i: i for i in ids}


def cause_style(cause: Cause | None) -> str:
    """Green for what went well, yellow for what somebody wanted, red for the rest."""
    if cause is None:
        return "red"
    return "green" if cause.kind in GOOD_CAUSES else "yellow" if cause.kind in MILD_CAUSES else "red"


def state_text(info: SessionInfo, *, now_ns: int) -> Cell:
    """The state; for an ended session the cause, for a restarting one the time to its next try."""
    if info.state == "ended" and info.cause is not None:
        return Cell(str(info.cause), cause_style(info.cause))
    text: str = info.state
    if info.state == "restarting" and info.restart_due_ns:
        left_s = (info.restart_due_ns - now_ns) / 1e9
        text = f"{text} in {in_seconds(left_s)}" if left_s > 0 else text
    return Cell(text, STATE_STYLES.get(info.state, ""))


def sessions_table(
    sessions: Sequence[SessionInfo], *, now_ns: int, width: int, color: bool, full_ids: bool = False
) -> str:
    """The table of `ps`. `now_ns` is the wall clock."""
    ids = [s.session for s in sessions]
    shown = dict(zip(ids, ids, strict=True)) if full_ids else short_ids(ids)
    rows = [
        [
            Cell(shown[s.session], "bold"),
            state_text(s, now_ns=now_ns),
            printable(called(s)),
            age((now_ns - s.created_at_ns) / 1e9) if s.created_at_ns else "-",
            str(s.turn),
            tokens(s.usage.total_tokens),
            cost(s.usage),
            what_text(s),
        ]
        for s in sessions
    ]
    header = ("ID", "STATE", "AGENT", "AGE", "TURNS", "TOKENS", "COST", "TITLE")
    return render_table(header, rows, width=width, color=color, right=frozenset({3, 4, 5, 6}))


def called(info: SessionInfo) -> str:
    """Its name in its tree, and its agent's where that does not say it."""
    if info.name.partition("#")[0] in ("", info.agent):
        return info.name or info.agent
    return f"{info.name} ({info.agent})"


def what_text(info: SessionInfo) -> Cell:
    """What it is about: why it does not run, what waits for room, its title or task, the tool that runs."""
    waits = info.state in ("restarting", "parked", "running") and bool(info.reason)
    parts = (
        one_line(info.reason) if waits else "",
        backlog_text(info.backlog),
        f"⇢ {info.handed_to}" if info.handed_to and info.state != "ended" else "",
        one_line(info.title or info.task),
        one_line(info.current_tool),
    )
    return Cell(" · ".join(part for part in parts if part))


def backlog_text(backlog: Backlog | None) -> str:
    """`10 run, 90 wait for room`; empty while nothing waits."""
    return f"{backlog.running} run, {backlog.waiting} wait for room" if backlog is not None else ""


def inspect_page(info: SessionInfo, *, now_ns: int, color: bool) -> str:
    """Everything about one session, a line for each fact there is."""
    lines: list[tuple[str, str]] = [
        ("id", info.session),
        ("state", _state_line(info, now_ns=now_ns, color=color)),
    ]
    if info.cause is not None:
        text = str(info.cause) + (f": {one_line(info.cause.message)}" if info.cause.message else "")
        lines.append(("cause", paint(text, cause_style(info.cause), color=color)))
    lines += [
        ("agent", info.agent + (f" ({info.agent_source})" if info.agent_source else "")),
        ("model", info.model),
        ("mode", f"{info.mode}, {info.run_mode}"),
        ("title", one_line(info.title)),
        ("task", one_line(info.task)),
        ("directory", info.cwd),
        ("name", info.name),
        ("parent", info.parent),
        ("handed to", info.handed_to),
        ("process", f"pid {info.pid}, incarnation {info.incarnation}" if info.pid else ""),
        ("restarts", f"{info.restarts} ({info.restart})" if info.restarts else ""),
        ("uses", _usage(info)),
        ("tool", one_line(info.current_tool)),
        ("backlog", _backlog_line(info.backlog)),
        ("approvals", _questions(info)),
        ("turns", str(info.turn)),
        ("tokens", usage_line(info.usage)),
        ("cost", cost(info.usage)),
        ("budgets", ", ".join(map(_budget, info.budgets))),
        ("created", _moment(info.created_at_ns, now_ns)),
        ("ended", _moment(info.ended_at_ns, now_ns)),
        ("took", _took(info)),
        ("events", f"seq 1-{info.last_seq}, offsets {info.first_offset}-{info.last_offset}" if info.last_seq else ""),
        ("journal", info.journal),
        ("left over", ", ".join(map(str, info.remaining_pids))),
    ]
    page = "".join(f"{paint(f'{name:<10}', 'bold', color=color)} {text}\n" for name, text in lines if text)
    return page + (f"\n{printable(info.result).rstrip()}\n" if info.result else "")


def _state_line(info: SessionInfo, *, now_ns: int, color: bool) -> str:
    state = Cell(info.state) if info.state == "ended" else state_text(info, now_ns=now_ns)
    why = f": {one_line(info.reason)}" if info.reason else ""
    mend = f" (`ottoctl session unpark {info.session}`)" if info.state == "parked" else ""
    return paint(state, STATE_STYLES.get(info.state, ""), color=color) + why + mend


def _backlog_line(backlog: Backlog | None) -> str:
    limit = f"; at most {backlog.limit} at a time" if backlog is not None and backlog.limit else ""
    return backlog_text(backlog) + limit


def _questions(info: SessionInfo) -> str:
    """What waits for somebody's permission, and what was answered while there was no process to hear it."""
    told = (
        f"{p.approval} {one_line(p.tool)}"
        + (f" ({p.answer.decision}, not yet heard)" if p.answer is not None else "")
        for p in info.approvals
    )
    return ", ".join(told)


def _budget(line: BudgetLine) -> str:
    """`1,204 of 4,000 tokens (800 reserved)`."""
    shown = {"seconds": duration, "tokens": tokens, "usd_micros": usd}[line.budget]
    unit = " tokens" if line.budget == "tokens" else ""
    own = f" in {one_line(line.session.partition('/')[2])}" if "/" in line.session else ""
    whose = {"session": own, "tree": f" of {one_line(line.session)}", "day": " today"}[line.scope]
    reserved = f" ({shown(line.reserved)} reserved)" if line.reserved else ""
    return f"{shown(line.spent)} of {shown(line.limit)}{unit}{whose}{reserved}"


def _usage(info: SessionInfo) -> str:
    """What its processes use together."""
    if not info.pid or not info.memory_bytes:
        return ""
    cap = f" of {size(info.memory_cap_bytes)}" if info.memory_cap_bytes else ""
    count = f"{info.processes} process{'es' * (info.processes != 1)}"
    return f"{size(info.memory_bytes)}{cap} (peak {size(info.memory_peak_bytes)}), {count}, {info.cpu_ms} ms of CPU"


def _moment(at_ns: int, now_ns: int) -> str:
    if not at_ns:
        return ""
    moment = datetime.fromtimestamp(at_ns / 1e9, tz=UTC).astimezone()
    return f"{moment:%Y-%m-%d %H:%M:%S} ({age((now_ns - at_ns) / 1e9)} ago)"


def _took(info: SessionInfo) -> str:
    begun = info.started_at_ns or info.created_at_ns
    return duration((info.ended_at_ns - begun) / 1e9) if info.ended_at_ns and begun else ""
