"""A project's OTTO.md, found and read: beneath the project's root, whatever symlinks say, and within bounds.

The nearest one counts, at the working directory or above it up to the repository's root, as with agent files. One
that cannot be used hides those above it all the same: what is in sight is what is meant.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ottod.core.project_notes import FILE_NAME
from ottod.errors import OttoError
from ottod.isolation.beneath import BeneathFiles
from ottod.settings.levels import project_levels, same_owner

MAX_READ_BYTES = 1024 * 1024
"""A larger file is none that anybody wrote for agents."""


class ProjectNotes(msgspec.Struct, frozen=True, kw_only=True):
    """What there is. `problem` says why it is not given; then there is no text."""

    path: str
    text: str = ""
    size_bytes: int = 0
    problem: str = ""


def find_notes(cwd: str, *, hidden: Sequence[str] = (), home: str = "") -> ProjectNotes | None:
    """The notes of the project that a session in this directory belongs to; None if it has none. Blocks.

    `hidden` are Otto's own directories, `home` the user's. A directory that cannot be looked at has none.
    """
    base = Path(home or os.path.expanduser("~"))
    for level, root in project_levels(Path(cwd), base):
        path = level / FILE_NAME
        if os.path.lexists(path):
            return _read(path, root, Path(cwd), hidden)
    return None


def notes_directory(cwd: str, *, home: str = "") -> str:
    """Where the notes of such a session's project are, or belong: its root, if there are none. Blocks."""
    base = Path(home or os.path.expanduser("~"))
    root = os.path.realpath(cwd)
    for level, project in project_levels(Path(cwd), base):
        if os.path.lexists(level / FILE_NAME):
            return str(level)
        root = str(project)
    return root


def _read(path: Path, root: Path, cwd: Path, hidden: Sequence[str]) -> ProjectNotes | None:
    if not same_owner(path.parent, cwd, FILE_NAME):
        return ProjectNotes(path=str(path), problem=f"{path} belongs to somebody else")
    try:
        files = BeneathFiles(str(root), hidden=hidden)
        try:
            data = files.read(str(path.relative_to(root)), max_bytes=MAX_READ_BYTES)
        finally:
            files.close()
    except OttoError as error:
        return ProjectNotes(path=str(path), problem=error.message)
    if b"\0" in data:
        return ProjectNotes(path=str(path), size_bytes=len(data), problem=f"{path} is no text")
    text = data.decode("utf-8-sig", "replace")
    return ProjectNotes(path=str(path), text=text, size_bytes=len(data)) if text.strip() else None
