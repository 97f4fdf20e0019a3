"""What /proc says of processes: who they are, and what they use. One that is gone gives nothing, and no error.

Source: proc(5); Documentation/filesystems/proc.rst.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from ottod.isolation.processes import SESSION_MARKER, ProcessId

MAX_ENVIRON_BYTES = 1024 * 1024
ONE_READ_BYTES = 16384
"""The kernel gives small files of /proc in one read; a second one would only say that it was all."""

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_MS_PER_TICK = 1000 / os.sysconf("SC_CLK_TCK")
_MARKER = SESSION_MARKER.encode() + b"="


class Figures(NamedTuple):
    """What `stat` says of a live process. `cpu_ticks` includes the children that it has waited for.

    `image` is another number as soon as the process has become another program: see `ProcessRow`.
    """

    id: ProcessId
    parent_pid: int
    tasks: int
    cpu_ticks: int
    rss_bytes: int
    image: int


Table = dict[int, Figures]


def read_figures() -> Table:
    """All live processes. A zombie holds nothing any more and is left out."""
    table: Table = {}
    with os.scandir("/proc") as entries:
        for entry in entries:
            if entry.name.isdigit() and (figures := _figures(entry.name)) is not None:
                table[figures.id.pid] = figures
    return table


def _figures(pid: str) -> Figures | None:
    line = _read(f"/proc/{pid}/stat", 4096)
    # The command's name may hold spaces and parentheses; the last one ends it.
    fields = line[line.rfind(b")") + 2 :].split()
    if len(fields) < 26:
        return None
    tasks = int(fields[17])
    # The leader of a process whose other threads go on looks like a zombie, and is not one.
    if fields[0] in (b"Z", b"X", b"x") and tasks <= 1:
        return None
    return Figures(
        id=ProcessId(int(pid), int(fields[19])),
        parent_pid=int(fields[1]),
        tasks=tasks,
        cpu_ticks=int(fields[11]) + int(fields[12]) + int(fields[13]) + int(fields[14]),
        rss_bytes=int(fields[21]) * _PAGE_BYTES,
        image=int(fields[25]),
    )


def read_exact_bytes(pid: int) -> int | None:
    """PSS and its share of swap; None if the process is gone or does not let us look."""
    found = _sizes(_read(f"/proc/{pid}/smaps_rollup", 4096), (b"Pss:", b"SwapPss:"))
    return sum(found) if found else None


def swap_bytes(pid: int) -> int:
    """What of the process is swapped out."""
    return sum(_sizes(_read(f"/proc/{pid}/status", 8192), (b"VmSwap:",)))


def is_swap_used() -> bool:
    """Whether anything on this host is swapped out."""
    swap = _sizes(_read("/proc/meminfo", 16384), (b"SwapTotal:", b"SwapFree:"))
    return len(swap) == 2 and swap[0] != swap[1]


def read_marker(pid: int) -> str:
    """The session in the process's environment as its program was started; empty if there is none or it is hidden."""
    for entry in _read(f"/proc/{pid}/environ", MAX_ENVIRON_BYTES).split(b"\0"):
        if entry.startswith(_MARKER):
            return entry[len(_MARKER) :].decode(errors="replace")
    return ""


def _sizes(text: bytes, names: tuple[bytes, ...]) -> list[int]:
    """The sizes in bytes of the `name: number kB` lines with these names."""
    found = []
    for line in text.splitlines():
        fields = line.split()
        if len(fields) >= 2 and fields[0] in names:
            found.append(int(fields[1]) * 1024)
    return found


def _read(path: str, limit_bytes: int) -> bytes:
    """What a file of /proc says, empty if it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    data = b""
    try:
        while len(data) < limit_bytes and (more := os.read(fd, limit_bytes - len(data))):
            data += more
            if limit_bytes <= ONE_READ_BYTES:
                break
    except OSError:
        return b""
    finally:
        os.close(fd)
    return data
