"""For all tests: nothing is judged by how long it took, and a failing example can be run again."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("otto", deadline=None, print_blob=True)
settings.load_profile("otto")


def pytest_xdist_auto_num_workers() -> int:
    """More than there are processors: most of what takes long waits for a process that starts, ends or sleeps."""
    return max(2, (os.cpu_count() or 1) * 3 // 2)
