"""The decision graph: what the agents of a project want, weigh, decide, do and find, for each other and later ones.

A node is one thought; an edge says how one bears on another. The graph belongs to a project, the root of the working
directory's repository, and outlives the sessions that drew it. What may be joined to what is in `core.decisions`.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

NodeKind = Literal["goal", "decision", "option", "action", "outcome", "observation", "revisit"]
EdgeKind = Literal[
    "leads_to", "chosen", "rejected", "requires", "blocks", "enables", "supersedes", "supports", "revises"
]
NodeStatus = Literal["active", "superseded", "abandoned"]

ID_PREFIX = "d-"
ID = re.compile(r"d-[0-9a-hjkmnp-tv-z]{10}\Z")
REF = re.compile(r"(?!d-)[A-Za-z0-9_.-]{1,40}\Z")
"""What a node is called within the call that logs it; it cannot be taken for an id."""
COMMIT = re.compile(r"[0-9a-f]{7,64}\Z")

MAX_TITLE_CHARS = 200
MAX_TEXT_CHARS = 4000
MAX_REASON_CHARS = 500
MAX_LINKS = 16
"""Of each kind, of one node."""
MAX_NODES = 20
"""In one call; so are the next two."""
MAX_EDGES = 60
MAX_CHANGES = 20
MAX_CALL_BYTES = 64 * 1024
MAX_QUERY_CHARS = 200
MAX_LISTED = 5000
MAX_DEPTH = 10
WEAK_BELOW = 50
"""An effective confidence below this is weak, unless somebody says otherwise."""

Link = Annotated[str, Meta(max_length=200)]
Links = Annotated[tuple[Link, ...], Meta(max_length=MAX_LINKS)]
Confidence = Annotated[int, Meta(ge=0, le=100)]
Reason = Annotated[str, Meta(max_length=MAX_REASON_CHARS)]


class _Form(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The form that all of them share."""


class NewNode(_Form, frozen=True, kw_only=True):
    """A node that is to be. `ref` is what the edges of the same call say for it."""

    kind: NodeKind
    title: Annotated[str, Meta(min_length=1, max_length=MAX_TITLE_CHARS)]
    text: Annotated[str, Meta(max_length=MAX_TEXT_CHARS)] = ""
    confidence: Confidence | None = None
    ref: Annotated[str, Meta(max_length=40)] = ""
    artifacts: Links = ()
    """Ids, names, or `NAME@VERSION`, of the session's tree."""
    sessions: Links = ()
    commits: Links = ()


class NewEdge(_Form, frozen=True, kw_only=True):
    """An edge that is to be; its ends are ids of nodes or refs of the same call."""

    source: Annotated[str, Meta(max_length=40)]
    kind: EdgeKind
    target: Annotated[str, Meta(max_length=40)]


class NodeChange(_Form, frozen=True, kw_only=True):
    """What a node is to become. `superseded` comes of an edge, not of a change."""

    node: Annotated[str, Meta(max_length=40)]
    status: Literal["active", "abandoned"] | None = None
    confidence: Confidence | None = None
    reason: Reason = ""


class DecisionNode(_Form, frozen=True, kw_only=True):
    """A node as it is. `effective` is its confidence as far as what it rests on bears it, `because` the node that
    holds it down, if that is another. Times are wall clock.
    """

    node: str
    kind: NodeKind
    title: str
    text: str = ""
    confidence: int | None = None
    effective: int = 100
    because: str = ""
    status: NodeStatus = "active"
    reason: str = ""
    """Why it has its status or confidence, if somebody said so."""
    session: str = ""
    agent: str = ""
    tree: str = ""
    project: str = ""
    at_ns: int = 0
    changed_at_ns: int = 0
    artifacts: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    commits: tuple[str, ...] = ()


class DecisionEdge(_Form, frozen=True, kw_only=True):
    """How `source` bears on `target`."""

    source: str
    kind: EdgeKind
    target: str
    session: str = ""
    at_ns: int = 0


class FoundDecisions(_Form, frozen=True, kw_only=True):
    """Nodes in order, the edges between them, and whether there are more nodes."""

    nodes: tuple[DecisionNode, ...] = ()
    edges: tuple[DecisionEdge, ...] = ()
    truncated: bool = False


class DecisionFilter(_Form, frozen=True, kw_only=True):
    """Which nodes are wanted: all that is given must hold. Edges come with the nodes that they join.

    `project` is a directory of it; `node` an id or the beginning of one, with all that is at most `depth` edges away.
    `weak_below`: active ones whose effective confidence is below it, the weakest first. `pending`: active options
    that no active decision has chosen or rejected. All words of `text` must occur.
    """

    project: Annotated[str, Meta(max_length=4096)] = ""
    tree: Annotated[str, Meta(max_length=40)] = ""
    session: Annotated[str, Meta(max_length=40)] = ""
    kinds: Annotated[tuple[NodeKind, ...], Meta(max_length=20)] = ()
    statuses: Annotated[tuple[NodeStatus, ...], Meta(max_length=10)] = ()
    text: Annotated[str, Meta(max_length=MAX_QUERY_CHARS)] = ""
    node: Annotated[str, Meta(max_length=40)] = ""
    depth: Annotated[int, Meta(ge=0, le=MAX_DEPTH)] = 1
    weak_below: Annotated[int, Meta(ge=1, le=101)] | None = None
    pending: bool = False
    limit: Annotated[int, Meta(ge=1, le=MAX_LISTED)] = 200
    has_text: bool = False
    """The nodes' texts are wanted, too."""
