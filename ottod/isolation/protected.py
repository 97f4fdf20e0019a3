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
be held like that without disturbing the user's own git is looked at when a call is over, and put right (`Watch`).

Nothing here follows a symlink. Loaded by path by the launcher, without the rest of the package.

Source: ADR 0010; gitrepository-layout(5).
"""

from __future__ import annotations

import fcntl
import os
import stat

TYPE_CHECKING = False  # As in `typing`, which would triple the launcher's start-up time.
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

NAMES = (".otto", ".git")
"""Within any directory, whatever the case: file systems that ignore it exist."""
MARK = "user.otto.placeholder"
MAX_DIRECTORIES = 3000
"""Directories that are looked into for repositories, nearest first."""
MAX_MODULES = 200
SKIPPED = frozenset({"node_modules", ".venv", "venv", "__pycache__", ".tox", ".mypy_cache", ".cache"})
"""Too large to search, and nobody keeps a repository of their own there."""
ATTEMPTS = 8


def is_protected(relative: str) -> bool:
    """True for a path that file tools must not write: one that has a protected name among its parts."""
    return any(part.casefold() in NAMES for part in relative.split("/"))


class Watch:
    """Paths that must be as they were: absent, or a symlink with the same target."""

    def __init__(self) -> None:
        self.expected: dict[str, str | None] = {}

    def add(self, path: str) -> None:
        """Takes the path as it is now: a symlink, or absent. Anything else is not watched."""
        try:
            self.expected[path] = os.readlink(path)
        except FileNotFoundError:
            self.expected[path] = None
        except OSError:
            pass

    def mend(self) -> list[str]:
        """Makes every path what it was; returns those that had changed."""
        changed = []
        for path, target in self.expected.items():
            try:
                found = os.readlink(path) if stat.S_ISLNK(os.lstat(path).st_mode) else ""
            except OSError:
                found = None
            if found == target:
                continue
            changed.append(path)
            try:
                if found is not None:
                    _put_aside(path)
                if target is not None:
                    os.symlink(target, path)
            except OSError:
                continue
        return changed


class Protection:
    """The protected paths of one working directory. `granted` paths are left alone, whatever they are called."""

    def __init__(self, root: str, *, granted: Iterable[str] = ()) -> None:
        self.root = root
        self.granted = tuple(granted)
        self.placeholders: dict[str, int] = {}
        self.read_only: list[str] = []
        self.fixed: list[str] = []
        self.watch = Watch()

    def refresh(self) -> None:
        """Looks at the tree as it is now. Bounded; a symlink is never followed."""
        self.read_only, self.fixed, self.watch = [], [], Watch()
        self._hold(f"{self.root}/.otto")
        self._repository(f"{self.root}/.git", is_expected=True)
        for directory in _directories(self.root):
            if directory != self.root:
                if os.path.lexists(f"{directory}/.git"):
                    self._repository(f"{directory}/.git", is_expected=False)
                if os.path.lexists(f"{directory}/.otto"):
                    self._hold(f"{directory}/.otto")

    def is_current(self) -> bool:
        """False if something that was to be mounted over itself exists no more."""
        return all(os.path.lexists(path) for path in (*self.fixed, *self.read_only))

    def arguments(self) -> list[str]:
        """The mounts for bubblewrap, outer ones first. `fixed` directories stay writable and cannot be moved."""
        order = sorted([(path, "--bind") for path in self.fixed] + [(path, "--ro-bind") for path in self.read_only])
        return [word for path, option in order for word in (option, path, path)]

    def release(self) -> None:
        """Removes the placeholders that nobody else holds."""
        for path, fd in self.placeholders.items():
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.rmdir(path)
            except OSError:
                pass  # Held by another session, or the user has put something into it: then it is theirs.
            os.close(fd)
        self.placeholders.clear()

    def _repository(self, git: str, *, is_expected: bool) -> None:
        if git in self.granted:
            return
        try:
            mode = os.lstat(git).st_mode
        except OSError:
            if is_expected:
                self._hold(git)
            return
        if stat.S_ISLNK(mode):
            self.watch.add(git)
        elif not stat.S_ISDIR(mode):
            self.read_only.append(git)
        elif self._is_placeholder(git):
            self._hold(git)
        else:
            self.fixed.append(git)
            for directory in (git, *_modules(git)):
                self._inside(directory)

    def _inside(self, git: str) -> None:
        """What matters in one repository's own directory."""
        self._hold(f"{git}/hooks")
        for name in ("config", "config.worktree", "commondir", "worktrees"):
            path = f"{git}/{name}"
            if os.path.lexists(path) and not os.path.islink(path):
                self.read_only.append(path)
            elif name != "worktrees":
                self.watch.add(path)

    def _hold(self, path: str) -> None:
        """Makes `path` read-only, with a placeholder if there is nothing."""
        if path in self.granted:
            return
        for _ in range(ATTEMPTS):
            try:
                os.mkdir(path, 0o755)
                is_ours = True
            except FileExistsError:
                is_ours = self._is_placeholder(path)
            except OSError:
                return  # A directory that we may not write, a program may not either.
            if os.path.islink(path):
                self.watch.add(path)
                return
            if not is_ours or path in self.placeholders or self._lock(path):
                self.read_only.append(path)
                return

    def _lock(self, path: str) -> bool:
        """Takes part in holding a placeholder; False if it was just removed by another."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            if os.fstat(fd).st_ino != os.lstat(path).st_ino:
                raise FileNotFoundError
        except OSError:
            os.close(fd)
            return False
        try:
            os.setxattr(fd, MARK, b"1")
        except OSError:
            pass  # Not every file system has attributes; then it is only not removed after a kill -9.
        self.placeholders[path] = fd
        return True

    def _is_placeholder(self, path: str) -> bool:
        """True for an empty directory that this launcher made, or one that bears a mark: its maker may be dead."""
        try:
            if not stat.S_ISDIR(os.lstat(path).st_mode) or os.listdir(path):
                return False
            return path in self.placeholders or os.getxattr(path, MARK, follow_symlinks=False) == b"1"
        except OSError:
            return False


def _put_aside(path: str) -> None:
    """One step, on this name only: a tree that is removed piece by piece could be swapped for a symlink meanwhile."""
    if stat.S_ISDIR(os.lstat(path).st_mode):
        os.rename(path, f"{path}.refused-{os.urandom(4).hex()}")
    else:
        os.unlink(path)


def _directories(root: str) -> Iterator[str]:
    """The tree from the top, level by level, at most MAX_DIRECTORIES of it."""
    level, seen = [root], 0
    while level:
        below: list[str] = []
        for directory in level:
            seen += 1
            if seen > MAX_DIRECTORIES:
                return
            yield directory
            try:
                with os.scandir(directory) as entries:
                    below += [
                        entry.path
                        for entry in entries
                        if entry.name not in SKIPPED
                        and entry.name.casefold() not in NAMES
                        and entry.is_dir(follow_symlinks=False)
                    ]
            except OSError:
                continue
        level = below


def _modules(git: str) -> Iterator[str]:
    """The repositories of submodules, which nest."""
    found = 0
    pending = [f"{git}/modules"]
    while pending and found < MAX_MODULES:
        directory = pending.pop()
        try:
            with os.scandir(directory) as entries:
                names = {entry.name: entry.path for entry in entries if entry.is_dir(follow_symlinks=False)}
        except OSError:
            continue
        if os.path.lexists(f"{directory}/HEAD"):
            found += 1
            yield directory
            names = {"modules": names["modules"]} if "modules" in names else {}
        pending.extend(names.values())
