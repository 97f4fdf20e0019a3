"""A workflow drawn as a tree, a line for each node, and conditions in words. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ottoctl.rendering.ansi import one_line, paint
from ottod.protocol.workflows import Condition, Step, WorkflowSpec
from ottod.settings.json_schema import shown
from ottod.settings.units import plural
from ottod.settings.workflow_tree import Node, is_block


def workflow_tree(spec: WorkflowSpec, *, color: bool, chosen: Mapping[str, str] | None = None) -> str:
    """The workflow and everything in it. `chosen` says who does steps that have a route."""
    head = f"{paint(one_line(spec.name), 'bold', color=color)}  {paint(block_text(spec), 'dim', color=color)}\n"
    return head + "".join(_lines(spec, "", color, chosen or {}))


def _lines(node: Node, trunk: str, color: bool, chosen: Mapping[str, str]) -> Iterator[str]:
    for i, step in enumerate(node.steps):
        is_last = i == len(node.steps) - 1
        name = paint(one_line(step.id), "bold", color=color)
        text = block_text(step) if is_block(step) else step_text(step, chosen)
        extra = node_text(step)
        yield f"{trunk}{'└─ ' if is_last else '├─ '}{name}  {one_line(text)}"
        yield paint(f"  ({one_line(extra)})" if extra else "", "dim", color=color) + "\n"
        yield from _lines(step, trunk + ("   " if is_last else "│  "), color, chosen)


def step_text(step: Step, chosen: Mapping[str, str]) -> str:
    """`coder: ticket → code_diff`."""
    who = step.agent or chosen.get(step.id, "") or "?"
    if step.route is not None:
        who += f" [{route_text(step)}]"
    left = ", ".join(f"{o.name}{'' if o.required else '?'}" for o in step.outputs)
    flow = f"{', '.join(step.inputs)} → {left}".strip() if step.inputs or left else ""
    return f"{who}: {flow}" if flow else who


def route_text(step: Step) -> str:
    """What is wanted of whoever does the step."""
    assert step.route is not None
    parts = [f"#{tag}" for tag in step.route.tags] + [f"has {tool}" for tool in step.route.tools]
    return ", ".join([*parts, *([step.route.hint] if step.route.hint else [])]) or "by its task"


def block_text(node: Node) -> str:
    """`loop, at most 4 times, until review.verdict is "approved"`."""
    parts: list[str] = [node.mode or ""]
    if node.mode == "loop":
        if node.max_iterations is not None:
            parts.append(f"at most {plural(node.max_iterations, 'time')}")
        if node.until is not None:
            parts.append(f"until {condition_text(node.until)}")
        if node.on_exhausted == "continue":
            parts.append("then on in any case")
    elif isinstance(node, Step) and node.concurrency is not None:
        parts.append(f"{node.concurrency} at once")
    if node.on_failure == "quorum":
        parts.append(f"{node.quorum or 'most'} must complete")
    elif node.on_failure != "fail_fast":
        parts.append(node.on_failure)
    return ", ".join(parts)


def node_text(step: Step) -> str:
    """What else is said of a node."""
    parts = []
    if step.needs:
        parts.append(f"after {', '.join(step.needs)}")
    if step.when is not None:
        parts.append(f"when {condition_text(step.when)}")
    if step.optional:
        parts.append("optional")
    if step.approval is not None:
        parts.append("asks for permission")
    if step.retry.attempts > 1:
        fallback = f", the last by {step.retry.fallback_agent}" if step.retry.fallback_agent else ""
        parts.append(f"{step.retry.attempts} attempts{fallback}")
    if step.compensate is not None:
        parts.append(f"undone by {step.compensate.agent}")
    return "; ".join(parts)


def condition_text(condition: Condition) -> str:
    """A condition in words."""
    if condition.step:
        return f"{condition.step} {condition.status}"
    if condition.artifact:
        return _artifact_text(condition)
    for parts, word in ((condition.all, " and "), (condition.any, " or "), (condition.none, " nor ")):
        if parts:
            text = word.join(
                f"({condition_text(c)})" if c.all or c.any or c.none else condition_text(c) for c in parts
            )
            return (
                f"neither {text}"
                if word == " nor " and len(parts) > 1
                else f"not {text}"
                if word == " nor "
                else text
            )
    return "nothing"


def _artifact_text(condition: Condition) -> str:
    name = f"{condition.artifact}.{condition.field}" if condition.field else condition.artifact
    parts = []
    if condition.equals is not None:
        parts.append(f"is {shown(condition.equals)}")
    if condition.one_of:
        parts.append(f"is one of {', '.join(shown(value) for value in condition.one_of)}")
    if condition.at_least is not None:
        parts.append(f"is at least {condition.at_least:g}")
    if condition.at_most is not None:
        parts.append(f"is at most {condition.at_most:g}")
    if condition.is_empty is not None:
        parts.append("is empty" if condition.is_empty else "is not empty")
    return f"{name} {' and '.join(parts) or 'is there'}"
