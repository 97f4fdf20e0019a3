"""The memory, processes and processor time of whole sessions, from one walk over /proc for all of them.

Trees are counted, not processes: a worker of 60 MiB may have started a compiler of 8 GiB. Who belongs to whom is the
business of `kinship`.

Memory is counted as PSS: a page that n processes share counts 1/n in each, so that the zygote's pages, which every
worker shares, are not charged to each of them (RSS 83 MiB, PSS 3.6 MiB). The kernel gives the exact figure in
`smaps_rollup`, by walking the page tables: 1.4 ms of processor time for a worker among a hundred, 16 ms for a GiB,
which is too much to spend on every process every second. So:

- RSS, which `stat` gives for nothing, is never less than PSS. A tree whose RSS together is below its cap cannot be
  over it, and is estimated only: the last exact figure plus what RSS has grown by since.
- A tree whose RSS reaches the cap is measured exactly, and only an exact figure makes it `is_over_memory`.
- Beyond that, each walk measures up to `NEW_PER_WALK` processes that never were, and `EXACT_PER_WALK` that were
  measured longest ago, so that the estimates stay true.

Swap is added as soon as the host has used any. Files in tmpfs that no process maps are seen by a memory controller
only, not here.

A walk costs one small read for each process of the host, 12 µs, and one more for each new one: 4 ms of processor time
with 260 processes, 100 of them workers.

Source: proc(5); Documentation/filesystems/proc.rst.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ottod.isolation import processes
from ottod.isolation.caps import Caps, Reading
from ottod.isolation.figures import Figures, is_swap_used, read_exact_bytes, read_figures, swap_bytes
from ottod.isolation.kinship import Kinship
from ottod.isolation.processes import ProcessId, identify

NEAR_CAP = 0.9
"""The share of its cap at which a tree is measured exactly. The kernel's RSS lags by some pages a processor."""
NEAR_PER_WALK = 256
"""Exact measurements in one walk that caps ask for. A tree is measured whole or not at all, and the first one always,
so one tree may be beyond this; the others take turns."""
EXACT_PER_WALK = 4
"""Exact measurements in one walk that no cap asks for, of those that were measured longest ago."""
NEW_PER_WALK = 32
"""The same for processes that have never been measured: their RSS says little."""

_MS_PER_TICK = 1000 / os.sysconf("SC_CLK_TCK")


class Watched(NamedTuple):
    """What a walk must know of a session. `seeds` are its worker, and whatever else was admitted."""

    session: str
    seeds: tuple[ProcessId, ...]
    caps: Caps


class _Measure(NamedTuple):
    """An exact figure, the RSS that went with it, and the number of the walk that took it."""

    walk: int
    exact_bytes: int
    rss_bytes: int


