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
    def acquire(cls, path: Path) -> InstanceLock:
        """Raises RefusedError if another root holds it, StorageError if the file cannot be made."""
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

    def release(self) -> None:
        """Gives the lock up before the process ends. Only for tests; root lets the kernel do it."""
        os.close(self._fd)
