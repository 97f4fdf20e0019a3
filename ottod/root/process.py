"""What root does to its own process and its private files."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import stat
import subprocess
from pathlib import Path

from ottod.errors import StorageError
from ottod.isolation.directory import Directory
from ottod.isolation.system_programs import system_program

MAX_FILES = 65_536
FORGOTTEN = ".forgotten"
"""Ends the name of a directory whose session is on record no more."""


def write_private(path: Path, text: str) -> None:
    """Replaces a file that only this user may read. Raises StorageError."""
    try:
        path.unlink(missing_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(text)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}", mend="check its directory") from error


def raise_file_limit() -> None:
    """Takes all the descriptors that this process may have: ZeroMQ aborts when it cannot accept a connection.

    Workers go back to what programs expect.
    """
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (min(hard, MAX_FILES) if hard != resource.RLIM_INFINITY else MAX_FILES, hard)
    )


def remove_tree(path: Path) -> bool:
    """Removes a directory with everything in it, whatever a session has put there. Blocks; never raises.

    Says whether nothing is left of it.
    """
    if path.is_symlink():
        # Wherever it leads: that is not the session's.
        with contextlib.suppress(OSError):
            path.unlink()
        return not os.path.lexists(path)
    with contextlib.suppress(RecursionError):
        shutil.rmtree(path, ignore_errors=True)
        if not os.path.lexists(path):
            return True
        with contextlib.suppress(OSError):
            _open_up(Directory.open(str(path)))
        shutil.rmtree(path, ignore_errors=True)
    if os.path.lexists(path):
        # Directories nested deeper than the interpreter can follow; the system's own tools have no such bound.
        for name, *options in (("chmod", "-R", "u+rwx"), ("rm", "-rf")):
            argv = [system_program(name) or f"/bin/{name}", *options, "--", str(path)]
            with contextlib.suppress(OSError):
                subprocess.run(argv, check=False, stderr=subprocess.DEVNULL)
    return not os.path.lexists(path)


def _open_up(place: Directory) -> None:
    """Its owner may change every directory of the tree again: those of Go's modules, for one, are read-only."""
    os.chmod(f"/proc/self/fd/{place.fd}", stat.S_IRWXU)
    for name, is_directory in place.entries():
        if is_directory:
            with contextlib.suppress(OSError):
                _open_up(place.below(name))


def remove_forgotten(directory: Path) -> Path | None:
    """Removes a forgotten session's directory as `remove_tree` does; where what is left of it lies, if anything is.

    Under another name, so that nobody takes it for a session's, and a later daemon can try again.
    """
    doomed = directory.with_name(directory.name + FORGOTTEN)
    try:
        directory.rename(doomed)
    except FileNotFoundError:
        return None
    except OSError:
        doomed = directory
    return None if remove_tree(doomed) else doomed


def remove_all_forgotten(sessions_dir: Path) -> list[Path]:
    """Tries again what could not be removed, or was not because the daemon died; gives what is left. Blocks."""
    return [path for path in sorted(sessions_dir.glob(f"*{FORGOTTEN}")) if not remove_tree(path)]
