"""The decision graph's tables, behind the database's one thread. One call is one transaction: all of it, or nothing.

Edges join nodes of one project only, so a project's rows are a whole graph.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from ottod.core.decisions import Edge, Thought, Weight, around, pending_options, refusal, status_refusal, weigh
from ottod.errors import StorageError
from ottod.protocol.decisions import (
    DecisionEdge,
    DecisionFilter,
    DecisionNode,
    FoundDecisions,
    NewEdge,
    NewNode,
    NodeChange,
    NodeKind,
)
from ottod.storage.artifact_index import find_artifacts
from ottod.storage.database import Database

MAX_PROJECT_NODES = 5000
MAX_PROJECT_EDGES = 20_000
MAX_PROJECT_BYTES = 8 * 1024 * 1024
"""Of titles and texts."""
MAX_TREE_NODES = 1000
MAX_SESSION_CALLS = 1000
"""Calls of a session that are recognised when they are made again; the oldest are forgotten."""
MAX_REPLY_BYTES = 1024 * 1024
FRAME_BYTES = 400
"""What a node takes in a reply beside its title and text."""

_COLUMNS = (
    "node, kind, title, text, confidence, status, reason, session, agent, tree, project, at_ns, changed_at_ns,"
    " artifacts, sessions, commits"
)


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why a call is not carried out."""

    code: str
    message: str
    mend: str = ""


class Author(msgspec.Struct, frozen=True, kw_only=True):
    """Who logs, where, and when (wall clock)."""

    session: str
    agent: str
    tree: str
    project: str
    at_ns: int


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One call: everything that it adds and changes. `ids` are those of the new nodes, in their order."""

    key: str = ""
    ids: tuple[str, ...] = ()
    nodes: tuple[NewNode, ...] = ()
    edges: tuple[NewEdge, ...] = ()
    changes: tuple[NodeChange, ...] = ()


class DecisionGraph:
    """Of all projects. Every method raises StorageError if the database fails."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def log(self, entry: Entry, author: Author) -> FoundDecisions | Refusal:
        """Carries out a call, durably, and gives the nodes that it names. With a known key: what it once gave."""
        try:
            return await self._database.write(lambda connection: _log(connection, entry, author))
        except _Refused as refused:
            return refused.refusal

    async def query(self, wanted: DecisionFilter) -> FoundDecisions | Refusal:
        """`project` is a project's root; without it `tree`, `session` or `node` must say which projects are meant."""
        try:
            return await self._database.read(lambda connection: _query(connection, wanted))
        except _Refused as refused:
            return refused.refusal

    async def state(self, project: str) -> str:
        """What tells one state of a project's graph from the next: nothing is ever taken out of it but all."""
        query = (
            "SELECT (SELECT count(*) FROM decision_edges WHERE project = ?1), count(*), max(changed_at_ns)"
            " FROM decision_nodes WHERE project = ?1"
        )
        return await self._database.read(lambda c: repr(c.execute(query, (project,)).fetchone()))

    async def forget_project(self, project: str) -> int:
        """Forgets all of a project, durably; gives how many nodes that were."""
        return await self._database.write(lambda connection: _forget(connection, project))

    async def forget_calls(self, session: str) -> None:
        """The session is gone: it will repeat nothing."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM decision_calls WHERE session = ?", (session,))

        await self._database.write(work, durable=False)


class _Refused(StorageError):
    """Undoes the transaction. The database's thread passes errors of this class on to whoever asked."""

    def __init__(self, code: str, message: str, mend: str = "") -> None:
        super().__init__(message)
        self.refusal = Refusal(code=code, message=message, mend=mend)


# ---------------------------------------------------------------- writing


def _log(connection: sqlite3.Connection, entry: Entry, author: Author) -> FoundDecisions:
    known = _earlier(connection, entry.key, author.session)
    if known is not None:
        return _whole(connection, author.project, known)
    _check_room(connection, entry, author)
    refs = _refs(entry)
    for place, (node, new) in enumerate(zip(entry.ids, entry.nodes, strict=True)):
        _insert_node(connection, node, new, replace(author, at_ns=author.at_ns + place))
    edges = [Edge(refs.get(e.source, e.source), e.kind, refs.get(e.target, e.target)) for e in entry.edges]
    named = [*entry.ids, *(end for e in edges for end in (e.source, e.target)), *(c.node for c in entry.changes)]
    named = list(dict.fromkeys(refs.get(node, node) for node in named))
    kinds = _kinds(connection, named, author.project)
    problem = refusal(kinds, edges, old_at=lambda node: _edges_at(connection, node))
    if problem:
        raise _Refused("bad_edge", problem)
    for edge in edges:
        _insert_edge(connection, edge, author)
    for change in entry.changes:
        _change(connection, refs.get(change.node, change.node), change, author)
    _remember(connection, entry.key, author.session, named)
    return _whole(connection, author.project, named)


