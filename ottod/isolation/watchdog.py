"""A session's enclosure where the kernel has no memory controller for us: root looks, and root kills.

What it gives and a cgroup does not: nothing. What it does not give: a cap that holds between two looks (`rlimits`
bounds one process meanwhile), a refused fork, a share of the processor, and memory in tmpfs. Its end of a session is
proved by marker, parent links and identity, as `processes` describes.

Source: ADR 0009.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from msgspec.structs import replace

from ottod.isolation.caps import Caps, EnclosureKind, IsolationError, Reading
from ottod.isolation.processes import ProcessId, identify, is_alive, survivors
from ottod.isolation.tree_watch import TreeWatch, Watched

MAX_SEEDS = 64
"""Admitted processes that are remembered: the worker is one, and an escaped one that was taken back another."""


class WatchdogEnclosure:
    """One session under watch. It holds no processes, it only knows them."""

    kind: EnclosureKind = "watchdog"

    def __init__(self, watch: TreeWatch, *, session: str, caps: Caps) -> None:
        self.session = session
        self.caps = caps
        self._watch = watch
        self._seeds: tuple[ProcessId, ...] = ()
        self._peak_bytes = 0
        self._cpu_ms = 0

    @property
    def watched(self) -> Watched:
        """What a walk must know."""
        return Watched(self.session, self._seeds, self.caps)

    def admit(self, pid: int) -> None:
        """Remembers a process as the session's. Raises IsolationError if it is gone."""
        process = identify(pid) if pid > 1 and pid != os.getpid() else None
        if process is None:
            raise IsolationError(f"process {pid} is gone", code="process_gone")
        alive = [each for each in self._seeds if each != process and is_alive(each)]
        self._seeds = (*alive[: MAX_SEEDS - 1], process)

    def holds(self, pid: int) -> bool:
        """Whether the process is an admitted one, below one, or marked."""
        return any(each.pid == pid for each in self.members())

    def read(self) -> Reading:
        """A walk for this session alone."""
        return self.note(self._watch.read_all([self.watched])[self.session])

    def note(self, reading: Reading) -> Reading:
        """A walk's reading, with what only this enclosure remembers: the peak, and time that ended processes used."""
        self._peak_bytes = max(self._peak_bytes, reading.memory_bytes)
        self._cpu_ms = max(self._cpu_ms, reading.cpu_ms)
        return replace(reading, peak_bytes=self._peak_bytes, cpu_ms=self._cpu_ms)

    def members(self) -> list[ProcessId]:
        """Who is alive of the session."""
        return survivors(self.session, known=self._seeds)

    def kill(self, *, deadline_s: float, known: Iterable[ProcessId] = ()) -> list[ProcessId]:
        """Ends all of them, again and again until two looks find nothing."""
        return self._watch.kill(self.session, deadline_s=deadline_s, known={*self._seeds, *known})

    def close(self) -> None:
        """There is nothing to remove. Raises IsolationError if processes remain, as every enclosure does."""
        if left := [each for each in self._seeds if is_alive(each)]:
            raise IsolationError(
                f"{self.session} still has processes {[each.pid for each in left]}",
                code="enclosure_busy",
                mend="kill the session first",
            )
        self._seeds = ()
        self._watch.forget(self.session)
