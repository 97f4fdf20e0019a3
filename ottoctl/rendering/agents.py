"""Agents as text: the table of `agent list` and the page of `agent show`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ottoctl.rendering.ansi import one_line, paint, printable
from ottoctl.rendering.table import Cell, render_table
from ottod.settings.agents import AgentEntry


def agents_table(entries: Sequence[AgentEntry], *, width: int, color: bool) -> str:
    """Name, model, where from, and what it is for; a broken file shows its error."""
    rows = [
        [
            Cell(entry.name, "bold"),
            entry.spec.model if entry.spec else "-",
            entry.layer,
            Cell(one_line(entry.error.message), "red")
            if entry.error
            else one_line(entry.spec.description if entry.spec else ""),
        ]
        for entry in entries
    ]
    return render_table(("NAME", "MODEL", "FROM", "DESCRIPTION"), rows, width=width, color=color)


def agent_record(entry: AgentEntry) -> dict[str, Any]:
    """An entry for programs."""
    return {
        "name": entry.name,
        "layer": entry.layer,
        "source": entry.source,
        "model": entry.spec.model if entry.spec else "",
        "description": entry.spec.description if entry.spec else "",
        "tools": list(entry.spec.tools) if entry.spec else [],
        "tags": list(entry.spec.tags) if entry.spec else [],
        "error": entry.error.message if entry.error else "",
        "shadows": list(entry.shadows),
    }


def agent_page(entry: AgentEntry, *, color: bool) -> str:
    """Every field of the spec, defaults included, then the system prompt."""
    assert entry.spec is not None
    fields = {name: getattr(entry.spec, name) for name in entry.spec.__struct_fields__}
    prompt = fields.pop("system_prompt")
    lines = []
    for name, value in fields.items():
        text = _value(value)
        if text:
            lines.append(f"{paint(name.ljust(18), 'bold', color=color)} {text}\n")
    for note in entry.notes:
        lines.append(f"{paint('note'.ljust(18), 'yellow', color=color)} {one_line(note)}\n")
    for hidden in entry.shadows:
        lines.append(f"{paint('hides'.ljust(18), 'bold', color=color)} {one_line(hidden)}\n")
    return "".join(lines) + (f"\n{printable(prompt).rstrip()}\n" if prompt else "")


def _value(value: Any) -> str:
    if isinstance(value, msgspec.Struct):
        parts = {name: getattr(value, name) for name in value.__struct_fields__}
        return ", ".join(f"{name}={_value(v) or '-'}" for name, v in parts.items())
    if isinstance(value, tuple):
        return " ".join(_value(v) for v in value)
    if isinstance(value, dict):
        return msgspec.json.encode(value).decode() if value else ""
    return "" if value is None else one_line(str(value))
