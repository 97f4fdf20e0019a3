"""Which processes belong to which session, remembered from look to look.

To a session belong its seeds (its worker), everything below them, and everything that belonged to it at an earlier
look and still lives, wherever it has gone since: setsid, a second fork and a wiped environment do not help it. What
was born and orphaned between two looks is recognised by its marker (`OTTO_SESSION=<id>`). A process's environment is
read once for each program that it becomes: until the next execve it cannot change in what the kernel shows.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol, TypeVar

from ottod.isolation.figures import read_marker
from ottod.isolation.processes import ProcessId


class Row(Protocol):
    """What must be known of a live process."""

    @property
    def id(self) -> ProcessId:
        """Which it is."""

    @property
    def parent_pid(self) -> int:
        """Its parent's pid; 0 for none."""

    @property
    def image(self) -> int:
        """Another number for another program."""


class _Stranger(NamedTuple):
    """A process that is nobody's: which program it was when it was asked for its marker, and what it said."""

    image: int
    marker: str


R = TypeVar("R", bound=Row)


class Kinship:
    """Remembers between looks who belongs to whom. For one thread at a time."""

    def __init__(self) -> None:
        self._members: dict[ProcessId, str] = {}
        self._strangers: dict[ProcessId, _Stranger] = {}

    def trees(self, table: Mapping[int, R], seeds: Mapping[str, Iterable[ProcessId]]) -> dict[str, list[R]]:
        """Each session's processes among all live ones. `seeds` are those that are known to be a session's own."""
        owners = self._owners(table, seeds)
        self._members = {table[pid].id: owner for pid, owner in owners.items() if owner}
        trees: dict[str, list[R]] = {session: [] for session in seeds}
        for pid, owner in owners.items():
            if owner in trees:
                trees[owner].append(table[pid])
        return trees

    def members(self, session: str) -> list[ProcessId]:
        """Who belonged to the session at the last look, by pid."""
        return sorted(each for each, owner in self._members.items() if owner == session)

    def forget(self, session: str) -> None:
        """Lets go of a session that has ended."""
        self._members = {each: owner for each, owner in self._members.items() if owner != session}

    def _owners(self, table: Mapping[int, Row], seeds: Mapping[str, Iterable[ProcessId]]) -> dict[int, str]:
        """Whose each pid is; nobody's (empty) are this process and its line.

        What is below a session's process is the session's, unless it is already another's.
        """
        children: dict[int, list[int]] = {}
        for each in table.values():
            children.setdefault(each.parent_pid, []).append(each.id.pid)
        not_ours = own_line(table)
        owners = dict.fromkeys(not_ours, "")
        for each in table.values():
            if each.id in self._members and each.id.pid not in not_ours:
                owners[each.id.pid] = self._members[each.id]
        for session, its_seeds in seeds.items():
            for seed in its_seeds:
                if seed.pid in table and table[seed.pid].id == seed and seed.pid not in not_ours:
                    owners[seed.pid] = session
        _spread(owners, children, [pid for pid, owner in owners.items() if owner])
        strays = {pid: owner for pid, owner in self._marked(table, owners).items() if owner in seeds}
        owners.update(strays)
        _spread(owners, children, strays)
        return owners

    def _marked(self, table: Mapping[int, Row], owners: Mapping[int, str]) -> dict[int, str]:
        """The markers of processes that nobody owns, read once and remembered."""
        strangers = {}
        for pid, row in table.items():
            if pid in owners:
                continue
            known = self._strangers.get(row.id)
            if known is None or known.image != row.image or not row.image:
                known = _Stranger(row.image, read_marker(pid))
            strangers[row.id] = known
        self._strangers = strangers
        return {each.pid: stranger.marker for each, stranger in strangers.items() if stranger.marker}


def _spread(owners: dict[int, str], children: Mapping[int, list[int]], start: Iterable[int]) -> None:
    """Gives what is below the `start` to its owner, in place; what is already somebody's stays so."""
    pending = list(start)
    while pending:
        pid = pending.pop()
        for child in children.get(pid, ()):
            if child not in owners:
                owners[child] = owners[pid]
                pending.append(child)


def own_line(table: Mapping[int, Row]) -> set[int]:
    """This process, its ancestors, and init: never part of a session of ours."""
    line = {1}
    pid = os.getpid()
    while pid and pid not in line:
        line.add(pid)
        pid = table[pid].parent_pid if pid in table else 0
    return line
