"""A session's leaf in the cgroup v2 tree: the kernel holds the caps.

    memory.max          what all processes of the session together may use, page cache and tmpfs included
    memory.swap.max     0 beside a memory cap: a leak must meet its cap, not the disk
    memory.oom.group    1: who exceeds the cap is ended whole; half a session is of no use to anybody
    pids.max            tasks; a fork beyond it fails
    cpu.weight          the share while processors are short

A process is born outside and moved in by `admit`; what it starts afterwards is born inside. Memory that it used
before stays charged to the group where it was first touched: a worker's share of the zygote is the daemon's.

Kills for memory are read from `memory.events`: `oom_group_kill` counts events (Linux 5.17); `oom_kill` counts
victims, and the first victim of a group kill twice, so with groups it only tells zero from some.

Source: cgroup-v2.rst; ADR 0009.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from ottod.isolation.caps import Caps, EnclosureKind, IsolationError, Reading
from ottod.isolation.cgroup_base import CgroupBase, group_of
from ottod.isolation.control_group import ControlGroup
from ottod.isolation.processes import ProcessId
from ottod.isolation.tree_watch import TreeWatch

UNSEEN = ProcessId(0, 0)
MIN_SURVIVOR_DEADLINE_S = 1.0
"""What the search for escaped processes gets, even if the group took the whole deadline."""


class CgroupEnclosure:
    """One leaf. Made by `open_leaf` or `find_leaf`. `watch` knows who was once inside and has left."""

    kind: EnclosureKind = "cgroup"

    def __init__(
        self, group: ControlGroup, *, name: str, session: str, caps: Caps, watch: TreeWatch | None = None
    ) -> None:
        self._watch = watch or TreeWatch()
        self.group = group
        self.session = session
        self.caps = caps
        self._name = name
        self._peak_bytes = 0

    def admit(self, pid: int) -> None:
        """Moves a process in. Raises IsolationError."""
        try:
            self.group.write("cgroup.procs", str(pid))
        except ProcessLookupError as error:
            raise IsolationError(f"process {pid} is gone", code="process_gone") from error
        except OSError as error:
            raise IsolationError(
                f"{self.group.path}/cgroup.procs: process {pid} cannot be moved in: {error.strerror}",
                mend="the daemon must be allowed to write cgroup.procs in its base group and below (Delegate=yes)",
            ) from error

    def holds(self, pid: int) -> bool:
        """Whether the process is in the leaf or below it."""
        group = group_of(pid)
        return group is not None and (group == self._name or group.startswith(f"{self._name}/"))

    def read(self) -> Reading:
        """The kernel's own accounts."""
        group = self.group
        memory_bytes = group.number("memory.current") or 0
        peak = group.number("memory.peak")  # Linux 5.19; before that, the largest of our own looks.
        self._peak_bytes = max(self._peak_bytes, memory_bytes, peak or 0)
        events = group.table("memory.events")
        cpu_us = group.table("cpu.stat").get("usage_usec", 0)
        processes = len(group.pids())
        tasks = group.number("pids.current")
        return Reading(
            memory_bytes=memory_bytes,
            peak_bytes=self._peak_bytes,
            processes=processes,
            tasks=processes if tasks is None else tasks,
            cpu_ms=cpu_us // 1000,
            memory_kills=events.get("oom_group_kill", 0) or min(events.get("oom_kill", 0), 1),
            pid_refusals=group.table("pids.events").get("max", 0),
            cap_bytes=self.caps.memory_bytes,
            pids_cap=self.caps.pids,
        )

    def members(self) -> list[ProcessId]:
        """Who is in the leaf."""
        return self.group.members()

    def kill(self, *, deadline_s: float, known: Iterable[ProcessId] = ()) -> list[ProcessId]:
        """Empties the leaf through `cgroup.kill`, then looks for who had left it before.

        A process inside that cannot be named, because it is hidden or the group cannot be read, is `UNSEEN`.
        """
        give_up_at = time.monotonic() + deadline_s
        self.group.kill(deadline_s=deadline_s)
        left_s = max(give_up_at - time.monotonic(), MIN_SURVIVOR_DEADLINE_S)
        remaining = self._watch.kill(self.session, deadline_s=left_s, known=known)
        if not self.group.is_populated():
            return remaining
        return sorted({*remaining, *self.members()}) or [UNSEEN]

    def close(self) -> None:
        """Removes the leaf and what may be below it."""
        if not self.group.remove():
            raise IsolationError(
                f"{self.group.path} still holds processes {[each.pid for each in self.members()][:10]}",
                code="enclosure_busy",
                mend="kill the session first",
            )
        self._watch.forget(self.session)


def open_leaf(base: CgroupBase, session: str, caps: Caps, watch: TreeWatch | None = None) -> CgroupEnclosure:
    """Makes a fresh leaf with its caps. Raises IsolationError, also if processes of an earlier one are in it."""
    enclosure = _leaf(base, session, caps, watch)
    enclosure.close()  # An empty one of an earlier incarnation: its counts must not be taken for ours.
    enclosure.group.make()
    try:
        _set_caps(enclosure.group, caps)
    except IsolationError:
        enclosure.close()
        raise
    return enclosure


def find_leaf(base: CgroupBase, session: str, caps: Caps, watch: TreeWatch | None = None) -> CgroupEnclosure | None:
    """The leaf that an earlier root made for this session, with its caps and counts; None if there is none."""
    enclosure = _leaf(base, session, caps, watch)
    return enclosure if enclosure.group.exists() else None


def _leaf(base: CgroupBase, session: str, caps: Caps, watch: TreeWatch | None) -> CgroupEnclosure:
    if not session or session.startswith(".") or "/" in session:
        raise IsolationError(f"{session!r} cannot be the name of a group")
    group = base.sessions / session
    name = f"{base.name}/{base.sessions.path.name}/{session}"
    return CgroupEnclosure(group, name=name, session=session, caps=caps, watch=watch)


def _set_caps(group: ControlGroup, caps: Caps) -> None:
    if caps.memory_bytes is not None:
        group.set("memory.max", str(caps.memory_bytes))
        if group.read("memory.swap.max") is not None:  # Absent if the kernel counts no swap.
            group.set("memory.swap.max", "0")
    if group.read("memory.oom.group") is not None:
        group.set("memory.oom.group", "1")
    if caps.pids is not None:
        group.set("pids.max", str(caps.pids))
    if caps.cpu_weight is not None and group.read("cpu.weight") is not None:
        group.set("cpu.weight", str(caps.cpu_weight))
