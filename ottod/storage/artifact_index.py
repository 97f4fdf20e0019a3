"""The index of artifacts: a table of the database, behind its one thread.

A row exists only for content that is durable: whoever adds one has put the content into the store before.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import msgspec
from msgspec.structs import replace

from ottod.protocol.artifacts import ID_PREFIX, ArtifactInfo, SinkDelivery
from ottod.storage.database import Database

MAX_TREE_ARTIFACTS = 10_000
"""Versions of all names in one tree."""
MAX_TREE_BYTES = 1024 * 1024 * 1024
MAX_DIGESTS = 64
"""Contents of one file that are remembered as Otto's own."""
MAX_PLACED = 100_000
"""The same, of all files together."""

_COLUMNS = "artifact, tree, session, agent, name, version, kind, digest, size_bytes, sources, at_ns, step"
_NEWEST = (
    "version = (SELECT max(version) FROM artifacts AS o WHERE o.tree = artifacts.tree AND o.name = artifacts.name)"
)


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why the index does not take an artifact."""

    code: str
    message: str


class ArtifactIndex:
    """Of all trees. Every method raises StorageError if the database fails.

    `max_digests` contents of one file are remembered as Otto's own, `max_placed` of all files together.
    """

    def __init__(self, database: Database, *, max_digests: int = MAX_DIGESTS, max_placed: int = MAX_PLACED) -> None:
        self._database = database
        self._max_digests = max_digests
        self._max_placed = max_placed

    async def add(self, new: ArtifactInfo, *, sources: Sequence[str], key: str) -> ArtifactInfo | Refusal:
        """Adds the next version of a name, durably; gives it with its version and the ids of its sources.

        With a key that is known already, the artifact that was added with it. `sources` as in `find`.
        """
        return await self._database.write(lambda connection: _insert(connection, new, sources, key))

    async def by_key(self, key: str) -> ArtifactInfo | None:
        """The artifact that was added with this key."""
        return await self._database.read(lambda connection: _by_key(connection, key))

    async def find(self, reference: str, *, tree: str, version: int = 0) -> list[ArtifactInfo]:
        """What a reference can mean: an id or beginning of one, a name in the tree, or `NAME@VERSION`.

        Without a tree, the artifacts of that name in all trees. At most a few.
        """
        return await self._database.read(lambda connection: find_artifacts(connection, reference, tree, version))

    async def select(
        self, *, tree: str = "", name: str = "", kind: str = "", all_versions: bool = False, limit: int
    ) -> list[ArtifactInfo]:
        """Newest first."""
        wanted = {"tree": tree, "name": name, "kind": kind}
        where = [f"{column} = :{column}" for column, value in wanted.items() if value]
        where += [] if all_versions else [_NEWEST]
        query = (
            f"SELECT {_COLUMNS} FROM artifacts WHERE {' AND '.join(where) or '1'}"
            " ORDER BY at_ns DESC, name, version DESC LIMIT :limit"
        )
        return await self._database.read(lambda c: _unpack(c.execute(query, {**wanted, "limit": limit})))

    async def state(self, tree: str) -> str:
        """A digest of what a tree has, by name, version and content: the same for trees that have the same."""
        query = "SELECT name, version, kind, digest FROM artifacts WHERE tree = ? ORDER BY name, version"
        return await self._database.read(
            lambda c: sha256(repr(c.execute(query, (tree,)).fetchall()).encode()).hexdigest()
        )

    async def digests(self) -> set[str]:
        """Of everything that is indexed."""
        return await self._database.read(
            lambda c: {row[0] for row in c.execute("SELECT DISTINCT digest FROM artifacts")}
        )

    async def tree_of(self, session: str) -> str:
        """The tree that a session of the database belongs to; itself if that is not on record."""

        def work(connection: sqlite3.Connection) -> str:
            row = connection.execute("SELECT tree FROM sessions WHERE session = ?", (session,)).fetchone()
            return str(row[0] or session) if row is not None else session

        return await self._database.read(work)

    async def note_delivery(
        self, artifacts: Sequence[str], trees: Sequence[str], delivery: SinkDelivery, *, is_file: bool = False
    ) -> None:
        """Keeps what a sink did with artifacts of these trees; others are left alone.

        `is_file`: the place is a file that holds one of them now, which is remembered when the artifact is gone.
        """
        row = (delivery.sink, delivery.state, delivery.place, delivery.reason, delivery.attempts, delivery.at_ns)

        def work(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "INSERT OR REPLACE INTO deliveries (artifact, sink, state, place, reason, attempts, at_ns)"
                " SELECT artifact, ?, ?, ?, ?, ?, ? FROM artifacts WHERE artifact = ? AND tree = ?",
                [(*row, artifact, tree) for artifact in artifacts for tree in trees],
            )
            if is_file and delivery.state == "delivered":
                self._remember(connection, delivery.place, artifacts, trees)

        await self._database.write(work)

    def _remember(
        self, connection: sqlite3.Connection, place: str, artifacts: Sequence[str], trees: Sequence[str]
    ) -> None:
        """A file has the content of artifacts; what was longest ago is forgotten beyond the limits."""
        connection.executemany(
            "INSERT OR REPLACE INTO placed (place, digest)"
            " SELECT ?, digest FROM artifacts WHERE artifact = ? AND tree = ?",
            [(place, artifact, tree) for artifact in artifacts for tree in trees],
        )
        connection.execute(
            "DELETE FROM placed WHERE place = ? AND number NOT IN"
            " (SELECT number FROM placed WHERE place = ? ORDER BY number DESC LIMIT ?)",
            (place, place, self._max_digests),
        )
        connection.execute(
            "DELETE FROM placed WHERE number <= (SELECT coalesce(max(number), 0) FROM placed) - ?",
            (self._max_placed,),
        )

    async def delivered_to(self, place: str) -> list[str]:
        """Digests of what was delivered to a file, the newest first, also by sessions that are gone."""
        query = "SELECT digest FROM placed WHERE place = ? ORDER BY number DESC"
        return await self._database.read(lambda c: [row[0] for row in c.execute(query, (place,))])

    async def with_deliveries(self, found: Sequence[ArtifactInfo]) -> list[ArtifactInfo]:
        """The same artifacts, with what became of each."""

        def work(connection: sqlite3.Connection) -> list[ArtifactInfo]:
            return [replace(info, deliveries=_deliveries(connection, info.artifact)) for info in found]

        return await self._database.read(work)

    async def forget_tree(self, tree: str) -> list[str]:
        """Forgets a tree's artifacts if no session of it is left; gives the digests that nothing names any more."""
        return await self._database.write(lambda connection: _forget_tree(connection, tree), durable=False)


