"""Rows of the database as structs, and the statements that write and read them."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Generator, Iterable, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from ottod.errors import UNDECODABLE
from ottod.protocol.cause import Cause
from ottod.protocol.events import SessionState
from ottod.protocol.results import SessionInfo
from ottod.storage.definitions import forget_uses

_pack = msgspec.msgpack.Encoder().encode
_unpack_info: msgspec.msgpack.Decoder[SessionInfo] = msgspec.msgpack.Decoder(SessionInfo)
_unpack_cause: msgspec.msgpack.Decoder[Cause] = msgspec.msgpack.Decoder(Cause)

PackedRow = tuple[str, bytes]
"""A session and its packed info, as its row has them."""
KEPT_CHILDREN = 256
"""Of each live parent: it may yet have to hear how they ended."""


class Incarnation(msgspec.Struct, frozen=True, kw_only=True):
    """One process of a session. It is known by pid and start time (clock ticks since boot, from /proc).

    Times are wall clock nanoseconds; `ended_at_ns` is 0 while nobody has seen it end.
    """

    session: str
    incarnation: int
    pid: int
    start_time_ticks: int
    started_at_ns: int
    ended_at_ns: int = 0
    cause: Cause | None = None
    secret: bytes = b""
    """What the worker shows to be adopted by a later root; kept while it lives."""
    generation: int = 0


def upsert_session(connection: sqlite3.Connection, info: SessionInfo) -> None:
    """Writes the whole row."""
    connection.execute(
        "INSERT OR REPLACE INTO sessions"
        " (session, state, agent, model, kind, parent, created_at_ns, ended_at_ns, cause, last_seq, last_offset,"
        " info, tree, name) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
        (
            info.session,
            info.state,
            info.agent,
            info.model,
            info.kind,
            info.parent,
            info.created_at_ns,
            info.ended_at_ns,
            info.cause.kind if info.cause is not None else "",
            info.last_seq,
            info.last_offset,
            _pack(info),
            info.tree,
            info.name if info.is_named else "",
        ),
    )


def select_sessions(
    connection: sqlite3.Connection, states: Sequence[SessionState], limit: int, *, include_ended: bool
) -> list[PackedRow]:
    """Packed infos, newest first."""
    where, arguments = "1", list[Any]()
    if states:
        where = f"state IN ({','.join('?' * len(states))})"
        arguments += states
    elif not include_ended:
        where = "state <> 'ended'"
    rows = connection.execute(
        f"SELECT session, info FROM sessions WHERE {where} ORDER BY created_at_ns DESC, session LIMIT ?",
        [*arguments, limit],
    )
    return rows.fetchall()


def select_surplus(connection: sqlite3.Connection, retain: int, limit: int) -> list[str]:
    """Ids of ended sessions beyond the `retain` that ended last; the newest children of live parents are kept."""
    found = connection.execute(
        "SELECT session FROM sessions WHERE state = 'ended' AND session NOT IN ("
        " SELECT session FROM (SELECT session,"
        " row_number() OVER (PARTITION BY parent ORDER BY created_at_ns DESC) AS n"
        " FROM sessions WHERE parent IN (SELECT session FROM sessions WHERE state <> 'ended')) WHERE n <= ?)"
        " ORDER BY ended_at_ns DESC, session LIMIT -1 OFFSET ?",
        (KEPT_CHILDREN, retain),
    )
    return [row[0] for row in found][::-1][:limit]


def count_ended(connection: sqlite3.Connection) -> int:
    """How many ended sessions are on record."""
    (found,) = connection.execute("SELECT count(*) FROM sessions WHERE state = 'ended'").fetchone()
    return int(found)


def select_sessions_by_prefix(connection: sqlite3.Connection, prefix: str, limit: int) -> list[PackedRow]:
    """Packed infos, by id. The prefix is in canonical form."""
    rows = connection.execute(
        "SELECT session, info FROM sessions WHERE session >= ? AND session < ? ORDER BY session LIMIT ?",
        (prefix, prefix + "\x7f", limit),
    )
    return rows.fetchall()


def select_named(connection: sqlite3.Connection, name: str) -> list[PackedRow]:
    """The packed info of the newest ended session that a client gave this name, if there is one."""
    rows = connection.execute(
        "SELECT session, info FROM sessions WHERE name = ? AND name <> '' AND state = 'ended'"
        " ORDER BY created_at_ns DESC LIMIT 1",
        (name,),
    )
    return rows.fetchall()


def each_ended(connection: sqlite3.Connection) -> Generator[PackedRow, None, None]:
    """Packed infos of ended sessions, newest first, read as they are asked for."""
    rows = connection.execute(
        "SELECT session, info FROM sessions WHERE state = 'ended' ORDER BY created_at_ns DESC, session"
    )
    with contextlib.closing(rows):
        yield from rows


def each_below(connection: sqlite3.Connection, top: str) -> Generator[PackedRow, None, None]:
    """Packed infos of a session and all below it, in any state, newest first."""
    rows = connection.execute(
        "WITH RECURSIVE below (session) AS (SELECT ? UNION"
        " SELECT sessions.session FROM below JOIN sessions ON parent = below.session AND parent <> '')"
        " SELECT session, info FROM below JOIN sessions USING (session) ORDER BY created_at_ns DESC, session",
        (top,),
    )
    with contextlib.closing(rows):
        yield from rows


def select_children(connection: sqlite3.Connection, parent: str) -> list[PackedRow]:
    """Packed infos of a session's newest children, newest first."""
    rows = connection.execute(
        "SELECT session, info FROM sessions WHERE parent = ? ORDER BY created_at_ns DESC LIMIT ?",
        (parent, KEPT_CHILDREN),
    )
    return rows.fetchall()


