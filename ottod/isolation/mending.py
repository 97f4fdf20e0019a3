"""Names that must be as they were when a call began, and are put right when it is over.

The keeper does this, which is not confined, while other calls of the session may still run and rename what they like.
So every name is remembered together with its directory, held open (see `directory`): what is undone is undone there,
wherever that directory has been moved to in the tree, and nowhere else. A directory that has left the tree is let be;
no program can have taken it out.

Loaded by path by the launcher, without the rest of the package.
"""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False  # As in `typing`, which would triple the launcher's start-up time.
if TYPE_CHECKING:
    from ottod.isolation.directory import Directory

ATTEMPTS = 64
"""How often a name is put right while others keep changing it."""
OWNER_MAY = stat.S_IRWXU
CHANGED = ""
"""Stands for anything that is neither absent nor a symlink, whose target is never empty."""


class Watch:
    """What these names must be: absent, or a symlink with the same target."""

    def __init__(self) -> None:
        self.expected: list[tuple[Directory, str, str | None]] = []

    def add(self, directory: Directory, name: str) -> None:
        """Takes the name as it is now: a symlink, or absent. Anything else is not watched."""
        found = _look(directory, name)
        if found != CHANGED:
            self.expected.append((directory, name, found))

    def mend(self, root: Directory) -> list[tuple[str, bool]]:
        """Makes every name beneath `root` what it was; the paths that had changed, and whether each was undone."""
        outcomes = []
        for directory, name, target in self.expected:
            if _look(directory, name) == target:
                continue
            place = directory.relative_to(root)
            if place is not None:
                outcomes.append((os.path.join(root.path, place, name), _restore(directory, name, target)))
        return outcomes


def _look(directory: Directory, name: str) -> str | None:
    """A symlink's target, None for nothing, CHANGED for anything else, also for what cannot be looked at."""
    try:
        return os.readlink(name, dir_fd=directory.fd)
    except FileNotFoundError:
        return None
    except OSError:
        return CHANGED


def _restore(directory: Directory, name: str, target: str | None) -> bool:
    for _ in range(ATTEMPTS):
        found = _look(directory, name)
        if found == target:
            return True
        try:
            if found is not None:
                _put_aside(directory, name)
            if target is not None:
                os.symlink(target, name, dir_fd=directory.fd)
        except PermissionError:
            _open_up(directory)
        except OSError:
            continue  # Changed again meanwhile by another call.
    return _look(directory, name) == target


def _put_aside(directory: Directory, name: str) -> None:
    """One step, on this name only: a tree that is removed piece by piece could be swapped for a symlink meanwhile."""
    fd = directory.fd
    if stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
        os.rename(name, f"{name}.refused-{os.urandom(4).hex()}", src_dir_fd=fd, dst_dir_fd=fd)
    else:
        os.unlink(name, dir_fd=fd)


def _open_up(directory: Directory) -> None:
    """A program may have taken its owner's rights from a directory, so that what it made there stays."""
    try:
        mode = stat.S_IMODE(os.fstat(directory.fd).st_mode)
        # The descriptor's own link is this directory, whatever its path means by now; O_PATH gives no fchmod.
        os.chmod(f"/proc/self/fd/{directory.fd}", mode | OWNER_MAY)
    except OSError:
        pass  # Not ours; the report says that it was not undone.