def _insert(
    connection: sqlite3.Connection, new: ArtifactInfo, references: Sequence[str], key: str
) -> ArtifactInfo | Refusal:
    known = _by_key(connection, key) if key else None
    if known is not None:
        return known
    sources: list[str] = []
    for reference in references:
        # An id is one whatever its tree: who may name which has been looked at.
        found = find_artifacts(connection, reference, "" if reference.startswith(ID_PREFIX) else new.tree, 0)
        if len(found) != 1:
            return Refusal(
                code="no_such_artifact", message=f"there is no artifact {reference[:120]!r} to be made from"
            )
        sources.append(found[0].artifact)
    count, size = connection.execute(
        "SELECT count(*), coalesce(sum(size_bytes), 0) FROM artifacts WHERE tree = ?", (new.tree,)
    ).fetchone()
    if count >= MAX_TREE_ARTIFACTS:
        return Refusal(code="too_many_artifacts", message=f"{MAX_TREE_ARTIFACTS} artifacts are the limit of a tree")
    if size + new.size_bytes > MAX_TREE_BYTES:
        return Refusal(code="too_large", message=f"{MAX_TREE_BYTES} bytes of artifacts are the limit of a tree")
    (version,) = connection.execute(
        "SELECT coalesce(max(version), 0) + 1 FROM artifacts WHERE tree = ? AND name = ?", (new.tree, new.name)
    ).fetchone()
    row = replace(new, version=version, sources=tuple(dict.fromkeys(sources)))
    connection.execute(
        f"INSERT INTO artifacts ({_COLUMNS}, write_key) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
        (
            row.artifact,
            row.tree,
            row.session,
            row.agent,
            row.name,
            row.version,
            row.kind,
            row.digest,
            row.size_bytes,
            " ".join(row.sources),
            row.at_ns,
            row.step,
            key,
        ),
    )
    return row


