"""The directories of a project that count for a session in it, nearest first."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ottod.settings.policy import repository_of

MAX_LEVELS = 64


def project_levels(cwd: Path, home: Path) -> Iterator[tuple[Path, Path]]:
    """The directories whose `.otto` counts, nearest first, each with its project's root."""
    cwd = Path(os.path.realpath(cwd))
    root = repository_of(cwd, home)
    if root is not None:
        levels = [level for level in (cwd, *cwd.parents) if level.is_relative_to(root)]
        yield from ((level, root) for level in levels[:MAX_LEVELS])
    elif cwd != Path(os.path.realpath(home)):
        yield cwd, cwd


def same_owner(level: Path, cwd: Path, below: str) -> bool:
    """Whether a level's directory (`.otto/agents`) belongs to the owner of the session's, or to root."""
    directory = level / below
    try:
        owners = {Path(os.path.realpath(cwd)).stat().st_uid, 0}
        return all(path.lstat().st_uid in owners for path in (directory.parent, directory))
    except FileNotFoundError:
        return True
    except OSError:
        return False


def project_root(cwd: Path, home: Path) -> Path:
    """The project that a session in this directory belongs to: its repository's root, else the directory itself."""
    cwd = Path(os.path.realpath(cwd))
    return repository_of(cwd, home) or cwd
