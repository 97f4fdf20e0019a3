"""The process table: pids that are used again, start times, signals, parents, and processes that will not die.

It answers the questions that root asks of /proc and carries out its signals. The functions of
`ottod.isolation.processes` that root uses have their counterparts here, by name.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Sequence

from ottod.isolation.processes import ProcessId
from ottod.root.reaper import Exit
from ottod.root.vitals import Vitals
from tests.simulation.loop import Blocked, VirtualLoop
from tests.simulation.world import NS, World

FIRST_PID = 100
PIDS = 120
"""Few, so that they are used again soon."""
TICKS_PER_S = 100
DEATH_S = (0.000_050, 0.004)
REAP_S = (0.000_050, 0.020)
"""From a child's death until root has heard of it."""


class Process:
    """One process. `owner` is the session that it really belongs to, `marker` what its environment says."""

    def __init__(self, pid: int, start_ticks: int, name: str) -> None:
        self.pid = pid
        self.start_ticks = start_ticks
        self.name = name
        self.owner = ""
        self.marker = ""
        self.group = ""
        """The session whose cgroup leaf it is in; inherited, and never left."""
        self.parent: Process | None = None
        self.is_child_of_root = False
        self.is_alive = True
        self.is_stopped = False
        self.ignores_term = False
        self.stuck_until_ns = 0
        """Until then not even SIGKILL ends it: it is in the kernel."""
        self.is_doomed = False
        self.exit: Exit | None = None
        self.on_term: Callable[[], None] | None = None
        self.on_end: Callable[[], None] = lambda: None
        self.on_exit: list[Callable[[Exit], None]] = []
        """Root's watchers: a root that dies takes its own with it."""

    @property
    def id(self) -> ProcessId:
        return ProcessId(self.pid, self.start_ticks)


def made_exit(*, signame: str = "", status: int = 0, is_known: bool = True) -> Exit:
    """How a process ended, in root's own form."""
    exit_ = Exit(None)
    exit_.signal = signame
    exit_.status = status if is_known and not signame else None
    return exit_


class Watched:
    """Root's handle on a process, as `ottod.root.reaper.Child` is one: it cannot mean another process."""

    def __init__(self, table: ProcessTable, process: Process) -> None:
        self._table = table
        self._process = process
        self.pid = process.pid
        self.is_reaped = False

    def send_signal(self, signum: signal.Signals) -> None:
        if not self.is_reaped:
            self._table.send(self._process, signum)


class SimReaper:
    """One root's knowledge of processes that are not its children, with the interface of `ottod.root.reaper`."""

    def __init__(self, table: ProcessTable, loop: VirtualLoop) -> None:
        self._table = table
        self._loop = loop
        self.strangers_reaped = 0

    def adopt(self, process: ProcessId, on_exit: Callable[[Exit], None]) -> Watched:
        """Watches a worker of an earlier root. Nobody will say how it ended. Raises ProcessLookupError."""
        found = self._table.find(process)
        if found is None or not found.is_alive:
            raise ProcessLookupError(f"process {process.pid} is gone")
        return self._table.watch(found, self._loop, on_exit, is_child=False)


