"""What a workflow would do, without doing it: the steps in order, who does them, with what, for how much. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from ottoctl.rendering.ansi import one_line, paint
from ottoctl.rendering.table import Cell, render_table
from ottoctl.rendering.workflow_tree import block_text, node_text
from ottoctl.rendering.workflows import budgets_text
from ottod.protocol.specs import Budgets
from ottod.settings.routing import Routing
from ottod.settings.workflow_plan import Most, PlannedNode, WorkflowPlan
from ottod.settings.workflow_tree import is_block

MAX_CANDIDATES = 3
"""Of those that a route was decided between."""


def plan_record(plan: WorkflowPlan, *, task: str, given: Sequence[str]) -> dict[str, Any]:
    """The whole for programs. `given` are the names of the inputs that it would begin with."""
    spec = plan.workflow.spec
    return {
        "workflow": spec.name,
        "digest": spec.digest,
        "source": spec.source,
        "task": task,
        "inputs": list(given),
        "budgets": msgspec.to_builtins(spec.budgets),
        "at_most": msgspec.to_builtins(plan.most),
        "summaries_at_most": plan.summaries,
        "approvals": [step.id for step in plan.approvals],
        "agents": [{"name": a.name, "digest": a.digest, "source": a.source} for a in plan.workflow.agents],
        "steps": plan_rows(plan),
    }


def plan_rows(plan: WorkflowPlan) -> list[dict[str, Any]]:
    """A record for each node, in order. `depth` counts the blocks around it."""
    return list(_rows(plan))


def _rows(plan: WorkflowPlan) -> Iterator[dict[str, Any]]:
    for each in plan.nodes:
        step, routing = each.node, each.routing
        yield {
            "step": step.id,
            "depth": each.depth,
            "runs": block_text(step) if is_block(step) else "",
            "agent": each.agent,
            "model": each.model,
            "routed": routing.reason if routing else "",
            "candidates": _candidates(routing) if routing else [],
            "inputs": list(step.inputs),
            "outputs": [output.name for output in step.outputs],
            "budgets": budgets_text(each.budgets),
            "times_at_most": each.runs,
            "attempts": step.retry.attempts,
            "at_most": msgspec.to_builtins(each.most),
            "approval": msgspec.to_builtins(step.approval) if step.approval is not None else None,
            "preset": each.preset,
            "asks": list(each.asks),
            "may_ask_for_budget": each.may_ask_for_budget,
            "also": node_text(step),
        }


def _candidates(routing: Routing) -> list[dict[str, Any]]:
    best = [item for item in routing.ranked if item.score > 0 or item.agent == routing.agent]
    return [
        {"agent": item.agent, "score": item.score, "words": [term.word for term in item.terms]}
        for item in best[:MAX_CANDIDATES]
    ]


def plan_table(plan: WorkflowPlan, *, width: int, color: bool) -> str:
    """The plan as a table, with what bounds the whole, and what somebody is asked for."""
    spec = plan.workflow.spec
    rows = [
        [
            Cell("  " * each.depth + each.node.id, "bold"),
            one_line(each.agent) or "-",
            one_line(each.model) or "-",
            one_line(", ".join(each.node.inputs)) or "-",
            one_line(", ".join(output.name for output in each.node.outputs)) or "-",
            budgets_text(each.budgets) or "-",
            one_line("; ".join(_notes(each))),
        ]
        for each in plan.nodes
    ]
    header = ("STEP", "AGENT", "MODEL", "TAKES", "LEAVES", "EACH AT MOST", "NOTES")
    whole = budgets_text(spec.budgets) or "no limit"
    head = f"{paint(one_line(spec.name), 'bold', color=color)}: {block_text(spec)}; at most {whole}\n\n"
    return head + render_table(header, rows, width=width, color=color) + "\n" + "".join(_end(plan))


def _notes(each: PlannedNode) -> Iterator[str]:
    if is_block(each.node):
        yield block_text(each.node)
    elif each.runs > 1:
        yield f"up to {each.runs} times"
    if also := node_text(each.node):
        yield also
    if each.routing is not None:
        yield f"routed: {each.routing.reason}"


def _end(plan: WorkflowPlan) -> Iterator[str]:
    yield f"costs at most {most_text(plan.most)}\n"
    unbounded = _unbounded(plan.nodes)
    if unbounded and plan.workflow.spec.budgets.usd is None:
        yield f"  nothing bounds the money of {', '.join(unbounded)}; `budgets: {{usd: …}}` of the workflow would\n"
    if plan.summaries:
        what = "1 summary" if plan.summaries == 1 else f"{plan.summaries} summaries"
        yield f"  with at most {what} by {one_line(plan.workflow.spec.summarizer)}\n"
    for step in plan.approvals:
        assert step.approval is not None
        reason = f": {one_line(step.approval.reason)}" if step.approval.reason else ""
        yield f"asks for permission before {step.id}{reason}\n"
    for each in plan.nodes:
        for words in each.asks:
            yield f"may ask in {each.node.id}: {one_line(words)}\n"
        if each.may_ask_for_budget:
            yield f"may ask in {each.node.id}: for more budget, beyond the bound\n"


def most_text(most: Most) -> str:
    """`200,000 tokens, $3.00`."""
    known = budgets_text(Budgets(tokens=most.tokens, usd=most.usd))
    missing = [word for word, value in (("tokens", most.tokens), ("money", most.usd)) if value is None]
    return ", ".join(part for part in (known, f"no bound in {' or '.join(missing)}" if missing else "") if part)


def _unbounded(nodes: Sequence[PlannedNode]) -> list[str]:
    """Steps whose money neither they nor a block around them bounds."""
    found: list[str] = []
    bound_depth: int | None = None
    for each in nodes:
        if bound_depth is not None and each.depth <= bound_depth:
            bound_depth = None
        if bound_depth is None and each.node.mode is not None and each.node.budgets.usd is not None:
            bound_depth = each.depth
        elif is_block(each.node):
            continue
        elif each.undoing.usd is None or (bound_depth is None and each.work.usd is None):
            found.append(each.node.id)
    return found
