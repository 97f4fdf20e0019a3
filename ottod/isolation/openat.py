"""A directory that paths cannot lead out of.

Every path is resolved by openat2(2) with RESOLVE_BENEATH, relative to a descriptor of the root that is held open: the
kernel itself refuses `..`, symlinks and magic links that leave the tree, and there is no moment between check and
use. Where openat2 is missing, and for absolute symlinks that point back into the tree (RESOLVE_BENEATH refuses those
too), the path is walked component by component with O_NOFOLLOW, each directory held by a descriptor: slower, and as
safe, because every step starts from a directory that was reached from the root.

Source: openat2(2), Linux 5.6.
"""

from __future__ import annotations

import ctypes
import errno
import os
import weakref
from collections import deque
from pathlib import Path

SYS_OPENAT2 = 437
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_BENEATH = 0x08
MAX_LINKS = 40
"""Symlinks in one path, as in the kernel."""
MAX_RACES = 32
"""How often openat2 may lose a race against a rename before the error is the caller's."""

_FALLS_BACK = frozenset({errno.EXDEV, errno.ENOSYS, errno.EPERM, errno.EAGAIN})


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


_libc = ctypes.CDLL(None, use_errno=True)


def openat2(dir_fd: int, path: str, flags: int, mode: int = 0) -> int:
    """One openat2(2) call that stays beneath `dir_fd`. Raises OSError; EXDEV for a path that leads out."""
    name = os.fsencode(path)
    how = _OpenHow(flags | os.O_CLOEXEC, mode, RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS)
    for _ in range(MAX_RACES):
        fd = _libc.syscall(
            ctypes.c_long(SYS_OPENAT2),
            ctypes.c_int(dir_fd),
            ctypes.c_char_p(name),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        )
        if fd >= 0:
            return int(fd)
        if ctypes.get_errno() not in (errno.EAGAIN, errno.EINTR):
            break
    code = ctypes.get_errno()
    raise OSError(code, os.strerror(code), path)


class RootDirectory:
    """A directory held open, and the paths beneath it. `use_openat2` False walks always (for tests and old kernels).

    Raises: OSError if `path` is not a directory that can be opened.
    """

    def __init__(self, path: str, *, use_openat2: bool = True) -> None:
        self.given = os.path.normpath(Path(path).absolute())
        self.path = os.path.realpath(path)
        self._use_openat2 = use_openat2
        self.fd = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._closer = weakref.finalize(self, os.close, self.fd)

    def close(self) -> None:
        """Closes the descriptor; nothing can be opened after that."""
        # The number may be given to another file the next moment, so it is forgotten here.
        self.fd = -1
        self._closer()

    def open(self, path: str, flags: int, mode: int = 0) -> int:
        """A descriptor of `path`, relative to the root, close-on-exec. Raises OSError; EXDEV if it leads out."""
        if "\0" in path:
            raise OSError(errno.EINVAL, "NUL byte in path", path)
        if self._use_openat2:
            try:
                return openat2(self.fd, path, flags, mode)
            except OSError as error:
                if error.errno not in _FALLS_BACK:
                    raise
        return self._walk(path, flags, mode)

    def inner(self, absolute: str) -> str:
        """An absolute path as one relative to the root. Raises OSError (EXDEV) if it does not begin with the root."""
        for root in (self.path, self.given):
            prefix = root.rstrip("/") + "/"
            if absolute == root:
                return "."
            if absolute.startswith(prefix):
                return absolute[len(prefix) :].lstrip("/") or "."
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), absolute)

    def location(self, fd: int) -> str:
        """Where an open descriptor is now, as an absolute path."""
        return str(Path(f"/proc/self/fd/{fd}").readlink())

    def _walk(self, path: str, flags: int, mode: int) -> int:
        """`open` without openat2. The stack holds a descriptor of every directory on the way down."""
        if path.startswith("/"):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
        stack = [os.dup(self.fd)]
        try:
            rest = deque(part for part in path.split("/") if part not in ("", "."))
            links = 0
            while rest:
                name = rest.popleft()
                if name == "..":
                    if len(stack) == 1:
                        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
                    os.close(stack.pop())
                    continue
                target = None if not rest and flags & os.O_NOFOLLOW else _link_target(name, stack[-1])
                if target is None:
                    if not rest:
                        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=stack[-1])
                    stack.append(os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=stack[-1]))
                    continue
                links += 1
                if links > MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                if target.startswith("/"):
                    target = self.inner(target)
                    while len(stack) > 1:
                        os.close(stack.pop())
                rest.extendleft(part for part in reversed(target.split("/")) if part not in ("", "."))
            return os.open(".", flags | os.O_CLOEXEC, mode, dir_fd=stack[-1])
        finally:
            for fd in stack:
                os.close(fd)


def _link_target(name: str, dir_fd: int) -> str | None:
    """Where a symlink points; None for anything else, existing or not."""
    try:
        return os.readlink(name, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT):
            return None
        raise