class ProcessTable:
    """All processes of the machine but root."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._by_pid: dict[int, Process] = {}
        self._next = 0
        self.on_change: Callable[[], None] = lambda: None

    def start(self, name: str, *, parent: Process | None = None, marker: str = "", owner: str = "") -> Process:
        """A new process, under the next pid that is free."""
        for _ in range(PIDS):
            pid = FIRST_PID + self._next % PIDS
            self._next += 1
            if pid not in self._by_pid:
                break
        else:
            raise AssertionError("the simulated machine is out of pids")
        process = Process(pid, self._world.now_ns * TICKS_PER_S // NS, name)
        process.parent, process.marker, process.owner = parent, marker, owner
        process.group = parent.group if parent is not None else ""
        self._by_pid[pid] = process
        self.on_change()
        return process

    def watch(
        self, process: Process, loop: VirtualLoop, on_exit: Callable[[Exit], None], *, is_child: bool = True
    ) -> Watched:
        """Root watches a process; `on_exit` is called in its loop, after the zombie has been reaped.

        How a process ended is told to its parent only.
        """
        watched = Watched(self, process)

        def reaped(exit_: Exit) -> None:
            if not loop.is_dead:
                watched.is_reaped = True
                self.reap(process)
                loop.call_soon(on_exit, exit_ if is_child else made_exit(is_known=False))

        def ended(exit_: Exit) -> None:
            self._world.after(self._world.delay(*REAP_S), reaped, exit_)

        process.is_child_of_root = is_child
        process.on_exit.append(ended)
        return watched

    def of_session(self, session: str) -> list[Process]:
        """The truth: what is alive of a session, whatever its environment says."""
        return [p for p in self._by_pid.values() if p.is_alive and p.owner == session]

    def of_group(self, session: str) -> list[Process]:
        """What is alive in a session's cgroup leaf."""
        return [p for p in self._by_pid.values() if p.is_alive and p.group == session]

    def groups(self) -> list[str]:
        """Sessions whose leaf is not empty."""
        return sorted({p.group for p in self._by_pid.values() if p.is_alive and p.group})

    def at(self, pid: int) -> Process | None:
        """Whoever has the pid now, a zombie included."""
        return self._by_pid.get(pid)

    def living(self) -> list[Process]:
        return [p for p in self._by_pid.values() if p.is_alive]

    # ------------------------------------------------------------ signals and ends

    def send(self, process: Process, number: int) -> None:
        """Signals a process; a dead one is no error."""
        if not process.is_alive or process.is_doomed:
            return
        name = signal.Signals(number).name
        self._world.note("signal %s to %s %d", name, process.name, process.pid)
        if number == signal.SIGSTOP:
            process.is_stopped = True
        elif number == signal.SIGCONT:
            process.is_stopped = False
        elif number == signal.SIGKILL:
            self._doom(process, made_exit(signame=name))
        elif number == signal.SIGTERM:
            if process.is_stopped or process.ignores_term:
                return
            if process.on_term is not None:
                process.on_term()
            else:
                self._doom(process, made_exit(signame=name))
        else:
            self._doom(process, made_exit(signame=name))

    def _doom(self, process: Process, exit_: Exit) -> None:
        process.is_doomed = True
        wait_s = max(0, process.stuck_until_ns - self._world.now_ns) / NS
        self._world.after(wait_s + self._world.delay(*DEATH_S), self.end, process, exit_)

    def end(self, process: Process, exit_: Exit) -> None:
        """The process is dead from here on. Its children go to root, or to init when there is no root."""
        if not process.is_alive:
            return
        process.is_alive = False
        process.exit = exit_
        self._world.note("%s %d ended: %s", process.name, process.pid, exit_.signal or exit_.status)
        for child in self._by_pid.values():
            if child.parent is process:
                child.parent = None
        process.on_end()
        watchers, process.on_exit = process.on_exit, []
        for watcher in watchers:
            watcher(exit_)
        if not watchers:
            self.reap(process)
        self.on_change()

    def reap(self, process: Process) -> None:
        """Takes a zombie away: its pid is free again."""
        if self._by_pid.get(process.pid) is process and not process.is_alive:
            del self._by_pid[process.pid]

    def forget_watchers(self) -> None:
        """Root is dead: nobody watches any more, and init reaps what was waiting for it."""
        for process in list(self._by_pid.values()):
            process.on_exit.clear()
            process.is_child_of_root = False
            self.reap(process)

    # ------------------------------------------------------------ what root asks

    def find(self, id_: ProcessId) -> Process | None:
        process = self._by_pid.get(id_.pid)
        return process if process is not None and process.start_ticks == id_.start_ticks else None

    def identify(self, pid: int) -> ProcessId | None:
        process = self._by_pid.get(pid)
        return process.id if process is not None else None

    def is_alive(self, id_: ProcessId) -> bool:
        process = self.find(id_)
        return process is not None and process.is_alive

    def look(self, pid: int, *, now_s: float) -> Vitals | None:
        process = self._by_pid.get(pid)
        if process is None:
            return None
        return Vitals("T" if process.is_stopped else "S" if process.is_alive else "Z", 0.0, now_s)

    def send_signal(self, process: ProcessId, number: int) -> bool:
        found = self.find(process)
        if found is None or not found.is_alive:
            return False
        self.send(found, number)
        return True

    def survivors(self, session: str, *, known: Iterable[ProcessId] = ()) -> list[ProcessId]:
        return [p.id for p in self._of(session, tuple(known))]

    def _of(self, session: str, known: Sequence[ProcessId]) -> list[Process]:
        """As root can know it: by marker and by the identities that it remembers, and everything below them."""
        seeds = {p.pid for p in self._by_pid.values() if p.marker == session or p.id in known}
        grew = True
        while grew:
            below = {p.pid for p in self._by_pid.values() if p.parent is not None and p.parent.pid in seeds}
            grew = not below <= seeds
            seeds |= below
        return [self._by_pid[pid] for pid in sorted(seeds) if self._by_pid[pid].is_alive]

    def kill_survivors(self, session: str, *, deadline_s: float, known: Iterable[ProcessId] = ()) -> list[ProcessId]:
        """Kills, blocks until nothing is left or the deadline has passed, and gives what remains."""
        known = tuple(known)
        victims = self._of(session, known)
        if self._world.has_waited or not victims:
            return [p.id for p in victims]
        for process in victims:
            self.send(process, signal.SIGKILL)
        stuck_ns = max(p.stuck_until_ns - self._world.now_ns for p in victims)
        raise Blocked(min(deadline_s, max(0, stuck_ns) / NS) + 2 * DEATH_S[1])

    def kill_tree(self, process: ProcessId, *, deadline_s: float) -> list[ProcessId]:
        return self.kill_survivors("-", deadline_s=deadline_s, known=(process,))
