"""What agents found out, by what they were asked and what the working directory was like: rows of `research`."""

from __future__ import annotations

import sqlite3

from ottod.protocol.results import ResearchEntry

MAX_RESULTS = 1000
"""The least lately used go first."""
_COLUMNS = "key, agent, cwd, question, session, at_ns, used_ns, hits, length(result)"


def recall(connection: sqlite3.Connection, key: str, *, now_ns: int) -> tuple[str, str, int] | None:
    """The result, whose it is and when it was found; counts as a use."""
    row = connection.execute("SELECT result, session, at_ns FROM research WHERE key = ?", (key,)).fetchone()
    if row is None:
        return None
    connection.execute("UPDATE research SET used_ns = ?, hits = hits + 1 WHERE key = ?", (now_ns, key))
    return str(row[0]), str(row[1]), int(row[2])


def keep(connection: sqlite3.Connection, entry: ResearchEntry, result: str, *, most: int = MAX_RESULTS) -> None:
    """Adds a result, in place of one with the same key, and forgets what is beyond the bound."""
    row = (entry.key, entry.agent, entry.cwd, entry.question, result, entry.session, entry.at_ns, entry.at_ns)
    connection.execute("INSERT OR REPLACE INTO research VALUES (?,?,?,?,?,?,?,?,0)", row)
    connection.execute(
        "DELETE FROM research WHERE key IN (SELECT key FROM research ORDER BY used_ns DESC, key LIMIT -1 OFFSET ?)",
        (most,),
    )


def listed(connection: sqlite3.Connection, agent: str, limit: int) -> list[ResearchEntry]:
    """The newest first; of one agent, or of all."""
    where, values = ("WHERE agent = ?", [agent]) if agent else ("", [])
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM research {where} ORDER BY at_ns DESC, key LIMIT ?", [*values, limit]
    )
    return [
        ResearchEntry(
            key=key, agent=name, cwd=cwd, question=question, session=session, at_ns=at_ns, used_ns=used_ns,
            hits=hits, result_chars=chars,
        )
        for key, name, cwd, question, session, at_ns, used_ns, hits, chars in rows
    ]  # fmt: skip


def forget(connection: sqlite3.Connection, agent: str) -> int:
    """Forgets all of one agent, or everything; gives how many there were."""
    where, values = ("WHERE agent = ?", [agent]) if agent else ("", [])
    return connection.execute(f"DELETE FROM research {where}", values).rowcount
