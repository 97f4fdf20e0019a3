"""Rows about permission: what was decided and answered, and the leave that stands."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

import msgspec

from ottod.errors import UNDECODABLE
from ottod.protocol.policy import StandingGrant
from ottod.protocol.results import AuditEntry

_pack = msgspec.msgpack.Encoder().encode
_unpack_entry: msgspec.msgpack.Decoder[AuditEntry] = msgspec.msgpack.Decoder(AuditEntry)
_unpack_grant: msgspec.msgpack.Decoder[StandingGrant] = msgspec.msgpack.Decoder(StandingGrant)


def insert_audit(connection: sqlite3.Connection, entries: Iterable[AuditEntry], *, keep: int) -> None:
    """Adds entries, and forgets the oldest beyond `keep`. An event that is there already is not added again."""
    connection.executemany(
        "INSERT OR IGNORE INTO audit (session, seq, at_ns, record) VALUES (?,?,?,?)",
        [(entry.session, entry.seq, entry.at_ns, _pack(entry)) for entry in entries],
    )
    connection.execute("DELETE FROM audit WHERE entry <= (SELECT max(entry) FROM audit) - ?", (keep,))


def select_audit(connection: sqlite3.Connection, session: str, limit: int) -> list[AuditEntry]:
    """The newest entries, oldest first; with `session` only those of it."""
    where, arguments = ("WHERE session = ?", [session]) if session else ("", [])
    rows = connection.execute(f"SELECT record FROM audit {where} ORDER BY entry DESC LIMIT ?", [*arguments, limit])
    found = []
    for (record,) in rows:
        try:
            found.append(_unpack_entry.decode(record))
        except UNDECODABLE:
            continue  # One bad row must not hide the others.
    return found[::-1]


def upsert_grant(connection: sqlite3.Connection, grant: StandingGrant) -> None:
    """Writes the whole row."""
    connection.execute("INSERT OR REPLACE INTO grants VALUES (?,?,?)", (grant.grant, grant.agent, _pack(grant)))


def delete_grant(connection: sqlite3.Connection, grant: str) -> None:
    """Forgets one."""
    connection.execute("DELETE FROM grants WHERE id = ?", (grant,))


def select_grants(connection: sqlite3.Connection) -> list[StandingGrant]:
    """All of them. One that cannot be read is none: it gives nobody leave."""
    found = []
    for (body,) in connection.execute("SELECT body FROM grants ORDER BY id"):
        try:
            found.append(_unpack_grant.decode(body))
        except UNDECODABLE:
            continue
    return found
