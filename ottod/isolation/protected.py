"""Paths inside a working directory that no program may make or change, because they act outside the sandbox.

    .otto/                             agents and policy: what the next session may do
    .git/hooks/, .git/config           run by the user's own git, with the user's rights
    .git/commondir, config.worktree    say where git finds the other two
    .git/worktrees/, .git/modules/…    the same for linked work trees and submodules
    .git itself                        or it could be moved away and made anew

That holds for the working directory and for the repositories that are found below it. Everything else a program may
write, hooks of a repository that it makes itself included: that is its work, as a Makefile is.

What exists is mounted over itself, read-only. What does not exist has no place to mount anything on, and a sandbox
that made one would leave it behind, so it is held open by a *placeholder*: an empty directory, made by the launcher,
locked (shared) as long as a launcher needs it, and removed by the last. A placeholder whose launcher was killed bears
a mark (an extended attribute), by which the next launcher in that directory knows that it may be removed. What cannot
be held like that without disturbing the user's own git is looked at when a call is over, and put right (`mending`).

Programs change the tree while this works in it from outside of their sandbox, so nothing here goes by a path: every
directory was reached from the root without following a symlink and is held open (`directory`). A repository that was
found once is protected as long as it lies anywhere in the tree, wherever a program moves it. What cannot be looked
into is mounted read-only as a whole, because a program may have closed it, and could open it again.

Loaded by path by the launcher, without the rest of the package.

Source: ADR 0010; gitrepository-layout(5).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys

TYPE_CHECKING = False  # As in `typing`, which would triple the launcher's start-up time.
if TYPE_CHECKING or __package__:
    from ottod.isolation import directory, mending
else:
    sys.path.append(os.path.dirname(os.path.abspath(__file__)))
    import directory
    import mending
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ottod.isolation.directory import Directory, Identity

NAMES = (".otto", ".git")
"""Within any directory, whatever the case: file systems that ignore it exist."""
MARK = "user.otto.placeholder"
MAX_DIRECTORIES = 3000
"""Directories that are looked into for repositories, nearest first."""
MAX_MODULES = 200
MAX_MODULE_DIRECTORIES = 3000
"""The same for one repository's submodules."""
SKIPPED = frozenset({"node_modules", ".venv", "venv", "__pycache__", ".tox", ".mypy_cache", ".cache"})
"""Too large to search, and nobody keeps a repository of their own there."""
ATTEMPTS = 8


def is_protected(relative: str) -> bool:
    """True for a path that file tools must not write: one that has a protected name among its parts."""
    return any(part.casefold() in NAMES for part in relative.split("/"))


class Mount:
    """Something to be mounted over itself: a name in a directory, and which file that was."""

    def __init__(self, parent: Directory, name: str, found: os.stat_result, *, option: str) -> None:
        self.parent = parent
        self.name = name
        self.path = os.path.join(parent.path, name)
        self.identity = directory.identity(found)
        self.option = option

    def is_there(self) -> bool:
        """True if the name in that directory is still the same file."""
        found = self.parent.status(self.name)
        return found is not None and directory.identity(found) == self.identity

    def open(self) -> int:
        """A descriptor of exactly that file. Raises OSError."""
        fd = os.open(self.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.parent.fd)
        if directory.identity(os.fstat(fd)) != self.identity:
            os.close(fd)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), self.path)
        return fd


