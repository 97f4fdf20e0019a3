"""Which processes belong to which session, remembered from look to look.

To a session belong its seeds (its worker), everything below them, and everything that belonged to it at an earlier
look and still lives, wherever it has gone since: setsid, a second fork and a wiped environment do not help it. What
was born and orphaned between two looks is recognised by its marker (`OTTO_SESSION=<id>`); a process's environment is
read at the first two looks at it only.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ottod.isolation.figures import Figures, Table, read_marker
from ottod.isolation.processes import ProcessId

MARKER_LOOKS = 2
"""How often a new process's environment is read: it may not yet have become the program that it was forked for."""


class _Stranger(NamedTuple):
    """A process that is nobody's: how often it was asked for its marker, and what it said."""

    looks: int
    marker: str


class Kinship:
    """Remembers between looks who belongs to whom. For one thread at a time."""

    def __init__(self) -> None:
        self._members: dict[ProcessId, str] = {}
        self._strangers: dict[ProcessId, _Stranger] = {}

    def trees(self, table: Table, seeds: Mapping[str, Iterable[ProcessId]]) -> dict[str, list[Figures]]:
        """Each session's live processes. `seeds` are those that are known to be a session's own."""
        owners = self._owners(table, seeds)
        self._members = {table[pid].id: owner for pid, owner in owners.items() if owner}
        trees: dict[str, list[Figures]] = {session: [] for session in seeds}
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

    def _owners(self, table: Table, seeds: Mapping[str, Iterable[ProcessId]]) -> dict[int, str]:
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

    def _marked(self, table: Table, owners: Mapping[int, str]) -> dict[int, str]:
        """The markers of processes that nobody owns. Each is asked at two walks, and remembered."""
        strangers = {}
        for pid, figures in table.items():
            if pid in owners:
                continue
            known = self._strangers.get(figures.id, _Stranger(0, ""))
            if known.looks < MARKER_LOOKS:
                known = _Stranger(known.looks + 1, read_marker(pid))
            strangers[figures.id] = known
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


def own_line(table: Table) -> set[int]:
    """This process, its ancestors, and init: never part of a session of ours."""
    line = {1}
    pid = os.getpid()
    while pid and pid not in line:
        line.add(pid)
        pid = table[pid].parent_pid if pid in table else 0
    return line
