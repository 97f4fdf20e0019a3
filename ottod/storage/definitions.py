"""Rows of definitions that sessions were started with, by digest, and of who refers to them.

Written in the transaction that writes a session's plan, and gone in the one that deletes the last session which
refers to them: there are never more than sessions have brought.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import NamedTuple

from ottod.protocol.definitions import DefinitionKind, KeptDefinition

_FOUND = (
    "SELECT kind, name, digest, source, first_at_ns,"
    " (SELECT count(*) FROM definition_uses AS u WHERE u.kind = d.kind AND u.digest = d.digest),"
    " (SELECT count(*) FROM definition_uses AS u JOIN sessions USING (session)"
    "  WHERE u.kind = d.kind AND u.digest = d.digest AND state <> 'ended')"
    " FROM definitions AS d"
)


class DefinitionRow(NamedTuple):
    """A definition as it is kept; `body` is the packed spec, empty for one that somebody else keeps."""

    kind: DefinitionKind
    name: str
    digest: str
    source: str
    body: bytes


def keep_definitions(
    connection: sqlite3.Connection, session: str, definitions: Iterable[DefinitionRow], at_ns: int
) -> None:
    """Notes what a session was started with; what is known already is not written again."""
    for row in definitions:
        if row.body:
            connection.execute(
                "INSERT OR IGNORE INTO definitions (kind, digest, name, source, first_at_ns, body)"
                " VALUES (?,?,?,?,?,?)",
                (row.kind, row.digest, row.name, row.source, at_ns, row.body),
            )
        connection.execute("INSERT OR IGNORE INTO definition_uses VALUES (?,?,?)", (session, row.kind, row.digest))


def forget_uses(connection: sqlite3.Connection, session: str) -> None:
    """The session refers to nothing any more; what nobody else refers to goes with it."""
    used = connection.execute("SELECT kind, digest FROM definition_uses WHERE session = ?", (session,)).fetchall()
    connection.execute("DELETE FROM definition_uses WHERE session = ?", (session,))
    connection.executemany(
        "DELETE FROM definitions WHERE kind = ?1 AND digest = ?2"
        " AND NOT EXISTS (SELECT 1 FROM definition_uses WHERE kind = ?1 AND digest = ?2)",
        used,
    )


def select_definitions(
    connection: sqlite3.Connection, kind: DefinitionKind, name: str, prefix: str, limit: int
) -> list[KeptDefinition]:
    """The versions of a name, or of all with an empty one, whose digest begins so: the newest first."""
    rows = connection.execute(
        f"{_FOUND} WHERE kind = ? AND (? = '' OR name = ?) AND digest >= ? AND digest < ?"
        " ORDER BY first_at_ns DESC, digest LIMIT ?",
        (kind, name, name, prefix, prefix + "\x7f", limit),
    )
    return [
        KeptDefinition(
            kind=kind, name=found, digest=digest, source=source, first_at_ns=at_ns, sessions=sessions, live=live
        )
        for _, found, digest, source, at_ns, sessions, live in rows
    ]


def select_body(connection: sqlite3.Connection, kind: DefinitionKind, digest: str) -> bytes:
    """The packed spec of a whole digest; empty if it is not kept."""
    row = connection.execute("SELECT body FROM definitions WHERE kind = ? AND digest = ?", (kind, digest)).fetchone()
    return bytes(row[0]) if row is not None else b""


def select_newest_user(connection: sqlite3.Connection, kind: DefinitionKind, name: str, digest: str) -> str:
    """The newest session that was started with this definition itself; empty if there is none."""
    row = connection.execute(
        "SELECT session FROM definition_uses JOIN sessions USING (session)"
        " WHERE definition_uses.kind = ? AND digest = ? AND agent = ?"
        " ORDER BY created_at_ns DESC, session LIMIT 1",
        (kind, digest, name),
    ).fetchone()
    return str(row[0]) if row is not None else ""