class Protection:
    """The protected paths of one working directory. `granted` paths are left alone, whatever they are called.

    `makes_placeholders` False only looks for those that were left. Raises: OSError if `root` cannot be opened.
    """

    def __init__(self, root: str, *, granted: Iterable[str] = (), makes_placeholders: bool = True) -> None:
        self.root = directory.Directory.open(root)
        self.granted = tuple(granted)
        self.makes_placeholders = makes_placeholders
        self.placeholders: dict[Identity, tuple[Directory, str, int]] = {}
        self.mounts: list[Mount] = []
        self.known: dict[Identity, Directory] = {}
        self.known_repositories: dict[Identity, Directory] = {}
        self.watch = mending.Watch()

    def refresh(self) -> None:
        """Looks at the tree as it is now. Bounded. Raises OSError if it cannot be held, for want of descriptors."""
        known, self.known = self.known, {}
        known_repositories, self.known_repositories = self.known_repositories, {}
        self.mounts, self.watch = [], mending.Watch()
        self._hold(self.root, ".otto")
        self._repository(self.root, is_expected=True)
        for each in self._directories():
            self._look_into(each)
        # Moved to where nobody searches, or behind more directories than are searched.
        for each in self._again(known, self.known):
            self._look_into(each)
        for each in self._again(known_repositories, self.known_repositories):
            self._inside(each)
        self.mounts.sort(key=lambda mount: mount.path)

    def is_current(self) -> bool:
        """False if something that was to be mounted over itself is not what its path names any more."""
        seen: dict[int, bool] = {}
        for mount in self.mounts:
            parent = mount.parent
            if id(parent) not in seen:
                seen[id(parent)] = self._is_in_place(parent)
            if not seen[id(parent)] or not mount.is_there():
                return False
        return True

    def arguments(self) -> list[str]:
        """The mounts for bubblewrap by path, outer ones first: for one that knows no descriptors."""
        return [word for mount in self.mounts for word in (mount.option, mount.path, mount.path)]

    def fd_arguments(self) -> tuple[list[str], list[int]]:
        """The same with descriptors, which are given as well. Raises OSError."""
        fds = [mount.open() for mount in self.mounts]
        words = [
            word
            for mount, fd in zip(self.mounts, fds, strict=True)
            for word in (f"{mount.option}-fd", str(fd), mount.path)
        ]
        return words, fds

    def release(self) -> None:
        """Removes the placeholders that nobody else holds."""
        for key, (parent, name, fd) in self.placeholders.items():
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                found = parent.status(name)
                if found is not None and directory.identity(found) == key:
                    os.rmdir(name, dir_fd=parent.fd)
            except OSError:
                pass  # Held by another session, or the user has put something into it: then it is theirs.
            os.close(fd)
        self.placeholders.clear()

    def _again(self, known: dict[Identity, Directory], found: dict[Identity, Directory]) -> Iterator[Directory]:
        """Those of `known` that were not found this time and still are in the tree, at their present places."""
        for key, each in known.items():
            place = each.relative_to(self.root) if key not in found else None
            if place:
                try:
                    yield self.root.below(place)
                except OSError as error:
                    directory.raise_if_exhausted(error)

    def _is_in_place(self, parent: Directory) -> bool:
        try:
            relative = parent.path[len(self.root.path) :].lstrip("/")
            return self.root.below(relative).identity == parent.identity
        except OSError:
            return False

    def _is_granted(self, parent: Directory, name: str) -> bool:
        return os.path.join(parent.path, name) in self.granted

    def _directories(self) -> Iterator[Directory]:
        """The tree below the root, level by level, at most MAX_DIRECTORIES of it."""
        level, seen = [""], 0
        while level:
            below: list[str] = []
            for relative in level:
                seen += 1
                if seen > MAX_DIRECTORIES:
                    return
                try:
                    found = self.root.below(relative)
                except OSError as error:
                    directory.raise_if_exhausted(error)
                    continue
                if relative:
                    yield found
                below += [
                    os.path.join(relative, name)
                    for name, is_directory in found.entries()
                    if is_directory and name not in SKIPPED and name.casefold() not in NAMES
                ]
            level = below

    def _look_into(self, found: Directory) -> None:
        """Protects what a directory below the root has of its own."""
        if not found.is_open():
            self._mount_whole(found)
            self.known[found.identity] = found
            return
        for name in NAMES:
            if found.status(name) is not None:
                self.known[found.identity] = found
        if found.status(".git") is not None:
            self._repository(found, is_expected=False)
        if found.status(".otto") is not None:
            self._hold(found, ".otto")

    def _mount_whole(self, found: Directory) -> None:
        """What is closed even to its owner was perhaps closed to hide something."""
        head, _, name = found.path.rpartition("/")
        try:
            parent = self.root.below(head[len(self.root.path) :].lstrip("/"))
        except OSError as error:
            directory.raise_if_exhausted(error)
            return
        status = parent.status(name)
        if status is not None and directory.identity(status) == found.identity:
            self.mounts.append(Mount(parent, name, status, option="--ro-bind"))

    def _repository(self, parent: Directory, *, is_expected: bool) -> None:
        """Protects the repository that `parent` is the work tree of."""
        if self._is_granted(parent, ".git"):
            return
        status = parent.status(".git")
        if status is None:
            if is_expected:
                self._hold(parent, ".git")
            return
        if stat.S_ISLNK(status.st_mode):
            self.watch.add(parent, ".git")
            return
        if not stat.S_ISDIR(status.st_mode):
            self.mounts.append(Mount(parent, ".git", status, option="--ro-bind"))
            return
        try:
            git = parent.below(".git")
        except OSError as error:
            directory.raise_if_exhausted(error)
            return
        if self._is_placeholder(parent, ".git"):
            self._hold(parent, ".git")
            return
        option = "--bind" if git.is_open() else "--ro-bind"
        self.mounts.append(Mount(parent, ".git", os.fstat(git.fd), option=option))
        if git.is_open():
            for each in (git, *_modules(git)):
                self._inside(each)

    def _inside(self, git: Directory) -> None:
        """What matters in one repository's own directory."""
        self.known_repositories[git.identity] = git
        if not git.is_open():
            self._mount_whole(git)
            return
        self._hold(git, "hooks")
        for name in ("config", "config.worktree", "commondir", "worktrees"):
            status = git.status(name)
            if status is not None and not stat.S_ISLNK(status.st_mode):
                self.mounts.append(Mount(git, name, status, option="--ro-bind"))
            elif name != "worktrees":
                self.watch.add(git, name)

    def _hold(self, parent: Directory, name: str) -> None:
        """Makes a name read-only, with a placeholder if there is nothing."""
        if self._is_granted(parent, name):
            return
        for _ in range(ATTEMPTS):
            is_ours = False
            if self.makes_placeholders:
                try:
                    os.mkdir(name, 0o755, dir_fd=parent.fd)
                    is_ours = True
                except FileExistsError:
                    pass
                except OSError:
                    break  # Not writable now, or no space: what a program makes there in spite of that is undone.
            status = parent.status(name)
            if status is None or stat.S_ISLNK(status.st_mode):
                if status is None and self.makes_placeholders:
                    continue
                break
            if is_ours or self._is_placeholder(parent, name):
                is_held = directory.identity(status) in self.placeholders or self._lock(parent, name)
                if not is_held and parent.status(name) is None:
                    continue  # Just removed by another.
            self.mounts.append(Mount(parent, name, status, option="--ro-bind"))
            return
        self.watch.add(parent, name)

    def _lock(self, parent: Directory, name: str) -> bool:
        """Takes part in holding a placeholder; False if another is removing it, or a program claims to."""
        try:
            fd = _open_directory(parent, name)
        except OSError as error:
            directory.raise_if_exhausted(error)
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            key = directory.identity(os.fstat(fd))
            found = parent.status(name)
            if found is None or directory.identity(found) != key:
                raise FileNotFoundError
        except OSError:
            os.close(fd)
            return False
        try:
            os.setxattr(fd, MARK, b"1")
        except OSError:
            pass  # Not every file system has attributes; then it is only not removed after a kill -9.
        self.placeholders[key] = parent, name, fd
        return True

    def _is_placeholder(self, parent: Directory, name: str) -> bool:
        """True for an empty directory that this launcher made, or one that bears a mark: its maker may be dead."""
        try:
            fd = _open_directory(parent, name)
        except OSError as error:
            directory.raise_if_exhausted(error)
            return False
        try:
            if os.listdir(fd):
                return False
            return directory.identity(os.fstat(fd)) in self.placeholders or os.getxattr(fd, MARK) == b"1"
        except OSError:
            return False
        finally:
            os.close(fd)


def release_stale(work_dir: str) -> None:
    """Removes the placeholders that a killed launcher has left, unless others hold them. Never raises OSError.

    Blocks: searches as much of the tree as `Protection.refresh` does: for a thread.
    """
    try:
        protection = Protection(work_dir, makes_placeholders=False)
    except OSError:
        return  # The directory is gone, and they with it.
    try:
        protection.refresh()
    except OSError:
        pass  # Out of descriptors: the next launcher there removes what is left.
    finally:
        protection.release()


def _open_directory(parent: Directory, name: str) -> int:
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent.fd)


def _modules(git: Directory) -> Iterator[Directory]:
    """The repositories of submodules, which nest, and what may be one but is closed."""
    found = seen = 0
    pending = ["modules"]
    while pending and found < MAX_MODULES and seen < MAX_MODULE_DIRECTORIES:
        relative = pending.pop()
        seen += 1
        try:
            each = git.below(relative)
        except OSError as error:
            directory.raise_if_exhausted(error)
            continue
        names = [name for name, is_directory in each.entries() if is_directory]
        if not each.is_open() or each.status("HEAD") is not None:
            found += 1
            yield each
            names = ["modules"] if "modules" in names else []
        pending.extend(os.path.join(relative, name) for name in names)
