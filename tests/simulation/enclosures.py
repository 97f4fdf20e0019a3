"""What encloses sessions: cgroup leaves or the watchdog, by the seed, with the interface of `ottod.isolation`.

A leaf survives root and holds whatever is born inside, with or without a marker. The watchdog knows only what it was
told and what can be seen by marker and parent.
"""

from __future__ import annotations

from collections.abc import Container, Iterable

from ottod.isolation.caps import Caps, EnclosureKind, IsolationError, Reading
from ottod.isolation.processes import ProcessId
from tests.simulation.processes import ProcessTable


class SimEnclosure:
    """One session's."""

    def __init__(self, table: ProcessTable, kind: EnclosureKind, session: str, caps: Caps) -> None:
        self._table = table
        self.kind = kind
        self.session = session
        self.caps = caps
        self._seeds: dict[ProcessId, None] = {}

    def admit(self, pid: int) -> None:
        process = self._table.at(pid)
        if process is None or not process.is_alive:
            raise IsolationError(f"process {pid} is gone", code="process_gone")
        self._seeds[process.id] = None
        if self.kind == "cgroup":
            process.group = self.session

    def holds(self, pid: int) -> bool:
        return any(each.pid == pid for each in self.members())

    def _known(self) -> tuple[ProcessId, ...]:
        inside = self._table.of_group(self.session) if self.kind == "cgroup" else []
        return (*self._seeds, *(process.id for process in inside))

    def members(self) -> list[ProcessId]:
        return self._table.survivors(self.session, known=self._known())

    def read(self) -> Reading:
        count = len(self.members())
        return Reading(memory_bytes=count << 20, peak_bytes=count << 20, processes=count, tasks=count)

    def kill(self, *, deadline_s: float, known: Iterable[ProcessId] = ()) -> list[ProcessId]:
        return self._table.kill_survivors(self.session, deadline_s=deadline_s, known=(*self._known(), *known))

    def close(self) -> None:
        if self.members():
            raise IsolationError(f"{self.session} still has processes", code="enclosure_busy")


class SimEnclosures:
    """All of one machine."""

    reason = ""
    place = ""
    outlives_daemon = True

    def __init__(self, table: ProcessTable, kind: EnclosureKind, *, make: type[SimEnclosure] = SimEnclosure) -> None:
        self._table = table
        self._make = make
        self.kind = kind

    @property
    def gives_memory(self) -> bool:
        return self.kind == "cgroup"

    def settle(self) -> None:
        """Nothing to prepare."""

    def close(self) -> None:
        """Leaves stay."""

    def open(self, session: str, caps: Caps) -> SimEnclosure:
        return self._make(self._table, self.kind, session, caps)

    def reopen(self, session: str, caps: Caps) -> SimEnclosure | None:
        if self.kind == "cgroup" and not self._table.of_group(session):
            return None
        return self._make(self._table, self.kind, session, caps)

    def read_all(self, enclosures: Iterable[SimEnclosure]) -> dict[str, Reading]:
        return {each.session: each.read() for each in enclosures}

    def next_look_s(self, readings: Iterable[Reading]) -> float:
        return 1.0

    def strangers(self, known: Container[str]) -> list[str]:
        """The leaves that nobody knows."""
        return [each for each in self._table.groups() if each not in known] if self.kind == "cgroup" else []

    def sweep(self, sessions: Iterable[str]) -> list[str]:
        """Ends what is left in these leaves."""
        swept = list(sessions)
        for session in swept:
            SimEnclosure(self._table, self.kind, session, Caps()).kill(deadline_s=5.0)
        return swept
