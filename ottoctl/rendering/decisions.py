"""The decision graph as text: a table, one node, a tree, and the languages that draw. Pure.

What agents wrote is shown on one line and without what drives a terminal; in Mermaid and DOT no character of it
stands for anything but itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ottoctl.rendering.amounts import age
from ottoctl.rendering.ansi import one_line, paint, printable
from ottoctl.rendering.table import Cell, render_table
from ottod.protocol.decisions import ID_PREFIX, DecisionEdge, DecisionNode

HEADER = ("ID", "KIND", "STATUS", "SURE", "AGE", "AGENT", "TITLE")
SHORT_DIGITS = 5
LABEL_CHARS = 120
KIND_ORDER = ("goal", "decision", "option", "action", "outcome", "observation", "revisit")
SHAPES = {
    "goal": ("([", "])", "oval"),
    "decision": ("{{", "}}", "hexagon"),
    "option": ("[/", "/]", "parallelogram"),
    "action": ("[", "]", "box"),
    "outcome": ("[[", "]]", "component"),
    "observation": (">", "]", "note"),
    "revisit": ("((", "))", "circle"),
}
"""For each kind: how Mermaid opens and closes its shape, and what DOT calls it."""


def decisions_table(
    nodes: Sequence[DecisionNode], *, now_ns: int, width: int, color: bool, full_ids: bool = False
) -> str:
    """A line for each node. `now_ns` is the wall clock."""
    shown = short_node_ids([node.node for node in nodes], full=full_ids)
    rows = [
        [
            Cell(shown[node.node], "bold"),
            node.kind,
            node.status,
            sure(node),
            age(max(0, now_ns - node.at_ns) / 1e9),
            one_line(node.agent),
            one_line(node.title),
        ]
        for node in nodes
    ]
    return render_table(HEADER, rows, width=width, color=color, right=frozenset({3, 4}))


def sure(node: DecisionNode) -> str:
    """`80`, or `80→40` if what it rests on bears no more; `-` if nobody said and nothing holds it down."""
    own = "-" if node.confidence is None else str(node.confidence)
    return f"{own}→{node.effective}" if node.because else own


def short_node_ids(ids: Sequence[str], *, full: bool = False) -> dict[str, str]:
    """The ids cut to the shortest common length at which all of them differ."""
    longest = max((len(i) for i in ids), default=0)
    for length in range(longest if full else len(ID_PREFIX) + SHORT_DIGITS, longest):
        if len({i[:length] for i in ids}) == len(set(ids)):
            return {i: i[:length] for i in ids}
    return {i: i for i in ids}


def node_text(
    node: DecisionNode, *, others: Sequence[DecisionNode], edges: Sequence[DecisionEdge], color: bool
) -> str:
    """One node with all that is known of it, and what it is joined to."""
    lines = [f"{paint(node.node, 'bold', color=color)} {node.kind}, {node.status}: {one_line(node.title)}"]
    held = f", held down to {node.effective} by {one_line(node.because)}" if node.because else ""
    facts = [
        ("confidence", ("-" if node.confidence is None else str(node.confidence)) + held),
        ("by", f"{one_line(node.agent)} in {one_line(node.session)}"),
        ("project", one_line(node.project)),
        ("reason", one_line(node.reason)),
        ("artifacts", " ".join(map(one_line, node.artifacts))),
        ("sessions", " ".join(map(one_line, node.sessions))),
        ("commits", " ".join(map(one_line, node.commits))),
    ]
    lines += [f"{name + ':':<12}{value}" for name, value in facts if value]
    titles = {other.node: one_line(other.title) for other in others}
    for edge in edges:
        if node.node in (edge.source, edge.target):
            lines.append(f"  {_end(edge.source, titles)} {edge.kind} {_end(edge.target, titles)}")
    if node.text:
        lines += ["", *(printable(line) for line in node.text.split("\n"))]
    return "".join(f"{line}\n" for line in lines)


def _end(node: str, titles: dict[str, str]) -> str:
    return f"{one_line(node)} ({titles[node]})" if titles.get(node) else one_line(node)


# ---------------------------------------------------------------- drawing


def decision_tree(nodes: Sequence[DecisionNode], edges: Sequence[DecisionEdge], *, color: bool) -> str:
    """Each node once in full, below what it was first reached from; each edge once. `↑`: drawn elsewhere."""
    ids = short_node_ids([node.node for node in nodes])
    lines = []
    for branch, edge, node, is_again in _walk(nodes, edges):
        relation = f"{edge.kind} " if edge is not None else ""
        if is_again:
            lines.append(f"{branch}{relation}↑ {ids[node.node]}")
            continue
        status = "" if node.status == "active" else f" [{node.status}]"
        certainty = "" if sure(node) == "-" else f" ({sure(node)})"
        name = paint(ids[node.node], "bold", color=color)
        lines.append(f"{branch}{relation}{name} {node.kind}: {one_line(node.title)}{certainty}{status}")
    return "".join(f"{line}\n" for line in lines)


def _walk(
    nodes: Sequence[DecisionNode], edges: Sequence[DecisionEdge]
) -> Iterator[tuple[str, DecisionEdge | None, DecisionNode, bool]]:
    """Branch, the edge that leads there, the node, and whether it has been drawn already."""
    known = {node.node: node for node in nodes}
    below: dict[str, list[DecisionEdge]] = {}
    for edge in sorted(edges, key=lambda edge: (edge.at_ns, edge.source, edge.kind, edge.target)):
        if edge.source in known and edge.target in known:
            below.setdefault(edge.source, []).append(edge)
    led_to = {edge.target for those in below.values() for edge in those}

    def rank(node: DecisionNode) -> tuple[bool, int, int, str]:
        return node.node in led_to, KIND_ORDER.index(node.kind), node.at_ns, node.node

    drawn: set[str] = set()
    # Whatever nothing leads to is a top; of what is left after these, which are circles, the first is one.
    for top in sorted(nodes, key=rank):
        if top.node in drawn:
            continue
        stack: list[tuple[str, str, DecisionEdge | None, str]] = [("", "", None, top.node)]
        while stack:
            branch, trunk, via, name = stack.pop()
            is_again = name in drawn
            drawn.add(name)
            yield branch, via, known[name], is_again
            if is_again:
                continue
            for place, child in enumerate(reversed(below.get(name, ()))):
                ends = ("└─ ", "   ") if place == 0 else ("├─ ", "│  ")
                stack.append((trunk + ends[0], trunk + ends[1], child, child.target))


def mermaid(nodes: Sequence[DecisionNode], edges: Sequence[DecisionEdge]) -> str:
    """A Mermaid flowchart."""
    names = {node.node: f"n{number}" for number, node in enumerate(nodes)}
    lines = ["flowchart TD"]
    for node in nodes:
        begin, end, _ = SHAPES[node.kind]
        lines.append(f'  {names[node.node]}{begin}"{_entities(_label(node))}"{end}')
    for edge in edges:
        if edge.source in names and edge.target in names:
            lines.append(f"  {names[edge.source]} -->|{edge.kind}| {names[edge.target]}")
    for status in ("superseded", "abandoned"):
        if some := ",".join(names[node.node] for node in nodes if node.status == status):
            lines.append(f"  classDef {status} stroke-dasharray:4")
            lines.append(f"  class {some} {status}")
    return "".join(f"{line}\n" for line in lines)


def _entities(text: str) -> str:
    """Whatever is no letter, digit or blank as Mermaid's own entity: it can mean nothing else."""
    return "".join(c if c.isalnum() or c == " " else f"#{ord(c)};" for c in text)


