"""Workflows as text: the table of `workflow list` and the page of `workflow show`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ottoctl.rendering.agents import rule_lines
from ottoctl.rendering.ansi import one_line, paint
from ottoctl.rendering.table import Cell, render_table
from ottoctl.rendering.workflow_tree import workflow_tree
from ottod.protocol.specs import Budgets
from ottod.protocol.workflows import WorkflowSpec
from ottod.settings.units import format_duration
from ottod.settings.workflow_tree import is_block, steps_of
from ottod.settings.workflows import WorkflowEntry


def workflows_table(entries: Sequence[WorkflowEntry], *, width: int, color: bool) -> str:
    """Name, mode, steps, where from, and what it is for; a broken file shows its first error."""
    rows = [
        [
            Cell(entry.name, "bold"),
            entry.spec.mode if entry.spec else "-",
            str(step_count(entry.spec)) if entry.spec else "-",
            entry.layer,
            Cell(one_line(entry.errors[0].message), "red")
            if entry.errors
            else one_line(entry.spec.description if entry.spec else ""),
        ]
        for entry in entries
    ]
    header = ("NAME", "MODE", "STEPS", "FROM", "DESCRIPTION")
    return render_table(header, rows, width=width, color=color, right=frozenset({2}))


def step_count(spec: WorkflowSpec) -> int:
    """How many steps agents do, blocks not counted."""
    return sum(not is_block(step) for step in steps_of(spec))


def workflow_record(entry: WorkflowEntry) -> dict[str, Any]:
    """An entry for programs."""
    spec = entry.spec
    return {
        "name": entry.name,
        "layer": entry.layer,
        "source": entry.source,
        "description": spec.description if spec else "",
        "mode": spec.mode if spec else "",
        "steps": step_count(spec) if spec else 0,
        "tags": list(spec.tags) if spec else [],
        "digest": spec.digest if spec else "",
        "error": entry.errors[0].message if entry.errors else "",
        "shadows": list(entry.shadows),
    }


def workflow_page(entry: WorkflowEntry, *, color: bool) -> str:
    """What holds for the whole, then its tree."""
    spec = entry.spec
    assert spec is not None
    rows = [
        ("name", spec.name),
        ("description", spec.description),
        ("tags", " ".join(spec.tags)),
        ("source", entry.source),
        ("digest", spec.digest),
        ("budgets", budgets_text(spec.budgets)),
        ("timeout_s", format_duration(spec.timeout_s) if spec.timeout_s else ""),
        ("concurrency", str(spec.concurrency)),
        ("permissions", f"preset: {spec.permissions.preset}"),
        ("summarizer", f"{spec.summarizer or 'none'}, above {spec.summarize_above_bytes} bytes"),
        ("git_branch", "true" if spec.git_branch else ""),
        ("inputs", ", ".join(_given(spec))),
    ]
    lines = []
    for name, text in rows:
        lines += [f"{paint(name.ljust(12), 'bold', color=color)} {one_line(text)}\n"] if text else []
        if name == "permissions":
            lines += [f"{' ' * 12} {line}\n" for line in rule_lines(spec.permissions.rules)]
    lines += [f"{paint('note'.ljust(12), 'yellow', color=color)} {one_line(note)}\n" for note in entry.notes]
    lines += [f"{paint('hides'.ljust(12), 'bold', color=color)} {one_line(file)}\n" for file in entry.shadows]
    return "".join(lines) + "\n" + workflow_tree(spec, color=color)


def budgets_text(budgets: Budgets) -> str:
    """`10m, 200,000 tokens, $3.00`; empty without any."""
    parts = []
    if budgets.seconds is not None:
        parts.append(format_duration(budgets.seconds))
    if budgets.tokens is not None:
        parts.append(f"{budgets.tokens:,} tokens")
    if budgets.usd is not None:
        parts.append(f"${budgets.usd:.2f}")
    return ", ".join(parts)


def _given(spec: WorkflowSpec) -> list[str]:
    return [
        f"{given.name} ({given.kind}{', from ' + given.file if given.file else ''}"
        f"{'' if given.required else ', optional'})"
        for given in spec.inputs
    ]
