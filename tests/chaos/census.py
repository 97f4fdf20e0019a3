"""Who is alive of which session, from the process table alone.

To a session belong its workers (by pid and start time), everything that was ever seen below one of them, and
everything that carries its marker in its environment. What once belonged to a session belongs to it for good,
wherever it has gone since.
"""

from __future__ import annotations

import os
from collections.abc import Container
from pathlib import Path

from ottod.isolation.processes import ProcessId, Table, closure, identify, is_alive, read_table

MAX_ENVIRON_BYTES = 1 << 20
MARKER = b"OTTO_SESSION="


class Census:
    """`look` reads the process table; the rest answers from what was seen."""

    def __init__(self, base: Path) -> None:
        self._home = f"OTTO_RUNTIME_DIR={base / 'run'}".encode()
        self.workers: dict[str, dict[int, ProcessId]] = {}
        """Session → incarnation → its worker."""
        self.owners: dict[ProcessId, str] = {}
        """Every process that ever belonged to a session; of another daemon's sessions too, if it has marked them."""
        self.others: set[ProcessId] = set()
        """Root's, zygotes and workers that are nobody's yet: every other process of this daemon."""
        self.looks = 0
        self._markers: dict[tuple[ProcessId, int], str] = {}
        self.table: Table = {}

    def add_worker(self, session: str, incarnation: int, process: ProcessId) -> None:
        """An incarnation's process."""
        self.workers.setdefault(session, {})[incarnation] = process
        self.owners[process] = session
        self.others.discard(process)

    def add_other(self, pid: int) -> None:
        """A process of the daemon that is no session's."""
        if (process := identify(pid)) is not None:
            self.others.add(process)

    def look(self) -> None:
        """Reads the process table and gives what is new to its owners."""
        self.looks += 1
        self.table = table = read_table()
        for session, incarnations in self.workers.items():
            seeds = [p.pid for p in incarnations.values() if p.pid in table and table[p.pid].id == p]
            if seeds:
                for pid in closure(table, seeds):
                    self.owners.setdefault(table[pid].id, session)
        markers: dict[tuple[ProcessId, int], str] = {}
        for row in table.values():
            name = (row.id, row.image)
            marker = self._markers.get(name)
            markers[name] = marker = read_mark(row.id.pid) if marker is None else marker
            if marker and row.id not in self.owners:
                self.owners[row.id] = marker
        self._markers = markers

    def alive(self, session: str) -> list[ProcessId]:
        """What lives of a session now, by a fresh look."""
        self.look()
        return [process for process, owner in self.owners.items() if owner == session and is_alive(process)]

    def worker(self, session: str, incarnation: int) -> ProcessId | None:
        """The living worker of this incarnation."""
        process = self.workers.get(session, {}).get(incarnation)
        return process if process is not None and is_alive(process) else None

    def tools(self, session: str) -> list[ProcessId]:
        """Living processes of the session that are not its workers, as of the last look."""
        workers = set(self.workers.get(session, {}).values())
        return [p for p, owner in self.owners.items() if owner == session and p not in workers and is_alive(p)]

    def unborn(self, root_pid: int, zygote_pid: int) -> list[ProcessId]:
        """Children of root that are workers of nobody yet, as of the last look."""
        return [
            row.id
            for row in self.table.values()
            if row.parent_pid == root_pid and row.is_live and row.id not in self.owners and row.id.pid != zygote_pid
        ]

    def leftovers(self, sessions: Container[str]) -> list[str]:
        """Whatever is alive of the daemon and all of its sessions, by every way of telling."""
        self.look()
        left = {p: f"a process of {o}" for p, o in self.owners.items() if o in sessions and is_alive(p)}
        left |= {p: "root, a zygote or an unborn worker" for p in self.others if is_alive(p)}
        for row in self.table.values():
            if row.is_live and row.id.pid != os.getpid() and self._home in read_environ(row.id.pid).split(b"\0"):
                left.setdefault(row.id, "a process of this daemon")
        return [f"{process.pid}: {what}" for process, what in left.items()]


def read_environ(pid: int) -> bytes:
    """A process's environment as it was started with; empty if it does not let us look."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read(MAX_ENVIRON_BYTES)
    except OSError:
        return b""


def read_mark(pid: int) -> str:
    """The session that a process says it belongs to."""
    for entry in read_environ(pid).split(b"\0"):
        if entry.startswith(MARKER):
            return entry[len(MARKER) :].decode(errors="replace")
    return ""