def dot(nodes: Sequence[DecisionNode], edges: Sequence[DecisionEdge]) -> str:
    """A graph in the language of Graphviz."""
    names = {node.node: f"n{number}" for number, node in enumerate(nodes)}
    lines = ["digraph decisions {"]
    for node in nodes:
        style = "" if node.status == "active" else ", style=dashed"
        label = _label(node).replace("\\", "\\\\").replace('"', '\\"')
        lines.append(f'  {names[node.node]} [shape={SHAPES[node.kind][2]}, label="{label}"{style}];')
    for edge in edges:
        if edge.source in names and edge.target in names:
            lines.append(f'  {names[edge.source]} -> {names[edge.target]} [label="{edge.kind}"];')
    return "".join(f"{line}\n" for line in [*lines, "}"])


def _label(node: DecisionNode) -> str:
    title = one_line(node.title)
    if len(title) > LABEL_CHARS:
        title = title[: LABEL_CHARS - 1] + "…"
    certainty = "" if sure(node) == "-" else f" ({sure(node)})"
    return f"{node.kind}: {title}{certainty}"


def graph_record(nodes: Sequence[DecisionNode], edges: Sequence[DecisionEdge], truncated: bool) -> dict[str, Any]:
    """The same for programs."""
    return {"nodes": list(nodes), "edges": list(edges), "truncated": truncated}