def select_live_trees(connection: sqlite3.Connection, limit: int) -> list[PackedRow]:
    """Packed infos of all sessions of trees in which somebody lives, oldest first."""
    rows = connection.execute(
        "SELECT session, info FROM (SELECT info, created_at_ns, session FROM sessions WHERE"
        " CASE tree WHEN '' THEN session ELSE tree END IN"
        " (SELECT CASE tree WHEN '' THEN session ELSE tree END FROM sessions WHERE state <> 'ended')"
        " ORDER BY created_at_ns DESC, session LIMIT ?) ORDER BY created_at_ns, session",
        (limit,),
    )
    return rows.fetchall()


def unpack_infos(rows: Iterable[PackedRow]) -> tuple[list[SessionInfo], list[tuple[str, ...]]]:
    """The infos, and the names in each row that could not be read: one bad row must not hide the others."""
    infos: list[SessionInfo] = []
    bad: list[tuple[str, ...]] = []
    for session, packed in rows:
        try:
            info = _unpack_info.decode(as_bytes(packed))
        except UNDECODABLE:
            bad.append((session,))
            continue
        if info.session == session:
            infos.append(info)
        else:
            # One bit is enough for another name, under which nobody would find its events. Either may be true.
            bad.append((session, info.session))
    return infos, bad


def as_bytes(value: object) -> bytes:
    """What a column of bytes holds. A damaged row may hold anything: then it is no bytes, which mean nothing."""
    return value if isinstance(value, bytes) else b""


def delete_session(connection: sqlite3.Connection, session: str) -> bool:
    """Deletes a session, its incarnations, and what only it was made from. True if there was one."""
    deleted = connection.execute("DELETE FROM sessions WHERE session = ?", (session,)).rowcount
    for table in ("incarnations", "plans"):
        connection.execute(f"DELETE FROM {table} WHERE session = ?", (session,))
    forget_uses(connection, session)
    return deleted > 0


def upsert_incarnation(connection: sqlite3.Connection, row: Incarnation) -> None:
    """Writes the whole row."""
    cause = _pack(row.cause) if row.cause is not None else None
    connection.execute(
        "INSERT OR REPLACE INTO incarnations"
        " (session, incarnation, pid, start_time_ticks, started_at_ns, ended_at_ns, cause, secret, generation)"
        " VALUES (?,?,?,?,?,?,?,?,?)",
        (
            row.session,
            row.incarnation,
            row.pid,
            row.start_time_ticks,
            row.started_at_ns,
            row.ended_at_ns,
            cause,
            b"" if row.ended_at_ns else row.secret,
            row.generation,
        ),
    )


