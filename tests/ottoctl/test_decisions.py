"""Decisions as text: each node and edge once, and no title drives a terminal or ends its own label."""

from __future__ import annotations

import re
from typing import get_args

from hypothesis import given, settings
from hypothesis import strategies as st

from ottoctl.rendering.decisions import decision_tree, decisions_table, dot, mermaid, node_text
from ottod.protocol.decisions import DecisionEdge, DecisionNode, EdgeKind, NodeKind, NodeStatus

NASTY = (
    "\x1b]0;owned\x07\x1b[2J",
    'a"]; n9 [label="evil',
    "x\\",
    '\\"];',
    '"]\n  n0 --> n9["',
    "click n0 href",
    "%% %%{init: {}}%%",
    "#quot;",
    "end",
    "]}>)|",
    "\u202etxt",
    "<script>alert(1)</script>",
    "\u2028x",
)
titles = st.one_of(
    st.sampled_from(NASTY), st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30)
)


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[DecisionNode], list[DecisionEdge]]:
    count = draw(st.integers(1, 6))
    nodes = [
        DecisionNode(
            node=f"d-{n:010}",
            kind=draw(st.sampled_from(get_args(NodeKind))),
            title=draw(titles),
            status=draw(st.sampled_from(get_args(NodeStatus))),
            text=draw(titles),
            agent=draw(titles),
            reason=draw(titles),
            at_ns=n,
        )
        for n in range(count)
    ]
    number = st.integers(0, count - 1)
    pairs = draw(st.lists(st.tuples(number, st.sampled_from(get_args(EdgeKind)), number), max_size=8, unique=True))
    return nodes, [DecisionEdge(source=nodes[a].node, kind=k, target=nodes[b].node) for a, k, b in pairs]


MERMAID_NODE = re.compile(
    r'  n\d+(?:\(\[|\{\{|\[/|\[\[|\(\(|\[|>)"((?:[^\W_]| |#\d+;)*)"(?:\]\)|\}\}|/\]|\]\]|\)\)|\])\Z'
)
MERMAID_EDGE = re.compile(r"  n\d+ -->\|[a-z_]+\| n\d+\Z")
MERMAID_CLASS = re.compile(
    r"  (?:classDef (?:superseded|abandoned) stroke-dasharray:4|class n[\dn,]+ (?:superseded|abandoned))\Z"
)
DOT_NODE = re.compile(r'  n\d+ \[shape=\w+, label="(?:[^"\\]|\\\\|\\")*"(?:, style=dashed)?\];\Z')
DOT_EDGE = re.compile(r'  n\d+ -> n\d+ \[label="[a-z_]+"\];\Z')


@settings(max_examples=150, deadline=None)
@given(graph=graphs())
def test_drawings_parse(graph: tuple[list[DecisionNode], list[DecisionEdge]]) -> None:
    """Whatever agents wrote, each line is a node, an edge or a class, and there are as many as there should be."""
    nodes, edges = graph
    lines = mermaid(nodes, edges).split("\n")
    assert lines[0] == "flowchart TD" and lines[-1] == ""
    kinds = [sum(bool(p.match(line)) for line in lines[1:-1]) for p in (MERMAID_NODE, MERMAID_EDGE, MERMAID_CLASS)]
    assert kinds[:2] == [len(nodes), len(edges)] and sum(kinds) == len(lines) - 2
    lines = dot(nodes, edges).split("\n")
    assert (lines[0], lines[-2:]) == ("digraph decisions {", ["}", ""])
    assert [sum(bool(p.match(line)) for line in lines[1:-2]) for p in (DOT_NODE, DOT_EDGE)] == [
        len(nodes),
        len(edges),
    ]
    assert len(lines) - 3 == len(nodes) + len(edges)


@settings(max_examples=150, deadline=None)
@given(graph=graphs())
def test_the_tree_is_whole(graph: tuple[list[DecisionNode], list[DecisionEdge]]) -> None:
    """Each node in full exactly once, each edge exactly once, circles and all."""
    nodes, edges = graph
    lines = decision_tree(nodes, edges, color=False).split("\n")[:-1]
    bare = [line.lstrip("├└│─ ") for line in lines]
    again = [line for line in bare if re.match(r"\w+ ↑ d-\d+\Z", line)]
    kinds = "|".join(get_args(EdgeKind))
    full = [line for line in bare if re.match(rf"(?:(?:{kinds}) )?d-\d+ \w+: ", line)]
    assert len(full) == len(nodes) and len(full) + len(again) == len(lines)
    drawn = [line for line in bare if re.match(rf"(?:{kinds}) ", line)]
    assert sorted(line.split(" ")[0] for line in drawn) == sorted(edge.kind for edge in edges)


@settings(max_examples=100, deadline=None)
@given(graph=graphs())
def test_nothing_drives_a_terminal(graph: tuple[list[DecisionNode], list[DecisionEdge]]) -> None:
    """No control character of an agent's, and no line more than there should be."""
    nodes, edges = graph
    table = decisions_table(nodes, now_ns=0, width=0, color=False)
    assert table.count("\n") == len(nodes) + 1
    shown = [table, decision_tree(nodes, edges, color=False), mermaid(nodes, edges), dot(nodes, edges)]
    shown += [node_text(node, others=nodes, edges=edges, color=False) for node in nodes]
    for text in shown:
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)


def test_a_tree_reads_well() -> None:
    """Goals on top, what follows below, what is drawn elsewhere named, and how sure one can be."""
    nodes = [
        DecisionNode(node="d-0000000001", kind="observation", title="slow", confidence=40, at_ns=1),
        DecisionNode(node="d-0000000002", kind="goal", title="log in", at_ns=2),
        DecisionNode(
            node="d-0000000003",
            kind="decision",
            title="tokens",
            confidence=80,
            effective=40,
            because="d-0000000001",
            at_ns=3,
        ),
        DecisionNode(node="d-0000000004", kind="option", title="codes", status="abandoned", at_ns=4),
    ]
    edges = [
        DecisionEdge(source="d-0000000002", kind="leads_to", target="d-0000000003", at_ns=1),
        DecisionEdge(source="d-0000000003", kind="rejected", target="d-0000000004", at_ns=2),
        DecisionEdge(source="d-0000000001", kind="supports", target="d-0000000003", at_ns=3),
    ]
    assert decision_tree(nodes, edges, color=False).splitlines() == [
        "d-0000000002 goal: log in",
        "└─ leads_to d-0000000003 decision: tokens (80→40)",
        "   └─ rejected d-0000000004 option: codes [abandoned]",
        "d-0000000001 observation: slow (40)",
        "└─ supports ↑ d-0000000003",
    ]