def _refs(entry: Entry) -> dict[str, str]:
    refs: dict[str, str] = {}
    for node, new in zip(entry.ids, entry.nodes, strict=True):
        if new.ref and refs.setdefault(new.ref, node) != node:
            raise _Refused("bad_node", f"two nodes of the call are called {new.ref!r}")
    return refs


def _check_room(connection: sqlite3.Connection, entry: Entry, author: Author) -> None:
    count, size = connection.execute(
        "SELECT count(*), coalesce(sum(length(title) + length(text)), 0) FROM decision_nodes WHERE project = ?",
        (author.project,),
    ).fetchone()
    (in_tree,) = connection.execute(
        "SELECT count(*) FROM decision_nodes WHERE project = ? AND tree = ?", (author.project, author.tree)
    ).fetchone()
    (edges,) = connection.execute(
        "SELECT count(*) FROM decision_edges WHERE project = ?", (author.project,)
    ).fetchone()
    new_bytes = sum(len(new.title) + len(new.text) for new in entry.nodes)
    mend = f"`ottoctl decisions forget --project {author.project}` makes room by forgetting all of it"
    limits = (
        (count + len(entry.nodes), MAX_PROJECT_NODES, "nodes are the limit of a project", bool(entry.nodes)),
        (
            in_tree + len(entry.nodes),
            MAX_TREE_NODES,
            "nodes are the limit of one tree of sessions",
            bool(entry.nodes),
        ),
        (size + new_bytes, MAX_PROJECT_BYTES, "characters are the limit of a project", bool(entry.nodes)),
        (edges + len(entry.edges), MAX_PROJECT_EDGES, "edges are the limit of a project", bool(entry.edges)),
    )
    for would_be, limit, what, concerns in limits:
        if concerns and would_be > limit:
            raise _Refused("too_many_decisions", f"{limit} {what}", mend)


def _insert_node(connection: sqlite3.Connection, node: str, new: NewNode, author: Author) -> None:
    artifacts = []
    for reference in new.artifacts:
        found = find_artifacts(connection, reference, author.tree)
        if len(found) != 1:
            raise _Refused("no_such_artifact", f"there is no artifact {reference!r} to refer to")
        artifacts.append(found[0].artifact)
    row = {
        "node": node,
        "kind": new.kind,
        "title": new.title,
        "text": new.text,
        "confidence": new.confidence,
        "status": "active",
        "reason": "",
        "session": author.session,
        "agent": author.agent,
        "tree": author.tree,
        "project": author.project,
        "at_ns": author.at_ns,
        "changed_at_ns": author.at_ns,
        "artifacts": " ".join(dict.fromkeys(artifacts)),
        "sessions": " ".join(dict.fromkeys(new.sessions)),
        "commits": " ".join(dict.fromkeys(new.commits)),
    }
    connection.execute(
        f"INSERT INTO decision_nodes ({_COLUMNS}, folded) VALUES ({', '.join('?' * len(row))}, ?)",
        (*row.values(), f"{new.title}\n{new.text}".casefold()),
    )


def _kinds(connection: sqlite3.Connection, named: Iterable[str], project: str) -> dict[str, NodeKind]:
    kinds: dict[str, NodeKind] = {}
    for node in named:
        row = connection.execute(
            "SELECT kind FROM decision_nodes WHERE node = ? AND project = ?", (node, project)
        ).fetchone()
        if row is None:
            raise _Refused(
                "no_such_node",
                f"there is no node {node!r} in this project",
                "give a whole id, or the ref of a node of the same call",
            )
        kinds[node] = row[0]
    return kinds


def _edges_at(connection: sqlite3.Connection, node: str) -> list[Edge]:
    rows = connection.execute(
        "SELECT source, kind, target FROM decision_edges WHERE source = ?1"
        " UNION SELECT source, kind, target FROM decision_edges WHERE target = ?1",
        (node,),
    )
    return [Edge(*row) for row in rows]


