"""The files of one working directory, for tools: reading, listing, and writing that is atomic.

All access goes through `RootDirectory`, so no path, symlink or rename leads outside. A file is opened with O_PATH
first and looked at before it is opened for reading: devices, fifos and sockets are refused without being touched,
and nothing here ever waits for a peer. Writes make a temporary file beside the target and rename it. What lies in a
`.git` or `.otto` directory acts outside the sandbox (see `protected`) and is not written, by whatever path.
"""

from __future__ import annotations

import copy
import errno
import os
import secrets
import stat
import threading
from collections.abc import Callable, Sequence
from typing import Literal

from ottod.errors import RefusedError, ToolError
from ottod.isolation.openat import MAX_LINKS, RootDirectory
from ottod.isolation.protected import is_protected
from ottod.isolation.refusals import refusal, too_large
from ottod.isolation.standing import Standing
from ottod.protocol.toolio import DirEntry, FileStat

MAX_DIR_ENTRIES = 100_000
"""A directory with more entries than this is not listed."""
MAX_PATH_BYTES = 4096
"""The kernel's bound."""
MAX_CONFLICTS = 16
"""How often `change` starts again because something else wrote the file."""
TEMPORARY_PREFIX = ".otto-write-"

Kind = Literal["file", "dir", "symlink", "other"]
Use = Literal["read", "write"]
Fingerprint = tuple[int, int, int, int]


