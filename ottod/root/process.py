"""What root does to its own process and its private files."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from pathlib import Path

from ottod.errors import StorageError

MAX_FILES = 65_536


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


def remove_tree(path: Path) -> None:
    """Removes a directory with everything in it, whatever a session has put there. Blocks; never raises."""
    try:
        shutil.rmtree(path, ignore_errors=True)
    except RecursionError:
        # Directories nested deeper than the interpreter can follow; the system's own tool has no such bound.
        subprocess.run(["rm", "-rf", "--", str(path)], check=False, stderr=subprocess.DEVNULL)
