"""What a workflow would do, without doing it: the steps in order, who does them, with what, for how much. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ottoctl.rendering.ansi import one_line, paint
from ottoctl.rendering.table import Cell, render_table
from ottoctl.rendering.workflow_tree import block_text, node_text
from ottoctl.rendering.workflows import budgets_text
from ottod.protocol.workflows import Step, WorkflowSpec
from ottod.settings.routing import Routing
from ottod.settings.workflow_tree import Node, befores, graph_needs, is_block


def ordered_steps(node: Node) -> list[Step]:
    """A block's nodes in the order in which they can begin."""
    if node.mode != "graph":
        return list(node.steps)
    before = befores(graph_needs(node.steps))
    return sorted(node.steps, key=lambda step: len(before[step.id]))


def plan_rows(spec: WorkflowSpec, routings: Mapping[str, Routing]) -> list[dict[str, Any]]:
    """A record for each node, in order. `depth` counts the blocks around it."""
    return list(_rows(spec, routings, 0))


def _rows(node: Node, routings: Mapping[str, Routing], depth: int) -> Iterator[dict[str, Any]]:
    for step in ordered_steps(node):
        routing = routings.get(step.id)
        yield {
            "step": step.id,
            "depth": depth,
            "runs": block_text(step) if is_block(step) else "",
            "agent": step.agent or (routing.agent if routing else ""),
            "routed": routing.reason if routing else "",
            "inputs": list(step.inputs),
            "outputs": [output.name for output in step.outputs],
            "budgets": budgets_text(step.budgets),
            "also": node_text(step),
        }
        yield from _rows(step, routings, depth + 1)


def plan_table(spec: WorkflowSpec, routings: Mapping[str, Routing], *, width: int, color: bool) -> str:
    """The plan as a table, and the whole's budget."""
    rows = [
        [
            Cell("  " * row["depth"] + row["step"], "bold"),
            Cell(
                one_line(row["agent"]) or ("-" if row["runs"] else "nobody"),
                "" if row["agent"] or row["runs"] else "red",
            ),
            one_line(", ".join(row["inputs"])) or "-",
            one_line(", ".join(row["outputs"])) or "-",
            row["budgets"] or "-",
            one_line("; ".join(part for part in (row["runs"], row["also"], row["routed"]) if part)),
        ]
        for row in plan_rows(spec, routings)
    ]
    header = ("STEP", "AGENT", "TAKES", "LEAVES", "AT MOST", "NOTES")
    whole = budgets_text(spec.budgets) or "no limit"
    head = f"{paint(one_line(spec.name), 'bold', color=color)}: {block_text(spec)}; at most {whole}\n\n"
    return head + render_table(header, rows, width=width, color=color)
