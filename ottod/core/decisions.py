"""The rules of the decision graph: what may be joined to what, what comes before what, and how sure one can be.

**Order.** `A leads_to B` puts A before B; `A requires B` and `A supersedes B` put B before A. No node comes before
itself: an edge that would close a circle of these three kinds is refused.

**Confidence.** A node's own confidence is what its author said, 100 if nothing. Its *effective* confidence is the
least of

- its own,
- the effective confidence of each node that leads to it, whatever has become of that node,
- that of each node that it requires, and of each option that it has chosen; 0 for one that is not active any more,
- if anything supports it: that of the best of its active supporters; 0 if none of these is active any more.

So doubt flows down, and no edge raises a node above its own confidence. `chosen` and `supports` may close circles, so
the four lines are equations; of their solutions the greatest is meant. It is found by settling nodes in rising order
of confidence, each once: what is settled later cannot lower what was settled before.

Source: ADR 0024.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import get_args

import msgspec

from ottod.protocol.decisions import EdgeKind, NodeKind, NodeStatus

KINDS: tuple[NodeKind, ...] = get_args(NodeKind)
NO_DOUBT = 100

_MOVES: tuple[NodeKind, ...] = ("decision", "option", "action")
_FACTS: tuple[NodeKind, ...] = ("outcome", "observation")


def _pairs(sources: Iterable[NodeKind], targets: Iterable[NodeKind]) -> frozenset[tuple[NodeKind, NodeKind]]:
    ends = tuple(targets)
    return frozenset((source, target) for source in sources for target in ends)


JOINS: Mapping[EdgeKind, frozenset[tuple[NodeKind, NodeKind]]] = {
    "leads_to": (
        _pairs(("goal",), ("goal", *_MOVES, "observation"))
        | _pairs(("decision",), ("goal", *_MOVES, *_FACTS, "revisit"))
        | _pairs(("option",), (*_MOVES, "outcome"))
        | _pairs(("action",), ("goal", "decision", "action", *_FACTS, "revisit"))
        | _pairs(_FACTS, ("goal", *_MOVES, *_FACTS, "revisit"))
        | _pairs(("revisit",), ("goal", *_MOVES))
    ),
    "chosen": _pairs(("decision",), ("option",)),
    "rejected": _pairs(("decision",), ("option",)),
    "requires": _pairs(("goal",), ("goal", "observation")) | _pairs(_MOVES, ("goal", *_MOVES, *_FACTS)),
    "blocks": _pairs((*_MOVES, *_FACTS), ("goal", *_MOVES)),
    "enables": _pairs((*_MOVES, *_FACTS), ("goal", *_MOVES, "outcome")),
    "supersedes": frozenset((kind, kind) for kind in KINDS),
    "supports": _pairs(("decision", *_FACTS), ("goal", *_MOVES, *_FACTS, "revisit")),
    "revises": _pairs(("revisit",), ("goal", *_MOVES, *_FACTS)),
}
"""For each kind of edge, the kinds of nodes (source, target) that it may join."""


class Edge(msgspec.Struct, frozen=True, order=True):
    """How `source` bears on `target`."""

    source: str
    kind: EdgeKind
    target: str


class Thought(msgspec.Struct, frozen=True, kw_only=True):
    """What of a node counts here."""

    kind: NodeKind
    confidence: int | None = None
    status: NodeStatus = "active"

    @property
    def own(self) -> int:
        """Its own confidence, 0 to 100."""
        return NO_DOUBT if self.confidence is None else self.confidence


class Weight(msgspec.Struct, frozen=True, kw_only=True):
    """A node's effective confidence, and the node that holds it below its own, empty if none does."""

    effective: int
    because: str = ""


# ---------------------------------------------------------------- what may be


def before_and_after(edge: Edge) -> tuple[str, str] | None:
    """The order that an edge gives two nodes, None if it gives none."""
    if edge.kind == "leads_to":
        return edge.source, edge.target
    return (edge.target, edge.source) if edge.kind in ("requires", "supersedes") else None


def refusal(kinds: Mapping[str, NodeKind], new: Sequence[Edge], *, old_at: Callable[[str], Iterable[Edge]]) -> str:
    """Why these edges cannot be added; empty if they can.

    `kinds` are those of their ends; `old_at` gives the edges that a node has already.
    """
    added: dict[str, list[Edge]] = {}

    def edges_at(node: str) -> list[Edge]:
        return [*old_at(node), *added.get(node, ())]

    for edge in new:
        problem = _misfit(edge, kinds) or _contradiction(edge, edges_at) or _circle(edge, edges_at)
        if problem:
            return problem
        for end in (edge.source, edge.target):
            added.setdefault(end, []).append(edge)
    return ""


def _misfit(edge: Edge, kinds: Mapping[str, NodeKind]) -> str:
    if edge.source == edge.target:
        return f"{edge.source} cannot be joined to itself"
    source, target = kinds[edge.source], kinds[edge.target]
    if (source, target) in JOINS[edge.kind]:
        return ""
    fitting = [kind for kind, pairs in JOINS.items() if (source, target) in pairs]
    mend = (
        f"between these there can be: {', '.join(fitting)}" if fitting else "nothing can join these, this way round"
    )
    return f"no {source} {edge.kind} {target} ({edge.source}, {edge.target}); {mend}"


