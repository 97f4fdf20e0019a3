"""Processes by identity, and the end of all of them.

A process is known by pid and start time; a signal goes through a pidfd that was opened first and checked afterwards,
so it cannot reach a stranger that took over the pid. Descendants are found by parent links, and those that were
orphaned to another parent by a marker in their environment (`OTTO_SESSION=<id>`).

Ending a tree: SIGKILL goes to everything below the topmost processes, which are stopped meanwhile, again and again
until nothing is left below them, and then to them. A topmost process that is a subreaper (see `confined_exec`)
thereby collects what is orphaned in the course of it, so nothing slips out between a look and a kill. The end is
proved by two looks in a row that find nothing.

Everything here blocks and is meant for a thread. This module imports the standard library only: the launcher of
confined programs loads it by path, without the rest of the package.

Source: proc(5), pidfd_open(2), prctl(2).
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

SESSION_MARKER = "OTTO_SESSION"
CALL_MARKER = "OTTO_CALL"

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

FIRST_PAUSE_S = 0.0005
LONGEST_PAUSE_S = 0.02
EMPTY_LOOKS = 2
"""How many looks in a row must find nothing: one can miss a process that is being born behind it."""


class ProcessId(NamedTuple):
    """A process, for good: `start_ticks` is its start time in clock ticks since boot."""

    pid: int
    start_ticks: int


class ProcessRow(NamedTuple):
    """One line of the process table. `is_live` is False for zombies, which need reaping, not killing.

    `image` is another number as soon as the process has become another program (the address of its first stack frame,
    which execve chooses at random); 0 if the process hides it.
    """

    id: ProcessId
    parent_pid: int
    is_live: bool
    image: int = 0


Table = dict[int, ProcessRow]
Finder = Callable[[Table], set[int]]


def read_row(pid: int) -> ProcessRow | None:
    """The process that has this pid now; None if there is none."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        line = os.read(fd, 4096)
    except OSError:
        return None
    finally:
        os.close(fd)
    # The command's name may hold spaces and parentheses; the last one ends it.
    fields = line[line.rfind(b")") + 2 :].split()
    if len(fields) < 26:
        return None
    # The leader of a process whose other threads go on looks like a zombie, and is not one.
    is_live = fields[0] not in (b"Z", b"X", b"x") or int(fields[17]) > 1
    return ProcessRow(ProcessId(pid, int(fields[19])), int(fields[1]), is_live, int(fields[25]))


def identify(pid: int) -> ProcessId | None:
    """The identity of a live process or zombie; None if there is none."""
    row = read_row(pid)
    return row.id if row else None


def is_alive(process: ProcessId) -> bool:
    """True while this very process lives; a zombie does not."""
    row = read_row(process.pid)
    return row is not None and row.id == process and row.is_live


def read_table() -> Table:
    """All processes, zombies included."""
    table: Table = {}
    for entry in os.scandir("/proc"):
        name = entry.name
        if name.isdigit() and (row := read_row(int(name))) is not None:
            table[row.id.pid] = row
    return table


def closure(table: Table, seeds: Iterable[int]) -> set[int]:
    """The seeds and everything below them, without zombies, this process, its ancestors and init."""
    children: dict[int, list[int]] = {}
    for row in table.values():
        children.setdefault(row.parent_pid, []).append(row.id.pid)
    found: set[int] = set()
    pending = list(seeds)
    while pending:
        pid = pending.pop()
        if pid in table and pid not in found:
            found.add(pid)
            pending.extend(children.get(pid, ()))
    return {pid for pid in found if table[pid].is_live} - own_line(table)


def own_line(table: Table) -> set[int]:
    """This process, its ancestors, and init: never to be signalled from here."""
    line = {1}
    pid = os.getpid()
    while pid and pid not in line:
        line.add(pid)
        pid = table[pid].parent_pid if pid in table else 0
    return line


def descendants(pid: int, table: Table | None = None) -> list[ProcessId]:
    """All live processes below `pid`, without it, by pid."""
    table = read_table() if table is None else table
    below = closure(table, [row.id.pid for row in table.values() if row.parent_pid == pid])
    return [table[each].id for each in sorted(below - {pid})]


