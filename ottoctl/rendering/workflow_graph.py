"""A workflow as a drawing for other programs: Mermaid and DOT. Pure.

A step is a box, a block a frame around its nodes. Arrows say what has to end before something begins; a loop has an
arrow from its end back to its beginning that says until when.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ottoctl.rendering.ansi import one_line
from ottoctl.rendering.workflow_tree import block_text, condition_text, step_text
from ottod.protocol.workflows import Step, WorkflowSpec
from ottod.settings.workflow_tree import Node, graph_needs, is_block, places


class Arrow(NamedTuple):
    """From one node to another, by their keys. `text`: why it leads back."""

    start: str
    end: str
    text: str = ""


def mermaid(spec: WorkflowSpec) -> str:
    """A flowchart in Mermaid's language."""
    keys = keys_of(spec)
    lines = ["flowchart TD", *_mermaid_nodes(spec, keys, "  ")]
    for arrow in arrows(spec, keys):
        link = f'-. "{_mermaid_text(arrow.text)}" .->' if arrow.text else "-->"
        lines.append(f"  {arrow.start} {link} {arrow.end}")
    return "\n".join(lines) + "\n"


def _mermaid_nodes(node: Node, keys: Mapping[str, str], indent: str) -> Iterator[str]:
    for step in node.steps:
        if is_block(step):
            yield f'{indent}subgraph {keys[step.id]}["{_mermaid_text(_label(step))}"]'
            yield from _mermaid_nodes(step, keys, indent + "  ")
            yield f"{indent}end"
        else:
            yield f'{indent}{keys[step.id]}["{_mermaid_text(_label(step))}"]'


def _mermaid_text(text: str) -> str:
    """Text between quotation marks, whatever it holds."""
    marks = {"#": "#35;", '"': "#quot;", "<": "#lt;", ">": "#gt;", "&": "#amp;"}
    return "<br>".join("".join(marks.get(char, char) for char in one_line(line)) for line in text.split("\n"))


def dot(spec: WorkflowSpec) -> str:
    """A graph in Graphviz's language."""
    keys = keys_of(spec)
    named = {keys[step.id]: step for step in _steps(spec)}
    name = _dot_text(spec.name)
    lines = [f"digraph {name} {{", "  compound=true; node [shape=box];", *_dot_nodes(spec, keys, "  ")]
    for arrow in arrows(spec, keys):
        start, end = named[arrow.start], named[arrow.end]
        # Graphviz draws between boxes only, and cuts the line where the frame is.
        options = [f"ltail=cluster_{arrow.start}"] if is_block(start) else []
        options += [f"lhead=cluster_{arrow.end}"] if is_block(end) else []
        options += [f"style=dashed, constraint=false, label={_dot_text(arrow.text)}"] if arrow.text else []
        tail = f" [{', '.join(options)}]" if options else ""
        lines.append(f"  {keys[_last(start).id]} -> {keys[_first(end).id]}{tail};")
    return "\n".join([*lines, "}"]) + "\n"


def _dot_nodes(node: Node, keys: Mapping[str, str], indent: str) -> Iterator[str]:
    for step in node.steps:
        if is_block(step):
            yield f"{indent}subgraph cluster_{keys[step.id]} {{"
            yield f"{indent}  label={_dot_text(_label(step))};"
            yield from _dot_nodes(step, keys, indent + "  ")
            yield f"{indent}}}"
        else:
            yield f"{indent}{keys[step.id]} [label={_dot_text(_label(step))}];"


def _dot_text(text: str) -> str:
    lines = (one_line(line).replace("\\", "\\\\").replace('"', '\\"') for line in text.split("\n"))
    return '"' + "\\n".join(lines) + '"'


def _label(step: Step) -> str:
    """Its name, and below it what it does."""
    return f"{step.id}\n{block_text(step) if is_block(step) else step_text(step, {})}"


def keys_of(spec: WorkflowSpec) -> dict[str, str]:
    """Id of each node → a name that both languages take."""
    return {step.id: f"n{i}" for i, step in enumerate(_steps(spec))}


def _steps(spec: WorkflowSpec) -> list[Step]:
    return [place.node for place in places(spec) if isinstance(place.node, Step)]


def arrows(spec: WorkflowSpec, keys: Mapping[str, str]) -> Iterator[Arrow]:
    """Every arrow of the workflow, block by block."""
    for place in places(spec):
        node = place.node
        if node.mode == "graph":
            needs = graph_needs(node.steps)
            for step in node.steps:
                for need in sorted(needs[step.id]):
                    yield Arrow(keys[need], keys[step.id])
        elif node.mode in ("sequential", "loop"):
            for one, other in zip(node.steps, node.steps[1:], strict=False):
                yield Arrow(keys[one.id], keys[other.id])
        if node.mode == "loop" and node.steps:
            until = f"until {condition_text(node.until)}" if node.until is not None else "again"
            yield Arrow(keys[_last(node).id], keys[_first(node).id], until)


def _first(node: Node) -> Step:
    """The step that a block begins with; a step itself."""
    while is_block(node) and node.steps:
        node = node.steps[0]
    assert isinstance(node, Step)
    return node


def _last(node: Node) -> Step:
    while is_block(node) and node.steps:
        node = node.steps[-1]
    assert isinstance(node, Step)
    return node
