"""The live table of `top`: what each session uses and does, the busiest first. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from ottoctl.rates import Rate
from ottoctl.rendering.amounts import age, cost, cost_of_all, duration, size, tokens
from ottoctl.rendering.ansi import clip, one_line, paint, printable
from ottoctl.rendering.sessions import short_ids, state_text
from ottoctl.rendering.table import Cell, render_table
from ottod.protocol.results import DaemonStatus, SessionInfo
from ottod.settings.units import plural

HEADER = ("ID", "STATE", "AGENT", "MEMORY", "CAP", "CPU", "EVENTS/S", "TOKENS", "COST", "RESTARTS", "DOING")
NEAR_CAP = 0.9
"""From this share of its cap on, a session's memory is shown in red."""


class TopRow(msgspec.Struct, frozen=True, kw_only=True):
    """One session with what it does per second; None where there is only one reading yet."""

    info: SessionInfo
    cpu_percent: float | None = None
    events_per_s: float | None = None

    @property
    def memory_bytes(self) -> int:
        """What its processes use now: none, when it has none."""
        return self.info.memory_bytes if self.info.pid else 0


SORT_KEYS: dict[str, Callable[[TopRow], Any]] = {
    "cpu": lambda row: row.cpu_percent or 0.0,
    "memory": lambda row: row.memory_bytes,
    "events": lambda row: row.events_per_s or 0.0,
    "tokens": lambda row: row.info.usage.total_tokens,
    "cost": lambda row: row.info.usage.usd_micros or 0,
    "restarts": lambda row: row.info.restarts,
    "age": lambda row: -row.info.created_at_ns,
}
"""The greatest first. The first letter of each is its key on a terminal, `$` for cost."""
LETTERS = {"$" if name == "cost" else name[0]: name for name in SORT_KEYS}


def top_rows(infos: Sequence[SessionInfo], rates: Mapping[str, Rate], *, sort: str) -> list[TopRow]:
    """The rows in their order; sessions that are alike stay in the order of their ids."""
    rows = []
    for info in sorted(infos, key=lambda info: info.session):
        rate = rates.get(info.session, Rate()) if info.pid else Rate(0.0, 0.0)
        percent = None if rate.cpu_share is None else round(rate.cpu_share * 100, 1)
        events = None if rate.events_per_s is None else round(rate.events_per_s, 1)
        rows.append(TopRow(info=info, cpu_percent=percent, events_per_s=events))
    return sorted(rows, key=SORT_KEYS[sort], reverse=True)


def top_page(
    status: DaemonStatus, rows: Sequence[TopRow], *, now_ns: int, width: int, height: int, color: bool, sort: str
) -> str:
    """Two lines on all sessions together, then the table; `height` 0 cuts nothing. `now_ns` is the wall clock."""
    shown = rows if not height else rows[: max(1, height - 5)]
    lines = [line if not width else clip(line, width) for line in _head(status, rows, sort)]
    table = render_table(
        HEADER,
        _cells(shown, now_ns),
        width=width,
        color=color,
        right=frozenset({3, 4, 5, 6, 7, 8, 9}),
    )
    page = "".join(f"{paint(line, 'dim', color=color)}\n" for line in lines) + "\n"
    page += table if rows else "no live sessions\n"
    hidden = len(rows) - len(shown)
    return page + (f"… and {hidden} more\n" if hidden else "")


def _head(status: DaemonStatus, rows: Sequence[TopRow], sort: str) -> list[str]:
    states: dict[str, int] = {}
    for row in rows:
        states[row.info.state] = states.get(row.info.state, 0) + 1
    parts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    known_cpu = [row.cpu_percent for row in rows if row.cpu_percent is not None]
    known_events = [row.events_per_s for row in rows if row.events_per_s is not None]
    counted = plural(len(rows), "session") + (f": {parts}" if parts else "")
    return [
        f"ottod {status.version}, up {duration(status.uptime_s)}, lag {status.loop_lag_p99_ms:.1f} ms · {counted}",
        " · ".join(
            [
                f"memory {size(sum(row.memory_bytes for row in rows))}",
                f"CPU {sum(known_cpu):.0f} %",
                f"{sum(known_events):.0f} events/s",
                f"{tokens(sum(row.info.usage.total_tokens for row in rows))} tokens",
                cost_of_all(row.info.usage for row in rows),
                f"by {sort}",
            ]
        ),
    ]


def _cells(rows: Sequence[TopRow], now_ns: int) -> list[list[str]]:
    ids = short_ids([row.info.session for row in rows])
    return [
        [
            Cell(ids[row.info.session], "bold"),
            state_text(row.info, now_ns=now_ns),
            printable(row.info.agent),
            _memory(row),
            size(row.info.memory_cap_bytes) if row.info.memory_cap_bytes else "-",
            "-" if row.cpu_percent is None else f"{row.cpu_percent:.0f} %",
            "-" if row.events_per_s is None else f"{row.events_per_s:.0f}",
            tokens(row.info.usage.total_tokens),
            cost(row.info.usage),
            Cell(str(row.info.restarts), "yellow" if row.info.restarts else ""),
            _doing(row.info, now_ns),
        ]
        for row in rows
    ]


def _memory(row: TopRow) -> Cell:
    cap = row.info.memory_cap_bytes
    near = bool(cap) and row.memory_bytes >= NEAR_CAP * cap
    return Cell(size(row.memory_bytes) if row.memory_bytes else "-", "red" if near else "")


def _doing(info: SessionInfo, now_ns: int) -> str:
    if info.current_tool:
        return one_line(info.current_tool)
    if info.reason and info.state in ("restarting", "parked", "running"):
        return one_line(info.reason)
    return f"({age((now_ns - info.created_at_ns) / 1e9)}) {one_line(info.title or info.task)}"
