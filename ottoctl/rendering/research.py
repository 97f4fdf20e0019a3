"""Kept results as text: the table of `research list`."""

from __future__ import annotations

from collections.abc import Sequence

from ottoctl.rendering.amounts import age
from ottoctl.rendering.ansi import one_line, printable
from ottoctl.rendering.table import Cell, render_table
from ottod.protocol.results import ResearchEntry

HEADER = ("AGENT", "AGE", "USED", "SESSION", "DIRECTORY", "QUESTION")


def research_table(entries: Sequence[ResearchEntry], *, now_ns: int, width: int, color: bool) -> str:
    """Who was asked what, where, and how often the answer was used again. `now_ns` is the wall clock."""
    rows = [
        [
            Cell(printable(entry.agent), "bold"),
            age(max(0, now_ns - entry.at_ns) / 1e9),
            str(entry.hits),
            printable(entry.session),
            printable(entry.cwd),
            one_line(entry.question),
        ]
        for entry in entries
    ]
    return render_table(HEADER, rows, width=width, color=color, right=frozenset({1, 2}))
