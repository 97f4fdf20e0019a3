"""A directory that is held open, so that what is done in it cannot be led elsewhere.

A path names another place as soon as somebody renames a directory on it and leaves a symlink in its stead. Whoever
works, unconfined, in a tree that a confined program may change meanwhile must not use one. A `Directory` was opened
beneath the root of such a tree without following a symlink, and every act in it is a system call on its descriptor
and one name. It stays the same directory wherever it is moved to; `relative_to` tells where in the tree that is.

The standard library only, and little of it: loaded by path by the launcher.

Source: openat2(2), Linux 5.6; path_resolution(7).
"""

from __future__ import annotations

import ctypes
import errno
import os

SYS_OPENAT2 = 437
RESOLVE = 0x02 | 0x04 | 0x08
"""RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH."""
FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
WALKED = frozenset({errno.ENOSYS, errno.EPERM, errno.EAGAIN, errno.ENAMETOOLONG})
"""What openat2 says where it is missing, forbidden, raced by a rename, or given too long a path."""

Identity = tuple[int, int]
"""Device and inode number."""

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


class Directory:
    """Owns `fd` (O_PATH). `path` is where it was found, absolute: for words and comparisons, never to be opened."""

    __slots__ = ("fd", "identity", "path")

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path
        self.identity: Identity = identity(os.fstat(fd))

    def __del__(self) -> None:
        os.close(self.fd)

    @classmethod
    def open(cls, path: str) -> Directory:
        """The root of a tree. Raises OSError."""
        return cls(os.open(path, FLAGS), path)

    def below(self, relative: str, *, use_openat2: bool = True) -> Directory:
        """A directory beneath this one, itself for "". Raises OSError, also for a symlink or `..` on the way."""
        if ".." in relative.split("/"):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), relative)
        path = os.path.join(self.path, relative) if relative else self.path
        if use_openat2 and relative:
            try:
                return Directory(_openat2(self.fd, relative), path)
            except OSError as error:
                if error.errno not in WALKED:
                    raise
        return Directory(_walk(self.fd, relative), path)

    def status(self, name: str) -> os.stat_result | None:
        """What has this name, itself and not what it points to; None if it cannot be looked at, or is not there."""
        try:
            return os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except OSError:
            return None

    def is_open(self) -> bool:
        """Whether its owner can look at what is in it, whom the mode may forbid that."""
        return os.access(".", os.R_OK | os.X_OK, dir_fd=self.fd)

    def entries(self) -> list[tuple[str, bool]]:
        """All names in it, and which of them are directories. Empty if it may not be read."""
        try:
            fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.fd)
        except OSError as error:
            raise_if_exhausted(error)
            return []
        try:
            with os.scandir(fd) as scan:
                return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in scan]
        except OSError:
            return []
        finally:
            os.close(fd)

    def location(self) -> str:
        """Where it is now, absolute. Empty if it is nowhere any more."""
        try:
            if os.fstat(self.fd).st_nlink == 0:
                return ""
            return os.readlink(f"/proc/self/fd/{self.fd}")
        except OSError:
            return ""

    def relative_to(self, root: Directory) -> str | None:
        """Its present path beneath `root`, without a slash at either end; None if it is not there."""
        place, top = self.location(), root.location()
        if not place or not top:
            return None
        if place == top:
            return ""
        prefix = top.rstrip("/") + "/"
        return place[len(prefix) :] if place.startswith(prefix) else None


def identity(found: os.stat_result) -> Identity:
    """What stays the same when a file is renamed."""
    return found.st_dev, found.st_ino


def raise_if_exhausted(error: OSError) -> None:
    """Raises it again for want of descriptors or memory: what could not be looked at for that may well be there."""
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        raise error


def _openat2(dir_fd: int, relative: str) -> int:
    how = _OpenHow(FLAGS, 0, RESOLVE)
    fd = _libc.syscall(
        ctypes.c_long(SYS_OPENAT2),
        ctypes.c_int(dir_fd),
        ctypes.c_char_p(os.fsencode(relative)),
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), relative)
    return int(fd)


def _walk(dir_fd: int, relative: str) -> int:
    """The same, one name at a time: each step starts in a directory that was reached from the first."""
    fd = os.open(".", FLAGS, dir_fd=dir_fd)
    for name in relative.split("/") if relative else ():
        try:
            below = os.open(name, FLAGS, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    return fd
