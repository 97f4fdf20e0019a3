"""Artifacts as text: the tables of `artifact list` and `artifact where`."""

from __future__ import annotations

from collections.abc import Sequence

from ottoctl.rendering.amounts import age, size
from ottoctl.rendering.ansi import one_line, printable
from ottoctl.rendering.table import Cell, render_table
from ottod.protocol.artifacts import ID_PREFIX, ArtifactInfo, SinkDelivery

SHORT_DIGITS = 5
SENT = "DELIVERED"
"""A column for those that sinks have, or should have."""
DELIVERIES_HEADER = ("SINK", "STATE", "TRIED", "AGE", "PLACE")
HEADER = ("ID", "NAME", "VERSION", "KIND", "SIZE", "AGE", "AGENT", "SESSION")


def artifacts_table(
    artifacts: Sequence[ArtifactInfo], *, now_ns: int, width: int, color: bool, full_ids: bool = False
) -> str:
    """What was kept, by whom, and when. `now_ns` is the wall clock."""
    shown = {a.artifact: a.artifact for a in artifacts} if full_ids else _short([a.artifact for a in artifacts])
    rows = [
        [
            Cell(shown[a.artifact], "bold"),
            one_line(a.name),
            str(a.version),
            one_line(a.kind),
            size(a.size_bytes),
            age(max(0, now_ns - a.at_ns) / 1e9),
            printable(a.agent),
            printable(a.session),
        ]
        for a in artifacts
    ]
    header: tuple[str, ...] = HEADER
    if any(a.deliveries for a in artifacts):
        header = (*HEADER, SENT)
        rows = [[*row, _sent(a.deliveries)] for row, a in zip(rows, artifacts, strict=True)]
    return render_table(header, rows, width=width, color=color, right=frozenset({2, 4}))


def _sent(deliveries: Sequence[SinkDelivery]) -> str:
    return ", ".join(("✗ " if each.state == "failed" else "") + one_line(each.sink) for each in deliveries)


def deliveries_table(deliveries: Sequence[SinkDelivery], *, now_ns: int, width: int, color: bool) -> str:
    """Where an artifact is, or why it is not. `now_ns` is the wall clock."""
    rows = [
        [
            Cell(one_line(each.sink), "bold"),
            Cell(each.state, "red" if each.state == "failed" else "green"),
            str(each.attempts),
            age(max(0, now_ns - each.at_ns) / 1e9),
            one_line("; ".join(filter(None, (each.place, each.reason)))),
        ]
        for each in deliveries
    ]
    return render_table(DELIVERIES_HEADER, rows, width=width, color=color, right=frozenset({2}))


def _short(ids: Sequence[str]) -> dict[str, str]:
    """The ids cut to the shortest common length at which all of them differ."""
    longest = max((len(i) for i in ids), default=0)
    for length in range(len(ID_PREFIX) + SHORT_DIGITS, longest):
        if len({i[:length] for i in ids}) == len(set(ids)):
            return {i: i[:length] for i in ids}
    return {i: i for i in ids}
