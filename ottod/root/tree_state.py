"""What a working directory is like now, as one digest: another one as soon as anything in it has changed.

It is made of git's HEAD, if there is one above, and of a listing: each file's path, kind, size and times, those that
are neither committed nor added among them. No other file is read and no program run, so nothing of the directory's
own is obeyed. A file that is written anew with the same content makes another digest, which costs an answer and no
truth.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ottod.settings.regular_file import read_regular

MAX_FILES = 50_000
"""A larger directory has no state that could be looked at in passing."""
SKIPPED = frozenset(
    {".git", ".hg", ".venv", "node_modules", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".tox"}
)
"""Directories that tools fill for themselves: what is in them is made from the rest."""
MAX_REF_BYTES = 4096


def tree_state(cwd: str) -> str:
    """The digest; empty for a directory that is too large, or cannot be read whole. Blocks; for a thread."""
    found = hashlib.sha256()
    try:
        found.update(_head(Path(cwd)).encode())
        for count, line in enumerate(_lines(cwd)):
            if count >= MAX_FILES:
                return ""
            found.update(line)
    except OSError:
        return ""
    return found.hexdigest()


def _lines(cwd: str) -> Iterator[bytes]:
    waiting = [cwd]
    while waiting:
        directory = waiting.pop()
        with os.scandir(directory) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                is_directory = entry.is_dir(follow_symlinks=False)
                if is_directory and entry.name in SKIPPED:
                    continue
                if is_directory:
                    waiting.append(entry.path)
                about = entry.stat(follow_symlinks=False)
                # Of a directory its times say that something came or went, of which the listing knows more.
                times = (0, 0, 0) if is_directory else (about.st_size, about.st_mtime_ns, about.st_ctime_ns)
                yield repr((os.fsencode(entry.path), stat.S_IFMT(about.st_mode), about.st_mode, *times)).encode()


def _head(cwd: Path) -> str:
    """What HEAD is, and the commit that it names, as far as plain files say so. Raises OSError if one is no file."""
    for directory in (cwd, *cwd.parents):
        git = directory / ".git"
        if git.is_dir():
            head = _read(git / "HEAD")
            name = head.removeprefix("ref: ")
            is_ref = name != head and ".." not in name and not name.startswith("/")
            return f"{head} {_read(git / name) if is_ref else ''}"
        if git.is_file():
            return _read(git)  # A linked work tree: what has changed in it, the listing says.
    return ""


def _read(path: Path) -> str:
    """Empty if there is none: a branch may have no commit yet, or have it elsewhere."""
    if not os.path.lexists(path):
        return ""
    data = read_regular(path, max_bytes=MAX_REF_BYTES, follows_links=False)
    return data.decode("utf-8", "replace").strip()