class BeneathFiles:
    """`Files` of one working directory. `hidden` directories inside it do not exist for tools.

    `granted` paths may be written although they are protected. `durable` adds an fsync to every write. Thread-safe.
    `objection`, given a file's real location and what is done with it, says why not, or nothing: it is asked at the
    moment of use, when no symlink can mislead any more.
    Raises: ToolError if the root cannot be opened, RefusedError if it lies inside a hidden directory.
    """

    def __init__(
        self,
        root: str,
        *,
        hidden: Sequence[str] = (),
        granted: Sequence[str] = (),
        durable: bool = False,
        objection: Callable[[str, Use], str] | None = None,
    ) -> None:
        try:
            self._root = RootDirectory(root)
        except OSError as error:
            raise ToolError(
                f"cannot open the working directory {root}: {error.strerror}",
                code="workdir_gone",
                mend="start the session in a directory that exists",
            ) from error
        self._hidden = tuple(os.path.realpath(path) for path in hidden)
        self._granted = tuple(os.path.realpath(path) for path in granted)
        self._durable = durable
        self._objection = objection
        self._standing = Standing()
        self._write_lock = threading.Lock()
        if self._is_hidden(self._root.path):
            self._root.close()
            raise RefusedError(
                f"{root} belongs to Otto itself and cannot be a working directory",
                mend="choose the directory of a project",
            )

    @property
    def root(self) -> str:
        """The working directory, absolute, without symlinks."""
        return self._root.path

    def under(self, standing: Standing) -> BeneathFiles:
        """The same files for one call: once that is given up, they are changed no more on its behalf."""
        files = copy.copy(self)
        files._standing = standing
        return files

    def close(self) -> None:
        """Closes the root; every later call fails."""
        self._root.close()

    def relative(self, path: str) -> str:
        """The path relative to the root, normalised by its text (`a/../b` is `b`). Raises ToolError outside."""
        if not path:
            raise ToolError("the path is empty; give a path relative to the working directory", code="bad_path")
        if "\0" in path:
            raise ToolError("the path contains a NUL byte", code="bad_path")
        try:
            is_too_long = len(os.fsencode(path)) >= MAX_PATH_BYTES
        except UnicodeEncodeError as error:
            raise ToolError("the path is not valid text", code="bad_path") from error
        if is_too_long:
            raise ToolError(f"the path is too long, {MAX_PATH_BYTES} bytes is the most", code="bad_path")
        if path.startswith("/"):
            try:
                return self._root.inner("/" + os.path.normpath(path).lstrip("/"))
            except OSError as error:
                raise refusal(path, error, root=self.root) from error
        plain = os.path.normpath(path)
        if plain == ".." or plain.startswith("../"):
            # A path may leave and come back (`../project/file`); by its text that is inside.
            try:
                return self._root.inner(os.path.normpath(f"{self._root.path}/{path}"))
            except OSError as error:
                raise refusal(path, error, root=self.root) from error
        return plain

    def read(self, path: str, *, max_bytes: int) -> bytes:
        """The whole file. Raises ToolError above `max_bytes`, and for anything but a regular file."""
        relative = self.relative(path)
        try:
            return self._read(relative, max_bytes)[0]
        except OSError as error:
            raise refusal(path, error, root=self.root) from error

    def write(self, path: str, data: bytes, *, make_parents: bool = True) -> bool:
        """Replaces or creates the file atomically; True if it is new. A symlink to a place inside is followed."""
        relative = self.relative(path)
        try:
            with self._write_lock:
                return self._write(relative, data, make_parents=make_parents, expected=None)
        except OSError as error:
            raise refusal(path, error, root=self.root) from error

    def create(self, path: str, data: bytes) -> None:
        """Makes a file that was not there, atomically. Raises ToolError with code `exists` if it was."""
        relative = self.relative(path)
        try:
            with self._write_lock:
                self._write(relative, data, make_parents=True, expected=None, is_new=True)
        except FileExistsError as error:
            raise ToolError(f"{path} is there already", code="exists") from error
        except OSError as error:
            raise refusal(path, error, root=self.root) from error

    def place(self, path: str) -> str:
        """The absolute path, without symlinks, of a file that may be written, for whoever has to open it by its name.

        What is missing of its directories is made. Raises ToolError for anything but a regular file or nothing.
        """
        relative = self.relative(path)
        try:
            parent, name = self._locate(relative, make_parents=True)
            try:
                location = f"{self._root.location(parent)}/{name}"
                self._check_use(location, "write")
                old = _lstat(name, parent)
                if old is not None:
                    _require_regular(relative, old.st_mode)
            finally:
                os.close(parent)
        except OSError as error:
            raise refusal(path, error, root=self.root) from error
        return location

    def change(self, path: str, transform: Callable[[bytes], bytes], *, max_bytes: int) -> None:
        """Read, transform, replace, as one step. Raises ToolError, and whatever `transform` raises."""
        relative = self.relative(path)
        try:
            with self._write_lock:
                for _ in range(MAX_CONFLICTS):
                    data, fingerprint = self._read(relative, max_bytes)
                    try:
                        self._write(relative, transform(data), make_parents=False, expected=fingerprint)
                    except _WrittenMeanwhile:
                        continue
                    return
        except OSError as error:
            raise refusal(path, error, root=self.root) from error
        raise ToolError(f"{path} keeps changing; something else is writing it", code="conflict")

    def stat(self, path: str) -> FileStat:
        """Kind, size, time and mode. Does not follow a final symlink."""
        try:
            fd = self._open(self.relative(path), os.O_PATH | os.O_NOFOLLOW)
            try:
                found = os.fstat(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise refusal(path, error, root=self.root) from error
        kind = _kind(found.st_mode)
        return FileStat(
            kind=kind,
            size_bytes=0 if kind == "dir" else found.st_size,
            mtime_ns=found.st_mtime_ns,
            mode=stat.S_IMODE(found.st_mode),
        )

    def list(self, path: str) -> list[DirEntry]:
        """The entries of a directory, sorted by name. Raises ToolError above MAX_DIR_ENTRIES."""
        try:
            fd = self._open(self.relative(path), os.O_RDONLY | os.O_DIRECTORY)
            try:
                self._check_use(self._root.location(fd), "read")
                entries = _entries(fd, path)
            finally:
                os.close(fd)
        except OSError as error:
            raise refusal(path, error, root=self.root) from error
        return sorted(entries, key=lambda entry: entry.name)

    def _open(self, relative: str, flags: int) -> int:
        fd = self._root.open(relative, flags)
        if self._hidden and self._is_hidden(self._root.location(fd)):
            os.close(fd)
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), relative)
        return fd

    def _is_hidden(self, location: str) -> bool:
        return _is_inside(location, self._hidden)

    def _check_use(self, location: str, use: Use) -> None:
        """Raises ToolError if there is an objection to a file where it really is."""
        if self._objection is not None and (reason := self._objection(location, use)):
            raise ToolError(reason, code="denied", mend="do it in another way")

    def _refuse_protected(self, directory: int, name: str) -> None:
        """Raises ToolError if `name` in an open directory is protected, by where that directory really is."""
        location = f"{self._root.location(directory)}/{name}"
        if is_protected(location.removeprefix(self.root)) and not _is_inside(location, self._granted):
            raise ToolError(
                f"{location} is protected: what lies in .git or .otto is run or obeyed outside the sandbox; "
                "use git for git's files, and ask the user to change the others",
                code="protected",
            )

    def _read(self, relative: str, max_bytes: int) -> tuple[bytes, Fingerprint]:
        path_fd = self._open(relative, os.O_PATH)
        try:
            found = os.fstat(path_fd)
            _require_regular(relative, found.st_mode)
            self._check_use(self._root.location(path_fd), "read")
            if found.st_size > max_bytes:
                raise too_large(relative, found.st_size, max_bytes)
            # The descriptor's own link names exactly the file just looked at, whatever the path means by now.
            fd = os.open(f"/proc/self/fd/{path_fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        finally:
            os.close(path_fd)
        with os.fdopen(fd, "rb", buffering=0) as file:
            chunks: list[bytes] = []
            left = max_bytes + 1
            while left > 0 and (chunk := file.read(min(left, 1 << 20))):
                chunks.append(chunk)
                left -= len(chunk)
        if left <= 0:
            raise too_large(relative, max_bytes + 1, max_bytes)
        return b"".join(chunks), _fingerprint(found)

    def _write(
        self,
        relative: str,
        data: bytes,
        *,
        make_parents: bool,
        expected: Fingerprint | None,
        is_new: bool = False,
    ) -> bool:
        parent, name = self._locate(relative, make_parents=make_parents)
        try:
            self._check_use(f"{self._root.location(parent)}/{name}", "write")
            old = _lstat(name, parent)
            if old is not None and is_new:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), relative)
            if old is not None:
                _require_regular(relative, old.st_mode)
                if not old.st_mode & 0o222:
                    raise ToolError(
                        f"{relative} is read-only (mode {stat.S_IMODE(old.st_mode):o}); make it writable first",
                        code="read_only",
                    )
            temporary = TEMPORARY_PREFIX + secrets.token_hex(8)
            try:
                self._fill(parent, temporary, data, old)
                if expected is not None and (old is None or _fingerprint(old) != expected):
                    raise _WrittenMeanwhile
                with self._standing.deed():
                    self._put_in_place(temporary, name, parent, is_new=is_new)
            except BaseException:
                _unlink_if_there(temporary, parent)
                raise
            if self._durable:
                _sync_directory(parent)
            return old is None
        finally:
            os.close(parent)

    def _put_in_place(self, temporary: str, name: str, parent: int, *, is_new: bool) -> None:
        if is_new:
            # A link never takes the place of a file that somebody has made meanwhile.
            os.link(temporary, name, src_dir_fd=parent, dst_dir_fd=parent, follow_symlinks=False)
            os.unlink(temporary, dir_fd=parent)
        else:
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)

    def _fill(self, parent: int, temporary: str, data: bytes, old: os.stat_result | None) -> None:
        """The new content, complete, under a name of its own. A new file's mode is left to the umask.

        Another's place is taken by a file that nobody could open in between who may not open that one.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(temporary, flags, 0o666 if old is None else 0o600, dir_fd=parent)
        with os.fdopen(fd, "wb", buffering=0) as file:
            if old is not None:
                _take_after(fd, old)
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
            if self._durable:
                os.fsync(fd)

    def _locate(self, relative: str, *, make_parents: bool) -> tuple[int, str]:
        """The directory (a descriptor) and name that a write of `relative` ends at, after all symlinks."""
        for _ in range(MAX_LINKS):
            head, name = os.path.split(relative)
            # By its text first, so that no directory is made on the way to a refusal.
            if is_protected(relative):
                self._refuse_protected(self._root.fd, relative)
            if name in ("", ".", ".."):
                raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), relative)
            parent = self._open_parent(head or ".", make=make_parents)
            try:
                if self._hidden and self._is_hidden(f"{self._root.location(parent)}/{name}"):
                    raise OSError(errno.EACCES, os.strerror(errno.EACCES), relative)
                self._refuse_protected(parent, name)
                target = os.readlink(name, dir_fd=parent)
            except OSError as error:
                if error.errno in (errno.EINVAL, errno.ENOENT):
                    return parent, name
                os.close(parent)
                raise
            except ToolError:
                os.close(parent)
                raise
            os.close(parent)
            # The link's text goes back through the kernel, from the directory it is in: `..` in it means what it
            # means there, and leads out of the root no more than any other path.
            relative = self._root.inner(target) if target.startswith("/") else f"{head or '.'}/{target}"
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), relative)

    def _open_parent(self, directory: str, *, make: bool) -> int:
        """A descriptor of the directory; with `make`, what is missing of it is created from the top down."""
        flags = os.O_PATH | os.O_DIRECTORY
        try:
            return self._open(directory, flags)
        except FileNotFoundError:
            if not make:
                raise
        parts = directory.split("/")
        there, missing = 0, len(parts)  # The first is known to exist (the root), the second not to.
        while missing - there > 1:
            middle = (there + missing) // 2
            try:
                os.close(self._open("/".join(parts[:middle]) or ".", flags))
                there = middle
            except FileNotFoundError:
                missing = middle
        fd = self._open("/".join(parts[:there]) or ".", flags)
        for name in parts[there:]:
            try:
                if name in ("", ".", ".."):
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), directory)
                self._refuse_protected(fd, name)
                self._standing.check()
                try:
                    os.mkdir(name, dir_fd=fd)
                except FileExistsError:
                    pass  # Made by someone else meanwhile, or a dangling link, which opening it refuses.
                below = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            finally:
                os.close(fd)
            fd = below
        return fd


def _is_inside(location: str, directories: Sequence[str]) -> bool:
    return any(location == path or location.startswith(path.rstrip("/") + "/") for path in directories)


class _WrittenMeanwhile(Exception):
    """The file is no longer the one that was read."""


def _entries(fd: int, path: str) -> list[DirEntry]:
    entries: list[DirEntry] = []
    with os.scandir(fd) as scan:
        for entry in scan:
            if len(entries) == MAX_DIR_ENTRIES:
                raise ToolError(
                    f"{path} has more than {MAX_DIR_ENTRIES} entries; list a part of it with shell", code="too_large"
                )
            kind: Kind = "other"
            if entry.is_symlink():
                kind = "symlink"
            elif entry.is_dir(follow_symlinks=False):
                kind = "dir"
            elif entry.is_file(follow_symlinks=False):
                kind = "file"
            entries.append(DirEntry(name=entry.name, kind=kind))
    return entries


def _kind(mode: int) -> Kind:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "dir"
    return "symlink" if stat.S_ISLNK(mode) else "other"


def _require_regular(path: str, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise ToolError(f"{path} is not a regular file (a device, fifo or socket) and cannot be used", code="not_a_file")


def _fingerprint(found: os.stat_result) -> Fingerprint:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _lstat(name: str, dir_fd: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _unlink_if_there(name: str, dir_fd: int) -> None:
    try:
        os.unlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        pass


def _take_after(fd: int, old: os.stat_result) -> None:
    """Owner, group and mode of the file that is replaced."""
    if (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
        try:
            os.fchown(fd, old.st_uid, old.st_gid)
        except PermissionError:
            pass  # Only root can give a file away; the writer then owns it, as with any editor.
    os.fchmod(fd, stat.S_IMODE(old.st_mode) & 0o777)


def _sync_directory(path_fd: int) -> None:
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=path_fd)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
