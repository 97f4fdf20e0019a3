"""decision_log: what this agent wants, weighs, decides, does and finds, for the agents of the project to know."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ottod.errors import ToolError
from ottod.protocol.decisions import (
    MAX_CHANGES,
    MAX_EDGES,
    MAX_LINKS,
    MAX_NODES,
    MAX_REASON_CHARS,
    MAX_TEXT_CHARS,
    MAX_TITLE_CHARS,
    EdgeKind,
    NewEdge,
    NewNode,
    NodeChange,
    NodeKind,
)
from ottod.settings.units import plural
from ottod.tools.base import Decisions, Facts, FoundDecisions, Tool, ToolContext, ToolOutput

Name = Annotated[str, Meta(min_length=1, max_length=40)]
Link = Annotated[str, Meta(min_length=1, max_length=200)]


class NodeArgument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A node to add."""

    kind: NodeKind
    title: Annotated[str, Meta(min_length=1, max_length=MAX_TITLE_CHARS, description="One line that says it.")]
    text: Annotated[str, Meta(max_length=MAX_TEXT_CHARS, description="Why, and what else there is to know.")] = ""
    confidence: Annotated[int, Meta(ge=0, le=100, description="How sure you are, in percent.")] | None = None
    ref: Annotated[str, Meta(max_length=40, description="What the edges of this call call it, such as `a`.")] = ""
    artifacts: Annotated[
        tuple[Link, ...], Meta(max_length=MAX_LINKS, description="Artifacts that belong to it: ids or names.")
    ] = ()
    sessions: Annotated[tuple[Link, ...], Meta(max_length=MAX_LINKS, description="Ids of sessions.")] = ()
    commits: Annotated[tuple[Link, ...], Meta(max_length=MAX_LINKS, description="Commits, in hexadecimal.")] = ()


class EdgeArgument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An edge to add: `source` leads_to, has chosen, rejected, requires, … `target`."""

    source: Annotated[Name, Meta(description="The id of a node, or a ref of this call.")]
    kind: EdgeKind
    target: Annotated[Name, Meta(description="The id of a node, or a ref of this call.")]


class ChangeArgument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A node to change. What replaces a node says so by an edge `supersedes`."""

    node: Annotated[Name, Meta(description="Its id.")]
    status: Literal["active", "abandoned"] | None = None
    confidence: Annotated[int, Meta(ge=0, le=100)] | None = None
    reason: Annotated[str, Meta(max_length=MAX_REASON_CHARS, description="Why.")] = ""


class DecisionLogArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to add and to change: all of it, or nothing if something is wrong."""

    nodes: Annotated[tuple[NodeArgument, ...], Meta(max_length=MAX_NODES, description="Nodes to add.")] = ()
    edges: Annotated[tuple[EdgeArgument, ...], Meta(max_length=MAX_EDGES, description="Edges to add.")] = ()
    changes: Annotated[tuple[ChangeArgument, ...], Meta(max_length=MAX_CHANGES, description="Nodes to change.")] = ()


async def run(arguments: DecisionLogArguments, context: ToolContext) -> ToolOutput:
    """The ids of the new nodes, in their order."""
    decisions = decisions_of(context)
    if not (arguments.nodes or arguments.edges or arguments.changes):
        raise ToolError("give nodes, edges or changes", code="bad_arguments")
    found = await decisions.log(
        [msgspec.convert(node, NewNode, from_attributes=True) for node in arguments.nodes],
        [msgspec.convert(edge, NewEdge, from_attributes=True) for edge in arguments.edges],
        [msgspec.convert(change, NodeChange, from_attributes=True) for change in arguments.changes],
        key=context.idempotency_key,
    )
    new = found.nodes[: len(arguments.nodes)]
    lines = [f"{node.node}: {said.kind}, {said.title}" for node, said in zip(new, arguments.nodes, strict=False)]
    others = (("edge", len(arguments.edges)), ("change", len(arguments.changes)))
    lines += [plural(count, noun) for noun, count in others if count]
    lines += _doubts(found, {node.node for node in new})
    return ToolOutput(text="\n".join(["logged:", *lines]), data={"nodes": [node.node for node in new]})


def _doubts(found: FoundDecisions, new: set[str]) -> list[str]:
    """What holds the new nodes down: an agent that hears of it can do something about it."""
    return [
        f"{node.node} is held down to {node.effective} by {node.because}"
        for node in found.nodes
        if node.node in new and node.because
    ]


def decisions_of(context: ToolContext) -> Decisions:
    """Where decisions are. Raises ToolError outside of a session."""
    if context.decisions is None:
        raise ToolError("there are no decisions outside of a session", code="unavailable")
    return context.decisions


DECISION_LOG = Tool(
    name="decision_log",
    description=(
        "Add to the decision graph that all agents of this project share, also later ones: goals, decisions, "
        "options, actions, outcomes, observations and revisits, joined by edges. Usual: a goal leads_to a decision; "
        "the decision has chosen one option and rejected others; it leads_to an action, and that to an outcome; an "
        "observation supports a decision; a new decision supersedes an old one; a revisit revises one. "
        "Look with decision_query first."
    ),
    arguments=DecisionLogArguments,
    permissions=frozenset({"write"}),
    idempotent=True,
    run=run,
    touches=lambda arguments: Facts(),
    timeout_s=30.0,
)