def _insert_edge(connection: sqlite3.Connection, edge: Edge, author: Author) -> None:
    added = connection.execute(
        "INSERT OR IGNORE INTO decision_edges (source, kind, target, project, session, at_ns) VALUES (?,?,?,?,?,?)",
        (edge.source, edge.kind, edge.target, author.project, author.session, author.at_ns),
    ).rowcount
    if added and edge.kind == "supersedes":
        connection.execute(
            "UPDATE decision_nodes SET status = 'superseded', reason = ?, changed_at_ns = ? WHERE node = ?",
            (f"superseded by {edge.source}", author.at_ns, edge.target),
        )


def _change(connection: sqlite3.Connection, node: str, change: NodeChange, author: Author) -> None:
    if change.status is not None:
        above = connection.execute(
            "SELECT n.node FROM decision_edges AS e JOIN decision_nodes AS n ON n.node = e.source"
            " WHERE e.target = ? AND e.kind = 'supersedes' AND n.status = 'active' ORDER BY n.node LIMIT 1",
            (node,),
        )
        if problem := status_refusal(node, change.status, [row[0] for row in above]):
            raise _Refused("bad_status", problem)
        connection.execute("UPDATE decision_nodes SET status = ? WHERE node = ?", (change.status, node))
    if change.confidence is not None:
        connection.execute("UPDATE decision_nodes SET confidence = ? WHERE node = ?", (change.confidence, node))
    if change.status is not None or change.reason:
        connection.execute("UPDATE decision_nodes SET reason = ? WHERE node = ?", (change.reason, node))
    connection.execute("UPDATE decision_nodes SET changed_at_ns = ? WHERE node = ?", (author.at_ns, node))


def _earlier(connection: sqlite3.Connection, key: str, session: str) -> list[str] | None:
    """The nodes that the call named when it was made before; None if it was not."""
    row = connection.execute(
        "SELECT nodes FROM decision_calls WHERE session = ? AND call = ?", (session, key)
    ).fetchone()
    return None if row is None else row[0].split()


def _remember(connection: sqlite3.Connection, key: str, session: str, nodes: Sequence[str]) -> None:
    if key:
        connection.execute(
            "INSERT INTO decision_calls (session, call, nodes) VALUES (?,?,?)", (session, key, " ".join(nodes))
        )
        connection.execute(
            "DELETE FROM decision_calls WHERE session = ?1 AND entry <= (SELECT entry FROM decision_calls"
            " WHERE session = ?1 ORDER BY entry DESC LIMIT 1 OFFSET ?2)",
            (session, MAX_SESSION_CALLS),
        )


def _forget(connection: sqlite3.Connection, project: str) -> int:
    connection.execute("DELETE FROM decision_edges WHERE project = ?", (project,))
    return connection.execute("DELETE FROM decision_nodes WHERE project = ?", (project,)).rowcount


# ---------------------------------------------------------------- reading


def _query(connection: sqlite3.Connection, wanted: DecisionFilter) -> FoundDecisions:
    start = _node_named(connection, wanted)
    projects = [start[1]] if start is not None else _projects(connection, wanted)
    thoughts: dict[str, Thought] = {}
    edges: list[Edge] = []
    for project in projects:
        some_thoughts, some_edges = _graph(connection, project)
        thoughts.update(some_thoughts)
        edges += some_edges
    weights = weigh(thoughts, edges)
    chosen = [node for node in _matching(connection, wanted, projects) if node in thoughts]
    if start is not None:
        near = around(start[0], edges, wanted.depth)
        chosen = [node for node in chosen if node in near]
    if wanted.pending:
        options = pending_options(thoughts, edges)
        chosen = [node for node in chosen if node in options]
    if wanted.weak_below is not None:
        least = wanted.weak_below
        weak = [n for n in chosen if thoughts[n].status == "active" and weights[n].effective < least]
        chosen = sorted(weak, key=lambda node: weights[node].effective)
    nodes = _nodes(connection, chosen[: wanted.limit], weights, has_text=wanted.has_text)
    return FoundDecisions(
        nodes=tuple(nodes), edges=_edges_among(connection, nodes), truncated=len(nodes) < len(chosen)
    )


def _node_named(connection: sqlite3.Connection, wanted: DecisionFilter) -> tuple[str, str] | None:
    """The node that is meant, and its project. None if none is named."""
    if not wanted.node:
        return None
    where, values = "node >= ? AND node < ?", [wanted.node, wanted.node + "\x7f"]
    if wanted.project:
        where, values = f"{where} AND project = ?", [*values, wanted.project]
    rows = connection.execute(
        f"SELECT node, project FROM decision_nodes WHERE {where} ORDER BY node LIMIT 2", values
    ).fetchall()
    if not rows:
        raise _Refused("no_such_node", f"there is no node {wanted.node!r}", "see `ottoctl decisions list`")
    if len(rows) > 1:
        raise _Refused("ambiguous_node", f"{wanted.node!r} can mean several nodes", "type more of the id")
    return rows[0][0], rows[0][1]


