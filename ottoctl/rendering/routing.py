"""Who gets a task, and why, as text."""

from __future__ import annotations

from collections.abc import Sequence

from ottoctl.rendering.ansi import one_line, paint
from ottoctl.rendering.table import Cell, render_table
from ottod.settings.routing import Ranked, Routing

MAX_RANKED = 8
MAX_TERMS = 6


def routing_text(routing: Routing, *, width: int, color: bool) -> str:
    """The agent, the reason, those who came next, and those who were left out."""
    lines = [f"{paint(routing.agent, 'bold', color=color)}: {one_line(routing.reason)}\n"] if routing.agent else []
    fitting = [item for item in routing.ranked if item.score > 0 or item.agent == routing.agent]
    if fitting:
        lines.append("\n" + _table(fitting[:MAX_RANKED], width, color))
        if len(fitting) > MAX_RANKED:
            lines.append(f"and {len(fitting) - MAX_RANKED} more\n")
    if routing.filtered:
        lines.append("\n")
        lines += [f"left out {item.agent}: {one_line(item.reason)}\n" for item in routing.filtered]
    return "".join(lines)


def _table(items: Sequence[Ranked], width: int, color: bool) -> str:
    rows = [[Cell(item.agent, "bold"), f"{item.score:.2f}", _terms(item)] for item in items]
    return render_table(("AGENT", "SCORE", "WORDS"), rows, width=width, color=color, right=frozenset({1}))


def _terms(item: Ranked) -> str:
    shown = [f"{term.word} {term.score:.2f} ({', '.join(term.fields)})" for term in item.terms[:MAX_TERMS]]
    more = len(item.terms) - len(shown)
    return one_line("; ".join([*shown, *([f"{more} more"] if more > 0 else [])])) or "-"
