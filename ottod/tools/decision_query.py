"""decision_query: what the agents of the project have decided, and how sure one can be of it."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ottod.protocol.decisions import (
    MAX_DEPTH,
    MAX_QUERY_CHARS,
    WEAK_BELOW,
    DecisionEdge,
    DecisionFilter,
    DecisionNode,
    NodeKind,
    NodeStatus,
)
from ottod.settings.units import plural
from ottod.tools.base import Facts, FoundDecisions, Tool, ToolContext, ToolOutput
from ottod.tools.decision_log import decisions_of

NOTE_BYTES = 400
"""What the tool's own words and the marks around the content may take of the output."""


class DecisionQueryArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which nodes: all that is given must hold."""

    kinds: Annotated[tuple[NodeKind, ...], Meta(max_length=20, description="Only of these kinds.")] = ()
    status: Annotated[
        Literal["active", "superseded", "abandoned", "any"], Meta(description="Only those that are this.")
    ] = "active"
    text: Annotated[str, Meta(max_length=MAX_QUERY_CHARS, description="All of these words occur in it.")] = ""
    node: Annotated[str, Meta(max_length=40, description="This node, of whatever status, and what is around it.")] = (
        ""
    )
    depth: Annotated[int, Meta(ge=0, le=MAX_DEPTH, description="How many edges around `node`.")] = 1
    find: Annotated[
        Literal["all", "weak", "pending"],
        Meta(
            description=f"`weak`: effective confidence below {WEAK_BELOW}, weakest first; `pending`: options that no "
            "decision has chosen or rejected."
        ),
    ] = "all"
    scope: Annotated[
        Literal["project", "tree", "session"],
        Meta(description="Of all, of the agents that work with this one, or of this one only."),
    ] = "project"
    limit: Annotated[int, Meta(ge=1, le=200, description="How many nodes at most.")] = 50


async def run(arguments: DecisionQueryArguments, context: ToolContext) -> ToolOutput:
    """A paragraph for each node, newest first, then the edges between them."""
    statuses: tuple[NodeStatus, ...] = () if arguments.status == "any" or arguments.node else (arguments.status,)
    found = await decisions_of(context).find(
        DecisionFilter(
            tree="." if arguments.scope == "tree" else "",
            session="." if arguments.scope == "session" else "",
            kinds=arguments.kinds,
            statuses=statuses,
            text=arguments.text,
            node=arguments.node,
            depth=arguments.depth,
            weak_below=WEAK_BELOW if arguments.find == "weak" else None,
            pending=arguments.find == "pending",
            limit=arguments.limit,
            has_text=True,
        )
    )
    if not found.nodes:
        return ToolOutput(text="there are no such nodes")
    content, shown = _content(found, context.max_output_bytes - NOTE_BYTES)
    more = "; there are more, ask more narrowly" if found.truncated or shown < len(found.nodes) else ""
    return ToolOutput(
        text=f"{plural(shown, 'node')}{more}",
        untrusted=content,
        untrusted_source="the decision graph, what agents logged",
        truncated=bool(more),
        data={"nodes": [node.node for node in found.nodes[:shown]]},
    )


def _content(found: FoundDecisions, room_bytes: int) -> tuple[str, int]:
    """The text, and how many nodes are in it."""
    parts: list[str] = []
    for node in found.nodes:
        part = describe(node)
        room_bytes -= len(part.encode()) + 1
        if room_bytes < 0:
            break
        parts.append(part)
    shown = {node.node for node in found.nodes[: len(parts)]}
    lines = [edge_line(edge) for edge in found.edges if edge.source in shown and edge.target in shown]
    for number, line in enumerate(lines):
        room_bytes -= len(line) + 1
        if room_bytes < 0:
            return "\n".join([*parts, *lines[:number]]), len(parts)
    return "\n".join([*parts, *lines]), len(parts)


def describe(node: DecisionNode) -> str:
    """`d-7f3k… decision, 80 %, by architect in s-…: TITLE`, and below it the text and the links, indented."""
    sure = "" if node.confidence is None else f", {node.confidence} %"
    if node.because:
        sure += f", effectively {node.effective} % because of {node.because}"
    status = "" if node.status == "active" else f", {node.status}"
    lines = [f"{node.node} {node.kind}{status}{sure}, by {node.agent} in {node.session}: {node.title}"]
    lines += [f"    {line}" for line in node.text.split("\n") if line]
    if node.reason:
        lines.append(f"    [{node.status}: {node.reason}]")
    for what in ("artifacts", "sessions", "commits"):
        if links := getattr(node, what):
            lines.append(f"    {what}: {', '.join(links)}")
    return "\n".join(lines)


def edge_line(edge: DecisionEdge) -> str:
    return f"{edge.source} {edge.kind} {edge.target}"


DECISION_QUERY = Tool(
    name="decision_query",
    description=(
        "Look at the decision graph of this project: what was decided, why, what else was weighed, what came of it, "
        "and how sure one can be; also by agents of earlier sessions. Effective confidence is never above that of "
        "what a node rests on."
    ),
    arguments=DecisionQueryArguments,
    permissions=frozenset({"read"}),
    idempotent=True,
    run=run,
    touches=lambda arguments: Facts(),
    timeout_s=30.0,
)
