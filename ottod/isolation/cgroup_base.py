"""Where the groups of the sessions are made, and what must be done there first.

    <base>/                 the delegated group
        daemon/             root, the zygote, the gateway: whatever was in the group itself
        sessions/           one leaf for each session, and a lock: one daemon for each base
            s-7f3k2m9qxa/

There are two places for the base. With `OTTO_SESSIONS_UNIT` in the environment it is a sibling of root's own group, a
systemd unit of its own (`Delegate=yes`, one process that holds it): sessions there outlive a restart of root's unit.
Otherwise it is root's own group, if that is root's to divide.

A group that hands controllers to groups below it may hold no process itself, so `settle` moves root and all that
came with it one level down. It moves nobody else: a daemon that was started from a terminal shares its group with the
shell and with whatever else runs there. Such a group is not taken, unless systemd marked it as delegated.

Source: ADR 0009; cgroup-v2.rst ("No Internal Process Constraint", "Delegation"); systemd CGROUP_DELEGATION.md.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ottod.isolation.caps import IsolationError
from ottod.isolation.control_group import ControlGroup
from ottod.isolation.processes import descendants

UNIT_VARIABLE = "OTTO_SESSIONS_UNIT"
DAEMON_LEAF = "daemon"
SESSIONS = "sessions"
NEEDED = ("memory", "pids")
WANTED = ("memory", "pids", "cpu")
DAEMON_CPU_WEIGHT = "10000"
"""Root's share beside all sessions together (100): who routes for everybody must not wait for everybody."""
SETTLE_PASSES = 20
"""How often the base is emptied before it is given up: each pass moves all that is there."""
MEND = "run the daemon as a service, or by `systemd-run --user --scope -p Delegate=yes ottod run`, under cgroup v2"
"""What helps wherever the watchdog had to be taken."""
DELEGATION_MARKS = ("user.delegate", "trusted.delegate")
TRIAL_TIMEOUT_S = 10.0

Finding = tuple["CgroupBase | None", str]


class Hierarchy(NamedTuple):
    """Where cgroup v2 is mounted, which group the mount shows as its top, and the group of this process."""

    mount: Path
    top: str
    own: str

    def directory(self, group: str) -> Path | None:
        """The directory of a group as /proc/PID/cgroup names it; None if this mount does not show it."""
        top = self.top.rstrip("/")
        if group.startswith("/..") or not (group == self.top or group.startswith(f"{top}/")):
            return None
        return Path(f"{self.mount}{group.removeprefix(top)}".rstrip("/"))


