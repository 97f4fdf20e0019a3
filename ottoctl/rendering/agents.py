"""Agents as text: the table of `agent list` and the page of `agent show`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from ottoctl.rendering.ansi import one_line, paint, printable
from ottoctl.rendering.config import value_text
from ottoctl.rendering.table import Cell, render_table
from ottod.protocol.specs import PermissionRule, Permissions
from ottod.settings.agents import AgentEntry
from ottod.settings.units import format_duration

LABEL_WIDTH = 18


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
    lines: list[str] = []
    for name, value in fields.items():
        lines += _labelled(name, _lines(name, value), "bold", color=color)
    for note in entry.notes:
        lines += _labelled("note", [one_line(note)], "yellow", color=color)
    for hidden in entry.shadows:
        lines += _labelled("hides", [one_line(hidden)], "bold", color=color)
    return "".join(lines) + (f"\n{printable(prompt).rstrip()}\n" if prompt else "")


def rule_lines(rules: Iterable[PermissionRule]) -> list[str]:
    """A line for each rule: what it says; then, as a comment, where that stands and why."""
    lines = []
    for rule in rules:
        waits = f", expires_s: {format_duration(rule.expires_s)}" if rule.expires_s is not None else ""
        about = ": ".join(filter(None, (rule.source, rule.reason)))
        lines.append(one_line(f"- {rule}{waits}" + (f" # {about}" if about else "")))
    return lines


def _labelled(label: str, lines: Sequence[str], style: str, *, color: bool) -> Iterator[str]:
    """The lines below each other, the first with its label; nothing without lines."""
    for i, line in enumerate(lines):
        head = paint(label.ljust(LABEL_WIDTH), style, color=color) if i == 0 else " " * LABEL_WIDTH
        yield f"{head} {line}\n"


def _lines(name: str, value: Any) -> list[str]:
    """A field's value, in the words of a file; what there may be several of has a line for each."""
    if isinstance(value, Permissions):
        return [f"preset: {value.preset}" + ("" if value.rules else ", rules: -"), *rule_lines(value.rules)]
    if isinstance(value, tuple):
        if any(isinstance(item, msgspec.Struct) for item in value):
            return [f"- {_pairs(item)}" for item in value]
        return [" ".join(map(one_line, value))] if value else []
    if isinstance(value, msgspec.Struct):
        return [_pairs(value)]
    return [] if value in (None, "", {}) else [one_line(value_text(name, value))]


def _pairs(struct: Any) -> str:
    """`seconds: 1h, tokens: 4000, usd: -`."""
    fields = msgspec.structs.fields(struct)
    return ", ".join(f"{f.name}: {_inner(f.name, getattr(struct, f.name), f.default)}" for f in fields)


def _inner(name: str, value: Any, default: Any) -> str:
    if isinstance(value, msgspec.Struct):
        return f"{{{_pairs(value)}}}"
    # Where nothing means all, an empty list says something else than nothing.
    is_unsaid = value in (None, "", {}) or (value == () and default is not None)
    return "-" if is_unsaid else one_line(value_text(name, value))
