"""Artifacts in an SQLite file of the project's own: an index, and each distinct content once.

    otto_meta      key, value                                    `schema` is 1
    otto_artifacts artifact PRIMARY KEY, delivery, name, version, kind, digest, size_bytes, sources, agent, session,
                   step, attempt, workflow, tree, at_ns          one row for each version of an artifact
    otto_contents  digest PRIMARY KEY, content                   SHA-256 in hex, and the bytes

`artifact` is Otto's id, `sources` are ids with spaces between them, `session` produced it in `step` of the workflow
whose session is `tree`, `at_ns` is wall clock. The tables may lie in a database that has others.

A delivery is one transaction with a rollback journal: whoever reads sees an artifact with its content, or none.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable

from ottod.errors import ToolError
from ottod.protocol.sinks import Sink
from ottod.sinks.base import Parcel, Receipt, Undelivered

SCHEMA = 1
BUSY_S = 10.0
"""How long another writer may keep the file."""
TABLES = """
CREATE TABLE IF NOT EXISTS otto_meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS otto_contents (digest TEXT PRIMARY KEY, content BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS otto_artifacts (
    artifact   TEXT PRIMARY KEY,
    delivery   TEXT NOT NULL,
    name       TEXT NOT NULL,
    version    INTEGER NOT NULL,
    kind       TEXT NOT NULL,
    digest     TEXT NOT NULL REFERENCES otto_contents (digest),
    size_bytes INTEGER NOT NULL,
    sources    TEXT NOT NULL,
    agent      TEXT NOT NULL,
    session    TEXT NOT NULL,
    step       TEXT NOT NULL,
    attempt    INTEGER NOT NULL,
    workflow   TEXT NOT NULL,
    tree       TEXT NOT NULL,
    at_ns      INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS otto_artifacts_name ON otto_artifacts (name, at_ns);
"""
BROKEN = frozenset({sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_READONLY})


class SqliteFile:
    """`Destination` of one file. `locate` gives a path's real place in the working directory, or raises ToolError."""

    def __init__(self, sink: Sink, locate: Callable[[str], str]) -> None:
        self._sink = sink
        self._locate = locate

    async def deliver(self, parcel: Parcel) -> Receipt:
        """See `Destination.deliver`."""
        return await asyncio.to_thread(self._deliver, parcel)

    def _deliver(self, parcel: Parcel) -> Receipt:
        try:
            place = self._locate(self._sink.path)
        except ToolError as error:
            raise Undelivered(error.message, code=error.code, mend=error.mend, is_final=True) from error
        try:
            # A connection for each: nothing is held between deliveries, and the file may be moved at any time.
            with contextlib.closing(sqlite3.connect(place, isolation_level=None, timeout=BUSY_S)) as connection:
                connection.execute("PRAGMA synchronous=FULL")
                _write(connection, parcel)
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            raise Undelivered(f"{self._sink.path}: {error}", code="sqlite", is_final=code in BROKEN) from error
        return Receipt(place=place)


def _write(connection: sqlite3.Connection, parcel: Parcel) -> None:
    """Raises sqlite3.Error, Undelivered."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement in TABLES.split(";"):
            connection.execute(statement)
        connection.execute("INSERT OR IGNORE INTO otto_meta VALUES ('schema', ?)", (str(SCHEMA),))
        (found,) = connection.execute("SELECT value FROM otto_meta WHERE key = 'schema'").fetchone()
        if found != str(SCHEMA):
            text = f"the file has schema {found}, this version of Otto writes {SCHEMA}"
            raise Undelivered(text, code="schema", mend="name another file", is_final=True)
        info = parcel.artifact
        connection.execute("INSERT OR IGNORE INTO otto_contents VALUES (?, ?)", (info.digest, parcel.data))
        connection.execute(
            "INSERT OR IGNORE INTO otto_artifacts (artifact, delivery, name, version, kind, digest, size_bytes,"
            " sources, agent, session, step, attempt, workflow, tree, at_ns) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (
                info.artifact,
                parcel.key,
                info.name,
                info.version,
                info.kind,
                info.digest,
                info.size_bytes,
                " ".join(info.sources),
                info.agent,
                info.session,
                parcel.path,
                parcel.attempt,
                parcel.workflow,
                parcel.session,
                info.at_ns,
            ),
        )
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
