"""One root per runtime directory.

The lock is an flock on a file that is never deleted: the kernel gives it back when the process that holds it is
gone, however it went, so neither a stale file nor a recycled pid can mislead. Sockets in the directory are touched
only while the lock is held; a root that lost its place therefore cannot delete its successor's.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from ottod.errors import RefusedError, StorageError


class InstanceLock:
    """Held for the life of the process. The file's content (a pid) is only for people."""

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self.path = path

    @classmethod
    def acquire(cls, path: Path, *, inherited: str = "") -> InstanceLock:
        """Takes the lock, or keeps it: `inherited` is the descriptor that the program before in this process left.

        Raises: RefusedError if another root holds it, StorageError if the file cannot be made.
        """
        if inherited.isdecimal() and (kept := cls._keep(int(inherited), path)) is not None:
            return kept
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise StorageError(
                f"cannot open {path}: {error.strerror}", mend="check who owns the directory"
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            os.close(fd)
            raise RefusedError(
                f"another ottod (pid {holder or 'unknown'}) already runs in {path.parent}",
                code="already_running",
                mend="use it, stop it with `ottoctl daemon stop`, or set OTTO_RUNTIME_DIR to run another",
            ) from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        return cls(fd, path)

    @classmethod
    def _keep(cls, fd: int, path: Path) -> InstanceLock | None:
        try:
            if os.path.samestat(os.fstat(fd), path.stat()):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.set_inheritable(fd, False)
                return cls(fd, path)
        except OSError:
            pass  # Not that file, or not our lock: taken anew.
        return None

    def hand_on(self) -> str:
        """Lets the lock live on over exec; what the next program needs to keep it."""
        os.set_inheritable(self._fd, True)
        return str(self._fd)

    def release(self) -> None:
        """Gives the lock up before the process ends. Only for tests; root lets the kernel do it."""
        os.close(self._fd)