def find_hierarchy(proc: Path = Path("/proc")) -> Hierarchy | None:
    """The cgroup v2 hierarchy of this process; None if there is none."""
    own = group_of("self", proc)
    if own is None:
        return None
    try:
        lines = (proc / "self/mountinfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        before, _, after = line.partition(" - ")
        if after.split(" ", 1)[0] == "cgroup2":
            fields = before.split()
            return Hierarchy(Path(fields[4]), fields[3], own)
    return None


def group_of(pid: int | str, proc: Path = Path("/proc")) -> str | None:
    """The cgroup v2 group of a process, as the kernel names it to us; None if it has none or is gone."""
    try:
        with open(proc / str(pid) / "cgroup", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("0::"):
                    return line[3:].rstrip("\n")
    except OSError:
        return None
    return None


class CgroupBase:
    """A group that may be divided among sessions. `name` is the group as /proc/PID/cgroup says it."""

    def __init__(self, group: ControlGroup, name: str, *, is_own: bool) -> None:
        self.group = group
        self.name = name.rstrip("/")
        self.is_own = is_own
        self._lock_fd = -1

    @property
    def sessions(self) -> ControlGroup:
        return self.group / SESSIONS

    def settle(self, *, needed: tuple[str, ...] = NEEDED) -> None:
        """Empties the base, hands the controllers down, takes the lock. Raises IsolationError; may be repeated."""
        self.sessions.make()
        self._lock()
        self._empty()
        for group in (self.group, self.sessions):
            self._hand_down(group, needed)
        if self.is_own and (self.group / DAEMON_LEAF).read("cpu.weight") is not None:
            (self.group / DAEMON_LEAF).set("cpu.weight", DAEMON_CPU_WEIGHT)

    def close(self) -> None:
        """Gives up the lock; the groups stay, for the next daemon."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _lock(self) -> None:
        """A second daemon in the same group would take the first one's sessions for leftovers."""
        if self._lock_fd >= 0:
            return
        fd = os.open(self.sessions.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            raise IsolationError(
                f"{self.sessions.path} belongs to another running daemon",
                mend="start each daemon in a unit or scope of its own",
            ) from error
        self._lock_fd = fd

    def _empty(self) -> None:
        """Moves every process of the base into the leaf for the daemon."""
        if self.name == "" and self.group.read("cgroup.type") is None:
            return  # The root of the whole hierarchy may hold processes.
        leaf = self.group / DAEMON_LEAF
        for _ in range(SETTLE_PASSES):
            pids = self.group.pids()
            if not pids:
                return
            leaf.make()
            for pid in pids:
                try:
                    leaf.write("cgroup.procs", str(pid))
                except ProcessLookupError:
                    pass
                except OSError as error:
                    raise IsolationError(f"{leaf.path}: process {pid} cannot be moved: {error.strerror}") from error
        raise IsolationError(f"{self.group.path}: processes appear faster than they can be moved out of it")

    def _hand_down(self, group: ControlGroup, needed: tuple[str, ...]) -> None:
        on = (group.read("cgroup.subtree_control") or "").split()
        for controller in WANTED:
            if controller in on:
                continue
            try:
                group.write("cgroup.subtree_control", f"+{controller}")
            except OSError as error:
                if controller in needed:
                    raise IsolationError(
                        f"{group.path}/cgroup.subtree_control: +{controller}: {error.strerror}", mend=MEND
                    ) from error


def find_base(hierarchy: Hierarchy | None, *, unit: str = "", needed: tuple[str, ...] = NEEDED) -> Finding:
    """The group to divide, and why not a better one (empty: none better). Nothing has been changed yet."""
    if hierarchy is None:
        return None, "no cgroup v2 hierarchy is mounted"
    own = hierarchy.own
    if own.endswith(f"/{DAEMON_LEAF}") and _looks_settled(hierarchy, own.removesuffix(f"/{DAEMON_LEAF}")):
        own = own.removesuffix(f"/{DAEMON_LEAF}") or "/"
    reasons = []
    if unit:
        base, reason = _sibling(hierarchy, own, unit, needed)
        if base is not None:
            return base, ""
        reasons.append(f"{UNIT_VARIABLE}={unit}: {reason}")
    base, reason = _own(hierarchy, own, needed)
    if reason:
        reasons.append(reason)
    return base, "; ".join(reasons)


def _looks_settled(hierarchy: Hierarchy, parent: str) -> bool:
    """Whether an earlier root, or this process before it was replaced, has already moved down from here."""
    directory = hierarchy.directory(parent or "/")
    return directory is not None and (directory / SESSIONS).is_dir()


def _sibling(hierarchy: Hierarchy, own: str, unit: str, needed: tuple[str, ...]) -> Finding:
    if "/" in unit or unit in ("", ".", ".."):
        return None, "not the name of a unit"
    name = f"{own.rpartition('/')[0]}/{unit}"
    directory = hierarchy.directory(name)
    if directory is None or not directory.is_dir():
        return None, f"there is no group {name} (is the unit running?)"
    base = CgroupBase(ControlGroup(directory), name, is_own=False)
    return _checked(base, needed)


def _own(hierarchy: Hierarchy, own: str, needed: tuple[str, ...]) -> Finding:
    directory = hierarchy.directory(own)
    if directory is None or not directory.is_dir():
        return None, f"the daemon's own group {own} is not below {hierarchy.mount}"
    base = CgroupBase(ControlGroup(directory), own, is_own=True)
    if not (own == "/" and base.group.read("cgroup.type") is None) and not _is_delegated(directory):
        ours = {os.getpid(), *(each.pid for each in descendants(os.getpid()))}
        if strangers := [pid for pid in base.group.pids() if pid not in ours]:
            listed = ", ".join(map(str, strangers[:5]))
            return None, f"{directory} holds processes that are not the daemon's ({listed})"
    return _checked(base, needed)


def _is_delegated(directory: Path) -> bool:
    for mark in DELEGATION_MARKS:
        try:
            if os.getxattr(directory, mark) == b"1":
                return True
        except OSError:
            continue
    return False


def _checked(base: CgroupBase, needed: tuple[str, ...]) -> Finding:
    """Tries what will be needed: the controllers are there, a group can be made, and a process moves into it."""
    present = (base.group.read("cgroup.controllers") or "").split()
    if missing := [each for each in needed if each not in present]:
        return None, f"no {' and no '.join(missing)} controller in {base.group.path}"
    trial = base.group / f"otto-trial-{os.getpid()}"
    try:
        trial.make()
        with_child(lambda pid: trial.set("cgroup.procs", str(pid)))
    except IsolationError as error:
        return None, error.message
    finally:
        trial.remove()
    return base, ""


def with_child(act: Callable[[int], None]) -> None:
    """Runs `act` with the pid of a harmless child that lives exactly that long."""
    child = subprocess.Popen(["/bin/sh", "-c", "read _"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert child.stdin is not None
    try:
        act(child.pid)
    finally:
        child.stdin.close()
        child.wait(TRIAL_TIMEOUT_S)