def _contradiction(edge: Edge, edges_at: Callable[[str], Iterable[Edge]]) -> str:
    other: EdgeKind | None = {"chosen": "rejected", "rejected": "chosen"}.get(edge.kind)  # type: ignore[assignment]
    if other and Edge(edge.source, other, edge.target) in edges_at(edge.source):
        return f"{edge.source} has {other} {edge.target} already; log a decision that supersedes it"
    return ""


def _circle(edge: Edge, edges_at: Callable[[str], Iterable[Edge]]) -> str:
    """Whether the edge would put a node before itself: looks for its beginning from its end on."""
    order = before_and_after(edge)
    if order is None:
        return ""
    first, start = order
    came_from: dict[str, str] = {start: ""}
    queue = deque([start])
    while queue:
        node = queue.popleft()
        if node == first:
            path = [node]
            while came_from[path[-1]]:
                path.append(came_from[path[-1]])
            shown = " → ".join([first, *path[::-1]])
            return f"{edge.source} {edge.kind} {edge.target} would go round in a circle: {shown}"
        for other in edges_at(node):
            pair = before_and_after(other)
            if pair is not None and pair[0] == node and pair[1] not in came_from:
                came_from[pair[1]] = node
                queue.append(pair[1])
    return ""


def status_refusal(node: str, wanted: NodeStatus, superseded_by: Sequence[str]) -> str:
    """Why a node cannot get this status; empty if it can. `superseded_by` are active nodes that supersede it."""
    if wanted == "active" and superseded_by:
        return f"{node} is superseded by {superseded_by[0]}, which is active: abandon that first"
    return ""


# ---------------------------------------------------------------- how sure one can be


def weigh(thoughts: Mapping[str, Thought], edges: Iterable[Edge]) -> dict[str, Weight]:
    """The weight of every node. Edges to nodes that are not among them count for nothing."""
    passes: dict[str, list[str]] = {}
    """Node → those that it leads to, or that need it: they are never surer than it is."""
    supporters: dict[str, list[str]] = {}
    supported: dict[str, list[str]] = {}
    heap = [(thought.own, node, node) for node, thought in thoughts.items()]
    for edge in set(edges):
        if edge.source not in thoughts or edge.target not in thoughts:
            continue
        if edge.kind == "leads_to":
            passes.setdefault(edge.source, []).append(edge.target)
        elif edge.kind in ("requires", "chosen"):
            if thoughts[edge.target].status == "active":
                passes.setdefault(edge.target, []).append(edge.source)
            else:
                heap.append((0, edge.target, edge.source))
        elif edge.kind == "supports":
            supporters.setdefault(edge.target, []).append(edge.source)
    waits: dict[str, int] = {}
    """Node → how many of its active supporters are not settled; the last of them to be settled is the best."""
    for node, those in supporters.items():
        active = [each for each in those if thoughts[each].status == "active"]
        waits[node] = len(active)
        for each in active:
            supported.setdefault(each, []).append(node)
        if not active:
            heap.append((0, min(those), node))
    return _settle(thoughts, heap, passes, supported, waits)


def _settle(
    thoughts: Mapping[str, Thought],
    heap: list[tuple[int, str, str]],
    passes: Mapping[str, Sequence[str]],
    supported: Mapping[str, Sequence[str]],
    waits: dict[str, int],
) -> dict[str, Weight]:
    """Takes (confidence, whose it is, node) in rising order; the first that speaks of a node settles it."""
    heapq.heapify(heap)
    weights: dict[str, Weight] = {}
    while heap:
        value, origin, node = heapq.heappop(heap)
        if node in weights:
            continue
        if value == thoughts[node].own:
            origin = node
        weights[node] = Weight(effective=value, because="" if value == thoughts[node].own else origin)
        for below in passes.get(node, ()):
            heapq.heappush(heap, (value, origin, below))
        for held in supported.get(node, ()):
            waits[held] -= 1
            if not waits[held]:
                heapq.heappush(heap, (value, origin, held))
    return weights


def pending_options(thoughts: Mapping[str, Thought], edges: Iterable[Edge]) -> set[str]:
    """Active options that no active decision has chosen or rejected."""
    settled = {
        edge.target
        for edge in edges
        if edge.kind in ("chosen", "rejected")
        and edge.source in thoughts
        and thoughts[edge.source].status == "active"
    }
    return {n for n, t in thoughts.items() if t.kind == "option" and t.status == "active"} - settled


def around(node: str, edges: Iterable[Edge], depth: int) -> set[str]:
    """The nodes that are at most `depth` edges away, in either direction; the node itself is one."""
    neighbours: dict[str, set[str]] = {}
    for edge in edges:
        neighbours.setdefault(edge.source, set()).add(edge.target)
        neighbours.setdefault(edge.target, set()).add(edge.source)
    found, rim = {node}, {node}
    for _ in range(depth):
        rim = {each for at in rim for each in neighbours.get(at, ())} - found
        if not rim:
            break
        found |= rim
    return found