def _projects(connection: sqlite3.Connection, wanted: DecisionFilter) -> list[str]:
    if wanted.project:
        return [wanted.project]
    rows = connection.execute(
        "SELECT DISTINCT project FROM decision_nodes WHERE (?1 <> '' AND tree = ?1) OR (?2 <> '' AND session = ?2)"
        " ORDER BY project LIMIT 8",
        (wanted.tree, wanted.session),
    )
    return [row[0] for row in rows]


def _graph(connection: sqlite3.Connection, project: str) -> tuple[dict[str, Thought], list[Edge]]:
    rows = connection.execute(
        "SELECT node, kind, confidence, status FROM decision_nodes WHERE project = ?", (project,)
    )
    thoughts = {
        node: Thought(kind=kind, confidence=confidence, status=status) for node, kind, confidence, status in rows
    }
    rows = connection.execute("SELECT source, kind, target FROM decision_edges WHERE project = ?", (project,))
    return thoughts, [Edge(*row) for row in rows]


def _matching(connection: sqlite3.Connection, wanted: DecisionFilter, projects: Sequence[str]) -> list[str]:
    """The ids that fit by their columns, newest first."""
    where = [f"project IN ({', '.join('?' * len(projects))})"]
    values: list[Any] = list(projects)
    for column, value in (("tree", wanted.tree), ("session", wanted.session)):
        if value:
            where.append(f"{column} = ?")
            values.append(value)
    for column, some in (("kind", wanted.kinds), ("status", wanted.statuses)):
        if some:
            where.append(f"{column} IN ({', '.join('?' * len(some))})")
            values += some
    for word in wanted.text.casefold().split():
        where.append("instr(folded, ?) > 0")
        values.append(word)
    query = f"SELECT node FROM decision_nodes WHERE {' AND '.join(where)} ORDER BY at_ns DESC, node"
    return [row[0] for row in connection.execute(query, values)]


def _whole(connection: sqlite3.Connection, project: str, nodes: Sequence[str]) -> FoundDecisions:
    """Nodes as they are now, without their texts, and the edges between them."""
    weights = weigh(*_graph(connection, project))
    found = _nodes(connection, [node for node in nodes if node in weights], weights, has_text=False)
    return FoundDecisions(nodes=tuple(found), edges=_edges_among(connection, found))


def _nodes(
    connection: sqlite3.Connection, ids: Sequence[str], weights: dict[str, Weight], *, has_text: bool
) -> list[DecisionNode]:
    """In the order given, as many as a reply can hold."""
    found: list[DecisionNode] = []
    room_bytes = MAX_REPLY_BYTES
    for node in ids:
        row = connection.execute(f"SELECT {_COLUMNS} FROM decision_nodes WHERE node = ?", (node,)).fetchone()
        unpacked = _unpack(row, weights[node], has_text=has_text)
        room_bytes -= FRAME_BYTES + len(unpacked.title.encode()) + len(unpacked.text.encode())
        if room_bytes < 0:
            break
        found.append(unpacked)
    return found


def _edges_among(connection: sqlite3.Connection, nodes: Sequence[DecisionNode]) -> tuple[DecisionEdge, ...]:
    ids = {each.node for each in nodes}
    found = []
    for node in ids:
        rows = connection.execute(
            "SELECT source, kind, target, session, at_ns FROM decision_edges WHERE source = ?", (node,)
        )
        found += [
            DecisionEdge(source=source, kind=kind, target=target, session=session, at_ns=at_ns)
            for source, kind, target, session, at_ns in rows
            if target in ids
        ]
    return tuple(sorted(found, key=lambda edge: (edge.at_ns, edge.source, edge.kind, edge.target)))


def _unpack(row: Sequence[Any], weight: Weight, *, has_text: bool) -> DecisionNode:
    names = _COLUMNS.replace(" ", "").split(",")
    fields = dict(zip(names, row, strict=True))
    for links in ("artifacts", "sessions", "commits"):
        fields[links] = tuple(fields[links].split())
    if not has_text:
        fields["text"] = ""
    return DecisionNode(**fields, effective=weight.effective, because=weight.because)