def select_live_incarnations(connection: sqlite3.Connection) -> tuple[list[Incarnation], int]:
    """Those that nobody has seen end, and how many rows could not be read."""
    columns = ("session", "incarnation", "pid", "start_time_ticks", "started_at_ns", "secret", "generation")
    rows = connection.execute(
        f"SELECT {', '.join(columns)} FROM incarnations WHERE ended_at_ns = 0 ORDER BY session, incarnation"
    )
    return _incarnations(dict(zip(columns, row, strict=True)) for row in rows)


def select_incarnations(connection: sqlite3.Connection, session: str) -> tuple[list[Incarnation], int]:
    """All of a session, oldest first, and of how many rows something could not be read: a cause is then left out."""
    columns = ("incarnation", "pid", "start_time_ticks", "started_at_ns", "ended_at_ns", "cause")
    rows = connection.execute(
        f"SELECT {', '.join(columns)} FROM incarnations WHERE session = ? ORDER BY incarnation", (session,)
    )
    return _incarnations({"session": session, **dict(zip(columns, row, strict=True))} for row in rows)


def _incarnations(rows: Iterable[dict[str, Any]]) -> tuple[list[Incarnation], int]:
    found: list[Incarnation] = []
    bad = 0
    for row in rows:
        packed = row.pop("cause", None)
        try:
            cause = _unpack_cause.decode(as_bytes(packed)) if packed is not None else None
        except UNDECODABLE:
            cause = None
            bad += 1
        try:
            found.append(replace(msgspec.convert(row, Incarnation), cause=cause))
        except msgspec.ValidationError:
            bad += 1
    return found, bad


def upsert_plan(connection: sqlite3.Connection, session: str, start_key: str, plan: bytes) -> None:
    """What a session is made from, so that it can be made again."""
    connection.execute("INSERT OR REPLACE INTO plans VALUES (?,?,?)", (session, start_key, plan))


def select_live_plans(connection: sqlite3.Connection) -> dict[str, bytes]:
    """The plans of the sessions that have not ended."""
    rows = connection.execute(
        "SELECT plans.session, plan FROM plans JOIN sessions USING (session) WHERE state <> 'ended'"
    )
    return {session: as_bytes(plan) for session, plan in rows}


def select_plan(connection: sqlite3.Connection, session: str) -> bytes:
    """The plan of a session, whether it lives or not; empty if there is none."""
    row = connection.execute("SELECT plan FROM plans WHERE session = ?", (session,)).fetchone()
    return as_bytes(row[0]) if row is not None else b""


def select_session_by_key(connection: sqlite3.Connection, start_key: str) -> str:
    """The session that was started with this key; empty if there is none."""
    row = connection.execute("SELECT session FROM plans WHERE start_key = ?", (start_key,)).fetchone()
    return str(row[0]) if row is not None else ""


def upsert_supervision(connection: sqlite3.Connection, node: str, snapshot: bytes) -> None:
    """What a supervisor remembers; an empty snapshot forgets it."""
    if snapshot:
        connection.execute("INSERT OR REPLACE INTO supervision VALUES (?,?)", (node, snapshot))
    else:
        connection.execute("DELETE FROM supervision WHERE node = ?", (node,))


def select_supervision(connection: sqlite3.Connection) -> dict[str, bytes]:
    """What all supervisors remember, by node."""
    return {node: as_bytes(kept) for node, kept in connection.execute("SELECT node, snapshot FROM supervision")}


def max_last_offset(connection: sqlite3.Connection) -> int:
    """The newest offset that any session's row mentions, 0 if there is none."""
    return int(connection.execute("SELECT coalesce(max(last_offset), 0) FROM sessions").fetchone()[0])


def upsert_noted_offset(connection: sqlite3.Connection, offset: int) -> None:
    """Notes up to which offset the rows of live sessions know their seqs."""
    connection.execute("INSERT OR REPLACE INTO meta VALUES ('noted_offset', ?)", (str(offset),))


def select_noted_offset(connection: sqlite3.Connection) -> int:
    """The offset of the last note; 0 if there is none."""
    row = connection.execute("SELECT value FROM meta WHERE key = 'noted_offset'").fetchone()
    return int(row[0]) if row is not None and row[0].isdigit() else 0


def touch(connection: sqlite3.Connection) -> None:
    """Changes something that means nothing."""
    connection.execute("INSERT OR REPLACE INTO meta VALUES ('touched', hex(randomblob(8)))")
