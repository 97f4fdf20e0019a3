"""The daemon's database as an outsider may read it: never written, never waited for by root."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ottod.isolation.processes import ProcessId
from ottod.protocol.results import SessionInfo

PATIENCE_S = 20.0
"""A root that has just died leaves a log to be recovered; whoever comes meanwhile is told to come again."""


class IncarnationRow(NamedTuple):
    """One process of a session, as it is on record."""

    process: ProcessId
    is_over: bool


class Books:
    """Reads `otto.db`."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "otto.db"
        self._unpack = msgspec.msgpack.Decoder(SessionInfo)

    def incarnation(self, session: str, incarnation: int) -> IncarnationRow | None:
        """One incarnation; None if there is none on record."""
        rows = self._rows(
            "SELECT pid, start_time_ticks, ended_at_ns FROM incarnations WHERE session = ? AND incarnation = ?",
            (session, incarnation),
        )
        return IncarnationRow(ProcessId(rows[0][0], rows[0][1]), rows[0][2] != 0) if rows else None

    def open_incarnations(self) -> list[tuple[str, int]]:
        """Incarnations that nobody has seen end."""
        return [(s, n) for s, n in self._rows("SELECT session, incarnation FROM incarnations WHERE ended_at_ns = 0")]

    def sessions(self) -> dict[str, SessionInfo]:
        """All sessions."""
        return {row[0]: self._unpack.decode(row[1]) for row in self._rows("SELECT session, info FROM sessions")}

    def _rows(self, query: str, values: tuple[object, ...] = ()) -> list[Any]:
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                with closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True)) as database:
                    return database.execute(query, values).fetchall()
            except sqlite3.OperationalError:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(0.02)
