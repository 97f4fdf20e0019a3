"""Where storage is tried: in memory, if this machine has a file system for that.

These tests open and sync a file thousands of times. What they judge is what is in the file, not what the disk makes
of a sync, and on a busy disk they would wait for nothing else.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

IN_MEMORY = Path("/dev/shm")
ROOM_BYTES = 512 * 1024 * 1024


def _has_room() -> bool:
    try:
        return os.access(IN_MEMORY, os.W_OK | os.X_OK) and shutil.disk_usage(IN_MEMORY).free >= ROOM_BYTES
    except OSError:
        return False


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """A directory of the test's own, gone when it ends."""
    if not _has_room():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="otto-storage-", dir=IN_MEMORY) as directory:
        yield Path(directory)
