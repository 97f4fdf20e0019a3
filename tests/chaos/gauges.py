"""What a daemon holds: descriptors, memory, threads, children, control groups, files. Read from outside."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from ottod.isolation.processes import read_table

CGROUPS = Path("/sys/fs/cgroup")
SESSION_NAME = re.compile(r"s-[0-9a-z]{10}")
MIB = 1024 * 1024


class Gauges(NamedTuple):
    """One reading. Sizes are in bytes; `children` are those of root, live ones, its zygote among them."""

    root_fds: int
    root_threads: int
    root_rss_bytes: int
    root_pss_bytes: int
    zygote_fds: int
    zygote_threads: int
    zygote_rss_bytes: int
    children: int
    zombies: int
    cgroup_leaves: int
    runtime_files: int
    state_files: int
    session_directories: int


class Bound(NamedTuple):
    """How much a reading may grow, at most, from the end of the warm-up to the end."""

    growth: int
    why: str


BOUNDS: dict[str, Bound] = {
    "root_fds": Bound(4, "a database or journal file may just be open"),
    "root_threads": Bound(2, "the pool of threads fills up as it is used"),
    "root_rss_bytes": Bound(8 * MIB, "the allocator's fragments, and the ring's memory of sessions that left it"),
    "root_pss_bytes": Bound(8 * MIB, "the same; the ring's pages are counted once they are touched"),
    "zygote_fds": Bound(0, "it keeps nothing of what it forks"),
    "zygote_threads": Bound(0, "it has one thread"),
    "zygote_rss_bytes": Bound(2 * MIB, "a fork leaves nothing behind"),
    "children": Bound(2, "a warm worker more or less"),
    "zombies": Bound(0, "root reaps at once"),
    "cgroup_leaves": Bound(0, "a session's control group goes with it"),
    "runtime_files": Bound(1, "sockets do not multiply"),
    "state_files": Bound(200, "only retained sessions keep files: see session_directories"),
    "session_directories": Bound(25, "root prunes after every 20 ends"),
}


def read_gauges(root_pid: int, zygote_pid: int, base: Path, known: Callable[[str], bool]) -> Gauges:
    """A reading. `known` says whether a session is one of this daemon's."""
    children = [row for row in read_table().values() if row.parent_pid == root_pid]
    root, zygote = _memory(root_pid), _memory(zygote_pid)
    sessions = base / "state" / "sessions"
    return Gauges(
        root_fds=_count(f"/proc/{root_pid}/fd"),
        root_threads=_count(f"/proc/{root_pid}/task"),
        root_rss_bytes=root["Rss"],
        root_pss_bytes=root["Pss"],
        zygote_fds=_count(f"/proc/{zygote_pid}/fd"),
        zygote_threads=_count(f"/proc/{zygote_pid}/task"),
        zygote_rss_bytes=zygote["Rss"],
        children=sum(row.is_live for row in children),
        zombies=sum(not row.is_live for row in children),
        cgroup_leaves=sum(known(session) for session in leaves()),
        runtime_files=_files(base / "run"),
        state_files=_files(base / "state"),
        session_directories=len(list(sessions.iterdir())) if sessions.exists() else 0,
    )


def excesses(before: Gauges, after: Gauges) -> list[str]:
    """What grew beyond its bound."""
    found = []
    for name, bound in BOUNDS.items():
        was, now = getattr(before, name), getattr(after, name)
        if now - was > bound.growth:
            found.append(f"{name} grew from {was:,} to {now:,}; {bound.growth:,} are allowed: {bound.why}")
    return found


def leaves() -> Iterable[str]:
    """The sessions that control groups of this machine are named after."""
    for directory, names, _ in os.walk(CGROUPS):
        del directory
        for name in names:
            if (match := SESSION_NAME.search(name)) is not None:
                yield match.group()


def _count(directory: str) -> int:
    return len(os.listdir(directory))


def _files(directory: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(directory))


def _memory(pid: int) -> dict[str, int]:
    """Rss and Pss, in bytes."""
    found = {"Rss": 0, "Pss": 0}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        if name in found:
            found[name] = int(rest.split()[0]) * 1024
    return found
