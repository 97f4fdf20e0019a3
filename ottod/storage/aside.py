"""Unusable files are put aside under a numbered name, never deleted and never silently replaced."""

from __future__ import annotations

import os
from pathlib import Path


def free_name(path: Path, suffix: str) -> Path:
    """`path` + `.suffix`, or `.suffix-2`, `.suffix-3` … : the first that does not exist."""
    candidate = path.with_name(f"{path.name}.{suffix}")
    number = 2
    while os.path.lexists(candidate):
        candidate = path.with_name(f"{path.name}.{suffix}-{number}")
        number += 1
    return candidate


def move_aside(path: Path, suffix: str = "broken") -> Path:
    """Renames the file and returns its new name. Raises OSError."""
    target = free_name(path, suffix)
    path.rename(target)
    return target


def sync_directory(path: Path) -> None:
    """Makes the names in a directory durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def numbered_name(path: Path, suffix: str) -> Path:
    """`path` + `.suffix-1`, `.suffix-2` … : the first that does not exist."""
    number = 1
    while os.path.lexists(candidate := path.with_name(f"{path.name}.{suffix}-{number}")):
        number += 1
    return candidate
