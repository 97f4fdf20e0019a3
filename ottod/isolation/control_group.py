"""One cgroup v2 directory: its files, its processes, its end. Blocks, for a few microseconds a file.

Source: Documentation/admin-guide/cgroup-v2.rst of the kernel.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

from ottod.isolation.caps import IsolationError
from ottod.isolation.processes import ProcessId, read_row, send_signal

MAX_FILE_BYTES = 1 << 20
"""The most that is read of one control file: `cgroup.procs` of 100,000 processes."""
MAX_DEPTH = 16
"""Levels of groups below a session's leaf that are looked at. A session cannot make any; its leftovers may."""
FIRST_PAUSE_S = 0.0005
LONGEST_PAUSE_S = 0.02
REMOVE_ATTEMPTS = 20
"""An emptied group can be busy for a moment, until the kernel has let go of its last process."""


class ControlGroup:
    """A group by its directory. The object is only a name: making it makes no group."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __truediv__(self, name: str) -> ControlGroup:
        return ControlGroup(self.path / name)

    def __repr__(self) -> str:
        return f"ControlGroup({str(self.path)!r})"

    def exists(self) -> bool:
        return self.path.is_dir()

    # ------------------------------------------------------------ files

    def read(self, name: str) -> str | None:
        """A control file's text without the last newline; None if it cannot be read (absent, group gone, dying)."""
        try:
            fd = os.open(f"{self.path}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            data = os.read(fd, 4096)
            if len(data) == 4096:
                while len(data) < MAX_FILE_BYTES and (more := os.read(fd, 65536)):
                    data += more
        except OSError:
            return None
        finally:
            os.close(fd)
        return data.decode(errors="replace").rstrip("\n")

    def number(self, name: str) -> int | None:
        """A control file that holds one number; None if it is absent or says `max`."""
        text = self.read(name)
        return int(text) if text is not None and text.isdigit() else None

    def table(self, name: str) -> dict[str, int]:
        """A control file of `key number` lines, such as `memory.events`; empty if it is absent."""
        found = {}
        for line in (self.read(name) or "").splitlines():
            key, _, value = line.partition(" ")
            if value.isdigit():
                found[key] = int(value)
        return found

    def write(self, name: str, value: str) -> None:
        """Writes a control file. Raises OSError with the kernel's reason."""
        fd = os.open(f"{self.path}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)

    def set(self, name: str, value: str) -> None:
        """Writes a control file that must be there. Raises IsolationError that names it."""
        try:
            self.write(name, value)
        except OSError as error:
            raise IsolationError(f"{self.path}/{name}: writing {value!r}: {error.strerror}") from error

    # ------------------------------------------------------------ groups below

    def make(self) -> None:
        """Makes the group; one that exists is kept. Raises IsolationError."""
        try:
            self.path.mkdir(exist_ok=True)
        except OSError as error:
            raise IsolationError(f"{self.path}: {error.strerror}") from error

    def children(self) -> list[ControlGroup]:
        """The groups directly below, by name; none if the group is gone."""
        try:
            with os.scandir(self.path) as entries:
                names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        except OSError:
            return []
        return [self / name for name in names]

    def subtree(self, depth: int = MAX_DEPTH) -> list[ControlGroup]:
        """This group and those below it, the deepest first."""
        below = [each for child in self.children() for each in child.subtree(depth - 1)] if depth else []
        return [*below, self]

    def remove(self) -> bool:
        """Removes the group and those below it. True once it is gone, False if processes keep it."""
        return all(group._remove_one() for group in self.subtree())

    def _remove_one(self) -> bool:
        for _ in range(REMOVE_ATTEMPTS):
            try:
                self.path.rmdir()
            except FileNotFoundError:
                return True
            except OSError as error:
                if error.errno != errno.EBUSY or self.is_populated():
                    return False
                time.sleep(FIRST_PAUSE_S)
                continue
            return True
        return False

    # ------------------------------------------------------------ processes

    def pids(self) -> list[int]:
        """The pids of this very group, without those below. One of a hidden pid namespace reads as 0."""
        return [int(pid) for pid in (self.read("cgroup.procs") or "").split() if pid.isdigit() and pid != "0"]

    def members(self) -> list[ProcessId]:
        """The live processes of this group and those below it, by pid."""
        pids = sorted({pid for group in self.subtree() for pid in group.pids()})
        return [row.id for pid in pids if (row := read_row(pid)) is not None and row.is_live]

    def is_populated(self) -> bool:
        """Whether a live process is in this group or below it. A group that is gone is not populated.

        One that is there and does not say so counts as populated: emptiness is a proof, and must not come from an
        error, such as a lack of descriptors.
        """
        events = self.table("cgroup.events")
        return events.get("populated", 1) != 0 and (bool(events) or self.exists())

    def kill(self, *, deadline_s: float) -> bool:
        """SIGKILL to all in this group and below it, until none lives: True. False if some outlast `deadline_s`."""
        give_up_at = time.monotonic() + deadline_s
        pause_s = FIRST_PAUSE_S
        while self.is_populated():
            if time.monotonic() >= give_up_at:
                return False
            self._kill_once()
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        return True

    def _kill_once(self) -> None:
        try:
            self.write("cgroup.kill", "1")
        except FileNotFoundError:
            # Linux before 5.14. What forks between the look and the kill is met in the next round.
            for process in self.members():
                try:
                    send_signal(process, signal.SIGKILL)
                except PermissionError:
                    pass
        except OSError:
            pass  # The group is going away; the next look says so.