def _by_key(connection: sqlite3.Connection, key: str) -> ArtifactInfo | None:
    found = _unpack(connection.execute(f"SELECT {_COLUMNS} FROM artifacts WHERE write_key = ?", (key,)))
    return found[0] if found else None


def find_artifacts(connection: sqlite3.Connection, reference: str, tree: str, version: int = 0) -> list[ArtifactInfo]:
    """`ArtifactIndex.find`, within a transaction."""
    if reference.startswith(ID_PREFIX):
        where, values = "artifact >= ? AND artifact < ?", [reference, reference + "\x7f"]
        if tree:
            where, values = f"{where} AND tree = ?", [*values, tree]
        return _unpack(
            connection.execute(f"SELECT {_COLUMNS} FROM artifacts WHERE {where} ORDER BY artifact LIMIT 5", values)
        )
    name, _, number = reference.partition("@")
    if number.isdecimal() and len(number) < 10:
        version = version or int(number)
    elif number:
        return []
    arguments: list[Any] = [name]
    where = "name = ?"
    if tree:
        where, arguments = f"{where} AND tree = ?", [*arguments, tree]
    where, arguments = (
        (f"{where} AND version = ?", [*arguments, version]) if version else (f"{where} AND {_NEWEST}", arguments)
    )
    return _unpack(connection.execute(f"SELECT {_COLUMNS} FROM artifacts WHERE {where} LIMIT 5", arguments))


def _deliveries(connection: sqlite3.Connection, artifact: str) -> tuple[SinkDelivery, ...]:
    rows = connection.execute(
        "SELECT sink, state, place, reason, attempts, at_ns FROM deliveries WHERE artifact = ? ORDER BY sink",
        (artifact,),
    )
    return tuple(
        SinkDelivery(sink=sink, state=state, place=place, reason=reason, attempts=attempts, at_ns=at_ns)
        for sink, state, place, reason, attempts, at_ns in rows
    )


def _forget_tree(connection: sqlite3.Connection, tree: str) -> list[str]:
    if connection.execute("SELECT 1 FROM sessions WHERE tree = ? LIMIT 1", (tree,)).fetchone() is not None:
        return []
    digests = {row[0] for row in connection.execute("SELECT digest FROM artifacts WHERE tree = ?", (tree,))}
    connection.execute(
        "DELETE FROM deliveries WHERE artifact IN (SELECT artifact FROM artifacts WHERE tree = ?)", (tree,)
    )
    connection.execute("DELETE FROM artifacts WHERE tree = ?", (tree,))
    return [
        digest
        for digest in digests
        if connection.execute("SELECT 1 FROM artifacts WHERE digest = ? LIMIT 1", (digest,)).fetchone() is None
    ]


def _unpack(rows: sqlite3.Cursor) -> list[ArtifactInfo]:
    return [
        ArtifactInfo(
            artifact=artifact,
            tree=tree,
            session=session,
            agent=agent,
            name=name,
            version=version,
            kind=kind,
            digest=digest,
            size_bytes=size_bytes,
            sources=tuple(sources.split()),
            at_ns=at_ns,
            step=step,
        )
        for artifact, tree, session, agent, name, version, kind, digest, size_bytes, sources, at_ns, step in rows
    ]