def has_marker(pid: int, name: str, value: str) -> bool:
    """True if the process was started with `name=value` in its environment and lets us look."""
    try:
        fd = os.open(f"/proc/{pid}/environ", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        chunks = []
        while chunk := os.read(fd, 1 << 16):
            chunks.append(chunk)
    except OSError:
        return False
    finally:
        os.close(fd)
    return f"{name}={value}".encode() in b"".join(chunks).split(b"\0")


def marked(table: Table, name: str, value: str) -> set[int]:
    """The pids of live processes with the marker."""
    return {row.id.pid for row in table.values() if row.is_live and has_marker(row.id.pid, name, value)}


def send_signal(process: ProcessId, number: int) -> bool:
    """Signals exactly this process. False if it is gone. Raises PermissionError if it is not ours to signal."""
    if process.pid <= 1:
        return False
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        # If the process we know has the pid now, it had it a moment ago as well, when the pidfd was opened.
        if identify(process.pid) != process:
            return False
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True


def end_all(find: Finder, *, deadline_s: float, on_pass: Callable[[], None] = lambda: None) -> list[ProcessId]:
    """Kills what `find` finds until two looks in a row find nothing; returns what is left after `deadline_s`.

    `on_pass` runs before each look (a parent reaps there).
    """
    give_up_at = time.monotonic() + deadline_s
    pause_s = FIRST_PAUSE_S
    empty_looks = 0
    while True:
        on_pass()
        table = read_table()
        victims = find(table)
        if not victims:
            empty_looks += 1
            if empty_looks == EMPTY_LOOKS:
                return []
            continue
        empty_looks = 0
        is_last = time.monotonic() >= give_up_at
        tops = {pid for pid in victims if table[pid].parent_pid not in victims}
        inner = victims - tops
        for pid in tops:
            _signal_if_allowed(table[pid].id, signal.SIGSTOP if inner and not is_last else signal.SIGKILL)
        for pid in inner:
            _signal_if_allowed(table[pid].id, signal.SIGKILL)
        if is_last:
            return [table[pid].id for pid in sorted(victims) if is_alive(table[pid].id)]
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _signal_if_allowed(process: ProcessId, number: int) -> None:
    try:
        send_signal(process, number)
    except PermissionError:
        pass  # A process of another user stays, and is reported as what remains.


def kill_tree(process: ProcessId, *, deadline_s: float) -> list[ProcessId]:
    """Kills a process and everything below it; returns what remains after `deadline_s`."""

    def find(table: Table) -> set[int]:
        row = table.get(process.pid)
        return closure(table, [process.pid]) if row and row.id == process else set()

    return end_all(find, deadline_s=deadline_s)


def survivors(session: str, *, known: Iterable[ProcessId] = ()) -> list[ProcessId]:
    """What is alive of a session: all with its marker, the `known` ones (its worker), and everything below them."""
    table = read_table()
    return [table[pid].id for pid in sorted(_of_session(table, session, tuple(known)))]


def kill_survivors(session: str, *, deadline_s: float, known: Iterable[ProcessId] = ()) -> list[ProcessId]:
    """Ends what is alive of a session; returns what remains after `deadline_s`, nothing if the end is proved."""
    hints = tuple(known)
    return end_all(lambda table: _of_session(table, session, hints), deadline_s=deadline_s)


def kill_call(call: str, *, deadline_s: float) -> list[ProcessId]:
    """The same for one tool call, by its marker."""
    return end_all(lambda table: closure(table, marked(table, CALL_MARKER, call)), deadline_s=deadline_s)


def _of_session(table: Table, session: str, known: tuple[ProcessId, ...]) -> set[int]:
    seeds = marked(table, SESSION_MARKER, session)
    seeds.update(each.pid for each in known if each.pid in table and table[each.pid].id == each)
    return closure(table, seeds)


_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, argument: int) -> None:
    if _libc.prctl(ctypes.c_int(option), *(ctypes.c_ulong(each) for each in (argument, 0, 0, 0))) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def become_subreaper() -> None:
    """Orphaned descendants become children of this process. Raises OSError."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def set_parent_death_signal(number: int) -> None:
    """This process gets the signal when the *thread* that forked it ends. Raises OSError.

    The caller must check afterwards that its parent is still the one it expects: it may have died before.
    """
    _prctl(PR_SET_PDEATHSIG, number)