class TreeWatch:
    """Remembers between walks who belongs to whom. May be shared by threads; they take turns.

    The arguments bound what one walk measures exactly: see NEAR_PER_WALK, NEW_PER_WALK and EXACT_PER_WALK.
    """

    def __init__(
        self,
        *,
        near_per_walk: int = NEAR_PER_WALK,
        new_per_walk: int = NEW_PER_WALK,
        exact_per_walk: int = EXACT_PER_WALK,
    ) -> None:
        self._new_per_walk = new_per_walk
        self._exact_per_walk = exact_per_walk
        self._near_per_walk = near_per_walk
        self._turn = threading.Lock()
        self._kinship = Kinship()
        self._walk = 0
        self._measures: dict[ProcessId, _Measure] = {}
        self._exact_walks: dict[str, int] = {}

    def read_all(self, watched: Iterable[Watched]) -> dict[str, Reading]:
        """One walk: what each session uses. `peak_bytes` is left to those who remember earlier walks."""
        sessions = {each.session: each for each in watched}
        if not sessions:
            return {}
        with self._turn:
            self._walk += 1
            table = read_figures()
            trees = self._kinship.trees(table, {each.session: each.seeds for each in sessions.values()})
            self._measures = {
                each: measure
                for each, measure in self._measures.items()
                if each.pid in table and table[each.pid].id == each
            }
            self._measure_the_near(sessions, trees)
            self._measure_the_overdue([each for tree in trees.values() for each in tree])
            return {session: self._reading(sessions[session], tree) for session, tree in trees.items()}

    def find_all(self, seeds: Mapping[str, Iterable[ProcessId]]) -> dict[str, list[ProcessId]]:
        """One walk that measures nothing: the processes of each session, by pid."""
        with self._turn:
            trees = self._kinship.trees(read_figures(), seeds)
        return {session: sorted(each.id for each in tree) for session, tree in trees.items()}

    def kill(self, session: str, *, deadline_s: float, known: Iterable[ProcessId]) -> list[ProcessId]:
        """Ends the session's processes until two looks in a row find none; gives what remains after `deadline_s`.

        As `processes.kill_survivors`, and knows more: who belonged to the session at an earlier walk, and whose
        environment need not be read again.
        """
        hints = tuple(known)

        def find(table: processes.Table) -> set[int]:
            live = {pid: row for pid, row in table.items() if row.is_live}
            with self._turn:
                return {row.id.pid for row in self._kinship.trees(live, {session: hints})[session]}

        return processes.end_all(find, deadline_s=deadline_s)

    def members(self, session: str) -> list[ProcessId]:
        """Who belonged to the session at the last walk that looked for it, by pid."""
        with self._turn:
            return self._kinship.members(session)

    def forget(self, session: str) -> None:
        """Lets go of a session that has ended."""
        with self._turn:
            self._kinship.forget(session)
            self._exact_walks.pop(session, None)

    def _measure_the_near(self, sessions: Mapping[str, Watched], trees: Mapping[str, list[Figures]]) -> None:
        """Measures whole trees that may be over their caps, those that have waited longest first."""
        has_swap = is_swap_used()
        near = []
        for session, tree in trees.items():
            cap_bytes = sessions[session].caps.memory_bytes
            if cap_bytes is None:
                continue
            most_bytes = sum(each.rss_bytes + (swap_bytes(each.id.pid) if has_swap else 0) for each in tree)
            if most_bytes >= NEAR_CAP * cap_bytes:
                near.append((self._exact_walks.get(session, 0), session))
        measured = 0
        for _, session in sorted(near):
            if measured and measured + len(trees[session]) > self._near_per_walk:
                break
            for each in trees[session]:
                self._measure(each)
            measured += len(trees[session])
            self._exact_walks[session] = self._walk

    def _measure_the_overdue(self, members: list[Figures]) -> None:
        new = [each for each in members if each.id not in self._measures]
        old = [each for each in members if each.id in self._measures and self._measures[each.id].walk != self._walk]
        old.sort(key=lambda each: self._measures[each.id].walk)
        for each in (*new[: self._new_per_walk], *old[: self._exact_per_walk]):
            self._measure(each)

    def _measure(self, figures: Figures) -> None:
        exact_bytes = read_exact_bytes(figures.id.pid)
        if exact_bytes is None:
            if identify(figures.id.pid) == figures.id:
                return  # It does not let us look (a setuid program): RSS has to do.
            exact_bytes = 0  # It ended meanwhile.
        self._measures[figures.id] = _Measure(self._walk, exact_bytes, figures.rss_bytes)

    def _reading(self, watched: Watched, tree: list[Figures]) -> Reading:
        caps = watched.caps
        was_near = self._exact_walks.get(watched.session) == self._walk
        memory_bytes = sum(map(self._estimate, tree))
        tasks = sum(each.tasks for each in tree)
        return Reading(
            memory_bytes=memory_bytes,
            processes=len(tree),
            tasks=tasks,
            cpu_ms=int(sum(each.cpu_ticks for each in tree) * _MS_PER_TICK),
            cap_bytes=caps.memory_bytes,
            pids_cap=caps.pids,
            is_over_memory=was_near and caps.memory_bytes is not None and memory_bytes > caps.memory_bytes,
            is_over_pids=caps.pids is not None and tasks > caps.pids,
            is_exact=all(each.id in self._measures and self._measures[each.id].walk == self._walk for each in tree),
        )

    def _estimate(self, figures: Figures) -> int:
        """The exact figure if it is of this walk; else the last one and what RSS has grown by; else RSS."""
        measure = self._measures.get(figures.id)
        if measure is None:
            return figures.rss_bytes
        return max(0, measure.exact_bytes + figures.rss_bytes - measure.rss_bytes)
